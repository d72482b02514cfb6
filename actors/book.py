"""The memory of one partition: accounts, remembered ids, holds, money in flight, refunded sums, and their indexes.

Every array is reserved once at its full capacity as virtual memory and filled from the front, so growth touches new
pages but never copies. The indexes are linear hashing with chains: one bucket splits per insert, so there is no
rehash either. Row links are stored as row + 1, which makes fresh (zero) pages an empty table.

Ids are remembered in a ring, in the order of their events (`actors/id_memory.py`).

The rules that change a book are in `actors/ledger.py`; here is only what holds it, saves it and proves it sound.
"""

from __future__ import annotations

import hashlib
import mmap
import secrets
import sys
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from actors.compiled import Bool, Id, Int, Links, Rows, Words, compiled, entry_point, inlined
from actors.id_memory import (
    BUCKETS_PER_ID,
    ID_BASE,
    ID_BASE_MAX,
    ID_BUCKETS,
    ID_HEAD,
    ID_HORIZON,
    ID_MASK,
    ID_ROW,
    ID_SKEW,
    ID_TAIL,
    ID_WINDOW,
    IDS_MAX,
    TIME_HEAD,
    TIME_ROW,
    TIME_TAIL,
    forget_oldest,
    live_slots,
    live_times,
    oldest_time,
    place,
)
from storage.events import FIRST_ACCOUNT, SETTLEMENT, SLOTS, TRANSIT, AccountStatus, Kind

ACCOUNT_ROW: Final = np.dtype(
    [
        # Two cache lines: a payee needs the first, a payer both.
        ("id", np.uint64),
        ("owner", np.uint64),
        ("posted", np.int64),  # the balance; of settlement and transit modulo 2^64, so they are never full
        ("flying", np.int64),  # sum of its payments in flight: what may come back must always fit
        ("debits_pending", np.int64),
        ("day_sum", np.int64),  # sent on local day `day`, centavos
        ("day", np.uint16),  # days since 1970, low 16 bits: only ever compared for equality
        ("night", np.uint16),  # the day on which the night of `night_sum` began
        ("status", np.uint16),  # AccountStatus
        ("waits", np.uint16),  # which columns of RAISE_ROW are set: RAISE_...
        ("in_flight", np.int32),  # payments that wait for a payee's shard
        ("next", np.int32),
        ("night_sum", np.int64),
        ("per_transfer", np.int64),
        ("daily", np.int64),
        ("nightly", np.int64),
        ("window", np.int32),  # night: from_minute << 16 | to_minute
        ("spare", np.uint8, (28,)),
    ]
)
RAISE_ROW: Final = np.dtype(
    [
        ("per_transfer", np.int64),
        ("per_transfer_at", np.int64),  # in force from then on, ns
        ("daily", np.int64),
        ("daily_at", np.int64),
        ("nightly", np.int64),
        ("nightly_at", np.int64),
        ("window", np.int64),
        ("window_at", np.int64),
    ]
)
"""Limits that were raised but wait. One row beside each account; memory only where one was ever raised."""
RAISE_PER_TRANSFER: Final = 1
RAISE_DAILY: Final = 2
RAISE_NIGHTLY: Final = 4
RAISE_WINDOW: Final = 8

HOLD_ROW: Final = np.dtype(
    [
        ("hi", np.uint64),
        ("lo", np.uint64),
        ("debit", np.uint64),
        ("credit", np.uint64),
        ("amount", np.int64),
        ("expires_at", np.int64),
        ("account", np.int32),  # row of the debit account
        ("day", np.int32),  # counted in this day's and this night's sum; -1 = not counted
        ("night", np.int32),
        ("heap", np.int32),  # place in the heap of expiries
        ("state", np.int32),  # FREE, HELD, POSTING
        ("next", np.int32),
    ]
)
FLIGHT_ROW: Final = np.dtype(
    [
        ("hi", np.uint64),  # the payee's partition
        ("lo", np.uint64),  # the payment's number among those to that partition
        ("id_hi", np.uint64),
        ("id_lo", np.uint64),
        ("ref_hi", np.uint64),  # the hold of a post, the original of a refund
        ("ref_lo", np.uint64),
        ("debit", np.uint64),
        ("credit", np.uint64),
        ("amount", np.int64),
        ("at", np.int64),  # of the debit, ns
        ("use", np.int64),  # which use of its id it is: its number in the memory of ids
        ("ref_at", np.int64),  # of a refund: the original's stamp, ns
        ("account", np.int32),
        ("day", np.int32),
        ("night", np.int32),
        ("kind", np.int32),  # Kind; 0 = a free row
        ("next", np.int32),
    ]
)
REFUND_ROW: Final = np.dtype(
    [
        ("hi", np.uint64),
        ("lo", np.uint64),
        ("at", np.int64),  # the original's stamp: its id may have been used before
        ("refunded", np.int64),
        ("next", np.int32),
    ]
)
REFUSAL_ROW: Final = np.dtype(
    [
        ("hi", np.uint64),  # the payer's partition
        ("lo", np.uint64),  # the leg's number
        ("code", np.int32),
        ("next", np.int32),
    ]
)
"""A leg that was refused, until the payer's shard has it in its journal."""

FREE: Final = 0
HELD: Final = 1
POSTING: Final = 2
"""A hold whose post is in flight: the payee's refusal would restore it whole, so what is left of it stays on hold."""

# Places in `Book.meta`; the memory of ids has its own (3, 4, 12 to 19, 21, 26 to 29). The words of a table follow one
# another; refunds have a table per generation.
FORMAT: Final = 0
PARTITION: Final = 1
PARTITIONS: Final = 2
REFUND_WINDOW: Final = 5
SEED: Final = 6
CONTENT_SEED: Final = 7
REFUND_GENERATION: Final = 8
TRANSFERS: Final = 9
HEAP: Final = 10
UNDO: Final = 11
CAPACITIES: Final = 20  # six words, in the order of `Capacity`
ACCOUNTS_MAX: Final = 20
HOLDS_MAX: Final = 22
FLIGHTS_MAX: Final = 23
REFUNDS_MAX: Final = 24
OUTBOX_MAX: Final = 25
ACCOUNTS: Final = 32
HOLDS: Final = 40
FLIGHTS: Final = 48
REFUSALS: Final = 56
REFUNDS: Final = 64
META_SIZE: Final = 80
TABLE_SIZE: Final = 8
COUNT: Final = 0  # rows in use
TOP: Final = 1  # rows ever used: the next fresh one
UNUSED: Final = 2  # head of the list of freed rows, row + 1
BUCKETS: Final = 3
MASK: Final = 4

BOOK_FORMAT: Final = 2
ACCOUNT_BUCKETS: Final = 2
"""Buckets per account: 4 bytes each that save every other step along a chain."""
BLOCK: Final = 64
"""Rows looked up ahead of the one that is applied."""
AHEAD_SIZE: Final = 3
"""Words kept of each: the id's hash, and the rows of the debit and the credit account + 1."""
CHAIN_MAX: Final = 1 << 16
"""Rows in one linked chain."""

_HOUR_NS: Final = 3600 * 10**9
_HUGE_PAGES: Final = getattr(mmap, "MADV_HUGEPAGE", None)
_NO_RESERVE: Final = 0x4000 if sys.platform == "linux" else 0x40
_HUGE_FROM_BYTES: Final = 1 << 22
_U32: Final = np.uint64(32)
_U29: Final = np.uint64(29)
_K1: Final = np.uint64(0x9E3779B97F4A7C15)
_K2: Final = np.uint64(0xBF58476D1CE4E5B9)
_K3: Final = np.uint64(0x94D049BB133111EB)


class Capacity(NamedTuple):
    """The most rows of each kind. Virtual memory is reserved for them; only what is used takes memory.

    They decide codes, so they stand in the journal's open record, and may be other ones from the next start on.
    """

    accounts: int = 2**26
    ids: int = 2**28  # beyond, the oldest ones are forgotten before their time
    holds: int = 2**24
    in_flight: int = 2**22  # payments to other shards, and refusals that another shard has not confirmed
    refunds: int = 2**22  # originals, per generation
    outbox: int = 2**18  # of `in_flight`, those to one shard


class Book(NamedTuple):
    """One partition's state, as the arrays that the kernel works on."""

    meta: Words
    accounts: Rows
    raises: Rows
    account_heads: Links
    ids: Rows
    id_heads: Links
    times: Rows
    holds: Rows
    hold_heads: Links
    heap: Links
    flights: Rows
    flight_heads: Links
    refusals: Rows
    refusal_heads: Links
    refunds: Rows
    refund_heads: Links
    sent: Words  # per partition: payments that ever went there
    outbox: Words  # per partition: those in flight
    heard: Words  # per partition: number of its last leg that was decided here
    confirmed: Words  # per partition: up to which number its refusals are forgotten
    undo: Rows
    undo_rows: Words
    chain: Links
    ahead: npt.NDArray[np.uint64]


class Stats(NamedTuple):
    """What an operator sees of a book. `transit` is the balance of money on its way, centavos."""

    accounts: int
    transfers: int
    ids: int
    holds: int
    in_flight: int
    transit: int
    ids_max: int
    oldest_id_ns: int  # stamp of the oldest remembered id; 0 = none is
    horizon_ns: int  # stamp of the newest id that was forgotten before its time; 0 = none was


def _reserve(count: int, dtype: npt.DTypeLike, *, sparse: bool = False) -> npt.NDArray[Any]:
    """`count` zero rows of virtual memory; pages come into being when touched, small ones if use is sparse."""
    size = max(count * np.dtype(dtype).itemsize, mmap.PAGESIZE)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE)
    if not sparse and _HUGE_PAGES is not None and size >= _HUGE_FROM_BYTES:
        memory.madvise(_HUGE_PAGES)  # random access over gigabytes would otherwise miss the TLB each time
    return np.frombuffer(memory, dtype=dtype, count=count)


def _allocate(capacity: Capacity, partitions: int, base: int, used: Mapping[str, int]) -> Book:
    """Arrays for `capacity`, or for what is `used` already, by the names of `Capacity`, where that is more."""
    if max(capacity) >= 2**31 - 1 or min(capacity) < 2:
        raise ValueError("each capacity must be from 2 to 2^31 - 2 rows")
    rows = Capacity(**{name: max(count, used.get(name, 0)) for name, count in capacity._asdict().items()})
    return Book(
        meta=np.zeros(META_SIZE, np.int64),
        accounts=_reserve(rows.accounts, ACCOUNT_ROW),
        raises=_reserve(rows.accounts, RAISE_ROW, sparse=True),
        account_heads=_reserve(ACCOUNT_BUCKETS * rows.accounts, np.int32),
        ids=_reserve(capacity.ids, ID_ROW),
        id_heads=_reserve(max(1 << base, int(capacity.ids * BUCKETS_PER_ID) + 2, used.get("buckets", 0)), np.int32),
        times=_reserve(capacity.ids, TIME_ROW),
        holds=_reserve(rows.holds, HOLD_ROW),
        hold_heads=_reserve(rows.holds, np.int32),
        heap=_reserve(rows.holds, np.int32),
        flights=_reserve(rows.in_flight, FLIGHT_ROW),
        flight_heads=_reserve(rows.in_flight, np.int32),
        refusals=_reserve(rows.in_flight, REFUSAL_ROW),
        refusal_heads=_reserve(rows.in_flight, np.int32),
        refunds=_reserve(2 * rows.refunds, REFUND_ROW),
        refund_heads=_reserve(2 * rows.refunds, np.int32),
        sent=np.zeros(partitions, np.int64),
        outbox=np.zeros(partitions, np.int64),
        heard=np.zeros(partitions, np.int64),
        confirmed=np.zeros(partitions, np.int64),
        undo=_reserve(2 * CHAIN_MAX, ACCOUNT_ROW),
        undo_rows=_reserve(3 * CHAIN_MAX, np.int64),
        chain=_reserve(2 * CHAIN_MAX, np.int32),
        ahead=np.zeros(AHEAD_SIZE * BLOCK, np.uint64),
    )


def new_book(
    partition: int,
    partitions: int,
    *,
    id_window_ns: int = 48 * _HOUR_NS,
    id_skew_ns: int = 5 * 60 * 10**9,
    refund_window_ns: int = 90 * 24 * _HOUR_NS,
    capacity: Capacity = Capacity(),  # noqa: B008 - immutable
    secret: bytes | None = None,
) -> Book:
    """An empty book of `partition` in a ledger of `partitions`, with its settlement and transit accounts.

    `secret`, up to 64 bytes: what is remembered of ids is hashed with it, so books of one ledger can be compared.

    Raises:
        ValueError: `partitions` is not a power of two up to 1024, or a window is not positive.
    """
    if partitions < 1 or partitions > SLOTS or partitions & (partitions - 1) or not 0 <= partition < partitions:
        raise ValueError(f"partition {partition} of {partitions}: the count must be a power of two up to {SLOTS}")
    if id_window_ns <= 0 or id_skew_ns < 0 or refund_window_ns <= 0:
        raise ValueError("windows must be positive")
    base = min(max(capacity.ids.bit_length() - 8, 1), ID_BASE_MAX)
    book = _allocate(capacity, partitions, base, {})
    meta = book.meta
    meta[FORMAT] = BOOK_FORMAT
    meta[PARTITION] = partition
    meta[PARTITIONS] = partitions
    meta[ID_WINDOW] = id_window_ns
    meta[ID_SKEW] = id_skew_ns
    meta[REFUND_WINDOW] = refund_window_ns
    # Clients choose ids: without a secret they could choose colliding ones.
    seeds = hashlib.blake2b(b"ids", key=secret or secrets.token_bytes(32), digest_size=16).digest()
    meta[SEED], meta[CONTENT_SEED] = (int.from_bytes(seeds[at : at + 8], "little") >> 2 for at in (0, 8))
    meta[CAPACITIES : CAPACITIES + len(capacity)] = capacity
    meta[ID_BASE] = base
    meta[ID_BUCKETS] = 1 << base
    meta[ID_MASK] = (2 << base) - 1
    place(meta, book.times)
    for table in (ACCOUNTS, HOLDS, FLIGHTS, REFUSALS, REFUNDS, REFUNDS + TABLE_SIZE):
        meta[table + BUCKETS] = 1
        meta[table + MASK] = 1
    meta[ACCOUNTS + COUNT] = meta[ACCOUNTS + TOP] = 2
    for row, account in enumerate((SETTLEMENT, TRANSIT)):
        book.accounts[row]["id"] = account
        book.accounts[row]["status"] = AccountStatus.OPEN
    return book


def capacity_of(book: Book) -> Capacity:
    """The capacities that are in force."""
    return Capacity(*book.meta[CAPACITIES : CAPACITIES + len(Capacity._fields)].tolist())


# The index. A bucket's number is the low bits of the key's hash: with 2^k <= buckets < 2^(k+1), buckets that were not
# yet split in this round still use k bits.


@inlined
def hash_account(account: Id, seed: Id) -> Id:
    """A keyed hash of an account id."""
    h = (account ^ seed) * _K1
    h = (h ^ (h >> _U32)) * _K2
    return h ^ (h >> _U32)


@inlined
def hash_id(hi: Id, lo: Id, seed: Id) -> Id:
    """A keyed hash of a 128-bit id."""
    h = (hi ^ seed) * _K1
    h = ((h ^ (h >> _U32)) + lo) * _K2
    h = (h ^ (h >> _U29)) * _K3
    return h ^ (h >> _U32)


@inlined
def bucket_of(h: Id, meta: Words, table: Int) -> Int:
    """The bucket in which a key of hash `h` belongs."""
    bucket = np.int64(h & np.uint64(meta[table + MASK]))
    if bucket >= meta[table + BUCKETS]:
        bucket &= meta[table + MASK] >> 1
    return bucket


@inlined
def find_account(meta: Words, accounts: Rows, heads: Links, account: Id) -> Int:
    """The row of a customer's account, or -1."""
    bucket = bucket_of(hash_account(account, np.uint64(meta[SEED])), meta, ACCOUNTS)
    return find_account_in(accounts, heads, bucket, account)


@inlined
def find_account_in(accounts: Rows, heads: Links, bucket: Int, account: Id) -> Int:
    """The same when the bucket is known."""
    row = np.int64(heads[bucket])
    while row != 0:
        if accounts[row - 1]["id"] == account:
            return row - 1
        row = np.int64(accounts[row - 1]["next"])
    return -1


@inlined
def find(meta: Words, table: Int, base: Int, rows: Rows, heads: Links, hi: Id, lo: Id, h: Id) -> Int:
    """The row of id (hi, lo) in the table whose rows and buckets begin at `base`, or -1."""
    row = np.int64(heads[base + bucket_of(h, meta, table)])
    while row != 0:
        at = base + row - 1
        if rows[at]["lo"] == lo and rows[at]["hi"] == hi:
            return at
        row = np.int64(rows[at]["next"])
    return -1


@compiled
def _widen(meta: Words, table: Int) -> None:
    """Count the bucket that was just split off."""
    meta[table + BUCKETS] += 1
    if meta[table + BUCKETS] > meta[table + MASK]:
        meta[table + MASK] = meta[table + MASK] * 2 + 1


@compiled
def _split_accounts(meta: Words, accounts: Rows, heads: Links) -> None:
    seed = np.uint64(meta[SEED])
    mask = np.uint64(meta[ACCOUNTS + MASK])
    new = meta[ACCOUNTS + BUCKETS]
    old = new & (meta[ACCOUNTS + MASK] >> 1)
    row = np.int64(heads[old])
    kept = moved = np.int64(0)
    while row != 0:
        following = np.int64(accounts[row - 1]["next"])
        if np.int64(hash_account(accounts[row - 1]["id"], seed) & mask) == new:
            accounts[row - 1]["next"] = moved
            moved = row
        else:
            accounts[row - 1]["next"] = kept
            kept = row
        row = following
    heads[old] = kept
    heads[new] = moved
    _widen(meta, ACCOUNTS)


@compiled
def add_account(meta: Words, accounts: Rows, heads: Links, account: Id) -> Int:
    """A fresh row for `account`, linked into the index; the caller has made sure that there is room and no such id."""
    row = meta[ACCOUNTS + TOP]
    while meta[ACCOUNTS + BUCKETS] < ACCOUNT_BUCKETS * meta[ACCOUNTS + COUNT]:
        _split_accounts(meta, accounts, heads)
    bucket = bucket_of(hash_account(account, np.uint64(meta[SEED])), meta, ACCOUNTS)
    accounts[row]["id"] = account
    accounts[row]["next"] = heads[bucket]
    heads[bucket] = row + 1
    meta[ACCOUNTS + TOP] += 1
    meta[ACCOUNTS + COUNT] += 1
    return row


@compiled
def _split(meta: Words, table: Int, base: Int, rows: Rows, heads: Links) -> None:
    seed = np.uint64(meta[SEED])
    mask = np.uint64(meta[table + MASK])
    new = meta[table + BUCKETS]
    old = new & (meta[table + MASK] >> 1)
    row = np.int64(heads[base + old])
    kept = moved = np.int64(0)
    while row != 0:
        at = base + row - 1
        following = np.int64(rows[at]["next"])
        if np.int64(hash_id(rows[at]["hi"], rows[at]["lo"], seed) & mask) == new:
            rows[at]["next"] = moved
            moved = row
        else:
            rows[at]["next"] = kept
            kept = row
        row = following
    heads[base + old] = kept
    heads[base + new] = moved
    _widen(meta, table)


@compiled
def add(meta: Words, table: Int, base: Int, rows: Rows, heads: Links, hi: Id, lo: Id, h: Id) -> Int:
    """A row for id (hi, lo), freed ones first, linked into the index; the caller has made sure that there is room."""
    unused = meta[table + UNUSED]
    if unused != 0:
        row = unused - 1
        meta[table + UNUSED] = rows[base + row]["next"]
    else:
        row = meta[table + TOP]
        meta[table + TOP] += 1
    meta[table + COUNT] += 1
    if meta[table + BUCKETS] < meta[table + COUNT]:
        _split(meta, table, base, rows, heads)
    bucket = base + bucket_of(h, meta, table)
    at = base + row
    rows[at]["hi"] = hi
    rows[at]["lo"] = lo
    rows[at]["next"] = heads[bucket]
    heads[bucket] = row + 1
    return at


@compiled
def remove(meta: Words, table: Int, rows: Rows, heads: Links, at: Int) -> None:
    """Unlink row `at` of a table with base 0 and put it on the list of unused rows."""
    h = hash_id(rows[at]["hi"], rows[at]["lo"], np.uint64(meta[SEED]))
    bucket = bucket_of(h, meta, table)
    row = np.int64(heads[bucket])
    if row == at + 1:
        heads[bucket] = rows[at]["next"]
    else:
        while np.int64(rows[row - 1]["next"]) != at + 1:
            row = np.int64(rows[row - 1]["next"])
        rows[row - 1]["next"] = rows[at]["next"]
    rows[at]["next"] = meta[table + UNUSED]
    meta[table + UNUSED] = at + 1
    meta[table + COUNT] -= 1


@compiled
def clear(meta: Words, table: Int, base: Int, heads: Links) -> None:
    """Empty a table at once: a bucket's head is written when it is split off, so none but the first needs clearing."""
    meta[table + COUNT] = meta[table + TOP] = meta[table + UNUSED] = 0
    meta[table + BUCKETS] = meta[table + MASK] = 1
    heads[base] = 0


# The heap of expiries: hold rows by (expires_at, row). Each hold knows its place, so leaving is O(log n) and the heap
# holds nothing stale.


@compiled
def _before(holds: Rows, a: Int, b: Int) -> Bool:
    first = holds[a]["expires_at"]
    second = holds[b]["expires_at"]
    return first < second or (first == second and a < b)


@compiled
def _rise(heap: Links, holds: Rows, place: Int, hold: Int) -> Int:
    while place > 0:
        parent = (place - 1) >> 1
        above = np.int64(heap[parent])
        if not _before(holds, hold, above):
            break
        heap[place] = above
        holds[above]["heap"] = place
        place = parent
    heap[place] = hold
    holds[hold]["heap"] = place
    return place


@compiled
def _sink(heap: Links, holds: Rows, size: Int, place: Int, hold: Int) -> None:
    while True:
        child = 2 * place + 1
        if child >= size:
            break
        if child + 1 < size and _before(holds, np.int64(heap[child + 1]), np.int64(heap[child])):
            child += 1
        below = np.int64(heap[child])
        if not _before(holds, below, hold):
            break
        heap[place] = below
        holds[below]["heap"] = place
        place = child
    heap[place] = hold
    holds[hold]["heap"] = place


@compiled
def heap_add(meta: Words, heap: Links, holds: Rows, hold: Int) -> None:
    """Let `hold` expire at its `expires_at`."""
    meta[HEAP] += 1
    _rise(heap, holds, meta[HEAP] - 1, hold)


@compiled
def heap_remove(meta: Words, heap: Links, holds: Rows, hold: Int) -> None:
    """`hold` expires no more."""
    meta[HEAP] -= 1
    place = np.int64(holds[hold]["heap"])
    last = np.int64(heap[meta[HEAP]])
    if last != hold:
        place = _rise(heap, holds, place, last)
        _sink(heap, holds, meta[HEAP], place, last)


# Saving and loading.


_REFUND_TABLES: Final = (REFUNDS, REFUNDS + TABLE_SIZE)
_SINGLE: Final = (
    ("accounts", "account_heads", ACCOUNTS),
    ("holds", "hold_heads", HOLDS),
    ("flights", "flight_heads", FLIGHTS),
    ("refusals", "refusal_heads", REFUSALS),
)
_PER_PARTITION: Final = ("sent", "outbox", "heard", "confirmed")


def dump(book: Book) -> dict[str, npt.NDArray[Any]]:
    """A copy of everything in use, indexes included, so that `restore` builds nothing anew."""
    meta = book.meta
    arrays: dict[str, npt.NDArray[Any]] = {"meta": meta.copy(), "heap": book.heap[: meta[HEAP]].copy()}
    waiting = np.flatnonzero(book.accounts["waits"][: meta[ACCOUNTS + TOP]])
    arrays["raise_rows"] = waiting
    arrays["raises"] = book.raises[waiting]
    for name, heads, table in _SINGLE:
        arrays[name] = getattr(book, name)[: meta[table + TOP]].copy()
        arrays[heads] = getattr(book, heads)[: meta[table + BUCKETS]].copy()
    half = len(book.refunds) // 2
    for slot, table in enumerate(_REFUND_TABLES):
        at = slot * half
        arrays[f"refunds_{slot}"] = book.refunds[at : at + meta[table + TOP]].copy()
        arrays[f"refund_heads_{slot}"] = book.refund_heads[at : at + meta[table + BUCKETS]].copy()
    arrays["ids"] = book.ids[live_slots(meta)]
    arrays["id_heads"] = book.id_heads[: meta[ID_BUCKETS]].copy()
    arrays["times"] = live_times(meta, book.times)
    for name in _PER_PARTITION:
        arrays[name] = getattr(book, name).copy()
    return arrays


def restore(arrays: dict[str, npt.NDArray[Any]], capacity: Capacity | None = None) -> Book:
    """The book that `dump` saved, with the capacities that it had, or with others (see `resized`).

    Raises:
        ValueError: an array is missing, or of another type or length than `meta` says.
    """
    kept = np.zeros(META_SIZE, np.int64)
    _fill(arrays, "meta", kept, META_SIZE)
    if kept[FORMAT] != BOOK_FORMAT:
        raise ValueError(f"book format {kept[FORMAT]}, this program reads {BOOK_FORMAT}")
    used = {
        "accounts": int(kept[ACCOUNTS + TOP]),
        "holds": int(kept[HOLDS + TOP]),
        "in_flight": max(int(kept[FLIGHTS + TOP]), int(kept[REFUSALS + TOP])),
        "refunds": max(int(kept[table + TOP]) for table in _REFUND_TABLES),
        "buckets": int(kept[ID_BUCKETS]),
    }
    was = Capacity(*kept[CAPACITIES : CAPACITIES + len(Capacity._fields)].tolist())
    wanted = was if capacity is None else capacity
    book = _allocate(wanted, int(kept[PARTITIONS]), int(kept[ID_BASE]), used)
    meta = book.meta
    meta[:] = kept
    meta[CAPACITIES : CAPACITIES + len(wanted)] = wanted
    _fill(arrays, "heap", book.heap, int(meta[HEAP]))
    for name, heads, table in _SINGLE:
        _fill(arrays, name, getattr(book, name), int(meta[table + TOP]))
        _fill(arrays, heads, getattr(book, heads), int(meta[table + BUCKETS]))
    half = len(book.refunds) // 2
    for slot, table in enumerate(_REFUND_TABLES):
        at = slot * half
        _fill(arrays, f"refunds_{slot}", book.refunds[at : at + half], int(meta[table + TOP]))
        _fill(arrays, f"refund_heads_{slot}", book.refund_heads[at : at + half], int(meta[table + BUCKETS]))
    waiting = np.flatnonzero(book.accounts["waits"][: meta[ACCOUNTS + TOP]])
    if not np.array_equal(arrays.get("raise_rows", ()), waiting):
        raise ValueError("array 'raise_rows' does not name the accounts with a raise that waits")
    raises = np.zeros(len(waiting), RAISE_ROW)
    _fill(arrays, "raises", raises, len(waiting))
    book.raises[waiting] = raises
    for name in _PER_PARTITION:
        _fill(arrays, name, getattr(book, name), int(meta[PARTITIONS]))
    _restore_ids(arrays, book, was.ids)
    return book


def _restore_ids(arrays: dict[str, npt.NDArray[Any]], book: Book, was: int) -> None:
    """Lay the ring out as it was; when its size is another one now, move it, the oldest of too many forgotten."""
    meta, count = book.meta, int(book.meta[ID_HEAD] - book.meta[ID_TAIL])
    same = was == int(meta[IDS_MAX])
    ids = book.ids if same else _reserve(was, ID_ROW)
    heads = book.id_heads if same else _reserve(max(was, int(meta[ID_BUCKETS])), np.int32)
    times = book.times if same else _reserve(was, TIME_ROW)
    held, now = np.zeros(count, ID_ROW), int(meta[IDS_MAX])
    _fill(arrays, "ids", held, count)
    meta[IDS_MAX] = was
    place(meta, times)
    ids[live_slots(meta)] = held
    _fill(arrays, "id_heads", heads, int(meta[ID_BUCKETS]))
    since = np.zeros(int(meta[TIME_HEAD] - meta[TIME_TAIL]), TIME_ROW)
    _fill(arrays, "times", since, len(since))
    times[np.arange(int(meta[TIME_TAIL]), int(meta[TIME_HEAD])) % was] = since
    if same:
        return
    _shrink_ids(meta, ids, heads, times, now)
    slots = live_slots(meta)
    kept, since = ids[slots], live_times(meta, times)
    order = np.zeros(was + 1, np.int64)  # old link -> new link
    meta[IDS_MAX] = now
    place(meta, book.times)
    fresh = live_slots(meta)
    order[slots + 1] = fresh + 1
    links = kept["next"].astype(np.int64)
    kept["next"] = np.where(links > 0, order[np.maximum(links, 0)], links)
    book.ids[fresh] = kept
    buckets = int(meta[ID_BUCKETS])
    book.id_heads[:buckets] = order[heads[:buckets]]
    book.times[np.arange(int(meta[TIME_TAIL]), int(meta[TIME_HEAD])) % now] = since


@entry_point
def _shrink_ids(meta: Words, ids: Rows, heads: Links, times: Rows, most: Int) -> Int:
    while meta[ID_HEAD] - meta[ID_TAIL] > most:
        meta[ID_HORIZON] = oldest_time(meta, ids, times)
        forget_oldest(meta, ids, heads, times)
    return 0


def resized(book: Book, capacity: Capacity) -> Book:
    """The book with other capacities. What is there above a lower one stays; of ids the oldest are forgotten."""
    return book if capacity == capacity_of(book) else restore(dump(book), capacity)


def _fill(arrays: dict[str, npt.NDArray[Any]], name: str, target: npt.NDArray[Any], count: int) -> None:
    source = arrays.get(name)
    if source is None or source.dtype != target.dtype or source.shape != (count,):
        raise ValueError(f"array {name!r} is not {count} rows of {target.dtype}")
    if count > len(target):
        raise ValueError(f"{count} rows of {name!r} exceed the capacity of {len(target)}")
    target[:count] = source


# Proving.


def _exact_sum(values: npt.NDArray[np.int64]) -> int:
    """The sum without wrapping."""
    return (int(np.sum(values >> 32)) << 32) + int(np.sum(values & 0xFFFFFFFF))


def sums(book: Book) -> int:
    """All balances added up, centavos. Anything but 0 is a broken book."""
    total = _exact_sum(book.accounts["posted"][: book.meta[ACCOUNTS + TOP]])
    return (total + 2**63) % 2**64 - 2**63  # settlement and transit count modulo 2^64


@entry_point
def _oldest_id(meta: Words, ids: Rows, times: Rows) -> Int:
    return oldest_time(meta, ids, times)


def stats(book: Book) -> Stats:
    """Counts for operators; settlement and transit are not counted as accounts."""
    meta = book.meta
    ids = int(meta[ID_HEAD] - meta[ID_TAIL])
    with np.errstate(over="ignore"):
        oldest = int(_oldest_id(meta, book.ids, book.times)) if ids else 0
    return Stats(
        accounts=int(meta[ACCOUNTS + COUNT]) - 2,
        transfers=int(meta[TRANSFERS]),
        ids=ids,
        holds=int(meta[HOLDS + COUNT]),
        in_flight=int(meta[FLIGHTS + COUNT]),
        transit=int(book.accounts[1]["posted"]),
        ids_max=int(meta[IDS_MAX]),
        oldest_id_ns=oldest,
        horizon_ns=int(meta[ID_HORIZON]),
    )


_DIGEST_CHUNK: Final = 1 << 20
_DERIVED: Final = {"next", "heap", "account"}
"""Columns that say where a row lies, not what it says."""


def _absorb(digest: hashlib.blake2b, rows: Rows) -> None:
    digest.update(len(rows).to_bytes(8, "little"))
    names = [name for name in rows.dtype.names or () if name not in _DERIVED]
    for start in range(0, len(rows), _DIGEST_CHUNK):
        for name in names:
            digest.update(np.ascontiguousarray(rows[name][start : start + _DIGEST_CHUNK]).tobytes())


def _by_id(rows: Rows) -> Rows:
    names = [name for name in ("at", "lo", "hi") if name in (rows.dtype.names or ())]
    return rows[np.lexsort([rows[name] for name in names])]


def digest(book: Book) -> bytes:
    """32 bytes of the canonical content: equal for books that went through the same history, however often restored."""
    meta = book.meta
    result = hashlib.blake2b(digest_size=32)
    settings = [FORMAT, PARTITION, PARTITIONS, ID_WINDOW, ID_SKEW, REFUND_WINDOW, REFUND_GENERATION, TRANSFERS]
    result.update(meta[[*settings, ID_HEAD, ID_TAIL, ID_HORIZON]].tobytes())
    result.update(meta[CAPACITIES : CAPACITIES + len(Capacity._fields)].tobytes())
    accounts = book.accounts[: meta[ACCOUNTS + TOP]]
    order = np.argsort(accounts["id"])
    _absorb(result, accounts[order])
    _absorb(result, book.raises[order[accounts["waits"][order] != 0]])
    _absorb(result, book.ids[live_slots(meta)])
    _absorb(result, live_times(meta, book.times))
    holds = book.holds[: meta[HOLDS + TOP]]
    _absorb(result, _by_id(holds[holds["state"] != FREE]))
    flights = book.flights[: meta[FLIGHTS + TOP]]
    _absorb(result, _by_id(flights[flights["kind"] != 0]))
    refusals = book.refusals[: meta[REFUSALS + TOP]]
    _absorb(result, _by_id(refusals[refusals["code"] != 0]))
    for name in _PER_PARTITION:
        result.update(getattr(book, name).tobytes())
    for base, used in _generations(meta, len(book.refunds)):
        _absorb(result, _by_id(book.refunds[base : base + used]))
    return result.digest()


def _generations(meta: Words, length: int) -> list[tuple[int, int]]:
    """(base, rows in use) of both generations of refunds, older first."""
    generation = int(meta[REFUND_GENERATION])
    order = ((generation - 1) & 1, generation & 1)
    return [(slot * (length // 2), int(meta[_REFUND_TABLES[slot] + TOP])) for slot in order]


@entry_point
def _chained(meta: Words, table: Int, base: Int, rows: Rows, heads: Links, marks: npt.NDArray[np.uint8]) -> Int:
    """Rows that the index reaches in their right buckets; marks each. -1 = a wrong bucket, a link astray or a loop."""
    reached = 0
    for bucket in range(meta[table + BUCKETS]):
        row = np.int64(heads[base + bucket])
        while row != 0:
            if row < 0 or row > meta[table + TOP] or marks[row - 1] != 0:
                return -1
            at = base + row - 1
            h = hash_id(rows[at]["hi"], rows[at]["lo"], np.uint64(meta[SEED]))
            if bucket_of(h, meta, table) != bucket:
                return -1
            marks[row - 1] = 1
            reached += 1
            row = np.int64(rows[at]["next"])
    return reached


@entry_point
def _chained_accounts(meta: Words, accounts: Rows, heads: Links, marks: npt.NDArray[np.uint8]) -> Int:
    reached = 0
    for bucket in range(meta[ACCOUNTS + BUCKETS]):
        row = np.int64(heads[bucket])
        while row != 0:
            if row <= 2 or row > meta[ACCOUNTS + TOP] or marks[row - 1] != 0:
                return -1
            h = hash_account(accounts[row - 1]["id"], np.uint64(meta[SEED]))
            if bucket_of(h, meta, ACCOUNTS) != bucket:
                return -1
            marks[row - 1] = 1
            reached += 1
            row = np.int64(accounts[row - 1]["next"])
    return reached


def _require(holds: object, why: str) -> None:
    if not holds:
        raise AssertionError(why)


def _check_table(meta: Words, table: int, base: int, rows: Rows, heads: Links, used: npt.NDArray[np.bool_]) -> None:
    """Every used row is in its chain, every other one is on the list of unused rows."""
    name = {HOLDS: "holds", FLIGHTS: "in flight", REFUSALS: "refusals"}.get(table, "refunds")
    top, count, buckets = (int(meta[table + field]) for field in (TOP, COUNT, BUCKETS))
    _require(len(used) == top and int(used.sum()) == count, f"{name}: {count} rows are counted, {used.sum()} are used")
    _require(buckets <= meta[table + MASK] < 2 * buckets, f"{name}: the mask does not fit {buckets} buckets")
    marks = np.zeros(top, np.uint8)
    with np.errstate(over="ignore"):
        reached = _chained(meta, table, base, rows, heads, marks)
    _require(reached == count, f"{name}: the index reaches {reached} of {count} rows")
    _require(bool((marks.astype(bool) == used).all()), f"{name}: the index reaches a freed row")
    unused, row = 0, int(meta[table + UNUSED])
    while row and unused <= top:
        _require(not used[row - 1], f"{name}: a used row is on the list of unused ones")
        unused, row = unused + 1, int(rows[base + row - 1]["next"])
    _require(unused == top - count, f"{name}: {top - count} rows are unused, {unused} are listed")


def _check_accounts(book: Book) -> None:
    meta = book.meta
    accounts = book.accounts[: meta[ACCOUNTS + TOP]]
    customers = accounts[2:]
    _require(sums(book) == 0, f"the sum over all accounts is {sums(book)}")
    for side in ("posted", "flying", "debits_pending"):
        _require(bool((customers[side] >= 0).all()), f"accounts: {side} is negative")
    available = customers["posted"] - customers["debits_pending"]
    _require(bool((available >= 0).all()), "accounts: a customer's available balance is negative")
    _require(bool((customers["posted"] + customers["flying"] >= 0).all()), "accounts: what may come back does not fit")
    _require(bool((customers["id"] >= FIRST_ACCOUNT).all()), "accounts: a customer has a reserved id")
    own = customers["id"] & np.uint64(meta[PARTITIONS] - 1) == np.uint64(meta[PARTITION])
    _require(bool(own.all()), "accounts: one belongs to another partition")
    closed = customers[customers["status"] == AccountStatus.CLOSED]
    idle = (closed["posted"] == 0) & (closed["in_flight"] == 0)
    _require(bool(idle.all()), "accounts: a closed one is not empty")
    marks = np.zeros(len(accounts), np.uint8)
    with np.errstate(over="ignore"):
        reached = _chained_accounts(meta, book.accounts, book.account_heads, marks)
    _require(reached == len(customers), f"accounts: the index reaches {reached} of {len(customers)}")


def _check_holds(book: Book) -> None:
    meta = book.meta
    holds = book.holds[: meta[HOLDS + TOP]]
    used = holds["state"] != FREE
    _check_table(meta, HOLDS, 0, book.holds, book.hold_heads, used)
    heap = book.heap[: meta[HEAP]]
    held = np.flatnonzero(holds["state"] == HELD)
    _require(np.array_equal(np.sort(heap), held), "holds: the heap of expiries does not have exactly the open holds")
    _require(np.array_equal(holds["heap"][heap], np.arange(len(heap))), "holds: a hold's place in the heap is wrong")
    parents = (np.arange(1, len(heap)) - 1) >> 1
    ordered = holds["expires_at"][heap[parents]] <= holds["expires_at"][heap[1:]]
    _require(bool(ordered.all()), "holds: the heap of expiries is out of order")


def _check_pending(book: Book) -> None:
    """What accounts say of holds and flights is what the tables say."""
    meta = book.meta
    accounts = book.accounts[: meta[ACCOUNTS + TOP]]
    holds = book.holds[: meta[HOLDS + TOP]]
    flights = book.flights[: meta[FLIGHTS + TOP]]
    flying = flights[flights["kind"] != 0]
    _check_table(meta, FLIGHTS, 0, book.flights, book.flight_heads, flights["kind"] != 0)
    pending = np.zeros(len(accounts), np.int64)
    live = holds[holds["state"] != FREE]
    np.add.at(pending, live["account"], live["amount"])
    posting = holds[holds["state"] == POSTING]
    by_id = {(int(hi), int(lo)) for hi, lo in zip(posting["hi"], posting["lo"], strict=True)}
    posts = flying[flying["kind"] == Kind.POST]
    on_post = np.array([(int(f["ref_hi"]), int(f["ref_lo"])) in by_id for f in posts], bool)
    _require(int(on_post.sum()) == len(posting), "holds: one is being posted but nothing is in flight")
    np.subtract.at(pending, posts["account"][on_post], posts["amount"][on_post])
    _require(np.array_equal(pending, accounts["debits_pending"]), "accounts: pending is not the sum of the holds")
    in_flight = np.bincount(flying["account"], minlength=len(accounts))
    _require(np.array_equal(in_flight, accounts["in_flight"]), "accounts: a count of what is in flight is wrong")
    amounts = np.zeros(len(accounts), np.int64)
    np.add.at(amounts, flying["account"], flying["amount"])
    _require(np.array_equal(amounts, accounts["flying"]), "accounts: a sum of what is in flight is wrong")
    for rows in (live, flying):
        _require(np.array_equal(accounts["id"][rows["account"]], rows["debit"]), "a row points at another account")


def _check_legs(book: Book) -> None:
    """What a pair of shards keeps fits together."""
    meta = book.meta
    flights, refusals = book.flights[: meta[FLIGHTS + TOP]], book.refusals[: meta[REFUSALS + TOP]]
    flying, refused = flights[flights["kind"] != 0], refusals[refusals["code"] != 0]
    _check_table(meta, REFUSALS, 0, book.refusals, book.refusal_heads, refusals["code"] != 0)
    partitions = int(meta[PARTITIONS])
    homes = flying["hi"].astype(np.int64)
    _require(np.array_equal(np.bincount(homes, minlength=partitions), book.outbox), "an outbox is miscounted")
    _require(bool((flying["lo"].astype(np.int64) <= book.sent[homes]).all()), "a number in flight was never given")
    _require(bool((book.confirmed <= book.heard).all()), "more is confirmed than was heard")
    sources, numbers = refused["hi"].astype(np.int64), refused["lo"].astype(np.int64)
    within = (numbers > book.confirmed[sources]) & (numbers <= book.heard[sources])
    _require(bool(within.all()), "a refusal is kept that was confirmed, or was not heard")


@entry_point
def _check_chains(meta: Words, ids: Rows, heads: Links, marks: npt.NDArray[np.uint8]) -> Int:
    """Ids that the index reaches, newest first in each chain; marks each. -1 = a link astray, or a chain misnamed."""
    reached = 0
    newest = meta[ID_HEAD] - 1
    for bucket in range(meta[ID_BUCKETS]):
        row, before = np.int64(heads[bucket]), np.int64(-1)
        while row > 0:
            age = (newest - row + 1) % meta[IDS_MAX]
            if age <= before or age >= meta[ID_HEAD] - meta[ID_TAIL] or marks[row - 1] != 0:
                return -1
            marks[row - 1] = 1
            reached += 1
            before = age
            row = np.int64(ids[row - 1]["next"])
            if row <= 0 and row != -(bucket + 1):
                return -1
    return reached


def _check_ids(book: Book) -> None:
    meta = book.meta
    count, buckets = int(meta[ID_HEAD] - meta[ID_TAIL]), int(meta[ID_BUCKETS])
    _require(0 <= count <= meta[IDS_MAX], "ids: more than there is room for")
    _require(buckets <= meta[ID_MASK] < 2 * buckets, f"ids: the mask does not fit {buckets} buckets")
    marks = np.zeros(int(meta[IDS_MAX]), np.uint8)
    with np.errstate(over="ignore"):
        reached = _check_chains(meta, book.ids, book.id_heads, marks)
    _require(reached == count, f"ids: the index reaches {reached} of {count}")
    since = live_times(meta, book.times)
    _require(bool((np.diff(since["first"]) > 0).all()), "ids: times out of order")
    _require(not count or int(since["first"][0]) <= meta[ID_TAIL], "ids: the oldest one's time is gone")


def check(book: Book) -> None:
    """Prove the book sound; O(size of the book).

    Raises:
        AssertionError: names the invariant that does not hold.
    """
    meta = book.meta
    _require(meta[UNDO] == 0, "a linked chain was left open")
    _check_accounts(book)
    _check_holds(book)
    _check_pending(book)
    _check_legs(book)
    _check_ids(book)
    for (base, used), slot in zip(_generations(meta, len(book.refunds)), (1, 0), strict=True):
        table = _REFUND_TABLES[int(meta[REFUND_GENERATION]) - slot & 1]
        _check_table(meta, table, base, book.refunds, book.refund_heads, np.ones(used, bool))
        _require(bool((book.refunds[base : base + used]["refunded"] >= 0).all()), "refunds: a sum is negative")
