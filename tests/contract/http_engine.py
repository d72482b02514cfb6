"""A whole engine in this process: real PostgreSQL, two real shards over TCP, the projection, and the app on uvicorn."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import asyncpg

from actors.frames import FrameType
from actors.ledger import Capacity
from actors.projection import Projection
from actors.recovery import Recovery, Windows
from actors.shard import Shard
from actors.shard_client import ShardClient
from actors.shard_server import ShardServer
from actors.transport import Address, TcpTransport
from cluster.compile import compile_kernel
from cluster.postgres import PostgresServer
from deployments.auth.keys import ensure_keys, sign_token
from deployments.auth.tokens import KeyFile, TokenVerifier
from deployments.listener import Listener
from deployments.payments import Services, create
from storage.journal.postgres import PostgresJournal
from storage.query_store import QueryStore
from storage.references import person_reference
from storage.registry import Registry
from storage.snapshots import SnapshotStore

PARTITIONS: Final = 2
CAPACITY: Final = Capacity(accounts=2**16, ids=2**20, holds=2**14, in_flight=2**14, refunds=2**14)
_CHAIN_KEY: Final = bytes(range(32))
_LEDGER_KEY: Final = bytes(range(1, 33))
_SECRET: Final = b"between replica and shard"


@dataclass(frozen=True)
class LiveEngine:
    """What the HTTP contract suite needs to know of an engine, however it runs."""

    base_url: str
    make_token: Callable[..., str]
    """(sub, scope, tax_id that is proven) → token."""


def new_database(server: PostgresServer, name: str) -> str:
    """The DSN of a new database."""

    async def create() -> None:
        connection = await asyncpg.connect(server.dsn)
        try:
            await connection.execute(f"CREATE DATABASE {name}")
        finally:
            await connection.close()

    asyncio.run(create())
    return server.dsn_of(name)


class Engine:
    """Everything on one event loop in a thread of its own, so that tests can be plain functions."""

    def __init__(self, dsn: str, directory: Path, *, windows: Windows | None = None, **settings: Any) -> None:
        """`windows`: how long what is remembered; `settings`: of the application's `Services`."""
        self.dsn = dsn
        self._windows = Windows() if windows is None else windows
        self._directory = directory
        self._settings = settings
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._main, name="engine", daemon=True)
        self._loop: asyncio.AbstractEventLoop
        self._failure: BaseException | None = None
        self.port = 0
        self.services: Services
        self._addresses: dict[int, Address] = {}
        self._shards: dict[int, tuple[Shard, ShardServer, ShardClient]] = {}
        self.fatal: list[BaseException] = []

    def start(self) -> LiveEngine:
        """Start all of it; returns when it answers."""
        compile_kernel()
        self._thread.start()
        assert self._started.wait(120), "the engine did not start"
        if self._failure is not None:
            raise self._failure
        return LiveEngine(f"http://127.0.0.1:{self.port}", self.token)

    def token(self, sub: str, scope: str, *, tax_id: str | None = None, **more: Any) -> str:
        """A token that the engine accepts."""
        person = None if tax_id is None else person_reference(_LEDGER_KEY, tax_id).hex()
        return sign_token(self._directory, sub, scope, person=person, **more)

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run something on the engine's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def stop(self) -> None:
        """End everything; raises what a shard died of."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(60)
        assert not self._thread.is_alive(), "the engine did not stop"
        if self._failure is not None:
            raise self._failure
        assert not self.fatal, self.fatal

    def _main(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:  # noqa: BLE001 - told to whoever starts or stops it
            self._failure = error
        self._started.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        ends: list[Callable[[], Coroutine[Any, Any, Any]]] = []
        try:
            await self._start_parts(ends)
            self._started.set()
            await self._stop.wait()
        finally:
            for end in reversed(ends):
                await end()

    async def _start_parts(self, ends: list[Callable[[], Coroutine[Any, Any, Any]]]) -> None:
        pool = await asyncpg.create_pool(self.dsn, min_size=1, max_size=8)
        ends.append(pool.close)
        journal = PostgresJournal(self.dsn)
        ends.append(journal.close)
        await journal.create(PARTITIONS)
        store, registry = QueryStore(pool), Registry(pool)
        ends.append(store.close)
        await store.create()
        await registry.create()
        self._journal = journal
        for partition in range(PARTITIONS):
            await self.start_shard(partition)
            ends.append(partial(self.stop_shard, partition))
        snapshots = SnapshotStore(self._directory / "snapshots", _CHAIN_KEY)
        projection = Projection(journal, store, snapshots, chain_key=_CHAIN_KEY, windows=self._windows)
        projecting = asyncio.create_task(projection.run())

        async def end_projection() -> None:
            projecting.cancel()
            await asyncio.gather(projecting, return_exceptions=True)
            await projection.close()

        ends.append(end_projection)
        client = ShardClient(self._transport(), PARTITIONS)
        ends.append(client.close)
        verifier = TokenVerifier(KeyFile(ensure_keys(self._directory)))
        self.services = Services(client, store, registry, verifier, _LEDGER_KEY, **self._settings)
        await self._listen(ends)

    def _transport(self) -> TcpTransport:
        async def locate(partition: int) -> Address | None:
            return self._addresses.get(partition)

        return TcpTransport(locate, _SECRET, PARTITIONS)

    async def start_shard(self, partition: int) -> None:
        """Start a partition's shard, which recovers what the journal has."""
        name = f"shard-{partition:03d}"
        peers = ShardClient(self._transport(), PARTITIONS, events=FrameType.LEGS)
        recovery = Recovery(
            partition, PARTITIONS, journal=self._journal, snapshots=None, chain_key=_CHAIN_KEY, name=name,
            capacity=CAPACITY, windows=self._windows,
        )  # fmt: skip
        shard = Shard(recovery, peers, on_fatal=self.fatal.append)
        await shard.start()
        server = ShardServer(shard, _SECRET, partial(_identity, name))
        self._addresses[partition] = Address("127.0.0.1", await server.start("127.0.0.1"), shard.epoch)
        self._shards[partition] = (shard, server, peers)

    async def stop_shard(self, partition: int) -> None:
        """Stop it; its clients find nobody."""
        if partition in self._shards:
            shard, server, peers = self._shards.pop(partition)
            del self._addresses[partition]
            server.stop_listening()
            await shard.stop()
            await server.close()
            await peers.close()

    async def _listen(self, ends: list[Callable[[], Coroutine[Any, Any, Any]]]) -> None:
        app, routes = create(self.services)
        listener = Listener(app, "127.0.0.1", 0, routes=routes)
        await listener.start()
        self.port = listener.port

        async def end() -> None:
            await listener.drain(5, idle_s=0.0)

        ends.append(end)


def _identity(name: str) -> dict[str, Any]:
    return {"name": name, "pid": 0, "host": "localhost"}
