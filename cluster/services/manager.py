"""What `razao services` does: servers that run detached from the command that started them, one directory each.

DATA/services/NAME/            the server's own directory
DATA/services/NAME/service.json  what the server was first started with: its port stays the same for its clients
DATA/services/lock             held while servers are started or ended

A server is found again by where it works (`cluster/services/child.py`), never by a remembered pid.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, Protocol

import psutil

from cluster.data import write_private
from cluster.processes import free_ports
from cluster.services.child import ServiceError, end
from cluster.services.kafka import KafkaServer
from cluster.services.keycloak import KeycloakServer
from cluster.services.mongo import MongoServer

NAMES: Final = ("kafka", "mongo", "keycloak")
USUAL: Final = ("kafka", "mongo")
_GRACE_S: Final = 20.0

Say = Callable[[str], None]


class Server(Protocol):
    """What a server's class offers."""

    parts: ClassVar[Sequence[str]]
    directory: Path
    port: int
    log: Path

    @property
    def engine_settings(self) -> dict[str, str]:
        """What to set so that an engine uses it."""

    def found(self) -> dict[str, psutil.Process]:
        """Its live processes by part, in the order in which they should end."""

    def start(self, *, progress: Say | None = None) -> None:
        """Start it and wait until it answers."""


@dataclass(frozen=True, slots=True)
class Remembered:
    """What a server is started with."""

    port: int
    secure: bool
    realms: str | None


@dataclass(frozen=True, slots=True)
class State:
    """A server as it is now."""

    name: str
    running: bool
    pids: dict[str, int]
    port: int
    directory: str
    log: str
    settings: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class Services:
    """The servers of one data directory."""

    def __init__(self, data: Path) -> None:
        self.root = data.absolute() / "services"

    def up(self, names: Sequence[str], *, secure: bool | None, realms: Path | None, say: Say) -> list[State]:
        """Start the servers that do not run, and wait until they answer.

        Args:
            names: which; none: the usual ones.
            secure: Kafka over TLS with a login; None: as the last time, at first without.
            realms: Keycloak's directory of realms to import; None: as the last time.

        Raises:
            ServiceError: one cannot start, or runs otherwise than asked. Those before it run.
        """
        with self._lock():
            return [self._up(name, secure, realms, _from(name, say)) for name in names or USUAL]

    def down(self, names: Sequence[str]) -> list[str]:
        """End the servers that run (none named: all of them); returns their names.

        Raises:
            ServiceError: the directory cannot be used.
        """
        if not self.root.exists():
            return []
        with self._lock():
            return [name for name in names or self._known() if self._down(name)]

    def status(self, names: Sequence[str] = ()) -> list[State]:
        """How the servers are that were ever started here, or those named of them."""
        return [self._state(name) for name in self._known() if not names or name in names]

    def _known(self) -> list[str]:
        return [name for name in NAMES if self._file(name).exists()]

    def _file(self, name: str) -> Path:
        return self.root / name / "service.json"

    def _remembered(self, name: str) -> Remembered | None:
        try:
            return Remembered(**json.loads(self._file(name).read_text()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise ServiceError(f"{self._file(name)} is damaged: {error}") from error

    def _server(self, name: str, remembered: Remembered) -> Server:
        directory = self.root / name
        if name == "kafka":
            return KafkaServer(directory, remembered.port, secure=remembered.secure)
        if name == "mongo":
            return MongoServer(directory, remembered.port)
        realms = None if remembered.realms is None else Path(remembered.realms)
        return KeycloakServer(directory, remembered.port, realms=realms)

    def _up(self, name: str, secure: bool | None, realms: Path | None, say: Say) -> State:
        before = self._remembered(name)
        wanted = _wanted(name, before, secure, realms)
        server = self._server(name, before or wanted)
        found = server.found()
        if len(found) == len(server.parts):
            if before != wanted:
                raise ServiceError(f"{name} runs with other options; end it first: razao services down {name}")
            say(f"runs on port {server.port}")
            return self._state(name)
        # A server that lost a part of itself is of no use to anybody: it starts whole.
        _end(found)
        (self.root / name).mkdir(parents=True, exist_ok=True, mode=0o700)
        write_private(self._file(name), json.dumps(asdict(wanted)))
        server = self._server(name, wanted)
        try:
            server.start(progress=say)
        except ServiceError as error:
            hint = f"; remove {self._file(name)} to have another chosen" if "is taken" in str(error) else ""
            raise ServiceError(f"{name}: {error}{hint}") from error
        say(f"serves on port {server.port}")
        return self._state(name)

    def _down(self, name: str) -> bool:
        remembered = self._remembered(name)
        found = {} if remembered is None else self._server(name, remembered).found()
        _end(found)
        return bool(found)

    def _state(self, name: str) -> State:
        remembered = self._remembered(name)
        if remembered is None:
            raise ServiceError(f"{name} was never started in {self.root}")
        server = self._server(name, remembered)
        found = server.found()
        return State(
            name=name,
            running=len(found) == len(server.parts),
            pids={part: process.pid for part, process in found.items()},
            port=server.port,
            directory=str(server.directory),
            log=str(server.log),
            settings=server.engine_settings if found else {},
        )

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ServiceError(f"cannot use {self.root}: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _wanted(name: str, before: Remembered | None, secure: bool | None, realms: Path | None) -> Remembered:
    """What was remembered, with what is asked now instead."""
    port = free_ports(1)[0] if before is None else before.port
    was_secure, old_realms = (False, None) if before is None else (before.secure, before.realms)
    return Remembered(
        port=port,
        secure=name == "kafka" and (was_secure if secure is None else secure),
        realms=str(realms.absolute()) if name == "keycloak" and realms is not None else old_realms,
    )


def _from(name: str, say: Say) -> Say:
    return lambda line: say(f"{name}: {line}")


def _end(found: dict[str, psutil.Process]) -> None:
    # One after the other: a part must not lose what it stands on while it still works.
    for process in found.values():
        end([process], _GRACE_S)
