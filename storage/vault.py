"""The vault's store: its schema, the role that its service comes as, and the transaction that every call is made in.

A `Session` is one transaction about one person on behalf of one caller. It names both to the database, whose row-level
security shows nothing else (`vault.sql`), and ends with a row in the record of accesses. What the caller is told must
leave only after the transaction has committed: no record, no answer.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from importlib import resources
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from storage.references import person_reference
from storage.vault_keys import KeyProvider
from storage.vault_record import Access, append

ROLE: Final = "razao_vault"
OUTBOX_ROLE: Final = "razao_vault_outbox"
FIELDS: Final = ("name", "address", "debts")
ROTATION_LOCK: Final = 7307504
"""Held, shared, by every transaction that may use a wrapped key; a rotation of masters waits for them to end."""

_SCRAM_ITERATIONS: Final = 16
_BEGIN: Final = (
    "SELECT set_config('razao.person', $1, true), set_config('razao.caller', $2, true),"
    " set_config('razao.purpose', $3, true), set_config('razao.acts', $4, true), set_config('razao.grant', '', true),"
    " pg_advisory_xact_lock_shared($5)"
)
_NAME_GRANTS: Final = "SELECT set_config('razao.grant', $1, true)"
_TELL: Final = "INSERT INTO vault.outbox (person, request) VALUES ($1, $2)"


class Acts(StrEnum):
    """On whose account a transaction sees more than grants open."""

    NOBODY = ""
    OWN = "own"
    WRITE = "write"


@dataclass(frozen=True, slots=True)
class Subject:
    """Whom a call is about, by the references that may stand for them."""

    person: bytes  # in the vault's own tables
    score: bytes  # what the score service knows them by


@dataclass(frozen=True, slots=True)
class Asked:
    """What a caller wants, as it is recorded. `purpose`: empty where none is asked for."""

    subject: Subject
    caller: str
    address: str
    action: str
    fields: tuple[str, ...]
    purpose: str
    request: str
    correlation: str


@dataclass(slots=True, repr=False)
class Session:
    """One transaction. `connection` is bound to the person asked about."""

    connection: Any
    asked: Asked
    chain_key: bytes

    async def name_grants(self, grants: Sequence[Any]) -> None:
        """Read under these grants (UUIDs) from here on, and nothing else."""
        await self.connection.execute(_NAME_GRANTS, ",".join(map(str, grants)))

    async def tell_score(self) -> None:
        """Let the score service know that what we would answer about this person's debts may have changed."""
        await self.connection.execute(_TELL, self.asked.subject.score, self.asked.request)

    async def record(self, decision: str, grants: Sequence[Any] = ()) -> None:
        """Write the access down; the last thing that a transaction does, since others wait for their turn now."""
        asked = self.asked
        access = Access(
            asked.subject.person, asked.caller, asked.address, asked.action, asked.fields, asked.purpose, decision,
            tuple(grants), asked.request, asked.correlation,
        )  # fmt: skip
        await append(self.connection, self.chain_key, access)


class Vault:
    """Begins transactions. `pool` is one of connections as `ROLE`."""

    def __init__(
        self, pool: asyncpg.Pool[asyncpg.Record], *, lookup_key: bytes, score_key: bytes, chain_key: bytes
    ) -> None:
        self._pool = pool
        self._lookup_key = lookup_key
        self._score_key = score_key
        self._chain_key = chain_key

    def subject(self, tax_id: str) -> Subject:
        """The references of a tax id (digits and letters only)."""
        return Subject(person_reference(self._lookup_key, tax_id), person_reference(self._score_key, tax_id))

    @asynccontextmanager
    async def session(self, asked: Asked, acts: Acts = Acts.NOBODY) -> AsyncIterator[Session]:
        """A transaction about one person. It must be recorded inside.

        Raises:
            asyncpg.PostgresError, asyncpg.InterfaceError, OSError: it may not have happened; nothing may be told.
        """
        async with self._pool.acquire() as connection, connection.transaction():
            await connection.execute(
                _BEGIN, asked.subject.person.hex(), asked.caller, asked.purpose, acts.value, ROTATION_LOCK
            )
            yield Session(connection, asked, self._chain_key)

    async def ping(self) -> None:
        """Raises what the driver raises when the store does not answer."""
        await self._pool.fetchval("SELECT seq FROM vault.chain_head")


@dataclass(frozen=True, slots=True, repr=False)
class Secrets:
    """What follows from the vault's key provider and is needed by whoever opens it."""

    lookup_key: bytes
    item_key: bytes
    chain_key: bytes
    password: str
    outbox_password: str

    @classmethod
    async def of(cls, keys: KeyProvider) -> Secrets:
        """Derive them."""
        return cls(
            await keys.secret(b"razao.lookup"),
            await keys.secret(b"razao.item"),
            await keys.secret(b"razao.accesses"),
            (await keys.secret(b"razao.role")).hex(),
            (await keys.secret(b"razao.outbox")).hex(),
        )


async def create(pool: asyncpg.Pool[asyncpg.Record], secrets: Secrets) -> None:
    """Make the schema `vault` and its roles where they are missing; needs a superuser. Nothing ever drops it."""
    sql = resources.files("storage").joinpath("vault.sql").read_text()
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute(sql)
        for role, password in ((ROLE, secrets.password), (OUTBOX_ROLE, secrets.outbox_password)):
            await connection.execute(f"ALTER ROLE {role} PASSWORD '{_scram(password)}'")


def dsn_as(dsn: str, role: str, password: str) -> str:
    """The same database, entered as another role. It carries the password: never log it."""
    parts = urlsplit(dsn)
    place = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{role}:{password}@{place}"))


def _scram(password: str) -> str:
    """What PostgreSQL keeps of a password (RFC 5803), so that the password itself is in no statement and no log.

    The passwords are 256 random bits: stretching them would only slow every connection.
    """
    salt = os.urandom(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, _SCRAM_ITERATIONS)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    encoded = [base64.b64encode(part).decode() for part in (salt, stored, server)]
    return f"SCRAM-SHA-256${_SCRAM_ITERATIONS}:{encoded[0]}${encoded[1]}:{encoded[2]}"
