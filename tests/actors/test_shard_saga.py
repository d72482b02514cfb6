"""Transfers across shards: one outcome, told when the payee's record is durable, finished by whoever restarts."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors import ledger
from actors.failpoints import NAMES, failpoints
from actors.recovery import Windows
from actors.shard import ShardLimits
from storage.events import Code, Kind, ResultFlag
from storage.journal.postgres import PostgresJournal
from tests.actors.shard_harness import (
    CAPACITY,
    SECOND_NS,
    GatedJournal,
    HandClock,
    Ledger,
    Running,
    account,
    event,
    linked,
    until,
)

A, B = account(0), account(1)
FAR = account(1, 99)  # nobody opened it


@pytest.fixture
async def two(database: str) -> AsyncIterator[Ledger]:
    journal = PostgresJournal(database)
    await journal.create(2)
    made = Ledger(journal, 2)
    yield made
    await made.close()
    await journal.close()


def transit(ledger_: Ledger) -> int:
    return sum(ledger.stats(running.shard.book).transit for running in ledger_.shards.values())


def repeats(running: Running) -> int:
    """Rows that wait for an id in flight."""
    assert running.shard._outbox is not None
    return running.shard._outbox.repeats


async def settled(ledger_: Ledger) -> None:
    """Until nothing is in flight; then transit must be even."""
    books = [running.shard.book for running in ledger_.shards.values()]
    await until(lambda: not any(ledger.stats(book).in_flight for book in books))
    assert transit(ledger_) == 0
    for book in books:
        ledger.check(book)


async def test_the_answer_is_the_payees_and_names_both_positions(two: Ledger) -> None:
    await two.start(0)
    await two.start(1)
    await two.fund(A, B)
    row = event(Kind.TRANSFER, A, B, 300)
    outcome = await two.apply(row)
    assert outcome.results["code"][0] == Code.OK
    assert set(outcome.positions) == {0, 1}
    legs = [(record, leg) for record in await two.records(1) for leg in record.rows if leg["kind"] == Kind.CREDIT_LEG]
    assert len(legs) == 1
    assert outcome.positions[1] == legs[0][0].offset
    assert int(legs[0][1]["debit"]) == A
    assert (await two.available(A), await two.available(B)) == (700, 1_300)
    await settled(two)
    again = (await two.apply(row)).results[0]
    assert (again["code"], again["flags"]) == (Code.OK, ResultFlag.REPLAYED)
    assert again["at"] == outcome.results["at"][0] // 1000 * 1000  # as it is remembered


async def test_a_refusal_by_the_payee_gives_the_money_back(two: Ledger) -> None:
    await two.start(0)
    await two.start(1)
    await two.fund(A, B)
    row = event(Kind.TRANSFER, A, FAR, 300)
    assert await two.code(row) == Code.UNKNOWN_CREDIT_ACCOUNT
    await settled(two)
    assert await two.available(A) == 1_000
    assert await two.code(row) == Code.UNKNOWN_CREDIT_ACCOUNT


async def test_holds_posts_and_refunds_cross_shards(two: Ledger) -> None:
    await two.start(0)
    await two.start(1)
    await two.fund(A, B)
    hold = event(Kind.HOLD, A, B, 200, span=60 * SECOND_NS)
    assert await two.code(hold) == Code.OK
    post = event(Kind.POST, A, B, 150, ref_hi=hold["id_hi"][0], ref_lo=hold["id_lo"][0])
    assert await two.code(post) == Code.OK
    transfer = event(Kind.TRANSFER, A, B, 100)
    at = (await two.apply(transfer)).results["at"][0]
    refund = event(
        Kind.REFUND, B, A, 40, ref_hi=transfer["id_hi"][0], ref_lo=transfer["id_lo"][0], total=100, span=int(at)
    )
    assert await two.code(refund) == Code.OK
    assert (await two.available(A), await two.available(B)) == (790, 1_210)
    await settled(two)


async def test_what_goes_in_flight_is_found_without_a_look_at_all_that_is(
    two: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    await two.start(0, limits=ShardLimits(wait_s=0.1))
    await two.start(1)
    await two.fund(A, B)
    await two.shards[1].crash()
    monkeypatch.setattr(ledger, "in_flight", None)  # which walks everything
    assert set((await two.apply(*(event(Kind.TRANSFER, A, B, 1) for _ in range(20)))).results["code"]) == {Code.UNSURE}
    hold = event(Kind.HOLD, A, B, 200, span=60 * SECOND_NS)
    assert await two.code(hold) == Code.OK
    post = event(Kind.POST, A, B, 150, ref_hi=hold["id_hi"][0], ref_lo=hold["id_lo"][0])
    assert await two.code(post) == Code.UNSURE
    assert two.shards[0].shard.serving
    monkeypatch.undo()
    await two.start(1)
    await settled(two)
    assert (await two.available(A), await two.available(B)) == (830, 1_170)


async def test_local_transfers_of_a_batch_are_answered_while_others_wait_for_another_shard(two: Ledger) -> None:
    gated = GatedJournal(two.journal)
    await two.start(0)
    await two.start(1, journal=gated)
    await two.fund(A, B, account(0, 5))
    gated.gate.clear()
    crossing = asyncio.ensure_future(two.apply(event(Kind.TRANSFER, A, B, 1)))
    local = [two.apply(event(Kind.TRANSFER, A, account(0, 5), 1)) for _ in range(20)]
    outcomes = await asyncio.gather(*local)
    assert all(outcome.results["code"][0] == Code.OK for outcome in outcomes)
    assert not crossing.done()
    gated.gate.set()
    assert (await crossing).results["code"][0] == Code.OK


async def test_a_repeat_of_an_id_in_flight_waits_for_the_same_outcome(two: Ledger) -> None:
    gated = GatedJournal(two.journal)
    await two.start(0)
    await two.start(1, journal=gated)
    await two.fund(A, B)
    gated.gate.clear()
    row = event(Kind.TRANSFER, A, B, 1)
    first = asyncio.ensure_future(two.apply(row))
    await until(lambda: ledger.stats(two.shards[0].shard.book).in_flight == 1)
    second = asyncio.ensure_future(two.apply(row))
    await until(lambda: repeats(two.shards[0]) == 1)
    gated.gate.set()
    assert (await first).results["code"][0] == Code.OK
    repeated = (await second).results[0]
    assert (repeated["code"], repeated["flags"]) == (Code.OK, ResultFlag.REPLAYED)
    assert repeats(two.shards[0]) == 0
    assert await two.available(B) == 1_001


async def test_a_repeat_is_told_the_outcome_also_when_it_comes_between_the_answer_and_the_settle(two: Ledger) -> None:
    gated = GatedJournal(two.journal)
    await two.start(0, journal=gated)
    await two.start(1)
    await two.fund(A, B)
    row = event(Kind.TRANSFER, A, B, 1)
    refused = event(Kind.TRANSFER, A, FAR, 1)
    outbox = two.shards[0].shard._outbox
    assert outbox is not None
    enqueue = outbox._enqueue

    def closing(*outcomes: Any) -> None:
        gated.gate.clear()
        gated.waiting.clear()
        enqueue(*outcomes)

    outbox._enqueue = closing
    first = asyncio.ensure_future(two.apply(row, refused))
    await until(lambda: not gated.gate.is_set())
    again = [asyncio.ensure_future(two.apply(one)) for one in (row, refused)]
    await until(gated.waiting.is_set)
    outbox._enqueue = enqueue
    gated.gate.set()
    codes = [int(outcome.results["code"][0]) for outcome in await asyncio.gather(*again)]
    assert (await first).results["code"].tolist() == codes == [Code.OK, Code.UNKNOWN_CREDIT_ACCOUNT]
    assert repeats(two.shards[0]) == 0


async def test_no_more_repeats_wait_than_may_and_the_others_are_told_unsure(two: Ledger) -> None:
    gated = GatedJournal(two.journal)
    await two.start(0, limits=ShardLimits(waiting_rows=2))
    await two.start(1, journal=gated)
    await two.fund(A, B)
    gated.gate.clear()
    row = event(Kind.TRANSFER, A, B, 1)
    first = asyncio.ensure_future(two.apply(row))
    await until(lambda: ledger.stats(two.shards[0].shard.book).in_flight == 1)
    again = [asyncio.ensure_future(two.apply(row)) for _ in range(5)]
    await until(lambda: sum(call.done() for call in again) == 3)
    gated.gate.set()
    await first
    codes = sorted(int(outcome.results["code"][0]) for outcome in await asyncio.gather(*again))
    assert codes == [Code.OK] * 2 + [Code.UNSURE] * 3
    assert await two.available(B) == 1_001


async def test_a_refusal_is_told_when_the_money_is_back_for_good_and_a_payment_when_the_payee_has_it(
    two: Ledger,
) -> None:
    gated = GatedJournal(two.journal)
    await two.start(0, journal=gated)
    await two.start(1)
    await two.fund(A, B)
    passed: list[str] = []

    def at(step: str) -> None:
        passed.append(step)
        if step == "leg-answered":
            gated.gate.clear()  # nothing becomes durable at the payer's from here on

    outbox = two.shards[0].shard._outbox
    assert outbox is not None
    outbox._failpoint = at
    refused, paid = event(Kind.TRANSFER, A, FAR, 900), event(Kind.TRANSFER, A, B, 10)
    other = two.new_client()
    call = asyncio.ensure_future(two.apply(refused))
    good = asyncio.ensure_future(other.apply(paid, None, time.monotonic() + 20))
    await until(lambda: bool(passed) and gated.waiting.is_set())
    if len(passed) == 1 and not good.done():  # they travelled in two batches
        await until(lambda: len(passed) == 2)
    await until(good.done)
    assert (await good).results["code"][0] == Code.OK
    assert not call.done()
    head = await two.journal.head(0)
    gated.gate.set()
    outcome = await call
    assert outcome.results["code"][0] == Code.UNKNOWN_CREDIT_ACCOUNT
    assert outcome.positions[0] >= head  # who waits for it sees the money
    await two.shards[0].crash()
    await two.start(0)
    assert await two.available(A) == 990
    await other.close()


async def test_a_caller_is_told_unsure_when_the_other_shard_stays_silent_and_later_the_truth(two: Ledger) -> None:
    await two.start(0, limits=ShardLimits(wait_s=0.3))
    await two.start(1)
    await two.fund(A, B)
    await two.shards[1].crash()
    row = event(Kind.TRANSFER, A, B, 1)
    assert await two.code(row, within_s=5) == Code.UNSURE  # long before the caller's own deadline
    outbox = two.shards[0].shard._outbox
    assert outbox is not None
    assert not outbox._lanes[1].waiting
    await two.start(1)
    await settled(two)
    assert await two.code(row) == Code.OK


async def test_a_restarted_payer_finishes_what_it_had_in_flight(two: Ledger) -> None:
    await two.start(0)
    await two.start(1)
    await two.fund(A, B)
    await two.shards[1].crash()
    del two.addresses[1]
    rows = [event(Kind.TRANSFER, A, B, 1) for _ in range(5)] + [event(Kind.TRANSFER, A, FAR, 1)]
    outcome = await two.apply(*rows, within_s=0.5)
    assert (outcome.results["code"] == Code.UNSURE).all()
    await two.shards[0].crash()
    await two.start(1)
    await two.start(0)
    await settled(two)
    assert (await two.available(A), await two.available(B)) == (995, 1_005)
    codes = (await two.apply(*rows)).results["code"].tolist()
    assert codes == [Code.OK] * 5 + [Code.UNKNOWN_CREDIT_ACCOUNT]


async def test_a_payee_that_dies_after_its_append_does_not_pay_twice(two: Ledger) -> None:
    gated = GatedJournal(two.journal)
    await two.start(0)
    await two.start(1, journal=gated)
    await two.fund(A, B)
    gated.waiting.clear()
    dying = two.shards[1]
    dying.shard._answer = lambda group: None  # type: ignore[method-assign]
    row = event(Kind.TRANSFER, A, B, 10)
    head = await two.journal.head(1)
    call = asyncio.ensure_future(two.apply(row))
    while await two.journal.head(1) == head:  # noqa: ASYNC110 - the journal is not ours to be told by
        await asyncio.sleep(0.01)
    await dying.crash()
    await two.start(1)
    assert (await call).results["code"][0] == Code.OK
    await settled(two)
    assert await two.available(B) == 1_010


@pytest.mark.parametrize("apart_s", [-3_600.0, 60.0, 365 * 24 * 3_600.0])
async def test_a_leg_is_applied_once_however_late_it_comes_and_whatever_the_clocks_say(
    two: Ledger, apart_s: float
) -> None:
    windows = Windows(id_window_ns=2 * SECOND_NS, id_skew_ns=SECOND_NS)
    await two.start(0, windows=windows)
    await two.start(1, windows=windows)
    await two.fund(A, B)
    await two.shards[1].crash()
    row = event(Kind.TRANSFER, A, B, 10)
    call = asyncio.ensure_future(two.apply(row))
    await until(lambda: ledger.stats(two.shards[0].shard.book).in_flight == 1)
    late = HandClock()
    late.wall_offset_s, late.is_synchronised = apart_s, True
    await two.start(1, windows=windows, clock=late)
    assert (await call).results["code"][0] == Code.OK
    await settled(two)
    assert (await two.available(A), await two.available(B)) == (990, 1_010)


async def test_a_payer_that_forgot_the_answer_sends_its_legs_again_and_nobody_is_paid_twice(two: Ledger) -> None:
    gated = GatedJournal(two.journal)
    await two.start(0, journal=gated)
    await two.start(1)
    await two.fund(A, B)
    outbox = two.shards[0].shard._outbox
    assert outbox is not None
    outbox._enqueue = lambda *_: None  # it dies before its outcomes are durable
    rows = [event(Kind.TRANSFER, A, to, 10) for to in (B, FAR, B)]
    codes = (await two.apply(*rows, within_s=0.5)).results["code"].tolist()
    assert codes == [Code.OK, Code.UNSURE, Code.OK]
    await two.shards[0].crash()
    await two.shards[1].crash()
    await two.start(1)
    await two.start(0)
    await settled(two)
    assert (await two.available(A), await two.available(B)) == (980, 1_020)
    assert (await two.apply(*rows)).results["code"].tolist() == [Code.OK, Code.UNKNOWN_CREDIT_ACCOUNT, Code.OK]


async def test_shards_that_pay_one_another_under_full_queues_do_not_lock_up(two: Ledger) -> None:
    limits = ShardLimits(queue_rows=40, group_rows=16, overlap_rows=8)
    await two.start(0, limits=limits)
    await two.start(1, limits=limits)
    await two.fund(A, B, amount=10**6)
    clients = [two.new_client() for _ in range(6)]
    paid = 0

    async def pay(number: int) -> int:
        good = 0
        for _ in range(25):
            pair = (A, B) if number % 2 else (B, A)
            rows = np.concatenate([event(Kind.TRANSFER, *pair, 1) for _ in range(12)])
            codes = (await clients[number].apply(rows, None, time.monotonic() + 30)).results["code"]
            assert set(codes.tolist()) <= {Code.OK, Code.OVERLOADED}
            good += int((codes == Code.OK).sum()) * (1 if number % 2 else -1)
        return good

    paid = sum(await asyncio.gather(*(pay(number) for number in range(6))))
    await settled(two)
    assert await two.available(B) == 10**6 + paid
    for client in clients:
        await client.close()


async def test_a_full_outbox_refuses_after_the_id_was_looked_up_whole_chains_at_a_time_and_no_others(
    two: Ledger,
) -> None:
    near = account(0, 5)
    await two.start(0, limits=ShardLimits(wait_s=0.2), capacity=CAPACITY._replace(outbox=4))
    await two.start(1)
    await two.fund(A, B, near)
    await two.shards[1].crash()
    sent = [event(Kind.TRANSFER, A, B, 1) for _ in range(4)]
    for row in sent:
        assert await two.code(row, within_s=3) == Code.UNSURE
    mixed = [event(Kind.TRANSFER, A, B, 1), event(Kind.TRANSFER, A, near, 1), event(Kind.TRANSFER, A, B, 1)]
    assert (await two.apply(*mixed)).results["code"].tolist() == [Code.OUTBOX_FULL, Code.OK, Code.OUTBOX_FULL]
    chain = linked(event(Kind.TRANSFER, A, near, 1), event(Kind.TRANSFER, A, B, 1), event(Kind.TRANSFER, A, near, 1))
    stranger = event(Kind.TRANSFER, near, A, 10**6)
    other = two.new_client()
    outcomes = await asyncio.gather(two.apply(chain), other.apply(stranger, None, time.monotonic() + 10))
    codes = [outcome.results["code"].tolist() for outcome in outcomes]
    assert codes == [[Code.LINKED_FAILED, Code.NOT_LINKABLE, Code.LINKED_FAILED], [Code.INSUFFICIENT_FUNDS]]
    repeat = (await two.apply(sent[0], within_s=3)).results["code"][0]
    assert repeat == Code.UNSURE  # never: nothing was done
    assert await two.available(A) == 1_000 - 4 - 1
    await two.start(1)
    await settled(two)
    assert [await two.code(row) for row in (*sent, mixed[0])] == [Code.OK] * 5
    assert await two.available(B) == 1_005
    await other.close()


async def test_a_chain_over_two_shards_is_refused_before_it_is_sent(two: Ledger) -> None:
    await two.start(0)
    await two.start(1)
    await two.fund(A, B, account(0, 5))
    spanning = linked(event(Kind.TRANSFER, A, account(0, 5), 1), event(Kind.DEPOSIT, 1, B, 1))
    crossing = linked(event(Kind.TRANSFER, A, account(0, 5), 1), event(Kind.TRANSFER, A, B, 1))
    outcome = await two.apply(spanning, event(Kind.TRANSFER, A, account(0, 5), 1), crossing)
    codes = outcome.results["code"].tolist()
    assert codes == [Code.NOT_LINKABLE, Code.NOT_LINKABLE, Code.OK, Code.LINKED_FAILED, Code.NOT_LINKABLE]
    assert await two.available(A) == 999


def test_a_fail_point_kills_once(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib; from actors.failpoints import failpoints\n"
        "at = failpoints(pathlib.Path(sys.argv[1])); at('leg-durable'); print('alive', flush=True); at('debit-durable')"
    )
    (tmp_path / "debit-durable").touch()
    run = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False)
    assert (run.stdout.strip(), run.returncode) == ("alive", -9)
    assert list(tmp_path.iterdir()) == []
    failpoints(None)("leg-durable")


async def test_a_transfer_passes_every_step_that_a_fail_point_names(two: Ledger) -> None:
    passed: list[str] = []
    for partition in (0, 1):
        running = await two.start(partition)
        running.shard._failpoint = passed.append
        running.shard._outbox._failpoint = passed.append  # type: ignore[union-attr]
    await two.fund(A, B)
    assert await two.code(event(Kind.TRANSFER, A, B, 1)) == Code.OK
    await settled(two)
    await until(lambda: len(passed) == len(NAMES))
    assert sorted(passed) == sorted(NAMES)
