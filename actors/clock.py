"""The time that stamps are made of: the machine's, believed only as far as something else speaks for it.

Holds, limits and the memory of ids hang on stamps, and a stamp once given is never taken back. So they run on by no
more than has passed by the monotonic clock, and a small skew. A wall clock that is further ahead needs the kernel's
word that something keeps it right, or an operator's; without either there is no time, and whoever needs it must wait.
One that is behind is waited for: time goes on at half its pace, so it neither jumps nor stands still.
"""

from __future__ import annotations

import ctypes
import logging
import time
from collections.abc import Callable
from typing import Any, Final, Protocol

_LOG: Final = logging.getLogger(__name__)
_BOOTTIME: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
_TIME_ERROR: Final = 5  # adjtimex(2)
_STA_UNSYNC: Final = 0x40
_DRIFT: Final = 2_000
"""A wall clock may gain one part in so many on the monotonic one: 500 ppm, as much as NTP slews."""


class Clock(Protocol):
    """Where a process's time comes from."""

    def wall_ns(self) -> int:
        """ns since 1970 UTC, as far as the machine knows."""
        ...

    def monotonic(self) -> float:
        """Seconds that never run backwards and go on while the process or the machine is stopped."""
        ...

    def synchronised(self) -> bool:
        """Whether something that knows the time, such as NTP, keeps the wall clock right. False when not known."""
        ...


class _Timex(ctypes.Structure):
    """The head of the kernel's `struct timex`, and more than enough room for the rest."""

    _fields_ = (
        ("modes", ctypes.c_uint),  # 0: only ask
        ("offset", ctypes.c_long),
        ("frequency", ctypes.c_long),
        ("error_max", ctypes.c_long),
        ("error", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_byte * 256),
    )


class SystemClock:
    """The machine's."""

    def __init__(self) -> None:
        self._adjtimex: Callable[..., int] | None = getattr(ctypes.CDLL(None), "adjtimex", None)

    def wall_ns(self) -> int:
        """See `Clock`."""
        return time.time_ns()

    def monotonic(self) -> float:
        """See `Clock`."""
        return time.clock_gettime(_BOOTTIME)

    def synchronised(self) -> bool:
        """See `Clock`: what the kernel was told by whoever disciplines it."""
        if self._adjtimex is None:
            return False
        answer: Any = _Timex()
        state = self._adjtimex(ctypes.byref(answer))
        return 0 <= state != _TIME_ERROR and not answer.status & _STA_UNSYNC


class StampClock:
    """Gives one shard the time of its stamps, always later than the last that was given.

    `last_ns`: the newest stamp that is known, 0 in a new ledger, whose clock is believed. Nothing tells how much time
    has passed since a predecessor gave it: the wall clock is believed if that is at most `gap_s`.
    """

    def __init__(
        self, clock: Clock, last_ns: int, *, name: str, skew_s: float = 1.0, gap_s: float = 12 * 3600.0
    ) -> None:
        self.last_ns = last_ns
        """The newest time that was given; whoever gave out more, ns by ns, says so here."""
        self.ahead_s = 0.0
        """How far the wall clock is ahead of what can be believed; 0 = it is believed."""
        self._clock = clock
        self._name = name
        self._skew_ns = int(skew_s * 1e9)
        self._gap_ns = int(gap_s * 1e9)
        # The wall and the monotonic clock when they were believed last, and how much the one may still gain on the
        # other: many small steps are no more than a large one, and what it lost it may win back.
        self._believed: tuple[int, float] | None = None
        self._slack_ns = self._skew_ns

    def now_ns(self) -> int | None:
        """The time, ns since 1970 UTC; None while the wall clock is not believed."""
        wall, now_s = self._clock.wall_ns(), self._clock.monotonic()
        if self._believed is None:
            passed, gained = 0, wall - self.last_ns
            most = self._gap_ns if self.last_ns else wall
        else:
            passed = max(0, int((now_s - self._believed[1]) * 1e9))
            gained = wall - self._believed[0] - passed
            most = max(self._slack_ns, min(self._skew_ns, self._slack_ns + passed // _DRIFT))
        if gained > most and not self._clock.synchronised():
            self._doubt(gained)
            return None
        if self._believed is not None:
            self._slack_ns = max(0, most - gained)
        self._believed = (wall, now_s)
        if self.ahead_s:
            self.ahead_s = 0.0
            _LOG.warning("%s: the clock is believed again", self._name)
        self.last_ns = max(wall, self.last_ns + 1, self.last_ns + passed // 2)
        return self.last_ns

    def accept(self) -> None:
        """An operator says that the wall clock is right as it is now."""
        self._believed = (self._clock.wall_ns(), self._clock.monotonic())
        self._slack_ns = self._skew_ns

    def _doubt(self, ahead: int) -> None:
        if not self.ahead_s:
            _LOG.critical(
                "%s: the clock is %.1f s ahead of what can be believed; nothing is served until it is right, or an "
                "operator accepts it (razao clock)",
                self._name,
                ahead / 1e9,
            )
        self.ahead_s = ahead / 1e9
