"""The pages of the problem types: a problem's `type` is its page's address, so each door serves them."""

from __future__ import annotations

from typing import Final

from deployments.openapi import Operation
from deployments.problems import BY_NAME, NOT_FOUND, ProblemError, problem_page, problems_page
from deployments.request import Answer, Header, Request

PAGE: Final[tuple[Header, ...]] = (
    (b"content-type", b"text/html; charset=utf-8"),
    (b"cache-control", b"public, max-age=300"),
    (b"content-security-policy", b"default-src 'none'; style-src 'unsafe-inline'"),
    (b"x-content-type-options", b"nosniff"),
)
"""Headers of a page that anybody may keep."""


async def _get_problems(_: Request) -> Answer:
    return Answer(200, problems_page(), list(PAGE))


async def _get_problem(call: Request) -> Answer:
    problem = BY_NAME.get(call.path["name"])
    if problem is None:
        raise ProblemError(NOT_FOUND, "There is no problem of this name")
    return Answer(200, problem_page(problem), list(PAGE))


PROBLEM_PAGES: Final = (
    Operation(
        "GET", "/problems", "problems", "All problem types", "", _get_problems, media_types=("text/html",)
    ),
    Operation(
        "GET", "/problems/{name}", "problem", "One problem type", "A problem's `type` is its page's address.",
        _get_problem, media_types=("text/html",), problems=(NOT_FOUND,),
    ),
)  # fmt: skip
