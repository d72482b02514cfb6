"""The comparison of the query store with a replayed book: silent when they agree, and plain about what does not."""

from __future__ import annotations

import pytest

from actors import ledger
from actors.comparison import compare
from actors.recovery import Replay, Windows
from storage import record
from storage.events import FIRST_ACCOUNT, Code
from storage.journal.postgres import PostgresJournal
from storage.query_store import QueryStore
from storage.snapshots import SnapshotStore
from tests.actors.projection_history import FORGETFUL, KEY, PARTITIONS, History
from tests.actors.test_projection import DEFAULT, Log, journal, log, projecting, snapshots, store, written

__all__ = ["journal", "log", "snapshots", "store"]


async def replayed(
    journal: PostgresJournal, partition: int, until: int | None = None, windows: Windows = DEFAULT
) -> tuple[ledger.Book, int]:
    replaying = Replay.from_start(partition, PARTITIONS, windows, KEY)
    reader = record.Reader(journal, partition, KEY)
    async for entry in reader.entries(until):
        if isinstance(entry, record.Opened):
            replaying.opened(entry)
        else:
            replaying.apply(entry)
    return replaying.book, reader.position.offset


@pytest.mark.parametrize("windows", [DEFAULT, FORGETFUL], ids=["", "ids come again"])
async def test_what_was_projected_agrees_also_when_the_store_is_further(
    journal: PostgresJournal, log: Log, store: QueryStore, snapshots: SnapshotStore, windows: Windows
) -> None:
    await written(History(1, windows=windows), log, steps=80)
    async with projecting(journal, store, snapshots, windows) as projection:
        await projection.catch_up()
    for partition in range(PARTITIONS):
        for until in (None, 30, 1, 0):
            book, offset = await replayed(journal, partition, until, windows)
            assert await compare(store, book, partition, offset) == []


async def test_a_store_that_is_behind_is_said_to_be(
    journal: PostgresJournal, log: Log, store: QueryStore, snapshots: SnapshotStore
) -> None:
    history = await written(History(2), log, steps=5)
    async with projecting(journal, store, snapshots) as projection:
        await projection.catch_up()
    await written(history, log, steps=5)
    book, offset = await replayed(journal, 0)
    (words,) = await compare(store, book, 0, offset)
    assert f"not {offset}" in words


SOME = "ctid = (SELECT ctid FROM query.{} WHERE partition = 0 {} ORDER BY at LIMIT 1)"


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("UPDATE query.entries SET balance = balance + 1 WHERE " + SOME.format("entries", "AND amount > 0"), "follow"),
        ("UPDATE query.entries SET pending = pending + 1 WHERE partition = 0", "amount on hold"),
        ("DELETE FROM query.entries WHERE " + SOME.format("entries", "AND amount > 0"), "follow"),
        ("DELETE FROM query.entries WHERE partition = 0", "the journal says"),
        ("UPDATE query.entries SET account = 4096 WHERE " + SOME.format("entries", "AND amount > 0"), "account 4096"),
        ("UPDATE query.transfers SET amount = 0 WHERE " + SOME.format("transfers", "AND code = 0"), "transfers of"),
        ("DELETE FROM query.transfers WHERE " + SOME.format("transfers", "AND code = 0 AND kind = 10"), "accepted"),
        ("DELETE FROM query.account_changes WHERE partition = 0 AND kind = 1", "was never opened"),
        ("DELETE FROM query.account_changes WHERE partition = 0", "is not there"),
        ("UPDATE query.account_changes SET kind = 3 WHERE partition = 0 AND kind = 1", "is frozen"),
    ],
)  # fmt: skip
async def test_every_kind_of_damage_is_named(
    journal: PostgresJournal, log: Log, store: QueryStore, snapshots: SnapshotStore, damage: str, said: str
) -> None:
    history = await written(History(3), log, steps=80)
    assert Code.DEBIT_ACCOUNT_FROZEN in history.codes
    async with projecting(journal, store, snapshots) as projection:
        await projection.catch_up()
    done = await store.pool.execute(damage)
    assert not done.endswith(" 0")
    book, offset = await replayed(journal, 0)
    words = await compare(store, book, 0, offset)
    assert any(said in one for one in words), words
    assert all(one.startswith("partition 0: ") for one in words)
    other, offset = await replayed(journal, 1)
    assert await compare(store, other, 1, offset) == []
    assert min(history.accounts) >= FIRST_ACCOUNT


async def test_a_crowd_of_differences_is_cut_short(
    journal: PostgresJournal, log: Log, store: QueryStore, snapshots: SnapshotStore
) -> None:
    await written(History(4), log, steps=120)
    async with projecting(journal, store, snapshots) as projection:
        await projection.catch_up()
    await store.pool.execute("UPDATE query.entries SET balance = balance + at")
    book, offset = await replayed(journal, 0)
    words = await compare(store, book, 0, offset)
    assert len(words) < 70
    assert any("more like that" in one for one in words)
