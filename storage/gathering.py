"""Concurrent callers' work done together: while one batch is under way the next one gathers. No timers.

A lone caller never waits for company; under load the batches grow by themselves to what one trip to the store takes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")

BATCH_MAX: Final = 512


class Gathering(Generic[T, R]):
    """Hands what concurrent callers bring to `work` in batches, one batch at a time. Belongs to one event loop.

    `work` returns a result for each item, in order; what it raises is raised to everybody in the batch. A caller who
    is cancelled leaves the others alone.
    """

    def __init__(self, work: Callable[[list[T]], Awaitable[Sequence[R]]], *, batch_max: int = BATCH_MAX) -> None:
        self._work = work
        self._batch_max = batch_max
        self._waiting: list[tuple[T, asyncio.Future[R]]] = []
        self._runner: asyncio.Task[None] | None = None

    async def __call__(self, item: T) -> R:
        """The result for `item`."""
        done: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, done))
        if self._runner is None:
            self._runner = asyncio.create_task(self._run(), name="gathering")
        return await done

    async def _run(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[: self._batch_max], self._waiting[self._batch_max :]
                await self._do([one for one in batch if not one[1].done()])
        finally:
            self._runner = None

    async def _do(self, batch: list[tuple[T, asyncio.Future[R]]]) -> None:
        if not batch:
            return
        try:
            results = await self._work([item for item, _ in batch])
        except Exception as error:  # noqa: BLE001 - it is the callers' to handle
            for _, done in batch:
                if not done.done():
                    done.set_exception(error)
        except asyncio.CancelledError:  # the loop ends
            for _, done in (*batch, *self._waiting):
                done.cancel()
            raise
        else:
            for (_, done), result in zip(batch, results, strict=True):
                if not done.done():
                    done.set_result(result)
