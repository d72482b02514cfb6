"""Reads the feed of events: what happened to accounts, in order, from any place on.

The feed is made of the tables of the query store as they are; the view `query.events` shows it. Within a partition
events are ordered by their place (2 at + side), and a commit makes all events of a stretch visible at once, so whoever
has read up to a place has all before it. An account lives in one partition: its events are in order. A reader of
several partitions keeps a place for each, a `Cursor`.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import asyncpg

from storage.events import SLOTS
from storage.feed_schema import Happening
from storage.listening import Ear
from storage.query_store import NEWS

_COLUMNS: Final = ", ".join(f"event.{name}" for name in Happening._fields)
_OWN_PLACE: Final = f"($2::bigint[])[account % {SLOTS} % $3 + 1]"
_OF_OWNER: Final = f"""
SELECT {_COLUMNS} FROM (
    SELECT next.happened FROM (SELECT account, {_OWN_PLACE} AS place FROM people.owners WHERE sub = $1) AS own
    CROSS JOIN LATERAL (
        SELECT happened FROM query.happened AS happened
        WHERE account = own.account AND at >= own.place / 2 AND 2 * at + side > own.place ORDER BY at LIMIT $4
    ) AS next
    ORDER BY (next.happened).at, (next.happened).partition, (next.happened).side LIMIT $4
) AS page CROSS JOIN LATERAL query.told(page.happened) AS event
"""
_OF_ACCOUNT: Final = f"""
SELECT {_COLUMNS} FROM (
    SELECT happened FROM query.happened AS happened
    WHERE account = $1 AND at >= $2::bigint / 2 AND 2 * at + side > $2::bigint ORDER BY at LIMIT $3
) AS page CROSS JOIN LATERAL query.told(page.happened) AS event
"""
_OF_PARTITION: Final = f"""
SELECT {_COLUMNS} FROM (
    SELECT happened FROM query.happened AS happened
    WHERE partition = $1 AND 2 * at >= $2::bigint - 1 AND 2 * at + side > $2::bigint AND 2 * at + side <= $3::bigint
    AND 2 * at <= $3::bigint ORDER BY at, side LIMIT $4
) AS page CROSS JOIN LATERAL query.told(page.happened) AS event
"""
_NEWEST: Final = """
SELECT account, at, kind, amount, replace(transfer::text, '-', '') AS transfer, looked_at, first, last FROM (
    SELECT *, row_number() OVER (PARTITION BY account ORDER BY at DESC) AS rank,
           count(*) OVER () AS looked_at, min(at) OVER () AS first, max(at) OVER () AS last
    FROM (
        SELECT account, at, kind, amount, transfer FROM query.entries
        WHERE partition = $1 AND 2 * at > $2::bigint AND 2 * at <= $3::bigint AND amount <> 0 ORDER BY at LIMIT $4
    ) AS stretch
) AS ranked WHERE rank <= $5 AND account >= 1024
"""
_NEWS: Final = f"""
SELECT partition::bigint AS number, at, NULL AS sub FROM query.projection
UNION ALL
SELECT NULL, NULL, sub FROM unnest($1::text[]) AS reader(sub) WHERE EXISTS (
    SELECT FROM (SELECT account, {_OWN_PLACE} AS since FROM people.owners WHERE owners.sub = reader.sub) AS own
    JOIN LATERAL (
        SELECT FROM query.happened WHERE happened.account = own.account AND at > own.since LIMIT 1
    ) AS event ON true
)
UNION ALL
SELECT account, NULL, NULL
FROM (SELECT account, {_OWN_PLACE} AS since FROM unnest($4::bigint[]) AS reader(account)) AS one
WHERE EXISTS (SELECT FROM query.happened WHERE happened.account = one.account AND at > one.since)
"""
_STANDS: Final = f"""
SELECT partition, at FROM query.projection
WHERE partition IN (SELECT account % {SLOTS} % $2 FROM people.owners WHERE sub = $1)
"""
# The tables grow faster than their statistics: a plan must not depend on them. By account, rows are to come in the
# order of the index, and no more of them than are wanted; by partition, there are only block ranges.
_BY_ACCOUNT: Final = "SET enable_seqscan = off; SET enable_bitmapscan = off"
_BY_PARTITION: Final = "SET LOCAL enable_bitmapscan = on; SET LOCAL enable_indexscan = off"
_CURSOR: Final = re.compile(r"1(?:\.[0-9]{1,4}-[0-9]{1,19}){0,1024}", re.ASCII)
_PLACE_MAX: Final = 2**63 - 1

Reader = str | int
"""Whose events: those of all accounts that a subject owns, now or later, or of one account."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far somebody has read: a place per partition. A partition that is not named is read from its beginning.

    A caller's cursor names the partitions on which it had accounts at the start, so of an account that it opens later
    on another one it gets everything.
    """

    places: Mapping[int, int] = field(default_factory=dict)

    def after(self, happening: Happening) -> Cursor:
        """The cursor of one who has read this as well."""
        return Cursor({**self.places, happening.partition: happening.place})

    def __str__(self) -> str:
        return "1" + "".join(f".{partition}-{place}" for partition, place in sorted(self.places.items()))

    @classmethod
    def parse(cls, text: str, partitions: int) -> Cursor:
        """A cursor from its text.

        Raises:
            ValueError: it is not one of a ledger with `partitions` partitions.
        """
        if not _CURSOR.fullmatch(text):
            raise ValueError("not a cursor")
        pairs = [pair.split("-") for pair in text.split(".")[1:]]
        places = {int(partition): int(place) for partition, place in pairs}
        if len(places) != len(pairs) or any(key >= partitions for key in places):
            raise ValueError("not a cursor of this ledger")
        if max(places.values(), default=0) > _PLACE_MAX:
            raise ValueError("not a cursor")
        return cls(places)


@dataclass(frozen=True, slots=True)
class News:
    """Who has something new to read, and up to where that was looked at."""

    readers: frozenset[Reader]
    reached: Mapping[int, int]  # partition → at


class Newest(NamedTuple):
    """The newest entries of accounts. `looked_at`: how many there were of all, which cover `span_ns`."""

    rows: Sequence[tuple[int, int, int, int, str]]  # account, at, kind, amount (credit positive), transfer in hex
    looked_at: int
    span_ns: int
    place: int  # up to which everything was looked at


class Feed:
    """The feed of a ledger with `partitions` partitions. However many read, it takes one connection of the pool.

    From `listen` to `close` it keeps that one, on which the news come; otherwise it gives it back after each read.
    While the database is away, reads end with what the driver raises, and the next one tries again.
    """

    def __init__(self, pool: asyncpg.Pool[asyncpg.Record], partitions: int) -> None:
        self.partitions = partitions
        self._lock = asyncio.Lock()
        # What is marked as published and lost with a crash of the database is passed on once more.
        self._ear = Ear(pool, NEWS, self._heard, setup=f"{_BY_ACCOUNT}; SET synchronous_commit = off")
        self._listener: Callable[[], None] | None = None

    def partition(self, account: int) -> int:
        """Where an account lives."""
        return account % SLOTS % self.partitions

    async def end(self, reader: Reader) -> Cursor:
        """The cursor of one who wants only what comes from now on."""
        if isinstance(reader, int):
            partition = self.partition(reader)
            return Cursor({partition: 2 * (await self.reached()).get(partition, 0) + 1})
        rows = await self._fetch(_STANDS, reader, self.partitions)
        return Cursor({row["partition"]: 2 * row["at"] + 1 for row in rows})

    async def accounts(self, sub: str, limit: int) -> int:
        """How many accounts a subject has, counted up to `limit`."""
        counted = "SELECT count(*) FROM (SELECT FROM people.owners WHERE sub = $1 LIMIT $2) AS own"
        return int((await self._fetch(counted, sub, limit))[0][0])

    async def page(self, reader: Reader, cursor: Cursor, limit: int) -> list[Happening]:
        """The next events behind `cursor`, at most `limit`, in order."""
        if isinstance(reader, int):
            place = cursor.places.get(self.partition(reader), 0)
            rows = await self._fetch(_OF_ACCOUNT, reader, place, limit)
        else:
            rows = await self._fetch(_OF_OWNER, reader, self._array(cursor.places), self.partitions, limit)
        return [Happening(*row) for row in rows]

    async def news(self, readers: Iterable[Reader], since: Mapping[int, int]) -> News:
        """Which of `readers` have events behind `since` (partition → at)."""
        known = set(readers)
        subs = [one for one in known if isinstance(one, str)]
        accounts = [one for one in known if isinstance(one, int)]
        rows = await self._fetch(_NEWS, subs, self._array(since), self.partitions, accounts)
        reached = {row["number"]: row["at"] for row in rows if row["at"] is not None}
        found: set[Reader] = {row["sub"] or row["number"] for row in rows if row["at"] is None}
        return News(frozenset(found), reached)

    async def reached(self) -> dict[int, int]:
        """Up to which instant (ns) each partition's events are there."""
        return {row[0]: row[1] for row in await self._fetch("SELECT partition, at FROM query.projection")}

    async def listen(self, heard: Callable[[], None]) -> None:
        """Call `heard` on every commit of the projection, from now on and on connections to come."""
        async with self._lock:
            self._listener = heard
            await self._ear.ensure()

    async def close(self) -> None:
        """Give the connection back. The feed may be used again afterwards."""
        async with self._lock:
            self._listener = None
            await self._ear.close()

    # -- passing it on ------------------------------------------------------------------------------------------------

    async def stretch(self, partition: int, place: int, until: int, limit: int) -> list[Happening]:
        """The next events of a whole partition behind `place`, up to and including the place `until`."""
        async with self._own_connection() as connection, connection.transaction(readonly=True):
            await connection.execute(_BY_PARTITION)
            rows = await connection.fetch(_OF_PARTITION, partition, place, until, limit)
        return [Happening(*row) for row in rows]

    async def newest(self, partition: int, place: int, until: int, *, limit: int, each: int) -> Newest:
        """What moved money on accounts behind `place`, up to and including `until`: of each account the `each` newest.

        At most `limit` entries are looked at. Cheaper than `stretch` by far: nothing is said of refusals and holds.
        """
        async with self._own_connection() as connection, connection.transaction(readonly=True):
            await connection.execute(_BY_PARTITION)
            rows = await connection.fetch(_NEWEST, partition, place, until, limit, each)
        if not rows:
            return Newest((), 0, 0, until)
        looked_at, first, last = rows[0]["looked_at"], rows[0]["first"], rows[0]["last"]
        # The two sides of an event share an instant, and only one may have been within the limit: see it again.
        reached = 2 * last - 1 if looked_at == limit else until
        return Newest([tuple(row[:5]) for row in rows], looked_at, last - first, reached)

    async def published(self, sink: str) -> dict[int, int]:
        """Up to which place each partition was passed on to `sink`."""
        rows = await self._fetch("SELECT partition, place FROM query.published WHERE sink = $1", sink)
        return {row[0]: row[1] for row in rows}

    async def mark_published(self, sink: str, partition: int, place: int) -> None:
        """Everything of a partition up to `place` has arrived there."""
        await self._fetch(
            "INSERT INTO query.published VALUES ($1, $2, $3)"
            " ON CONFLICT (sink, partition) DO UPDATE SET place = excluded.place",
            sink, partition, place,
        )  # fmt: skip

    async def beginning(self, partition: int) -> int:
        """A place before all events of a partition, close to the first: every account's first event is its opening."""
        first = await self._fetch("SELECT min(at) FROM query.account_changes WHERE partition = $1", partition)
        return 2 * int(first[0][0] or 0)

    async def summarize(self) -> None:
        """Tell the block ranges of what was added since: unsummarised ones would all be read each time."""
        for index in ("entries_in_order", "account_changes_in_order"):
            await self._fetch(f"SELECT brin_summarize_new_values('query.{index}')")

    # -- the connection -----------------------------------------------------------------------------------------------

    async def _fetch(self, statement: str, *arguments: object) -> list[Any]:
        async with self._own_connection() as connection:
            rows: list[Any] = await connection.fetch(statement, *arguments)
        return rows

    @contextlib.asynccontextmanager
    async def _own_connection(self) -> AsyncIterator[Any]:
        async with self._lock:
            try:
                if self._listener is not None:
                    await self._ear.ensure()
                yield await self._ear.connection()
            finally:
                if self._listener is None:
                    await self._ear.close()

    def _heard(self) -> None:
        if self._listener is not None:
            self._listener()

    def _array(self, places: Mapping[int, int]) -> Sequence[int]:
        return [places.get(partition, 0) for partition in range(self.partitions)]
