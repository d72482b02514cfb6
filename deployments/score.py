"""The score application: profiles, scores with their reasons, consents and the extract, behind bearer tokens.

`score_routes.py` has the table of its calls. The edge, the gateway's secret and the tokens stand around it as
middleware, the same as around payments.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from deployments.auth.middleware import AuthenticationMiddleware, BearerBackend, GatewayMiddleware
from deployments.edge import Edge
from deployments.logs import AccessLog
from deployments.problems import UNAVAILABLE, ProblemError
from deployments.score_call import Call
from deployments.score_extract import PATH as EXTRACT_PATH
from deployments.score_routes import INTRODUCTION, PREFIX, api_operations
from deployments.score_services import Services
from deployments.service import Service, public_paths
from storage.documents import StoreAway

__all__ = ["Services", "create_app"]

TITLE: Final = "Razao score"
AUDIENCE: Final = "score"


def create_app(services: Services) -> ASGIApp:
    """The ASGI application. How many requests may be at work is decided around it (`deployments/admission.py`)."""
    service = Service(
        TITLE, PREFIX, INTRODUCTION, api_operations(), call=partial(Call, services), check_health=services.ping
    )
    documents = public_paths(PREFIX)
    secured = AuthenticationMiddleware(
        service,
        BearerBackend(services.verifier, AUDIENCE),
        lambda path: documents(path) or path == f"{PREFIX}/model" or not path.startswith(f"{PREFIX}/"),
    )
    guarded = GatewayMiddleware(secured, services.gateway_secret)
    access = AccessLog(all_answers=True)
    calls = Edge(guarded, deadline_s=services.deadline_s, translate=translate, access=access)
    streams = Edge(guarded, deadline_s=services.extract_s, translate=translate, access=access)

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        await (streams if scope.get("path") == EXTRACT_PATH else calls)(scope, receive, send)

    return application


def translate(error: Exception) -> ProblemError | None:
    """What a driver's error means to a client: the store cannot be reached just now."""
    if isinstance(error, StoreAway | OSError):
        return ProblemError(UNAVAILABLE, "The store of profiles does not answer")
    return None
