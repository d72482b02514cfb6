"""Which processes of this machine belong to one engine, and how to end exactly those.

Everything that an engine starts inherits the variable RAZAO_ENGINE with the engine's id; a process's first environment
can be read in /proc for as long as it lives. So leftovers of a killed engine are found whatever their parent was, and
nothing of another engine is ever touched. Some of Ray's processes overwrite theirs: `cluster/ray_node.py` knows those.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cluster.ray_node import RayNode, RayProcess

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


def _program(command: str) -> str:
    return command.split(" ", 1)[0].rsplit("/", 1)[-1]


def listing(engine: str, node: RayNode) -> list[Process]:
    """The engine's processes that an operator should know, without the supervisor.

    PostgreSQL's and HAProxy's children carry their parents' marks too; only the parents are shown.
    """
    found = [_ray_process(process) for process in node.processes()]
    pids = {process.pid for process in found}
    for pid in owned(engine):
        command = _command(pid)
        role = role_of_server(pid)
        if pid not in pids and role is not None and role_of_server(_parent(pid)) != role:
            found.append(Process(pid, role, _program(command)))
    return sorted(found, key=lambda process: (process.role, process.name, process.pid))


def role_of_server(pid: int) -> str | None:
    """What a server's process is to the engine, None when it is none; a Java process is told by its main class."""
    command = _command(pid)
    program = _program(command)
    if program == "java":
        return next((_MAIN_CLASSES[word] for word in command.split(" ") if word in _MAIN_CLASSES), None)
    return _SERVERS.get(program)


_SERVERS = {"postgres": "postgres", "haproxy": "gateway"}
_MAIN_CLASSES = {"kafka.Kafka": "kafka"}
_ACTORS = {"AccountShard": "shard", "Projector": "projector", "Directory": "directory"}


def _ray_process(process: RayProcess) -> Process:
    """Ray calls them all actors; we know which ones they are."""
    role = process.role
    if role == "actor":
        role = next((ours for prefix, ours in _ACTORS.items() if process.name.startswith(prefix)), role)
    elif process.name == "haproxy":
        role = "proxy"
    return Process(process.pid, role, process.name)


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


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
