"""Hundreds of seeded histories with crashes, stopped processes, lost links and appends of unknown outcome.

Whatever happened: every acknowledged answer holds, nothing happens twice, an unsure id resolves when it is repeated, no
read is staler than what was acknowledged before it, and replaying the journal gives the live books.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pytest

from actors import ledger, recovery
from actors.shard_client import Outcome, ShardClient, ShardUnavailable
from storage import ids
from storage.events import EVENT, FIRST_STATELESS, NO_LIMIT, RESULT, Code, Flag, Kind
from storage.journal import Corrupt
from storage.record import Reader, Record
from tests.model.simulation import CAPACITY, CHAIN_KEY, EPOCH_NS, WINDOWS, Node, SimLink, SimTransport, World, run

FIRST_SEED: Final = int(os.environ.get("SIMULATION_SEED", "0"))
SEEDS: Final = int(os.environ.get("SIMULATION_SEEDS", "200"))
BATCH: Final = 20
ACCOUNTS: Final = 6  # per partition
COUNTERS: Final = 2000  # accounts from here on only ever receive, so that a stale read shows
_NS: Final = 10**9

Key = tuple[int, int]


@dataclass
class Operation:
    """One event that a client wants, and every answer that it got."""

    row: np.ndarray
    answers: list[tuple[int, int]] = field(default_factory=list)  # code, at
    together: list[Operation] = field(default_factory=list)  # a chain is repeated as it was first sent, or not at all

    @property
    def whole(self) -> list[Operation]:
        return self.together or [self]

    @property
    def key(self) -> Key:
        return int(self.row["id_hi"]), int(self.row["id_lo"])

    @property
    def final(self) -> int | None:
        return self.answers[-1][0] if self.answers else None


class Client:
    """One replica: random operations through a real `ShardClient`, every answer kept."""

    def __init__(self, world: World, shared: Shared) -> None:
        self.world = world
        self.shared = shared
        self.die = random.Random(world.die.random())
        self.shards = ShardClient(
            SimTransport(world, None), world.partitions, clock=asyncio.get_running_loop().time, seed=world.die
        )

    async def work(self, until_s: float) -> None:
        """Send operations, in batches or alone, some of them cancelled, until the time is up."""
        while self.world.now() < until_s:
            roll = self.die.random()
            if roll < 0.2:
                await self._read()
            elif roll < 0.25:
                await self._heads()
            else:
                count = 1 if roll < 0.6 else self.die.randint(2, 12)
                operations = [self.shared.invent(self.die) for _ in range(count)]
                if self.die.random() < 0.1:
                    _link(operations, self.die)
                self.shared.operations += operations
                await self._send(operations)
            await asyncio.sleep(self.die.expovariate(1 / 0.02))

    async def watch(self, until_s: float) -> None:
        """Only read: a shard that has something to append learns that it is fenced, one that only reads does not."""
        while self.world.now() < until_s:
            await self._read()
            await asyncio.sleep(self.die.expovariate(1 / 0.01))

    async def _send(self, operations: list[Operation]) -> None:
        patience_s = self.die.choice([0.01, 0.1, 1.0, 4.0])
        task = asyncio.ensure_future(self.apply(operations, patience_s))
        if self.die.random() < 0.05:
            await asyncio.sleep(self.die.uniform(0, 0.01))
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            return
        await task
        if self.die.random() < 0.3:
            await self.apply(operations, patience_s)  # a client that repeats itself

    async def apply(self, operations: list[Operation], patience_s: float) -> None:
        """Send once and keep the answers that are one."""
        rows = np.concatenate([operation.row.reshape(1) for operation in operations])
        notes = [b"note" if self.die.random() < 0.1 else None for _ in operations]
        asked = self.world.now()
        for operation in operations:
            self.shared.sent(operation)
        outcome: Outcome = await self.shards.apply(rows, notes, asked + patience_s)
        assert len(outcome.results) == len(operations)
        for operation, result in zip(operations, outcome.results, strict=True):
            code = int(result["code"])
            assert code != Code.IN_FLIGHT
            if code not in {Code.UNSURE, Code.OVERLOADED}:
                operation.answers.append((code, int(result["at"])))
                self.shared.answered(operation)

    async def _read(self) -> None:
        patience_s = self.die.choice([0.2, 1.0, 4.0])
        counters = [self.die.choice(self.shared.counters)]  # one shard at a time: a read of all waits for the slowest
        floor = [max(self.shared.acknowledged[account], self.shared.seen[account]) for account in counters]
        wanted = np.array(counters, np.uint64)
        try:
            found = await self.shards.read(wanted, np.zeros(len(wanted), np.uint64), self.world.now() + patience_s)
        except ShardUnavailable:
            return
        for account, least, state in zip(counters, floor, found.states, strict=True):
            seen = int(state["posted"])
            if state["code"] == Code.OK:
                assert least <= seen <= self.shared.issued[account], f"account {account} reads {seen}, not {least}"
                self.shared.seen[account] = max(seen, self.shared.seen[account])

    async def _heads(self) -> None:
        try:
            heads = await self.shards.heads(self.world.now() + 1.0)
        except ShardUnavailable:
            return
        for partition, head in heads.items():
            assert head <= len(self.world.journal.logs[partition])


def _link(operations: list[Operation], die: random.Random) -> None:
    """Tie some of them together. Chains that cannot be are refused, which is an answer too."""
    for operation in operations[:-1]:
        if die.random() < 0.7:
            operation.row["flags"] = Flag.LINKED
    for operation in operations:
        operation.together = operations


class Shared:
    """What all clients know: accounts, operations so far, and what the counters must at least and at most show."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.accounts = [1024 * n + p for p in range(world.partitions) for n in range(1, ACCOUNTS + 1)]
        self.counters = [1024 * COUNTERS + p for p in range(world.partitions)]
        self.operations: list[Operation] = []
        self.issued: dict[int, int] = defaultdict(int)
        self.acknowledged: dict[int, int] = defaultdict(int)
        self.seen: dict[int, int] = defaultdict(int)  # what a read has shown, later reads must show too
        self._counted: set[Key] = set()
        self._sent: set[Key] = set()
        self._number = 0

    def event(self, kind: Kind, debit: int, credit: int, amount: int) -> Operation:
        """A new event with an id of its own."""
        row = np.zeros(1, EVENT)
        self._number += 1
        milliseconds = (EPOCH_NS + int(self.world.now() * _NS)) // 10**6
        hi, lo = ids.derive(str(self.world.seed), str(self._number))
        if self._number % 3:
            hi = (milliseconds << 16) | 0x7000 | (hi & 0xFFF)
        row["id_hi"], row["id_lo"] = hi, lo
        row["kind"], row["debit"], row["credit"], row["amount"] = kind, debit, credit, amount
        return Operation(row[0])

    def opening(self) -> list[Operation]:
        """Open all accounts and pay something in."""
        opened = []
        for account in (*self.accounts, *self.counters):
            operation = self.event(Kind.OPEN, account, 7, NO_LIMIT)
            operation.row["ref_hi"] = operation.row["ref_lo"] = NO_LIMIT
            operation.row["total"] = 1200 << 16 | 360
            opened.append(operation)
        paid = [self.event(Kind.DEPOSIT, 1, account, 1_000) for account in self.accounts]
        self.operations += opened + paid
        return opened + paid

    def invent(self, die: random.Random) -> Operation:
        """A random operation, some of them on what happened before."""
        roll = die.random()
        debit, credit = die.choice(self.accounts), die.choice(self.accounts)
        amount = die.randint(1, 400)
        if roll < 0.08:
            return self.event(Kind.DEPOSIT, 1, die.choice(self.accounts), amount)
        if roll < 0.2:
            return self.event(Kind.DEPOSIT, 1, die.choice(self.counters), amount)
        if roll < 0.3:
            return self.event(Kind.TRANSFER, debit, die.choice(self.counters), amount)
        if roll < 0.4:
            operation = self.event(Kind.HOLD, debit, credit, amount)
            operation.row["span"] = int(die.uniform(0.05, 2.0) * _NS)
            return operation
        if roll < 0.6:
            return self._follow_up(die) or self.event(Kind.TRANSFER, debit, credit, amount)
        if roll < 0.63 and self.operations:  # the same id again, with other content
            operation = self.event(Kind.TRANSFER, debit, credit, amount)
            other = die.choice(self.operations).row
            operation.row["id_hi"], operation.row["id_lo"] = other["id_hi"], other["id_lo"]
            return operation
        target = die.choice([credit, credit, credit, 1024 * 77 + die.randrange(self.world.partitions)])
        return self.event(Kind.TRANSFER, debit, target, amount)

    def _follow_up(self, die: random.Random) -> Operation | None:
        kind = die.choice([Kind.POST, Kind.POST, Kind.VOID, Kind.REFUND])
        wanted = Kind.TRANSFER if kind is Kind.REFUND else Kind.HOLD
        recent = [op for op in self.operations[-60:] if op.row["kind"] == wanted and op.final == Code.OK]
        if not recent:
            return None
        first = die.choice(recent)
        debit, credit = int(first.row["debit"]), int(first.row["credit"])
        amount = die.randint(1, int(first.row["amount"]) + 3)
        if kind is Kind.REFUND:
            operation = self.event(kind, credit, debit, amount)
            operation.row["total"], operation.row["span"] = first.row["amount"], first.answers[-1][1]
        else:
            operation = self.event(kind, debit, credit, amount if kind is Kind.POST and die.random() < 0.7 else 0)
        operation.row["ref_hi"], operation.row["ref_lo"] = first.row["id_hi"], first.row["id_lo"]
        return operation

    def sent(self, operation: Operation) -> None:
        """From now on a counter may show it, and its refunds are impossible: counters only receive."""
        if operation.row["credit"] in self.counters and operation.key not in self._sent:
            self._sent.add(operation.key)
            self.issued[int(operation.row["credit"])] += int(operation.row["amount"])

    def answered(self, operation: Operation) -> None:
        """From now on a counter must show it."""
        good = operation.final == Code.OK and operation.row["credit"] in self.counters
        if good and operation.key not in self._counted:
            self._counted.add(operation.key)
            self.acknowledged[int(operation.row["credit"])] += int(operation.row["amount"])


async def history(seed: int) -> dict[str, int]:
    """One history, then peace, then the proof."""
    world = World(seed, partitions=2 if seed % 4 else 4)
    loop_errors: list[Mapping[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: loop_errors.append(context))
    for partition in range(world.partitions):
        world.start_node(partition)
    shared = Shared(world)
    clients = [Client(world, shared) for _ in range(3)]
    watchers = [Client(world, shared) for _ in range(2)]
    try:
        await clients[0].apply(shared.opening(), 30.0)
        disturbing = world.loop_task(world.disturb())
        end = world.now() + 3.0
        await asyncio.gather(*(client.work(end) for client in clients), *(client.watch(end) for client in watchers))
        disturbing.cancel()
        world.faults.none()
        await peace(world, shared, clients[0])
        await prove(world, shared)
        assert not world.failures, world.failures
        assert not loop_errors, loop_errors
    except Exception as error:
        error.add_note(f"seed {seed}; deaths:\n" + "\n".join(world.deaths))
        raise
    finally:
        for client in (*clients, *watchers):
            await client.shards.close()
        await world.shut_down()
    codes = [operation.final for operation in shared.operations]
    return {
        "operations": len(codes),
        "deaths": len(world.deaths),
        "nodes": len(world.nodes),
        "ok": codes.count(Code.OK),
        "refused": sum(code not in {Code.OK, None} for code in codes),
        "void": sum(not stored.is_open for log in world.journal.logs for stored in _void(log)),
    }


def _void(log: list[Any]) -> list[Any]:
    epoch, void = -1, []
    for stored in log:
        if stored.is_open:
            epoch = stored.offset
        elif stored.epoch != epoch:
            void.append(stored)
    return void


async def peace(world: World, shared: Shared, client: Client) -> None:
    """All processes go on, every id is repeated until it has an answer, holds run out, and nothing stays in flight."""
    for node in world.nodes:
        if node.alive:
            node.thaw()
    await asyncio.sleep(5.0)
    for _ in range(40):
        unsure = [operation for operation in shared.operations if operation.final is None]
        if not unsure:
            break
        await asyncio.gather(*(client.apply(one.whole, 20.0) for one in unsure))
    assert not unsure, f"{len(unsure)} never resolved"
    await asyncio.gather(*(client.apply(one.whole, 20.0) for one in shared.operations))
    for _ in range(100):
        await asyncio.sleep(0.5)
        if all(ledger.in_flight(world.current[p].shard.book).size == 0 for p in world.current):
            break
    await asyncio.sleep(3.0)


async def prove(world: World, shared: Shared) -> None:
    """Compare the books with what was answered, and with a replay."""
    transit = 0
    for partition, node in world.current.items():
        book = node.shard.book
        ledger.check(book)
        assert ledger.sums(book) == 0
        stats = ledger.stats(book)
        assert stats.in_flight == 0
        assert stats.holds == 0
        transit += stats.transit
        fresh = ledger.new_book(partition, world.partitions, **WINDOWS._asdict(), capacity=CAPACITY)
        reader = Reader(node.shard._recovery._journal, partition, CHAIN_KEY)
        async for found in reader.records():
            recovery.replay(fresh, found)
        assert ledger.digest(fresh) == ledger.digest(book), f"partition {partition}: replay gives another book"
    assert transit == 0
    users = Counter(operation.key for operation in shared.operations)
    for operation in shared.operations:
        # Where two events of one chain share an id, which of them fails first depends on what is remembered.
        if not operation.together or users[operation.key] == 1:
            assert_first_answer_stands(operation)
    assert_balances(world, shared)


def assert_first_answer_stands(operation: Operation) -> None:
    """Every answer to an id and content is the first one, but for refusals that are not remembered."""
    remembered = {answer for answer in operation.answers if answer[0] < FIRST_STATELESS and answer[1]}
    assert len(remembered) <= 1, f"{operation.row} was answered {operation.answers}"


def assert_balances(world: World, shared: Shared) -> None:
    """Every balance is the sum of what was answered with OK; nothing more, nothing twice."""
    expected: dict[int, int] = defaultdict(int)
    done: set[tuple[Key, int]] = set()
    for operation in shared.operations:
        row = operation.row
        home = row["credit"] if row["kind"] == Kind.DEPOSIT else row["debit"]
        mark = (operation.key, int(home) % world.partitions)  # each shard remembers ids by itself
        if operation.final != Code.OK or mark in done:
            continue
        done.add(mark)
        kind, amount = Kind(int(row["kind"])), int(row["amount"])
        if kind is Kind.POST and amount == 0:
            held = (o.row for o in shared.operations if o.key == _ref(row) and o.row["kind"] == Kind.HOLD)
            amount = next(int(hold["amount"]) for hold in held)
        if kind in {Kind.TRANSFER, Kind.REFUND, Kind.POST}:
            expected[int(row["debit"])] -= amount
        if kind in {Kind.TRANSFER, Kind.REFUND, Kind.POST, Kind.DEPOSIT}:
            expected[int(row["credit"])] += amount
    for account in (*shared.accounts, *shared.counters):
        book = world.current[account % world.partitions].shard.book
        wanted = np.array([account], np.uint64)
        state = ledger.read_accounts(book, wanted, np.zeros(1, np.uint64), 2**62)[0]
        assert int(state["posted"]) == expected[account], f"account {account}"
        assert int(state["debits_pending"]) == 0


def _ref(row: np.ndarray) -> Key:
    return int(row["ref_hi"]), int(row["ref_lo"])


@pytest.mark.parametrize("first", range(FIRST_SEED, FIRST_SEED + SEEDS, BATCH))
def test_whatever_fails_what_was_acknowledged_holds_and_nothing_happens_twice(first: int) -> None:
    total: dict[str, int] = defaultdict(int)
    for seed in range(first, min(first + BATCH, FIRST_SEED + SEEDS)):
        for name, count in run(history(seed)).items():
            total[name] += count
    print(f"seeds {first}..: {dict(total)}")
    assert total["ok"] > 200
    assert total["refused"] > 50
    assert total["deaths"] > 5


async def stopped_shards(seed: int) -> int:
    """Shards are stopped while only readers keep their streams to them, and go on when a successor may be writing."""
    world = World(seed, partitions=1)
    world.faults.none()
    world.faults.old_news = 0.9
    world.start_node(0)
    shared = Shared(world)
    writer, watchers = Client(world, shared), [Client(world, shared) for _ in range(3)]
    await writer.apply(shared.opening(), 30.0)
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
    return served


def _cut(client: Client, node: Node) -> None:
    link = client.shards._lanes[0]._link
    if isinstance(link, SimLink) and link in node.links:
        link.break_off()


async def pay(client: Client, until_s: float) -> None:
    """Deposits to the counter, one after the other."""
    while client.world.now() < until_s:
        operation = client.shared.event(Kind.DEPOSIT, 1, client.shared.counters[0], 1)
        await client.apply([operation], 4.0)
        await asyncio.sleep(client.die.expovariate(1 / 0.01))


def test_no_shard_that_was_stopped_answers_a_read_from_the_past() -> None:
    assert sum(run(stopped_shards(seed)) for seed in range(FIRST_SEED, FIRST_SEED + 25)) > 50


def test_one_seed_is_one_history() -> None:
    assert run(history(11)) == run(history(11))


def test_a_journal_that_says_something_else_is_not_served() -> None:
    async def work() -> None:
        world = World(5, partitions=2)
        world.faults.none()
        world.start_node(0)
        await asyncio.sleep(3.0)
        assert world.current[0].shard.serving
        rows, results = np.zeros(1, EVENT), np.zeros(1, RESULT)
        rows["kind"], rows["id_hi"], rows["id_lo"], rows["at"] = Kind.TRANSFER, 0x8000, 1 << 63, EPOCH_NS * 2
        found = Record(1, 0, 0, 0, 0, rows, results["code"], results["detail"], None)
        book = ledger.new_book(0, 2, capacity=CAPACITY)
        with pytest.raises(Corrupt, match=r"partition 0, offset 1.*event 0 has code 0 .* 21 by replay"):
            recovery.replay(book, found)
        await world.shut_down()

    run(work())
