"""The query store: transfers, entries with running balances, and accounts as PostgreSQL rows, filled from the journal.

Rows are only added, in chunks by binary COPY, and the offset reached is changed in the same transaction: exactly once.
Whoever adds names the offset he goes on from, so of two projectors only one can. Reads answer as of the projection;
`wait_for` makes a reader wait until his own write is in.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import struct
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from operator import itemgetter
from pathlib import Path
from typing import Any, Final, NamedTuple

import asyncpg
import numpy as np

from storage import copy_format
from storage.copy_format import Rows
from storage.events import EVENT, SETTLEMENT, AccountStatus, Code, Kind, place
from storage.found import Found
from storage.ids import Id
from storage.listening import Ear

VERSION: Final = 3
"""Of the tables. A store of another version is dropped by `create`, and the projector fills it again."""

_SCHEMA: Final = (Path(__file__).parent / "query_store.sql").read_text()
_LOCK: Final = "SELECT pg_advisory_xact_lock(7307502)"
_INT64_MAX: Final = 2**63 - 1
_MASK64: Final = 2**64 - 1
_POLL_S: Final = (0.002, 0.025)
_LIMIT_MAX: Final = 1000
_WANTED: Final = "razao_wanted"
"""The channel on which readers who wait call the projector."""

TRANSFER: Final = np.dtype(
    [
        ("at", np.int64),
        ("position", np.int64),
        ("debit", np.uint64),
        ("credit", np.uint64),
        ("amount", np.int64),
        ("id", np.uint64, 2),
        ("partition", np.int16),
        ("kind", np.int16),
        ("code", np.int16),
    ]
)
"""A row of query.transfers that has no more to say, which is nearly every one."""

TRANSFER_FULL: Final = np.dtype(
    [*((name, TRANSFER[name]) for name in TRANSFER.names or ()), ("expires_at", np.int64), ("detail", np.int64)]
)
"""One with more: a hold's end, a refusal's detail, perhaps a note."""

TRANSFER_REF: Final = np.dtype(
    [
        *((name, TRANSFER[name]) for name in TRANSFER.names or ()),
        ("detail", np.int64),
        ("ref", np.uint64, 2),
        ("ref_at", np.int64),
    ]
)
"""One that refers to another: post, void, expire, refund."""

OUTCOME: Final = np.dtype(
    [
        ("at", np.int64),
        ("position", np.int64),
        ("sent_at", np.int64),
        ("payer", np.int16),
        ("partition", np.int16),
        ("code", np.int16),
    ]
)
"""How a payment ended that left its shard. The payer's partition and the stamp of the debit name it, not its id."""

ENTRY: Final = np.dtype(
    [
        ("account", np.uint64),
        ("at", np.int64),
        ("sent_at", np.int64),
        ("position", np.int64),
        ("amount", np.int64),
        ("balance", np.int64),
        ("pending", np.int64),
        ("other", np.uint64),
        ("transfer", np.uint64, 2),
        ("kind", np.int16),
        ("partition", np.int16),
    ]
)

ACCOUNT_CHANGE: Final = np.dtype(
    [("account", np.uint64), ("at", np.int64), ("position", np.int64), ("kind", np.int16), ("partition", np.int16)]
)

Note = bytes | None


LEG_ENTRY: Final = 100
"""Kind of an entry for money from another shard, less the kind of the payment."""

SENT_ENTRY: Final = 200
"""The same for money that left for another shard: whether it arrives is not known yet."""

SETTLED_ENTRY: Final = 300
"""The same for the news that it has arrived. The amount is 0: what it changes at most is what is pending."""

NEWS: Final = "razao_events"
"""Channel on which each commit names its partition."""


class Chunk(NamedTuple):
    """What a stretch of one partition's journal adds to the tables. Notes go with the rows beside them."""

    transfers: Rows  # (n,) TRANSFER
    transfers_full: Rows  # (m,) TRANSFER_FULL
    notes_full: Sequence[Note]
    transfers_ref: Rows  # (k,) TRANSFER_REF
    notes_ref: Sequence[Note]
    outcomes: Rows  # OUTCOME
    entries: Rows  # ENTRY, best sorted by account
    account_changes: Rows  # ACCOUNT_CHANGE

    @classmethod
    def empty(cls) -> Chunk:
        """For a stretch of open and void records."""
        dtypes = (TRANSFER, TRANSFER_FULL, TRANSFER_REF, OUTCOME, ENTRY, ACCOUNT_CHANGE)
        plain, full, ref, outcomes, entries, changes = (np.zeros(0, dtype) for dtype in dtypes)
        return cls(plain, full, [], ref, [], outcomes, entries, changes)


class Overtaken(Exception):  # noqa: N818 - what it is
    """The store is not at the offset that was to be gone on from: another projector is at work, or it was dropped."""


class NotYetProjected(Exception):  # noqa: N818
    """The deadline came before the projection reached what the reader has seen."""


class Stored(NamedTuple):
    """What the tables have of an id, as rows, and up to which offset they have its own partition."""

    id: Id
    partition: int
    rows: Sequence[Any]
    projected: int


class Status(StrEnum):
    """What a client is told of a transfer."""

    IN_FLIGHT = "in flight"
    SETTLED = "settled"
    HELD = "held"
    POSTED = "posted"
    VOIDED = "voided"
    EXPIRED = "expired"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Transfer:
    """A transfer, deposit, withdrawal, hold, refund, post or void with all that followed, as of the projection.

    `partition` and `at` name it for ever; its id may be used again once it is forgotten.
    """

    id: Id
    partition: int
    position: int
    kind: Kind
    status: Status
    code: Code
    detail: int
    debit: int
    credit: int
    amount: int
    posted_amount: int | None  # of a hold: centavos, once posted
    refunded_amount: int  # sum of settled refunds
    at: int
    changed_at: int  # of the event that gave it its status
    expires_at: int | None
    ref: Id | None  # refund: the original; post, void: the hold
    note: bytes | None


@dataclass(frozen=True, slots=True)
class Entry:
    """One movement of an account and its posted balance afterwards."""

    transfer: Id
    kind: Kind
    amount: int  # centavos; credit positive, debit negative
    balance: int
    pending: int
    at: int


@dataclass(frozen=True, slots=True)
class Page:
    """Entries, newest first, and the cursor of the next page."""

    items: Sequence[Entry]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class Balance:
    """An account at an instant. `at`: of the newest event that it includes."""

    posted: int
    pending: int
    at: int

    @property
    def available(self) -> int:
        """What may be spent."""
        return self.posted - self.pending


@dataclass(frozen=True, slots=True)
class Account:
    """An account as of the projection."""

    account: int
    status: AccountStatus
    opened_at: int
    changed_at: int


STATUS_AFTER: Final = {
    Kind.OPEN: AccountStatus.OPEN,
    Kind.UNFREEZE: AccountStatus.OPEN,
    Kind.FREEZE: AccountStatus.FROZEN,
    Kind.CLOSE: AccountStatus.CLOSED,
}
"""What an account is after a change of that kind."""

_TRANSFERS: Final = """
WITH found AS (
    SELECT * FROM query.transfers WHERE id = $1
    UNION ALL
    SELECT * FROM query.transfers WHERE ref = $1 AND id <> $1
)
SELECT found.*, ended.code AS outcome, ended.at AS outcome_at,
       (SELECT next_offset FROM query.projection AS own WHERE own.partition = $2) AS projected
FROM (SELECT) AS one LEFT JOIN found ON true LEFT JOIN query.outcomes AS ended
    ON found.code = 1 AND ended.payer = found.partition AND ended.sent_at = found.at
ORDER BY found.at
"""

_BALANCE: Final = """
SELECT at, balance, pending FROM query.entries WHERE account = $1 AND at <= $2 ORDER BY at DESC LIMIT 1
"""

_ENTRIES: Final = """
SELECT transfer, kind, amount, balance, pending, at FROM query.entries
WHERE account = $1 AND at >= $2 AND at < $3 AND amount <> 0 ORDER BY at DESC LIMIT $4
"""


_MOVE: Final = f"""
WITH moved AS (
    UPDATE query.projection SET next_offset = $3, at = greatest(at, $4)
    WHERE partition = $1 AND next_offset = $2 RETURNING partition
)
SELECT pg_notify('{NEWS}', partition::text) FROM moved
"""


class QueryStore:
    """The tables of schema `query` over a pool that is handed in. Deadlines are times of `time.monotonic`."""

    def __init__(self, pool: asyncpg.Pool[asyncpg.Record]) -> None:
        self.pool = pool
        self._waiting: dict[asyncio.Future[None], tuple[Mapping[int, int], float]] = {}
        self._watching: dict[asyncio.Future[None], tuple[Mapping[int, int], float]] = {}
        self._poller: asyncio.Task[None] | None = None
        self._joined = asyncio.Event()

    # -- making and filling ---------------------------------------------------------------------------------------

    async def create(self) -> None:
        """Make the tables if they are not there as this version has them."""
        async with self.pool.acquire() as connection, connection.transaction():
            await connection.execute(_LOCK)
            if await _version(connection) != VERSION:
                await _remake(connection)

    async def drop(self) -> None:
        """Remove everything; `create` and a projector from the journal's start make it again."""
        async with self.pool.acquire() as connection, connection.transaction():
            await connection.execute(_LOCK)
            await connection.execute("DROP SCHEMA IF EXISTS query CASCADE")

    async def reset(self) -> None:
        """Drop and create in one step, so that nobody meets missing tables. A running projector starts again."""
        async with self.pool.acquire() as connection, connection.transaction():
            await connection.execute(_LOCK)
            await _remake(connection)

    async def offset(self, partition: int) -> int:
        """The offset from which on `partition` is not projected; from here on it is among `projected`."""
        await self.pool.execute("INSERT INTO query.projection VALUES ($1, 0, 0) ON CONFLICT DO NOTHING", partition)
        row = "SELECT next_offset FROM query.projection WHERE partition = $1"
        return int(await self.pool.fetchval(row, partition))

    async def append(self, partition: int, start: int, end: int, at: int, chunk: Chunk) -> None:
        """Add what the records from offset `start` up to, not including, `end` say; the newest event was at `at`.

        Raises:
            Overtaken: the store does not stand at `start`.
        """
        async with self.pool.acquire() as connection, connection.transaction():
            # A lost commit is projected again: the journal is the truth, so there is no disk to wait for.
            await connection.execute("SET LOCAL synchronous_commit = off")
            if await connection.fetchrow(_MOVE, partition, start, end, at) is None:
                raise Overtaken(f"partition {partition} is not projected up to offset {start}")
            await _copy(connection, "transfers", chunk.transfers)
            await _copy(connection, "transfers", chunk.transfers_full, chunk.notes_full)
            await _copy(connection, "transfers", chunk.transfers_ref, chunk.notes_ref)
            await _copy(connection, "outcomes", chunk.outcomes)
            await _copy(connection, "entries", chunk.entries)
            await _copy(connection, "account_changes", chunk.account_changes)

    # -- waiting --------------------------------------------------------------------------------------------------

    async def projected(self) -> dict[int, int]:
        """Per partition the offset of the next record to be projected; with a journal's head this gives the lag."""
        return {row[0]: row[1] for row in await self.pool.fetch("SELECT partition, next_offset FROM query.projection")}

    async def wait_for(self, positions: Mapping[int, int], deadline: float) -> None:
        """Return once the record at each position (partition → offset) is projected.

        All who wait share one poller. A position is looked up even when an earlier call has seen it pass, because the
        store may have been rebuilt since.

        Raises:
            NotYetProjected: the deadline came first.
        """
        if positions:
            await self._wait(self._waiting, positions, deadline)

    async def settled_transfer(self, id_: Id, deadline: float) -> list[Transfer]:
        """`transfer`, once no use of the id is in flight any more.

        Raises:
            NotYetProjected: one still is at the deadline.
        """
        while True:
            seen = await self.projected()
            found = await self.transfer(id_)
            if all(transfer.status is not Status.IN_FLIGHT for transfer in found):
                return found
            await self._wait(self._watching, seen, deadline)

    def wanted(self, heard: Callable[[], None]) -> Ear:
        """Hears whenever somebody waits for what is not projected yet."""
        return Ear(self.pool, _WANTED, heard)

    async def close(self) -> None:
        """End the poller. The pool belongs to whoever made it."""
        if self._poller is not None:
            self._poller.cancel()
            await asyncio.gather(self._poller, return_exceptions=True)

    async def _wait(
        self, group: dict[asyncio.Future[None], tuple[Mapping[int, int], float]], at: Mapping[int, int], deadline: float
    ) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        group[future] = (at, deadline)
        self._joined.set()
        if self._poller is None or self._poller.done():
            self._poller = asyncio.create_task(self._poll(), name="query store poller")
        try:
            await future
        finally:
            group.pop(future, None)

    async def _poll(self) -> None:
        """Look at the projection for everybody who waits, more slowly while nothing moves; ends with the last one."""
        pause, last = _POLL_S[0], dict[int, int]()
        while self._waiting or self._watching:
            self._joined.clear()
            failure: Exception | None = None
            try:
                seen = await self.projected()
            except Exception as error:  # noqa: BLE001 - whatever it is, nobody may wait beyond his deadline
                seen, failure = last, error
            now = time.monotonic()
            for future, (positions, deadline) in list(self._waiting.items()):
                reached = failure is None and all(seen.get(key, 0) > offset for key, offset in positions.items())
                _answer(future, reached=reached, late=now >= deadline, failure=failure)
            for future, (before, deadline) in list(self._watching.items()):
                _answer(future, reached=failure is None and seen != before, late=now >= deadline, failure=failure)
            pause = _POLL_S[0] if seen != last else min(pause * 1.5, _POLL_S[1])
            last = seen
            if failure is None and (self._waiting or self._watching):
                with contextlib.suppress(Exception):  # the next look meets what is wrong too
                    await self.pool.execute("SELECT pg_notify($1, '')", _WANTED)
            await asyncio.sleep(_POLL_S[0])
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause - _POLL_S[0]):
                    await self._joined.wait()

    # -- reading --------------------------------------------------------------------------------------------------

    async def transfer(self, id_: Id) -> list[Transfer]:
        """Each use of this id with what followed that very one, the newest last: that is the one the id now means."""
        return _uses((await self.stored(id_, 0)).rows, id_)

    async def stored(self, id_: Id, partition: int) -> Stored:
        """What the tables have of an id, for `uses`. `partition`: its own."""
        rows = await self.pool.fetch(_TRANSFERS, uuid.UUID(int=_number(id_)), partition)
        return Stored(id_, partition, [row for row in rows if row["id"] is not None], rows[0]["projected"] or 0)

    async def newest(self) -> dict[int, int]:
        """The stamp of the newest event of each partition that is projected, ns since 1970; 0 of none."""
        return {row[0]: row[1] for row in await self.pool.fetch("SELECT partition, at FROM query.projection")}

    async def balance_at(self, account: int, ns: int) -> Balance | None:
        """The balance at an instant, up to the end of its µs; None when there was no such account."""
        if not (0 < account <= _INT64_MAX and ns >= 0):
            return None
        until = min(ns - ns % 1000 + 999, _INT64_MAX)
        async with self.pool.acquire() as connection:
            row = await connection.fetchrow(_BALANCE, account, until)
            if row is not None:
                return Balance(posted=row["balance"], pending=row["pending"], at=row["at"])
            opened = await connection.fetchval(
                "SELECT min(at) FROM query.account_changes WHERE account = $1 AND at <= $2", account, until
            )
        return None if opened is None else Balance(posted=0, pending=0, at=opened)

    async def entries(
        self, account: int, from_ns: int | None = None, to_ns: int | None = None, cursor: str | None = None,
        limit: int = 100,
    ) -> Page:  # fmt: skip
        """A page of the account's movements at `from_ns` <= at < `to_ns`, newest first.

        Raises:
            ValueError: the cursor is not one of this account's, or the limit is not within 1 and 1000.
        """
        if not 0 < limit <= _LIMIT_MAX:
            raise ValueError(f"limit must be between 1 and {_LIMIT_MAX}")
        before = _INT64_MAX if to_ns is None else max(0, min(to_ns, _INT64_MAX))
        if cursor is not None:
            before = min(before, _read_cursor(cursor, account))
        if not 0 < account <= _INT64_MAX:
            return Page([], None)
        since = max(0, min(from_ns or 0, _INT64_MAX))
        rows = await self.pool.fetch(_ENTRIES, account, since, before, limit + 1)
        items = [
            Entry(_id(row["transfer"]), _kind(row["kind"]), row["amount"], row["balance"], row["pending"], row["at"])
            for row in rows[:limit]
        ]
        return Page(items, _write_cursor(account, items[-1].at) if len(rows) > limit else None)

    async def account(self, account: int) -> Account | None:
        """Its status and when it was opened, or None."""
        if not 0 < account <= _INT64_MAX:
            return None
        rows = await self.pool.fetch(
            "SELECT kind, at FROM query.account_changes WHERE account = $1 ORDER BY at", account
        )
        if not rows:
            return None
        return Account(
            account, STATUS_AFTER[Kind(rows[-1]["kind"])], opened_at=rows[0]["at"], changed_at=rows[-1]["at"]
        )


async def _version(connection: Any) -> int | None:
    if await connection.fetchval("SELECT to_regclass('query.version')") is None:
        return None
    found: int | None = await connection.fetchval("SELECT version FROM query.version")
    return found


async def _remake(connection: Any) -> None:
    await connection.execute("DROP SCHEMA IF EXISTS query CASCADE")
    await connection.execute(_SCHEMA)
    await connection.execute(f"INSERT INTO query.version VALUES ({VERSION})")


async def _copy(connection: Any, table: str, rows: Rows, notes: Sequence[Note] | None = None) -> None:
    if len(rows):
        columns = [*(rows.dtype.names or ()), *(["note"] if notes is not None else [])]
        pieces = copy_format.source(copy_format.encode(rows, notes))
        await connection.copy_to_table(table, schema_name="query", source=pieces, columns=columns, format="binary")


def _answer(future: asyncio.Future[None], *, reached: bool, late: bool, failure: Exception | None) -> None:
    if future.done():
        return
    if reached:
        future.set_result(None)
    elif late:
        error = NotYetProjected("the projection has not caught up")
        error.__cause__ = failure
        future.set_exception(error)


def _kind(stored: int) -> Kind:
    """What an entry comes from. What a client sees must not depend on whose shard the other account lies on."""
    return Kind(stored % LEG_ENTRY)


def _number(id_: Id) -> int:
    return id_[0] << 64 | id_[1]


def _id(value: uuid.UUID) -> Id:
    number = value.int
    return number >> 64, number & _MASK64


def uses(stored: Stored, found: Found) -> list[Transfer] | None:
    """`QueryStore.transfer`, as of `found.head` at least in the id's own partition: the rows of the tables, and beside
    them those that its shard has and they do not have yet.

    None: only the projection can tell, when it has the record before `found.head`. What the shard has begins later than
    what the tables have ends; or a post or void is asked for, whose accounts stand in the book alone; or a refund is on
    its way here from another shard, which the shard knows by the refund's id alone.
    """
    if stored.projected >= found.head:
        return _uses(stored.rows, stored.id)
    if stored.projected < found.since or any(_is_coming(row, stored.partition) for row in stored.rows):
        return None
    rows = list(stored.rows)
    ends: dict[int, tuple[int, int]] = {}  # by stamp of the debit: code and stamp of what became of it
    # As tuples: by name, NumPy takes ten times as long for a few rows.
    told = zip(found.rows.tolist(), found.results.tolist(), found.offsets.tolist(), found.notes, strict=True)
    for event, (_, detail, code, _, _), position, note in told:
        if position < stored.projected:
            continue
        kind = event[_KIND]
        if kind in _MOVES or (kind == _EXPIRE and code == _OK):
            if kind in _BY_HOLD and kind != _EXPIRE and event[:2] == stored.id:
                return None
            rows.append(_as_stored(event, detail, code, stored.partition, position, note))
        elif kind == _SETTLE:
            ends[event[_SPAN]] = _OK, event[_AT]
        elif kind == _REVERT:
            ends[event[_SPAN]] = event[_REASON], event[_AT]
    rows.sort(key=itemgetter("at"))
    return _uses([_ended(row, ends, stored.partition) for row in rows] if ends else rows, stored.id)


def recent_uses(id_: Id, partition: int, found: Found) -> list[Transfer]:
    """The uses that lie in the records that `found` is of: the newest, if any, with all that followed in their own
    partition. None are told of a post or void."""
    return uses(Stored(id_, partition, (), found.since), found) or []


def _as_stored(
    event: tuple[int, ...], detail: int, code: int, partition: int, position: int, note: Note
) -> dict[str, Any]:
    """The row that the projection makes of an event, as a look-up gives it. What ends a hold has no accounts."""
    high, low, ref_high, ref_low, debit, credit, amount, at, span, _, _, _, kind, *_ = event
    sent = code <= _IN_FLIGHT
    refers = kind in _BY_HOLD or kind == _REFUND
    ref = uuid.UUID(int=ref_high << 64 | ref_low) if refers else None
    return {
        "id": ref if kind == _EXPIRE else uuid.UUID(int=high << 64 | low),
        "partition": partition,
        "position": position,
        "kind": kind,
        "code": code,
        "at": at,
        "debit": SETTLEMENT if kind == _DEPOSIT else debit,
        "credit": SETTLEMENT if kind == _WITHDRAWAL else credit,
        "amount": detail if kind == _POST and sent else amount,
        "detail": 0 if sent else detail,
        "expires_at": at + span if kind == _HOLD else None,
        "ref": ref,
        "ref_at": span if kind == _REFUND else None,
        "note": note,
        "outcome": None,
        "outcome_at": None,
    }


# Plain integers: on Python 3.11 an enum's member is looked up by a function.
_OK: Final = int(Code.OK)
_IN_FLIGHT: Final = int(Code.IN_FLIGHT)
_DEPOSIT: Final = int(Kind.DEPOSIT)
_WITHDRAWAL: Final = int(Kind.WITHDRAWAL)
_HOLD: Final = int(Kind.HOLD)
_POST: Final = int(Kind.POST)
_EXPIRE: Final = int(Kind.EXPIRE)
_REFUND: Final = int(Kind.REFUND)
_SETTLE: Final = int(Kind.SETTLE)
_REVERT: Final = int(Kind.REVERT)
_KIND, _AT, _SPAN, _REASON = (place(EVENT, name) for name in ("kind", "at", "span", "reason"))
_BY_HOLD: Final = frozenset(map(int, (Kind.POST, Kind.VOID, Kind.EXPIRE)))
_MOVES: Final = frozenset(
    map(int, (Kind.DEPOSIT, Kind.WITHDRAWAL, Kind.TRANSFER, Kind.HOLD, Kind.POST, Kind.VOID, Kind.REFUND))
)


def _is_coming(row: Any, partition: int) -> bool:
    return bool(row["partition"] != partition and row["code"] == _IN_FLIGHT and row["outcome"] is None)


def _ended(row: Any, ends: Mapping[int, tuple[int, int]], partition: int) -> Any:
    """With what became of it, if that is among `ends`."""
    if row["code"] != _IN_FLIGHT or row["outcome"] is not None or row["partition"] != partition:
        return row
    outcome, at = ends.get(row["at"], (None, None))
    return {**row, "outcome": outcome, "outcome_at": at}


def _uses(rows: Sequence[Any], id_: Id) -> list[Transfer]:
    """The transfers of an id, of rows in the order of time that have it or refer to it."""
    principals = [row for row in rows if _id(row["id"]) == id_ and row["kind"] != _EXPIRE]
    followers = [row for row in rows if row["ref"] is not None and _id(row["ref"]) == id_]
    following: list[list[Any]] = [[] for _ in principals]
    for row in followers:
        for original, group in zip(reversed(principals), reversed(following), strict=True):
            if _follows(row, original):
                group.append(row)
                break
    return [_transfer(row, group) for row, group in zip(principals, following, strict=True)]


def _follows(row: Any, original: Any) -> bool:
    """Whether `row`, which refers to the id of `original`, may mean this use of it; of several it means the newest.

    A refund says whose stamp. What ends a hold means the one that lived: no two of one id live at the same time.
    """
    if row["kind"] == _REFUND:
        return bool(row["ref_at"] == original["at"])
    held = original["kind"] == _HOLD and original["code"] == _OK
    return bool(held and row["partition"] == original["partition"] and row["at"] > original["at"])


def _final(row: Any) -> Code:
    """The code of an event after what its payee's shard said."""
    return Code(row["code"] if row["outcome"] is None else row["outcome"])


def _transfer(row: Any, followers: Sequence[Any]) -> Transfer:
    code, changed_at = _final(row), row["outcome_at"] or row["at"]
    kind, posted = Kind(row["kind"]), None
    if code is Code.IN_FLIGHT:
        status = Status.IN_FLIGHT
    elif code is not Code.OK:
        status = Status.REFUSED
    else:
        status = _CARRIED_OUT.get(kind, Status.SETTLED)
    if status is Status.HELD:
        for after in followers:
            result = _final(after)
            if result in {Code.OK, Code.IN_FLIGHT} and after["kind"] in _ENDS:
                status = Status.IN_FLIGHT if result is Code.IN_FLIGHT else _ENDS[after["kind"]]
                posted = after["amount"] if status is Status.POSTED else None
                changed_at = after["outcome_at"] or after["at"]
    refunds = (after["amount"] for after in followers if after["kind"] == _REFUND and _final(after) is Code.OK)
    return Transfer(
        id=_id(row["id"]),
        partition=row["partition"],
        position=row["position"],
        kind=kind,
        status=status,
        code=code,
        detail=row["detail"] or 0,
        debit=row["debit"],
        credit=row["credit"],
        amount=row["amount"],
        posted_amount=posted,
        refunded_amount=sum(refunds),
        at=row["at"],
        changed_at=changed_at,
        expires_at=row["expires_at"] or None,
        ref=None if row["ref"] is None else _id(row["ref"]),
        note=row["note"],
    )


_CARRIED_OUT: Final = {Kind.HOLD: Status.HELD, Kind.POST: Status.POSTED, Kind.VOID: Status.VOIDED}
_ENDS: Final = {
    int(Kind.POST): Status.POSTED,
    int(Kind.VOID): Status.VOIDED,
    int(Kind.EXPIRE): Status.EXPIRED,
}

_CURSOR: Final = struct.Struct(">Bqq")
_CURSOR_VERSION: Final = 2


def _write_cursor(account: int, at: int) -> str:
    return base64.urlsafe_b64encode(_CURSOR.pack(_CURSOR_VERSION, account, at)).rstrip(b"=").decode()


def _read_cursor(cursor: str, account: int) -> int:
    """The `at` before which the next page begins."""
    if len(cursor) != 23:
        raise ValueError("not a cursor")
    try:
        version, of, at = _CURSOR.unpack(base64.b64decode(cursor + "=", altchars=b"-_", validate=True))
    except (binascii.Error, struct.error, ValueError) as error:
        raise ValueError("not a cursor") from error
    if version != _CURSOR_VERSION or of != account or at < 0:
        raise ValueError("not a cursor of this account")
    return int(at)
