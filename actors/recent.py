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
from storage.events import EVENT, RESULT, Code, Kind
from storage.found import Found, not_told
from storage.ids import Id

ROWS_TOLD: Final = 256
"""Rows that are told of one id. Of one with more, nothing is: whoever asks must ask the query side."""

_INDEXED: Final = 256  # rows of a record
_AT_ONCE: Final = 4_096  # rows, so that nobody who asks waits for more than a millisecond
_RECORDS_MAX: Final = 64  # that the index names for one key
_SHIFT: Final = 12  # an id's slot is the same for all ids of an account
_POST: Final = int(Kind.POST)
_REFUND: Final = int(Kind.REFUND)  # the last of those that refer to another: POST, VOID, EXPIRE, REFUND
_SETTLE: Final = int(Kind.SETTLE)
_REVERT: Final = int(Kind.REVERT)
_IN_FLIGHT: Final = int(Code.IN_FLIGHT)


class _Record:
    """The rows of one record of the journal."""

    __slots__ = ("keys", "notes", "offset", "results", "rows")

    def __init__(self, rows: Array, results: Array, notes: Notes | None, offset: int) -> None:
        self.rows = rows
        self.results = results
        self.notes = notes
        self.offset = offset
        self.keys: Array | None = None

    def all_keys(self) -> Array:
        """What its rows are found by, as the index has it; only kept where the record is searched."""
        if self.keys is None:
            self.keys = _keys(self.rows)[0]
        return self.keys


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

    __slots__ = ("fresh", "fresh_rows", "index", "large", "rows", "since", "size")

    def __init__(self, since: int) -> None:
        self.since = since  # offset of the first
        self.index: dict[int, _Record | list[_Record]] = {}
        self.large: list[_Record] = []
        self.fresh: list[_Record] = []  # not in the index yet
        self.fresh_rows = 0
        self.rows = 0
        self.size = 0

    def add(self, record: _Record) -> None:
        self.rows += len(record.rows)
        self.size += record.rows.nbytes + record.results.nbytes
        self.size += 0 if record.notes is None else sum(map(len, filter(None, record.notes)))
        if len(record.rows) > _INDEXED:
            self.large.append(record)
            return
        self.fresh.append(record)
        self.fresh_rows += len(record.rows)
        if self.fresh_rows >= _AT_ONCE:
            self._index_fresh()

    def _index_fresh(self) -> None:
        index, fresh = self.index, self.fresh
        keys, places = _keys(joined([record.rows for record in fresh]))
        owners = np.repeat(np.arange(len(fresh)), [len(record.rows) for record in fresh])[places]
        order = np.argsort(owners, kind="stable")
        for key, owner in zip(keys[order].tolist(), owners[order].tolist(), strict=True):
            record = fresh[owner]
            there = index.setdefault(key, record)
            if isinstance(there, list):
                if there[-1] is not record and len(there) <= _RECORDS_MAX:
                    there.append(record)
            elif there is not record:
                index[key] = [there, record]
        self.fresh, self.fresh_rows = [], 0

    def records(self, key: int) -> list[_Record] | None:
        """Those with rows about it, perhaps; None: too many to tell."""
        if self.fresh:
            self._index_fresh()
        found = self.index.get(key, [])
        if not isinstance(found, list):
            found = [found]
        if len(found) > _RECORDS_MAX:
            return None
        return found + [record for record in self.large if bool((record.all_keys() == key).any())]


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
        high, low = id_
        for half in (self._older, self._newer):
            records = half.records(low >> _SHIFT)
            if records is None:
                return False
            for record in records:
                kinds = record.rows["kind"]
                mask = (record.rows["id_lo"] == low) & (record.rows["id_hi"] == high)
                if all_of_it:
                    mask |= (record.rows["ref_lo"] == low) & (record.rows["ref_hi"] == high) & _refers(kinds)
                else:
                    mask &= (kinds == _SETTLE) | (kinds == _REVERT)
                if not found.add(record, np.flatnonzero(mask)):
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

    def add(self, record: _Record, places: Array) -> bool:
        """Take the rows at `places`; False when that is too many."""
        if len(places) + len(self._offsets) > ROWS_TOLD:
            return False
        if len(places):
            rows, results = record.rows[places], record.results[places]
            self._rows.append(rows.tobytes())
            self._results.append(results.tobytes())
            self._offsets += [record.offset] * len(places)
            self._notes += [None if record.notes is None else record.notes[place] for place in places.tolist()]
            flying = results["code"] == _IN_FLIGHT
            self.flying += zip(rows["id_hi"][flying].tolist(), rows["id_lo"][flying].tolist(), strict=True)
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
    for row in found.rows:
        kind = int(row["kind"])
        if kind in _USES and int(row["at"]) >= newest and (int(row["id_hi"]), int(row["id_lo"])) == id_:
            account, newest = int(row["credit" if kind == _DEPOSIT else "debit"]), int(row["at"])
    return account
