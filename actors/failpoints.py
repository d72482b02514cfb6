"""Fail points: named steps of the saga at which a test may kill a shard from outside.

A test puts an empty file with the step's name into the shard's directory of fail points; the shard that comes to the
step removes it and kills itself with SIGKILL. Without a directory a step costs one comparison.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Final

NAMES: Final = (
    "debit-applied",
    "debit-durable",
    "leg-applied",
    "leg-durable",
    "leg-answered",
    "settle-applied",
    "settle-durable",
)

Failpoint = Callable[[str], None]


def nothing(_name: str) -> None:
    """No fail points."""


def failpoints(directory: Path | None) -> Failpoint:
    """What a shard calls at each step; kills the process when the step's file lies in `directory`."""
    if directory is None:
        return nothing
    where = directory

    def at(name: str) -> None:
        try:
            (where / name).unlink()
        except OSError:
            return
        os.kill(os.getpid(), signal.SIGKILL)

    return at
