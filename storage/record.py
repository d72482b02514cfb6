"""What one journal record holds, and the rule by which every reader reads a partition.

A data record is an Arrow IPC stream with one batch, readable by any Arrow library: a column per field of `EVENT`, then
`code` and `detail` of the results and `note`, an opaque text per row. A column of zeros (or of no notes) is left out.
`at` is given by the metadata's `at` (first row, ns) plus the row's number plus the column `at_gap`, which is zero, and
so absent, whenever a group was stamped without a hole. The schema's metadata names the partition, the sequence (a count
of valid data records), the writer's epoch, the ledger's UTC offset, and `chain`.

`chain` reads `razao/<format version>:<64 hex digits>`: the keyed BLAKE2b-256 of the chain's state before, followed by
these very bytes with the digits as zeros. It becomes the new state. An open record is written before its writer knows
the state, so it carries only a checksum, and is absorbed: the next data record vouches for it. It says by which version
of the rules, and within which capacities, its writer decides: whoever replays its records needs both.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa

from storage.events import EVENT
from storage.journal import Corrupt, Journal, Stored

FORMAT: Final = 2
STATE_BYTES: Final = 32

_COMPRESS_FROM_ROWS: Final = 2048
"""Measured (loadtests/bench_journal.py): from here on LZ4 costs less than PostgreSQL then saves; zstd never did."""

_TEMPLATE_ROWS: Final = 256
"""Up to here a record's fixed bytes are kept, by number of rows; beyond, Arrow's cost counts for little."""

_MARK: Final = re.compile(rb"razao/([0-9]{1,9}):([0-9a-f]{64})")
_BLANK: Final = b"0" * 64
_UNSEALED: Final = b"razao/%d:%s" % (FORMAT, _BLANK)
_OPEN_CHECK_DIGITS: Final = 32
_WORD: Final = np.dtype(np.uint64)
_HALF: Final = np.dtype(np.uint16)
_WORDS: Final = EVENT.itemsize // _WORD.itemsize
# A row's words are its wide fields in their order, and a last one for the four narrow fields.
_WIDE: Final = [name for name in EVENT.names or () if EVENT[name].itemsize == _WORD.itemsize]
_NARROW: Final = [name for name in EVENT.names or () if EVENT[name].itemsize == _HALF.itemsize]
_AT: Final = _WIDE.index("at")
_STORED: Final = [(name, index) for index, name in enumerate(_WIDE) if name != "at"]

_FIELDS: Final = {
    **{name: pa.field(name, pa.from_numpy_dtype(EVENT[name]), nullable=False) for name in (*_WIDE, *_NARROW)},
    "at_gap": pa.field("at_gap", pa.int64(), nullable=False),
    "code": pa.field("code", pa.uint16(), nullable=False),
    "detail": pa.field("detail", pa.int64(), nullable=False),
    "note": pa.field("note", pa.binary(), nullable=True),
}
_PLAIN: Final = pa.ipc.IpcWriteOptions()
_COMPRESSED: Final = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)
_END_OF_STREAM: Final = bytes.fromhex("ffffffff00000000")


@dataclass(frozen=True, slots=True)
class Record:
    """A valid data record. The arrays are the reader's own copies."""

    offset: int
    partition: int
    sequence: int
    epoch: int
    utc_offset_s: int
    rows: np.ndarray
    """(n,) EVENT"""
    codes: np.ndarray
    """(n,) uint16, Code"""
    details: np.ndarray
    """(n,) int64, centavos, as RESULT.detail"""
    notes: list[bytes | None] | None
    """One opaque text per row; None when no row has one."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A valid open record: who took the partition over, and what decides its codes."""

    offset: int
    partition: int
    writer: dict[str, Any]
    rules: int
    """Version of the rules."""
    capacity: dict[str, int]
    """Rows of each kind that there is room for."""


class Position(NamedTuple):
    """Where a reader stands in a partition: what it needs to go on. Snapshots keep it."""

    offset: int
    """The next offset to read."""
    epoch: int
    """Offset of the newest open record before it; -1 before the first."""
    sequence: int
    """The next data record's number."""
    chain: bytes
    """The chain's state, STATE_BYTES long."""


START: Final = Position(0, -1, 0, bytes(STATE_BYTES))


class Chain:
    """The running keyed hash over a partition's valid records."""

    __slots__ = ("_key", "state")

    def __init__(self, key: bytes, state: bytes = START.chain) -> None:
        """`key`: the ledger's secret, 1-64 bytes; `state`: where a `Position` left off."""
        if not 1 <= len(key) <= hashlib.blake2b.MAX_KEY_SIZE or len(state) != STATE_BYTES:
            raise ValueError("the chain needs a key of 1 to 64 bytes and a state of 32")
        self._key = key
        self.state = state

    def digest(self, *parts: bytes | bytearray) -> bytes:
        """The state that `parts` would lead to."""
        digest = hashlib.blake2b(self.state, digest_size=STATE_BYTES, key=self._key)
        for part in parts:
            digest.update(part)
        return digest.digest()

    def absorb_open(self, offset: int, payload: bytes) -> None:
        """Take an open record in."""
        self.state = self.digest(b"open", offset.to_bytes(8, "little"), payload)


def encode(
    rows: np.ndarray,
    results: np.ndarray,
    notes: Sequence[bytes | None] | None,
    *,
    partition: int,
    sequence: int,
    epoch: int,
    utc_offset_s: int,
    chain: Chain,
) -> bytes:
    """The record of a group: `rows` (n,) EVENT, stamped, `results` (n,) RESULT. Moves `chain` on.

    Raises:
        ValueError: the group is empty, or the lengths differ.
    """
    count = len(rows)
    if count == 0 or len(results) != count or (notes is not None and len(notes) != count):
        raise ValueError("a record needs rows, and a result (and a note, if there are any) for each")
    columns = _columns(rows, results)
    head = _Head(partition, sequence, epoch, utc_offset_s, int(rows["at"][0]))
    if notes is not None and any(note is not None for note in notes):
        payload = _stream(head, count, columns, pa.array(notes, pa.binary()))
    elif count > _TEMPLATE_ROWS:
        payload = _stream(head, count, columns, None)
    else:
        payload = _from_template(head, count, columns)
    return _sealed(payload, chain)


class _Head(NamedTuple):
    """A record's metadata but for the chain."""

    partition: int
    sequence: int
    epoch: int
    utc_offset_s: int
    at: int


def _stream(head: _Head, count: int, columns: Mapping[str, bytes], notes: pa.Array | None) -> bytearray:
    """The record without its chain value, by Arrow."""
    arrays = _arrays(columns, count)
    if notes is not None:
        arrays["note"] = notes
    schema = _schema(arrays, head)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema, options=_COMPRESSED if count >= _COMPRESS_FROM_ROWS else _PLAIN) as stream:
        stream.write_batch(pa.RecordBatch.from_arrays(list(arrays.values()), schema=schema))
    return bytearray(sink.getvalue())


def _arrays(columns: Mapping[str, bytes], count: int) -> dict[str, pa.Array]:
    return {
        name: pa.Array.from_buffers(_FIELDS[name].type, count, [None, pa.py_buffer(column)])
        for name, column in columns.items()
    }


def _schema(names: Iterable[str], head: _Head) -> pa.Schema:
    metadata = {name: str(value) for name, value in head._asdict().items()}
    return pa.schema([_FIELDS[name] for name in names], metadata={**metadata, "chain": _UNSEALED})


# Asking Arrow for a record of twenty rows costs many times what copying its bytes does, and those are known: the schema
# message is the same for the same columns but for the digits of two numbers, the head of the batch message is the same
# for the same columns and length, and the body is the columns themselves, each padded to eight bytes.


def _from_template(head: _Head, count: int, columns: Mapping[str, bytes]) -> bytearray:
    """The same bytes as `_stream`'s, for a few rows without notes."""
    names = tuple(columns)
    sequence, at = b"%d" % head.sequence, b"%d" % head.at
    schema = _schema_template(names, head.partition, head.epoch, head.utc_offset_s, len(sequence), len(at))
    parts = [schema.message, _batch_head(names, count)]
    for column in columns.values():
        parts.append(column)
        if len(column) % 8:
            parts.append(bytes(-len(column) % 8))
    parts.append(_END_OF_STREAM)
    payload = bytearray().join(parts)
    payload[schema.sequence : schema.sequence + len(sequence)] = sequence
    payload[schema.at : schema.at + len(at)] = at
    return payload


class _SchemaTemplate(NamedTuple):
    """A schema message, and where in it two numbers begin."""

    message: bytes
    sequence: int
    at: int


@lru_cache(maxsize=256)
def _schema_template(
    names: tuple[str, ...], partition: int, epoch: int, utc_offset_s: int, sequence_digits: int, at_digits: int
) -> _SchemaTemplate:
    low = _Head(partition, 10 ** (sequence_digits - 1), epoch, utc_offset_s, 10 ** (at_digits - 1))
    message, sequence, at = (
        bytes(_schema(names, head).serialize())
        for head in (low, low._replace(sequence=2 * low.sequence), low._replace(at=2 * low.at))
    )
    return _SchemaTemplate(message, _first_difference(message, sequence), _first_difference(message, at))


@lru_cache(maxsize=1024)
def _batch_head(names: tuple[str, ...], count: int) -> bytes:
    columns = {name: bytes(count * _FIELDS[name].type.byte_width) for name in names}
    batch = pa.RecordBatch.from_arrays(
        list(_arrays(columns, count).values()), schema=pa.schema([_FIELDS[name] for name in names])
    )
    body = sum(len(column) + -len(column) % 8 for column in columns.values())
    return bytes(batch.serialize()[:-body])


def _first_difference(one: bytes, other: bytes) -> int:
    return next(place for place, (a, b) in enumerate(zip(one, other, strict=True)) if a != b)


def _sealed(payload: bytearray, chain: Chain) -> bytes:
    start = payload.index(_UNSEALED) + len(_UNSEALED) - len(_BLANK)
    chain.state = chain.digest(payload)
    payload[start : start + len(_BLANK)] = chain.state.hex().encode()
    return bytes(payload)


def _columns(rows: np.ndarray, results: np.ndarray) -> dict[str, bytes]:
    """The columns that are not all zero. `kind` always stays, as a batch needs one to have a length."""
    count = len(rows)
    width = count * _WORD.itemsize
    zeros = bytes(width)
    words = np.ascontiguousarray(rows).view(_WORD).reshape(count, _WORDS)
    planes = words.tobytes("F")
    columns: dict[str, bytes] = {}
    for name, start in _STORED:
        column = planes[start * width : (start + 1) * width]
        if column != zeros:
            columns[name] = column
    at = words[:, _AT]
    gapless = np.arange(count, dtype=_WORD) + at[0]
    if at.tobytes() != gapless.tobytes():
        columns["at_gap"] = (at - gapless).tobytes()
    zeros = bytes(count * _HALF.itemsize)
    for name in _NARROW:
        column = rows[name].tobytes()
        if column != zeros or name == "kind":
            columns[name] = column
    for name in ("code", "detail"):
        column = results[name].tobytes()
        if column != bytes(len(column)):
            columns[name] = column
    return columns


def encode_open(
    partition: int, writer: Mapping[str, Any], *, rules: int = 1, capacity: Mapping[str, int] = MappingProxyType({})
) -> bytes:
    """The open record of a writer that introduces itself with `writer` (JSON values: name, host, pid …).

    Args:
        partition: which is taken over.
        writer: for people; no reader depends on it.
        rules: version of the rules by which the writer decides.
        capacity: rows of each kind that it has room for; those left out are as the reader has them by default.
    """
    content = {
        "razao": FORMAT, "partition": partition, "rules": rules, "capacity": dict(capacity), "writer": dict(writer)
    }  # fmt: skip
    text = json.dumps(content, separators=(",", ":"))
    return text.encode() + b"\n" + _open_check(text.encode())


def _open_check(text: bytes) -> bytes:
    return hashlib.blake2b(text, digest_size=_OPEN_CHECK_DIGITS // 2).hexdigest().encode()


def decode_open(stored: Stored, partition: int) -> Opened:
    """An open record's content.

    Raises:
        Corrupt: truncated, altered, of an unknown version, or of another partition.
    """
    text, _, check = stored.payload.rpartition(b"\n")
    if check != _open_check(text):
        raise Corrupt(partition, stored.offset, "the open record is damaged")
    content = json.loads(text or b"{}")
    if content.get("razao") != FORMAT:
        raise Corrupt(partition, stored.offset, _unknown_format(content.get("razao")))
    if content["partition"] != partition:
        raise Corrupt(partition, stored.offset, f"a record of partition {content['partition']}")
    if stored.epoch != stored.offset:
        raise Corrupt(partition, stored.offset, f"an open record with epoch {stored.epoch}")
    return Opened(stored.offset, partition, content["writer"], content["rules"], content["capacity"])


def check_format(stored: Stored, partition: int) -> None:
    """See that a record is of this program's format, whatever else it may be.

    Raises:
        Corrupt: it is of another one.
    """
    if not stored.is_open:
        mark = _MARK.search(stored.payload)
        version = FORMAT if mark is None else int(mark[1])
    else:
        try:
            version = json.loads(stored.payload.rpartition(b"\n")[0] or b"{}").get("razao", FORMAT)
        except (ValueError, AttributeError):
            return  # damaged, which is for the reader to say
    if version != FORMAT:
        raise Corrupt(partition, stored.offset, _unknown_format(version))


def _unknown_format(version: object) -> str:
    return (
        f"format version {version}, this program reads {FORMAT}: the ledger must be opened by the version that wrote it"
    )


def decode(stored: Stored, partition: int, sequence: int, chain: Chain) -> Record:
    """A data record's content, after `chain` has vouched for every byte of it. Moves `chain` on.

    Raises:
        Corrupt: truncated, altered, of an unknown version, out of the chain, or of another partition or writer.
    """
    state = _vouched(stored, partition, chain)
    try:
        with pa.ipc.open_stream(pa.py_buffer(stored.payload)) as stream:
            metadata = {key.decode(): value.decode() for key, value in stream.schema.metadata.items()}
            batch = stream.read_next_batch()
    except (pa.ArrowException, OSError, StopIteration) as error:
        raise Corrupt(partition, stored.offset, f"not an Arrow stream: {error}") from error
    header = {name: int(metadata[name]) for name in ("partition", "sequence", "epoch", "utc_offset_s", "at")}
    if header["partition"] != partition:
        raise Corrupt(partition, stored.offset, f"a record of partition {header['partition']}")
    if header["epoch"] != stored.epoch:
        raise Corrupt(partition, stored.offset, f"written in epoch {header['epoch']}, stored under {stored.epoch}")
    if header["sequence"] != sequence:
        raise Corrupt(partition, stored.offset, f"sequence {header['sequence']} where {sequence} should be")
    unknown = [name for name in batch.schema.names if name not in _FIELDS]
    if unknown:
        raise Corrupt(partition, stored.offset, f"unknown columns: {', '.join(unknown)}")
    chain.state = state
    return _record(stored.offset, header, batch)


def _vouched(stored: Stored, partition: int, chain: Chain) -> bytes:
    """The state that the record leads to, when it is the one that it carries."""
    payload = bytearray(stored.payload)
    mark = _MARK.search(payload)
    if mark is None:
        raise Corrupt(partition, stored.offset, "not a record: it carries no chain value")
    if int(mark[1]) != FORMAT:
        raise Corrupt(partition, stored.offset, _unknown_format(int(mark[1])))
    carried = bytes(mark[2])
    start, end = mark.span(2)
    payload[start:end] = _BLANK
    state = chain.digest(payload)
    if state.hex().encode() != carried:
        raise Corrupt(partition, stored.offset, "the hash chain is broken: altered, truncated, or not the next record")
    return state


def _record(offset: int, header: Mapping[str, int], batch: Any) -> Record:
    count = batch.num_rows
    rows = np.zeros(count, EVENT)
    others: dict[str, np.ndarray] = {"code": np.zeros(count, np.uint16), "detail": np.zeros(count, np.int64)}
    rows["at"] = np.arange(count, dtype=np.int64) + np.int64(header["at"])
    notes: list[bytes | None] | None = None
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if name == "note":
            notes = column.to_pylist()
        elif name == "at_gap":
            rows["at"] += column.to_numpy()
        elif name in others:
            others[name] = column.to_numpy().copy()
        else:
            rows[name] = column.to_numpy()
    return Record(
        offset,
        header["partition"],
        header["sequence"],
        header["epoch"],
        header["utc_offset_s"],
        rows,
        others["code"],
        others["detail"],
        notes,
    )


class Reader:
    """Reads a partition by its one rule: a record counts if it carries the epoch of the newest open record before it.

    For recovery, projection and verification alike. `position` is where it stands after the last record it gave.
    """

    def __init__(self, journal: Journal, partition: int, key: bytes, position: Position = START) -> None:
        self.partition = partition
        self.void = 0
        """How many records were skipped."""
        self.newest: Opened | None = None
        """The newest open record that this reader has met."""
        self.before: Opened | None = None
        """The one before it."""
        self._journal = journal
        self._chain = Chain(key, position.chain)
        self._offset = position.offset
        self._epoch = position.epoch
        self._sequence = position.sequence

    @property
    def position(self) -> Position:
        """Where the next `records` goes on, in this reader or in another."""
        return Position(self._offset, self._epoch, self._sequence, self._chain.state)

    async def records(self, until: int | None = None) -> AsyncIterator[Record]:
        """The valid data records from the position up to, not including, `until` (None: the head as it is now).

        Raises:
            Corrupt: a record is missing, damaged, of an unknown version, or not the one that the chain wants.
            JournalError: the journal cannot be reached; the position stays good.
        """
        async for entry in self.entries(until):
            if isinstance(entry, Record):
                yield entry

    async def entries(self, until: int | None = None) -> AsyncIterator[Record | Opened]:
        """The same with the open records among them: who replays must know by which rules what follows was decided.

        Raises:
            Corrupt, JournalError: as `records`.
        """
        async for stored in self._journal.read(self.partition, self._offset, until):
            record = self.take(stored)
            if record is not None:
                yield record
            elif stored.is_open and self.newest is not None:
                yield self.newest

    def take(self, stored: Stored) -> Record | None:
        """Apply the rule to the next stored record: the data record, or None when it is an open or a void one.

        Raises:
            Corrupt: it cannot be the next one; the reader stays where it was.
        """
        if stored.offset != self._offset:
            raise Corrupt(self.partition, self._offset, f"the record is missing; the next one is {stored.offset}")
        record: Record | None = None
        if stored.is_open:
            opened = decode_open(stored, self.partition)
            self._chain.absorb_open(stored.offset, stored.payload)
            self._epoch = stored.offset
            self.newest, self.before = opened, self.newest
        elif stored.epoch == self._epoch:
            record = decode(stored, self.partition, self._sequence, self._chain)
            self._sequence += 1
        elif stored.epoch < self._epoch:
            self.void += 1
        else:
            # Taken for void, everything that this writer acknowledged would be lost in silence.
            raise Corrupt(self.partition, stored.offset, f"its writer's open record, {stored.epoch}, is missing")
        self._offset += 1
        return record


async def read_open(journal: Journal, partition: int, offset: int) -> Opened:
    """The open record at `offset`, such as the one of a snapshot's epoch.

    Raises:
        Corrupt: there is none, or it is damaged.
    """
    async for stored in journal.read(partition, offset, offset + 1):
        if stored.is_open:
            return decode_open(stored, partition)
    raise Corrupt(partition, offset, "not an open record")
