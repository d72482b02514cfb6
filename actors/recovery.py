"""How a shard comes to life: fence first, then the newest snapshot, then the journal up to its own open record.

Replay applies the journaled rows through the same kernel and compares every code with what the journal says was
answered. Any difference, gap or damage ends the recovery with an error that names partition and offset: a shard that is
not sure of its balances serves none. Records that were decided by older rules are carried out as they tell.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping
from functools import cache, partial
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from actors import ledger
from actors.ledger import Book, Capacity
from storage import record
from storage.events import BALANCE, EVENT, RESULT
from storage.journal import Corrupt, Journal, Writer
from storage.record import START, Chain, Opened, Position, Reader, Record
from storage.snapshots import Snapshot, SnapshotStore

_LOG: Final = logging.getLogger(__name__)
Array = npt.NDArray[Any]
_HOUR_NS: Final = 3600 * 10**9
_NOTHING: Final = Capacity(2, 2, 2, 2, 2, 2)


class Windows(NamedTuple):
    """How long what is remembered, ns. Fixed when the ledger is created: replay depends on them."""

    id_window_ns: int = 48 * _HOUR_NS
    id_skew_ns: int = 300 * 10**9
    refund_window_ns: int = 90 * 24 * _HOUR_NS


LoadSnapshot = Callable[[int], Awaitable[Snapshot | None]]
"""Gives a partition's newest valid snapshot. Its meta has `last_ns`, the stamp of the newest row in it, and `rules`, by
whose version its writer decided."""


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


@cache
def warm_up() -> None:
    """Compile the kernel, or load it from its cache: after an upgrade that takes many seconds, and the partition should
    not stand still meanwhile."""
    book = ledger.new_book(0, 1, capacity=_NOTHING)
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
    ) -> None:
        self.partition = partition
        self.partitions = partitions
        self._journal = journal
        self._snapshots = snapshots
        self._chain_key = chain_key
        self._windows = windows
        self._capacity = capacity
        self._identity = {
            "name": name,
            **({"host": socket.gethostname(), "pid": os.getpid()} if identity is None else identity),
        }

    async def fence(self) -> Writer:
        """Take the partition over, when everything is ready for it.

        Raises:
            Corrupt: it is of another format. Then it is left as it is, for the program that wrote it.
            JournalError: the journal cannot be reached.
        """
        warm_up()
        head = await self._journal.head(self.partition)
        async for stored in self._journal.read(self.partition, max(0, head - 1), head):
            record.check_format(stored, self.partition)
        opened = record.encode_open(
            self.partition, self._identity, rules=ledger.RULES, capacity=self._capacity._asdict()
        )
        return await self._journal.open(self.partition, opened)

    async def replay(self, writer: Writer) -> Recovered:
        """The book as of `writer`'s open record.

        Raises:
            Corrupt: the journal is damaged or does not say what the kernel says.
        """
        replay, position, last_ns = await self._start()
        if position.offset > writer.epoch + 1:  # a projector may have seen the own open record already
            raise Corrupt(self.partition, position.offset, "a snapshot from after the journal's end")
        reader = Reader(self._journal, self.partition, self._chain_key, position)
        async for entry in reader.entries(writer.epoch + 1):
            if isinstance(entry, Opened):
                replay.opened(entry)
            else:
                replay.apply(entry)
                last_ns = int(entry.rows["at"][-1])
        end = reader.position
        if end.epoch != writer.epoch:
            raise Corrupt(self.partition, writer.epoch, "the own open record is not there")
        return Recovered(replay.book, Chain(self._chain_key, end.chain), end.sequence, writer.epoch, last_ns)

    async def _start(self) -> tuple[Replay, Position, int]:
        """Where replay begins: book, position, and the stamp of the newest row before it."""
        saved = None if self._snapshots is None else await self._snapshots(self.partition)
        if saved is not None:
            try:
                replay = Replay(ledger.restore(saved.arrays), int(saved.meta["rules"]))
                return replay, saved.position, int(saved.meta["last_ns"])
            except (KeyError, ValueError) as error:
                _LOG.warning("partition %d: the snapshot is not used: %s", self.partition, error)
        return Replay.from_start(self.partition, self.partitions, self._windows, self._chain_key), START, 0


class Replayed(NamedTuple):
    """What replay gave for a record's rows."""

    results: Array  # (n,) RESULT
    balances: Array  # (n,) BALANCE


def empty_book(partition: int, partitions: int, windows: Windows, chain_key: bytes, capacity: Capacity) -> Book:
    """A partition's book before its first event."""
    secret = hashlib.blake2b(b"book %d" % partition, key=chain_key).digest()
    return ledger.new_book(partition, partitions, **windows._asdict(), capacity=capacity, secret=secret)


class Replay:
    """A book that follows a journal: open records change its capacities, data records its content."""

    def __init__(self, book: Book, rules: int = ledger.RULES) -> None:
        """`book`: as of some record, from a snapshot; `rules`: of the writer before it."""
        self.book = book
        self.rules = rules
        self._empty: Callable[[Capacity], Book] | None = None

    @classmethod
    def from_start(cls, partition: int, partitions: int, windows: Windows, chain_key: bytes) -> Replay:
        """For the first record of a partition, whose capacities make the book."""
        empty = partial(empty_book, partition, partitions, windows, chain_key)
        replay = cls(empty(_NOTHING))
        replay._empty = empty
        return replay

    def opened(self, opened: Opened) -> None:
        """Go on as that writer did.

        Raises:
            Corrupt: it decides by rules that this program does not know.
        """
        if opened.rules > ledger.RULES:
            why = f"decided by rules {opened.rules}, this program knows them up to {ledger.RULES}"
            raise Corrupt(opened.partition, opened.offset, why)
        self.rules = opened.rules
        capacity = Capacity(**opened.capacity)
        self.book = ledger.resized(self.book, capacity) if self._empty is None else self._empty(capacity)
        self._empty = None

    def apply(self, found: Record) -> Replayed:
        """Apply a record's rows, which must give the same answers as are journaled.

        Raises:
            Corrupt: they do not, or the book is not the one that the record was written from.
        """
        replayed = self.judge(found)
        for row, name, journaled, ours in differences(found, replayed.results, told=self.told):
            why = f"event {row} has {name} {journaled} in the journal, and {ours} by replay"
            raise Corrupt(found.partition, found.offset, why)
        return replayed

    @property
    def told(self) -> bool:
        """Whether what comes is of older rules: then its codes are taken as told, not judged."""
        return self.rules != ledger.RULES

    def judge(self, found: Record) -> Replayed:
        """Apply a record's rows, whatever they give; see `differences`."""
        results = np.zeros(len(found.rows), RESULT)
        balances = np.zeros(len(found.rows), BALANCE)
        if self.told:
            ledger.apply_told(self.book, found.rows, found.codes, results, balances, found.utc_offset_s)
        else:
            ledger.apply(self.book, found.rows, results, balances, found.utc_offset_s)
        return Replayed(results, balances)


def differences(found: Record, results: Array, *, told: bool = False) -> Iterator[tuple[int, str, int, int]]:
    """Where replay differs from a record: row, `code` or `detail`, the journal's and the replay's value."""
    for name, journaled in (("code", found.codes), ("detail", found.details)):
        if told and name == "detail":
            continue  # a told refusal is not worked out again
        for row in np.flatnonzero(results[name] != journaled).tolist():
            yield row, name, int(journaled[row]), int(results[name][row])
