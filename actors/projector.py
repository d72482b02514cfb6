"""`Projector`: the Ray actor around the projection. What it does not understand ends its process; Ray makes another.

A journal that cannot be trusted would meet the next process as well. Then this one lives on, says in its statistics
what is wrong and where, and looks again from time to time, ever more seldom; so does one whose database is away.

The events, and the movements for the trace, are passed on from here as well, by tasks that never end the process.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Any, Final, cast

import asyncpg
import ray
from ray.actor import ActorHandle

from actors import garbage
from actors.directory import NAMESPACE
from actors.feed import Follower, Publisher
from actors.movements import Movements
from actors.projection import Projection
from storage.journal import Corrupt

_LOG: Final = logging.getLogger(__name__)
_AGAIN_S: Final = (1.0, 60.0)
NAME: Final = "projector"


@dataclass(frozen=True, slots=True)
class ProjectorConfig:
    """What a `Projector` is told. The factories are called on its own event loop."""

    projection: Callable[[], Awaitable[Projection]]
    publisher: Callable[[], Awaitable[Publisher]] | None = None  # of the events, if they are to go anywhere
    movements: Callable[[], Awaitable[Movements]] | None = None  # for the trace, if there is one


class Projector:
    """The actor's class; `start_projector` makes it."""

    def __init__(self, config: ProjectorConfig) -> None:
        self._config = config
        self._projection: Projection | None = None
        self._broken = ""
        self._followers: dict[str, Follower] = {}
        loop = asyncio.get_running_loop()
        self._running = loop.create_task(self._run(), name="projection")
        self._following = [
            loop.create_task(self._follow(name, make), name=name)
            for name, make in (("events", config.publisher), ("movements", config.movements))
            if make is not None
        ]

    def __repr__(self) -> str:
        return f"Projector({'stopped: ' + self._broken if self._broken else 'running'})"

    async def stats(self) -> dict[str, Any]:
        """`pid`, `broken` (why nothing is projected any more, or empty), `lag` in records, one row per partition, and
        `events` and `movements`: how far they are passed on, None when they go nowhere.
        """
        parts = [] if self._projection is None else self._projection.stats()
        return {
            "pid": os.getpid(),
            "broken": self._broken,
            "lag": sum(part.head - part.next_offset for part in parts),
            "partitions": [asdict(part) for part in parts],
            "events": self._followed("events"),
            "movements": self._followed("movements"),
        }

    async def stop(self) -> None:
        """Project no more, and write snapshots, so that the next start is short. Ray ends the process."""
        tasks = (self._running, *self._following)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._projection is not None:
            if not self._broken:
                await self._projection.save()
            await self._projection.close()

    async def _run(self) -> None:
        pause = _AGAIN_S[0]
        while True:
            try:
                if self._projection is None:
                    self._projection = await self._config.projection()
                    garbage.calm()
                await self._projection.run(self._caught_up)
            except Corrupt as error:
                self._broken = str(error)
                _LOG.critical("nothing is projected any more: %s", error)
            except (OSError, asyncpg.PostgresError) as error:
                _LOG.warning("the projection cannot start yet: %r", error)
            except Exception as error:  # noqa: BLE001 - whatever it is, a fresh process starts from what is durable
                _LOG.critical("the process ends: %r", error, exc_info=error)
                os._exit(1)
            await asyncio.sleep(pause)
            pause = min(pause * 2, _AGAIN_S[1])

    async def _follow(self, name: str, make: Callable[[], Awaitable[Follower]]) -> None:
        pause = _AGAIN_S[0]
        while True:
            try:
                follower = self._followers[name] = await make()
                await follower.run()
            except Exception as error:  # noqa: BLE001 - history does not depend on who else is told of it
                _LOG.error("the %s are not passed on: %r", name, error, exc_info=error)
            await asyncio.sleep(pause)
            pause = min(pause * 2, _AGAIN_S[1])

    def _followed(self, name: str) -> dict[str, Any] | None:
        follower = self._followers.get(name)
        return None if follower is None else asdict(follower.stats)

    def _caught_up(self) -> None:
        self._broken = ""


def start_projector(config: ProjectorConfig, **options: Any) -> ActorHandle[Any]:
    """The detached projector, made if it is not there. `options` go to Ray (resources, environment)."""
    settings = {
        "name": NAME,
        "namespace": NAMESPACE,
        "lifetime": "detached",
        "get_if_exists": True,
        "max_restarts": -1,
        "max_task_retries": -1,  # it is only ever asked
        "num_cpus": 0,
        **options,
    }
    return cast("ActorHandle[Any]", ray.remote(Projector).options(**settings).remote(config))
