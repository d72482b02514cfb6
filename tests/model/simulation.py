"""A whole ledger in one thread under virtual time: shards, clients, a network and a journal that fail by a seeded die.

The code under test is the real one; only the loop's clock, the journal's storage and the wire are made here. One seed
is one history, down to the order of callbacks. The journal is a log that anybody may append to (as a broker's is), so
records of an overtaken writer do land, and only the reading rule makes them void.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import random
import selectors
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final

from actors import frames, ledger
from actors.frames import FrameType, Malformed
from actors.ledger import Book, Capacity
from actors.recovery import Recovery, Replay, Windows
from actors.shard import Shard, ShardLimits
from actors.shard_client import ShardClient
from actors.shard_server import Answers, dispatch
from actors.transport import Link, Receiver, Unreachable
from storage.journal import Fenced, JournalError, OutcomeUnknown, Stored
from storage.record import Reader, Record
from storage.snapshots import Snapshot
from tests.model.witness import Witness

EPOCH_NS: Final = 1_767_225_600 * 10**9  # 2026-01-01
CHAIN_KEY: Final = b"simulated chain key"
CAPACITY: Final = Capacity(accounts=256, ids=1 << 14, holds=1 << 10, in_flight=1 << 10, refunds=1 << 10, outbox=1 << 10)
LIMITS: Final = ShardLimits(wait_s=3.0, tick_s=0.1, overlap_rows=8)
_HOUR_S: Final = 3600.0


class Deadlock(AssertionError):  # noqa: N818
    """Everybody waits and no timer is set."""


class _NoIo(selectors.SelectSelector):
    """Instead of waiting, time passes."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise Deadlock("nothing will ever happen again")
        self.now += max(timeout, 0.0)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time passes only when nothing is left to do."""

    def __init__(self) -> None:
        self._no_io = _NoIo()
        super().__init__(self._no_io)

    def time(self) -> float:
        return self._no_io.now


@dataclass(slots=True)
class Faults:
    """How often what goes wrong; probabilities per event unless they say otherwise."""

    append_unknown: float = 0.004
    lose_link: float = 0.004
    duplicate: float = 0.01  # of answers: a request comes once at most
    refuse_connection: float = 0.05
    disorderly_link: float = 0.3
    old_news: float = 0.8  # asked whether a shard has moved, the directory does not know yet
    crash_every_s: float = 1.5
    freeze_every_s: float = 4.0
    clock_every_s: float = 2.0
    clock_wrong: float = 0.0  # of processes: begin with a clock that is hours off
    clock_leap: float = 0.0  # of what happens to clocks: leaps and drifts of hours, instead of a second
    outage_every_s: float = 0.0  # a partition is without any process, for longer than ids are remembered; 0 = never

    @staticmethod
    def none() -> Faults:
        """Nothing goes wrong."""
        return Faults(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Plan:
    """What kind of history it is."""

    partitions: int
    windows: Windows = Windows()  # noqa: RUF009 - immutable
    limits: ShardLimits = LIMITS
    capacities: tuple[Capacity, ...] = (CAPACITY,)  # of first lives the first; of later ones any
    queue_rows: int = 65_536  # that wait in a client
    faults: Faults = field(default_factory=Faults)
    journal_s: tuple[float, ...] = (0.002,)  # mean, of each step of an append; each partition has one of them
    duration_s: float = 3.0
    pause_s: float = 0.02  # mean, between what a client does


class SimJournal:
    """Logs in memory. A crash, a delay or a lost answer may come between the steps of an append."""

    def __init__(self, world: World) -> None:
        self.logs: list[list[Stored]] = [[] for _ in range(world.partitions)]
        self._world = world
        self._die = world.die
        self._step_s = [world.die.choice(world.plan.journal_s) for _ in self.logs]

    def for_node(self, node: Node) -> NodeJournal:
        """The journal as one process sees it: through its own freezes."""
        return NodeJournal(self, node)

    def land(self, partition: int, epoch: int | None, payload: bytes) -> int:
        """Append; None makes an open record, whose epoch is its own offset."""
        log = self.logs[partition]
        offset = len(log)
        log.append(Stored(offset, offset if epoch is None else epoch, epoch is None, payload))
        return offset

    async def pause(self, partition: int) -> None:
        """The time that a step takes."""
        await asyncio.sleep(self._die.expovariate(1 / self._step_s[partition]))

    def roll(self) -> str:
        """What becomes of one append."""
        if self._die.random() >= self._world.faults.append_unknown:
            return "lands"
        return self._die.choice(["landed-unknown", "lost-unknown", "late-unknown"])

    def later(self, partition: int, epoch: int, payload: bytes) -> None:
        """A record that was under way when its writer gave up lands after all."""
        delay = self._die.expovariate(1 / 0.3)
        asyncio.get_running_loop().call_later(delay, self.land, partition, epoch, payload)


class NodeJournal:
    """`Journal`, by one process."""

    def __init__(self, shared: SimJournal, node: Node | None) -> None:
        self.shared = shared
        self._node = node

    @property
    def node(self) -> Node:
        """The process; readers without one do not write."""
        assert self._node is not None
        return self._node

    async def create(self, partitions: int) -> None:
        assert partitions == len(self.shared.logs)

    async def partitions(self) -> int:
        return len(self.shared.logs)

    async def open(self, partition: int, payload: bytes) -> SimWriter:
        await self.shared.pause(partition)
        epoch = self.shared.land(partition, None, payload)
        await self.shared.pause(partition)
        await self.node.thawed()
        return SimWriter(self, partition, epoch)

    async def head(self, partition: int) -> int:
        await self.shared.pause(partition)
        await self.node.thawed()
        return len(self.shared.logs[partition])

    async def heads(self) -> dict[int, int]:
        return {partition: len(log) for partition, log in enumerate(self.shared.logs)}

    async def read(self, partition: int, offset: int, until: int | None = None) -> AsyncIterator[Stored]:
        log = self.shared.logs[partition]
        for stored in log[offset : len(log) if until is None else until]:
            if self.shared._die.random() < 0.05:
                await self.shared.pause(partition)
            yield stored

    async def close(self) -> None:
        pass


class SimWriter:
    """`Writer` over a log that does not refuse anybody: it reads the gap when its append got another offset."""

    def __init__(self, journal: NodeJournal, partition: int, epoch: int) -> None:
        self.partition = partition
        self.epoch = epoch
        self._journal = journal
        self._next = epoch + 1

    async def append(self, payload: bytes) -> int:
        shared, node = self._journal.shared, self._journal.node
        await node.thawed()
        fate = shared.roll()
        if fate == "late-unknown":
            shared.later(self.partition, self.epoch, payload)
        await shared.pause(self.partition)
        if fate not in {"lost-unknown", "late-unknown"}:
            offset = shared.land(self.partition, self.epoch, payload)
        await shared.pause(self.partition)
        await node.thawed()
        if fate != "lands":
            raise OutcomeUnknown(fate)
        gap = shared.logs[self.partition][self._next : offset]
        if any(stored.is_open for stored in gap):
            raise Fenced(f"epoch {self.epoch} was overtaken")
        self._next = offset + 1
        return offset

    async def confirm(self) -> None:
        shared = self._journal.shared
        await shared.pause(self.partition)
        newer = any(stored.is_open for stored in shared.logs[self.partition][self.epoch + 1 :])
        await shared.pause(self.partition)
        await self._journal.node.thawed()
        if newer:
            raise Fenced(f"epoch {self.epoch} was overtaken")

    async def close(self) -> None:
        pass


class Follower:
    """A book that follows a log from its beginning, as a projector's does; the witness reads for it."""

    def __init__(self, world: World, partition: int) -> None:
        self.replay = Replay.from_start(partition, world.partitions, world.plan.windows, CHAIN_KEY)
        self.last_ns = 0
        self.offset = 0
        self._entries = world.witness.partitions[partition].entries

    def follow(self, until: int) -> None:
        """Read up to the offset `until`."""
        for entry, _ in self._entries[self.offset : until]:
            if isinstance(entry, Record):
                self.replay.apply(entry)
                self.last_ns = int(entry.rows["at"][-1])
            elif entry is not None:
                self.replay.opened(entry)
        self.offset = until

    def snapshot(self, partition: int) -> Snapshot:
        """As it stands."""
        meta = {"last_ns": self.last_ns, "rules": self.replay.rules}
        return Snapshot(partition, self._entries[self.offset - 1][1], ledger.dump(self.replay.book), meta)


class SimSnapshots:
    """Books as a projector saves them: whole, of some earlier position, and not always the newest."""

    def __init__(self, world: World) -> None:
        self._die = world.die
        self._witness = world.witness
        self._saved: list[list[Snapshot]] = [[] for _ in range(world.partitions)]
        self._followers = [Follower(world, partition) for partition in range(world.partitions)]

    async def load(self, partition: int) -> Snapshot | None:
        """One of the partition's snapshots; sometimes a new one is made first."""
        if self._die.random() < 0.5:
            self._save(partition)
        saved = self._saved[partition]
        return self._die.choice(saved) if saved and self._die.random() < 0.7 else None

    def _save(self, partition: int) -> None:
        self._witness.catch_up()
        follower = self._followers[partition]
        follower.follow(self._die.randint(follower.offset, len(self._witness.partitions[partition].entries)))
        if follower.offset:  # nobody saves an empty book
            self._saved[partition].append(follower.snapshot(partition))


class NodeClock:
    """A process's clocks: the wall's leaps and drifts, also backwards; the monotonic one runs a little fast or slow,
    and stands still while a virtual machine is paused. Some are kept right by somebody who knows the time."""

    def __init__(self, die: random.Random, faults: Faults, slack_s: float) -> None:
        self._rate = die.uniform(0.9997, 1.0003)
        self._kept_right = die.random() < 0.3
        self._stood_s = 0.0
        self._since_s = 0.0
        self._drift = 0.0
        self._skew_s = die.uniform(-slack_s, slack_s)
        if die.random() < faults.clock_wrong:
            self._skew_s += die.choice([-3.0, 3.0, -20.0, 20.0]) * _HOUR_S

    def wall_ns(self) -> int:
        now = asyncio.get_running_loop().time()
        return EPOCH_NS + int((now + self._skew_s + self._drift * (now - self._since_s)) * 1e9)

    def monotonic(self) -> float:
        return (asyncio.get_running_loop().time() - self._stood_s) * self._rate

    def synchronised(self) -> bool:
        """Somebody keeps it right, and has."""
        return self._kept_right and self.error_s() < 1.0

    def error_s(self) -> float:
        return abs(self.wall_ns() - EPOCH_NS - int(asyncio.get_running_loop().time() * 1e9)) / 1e9

    def step(self, skew_s: float, drift: float = 0.0) -> None:
        """It says another time from now on, or runs away by `drift` seconds a second."""
        self._skew_s, self._drift = skew_s, drift
        self._since_s = asyncio.get_running_loop().time()

    def stand_still(self, seconds: float) -> None:
        """The monotonic clock did so, for the `seconds` that have just passed."""
        self._stood_s += seconds


class Node:
    """One shard process: it may crash, or stop and go on."""

    def __init__(self, world: World, partition: int, number: int) -> None:
        self.world = world
        self.partition = partition
        self.number = number
        self.alive = True
        self.frozen = False
        self.clock = NodeClock(world.die, world.faults, world.slack_s)
        first = number < world.partitions
        self.capacity = world.plan.capacities[0] if first else world.die.choice(world.plan.capacities)
        self.links: dict[SimLink, None] = {}  # in order: a set's would differ from run to run
        self._held: list[Callable[[], None]] = []
        self._thaw: asyncio.Event = asyncio.Event()
        self._thaw.set()
        peers = None
        if world.partitions > 1:
            transport = SimTransport(world, self)
            peers = ShardClient(
                transport,
                world.partitions,
                clock=asyncio.get_running_loop().time,
                seed=world.die,
                events=FrameType.LEGS,
            )
        self.peers = peers
        recovery = Recovery(
            partition,
            world.partitions,
            journal=world.journal.for_node(self),
            snapshots=world.snapshots.load,
            chain_key=CHAIN_KEY,
            name=f"shard-{partition:03d}",
            windows=world.plan.windows,
            capacity=self.capacity,
            identity={"host": "simulation", "pid": number, "start": 0},
        )
        self.shard = Shard(recovery, peers, on_fatal=self._died, clock=self.clock, limits=world.plan.limits)
        self.task = asyncio.get_running_loop().create_task(self._start())

    async def _start(self) -> None:
        try:
            await self.shard.start()
        except JournalError as error:
            self._died(error)
            return
        await self.thawed()
        if self.alive:
            self.world.registered(self)

    async def thawed(self) -> None:
        """Pass when the process is not stopped; a dead one never passes."""
        while self.frozen:
            await self._thaw.wait()
        if not self.alive:
            await asyncio.Event().wait()

    def when_thawed(self, action: Callable[[], None]) -> None:
        """Do it now, or when the process goes on."""
        if self.frozen:
            self._held.append(action)
        elif self.alive:
            action()

    def identity(self) -> dict[str, Any]:
        """What statistics say of the process."""
        return {"name": f"shard-{self.partition:03d}", "pid": self.number, "host": "simulation"}

    def freeze(self) -> None:
        """SIGSTOP."""
        self.frozen = True
        self._thaw.clear()

    def thaw(self) -> None:
        """SIGCONT."""
        self.frozen = False
        self._thaw.set()
        held, self._held = self._held, []
        for action in held:
            if self.alive:
                action()

    def crash(self) -> None:
        """SIGKILL."""
        if not self.alive:
            return
        self.alive = False
        self.frozen = False
        self._held.clear()
        self.task.cancel()
        self.shard._end()
        for link in list(self.links):
            link.break_off()
        if self.peers is not None:
            self.world.loop_task(self.peers.close())
        self.world.node_died(self)

    def _died(self, error: BaseException) -> None:
        self.world.deaths.append(f"{self.world.now():.3f} node {self.number}: {error!r}")
        if not isinstance(error, JournalError):
            self.world.failures.append(error)
        self.crash()


class SimTransport:
    """`Transport` over the world's network."""

    def __init__(self, world: World, owner: Node | None) -> None:
        self._world = world
        self._owner = owner

    async def connect(self, partition: int, receiver: Receiver, epoch: int) -> Link:
        world = self._world
        await asyncio.sleep(world.latency())
        if world.die.random() < world.faults.refuse_connection:
            raise Unreachable("refused")
        node = world.directory.get(partition)
        if node is None or not node.alive:
            raise Unreachable("nobody there")
        try:
            async with asyncio.timeout(2.0):
                await node.thawed()
        except TimeoutError as error:
            raise Unreachable("no welcome") from error
        if node.shard.epoch < epoch:
            node.shard.suspect(epoch)
            raise Unreachable("an old shard")
        link = SimLink(world, self._owner, node, receiver)
        node.links[link] = None
        if self._owner is not None:
            self._owner.links[link] = None
        return link

    async def moved(self, link: Link) -> bool:
        await asyncio.sleep(self._world.latency())
        node = self._world.directory.get(link.partition)
        newer = node is not None and node.shard.epoch > link.epoch
        return newer and self._world.die.random() > self._world.faults.old_news


class SimLink:
    """One stream. Disorderly ones reorder and repeat answers. Any may break, and what was under way then may still
    arrive, after what was sent on the next one."""

    def __init__(self, world: World, owner: Node | None, node: Node, receiver: Receiver) -> None:
        self.partition = node.partition
        self.epoch = node.shard.epoch
        self._world = world
        self._owner = owner
        self._node = node
        self._receiver: Receiver | None = receiver
        self._answers = _LinkAnswers(self)
        self._disorderly = world.die.random() < world.faults.disorderly_link
        self._arrival = {"request": 0.0, "answer": 0.0}

    def send(self, data: bytes) -> None:
        self._carry("request", data, self._request)

    def answer(self, data: bytes) -> None:
        """From the shard."""
        if self._node.alive:
            self._node.when_thawed(lambda: self._answer(data))

    def _answer(self, data: bytes) -> None:
        self._carry("answer", data, self._response)
        if self._disorderly and self._world.die.random() < self._world.faults.duplicate:
            self._carry("answer", data, self._response)

    def close(self) -> None:
        self._receiver = None
        self._drop()

    def break_off(self) -> None:
        """Both ends lose it."""
        receiver, self._receiver = self._receiver, None
        self._drop()
        if receiver is not None:
            asyncio.get_running_loop().call_later(self._world.latency(), receiver.lost, self)

    def _drop(self) -> None:
        self._node.links.pop(self, None)
        if self._owner is not None:
            self._owner.links.pop(self, None)

    def _carry(self, way: str, data: bytes, deliver: Callable[[bytes], None]) -> None:
        world = self._world
        if world.die.random() < world.faults.lose_link:
            self.break_off()
            if world.die.random() < 0.5:
                return
        loop = asyncio.get_running_loop()
        arrival = loop.time() + world.latency()
        if way == "request" or not self._disorderly:
            arrival = self._arrival[way] = max(arrival, self._arrival[way] + 1e-9)
        loop.call_at(arrival, deliver, data)

    def _request(self, data: bytes) -> None:
        self._node.when_thawed(lambda: self._serve(data))

    def _serve(self, data: bytes) -> None:
        kind, request, payload = frames.split(data)
        dispatch(self._node.shard, self._node.identity, kind, request, payload, self._answers)

    def _response(self, data: bytes) -> None:
        if self._owner is not None and not self._owner.alive:
            return
        if self._owner is not None and self._owner.frozen:
            self._owner.when_thawed(lambda: self._response(data))
            return
        if self._receiver is None:
            return
        try:
            self._receiver.received(self, *frames.split(data))
        except Malformed:  # an answer's later part came first
            self.break_off()


class _LinkAnswers(Answers):
    def __init__(self, link: SimLink) -> None:
        self._link = link

    def write(self, data: bytes) -> None:
        self._link.answer(data)


class World:
    """Everything, and the die that decides what happens to it."""

    def __init__(self, seed: int, plan: Plan) -> None:
        self.seed = seed
        self.plan = plan
        self.partitions = plan.partitions
        self.faults = Faults.none()
        self.die = random.Random(seed)
        self.journal = SimJournal(self)
        self.witness = Witness(
            self.journal.logs,
            plan.windows,
            lambda partition: Reader(NodeJournal(self.journal, None), partition, CHAIN_KEY),
        )
        self.snapshots = SimSnapshots(self)
        self.directory: dict[int, Node] = {}
        self.nodes: list[Node] = []
        self.current: dict[int, Node] = {}
        self.deaths: list[str] = []
        self.failures: list[BaseException] = []
        self.slack_s = min(0.5, 0.4e-9 * plan.windows.id_skew_ns)
        """How far clocks that are well are from the truth."""
        self.away: dict[int, float] = {}  # partition -> until when no process can be started for it
        self._tasks: set[asyncio.Task[Any]] = set()
        self._healing = True

    async def begin(self) -> None:
        """Every partition has a process that serves; from then on things go wrong only by `disturb`."""
        for partition in range(self.partitions):
            self.start_node(partition)
        await self._all_serve()

    async def make_peace(self) -> None:
        """From now on nothing goes wrong: all processes go on, with right clocks, and somebody serves everywhere."""
        self.faults = Faults.none()
        self.away.clear()
        for node in self.nodes:
            if node.alive:
                node.thaw()
                node.clock.step(0.0)
        self.loop_task(self._operate())
        await asyncio.sleep(5.0)
        await self._all_serve()
        await asyncio.sleep(1.0)

    async def _operate(self) -> None:
        """An operator accepts every clock that is not believed: they are right by now."""
        while True:
            for node in self.current.values():
                if node.alive and node.shard.serving and node.shard.stats()["clock_ahead_s"]:
                    node.shard.accept_clock()
            await asyncio.sleep(0.5)

    async def _all_serve(self) -> None:
        """Wait until every partition has a process that does."""
        for _ in range(100):
            nodes = [self.current[partition] for partition in range(self.partitions)]
            if all(node.alive and node.shard.serving for node in nodes):
                return
            await asyncio.sleep(0.5)
        raise AssertionError("no process serves")

    def writer(self, partition: int) -> Node:
        """Whose the journal is. A process that was started later may have come to the journal first: it is overtaken,
        and does not know as long as nobody asks it."""
        serving = [node for node in self.nodes if node.partition == partition and node.alive and node.shard.serving]
        return max(serving, key=lambda node: node.shard.epoch, default=self.current[partition])

    def replayed(self, partition: int) -> Book:
        """A book that was made of the whole log."""
        follower = Follower(self, partition)
        follower.follow(len(self.journal.logs[partition]))
        return follower.replay.book

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def latency(self) -> float:
        """Mostly a millisecond, seldom much more."""
        return self.die.expovariate(1 / (0.05 if self.die.random() < 0.01 else 0.001))

    def loop_task(self, work: Any) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def start_node(self, partition: int) -> Node:
        """A new process for the partition, whatever becomes of the old one."""
        node = Node(self, partition, len(self.nodes))
        self.nodes.append(node)
        self.current[partition] = node
        if node.clock.error_s() > 60.0:
            self.loop_task(self._attend_to_clock(node))
        return node

    def registered(self, node: Node) -> None:
        """The directory learns of it after a while, and never goes back to an older one."""

        def learn() -> None:
            known = self.directory.get(node.partition)
            if node.shard.serving and (known is None or known.shard.epoch <= node.shard.epoch):
                self.directory[node.partition] = node

        asyncio.get_running_loop().call_later(self.latency(), learn)

    def node_died(self, node: Node) -> None:
        """The supervisor starts another."""
        if self._healing and self.current.get(node.partition) is node:
            delay = self.die.uniform(0.01, 0.3)
            asyncio.get_running_loop().call_later(delay, self._replace, node)

    def _replace(self, node: Node) -> None:
        rest_s = self.away.get(node.partition, 0.0) - self.now()
        if rest_s > 0:
            asyncio.get_running_loop().call_later(rest_s, self._replace, node)
        elif self._healing and self.current.get(node.partition) is node:
            self.start_node(node.partition)

    async def disturb(self) -> None:
        """Crash, stop and replace processes, take partitions away and move clocks, until cancelled."""
        faults = self.faults = replace(self.plan.faults)
        rates = {
            self._crash: faults.crash_every_s,
            self._freeze: faults.freeze_every_s,
            self._move_clock: faults.clock_every_s,
            self._take_away: faults.outage_every_s,
        }
        kinds = [(action, every_s) for action, every_s in rates.items() if every_s]
        events = [(self.now() + self.die.expovariate(1 / every_s), n) for n, (_, every_s) in enumerate(kinds)]
        heapq.heapify(events)
        while True:
            when, number = heapq.heappop(events)
            await asyncio.sleep(max(0.0, when - self.now()))
            action, every_s = kinds[number]
            heapq.heappush(events, (self.now() + self.die.expovariate(1 / every_s), number))
            action(self.die.choice(list(self.current.values())))

    def _crash(self, node: Node) -> None:
        node.crash()

    def _freeze(self, node: Node) -> None:
        if node.alive and not node.frozen:
            self.loop_task(self._stop_for_a_while(node))

    def _take_away(self, node: Node) -> None:
        window_s = self.plan.windows.id_window_ns / 1e9
        self.away[node.partition] = self.now() + window_s * self.die.uniform(0.2, 2.0)
        node.crash()

    def _move_clock(self, node: Node) -> None:
        if self.die.random() >= self.faults.clock_leap:
            node.clock.step(self.die.uniform(-3.0, 2.0) * self.slack_s)
            return
        hours = self.die.choice([-30.0, -3.0, 1.0, 3.0, 50.0])
        if self.die.random() < 0.3:
            node.clock.step(0.0, drift=hours * _HOUR_S / 2.0)
        else:
            node.clock.step(hours * _HOUR_S)
        self.loop_task(self._attend_to_clock(node))

    async def _attend_to_clock(self, node: Node) -> None:
        """An operator finds out, and puts the clock right; or believes what it says."""
        await asyncio.sleep(self.die.expovariate(1 / 0.7))
        if node.alive and node.shard.serving and self.die.random() < 0.15:
            node.shard.accept_clock()
            await asyncio.sleep(self.die.expovariate(1 / 0.5))
        node.clock.step(self.die.uniform(-self.slack_s, self.slack_s))

    async def _stop_for_a_while(self, node: Node) -> None:
        node.freeze()
        since = self.now()
        for link in list(node.links):
            if self.die.random() < 0.5:
                link.break_off()  # some clients go to the successor, others do not know yet
        await asyncio.sleep(self.die.uniform(0.0, 0.1))
        if self.die.random() < 0.7 and self.current.get(node.partition) is node:
            successor = self.start_node(node.partition)  # a second writer, while the first is only stopped
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.die.uniform(0.0, 2.5)):
                    await asyncio.shield(successor.task)
            await asyncio.sleep(self.die.expovariate(1 / 0.1))
        if self.die.random() < 0.3:
            node.clock.stand_still(self.now() - since)  # the machine was paused, not the process
        node.thaw()

    async def shut_down(self) -> None:
        """End every process, cleanly or not."""
        self._healing = False
        for node in self.nodes:
            node.crash()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, *(node.task for node in self.nodes), return_exceptions=True)


def run(work: Any) -> Any:
    """Run a coroutine under virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work)
