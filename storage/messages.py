"""What the vault tells the score service: whose debts it would answer differently about now. References, never content.

The vault writes a row into its outbox in the transaction of the change. Whoever consumes takes some rows, drops what it
had derived, and says that it is done; whatever happens in between, they come again: at least once. A message says
nothing but "look again", so neither order nor repetition matters.

    StoredChanges           takes from the outbox itself (embedded mode); over Kafka: `messages_kafka.py`
    ChangesAway             they cannot be had now
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, Protocol

import asyncpg

from storage.listening import DATABASE_AWAY, is_gone

CHANNEL: Final = "vault_outbox"
_TAKE: Final = "SELECT id, person, request FROM vault.outbox ORDER BY id LIMIT $1 FOR UPDATE SKIP LOCKED"
_DONE: Final = "DELETE FROM vault.outbox WHERE id = ANY ($1)"


class ChangesAway(Exception):  # noqa: N818 - what it is
    """Messages cannot be taken, or passed on, just now."""


class Change(NamedTuple):
    """Somebody's debts may be others now. `person`: the score service's reference, 16 bytes; `place`: the source's."""

    person: bytes
    request: str
    place: Any


class Changes(Protocol):
    """Where a consumer takes messages from. One task uses one."""

    async def take(self, limit: int) -> list[Change]:
        """Up to `limit` messages that nobody else has taken; waits a few seconds for one, then returns none.

        Raises:
            ChangesAway: not now; what was taken before comes again.
        """
        ...

    async def done(self, changes: Sequence[Change]) -> None:
        """What was taken last has been acted upon.

        Raises:
            ChangesAway: this is not known now, so they come again.
        """
        ...

    async def close(self) -> None:
        """Stop; what was taken and not done comes again."""
        ...


class StoredChanges:
    """Takes rows of `vault.outbox`. From `take` to `done` they are locked by a transaction of its own connection."""

    def __init__(self, dsn: str, *, wait_s: float = 5.0) -> None:
        """`dsn`: as a role that may select, lock and delete there, and nothing else. `wait_s`: see `take`."""
        self._dsn = dsn
        self._wait_s = wait_s
        self._connection: Any = None
        self._transaction: Any = None
        self._news = asyncio.Event()

    async def take(self, limit: int) -> list[Change]:
        """See `Changes`."""
        try:
            self._news.clear()
            if not (rows := await self._take(limit)):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._wait_s):
                        await self._news.wait()
                rows = await self._take(limit)
        except DATABASE_AWAY as error:
            await self.close()
            raise ChangesAway(f"the outbox cannot be read: {type(error).__name__}") from error
        return [Change(bytes(row["person"]), row["request"], row["id"]) for row in rows]

    async def done(self, changes: Sequence[Change]) -> None:
        """See `Changes`."""
        if self._transaction is None:
            return
        try:
            await self._connection.execute(_DONE, [change.place for change in changes])
            transaction, self._transaction = self._transaction, None
            await transaction.commit()
        except DATABASE_AWAY as error:
            await self.close()
            raise ChangesAway(f"the outbox cannot be written: {type(error).__name__}") from error

    async def close(self) -> None:
        """See `Changes`."""
        connection, self._connection, self._transaction = self._connection, None, None
        if connection is not None:
            connection.terminate()

    async def _take(self, limit: int) -> list[Any]:
        connection = await self._connected()
        if self._transaction is not None:  # what was taken before and never done goes back
            before, self._transaction = self._transaction, None
            await before.rollback()
        transaction = connection.transaction()
        await transaction.start()
        rows: list[Any] = await connection.fetch(_TAKE, limit)
        if rows:
            self._transaction = transaction
        else:
            await transaction.rollback()
        return rows

    async def _connected(self) -> Any:
        if self._connection is None or is_gone(self._connection):
            self._transaction = None
            connection = await asyncpg.connect(self._dsn)
            await connection.add_listener(CHANNEL, lambda *_: self._news.set())
            connection.add_termination_listener(lambda *_: self._news.set())
            self._connection = connection
        return self._connection
