"""The trace's movements against the projection's entries: the newest of each person, told in any portions."""

from __future__ import annotations

from collections.abc import AsyncIterator

import asyncpg
import pytest

from actors.movements import NAME, Movements
from storage.documents.opening import open_database
from storage.feed import Feed
from storage.journal.postgres import PostgresJournal
from storage.query_store import QueryStore
from storage.references import person_reference
from storage.registry import Registry
from storage.snapshots import SnapshotStore
from storage.traces import COLLECTIONS, MOVEMENTS_MAX, Movement, Traces, trace_key
from tests.actors.projection_history import PARTITIONS, History
from tests.actors.test_projection import KEY, Log, journal, log, projecting, snapshots, store, written

__all__ = ["journal", "log", "snapshots", "store"]

TRACE_KEY = trace_key(KEY)
People = dict[bytes, list[Movement]]


@pytest.fixture
async def registry(store: QueryStore) -> Registry:
    """Owners in the database of the projection."""
    found = Registry(store.pool)
    await found.create()
    return found


@pytest.fixture
async def movements(store: QueryStore, registry: Registry, database: str) -> AsyncIterator[Movements]:
    """A follower that looks at few entries at once, so that stretches end anywhere."""
    documents = await open_database(database)
    await documents.create(COLLECTIONS)
    yield Movements(Feed(store.pool, PARTITIONS), registry, documents, TRACE_KEY, batch=7)
    await documents.close()


async def _own(pool: asyncpg.Pool[asyncpg.Record], registry: Registry) -> None:
    """Four people own all accounts but some that are nobody's, and some of people who have proven no tax id."""
    for (account,) in await pool.fetch("SELECT DISTINCT account FROM query.entries WHERE account >= 1024"):
        if account % 7:
            tax_id = f"{account % 5:011d}" if account % 5 else None
            await registry.register(account, (1, account), sub="s", tax_id=tax_id, name="n", digest=b"")


async def _wanted(pool: asyncpg.Pool[asyncpg.Record]) -> People:
    """By a plain reading of everything."""
    rows = await pool.fetch(
        "SELECT tax_id, at, kind, amount, account, transfer FROM query.entries JOIN people.owners USING (account)"
        " WHERE amount <> 0 AND tax_id IS NOT NULL ORDER BY at DESC, account DESC"
    )
    found: People = {}
    for tax_id, at, kind, amount, account, transfer in rows:
        one = Movement(at, kind, amount, account, transfer.hex)
        found.setdefault(person_reference(TRACE_KEY, tax_id), []).append(one)
    return {person: those[:MOVEMENTS_MAX] for person, those in found.items()}


async def _told(traces: Traces, people: People) -> People:
    found = await traces.read(list(people))
    return {person: list(one.movements) for person, one in zip(people, found, strict=True)}


async def test_the_trace_has_each_persons_newest_movements_however_often_it_is_told(
    journal: PostgresJournal, log: Log, store: QueryStore, snapshots: SnapshotStore, registry: Registry,
    movements: Movements,
) -> None:  # fmt: skip
    history = History(7)
    async with projecting(journal, store, snapshots) as projection:
        for _ in range(3):
            await written(history, log, steps=25)
            await projection.catch_up()
            await _own(store.pool, registry)
            while await movements.catch_up():
                pass
        wanted = await _wanted(store.pool)
        assert max(map(len, wanted.values())) == MOVEMENTS_MAX
        unproven = "SELECT count(*) FROM query.entries JOIN people.owners USING (account) WHERE tax_id IS NULL"
        assert await store.pool.fetchval(unproven)
        assert await _told(movements._traces, wanted) == wanted
        looked_at = movements.stats.events
        assert movements.stats.late_ns == 0
        await store.pool.execute("DELETE FROM query.published WHERE sink = $1", NAME)
        while await movements.catch_up():
            pass
        # All of them each time; those at the end of a look, whose other side it may have missed, once more.
        every = await store.pool.fetchval("SELECT count(*) FROM query.entries WHERE amount <> 0")
        assert min(looked_at, movements.stats.events - looked_at) >= every
        assert await _told(movements._traces, wanted) == wanted
