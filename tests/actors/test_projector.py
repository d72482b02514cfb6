"""The projector as a Ray actor: it comes back when killed; of a journal that cannot be trusted it says why."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from actors.feed import Publisher
from actors.projection import Limits, Projection
from cluster.ray_node import RayNode
from storage.feed import Feed
from storage.feed_kafka import KafkaSink
from storage.journal.kafka_client import KafkaAddress
from storage.journal.postgres import PostgresJournal
from storage.query_store import QueryStore
from storage.snapshots import SnapshotStore
from tests.actors.projection_history import PARTITIONS, History
from tests.actors.test_projection import KEY, Log, as_the_history_says, journal, log, store, written

__all__ = ["journal", "log", "store"]

pytestmark = [pytest.mark.ray, pytest.mark.slow]


async def make(dsn: str, directory: Path) -> Projection:
    pool = await asyncpg.create_pool(dsn, min_size=1, max_size=4)
    snapshots = SnapshotStore(directory, KEY)
    return Projection(
        PostgresJournal(dsn), QueryStore(pool), snapshots, chain_key=KEY, limits=Limits(snapshot_records=5),
    )  # fmt: skip


async def make_publisher(dsn: str, address: KafkaAddress, topic: str) -> Publisher:
    pool = await asyncpg.create_pool(dsn, min_size=1, max_size=2)
    return Publisher(Feed(pool, PARTITIONS), KafkaSink(address, topic, partitions=2))


async def asked(projector: Any) -> dict[str, Any]:
    """Its statistics, from whichever process it is by now."""
    deadline = time.monotonic() + 60
    while True:
        try:
            found: dict[str, Any] = await asyncio.wait_for(asyncio.wrap_future(projector.stats.remote().future()), 20)
        except Exception:
            if time.monotonic() > deadline:
                raise
            continue
        return found


async def test_it_comes_back_when_killed_and_says_what_is_wrong_with_a_journal(
    ray_node: RayNode, database: str, journal: PostgresJournal, log: Log, store: QueryStore, tmp_path: Path
) -> None:
    import ray

    from actors.projector import ProjectorConfig, start_projector

    history = await written(History(1), log, steps=10)
    projector = start_projector(ProjectorConfig(partial(make, database, tmp_path)))
    pids = []
    for _ in range(2):
        heads = {p: head - 1 for p, head in (await journal.heads()).items()}
        await store.wait_for(heads, time.monotonic() + 60)
        await as_the_history_says(store, history)
        pids.append((await asked(projector))["pid"])
        os.kill(pids[-1], signal.SIGKILL)
        await written(history, log, steps=10)
    (wrong,) = [one for one in history.step(30) if one.partition == 1]
    wrong.results["code"][-1] += 1
    offset = (await log.write([wrong]))[1]
    told = await asked(projector)
    while not told["broken"]:
        told = await asked(projector)
    assert f"partition 1, offset {offset}" in told["broken"]
    assert len({*pids, told["pid"]}) == 3
    ray.kill(projector)


async def test_it_passes_the_events_on_and_says_how_far_it_is(
    ray_node: RayNode, database: str, kafka_address: KafkaAddress, log: Log, store: QueryStore, tmp_path: Path
) -> None:
    """To its end, and with nothing to wait for."""
    import ray

    from actors.projector import ProjectorConfig, start_projector

    await written(History(2), log, steps=10)
    publisher = partial(make_publisher, database, kafka_address, "projector-events")
    projector = start_projector(ProjectorConfig(partial(make, database, tmp_path), publisher), name="publishing")
    told = (await asked(projector))["events"]
    wanted = 0
    while not wanted or not told or told["events"] < wanted or told["late_ns"]:
        told = (await asked(projector))["events"]
        wanted = await store.pool.fetchval("SELECT count(*) FROM query.events")
    assert told == {"events": wanted, "late_ns": 0, "waiting": ""}
    ray.kill(projector)
