"""The peer's token check: the engine's, in the few lines that a careful service would write.

PyJWT verifies signature, issuer, audience and times against a JWKS; verified claims are kept until they expire.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Final

import jwt

ALGORITHMS: Final = ["EdDSA", "ES256"]
_CACHE_MAX: Final = 10_000
_LEEWAY_S: Final = 5


class Verifier:
    """Claims of bearer tokens that `jwks` vouches for."""

    def __init__(self, jwks: Path, issuer: str, audience: str) -> None:
        keys = jwt.PyJWKSet.from_json(jwks.read_text()).keys
        self._keys = {key.key_id: key for key in keys}
        self._issuer = issuer
        self._audience = audience
        self._verified: dict[str, tuple[float, dict[str, Any]]] = {}

    def claims(self, authorization: str | None) -> dict[str, Any]:
        """The claims of an Authorization header.

        Raises:
            jwt.InvalidTokenError: it has no token, or one that does not count.
        """
        if authorization is None or not authorization.startswith("Bearer "):
            raise jwt.InvalidTokenError("no bearer token")
        token = authorization[7:]
        known = self._verified.get(token)
        if known is not None and time.time() < known[0]:
            return known[1]
        claims = self._verify(token)
        if len(self._verified) >= _CACHE_MAX:
            self._verified.clear()
        self._verified[token] = (claims["exp"] + _LEEWAY_S, claims)
        return claims

    def _verify(self, token: str) -> dict[str, Any]:
        key = self._keys.get(jwt.get_unverified_header(token).get("kid"))
        if key is None:
            raise jwt.InvalidTokenError("unknown key")
        claims: dict[str, Any] = jwt.decode(
            token,
            key,
            algorithms=ALGORITHMS,
            issuer=self._issuer,
            audience=self._audience,
            leeway=_LEEWAY_S,
            options={"require": ["exp", "iss", "aud", "sub"]},
        )
        return claims
