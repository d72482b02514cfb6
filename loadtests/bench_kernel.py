"""How fast the kernel alone is: transfers a second, the worst pause while it grows, bytes per account and per id.

Nothing is durable here and nothing travels: this is the ceiling of one shard. `python -m loadtests.bench_kernel`.
"""

from __future__ import annotations

import gc
import time
from typing import Annotated

import numpy as np
import numpy.typing as npt
import psutil
import typer
from rich.console import Console
from rich.table import Table

from actors import ledger
from actors.id_memory import BUCKETS_PER_ID, ID_ROW
from storage.events import BALANCE, EVENT, NO_LIMIT, RESULT, Code, Kind

BATCH = 8190
NOW_NS = 1_790_000_000 * 10**9
OWNER = 7

Rows = npt.NDArray[np.void]


def fresh_ids(rows: Rows, now_ns: int, rng: np.random.Generator) -> None:
    """Give each row a UUIDv7 of its own, in slot 0 as the accounts here are."""
    rows["id_hi"] = np.uint64(now_ns // 10**6 << 16 | 0x7000) | rng.integers(0, 0xFFF, len(rows), dtype=np.uint64)
    rows["id_lo"] = rng.integers(0, 2**50, len(rows), dtype=np.uint64) << np.uint64(12) | np.uint64(1 << 63)


def openings(start: int, count: int, now_ns: int) -> Rows:
    """Events that open accounts (start + 1) << 10 and on, without limits."""
    rows = np.zeros(count, EVENT)
    fresh_ids(rows, now_ns, np.random.default_rng(start))
    rows["kind"] = Kind.OPEN
    rows["debit"] = (np.arange(start, start + count, dtype=np.uint64) + np.uint64(1)) << np.uint64(10)
    rows["credit"] = OWNER
    rows["amount"] = rows["ref_hi"] = rows["ref_lo"] = NO_LIMIT
    return rows


def apply(book: ledger.Book, rows: Rows, now_ns: int, last_ns: int) -> tuple[int, Rows]:
    """Stamp and apply; the last stamp and the results."""
    results, balances = np.zeros(len(rows), RESULT), np.zeros(len(rows), BALANCE)
    last_ns = ledger.stamp(rows, now_ns, last_ns)
    ledger.apply(book, rows, results, balances, 0)
    return last_ns, results


class Timed:
    """A book, and the time that each batch took in the kernel."""

    def __init__(self, capacity: ledger.Capacity = ledger.Capacity()) -> None:  # noqa: B008 - immutable
        self.book = ledger.new_book(0, 1, capacity=capacity)
        self.results, self.balances = np.zeros(BATCH, RESULT), np.zeros(BATCH, BALANCE)
        self.last_ns = 0
        self.seconds: list[float] = []
        self.cpu_seconds = 0.0

    def apply(self, rows: Rows) -> None:
        self.last_ns = ledger.stamp(rows, NOW_NS, self.last_ns)
        results, balances = self.results[: len(rows)], self.balances[: len(rows)]
        start, cpu = time.perf_counter(), time.thread_time()
        ledger.apply(self.book, rows, results, balances, 0)
        self.cpu_seconds += time.thread_time() - cpu
        self.seconds.append(time.perf_counter() - start)
        if not (results["code"] == Code.OK).all():
            raise RuntimeError(f"refused: {np.unique(results['code'])}")


def open_accounts(timed: Timed, accounts: int) -> None:
    for start in range(0, accounts, BATCH):
        timed.apply(openings(start, min(BATCH, accounts - start), NOW_NS))


def measure_transfers(seconds: float, accounts: int) -> dict[str, float]:
    """Transfers among `accounts` accounts, batches of 8,190, every id new."""
    timed, rng = Timed(), np.random.default_rng(1)
    open_accounts(timed, accounts)
    ids = (np.arange(accounts, dtype=np.uint64) + np.uint64(1)) << np.uint64(10)
    for start in range(0, accounts, BATCH):
        rows = np.zeros(len(ids[start : start + BATCH]), EVENT)
        fresh_ids(rows, NOW_NS, rng)
        rows["kind"], rows["credit"], rows["amount"] = Kind.DEPOSIT, ids[start : start + BATCH], 10**12
        timed.apply(rows)
    timed.seconds.clear()
    timed.cpu_seconds = 0.0
    rows = np.zeros(BATCH, EVENT)
    rows["kind"], rows["actor"] = Kind.TRANSFER, OWNER
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        fresh_ids(rows, NOW_NS, rng)
        payer = rng.integers(0, accounts, BATCH)
        rows["debit"], rows["credit"] = ids[payer], ids[(payer + rng.integers(1, accounts, BATCH)) % accounts]
        rows["amount"] = rng.integers(1, 10_000, BATCH)
        timed.apply(rows)
    if ledger.sums(timed.book) != 0:
        raise RuntimeError("the sums are not zero")
    times = np.array(timed.seconds)
    return {
        "accounts": accounts,
        "batches": len(times),
        "transfers_per_second": BATCH * len(times) / times.sum(),
        "transfers_per_cpu_second": BATCH * len(times) / timed.cpu_seconds,
        "transfers_per_second_median": BATCH / float(np.median(times)),
        "transfers_per_second_best": BATCH / times.min(),
    }


def measure_growth(accounts: int) -> dict[str, float]:
    """Pauses while so many accounts are opened, in batches of 8,190, and what they and their ids take."""
    process = psutil.Process()
    gc.collect()
    before = process.memory_info().rss
    timed = Timed()
    open_accounts(timed, accounts)
    used = process.memory_info().rss - before
    times_ms = np.array(timed.seconds) * 1e3
    id_bytes = ID_ROW.itemsize + 4 * BUCKETS_PER_ID
    return {
        "accounts": accounts,
        "openings_per_second": accounts / (times_ms.sum() / 1e3),
        "batch_ms_p50": float(np.percentile(times_ms, 50)),
        "batch_ms_p999": float(np.percentile(times_ms, 99.9)),
        "batch_ms_max": float(times_ms.max()),
        "bytes_measured": used / accounts,
        "bytes_per_account": used / accounts - id_bytes,
    }


def measure_ids(count: int) -> dict[str, float]:
    """What `count` remembered ids take, how fast they come, and how fast further ones push the oldest out."""
    process = psutil.Process()
    gc.collect()
    before = process.memory_info().rss
    capacity = ledger.Capacity(accounts=2, ids=count, holds=2, in_flight=2, refunds=2, outbox=2)
    timed, rng = Timed(capacity), np.random.default_rng(2)
    rows = np.zeros(BATCH, EVENT)
    rows["kind"], rows["debit"] = Kind.BIND, 1024
    seconds = []
    for further in (count, count // 10):
        timed.seconds.clear()
        for _ in range(0, further, BATCH):
            fresh_ids(rows, NOW_NS, rng)
            rows["id_hi"] ^= np.uint64(0xF000)  # version 8: it has no age, so it is taken when the window shrinks
            timed.apply(rows)
        seconds.append(sum(timed.seconds))
    used = process.memory_info().rss - before
    return {
        "ids": ledger.stats(timed.book).ids,
        "ids_per_second": count / seconds[0],
        "ids_per_second_when_full": count // 10 / seconds[1],
        "bytes_per_id": used / count,
        "gib": used / 2**30,
    }


def run(
    seconds: float = 5.0, accounts: int = 100_000, growth: int = 10_000_000, ids: int = 10_000_000
) -> dict[str, dict[str, float]]:
    """All measurements. The first call may compile; that is not counted."""
    apply(ledger.new_book(0, 1), openings(0, 1, NOW_NS), NOW_NS, 0)
    return {
        "transfers": measure_transfers(seconds, accounts),
        "growth": measure_growth(growth),
        "memory of ids": measure_ids(ids),
    }


def main(
    ids: Annotated[int, typer.Option(help="Ids to remember; 626572800 are Brazil's mean two days.")] = 10_000_000,
) -> None:
    """Measure and show."""
    measured = run(ids=ids)
    table = Table(title="Kernel alone, one core, nothing durable")
    table.add_column("measure")
    table.add_column("value", justify="right")
    for part, values in measured.items():
        for name, value in values.items():
            table.add_row(f"{part}: {name.replace('_', ' ')}", f"{value:,.0f}" if value >= 1000 else f"{value:,.2f}")
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
