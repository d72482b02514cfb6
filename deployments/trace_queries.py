"""Who asked about whom, written behind: an answer does not wait for it, and what waits has a bound.

The newest question about a person replaces an older one that still waits, as it would in the store. When more people
wait than there is room for, the one who was asked about longest ago is dropped, and counted. Writing takes a small
share of the time, so a storm of questions is written later, not at the answers' expense. A clean stop writes the rest.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Final

from storage.documents import StoreAway
from storage.traces import Query, Traces

log = logging.getLogger(__name__)

WAITING_MAX: Final = 50_000
_BATCH: Final = 500
_PAUSE_S: Final = 0.25
_SHARE: Final = 0.02
_PAUSE_S_MAX: Final = 5.0
_STOP_S: Final = 10.0
_RETRY_S: Final = 0.2


class LastQueries:
    """The questions that are not written yet. `run` must run beside it. `dropped` only grows."""

    def __init__(self, traces: Traces, *, waiting_max: int = WAITING_MAX) -> None:
        self._traces = traces
        self._most = waiting_max
        self._waiting: dict[bytes, Query] = {}  # the one asked about longest ago first
        self._writing: dict[bytes, Query] = {}
        self.dropped = 0

    @property
    def waiting(self) -> int:
        """People whose last question is not written yet."""
        return len(self._waiting) + len(self._writing)

    def note(self, person: bytes, query: Query) -> None:
        """Somebody asks about a person (a reference)."""
        waiting = self._waiting
        waiting.pop(person, None)
        waiting[person] = query
        if len(waiting) > self._most:
            del waiting[next(iter(waiting))]
            self.dropped += 1

    def latest(self, person: bytes, written: Query | None) -> Query | None:
        """Who asked last, of what is written and what waits here."""
        here = self._waiting.get(person) or self._writing.get(person)
        return written if here is None or (written is not None and written.at > here.at) else here

    async def run(self) -> None:
        """Write, for ever, through whatever happens to the store."""
        while True:
            began = time.monotonic()
            try:
                await self.flush()
            except StoreAway as error:
                log.warning("the last queries wait: %r", error)
            except Exception:
                log.exception("the last queries wait")  # the next round tries again
            took = time.monotonic() - began
            await asyncio.sleep(min(max(_PAUSE_S, took * (1 - _SHARE) / _SHARE), _PAUSE_S_MAX))

    async def flush(self) -> None:
        """Write what waits now. Raises what the store raises; then what was not written waits on."""
        left = len(self._waiting)
        while left > 0 and self._waiting:
            batch = [person for person, _ in zip(self._waiting, range(_BATCH), strict=False)]
            left -= len(batch)
            self._writing = {person: self._waiting.pop(person) for person in batch}
            try:
                await self._traces.record_queries(self._writing)
            except BaseException:
                # Ahead of those who came later, and behind nobody who was asked about again.
                self._waiting = {**self._writing, **self._waiting}
                self._writing = {}
                self._make_room()
                raise
            self._writing = {}

    async def stop(self) -> None:
        """Write all that waits, trying for some seconds; call it when nothing comes any more and `run` has ended."""
        deadline = time.monotonic() + _STOP_S
        while self._waiting:
            try:
                async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                    await self.flush()
            except TimeoutError:
                break
            except StoreAway:
                await asyncio.sleep(_RETRY_S)
        if self._waiting:
            self.dropped += len(self._waiting)
            log.error("%d last queries could not be written before the end", len(self._waiting))

    def _make_room(self) -> None:
        while len(self._waiting) > self._most:
            del self._waiting[next(iter(self._waiting))]
            self.dropped += 1
