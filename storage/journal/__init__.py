"""The journal: what every implementation promises, and the errors that end a shard.

A partition is a totally ordered log with dense offsets. The log itself decides who may write: a writer takes over by
appending an *open* record, whose offset is its epoch; a record counts only if it carries the epoch of the newest open
record before it, and every reader skips the others by that rule.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol


class JournalError(Exception):
    """The journal cannot be used as asked. The process that meets it must not answer from memory any more."""


class Fenced(JournalError):  # noqa: N818 - the field's own term
    """Another writer has taken the partition over."""


class OutcomeUnknown(JournalError):  # noqa: N818
    """An append may or may not have happened. Only the successor's open record settles it: end the process."""


class Corrupt(JournalError):  # noqa: N818
    """A record is missing, truncated, of an unknown version, or breaks the hash chain."""

    def __init__(self, partition: int, offset: int, why: str) -> None:
        super().__init__(f"partition {partition}, offset {offset}: {why}")
        self.partition = partition
        self.offset = offset
        self.why = why


@dataclass(frozen=True, slots=True)
class Stored:
    """One record as it lies in the log, valid or void: the reader decides."""

    offset: int
    epoch: int  # the writer's epoch; an open record's own offset
    is_open: bool
    payload: bytes


class Writer(Protocol):
    """The one who may append to a partition, until another takes over."""

    partition: int
    epoch: int

    async def append(self, payload: bytes) -> int:
        """Append one record durably; returns its offset.

        Raises:
            Fenced: another writer has taken over; nothing was written that counts.
            OutcomeUnknown: the connection was lost or timed out in between.
        """
        ...

    async def confirm(self) -> None:
        """Look at the log's end: returns when this writer is still unfenced.

        Raises:
            Fenced: it is not.
            JournalError: the journal cannot be reached.
        """
        ...

    async def close(self) -> None:
        """Give up connections. The partition stays with this epoch until somebody opens it."""
        ...


class Journal(Protocol):
    """A set of partitions, fixed when the ledger is created."""

    async def create(self, partitions: int) -> None:
        """Make the partitions, or check that they are there as asked.

        Raises:
            JournalError: the ledger exists with another number of partitions.
        """
        ...

    async def partitions(self) -> int:
        """How many partitions there are; 0 before `create`."""
        ...

    async def open(self, partition: int, payload: bytes) -> Writer:
        """Take the partition over: append an open record that carries `payload`. Its offset is the writer's epoch."""
        ...

    async def head(self, partition: int) -> int:
        """The offset that the next record will get."""
        ...

    async def heads(self) -> dict[int, int]:
        """`head` of every partition, at once."""
        ...

    def read(self, partition: int, offset: int, until: int | None = None) -> AsyncIterator[Stored]:
        """Every stored record from `offset` on (up to, not including, `until`; None = the head at the call).

        Raises:
            Corrupt: an offset is missing.
        """
        ...

    async def close(self) -> None:
        """Give up connections."""
        ...
