"""`razao status`: what runs, asked from those who know: the shards, the database, the gateway, and /proc."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

import asyncpg
import httpx

from actors.ray_calls import actor_name
from actors.shard_client import ShardClient, ShardUnavailable
from cluster import processes
from cluster.data import DataDirectory, Running
from cluster.ray_node import RayNode
from cluster.shards import shard_client

_TIMEOUT_S: Final = 2.0


async def collect(data: DataDirectory) -> dict[str, Any]:
    """Everything that `razao status --json` prints.

    Raises:
        EngineError: no engine was ever started in this directory.
    """
    secrets = data.secrets()
    holder = data.holder()
    running = data.running() if holder is not None else None
    found: dict[str, Any] = {
        "url": None,
        "ready": False,
        "journal": None,
        "tls_url": None,
        "dashboard": None,
        "started_at": None,
        "shards": [],
        "projection": {"lag": None},
    }
    if running is not None:
        found |= {"url": running.url, "journal": running.journal, "tls_url": running.tls_url}
        found |= {"dashboard": running.dashboard_url, "started_at": running.started_at}
        ready, shards, lag = await asyncio.gather(_ready(running), _shards(data), _lag(running))
        found |= {"ready": ready, "shards": shards, "projection": {"lag": lag}}
    listed = await asyncio.to_thread(processes.listing, secrets.engine, RayNode(data.ray))
    if holder:
        listed.insert(0, processes.Process(holder, "supervisor", "razao up"))
    # Ray titles a shard's process by its class; which shard it is the shards have just told.
    names = {shard["pid"]: shard["name"] for shard in found["shards"]}
    found["processes"] = [{"role": p.role, "name": names.get(p.pid, p.name), "pid": p.pid} for p in listed]
    return found


async def _ready(running: Running) -> bool:
    async with httpx.AsyncClient(timeout=_TIMEOUT_S, trust_env=False) as client:
        try:
            return (await client.get(f"{running.url}/healthz")).status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False


async def _shards(data: DataDirectory) -> list[dict[str, Any]]:
    async with shard_client(data) as client:
        asked = (_shard(client, partition) for partition in range(client.partitions))
        return list(await asyncio.gather(*asked))


async def _shard(client: ShardClient, partition: int) -> dict[str, Any]:
    """What a shard says of itself; zeros for one that does not serve now."""
    shown = ("name", "pid", "epoch", "offset", "accounts", "transfers", "holds", "in_flight", "stuck_legs")
    try:
        stats = await client.shard_stats(partition, time.monotonic() + _TIMEOUT_S)
    except ShardUnavailable:
        return dict.fromkeys(shown, 0) | {"name": actor_name(partition), "serving": False}
    return {name: getattr(stats, name) for name in shown} | {"serving": True}


async def _lag(running: Running) -> int | None:
    """Journal records that the query store does not have yet; None when the database does not answer."""
    try:
        connection = await asyncpg.connect(running.dsn, timeout=_TIMEOUT_S)
    except (OSError, TimeoutError, asyncpg.PostgresError):
        return None
    try:
        lag = await connection.fetchval(
            "SELECT (SELECT coalesce(sum(next), 0) FROM journal.head)"
            " - (SELECT coalesce(sum(next_offset), 0) FROM query.projection)"
        )
        return int(lag)
    except asyncpg.PostgresError:
        return None
    finally:
        await connection.close(timeout=_TIMEOUT_S)
