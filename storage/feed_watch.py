"""Tells readers of the feed when there is something new for them, all readers of a process with one look.

The projection names each of its commits on a channel; a look then asks for all readers at once who of them has
something to read. Looks take at most a fifth of the time, so that many readers of a busy ledger are told later, not at
its expense. A reader reads for itself, at its own pace: nothing is kept for the slow.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Mapping
from typing import Final

from storage.feed import Feed, Reader
from storage.listening import DATABASE_AWAY

_LOG: Final = logging.getLogger(__name__)
_BETWEEN_LOOKS_S: Final = 0.02
_SHARE: Final = 0.2
_UNASKED_S: Final = 1.0
"""A look comes at least so often: what was named while the connection was lost nobody has heard."""


class Watch:
    """Watches a feed for as long as anybody reads, and gives the feed's connection back then."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._readers: dict[asyncio.Event, Reader] = {}
        self._commits = asyncio.Event()
        self._looking: asyncio.Task[None] | None = None

    @contextlib.asynccontextmanager
    async def told(self, reader: Reader) -> AsyncIterator[asyncio.Event]:
        """An event that is set whenever `reader` may have something new. Clear it, then read, then wait."""
        event = asyncio.Event()
        self._readers[event] = reader
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look(), name="news of the feed")
        try:
            yield event
        finally:
            del self._readers[event]
            if not self._readers:
                await self.close()

    async def close(self) -> None:
        """Watch no more. Whoever comes afterwards is told again."""
        looking, self._looking = self._looking, None
        if looking is not None:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)
        if not self._readers:
            await self._feed.close()

    async def _look(self) -> None:
        since: Mapping[int, int] | None = None
        pause = _BETWEEN_LOOKS_S
        while True:
            self._commits.clear()
            began = time.monotonic()
            try:
                await self._feed.listen(self._commits.set)
                if since is None:
                    since = await self._feed.reached()
                    self._tell(None)
                news = await self._feed.news(self._readers.values(), since)
                since = news.reached
                self._tell(news.readers)
                pause = max(_BETWEEN_LOOKS_S, (time.monotonic() - began) * (1 - _SHARE) / _SHARE)
            except DATABASE_AWAY as error:
                _LOG.warning("news of the feed wait: %r", error)
                since, pause = None, _UNASKED_S
            await asyncio.sleep(pause)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_UNASKED_S):
                    await self._commits.wait()

    def _tell(self, readers: frozenset[Reader] | None) -> None:
        for event, reader in self._readers.items():
            if readers is None or reader in readers:
                event.set()
