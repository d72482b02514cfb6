"""What a shard has answered lately, by the ids that it is about: for who asks what the query side does not have yet.

Rows stay as they were journaled, record by record. They are kept in two halves: when the newer one is full the older
one is dropped whole, so nothing is ever removed row by row. Small records are found by an index of their ids, which
many are added to at a time, when somebody asks or some thousand rows have come; large ones, of which there are few, are
searched.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from actors.frames import Array, Notes, joined
from storage.events import EVENT, RESULT, Code, Kind, place
from storage.found import Found, not_told
from storage.ids import Id

ROWS_TOLD: Final = 256
"""Rows that are told of one id. Of one with more, nothing is: whoever asks must ask the query side."""

_PLACE_BITS: Final = 8
_INDEXED: Final = 1 << _PLACE_BITS  # rows of a record
_AT_ONCE: Final = 4_096  # rows, so that nobody who asks waits for more than a millisecond
_SHIFT: Final = 12  # an id's slot is the same for all ids of an account
_POST: Final = int(Kind.POST)
_REFUND: Final = int(Kind.REFUND)  # the last of those that refer to another: POST, VOID, EXPIRE, REFUND
_SETTLE: Final = int(Kind.SETTLE)
_REVERT: Final = int(Kind.REVERT)
_IN_FLIGHT: Final = int(Code.IN_FLIGHT)
_KIND: Final = place(EVENT, "kind")
_CODE: Final = place(RESULT, "code")


class _Record:
    """The rows of one record of the journal."""

    __slots__ = ("keys", "notes", "offset", "results", "rows")

    def __init__(self, rows: Array, results: Array, notes: Notes | None, offset: int) -> None:
        self.rows = rows
        self.results = results
        self.notes = notes
        self.offset = offset
        self.keys: tuple[Array, Array] | None = None  # of one that is searched

    def rows_by(self, key: int) -> list[int]:
        """The places of its rows that are about a key, perhaps; of more than `ROWS_TOLD` not all."""
        if self.keys is None:
            self.keys = _keys(self.rows)
        keys, rows = self.keys
        some = np.flatnonzero(keys == key)[: 2 * (ROWS_TOLD + 1)]  # a row is there twice at most
        return np.unique(rows[some]).tolist()  # type: ignore[no-any-return]


def _refers(kinds: Array) -> npt.NDArray[np.bool_]:
    refers: npt.NDArray[np.bool_] = (kinds >= _POST) & (kinds <= _REFUND)
    return refers


def _keys(rows: Array) -> tuple[Array, Array]:
    """What rows are found by, and which rows."""
    refer = np.flatnonzero(_refers(rows["kind"]))
    keys = np.concatenate((rows["id_lo"], rows["ref_lo"][refer])) >> _SHIFT
    return keys, np.concatenate((np.arange(len(rows)), refer))


class _Half:
    """Records that follow each other, and where they are found."""

    __slots__ = ("fresh_rows", "index", "indexed", "large", "rows", "since", "size", "small")

    def __init__(self, since: int) -> None:
        self.since = since  # offset of the first
        self.small: list[_Record] = []
        self.large: list[_Record] = []
        # By key, where a row is: its record's number in `small`, and its place there. A list if there are several.
        self.index: dict[int, int | list[int]] = {}
        self.indexed = 0  # of `small`
        self.fresh_rows = 0  # of those that are not
        self.rows = 0
        self.size = 0

    def add(self, record: _Record) -> None:
        self.rows += len(record.rows)
        self.size += record.rows.nbytes + record.results.nbytes
        self.size += 0 if record.notes is None else sum(map(len, filter(None, record.notes)))
        if len(record.rows) > _INDEXED:
            self.large.append(record)
            return
        self.small.append(record)
        self.fresh_rows += len(record.rows)
        if self.fresh_rows >= _AT_ONCE:
            self._index_fresh()

    def _index_fresh(self) -> None:
        index, fresh = self.index, self.small[self.indexed :]
        lengths = [len(record.rows) for record in fresh]
        starts = np.cumsum(lengths) - lengths
        firsts = np.arange(self.indexed, len(self.small)) << _PLACE_BITS
        where = np.arange(self.fresh_rows) + np.repeat(firsts - starts, lengths)
        keys, rows = _keys(joined([record.rows for record in fresh]))
        order = np.argsort(rows, kind="stable")
        for key, row in zip(keys[order].tolist(), where[rows[order]].tolist(), strict=True):
            there = index.setdefault(key, row)
            if isinstance(there, list):
                if there[-1] != row and len(there) <= ROWS_TOLD:
                    there.append(row)
            elif there != row:
                index[key] = [there, row]
        self.indexed, self.fresh_rows = len(self.small), 0

    def rows_of(self, key: int) -> list[tuple[_Record, int]]:
        """Records and places in them that are about it, perhaps; more than `ROWS_TOLD` of them need not be all."""
        if self.fresh_rows:
            self._index_fresh()
        there = self.index.get(key, [])
        rows = [there] if isinstance(there, int) else there
        found = [(self.small[row >> _PLACE_BITS], row & (_INDEXED - 1)) for row in rows]
        for record in self.large:
            if len(found) > ROWS_TOLD:
                break
            found += [(record, row) for row in record.rows_by(key)]
        return found


class Recent:
    """The newest rows of one partition: at least half of `rows_max` and `bytes_max`, if there have been as many, and at
    most those and one record more."""

    def __init__(self, since: int, *, rows_max: int, bytes_max: int) -> None:
        self._older = _Half(since)
        self._newer = _Half(since)
        self._rows_max = rows_max // 2
        self._bytes_max = bytes_max // 2

    @property
    def since(self) -> int:
        """The offset from which on it has everything."""
        return self._older.since

    def add(self, rows: Array, results: Array, notes: Notes | None, offset: int) -> None:
        """The rows of the next record, at `offset`: (n,) EVENT and (n,) RESULT, which nobody changes any more."""
        if self._newer.rows >= self._rows_max or self._newer.size >= self._bytes_max:
            self._older, self._newer = self._newer, _Half(offset)
        self._newer.add(_Record(rows, results, notes, offset))

    def find(self, id_: Id, head: int) -> Found:
        """What there is about an id; nothing but where it ends when that is too much to tell."""
        found = _Finding()
        if not self._gather(found, id_, all_of_it=True):
            return not_told(head)
        # What became of a post in flight stands under the post's own id.
        for other in found.flying:
            if other != id_ and not self._gather(found, other, all_of_it=False):
                return not_told(head)
        return found.told(self.since, head)

    def _gather(self, found: _Finding, id_: Id, *, all_of_it: bool) -> bool:
        for half in (self._older, self._newer):
            rows = half.rows_of(id_[1] >> _SHIFT)
            if len(rows) > ROWS_TOLD:
                return False
            for record, row in rows:
                event = record.rows.item(row)
                ends = event[_KIND] == _SETTLE or event[_KIND] == _REVERT
                own = event[:2] == id_ and (all_of_it or ends)
                if (own or (all_of_it and event[2:4] == id_ and _POST <= event[_KIND] <= _REFUND)) and not found.add(
                    record, row, event[:2]
                ):
                    return False
        return True


class _Finding:
    """What was found so far."""

    def __init__(self) -> None:
        self.flying: list[Id] = []
        self._rows: list[bytes] = []
        self._results: list[bytes] = []
        self._offsets: list[int] = []
        self._notes: list[bytes | None] = []

    def add(self, record: _Record, row: int, id_: Id) -> bool:
        """Take a row, which has that id; False when there are too many."""
        if len(self._rows) == ROWS_TOLD:
            return False
        self._rows.append(record.rows[row].tobytes())
        self._results.append(record.results[row].tobytes())
        self._offsets.append(record.offset)
        self._notes.append(None if record.notes is None else record.notes[row])
        if record.results.item(row)[_CODE] == _IN_FLIGHT:
            self.flying.append(id_)
        return True

    def told(self, since: int, head: int) -> Found:
        return Found(
            np.frombuffer(b"".join(self._rows), EVENT),
            np.frombuffer(b"".join(self._results), RESULT),
            np.array(self._offsets, np.int64),
            self._notes,
            since,
            head,
        )


_USES: Final = tuple(map(int, (Kind.TRANSFER, Kind.HOLD, Kind.DEPOSIT, Kind.WITHDRAWAL, Kind.REFUND)))
_DEPOSIT: Final = int(Kind.DEPOSIT)


def decider(found: Found, id_: Id) -> int:
    """The account whose shard decided the newest use of the id, if that is a payment or hold among the rows, else 0."""
    account = newest = 0
    for event in found.rows.tolist():
        high, low, _, _, debit, credit, _, at, *_ = event
        if event[_KIND] in _USES and at >= newest and (high, low) == id_:
            account, newest = credit if event[_KIND] == _DEPOSIT else debit, at
    return account
