"""A connection of a pool on which one channel of PostgreSQL's notifications is heard, replaced when it is lost."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import asyncpg


def is_gone(connection: Any) -> bool:
    """Whether a pool's connection cannot be used any more. The pool takes one back by itself that the server has ended,
    and then asking it is an error."""
    try:
        return bool(connection.is_closed())
    except asyncpg.InterfaceError:
        return True


class Ear:
    """Listens from `ensure` to `close`."""

    def __init__(self, pool: asyncpg.Pool[asyncpg.Record], channel: str, heard: Callable[[], None]) -> None:
        """`heard` is called for each notification on `channel`."""
        self._pool = pool
        self._channel = channel
        self._heard = heard
        self._connection: Any = None

    async def ensure(self) -> None:
        """Listen, or listen again; to be called from time to time. Raises what the driver raises."""
        if self._connection is not None and is_gone(self._connection):
            await self.close()
        if self._connection is None:
            self._connection = await self._pool.acquire()
            await self._connection.add_listener(self._channel, self._notified)

    async def close(self) -> None:
        """Give the connection back."""
        connection, self._connection = self._connection, None
        if connection is not None:
            if not is_gone(connection):
                with contextlib.suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
                    await connection.remove_listener(self._channel, self._notified)
            await self._pool.release(connection)

    def _notified(self, *_: object) -> None:
        self._heard()
