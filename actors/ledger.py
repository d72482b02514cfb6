"""The rules of money: `apply` takes a batch of stamped events to a book and says what became of each.

This is the only place where a balance changes. The same function serves live traffic, recovery and replay, so it reads
no clock and depends on nothing but the book and the rows. Events with a code from `FIRST_STATELESS` on, and replays,
leave the book exactly as it was: they need not be journaled. With NUMBA_DISABLE_JIT=1 it runs as plain Python.

Each event is checked in this order: its form, the caller's right, whether its id was seen before, the id's age, and
then the rules of its kind. A rule function changes the book only after its last refusal. The rows of a linked chain are
all judged by the first four before any of them is applied: a chain is new as a whole, or it is not applied.

Money to an account of another shard leaves as a numbered leg: the payer's shard counts its payments to each other
shard, which decides them strictly in that order. So a leg needs no id, no clock and no window to be decided once.

Arithmetic on money is on int64 and every sum is compared with AMOUNT_MAX before it is made; ids and hashes are uint64.
Numba makes float64 of a mixture of the two, so nothing here mixes them without a cast.
"""

# ruff: noqa: SIM109, PLR1714 - a chain of comparisons compiles to a jump table; a tuple would be walked

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from actors import book as book_module
from actors import compiled as compiled_module
from actors import id_memory as id_memory_module
from actors.book import (
    ACCOUNTS,
    ACCOUNTS_MAX,
    AHEAD_SIZE,
    BLOCK,
    CHAIN_MAX,
    CONTENT_SEED,
    COUNT,
    FLIGHTS,
    FLIGHTS_MAX,
    FREE,
    HEAP,
    HELD,
    HOLDS,
    HOLDS_MAX,
    OUTBOX_MAX,
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
    REFUNDS_MAX,
    REFUSALS,
    SEED,
    TABLE_SIZE,
    TOP,
    TRANSFERS,
    UNDO,
    Book,
    Capacity,
    Stats,
    add,
    add_account,
    bucket_of,
    capacity_of,
    check,
    clear,
    digest,
    dump,
    find,
    find_account,
    find_account_in,
    hash_account,
    hash_id,
    heap_add,
    heap_remove,
    new_book,
    remove,
    resized,
    restore,
    stats,
    sums,
)
from actors.compiled import Bool, Id, Int, Row, Rows, Words, compiled, entry_point, inlined, prefetch
from actors.id_memory import (
    ID_BUCKETS,
    ID_HEAD,
    ID_HORIZON,
    ID_MASK,
    ID_SKEW,
    ID_TAIL,
    ID_TAIL_SLOT,
    ID_WINDOW,
    IDS_MAX,
    find_id,
    id_bucket,
    id_code,
    recode_id,
    remember_id,
    slot_time,
)
from storage import events
from storage.events import ACCOUNT, AMOUNT_MAX, BALANCE, EVENT, NO_LIMIT, RESULT, AccountStatus, Code, Kind

__all__ = [
    "RULES",
    "Book",
    "Capacity",
    "Effects",
    "Stats",
    "apply",
    "apply_told",
    "capacity_of",
    "check",
    "digest",
    "due_holds",
    "dump",
    "flights_of",
    "in_flight",
    "new_book",
    "read_accounts",
    "resized",
    "restore",
    "sent",
    "stamp",
    "stats",
    "sums",
]

RULES: Final = 1
"""Version of the rules. It goes up whenever an event may get another code or effect than before: records of older rules
are then replayed by the codes that they tell (`apply_told`)."""

# Numba freezes module globals of plain int type, not enum members.
_OPEN: Final = int(Kind.OPEN)
_CLOSE: Final = int(Kind.CLOSE)
_FREEZE: Final = int(Kind.FREEZE)
_UNFREEZE: Final = int(Kind.UNFREEZE)
_SET_LIMITS: Final = int(Kind.SET_LIMITS)
_BIND: Final = int(Kind.BIND)
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
_CHAIN_REFUSED: Final = int(Code.CHAIN_REFUSED)
_OUTBOX_FULL: Final = int(Code.OUTBOX_FULL)
_FIRST_STATELESS: Final = int(events.FIRST_STATELESS)

_LINKED: Final = int(events.Flag.LINKED)
_REPLAYED: Final = int(events.ResultFlag.REPLAYED)
_EFFECT_BITS: Final = 20
_EFFECT_MASK: Final = (1 << _EFFECT_BITS) - 1
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
_NEW: Final = -1
"""Instead of a code: the event is to be applied."""

_MS_NS: Final = 1_000_000
_MINUTE_NS: Final = 60 * 10**9
_DAY_MINUTES: Final = 1440
_NOON: Final = 720
_DEFAULT_WINDOW: Final = 1200 << 16 | 360
"""20:00 to 06:00, the Central Bank's night (Pix limits for natural persons)."""
_ANY: Final = np.uint64(0)
_U16: Final = np.uint64(16)
_U32: Final = np.uint64(32)
_FIRST_ACCOUNT: Final = np.uint64(events.FIRST_ACCOUNT)
_ACCOUNT_END: Final = np.uint64(2**63)
_SETTLEMENT: Final = np.uint64(events.SETTLEMENT)
_SLOT: Final = np.uint64(events.SLOTS - 1)
_SLOT_DIGITS: Final = np.uint64(0xFFF)
_VERSION: Final = np.uint64(0xF000)
_V7: Final = np.uint64(0x7000)
_V8: Final = np.uint64(0x8000)
_U62: Final = np.uint64(62)
_VARIANT: Final = np.uint64(2)
_K: Final = np.uint64(0x9E3779B97F4A7C15)
Codes = npt.NDArray[np.uint16]
_U31: Final = np.uint64(31)


# Ids: what was answered to them (`actors/id_memory.py`).


@inlined
def _fold(h: Id, value: Id) -> Id:
    h = (h ^ value) * _K
    return h ^ (h >> _U31)


@inlined
def _content(book: Book, row: Row, chained: Bool) -> Id:
    """32 bits of what makes two events with one id the same event, and of the id itself."""
    kind = row["kind"]
    h = _fold(np.uint64(book.meta[CONTENT_SEED]), row["id_hi"])
    h = _fold(h, row["id_lo"])
    h = _fold(h, np.uint64(kind) + (_V8 if chained else _ANY))
    h = _fold(h, row["credit"])
    h = _fold(h, np.uint64(row["amount"]))
    h = _fold(h, row["debit"])
    h = _fold(h, row["ref_hi"])
    h = _fold(h, row["ref_lo"])
    h = _fold(h, row["check"])
    if kind == _HOLD:
        h = _fold(h, np.uint64(row["span"]))
    elif kind == _OPEN or kind == _SET_LIMITS:
        h = _fold(h, np.uint64(row["total"]))
    return h >> _U32


@inlined
def _remember(book: Book, row: Row, key: Id, content: Id, code: Int) -> None:
    remember_id(book.meta, book.ids, book.id_heads, book.times, key, content, row["at"], code)


@inlined
def _age(meta: Words, row: Row) -> Int:
    """Refuse an id whose memory may be lost already, or that is made ahead of time."""
    if (row["id_hi"] & _VERSION) == _V7:
        at = row["at"]
        made_ms = np.int64(row["id_hi"] >> _U16)
        if made_ms < -((meta[ID_WINDOW] - at) // _MS_NS):
            return _ID_EXPIRED
        if meta[ID_HORIZON] != 0 and made_ms <= (meta[ID_HORIZON] + meta[ID_SKEW]) // _MS_NS:
            return _ID_EXPIRED
        if made_ms > (at + meta[ID_SKEW]) // _MS_NS:
            return _ID_IN_FUTURE
    return _NEW


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
    if limit != _NO_LIMIT and amount > limit - spent:
        result["detail"] = max(limit - spent, 0)
        return refusal
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
        account["day_sum"] = min(account["day_sum"], _MAX - amount) + amount  # without a limit it may be any sum
    else:
        account["day"] = day
        account["day_sum"] = amount
    if night >= 0:
        if np.int64(account["night"]) == night:
            account["night_sum"] = min(account["night_sum"], _MAX - amount) + amount
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
    return account["posted"] - account["debits_pending"]


@inlined
def _room(book: Book, credit: Id, c: Int, amount: Int) -> Int:
    """Whether the credit, or its way to another shard, can be made. What is in flight may come back, so it needs its
    room as if it were there."""
    if c == _REMOTE:
        if book.meta[FLIGHTS + COUNT] >= book.meta[FLIGHTS_MAX]:
            return _BOOK_FULL
        return _OUTBOX_FULL if book.outbox[_home(book, credit)] >= book.meta[OUTBOX_MAX] else _OK
    if c == _SETTLEMENT_ROW:
        return _OK
    return _OVERFLOW if book.accounts[c]["posted"] + book.accounts[c]["flying"] > _MAX - amount else _OK


@inlined
def _home(book: Book, account: Id) -> Int:
    """The partition of an account."""
    return np.int64(account & np.uint64(book.meta[PARTITIONS] - 1))


@compiled
def _find_flight(book: Book, home: Id, number: Id) -> Int:
    h = hash_id(home, number, np.uint64(book.meta[SEED]))
    return find(book.meta, FLIGHTS, 0, book.flights, book.flight_heads, home, number, h)


@inlined
def _pay(book: Book, balance: Row, d: Int, c: Int, amount: Int) -> Int:
    """Move money from row `d` to row `c`, or to transit when the payee is elsewhere."""
    book.accounts[d]["posted"] -= amount
    if c == _REMOTE:
        book.accounts[_TRANSIT_ROW]["posted"] += amount
        return _IN_FLIGHT
    book.accounts[c]["posted"] += amount
    balance["credit_posted"] = book.accounts[c]["posted"]
    balance["credit_pending"] = book.accounts[c]["debits_pending"]
    return _OK


@compiled
def _launch(book: Book, row: Row, d: Int, credit: Id, amount: Int, day: Int, night: Int) -> None:
    """Give a payment its number among those to the payee's shard, and put it into the outbox."""
    home = _home(book, credit)
    book.sent[home] += 1
    book.outbox[home] += 1
    hi, lo = np.uint64(home), np.uint64(book.sent[home])
    h = hash_id(hi, lo, np.uint64(book.meta[SEED]))
    flight = book.flights[add(book.meta, FLIGHTS, 0, book.flights, book.flight_heads, hi, lo, h)]
    flight["id_hi"] = row["id_hi"]
    flight["id_lo"] = row["id_lo"]
    flight["ref_hi"] = row["ref_hi"]
    flight["ref_lo"] = row["ref_lo"]
    flight["ref_at"] = row["span"]
    flight["debit"] = book.accounts[d]["id"]
    flight["credit"] = credit
    flight["amount"] = amount
    flight["at"] = row["at"]
    flight["use"] = book.meta[ID_HEAD]  # the number under which its id is remembered next
    flight["account"] = d
    flight["day"] = day
    flight["night"] = night
    flight["kind"] = row["kind"]
    book.accounts[d]["in_flight"] += 1
    book.accounts[d]["flying"] += amount


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
    if book.meta[ACCOUNTS + TOP] >= book.meta[ACCOUNTS_MAX]:
        return _BOOK_FULL
    _do_open(book, row)
    return _OK


@compiled
def _do_open(book: Book, row: Row) -> None:
    window = row["total"] if row["total"] != 0 else np.int64(_DEFAULT_WINDOW)
    new = book.accounts[add_account(book.meta, book.accounts, book.account_heads, row["debit"])]
    new["owner"] = row["credit"] if row["credit"] != _ANY else row["actor"]
    new["status"] = _ACTIVE
    new["per_transfer"] = row["amount"]
    new["daily"] = np.int64(row["ref_hi"])
    new["nightly"] = np.int64(row["ref_lo"])
    new["window"] = window


@compiled
def _close(book: Book, d: Int) -> Int:
    code = _check_debit(book, d)
    if code != _OK:
        return code
    account = book.accounts[d]
    if account["posted"] != 0 or account["debits_pending"] != 0 or account["in_flight"] != 0:
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
    if code == _OK:
        code = _room(book, row["credit"], c, amount)
    if code != _OK:
        return code
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
    if chained:
        _save(book, d)
        _save(book, _SETTLEMENT_ROW)
    return _pay(book, balance, d, _SETTLEMENT_ROW, amount)


@inlined
def _check_parties(book: Book, row: Row, d: Int, c: Int) -> Int:
    """A hold only reserves, so it does not look at its payee: one on another shard could not be looked at either."""
    if row["amount"] <= 0:
        return _INVALID_AMOUNT
    if row["debit"] == row["credit"]:
        return _SAME_ACCOUNT
    code = _check_debit(book, d)
    if code != _OK:
        return code
    if row["kind"] == _HOLD:
        possible = _FIRST_ACCOUNT <= row["credit"] < _ACCOUNT_END
        return _OK if possible else _UNKNOWN_CREDIT_ACCOUNT
    return _check_credit(book, c)


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
    code = _room(book, row["credit"], c, amount)
    if code != _OK:
        return code
    if chained:
        _save(book, d)
        _save(book, c)
    return _do_transfer(book, row, balance, d, c, day, night)


@inlined
def _do_transfer(book: Book, row: Row, balance: Row, d: Int, c: Int, day: Int, night: Int) -> Int:
    amount = row["amount"]
    _count(book.accounts[d], amount, day, night)
    if c == _REMOTE:
        _launch(book, row, d, row["credit"], amount, day, night)
    return _pay(book, balance, d, c, amount)


@compiled
def _hold(book: Book, row: Row, d: Int, day: Int, night: Int, chained: Bool) -> Int:
    if row["span"] <= 0 or row["span"] > _MAX - row["at"]:
        return _INVALID_EVENT
    if book.meta[HOLDS + COUNT] >= book.meta[HOLDS_MAX]:
        return _BOOK_FULL
    hi, lo = row["id_hi"], row["id_lo"]
    seed = np.uint64(book.meta[SEED])
    if find(book.meta, HOLDS, 0, book.holds, book.hold_heads, hi, lo, hash_id(hi, lo, seed)) >= 0:
        return _ID_CONFLICT  # a hold that outlived the memory of its id
    if chained:
        _save(book, d)
    h = _do_hold(book, row, d, day, night)
    if chained:
        _save_hold(book, h)
    return _OK


@compiled
def _do_hold(book: Book, row: Row, d: Int, day: Int, night: Int) -> Int:
    """The new hold's row."""
    hi, lo = row["id_hi"], row["id_lo"]
    h = add(book.meta, HOLDS, 0, book.holds, book.hold_heads, hi, lo, hash_id(hi, lo, np.uint64(book.meta[SEED])))
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
    _count(book.accounts[d], row["amount"], day, night)
    book.accounts[d]["debits_pending"] += row["amount"]
    return h


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
        code = _room(book, hold["credit"], c, amount)
    return _do_post(book, row, result, balance, h) if code == _OK else code


@compiled
def _do_post(book: Book, row: Row, result: Row, balance: Row, h: Int) -> Int:
    hold = book.holds[h]
    amount = row["amount"] if row["amount"] != 0 else hold["amount"]
    d, c = np.int64(hold["account"]), _account_row(book, hold["credit"])
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
        _do_void(book, result, h)
    return code


@compiled
def _do_void(book: Book, result: Row, h: Int) -> None:
    result["detail"] = book.holds[h]["amount"]
    _release(book, h, book.holds[h]["amount"])


@compiled
def _expire(book: Book, row: Row, result: Row, balance: Row) -> Int:
    h = _find_hold(book, row)
    if h < 0 or book.holds[h]["state"] != HELD:
        return _NOT_HELD
    if book.holds[h]["expires_at"] > row["at"]:
        return _INVALID_EVENT
    d = np.int64(book.holds[h]["account"])
    _do_void(book, result, h)
    _show_debit(book, balance, d)
    return _OK


@compiled
def _find_refunds(book: Book, hi: Id, lo: Id, at: Int) -> Int:
    """The row of an original's refunded sum: the newer generation's, for the older one's may have been carried over."""
    for back in range(2):
        found = _find_refund(book, (book.meta[REFUND_GENERATION] - back) & 1, hi, lo, at)
        if found >= 0:
            return found
    return -1


@compiled
def _find_refund(book: Book, slot: Int, hi: Id, lo: Id, at: Int) -> Int:
    """The same in one generation. An original is its id and its stamp: the id may have been used before."""
    meta, refunds = book.meta, book.refunds
    base = slot * (refunds.shape[0] >> 1)
    h = hash_id(hi, lo, np.uint64(meta[SEED]))
    row = np.int64(book.refund_heads[base + bucket_of(h, meta, REFUNDS + slot * TABLE_SIZE)])
    while row != 0:
        found = refunds[base + row - 1]
        if found["lo"] == lo and found["hi"] == hi and found["at"] == at:
            return base + row - 1
        row = np.int64(found["next"])
    return -1


@inlined
def _refund_generation(book: Book, at: Int) -> Int:
    """`at // width`, without the division while the generation is the current one."""
    current, width = book.meta[REFUND_GENERATION], book.meta[REFUND_WINDOW]
    start = current * width
    if start <= at and at - start < width:
        return current
    return at // width


@compiled
def _add_refund(book: Book, row: Row, refunded: Int) -> None:
    """Set an original's refunded sum, in the generation of `at`: that keeps it for the whole window."""
    meta = book.meta
    half = book.refunds.shape[0] >> 1
    generation = _refund_generation(book, row["at"])
    if generation != meta[REFUND_GENERATION]:
        for slot in range(2):
            if slot == (generation & 1) or generation > meta[REFUND_GENERATION] + 1:
                clear(meta, REFUNDS + slot * TABLE_SIZE, slot * half, book.refund_heads)
        meta[REFUND_GENERATION] = generation
    slot = generation & 1
    hi, lo, at = row["ref_hi"], row["ref_lo"], row["span"]
    r = _find_refund(book, slot, hi, lo, at)
    if r < 0:
        h = hash_id(hi, lo, np.uint64(meta[SEED]))
        r = add(meta, REFUNDS + slot * TABLE_SIZE, slot * half, book.refunds, book.refund_heads, hi, lo, h)
        book.refunds[r]["at"] = at
    book.refunds[r]["refunded"] = refunded


@compiled
def _refunds_full(book: Book, at: Int) -> Bool:
    meta = book.meta
    current = meta[REFUND_GENERATION]
    if meta[REFUNDS + (current & 1) * TABLE_SIZE + COUNT] < meta[REFUNDS_MAX]:
        return False
    return _refund_generation(book, at) == current


@inlined
def _refunded(book: Book, row: Row) -> Int:
    """What was given back of the row's original so far."""
    r = _find_refunds(book, row["ref_hi"], row["ref_lo"], row["span"])
    return book.refunds[r]["refunded"] if r >= 0 else np.int64(0)


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
    refunded = _refunded(book, row)
    if amount > row["total"] - refunded:
        result["detail"] = max(row["total"] - refunded, 0)
        return _EXCEEDS_ORIGINAL
    if _available(book.accounts[d]) < amount:
        return _INSUFFICIENT_FUNDS
    code = _room(book, row["credit"], c, amount)
    if code != _OK:
        return code
    if _refunds_full(book, row["at"]):
        return _BOOK_FULL
    return _do_refund(book, row, result, balance, d, c)


@compiled
def _do_refund(book: Book, row: Row, result: Row, balance: Row, d: Int, c: Int) -> Int:
    amount, refunded = row["amount"], _refunded(book, row)
    result["detail"] = row["total"] - refunded - amount
    _add_refund(book, row, refunded + amount)
    if c == _REMOTE:
        _launch(book, row, d, row["credit"], amount, -1, -1)
    return _pay(book, balance, d, c, amount)


# Legs: money from other shards, in the order of its numbers.


@compiled
def _leg(book: Book, row: Row, result: Row, balance: Row) -> Int:
    c = _account_row(book, row["credit"])
    if c == _REMOTE:
        return _INVALID_EVENT
    source, number = _home(book, row["debit"]), row["total"]
    heard = book.heard[source]
    if number < 1 or number > heard + 1:
        return _LEG_OUT_OF_ORDER
    if number <= heard:
        result["flags"] = _REPLAYED
        r = _find_refusal(book, source, number)
        return np.int64(book.refusals[r]["code"]) if r >= 0 else np.int64(_OK)
    amount = row["amount"]
    if amount <= 0:
        return _INVALID_EVENT
    code = _check_credit(book, c)
    if code == _OK:
        code = _room(book, row["credit"], c, amount)
    upto = _confirmed_by(row, heard)
    if code != _OK and book.meta[REFUSALS + COUNT] >= book.meta[FLIGHTS_MAX] and not _forgets(book, source, upto):
        return _BOOK_FULL  # the payer's shard sends it again when others have confirmed theirs
    _do_leg(book, row, balance, source, c, upto, code)
    return code


@inlined
def _confirmed_by(leg: Row, heard: Int) -> Int:
    """Up to which of its legs the source has journaled what became of them; it cannot know of more than were heard."""
    return heard if leg["check"] > np.uint64(heard) else np.int64(leg["check"])


@compiled
def _do_leg(book: Book, row: Row, balance: Row, source: Int, c: Int, upto: Int, code: Int) -> None:
    _forget_refusals(book, source, upto)
    book.heard[source] = row["total"]
    if code == _OK:
        _pay(book, balance, _TRANSIT_ROW, c, row["amount"])
        return
    hi, lo = np.uint64(source), np.uint64(row["total"])
    h = hash_id(hi, lo, np.uint64(book.meta[SEED]))
    r = add(book.meta, REFUSALS, 0, book.refusals, book.refusal_heads, hi, lo, h)
    book.refusals[r]["code"] = code


@compiled
def _find_refusal(book: Book, source: Int, number: Int) -> Int:
    hi, lo = np.uint64(source), np.uint64(number)
    h = hash_id(hi, lo, np.uint64(book.meta[SEED]))
    return find(book.meta, REFUSALS, 0, book.refusals, book.refusal_heads, hi, lo, h)


@compiled
def _forgets(book: Book, source: Int, upto: Int) -> Bool:
    """Whether one of the source's refusals is confirmed by `upto`."""
    for number in range(book.confirmed[source] + 1, upto + 1):  # noqa: SIM110 - a generator cannot be compiled
        if _find_refusal(book, source, number) >= 0:
            return True
    return False


@compiled
def _forget_refusals(book: Book, source: Int, upto: Int) -> None:
    """The source has journaled what became of its legs up to `upto`: it asks for none of them again."""
    for number in range(book.confirmed[source] + 1, upto + 1):
        if book.meta[REFUSALS + COUNT] == 0:
            break
        r = _find_refusal(book, source, number)
        if r >= 0:
            book.refusals[r]["code"] = 0
            remove(book.meta, REFUSALS, book.refusals, book.refusal_heads, r)
    book.confirmed[source] = max(book.confirmed[source], upto)


@compiled
def _land(book: Book, row: Row, result: Row, balance: Row, settled: Bool) -> Int:
    """Settle or revert the payment of that number to that partition; nothing there is nothing to do."""
    f = _find_flight(book, row["ref_hi"], row["ref_lo"])
    if f < 0:
        return _OK
    flight = book.flights[f]
    d, amount = np.int64(flight["account"]), flight["amount"]
    posted = np.int64(-1)
    if flight["kind"] == _POST:
        h = hash_id(flight["ref_hi"], flight["ref_lo"], np.uint64(book.meta[SEED]))
        posted = find(book.meta, HOLDS, 0, book.holds, book.hold_heads, flight["ref_hi"], flight["ref_lo"], h)
    book.accounts[d]["in_flight"] -= 1
    book.accounts[d]["flying"] -= amount
    result["detail"] = amount
    if settled:
        if posted >= 0:
            _release(book, posted, book.holds[posted]["amount"] - amount)
        recode_id(book.meta, book.ids, flight["use"], _OK)
    else:
        _give_money_back(book, f, posted)
        recode_id(book.meta, book.ids, flight["use"], np.int64(row["reason"]))
    flight["kind"] = 0
    book.outbox[np.int64(flight["hi"])] -= 1
    remove(book.meta, FLIGHTS, book.flights, book.flight_heads, f)
    _show_debit(book, balance, d)
    return _OK


@compiled
def _give_money_back(book: Book, f: Int, posted: Int) -> None:
    """Undo a debit. Room for it was kept, so it cannot overflow and cannot be refused."""
    flight = book.flights[f]
    amount = flight["amount"]
    account = book.accounts[flight["account"]]
    account["posted"] += amount
    book.accounts[_TRANSIT_ROW]["posted"] -= amount
    _give_back(account, amount, np.int64(flight["day"]), np.int64(flight["night"]))
    if posted >= 0:
        account["debits_pending"] += amount
        book.holds[posted]["state"] = HELD
        heap_add(book.meta, book.heap, book.holds, posted)
    elif flight["kind"] == _REFUND:
        r = _find_refunds(book, flight["ref_hi"], flight["ref_lo"], flight["ref_at"])
        if r >= 0:
            book.refunds[r]["refunded"] = max(book.refunds[r]["refunded"] - amount, 0)


# Dispatch.


@inlined
def _show_debit(book: Book, balance: Row, d: Int) -> None:
    balance["debit_posted"] = book.accounts[d]["posted"]
    balance["debit_pending"] = book.accounts[d]["debits_pending"]


@inlined
def _has_form(book: Book, row: Row, d: Int, c: Int) -> Bool:
    """Whether kind, partition and the reserved sides are as they must be."""
    kind = row["kind"]
    if kind == _TRANSFER or kind == _HOLD or kind == _REFUND or _OPEN <= kind <= _BIND:
        return d != _REMOTE
    if kind == _DEPOSIT:
        return c != _REMOTE and (row["debit"] == _ANY or row["debit"] == _SETTLEMENT)
    if kind == _WITHDRAWAL:
        return d != _REMOTE and (row["credit"] == _ANY or row["credit"] == _SETTLEMENT)
    if kind == _POST or kind == _VOID:
        return d != _REMOTE and _home(book, row["ref_lo"]) == book.meta[PARTITION]
    return False


@inlined
def _valid_id(row: Row) -> Bool:
    """Whether it is a UUID of version 7 or 8 whose last three digits are the slot of the account that decides."""
    version = row["id_hi"] & _VERSION
    kind = row["kind"]
    if kind == _DEPOSIT:
        slot = row["credit"] & _SLOT
    elif kind == _POST or kind == _VOID:
        slot = row["ref_lo"] & _SLOT
    else:
        slot = row["debit"] & _SLOT
    form = (version == _V7 or version == _V8) and row["id_lo"] >> _U62 == _VARIANT
    return form and row["id_lo"] & _SLOT_DIGITS == slot


@inlined
def _may(book: Book, row: Row, d: Int) -> Bool:
    """Whether the caller may act on the account: its owner and operators may. To open, bind or pay in needs none."""
    kind = row["kind"]
    if row["actor"] == _ANY or d < 0 or kind == _OPEN or kind == _DEPOSIT or kind == _BIND:
        return True
    return book.accounts[d]["owner"] == row["actor"]


@inlined
def _judge(book: Book, row: Row, result: Row, d: Int, c: Int, key: Id, content: Id) -> Int:
    """_NEW, or how the event is answered without being applied."""
    if not _has_form(book, row, d, c):
        return _INVALID_EVENT
    if not _valid_id(row):
        return _INVALID_ID
    if not _may(book, row, d):
        return _FORBIDDEN
    slot = find_id(book.meta, book.ids, book.id_heads, book.times, key, row["at"])
    if slot >= 0:
        return _again(book, result, slot, content)
    return _age(book.meta, row)


@compiled
def _again(book: Book, result: Row, slot: Int, content: Id) -> Int:
    """The first answer once more, unless the id now stands for something else."""
    if np.uint64(book.ids[slot]["content"]) != content:
        return _ID_CONFLICT
    result["at"] = slot_time(book.meta, book.ids, book.times, slot)
    result["flags"] = _REPLAYED
    return id_code(book.ids, slot)


@compiled
def _rare(book: Book, row: Row, result: Row, balance: Row, d: Int, c: Int, h: Int, chained: Bool) -> Int:
    kind = row["kind"]
    if kind == _DEPOSIT:
        return _deposit(book, row, balance, c, chained)
    if kind == _WITHDRAWAL:
        return _withdrawal(book, row, balance, d, chained)
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
    if kind == _BIND:
        return _OK
    return _freeze(book, d, _FROZEN if kind == _FREEZE else _ACTIVE)


@compiled
def _outcome(book: Book, row: Row, result: Row, balance: Row) -> Int:
    """What shards do by themselves: they name what they end, and are not remembered by an id of their own."""
    kind = row["kind"]
    if kind == _EXPIRE:
        return _expire(book, row, result, balance)
    if kind == _CREDIT_LEG:
        return _leg(book, row, result, balance)
    return _land(book, row, result, balance, kind == _SETTLE)


@inlined
def _of_shards(kind: Int) -> Bool:
    return kind == _EXPIRE or _CREDIT_LEG <= kind <= _REVERT


@inlined
def _apply_row(book: Book, row: Row, result: Row, balance: Row, place: Int, offset_ns: Int) -> Int:
    """Apply one row that stands alone, of which `_look_ahead` left words at `place`."""
    kind = row["kind"]
    if _of_shards(kind):
        return _outcome(book, row, result, balance)
    c = _found(book, book.ahead[place + 2], row["credit"])
    h, d = _hold_and_payer(book, row, _found(book, book.ahead[place + 1], row["debit"]))
    key = book.ahead[place]
    content = _content(book, row, False)
    code = _judge(book, row, result, d, c, key, content)
    if code != _NEW:
        return code
    if kind == _TRANSFER or kind == _HOLD:
        code = _transfer(book, row, result, balance, d, c, offset_ns, False)
    else:
        code = _rare(book, row, result, balance, d, c, h, False)
    if code < _FIRST_STATELESS:
        _remember(book, row, key, content, code)
        if code <= _IN_FLIGHT:
            _accepted(book, row, balance, d)
    return code


@inlined
def _hold_and_payer(book: Book, row: Row, d: Int) -> tuple[Int, Int]:
    """The hold that a post or void ends, else -1, and whose money it is: where the row names nobody, the hold's."""
    if row["kind"] != _POST and row["kind"] != _VOID:
        return np.int64(-1), d
    h = _find_hold(book, row)
    if h >= 0 and row["debit"] == _ANY:
        return h, np.int64(book.holds[h]["account"])
    return h, d


@inlined
def _accepted(book: Book, row: Row, balance: Row, d: Int) -> None:
    kind = row["kind"]
    if kind == _DEPOSIT:
        _show_debit(book, balance, _SETTLEMENT_ROW)
    elif d >= 0 and kind != _BIND:
        _show_debit(book, balance, d)
    if _DEPOSIT <= kind <= _HOLD or kind == _REFUND:
        book.meta[TRANSFERS] += 1


# Linked chains. A chain is judged whole before any of its rows is applied: either all of its ids are new, or nothing of
# it is applied, remembered or journaled, and each row says what it knows.


@compiled
def _chain(book: Book, rows: Rows, results: Rows, balances: Rows, first: Int, end: Int, offset_ns: Int) -> None:
    """Rows `first` to `end`, each but the last linked to the next."""
    fresh = _judge_chain(book, rows, results, first, end)
    if fresh < end - first + 1:
        return
    before = book.meta[TRANSFERS]
    cut_off = (np.int64(rows[end]["flags"]) & _LINKED) != 0
    failed: Int = np.int64(-1)
    code: Int = np.int64(_OK)
    for i in range(first, end + 1):
        code = _apply_chained(book, rows[i], results[i], balances[i], offset_ns, cut_off and i == end)
        results[i]["code"] = code
        if code != _OK:
            failed = i
            break
    if failed < 0:
        book.meta[UNDO] = 0
    else:
        _undo(book)
        book.meta[TRANSFERS] = before
        others = _LINKED_FAILED if code < _FIRST_STATELESS else _CHAIN_REFUSED
        for i in range(first, end + 1):
            _blank(balances[i])
            if i != failed:
                results[i]["detail"] = 0
                results[i]["code"] = others
        if code >= _FIRST_STATELESS:
            return
    for i in range(first, end + 1):
        if not _of_shards(rows[i]["kind"]):
            key = hash_id(rows[i]["id_hi"], rows[i]["id_lo"], np.uint64(book.meta[SEED]))
            _remember(book, rows[i], key, _content(book, rows[i], True), np.int64(results[i]["code"]))


@compiled
def _judge_chain(book: Book, rows: Rows, results: Rows, first: Int, end: Int) -> Int:
    """How many rows are new. The others get their answers; while there are some, the new ones are refused."""
    fresh = np.int64(0)
    seed = np.uint64(book.meta[SEED])
    for i in range(first, end + 1):
        row, result = rows[i], results[i]
        code = np.int64(_NEW)
        if not _of_shards(row["kind"]):
            c = _account_row(book, row["credit"])
            d = _hold_and_payer(book, row, _account_row(book, row["debit"]))[1]
            key = hash_id(row["id_hi"], row["id_lo"], seed)
            code = _judge(book, row, result, d, c, key, _content(book, row, True))
            if code == _NEW and _twice(book, rows, first, i, key):
                code = np.int64(_ID_CONFLICT)
        fresh += code == _NEW
        result["code"] = _CHAIN_REFUSED if code == _NEW else code
    _forget_chain(book, rows, first, end)
    return fresh


@compiled
def _twice(book: Book, rows: Rows, first: Int, i: Int, key: Id) -> Bool:
    """Whether an earlier row of the chain that begins at `first` has the id of row `i`; notes the id."""
    mask = book.chain.shape[0] - 1
    place = np.int64(key & np.uint64(mask))
    while book.chain[place] != 0:
        other = rows[first + np.int64(book.chain[place]) - 1]
        if other["id_lo"] == rows[i]["id_lo"] and other["id_hi"] == rows[i]["id_hi"]:
            return True
        place = (place + 1) & mask
    book.chain[place] = i - first + 1
    return False


@compiled
def _forget_chain(book: Book, rows: Rows, first: Int, end: Int) -> None:
    """Clear what `_twice` has noted."""
    mask = book.chain.shape[0] - 1
    seed = np.uint64(book.meta[SEED])
    for i in range(first, end + 1):
        place = np.int64(hash_id(rows[i]["id_hi"], rows[i]["id_lo"], seed) & np.uint64(mask))
        while book.chain[place] != 0:
            book.chain[place] = 0
            place = (place + 1) & mask


@compiled
def _apply_chained(book: Book, row: Row, result: Row, balance: Row, offset_ns: Int, cut_off: Bool) -> Int:
    kind = row["kind"]
    d, c = _account_row(book, row["debit"]), _account_row(book, row["credit"])
    if cut_off or kind < _DEPOSIT or kind > _HOLD or (kind == _TRANSFER and c == _REMOTE):
        return _NOT_LINKABLE
    if kind == _TRANSFER or kind == _HOLD:
        code = _transfer(book, row, result, balance, d, c, offset_ns, True)
    else:
        code = _rare(book, row, result, balance, d, c, np.int64(-1), True)
    if code == _OK:
        _accepted(book, row, balance, d)
    return code


@inlined
def _blank(balance: Row) -> None:
    balance["debit_posted"] = 0
    balance["debit_pending"] = 0
    balance["credit_posted"] = 0
    balance["credit_pending"] = 0


@compiled
def _look_ahead(book: Book, rows: Rows, start: Int) -> None:
    """Find the accounts of the next rows and bring near what they will touch, one step of every walk at a time."""
    meta, ids, heads, ahead = book.meta, book.ids, book.id_heads, book.ahead
    count = min(BLOCK, rows.shape[0] - start)
    seed = np.uint64(meta[SEED])
    half = meta[ID_MASK] >> 1
    full = meta[ID_HEAD] - meta[ID_TAIL] >= meta[IDS_MAX]
    for k in range(count):
        row, at = rows[start + k], AHEAD_SIZE * k
        debit = bucket_of(hash_account(row["debit"], seed), meta, ACCOUNTS)
        credit = bucket_of(hash_account(row["credit"], seed), meta, ACCOUNTS)
        key = hash_id(row["id_hi"], row["id_lo"], seed)
        prefetch(book.account_heads, debit, 0)
        prefetch(book.account_heads, credit, 0)
        prefetch(heads, id_bucket(meta, key), 0)
        prefetch(heads, meta[ID_BUCKETS] + (3 * k >> 2) & half, 0)
        if full:
            prefetch(ids, meta[ID_TAIL_SLOT] + k, 0)
        ahead[at] = key
        ahead[at + 1] = debit
        ahead[at + 2] = credit
    for k in range(count):
        at = AHEAD_SIZE * k
        prefetch(book.accounts, np.int64(book.account_heads[np.int64(ahead[at + 1])]) - 1, 0)
        prefetch(book.accounts, np.int64(book.account_heads[np.int64(ahead[at + 2])]) - 1, 0)
        prefetch(ids, np.int64(heads[id_bucket(meta, ahead[at])]) - 1, 0)
        prefetch(ids, np.int64(heads[meta[ID_BUCKETS] + (3 * k >> 2) & half]) - 1, 0)
    for k in range(count):
        row, at = rows[start + k], AHEAD_SIZE * k
        _follow_account(book, np.int64(ahead[at + 1]), row["debit"])
        _follow_account(book, np.int64(ahead[at + 2]), row["credit"])
        _follow_id(ids, np.int64(heads[id_bucket(meta, ahead[at])]))
        _follow_id(ids, np.int64(heads[meta[ID_BUCKETS] + (3 * k >> 2) & half]))
        if full and meta[ID_TAIL_SLOT] + k < meta[IDS_MAX]:
            end = np.int64(ids[meta[ID_TAIL_SLOT] + k]["next"])
            if end < 0:
                prefetch(heads, -end - 1, 0)
    for k in range(count):
        row, at = rows[start + k], AHEAD_SIZE * k
        debit = find_account_in(book.accounts, book.account_heads, np.int64(ahead[at + 1]), row["debit"])
        credit = find_account_in(book.accounts, book.account_heads, np.int64(ahead[at + 2]), row["credit"])
        prefetch(book.accounts, debit, 64)
        _follow_id_on(ids, np.int64(heads[id_bucket(meta, ahead[at])]))
        _follow_id_on(ids, np.int64(heads[meta[ID_BUCKETS] + (3 * k >> 2) & half]))
        ahead[at + 1] = debit + 1
        ahead[at + 2] = credit + 1


@inlined
def _follow_id(ids: Rows, first: Int) -> None:
    if first > 0:
        prefetch(ids, np.int64(ids[first - 1]["next"]) - 1, 0)


@inlined
def _follow_id_on(ids: Rows, first: Int) -> None:
    if first > 0:
        _follow_id(ids, np.int64(ids[first - 1]["next"]))


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
def _run(book: Book, rows: Rows, results: Rows, balances: Rows, offset_ns: int) -> Int:
    n = rows.shape[0]
    i = np.int64(0)
    start = np.int64(-BLOCK)
    while i < n:
        if i >= start + BLOCK:
            _look_ahead(book, rows, i)
            start = i
        end = i
        while end < n - 1 and (np.int64(rows[end]["flags"]) & _LINKED) != 0:
            end += 1
        for k in range(i, end + 1):
            _begin(rows[k], results[k], balances[k])
        if end - i >= CHAIN_MAX:
            for k in range(i, end + 1):
                results[k]["code"] = _INVALID_EVENT
        elif (np.int64(rows[i]["flags"]) & _LINKED) != 0:
            _chain(book, rows, results, balances, i, end, offset_ns)
        else:
            code = _apply_row(book, rows[i], results[i], balances[i], AHEAD_SIZE * (i - start), offset_ns)
            results[i]["code"] = code
        i = end + 1
    return _effects(results)


@compiled
def _effects(results: Rows) -> Int:
    """The three numbers of `Effects` in one."""
    kept, sent, repeated = np.int64(0), np.int64(0), np.int64(0)
    for i in range(results.shape[0]):
        code = np.int64(results[i]["code"])
        replayed = (np.int64(results[i]["flags"]) & _REPLAYED) != 0
        kept += code < _FIRST_STATELESS and not replayed
        sent += code == _IN_FLIGHT and not replayed
        repeated += code == _IN_FLIGHT and replayed
    return kept | sent << _EFFECT_BITS | repeated << (2 * _EFFECT_BITS)


@inlined
def _begin(row: Row, result: Row, balance: Row) -> None:
    result["at"] = row["at"]
    result["detail"] = 0
    result["flags"] = 0
    result["spare"] = 0
    _blank(balance)


# Replay by told codes: records of older rules. What was refused then stays refused, and what was accepted is carried
# out, whatever the rules of today would say.


@compiled
def _tell(book: Book, rows: Rows, codes: Codes, results: Rows, balances: Rows, offset_ns: int) -> None:
    for i in range(rows.shape[0]):
        _begin(rows[i], results[i], balances[i])
        code = np.int64(codes[i])
        made = _carry_out(book, rows[i], results[i], balances[i], code, offset_ns)
        results[i]["code"] = made
        if made == code and code < _FIRST_STATELESS and not _of_shards(rows[i]["kind"]):
            linked = (np.int64(rows[i]["flags"]) & _LINKED) != 0
            chained = linked or (i > 0 and (np.int64(rows[i - 1]["flags"]) & _LINKED) != 0)
            key = hash_id(rows[i]["id_hi"], rows[i]["id_lo"], np.uint64(book.meta[SEED]))
            _remember(book, rows[i], key, _content(book, rows[i], chained), code)


@compiled
def _carry_out(book: Book, row: Row, result: Row, balance: Row, told: Int, offset_ns: Int) -> Int:
    """Do what was told; another code than `told` when the book has not got what it takes."""
    kind = row["kind"]
    if kind == _CREDIT_LEG:
        source = _home(book, row["debit"])
        c = _account_row(book, row["credit"])
        if row["total"] != book.heard[source] + 1 or (told == _OK and c < 0):
            return _LEG_OUT_OF_ORDER
        _do_leg(book, row, balance, source, c, _confirmed_by(row, book.heard[source]), told)
        return told
    if told > _IN_FLIGHT:
        return told
    if _of_shards(kind):
        return _outcome(book, row, result, balance)
    c = _account_row(book, row["credit"])
    h, d = _hold_and_payer(book, row, _account_row(book, row["debit"]))
    if h < 0 and (kind == _POST or kind == _VOID):
        return _NOT_HELD
    if d < 0 and kind != _OPEN and kind != _DEPOSIT and kind != _BIND:
        return _UNKNOWN_DEBIT_ACCOUNT
    made = _do(book, row, result, balance, d, c, h, offset_ns)
    if made == told:
        _accepted(book, row, balance, d)
    return made


@compiled
def _do(book: Book, row: Row, result: Row, balance: Row, d: Int, c: Int, h: Int, offset_ns: Int) -> Int:
    """The effect of an accepted event, without its rules."""
    kind, at = row["kind"], row["at"]
    if c == _UNKNOWN and (kind == _DEPOSIT or kind == _TRANSFER or kind == _REFUND):
        return _UNKNOWN_CREDIT_ACCOUNT
    if kind == _TRANSFER or kind == _HOLD:
        day, night = _day_night(at, offset_ns, _window(book, d, at))
        if kind == _TRANSFER:
            return _do_transfer(book, row, balance, d, c, day, night)
        _do_hold(book, row, d, day, night)
    elif kind == _DEPOSIT:
        return _pay(book, balance, _SETTLEMENT_ROW, c, row["amount"])
    elif kind == _WITHDRAWAL:
        return _pay(book, balance, d, _SETTLEMENT_ROW, row["amount"])
    elif kind == _POST:
        if _account_row(book, book.holds[h]["credit"]) == _UNKNOWN:
            return _UNKNOWN_CREDIT_ACCOUNT
        return _do_post(book, row, result, balance, h)
    elif kind == _VOID:
        _do_void(book, result, h)
    elif kind == _REFUND:
        return _do_refund(book, row, result, balance, d, c)
    elif kind == _OPEN:
        _do_open(book, row)
    elif kind == _CLOSE:
        book.accounts[d]["status"] = _CLOSED
    elif kind == _SET_LIMITS:
        return _set_limits(book, row, d)
    elif kind == _FREEZE:
        book.accounts[d]["status"] = _FROZEN
    elif kind == _UNFREEZE:
        book.accounts[d]["status"] = _ACTIVE
    return _OK


class Effects(NamedTuple):
    """How many rows of a batch had which effect."""

    kept: int
    """Those that a record must have: not one that changed nothing (a repeat, a stateless refusal). A chain's are kept
    all or none."""
    sent: int
    """Those newly in flight."""
    repeated: int
    """Those that repeat what is in flight."""


def apply(book: Book, rows: Rows, results: Rows, balances: Rows, utc_offset_s: int) -> Effects:
    """Apply stamped events in order.

    Args:
        book: changed in place.
        rows: (n,) EVENT, `at` in ns and strictly increasing over all batches of this book.
        results: (n,) RESULT, overwritten.
        balances: (n,) BALANCE, overwritten. Zero for a refusal and for a replay; the debit side is given for every
            accepted event with an account on that side, the credit side when money arrived there.
        utc_offset_s: local time minus UTC, for days and nights of limits.

    Raises:
        ValueError: more rows than 2^20 - 1, or not as many results and balances.
    """
    rows = _checked(rows, results, balances)
    numbers = _apply_rows(book, rows, results, balances, utc_offset_s * 10**9)
    return Effects(numbers & _EFFECT_MASK, numbers >> _EFFECT_BITS & _EFFECT_MASK, numbers >> (2 * _EFFECT_BITS))


def apply_told(book: Book, rows: Rows, codes: Codes, results: Rows, balances: Rows, utc_offset_s: int) -> None:
    """Replay a record of older rules: as `apply`, but by the codes, (n,) uint16, that it tells.

    `results` tell another code where the book lacks what the told one takes (an account, a hold).
    """
    rows = _checked(rows, results, balances)
    _tell_rows(book, rows, np.ascontiguousarray(codes, np.uint16), results, balances, utc_offset_s * 10**9)


def _checked(rows: Rows, results: Rows, balances: Rows) -> Rows:
    rows = np.ascontiguousarray(rows) if rows.flags.writeable else rows.copy()  # one compiled form serves all callers
    if rows.dtype != EVENT or results.dtype != RESULT or balances.dtype != BALANCE:
        raise TypeError("rows, results and balances must be EVENT, RESULT and BALANCE")
    if len(results) != len(rows) or len(balances) != len(rows) or len(rows) > _EFFECT_MASK:
        raise ValueError("results and balances must be as long as rows, and those not too many")
    return rows


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
        answer["posted"] = a["posted"]
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
    modules = (book_module, id_memory_module, compiled_module, events)
    files = [Path(__file__), *(Path(str(module.__file__)) for module in modules)]
    content = b"".join(file.read_bytes() for file in files)
    return int.from_bytes(hashlib.blake2b(content, digest_size=7).digest(), "big")


def _entry_points(source: int) -> tuple[Callable[..., int], ...]:
    """What Python calls. Numba keeps compiled code by the entry point's own file and the variables it closes over:
    without `source` among them, a change to another module would leave old rules in the cache."""

    @entry_point
    def apply_rows(book: Book, rows: Rows, results: Rows, balances: Rows, offset_ns: int) -> int:
        effects = _run(book, rows, results, balances, offset_ns)
        return effects if source >= 0 else -1  # it always is

    @entry_point
    def tell_rows(book: Book, rows: Rows, codes: Codes, results: Rows, balances: Rows, offset_ns: int) -> int:
        _tell(book, rows, codes, results, balances, offset_ns)
        return source

    @entry_point
    def read_rows(book: Book, ids: npt.NDArray[np.uint64], actors: npt.NDArray[np.uint64], now: int, out: Rows) -> int:
        _read(book, ids, actors, now, out)
        return source

    @entry_point
    def find_flights(book: Book, rows: Rows, results: Rows, numbers: Words, places: Words, legs: Rows) -> int:
        _find_flights(book, rows, results, numbers, places, legs)
        return source

    @entry_point
    def make_legs(flights: Rows, legs: Rows) -> int:
        for i in range(flights.shape[0]):
            _make_leg(flights[i], legs[i])
        return source

    points = (apply_rows, tell_rows, read_rows, find_flights, make_legs)
    if inspect.isfunction(apply_rows):  # not compiled: NumPy would warn that hashes wrap
        quiet = np.errstate(over="ignore")
        return tuple(quiet(point) for point in points)
    return points


@compiled
def _find_flights(book: Book, rows: Rows, results: Rows, numbers: Words, places: Words, legs: Rows) -> None:
    """The legs of the rows that are newly in flight. Their flights are the newest of all, so they are counted back
    from `numbers`, the last one to each partition."""
    k = places.shape[0]
    for i in range(rows.shape[0] - 1, -1, -1):
        if results[i]["code"] == _IN_FLIGHT and (np.int64(results[i]["flags"]) & _REPLAYED) == 0:
            k -= 1
            row = rows[i]
            credit = row["credit"]
            if row["kind"] == _POST:
                credit = book.holds[_find_hold(book, row)]["credit"]
            home = _home(book, credit)
            places[k] = i
            _make_leg(book.flights[_find_flight(book, np.uint64(home), np.uint64(numbers[home]))], legs[k])
            numbers[home] -= 1


@inlined
def _make_leg(flight: Row, leg: Row) -> None:
    leg["kind"] = _CREDIT_LEG
    leg["id_hi"] = flight["id_hi"]
    leg["id_lo"] = flight["id_lo"]
    leg["debit"] = flight["debit"]
    leg["credit"] = flight["credit"]
    leg["amount"] = flight["amount"]
    # For readers of the payee's journal, who show the payment as what it is: its kind, and the hold that a post ends.
    leg["reason"] = flight["kind"]
    if flight["kind"] == _POST:
        leg["ref_hi"] = flight["ref_hi"]
        leg["ref_lo"] = flight["ref_lo"]
    leg["span"] = flight["at"]
    leg["total"] = np.int64(flight["lo"])


_apply_rows, _tell_rows, _read_rows, _newest_flights, _make_legs = _entry_points(_source())


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
    """The outbox: the CREDIT_LEG of every payment whose payee's shard has not been heard, by partition and number."""
    flights = book.flights[: book.meta[FLIGHTS + TOP]]
    flying = flights[flights["kind"] != 0]
    legs = np.zeros(len(flying), EVENT)
    _make_legs(flying[np.lexsort((flying["lo"], flying["hi"]))], legs)
    return legs


def flights_of(book: Book, rows: Rows, results: Rows, count: int) -> tuple[npt.NDArray[np.int64], Rows]:
    """What of the batch applied last has just gone in flight, `count` rows (`Effects.sent`).

    Returns:
        (count,) their places in `rows`, and (count,) EVENT, the CREDIT_LEG of each.
    """
    places, legs = np.empty(count, np.int64), np.zeros(count, EVENT)
    _newest_flights(book, np.ascontiguousarray(rows), results, book.sent.copy(), places, legs)
    return places, legs


def sent(book: Book) -> npt.NDArray[np.int64]:
    """(partitions,) how many payments ever went to each."""
    return book.sent.copy()
