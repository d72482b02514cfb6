"""Time: a stamp runs ahead of the last one only as far as something speaks for it, and never stands still."""

from __future__ import annotations

import time

import numpy as np
import pytest

from actors import ledger
from actors.clock import StampClock, SystemClock
from actors.shard_client import ShardUnavailable
from storage.events import Code, Kind
from storage.journal.postgres import PostgresJournal
from tests.actors.shard_harness import SECOND_NS, HandClock, Ledger, account, event, until
from tests.actors.test_shard import one

__all__ = ["one"]

A, B = account(0, 1), account(0, 2)
FAR = account(1, 1)
START_NS = 1_800_000_000 * SECOND_NS
HOUR_S = 3600.0


class Hand:
    """Clocks that stand where the test puts them, seconds."""

    def __init__(self) -> None:
        self.wall_s = 0.0
        self.monotonic_s = 50.0
        self.right = False

    def wall_ns(self) -> int:
        return START_NS + int(self.wall_s * 1e9)

    def monotonic(self) -> float:
        return self.monotonic_s

    def synchronised(self) -> bool:
        return self.right

    def passes(self, seconds: float) -> None:
        self.wall_s += seconds
        self.monotonic_s += seconds


def stamps(last_ns: int = START_NS) -> tuple[Hand, StampClock]:
    hand = Hand()
    return hand, StampClock(hand, last_ns, name="shard 0")


def given(clock: StampClock) -> float:
    """The time that it gives, in seconds after the start."""
    now = clock.now_ns()
    assert now is not None
    return (now - START_NS) / 1e9


@pytest.mark.parametrize("jump_s", [1.5, 301.0, 3 * HOUR_S, 24 * HOUR_S, 1e9])
def test_a_wall_clock_that_jumps_ahead_is_not_believed(jump_s: float) -> None:
    hand, clock = stamps()
    given(clock)
    hand.passes(10)
    hand.wall_s += jump_s
    assert clock.now_ns() is None
    assert clock.ahead_s == pytest.approx(jump_s)
    hand.passes(7 * 24 * HOUR_S)  # however long that lasts
    assert clock.now_ns() is None
    hand.wall_s -= jump_s
    assert given(clock) == pytest.approx(10 + 7 * 24 * HOUR_S)
    assert clock.ahead_s == 0


@pytest.mark.parametrize("idle_s", [0.0, 1.0, 13 * HOUR_S, 90 * 24 * HOUR_S])
def test_time_that_has_passed_by_the_monotonic_clock_is_believed_whatever_stood_still(idle_s: float) -> None:
    hand, clock = stamps()
    given(clock)
    hand.passes(idle_s)
    hand.wall_s += 0.9  # and a small skew
    assert given(clock) == pytest.approx(idle_s + 0.9)


def test_a_jump_is_believed_when_the_kernel_says_that_the_clock_is_kept_right() -> None:
    hand, clock = stamps()
    given(clock)
    hand.wall_s += 600  # a virtual machine was paused for so long
    hand.right = True
    assert given(clock) == pytest.approx(600)
    hand.right = False
    hand.passes(1)
    assert given(clock) == pytest.approx(601)


def test_a_jump_is_believed_when_an_operator_accepts_it_and_the_next_one_is_not() -> None:
    hand, clock = stamps()
    given(clock)
    hand.wall_s += HOUR_S
    assert clock.now_ns() is None
    clock.accept()
    hand.passes(5)
    assert given(clock) == pytest.approx(HOUR_S + 5)
    hand.wall_s += HOUR_S
    assert clock.now_ns() is None


@pytest.mark.parametrize("back_s", [0.5, 30.0, 5 * HOUR_S])
def test_behind_a_clock_that_went_back_time_goes_on_at_half_its_pace_until_they_meet(back_s: float) -> None:
    hand, clock = stamps()
    hand.passes(2 * back_s)
    last = given(clock)
    hand.wall_s -= back_s
    steps = 8
    for _ in range(steps):
        hand.passes(back_s / 4)
        now = given(clock)
        assert last < now <= last + back_s / 4
        last = now
    assert last == pytest.approx(hand.wall_s)


def test_a_clock_that_went_back_and_is_put_right_is_believed_but_no_further() -> None:
    hand, clock = stamps()
    hand.passes(10)
    given(clock)
    hand.wall_s -= HOUR_S
    hand.passes(60)
    given(clock)
    hand.wall_s += HOUR_S
    assert given(clock) == pytest.approx(70)
    hand.wall_s += 1.5
    assert clock.now_ns() is None


def test_many_small_steps_ahead_are_no_more_than_a_large_one() -> None:
    hand, clock = stamps()
    given(clock)
    for _ in range(9):
        hand.passes(0.1)
        hand.wall_s += 0.1
        given(clock)
    hand.passes(0.1)
    hand.wall_s += 0.2
    assert clock.now_ns() is None


def test_a_clock_that_is_slewed_as_fast_as_ntp_does_is_believed_for_good() -> None:
    hand, clock = stamps()
    for _ in range(10_000):
        hand.passes(60)
        hand.wall_s += 60 * 499e-6
        given(clock)


def test_a_clock_that_stands_still_still_gives_later_times() -> None:
    hand, clock = stamps()
    times = [given(clock) for _ in range(3)]
    hand.monotonic_s += 10
    times.append(given(clock))
    hand.monotonic_s -= 5  # as after a start from another machine's memory
    times.append(given(clock))
    assert times == sorted(set(times))
    assert times[3] - times[2] == pytest.approx(5)


@pytest.mark.parametrize(("gap_s", "believed"), [(-HOUR_S, True), (11.9 * HOUR_S, True), (12.1 * HOUR_S, False)])
def test_at_the_start_half_a_day_may_have_passed_since_the_last_stamp_and_no_more(gap_s: float, believed: bool) -> None:
    hand, clock = stamps()
    hand.wall_s = gap_s
    assert (clock.now_ns() is not None) is believed
    if believed:
        assert clock.last_ns >= START_NS
        return
    clock.accept()
    assert given(clock) == pytest.approx(gap_s)


def test_a_new_ledger_believes_its_clock() -> None:
    _, clock = stamps(0)
    assert given(clock) == 0


def test_the_machines_clock_answers() -> None:
    clock = SystemClock()
    assert abs(clock.wall_ns() - time.time_ns()) < SECOND_NS
    assert clock.monotonic() <= clock.monotonic()
    assert clock.synchronised() in {True, False}


async def test_a_shard_whose_clock_jumped_decides_nothing_and_says_so_until_it_is_right(one: Ledger) -> None:
    clock = HandClock()
    running = await one.start(0, clock=clock)
    await one.fund(A, B)
    hold = event(Kind.HOLD, A, B, 100, span=60 * SECOND_NS)
    assert await one.code(hold) == Code.OK
    clock.wall_offset_s = 24 * HOUR_S
    row = event(Kind.TRANSFER, A, B, 1)
    head = await one.journal.head(0)
    assert await one.code(row) == Code.NOT_SERVING
    with pytest.raises(ShardUnavailable, match="does not serve"):
        await one.available(A)
    with pytest.raises(ShardUnavailable, match="does not serve"):
        await one.client.heads(time.monotonic() + 5)
    with pytest.raises(ShardUnavailable, match="NOT_SERVING"):
        await one.client.find((1, 0), 0, time.monotonic() + 5)
    (stats,) = await one.client.stats(time.monotonic() + 5)
    assert stats.clock_ahead_s == pytest.approx(24 * HOUR_S, abs=5)
    assert await one.journal.head(0) == head
    assert ledger.stats(running.shard.book).holds == 1  # it did not expire a day early
    clock.wall_offset_s = 0.0
    assert await one.code(row) == Code.OK
    assert await one.available(A) == 899


async def test_an_operator_lets_a_shard_go_on_with_the_clock_it_has(one: Ledger) -> None:
    clock = HandClock()
    running = await one.start(0, clock=clock)
    await one.fund(A, B)
    await one.code(event(Kind.HOLD, A, B, 100, span=60 * SECOND_NS))
    await running.crash()
    clock.wall_offset_s = 13 * HOUR_S
    running = await one.start(0, clock=clock)
    fresh = one.new_client()
    refused = await fresh.apply(event(Kind.TRANSFER, A, B, 1), None, time.monotonic() + 5)
    assert refused.results["code"][0] == Code.NOT_SERVING
    stats = await one.client.accept_clock(0, time.monotonic() + 5)
    assert stats.clock_ahead_s == 0
    await until(lambda: ledger.stats(running.shard.book).holds == 0)
    assert await one.available(A) == 1_000
    await fresh.close()


async def test_outcomes_and_legs_wait_for_the_clock_and_nothing_is_lost(database: str) -> None:
    journal = PostgresJournal(database)
    await journal.create(2)
    two = Ledger(journal, 2)
    clocks = [HandClock(), HandClock()]
    for partition in (0, 1):
        await two.start(partition, clock=clocks[partition])
    await two.fund(A, FAR)
    clocks[1].wall_offset_s = 24 * HOUR_S
    row = event(Kind.TRANSFER, A, FAR, 1)
    assert await two.code(row, within_s=0.5) == Code.UNSURE  # the payer's shard serves
    clocks[0].wall_offset_s = 24 * HOUR_S
    clocks[1].wall_offset_s = 0.0
    far = two.shards[1].shard
    await until(lambda: any(read["posted"] == 1_001 for read in _read(far.book, FAR)))
    assert ledger.stats(two.shards[0].shard.book).in_flight == 1
    clocks[0].wall_offset_s = 0.0
    await until(lambda: ledger.stats(two.shards[0].shard.book).in_flight == 0)
    assert await two.code(row) == Code.OK
    await two.close()
    await journal.close()


def _read(book: ledger.Book, number: int) -> np.ndarray:
    found: np.ndarray = ledger.read_accounts(book, np.array([number], np.uint64), np.zeros(1, np.uint64), 0)
    return found
