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

from storage.identity import By, Connection, may_be_given, read_uuid, record, revoke_marks, transaction


@dataclass(frozen=True, slots=True)
class Family:
    """A login or a consent."""

    id: str
    sub: str
    client_id: str
    scope: str
    auth_time: datetime
    expires_at: datetime
    session: str | None = None  # at the login page, that it came of


@dataclass(frozen=True, slots=True)
class Session:
    """A login at the login page. The id stays when the same person logs in again in the same browser."""

    id: str
    sub: str
    auth_time: datetime


@dataclass(frozen=True, slots=True)
class Listed:
    """A family, or a session at the login page, as its person sees it."""

    id: str
    client_id: str | None  # none: the login page
    client_name: str | None
    scope: str | None
    auth_time: datetime
    last_used_at: datetime | None  # of its refresh tokens
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
    session: str | None  # at the login page, in which it was given; None: an older version gave it


@dataclass(frozen=True, slots=True)
class Reused:
    """A code or refresh token that was used before."""

    family: str
    sub: str
    client_id: str


_SESSIONS: Final = """
SELECT * FROM (
    SELECT f.id, f.client_id, c.name AS client_name, f.scope, f.auth_time, f.last_used_at, f.expires_at
    FROM identity.families f JOIN identity.clients c USING (client_id)
    WHERE f.sub = $1 AND f.revoked_at IS NULL AND f.expires_at > now()
    UNION ALL
    SELECT id, NULL, NULL, NULL, auth_time, NULL, expires_at FROM identity.sessions
    WHERE sub = $1 AND expires_at > now()
) AS s
WHERE $2::timestamptz IS NULL OR (auth_time, id) < ($2, $3::uuid)
ORDER BY auth_time DESC, id DESC LIMIT $4
"""


class Grants:
    """Codes, families, sessions."""

    def __init__(self, pool: asyncpg.Pool[asyncpg.Record], *, access_life: timedelta) -> None:
        self._pool = pool
        self._life = access_life

    # -- families ---------------------------------------------------------------------------------------------------

    async def begin(self, family: Family, refresh: bytes | None, password: str, by: By) -> bool:
        """A login: write its family down with its first refresh token (a digest).

        `password`: the hash that they were let in by. False: it is another one by now, or they were just disabled.
        """
        async with transaction(self._pool) as connection:
            if not await may_be_given(connection, family.sub, password=password):
                return False
            await _begin(connection, family, refresh)
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
                "UPDATE identity.families SET last_used_at = now() WHERE id = $1 AND revoked_at IS NULL RETURNING id",
                uuid.UUID(family.id),
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
            await _end(connection, family, self._life, by, action)

    async def log_out(self, family: str, cookie: bytes | None, by: By) -> None:
        """End a family and its access tokens, with the sessions at the login page that belong to it.

        These are the one that it came of, and that person's one of the browser that asks (`cookie`: a digest); with
        them go the codes that were given there and not yet used.
        """
        async with transaction(self._pool) as connection:
            await self._log_out(connection, family, cookie, by)

    async def _log_out(self, connection: Connection, family: str, cookie: bytes | None, by: By) -> None:
        await _close(
            connection,
            "DELETE FROM identity.sessions s USING identity.families f"
            " WHERE f.id = $1 AND s.sub = f.sub AND (s.id = f.session OR s.digest = $2) RETURNING s.id",
            read_uuid(family), cookie,
        )  # fmt: skip
        await _end(connection, family, self._life, by, "logout")

    async def revoke_access_token(self, jti: str, sub: str, by: By) -> None:
        """Stop one access token."""
        async with transaction(self._pool) as connection:
            await revoke_marks(connection, [f"jti:{jti}"], self._life)
            await record(connection, by, "access-token.revoked", sub, jti=jti)

    # -- codes ------------------------------------------------------------------------------------------------------

    async def add_code(self, code: Code, expires_at: datetime, by: By) -> bool:
        """Write a code down. False: the session in which it was given has ended."""
        async with transaction(self._pool) as connection:
            if not await may_be_given(connection, code.sub):
                return False
            lasts = await connection.fetchval(
                "SELECT true FROM identity.sessions WHERE id = $1 AND sub = $2 AND expires_at > now() FOR SHARE",
                read_uuid(code.session or ""),
                uuid.UUID(code.sub),
            )
            if lasts is None:
                return False
            await connection.execute(
                "INSERT INTO identity.codes (digest, client_id, sub, redirect_uri, scope, nonce, challenge, auth_time,"
                " expires_at, session) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
                code.digest, code.client_id, uuid.UUID(code.sub), code.redirect_uri, code.scope, code.nonce,
                code.challenge, code.auth_time, expires_at, read_uuid(code.session or ""),
            )  # fmt: skip
            await record(connection, by, "consent.given", code.sub, client=code.client_id, scope=code.scope)
        return True

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
            row["auth_time"], bytes(row["digest"]), None if row["session"] is None else str(row["session"]),
        )  # fmt: skip

    async def exchange(self, digest: bytes, family: Family, refresh: bytes | None, by: By) -> bool:
        """Use a code up for a family. False: somebody was faster, or it is gone, or what it was used for has ended."""
        async with transaction(self._pool) as connection:
            if not await may_be_given(connection, family.sub):
                return False
            used = await connection.fetchrow(
                "UPDATE identity.codes c SET used_by = $2, family = $3 FROM identity.codes old"
                " WHERE c.digest = $1 AND old.digest = c.digest AND (c.used_by IS NULL OR c.used_by = $2)"
                " RETURNING old.family AS family",
                digest, by.request, uuid.UUID(family.id),
            )  # fmt: skip
            if used is None:
                return False
            if used["family"] is not None:  # the same request again: what its first attempt made was never told
                replaced = await connection.execute(
                    "DELETE FROM identity.families WHERE id = $1 AND revoked_at IS NULL", used["family"]
                )
                if replaced == "DELETE 0":
                    return False
            await _begin(connection, family, refresh)
            await record(connection, by, "code.exchanged", family.sub, client=family.client_id, family=family.id)
        return True

    # -- sessions at the login page -----------------------------------------------------------------------------------

    async def open_session(
        self, digest: bytes, sub: str, password: str, life: timedelta, by: By, *, replaces: bytes | None
    ) -> Session | None:
        """Somebody has logged in at the login page.

        `password`: the hash that they were let in by. None: it is another one by now, or they were just disabled.
        `replaces`: the digest of the cookie that the browser loses; with it goes the session, or, of the same person,
        it goes on under the new one.
        """
        now = datetime.now(UTC)
        async with transaction(self._pool) as connection:
            if not await may_be_given(connection, sub, password=password):
                return None
            old = await connection.fetchrow(
                "DELETE FROM identity.sessions WHERE digest = $1 RETURNING id, sub", replaces
            )
            of_same = old is not None and str(old["sub"]) == sub
            opened = Session(str(old["id"] if of_same else uuid.uuid4()), sub, now)
            await connection.execute(
                "INSERT INTO identity.sessions (digest, id, sub, auth_time, expires_at) VALUES ($1, $2, $3, $4, $5)",
                digest, uuid.UUID(opened.id), uuid.UUID(sub), now, now + life,
            )  # fmt: skip
            await record(connection, by, "login", sub, page=True)
        return opened

    async def session(self, digest: bytes) -> Session | None:
        """The one that is in force under a cookie."""
        row = await self._pool.fetchrow(
            "SELECT id, sub, auth_time FROM identity.sessions WHERE digest = $1 AND expires_at > now()", digest
        )
        return None if row is None else Session(str(row["id"]), str(row["sub"]), row["auth_time"])

    # -- what a person sees of them -----------------------------------------------------------------------------------

    async def sessions_of(self, sub: str, after: tuple[datetime, str] | None, limit: int) -> list[Listed]:
        """Whatever somebody is logged in by, the newest first; `after`: time and id of the last one before."""
        at, last = (None, None) if after is None else (after[0], uuid.UUID(after[1]))
        rows = await self._pool.fetch(_SESSIONS, read_uuid(sub), at, last, limit)
        return [
            Listed(
                str(row["id"]), row["client_id"], row["client_name"], row["scope"], row["auth_time"],
                row["last_used_at"], row["expires_at"],
            )
            for row in rows
        ]  # fmt: skip

    async def end_session(self, sub: str, session: str, by: By) -> bool:
        """End one of them, a family as `log_out` does. False: the person has none of that id."""
        async with transaction(self._pool) as connection:
            owns = await connection.fetchval(
                "SELECT true FROM identity.families WHERE id = $1 AND sub = $2 AND revoked_at IS NULL"
                " AND expires_at > now()",
                read_uuid(session),
                read_uuid(sub),
            )
            if owns:
                await self._log_out(connection, session, None, by)
                return True
            ended = await _close(
                connection,
                "DELETE FROM identity.sessions WHERE id = $1 AND sub = $2 AND expires_at > now() RETURNING id",
                read_uuid(session), read_uuid(sub),
            )  # fmt: skip
            if ended:
                await record(connection, by, "session.ended", sub, page=True)
        return bool(ended)

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


async def _begin(connection: Connection, family: Family, refresh: bytes | None) -> None:
    await connection.execute(
        "INSERT INTO identity.families (id, sub, client_id, scope, auth_time, expires_at, session)"
        " VALUES ($1, $2, $3, $4, $5, $6, $7)",
        uuid.UUID(family.id), uuid.UUID(family.sub), family.client_id, family.scope, family.auth_time,
        family.expires_at, read_uuid(family.session or ""),
    )  # fmt: skip
    if refresh is not None:
        await connection.execute(
            "INSERT INTO identity.refresh_tokens (digest, family) VALUES ($1, $2)", refresh, uuid.UUID(family.id)
        )


async def _close(connection: Connection, statement: str, *arguments: Any) -> bool:
    """End sessions at the login page by a statement that returns their ids, with the codes that were given in them."""
    ended = [row["id"] for row in await connection.fetch(statement, *arguments)]
    await connection.execute("DELETE FROM identity.codes WHERE session = ANY($1) AND used_by IS NULL", ended)
    return bool(ended)


async def _end(connection: Connection, family: str, access_life: timedelta, by: By, action: str) -> None:
    ended = await connection.fetchrow(
        "UPDATE identity.families SET revoked_at = now() WHERE id = $1 AND revoked_at IS NULL"
        " RETURNING id, sub, client_id",
        read_uuid(family),
    )
    if ended is not None:
        sid = str(ended["id"])  # as tokens have it, however it was spelled here
        await revoke_marks(connection, [f"sid:{sid}"], access_life)
        await record(connection, by, action, str(ended["sub"]), client=ended["client_id"], family=sid)


def _family(row: Any) -> Family:
    return Family(
        str(row["id"]), str(row["sub"]), row["client_id"], row["scope"], row["auth_time"], row["expires_at"],
        None if row["session"] is None else str(row["session"]),
    )  # fmt: skip
