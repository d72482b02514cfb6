"""How fast a shard comes to life from the journal alone: read, chain checked, decoded, applied, every code compared.

The journal is written beforehand, 8,190 transfers a record, one shard, and recovered from its first record by what a
starting shard runs (`actors/recovery.py`), without a snapshot; PostgreSQL and the recovery share the cores.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from actors import ledger
from actors.recovery import Recovery
from loadtests import journals, traffic
from loadtests.journals import Place
from storage import record
from storage.events import BALANCE, EVENT, NO_LIMIT, RESULT, SLOTS, Code, Kind
from storage.journal import Journal

BATCH_ROWS: Final = 8190
_KEY: Final = b"bench chain"
_NIGHT: Final = 20 * 60 << 16 | 6 * 60
_FUNDS: Final = 10**12

Rows = npt.NDArray[np.void]


def run(*, transfers: int = 4_000_000, accounts: int = 100_000) -> dict[str, float]:
    """Transfers replayed per second, by the clock and by the recovering process's CPU time."""
    directory = Path(tempfile.mkdtemp(prefix="razao-replay-"))
    try:
        with journals.postgres(directory) as place:
            return measure(place, transfers=transfers, accounts=accounts)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def measure(place: Place, *, transfers: int, accounts: int = 100_000) -> dict[str, float]:
    """The same of a fresh ledger in `place`."""
    return asyncio.run(_run(place, transfers, accounts))


async def _run(place: Place, transfers: int, accounts: int) -> dict[str, float]:
    journal = place.journal()
    try:
        await journal.create(1)
        digest = await _write(journal, transfers, accounts)
        recovery = _recovery(journal)
        writer = await recovery.fence()
        begun, cpu_begun = time.perf_counter(), time.process_time()
        recovered = await recovery.replay(writer)
        seconds, cpu_seconds = time.perf_counter() - begun, time.process_time() - cpu_begun
        await writer.close()
        if ledger.digest(recovered.book) != digest:
            raise RuntimeError("the replayed book is another one than was written")
        return {
            "transfers": transfers,
            "seconds": seconds,
            "transfers_per_s": transfers / seconds,
            "transfers_per_cpu_s": transfers / cpu_seconds,  # the journal's server comes on top
        }
    finally:
        await journal.close()


def _recovery(journal: Journal) -> Recovery:
    return Recovery(0, 1, journal=journal, snapshots=None, chain_key=_KEY, name="bench")


async def _write(journal: Journal, transfers: int, accounts: int) -> bytes:
    """Journal openings, deposits and transfers as a shard would; returns the digest of its book."""
    recovery = _recovery(journal)
    writer = await recovery.fence()
    book, chain, sequence, _, last_ns = await recovery.replay(writer)
    numbers = np.arange(1, accounts + 1, dtype=np.uint64) * np.uint64(SLOTS)
    rng = np.random.default_rng(5)
    groups = [group for part in np.array_split(numbers, accounts // BATCH_ROWS + 1) for group in _openings(part)]
    left = transfers
    while groups or left:
        rows = groups.pop(0) if groups else _transfers(rng, numbers, min(BATCH_ROWS, left))
        left -= len(rows) if rows["kind"][0] == Kind.TRANSFER else 0
        last_ns = ledger.stamp(rows, time.time_ns(), last_ns)
        results, balances = np.zeros(len(rows), RESULT), np.zeros(len(rows), BALANCE)
        ledger.apply(book, rows, results, balances, 0)
        if (results["code"] != Code.OK).any():
            raise RuntimeError(f"refused: {np.unique(results['code'])}")
        payload = record.encode(
            rows, results, None, partition=0, sequence=sequence, epoch=writer.epoch, utc_offset_s=0, chain=chain
        )
        await writer.append(payload)
        sequence += 1
    await writer.close()
    return ledger.digest(book)


def _fresh(payers: npt.NDArray[np.uint64]) -> Rows:
    rows = np.zeros(len(payers), EVENT)
    words = np.frombuffer(traffic.id_block(payers), ">u8").reshape(-1, 2)
    rows["id_hi"], rows["id_lo"] = words[:, 0], words[:, 1]
    return rows


def _openings(accounts: npt.NDArray[np.uint64]) -> tuple[Rows, Rows]:
    opened, paid = _fresh(accounts), _fresh(accounts)
    opened["kind"], opened["debit"], opened["credit"] = Kind.OPEN, accounts, 1
    opened["amount"] = opened["ref_hi"] = opened["ref_lo"] = NO_LIMIT
    opened["total"] = _NIGHT
    paid["kind"], paid["debit"], paid["credit"], paid["amount"] = Kind.DEPOSIT, 1, accounts, _FUNDS
    return opened, paid


def _transfers(rng: np.random.Generator, accounts: npt.NDArray[np.uint64], count: int) -> Rows:
    first = rng.integers(0, len(accounts), count)
    second = (first + rng.integers(1, len(accounts), count)) % len(accounts)
    rows = _fresh(accounts[first])
    rows["kind"], rows["debit"], rows["credit"], rows["amount"] = Kind.TRANSFER, accounts[first], accounts[second], 1
    return rows


if __name__ == "__main__":
    print(run())
