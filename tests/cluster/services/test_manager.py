"""`razao services` as an operator uses it: real servers that outlive the command, found again, ended exactly.

Keycloak's part of it is beside what else needs one: tests/integration/test_keycloak.py.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pymongo
import pytest
from aiokafka import AIOKafkaProducer

# The first start on a machine downloads and builds what the servers consist of.
pytestmark = pytest.mark.timeout(1200)

_CLI = [sys.executable, "-c", "from cluster.cli import main; main()", "services"]


def _run(*words: str, data: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [*_CLI, *words, "--data", str(data)]
    given = {**os.environ, **(env or {})}
    return subprocess.run(command, env=given, check=False, capture_output=True, text=True, timeout=900)


def _states(*words: str, data: Path) -> dict[str, dict[str, Any]]:
    done = _run(*words, "--json", data=data)
    assert done.returncode in {0, 3}, done.stderr
    return {state["name"]: state for state in json.loads(done.stdout)["services"]}


def _pids(states: dict[str, dict[str, Any]]) -> set[int]:
    return {pid for state in states.values() for pid in state["pids"].values()}


@pytest.fixture
def data() -> Iterator[Path]:
    """A data directory whose servers are ended afterwards."""
    directory = Path(tempfile.mkdtemp(prefix="rz-"))
    yield directory
    _run("down", data=directory)
    shutil.rmtree(directory)


async def test_servers_outlive_their_command_keep_their_port_and_data_through_a_kill_and_end_when_told(
    data: Path, tmp_path: Path
) -> None:
    first = _states("up", data=data)
    assert set(first) == {"kafka", "mongo"}
    assert all(psutil.pid_exists(pid) for pid in _pids(first))
    with pymongo.MongoClient[dict[str, Any]](first["mongo"]["settings"]["RAZAO_MONGO_URL"]) as mongo:
        mongo.trace.people.insert_one({"_id": 7, "purchases": [1, 2]})
    bystander = _states("up", "kafka", data=tmp_path)
    try:
        assert _states("up", data=data) == first
        # Everything dies at once, as by the kernel's hand.
        for pid in _pids(first):
            os.kill(pid, signal.SIGKILL)
        psutil.wait_procs([psutil.Process(pid) for pid in _pids(first) if psutil.pid_exists(pid)], timeout=10)
        gone = _run("status", "--json", data=data)
        assert gone.returncode == 3
        assert not any(state["running"] for state in json.loads(gone.stdout)["services"])

        again = _states("up", data=data)
        assert {name: state["port"] for name, state in again.items()} == {
            name: state["port"] for name, state in first.items()
        }
        with pymongo.MongoClient[dict[str, Any]](again["mongo"]["settings"]["RAZAO_MONGO_URL"]) as mongo:
            assert mongo.trace.people.find_one({"_id": 7}) == {"_id": 7, "purchases": [1, 2]}
        producer = AIOKafkaProducer(bootstrap_servers=again["kafka"]["settings"]["RAZAO_KAFKA_BOOTSTRAP"])
        await producer.start()
        await producer.stop()

        assert _run("down", "kafka", data=data).stdout == "ended: kafka\n"
        assert _run("down", data=data).stdout == "ended: mongo\n"
        assert _run("down", data=data).stdout == "nothing ran\n"
        assert not any(psutil.pid_exists(pid) for pid in _pids(again))
        assert _states("status", data=tmp_path) == bystander
    finally:
        _run("down", data=tmp_path)
    assert not any(psutil.pid_exists(pid) for pid in _pids(bystander))


def test_every_process_of_it_listens_on_loopback_only(data: Path) -> None:
    states = _states("up", "mongo", data=data)
    ports = set()
    for pid in _pids(states):
        for connection in psutil.Process(pid).net_connections():
            if connection.status == psutil.CONN_LISTEN:
                assert connection.laddr.ip.removeprefix("::ffff:") == "127.0.0.1"
                ports.add(connection.laddr.port)
    assert states["mongo"]["port"] in ports
    assert len(ports) == 2


def test_kafka_that_runs_open_is_not_said_to_be_secure(data: Path) -> None:
    assert "RAZAO_KAFKA_SASL_PASSWORD" not in _states("up", "kafka", data=data)["kafka"]["settings"]
    refused = _run("up", "kafka", "--secure", data=data)
    assert refused.returncode == 1
    assert "end it first: razao services down kafka" in refused.stderr
    _run("down", data=data)
    settings = _states("up", "kafka", "--secure", data=data)["kafka"]["settings"]
    assert settings["RAZAO_KAFKA_SECURITY_PROTOCOL"] == "SASL_SSL"
    assert settings["RAZAO_KAFKA_SASL_MECHANISM"] == "SCRAM-SHA-512"
    assert Path(settings["RAZAO_KAFKA_SSL_CA"]).exists()
    # Remembered, until something else is asked.
    assert _states("up", "kafka", data=data)["kafka"]["settings"] == settings


def test_a_port_that_another_has_taken_meanwhile_is_named_with_the_way_out(data: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = int(other.getsockname()[1])
        file = data / "services" / "kafka" / "service.json"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps({"port": port, "secure": False, "realms": None}))
        refused = _run("up", "kafka", data=data)
    assert refused.returncode == 1
    assert f"port {port} is taken" in refused.stderr
    assert f"remove {file}" in refused.stderr


def test_without_a_network_it_says_what_is_missing(data: Path, tmp_path: Path) -> None:
    nowhere = {
        "XDG_CACHE_HOME": str(tmp_path),
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "https_proxy": "http://127.0.0.1:9",
    }
    refused = _run("up", "kafka", data=data, env=nowhere)
    assert refused.returncode == 1
    assert "cannot download org." in refused.stderr
    assert "is the network there?" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_directory_where_nothing_was_started_has_nothing_to_show_or_end(data: Path) -> None:
    shown = _run("status", data=data)
    assert (shown.returncode, shown.stdout) == (0, "no services were started here\n")
    assert _run("down", data=data).stdout == "nothing ran\n"
    assert not list(data.iterdir())
