"""Which processes of this machine belong to one engine, and how to end exactly those.

Everything that an engine starts inherits the variable RAZAO_ENGINE with the engine's id; a process's first environment
can be read in /proc for as long as it lives. So leftovers of a killed engine are found whatever their parent was, and
nothing of another engine is ever touched.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

MARK = "RAZAO_ENGINE"


@dataclass(frozen=True, slots=True)
class Process:
    """One live process of an engine."""

    pid: int
    role: str
    name: str


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


def alive(pid: int) -> bool:
    """Whether `pid` runs (a zombie does not)."""
    return _state(pid) not in "XZ"


def owned(engine: str) -> list[int]:
    """Pids of every live process that carries the engine's mark, this one excluded."""
    mark = f"{MARK}={engine}".encode()
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            environment = Path(f"/proc/{entry}/environ").read_bytes()
        except OSError:
            continue
        if mark in environment.split(b"\0") and alive(int(entry)):
            found.append(int(entry))
    return sorted(found)


def _is_server(command: str, name: str) -> bool:
    program = command.split(" ", 1)[0]
    return program.rsplit("/", 1)[-1] == name


# Told apart by what they show in `ps`; the first that fits wins. (role, test on the command line)
_ROLES: list[tuple[str, Callable[[str], bool]]] = [
    ("raylet", lambda c: _is_server(c, "raylet")),
    ("gcs", lambda c: _is_server(c, "gcs_server")),
    ("shard", lambda c: c.startswith(("ray::AccountShard", "ray::shard-"))),
    ("projector", lambda c: c.startswith(("ray::Projector", "ray::projector"))),
    ("directory", lambda c: c.startswith(("ray::Directory", "ray::directory"))),
    ("replica", lambda c: c.startswith("ray::ServeReplica")),
    ("proxy", lambda c: c.startswith(("ray::ProxyActor", "ray::HAProxyManager"))),
    ("controller", lambda c: c.startswith("ray::ServeController")),
    ("gateway", lambda c: _is_server(c, "haproxy") and "gateway" in c),
    ("proxy", lambda c: _is_server(c, "haproxy")),
    ("postgres", lambda c: _is_server(c, "postgres") and " -D" in c),
]


def classify(command: str) -> str | None:
    """The role of a command line, or None for helpers that an operator need not know."""
    return next((role for role, fits in _ROLES if fits(command)), None)


def listing(engine: str) -> list[Process]:
    """The engine's processes that have a role, without the supervisor."""
    found = []
    for pid in owned(engine):
        command = _command(pid)
        role = classify(command)
        if role is not None:
            name = command.split(" ", 1)[0].rsplit("/", 1)[-1].removeprefix("ray::")
            found.append(Process(pid, role, name))
    return found


def send(pids: Iterable[int], number: signal.Signals) -> None:
    """Send a signal to processes that may already be gone."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def end_all(engine: str, *, grace_s: float = 3.0) -> int:
    """End everything that carries the engine's mark; returns how many processes there were.

    Asks first (SIGTERM; SIGINT is PostgreSQL's fast stop and harmless to it), then insists. New children of a dying
    parent are caught by looking again until nothing is left.
    """
    first = owned(engine)
    send(first, signal.SIGCONT)
    send(first, signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while owned(engine) and time.monotonic() < deadline:
        time.sleep(0.05)
    while left := owned(engine):
        send(left, signal.SIGKILL)
        time.sleep(0.02)
        _reap()
    _reap()
    return len(first)


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """`count` different ports that were free a moment ago."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind((host, 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()


def port_is_free(host: str, port: int) -> bool:
    """Whether one could listen there now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
