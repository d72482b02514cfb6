"""The credit score's model: a scorecard that can be read, with a version, and the reasons for what it says.

Each factor looks at one attribute of a person, oriented so that more is better, and finds the bin that it falls into;
the bin gives a share of the factor's weight. A score is the sum of these, out of 1000. The weights are those that a
bureau has published (`docs/scorecard.md` has the table for people, and a test holds it against this one). Because
shares only grow from bin to bin, and each attribute only moves one way with what it is made of, the score is monotone:
a late payment never raises it, a settled contract never lowers it. Nobody's age, name, address or tax id is an input.

Scoring n people is one call and the same few NumPy operations for any n.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

MODEL: Final = "razao-scorecard-1"
SCORE_MAX: Final = 1000

PERSON: Final = np.dtype(
    [
        ("payments_on_time", "i8"),
        ("payments_late", "i8"),
        ("credit_days", "i8"),  # since the first credit; 0: none yet
        ("debts", "i8"),  # centavos that are due and not disputed
        ("monthly_income", "i8"),  # centavos
        ("assets", "i8"),  # centavos
        ("inquiries", "i8"),  # by others, within 90 days
        ("known", "i8"),  # how many of the REGISTRATION parts are there
        ("contracts_settled", "i8"),
        ("debts_considered", "?"),
    ]
)
"""One person as the model sees them."""

REGISTRATION: Final = ("address", "income_source", "monthly_income", "assets")
DAYS_A_YEAR: Final = 365
MEANS_MIN: Final = 50_000
"""Centavos: what anybody is taken to have a month, so that a debt of those without income is not infinite."""
ASSET_MONTHS: Final = 60
"""Assets count as spread over so many months."""

Rows = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Factor:
    """One line of the scorecard: `bounds` ascend, bin i begins at bounds[i - 1]; `shares` in per cent, and `reasons`,
    have one entry more."""

    name: str
    weight: int
    asks: str
    bounds: tuple[float, ...]
    shares: tuple[int, ...]
    reasons: tuple[str, ...]

    def __post_init__(self) -> None:
        assert all(a < b for a, b in pairwise(self.bounds)), self.name  # noqa: S101 - a table with a typing error
        assert all(a < b for a, b in pairwise(self.shares)), self.name  # noqa: S101
        assert len(self.bounds) + 1 == len(self.shares) == len(self.reasons), self.name  # noqa: S101


FACTORS: Final = (
    Factor(
        "payments", 29, "What share of payments came late, (late + 1) / (late + on time + 4)",
        (-0.45, -0.26, -0.15, -0.08, -0.04),
        (0, 20, 45, 65, 85, 100),
        (
            "Most payments came late",
            "Many payments came late",
            "Little is known of payments, or some came late",
            "Few payments came late, or few are known",
            "Nearly all of many payments came on time",
            "All or nearly all of very many payments came on time",
        ),
    ),
    Factor(
        "market_experience", 24, "How long ago the first credit was, in years",
        (1, 2, 5, 10),
        (10, 30, 50, 75, 100),
        (
            "No credit so far, or for less than a year",
            "First credit one to two years ago",
            "First credit two to five years ago",
            "First credit five to ten years ago",
            "First credit ten years ago or longer",
        ),
    ),
    Factor(
        "debts", 21, "How many months' means the debts are that are due and not disputed",
        (-6, -3, -1, -0.5, 0),
        (0, 20, 40, 60, 75, 100),
        (
            "Debts of more than six months' means",
            "Debts of three to six months' means",
            "Debts of one to three months' means",
            "Debts of half a month's to one month's means",
            "Debts of up to half a month's means",
            "No debts that are not disputed",
        ),
    ),
    Factor(
        "credit_searches", 12, "How often others asked for the score or the profile within 90 days",
        (-10, -6, -3, -1),
        (0, 20, 50, 75, 100),
        (
            "More than ten inquiries within 90 days",
            "Seven to ten inquiries within 90 days",
            "Four to six inquiries within 90 days",
            "Two or three inquiries within 90 days",
            "No or one inquiry within 90 days",
        ),
    ),
    Factor(
        "registration", 8, "How many of address, source of income, monthly income and assets are known",
        (1, 2, 3, 4),
        (0, 25, 50, 75, 100),
        (
            "Hardly anything is registered",
            "One of four parts is registered",
            "Two of four parts are registered",
            "Three of four parts are registered",
            "All parts are registered",
        ),
    ),
    Factor(
        "contracts", 6, "How many contracts were settled",
        (1, 3, 5),
        (30, 50, 80, 100),
        (
            "No contract settled so far",
            "One or two contracts settled",
            "Three or four contracts settled",
            "Five contracts settled or more",
        ),
    ),
)  # fmt: skip

RANGES: Final = ((0, "low"), (301, "regular"), (501, "good"), (701, "excellent"))
"""From which score on which range begins (domain: as Brazil's bureaus cut them)."""

DEFAULT_RATES: Final = ((0, 0.62), (300, 0.34), (500, 0.17), (700, 0.07), (850, 0.03), (SCORE_MAX, 0.01))
"""Share of people with that score who default within a year, linear in between. A start, to be fitted to outcomes."""

DEBTS: Final = next(i for i, factor in enumerate(FACTORS) if factor.name == "debts")
_WEIGHTS: Final = np.array([factor.weight for factor in FACTORS], np.int64)
_WIDTH: Final = max(len(factor.shares) for factor in FACTORS)
_BOUNDS: Final = np.array([(*f.bounds, *[np.inf] * (_WIDTH - 1 - len(f.bounds))) for f in FACTORS])
_POINTS: Final = np.array([[f.weight * s for s in (*f.shares, *[0] * (_WIDTH - len(f.shares)))] for f in FACTORS])
_ALL: Final = np.arange(len(FACTORS))


class Scores(NamedTuple):
    """`score` (n,) 0-1000; `default_rate` (n,) 0-1; `bins` (n, 6): where each factor of FACTORS fell."""

    score: Rows
    default_rate: Rows
    bins: Rows


def score(people: Rows) -> Scores:
    """Score people.

    Args:
        people: (n,) PERSON. Where `debts_considered` is false the debts' factor is left out, and the others' weights
            stand for the whole.
    """
    bins = (attributes(people)[:, :, None] >= _BOUNDS).sum(axis=2)
    scored, rates = _of_bins(bins, people["debts_considered"])
    return Scores(scored, rates, bins)


def attributes(people: Rows) -> Rows:
    """(n, 6) what each factor of FACTORS looks at; more is better."""
    late, on_time = people["payments_late"], people["payments_on_time"]
    means = np.maximum(people["monthly_income"] + people["assets"] / ASSET_MONTHS, MEANS_MIN)
    return np.stack(
        [
            -(late + 1) / (late + on_time + 4),
            people["credit_days"] / DAYS_A_YEAR,
            -people["debts"] / means,
            -people["inquiries"].astype(float),
            people["known"].astype(float),
            people["contracts_settled"].astype(float),
        ],
        axis=1,
    )


def _of_bins(bins: Rows, debts_considered: Rows) -> tuple[Rows, Rows]:
    points = _POINTS[_ALL, bins]
    left_out = ~debts_considered
    got = points.sum(axis=1) - points[:, DEBTS] * left_out
    possible = 100 * (_WEIGHTS.sum() - _WEIGHTS[DEBTS] * left_out)
    scored = SCORE_MAX * got // possible
    known, rates = zip(*DEFAULT_RATES, strict=True)
    return scored, np.interp(scored, known, rates).round(4)


class Reason(NamedTuple):
    """One factor of one person's score: `points` of `weight` were given, because."""

    factor: str
    points: float
    weight: int
    reason: str


class Explained(NamedTuple):
    """One person's score, said in full."""

    score: int
    range: str
    default_rate: float
    factors: tuple[Reason, ...]


def explain(bins: Iterable[int], *, debts_considered: bool) -> Explained:
    """What the bins of one person come to, and why: the factor that costs most comes first."""
    return _explained(tuple(bins), debts_considered)


@lru_cache(maxsize=8192)  # of all the bins that there are together, few come often
def _explained(bins: tuple[int, ...], debts_considered: bool) -> Explained:
    scored, rate = _of_bins(np.array([bins]), np.array([debts_considered]))
    reasons = [
        Reason(factor.name, factor.weight * factor.shares[bin_] / 100, factor.weight, factor.reasons[bin_])
        for index, (factor, bin_) in enumerate(zip(FACTORS, bins, strict=True))
        if debts_considered or index != DEBTS
    ]
    reasons.sort(key=lambda reason: reason.points - reason.weight)
    value = int(scored[0])
    return Explained(value, range_of(value), float(rate[0]), tuple(reasons))


def range_of(value: int) -> str:
    """low, regular, good or excellent."""
    return next(name for begin, name in reversed(RANGES) if value >= begin)


def table() -> str:
    """The factors as Markdown, for `docs/scorecard.md`."""
    lines = ["| factor | weight | what it asks | bin | share |", "|---|---|---|---|---|"]
    for factor in FACTORS:
        cells = [f"| {factor.name} | {factor.weight} | {factor.asks} |", *["| | | |"] * (len(factor.shares) - 1)]
        bins = zip(cells, factor.reasons, factor.shares, strict=True)
        lines += [f"{cell} {reason} | {share} % |" for cell, reason, share in bins]
    return "\n".join(lines)
