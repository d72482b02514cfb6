"""`razao verify` over journals of histories: what it says of sound ones, however ids repeat, and of others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors import ledger
from actors.recovery import Windows
from cluster.verify import Report, _check_legs, _Replay, _replay_all
from storage import record
from storage.events import EVENT, RESULT, Code, Kind
from storage.journal.postgres import PostgresJournal
from storage.query_store import QueryStore
from storage.snapshots import SnapshotStore
from tests.actors.projection_history import FORGETFUL, PARTITIONS, SMALL, History, Recorded
from tests.actors.test_projection import DEFAULT, KEY, Log, journal, log, projecting, snapshots, store, written

__all__ = ["journal", "log", "snapshots", "store"]


async def verified(journal: PostgresJournal, snapshots: SnapshotStore, windows: Windows = DEFAULT) -> Report:
    report = Report()
    replays = [_Replay(journal, partition, PARTITIONS, KEY, windows) for partition in range(PARTITIONS)]
    await _replay_all(journal, replays, snapshots, report, show_progress=False)
    await _check_legs(journal, replays, report)
    return report


@pytest.mark.parametrize("windows", [DEFAULT, FORGETFUL], ids=["", "ids come again"])
async def test_a_sound_journal_is_not_contradicted_by_ids_that_come_again(
    journal: PostgresJournal, log: Log, tmp_path: Path, windows: Windows
) -> None:
    history = History(1, windows=windows)
    for _ in range(3):
        await written(history, log, steps=40, drain=False)
        report = await verified(journal, SnapshotStore(tmp_path, KEY), windows)
        assert report.differences == report.skipped == []
    assert history.overtaken or windows == DEFAULT
    await log.write(history.drain())
    report = await verified(journal, SnapshotStore(tmp_path, KEY), windows)
    assert report.differences == []
    taken = sum(int((one["kind"] == Kind.CREDIT_LEG).sum()) for one in await all_rows(journal))
    assert taken
    (legs,) = [words for words in report.checked if "payments between shards" in words]
    assert legs.endswith("payments between shards, 0 centavos on their way")


async def all_rows(journal: PostgresJournal) -> list[Any]:
    readers = [record.Reader(journal, partition, KEY) for partition in range(PARTITIONS)]
    return [one.rows for reader in readers async for one in reader.records()]


async def test_a_snapshot_is_the_book_that_replay_gives(
    journal: PostgresJournal, log: Log, store: QueryStore, snapshots: SnapshotStore
) -> None:
    history = await written(History(2), log, steps=20)
    async with projecting(journal, store, snapshots) as projection:
        await projection.catch_up()
        await projection.save()
    await written(history, log, steps=20)
    report = await verified(journal, snapshots)
    assert report.differences == []
    assert f"{PARTITIONS} snapshots" in report.checked


async def test_an_answer_that_replay_does_not_give_is_told_and_the_rest_is_checked_too(
    journal: PostgresJournal, log: Log, tmp_path: Path
) -> None:
    history = await written(History(3), log, steps=20)
    (changed,) = [one for one in history.step(30) if one.partition == 1]
    row = len(changed.rows) - 1
    changed.results["detail"][row] += 1
    offset = (await log.write([changed]))[1]
    await written(history, log, steps=5)
    report = await verified(journal, SnapshotStore(tmp_path, KEY))
    assert report.differences[0].startswith(f"partition 1, offset {offset}, row {row}: the journal has detail")
    assert [one["offset"] for one in report.partitions] == list((await journal.heads()).values())


async def test_a_payment_that_is_credited_and_returned_is_a_difference(
    journal: PostgresJournal, log: Log, tmp_path: Path
) -> None:
    """What no replay of a single partition can see."""
    history = History(4)
    while not any(history.outcomes):
        await log.write(history.step())
    payer = 0 if history.outcomes[0] else 1
    end = history.outcomes[payer][0]
    settled = end["kind"][0] == Kind.SETTLE
    end["kind"], end["reason"] = (Kind.REVERT, Code.OVERFLOW) if settled else (Kind.SETTLE, Kind.TRANSFER)
    await log.write(history.step())
    report = await verified(journal, SnapshotStore(tmp_path, KEY))
    number = int(end["ref_lo"][0])
    said = [words for words in report.differences if f"payment {number} from partition {payer}" in words]
    assert ["was ended as" in words for words in said] == [True]


async def test_records_of_older_rules_are_checked_with_the_codes_that_they_tell(
    journal: PostgresJournal, log: Log, tmp_path: Path
) -> None:
    history = await written(History(5), log, steps=10)
    for partition in range(PARTITIONS):
        await log.open(partition, rules=ledger.RULES - 1)
    records = 0
    for _ in range(10):
        made = history.step()
        records += len(made)
        await log.write(made)
    # By those rules this was refused, and by ours it would be accepted.
    await log.write([refused_deposit(history)])
    for partition in range(PARTITIONS):
        await log.open(partition)
    await written(history, log, steps=10)
    report = await verified(journal, SnapshotStore(tmp_path, KEY))
    assert report.differences == []
    assert f"with told codes: {records + 1} records of rules version {ledger.RULES - 1}" in report.checked


def refused_deposit(history: History) -> Recorded:
    account = next(one for one in history.accounts if one % PARTITIONS == 0 and history.status[one] == 1)
    row = history.event(0, Kind.DEPOSIT, debit=1, credit=account, amount=5, id=history.new_id(0, account % 1024))
    history.clock[0] += 1
    row["at"] = history.clock[0]
    rows, results = np.zeros(1, EVENT), np.zeros(1, RESULT)
    rows[0], results["code"] = row[0], Code.OVERFLOW
    return Recorded(0, rows, results, [None])


async def test_capacities_of_each_writer_are_followed(journal: PostgresJournal, log: Log, tmp_path: Path) -> None:
    history = await written(History(6), log, steps=10)
    await log.open(0, capacity=SMALL._replace(accounts=2**12))
    await written(history, log, steps=10)
    report = await verified(journal, SnapshotStore(tmp_path, KEY))
    assert report.differences == []
