"""Where the documents of the score and the trace are: opened as the settings say, and made ready before use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from cluster.settings import Settings
from storage import trace_users, traces
from storage.documents import Database, StoreAway
from storage.documents.opening import open_database

COLLECTIONS: Final[dict[str, tuple[str, ...]]] = {"score": (), "trace": (*traces.COLLECTIONS, *trace_users.COLLECTIONS)}
"""The collections of each tier."""


async def open_documents(settings: Settings, dsn: str) -> Database:
    """The database, to be closed by the caller. `dsn`: of the PostgreSQL that serves where there is no MongoDB."""
    return await open_database(
        dsn, mongo_url=settings.mongo_url, driver=settings.mongo_driver.value, name=settings.mongo_database
    )


async def prepare_documents(settings: Settings, dsn: str, *, say: Callable[[str], None]) -> None:
    """Make the collections of the tiers that run. MongoDB makes them by itself, so it may be away."""
    names = [name for tier in settings.active_tiers for name in COLLECTIONS.get(tier, ())]
    database = await open_documents(settings, dsn)
    try:
        await database.create(names)
    except StoreAway:
        say("MongoDB does not answer yet; score and trace answer 503 until it does")
    finally:
        await database.close()
