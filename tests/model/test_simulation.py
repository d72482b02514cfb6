"""Hundreds of seeded histories with crashes, stopped processes, lost links, clocks that leap, outages, full queues and
appends of unknown outcome. What is claimed and checked: see `histories`; for more of them: `make simulate`.
"""

from __future__ import annotations

import asyncio
import os
from collections import defaultdict
from typing import Final

import numpy as np
import pytest

from actors import ledger
from actors.recovery import Replay
from storage.events import EVENT, RESULT, Kind
from storage.journal import Corrupt
from storage.record import Record
from tests.model.histories import Client, Shared, all_done, history
from tests.model.simulation import CAPACITY, EPOCH_NS, Node, Plan, SimLink, World, run

FIRST_SEED: Final = int(os.environ.get("SIMULATION_SEED", "0"))
SEEDS: Final = int(os.environ.get("SIMULATION_SEEDS", "200"))
BATCH: Final = 20


@pytest.mark.parametrize("first", range(FIRST_SEED, FIRST_SEED + SEEDS, BATCH))
def test_whatever_fails_each_claim_holds_and_nothing_happens_twice(first: int) -> None:
    total: dict[str, int] = defaultdict(int)
    for seed in range(first, min(first + BATCH, FIRST_SEED + SEEDS)):
        for name, count in run(history(seed)).items():
            total[name] += count
    print(f"seeds {first}..: {dict(total)}")
    assert total["ok"] > 200
    assert total["refused"] > 50
    assert total["deaths"] > 5
    assert total["legs"] > 100
    assert total["reverted"] > 5


async def stopped_shards(seed: int) -> int:
    """Shards are stopped while only readers keep their streams to them, and go on when a successor may be writing."""
    world = World(seed, Plan(partitions=1))
    await world.begin()
    world.faults.old_news = 0.9
    shared = Shared(world)
    writer, watchers = Client(world, shared), [Client(world, shared) for _ in range(3)]
    await all_done(writer, shared.opening())
    end = world.now() + 8.0
    watching = [asyncio.ensure_future(watcher.watch(end)) for watcher in watchers]
    paying = asyncio.ensure_future(pay(writer, end))
    served = 0
    while world.now() < end:
        await asyncio.sleep(world.die.uniform(0.05, 0.5))
        node = world.current[0]
        node.freeze()
        _cut(writer, node)
        successor = world.start_node(0)
        await asyncio.sleep(world.die.choice([0.1, 0.8, 1.5, 2.5]))
        node.thaw()
        await asyncio.wait([successor.task])
        served += successor.shard.serving
    await asyncio.gather(paying, *watching)
    for client in (writer, *watchers):
        await client.shards.close()
    await world.shut_down()
    return served if shared.reads > 50 else 0


def _cut(client: Client, node: Node) -> None:
    link = client.shards._lanes[0]._link
    if isinstance(link, SimLink) and link in node.links:
        link.break_off()


async def pay(client: Client, until_s: float) -> None:
    """Deposits to all accounts, one after the other."""
    while client.world.now() < until_s:
        operation = client.shared.event(Kind.DEPOSIT, 1, client.die.choice(client.shared.accounts), 1)
        await client.apply([operation], 4.0)
        await asyncio.sleep(client.die.expovariate(1 / 0.01))


def test_no_shard_that_was_stopped_answers_a_read_from_the_past() -> None:
    assert sum(run(stopped_shards(seed)) for seed in range(FIRST_SEED, FIRST_SEED + 25)) > 50


def test_an_overtaken_shard_whose_clock_is_not_believed_keeps_nobody_from_its_successor() -> None:
    async def work() -> int:
        world = World(3, Plan(partitions=1))
        await world.begin()
        shared = Shared(world)
        client = Client(world, shared)
        await all_done(client, shared.opening())
        overtaken = world.current[0]
        while overtaken.clock.synchronised():
            overtaken = world.start_node(0)  # another process, whose clock nothing vouches for
            await overtaken.task
            await all_done(client, [shared.event(Kind.DEPOSIT, 1, shared.accounts[0], 1)])
        overtaken.clock.step(3 * 3600.0)
        successor = world.start_node(0)
        await successor.task
        await all_done(client, [shared.event(Kind.DEPOSIT, 1, shared.accounts[0], 1)])
        await client.shards.close()
        await world.shut_down()
        return len(world.nodes)

    assert run(work()) >= 2


def test_one_seed_is_one_history() -> None:
    assert run(history(11)) == run(history(11))


def test_a_journal_that_says_something_else_is_not_served() -> None:
    async def work() -> None:
        world = World(5, Plan(partitions=2))
        await world.begin()
        assert world.current[0].shard.serving
        rows, results = np.zeros(1, EVENT), np.zeros(1, RESULT)
        rows["kind"], rows["at"], rows["debit"] = Kind.TRANSFER, EPOCH_NS * 2, 2048
        rows["id_hi"], rows["id_lo"] = 0x8000, 1 << 63
        found = Record(1, 0, 0, 0, 0, rows, results["code"], results["detail"], None)
        book = ledger.new_book(0, 2, capacity=CAPACITY)
        with pytest.raises(Corrupt, match=r"partition 0, offset 1.*event 0 has code 0 .* 21 by replay"):
            Replay(book).apply(found)
        await world.shut_down()

    run(work())
