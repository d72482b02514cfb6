"""OAuth clients: programs that people are sent to log in by, systems that act for themselves, and access keys."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import asyncpg

from storage.identity import By, Connection, LoginEnded, may_be_given, read_uuid, record, revoke_marks, transaction

_USED_AGAIN: Final = timedelta(minutes=1)
"""How exact `last_used_at` is: a key in steady use costs a write a minute, not one a token."""


@dataclass(frozen=True, slots=True)
class Client:
    """A client. With an `owner` it is that person's access key; with a `role` a system of its own."""

    client_id: str
    name: str
    secret: bytes | None  # keyed hash
    owner: str | None
    role: str | None
    redirect_uris: tuple[str, ...]
    grants: tuple[str, ...]
    scopes: tuple[str, ...]
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None

    @property
    def public(self) -> bool:
        """Whether it can keep no secret."""
        return self.secret is None


class Clients:
    """Clients by id; those that were revoked or have expired are not there."""

    def __init__(self, pool: asyncpg.Pool[asyncpg.Record], *, access_life: timedelta) -> None:
        self._pool = pool
        self._life = access_life

    async def add(
        self,
        client_id: str,
        name: str,
        *,
        secret: bytes | None,
        grants: Sequence[str],
        scopes: Sequence[str],
        by: By,
        owner: str | None = None,
        role: str | None = None,
        redirect_uris: Sequence[str] = (),
        expires_at: datetime | None = None,
        at_most: int | None = None,
        family: str | None = None,
    ) -> Client | None:
        """Add one. None: the id is taken, or the owner has `at_most` already.

        `family`: the owner's login that asks for it.

        Raises:
            LoginEnded: that has ended, or the owner was disabled.
        """
        owner_id = None if owner is None else uuid.UUID(owner)
        async with transaction(self._pool) as connection:
            if owner_id is not None:
                # The stronger lock at once: two who share the row would wait for each other to let it go.
                await connection.execute("SELECT FROM identity.users WHERE sub = $1 FOR UPDATE", owner_id)
                if not await may_be_given(connection, str(owner_id)) or not await _lasts(connection, family, owner_id):
                    raise LoginEnded
            if owner_id is not None and at_most is not None:
                has = await connection.fetchval(
                    "SELECT count(*) FROM identity.clients WHERE owner = $1 AND revoked_at IS NULL"
                    " AND (expires_at IS NULL OR expires_at > now())",
                    owner_id,
                )
                if has >= at_most:
                    return None
            row = await connection.fetchrow(
                "INSERT INTO identity.clients (client_id, name, secret, owner, role, redirect_uris, grants, scopes,"
                " expires_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT DO NOTHING RETURNING *",
                client_id, name, secret, owner_id, role, list(redirect_uris), list(grants), list(scopes), expires_at,
            )  # fmt: skip
            if row is None:
                return None
            action = "client.added" if owner is None else "access-key.added"
            detail = {"name": name, "scopes": list(scopes), "redirect_uris": list(redirect_uris), "owner": owner}
            await record(connection, by, action, client_id, **detail)
        return _client(row)

    async def ensure(
        self,
        client_id: str,
        name: str,
        *,
        secret: bytes | None,
        grants: Sequence[str],
        scopes: Sequence[str],
        by: By,
        role: str | None = None,
    ) -> None:
        """Have a client of the engine's own as this version of it needs it, also where an older one has made it."""
        if await self.add(client_id, name, secret=secret, grants=grants, scopes=scopes, role=role, by=by) is not None:
            return
        async with transaction(self._pool) as connection:
            changed = await connection.fetchval(
                "UPDATE identity.clients SET secret = $2, grants = $3, scopes = $4, role = $5 WHERE client_id = $1"
                " AND (secret, grants, scopes, role) IS DISTINCT FROM ($2, $3, $4, $5) RETURNING client_id",
                client_id, secret, list(grants), list(scopes), role,
            )  # fmt: skip
            if changed is not None:
                await record(connection, by, "client.changed", client_id, scopes=list(scopes))

    async def get(self, client_id: str) -> Client | None:
        """The client, unless it was revoked or has expired."""
        row = await self._pool.fetchrow(
            "SELECT * FROM identity.clients WHERE client_id = $1 AND revoked_at IS NULL"
            " AND (expires_at IS NULL OR expires_at > now())",
            client_id,
        )
        return None if row is None else _client(row)

    async def all(self) -> list[Client]:
        """Every client that is no access key."""
        rows = await self._pool.fetch(
            "SELECT * FROM identity.clients WHERE owner IS NULL AND revoked_at IS NULL ORDER BY created_at"
        )
        return [_client(row) for row in rows]

    async def keys_of(self, owner: str) -> list[Client]:
        """A person's access keys, the newest first; at most as many as `add` lets them have."""
        rows = await self._pool.fetch(
            "SELECT * FROM identity.clients WHERE owner = $1 AND revoked_at IS NULL"
            " AND (expires_at IS NULL OR expires_at > now()) ORDER BY created_at DESC, client_id",
            uuid.UUID(owner),
        )
        return [_client(row) for row in rows]

    async def revoke_key(self, owner: str, client_id: str, by: By) -> bool:
        """End an access key and its tokens. False: the person has none of that id."""
        async with transaction(self._pool) as connection:
            ended = await connection.fetchval(
                "UPDATE identity.clients SET revoked_at = now() WHERE client_id = $1 AND owner = $2"
                " AND revoked_at IS NULL RETURNING client_id",
                client_id,
                uuid.UUID(owner),
            )
            if ended is None:
                return False
            await revoke_marks(connection, [f"client:{client_id}"], self._life)
            await record(connection, by, "access-key.revoked", client_id, owner=owner)
        return True

    async def used(self, client: Client, now: datetime) -> bool:
        """Note that it was. False: it has ended meanwhile, so what it was to be given must not leave."""
        if client.last_used_at is None or now - client.last_used_at > _USED_AGAIN:
            await self._pool.execute(
                "UPDATE identity.clients SET last_used_at = $2 WHERE client_id = $1", client.client_id, now
            )
        return await self.get(client.client_id) is not None


async def _lasts(connection: Connection, family: str | None, owner: uuid.UUID) -> bool:
    """Whether the owner's login is in force, and will be until the transaction ends. None: no login asks."""
    return family is None or bool(
        await connection.fetchval(
            "SELECT true FROM identity.families WHERE id = $1 AND sub = $2 AND revoked_at IS NULL FOR SHARE",
            read_uuid(family),
            owner,
        )
    )


def _client(row: Any) -> Client:
    return Client(
        client_id=row["client_id"],
        name=row["name"],
        secret=None if row["secret"] is None else bytes(row["secret"]),
        owner=None if row["owner"] is None else str(row["owner"]),
        role=row["role"],
        redirect_uris=tuple(row["redirect_uris"]),
        grants=tuple(row["grants"]),
        scopes=tuple(row["scopes"]),
        created_at=row["created_at"],
        expires_at=row["expires_at"],
        last_used_at=row["last_used_at"],
    )
