"""Ledgers of every format and rules version that ever was open, verify and go on (`tests/ledgers`)."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from actors import ledger
from actors.recovery import Recovered, Recovery, Replay
from storage import record
from storage.events import BALANCE, EVENT, RESULT, Code, Kind, ResultFlag
from storage.journal import Corrupt
from storage.journal.postgres import PostgresJournal
from storage.record import Opened, Record
from tests import ledgers
from tests.ledgers import CAPACITY, KEY, PARTITIONS, WINDOWS, Kept


@pytest.fixture
async def journal(database: str) -> AsyncIterator[PostgresJournal]:
    made = PostgresJournal(database)
    await made.create(PARTITIONS)
    yield made
    await made.close()


async def fill(journal: PostgresJournal, kept: Kept) -> None:
    """Write the ledger's records, as its writers once did."""
    for partition, log in enumerate(kept.logs):
        writer = None
        for stored in log:
            if stored.is_open:
                if writer is not None:
                    await writer.close()
                writer = await journal.open(partition, stored.payload)
            else:
                assert writer is not None
                await writer.append(stored.payload)
        assert writer is not None
        await writer.close()


async def recovered(journal: PostgresJournal, partition: int) -> Recovered:
    recovery = Recovery(
        partition, PARTITIONS, journal=journal, snapshots=None, chain_key=KEY, name="later", windows=WINDOWS,
        capacity=CAPACITY,
    )  # fmt: skip
    writer = await recovery.fence()
    try:
        return await recovery.replay(writer)
    finally:
        await writer.close()


def test_the_version_of_today_has_its_ledger_among_the_kept() -> None:
    assert ledgers.current() in ledgers.files()


@pytest.mark.parametrize("path", ledgers.files(), ids=lambda path: path.name)
async def test_a_kept_ledger_opens_with_the_balances_that_it_had_and_goes_on(
    path: Path, journal: PostgresJournal
) -> None:
    kept = ledgers.load(path)
    await fill(journal, kept)
    books = [(await recovered(journal, partition)).book for partition in range(PARTITIONS)]
    for book in books:
        ledger.check(book)
    numbers = np.array(list(kept.balances), np.uint64)
    for account in numbers.tolist():
        book = books[account % PARTITIONS]
        state = ledger.read_accounts(book, np.array([account], np.uint64), np.zeros(1, np.uint64), ledgers.NOON)[0]
        assert (int(state["posted"]), int(state["debits_pending"])) == kept.balances[account]
    row = np.zeros(2, EVENT)
    row["kind"], row["debit"], row["credit"], row["amount"] = Kind.TRANSFER, 2 << 10, 4 << 10, 50
    row["id_hi"], row["id_lo"] = kept.remembered
    row["id_lo"][1] += np.uint64(1 << 40)
    last = ledger.stats(books[0]).oldest_id_ns + 3600 * 10**9
    ledger.stamp(row, last, last)
    results = np.zeros(2, RESULT)
    ledger.apply(books[0], row, results, np.zeros(2, BALANCE), -10_800)
    assert results["code"].tolist() == [Code.OK, Code.OK]
    assert results["flags"].tolist() == [ResultFlag.REPLAYED, 0]


async def test_a_ledger_of_another_format_is_refused_by_name_and_left_as_it_is(journal: PostgresJournal) -> None:
    text = b'{"razao":1,"partition":0,"writer":{}}'
    check = hashlib.blake2b(text, digest_size=16).hexdigest().encode()
    await (await journal.open(0, text + b"\n" + check)).close()
    with pytest.raises(Corrupt, match="format version 1, this program reads 2"):
        await recovered(journal, 0)
    assert await journal.head(0) == 1  # whoever wrote it can still open it


def replayed(kept: Kept, rules: int | None = None, change: tuple[int, Code] | None = None) -> Replay:
    """Partition 0 replayed; `rules` as if older ones had written it, `change`: as if
    transfer n of those that were carried out had got that code then."""
    replay = Replay.from_start(0, PARTITIONS, WINDOWS, KEY)
    chain = record.Chain(KEY)
    count = itertools.count()
    sequence = 0
    for stored in kept.logs[0]:
        if stored.is_open:
            chain.absorb_open(stored.offset, stored.payload)
            opened: Opened = record.decode_open(stored, 0)
            replay.opened(opened if rules is None else replace(opened, rules=rules))
            continue
        found: Record = record.decode(stored, 0, sequence, chain)
        sequence += 1
        for row in range(len(found.rows)):
            local = found.rows["kind"][row] == Kind.TRANSFER and found.codes[row] == Code.OK
            if change is not None and local and next(count) == change[0]:
                found.codes[row] = change[1]
        replay.apply(found)
    return replay


def test_records_of_older_rules_are_taken_as_told_and_give_the_same_book() -> None:
    kept = ledgers.load(ledgers.current())
    assert ledger.digest(replayed(kept, rules=ledger.RULES - 1).book) == ledger.digest(replayed(kept).book)


def test_a_code_that_only_older_rules_gave_is_refused_from_todays_and_taken_from_older_ones() -> None:
    kept = ledgers.load(ledgers.current())
    paid = 20  # which of the transfers that were carried out, one without consequences
    with pytest.raises(Corrupt, match="event 0 has code 19 in the journal, and 0 by replay"):
        replayed(kept, change=(paid, Code.LIMIT_NIGHT))
    told = replayed(kept, rules=ledger.RULES - 1, change=(paid, Code.LIMIT_NIGHT)).book
    ledger.check(told)
    assert ledger.stats(told).transfers == ledger.stats(replayed(kept).book).transfers - 1


def test_a_ledger_of_later_rules_is_refused_by_name() -> None:
    with pytest.raises(Corrupt, match=f"decided by rules {ledger.RULES + 1}, this program knows them up to"):
        replayed(ledgers.load(ledgers.current()), rules=ledger.RULES + 1)
