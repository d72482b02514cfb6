"""Talking to the shards of a running engine from a command: addresses come from the file that the directory writes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from actors.shard_client import ShardClient
from actors.transport import Address, TcpTransport
from cluster.data import DataDirectory, EngineError


@asynccontextmanager
async def shard_client(data: DataDirectory) -> AsyncIterator[ShardClient]:
    """A client of the running engine's shards.

    Raises:
        EngineError: no engine runs.
    """
    running = data.running()
    if running is None:
        raise EngineError(f"no engine runs on {data.root}")

    async def locate(partition: int) -> Address | None:
        found = next((one for one in data.shard_addresses() if one["partition"] == partition), None)
        return None if found is None else Address(found["host"], found["port"], found["epoch"])

    secret = bytes.fromhex(data.secrets().shard_secret)
    client = ShardClient(TcpTransport(locate, secret, running.shards), running.shards)
    try:
        yield client
    finally:
        await client.close()
