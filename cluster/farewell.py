"""Lets processes of the engine finish what they hold in memory before Ray's processes are killed.

An engine stops by killing what runs in Ray: asked, Ray needs half a minute, and whoever writes before it answers has
nothing to lose. Who writes behind has. It says so by a file, waits to be asked, and takes the file away at the end.

RUN/stopping            the engine is about to stop
RUN/unfinished/PID      a process that has something to finish
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from pathlib import Path
from typing import Final

from cluster import processes

_LOOK_S: Final = 0.05


class Farewell:
    """Both sides of it, over the engine's directory of a run."""

    def __init__(self, run: Path) -> None:
        self._stopping = run / "stopping"
        self._unfinished = run / "unfinished"

    # -- the process's side -------------------------------------------------------------------------------------------

    def promise(self) -> None:
        """This process will have something to finish."""
        self._unfinished.mkdir(parents=True, exist_ok=True)
        self._own.touch()

    async def asked(self) -> None:
        """Return when the engine is about to stop, and no more requests come."""
        while not self._stopping.exists():  # noqa: ASYNC110 - another process makes it; one look takes 2 µs
            await asyncio.sleep(_LOOK_S)

    def finished(self) -> None:
        """This process may be killed."""
        self._own.unlink(missing_ok=True)

    @property
    def _own(self) -> Path:
        return self._unfinished / str(os.getpid())

    # -- the engine's side --------------------------------------------------------------------------------------------

    def forget(self) -> None:
        """A new run begins."""
        self._stopping.unlink(missing_ok=True)
        shutil.rmtree(self._unfinished, ignore_errors=True)

    def ask(self, timeout_s: float) -> list[int]:
        """Ask all who have something to finish, and wait; the pids of those that live and have not, after `timeout_s`.

        Blocks its thread.
        """
        self._stopping.parent.mkdir(parents=True, exist_ok=True)
        self._stopping.touch()
        deadline = time.monotonic() + timeout_s
        while (left := self._left()) and time.monotonic() < deadline:
            time.sleep(_LOOK_S)
        return left

    def _left(self) -> list[int]:
        if not self._unfinished.exists():
            return []
        return [int(one.name) for one in self._unfinished.iterdir() if processes.alive(int(one.name))]
