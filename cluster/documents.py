"""Where the documents of the score and the trace are: opened as the settings say, with the collections in place."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Final

from cluster.settings import Settings
from storage.documents import Database, StoreAway
from storage.documents.opening import open_database

log = logging.getLogger(__name__)

_CONNECTIONS: Final = 8


async def open_documents(settings: Settings, dsn: str, collections: Iterable[str]) -> Database:
    """The documents' database, to be closed by the caller, with `collections` where it can be reached now.

    MongoDB makes a collection at the first write, so one that is away only makes requests fail until it is back.
    `dsn`: of the PostgreSQL that serves where there is no MongoDB.
    """
    database = await open_database(
        dsn,
        mongo_url=settings.mongo_url,
        driver=settings.mongo_driver,
        name=settings.mongo_database,
        connections=_CONNECTIONS,
    )
    try:
        await database.create(collections)
    except StoreAway as error:
        log.warning("the store of documents does not answer yet: %s", error)
    return database
