"""What is in flight: sent in the order of its numbers until it is decided, and told to whoever waits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from actors.failpoints import nothing
from actors.frames import ROWS_MAX
from actors.outbox import Outbox
from storage.events import EVENT, RESULT, Code, Kind
from tests.actors.shard_harness import account, until

AWAY = account(0)
Told = list[tuple[list[int], list[int], dict[int, int]]]


def legs(first: int, count: int, partition: int = 1) -> np.ndarray:
    """Legs with the numbers from `first` on, which are also their ids and (in µs) their stamps."""
    rows = np.zeros(count, EVENT)
    numbers = np.arange(first, first + count)
    rows["kind"], rows["reason"] = Kind.CREDIT_LEG, Kind.TRANSFER
    rows["debit"], rows["credit"], rows["amount"] = AWAY, account(partition), 1
    rows["id_lo"], rows["total"], rows["span"] = numbers, numbers, numbers * 1_000 + 999
    return rows


class Bench:
    """An outbox between other shards and an own one that the test plays."""

    def __init__(self, waiting_rows: int = 100) -> None:
        self.now = 0.0
        self.sent: list[tuple[int, np.ndarray]] = []
        self.answers: list[asyncio.Future[Any]] = []
        self.outcomes: list[np.ndarray] = []
        self.durable: list[Callable[[dict[int, int]], None]] = []
        self.told: Told = []
        self.outbox = Outbox(
            self,
            3,
            enqueue=self.enqueue,
            now=lambda: self.now,
            failpoint=nothing,
            fatal=self.fatal,
            waiting_rows=waiting_rows,
        )

    def legs(self, partition: int, rows: np.ndarray) -> asyncio.Future[Any]:
        self.sent.append((partition, rows.copy()))
        self.answers.append(asyncio.get_running_loop().create_future())
        return self.answers[-1]

    def enqueue(self, rows: np.ndarray, durable: Callable[[dict[int, int]], None]) -> None:
        self.outcomes.append(rows)
        self.durable.append(durable)

    def fatal(self, error: BaseException) -> None:
        raise error

    def tell(self, rows: np.ndarray, codes: np.ndarray, positions: dict[int, int]) -> None:
        self.told.append((rows.tolist(), codes.tolist(), positions))

    def send(self, first: int, count: int, partition: int = 1) -> None:
        """Rows of the group have the legs' numbers."""
        self.outbox.send(legs(first, count, partition), self.tell, np.arange(first, first + count))

    async def answer(self, *codes: int) -> None:
        """The newest batch."""
        results = np.zeros(len(self.sent[-1][1]), RESULT)
        results["code"][: len(codes)] = codes
        results["code"][len(codes) :] = codes[-1]
        self.answers[-1].set_result((results, {1: 7}))
        for _ in range(3):
            await asyncio.sleep(0)

    def numbers(self) -> list[int]:
        """Of the newest batch."""
        return [int(number) for number in self.sent[-1][1]["total"]]


async def test_one_batch_is_under_way_while_the_next_gathers_in_the_order_of_the_numbers() -> None:
    bench = Bench()
    bench.send(1, 2)
    bench.send(3, 1)
    bench.send(4, ROWS_MAX)
    bench.send(1, 1, partition=2)
    assert [(partition, len(rows)) for partition, rows in bench.sent] == [(1, 2), (2, 1)]
    bench.answers[0].set_result((np.zeros(2, RESULT), {}))
    await asyncio.sleep(0)
    assert bench.numbers() == list(range(3, 3 + ROWS_MAX))
    assert bench.outbox.rows.tolist() == [0, ROWS_MAX + 1, 1]
    await bench.answer(Code.OK)
    assert bench.numbers() == [3 + ROWS_MAX]


@pytest.mark.parametrize("code", [c for c in Code if c >= Code.ID_CONFLICT])
async def test_what_is_not_decided_stays_and_all_behind_it_and_one_timer_sends_it_again(
    code: Code, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actors.outbox._AGAIN_S", 0.02)
    bench = Bench()
    bench.send(1, 5)
    bench.send(6, 1)
    await bench.answer(Code.OK, Code.CREDIT_ACCOUNT_CLOSED, code, Code.OK, Code.OK)
    assert [rows["ref_lo"].tolist() for rows in bench.outcomes] == [[1, 2]]
    for _ in range(3):
        sent = len(bench.sent)
        await until(lambda: len(bench.sent) > sent)  # noqa: B023 - waited for here
        assert len(bench.sent) == sent + 1
        assert bench.numbers() == [3, 4, 5, 6]
        await bench.answer(code)
    assert bench.outbox.rows[1] == 4
    bench.outbox.close()


async def test_each_decided_leg_becomes_a_settle_or_a_revert_that_names_its_flight() -> None:
    bench = Bench()
    bench.send(1, 3)
    await bench.answer(Code.OK, Code.UNKNOWN_CREDIT_ACCOUNT, Code.OK)
    (rows,) = bench.outcomes
    assert rows["kind"].tolist() == [Kind.SETTLE, Kind.REVERT, Kind.SETTLE]
    assert rows["ref_hi"].tolist() == [1, 1, 1]
    assert rows["ref_lo"].tolist() == rows["id_lo"].tolist() == [1, 2, 3]
    assert rows["reason"].tolist() == [Kind.TRANSFER, Code.UNKNOWN_CREDIT_ACCOUNT, Kind.TRANSFER]


async def test_a_payee_may_forget_only_what_is_durable_here() -> None:
    bench = Bench()
    bench.send(1, 3)
    assert bench.sent[-1][1]["check"].tolist() == [0, 0, 0]
    await bench.answer(Code.OK)
    bench.send(4, 1)
    assert bench.sent[-1][1]["check"].tolist() == [0]  # their outcomes are queued, no more
    await bench.answer(Code.OK)
    bench.durable[0]({0: 1})
    bench.send(5, 1)
    assert bench.sent[-1][1]["check"].tolist() == [3]


async def test_a_successor_goes_on_where_its_predecessor_was() -> None:
    bench = Bench()
    bench.outbox.resume(np.concatenate([legs(8, 3), legs(2, 1, partition=2)]), np.array([5, 10, 2]))
    assert [(partition, rows["total"].tolist()) for partition, rows in bench.sent] == [(1, [8, 9, 10]), (2, [2])]
    assert [rows["check"].tolist() for _, rows in bench.sent] == [[7, 7, 7], [1]]
    bench.send(6, 1, partition=0)
    assert bench.sent[-1][1]["check"].tolist() == [5]
    bench.send(11, 1)  # who waits for it is told, whoever waited for those before
    bench.answers[0].set_result((np.zeros(3, RESULT), {1: 5}))
    await asyncio.sleep(0)
    assert bench.told == []
    bench.answers[-1].set_result((np.zeros(1, RESULT), {1: 6}))
    await asyncio.sleep(0)
    assert bench.told == [([11], [Code.OK], {1: 6})]


async def test_paid_is_told_when_the_payee_has_it_and_refused_when_the_money_is_back_for_good() -> None:
    bench = Bench()
    bench.send(1, 4)
    await bench.answer(Code.OK, Code.CREDIT_ACCOUNT_CLOSED, Code.OVERFLOW, Code.OK)
    assert bench.told == [([1, 4], [Code.OK, Code.OK], {1: 7})]
    bench.told.clear()
    bench.durable[0]({0: 9})
    assert bench.told == [([2, 3], [Code.CREDIT_ACCOUNT_CLOSED, Code.OVERFLOW], {0: 9, 1: 7})]


async def test_rows_of_several_groups_are_told_in_order_whatever_the_batches_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("actors.outbox._AGAIN_S", 0.0)
    bench = Bench()
    bench.send(1, 1)
    for first, count in ((2, 3), (5, 2)):
        bench.send(first, count)
    await bench.answer(Code.OK)
    assert bench.numbers() == [2, 3, 4, 5, 6]
    await bench.answer(Code.OK, Code.OK, Code.BOOK_FULL)
    assert bench.numbers() == [4, 5, 6]
    await bench.answer(Code.OK)
    assert [rows for rows, _, _ in bench.told] == [[1], [2, 3], [4], [5, 6]]
    assert not bench.outbox._lanes[1].waiting


async def test_who_waits_too_long_is_told_unsure_once_and_the_legs_go_on() -> None:
    bench = Bench()
    bench.send(1, 2)
    assert bench.outbox.wait_too(0, 1, 1_000, bench.tell, 50)
    bench.now = 10.0
    bench.send(3, 1)
    bench.outbox.give_up(5.0)
    assert bench.told == [([1, 2], [Code.UNSURE] * 2, {}), ([50], [Code.UNSURE], {})]
    bench.told.clear()
    await bench.answer(Code.OK)
    await bench.answer(Code.OK)
    assert bench.told == [([3], [Code.OK], {1: 7})]
    assert [rows["ref_lo"].tolist() for rows in bench.outcomes] == [[1, 2], [3]]


async def test_a_repeat_is_told_of_its_own_payment_not_of_a_namesakes() -> None:
    bench = Bench(waiting_rows=3)
    bench.send(1, 2)
    for row, at in ((50, 1_000), (51, 1_000), (52, 77_000)):
        assert bench.outbox.wait_too(0, 1, at, bench.tell, row)
    assert not bench.outbox.wait_too(0, 2, 2_000, bench.tell, 53)  # so many may wait
    await bench.answer(Code.CREDIT_ACCOUNT_FROZEN)
    bench.told.clear()
    bench.durable[0]({0: 9})
    told = [(rows, codes) for rows, codes, _ in bench.told if rows[0] >= 50]
    assert told == [([50], [Code.CREDIT_ACCOUNT_FROZEN]), ([51], [Code.CREDIT_ACCOUNT_FROZEN])]
    assert bench.outbox.repeats == 1


async def test_twenty_thousand_legs_that_cannot_land_are_one_timer_and_one_frame_at_a_time() -> None:
    bench = Bench()
    for number in range(1, 20_001):
        bench.send(number, 1)
    await bench.answer(Code.BOOK_FULL)
    assert len(bench.sent) == 1
    assert sum(lane.timer is not None for lane in bench.outbox._lanes) == 1
    bench.outbox.close()
