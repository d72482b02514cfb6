"""The stores of an engine: made when they are missing, opened for those who work on them offline."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import NamedTuple

import asyncpg

from actors.recovery import Windows
from cluster.data import EngineError, Secrets
from cluster.settings import Settings
from storage.journal import JournalError
from storage.journal.postgres import PostgresJournal
from storage.query_store import QueryStore
from storage.registry import Registry

_WINDOWS = "windows"


class Ledger(NamedTuple):
    """What was fixed when the ledger was created."""

    partitions: int
    windows: Windows


@asynccontextmanager
async def pool_of(dsn: str, *, connections: int = 4) -> AsyncIterator[asyncpg.Pool[asyncpg.Record]]:
    """A small pool that is closed at the end."""
    async with asyncpg.create_pool(dsn, min_size=1, max_size=connections) as pool:
        yield pool


async def prepare_stores(dsn: str, settings: Settings, secrets: Secrets, *, say: Callable[[str], None]) -> Ledger:
    """Make the journal, the query store and the registry where they are missing.

    Raises:
        EngineError: the ledger has another number of shards than asked for, or another key than this directory's.
    """
    journal = PostgresJournal(dsn)
    try:
        existing = await journal.partitions()
        asked = "shards" in settings.model_fields_set or not existing
        partitions = settings.shards if asked else existing
        if not existing:
            say(f"creating a ledger of {partitions} shards")
        await journal.create(partitions)
    except JournalError as error:
        raise EngineError(f"{error}; the number of shards is fixed when a ledger is created") from error
    finally:
        await journal.close()
    async with pool_of(dsn) as pool:
        registry = Registry(pool)
        await registry.create()
        fingerprint = hashlib.sha256(bytes.fromhex(secrets.ledger_key)).digest()
        if await registry.keep("ledger-key-fingerprint", fingerprint) != fingerprint:
            raise EngineError("secrets.json does not belong to this ledger: its key is another one")
        await registry.keep(_WINDOWS, json.dumps(_windows_of(settings)._asdict()).encode())
        await QueryStore(pool).create()
        return Ledger(partitions, await kept_windows(registry))


async def kept_windows(registry: Registry) -> Windows:
    """How long the ledger remembers what: fixed when it was created, since replay depends on it."""
    return Windows(**json.loads(await registry.keep(_WINDOWS, b"{}")))


def _windows_of(settings: Settings) -> Windows:
    return Windows(id_window_ns=settings.id_window_s * 10**9)
