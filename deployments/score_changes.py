"""Drops scores that were derived from debts which have changed, as the vault's messages say whose.

At least once: a message is done with only after the drop is durable, and to drop twice changes nothing. When the store
or the messages are away the loop tries again; meanwhile kept scores age out within the hour.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Final

from storage.documents import StoreAway
from storage.messages import Changes, ChangesAway
from storage.profiles import Profiles

log = logging.getLogger(__name__)

_TAKEN_MAX: Final = 500
_AGAIN_S: Final = 1.0


class Follower:
    """Follows messages from `start` to `close`. `dropped`: messages acted upon, repeated ones too; `failed`: times
    that they could not be."""

    def __init__(self, changes: Changes, profiles: Profiles) -> None:
        self._changes = changes
        self._profiles = profiles
        self._task: asyncio.Task[None] | None = None
        self.dropped = 0
        self.failed = 0

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.create_task(self._run(), name="changes of debts")

    async def close(self) -> None:
        """Stop; what was taken and not done comes again, to whoever takes it then."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await self._changes.close()

    async def _run(self) -> None:
        while True:
            try:
                await self.step()
            except (StoreAway, ChangesAway) as error:
                log.warning("changes of debts cannot be followed now: %s", error)
                await self._again()
            except Exception:
                log.exception("following changes of debts failed")
                await self._again()

    async def _again(self) -> None:
        """What was taken must come again: only who has let go of the source is sure to get it."""
        self.failed += 1
        await self._changes.close()
        await asyncio.sleep(_AGAIN_S)

    async def step(self) -> None:
        """Take some messages, or wait a while for one, and act upon them."""
        taken = await self._changes.take(_TAKEN_MAX)
        if taken:
            await self._profiles.drop({change.person for change in taken})
            await self._changes.done(taken)
            self.dropped += len(taken)
