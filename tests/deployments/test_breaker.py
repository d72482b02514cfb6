"""The breaker: when it lets calls through, when it does not, and what it counts."""

from __future__ import annotations

import asyncio
import time

import pytest

from deployments.breaker import Breaker, BreakerOpen


class Away(Exception):  # noqa: N818
    """The other side does not answer."""


async def well() -> str:
    return "well"


async def badly() -> str:
    raise Away


def soon() -> float:
    return time.monotonic() + 30


async def failed(breaker: Breaker, times: int) -> None:
    for _ in range(times):
        with pytest.raises(Away):
            await breaker.call(badly, soon())


def half_opened(breaker: Breaker) -> None:
    """Return when the next call is let through: the library's clock is the wall's."""
    context = breaker._context
    while context.opened_at is not None and time.time() <= context.opened_at + context.ttl:
        pass


async def test_it_opens_after_failures_in_a_row_and_then_calls_nobody() -> None:
    breaker = Breaker("vault", threshold=3)
    await failed(breaker, 2)
    assert await breaker.call(well, soon()) == "well"  # a success in between starts the count anew
    await failed(breaker, 2)
    assert breaker.state == "closed"
    await failed(breaker, 1)
    assert (breaker.state, breaker.failures, breaker.openings) == ("opened", 5, 1)
    for _ in range(3):
        with pytest.raises(BreakerOpen):
            await breaker.call(well, soon())
    assert breaker.failures == 5


async def test_it_half_opens_for_one_call_whose_outcome_decides() -> None:
    breaker = Breaker("vault", threshold=1, open_s=0.01)
    await failed(breaker, 1)
    half_opened(breaker)
    await failed(breaker, 1)  # the probe fails: open again at once
    assert (breaker.state, breaker.openings, breaker.failures) == ("opened", 2, 2)

    half_opened(breaker)
    begun, let_go = asyncio.Event(), asyncio.Event()

    async def slowly() -> str:
        begun.set()
        await let_go.wait()
        return "back"

    probe = asyncio.create_task(breaker.call(slowly, soon()))
    await begun.wait()
    assert breaker.state == "half-opened"
    with pytest.raises(BreakerOpen):  # no herd: the others wait for the probe's outcome
        await breaker.call(well, soon())
    let_go.set()
    assert await probe == "back"
    assert (breaker.state, breaker.openings) == ("closed", 2)
    assert await breaker.call(well, soon()) == "well"


async def test_no_answer_by_the_deadline_is_a_failure() -> None:
    breaker = Breaker("vault", threshold=1)

    async def never() -> None:
        await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        await breaker.call(never, time.monotonic() + 0.01)
    assert (breaker.state, breaker.failures) == ("opened", 1)


async def test_a_caller_who_goes_away_proves_nothing() -> None:
    breaker = Breaker("vault", threshold=1, open_s=0.0)

    async def cancelled() -> None:
        begun = asyncio.Event()

        async def never() -> None:
            begun.set()
            await asyncio.Event().wait()

        task = asyncio.create_task(breaker.call(never, soon()))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    await cancelled()
    assert (breaker.state, breaker.failures) == ("closed", 0)
    await failed(breaker, 1)
    half_opened(breaker)
    await cancelled()
    assert breaker.state == "half-opened"  # neither closed by it, nor opened, and the next one may try
    assert await breaker.call(well, soon()) == "well"
    assert breaker.state == "closed"
