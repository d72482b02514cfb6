"""The data directory of an engine: its lock, its secrets, and what the running engine tells other commands.

DATA/engine.lock        held by the supervisor for as long as it lives, also released by kill -9
DATA/secrets.json       0600: engine id, ledger key, passwords; made once
DATA/keys/              0600: the embedded token key and its JWKS
DATA/postgres/          the embedded PostgreSQL
DATA/kafka/             the embedded Kafka broker, when the journal is on one
DATA/snapshots/         books by partition and offset
DATA/run/engine.json    0600: url, ports, pids of the running engine
DATA/run/stopping       and unfinished/: see cluster/farewell.py
DATA/run/shards.json    where each shard listens, written by the directory actor
DATA/log/               logs of the engine's parts
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from storage import private_files

_LOCK_ATTEMPTS = 25


def _take(descriptor: int, how: int) -> bool:
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class EngineError(Exception):
    """A command cannot do what was asked; the message tells the operator why and what to do."""


@dataclass(frozen=True, slots=True)
class Secrets:
    """Made at the first start of a ledger; losing them means losing who owns which account."""

    engine: str  # id that marks every process of this engine
    ledger_key: str  # hex, 32 bytes: owner hashes, slots, the journal's hash chain
    shard_secret: str  # what a replica tells a shard in its hello frame
    gateway_secret: str  # what the gateway tells a replica


@dataclass(frozen=True, slots=True)
class Running:
    """What a running engine tells other commands."""

    pid: int
    url: str
    tls_url: str | None
    vault_url: str | None
    journal: str
    shards: int
    dsn: str
    ray_address: str
    dashboard_url: str
    dashboard_token_file: str | None
    started_at: str
    transport: str
    ingress: str


class DataDirectory:
    """Paths of one engine, with the few reads and writes that several commands share."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.run = self.root / "run"
        self.log = self.root / "log"
        self.keys = self.root / "keys"
        self.postgres = self.root / "postgres"
        self.kafka = self.root / "kafka"
        self.ray = self.root / "ray"
        self.shards_file = self.run / "shards.json"
        self._engine_file = self.run / "engine.json"
        self._secrets_file = self.root / "secrets.json"
        self._lock_file = self.root / "engine.lock"

    def last_words(self, actor: str) -> Path:
        """Where an actor writes why it ended itself."""
        return self.run / f"{actor}.ended"

    def exists(self) -> bool:
        """Whether a ledger was ever made here."""
        return self._secrets_file.exists()

    def make(self) -> Secrets:
        """Create what is missing; returns the secrets.

        Raises:
            EngineError: the directory cannot be used.
        """
        try:
            for path in (self.root, self.run, self.log):
                path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EngineError(f"cannot use {self.root} as data directory: {error.strerror}") from error
        if not self.exists():
            made = Secrets(secrets.token_hex(8), *(secrets.token_hex(32) for _ in range(3)))
            write_private(self._secrets_file, json.dumps(asdict(made)))
        return self.secrets()

    def secrets(self) -> Secrets:
        """The secrets of an existing ledger.

        Raises:
            EngineError: there is no ledger here, or the file is damaged.
        """
        try:
            return Secrets(**json.loads(self._secrets_file.read_text()))
        except FileNotFoundError:
            raise EngineError(f"no engine was ever started in {self.root}; start one with `razao up`") from None
        except (ValueError, TypeError) as error:
            raise EngineError(f"{self._secrets_file} is damaged: {error}") from error

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the directory. Only one supervisor, or one offline job, may.

        Raises:
            EngineError: somebody holds it.
        """
        descriptor = os.open(self._lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            # A look at the lock by another command holds it for an instant: try again before refusing.
            for attempt in range(_LOCK_ATTEMPTS):
                if _take(descriptor, fcntl.LOCK_EX):
                    break
                if attempt == _LOCK_ATTEMPTS - 1:
                    holder = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
                    raise EngineError(f"an engine already runs on {self.root} (pid {holder}); see `razao status`")
                time.sleep(0.02)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
            yield
        finally:
            os.close(descriptor)

    def holder(self) -> int | None:
        """Pid of the supervisor, or offline job, that holds the directory; None when nobody does."""
        try:
            descriptor = os.open(self._lock_file, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            if _take(descriptor, fcntl.LOCK_SH):
                return None
            content = os.read(descriptor, 32)
            return int(content) if content.isdigit() else 0
        finally:
            os.close(descriptor)

    def publish(self, running: Running) -> None:
        """Tell other commands about the running engine."""
        write_private(self._engine_file, json.dumps(asdict(running), indent=1))

    def retract(self) -> None:
        """The engine is down."""
        self._engine_file.unlink(missing_ok=True)
        self.shards_file.unlink(missing_ok=True)

    def running(self) -> Running | None:
        """What the running engine published; None when none runs or it has not come that far."""
        try:
            content: dict[str, Any] = json.loads(self._engine_file.read_text())
        except (FileNotFoundError, ValueError):
            return None
        return Running(**{field.name: content[field.name] for field in fields(Running)})

    def shard_addresses(self) -> list[dict[str, Any]]:
        """Where the shards listen, as the directory actor last wrote it."""
        try:
            content: list[dict[str, Any]] = json.loads(self.shards_file.read_text())
        except (FileNotFoundError, ValueError):
            return []
        return content


def write_private(path: Path, content: str) -> None:
    """Write a file that only its owner may read, in one step that a crash cannot halve."""
    private_files.replace(path, content.encode())
