"""One suite for every way to a shard: framed streams to shards in this process, and streams and actor calls under Ray.

Whatever the way: the same answers, the same retry of the same ids, the same *unsure*.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import asyncpg
import numpy as np
import pytest

from actors.account_shard import ShardConfig, start_shard
from actors.directory import locate_by, start_directory
from actors.ray_calls import RayTransport
from actors.shard_client import Outcome, ShardClient, ShardUnavailable
from actors.transport import TcpTransport
from cluster.postgres import PostgresServer
from cluster.ray_node import RayNode
from storage.events import EVENT, Code, Kind, ResultFlag
from storage.journal.postgres import PostgresJournal
from tests.actors.shard_harness import CAPACITY, CHAIN_KEY, SECRET, Ledger, account, event, linked, opening, slotted

PARTITIONS = 2
_numbers = itertools.count(1)


class Way:
    """Two shards, a client that reaches them in one way, and three accounts, the second one on the other shard."""

    def __init__(self, client: ShardClient) -> None:
        self.client = client
        first, second = next(_numbers), next(_numbers)
        self.a, self.b, self.c = account(0, first), account(1, first), account(0, second)

    async def kill(self, partition: int) -> None:
        """End the shard's process without warning; another takes its place."""
        raise NotImplementedError

    async def open(self) -> None:
        """Open the accounts with 1,000 each."""
        numbers = (self.a, self.b, self.c)
        rows = [opening(number) for number in numbers]
        rows += [event(Kind.DEPOSIT, 1, number, 1_000) for number in numbers]
        assert not (await self.apply(*rows, within_s=60)).results["code"].any()

    async def apply(self, *rows: np.ndarray, within_s: float = 20.0) -> Outcome:
        return await self.client.apply(np.concatenate(rows), None, time.monotonic() + within_s)

    async def available(self) -> list[int]:
        """What the three can spend."""
        wanted = np.array([self.a, self.b, self.c], np.uint64)
        states = (await self.client.read(wanted, np.zeros(3, np.uint64), time.monotonic() + 20)).states
        assert not states["code"].any()
        available = states["posted"] - states["debits_pending"]
        return [int(amount) for amount in available]


class InProcess(Way):
    """Streams to shards in this process."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__(ledger.client)
        self.ledger = ledger

    async def kill(self, partition: int) -> None:
        await self.ledger.shards[partition].crash()
        await self.ledger.start(partition)


class UnderRay(Way):
    """Detached actors, which Ray starts again."""

    async def kill(self, partition: int) -> None:
        stats = await self.client.stats(time.monotonic() + 20)
        os.kill(stats[partition].pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def cluster(ray_node: RayNode, postgres_server: PostgresServer) -> None:
    """A directory and two shards on a Ray of our own."""
    dsn = postgres_server.dsn_of("under_ray")
    with ThreadPoolExecutor(max_workers=1) as thread:
        thread.submit(lambda: asyncio.run(_new_ledger(postgres_server.dsn, dsn))).result()
    start_directory()
    for partition in range(PARTITIONS):
        config = ShardConfig(
            partition=partition,
            partitions=PARTITIONS,
            journal=partial(PostgresJournal, dsn),
            snapshots=no_snapshots,
            secret=SECRET,
            chain_key=CHAIN_KEY,
            capacity=CAPACITY,
        )
        start_shard(config)


def no_snapshots() -> None:
    """Recover from the journal alone."""


async def _new_ledger(server: str, dsn: str) -> None:
    connection = await asyncpg.connect(server)
    await connection.execute("CREATE DATABASE under_ray")
    await connection.close()
    journal = PostgresJournal(dsn)
    await journal.create(PARTITIONS)
    await journal.close()


WAYS = ["streams", *(pytest.param(name, marks=pytest.mark.ray) for name in ("ray streams", "ray calls"))]


@pytest.fixture(params=WAYS)
async def way(request: pytest.FixtureRequest, database: str) -> AsyncIterator[Way]:
    if request.param == "streams":
        journal = PostgresJournal(database)
        await journal.create(PARTITIONS)
        ledger = Ledger(journal, PARTITIONS)
        for partition in range(PARTITIONS):
            await ledger.start(partition)
        made: Way = InProcess(ledger)
        await made.open()
        yield made
        await ledger.close()
        await journal.close()
        return
    request.getfixturevalue("cluster")
    calls = request.param == "ray calls"
    transport = RayTransport(PARTITIONS) if calls else TcpTransport(locate_by(), SECRET, PARTITIONS)
    made = UnderRay(ShardClient(transport, PARTITIONS))
    await made.open()
    yield made
    await made.client.close()


async def test_one_transfer_and_its_repeat(way: Way) -> None:
    row = event(Kind.TRANSFER, way.a, way.c, 10)
    first = await way.apply(row)
    again = await way.apply(row)
    assert first.results["code"][0] == again.results["code"][0] == Code.OK
    assert first.results["at"][0] // 1000 * 1000 == again.results["at"][0]  # as it is remembered
    assert (first.results["flags"][0], again.results["flags"][0]) == (0, ResultFlag.REPLAYED)
    assert await way.available() == [990, 1_000, 1_010]


async def test_a_submitted_event_is_told_as_an_applied_one_and_once(way: Way) -> None:
    loop = asyncio.get_running_loop()
    rows = [event(Kind.TRANSFER, way.a, other, amount) for other in (way.b, way.c) for amount in (10, 5_000)]
    told: list[list[tuple[int, bool]]] = [[] for _ in rows]
    for row, tellings in zip(rows, told, strict=True):
        done = loop.create_future()

        def tell(results: np.ndarray, positions: dict[int, int], tellings: Any = tellings, done: Any = done) -> None:
            tellings.append((int(results["code"][0]), bool(positions)))
            done.set_result(None)
            raise ZeroDivisionError("a fault of who is told harms nobody else")

        way.client.submit(row.tobytes(), None, time.monotonic() + 20, tell)
        await asyncio.wait_for(done, 30)
    again = [(await way.apply(row)).results["code"][0] for row in rows]
    assert told == [[(int(code), True)] for code in again]
    assert again == [Code.OK, Code.INSUFFICIENT_FUNDS] * 2
    assert await way.available() == [980, 1_010, 1_010]
    with pytest.raises(ValueError, match="internal"):
        way.client.submit(event(Kind.EXPIRE, way.a, way.c, 1).tobytes(), None, 0.0, tell)


async def test_a_batch_keeps_its_order_over_shards_with_every_kind_of_answer(way: Way) -> None:
    chain = linked(event(Kind.TRANSFER, way.a, way.c, 1), event(Kind.TRANSFER, way.c, way.a, 1))
    outcome = await way.apply(
        event(Kind.TRANSFER, way.a, way.b, 100),
        event(Kind.TRANSFER, way.b, way.a, 5_000),
        event(Kind.TRANSFER, way.b, account(0, 10**6), 1),
        chain,
        event(Kind.TRANSFER, way.b, way.c, 7),
        event(Kind.DEPOSIT, 1, way.b, 1),
    )
    assert outcome.results["code"].tolist() == [
        Code.OK,
        Code.INSUFFICIENT_FUNDS,
        Code.UNKNOWN_CREDIT_ACCOUNT,
        Code.OK,
        Code.OK,
        Code.OK,
        Code.OK,
    ]
    assert set(outcome.positions) == {0, 1}
    assert await way.available() == [900, 1_094, 1_007]


async def test_ten_thousand_rows_in_one_call(way: Way) -> None:
    rows = np.repeat(event(Kind.TRANSFER, way.a, way.c, 1), 10_000)
    rows["id_lo"] += np.arange(10_000, dtype=np.uint64) << np.uint64(12)
    rows["debit"][::2], rows["credit"][::2] = way.c, way.a
    rows["credit"][::5] = way.b
    slotted(rows)
    outcome = await way.apply(rows, within_s=60)
    codes, counts = np.unique(outcome.results["code"], return_counts=True)
    assert dict(zip(codes.tolist(), counts.tolist(), strict=True)).get(Code.OK, 0) > 5_000
    assert set(codes.tolist()) <= {Code.OK, Code.INSUFFICIENT_FUNDS}
    assert sum(await way.available()) == 3_000


async def test_many_callers_at_once_each_get_their_own_answer(way: Way) -> None:
    amounts = range(1, 41)
    rows = [event(Kind.TRANSFER, way.a, (way.b, way.c)[n % 2], n) for n in amounts]
    outcomes = await asyncio.gather(
        *(way.apply(row) for row in rows), way.apply(event(Kind.TRANSFER, way.a, way.b, 10**6))
    )
    assert [int(outcome.results["code"][0]) for outcome in outcomes] == [Code.OK] * 40 + [Code.INSUFFICIENT_FUNDS]
    assert await way.available() == [1_000 - sum(amounts), 1_420, 1_400]


async def test_heads_and_stats_tell_of_every_shard(way: Way) -> None:
    before = await way.client.heads(time.monotonic() + 20)
    outcome = await way.apply(event(Kind.TRANSFER, way.a, way.c, 1))
    after = await way.client.heads(time.monotonic() + 20)
    assert outcome.positions == {0: after[0] - 1}
    assert after[0] > before[0]
    stats = await way.client.stats(time.monotonic() + 20)
    assert [(one.partition, one.name) for one in stats] == [(0, "shard-000"), (1, "shard-001")]
    assert stats[0].accounts >= 2
    assert stats[0].offset == after[0]


async def test_a_killed_shard_costs_nothing_but_time(way: Way) -> None:
    sent: list[np.ndarray] = []
    codes: list[int] = []
    ended, paid = asyncio.Event(), asyncio.Event()

    async def pay(debit: int, credit: int) -> None:
        while not ended.is_set():
            row = event(Kind.TRANSFER, debit, credit, 1)
            sent.append(row)
            codes.append(int((await way.apply(row, within_s=60)).results["code"][0]))
            paid.set()
            await asyncio.sleep(0.01)

    payers = [asyncio.ensure_future(pay(*pair)) for pair in ((way.a, way.b), (way.b, way.c), (way.a, way.c))]
    for partition in (0, 1):
        await asyncio.sleep(0.3)
        wanted = len(codes) + 20
        await way.kill(partition)
        async with asyncio.timeout(60):
            while len(codes) < wanted:
                await paid.wait()
                paid.clear()
    ended.set()
    await asyncio.gather(*payers)
    assert set(codes) == {Code.OK}
    again = await way.apply(*sent, within_s=60)
    assert (again.results["code"] == Code.OK).all()
    assert (again.results["flags"] == ResultFlag.REPLAYED).all()
    moves = np.concatenate(sent)
    expected = [
        1_000 + int((moves["credit"] == number).sum()) - int((moves["debit"] == number).sum())
        for number in (way.a, way.b, way.c)
    ]
    assert await way.available() == expected


async def test_what_cannot_be_learnt_in_time_is_unsure_and_a_read_says_so(way: Way) -> None:
    lonely = ShardClient(TcpTransport(nobody, SECRET, PARTITIONS), PARTITIONS)
    outcome = await lonely.apply(
        np.concatenate([event(Kind.TRANSFER, way.a, way.b, 1), event(Kind.TRANSFER, way.b, way.a, 1)]),
        None,
        time.monotonic() + 0.2,
    )
    assert outcome.results["code"].tolist() == [Code.UNSURE, Code.UNSURE]
    assert outcome.results.dtype != EVENT
    with pytest.raises(ShardUnavailable):
        await lonely.heads(time.monotonic() + 0.1)
    await lonely.close()


async def nobody(_: int) -> None:
    """A directory without shards."""
