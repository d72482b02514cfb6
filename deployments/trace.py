"""The trace application: what happened to a person last, by user and password, as fast as the framework allows.

The edge, the gateway's secret and the credentials stand around a table of calls, as in the other applications. Before
them all there is a shortcut for what is asked most.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Sequence
from functools import partial
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from deployments.auth.middleware import AuthenticationMiddleware, GatewayMiddleware
from deployments.edge import REQUEST_ID, Edge
from deployments.openapi import BASIC
from deployments.problems import UNAVAILABLE, ProblemError
from deployments.request import Answer, Header, client_address
from deployments.service import Service, public_paths
from deployments.trace_calls import PERSON, PREFIX, Call, Services, age_headers, note, operations
from storage.documents import StoreAway

__all__ = ["PREFIX", "Services", "create_app"]

_TITLE: Final = "Razao trace"
_INTRODUCTION: Final = (
    "The trace of a person: who asked about them last, the newest movements of their accounts, their last card "
    "purchase. The person's CPF or CNPJ travels in the header `Razao-Tax-Id`, never in an address.\n\n"
    "Users and passwords belong to this service alone and travel by HTTP Basic; tokens do not open it. Each question "
    "about a person is kept as their last one: when, from which address, by which user."
)


def create_app(services: Services) -> ASGIApp:
    """The ASGI application. How many requests may be at work is decided around it (`deployments/admission.py`)."""
    service = Service(
        _TITLE, PREFIX, _INTRODUCTION, operations(), call=partial(Call, services), check_health=services.traces.ping,
        security=BASIC,
    )  # fmt: skip
    secured = AuthenticationMiddleware(service, services.backend, public_paths(PREFIX))
    guarded = GatewayMiddleware(secured, services.gateway_secret)
    return Shortcut(Edge(guarded, deadline_s=services.deadline_s, translate=translate), services)


class Shortcut:
    """Answers questions about people when nothing has to be looked up, found wrong, or waited for: 5 µs instead of 9.

    That is when gateway, user and person were all seen before, just so, and the answer is young enough. Whatever is not
    exactly that goes the whole way, which alone says what is wrong with a request.
    """

    def __init__(self, app: ASGIApp, services: Services) -> None:
        self._app = app
        self._services = services
        self._secret = (services.gateway_secret or "").encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "http" and scope["path"] == PERSON and scope["method"] == "GET":
            answer = None if scope["query_string"] else self._answer(scope["headers"])
            if answer is not None:
                await send({"type": "http.response.start", "status": 200, "headers": answer.headers})
                await send({"type": "http.response.body", "body": answer.body})
                return
        await self._app(scope, receive, send)

    def _answer(self, pairs: Sequence[Header]) -> Answer | None:
        headers = dict(pairs)
        request_id = headers.get(b"x-request-id", b"")
        if len(headers) != len(pairs) or not REQUEST_ID.fullmatch(request_id):
            return None
        if not hmac.compare_digest(headers.get(b"razao-gateway", b""), self._secret):
            return None
        services = self._services
        identity = services.backend.known(headers)
        person = services.references.known(headers.get(b"razao-tax-id", b""))
        if identity is None or person is None:
            return None
        now = time.monotonic()
        found = services.answers.kept(person, now)
        if found is None:
            return None
        note(services, person, client_address(headers.get(b"razao-client-address", b"")), identity.subject)
        return Answer(200, found.body, [*age_headers(found, now), found.length, (b"x-request-id", request_id)])


def translate(error: Exception) -> ProblemError | None:
    """What a store's error means to a client."""
    return ProblemError(UNAVAILABLE, "The store does not answer") if isinstance(error, StoreAway) else None
