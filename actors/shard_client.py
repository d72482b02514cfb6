"""What a Serve replica (and a shard, for its legs) holds: id → shard, and few batches per shard at a time.

Calls gather in a channel while the batches before them are on their way; no timers. A lost link is made again with what
the directory says then, and the same ids are sent again until each call's deadline. A call that was sent never raises:
rows whose outcome could not be learnt in time are `Code.UNSURE`, and repeating their ids is safe.

That nothing was done is said only of what was sent once at most. A refusal that depends on the moment, such as for want
of room, says of what was sent before only that it was not done again: such rows are UNSURE too.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import struct
import time
from collections import deque
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final, NamedTuple, cast

import numpy as np

from actors import frames
from actors.frames import Array, FrameType, Malformed, Notes
from actors.transport import Link, Transport, Unreachable
from storage.events import ACCOUNT, RESULT, SLOTS, Code, Flag, Kind
from storage.found import Found
from storage.ids import Id

_LOG: Final = logging.getLogger(__name__)

NEVER: Final = float("inf")
"""A deadline that does not come."""

_LARGE: Final = frames.ROWS_MAX // 2
_NOTE_BYTES: Final = 1 << 20
_WINDOW: Final = 1  # batches under way; a second one made more groups of fewer rows, and a tenth less of all
_WINDOW_FULL: Final = 3  # when they are large
_TICK_S: Final = 0.02
_STALL_S: Final = 0.5
_BACKOFF_S: Final = (0.01, 0.5)
# Plain integers on the hot path: on Python 3.11 an enum's member is looked up by a function.
_INTERNAL: Final = tuple(map(int, (Kind.EXPIRE, Kind.CREDIT_LEG, Kind.SETTLE, Kind.REVERT)))
_LINKED: Final = int(Flag.LINKED)
_IN_FLIGHT: Final = int(Code.IN_FLIGHT)
_SLOT: Final = 0xFFF  # the bits of an id that say its slot
_UNSURE: Final = int(Code.UNSURE)
_DOUBTFUL: Final = (Code.OVERLOADED, Code.NOT_SERVING, Code.BOOK_FULL, Code.OUTBOX_FULL, Code.CHAIN_REFUSED)
# By code (an u16): what another attempt, at another moment, need not have met.
_OF_THE_MOMENT: Final = np.isin(np.arange(1 << 16), (*_DOUBTFUL, Code.ID_IN_FUTURE, Code.ID_EXPIRED))


class ShardUnavailable(Exception):  # noqa: N818
    """A read was not answered before its deadline, or by a shard that has too much to do or does not serve now."""


class Outcome(NamedTuple):
    """`results`: (n,) RESULT in the order of the rows. `positions`: partition → journal offset to wait for before a
    read that must see these rows."""

    results: Array
    positions: dict[int, int]


class States(NamedTuple):
    """`states`: (n,) ACCOUNT. `positions`: partition → the last journal offset that they reflect."""

    states: Array
    positions: dict[int, int]


@dataclass(frozen=True, slots=True)
class ShardStats:
    """How one shard is doing."""

    partition: int
    name: str
    pid: int
    host: str
    epoch: int
    offset: int  # that the next record will get
    accounts: int
    transfers: int
    ids: int
    ids_window_s: float  # age of the oldest id that is remembered
    holds: int
    in_flight: int
    transit: int  # balance of the transit account, centavos
    queue_rows: int
    read_rows: int  # accounts that wait to be read
    outbox_rows: int
    groups: int
    rows: int
    last_append_ms: float
    clock_ns: int  # what its machine's clock says
    clock_ahead_s: float  # how far that is ahead of what can be believed; while it is not 0 the shard does not serve
    capacity: dict[str, int]  # rows of each kind that there is room for


Tell = Callable[[Array, dict[int, int]], None]
"""What `ShardClient.submit` calls with the results, (n,) RESULT, and the positions."""


class _Told:
    """Has what a `_Call` needs of a future, and calls instead of waking a task."""

    __slots__ = ("_ended", "_tell")

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._ended = False

    def done(self) -> bool:
        return self._ended

    def set_result(self, outcome: tuple[Array, dict[int, int]]) -> None:
        self._ended = True
        try:
            self._tell(*outcome)
        except Exception:  # noqa: BLE001 - the others of the batch must be told all the same
            _LOG.exception("whoever was told an outcome failed")


class _Call:
    """One caller's rows, ids or question, and where the answers go. Parts of it may go to several shards."""

    __slots__ = ("answers", "deadline", "dtype", "future", "positions", "size", "waiting")

    def __init__(self, future: asyncio.Future[Any], deadline: float, size: int, dtype: np.dtype[Any] | None) -> None:
        self.future = future
        self.deadline = deadline
        self.size = size
        self.dtype = dtype  # RESULT for events; they end as UNSURE where others end with ShardUnavailable
        self.positions: dict[int, int] = {}
        self.answers: Array | None = None  # made only when the answers do not come all at once
        self.waiting = 1  # parts

    def collect(self) -> Array:
        """The answers so far; rows without one are UNSURE."""
        if self.answers is None:
            self.answers = np.zeros(self.size, self.dtype)
            self.answers["code"] = Code.UNSURE
        return self.answers

    def part_done(self, part: _Part, rows: Any, positions: dict[int, int]) -> None:
        """All rows of one part are final."""
        if self.future.done():  # cancelled, or past its deadline
            return
        if self.answers is None and self.waiting == 1:
            self.future.set_result((rows, positions))
            return
        answers = self.collect()
        answers[slice(None) if part.places is None else part.places] = rows
        merge_positions(self.positions, positions)
        self.waiting -= 1
        if self.waiting == 0:
            self.future.set_result((answers, self.positions))

    def part_later(self, part: _Part, rows: Array, positions: dict[int, int]) -> None:
        """Some rows of a part are final, the IN_FLIGHT ones are not: keep what is, in case the deadline comes."""
        merge_positions(self.positions, positions)
        final = rows["code"] != Code.IN_FLIGHT
        places = np.arange(part.count) if part.places is None else part.places
        self.collect()[places[final]] = rows[final]

    def doubt(self, part: _Part) -> None:
        """A part is sent again as a whole, because some of its rows are not final: what was refused for the moment may
        be carried out now."""
        if self.answers is not None and self.dtype is RESULT:
            places = slice(None) if part.places is None else part.places
            rows = self.answers[places]
            _doubt(rows)
            self.answers[places] = rows

    def expire(self) -> None:
        """The deadline has come."""
        if self.future.done():
            return
        if self.dtype is RESULT:
            self.future.set_result((self.collect(), self.positions))
        else:
            self.future.set_exception(ShardUnavailable("no answer before the deadline"))


class _Finding:
    """What `ShardClient.finding` gives."""

    __slots__ = ("_future",)

    def __init__(self, future: asyncio.Future[Any]) -> None:
        self._future = future
        future.add_done_callback(_noticed)

    def __await__(self) -> Generator[Any, None, Found]:
        (found, code), _ = yield from self._future
        if code is not Code.OK:
            raise ShardUnavailable(f"a shard tells nothing: {code.name}")
        return cast("Found", found)


def _noticed(future: asyncio.Future[Any]) -> None:
    """Nobody has to hear of its failure."""
    if not future.cancelled():
        future.exception()


class _Part:
    """What one shard gets of a call."""

    __slots__ = ("call", "count", "data", "note_bytes", "notes", "pending", "places", "sent_before", "start")

    def __init__(self, call: _Call, data: bytes, count: int, notes: Notes | None, places: Array | None) -> None:
        self.call = call
        self.data = data
        self.count = count
        self.notes = notes
        self.note_bytes = 0 if notes is None else sum(map(len, filter(None, notes)))
        self.places = places  # its rows' numbers in the call; None = all of them
        self.start = 0  # its first row's number in the batch that carries it
        self.pending = 0  # rows that the batch's answer left IN_FLIGHT
        self.sent_before = False  # on a link that was lost


class _Channel:
    """Parts of one type of request to one shard: a batch on its way, the next one gathering."""

    __slots__ = ("busy", "kind", "pumping", "queue", "rows")

    def __init__(self, kind: FrameType) -> None:
        self.kind = kind
        self.queue: deque[_Part] = deque()
        self.rows = 0  # queued
        self.busy = 0  # frames that were not answered yet
        self.pumping = False

    def ready(self) -> bool:
        """The next batch gathers while the ones before it are under way; a large one has gathered enough."""
        return bool(self.queue) and (self.busy < _WINDOW or (self.busy < _WINDOW_FULL and self.rows >= _LARGE))

    def take(self) -> list[_Part]:
        """The next batch's parts, without those whose callers have gone."""
        parts: list[_Part] = []
        rows = note_bytes = 0
        while self.queue:
            part = self.queue[0]
            if part.call.future.done():
                self.queue.popleft()
                self.rows -= part.count
                continue
            rows += part.count
            note_bytes += part.note_bytes
            if parts and (rows > frames.ROWS_MAX or note_bytes > _NOTE_BYTES):
                break
            self.queue.popleft()
            self.rows -= part.count
            part.start = rows - part.count
            parts.append(part)
        return parts

    def put_back(self, parts: list[_Part]) -> None:
        """Before all others, in their order: they are sent again."""
        for part in parts:
            part.sent_before = True
            part.call.doubt(part)
        self.queue.extendleft(reversed(parts))
        self.rows += sum(part.count for part in parts)


class _Batch:
    """Parts that travelled in one frame."""

    __slots__ = ("channel", "open_parts", "parts", "positions", "rows", "since", "starts")

    def __init__(self, channel: _Channel, parts: list[_Part], since: float) -> None:
        self.channel = channel
        self.parts = parts
        self.since = since
        self.rows: Array | None = None  # the first answer, when it left rows IN_FLIGHT
        self.positions: dict[int, int] = {}
        self.starts: Array | None = None  # where the parts begin, when it left rows of parts of several
        self.open_parts = 0  # with rows IN_FLIGHT

    @property
    def count(self) -> int:
        """Rows in the frame."""
        last = self.parts[-1]
        return last.start + last.count

    def doubt(self, rows: Array) -> None:
        """Whose refusal another attempt may have escaped, is told UNSURE. What is sent again goes first in a batch."""
        for part in self.parts:
            if not part.sent_before:
                return
            _doubt(rows[part.start : part.start + part.count])


class _Lane:
    """Everything between this process and one shard."""

    def __init__(self, client: ShardClient, partition: int) -> None:
        self.partition = partition
        self.epoch = 0  # newest seen; an older shard is not spoken to
        self.events = _Channel(client.events)
        self.reads = _Channel(FrameType.READ)
        self.finds = _Channel(FrameType.FIND)
        self.questions = _Channel(FrameType.STATS)
        self.clocks = _Channel(FrameType.CLOCK)
        self.sent: dict[int, _Batch] = {}
        self._client = client
        self._link: Link | None = None
        self._lost_link: Link | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._checking: asyncio.Task[None] | None = None
        self._checked = 0.0
        self._connected = -NEVER
        self._request = 0

    @property
    def channels(self) -> tuple[_Channel, ...]:
        """Each type of request gathers by itself."""
        return self.events, self.reads, self.finds, self.questions, self.clocks

    def put(self, channel: _Channel, part: _Part) -> None:
        """Queue a part; what comes within the same turn of the loop travels together."""
        channel.queue.append(part)
        channel.rows += part.count
        if not channel.pumping:
            channel.pumping = True
            self._client.loop.call_soon(self._pump, channel)

    def _pump(self, channel: _Channel) -> None:
        channel.pumping = False
        if self._link is None:
            if channel.queue:
                self._connect()
            return
        link = self._link
        while channel.ready() and self._link is link:
            parts = channel.take()
            if not parts:
                return
            self._request += 1
            self.sent[self._request] = _Batch(channel, parts, self._client.clock())
            channel.busy += 1
            link.send(_encode(channel.kind, self._request, parts))

    def received(self, link: Link, kind: FrameType, request: int, payload: bytearray) -> None:
        """See `Receiver`."""
        batch = self.sent.get(request)
        if link is not self._link or batch is None:
            return
        if kind is FrameType.LATER:
            self._later(request, batch, frames.decode_answer(kind, payload))
            return
        if batch.rows is not None:
            return  # answered before: a network may deliver twice
        if kind is FrameType.STATS_ANSWER:
            stats = json.loads(payload)
            del self.sent[request]
            for part in batch.parts:
                part.call.part_done(part, stats, {})
        elif kind is FrameType.FOUND:
            found, code = frames.decode_found(payload)
            if len(found) != batch.count:
                raise Malformed("another number of ids than asked")
            del self.sent[request]
            for part in batch.parts:
                part.call.part_done(part, (found[part.start], code), {})
        else:
            answer = frames.decode_answer(kind, payload)
            if len(answer.rows) != batch.count:
                raise Malformed("another number of rows than asked")
            self._answered(request, batch, answer)
        batch.channel.busy -= 1
        self._pump(batch.channel)

    def _answered(self, request: int, batch: _Batch, answer: frames.Answer) -> None:
        rows, positions = answer.rows, answer.positions
        open_rows = None
        if batch.channel is self.events:
            batch.doubt(rows)
            open_rows = rows["code"] == _IN_FLIGHT
        if open_rows is None or not open_rows.any():
            del self.sent[request]
            for part in batch.parts:
                part.call.part_done(part, rows[part.start : part.start + part.count], positions)
            return
        batch.rows, batch.positions = rows, positions
        parts = batch.parts
        if len(parts) == len(rows):  # single calls, as most are: NumPy would cost more than it does for them
            for part, in_flight in zip(parts, open_rows.tolist(), strict=True):
                if in_flight:
                    part.pending = 1
                    batch.open_parts += 1
                else:
                    part.pending = 0  # it may have been sent before
                    part.call.part_done(part, rows[part.start : part.start + 1], positions)
            return
        batch.starts = np.array([part.start for part in parts])
        for part in parts:
            end = part.start + part.count
            part.pending = int(np.count_nonzero(open_rows[part.start : end]))
            batch.open_parts += bool(part.pending)
            if part.pending == part.count:
                continue
            if part.pending:
                part.call.part_later(part, rows[part.start : end], positions)
            else:
                part.call.part_done(part, rows[part.start : end], positions)

    def _later(self, request: int, batch: _Batch, later: frames.Answer) -> None:
        if batch.rows is None or later.indices is None:
            raise Malformed("later than what?")
        indices = later.indices
        if len(indices) == 0 or int(indices.max()) >= len(batch.rows):
            raise Malformed("rows that were not asked")
        _doubt(later.rows)  # they were done, whatever stands in the way of learning how
        batch.positions = dict(batch.positions)
        merge_positions(batch.positions, later.positions)
        if batch.starts is None:
            self._singles_later(batch, indices.tolist(), later.rows)
        else:
            self._parts_later(batch, batch.rows, batch.starts, indices, later.rows)
        if batch.open_parts == 0:
            del self.sent[request]

    def _singles_later(self, batch: _Batch, indices: list[int], rows: Array) -> None:
        for place, index in enumerate(indices):
            part = batch.parts[index]
            if part.pending:
                part.pending = 0
                batch.open_parts -= 1
                part.call.part_done(part, rows[place : place + 1], batch.positions)

    def _parts_later(self, batch: _Batch, known: Array, starts: Array, indices: Array, rows: Array) -> None:
        fresh = known["code"][indices] == _IN_FLIGHT
        indices = indices[fresh]
        known[indices] = rows[fresh]
        owners, counts = np.unique(np.searchsorted(starts, indices, side="right") - 1, return_counts=True)
        for owner, count in zip(owners.tolist(), counts.tolist(), strict=True):
            part = batch.parts[owner]
            part.pending -= count
            own = known[part.start : part.start + part.count]
            if part.pending == 0:
                batch.open_parts -= 1
                part.call.part_done(part, own, batch.positions)
            else:
                part.call.part_later(part, own, batch.positions)

    def lost(self, link: Link) -> None:
        """See `Receiver`: everything unanswered is sent again on the next link."""
        self._lost_link = link
        if link is not self._link:
            return
        self._link = None
        batches, self.sent = self.sent, {}
        for channel in self.channels:
            unanswered = [
                part
                for batch in batches.values()
                if batch.channel is channel
                for part in batch.parts
                if (batch.rows is None or part.pending) and not part.call.future.done()
            ]
            channel.put_back(unanswered)
            channel.busy = 0
        if any(channel.queue for channel in self.channels):
            self._connect()

    def _connect(self) -> None:
        if self._connecting is None and not self._client.closed:
            self._connecting = self._client.loop.create_task(self._keep_connecting())

    async def _keep_connecting(self) -> None:
        delay_s, most_s = _BACKOFF_S
        try:
            if self._client.clock() - self._connected < most_s:
                await asyncio.sleep(delay_s)  # it was lost at once: do not spin
            while self._link is None and any(channel.queue for channel in self.channels):
                try:
                    link = await self._client.transport.connect(self.partition, self, self.epoch)
                except Unreachable:
                    await asyncio.sleep(delay_s * self._client.random.uniform(0.5, 1.0))
                    delay_s = min(2 * delay_s, most_s)
                    continue
                if link is not self._lost_link:
                    self.epoch = max(self.epoch, link.epoch)
                    self._link = link
                    self._connected = self._client.clock()
        finally:
            self._connecting = None
        for channel in self.channels:
            self._pump(channel)

    def tick(self, now: float) -> None:
        """End the calls whose deadline has come; look for a new shard when this one has gone silent."""
        for channel in self.channels:
            for part in channel.queue:
                if part.call.deadline <= now:
                    part.call.expire()
            while channel.queue and channel.queue[0].call.future.done():
                channel.rows -= channel.queue.popleft().count
        oldest = now
        for batch in self.sent.values():
            oldest = min(oldest, batch.since)
            for part in batch.parts:
                if part.call.deadline <= now:
                    part.call.expire()
        if now - oldest > _STALL_S and now - self._checked > _STALL_S and self._checking is None:
            self._checked = now
            self._checking = self._client.loop.create_task(self._check())

    async def _check(self) -> None:
        """A stopped process keeps its streams open, so silence alone must send us to the directory again."""
        try:
            link = self._link
            if link is not None and await self._client.transport.moved(link) and link is self._link:
                link.close()
                self.lost(link)
        finally:
            self._checking = None

    def idle(self) -> bool:
        """Nothing to watch."""
        return not self.sent and not any(channel.queue for channel in self.channels)

    async def close(self) -> None:
        """Give up: what is unanswered stays so."""
        for task in (self._connecting, self._checking):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        if self._link is not None:
            self._link.close()
        batches, self.sent = self.sent, {}
        queued = [part for channel in self.channels for part in channel.queue]
        for part in [*queued, *(part for batch in batches.values() for part in batch.parts)]:
            part.call.expire()


class ShardClient:
    """Applies events to the accounts' shards and reads accounts from them. One per process and event loop.

    Deadlines are moments of `clock` (`time.monotonic` unless given), seconds.
    """

    def __init__(
        self,
        transport: Transport,
        partitions: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        queue_rows_max: int = 65_536,
        seed: random.Random | None = None,
        events: FrameType = FrameType.APPLY,
    ) -> None:
        self.transport = transport
        self.partitions = partitions
        self.clock = clock
        self.random = seed or random.Random()  # noqa: S311 - spreads reconnections, guards nothing
        self.events = events
        self.closed = False
        self._queue_rows_max = queue_rows_max
        self._lanes = [_Lane(self, partition) for partition in range(partitions)]
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ticking: asyncio.TimerHandle | None = None

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop that this client lives on."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        return self._loop

    async def apply(self, rows: Array, notes: Notes | None, deadline: float) -> Outcome:
        """Apply `rows`: (n,) EVENT of any mix of shards, `notes` one per row or None. Never raises for what was sent.

        Each row goes to the shard of the slot that its id says. Rows unknown at the deadline are UNSURE. When too many
        wait here already, all of `rows` are OVERLOADED and none was sent; a shard may say so of its own. A chain of
        linked rows must lie on one shard and end within `rows`, else its rows are NOT_LINKABLE.

        Raises:
            ValueError: an internal kind of event, or notes of another number than rows.
        """
        if notes is not None and len(notes) != len(rows):
            raise ValueError("one note a row")
        if len(rows) == 1:
            call = self._call(deadline, 1, RESULT)
            self._apply_one(call, rows.tobytes(), notes)
        else:
            call = self._apply_many(rows, notes, deadline)
        return Outcome(*await call.future)

    def submit(self, row: bytes, note: bytes | None, deadline: float, tell: Tell) -> None:
        """`apply` for one event, the bytes of an EVENT, without a task that waits for it.

        `tell` is called once, on this loop, at the deadline at the latest, perhaps before this returns.

        Raises:
            ValueError: an internal kind of event; `tell` is not called.
        """
        told = cast("asyncio.Future[Any]", _Told(tell))
        self._apply_one(self._call(deadline, 1, RESULT, told), row, None if note is None else [note])

    async def read(self, ids: Array, actors: Array, deadline: float) -> States:
        """The accounts `ids`: (n,) u64, read on behalf of `actors`: (n,) u64 (0 = may read all).

        Raises:
            ShardUnavailable: a shard did not answer before the deadline, or has too much to do.
        """
        pairs = np.empty((len(ids), 2), np.uint64)
        pairs[:, 0], pairs[:, 1] = ids, actors
        homes = (pairs[:, 0] % np.uint64(SLOTS)) % np.uint64(self.partitions)
        call = self._call(deadline, len(ids), ACCOUNT)
        parts = []
        for partition in np.unique(homes).tolist():
            places = np.flatnonzero(homes == partition)
            for start in range(0, len(places), frames.ROWS_MAX):
                some = places[start : start + frames.ROWS_MAX]
                parts.append((partition, _Part(call, pairs[some].tobytes(), len(some), None, some)))
        self._put(call, parts, "reads")
        found = States(*await call.future)
        if (found.states["code"] == Code.OVERLOADED).any():
            raise ShardUnavailable("a shard has too much to do")
        if (found.states["code"] == Code.NOT_SERVING).any():
            raise ShardUnavailable("a shard does not serve: its clock is not believed")
        return found

    async def find(self, id_: Id, actor: int, deadline: float) -> Found:
        """What the shard of an id has done lately about it, and whether `actor` may act for the account that decided.

        Raises:
            ShardUnavailable: it did not answer before the deadline, or has too much to do, or does not serve.
        """
        return await self.finding(id_, actor, deadline)

    def finding(self, id_: Id, actor: int, deadline: float) -> Awaitable[Found]:
        """The same, asked at once, for who has something else to wait for first; it need not be awaited."""
        call = self._call(deadline, 1, None)
        part = _Part(call, _FIND.pack(*id_, actor), 1, None, None)
        self._put(call, [((id_[1] & _SLOT) % self.partitions, part)], "finds")
        return _Finding(call.future)

    async def head(self, partition: int, deadline: float) -> int:
        """The offset that a partition's next record will get, after everything received before is durable.

        Raises:
            ShardUnavailable: its shard did not answer before the deadline, or does not serve.
        """
        _, positions = await self._ask(partition, "reads", deadline, ACCOUNT)
        if partition not in positions:
            raise ShardUnavailable("a shard does not serve: its clock is not believed")
        return int(positions[partition]) + 1

    async def heads(self, deadline: float) -> dict[int, int]:
        """`head` of every partition.

        Raises:
            ShardUnavailable: as there.
        """
        found = await asyncio.gather(*(self.head(partition, deadline) for partition in range(self.partitions)))
        return dict(enumerate(found))

    async def stats(self, deadline: float) -> list[ShardStats]:
        """How each shard is doing.

        Raises:
            ShardUnavailable: a shard did not answer before the deadline.
        """
        asked = (self.shard_stats(partition, deadline) for partition in range(self.partitions))
        return list(await asyncio.gather(*asked))

    async def shard_stats(self, partition: int, deadline: float) -> ShardStats:
        """How one shard is doing.

        Raises:
            ShardUnavailable: it did not answer before the deadline.
        """
        numbers, _ = await self._ask(partition, "questions", deadline)
        return _stats(numbers)

    async def accept_clock(self, partition: int, deadline: float) -> ShardStats:
        """An operator's word that the clock of a shard's machine is right as it is; how the shard is doing then.

        Raises:
            ShardUnavailable: it did not answer before the deadline.
        """
        numbers, _ = await self._ask(partition, "clocks", deadline)
        return _stats(numbers)

    def legs(self, partition: int, rows: Array) -> asyncio.Future[tuple[Array, dict[int, int]]]:
        """Send credit legs until they are answered, however long that takes: (n,) RESULT and the positions."""
        call = self._call(NEVER, len(rows), RESULT)
        self._put(call, [(partition, _Part(call, rows.tobytes(), len(rows), None, None))], "events")
        return call.future

    async def close(self) -> None:
        """Give up all links; calls still waiting end as at their deadline."""
        self.closed = True
        if self._ticking is not None:
            self._ticking.cancel()
        for lane in self._lanes:
            await lane.close()

    def _apply_one(self, call: _Call, row: bytes, notes: Notes | None) -> None:
        id_lo, kind, flags = _ROUTE.unpack(row)
        if kind in _INTERNAL:
            raise ValueError("an internal kind of event")
        if call.future.done():
            return  # the client is closed
        slot = id_lo & _SLOT
        lane = self._lanes[slot % self.partitions]
        if slot >= SLOTS:
            _refuse(call, Code.INVALID_ID)
        elif flags & _LINKED:
            _refuse(call, Code.NOT_LINKABLE)
        elif lane.events.rows >= self._queue_rows_max:
            _refuse(call, Code.OVERLOADED)
        else:
            lane.put(lane.events, _Part(call, row, 1, notes, None))

    def _apply_many(self, rows: Array, notes: Notes | None, deadline: float) -> _Call:
        if bool(np.isin(rows["kind"], _INTERNAL).any()):
            raise ValueError("an internal kind of event")
        call = self._call(deadline, len(rows), RESULT)
        slots = (rows["id_lo"] & np.uint64(_SLOT)).astype(np.int64)
        homes = slots % self.partitions
        refused = _misplaced(rows, slots, homes)
        if refused is not None:
            here = refused != 0
            call.collect()["code"][here] = refused[here]
            homes[here] = self.partitions  # no shard's
        counts = np.bincount(homes, minlength=self.partitions).tolist()
        most = self._queue_rows_max + frames.ROWS_MAX
        if any(count and lane.events.rows + count > most for lane, count in zip(self._lanes, counts, strict=False)):
            if not call.future.done():
                _refuse(call, Code.OVERLOADED)
            return call
        parts: list[tuple[int, _Part]] = []
        for partition in range(self.partitions):
            if counts[partition]:
                places = np.flatnonzero(homes == partition)
                parts.extend((partition, part) for part in _parts(call, rows, notes, places))
        self._put(call, parts, "events")
        return call

    def _ask(
        self, partition: int, channel: str, deadline: float, dtype: np.dtype[Any] | None = None
    ) -> asyncio.Future[Any]:
        """Ask one shard something that has no rows."""
        call = self._call(deadline, 0, dtype)
        self._put(call, [(partition, _Part(call, b"", 0, None, None))], channel)
        return call.future

    def _call(
        self, deadline: float, size: int, dtype: np.dtype[Any] | None, future: asyncio.Future[Any] | None = None
    ) -> _Call:
        if self._ticking is None and not self.closed:
            self._ticking = self.loop.call_later(_TICK_S, self._tick)
        call = _Call(future or self.loop.create_future(), deadline, size, dtype)
        if self.closed:
            call.expire()
        return call

    def _put(self, call: _Call, parts: Sequence[tuple[int, _Part]], channel: str) -> None:
        call.waiting = len(parts)
        if not parts and not call.future.done():
            call.future.set_result((call.collect(), {}))
        for partition, part in parts:
            lane = self._lanes[partition]
            lane.put(getattr(lane, channel), part)

    def _tick(self) -> None:
        """One timer for all deadlines, and only while somebody waits."""
        now = self.clock()
        for lane in self._lanes:
            lane.tick(now)
        busy = not all(lane.idle() for lane in self._lanes)
        self._ticking = self.loop.call_later(_TICK_S, self._tick) if busy else None


_ROUTE: Final = struct.Struct("<8xQ80xHH4x")
_FIND: Final = struct.Struct("<QQQ")


def _refuse(call: _Call, code: Code) -> None:
    answers = call.collect()
    answers["code"] = code
    call.future.set_result((answers, {}))


def _doubt(rows: Array) -> None:
    """UNSURE for each code that another attempt need not have met."""
    doubtful = _OF_THE_MOMENT[rows["code"]]
    if doubtful.any():
        rows["code"][doubtful] = _UNSURE


def _misplaced(rows: Array, slots: Array, homes: Array) -> Array | None:
    """(n,) codes of the rows that no shard is asked about, 0 for the others: ids that say no slot, and chains that span
    shards, are left open at the end, or are longer than a batch may be."""
    strange = slots >= SLOTS
    linked = (rows["flags"] & Flag.LINKED) != 0
    codes = np.where(strange, Code.INVALID_ID, 0)
    if not linked.any():
        return codes if strange.any() else None
    starts = np.flatnonzero(np.concatenate(([True], ~linked[:-1])))
    lengths = np.diff(starts, append=len(rows))
    spans = np.minimum.reduceat(homes, starts) != np.maximum.reduceat(homes, starts)
    unlinkable = spans | (lengths > frames.ROWS_MAX)
    unlinkable[-1] |= linked[-1]
    broken = np.repeat(np.logical_or.reduceat(strange, starts), lengths)
    codes[np.repeat(unlinkable, lengths) & ~broken] = Code.NOT_LINKABLE
    codes[broken & ~strange] = Code.CHAIN_REFUSED
    return codes


def _stats(numbers: Mapping[str, Any]) -> ShardStats:
    """What a shard told of itself; a newer one may tell more."""
    known = {field.name for field in fields(ShardStats)}
    return ShardStats(**{name: value for name, value in numbers.items() if name in known})


def _parts(call: _Call, rows: Array, notes: Notes | None, places: Array) -> list[_Part]:
    """The rows at `places` cut to frames, chains whole."""
    whole = len(places) == len(rows)
    own = rows if whole else rows[places]
    own_notes = notes if notes is None or whole else [notes[place] for place in places.tolist()]
    if own_notes is not None and not any(own_notes):
        own_notes = None
    if len(own) <= frames.ROWS_MAX and own_notes is None:
        return [_Part(call, own.tobytes(), len(own), None, None if whole else places)]
    parts = []
    for start, end in _cuts(own, own_notes):
        some = None if own_notes is None else own_notes[start:end]
        parts.append(_Part(call, own[start:end].tobytes(), end - start, some, places[start:end]))
    return parts


def _cuts(rows: Array, notes: Notes | None) -> list[tuple[int, int]]:
    """Where to cut: no piece has too many rows or (chains apart) too many bytes of notes, and no chain is cut."""
    linked = (rows["flags"] & Flag.LINKED) != 0
    ends = np.flatnonzero(~linked) + 1  # a piece may end after any row that is not tied to the next
    sizes = np.zeros(len(rows) + 1, np.int64)
    if notes is not None:
        sizes[1:] = np.cumsum([0 if note is None else len(note) for note in notes])
    cuts: list[tuple[int, int]] = []
    start = 0
    while start < len(rows):
        most = min(start + frames.ROWS_MAX, int(np.searchsorted(sizes, sizes[start] + _NOTE_BYTES, side="right")) - 1)
        fitting = int(np.searchsorted(ends, most, side="right")) - 1
        first = int(np.searchsorted(ends, start, side="right"))
        end = int(ends[max(fitting, first)])
        cuts.append((start, end))
        start = end
    return cuts


def _encode(kind: FrameType, request: int, parts: list[_Part]) -> bytes:
    if kind is FrameType.STATS or kind is FrameType.CLOCK:
        return frames.frame(kind, request)
    data = [part.data for part in parts]
    if kind is FrameType.READ:
        return frames.encode_read(request, data)
    if kind is FrameType.FIND:
        return frames.encode_find(request, data)
    if all(part.notes is None for part in parts):
        return frames.encode_events(kind, request, data, None)
    notes: list[bytes | None] = []
    for part in parts:
        notes.extend([None] * part.count if part.notes is None else part.notes)
    return frames.encode_events(kind, request, data, notes)


def merge_positions(into: dict[int, int], more: Mapping[int, int]) -> None:
    """Keep the later offset of each partition."""
    for partition, offset in more.items():
        if offset > into.get(partition, -2):
            into[partition] = offset
