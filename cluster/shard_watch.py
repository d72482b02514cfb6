"""Looks after shards that live and do not answer: Ray sees only death, so a stalled process is made a dead one.

A shard whose process is stopped, or stuck, serves nobody, and while it holds its place Ray starts no other. Ending it
loses nothing: what it acknowledged is durable, and its successor fences it before it recovers.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable
from typing import Any, Final

from actors.ray_calls import actor_name
from actors.shard_client import ShardClient, ShardUnavailable
from cluster import processes
from cluster.data import DataDirectory
from cluster.shards import shard_client

_EVERY_S: Final = 1.0


class ShardWatch:
    """Asks every registered shard once a second; ends the process of one that has not answered for `stall_s`."""

    def __init__(self, data: DataDirectory, stall_s: float, *, say: Callable[[str], None]) -> None:
        self._data = data
        self._stall_s = stall_s
        self._say = say
        self._heard: dict[int, tuple[int, float]] = {}  # partition → pid, and when it answered (or first appeared)

    async def run(self) -> None:
        """Watch for as long as the engine runs."""
        async with shard_client(self._data) as client:
            while True:
                await asyncio.sleep(_EVERY_S)
                await asyncio.gather(*(self._look(client, one) for one in self._data.shard_addresses()))

    async def _look(self, client: ShardClient, registered: dict[str, Any]) -> None:
        partition, pid = registered["partition"], registered["pid"]
        if self._heard.get(partition, (0, 0.0))[0] != pid:
            self._heard[partition] = (pid, time.monotonic())
        try:
            await client.shard_stats(partition, time.monotonic() + _EVERY_S)
        except ShardUnavailable:
            silent_s = time.monotonic() - self._heard[partition][1]
            if silent_s > self._stall_s and processes.alive(pid):
                self._say(f"{actor_name(partition)} has not answered for {silent_s:.0f} s; ending its process {pid}")
                processes.send([pid], signal.SIGKILL)
        else:
            self._heard[partition] = (pid, time.monotonic())
