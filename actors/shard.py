"""The shard: the single writer of one partition. Everything queued becomes one group: stamp, apply, append, answer.

    streams, shards' legs, expiries ── by turns ──┐
                                                  ▼
    settles, reverts ─── before all others ──► a group ──► stamp, apply ──► append, or confirm ──► answers
      ▲                                           └─ no time to stamp with: NOT_SERVING               │
      └────────── decided by the payee's shard ◄── outbox ◄── legs of what is in flight ◄─────────────┘

While a group's append is on its way the next one gathers (and, when large, is already applied), but nothing is answered
before what it shows is durable; a group that has nothing to append looks whether the journal still is ours. Whatever
goes wrong with the journal ends the shard: `on_fatal` is called once and nothing is answered any more; the successor's
open record settles what was under way.

Plain asyncio over a journal, the other shards and a clock, all handed in: so the same code runs in a Ray actor and in a
simulation with a fault at every await.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from operator import attrgetter
from typing import Any, Final, Protocol
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt

from actors import ledger
from actors.clock import Clock, StampClock, SystemClock
from actors.failpoints import Failpoint, nothing
from actors.frames import ROWS_MAX, Array, Notes, joined
from actors.ledger import Book
from actors.outbox import Outbox, Peers
from actors.recent import Recent, decider
from actors.recovery import Recovery
from storage import record
from storage.events import ACCOUNT, BALANCE, EVENT, FIRST_STATELESS, RESULT, Code, Kind, ResultFlag
from storage.found import Found, not_told
from storage.journal import Writer

_LOG: Final = logging.getLogger(__name__)
_ZONE: Final = ZoneInfo("America/Sao_Paulo")
_OFFSET_STEP_NS: Final = 15 * 60 * 10**9
# Plain integers on the hot path: on Python 3.11 an enum's member is looked up by a function.
_IN_FLIGHT: Final = int(Code.IN_FLIGHT)
_REPLAYED: Final = int(ResultFlag.REPLAYED)
_FIRST_STATELESS: Final = int(FIRST_STATELESS)


class Replies(Protocol):
    """Where answers go. Must not raise; may ignore them when the caller has gone."""

    def answered(self, request: int, results: Array, positions: dict[int, int]) -> None:
        """(n,) RESULT for a request's rows; IN_FLIGHT ones follow in `resolved`."""
        ...

    def answered_all(self, answers: Sequence[tuple[int, Array]], positions: dict[int, int]) -> None:
        """`answered` for each (request, results) of one group."""
        for request, results in answers:
            self.answered(request, results, positions)

    def resolved(self, request: int, indices: Array, results: Array, positions: dict[int, int]) -> None:
        """The outcome of rows that were IN_FLIGHT."""
        ...

    def states(self, request: int, states: Array, positions: dict[int, int]) -> None:
        """(n,) ACCOUNT for a read."""
        ...

    def found(self, request: int, found: Sequence[Found], head: int, code: Code) -> None:
        """What has been done lately about each id, before offset `head`; a code other than OK: none was looked for."""
        ...


@dataclass(frozen=True, slots=True)
class ShardLimits:
    """What a shard takes on at most."""

    group_rows: int = ROWS_MAX
    group_bytes: int = 1 << 20  # of rows and notes in one record
    overlap_rows: int = 2_048  # from so many queued rows on the next group is applied during an append
    queue_rows: int = 65_536  # clients' rows; beyond: OVERLOADED
    queue_bytes: int = 64 << 20
    read_rows: int = 65_536  # accounts and ids that clients ask for; beyond: OVERLOADED
    stream_read_rows: int = 16_384  # of them by one stream
    waiting_rows: int = 65_536  # repeats of ids that are in flight; beyond: UNSURE
    wait_s: float = 30.0  # for another shard's answer; then the caller is told UNSURE
    pace_rows: int = 8  # a group of so many rows, and of less than `overlap_rows`, is followed by the next one
    pace_s: float = 0.0  # so long after its start; worth it where money crosses shards (cluster/wiring.py)
    outcomes_s: float = 0.01  # how long settles and reverts wait for other rows to go along with
    tick_s: float = 0.1
    expire_rows: int = 4_096
    recent_rows: int = 65_536  # the newest, for who asks what the query side does not have yet
    recent_bytes: int = 16 << 20


class _Work:
    """Rows of one request, or of the shard itself: then without replies."""

    __slots__ = ("count", "durable", "notes", "of_client", "replies", "request", "rows", "size", "start")

    def __init__(
        self,
        rows: Array,
        notes: Notes | None = None,
        replies: Replies | None = None,
        request: int = 0,
        *,
        of_client: bool = False,
        durable: Callable[[dict[int, int]], None] | None = None,
    ) -> None:
        self.rows = rows
        self.count = len(rows)
        self.notes = notes
        self.size = rows.nbytes + (0 if notes is None else sum(map(len, filter(None, notes))))
        self.replies = replies
        self.request = request
        self.of_client = of_client
        self.durable = durable
        self.start = 0  # its first row's number in the group


class _Read:
    """One read request."""

    __slots__ = ("actors", "count", "ids", "replies", "request", "size", "states")

    def __init__(self, ids: Array, actors: Array, replies: Replies, request: int) -> None:
        self.ids = ids
        self.actors = actors
        self.count = len(ids)
        self.size = 0  # in a record
        self.replies = replies
        self.request = request
        self.states: Array | None = None

    def look(self, book: Book, now_ns: int) -> None:
        """At the accounts, as they are after the group's events."""
        self.states = ledger.read_accounts(book, self.ids, self.actors, now_ns)

    def answer(self, shard: Shard, positions: dict[int, int]) -> None:
        """What it shows is durable."""
        assert self.states is not None  # noqa: S101
        self.replies.states(self.request, self.states, positions)

    def refuse(self, code: Code) -> None:
        """Answer so for every account."""
        states = np.zeros(self.count, ACCOUNT)
        states["id"], states["code"] = self.ids, code
        self.replies.states(self.request, states, {})


class _Find(_Read):
    """One request for what has been done lately about ids, (n, 2) u64. It shows only what is durable."""

    __slots__ = ()

    def look(self, book: Book, now_ns: int) -> None:
        """See `answer`."""

    def answer(self, shard: Shard, positions: dict[int, int]) -> None:
        """What it shows is durable."""
        ids: list[list[int]] = self.ids.tolist()
        head = positions[shard.partition] + 1
        found = [shard.recent.find((high, low), head) for high, low in ids]
        accounts = [decider(one, (high, low)) for one, (high, low) in zip(found, ids, strict=True)]
        # Whose an account is never changes, so it may be the newest book that says it.
        states = ledger.read_accounts(shard.book, np.array(accounts, np.uint64), self.actors, 0)
        owned = (states["code"] == Code.OK).tolist()
        told = [
            one._replace(account=account, owned=own) for one, account, own in zip(found, accounts, owned, strict=True)
        ]
        self.replies.found(self.request, told, head, Code.OK)

    def refuse(self, code: Code) -> None:
        """Look for nothing."""
        self.replies.found(self.request, [not_told(0)] * self.count, 0, code)


class _Source:
    """What one stream has asked for, or the shard itself, in its order."""

    __slots__ = ("read_rows", "requests")

    def __init__(self) -> None:
        self.requests: deque[_Work | _Read] = deque()
        self.read_rows = 0


class _Queue:
    """All that waits. A group takes the own outcomes and then one request of each source by turns, while they fit.

    A request that did not fit begins the next group, whatever its size: so none waits for more than about one group a
    source, whatever the others send.
    """

    def __init__(self, limits: ShardLimits) -> None:
        self.limits = limits
        self.outcomes: deque[_Work] = deque()
        self.sources: OrderedDict[Replies | None, _Source] = OrderedDict()  # by stream; the next one's turn first
        self.rows = 0  # of events
        self.client_rows = 0
        self.client_bytes = 0
        self.read_rows = 0
        self._passed_over = False  # the next source's request did not fit beside the outcomes

    def has_room_for(self, request: _Work | _Read) -> bool:
        """Whether a client may ask for so much more."""
        limits = self.limits
        if isinstance(request, _Work):
            rows, size = self.client_rows + request.count, self.client_bytes + request.size
            return rows <= limits.queue_rows and size <= limits.queue_bytes
        source = self.sources.get(request.replies)
        theirs = request.count + (0 if source is None else source.read_rows)
        more = theirs <= limits.stream_read_rows and self.read_rows + request.count <= limits.read_rows
        return more or not request.count

    def add(self, request: _Work | _Read) -> None:
        """Behind what its source has asked before."""
        source = self.sources.get(request.replies)
        if source is None:
            source = self.sources[request.replies] = _Source()
        source.requests.append(request)
        self._count(source, request, 1)

    def add_outcomes(self, work: _Work) -> None:
        """Before all others."""
        self.outcomes.append(work)
        self.rows += work.count

    def take(self) -> _Group | None:
        """What goes into the next record. Outcomes go first, so that who was told one finds it done, but not twice in
        a row where they leave no room for whose turn it is."""
        works: list[_Work] = []
        reads: list[_Read] = []
        room, space = self.limits.group_rows, self.limits.group_bytes
        if not self._passed_over:
            while self.outcomes and (self.outcomes[0].count <= room or not works):
                work = self.outcomes.popleft()
                room, space = room - work.count, space - work.size
                self.rows -= work.count
                works.append(work)
            if self.outcomes:
                room = 0
        self._passed_over = begun = False
        while self.sources:
            replies, source = next(iter(self.sources.items()))
            request = source.requests[0]
            if (request.count > room or request.size > space) and (works or reads):
                self._passed_over = not begun
                break
            begun = True
            source.requests.popleft()
            self._count(source, request, -1)
            if source.requests:
                self.sources.move_to_end(replies)
            else:
                del self.sources[replies]
            room, space = room - request.count, space - request.size
            if isinstance(request, _Work):
                works.append(request)
            else:
                reads.append(request)
        return _Group(works, reads) if works or reads else None

    def refuse(self, code: Code) -> None:
        """Answer all that was asked; what the shard does of itself is asked for again."""
        while self.sources:
            _, source = self.sources.popitem(last=False)
            for request in source.requests:
                self._count(source, request, -1)
                if isinstance(request, _Read):
                    request.refuse(code)
                elif request.replies is not None:
                    request.replies.answered(request.request, _refusals(request.count, code), {})

    def _count(self, source: _Source, request: _Work | _Read, sign: int) -> None:
        rows = sign * request.count
        if isinstance(request, _Read):
            source.read_rows += rows
            self.read_rows += rows
            return
        self.rows += rows
        if request.of_client:
            self.client_rows += rows
            self.client_bytes += sign * request.size


class _Group:
    """What is applied, appended and answered together."""

    __slots__ = (
        "flight", "journaled", "kinds", "legs", "payload", "positions", "reads", "repeats", "results", "rows", "works",
    )  # fmt: skip

    def __init__(self, works: list[_Work], reads: list[_Read]) -> None:
        self.works = works
        self.reads = reads
        self.rows: Array = _NO_ROWS
        self.results: Array = _NO_RESULTS
        self.payload: bytes | None = None
        self.journaled: tuple[Array, Array, Notes | None] | None = None  # what is in the payload
        self.flight: Array | None = None  # numbers of the rows newly in flight
        self.legs: Array = _NO_ROWS  # theirs
        self.repeats: Array | None = None  # numbers of the rows that repeat what is in flight
        self.kinds: frozenset[int] = frozenset()
        self.positions: dict[int, int] = {}

    def tell(self, numbers: Array, codes: Array, positions: dict[int, int]) -> None:
        """Tell the callers of rows `numbers`, ascending, which were IN_FLIGHT in the answer."""
        results = self.results[numbers]
        results["code"] = codes
        positions = self.positions | positions
        told = 0
        while told < len(numbers):
            work = self.works[bisect_right(self.works, int(numbers[told]), key=_start) - 1]
            end = int(numbers.searchsorted(work.start + work.count))
            if work.replies is not None:
                work.replies.resolved(work.request, numbers[told:end] - work.start, results[told:end], positions)
            told = end


_start: Final = attrgetter("start")
_NO_ROWS: Final = np.zeros(0, EVENT)
_NO_RESULTS: Final = np.zeros(0, RESULT)


class Shard:
    """One partition's book and its only writer.

    `apply`, `legs` and `read` return at once; answers go to the replies they were given, one object a stream. Rows must
    be (n,) EVENT, n <= `ROWS_MAX`, writable and the shard's from then on; their last chain must be closed
    (`frames.check_events`).
    """

    def __init__(
        self,
        recovery: Recovery,
        peers: Peers | None,
        *,
        on_fatal: Callable[[BaseException], None],
        clock: Clock | None = None,
        limits: ShardLimits | None = None,
        failpoint: Failpoint = nothing,
    ) -> None:
        self.partition = recovery.partition
        self.partitions = recovery.partitions
        self.limits = limits or ShardLimits()
        self.serving = False
        self._recovery = recovery
        self._clock: Clock = clock or SystemClock()
        self._on_fatal = on_fatal
        self._failpoint = failpoint
        self._dead = False
        self._stopping = False
        self._outbox = (
            None
            if peers is None
            else Outbox(
                peers,
                self.partitions,
                enqueue=self._enqueue_outcomes,
                now=self._clock.monotonic,
                failpoint=failpoint,
                fatal=self.fatal,
                waiting_rows=self.limits.waiting_rows,
            )
        )
        self._book: Book
        self._writer: Writer
        self._chain: record.Chain
        self._time: StampClock
        self._sequence = 0
        self._offset = -1  # of the newest durable record
        self._balances = np.zeros(ROWS_MAX, BALANCE)
        self._utc_offset = (-1, 0)
        self._queue = _Queue(self.limits)
        self._next: _Group | None = None
        self._committing = False
        self._preparing = False
        self._wake = asyncio.Event()
        self._running: asyncio.Task[None] | None = None
        self._ticking: asyncio.TimerHandle | None = None
        self._groups = 0
        self._rows = 0
        self._append_s = 0.0
        self.recent = Recent(0, rows_max=0, bytes_max=0)
        """What is durable, not older than this process."""

    # Life.

    async def start(self) -> None:
        """Fence, recover, serve.

        Raises:
            JournalError: the journal cannot be read or is broken; nothing is served.
            AssertionError: replay gave other codes than the journal has.
        """
        self._writer = await self._recovery.fence()
        try:
            recovered = await self._recovery.replay(self._writer)
        except BaseException:
            await self._writer.close()
            raise
        self._book, self._chain = recovered.book, recovered.chain
        self._sequence, self._offset = recovered.sequence, recovered.offset
        limits = self.limits
        self.recent = Recent(self._offset + 1, rows_max=limits.recent_rows, bytes_max=limits.recent_bytes)
        self._time = StampClock(self._clock, recovered.last_ns, name=f"shard {self.partition}")
        self.serving = True
        self._running = asyncio.get_running_loop().create_task(self._run())
        if self._outbox is not None:
            self._outbox.resume(ledger.in_flight(self._book), ledger.sent(self._book))
        self._tick()

    async def stop(self) -> None:
        """Finish what is queued, then give the journal up. The caller has stopped new requests."""
        self._stopping = True
        self._wake.set()
        if self._running is not None:
            await asyncio.gather(self._running, return_exceptions=True)
        self._end()
        if self.serving:
            self.serving = False
            await self._writer.close()

    def fatal(self, error: BaseException) -> None:
        """Stop answering, for good."""
        if self._dead:
            return
        self._end()
        _LOG.critical("shard %d ends: %s: %s", self.partition, type(error).__name__, error)
        self._on_fatal(error)

    def _end(self) -> None:
        self._dead = True
        if self._ticking is not None:
            self._ticking.cancel()
        if self._outbox is not None:
            self._outbox.close()
        if self._running is not None and self._running is not asyncio.current_task():
            self._running.cancel()

    @property
    def epoch(self) -> int:
        """The open record's offset; 0 before `start`."""
        return self._writer.epoch if self.serving else 0

    @property
    def book(self) -> Book:
        """The live book; may be ahead of what is durable."""
        return self._book

    def stats(self) -> dict[str, Any]:
        """Numbers for operators; the shell adds its process's name."""
        book = ledger.stats(self._book)
        now = self._time.last_ns
        return {
            "partition": self.partition,
            "epoch": self.epoch,
            "offset": self._offset + 1,
            "accounts": book.accounts,
            "transfers": book.transfers,
            "ids": book.ids,
            "ids_window_s": max(0, now - book.oldest_id_ns) / 1e9 if book.ids else 0.0,
            "holds": book.holds,
            "in_flight": book.in_flight,
            "transit": book.transit,
            "queue_rows": self._queue.rows,
            "read_rows": self._queue.read_rows,
            "outbox_rows": 0 if self._outbox is None else int(self._outbox.rows.sum()),
            "groups": self._groups,
            "rows": self._rows,
            "last_append_ms": self._append_s * 1e3,
            "clock_ns": self._clock.wall_ns(),
            "clock_ahead_s": self._time.ahead_s,
            "capacity": ledger.capacity_of(self._book)._asdict(),
        }

    # What comes in.

    def apply(self, rows: Array, notes: Notes | None, replies: Replies, request: int) -> None:
        """Queue clients' events, or answer OVERLOADED for all of them. A shard that stops is silent: its streams end,
        and the client sends the same ids to the next one."""
        if self._stopping:
            return
        work = _Work(rows, notes, replies, request, of_client=True)
        if self._queue.has_room_for(work):
            self._add(work)
        else:
            replies.answered(request, _refusals(work.count, Code.OVERLOADED), {})

    def legs(self, rows: Array, replies: Replies, request: int) -> None:
        """Queue another shard's credit legs. Never refused: one batch per shard is under way, so they are few."""
        self._add(_Work(rows, None, replies, request))

    def read(self, ids: Array, actors: Array, replies: Replies, request: int) -> None:
        """Queue a read, in order with the stream's events, or answer OVERLOADED for each account."""
        self._ask(_Read(ids, actors, replies, request))

    def find(self, asked: Array, replies: Replies, request: int) -> None:
        """Queue the question what has been done lately about ids, as `read`. `asked`: (n, 3) u64, ids and actors."""
        self._ask(_Find(asked[:, :2], asked[:, 2], replies, request))

    def _ask(self, read: _Read) -> None:
        if self._stopping:
            return
        if self._queue.has_room_for(read):
            self._add(read)
        else:
            read.refuse(Code.OVERLOADED)

    def suspect(self, epoch: int) -> None:
        """Somebody knows a newer epoch than ours: make sure by a group of nothing that we are not fenced."""
        if self.serving and epoch > self.epoch:
            self.read(np.zeros(0, np.uint64), np.zeros(0, np.uint64), _Nobody(), 0)

    def accept_clock(self) -> None:
        """An operator says that this machine's clock is right, however far it is from the last stamp."""
        self._time.accept()
        self._look_at_clock()

    def _add(self, request: _Work | _Read) -> None:
        self._queue.add(request)
        self._queued()

    def _enqueue_outcomes(self, rows: Array, durable: Callable[[dict[int, int]], None]) -> None:
        self._queue.add_outcomes(_Work(rows, durable=durable))
        self._queued()

    def _queued(self) -> None:
        self._wake.set()
        if self._committing and not self._preparing and self._queue.rows >= self.limits.overlap_rows:
            self._preparing = True
            asyncio.get_running_loop().call_soon(self._prepare_ahead)

    # Groups.

    async def _run(self) -> None:
        try:
            while True:
                if self._next is None and self._only_outcomes() and not self._stopping:
                    await self._company()
                group, self._next = self._next or self._prepare(), None
                if group is None:
                    if self._stopping:
                        return
                    if self._queue.sources:  # the clock is not believed
                        await self._writer.confirm()  # who was overtaken must not keep callers from the successor
                        self._queue.refuse(Code.NOT_SERVING)
                        continue
                    self._wake.clear()
                    await self._wake.wait()
                    continue
                begun = self._clock.monotonic()
                self._committing = True
                await self._commit(group)
                self._committing = False
                if self._dead:
                    return
                self._answer(group)
                if self.limits.pace_rows <= len(group.rows) < self.limits.overlap_rows:
                    await self._pace(begun)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - nothing may be answered after any failure
            self.fatal(error)

    def _only_outcomes(self) -> bool:
        return bool(self._queue.outcomes) and not self._queue.sources

    async def _company(self) -> None:
        """Few wait for a settle: rather than hold up what comes next with an append of its own, it goes along."""
        self._wake.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.limits.outcomes_s):
                while self._only_outcomes() and not self._stopping:
                    await self._wake.wait()
                    self._wake.clear()

    async def _pace(self, begun: float) -> None:
        """A group costs the same whatever is in it: when many come with few rows each, wait a little for more."""
        rest_s = begun + self.limits.pace_s - self._clock.monotonic()
        if rest_s > 0 and self._queue.rows < self.limits.overlap_rows and not self._stopping:
            await asyncio.sleep(rest_s)

    def _prepare_ahead(self) -> None:
        """Apply the next group while an append is under way."""
        self._preparing = False
        if self._dead or not self._committing or self._next is not None:
            return
        try:
            self._next = self._prepare()
        except Exception as error:  # noqa: BLE001 - as in `_run`
            self.fatal(error)

    def _prepare(self) -> _Group | None:
        now = self._time.now_ns()
        if now is None:  # without time nothing is decided
            return None
        group = self._queue.take()
        if group is None:
            return None
        works = group.works
        if works:
            start = 0
            for work in works:
                work.start = start
                start += work.count
            group.rows = joined([work.rows for work in works])
            self._apply(group, now)
        for read in group.reads:
            read.look(self._book, self._time.last_ns)
        return group

    def _apply(self, group: _Group, now: int) -> None:
        rows = group.rows
        self._time.last_ns = ledger.stamp(rows, now, now - 1)
        utc_offset_s = self._utc_offset_s(now)
        results = group.results = np.zeros(len(rows), RESULT)
        if len(rows) > len(self._balances):
            self._balances = np.zeros(len(rows), BALANCE)
        effects = ledger.apply(self._book, rows, results, self._balances[: len(rows)], utc_offset_s)
        if effects.kept:
            notes = _notes(group.works)
            if effects.kept < len(rows):
                keep = _journaled(results)
                notes = None if notes is None else [notes[place] for place in np.flatnonzero(keep).tolist()]
                rows, results = rows[keep], results[keep]
            group.journaled = rows, results, notes
            group.payload = record.encode(
                rows,
                results,
                notes,
                partition=self.partition,
                sequence=self._sequence,
                epoch=self._writer.epoch,
                utc_offset_s=utc_offset_s,
                chain=self._chain,
            )
            self._sequence += 1
        if self._outbox is None:
            return
        if effects.sent:
            group.flight, group.legs = ledger.flights_of(self._book, group.rows, group.results, effects.sent)
        if effects.repeated:
            flags, codes = group.results["flags"], group.results["code"]
            group.repeats = np.flatnonzero((codes == _IN_FLIGHT) & ((flags & _REPLAYED) != 0))
        if self._failpoint is not nothing:
            group.kinds = frozenset(np.unique(group.rows["kind"]).tolist())
            self._failpoint_of(group, "applied")

    def _failpoint_of(self, group: _Group, step: str) -> None:
        if self._failpoint is nothing or group.payload is None:
            return
        if group.flight is not None:
            self._failpoint(f"debit-{step}")
        if Kind.CREDIT_LEG in group.kinds:
            self._failpoint(f"leg-{step}")
        if Kind.SETTLE in group.kinds or Kind.REVERT in group.kinds:
            self._failpoint(f"settle-{step}")

    def _utc_offset_s(self, now_ns: int) -> int:
        """Of Brasília at a moment. Recorded with each record, so replay does not depend on the time zone database."""
        step = now_ns // _OFFSET_STEP_NS
        if self._utc_offset[0] != step:
            offset = datetime.fromtimestamp(step * _OFFSET_STEP_NS // 10**9, _ZONE).utcoffset()
            assert offset is not None  # noqa: S101
            self._utc_offset = (step, int(offset.total_seconds()))
        return self._utc_offset[1]

    async def _commit(self, group: _Group) -> None:
        """Return when what the group shows is durable, and no other writer had taken over when it was evaluated: an
        append, or a look at the log's end, that was sent after that and found us unfenced proves it."""
        if group.payload is None:
            await self._writer.confirm()
            return
        sent = self._clock.monotonic()
        self._offset = await self._writer.append(group.payload)
        self._append_s = self._clock.monotonic() - sent

    def _answer(self, group: _Group) -> None:
        self._groups += 1
        self._rows += len(group.rows)
        if group.journaled is not None:
            self.recent.add(*group.journaled, self._offset)
        if self._outbox is not None:
            self._failpoint_of(group, "durable")
            self._wait_for_repeated(group)
        positions = group.positions = {self.partition: self._offset}
        answers: dict[Replies, list[tuple[int, Array]]] = {}
        for work in group.works:
            if work.replies is not None:
                results = group.results[work.start : work.start + work.count]
                answers.setdefault(work.replies, []).append((work.request, results))
        for replies, theirs in answers.items():
            replies.answered_all(theirs, positions)
        for read in group.reads:
            read.answer(self, positions)
        for work in group.works:
            if work.durable is not None:
                work.durable(positions)
        if group.flight is not None and self._outbox is not None:
            self._outbox.send(group.legs, group.tell, group.flight)

    def _wait_for_repeated(self, group: _Group) -> None:
        """Who repeats what is in flight is told what the first caller is. Its outcome's record comes after this one."""
        if group.repeats is None or self._outbox is None:
            return
        for number in group.repeats.tolist():
            row = group.rows[number]
            at = int(group.results["at"][number])  # as it is remembered: in µs
            if not self._outbox.wait_too(int(row["id_hi"]), int(row["id_lo"]), at, group.tell, number):
                group.results["code"][number] = Code.UNSURE

    # Time.

    def _tick(self) -> None:
        """Look at the clock, expire holds that are due, and tell callers who have waited too long for another shard."""
        if self._dead or self._stopping:
            return
        self._ticking = asyncio.get_running_loop().call_later(self.limits.tick_s, self._tick)
        try:
            self._look_at_clock()
            if self._outbox is not None:
                self._outbox.give_up(self._clock.monotonic() - self.limits.wait_s)
        except Exception as error:  # noqa: BLE001 - as in `_run`
            self.fatal(error)

    def _look_at_clock(self) -> None:
        """Holds that are due expire, one batch at a time; it leaves the heap of the due only when it is applied."""
        now = self._time.now_ns()
        if now is None:
            return
        if None not in self._queue.sources:
            due = ledger.due_holds(self._book, now, self.limits.expire_rows)
            if len(due):
                self._add(_Work(due))
        if self._queue.outcomes:
            self._wake.set()  # they may have waited for the clock


def _journaled(results: Array) -> npt.NDArray[np.bool_]:
    """Mask of `ledger.Effects.kept`."""
    keep: npt.NDArray[np.bool_] = (results["code"] < _FIRST_STATELESS) & ((results["flags"] & _REPLAYED) == 0)
    return keep


def _notes(works: list[_Work]) -> Notes | None:
    if all(work.notes is None for work in works):
        return None
    if len(works) == 1:
        return works[0].notes
    notes: list[bytes | None] = []
    for work in works:
        notes.extend([None] * work.count if work.notes is None else work.notes)
    return notes


def _refusals(count: int, code: Code) -> Array:
    results = np.zeros(count, RESULT)
    results["code"] = code
    return results


class _Nobody(Replies):
    """Nobody waits for these."""

    def answered(self, request: int, results: Array, positions: dict[int, int]) -> None:
        """See `Replies`."""

    def resolved(self, request: int, indices: Array, results: Array, positions: dict[int, int]) -> None:
        """See `Replies`."""

    def states(self, request: int, states: Array, positions: dict[int, int]) -> None:
        """See `Replies`."""

    def found(self, request: int, found: Sequence[Found], head: int, code: Code) -> None:
        """See `Replies`."""
