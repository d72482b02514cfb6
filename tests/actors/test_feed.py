"""The feed of events over a real projection: every event that must be there and no other, in order, again and again."""

from __future__ import annotations

import itertools
import random
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
import numpy as np
import pytest

from actors import postings
from actors.recovery import Windows
from storage import ids
from storage.events import BALANCE, EVENT, FIRST_ACCOUNT, RESULT, Code, Kind
from storage.feed import Cursor, Feed, Reader
from storage.feed_schema import Happening
from storage.ids import Id
from storage.journal.postgres import PostgresJournal
from storage.query_store import NEWS, QueryStore
from storage.registry import Registry
from storage.snapshots import SnapshotStore
from tests.actors.projection_history import FORGETFUL, PARTITIONS, History, Known
from tests.actors.test_projection import DEFAULT, Log, journal, log, projecting, snapshots, store, written

__all__ = ["journal", "log", "snapshots", "store"]

KIND_OF_TYPE = {Kind.TRANSFER: "settled", Kind.DEPOSIT: "settled", Kind.WITHDRAWAL: "settled", Kind.REFUND: "refunded"}


@pytest.fixture
async def feed(store: QueryStore) -> AsyncIterator[Feed]:
    await Registry(store.pool).create()
    feed = Feed(store.pool, PARTITIONS)
    yield feed
    await feed.close()


async def own(store: QueryStore, sub: str, accounts: list[int]) -> None:
    """Make `sub` the owner of accounts."""
    for account in accounts:
        await Registry(store.pool).register(account, (account, 7), sub=sub, tax_id="1", name="n", digest=b"")


async def every_event(feed: Feed, limit: int = 100) -> list[Happening]:
    """The whole feed, partition by partition, in small stretches."""
    found = []
    for partition, until in sorted((await feed.reached()).items()):
        place = 0
        while some := await feed.stretch(partition, place, 2 * until + 1, limit):
            assert [one.place for one in some] == sorted(one.place for one in some)
            assert some[0].place > place
            found += some
            place = some[-1].place
    return found


def expected(history: History) -> Counter[Said]:
    """All that the history's transfers must be told as."""
    told: Counter[Said] = Counter()
    for known in history.known.values():
        names = (known.hold or known).id
        payer, payee = (known.debit, 0), (known.credit, 1)
        if known.status == "refused":
            name, sides = "refused", [payee if known.kind is Kind.DEPOSIT else payer]
        elif known.kind is Kind.HOLD:
            name, sides = "held", [payer]
            if known.status in {"voided", "expired"}:
                kind = Kind.VOID if known.status == "voided" else Kind.EXPIRE
                told[Said(f"transfer.{known.status}", names, *payer, known.amount, kind, None, None)] += 1
        else:
            name, sides = "posted" if known.kind is Kind.POST else KIND_OF_TYPE[known.kind], [payer, payee]
        missing = {Code.UNKNOWN_DEBIT_ACCOUNT, *([Code.UNKNOWN_CREDIT_ACCOUNT] if known.kind is Kind.DEPOSIT else [])}
        code = known.code if name == "refused" else None
        for account, side in sides:
            original = known.original.id if known.original is not None and name == "refunded" and not side else None
            if account >= FIRST_ACCOUNT and not (name == "refused" and known.code in missing):
                said = Said(f"transfer.{name}", names, account, side, known.amount, known.kind, code, original)
                told[said] += 1
    return told


class Said(NamedTuple):
    """What an event says of a transfer."""

    type: str
    transfer: Id
    account: int
    side: int
    amount: int
    kind: int
    code: int | None
    original: Id | None  # of a refund, told to who gives


def said(event: Happening) -> Said:
    assert event.transfer is not None
    original = _id(event.refund_of) if event.refund_of is not None and event.type == "transfer.refunded" else None
    transfer, amount = _id(event.transfer), event.amount or 0
    return Said(event.type, transfer, event.account, event.side, amount, event.kind, event.code, original)


def _id(name: uuid.UUID) -> Id:
    return name.int >> 64, name.int & (2**64 - 1)


@pytest.mark.parametrize("windows", [DEFAULT, FORGETFUL], ids=["", "ids come again"])
@pytest.mark.parametrize("seed", [11, 12, 13])
async def test_everything_that_became_of_a_transfer_is_told_to_each_side_once(
    journal: PostgresJournal, log: Log, store: QueryStore, snapshots: SnapshotStore, feed: Feed, seed: int,
    windows: Windows,
) -> None:  # fmt: skip
    """And nothing else, whatever else its id was used for: the history's own bookkeeping says what there must be."""
    history = await written(History(seed, windows=windows), log, steps=150)
    async with projecting(journal, store, snapshots, windows) as projection:
        await projection.catch_up()
    found = await every_event(feed)
    # A refused post or void of a client's is not followed by the history; one that came back from the payee is.
    transfers = [event for event in found if event.transfer is not None]
    known = [
        event
        for event in transfers
        if not (event.type == "transfer.refused" and event.kind in {Kind.POST, Kind.VOID} and event.balance is None)
    ]
    assert Counter(map(said, known)) == expected(history)
    assert {event.type for event in transfers} == {
        f"transfer.{name}" for name in ("settled", "held", "posted", "voided", "expired", "refunded", "refused")
    }
    for event in transfers:
        assert (event.code is not None) == (event.type == "transfer.refused"), event
        assert (event.expires_at is not None) == (event.type == "transfer.held"), event
        assert event.other is not None
    opened = [event.account for event in found if event.type == "account.opened"]
    assert Counter(opened) == Counter(history.timeline.keys() & set(opened))
    assert set(opened) == set(history.status)


async def test_money_between_shards_is_news_only_when_its_outcome_is_known(
    journal: PostgresJournal, log: Log, store: QueryStore, snapshots: SnapshotStore, feed: Feed
) -> None:
    history = History(21)
    async with projecting(journal, store, snapshots) as projection:
        flying: list[Known] = []
        while len(flying) < 2:
            await log.write(history.step())
            waits = [known for known in history.known.values() if known.status == "in flight"]
            flying = [known for known in waits if known.kind in {Kind.TRANSFER, Kind.REFUND}]
        await projection.catch_up()
        names = {known.id for known in flying}
        assert not names & {said(event).transfer for event in await every_event(feed) if event.transfer}
        await log.write(history.drain())
        await projection.catch_up()
        ended = Counter(said(event).transfer for event in await every_event(feed) if event.transfer)
        for known in flying:
            assert ended[known.id] == (2 if known.status == "settled" else 1)


async def test_a_rebuild_gives_the_same_events_with_the_same_ids(
    journal: PostgresJournal, log: Log, store: QueryStore, snapshots: SnapshotStore, feed: Feed, tmp_path: Path
) -> None:
    history = await written(History(31), log, steps=80)
    async with projecting(journal, store, snapshots, chunk_rows=7) as projection:
        await projection.catch_up()
    before = await every_event(feed)
    assert len({event.id for event in before}) == len(before)
    await store.reset()
    assert await every_event(feed) == []
    async with projecting(journal, store, SnapshotStore(tmp_path / "others", b"k" * 32), chunk_rows=999) as projection:
        await projection.catch_up()
    assert await every_event(feed) == before
    assert history.known


async def test_a_reader_who_breaks_off_anywhere_resumes_without_gap_or_repeat(
    journal: PostgresJournal, log: Log, store: QueryStore, snapshots: SnapshotStore, feed: Feed
) -> None:
    """Of one account, and of all that somebody owns on both shards, between the two sides of one payment too."""
    history = History(41)
    await log.write(history.step())
    mine = history.accounts[:3] + history.accounts[8:11]
    await written(history, log, steps=60)
    await own(store, "me", mine)
    async with projecting(journal, store, snapshots) as projection:
        await projection.catch_up()
    whole = [event for event in await every_event(feed) if event.account in mine]
    assert any(one.place + 1 == two.place for one, two in itertools.pairwise(whole)), "a payment to oneself"
    source = random.Random(41)
    readers: list[Reader] = ["me", mine[0]]
    for reader in readers:
        wanted = [event for event in whole if reader in {"me", event.account}]
        seen: list[Happening] = []
        cursors = [Cursor()]
        while page := await feed.page(reader, cursors[-1], source.randrange(1, 9)):
            for event in page[: source.randrange(1, len(page) + 1)]:
                seen.append(event)
                cursors.append(Cursor.parse(str(cursors[-1].after(event)), PARTITIONS))
        for number, cursor in enumerate(cursors):
            assert await feed.page(reader, cursor, 1000) == seen[number:]
        assert sorted(seen, key=lambda event: (event.partition, event.place)) == wanted
        for partition in range(PARTITIONS):
            places = [event.place for event in seen if event.partition == partition]
            assert places == sorted(places)
    assert await feed.page("nobody", Cursor(), 10) == []


async def test_one_who_begins_now_gets_what_comes_and_the_whole_of_accounts_opened_later(
    journal: PostgresJournal, log: Log, store: QueryStore, snapshots: SnapshotStore, feed: Feed
) -> None:
    history = History(51)
    await log.write(history.step())
    first, elsewhere = history.accounts[0], history.accounts[8]
    assert {feed.partition(first), feed.partition(elsewhere)} == {0, 1}
    async with projecting(journal, store, snapshots) as projection:
        await projection.catch_up()
        await own(store, "me", [first])
        start = await feed.end("me")
        assert list(start.places) == [feed.partition(first)]
        assert await feed.page("me", start, 10) == []
        assert (await feed.end(first)).places == start.places
        await own(store, "me", [elsewhere])
        assert [event.type for event in await feed.page("me", start, 10)] == ["account.opened"]
        news = await feed.news(["me", "nobody", first], dict.fromkeys(range(PARTITIONS), 0))
        assert news.readers == {"me", first}
        assert news.reached == await feed.reached()
        assert (await feed.news(["me", first], news.reached)).readers == set()
        await written(history, log, steps=30)
        await projection.catch_up()
        assert (await feed.news(["me", "nobody", first], news.reached)).readers >= {first, "me"}


async def test_a_commit_says_which_partition_has_news(
    journal: PostgresJournal, log: Log, store: QueryStore, snapshots: SnapshotStore, database: str
) -> None:
    """Once for each chunk."""
    heard: list[Any] = []
    connection = await asyncpg.connect(database)
    await connection.add_listener(NEWS, lambda *said: heard.append(said[-1]))
    await written(History(61), log, steps=5)
    async with projecting(journal, store, snapshots, chunk_rows=10_000) as projection:
        await projection.catch_up()
    await connection.execute("SELECT 1")
    await connection.close()
    assert sorted(heard) == ["0", "1"]


PAYER, PAYEE = 5 << 10, 6 << 10 | 1
NAME, HOLD, ORIGINAL = ids.derive("name"), ids.derive("hold"), ids.derive("original")


class Partition:
    """Partition 0 of two, as its records would have it, row by row; what is in flight is said by hand."""

    def __init__(self, store: QueryStore) -> None:
        self._store = store
        self._made: list[tuple[Any, ...]] = []

    def row(
        self, at: int, kind: Kind, id_: Id, code: Code = Code.OK, *, ref: Id = (0, 0), detail: int = 0,
        flown: Sequence[int] = (0, 0, 0, 0, 0, 0, 0), **columns: int,
    ) -> None:  # fmt: skip
        """`flown`: the row's ORIGIN."""
        event, result, balance = np.zeros(1, EVENT), np.zeros(1, RESULT), np.zeros(1, BALANCE)
        origin = np.zeros(1, postings.ORIGIN)
        for name, value in {"debit": PAYER, "credit": PAYEE, "at": at, "kind": kind, **columns}.items():
            event[name] = value
        event["id_hi"], event["id_lo"] = id_
        event["ref_hi"], event["ref_lo"] = ref
        result["code"], result["detail"] = code, detail
        origin[0] = tuple(flown)
        self._made.append((event, result, balance, origin))

    async def append(self) -> None:
        """Project them."""
        events, results, balances, origins = (np.concatenate(one) for one in zip(*self._made, strict=True))
        stretch = postings.Stretch(events, results, balances, origins, np.arange(len(events)), None)
        await self._store.append(
            0, await self._store.offset(0), len(events), int(events["at"][-1]), postings.chunk(stretch, 0, PARTITIONS)
        )


async def test_no_event_says_of_a_transfer_what_is_true_of_its_namesake(store: QueryStore, feed: Feed) -> None:
    """Three payments by one id, each ended when the next ones are long there; then two holds by one id."""
    part = Partition(store)
    part.row(10, Kind.REFUND, NAME, Code.IN_FLIGHT, ref=ORIGINAL, amount=7)
    part.row(20, Kind.TRANSFER, NAME, Code.IN_FLIGHT, amount=30)
    part.row(30, Kind.TRANSFER, NAME, Code.IN_FLIGHT, amount=500)
    part.row(40, Kind.REVERT, NAME, detail=30, reason=Code.CREDIT_ACCOUNT_CLOSED, flown=_flown(20, 30, Kind.TRANSFER))
    part.row(50, Kind.REVERT, NAME, detail=500, reason=Code.OVERFLOW, flown=_flown(30, 500, Kind.TRANSFER))
    part.row(60, Kind.SETTLE, NAME, detail=7, flown=_flown(10, 7, Kind.REFUND))
    part.row(70, Kind.HOLD, HOLD, amount=80, span=1000)
    part.row(80, Kind.POST, ids.derive("post"), Code.IN_FLIGHT, ref=HOLD, detail=60, flown=_held(80))
    part.row(90, Kind.HOLD, HOLD, amount=900, span=2000)
    part.row(100, Kind.POST, ids.derive("post"), Code.IN_FLIGHT, ref=HOLD, detail=11, flown=_held(900))
    part.row(110, Kind.SETTLE, ids.derive("post"), detail=60, flown=_flown(80, 60, Kind.POST, HOLD))
    part.row(
        120, Kind.REVERT, ids.derive("post"), detail=11, reason=Code.CREDIT_ACCOUNT_FROZEN,
        flown=_flown(100, 11, Kind.POST, HOLD),
    )  # fmt: skip
    part.row(130, Kind.VOID, ids.derive("void"), ref=HOLD, flown=_held(900))
    await part.append()
    told = [
        (one.at, one.type.removeprefix("transfer."), Kind(one.kind), one.amount, one.code, one.expires_at)
        for one in await every_event(feed)
    ]
    assert told == [
        (40, "refused", Kind.TRANSFER, 30, Code.CREDIT_ACCOUNT_CLOSED, None),
        (50, "refused", Kind.TRANSFER, 500, Code.OVERFLOW, None),
        (60, "refunded", Kind.REFUND, 7, None, None),
        (70, "held", Kind.HOLD, 80, None, 1070),
        (90, "held", Kind.HOLD, 900, None, 2090),
        (110, "posted", Kind.POST, 60, None, None),
        (120, "refused", Kind.POST, 11, Code.CREDIT_ACCOUNT_FROZEN, None),
        (130, "voided", Kind.VOID, 900, None, None),
    ]
    refund_of = {one.at: one.refund_of for one in await every_event(feed) if one.refund_of is not None}
    assert refund_of == {60: uuid.UUID(int=ORIGINAL[0] << 64 | ORIGINAL[1])}


def _flown(at: int, amount: int, kind: Kind, names: Id = NAME) -> tuple[int, ...]:
    return PAYER, PAYEE, amount, at, *names, int(kind)


def _held(amount: int) -> tuple[int, ...]:
    return PAYER, PAYEE, amount, 0, 0, 0, int(Kind.HOLD)


@pytest.mark.parametrize(
    "text", ["", "2", "1.", "1.0-", "1.2-5", "1.0-5.0-6", "1.0-9223372036854775808", "1.0-٣", "x" * 99999]
)
def test_an_absurd_cursor_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match="cursor"):
        Cursor.parse(text, PARTITIONS)
