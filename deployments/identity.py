"""The identity application: one ASGI app over the stores of people, clients, grants and keys.

`identity_routes.py` has the table of its calls. The edge, the gateway's secret and the tokens stand
around it as middleware, the same as around payments.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from starlette.types import ASGIApp

from deployments.auth.middleware import AuthenticationMiddleware, BearerBackend, GatewayMiddleware
from deployments.auth.tokens import KeysUnavailable
from deployments.edge import Edge
from deployments.identity_call import Call
from deployments.identity_pages import page
from deployments.identity_routes import INTRODUCTION, api_operations
from deployments.identity_services import Services
from deployments.problems import UNAVAILABLE, ProblemError
from deployments.service import Service
from storage.listening import DATABASE_AWAY

__all__ = ["HEALTH", "Services", "create_app"]

TITLE: Final = "Razao identity"
PREFIX: Final = "/auth"
HEALTH: Final = f"{PREFIX}/healthz"
_PAGE: Final = (
    *(pair for pair in page(200, "", "").headers if pair[0] != b"cache-control"),
    (b"cache-control", b"public, max-age=300"),
)
"""Of a page beside the login's, as strict as that one, but the same for everybody."""
_OPENED: Final = frozenset(one.path for one in api_operations() if one.scope is not None)
_BEARERS: Final = frozenset(path for path in _OPENED if "{" not in path)
_BEARERS_BELOW: Final = tuple(path.partition("{")[0] for path in _OPENED if "{" in path)


def create_app(services: Services) -> ASGIApp:
    """The ASGI application. How many requests may be at work is decided around it (`deployments/admission.py`)."""

    async def check_health() -> None:
        services.signer.current()
        await services.clients.get("")

    service = Service(
        TITLE, PREFIX, INTRODUCTION, api_operations(), call=partial(Call, services), check_health=check_health,
        health="Whether the store answers and there is a key to sign with", page=_PAGE,
    )  # fmt: skip
    secured = AuthenticationMiddleware(service, BearerBackend(services.verifier, "identity"), is_public)
    guarded = GatewayMiddleware(secured, services.gateway_secret)
    return Edge(guarded, deadline_s=services.deadline_s, translate=translate)


def is_public(path: str) -> bool:
    """All but the few calls that a token opens."""
    return path not in _BEARERS and not path.startswith(_BEARERS_BELOW)


def translate(error: Exception) -> ProblemError | None:
    """What a driver's error means to a client: the store cannot be reached just now."""
    if isinstance(error, (*DATABASE_AWAY, KeysUnavailable)):
        return ProblemError(UNAVAILABLE, "The store of identities does not answer")
    return None
