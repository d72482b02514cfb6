"""How a connection is read and written: uvicorn's protocol with what ours needs besides.

Heads are bounded, nonsense is answered with a problem, head and body of an answer leave in one write, clients of
HTTP/1.0 get no chunks, and a request that has come whole may take an express route (`deployments/express.py`) instead
of ASGI.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

from starlette.types import Message, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from deployments.express import Route, Routes
from deployments.problems import HEADERS_TOO_LARGE, MALFORMED, MEDIA_TYPE, TARGET_TOO_LONG, ProblemError
from deployments.request import Header

_log = logging.getLogger(__name__)

HEAD_BYTES_MAX: Final = 64 * 1024
TARGET_BYTES_MAX: Final = 8 * 1024
_TEXT: Final = bytes({*b"\t\r\n", *range(0x20, 0x100)} - {0x7F})
_CLOSE: Final = b"connection: close\r\n\r\n"


class OneWrite:
    """A transport that sends an answer's head together with its body.

    uvicorn writes them one after the other: two system calls here, and two packets for whoever reads. A head without a
    body to follow in the same turn of the loop leaves by itself at its end.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._head = b""

    def write(self, data: bytes) -> None:
        if self._head:
            data, self._head = self._head + data, b""
        elif data.startswith(b"HTTP/"):
            self._head = data
            self._loop.call_soon(self._flush)
            return
        self._transport.write(data)

    def write_whole(self, data: bytes) -> None:
        """Write what nothing is to be added to."""
        self._flush()
        self._transport.write(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def _flush(self) -> None:
        if self._head:
            head, self._head = self._head, b""
            self._transport.write(head)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


@dataclass(slots=True)
class Shared:
    """What the connections of one listener have in common."""

    routes: Routes
    draining: asyncio.Event = field(default_factory=asyncio.Event)
    in_progress: int = 0
    """Requests that took an express route and are not answered yet."""


class HttpProtocol(HttpToolsProtocol):
    """One connection; uvicorn makes it."""

    def __init__(self, *, shared: Shared, **own: Any) -> None:
        super().__init__(**own)
        self._shared = shared
        self._head_bytes = 0  # of the head at hand, at most: what came with its end may be a body
        self._refusal: ProblemError | None = None
        self._in_head = False
        self._held: Route | None = None  # what the request at hand is offered when it is whole
        self._body = b""
        self._quiet_since = 0.0  # the last answer's time, on the loop's clock
        self._quiet: asyncio.TimerHandle | None = None  # looks whether the connection has been idle for too long

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(OneWrite(transport, self.loop))  # type: ignore[arg-type]

    def data_received(self, data: bytes) -> None:
        self._head_bytes = self._head_bytes + len(data) if self._in_head else len(data)
        super().data_received(data)
        if self._held is not None:
            self._go_the_ordinary_way()  # the rest of the body is still to come
        if self._in_head and self._head_bytes > HEAD_BYTES_MAX and not self.transport.is_closing():
            self._refusal = _too_long(self.url)
            self.send_400_response("")

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._quiet is not None:
            self._quiet.cancel()

    def send_400_response(self, msg: str) -> None:
        self._held = None
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.close()  # an answer here would be taken for the one in progress
            return
        problem = self._refusal or ProblemError(MALFORMED, msg)
        body = problem.body("")
        head = f"content-type: {MEDIA_TYPE}\r\ncontent-length: {len(body)}\r\ncache-control: no-store\r\n"
        self.transport.write(STATUS_LINE[problem.status] + head.encode() + _CLOSE + body)
        self.transport.close()

    # What the parser says.

    def on_message_begin(self) -> None:
        self._in_head = True
        if self._shared.routes:  # uvicorn would make a scope, which an express request does not need
            self.url = b""
            self.headers = []
            self.expect_100_continue = False
        else:
            super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        if len(self.url) > TARGET_BYTES_MAX or (self._head_bytes > HEAD_BYTES_MAX and self._has_too_large_a_head()):
            self._refusal = _too_long(self.url)
            raise self._refusal  # the parser ends with it, and asks for the answer
        routes = self._shared.routes
        if not routes:
            super().on_headers_complete()
            return
        route = routes.get((self.parser.get_method(), self.url))
        if route is None or not self._free() or self.expect_100_continue or self.parser.should_upgrade():
            self._begin_the_ordinary_way()
        else:
            self._held, self._body = route, b""

    def on_body(self, body: bytes) -> None:
        if self._held is None:
            super().on_body(body)
        else:
            self._body += body

    def on_message_complete(self) -> None:
        route, self._held = self._held, None
        if route is None:
            super().on_message_complete()
            return
        keep_alive = self.parser.get_http_version() != "1.0" and self.parser.should_keep_alive()
        exchange = _Exchange(self, self.headers, self._body, keep_alive=keep_alive)
        former, self.cycle = self.cycle, exchange  # type: ignore[assignment] # it has what is asked of one here
        self._shared.in_progress += 1
        try:
            taken = route(exchange)
        except Exception:  # noqa: BLE001 - the parser would call it a malformed request
            _log.exception("an express route failed")
            exchange.abandon()  # it may have begun something
            return
        if not taken:
            self._shared.in_progress -= 1
            self.cycle = former
            self._go_the_ordinary_way()
            super().on_message_complete()
        self._body = b""

    def _has_too_large_a_head(self) -> bool:
        return len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > HEAD_BYTES_MAX

    def _free(self) -> bool:
        """Whether nothing is in progress on this connection, and what was answered before has been read."""
        return (self.cycle is None or self.cycle.response_complete) and not self.flow.write_paused

    def _go_the_ordinary_way(self) -> None:
        self._held = None
        if not self.transport.is_closing():
            self._begin_the_ordinary_way()
            super().on_body(self._body)

    def _begin_the_ordinary_way(self) -> None:
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expects
        self.headers.extend(headers)
        super().on_headers_complete()

    # What an express route says.

    def express_answered(self, exchange: _Exchange, status: int, headers: Iterable[Header], body: bytes) -> None:
        """Write an answer."""
        keep_alive = exchange.keep_alive and not self._shared.draining.is_set()
        head = _head(status, (*self.server_state.default_headers, *headers), keep_alive=keep_alive)
        self._shared.in_progress -= 1
        exchange.response_complete = True
        if not self.transport.is_closing():
            self.transport.write_whole(head + body)  # type: ignore[attr-defined] # ours, see `connection_made`
            if not keep_alive:
                self.transport.close()
        if self.pipeline or not keep_alive:
            self.on_response_complete()
        else:
            self.server_state.total_requests += 1
            self._quiet_since = self.loop.time()
            if self._quiet is None and not self.transport.is_closing():
                self._look_later(self.timeout_keep_alive)

    def express_abandoned(self) -> None:
        """Nothing certain can be said of a request: whoever asked finds the connection closed."""
        self._shared.in_progress -= 1
        self.transport.abort()

    def _look_later(self, seconds: float) -> None:
        self._quiet = self.loop.call_later(seconds, self._look)

    def _look(self) -> None:
        """One timer for a connection, where uvicorn makes and cancels one for each answer."""
        self._quiet = None
        busy = self._in_head or not self.cycle.response_complete
        if busy or self.timeout_keep_alive_task is not None:
            return  # the next answer's matter
        left = self._quiet_since + self.timeout_keep_alive - self.loop.time()
        if self.flow.write_paused:
            left = self.timeout_keep_alive  # who reads slowly is not idle
        if left > 0:
            self._look_later(left)
        else:
            self.timeout_keep_alive_handler()


def _too_long(target: bytes) -> ProblemError:
    """What is wrong with a head that has too many bytes."""
    if len(target) > TARGET_BYTES_MAX:
        return ProblemError(TARGET_TOO_LONG, f"The target has more than {TARGET_BYTES_MAX} bytes")
    return ProblemError(HEADERS_TOO_LARGE, f"The request's head has more than {HEAD_BYTES_MAX} bytes")


def _head(status: int, headers: Iterable[Header], *, keep_alive: bool) -> bytes:
    lines = [STATUS_LINE[status]]
    for name, value in headers:
        lines += (name, b": ", value, b"\r\n")
    lines.append(b"\r\n" if keep_alive else _CLOSE)
    head = b"".join(lines)
    breaks = len(lines) // 4 + (2 if keep_alive else 3)
    if head.count(b"\n") != breaks or head.count(b"\r") != breaks or head.translate(None, _TEXT):
        raise ValueError("a header has a line break or another control character")
    return head


class _Exchange:
    """One request on an express route (`deployments/express.py`), in the place of uvicorn's own kind."""

    __slots__ = ("_protocol", "body", "disconnected", "headers", "keep_alive", "on_answer", "response_complete")

    class _Nobody:
        def set(self) -> None:
            """Nobody waits for a message of an express request: it is whole."""

    message_event: ClassVar = _Nobody()

    def __init__(self, protocol: HttpProtocol, headers: list[Header], body: bytes, *, keep_alive: bool) -> None:
        self._protocol: HttpProtocol | None = protocol
        self.headers = headers
        self.body = body
        self.keep_alive = keep_alive
        self.on_answer: Callable[[int], None] = _nothing
        self.response_complete = False
        self.disconnected = False

    def answer(self, status: int, headers: Iterable[Header], body: bytes) -> None:
        """See `express.Exchange`."""
        if self._protocol is None:
            raise RuntimeError("a request is answered once")
        self._protocol.express_answered(self, status, headers, body)
        self._end(status)

    def abandon(self) -> None:
        """See `express.Exchange`."""
        if self._protocol is not None:
            self.response_complete = True
            self._protocol.express_abandoned()
            self._end(500)

    def _end(self, status: int) -> None:
        self._protocol = None  # which holds this: a closed connection must not wait for the garbage collector
        self.on_answer(status)


def until_closed(send: Send) -> Send:
    """uvicorn's `send` for an HTTP/1.0 client, who knows no chunks (RFC 9112, 7.1).

    An answer of unknown length ends with the connection.
    """
    cycle: Any = send.__self__  # type: ignore[attr-defined] # uvicorn's, which keeps no such connection alive
    unknown = False

    async def plain(message: Message) -> None:
        nonlocal unknown
        if message["type"] == "http.response.start":
            unknown = all(name != b"content-length" for name, _ in message["headers"])
            if unknown:
                cycle.chunked_encoding, cycle.expected_content_length = False, math.inf
        elif unknown and not message.get("more_body", False):
            cycle.expected_content_length = len(message.get("body", b""))
        await send(message)

    return plain


def _nothing(_: int) -> None:
    """Nobody wants to know."""
