"""Passes the feed of events on to whoever is to have all of it, such as a topic, in order and at least once.

Plain asyncio over a feed and a sink that are handed in. It runs beside the projection and takes a third of the time at
most. How far it is stands in the query store, so whoever builds that again passes everything on again, under the same
ids.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from storage.feed import Feed
from storage.feed_schema import SOURCE, Message, SinkAway, encode
from storage.feed_watch import DATABASE_AWAY

_LOG: Final = logging.getLogger(__name__)
_RETRY_S: Final = (0.1, 5.0)
_UNASKED_S: Final = 1.0
_BETWEEN_LOOKS_S: Final = 0.05
_SHARE: Final = 1 / 3
_SPAN_NS: Final = (1_000_000, 3_600 * 10**9)
_SUMMARY_EVENTS: Final = 50_000


class Sink(Protocol):
    """Where events go."""

    @property
    def name(self) -> str:
        """Under which progress is kept: another name begins from the beginning."""
        ...

    async def send(self, messages: Sequence[Message]) -> None:
        """Return when all of them are there for good.

        Raises:
            SinkAway: they are not, or not certainly.
        """
        ...

    async def close(self) -> None:
        """Let go of everything."""
        ...


@dataclass(slots=True)
class Progress:
    """Of one partition."""

    place: int  # of the last event that arrived
    span_ns: int = _SPAN_NS[0]  # how much time one look covers


@dataclass(frozen=True, slots=True)
class PublisherStats:
    """How far it is. `late_ns`: from the last event passed on to the newest one, in the partition that is latest."""

    events: int
    late_ns: int
    waiting: str  # why nothing arrives, or empty


class Publisher:
    """Follows every partition of a feed for one sink."""

    def __init__(self, feed: Feed, sink: Sink, *, batch: int = 2000, source: str = SOURCE) -> None:
        self._feed = feed
        self._sink = sink
        self._batch = batch
        self._source = source
        self._partitions: dict[int, Progress] = {}
        self._commits = asyncio.Event()
        self._since_summary = 0
        self._reached: dict[int, int] = {}
        self._events = 0
        self._waiting = ""

    @property
    def stats(self) -> PublisherStats:
        """How far it is."""
        late = (at - self._partitions[key].place // 2 for key, at in self._reached.items() if key in self._partitions)
        return PublisherStats(self._events, max(late, default=0), self._waiting)

    async def run(self, caught_up: Callable[[], None] = lambda: None) -> None:
        """Pass everything on, for ever, through whatever happens to the database and the sink."""
        pause = _RETRY_S[0]
        try:
            while True:
                self._commits.clear()
                try:
                    await self._feed.listen(self._commits.set)
                    more = await self.catch_up()
                    self._waiting, pause = "", _RETRY_S[0]
                    if not more:
                        caught_up()
                        await asyncio.sleep(_BETWEEN_LOOKS_S)
                        with contextlib.suppress(TimeoutError):
                            await asyncio.wait_for(self._commits.wait(), _UNASKED_S)
                except (SinkAway, *DATABASE_AWAY) as error:
                    self._waiting = repr(error)
                    _LOG.warning("the events wait: %r", error)
                    # Where things stand is asked again: a lost answer may have been a yes, the tables may be new.
                    self._partitions.clear()
                    await asyncio.sleep(pause)
                    pause = min(pause * 2, _RETRY_S[1])
        finally:
            await self._feed.close()
            await self._sink.close()

    async def catch_up(self) -> bool:
        """One round over all partitions; whether there is more.

        Raises:
            SinkAway: see `Sink.send`.
        """
        self._reached = await self._feed.reached()
        known = await self._feed.published(self._sink.name)
        more = False
        for partition, at in self._reached.items():
            progress = self._partitions.setdefault(partition, Progress(known.get(partition, 0)))
            progress.place = min(progress.place, known.get(partition, 0))  # less when the tables were made again
            if at and progress.place < 2 * at + 1:  # 0: nothing was projected yet
                more |= await self._pass_on(partition, progress, at)
        return more

    async def _pass_on(self, partition: int, progress: Progress, at: int) -> bool:
        """The next stretch of a partition that has events up to the instant `at`; whether there is more."""
        began = time.monotonic()
        end = 2 * at + 1
        since = progress.place or await self._feed.beginning(partition)
        until = min(end, since + 2 * progress.span_ns)
        found = await self._feed.stretch(partition, progress.place, until, self._batch)
        messages = [Message(one.account, encode(one, self._source)) for one in found]
        took = time.monotonic() - began
        if messages:
            await self._sink.send(messages)
        full = len(found) == self._batch
        progress.place = found[-1].place if full else until
        await self._feed.mark_published(self._sink.name, partition, progress.place)
        self._events += len(found)
        self._since_summary += len(found)
        if self._since_summary > _SUMMARY_EVENTS:
            self._since_summary = 0
            await self._feed.summarize()
        # A look reads and sorts all that its time has: let it be what gives about a batch.
        if full:
            progress.span_ns = max(found[-1].at - found[0].at, _SPAN_NS[0])
        elif len(found) < self._batch // 4:
            progress.span_ns = min(progress.span_ns * 2, _SPAN_NS[1])
        await asyncio.sleep(took * (1 - _SHARE) / _SHARE)
        return progress.place < end
