"""Compile the ledger's kernel and leave it in Numba's cache, so that no process of the engine has to wait for it."""

from __future__ import annotations

import time

import numpy as np

from actors import ledger
from storage.events import BALANCE, EVENT, RESULT


def compile_kernel() -> float:
    """Run every compiled function once; returns the seconds it took (a fraction when the cache was there)."""
    started = time.perf_counter()
    book = ledger.new_book(0, 1, capacity=ledger.Capacity(1024, 1024, 1024, 1024, 1024))
    rows = np.zeros(1, EVENT)
    ledger.stamp(rows, 1, 0)
    ledger.apply(book, rows, np.zeros(1, RESULT), np.zeros(1, BALANCE), 0)
    accounts = np.zeros(1, np.uint64)
    ledger.read_accounts(book, accounts, accounts, 1)
    ledger.due_holds(book, 1, 1)
    ledger.in_flight(book)
    ledger.check(book)
    ledger.digest(ledger.restore(ledger.dump(book)))
    ledger.sums(book)
    ledger.stats(book)
    return time.perf_counter() - started


if __name__ == "__main__":
    print(f"kernel compiled in {compile_kernel():.1f} s")  # noqa: T201
