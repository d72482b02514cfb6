"""`razao verify`: replay the journal from its first record and hold everything else against it.

Checked, in this order: the hash chain and the reading rule (by the reader), every code that the journal has against the
code that replay gives, the sum over each shard's accounts after every record, the kernel's invariants, every snapshot
at its own offset, money between shards leg by leg, the balances that live shards answer, the query store, and the chain
of the vault's record of accesses.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

import asyncpg
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from actors import ledger, postings
from actors.book import Book
from actors.comparison import account_ids, compare
from actors.recovery import Replay, Windows, differences
from actors.shard_client import ShardUnavailable
from cluster.data import DataDirectory, EngineError
from cluster.journals import open_journal
from cluster.settings import Settings
from cluster.shards import shard_client
from cluster.stores import kept_windows, pool_of, stores_of
from cluster.vault import check_record
from cluster.verify_legs import Legs
from cluster.verify_legs import compare as compare_legs
from storage.journal import Corrupt, Journal, JournalError
from storage.query_store import NotYetProjected, QueryStore
from storage.record import Opened, Reader, Record
from storage.registry import Registry
from storage.snapshots import InvalidSnapshot, SnapshotFile, SnapshotStore

_READ_ROWS: Final = 4096
_READ_S: Final = 10.0
_CAUGHT_UP_S: Final = 30.0
_DIFFERENCES_MAX: Final = 100
_LOOKS: Final = 5
_DIFFERENCES_OF_RECORD: Final = 3
_COMPARED: Final = ("posted", "debits_pending", "status")


@dataclass(slots=True)
class Report:
    """What was checked, and where it differs from the journal."""

    partitions: list[dict[str, int]] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def differs(self, words: str) -> None:
        """Note a difference; beyond a hundred they are only a crowd."""
        if len(self.differences) < _DIFFERENCES_MAX:
            self.differences.append(words)

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        return {
            "ok": not self.differences,
            "partitions": self.partitions,
            "checked": self.checked,
            "skipped": self.skipped,
            "differences": self.differences,
            "seconds": round(self.seconds, 3),
        }

    def lines(self) -> list[str]:
        """For people."""
        found = [
            f"partition {one['partition']}, up to offset {one['offset']}: {one['records']} records,"
            f" {one['events']} events, {one['accounts']} accounts, {one['snapshots']} snapshots"
            for one in self.partitions
        ]
        found += [f"checked: {what}" for what in self.checked] + [f"not checked: {what}" for what in self.skipped]
        found += [f"DIFFERS: {what}" for what in self.differences]
        found.append("everything agrees with the journal" if not self.differences else "the journal is contradicted")
        return found


class _Replay:
    """One partition, replayed as far as asked."""

    def __init__(self, journal: Journal, partition: int, partitions: int, key: bytes, windows: Windows) -> None:
        self.partition = partition
        self.reader = Reader(journal, partition, key)
        self.legs = Legs(partition, partitions)
        self.records = 0
        self.events = 0
        self.snapshots = 0
        self.told: Counter[int] = Counter()  # rules version → records whose codes are taken as told
        self.broken = False
        self._replay = Replay.from_start(partition, partitions, windows, key)

    @property
    def book(self) -> Book:
        """As of where it stands."""
        return self._replay.book

    async def advance(self, until: int, report: Report, bar: tuple[Progress, TaskID] | None = None) -> None:
        """Replay up to, not including, offset `until`; a broken journal ends it with a difference."""
        if self.broken:
            return
        try:
            async for entry in self.reader.entries(until):
                if isinstance(entry, Opened):
                    self._replay.opened(entry)
                else:
                    self._take(entry, report)
                if bar is not None:
                    bar[0].update(bar[1], completed=entry.offset + 1)
        except Corrupt as error:
            self.broken = True
            report.differs(f"the journal is broken at {error}")

    def _take(self, record: Record, report: Report) -> None:
        origins = postings.origins(self.book, record.rows)
        results = self._replay.judge(record).results
        self.records += 1
        self.events += len(record.rows)
        where = f"partition {self.partition}, offset {record.offset}"
        told = self._replay.told
        for row, name, journaled, ours in islice(differences(record, results, told=told), _DIFFERENCES_OF_RECORD):
            report.differs(f"{where}, row {row}: the journal has {name} {journaled}, replay {ours}")
        if (total := ledger.sums(self.book)) != 0:
            report.differs(f"{where}: the accounts sum to {total}, not to zero")
        self.told[self._replay.rules] += told
        self.legs.follow(record.rows, results, origins)


async def verify(settings: Settings, *, show_progress: bool) -> Report:
    """Verify the ledger in `settings.data`, with its engine running or not.

    Raises:
        EngineError: there is no ledger, or a server that it needs cannot be reached.
    """
    data = DataDirectory(settings.data)
    secrets = data.secrets()
    started = time.perf_counter()
    report = Report()
    async with stores_of(data, settings) as stores:
        journal, live = open_journal(stores.settings, stores.dsn), stores.live
        try:
            async with pool_of(stores.dsn) as pool:
                partitions = await journal.partitions()
                if not partitions:
                    raise EngineError("there is no journal: nothing was ever written, or it is gone")
                key = bytes.fromhex(secrets.ledger_key)
                windows = await kept_windows(Registry(pool))
                replays = [_Replay(journal, p, partitions, key, windows) for p in range(partitions)]
                await _replay_all(
                    journal, replays, SnapshotStore(settings.snapshot_location, key), report, show_progress
                )
                await _check_legs(journal, replays, report)
                if live:
                    await _check_live(data, replays, report)
                else:
                    report.skipped.append("balances of live shards: the engine is not running")
                await _check_query_store(QueryStore(pool), replays, report, live=live)
                await _check_vault(pool, data, report)
        except JournalError as error:
            raise EngineError(f"the journal cannot be read: {error}") from error
        finally:
            await journal.close()
    report.seconds = time.perf_counter() - started
    return report


async def _replay_all(
    journal: Journal, replays: list[_Replay], store: SnapshotStore, report: Report, show_progress: bool
) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not show_progress) as progress:
        for replay in replays:
            head = await journal.head(replay.partition)
            bar = (progress, progress.add_task(f"replaying partition {replay.partition}", total=head))
            for file in reversed(store.files(replay.partition)):
                if file.offset <= head:
                    await replay.advance(file.offset, report, bar)
                    _check_snapshot(store, replay, file, report)
            await replay.advance(head, report, bar)
            progress.update(bar[1], completed=head)
            try:
                ledger.check(replay.book)
            except AssertionError as error:
                report.differs(f"partition {replay.partition}: {error}")
            book = ledger.stats(replay.book)
            report.partitions.append(
                {
                    "partition": replay.partition,
                    "offset": replay.reader.position.offset,
                    "records": replay.records,
                    "void": replay.reader.void,
                    "events": replay.events,
                    "accounts": book.accounts,
                    "transfers": book.transfers,
                    "snapshots": replay.snapshots,
                }
            )
    report.checked += ["hash chain and order of the journal", "the same codes on replay", "sums of every shard"]
    told = sum((replay.told for replay in replays), Counter[int]())
    report.checked += [
        f"with told codes: {count} records of rules version {rules}" for rules, count in told.items() if count
    ]
    report.checked.append(f"{sum(replay.snapshots for replay in replays)} snapshots")


def _check_snapshot(store: SnapshotStore, replay: _Replay, file: SnapshotFile, report: Report) -> None:
    if replay.broken:
        return
    where = f"partition {replay.partition}: the snapshot at offset {file.offset}"
    try:
        snapshot = store.load(file)
    except OSError:
        return  # newer ones have taken its place since
    except InvalidSnapshot as error:
        report.differs(f"{where} cannot be trusted: {error}")
        return
    replay.snapshots += 1
    if snapshot.position != replay.reader.position:
        report.differs(f"{where} stands at {snapshot.position}, replay at {replay.reader.position}")
    if ledger.digest(ledger.restore(snapshot.arrays)) != ledger.digest(replay.book):
        report.differs(f"{where} holds another book than replay")


async def _check_legs(journal: Journal, replays: list[_Replay], report: Report) -> None:
    """Every leg must answer the debit of its number, and transit must hold what is under way.

    The partitions were read one after the other: a leg may have been taken whose debit comes further on in the payer's
    partition, or one came back that the payee's refused further on. It is durable there by now, so a second look finds
    it; under load that may bring further legs.
    """
    for _ in range(_LOOKS):
        if any(replay.broken for replay in replays):
            report.skipped.append("money between shards: a partition is broken")
            return
        found = compare_legs([replay.legs for replay in replays])
        if not found.moving or found.differences:
            break
        for replay in replays:
            await replay.advance(await journal.head(replay.partition), report)
    else:
        report.skipped.append(f"money between shards: {found.moving} newest payments were still moving at each look")
        return
    for words in found.differences:
        report.differs(words)
    transit = sum(ledger.stats(replay.book).transit for replay in replays)
    if transit != found.under_way and not found.moving:
        report.differs(f"the transit accounts hold {transit}, but {found.under_way} is on its way between shards")
    report.checked.append(f"{found.taken} payments between shards, {found.under_way} centavos on their way")


async def _check_live(data: DataDirectory, replays: list[_Replay], report: Report) -> None:
    """Ask the shards for every account, and replay up to the offset at which each answer was given."""
    compared = 0
    async with shard_client(data) as client:
        for replay in replays:
            ids = account_ids(replay.book)
            for start in range(0, len(ids), _READ_ROWS):
                some = ids[start : start + _READ_ROWS]
                try:
                    answer = await client.read(some, np.zeros(len(some), np.uint64), time.monotonic() + _READ_S)
                except ShardUnavailable:
                    report.differs(f"partition {replay.partition}: the shard does not answer")
                    return
                await replay.advance(answer.positions[replay.partition] + 1, report)
                if replay.broken:
                    return
                ours = ledger.read_accounts(replay.book, some, np.zeros(len(some), np.uint64), time.time_ns())
                _compare_accounts(ours, answer.states, report)
                compared += len(some)
    report.checked.append(f"{compared} live accounts")


def _compare_accounts(ours: np.ndarray, theirs: np.ndarray, report: Report) -> None:
    for name in _COMPARED:
        for row in np.flatnonzero(ours[name] != theirs[name]).tolist():
            report.differs(f"account {ours['id'][row]}: {name} is {theirs[name][row]} live, {ours[name][row]} replayed")


async def _check_vault(pool: asyncpg.Pool[asyncpg.Record], data: DataDirectory, report: Report) -> None:
    checked = await check_record(pool, data)
    if checked is None:
        return
    if checked.broken is not None:
        report.differs(f"the vault's record of accesses cannot be trusted: {checked.broken}")
    report.checked.append(f"hash chain of {checked.rows} accesses to the vault")


async def _check_query_store(store: QueryStore, replays: list[_Replay], report: Report, *, live: bool) -> None:
    whole = [replay for replay in replays if not replay.broken]
    ends = {replay.partition: replay.reader.position.offset for replay in whole}
    if live:
        try:
            newest = {partition: offset - 1 for partition, offset in ends.items() if offset}
            await store.wait_for(newest, time.monotonic() + _CAUGHT_UP_S)
        except NotYetProjected:
            report.differs(f"the query store did not catch up with {ends} within {_CAUGHT_UP_S:.0f} s")
            return
    projected = await store.projected()
    for replay in whole:
        offset = ends[replay.partition]
        behind = offset - projected.get(replay.partition, 0)
        if behind > 0:
            # The projector was stopped with the engine; it goes on from there.
            report.skipped.append(f"query store of partition {replay.partition}: {behind} records behind")
            continue
        for words in await compare(store, replay.book, replay.partition, offset):
            report.differs(words)
    report.checked.append("query store")
