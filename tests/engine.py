"""A whole engine as an operator runs it: `razao up` in a process of its own, driven by command line and over HTTP."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeVar

import asyncpg
import httpx

from cluster.data import DataDirectory
from cluster.identity import prove_user
from cluster.plan import Plan
from cluster.processes import free_ports, owned
from cluster.status import collect
from cluster.stop import stop
from cluster.verify import verify
from deployments.auth.keys import sign_token
from storage.events import AMOUNT_MAX
from storage.references import person_reference

RAZAO: Final = str(Path(sys.executable).with_name("razao"))
START_S: Final = 150.0
T = TypeVar("T")
ALL_SCOPES: Final = "ledger:read ledger:write ledger:fund ledger:operate"


class Engine:
    """One engine on a directory and free ports."""

    def __init__(
        self,
        data: Path,
        *,
        shards: int = 2,
        tls: bool = False,
        tiers: str = "",
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.data = data
        self.shards = shards
        self.tls = tls
        self.tiers = tiers
        self.environment = {
            **os.environ,
            "RAZAO_TIERS": tiers,
            "RAZAO_DEPOSIT_MAX": str(AMOUNT_MAX),  # so that the bound of balances can be met
            **{f"RAZAO_{name.upper()}": value for name, value in (settings or {}).items()},
        }
        self.url = ""
        self.vault_port = 0
        self.log = data.parent / f"{data.name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *arguments: str) -> Engine:
        """Start it and return when it says that it is ready.

        Raises:
            AssertionError: it ended or was not ready in time; the message has its output.
        """
        tls_port = str(free_ports(1)[0]) if self.tls else "0"
        if "vault" in self.tiers:
            self.vault_port = free_ports(1)[0]
        # By a relative path, as most people do: parts of the engine run in other working directories.
        command = [RAZAO, "up", "--data", self.data.name, "--port", "0", "--tls-port", tls_port]
        command += ["--vault-port", str(self.vault_port)]
        command += ["--shards", str(self.shards), *arguments]
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("w") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=self.environment, cwd=self.data.parent
            )
        self._await_line(re.compile(r"razao ready on (http://\S+)"))
        return self

    def _await_line(self, pattern: re.Pattern[str]) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_S
        while True:
            ended = self._process.poll() is not None
            text = self.output()
            if found := pattern.search(text):
                self.url = found[1]
                return
            assert not ended, f"razao up ended with {self._process.returncode}:\n{text}"
            assert time.monotonic() < deadline, f"the engine did not get ready:\n{text}"
            time.sleep(0.05)

    def output(self) -> str:
        """What the supervisor has printed since the last start."""
        return self.log.read_text()

    @property
    def pid(self) -> int:
        """Pid of the supervisor."""
        assert self._process is not None
        return self._process.pid

    def razao(
        self, *arguments: str, check: bool = True, timeout: float = 180, given: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a `razao` command on this engine's directory; `given` is its standard input."""
        done = subprocess.run(
            [RAZAO, *arguments, "--data", str(self.data)],
            input=given,
            capture_output=True,
            text=True,
            env=self.environment,
            timeout=timeout,
            check=False,
        )
        assert not check or done.returncode == 0, (
            f"razao {arguments}: exit {done.returncode}\n{done.stdout}{done.stderr}"
        )
        return done

    def token(
        self,
        sub: str = "tester",
        scope: str = ALL_SCOPES,
        expires_in: int = 7200,
        *,
        audience: str = "payments",
        tax_id: str | None = None,
    ) -> str:
        """A token that the engine accepts, as `razao token` would print it. `tax_id`: digits and letters alone."""
        person = None if tax_id is None else person_reference(self.plan().ledger_key, tax_id).hex()
        return sign_token(self.data / "keys", sub, scope, audience, expires_in, person=person)

    def prove(self, username: str, tax_id: str) -> None:
        """What `razao users prove` does, without a process for it."""
        plan = self.plan()

        async def prove() -> None:
            async with asyncpg.create_pool(plan.dsn, min_size=1, max_size=1) as pool:
                await prove_user(pool, plan.ledger_key, username, tax_id, "document", repeated=False)

        _apart(prove())

    def plan(self) -> Plan:
        """What its processes were told."""
        return Plan.load(DataDirectory(self.data))

    def client(self, sub: str = "tester", scope: str = ALL_SCOPES, timeout: float = 30) -> httpx.Client:
        """An HTTP client with a token."""
        headers = {"Authorization": f"Bearer {self.token(sub, scope)}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=timeout, trust_env=False)

    def status(self) -> dict[str, Any]:
        """`razao status --json`."""
        done = self.razao("status", "--json", check=False)
        assert done.returncode in {0, 3}, done.stdout + done.stderr
        content: dict[str, Any] = json.loads(done.stdout)
        return content

    def look(self) -> dict[str, Any]:
        """What `status` tells, without a process to ask for it: that takes two seconds of a core that is under load."""
        return _apart(collect(DataDirectory(self.data)))

    def pids(self, role: str) -> dict[str, int]:
        """Pids of the processes of a role, by name."""
        return {one["name"]: one["pid"] for one in self.look()["processes"] if one["role"] == role}

    def await_ready(self, timeout_s: float = 90.0) -> None:
        """Return when /healthz answers 200.

        Raises:
            AssertionError: it did not in time.
        """
        deadline = time.monotonic() + timeout_s
        last = "no answer"
        while time.monotonic() < deadline:
            try:
                answer = httpx.get(f"{self.url}/healthz", timeout=5, trust_env=False)
                if answer.status_code == httpx.codes.OK:
                    return
                last = answer.text
            except httpx.HTTPError as error:
                last = repr(error)
            time.sleep(0.1)
        raise AssertionError(f"the engine did not serve again within {timeout_s} s: {last}")

    def verify(self) -> dict[str, Any]:
        """`razao verify --json`, which must find nothing."""
        done = self.razao("verify", "--json", check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        content: dict[str, Any] = json.loads(done.stdout)
        return content

    def hold_to_journal(self) -> None:
        """What `verify` checks, without a process for it: that takes longer to start than a small ledger to check."""
        report = _apart(verify(self.plan().settings, show_progress=False))
        assert not report.differences, "\n".join(report.lines())

    def kill_everything(self) -> None:
        """Kill -9 the supervisor and every process of the engine, as a power cut would."""
        engine = DataDirectory(self.data).secrets().engine
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        while left := owned(engine):
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
        self._process = None

    def stop(self) -> None:
        """SIGTERM, and wait until it has ended."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait(120)
        if (self.data / "secrets.json").exists():
            stop(DataDirectory(self.data))
        self._process = None


def _apart(work: Coroutine[Any, Any, T]) -> T:
    """Run it on a loop in a thread of its own, as the caller may be on one already."""
    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(asyncio.run, work).result()
