"""Ahead-of-time archives: what a JVM found out about its classes in one run, kept for all later ones.

Java 25 writes such an archive at the end of a training run and maps it at later starts. Measured for Kafka: 1.6 s and
2.5 CPU seconds until it serves instead of 2.7 s and 4.5 (on a busy machine 2 s instead of 6 to 11), 40 MB less memory,
and, when the run did a ledger's work, quick appends from the first one on; all for half a minute once per user and
version. An archive that does not fit is ignored by the JVM.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from cluster.services.artifacts import cache_directory, exclusive

_CLASSES_ONLY: Final = ("-XX:+UnlockDiagnosticVMOptions", "-XX:-AOTAdapterCaching", "-XX:-AOTStubCaching")
"""Machine code stays out of an archive: it gains nothing measurable, and would tie it to a processor."""

logger = logging.getLogger(__name__)


def archive_options(
    name: str, key: Sequence[str], train: Callable[[Path, list[str]], None], *, progress: Callable[[str], None]
) -> list[str]:
    """The JVM's options that use the archive of `name`, made when there is none for `key`.

    Args:
        key: whatever an archive depends on: the jars' lock, the Java, its options.
        train: runs the server once in an empty directory with the options given and ends it cleanly. What it raises is
            logged and not tried again: a server starts without an archive too.
    """
    digest = hashlib.sha256("\0".join(key).encode()).hexdigest()[:16]
    archive = cache_directory() / "aot" / f"{name}-{digest}.aot"
    if not archive.exists():
        with exclusive(f"aot-{name}"):
            if not archive.exists():
                progress(f"preparing {name} for quick starts (once, half a minute)")
                archive.parent.mkdir(parents=True, exist_ok=True)
                _make(archive, train)
    return [*_CLASSES_ONLY, f"-XX:AOTCache={archive}"] if archive.stat().st_size else []


def _make(archive: Path, train: Callable[[Path, list[str]], None]) -> None:
    with tempfile.TemporaryDirectory(prefix=".training-", dir=archive.parent) as scratch:
        made = Path(scratch) / archive.name
        try:
            train(Path(scratch) / "server", [*_CLASSES_ONLY, f"-XX:AOTCacheOutput={made}"])
        except Exception:
            logger.warning("no quick starts: the training run failed", exc_info=True)
        if not made.exists():
            made.touch()
        made.replace(archive)
