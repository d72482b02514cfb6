"""The payer's side of a transfer across shards: what is in flight is sent until the payee's shard answers.

The book's in-flight table is the outbox; this is the hand that empties it. Credit legs leave only when their debit is
durable, one batch per destination while the next gathers. An answer decides the outcome: whoever waits is told at once,
and a settle or revert goes into the own shard's next group. A leg too old to be judged is kept and reported, never
given back: the payee's shard may have applied it once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final, Protocol

import numpy as np

from actors.failpoints import Failpoint
from actors.frames import ROWS_MAX, Array
from storage.events import EVENT, FIRST_STATELESS, SLOTS, Code, Kind

_LOG: Final = logging.getLogger(__name__)
_AGAIN_S: Final = 0.25
# Plain integers on the hot path: on Python 3.11 an enum's member is looked up by a function.
_OK: Final = int(Code.OK)
_IN_FLIGHT: Final = int(Code.IN_FLIGHT)
_FIRST_STATELESS: Final = int(FIRST_STATELESS)
_ID_CONFLICT: Final = int(Code.ID_CONFLICT)
_LEG_OUT_OF_ORDER: Final = int(Code.LEG_OUT_OF_ORDER)
_SETTLE: Final = int(Kind.SETTLE)
_REVERT: Final = int(Kind.REVERT)


class Peers(Protocol):
    """How to reach the other shards: a `ShardClient` for legs."""

    def legs(self, partition: int, rows: Array) -> asyncio.Future[tuple[Array, dict[int, int]]]:
        """Send until answered."""
        ...


Decided = Callable[[object, Array, Array, Array, dict[int, int]], None]
"""Called with the tag that `send` was given, the tag's row numbers, the legs, their results, and the positions."""


class Outbox:
    """Sends legs and turns their answers into settles and reverts."""

    def __init__(
        self,
        peers: Peers,
        partitions: int,
        *,
        decided: Decided,
        enqueue: Callable[[Array], None],
        failpoint: Failpoint,
        fatal: Callable[[BaseException], None],
    ) -> None:
        self.rows = np.zeros(partitions, np.int64)
        """Legs under way per destination."""
        self.stuck = 0
        self._peers = peers
        self._partitions = partitions
        self._decided = decided
        self._enqueue = enqueue
        self._failpoint = failpoint
        self._fatal = fatal
        self._closed = False
        self._later: set[asyncio.TimerHandle] = set()

    def send(self, legs: Array, tag: object = None, numbers: Array | None = None) -> None:
        """Send `legs`: (n,) EVENT whose debits are durable. `numbers`: (n,) which rows of `tag` wait for them."""
        homes = (legs["credit"] % np.uint64(SLOTS)) % np.uint64(self._partitions)
        for partition in np.unique(homes).tolist():
            places = np.flatnonzero(homes == partition)
            for start in range(0, len(places), ROWS_MAX):
                some = places[start : start + ROWS_MAX]
                self.rows[partition] += len(some)
                self._send_to(partition, legs[some], tag, None if numbers is None else numbers[some])

    def close(self) -> None:
        """Send nothing more: a successor finishes what is in the book."""
        self._closed = True
        for handle in self._later:
            handle.cancel()

    def _send_to(self, partition: int, legs: Array, tag: object, numbers: Array | None) -> None:
        answer = self._peers.legs(partition, legs)

        def answered(future: asyncio.Future[tuple[Array, dict[int, int]]]) -> None:
            if self._closed or future.cancelled():
                return
            try:
                results, positions = future.result()
                self._answered(partition, legs, tag, numbers, results, positions)
            except Exception as error:  # noqa: BLE001 - whatever it is, the shard must not go on
                self._fatal(error)

        answer.add_done_callback(answered)

    def _answered(
        self,
        partition: int,
        legs: Array,
        tag: object,
        numbers: Array | None,
        results: Array,
        positions: dict[int, int],
    ) -> None:
        codes = results["code"]
        settled = codes == _OK
        refused = ((codes > _IN_FLIGHT) & (codes < _FIRST_STATELESS)) | (codes == _ID_CONFLICT)
        decided = settled | refused
        expired = codes == _LEG_OUT_OF_ORDER
        # Anything else (the payee's book is full, say) is no decision: the payee's shard does not remember it.
        undecided = ~(decided | expired)
        if undecided.any():
            self._send_again(partition, legs[undecided], tag, None if numbers is None else numbers[undecided])
        if expired.any():
            self._report(partition, legs[expired])
        known = decided | expired
        self.rows[partition] -= np.count_nonzero(known)
        if not known.any():
            return
        if decided.any():
            self._failpoint("leg-answered")
            self._enqueue(_outcomes(legs[decided], codes[decided]))
        self._decided(
            tag, numbers[known] if numbers is not None else legs["at"][:0], legs[known], results[known], positions
        )

    def _send_again(self, partition: int, legs: Array, tag: object, numbers: Array | None) -> None:
        def again() -> None:
            self._later.discard(handle)
            self._send_to(partition, legs, tag, numbers)

        handle = asyncio.get_running_loop().call_later(_AGAIN_S, again)
        self._later.add(handle)

    def _report(self, partition: int, legs: Array) -> None:
        self.stuck += len(legs)
        first = legs[0]
        _LOG.error(
            "%d credit legs are too old for partition %d to judge and stay in flight; the first is %016x%016x",
            len(legs),
            partition,
            int(first["id_hi"]),
            int(first["id_lo"]),
        )


def _outcomes(legs: Array, codes: Array) -> Array:
    """Settles and reverts for legs that were decided."""
    rows = np.zeros(len(legs), EVENT)
    rows["id_hi"], rows["id_lo"] = legs["id_hi"], legs["id_lo"]
    rows["kind"] = np.where(codes == _OK, _SETTLE, _REVERT)
    rows["reason"] = codes  # OK = 0 on settle
    return rows
