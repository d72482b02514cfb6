"""How the kernel keeps its state: growth without copies, bytes per account and id, dump and restore, damage found."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import pytest

from actors import book as memory
from actors import id_memory, ledger
from loadtests import bench_kernel
from storage.events import BALANCE, EVENT, NO_LIMIT, RESULT, Code, Flag, Kind

Rows = npt.NDArray[np.void]

NOW = 1_790_000_000 * 10**9
HOUR = 3600 * 10**9
SMALL = ledger.Capacity(accounts=4096, ids=2**16, holds=2**12, in_flight=2**12, refunds=2**12, outbox=2**12)


def grown(accounts: int, capacity: ledger.Capacity = SMALL) -> ledger.Book:
    """A book with so many accounts, each opened by an event of its own."""
    book = ledger.new_book(0, 1, capacity=capacity)
    last = 0
    for start in range(0, accounts, 8190):
        rows = bench_kernel.openings(start, min(8190, accounts - start), NOW)
        last, results = bench_kernel.apply(book, rows, NOW, last)
        assert (results["code"] == Code.OK).all()
    return book


def busy(secret: bytes = b"of the ledger") -> ledger.Book:
    """A book in which every table has rows, freed ones too, and a raise waits."""
    book = ledger.new_book(0, 2, capacity=SMALL, secret=secret)
    rows = np.zeros(120, EVENT)
    rows["id_hi"] = NOW // 10**6 << 16 | 0x7000
    rows["id_lo"] = (np.arange(len(rows), dtype=np.uint64) << np.uint64(12)) + np.uint64(1 << 63)
    rows["amount"] = rows["ref_hi"] = rows["ref_lo"] = 1000
    rows["span"], rows["total"] = HOUR, 100
    rows["kind"][:20], rows["debit"][:20] = Kind.OPEN, np.arange(20, dtype=np.uint64) * 2048 + 2048
    rows["total"][:20] = 0
    rows["kind"][20:40], rows["credit"][20:40] = Kind.DEPOSIT, rows["debit"][:20]
    rest = rows[40:]
    rest["kind"] = [Kind.HOLD, Kind.TRANSFER, Kind.REFUND, Kind.SET_LIMITS] * 20
    rest["debit"] = np.tile(rows["debit"][:20], 4)
    rest["credit"] = np.where(rest["kind"] == Kind.TRANSFER, 1025, np.roll(rest["debit"], 3))
    rest["amount"] = 10
    rest["ref_hi"], rest["ref_lo"] = 5, np.arange(80, dtype=np.uint64)
    limits = rest["kind"] == Kind.SET_LIMITS
    rest["amount"][limits], rest["total"][limits] = 9_000, -1
    rest["span"][rest["kind"] == Kind.REFUND] = NOW
    last, results = bench_kernel.apply(book, rows, NOW, 0)
    assert (results["code"] <= Code.IN_FLIGHT).all()
    ends = np.zeros(12, EVENT)
    ends["id_hi"] = rows["id_hi"][0]
    ends["id_lo"] = (np.arange(12, dtype=np.uint64) << np.uint64(12)) + np.uint64((1 << 63) + (1 << 32))
    ends["kind"] = [Kind.VOID, Kind.SETTLE] * 6
    ends["ref_hi"], ends["ref_lo"] = rows["id_hi"][0], rest["id_lo"][[0, 0, 4, 4, 8, 8, 12, 12, 16, 16, 20, 20]]
    ends["ref_hi"][1::2], ends["ref_lo"][1::2] = 1, [1, 2, 3, 4, 5, 6]
    _, results = bench_kernel.apply(book, ends, NOW, last)
    assert (results["code"] == Code.OK).all()
    ledger.check(book)
    return book


@pytest.mark.parametrize("accounts", [0, 1, 2, 3, 5, 17, 1000, 20_000])
def test_every_account_and_id_is_found_at_any_size(accounts: int) -> None:
    book = grown(accounts, SMALL._replace(accounts=2**15))
    ledger.check(book)
    ids = (np.arange(accounts, dtype=np.uint64) + 1) << np.uint64(10)
    assert (ledger.read_accounts(book, ids, np.zeros_like(ids), NOW)["code"] == Code.OK).all()
    assert ledger.stats(book)[:3] == (accounts, 0, accounts)


def test_growth_never_moves_an_array_and_splits_one_bucket_at_a_time() -> None:
    book = ledger.new_book(0, 1, capacity=SMALL._replace(accounts=2**16))
    places = [array.ctypes.data for array in book]
    table = memory.ACCOUNTS + memory.BUCKETS
    before, ids_before = 4, int(book.meta[id_memory.ID_BUCKETS])
    last, _ = bench_kernel.apply(book, bench_kernel.openings(0, 1, NOW), NOW, 0)
    for i in range(1, 40_000):
        last, _ = bench_kernel.apply(book, bench_kernel.openings(i, 1, NOW), NOW, last)
        after, ids_after = int(book.meta[table]), int(book.meta[id_memory.ID_BUCKETS])
        assert after - before <= memory.ACCOUNT_BUCKETS
        assert ids_after - ids_before <= 1
        before, ids_before = after, ids_after
    assert before == 2 * 40_001
    assert ids_before == 40_000 * 3 // 4
    assert [array.ctypes.data for array in book] == places


def test_chains_stay_short() -> None:
    book = grown(20_000, SMALL._replace(accounts=2**15))
    accounts = book.accounts[: book.meta[memory.ACCOUNTS + memory.TOP]]
    not_first = int((accounts["next"] != 0).sum())
    assert not_first < 0.35 * len(accounts)  # with two buckets an account, 1 - (1 - e^-0.5)/0.5 = 0.21 of them


def test_an_account_takes_at_most_200_bytes_and_an_id_at_most_20() -> None:
    account = memory.ACCOUNT_ROW.itemsize + memory.RAISE_ROW.itemsize + 4 * memory.ACCOUNT_BUCKETS
    assert account <= 200
    assert id_memory.ID_ROW.itemsize + 4 * id_memory.BUCKETS_PER_ID <= 20
    assert memory.ACCOUNT_ROW.itemsize % 64 == 0  # cache lines


def test_measured_memory_is_what_the_structures_say() -> None:
    accounts = 400_000
    process = psutil.Process()
    grown(10)  # compiles or loads
    before = process.memory_info().rss
    book = grown(accounts, ledger.Capacity())
    used = process.memory_info().rss - before
    assert ledger.stats(book)[:3] == (accounts, 0, accounts)
    huge_pages = 8 * 2**21  # each array's last page may be empty
    assert used <= accounts * (200 + 20) + 4 * 2**id_memory.ID_BASE_MAX + huge_pages


def test_a_fresh_book_takes_virtual_memory_only() -> None:
    process = psutil.Process()
    before = process.memory_info().rss
    book = ledger.new_book(0, 1)
    assert sum(array.nbytes for array in book) > 10 * 2**30
    assert process.memory_info().rss - before < 16 * 2**20


def test_a_restored_book_is_the_same_book() -> None:
    book = busy()
    copy = ledger.restore(ledger.dump(book))
    ledger.check(copy)
    assert ledger.digest(copy) == ledger.digest(book)
    assert ledger.stats(copy) == ledger.stats(book)
    assert np.array_equal(ledger.in_flight(copy), ledger.in_flight(book))
    ids = book.accounts["id"][: book.meta[memory.ACCOUNTS + memory.TOP]].copy()
    first, second = (ledger.read_accounts(each, ids, np.zeros_like(ids), NOW + 2 * HOUR) for each in (book, copy))
    assert np.array_equal(first, second)


def test_a_dump_does_not_change_with_the_book() -> None:
    book = busy()
    arrays = ledger.dump(book)
    digest = ledger.digest(book)
    bench_kernel.apply(book, ledger.due_holds(book, NOW + 9 * HOUR, 99), NOW + 9 * HOUR, NOW)
    assert ledger.digest(book) != digest
    assert ledger.digest(ledger.restore(arrays)) == digest


def test_the_digest_does_not_know_where_rows_lie() -> None:
    book, grown_to = busy(), busy()
    larger = ledger.resized(grown_to, SMALL._replace(ids=2**17, holds=2**13))
    smaller = ledger.resized(larger, SMALL)
    assert ledger.digest(larger) != ledger.digest(book)  # capacities decide codes, so they are content
    assert ledger.digest(smaller) == ledger.digest(book)


@pytest.mark.parametrize(
    "name", ["meta", "accounts", "id_heads", "ids", "times", "sent", "holds", "heap", "raises", "raise_rows"]
)
def test_a_dump_that_lacks_or_cuts_an_array_is_turned_away(name: str) -> None:
    arrays = ledger.dump(busy())
    with pytest.raises(ValueError, match=name):
        ledger.restore({key: value for key, value in arrays.items() if key != name})
    if len(arrays[name]):
        with pytest.raises(ValueError, match=name):
            ledger.restore({**arrays, name: arrays[name][:-1]})


def test_a_dump_of_another_format_is_turned_away() -> None:
    arrays = ledger.dump(busy())
    arrays["meta"][memory.FORMAT] = 99
    with pytest.raises(ValueError, match="format 99"):
        ledger.restore(arrays)


def test_what_is_there_stays_when_capacities_are_lowered_and_ids_go_from_the_oldest_on() -> None:
    book = busy()
    lower = ledger.Capacity(accounts=4, ids=50, holds=2, in_flight=2, refunds=2, outbox=2)
    less = ledger.resized(book, lower)
    ledger.check(less)
    before, after = ledger.stats(book), ledger.stats(less)
    assert (after.accounts, after.holds, after.in_flight) == (before.accounts, before.holds, before.in_flight)
    assert (after.ids, after.ids_max) == (50, 50)
    assert after.horizon_ns > 0
    more = ledger.resized(less, SMALL)
    ledger.check(more)
    assert ledger.stats(more).ids == 50
    last = int(ledger.stats(book).oldest_id_ns) + 10**9
    for count in (1, 3, 100, 5_000):  # the ring goes round and the index splits on
        rows = bench_kernel.openings(20 + count, count, NOW)
        rows["debit"] *= np.uint64(2)
        rows["id_lo"] = rows["id_lo"] & ~np.uint64(0xFFF)
        last, _ = bench_kernel.apply(less, rows, NOW, last)
        ledger.check(less)


def overspend(accounts: Rows) -> None:
    """Move what a payer has on hold to somebody else."""
    payer = int(np.argmax(accounts["debits_pending"]))
    moved = int(accounts["posted"][payer]) - int(accounts["debits_pending"][payer]) + 1
    accounts["posted"][payer] -= moved
    accounts["posted"][payer + 1] += moved


DAMAGE: list[tuple[str, str, Any]] = [
    ("sum", "accounts", lambda rows: rows["posted"].__setitem__(5, rows["posted"][5] + 1)),
    ("available", "accounts", overspend),
    ("in flight", "accounts", lambda rows: rows["flying"].__setitem__(5, 9)),
    ("outbox", "outbox", lambda counts: counts.__setitem__(1, 3)),
    ("number", "sent", lambda counts: counts.__setitem__(1, 3)),
    ("pending", "accounts", lambda rows: rows["debits_pending"].__setitem__(5, rows["debits_pending"][5] + 1)),
    ("in flight", "accounts", lambda rows: rows["in_flight"].__setitem__(5, 9)),
    ("index", "accounts", lambda rows: rows["next"].__setitem__(5, 6)),
    ("index", "account_heads", lambda heads: heads.__setitem__(slice(None), 0)),
    ("partition", "accounts", lambda rows: rows["id"].__setitem__(5, rows["id"][5] + 1)),
    ("ids", "ids", lambda rows: rows["next"].__setitem__(slice(5, 9), 3)),
    ("ids", "id_heads", lambda heads: heads.__setitem__(slice(None), 0)),
    ("holds", "hold_heads", lambda heads: heads.__setitem__(slice(None), 0)),
    ("heap", "heap", lambda heap: heap.__setitem__(0, heap[1])),
    ("out of order", "holds", lambda rows: rows["expires_at"].__setitem__(rows["heap"] == 0, NOW * 2)),
]


@pytest.mark.parametrize(("words", "name", "damage"), DAMAGE)
def test_damage_is_found_and_named(words: str, name: str, damage: Any) -> None:
    book = busy()
    damage(getattr(book, name))
    with pytest.raises(AssertionError, match=words):
        ledger.check(book)


def test_another_secret_spreads_the_same_ids_another_way() -> None:
    book, other = grown(500), grown(500)
    assert not np.array_equal(book.account_heads[:1000], other.account_heads[:1000])


WITHOUT_COMPILER = """
import numpy as np
from actors import id_memory, ledger
from tests.actors.test_ledger_memory import busy
from tests.model.test_ledger_model import Generator, Partition, START
import random
print(ledger.digest(busy()).hex())
part, dice = Partition(0), random.Random(4)
for step in range(25):
    part.apply(Generator(dice, part, START + step * 10**12).batch(), START + step * 10**12)
print(ledger.digest(part.book).hex())
"""


def run_history(**environment: str) -> str:
    """The digests of two histories, from a process of their own."""
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-W", "error::RuntimeWarning", "-c", WITHOUT_COMPILER]
    done = subprocess.run(
        command, cwd=root, env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    return done.stdout


def test_without_the_compiler_the_kernel_gives_the_same_book() -> None:
    plain = run_history(NUMBA_DISABLE_JIT="1")
    assert len(plain) > 128
    assert plain == run_history()


def test_linked_flag_is_the_only_bit_that_the_kernel_reads() -> None:
    book = grown(2)
    row = np.zeros(1, EVENT)
    row["kind"], row["credit"], row["amount"], row["flags"] = Kind.DEPOSIT, 1024, 5, 0xFFFF & ~Flag.LINKED
    row["id_hi"], row["id_lo"] = NOW // 10**6 << 16 | 0x7000, 1 << 63 | 1 << 40  # in slot 0, as the account
    results, balances = np.zeros(1, RESULT), np.zeros(1, BALANCE)
    ledger.stamp(row, NOW, NOW + 10**6)
    ledger.apply(book, row, results, balances, 0)
    assert results["code"][0] == Code.OK
    assert np.iinfo(np.int64).max == NO_LIMIT
