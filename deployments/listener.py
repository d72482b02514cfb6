"""The HTTP listener that a Serve replica opens for itself.

Serve's own path from socket to replica costs more than the request (ARCHITECTURE.md has figures). So each replica runs
uvicorn as a task on its own loop, and all replicas of an application on a node bind the application's one port with
SO_REUSEPORT: the kernel spreads the connections, and a replica that comes or goes changes nobody's configuration.

A replica must be able to leave without losing a request, which uvicorn's own shutdown does not promise: it resets what
the kernel had accepted for it, and closes idle connections on which a request may be under way. `Listener.drain` does.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import logging
import select
import socket
import struct
import time
from collections.abc import Awaitable
from contextlib import nullcontext, suppress
from functools import partial
from types import MappingProxyType
from typing import Final

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.express import Routes
from deployments.http_protocol import HttpProtocol, Shared, until_closed

_log = logging.getLogger(__name__)

BACKLOG: Final = 4096
_TURNS: Final = 100
_ACCEPTING_S: Final = 0.1
_SO_ATTACH_FILTER: Final = 26  # <asm-generic/socket.h>
_BPF_RET_K: Final = 0x06  # <linux/bpf_common.h>: return a constant, here 0: keep nothing of the packet


_NO_ROUTES: Final[Routes] = MappingProxyType({})


class PortTaken(OSError):  # noqa: N818 - says what happened
    """A process that does not share its port owns the one that the application was given."""


def shared_socket(host: str, port: int) -> socket.socket:
    """Bind `host:port` so that every process of the same user that does likewise gets its share of the connections.

    Bound and not yet listening, it takes no connection: that is how a supervisor holds an application's port.

    Raises:
        PortTaken: somebody has the port and does not share it.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    shared = socket.socket(family, socket.SOCK_STREAM)
    try:
        shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        shared.bind((host, port))
        shared.setblocking(False)
    except OSError as error:
        shared.close()
        if error.errno in {errno.EADDRINUSE, errno.EACCES}:
            reason = f"port {port} on {host} belongs to a process that does not share it"
            raise PortTaken(error.errno, reason) from error
        raise
    return shared


class Listener:
    """Serves `app` on `host:port` from the running loop; `port` 0 takes a free one, then found in `port`.

    `routes`: what need not go through `app`, see `deployments/express.py`.
    An answer that goes on (events) must end when `scope["razao.draining"]`, an asyncio.Event, is set.
    `root_path`: the prefix below which the application is mounted, as Serve's proxy would set it. `keep_alive_s` is
    longer than any gateway keeps an idle connection, so that it is never we who close one that it is about to use.
    """

    def __init__(
        self,
        app: ASGIApp,
        host: str,
        port: int,
        *,
        routes: Routes = _NO_ROUTES,
        root_path: str = "",
        keep_alive_s: int = 75,
        backlog: int = BACKLOG,
    ) -> None:
        self.host = host
        self.port = port
        self._app = app
        self._root_path = root_path
        self._shared = Shared(routes)
        self._socket: socket.socket | None = None
        self._task: asyncio.Task[None] | None = None
        config = uvicorn.Config(
            self._serve,
            http=partial(HttpProtocol, shared=self._shared),  # type: ignore[arg-type] # called, no more
            ws="none",
            lifespan="off",  # whoever made the application starts and ends it
            interface="asgi3",
            backlog=backlog,
            timeout_keep_alive=keep_alive_s,
            access_log=False,
            log_config=None,
            log_level=logging.ERROR,
            proxy_headers=False,  # only the gateway's own header may name a client
            server_header=False,
        )
        self._server = uvicorn.Server(config)
        # The process belongs to Ray: its signals too.
        self._server.capture_signals = nullcontext  # type: ignore[method-assign, assignment]

    @property
    def connections(self) -> int:
        """Connections open, idle ones too."""
        return len(self._server.server_state.connections)

    @property
    def in_progress(self) -> int:
        """Requests whose answer is not finished."""
        return len(self._server.server_state.tasks) + self._shared.in_progress

    @property
    def total(self) -> int:
        """Requests answered since the start."""
        return self._server.server_state.total_requests

    @property
    def alive(self) -> bool:
        """Whether it accepts connections."""
        return self._task is not None and not self._task.done() and not self._shared.draining.is_set()

    async def start(self) -> None:
        """Bind and accept. Raises PortTaken, see `shared_socket`."""
        self._socket = shared_socket(self.host, self.port)
        self.port = int(self._socket.getsockname()[1])
        self._task = asyncio.get_running_loop().create_task(self._server.serve(sockets=[self._socket]), name="listener")
        while not self._server.started:
            if self._task.done():
                await self._task
                raise RuntimeError("the HTTP server ended before it started")
            await asyncio.sleep(0.005)

    async def drain(self, timeout_s: float = 15.0, *, idle_s: float = 1.0) -> int:
        """Leave without losing a request; returns how many were cut off at `timeout_s`, normally 0.

        Connections that the kernel took for us are served. On each open connection the next answer says `Connection:
        close`; those on which none comes for `idle_s` are closed at the end, when a request under way is as good as
        ruled out.
        """
        if self._task is None or self._socket is None:
            return 0
        deadline = time.monotonic() + timeout_s
        self._shared.draining.set()
        await self._leave_the_port(self._socket)
        for connection in list(self._server.server_state.connections):
            cycle = getattr(connection, "cycle", None)
            if cycle is not None:
                cycle.keep_alive = False  # of a request in progress; of an answered one it has no effect
        began = quiet_since = time.monotonic()
        seen = self.total
        while (now := time.monotonic()) < deadline:
            if self.in_progress or self.total != seen:
                seen = self.total
                quiet_since = now
            elif now - quiet_since >= idle_s:
                break
            # What was accepted last needs some turns of the loop until it counts as a connection.
            if not self.connections and now - began > _ACCEPTING_S:
                break
            await asyncio.sleep(0.02)
        lost = self.in_progress
        self._server.config.timeout_graceful_shutdown = 1
        self._server.should_exit = True
        with suppress(TimeoutError, asyncio.CancelledError):
            async with asyncio.timeout(max(2.0, deadline - time.monotonic())):
                await self._task
        for _ in range(_TURNS):  # what was cut off ends in the next turns of the loop
            if not self.in_progress:
                break
            await asyncio.sleep(0)
        if lost:
            _log.error("%d requests were still in progress after %.1f s and have been cut off", lost, timeout_s)
        return lost

    async def _leave_the_port(self, listening: socket.socket) -> None:
        """Close the listening socket without resetting anybody.

        Closing a SO_REUSEPORT socket resets what waits in its own queue. So the kernel is told to drop new connection
        attempts to it (the client's repeats them a second later and finds another replica), the queue is emptied, and
        only then it is closed.
        """
        _drop_new_connections(listening)
        queue = select.poll()
        queue.register(listening, select.POLLIN)
        given_up = time.monotonic() + 1.0
        while queue.poll(0) and time.monotonic() < given_up:  # noqa: ASYNC110 - the kernel sets no event
            await asyncio.sleep(0)
        for _ in range(5):  # an accepted connection belongs to the server a turn or two of the loop later
            await asyncio.sleep(0)
        for server in self._server.servers:
            server.close()
        listening.close()

    def _serve(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        # Not a coroutine function: one frame less per request.
        if self._root_path:
            scope["root_path"] = self._root_path
        scope["razao.draining"] = self._shared.draining
        if scope["http_version"] == "1.0":
            send = until_closed(send)
        return self._app(scope, receive, _closing(send) if self._shared.draining.is_set() else send)


def _closing(send: Send) -> Send:
    """`send`, with `Connection: close` on the answer."""

    async def closing(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
        await send(message)

    return closing


def _drop_new_connections(listening: socket.socket) -> None:
    """Attach a filter that drops every packet for the listening socket itself; connections made before have their own.

    Only Linux has it. Elsewhere a connection that comes in the microseconds before the close is reset.
    """
    program = ctypes.create_string_buffer(struct.pack("HBBI", _BPF_RET_K, 0, 0, 0))
    with suppress(OSError):
        listening.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", 1, ctypes.addressof(program)))
