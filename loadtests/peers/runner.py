"""Starts and stops the peer: its own embedded PostgreSQL of the same build, and two uvicorn workers.

python -m loadtests.peers.runner --data DIR --jwks FILE --port 8100      serves until Ctrl-C
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import asyncpg
import typer

from cluster.postgres import PostgresServer
from cluster.processes import free_ports
from loadtests.peers.postgres_ledger import SCHEMA

SETTINGS: Mapping[str, str] = {"checkpoint_timeout": "15min", "max_wal_size": "4GB", "autovacuum_naptime": "20s"}
"""What this load wants beyond the embedded server's settings; durability stays as it is there (synchronous)."""

_APPLICATION: Final = "loadtests.peers.postgres_ledger:create_app"


@dataclass(frozen=True, slots=True)
class Peer:
    """A running peer."""

    port: int
    dsn: str
    pids: tuple[int, ...]  # uvicorn's parent and PostgreSQL's; the others are their children
    environment: Mapping[str, str]

    def add_accounts(self, accounts: Mapping[int, str], balance: int) -> None:
        """Open `accounts` (id → owner) with `balance` centavos each, straight in the database."""
        asyncio.run(_add_accounts(self.dsn, accounts, balance))

    def total(self) -> int:
        """The sum of all balances, centavos."""
        return asyncio.run(_total(self.dsn))


async def _add_accounts(dsn: str, accounts: Mapping[int, str], balance: int) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        rows = [(account, owner, balance) for account, owner in accounts.items()]
        await connection.copy_records_to_table("account", records=rows, columns=["id", "owner", "balance"])
        await connection.execute("VACUUM ANALYZE")
    finally:
        await connection.close()


async def _total(dsn: str) -> int:
    connection = await asyncpg.connect(dsn)
    try:
        return int(await connection.fetchval("SELECT sum(balance) FROM account"))
    finally:
        await connection.close()


async def create_schema(dsn: str) -> None:
    """Make the peer's tables and its function in an empty database."""
    connection = await asyncpg.connect(dsn)
    try:
        if await connection.fetchval("SELECT to_regclass('account') IS NULL"):
            await connection.execute(SCHEMA.read_text())
    finally:
        await connection.close()


@contextlib.contextmanager
def running(
    data: Path,
    jwks: Path,
    *,
    issuer: str = "razao",
    audience: str = "payments",
    port: int = 0,
    workers: int = 2,
    pool: int = 8,
    variant: str = "function",
) -> Iterator[Peer]:
    """Run the peer on 127.0.0.1 until the block ends.

    Raises:
        RuntimeError: it did not come up.
    """
    postgres_port, free = free_ports(2)
    server = PostgresServer(data, postgres_port, settings=SETTINGS)
    server.start()
    try:
        asyncio.run(create_schema(server.dsn))
        environment = {
            "PEER_DSN": server.dsn,
            "PEER_JWKS": str(jwks),
            "PEER_ISSUER": issuer,
            "PEER_AUDIENCE": audience,
            "PEER_POOL": str(pool),
            "PEER_VARIANT": variant,
        }
        port = port or free
        with application(_APPLICATION, port, environment, workers) as pid:
            yield Peer(port, server.dsn, (pid, server.pid or 0), environment)
    finally:
        server.stop()


@contextlib.contextmanager
def beside(peer: Peer, *, variant: str, workers: int = 2) -> Iterator[Peer]:
    """Another variant on the same database, in processes of its own."""
    (port,) = free_ports(1)
    environment = {**peer.environment, "PEER_VARIANT": variant}
    with application(_APPLICATION, port, environment, workers) as pid:
        yield Peer(port, peer.dsn, (pid, *peer.pids[1:]), environment)


@contextlib.contextmanager
def application(factory: str, port: int, environment: Mapping[str, str], workers: int) -> Iterator[int]:
    """Run an ASGI application under uvicorn as a process group of its own; yields its pid, ends the group at the end.

    Raises:
        RuntimeError: it did not answer `GET /healthz` in 30 s.
    """
    command = [sys.executable, "-m", "uvicorn", factory, "--factory", "--port", str(port), "--workers", str(workers)]
    command += ["--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning"]
    root = Path(__file__).resolve().parents[2]
    process = subprocess.Popen(command, env={**os.environ, **environment}, cwd=root, start_new_session=True)
    try:
        await_health(port, process)
        yield process.pid
    finally:
        end_group(process)


def await_health(port: int, process: subprocess.Popen[bytes], timeout_s: float = 30.0) -> None:
    """Return when `GET /healthz` answers 200.

    Raises:
        RuntimeError: the process ended, or did not answer in time.
    """
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"ended with {process.returncode} before it served")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=1):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    raise RuntimeError(f"nothing answers on port {port} after {timeout_s:.0f} s")


def end_group(process: subprocess.Popen[bytes], grace_s: float = 10.0) -> None:
    """Ask a process that leads a session of its own to end; kill what is left of its group."""
    process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(grace_s)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def main(
    data: Annotated[Path, typer.Option(help="Directory of the peer's PostgreSQL.")],
    jwks: Annotated[Path, typer.Option(help="JWKS file that its tokens are verified against.", exists=True)],
    port: Annotated[int, typer.Option(help="HTTP port; 0 picks a free one.")] = 0,
    pool: Annotated[int, typer.Option(help="Database connections per worker.")] = 8,
    workers: Annotated[int, typer.Option(help="uvicorn workers.")] = 2,
    variant: Annotated[str, typer.Option(help="function or statements.")] = "function",
    accounts: Annotated[int, typer.Option(help="Accounts 1024.. to open with R$ 10,000 each when there are none.")] = 0,
) -> None:
    """Serve the peer until Ctrl-C or SIGTERM."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(0))  # unwinds the block below, which stops what it started
    with running(data, jwks, port=port, pool=pool, workers=workers, variant=variant) as peer:
        if accounts:
            peer.add_accounts({1024 + n: f"owner-{n}" for n in range(accounts)}, 1_000_000)
        print(f"peer ready on http://127.0.0.1:{peer.port}", flush=True)
        signal.pause()


if __name__ == "__main__":
    typer.run(main)
