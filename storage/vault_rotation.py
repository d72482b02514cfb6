"""Puts every person's data key under a new master while the vault goes on answering.

A transaction that uses a wrapped key holds `ROTATION_LOCK` shared. Taking it exclusively for an instant therefore waits
for everybody who may still know the old master as the current one, and, at the end, for everybody who may still have to
unwrap with it. In between, keys are wrapped anew a few at a time. Begun again after a crash it does what is left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import asyncpg

from storage.vault import ROTATION_LOCK
from storage.vault_keys import KeyProvider, Wrapped
from storage.vault_people import key_context

_BATCH: Final = 500
_ONE_AT_A_TIME: Final = 7307505
_PATIENCE_MS: Final = 200
_AGAIN_S: Final = 0.2


class RotationRuns(Exception):  # noqa: N818 - what it is
    """Another rotation is under way."""


class Rotated(NamedTuple):
    """What was done."""

    master: str
    keys: int
    retired: list[str]


async def rotate(
    pool: asyncpg.Pool[asyncpg.Record], keys: KeyProvider, *, progress: Callable[[int, int], None]
) -> Rotated:
    """Rotate the master key. `pool`: as the schema's owner. `progress` gets how many keys are done, and of how many.

    Raises:
        RotationRuns: somebody else is at it.
        KeysAway: a master is not to be had; what was done so far stays good.
        Tampered: a wrapped key is not what was written.
    """
    async with pool.acquire() as holder:
        # For as long as this connection lives: the masters of two rotations would retire each other.
        if not await holder.fetchval("SELECT pg_try_advisory_lock($1)", _ONE_AT_A_TIME):
            raise RotationRuns
        try:
            return await _rotate(pool, keys, progress)
        finally:
            await holder.execute("SELECT pg_advisory_unlock($1)", _ONE_AT_A_TIME)


async def _rotate(
    pool: asyncpg.Pool[asyncpg.Record], keys: KeyProvider, progress: Callable[[int, int], None]
) -> Rotated:
    master = await keys.rotate()
    await _everybody_has_moved_on(pool)
    total = await pool.fetchval("SELECT count(*) FROM vault.keys WHERE master <> $1", master)
    done, after = 0, b""
    while True:
        async with pool.acquire() as connection, connection.transaction():
            rows = await connection.fetch(
                "SELECT person, master, wrapped FROM vault.keys WHERE master <> $1 AND person > $2 ORDER BY person"
                " LIMIT $3 FOR UPDATE",
                master, after, _BATCH,
            )  # fmt: skip
            await connection.executemany(
                "UPDATE vault.keys SET master = $2, wrapped = $3 WHERE person = $1",
                [await _wrapped_anew(keys, row) for row in rows],
            )
        if not rows:
            break
        done, after = done + len(rows), rows[-1]["person"]
        progress(done, max(done, total))
    await _everybody_has_moved_on(pool)
    left = await pool.fetchval("SELECT count(*) FROM vault.keys WHERE master <> $1", master)
    if left:
        raise RuntimeError(f"{left} keys are still under an old master, which therefore stays")
    return Rotated(master, done, await keys.retire(master))


async def _wrapped_anew(keys: KeyProvider, row: Any) -> tuple[bytes, str, bytes]:
    context = key_context(row["person"])
    key = await keys.unwrap(Wrapped(row["master"], row["wrapped"]), context)
    return row["person"], *await keys.wrap(key, context)


async def _everybody_has_moved_on(pool: asyncpg.Pool[asyncpg.Record]) -> None:
    """Return once every transaction that runs now has ended. While one hangs, the others must not wait behind us."""
    while True:
        try:
            async with pool.acquire() as connection, connection.transaction():
                await connection.execute(f"SET LOCAL lock_timeout = '{_PATIENCE_MS}ms'")
                await connection.execute("SELECT pg_advisory_xact_lock($1)", ROTATION_LOCK)
        except asyncpg.LockNotAvailableError:
            await asyncio.sleep(_AGAIN_S)
        else:
            return
