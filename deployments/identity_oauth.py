"""Authlib's authorization server, told what our store knows. The protocol is Authlib's; here is what it asks of us.

Authlib is synchronous, our store is not. So a request's facts (client, person, code, family) are fetched before and
handed to a `Desk`, which serves that one request without waiting for anything; what it has decided is written
afterwards, in one transaction that uses the code or refresh token up, and only then the answer leaves.
"""

from __future__ import annotations

import hmac
import secrets
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from authlib.oauth2.rfc6749 import AuthorizationServer, ClientMixin, InvalidRequestError, OAuth2Request
from authlib.oauth2.rfc6749.grants import AuthorizationCodeGrant, ClientCredentialsGrant, RefreshTokenGrant
from authlib.oauth2.rfc6749.requests import BasicOAuth2Payload
from authlib.oauth2.rfc7636 import CodeChallenge
from authlib.oauth2.rfc9068 import JWTBearerTokenGenerator
from authlib.oauth2.rfc9207 import IssuerParameter
from authlib.oidc.core import AuthorizationCodeMixin, UserInfo
from authlib.oidc.core.grants import OpenIDCode, OpenIDToken
from joserfc.jwk import KeySet

from deployments.identity_roles import (
    AUDIENCES,
    FIRST_PARTY,
    INTROSPECT,
    OF_ROLE,
    OPENID,
    PAYMENTS,
    Role,
    delegable_scopes,
    in_order,
    only_audience,
    own_scopes,
    scopes_for,
)
from deployments.identity_signing import ALGORITHM
from storage import identity_clients, identity_grants
from storage.identity import User, digest

CODE_GRANT: Final = "authorization_code"
REFRESH_GRANT: Final = "refresh_token"
CREDENTIALS_GRANT: Final = "client_credentials"
SUPPORTED: Final = sorted(OPENID | frozenset().union(*OF_ROLE.values()))
_SECRET_METHODS: Final = ["client_secret_basic", "client_secret_post"]


@dataclass(frozen=True, slots=True)
class Issuing:
    """What tokens are made with."""

    issuer: str
    audience: str
    key: bytes  # for keyed hashes of secrets
    signing: KeySet
    access_s: int
    id_s: int


@dataclass(slots=True)
class Response:
    """An answer as Authlib has it: `body` is a mapping or text."""

    status: int
    body: Any
    headers: list[tuple[str, str]]
    location: str | None = field(init=False)

    def __post_init__(self) -> None:
        """Where it leads."""
        self.location = next((value for name, value in self.headers if name == "Location"), None)


class OAuthClient(ClientMixin):  # type: ignore[misc] # Authlib has no types
    """A client, and the person by whose role its scopes are bounded: its owner, or whoever grants it something."""

    def __init__(self, client: identity_clients.Client, key: bytes, person: User | None) -> None:
        self.client = client
        self._key = key
        self.person = person

    def get_client_id(self) -> str:
        """Its id."""
        return self.client.client_id

    def get_default_redirect_uri(self) -> None:
        """None: each request names it, so that it is compared."""
        return

    def get_allowed_scope(self, scope: str | None) -> str | None:
        """What is granted of `scope`. None when it asks for more than the client may have, for several audiences at
        once, or nothing is left. Who asks for nothing gets what is for the first audience that the client has."""
        asked = frozenset(scope.split()) if scope else self._unasked()
        if not asked <= set(self.client.scopes) or only_audience(asked) is None:
            return None
        return in_order(asked & self._bound()) or None

    def _unasked(self) -> frozenset[str]:
        return next(filter(None, (scopes_for(audience, self.client.scopes) for audience in AUDIENCES)), frozenset())

    def _bound(self) -> frozenset[str]:
        if self.person is not None and self.client.client_id == FIRST_PARTY:
            return own_scopes(self.person.role, proven=self.person.person is not None)
        if self.person is not None:
            return delegable_scopes(self.person.role) | (frozenset() if self.client.owner else OPENID)
        if self.client.owner is not None:
            return frozenset()
        if self.client.role is not None:
            return OF_ROLE[Role(self.client.role)]
        return frozenset(SUPPORTED)  # nobody has logged in yet

    def check_redirect_uri(self, redirect_uri: str) -> bool:
        """Exactly one of its own, character by character (RFC 9700, 2.1)."""
        return redirect_uri in self.client.redirect_uris

    def check_client_secret(self, client_secret: str) -> bool:
        """Compare in constant time."""
        known = self.client.secret
        return known is not None and hmac.compare_digest(known, digest(self._key, client_secret))

    def check_endpoint_auth_method(self, method: str, endpoint: str) -> bool:
        """Public clients have no secret, all others show it."""
        if self.client.public:
            return method == "none" and endpoint != "introspection"
        return method in _SECRET_METHODS

    def check_response_type(self, response_type: str) -> bool:
        """Only codes."""
        return response_type == "code" and CODE_GRANT in self.client.grants

    def check_grant_type(self, grant_type: str) -> bool:
        """Those it was registered for."""
        return grant_type in self.client.grants

    def may_introspect(self) -> bool:
        """Whether it may ask about others' tokens."""
        return INTROSPECT in self.client.scopes and self.client.role == Role.SERVICE


@dataclass(frozen=True)
class _Person:
    user: User

    def get_user_id(self) -> str:
        return self.user.sub


class _Code(AuthorizationCodeMixin):  # type: ignore[misc] # Authlib has no types
    def __init__(self, code: identity_grants.Code) -> None:
        self.code = code
        self.code_challenge = code.challenge
        self.code_challenge_method = "S256"

    def get_redirect_uri(self) -> str:
        return self.code.redirect_uri

    def get_scope(self) -> str:
        return self.code.scope

    def get_nonce(self) -> str | None:
        return self.code.nonce

    def get_auth_time(self) -> int:
        return int(self.code.auth_time.timestamp())

    def get_acr(self) -> None:
        return None

    def get_amr(self) -> None:
        return None


@dataclass(frozen=True)
class _Refresh:
    family: identity_grants.Family

    def check_client(self, client: OAuthClient) -> bool:
        return client.get_client_id() == self.family.client_id

    def get_scope(self) -> str:
        return self.family.scope


# -- grants -----------------------------------------------------------------------------------------------------------


class CodeGrant(AuthorizationCodeGrant):  # type: ignore[misc] # Authlib has no types
    """Authorization code (RFC 6749, 4.1)."""

    TOKEN_ENDPOINT_AUTH_METHODS = [*_SECRET_METHODS, "none"]  # noqa: RUF012 - Authlib's form

    def save_authorization_code(self, code: str, request: OAuth2Request) -> None:
        """Keep it for the writing afterwards."""
        self.server.new_code = (code, request.scope, request.payload.data.get("nonce"))

    def query_authorization_code(self, code: str, client: OAuthClient) -> _Code | None:
        """The one that was fetched, if it is this client's."""
        found = self.server.facts.code
        return _Code(found) if found is not None and found.client_id == client.get_client_id() else None

    def delete_authorization_code(self, authorization_code: _Code) -> None:
        """Used up in the transaction that begins the family."""

    def authenticate_user(self, authorization_code: _Code) -> _Person | None:
        """Whoever gave the code, unless disabled since."""
        return self.server.person()  # type: ignore[no-any-return]


class RefreshGrant(RefreshTokenGrant):  # type: ignore[misc] # Authlib has no types
    """Refresh (RFC 6749, 6), rotating always."""

    TOKEN_ENDPOINT_AUTH_METHODS = [*_SECRET_METHODS, "none"]  # noqa: RUF012 - Authlib's form
    INCLUDE_NEW_REFRESH_TOKEN = True

    def authenticate_refresh_token(self, refresh_token: str) -> _Refresh | None:
        """The one that was fetched."""
        return None if self.server.facts.family is None else _Refresh(self.server.facts.family)

    def authenticate_user(self, refresh_token: _Refresh) -> _Person | None:
        """Whose it is, unless disabled since."""
        return self.server.person()  # type: ignore[no-any-return]

    def revoke_old_credential(self, refresh_token: _Refresh) -> None:
        """Used up in the transaction that keeps its successor."""


class CredentialsGrant(ClientCredentialsGrant):  # type: ignore[misc] # Authlib has no types
    """Client credentials (RFC 6749, 4.4): systems, and access keys."""

    TOKEN_ENDPOINT_AUTH_METHODS = _SECRET_METHODS


class S256(CodeChallenge):  # type: ignore[misc] # Authlib has no types
    """PKCE (RFC 7636) as RFC 9700, 2.1.1 has it: for every client, and S256 alone."""

    SUPPORTED_CODE_CHALLENGE_METHOD = ["S256"]  # noqa: RUF012 - Authlib's form
    CODE_CHALLENGE_METHODS = {"S256": CodeChallenge.CODE_CHALLENGE_METHODS["S256"]}  # noqa: RUF012

    def validate_code_challenge(self, grant: Any, redirect_uri: str) -> None:
        """Also refuse what Authlib lets pass: no challenge, and a method that is not named, which means `plain`."""
        data = grant.request.payload.data
        if not data.get("code_challenge"):
            raise InvalidRequestError("Missing 'code_challenge'")
        if data.get("code_challenge_method") != "S256":
            raise InvalidRequestError("'code_challenge_method' must be S256")
        super().validate_code_challenge(grant, redirect_uri)


class _IdToken:
    """What both extensions say of the person."""

    server: Desk

    def exists_nonce(self, _nonce: str, _request: OAuth2Request) -> bool:
        """A nonce is the client's to compare; a code, which is used once, carries it."""
        return False

    def resolve_client_private_key(self, _client: OAuthClient) -> KeySet:
        """The key that signs now."""
        return self.server.issuing.signing

    def get_client_claims(self, client: OAuthClient) -> dict[str, Any]:
        """Issuer, audience, times."""
        issuing = self.server.issuing
        now = int(datetime.now(UTC).timestamp())
        return {
            "iss": issuing.issuer,
            "aud": client.get_client_id(),
            "iat": now,
            "exp": now + issuing.id_s,
            "auth_time": int(self.server.auth_time.timestamp()),
            "sid": self.server.sid,
        }

    def generate_user_info(self, user: _Person, scope: str) -> UserInfo:
        """What the scope lets the client know."""
        return UserInfo(claims_about(user.user, scope.split()))


class IdTokenOfCode(_IdToken, OpenIDCode):  # type: ignore[misc] # Authlib has no types
    """ID token of a code (OpenID Connect Core 3.1)."""

    def __init__(self, server: Desk) -> None:
        super().__init__()
        self.server = server


class IdToken(_IdToken, OpenIDToken):  # type: ignore[misc] # Authlib has no types
    """ID token of a refresh (12.2) and of a login with the password."""

    def __init__(self, server: Desk) -> None:
        self.server = server


def claims_about(user: User, scopes: list[str]) -> dict[str, Any]:
    """Standard claims (OpenID Connect Core 5.1, 5.4)."""
    claims = {"sub": user.sub}
    if "profile" in scopes:
        claims |= {"name": user.name, "preferred_username": user.username}
    return claims


class AccessTokens(JWTBearerTokenGenerator):  # type: ignore[misc] # Authlib has no types
    """Access tokens by RFC 9068."""

    def __init__(self, desk: Desk) -> None:
        super().__init__(
            desk.issuing.issuer, ALGORITHM, lambda **_: new_secret("rzr"), lambda *_: desk.issuing.access_s
        )
        self._desk = desk

    def get_jwks(self) -> KeySet:
        """The key that signs now."""
        return self._desk.issuing.signing

    def get_audiences(self, client: OAuthClient, user: object, scope: str) -> list[str]:
        """The ledger or the tier that the scopes are for, and ourselves, who are asked about tokens.

        What we let a token do goes by its scopes, of which one for a tier has none of ours.
        """
        issuing, audience = self._desk.issuing, only_audience(scope.split())
        assert audience is not None  # noqa: S101 - mixed scopes are refused before
        return [issuing.audience if audience == PAYMENTS else audience, issuing.issuer]

    def get_auth_time(self, user: object) -> int | None:
        """When the person logged in."""
        return None if user is None else int(self._desk.auth_time.timestamp())

    def get_extra_claims(self, client: OAuthClient, grant_type: str, user: object, scope: str) -> dict[str, Any]:
        """For whom it acts, the family that it ends with, the role, and the reference to a proven tax id."""
        person = client.person
        claims: dict[str, Any] = {"roles": [client.client.role if person is None else person.role]}
        if person is not None:
            claims["sub"] = person.sub
            if person.person is not None:
                claims |= {"person": person.person, "proof": person.proof}
        if user is not None:
            claims["sid"] = self._desk.sid
        return claims


# -- the desk ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Facts:
    """What the store knows of a request's parts, fetched before."""

    client: identity_clients.Client | None = None
    user: User | None = None  # the grant's person, or the access key's owner; none when disabled
    code: identity_grants.Code | None = None
    family: identity_grants.Family | None = None
    auth_time: datetime | None = None


class Desk(AuthorizationServer):  # type: ignore[misc] # Authlib has no types
    """Serves one request."""

    def __init__(self, issuing: Issuing, facts: Facts) -> None:
        super().__init__(SUPPORTED)
        self.issuing = issuing
        self.facts = facts
        self.sid = facts.family.id if facts.family is not None else str(uuid.uuid4())
        self.auth_time = facts.auth_time or datetime.now(UTC)
        self.client = None if facts.client is None else OAuthClient(facts.client, issuing.key, facts.user)
        self.new_code: tuple[str, str, str | None] | None = None
        self.token: dict[str, Any] | None = None
        self.granted: OAuthClient | None = None
        self.register_token_generator("default", AccessTokens(self))
        self.register_grant(CodeGrant, [S256(required=True), IdTokenOfCode(self)])
        self.register_grant(RefreshGrant, [IdToken(self)])
        self.register_grant(CredentialsGrant)
        extension = _Issuer()
        extension.server = self
        extension(self)
        self._issuer_parameter = extension

    def person(self) -> _Person | None:
        """Who grants."""
        return None if self.facts.user is None else _Person(self.facts.user)

    def query_client(self, client_id: str) -> OAuthClient | None:
        """The one that was fetched."""
        return self.client if self.client is not None and self.client.get_client_id() == client_id else None

    def save_token(self, token: dict[str, Any], request: OAuth2Request) -> None:
        """Keep it for the writing afterwards."""
        self.token, self.granted = token, request.client

    def create_oauth2_request(self, request: OAuth2Request) -> OAuth2Request:
        """It is one already."""
        return request

    def handle_response(self, status: int, body: Any, headers: list[tuple[str, str]]) -> Response:
        """As Authlib has it."""
        return Response(status, body, list(headers))

    def handle_error(self, request: OAuth2Request, error: Any) -> Response:
        """An error as the answer to an authorization request: a redirect where one is safe, with `iss` (RFC 9207)."""
        response: Response = self.handle_error_response(request, error)
        self._issuer_parameter.add_issuer_parameter(self, response)
        return response

    def send_signal(self, name: str, *_: Any, **__: Any) -> None:
        """Nobody listens."""

    def login_token(self, client: OAuthClient, scope: str) -> dict[str, Any]:
        """The three tokens of a login with the password at our own form or program."""
        person = self.person()
        assert person is not None  # noqa: S101 - they have just logged in
        request = OAuthRequest("POST", {}, {})
        request.client, request.user = client, person
        generator = self._token_generators["default"]
        access = generator.access_token_generator(client=client, grant_type="password", user=person, scope=scope)
        token = {
            "access_token": access,
            "refresh_token": new_secret("rzr"),
            "token_type": "Bearer",
            "expires_in": self.issuing.access_s,
            "scope": scope,
        }
        return {"id_token": IdToken(self).encode_id_token(token, request), **token}


class _Issuer(IssuerParameter):  # type: ignore[misc] # Authlib has no types
    server: Desk

    def get_issuer(self) -> str:
        return self.server.issuing.issuer


class OAuthRequest(OAuth2Request):  # type: ignore[misc] # Authlib has no types
    """A request whose form, or query, has been read strictly. Transport is the gateway's to judge."""

    def __init__(self, method: str, parameters: Mapping[str, str], headers: Mapping[str, str]) -> None:
        super().__init__(method, "https://identity.invalid/", headers=dict(headers))
        self._parameters = dict(parameters)
        self.payload = BasicOAuth2Payload(self._parameters)

    @property
    def args(self) -> dict[str, str]:
        """The query of an authorization request."""
        return self._parameters

    @property
    def form(self) -> dict[str, str]:
        """The form of any other."""
        return self._parameters


def new_secret(prefix: str) -> str:
    """256 random bits; the prefix tells people, and scanners of leaked secrets, what it is."""
    return f"{prefix}_{secrets.token_urlsafe(32)}"
