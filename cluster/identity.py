"""The store of identities made ready, and what an operator does with it: people, clients, signing keys."""

from __future__ import annotations

import re
import secrets
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final
from urllib.parse import urlsplit

import asyncpg

from cluster.data import EngineError
from deployments.identity_accounts import read_username
from deployments.identity_oauth import CODE_GRANT, CREDENTIALS_GRANT, REFRESH_GRANT, new_secret
from deployments.identity_passwords import Passwords, check_password
from deployments.identity_proofs import read_how
from deployments.identity_roles import DELEGABLE, FIRST_PARTY, OF_ROLE, OPENID, SELF, Role, in_order
from deployments.identity_services import Lifetimes
from deployments.identity_signing import make_key
from deployments.problems import ProblemError
from deployments.tax_id import read_tax_id
from storage import identity
from storage.identity import OPERATOR, ProofConflict, User, UsernameTaken, Users, canonical_username, digest
from storage.identity_clients import Clients
from storage.identity_keys import SigningKeys
from storage.references import derived_key, person_reference

ADMINISTRATOR: Final = "admin"
PUBLISHED: Final = timedelta(seconds=30)
"""How long a key is published before it signs, even when keys are rotated twice at once."""

_LONGEST: Final = Lifetimes(access_s=900).access
"""Here nobody knows what life the running application gives its tokens: no longer than this."""


SCORE_CLIENT: Final = "razao-score"
"""The client by which the score asks the vault for debts, under a grant like everybody else's."""
_USUAL: Final = frozenset({"ledger:read", "ledger:write"})
"""What a client may that names no scopes."""


def score_client_secret(ledger_key: bytes) -> str:
    """The secret of `SCORE_CLIENT`: whoever has the ledger's key can tell it, so it is kept nowhere."""
    return f"rzs_{urlsafe_b64encode(derived_key(ledger_key, b'razao.score-svc')).decode().rstrip('=')}"


def secret_key(ledger_key: bytes) -> bytes:
    """The key of the hashes of secrets."""
    return derived_key(ledger_key, b"razao.identity")


async def prepare(pool: asyncpg.Pool[asyncpg.Record], ledger_key: bytes, *, say: Callable[[str], None]) -> None:
    """Make what the service cannot be without: its schema, two keys, its own client, the first administrator."""
    await identity.create(pool)
    await SigningKeys(pool).ensure(partial(make_key, ledger_key), OPERATOR)
    life = _LONGEST
    scopes = sorted(frozenset().union(*OF_ROLE.values()) | OPENID | {SELF})
    clients = Clients(pool, access_life=life)
    await clients.ensure(FIRST_PARTY, "Razao", secret=None, grants=[REFRESH_GRANT], scopes=scopes, by=OPERATOR)
    await clients.ensure(
        SCORE_CLIENT, "Razao's score", secret=digest(secret_key(ledger_key), score_client_secret(ledger_key)),
        grants=[CREDENTIALS_GRANT], scopes=["vault:read:debts"], role=Role.SERVICE, by=OPERATOR,
    )  # fmt: skip
    users = Users(pool, access_life=life)
    if not await users.have_role(Role.ADMINISTRATOR):
        password = "-".join(secrets.token_hex(3) for _ in range(4))
        passwords = Passwords()
        try:
            hashed = await passwords.hash(password)
        finally:
            passwords.close()
        try:
            await users.add(
                uuid.uuid4(), ADMINISTRATOR, name="Administrator", person=None, role=Role.ADMINISTRATOR,
                password=hashed, by=OPERATOR,
            )  # fmt: skip
        except UsernameTaken:
            say(f"there is no administrator; make one with `razao users add NAME --role {Role.ADMINISTRATOR}`")
        else:
            say(f"first administrator: {ADMINISTRATOR}, password {password} (shown this once)")


# -- clients ----------------------------------------------------------------------------------------------------------

_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})
_URI: Final = re.compile(r"[A-Za-z0-9._~:/?@!$&'()*+,;=%\[\]-]{1,2048}")


def check_redirect_uri(uri: str, *, public: bool) -> str:
    """A redirect URI that a client may have (RFC 9700, 2.1 and 4.1; RFC 8252, 7).

    Raises:
        EngineError: it is not safe, and why.
    """
    try:
        parts = urlsplit(uri)
        host = parts.hostname
        _ = parts.port
    except ValueError:
        raise EngineError(f"{uri} is no address") from None
    if not _URI.fullmatch(uri) or "*" in uri or parts.username is not None:
        raise EngineError(f"{uri} must be a plain address without fragment, wildcard or user")
    if parts.scheme == "https" and host:
        return uri
    if parts.scheme == "http" and host in _LOOPBACK:
        return uri
    if public and "." in parts.scheme and not parts.netloc:  # an app's own, as com.example.app:/callback
        return uri
    raise EngineError(f"{uri} must be https, http on loopback, or an app's own scheme with a dot (public clients)")


async def add_client(
    pool: asyncpg.Pool[asyncpg.Record],
    ledger_key: bytes,
    name: str,
    redirect_uris: Sequence[str],
    *,
    public: bool = False,
    scopes: Sequence[str] = (),
) -> dict[str, Any]:
    """Add a client; returns what is shown once.

    With redirect URIs people are sent to log in by it; without any it is a system that acts for itself.

    Raises:
        EngineError: a redirect URI or a scope that it may not have.
    """
    for uri in redirect_uris:
        check_redirect_uri(uri, public=public)
    if public and not redirect_uris:
        raise EngineError("a client without redirect URIs is a system, and a system has a secret")
    allowed = (DELEGABLE | OPENID) if redirect_uris else OF_ROLE[Role.SERVICE]
    wanted = frozenset(scopes) or (_USUAL | OPENID if redirect_uris else _USUAL)
    if not wanted <= allowed:
        raise EngineError(f"unknown scopes: {in_order(wanted - allowed)}; there are {in_order(allowed)}")
    secret = None if public else new_secret("rzs")
    client_id = f"{'app' if redirect_uris else 'svc'}-{uuid.uuid4()}"
    added = await Clients(pool, access_life=_LONGEST).add(
        client_id,
        name,
        secret=None if secret is None else digest(secret_key(ledger_key), secret),
        grants=[CODE_GRANT, REFRESH_GRANT] if redirect_uris else [CREDENTIALS_GRANT],
        scopes=sorted(wanted),
        redirect_uris=redirect_uris,
        role=None if redirect_uris else Role.SERVICE,
        by=OPERATOR,
    )
    assert added is not None  # noqa: S101 - the id is random
    made: dict[str, Any] = {"client_id": client_id}
    if secret is not None:
        made["client_secret"] = secret
    return {**made, "name": name, "redirect_uris": list(redirect_uris), "scopes": sorted(wanted)}


# -- people -----------------------------------------------------------------------------------------------------------


async def add_user(
    pool: asyncpg.Pool[asyncpg.Record], username: str, role: Role, password: str, *, length_min: int
) -> dict[str, Any]:
    """Add somebody with a role.

    Raises:
        EngineError: the name is taken, or the name or the password cannot be one.
    """
    if role is Role.SERVICE:
        raise EngineError("a service is a client: `razao clients add`")
    passwords = Passwords()
    try:
        canonical = read_username(username)
        checked = check_password(password, username=canonical, name="", length_min=length_min)
        hashed = await passwords.hash(checked)
        sub = uuid.uuid4()
        users = Users(pool, access_life=_LONGEST)
        await users.add(sub, canonical, name=username, person=None, role=role, password=hashed, by=OPERATOR)
    except ProblemError as error:
        raise EngineError(error.detail) from None
    except UsernameTaken:
        raise EngineError(f"the username {username} is taken") from None
    finally:
        passwords.close()
    return {"sub": str(sub), "username": canonical, "role": role.value}


async def prove_user(
    pool: asyncpg.Pool[asyncpg.Record], ledger_key: bytes, username: str, tax_id: str, how: str, *, repeated: bool
) -> dict[str, Any]:
    """Say that a tax id is somebody's.

    Raises:
        EngineError: there is nobody of that name, or it is not theirs by what we know.
    """
    try:
        plain = read_tax_id(tax_id, "--tax-id", repeated=repeated)
        read_how(how, "--method")
        user = await _user(pool, username)
        await Users(pool, access_life=_LONGEST).prove(user.sub, person_reference(ledger_key, plain), how, OPERATOR)
    except ProblemError as error:
        raise EngineError(error.detail) from None
    except ProofConflict as error:
        raise EngineError(str(error)) from None
    return {"sub": user.sub, "username": user.username, "proven": True}


async def unprove_user(pool: asyncpg.Pool[asyncpg.Record], username: str, reason: str) -> dict[str, Any]:
    """Take a proof back.

    Raises:
        EngineError: there is nobody of that name.
    """
    try:
        read_how(reason, "--reason")
    except ProblemError as error:
        raise EngineError(error.detail) from None
    user = await _user(pool, username)
    await Users(pool, access_life=_LONGEST).unprove(user.sub, reason, OPERATOR)
    return {"sub": user.sub, "username": user.username, "proven": False}


async def _user(pool: asyncpg.Pool[asyncpg.Record], username: str) -> User:
    user = await Users(pool, access_life=_LONGEST).by_name(canonical_username(username))
    if user is None:
        raise EngineError(f"there is nobody named {username}")
    return user


async def invite(pool: asyncpg.Pool[asyncpg.Record], ledger_key: bytes, life_s: int) -> dict[str, Any]:
    """A code by which one person can register within so many seconds; it is shown this once."""
    code = new_secret("rzi")
    expires_at = datetime.now(UTC) + timedelta(seconds=life_s)
    users = Users(pool, access_life=_LONGEST)
    await users.invite(digest(secret_key(ledger_key), code), expires_at, OPERATOR)
    return {"invitation": code, "expires_at": expires_at.isoformat(timespec="seconds")}


async def list_users(pool: asyncpg.Pool[asyncpg.Record]) -> list[dict[str, Any]]:
    """Everybody, by name."""
    return [
        {
            "sub": user.sub,
            "username": user.username,
            "role": user.role,
            "disabled": user.disabled,
            "proven": user.person is not None,
            "created_at": user.created_at.isoformat(timespec="seconds"),
        }
        for user in await Users(pool, access_life=_LONGEST).everyone()
    ]


async def set_enabled(pool: asyncpg.Pool[asyncpg.Record], username: str, *, enabled: bool) -> dict[str, Any]:
    """Let somebody in again, or no more.

    Raises:
        EngineError: there is nobody of that name.
    """
    users = Users(pool, access_life=_LONGEST)
    user = await _user(pool, username)
    await (users.enable if enabled else users.disable)(user.sub, OPERATOR)
    return {"sub": user.sub, "username": user.username, "disabled": not enabled}


# -- keys -------------------------------------------------------------------------------------------------------------


async def list_keys(pool: asyncpg.Pool[asyncpg.Record]) -> list[dict[str, Any]]:
    """The signing keys that verify, the oldest first."""
    now = datetime.now(UTC)
    return [
        {
            "kid": key.kid,
            "state": key.state(now),
            "active_at": key.active_at and key.active_at.isoformat(timespec="seconds"),
            "expires_at": key.expires_at and key.expires_at.isoformat(timespec="seconds"),
        }
        for key in await SigningKeys(pool).all()
    ]


async def rotate_keys(pool: asyncpg.Pool[asyncpg.Record], ledger_key: bytes) -> list[dict[str, Any]]:
    """The key in waiting takes over; returns what `list_keys` does."""
    await SigningKeys(pool).rotate(
        partial(make_key, ledger_key), published=PUBLISHED, signed_live=Lifetimes(access_s=900).signed, by=OPERATOR
    )
    return await list_keys(pool)
