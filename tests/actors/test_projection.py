"""The projection on a real journal, kernel and PostgreSQL: random histories, crashes anywhere, rebuilds, damage."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import numpy as np
import pytest

from actors import ledger
from actors.projection import Limits, Projection
from storage import record
from storage.events import RESULT, AccountStatus, Code, Kind
from storage.journal import Corrupt, Writer
from storage.journal.postgres import PostgresJournal
from storage.query_store import Overtaken, QueryStore
from storage.snapshots import SnapshotStore
from tests.actors.projection_history import PARTITIONS, SMALL, UTC_OFFSET_S, History, Recorded

KEY = b"k" * 32
TABLES = ("transfers", "outcomes", "entries", "account_changes")


class Log:
    """Writes a history's records into a journal as shards would."""

    def __init__(self, journal: PostgresJournal) -> None:
        self.journal = journal
        self._readers = {p: record.Reader(journal, p, KEY) for p in range(PARTITIONS)}
        self._writers: dict[int, Writer] = {}

    async def open(self, partition: int) -> None:
        """A new writer takes the partition over."""
        if partition in self._writers:
            await self._writers[partition].close()
        payload = record.encode_open(partition, {"name": "test"})
        self._writers[partition] = await self.journal.open(partition, payload)
        async for _ in self._readers[partition].records():
            pass

    async def write(self, records: list[Recorded]) -> dict[int, int]:
        """Append; returns the last offset of each partition."""
        offsets = {}
        for one in records:
            if one.partition not in self._writers:
                await self.open(one.partition)
            position = self._readers[one.partition].position
            payload = record.encode(
                one.rows, one.results, one.notes, partition=one.partition, sequence=position.sequence,
                epoch=position.epoch, utc_offset_s=UTC_OFFSET_S, chain=record.Chain(KEY, position.chain),
            )  # fmt: skip
            offsets[one.partition] = await self._writers[one.partition].append(payload)
            async for _ in self._readers[one.partition].records():
                pass
        return offsets

    async def close(self) -> None:
        for writer in self._writers.values():
            await writer.close()


@pytest.fixture
async def journal(database: str) -> AsyncIterator[PostgresJournal]:
    journal = PostgresJournal(database)
    await journal.create(PARTITIONS)
    yield journal
    await journal.close()


@pytest.fixture
async def log(journal: PostgresJournal) -> AsyncIterator[Log]:
    log = Log(journal)
    yield log
    await log.close()


@pytest.fixture
async def store(database: str) -> AsyncIterator[QueryStore]:
    async with asyncpg.create_pool(database, min_size=1, max_size=6) as pool:
        store = QueryStore(pool)
        await store.create()
        yield store
        await store.close()


@pytest.fixture
def snapshots(tmp_path: Path) -> SnapshotStore:
    return SnapshotStore(tmp_path / "snapshots", KEY, keep=3)


@asynccontextmanager
async def projecting(
    journal: PostgresJournal, store: QueryStore, snapshots: SnapshotStore, **limits: Any
) -> AsyncIterator[Projection]:
    """An open projection; leaving it is a crash: whatever was under way is dropped."""
    projection = Projection(
        journal, store, snapshots, chain_key=KEY, capacity=SMALL, limits=Limits(**{"chunk_rows": 40, **limits})
    )
    try:
        await projection.open()
        yield projection
    finally:
        await projection.close()


async def content(store: QueryStore) -> dict[str, list[tuple[Any, ...]]]:
    """Everything in the store."""
    tables = {}
    for table in (*TABLES, "projection"):
        rows = await store.pool.fetch(f"SELECT * FROM query.{table}")
        tables[table] = sorted(map(tuple, rows), key=repr)
    return tables


async def as_the_history_says(store: QueryStore, history: History) -> None:
    """Every balance at every instant, every transfer and every account."""
    for account, seen in history.timeline.items():
        opened = await store.account(account)
        assert opened is not None
        assert opened.status == history.status[account]
        for (at, posted, pending), following in zip(seen, [*seen[1:], None], strict=True):
            until = following[0] // 1000 - 1 if following is not None else at // 1000 + 10**9
            for us in {at // 1000, until} if until > at // 1000 else {until}:
                if following is not None and us == following[0] // 1000:
                    continue
                found = await store.balance_at(account, us * 1000)
                if us >= at // 1000:
                    assert found is not None, (account, us)
                    assert (found.posted, found.pending) == (posted, pending), (account, us, at)
    for id_, known in history.known.items():
        (found,) = [one for one in await store.transfer(id_) if one.partition == known.partition and one.at == known.at]
        said = (found.kind, str(found.status), found.debit, found.credit, found.amount, found.refunded_amount)
        assert said == (known.kind, known.status, known.debit, known.credit, known.amount, known.refunded), known
        if known.kind is not Kind.POST:
            assert found.posted_amount == known.posted
        if known.status == "refused":
            assert found.code == known.code


async def test_every_balance_at_every_instant_and_every_transfer_is_as_it_was(
    journal: PostgresJournal, log: Log, store: QueryStore, snapshots: SnapshotStore
) -> None:
    history = History(seed=1)
    async with projecting(journal, store, snapshots) as projection:
        for step in range(120):
            await log.write(history.step())
            if step % 10 == 0:
                await projection.catch_up()
            if step == 60:
                await log.open(1)
                await projection.catch_up()
                await as_the_history_says(store, history)
        await log.write(history.drain())
        await projection.catch_up()
        await as_the_history_says(store, history)
        for part, book in zip(projection.parts, history.books, strict=True):
            assert ledger.digest(part.book) == ledger.digest(book)
