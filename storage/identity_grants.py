"""What people have granted: codes, refresh tokens by family, sessions at the login page, and attempts to log in.

A code and a refresh token are used once. Whoever brings one a second time has stolen it, or was stolen from, and
nobody can tell which: so the family ends (RFC 9700, 4.14.2; RFC 6749, 4.1.2). One use is told from two by the number
of the request, should one be on its way twice.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import asyncpg

from storage.identity import By, Connection, read_uuid, record, revoke_marks, transaction


@dataclass(frozen=True, slots=True)
class Family:
    """A login or a consent."""

    id: str
    sub: str
    client_id: str
    scope: str
    auth_time: datetime
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Code:
    """An authorization code."""

    client_id: str
    sub: str
    redirect_uri: str
    scope: str
    nonce: str | None
    challenge: str
    auth_time: datetime
    digest: bytes


@dataclass(frozen=True, slots=True)
class Reused:
    """A code or refresh token that was used before."""

    family: str
    sub: str
    client_id: str


class Grants:
    """Codes, families, sessions."""

    def __init__(self, pool: asyncpg.Pool[asyncpg.Record], *, access_life: timedelta) -> None:
        self._pool = pool
        self._life = access_life

    # -- families ---------------------------------------------------------------------------------------------------

    async def begin(self, family: Family, refresh: bytes | None, by: By) -> bool:
        """A login: write its family down with its first refresh token (a digest). False: they were just disabled."""
        async with transaction(self._pool) as connection:
            if not await _begin(connection, family, refresh):
                return False
            await record(connection, by, "login", family.sub, client=family.client_id, family=family.id)
        return True

    async def refresh_token(self, digest: bytes, request: str) -> Family | Reused | None:
        """The family of a refresh token; None when there is none that is in force."""
        row = await self._pool.fetchrow(
            "SELECT f.*, t.used_by FROM identity.refresh_tokens t JOIN identity.families f ON f.id = t.family"
            " WHERE t.digest = $1 AND f.expires_at > now()",
            digest,
        )
        if row is None:
            return None
        if row["used_by"] not in {None, request}:
            return Reused(str(row["id"]), str(row["sub"]), row["client_id"])
        return None if row["revoked_at"] is not None else _family(row)

    async def rotate(self, old: bytes, new: bytes, family: Family, by: By) -> bool:
        """Use a refresh token up and put another in its place. False: somebody was faster, or the family has ended."""
        async with transaction(self._pool) as connection:
            alive = await connection.fetchval(
                "SELECT id FROM identity.families WHERE id = $1 AND revoked_at IS NULL FOR UPDATE", uuid.UUID(family.id)
            )
            used = await connection.execute(
                "UPDATE identity.refresh_tokens SET used_by = $2 WHERE digest = $1"
                " AND (used_by IS NULL OR used_by = $2)",
                old,
                by.request,
            )
            if alive is None or used == "UPDATE 0":
                return False
            await connection.execute(
                "INSERT INTO identity.refresh_tokens (digest, family) VALUES ($1, $2)", new, uuid.UUID(family.id)
            )
            await record(connection, by, "token.refreshed", family.sub, client=family.client_id, family=family.id)
        return True

    async def end(self, family: str, by: By, action: str) -> None:
        """End a family and its access tokens."""
        async with transaction(self._pool) as connection:
            ended = await connection.fetchrow(
                "UPDATE identity.families SET revoked_at = now() WHERE id = $1 AND revoked_at IS NULL"
                " RETURNING sub, client_id",
                read_uuid(family),
            )
            if ended is not None:
                await revoke_marks(connection, [f"sid:{family}"], self._life)
                await record(connection, by, action, str(ended["sub"]), client=ended["client_id"], family=family)

    async def revoke_access_token(self, jti: str, sub: str, by: By) -> None:
        """Stop one access token."""
        async with transaction(self._pool) as connection:
            await revoke_marks(connection, [f"jti:{jti}"], self._life)
            await record(connection, by, "access-token.revoked", sub, jti=jti)

    # -- codes ------------------------------------------------------------------------------------------------------

    async def add_code(self, code: Code, expires_at: datetime, by: By) -> None:
        """Write a code down."""
        async with transaction(self._pool) as connection:
            await connection.execute(
                "INSERT INTO identity.codes (digest, client_id, sub, redirect_uri, scope, nonce, challenge, auth_time,"
                " expires_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
                code.digest, code.client_id, uuid.UUID(code.sub), code.redirect_uri, code.scope, code.nonce,
                code.challenge, code.auth_time, expires_at,
            )  # fmt: skip
            await record(connection, by, "consent.given", code.sub, client=code.client_id, scope=code.scope)

    async def code(self, digest: bytes, request: str) -> Code | Reused | None:
        """The code, if it is in its time."""
        row = await self._pool.fetchrow("SELECT * FROM identity.codes WHERE digest = $1", digest)
        if row is None:
            return None
        if row["used_by"] not in {None, request}:
            return Reused(str(row["family"]), str(row["sub"]), row["client_id"])
        if row["expires_at"] <= datetime.now(UTC):
            return None
        return Code(
            row["client_id"], str(row["sub"]), row["redirect_uri"], row["scope"], row["nonce"], row["challenge"],
            row["auth_time"], bytes(row["digest"]),
        )  # fmt: skip

    async def exchange(self, digest: bytes, family: Family, refresh: bytes | None, by: By) -> bool:
        """Use a code up for a family. False: somebody was faster, or it is gone."""
        async with transaction(self._pool) as connection:
            used = await connection.fetchrow(
                "UPDATE identity.codes c SET used_by = $2, family = $3 FROM identity.codes old"
                " WHERE c.digest = $1 AND old.digest = c.digest AND (c.used_by IS NULL OR c.used_by = $2)"
                " RETURNING old.family AS family",
                digest, by.request, uuid.UUID(family.id),
            )  # fmt: skip
            if used is None:
                return False
            if used["family"] is not None:  # the same request again: what its first attempt made was never told
                await connection.execute("DELETE FROM identity.families WHERE id = $1", used["family"])
            if not await _begin(connection, family, refresh):
                return False
            await record(connection, by, "code.exchanged", family.sub, client=family.client_id, family=family.id)
        return True

    # -- sessions at the login page -----------------------------------------------------------------------------------

    async def open_session(self, digest: bytes, sub: str, auth_time: datetime, life: timedelta, by: By) -> None:
        """Somebody has logged in at the login page."""
        async with transaction(self._pool) as connection:
            await connection.execute(
                "INSERT INTO identity.sessions (digest, sub, auth_time, expires_at) VALUES ($1, $2, $3, $4)",
                digest, uuid.UUID(sub), auth_time, auth_time + life,
            )  # fmt: skip
            await record(connection, by, "login", sub, page=True)

    async def session(self, digest: bytes) -> tuple[str, datetime] | None:
        """Whose session, and since when."""
        row = await self._pool.fetchrow(
            "SELECT sub, auth_time FROM identity.sessions WHERE digest = $1 AND expires_at > now()", digest
        )
        return None if row is None else (str(row["sub"]), row["auth_time"])

    async def sweep(self) -> None:
        """Forget what has run out."""
        for table, keep in (
            ("codes", timedelta(days=1)),  # a replay must still be noticed
            ("sessions", timedelta()),
            ("revocations", timedelta()),
            ("families", timedelta(days=7)),
            ("invitations", timedelta(days=7)),
        ):
            await self._pool.execute(
                f"DELETE FROM identity.{table} WHERE expires_at < $1",  # a name of ours
                datetime.now(UTC) - keep,
            )
        await self._pool.execute("DELETE FROM identity.attempts WHERE at < now() - interval '30 days'")


_ATTEMPT: Final = """
INSERT INTO identity.attempts AS a (bucket, level, at) VALUES ($1, 1, now())
ON CONFLICT (bucket) DO UPDATE SET
    level = greatest(0, a.level - extract(epoch FROM now() - a.at) / $3) + 1, at = now()
    WHERE greatest(0, a.level - extract(epoch FROM now() - a.at) / $3) + 1 <= $2
RETURNING level
"""
_FULL: Final = "SELECT level - extract(epoch FROM now() - at) / $2 FROM identity.attempts WHERE bucket = $1"


class Attempts:
    """Leaky buckets: each attempt fills one by 1, and it empties by 1 every `drip_s`.

    An attempt that finds it full is refused and does not fill it: so whoever goes on knocking keeps nobody out for
    longer.
    """

    def __init__(self, pool: asyncpg.Pool[asyncpg.Record]) -> None:
        self._pool = pool

    async def take(self, bucket: bytes, *, burst: float, drip_s: float) -> tuple[float, float]:
        """Count an attempt before it is made. Returns the level, and seconds to wait when it is refused, else 0."""
        level = await self._pool.fetchval(_ATTEMPT, bucket, burst, drip_s)
        if level is not None:
            return float(level), 0.0
        full = float(await self._pool.fetchval(_FULL, bucket, drip_s) or 0.0)
        return full, max(1.0, (full + 1 - burst) * drip_s)

    async def give_back(self, bucket: bytes, count: float = 1.0) -> None:
        """An attempt that was no guess after all."""
        await self._pool.execute(
            "UPDATE identity.attempts SET level = greatest(0, level - $2) WHERE bucket = $1", bucket, count
        )

    async def forget(self, bucket: bytes) -> None:
        """Empty it."""
        await self._pool.execute("DELETE FROM identity.attempts WHERE bucket = $1", bucket)

    async def known(self, bucket: bytes) -> bool:
        """Whether it was ever filled, and not forgotten."""
        return bool(
            await self._pool.fetchval("SELECT EXISTS (SELECT FROM identity.attempts WHERE bucket = $1)", bucket)
        )


async def _begin(connection: Connection, family: Family, refresh: bytes | None) -> bool:
    """Waits for whoever is just disabling this person, so that no session outlives that."""
    enabled = await connection.fetchval(
        "SELECT sub FROM identity.users WHERE sub = $1 AND disabled_at IS NULL FOR SHARE", uuid.UUID(family.sub)
    )
    if enabled is None:
        return False
    await connection.execute(
        "INSERT INTO identity.families (id, sub, client_id, scope, auth_time, expires_at)"
        " VALUES ($1, $2, $3, $4, $5, $6)",
        uuid.UUID(family.id), uuid.UUID(family.sub), family.client_id, family.scope, family.auth_time,
        family.expires_at,
    )  # fmt: skip
    if refresh is not None:
        await connection.execute(
            "INSERT INTO identity.refresh_tokens (digest, family) VALUES ($1, $2)", refresh, uuid.UUID(family.id)
        )
    return True


def _family(row: Any) -> Family:
    return Family(str(row["id"]), str(row["sub"]), row["client_id"], row["scope"], row["auth_time"], row["expires_at"])
