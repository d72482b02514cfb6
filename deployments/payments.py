"""The payments application: one ASGI app over a shard client, the query store and the registry of owners.

`payments_routes.py` has the table of its calls. The edge, the gateway's secret and the tokens stand around it as
middleware.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from actors.shard_client import ShardStats, ShardUnavailable
from deployments import asyncapi
from deployments.auth.middleware import AuthenticationMiddleware, BearerBackend, GatewayMiddleware
from deployments.edge import Edge
from deployments.express import Routes
from deployments.openapi import Operation, docs_page, document, razao_version
from deployments.payments_call import (
    Call,
)
from deployments.payments_events import PATH as EVENTS
from deployments.payments_events import EventStream
from deployments.payments_express import express_routes
from deployments.payments_routes import INTRODUCTION, api_operations
from deployments.payments_schema import Health, ShardHealth
from deployments.payments_services import Services
from deployments.problem_pages import PAGE, PROBLEM_PAGES
from deployments.problems import (
    UNAVAILABLE,
    ProblemError,
    html_page,
    paragraphs,
)
from deployments.request import Answer, json_answer
from deployments.routes import Routes as Calls
from storage.listening import DATABASE_AWAY

__all__ = ["Services", "create_app"]

log = logging.getLogger(__name__)

TITLE: Final = "Razao payments"
_HEALTH_TTL_S: Final = 0.5
_HEALTH_TIMEOUT_S: Final = 1.0


def create_app(services: Services) -> ASGIApp:
    """The ASGI application. How many requests may be at work is decided around it (`deployments/admission.py`)."""
    return create(services)[0]


def create(services: Services) -> tuple[ASGIApp, Routes]:
    """The ASGI application, and what may go past it."""
    backend = BearerBackend(services.verifier, "payments")
    payments = Payments(services)
    guarded = GatewayMiddleware(AuthenticationMiddleware(payments, backend, is_public), services.gateway_secret)
    calls = Edge(guarded, deadline_s=services.deadline_s, translate=translate)
    lifetime_s = services.event_limits.lifetime_s + services.event_limits.send_s
    streams = Edge(guarded, deadline_s=services.deadline_s + lifetime_s, translate=translate)

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        await (streams if scope.get("path") == EVENTS else calls)(scope, receive, send)

    return application, express_routes(services, guarded, backend, calls)


def is_public(path: str) -> bool:
    """Health, documentation, problem pages, and whatever is not there at all."""
    return not path.startswith("/v1/")


def translate(error: Exception) -> ProblemError | None:
    """What a driver's error means to a client: the query store or the registry cannot be reached just now."""
    if isinstance(error, DATABASE_AWAY):
        return ProblemError(UNAVAILABLE, "The query store does not answer")
    return None


class Payments:
    """Finds the call and answers it. Around it stands the middleware that `create_app` adds."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._health: tuple[float, Health | ProblemError] | None = None
        self._asking: asyncio.Task[Health | ProblemError] | None = None
        self.operations = (*api_operations(), *self._own_operations())
        self._routes = Calls(self.operations)
        self._openapi = json.dumps(
            document(TITLE, razao_version(), INTRODUCTION, self.operations), ensure_ascii=False, indent=1
        ).encode()
        self._asyncapi = json.dumps(
            asyncapi.document(TITLE, razao_version(), EVENTS), ensure_ascii=False, indent=1
        ).encode()
        self._docs = docs_page(TITLE, _introduction_html(), self.operations)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        operation, path = self._routes.enter(scope)
        answer: Answer | EventStream = await operation.handler(Call(self._services, scope, receive, path))
        if isinstance(answer, EventStream):
            await answer.answer(receive, send, head=scope["method"] == "HEAD")
            return
        body = answer.body
        answer.headers.append((b"content-length", b"%d" % len(body)))
        await send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    # -- health and pages ---------------------------------------------------------------------------------------------

    def _own_operations(self) -> tuple[Operation, ...]:
        html = ("text/html",)
        return (
            Operation(
                "GET", "/healthz", "health", "Whether every shard serves",
                "200 only when all of them do. Looked at afresh at most twice a second.", self._get_health,
                response=Health, problems=(UNAVAILABLE,),
            ),
            Operation("GET", "/openapi.json", "openapi", "This contract as OpenAPI 3.1", "", self._get_openapi),
            Operation(
                "GET", "/asyncapi.json", "asyncapi", "The events as AsyncAPI 3.0",
                "Every type of event with its schema, for `/v1/events` and for the topic.", self._get_asyncapi,
            ),
            Operation("GET", "/docs", "docs", "This contract for people", "", self._get_docs, media_types=html),
            Operation("GET", "/", "index", "Where things are", "", _get_index, media_types=html),
            *PROBLEM_PAGES,
        )  # fmt: skip

    async def _get_health(self, _: Call) -> Answer:
        known = self._health
        if known is None or time.monotonic() - known[0] > _HEALTH_TTL_S:
            if self._asking is None or self._asking.done():
                self._asking = asyncio.create_task(self._ask_shards(), name="health of the shards")
            await asyncio.shield(self._asking)
            known = self._health
        assert known is not None  # noqa: S101 - just asked
        if isinstance(known[1], ProblemError):
            problem = known[1]
            raise ProblemError(problem.problem, problem.detail, **problem.members)
        return json_answer(200, known[1])

    async def _ask_shards(self) -> Health | ProblemError:
        deadline = time.monotonic() + _HEALTH_TIMEOUT_S
        answer: Health | ProblemError
        try:
            stats: list[ShardStats] = await self._services.client.stats(deadline)
        except ShardUnavailable as error:
            answer = ProblemError(UNAVAILABLE, f"Not every shard serves: {error}")
        else:
            answer = Health("ok", [ShardHealth(one.name, one.epoch, one.offset) for one in stats])
            for one in stats:
                if one.clock_ahead_s:
                    answer = ProblemError(UNAVAILABLE, f"{one.name} does not serve: its clock is not believed")
        self._health = (time.monotonic(), answer)
        return answer

    async def _get_openapi(self, _: Call) -> Answer:
        return Answer(200, self._openapi, [(b"content-type", b"application/json"), PAGE[1]])

    async def _get_asyncapi(self, _: Call) -> Answer:
        return Answer(200, self._asyncapi, [(b"content-type", b"application/json"), PAGE[1]])

    async def _get_docs(self, _: Call) -> Answer:
        return Answer(200, self._docs, list(PAGE))


async def _get_index(_: Call) -> Answer:
    links = "".join(
        f"<li><a href='{path}'><code>{path}</code></a> {text}"
        for path, text in (
            ("/docs", "all calls, with examples"),
            ("/openapi.json", "the same as OpenAPI 3.1"),
            ("/asyncapi.json", "the events as AsyncAPI 3.0"),
            ("/problems", "what can go wrong"),
            ("/healthz", "whether every shard serves"),
        )
    )
    return Answer(200, html_page(TITLE, f"<h1>{TITLE}</h1><ul>{links}</ul>"), list(PAGE))


def _introduction_html() -> str:
    links = "<a href='/openapi.json'>calls</a>, <a href='/asyncapi.json'>events</a>"
    return f"{paragraphs(INTRODUCTION)}<p>For programs: {links}.</p>"
