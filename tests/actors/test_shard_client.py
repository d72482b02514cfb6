"""What a client makes of answers and lost links, said to it frame by frame."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import numpy as np
import pytest

from actors import frames, shard_client
from actors.frames import FrameType
from actors.shard_client import Outcome, ShardClient
from actors.transport import Receiver
from storage.events import RESULT, Code, Flag, Kind
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


DOUBTFUL = (
    Code.OVERLOADED,
    Code.NOT_SERVING,
    Code.BOOK_FULL,
    Code.OUTBOX_FULL,
    Code.ID_IN_FUTURE,
    Code.ID_EXPIRED,
    Code.CHAIN_REFUSED,
)


@pytest.mark.parametrize("code", [code for code in Code if code != Code.IN_FLIGHT])
async def test_what_was_sent_twice_is_not_refused_by_what_the_first_time_need_not_have_met(code: Code) -> None:
    wires = Wires()
    client = ShardClient(wires, 1)
    deadline = time.monotonic() + FAR
    rows = np.concatenate([event(Kind.TRANSFER, account(0, 1), account(0, 2), n) for n in (1, 2)])
    twice = asyncio.create_task(client.apply(rows, None, deadline))
    first = await wires.latest(0, 1)
    first.receiver.lost(first)  # it may have arrived
    second = await wires.latest(0, 2)
    once = asyncio.create_task(client.apply(event(Kind.TRANSFER, account(0, 1), account(0, 2), 3), None, deadline))
    second.say(FrameType.RESULTS, second.sent[0][0], [code, Code.OK], 5)
    assert (await twice).results["code"].tolist() == [Code.UNSURE if code in DOUBTFUL else code, Code.OK]
    while len(second.sent) < 2:  # noqa: ASYNC110 - the client sets no event
        await asyncio.sleep(0)
    second.say(FrameType.RESULTS, second.sent[1][0], [code], 6)
    assert (await once).results["code"].tolist() == [code]
    await client.close()


async def test_rows_of_one_frame_are_doubted_by_themselves() -> None:
    wires = Wires()
    client = ShardClient(wires, 1)
    deadline = time.monotonic() + FAR
    early = [asyncio.create_task(client.apply(event(Kind.FREEZE, account(0, n)), None, deadline)) for n in (1, 2)]
    first = await wires.latest(0, 1)
    first.receiver.lost(first)
    late = asyncio.create_task(client.apply(event(Kind.FREEZE, account(0, 3)), None, deadline))
    second = await wires.latest(0, 2)
    ((request, rows),) = second.sent
    assert rows == 3
    second.say(FrameType.RESULTS, request, [Code.OVERLOADED] * 3, 5)
    codes = [int(outcome.results["code"][0]) for outcome in await asyncio.gather(*early, late)]
    assert codes == [Code.UNSURE, Code.UNSURE, Code.OVERLOADED]
    await client.close()


async def test_what_was_in_flight_is_never_refused_by_what_stands_in_the_way_of_its_outcome() -> None:
    wires = Wires()
    client = ShardClient(wires, 1)
    row = event(Kind.TRANSFER, account(0, 1), account(0, 2), 1)
    call = asyncio.create_task(client.apply(row, None, time.monotonic() + FAR))
    wire = await wires.latest(0, 1)
    wire.say(FrameType.RESULTS, wire.sent[0][0], [Code.IN_FLIGHT], 5)
    wire.say(FrameType.LATER, wire.sent[0][0], [Code.OVERLOADED], 5, 0)
    assert (await call).results["code"].tolist() == [Code.UNSURE]
    await client.close()


async def test_a_full_queue_refuses_all_of_a_call_or_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.shard_client.frames.ROWS_MAX", 4)
    client = ShardClient(Wires(), 2, queue_rows_max=6)

    def to(partition: int, count: int) -> list[np.ndarray]:
        return [event(Kind.TRANSFER, account(partition, 1), account(partition, 2), 1) for _ in range(count)]

    deadline = time.monotonic() + 0.3
    waiting = [asyncio.create_task(client.apply(np.concatenate(to(0, 8)), None, deadline))]
    await asyncio.sleep(0)
    mixed = await client.apply(np.concatenate(to(1, 3) + to(0, 3) + to(1, 2)), None, deadline)
    assert mixed.results["code"].tolist() == [Code.OVERLOADED] * 8
    assert client._lanes[1].events.rows == 0  # nothing of it was queued
    waiting.append(asyncio.create_task(client.apply(np.concatenate(to(1, 3) + to(0, 2)), None, deadline)))
    codes = {int(code) for outcome in await asyncio.gather(*waiting) for code in outcome.results["code"]}
    assert codes == {Code.UNSURE}
    await client.close()


async def test_events_of_every_kind_go_where_their_ids_say_and_an_id_that_says_nothing_goes_nowhere() -> None:
    wires = Wires()
    client = ShardClient(wires, 4)
    kinds = [kind for kind in Kind if kind not in {Kind.EXPIRE, Kind.CREDIT_LEG, Kind.SETTLE, Kind.REVERT}]
    rows = np.concatenate([event(kind, account(0, 1), account(0, 2), 1) for kind in kinds])
    rows["id_lo"] = rows["id_lo"] & ~np.uint64(0xFFF) | np.arange(len(rows), dtype=np.uint64)
    deadline = time.monotonic() + 0.5
    calls = [asyncio.create_task(client.apply(rows, None, deadline))]
    calls += [asyncio.create_task(client.apply(rows[n : n + 1], None, deadline)) for n in range(len(rows))]
    for partition in range(4):
        wire = await wires.latest(partition, 1)
        assert sum(count for _, count in wire.sent) == 2 * len(range(partition, len(rows), 4))
    await asyncio.gather(*calls)
    strange = rows[:1].copy()
    for slot in (1024, 4095):
        strange["id_lo"] = strange["id_lo"] & ~np.uint64(0xFFF) | np.uint64(slot)
        assert (await client.apply(strange, None, deadline)).results["code"].tolist() == [Code.INVALID_ID]
    chain = np.concatenate([rows[0:1], strange, rows[4:5], rows[0:1], rows[1:2], strange])
    chain["flags"][[0, 1, 3]] = Flag.LINKED
    codes = (await client.apply(chain, None, deadline)).results["code"].tolist()
    assert codes[:3] == [Code.CHAIN_REFUSED, Code.INVALID_ID, Code.CHAIN_REFUSED]
    assert codes[3:] == [Code.NOT_LINKABLE, Code.NOT_LINKABLE, Code.INVALID_ID]
    await client.close()


async def test_what_is_told_at_the_deadline_comes_with_the_positions_it_is_seen_at() -> None:
    wires = Wires()
    client = ShardClient(wires, 1)
    rows = np.concatenate([event(Kind.TRANSFER, account(0, 1), account(0, 2), n) for n in (1, 2, 3)])
    call = asyncio.create_task(client.apply(rows, None, time.monotonic() + 0.5))
    wire = await wires.latest(0, 1)
    wire.say(FrameType.RESULTS, wire.sent[0][0], [Code.OK, Code.IN_FLIGHT, Code.IN_FLIGHT], 5)
    wire.say(FrameType.LATER, wire.sent[0][0], [Code.OK], 6, 1)
    outcome = await call
    assert outcome.results["code"].tolist() == [Code.OK, Code.OK, Code.UNSURE]
    assert outcome.positions == {0: 6}
    await client.close()


async def test_a_refusal_beside_a_row_in_flight_is_none_once_the_part_is_sent_again() -> None:
    call = shard_client._Call(asyncio.get_running_loop().create_future(), float("inf"), 3, RESULT)
    part = shard_client._Part(call, b"", 2, None, np.array([0, 2]))
    channel = shard_client._Channel(FrameType.APPLY)
    answered = np.zeros(2, RESULT)
    answered["code"] = Code.ID_IN_FUTURE, Code.IN_FLIGHT
    call.part_later(part, answered, {})
    assert call.collect()["code"].tolist() == [Code.ID_IN_FUTURE, Code.UNSURE, Code.UNSURE]
    channel.put_back([part])
    assert call.collect()["code"].tolist() == [Code.UNSURE] * 3
