"""Follows the feed for whoever is to have all of it, such as a topic, in order and at least once.

Plain asyncio over a feed that is handed in. It runs beside the projection and takes a share of the time at most. How
far it is stands in the query store, so whoever builds that again is told everything again, under the same ids.

    Follower        goes over all partitions, for ever
    Publisher       one that passes events on to a sink
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from storage.feed import Feed
from storage.feed_schema import SOURCE, Message, SinkAway, encode
from storage.listening import DATABASE_AWAY

_LOG: Final = logging.getLogger(__name__)
_RETRY_S: Final = (0.1, 5.0)
_UNASKED_S: Final = 1.0
_BETWEEN_LOOKS_S: Final = 0.05
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

    def adapt(self, found: int, limit: int, covered_ns: int) -> None:
        """A look reads and sorts all that its time has: let it be what gives about `limit` rows.

        `found`: what this one gave; `covered_ns`: how much time that covers, if it was all that it might give.
        """
        if found == limit:
            self.span_ns = max(covered_ns, _SPAN_NS[0])
        elif found < limit // 4:
            self.span_ns = min(self.span_ns * 2, _SPAN_NS[1])


class Passed(NamedTuple):
    """What one look has passed on. `took_s`: of the time that a follower has a share of."""

    place: int  # that was reached
    events: int
    took_s: float


@dataclass(frozen=True, slots=True)
class PublisherStats:
    """How far it is. `late_ns`: from the last event passed on to the newest one, in the partition that is latest."""

    events: int
    late_ns: int
    waiting: str  # why nothing arrives, or empty


class Follower(ABC):
    """Follows every partition of a feed, under a name by which its progress is kept."""

    away: tuple[type[Exception], ...] = ()
    """What else than the database may be away; then it waits as well."""
    share = 1 / 3
    """Of the time, at most."""

    def __init__(self, feed: Feed, name: str) -> None:
        self._feed = feed
        self._name = name
        self._waits_for: tuple[type[Exception], ...] = (*self.away, *DATABASE_AWAY)
        self._partitions: dict[int, Progress] = {}
        self._commits = asyncio.Event()
        self._reached: dict[int, int] = {}
        self._events = 0
        self._since_summary = 0
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
                            async with asyncio.timeout(_UNASKED_S):
                                await self._commits.wait()
                except self._waits_for as error:
                    self._waiting = repr(error)
                    _LOG.warning("what is to be passed on as %s waits: %r", self._name, error)
                    # Where things stand is asked again: a lost answer may have been a yes, the tables may be new.
                    self._partitions.clear()
                    await asyncio.sleep(pause)
                    pause = min(pause * 2, _RETRY_S[1])
        finally:
            await self._feed.close()
            await self._close()

    async def catch_up(self) -> bool:
        """One round over all partitions; whether there is more.

        Raises what `away` names, and what the database does.
        """
        self._reached = await self._feed.reached()
        known = await self._feed.published(self._name)
        more = False
        for partition, at in self._reached.items():
            progress = self._partitions.setdefault(partition, Progress(known.get(partition, 0)))
            progress.place = min(progress.place, known.get(partition, 0))  # less when the tables were made again
            if at and progress.place < 2 * at + 1:  # 0: nothing was projected yet
                more |= await self._pass_on(partition, progress, at)
        return more

    async def _pass_on(self, partition: int, progress: Progress, at: int) -> bool:
        """The next stretch of a partition that has events up to the instant `at`; whether there is more."""
        end = 2 * at + 1
        since = progress.place or await self._feed.beginning(partition)
        until = min(end, since + 2 * progress.span_ns)
        progress.place, events, took = await self._pass_stretch_on(partition, progress, until)
        await self._feed.mark_published(self._name, partition, progress.place)
        self._events += events
        self._since_summary += events
        if self._since_summary > _SUMMARY_EVENTS:
            self._since_summary = 0
            await self._feed.summarize()
        await asyncio.sleep(took * (1 - self.share) / self.share)
        return progress.place < end

    @abstractmethod
    async def _pass_stretch_on(self, partition: int, progress: Progress, until: int) -> Passed:
        """Pass on what comes behind `progress.place` and not behind the place `until`.

        Sets `progress.span_ns` to how much is to be looked at next.
        """

    @abstractmethod
    async def _close(self) -> None:
        """Let go of what is the follower's own."""


class Publisher(Follower):
    """Passes every event on to one sink."""

    away = (SinkAway,)

    def __init__(self, feed: Feed, sink: Sink, *, batch: int = 2000, source: str = SOURCE) -> None:
        super().__init__(feed, sink.name)
        self._sink = sink
        self._batch = batch
        self._source = source

    async def _close(self) -> None:
        await self._sink.close()

    async def _pass_stretch_on(self, partition: int, progress: Progress, until: int) -> Passed:
        began = time.monotonic()
        found = await self._feed.stretch(partition, progress.place, until, self._batch)
        messages = [Message(one.account, encode(one, self._source)) for one in found]
        took = time.monotonic() - began
        if messages:
            await self._sink.send(messages)
        full = len(found) == self._batch
        progress.adapt(len(found), self._batch, found[-1].at - found[0].at if full else 0)
        return Passed(found[-1].place if full else until, len(found), took)
