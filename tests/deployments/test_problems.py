"""The catalogue of problems is whole: every code has its problem, every problem its page."""

from __future__ import annotations

import json
import re
from http import HTTPStatus

import pytest

from deployments.problems import (
    BY_CODE,
    BY_NAME,
    CATALOGUE,
    MALFORMED,
    Problem,
    ProblemError,
    problem_page,
    problems_page,
    refusal,
)
from storage.events import FIRST_STATELESS, Code

REQUIRED = [
    "insufficient-funds", "unknown-account", "account-closed", "account-frozen", "limit-exceeded", "same-account",
    "invalid-amount", "id-conflict", "id-expired", "unknown-transfer", "not-held", "hold-expired",
    "exceeds-hold", "exceeds-original", "account-not-empty", "unauthenticated", "forbidden", "malformed",
    "too-large", "overloaded", "quota-exceeded", "unsure", "not-linkable",
]  # fmt: skip


def test_every_code_but_ok_has_a_problem() -> None:
    """A code that is added without one fails here."""
    assert set(BY_CODE) == set(Code) - {Code.OK}
    assert set(BY_CODE.values()) <= set(CATALOGUE)


def test_what_was_promised_is_there() -> None:
    """The names that people write programs against."""
    assert set(REQUIRED) <= set(BY_NAME)
    assert len(BY_NAME) == len(CATALOGUE)


def test_refusals_of_state_are_not_worth_repeating_and_stateless_ones_are_never_422_by_state() -> None:
    """The first answer to an id stands, so a remembered refusal must not be called retryable."""
    for code, problem in BY_CODE.items():
        if Code.IN_FLIGHT < code < FIRST_STATELESS:
            assert not problem.retryable, code
            assert problem.status in {409, 422}, code


@pytest.mark.parametrize("problem", CATALOGUE, ids=lambda problem: problem.name)
def test_a_problem_is_complete(problem: Problem) -> None:
    """Name, status, words, a page that needs nothing from elsewhere; who may try again is told when."""
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", problem.name)
    assert 400 <= HTTPStatus(problem.status) < 600
    assert problem.explanation.endswith(".")
    if problem.status in {429, 503}:
        assert problem.retry_after_s
        assert ProblemError(problem, "x").headers["retry-after"] == str(problem.retry_after_s)
    page = problem_page(problem).decode()
    assert problem.type in page
    assert not re.search(r"(src|href)=['\"]?(https?:)?//", page)
    assert problem.type in problems_page().decode()


@pytest.mark.parametrize("name", ["overloaded", "quota-exceeded", "unavailable", "book-full"])
def test_what_says_that_nothing_changed_says_it_of_this_request_and_asks_for_the_same_id(name: str) -> None:
    """An earlier attempt under the id may have been carried out; a new id would pay twice."""
    words = BY_NAME[name].explanation
    assert re.search(r"This request (was not sent there and )?changed nothing", words)
    assert "nothing was done" not in words.lower()
    assert "with the same id" in words
    assert "new id" not in words


@pytest.mark.parametrize("name", ["id-conflict", "id-expired"])
def test_what_asks_for_a_new_id_says_first_what_may_have_happened_under_the_old_one(name: str) -> None:
    words = BY_NAME[name].explanation
    assert "This request changed nothing" in words
    assert re.search(r"what was sent (first )?under the id", words, re.IGNORECASE)


@pytest.mark.parametrize("code", [code for code in Code if code is not Code.OK])
def test_every_refusal_can_be_told(code: Code) -> None:
    """With the members that belong to it."""
    error = refusal(code, 17, "debit_account", "credit_account", id="x")
    document = json.loads(error.body("r1"))
    assert document["type"] == BY_CODE[code].type
    assert document["request_id"] == "r1"
    assert document["id"] == "x"
    assert ("limit" in document) == (BY_CODE[code].name == "limit-exceeded")
    if BY_CODE[code].name in {"limit-exceeded", "exceeds-hold", "exceeds-original"}:
        assert document["left"] == 17
    if BY_CODE[code].name in {"account-closed", "account-frozen", "unknown-account"}:
        assert document["field"] in {"debit_account", "credit_account"}


def test_words_in_pages_are_escaped() -> None:
    """Nothing of a catalogue's text becomes markup."""
    page = problem_page(Problem("x", 400, "<b>", "a < b & `<i>`.")).decode()
    assert "<b>" not in page.split("<main>")[1]
    assert "<code>&lt;i&gt;</code>" in page
    assert MALFORMED.type == "/problems/malformed"
