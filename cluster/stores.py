"""The stores of an engine: made when they are missing, opened for those who work on them offline."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import NamedTuple

import asyncpg

from actors.recovery import Windows
from cluster import identity, vault
from cluster.data import DataDirectory, EngineError, Secrets
from cluster.journals import LedgerJournal, open_journal
from cluster.plan import Plan
from cluster.postgres import PostgresError, PostgresServer
from cluster.processes import free_ports
from cluster.services.kafka import KafkaError, KafkaServer
from cluster.settings import JournalKind, KafkaSecurity, Settings
from storage.journal import JournalError
from storage.query_store import QueryStore
from storage.registry import Registry

_WINDOWS = "windows"
_JOURNAL = "journal"


class Ledger(NamedTuple):
    """What was fixed when the ledger was created."""

    partitions: int
    windows: Windows


class Stores(NamedTuple):
    """Where a ledger's stores are."""

    settings: Settings  # with the journal that the ledger has
    dsn: str
    live: bool  # whether its engine runs


@asynccontextmanager
async def pool_of(dsn: str, *, connections: int = 4) -> AsyncIterator[asyncpg.Pool[asyncpg.Record]]:
    """A small pool that is closed at the end."""
    async with asyncpg.create_pool(dsn, min_size=1, max_size=connections) as pool:
        yield pool


@asynccontextmanager
async def stores_of(data: DataDirectory, settings: Settings) -> AsyncIterator[Stores]:
    """The stores of a ledger; those servers of its own that do not run are started for as long as needed.

    Raises:
        EngineError: the engine is just starting or stopping, or a server does not start.
    """
    if data.holder() is not None:
        if data.running() is None:
            raise EngineError("the engine is starting or stopping; try again when `razao status` says that it is ready")
        plan = Plan.load(data)
        # Where journal and documents are, the running engine knows; everything else is asked for now.
        yield Stores(settings.model_copy(update=plan.store_settings()), plan.dsn, live=True)
        return
    with data.lock():
        server = PostgresServer(data.postgres, free_ports(1)[0])
        broker: KafkaServer | None = None
        try:
            await asyncio.to_thread(server.start, progress=lambda _: None)
            settings = await settle_journal(server.dsn, settings)
            broker = broker_of(data, settings)
            if broker is not None:
                settings = await start_broker(broker, settings, say=lambda _: None)
            yield Stores(settings, server.dsn, live=False)
        except (PostgresError, KafkaError) as error:
            raise EngineError(str(error)) from error
        finally:
            if broker is not None:
                await asyncio.to_thread(broker.stop)
            await asyncio.to_thread(server.stop)


async def settle_journal(dsn: str, settings: Settings) -> Settings:
    """The settings with the kind of journal that the ledger has, or, when it is new, that it is to have.

    Raises:
        EngineError: another kind is asked for than the ledger has.
    """
    async with pool_of(dsn, connections=1) as pool:
        registry = Registry(pool)
        await registry.create()
        kept = await registry.kept(_JOURNAL)
        if kept is None and await registry.kept(_WINDOWS) is None:
            return settings
        # A ledger from before there was a choice has its journal beside its other stores.
        kind = JournalKind((kept or b"postgres").decode().split(" ")[0])
    if kind is not settings.journal and "journal" in settings.model_fields_set:
        why = f"the journal of this ledger is on {kind}, not on {settings.journal}; it was fixed when it was created"
        raise EngineError(f"{why}: leave out --journal and RAZAO_JOURNAL, or name another --data directory")
    return settings.model_copy(update={"journal": kind})


def broker_of(data: DataDirectory, settings: Settings) -> KafkaServer | None:
    """The broker that the engine runs for itself; None when it needs none."""
    if settings.journal is not JournalKind.KAFKA or settings.kafka_bootstrap is not None:
        return None
    # Other users of this machine must not read balances, nor end the topic.
    return KafkaServer(data.kafka, free_ports(1)[0], secure=True, tls=False)


async def start_broker(broker: KafkaServer, settings: Settings, *, say: Callable[[str], None]) -> Settings:
    """Start it; returns the settings that lead to it.

    Raises:
        KafkaError: it does not start.
    """
    await asyncio.to_thread(broker.start, progress=say)
    how = {f"kafka_{name}": value for name, value in broker.client_settings.items()}
    how["kafka_security_protocol"] = KafkaSecurity(how["kafka_security_protocol"])
    return settings.model_copy(update={**how, "kafka_bootstrap": broker.bootstrap, "kafka_replication": 1})


async def prepare_stores(dsn: str, settings: Settings, secrets: Secrets, *, say: Callable[[str], None]) -> Ledger:
    """Make the journal, the query store and the registry where they are missing.

    Raises:
        EngineError: the ledger has another number of shards than asked for, or another key than this directory's, or
            its journal is gone, unfit, or another ledger's.
    """
    async with pool_of(dsn) as pool:
        registry = Registry(pool)
        await registry.create()
        fingerprint = hashlib.sha256(bytes.fromhex(secrets.ledger_key)).digest()
        if await registry.keep("ledger-key-fingerprint", fingerprint) != fingerprint:
            raise EngineError("secrets.json does not belong to this ledger: its key is another one")
        journal = open_journal(settings, dsn)
        try:
            partitions = await _prepare_journal(journal, settings, registry, say)
        except JournalError as error:
            raise EngineError(f"the journal cannot be used: {error}") from error
        finally:
            await journal.close()
        await registry.keep(_WINDOWS, json.dumps(_windows_of(settings)._asdict()).encode())
        await QueryStore(pool).create()
        await identity.prepare(pool, bytes.fromhex(secrets.ledger_key), say=say)
        if "vault" in settings.active_tiers:
            await vault.prepare(pool, DataDirectory(settings.data))
        return Ledger(partitions, await kept_windows(registry))


async def _prepare_journal(
    journal: LedgerJournal, settings: Settings, registry: Registry, say: Callable[[str], None]
) -> int:
    """Make the journal of a new ledger, or find the one that the ledger has; returns how many partitions it has.

    Raises:
        EngineError: it is gone, or another ledger's.
        JournalError: it cannot be reached, or is not fit.
    """
    existing, identity = await journal.partitions(), await journal.identity()
    kept = await registry.kept(_JOURNAL)
    if kept is not None and kept != identity.encode():
        raise EngineError(f"the journal of this ledger is {kept.decode()}, but the settings lead to {identity}")
    if kept is not None and not existing:
        raise EngineError(f"the journal of this ledger is gone: {identity} has no records")
    new = kept is None and await registry.kept(_WINDOWS) is None
    if new and existing and any((await journal.heads()).values()):
        raise EngineError(f"{identity} has another ledger's records already; choose another RAZAO_KAFKA_TOPIC")
    asked = "shards" in settings.model_fields_set or not existing
    partitions = settings.shards if asked else existing
    if not existing:
        say(f"creating a ledger of {partitions} shards")
    elif partitions != existing:
        raise EngineError(
            f"the ledger has {existing} partitions, not {partitions}; the number of shards is fixed when a ledger is"
            " created"
        )
    await journal.create(partitions)
    await registry.keep(_JOURNAL, identity.encode())
    return partitions


async def kept_windows(registry: Registry) -> Windows:
    """How long the ledger remembers what: fixed when it was created, since replay depends on it."""
    return Windows(**json.loads(await registry.keep(_WINDOWS, b"{}")))


def _windows_of(settings: Settings) -> Windows:
    return Windows(id_window_ns=settings.id_window_s * 10**9)
