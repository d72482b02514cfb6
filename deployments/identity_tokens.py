"""`/oauth/token`, `/oauth/revoke`, `/oauth/introspect`: what programs, not people, ask of us.

Errors are JSON as RFC 6749, 5.2 has it, because OAuth clients read nothing else. A secret in the address would end up
in logs, so an address with any query is refused.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from urllib.parse import unquote

from authlib.oauth2.rfc7009 import RevocationEndpoint
from authlib.oauth2.rfc7662 import IntrospectionEndpoint

from deployments.auth.tokens import Identity, InvalidToken
from deployments.identity_call import Call
from deployments.identity_oauth import (
    Desk,
    Facts,
    OAuthClient,
    OAuthRequest,
    Response,
)
from deployments.problems import ProblemError
from deployments.request import Answer, Header
from storage.identity_grants import Code, Family, Reused

JSON_HEADERS: Final[tuple[Header, ...]] = (
    (b"content-type", b"application/json"),
    (b"cache-control", b"no-store"),
    (b"pragma", b"no-cache"),
)
_VISIBLE: Final = re.compile(r"[\x20-\x7e]{0,4096}")  # RFC 6749, appendix A: VSCHAR
_PLAIN: Final = re.compile(r'[^"\\]*')
_QUOTED_IN_ERRORS: Final = ("client_id", "grant_type", "response_type", "redirect_uri", "scope")


class BadRequest(Exception):  # noqa: N818 - what it is
    """`invalid_request`, seen before Authlib has."""


def check_characters(parameters: dict[str, str]) -> None:
    """Raises BadRequest for characters that no parameter of OAuth may have; Authlib would repeat some in its errors."""
    for name, value in parameters.items():
        if not _VISIBLE.fullmatch(value) or (name in _QUOTED_IN_ERRORS and not _PLAIN.fullmatch(value)):
            raise BadRequest("A parameter has characters that it may not have, or too many")


async def _request(call: Call) -> OAuthRequest:
    """The form, read strictly, with the client's credentials where they belong.

    Raises:
        BadRequest: it is not one.
    """
    if call.scope["query_string"]:
        raise BadRequest("Parameters belong into the body, where no log keeps them")
    try:
        parameters = await call.form()
    except ProblemError as error:
        if error.status >= 413:
            raise
        raise BadRequest(error.detail) from None
    check_characters(parameters)
    headers = {}
    authorization = call.headers.get(b"authorization", b"").decode("latin-1")
    if authorization[:6].lower() == "basic ":
        if "client_secret" in parameters:
            raise BadRequest("A client authenticates in one way, not in two")
        basic_id = _basic_client(authorization)
        if parameters.get("client_id", basic_id) != basic_id:
            raise BadRequest("Two different clients are named")
        headers["Authorization"] = authorization
    return OAuthRequest("POST", parameters, headers)


def _basic_client(authorization: str) -> str:
    try:
        decoded = base64.b64decode(authorization[6:].strip(), validate=True).decode()
        client_id, _, secret = decoded.partition(":")
        client_id, secret = unquote(client_id, errors="strict"), unquote(secret, errors="strict")
    except (binascii.Error, ValueError):
        raise BadRequest("The Authorization header cannot be read") from None
    check_characters({"client_id": client_id, "secret": secret})
    return client_id


def _client_id(request: OAuthRequest) -> str:
    authorization = request.headers.get("Authorization")
    return _basic_client(authorization) if authorization else request.form.get("client_id", "")


async def _client_facts(call: Call, client_id: str) -> Facts:
    """The client, unless it is the access key of somebody who was disabled."""
    services = call.services
    client = await services.clients.get(client_id) if client_id else None
    if client is None or client.owner is None:
        return Facts(client)
    owner = await services.users.by_sub(client.owner)
    return Facts() if owner is None or owner.disabled else Facts(client, owner)


async def _person_facts(call: Call, facts: Facts, sub: str, **more: Any) -> Facts:
    user = await call.services.users.by_sub(sub)
    return replace(facts, user=None if user is None or user.disabled else user, **more)


# -- tokens -----------------------------------------------------------------------------------------------------------


async def token(call: Call) -> Answer:
    """POST /oauth/token (RFC 6749, 3.2)."""
    try:
        request = await _request(call)
        facts = await _client_facts(call, _client_id(request))
        match request.form.get("grant_type"):
            case "authorization_code":
                return await _exchange(call, request, facts)
            case "refresh_token":
                return await _refresh(call, request, facts)
            case _:
                return await _credentials(call, request, facts)
    except BadRequest as error:
        return oauth_error(400, "invalid_request", str(error))


async def _serve(call: Call, request: OAuthRequest, facts: Facts) -> tuple[Desk, Response]:
    """What Authlib answers; signing takes its time in a thread."""
    desk = Desk(call.services.issuing(), facts)
    return desk, await asyncio.to_thread(desk.create_token_response, request)


async def _exchange(call: Call, request: OAuthRequest, facts: Facts) -> Answer:
    services = call.services
    found = await services.grants.code(services.digest(request.form.get("code", "")), call.request_id)
    if isinstance(found, Code):
        facts = await _person_facts(call, facts, found.sub, code=found, auth_time=found.auth_time)
    desk, response = await _serve(call, request, facts)
    if desk.token is None:
        if isinstance(found, Reused):
            await services.grants.end(found.family, call.by(found.client_id), "code.reused")
        return _answer(response)
    assert isinstance(found, Code) and desk.granted is not None  # noqa: S101, PT018 - tokens were made of it
    ends = datetime.now(UTC) + timedelta(seconds=services.lifetimes.refresh_s)
    family = Family(
        desk.sid, found.sub, found.client_id, desk.token["scope"], desk.auth_time, ends, found.session
    )  # fmt: skip
    refresh = desk.token.get("refresh_token")
    digest = None if refresh is None else services.digest(refresh)
    if not await services.grants.exchange(found.digest, family, digest, call.by(found.client_id)):
        return oauth_error(400, "invalid_grant", "The code was used already, or is good no more")
    return _answer(response)


async def _refresh(call: Call, request: OAuthRequest, facts: Facts) -> Answer:
    services = call.services
    old = services.digest(request.form.get("refresh_token", ""))
    found = await services.grants.refresh_token(old, call.request_id)
    if isinstance(found, Family):
        facts = await _person_facts(call, facts, found.sub, family=found, auth_time=found.auth_time)
    desk, response = await _serve(call, request, facts)
    if desk.token is None:
        if isinstance(found, Reused):
            await services.grants.end(found.family, call.by(found.client_id), "refresh-token.reused")
        return _answer(response)
    assert isinstance(found, Family)  # noqa: S101 - tokens were made of it
    new = services.digest(desk.token["refresh_token"])
    if not await services.grants.rotate(old, new, found, call.by(found.client_id)):
        await services.grants.end(found.id, call.by(found.client_id), "refresh-token.reused")
        return oauth_error(400, "invalid_grant", "The refresh token was used already")
    return _answer(response)


async def _credentials(call: Call, request: OAuthRequest, facts: Facts) -> Answer:
    desk, response = await _serve(call, request, facts)
    if desk.token is None or facts.client is None:
        return _answer(response)
    # Looked at once more after signing: the marks of a revocation stop what was signed before it, and no more.
    if not await call.services.clients.used(facts.client, datetime.now(UTC)):
        return oauth_error(401, "invalid_client", "The client was revoked")
    return _answer(response)


# -- what became of a token -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Known:
    """A token that is in force: a refresh token by its family, or an access token of ours."""

    family: Family | None
    identity: Identity | None

    @property
    def client_id(self) -> str:
        """Whom it was given to."""
        if self.family is not None:
            return self.family.client_id
        assert self.identity is not None  # noqa: S101 - one of the two
        return str(self.identity.claims.get("client_id", ""))

    def check_client(self, client: OAuthClient) -> bool:
        return self.client_id == client.get_client_id()

    def is_expired(self) -> bool:
        return False

    def is_revoked(self) -> bool:
        return False


async def _known(call: Call, given: str) -> _Known | None:
    family = await call.services.grants.refresh_token(call.services.digest(given), call.request_id)
    if isinstance(family, Family):
        user = await call.services.users.by_sub(family.sub)
        return None if user is None or user.disabled else _Known(family, None)
    if not given.isascii() or given.count(".") != 2:
        return None
    try:
        return _Known(None, await call.services.verifier.verify(given.encode()))
    except InvalidToken:
        return None


class _TokenDesk(Desk):
    """A desk that knows one token."""

    known: _Known | None = None
    revoked: _Known | None = None
    request: OAuthRequest


class _Revocation(RevocationEndpoint):  # type: ignore[misc] # Authlib has no types
    CLIENT_AUTH_METHODS = ["client_secret_basic", "client_secret_post", "none"]  # noqa: RUF012 - Authlib's form

    def query_token(self, _token: str, _hint: str | None) -> _Known | None:
        known: _Known | None = self.server.known
        return known

    def revoke_token(self, token: _Known, _request: OAuthRequest) -> None:
        self.server.revoked = token


class _Introspection(IntrospectionEndpoint):  # type: ignore[misc] # Authlib has no types
    CLIENT_AUTH_METHODS = ["client_secret_basic", "client_secret_post"]  # noqa: RUF012 - Authlib's form

    def query_token(self, _token: str, _hint: str | None) -> _Known | None:
        known: _Known | None = self.server.known
        return known

    def check_permission(self, token: _Known, client: OAuthClient, _request: OAuthRequest) -> bool:
        return token.check_client(client) or client.may_introspect()

    def introspect_token(self, token: _Known) -> dict[str, Any]:
        family, identity = token.family, token.identity
        if family is not None:
            issuer = self.server.issuing.issuer
            about = {"iss": issuer, "sub": family.sub, "client_id": family.client_id, "scope": family.scope}
            return {**about, "exp": int(family.expires_at.timestamp()), "token_type": "refresh_token"}
        assert identity is not None  # noqa: S101 - one of the two
        return {**identity.claims, "token_type": "Bearer"}


async def _about_a_token(call: Call) -> _TokenDesk:
    request = await _request(call)
    desk = _TokenDesk(call.services.issuing(), await _client_facts(call, _client_id(request)))
    desk.register_endpoint(_Revocation)
    desk.register_endpoint(_Introspection)
    desk.known = await _known(call, request.form["token"]) if request.form.get("token") else None
    desk.request = request
    return desk


async def revoke(call: Call) -> Answer:
    """POST /oauth/revoke (RFC 7009). Of a refresh token the whole family ends, of an access token it alone."""
    try:
        desk = await _about_a_token(call)
    except BadRequest as error:
        return oauth_error(400, "invalid_request", str(error))
    response = desk.create_endpoint_response("revocation", desk.request)
    if desk.revoked is not None:
        grants, by = call.services.grants, call.by(desk.revoked.client_id)
        if desk.revoked.family is not None:
            await grants.end(desk.revoked.family.id, by, "refresh-token.revoked")
        elif desk.revoked.identity is not None:
            await grants.revoke_access_token(desk.revoked.identity.claims["jti"], desk.revoked.identity.subject, by)
    return _answer(response)


async def introspect(call: Call) -> Answer:
    """POST /oauth/introspect (RFC 7662): of a client's own tokens, or of all where it has `identity:introspect`."""
    try:
        desk = await _about_a_token(call)
    except BadRequest as error:
        return oauth_error(400, "invalid_request", str(error))
    return _answer(desk.create_endpoint_response("introspection", desk.request))


# -- answers ----------------------------------------------------------------------------------------------------------


def oauth_error(status: int, error: str, description: str) -> Answer:
    """An error as RFC 6749, 5.2 has it."""
    safe = re.sub(r'[^\x20-\x7e]|["\\]', " ", description)
    return Answer(status, json.dumps({"error": error, "error_description": safe}).encode(), list(JSON_HEADERS))


def _answer(response: Response) -> Answer:
    kept = [
        (name.lower().encode(), value.encode("latin-1"))
        for name, value in response.headers
        if name.lower() == "www-authenticate"
    ]
    return Answer(response.status, json.dumps(response.body).encode(), [*JSON_HEADERS, *kept])
