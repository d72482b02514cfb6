"""The projection: follows every partition's journal with a book of its own and adds what happened to the query store.

The own book is what gives each entry its running balance, proves that replay gives the codes that were journaled, and
is what snapshots are written from, so that the shards do none of that on their way to an answer. Plain asyncio over a
journal, a query store and a snapshot store that are handed in; `actors/projector.py` is the process around it.

Each partition's book and its rows in the store move apart only by crashes, and either may be the one behind: the book
starts from a snapshot that is not ahead of the store, and records that the store has already are applied and not added.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NamedTuple, cast

import asyncpg
import numpy as np

from actors import ledger, postings
from actors.ledger import Book
from actors.postings import Rows, Stretch
from actors.recovery import Replay, Windows
from storage.journal import Corrupt, Journal, JournalError
from storage.query_store import Chunk, Note, Overtaken, QueryStore
from storage.record import START, Opened, Position, Reader, Record
from storage.snapshots import InvalidSnapshot, SnapshotStore

_LOG: Final = logging.getLogger(__name__)
_RETRY_S: Final = (0.05, 2.0)
_CHECK_S: Final = 1.0
_STORE_AWAY: Final = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # the driver's word for a connection that ends between two of its states
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.TransactionRollbackError,
)
"""What another try may not meet."""

_STORE_REMADE: Final = (Overtaken, asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError)
"""The store is not where we left it: it was dropped, or another projector was at work."""


class Limits(NamedTuple):
    """How much at once, and how often."""

    chunk_rows: int = 32_768  # events in one transaction; a record is never split
    snapshot_records: int = 20_000
    snapshot_rows: int = 20_000_000
    snapshot_s: float = 60.0  # when records have come
    poll_s: tuple[float, float] = (0.1, 0.25)  # while records come, and after long silence, if nobody waits
    wanted_s: float = 0.005  # between two looks when somebody does


@dataclass(frozen=True, slots=True)
class PartitionStats:
    """How far one partition is projected."""

    partition: int
    next_offset: int  # of the query store
    head: int  # of the journal, when it was last looked at
    at: int  # of the newest event projected, ns; 0 = none by this process
    rows: int  # projected by this process
    snapshot: int  # offset of the newest snapshot of this process; -1 = none


class Applied(NamedTuple):
    """A record after its replay."""

    record: Record
    results: Rows  # (n,) RESULT
    balances: Rows  # (n,) BALANCE
    origins: Rows  # (n,) ORIGIN


def replay(replaying: Replay, record: Record) -> Applied:
    """Replay a record, with what its events refer to in the book as it was before.

    Raises:
        Corrupt: see `Replay.apply`.
    """
    origins = postings.origins(replaying.book, record.rows)
    results, balances = replaying.apply(record)
    return Applied(record, results, balances, origins)


class PartitionProjection:
    """One partition: its reader, its book, and what is on its way into the store."""

    def __init__(
        self,
        partition: int,
        partitions: int,
        *,
        journal: Journal,
        store: QueryStore,
        snapshots: SnapshotStore,
        chain_key: bytes,
        windows: Windows,
        limits: Limits,
    ) -> None:
        self.partition = partition
        self.projected = 0
        self.head = 0
        self.at = 0
        self.rows = 0
        self.snapshot = -1
        self._partitions = partitions
        self._journal = journal
        self._store = store
        self._snapshots = snapshots
        self._chain_key = chain_key
        self._windows = windows
        self._limits = limits
        self._has_snapshot = False
        self._handed = 0  # offset up to which records were handed to a commit
        self._gathered: list[Applied] = []
        self._gathered_rows = 0
        self._committing: asyncio.Task[None] | None = None
        self._saving: asyncio.Task[None] | None = None

    async def load(self, head: int) -> None:
        """Take up where the store is: the newest snapshot that is not ahead of it, or an empty book.

        Raises:
            Corrupt: the store has more than the journal, whose end is at `head`.
        """
        self.head = head
        self.projected = self._handed = await self._store.offset(self.partition)
        if self._handed > head:
            why = f"the query store has records up to {self._handed}, beyond the journal's end: rebuild it"
            raise Corrupt(self.partition, head, why)
        self._gathered, self._gathered_rows = [], 0
        self._replay, position, self._last_ns = await asyncio.to_thread(self._start)
        self._reader = Reader(self._journal, self.partition, self._chain_key, position)
        self._snapshot_rows, self._snapshot_from, self._snapshot_time = 0, position.offset, time.monotonic()
        self._has_snapshot = position.offset > 0

    @property
    def book(self) -> Book:
        """The book where the reader stands."""
        return self._replay.book

    def _start(self) -> tuple[Replay, Position, int]:
        """The newest usable book that is not ahead of the store, where it stands, and its newest stamp."""
        for file in self._snapshots.files(self.partition):
            if file.offset > self._handed:
                continue
            try:
                found = self._snapshots.load(file)
                replaying = Replay(ledger.restore(found.arrays), int(found.meta["rules"]))
                return replaying, found.position, int(found.meta["last_ns"])
            except (InvalidSnapshot, OSError, ValueError, KeyError) as error:
                _LOG.warning("passing over the snapshot %s: %s", file.path, error)
        return Replay.from_start(self.partition, self._partitions, self._windows, self._chain_key), START, 0

    async def advance(self, head: int) -> None:
        """Project everything up to, not including, offset `head`.

        Raises:
            Corrupt: the journal cannot be trusted from some offset on.
            JournalError: it cannot be reached; call again.
        """
        self.head = head
        entries = cast("AsyncGenerator[Record | Opened, None]", self._reader.entries(head))
        async with contextlib.aclosing(entries):
            async for record in entries:
                if isinstance(record, Opened):
                    self._replay.opened(record)
                    continue
                applied = replay(self._replay, record)
                self._last_ns = int(record.rows["at"][-1])
                self._snapshot_rows += len(record.rows)
                if record.offset >= self._handed:
                    self._gathered.append(applied)
                    self._gathered_rows += len(record.rows)
                if self._gathered_rows >= self._limits.chunk_rows:
                    await self._hand_over()
                await self._save_if_due()
        await self._hand_over()
        await self._committed()
        await self._save_if_due(at_end=True)

    async def save(self) -> None:
        """Write a snapshot of the book where it stands now."""
        if self._saving is not None:
            await self._saving
        await (await self._begin_saving())

    async def close(self) -> None:
        """Leave what is under way; what it would have done is done at the next start."""
        tasks = [task for task in (self._committing, self._saving) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._committing = self._saving = None

    async def _hand_over(self) -> None:
        """Turn what was gathered into columns while the chunk before it is being committed."""
        end = self._reader.position.offset
        if end <= self._handed:
            return  # the store has it already
        gathered, self._gathered, self._gathered_rows = self._gathered, [], 0
        chunk, at = _columns(gathered, self.partition, self._partitions)
        await self._committed()
        start, self._handed = self._handed, end
        self._committing = asyncio.create_task(self._commit(start, end, at, chunk))
        self.rows += sum(len(applied.results) for applied in gathered)

    async def _committed(self) -> None:
        """Wait for the chunk that is being committed."""
        if self._committing is not None:
            await self._committing
            self._committing = None

    async def _commit(self, start: int, end: int, at: int, chunk: Chunk) -> None:
        """Add a chunk, again and again while the store is away. Where it stands tells what became of a lost commit."""
        pause = _RETRY_S[0]
        stands = start
        while stands != end:
            try:
                await self._store.append(self.partition, start, end, at, chunk)
                break
            except _STORE_AWAY as error:
                _LOG.warning("partition %d: the query store is away: %r", self.partition, error)
            await asyncio.sleep(pause)
            pause = min(pause * 2, _RETRY_S[1])
            with contextlib.suppress(*_STORE_AWAY):
                stands = await self._store.offset(self.partition)
        self.projected, self.at = end, max(at, self.at)

    async def _save_if_due(self, *, at_end: bool = False) -> None:
        """Save when enough has come since the last snapshot, and once more at the journal's end when there is none."""
        records = self._reader.position.offset - self._snapshot_from
        limits = self._limits
        full = records >= limits.snapshot_records or self._snapshot_rows >= limits.snapshot_rows
        late = time.monotonic() - self._snapshot_time >= limits.snapshot_s or (at_end and not self._has_snapshot)
        writing = self._saving is not None and not self._saving.done()
        if not writing and (full or (records > 0 and late)):
            await self._begin_saving()

    async def _begin_saving(self) -> asyncio.Task[None]:
        """Begin a snapshot of the book where it stands, once the store has everything that is in it."""
        await self._hand_over()
        await self._committed()
        position = self._reader.position
        self._has_snapshot = True
        self._snapshot_rows, self._snapshot_from, self._snapshot_time = 0, position.offset, time.monotonic()
        meta = {"last_ns": self._last_ns, "rules": self._replay.rules}
        self._saving = asyncio.create_task(self._save(position, ledger.dump(self.book), meta))
        return self._saving

    async def _save(self, position: Position, arrays: dict[str, Rows], meta: dict[str, int]) -> None:
        try:
            await asyncio.to_thread(self._snapshots.save, self.partition, position, arrays, meta)
        except OSError as error:
            # Without it a start takes longer, and nothing else.
            _LOG.warning("partition %d: no snapshot at offset %d: %r", self.partition, position.offset, error)
            return
        self.snapshot = position.offset

    @property
    def stats(self) -> PartitionStats:
        """How far it is."""
        return PartitionStats(self.partition, self.projected, self.head, self.at, self.rows, self.snapshot)


def _columns(gathered: list[Applied], partition: int, partitions: int) -> tuple[Chunk, int]:
    """What the records add to the store, and the newest event's `at`."""
    if not gathered:
        return Chunk.empty(), 0
    records = [applied.record for applied in gathered]
    counts = [len(record.rows) for record in records]
    notes: list[Note] | None = None
    if any(record.notes is not None for record in records):
        notes = [note for record in records for note in (record.notes or [None] * len(record.rows))]
    stretch = Stretch(
        rows=np.concatenate([record.rows for record in records]),
        results=np.concatenate([applied.results for applied in gathered]),
        balances=np.concatenate([applied.balances for applied in gathered]),
        origins=np.concatenate([applied.origins for applied in gathered]),
        positions=np.repeat(np.array([record.offset for record in records], np.int64), counts),
        notes=notes,
    )
    return postings.chunk(stretch, partition, partitions), int(stretch.rows["at"][-1])


class Projection:
    """All partitions of a ledger."""

    def __init__(
        self,
        journal: Journal,
        store: QueryStore,
        snapshots: SnapshotStore,
        *,
        chain_key: bytes,
        windows: Windows = Windows(),  # noqa: B008 - immutable
        limits: Limits = Limits(),  # noqa: B008 - immutable
    ) -> None:
        self.parts: list[PartitionProjection] = []
        self._journal = journal
        self._store = store
        self._part = partial(
            PartitionProjection, journal=journal, store=store, snapshots=snapshots, chain_key=chain_key,
            windows=windows, limits=limits,
        )  # fmt: skip
        self._limits = limits
        self._checked = 0.0
        self._wanted = asyncio.Event()
        self._ear = store.wanted(self._wanted.set)

    async def open(self) -> None:
        """Make the store's tables if they are missing, and take every partition up where the store is.

        Raises:
            Corrupt, JournalError: see `PartitionProjection`.
        """
        await self.close()
        await self._store.create()
        heads = await self._journal.heads()
        if not heads:
            raise JournalError("the journal has no partitions yet")
        self.parts = [self._part(partition, len(heads)) for partition in sorted(heads)]
        await _all(part.load(heads[part.partition]) for part in self.parts)

    async def catch_up(self) -> bool:
        """Project up to the journal's end as it is now; whether there was anything.

        Raises:
            Overtaken: the store is not where it was left.
            Corrupt, JournalError: see `PartitionProjection`.
        """
        heads = await self._journal.heads()
        behind = [part for part in self.parts if heads[part.partition] > part.projected]
        await _all(part.advance(heads[part.partition]) for part in behind)
        if not behind and time.monotonic() - self._checked > _CHECK_S:
            self._checked = time.monotonic()
            stands = await self._store.projected()
            if any(stands.get(part.partition) != part.projected for part in self.parts):
                raise Overtaken("the query store is not where it was left")
        return bool(behind)

    async def save(self) -> None:
        """Write a snapshot of every partition now."""
        await _all(part.save() for part in self.parts)

    async def run(self, caught_up: Callable[[], None] = lambda: None) -> None:
        """Follow the journal for ever, through restarts of the database and rebuilds of the store.

        `caught_up` is called whenever all that there was is projected.

        Raises:
            Corrupt: the journal, or this replay of it, cannot be trusted. Nothing more is projected.
        """
        pause, opened = self._limits.poll_s[0], False
        while True:
            try:
                if not opened:
                    await self.open()
                    opened = True
                await self._ear.ensure()
                self._wanted.clear()
                moved = await self.catch_up()
                caught_up()
                pause = self._limits.poll_s[0] if moved else min(pause * 1.2, self._limits.poll_s[1])
            except Corrupt:
                raise
            except _STORE_REMADE as error:
                _LOG.warning("projecting again from where the query store is: %s", error)
                opened, pause = False, _RETRY_S[0]
            except (JournalError, *_STORE_AWAY) as error:
                _LOG.warning("the projection waits: %r", error)
                pause = min(max(pause, _RETRY_S[0]) * 2, _RETRY_S[1])
            await asyncio.sleep(min(pause, self._limits.wanted_s))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause - self._limits.wanted_s):
                    await self._wanted.wait()

    async def close(self) -> None:
        """Stop what is under way."""
        for part in self.parts:
            await part.close()
        await self._ear.close()

    def stats(self) -> list[PartitionStats]:
        """How far each partition is."""
        return [part.stats for part in self.parts]


async def _all(work: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run everything to its end, then raise the first error: nothing goes on behind the caller's back."""
    for result in await asyncio.gather(*work, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result
