"""What a client makes of answers and lost links, said to it frame by frame."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import numpy as np

from actors import frames
from actors.frames import FrameType
from actors.shard_client import Outcome, ShardClient
from actors.transport import Receiver
from storage.events import RESULT, Code, Kind
from tests.actors.shard_harness import account, event

FAR = 60.0


class Wire:
    """A link to one shard, by which the test answers."""

    epoch = 1

    def __init__(self, partition: int, receiver: Receiver) -> None:
        self.partition = partition
        self.receiver = receiver
        self.sent: list[tuple[int, int]] = []  # request, rows

    def send(self, data: bytes) -> None:
        kind, request, payload = frames.split(data)
        self.sent.append((request, len(frames.decode_events(kind, payload)[0])))

    def close(self) -> None:
        """Nothing to close."""

    def say(self, kind: FrameType, request: int, codes: Sequence[int], offset: int, *indices: int) -> None:
        rows = np.zeros(len(codes), RESULT)
        rows["code"] = codes
        which = np.array(indices) if kind is FrameType.LATER else None
        data = frames.encode_answer(kind, request, rows, {self.partition: offset}, which)
        self.receiver.received(self, kind, request, frames.split(data)[2])


class Wires:
    """A transport that keeps every link that it made."""

    def __init__(self) -> None:
        self.made: list[Wire] = []

    async def connect(self, partition: int, receiver: Receiver, epoch: int) -> Wire:
        self.made.append(Wire(partition, receiver))
        return self.made[-1]

    async def moved(self, link: object) -> bool:
        return False

    async def latest(self, partition: int, count: int) -> Wire:
        """The link to a partition, when it is the `count`th and something was sent on it."""
        async with asyncio.timeout(20):
            while True:
                wires = [wire for wire in self.made if wire.partition == partition]
                if len(wires) == count and wires[-1].sent:
                    return wires[-1]
                await asyncio.sleep(0)


async def test_what_a_lost_link_had_answered_is_neither_sent_nor_counted_again() -> None:
    wires = Wires()
    client = ShardClient(wires, 2)
    deadline = time.monotonic() + FAR
    both = np.concatenate([event(Kind.TRANSFER, account(n, 1), account(n, 2), 1) for n in (0, 1)])
    spanning = asyncio.create_task(client.apply(both, None, deadline))
    single = asyncio.create_task(client.apply(event(Kind.TRANSFER, account(0, 1), account(1, 1), 1), None, deadline))
    first, other = await wires.latest(0, 1), await wires.latest(1, 1)
    ((request, rows),) = first.sent
    assert rows == 2
    first.say(FrameType.RESULTS, request, [Code.OK, Code.IN_FLIGHT], 5)
    first.receiver.lost(first)
    second = await wires.latest(0, 2)
    ((request, rows),) = second.sent
    assert rows == 1  # the one that has no outcome yet
    second.say(FrameType.RESULTS, request, [Code.OK], 7)
    assert (await single).results["code"].tolist() == [Code.OK]
    assert not spanning.done()
    other.say(FrameType.RESULTS, other.sent[0][0], [Code.INSUFFICIENT_FUNDS], 9)
    outcome = await spanning
    assert outcome.results["code"].tolist() == [Code.OK, Code.INSUFFICIENT_FUNDS]
    assert outcome.positions == {0: 5, 1: 9}
    await client.close()


async def test_rows_that_came_late_go_to_their_callers_once_whoever_shares_the_frame() -> None:
    wires = Wires()
    client = ShardClient(wires, 1)
    deadline = time.monotonic() + FAR

    def pair(number: int) -> np.ndarray:
        return event(Kind.TRANSFER, account(0, 1), account(0, 2), number)

    for parts in ([1, 1, 1], [1, 2, 1]):
        calls = [
            asyncio.create_task(client.apply(np.concatenate([pair(n + 1) for n in range(size)]), None, deadline))
            for size in parts
        ]
        while not (wires.made and wires.made[0].sent):  # noqa: ASYNC110 - the client sets no event
            await asyncio.sleep(0)
        wire = wires.made[0]
        ((request, rows),) = wire.sent
        wire.sent.clear()
        wire.say(FrameType.RESULTS, request, [Code.IN_FLIGHT] * (rows - 1) + [Code.OK], 1)
        await calls[-1]
        assert not any(call.done() for call in calls[:-1])
        for index in range(rows - 1):
            wire.say(FrameType.LATER, request, [Code.OK], 2 + index, index)
            wire.say(FrameType.LATER, request, [Code.INSUFFICIENT_FUNDS], 9, 0)  # what is final stays so
        outcomes: list[Outcome] = [await call for call in calls]
        assert [outcome.results["code"].tolist() for outcome in outcomes] == [[Code.OK] * size for size in parts]
    await client.close()
