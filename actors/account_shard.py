"""`AccountShard`: the Ray actor around a shard. It starts the shard and its listener and registers them.

Ray places it, names it, shows it and starts it again; everything else is in `actors/shard.py`. Any fatal error ends the
process at once, with nothing answered after it: Ray makes a new one, which fences and recovers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

import ray
from ray.actor import ActorHandle
from ray.util import metrics

from actors import garbage, shard_server
from actors.directory import NAME, NAMESPACE, locate_by
from actors.failpoints import failpoints
from actors.frames import FrameType
from actors.ledger import Capacity
from actors.ray_calls import actor_name
from actors.recovery import Recovery, Windows, saved_in
from actors.scheduling import run_in_batches
from actors.shard import Shard, ShardLimits
from actors.shard_client import ShardClient
from actors.shard_server import ShardServer
from actors.transport import TcpTransport
from storage.journal import Journal
from storage.snapshots import SnapshotStore

_LOG: Final = logging.getLogger(__name__)
_REGISTER_S: Final = 1.0
_CONCURRENCY: Final = 1_000


@dataclass(frozen=True, slots=True)
class ShardConfig:
    """What an `AccountShard` is told. The factories are called in its own process."""

    partition: int
    partitions: int
    journal: Callable[[], Journal]
    snapshots: Callable[[], SnapshotStore | None]
    secret: bytes  # of the streams
    chain_key: bytes
    host: str = "127.0.0.1"  # to listen on, and to tell the directory
    port: int = 0
    failpoints: Path | None = None
    last_words: Path | None = None  # file that says why the process ended itself, for whoever waits for it
    windows: Windows = field(default_factory=Windows)
    capacity: Capacity = Capacity()  # noqa: RUF009 - immutable
    limits: ShardLimits = field(default_factory=ShardLimits)


_FIGURES: Final = {
    "accounts": "Accounts.",
    "ids": "Ids that are remembered.",
    "ids_window_s": "Age of the oldest id that is remembered, seconds.",
    "holds": "Holds.",
    "in_flight": "Payments on their way to other shards.",
    "queue_rows": "Events that wait.",
    "read_rows": "Accounts that wait to be read.",
    "outbox_rows": "Legs that other shards have not decided.",
    "last_append_ms": "How long the last append took.",
    "clock_ahead_s": "How far the clock is ahead of what can be believed, seconds; else 0.",
}


def figures(stats: Mapping[str, Any]) -> dict[str, float]:
    """What metrics show of a shard, from its statistics: name → value; `_max` is what there is room for."""
    found = {name: float(stats[name]) for name in _FIGURES}
    return found | {f"{name}_max": float(rows) for name, rows in stats["capacity"].items()}


class _Gauges:
    """A shard's figures in Ray's metrics."""

    def __init__(self, shard: str) -> None:
        self._tags = {"shard": shard}
        self._made: dict[str, metrics.Gauge] = {}

    def publish(self, stats: Mapping[str, Any]) -> None:
        for name, value in figures(stats).items():
            if name not in self._made:
                text = _FIGURES.get(name, "Rows that there is room for.")
                self._made[name] = metrics.Gauge(f"razao_shard_{name}", text, ("shard",))
            self._made[name].set(value, self._tags)


class AccountShard:
    """The actor's class; `start_shard` makes it."""

    def __init__(self, config: ShardConfig) -> None:
        # Ray runs this on the actor's event loop, and again by itself after each restart.
        self._config = config
        self._name = actor_name(config.partition)
        self._port = 0
        self._stopping = False
        self._ready = asyncio.Event()
        failpoint = failpoints(config.failpoints)
        peers = None
        if config.partitions > 1:
            transport = TcpTransport(locate_by(), config.secret, config.partitions)
            peers = ShardClient(transport, config.partitions, events=FrameType.LEGS)
        self._peers = peers
        self._journal = config.journal()
        store = config.snapshots()
        recovery = Recovery(
            config.partition,
            config.partitions,
            journal=self._journal,
            snapshots=None if store is None else saved_in(store),
            chain_key=config.chain_key,
            name=self._name,
            windows=config.windows,
            capacity=config.capacity,
        )
        self._shard = Shard(recovery, peers, on_fatal=self._end_process, limits=config.limits, failpoint=failpoint)
        self._server = ShardServer(self._shard, config.secret, self._identity)
        self._serving = asyncio.get_running_loop().create_task(self._serve())
        self._serving.add_done_callback(self._end_on_failure)

    def __repr__(self) -> str:
        return f"AccountShard({self._name})"

    async def hello(self) -> dict[str, int] | None:
        """Partitions and epoch once it serves; None before."""
        shard = self._shard
        return {"partitions": shard.partitions, "epoch": shard.epoch} if shard.serving else None

    async def exchange(self, data: bytes, epoch: int, whole: bool) -> bytes:
        """One frame in, one frame out (`actors/ray_calls.py`), by a client that knows this shard as `epoch`."""
        if self._stopping or not self._shard.serving or epoch != self._shard.epoch:
            raise ConnectionError(f"{self._name} serves epoch {self._shard.epoch}, not {epoch}")
        return await shard_server.exchange(self._shard, self._identity, data, whole=whole)

    async def ready(self) -> int:
        """Wait until it serves; returns the epoch."""
        await self._ready.wait()
        return self._shard.epoch

    async def stop(self) -> None:
        """Take no new requests, finish what is queued, give the journal up. The process stays until Ray ends it."""
        self._stopping = True
        self._server.stop_listening()
        await self._shard.stop()
        await self._server.close()
        if self._peers is not None:
            await self._peers.close()
        await self._journal.close()

    async def _serve(self) -> None:
        await self._shard.start()
        garbage.calm()
        run_in_batches()
        self._port = await self._server.start(self._config.host, self._config.port)
        self._ready.set()
        _LOG.info("%s serves epoch %d on %s:%d", self._name, self._shard.epoch, self._config.host, self._port)
        directory: Any = None
        gauges = _Gauges(self._name)
        while not self._stopping:
            gauges.publish(self._shard.stats())
            try:
                if directory is None:
                    directory = await asyncio.to_thread(ray.get_actor, NAME, NAMESPACE)
                told = directory.register.remote(
                    self._config.partition, self._config.host, self._port, os.getpid(), self._shard.epoch
                )
                async with asyncio.timeout(5.0):
                    await asyncio.wrap_future(told.future())
            except (ray.exceptions.RayError, ValueError, TimeoutError) as error:
                _LOG.warning("%s could not register: %s", self._name, error)
                directory = None
            await asyncio.sleep(_REGISTER_S)

    def _identity(self) -> dict[str, Any]:
        return {"name": self._name, "pid": os.getpid(), "host": socket.gethostname()}

    def _end_process(self, error: BaseException) -> None:
        """Nothing may be answered any more: not even buffers are flushed."""
        _LOG.critical("the process ends: %r", error)
        if self._config.last_words is not None:
            with contextlib.suppress(OSError):
                self._config.last_words.write_text(f"{type(error).__name__}: {error}")
        os._exit(1)

    def _end_on_failure(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._end_process(error)


def start_shard(config: ShardConfig, **options: Any) -> ActorHandle[Any]:
    """The detached actor of `config.partition`, made if it is not there. `options` go to Ray."""
    settings = {
        "name": actor_name(config.partition),
        "namespace": NAMESPACE,
        "lifetime": "detached",
        "get_if_exists": True,
        "max_restarts": -1,
        "max_task_retries": 0,
        "max_concurrency": _CONCURRENCY,
        "num_cpus": 0,
        **options,
    }
    return cast("ActorHandle[Any]", ray.remote(AccountShard).options(**settings).remote(config))
