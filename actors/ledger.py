"""The rules of money: `apply` takes a batch of stamped events to a book and says what became of each.

This is the only place where a balance changes. The same function serves live traffic, recovery and replay, so it reads
no clock and depends on nothing but the book and the rows. Events with a code from `FIRST_STATELESS` on, and replays,
leave the book exactly as it was: they need not be journaled. With NUMBA_DISABLE_JIT=1 it runs as plain Python.

Each event is checked in this order: its form, the caller's right, whether its id was seen before, the id's age, and
then the rules of its kind. A rule function changes the book only after its last refusal.

Arithmetic on money is on int64 and every sum is compared with AMOUNT_MAX before it is made; ids and hashes are uint64.
Numba makes float64 of a mixture of the two, so nothing here mixes them without a cast.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
from numba import config, njit

from actors.book import (
    ACCOUNTS,
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
    PARTITION,
    PARTITIONS,
    POSTING,
    REFUND_GENERATION,
    REFUND_WINDOW,
    REFUNDS,
    SEED,
    TABLE_SIZE,
    TOP,
    TRANSFERS,
    UNDO,
    Book,
    Capacity,
    Row,
    Rows,
    Stats,
    Words,
    add,
    add_account,
    check,
    clear,
    digest,
    dump,
    find,
    find_account,
    hash_id,
    heap_add,
    heap_remove,
    new_book,
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
_LEG_EXPIRED: Final = int(Code.LEG_EXPIRED)
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
_DEFAULT_WINDOW: Final = 1200 << 16 | 360
"""20:00 to 06:00, the Central Bank's night (domain.md, 3)."""
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


@njit(forceinline=True, error_model="numpy")
def _fold(h: np.uint64, value: np.uint64) -> np.uint64:
    h = (h ^ value) * _K
    return h ^ (h >> _U31)


@njit(forceinline=True, error_model="numpy")
def _content(row: Row) -> np.uint64:
    """48 bits of what makes two events with one id the same event. A leg has only its payee and amount in common with
    a copy that the outbox made again after a crash."""
    kind = row["kind"]
    h = _fold(np.uint64(kind), row["credit"])
    h = _fold(h, np.uint64(row["amount"]))
    if kind != _CREDIT_LEG:
        h = _fold(h, row["debit"])
        h = _fold(h, row["ref_hi"])
        h = _fold(h, row["ref_lo"])
        h = _fold(h, row["check"])
        if kind == _HOLD:
            h = _fold(h, np.uint64(row["span"]))
        elif kind == _OPEN or kind == _SET_LIMITS:  # noqa: PLR1714 - Numba compiles comparisons, not sets
            h = _fold(h, np.uint64(row["total"]))
    return h >> _U16


@njit(forceinline=True, error_model="numpy")
def _generation(current: int, width: int, at: int) -> int:
    """`at // width`, without the division while the generation is the current one."""
    start = current * width
    if start <= at and at - start < width:
        return current
    return at // width


@njit(forceinline=True, error_model="numpy")
def _seen(book: Book, hi: np.uint64, lo: np.uint64, h: np.uint64, at: int) -> int:
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


@njit(error_model="numpy")
def _rotate_ids(book: Book, generation: int) -> None:
    meta = book.meta
    half = book.ids.shape[0] >> 1
    for slot in range(2):
        if slot == (generation & 1) or generation > meta[ID_GENERATION] + 1:
            clear(meta, IDS + slot * TABLE_SIZE, slot * half, book.id_heads)
    meta[ID_GENERATION] = generation


@njit(forceinline=True, error_model="numpy")
def _ids_full(book: Book, at: int) -> bool:
    meta = book.meta
    current = meta[ID_GENERATION]
    if meta[IDS + (current & 1) * TABLE_SIZE + COUNT] < book.ids.shape[0] >> 1:
        return False
    return bool(_generation(current, meta[ID_WINDOW] + meta[ID_SKEW], at) == current)


@njit(forceinline=True, error_model="numpy")
def _remember(book: Book, row: Row, h: np.uint64, content: np.uint64, code: int) -> None:
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


@njit(error_model="numpy")
def _recode(book: Book, hi: np.uint64, lo: np.uint64, at: int, code: int) -> None:
    """Change what is remembered of an id, if anything is."""
    entry = _seen(book, hi, lo, hash_id(hi, lo, np.uint64(book.meta[SEED])), at)
    if entry >= 0:
        book.ids[entry]["word"] = (book.ids[entry]["word"] & ~_CODE_MASK) | np.uint64(code)


@njit(forceinline=True, error_model="numpy")
def _age(meta: Words, row: Row) -> int:
    """Refuse an id whose memory may be lost already, or that is made ahead of time."""
    at = row["at"]
    if row["kind"] == _CREDIT_LEG:
        return _LEG_EXPIRED if at - row["span"] > meta[ID_WINDOW] else _OK
    if (row["id_hi"] & _VERSION) == _V7:
        made_ms = np.int64(row["id_hi"] >> _U16)
        if made_ms < -((meta[ID_WINDOW] - at) // _MS_NS):
            return _ID_EXPIRED
        if made_ms > (at + meta[ID_SKEW]) // _MS_NS:
            return _ID_IN_FUTURE
    return _OK


# Limits.


@njit(forceinline=True, error_model="numpy")
def _in_force(now: int, value: int, following: int, following_at: int) -> int:
    return following if following >= 0 and following_at <= now else value


@njit(forceinline=True, error_model="numpy")
def _window(account: Row, now: int) -> int:
    following = np.int64(account["next_window"])
    if following >= 0 and account["next_window_at"] <= now:
        return following
    return np.int64(account["window"])


@njit(forceinline=True, error_model="numpy")
def _day_night(at: int, offset_ns: int, window: int) -> tuple[int, int]:
    """The local day, and the day on which the running night began (-1 outside the window); low 16 bits of each."""
    minutes = (at + offset_ns) // _MINUTE_NS
    day = minutes // _DAY_MINUTES
    minute = minutes - day * _DAY_MINUTES
    first = window >> 16
    end = window & 0xFFFF
    night = np.int64(-1)
    if first < end:
        if first <= minute < end:
            night = day & 0xFFFF
    elif minute >= first:
        night = day & 0xFFFF
    elif minute < end:
        night = (day - 1) & 0xFFFF
    return day & 0xFFFF, night


@njit(forceinline=True, error_model="numpy")
def _within(limit: int, spent: int, amount: int, refusal: int, result: Row) -> int:
    if limit != _NO_LIMIT:
        if amount > limit - spent:
            result["detail"] = max(limit - spent, 0)
            return refusal
    elif spent > _MAX - amount:
        return _OVERFLOW
    return _OK


@njit(forceinline=True, error_model="numpy")
def _check_limits(account: Row, at: int, amount: int, day: int, night: int, result: Row) -> int:
    limit = _in_force(at, account["per_transfer"], account["next_per_transfer"], account["next_per_transfer_at"])
    if amount > limit:
        result["detail"] = limit
        return _LIMIT_PER_TRANSFER
    limit = _in_force(at, account["daily"], account["next_daily"], account["next_daily_at"])
    spent = account["day_sum"] if np.int64(account["day"]) == day else np.int64(0)
    code = _within(limit, spent, amount, _LIMIT_DAILY, result)
    if code == _OK and night >= 0:
        limit = _in_force(at, account["nightly"], account["next_nightly"], account["next_nightly_at"])
        spent = account["night_sum"] if np.int64(account["night"]) == night else np.int64(0)
        code = _within(limit, spent, amount, _LIMIT_NIGHT, result)
    return code


@njit(forceinline=True, error_model="numpy")
def _count(account: Row, amount: int, day: int, night: int) -> None:
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


@njit(error_model="numpy")
def _give_back(account: Row, amount: int, day: int, night: int) -> None:
    """Money that was counted and did not go out counts no more. A moved time zone may have reset a sum: never below 0."""
    if day >= 0 and np.int64(account["day"]) == day:
        account["day_sum"] = max(account["day_sum"] - amount, 0)
    if night >= 0 and np.int64(account["night"]) == night:
        account["night_sum"] = max(account["night_sum"] - amount, 0)


@njit(error_model="numpy")
def _covers(window: int, minute: int) -> bool:
    first = window >> 16
    end = window & 0xFFFF
    if first < end:
        return first <= minute < end
    return minute >= first or minute < end


@njit(error_model="numpy")
def _widens(old: int, new: int) -> bool:
    """Whether every minute of the old window lies in the new one: its ends and the new one's decide."""
    for minute in range(_DAY_MINUTES):
        if _covers(old, minute) and not _covers(new, minute):
            return False
    return True


@njit(error_model="numpy")
def _valid_window(window: int) -> bool:
    first = window >> 16
    end = window & 0xFFFF
    return 0 <= first < _DAY_MINUTES and end <= _DAY_MINUTES and first != end


# Parties, and the money itself.


@njit(forceinline=True, error_model="numpy")
def _account_row(book: Book, account: np.uint64) -> int:
    """The row of a customer's account of this partition, _UNKNOWN or _REMOTE."""
    if account < _FIRST_ACCOUNT or account >= _ACCOUNT_END:
        return _UNKNOWN
    if np.int64(account & np.uint64(book.meta[PARTITIONS] - 1)) != book.meta[PARTITION]:
        return _REMOTE
    return find_account(book.meta, book.accounts, book.account_heads, account)


@njit(forceinline=True, error_model="numpy")
def _check_debit(book: Book, d: int) -> int:
    if d < 0:
        return _UNKNOWN_DEBIT_ACCOUNT
    status = book.accounts[d]["status"]
    if status == _ACTIVE:
        return _OK
    return _DEBIT_ACCOUNT_CLOSED if status == _CLOSED else _DEBIT_ACCOUNT_FROZEN


@njit(forceinline=True, error_model="numpy")
def _check_credit(book: Book, c: int) -> int:
    if c == _REMOTE:
        return _OK
    if c == _UNKNOWN:
        return _UNKNOWN_CREDIT_ACCOUNT
    status = book.accounts[c]["status"]
    if status == _ACTIVE:
        return _OK
    return _CREDIT_ACCOUNT_CLOSED if status == _CLOSED else _CREDIT_ACCOUNT_FROZEN


@njit(forceinline=True, error_model="numpy")
def _available(account: Row) -> int:
    return account["credits_posted"] - account["debits_posted"] - account["debits_pending"]


@njit(forceinline=True, error_model="numpy")
def _room(book: Book, c: int, amount: int) -> int:
    """Whether the credit, or its way out through transit, can be made."""
    if c == _REMOTE:
        if book.meta[FLIGHTS + COUNT] >= book.flights.shape[0]:
            return _BOOK_FULL
        return _OVERFLOW if book.accounts[_TRANSIT_ROW]["credits_posted"] > _MAX - amount else _OK
    return _OVERFLOW if book.accounts[c]["credits_posted"] > _MAX - amount else _OK


@njit(forceinline=True, error_model="numpy")
def _pay(book: Book, row: Row, balance: Row, d: int, c: int, amount: int) -> int:
    """Move money from row `d` to row `c`, or to transit when the payee is elsewhere."""
    book.accounts[d]["debits_posted"] += amount
    if c == _REMOTE:
        book.accounts[_TRANSIT_ROW]["credits_posted"] += amount
        return _IN_FLIGHT
    book.accounts[c]["credits_posted"] += amount
    balance["credit_posted"] = book.accounts[c]["credits_posted"] - book.accounts[c]["debits_posted"]
    balance["credit_pending"] = book.accounts[c]["debits_pending"]
    return _OK


@njit(error_model="numpy")
def _launch(book: Book, row: Row, d: int, credit: np.uint64, amount: int, day: int, night: int) -> None:
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


@njit(error_model="numpy")
def _save(book: Book, account: int) -> None:
    top = book.meta[UNDO]
    book.undo_rows[top] = account
    book.undo[top] = book.accounts[account]
    book.meta[UNDO] = top + 1


@njit(error_model="numpy")
def _save_hold(book: Book, hold: int) -> None:
    top = book.meta[UNDO]
    book.undo_rows[top] = -(hold + 1)
    book.meta[UNDO] = top + 1


@njit(error_model="numpy")
def _undo(book: Book) -> None:
    for at in range(book.meta[UNDO] - 1, -1, -1):
        saved = book.undo_rows[at]
        if saved < 0:
            _drop_hold(book, -saved - 1)
        else:
            book.accounts[saved] = book.undo[at]
    book.meta[UNDO] = 0


# The kinds.


@njit(error_model="numpy")
def _open(book: Book, row: Row) -> int:
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
    new["next_window"] = -1
    new["next_per_transfer"] = -1
    new["next_daily"] = -1
    new["next_nightly"] = -1
    return _OK


@njit(error_model="numpy")
def _close(book: Book, d: int) -> int:
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


@njit(error_model="numpy")
def _freeze(book: Book, d: int, status: int) -> int:
    """Freeze or unfreeze; an account that is so already stays so."""
    if d < 0:
        return _UNKNOWN_DEBIT_ACCOUNT
    if book.accounts[d]["status"] == _CLOSED:
        return _DEBIT_ACCOUNT_CLOSED
    book.accounts[d]["status"] = status
    return _OK


@njit(error_model="numpy")
def _set_limits(book: Book, row: Row, d: int) -> int:
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
    a = book.accounts[d]
    since = at + delay
    if per_transfer >= 0:
        now = _in_force(at, a["per_transfer"], a["next_per_transfer"], a["next_per_transfer_at"])
        raised = per_transfer > now
        a["per_transfer"] = now if raised else per_transfer
        a["next_per_transfer"] = per_transfer if raised else -1
        a["next_per_transfer_at"] = since if raised else 0
    if daily >= 0:
        now = _in_force(at, a["daily"], a["next_daily"], a["next_daily_at"])
        raised = daily > now
        a["daily"] = now if raised else daily
        a["next_daily"] = daily if raised else -1
        a["next_daily_at"] = since if raised else 0
    if nightly >= 0:
        now = _in_force(at, a["nightly"], a["next_nightly"], a["next_nightly_at"])
        raised = nightly > now
        a["nightly"] = now if raised else nightly
        a["next_nightly"] = nightly if raised else -1
        a["next_nightly_at"] = since if raised else 0
    if window >= 0:
        now = _window(a, at)
        waits = not _widens(now, window)
        a["window"] = now if waits else window
        a["next_window"] = window if waits else -1
        a["next_window_at"] = since if waits else 0
    return _OK


@njit(error_model="numpy")
def _deposit(book: Book, row: Row, balance: Row, c: int, chained: bool) -> int:
    amount = row["amount"]
    if amount <= 0:
        return _INVALID_AMOUNT
    code = _check_credit(book, c)
    if code != _OK:
        return code
    if book.accounts[_SETTLEMENT_ROW]["debits_posted"] > _MAX - amount or _room(book, c, amount) != _OK:
        return _OVERFLOW
    if chained:
        _save(book, _SETTLEMENT_ROW)
        _save(book, c)
    return _pay(book, row, balance, _SETTLEMENT_ROW, c, amount)


@njit(error_model="numpy")
def _withdrawal(book: Book, row: Row, balance: Row, d: int, chained: bool) -> int:
    amount = row["amount"]
    if amount <= 0:
        return _INVALID_AMOUNT
    code = _check_debit(book, d)
    if code != _OK:
        return code
    if _available(book.accounts[d]) < amount:
        return _INSUFFICIENT_FUNDS
    code = _room(book, _SETTLEMENT_ROW, amount)
    if code != _OK:
        return code
    if chained:
        _save(book, d)
        _save(book, _SETTLEMENT_ROW)
    return _pay(book, row, balance, d, _SETTLEMENT_ROW, amount)


@njit(forceinline=True, error_model="numpy")
def _check_parties(book: Book, row: Row, d: int, c: int) -> int:
    if row["amount"] <= 0:
        return _INVALID_AMOUNT
    if row["debit"] == row["credit"]:
        return _SAME_ACCOUNT
    code = _check_debit(book, d)
    return code if code != _OK else _check_credit(book, c)


@njit(forceinline=True, error_model="numpy")
def _transfer(book: Book, row: Row, result: Row, balance: Row, d: int, c: int, offset_ns: int, chained: bool) -> int:
    """Transfer and hold: the payments that limits bound."""
    amount, at = row["amount"], row["at"]
    code = _check_parties(book, row, d, c)
    if code != _OK:
        return code
    payer = book.accounts[d]
    day, night = _day_night(at, offset_ns, _window(payer, at))
    code = _check_limits(payer, at, amount, day, night, result)
    if code != _OK:
        return code
    if _available(payer) < amount:
        return _INSUFFICIENT_FUNDS
    if row["kind"] == _HOLD:
        return _hold(book, row, d, day, night, chained)
    code = _room(book, c, amount)
    if code != _OK:
        return code
    if chained:
        _save(book, d)
        _save(book, c)
    _count(payer, amount, day, night)
    if c == _REMOTE:
        _launch(book, row, d, row["credit"], amount, day, night)
    return _pay(book, row, balance, d, c, amount)


@njit(error_model="numpy")
def _hold(book: Book, row: Row, d: int, day: int, night: int, chained: bool) -> int:
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


@njit(error_model="numpy")
def _find_hold(book: Book, row: Row) -> int:
    hi, lo = row["ref_hi"], row["ref_lo"]
    h = hash_id(hi, lo, np.uint64(book.meta[SEED]))
    return find(book.meta, HOLDS, 0, book.holds, book.hold_heads, hi, lo, h)


@njit(error_model="numpy")
def _drop_hold(book: Book, h: int) -> None:
    if book.holds[h]["state"] == HELD:
        heap_remove(book.meta, book.heap, book.holds, h)
    book.holds[h]["state"] = FREE
    remove(book.meta, HOLDS, book.holds, book.hold_heads, h)


@njit(error_model="numpy")
def _release(book: Book, h: int, amount: int) -> None:
    """`amount` of a hold did not go out: it is available and uncounted again, and the hold is over."""
    hold = book.holds[h]
    account = book.accounts[hold["account"]]
    account["debits_pending"] -= amount
    _give_back(account, amount, np.int64(hold["day"]), np.int64(hold["night"]))
    _drop_hold(book, h)


@njit(error_model="numpy")
def _held(book: Book, row: Row, h: int) -> int:
    """Whether hold `h` can be posted or voided."""
    if h < 0 or book.holds[h]["state"] != HELD:
        return _NOT_HELD
    if row["debit"] != _ANY and row["debit"] != book.holds[h]["debit"]:
        return _NOT_HELD
    if row["credit"] != _ANY and row["credit"] != book.holds[h]["credit"]:
        return _NOT_HELD
    return _HOLD_EXPIRED if book.holds[h]["expires_at"] <= row["at"] else _OK


@njit(error_model="numpy")
def _post(book: Book, row: Row, result: Row, balance: Row, h: int) -> int:
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
        code = _room(book, c, amount)
    if code != _OK:
        return code
    result["detail"] = amount
    book.accounts[d]["debits_pending"] -= amount
    code = _pay(book, row, balance, d, c, amount)
    if c == _REMOTE:
        _launch(book, row, d, hold["credit"], amount, -1, -1)
        heap_remove(book.meta, book.heap, book.holds, h)
        hold["state"] = POSTING
    else:
        _release(book, h, hold["amount"] - amount)
    return code


@njit(error_model="numpy")
def _void(book: Book, row: Row, result: Row, h: int) -> int:
    code = _held(book, row, h)
    if code == _OK:
        result["detail"] = book.holds[h]["amount"]
        _release(book, h, book.holds[h]["amount"])
    return code


@njit(error_model="numpy")
def _expire(book: Book, row: Row, result: Row, balance: Row) -> int:
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


@njit(error_model="numpy")
def _find_refunds(book: Book, hi: np.uint64, lo: np.uint64) -> int:
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


@njit(error_model="numpy")
def _add_refund(book: Book, row: Row, refunded: int) -> None:
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


@njit(error_model="numpy")
def _refunds_full(book: Book, at: int) -> bool:
    meta = book.meta
    current = meta[REFUND_GENERATION]
    if meta[REFUNDS + (current & 1) * TABLE_SIZE + COUNT] < book.refunds.shape[0] >> 1:
        return False
    return bool(_generation(current, meta[REFUND_WINDOW], at) == current)


@njit(error_model="numpy")
def _refund(book: Book, row: Row, result: Row, balance: Row, d: int, c: int) -> int:
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
    code = _room(book, c, amount)
    if code != _OK:
        return code
    if _refunds_full(book, row["at"]):
        return _BOOK_FULL
    result["detail"] = row["total"] - refunded - amount
    _add_refund(book, row, refunded + amount)
    if c == _REMOTE:
        _launch(book, row, d, row["credit"], amount, -1, -1)
    return _pay(book, row, balance, d, c, amount)


@njit(error_model="numpy")
def _credit_leg(book: Book, row: Row, balance: Row, c: int) -> int:
    amount = row["amount"]
    if amount <= 0:
        return _INVALID_EVENT
    code = _check_credit(book, c)
    if code != _OK:
        return code
    if book.accounts[_TRANSIT_ROW]["debits_posted"] > _MAX - amount or _room(book, c, amount) != _OK:
        return _OVERFLOW
    return _pay(book, row, balance, _TRANSIT_ROW, c, amount)


@njit(error_model="numpy")
def _land(book: Book, row: Row, result: Row, balance: Row, settled: bool) -> int:
    """Settle or revert what is in flight under the event's id; nothing there is nothing to do."""
    hi, lo = row["id_hi"], row["id_lo"]
    h = hash_id(hi, lo, np.uint64(book.meta[SEED]))
    f = find(book.meta, FLIGHTS, 0, book.flights, book.flight_heads, hi, lo, h)
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


@njit(error_model="numpy")
def _give_money_back(book: Book, f: int, posted: int) -> None:
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


@njit(forceinline=True, error_model="numpy")
def _show_debit(book: Book, balance: Row, d: int) -> None:
    balance["debit_posted"] = book.accounts[d]["credits_posted"] - book.accounts[d]["debits_posted"]
    balance["debit_pending"] = book.accounts[d]["debits_pending"]


@njit(forceinline=True, error_model="numpy")
def _has_form(row: Row, d: int, c: int) -> bool:
    """Whether kind, partition and the reserved sides are as they must be."""
    kind = row["kind"]
    if kind == _TRANSFER or kind == _HOLD or kind == _REFUND or _OPEN <= kind <= _SET_LIMITS:  # noqa: PLR1714
        return d != _REMOTE
    if kind == _DEPOSIT:
        return c != _REMOTE and (row["debit"] == _ANY or row["debit"] == _SETTLEMENT)
    if kind == _WITHDRAWAL:
        return d != _REMOTE and (row["credit"] == _ANY or row["credit"] == _SETTLEMENT)
    if kind == _POST or kind == _VOID:  # noqa: PLR1714
        return d != _REMOTE
    return bool(kind == _CREDIT_LEG and c != _REMOTE)


@njit(forceinline=True, error_model="numpy")
def _valid_id(row: Row) -> bool:
    version = row["id_hi"] & _VERSION
    return bool((version == _V7 or version == _V8) and row["id_lo"] >> _U62 == _VARIANT)  # noqa: PLR1714


@njit(forceinline=True, error_model="numpy")
def _may(book: Book, row: Row, d: int) -> bool:
    """Whether the caller may act on the account: its owner and operators may. Who opens or pays in needs no account."""
    kind = row["kind"]
    if row["actor"] == _ANY or d < 0 or kind == _OPEN or kind == _DEPOSIT or kind == _CREDIT_LEG:  # noqa: PLR1714
        return True
    return bool(book.accounts[d]["owner"] == row["actor"])


@njit(error_model="numpy")
def _rare(book: Book, row: Row, result: Row, balance: Row, d: int, c: int, h: int, chained: bool) -> int:
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


@njit(error_model="numpy")
def _outcome(book: Book, row: Row, result: Row, balance: Row, chained: bool) -> int:
    """The shard's own events: they name what they end, and are not remembered by an id of their own."""
    if chained:
        return _NOT_LINKABLE
    if row["kind"] == _EXPIRE:
        return _expire(book, row, result, balance)
    return _land(book, row, result, balance, row["kind"] == _SETTLE)


@njit(forceinline=True, error_model="numpy")
def _apply_row(book: Book, row: Row, result: Row, balance: Row, offset_ns: int, chained: bool, cut_off: bool) -> int:
    kind = row["kind"]
    result["at"] = row["at"]
    if kind == _EXPIRE or kind == _SETTLE or kind == _REVERT:  # noqa: PLR1714
        return _outcome(book, row, result, balance, chained)
    h = np.int64(-1)
    d = _account_row(book, row["debit"])
    c = _account_row(book, row["credit"])
    if not _has_form(row, d, c):
        return _INVALID_EVENT
    if not _valid_id(row):
        return _INVALID_ID
    if kind == _POST or kind == _VOID:  # noqa: PLR1714
        h = _find_hold(book, row)
        if h >= 0 and row["debit"] == _ANY:
            d = np.int64(book.holds[h]["account"])
    if not _may(book, row, d):
        return _FORBIDDEN
    key = hash_id(row["id_hi"], row["id_lo"], np.uint64(book.meta[SEED]))
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
    elif kind == _TRANSFER or kind == _HOLD:  # noqa: PLR1714
        code = _transfer(book, row, result, balance, d, c, offset_ns, chained)
    else:
        code = _rare(book, row, result, balance, d, c, h, chained)
    if code < _FIRST_STATELESS:
        _remember(book, row, key, content, code)
        if code <= _IN_FLIGHT:
            _accepted(book, row, balance, d)
    return code


@njit(forceinline=True, error_model="numpy")
def _accepted(book: Book, row: Row, balance: Row, d: int) -> None:
    kind = row["kind"]
    if kind == _DEPOSIT:
        _show_debit(book, balance, _SETTLEMENT_ROW)
    elif d >= 0 and kind != _CREDIT_LEG:
        _show_debit(book, balance, d)
    if _DEPOSIT <= kind <= _HOLD or kind == _REFUND:
        book.meta[TRANSFERS] += 1


@njit(error_model="numpy")
def _again(book: Book, result: Row, entry: int, content: np.uint64) -> int:
    """The first answer once more, unless the id now stands for something else."""
    word = book.ids[entry]["word"]
    if word >> _U16 != content:
        return _ID_CONFLICT
    result["at"] = book.ids[entry]["at"]
    result["flags"] = _REPLAYED
    return np.int64(word & _CODE_MASK)


@njit(error_model="numpy")
def _fail_chain(book: Book, rows: Rows, results: Rows, balances: Rows, first: int, failed: int) -> int:
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
        if kind == _EXPIRE or kind == _SETTLE or kind == _REVERT or not _valid_id(row):  # noqa: PLR1714
            continue
        key = hash_id(row["id_hi"], row["id_lo"], seed)
        entry = _seen(book, row["id_hi"], row["id_lo"], key, row["at"])
        if entry >= 0:
            code = _again(book, result, entry, _content(row))
            result["code"] = code if code != _ID_CONFLICT else _LINKED_FAILED
        elif _age(book.meta, row) == _OK and not _ids_full(book, row["at"]):
            _remember(book, row, key, _content(row), _LINKED_FAILED)
    return end + 1


@njit(cache=True, nogil=True, error_model="numpy")
def _apply(book: Book, rows: Rows, results: Rows, balances: Rows, offset_ns: int) -> None:
    n = rows.shape[0]
    chain = np.int64(-1)  # first row of the open chain
    before = np.int64(0)
    i = np.int64(0)
    while i < n:
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
        code = _apply_row(book, row, result, balance, offset_ns, chained, cut_off)
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
    if config.DISABLE_JIT:
        with np.errstate(over="ignore"):  # hashes wrap
            _apply(book, rows, results, balances, utc_offset_s * 10**9)
    else:
        _apply(book, rows, results, balances, utc_offset_s * 10**9)


def stamp(rows: Rows, now_ns: int, last_ns: int) -> int:
    """Stamp a batch from `now_ns` on, one ns apart and after `last_ns` (the stamp of the row before, or 0).

    Returns:
        The stamp of the last row, or `last_ns` when there are none.
    """
    first = max(now_ns, last_ns + 1)
    rows["at"] = np.arange(first, first + len(rows), dtype=np.int64)
    return first + len(rows) - 1 if len(rows) else last_ns


@njit(cache=True, nogil=True, error_model="numpy")
def _read(book: Book, ids: npt.NDArray[np.uint64], actors: npt.NDArray[np.uint64], now: int, out: Rows) -> None:
    for i in range(ids.shape[0]):
        answer = out[i]
        answer["id"] = ids[i]
        if ids[i] == np.uint64(events.SETTLEMENT) or ids[i] == np.uint64(events.TRANSIT):  # noqa: PLR1714
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
        answer["debits_posted"] = a["debits_posted"]
        answer["credits_posted"] = a["credits_posted"]
        answer["debits_pending"] = a["debits_pending"]
        _read_limits(a, answer, now)


@njit(error_model="numpy")
def _read_limits(a: Row, answer: Row, now: int) -> None:
    answer["per_transfer"] = _in_force(now, a["per_transfer"], a["next_per_transfer"], a["next_per_transfer_at"])
    answer["daily"] = _in_force(now, a["daily"], a["next_daily"], a["next_daily_at"])
    answer["night"] = _in_force(now, a["nightly"], a["next_nightly"], a["next_nightly_at"])
    answer["window"] = _window(a, now)
    answer["next_per_transfer"] = answer["next_daily"] = answer["next_night"] = -1
    answer["next_window"] = -1
    if a["next_per_transfer"] >= 0 and a["next_per_transfer_at"] > now:
        answer["next_per_transfer"] = a["next_per_transfer"]
        answer["next_per_transfer_at"] = a["next_per_transfer_at"]
    if a["next_daily"] >= 0 and a["next_daily_at"] > now:
        answer["next_daily"] = a["next_daily"]
        answer["next_daily_at"] = a["next_daily_at"]
    if a["next_nightly"] >= 0 and a["next_nightly_at"] > now:
        answer["next_night"] = a["next_nightly"]
        answer["next_night_at"] = a["next_nightly_at"]
    if a["next_window"] >= 0 and a["next_window_at"] > now:
        answer["next_window"] = a["next_window"]
        answer["next_window_at"] = a["next_window_at"]


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
    with np.errstate(over="ignore"):
        _read(book, wanted, by, now_ns, out)
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
    rows["debit"] = flying["debit"]  # for readers of the payee's journal: whose transfer this answers
    rows["credit"] = flying["credit"]
    rows["amount"] = flying["amount"]
    rows["span"] = flying["at"]
    return rows
