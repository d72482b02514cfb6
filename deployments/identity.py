"""The identity application: one ASGI app over the stores of people, clients, grants and keys.

`OPERATIONS` of `identity_routes.py` is the table of its calls. The edge, the gateway's secret and the tokens stand
around it as middleware, the same as around payments.
"""

from __future__ import annotations

import json
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from deployments.auth.middleware import AuthenticationMiddleware, BearerBackend, GatewayMiddleware
from deployments.auth.tokens import KeysUnavailable
from deployments.edge import Edge
from deployments.identity_call import Call
from deployments.identity_pages import page
from deployments.identity_routes import INTRODUCTION, api_operations
from deployments.identity_schema import Health
from deployments.identity_services import Services
from deployments.openapi import Operation, docs_page, document, razao_version
from deployments.problems import UNAVAILABLE, ProblemError, paragraphs
from deployments.request import JSON, Answer, json_answer
from deployments.routes import Routes
from storage.listening import DATABASE_AWAY

__all__ = ["HEALTH", "Identity", "Services", "create_app"]

TITLE: Final = "Razao identity"
HEALTH: Final = "/auth/healthz"
_KEYS: Final = "/auth/access-keys/"
_BEARERS: Final = frozenset({"/auth/logout", "/auth/password", "/auth/access-keys", "/oauth/userinfo"})


def create_app(services: Services) -> ASGIApp:
    """The ASGI application. How many requests may be at work is decided around it (`deployments/admission.py`)."""
    secured = AuthenticationMiddleware(Identity(services), BearerBackend(services.verifier, "identity"), is_public)
    guarded = GatewayMiddleware(secured, services.gateway_secret)
    return Edge(guarded, deadline_s=services.deadline_s, translate=translate)


def is_public(path: str) -> bool:
    """All but the few calls that a token opens."""
    return path not in _BEARERS and not path.startswith(_KEYS)


def translate(error: Exception) -> ProblemError | None:
    """What a driver's error means to a client: the store cannot be reached just now."""
    if isinstance(error, (*DATABASE_AWAY, KeysUnavailable)):
        return ProblemError(UNAVAILABLE, "The store of identities does not answer")
    return None


class Identity:
    """Finds the call and answers it."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self.operations = (*api_operations(), *self._own_operations())
        self._routes = Routes(self.operations)
        self._openapi = json.dumps(document(TITLE, razao_version(), INTRODUCTION, self.operations), indent=1).encode()
        self._docs = docs_page(TITLE, paragraphs(INTRODUCTION), self.operations)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        operation, path = self._routes.find(scope["method"], scope["path"])
        answer: Answer = await operation.handler(Call(self._services, scope, receive, path))
        headers = list(answer.headers)
        if answer.status != 204:
            headers.append((b"content-length", b"%d" % len(answer.body)))
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else answer.body})

    def _own_operations(self) -> tuple[Operation, ...]:
        return (
            Operation(
                "GET", HEALTH, "health", "Whether the store answers and there is a key to sign with", "",
                self._get_health, response=Health, problems=(UNAVAILABLE,),
            ),
            Operation("GET", "/auth/openapi.json", "openapi", "This contract as OpenAPI 3.1", "", self._get_openapi),
            Operation(
                "GET", "/auth/docs", "docs", "This contract for people", "", self._get_docs, media_types=("text/html",)
            ),
        )  # fmt: skip

    async def _get_health(self, call: Call) -> Answer:
        self._services.signer.current()
        await call.services.clients.get("")
        return json_answer(200, Health("ok"))

    async def _get_openapi(self, _: Call) -> Answer:
        return Answer(200, self._openapi, [JSON, (b"cache-control", b"public, max-age=300")])

    async def _get_docs(self, _: Call) -> Answer:
        framed = page(200, "", "")
        headers = [pair for pair in framed.headers if pair[0] != b"cache-control"]
        return Answer(200, self._docs, [*headers, (b"cache-control", b"public, max-age=300")])
