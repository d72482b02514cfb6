"""The Ray node is ours alone: on loopback, behind its token, beside another one, and gone without a trace."""

from __future__ import annotations

import http.client
import os
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.ray_node import RayNode, RayNodeError

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def node() -> Iterator[RayNode]:
    directory = Path(tempfile.mkdtemp(prefix="rz-"))
    node = RayNode(directory, cpus=2)
    try:
        node.start()
        yield node
    finally:
        node.remove()


def roles(node: RayNode) -> set[str]:
    return {process.role for process in node.processes()}


def listeners(node: RayNode) -> dict[int, str]:
    """Port → address of every TCP socket that the node's processes listen on."""
    found = {}
    for process in node.processes():
        for connection in psutil.Process(process.pid).net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN:
                found[connection.laddr.port] = connection.laddr.ip
    return found


def wait_until_gone(pids: set[int], timeout_s: float) -> set[int]:
    """`pids` that still live after `timeout_s`."""
    _, alive = psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=timeout_s)
    return {process.pid for process in alive if process.status() != psutil.STATUS_ZOMBIE}


def test_every_part_runs_and_is_told_by_its_role(node: RayNode) -> None:
    assert {"node", "gcs", "raylet", "dashboard", "agent"} <= roles(node)


def test_everything_listens_on_loopback_only_and_no_client_server_runs(node: RayNode) -> None:
    found = listeners(node)
    assert set(found.values()) <= {"127.0.0.1", "::ffff:127.0.0.1"}
    assert not {10001, 8265, 6379, 52365} & set(found), "a default port would collide with another Ray"


def test_the_directory_and_the_token_are_private(node: RayNode) -> None:
    assert stat.S_IMODE(node.directory.stat().st_mode) == 0o700
    assert stat.S_IMODE(node.token_path.stat().st_mode) == 0o600
    assert len(node.token_path.read_text()) == 64


def test_the_dashboard_answers_only_with_the_token(node: RayNode) -> None:
    host, port = node.dashboard_url.removeprefix("http://").split(":")
    token = node.token_path.read_text()
    for headers, status in (({}, 401), ({"Authorization": f"Bearer {token}"}, 200)):
        connection = http.client.HTTPConnection(host, int(port), timeout=10)
        connection.request("GET", "/api/version", headers=headers)
        assert connection.getresponse().status == status
        connection.close()


def test_a_detached_actor_outlives_the_driver_that_made_it_at_niceness_zero(node: RayNode) -> None:
    import ray

    @ray.remote(num_cpus=0.1)
    class Counter:
        def __init__(self) -> None:
            self.count = 0

        def add(self) -> tuple[int, int]:
            self.count += 1
            return self.count, os.getpriority(os.PRIO_PROCESS, 0)

    node.join()
    try:
        counter = Counter.options(name="counter", lifetime="detached").remote()  # type: ignore[attr-defined]
        assert ray.get(counter.add.remote()) == (1, os.getpriority(os.PRIO_PROCESS, 0))
    finally:
        node.leave()
    node.join()
    try:
        again: Any = ray.get_actor("counter")
        assert ray.get(again.add.remote())[0] == 2
        assert "actor" in roles(node)
        assert set(listeners(node).values()) <= {"127.0.0.1", "::ffff:127.0.0.1"}
        ray.kill(again)
    finally:
        node.leave()


def test_a_second_node_with_a_long_directory_runs_beside_the_first_and_leaves_nothing(node: RayNode) -> None:
    base = Path(tempfile.mkdtemp(prefix="rz-"))
    other = RayNode(base / ("long" * 25), cpus=1)
    try:
        other.start()
        assert other.address != node.address
        mine, theirs = {p.pid for p in node.processes()}, {p.pid for p in other.processes()}
        assert theirs
        assert not mine & theirs
        assert RayNode(other.directory).address == other.address, "a process that did not start it finds it"
        started = time.monotonic()
        other.remove()
        assert time.monotonic() - started < 5
        assert not wait_until_gone(theirs, 1)
        assert not other.sessions.parent.exists()
        assert node.running
        assert {p.pid for p in node.processes()} >= mine
    finally:
        other.remove()
        base.rmdir()


def test_a_node_whose_starter_was_killed_is_cleared_by_the_next_start(node: RayNode) -> None:
    before = {process.pid for process in node.processes()}
    starter = next(process.pid for process in node.processes() if process.role == "node")
    os.kill(starter, 9)
    # A second object on the directory stands for the process that comes after the killed one.
    later = RayNode(node.directory, cpus=2)
    later.start()
    try:
        assert not wait_until_gone(before, 1)
        assert not node.running
        assert later.running
    finally:
        later.stop()
    assert later.processes() == []


def test_a_start_that_fails_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    broken = RayNode(tmp_path / "node", object_store_bytes=1)
    try:
        with pytest.raises(RayNodeError, match="object store"):
            broken.start()
        assert broken.processes() == []
    finally:
        broken.remove()
