"""People's profiles and what was derived from them, over documents, under a keyed reference of the person.

A profile's document is `{"profile": …, "updated_at": ns, "derived": …}`. Its version settles the one race there is: a
score is derived from a profile and from debts that are asked of the vault meanwhile, and the debts may change in
between. What is derived is written only onto the version that was read before the vault was asked; every change of the
profile, and every message that somebody's debts have changed, makes it another version. Debts are never here: of a
score only the bins are kept that its factors fell into.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Final, NamedTuple

from storage.documents import Database, Document, update
from storage.gathering import Gathering

PROFILES: Final = "score_profiles"


class Derived(NamedTuple):
    """A score as it is kept: `bins` has one for each factor of `model`; good until `until` (ns), or dropped sooner."""

    model: str
    bins: list[int]
    debts_considered: bool
    at: int
    until: int


class Profile(NamedTuple):
    """What is known of somebody. `fields`: JSON types; `version` for `Profiles.keep`."""

    person: bytes
    version: int
    fields: dict[str, Any]
    updated_at: int
    derived: Derived | None


class Profiles:
    """Profiles by the person's reference. Concurrent reads go to the store together."""

    def __init__(self, database: Database) -> None:
        self._documents = database.collection(PROFILES)
        self._reads = Gathering(self._read)

    async def get(self, person: bytes) -> Profile | None:
        """Somebody's profile."""
        found = await self._reads(person)
        return None if found is None else _profile(found)

    async def put(self, person: bytes, fields: dict[str, Any], at: int) -> None:
        """Write a profile down, whatever was there; what was derived from the one before is dropped."""
        await update(self._documents, person, lambda _: {"profile": fields, "updated_at": at})

    async def keep(self, profile: Profile, derived: Derived) -> bool:
        """Keep what was derived from `profile`. False: it is not the current version any more."""
        body = {"profile": profile.fields, "updated_at": profile.updated_at, "derived": derived._asdict()}
        return await self._documents.replace(profile.person, profile.version, body)

    async def drop(self, people: Collection[bytes]) -> None:
        """Drop what was derived for these people, and what is just being derived."""
        left = set(people)
        while left:
            found = await self._documents.get_many(list(left))
            bare = [
                Document(one.id, one.version, {name: part for name, part in one.body.items() if name != "derived"})
                for one in found.values()
            ]
            left = {one.id for one in bare} - await self._documents.replace_many(bare)

    async def page(self, after: bytes, limit: int) -> list[Profile]:
        """Profiles in order of their references, from the one behind `after` on."""
        return [_profile(one) for one in await self._documents.scan(after, limit)]

    async def _read(self, people: list[bytes]) -> Sequence[Document | None]:
        if len(people) == 1:
            return [await self._documents.get(people[0])]
        found = await self._documents.get_many(list(set(people)))
        return [found.get(person) for person in people]


def _profile(document: Document) -> Profile:
    body = document.body
    derived = body.get("derived")
    return Profile(
        document.id,
        document.version,
        body["profile"],
        body["updated_at"],
        None if derived is None else Derived(**derived),
    )
