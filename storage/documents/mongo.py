"""Documents in MongoDB, by motor or by PyMongo's own asyncio client: only the calls that the two share.

A document lies as `{_id: the id in hex, v: the version, w: a mark of its last writer, b: the body}`. The id is text
because FerretDB, on which tests run, looks up binary ones by reading everything. Writes return when a majority has them
in its journal.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import secrets
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from bson.int64 import Int64
from motor.motor_asyncio import AsyncIOMotorClient
from pymongo import AsyncMongoClient, ReplaceOne
from pymongo.errors import (
    BulkWriteError,
    CollectionInvalid,
    ConnectionFailure,
    DuplicateKeyError,
    ExecutionTimeout,
    OperationFailure,
    PyMongoError,
    WriteConcernError,
)

from storage.documents import Body, Document, Documents, StoreAway, check_name

DRIVERS: Final[dict[str, Any]] = {"motor": AsyncIOMotorClient, "pymongo": AsyncMongoClient}
_AWAY: Final = (ConnectionFailure, ExecutionTimeout, WriteConcernError)
_INTERNAL: Final = 1
"""FerretDB says so when the database behind it is away."""
_FERRET_REPLACES: Final = 16
"""FerretDB keeps a connection of its 50 for each replacement of a call until the call ends: with as many as that it
waits for itself, for ever, and everybody else for it."""
_GROUP_BYTES: Final = 16
"""Of an id, in a field of its own for FerretDB, which looks up what is equal, and reads everything for a range."""
_BEHIND_HEX: Final = "g"
_DUPLICATE: Final = 11000
_EXISTS: Final = 48
_OPTIONS: Final = {
    "appname": "razao",
    "w": "majority",
    "journal": True,
    "connectTimeoutMS": 2000,
    "serverSelectionTimeoutMS": 2000,
    "socketTimeoutMS": 10_000,
    "waitQueueTimeoutMS": 5000,
    "maxPoolSize": 32,
}


class MongoDatabase:
    """Collections of one database. To be made inside the running loop."""

    def __init__(self, url: str, name: str, *, driver: str = "motor") -> None:
        """`driver`: "motor" or "pymongo". Options in `url` go before ours."""
        ours = {key: value for key, value in _OPTIONS.items() if f"{key.lower()}=" not in url.lower()}
        self._client: Any = DRIVERS[driver](url, **ours)
        self._database = self._client[name]
        self._ferret: bool | None = None

    def collection(self, name: str) -> Documents:
        """The collection `name`."""
        return MongoDocuments(self, self._database[check_name(name)])

    async def create(self, names: Iterable[str]) -> None:
        """Make collections where they are missing."""
        with _translated():
            for name in names:
                try:
                    await self._database.create_collection(check_name(name))
                except CollectionInvalid:
                    continue
                except OperationFailure as error:
                    if error.code != _EXISTS:
                        raise

    async def ping(self) -> None:
        """Raises StoreAway unless it answers."""
        with _translated():
            await self._client.admin.command("ping")

    async def close(self) -> None:
        """Close every connection."""
        closing = self._client.close()
        if inspect.isawaitable(closing):
            await closing

    async def is_ferret(self) -> bool:
        """Whether it is FerretDB, of which less can be asked at once."""
        if self._ferret is None:
            self._ferret = "ferretdbVersion" in await self._client.admin.command("buildInfo")
        return self._ferret


class MongoDocuments:
    """One collection."""

    def __init__(self, database: MongoDatabase, collection: Any) -> None:
        self._database = database
        self._collection = collection

    async def get(self, id_: bytes) -> Document | None:
        """See `Documents.get`."""
        with _translated():
            found = await self._collection.find_one({"_id": id_.hex()})
        return None if found is None else _document(found)

    async def get_many(self, ids: Iterable[bytes]) -> dict[bytes, Document]:
        """See `Documents.get_many`."""
        wanted = list(ids)
        with _translated():
            # FerretDB reads everything for a list of ids.
            if not await self._database.is_ferret():
                found = await self._collection.find({"_id": {"$in": [id_.hex() for id_ in wanted]}}).to_list(None)
                return {one.id: one for one in map(_document, found)}
        documents = await asyncio.gather(*map(self.get, wanted))
        return {one.id: one for one in documents if one is not None}

    async def insert(self, id_: bytes, body: Body) -> bool:
        """See `Documents.insert`."""
        with _translated():
            try:
                await self._collection.insert_one(_stored(id_, 1, body, ferret=await self._database.is_ferret()))
            except DuplicateKeyError:
                return False
        return True

    async def insert_many(self, pairs: Iterable[tuple[bytes, Body]]) -> set[bytes]:
        """See `Documents.insert_many`."""
        wanted = list(pairs)
        if not wanted:
            return set()
        with _translated():
            ferret = await self._database.is_ferret()
            given = [_stored(id_, 1, body, ferret=ferret) for id_, body in wanted]
            try:
                await self._collection.insert_many(given, ordered=False)
            except BulkWriteError as error:
                refused = error.details["writeErrors"]
                if error.details["writeConcernErrors"] or any(one["code"] != _DUPLICATE for one in refused):
                    raise
                return {bytes.fromhex(given[one["index"]]["_id"]) for one in refused}
        return set()

    async def replace(self, id_: bytes, version: int, body: Body) -> bool:
        """See `Documents.replace`."""
        with _translated():
            ferret = await self._database.is_ferret()
            done = await self._collection.replace_one(*_replacement(Document(id_, version, body), ferret=ferret))
        return bool(done.matched_count)

    async def replace_many(self, documents: Sequence[Document]) -> set[bytes]:
        """See `Documents.replace_many`."""
        if not documents:
            return set()
        with _translated():
            ferret = await self._database.is_ferret()
        at_once = _FERRET_REPLACES if ferret else len(documents)
        done: set[bytes] = set()
        for first in range(0, len(documents), at_once):
            done |= await self._replace_some(documents[first : first + at_once], ferret=ferret)
        return done

    async def delete(self, id_: bytes) -> bool:
        """See `Documents.delete`."""
        with _translated():
            done = await self._collection.delete_one({"_id": id_.hex()})
        return bool(done.deleted_count)

    async def scan(self, after: bytes, limit: int, prefix: bytes = b"") -> list[Document]:
        """See `Documents.scan`."""
        start = prefix.hex()
        wanted: dict[str, Any] = {"_id": {"$gt": after.hex(), "$gte": start, "$lt": f"{start}{_BEHIND_HEX}"}}
        with _translated():
            if len(prefix) >= _GROUP_BYTES and await self._database.is_ferret():
                wanted["p"] = _group(start)
            page = self._collection.find(wanted).sort("_id", 1).limit(limit)
            return [_document(one) for one in await page.to_list(limit)]

    async def _replace_some(self, documents: Sequence[Document], *, ferret: bool) -> set[bytes]:
        mark = secrets.token_hex(8)
        writes = [ReplaceOne(*_replacement(one, mark, ferret=ferret)) for one in documents]
        with _translated():
            done = await self._collection.bulk_write(writes, ordered=False)
        ids = {one.id for one in documents}
        if done.matched_count == len(documents):
            return ids
        # The answer has the number alone: the marks tell whose they are.
        return {id_ for id_ in ids if await self._mark(id_) == mark}

    async def _mark(self, id_: bytes) -> str | None:
        with _translated():
            found = await self._collection.find_one({"_id": id_.hex()})
        return None if found is None else found.get("w")


def _stored(id_: bytes, version: int, body: Body, mark: str = "", *, ferret: bool) -> dict[str, Any]:
    text = id_.hex()
    made = {"_id": text, "v": version, "w": mark, "b": body}
    return made | {"p": _group(text)} if ferret else made


def _group(text: str) -> str:
    return text[: 2 * _GROUP_BYTES]


def _replacement(read: Document, mark: str = "", *, ferret: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """What to look for, and what to put there instead."""
    wanted = {"_id": read.id.hex(), "v": read.version}
    return wanted, _stored(read.id, read.version + 1, read.body, mark, ferret=ferret)


def _document(found: dict[str, Any]) -> Document:
    return Document(bytes.fromhex(found["_id"]), int(found["v"]), _plain(found["b"]))


def _plain(value: Any) -> Any:
    """Without BSON's own kind of whole numbers, which encoders of JSON do not know."""
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list):
        return list(map(_plain, value))
    return int(value) if type(value) is Int64 else value


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except _AWAY as error:
        raise StoreAway(repr(error)) from error
    except OperationFailure as error:
        if error.code == _INTERNAL:
            raise StoreAway("the database behind the server does not answer") from None
        # Its text may have the whole document in it, which no log may show.
        raise ValueError(f"MongoDB refuses the call with code {error.code}") from None
    except PyMongoError as error:
        if error.timeout:
            raise StoreAway(repr(error)) from error
        raise
