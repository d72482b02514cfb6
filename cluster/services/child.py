"""A server process of ours: started in its own directory, watched until it is ready, ended, found again after a crash.

A server is told by where it works: its current directory is the one it was given, and its command line names its
program. So one that lost its owner is found without a pid file, which could name a stranger after a reboot.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

import psutil

_LOG_BYTES_MAX: Final = 16 * 2**20
_LAST_WORDS_BYTES: Final = 3000
_POLL_S: Final = 0.02


class ServiceError(Exception):
    """A server of this package could not be made, started or stopped; the message tells the operator why."""


class ChildError(ServiceError):
    """A server ended at its start or was not ready in time; the message has its last words."""


class Child:
    """At most one process of a program in `directory`. What it prints goes to `log`. One owner at a time."""

    def __init__(self, directory: Path, program: str, log: Path) -> None:
        """`program` is a word of the command line that tells the process from others in that directory."""
        self.directory = directory
        self.program = program
        self.log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._said_before = 0

    @property
    def pid(self) -> int | None:
        """Process id, None when it does not run."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def spawn(self, command: Sequence[str], env: Mapping[str, str]) -> None:
        """Start it in a session of its own: Ctrl-C in the owner's terminal must not stop it before its clients."""
        if self.log.exists() and self.log.stat().st_size > _LOG_BYTES_MAX:
            self.log.replace(self.log.with_suffix(".log.old"))
        descriptor = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            self._said_before = os.fstat(descriptor).st_size
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=descriptor,
                stderr=descriptor,
                cwd=self.directory,
                env=dict(env),
                start_new_session=True,
            )
        finally:
            os.close(descriptor)

    def await_ready(self, ready: Callable[[], bool], timeout_s: float) -> None:
        """Wait until `ready()`; a process that is not by then is ended.

        Raises:
            ChildError: it exited, or was not ready after `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        while not ready():
            if self.pid is None:
                raise ChildError(f"it exited at start: {self.last_words()}")
            if time.monotonic() > deadline:
                self.kill()
                raise ChildError(f"it was not ready after {timeout_s:.0f} s: {self.last_words()}")
            time.sleep(_POLL_S)

    def said(self) -> str:
        """What it has printed since it was started."""
        with self.log.open("rb") as file:
            file.seek(self._said_before)
            return file.read().decode(errors="replace")

    def last_words(self) -> str:
        """The end of what it has printed since it was started."""
        return self.said()[-_LAST_WORDS_BYTES:].strip() or f"(nothing in {self.log})"

    def stop(self, timeout_s: float) -> None:
        """Ask it to end, after `timeout_s` end it."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout_s)
        process.kill()
        process.wait()

    def kill(self) -> None:
        """End it as a power cut would (kill -9)."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def end_leftovers(self, timeout_s: float = 10.0) -> None:
        """End what an owner that died has left running here: it holds the port and the files."""
        end(working_in(self.directory, self.program), timeout_s)


def working_in(directory: Path, program: str) -> list[psutil.Process]:
    """Live processes whose current directory is `directory` and whose command line has the word `program`."""
    place, found = str(directory.resolve()), []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            here = process.cwd() == place and process.status() != psutil.STATUS_ZOMBIE
            if here and any(program in word for word in process.cmdline()):
                found.append(process)
    return found


def end(processes: Iterable[psutil.Process], timeout_s: float) -> None:
    """Ask processes to end, stopped ones too; after `timeout_s` end them."""
    asked = list(processes)
    for process in asked:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGCONT)
            process.terminate()
    _, alive = psutil.wait_procs(asked, timeout=timeout_s)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=timeout_s)
