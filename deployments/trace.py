"""The trace application: what happened to a person last, by user and password, as fast as the framework allows.

The edge, the gateway's secret and the credentials stand around a table of calls, as in the other applications. What is
asked most has an express route past them.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Final

from starlette.types import ASGIApp

from deployments.auth.middleware import AuthenticationMiddleware, GatewayMiddleware
from deployments.edge import REQUEST_ID, Edge
from deployments.express import Exchange, Routes
from deployments.openapi import BASIC
from deployments.problems import UNAVAILABLE, ProblemError
from deployments.request import client_address
from deployments.service import Service, public_paths
from deployments.trace_calls import PERSON, PREFIX, Call, Services, age_headers, note, operations
from storage.documents import StoreAway

__all__ = ["PREFIX", "Services", "create"]

_TITLE: Final = "Razao trace"
_INTRODUCTION: Final = (
    "The trace of a person: who asked about them last, the newest movements of their accounts, their last card "
    "purchase. The person's CPF or CNPJ travels in the header `Razao-Tax-Id`, never in an address.\n\n"
    "Users and passwords belong to this service alone and travel by HTTP Basic; tokens do not open it. Each question "
    "about a person is kept as their last one: when, from which address, by which user."
)


def create(services: Services) -> tuple[ASGIApp, Routes]:
    """The ASGI application, and what may go past it. How many requests may be at work is decided around both."""
    service = Service(
        _TITLE, PREFIX, _INTRODUCTION, operations(), call=partial(Call, services), check_health=services.traces.ping,
        security=BASIC,
    )  # fmt: skip
    secured = AuthenticationMiddleware(service, services.backend, public_paths(PREFIX))
    gateway = GatewayMiddleware(secured, services.gateway_secret)
    app = Edge(gateway, deadline_s=services.deadline_s, translate=translate)
    return app, {(b"GET", PERSON.encode()): PersonRoute(services, gateway)}


class PersonRoute:
    """Answers questions about people when nothing has to be looked up, found wrong, or waited for.

    That is when user and person were both seen before, just so, and the answer is young enough. Whatever is not exactly
    that goes the ordinary way, which alone says what is wrong with a request.
    """

    def __init__(self, services: Services, gateway: GatewayMiddleware) -> None:
        self._services = services
        self._gateway = gateway

    def __call__(self, exchange: Exchange) -> bool:
        """See `express.Route`."""
        headers = dict(exchange.headers)
        request_id = headers.get(b"x-request-id", b"")
        if len(headers) != len(exchange.headers) or not REQUEST_ID.fullmatch(request_id):
            return False
        if exchange.body or not self._gateway.admits(headers):
            return False
        services = self._services
        identity = services.backend.known(headers)
        person = services.references.known(headers.get(b"razao-tax-id", b""))
        if identity is None or person is None:
            return False
        now = time.monotonic()
        found = services.answers.kept(person, now)
        if found is None:
            return False
        note(services, person, client_address(headers.get(b"razao-client-address", b"")), identity.subject)
        exchange.answer(200, [*age_headers(found, now), found.length, (b"x-request-id", request_id)], found.body)
        return True


def translate(error: Exception) -> ProblemError | None:
    """What a store's error means to a client."""
    return ProblemError(UNAVAILABLE, "The store does not answer") if isinstance(error, StoreAway) else None
