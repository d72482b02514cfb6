"""The directory of shards: a named Ray actor that says where each partition's shard listens.

It keeps nothing on disk: after a restart of its own it is empty until the shards, who register every second, have told
it again. An older epoch never replaces a newer one.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

import ray
from ray.actor import ActorHandle

from actors.transport import Address, Locate

NAMESPACE: Final = "razao"
NAME: Final = "directory"


class Registration(NamedTuple):
    """What a shard tells."""

    partition: int
    host: str
    port: int
    pid: int
    epoch: int


class ShardTable:
    """The newest registration of each partition."""

    def __init__(self) -> None:
        self.shards: dict[int, Registration] = {}

    def register(self, registration: Registration) -> bool:
        """Take a shard's word, unless a newer shard has spoken; whether that changed anything."""
        known = self.shards.get(registration.partition)
        if known == registration or (known is not None and registration.epoch < known.epoch):
            return False
        self.shards[registration.partition] = registration
        return True


class Directory:
    """The actor's class; `start_directory` makes it."""

    def __init__(self, published: Path | None = None) -> None:
        self._table = ShardTable()
        self._published = published

    def __repr__(self) -> str:
        return f"Directory({len(self._table.shards)} shards)"

    async def register(self, partition: int, host: str, port: int, pid: int, epoch: int) -> None:
        """See `ShardTable.register`."""
        if self._table.register(Registration(partition, host, port, pid, epoch)) and self._published is not None:
            _publish(self._published, self._table)

    async def shards(self) -> dict[int, tuple[str, int, int, int]]:
        """Partition → host, port, pid, epoch."""
        known = self._table.shards.values()
        return {found.partition: (found.host, found.port, found.pid, found.epoch) for found in known}


def _publish(path: Path, table: ShardTable) -> None:
    """Write the table for programs on this machine that are not part of the cluster, in one step."""
    draft = path.with_suffix(".new")
    draft.write_text(json.dumps([registration._asdict() for registration in table.shards.values()]))
    draft.replace(path)


def start_directory(published: Path | None = None) -> ActorHandle[Any]:
    """The directory of this cluster, made if need be; it outlives its maker. Its maker says where it is published."""
    options = {
        "name": NAME,
        "namespace": NAMESPACE,
        "lifetime": "detached",
        "get_if_exists": True,
        "max_restarts": -1,
        "max_task_retries": -1,
        "num_cpus": 0,
        "max_concurrency": 1_000,
    }
    return cast("ActorHandle[Any]", ray.remote(Directory).options(**options).remote(published))


def locate_by(handle: ActorHandle[Any] | None = None, *, timeout_s: float = 2.0) -> Locate:
    """Ask the directory. Without a handle it is looked up by name, again after each failure."""
    found: Any = handle

    async def locate(partition: int) -> Address | None:
        nonlocal found
        try:
            if found is None:
                found = await asyncio.get_running_loop().run_in_executor(None, _find)
            async with asyncio.timeout(timeout_s):
                shards: dict[int, tuple[str, int, int, int]] = await asyncio.wrap_future(found.shards.remote().future())
        except (ray.exceptions.RayError, ValueError, TimeoutError) as error:
            found = handle
            raise ConnectionError(f"the directory does not answer: {error}") from error
        where = shards.get(partition)
        return None if where is None else Address(where[0], where[1], where[3])

    return locate


def _find() -> Any:
    return ray.get_actor(NAME, namespace=NAMESPACE)
