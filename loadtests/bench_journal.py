"""What a durable record costs on the embedded PostgreSQL: encoding, chaining, appending, and reading it all back.

`python -m loadtests.bench_journal` prints a table; `run()` returns the same figures. One writer, one append in flight,
as a shard works. Every append is acknowledged after PostgreSQL has flushed its WAL; the posture is asked of the server.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import asyncpg
import numpy as np
import pyarrow as pa

from cluster.postgres import PostgresServer
from storage.events import EVENT, RESULT, Kind
from storage.journal import Journal, Writer
from storage.journal.postgres import PostgresJournal
from storage.record import Chain, Reader, encode, encode_open

KEY: Final = b"benchmark" * 3
GROUPS: Final = (1, 64, 8190)
CODECS: Final[tuple[str | None, ...]] = (None, "lz4", "zstd")
ACCOUNTS: Final = 100_000


def group(count: int, seed: int) -> np.ndarray:
    """(count,) EVENT: transfers between random accounts, each with an owner and an id of its own."""
    rng = np.random.default_rng(seed)
    accounts = rng.integers(1, 2**53, ACCOUNTS, dtype=np.uint64) << np.uint64(10)
    rows = np.zeros(count, EVENT)
    milliseconds = np.sort(rng.integers(1_763_000_000_000, 1_763_000_000_050, count)).astype(np.uint64)
    rows["id_hi"] = milliseconds << np.uint64(16) | np.uint64(0x7000) | rng.integers(0, 4096, count, dtype=np.uint64)
    rows["id_lo"] = rng.integers(2**63, 2**63 + 2**62, count, dtype=np.uint64)
    rows["debit"], rows["credit"] = rng.choice(accounts, count), rng.choice(accounts, count)
    rows["actor"] = rows["debit"] * np.uint64(0x9E3779B97F4A7C15)
    rows["amount"] = rng.integers(1, 100_000, count)
    rows["at"] = 1_763_000_000_000_000_000 + np.arange(count)
    rows["kind"] = Kind.TRANSFER
    return rows


def run(*, seconds: float = 2.0, dsn: str | None = None) -> dict[str, Any]:
    """All figures: times in ms (medians unless said), rates per second. Without `dsn` a server is started for it."""
    if dsn is not None:
        return asyncio.run(_run(dsn, seconds))
    directory = Path(tempfile.mkdtemp(prefix="rz-"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    server = PostgresServer(directory, port)
    try:
        server.start()
        return asyncio.run(_run(server.dsn, seconds))
    finally:
        server.stop()
        shutil.rmtree(directory)


async def _run(dsn: str, seconds: float) -> dict[str, Any]:
    journal = PostgresJournal(dsn)
    await journal.create(1)
    try:
        await append(journal, 8190, 0.5)  # the first WAL segments are made, not recycled
        return {
            "posture": await _posture(dsn),
            "groups": {count: await append(journal, count, seconds) for count in GROUPS},
            "codecs": await _codecs(journal, 8190, seconds / 4),
            "raw": {size: await _raw(journal, size, seconds / 4) for size in (1024, 640 * 1024)},
        }
    finally:
        await journal.close()


async def _posture(dsn: str) -> str:
    connection = await asyncpg.connect(dsn)
    try:
        names = ("fsync", "synchronous_commit", "full_page_writes", "data_checksums")
        values = [f"{name}={await connection.fetchval('SELECT current_setting($1)', name)}" for name in names]
    finally:
        await connection.close()
    return ", ".join(["PostgreSQL, one server, acknowledged after the WAL flush", *values])


async def append(journal: Journal, count: int, seconds: float) -> dict[str, float]:
    """Write groups of `count` for so long as a shard would, then replay them."""
    writer = await journal.open(0, encode_open(0, {"name": "bench"}))
    reader = Reader(journal, 0, KEY)
    async for _ in reader.records():
        pass
    start = reader.position
    chain = Chain(KEY, start.chain)
    groups = [group(count, seed) for seed in range(4)]
    results = np.zeros(count, RESULT)
    encodes: list[float] = []
    appends: list[float] = []
    size = 0
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        before = time.perf_counter()
        payload = encode(
            groups[len(encodes) % len(groups)],
            results,
            None,
            partition=0,
            sequence=start.sequence + len(encodes),
            epoch=writer.epoch,
            utc_offset_s=-10_800,
            chain=chain,
        )
        encoded = time.perf_counter()
        await writer.append(payload)
        appends.append(time.perf_counter() - encoded)
        encodes.append(encoded - before)
        size = len(payload)
    elapsed = time.perf_counter() - began
    await writer.close()
    replay_s = await _replay(journal, reader, len(encodes) * count)
    return {
        "record_bytes": size,
        "encode_ms": _median_ms(encodes),
        "of_it_chain_ms": _timed_ms(lambda: Chain(KEY).digest(payload), len(encodes)),
        "append_ms": _median_ms(appends),
        "append_p99_ms": float(np.percentile(appends, 99)) * 1e3,
        "appends_per_s": len(appends) / elapsed,
        "transfers_per_s": len(appends) * count / elapsed,
        "replay_records_per_s": len(appends) / replay_s,
        "replay_transfers_per_s": len(appends) * count / replay_s,
    }


async def _replay(journal: Journal, reader: Reader, rows: int) -> float:
    began = time.perf_counter()
    seen = 0
    async for record in reader.records():
        seen += len(record.rows)
    assert seen == rows, f"{seen} transfers read of {rows} written"
    return time.perf_counter() - began


async def _codecs(journal: Journal, count: int, seconds: float) -> dict[str, dict[str, float]]:
    """The same batch under each of Arrow's codecs: what it costs to write, to append and to read."""
    payload = encode(
        group(count, 1),
        np.zeros(count, RESULT),
        None,
        partition=0,
        sequence=0,
        epoch=0,
        utc_offset_s=0,
        chain=Chain(KEY),
    )
    with pa.ipc.open_stream(payload) as stream:
        batch = pa.ipc.open_stream(_stream(stream.read_next_batch(), None)).read_next_batch()
    writer = await journal.open(0, encode_open(0, {"name": "bench"}))
    figures = {}
    for codec in CODECS:
        data = _stream(batch, codec)
        figures[codec or "none"] = {
            "bytes": len(data),
            "write_ms": _timed_ms(lambda codec=codec: _stream(batch, codec), 50),  # type: ignore[misc]
            "append_ms": await _appends_ms(writer, data, seconds),
            "read_ms": _timed_ms(lambda data=data: pa.ipc.open_stream(data).read_next_batch(), 50),  # type: ignore[misc]
        }
    await writer.close()
    return figures


def _stream(batch: Any, codec: str | None) -> bytes:
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=codec, use_threads=False)
    with pa.ipc.new_stream(sink, batch.schema, options=options) as stream:
        stream.write_batch(batch)
    return bytes(sink.getvalue())


async def _raw(journal: Journal, size: int, seconds: float) -> float:
    """Appending `size` random bytes, ms: the journal alone."""
    writer = await journal.open(0, encode_open(0, {"name": "bench"}))
    milliseconds = await _appends_ms(writer, np.random.default_rng(1).bytes(size), seconds)
    await writer.close()
    return milliseconds


async def _appends_ms(writer: Writer, payload: bytes, seconds: float) -> float:
    times = []
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        before = time.perf_counter()
        await writer.append(payload)
        times.append(time.perf_counter() - before)
    return _median_ms(times)


def _timed_ms(work: Callable[[], object], times: int) -> float:
    taken = []
    for _ in range(min(times, 500)):
        before = time.perf_counter()
        work()
        taken.append(time.perf_counter() - before)
    return _median_ms(taken)


def _median_ms(seconds: list[float]) -> float:
    return float(np.median(seconds)) * 1e3


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0, help="time per group size")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    figures = run(seconds=arguments.seconds)
    if arguments.json:
        print(json.dumps(figures))
        return
    print(figures["posture"])
    for count, row in figures["groups"].items():
        print(f"\n{count} transfers a record")
        for name, value in row.items():
            print(f"  {name:24} {value:14,.3f}")
    print("\ncodecs at 8,190 transfers")
    for codec, row in figures["codecs"].items():
        print(f"  {codec:6}", "  ".join(f"{name} {value:,.3f}" for name, value in row.items()))
    for size, value in figures["raw"].items():
        print(f"\nappend of {size:,} random bytes: {value:.3f} ms")


if __name__ == "__main__":
    main()
