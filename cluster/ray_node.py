"""One Ray node of our own: started, found again, and removed with everything it left.

Ray is our control plane, so its node has to be as private as the ledger: everything listens on loopback, every port
is free when taken, every call carries a token that lives in the node's own directory, and two nodes on one machine
don't see one another. What Ray 2.60 needs for that is not all in its manual, so it is written down here, beside the
line that does it.

The node is `ray start --head --block`, kept as a child in a session of its own. `--block` makes that child watch gcs,
raylet and dashboard and end them all when one dies, and the kernel ends them when the child itself is killed.
Workers, Serve's controller, replicas and detached actors are children of the raylet and end with it. What outlives a
SIGKILL (Ray's agents, for some seconds) is recognised by `processes()` and removed by `stop()` and by the next
`start()`.

Module level imports no Ray: its library reads its environment when imported, see `join`.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

import psutil

LOOPBACK: Final = "127.0.0.1"
# Set for Ray's processes only, never for a driver: with it they are told from anything else on the machine.
MARKER: Final = "RAZAO_RAY_NODE"
OBJECT_STORE_BYTES_MIN: Final = 75 << 20  # Ray refuses less
# Ray puts "/s/session_<time, 26 characters>_<pid>/sockets/<name>" below its directory; a socket's path ends at 107.
_SOCKET_SUFFIX_CHARACTERS: Final = 2 + 44 + 9 + 20
_SOCKET_PATH_CHARACTERS_MAX: Final = 107
_PACKAGE_ROOT: Final = Path(__file__).resolve().parent.parent
_ADDRESS_FILE: Final = "ray_current_cluster"  # Ray's name; written last, when the node can be joined
_SESSIONS_KEPT: Final = 2  # this one's predecessors are what one reads after a crash


class RayNodeError(RuntimeError):
    """The node did not start; the message has the end of its log."""


class RayProcess(NamedTuple):
    """A process of the node: `role` is what it does, `name` is its title as the Ray dashboard has it."""

    role: str
    name: str
    pid: int


class RayNode:
    """A Ray head node that belongs to one directory.

    `directory`: where token and logs live, made with mode 0700. `cpus`: what Ray may hand out, in its own units; our
    actors and replicas ask for fractions. `dashboard_port` 0 takes a free one.
    """

    def __init__(
        self,
        directory: Path,
        *,
        cpus: int | None = None,
        object_store_bytes: int = OBJECT_STORE_BYTES_MIN,
        dashboard_port: int = 0,
    ) -> None:
        self.directory = directory.resolve()
        self._cpus = cpus or max(2, os.cpu_count() or 2)
        self._object_store_bytes = object_store_bytes
        self._dashboard_port = dashboard_port
        self._starter: subprocess.Popen[bytes] | None = None

    @property
    def token_path(self) -> Path:
        """Where Ray's processes and drivers read the token; a person pastes its content into the dashboard's login."""
        return self.directory / "token"

    @property
    def log_path(self) -> Path:
        """What `ray start` printed. Ray's own logs are below `sessions`."""
        return self.directory / "start.log"

    @property
    def sessions(self) -> Path:
        """Ray's `--temp-dir`. Ray opens it to everyone (0777), so it lies inside a directory that is closed."""
        if len(str(self.directory)) + _SOCKET_SUFFIX_CHARACTERS <= _SOCKET_PATH_CHARACTERS_MAX:
            return self.directory / "s"
        name = hashlib.blake2b(str(self.directory).encode(), digest_size=5).hexdigest()
        return Path(tempfile.gettempdir()) / f"razao-{os.getuid()}-{name}" / "s"

    @property
    def address(self) -> str:
        """`host:port` of gcs, also for a process that did not start the node (`razao status`). Empty when stopped."""
        try:
            return (self.sessions / _ADDRESS_FILE).read_text().strip()
        except FileNotFoundError:
            return ""

    @property
    def dashboard_url(self) -> str:
        """Read from Ray's log, as the port may have been its choice. Empty before `start`."""
        if not self.address:
            return ""
        lines = self.log_path.read_text(errors="replace").splitlines()
        url = next((lines[i + 1] for i, line in enumerate(lines) if "view the dashboard at" in line), "")
        return f"http://{url.split()[-1]}" if url else ""

    def environment(self) -> dict[str, str]:
        """What every process that joins this node must have set before it imports Ray; it holds no secret itself."""
        return {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token_path),
            # Ray swaps 127.0.0.1 for the machine's own address unless it thinks itself on a desktop; only with exactly
            # 127.0.0.1 do gcs, raylet and workers listen on loopback alone.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
            # 15 is Ray's default, which starves a shard beside any busy neighbour.
            "RAY_worker_niceness": "0",
            # User code on the replica's main loop, no router thread. Of the four things that this switch turns on, two
            # must be off: direct ingress gives each replica ports of Serve's, a 30 s drain, and a proxy even when
            # proxies are disabled; gRPC between deployments adds nothing for a single deployment.
            "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
            "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0",
            "RAY_SERVE_USE_GRPC_BY_DEFAULT": "0",
            # Ten times a second is Serve's default, and costs 3 % of a core for ever.
            "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.3",
        }

    def start(self, timeout_s: float = 60.0) -> None:
        """Clear what an earlier life left, start, and return when drivers can join. Takes 6 s on two cores.

        Raises:
            RayNodeError: it ended or could not be joined in time.
        """
        self.launch()
        self.await_joinable(timeout_s)

    def launch(self) -> None:
        """The first half of `start`: what follows it is done while Ray gets ready, which is mostly waiting."""
        if self.running:
            raise RayNodeError(f"the Ray node in {self.directory} runs already")
        self.stop()
        _private_directory(self.directory)
        _private_directory(self.sessions.parent)
        self.sessions.mkdir(exist_ok=True)
        self._remove_old_sessions()
        self._ensure_token()
        with self.log_path.open("wb") as log:
            self._starter = subprocess.Popen(
                self._command(),
                env=self._node_environment(),
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a terminal's Ctrl-C is for the supervisor, who ends the node last
            )

    def await_joinable(self, timeout_s: float = 60.0) -> None:
        """The second half of `start`."""
        deadline = time.monotonic() + timeout_s
        while not self.address:
            if not self.running or time.monotonic() > deadline:
                self.stop()
                raise RayNodeError(f"Ray did not start; the end of {self.log_path}:\n{self._log_tail()}")
            time.sleep(0.05)

    @property
    def running(self) -> bool:
        """Whether the child of this process lives.

        False once any of gcs, raylet or dashboard has died: the whole node then ends and must be started anew.
        """
        return self._starter is not None and self._starter.poll() is None

    def stop(self, timeout_s: float = 10.0) -> None:
        """End every process of this node, of an earlier life too. Takes well under a second.

        They are killed, not asked: asked, Ray needs 10 to 30 s. Whoever has something to finish (replicas that drain)
        is told before, by the one who owns it; shards are safe at any instant.
        """
        deadline = time.monotonic() + timeout_s
        while left := self.processes():
            for process in left:
                with suppress(ProcessLookupError):
                    os.kill(process.pid, 9)
            if self._starter is not None:
                self._starter.poll()
            if time.monotonic() > deadline:
                raise RayNodeError(f"processes of {self.directory} don't end: {left}")
            time.sleep(0.02)
        if self._starter is not None:
            self._starter.wait()
            self._starter = None
        (self.sessions / _ADDRESS_FILE).unlink(missing_ok=True)

    def remove(self) -> None:
        """Stop, and delete everything on disk: logs, token, sockets."""
        self.stop()
        shutil.rmtree(self.sessions.parent, ignore_errors=True)
        shutil.rmtree(self.directory, ignore_errors=True)

    def processes(self) -> list[RayProcess]:
        """Every live process of this node, whoever started it.

        The marker in the environment tells them. Some of Ray's helpers overwrite their environment with their title;
        those have a title that begins with "ray" and hold a log open below `sessions`.
        """
        found: list[RayProcess] = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                command = process.cmdline()
                if command and self._owns(process, command):
                    found.append(_describe(command, process.pid))
        return found

    def join(self, namespace: str = "razao") -> None:
        """Make this process a driver of the node. Detached actors and Serve applications outlive it.

        Ray reads its environment once, when imported. When somebody imported it before us, what it remembered is
        renewed; otherwise it would look for the node at the machine's own address, and without a token.
        """
        os.environ.update(self.environment())
        import ray  # noqa: PLC0415 - see above
        from ray._private import ray_constants  # noqa: PLC0415
        from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]  # noqa: PLC0415

        ray_constants.ENABLE_RAY_CLUSTER = False
        Config.initialize("")
        AuthenticationTokenLoader.instance().reset_cache()
        ray.init(
            address=self.address,
            namespace=namespace,
            _node_ip_address=LOOPBACK,
            log_to_driver=False,
            logging_level=logging.WARNING,
        )

    def leave(self) -> None:
        """Disconnect this process's driver."""
        import ray  # noqa: PLC0415

        ray.shutdown()

    def _command(self) -> list[str]:
        return [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
            f"--node-ip-address={LOOPBACK}",
            f"--temp-dir={self.sessions}",
            f"--num-cpus={self._cpus}",
            f"--object-store-memory={self._object_store_bytes}",
            # 0: the process itself binds a free port and tells the others through its session directory, so nobody can
            # take it in between. Workers choose theirs the same way when no range is given.
            *("--port=0", "--dashboard-agent-listen-port=0", "--dashboard-agent-grpc-port=0"),
            *("--runtime-env-agent-port=0", "--metrics-export-port=0"),
            *("--include-dashboard=true", f"--dashboard-host={LOOPBACK}", f"--dashboard-port={self._dashboard_port}"),
            *("--no-monitor", "--disable-usage-stats"),  # the monitor scales clouds
            *("--log-style=record", "--log-color=false"),
        ]

    def _node_environment(self) -> dict[str, str]:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        path = os.pathsep.join(filter(None, (str(_PACKAGE_ROOT), os.environ.get("PYTHONPATH"))))
        return {
            **inherited,
            **self.environment(),
            MARKER: str(self.directory),
            "PYTHONPATH": path,
            "RAY_START_HOOK": f"{__name__}.without_client_server",
        }

    def _owns(self, process: psutil.Process, command: list[str]) -> bool:
        if process.environ().get(MARKER) == str(self.directory):
            return True
        inside = f"{self.sessions}{os.sep}"
        return command[0].startswith("ray") and any(file.path.startswith(inside) for file in process.open_files())

    def _ensure_token(self) -> None:
        if not self.token_path.exists():
            draft = self.token_path.with_suffix(".new")
            draft.unlink(missing_ok=True)
            with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(secrets.token_hex(32))
            draft.rename(self.token_path)

    def _remove_old_sessions(self) -> None:
        old = sorted(path for path in self.sessions.glob("session_*") if path.name != "session_latest")
        for path in old[: max(0, len(old) + 1 - _SESSIONS_KEPT)]:
            shutil.rmtree(path, ignore_errors=True)

    def _log_tail(self) -> str:
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-15:])


def without_client_server(parameters: Any, head: bool) -> None:  # noqa: ARG001, FBT001, RUF100 - Ray's signature
    """Hook of `ray start` (RAY_START_HOOK), which has no flag to leave Ray Client's server and its port out."""
    parameters.ray_client_server_port = None


def _private_directory(path: Path) -> None:
    """Make `path` ours alone. In a shared temporary directory somebody could have made it before us."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise RayNodeError(f"{path} is not a directory of ours")
    path.chmod(0o700)


def _describe(command: list[str], pid: int) -> RayProcess:
    """Role and title of one of the node's processes, by its command line (workers set theirs to a title)."""
    title = command[0].split(" (")[0].strip()
    if title.startswith("ray::"):
        name = title.removeprefix("ray::")
        kinds = {"ServeReplica": "replica", "ServeController": "controller", "ProxyActor": "proxy", "IDLE": "worker"}
        agents = {"DashboardAgent": "agent", "RuntimeEnvAgent": "agent"}
        kind = next((role for start, role in {**kinds, **agents}.items() if name.startswith(start)), "actor")
        return RayProcess(kind, name, pid)
    programs = {"gcs_server": "gcs", "raylet": "raylet", "dashboard.py": "dashboard", "log_monitor.py": "log-monitor"}
    for part in command[:4]:
        if role := programs.get(Path(part).name):
            return RayProcess(role, role, pid)
    if title.startswith("ray-dashboard"):
        return RayProcess("dashboard", title, pid)
    starter = "ray.scripts.scripts" in command
    return RayProcess("node" if starter else "helper", "ray start" if starter else Path(title).name, pid)
