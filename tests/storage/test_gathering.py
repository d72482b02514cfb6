"""Work done together: batches grow while one is under way, and nobody's failure or leaving is another's."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from storage.gathering import Gathering


class Desk:
    """Doubles numbers, a batch at a time, when it is let."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.begun = asyncio.Event()
        self.open = asyncio.Event()

    async def work(self, items: list[int]) -> Sequence[int]:
        self.batches.append(items)
        self.begun.set()
        await self.open.wait()
        if 13 in items:
            raise ValueError(items)
        return [2 * item for item in items]


async def test_while_one_batch_is_under_way_the_next_gathers() -> None:
    desk = Desk()
    gathering = Gathering(desk.work, batch_max=3)
    callers = [asyncio.create_task(gathering(0))]
    await desk.begun.wait()
    callers += [asyncio.create_task(gathering(number)) for number in range(1, 6)]
    await asyncio.sleep(0)
    desk.open.set()
    assert await asyncio.gather(*callers) == [0, 2, 4, 6, 8, 10]
    assert desk.batches == [[0], [1, 2, 3], [4, 5]]


async def test_a_failed_batch_fails_its_own_callers_and_no_others() -> None:
    desk = Desk()
    gathering = Gathering(desk.work, batch_max=2)
    callers = [asyncio.create_task(gathering(number)) for number in (13, 1, 2)]
    desk.open.set()
    answers = await asyncio.gather(*callers, return_exceptions=True)
    assert [type(answer) for answer in answers] == [ValueError, ValueError, int]
    assert await gathering(4) == 8


async def test_a_caller_who_leaves_takes_nobody_along() -> None:
    desk = Desk()
    gathering = Gathering(desk.work)
    first = asyncio.create_task(gathering(0))
    await desk.begun.wait()
    leaver, stayer = asyncio.create_task(gathering(1)), asyncio.create_task(gathering(2))
    await asyncio.sleep(0)
    leaver.cancel()
    first.cancel()
    desk.open.set()
    assert await stayer == 4
    with pytest.raises(asyncio.CancelledError):
        await leaver
    assert desk.batches == [[0], [2]]
