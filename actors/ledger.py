"""The rules of money: `apply` takes a batch of stamped events to a book and says what became of each.

This is the only place where a balance changes. The same function serves live traffic, recovery and replay, so it reads
no clock and depends on nothing but the book and the rows. Events with a code from `FIRST_STATELESS` on, and replays,
leave the book exactly as it was: they need not be journaled. With NUMBA_DISABLE_JIT=1 it runs as plain Python.

Each event is checked in this order: its form, the caller's right, whether its id was seen before, the id's age, and
then the rules of its kind. A rule function changes the book only after its last refusal.

Arithmetic on money is on int64 and every sum is compared with AMOUNT_MAX before it is made; ids and hashes are uint64.
Numba makes float64 of a mixture of the two, so nothing here mixes them without a cast.
"""

# ruff: noqa: SIM109, PLR1714 - a chain of comparisons compiles to a jump table; a tuple would be walked

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from actors import book as book_module
from actors.book import (
    ACCOUNTS,
    AHEAD_SIZE,
    BLOCK,
    BUCKETS,
    CHAIN_MAX,
    COUNT,
    FLIGHTS,
    FREE,
    HEAP,
    HELD,
    HOLDS,
    ID_GENERATION,
    ID_SKEW,
    ID_WINDOW,
    IDS,
    MASK,
    PARTITION,
    PARTITIONS,
    POSTING,
    RAISE_DAILY,
    RAISE_NIGHTLY,
    RAISE_PER_TRANSFER,
    RAISE_WINDOW,
    REFUND_GENERATION,
    REFUND_WINDOW,
    REFUNDS,
    SEED,
    TABLE_SIZE,
    TOP,
    TRANSFERS,
    UNDO,
    Book,
    Bool,
    Capacity,
    Id,
    Int,
    Row,
    Rows,
    Stats,
    Words,
    add,
    add_account,
    bucket_of,
    check,
    clear,
    compiled,
    digest,
    dump,
    entry_point,
    find,
    find_account,
    find_account_in,
    hash_account,
    hash_id,
    heap_add,
    heap_remove,
    inlined,
    new_book,
    prefetch,
    remove,
    restore,
    stats,
    sums,
)
from storage import events
from storage.events import ACCOUNT, AMOUNT_MAX, BALANCE, EVENT, NO_LIMIT, RESULT, AccountStatus, Code, Kind

__all__ = [
    "Book",
    "Capacity",
    "Stats",
    "apply",
    "check",
    "digest",
    "due_holds",
    "dump",
    "in_flight",
    "new_book",
    "read_accounts",
    "restore",
    "stamp",
    "stats",
    "sums",
]

# Numba freezes module globals of plain int type, not enum members.
_OPEN: Final = int(Kind.OPEN)
_CLOSE: Final = int(Kind.CLOSE)
_FREEZE: Final = int(Kind.FREEZE)
_UNFREEZE: Final = int(Kind.UNFREEZE)
_SET_LIMITS: Final = int(Kind.SET_LIMITS)
_DEPOSIT: Final = int(Kind.DEPOSIT)
_WITHDRAWAL: Final = int(Kind.WITHDRAWAL)
_TRANSFER: Final = int(Kind.TRANSFER)
_HOLD: Final = int(Kind.HOLD)
_POST: Final = int(Kind.POST)
_VOID: Final = int(Kind.VOID)
_EXPIRE: Final = int(Kind.EXPIRE)
_REFUND: Final = int(Kind.REFUND)
_CREDIT_LEG: Final = int(Kind.CREDIT_LEG)
_SETTLE: Final = int(Kind.SETTLE)
_REVERT: Final = int(Kind.REVERT)

_OK: Final = int(Code.OK)
_IN_FLIGHT: Final = int(Code.IN_FLIGHT)
_INSUFFICIENT_FUNDS: Final = int(Code.INSUFFICIENT_FUNDS)
_UNKNOWN_DEBIT_ACCOUNT: Final = int(Code.UNKNOWN_DEBIT_ACCOUNT)
_UNKNOWN_CREDIT_ACCOUNT: Final = int(Code.UNKNOWN_CREDIT_ACCOUNT)
_DEBIT_ACCOUNT_CLOSED: Final = int(Code.DEBIT_ACCOUNT_CLOSED)
_CREDIT_ACCOUNT_CLOSED: Final = int(Code.CREDIT_ACCOUNT_CLOSED)
_DEBIT_ACCOUNT_FROZEN: Final = int(Code.DEBIT_ACCOUNT_FROZEN)
_CREDIT_ACCOUNT_FROZEN: Final = int(Code.CREDIT_ACCOUNT_FROZEN)
_LIMIT_PER_TRANSFER: Final = int(Code.LIMIT_PER_TRANSFER)
_LIMIT_DAILY: Final = int(Code.LIMIT_DAILY)
_LIMIT_NIGHT: Final = int(Code.LIMIT_NIGHT)
_SAME_ACCOUNT: Final = int(Code.SAME_ACCOUNT)
_INVALID_AMOUNT: Final = int(Code.INVALID_AMOUNT)
_NOT_HELD: Final = int(Code.NOT_HELD)
_HOLD_EXPIRED: Final = int(Code.HOLD_EXPIRED)
_EXCEEDS_HOLD: Final = int(Code.EXCEEDS_HOLD)
_EXCEEDS_ORIGINAL: Final = int(Code.EXCEEDS_ORIGINAL)
_ACCOUNT_NOT_EMPTY: Final = int(Code.ACCOUNT_NOT_EMPTY)
_ACCOUNT_EXISTS: Final = int(Code.ACCOUNT_EXISTS)
_OVERFLOW: Final = int(Code.OVERFLOW)
_LINKED_FAILED: Final = int(Code.LINKED_FAILED)
_REFUND_EXPIRED: Final = int(Code.REFUND_EXPIRED)
_NOT_LINKABLE: Final = int(Code.NOT_LINKABLE)
_INVALID_LIMIT: Final = int(Code.INVALID_LIMIT)
_ID_CONFLICT: Final = int(Code.ID_CONFLICT)
_ID_EXPIRED: Final = int(Code.ID_EXPIRED)
_ID_IN_FUTURE: Final = int(Code.ID_IN_FUTURE)
_INVALID_ID: Final = int(Code.INVALID_ID)
_FORBIDDEN: Final = int(Code.FORBIDDEN)
_INVALID_EVENT: Final = int(Code.INVALID_EVENT)
_LEG_OUT_OF_ORDER: Final = int(Code.LEG_OUT_OF_ORDER)
_BOOK_FULL: Final = int(Code.BOOK_FULL)
_FIRST_STATELESS: Final = int(events.FIRST_STATELESS)

_LINKED: Final = int(events.Flag.LINKED)
_REPLAYED: Final = int(events.ResultFlag.REPLAYED)
_ACTIVE: Final = int(AccountStatus.OPEN)
_FROZEN: Final = int(AccountStatus.FROZEN)
_CLOSED: Final = int(AccountStatus.CLOSED)
_MAX: Final = int(AMOUNT_MAX)
_NO_LIMIT: Final = int(NO_LIMIT)

_SETTLEMENT_ROW: Final = 0
_TRANSIT_ROW: Final = 1
_UNKNOWN: Final = -1
"""Instead of an account's row: there is no such account."""
_REMOTE: Final = -2
"""Instead of an account's row: it is of another partition."""

_MS_NS: Final = 1_000_000
_MINUTE_NS: Final = 60 * 10**9
_DAY_MINUTES: Final = 1440
_NOON: Final = 720
_DEFAULT_WINDOW: Final = 1200 << 16 | 360
"""20:00 to 06:00, the Central Bank's night (Pix limits for natural persons)."""
_CLOCKS_NS: Final = 3600 * 10**9
"""Clocks of two shards differ by less than this."""
_ANY: Final = np.uint64(0)
_U16: Final = np.uint64(16)
_U64_KEEP: Final = np.uint64(2**64 - 1)
_FIRST_ACCOUNT: Final = np.uint64(events.FIRST_ACCOUNT)
_ACCOUNT_END: Final = np.uint64(2**63)
_SETTLEMENT: Final = np.uint64(events.SETTLEMENT)
_CODE_MASK: Final = np.uint64(0xFFFF)
_VERSION: Final = np.uint64(0xF000)
_V7: Final = np.uint64(0x7000)
_V8: Final = np.uint64(0x8000)
_U62: Final = np.uint64(62)
_VARIANT: Final = np.uint64(2)
_K: Final = np.uint64(0x9E3779B97F4A7C15)
_U31: Final = np.uint64(31)


# Ids: what was answered to them, for two generations.


@inlined
def _fold(h: Id, value: Id) -> Id:
    h = (h ^ value) * _K
    return h ^ (h >> _U31)


@inlined
def _content(row: Row) -> Id:
    """48 bits of what makes two events with one id the same event.

    A leg has its accounts and amount in common with a copy that the outbox made again after a crash. The payer is one
    of them: two shards may send legs of one id, and only one of the two payments may count as the other's repeat.
    """
    kind = row["kind"]
    h = _fold(np.uint64(kind), row["credit"])
    h = _fold(h, np.uint64(row["amount"]))
    h = _fold(h, row["debit"])
    if kind != _CREDIT_LEG:
        h = _fold(h, row["ref_hi"])
        h = _fold(h, row["ref_lo"])
        h = _fold(h, row["check"])
        if kind == _HOLD:
            h = _fold(h, np.uint64(row["span"]))
        elif kind == _OPEN or kind == _SET_LIMITS:
            h = _fold(h, np.uint64(row["total"]))
    return h >> _U16


@inlined
def _generation(current: Int, width: Int, at: Int) -> Int:
    """`at // width`, without the division while the generation is the current one."""
    start = current * width
    if start <= at and at - start < width:
        return current
    return at // width


@inlined
def _seen(book: Book, hi: Id, lo: Id, h: Id, at: Int) -> Int:
    """The row in which the id is remembered at the time `at`, or -1.

    A UUIDv7 younger than the current generation cannot be in the one before: an id from the future is not accepted.
    """
    meta = book.meta
    width = meta[ID_WINDOW] + meta[ID_SKEW]
    current = meta[ID_GENERATION]
    oldest = _generation(current, width, at) - 1
    half = book.ids.shape[0] >> 1
    if current >= oldest:
        slot = current & 1
        found = find(meta, IDS + slot * TABLE_SIZE, slot * half, book.ids, book.id_heads, hi, lo, h)
        if found >= 0:
            return found
    if current - 1 >= oldest:
        if (hi & _VERSION) == _V7:
            made_ms = np.int64(hi >> _U16)
            if made_ms > (current * width + meta[ID_SKEW] + _CLOCKS_NS) // _MS_NS:
                return -1
        slot = (current - 1) & 1
        return find(meta, IDS + slot * TABLE_SIZE, slot * half, book.ids, book.id_heads, hi, lo, h)
    return -1


@compiled
def _rotate_ids(book: Book, generation: Int) -> None:
    meta = book.meta
    half = book.ids.shape[0] >> 1
    for slot in range(2):
        if slot == (generation & 1) or generation > meta[ID_GENERATION] + 1:
            clear(meta, IDS + slot * TABLE_SIZE, slot * half, book.id_heads)
    meta[ID_GENERATION] = generation


@inlined
def _ids_full(book: Book, at: Int) -> Bool:
    meta = book.meta
    current = meta[ID_GENERATION]
    if meta[IDS + (current & 1) * TABLE_SIZE + COUNT] < book.ids.shape[0] >> 1:
        return False
    return _generation(current, meta[ID_WINDOW] + meta[ID_SKEW], at) == current


@inlined
def _remember(book: Book, row: Row, h: Id, content: Id, code: Int) -> None:
    meta = book.meta
    at = row["at"]
    generation = _generation(meta[ID_GENERATION], meta[ID_WINDOW] + meta[ID_SKEW], at)
    if generation != meta[ID_GENERATION]:
        _rotate_ids(book, generation)
    slot = generation & 1
    base = slot * (book.ids.shape[0] >> 1)
    entry = add(meta, IDS + slot * TABLE_SIZE, base, book.ids, book.id_heads, row["id_hi"], row["id_lo"], h)
    book.ids[entry]["at"] = at
    book.ids[entry]["word"] = (content << _U16) | np.uint64(code)


@compiled
def _recode(book: Book, hi: Id, lo: Id, at: Int, code: Int) -> None:
    """Change what is remembered of an id, if anything is."""
    entry = _seen(book, hi, lo, hash_id(hi, lo, np.uint64(book.meta[SEED])), at)
    if entry >= 0:
        book.ids[entry]["word"] = (book.ids[entry]["word"] & ~_CODE_MASK) | np.uint64(code)


@inlined
def _age(meta: Words, row: Row) -> Int:
    """Refuse an id whose memory may be lost already, or that is made ahead of time."""
    at = row["at"]
    if row["kind"] == _CREDIT_LEG:
        return _LEG_OUT_OF_ORDER if at - row["span"] > meta[ID_WINDOW] else _OK
    if (row["id_hi"] & _VERSION) == _V7:
        made_ms = np.int64(row["id_hi"] >> _U16)
        if made_ms < -((meta[ID_WINDOW] - at) // _MS_NS):
            return _ID_EXPIRED
        if made_ms > (at + meta[ID_SKEW]) // _MS_NS:
            return _ID_IN_FUTURE
    return _OK


# Limits.


@inlined
def _per_transfer(book: Book, r: Int, now: Int) -> Int:
    """A limit of account row `r` in force at `now`, with the raise that has come due; so the three that follow."""
    if book.accounts[r]["waits"] & RAISE_PER_TRANSFER and book.raises[r]["per_transfer_at"] <= now:
        return book.raises[r]["per_transfer"]
    return book.accounts[r]["per_transfer"]


@inlined
def _daily(book: Book, r: Int, now: Int) -> Int:
    if book.accounts[r]["waits"] & RAISE_DAILY and book.raises[r]["daily_at"] <= now:
        return book.raises[r]["daily"]
    return book.accounts[r]["daily"]


@inlined
def _nightly(book: Book, r: Int, now: Int) -> Int:
    if book.accounts[r]["waits"] & RAISE_NIGHTLY and book.raises[r]["nightly_at"] <= now:
        return book.raises[r]["nightly"]
    return book.accounts[r]["nightly"]


@inlined
def _window(book: Book, r: Int, now: Int) -> Int:
    if book.accounts[r]["waits"] & RAISE_WINDOW and book.raises[r]["window_at"] <= now:
        return book.raises[r]["window"]
    return np.int64(book.accounts[r]["window"])


@inlined
def _day_night(at: Int, offset_ns: Int, window: Int) -> tuple[Int, Int]:
    """The local day, and the night (-1 outside the window), low 16 bits of each.

    A night lasts from noon to noon and is named by the day it begins on. So a change of the window, which may take
    effect at once, never starts a new night with a new allowance.
    """
    minutes = (at + offset_ns) // _MINUTE_NS
    day = minutes // _DAY_MINUTES
    minute = minutes - day * _DAY_MINUTES
    first = window >> 16
    end = window & 0xFFFF
    within = first <= minute < end if first < end else minute >= first or minute < end
    night = np.int64(-1)
    if within:
        night = (day if minute >= _NOON else day - 1) & 0xFFFF
    return day & 0xFFFF, night


@inlined
def _within(limit: Int, spent: Int, amount: Int, refusal: Int, result: Row) -> Int:
    if limit != _NO_LIMIT:
        if amount > limit - spent:
            result["detail"] = max(limit - spent, 0)
            return refusal
    elif spent > _MAX - amount:
        return _OVERFLOW
    return _OK


@inlined
def _check_limits(book: Book, d: Int, at: Int, amount: Int, day: Int, night: Int, result: Row) -> Int:
    account = book.accounts[d]
    limit = _per_transfer(book, d, at)
    if amount > limit:
        result["detail"] = limit
        return _LIMIT_PER_TRANSFER
    spent = account["day_sum"] if np.int64(account["day"]) == day else np.int64(0)
    code = _within(_daily(book, d, at), spent, amount, _LIMIT_DAILY, result)
    if code == _OK and night >= 0:
        spent = account["night_sum"] if np.int64(account["night"]) == night else np.int64(0)
        code = _within(_nightly(book, d, at), spent, amount, _LIMIT_NIGHT, result)
    return code


@inlined
def _count(account: Row, amount: Int, day: Int, night: Int) -> None:
    if np.int64(account["day"]) == day:
        account["day_sum"] += amount
    else:
        account["day"] = day
        account["day_sum"] = amount
    if night >= 0:
        if np.int64(account["night"]) == night:
            account["night_sum"] += amount
        else:
            account["night"] = night
            account["night_sum"] = amount


@compiled
def _give_back(account: Row, amount: Int, day: Int, night: Int) -> None:
    """Money that did not go out counts no more. A change of the local time may have reset a sum: never below 0."""
    if day >= 0 and np.int64(account["day"]) == day:
        account["day_sum"] = max(account["day_sum"] - amount, 0)
    if night >= 0 and np.int64(account["night"]) == night:
        account["night_sum"] = max(account["night_sum"] - amount, 0)


@compiled
def _covers(window: Int, minute: Int) -> Bool:
    first = window >> 16
    end = window & 0xFFFF
    if first < end:
        return first <= minute < end
    return minute >= first or minute < end


@compiled
def _widens(old: Int, new: Int) -> Bool:
    """Whether every minute of the old window lies in the new one."""
    lost = 0
    for minute in range(_DAY_MINUTES):
        lost += _covers(old, minute) and not _covers(new, minute)
    return lost == 0


@compiled
def _valid_window(window: Int) -> Bool:
    first = window >> 16
    end = window & 0xFFFF
    return 0 <= first < _DAY_MINUTES and end <= _DAY_MINUTES and first != end


# Parties, and the money itself.


@inlined
def _account_row(book: Book, account: Id) -> Int:
    """The row of a customer's account of this partition, _UNKNOWN or _REMOTE."""
    if account < _FIRST_ACCOUNT or account >= _ACCOUNT_END:
        return _UNKNOWN
    if np.int64(account & np.uint64(book.meta[PARTITIONS] - 1)) != book.meta[PARTITION]:
        return _REMOTE
    return find_account(book.meta, book.accounts, book.account_heads, account)


@inlined
def _check_debit(book: Book, d: Int) -> Int:
    if d < 0:
        return _UNKNOWN_DEBIT_ACCOUNT
    status = book.accounts[d]["status"]
    if status == _ACTIVE:
        return _OK
    return _DEBIT_ACCOUNT_CLOSED if status == _CLOSED else _DEBIT_ACCOUNT_FROZEN


@inlined
def _check_credit(book: Book, c: Int) -> Int:
    if c == _REMOTE:
        return _OK
    if c == _UNKNOWN:
        return _UNKNOWN_CREDIT_ACCOUNT
    status = book.accounts[c]["status"]
    if status == _ACTIVE:
        return _OK
    return _CREDIT_ACCOUNT_CLOSED if status == _CLOSED else _CREDIT_ACCOUNT_FROZEN


@inlined
def _available(account: Row) -> Int:
    return account["credits_posted"] - account["debits_posted"] - account["debits_pending"]


@inlined
def _room(book: Book, row: Row, c: Int, amount: Int) -> Int:
    """Whether the credit, or its way out through transit, can be made."""
    if c == _REMOTE:
        if book.meta[FLIGHTS + COUNT] >= book.flights.shape[0]:
            return _BOOK_FULL
        if _find_flight(book, row) >= 0:
            return _ID_CONFLICT  # still in flight when the memory of its id is gone
        c = np.int64(_TRANSIT_ROW)
    return _OVERFLOW if book.accounts[c]["credits_posted"] > _MAX - amount else _OK


@compiled
def _find_flight(book: Book, row: Row) -> Int:
    hi, lo = row["id_hi"], row["id_lo"]
    h = hash_id(hi, lo, np.uint64(book.meta[SEED]))
    return find(book.meta, FLIGHTS, 0, book.flights, book.flight_heads, hi, lo, h)


@inlined
def _pay(book: Book, balance: Row, d: Int, c: Int, amount: Int) -> Int:
    """Move money from row `d` to row `c`, or to transit when the payee is elsewhere."""
    book.accounts[d]["debits_posted"] += amount
    if c == _REMOTE:
        book.accounts[_TRANSIT_ROW]["credits_posted"] += amount
        return _IN_FLIGHT
    book.accounts[c]["credits_posted"] += amount
    balance["credit_posted"] = book.accounts[c]["credits_posted"] - book.accounts[c]["debits_posted"]
    balance["credit_pending"] = book.accounts[c]["debits_pending"]
    return _OK


@compiled
def _launch(book: Book, row: Row, d: Int, credit: Id, amount: Int, day: Int, night: Int) -> None:
    """Put a payment into the outbox."""
    hi, lo = row["id_hi"], row["id_lo"]
    h = hash_id(hi, lo, np.uint64(book.meta[SEED]))
    f = add(book.meta, FLIGHTS, 0, book.flights, book.flight_heads, hi, lo, h)
    flight = book.flights[f]
    flight["ref_hi"] = row["ref_hi"]
    flight["ref_lo"] = row["ref_lo"]
    flight["debit"] = book.accounts[d]["id"]
    flight["credit"] = credit
    flight["amount"] = amount
    flight["at"] = row["at"]
    flight["account"] = d
    flight["day"] = day
    flight["night"] = night
    flight["kind"] = row["kind"]
    book.accounts[d]["in_flight"] += 1


# Linked chains: what to restore when a later row fails.


@compiled
def _save(book: Book, account: Int) -> None:
    top = book.meta[UNDO]
    book.undo_rows[top] = account
    book.undo[top] = book.accounts[account]
    book.meta[UNDO] = top + 1


@compiled
def _save_hold(book: Book, hold: Int) -> None:
    top = book.meta[UNDO]
    book.undo_rows[top] = -(hold + 1)
    book.meta[UNDO] = top + 1


@compiled
def _undo(book: Book) -> None:
    for at in range(book.meta[UNDO] - 1, -1, -1):
        saved = book.undo_rows[at]
        if saved < 0:
            _drop_hold(book, -saved - 1)
        else:
            book.accounts[saved] = book.undo[at]
    book.meta[UNDO] = 0


# The kinds.


@compiled
def _open(book: Book, row: Row) -> Int:
    account = row["debit"]
    window = row["total"] if row["total"] != 0 else np.int64(_DEFAULT_WINDOW)
    daily, nightly = np.int64(row["ref_hi"]), np.int64(row["ref_lo"])
    if account < _FIRST_ACCOUNT or account >= _ACCOUNT_END:
        return _INVALID_EVENT
    if find_account(book.meta, book.accounts, book.account_heads, account) >= 0:
        return _ACCOUNT_EXISTS
    if row["amount"] < 0 or daily < 0 or nightly < 0 or not _valid_window(window):
        return _INVALID_LIMIT
    if book.meta[ACCOUNTS + TOP] >= book.accounts.shape[0]:
        return _BOOK_FULL
    new = book.accounts[add_account(book.meta, book.accounts, book.account_heads, account)]
    new["owner"] = row["credit"] if row["credit"] != _ANY else row["actor"]
    new["status"] = _ACTIVE
    new["per_transfer"] = row["amount"]
    new["daily"] = daily
    new["nightly"] = nightly
    new["window"] = window
    return _OK


@compiled
def _close(book: Book, d: Int) -> Int:
    code = _check_debit(book, d)
    if code != _OK:
        return code
    account = book.accounts[d]
    if account["credits_posted"] != account["debits_posted"] or account["debits_pending"] != 0:
        return _ACCOUNT_NOT_EMPTY
    if account["in_flight"] != 0:
        return _ACCOUNT_NOT_EMPTY
    account["status"] = _CLOSED
    return _OK


@compiled
def _freeze(book: Book, d: Int, status: Int) -> Int:
    """Freeze or unfreeze; an account that is so already stays so."""
    if d < 0:
        return _UNKNOWN_DEBIT_ACCOUNT
    if book.accounts[d]["status"] == _CLOSED:
        return _DEBIT_ACCOUNT_CLOSED
    book.accounts[d]["status"] = status
    return _OK


@compiled
def _set_limits(book: Book, row: Row, d: Int) -> Int:
    at, delay = row["at"], row["span"]
    per_transfer, window = row["amount"], row["total"]
    daily, nightly = np.int64(row["ref_hi"]), np.int64(row["ref_lo"])
    if d < 0:
        return _UNKNOWN_DEBIT_ACCOUNT
    if book.accounts[d]["status"] == _CLOSED:
        return _DEBIT_ACCOUNT_CLOSED
    if per_transfer < -1 or daily < -1 or nightly < -1 or delay < 0 or delay > _MAX - at:
        return _INVALID_LIMIT
    if window != -1 and not _valid_window(window):
        return _INVALID_LIMIT
    _change_limits(book, d, at, at + delay, per_transfer, daily, nightly, window)
    return _OK


@compiled
def _change_limits(
    book: Book, d: Int, at: Int, since: Int, per_transfer: Int, daily: Int, nightly: Int, window: Int
) -> None:
    """Take each limit that is not -1: a cut at once, a raise from `since` on; either replaces a raise that waits."""
    account, raised = book.accounts[d], book.raises[d]
    if per_transfer >= 0:
        now = _per_transfer(book, d, at)
        waits = per_transfer > now
        account["per_transfer"] = now if waits else per_transfer
        raised["per_transfer"] = per_transfer if waits else 0
        raised["per_transfer_at"] = since if waits else 0
        _wait(account, RAISE_PER_TRANSFER, waits)
    if daily >= 0:
        now = _daily(book, d, at)
        waits = daily > now
        account["daily"] = now if waits else daily
        raised["daily"] = daily if waits else 0
        raised["daily_at"] = since if waits else 0
        _wait(account, RAISE_DAILY, waits)
    if nightly >= 0:
        now = _nightly(book, d, at)
        waits = nightly > now
        account["nightly"] = now if waits else nightly
        raised["nightly"] = nightly if waits else 0
        raised["nightly_at"] = since if waits else 0
        _wait(account, RAISE_NIGHTLY, waits)
    if window >= 0:
        now = _window(book, d, at)
        waits = not _widens(now, window)
        account["window"] = now if waits else window
        raised["window"] = window if waits else 0
        raised["window_at"] = since if waits else 0
        _wait(account, RAISE_WINDOW, waits)


@compiled
def _wait(account: Row, column: Int, waits: Bool) -> None:
    others = np.int64(account["waits"]) & ~column
    account["waits"] = others | column if waits else others


@compiled
def _deposit(book: Book, row: Row, balance: Row, c: Int, chained: Bool) -> Int:
    amount = row["amount"]
    if amount <= 0:
        return _INVALID_AMOUNT
    code = _check_credit(book, c)
    if code != _OK:
        return code
    if book.accounts[_SETTLEMENT_ROW]["debits_posted"] > _MAX - amount or _room(book, row, c, amount) != _OK:
        return _OVERFLOW
    if chained:
        _save(book, _SETTLEMENT_ROW)
        _save(book, c)
    return _pay(book, balance, _SETTLEMENT_ROW, c, amount)


@compiled
def _withdrawal(book: Book, row: Row, balance: Row, d: Int, chained: Bool) -> Int:
    amount = row["amount"]
    if amount <= 0:
        return _INVALID_AMOUNT
    code = _check_debit(book, d)
    if code != _OK:
        return code
    if _available(book.accounts[d]) < amount:
        return _INSUFFICIENT_FUNDS
    code = _room(book, row, _SETTLEMENT_ROW, amount)
    if code != _OK:
        return code
    if chained:
        _save(book, d)
        _save(book, _SETTLEMENT_ROW)
    return _pay(book, balance, d, _SETTLEMENT_ROW, amount)


@inlined
def _check_parties(book: Book, row: Row, d: Int, c: Int) -> Int:
    if row["amount"] <= 0:
        return _INVALID_AMOUNT
    if row["debit"] == row["credit"]:
        return _SAME_ACCOUNT
    code = _check_debit(book, d)
    return code if code != _OK else _check_credit(book, c)


@inlined
def _transfer(book: Book, row: Row, result: Row, balance: Row, d: Int, c: Int, offset_ns: Int, chained: Bool) -> Int:
    """Transfer and hold: the payments that limits bound."""
    amount, at = row["amount"], row["at"]
    code = _check_parties(book, row, d, c)
    if code != _OK:
        return code
    payer = book.accounts[d]
    day, night = _day_night(at, offset_ns, _window(book, d, at))
    code = _check_limits(book, d, at, amount, day, night, result)
    if code != _OK:
        return code
    if _available(payer) < amount:
        return _INSUFFICIENT_FUNDS
    if row["kind"] == _HOLD:
        return _hold(book, row, d, day, night, chained)
    code = _room(book, row, c, amount)
    if code != _OK:
        return code
    if chained:
        _save(book, d)
        _save(book, c)
    _count(payer, amount, day, night)
    if c == _REMOTE:
        _launch(book, row, d, row["credit"], amount, day, night)
    return _pay(book, balance, d, c, amount)


@compiled
def _hold(book: Book, row: Row, d: Int, day: Int, night: Int, chained: Bool) -> Int:
    if row["span"] <= 0 or row["span"] > _MAX - row["at"]:
        return _INVALID_EVENT
    if book.meta[HOLDS + COUNT] >= book.holds.shape[0]:
        return _BOOK_FULL
    hi, lo = row["id_hi"], row["id_lo"]
    seed = np.uint64(book.meta[SEED])
    if find(book.meta, HOLDS, 0, book.holds, book.hold_heads, hi, lo, hash_id(hi, lo, seed)) >= 0:
        return _ID_CONFLICT  # a hold that outlived the memory of its id
    if chained:
        _save(book, d)
    h = add(book.meta, HOLDS, 0, book.holds, book.hold_heads, hi, lo, hash_id(hi, lo, seed))
    hold = book.holds[h]
    hold["debit"] = row["debit"]
    hold["credit"] = row["credit"]
    hold["amount"] = row["amount"]
    hold["expires_at"] = row["at"] + row["span"]
    hold["account"] = d
    hold["day"] = day
    hold["night"] = night
    hold["state"] = HELD
    heap_add(book.meta, book.heap, book.holds, h)
    if chained:
        _save_hold(book, h)
    _count(book.accounts[d], row["amount"], day, night)
    book.accounts[d]["debits_pending"] += row["amount"]
    return _OK


@compiled
def _find_hold(book: Book, row: Row) -> Int:
    hi, lo = row["ref_hi"], row["ref_lo"]
    h = hash_id(hi, lo, np.uint64(book.meta[SEED]))
    return find(book.meta, HOLDS, 0, book.holds, book.hold_heads, hi, lo, h)


@compiled
def _drop_hold(book: Book, h: Int) -> None:
    if book.holds[h]["state"] == HELD:
        heap_remove(book.meta, book.heap, book.holds, h)
    book.holds[h]["state"] = FREE
    remove(book.meta, HOLDS, book.holds, book.hold_heads, h)


@compiled
def _release(book: Book, h: Int, amount: Int) -> None:
    """`amount` of a hold did not go out: it is available and uncounted again, and the hold is over."""
    hold = book.holds[h]
    account = book.accounts[hold["account"]]
    account["debits_pending"] -= amount
    _give_back(account, amount, np.int64(hold["day"]), np.int64(hold["night"]))
    _drop_hold(book, h)


@compiled
def _held(book: Book, row: Row, h: Int) -> Int:
    """Whether hold `h` can be posted or voided."""
    if h < 0 or book.holds[h]["state"] != HELD:
        return _NOT_HELD
    if row["debit"] != _ANY and row["debit"] != book.holds[h]["debit"]:
        return _NOT_HELD
    if row["credit"] != _ANY and row["credit"] != book.holds[h]["credit"]:
        return _NOT_HELD
    return _HOLD_EXPIRED if book.holds[h]["expires_at"] <= row["at"] else _OK


@compiled
def _post(book: Book, row: Row, result: Row, balance: Row, h: Int) -> Int:
    if row["amount"] < 0:
        return _INVALID_AMOUNT
    code = _held(book, row, h)
    if code != _OK:
        return code
    hold = book.holds[h]
    amount = row["amount"] if row["amount"] != 0 else hold["amount"]
    if amount > hold["amount"]:
        result["detail"] = hold["amount"]
        return _EXCEEDS_HOLD
    d = np.int64(hold["account"])
    c = _account_row(book, hold["credit"])
    code = _check_debit(book, d)
    if code == _OK:
        code = _check_credit(book, c)
    if code == _OK:
        code = _room(book, row, c, amount)
    if code != _OK:
        return code
    result["detail"] = amount
    book.accounts[d]["debits_pending"] -= amount
    code = _pay(book, balance, d, c, amount)
    if c == _REMOTE:
        _launch(book, row, d, hold["credit"], amount, -1, -1)
        heap_remove(book.meta, book.heap, book.holds, h)
        hold["state"] = POSTING
    else:
        _release(book, h, hold["amount"] - amount)
    return code


@compiled
def _void(book: Book, row: Row, result: Row, h: Int) -> Int:
    code = _held(book, row, h)
    if code == _OK:
        result["detail"] = book.holds[h]["amount"]
        _release(book, h, book.holds[h]["amount"])
    return code


@compiled
def _expire(book: Book, row: Row, result: Row, balance: Row) -> Int:
    h = _find_hold(book, row)
    if h < 0 or book.holds[h]["state"] != HELD:
        return _NOT_HELD
    if book.holds[h]["expires_at"] > row["at"]:
        return _INVALID_EVENT
    d = np.int64(book.holds[h]["account"])
    result["detail"] = book.holds[h]["amount"]
    _release(book, h, book.holds[h]["amount"])
    _show_debit(book, balance, d)
    return _OK


@compiled
def _find_refunds(book: Book, hi: Id, lo: Id) -> Int:
    """The row of an original's refunded sum: the newer generation's, for the older one's may have been carried over."""
    meta = book.meta
    h = hash_id(hi, lo, np.uint64(meta[SEED]))
    half = book.refunds.shape[0] >> 1
    for back in range(2):
        slot = (meta[REFUND_GENERATION] - back) & 1
        found = find(meta, REFUNDS + slot * TABLE_SIZE, slot * half, book.refunds, book.refund_heads, hi, lo, h)
        if found >= 0:
            return found
    return -1


@compiled
def _add_refund(book: Book, row: Row, refunded: Int) -> None:
    """Set an original's refunded sum, in the generation of `at`: that keeps it for the whole window."""
    meta = book.meta
    half = book.refunds.shape[0] >> 1
    generation = _generation(meta[REFUND_GENERATION], meta[REFUND_WINDOW], row["at"])
    if generation != meta[REFUND_GENERATION]:
        for slot in range(2):
            if slot == (generation & 1) or generation > meta[REFUND_GENERATION] + 1:
                clear(meta, REFUNDS + slot * TABLE_SIZE, slot * half, book.refund_heads)
        meta[REFUND_GENERATION] = generation
    slot = generation & 1
    table, base = REFUNDS + slot * TABLE_SIZE, slot * half
    hi, lo = row["ref_hi"], row["ref_lo"]
    h = hash_id(hi, lo, np.uint64(meta[SEED]))
    r = find(meta, table, base, book.refunds, book.refund_heads, hi, lo, h)
    if r < 0:
        r = add(meta, table, base, book.refunds, book.refund_heads, hi, lo, h)
    book.refunds[r]["refunded"] = refunded


@compiled
def _refunds_full(book: Book, at: Int) -> Bool:
    meta = book.meta
    current = meta[REFUND_GENERATION]
    if meta[REFUNDS + (current & 1) * TABLE_SIZE + COUNT] < book.refunds.shape[0] >> 1:
        return False
    return _generation(current, meta[REFUND_WINDOW], at) == current


@compiled
def _refund(book: Book, row: Row, result: Row, balance: Row, d: Int, c: Int) -> Int:
    amount = row["amount"]
    if row["total"] <= 0:
        return _INVALID_EVENT
    code = _check_parties(book, row, d, c)
    if code != _OK:
        return code
    if row["at"] - row["span"] > book.meta[REFUND_WINDOW]:
        return _REFUND_EXPIRED
    r = _find_refunds(book, row["ref_hi"], row["ref_lo"])
    refunded = book.refunds[r]["refunded"] if r >= 0 else np.int64(0)
    if amount > row["total"] - refunded:
        result["detail"] = max(row["total"] - refunded, 0)
        return _EXCEEDS_ORIGINAL
    if _available(book.accounts[d]) < amount:
        return _INSUFFICIENT_FUNDS
    code = _room(book, row, c, amount)
    if code != _OK:
        return code
    if _refunds_full(book, row["at"]):
        return _BOOK_FULL
    result["detail"] = row["total"] - refunded - amount
    _add_refund(book, row, refunded + amount)
    if c == _REMOTE:
        _launch(book, row, d, row["credit"], amount, -1, -1)
    return _pay(book, balance, d, c, amount)


@compiled
def _credit_leg(book: Book, row: Row, balance: Row, c: Int) -> Int:
    amount = row["amount"]
    if amount <= 0:
        return _INVALID_EVENT
    code = _check_credit(book, c)
    if code != _OK:
        return code
    if book.accounts[_TRANSIT_ROW]["debits_posted"] > _MAX - amount or _room(book, row, c, amount) != _OK:
        return _OVERFLOW
    return _pay(book, balance, _TRANSIT_ROW, c, amount)


@compiled
def _land(book: Book, row: Row, result: Row, balance: Row, settled: Bool) -> Int:
    """Settle or revert what is in flight under the event's id; nothing there is nothing to do."""
    hi, lo = row["id_hi"], row["id_lo"]
    f = _find_flight(book, row)
    if f < 0:
        return _OK
    flight = book.flights[f]
    d, amount = np.int64(flight["account"]), flight["amount"]
    posted = np.int64(-1)
    if flight["kind"] == _POST:
        h = hash_id(flight["ref_hi"], flight["ref_lo"], np.uint64(book.meta[SEED]))
        posted = find(book.meta, HOLDS, 0, book.holds, book.hold_heads, flight["ref_hi"], flight["ref_lo"], h)
    book.accounts[d]["in_flight"] -= 1
    result["detail"] = amount
    if settled:
        if posted >= 0:
            _release(book, posted, book.holds[posted]["amount"] - amount)
        _recode(book, hi, lo, row["at"], _OK)
    else:
        _give_money_back(book, f, posted)
        _recode(book, hi, lo, row["at"], np.int64(row["reason"]))
    flight["kind"] = 0
    remove(book.meta, FLIGHTS, book.flights, book.flight_heads, f)
    _show_debit(book, balance, d)
    return _OK


@compiled
def _give_money_back(book: Book, f: Int, posted: Int) -> None:
    """Undo a debit. It takes back what was added, so it cannot overflow and cannot be refused."""
    flight = book.flights[f]
    amount = flight["amount"]
    account = book.accounts[flight["account"]]
    account["debits_posted"] -= amount
    book.accounts[_TRANSIT_ROW]["credits_posted"] -= amount
    _give_back(account, amount, np.int64(flight["day"]), np.int64(flight["night"]))
    if posted >= 0:
        account["debits_pending"] += amount
        book.holds[posted]["state"] = HELD
        heap_add(book.meta, book.heap, book.holds, posted)
    elif flight["kind"] == _REFUND:
        r = _find_refunds(book, flight["ref_hi"], flight["ref_lo"])
        if r >= 0:
            book.refunds[r]["refunded"] = max(book.refunds[r]["refunded"] - amount, 0)


# Dispatch.


@inlined
def _show_debit(book: Book, balance: Row, d: Int) -> None:
    balance["debit_posted"] = book.accounts[d]["credits_posted"] - book.accounts[d]["debits_posted"]
    balance["debit_pending"] = book.accounts[d]["debits_pending"]


@inlined
def _has_form(row: Row, d: Int, c: Int) -> Bool:
    """Whether kind, partition and the reserved sides are as they must be."""
    kind = row["kind"]
    if kind == _TRANSFER or kind == _HOLD or kind == _REFUND or _OPEN <= kind <= _SET_LIMITS:
        return d != _REMOTE
    if kind == _DEPOSIT:
        return c != _REMOTE and (row["debit"] == _ANY or row["debit"] == _SETTLEMENT)
    if kind == _WITHDRAWAL:
        return d != _REMOTE and (row["credit"] == _ANY or row["credit"] == _SETTLEMENT)
    if kind == _POST or kind == _VOID:
        return d != _REMOTE
    return kind == _CREDIT_LEG and c != _REMOTE


@inlined
def _valid_id(row: Row) -> Bool:
    version = row["id_hi"] & _VERSION
    return (version == _V7 or version == _V8) and row["id_lo"] >> _U62 == _VARIANT


@inlined
def _may(book: Book, row: Row, d: Int) -> Bool:
    """Whether the caller may act on the account: its owner and operators may. Who opens or pays in needs no account."""
    kind = row["kind"]
    if row["actor"] == _ANY or d < 0 or kind == _OPEN or kind == _DEPOSIT or kind == _CREDIT_LEG:
        return True
    return book.accounts[d]["owner"] == row["actor"]


@compiled
def _rare(book: Book, row: Row, result: Row, balance: Row, d: Int, c: Int, h: Int, chained: Bool) -> Int:
    kind = row["kind"]
    if kind == _DEPOSIT:
        return _deposit(book, row, balance, c, chained)
    if kind == _WITHDRAWAL:
        return _withdrawal(book, row, balance, d, chained)
    if kind == _CREDIT_LEG:
        return _credit_leg(book, row, balance, c)
    if kind == _POST:
        return _post(book, row, result, balance, h)
    if kind == _VOID:
        return _void(book, row, result, h)
    if kind == _REFUND:
        return _refund(book, row, result, balance, d, c)
    if kind == _OPEN:
        return _open(book, row)
    if kind == _CLOSE:
        return _close(book, d)
    if kind == _SET_LIMITS:
        return _set_limits(book, row, d)
    return _freeze(book, d, _FROZEN if kind == _FREEZE else _ACTIVE)


@compiled
def _outcome(book: Book, row: Row, result: Row, balance: Row, chained: Bool) -> Int:
    """The shard's own events: they name what they end, and are not remembered by an id of their own."""
    if chained:
        return _NOT_LINKABLE
    if row["kind"] == _EXPIRE:
        return _expire(book, row, result, balance)
    return _land(book, row, result, balance, row["kind"] == _SETTLE)


@inlined
def _apply_row(
    book: Book, row: Row, result: Row, balance: Row, place: Int, offset_ns: Int, chained: Bool, cut_off: Bool
) -> Int:
    """Apply one row, of which `_look_ahead` left word at `place`."""
    kind = row["kind"]
    result["at"] = row["at"]
    if kind == _EXPIRE or kind == _SETTLE or kind == _REVERT:
        return _outcome(book, row, result, balance, chained)
    h = np.int64(-1)
    d = _found(book, book.ahead[place + 1], row["debit"])
    c = _found(book, book.ahead[place + 2], row["credit"])
    if not _has_form(row, d, c):
        return _INVALID_EVENT
    if not _valid_id(row):
        return _INVALID_ID
    if kind == _POST or kind == _VOID:
        h = _find_hold(book, row)
        if h >= 0 and row["debit"] == _ANY:
            d = np.int64(book.holds[h]["account"])
    if not _may(book, row, d):
        return _FORBIDDEN
    key = book.ahead[place]
    content = _content(row)
    entry = _seen(book, row["id_hi"], row["id_lo"], key, row["at"])
    if entry >= 0:
        return _again(book, result, entry, content)
    code = _age(book.meta, row)
    if code != _OK:
        return code
    if _ids_full(book, row["at"]):
        return _BOOK_FULL
    if chained and (cut_off or kind < _DEPOSIT or kind > _HOLD or (kind >= _TRANSFER and c == _REMOTE)):
        code = np.int64(_NOT_LINKABLE)
    elif kind == _TRANSFER or kind == _HOLD:
        code = _transfer(book, row, result, balance, d, c, offset_ns, chained)
    else:
        code = _rare(book, row, result, balance, d, c, h, chained)
    if code < _FIRST_STATELESS:
        _remember(book, row, key, content, code)
        if code <= _IN_FLIGHT:
            _accepted(book, row, balance, d)
    return code


@inlined
def _accepted(book: Book, row: Row, balance: Row, d: Int) -> None:
    kind = row["kind"]
    if kind == _DEPOSIT:
        _show_debit(book, balance, _SETTLEMENT_ROW)
    elif d >= 0 and kind != _CREDIT_LEG:
        _show_debit(book, balance, d)
    if _DEPOSIT <= kind <= _HOLD or kind == _REFUND:
        book.meta[TRANSFERS] += 1


@compiled
def _again(book: Book, result: Row, entry: Int, content: Id) -> Int:
    """The first answer once more, unless the id now stands for something else."""
    word = book.ids[entry]["word"]
    if word >> _U16 != content:
        return _ID_CONFLICT
    result["at"] = book.ids[entry]["at"]
    result["flags"] = _REPLAYED
    return np.int64(word & _CODE_MASK)


@compiled
def _fail_chain(book: Book, rows: Rows, results: Rows, balances: Rows, first: Int, failed: Int) -> Int:
    """Take back rows first..failed-1, answer the whole chain, remember the answers; returns the row after the chain.

    A row that was answered before this chain keeps its first answer.
    """
    n = rows.shape[0]
    end = failed
    while end < n - 1 and (np.int64(rows[end]["flags"]) & _LINKED) != 0:
        end += 1
    seed = np.uint64(book.meta[SEED])
    for i in range(first, end + 1):
        row, result = rows[i], results[i]
        balances[i]["debit_posted"] = balances[i]["debit_pending"] = 0
        balances[i]["credit_posted"] = balances[i]["credit_pending"] = 0
        if i == failed:
            continue
        fresh = i < failed and np.int64(result["flags"]) & _REPLAYED == 0
        result["at"] = row["at"]
        result["detail"] = 0
        result["flags"] = 0
        result["code"] = _LINKED_FAILED
        if fresh:
            _recode(book, row["id_hi"], row["id_lo"], row["at"], _LINKED_FAILED)
            continue
        kind = row["kind"]
        if kind == _EXPIRE or kind == _SETTLE or kind == _REVERT or not _valid_id(row):
            continue
        key = hash_id(row["id_hi"], row["id_lo"], seed)
        entry = _seen(book, row["id_hi"], row["id_lo"], key, row["at"])
        if entry >= 0:
            code = _again(book, result, entry, _content(row))
            result["code"] = code if code != _ID_CONFLICT else _LINKED_FAILED
        elif _age(book.meta, row) == _OK and not _ids_full(book, row["at"]):
            _remember(book, row, key, _content(row), _LINKED_FAILED)
    return end + 1


@compiled
def _look_ahead(book: Book, rows: Rows, start: Int) -> None:
    """Find the accounts of the next rows and bring near what they will touch, one step of every walk at a time."""
    meta, ids, ahead = book.meta, book.ids, book.ahead
    count = min(BLOCK, rows.shape[0] - start)
    seed = np.uint64(meta[SEED])
    slot = meta[ID_GENERATION] & 1
    table, base = IDS + slot * TABLE_SIZE, slot * (ids.shape[0] >> 1)
    splits, round_mask = meta[table + BUCKETS], meta[table + MASK] >> 1
    for k in range(count):
        row, at = rows[start + k], AHEAD_SIZE * k
        debit = bucket_of(hash_account(row["debit"], seed), meta, ACCOUNTS)
        credit = bucket_of(hash_account(row["credit"], seed), meta, ACCOUNTS)
        key = hash_id(row["id_hi"], row["id_lo"], seed)
        prefetch(book.account_heads, debit, 0)
        prefetch(book.account_heads, credit, 0)
        prefetch(book.id_heads, base + bucket_of(key, meta, table), 0)
        ahead[at] = key
        ahead[at + 1] = debit
        ahead[at + 2] = credit
    for k in range(count):
        at = AHEAD_SIZE * k
        prefetch(book.accounts, np.int64(book.account_heads[np.int64(ahead[at + 1])]) - 1, 0)
        prefetch(book.accounts, np.int64(book.account_heads[np.int64(ahead[at + 2])]) - 1, 0)
        for bucket in (bucket_of(ahead[at], meta, table), (splits + k) & round_mask):
            first = np.int64(book.id_heads[base + bucket]) - 1
            prefetch(ids, base + first, 0)
            prefetch(ids, base + first, 19)
    for k in range(count):
        row, at = rows[start + k], AHEAD_SIZE * k
        _follow_account(book, np.int64(ahead[at + 1]), row["debit"])
        _follow_account(book, np.int64(ahead[at + 2]), row["credit"])
        for bucket in (bucket_of(ahead[at], meta, table), (splits + k) & round_mask):
            first = np.int64(book.id_heads[base + bucket])
            if first != 0:
                _follow(ids, base, np.int64(ids[base + first - 1]["next"]))
    for k in range(count):
        row, at = rows[start + k], AHEAD_SIZE * k
        debit = find_account_in(book.accounts, book.account_heads, np.int64(ahead[at + 1]), row["debit"])
        credit = find_account_in(book.accounts, book.account_heads, np.int64(ahead[at + 2]), row["credit"])
        prefetch(book.accounts, debit, 64)
        for bucket in (bucket_of(ahead[at], meta, table), (splits + k) & round_mask):
            first = np.int64(book.id_heads[base + bucket])
            if first != 0:
                second = np.int64(ids[base + first - 1]["next"])
                if second != 0:
                    _follow(ids, base, np.int64(ids[base + second - 1]["next"]))
        ahead[at + 1] = debit + 1
        ahead[at + 2] = credit + 1


@inlined
def _follow(ids: Rows, base: Int, link: Int) -> None:
    prefetch(ids, base + link - 1, 0)
    prefetch(ids, base + link - 1, 19)


@inlined
def _follow_account(book: Book, bucket: Int, account: Id) -> None:
    first = np.int64(book.account_heads[bucket])
    if first != 0 and book.accounts[first - 1]["id"] != account:
        prefetch(book.accounts, np.int64(book.accounts[first - 1]["next"]) - 1, 0)


@inlined
def _found(book: Book, word: Id, account: Id) -> Int:
    """The account's row that was found ahead; if none was, it may have been opened since."""
    return np.int64(word) - 1 if word != _ANY else _account_row(book, account)


@compiled
def _run(book: Book, rows: Rows, results: Rows, balances: Rows, offset_ns: Int) -> None:
    n = rows.shape[0]
    chain = np.int64(-1)  # first row of the open chain
    before = np.int64(0)
    i = np.int64(0)
    start = np.int64(-BLOCK)
    while i < n:
        if i >= start + BLOCK:
            _look_ahead(book, rows, i)
            start = i
        row, result, balance = rows[i], results[i], balances[i]
        result["detail"] = 0
        result["flags"] = 0
        result["spare"] = 0
        balance["debit_posted"] = 0
        balance["debit_pending"] = 0
        balance["credit_posted"] = 0
        balance["credit_pending"] = 0
        linked = (np.int64(row["flags"]) & _LINKED) != 0
        if linked and chain < 0:
            chain = i
            before = book.meta[TRANSFERS]
        chained = chain >= 0
        cut_off = linked and (i == n - 1 or i - chain >= CHAIN_MAX - 1)
        code = _apply_row(book, row, result, balance, AHEAD_SIZE * (i - start), offset_ns, chained, cut_off)
        result["code"] = code
        i += 1
        if chained:
            if code != _OK:
                _undo(book)
                book.meta[TRANSFERS] = before
                i = _fail_chain(book, rows, results, balances, chain, i - 1)
                chain = np.int64(-1)
            elif not linked:
                book.meta[UNDO] = 0
                chain = np.int64(-1)


def apply(book: Book, rows: Rows, results: Rows, balances: Rows, utc_offset_s: int) -> None:
    """Apply stamped events in order.

    Args:
        book: changed in place.
        rows: (n,) EVENT, `at` in ns and strictly increasing over all batches of this book.
        results: (n,) RESULT, overwritten.
        balances: (n,) BALANCE, overwritten. Zero for a refusal and for a replay; the debit side is given for every
            accepted event with an account on that side, the credit side when money arrived there.
        utc_offset_s: local time minus UTC, for days and nights of limits.
    """
    rows = np.ascontiguousarray(rows) if rows.flags.writeable else rows.copy()  # one compiled form serves all callers
    if rows.dtype != EVENT or results.dtype != RESULT or balances.dtype != BALANCE:
        raise TypeError("rows, results and balances must be EVENT, RESULT and BALANCE")
    if len(results) != len(rows) or len(balances) != len(rows):
        raise ValueError("results and balances must be as long as rows")
    _apply_rows(book, rows, results, balances, utc_offset_s * 10**9)


def stamp(rows: Rows, now_ns: int, last_ns: int) -> int:
    """Stamp a batch from `now_ns` on, one ns apart and after `last_ns` (the stamp of the row before, or 0).

    Returns:
        The stamp of the last row, or `last_ns` when there are none.
    """
    first = max(now_ns, last_ns + 1)
    rows["at"] = np.arange(first, first + len(rows), dtype=np.int64)
    return first + len(rows) - 1 if len(rows) else last_ns


@compiled
def _read(book: Book, ids: npt.NDArray[np.uint64], actors: npt.NDArray[np.uint64], now: Int, out: Rows) -> None:
    for i in range(ids.shape[0]):
        answer = out[i]
        answer["id"] = ids[i]
        if ids[i] == np.uint64(events.SETTLEMENT) or ids[i] == np.uint64(events.TRANSIT):
            r = np.int64(ids[i]) - 1
        else:
            r = _account_row(book, ids[i])
        if r < 0:
            answer["code"] = _UNKNOWN_DEBIT_ACCOUNT
            continue
        a = book.accounts[r]
        if actors[i] != _ANY and actors[i] != a["owner"]:
            answer["code"] = _FORBIDDEN
            continue
        answer["code"] = _OK
        answer["status"] = a["status"]
        answer["posted"] = a["credits_posted"] - a["debits_posted"]
        answer["debits_pending"] = a["debits_pending"]
        _read_limits(book, r, answer, now)


@compiled
def _read_limits(book: Book, r: Int, answer: Row, now: Int) -> None:
    answer["per_transfer"] = _per_transfer(book, r, now)
    answer["daily"] = _daily(book, r, now)
    answer["night"] = _nightly(book, r, now)
    answer["window"] = _window(book, r, now)
    answer["next_per_transfer"] = -1
    answer["next_daily"] = -1
    answer["next_night"] = -1
    answer["next_window"] = -1
    waits, raised = book.accounts[r]["waits"], book.raises[r]
    if waits & RAISE_PER_TRANSFER and raised["per_transfer_at"] > now:
        answer["next_per_transfer"] = raised["per_transfer"]
        answer["next_per_transfer_at"] = raised["per_transfer_at"]
    if waits & RAISE_DAILY and raised["daily_at"] > now:
        answer["next_daily"] = raised["daily"]
        answer["next_daily_at"] = raised["daily_at"]
    if waits & RAISE_NIGHTLY and raised["nightly_at"] > now:
        answer["next_night"] = raised["nightly"]
        answer["next_night_at"] = raised["nightly_at"]
    if waits & RAISE_WINDOW and raised["window_at"] > now:
        answer["next_window"] = raised["window"]
        answer["next_window_at"] = raised["window_at"]


def _source() -> int:
    """A digest of what is compiled."""
    files = (Path(__file__), Path(str(book_module.__file__)), Path(str(events.__file__)))
    content = b"".join(file.read_bytes() for file in files)
    return int.from_bytes(hashlib.blake2b(content, digest_size=7).digest(), "big")


def _entry_points(source: int) -> tuple[Callable[..., int], Callable[..., int]]:
    """What Python calls. Numba keeps compiled code by the entry point's own file and the variables it closes over:
    without `source` among them, a change to another module would leave old rules in the cache."""

    @entry_point
    def apply_rows(book: Book, rows: Rows, results: Rows, balances: Rows, offset_ns: int) -> int:
        _run(book, rows, results, balances, offset_ns)
        return source

    @entry_point
    def read_rows(book: Book, ids: npt.NDArray[np.uint64], actors: npt.NDArray[np.uint64], now: int, out: Rows) -> int:
        _read(book, ids, actors, now, out)
        return source

    if inspect.isfunction(apply_rows):  # not compiled: NumPy would warn that hashes wrap
        quiet = np.errstate(over="ignore")
        return quiet(apply_rows), quiet(read_rows)
    return apply_rows, read_rows


_apply_rows, _read_rows = _entry_points(_source())


def read_accounts(
    book: Book, ids: npt.NDArray[np.uint64], actors: npt.NDArray[np.uint64], now_ns: int
) -> npt.NDArray[np.void]:
    """The accounts as they stand at `now_ns`, (n,) ACCOUNT.

    A code other than OK: FORBIDDEN when the actor is neither 0 nor the owner, UNKNOWN_DEBIT_ACCOUNT when this
    partition has no such account; then nothing else is told. Settlement and transit answer to actor 0.
    """
    out = np.zeros(len(ids), ACCOUNT)
    wanted = np.array(ids, np.uint64, ndmin=1)
    by = np.array(actors, np.uint64, ndmin=1)
    if wanted.shape != by.shape:
        raise ValueError("as many actors as ids")
    _read_rows(book, wanted, by, now_ns, out)
    return out


def due_holds(book: Book, now_ns: int, limit: int) -> npt.NDArray[np.void]:
    """Up to `limit` EXPIRE events for holds that are due, unstamped. `ref` is the hold; debit, credit and amount are
    the hold's, for readers of the journal. Walks only the due part of the heap and changes nothing."""
    size = int(book.meta[HEAP])
    due: list[int] = []
    places = [0]
    while places and len(due) < limit:
        place = places.pop()
        if place < size and book.holds[book.heap[place]]["expires_at"] <= now_ns:
            due.append(int(book.heap[place]))
            places += (2 * place + 2, 2 * place + 1)
    rows = np.zeros(len(due), EVENT)
    holds = book.holds[due]
    rows["kind"] = Kind.EXPIRE
    rows["ref_hi"] = holds["hi"]
    rows["ref_lo"] = holds["lo"]
    for name in ("debit", "credit", "amount"):
        rows[name] = holds[name]
    return rows


def in_flight(book: Book) -> npt.NDArray[np.void]:
    """The outbox: a CREDIT_LEG for every payment whose payee's shard has not been heard, in the order of the debits."""
    flights = book.flights[: book.meta[FLIGHTS + TOP]]
    flying = flights[flights["kind"] != 0]
    flying = flying[np.argsort(flying["at"])]
    rows = np.zeros(len(flying), EVENT)
    rows["kind"] = Kind.CREDIT_LEG
    rows["id_hi"] = flying["hi"]
    rows["id_lo"] = flying["lo"]
    rows["debit"] = flying["debit"]
    # For readers of the payee's journal, who show the payment as what it is: its kind, and the hold that a post ends.
    rows["reason"] = flying["kind"]
    posts = flying["kind"] == Kind.POST
    rows["ref_hi"], rows["ref_lo"] = np.where(posts, flying["ref_hi"], 0), np.where(posts, flying["ref_lo"], 0)
    rows["credit"] = flying["credit"]
    rows["amount"] = flying["amount"]
    rows["span"] = flying["at"]
    return rows
