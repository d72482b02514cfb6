"""Replicas come, go, die and multiply under load, in a real Ray Serve, and no request is lost that need not be."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import httpx
import psutil
import pytest
from ray import serve

from cluster.ray_node import RayNode
from deployments import serving
from deployments.listener import shared_socket
from deployments.serving import DeployFailed, ReplicasWanted, Spec
from tests.deployments import toll

pytestmark = [pytest.mark.ray, pytest.mark.slow]

HOST = "127.0.0.1"


@pytest.fixture(scope="module")
def node(ray_node: RayNode) -> RayNode:
    """A Ray of our own with Serve."""
    serving.start()
    return ray_node


@pytest.fixture(scope="module")
def spec(node: RayNode) -> Iterator[Spec]:
    """Two replicas. The socket holds their port for the whole module, as the supervisor's does."""
    with shared_socket(HOST, 0) as held:
        spec = Spec(
            "toll",
            toll.create,
            {"version": "1", "directory": str(node.directory)},
            port=held.getsockname()[1],
            replicas_min=2,
            replicas_max=2,
            idle_s=0.3,
            health_period_s=0.5,
        )
        serving.run(spec)
        yield spec


class Load:
    """Keep-alive connections that ask without pause. A refused connection is tried again, as a gateway would; a request
    that was sent and not answered is a failure."""

    def __init__(self, port: int, connections: int, path: str = "/") -> None:
        self.request = f"GET {path} HTTP/1.1\r\nHost: toll\r\n\r\n".encode()
        self.port = port
        self.connections = connections
        self.pids: Counter[int] = Counter()
        self.versions: Counter[str] = Counter()
        self.failures: list[str] = []
        self._stop = asyncio.Event()

    async def __aenter__(self) -> Load:
        self._tasks = [asyncio.create_task(self._ask()) for _ in range(self.connections)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop.set()
        await asyncio.gather(*self._tasks)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while True:
            try:
                return await asyncio.open_connection(HOST, self.port)
            except OSError:
                await asyncio.sleep(0.05)

    async def _ask(self) -> None:
        reader, writer = await self._connect()
        while not self._stop.is_set():
            try:
                writer.write(self.request)
                head, answer = await read_answer(reader)
            except (OSError, asyncio.IncompleteReadError) as error:
                self.failures.append(repr(error))
                head = "connection: close"
            else:
                self.pids[answer["pid"]] += 1
                self.versions[answer["version"]] += 1
            if "connection: close" in head:
                writer.close()
                reader, writer = await self._connect()
            await asyncio.sleep(0.002)  # two cores are shared with what is tested
        writer.close()

    async def until(self, condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
        async with asyncio.timeout(timeout_s):
            while not condition():  # noqa: ASYNC110 - another process makes it true
                await asyncio.sleep(0.02)


async def read_answer(reader: asyncio.StreamReader) -> tuple[str, dict[str, Any]]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    assert head.startswith("http/1.1 200"), head
    length = next(int(line.split(":")[1]) for line in head.split("\r\n") if line.startswith("content-length"))
    return head, json.loads(await reader.readexactly(length))


async def ask(port: int, path: str = "/") -> dict[str, Any]:
    reader, writer = await asyncio.open_connection(HOST, port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: toll\r\nConnection: close\r\n\r\n".encode())
    _, answer = await read_answer(reader)
    writer.close()
    return answer


def replicas(node: RayNode) -> set[int]:
    return {process.pid for process in node.processes() if process.name.startswith("ServeReplica:toll")}


async def test_replicas_share_the_port_under_readable_names_and_nothing_else_listens(node: RayNode, spec: Spec) -> None:
    async with Load(spec.port, 32) as load:
        await load.until(lambda: len(load.pids) == 2)
    assert not load.failures
    assert replicas(node) == set(load.pids)
    assert {p.name for p in node.processes() if p.pid in load.pids} == {"ServeReplica:toll:toll"}
    roles = {process.role for process in node.processes()}
    assert "controller" in roles
    assert "proxy" not in roles
    for process in node.processes():
        for connection in psutil.Process(process.pid).net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN:
                assert connection.laddr.ip in {"127.0.0.1", "::ffff:127.0.0.1"}, process
    answer = await ask(spec.port)
    assert answer["started"], "the application's lifespan ran before the first request"


async def test_an_unchanged_spec_leaves_replicas_alone_and_a_tuned_one_reaches_them_running(
    node: RayNode, spec: Spec
) -> None:
    before = replicas(node)
    await asyncio.to_thread(serving.run, spec)
    await asyncio.to_thread(serving.run, replace(spec, tuning={"color": "blue"}, max_waiting=9))
    assert replicas(node) == before
    assert [(await ask(spec.port))["tuned"] for _ in range(16)] == [{"color": "blue"}] * 16


async def test_a_rolling_update_under_load_loses_no_request_and_closes_what_it_replaced(
    node: RayNode, spec: Spec
) -> None:
    before = replicas(node)
    async with Load(spec.port, 24) as load:
        await load.until(lambda: len(load.pids) == 2)
        await asyncio.to_thread(serving.run, replace(spec, config={**spec.config, "version": "2"}))
        await load.until(lambda: not replicas(node) & before)
        seen = load.versions["1"]
        load.versions["2"] = 0
        await load.until(lambda: load.versions["2"] > 500)
    assert load.failures == []
    assert load.versions["1"] == seen, "an old replica still answers"
    for pid in before:
        assert (node.directory / f"stopped-{pid}").exists(), "its lifespan did not end"
        assert (node.directory / f"closed-{pid}").exists(), "it was not closed"


async def test_a_killed_replica_is_replaced_by_itself_while_the_other_goes_on(node: RayNode, spec: Spec) -> None:
    async with Load(spec.port, 24) as load:
        await load.until(lambda: len(load.pids) == 2)
        victim, survivor = load.pids
        os.kill(victim, 9)
        await load.until(lambda: not psutil.pid_exists(victim) or victim not in replicas(node))
        seen = load.pids[survivor]
        await load.until(lambda: load.pids[survivor] > seen + 200)
        # The load's connections are all with the survivor now; new ones find the replacement once it listens.
        async with asyncio.timeout(60):
            while (await ask(spec.port))["pid"] in {victim, survivor}:
                pass
    assert len(load.failures) <= 24, "no more than what was in flight at the victim"


async def test_a_replica_that_says_it_is_ill_is_replaced_without_losing_a_request(node: RayNode, spec: Spec) -> None:
    ill = min(replicas(node))
    async with Load(spec.port, 16) as load:
        (node.directory / f"ill-{ill}").touch()
        await load.until(lambda: ill not in replicas(node))
        await load.until(lambda: len(replicas(node)) == 2)
    assert load.failures == []


async def test_what_was_counted_shows_in_rays_metrics(node: RayNode, spec: Spec) -> None:
    targets = json.loads((node.sessions / "prom_metrics_service_discovery.json").read_text())[0]["targets"]
    wanted = re.compile(rb'ray_razao_http_requests_total\{[^}]*application="toll"[^}]*status="200"[^}]*\} [1-9]')
    names = [b"seconds_bucket", b"seconds_sum", b"in_progress", b"waiting", b"oldest_wait_seconds"]
    async with Load(spec.port, 4), asyncio.timeout(90), httpx.AsyncClient() as client:
        found = b""
        # Ray collects each metric in its own time.
        while not wanted.search(found) or not all(b"ray_razao_http_" + name in found for name in names):
            pages = [await client.get(f"http://{target}/metrics") for target in targets]
            found = b"".join(page.content for page in pages)
            await asyncio.sleep(0.5)


async def test_an_application_that_does_not_start_says_why_and_those_deployed_with_it_serve(
    node: RayNode, spec: Spec
) -> None:
    directory = node.directory / "log"
    other = replace(spec, name="other", port=0, route_prefix=None, log_directory=str(directory))
    specs = [spec, replace(other, factory=toll.broken, replicas_min=1, replicas_max=1)]
    with pytest.raises(
        DeployFailed, match=r"^the application other does not start: RuntimeError: the store of \*\*\* is"
    ):
        await asyncio.to_thread(serving.run_all, specs)
    assert (await ask(spec.port))["version"] == "1"
    await asyncio.to_thread(serve.delete, "other")
    lines = [json.loads(line) for line in (directory / "other.log").read_text().splitlines()]
    assert {(line["application"], line["message"]) for line in lines} == {("other", "other does not start")}


async def test_load_adds_replicas_and_its_end_removes_them_without_losing_a_request(node: RayNode, spec: Spec) -> None:
    elastic = replace(
        spec,
        config={**spec.config, "version": "3"},
        replicas_min=1,
        replicas_max=3,
        target_in_progress=4,
        look_back_s=2,
        upscale_delay_s=0.5,
        downscale_delay_s=1,
    )
    await asyncio.to_thread(serving.run, elastic)
    async with Load(spec.port, 4) as trickle:
        async with Load(spec.port, 40, "/slow") as burst:
            await trickle.until(lambda: len(replicas(node)) == 3)
        await trickle.until(lambda: len(replicas(node)) == 1)
    assert trickle.failures == []
    assert burst.failures == []


async def test_serves_own_proxy_reaches_the_same_application_below_its_prefix(node: RayNode, spec: Spec) -> None:
    await asyncio.to_thread(serve.shutdown)
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = probe.getsockname()[1]
    await asyncio.to_thread(lambda: serving.start(proxy_port=port))
    behind = replace(spec, port=0, route_prefix="/toll", replicas_min=1, replicas_max=1)
    await asyncio.to_thread(serving.run, behind)
    answer = await ask(port, "/toll/booth")
    assert {answer["pid"]} == replicas(node)
    # What a listener says below the same prefix, see test_listener.
    assert (answer["path"], answer["root_path"], answer["started"]) == ("/toll/booth", "/toll", True)
    with pytest.raises(ConnectionRefusedError):
        await ask(spec.port)


def context(in_progress: dict[str, float], oldest_wait_ms: dict[str, float], current: int = 2) -> Any:
    return SimpleNamespace(
        aggregated_metrics={"in_progress": in_progress, "oldest_wait_ms": oldest_wait_ms},
        current_num_replicas=current,
        target_num_replicas=current,
        capacity_adjusted_min_replicas=1,
        capacity_adjusted_max_replicas=4,
    )


@pytest.mark.parametrize(
    ("in_progress", "oldest_wait_ms", "wanted"),
    [
        ({}, {}, 2),  # nobody reported
        ({"a": 0, "b": 0}, {}, 1),
        ({"a": 10, "b": 10}, {"a": 1, "b": 2}, 2),
        ({"a": 15, "b": 10}, {"a": 1, "b": 2}, 3),
        ({"a": 1, "b": 1}, {"a": 1, "b": 51}, 3),
        ({"a": 500, "b": 500}, {"a": 900, "b": 2}, 4),
    ],
)
def test_the_policy_follows_requests_in_progress_and_the_oldest_wait(
    in_progress: dict[str, float], oldest_wait_ms: dict[str, float], wanted: int
) -> None:
    assert ReplicasWanted(10, 50)(context(in_progress, oldest_wait_ms)) == (wanted, {})
