"""The servers that a comparison needs, each a tree of processes that can be held still while another is measured.

An idle Ray node takes a sixth of a core, which on two cores would falsify whatever is measured beside it. So only the
side whose turn it is runs; the others are stopped (SIGSTOP), and continued and checked before their next turn.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import orjson
import psutil
import uvloop

from cluster.data import DataDirectory
from cluster.processes import free_ports
from loadtests import traffic
from loadtests.generator import Report, run

SCOPES: Final = "ledger:operate ledger:fund ledger:read ledger:write"
ACCOUNT_BALANCE: Final = 100_000_000
"""What every account of a benchmark begins with, centavos."""

_RAZAO: Final = Path(sys.executable).with_name("razao")
_READY_S: Final = 180.0
_HEALTHY_S: Final = 30.0
_NO_SETTINGS: Final[Mapping[str, str]] = MappingProxyType({})


class Stack:
    """A running server: where it listens, and which processes are the roots of its trees."""

    def __init__(self, name: str, port: int, roots: Sequence[int], health: str) -> None:
        self.name = name
        self.port = port
        self._roots = tuple(roots)
        self._health = health

    def hold(self) -> None:
        """Stop every process of the tree where it stands."""
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                process.suspend()

    def wake(self) -> None:
        """Continue them, and return when the stack answers 2xx.

        Raises:
            RuntimeError: it does not.
        """
        for process in reversed(self.processes()):
            with contextlib.suppress(psutil.Error):
                process.resume()
        deadline = time.monotonic() + _HEALTHY_S
        while not self._healthy():
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} does not answer {self._health} on port {self.port}")
            time.sleep(0.02)

    def cpu_seconds(self) -> float:
        """What its living processes have used so far. Unlike a rate, it hardly depends on who else is busy here."""
        total = 0.0
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                used = process.cpu_times()
                total += used.user + used.system
        return total

    def _healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{self._health}", timeout=2):
                return True
        except (urllib.error.URLError, OSError):
            return False

    def stands_on(self, *roots: int) -> None:
        """Other servers that have its turn as well."""
        self._roots += roots

    def processes(self) -> list[psutil.Process]:
        """Every process of it, parents before their children."""
        found: list[psutil.Process] = []
        for pid in self._roots:
            root = psutil.Process(pid)
            found += [root, *root.children(recursive=True)]
        return found


@contextlib.contextmanager
def taking_turns(stacks: Sequence[Stack]) -> Iterator[Callable[[Stack], None]]:
    """Hold all but one: the function given gives the turn to a stack. All run again at the end."""
    running = set(stacks)

    def turn(chosen: Stack) -> None:
        for stack in running - {chosen}:
            stack.hold()
        running.intersection_update({chosen})
        if chosen not in running:
            chosen.wake()
            running.add(chosen)

    try:
        yield turn
    finally:
        for stack in set(stacks) - running:
            stack.wake()


class Engine(Stack):
    """A whole Razao, started by its own command in a directory of its own."""

    def __init__(self, data: Path, port: int, pid: int, seconds_to_ready: float) -> None:
        running = DataDirectory(data).running()
        assert running is not None
        super().__init__(f"razao/{running.shards}", port, [pid], "/healthz")
        self.data = data
        self.shards = running.shards
        self.dsn = running.dsn
        self.host = f"127.0.0.1:{port}"
        self.seconds_to_ready = seconds_to_ready
        self.token = razao("token", "--sub", "bench", "--scope", SCOPES, "--expires-in", "86400", "--data", str(data))

    @property
    def jwks(self) -> Path:
        """The keys that its tokens are verified with."""
        return self.data / "keys" / "jwks.json"

    def status(self) -> dict[str, Any]:
        """`razao status --json`."""
        content: dict[str, Any] = json.loads(razao("status", "--json", "--data", str(self.data)))
        return content

    def await_projection(self, timeout_s: float = 300.0) -> float:
        """Return when the query side has caught up; says how many seconds that took.

        Raises:
            RuntimeError: it did not in time.
        """
        begun = time.monotonic()
        while lag := self.status()["projection"]["lag"]:
            if time.monotonic() - begun > timeout_s:
                raise RuntimeError(f"the projection is still {lag} records behind after {timeout_s:.0f} s")
            time.sleep(0.1)
        return time.monotonic() - begun

    def open_accounts(self, count: int, *, seed: int) -> list[str]:
        """Open `count` accounts of different people over HTTP and fund each with ACCOUNT_BALANCE.

        Raises:
            RuntimeError: a request failed.
        """
        accounts: list[str] = []

        def collect(_: int, body: bytes) -> None:
            accounts.append(orjson.loads(body)["id"])

        opened = uvloop.run(self._send(traffic.openings(self.host, self.token, count, seed), collect))
        funded = uvloop.run(self._send(traffic.deposits(self.host, self.token, accounts, ACCOUNT_BALANCE)))
        for what, report in (("opening", opened), ("funding", funded)):
            if report.failures:
                raise RuntimeError(f"{what} accounts failed {report.failures} times: {report.examples[:2]}")
        return accounts

    async def _send(self, source: Iterator[bytes], check: Any = None) -> Report:
        return await run(source, host="127.0.0.1", port=self.port, connections=64, check=check)


def razao(*arguments: str, given: str = "") -> str:
    """The output of a `razao` command, with `given` as a line on its standard input.

    Raises:
        RuntimeError: it failed.
    """
    done = subprocess.run([_RAZAO, *arguments], input=given + "\n", capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(
            f"razao {arguments[0]} ended with {done.returncode}: {done.stderr[-2000:]}{done.stdout[-500:]}"
        )
    return done.stdout.strip()


@contextlib.contextmanager
def engine(
    data: Path, *, shards: int = 2, journal: str = "postgres", settings: Mapping[str, str] = _NO_SETTINGS
) -> Iterator[Engine]:
    """Start Razao in `data` on a free port, without tiers unless `settings` has them; stopped at the end.

    Raises:
        RuntimeError: it ended, or was not ready in time.
    """
    (port,) = free_ports(1)
    options = ["--port", str(port), "--tls-port", "0", "--shards", str(shards), "--journal", journal]
    # A benchmark is one client address; the rate limit per address is not what it measures.
    environment = {"RAZAO_TIERS": "", **os.environ, "RAZAO_PER_ADDRESS_RATE": "10000000"}
    environment |= {f"RAZAO_{name.upper()}": value for name, value in settings.items()}
    with _started(data, port, options, environment) as running:
        yield running


@contextlib.contextmanager
def shipped(data: Path) -> Iterator[Engine]:
    """Razao as `razao up` starts it without options, but for where it lies and listens; stopped at the end.

    Raises:
        RuntimeError: as `engine`.
    """
    port, tls_port, vault_port = free_ports(3)
    options = ["--port", str(port), "--tls-port", str(tls_port), "--vault-port", str(vault_port)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAZAO_")}
    with _started(data, port, options, environment) as running:
        yield running


@contextlib.contextmanager
def _started(data: Path, port: int, options: list[str], environment: dict[str, str]) -> Iterator[Engine]:
    log = data.parent / f"{data.name}.log"
    command = [str(_RAZAO), "up", "--data", str(data), *options]
    environment["PYTHONUNBUFFERED"] = "1"
    begun = time.monotonic()
    with log.open("a+") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, env=environment, start_new_session=True
        )
        try:
            _await_ready(process, log, output.tell(), port)
            yield Engine(data, port, process.pid, time.monotonic() - begun)
        finally:
            _stop(process, data)


def _await_ready(process: subprocess.Popen[bytes], log: Path, begin: int, port: int) -> None:
    deadline = time.monotonic() + _READY_S
    while f"razao ready on http://127.0.0.1:{port}" not in (said := log.read_text()[begin:]):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"razao did not become ready: {said[-3000:]}")
        time.sleep(0.02)


def _stop(process: subprocess.Popen[bytes], data: Path) -> None:
    process.send_signal(signal.SIGCONT)
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)
    if process.poll() is None:
        process.kill()
        process.wait()
    with contextlib.suppress(RuntimeError):
        razao("down", "--data", str(data))


def measure(stack: Stack, source: Iterator[bytes], *, connections: int, seconds: float, warm_up: float) -> Report:
    """Load one stack for a while."""
    return uvloop.run(
        run(
            source,
            host="127.0.0.1",
            port=stack.port,
            connections=connections,
            seconds=seconds,
            warm_up_seconds=warm_up,
        )
    )
