"""Where a benchmark's journal lies: servers of its own, and a description of a place that other processes can open."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import psutil

from cluster.postgres import PostgresServer
from cluster.processes import free_ports
from cluster.services.kafka import KafkaServer
from loadtests.rows import DURABLE
from storage.journal import Journal
from storage.journal.kafka import KafkaJournal
from storage.journal.kafka_client import KafkaAddress
from storage.journal.kafka_topic import TopicSettings
from storage.journal.postgres import PostgresJournal

FLUSHED: Final = "flush.messages=1, acks=all, one Kafka broker"
BY_THE_SYSTEM: Final = "acks=all, one Kafka broker, flushed when the system does"

_numbers: Final = itertools.count()
_NEVER: Final = str(2**63 - 1)


@dataclass(frozen=True, slots=True)
class Place:
    """A journal to be: in a database, or in a topic of a broker."""

    name: str
    durability: str
    address: str  # DSN, or bootstrap server
    pid: int  # of the server
    topic: str = ""  # empty: PostgreSQL
    flushed: bool = True

    def journal(self) -> Journal:
        """The journal there; the same one from any process."""
        if not self.topic:
            return PostgresJournal(self.address)
        settings = TopicSettings(flush_messages=1 if self.flushed else None)
        return KafkaJournal(KafkaAddress(self.address), self.topic, settings=settings)

    def fresh(self) -> Place:
        """A place on the same server where nothing lies yet. (A database has one ledger: take another server.)"""
        return replace(self, topic=f"bench-{next(_numbers)}") if self.topic else self

    def cpu_s(self) -> float:
        """CPU seconds that the server has used, its ended children included."""
        total = 0.0
        server = psutil.Process(self.pid)
        for process in (server, *server.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                used = process.cpu_times()
                total += used.user + used.system
                if process == server:
                    total += used.children_user + used.children_system
        return total

    def rss_mb(self) -> float:
        """Memory of the server's process, MB."""
        return float(psutil.Process(self.pid).memory_info().rss) / 1e6


@contextlib.contextmanager
def postgres(directory: Path) -> Iterator[Place]:
    """A PostgreSQL server as the engine embeds it."""
    server = PostgresServer(directory, free_ports(1)[0])
    try:
        server.start()
        assert server.pid is not None
        yield Place("embedded", DURABLE, server.dsn, server.pid)
    finally:
        server.stop()


@contextlib.contextmanager
def kafka(directory: Path) -> Iterator[tuple[Place, Place]]:
    """A broker as the engine starts it: a place where every record is flushed, and one where the system decides."""
    server = KafkaServer(directory, free_ports(1)[0], settings={"log.flush.interval.messages": _NEVER})
    try:
        server.start()
        assert server.pid is not None
        flushed = Place("Kafka, flushed", FLUSHED, server.bootstrap, server.pid, "bench")
        yield flushed, replace(flushed, name="Kafka, not flushed", durability=BY_THE_SYSTEM, flushed=False)
    finally:
        server.stop()
