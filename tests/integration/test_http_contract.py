"""The HTTP contract on the whole engine: through the gateway, over each way from client to replica to shard."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.contract.http_engine import LiveEngine
from tests.contract.http_events import EventsSuite
from tests.contract.http_suite import HttpSuite, world
from tests.engine import Engine

__all__ = ["world"]

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

WAYS = {
    "listener-tcp": {"ingress": "listener", "transport": "tcp"},
    "serve-ray": {"ingress": "serve", "transport": "ray"},
}


@pytest.fixture(scope="module", params=WAYS)
def live_engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveEngine]:
    """One engine for each way in."""
    engine = Engine(tmp_path_factory.mktemp("contract") / "var", settings=WAYS[request.param])
    try:
        engine.start()
        yield LiveEngine(engine.url, engine.token)
    finally:
        engine.stop()


class TestHttp(HttpSuite):
    """All of it."""


class TestEvents(EventsSuite):
    """The same."""
