"""The memory of one partition: accounts, remembered ids, holds, money in flight, refunded sums, and their indexes.

Every array is reserved once at its full capacity as virtual memory and filled from the front, so growth touches new
pages but never copies. The indexes are linear hashing with chains: one bucket splits per insert, so there is no
rehash either. Row links are stored as row + 1, which makes fresh (zero) pages an empty table.

The rules that change a book are in `actors/ledger.py`; here is only what holds it, saves it and proves it sound.
"""

from __future__ import annotations

import hashlib
import mmap
import secrets
import sys
from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar, cast

import numpy as np
import numpy.typing as npt
from llvmlite import ir  # type: ignore[import-untyped]
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, overload
from numba.np import arrayobj

from storage.events import FIRST_ACCOUNT, SETTLEMENT, SLOTS, TRANSIT, AccountStatus, Kind

Rows: TypeAlias = npt.NDArray[np.void]
Links: TypeAlias = npt.NDArray[np.int32]
Words: TypeAlias = npt.NDArray[np.int64]
_njit: Any = njit  # its stubs do not know every option
F = TypeVar("F", bound=Callable[..., Any])
Row: TypeAlias = Any
"""One record of a structured array; NumPy has no type for it that knows its fields."""
Int: TypeAlias = Any
"""An int64 in compiled code; without the compiler an int or an np.int64, as it comes."""
Bool: TypeAlias = Any
"""Likewise a bool or an np.bool."""
Id: TypeAlias = Any
"""A uint64: an account id, half of an event's id, or a hash."""

ACCOUNT_ROW: Final = np.dtype(
    [
        # Two cache lines: a payee needs the first, a payer both.
        ("id", np.uint64),
        ("owner", np.uint64),
        ("debits_posted", np.int64),
        ("credits_posted", np.int64),
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

ID_ROW: Final = np.dtype(
    [
        ("next", np.int32),  # beside the key: a walk along a chain mostly touches one cache line per row
        ("hi", np.uint64),
        ("lo", np.uint64),
        ("at", np.int64),
        ("word", np.uint64),  # 48 bits of content check << 16 | code
    ]
)
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
        ("hi", np.uint64),
        ("lo", np.uint64),
        ("ref_hi", np.uint64),  # the hold of a post, the original of a refund
        ("ref_lo", np.uint64),
        ("debit", np.uint64),
        ("credit", np.uint64),
        ("amount", np.int64),
        ("at", np.int64),  # of the debit, ns
        ("account", np.int32),
        ("day", np.int32),
        ("night", np.int32),
        ("kind", np.int32),  # Kind; 0 = a free row
        ("next", np.int32),
    ]
)
REFUND_ROW: Final = np.dtype([("hi", np.uint64), ("lo", np.uint64), ("refunded", np.int64), ("next", np.int32)])

FREE: Final = 0
HELD: Final = 1
POSTING: Final = 2
"""A hold whose post is in flight: the payee's refusal would restore it whole, so what is left of it stays on hold."""

# Places in `Book.meta`. A table's words follow one another; ids and refunds have a table per generation.
FORMAT: Final = 0
PARTITION: Final = 1
PARTITIONS: Final = 2
ID_WINDOW: Final = 3
ID_SKEW: Final = 4
REFUND_WINDOW: Final = 5
SEED: Final = 6
ID_GENERATION: Final = 7
REFUND_GENERATION: Final = 8
TRANSFERS: Final = 9
HEAP: Final = 10
UNDO: Final = 11
ACCOUNTS: Final = 16
HOLDS: Final = 24
FLIGHTS: Final = 32
IDS: Final = 40
REFUNDS: Final = 56
META_SIZE: Final = 72
TABLE_SIZE: Final = 8
COUNT: Final = 0  # rows in use
TOP: Final = 1  # rows ever used: the next fresh one
UNUSED: Final = 2  # head of the list of freed rows, row + 1
BUCKETS: Final = 3
MASK: Final = 4

BOOK_FORMAT: Final = 1
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


_PART: Final = {"error_model": "numpy", "_nrt": False, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
_ENTRY: Final = {"error_model": "numpy", "_nrt": False, "cache": True, "nogil": True}


def compiled(function: F) -> F:
    """Compile a part of the kernel. Nothing in it allocates, so it goes without reference counts, 2/3 of the time."""
    return cast(F, _njit(**_PART)(function))


def inlined(function: F) -> F:
    """The same for what is small or hot."""
    return cast(F, _njit(**_PART, forceinline=True)(function))


def entry_point(function: F) -> F:
    """The same for what Python calls: kept on disk, and run without the interpreter's lock."""
    return cast(F, _njit(**_ENTRY)(function))


class Capacity(NamedTuple):
    """Rows for which virtual memory is reserved; only what is used takes memory. `ids` and `refunds` per generation."""

    accounts: int = 2**26
    ids: int = 2**28
    holds: int = 2**24
    in_flight: int = 2**22
    refunds: int = 2**22


class Book(NamedTuple):
    """One partition's state, as the arrays that the kernel works on."""

    meta: Words
    accounts: Rows
    raises: Rows
    account_heads: Links
    ids: Rows
    id_heads: Links
    holds: Rows
    hold_heads: Links
    heap: Links
    flights: Rows
    flight_heads: Links
    refunds: Rows
    refund_heads: Links
    undo: Rows
    undo_rows: Words
    ahead: npt.NDArray[np.uint64]


class Stats(NamedTuple):
    """What an operator sees of a book. `transit` is the balance of money on its way, centavos."""

    accounts: int
    transfers: int
    ids: int
    holds: int
    in_flight: int
    transit: int


def _reserve(count: int, dtype: npt.DTypeLike, *, sparse: bool = False) -> npt.NDArray[Any]:
    """`count` zero rows of virtual memory; pages come into being when touched, small ones if use is sparse."""
    size = max(count * np.dtype(dtype).itemsize, mmap.PAGESIZE)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE)
    if not sparse and _HUGE_PAGES is not None and size >= _HUGE_FROM_BYTES:
        memory.madvise(_HUGE_PAGES)  # random access over gigabytes would otherwise miss the TLB each time
    return np.frombuffer(memory, dtype=dtype, count=count)


def _allocate(capacity: Capacity) -> Book:
    if max(capacity) >= 2**31 - 1 or min(capacity) < 2:
        raise ValueError("each capacity must be from 2 to 2^31 - 2 rows")
    return Book(
        meta=np.zeros(META_SIZE, np.int64),
        accounts=_reserve(capacity.accounts, ACCOUNT_ROW),
        raises=_reserve(capacity.accounts, RAISE_ROW, sparse=True),
        account_heads=_reserve(ACCOUNT_BUCKETS * capacity.accounts, np.int32),
        ids=_reserve(2 * capacity.ids, ID_ROW),
        id_heads=_reserve(2 * capacity.ids, np.int32),
        holds=_reserve(capacity.holds, HOLD_ROW),
        hold_heads=_reserve(capacity.holds, np.int32),
        heap=_reserve(capacity.holds, np.int32),
        flights=_reserve(capacity.in_flight, FLIGHT_ROW),
        flight_heads=_reserve(capacity.in_flight, np.int32),
        refunds=_reserve(2 * capacity.refunds, REFUND_ROW),
        refund_heads=_reserve(2 * capacity.refunds, np.int32),
        undo=_reserve(2 * CHAIN_MAX, ACCOUNT_ROW),
        undo_rows=_reserve(3 * CHAIN_MAX, np.int64),
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
) -> Book:
    """An empty book of `partition` in a ledger of `partitions`, with its settlement and transit accounts.

    Raises:
        ValueError: `partitions` is not a power of two up to 1024, or a window is not positive.
    """
    if partitions < 1 or partitions > SLOTS or partitions & (partitions - 1) or not 0 <= partition < partitions:
        raise ValueError(f"partition {partition} of {partitions}: the count must be a power of two up to {SLOTS}")
    if id_window_ns <= 0 or id_skew_ns < 0 or refund_window_ns <= 0:
        raise ValueError("windows must be positive")
    book = _allocate(capacity)
    meta = book.meta
    meta[FORMAT] = BOOK_FORMAT
    meta[PARTITION] = partition
    meta[PARTITIONS] = partitions
    meta[ID_WINDOW] = id_window_ns
    meta[ID_SKEW] = id_skew_ns
    meta[REFUND_WINDOW] = refund_window_ns
    meta[SEED] = secrets.randbits(62)  # clients choose ids: without a secret they could choose colliding ones
    for table in (ACCOUNTS, HOLDS, FLIGHTS, IDS, IDS + TABLE_SIZE, REFUNDS, REFUNDS + TABLE_SIZE):
        meta[table + BUCKETS] = 1
        meta[table + MASK] = 1
    meta[ACCOUNTS + COUNT] = meta[ACCOUNTS + TOP] = 2
    for row, account in enumerate((SETTLEMENT, TRANSIT)):
        book.accounts[row]["id"] = account
        book.accounts[row]["status"] = AccountStatus.OPEN
    return book


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


# Prefetching. A batch touches a dozen random cache lines per row; asking for those of the next rows while one is worked
# on hides most of the waiting.


_make_array: Any = arrayobj.make_array
_declare: Any = cgutils.get_or_insert_function


@intrinsic
def _llvm_prefetch(_context: Any, rows: Any, index: Any, offset: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = _make_array(signature.args[0])(context, builder, arguments[0])
        byte = ir.IntType(8).as_pointer()
        word = ir.IntType(32)
        size = context.get_constant(types.intp, context.get_abi_sizeof(context.get_data_type(signature.args[0].dtype)))
        place = builder.add(builder.mul(arguments[1], size), arguments[2])
        address = builder.gep(builder.bitcast(array.data, byte), [place])
        kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
        function = _declare(builder.module, kind, "llvm.prefetch.p0")
        builder.call(function, [address, word(1), word(3), word(1)])
        return context.get_dummy_value()

    return types.void(rows, types.intp, types.intp), codegen


def prefetch(rows: npt.NDArray[Any], index: Int, offset: Int) -> None:
    """Ask for the cache line of `rows[index]`, `offset` bytes in. Only a hint: without the compiler it does nothing."""


_ask_for: Any = _llvm_prefetch


@overload(prefetch)
def _prefetch(rows: Any, index: Any, offset: Any) -> Any:
    def ask(rows: Any, index: Any, offset: Any) -> None:
        _ask_for(rows, index, offset)

    return ask


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


def _generations(meta: Words, table: int, rows: Rows) -> list[tuple[int, int, int]]:
    """(table, base, rows in use) of both generations, older first."""
    generation = int(meta[ID_GENERATION if table == IDS else REFUND_GENERATION])
    half = len(rows) // 2
    order = ((generation - 1) & 1, generation & 1)
    return [(table + s * TABLE_SIZE, s * half, int(meta[table + s * TABLE_SIZE + TOP])) for s in order]


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
    for name, heads, table in _DOUBLE:
        rows, links = getattr(book, name), getattr(book, heads)
        for slot in (0, 1):
            at, words = slot * (len(rows) // 2), table + slot * TABLE_SIZE
            arrays[f"{name}_{slot}"] = rows[at : at + meta[words + TOP]].copy()
            arrays[f"{heads}_{slot}"] = links[at : at + meta[words + BUCKETS]].copy()
    return arrays


def restore(arrays: dict[str, npt.NDArray[Any]], capacity: Capacity = Capacity()) -> Book:  # noqa: B008 - immutable
    """The book that `dump` saved.

    Raises:
        ValueError: an array is missing, of another type or length than `meta` says, or exceeds the capacity.
    """
    book = _allocate(capacity)
    meta = book.meta
    _fill(arrays, "meta", meta, META_SIZE)
    if meta[FORMAT] != BOOK_FORMAT:
        raise ValueError(f"book format {meta[FORMAT]}, this program reads {BOOK_FORMAT}")
    _fill(arrays, "heap", book.heap, int(meta[HEAP]))
    for name, heads, table in _SINGLE:
        _fill(arrays, name, getattr(book, name), int(meta[table + TOP]))
        _fill(arrays, heads, getattr(book, heads), int(meta[table + BUCKETS]))
    for name, heads, table in _DOUBLE:
        rows, links = getattr(book, name), getattr(book, heads)
        half = len(rows) // 2
        for slot in (0, 1):
            words = table + slot * TABLE_SIZE
            _fill(arrays, f"{name}_{slot}", rows[slot * half :][:half], int(meta[words + TOP]))
            _fill(arrays, f"{heads}_{slot}", links[slot * half :][:half], int(meta[words + BUCKETS]))
    waiting = np.flatnonzero(book.accounts["waits"][: meta[ACCOUNTS + TOP]])
    if not np.array_equal(arrays.get("raise_rows", ()), waiting):
        raise ValueError("array 'raise_rows' does not name the accounts with a raise that waits")
    raises = np.zeros(len(waiting), RAISE_ROW)
    _fill(arrays, "raises", raises, len(waiting))
    book.raises[waiting] = raises
    return book


_SINGLE: Final = (
    ("accounts", "account_heads", ACCOUNTS),
    ("holds", "hold_heads", HOLDS),
    ("flights", "flight_heads", FLIGHTS),
)
_DOUBLE: Final = (("ids", "id_heads", IDS), ("refunds", "refund_heads", REFUNDS))


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
    """All credits minus all debits, centavos. Anything but 0 is a broken book."""
    accounts = book.accounts[: book.meta[ACCOUNTS + TOP]]
    return _exact_sum(accounts["credits_posted"]) - _exact_sum(accounts["debits_posted"])


def stats(book: Book) -> Stats:
    """Counts for operators; settlement and transit are not counted as accounts."""
    meta = book.meta
    transit = book.accounts[1]
    return Stats(
        accounts=int(meta[ACCOUNTS + COUNT]) - 2,
        transfers=int(meta[TRANSFERS]),
        ids=int(meta[IDS + COUNT] + meta[IDS + TABLE_SIZE + COUNT]),
        holds=int(meta[HOLDS + COUNT]),
        in_flight=int(meta[FLIGHTS + COUNT]),
        transit=int(transit["credits_posted"]) - int(transit["debits_posted"]),
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
    return rows[np.lexsort((rows["lo"], rows["hi"]))]


def digest(book: Book) -> bytes:
    """32 bytes of the canonical content: equal for books that went through the same history, however often restored."""
    meta = book.meta
    result = hashlib.blake2b(digest_size=32)
    settings = [FORMAT, PARTITION, PARTITIONS, ID_WINDOW, ID_SKEW, REFUND_WINDOW, ID_GENERATION, REFUND_GENERATION]
    result.update(meta[[*settings, TRANSFERS]].tobytes())
    accounts = book.accounts[: meta[ACCOUNTS + TOP]]
    order = np.argsort(accounts["id"])
    _absorb(result, accounts[order])
    _absorb(result, book.raises[order[accounts["waits"][order] != 0]])
    for _, base, used in _generations(meta, IDS, book.ids):
        _absorb(result, book.ids[base : base + used])  # in the order of their stamps
    holds = book.holds[: meta[HOLDS + TOP]]
    _absorb(result, _by_id(holds[holds["state"] != FREE]))
    flights = book.flights[: meta[FLIGHTS + TOP]]
    _absorb(result, _by_id(flights[flights["kind"] != 0]))
    for _, base, used in _generations(meta, REFUNDS, book.refunds):
        _absorb(result, _by_id(book.refunds[base : base + used]))
    return result.digest()


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
    name = {IDS: "ids", IDS + TABLE_SIZE: "ids", HOLDS: "holds", FLIGHTS: "in flight"}.get(table, "refunds")
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
    for side in ("debits_posted", "credits_posted", "debits_pending"):
        _require(bool((accounts[side] >= 0).all()), f"accounts: {side} is negative")
    available = customers["credits_posted"] - customers["debits_posted"] - customers["debits_pending"]
    _require(bool((available >= 0).all()), "accounts: a customer's available balance is negative")
    _require(bool((customers["id"] >= FIRST_ACCOUNT).all()), "accounts: a customer has a reserved id")
    own = customers["id"] & np.uint64(meta[PARTITIONS] - 1) == np.uint64(meta[PARTITION])
    _require(bool(own.all()), "accounts: one belongs to another partition")
    closed = customers[customers["status"] == AccountStatus.CLOSED]
    idle = (closed["credits_posted"] == closed["debits_posted"]) & (closed["in_flight"] == 0)
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
    for rows in (live, flying):
        _require(np.array_equal(accounts["id"][rows["account"]], rows["debit"]), "a row points at another account")


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
    for table, base, used in _generations(meta, IDS, book.ids):
        rows = book.ids[base : base + used]
        _check_table(meta, table, base, book.ids, book.id_heads, np.ones(used, bool))
        _require(bool((np.diff(rows["at"]) > 0).all()), "ids: not in the order of their stamps")
        _require(bool(((rows["word"] & np.uint64(0xFFFF)) < 64).all()), "ids: an unknown code is remembered")
    for table, base, used in _generations(meta, REFUNDS, book.refunds):
        _check_table(meta, table, base, book.refunds, book.refund_heads, np.ones(used, bool))
        _require(bool((book.refunds[base : base + used]["refunded"] >= 0).all()), "refunds: a sum is negative")
