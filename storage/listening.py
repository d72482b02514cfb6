"""A connection of a pool on which one channel of PostgreSQL's notifications is heard, replaced when it is lost."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Final

import asyncpg

DATABASE_AWAY: Final = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)
"""What asyncpg raises when a connection is refused or lost, a statement fails, or time is up (a TimeoutError is an
OSError). Its internal error is what a connection that is lost in the instant of a statement can end in."""


def is_gone(connection: Any) -> bool:
    """Whether a pool's connection cannot be used any more. The pool takes one back by itself that the server has ended,
    and then asking it is an error."""
    try:
        return bool(connection.is_closed())
    except asyncpg.InterfaceError:
        return True


class Ear:
    """Keeps its connection from the first call to `close`, and listens on it from `ensure` on."""

    def __init__(
        self, pool: asyncpg.Pool[asyncpg.Record], channel: str, heard: Callable[[], None], *, setup: str = ""
    ) -> None:
        """`heard` is called for each notification on `channel`; `setup` is executed on each new connection."""
        self._pool = pool
        self._setup = setup
        self._channel = channel
        self._heard = heard
        self._connection: Any = None

    async def ensure(self) -> None:
        """Listen, or listen again; to be called from time to time. Raises what the driver raises."""
        connection = await self.connection()
        await connection.add_listener(self._channel, self._notified)  # a second time it does nothing

    async def connection(self) -> Any:
        """The connection, for statements too; another one when it was lost. Raises what the driver raises."""
        if self._connection is not None and is_gone(self._connection):
            await self.close()
        if self._connection is None:
            connection = await self._pool.acquire()
            try:
                if self._setup:
                    await connection.execute(self._setup)
            except BaseException:
                await self._pool.release(connection)
                raise
            self._connection = connection
        return self._connection

    async def close(self) -> None:
        """Give the connection back."""
        connection, self._connection = self._connection, None
        if connection is not None:
            if not is_gone(connection):
                with contextlib.suppress(*DATABASE_AWAY):
                    await connection.remove_listener(self._channel, self._notified)
            await self._pool.release(connection)

    def _notified(self, *_: object) -> None:
        self._heard()
