"""The wire: what does not fit the protocol ends its stream with nothing applied, and nobody else notices."""

from __future__ import annotations

import asyncio
import contextlib
import struct
import time
from collections.abc import AsyncIterator

import numpy as np
import pytest

from actors import frames
from actors.frames import FrameType, Malformed
from actors.shard_server import ShardServer
from storage.events import ACCOUNT, EVENT, RESULT, Code, Flag, Kind
from storage.journal.postgres import PostgresJournal
from tests.actors.shard_harness import SECRET, Ledger, Running, account, asked, event, until

A, B = account(0, 1), account(0, 2)


@pytest.fixture
async def one(database: str) -> AsyncIterator[Ledger]:
    journal = PostgresJournal(database)
    await journal.create(1)
    made = Ledger(journal, 1)
    await made.start(0)
    await made.fund(A, B)
    yield made
    await made.close()
    await journal.close()


async def talk(running: Running, *parts: bytes, hello: bytes | None = None) -> bytes:
    """Say hello and `parts` in pieces; everything that comes back until the shard closes the stream."""
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    if hello is None:
        hello = frames.encode_hello(frames.Hello(0, 1, 0, SECRET))
    try:
        writer.write(hello)
        for part in parts:
            writer.write(part)
            await writer.drain()
        async with asyncio.timeout(10):
            return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


def hello(**other: object) -> bytes:
    return frames.encode_hello(frames.Hello(0, 1, 0, SECRET)._replace(**other))  # type: ignore[arg-type]


ROW = event(Kind.TRANSFER, A, B, 1).tobytes()
GOOD = frames.encode_events(FrameType.APPLY, 1, [ROW], None)


@pytest.mark.parametrize(
    "first",
    [
        hello(secret=b"another"),
        hello(secret=b""),
        hello(secret=SECRET + b"x"),
        hello(secret=b"x" * 400),
        hello()[:16] + b"PIRAT" + hello()[21:],
        hello()[:22] + struct.pack("<H", 99) + hello()[24:],
        GOOD,
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        struct.pack("<IB3xQ", 1 << 30, 1, 0),
        bytes(16),
    ],
    ids=["wrong", "empty", "longer", "long", "magic", "version", "no hello", "http", "huge", "zeros"],
)
async def test_without_a_proper_hello_nothing_is_said_and_nothing_applied(one: Ledger, first: bytes) -> None:
    assert await talk(one.shards[0], GOOD, hello=first) == b""
    assert await one.available(A) == 1_000


@pytest.mark.parametrize("other", [{"partition": 1, "partitions": 2}, {"partitions": 2}, {"epoch": 77}])
async def test_a_hello_for_another_shard_is_refused_with_this_ones_epoch(one: Ledger, other: dict[str, int]) -> None:
    answer = await talk(one.shards[0], GOOD, hello=hello(**other))
    kind, _, payload = frames.split(answer)
    assert kind is FrameType.REFUSED
    assert frames.decode_welcome(payload) == one.shards[0].shard.epoch
    assert await one.available(A) == 1_000


def events(kind: FrameType = FrameType.APPLY, *rows: np.ndarray, request: int = 9) -> bytes:
    return frames.encode_events(kind, request, [row.tobytes() for row in rows], None)


def resized(data: bytes, change: int) -> bytes:
    """A frame whose header is right and whose payload has another length than its rows."""
    body = data[16:] + bytes(change) if change > 0 else data[16:change]
    return struct.pack("<IB3xQ", len(body), data[4], 9) + body


@pytest.mark.parametrize(
    "bad",
    [
        resized(GOOD, 1),
        resized(GOOD, -1),
        resized(GOOD, -100),
        events(FrameType.APPLY, np.zeros(0, np.uint8)),
        events(FrameType.APPLY, *[event(Kind.TRANSFER, A, B, 1)] * (frames.ROWS_MAX + 1)),
        events(FrameType.APPLY, event(Kind.TRANSFER, A, B, 1), event(Kind.CREDIT_LEG, 0, A, 500)),
        events(FrameType.APPLY, event(Kind.SETTLE)),
        events(FrameType.APPLY, event(Kind.REVERT)),
        events(FrameType.APPLY, event(Kind.EXPIRE)),
        events(FrameType.LEGS, event(Kind.DEPOSIT, 1, A, 500)),
        events(FrameType.APPLY, event(Kind.TRANSFER, A, B, 1, flags=Flag.LINKED)),
        struct.pack("<IB3xQ", frames.PAYLOAD_MAX + 1, FrameType.APPLY, 1),
        struct.pack("<IB3xQ", 0, 200, 1),
        frames.frame(FrameType.RESULTS, 1, bytes(8)),
        frames.frame(FrameType.READ, 1, struct.pack("<II", 5, 0), bytes(16)),
        frames.frame(FrameType.APPLY, 1, struct.pack("<II", 1, 3), ROW, struct.pack("<i", 4), b"abc"),
        frames.frame(FrameType.APPLY, 1, struct.pack("<II", 1, 0), ROW, struct.pack("<i", -2)),
        hello(),
    ],
)
async def test_a_frame_that_does_not_fit_ends_its_stream_and_nothing_of_it_is_applied(one: Ledger, bad: bytes) -> None:
    answer = await talk(one.shards[0], bad)
    assert len(answer) in {0, 32}  # at most the welcome
    assert await one.available(A) == 1_000
    assert one.shards[0].shard.serving


@pytest.mark.parametrize("second", [1, 8, 9])
async def test_a_stream_carries_each_request_once_at_most(one: Ledger, second: int) -> None:
    row = event(Kind.TRANSFER, A, B, 1)
    again = events(FrameType.APPLY, event(Kind.TRANSFER, A, B, 10), request=second)
    assert len(await talk(one.shards[0], events(FrameType.APPLY, row), again)) in {0, 32}  # the welcome, no answer
    await until(lambda: not asked(one.shards[0]))
    assert await one.available(A) == 999


async def test_bytes_may_come_in_any_pieces(one: Ledger) -> None:
    rows = [event(Kind.TRANSFER, A, B, 1) for _ in range(3)]
    large = np.concatenate([event(Kind.TRANSFER, A, B, 1) for _ in range(800)])
    data = hello() + b"".join(events(FrameType.APPLY, row, request=n + 1) for n, row in enumerate(rows))
    data += events(FrameType.APPLY, large)
    reader, writer = await asyncio.open_connection("127.0.0.1", one.shards[0].port)
    for start in range(0, 602, 7):
        writer.write(data[start : start + 7])
        await writer.drain()
    writer.write(data[602:])
    received = b""
    async with asyncio.timeout(10):
        while len(received) < 32 + 4 * (16 + 8 + 16) + 803 * RESULT.itemsize:
            received += await reader.read(1 << 16)
    writer.close()
    assert await one.available(A) == 1_000 - 803


async def test_a_peer_that_does_not_read_is_not_read_from(one: Ledger) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", one.shards[0].port, limit=1 << 10)
    writer.write(hello())
    wanted = [np.array([A, 0], np.uint64).tobytes()] * 8_000

    async def push() -> None:
        for number in range(1, 400):
            writer.write(frames.encode_read(number, wanted))
            async with asyncio.timeout(1.0):
                await writer.drain()

    with pytest.raises(TimeoutError):
        await push()
    assert await one.available(A) == 1_000  # others are served
    writer.transport.abort()
    del reader


async def test_a_silent_stream_without_a_hello_is_closed(one: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.shard_server._HELLO_S", 0.05)
    reader, writer = await asyncio.open_connection("127.0.0.1", one.shards[0].port)
    async with asyncio.timeout(5):
        assert await reader.read() == b""
    writer.close()


async def test_a_stopped_shard_is_left_for_its_successor_when_the_directory_knows_it(one: Ledger) -> None:
    silent = await asyncio.start_server(lambda *_: asyncio.sleep(0), "127.0.0.1", 0)
    await one.available(A)
    old = one.shards[0]
    old.shard.apply = lambda *_: None  # type: ignore[method-assign]  # the old one takes requests and says nothing
    call = asyncio.ensure_future(one.apply(event(Kind.TRANSFER, A, B, 1)))
    await until(lambda: bool(one.client._lanes[0].sent))
    await one.start(0)
    assert (await call).results["code"][0] == Code.OK
    silent.close()


async def test_a_deadline_turns_into_unsure_and_the_id_resolves_later(one: Ledger) -> None:
    await one.shards[0].crash()
    row = event(Kind.TRANSFER, A, B, 1)
    began = time.monotonic()
    assert await one.code(row, within_s=0.3) == Code.UNSURE
    assert 0.3 <= time.monotonic() - began < 1.0
    await one.start(0)
    assert await one.code(row) == Code.OK
    assert await one.available(A) == 999


async def test_internal_kinds_and_wrong_notes_are_the_callers_mistake(one: Ledger) -> None:
    with pytest.raises(ValueError, match="internal"):
        await one.apply(event(Kind.SETTLE))
    with pytest.raises(ValueError, match="internal"):
        await one.apply(event(Kind.TRANSFER, A, B, 1), event(Kind.CREDIT_LEG, 0, A, 1))
    with pytest.raises(ValueError, match="note"):
        await one.apply(event(Kind.TRANSFER, A, B, 1), notes=[b"a", b"b"])
    assert len((await one.client.apply(np.zeros(0, event(Kind.OPEN).dtype), None, time.monotonic() + 1)).results) == 0


async def test_a_server_without_a_secret_is_refused(one: Ledger) -> None:
    with pytest.raises(ValueError, match="secret"):
        ShardServer(one.shards[0].shard, b"", dict)


def test_what_is_encoded_is_decoded_and_rows_lie_aligned() -> None:
    rows = np.concatenate([event(Kind.TRANSFER, A, B, n) for n in range(1, 6)])
    notes = [b"", None, b"abc", b"\x00" * 100, None]
    kind, request, payload = frames.split(frames.encode_events(FrameType.APPLY, 7, [rows.tobytes()], notes))
    decoded, told = frames.decode_events(kind, payload)
    assert (kind, request, told) == (FrameType.APPLY, 7, notes)
    assert decoded.tobytes() == rows.tobytes()
    assert decoded.flags.aligned
    assert decoded.flags.writeable
    results = np.zeros(3, RESULT)
    results["at"] = [1, 2, 3]
    data = frames.encode_answer(FrameType.LATER, 8, results, {3: 5, 1: -1}, np.array([9, 8, 7]))
    answer = frames.decode_answer(FrameType.LATER, frames.split(data)[2])
    assert answer.indices is not None
    assert (answer.rows.tobytes(), answer.positions) == (results.tobytes(), {3: 5, 1: -1})
    assert answer.indices.tolist() == [9, 8, 7]
    data = frames.encode_answer(FrameType.STATES, 8, np.zeros(2, ACCOUNT), {})
    assert len(frames.decode_answer(FrameType.STATES, frames.split(data)[2]).rows) == 2
    with pytest.raises(Malformed):
        frames.split(data[:-1])


def test_answers_of_one_write_are_the_frames_of_each() -> None:
    first, second = np.zeros(3, RESULT), np.zeros(1, RESULT)
    first["code"], second["at"] = 7, 9
    positions = {0: 5, 3: -1}
    each = [
        frames.encode_answer(FrameType.RESULTS, number, rows, positions) for number, rows in ((4, first), (9, second))
    ]
    assert frames.encode_results([(4, first), (9, second)], positions) == b"".join(each)


@pytest.mark.parametrize("kind", [*range(32), 255, 256 + 16, 257, 0x1414, 65_535])
def test_what_shards_do_among_themselves_comes_from_no_client(kind: int) -> None:
    rows = np.zeros(3, EVENT)
    rows["kind"] = Kind.TRANSFER
    rows["kind"][1] = kind
    with pytest.raises(Malformed) if kind in {16, 20, 21, 22} else contextlib.nullcontext():
        frames.check_events(FrameType.APPLY, rows)
    rows["kind"] = kind
    with contextlib.nullcontext() if kind == Kind.CREDIT_LEG else pytest.raises(Malformed):
        frames.check_events(FrameType.LEGS, rows)
