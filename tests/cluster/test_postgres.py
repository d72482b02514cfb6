"""The embedded PostgreSQL server on real processes: closed to others, and it survives what kills it."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import psutil
import pytest

from cluster import postgres
from cluster.postgres import PostgresError, PostgresServer
from tests.conftest import free_port


@pytest.fixture
def closed_directory() -> Iterator[Path]:
    """A directory far below one that only its owner may enter, the path longer than a socket's may be."""
    top = Path(tempfile.mkdtemp(prefix="rz-"))
    directory = top / ("a" * 60) / ("b" * 60)
    directory.mkdir(parents=True)
    for path in (top, directory.parent, directory):
        path.chmod(0o700)
    yield directory
    shutil.rmtree(top)


@pytest.fixture
def server(closed_directory: Path) -> Iterator[PostgresServer]:
    server = PostgresServer(closed_directory / "postgres", free_port(), env={"RAZAO_ENGINE": "test-engine"})
    yield server
    server.stop()


async def _value(server: PostgresServer, query: str) -> object:
    connection = await asyncpg.connect(server.dsn)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


async def test_a_new_server_is_utf8_c_locale_durable_and_on_loopback_only(server: PostgresServer) -> None:
    server.start()
    facts = (
        "SELECT array[pg_encoding_to_char(encoding), datcollate, datctype, current_setting('fsync'),"
        " current_setting('synchronous_commit'), current_setting('full_page_writes'),"
        " current_setting('data_checksums')]"
        " FROM pg_database WHERE datname = current_database()"
    )
    assert await _value(server, facts) == ["UTF8", "C", "C", "on", "on", "on", "on"]
    assert server.pid is not None
    listening = [c for c in psutil.Process(server.pid).net_connections() if c.status == psutil.CONN_LISTEN]
    assert [c.laddr for c in listening] == [("127.0.0.1", server.port)]


async def test_nobody_enters_without_the_password_and_the_password_is_the_owners_alone(server: PostgresServer) -> None:
    server.start()
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(host="127.0.0.1", port=server.port, user="razao", password="guess", database="razao")
    mode = (server.data_dir / "password").stat().st_mode
    assert stat.S_IMODE(mode) == 0o600
    assert stat.S_IMODE(server.pgdata.stat().st_mode) == 0o700


def test_the_server_does_not_run_as_root_and_carries_the_engines_mark(server: PostgresServer) -> None:
    server.start()
    assert server.pid is not None
    process = psutil.Process(server.pid)
    assert process.uids().real != 0
    assert process.environ()["RAZAO_ENGINE"] == "test-engine"
    # Its children write their titles over their environment; where they work tells them.
    assert {Path(child.cwd()) for child in process.children()} == {server.pgdata}


async def test_what_was_committed_survives_a_kill_and_a_second_start(server: PostgresServer) -> None:
    server.start()
    await _value(server, "CREATE TABLE kept AS SELECT 7 AS seven")
    password = server.password
    server.kill()
    assert not server.running
    server.start()
    assert await _value(server, "SELECT seven FROM kept") == 7
    assert server.password == password


async def test_an_owner_that_died_leaves_a_server_that_the_next_owner_replaces(server: PostgresServer) -> None:
    server.start()
    await _value(server, "CREATE TABLE kept AS SELECT 7 AS seven")
    left_behind = server.pid
    successor = PostgresServer(server.data_dir, free_port())
    successor.start()
    try:
        assert not server.running
        assert successor.pid != left_behind
        assert await _value(successor, "SELECT seven FROM kept") == 7
    finally:
        successor.stop()


def test_a_pid_file_that_names_a_strangers_process_does_not_stop_the_start(server: PostgresServer) -> None:
    server.start()
    server.kill()
    pid_file = server.pgdata / "postmaster.pid"
    lines = pid_file.read_text().splitlines()
    owner = server.pgdata.stat().st_uid
    stranger = subprocess.Popen(["sleep", "60"], user=owner if os.geteuid() == 0 else None)
    try:
        pid_file.write_text("\n".join([str(stranger.pid), *lines[1:]]) + "\n")
        server.start()
        assert server.running
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_cluster_left_half_made_is_made_anew(server: PostgresServer) -> None:
    building = server.data_dir / "pgdata.new"
    building.mkdir(parents=True)
    (building / "PG_VERSION").write_text("18\n")
    server.start()
    assert server.running
    assert not building.exists()


def test_a_taken_port_is_reported_with_the_servers_own_words(server: PostgresServer) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", server.port))
        taken.listen()
        with pytest.raises(PostgresError, match="could not bind"):
            server.start()
    assert not server.running


def test_stop_leaves_no_process(server: PostgresServer) -> None:
    server.start()
    assert server.pid is not None
    family = [psutil.Process(server.pid), *psutil.Process(server.pid).children()]
    server.stop()
    assert not any(process.is_running() for process in family)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's server changes account")
def test_programs_in_a_closed_place_are_copied_where_the_account_reaches_them(
    closed_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = postgres._binaries(None).parent.parent
    package = closed_directory / original.name
    package.symlink_to(original)
    home = Path(tempfile.mkdtemp(prefix="rz-"))
    monkeypatch.setattr(postgres, "_COPIES", home / "razao")
    try:
        home.chmod(0o755)
        assert not postgres._open_to_all(package / postgres._INSTALL)
        copy = postgres._reachable_copy(original)
        assert postgres._open_to_all(copy)
        version = subprocess.run([copy / "bin" / "initdb", "--version"], user="nobody", capture_output=True, check=True)
        assert b"18." in version.stdout
    finally:
        shutil.rmtree(home)
