"""Documents in PostgreSQL: the schema `documents` with a table per collection, over a pool that is handed in.

Bodies are `json`, not `jsonb`: they are only ever read whole, and so come back as they were written. Statements that
touch several rows lock them in the order of their ids, so that two of them never wait for each other.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import asyncpg
import msgspec

from storage.documents import Body, Document, Documents, StoreAway, check_name

AWAY: Final = (
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # a connection that was lost in the instant of a statement
    OSError,
    TimeoutError,
)
"""What asyncpg raises while the server is away, as opposed to a statement that is wrong."""

_BEHIND_ALL: Final = b"\xff" * 256
"""No id is longer."""
_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(Body).decode


class PostgresDatabase:
    """Collections as tables. Closes the pool when it is closed."""

    def __init__(self, pool: asyncpg.Pool[asyncpg.Record]) -> None:
        self._pool = pool

    def collection(self, name: str) -> Documents:
        """The collection `name`."""
        return PostgresDocuments(self._pool, name)

    async def create(self, names: Iterable[str]) -> None:
        """Make the schema and the tables where they are missing."""
        with _translated():
            async with self._pool.acquire() as connection, connection.transaction():
                await connection.execute("SELECT pg_advisory_xact_lock(7307506)")
                await connection.execute("CREATE SCHEMA IF NOT EXISTS documents")
                for name in names:
                    await connection.execute(
                        f"CREATE TABLE IF NOT EXISTS documents.{check_name(name)}"
                        " (id bytea PRIMARY KEY, version bigint NOT NULL DEFAULT 1, body json NOT NULL)"
                    )

    async def ping(self) -> None:
        """Raises StoreAway unless it answers."""
        with _translated():
            await self._pool.execute("SELECT")

    async def close(self) -> None:
        """Close the pool."""
        await self._pool.close()


class PostgresDocuments:
    """One collection."""

    def __init__(self, pool: asyncpg.Pool[asyncpg.Record], name: str) -> None:
        self._pool = pool
        table = f"documents.{check_name(name)}"
        self._get = f"SELECT id, version, body FROM {table} WHERE id = $1"
        self._get_many = f"SELECT id, version, body FROM {table} WHERE id = ANY($1)"
        self._scan = (
            f"SELECT id, version, body FROM {table} WHERE id > $1 AND id >= $2 AND id < $3 ORDER BY id LIMIT $4"
        )
        self._insert = f"INSERT INTO {table} (id, body) VALUES ($1, $2) ON CONFLICT DO NOTHING RETURNING id"
        self._insert_many = (
            f"INSERT INTO {table} (id, body) SELECT id, body::json"
            " FROM unnest($1::bytea[], $2::text[]) AS one(id, body) ON CONFLICT DO NOTHING RETURNING id"
        )
        self._replace = (
            f"UPDATE {table} SET version = version + 1, body = $3 WHERE id = $1 AND version = $2 RETURNING id"
        )
        self._replace_many = f"""
            WITH mine AS (
                SELECT old.id, one.body::json AS body
                FROM {table} AS old JOIN unnest($1::bytea[], $2::bigint[], $3::text[]) AS one(id, version, body)
                ON old.id = one.id AND old.version = one.version ORDER BY old.id FOR UPDATE OF old
            )
            UPDATE {table} AS old SET version = old.version + 1, body = mine.body FROM mine
            WHERE old.id = mine.id RETURNING old.id
        """
        self._delete = f"DELETE FROM {table} WHERE id = $1 RETURNING id"

    async def get(self, id_: bytes) -> Document | None:
        """See `Documents.get`."""
        rows = await self._fetch(self._get, id_)
        return _document(rows[0]) if rows else None

    async def get_many(self, ids: Iterable[bytes]) -> dict[bytes, Document]:
        """See `Documents.get_many`."""
        return {row["id"]: _document(row) for row in await self._fetch(self._get_many, list(ids))}

    async def insert(self, id_: bytes, body: Body) -> bool:
        """See `Documents.insert`."""
        return bool(await self._fetch(self._insert, id_, _text(body)))

    async def insert_many(self, pairs: Iterable[tuple[bytes, Body]]) -> set[bytes]:
        """See `Documents.insert_many`."""
        ordered = sorted(pairs, key=lambda pair: pair[0])
        ids = [id_ for id_, _ in ordered]
        rows = await self._fetch(self._insert_many, ids, [_text(body) for _, body in ordered])
        return set(ids) - {row["id"] for row in rows}

    async def replace(self, id_: bytes, version: int, body: Body) -> bool:
        """See `Documents.replace`."""
        return bool(await self._fetch(self._replace, id_, version, _text(body)))

    async def replace_many(self, documents: Sequence[Document]) -> set[bytes]:
        """See `Documents.replace_many`."""
        columns = (
            [one.id for one in documents],
            [one.version for one in documents],
            [_text(one.body) for one in documents],
        )
        return {row["id"] for row in await self._fetch(self._replace_many, *columns)}

    async def delete(self, id_: bytes) -> bool:
        """See `Documents.delete`."""
        return bool(await self._fetch(self._delete, id_))

    async def scan(self, after: bytes, limit: int, prefix: bytes = b"") -> list[Document]:
        """See `Documents.scan`."""
        rows = await self._fetch(self._scan, after, prefix, prefix + _BEHIND_ALL, limit)
        return [_document(row) for row in rows]

    async def _fetch(self, statement: str, *arguments: object) -> list[Any]:
        with _translated():
            rows: list[Any] = await self._pool.fetch(statement, *arguments)
        return rows


def _text(body: Body) -> str:
    return _encode(body).decode()


def _document(row: Any) -> Document:
    return Document(row["id"], row["version"], _decode(row["body"]))


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except AWAY as error:
        raise StoreAway(repr(error)) from error
