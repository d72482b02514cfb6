"""A circuit breaker with a deadline around each call to another service, and the numbers that show how it stands.

The states are purgatory's: after `threshold` failures in a row it opens, and for `open_s` every call is refused at
once; then it half-opens, and what the next call comes to closes it or opens it again. Added here is what the library
leaves open: half-open lets one call through at a time and no herd, a call has a deadline, and a caller who goes away
proves nothing about the other side, so a cancelled call neither closes the circuit nor counts as a failure.

    BreakerOpen     the call was not made
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, TypeVar

from purgatory.domain.messages.events import ContextChanged
from purgatory.domain.model import CLOSED, HALF_OPENED, OPENED, Context, OpenedState

T = TypeVar("T")

STATES: Final[Mapping[str, int]] = {CLOSED: 0, HALF_OPENED: 1, OPENED: 2}
"""What the gauge `razao_breaker_state` shows."""


class BreakerOpen(Exception):  # noqa: N818 - what it is
    """The other side has failed too often: the call was not made."""


class Breaker:
    """Guards the calls to one other service. Belongs to one event loop.

    `failures` and `openings` only grow; `state` is one of purgatory's names, the keys of `STATES`.
    """

    def __init__(self, name: str, *, threshold: int = 5, open_s: float = 5.0) -> None:
        """Make it.

        Args:
            name: of the other service, for metrics.
            threshold: how many failures in a row open it.
            open_s: how long it stays open before a call is let through.
        """
        self.name = name
        self.failures = 0
        self.openings = 0
        self._context = Context(name, threshold, open_s)
        self._probing = False

    @property
    def state(self) -> str:
        """closed, opened or half-opened. It half-opens with the first call after its time, not by itself."""
        return self._context.state

    async def call(self, work: Callable[[], Awaitable[T]], deadline: float) -> T:
        """What `work` returns. Every exception of its own is a failure of the other side; raise none for a refusal.

        Args:
            work: makes the call, once.
            deadline: time.monotonic seconds.

        Raises:
            BreakerOpen: it was not called.
            TimeoutError: there was no answer by the deadline.
        """
        probe = self._enter()
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                result = await work()
        except Exception as error:
            self.failures += 1
            self._context.handle_exception(error)
            raise
        else:
            self._context.handle_end_request()
            return result
        finally:
            if probe:
                self._probing = False
            self._count()

    def _enter(self) -> bool:
        """Let a call through, or raise. True: it is the one on which a half-open circuit depends."""
        try:
            self._context.handle_new_request()
        except OpenedState as error:
            error.__traceback__ = None  # the library raises one instance each time, and a traceback only grows
            raise BreakerOpen(f"calls to {self.name} fail; none is made for now") from None
        if self.state != HALF_OPENED:
            return False
        if self._probing:
            raise BreakerOpen(f"whether {self.name} is back is being tried")
        self._probing = True
        return True

    def _count(self) -> None:
        events = self._context.messages
        self.openings += sum(isinstance(event, ContextChanged) and event.state == OPENED for event in events)
        events.clear()
