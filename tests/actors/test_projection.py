"""The projection on a real journal, kernel and PostgreSQL: random histories, crashes anywhere, rebuilds, damage."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from actors import ledger
from actors.projection import Limits, Projection
from actors.recovery import Windows
from storage import record
from storage.events import Code, Kind
from storage.journal import Corrupt, Journal, Writer
from storage.journal.postgres import PostgresJournal
from storage.listening import is_gone
from storage.query_store import Chunk, Overtaken, QueryStore
from storage.snapshots import SnapshotStore
from tests.actors.projection_history import FORGETFUL, KEY, PARTITIONS, SMALL, UTC_OFFSET_S, History, Recorded

__all__ = ["KEY"]

DEFAULT = Windows()
TABLES = ("transfers", "outcomes", "entries", "account_changes")


class Log:
    """Writes a history's records into a journal as shards would."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self._readers = {p: record.Reader(journal, p, KEY) for p in range(PARTITIONS)}
        self._writers: dict[int, Writer] = {}

    async def open(self, partition: int, *, rules: int = ledger.RULES, capacity: ledger.Capacity = SMALL) -> None:
        """A new writer takes the partition over."""
        if partition in self._writers:
            await self._writers[partition].close()
        payload = record.encode_open(partition, {"name": "test"}, rules=rules, capacity=capacity._asdict())
        self._writers[partition] = await self.journal.open(partition, payload)
        async for _ in self._readers[partition].records():
            pass

    async def write(self, records: list[Recorded]) -> dict[int, int]:
        """Append; returns the last offset of each partition."""
        offsets = {}
        for one in records:
            if one.partition not in self._writers:
                await self.open(one.partition)
            position = self._readers[one.partition].position
            payload = record.encode(
                one.rows, one.results, one.notes, partition=one.partition, sequence=position.sequence,
                epoch=position.epoch, utc_offset_s=UTC_OFFSET_S, chain=record.Chain(KEY, position.chain),
            )  # fmt: skip
            offsets[one.partition] = await self._writers[one.partition].append(payload)
            async for _ in self._readers[one.partition].records():
                pass
        return offsets

    async def close(self) -> None:
        for writer in self._writers.values():
            await writer.close()


@pytest.fixture
async def journal(database: str) -> AsyncIterator[PostgresJournal]:
    journal = PostgresJournal(database)
    await journal.create(PARTITIONS)
    yield journal
    await journal.close()


@pytest.fixture
async def log(journal: PostgresJournal) -> AsyncIterator[Log]:
    log = Log(journal)
    yield log
    await log.close()


@pytest.fixture
async def store(database: str) -> AsyncIterator[QueryStore]:
    async with asyncpg.create_pool(database, min_size=1, max_size=6) as pool:
        store = QueryStore(pool)
        await store.create()
        yield store
        await store.close()


@pytest.fixture
def snapshots(tmp_path: Path) -> SnapshotStore:
    return SnapshotStore(tmp_path / "snapshots", KEY, keep=3)


@asynccontextmanager
async def projecting(
    journal: PostgresJournal, store: QueryStore, snapshots: SnapshotStore, windows: Windows = DEFAULT, **limits: Any
) -> AsyncIterator[Projection]:
    """An open projection; leaving it is a crash: whatever was under way is dropped."""
    projection = Projection(
        journal, store, snapshots, chain_key=KEY, windows=windows,
        limits=Limits(**{"chunk_rows": 40, **limits}),
    )  # fmt: skip
    try:
        await projection.open()
        yield projection
    finally:
        await projection.close()


async def content(store: QueryStore) -> dict[str, list[tuple[Any, ...]]]:
    """Everything in the store."""
    tables = {}
    for table in (*TABLES, "projection"):
        rows = await store.pool.fetch(f"SELECT * FROM query.{table}")
        tables[table] = sorted(map(tuple, rows), key=repr)
    return tables


async def as_the_history_says(store: QueryStore, history: History) -> None:
    """Every balance at every instant, every transfer and every account."""
    for account, seen in history.timeline.items():
        opened = await store.account(account)
        assert opened is not None
        assert opened.status == history.status[account]
        for (at, posted, pending), following in zip(seen, [*seen[1:], None], strict=True):
            until = following[0] // 1000 - 1 if following is not None else at // 1000 + 10**9
            for us in {at // 1000, until} if until > at // 1000 else {until}:
                if following is not None and us == following[0] // 1000:
                    continue
                found = await store.balance_at(account, us * 1000)
                if us >= at // 1000:
                    assert found is not None, (account, us)
                    assert (found.posted, found.pending) == (posted, pending), (account, us, at)
    for known in history.known.values():
        uses = await store.transfer(known.id)
        assert [use.at for use in uses] == sorted(use.at for use in uses)
        (told,) = [use for use in uses if (use.partition, use.at) == (known.partition, known.at)]
        said = (told.kind, str(told.status), told.debit, told.credit, told.amount, told.refunded_amount)
        assert said == (known.kind, known.status, known.debit, known.credit, known.amount, known.refunded), known
        assert told.note == known.note
        if known.kind is not Kind.POST:
            assert told.posted_amount == known.posted
        if known.status == "refused":
            assert told.code == known.code


async def test_every_balance_at_every_instant_and_every_transfer_is_as_it_was(
    journal: PostgresJournal, log: Log, store: QueryStore, snapshots: SnapshotStore
) -> None:
    history = History(seed=1)
    async with projecting(journal, store, snapshots) as projection:
        for step in range(120):
            await log.write(history.step())
            if step % 10 == 0:
                await projection.catch_up()
            if step == 60:
                await log.open(1)
                await projection.catch_up()
                await as_the_history_says(store, history)
        await log.write(history.drain())
        await projection.catch_up()
        await as_the_history_says(store, history)
        for part, book in zip(projection.parts, history.books, strict=True):
            assert ledger.digest(part.book) == ledger.digest(book)


@pytest.mark.parametrize("seed", [2, 3])
async def test_histories_reach_every_way_that_a_transfer_can_end(
    journal: PostgresJournal, log: Log, store: QueryStore, snapshots: SnapshotStore, seed: int
) -> None:
    history = await written(History(seed), log, steps=150)
    async with projecting(journal, store, snapshots) as projection:
        await projection.catch_up()
    await as_the_history_says(store, history)
    ends = {(known.kind, known.status) for known in history.known.values()}
    wanted = {Kind.HOLD: ["held", "posted", "voided", "expired", "refused"], Kind.POST: ["posted", "refused"]}
    wanted[Kind.TRANSFER] = wanted[Kind.REFUND] = ["settled", "refused"]
    assert ends >= {(kind, status) for kind, statuses in wanted.items() for status in statuses}
    assert {Code.IN_FLIGHT, Code.LINKED_FAILED} <= history.codes


@pytest.mark.parametrize("seed", [4, 5])
async def test_a_namesake_is_another_transfer_in_every_respect(
    journal: PostgresJournal, log: Log, store: QueryStore, snapshots: SnapshotStore, seed: int
) -> None:
    """Ids are used again while the payment, the hold or the refund that they named before is not yet at its end."""
    history = History(seed, windows=FORGETFUL)
    async with projecting(journal, store, snapshots, FORGETFUL) as projection:
        for _ in range(3):
            await written(history, log, steps=60, drain=False)
            await projection.catch_up()
            await as_the_history_says(store, history)
        await log.write(history.drain())
        await projection.catch_up()
    await as_the_history_says(store, history)
    uses = Counter(known.id for known in history.known.values())
    assert sum(count > 1 for count in uses.values()) > 20
    assert history.overtaken >= 5
    refunded = [known.original for known in history.known.values() if known.original is not None]
    assert any(original.refunded and uses[original.id] > 1 for original in refunded)


async def written(history: History, log: Log, *, steps: int, drain: bool = True) -> History:
    for _ in range(steps):
        await log.write(history.step())
    if drain:
        await log.write(history.drain())
    return history


async def undisturbed(journal: PostgresJournal, store: QueryStore, where: Path) -> dict[str, list[tuple[Any, ...]]]:
    """What the store must hold in the end: everything projected in one go, from nothing."""
    await store.reset()
    async with projecting(journal, store, SnapshotStore(where, KEY), chunk_rows=10_000) as projection:
        await projection.catch_up()
    found = await content(store)
    await store.reset()
    return found


@pytest.mark.parametrize("seed", range(4))
async def test_a_crash_between_any_two_steps_loses_nothing_and_doubles_nothing(
    journal: PostgresJournal, log: Log, store: QueryStore, snapshots: SnapshotStore, tmp_path: Path, seed: int
) -> None:
    await written(History(seed + 10), log, steps=60)
    wanted = await undisturbed(journal, store, tmp_path / "other")
    chance = random.Random(seed)
    crashes = 0
    done = False
    while not done or crashes <= 2:
        if done:  # a slow machine gets further between two steps: begin again until enough was cut short
            await store.reset()
        limits: dict[str, Any] = {"chunk_rows": chance.choice([1, 7, 60]), "snapshot_records": chance.choice([3, 20])}
        try:
            async with projecting(journal, store, snapshots, **limits) as projection:
                work = asyncio.create_task(projection.catch_up())
                for _ in range(chance.randrange(10, 400)):
                    await asyncio.sleep(0)  # one step of the loop
                done = work.done()
                work.cancel()
                crashes += not done
                with contextlib.suppress(asyncio.CancelledError):
                    await work
        except Overtaken:
            # A commit that the crash before left behind came through just now.
            done = False
    assert crashes > 2
    assert await content(store) == wanted


_KILL = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND query LIKE '%query.%' AND application_name = ''
"""


async def test_a_database_that_drops_connections_delays_and_changes_nothing(
    journal: PostgresJournal, log: Log, store: QueryStore, snapshots: SnapshotStore, tmp_path: Path, database: str
) -> None:
    await written(History(20), log, steps=60)
    wanted = await undisturbed(journal, store, tmp_path / "other")
    killer = await asyncpg.connect(database)
    try:
        async with projecting(journal, store, snapshots, chunk_rows=1, poll_s=(0.001, 0.01)) as projection:
            running = asyncio.create_task(projection.run())
            kills = 0
            while kills < 8 and any(part.projected < 30 for part in projection.parts) and not running.done():
                kills += len(await killer.fetch(_KILL))
                await asyncio.sleep(0.005)
            assert kills
            heads = {p: head - 1 for p, head in (await journal.heads()).items()}
            waiting = asyncio.create_task(store.wait_for(heads, asyncio.get_running_loop().time() + 60))
            await asyncio.wait([running, waiting], return_when=asyncio.FIRST_COMPLETED)
            assert not running.done(), running.exception()
            await waiting
            assert await content(store) == wanted
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
    finally:
        await killer.close()


async def test_a_rebuild_gives_identical_tables_whatever_the_chunks(
    journal: PostgresJournal, log: Log, store: QueryStore, snapshots: SnapshotStore, tmp_path: Path
) -> None:
    await written(History(30), log, steps=60)
    wanted = await undisturbed(journal, store, tmp_path / "other")
    for chunk_rows in (1, 23, 1000):
        await store.drop()
        snapshots.drop()
        async with projecting(journal, store, snapshots, chunk_rows=chunk_rows) as projection:
            await projection.catch_up()
        assert await content(store) == wanted


async def test_a_snapshot_gives_the_same_book_and_ahead_of_the_store_it_is_not_used(
    journal: PostgresJournal, log: Log, store: QueryStore, snapshots: SnapshotStore
) -> None:
    history = await written(History(40), log, steps=20)
    async with projecting(journal, store, snapshots) as projection:
        await projection.catch_up()
    early = await content(store)
    async with projecting(journal, store, snapshots, snapshot_records=1) as projection:
        await with_snapshots(history, log, projection, 4)
    await written(history, log, steps=20)
    async with projecting(journal, store, snapshots) as projection:
        assert all(part._reader.position.offset > 25 for part in projection.parts)
        await projection.catch_up()
        for part, book in zip(projection.parts, history.books, strict=True):
            assert ledger.digest(part.book) == ledger.digest(book)
            ledger.check(part.book)
    wanted = await content(store)
    # The store falls back behind every snapshot that is left, as a database restored from a backup would.
    for table, rows in early.items():
        await store.pool.execute(f"TRUNCATE query.{table}")
        await store.pool.copy_records_to_table(table, schema_name="query", records=rows)
    async with projecting(journal, store, snapshots) as projection:
        assert [part._reader.position.offset for part in projection.parts] == [0, 0]
        await projection.catch_up()
    assert await content(store) == wanted


async def test_a_book_behind_the_store_catches_up_without_adding(
    journal: PostgresJournal, log: Log, store: QueryStore, snapshots: SnapshotStore
) -> None:
    history = await written(History(50), log, steps=30)
    async with projecting(journal, store, snapshots) as projection:
        await projection.catch_up()
    early = await content(store)
    snapshots.drop()
    async with projecting(journal, store, snapshots, chunk_rows=5, snapshot_records=7) as projection:
        assert [part._reader.position.offset for part in projection.parts] == [0, 0]
        await projection.catch_up()
        assert await content(store) == early
        await written(history, log, steps=30)
        await projection.catch_up()
        await as_the_history_says(store, history)


async def with_snapshots(history: History, log: Log, projection: Projection, count: int) -> None:
    """Go on with the history until each partition has that many more snapshots."""
    for _ in range(count):
        await written(history, log, steps=8, drain=False)
        await projection.catch_up()
        for part in projection.parts:
            assert part._saving is not None
            await part._saving


async def test_a_damaged_snapshot_is_passed_over(
    journal: PostgresJournal, log: Log, store: QueryStore, snapshots: SnapshotStore
) -> None:
    history = History(60)
    async with projecting(journal, store, snapshots, snapshot_records=1) as projection:
        await with_snapshots(history, log, projection, 3)
    newest, *older = snapshots.files(0)
    await asyncio.to_thread(damage, Path(newest.path))
    await written(history, log, steps=10)
    async with projecting(journal, store, snapshots) as projection:
        assert projection.parts[0]._reader.position.offset == older[0].offset
        await projection.catch_up()
    await as_the_history_says(store, history)


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


async def test_a_snapshot_knows_the_newest_stamp(
    journal: PostgresJournal, log: Log, store: QueryStore, snapshots: SnapshotStore
) -> None:
    # A shard that starts from it must not stamp its next event with an earlier time.
    async with projecting(journal, store, snapshots, snapshot_records=1) as projection:
        await with_snapshots(History(61), log, projection, 2)
    for partition in range(PARTITIONS):
        newest = snapshots.load_newest(partition)
        assert newest is not None
        before = record.Reader(journal, partition, KEY).records(newest.position.offset)
        stamps = [int(one.rows["at"][-1]) async for one in before]
        assert newest.meta["last_ns"] == stamps[-1]


async def test_a_writer_reads_its_own_writes(
    journal: PostgresJournal, log: Log, store: QueryStore, snapshots: SnapshotStore
) -> None:
    history = History(70)
    async with projecting(journal, store, snapshots) as projection:
        running = asyncio.create_task(projection.run())
        for _ in range(20):
            positions = await log.write(history.step())
            await store.wait_for(positions, asyncio.get_running_loop().time() + 20)
            behind = [p for p, offset in (await store.projected()).items() if offset <= positions.get(p, -1)]
            assert not behind
        await as_the_history_says(store, history)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@pytest.mark.parametrize("column", ["code", "detail"])
async def test_an_answer_that_replay_does_not_give_stops_the_projection(
    journal: PostgresJournal, log: Log, store: QueryStore, snapshots: SnapshotStore, column: str
) -> None:
    history = await written(History(80), log, steps=10)
    async with projecting(journal, store, snapshots) as projection:
        await projection.catch_up()
        before = await content(store)
        (changed,) = [one for one in history.step(30) if one.partition == 1]
        changed.results[column][-1] += 1
        offset = (await log.write([changed]))[1]
        with pytest.raises(Corrupt, match=f"partition 1, offset {offset}: event .* {column}"):
            await projection.run()
        after = await content(store)
    assert after == before


async def test_a_record_that_was_altered_stops_the_projection(
    journal: PostgresJournal, log: Log, store: QueryStore, snapshots: SnapshotStore
) -> None:
    await written(History(81), log, steps=10)
    await store.pool.execute(
        "UPDATE journal.record SET payload = set_byte(payload, 900, 255 - get_byte(payload, 900)) "
        'WHERE partition = 0 AND "offset" = 4'
    )
    async with projecting(journal, store, snapshots) as projection:
        with pytest.raises(Corrupt, match="partition 0, offset 4"):
            await projection.run()


async def test_a_store_ahead_of_the_journal_is_refused(
    journal: PostgresJournal, log: Log, store: QueryStore, snapshots: SnapshotStore
) -> None:
    await written(History(82), log, steps=3)
    await store.append(0, await store.offset(0), 1000, 1, Chunk.empty())
    with pytest.raises(Corrupt, match=r"partition 0, offset .*: the query store has records up to 1000"):
        async with projecting(journal, store, snapshots):
            pass


async def test_a_store_that_is_reset_under_a_running_projection_is_filled_again(
    journal: PostgresJournal, log: Log, store: QueryStore, snapshots: SnapshotStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actors.projection._CHECK_S", 0.01)
    history = await written(History(90), log, steps=30)
    loop = asyncio.get_running_loop()
    async with projecting(journal, store, snapshots, poll_s=(0.001, 0.01)) as projection:
        running = asyncio.create_task(projection.run())
        for remake in (store.reset, store.drop):
            heads = {p: head - 1 for p, head in (await journal.heads()).items()}
            await store.wait_for(heads, loop.time() + 20)
            wanted = await content(store)
            await remake()
            if remake == store.drop:
                await store.create()
            await store.wait_for(heads, loop.time() + 20)
            assert await content(store) == wanted
        await as_the_history_says(store, history)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_a_reader_who_waits_calls_the_projector(
    journal: PostgresJournal, log: Log, store: QueryStore, snapshots: SnapshotStore
) -> None:
    history = await written(History(93), log, steps=20)
    async with projecting(journal, store, snapshots, poll_s=(3_600.0, 3_600.0), wanted_s=0.001) as projection:
        running = asyncio.create_task(projection.run())
        for _ in range(3):
            await written(history, log, steps=5)
            heads = {p: head - 1 for p, head in (await journal.heads()).items()}
            await store.wait_for(heads, asyncio.get_running_loop().time() + 20)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_an_ear_that_was_lost_hears_again(store: QueryStore, database: str) -> None:
    heard = asyncio.Event()
    ear = store.wanted(heard.set)
    await ear.ensure()
    killer = await asyncpg.connect(database)
    assert await killer.fetch(_KILL.replace("%query.%", "LISTEN%"))
    while not is_gone(ear._connection):  # noqa: ASYNC110 - the driver sets no event
        await asyncio.sleep(0.001)
    await ear.ensure()
    await killer.execute("NOTIFY razao_wanted")
    await asyncio.wait_for(heard.wait(), 10)
    await ear.close()
    await killer.close()


async def test_two_projections_at_once_still_project_everything_once(
    journal: PostgresJournal, log: Log, store: QueryStore, snapshots: SnapshotStore, tmp_path: Path
) -> None:
    await written(History(91), log, steps=60)
    wanted = await undisturbed(journal, store, tmp_path / "other")
    await store.create()
    limits: dict[str, Any] = {"chunk_rows": 5, "poll_s": (0.001, 0.01)}
    async with (
        projecting(journal, store, snapshots, **limits) as one,
        projecting(journal, store, snapshots, **limits) as two,
    ):
        running = [asyncio.create_task(projection.run()) for projection in (one, two)]
        heads = {p: head - 1 for p, head in (await journal.heads()).items()}
        await store.wait_for(heads, asyncio.get_running_loop().time() + 30)
        for task in running:
            assert not task.done()
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    assert await content(store) == wanted


async def test_open_and_void_records_move_the_offset_and_nothing_else(
    journal: PostgresJournal, log: Log, store: QueryStore, snapshots: SnapshotStore
) -> None:
    history = await written(History(92), log, steps=10)
    async with projecting(journal, store, snapshots) as projection:
        await projection.catch_up()
        before = await content(store)
        await log.open(0)
        await log.open(1)  # from now on a record of epoch 0 is void
        await store.pool.execute(
            'WITH head AS (UPDATE journal.head SET next = next + 1 WHERE partition = 1 RETURNING next - 1 AS "offset")'
            ' INSERT INTO journal.record SELECT 1, "offset", 0, false, $1 FROM head',
            b"of a writer that was overtaken",
        )
        await projection.catch_up()
        after = await content(store)
        heads = await journal.heads()
        assert await store.projected() == heads
        assert {table: after[table] for table in TABLES} == {table: before[table] for table in TABLES}
        await log.open(1)
        await written(history, log, steps=10)
        await projection.catch_up()
        await as_the_history_says(store, history)
