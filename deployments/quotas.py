"""How much one caller may ask of the ledger: rows a second, and refused rows a second.

A refusal by the rules is journaled and remembered as a settled transfer is. So it costs the same, but whoever has no
money can ask for as many as there is room for. Each subject therefore has two allowances, one for all its rows and one
for those that were refused, each a rate with a burst. Whatever it was refused it works off as time passes, and by every
row that is settled: who pays at a million rows a second may also be refused a million, who is only refused may not.

What is on its way counts as refused until it is known, for otherwise a thousand requests at once would pass before the
first refusal is seen. A request is let in when anything is left, however large it is, so every request that is allowed
at all gets its turn; one subject is thus beyond its burst by at most one request.

Only who owes something, or has something on its way, is remembered, in `subjects_max` places. When they are all taken
the ones that owe the least are let off: nobody gets rid of a debt by bringing others along that owe less.

Every replica keeps its own books; with n replicas a subject may have up to n times as much.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from heapq import nsmallest
from operator import itemgetter
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from deployments.problems import QUOTA_EXCEEDED, ProblemError
from storage.events import FIRST_STATELESS, Code, ResultFlag

SUBJECTS_MAX: Final = 50_000
"""About 15 MB."""

_OK: Final = int(Code.OK)
_IN_FLIGHT: Final = int(Code.IN_FLIGHT)
_STATELESS: Final = int(FIRST_STATELESS)
_REPLAYED: Final = int(ResultFlag.REPLAYED)
_LET_OFF: Final = 1 / 8
"""So many of them go at once when there is no place left, so that it is looked for seldom."""

_ROWS, _REFUSED, _UNDER_WAY = range(3)


@dataclass(frozen=True, slots=True)
class Allowance:
    """What one subject may: rows a second of any outcome, refused rows a second, and as many at once after a rest."""

    rows_rate: float
    rows_burst: float
    refused_rate: float
    refused_burst: float


PERSON: Final = Allowance(1_000, 20_000, 50, 20_000)
"""15 minutes of nothing but refusals are 65,000 and one request, or 38 MB at about 500 bytes each."""

OPERATOR: Final = Allowance(1_000_000, 10_000_000, 60, 50_000)
"""A bank's backend that acts for all its customers, and is not held up while it mostly settles. 15 minutes of nothing
but refusals are 104,000 and one request, or 57 MB."""


class Quotas:
    """What every subject owes, as far as this replica knows. Times are seconds of `clock`, which only goes forward."""

    __slots__ = ("_allowances", "_clock", "_owing", "_subjects_max")

    def __init__(
        self,
        person: Allowance = PERSON,
        operator: Allowance = OPERATOR,
        *,
        subjects_max: int = SUBJECTS_MAX,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._allowances = (person, operator)
        self._subjects_max = subjects_max
        self._clock = clock
        # subject → [when it will owe no rows, when it will owe no refusals, rows under way]
        self._owing: dict[str, list[float]] = {}

    def __len__(self) -> int:
        return len(self._owing)

    def wait_s(self, subject: str, *, operator: bool) -> float | None:
        """None while `subject` may send something, else how many seconds it has to wait first."""
        owing = self._owing.get(subject)
        return None if owing is None else self._wait_s(owing, self._allowances[operator], self._clock())

    def take(self, subject: str, rows: int, *, operator: bool) -> float | None:
        """Let `rows` rows of `subject` be sent: None, or how many seconds it has to wait before it may.

        Whoever got None says afterwards what became of them, exactly once: `told`.
        """
        now = self._clock()
        allowance = self._allowances[operator]
        owing = self._owing.get(subject)
        if owing is None:
            if len(self._owing) >= self._subjects_max:
                self._make_room(now)
            self._owing[subject] = [now + rows / allowance.rows_rate, now, rows]
            return None
        if (wait_s := self._wait_s(owing, allowance, now)) is not None:
            return wait_s
        owing[_ROWS] = max(owing[_ROWS], now) + rows / allowance.rows_rate
        owing[_UNDER_WAY] += rows
        return None

    def told(self, subject: str, rows: int, *, settled: int = 0, refused: int = 0, operator: bool) -> None:
        """`rows` rows that `take` let in are answered, so many of them settled and refused; the rest neither."""
        owing = self._owing[subject]
        owing[_UNDER_WAY] -= rows
        now = self._clock()
        if refused != settled:
            rate = self._allowances[operator].refused_rate
            owing[_REFUSED] = max(owing[_REFUSED], now) + (refused - settled) / rate
        if owing[_UNDER_WAY] <= 0 and owing[_ROWS] <= now and owing[_REFUSED] <= now:
            del self._owing[subject]

    def told_one(self, subject: str, code: int, flags: int, *, operator: bool) -> None:
        """The same of one row, from its RESULT."""
        settled, refused = _counts_of_one(code, flags)
        self.told(subject, 1, settled=settled, refused=refused, operator=operator)

    def told_all(self, subject: str, results: npt.NDArray[Any] | None, rows: int, *, operator: bool) -> None:
        """The same of `rows` rows, from (rows,) RESULT; None: it is not known what became of them."""
        settled, refused = (0, 0) if results is None else counts(results)
        self.told(subject, rows, settled=settled, refused=refused, operator=operator)

    def _wait_s(self, owing: list[float], allowance: Allowance, now: float) -> float | None:
        rows = (owing[_ROWS] - now) * allowance.rows_rate - allowance.rows_burst
        refused = max(0.0, owing[_REFUSED] - now) * allowance.refused_rate - allowance.refused_burst
        if rows < 0 and refused + owing[_UNDER_WAY] < 0:
            return None
        # What is under way will be known before long: nobody waits as if all of it were refused.
        return max(rows / allowance.rows_rate, refused / allowance.refused_rate, 0.0)

    def _make_room(self, now: float) -> None:
        """Let off who owes the least. What is under way keeps its place; admission sees to it that it is little."""
        debts = (
            (subject, max(rows - now, 0) + max(refused - now, 0))
            for subject, (rows, refused, under_way) in self._owing.items()
            if under_way <= 0
        )
        for subject, _ in nsmallest(max(1, int(len(self._owing) * _LET_OFF)), debts, key=itemgetter(1)):
            del self._owing[subject]


def counts(results: npt.NDArray[Any]) -> tuple[int, int]:
    """How many of (n,) RESULT were settled, and how many refused so that it is journaled; repeats are neither."""
    if len(results) == 1:
        _, _, code, flags, _ = results.item(0)
        return _counts_of_one(code, flags)
    codes = results["code"]
    fresh = (results["flags"] & _REPLAYED) == 0
    settled = fresh & (codes == _OK)
    refused = fresh & (codes > _IN_FLIGHT) & (codes < _STATELESS)
    return int(np.count_nonzero(settled)), int(np.count_nonzero(refused))


def _counts_of_one(code: int, flags: int) -> tuple[int, int]:
    fresh = not flags & _REPLAYED
    return fresh and code == _OK, fresh and _IN_FLIGHT < code < _STATELESS


def exceeded(wait_s: float) -> ProblemError:
    """The 429 for who has to wait so long."""
    after = max(1, math.ceil(wait_s))
    # `razao-quota` is for the gateway, which takes over when somebody keeps on asking.
    headers = {"retry-after": str(after), "razao-quota": "exceeded"}
    return ProblemError(QUOTA_EXCEEDED, f"You have sent more than your share. Wait {after} s.", headers=headers)
