"""Holds the query store against a replayed book: `razao verify` asks what differs, and is told in words.

Set-based: PostgreSQL walks the entries once in order of account and time, and the totals of transfers against those of
entries show what single balances would not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np

from actors import ledger
from actors.book import ACCOUNTS, TOP
from actors.ledger import Book
from actors.postings import Rows
from storage import copy_format
from storage.events import AccountStatus, Kind
from storage.query_store import SENT_ENTRY, STATUS_AFTER, QueryStore

_LAST: Final = np.dtype([(name, np.int64) for name in ("account", "at", "balance", "pending", "follows", "newest")])
_LAST_SQL: Final = """
SELECT account, at, balance, pending, (before::numeric + amount = balance)::int::bigint, newest::int::bigint
FROM (
    SELECT account, at, amount, balance, pending, lag(balance, 1, 0::bigint) OVER history AS before,
           lead(at) OVER history IS NULL AS newest
    FROM query.entries WHERE partition = $1 AND position < $2
    WINDOW history AS (PARTITION BY account ORDER BY at)
) AS followed
WHERE newest OR before::numeric + amount <> balance
"""
_STATUS: Final = np.dtype([("account", np.int64), ("first", np.int64), ("newest", np.int64)])
_STATUS_SQL: Final = """
SELECT account, (array_agg(kind ORDER BY at))[1]::bigint, (array_agg(kind ORDER BY at DESC))[1]::bigint
FROM query.account_changes WHERE partition = $1 AND position < $2 GROUP BY account
"""
_TOTALS_SQL: Final = """
SELECT kind, count(*) FILTER (WHERE code <= 1) AS debits, count(*) FILTER (WHERE code = 0) AS credits,
       coalesce(sum(amount) FILTER (WHERE code <= 1), 0) AS debited,
       coalesce(sum(amount) FILTER (WHERE code = 0), 0) AS credited
FROM query.transfers WHERE partition = $1 AND position < $2 GROUP BY kind
"""
_MOVED_SQL: Final = f"""
SELECT CASE WHEN kind / 100 = {SENT_ENTRY // 100} THEN kind - {SENT_ENTRY} ELSE kind END AS kind,
       count(*) FILTER (WHERE amount < 0) AS debits, count(*) FILTER (WHERE amount > 0) AS credits,
       coalesce(-sum(amount) FILTER (WHERE amount < 0), 0) AS debited,
       coalesce(sum(amount) FILTER (WHERE amount > 0), 0) AS credited
FROM query.entries WHERE partition = $1 AND position < $2 GROUP BY 1
"""
_DEBITS: Final = (Kind.WITHDRAWAL, Kind.TRANSFER, Kind.REFUND, Kind.POST)
_CREDITS: Final = (Kind.DEPOSIT, Kind.TRANSFER, Kind.REFUND, Kind.POST)
_COUNTED: Final = (Kind.DEPOSIT, Kind.WITHDRAWAL, Kind.TRANSFER, Kind.HOLD, Kind.REFUND)
_TOLD_MAX: Final = 20
"""Differences of one sort that are told one by one."""


def account_ids(book: Book) -> Rows:
    """(n,) u64: every customer's account of `book`, without settlement and transit."""
    found: Rows = book.accounts["id"][2 : int(book.meta[ACCOUNTS + TOP])].copy()
    return found


async def compare(store: QueryStore, book: Book, partition: int, offset: int) -> list[str]:
    """What differs between the query store and `book`, a replay of the partition's records before `offset`; in words.

    The store may be further: later records are left out. Every entry must follow from the one before, the last one's
    balances must be the book's, and what transfers say was moved must be what entries moved.
    """
    projected = (await store.projected()).get(partition, 0)
    if projected < offset:
        return [f"partition {partition}: the query store is projected up to offset {projected}, not {offset}"]
    async with store.pool.acquire() as connection, connection.transaction(isolation="repeatable_read", readonly=True):
        last = await copy_format.fetch(connection, _LAST, _LAST_SQL, partition, offset)
        changed = await copy_format.fetch(connection, _STATUS, _STATUS_SQL, partition, offset)
        transfers = {row["kind"]: row for row in await connection.fetch(_TOTALS_SQL, partition, offset)}
        entries = {row["kind"]: row for row in await connection.fetch(_MOVED_SQL, partition, offset)}
    ids = account_ids(book).astype(np.int64)
    states = ledger.read_accounts(book, ids.astype(np.uint64), np.zeros(len(ids), np.uint64), 0)
    found = _broken(last) + _statuses(ids, states, changed) + _balances(ids, states, last[last["newest"] == 1])
    found += _moved(transfers, entries)
    accepted = sum(transfers[kind]["debits"] for kind in _COUNTED if kind in transfers)
    if accepted != ledger.stats(book).transfers:
        found.append(f"{accepted} accepted transfers, the journal has {ledger.stats(book).transfers}")
    return [f"partition {partition}: {words}" for words in found]


def _told(words: Iterable[str]) -> list[str]:
    every = list(words)
    return every if len(every) <= _TOLD_MAX else [*every[:_TOLD_MAX], f"and {len(every) - _TOLD_MAX} more like that"]


def _broken(last: Rows) -> list[str]:
    astray = last[last["follows"] == 0]
    return _told(
        f"the entry of account {row['account']} at {row['at']} does not follow the one before" for row in astray
    )


def _statuses(ids: Rows, states: Rows, changed: Rows) -> list[str]:
    known = {kind: int(status) for kind, status in STATUS_AFTER.items()}
    ours = dict(zip(ids.tolist(), states["status"].tolist(), strict=True))
    theirs = {account: known[Kind(newest)] for account, _, newest in changed.tolist()}
    unopened = changed["account"][changed["first"] != Kind.OPEN].tolist()
    names = {account: (ours.get(account), theirs.get(account)) for account in ours.keys() | theirs.keys()}
    return _told(f"account {account} was never opened" for account in unopened) + _told(
        f"account {account} is {_status(said)}, the journal says {_status(is_)}"
        for account, (is_, said) in names.items()
        if is_ != said
    )


def _status(number: int | None) -> str:
    return "not there" if number is None else AccountStatus(number).name.lower()


def _balances(ids: Rows, states: Rows, last: Rows) -> list[str]:
    order = np.argsort(ids)
    place = np.searchsorted(ids, last["account"], sorter=order)
    place = order[np.minimum(place, len(ids) - 1)] if len(ids) else place
    theirs = np.zeros((2, len(ids)), np.int64)
    foreign = ids[place] != last["account"] if len(ids) else np.ones(len(last), bool)
    theirs[:, place[~foreign]] = last["balance"][~foreign], last["pending"][~foreign]
    ours = np.stack((states["posted"], states["debits_pending"]))
    words = [f"entries of account {account}, which the journal does not know" for account in last["account"][foreign]]
    for name, mine, said in zip(("balance", "amount on hold"), ours, theirs, strict=True):
        wrong = np.flatnonzero(mine != said)
        words += [f"account {ids[w]} has {name} {said[w]}, the journal says {mine[w]}" for w in wrong.tolist()]
    return _told(words)


def _moved(transfers: Mapping[int, Any], entries: Mapping[int, Any]) -> list[str]:
    words = []
    for kinds, count, total in ((_DEBITS, "debits", "debited"), (_CREDITS, "credits", "credited")):
        for kind in kinds:
            said = tuple(transfers[kind][name] if kind in transfers else 0 for name in (count, total))
            done = tuple(entries[kind][name] if kind in entries else 0 for name in (count, total))
            if said != done:
                words.append(
                    f"{kind.name.lower()}: {said[0]} transfers of {said[1]} in all, but {done[0]} {count} of {done[1]}"
                )
    return words
