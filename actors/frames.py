"""Frames: what replicas and shards say to each other over one stream, as length-prefixed NumPy rows.

A frame is a 16-byte header (payload length, type, request id) and a payload whose rows start at a multiple of eight, so
that a received payload is used as an array where it lies. Answers carry the request's id and may come in any order.
Every decoder checks all lengths before it looks at a row; what does not fit is `Malformed`, and the stream ends.
"""

from __future__ import annotations

import asyncio
import hmac
import struct
from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum
from typing import Any, Final, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from storage.events import ACCOUNT, EVENT, RESULT, Flag, Kind

VERSION: Final = 2
"""Of this protocol; both ends must speak the same."""

ROWS_MAX: Final = 8_190
"""Rows of one frame, and of one journal record."""

PAYLOAD_MAX: Final = 16 << 20
"""Bytes of one payload."""

HELLO_MAX: Final = 512
"""Bytes of a payload before the other end has shown that it knows the secret."""

Array = npt.NDArray[Any]
Notes = Sequence[bytes | None]
Positions = Mapping[int, int]
Buffer = bytes | bytearray | memoryview

_HEADER: Final = struct.Struct("<IB3xQ")
_RESULTS_HEAD: Final = struct.Struct("<IB3xQIHxx")  # a header and what an answer begins with
_ROWS: Final = struct.Struct("<II")
_ANSWER: Final = struct.Struct("<IHxx")
_POSITION: Final = struct.Struct("<qq")
_HELLO: Final = struct.Struct("<5sxHHHxxQH")
_WELCOME: Final = struct.Struct("<HxxxxxxQ")
_MAGIC: Final = b"RAZAO"
_NO_NOTES: Final = 0xFFFFFFFF
_NO_NOTE: Final = -1
_RECEIVE: Final = 1 << 17
_EXPIRE: Final = int(Kind.EXPIRE)
_CREDIT_LEG: Final = int(Kind.CREDIT_LEG)
_REVERT: Final = int(Kind.REVERT)
_LINKED: Final = int(Flag.LINKED)
# Kinds made of these bytes alone may come from anybody: most frames have no others, and that is seen at once.
_HARMLESS: Final = bytes(byte for byte in range(256) if byte != _EXPIRE and not _CREDIT_LEG <= byte <= _REVERT)

HEADER_SIZE: Final = _HEADER.size


class FrameType(IntEnum):
    """What a payload is."""

    HELLO = 1
    WELCOME = 2
    REFUSED = 3  # hello answered by a shard of another epoch, partition or version; payload as WELCOME
    APPLY = 4  # clients' events
    LEGS = 5  # credit legs of another shard
    READ = 6
    STATS = 7
    RESULTS = 8  # one result a row; rows that are still IN_FLIGHT follow in LATER frames
    LATER = 9
    STATES = 10
    STATS_ANSWER = 11
    CLOCK = 12  # an operator accepts what the shard's clock says; answered as STATS


_LEGS: Final = FrameType.LEGS
_RESULTS: Final = int(FrameType.RESULTS)
_TYPES: Final = {int(kind): kind for kind in FrameType}


class Malformed(Exception):  # noqa: N818
    """The other end does not speak this protocol. The stream must be closed."""


class Hello(NamedTuple):
    """What a client says first."""

    partition: int
    partitions: int
    epoch: int  # the least epoch that the client will accept; 0 = any
    secret: bytes


class Answer(NamedTuple):
    """Result or account rows, the positions in the journal that they reflect, and (LATER only) the rows' numbers."""

    rows: Array
    positions: dict[int, int]
    indices: Array | None


def frame(kind: FrameType, request: int, *parts: Buffer) -> bytes:
    """One whole frame, ready to be written."""
    return b"".join((_HEADER.pack(sum(map(len, parts)), kind, request), *parts))


def encode_hello(hello: Hello) -> bytes:
    """The first frame of a stream."""
    fields = _HELLO.pack(_MAGIC, VERSION, hello.partition, hello.partitions, hello.epoch, len(hello.secret))
    return frame(FrameType.HELLO, 0, fields, hello.secret)


def decode_hello(payload: Buffer) -> Hello:
    """The hello in `payload`; `Malformed` for another protocol or version."""
    if len(payload) < _HELLO.size:
        raise Malformed("short hello")
    magic, version, partition, partitions, epoch, length = _HELLO.unpack_from(payload)
    if magic != _MAGIC or version != VERSION or len(payload) != _HELLO.size + length:
        raise Malformed("not a hello of this version")
    return Hello(partition, partitions, epoch, bytes(payload[_HELLO.size :]))


def secrets_equal(ours: bytes, theirs: bytes) -> bool:
    """Compare in a time that tells nothing about where they differ."""
    return hmac.compare_digest(ours, theirs)


def encode_welcome(kind: FrameType, epoch: int) -> bytes:
    """WELCOME or REFUSED, with the shard's epoch."""
    return frame(kind, 0, _WELCOME.pack(VERSION, epoch))


def decode_welcome(payload: Buffer) -> int:
    """The shard's epoch."""
    if len(payload) != _WELCOME.size:
        raise Malformed("not a welcome")
    version, epoch = _WELCOME.unpack(payload)
    if version != VERSION:
        raise Malformed("another version")
    return int(epoch)


def encode_events(kind: FrameType, request: int, rows: Sequence[Buffer], notes: Notes | None) -> bytes:
    """APPLY or LEGS: `rows` are the bytes of EVENT rows, in order; `notes` one per row, or None for none at all."""
    count = sum(map(len, rows)) // EVENT.itemsize
    if notes is None:
        return frame(kind, request, _ROWS.pack(count, _NO_NOTES), *rows)
    lengths = np.fromiter((_NO_NOTE if note is None else len(note) for note in notes), np.int32, count)
    text = b"".join(note for note in notes if note is not None)
    return frame(kind, request, _ROWS.pack(count, len(text)), *rows, lengths.tobytes(), text)


def decode_events(kind: FrameType, payload: bytearray) -> tuple[Array, Notes | None]:
    """The (n,) EVENT rows, on the payload's own memory, and their notes.

    Raises:
        Malformed: lengths that do not fit, a kind that this frame may not carry, or a chain that the frame leaves open.
    """
    if len(payload) < _ROWS.size:
        raise Malformed("short events")
    count, note_bytes = _ROWS.unpack_from(payload)
    end = _ROWS.size + count * EVENT.itemsize
    expected = end if note_bytes == _NO_NOTES else end + 4 * count + note_bytes
    if not 0 < count <= ROWS_MAX or len(payload) != expected:
        raise Malformed("events of a wrong length")
    rows = np.frombuffer(payload, EVENT, count, _ROWS.size)
    check_events(kind, rows)
    return rows, None if note_bytes == _NO_NOTES else _decode_notes(payload, end, count, note_bytes)


def check_events(kind: FrameType, rows: Array) -> None:
    """Legs come from shards only, and what shards do inside themselves comes from nobody. `Malformed` otherwise."""
    kinds = rows["kind"]
    if kind is _LEGS:
        allowed = bool((kinds == _CREDIT_LEG).all())
    elif kinds.tobytes().translate(None, _HARMLESS):
        allowed = not bool(((kinds == _EXPIRE) | ((kinds >= _CREDIT_LEG) & (kinds <= _REVERT))).any())
    else:
        allowed = True
    if not allowed:
        raise Malformed("a kind that this frame may not carry")
    # An open chain would tie itself to the next caller's first row.
    if int(rows["flags"][-1]) & _LINKED:
        raise Malformed("a chain left open")


def _decode_notes(payload: bytearray, start: int, count: int, note_bytes: int) -> Notes:
    lengths = np.frombuffer(payload, np.int32, count, start)
    present = np.maximum(lengths, 0)
    if int(present.sum(dtype=np.int64)) != note_bytes or int(lengths.min()) < _NO_NOTE:
        raise Malformed("notes of a wrong length")
    ends = (start + 4 * count + np.cumsum(present, dtype=np.int64)).tolist()
    return [
        None if length < 0 else bytes(payload[end - length : end])
        for length, end in zip(lengths.tolist(), ends, strict=True)
    ]


def encode_answer(
    kind: FrameType, request: int, rows: Array, positions: Positions, indices: Array | None = None
) -> bytes:
    """RESULTS, LATER or STATES."""
    fixed = _ANSWER.pack(len(rows), len(positions))
    where = b"".join([_POSITION.pack(*position) for position in positions.items()])
    parts = [fixed, where, rows.tobytes()]
    if indices is not None:
        parts.append(indices.astype(np.uint32, copy=False).tobytes())
    return frame(kind, request, *parts)


def joined(parts: Sequence[Array]) -> Array:
    """One writable array of all rows, copied once (NumPy takes ten times as long for rows of many columns)."""
    return parts[0] if len(parts) == 1 else np.frombuffer(bytearray().join([part.tobytes() for part in parts]), EVENT)


def encode_results(answers: Iterable[tuple[int, Array]], positions: Positions) -> bytes:
    """A RESULTS frame for each (request, rows), one after the other."""
    where = b"".join([_POSITION.pack(*position) for position in positions.items()])
    fixed = _ANSWER.size + len(where)
    parts: list[bytes] = []
    for request, rows in answers:
        data = rows.tobytes()
        head = _RESULTS_HEAD.pack(fixed + len(data), _RESULTS, request, len(rows), len(positions))
        parts += (head, where, data)
    return b"".join(parts)


def decode_answer(kind: FrameType, payload: Buffer) -> Answer:
    """The rows lie on the payload's own memory."""
    if len(payload) < _ANSWER.size:
        raise Malformed("short answer")
    count, places = _ANSWER.unpack_from(payload)
    dtype = ACCOUNT if kind is FrameType.STATES else RESULT
    start = _ANSWER.size + places * _POSITION.size
    end = start + count * dtype.itemsize
    later = kind is FrameType.LATER
    if count > ROWS_MAX or len(payload) != end + (4 * count if later else 0):
        raise Malformed("answer of a wrong length")
    positions = dict(_POSITION.iter_unpack(memoryview(payload)[_ANSWER.size : start]))
    indices = np.frombuffer(payload, np.uint32, count, end) if later else None
    return Answer(np.frombuffer(payload, dtype, count, start), positions, indices)


def encode_read(request: int, pairs: Sequence[Buffer]) -> bytes:
    """READ: `pairs` are the bytes of (account id, actor) pairs of u64. None at all asks only how far the journal is."""
    return frame(FrameType.READ, request, _ROWS.pack(sum(map(len, pairs)) // 16, 0), *pairs)


def decode_read(payload: Buffer) -> tuple[Array, Array]:
    """Ids and actors."""
    if len(payload) < _ROWS.size:
        raise Malformed("short read")
    count, _ = _ROWS.unpack_from(payload)
    if count > ROWS_MAX or len(payload) != _ROWS.size + 16 * count:
        raise Malformed("read of a wrong length")
    pairs = np.frombuffer(payload, np.uint64, 2 * count, _ROWS.size).reshape(count, 2)
    return pairs[:, 0].copy(), pairs[:, 1].copy()


def split(data: Buffer) -> tuple[FrameType, int, bytearray]:
    """Type, request and payload of the one frame that `data` is (for transports that keep messages apart)."""
    if len(data) < HEADER_SIZE:
        raise Malformed("short frame")
    length, kind, request = _HEADER.unpack_from(data)
    if len(data) != HEADER_SIZE + length:
        raise Malformed("frame of a wrong length")
    return _frame_type(kind), request, bytearray(memoryview(data)[HEADER_SIZE:])


def _frame_type(kind: int) -> FrameType:
    found = _TYPES.get(kind)
    if found is None:
        raise Malformed("unknown frame")
    return found


class FrameProtocol(asyncio.BufferedProtocol):
    """Cuts a stream into frames. Small ones are copied out of one buffer; a large one is received where it stays.

    `on_frame` gets payloads that nobody else holds. `Malformed` from it, or a frame beyond `payload_max`, ends the
    stream.
    """

    payload_max: int

    def __init__(self, payload_max: int = PAYLOAD_MAX) -> None:
        self.payload_max = payload_max
        self.transport: asyncio.Transport | None = None
        self._buffer = memoryview(bytearray(_RECEIVE))
        self._start = 0
        self._end = 0
        self._large: bytearray | None = None
        self._large_type = FrameType.HELLO
        self._large_request = 0
        self._filled = 0

    def on_frame(self, kind: FrameType, request: int, payload: bytearray) -> None:
        """What to do with one frame."""
        raise NotImplementedError

    def write(self, data: bytes) -> None:
        """Send, unless the stream is gone."""
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(data)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The stream is there."""
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is none by inheritance

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go."""
        if self._large is not None:
            return memoryview(self._large)[self._filled :]
        return self._buffer[self._end :]

    def buffer_updated(self, nbytes: int) -> None:
        """So many bytes have come."""
        try:
            self._received(nbytes)
        except Malformed:
            self.malformed()

    def malformed(self) -> None:
        """End the stream at once."""
        if self.transport is not None:
            self.transport.abort()

    def _received(self, nbytes: int) -> None:
        if self._large is not None:
            self._filled += nbytes
            if self._filled == len(self._large):
                payload, self._large = self._large, None
                self.on_frame(self._large_type, self._large_request, payload)
            return
        self._end += nbytes
        self._cut()
        if self._start == self._end:
            self._start = self._end = 0
        elif self._start:
            rest = bytes(self._buffer[self._start : self._end])
            self._start, self._end = 0, len(rest)
            self._buffer[: self._end] = rest

    def _cut(self) -> None:
        while self._end - self._start >= HEADER_SIZE:
            if self.transport is None or self.transport.is_closing():
                self._start = self._end
                return
            length, kind, request = _HEADER.unpack_from(self._buffer, self._start)
            if length > self.payload_max:
                raise Malformed("too large")
            body = self._start + HEADER_SIZE
            if self._end - body < length:
                self._begin_large(length, _frame_type(kind), request, body)
                return
            self._start = body + length
            self.on_frame(_frame_type(kind), request, bytearray(self._buffer[body : self._start]))

    def _begin_large(self, length: int, kind: FrameType, request: int, body: int) -> None:
        """The rest of this frame is received straight into its own payload."""
        self._large = bytearray(length)
        self._filled = self._end - body
        self._large[: self._filled] = self._buffer[body : self._end]
        self._large_type, self._large_request = kind, request
        self._start = self._end
