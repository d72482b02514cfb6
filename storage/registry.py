"""Who owns which account. The only place of personal data on the payments side: the journal cannot forget, this can.

Beside it the three hashes by which an owner's data turns into what the journal may carry: the owner hash of a token's
`sub`, the slot of a tax id, and the account id. They are keyed, so that nobody without the ledger's secret can try
tax ids until one fits.
"""

from __future__ import annotations

import uuid
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from hashlib import blake2b
from typing import Any, Final

import asyncpg

from storage.events import SLOTS
from storage.ids import Id

_SLOT_BITS: Final = SLOTS.bit_length() - 1
_HASH_BITS: Final = 53
_OPENING: Final = 7307503  # first half of an advisory lock; the second is the `sub` that opens
_REGISTER: Final = """
INSERT INTO people.owners (account, event, sub, tax_id, name, digest) VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT DO NOTHING
"""
_LIMIT_MAX: Final = 1001  # a page, and one more that tells whether it is the last

_SCHEMA: Final = """
SELECT pg_advisory_xact_lock(7307501);
CREATE SCHEMA IF NOT EXISTS people;
CREATE TABLE IF NOT EXISTS people.owners (
    account bigint PRIMARY KEY,
    event uuid NOT NULL UNIQUE,         -- id by which the request to open the account is known
    sub text NOT NULL,
    tax_id text,                        -- none where nobody has proven that it is theirs
    name text NOT NULL,
    digest bytea NOT NULL,              -- of the whole request: same id, other content is a conflict
    created_at timestamptz NOT NULL DEFAULT now()
);
-- ns since 1970, by the ledger: the stamp of the event that opened the account; null until that is known here
ALTER TABLE people.owners ADD COLUMN IF NOT EXISTS opened_at bigint;
ALTER TABLE people.owners ALTER COLUMN tax_id DROP NOT NULL;
CREATE INDEX IF NOT EXISTS owners_sub ON people.owners (sub, account);
-- What was answered to changes of accounts under an Idempotency-Key, for as long as the ledger remembers their ids.
CREATE TABLE IF NOT EXISTS people.answers (
    event uuid NOT NULL,
    at_us bigint NOT NULL,              -- its stamp as a repeat is told it: a forgotten id may come again
    body bytea NOT NULL,
    made_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (event, at_us)
);
CREATE INDEX IF NOT EXISTS answers_made_at ON people.answers (made_at);
CREATE TABLE IF NOT EXISTS people.settings (name text PRIMARY KEY, value bytea NOT NULL);
"""


def owner_hash(key: bytes, sub: str) -> int:
    """The 64 bits that stand for `sub` in events (`EVENT.actor`); never 0, which is the operator."""
    digest = blake2b(sub.encode(), digest_size=8, key=key, person=b"razao.owner").digest()
    return int.from_bytes(digest, "big") or 1


def slot(key: bytes, tax_id: str) -> int:
    """The slot, 0-1023, of everything that belongs to the person with this tax id (digits and letters only). Whoever
    has proven none stands under their `sub`."""
    digest = blake2b(tax_id.encode(), digest_size=8, key=key, person=b"razao.slot").digest()
    return int.from_bytes(digest, "big") % SLOTS


def account_id(event_id: Id, account_slot: int) -> int:
    """The id of the account that the request known as `event_id` opens in a slot: 1024 <= id < 2^63."""
    digest = blake2b(event_id[0].to_bytes(8, "big") + event_id[1].to_bytes(8, "big"), digest_size=8).digest()
    unique = int.from_bytes(digest, "big") >> (64 - _HASH_BITS)
    return (unique or 1) << _SLOT_BITS | account_slot


class RegistrationConflict(Exception):  # noqa: N818 - what it is, in the field's own term
    """The event id, or the account id that follows from it, is registered with other content."""

    def __init__(self, account: int, event_id: Id) -> None:
        super().__init__(f"account {account} is registered with other content")
        self.account = account
        self.event_id = event_id


class TooManyAccounts(Exception):  # noqa: N818 - what it is
    """Somebody has as many accounts under no tax id as they may."""


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose account it is. `tax_id`: none where nobody has proven that it is theirs."""

    account: int
    event_id: Id
    sub: str
    tax_id: str | None
    name: str
    digest: bytes
    opened_at: int | None  # ns since 1970, by the ledger


class Registry:
    """Owners by account, over a pool that is handed in. Once its opening is known a registration never changes, so it
    may be cached.
    """

    def __init__(self, pool: asyncpg.Pool[asyncpg.Record], *, cached: int = 16_384) -> None:
        self._pool = pool
        self._cached = cached
        self._cache: OrderedDict[int, Owner] = OrderedDict()

    async def create(self) -> None:
        """Make the schema `people` if it is not there. Nothing ever drops it."""
        async with self._pool.acquire() as connection, connection.transaction():
            await connection.execute(_SCHEMA)

    async def register(
        self,
        account: int,
        event_id: Id,
        *,
        sub: str,
        tax_id: str | None,
        name: str,
        digest: bytes,
        at_most: int | None = None,
    ) -> Owner:
        """Write down who owns `account`, before the event that opens it is sent. Doing it again changes nothing.

        `at_most`: so many accounts under no tax id may `sub` have, this one among them, however many are asked for at
        once.

        Raises:
            RegistrationConflict: the event id or the account is registered with other content.
            TooManyAccounts: `sub` has `at_most` others.
        """
        event = _uuid(event_id)
        row = account, event, sub, tax_id, name, digest
        if at_most is None:
            await self._pool.execute(_REGISTER, *row)
        else:
            async with self._pool.acquire() as connection, connection.transaction():
                await connection.execute("SELECT pg_advisory_xact_lock($1, hashtext($2))", _OPENING, sub)
                others = await connection.fetchval(
                    "SELECT count(*) FROM people.owners WHERE sub = $1 AND tax_id IS NULL AND event <> $2", sub, event
                )
                if others >= at_most:
                    raise TooManyAccounts(sub)
                await connection.execute(_REGISTER, *row)
        found = await self._pool.fetchrow("SELECT * FROM people.owners WHERE event = $1", event)
        if found is None:
            raise RegistrationConflict(account, event_id)
        owner = _owner(found)
        if (owner.account, owner.sub, owner.tax_id, owner.name, owner.digest) != (account, sub, tax_id, name, digest):
            raise RegistrationConflict(account, event_id)
        return owner

    async def opened(self, account: int, at: int) -> None:
        """Write down when the ledger opened `account`: ns since 1970."""
        await self._pool.execute(
            "UPDATE people.owners SET opened_at = $2 WHERE account = $1 AND opened_at IS NULL", account, at
        )

    async def owner(self, account: int) -> Owner | None:
        """Whose account it is, or None."""
        found = self._cache.get(account)
        if found is not None:
            self._cache.move_to_end(account)
            return found
        if not 0 < account < 2**63:
            return None
        row = await self._pool.fetchrow("SELECT * FROM people.owners WHERE account = $1", account)
        if row is None:
            return None
        owner = _owner(row)
        if owner.opened_at is None:
            return owner
        self._cache[account] = owner
        if len(self._cache) > self._cached:
            self._cache.popitem(last=False)
        return owner

    async def tax_ids(self, accounts: Sequence[int]) -> dict[int, str]:
        """Whose tax id each of `accounts` is under; those that nobody owns, and those under none, are missing."""
        rows = await self._pool.fetch(
            "SELECT account, tax_id FROM people.owners WHERE account = ANY($1) AND tax_id IS NOT NULL", accounts
        )
        return {row["account"]: row["tax_id"] for row in rows}

    async def accounts(self, sub: str, *, after: int = 0, limit: int = 100) -> Sequence[Owner]:
        """The accounts of `sub` in order of their ids, from the one behind `after` on: the last id is the cursor.

        Raises:
            ValueError: `after` or `limit` is out of range.
        """
        if not (0 <= after < 2**63 and 0 < limit <= _LIMIT_MAX):
            raise ValueError("cursor or limit out of range")
        rows = await self._pool.fetch(
            "SELECT * FROM people.owners WHERE sub = $1 AND account > $2 ORDER BY account LIMIT $3", sub, after, limit
        )
        return [_owner(row) for row in rows]

    async def keep_answer(self, event_id: Id, at: int, body: bytes, life: timedelta) -> bytes:
        """Keep what is answered to an event of stamp `at` (ns, told to the us); returns what was kept first.

        What is older than `life` goes.
        """
        event = _uuid(event_id)
        await self._pool.execute("DELETE FROM people.answers WHERE made_at < now() - $1::interval", life)
        await self._pool.execute(
            "INSERT INTO people.answers (event, at_us, body) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
            event,
            at // 1000,
            body,
        )
        return await self.answer(event_id, at) or body

    async def answer(self, event_id: Id, at: int) -> bytes | None:
        """What `keep_answer` has kept; None when nothing was."""
        body = await self._pool.fetchval(
            "SELECT body FROM people.answers WHERE event = $1 AND at_us = $2", _uuid(event_id), at // 1000
        )
        return None if body is None else bytes(body)

    async def keep(self, name: str, value: bytes) -> bytes:
        """Keep a setting of the ledger, such as the fingerprint of its secret; returns what was kept first.

        A caller who gets another value back than it gave runs with the wrong secret, and must not go on.
        """
        await self._pool.execute(
            "INSERT INTO people.settings (name, value) VALUES ($1, $2) ON CONFLICT DO NOTHING", name, value
        )
        return bytes(await self._pool.fetchval("SELECT value FROM people.settings WHERE name = $1", name))

    async def kept(self, name: str) -> bytes | None:
        """What `keep` has kept under that name; None when nothing was."""
        value = await self._pool.fetchval("SELECT value FROM people.settings WHERE name = $1", name)
        return None if value is None else bytes(value)


def _uuid(id_: Id) -> uuid.UUID:
    return uuid.UUID(int=id_[0] << 64 | id_[1])


def _owner(row: Any) -> Owner:
    event = row["event"].int
    return Owner(
        account=row["account"],
        event_id=(event >> 64, event & (2**64 - 1)),
        sub=row["sub"],
        tax_id=row["tax_id"],
        name=row["name"],
        digest=bytes(row["digest"]),
        opened_at=row["opened_at"],
    )
