"""One history of a simulated ledger: clients, their claims, and the proof. See `simulation` for the world around them.

Everything a client is told is a claim. An answer, a refusal and a read are held against the journals at the moment they
come; *nothing was done* (a refusal without effect, OVERLOADED, NOT_SERVING) when all has come to rest: what was told
nothing else must be in no journal. UNSURE may be either.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from actors import ledger
from actors.ledger import Capacity
from actors.recovery import Windows
from actors.shard import ShardLimits
from actors.shard_client import ShardClient, ShardUnavailable
from storage import ids
from storage.events import EVENT, FIRST_STATELESS, NO_LIMIT, Code, Flag, Kind
from tests.model.reference import Event, Id
from tests.model.simulation import EPOCH_NS, Faults, Plan, SimTransport, World

ACCOUNTS: Final = 6  # per partition
NOWHERE: Final = 77  # times 1024: an account that nobody opens
NAMES: Final = 30
_NS: Final = 10**9
_NOTHING_DONE: Final = {int(code) for code in Code if code >= FIRST_STATELESS} - {int(Code.UNSURE)}
_SMALL: Final = Capacity(accounts=64, ids=90, holds=4, in_flight=6, refunds=8, outbox=3)
_ROOMY: Final = Capacity(accounts=256, ids=1 << 14, holds=1 << 10, in_flight=1 << 10, refunds=1 << 10, outbox=1 << 10)


def plan_of(seed: int) -> Plan:
    """What kind of history a seed is. Each trait comes alone and together with others."""
    die = random.Random(f"plan {seed}")
    partitions = die.choice([2, 2, 2, 2, 2, 4, 4, 8])
    short = die.random() < 0.35
    small = die.random() < 0.3
    faults = Faults()
    skew_s = 1.0
    if die.random() < 0.3:
        faults.clock_wrong = 0.2
        faults.clock_leap = 0.4
    if short and die.random() < 0.7:
        faults.outage_every_s = 2.0
    if small:
        skew_s = 0.02
    windows = (
        Windows(int(6.0 * _NS), int(skew_s * _NS), int(12.0 * _NS))
        if short
        else Windows()._replace(id_skew_ns=int(skew_s * 60 * _NS))
    )
    limits = ShardLimits(wait_s=3.0, tick_s=0.1, overlap_rows=8)
    queue_rows = 65_536
    if die.random() < 0.3:
        limits = ShardLimits(wait_s=1.0, tick_s=0.1, overlap_rows=8, queue_rows=die.choice([3, 8]), waiting_rows=2)
        queue_rows = die.choice([1, 2, 65_536])
    capacities = [_SMALL if small else _ROOMY]
    if die.random() < 0.4:
        capacities += [_SMALL, _ROOMY] if small else [_ROOMY._replace(ids=1 << 12), _ROOMY._replace(ids=1 << 15)]
    duration_s, pause_s = (5.0, 0.06) if short else (2.0, 0.03)
    # A slow journal leaves time for more to go wrong, most when the others are quick.
    journal_s = (0.002, 0.03, 0.1) if die.random() < 0.4 else (0.002,)
    return Plan(partitions, windows, limits, tuple(capacities), queue_rows, faults, journal_s, duration_s, pause_s)


@dataclass(eq=False)
class Operation:
    """One event that a client wants, and all that it was told of it."""

    row: np.ndarray
    together: list[Operation] = field(default_factory=list)  # a chain is repeated as it was first sent
    asked: float = 0.0  # when it was sent first
    maybe: int = 0  # calls of which nothing is known
    nothing: int = 0  # calls that did nothing, as was said
    decided: list[tuple[int, int]] = field(default_factory=list)  # code, at: an answer or a refusal

    @property
    def whole(self) -> list[Operation]:
        return self.together or [self]

    @property
    def key(self) -> Id:
        return int(self.row["id_hi"]), int(self.row["id_lo"])

    @property
    def chained(self) -> bool:
        """Whether it stands in a chain as it is sent."""
        place = self.whole.index(self)
        return bool(self.row["flags"]) or (place > 0 and bool(self.whole[place - 1].row["flags"]))

    @property
    def content(self) -> tuple[int, ...]:
        return Event.of(self.row).content(self.chained)

    @property
    def ages(self) -> bool:
        """Whether its id says when it was made: then nobody can carry it out twice, however late it is repeated."""
        return ids.version(self.key) == 7

    @property
    def good(self) -> bool:
        return any(code == Code.OK for code, _ in self.decided)


class Client:
    """One caller of a replica: random operations through a real `ShardClient`, every answer checked."""

    def __init__(self, world: World, shared: Shared, beside: Client | None = None) -> None:
        """`beside`: another one of the same replica."""
        self.world = world
        self.shared = shared
        self.die = random.Random(world.die.random())
        self.shards: ShardClient = (
            beside.shards
            if beside is not None
            else ShardClient(
                SimTransport(world, None),
                world.partitions,
                clock=asyncio.get_running_loop().time,
                queue_rows_max=world.plan.queue_rows,
                seed=world.die,
            )
        )

    async def work(self, until_s: float) -> None:
        """Send operations, in batches or alone, some of them cancelled, until the time is up."""
        while self.world.now() < until_s:
            roll = self.die.random()
            if roll < 0.2:
                await self.read()
            elif roll < 0.25:
                await self._heads()
            elif roll < 0.33:
                await self._send(self.shared.invent_chain(self.die))
            else:
                count = 1 if roll < 0.65 else self.die.randint(2, 12)
                await self._send([self.shared.invent(self.die) for _ in range(count)])
            await asyncio.sleep(self.die.expovariate(1 / self.world.plan.pause_s))

    async def watch(self, until_s: float) -> None:
        """Only read: a shard that has something to append learns that it is fenced, one that only reads does not."""
        while self.world.now() < until_s:
            await self.read()
            await asyncio.sleep(self.die.expovariate(1 / (self.world.plan.pause_s / 2)))

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
        """Send once; check what is told."""
        rows = np.concatenate([operation.row.reshape(1) for operation in operations])
        notes = [b"note" if self.die.random() < 0.1 else None for _ in operations]
        now = self.world.now()
        for operation in operations:
            operation.asked = operation.asked or now
            operation.maybe += 1
        try:
            results, positions = await self.shards.apply(rows, notes, now + patience_s)
        except ShardUnavailable:  # a claim as well
            for operation in operations:
                operation.maybe -= 1
                operation.nothing += 1
            return
        assert len(results) == len(operations)
        self.world.witness.catch_up()
        for operation, result in zip(operations, results, strict=True):
            self._told(operation, int(result["code"]), int(result["at"]), positions)
        self.shared.learnt(positions)

    def _told(self, operation: Operation, code: int, at: int, positions: Mapping[int, int]) -> None:
        self.shared.codes[code] += 1
        assert code != Code.IN_FLIGHT
        if code == Code.UNSURE:
            return
        operation.maybe -= 1
        if code in _NOTHING_DONE or at == 0:  # the client refuses chains that no shard may have
            assert at != 0 or code in _NOTHING_DONE | {Code.NOT_LINKABLE}
            operation.nothing += 1
            return
        witness = self.world.witness
        decision = witness.decision(operation.key, at)
        good = (
            decision is not None
            and decision.content == operation.content
            and witness.final(decision) == code
            and decision.offset <= positions.get(decision.partition, -1)
        )
        if not good:
            uses = witness.decisions[operation.key]
            said = f"{operation.row} was answered {Code(code).name} of {at}, to be seen from {positions}"
            raise AssertionError(f"{said}; the journals have {decision}, of all uses {uses}")
        operation.decided.append((code, at))

    async def read(self) -> None:
        """Read accounts of one shard: a read of all would wait for the slowest."""
        world = self.world
        partition = self.die.randrange(world.partitions)
        accounts = self.die.sample([a for a in self.shared.accounts if a % world.partitions == partition], 2)
        patience_s = self.die.choice([0.2, 1.0, 4.0])
        floor = self.shared.positions[partition]
        wanted = np.array(accounts, np.uint64)
        try:
            states, positions = await self.shards.read(wanted, np.zeros(2, np.uint64), world.now() + patience_s)
        except ShardUnavailable:
            return
        offset = positions[partition]
        assert offset >= floor, f"partition {partition} was read as of {offset}, when {floor} was known"
        assert offset < len(world.journal.logs[partition])
        world.witness.catch_up()
        for account, state in zip(accounts, states, strict=True):
            known = world.witness.balance(account, offset)
            if known is None:
                assert state["code"] == Code.UNKNOWN_DEBIT_ACCOUNT
            else:
                seen = (int(state["posted"]), int(state["debits_pending"]))
                assert seen == known, f"account {account} reads {seen} as of {offset}, and was {known}"
        self.shared.reads += 1
        self.shared.learnt(positions)

    async def _heads(self) -> None:
        floor = dict(self.shared.positions)
        try:
            heads = await self.shards.heads(self.world.now() + 1.0)
        except ShardUnavailable:
            return
        for partition, head in heads.items():
            assert floor.get(partition, -1) < head <= len(self.world.journal.logs[partition])


class Shared:
    """What all clients know: accounts, operations so far, and how far the journals are known to go."""

    def __init__(self, world: World) -> None:
        self.world = world
        partitions = world.partitions
        # Slots beyond the first few, so that the slot of an id is not its partition.
        self.accounts = [
            n << 10 | (n * 37 % 128) * partitions + p for p in range(partitions) for n in range(1, ACCOUNTS + 1)
        ]
        self.operations: list[Operation] = []
        self.positions: dict[int, int] = defaultdict(lambda: -1)
        self.codes: Counter[int] = Counter()
        self.reads = 0
        self._number = 0

    def learnt(self, positions: Mapping[int, int]) -> None:
        """Somebody was shown the journals up to there."""
        for partition, offset in positions.items():
            self.positions[partition] = max(self.positions[partition], offset)

    def event(self, kind: Kind, debit: int, credit: int, amount: int, slot: int | None = None) -> Operation:
        """A new event with an id of its own."""
        row = np.zeros(1, EVENT)
        self._number += 1
        if slot is None:
            slot = (credit if kind == Kind.DEPOSIT else debit) % 1024
        hi, lo = ids.in_slot(ids.derive(str(self.world.seed), str(self._number)), slot)
        if self._number % 4:
            milliseconds = (EPOCH_NS + int(self.world.now() * _NS)) // 10**6
            hi = (milliseconds << 16) | 0x7000 | (hi & 0xFFF)
        row["id_hi"], row["id_lo"] = hi, lo
        row["kind"], row["debit"], row["credit"], row["amount"] = kind, debit, credit, amount
        operation = Operation(row[0])
        self.operations.append(operation)
        return operation

    def opening(self) -> Iterator[Operation]:
        """Open all accounts, then pay something into each; one by one, as ids must be young."""
        for account in self.accounts:
            operation = self.event(Kind.OPEN, account, 7, NO_LIMIT)
            operation.row["ref_hi"] = operation.row["ref_lo"] = NO_LIMIT
            operation.row["total"] = 1200 << 16 | 360
            yield operation
        for account in self.accounts:
            yield self.event(Kind.DEPOSIT, 1, account, 1_000)

    def invent(self, die: random.Random) -> Operation:
        """A random operation, some of them on what happened before."""
        roll = die.random()
        debit, credit = die.choice(self.accounts), die.choice(self.accounts)
        amount = die.randint(1, 400)
        if roll < 0.12:
            return self.event(Kind.DEPOSIT, 1, credit, amount)
        if roll < 0.17:
            return self.event(Kind.WITHDRAWAL, debit, 1, amount // 4 + 1)
        if roll < 0.19:
            operation = self.event(Kind.BIND, 1024 + debit % 1024, 0, 0)
            operation.row["check"] = amount
            return operation
        if roll < 0.3:
            return self._hold(die, debit, credit, amount)
        if roll < 0.5:
            return self._follow_up(die) or self.event(Kind.TRANSFER, debit, credit, amount)
        nobody = die.randrange(1024) | NOWHERE << 10
        operation = self.event(Kind.TRANSFER, debit, die.choice([credit] * 6 + [nobody]), amount)
        if roll < 0.54:  # the same id again, with other content
            others = [one.key for one in self.operations[-80:] if one.key[1] & 0xFFF == debit % 1024]
            operation.row["id_hi"], operation.row["id_lo"] = die.choice(others)
        elif roll < 0.6:  # a name that others have as well, now or later
            operation.row["id_hi"], operation.row["id_lo"] = ids.in_slot(
                ids.derive("name", str(die.randrange(NAMES))), debit % 1024
            )
        return operation

    def _hold(self, die: random.Random, debit: int, credit: int, amount: int) -> Operation:
        operation = self.event(Kind.HOLD, debit, credit, amount)
        operation.row["span"] = int(die.uniform(0.05, 2.0) * _NS)
        return operation

    def invent_chain(self, die: random.Random) -> list[Operation]:
        """Rows that are tied together, mostly of one shard; the payee of a hold may be another's."""
        home = die.choice(self.accounts) % self.world.partitions
        near = [account for account in self.accounts if account % self.world.partitions == home]
        operations = []
        for _ in range(die.randint(2, 5)):
            debit, credit, amount = die.choice(near), die.choice(near), die.randint(1, 300)
            roll = die.random()
            if roll < 0.07:
                operation = self.invent(die)
            elif roll < 0.3:
                operation = self.event(Kind.DEPOSIT, 1, credit, amount)
            elif roll < 0.4:
                operation = self.event(Kind.WITHDRAWAL, debit, 1, amount)
            elif roll < 0.6:
                operation = self._hold(die, debit, die.choice(self.accounts), amount)
            else:
                operation = self.event(Kind.TRANSFER, debit, credit, amount)
            operations.append(operation)
        for operation in operations[:-1]:
            if die.random() < 0.85:
                operation.row["flags"] = Flag.LINKED
        for operation in operations:
            operation.together = operations
        return operations

    def _follow_up(self, die: random.Random) -> Operation | None:
        kind = die.choice([Kind.POST, Kind.POST, Kind.VOID, Kind.REFUND])
        wanted = Kind.TRANSFER if kind is Kind.REFUND else Kind.HOLD
        recent = [one for one in self.operations[-60:] if one.row["kind"] == wanted and one.good]
        if not recent:
            return None
        first = die.choice(recent)
        debit, credit = int(first.row["debit"]), int(first.row["credit"])
        amount = die.randint(1, int(first.row["amount"]) + 3)
        if kind is Kind.REFUND:
            operation = self.event(kind, credit, debit, amount)
            operation.row["total"], operation.row["span"] = first.row["amount"], first.decided[-1][1]
        else:
            slot = first.key[1] & 0xFFF
            operation = self.event(kind, debit, credit, amount if kind is Kind.POST and die.random() < 0.7 else 0, slot)
        operation.row["ref_hi"], operation.row["ref_lo"] = first.key
        return operation


async def history(seed: int, plan: Plan | None = None) -> dict[str, int]:
    """One history, then peace, then the proof. Returns counts of what happened.

    Raises:
        AssertionError: a claim does not hold.
    """
    world = World(seed, plan or plan_of(seed))
    loop_errors: list[Mapping[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: loop_errors.append(context))
    shared = Shared(world)
    clients = [Client(world, shared) for _ in range(2)]
    clients += [Client(world, shared, clients[0]) for _ in range(2)]
    watchers = [Client(world, shared) for _ in range(2)]
    try:
        await world.begin()
        await all_done(clients[0], shared.opening())
        disturbing = world.loop_task(world.disturb())
        end = world.now() + world.plan.duration_s
        await asyncio.gather(*(client.work(end) for client in clients), *(client.watch(end) for client in watchers))
        disturbing.cancel()
        await peace(world, shared, clients[0])
        prove(world, shared)
        assert not world.failures, world.failures
        assert not loop_errors, loop_errors
    except BaseException as error:
        error.add_note(f"seed {seed}; {world.plan}; what went wrong:\n" + "\n".join(world.deaths))
        raise
    finally:
        for client in (*clients, *watchers):
            await client.shards.close()
        await world.shut_down()
    codes = shared.codes
    return {
        "operations": len(shared.operations),
        "reads": shared.reads,
        "journaled": world.witness.rows,
        "legs": len(world.witness.legs),
        "reverted": sum(leg.code != Code.OK for leg in world.witness.legs.values()),
        "namesakes": sum(len(uses) > 1 for uses in world.witness.decisions.values()),
        "deaths": len(world.deaths),
        "lives": len(world.nodes),
        "void": sum(partition.reader.void for partition in world.witness.partitions),
        "ok": codes[Code.OK],
        "refused": sum(count for code, count in codes.items() if Code.OK < code < FIRST_STATELESS),
        **{code.name.lower(): codes[code] for code in Code if code >= FIRST_STATELESS},
    }


async def all_done(client: Client, operations: Iterable[Operation]) -> None:
    """One after the other, so that the smallest queue has room."""
    for operation in operations:
        for _ in range(100):
            if operation.good:
                break
            await client.apply([operation], 10.0)
        assert operation.good, f"{operation.row} was never done"


async def peace(world: World, shared: Shared, client: Client) -> None:
    """All faults stop and clocks are right; ids without an answer are repeated as long as that is safe, holds run out,
    and nothing stays on its way."""
    await world.make_peace()
    safe_ns = world.plan.windows.id_window_ns // 2
    resolved: set[int] = set()
    for _ in range(40):
        unsure = [one for one in shared.operations if one.maybe and not one.decided and id(one) not in resolved]
        unsure = [one for one in unsure if one.ages or (world.now() - one.asked) * _NS < safe_ns]
        if not unsure:
            break
        for one in unsure:
            if id(one) not in resolved and not one.decided:
                before = [each.maybe for each in one.whole]
                await client.apply(one.whole, 20.0)
                told = zip(one.whole, before, strict=True)
                resolved |= {id(each) for each, maybe in told if each.maybe == maybe}
    assert not unsure, f"{len(unsure)} never resolved"
    for _ in range(200):
        await asyncio.sleep(0.5)
        writers = [world.writer(partition).shard for partition in range(world.partitions)]
        if all(shard.serving and _at_rest(shard.book) for shard in writers):
            break
    await asyncio.sleep(1.0)
    await client.shards.heads(world.now() + 20.0)  # whoever was overtaken and answers all the same finds out


def _at_rest(book: ledger.Book) -> bool:
    stats = ledger.stats(book)
    return stats.in_flight == 0 and stats.holds == 0


def prove(world: World, shared: Shared) -> None:
    """Hold the books and what was told against the journals."""
    witness = world.witness
    witness.catch_up()
    witness.check_at_rest()
    for partition in range(world.partitions):
        check_book(world, partition, world.writer(partition).shard.book)
    check_claims(world, shared)


def check_book(world: World, partition: int, book: ledger.Book) -> None:
    """The live book is that of the journal, for the kernel and for the reference."""
    ledger.check(book)
    assert ledger.sums(book) == 0
    reference = world.witness.partitions[partition].ledger
    fresh = world.replayed(partition)
    assert ledger.digest(fresh) == ledger.digest(book), f"partition {partition}: replay gives another book"
    wanted = np.array(list(reference.accounts), np.uint64)
    states = ledger.read_accounts(book, wanted, np.zeros(len(wanted), np.uint64), 2**62)
    for state, account in zip(states, reference.accounts.values(), strict=True):
        assert (int(state["posted"]), int(state["debits_pending"])) == (account.posted, account.pending)


def check_claims(world: World, shared: Shared) -> None:
    """What was told to have done nothing is in no journal; an id of version 7 is decided once; chains are whole."""
    witness = world.witness
    sent: dict[tuple[Id, tuple[int, ...]], list[Operation]] = defaultdict(list)
    for operation in shared.operations:
        if operation.asked:
            sent[operation.key, operation.content].append(operation)
    for id_, uses in witness.decisions.items():
        assert len(uses) == 1 or ids.version(id_) == 8, f"decided more than once: {uses}"
        for use in uses:
            operations = sent.get((id_, use.content))
            assert operations, f"nobody sent {use}"
            if use.code <= Code.IN_FLIGHT:
                known = any(one.maybe or one.decided for one in operations)
                assert known, f"{use} was carried out, and all calls were told that nothing was done"
    for operation in shared.operations:
        if operation.asked and operation.together and operation is operation.together[0]:
            check_chains(world, operation.together)


def check_chains(world: World, operations: list[Operation]) -> None:
    """Each chain is in the journal whole, row after row, or not at all."""
    chain: list[Operation] = []
    for operation in operations:
        chain.append(operation)
        if operation.row["flags"]:
            continue
        places = []
        for one in chain:
            uses = world.witness.decisions.get(one.key, ())
            places.append([(use.offset, use.place) for use in uses if use.content == one.content])
        if len(chain) > 1:
            first = places[0]
            for number, own in enumerate(places):
                assert own == [(offset, place + number) for offset, place in first], f"a chain is torn: {places}"
        chain = []
