"""The scorecard: monotone, explained, the same for one as for many, and as its page says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments import scorecard
from deployments.scorecard import DEBTS, FACTORS, PERSON, RANGES

PAGE = Path(__file__).parents[2] / "docs" / "scorecard.md"
BETTER = ("payments_on_time", "credit_days", "monthly_income", "assets", "known", "contracts_settled")
WORSE = ("payments_late", "debts", "inquiries")
counts = st.integers(0, 2000)
money = st.integers(0, 2**62)


@st.composite
def people(draw: st.DrawFn) -> dict[str, Any]:
    """Anybody."""
    values = {name: draw(counts) for name in ("payments_on_time", "payments_late", "inquiries", "contracts_settled")}
    values |= {name: draw(money) for name in ("debts", "monthly_income", "assets")}
    values |= {"credit_days": draw(st.integers(0, 40_000)), "known": draw(st.integers(0, 4))}
    return {**values, "debts_considered": draw(st.booleans())}


def rows(*given_people: dict[str, Any]) -> Any:
    return np.array([tuple(person[name] for name in PERSON.names or ()) for person in given_people], PERSON)


@given(people(), st.sampled_from(BETTER + WORSE), st.integers(1, 2**40))
@settings(max_examples=400, deadline=None)
def test_nothing_good_lowers_a_score_and_nothing_bad_raises_it(person: dict[str, Any], what: str, more: int) -> None:
    changed = {**person, what: min(person[what] + more, 2**62)}
    before, after = scorecard.score(rows(person, changed)).score.tolist()
    assert after >= before if what in BETTER else after <= before
    rates = scorecard.score(rows(person, changed)).default_rate
    assert (rates[1] - rates[0]) * (after - before) <= 0


@given(st.lists(people(), min_size=1, max_size=20))
@settings(max_examples=50, deadline=None)
def test_many_at_once_score_as_each_alone_and_as_their_explanations_say(several: list[dict[str, Any]]) -> None:
    together = scorecard.score(rows(*several))
    for index, person in enumerate(several):
        alone = scorecard.score(rows(person))
        assert alone.score[0] == together.score[index]
        explained = scorecard.explain(together.bins[index].tolist(), debts_considered=person["debts_considered"])
        assert (explained.score, explained.default_rate) == (alone.score[0], alone.default_rate[0])
        assert 0 <= explained.score <= 1000
        assert explained.range == scorecard.range_of(explained.score)
        weights = sum(reason.weight for reason in explained.factors)
        assert explained.score == pytest.approx(1000 * sum(r.points for r in explained.factors) / weights, abs=1.01)


def test_debts_that_were_not_considered_are_neither_counted_nor_spoken_of() -> None:
    without = dict.fromkeys(PERSON.names or (), 0)
    poor = {**without, "debts": 10**12}
    bins = scorecard.score(rows(without, poor)).bins
    one, other = (scorecard.explain(row.tolist(), debts_considered=False) for row in bins)
    assert bins[0][DEBTS] != bins[1][DEBTS]
    assert one == other
    assert "debts" not in {reason.factor for reason in one.factors}


def test_the_best_and_the_worst_reach_both_ends() -> None:
    best = dict.fromkeys(BETTER, 10**6) | dict.fromkeys(WORSE, 0) | {"known": 4, "debts_considered": True}
    worst = dict.fromkeys(BETTER, 0) | dict.fromkeys(WORSE, 10**9) | {"debts_considered": True}
    low, high = scorecard.score(rows(worst, best)).score.tolist()
    assert high == 1000
    assert scorecard.range_of(low) == RANGES[0][1]
    assert [scorecard.range_of(value) for value in (0, 300, 301, 500, 501, 700, 701, 1000)] == [
        "low", "low", "regular", "regular", "good", "good", "excellent", "excellent",
    ]  # fmt: skip


def test_weights_are_the_published_ones_and_the_page_has_the_model_as_it_is() -> None:
    assert [factor.weight for factor in FACTORS] == [29, 24, 21, 12, 8, 6]
    page = PAGE.read_text()
    assert scorecard.table() in page, f"put this into {PAGE.name}:\n{scorecard.table()}"
    assert scorecard.MODEL in page
