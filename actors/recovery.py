"""How a shard comes to life: fence first, then the newest snapshot, then the journal up to its own open record.

Replay applies the journaled rows through the same kernel and compares every code with what the journal says was
answered. Any difference, gap or damage ends the recovery with an error that names partition and offset: a shard that is
not sure of its balances serves none.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from actors import ledger
from actors.ledger import Book, Capacity
from storage import record
from storage.events import BALANCE, EVENT, RESULT
from storage.journal import Corrupt, Journal, Writer
from storage.record import START, Chain, Position, Reader, Record
from storage.snapshots import Snapshot, SnapshotStore

_LOG: Final = logging.getLogger(__name__)
Array = npt.NDArray[Any]
_HOUR_NS: Final = 3600 * 10**9


class Windows(NamedTuple):
    """How long what is remembered, ns. Fixed when the ledger is created: replay depends on them."""

    id_window_ns: int = 48 * _HOUR_NS
    id_skew_ns: int = 300 * 10**9
    refund_window_ns: int = 90 * 24 * _HOUR_NS


LoadSnapshot = Callable[[int], Awaitable[Snapshot | None]]
"""Gives a partition's newest valid snapshot. Its meta has `last_ns`, the stamp of the newest row in it."""


def saved_in(store: SnapshotStore) -> LoadSnapshot:
    """Snapshots from a store, read in a thread."""

    async def load(partition: int) -> Snapshot | None:
        return await asyncio.to_thread(store.load_newest, partition)

    return load


class Recovered(NamedTuple):
    """What a shard goes on with."""

    book: Book
    chain: Chain
    sequence: int
    offset: int  # of the newest record: the own open record's
    last_ns: int  # stamp of the newest row
    alone: bool  # every predecessor that could still answer reads is known to be dead


class _Writers(NamedTuple):
    """An earlier writer, as the tail of the journal shows it."""

    identity: Mapping[str, Any]
    wrote: bool  # at least one record of its own counts


def own_identity() -> dict[str, Any]:
    """This process, so that a successor on the same machine can tell whether it still lives."""
    return {"host": _host(), "pid": os.getpid(), "start": _started(os.getpid())}


def known_dead(identity: Mapping[str, Any]) -> bool:
    """Whether that process is certainly gone. A process that cannot be seen from here is not."""
    try:
        if str(identity["host"]) != _host() or not Path("/proc/self/stat").exists():
            return False
        return _started(int(identity["pid"])) != int(identity["start"])
    except (KeyError, TypeError, ValueError):
        return False


def _host() -> str:
    """One boot of one machine, and one name space of its process ids."""
    parts = []
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(parts) if len(parts) == 2 else f"unknown {os.getpid()}"


def _started(pid: int) -> int | None:
    """Clock ticks from boot to the start of a process; None when there is none (a zombie answers no more either)."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if after_name[0] in {"Z", "X"} else int(after_name[19])


@cache
def warm_up() -> None:
    """Compile the kernel, or load it from its cache: after an upgrade that takes many seconds, and the partition should
    not stand still meanwhile."""
    book = ledger.new_book(0, 1, capacity=Capacity(2, 2, 2, 2, 2))
    ledger.apply(book, np.zeros(0, EVENT), np.zeros(0, RESULT), np.zeros(0, BALANCE), 0)
    ledger.read_accounts(book, np.zeros(0, np.uint64), np.zeros(0, np.uint64), 0)


class Recovery:
    """One partition's recovery, by one process."""

    def __init__(
        self,
        partition: int,
        partitions: int,
        *,
        journal: Journal,
        snapshots: LoadSnapshot | None,
        chain_key: bytes,
        name: str,
        windows: Windows = Windows(),  # noqa: B008 - immutable
        capacity: Capacity = Capacity(),  # noqa: B008 - immutable
        identity: Mapping[str, Any] | None = None,
        known_dead: Callable[[Mapping[str, Any]], bool] = known_dead,
    ) -> None:
        self.partition = partition
        self.partitions = partitions
        self._journal = journal
        self._snapshots = snapshots
        self._chain_key = chain_key
        self._windows = windows
        self._capacity = capacity
        self._identity = {"name": name, **(own_identity() if identity is None else identity)}
        self._known_dead = known_dead

    async def fence(self) -> Writer:
        """Take the partition over, when everything is ready for it.

        Raises:
            JournalError: the journal cannot be reached.
        """
        warm_up()
        return await self._journal.open(self.partition, record.encode_open(self.partition, self._identity))

    async def replay(self, writer: Writer) -> Recovered:
        """The book as of `writer`'s open record.

        Raises:
            Corrupt: the journal is damaged or does not say what the kernel says.
        """
        book, position, last_ns = await self._start()
        if position.offset > writer.epoch:
            raise Corrupt(self.partition, position.offset, "a snapshot from after the journal's end")
        reader = Reader(self._journal, self.partition, self._chain_key, position)
        writers: list[_Writers] = []
        wrote = False
        async for stored in self._journal.read(self.partition, position.offset, writer.epoch + 1):
            before = reader.newest
            found = reader.take(stored)
            if found is not None:
                replay(book, found)
                last_ns = int(found.rows["at"][-1])
                wrote = True
            elif reader.newest is not before:
                if before is not None:
                    writers.append(_Writers(before.writer, wrote))
                elif position.epoch >= 0:
                    first = await record.read_open(self._journal, self.partition, position.epoch)
                    writers.append(_Writers(first.writer, wrote))
                wrote = False
        end = reader.position
        if end.epoch != writer.epoch:
            raise Corrupt(self.partition, writer.epoch, "the own open record is not there")
        alone = self._alone(writers, position)
        return Recovered(book, Chain(self._chain_key, end.chain), end.sequence, writer.epoch, last_ns, alone)

    async def _start(self) -> tuple[Book, Position, int]:
        """Where replay begins: book, position, and the stamp of the newest row before it."""
        saved = None if self._snapshots is None else await self._snapshots(self.partition)
        if saved is not None:
            try:
                return ledger.restore(saved.arrays, self._capacity), saved.position, int(saved.meta["last_ns"])
            except (KeyError, ValueError) as error:
                _LOG.warning("partition %d: the snapshot is not used: %s", self.partition, error)
        return self._new_book(), START, 0

    def _new_book(self) -> Book:
        windows = self._windows
        return ledger.new_book(
            self.partition,
            self.partitions,
            id_window_ns=windows.id_window_ns,
            id_skew_ns=windows.id_skew_ns,
            refund_window_ns=windows.refund_window_ns,
            capacity=self._capacity,
        )

    def _alone(self, writers: list[_Writers], start: Position) -> bool:
        """A writer with a record that counts has served, so whoever was before it has no lease any more. One without
        may have died while it waited for its own predecessor's lease: then that one matters as well."""
        for writer in reversed(writers):
            if not self._known_dead(writer.identity):
                return False
            if writer.wrote:
                return True
        return start.epoch < 0


class Replayed(NamedTuple):
    """What replay gave for a record's rows."""

    results: Array  # (n,) RESULT
    balances: Array  # (n,) BALANCE


def replay(book: Book, found: Record) -> Replayed:
    """Apply a record's rows to `book`, which must give the same answers as are journaled.

    Raises:
        Corrupt: it does not, or the book is not the one that the record was written from.
    """
    results = np.zeros(len(found.rows), RESULT)
    balances = np.zeros(len(found.rows), BALANCE)
    ledger.apply(book, found.rows, results, balances, found.utc_offset_s)
    for name, journaled in (("code", found.codes), ("detail", found.details)):
        differs = results[name] != journaled
        if differs.any():
            row = int(np.argmax(differs))
            why = f"event {row} has {name} {journaled[row]} in the journal, and {results[name][row]} by replay"
            raise Corrupt(found.partition, found.offset, why)
    return Replayed(results, balances)
