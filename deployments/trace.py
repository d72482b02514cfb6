"""The trace application: what happened to a person last, by user and password, as fast as the framework allows.

The edge, the gateway's secret and the credentials stand around a table of calls, as in the other applications.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from starlette.types import ASGIApp

from deployments.auth.middleware import AuthenticationMiddleware, GatewayMiddleware
from deployments.edge import Edge
from deployments.openapi import BASIC
from deployments.problems import UNAVAILABLE, ProblemError
from deployments.service import Service, public_paths
from deployments.trace_calls import PREFIX, Call, Services, operations
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
    return Edge(guarded, deadline_s=services.deadline_s, translate=translate)


def translate(error: Exception) -> ProblemError | None:
    """What a store's error means to a client."""
    return ProblemError(UNAVAILABLE, "The store does not answer") if isinstance(error, StoreAway) else None
