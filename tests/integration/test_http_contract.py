"""The HTTP contract on the whole engine: through the gateway, over each way from client to replica to shard."""

from __future__ import annotations

import pytest

from cluster.data import DataDirectory
from tests.contract.http_engine import LiveEngine
from tests.contract.http_events import EventsSuite
from tests.contract.http_suite import HttpSuite, world
from tests.engine import Engine

__all__ = ["world"]

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]


@pytest.fixture(scope="module", params=["listener-tcp", "serve-ray"])
def live_engine(request: pytest.FixtureRequest) -> LiveEngine:
    """One engine for each way in: the one that most tests share, and the one with the tiers."""
    one: Engine = request.getfixturevalue({"listener-tcp": "engine", "serve-ray": "tiers_engine"}[request.param])
    running = DataDirectory(one.data).running()
    assert running is not None
    assert f"{running.ingress}-{running.transport}" == request.param
    return LiveEngine(one.url, one.token)


class TestHttp(HttpSuite):
    """All of it."""


class TestEvents(EventsSuite):
    """The same."""
