"""Who may come in: the gateway's secret header, and an identity for each request by a backend of the application's own.

Both are plain ASGI. A tier plugs its own backend in (tokens here, grants or passwords elsewhere); what a backend raises
as a ProblemError becomes the answer at the edge.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping
from typing import Protocol

from starlette.types import ASGIApp, Receive, Scope, Send

from deployments.auth.issuers import Verifier
from deployments.auth.tokens import Identity, InvalidToken, KeysUnavailable
from deployments.problems import FORBIDDEN, UNAUTHENTICATED, UNAVAILABLE, ProblemError

Headers = Mapping[bytes, bytes]
"""Header values by lower-case name, as the edge has scanned them once into `scope["razao.headers"]`."""


class Backend(Protocol):
    """Finds out who makes a request. `realm`: what its challenges are for; the edge adds it to them."""

    @property
    def realm(self) -> str:
        """See above."""
        ...

    def known(self, headers: Headers) -> Identity | None:
        """The identity, if it can be told at once, without waiting for anything."""
        ...

    async def authenticate(self, headers: Headers) -> Identity:
        """The identity.

        Raises:
            ProblemError: there is none.
        """
        ...


class AuthenticationMiddleware:
    """Puts the identity into `scope["razao.identity"]`; public paths go through without one.

    Beside it lies the backend as `scope["razao.backend"]`, for answers that go on: they have to ask it again.
    """

    def __init__(self, app: ASGIApp, backend: Backend, is_public: Callable[[str], bool]) -> None:
        self._app = app
        self._backend = backend
        self._is_public = is_public

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "http":
            headers = scope["razao.headers"]
            scope["razao.realm"] = self._backend.realm
            identity = self._backend.known(headers)
            if identity is None and not self._is_public(scope["path"]):
                identity = await self._backend.authenticate(headers)
            scope["razao.identity"] = identity
            scope["razao.backend"] = self._backend
        await self._app(scope, receive, send)


class GatewayMiddleware:
    """Lets only requests through that came by the gateway, told by its secret header. Without a secret it is off."""

    def __init__(self, app: ASGIApp, secret: str | None) -> None:
        self._app = app
        self._secret = secret.encode() if secret else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "http" and not self.admits(scope["razao.headers"]):
            raise ProblemError(FORBIDDEN, "Requests must come through the gateway")
        await self._app(scope, receive, send)

    def admits(self, headers: Headers) -> bool:
        """Whether a request came by the gateway."""
        return self._secret is None or hmac.compare_digest(headers.get(b"razao-gateway", b""), self._secret)


class BearerBackend:
    """`Authorization: Bearer` (RFC 6750), checked by a Verifier."""

    def __init__(self, verifier: Verifier, realm: str) -> None:
        self._verifier = verifier
        self.realm = realm

    def known(self, headers: Headers) -> Identity | None:
        """The identity of a token seen before."""
        value = headers.get(b"authorization", b"")
        return self._verifier.remembered(value[7:]) if value[:7] == b"Bearer " else None

    async def authenticate(self, headers: Headers) -> Identity:
        """Verify the token."""
        value = headers.get(b"authorization")
        if value is None:
            raise self._unauthenticated("A token is needed", error=None)
        scheme, _, token = value.partition(b" ")
        if scheme.lower() != b"bearer":
            raise self._unauthenticated("Authorization must be a Bearer token", error=None)
        try:
            return await self._verifier.verify(token.strip(b" "))
        except InvalidToken as error:
            raise self._unauthenticated(str(error), error="invalid_token") from None
        except KeysUnavailable as error:
            raise ProblemError(UNAVAILABLE, "Tokens cannot be verified now") from error

    def _unauthenticated(self, detail: str, *, error: str | None) -> ProblemError:
        challenge = "Bearer"
        if error is not None:
            challenge += f' error="{error}", error_description="{detail}"'
        return ProblemError(UNAUTHENTICATED, detail, headers={"www-authenticate": challenge})
