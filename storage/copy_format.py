"""PostgreSQL's binary COPY format, assembled by NumPy: a structured array becomes a stream without a loop.

A row's fields all have a fixed width, so that a chunk is one array with each field's length written before it. One
column of bytes may follow as the last field; only rows that have something in it are touched one by one. Layout: the
PostgreSQL documentation on COPY, "Binary Format".
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from functools import cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.void]
"""A structured array."""

SIGNATURE: Final = b"PGCOPY\n\xff\r\n\x00" + bytes(8)
"""Then 32 bits of flags and 32 bits of the header extension's length, all zero."""

TRAILER: Final = b"\xff\xff"

_NULL: Final = 0xFFFFFFFF


@cache
def _wire(row: np.dtype[np.void], *, tail: bool) -> np.dtype[np.void]:
    """The layout of one row on the wire: a field count, then each field's length and its big-endian bytes."""
    fields: list[Any] = [("fields", ">u2")]
    for name in row.names or ():
        base, shape = row[name].base, row[name].shape
        fields += [(f"{name}#", ">u4"), (name, base.newbyteorder(">"), shape)]
    if tail:
        fields.append(("tail#", ">u4"))
    return np.dtype(fields)


def encode(rows: Rows, tail: Sequence[bytes | None] | None = None) -> list[memoryview | bytes]:
    """The stream that COPY ... (FORMAT binary) takes for `rows`, in pieces.

    The columns of the COPY are the fields of `rows` in order; a pair of u64 becomes 16 bytes, such as a uuid, and an
    unsigned number must be below 2^63. `tail`: one more, nullable column of bytes.
    """
    wire = _wire(rows.dtype, tail=tail is not None)
    packed = np.empty(len(rows), wire)
    names = rows.dtype.names or ()
    packed["fields"] = len(names) + (tail is not None)
    for name in names:
        packed[f"{name}#"] = rows.dtype[name].itemsize
        packed[name] = rows[name]
    if tail is None:
        return [SIGNATURE, packed.view(np.uint8).data, TRAILER]
    filled = [index for index, value in enumerate(tail) if value is not None]
    lengths = np.full(len(rows), _NULL, np.uint32)
    lengths[filled] = [len(tail[index] or b"") for index in filled]
    packed["tail#"] = lengths
    stream = packed.view(np.uint8).data
    pieces: list[memoryview | bytes] = [SIGNATURE]
    start = 0
    for index in filled:
        end = (index + 1) * wire.itemsize
        pieces += [stream[start:end], tail[index] or b""]
        start = end
    pieces += [stream[start:], TRAILER]
    return pieces


async def source(pieces: Sequence[memoryview | bytes], size: int = 1 << 19) -> AsyncIterator[bytes]:
    """`pieces` in messages of at most about `size` bytes, as asyncpg's `copy_to_table` wants them."""
    gathered: list[memoryview | bytes] = []
    length = 0
    for piece in pieces:
        view = memoryview(piece)
        for start in range(0, max(len(view), 1), size):
            gathered.append(view[start : start + size])
            length += len(gathered[-1])
            if length >= size:
                yield b"".join(gathered)
                gathered, length = [], 0
    if length:
        yield b"".join(gathered)


async def fetch(connection: Any, row: np.dtype[np.void], query: str, *arguments: object) -> Rows:
    """The rows of a query whose columns are the fields of `row`, none of them null, without an object per row."""
    pieces = bytearray()

    async def keep(data: bytes) -> None:
        pieces.extend(data)

    await connection.copy_from_query(query, *arguments, output=keep, format="binary")
    start = len(SIGNATURE)
    packed = np.frombuffer(pieces, _wire(row, tail=False), offset=start, count=_count(pieces, start, row))
    rows = np.empty(len(packed), row)
    for name in row.names or ():
        if (packed[f"{name}#"] != row[name].itemsize).any():
            raise ValueError(f"column {name} is null or of another type")
        rows[name] = packed[name]
    return rows


def _count(pieces: bytearray, start: int, row: np.dtype[np.void]) -> int:
    count, rest = divmod(len(pieces) - start - len(TRAILER), _wire(row, tail=False).itemsize)
    if rest:
        raise ValueError("rows of another width")
    return count
