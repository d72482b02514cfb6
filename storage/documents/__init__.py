"""Single documents by id: what the score and trace tiers keep their data in, on PostgreSQL or on MongoDB.

A document is known by its id alone and is changed by comparing its version; there are no queries, so none can be
injected, and a store that can do this little will do. Both implementations pass one contract suite.

    postgres.py     a table per collection, for the embedded mode
    mongo.py        MongoDB, by motor or by PyMongo's own asyncio client
    opening.py      one of them, as the settings say

    StoreAway       the store cannot be reached; whether a write in progress took effect is not known
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple, Protocol

Body = dict[str, Any]
"""JSON types alone: no bytes, no dates; whole numbers of 64 bits; names of members without `.`, `$` or NUL, text
without NUL (MongoDB could hold some of these, FerretDB cannot)."""

_NAME: Final = re.compile(r"[a-z][a-z_]{0,47}")
_TRIES: Final = 64


class StoreAway(Exception):  # noqa: N818 - what it is
    """The store cannot be reached, or does not answer. A write may or may not have taken effect."""


class Document(NamedTuple):
    """One document. `version` is 1 when it is inserted, and one more with each replacement."""

    id: bytes
    version: int
    body: Body


class Documents(Protocol):
    """One collection. Every write is durable when its call returns; every call may raise StoreAway."""

    async def get(self, id_: bytes) -> Document | None:
        """The document."""
        ...

    async def get_many(self, ids: Iterable[bytes]) -> dict[bytes, Document]:
        """Those that there are."""
        ...

    async def insert(self, id_: bytes, body: Body) -> bool:
        """Add a document. False: there is one of that id, which stays as it is."""
        ...

    async def insert_many(self, pairs: Iterable[tuple[bytes, Body]]) -> set[bytes]:
        """Add documents of different ids; returns the ids that were there already, which stay as they are."""
        ...

    async def replace(self, id_: bytes, version: int, body: Body) -> bool:
        """Compare and set. False: it has another version, or is gone."""
        ...

    async def replace_many(self, documents: Sequence[Document]) -> set[bytes]:
        """Compare and set each for itself (`version`: the one that was read); returns the ids that took effect.

        Of one that took effect and was replaced again at the same moment it may not be told: then it is left out.
        """
        ...

    async def delete(self, id_: bytes) -> bool:
        """Whether there was one."""
        ...

    async def scan(self, after: bytes, limit: int, prefix: bytes = b"") -> list[Document]:
        """The next ones behind the id `after` (empty: from the first on), in the order of their ids.

        `prefix`: only those whose ids begin so; others cost nothing.
        """
        ...


class Database(Protocol):
    """Collections in one place."""

    def collection(self, name: str) -> Documents:
        """The collection `name`."""
        ...

    async def create(self, names: Iterable[str]) -> None:
        """Make collections where they are missing. Nothing ever drops them."""
        ...

    async def ping(self) -> None:
        """Raises StoreAway unless it answers."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...


def check_name(name: str) -> str:
    """The name of a collection, which becomes part of a statement.

    Raises:
        ValueError: it is not small letters and underscores.
    """
    if not _NAME.fullmatch(name):
        raise ValueError("not the name of a collection")
    return name


async def update(documents: Documents, id_: bytes, change: Callable[[Body | None], Body | None]) -> Body | None:
    """Change one document, as if nobody else did at the same time; returns what was written.

    Args:
        documents: where it is.
        id_: of the document, which need not be there.
        change: makes the new body of the present one (None: there is none), perhaps several times; None: leave it.

    Raises:
        StoreAway: the store is, or others change this document without end.
    """
    for _ in range(_TRIES):
        found = await documents.get(id_)
        wanted = change(None if found is None else found.body)
        if wanted is None:
            return None
        if found is None:
            done = await documents.insert(id_, wanted)
        else:
            done = await documents.replace(id_, found.version, wanted)
        if done:
            return wanted
    raise StoreAway(f"a document was changed by others {_TRIES} times in a row")


async def update_many(
    documents: Documents, ids: Iterable[bytes], change: Callable[[bytes, Body | None], Body | None]
) -> None:
    """Change many documents, each for itself as `update` does; `change` is given the id as well.

    Raises:
        StoreAway: the store is, or others change one of them without end. Some may have been changed.
    """
    left = set(ids)
    for _ in range(_TRIES):
        if not left:
            return
        found = await documents.get_many(left)
        wanted = {id_: change(id_, found[id_].body if id_ in found else None) for id_ in left}
        new = [(id_, body) for id_, body in wanted.items() if body is not None and id_ not in found]
        old = [one._replace(body=body) for id_, one in found.items() if (body := wanted[id_]) is not None]
        left = (await documents.insert_many(new) if new else set()) | {one.id for one in old}
        left -= await documents.replace_many(old) if old else set()
    raise StoreAway(f"documents were changed by others {_TRIES} times in a row")
