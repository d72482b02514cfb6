"""Files of the Maven repository, pinned by checksum, kept in a cache that all engines of this user share.

A lock file beside each server's module names every file it needs, one a line: `group:artifact:version[:packaging]
sha256:<hex>`. `jgo` knows where such files are published and brings them; nothing is used before its checksum has been
compared, and nothing half-written ever stands in the cache under its own name.

    python -m cluster.services.artifacts LOCK COORDINATE...

resolves coordinates and what they need into LOCK, for whoever moves to a newer version.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

logger = logging.getLogger(__name__)

_CONNECTIONS: Final = 6
_ATTEMPTS: Final = 3
_TIMEOUT_S: Final = 60


class ArtifactError(Exception):
    """A file could not be had, or is not the one that was pinned; the message says which and why."""


@dataclass(frozen=True, slots=True)
class Pin:
    """One file: where Maven's naming puts it, and what it must contain."""

    group: str
    artifact: str
    version: str
    packaging: str
    sha256: str

    @classmethod
    def parse(cls, line: str) -> Pin:
        """A line of a lock file.

        Raises:
            ArtifactError: it is none.
        """
        coordinate, _, digest = line.partition(" sha256:")
        parts = coordinate.split(":")
        if len(parts) == 3:
            parts.append("jar")
        if len(parts) != 4 or len(digest) != 64:
            raise ArtifactError(f"not a pinned artifact: {line!r}")
        return cls(parts[0], parts[1], parts[2], parts[3], digest)

    def __str__(self) -> str:
        name = f"{self.group}:{self.artifact}:{self.version}"
        return name if self.packaging == "jar" else f"{name}:{self.packaging}"

    @property
    def path(self) -> Path:
        """Where the file stands, relative to a repository's root."""
        name = f"{self.artifact}-{self.version}.{self.packaging}"
        return Path(*self.group.split("."), self.artifact, self.version, name)


def cache_directory() -> Path:
    """Where downloaded and built programs are kept: `razao/services` in the user's cache directory."""
    configured = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(configured) if os.path.isabs(configured) else Path.home() / ".cache"
    return base / "razao" / "services"


@contextmanager
def exclusive(name: str) -> Iterator[None]:
    """Hold the cache's lock of that name: two engines that start at once fetch or build a thing once."""
    directory = cache_directory()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(directory / f"{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ArtifactError(f"cannot use the cache directory {directory}: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def read_lock(path: Path) -> list[Pin]:
    """The pins of a lock file, in its order (which is the class path's)."""
    lines = (line.strip() for line in path.read_text().splitlines())
    return [Pin.parse(line) for line in lines if line and not line.startswith("#")]


def fetch(lock: Path, *, progress: Callable[[str], None] = logger.info) -> list[Path]:
    """Every file of `lock`, downloaded when the cache lacks it, each with the checksum that is pinned.

    Without a missing file the network is not touched.

    Raises:
        ArtifactError: a download failed, or a file differs from its pin.
    """
    pins = read_lock(lock)
    root = cache_directory() / "maven"
    if missing := _missing(pins, root):
        with exclusive("maven"):
            # Whoever held the lock before us may have brought them.
            if missing := _missing(missing, root):
                _download(missing, root, progress)
    return [root / pin.path for pin in pins]


def _missing(pins: list[Pin], root: Path) -> list[Pin]:
    return [pin for pin in pins if not _holds(root / pin.path, pin)]


def _holds(path: Path, pin: Pin) -> bool:
    """Whether the cache has the pinned file. A damaged one goes, so that it is fetched anew."""
    try:
        found = _sha256(path)
    except FileNotFoundError:
        return False
    if found == pin.sha256:
        return True
    logger.warning("%s in the cache is damaged; fetching it again", pin)
    path.unlink(missing_ok=True)
    return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(pins: list[Pin], root: Path, progress: Callable[[str], None]) -> None:
    root.mkdir(parents=True, exist_ok=True)
    done, bytes_done, counting = 0, 0, threading.Lock()

    def bring(pin: Pin) -> None:
        nonlocal done, bytes_done
        size = _bring(pin, root)
        with counting:
            done, bytes_done = done + 1, bytes_done + size
            progress(f"downloaded {done} of {len(pins)} ({bytes_done / 1e6:.0f} MB): {pin}")

    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        for _ in pool.map(bring, pins):
            pass


def _bring(pin: Pin, root: Path) -> int:
    """Download one file, compare it, and only then put it in its place; returns its size in bytes."""
    target = root / pin.path
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".incoming-", dir=root) as incoming:
        path = _transfer(pin, Path(incoming))
        found = _sha256(path)
        if found != pin.sha256:
            raise ArtifactError(
                f"{pin} is not the file that was pinned: its SHA-256 is {found}, {pin.sha256} was expected;"
                " it was discarded"
            )
        size = path.stat().st_size
        path.replace(target)
    return size


def _transfer(pin: Pin, into: Path) -> Path:
    import requests  # noqa: PLC0415 - only a machine that lacks a file needs these
    from jgo.maven import MavenContext  # noqa: PLC0415

    for attempt in range(1, _ATTEMPTS + 1):
        context = MavenContext(repo_cache=into / str(attempt), timeout=_TIMEOUT_S)
        component = context.project(pin.group, pin.artifact).at_version(pin.version)
        try:
            path: Path = component.artifact(packaging=pin.packaging).resolve()
        except requests.RequestException as error:
            if attempt == _ATTEMPTS:
                raise ArtifactError(f"cannot download {pin}; is the network there? {_cause(error)}") from error
            logger.info("downloading %s failed, trying again: %s", pin, error)
        except RuntimeError as error:
            raise ArtifactError(f"cannot download {pin}: the repository does not have it") from error
        else:
            return path
    raise AssertionError("unreachable")


def _cause(error: BaseException) -> str:
    """The innermost reason, without the address that was asked: it is long and says little."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return f"({type(error).__name__}: {error})" if not isinstance(error, OSError) else f"({error.strerror or error})"


def pin(coordinates: list[str]) -> list[Pin]:
    """Resolve jars with what they need at run time, and other packagings (`...:zip`) by themselves, as published."""
    from jgo.maven import MavenContext  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as scratch:
        context = MavenContext(repo_cache=Path(scratch), timeout=_TIMEOUT_S)
        # The mark says: what one artifact's parent manages is nothing to the others.
        jars = [context.create_dependency(f"{one}!") for one in coordinates if one.count(":") == 2]
        asked, needed = context.resolver.resolve(jars) if jars else ([], [])
        found = [one.artifact for one in (*asked, *needed)]
        for one in coordinates:
            if one.count(":") == 3:
                group, artifact, version, packaging = one.split(":")
                found.append(context.project(group, artifact).at_version(version).artifact(packaging=packaging))
        return [Pin(one.groupId, one.artifactId, one.version, one.packaging, _sha256(one.resolve())) for one in found]


def main(lock: str, *coordinates: str) -> None:
    """Write a lock file."""
    head = f"# Made by: python -m cluster.services.artifacts {Path(lock).name} {' '.join(coordinates)}\n"
    lines = (f"{one} sha256:{one.sha256}\n" for one in pin(list(coordinates)))
    Path(lock).write_text(head + "".join(lines))


if __name__ == "__main__":
    main(*sys.argv[1:])
