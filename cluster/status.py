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
from cluster.applications import checks, trouble
from cluster.data import DataDirectory
from cluster.journals import open_journal
from cluster.plan import Plan
from cluster.ray_node import RayNode
from cluster.shards import shard_client
from cluster.stores import pool_of
from storage.journal import JournalError
from storage.query_store import QueryStore

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
        "kafka": None,
        "tls_url": None,
        "vault_url": None,
        "dashboard": None,
        "started_at": None,
        "applications": {},
        "shards": [],
        "projection": {"lag": None},
    }
    if running is not None:
        found |= {"url": running.url, "journal": running.journal, "tls_url": running.tls_url}
        found |= {"vault_url": running.vault_url}
        plan = Plan.load(data)
        found |= {"kafka": plan.settings.kafka_bootstrap}
        found |= {"dashboard": running.dashboard_url, "started_at": running.started_at}
        ready, shards, lag = await asyncio.gather(_ready(plan), _shards(data), _lag(plan))
        found |= {"ready": all(ready.values()), "applications": ready, "shards": shards, "projection": {"lag": lag}}
    listed = await asyncio.to_thread(processes.listing, secrets.engine, RayNode(data.ray))
    if holder:
        listed.insert(0, processes.Process(holder, "supervisor", "razao up"))
    # Ray titles a shard's process by its class; which shard it is the shards have just told.
    names = {shard["pid"]: shard["name"] for shard in found["shards"]}
    found["processes"] = [{"role": p.role, "name": names.get(p.pid, p.name), "pid": p.pid} for p in listed]
    return found


async def _ready(plan: Plan) -> dict[str, bool]:
    """By application, whether it can answer."""
    asked = checks(plan)
    async with httpx.AsyncClient(timeout=_TIMEOUT_S, trust_env=False) as client:
        found = await asyncio.gather(*(trouble(client, one) for one in asked))
    return {one.application: why is None for one, why in zip(asked, found, strict=True)}


async def _shards(data: DataDirectory) -> list[dict[str, Any]]:
    async with shard_client(data) as client:
        asked = (_shard(client, partition) for partition in range(client.partitions))
        return list(await asyncio.gather(*asked))


async def _shard(client: ShardClient, partition: int) -> dict[str, Any]:
    """What a shard says of itself; zeros for one that does not serve now."""
    shown = (
        "name",
        "pid",
        "epoch",
        "offset",
        "accounts",
        "transfers",
        "holds",
        "in_flight",
        "ids_window_s",
        "clock_ahead_s",
    )
    try:
        stats = await client.shard_stats(partition, time.monotonic() + _TIMEOUT_S)
    except ShardUnavailable:
        return dict.fromkeys(shown, 0) | {"name": actor_name(partition), "serving": False}
    return {name: getattr(stats, name) for name in shown} | {"serving": True}


async def _lag(plan: Plan) -> int | None:
    """Journal records that the query store does not have yet; None when journal or database do not answer."""
    journal = open_journal(plan.settings, plan.dsn)
    try:
        async with asyncio.timeout(_TIMEOUT_S), pool_of(plan.dsn, connections=1) as pool:
            projected = await QueryStore(pool).projected()
            return sum((await journal.heads()).values()) - sum(projected.values())
    except (JournalError, OSError, TimeoutError, asyncpg.PostgresError):
        return None
    finally:
        await journal.close()
