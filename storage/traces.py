"""What the trace knows of people: who asked about them last, their newest movements, their last card purchase.

Over a database of documents. A person is a keyed reference to their tax id and nothing else; each of the three parts is
a document of its own, so that those who write them do not get in each other's way. Writing the same again changes
nothing, and what is older never replaces what is newer, whatever order it comes in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from hashlib import blake2b
from typing import Any, Final, NamedTuple

from storage.documents import Body, Database, update_many
from storage.references import derived_key

MOVEMENTS_MAX: Final = 20
_QUERY: Final = b"q"
_MOVEMENTS: Final = b"m"
_PURCHASE: Final = b"c"
_PARTS: Final = (_QUERY, _MOVEMENTS, _PURCHASE)
_PEOPLE: Final = "trace_people"
_PURCHASES: Final = "trace_purchases"
COLLECTIONS: Final = (_PEOPLE, _PURCHASES)
_AT_ONCE: Final = 500


def trace_key(ledger_key: bytes) -> bytes:
    """The key of this service's references to people."""
    return derived_key(ledger_key, b"razao.trace")


class Query(NamedTuple):
    """Who asked. `at`: ns since 1970."""

    at: int
    address: str
    user: str


class Movement(NamedTuple):
    """What changed the posted balance of one of a person's accounts. (account, at) names it."""

    at: int  # ns since 1970
    kind: int  # storage.events.Kind
    amount: int  # centavos, negative: money that left
    account: int
    transfer: str  # 32 hexadecimal digits


class Purchase(NamedTuple):
    """A purchase by card. `at`: ns since 1970; `amount`: centavos."""

    id: str
    merchant: str
    amount: int
    at: int


class Trace(NamedTuple):
    """What there is of a person. Movements: newest first."""

    query: Query | None
    movements: Sequence[Movement]
    purchase: Purchase | None


class Outcome(StrEnum):
    """What became of a purchase."""

    STORED = "stored"
    KNOWN = "known"  # the very same was stored before
    CONFLICT = "conflict"  # the id was used for another one, which stands


class Traces:
    """The store. Every call may raise StoreAway; a write is durable when it returns."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._people = database.collection(_PEOPLE)
        self._purchases = database.collection(_PURCHASES)

    async def ping(self) -> None:
        """Raises StoreAway unless the store answers."""
        await self._database.ping()

    async def read(self, people: Sequence[bytes]) -> list[Trace]:
        """What there is of each of `people` (references), in their order, by one look."""
        found = await self._people.get_many([person + part for person in people for part in _PARTS])
        return [_trace(*(found.get(person + part) for part in _PARTS)) for person in people]

    async def last_query(self, person: bytes) -> Query | None:
        """Who asked about a person last, as far as it is written."""
        found = await self._people.get(person + _QUERY)
        return None if found is None else _query(found.body)

    async def record_queries(self, queries: Mapping[bytes, Query]) -> None:
        """Write down who asked last; one that is known to be later stands."""

        def newer(id_: bytes, body: Body | None) -> Body | None:
            query = queries[id_[:-1]]
            return None if body is not None and body["at"] >= query.at else query._asdict()

        await self._change(_QUERY, queries, newer)

    async def add_movements(self, movements: Mapping[bytes, Iterable[Movement]]) -> None:
        """Add movements of people; the newest `MOVEMENTS_MAX` of each are kept."""

        def merged(id_: bytes, body: Body | None) -> Body | None:
            known = [] if body is None else body["newest"]
            every = {(one[3], one[0]): one for one in (*known, *map(list, movements[id_[:-1]]))}
            newest = sorted(every.values(), key=lambda one: (one[0], one[3]), reverse=True)[:MOVEMENTS_MAX]
            return None if newest == known else {"newest": newest}

        await self._change(_MOVEMENTS, movements, merged)

    async def add_purchases(self, purchases: Sequence[tuple[bytes, Purchase]]) -> list[Outcome]:
        """Add purchases of people (references), of different ids; what became of each, in their order."""
        wanted = {_purchase_id(one.id): {"person": person.hex(), **one._asdict()} for person, one in purchases}
        there = await self._purchases.insert_many(wanted.items())
        known = await self._purchases.get_many(there) if there else {}
        outcomes = []
        newest: dict[bytes, Purchase] = {}
        for (person, one), (id_, body) in zip(purchases, wanted.items(), strict=True):
            outcome = Outcome.STORED
            if id_ in known:
                outcome = Outcome.KNOWN if known[id_].body == body else Outcome.CONFLICT
            outcomes.append(outcome)
            if outcome is not Outcome.CONFLICT:  # a known one too: the call that stored it may have broken off here
                newest[person] = max(one, newest.get(person, one), key=_order)

        def newer(id_: bytes, body: Body | None) -> Body | None:
            one = newest[id_[:-1]]
            return None if body is not None and _order(Purchase(**body)) >= _order(one) else one._asdict()

        await self._change(_PURCHASE, newest, newer)
        return outcomes

    async def _change(self, part: bytes, people: Iterable[bytes], change: Any) -> None:
        ids = [person + part for person in people]
        for first in range(0, len(ids), _AT_ONCE):
            await update_many(self._people, ids[first : first + _AT_ONCE], change)


def _trace(query: Any, movements: Any, purchase: Any) -> Trace:
    return Trace(
        None if query is None else _query(query.body),
        () if movements is None else [Movement(*one) for one in movements.body["newest"]],
        None if purchase is None else Purchase(**purchase.body),
    )


def _query(body: Body) -> Query:
    return Query(body["at"], body["address"], body["user"])


def _order(purchase: Purchase) -> tuple[int, str]:
    return purchase.at, purchase.id


def _purchase_id(id_: str) -> bytes:
    return blake2b(id_.encode(), digest_size=16).digest()
