"""How many requests an application works on at once, how many may wait, and what it says to the rest.

Every application has one `Admission` around it, as pure ASGI. A request finds a free slot, or waits its turn in the
order of arrival, or is refused with 429: a queue that everybody may join makes everybody late. The same object holds
the numbers by which replicas are added, removed, drained and watched. On the hot path that is a few additions; whoever
publishes them does it once a second (`deployments/serving.py`).
"""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Awaitable
from contextlib import suppress
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.express import Exchange, Route
from deployments.problems import MEDIA_TYPE, OVERLOADED, ProblemError

LATENCY_BUCKETS_S: Final = (
    0.001,
    0.002,
    0.003,
    0.005,
    0.0075,
    0.01,
    0.015,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    10.0,
)
_STATUSES: Final = 600
_EXEMPT: Final = frozenset(
    {"/healthz", "/auth/healthz", "/vault/v1/healthz", "/score/v1/healthz", "/trace/v1/healthz", "/v1/events"}
)


class Admission:
    """At most `max_in_progress` requests inside `app`, at most `max_waiting` before it, each for `max_wait_s`.

    Paths in `exempt` are neither counted nor refused: a health check must be answered by a replica that is full, and a
    stream of events, which lasts and has limits of its own, is no work in progress.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        max_in_progress: int = 512,
        max_waiting: int = 1024,
        max_wait_s: float = 5.0,
        exempt: frozenset[str] = _EXEMPT,
    ) -> None:
        self._app = app
        self.max_in_progress = max_in_progress
        self.max_waiting = max_waiting
        self.max_wait_s = max_wait_s
        self._exempt = exempt
        self._waiting: deque[tuple[float, asyncio.Future[None]]] = deque()
        self._here = 0
        self._began_sum = 0.0
        self.in_progress = 0
        self.refused = 0
        self.statuses = [0] * _STATUSES
        self.latencies = [0] * (len(LATENCY_BUCKETS_S) + 1)
        self.latency_sum_s = 0.0

    def set_limits(self, *, max_in_progress: int, max_waiting: int, max_wait_s: float) -> None:
        """Change the limits while requests run. Lower ones send nobody away who is inside or waits."""
        self.max_in_progress = max_in_progress
        self.max_waiting = max_waiting
        self.max_wait_s = max_wait_s
        while self._waiting and self.in_progress < self.max_in_progress:
            self.in_progress += 1
            self._release()

    @property
    def waiting(self) -> int:
        """Requests that have no slot yet."""
        return len(self._waiting)

    def oldest_wait_s(self) -> float:
        """How long the first in the queue has waited, 0 when nobody waits."""
        return time.perf_counter() - self._waiting[0][0] if self._waiting else 0.0

    def request_seconds(self) -> float:
        """Time that requests have spent here, all added up, those still here included.

        Its growth per second is the mean number of requests here. Looking at that number now and then does not do: who
        asks and who looks often keep time together, and then one sees all of them or none.
        """
        return self.latency_sum_s + self._here * time.perf_counter() - self._began_sum

    @property
    def total(self) -> int:
        """Requests answered, refused ones too."""
        return sum(self.statuses)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in self._exempt:
            await self._app(scope, receive, send)
            return
        began = self._arrived()

        def counted(message: Message) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                self.statuses[message["status"]] += 1
            return send(message)

        try:
            if self.in_progress < self.max_in_progress and not self._waiting:
                self.in_progress += 1
            elif not await self._turn(began):
                await self._refuse(scope, counted)
                return
            try:
                await self._app(scope, receive, counted)
            finally:
                self._release()
        finally:
            self._left(began)

    def express(self, route: Route) -> Route:
        """`route` within the same limits. What would have to wait for a slot goes the ordinary way."""

        def admitted(exchange: Exchange) -> bool:
            if self._waiting or self.in_progress >= self.max_in_progress:
                return False
            began = self._arrived()
            self.in_progress += 1

            def answered(status: int) -> None:
                self.statuses[status] += 1
                self._release()
                self._left(began)

            exchange.on_answer = answered
            if route(exchange):
                return True
            self._release()
            self._here -= 1
            self._began_sum -= began
            return False

        return admitted

    def _arrived(self) -> float:
        began = time.perf_counter()
        self._here += 1
        self._began_sum += began
        return began

    def _left(self, began: float) -> None:
        took = time.perf_counter() - began
        self._here -= 1
        self._began_sum -= began
        self.latency_sum_s += took
        self.latencies[bisect_left(LATENCY_BUCKETS_S, took)] += 1

    async def _turn(self, now: float) -> bool:
        """Wait for a slot. False: there is no place to wait, or it took too long."""
        if len(self._waiting) >= self.max_waiting:
            return False
        slot: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        place = (now, slot)
        self._waiting.append(place)
        try:
            async with asyncio.timeout(self.max_wait_s):
                await slot
        except TimeoutError:
            pass
        except BaseException:
            self._leave(place)
            raise
        else:
            return True
        self._leave(place)
        return False

    def _leave(self, place: tuple[float, asyncio.Future[None]]) -> None:
        """Give up waiting; a slot that came in the same instant goes to the next."""
        if place[1].done() and not place[1].cancelled():
            self._release()
        else:
            with suppress(ValueError):  # a release in the same instant took it out already
                self._waiting.remove(place)

    def _release(self) -> None:
        """Hand the slot to whoever waits longest. `in_progress` stays the same then."""
        while self._waiting and self.in_progress <= self.max_in_progress:
            _, slot = self._waiting.popleft()
            if not slot.done():
                slot.set_result(None)
                return
        self.in_progress -= 1

    async def _refuse(self, scope: Scope, send: Send) -> None:
        self.refused += 1
        problem = ProblemError(OVERLOADED, f"{self.in_progress} requests are in progress and {self.waiting} wait here.")
        request_id = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        body = problem.body(request_id.decode("latin-1"))
        headers = {"content-type": MEDIA_TYPE, "content-length": str(len(body)), **problem.headers}
        start = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": problem.status, "headers": start})
        await send({"type": "http.response.body", "body": body})
