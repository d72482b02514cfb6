"""What tests of every layer share: servers of PostgreSQL, Kafka and MongoDB per session, a fresh database per test."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import asyncpg
import pytest

from cluster.postgres import PostgresServer
from cluster.ray_node import RayNode
from cluster.services.kafka import KafkaServer
from cluster.services.mongo import MongoServer
from storage.journal.kafka_client import KafkaAddress

_numbers: Final = itertools.count()
os.environ.setdefault("RAZAO_TIERS", "")
"""Engines that tests start are without the tiers, but for those that are about them: start-up is dear."""


def free_port() -> int:
    """A TCP port on loopback that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server(Protocol):
    """What every server of ours can do."""

    def start(self) -> None:
        """Return when it serves."""

    def stop(self) -> None:
        """End it."""


S = TypeVar("S", bound=Server)


@contextlib.contextmanager
def running(make: Callable[[Path], S]) -> Iterator[S]:
    """The server that `make` makes in a directory of its own: started here, stopped and removed at the end."""
    directory = Path(tempfile.mkdtemp(prefix="rz-"))
    server = make(directory)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """The session's server. A test that stops or kills servers starts its own."""
    # Making and dropping databases is what tests do most; flushing those files tests nothing.
    with running(lambda place: PostgresServer(place, free_port(), settings={"fsync": "off"})) as server:
        yield server


@pytest.fixture(scope="session")
def postgres_dsn(postgres_server: PostgresServer) -> str:
    """The session server's own database. Tests that write should take `database`."""
    return postgres_server.dsn


@contextlib.contextmanager
def own_database(server: PostgresServer, template: str = "template1") -> Iterator[str]:
    """The DSN of a new database, a copy of `template`; dropped afterwards, whoever is still connected."""
    name = f"test_{next(_numbers)}"
    # The files are copied: through the log, which is PostgreSQL's default, it takes three times as long.
    statement = f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY"
    outside_loop(lambda: _execute(server.dsn, statement))
    yield server.dsn_of(name)
    outside_loop(lambda: _execute(server.dsn, f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture
def database(postgres_server: PostgresServer) -> Iterator[str]:
    """An empty database of the test's own."""
    with own_database(postgres_server) as dsn:
        yield dsn


@pytest.fixture(scope="session")
def kafka_server() -> Iterator[KafkaServer]:
    """The session's broker. A test that stops or kills brokers starts its own."""
    lazy = {"log.flush.interval.messages": "10000"}
    with running(lambda place: KafkaServer(place, free_port(), settings=lazy)) as server:
        yield server


@pytest.fixture(scope="session")
def kafka_address(kafka_server: KafkaServer) -> KafkaAddress:
    """Where the session's broker is. Tests take topics of their own."""
    return KafkaAddress(kafka_server.bootstrap)


@pytest.fixture(scope="session")
def mongo_server() -> Iterator[MongoServer]:
    """The session's server of MongoDB's protocol. Tests take databases of their own; who stops servers starts one."""
    with running(lambda place: MongoServer(place, free_port())) as server:
        yield server


@pytest.fixture
def mongo_database() -> str:
    """The name of a database of the test's own."""
    return f"test_{next(_numbers)}"


def outside_loop(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run it in a thread: fixtures are plain functions, so that tests with and without a loop can take them."""
    with ThreadPoolExecutor(max_workers=1) as thread:
        thread.submit(lambda: asyncio.run(work())).result()


async def _execute(dsn: str, statement: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


@pytest.fixture(scope="module")
def ray_node() -> Iterator[RayNode]:
    """A Ray node of the module's own, which this process has joined."""
    node = RayNode(Path(tempfile.mkdtemp(prefix="rz-")), cpus=2)
    try:
        node.start()
        node.join()
        yield node
    finally:
        node.leave()
        node.remove()
