"""Answers about people, remembered as bytes for at most a second.

Whoever asks about the same person within that second gets the same answer, which says how old it is. Concurrent
questions about people who are not remembered share one look into the store. An answer that is asked for when its second
is nearly over is renewed behind, many at once: people who are asked about all the time cost no look of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, Final, NamedTuple

import msgspec

from deployments.payments_transfers import KIND_NAMES
from deployments.trace_queries import LastQueries
from deployments.trace_schema import CardPurchase, LastQuery, Movement, Person
from storage import ids, traces
from storage.documents import StoreAway
from storage.events import Kind
from storage.gathering import BATCH_MAX, Gathering
from storage.notation import rfc3339
from storage.query_store import LEG_ENTRY
from storage.traces import Trace, Traces

LIFE_S: Final = 1.0
_AGING_S: Final = 0.75
_RENEW_EVERY_S: Final = 0.05
_KEPT_MAX: Final = 20_000
_REFERENCES_MAX: Final = 50_000
_encode: Final = msgspec.json.Encoder().encode


class Kept(NamedTuple):
    """An answer. `read`: when what it says was looked up, time.monotonic seconds."""

    read: float
    body: bytes
    length: tuple[bytes, bytes]  # the header


class References:
    """References to people, remembered by a keyed digest of how their tax ids were written.

    To check a tax id and to make its reference takes 6 µs, this 1 µs; and no tax id stays in memory.
    """

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)
        self._known: dict[bytes, bytes] = {}

    def known(self, given: bytes) -> bytes | None:
        """The reference of a tax id that was sent just so before."""
        return self._known.get(blake2b(given, digest_size=16, key=self._key).digest())

    def remember(self, given: bytes, reference: bytes) -> None:
        """Of a tax id as it was sent."""
        if len(self._known) >= _REFERENCES_MAX:
            self._known.clear()
        self._known[blake2b(given, digest_size=16, key=self._key).digest()] = reference


class Answers:
    """Makes answers, and remembers them."""

    def __init__(self, store: Traces, queries: LastQueries) -> None:
        self._store = store
        self._queries = queries
        self._gathered = Gathering(self._look_up)
        self._kept: dict[bytes, Kept] = {}
        self._aging: set[bytes] = set()

    def kept(self, person: bytes, now: float) -> Kept | None:
        """The answer about a person (a reference), if it is young enough at `now` (time.monotonic seconds)."""
        found = self._kept.get(person)
        if found is None:
            return None
        age = now - found.read
        if age > _AGING_S:
            if age >= LIFE_S:
                return None
            self._aging.add(person)
        return found

    async def about(self, person: bytes) -> Kept:
        """A new one. Raises StoreAway."""
        return await self._gathered(person)

    async def keep_renewing(self) -> None:
        """For ever: renew what was asked for when it was nearly too old. When that fails, whoever asks next looks."""
        while True:
            await asyncio.sleep(_RENEW_EVERY_S)
            aging, self._aging = list(self._aging), set()
            for first in range(0, len(aging), BATCH_MAX):
                with contextlib.suppress(StoreAway):
                    await self._look_up(aging[first : first + BATCH_MAX])

    async def _look_up(self, people: list[bytes]) -> Sequence[Kept]:
        read, at = time.monotonic(), time.time_ns()
        wanted = list(dict.fromkeys(people))
        found = dict(zip(wanted, await self._store.read(wanted), strict=True))
        if len(self._kept) + len(found) > _KEPT_MAX:
            self._kept.clear()
        for person, trace in found.items():
            body = _encode(self._answer(person, trace, at))
            self._kept[person] = Kept(read, body, (b"content-length", b"%d" % len(body)))
        return [self._kept[person] for person in people]

    def _answer(self, person: bytes, trace: Trace, at: int) -> Person:
        query = self._queries.latest(person, trace.query)
        purchase = trace.purchase
        return Person(
            last_query=None if query is None else last_query(query),
            movements=list(map(_movement, trace.movements)),
            last_card_purchase=None
            if purchase is None
            else CardPurchase(purchase.id, purchase.merchant, purchase.amount, rfc3339(purchase.at)),
            as_of=rfc3339(at),
        )


def last_query(query: traces.Query) -> LastQuery:
    """As clients see it."""
    return LastQuery(rfc3339(query.at), query.address, query.user)


def _movement(one: traces.Movement) -> Movement:
    kind: Any = KIND_NAMES[Kind(one.kind % LEG_ENTRY)]
    return Movement(
        transfer=ids.dashed(one.transfer),
        account=str(one.account),
        kind=kind,
        side="credit" if one.amount > 0 else "debit",
        amount=abs(one.amount),
        at=rfc3339(one.at),
    )
