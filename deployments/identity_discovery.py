"""What others learn of us: metadata (RFC 8414, OpenID Connect Discovery), the key set, and userinfo."""

from __future__ import annotations

import json
from typing import Any, Final

from authlib.oidc.discovery import OpenIDProviderMetadata

from deployments.identity_call import Call
from deployments.identity_oauth import CODE_GRANT, CREDENTIALS_GRANT, REFRESH_GRANT, SUPPORTED, claims_about
from deployments.identity_signing import ALGORITHM
from deployments.problems import FORBIDDEN, UNAUTHENTICATED, ProblemError
from deployments.request import JSON, Answer, require

_SECRETS: Final = ["client_secret_basic", "client_secret_post"]
_PUBLIC: Final = [JSON, (b"cache-control", b"public, max-age=300"), (b"access-control-allow-origin", b"*")]
_KEYS: Final = [JSON, (b"cache-control", b"public, max-age=60"), (b"access-control-allow-origin", b"*")]


def metadata(issuer: str) -> dict[str, Any]:
    """Everything that a client needs to know."""
    found = OpenIDProviderMetadata(
        issuer=issuer,
        authorization_endpoint=f"{issuer}/oauth/authorize",
        token_endpoint=f"{issuer}/oauth/token",
        revocation_endpoint=f"{issuer}/oauth/revoke",
        introspection_endpoint=f"{issuer}/oauth/introspect",
        userinfo_endpoint=f"{issuer}/oauth/userinfo",
        jwks_uri=f"{issuer}/oauth/jwks",
        scopes_supported=SUPPORTED,
        response_types_supported=["code"],
        response_modes_supported=["query"],
        grant_types_supported=[CODE_GRANT, REFRESH_GRANT, CREDENTIALS_GRANT],
        subject_types_supported=["public"],
        id_token_signing_alg_values_supported=[ALGORITHM],
        token_endpoint_auth_methods_supported=[*_SECRETS, "none"],
        revocation_endpoint_auth_methods_supported=[*_SECRETS, "none"],
        introspection_endpoint_auth_methods_supported=_SECRETS,
        code_challenge_methods_supported=["S256"],
        claims_supported=["sub", "name", "preferred_username", "auth_time", "iss", "aud", "exp", "iat", "nonce"],
        prompt_values_supported=["none", "login", "consent"],
        authorization_response_iss_parameter_supported=True,
        request_parameter_supported=False,
        request_uri_parameter_supported=False,
        claims_parameter_supported=False,
    )
    return dict(found)


async def get_metadata(call: Call) -> Answer:
    """GET /.well-known/openid-configuration, and the same as RFC 8414 has it."""
    return Answer(200, json.dumps(metadata(call.services.issuer)).encode(), list(_PUBLIC))


async def get_keys(call: Call) -> Answer:
    """GET /oauth/jwks."""
    return Answer(200, call.services.signer.jwks, list(_KEYS))


async def get_userinfo(call: Call) -> Answer:
    """GET /oauth/userinfo (OpenID Connect Core 5.3)."""
    identity = call.identified()
    require(identity, "openid")
    user = await call.services.users.by_sub(identity.subject)
    if user is None:
        raise ProblemError(FORBIDDEN, "The token speaks for no person")
    if user.disabled:
        raise ProblemError(UNAUTHENTICATED, "The token was revoked", headers={"www-authenticate": "Bearer"})
    return Answer(200, json.dumps(claims_about(user, sorted(identity.scopes))).encode(), [JSON])
