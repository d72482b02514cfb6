"""GET /v1/events: the feed of the caller's accounts as server-sent events.

A stream reads pages of the feed from its own place on and sends each before it reads the next, so all that it holds is
one page. Who does not take a page in time is cut off and may resume from the last id that arrived. Nobody holds a
connection of the database while sending. A stream ends by itself after a quarter of an hour, and when the replica is to
go; clients of server-sent events come back on their own (WHATWG HTML, 9.2). The token is looked at again before each
page and each heartbeat: when it opens the stream no more, a last event `problem` says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from starlette.types import Receive, Send

from actors.shard_client import ShardUnavailable
from deployments.payments_call import OPERATOR, Call, read_instant, read_path_account
from deployments.problems import (
    FORBIDDEN,
    OVERLOADED,
    UNAUTHENTICATED,
    UNAVAILABLE,
    UNKNOWN_ACCOUNT,
    ProblemError,
    malformed,
)
from storage.events import Code
from storage.feed import Cursor, Feed, Reader
from storage.feed_schema import PREFIX, Happening, encode
from storage.feed_watch import Watch
from storage.listening import DATABASE_AWAY
from storage.query_store import NotYetProjected

_LOG: Final = logging.getLogger(__name__)

PATH: Final = "/v1/events"
STREAM_S_MAX: Final = 900.0
ACCOUNTS_MAX: Final = 1000
_PAGE_EVENTS: Final = 100
_AWAY_S: Final = 1.0
_CATCH_UP_S: Final = 1.0
_RETRY_MS: Final = 1000
_HEADERS: Final = [
    (b"content-type", b"text/event-stream"),
    (b"x-accel-buffering", b"no"),  # for gateways that would collect before they pass on
]
_HEARTBEAT: Final = b": nothing new\n\n"


class Limits(NamedTuple):
    """Of a replica's streams."""

    streams: int = 128
    streams_per_caller: int = 8
    heartbeat_s: float = 5.0
    send_s: float = 10.0  # in which a reader must take a page
    lifetime_s: float = STREAM_S_MAX


class EventStreams:
    """The streams of one replica."""

    def __init__(self, feed: Feed, limits: Limits) -> None:
        self.feed = feed
        self.watch = Watch(feed)
        self.limits = limits
        self._open: Counter[str] = Counter()

    @property
    def open(self) -> int:
        """Streams under way."""
        return self._open.total()

    @contextlib.contextmanager
    def place(self, caller: str) -> Iterator[None]:
        """A place for one more stream.

        Raises:
            ProblemError: there is none.
        """
        if self._open[caller] >= self.limits.streams_per_caller:
            raise ProblemError(OVERLOADED, f"There are {self._open[caller]} streams of yours already")
        if self.open >= self.limits.streams:
            raise ProblemError(OVERLOADED, f"{self.open} streams are open here")
        self._open[caller] += 1
        try:
            yield
        finally:
            self._open[caller] -= 1
            if not self._open[caller]:
                del self._open[caller]


@dataclass(slots=True)
class EventStream:
    """An answer that goes on. `until`, `expires` (of the token): time.monotonic seconds."""

    call: Call
    caller: str
    reader: Reader
    cursor: Cursor
    until: float
    expires: float
    draining: asyncio.Event

    @property
    def streams(self) -> EventStreams:
        """Those that it is one of."""
        return self.call.services.events

    async def answer(self, receive: Receive, send: Send, *, head: bool) -> None:
        """Send events until somebody or something ends it.

        Raises:
            ProblemError: too many streams are open.
        """
        with self.streams.place(self.caller):
            await send({"type": "http.response.start", "status": 200, "headers": list(_HEADERS)})
            if not head:
                async with (
                    self.streams.watch.told(self.reader) as news,
                    _watching(receive, self.draining, news) as gone,
                ):
                    if not await self._send_events(send, news, gone):
                        return
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_events(self, send: Send, news: asyncio.Event, gone: asyncio.Task[None]) -> bool:
        """Whether the reader was there to the end."""
        try:
            await self._send(send, f"retry: {_RETRY_MS}\nid: {self.cursor}\n\n".encode())
            try:
                await self._follow(send, news, gone)
            except ProblemError as problem:
                body = problem.body(self.call.request_id)
                await self._send(send, b"event: problem\ndata: %s\n\n" % body)
        except TimeoutError:
            _LOG.info("a reader of events took nothing for %.0f s and is cut off", self.streams.limits.send_s)
            return False
        return not gone.done()

    async def _follow(self, send: Send, news: asyncio.Event, gone: asyncio.Task[None]) -> None:
        """Send what happens until the time is over, or somebody leaves.

        Raises:
            ProblemError: the caller may not have it any more.
        """
        while not (self.draining.is_set() or gone.done()):
            left = min(self.until, self.expires) - time.monotonic()
            if left <= 0:
                break
            news.clear()
            page = await self._page()
            if page:
                await self._send(send, b"".join(map(self._frame, page)))
            if len(page) < _PAGE_EVENTS and not await _within(news, min(left, self.streams.limits.heartbeat_s)):
                await self._send(send, _HEARTBEAT)
        if time.monotonic() >= self.expires:
            raise ProblemError(UNAUTHENTICATED, "The token has expired")

    async def _page(self) -> list[Happening]:
        """What comes next; nothing while that cannot be had, or nobody can tell whether the caller may have it."""
        try:
            page = await self.streams.feed.page(self.reader, self.cursor, _PAGE_EVENTS)
            await self.call.reauthenticate()
        except (ProblemError, *DATABASE_AWAY) as error:
            if isinstance(error, ProblemError) and error.problem is not UNAVAILABLE:
                raise
            _LOG.warning("a stream of events waits: %r", error)
            await asyncio.sleep(_AWAY_S)
            return []
        return page

    async def _send(self, send: Send, body: bytes) -> None:
        async with asyncio.timeout(self.streams.limits.send_s):
            await send({"type": "http.response.body", "body": body, "more_body": True})

    def _frame(self, happening: Happening) -> bytes:
        self.cursor = self.cursor.after(happening)
        return b"id: %s\nevent: %s\ndata: %s\n\n" % (
            str(self.cursor).encode(),
            (PREFIX + happening.type).encode(),
            encode(happening),
        )


async def get_events(call: Call) -> EventStream:
    """GET /v1/events."""
    subject = call.authorize("ledger:read")
    query = call.query()
    streams = call.services.events
    call.positions()  # its form, also where nothing is waited for
    place = _place(call, query)
    # The edge gives a stream more time than the other calls; up to here it is one of them.
    call.deadline = time.monotonic() + call.services.deadline_s
    async with asyncio.timeout(call.services.deadline_s):
        reader = await _reader(call, subject, query.get("account"))
        cursor = await _cursor(call, reader, place)
    assert call.identity is not None  # noqa: S101 - authorize comes first
    now = time.monotonic()
    expires = now + call.identity.expires_at - time.time()
    draining: asyncio.Event = call.scope.get("razao.draining") or asyncio.Event()
    return EventStream(call, subject, reader, cursor, now + streams.limits.lifetime_s, expires, draining)


async def _reader(call: Call, subject: str, given: str | None) -> Reader:
    """Whose events are meant, when the caller may have them."""
    if given is None:
        if await call.services.events.feed.accounts(subject, ACCOUNTS_MAX + 1) > ACCOUNTS_MAX:
            raise malformed("account", f"You have more than {ACCOUNTS_MAX} accounts: name one")
        return subject
    account = read_path_account(given)
    try:
        wanted, actor = np.array([account], np.uint64), np.array([call.actor], np.uint64)
        read = await call.services.client.read(wanted, actor, call.deadline)
    except ShardUnavailable:
        raise ProblemError(UNAVAILABLE, "A shard does not answer") from None
    code = Code(int(read.states["code"][0]))
    if code is Code.FORBIDDEN and call.actor != OPERATOR:
        raise ProblemError(FORBIDDEN, "The account is not yours")
    if code is not Code.OK:
        raise ProblemError(UNKNOWN_ACCOUNT, "There is no such account", status=404)
    return account


def _place(call: Call, query: Mapping[str, str]) -> Cursor | int | None:
    """Where the stream is to begin: behind the last event that the client has, at an instant (ns), or now."""
    header = call.headers.get(b"last-event-id")
    last = query.get("last_event_id") if header is None else header.decode("latin-1")
    at = read_instant(query["from"], "from") if "from" in query else None
    if last is None:
        return at
    try:
        return Cursor.parse(last, call.services.events.feed.partitions)
    except ValueError:
        raise malformed("Last-Event-ID", "Last-Event-ID must be the id of an event of this stream") from None


async def _cursor(call: Call, reader: Reader, place: Cursor | int | None) -> Cursor:
    """Where the stream begins."""
    feed = call.services.events.feed
    if isinstance(place, Cursor):
        await _refuse_what_is_to_come(call, place)
        return place
    if place is not None:
        if place > time.time_ns() and place > max((await call.caught_up(range(feed.partitions))).values()):
            raise malformed("from", "The instant lies in the future")
        return Cursor(dict.fromkeys((await feed.end(reader)).places, max(2 * place - 1, 0)))
    await call.wait_for_positions()
    await _caught_up(call)
    return await feed.end(reader)


async def _refuse_what_is_to_come(call: Call, cursor: Cursor) -> None:
    """Raises ProblemError for a place that no event has had: all that happens before it would be left out."""
    now = time.time_ns()
    ahead = {partition: place // 2 for partition, place in cursor.places.items() if place // 2 > now}
    if ahead:
        newest = await call.caught_up(ahead)
        if any(at > newest[partition] for partition, at in ahead.items()):
            raise malformed("Last-Event-ID", "Last-Event-ID lies in the future: no event has had this id")


async def _caught_up(call: Call) -> None:
    """Let the feed come to what has been answered up to now, if that is soon: else some of it will be told as well."""
    soon = min(call.deadline, time.monotonic() + _CATCH_UP_S)
    with contextlib.suppress(ShardUnavailable, NotYetProjected):
        heads = await call.services.client.heads(soon)
        await call.services.store.wait_for({key: head - 1 for key, head in heads.items()}, soon)


async def _within(event: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(max(seconds, 0.0)):
            await event.wait()
    except TimeoutError:
        return False
    return True


@contextlib.asynccontextmanager
async def _watching(
    receive: Receive, draining: asyncio.Event, news: asyncio.Event
) -> AsyncIterator[asyncio.Task[None]]:
    """A task that is done when the client has gone. It, and the replica's leave, wake whoever waits for news."""

    async def until_gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        news.set()

    async def until_draining() -> None:
        await draining.wait()
        news.set()

    tasks = [asyncio.create_task(until_gone()), asyncio.create_task(until_draining())]
    try:
        yield tasks[0]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
