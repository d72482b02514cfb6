"""`/auth`: people register, log in and out, change their password, and manage their access keys."""

from __future__ import annotations

import asyncio
import re
import uuid
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import Final

import msgspec
from msgspec import UNSET

from deployments.identity_call import SESSION, Call
from deployments.identity_login import check_credentials, refuse_too_fast, wrong_credentials
from deployments.identity_oauth import CREDENTIALS_GRANT, Desk, Facts, new_secret
from deployments.identity_passwords import LENGTH_MAX, check_password, normalized
from deployments.identity_roles import (
    AUDIENCES,
    FIRST_PARTY,
    PAYMENTS,
    SELF,
    Registration,
    Role,
    delegable_scopes,
    in_order,
    own_scopes,
    scopes_for,
)
from deployments.identity_schema import (
    NAME_MAX,
    SCOPES_MAX,
    USERNAME_MAX,
    AccessKey,
    AccessKeyRequest,
    AccessKeys,
    LoginRequest,
    NewAccessKey,
    PasswordRequest,
    Registered,
    RegisterRequest,
    Session,
    Sessions,
    Tokens,
)
from deployments.json_body import text
from deployments.names import read_name, refuse_confusable
from deployments.problems import (
    FORBIDDEN,
    TOO_MANY_KEYS,
    UNAUTHENTICATED,
    UNKNOWN_KEY,
    UNKNOWN_SESSION,
    UNPROVEN,
    USERNAME_TAKEN,
    WRONG_CREDENTIALS,
    ProblemError,
    malformed,
)
from deployments.request import JSON, Answer, json_answer, page_of
from deployments.tax_id import read_tax_id
from storage.identity import LoginEnded, NotInvited, User, UsernameTaken, canonical_username
from storage.identity_clients import Client
from storage.identity_grants import Family, Listed
from storage.references import person_reference

KEYS_MAX: Final = 50
SESSIONS_PAGE: Final = 100
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_CURSOR: Final = re.compile(r"([0-9]{1,17})\.([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})", re.ASCII)
_KEY_MIN_S: Final = 60
_USERNAME: Final = re.compile(r"[^\W_](?:[\w.@+-]{0,62}[\w])?")
_REGISTER: Final = msgspec.json.Decoder(RegisterRequest)
_LOGIN: Final = msgspec.json.Decoder(LoginRequest)
_PASSWORD: Final = msgspec.json.Decoder(PasswordRequest)
_KEY: Final = msgspec.json.Decoder(AccessKeyRequest)


def read_username(given: str, field: str = "username") -> str:
    """The canonical form of a new username.

    Raises:
        ProblemError: it cannot be one.
    """
    text(given, field, USERNAME_MAX)
    username = canonical_username(given)
    if not _USERNAME.fullmatch(username):
        raise malformed(field, "A username has letters, digits, and . _ - @ + between them")
    refuse_confusable(username, field)
    return username


async def register(call: Call) -> Answer:
    """POST /auth/register. The `sub` follows from the request's number: come twice, it makes one person."""
    services = call.services
    if services.registration is Registration.CLOSED:
        raise ProblemError(FORBIDDEN, "Nobody can register here; ask whoever runs the service")
    request = await call.json(_REGISTER)
    username = read_username(request.username)
    name = read_name(request.name, "name", NAME_MAX)
    tax_id = read_tax_id(request.tax_id, "tax_id", repeated=services.repeated_tax_ids)
    password = check_password(request.password, username=username, name=name, length_min=services.password_length_min)
    pace = services.pace
    await refuse_too_fast(call, f"register\0{call.address}", pace.register_burst, pace.register_drip_s)
    sub = uuid.UUID(bytes=blake2b(call.request_id.encode(), digest_size=16, key=services.key).digest(), version=4)
    invitation = None
    if services.registration is Registration.INVITED:
        given = "" if request.invitation is UNSET else request.invitation
        invitation = services.digest(given)
        if not await services.users.invited(invitation, sub):  # before a name is told to be taken
            raise _not_invited()
    hashed = await services.passwords.hash(password)
    person = person_reference(services.ledger_key, tax_id)
    try:
        await services.users.add(
            sub, username, name=name, person=person, role=Role.PERSON, password=hashed, by=call.by(),
            invitation=invitation,
        )  # fmt: skip
    except UsernameTaken:
        raise ProblemError(USERNAME_TAKEN, "The username is taken", field="username") from None
    except NotInvited:
        raise _not_invited() from None
    return json_answer(201, Registered(str(sub)))


def _not_invited() -> ProblemError:
    return ProblemError(FORBIDDEN, "Only who was invited can register here, once each", field="invitation")


async def login(call: Call) -> Answer:
    """POST /auth/login."""
    services = call.services
    request = await call.json(_LOGIN)
    audience = PAYMENTS if request.audience is UNSET else request.audience
    if audience not in AUDIENCES:
        raise malformed("audience", f"A token is for one of: {', '.join(AUDIENCES)}")
    user, password = await check_credentials(call, request.username, request.password)
    scopes = scopes_for(audience, own_scopes(user.role, proven=user.person is not None))
    if not scopes and scopes_for(audience, own_scopes(user.role, proven=True)):
        raise ProblemError(UNPROVEN, "Nobody has proven yet that the CPF or CNPJ is yours", field="audience")
    if not scopes:
        raise ProblemError(FORBIDDEN, "Your role has nothing to do there", field="audience")
    client = await services.clients.get(FIRST_PARTY)
    desk = Desk(services.issuing(), Facts(client, user))
    assert desk.client is not None  # noqa: S101 - made with the schema
    tokens = await asyncio.to_thread(desk.login_token, desk.client, in_order(scopes))
    ends = desk.auth_time + timedelta(seconds=services.lifetimes.refresh_s)
    family = Family(desk.sid, user.sub, FIRST_PARTY, tokens["scope"], desk.auth_time, ends)
    if not await services.grants.begin(family, services.digest(tokens["refresh_token"]), password, call.by(user.sub)):
        raise wrong_credentials()
    return json_answer(200, Tokens(**tokens))


async def logout(call: Call) -> Answer:
    """POST /auth/logout. Whoever logs out of a program is also out at the login page that it came by."""
    identity = call.identified()
    family = identity.claims.get("sid")
    if family is None:
        raise ProblemError(FORBIDDEN, "This token belongs to no login: delete the access key instead")
    cookie = call.cookie(SESSION)
    digest = call.services.digest(cookie) if cookie else None
    await call.services.grants.log_out(family, digest, call.by(identity.subject))
    return Answer(204, b"", [])


async def change_password(call: Call) -> Answer:
    """POST /auth/password."""
    services = call.services
    user = await _person(call)
    request = await call.json(_PASSWORD)
    new = check_password(
        request.new_password, username=user.username, name=user.name, length_min=services.password_length_min,
        field="new_password",
    )  # fmt: skip
    pace = services.pace
    await refuse_too_fast(call, f"password\0{user.sub}", pace.pair_burst, pace.pair_drip_s)
    known = await services.users.password_of(user.sub)
    current = normalized(request.current_password[: LENGTH_MAX + 1])
    if known is None or not await services.passwords.verify(known, current):
        raise ProblemError(WRONG_CREDENTIALS, "The current password is wrong", field="current_password")
    await services.attempts.forget(services.digest(f"password\0{user.sub}"))
    hashed = await services.passwords.hash(new)
    by, revoke_keys = call.by(user.sub), request.revoke_access_keys is not False
    if not await services.users.change_password(user.sub, known, hashed, by, revoke_keys=revoke_keys):
        raise ProblemError(WRONG_CREDENTIALS, "The current password is wrong", field="current_password")
    return Answer(204, b"", [])


async def _person(call: Call) -> User:
    """Whoever manages their own things."""
    user = await call.services.users.by_sub(call.person(SELF))
    if user is None or user.disabled:
        raise _speaks_for_nobody()
    return user


def _speaks_for_nobody() -> ProblemError:
    return ProblemError(UNAUTHENTICATED, "The token speaks for nobody", headers={"www-authenticate": "Bearer"})


# -- sessions ---------------------------------------------------------------------------------------------------------


async def list_sessions(call: Call) -> Answer:
    """GET /auth/sessions."""
    given = call.query().get("cursor")
    user = await _person(call)
    after = None if given is None else _read_cursor(given)
    found = await call.services.grants.sessions_of(user.sub, after, SESSIONS_PAGE + 1)
    page, last = page_of(found, SESSIONS_PAGE)
    mine = call.identified().claims.get("sid")
    items = [
        Session(
            one.id, one.client_id, one.client_name, one.scope, _instant(one.auth_time) or "",
            _instant(one.last_used_at), _instant(one.expires_at) or "", one.id == mine,
        )
        for one in page
    ]  # fmt: skip
    return json_answer(200, Sessions(items, None if last is None else _cursor(last)))


async def end_session(call: Call) -> Answer:
    """DELETE /auth/sessions/{id}."""
    user = await _person(call)
    if not await call.services.grants.end_session(user.sub, call.path["id"], call.by(user.sub)):
        raise ProblemError(UNKNOWN_SESSION, "You have no such session")
    return Answer(204, b"", [])


def _cursor(last: Listed) -> str:
    return f"{(last.auth_time - _EPOCH) // _MICROSECOND}.{last.id}"


def _read_cursor(given: str) -> tuple[datetime, str]:
    found = _CURSOR.fullmatch(given)
    if found is None:
        raise malformed("cursor", "This is no cursor of this list")
    return _EPOCH + int(found[1]) * _MICROSECOND, found[2]


# -- access keys ------------------------------------------------------------------------------------------------------


async def make_key(call: Call) -> Answer:
    """POST /auth/access-keys."""
    services = call.services
    user = await _person(call)
    request = await call.json(_KEY)
    name = text(request.name.strip(), "name", NAME_MAX)
    scopes = _scopes(request.scopes, user)
    life_s = services.lifetimes.key_s if request.expires_in is UNSET else request.expires_in
    if not _KEY_MIN_S <= life_s <= services.lifetimes.key_s:
        raise malformed("expires_in", f"An access key lives {_KEY_MIN_S} to {services.lifetimes.key_s} seconds")
    secret = new_secret("rzs")
    try:
        client = await services.clients.add(
            f"key-{uuid.uuid4()}", name, secret=services.digest(secret), owner=user.sub, grants=[CREDENTIALS_GRANT],
            scopes=scopes, expires_at=datetime.now(UTC) + timedelta(seconds=life_s), by=call.by(user.sub),
            at_most=KEYS_MAX, family=call.identified().claims["sid"],
        )  # fmt: skip
    except LoginEnded:
        raise _speaks_for_nobody() from None
    if client is None:
        raise ProblemError(TOO_MANY_KEYS, f"There are {KEYS_MAX} access keys already")
    shown = _shown(client)
    made = NewAccessKey(client.client_id, secret, name, scopes, shown.created_at, shown.expires_at)
    return json_answer(201, made, [JSON, (b"location", f"/auth/access-keys/{client.client_id}".encode())])


def _scopes(asked: list[str], user: User) -> list[str]:
    if not 1 <= len(asked) <= SCOPES_MAX:
        raise malformed("scopes", f"An access key has 1 to {SCOPES_MAX} scopes")
    allowed = delegable_scopes(user.role)
    if not set(asked) <= allowed:
        raise ProblemError(FORBIDDEN, f"You can pass on: {in_order(allowed) or 'nothing'}", field="scopes")
    return sorted(set(asked))


async def list_keys(call: Call) -> Answer:
    """GET /auth/access-keys."""
    user = await _person(call)
    keys = await call.services.clients.keys_of(user.sub)
    return json_answer(200, AccessKeys([_shown(key) for key in keys], None))


async def delete_key(call: Call) -> Answer:
    """DELETE /auth/access-keys/{id}."""
    user = await _person(call)
    if not await call.services.clients.revoke_key(user.sub, call.path["id"], call.by(user.sub)):
        raise ProblemError(UNKNOWN_KEY, "You have no such access key")
    return Answer(204, b"", [])


def _shown(key: Client) -> AccessKey:
    return AccessKey(
        key.client_id, key.name, list(key.scopes), _instant(key.created_at) or "", _instant(key.expires_at),
        _instant(key.last_used_at),
    )  # fmt: skip


def _instant(at: datetime | None) -> str | None:
    return None if at is None else at.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
