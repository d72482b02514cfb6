"""The trace's own users: names and hashes of passwords, kept beside its data and known to nobody else."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from typing import Final, NamedTuple

from storage.documents import Body, Database, Document, update

_USERS: Final = "trace_users"
COLLECTIONS: Final = (_USERS,)
_PAGE: Final = 500


class User(NamedTuple):
    """One user. `version` changes with every change."""

    id: bytes
    version: int
    name: str  # canonical
    password: str  # PHC string
    disabled: bool


class TraceUsers:
    """The store. Every call may raise StoreAway. Names are canonical (`storage.identity.canonical_username`)."""

    def __init__(self, database: Database) -> None:
        self._users = database.collection(_USERS)

    async def add(self, name: str, password: str) -> bool:
        """Add a user with the hash of a password. False: there is one of that name."""
        return await self._users.insert(_id(name), {"name": name, "password": password, "disabled": False})

    async def change(self, name: str, *, password: str | None = None, disabled: bool | None = None) -> bool:
        """Change the password's hash, or let a user in or no more. False: there is nobody of that name."""

        def changed(body: Body | None) -> Body | None:
            if body is None:
                return None
            more: Body = {"password": password, "disabled": disabled}
            return {**body, **{key: value for key, value in more.items() if value is not None}}

        return await update(self._users, _id(name), changed) is not None

    async def by_name(self, name: str) -> User | None:
        """The user of that name, disabled or not."""
        found = await self._users.get(_id(name))
        return None if found is None else _user(found)

    async def versions(self, ids: Iterable[bytes]) -> dict[bytes, int]:
        """The present versions of those that there are."""
        return {id_: found.version for id_, found in (await self._users.get_many(ids)).items()}

    async def everyone(self) -> list[User]:
        """All users, by name."""
        found: list[User] = []
        after = b""
        while page := await self._users.scan(after, _PAGE):
            found += map(_user, page)
            after = page[-1].id
        return sorted(found, key=lambda user: user.name)


def _id(name: str) -> bytes:
    return blake2b(name.encode(), digest_size=16).digest()


def _user(found: Document) -> User:
    return User(found.id, found.version, found.body["name"], found.body["password"], found.body["disabled"])
