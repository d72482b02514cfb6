"""The HTTP contract against an engine in this process: everything real but Ray and the gateway."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.postgres import PostgresServer
from tests.contract.http_engine import Engine, LiveEngine, new_database
from tests.contract.http_events import EventsSuite
from tests.contract.http_suite import HttpSuite, world

__all__ = ["world"]


@pytest.fixture(scope="module")
def live_engine(postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveEngine]:
    """One engine for the module."""
    engine = Engine(new_database(postgres_server, "http_contract"), Path(tmp_path_factory.mktemp("engine")))
    yield engine.start()
    engine.stop()


class TestHttp(HttpSuite):
    """All of it."""


class TestEvents(EventsSuite):
    """The same."""
