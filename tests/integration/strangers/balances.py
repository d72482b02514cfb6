"""Compiles and runs `Balances.java`: on the Java of a wheel, with jars pinned like the servers' (`jars.lock`).

That Java has no compiler, so one comes as a jar too.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cluster.services.artifacts import fetch
from cluster.services.java import java_command, java_environment

_HERE: Final = Path(__file__).parent
_COMPILER: Final = "org.eclipse.jdt.internal.compiler.batch.Main"
_LANGUAGE: Final = "-21"


@dataclass(frozen=True, slots=True)
class Found:
    """What the reader made of a journal."""

    records: int
    void: int
    rows: int
    largest: int
    """Rows of the largest record."""
    in_flight: int
    sum: int
    balances: dict[int, int]
    """By account, centavos."""


class Balances:
    """The compiled reader in `directory`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._jars = fetch(_HERE / "jars.lock")
        classes = directory / "classes"
        options = [_LANGUAGE, "-proc:none", "-d", str(classes), "-cp", os.pathsep.join(map(str, self._jars))]
        self._java([], self._jars, _COMPILER, *options, str(_HERE / "Balances.java"))
        self._jars = [classes, *self._jars]

    def read(self, bootstrap: str, topic: str, settings: Mapping[str, str] | None = None) -> Found:
        """Read the topic from its start to its end. `settings`: of the Kafka client, such as how it logs in."""
        file = self._directory / "client.properties"
        file.write_text("".join(f"{name}={value}\n" for name, value in (settings or {}).items()))
        # Arrow's memory is outside the heap, through a door that Java keeps shut by default.
        opened = ["--add-opens=java.base/java.nio=ALL-UNNAMED"]
        said = json.loads(self._java(opened, self._jars, "Balances", bootstrap, topic, str(file)))
        balances = {int(account): int(balance) for account, balance in said.pop("balances").items()}
        return Found(**said, balances=balances)

    def _java(self, options: list[str], jars: list[Path], *words: str) -> str:
        command = [*java_command(256, self._directory), *options, *words]
        done = subprocess.run(
            command, env=java_environment(jars, {}), check=False, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout
