"""The vault, tier A: one ASGI app over the store of sealed personal data, its grants and its record of accesses.

Around the calls of `vault_routes.py` stand, from the outside in: the edge, the gateway's secret, the networks that may
enter, and the tokens of the audience `vault`. Whatever fails ends the request without an answer.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from starlette.types import ASGIApp

from deployments.auth.middleware import AuthenticationMiddleware, BearerBackend, GatewayMiddleware
from deployments.auth.network import NetworkMiddleware
from deployments.auth.tokens import KeysUnavailable
from deployments.edge import Edge
from deployments.logs import AccessLog
from deployments.problems import UNAVAILABLE, ProblemError
from deployments.service import Service, public_paths
from deployments.vault_call import Call
from deployments.vault_routes import INTRODUCTION, PREFIX, api_operations
from deployments.vault_services import Services
from storage.listening import DATABASE_AWAY
from storage.vault_keys import KeysAway

__all__ = ["AUDIENCE", "HEALTH", "Services", "create_app"]

AUDIENCE: Final = "vault"
HEALTH: Final = f"{PREFIX}/healthz"
_TITLE: Final = "Razao vault"
_AWAY: Final = (
    *DATABASE_AWAY,
    KeysAway,
    KeysUnavailable,
)


def create_app(services: Services) -> ASGIApp:
    """The ASGI application. How many requests may be at work is decided around it (`deployments/admission.py`)."""
    service = Service(
        _TITLE, PREFIX, INTRODUCTION, api_operations(), call=partial(Call, services), check_health=services.vault.ping
    )
    backend = BearerBackend(services.verifier, AUDIENCE)
    secured = AuthenticationMiddleware(service, backend, public_paths(PREFIX))
    # Whether we are well is asked from this machine, which need not be among those who may enter.
    entered = NetworkMiddleware(secured, services.networks, exempt=(HEALTH,))
    guarded = GatewayMiddleware(entered, services.gateway_secret)
    access = AccessLog(all_answers=True)
    return Edge(guarded, deadline_s=services.deadline_s, translate=translate, access=access)


def translate(error: Exception) -> ProblemError | None:
    """What a driver's error means to a client: the store, or its keys, cannot be reached just now."""
    if isinstance(error, _AWAY):
        return ProblemError(UNAVAILABLE, "The vault does not answer now")
    return None
