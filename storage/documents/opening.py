"""Opens the documents' database that the settings name: MongoDB when there is an address of it, else PostgreSQL."""

from __future__ import annotations

from typing import Final

import asyncpg

from storage.documents import Database
from storage.documents.postgres import PostgresDatabase

_CALL_S: Final = 10.0


async def open_database(
    dsn: str, *, mongo_url: str | None = None, driver: str = "motor", name: str = "razao", connections: int = 4
) -> Database:
    """The database, to be closed by the caller. Does not wait for a MongoDB that is away; PostgreSQL must be there.

    Args:
        dsn: of PostgreSQL, used unless `mongo_url` is given.
        mongo_url: MongoDB's connection string.
        driver: "motor" or "pymongo".
        name: of the database in MongoDB.
        connections: to PostgreSQL, at most.
    """
    if mongo_url is None:
        pool = await asyncpg.create_pool(dsn, min_size=0, max_size=connections, command_timeout=_CALL_S)
        return PostgresDatabase(pool)
    from storage.documents.mongo import MongoDatabase  # noqa: PLC0415 - an engine without MongoDB needs no driver of it

    return MongoDatabase(mongo_url, name, driver=driver)
