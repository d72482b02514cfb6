"""`razao rebuild`: drop what is derived from the journal, query store and snapshots, and make it again.

While the engine runs its projector does the work and clients go on; the history that they see grows back. When it does
not run, the work is done here. Personal data is not derived from the journal and stays.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from actors.projection import Limits, Projection
from cluster.data import DataDirectory, EngineError
from cluster.journals import open_journal
from cluster.settings import Settings
from cluster.stores import kept_windows, pool_of, stores_of
from storage.journal import JournalError
from storage.query_store import QueryStore
from storage.registry import Registry
from storage.snapshots import SnapshotStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_POLL_S: Final = 0.05
_STALLED_S: Final = 60.0


async def rebuild(settings: Settings, *, say: Callable[[str], None]) -> None:
    """Rebuild what belongs to the ledger in `settings.data`.

    Raises:
        EngineError: there is no ledger, its database cannot be reached, or its journal cannot be trusted.
    """
    data = DataDirectory(settings.data)
    key = bytes.fromhex(data.secrets().ledger_key)
    async with stores_of(data, settings) as stores, pool_of(stores.dsn) as pool:
        journal, store = open_journal(stores.settings, stores.dsn), QueryStore(pool)
        snapshots = SnapshotStore(settings.snapshot_location, key)
        try:
            heads = await journal.heads()
            if not heads:
                raise EngineError("there is no journal to rebuild from: it is gone")
            await store.reset()
            await asyncio.to_thread(snapshots.drop)
            say("dropped the query store and the snapshots")
            async with _progress(store, heads):
                if stores.live:
                    await _wait(store, snapshots, heads)
                else:
                    windows = await kept_windows(Registry(pool))
                    projection = Projection(journal, store, snapshots, chain_key=key, windows=windows, limits=Limits())
                    await projection.open()
                    while await projection.catch_up():
                        pass
                    await projection.save()
                    await projection.close()
            say(f"made them again from {sum(heads.values())} journal records")
        except JournalError as error:
            raise EngineError(f"the rebuild stopped: {error}") from error
        finally:
            await store.close()
            await journal.close()


async def _wait(store: QueryStore, snapshots: SnapshotStore, heads: dict[int, int]) -> None:
    """Until the running projector has done it.

    Raises:
        EngineError: it does not get on.
    """
    moved = time.monotonic()
    before: dict[int, int] = {}
    while True:
        projected = await store.projected()
        if projected != before:
            moved, before = time.monotonic(), projected
        elif time.monotonic() - moved > _STALLED_S:
            raise EngineError(f"the projector has not moved for {_STALLED_S:.0f} s; see `razao status` and its logs")
        behind = [partition for partition, head in heads.items() if projected.get(partition, 0) < head]
        if not behind and await asyncio.to_thread(lambda: all(snapshots.files(partition) for partition in heads)):
            return
        await asyncio.sleep(_POLL_S)


@asynccontextmanager
async def _progress(store: QueryStore, heads: dict[int, int]) -> AsyncIterator[None]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("projecting", total=sum(heads.values()))

        async def follow() -> None:
            while True:
                progress.update(bar, completed=sum((await store.projected()).values()))
                await asyncio.sleep(4 * _POLL_S)

        following = asyncio.create_task(follow())
        try:
            yield
            progress.update(bar, completed=sum(heads.values()))
        finally:
            following.cancel()
