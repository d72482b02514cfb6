"""How fast a shard is, end to end: real processes, framed streams over TCP, a journal with a flush per commit.

`run()` measures bulk batches through one shard and through two with random pairs (half of them cross-shard), and single
transfers of many concurrent callers. Every figure is of acknowledged, durable transfers. Run it by
`python -m loadtests.bench_shard`.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import numpy as np
import uvloop

from actors.frames import FrameType
from actors.recovery import Recovery
from actors.shard import Shard
from actors.shard_client import ShardClient
from actors.shard_server import ShardServer
from actors.transport import Address, Locate, TcpTransport
from loadtests import journals
from loadtests.journals import Place
from storage.events import EVENT, NO_LIMIT, SLOTS, Code, Kind

BATCH: Final = 8_190
ACCOUNTS: Final = 100_000
_SECRET: Final = b"bench"
_KEY: Final = b"bench chain"
_FUNDS: Final = 10**12
_PATIENCE_S: Final = 30.0


def ids(accounts: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Fresh UUIDv7s, as columns, for events that `accounts`: (n,) u64 decide."""
    count = len(accounts)
    milliseconds = np.uint64(time.time_ns() // 10**6)
    hi = (milliseconds << np.uint64(16)) | np.uint64(0x7000) | random.integers(0, 0x1000, count, np.uint64)
    lo = np.uint64(1 << 63) | random.integers(0, 1 << 50, count, np.uint64) << np.uint64(12)
    return hi, lo | accounts % np.uint64(SLOTS)


def transfers(count: int, accounts: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Random pairs of different accounts, one centavo each."""
    rows = np.zeros(count, EVENT)
    first = random.integers(0, len(accounts), count)
    second = (first + random.integers(1, len(accounts), count)) % len(accounts)
    rows["debit"], rows["credit"] = accounts[first], accounts[second]
    rows["id_hi"], rows["id_lo"] = ids(rows["debit"], random)
    rows["amount"] = 1
    rows["kind"] = Kind.TRANSFER
    return rows


def account_ids(partitions: int) -> np.ndarray:
    """Accounts spread evenly over the partitions."""
    numbers = np.arange(ACCOUNTS, dtype=np.uint64)
    return (numbers + np.uint64(1)) * np.uint64(1024) + numbers % np.uint64(partitions)


def opening(accounts: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Events that open the accounts and fill them."""
    opened, paid = np.zeros(len(accounts), EVENT), np.zeros(len(accounts), EVENT)
    for rows in (opened, paid):
        rows["id_hi"], rows["id_lo"] = ids(accounts, random)
    opened["kind"], opened["debit"], opened["credit"] = Kind.OPEN, accounts, 1
    opened["amount"] = opened["ref_hi"] = opened["ref_lo"] = NO_LIMIT
    opened["total"] = 1200 << 16 | 360
    paid["kind"], paid["debit"], paid["credit"], paid["amount"] = Kind.DEPOSIT, 1, accounts, _FUNDS
    return np.concatenate([opened, paid])


def locate_in(ports: list[int]) -> Locate:
    """A directory that never changes."""

    async def locate(partition: int) -> Address:
        return Address("127.0.0.1", ports[partition], 0)

    return locate


async def _serve(partition: int, ports: list[int], place: Place, pipe: Connection) -> None:
    peers = None
    if len(ports) > 1:
        transport = TcpTransport(locate_in(ports), _SECRET, len(ports))
        peers = ShardClient(transport, len(ports), events=FrameType.LEGS)
    journal = place.journal()
    recovery = Recovery(
        partition, len(ports), journal=journal, snapshots=None, chain_key=_KEY, name=f"bench-{partition}"
    )
    shard = Shard(recovery, peers, on_fatal=lambda _: os._exit(1))
    await shard.start()
    server = ShardServer(shard, _SECRET, lambda: {"name": f"bench-{partition}", "pid": os.getpid(), "host": "bench"})
    await server.start("127.0.0.1", ports[partition])
    pipe.send("ready")
    await asyncio.get_running_loop().run_in_executor(None, pipe.recv)
    pipe.send({"cpu_s": time.process_time(), **shard.stats()})
    server.stop_listening()
    await shard.stop()
    await server.close()
    if peers is not None:
        await peers.close()
    await journal.close()


async def _bulk(client: ShardClient, accounts: np.ndarray, seconds: float, lanes: int) -> dict[str, Any]:
    """`lanes` callers, each with one batch under way."""
    random = np.random.default_rng(os.getpid())
    ready = [transfers(BATCH, accounts, random) for _ in range(40)]
    done: list[float] = []
    end = time.perf_counter() + seconds

    async def caller(number: int) -> None:
        turn = number
        while time.perf_counter() < end:
            rows = ready[turn % len(ready)].copy()
            rows["id_hi"], rows["id_lo"] = ids(rows["debit"], random)
            turn += lanes
            began = time.perf_counter()
            outcome = await client.apply(rows, None, time.monotonic() + _PATIENCE_S)
            assert (outcome.results["code"] == Code.OK).all(), np.unique(outcome.results["code"])
            done.append(time.perf_counter() - began)

    await asyncio.gather(*(caller(number) for number in range(lanes)))
    return {"transfers": len(done) * BATCH, "latencies_s": done}


async def _singles(client: ShardClient, accounts: np.ndarray, seconds: float, lanes: int) -> dict[str, Any]:
    """`lanes` callers, each with one transfer under way."""
    random = np.random.default_rng(os.getpid())
    ready = transfers(round(seconds * 100_000), accounts, random)
    done: list[float] = []
    end = time.perf_counter() + seconds

    async def caller(number: int) -> None:
        turn = number
        while (began := time.perf_counter()) < end:
            outcome = await client.apply(ready[turn : turn + 1], None, time.monotonic() + _PATIENCE_S)
            assert outcome.results["code"][0] == Code.OK, outcome
            done.append(time.perf_counter() - began)
            turn += lanes

    await asyncio.gather(*(caller(number) for number in range(lanes)))
    return {"transfers": len(done), "latencies_s": done}


async def _drive(ports: list[int], work: str, seconds: float, lanes: int, pipe: Connection) -> None:
    client = ShardClient(TcpTransport(locate_in(ports), _SECRET, len(ports)), len(ports))
    accounts = account_ids(len(ports))
    random = np.random.default_rng(1)
    if work == "open":
        for part in np.array_split(opening(accounts, random), 2 * ACCOUNTS // BATCH + 1):
            outcome = await client.apply(part, None, time.monotonic() + _PATIENCE_S)
            assert (outcome.results["code"] == Code.OK).all()
        pipe.send({})
    else:
        await client.stats(time.monotonic() + _PATIENCE_S)
        pipe.send("ready")
        await asyncio.get_running_loop().run_in_executor(None, pipe.recv)
        began = time.process_time()
        found = await (_bulk if work == "bulk" else _singles)(client, accounts, seconds, lanes)
        pipe.send({**found, "cpu_s": time.process_time() - began})
    await client.close()


def _process(target: Callable[..., Any], *arguments: Any) -> tuple[Any, Connection]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_run, args=(target, *arguments, theirs))
    process.start()
    theirs.close()
    return process, ours


def _run(target: Callable[..., Any], *arguments: Any) -> None:
    uvloop.run(target(*arguments))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _percentile_ms(latencies_s: list[float], percent: float) -> float:
    return round(float(np.percentile(latencies_s, percent)) * 1e3, 2)


def measure(place: Place, shards: int, work: str, *, clients: int, lanes: int, seconds: float) -> dict[str, Any]:
    """One run on a fresh ledger in `place`."""
    asyncio.run(_create(place, shards))
    ports = [_free_port() for _ in range(shards)]
    serving = [_process(_serve, partition, ports, place) for partition in range(shards)]
    for _, pipe in serving:
        assert pipe.recv() == "ready"
    opener, pipe = _process(_drive, ports, "open", 0.0, 1)
    pipe.recv()
    opener.join()
    driving = [_process(_drive, ports, work, seconds, lanes) for _ in range(clients)]
    for _, pipe in driving:
        assert pipe.recv() == "ready"
    began = time.perf_counter()
    for _, pipe in driving:
        pipe.send("go")
    found = [pipe.recv() for _, pipe in driving]
    elapsed = time.perf_counter() - began
    stats = []
    for _, pipe in serving:
        pipe.send("stop")
        stats.append(pipe.recv())
    for process, _ in (*driving, *serving):
        process.join(20)
    latencies = [latency for one in found for latency in one["latencies_s"]]
    total = sum(one["transfers"] for one in found)
    return {
        "shards": shards,
        "work": work,
        "clients": clients,
        "callers": clients * lanes,
        "transfers_per_s": round(total / elapsed),
        "p50_ms": _percentile_ms(latencies, 50),
        "p99_ms": _percentile_ms(latencies, 99),
        "groups": [one["groups"] for one in stats],
        "shard_cpu_s": [round(one["cpu_s"], 2) for one in stats],
        "client_cpu_us_per_transfer": round(sum(one["cpu_s"] for one in found) / total * 1e6, 2),
        "posture": place.durability,
    }


async def _create(place: Place, partitions: int) -> None:
    journal = place.journal()
    await journal.create(partitions)
    await journal.close()


def run(seconds: float = 5.0) -> dict[str, Any]:
    """All measurements: name → figures."""
    directory = Path(tempfile.mkdtemp(prefix="rz-bench-"))
    figures: dict[str, Any] = {}
    runs: list[tuple[str, dict[str, Any]]] = [
        ("bulk, one shard", {"shards": 1, "work": "bulk", "clients": 2, "lanes": 2}),
        ("bulk, two shards, random pairs", {"shards": 2, "work": "bulk", "clients": 2, "lanes": 2}),
        ("singles, one shard, 64 callers", {"shards": 1, "work": "singles", "clients": 1, "lanes": 64}),
        ("singles, two shards, 64 callers", {"shards": 2, "work": "singles", "clients": 1, "lanes": 64}),
    ]
    for number, (name, settings) in enumerate(runs):
        with journals.postgres(directory / str(number)) as place:
            figures[name] = measure(place, seconds=seconds, **settings)
        shutil.rmtree(directory / str(number), ignore_errors=True)
    shutil.rmtree(directory, ignore_errors=True)
    return figures


if __name__ == "__main__":
    print(json.dumps(run(float(sys.argv[1]) if len(sys.argv) > 1 else 5.0), indent=2))
