"""How fast the journal becomes history, and how fast history is read: projector and query store on embedded PostgreSQL.

`python -m loadtests.bench_query` prints the figures; `run()` returns them. Two partitions, every second transfer
crosses shards, a tenth of all transfers pay one hot account. The journal is written beforehand and projected by this
process, so it and PostgreSQL share the machine's cores. Commits of the query store do not wait for the disk.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import asyncpg
import numpy as np
import psutil

from actors import ledger
from actors.comparison import compare
from actors.projection import Limits, Projection
from cluster.postgres import PostgresServer
from storage import record
from storage.events import BALANCE, EVENT, NO_LIMIT, RESULT, SLOTS, Code, Kind
from storage.journal import Writer
from storage.journal.postgres import PostgresJournal
from storage.query_store import QueryStore
from storage.snapshots import SnapshotStore

KEY: Final = b"benchmark" * 3
PARTITIONS: Final = 2
GROUP: Final = 8_000
START_NS: Final = 1_790_000_000_000_000_000
_SIZE: Final = """
SELECT sum(pg_total_relation_size(oid)) FROM pg_class WHERE relnamespace = 'query'::regnamespace AND relkind = 'r'
"""
Rows = np.ndarray[Any, Any]


class _Shard:
    """Applies and journals, one group after the other."""

    def __init__(self, partition: int, journal: PostgresJournal, writer: Writer) -> None:
        self.partition = partition
        self.book = ledger.new_book(partition, PARTITIONS)
        self.last_ns = START_NS
        self._journal = journal
        self._writer = writer
        self._chain = record.Chain(KEY)
        self._sequence = 0

    async def open(self) -> None:
        async for stored in self._journal.read(self.partition, 0):
            self._chain.absorb_open(stored.offset, stored.payload)

    async def group(self, rows: Rows) -> Rows:
        """Returns the results."""
        self.last_ns = ledger.stamp(rows, self.last_ns + 1_000_000, self.last_ns)
        results, balances = np.zeros(len(rows), RESULT), np.zeros(len(rows), BALANCE)
        ledger.apply(self.book, rows, results, balances, -10_800)
        payload = record.encode(
            rows, results, None, partition=self.partition, sequence=self._sequence, epoch=self._writer.epoch,
            utc_offset_s=-10_800, chain=self._chain,
        )  # fmt: skip
        await self._writer.append(payload)
        self._sequence += 1
        return results


def _events(rng: np.random.Generator, kind: Kind, count: int, ns: int) -> Rows:
    rows = np.zeros(count, EVENT)
    rows["kind"] = kind
    rows["id_hi"] = np.uint64(ns // 1_000_000 << 16 | 0x7000) | rng.integers(0, 4096, count, dtype=np.uint64)
    rows["id_lo"] = rng.integers(2**63, 2**63 + 2**62, count, dtype=np.uint64)
    return rows


def _place_ids(rows: Rows) -> None:
    """Let each id say the slot of the account that decides."""
    decides = np.where(rows["kind"] == Kind.DEPOSIT, rows["credit"], rows["debit"])
    rows["id_lo"] = rows["id_lo"] & ~np.uint64(0xFFF) | decides % np.uint64(SLOTS)


async def _open_accounts(shards: list[_Shard], accounts: Rows, rng: np.random.Generator) -> None:
    for shard in shards:
        own = accounts[accounts % PARTITIONS == shard.partition]
        for start in range(0, len(own), GROUP):
            some = own[start : start + GROUP]
            opens = _events(rng, Kind.OPEN, len(some), shard.last_ns)
            opens["debit"] = opens["credit"] = some
            opens["amount"] = opens["ref_hi"] = opens["ref_lo"] = NO_LIMIT
            deposits = _events(rng, Kind.DEPOSIT, len(some), shard.last_ns)
            deposits["credit"], deposits["debit"], deposits["amount"] = some, 1, 10**9
            for rows in (opens, deposits):
                _place_ids(rows)
                assert (await shard.group(rows))["code"].max() == Code.OK


async def _round(shards: list[_Shard], accounts: Rows, rng: np.random.Generator) -> int:
    """A group of transfers on each shard, the legs that follow on the other, and the settles; how many transfers."""
    sent = []
    for shard in shards:
        own = accounts[accounts % PARTITIONS == shard.partition]
        rows = _events(rng, Kind.TRANSFER, GROUP, shard.last_ns)
        rows["debit"] = rng.choice(own[1:], GROUP)
        rows["credit"] = np.where(rng.random(GROUP) < 0.1, accounts[0], rng.choice(accounts, GROUP))
        rows["amount"] = 1
        rows = rows[rows["debit"] != rows["credit"]]
        _place_ids(rows)
        await shard.group(rows)
        sent.append(len(rows))
    for shard, other in zip(shards, reversed(shards), strict=True):
        legs = ledger.in_flight(shard.book)
        await other.group(legs)
        settles = np.zeros(len(legs), EVENT)
        settles["kind"] = Kind.SETTLE
        settles["id_hi"], settles["id_lo"] = legs["id_hi"], legs["id_lo"]
        settles["ref_hi"], settles["ref_lo"] = other.partition, legs["total"]
        await shard.group(settles)
    return sum(sent)


async def _shards(journal: PostgresJournal) -> list[_Shard]:
    await journal.create(PARTITIONS)
    shards = []
    for partition in range(PARTITIONS):
        writer = await journal.open(partition, record.encode_open(partition, {"name": "bench"}))
        shards.append(_Shard(partition, journal, writer))
        await shards[-1].open()
    return shards


def _cpu_s(postmaster: int) -> float:
    """CPU time of PostgreSQL's processes that live now: on a busy machine it says more than the clock."""
    server = psutil.Process(postmaster)
    return sum(sum(process.cpu_times()[:2]) for process in (server, *server.children()))


async def _latency_ms(read: Callable[[], Awaitable[object]], count: int = 400) -> dict[str, float]:
    times = []
    for _ in range(count):
        began = time.perf_counter()
        await read()
        times.append(time.perf_counter() - began)
    return {f"p{q}": round(float(np.percentile(times, q)) * 1e3, 3) for q in (50, 99)}


async def _read_own_write_ms(
    shards: list[_Shard], projection: Projection, journal: PostgresJournal, store: QueryStore, accounts: Rows
) -> dict[str, float]:
    """From the append's acknowledgement of one transfer to its being readable, the journal busy every 10 ms."""
    rng = np.random.default_rng(8)
    running = asyncio.create_task(projection.run())
    own = accounts[accounts % PARTITIONS == 0]

    async def write_and_wait() -> None:
        heads = await journal.heads()
        await store.wait_for({0: heads[0] - 1}, time.monotonic() + 30)

    times = []
    await write_and_wait()
    for _ in range(200):
        rows = _events(rng, Kind.TRANSFER, 1, shards[0].last_ns)
        rows["debit"], rows["credit"], rows["amount"] = own[1], own[2], 1
        await shards[0].group(rows)
        began = time.perf_counter()
        await write_and_wait()
        times.append(time.perf_counter() - began)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    return {f"p{q}": round(float(np.percentile(times, q)) * 1e3, 3) for q in (50, 99)}


async def _run(dsn: str, postmaster: int, transfers: int, accounts_count: int, directory: Path) -> dict[str, Any]:
    journal = PostgresJournal(dsn)
    hashes = np.unique(np.random.default_rng(6).integers(1024, 2**52, accounts_count))
    accounts = hashes << 10 | np.arange(len(hashes)) % PARTITIONS
    shards, rng, count = await _shards(journal), np.random.default_rng(7), 0
    await _open_accounts(shards, accounts, rng)
    async with asyncpg.create_pool(dsn, min_size=2, max_size=8) as pool:
        store = QueryStore(pool)
        projection = Projection(
            journal, store, SnapshotStore(directory / "snapshots", KEY), chain_key=KEY,
            limits=Limits(snapshot_records=10**9, snapshot_s=10**9),
        )  # fmt: skip
        await projection.open()
        await projection.catch_up()
        before = await pool.fetchval("SELECT count(*) FROM query.entries")
        while count < transfers:
            count += await _round(shards, accounts, rng)
        began, own_cpu, database_cpu = time.perf_counter(), time.process_time(), _cpu_s(postmaster)
        await projection.catch_up()
        seconds = time.perf_counter() - began
        own_cpu, database_cpu = time.process_time() - own_cpu, _cpu_s(postmaster) - database_cpu
        entries = await pool.fetchval("SELECT count(*) FROM query.entries") - before
        size = await pool.fetchval(_SIZE)
        hot, quiet = int(accounts[0]), int(accounts[5])
        instant = START_NS + (shards[0].last_ns - START_NS) // 2
        figures = {
            "transfers": count,
            "accounts": len(accounts),
            "projected_transfers_s": round(count / seconds),
            "projected_entries_s": round(entries / seconds),
            "projector_cpu_us_per_transfer": round(own_cpu / count * 1e6, 2),
            "postgres_cpu_us_per_transfer": round(database_cpu / count * 1e6, 2),
            "bytes_per_transfer": round(int(size) / count),
            "entries_of_hot_account": await pool.fetchval("SELECT count(*) FROM query.entries WHERE account = $1", hot),
            "balance_at_hot_ms": await _latency_ms(lambda: store.balance_at(hot, instant)),
            "balance_at_quiet_ms": await _latency_ms(lambda: store.balance_at(quiet, instant)),
            "entries_hot_page_of_100_ms": await _latency_ms(lambda: store.entries(hot, to_ns=instant, limit=100)),
        }
        began = time.perf_counter()
        for shard in shards:
            words = await compare(store, shard.book, shard.partition, (await journal.heads())[shard.partition])
            assert not words, words
        figures["compare_s"] = round(time.perf_counter() - began, 2)
        figures["read_own_write_ms"] = await _read_own_write_ms(shards, projection, journal, store, accounts)
        await projection.close()
        await store.close()
    await journal.close()
    return figures


def run(*, transfers: int = 400_000, accounts: int = 100_000) -> dict[str, Any]:
    """All figures: rates per second, times in ms, on a server of its own."""
    directory = Path(tempfile.mkdtemp(prefix="rz-bench-"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    server = PostgresServer(directory / "postgres", port)
    try:
        server.start()
        return asyncio.run(_run(server.dsn, server.pid or 0, transfers, accounts, directory))
    finally:
        server.stop()
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
