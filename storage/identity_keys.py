"""Signing keys and revocations as they are stored, and a follower that has both at hand.

A key is published long before it signs, and verifies for as long as anything that it signed may live. So whoever
caches the key set knows every key before its first token comes, and a rotation refuses nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import asyncpg

from storage.identity import CHANNEL, KEYS, By, notify, record, transaction
from storage.listening import DATABASE_AWAY

log = logging.getLogger(__name__)

_LOOK_S: Final = 5.0
_AGAIN_S: Final = 0.25


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A key pair. `public`: a JWK as JSON; `private`: the same in a JWE."""

    kid: str
    public: str
    private: str
    created_at: datetime
    active_at: datetime | None
    expires_at: datetime | None

    def state(self, now: datetime) -> str:
        """`waiting`, `active` (it may sign: the newest of them does), or `coming` (active from `active_at` on)."""
        if self.active_at is None:
            return "waiting"
        return "coming" if self.active_at > now else "active"


class SigningKeys:
    """The table of them."""

    def __init__(self, pool: asyncpg.Pool[asyncpg.Record]) -> None:
        self._pool = pool

    async def all(self) -> list[SigningKey]:
        """Those that verify or will, the oldest first."""
        rows = await self._pool.fetch(
            "SELECT * FROM identity.signing_keys WHERE expires_at IS NULL OR expires_at > now()"
            " ORDER BY active_at NULLS LAST, created_at"
        )
        return [_key(row) for row in rows]

    async def ensure(self, make: Callable[[], tuple[str, str, str]], by: By) -> None:
        """Make the first key and the next one unless they are there. `make` gives kid, public, private."""
        async with transaction(self._pool) as connection:
            await connection.execute("LOCK TABLE identity.signing_keys")
            if not await connection.fetchval("SELECT EXISTS (SELECT FROM identity.signing_keys)"):
                await _insert(connection, make(), datetime.now(UTC), by)
                await _insert(connection, make(), None, by)
                await notify(connection, KEYS)

    async def rotate(
        self, make: Callable[[], tuple[str, str, str]], *, published: timedelta, signed_live: timedelta, by: By
    ) -> str:
        """The key in waiting takes over, once it has been published for `published`; another one waits from now on.

        What signed till now verifies for `signed_live` longer. Returns the kid that takes over.
        """
        async with transaction(self._pool) as connection:
            await connection.execute("LOCK TABLE identity.signing_keys")
            waiting = await connection.fetchrow("SELECT * FROM identity.signing_keys WHERE active_at IS NULL")
            active_at = max(datetime.now(UTC), waiting["created_at"] + published)
            kid: str = waiting["kid"]
            await connection.execute(
                "UPDATE identity.signing_keys SET expires_at = $1 WHERE active_at IS NOT NULL AND expires_at IS NULL",
                active_at + signed_live,
            )
            await connection.execute("UPDATE identity.signing_keys SET active_at = $2 WHERE kid = $1", kid, active_at)
            await _insert(connection, make(), None, by)
            await connection.execute("DELETE FROM identity.signing_keys WHERE expires_at < now()")
            await record(connection, by, "key.rotated", kid, active_at=active_at.isoformat())
            await notify(connection, KEYS)
        return kid


async def _insert(connection: Any, key: tuple[str, str, str], active_at: datetime | None, by: By) -> None:
    await connection.execute(
        "INSERT INTO identity.signing_keys (kid, public, private, active_at) VALUES ($1, $2, $3, $4)", *key, active_at
    )
    await record(connection, by, "key.made", key[0])


def _key(row: Any) -> SigningKey:
    return SigningKey(row["kid"], row["public"], row["private"], row["created_at"], row["active_at"], row["expires_at"])


class Follower:
    """Has the marks of revoked access tokens at hand, and says when keys change.

    It listens on a connection of its own, and looks every few seconds in any case. A list that could not be looked at
    for `stale_s` is no list: then `fresh` is false, and nobody should be let in by it.
    """

    def __init__(
        self, dsn: str, *, on_keys: Callable[[], Awaitable[None]] | None = None, stale_s: float = 60.0
    ) -> None:
        self._dsn = dsn
        self._on_keys = on_keys
        self._stale_s = stale_s
        self._revoked: set[str] = set()
        self._told_of: set[str] = set()  # since the last look began
        self._looked_at = float("-inf")
        self._wake = asyncio.Event()
        self._keys_changed = False
        self._task: asyncio.Task[None] | None = None

    @property
    def fresh(self) -> bool:
        """Whether the list is one to go by."""
        return time.monotonic() - self._looked_at < self._stale_s

    def revoked(self, marks: Collection[str]) -> bool:
        """Whether a token that carries `marks` was revoked."""
        return bool(self._revoked) and not self._revoked.isdisjoint(marks)

    async def start(self) -> None:
        """Read the list, and follow it from now on. Returns also when it cannot be read yet."""
        first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._follow(first), name="revocations")
        await first

    async def close(self) -> None:
        """Stop."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _follow(self, first: asyncio.Future[None]) -> None:
        while True:
            try:
                await self._listen(first)
            except DATABASE_AWAY as error:
                log.warning("revocations cannot be followed now: %r", error)
            if not first.done():
                first.set_result(None)
            await asyncio.sleep(_AGAIN_S)

    async def _listen(self, first: asyncio.Future[None]) -> None:
        connection = await asyncpg.connect(self._dsn)
        try:
            await connection.add_listener(CHANNEL, self._told)
            self._keys_changed = True
            while True:
                self._wake.clear()
                await self._look(connection)
                if not first.done():
                    first.set_result(None)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_S):
                        await self._wake.wait()
        finally:
            connection.terminate()

    async def _look(self, connection: Any) -> None:
        self._told_of.clear()
        rows = await connection.fetch("SELECT mark FROM identity.revocations WHERE expires_at > now()", timeout=_LOOK_S)
        self._revoked = {row["mark"] for row in rows} | self._told_of
        self._looked_at = time.monotonic()
        if self._keys_changed and self._on_keys is not None:
            self._keys_changed = False
            await self._on_keys()

    def _told(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        what, *marks = str(payload).split(" ")
        self._keys_changed = self._keys_changed or what == KEYS
        if marks:  # they are all that is new: no need to read a long list again
            self._told_of.update(marks)
            self._revoked.update(marks)
        else:
            self._wake.set()
