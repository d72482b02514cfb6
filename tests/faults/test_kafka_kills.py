"""Client load over HTTP on the Kafka journal while its broker, a shard or all of it die: the same reckoning as on
PostgreSQL."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from cluster.data import DataDirectory
from tests.engine import Engine
from tests.faults.test_kills import die_at, die_whole, kill, replaced, role, shard, under_load

pytestmark = [pytest.mark.engine, pytest.mark.timeout(420)]

SEED = 20270
DEADLINE_S = 4.0


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """An engine on Kafka of this module's own, impatient so that an outage is short."""
    failpoints = str(tmp_path_factory.mktemp("failpoints"))
    settings = {"journal": "kafka", "failpoints": failpoints, "deadline_s": str(DEADLINE_S)}
    one = Engine(tmp_path_factory.mktemp("faults") / "var", settings=settings)
    try:
        yield one.start()
    finally:
        one.stop()


async def test_a_killed_broker_loses_no_acknowledged_transfer(engine: Engine) -> None:
    async with under_load(engine, SEED):
        find = role(engine, "kafka")
        old = find()
        assert old
        kill(old)
        await replaced(find, old)
        await asyncio.to_thread(engine.await_ready)
    engine.hold_to_journal()


async def test_while_the_broker_is_away_writes_and_reads_are_refused_in_time_and_service_resumes_by_itself(
    engine: Engine,
) -> None:
    async with under_load(engine, SEED + 1) as load:
        broker = role(engine, "kafka")()
        assert broker
        last_words = [DataDirectory(engine.data).last_words(f"shard-{number:03d}") for number in range(engine.shards)]
        for path in last_words:
            path.unlink(missing_ok=True)
        os.kill(broker, signal.SIGSTOP)  # killed, it would be back at once
        try:
            await until_written(last_words)
            async with client_of(engine) as client:
                answers = await asyncio.gather(
                    client.post("/v1/deposits", json={"account": load.accounts[0], "amount": 1}),
                    *(client.get(f"/v1/accounts/{account}/balance") for account in load.accounts),
                )
            for answer in answers:
                assert answer.status_code == 503, answer.text
                assert int(answer.headers["retry-after"]) > 0
                assert answer.headers["content-type"] == "application/problem+json"
        finally:
            os.kill(broker, signal.SIGCONT)
        await asyncio.to_thread(engine.await_ready)
    assert load.statuses[503] > 0
    engine.hold_to_journal()


async def until_written(last_words: list[Path]) -> None:
    """Return when each shard had an append without an answer, and has ended its process."""
    async with asyncio.timeout(60):
        while not all([await asyncio.to_thread(path.exists) for path in last_words]):  # noqa: ASYNC110 - as below
            await asyncio.sleep(0.1)


def client_of(engine: Engine) -> httpx.AsyncClient:
    """A client that waits a little longer than the engine promises to."""
    headers = {"Authorization": f"Bearer {engine.token()}"}
    return httpx.AsyncClient(base_url=engine.url, headers=headers, timeout=DEADLINE_S + 6, trust_env=False)


async def test_a_killed_shard_loses_no_acknowledged_transfer(engine: Engine) -> None:
    async with under_load(engine, SEED + 2):
        find = shard(engine, "shard-001")
        old = find()
        assert old
        kill(old)
        await replaced(find, old)
    engine.hold_to_journal()


@pytest.mark.parametrize("point", ["debit-durable", "leg-durable"])
async def test_a_shard_killed_in_the_middle_of_a_cross_shard_transfer_finishes_it(engine: Engine, point: str) -> None:
    await die_at(engine, point, SEED + 3)


async def test_an_engine_killed_whole_with_its_broker_starts_again_with_every_acknowledged_centavo(
    engine: Engine,
) -> None:
    await die_whole(engine, SEED + 4)
