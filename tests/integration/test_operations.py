"""The engine as its operator meets it: start, status, stop, leftovers, two side by side, verify, rebuild, the demo."""

from __future__ import annotations

import ipaddress
import json
import os
import signal
import socket
import ssl
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from cluster.data import DataDirectory
from cluster.postgres import PostgresServer
from cluster.processes import alive, free_ports, listing, owned
from cluster.ray_node import RayNode
from tests.engine import RAZAO, Engine

pytestmark = [pytest.mark.engine, pytest.mark.timeout(400)]


def processes_of(engine: Engine) -> set[int]:
    """Every live process of an engine but its supervisor."""
    data = DataDirectory(engine.data)
    return set(owned(data.secrets().engine)) | {one.pid for one in RayNode(data.ray).processes()}


def test_up_says_where_everything_is(engine: Engine) -> None:
    output = engine.output()
    assert f"razao ready on {engine.url}" in output
    assert "Ray dashboard on http://127.0.0.1:" in output
    assert "log in with the token in" in output


def test_status_tells_every_part(engine: Engine) -> None:
    found = engine.status()
    assert found["ready"] is True
    assert found["url"] == engine.url
    assert found["journal"] == "postgres"
    assert [shard["name"] for shard in found["shards"]] == ["shard-000", "shard-001"]
    for shard in found["shards"]:
        assert {"name", "pid", "epoch", "offset", "accounts", "transfers"} <= shard.keys()
        assert psutil.pid_exists(shard["pid"])
    assert isinstance(found["projection"]["lag"], int)
    roles = {one["role"] for one in found["processes"]}
    assert {"supervisor", "raylet", "gcs", "shard", "projector", "replica", "gateway", "postgres"} <= roles
    supervisor = [one["pid"] for one in found["processes"] if one["role"] == "supervisor"]
    assert supervisor == [engine.pid]
    for one in found["processes"]:
        assert psutil.pid_exists(one["pid"]), one


def test_status_is_readable_by_people(engine: Engine) -> None:
    text = engine.razao("status").stdout
    assert "ready" in text
    assert "shard-001" in text


def test_everything_listens_on_loopback_alone(engine: Engine) -> None:
    ours = processes_of(engine)
    listening = [one for one in psutil.net_connections("inet") if one.status == psutil.CONN_LISTEN and one.pid in ours]
    assert len(listening) > 5
    for one in listening:
        address = ipaddress.ip_address(one.laddr.ip.removeprefix("::ffff:"))
        assert address.is_loopback, (one, psutil.Process(one.pid).cmdline())


def test_the_gateway_is_alone_on_the_public_ports(engine: Engine) -> None:
    port = httpx.URL(engine.url).port
    gateway = next(iter(engine.pids("gateway").values()))
    listening = psutil.net_connections("inet")
    holders = {one.pid for one in listening if one.status == psutil.CONN_LISTEN and one.laddr.port == port}
    assert holders == {gateway}


def test_https_serves_beside_http(engine: Engine) -> None:
    running = DataDirectory(engine.data).running()
    assert running is not None
    assert running.tls_url is not None
    context = ssl.create_default_context(cafile=str(engine.data / "tls" / "localhost.crt"))
    answer = httpx.get(f"{running.tls_url}/healthz", verify=context, trust_env=False)
    assert answer.status_code == 200


def test_a_replica_reached_directly_refuses(engine: Engine) -> None:
    replica = next(iter(engine.pids("replica").values()))
    held = [one.laddr for one in psutil.Process(replica).net_connections("tcp") if one.status == psutil.CONN_LISTEN]
    refused = 0
    for address in held:
        try:
            answer = httpx.get(f"http://127.0.0.1:{address.port}/v1/accounts", timeout=3, trust_env=False)
        except httpx.HTTPError:
            continue  # Ray's own, not HTTP
        assert answer.status_code == 403, answer.text
        refused += 1
    assert refused


def test_the_dashboard_wants_the_token_and_knows_our_names(engine: Engine) -> None:
    running = DataDirectory(engine.data).running()
    assert running is not None
    assert running.dashboard_token_file is not None
    with httpx.Client(base_url=running.dashboard_url, timeout=30, trust_env=False) as client:
        assert client.get("/api/v0/actors").status_code in {401, 403}
        token = Path(running.dashboard_token_file).read_text().strip()
        client.headers["Authorization"] = f"Bearer {token}"
        actors = client.get("/api/v0/actors", params={"detail": True, "limit": 1000}).json()
        names = {one["name"] for one in actors["data"]["result"]["result"]}
        assert {"shard-000", "shard-001", "projector", "directory"} <= names
        applications = client.get("/api/serve/applications/").json()["applications"]
        assert applications["payments"]["status"] == "RUNNING"


def test_secrets_are_for_their_owner_alone(engine: Engine) -> None:
    for path in ("secrets.json", "keys/signing-key.pem", "run/engine.json", "run/gateway.cfg", "ray/token"):
        mode = stat.S_IMODE((engine.data / path).stat().st_mode)
        assert mode & 0o077 == 0, f"{path} has mode {mode:o}"


def test_a_second_up_is_refused_and_harms_nothing(engine: Engine) -> None:
    done = subprocess.run(
        [RAZAO, "up", "--data", str(engine.data), "--port", "0", "--tls-port", "0"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert f"an engine already runs on {engine.data}" in done.stderr
    assert str(engine.pid) in done.stderr
    assert engine.status()["ready"] is True


def test_a_taken_port_is_named(engine: Engine, tmp_path: Path) -> None:
    port = str(httpx.URL(engine.url).port)
    done = subprocess.run(
        [RAZAO, "up", "--data", str(tmp_path / "var"), "--port", port, "--tls-port", "0"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert f"port {port}" in done.stderr
    assert "--port" in done.stderr


def test_the_token_command_prints_the_token_alone(engine: Engine) -> None:
    done = engine.razao("token", "--sub", "somebody", "--scope", "ledger:read")
    assert done.stdout.count(".") == 2
    assert done.stdout.strip().count("\n") == 0
    answer = httpx.get(f"{engine.url}/v1/accounts", headers={"Authorization": f"Bearer {done.stdout.strip()}"})
    assert answer.status_code == 200, answer.text


def test_the_demo_moves_money_and_can_run_again(engine: Engine) -> None:
    for _ in range(2):
        text = engine.razao("demo").stdout
        assert "R$ 250,50, settled" in text
        assert "refused, /problems/insufficient-funds" in text
        assert "every centavo is where it belongs" in text
        assert "he opens an account under her CPF: refused, 403 /problems/unproven" in text


def test_verify_agrees_with_a_healthy_engine(engine: Engine) -> None:
    report = engine.verify()
    assert report["ok"] is True
    assert report["differences"] == []
    assert any("live accounts" in what for what in report["checked"])
    assert "query store" in report["checked"]


def test_rebuild_makes_the_same_history_again(engine: Engine) -> None:
    with engine.client() as client:
        owner = {"tax_id": "52998224725", "name": "Historian"}
        account = client.post("/v1/accounts", json={"owner": owner}).json()["id"]
        for amount in (100, 20, 3):
            answer = client.post("/v1/deposits", json={"account": account, "amount": amount})
            assert answer.status_code == 201
        headers = {"Razao-Position": answer.headers["Razao-Position"]}
        before = client.get(f"/v1/accounts/{account}/entries", headers=headers).json()
        assert len(before["items"]) == 3
        assert "made them again" in engine.razao("rebuild").stdout
        assert client.get(f"/v1/accounts/{account}/entries", headers=headers).json() == before
        assert client.get(f"/v1/accounts/{account}").json()["owner"]["name"] == "Historian"
    engine.verify()


def test_verify_finds_a_falsified_query_store(engine: Engine) -> None:
    psql(engine, "UPDATE query.entries SET balance = balance + 1 WHERE at = (SELECT max(at) FROM query.entries)")
    done = engine.razao("verify", "--json", check=False)
    assert done.returncode == 1
    assert json.loads(done.stdout)["differences"]
    engine.razao("rebuild")
    engine.verify()


def psql(engine: Engine, statement: str) -> None:
    """Run a statement in the running engine's database."""
    import asyncio

    import asyncpg

    async def run() -> None:
        running = DataDirectory(engine.data).running()
        assert running is not None
        connection = await asyncpg.connect(running.dsn)
        await connection.execute(statement)
        await connection.close()

    asyncio.run(run())


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """Another engine, which the tests below use in this order: the last one ends it in several ways."""
    one = Engine(tmp_path_factory.mktemp("other") / "var", shards=1)
    try:
        yield one.start()
    finally:
        one.stop()


def test_two_engines_live_side_by_side(engine: Engine, other: Engine) -> None:
    assert other.status()["ready"] is True
    assert engine.status()["ready"] is True
    assert processes_of(engine).isdisjoint(processes_of(other))
    with other.client() as client:
        answer = client.get("/v1/accounts", headers={"Authorization": f"Bearer {engine.token()}"})
        assert answer.status_code == 401, "a token of one engine must not open the other"


def test_interrupt_stops_everything_and_nothing_of_another_engine(engine: Engine, other: Engine) -> None:
    one = other
    one.razao("demo")
    pids = processes_of(one)
    assert pids
    os.kill(one.pid, signal.SIGINT)
    one.stop()
    assert not [pid for pid in pids if alive(pid)]
    assert not processes_of(one)
    assert not listing(DataDirectory(one.data).secrets().engine, RayNode(one.data / "ray"))
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", httpx.URL(one.url).port or 0)) != 0
    assert engine.status()["ready"] is True

    # What a killed engine leaves behind is ended by the next start on the same directory, and by nothing else.
    one.start()
    left = processes_of(one)
    os.kill(one.pid, signal.SIGKILL)
    one.start()
    assert not [pid for pid in left if alive(pid)]
    assert one.status()["ready"] is True
    assert "stopped the engine on" in one.razao("down").stdout
    assert not processes_of(one)

    # A falsified record is found by verify, and no shard serves from it.
    offset = falsify_journal(one.data)
    done = one.razao("verify", "--json", check=False)
    assert done.returncode == 1
    assert f"partition 0, offset {offset}" in " ".join(json.loads(done.stdout)["differences"])
    (one.data / "snapshots").rename(one.data / "no-snapshots")
    refused = subprocess.run(
        [RAZAO, "up", "--data", str(one.data), "--port", "0", "--tls-port", "0"],
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert refused.returncode == 1
    assert f"partition 0, offset {offset}" in refused.stderr, refused.stderr


def falsify_journal(data: Path) -> int:
    """Flip a byte of the first data record; returns its offset."""
    import asyncio

    import asyncpg

    server = PostgresServer(data / "postgres", free_ports(1)[0])
    server.start()

    async def flip() -> int:
        connection = await asyncpg.connect(server.dsn)
        row = await connection.fetchrow(
            "UPDATE journal.record SET payload = set_byte(payload, length(payload) / 2,"
            " get_byte(payload, length(payload) / 2) # 1)"
            ' WHERE (partition, "offset") = (SELECT partition, "offset" FROM journal.record WHERE NOT is_open'
            ' ORDER BY partition, "offset" LIMIT 1) RETURNING "offset"'
        )
        await connection.close()
        assert row is not None
        return int(row[0])

    try:
        return asyncio.run(flip())
    finally:
        server.stop()
