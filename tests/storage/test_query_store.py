"""The query store alone, filled by hand: exactly once, waiting, paging, and what a client is told of a transfer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import numpy as np
import pytest

from storage import ids, query_store
from storage.events import AccountStatus, Code, Kind
from storage.ids import Id
from storage.query_store import Chunk, NotYetProjected, Overtaken, QueryStore, Status

PAYER, PAYEE = 5 << 10, 6 << 10 | 1


def soon(seconds: float = 20.0) -> float:
    return time.monotonic() + seconds


@pytest.fixture
async def store(database: str) -> AsyncIterator[QueryStore]:
    async with asyncpg.create_pool(database, min_size=1, max_size=6) as pool:
        store = QueryStore(pool)
        await store.create()
        yield store
        await store.close()


def rows(dtype: np.dtype[np.void], *values: dict[str, Any]) -> np.ndarray[Any, Any]:
    made = np.zeros(len(values), dtype)
    for row, value in zip(made, values, strict=True):
        for name, content in value.items():
            row[name] = content
    return made


def chunk(**parts: list[dict[str, Any]]) -> Chunk:
    notes = {
        name: [row.pop("note", None) for row in parts.get(name, [])] for name in ("transfers_full", "transfers_ref")
    }
    return Chunk(
        transfers=rows(query_store.TRANSFER, *parts.get("transfers", [])),
        transfers_full=rows(query_store.TRANSFER_FULL, *parts.get("transfers_full", [])),
        notes_full=notes["transfers_full"],
        transfers_ref=rows(query_store.TRANSFER_REF, *parts.get("transfers_ref", [])),
        notes_ref=notes["transfers_ref"],
        outcomes=rows(query_store.OUTCOME, *parts.get("outcomes", [])),
        entries=rows(query_store.ENTRY, *parts.get("entries", [])),
        account_changes=rows(query_store.ACCOUNT_CHANGE, *parts.get("account_changes", [])),
    )


def event(id_: Id, kind: Kind, at: int, code: Code = Code.OK, **more: Any) -> dict[str, Any]:
    common = {"id": id_, "kind": kind, "at": at, "code": code, "debit": PAYER, "credit": PAYEE, "amount": 100}
    return {**common, **more}


class Filler:
    """Appends to partitions, one record per call."""

    def __init__(self, store: QueryStore) -> None:
        self.store = store
        self.offsets: dict[int, int] = {}

    async def __call__(self, partition: int = 0, **parts: list[dict[str, Any]]) -> None:
        start = self.offsets.get(partition)
        if start is None:
            start = await self.store.offset(partition)
        for table in parts.values():
            for row in table:
                row.setdefault("partition", partition)
        for entry in parts.get("entries", []):
            entry.setdefault("kind", Kind.TRANSFER)
            entry.setdefault("sent_at", entry["at"])
        await self.store.append(partition, start, start + 1, start, chunk(**parts))
        self.offsets[partition] = start + 1


@pytest.fixture
def fill(store: QueryStore) -> Filler:
    return Filler(store)


async def test_a_stretch_is_added_once_and_only_from_where_the_store_stands(store: QueryStore, fill: Filler) -> None:
    one = chunk(transfers=[event(ids.derive("a"), Kind.TRANSFER, 1)])
    assert await store.offset(0) == 0
    await store.append(0, 0, 3, 1, one)
    for start in (0, 2, 4):
        with pytest.raises(Overtaken):
            await store.append(0, start, 5, 1, one)
    assert await store.projected() == {0: 3}
    assert await store.pool.fetchval("SELECT count(*) FROM query.transfers") == 1


async def test_of_two_projectors_only_one_goes_on(store: QueryStore) -> None:
    await store.offset(0)
    work = [store.append(0, 0, 1, 1, chunk(transfers=[event(ids.derive(str(n)), Kind.TRANSFER, 1)])) for n in range(4)]
    ended = await asyncio.gather(*work, return_exceptions=True)
    assert sorted(type(end).__name__ for end in ended) == ["NoneType", "Overtaken", "Overtaken", "Overtaken"]
    assert await store.pool.fetchval("SELECT count(*) FROM query.transfers") == 1


async def test_a_chunk_that_fails_leaves_nothing_behind(store: QueryStore, fill: Filler) -> None:
    entry = {"account": PAYER, "at": 5, "amount": 1}
    await fill(entries=[entry])
    with pytest.raises(asyncpg.UniqueViolationError):
        await fill(transfers=[event(ids.derive("a"), Kind.TRANSFER, 6)], entries=[entry])
    assert await store.projected() == {0: 1}
    assert await store.transfer(ids.derive("a")) == []


async def test_reset_empties_and_create_keeps(store: QueryStore, fill: Filler) -> None:
    await fill(transfers=[event(ids.derive("a"), Kind.TRANSFER, 1)])
    await store.create()
    assert len(await store.transfer(ids.derive("a"))) == 1
    await store.reset()
    assert await store.transfer(ids.derive("a")) == []
    assert await store.projected() == {}
    await store.drop()
    await store.create()
    assert await store.offset(0) == 0


async def test_tables_of_another_version_are_made_again(store: QueryStore, fill: Filler) -> None:
    await fill(transfers=[event(ids.derive("a"), Kind.TRANSFER, 1)])
    await store.pool.execute("UPDATE query.version SET version = version + 1")
    await store.create()
    assert await store.projected() == {}


async def test_creating_at_once_from_many_places_works(database: str) -> None:
    async with asyncpg.create_pool(database, min_size=4, max_size=8) as pool:
        await asyncio.gather(*(QueryStore(pool).create() for _ in range(6)))
        assert await QueryStore(pool).projected() == {}


async def test_a_waiter_returns_when_every_position_is_projected(store: QueryStore, fill: Filler) -> None:
    await fill(0)
    waiting = asyncio.create_task(store.wait_for({0: 1, 1: 0}, soon()))
    await store.wait_for({0: 0}, soon())
    await fill(0)
    await store.wait_for({0: 1}, soon())
    assert not waiting.done()
    await fill(1)
    await waiting


async def test_a_waiter_is_told_when_its_deadline_comes(store: QueryStore, fill: Filler) -> None:
    await fill(0)
    with pytest.raises(NotYetProjected):
        await store.wait_for({0: 1}, soon(0.05))
    with pytest.raises(NotYetProjected):
        await store.wait_for({7: 0}, soon(-1))
    await store.wait_for({0: 0}, soon(-1))
    await store.wait_for({}, soon(-1))


async def test_what_was_projected_before_a_rebuild_does_not_count(store: QueryStore, fill: Filler) -> None:
    await fill(0)
    await store.wait_for({0: 0}, soon())
    await store.reset()
    with pytest.raises(NotYetProjected):
        await store.wait_for({0: 0}, soon(0.05))


async def test_a_thousand_waiters_share_one_poller_and_a_cancelled_one_harms_nobody(
    store: QueryStore, fill: Filler, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(0)
    looks = 0
    look = store.projected

    async def counted() -> dict[int, int]:
        nonlocal looks
        looks += 1
        return await look()

    monkeypatch.setattr(store, "projected", counted)
    began = time.monotonic()
    waiting = [asyncio.create_task(store.wait_for({0: 1}, soon())) for _ in range(1000)]
    await store.wait_for({0: 0}, soon())
    for task in waiting[::2]:
        task.cancel()
    await fill(0)
    ended = await asyncio.gather(*waiting, return_exceptions=True)
    assert ended[1::2] == [None] * 500
    assert all(isinstance(end, asyncio.CancelledError) for end in ended[::2])
    assert looks <= 5 + (time.monotonic() - began) / 0.002


async def test_waiters_outlive_a_database_that_is_away(
    store: QueryStore, fill: Filler, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(0)
    failures = [asyncpg.CannotConnectNowError("starting up"), ConnectionRefusedError("not there"), ValueError("odd")]
    look = store.projected

    async def failing() -> dict[int, int]:
        if failures:
            raise failures.pop()
        return await look()

    monkeypatch.setattr(store, "projected", failing)
    await store.wait_for({0: 0}, soon())
    assert not failures


async def test_the_poller_ends_with_the_last_waiter(store: QueryStore, fill: Filler) -> None:
    await fill(0)
    await store.wait_for({0: 0}, soon())
    poller = store._poller
    assert poller is not None
    await asyncio.wait_for(poller, 5)
    await store.wait_for({0: 0}, soon())


@pytest.mark.parametrize(
    ("code", "outcome", "status"),
    [
        (Code.OK, None, Status.SETTLED),
        (Code.INSUFFICIENT_FUNDS, None, Status.REFUSED),
        (Code.IN_FLIGHT, None, Status.IN_FLIGHT),
        (Code.IN_FLIGHT, Code.OK, Status.SETTLED),
        (Code.IN_FLIGHT, Code.CREDIT_ACCOUNT_FROZEN, Status.REFUSED),
    ],
)
async def test_a_transfer_has_the_status_of_its_last_word(
    store: QueryStore, fill: Filler, code: Code, outcome: Code | None, status: Status
) -> None:
    id_ = ids.derive("a")
    await fill(transfers_full=[event(id_, Kind.TRANSFER, 10, code, note=b"{}", detail=7)])
    if outcome is not None:
        await fill(1, outcomes=[{"sent_at": 10, "payer": 1, "code": Code.OVERFLOW, "at": 1}])
        await fill(1, outcomes=[{"sent_at": 10, "payer": 0, "code": outcome, "at": 12}])
    (found,) = await store.transfer(id_)
    assert found.status is status
    assert found.code == (code if outcome is None else outcome)
    assert (found.debit, found.credit, found.amount, found.detail) == (PAYER, PAYEE, 100, 7)
    assert (found.note, found.at, found.changed_at, found.partition) == (b"{}", 10, 10 if outcome is None else 12, 0)


HOLD, SECOND = ids.derive("hold"), ids.derive("second")


@pytest.mark.parametrize(
    ("after", "outcome", "status", "posted"),
    [
        ([], None, Status.HELD, None),
        ([(Kind.POST, Code.OK)], None, Status.POSTED, 60),
        ([(Kind.POST, Code.EXCEEDS_HOLD)], None, Status.HELD, None),
        ([(Kind.POST, Code.IN_FLIGHT)], None, Status.IN_FLIGHT, None),
        ([(Kind.POST, Code.IN_FLIGHT)], Code.OK, Status.POSTED, 60),
        ([(Kind.POST, Code.IN_FLIGHT)], Code.CREDIT_ACCOUNT_CLOSED, Status.HELD, None),
        ([(Kind.POST, Code.IN_FLIGHT), (Kind.VOID, Code.OK)], Code.CREDIT_ACCOUNT_CLOSED, Status.VOIDED, None),
        ([(Kind.VOID, Code.OK)], None, Status.VOIDED, None),
        ([(Kind.VOID, Code.OK), (Kind.POST, Code.NOT_HELD)], None, Status.VOIDED, None),
        ([(Kind.EXPIRE, Code.OK)], None, Status.EXPIRED, None),
    ],
)
async def test_a_hold_has_the_status_that_ended_it(
    store: QueryStore, fill: Filler, after: list[tuple[Kind, Code]], outcome: Code | None, status: Status, posted: int
) -> None:
    # The one that had the id before it ended otherwise, and had a post in flight that was refused.
    await fill(transfers_full=[event(HOLD, Kind.HOLD, 2, expires_at=8)])
    await fill(transfers_ref=[event(ids.derive("post"), Kind.POST, 3, Code.IN_FLIGHT, ref=HOLD, amount=60)])
    await fill(1, outcomes=[{"sent_at": 3, "payer": 0, "code": Code.CREDIT_ACCOUNT_FROZEN, "at": 4}])
    await fill(transfers_ref=[event(ids.derive("void"), Kind.VOID, 5, ref=HOLD)])
    await fill(transfers_full=[event(HOLD, Kind.HOLD, 10, expires_at=99)])
    for number, (kind, code) in enumerate(after):
        id_ = HOLD if kind is Kind.EXPIRE else (SECOND[0], SECOND[1] + number)
        await fill(transfers_ref=[event(id_, kind, 20 + number, code, ref=HOLD, amount=60)])
    if outcome is not None:
        await fill(1, outcomes=[{"sent_at": 20, "payer": 0, "code": outcome, "at": 25}])
    other, found = await store.transfer(HOLD)
    assert (found.status, found.posted_amount, found.expires_at) == (status, posted, 99)
    assert (other.status, other.posted_amount, other.changed_at, other.at) == (Status.VOIDED, None, 5, 2)


async def test_what_ends_a_hold_means_the_one_that_lived_whatever_its_id_was_used_for_since(
    store: QueryStore, fill: Filler
) -> None:
    await fill(transfers_full=[event(HOLD, Kind.HOLD, 10, expires_at=99)])
    await fill(transfers=[event(HOLD, Kind.TRANSFER, 20)])
    await fill(transfers_full=[event(HOLD, Kind.HOLD, 21, Code.INSUFFICIENT_FUNDS)])
    await fill(transfers_ref=[event(SECOND, Kind.POST, 30, ref=HOLD, amount=60)])
    held, paid, refused = await store.transfer(HOLD)
    assert (held.status, held.posted_amount, held.changed_at) == (Status.POSTED, 60, 30)
    assert [(one.status, one.posted_amount) for one in (paid, refused)] == [
        (Status.SETTLED, None), (Status.REFUSED, None),
    ]  # fmt: skip


async def test_each_use_of_an_id_has_its_own_outcome_and_the_newest_is_last(store: QueryStore, fill: Filler) -> None:
    id_ = ids.derive("a")
    for at in (10, 20, 30):
        await fill(0, transfers=[event(id_, Kind.TRANSFER, at, Code.IN_FLIGHT, amount=at)])
    # The first is heard of last, when its namesakes are long there.
    await fill(0, outcomes=[{"sent_at": 20, "payer": 0, "code": Code.CREDIT_ACCOUNT_CLOSED, "at": 40}])
    await fill(1, outcomes=[{"sent_at": 10, "payer": 0, "code": Code.OK, "at": 50}])
    found = await store.transfer(id_)
    assert [(one.at, one.amount, one.status, one.changed_at) for one in found] == [
        (10, 10, Status.SETTLED, 50), (20, 20, Status.REFUSED, 40), (30, 30, Status.IN_FLIGHT, 30),
    ]  # fmt: skip
    await fill(1, outcomes=[{"sent_at": 30, "payer": 0, "code": Code.OK, "at": 60}])
    assert [one.status for one in await store.settled_transfer(id_, soon())] == [
        Status.SETTLED, Status.REFUSED, Status.SETTLED,
    ]  # fmt: skip


async def test_a_refund_is_of_one_use_of_an_id_even_if_its_own_id_was_used_before(
    store: QueryStore, fill: Filler
) -> None:
    paid, back = ids.derive("paid"), ids.derive("back")
    sides = {"debit": PAYEE, "credit": PAYER, "ref": paid}
    for at in (10, 20):
        await fill(0, transfers=[event(paid, Kind.TRANSFER, at)])
    await fill(1, transfers_ref=[event(back, Kind.REFUND, 15, Code.IN_FLIGHT, ref_at=10, amount=3, **sides)])
    await fill(1, transfers_ref=[event(back, Kind.REFUND, 25, Code.IN_FLIGHT, ref_at=20, amount=50, **sides)])
    await fill(0, outcomes=[{"sent_at": 15, "payer": 1, "code": Code.OK, "at": 16}])
    await fill(1, outcomes=[{"sent_at": 25, "payer": 1, "code": Code.CREDIT_ACCOUNT_FROZEN, "at": 27}])
    assert [one.refunded_amount for one in await store.transfer(paid)] == [3, 0]
    assert [one.status for one in await store.transfer(back)] == [Status.SETTLED, Status.REFUSED]


async def test_a_post_can_be_found_by_its_own_id(store: QueryStore, fill: Filler) -> None:
    await fill(transfers_full=[event(HOLD, Kind.HOLD, 10, expires_at=99)])
    await fill(transfers_ref=[event(SECOND, Kind.POST, 11, ref=HOLD)])
    (found,) = await store.transfer(SECOND)
    assert (found.kind, found.status, found.ref) == (Kind.POST, Status.POSTED, HOLD)


async def test_only_settled_refunds_of_this_payment_count(store: QueryStore, fill: Filler) -> None:
    await fill(transfers=[event(HOLD, Kind.TRANSFER, 10)])

    def refund(name: str, at: int, code: Code, amount: int, ref_at: int = 10) -> dict[str, Any]:
        accounts = {"debit": PAYEE, "credit": PAYER}
        return event(ids.derive(name), Kind.REFUND, at, code, ref=HOLD, ref_at=ref_at, amount=amount, **accounts)

    await fill(1, transfers_ref=[refund("a", 5, Code.OK, 10), refund("b", 6, Code.IN_FLIGHT, 20)])
    await fill(1, transfers_ref=[refund("c", 7, Code.EXCEEDS_ORIGINAL, 40), refund("d", 8, Code.IN_FLIGHT, 3)])
    await fill(1, transfers_ref=[refund("e", 9, Code.OK, 1, ref_at=4)])
    await fill(0, outcomes=[{"sent_at": 8, "payer": 1, "code": Code.OK, "at": 30}])
    (found,) = await store.transfer(HOLD)
    assert (found.status, found.refunded_amount) == (Status.SETTLED, 13)


async def test_one_who_waits_for_the_outcome_gets_it(store: QueryStore, fill: Filler) -> None:
    id_ = ids.derive("a")
    await fill(0, transfers=[event(id_, Kind.TRANSFER, 10, Code.IN_FLIGHT)])
    with pytest.raises(NotYetProjected):
        await store.settled_transfer(id_, soon(0.05))
    waiting = asyncio.create_task(store.settled_transfer(id_, soon()))
    await fill(1)
    await fill(1, outcomes=[{"sent_at": 10, "payer": 0, "code": Code.OK, "at": 30}])
    (found,) = await waiting
    assert found.status is Status.SETTLED
    assert await store.settled_transfer(ids.derive("nobody's"), soon()) == []


async def test_entries_come_newest_first_and_every_one_once(store: QueryStore, fill: Filler) -> None:
    moves = [{"account": PAYER, "at": 1000 * n, "amount": n % 4, "balance": n, "transfer": HOLD} for n in range(40)]
    await fill(entries=moves)
    await fill(entries=[{"account": PAYEE, "at": 5000, "amount": 5}])
    found, cursor = [], None
    while True:
        page = await store.entries(PAYER, 2000, 37_000, cursor, limit=7)
        found += [entry.at for entry in page.items]
        cursor = page.next_cursor
        if cursor is None:
            break
        assert len(page.items) == 7
    # An amount of 0 is a change of what is pending, and no movement.
    assert found == [1000 * n for n in range(36, 1, -1) if n % 4]
    assert (await store.entries(PAYEE)).items[0].amount == 5


@pytest.mark.parametrize("cursor", ["", "x", "A" * 23, "A" * 22 + "é", "=" * 23, "A" * 10_000, "\0" * 23])
async def test_an_absurd_cursor_is_a_value_error(store: QueryStore, cursor: str) -> None:
    with pytest.raises(ValueError, match="cursor"):
        await store.entries(PAYER, cursor=cursor)


async def test_a_cursor_of_another_account_is_refused(store: QueryStore, fill: Filler) -> None:
    await fill(entries=[{"account": PAYER, "at": n, "amount": 1} for n in range(3)])
    page = await store.entries(PAYER, limit=1)
    with pytest.raises(ValueError, match="cursor"):
        await store.entries(PAYEE, cursor=page.next_cursor)
    for limit in (0, -1, 1001):
        with pytest.raises(ValueError, match="limit"):
            await store.entries(PAYER, limit=limit)


async def test_the_balance_at_a_microsecond_includes_all_of_it(store: QueryStore, fill: Filler) -> None:
    await fill(account_changes=[{"account": PAYER, "at": 1_500, "kind": Kind.OPEN}])
    await fill(
        entries=[
            {"account": PAYER, "at": 5_999, "amount": 10, "balance": 10},
            {"account": PAYER, "at": 6_000, "amount": 0, "balance": 10, "pending": 4},
        ]
    )

    async def at(ns: int) -> tuple[int, int, int] | None:
        found = await store.balance_at(PAYER, ns)
        return None if found is None else (found.posted, found.pending, found.available)

    assert [await at(ns) for ns in (-1, 0, 999)] == [None, None, None]
    assert [await at(ns) for ns in (1_000, 1_999, 4_999)] == [(0, 0, 0)] * 3
    assert [await at(ns) for ns in (5_000, 5_999)] == [(10, 0, 10)] * 2
    assert [await at(ns) for ns in (6_000, 2**63 - 1, 2**70)] == [(10, 4, 6)] * 3


@pytest.mark.parametrize("account", [0, -1, 2**63, 2**64, 4711])
async def test_an_unknown_account_has_nothing(store: QueryStore, account: int) -> None:
    assert await store.balance_at(account, 10**18) is None
    assert await store.account(account) is None
    assert (await store.entries(account)).items == []


async def test_an_account_is_what_its_last_change_made_it(store: QueryStore, fill: Filler) -> None:
    kinds = [Kind.OPEN, Kind.FREEZE, Kind.UNFREEZE, Kind.FREEZE, Kind.UNFREEZE, Kind.CLOSE]
    seen = []
    for at, kind in enumerate(kinds):
        await fill(account_changes=[{"account": PAYER, "at": 100 + at, "kind": kind}])
        found = await store.account(PAYER)
        assert found is not None
        assert (found.opened_at, found.changed_at) == (100, 100 + at)
        seen.append(found.status)
    open_, frozen, closed = AccountStatus.OPEN, AccountStatus.FROZEN, AccountStatus.CLOSED
    assert seen == [open_, frozen, open_, frozen, open_, closed]
