"""The store of identities: its schema, its keyed hashes, its audit trail, and the people in it.

Beside it stand the stores of clients, of grants (`identity_grants.py`) and of signing keys (`identity_keys.py`), all
over one pool. Every change goes into the audit table in the transaction that makes it. Whoever follows revocations and
keys is told on the channel `CHANNEL`.

A tax id is somebody's claim until it is proven; `User.person` is there only then.

    UsernameTaken           somebody else has the name
    LoginEnded              what somebody was let in by has ended
    NotInvited              there is no such invitation, or it was used or has lapsed
    ProofConflict           the tax id is not the one claimed, or it is proven to be somebody else's
"""

from __future__ import annotations

import json
import unicodedata
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from importlib import resources
from typing import Any, Final

import asyncpg

CHANNEL: Final = "identity"
REVOKED: Final = "revoked"
KEYS: Final = "keys"
Connection = Any
"""An asyncpg connection, or the pool's stand-in for one."""

_PAYLOAD_MAX: Final = 7000
"""A notification has at most 8000 bytes; without marks it says: read them all again."""

_ON_ITS_WAY: Final = timedelta(minutes=1)
"""Longer than any request takes."""


class UsernameTaken(Exception):  # noqa: N818 - what it is
    """Somebody else has the name."""


class LoginEnded(Exception):  # noqa: N818 - what it is
    """What somebody was let in by has ended, so nothing more is given for it."""


class NotInvited(Exception):  # noqa: N818 - what it is
    """There is no such invitation, or it was used or has lapsed."""


class ProofConflict(Exception):  # noqa: N818 - what it is
    """The tax id is not the one claimed, or it is proven to be somebody else's. The message may be shown."""


@dataclass(frozen=True, slots=True)
class By:
    """Who makes a change, for the audit table. `request`: the number of the HTTP request."""

    actor: str
    address: str = ""
    request: str = ""


OPERATOR: Final = By("operator")


@dataclass(frozen=True, slots=True)
class User:
    """A person, without what only the login needs."""

    sub: str
    username: str
    name: str
    person: str | None  # keyed reference to the tax id, hex, once it is proven to be theirs
    proof: str | None  # which proof that is: another one after it was revoked
    role: str
    disabled: bool
    created_at: datetime


def digest(key: bytes, secret: str) -> bytes:
    """What is kept of a random secret, or of what a bucket counts. Fast, so not for what people make up."""
    return blake2b(secret.encode("utf-8", "surrogatepass"), digest_size=32, key=key, person=b"razao.secret").digest()


def canonical_username(given: str) -> str:
    """The one form of a username: NFKC, case folded (RFC 8265, UsernameCaseMapped, in short)."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", given.strip()).casefold())


async def create(pool: asyncpg.Pool[asyncpg.Record]) -> None:
    """Make the schema `identity` where it is missing. Nothing ever drops it."""
    sql = resources.files("storage").joinpath("identity.sql").read_text()
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute(sql)


@asynccontextmanager
async def transaction(pool: asyncpg.Pool[asyncpg.Record]) -> AsyncIterator[Connection]:
    """A connection inside a transaction."""
    async with pool.acquire() as connection, connection.transaction():
        yield connection


async def record(connection: Connection, by: By, action: str, subject: str, **detail: Any) -> None:
    """Write to the audit table."""
    await connection.execute(
        "INSERT INTO identity.audit (actor, action, subject, detail, address, request) VALUES ($1, $2, $3, $4, $5, $6)",
        by.actor, action, subject, json.dumps(detail), by.address, by.request,
    )  # fmt: skip


async def notify(connection: Connection, what: str) -> None:
    """Tell followers, once the transaction has committed."""
    await connection.execute("SELECT pg_notify($1, $2)", CHANNEL, what)


async def revoke_marks(connection: Connection, marks: Sequence[str], life: timedelta) -> None:
    """Stop access tokens that carry one of `marks`, for as long as one of them may live (`life`)."""
    if not marks:
        return
    until = datetime.now(UTC) + life
    await connection.executemany(
        "INSERT INTO identity.revocations (mark, expires_at) VALUES ($1, $2)"
        " ON CONFLICT (mark) DO UPDATE SET expires_at = greatest(revocations.expires_at, excluded.expires_at)",
        [(mark, until) for mark in marks],
    )
    told = " ".join((REVOKED, *marks))
    await notify(connection, told if len(told) < _PAYLOAD_MAX else REVOKED)


class Users:
    """People and their passwords."""

    def __init__(self, pool: asyncpg.Pool[asyncpg.Record], *, access_life: timedelta) -> None:
        """`access_life`: the longest life of an access token, leeway included."""
        self._pool = pool
        self._life = access_life

    async def add(
        self,
        sub: uuid.UUID,
        username: str,
        *,
        name: str,
        person: bytes | None,
        role: str,
        password: str,
        by: By,
        invitation: bytes | None = None,
    ) -> bool:
        """Add a person, who claims the tax id behind the reference `person`. `username` is canonical, `password` a
        hash. `invitation`: digest of the one that this uses up. False: this very `sub` was added before.

        Raises:
            UsernameTaken: somebody else has the name.
            NotInvited: the invitation is none.
        """
        async with transaction(self._pool) as connection:
            added = await connection.fetchval(
                "INSERT INTO identity.users (sub, username, name, person, role, password)"
                " VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (username) DO NOTHING RETURNING sub",
                sub, username, name, person, role, password,
            )  # fmt: skip
            if added is None:
                known = await connection.fetchval("SELECT sub FROM identity.users WHERE username = $1", username)
                if known != sub:
                    raise UsernameTaken(username)
                return False
            if invitation is not None:
                used = await connection.execute(
                    "UPDATE identity.invitations SET used_by = $2"
                    " WHERE digest = $1 AND used_by IS NULL AND expires_at > now()",
                    invitation, sub,
                )  # fmt: skip
                if used == "UPDATE 0":
                    raise NotInvited
            await record(connection, by, "user.added", str(sub), username=username, role=role)
        return True

    async def invite(self, invitation: bytes, expires_at: datetime, by: By) -> None:
        """Let somebody register, once: whoever has the secret behind the digest."""
        async with transaction(self._pool) as connection:
            await connection.execute(
                "INSERT INTO identity.invitations (digest, expires_at) VALUES ($1, $2)", invitation, expires_at
            )
            await record(connection, by, "invitation.made", "", expires_at=expires_at.isoformat(timespec="seconds"))

    async def invited(self, invitation: bytes, sub: uuid.UUID) -> bool:
        """Whether the invitation is good for this very `sub`."""
        return bool(
            await self._pool.fetchval(
                "SELECT EXISTS (SELECT FROM identity.invitations"
                " WHERE digest = $1 AND (used_by = $2 OR (used_by IS NULL AND expires_at > now())))",
                invitation, sub,
            )
        )  # fmt: skip

    async def to_log_in(self, username: str) -> tuple[User, str] | None:
        """The person of that canonical name, with the password's hash."""
        row = await self._pool.fetchrow("SELECT * FROM identity.users WHERE username = $1", username)
        return None if row is None else (_user(row), row["password"])

    async def by_sub(self, sub: str) -> User | None:
        """The person, disabled or not."""
        row = await self._pool.fetchrow("SELECT * FROM identity.users WHERE sub = $1", read_uuid(sub))
        return None if row is None else _user(row)

    async def password_of(self, sub: str) -> str | None:
        """The password's hash."""
        found: str | None = await self._pool.fetchval(
            "SELECT password FROM identity.users WHERE sub = $1", read_uuid(sub)
        )
        return found

    async def by_name(self, username: str) -> User | None:
        """The person of that canonical name."""
        row = await self._pool.fetchrow("SELECT * FROM identity.users WHERE username = $1", username)
        return None if row is None else _user(row)

    async def everyone(self) -> list[User]:
        """All people by name."""
        return [_user(row) for row in await self._pool.fetch("SELECT * FROM identity.users ORDER BY username")]

    async def have_role(self, role: str) -> bool:
        """Whether anybody has it."""
        return bool(await self._pool.fetchval("SELECT EXISTS (SELECT FROM identity.users WHERE role = $1)", role))

    async def rehash(self, sub: str, old: str, new: str) -> bool:
        """Replace a password's hash by a better one of the same password. False: it is not `old` any more."""
        return await _set_password(self._pool, sub, old, new)

    async def change_password(self, sub: str, old: str, new: str, by: By, *, revoke_keys: bool = True) -> bool:
        """Replace the hash `old` by `new`, and end every session, and with `revoke_keys` every access key too.

        False: it is not `old` any more, or they were disabled.
        """
        async with transaction(self._pool) as connection:
            if not await _set_password(connection, sub, old, new):
                return False
            await _end_sessions(connection, sub, self._life)
            if revoke_keys:
                await _end_keys(connection, sub, self._life, by)
            await record(connection, by, "user.password-changed", sub)
        return True

    async def prove(self, sub: str, person: bytes, how: str, by: By) -> bool:
        """The tax id behind the reference is theirs: somebody has made sure, by `how`. Who has claimed none has it from
        now on. False: there is nobody of that `sub`, or it was proven before.

        Raises:
            ProofConflict: they claim another tax id, or it is proven to be somebody else's.
        """
        try:
            async with transaction(self._pool) as connection:
                row = await connection.fetchrow(
                    "SELECT person, proven_at FROM identity.users WHERE sub = $1 FOR UPDATE", read_uuid(sub)
                )
                if row is None:
                    return False
                if row["person"] not in {None, person}:
                    raise ProofConflict("The tax id is not the one that they have claimed")
                if row["proven_at"] is not None:
                    return False
                await connection.execute(
                    "UPDATE identity.users SET person = $2, proven_at = now() WHERE sub = $1", read_uuid(sub), person
                )
                await record(connection, by, "proof.given", sub, how=how)
        except asyncpg.UniqueViolationError:
            raise ProofConflict("The tax id is proven to be somebody else's") from None
        return True

    async def unprove(self, sub: str, how: str, by: By) -> bool:
        """The tax id is a mere claim again, and access tokens that carry it stop. False: it was no more before."""
        async with transaction(self._pool) as connection:
            proven_at = await connection.fetchval(
                "SELECT proven_at FROM identity.users WHERE sub = $1 FOR UPDATE", read_uuid(sub)
            )
            if proven_at is None:
                return False
            await connection.execute("UPDATE identity.users SET proven_at = NULL WHERE sub = $1", read_uuid(sub))
            # A token may be on its way for which the person was looked up before.
            mark = f"proof:{_proof(read_uuid(sub), proven_at)}"
            await revoke_marks(connection, [mark], self._life + _ON_ITS_WAY)
            await record(connection, by, "proof.revoked", sub, how=how)
        return True

    async def disable(self, sub: str, by: By) -> None:
        """Let somebody in no more, and end what was given to them for good, access keys and tokens too."""
        async with transaction(self._pool) as connection:
            await connection.execute(
                "UPDATE identity.users SET disabled_at = now() WHERE sub = $1 AND disabled_at IS NULL", read_uuid(sub)
            )
            await _end_sessions(connection, sub, self._life)
            await _end_keys(connection, sub, self._life, by)
            await record(connection, by, "user.disabled", sub)

    async def enable(self, sub: str, by: By) -> None:
        """Let somebody in again. Nothing is lifted: what was stopped stays stopped."""
        async with transaction(self._pool) as connection:
            await connection.execute("UPDATE identity.users SET disabled_at = NULL WHERE sub = $1", read_uuid(sub))
            await record(connection, by, "user.enabled", sub)


async def may_be_given(connection: Connection, sub: str, *, password: str | None = None) -> bool:
    """Whether this person may be given anything now: they are not disabled, and `password` is still the hash.

    Waits for whoever is just disabling them or changing their password, and lets nobody do so before the transaction
    ends: so what is written in it is ended with the rest, and outlives neither. Comes first in a transaction, since
    those who end things lock the person first.
    """
    found = await connection.fetchval(
        "SELECT sub FROM identity.users WHERE sub = $1 AND disabled_at IS NULL"
        " AND ($2::text IS NULL OR password = $2) FOR SHARE",
        read_uuid(sub),
        password,
    )
    return found is not None


async def _set_password(connection: Connection, sub: str, old: str, new: str) -> bool:
    changed = await connection.execute(
        "UPDATE identity.users SET password = $3 WHERE sub = $1 AND password = $2 AND disabled_at IS NULL",
        read_uuid(sub), old, new,
    )  # fmt: skip
    return bool(changed != "UPDATE 0")


async def _end_sessions(connection: Connection, sub: str, access_life: timedelta) -> None:
    """End somebody's sessions at the login page, their refresh tokens and the access tokens that came of them."""
    await connection.execute("DELETE FROM identity.sessions WHERE sub = $1", read_uuid(sub))
    await connection.execute("DELETE FROM identity.codes WHERE sub = $1 AND used_by IS NULL", read_uuid(sub))
    # Those that were ended before have their marks already; of one that has run out an access token may live on.
    ended = await connection.fetch(
        "UPDATE identity.families SET revoked_at = now() WHERE sub = $1 AND revoked_at IS NULL AND expires_at > $2"
        " RETURNING id",
        read_uuid(sub),
        datetime.now(UTC) - access_life,
    )
    await revoke_marks(connection, [f"sid:{row['id']}" for row in ended], access_life)


async def _end_keys(connection: Connection, sub: str, access_life: timedelta, by: By) -> None:
    """End somebody's access keys and the access tokens that came of them."""
    ended = await connection.fetch(
        "UPDATE identity.clients SET revoked_at = now() WHERE owner = $1 AND revoked_at IS NULL"
        " AND (expires_at IS NULL OR expires_at > $2) RETURNING client_id",
        read_uuid(sub),
        datetime.now(UTC) - access_life,
    )
    await revoke_marks(connection, [f"client:{row['client_id']}" for row in ended], access_life)
    for row in ended:
        await record(connection, by, "access-key.revoked", row["client_id"], owner=sub)


def read_uuid(sub: str) -> uuid.UUID | None:
    """The UUID; None of what is none, such as the `sub` of another issuer: it names nobody here."""
    try:
        return uuid.UUID(sub)
    except ValueError:
        return None


def _proof(sub: Any, proven_at: datetime) -> str:
    return f"{sub}:{proven_at.timestamp():.6f}"


def _user(row: Any) -> User:
    proven_at = row["proven_at"]
    return User(
        sub=str(row["sub"]),
        username=row["username"],
        name=row["name"],
        person=None if proven_at is None else row["person"].hex(),
        proof=None if proven_at is None else _proof(row["sub"], proven_at),
        role=row["role"],
        disabled=row["disabled_at"] is not None,
        created_at=row["created_at"],
    )
