"""The shard: the single writer of one partition. Everything queued becomes one group: stamp, apply, append, answer.

While a group's append is on its way the next one gathers (and, when large, is already applied), but nothing is answered
before what it shows is durable. Whatever goes wrong with the journal ends the shard: `on_fatal` is called once and
nothing is answered any more; the successor's open record settles what was under way.

Plain asyncio over a journal, the other shards and a clock, all handed in: so the same code runs in a Ray actor and in a
simulation with a fault at every await.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Protocol
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt

from actors import ledger
from actors.failpoints import Failpoint, nothing
from actors.frames import ROWS_MAX, Array, Notes
from actors.ledger import Book
from actors.outbox import Outbox, Peers
from actors.recovery import Recovery
from storage import record
from storage.events import ACCOUNT, BALANCE, EVENT, FIRST_STATELESS, RESULT, SLOTS, Code, Flag, Kind, ResultFlag
from storage.journal import Writer

_LOG: Final = logging.getLogger(__name__)
_ZONE: Final = ZoneInfo("America/Sao_Paulo")
_OFFSET_STEP_NS: Final = 15 * 60 * 10**9
# Plain integers on the hot path: on Python 3.11 an enum's member is looked up by a function.
_IN_FLIGHT: Final = int(Code.IN_FLIGHT)
_REPLAYED: Final = int(ResultFlag.REPLAYED)
_FIRST_STATELESS: Final = int(FIRST_STATELESS)
_LINKED: Final = int(Flag.LINKED)
_BOOTTIME: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class Clock(Protocol):
    """Where a shard's time comes from."""

    def wall_ns(self) -> int:
        """ns since 1970 UTC."""
        ...

    def monotonic(self) -> float:
        """Seconds that never run backwards and go on while the process or the machine is stopped."""
        ...


class SystemClock:
    """The machine's."""

    def wall_ns(self) -> int:
        """See `Clock`."""
        return time.time_ns()

    def monotonic(self) -> float:
        """See `Clock`."""
        return time.clock_gettime(_BOOTTIME)


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


@dataclass(frozen=True, slots=True)
class ShardLimits:
    """What a shard takes on at most."""

    group_rows: int = ROWS_MAX
    group_bytes: int = 1 << 20  # of rows and notes in one record
    overlap_rows: int = 2_048  # from so many queued rows on the next group is applied during an append
    queue_rows: int = 65_536  # clients' rows and reads; beyond: OVERLOADED
    queue_bytes: int = 64 << 20
    outbox_rows: int = 262_144  # legs under way to one shard; beyond, transfers to it are OVERLOADED
    waiting_rows: int = 65_536  # repeats of ids that are in flight; beyond: UNSURE
    wait_s: float = 30.0  # for another shard's answer; then the caller is told UNSURE
    pace_rows: int = 8  # a group of so many rows, and of less than `overlap_rows`, is followed by the next one
    pace_s: float = 0.0  # so long after its start; worth it where money crosses shards (cluster/wiring.py)
    outcomes_s: float = 0.01  # how long settles and reverts wait for other rows to go along with
    lease_s: float = 1.0
    tick_s: float = 0.1
    expire_rows: int = 4_096


class _Work:
    """Rows of one request (or of the shard itself, then without replies)."""

    __slots__ = ("count", "note_bytes", "notes", "replies", "request", "rows", "start")

    def __init__(self, rows: Array, notes: Notes | None, replies: Replies | None, request: int) -> None:
        self.rows = rows
        self.count = len(rows)
        self.notes = notes
        self.note_bytes = 0 if notes is None else sum(map(len, filter(None, notes)))
        self.replies = replies
        self.request = request
        self.start = 0


class _Read:
    """One read request."""

    __slots__ = ("actors", "ids", "replies", "request", "states")

    def __init__(self, ids: Array, actors: Array, replies: Replies, request: int) -> None:
        self.ids = ids
        self.actors = actors
        self.replies = replies
        self.request = request
        self.states: Array | None = None


class _Group:
    """What is applied, appended and answered together."""

    __slots__ = ("answered", "flight", "kinds", "offset", "payload", "positions", "reads", "results", "rows", "works")

    def __init__(self, works: list[_Work], reads: list[_Read]) -> None:
        self.works = works
        self.reads = reads
        self.rows: Array = _NONE
        self.results: Array = _NO_RESULTS
        self.payload: bytes | None = None
        self.flight: Array | None = None  # numbers of the rows newly in flight
        self.kinds: frozenset[int] = frozenset()
        self.positions: dict[int, int] = {}
        self.answered = False

    def resolve(self, numbers: Array, results: Array, positions: dict[int, int]) -> None:
        """Tell the callers of rows `numbers`, which were IN_FLIGHT in the answer."""
        starts = [work.start for work in self.works]
        owners = np.searchsorted(starts, numbers, side="right") - 1
        for owner in np.unique(owners).tolist():
            work = self.works[owner]
            if work.replies is not None:
                own = owners == owner
                work.replies.resolved(work.request, numbers[own] - work.start, results[own], positions)


class _Flight:
    """Rows of an answered group whose callers wait for other shards."""

    __slots__ = ("group", "number", "rows", "since")

    def __init__(self, number: int, since: float, group: _Group, rows: Array) -> None:
        self.number = number
        self.since = since
        self.group = group
        self.rows = rows  # their numbers in the group


_NONE: Final = np.zeros(0, EVENT)
_NO_RESULTS: Final = np.zeros(0, RESULT)


class Shard:
    """One partition's book and its only writer.

    `apply`, `legs` and `read` return at once; answers go to the replies they were given. Rows must be (n,) EVENT, n <=
    `ROWS_MAX`, writable and the shard's from then on; their last chain must be closed (`frames.check_events`).
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
                decided=self._decided,
                enqueue=self._enqueue_outcomes,
                failpoint=failpoint,
                fatal=self.fatal,
            )
        )
        self._book: Book
        self._writer: Writer
        self._chain: record.Chain
        self._sequence = 0
        self._offset = -1  # of the newest durable record
        self._last_ns = 0
        self._lease_end = float("-inf")
        self._balances = np.zeros(ROWS_MAX, BALANCE)
        self._utc_offset = (-1, 0)
        self._outcomes: deque[_Work] = deque()
        self._legs: deque[_Work] = deque()
        self._expiries: deque[_Work] = deque()
        self._clients: deque[_Work | _Read] = deque()
        self._queued_rows = 0  # of all lanes
        self._client_rows = 0
        self._client_bytes = 0
        self._next: _Group | None = None
        self._committing = False
        self._preparing = False
        self._wake = asyncio.Event()
        self._running: asyncio.Task[None] | None = None
        self._ticking: asyncio.TimerHandle | None = None
        self._flying: dict[int, _Flight] = {}  # callers who wait for other shards
        self._flight_number = 0
        self._also: dict[tuple[int, int], list[tuple[float, _Group, int]]] = {}  # who repeated an id in flight
        self._also_rows = 0
        self._groups = 0
        self._rows = 0
        self._append_s = 0.0

    # Life.

    async def start(self) -> None:
        """Fence, recover, wait out the predecessor's lease, serve.

        Raises:
            JournalError: the journal cannot be read or is broken; nothing is served.
            AssertionError: replay gave other codes than the journal has.
        """
        asked = self._clock.monotonic()
        self._writer = await self._recovery.fence()
        opened = self._clock.monotonic()
        try:
            recovered = await self._recovery.replay(self._writer)
        except BaseException:
            await self._writer.close()
            raise
        self._book, self._chain = recovered.book, recovered.chain
        self._sequence, self._offset, self._last_ns = recovered.sequence, recovered.offset, recovered.last_ns
        if not recovered.alone:
            # A little more than the lease: the two clocks may not run alike.
            await asyncio.sleep(max(0.0, opened + 1.05 * self.limits.lease_s - self._clock.monotonic()))
        self._lease_end = asked + self.limits.lease_s
        self.serving = True
        self._running = asyncio.get_running_loop().create_task(self._run())
        if self._outbox is not None:
            legs = ledger.in_flight(self._book)
            if len(legs):
                self._outbox.send(legs)
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
        now = self._clock.monotonic()
        return {
            "partition": self.partition,
            "epoch": self.epoch,
            "offset": self._offset + 1,
            "accounts": book.accounts,
            "transfers": book.transfers,
            "ids": book.ids,
            "holds": book.holds,
            "in_flight": book.in_flight,
            "transit": book.transit,
            "queue_rows": self._queued_rows,
            "outbox_rows": 0 if self._outbox is None else int(self._outbox.rows.sum()),
            "stuck_legs": 0 if self._outbox is None else self._outbox.stuck,
            "groups": self._groups,
            "rows": self._rows,
            "last_append_ms": self._append_s * 1e3,
            "lease_ms": max(0.0, self._lease_end - now) * 1e3,
        }

    # What comes in.

    def apply(self, rows: Array, notes: Notes | None, replies: Replies, request: int) -> None:
        """Queue clients' events, or answer OVERLOADED. A shard that stops is silent: its streams end, and the client
        sends the same ids to the next one."""
        if self._stopping:
            return
        work = _Work(rows, notes, replies, request)
        size = rows.nbytes + work.note_bytes
        full = self._client_rows + work.count > self.limits.queue_rows
        if full or self._client_bytes + size > self.limits.queue_bytes:
            replies.answered(request, _refusals(work.count, Code.OVERLOADED), {})
            return
        if self._outbox is not None and int(self._outbox.rows.max()) > self.limits.outbox_rows:
            work = self._thinned(work)
            if work.count == 0:
                return
        self._client_rows += work.count
        self._client_bytes += size
        self._clients.append(work)
        self._queued(work.count)

    def legs(self, rows: Array, replies: Replies, request: int) -> None:
        """Queue another shard's credit legs. Never refused: few batches per shard are under way, so they are few."""
        self._legs.append(_Work(rows, None, replies, request))
        self._queued(len(rows))

    def read(self, ids: Array, actors: Array, replies: Replies, request: int) -> None:
        """Queue a read, in order with the events, or answer OVERLOADED for each account."""
        if self._stopping:
            return
        if len(ids) and self._client_rows + len(ids) > 2 * self.limits.queue_rows:
            states = np.zeros(len(ids), ACCOUNT)
            states["id"], states["code"] = ids, Code.OVERLOADED
            replies.states(request, states, {})
            return
        self._client_rows += len(ids)
        self._clients.append(_Read(ids, actors, replies, request))
        self._queued(0)

    def suspect(self, epoch: int) -> None:
        """Somebody knows a newer epoch than ours: make sure with the next group that we are not fenced."""
        if self.serving and epoch > self.epoch:
            self._lease_end = float("-inf")
            self.read(np.zeros(0, np.uint64), np.zeros(0, np.uint64), _Nobody(), 0)

    def _queued(self, rows: int) -> None:
        self._queued_rows += rows
        self._wake.set()
        if self._committing and not self._preparing and self._queued_rows >= self.limits.overlap_rows:
            self._preparing = True
            asyncio.get_running_loop().call_soon(self._prepare_ahead)

    def _thinned(self, work: _Work) -> _Work:
        """Without the transfers to shards that have not answered for long: those are OVERLOADED."""
        assert self._outbox is not None  # noqa: S101
        homes = (work.rows["credit"] % np.uint64(SLOTS)) % np.uint64(self.partitions)
        crossing = (work.rows["kind"] == Kind.TRANSFER) | (work.rows["kind"] == Kind.REFUND)
        refused = crossing & (self._outbox.rows[homes] > self.limits.outbox_rows)
        if not refused.any() or work.replies is None:
            return work
        replies = _Thinned(work.replies, refused)
        notes = None if work.notes is None else [work.notes[place] for place in np.flatnonzero(~refused).tolist()]
        thin = _Work(work.rows[~refused], notes, replies, work.request)
        if thin.count == 0:
            replies.answered(work.request, _NO_RESULTS, {})
        return thin

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
        return bool(self._outcomes) and not (self._legs or self._expiries or self._clients)

    async def _company(self) -> None:
        """Nobody waits for a settle: rather than hold up what comes next with an append of its own, it goes along."""
        self._wake.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.limits.outcomes_s):
                while self._only_outcomes() and not self._stopping:
                    await self._wake.wait()
                    self._wake.clear()

    async def _pace(self, begun: float) -> None:
        """A group costs the same whatever is in it: when many come with few rows each, wait a little for more."""
        rest_s = begun + self.limits.pace_s - self._clock.monotonic()
        if rest_s > 0 and self._queued_rows < self.limits.overlap_rows and not self._stopping:
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

    def _take(self) -> _Group | None:
        """Everything queued, up to one record. Outcomes go first: a repeated id must meet the outcome its first caller
        was told. Clients' rows wait until there are none of them left."""
        works: list[_Work] = []
        room, space = self.limits.group_rows, self.limits.group_bytes
        for lane in (self._outcomes, self._legs, self._expiries):
            while lane and (lane[0].count <= room or not works):
                work = lane.popleft()
                room -= work.count
                space -= work.rows.nbytes
                works.append(work)
        reads: list[_Read] = []
        while self._clients and not self._outcomes:
            item = self._clients[0]
            if isinstance(item, _Read):
                if len(item.ids) > room and (works or reads):
                    break
                room -= len(item.ids)
                self._client_rows -= len(item.ids)
                reads.append(item)
            else:
                size = item.rows.nbytes + item.note_bytes
                if (item.count > room or size > space) and (works or reads):
                    break
                room, space = room - item.count, space - size
                self._client_rows -= item.count
                self._client_bytes -= size
                works.append(item)
            self._clients.popleft()
        if not works and not reads:
            return None
        return _Group(works, reads)

    def _prepare(self) -> _Group | None:
        group = self._take()
        if group is None:
            return None
        works = group.works
        if works:
            start = 0
            for work in works:
                work.start = start
                start += work.count
            self._queued_rows -= start
            group.rows = works[0].rows if len(works) == 1 else _joined(works)
            self._apply(group)
        if group.reads:
            now = max(self._clock.wall_ns(), self._last_ns)
            for read in group.reads:
                read.states = ledger.read_accounts(self._book, read.ids, read.actors, now)
        return group

    def _apply(self, group: _Group) -> None:
        rows = group.rows
        self._last_ns = ledger.stamp(rows, self._clock.wall_ns(), self._last_ns)
        utc_offset_s = self._utc_offset_s(int(rows["at"][0]))
        results = group.results = np.zeros(len(rows), RESULT)
        if len(rows) > len(self._balances):
            self._balances = np.zeros(len(rows), BALANCE)
        ledger.apply(self._book, rows, results, self._balances[: len(rows)], utc_offset_s)
        keep = journaled(rows, results)
        if keep is None or keep.any():
            notes = _notes(group.works)
            if keep is not None:
                notes = None if notes is None else [notes[place] for place in np.flatnonzero(keep).tolist()]
                rows, results = rows[keep], results[keep]
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
        if self._outbox is not None:
            self._find_flights(group)
            self._failpoint_of(group, "applied")

    def _find_flights(self, group: _Group) -> None:
        flying = group.results["code"] == _IN_FLIGHT
        if self._failpoint is not nothing:
            group.kinds = frozenset(np.unique(group.rows["kind"]).tolist())
        if not flying.any():
            return
        repeated = flying & ((group.results["flags"] & _REPLAYED) != 0)
        flight = np.flatnonzero(flying & ~repeated)
        group.flight = flight if len(flight) else None
        now = self._clock.monotonic()
        for number in np.flatnonzero(repeated).tolist():
            row = group.rows[number]
            if self._also_rows >= self.limits.waiting_rows:
                group.results["code"][number] = Code.UNSURE
                continue
            self._also_rows += 1
            self._also.setdefault((int(row["id_hi"]), int(row["id_lo"])), []).append((now, group, number))

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
        """Return when what the group shows is durable and was not taken over by another writer when it was evaluated.

        An append, or a look at the log's end, that was sent after the reads were evaluated and found us unfenced proves
        them current; the lease spares that look.
        """
        sent = self._clock.monotonic()
        if group.payload is not None:
            self._offset = await self._writer.append(group.payload)
            self._append_s = self._clock.monotonic() - sent
        elif sent >= self._lease_end:
            await self._writer.confirm()
        else:
            return
        self._lease_end = sent + self.limits.lease_s

    def _answer(self, group: _Group) -> None:
        self._groups += 1
        self._rows += len(group.rows)
        if self._outbox is not None:
            self._failpoint_of(group, "durable")
        positions = group.positions
        if self._offset > positions.get(self.partition, -1):
            positions = group.positions = {**positions, self.partition: self._offset}
        group.answered = True
        answers: dict[Replies, list[tuple[int, Array]]] = {}
        for work in group.works:
            if work.replies is not None:
                results = group.results[work.start : work.start + work.count]
                answers.setdefault(work.replies, []).append((work.request, results))
        for replies, theirs in answers.items():
            replies.answered_all(theirs, positions)
        for read in group.reads:
            assert read.states is not None  # noqa: S101
            read.replies.states(read.request, read.states, {self.partition: self._offset})
        if group.flight is not None and self._outbox is not None:
            self._flight_number += 1
            flight = _Flight(self._flight_number, self._clock.monotonic(), group, group.flight)
            self._flying[flight.number] = flight
            legs = _legs(self._book, group.rows[group.flight], group.results[group.flight])
            self._outbox.send(legs, flight, group.flight)

    # Across shards.

    def _enqueue_outcomes(self, rows: Array) -> None:
        self._outcomes.append(_Work(rows, None, None, 0))
        self._queued(len(rows))

    def _decided(self, tag: object, numbers: Array, legs: Array, results: Array, positions: dict[int, int]) -> None:
        """The other shard has answered: tell whoever waits. Its record is durable, and it alone decides."""
        codes = results["code"].copy()
        codes[codes == Code.LEG_OUT_OF_ORDER] = Code.UNSURE
        if tag is not None:
            assert isinstance(tag, _Flight)  # noqa: S101
            self._resolve(tag, numbers, codes, positions)
        if self._also:
            ids = zip(legs["id_hi"].tolist(), legs["id_lo"].tolist(), codes.tolist(), strict=True)
            for hi, lo, code in ids:
                for _, group, number in self._also.pop((hi, lo), ()):
                    self._resolve_one(group, number, code, positions)

    def _resolve(self, flight: _Flight, numbers: Array, codes: Array, positions: dict[int, int]) -> None:
        if flight.number not in self._flying:
            return  # they were told UNSURE
        if len(flight.rows) == len(numbers):
            del self._flying[flight.number]
        else:
            flight.rows = flight.rows[~np.isin(flight.rows, numbers)]
        group = flight.group
        results = group.results[numbers]
        results["code"] = codes
        group.resolve(numbers, results, {**group.positions, **positions})

    def _resolve_one(self, group: _Group, number: int, code: int, positions: dict[int, int]) -> None:
        self._also_rows -= 1
        if not group.answered:
            group.results["code"][number] = code
            group.positions = {**group.positions, **positions}
            return
        results = group.results[number : number + 1].copy()
        results["code"] = code
        group.resolve(np.array([number]), results, {**group.positions, **positions})

    # Time.

    def _tick(self) -> None:
        """Expire holds that are due, and tell callers who have waited too long for another shard."""
        if self._dead or self._stopping:
            return
        self._ticking = asyncio.get_running_loop().call_later(self.limits.tick_s, self._tick)
        try:
            self._expire_holds()
            if self._flying or self._also:
                self._give_up_waiting(self._clock.monotonic() - self.limits.wait_s)
        except Exception as error:  # noqa: BLE001 - as in `_run`
            self.fatal(error)

    def _expire_holds(self) -> None:
        """One batch at a time; it leaves the heap of the due only when it is applied."""
        if self._expiries:
            return
        due = ledger.due_holds(self._book, max(self._clock.wall_ns(), self._last_ns), self.limits.expire_rows)
        if len(due):
            self._expiries.append(_Work(due, None, None, 0))
            self._queued(len(due))

    def _give_up_waiting(self, before: float) -> None:
        for flight in list(self._flying.values()):
            if flight.since > before:
                break  # in the order of their start
            del self._flying[flight.number]
            results = flight.group.results[flight.rows]
            results["code"] = Code.UNSURE
            flight.group.resolve(flight.rows, results, flight.group.positions)
        for key, waiters in list(self._also.items()):
            late = [waiter for waiter in waiters if waiter[0] <= before]
            if late:
                self._also[key] = [waiter for waiter in waiters if waiter[0] > before]
                for _, group, number in late:
                    self._resolve_one(group, number, Code.UNSURE, {})
                if not self._also[key]:
                    del self._also[key]


def journaled(rows: Array, results: Array) -> npt.NDArray[np.bool_] | None:
    """Mask of the rows that a record must have; None = all.

    A row that changed nothing (a repeat, a stateless refusal) is left out, unless another row of its chain did: then
    the chain is kept whole, so that replay sees the same chain.
    """
    plain = bytes(len(results) * results["code"].itemsize)
    if results["code"].tobytes() == plain == results["flags"].tobytes():
        return None  # as nearly always; comparing bytes is a quarter of the price
    idle = (results["code"] >= _FIRST_STATELESS) | ((results["flags"] & _REPLAYED) != 0)
    if not idle.any():
        return None
    keep: npt.NDArray[np.bool_] = ~idle
    linked = (rows["flags"] & _LINKED) != 0
    if linked.any() and keep.any():
        starts = np.flatnonzero(np.concatenate(([True], ~linked[:-1])))
        whole = np.maximum.reduceat(keep, starts)
        keep = np.repeat(whole, np.diff(starts, append=len(rows)))
    return keep


def _legs(book: Book, rows: Array, results: Array) -> Array:
    """The credit legs of rows that just went in flight."""
    legs = np.zeros(len(rows), EVENT)
    for name in ("id_hi", "id_lo", "debit", "credit", "amount"):
        legs[name] = rows[name]
    legs["span"] = results["at"]
    legs["kind"] = Kind.CREDIT_LEG
    legs["reason"] = rows["kind"]
    posts = np.flatnonzero(rows["kind"] == Kind.POST)
    if len(posts):  # payee and amount are the hold's: the book has them
        known = {(int(leg["id_hi"]), int(leg["id_lo"])): leg for leg in ledger.in_flight(book)}
        for place in posts.tolist():
            legs[place] = known[int(rows["id_hi"][place]), int(rows["id_lo"][place])]
    return legs


def _joined(works: list[_Work]) -> Array:
    """One array of all rows, copied once."""
    return np.frombuffer(bytearray().join([work.rows.tobytes() for work in works]), EVENT)


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
    """Replies that nobody waits for."""

    def answered(self, request: int, results: Array, positions: dict[int, int]) -> None:
        """See `Replies`."""

    def resolved(self, request: int, indices: Array, results: Array, positions: dict[int, int]) -> None:
        """See `Replies`."""

    def states(self, request: int, states: Array, positions: dict[int, int]) -> None:
        """See `Replies`."""


class _Thinned(_Nobody):
    """Replies to a request some of whose rows were refused before they were queued."""

    def __init__(self, replies: Replies, refused: Array) -> None:
        self._replies = replies
        self._refused = refused
        self._places = np.flatnonzero(~refused)

    def answered(self, request: int, results: Array, positions: dict[int, int]) -> None:
        """See `Replies`."""
        whole = _refusals(len(self._refused), Code.OVERLOADED)
        whole[self._places] = results
        self._replies.answered(request, whole, positions)

    def resolved(self, request: int, indices: Array, results: Array, positions: dict[int, int]) -> None:
        """See `Replies`."""
        self._replies.resolved(request, self._places[indices], results, positions)
