"""Consents: for how long somebody lets a consulting party see their profile, and for which purpose.

One document a person, with the consents that were given last. One that has ended stays for the person to see until
newer ones take its place; that it was given and ended is in the record of accesses, which is only ever added to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from storage.documents import Database, update
from storage.gathering import Gathering

CONSENTS: Final = "score_consents"
LIVE_MAX: Final = 64
KEPT_MAX: Final = 128


class TooManyConsents(Exception):  # noqa: N818 - what it is
    """The person has given as many as can be live at once."""


@dataclass(frozen=True, slots=True)
class Consent:
    """`grantee`: the subject of a token; times in ns since 1970."""

    id: str
    grantee: str
    purpose: str
    made_at: int
    made_by: str
    expires_at: int
    ended_at: int | None = None

    def live(self, now: int) -> bool:
        """Whether it opens anything."""
        return self.ended_at is None and now < self.expires_at


class Consents:
    """Consents by the person's reference."""

    def __init__(self, database: Database) -> None:
        self._documents = database.collection(CONSENTS)
        self._reads = Gathering(self._read)

    async def of(self, person: bytes) -> list[Consent]:
        """Somebody's consents, the newest first."""
        return await self._reads(person)

    async def live(self, person: bytes, grantee: str, purpose: str, now: int) -> Consent | None:
        """The consent that lets `grantee` see the profile for `purpose`."""
        matching = (one for one in await self.of(person) if one.grantee == grantee and one.purpose == purpose)
        return next((one for one in matching if one.live(now)), None)

    async def give(self, person: bytes, consent: Consent) -> Consent:
        """Keep a new one, and return it; with an id that is there already, what was kept first.

        Raises:
            TooManyConsents: LIVE_MAX are live.
        """

        first: list[Consent] = []

        def add(known: list[Consent]) -> list[Consent]:
            first[:] = [one for one in known if one.id == consent.id]
            if first:
                return known
            live = [one for one in known if one.live(consent.made_at)]
            if len(live) >= LIVE_MAX:
                raise TooManyConsents
            ended = [one for one in known if not one.live(consent.made_at)]
            kept = [consent, *live, *ended[: KEPT_MAX - len(live) - 1]]
            return sorted(kept, key=lambda one: -one.made_at)

        await self._change(person, add)
        return first[0] if first else consent

    async def end(self, person: bytes, id_: str, now: int) -> Consent | None:
        """End one at once; one that has ended stays as it is. None: there is none with that id."""
        found: list[Consent] = []

        def end(known: list[Consent]) -> list[Consent]:
            found[:] = [one for one in known if one.id == id_]
            return [replace(one, ended_at=now) if one.id == id_ and one.live(now) else one for one in known]

        await self._change(person, end)
        return found[0] if found else None

    async def _change(self, person: bytes, change: Callable[[list[Consent]], list[Consent]]) -> None:
        def changed(body: dict[str, Any] | None) -> dict[str, Any] | None:
            known = _consents(body)
            then = change(known)
            return None if then == known else {"consents": [asdict(one) for one in then]}

        await update(self._documents, person, changed)

    async def _read(self, people: list[bytes]) -> list[list[Consent]]:
        found = await self._documents.get_many(list(set(people)))
        bodies = [found[person].body if person in found else None for person in people]
        return [_consents(body) for body in bodies]


def _consents(body: dict[str, Any] | None) -> list[Consent]:
    return [] if body is None else [Consent(**one) for one in body["consents"]]
