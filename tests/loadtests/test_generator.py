"""The load generator counts every answer once, keeps what failed, and its clock orders fast before slow."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager

import numpy as np
import pytest

from loadtests import traffic
from loadtests.generator import Report, _bucket, _bucket_end, merge, run

Answer = Callable[[int, asyncio.StreamWriter], Awaitable[None]]
"""Writes the answer to the n-th request (from 0) of the whole server."""

GET = traffic.request("GET", "/", "here")


@asynccontextmanager
async def serving(answer: Answer) -> AsyncIterator[tuple[int, list[bytes]]]:
    """A server on a free port that answers as told; yields the port and the bodies it has read."""
    numbers = itertools.count()
    bodies: list[bytes] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
                bodies.append(await reader.readexactly(length))
                await answer(next(numbers), writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], bodies


def plain(status: int, body: bytes = b"{}", name: str = "content-length") -> bytes:
    return b"HTTP/1.1 %d x\r\nserver: t\r\n%b: %d\r\n\r\n%b" % (status, name.encode(), len(body), body)


async def ok(_: int, writer: asyncio.StreamWriter) -> None:
    writer.write(plain(200))


async def test_a_run_of_n_requests_sends_exactly_n_and_counts_exactly_n() -> None:
    async with serving(ok) as (port, bodies):
        report = await run(traffic.repeat(GET), host="127.0.0.1", port=port, connections=7, requests=100)
    assert report.requests == 100
    assert report.statuses == {200: 100}
    assert int(report.counts.sum()) == 100
    assert report.failures == 0
    assert len(bodies) == 100


async def test_the_warm_up_is_sent_but_not_counted() -> None:
    async with serving(ok) as (port, bodies):
        report = await run(
            traffic.repeat(GET), host="127.0.0.1", port=port, connections=3, requests=20, warm_up_requests=30
        )
    assert report.requests == 20
    assert len(bodies) == 50


async def test_a_failure_in_the_warm_up_is_a_failure_of_the_run() -> None:
    async def first_fails(number: int, writer: asyncio.StreamWriter) -> None:
        writer.write(plain(503 if number == 0 else 200))

    async with serving(first_fails) as (port, _):
        report = await run(
            traffic.repeat(GET), host="127.0.0.1", port=port, connections=1, requests=5, warm_up_requests=5
        )
    assert report.statuses == {200: 5}
    assert report.warm_up_failures == 1
    assert report.failures == 1


async def test_statuses_are_counted_apart_and_examples_of_failures_kept() -> None:
    statuses = [201, 422, 429, 201, 500]

    async def mixed(number: int, writer: asyncio.StreamWriter) -> None:
        status = statuses[number % len(statuses)]
        writer.write(plain(status, b'{"type":"of-%d"}' % status))

    async with serving(mixed) as (port, _):
        report = await run(traffic.repeat(GET), host="127.0.0.1", port=port, connections=4, requests=50)
    assert report.statuses == {201: 20, 422: 10, 429: 10, 500: 10}
    assert report.failures == 30
    assert len(report.examples) == 10
    assert any("of-422" in example for example in report.examples)


async def test_a_run_for_some_seconds_counts_what_the_server_answered() -> None:
    async with serving(ok) as (port, bodies):
        report = await run(traffic.repeat(GET), host="127.0.0.1", port=port, connections=2, seconds=0.1)
    assert report.requests == len(bodies) > 0
    assert report.seconds > 0
    assert report.rate == pytest.approx(report.requests / report.seconds)


async def test_a_slow_answer_is_seen_in_the_tail_and_not_in_the_median() -> None:
    async def one_is_slow(number: int, writer: asyncio.StreamWriter) -> None:
        if number == 10:
            await asyncio.sleep(0.1)
        writer.write(plain(200))

    async with serving(one_is_slow) as (port, _):
        report = await run(traffic.repeat(GET), host="127.0.0.1", port=port, connections=1, requests=40)
    assert report.max_ns >= 100_000_000
    assert report.percentile_ms(50) < report.percentile_ms(100)
    assert report.percentile_ms(100) == report.max_ns / 1e6
    assert report.seconds >= 0.1


async def test_an_answer_in_pieces_is_one_answer() -> None:
    body = bytes(range(256)) * 4

    async def dribble(number: int, writer: asyncio.StreamWriter) -> None:
        whole = plain(200, body, "Content-Length" if number % 2 else "content-length")
        for at in range(0, len(whole), 97):
            writer.write(whole[at : at + 97])
            await writer.drain()
            await asyncio.sleep(0)

    seen: list[bytes] = []

    def check(_: int, answer: bytes) -> None:
        seen.append(answer)

    async with serving(dribble) as (port, _):
        report = await run(traffic.repeat(GET), host="127.0.0.1", port=port, connections=2, requests=6, check=check)
    assert report.statuses == {200: 6}
    assert report.failures == 0
    assert seen == [body] * 6


async def test_a_chunked_answer_and_one_without_a_body_are_whole() -> None:
    async def mixed(number: int, writer: asyncio.StreamWriter) -> None:
        if number % 2:
            writer.write(b"HTTP/1.1 204 x\r\n\r\n")
            return
        for piece in (
            b"HTTP/1.1 200 x\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nab",
            b"cd\r\n1;x=y\r\ne\r",
            b"\n0\r\n\r\n",
        ):
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.001)

    async with serving(mixed) as (port, _):
        report = await run(traffic.repeat(GET), host="127.0.0.1", port=port, connections=1, requests=6)
    assert report.statuses == {200: 3, 204: 3}
    assert report.failures == 0


async def test_a_connection_closed_in_between_is_a_lost_request_and_is_opened_again() -> None:
    async def close_third(number: int, writer: asyncio.StreamWriter) -> None:
        if number == 2:
            writer.close()
        else:
            writer.write(plain(200))

    async with serving(close_third) as (port, bodies):
        report = await run(traffic.repeat(GET), host="127.0.0.1", port=port, connections=1, requests=6)
    assert report.requests == 5
    assert report.lost == 1
    assert len(bodies) == 6
    assert "connection lost" in report.examples[0]


async def test_a_server_that_asks_to_close_after_the_answer_loses_nothing() -> None:
    async def close(_: int, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 x\r\nConnection: close\r\ncontent-length: 0\r\n\r\n")
        writer.close()

    async with serving(close) as (port, _):
        report = await run(traffic.repeat(GET), host="127.0.0.1", port=port, connections=2, requests=10)
    assert report.statuses == {200: 10}
    assert report.failures == 0


async def test_bytes_that_are_no_http_are_lost_requests() -> None:
    async def nonsense(_: int, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 smtp ready\r\n\r\n")

    async with serving(nonsense) as (port, _):
        report = await run(traffic.repeat(GET), host="127.0.0.1", port=port, connections=1, requests=3)
    assert (report.requests, report.lost) == (0, 3)
    assert "malformed" in report.examples[0]


async def test_a_silent_server_ends_the_run_with_its_requests_lost() -> None:
    async def silent(_: int, __: asyncio.StreamWriter) -> None:
        return

    async with serving(silent) as (port, _):
        report = await run(
            traffic.repeat(GET), host="127.0.0.1", port=port, connections=3, requests=9, drain_seconds=0.05
        )
    assert (report.requests, report.lost) == (0, 3)
    assert "no answer" in report.examples[0]


async def test_nobody_listening_ends_a_counted_run() -> None:
    async with serving(ok) as (port, _):
        pass
    report = await run(traffic.repeat(GET), host="127.0.0.1", port=port, connections=2, requests=4)
    assert (report.requests, report.lost) == (0, 4)


async def test_a_2xx_answer_that_the_check_refuses_is_wrong() -> None:
    async with serving(ok) as (port, _):
        report = await run(
            traffic.repeat(GET),
            host="127.0.0.1",
            port=port,
            connections=1,
            requests=3,
            check=lambda status, body: f"{status} {body!r}",
        )
    assert report.wrong == 3
    assert report.failures == 3
    assert report.examples[0] == "200 b'{}'"


@pytest.mark.parametrize("number", [0, 5])
async def test_a_fault_in_the_source_is_raised(number: int) -> None:
    def broken() -> Iterator[bytes]:
        yield from [GET] * number
        raise LookupError("broken source")

    async with serving(ok) as (port, _):
        with pytest.raises(LookupError, match="broken source"):
            await run(broken(), host="127.0.0.1", port=port, connections=2, requests=50)


async def test_an_exhausted_source_ends_the_run() -> None:
    async with serving(ok) as (port, bodies):
        report = await run([GET] * 12, host="127.0.0.1", port=port, connections=5, warm_up_requests=2)
    assert report.requests == 10
    assert len(bodies) == 12


def test_a_bucket_holds_its_latency_within_one_percent() -> None:
    for ns in [0, 1, 127, 128, 129, 255, 256, 257, 1_000, 999_999, 1_000_000, 123_456_789, 30_000_000_000]:
        end = _bucket_end(_bucket(ns))
        assert ns <= end <= ns * 1.01 + 1
    edges = [_bucket_end(bucket) for bucket in range(4000)]
    assert edges == sorted(set(edges))
    assert [_bucket(edge) for edge in edges] == list(range(4000))
    assert [_bucket(edge + 1) for edge in edges] == list(range(1, 4001))


def test_merged_reports_have_the_percentiles_of_all_their_answers() -> None:
    def report(latencies_ns: list[int], seconds: float) -> Report:
        made = Report(requests=len(latencies_ns), seconds=seconds, statuses={200: len(latencies_ns)})
        for latency in latencies_ns:
            made.counts[_bucket(latency)] += 1
            made.max_ns = max(made.max_ns, latency)
        return made

    fast, slow = report([1_000_000] * 90, 1.0), report([50_000_000] * 10, 3.0)
    both = merge([fast, slow])
    assert both.requests == 100
    assert both.rate == 25
    assert both.statuses == {200: 100}
    assert both.percentile_ms(90) == pytest.approx(1, rel=0.01)
    assert both.percentile_ms(91) == pytest.approx(50, rel=0.01)
    assert np.array_equal(fast.counts + slow.counts, both.counts)


async def test_at_a_rate_a_server_that_stands_still_is_late_for_all_that_was_due_meanwhile() -> None:
    """One connection, a request every 2 ms, the first held for 200 ms: what was due behind it counts its waiting."""

    async def stands_still(number: int, writer: asyncio.StreamWriter) -> None:
        if number == 0:
            await asyncio.sleep(0.2)
        writer.write(plain(200))

    async with serving(stands_still) as (port, _):
        report = await run(traffic.repeat(GET), host="127.0.0.1", port=port, connections=1, requests=50, rate=500)
    assert report.requests == 50
    assert report.percentile_ms(50) > 100  # those sent at once behind it were due up to 98 ms after it


async def test_a_rate_is_kept_when_the_server_can() -> None:
    async with serving(ok) as (port, _):
        report = await run(traffic.repeat(GET), host="127.0.0.1", port=port, connections=4, requests=50, rate=500)
    assert report.requests == 50
    assert report.seconds >= 49 / 500
