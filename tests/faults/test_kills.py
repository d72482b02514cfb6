"""Client load over HTTP while the engine's parts die: nothing acknowledged is lost, nothing applies twice."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.engine import Engine
from tests.faults.load import Load

pytestmark = [pytest.mark.engine, pytest.mark.timeout(420)]

SEED = 20260
ANSWERS = 150
"""Transfers that must succeed between one fault and the next: the engine was really serving."""


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """An engine of this module's own, since its tests kill parts of it."""
    failpoints = tmp_path_factory.mktemp("failpoints")
    one = Engine(tmp_path_factory.mktemp("faults") / "var", settings={"failpoints": str(failpoints)})
    try:
        yield one.start()
    finally:
        one.stop()


@asynccontextmanager
async def under_load(engine: Engine, seed: int) -> AsyncIterator[Load]:
    """Load that runs for as long as the block does, reckoned at its end."""
    load = Load(engine.url, engine.token(), seed)
    await load.open_accounts(12)
    running = asyncio.create_task(load.run())
    try:
        await load.at_least(ANSWERS)
        yield load
        await load.at_least(ANSWERS)
    finally:
        load.stop()
        await running
    counts = await load.reckon()
    print(f"seed {seed}: {dict(load.statuses)} -> {counts}")
    assert counts["settled"] >= 2 * ANSWERS


def kill(pid: int) -> None:
    """A death without a last word."""
    os.kill(pid, signal.SIGKILL)


async def replaced(find: Callable[[], int | None], old: int, timeout_s: float = 60) -> int:
    """The pid of whoever serves in `old`'s place."""
    async with asyncio.timeout(timeout_s):
        while True:
            new = await asyncio.to_thread(find)
            if new is not None and new != old:
                return new
            await asyncio.sleep(0.2)


def role(engine: Engine, name: str) -> Callable[[], int | None]:
    """Finds the first process of a role."""
    return lambda: next(iter(engine.pids(name).values()), None)


def replica(engine: Engine) -> Callable[[], int | None]:
    """Finds a replica of payments; other applications have theirs."""

    def find() -> int | None:
        found = engine.pids("replica").items()
        return next((pid for name, pid in found if name.startswith("ServeReplica:payments:")), None)

    return find


def shard(engine: Engine, name: str) -> Callable[[], int | None]:
    """Finds the shard that serves under a name."""

    def find() -> int | None:
        return next((one["pid"] for one in engine.look()["shards"] if one["name"] == name and one["serving"]), None)

    return find


async def die_at(engine: Engine, point: str, seed: int) -> None:
    """Under load a shard dies at a fail point; what it was at is finished, and the books are right."""
    armed = Path(engine.environment["RAZAO_FAILPOINTS"]) / point
    async with under_load(engine, seed) as load:
        armed.touch()
        async with asyncio.timeout(60):
            while armed.exists():  # noqa: ASYNC110 - another process removes it as it dies
                await asyncio.sleep(0.05)
        await load.at_least(ANSWERS)
    engine.hold_to_journal()


async def die_whole(engine: Engine, seed: int) -> None:
    """Under load everything dies at once and is started again; every answer holds, and the books are right."""
    load = Load(engine.url, engine.token(), seed)
    await load.open_accounts(12)
    running = asyncio.create_task(load.run())
    await load.at_least(ANSWERS)
    await asyncio.to_thread(engine.kill_everything)
    load.stop()
    await running
    await asyncio.to_thread(engine.start)
    load.url = engine.url
    counts = await load.reckon()
    print(f"seed {seed}: {dict(load.statuses)} -> {counts}")
    assert counts["settled"] >= ANSWERS
    engine.hold_to_journal()


async def test_a_killed_shard_loses_no_acknowledged_transfer(engine: Engine) -> None:
    async with under_load(engine, SEED) as load:
        for name in ("shard-000", "shard-001"):
            find = shard(engine, name)
            old = find()
            assert old
            kill(old)
            await replaced(find, old)
            await load.at_least(ANSWERS)
    engine.hold_to_journal()


async def test_a_killed_replica_loses_no_acknowledged_transfer(engine: Engine) -> None:
    async with under_load(engine, SEED + 1) as load:
        find = replica(engine)
        old = find()
        assert old
        kill(old)
        await replaced(find, old)
    assert load.statuses[503] + load.statuses[0] > 0  # what it was at went to no other one: it is unsure
    engine.hold_to_journal()


async def test_a_killed_gateway_comes_back_on_its_port(engine: Engine) -> None:
    async with under_load(engine, SEED + 2):
        find = role(engine, "gateway")
        old = find()
        assert old
        kill(old)
        await replaced(find, old)
    engine.hold_to_journal()


async def test_a_killed_database_loses_no_acknowledged_transfer(engine: Engine) -> None:
    async with under_load(engine, SEED + 3):
        find = role(engine, "postgres")
        old = find()
        assert old
        kill(old)
        await replaced(find, old)
        await asyncio.to_thread(engine.await_ready)
    engine.hold_to_journal()


async def test_a_killed_projector_projects_every_entry_once(engine: Engine) -> None:
    async with under_load(engine, SEED + 4):
        find = role(engine, "projector")
        old = find()
        assert old
        kill(old)
        await replaced(find, old)
    engine.hold_to_journal()


async def test_a_stopped_shard_is_replaced_and_does_no_harm_when_it_goes_on(engine: Engine) -> None:
    async with under_load(engine, SEED + 5):
        find = shard(engine, "shard-001")
        old = find()
        assert old
        os.kill(old, signal.SIGSTOP)
        try:
            await replaced(find, old)
        finally:
            try:
                os.kill(old, signal.SIGCONT)
            except ProcessLookupError:
                print(f"the stopped shard {old} was ended before it could go on")
    engine.hold_to_journal()


@pytest.mark.parametrize(
    "point",
    [
        "debit-applied",
        "debit-durable",
        "leg-applied",
        "leg-durable",
        "leg-answered",
        "settle-applied",
        "settle-durable",
    ],
)
async def test_a_shard_killed_in_the_middle_of_a_cross_shard_transfer_finishes_it(engine: Engine, point: str) -> None:
    await die_at(engine, point, SEED + 6)


async def test_a_rolling_update_under_load_loses_no_request(engine: Engine) -> None:
    async with under_load(engine, SEED + 8) as load:
        old = replica(engine)()
        assert old
        engine.environment["RAZAO_HOLD_DEFAULT_S"] = "86400"
        done = await asyncio.to_thread(engine.razao, "redeploy")
        assert "every replica serves" in done.stdout
        await replaced(replica(engine), old)
    assert set(load.statuses) <= {201, 422}, load.statuses
    engine.hold_to_journal()


async def test_an_engine_killed_whole_starts_again_with_every_acknowledged_centavo(engine: Engine) -> None:
    await die_whole(engine, SEED + 7)
