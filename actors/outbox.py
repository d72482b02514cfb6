"""The payer's side of a transfer across shards: what is in flight is sent until the payee's shard decides, and whoever
waits for it is told.

The book's table of flights is the outbox; this is the hand that empties it. Legs leave only when their debit is
durable, for each destination strictly in the order of their numbers: one batch under way while the next gathers. The
payee's shard decides them in that order too, so what it decided is the head of the batch; the rest is sent again,
however often. Each decided leg becomes a settle or a revert in the own shard's next group.

Who was paid for is told as soon as the payee's record is durable: it alone decides. Who was refused is told when the
revert is durable here: not before the money is back for good.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Protocol

import numpy as np

from actors.failpoints import Failpoint
from actors.frames import ROWS_MAX, Array, joined
from storage.events import EVENT, FIRST_STATELESS, SLOTS, Code, Kind

_AGAIN_S: Final = 0.25
# Plain integers on the hot path: on Python 3.11 an enum's member is looked up by a function.
_OK: Final = int(Code.OK)
_UNSURE: Final = int(Code.UNSURE)
_FIRST_STATELESS: Final = int(FIRST_STATELESS)
_SETTLE: Final = int(Kind.SETTLE)
_REVERT: Final = int(Kind.REVERT)

Positions = dict[int, int]


class Peers(Protocol):
    """How to reach the other shards: a `ShardClient` for legs."""

    def legs(self, partition: int, rows: Array) -> asyncio.Future[tuple[Array, Positions]]:
        """Send until answered."""
        ...


Tell = Callable[[Array, Array, Positions], None]
"""Tells the callers of rows, by their numbers in a group, their codes and more positions to wait for."""

Enqueue = Callable[[Array, Callable[[Positions], None]], None]
"""Puts settles and reverts into the shard's next group, and calls back with its positions when it is durable."""


@dataclass(slots=True)
class _Waiting:
    """Rows of one group whose legs have the numbers from `first` on."""

    since: float
    first: int
    tell: Tell
    rows: Array


@dataclass(slots=True)
class _Repeats:
    """Rows that repeated one id in flight."""

    since: float  # of the first of them
    rows: list[tuple[Tell, int]] = field(default_factory=list)


class _Lane:
    """The way to one destination."""

    __slots__ = ("busy", "confirmed", "partition", "queue", "timer", "waiting")

    def __init__(self, partition: int) -> None:
        self.partition = partition
        self.confirmed = 0  # up to this leg every outcome is durable in our own journal
        self.queue: deque[Array] = deque()  # legs, by number
        self.waiting: deque[_Waiting] = deque()  # by number
        self.busy = False  # a batch is under way, or waits to be sent again
        self.timer: asyncio.TimerHandle | None = None

    def take(self) -> Array:
        """The next batch, with what the payee's shard need not remember any more."""
        parts: list[Array] = []
        room = ROWS_MAX
        while self.queue and room:
            legs = self.queue.popleft()
            if len(legs) > room:
                self.queue.appendleft(legs[room:])
                legs = legs[:room]
            parts.append(legs)
            room -= len(legs)
        batch = joined(parts)
        batch["check"] = self.confirmed
        return batch


class Outbox:
    """Sends legs, turns their answers into settles and reverts, and tells who waits. `waiting_rows`: so many repeats of
    ids in flight may wait."""

    def __init__(
        self,
        peers: Peers,
        partitions: int,
        *,
        enqueue: Enqueue,
        now: Callable[[], float],
        failpoint: Failpoint,
        fatal: Callable[[BaseException], None],
        waiting_rows: int,
    ) -> None:
        self.rows = np.zeros(partitions, np.int64)
        """Legs that are not decided, per destination."""
        self.repeats = 0
        """Rows that wait for an id in flight which they repeat."""
        self._peers = peers
        self._enqueue = enqueue
        self._now = now
        self._failpoint = failpoint
        self._fatal = fatal
        self._waiting_rows = waiting_rows
        self._lanes = [_Lane(partition) for partition in range(partitions)]
        self._repeats: dict[tuple[int, int, int], _Repeats] = {}  # by id and stamp, in µs: a namesake is another
        self._closed = False

    def resume(self, legs: Array, sent: Array) -> None:
        """Go on with what a predecessor left: all `legs` in flight, and the number of the last one per destination."""
        for lane, number in zip(self._lanes, sent.tolist(), strict=True):
            lane.confirmed = number
        for home, number in zip(self._homes(legs).tolist(), legs["total"].tolist(), strict=True):
            lane = self._lanes[home]
            lane.confirmed = min(lane.confirmed, number - 1)
        self._add(legs)

    def send(self, legs: Array, tell: Tell, rows: Array) -> None:
        """Send `legs`: (n,) EVENT whose debits are durable, by number. `rows`: (n,) for which of the group's."""
        now = self._now()
        for partition, places in self._add(legs):
            first = int(legs["total"][places[0]])
            self._lanes[partition].waiting.append(_Waiting(now, first, tell, rows[places]))

    def wait_too(self, id_hi: int, id_lo: int, at: int, tell: Tell, row: int) -> bool:
        """Tell `row` as well what becomes of the payment that was stamped `at`; False when too many wait already."""
        if self.repeats >= self._waiting_rows:
            return False
        self.repeats += 1
        self._repeats.setdefault((id_hi, id_lo, at), _Repeats(self._now())).rows.append((tell, row))
        return True

    def give_up(self, before: float) -> None:
        """Who has waited since then is told UNSURE; what was sent goes on."""
        for lane in self._lanes:
            while lane.waiting and lane.waiting[0].since <= before:
                one = lane.waiting.popleft()
                one.tell(one.rows, np.full(len(one.rows), _UNSURE), {})
        while self._repeats:
            key, repeats = next(iter(self._repeats.items()))  # the one that has waited longest
            if repeats.since > before:
                return
            self._tell_repeats(key, _UNSURE, {})

    def close(self) -> None:
        """Send nothing more: a successor finishes what is in the book."""
        self._closed = True
        for lane in self._lanes:
            if lane.timer is not None:
                lane.timer.cancel()

    def _homes(self, legs: Array) -> Array:
        homes: Array = (legs["credit"] % np.uint64(SLOTS)) % np.uint64(len(self._lanes))
        return homes

    def _add(self, legs: Array) -> list[tuple[int, Array]]:
        """Queue legs by destination; which ones went where."""
        homes = self._homes(legs)
        partitions = sorted(set(homes.tolist()))
        if len(partitions) == 1:
            added = [(partitions[0], np.arange(len(legs)))]
        else:
            added = [(partition, np.flatnonzero(homes == partition)) for partition in partitions]
        for partition, places in added:
            self.rows[partition] += len(places)
            self._lanes[partition].queue.append(legs[places] if len(partitions) > 1 else legs)
            self._pump(self._lanes[partition])
        return added

    def _pump(self, lane: _Lane) -> None:
        if lane.queue and not lane.busy and not self._closed:
            lane.busy = True
            legs = lane.take()
            self._peers.legs(lane.partition, legs).add_done_callback(partial(self._answered, lane, legs))

    def _answered(self, lane: _Lane, legs: Array, answer: asyncio.Future[tuple[Array, Positions]]) -> None:
        if self._closed or answer.cancelled():
            return
        try:
            results, positions = answer.result()
            codes = results["code"]
            undecided = codes >= _FIRST_STATELESS
            decided = int(undecided.argmax()) if undecided.any() else len(legs)
            if decided:
                self._decided(lane, legs[:decided], codes[:decided], positions)
            if decided < len(legs):
                lane.queue.appendleft(legs[decided:])
                lane.timer = asyncio.get_running_loop().call_later(_AGAIN_S, self._next, lane)
            else:
                self._next(lane)
        except Exception as error:  # noqa: BLE001 - whatever it is, the shard must not go on
            self._fatal(error)

    def _next(self, lane: _Lane) -> None:
        lane.busy = False
        self._pump(lane)

    def _decided(self, lane: _Lane, legs: Array, codes: Array, positions: Positions) -> None:
        self._failpoint("leg-answered")
        self.rows[lane.partition] -= len(legs)
        first = int(legs["total"][0])
        last = first + len(legs) - 1
        refused: list[tuple[Tell, Array, Array]] = []
        all_good = not codes.any()
        while lane.waiting and lane.waiting[0].first <= last:
            one = lane.waiting[0]
            rows = one.rows[: last + 1 - one.first]
            theirs = codes[one.first - first :][: len(rows)]
            if len(rows) == len(one.rows):
                lane.waiting.popleft()
            else:
                one.first, one.rows = one.first + len(rows), one.rows[len(rows) :]
            if all_good:
                one.tell(rows, theirs, positions)
                continue
            good = theirs == _OK
            if good.any():
                one.tell(rows[good], theirs[good], positions)
            if not good.all():
                refused.append((one.tell, rows[~good], theirs[~good]))

        def durable(ours: Positions) -> None:
            lane.confirmed = last
            for tell, rows, theirs in refused:
                tell(rows, theirs, positions | ours)
            if self._repeats:
                ids = zip(
                    legs["id_hi"].tolist(), legs["id_lo"].tolist(), (legs["span"] // 1000 * 1000).tolist(), strict=True
                )
                for key, code in zip(ids, codes.tolist(), strict=True):
                    self._tell_repeats(key, code, positions | ours)

        self._enqueue(_outcomes(lane.partition, legs, codes), durable)

    def _tell_repeats(self, key: tuple[int, int, int], code: int, positions: Positions) -> None:
        repeats = self._repeats.pop(key, None)
        if repeats is not None:
            self.repeats -= len(repeats.rows)
            for tell, row in repeats.rows:
                tell(np.array([row]), np.array([code]), positions)


def _outcomes(partition: int, legs: Array, codes: Array) -> Array:
    """Settles and reverts for legs that were decided."""
    settled = codes == _OK
    rows = np.zeros(len(legs), EVENT)
    rows["id_hi"], rows["id_lo"] = legs["id_hi"], legs["id_lo"]
    rows["ref_hi"], rows["ref_lo"] = partition, legs["total"]
    rows["span"] = legs["span"]
    rows["kind"] = np.where(settled, _SETTLE, _REVERT)
    rows["reason"] = np.where(settled, legs["reason"], codes)
    return rows
