"""`/oauth/authorize`: a person's browser comes from a program, logs in, consents, and goes back with a code.

The address that the browser was sent to is the only state: both forms post to it again, and each post is judged from
the start like the first visit. So no parameter says where to go afterwards but `redirect_uri`, which is compared with
the client's own, and whatever is wrong before that comparison ends on a page of ours.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from authlib.oauth2.rfc6749.errors import OAuth2Error
from authlib.oidc.core.errors import ConsentRequiredError

from deployments.identity_call import BROWSER, SESSION, Call
from deployments.identity_login import check_credentials
from deployments.identity_oauth import Desk, Facts, OAuthRequest, Response
from deployments.identity_pages import consent_page, error_page, login_page
from deployments.identity_tokens import BadRequest, check_characters
from deployments.problems import FORBIDDEN, TOO_MANY_ATTEMPTS, WRONG_CREDENTIALS, ProblemError
from deployments.request import Answer, Header, fields
from storage.identity import User
from storage.identity_grants import Code, Session

_PATH: Final = "/oauth/authorize"
_BROWSER_S: Final = 3600
_WRONG: Final = "Username or password is wrong."


@dataclass(slots=True)
class _Visit:
    """One look at an authorization request, by whoever is logged in."""

    call: Call
    request: OAuthRequest
    desk: Desk
    user: User | None
    login: Session | None
    browser: str
    session: str  # the cookie; empty when there is no login
    headers: list[Header]
    grant: Any = None

    @property
    def action(self) -> str:
        return f"{_PATH}?{self.call.scope['query_string'].decode('latin-1')}"

    @property
    def client_name(self) -> str:
        return self.desk.facts.client.name if self.desk.facts.client is not None else ""

    def token(self, step: str) -> str:
        return self.call.form_token(self.browser, self.session, step)


async def authorize(call: Call) -> Answer:
    """GET /oauth/authorize (RFC 6749, 4.1.1; OpenID Connect Core 3.1.2)."""
    try:
        visit = await _visit(call)
        refusal = _judge(visit)
    except BadRequest as error:
        return error_page(400, str(error))
    if refusal is not None:
        return refusal
    if visit.user is None or visit.grant.prompt == "login" or _is_too_old(visit):
        return _ask_to_log_in(visit, 200)
    if visit.request.payload.data.get("prompt") == "none":
        return _back(visit, visit.desk.handle_error(visit.request, _with_state(visit, ConsentRequiredError())))
    return _ask_for_consent(visit)


async def decide(call: Call) -> Answer:
    """POST /oauth/authorize: one of the two forms."""
    call.refuse_other_sites()
    form = await call.form()
    try:
        visit = await _visit(call)
        refusal = _judge(visit)
    except BadRequest as error:
        return error_page(400, str(error))
    if refusal is not None:
        return refusal
    step = form.get("step", "")
    call.check_form_token(form.get("token", ""), visit.browser, visit.session, step)
    if step == "login":
        return await _log_in(visit, form)
    if step != "consent" or visit.user is None:
        raise ProblemError(FORBIDDEN, "Nobody is logged in; load the page again")
    return await _decided(visit, allowed=form.get("decision") == "allow")


async def _visit(call: Call) -> _Visit:
    services = call.services
    try:
        parameters = fields(call.scope["query_string"], "address")
    except ProblemError as error:
        raise BadRequest(error.detail) from None
    check_characters(parameters)
    if "client_secret" in parameters:
        raise BadRequest("A secret has no place in an address: it is in logs now, so replace it")
    if "request" in parameters or "request_uri" in parameters:
        raise BadRequest("Request objects are not taken")
    if parameters.get("response_mode", "query") != "query":
        raise BadRequest("The only response_mode is query")
    session = call.cookie(SESSION) or ""
    found = await services.grants.session(services.digest(session)) if session else None
    user = await services.users.by_sub(found.sub) if found else None
    if user is None or user.disabled or found is None:
        user, found, session = None, None, ""
    browser, headers = call.cookie(BROWSER) or "", []
    if not browser:
        browser = secrets.token_urlsafe(24)
        headers.append(call.set_cookie(BROWSER, browser, _BROWSER_S))
    client_id = parameters.get("client_id", "")
    client = await services.clients.get(client_id) if client_id else None
    desk = Desk(services.issuing(), Facts(client, user, auth_time=found.auth_time if found else None))
    request = OAuthRequest("GET", parameters, {})
    return _Visit(call, request, desk, user, found, browser, session, headers)


def _judge(visit: _Visit) -> Answer | None:
    """Authlib's judgement of the request; an answer when it is refused."""
    try:
        visit.grant = visit.desk.get_consent_grant(visit.request, end_user=visit.desk.person())
    except OAuth2Error as error:
        if error.redirect_uri:
            return _back(visit, visit.desk.handle_error(visit.request, error))
        return error_page(400, error.description or "The request cannot be served")
    return None


def _with_state(visit: _Visit, error: OAuth2Error) -> OAuth2Error:
    error.state = visit.request.payload.state
    error.redirect_uri = visit.grant.redirect_uri
    return error


def _is_too_old(visit: _Visit) -> bool:
    """Whether the login is older than the client will have it (OpenID Connect Core 3.1.2.1, max_age)."""
    given = visit.request.payload.data.get("max_age", "")
    if not (given.isascii() and given.isdigit() and len(given) < 10) or visit.login is None:
        return False
    return time.time() - visit.login.auth_time.timestamp() > int(given)


def _ask_to_log_in(visit: _Visit, status: int, wrong: str = "", more: list[Header] | None = None) -> Answer:
    headers = [*visit.headers, *(more or [])]
    return login_page(status, visit.action, visit.token("login"), visit.client_name, wrong=wrong, headers=headers)


def _ask_for_consent(visit: _Visit) -> Answer:
    assert visit.user is not None  # noqa: S101 - they are logged in
    return consent_page(
        visit.action, visit.token("consent"), visit.client_name, visit.request.scope.split(), visit.grant.redirect_uri,
        visit.user.username, headers=visit.headers,
    )  # fmt: skip


async def _log_in(visit: _Visit, form: dict[str, str]) -> Answer:
    call, services = visit.call, visit.call.services
    try:
        user, password = await check_credentials(call, form.get("username", ""), form.get("password", ""))
    except ProblemError as error:
        if error.problem is WRONG_CREDENTIALS:
            return _ask_to_log_in(visit, 401, _WRONG)
        if error.problem is TOO_MANY_ATTEMPTS:
            retry = (b"retry-after", error.headers["retry-after"].encode())
            return _ask_to_log_in(visit, 429, "Too many attempts. Wait a little.", [retry])
        raise
    life = timedelta(seconds=services.lifetimes.session_s)
    session = secrets.token_urlsafe(32)  # always a new one, so that nobody can have planted it
    lost = call.cookie(SESSION)
    login = await services.grants.open_session(
        services.digest(session), user.sub, password, life, call.by(user.sub),
        replaces=services.digest(lost) if lost else None,
    )  # fmt: skip
    if login is None:
        return _ask_to_log_in(visit, 401, _WRONG)
    headers = [*visit.headers, call.set_cookie(SESSION, session, services.lifetimes.session_s)]
    desk = Desk(services.issuing(), Facts(visit.desk.facts.client, user, auth_time=login.auth_time))
    request = OAuthRequest("GET", visit.request.args, {})
    again = _Visit(call, request, desk, user, login, visit.browser, session, headers)
    refusal = _judge(again)  # now that it is known who they are, and so what they may
    return refusal or _ask_for_consent(again)


async def _decided(visit: _Visit, *, allowed: bool) -> Answer:
    services, desk = visit.call.services, visit.desk
    person = desk.person() if allowed else None
    response = await asyncio.to_thread(desk.create_authorization_response, visit.request, person, visit.grant)
    if desk.new_code is not None and visit.login is not None and desk.facts.client is not None:
        code, scope, nonce = desk.new_code
        kept = Code(
            desk.facts.client.client_id, visit.login.sub, visit.grant.redirect_uri, scope, nonce,
            visit.request.payload.data["code_challenge"], desk.auth_time, services.digest(code), visit.login.id,
        )  # fmt: skip
        ends = datetime.now(UTC) + timedelta(seconds=services.lifetimes.code_s)
        if not await services.grants.add_code(kept, ends, visit.call.by(visit.login.sub)):
            return _ask_to_log_in(replace(visit, session=""), 401, "The login has ended. Log in again.")
    return _back(visit, response)


def _back(visit: _Visit, response: Response) -> Answer:
    """To the client, by GET whatever the form was (RFC 9700, 4.12)."""
    assert response.location is not None  # noqa: S101 - Authlib redirects where it has compared the address
    return Answer(
        303,
        b"",
        [
            (b"location", response.location.encode("ascii")),
            (b"cache-control", b"no-store"),
            (b"referrer-policy", b"no-referrer"),
            *visit.headers,
        ],
    )
