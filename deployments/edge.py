"""The rim of an application: numbers requests, bounds how long they take, and answers what goes wrong.

Plain ASGI, around everything but the admission (`deployments/admission.py`), which counts. It scans the headers once
for everybody within, turns every ProblemError into its answer, and every unforeseen exception into a 500 that says
nothing but the number under which the log has it. Once a request has sent something on, whatever goes wrong is told as
`unsure` instead: only the problem that the application has marked as the outcome may say that nothing was done.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.json_body import ClientGone
from deployments.logs import CURRENT, AccessLog
from deployments.problems import (
    INTERNAL_ERROR,
    MEDIA_TYPE,
    TIMEOUT,
    UNAVAILABLE,
    UNSURE,
    ProblemError,
    malformed,
)
from deployments.request import Header

log = logging.getLogger(__name__)

GRACE_S: Final = 1.0
"""How long behind a request's deadline the edge itself ends it: the parts within know the deadline and end sooner."""

_LOOK_S: Final = 0.1
REQUEST_ID: Final = re.compile(rb"[\x21-\x7e]{1,128}")
_ONCE: Final = (
    b"authorization",
    b"content-type",
    b"content-length",
    b"content-encoding",
    b"idempotency-key",
    b"razao-gateway",
    b"razao-position",
    b"razao-tax-id",
    b"razao-purpose",
    b"razao-client-address",
    b"x-correlation-id",
    b"x-request-id",
)
_NO_STORE: Final[Header] = (b"cache-control", b"no-store")
_PROBLEM_TYPE: Final = (b"content-type", MEDIA_TYPE.encode())


class Edge:
    """Wraps an application.

    Scope keys that it sets: `razao.headers` (dict of lower-case names), `razao.request_id`, `razao.deadline`
    (time.monotonic seconds). Scope keys that it heeds: `razao.event`, into which the application writes the id of what
    it is about to send on, `razao.outcome`, the ProblemError that is what became of that, and `razao.realm`, what its
    challenges are for.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        deadline_s: float,
        translate: Callable[[Exception], ProblemError | None] = lambda _: None,
        access: AccessLog | None = None,
    ) -> None:
        """Wrap `app`.

        Args:
            app: ASGI.
            deadline_s: how long a request may take.
            translate: what an exception of a driver means, None when it was not foreseen.
            access: what writes a line of answers; default: of refusals alone.
        """
        self._app = app
        self._deadline_s = deadline_s
        self._translate = translate
        self._access = access or AccessLog()
        self._watch = _Watch()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        pairs = scope["headers"]
        headers: dict[bytes, bytes] = dict(pairs)
        request_id = number(headers)
        CURRENT.set(scope)
        scope["razao.headers"] = headers
        scope["razao.request_id"] = request_id.decode()
        reply = _Reply(send, scope)
        scope["razao.deadline"] = deadline = time.monotonic() + self._deadline_s
        await self._watched(scope, reply, self._bounded(scope, receive, reply, deadline))

    async def refuse(self, scope: Scope, send: Send, why: Awaitable[ProblemError]) -> None:
        """Answer a request that an express route has taken with the problem that it is.

        `scope` has what `__call__` puts there, and the request's method and path.
        """
        CURRENT.set(scope)
        reply = _Reply(send, scope)

        async def refused() -> None:
            try:
                async with asyncio.timeout(scope["razao.deadline"] + GRACE_S - time.monotonic()):
                    raise await why
            except TimeoutError:
                raise _late(at_body=False) from None

        await self._watched(scope, reply, refused())

    async def _watched(self, scope: Scope, reply: _Reply, work: Awaitable[None]) -> None:
        try:
            await work
        except ProblemError as error:
            await reply.problem(_certain(scope, error))
        except ClientGone:
            log.debug("the client of %s has gone", scope["razao.request_id"])
        except Exception as error:  # noqa: BLE001 - the last place where one can be answered
            await reply.problem(_certain(scope, self._known(scope, error)))
        if self._access.wants(reply.status):
            seconds = time.monotonic() - scope["razao.deadline"] + self._deadline_s
            self._access.write(scope, reply.status, seconds, reply.refusal)

    async def _bounded(self, scope: Scope, receive: Receive, reply: _Reply, deadline: float) -> None:
        if len(scope["razao.headers"]) != len(scope["headers"]):
            _refuse_repeated_headers(scope["headers"])
        body = _Body(receive)
        try:
            with self._watch.until(deadline + GRACE_S):
                await self._app(scope, body, reply)
        except TimeoutError:
            raise _late(at_body=body.awaited) from None

    def _known(self, scope: Scope, error: Exception) -> ProblemError:
        known = self._translate(error)
        request_id = scope["razao.request_id"]
        if known is not None:
            log.warning("%s %s failed: %r (request %s)", scope["method"], _place(scope), error, request_id)
            return known
        log.error("%s %s failed (request %s)", scope["method"], _place(scope), request_id, exc_info=error)
        return ProblemError(INTERNAL_ERROR, "An error that we did not foresee; the log has it")


def number(headers: dict[bytes, bytes]) -> bytes:
    """The request's number: the gateway's, else a fresh one. A header out of form is taken out."""
    given = headers.get(b"x-request-id", b"")
    if REQUEST_ID.fullmatch(given):
        return given
    headers.pop(b"x-request-id", None)
    return os.urandom(16).hex().encode()


def finish(headers: list[Header], scope: Scope) -> None:
    """Add to an answer's headers what every answer has.

    That is its request's number; the realm of a challenge (RFC 9110, 11.5); and that nobody may store it, unless it
    says itself who may: nearly all are about a person or their money.
    """
    storable = False
    for place, (name, value) in enumerate(headers):
        if name == b"cache-control":
            storable = True
        elif name == b"www-authenticate" and b"realm=" not in value:
            scheme, _, rest = value.partition(b" ")
            realm = scheme + b' realm="%s"' % scope.get("razao.realm", "razao").encode()
            headers[place] = (name, realm + b", " + rest if rest else realm)
    if not storable:
        headers.append(_NO_STORE)
    headers.append((b"x-request-id", scope["razao.request_id"].encode()))


class _Watch:
    """Ends requests that are late, all with one timer: `asyncio.timeout` makes, and cancels, one for each.

    Deadlines must be given in their order, as they are when each request has the same time.
    """

    def __init__(self) -> None:
        self._guarded: dict[_Guard, None] = {}  # in the order of their deadlines
        self._timer: asyncio.TimerHandle | None = None

    def until(self, deadline: float) -> _Guard:
        """Raises TimeoutError inside `with` some time (at most `_LOOK_S`) after `deadline`, time.monotonic seconds."""
        guard = _Guard(self._guarded, deadline)
        self._guarded[guard] = None
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_LOOK_S, self._look)
        return guard

    def _look(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(_LOOK_S, self._look) if self._guarded else None
        now = time.monotonic()
        for guard in self._guarded:
            if guard.deadline > now:
                break
            guard.end()


class _Guard:
    """One request under a `_Watch`. A cancellation from elsewhere stays one, as with `asyncio.timeout`."""

    __slots__ = ("_among", "_cancelling", "_ended", "_task", "deadline")

    def __init__(self, among: dict[_Guard, None], deadline: float) -> None:
        self.deadline = deadline
        self._among = among
        self._ended = False
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - ASGI runs in tasks
        self._task = task
        self._cancelling = task.cancelling()

    def end(self) -> None:
        """The deadline has come."""
        if not self._ended:
            self._ended = True
            self._task.cancel()

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        del self._among[self]
        if self._ended and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error


class _Body:
    """`receive` that knows whether somebody waits for the client."""

    __slots__ = ("_receive", "awaited")

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.awaited = False

    async def __call__(self) -> Message:
        self.awaited = True
        message = await self._receive()
        self.awaited = False
        return message


class _Reply:
    """`send` that finishes the answer's headers and knows whether it has begun."""

    __slots__ = ("_scope", "_send", "begun", "refusal", "status")

    def __init__(self, send: Send, scope: Scope) -> None:
        self._send = send
        self._scope = scope
        self.begun = False
        self.status = 0  # nothing was answered
        self.refusal = ""

    async def __call__(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.begun = True
            self.status = message["status"]
            finish(message["headers"], self._scope)
        await self._send(message)

    async def problem(self, error: ProblemError) -> None:
        """Answer with a problem, unless an answer has begun already."""
        if self.begun:
            log.error("an answer broke off: %s (request %s)", error, self._scope["razao.request_id"])
            raise error
        self.refusal = error.problem.name
        body = error.body(self._scope["razao.request_id"])
        headers = [(name.encode(), value.encode("latin-1", "replace")) for name, value in error.headers.items()]
        headers += [_PROBLEM_TYPE, (b"content-length", b"%d" % len(body))]
        await self({"type": "http.response.start", "status": error.status, "headers": headers})
        await self({"type": "http.response.body", "body": body})


def _certain(scope: Scope, error: ProblemError) -> ProblemError:
    """What may be said of a request: after something was sent on, no failure but the outcome itself is definite."""
    event = scope.get("razao.event")
    if event is None or error is scope.get("razao.outcome"):
        return error
    return ProblemError(UNSURE, f"The outcome was not learnt: {error.detail}", id=event)


def _late(*, at_body: bool) -> ProblemError:
    if at_body:
        return ProblemError(TIMEOUT, "The body did not arrive in time")
    return ProblemError(UNAVAILABLE, "The request took too long")


def _place(scope: Scope) -> str:
    """The template of the route, where the application has found one."""
    operation = scope.get("razao.operation")
    return str(scope["path"] if operation is None else operation.path)


def _refuse_repeated_headers(pairs: list[tuple[bytes, bytes]]) -> None:
    names = [name for name, _ in pairs]
    for name in _ONCE:
        if names.count(name) > 1:
            raise malformed(name.decode().title(), "The header is there twice")


async def _lifespan(receive: Receive, send: Send) -> None:
    """Nothing to start or stop here: whoever made the services ends them."""
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
