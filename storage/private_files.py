"""Files that only their owner may read, written whole: a crash leaves the old one or the new one, synced to disk."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path


def replace(path: Path, content: bytes) -> None:
    """Write it anew, in one step."""
    _aside(path, content).replace(path)
    sync_directory(path.parent)


def make(path: Path, content: bytes) -> None:
    """Write it unless it is there: of several who do so at once the first wins."""
    aside = _aside(path, content)
    with contextlib.suppress(FileExistsError):
        os.link(aside, path)
    aside.unlink()
    sync_directory(path.parent)


def _aside(path: Path, content: bytes) -> Path:
    """A finished file of mode 0600 beside `path`, under a name of its own."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return aside


def sync_directory(directory: Path) -> None:
    """A name, too, must survive the power: a key that has been used is not to be lost with it."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
