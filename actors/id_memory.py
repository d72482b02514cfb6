"""The memory of ids: a ring in the order of their events, 19 bytes an id with its index.

An id is remembered for the window. When the ring is full the oldest id makes room before its time: no new event is
ever refused for want of memory; instead the window shrinks, and ids that could have been among the forgotten ones are
refused by their age (`ID_HORIZON`).

Of an id there is kept 62 bits of a keyed hash (20 of them by the place in the index alone), 32 bits of a second one of
the id with the event's content, the result's code, and the time to the µs. Two ids whose 62 bits agree are taken for
one: the later one is refused as a conflict, unless the 32 bits agree as well. Among 627 million ids, Brazil's mean two
days, that befalls one new id in 7 * 10^9: expected over the next two days 0.09 payments refused, 2 * 10^-11 wrongly
called done.

The index is linear hashing with chains, newest first. The last row of a chain names its bucket, and the oldest id of
all is always the last of its chain: so it can be taken out although its own hash is not kept whole.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from actors.compiled import Id, Int, Links, Rows, Words, compiled, inlined

ID_ROW: Final = np.dtype(
    [
        ("next", np.int32),  # the next older row of its chain + 1; of the last one -(bucket + 1)
        ("content", np.uint32),  # second hash, of id and content
        ("word", np.uint64),  # hash from bit ID_BASE on, 42 bits << 22 | µs since the newest time before it << 6 | code
    ]
)
TIME_ROW: Final = np.dtype([("first", np.int64), ("us", np.int64)])
"""From id number `first` on, times are told from `us` on. A new one only when 16 bits do not reach any more."""

# Places in `Book.meta`.
ID_WINDOW: Final = 3
ID_SKEW: Final = 4
ID_HEAD: Final = 12  # number of the next id
ID_TAIL: Final = 13  # and of the oldest that is remembered
ID_HORIZON: Final = 14  # stamp of the newest id that was forgotten before its time, ns; 0 = none was
ID_BUCKETS: Final = 15
ID_MASK: Final = 16
ID_BASE: Final = 17  # bits of a hash that the bucket alone tells
TIME_HEAD: Final = 18
TIME_TAIL: Final = 19
IDS_MAX: Final = 21
ID_HEAD_SLOT: Final = 26  # where in their rings the next id, the oldest, the newest time and the oldest lie: to divide
ID_TAIL_SLOT: Final = 27  # costs more than to remember
TIME_HEAD_SLOT: Final = 28
TIME_TAIL_SLOT: Final = 29

ID_BASE_MAX: Final = 20
BUCKETS_PER_ID: Final = 0.75
_FORGET: Final = 4
"""Most ids whose time is over that one new id clears away: so a long silence makes no pause."""

_TIME_BITS: Final = 16
_TAG_SHIFT: Final = np.uint64(22)
_TAG_KEEP: Final = np.uint64(2**42 - 1)
_CODE_KEEP: Final = np.uint64(63)
_TIME_SHIFT: Final = np.uint64(6)
_TIME_KEEP: Final = np.uint64(0xFFFF)
_US: Final = 1000


@inlined
def id_bucket(meta: Words, h: Id) -> Int:
    """The bucket in which an id of hash `h` belongs."""
    bucket = np.int64(h & np.uint64(meta[ID_MASK]))
    if bucket >= meta[ID_BUCKETS]:
        bucket &= meta[ID_MASK] >> 1
    return bucket


@inlined
def _tag(meta: Words, h: Id) -> Id:
    return (h >> np.uint64(meta[ID_BASE])) & _TAG_KEEP


@inlined
def _number(meta: Words, slot: Int) -> Int:
    """The number of the id that lies at `slot` of the ring."""
    newest = meta[ID_HEAD] - 1
    return newest - (newest - slot) % meta[IDS_MAX]


@compiled
def id_time(meta: Words, ids: Rows, times: Rows, number: Int) -> Int:
    """The stamp of id `number`, cut to µs, in ns."""
    size = times.shape[0]
    low, high = meta[TIME_TAIL], meta[TIME_HEAD] - 1
    while low < high:
        middle = (low + high + 1) >> 1
        if times[middle % size]["first"] <= number:
            low = middle
        else:
            high = middle - 1
    since = np.int64((ids[number % meta[IDS_MAX]]["word"] >> _TIME_SHIFT) & _TIME_KEEP)
    return (times[low % size]["us"] + since) * _US


@inlined
def find_id(meta: Words, ids: Rows, heads: Links, times: Rows, h: Id, at: Int) -> Int:
    """The slot at which an id of hash `h` is remembered at the time `at`, or -1."""
    tag = _tag(meta, h)
    row = np.int64(heads[id_bucket(meta, h)])
    while row > 0:
        if ids[row - 1]["word"] >> _TAG_SHIFT == tag:
            return _unless_over(meta, ids, times, row - 1, at)
        row = np.int64(ids[row - 1]["next"])
    return -1


@compiled
def _unless_over(meta: Words, ids: Rows, times: Rows, slot: Int, at: Int) -> Int:
    since = at - id_time(meta, ids, times, _number(meta, slot))
    return slot if since <= meta[ID_WINDOW] + meta[ID_SKEW] else -1


@inlined
def id_code(ids: Rows, slot: Int) -> Int:
    """The code that was answered."""
    return np.int64(ids[slot]["word"] & _CODE_KEEP)


@inlined
def slot_time(meta: Words, ids: Rows, times: Rows, slot: Int) -> Int:
    """The stamp of the id at `slot`, cut to µs, in ns."""
    return id_time(meta, ids, times, _number(meta, slot))


@compiled
def recode_id(meta: Words, ids: Rows, number: Int, code: Int) -> None:
    """Change the code of id `number`, if it is still remembered."""
    if meta[ID_TAIL] <= number:
        row = ids[number % meta[IDS_MAX]]
        row["word"] = (row["word"] & ~_CODE_KEEP) | np.uint64(code)


@compiled
def _split(meta: Words, ids: Rows, heads: Links) -> None:
    """Split the next bucket in two; both chains stay in order, and their last rows name them."""
    base, mask = meta[ID_BASE], meta[ID_MASK]
    new = meta[ID_BUCKETS]
    old = new & (mask >> 1)
    bit = np.uint64((mask + 1) >> (base + 1)) << _TAG_SHIFT
    kept = moved = np.int64(0)  # the last row of each so far
    row = np.int64(heads[old])
    heads[old] = heads[new] = 0
    while row > 0:
        following = np.int64(ids[row - 1]["next"])
        if ids[row - 1]["word"] & bit != np.uint64(0):
            if moved == 0:
                heads[new] = row
            else:
                ids[moved - 1]["next"] = row
            moved = row
        else:
            if kept == 0:
                heads[old] = row
            else:
                ids[kept - 1]["next"] = row
            kept = row
        row = following
    if kept != 0:
        ids[kept - 1]["next"] = -(old + 1)
    if moved != 0:
        ids[moved - 1]["next"] = -(new + 1)
    meta[ID_BUCKETS] += 1
    if meta[ID_BUCKETS] > mask:
        meta[ID_MASK] = 2 * mask + 1


@inlined
def _after(slot: Int, size: Int) -> Int:
    """The slot after that one of a ring."""
    return slot + 1 if slot + 1 < size else np.int64(0)


@inlined
def oldest_time(meta: Words, ids: Rows, times: Rows) -> Int:
    """The stamp of the oldest id, cut to µs, in ns."""
    since = np.int64((ids[meta[ID_TAIL_SLOT]]["word"] >> _TIME_SHIFT) & _TIME_KEEP)
    return (times[meta[TIME_TAIL_SLOT]]["us"] + since) * _US


@compiled
def forget_oldest(meta: Words, ids: Rows, heads: Links, times: Rows) -> None:
    """Take the oldest id out."""
    slot = meta[ID_TAIL_SLOT]
    end = np.int64(ids[slot]["next"])
    row = np.int64(heads[-end - 1])
    if row == slot + 1:
        heads[-end - 1] = 0
    else:
        while np.int64(ids[row - 1]["next"]) != slot + 1:
            row = np.int64(ids[row - 1]["next"])
        ids[row - 1]["next"] = end
    meta[ID_TAIL] += 1
    meta[ID_TAIL_SLOT] = _after(slot, meta[IDS_MAX])
    following = _after(meta[TIME_TAIL_SLOT], times.shape[0])
    if meta[TIME_TAIL] + 1 < meta[TIME_HEAD] and times[following]["first"] <= meta[ID_TAIL]:
        meta[TIME_TAIL] += 1
        meta[TIME_TAIL_SLOT] = following


@compiled
def _make_room(meta: Words, ids: Rows, heads: Links, times: Rows, at: Int) -> None:
    kept = meta[ID_WINDOW] + meta[ID_SKEW]
    for _ in range(_FORGET):
        if meta[ID_TAIL] == meta[ID_HEAD] or at - oldest_time(meta, ids, times) <= kept:
            break
        forget_oldest(meta, ids, heads, times)
    if meta[ID_HEAD] - meta[ID_TAIL] >= meta[IDS_MAX]:
        stamp = oldest_time(meta, ids, times)
        if at - stamp <= kept:
            meta[ID_HORIZON] = stamp
        forget_oldest(meta, ids, heads, times)


@inlined
def remember_id(meta: Words, ids: Rows, heads: Links, times: Rows, h: Id, content: Id, at: Int, code: Int) -> None:
    """Remember an event of now: its id's hash, 32 bits of what it is, its stamp and its code."""
    _make_room(meta, ids, heads, times, at)
    number = meta[ID_HEAD]
    us = at // _US
    since = us - times[meta[TIME_HEAD_SLOT]]["us"]
    if meta[ID_TAIL] == number or since >> _TIME_BITS != 0:
        since = np.int64(0)
        place = _after(meta[TIME_HEAD_SLOT], times.shape[0])
        times[place]["first"] = number
        times[place]["us"] = us
        meta[TIME_HEAD_SLOT] = place
        if meta[ID_TAIL] == number:
            meta[TIME_TAIL] = meta[TIME_HEAD]
            meta[TIME_TAIL_SLOT] = place
        meta[TIME_HEAD] += 1
    if 4 * meta[ID_BUCKETS] < 3 * (number - meta[ID_TAIL]):  # BUCKETS_PER_ID
        _split(meta, ids, heads)
    bucket = id_bucket(meta, h)
    slot = meta[ID_HEAD_SLOT]
    row = ids[slot]
    first = heads[bucket]
    row["next"] = first if first != 0 else -(bucket + 1)
    row["word"] = _tag(meta, h) << _TAG_SHIFT | np.uint64(since) << _TIME_SHIFT | np.uint64(code)
    row["content"] = content
    heads[bucket] = slot + 1
    meta[ID_HEAD] = number + 1
    meta[ID_HEAD_SLOT] = _after(slot, meta[IDS_MAX])


def place(meta: Words, times: Rows) -> None:
    """Note where the ends of the rings lie, for rings of this size."""
    meta[ID_HEAD_SLOT], meta[ID_TAIL_SLOT] = meta[ID_HEAD] % meta[IDS_MAX], meta[ID_TAIL] % meta[IDS_MAX]
    meta[TIME_HEAD_SLOT], meta[TIME_TAIL_SLOT] = (meta[TIME_HEAD] - 1) % len(times), meta[TIME_TAIL] % len(times)


def live_slots(meta: Words) -> npt.NDArray[np.int64]:
    """Where the remembered ids lie, oldest first."""
    return np.arange(int(meta[ID_TAIL]), int(meta[ID_HEAD]), dtype=np.int64) % int(meta[IDS_MAX])


def live_times(meta: Words, times: Rows) -> Rows:
    """The times in use, oldest first."""
    return times[np.arange(int(meta[TIME_TAIL]), int(meta[TIME_HEAD]), dtype=np.int64) % len(times)]
