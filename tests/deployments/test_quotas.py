"""Quotas: what one subject sends and is refused is bounded, whatever it tries, and costs others nothing."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest

from deployments.problems import QUOTA_EXCEEDED
from deployments.quotas import OPERATOR, PERSON, Allowance, Quotas, counts, exceeded
from storage.events import RESULT, Code, ResultFlag

LITTLE = Allowance(rows_rate=8, rows_burst=128, refused_rate=2, refused_burst=20)
MUCH = Allowance(rows_rate=1000, rows_burst=10_000, refused_rate=20, refused_burst=200)
QUARTER_S = 15 * 60
JOURNALED_BYTES = 500  # of a refusal


class Desk:
    """Quotas, and a clock that a test turns."""

    def __init__(self, person: Allowance = LITTLE, operator: Allowance = MUCH, places: int = 1000) -> None:
        self.now = 5.0
        self.quotas = Quotas(person, operator, subjects_max=places, clock=lambda: self.now)

    def send(self, subject: str, rows: int = 1, *, refused: int = 0, settled: int = 0, operator: bool = False) -> bool:
        """A request that is answered at once."""
        if self.quotas.take(subject, rows, operator=operator) is not None:
            return False
        self.quotas.told(subject, rows, refused=refused, settled=settled, operator=operator)
        return True

    def refusals(self, subject: str, seconds: float, rows: int, *, operator: bool = False) -> int:
        """How many refusals `subject` gets in so many seconds by asking for `rows` whenever it may."""
        end, got = self.now + seconds, 0
        while self.now < end:
            wait_s = self.quotas.take(subject, rows, operator=operator)
            if wait_s is None:
                self.quotas.told(subject, rows, refused=rows, operator=operator)
                got += rows
            else:
                self.now += max(wait_s, 1e-3)
        return got


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_a_burst_of_rows_passes_and_then_the_rate(desk: Desk) -> None:
    assert [desk.send("ana", settled=1) for _ in range(129)] == [True] * 128 + [False]
    desk.now += 1
    assert [desk.send("ana", settled=1) for _ in range(9)] == [True] * 8 + [False]


def test_a_burst_of_refusals_passes_and_then_their_rate(desk: Desk) -> None:
    assert [desk.send("ana", refused=1) for _ in range(21)] == [True] * 20 + [False]
    desk.now += 1
    assert [desk.send("ana", refused=1) for _ in range(3)] == [True] * 2 + [False]


def test_nobody_else_is_held_up(desk: Desk) -> None:
    while desk.send("ana", refused=1):
        pass
    assert desk.send("bia", refused=1)


def test_an_operator_has_an_allowance_of_its_own(desk: Desk) -> None:
    assert all(desk.send("bank", refused=1, operator=True) for _ in range(200))
    assert not desk.send("bank", refused=1, operator=True)


def test_who_waits_as_long_as_told_is_let_in(desk: Desk) -> None:
    for refused in (0, 1):
        while (wait_s := desk.quotas.take("ana", 1, operator=False)) is None:
            desk.quotas.told("ana", 1, refused=refused, operator=False)
        desk.now += wait_s + 1e-9
        assert desk.send("ana")
        desk.now += 1000


def test_a_request_larger_than_the_burst_gets_its_turn_and_is_paid_for_by_the_next(desk: Desk) -> None:
    assert desk.send("ana", 500, refused=500)
    assert desk.quotas.take("ana", 1, operator=False) == pytest.approx((500 - 20) / 2)
    desk.now += (500 - 20) / 2 + 1e-9
    assert desk.send("ana", 500, refused=500)


def test_requests_at_once_get_no_more_than_those_one_after_the_other(desk: Desk) -> None:
    """All of them may turn out to be refused."""
    let_in = [desk.quotas.take("ana", 1, operator=False) for _ in range(50)]
    assert let_in == [None] * 20 + [0.0] * 30
    for _ in range(20):
        desk.quotas.told("ana", 1, settled=1, operator=False)
    assert desk.send("ana")


def test_what_is_not_known_or_refused_without_effect_is_no_refusal(desk: Desk) -> None:
    assert all(desk.send("ana") for _ in range(100))


def test_a_settled_row_makes_up_for_a_refused_one(desk: Desk) -> None:
    """A bank whose customers run out of money now and then is never held up; one that only asks is."""
    assert all(desk.send("bank", 10, settled=6, refused=4, operator=True) for _ in range(1000))


def test_settled_rows_are_not_saved_up(desk: Desk) -> None:
    desk.send("ana", 90, settled=90)
    desk.now += 12
    assert [desk.send("ana", refused=1) for _ in range(21)] == [True] * 20 + [False]


@pytest.mark.parametrize("rows", [1, 10_000])
@pytest.mark.parametrize("operator", [False, True])
def test_fifteen_minutes_of_refusals_of_one_subject_are_less_than_a_hundred_megabytes(
    rows: int, operator: bool
) -> None:
    got = Desk(PERSON, OPERATOR).refusals("ana", QUARTER_S, rows, operator=operator)
    assert got * JOURNALED_BYTES < 100e6
    assert got > 20_000  # and it is no lock-out


def test_only_who_owes_something_is_remembered(desk: Desk) -> None:
    for number in range(1000):
        desk.quotas.take(f"payer {number}", 1, operator=False)
    desk.now += 0.2
    for number in range(1000):
        desk.quotas.told(f"payer {number}", 1, settled=1, operator=False)
    assert len(desk.quotas) == 0


def test_a_debt_survives_any_number_of_subjects_that_owe_less() -> None:
    desk = Desk(places=100)
    while desk.send("ana", refused=1):
        pass
    for number in range(10_000):
        desk.send(f"helper {number}", refused=1)
    assert len(desk.quotas) <= 100
    assert not desk.send("ana", refused=1)


def test_what_is_under_way_is_never_forgotten() -> None:
    desk = Desk(places=100)
    desk.quotas.take("ana", 20, operator=False)
    for number in range(1000):
        desk.send(f"helper {number}", refused=1)
    assert desk.quotas.take("ana", 1, operator=False) is not None
    desk.quotas.told("ana", 20, refused=20, operator=False)
    assert not desk.send("ana")


def test_looking_takes_nothing(desk: Desk) -> None:
    assert desk.quotas.wait_s("ana", operator=False) is None
    assert len(desk.quotas) == 0
    while desk.send("ana", refused=1):
        pass
    assert desk.quotas.wait_s("ana", operator=False) == 0.0


def test_repeats_and_refusals_without_effect_are_counted_neither_settled_nor_refused() -> None:
    results = np.zeros(6, RESULT)
    results["code"] = [
        Code.OK,
        Code.OK,
        Code.INSUFFICIENT_FUNDS,
        Code.INSUFFICIENT_FUNDS,
        Code.ID_CONFLICT,
        Code.UNSURE,
    ]
    results["flags"][[1, 3]] = ResultFlag.REPLAYED
    assert counts(results) == (1, 1)


@pytest.mark.parametrize(
    ("code", "flags", "more"),
    [
        (Code.OK, 0, 21),
        (Code.INSUFFICIENT_FUNDS, 0, 19),
        (Code.INSUFFICIENT_FUNDS, ResultFlag.REPLAYED, 20),
        (Code.ID_CONFLICT, 0, 20),
        (Code.UNSURE, 0, 20),
    ],
)
def test_one_row_counts_as_a_batch_of_one_does(desk: Desk, code: Code, flags: int, more: int) -> None:
    """`more`: how many refusals fit in after it, when one more had been refused before."""
    results = np.zeros(1, RESULT)
    results["code"], results["flags"] = code, flags
    for subject in ("one", "batch"):
        desk.send(subject, refused=1)
        assert desk.quotas.take(subject, 1, operator=False) is None
    desk.quotas.told_one("one", int(code), int(flags), operator=False)
    desk.quotas.told_all("batch", results, 1, operator=False)
    for subject in ("one", "batch"):
        sent = 0
        while desk.send(subject, refused=1):
            sent += 1
        assert sent + 1 == more


def test_what_is_not_learnt_leaves_its_place(desk: Desk) -> None:
    desk.quotas.take("ana", 20, operator=False)
    desk.quotas.told_all("ana", None, 20, operator=False)
    assert len(desk.quotas) == 1  # the rows are still owed, the refusals not
    assert desk.send("ana", 20, refused=20)


def test_who_is_beyond_is_told_to_wait_in_whole_seconds() -> None:
    problem = exceeded(1.2)
    assert problem.problem is QUOTA_EXCEEDED
    assert problem.status == 429
    assert problem.headers["retry-after"] == "2"
    assert "razao-quota" in problem.headers  # the gateway goes by it
    assert exceeded(0.0).headers["retry-after"] == "1"


def test_a_row_costs_microseconds() -> None:
    """It stands on the way of every transfer. CPU time, the best of five, against a bound ten times what it takes."""
    quotas = Quotas(replace(PERSON, rows_rate=1e9, rows_burst=1e9))
    best = 1.0
    for _ in range(5):
        begun = time.process_time()
        for _ in range(10_000):
            quotas.take("ana", 1, operator=False)
            quotas.told("ana", 1, settled=1, operator=False)
        best = min(best, (time.process_time() - begun) / 10_000)
    assert best < 20e-6
