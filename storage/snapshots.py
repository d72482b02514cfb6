"""Snapshots of a partition's book, on any file system that Arrow knows: local disk, or an object store by its URI.

A snapshot only spares replaying, so a damaged one is passed over for an older one, or for none. One file each:

    magic, header length (u64)   16 bytes
    header                       JSON: position, meta, name, type and shape of each array, size of the file
    arrays                       their bytes as they lie in memory, one after the other
    digest                       BLAKE2b-256, keyed with the ledger's secret, of everything before

Arrays are written from where they lie and read into where they stay, so hundreds of megabytes need no second copy.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, cast

import numpy as np
from pyarrow import fs

from storage.private_files import sync_directory
from storage.record import Position

_MAGIC: Final = b"RZSNAP1\n"
_SUFFIX: Final = ".snapshot"
_UNFINISHED: Final = ".unfinished"
_UNFINISHED_AGE_S: Final = 3600.0
_HEADER_BYTES_MAX: Final = 16 * 2**20
_PIECE_BYTES: Final = 8 * 2**20
_DIGEST_BYTES: Final = 32

logger = logging.getLogger(__name__)


class InvalidSnapshot(Exception):  # noqa: N818 - what it says about the file
    """The file is truncated, altered, of another ledger or of an unknown format."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A partition's book as it was when everything before `position` had been applied."""

    partition: int
    position: Position
    arrays: dict[str, np.ndarray]
    meta: dict[str, Any]


@dataclass(frozen=True, slots=True)
class SnapshotFile:
    """A snapshot as it lies in the store; whether it is valid shows when it is loaded."""

    partition: int
    offset: int
    path: str
    bytes: int


class _Sink(Protocol):
    def write(self, data: memoryview | bytes, /) -> object: ...


class _Source(Protocol):
    def readinto(self, into: memoryview, /) -> int: ...


class SnapshotStore:
    """The snapshots of one ledger under `location`: a local path, or a URI such as s3://bucket/prefix.

    Its methods block, so call them off the event loop.
    """

    def __init__(
        self, location: str | Path, key: bytes, *, keep: int = 2, filesystem: fs.FileSystem | None = None
    ) -> None:
        """`key`: the ledger's secret, 1-64 bytes; `keep`: how many of a partition stay; `filesystem`: a bare path's."""
        if keep < 1:
            raise ValueError("at least one snapshot must stay")
        if filesystem is not None:
            self._filesystem, self._root = filesystem, str(location)
        elif "://" in str(location):
            self._filesystem, self._root = fs.FileSystem.from_uri(str(location))
        else:
            self._filesystem, self._root = fs.LocalFileSystem(), str(Path(location).absolute())
        self._local = isinstance(self._filesystem, fs.LocalFileSystem)
        self._key = key
        self._keep = keep

    def save(
        self, partition: int, position: Position, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]
    ) -> SnapshotFile:
        """Write a snapshot whole or not at all, then remove all but the newest. `arrays` must not change meanwhile.

        Raises:
            OSError: it could not be written.
            ValueError: an array holds Python objects.
        """
        directory = f"{self._root}/{partition:04d}"
        path = f"{directory}/{position.offset:020d}{_SUFFIX}"
        contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        header, size = _header(partition, position, contiguous, meta)
        self._filesystem.create_dir(directory, recursive=True)
        if self._local:
            _write_local(Path(path), lambda sink: self._write(sink, header, contiguous))
        else:
            # An object appears when its upload is complete; were it cut short, the digest would tell.
            with self._filesystem.open_output_stream(path, compression=None) as sink:
                self._write(sink, header, contiguous)
        others = [file for file in self.files(partition) if file.offset != position.offset]
        for old in others[self._keep - 1 :]:
            with contextlib.suppress(FileNotFoundError):
                self._filesystem.delete_file(old.path)
        return SnapshotFile(partition, position.offset, path, size)

    def files(self, partition: int) -> list[SnapshotFile]:
        """The partition's snapshots, newest first."""
        selector = fs.FileSelector(f"{self._root}/{partition:04d}", allow_not_found=True)
        found = [
            SnapshotFile(partition, int(info.base_name.removesuffix(_SUFFIX)), info.path, info.size)
            for info in self._filesystem.get_file_info(selector)
            if info.is_file and info.base_name.endswith(_SUFFIX) and info.base_name.removesuffix(_SUFFIX).isdecimal()
        ]
        return sorted(found, key=lambda file: file.offset, reverse=True)

    def load_newest(self, partition: int) -> Snapshot | None:
        """The newest valid snapshot; None when there is none. Invalid ones are passed over with a warning."""
        for file in self.files(partition):
            try:
                return self.load(file)
            except (InvalidSnapshot, OSError) as error:
                logger.warning("passing over the snapshot %s: %s", file.path, error)
        return None

    def load(self, file: SnapshotFile) -> Snapshot:
        """Read one snapshot.

        Raises:
            InvalidSnapshot: it cannot be trusted.
            OSError: it cannot be read.
        """
        with self._filesystem.open_input_file(file.path) as source:
            size = source.size()
            digest = self._digest()
            start = memoryview(bytearray(len(_MAGIC) + 8))
            _fill(source, start, digest)
            length = int.from_bytes(start[len(_MAGIC) :], "little")
            if bytes(start[: len(_MAGIC)]) != _MAGIC or length > min(size, _HEADER_BYTES_MAX):
                raise InvalidSnapshot("not a snapshot of a known format")
            text = memoryview(bytearray(length))
            _fill(source, text, digest)
            header, layout = _parsed(bytes(text), len(start) + length, size)
            arrays = {name: np.empty(shape, dtype) for name, dtype, shape in layout}
            for array in arrays.values():
                _fill(source, _bytes_of(array), digest)
            carried = memoryview(bytearray(_DIGEST_BYTES))
            _fill(source, carried)
        if bytes(carried) != digest.digest():
            raise InvalidSnapshot("its digest is wrong")
        if (header["partition"], header["offset"]) != (file.partition, file.offset):
            raise InvalidSnapshot(f"it is of partition {header['partition']}, offset {header['offset']}")
        position = Position(header["offset"], header["epoch"], header["sequence"], bytes.fromhex(header["chain"]))
        return Snapshot(file.partition, position, arrays, header["meta"])

    def drop(self) -> None:
        """Remove every snapshot of every partition."""
        self._filesystem.delete_dir_contents(self._root, missing_dir_ok=True)

    def _write(self, sink: _Sink, header: bytes, arrays: Mapping[str, np.ndarray]) -> None:
        digest = self._digest()
        for part in (memoryview(header), *(_bytes_of(array) for array in arrays.values())):
            for piece in _pieces(part):
                digest.update(piece)
                sink.write(piece)
        sink.write(digest.digest())

    def _digest(self) -> hashlib.blake2b:
        return hashlib.blake2b(digest_size=_DIGEST_BYTES, key=self._key)


def _header(
    partition: int, position: Position, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]
) -> tuple[bytes, int]:
    """The file's first bytes, up to the arrays, and the size of the whole."""
    if any(array.dtype.hasobject for array in arrays.values()):
        raise ValueError("an array of Python objects has no bytes to write")
    content = {
        "partition": partition,
        "offset": position.offset,
        "epoch": position.epoch,
        "sequence": position.sequence,
        "chain": position.chain.hex(),
        "meta": dict(meta),
        "arrays": [
            [name, np.lib.format.dtype_to_descr(array.dtype), list(array.shape)] for name, array in arrays.items()
        ],
    }
    text = json.dumps(content, separators=(",", ":")).encode()
    header = _MAGIC + len(text).to_bytes(8, "little") + text
    return header, len(header) + sum(array.nbytes for array in arrays.values()) + _DIGEST_BYTES


def _parsed(
    text: bytes, before: int, size: int
) -> tuple[dict[str, Any], list[tuple[str, np.dtype[Any], tuple[int, ...]]]]:
    """The header and the arrays' layout. Nothing is vouched for yet, so nothing may be allocated on its word alone."""
    try:
        header = json.loads(text)
        layout = [(str(name), _dtype(descr), tuple(map(int, shape))) for name, descr, shape in header["arrays"]]
        total = sum(dtype.itemsize * _product(shape) for _, dtype, shape in layout)
    except (ValueError, KeyError, TypeError, SyntaxError) as error:
        raise InvalidSnapshot(f"its header is damaged: {error}") from error
    if before + total + _DIGEST_BYTES != size or any(extent < 0 for _, _, shape in layout for extent in shape):
        raise InvalidSnapshot(f"it has {size} bytes, not the {before + total + _DIGEST_BYTES} that its header says")
    return header, layout


def _dtype(descr: object) -> np.dtype[Any]:
    """The type that `np.lib.format.dtype_to_descr` wrote; JSON turned its tuples into lists."""
    if isinstance(descr, list):
        descr = [tuple(tuple(part) if isinstance(part, list) else part for part in field) for field in descr]
    dtype: np.dtype[Any] = np.lib.format.descr_to_dtype(cast(Any, descr))
    if dtype.hasobject:
        raise TypeError("an array of Python objects")
    return dtype


def _product(shape: tuple[int, ...]) -> int:
    # In Python's integers: NumPy's would wrap on what a damaged header may say.
    product = 1
    for extent in shape:
        product *= extent
    return product


def _bytes_of(array: np.ndarray) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _pieces(data: memoryview) -> Iterator[memoryview]:
    for start in range(0, len(data), _PIECE_BYTES):
        yield data[start : start + _PIECE_BYTES]


def _fill(source: _Source, into: memoryview, digest: hashlib.blake2b | None = None) -> None:
    for piece in _pieces(into):
        filled = 0
        while filled < len(piece):
            count = source.readinto(piece[filled:])
            if not count:
                raise InvalidSnapshot("it is truncated")
            filled += count
        if digest is not None:
            digest.update(piece)


def _write_local(path: Path, write: Callable[[_Sink], None]) -> None:
    """Write beside, flush to disk, then rename: under its name a file is whole, whenever the power goes."""
    for left in path.parent.glob(f"*{_UNFINISHED}"):
        if left.stat().st_mtime < time.time() - _UNFINISHED_AGE_S:
            left.unlink(missing_ok=True)
    unfinished = path.with_name(f"{path.name}-{uuid.uuid4().hex}{_UNFINISHED}")
    try:
        with unfinished.open("xb", buffering=0) as sink:
            write(_Whole(sink))
            os.fsync(sink.fileno())
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


class _Whole:
    """A raw file whose `write` takes everything: the system call may take less."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, data: memoryview | bytes, /) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[self._file.write(rest) :]
