"""The contract of `storage.journal`, run on every implementation against its real server.

An implementation joins by a `Bench` in `BENCHES`: how to make journals on one ledger, and how to harm it.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Final, Protocol

import asyncpg
import numpy as np
import pytest

from cluster.postgres import PostgresServer
from storage.events import EVENT, RESULT, Kind
from storage.journal import Corrupt, Fenced, Journal, JournalError, OutcomeUnknown, Stored, Writer
from storage.journal.postgres import PostgresJournal
from storage.record import Chain, Reader, Record, encode, encode_open, read_open
from tests.conftest import free_port
from tests.contract.kafka_bench import kafka_bench

KEY: Final = b"contract" * 4


class Bench(Protocol):
    """One ledger of an implementation, and ways to harm it."""

    def journal(self) -> Journal:
        """Another client of the ledger, as another process would have."""
        ...

    async def append_as(self, partition: int, epoch: int, payload: bytes) -> int:
        """Put a record into the log as a writer of `epoch` whose append arrives late; returns its offset."""
        ...

    async def remove(self, partition: int, offset: int) -> int:
        """Lose a record, and those before it where the log forgets no other way; returns the first one that is lost."""
        ...

    async def disconnect(self) -> None:
        """Cut every client's connections."""
        ...

    async def hold_back(self, partition: int) -> Callable[[], Awaitable[None]]:
        """Make appends and takeovers of the partition wait; call the answer to let them go on."""
        ...

    async def waiting(self) -> int:
        """How many appends and takeovers wait because of `hold_back`."""
        ...


class PostgresBench:
    """PostgreSQL: statements of a superuser do the harm."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn

    def journal(self) -> Journal:
        return PostgresJournal(self._dsn, chunk_bytes=1 << 20)

    async def append_as(self, partition: int, epoch: int, payload: bytes) -> int:
        offset = await self._value(
            'WITH head AS (UPDATE journal.head SET next = next + 1 WHERE partition = $1 RETURNING next - 1 AS "offset")'
            ' INSERT INTO journal.record SELECT $1, "offset", $2, false, $3 FROM head RETURNING "offset"',
            partition,
            epoch,
            payload,
        )
        return int(str(offset))

    async def remove(self, partition: int, offset: int) -> int:
        await self._value('DELETE FROM journal.record WHERE partition = $1 AND "offset" = $2', partition, offset)
        return offset

    async def disconnect(self) -> None:
        await self._value(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name LIKE 'razao-%'"
        )

    async def hold_back(self, partition: int) -> Callable[[], Awaitable[None]]:
        connection = await asyncpg.connect(self._dsn)
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute("SELECT FROM journal.head WHERE partition = $1 FOR UPDATE", partition)

        async def release() -> None:
            await transaction.commit()
            await connection.close()

        return release

    async def waiting(self) -> int:
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        return int(str(await self._value(query)))

    async def _value(self, query: str, *arguments: object) -> object:
        connection = await asyncpg.connect(self._dsn)
        try:
            return await connection.fetchval(query, *arguments)
        finally:
            await connection.close()


@asynccontextmanager
async def postgres(request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    yield PostgresBench(request.getfixturevalue("database"))


@asynccontextmanager
async def kafka(request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    async with kafka_bench(request.getfixturevalue("kafka_address")) as bench:
        yield bench


BENCHES: Final[list[Callable[[pytest.FixtureRequest], AbstractAsyncContextManager[Bench]]]] = [postgres, kafka]


@pytest.fixture(params=BENCHES, ids=lambda factory: factory.__name__)
async def bench(request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    async with request.param(request) as made:
        yield made


@pytest.fixture
async def journal(bench: Bench) -> AsyncIterator[Journal]:
    journal = bench.journal()
    await journal.create(2)
    yield journal
    await journal.close()


async def opened(journal: Journal, name: str = "one", partition: int = 0) -> Writer:
    return await journal.open(partition, encode_open(partition, {"name": name}))


async def stored(journal: Journal, offset: int = 0, until: int | None = None, partition: int = 0) -> list[Stored]:
    return [record async for record in journal.read(partition, offset, until)]


async def valid(journal: Journal, partition: int = 0) -> list[Record]:
    return [record async for record in Reader(journal, partition, KEY).records()]


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(20):
        while not await condition():  # noqa: ASYNC110 - what is watched is in another process
            await asyncio.sleep(0.005)


class Author:
    """A writer that keeps the chain as a shard does: it reads up to its own open record first."""

    def __init__(self, writer: Writer, reader: Reader) -> None:
        self.writer = writer
        self._sequence = reader.position.sequence
        self._chain = Chain(KEY, reader.position.chain)

    @classmethod
    async def take_over(cls, journal: Journal, name: str) -> Author:
        writer = await opened(journal, name)
        reader = Reader(journal, writer.partition, KEY)
        async for _ in reader.records(writer.epoch + 1):
            pass
        return cls(writer, reader)

    def record(self, amount: int) -> bytes:
        rows, results = np.zeros(1, EVENT), np.zeros(1, RESULT)
        rows["kind"], rows["amount"], rows["id_lo"] = Kind.DEPOSIT, amount, amount
        payload = encode(
            rows,
            results,
            None,
            partition=self.writer.partition,
            sequence=self._sequence,
            epoch=self.writer.epoch,
            utc_offset_s=0,
            chain=self._chain,
        )
        self._sequence += 1
        return payload

    async def write(self, amount: int) -> int:
        return await self.writer.append(self.record(amount))


def amounts(records: list[Record]) -> list[int]:
    return [int(record.rows["amount"][0]) for record in records]


async def test_a_ledger_keeps_its_number_of_partitions(bench: Bench) -> None:
    journal = bench.journal()
    assert await journal.partitions() == 0
    await asyncio.gather(*(bench_journal.create(4) for bench_journal in [journal, journal]))
    assert await journal.partitions() == 4
    await journal.create(4)
    with pytest.raises(JournalError, match="4 partitions, not 2"):
        await journal.create(2)
    await journal.close()


@pytest.mark.parametrize("count", [0, 3, 2048, -1])
async def test_a_number_of_partitions_that_slots_do_not_divide_into_is_refused(bench: Bench, count: int) -> None:
    journal = bench.journal()
    with pytest.raises(ValueError, match="power of two"):
        await journal.create(count)
    await journal.close()


async def test_a_partition_that_is_not_there_cannot_be_opened(journal: Journal) -> None:
    with pytest.raises(JournalError):
        await opened(journal, partition=2)


async def test_what_is_appended_is_read_back_at_dense_offsets(journal: Journal) -> None:
    writer = await opened(journal)
    assert writer.epoch == 0
    payloads = [bytes([i]) * i for i in range(20)]
    assert [await writer.append(payload) for payload in payloads] == list(range(1, 21))
    assert await journal.head(0) == 21
    records = await stored(journal)
    assert [record.offset for record in records] == list(range(21))
    assert [record.payload for record in records[1:]] == payloads
    assert [record.is_open for record in records] == [True] + [False] * 20
    assert {record.epoch for record in records} == {0}
    await writer.close()


async def test_partitions_have_logs_of_their_own(journal: Journal) -> None:
    first, second = await opened(journal), await opened(journal, partition=1)
    await first.append(b"0")
    await second.append(b"1")
    assert [record.payload for record in await stored(journal, 1)] == [b"0"]
    assert [record.payload for record in await stored(journal, 1, partition=1)] == [b"1"]
    await first.close()
    await second.close()


async def test_a_read_starts_and_ends_where_asked(journal: Journal) -> None:
    writer = await opened(journal)
    for i in range(5):
        await writer.append(bytes([i]))
    assert [record.offset for record in await stored(journal, 2, 4)] == [2, 3]
    assert await stored(journal, 6) == []
    assert await stored(journal, 3, 3) == []
    await writer.close()


async def test_a_read_can_be_left_in_the_middle(journal: Journal) -> None:
    writer = await opened(journal)
    for _ in range(6):
        await writer.append(bytes(700_000))
    async for record in journal.read(0, 0):
        if record.offset == 1:
            break
    assert len(await stored(journal)) == 7
    await writer.close()


@pytest.mark.parametrize("size", [0, 1, 1_999, 8_192, 100_001, 8 * 2**20])
async def test_payloads_of_any_size_come_back_whole(journal: Journal, size: int) -> None:
    writer = await opened(journal)
    payload = np.random.default_rng(size).bytes(size)
    await writer.append(payload)
    await writer.append(b"next")
    assert [record.payload for record in await stored(journal, 1)] == [payload, b"next"]
    await writer.close()


async def test_a_missing_record_is_an_error_that_names_its_place(bench: Bench, journal: Journal) -> None:
    writer = await opened(journal)
    for i in range(6):
        await writer.append(bytes([i]))
    first = 7
    for lost in (3, 6, 0):
        first = min(first, await bench.remove(0, lost))
        with pytest.raises(Corrupt) as raised:
            await stored(journal)
        assert (raised.value.partition, raised.value.offset) == (0, first)
    with pytest.raises(Corrupt):
        await stored(journal, 8)
    await writer.close()


async def test_taking_over_fences_the_one_before(bench: Bench, journal: Journal) -> None:
    first = await opened(journal)
    await first.append(b"counts")
    await first.confirm()
    other = bench.journal()
    second = await opened(other, "two")
    assert second.epoch == 2
    with pytest.raises(Fenced):
        await first.confirm()
    with pytest.raises(Fenced):
        await first.append(b"late")
    with pytest.raises(Fenced):
        await first.append(b"later")
    await second.confirm()
    assert await second.append(b"after") >= 3
    assert [record.payload for record in await stored(journal) if record.epoch == 2][1:] == [b"after"]
    for closing in (first, second):
        await closing.close()
    await other.close()


async def test_an_append_that_is_overtaken_while_it_waits_is_fenced_or_comes_before(
    bench: Bench, journal: Journal
) -> None:
    first = await Author.take_over(journal, "first")
    release = await bench.hold_back(0)
    appending = asyncio.create_task(first.write(1))
    await until(lambda: _reached(bench, 1))
    taking_over = asyncio.create_task(Author.take_over(journal, "second"))
    await until(lambda: _reached(bench, 2))
    await release()
    (offset,) = await asyncio.gather(appending, return_exceptions=True)
    second = await taking_over
    if isinstance(offset, BaseException):
        assert isinstance(offset, Fenced)
        assert amounts(await valid(journal)) == []
    else:
        assert offset < second.writer.epoch
        assert amounts(await valid(journal)) == [1]
    await first.writer.close()
    await second.writer.close()


async def _reached(bench: Bench, count: int) -> bool:
    return await bench.waiting() >= count


async def test_void_records_are_skipped_by_every_reader(bench: Bench, journal: Journal) -> None:
    first = await Author.take_over(journal, "first")
    await first.write(1)
    late = first.record(99)
    second = await Author.take_over(journal, "second")
    await bench.append_as(0, first.writer.epoch, late)
    await bench.append_as(0, first.writer.epoch, b"not even a record")
    third = await Author.take_over(journal, "third")
    await third.write(3)
    reader = Reader(journal, 0, KEY)
    assert amounts([record async for record in reader.records()]) == [1, 3]
    assert reader.void == 2
    assert reader.newest is not None
    assert reader.newest.writer == {"name": "third"}
    assert reader.before is not None
    assert reader.before.writer == {"name": "second"}
    assert (await read_open(journal, 0, first.writer.epoch)).writer == {"name": "first"}
    for author in (first, second, third):
        await author.writer.close()


async def test_writers_that_take_over_from_one_another_lose_nothing_and_add_nothing(bench: Bench) -> None:
    seed = 20_251
    rng = random.Random(seed)
    journals = [bench.journal() for _ in range(4)]
    await journals[0].create(1)
    # A writer starts when so many appends were made or nobody else writes, so several always meet, some at once.
    starts = sorted(rng.randrange(0, 300) for _ in range(80))
    acknowledged: list[int] = []
    tried: list[int] = []
    writing: set[int] = set()
    moved = asyncio.Condition()

    async def moves(number: int, counts: bool) -> None:
        async with moved:
            tried.append(number)
            if counts:
                acknowledged.append(number)
            moved.notify_all()

    async def live(index: int) -> None:
        async with moved:
            await moved.wait_for(lambda: len(tried) >= starts[index] or not writing)
            writing.add(index)
        author = await Author.take_over(journals[index % len(journals)], f"writer-{index}")
        try:
            for turn in range(30):
                number = index * 1000 + turn
                await author.write(number)
                await moves(number, counts=True)
        except Fenced:
            await moves(number, counts=False)
        finally:
            await author.writer.close()
            async with moved:
                writing.remove(index)
                moved.notify_all()

    await asyncio.gather(*(live(index) for index in range(len(starts))))
    counted = amounts(await valid(journals[0]))
    assert sorted(counted) == sorted(acknowledged), f"seed {seed}"
    assert len(set(counted)) == len(counted)
    assert len(acknowledged) > 100, "too few appends met one another to show anything"
    assert len(tried) - len(acknowledged) > 20, "too few writers were fenced to show anything"
    for journal in journals:
        await journal.close()


async def test_a_connection_cut_in_the_middle_leaves_the_outcome_unknown_and_the_writer_at_its_end(
    bench: Bench, journal: Journal
) -> None:
    author = await Author.take_over(journal, "first")
    await author.write(1)
    release = await bench.hold_back(0)
    appending = asyncio.create_task(author.write(2))
    await until(lambda: _reached(bench, 1))
    await bench.disconnect()
    with pytest.raises(OutcomeUnknown):
        await appending
    await release()
    with pytest.raises(OutcomeUnknown):
        await author.write(3)
    with pytest.raises(OutcomeUnknown):
        await author.writer.confirm()
    successor = await Author.take_over(journal, "second")
    await successor.write(4)
    assert amounts(await valid(journal)) in ([1, 4], [1, 2, 4])
    await author.writer.close()
    await successor.writer.close()


async def test_a_cancelled_append_leaves_the_outcome_unknown_and_the_log_readable(
    bench: Bench, journal: Journal
) -> None:
    author = await Author.take_over(journal, "first")
    release = await bench.hold_back(0)
    appending = asyncio.create_task(author.write(1))
    await until(lambda: _reached(bench, 1))
    appending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await appending
    with pytest.raises(OutcomeUnknown):
        await author.writer.confirm()
    with pytest.raises(OutcomeUnknown):
        await author.write(2)
    await release()
    successor = await Author.take_over(journal, "second")
    await successor.write(3)
    assert amounts(await valid(journal)) in ([3], [1, 3])
    await author.writer.close()
    await successor.writer.close()


async def test_appends_that_overlap_keep_their_order_and_one_cancelled_before_its_turn_harms_nobody(
    bench: Bench, journal: Journal
) -> None:
    writer = await opened(journal)
    release = await bench.hold_back(0)
    first = asyncio.create_task(writer.append(b"first"))
    await until(lambda: _reached(bench, 1))
    second = asyncio.create_task(writer.append(b"second"))
    third = asyncio.create_task(writer.append(b"third"))
    await asyncio.sleep(0)
    second.cancel()
    await release()
    assert [await first, await third] == [1, 2]
    assert [record.payload for record in await stored(journal, 1)] == [b"first", b"third"]
    await writer.close()


async def test_a_closed_writer_appends_nothing_more(journal: Journal) -> None:
    writer = await opened(journal)
    await writer.close()
    with pytest.raises(JournalError):
        await writer.append(b"late")
    assert await journal.head(0) == 1


async def test_a_reader_goes_on_from_its_position_also_in_another_process(journal: Journal) -> None:
    author = await Author.take_over(journal, "first")
    for amount in range(1, 6):
        await author.write(amount)
    reader = Reader(journal, 0, KEY)
    seen = [record async for record in reader.records(4)]
    assert amounts(seen) == [1, 2, 3]
    other = Reader(journal, 0, KEY, reader.position)
    assert amounts([record async for record in other.records()]) == [4, 5]
    await author.write(6)
    assert amounts([record async for record in other.records()]) == [6]
    assert [record async for record in other.records()] == []
    await author.writer.close()


async def test_another_ledgers_key_reads_nothing(journal: Journal) -> None:
    author = await Author.take_over(journal, "first")
    await author.write(1)
    with pytest.raises(Corrupt, match="chain"):
        [record async for record in Reader(journal, 0, b"another").records()]
    await author.writer.close()


class TestPostgresServerKilled:
    """What only a server of the test's own can show."""

    @pytest.fixture
    def server(self) -> Iterator[PostgresServer]:
        directory = Path(tempfile.mkdtemp(prefix="rz-"))
        server = PostgresServer(directory, free_port())
        server.start()
        yield server
        server.stop()
        shutil.rmtree(directory)

    async def test_every_acknowledged_append_survives_kills_and_takeover_waits_for_the_server(
        self, server: PostgresServer
    ) -> None:
        bench = PostgresBench(server.dsn)
        journal = bench.journal()
        await journal.create(1)
        acknowledged: list[int] = []
        unknown: list[int] = []
        number = 0
        for round_ in range(3):
            opening = asyncio.create_task(Author.take_over(journal, f"round-{round_}"))
            if not server.running:
                # It must wait for the server rather than fail.
                await asyncio.sleep(0)
                await asyncio.to_thread(server.start)
            author = await opening
            for _ in range(20):
                number += 1
                await author.write(number)
                acknowledged.append(number)
            release = await bench.hold_back(0)
            number += 1
            unknown.append(number)
            appending = asyncio.create_task(author.write(number))
            await until(lambda: _reached(bench, 1))
            await asyncio.to_thread(server.kill)
            with pytest.raises(OutcomeUnknown):
                await appending
            with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)):
                await release()
            with pytest.raises(JournalError):
                await journal.head(0)
            await author.writer.close()
        await asyncio.to_thread(server.start)
        counted = amounts(await valid(journal))
        assert set(acknowledged) <= set(counted) <= {*acknowledged, *unknown}
        assert len(set(counted)) == len(counted)
        await journal.close()


async def test_a_writer_that_stalled_holding_the_partition_does_not_stop_its_successor(database: str) -> None:
    journal = PostgresJournal(database)
    await journal.create(1)
    first = await Author.take_over(journal, "first")
    await first.write(1)
    # As left by a process stopped in the middle of sending: the row is locked, nothing is committed.
    stalled = await asyncpg.connect(database, server_settings={"application_name": "razao-writer-0"})
    await stalled.execute("BEGIN")
    await stalled.execute("UPDATE journal.head SET next = next + 1 WHERE partition = 0")
    second = await Author.take_over(journal, "second")
    await second.write(2)
    assert amounts(await valid(journal)) == [1, 2]
    stalled.terminate()
    for author in (first, second):
        await author.writer.close()
    await journal.close()


async def test_a_wrong_password_is_reported_at_once(database: str) -> None:
    user, host = database.split("@")
    journal = PostgresJournal(f"{user[:-4]}0000@{host}")
    with pytest.raises(JournalError, match="password"):
        async with asyncio.timeout(5):
            await journal.open(0, b"")
    await journal.close()


async def test_an_operators_asynchronous_commit_does_not_weaken_the_writer(database: str) -> None:
    connection = await asyncpg.connect(database)
    name = await connection.fetchval("SELECT current_database()")
    await connection.execute(f"ALTER DATABASE {name} SET synchronous_commit = off")
    await connection.close()
    journal = PostgresJournal(database)
    await journal.create(1)
    writer = await journal.open(0, b"")
    assert await writer._connection.fetchval("SHOW synchronous_commit") == "on"
    await writer.close()
    await journal.close()
