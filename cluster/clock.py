"""`razao clock`: what the shards' clocks say, and an operator's word that they are right."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final

from actors.ray_calls import actor_name
from actors.shard_client import ShardClient, ShardStats, ShardUnavailable
from cluster.data import DataDirectory
from cluster.shards import shard_client

_TIMEOUT_S: Final = 2.0

Ask = Callable[[ShardClient, int, float], Coroutine[Any, Any, ShardStats]]


async def show(data: DataDirectory) -> list[dict[str, Any]]:
    """Per shard: name, `clock_ns`, `clock_ahead_s` (0: it is believed), and whether the shard was reached at all.

    Raises:
        EngineError: no engine runs.
    """
    return await _of_each(data, ShardClient.shard_stats)


async def accept(data: DataDirectory) -> list[dict[str, Any]]:
    """Every shard goes on with its machine's clock as it is now; then as `show`.

    Raises:
        EngineError: no engine runs.
    """
    return await _of_each(data, ShardClient.accept_clock)


async def _of_each(data: DataDirectory, ask: Ask) -> list[dict[str, Any]]:
    async with shard_client(data) as client:
        return list(await asyncio.gather(*(_of(client, partition, ask) for partition in range(client.partitions))))


async def _of(client: ShardClient, partition: int, ask: Ask) -> dict[str, Any]:
    try:
        stats = await ask(client, partition, time.monotonic() + _TIMEOUT_S)
    except ShardUnavailable:
        return {"name": actor_name(partition), "clock_ns": 0, "clock_ahead_s": 0.0, "reached": False}
    return {"name": stats.name, "clock_ns": stats.clock_ns, "clock_ahead_s": stats.clock_ahead_s, "reached": True}
