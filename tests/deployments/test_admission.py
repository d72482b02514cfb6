"""Admission bounds what runs and what waits, in order of arrival, and never loses a slot."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from deployments.admission import LATENCY_BUCKETS_S, Admission


class Gate:
    """An application whose requests stay inside until let out."""

    def __init__(self) -> None:
        self.inside: list[tuple[str, asyncio.Event]] = []
        self.order: list[str] = []
        self.most = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        leave = asyncio.Event()
        self.inside.append((scope["path"], leave))
        self.order.append(scope["path"])
        self.most = max(self.most, len(self.inside))
        try:
            await leave.wait()
        finally:
            self.inside.remove((scope["path"], leave))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})

    def let_out(self) -> None:
        self.inside[0][1].set()


async def ask(app: Admission, path: str) -> tuple[int, dict[bytes, bytes], bytes]:
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b""}

    async def send(message: Message) -> None:
        sent.append(message)

    scope: dict[str, Any] = {"type": "http", "path": path, "headers": [(b"x-request-id", b"r-1")]}
    await app(scope, receive, send)
    return sent[0]["status"], dict(sent[0]["headers"]), sent[1]["body"]


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_the_rest_waits_in_order_of_arrival_and_more_are_refused_with_a_problem() -> None:
    gate = Gate()
    app = Admission(gate, max_in_progress=2, max_waiting=3)
    asked = []
    for i in range(6):
        asked.append(asyncio.create_task(ask(app, f"/{i}")))
        await settle()
    assert (app.in_progress, app.waiting, app.refused) == (2, 3, 1)
    status, headers, body = await asked[5]
    assert (status, headers[b"retry-after"], headers[b"content-type"]) == (429, b"1", b"application/problem+json")
    problem = json.loads(body)
    assert (problem["type"], problem["status"], problem["request_id"]) == ("/problems/overloaded", 429, "r-1")
    assert app.oldest_wait_s() > 0
    while gate.inside:
        gate.let_out()
        await settle()
    assert [status for status, _, _ in await asyncio.gather(*asked[:5])] == [200] * 5
    assert gate.order == ["/0", "/1", "/2", "/3", "/4"]
    assert gate.most == 2
    assert (app.in_progress, app.waiting, app.oldest_wait_s(), app.total) == (0, 0, 0.0, 6)
    assert (app.statuses[200], app.statuses[429], sum(app.latencies)) == (5, 1, 6)
    assert len(app.latencies) == len(LATENCY_BUCKETS_S) + 1


async def test_request_seconds_grow_by_the_mean_number_of_requests_here() -> None:
    gate = Gate()
    app = Admission(gate, max_in_progress=2, max_waiting=8)
    asked = [asyncio.create_task(ask(app, f"/{i}")) for i in range(5)]
    await settle()
    began, before = asyncio.get_running_loop().time(), app.request_seconds()
    await asyncio.sleep(0.1)
    mean = (app.request_seconds() - before) / (asyncio.get_running_loop().time() - began)
    assert mean == pytest.approx(5, rel=0.05)
    while gate.inside:
        gate.let_out()
        await settle()
    await asyncio.gather(*asked)
    assert app.request_seconds() == pytest.approx(app.latency_sum_s, abs=1e-6), "who left no longer counts"


async def test_a_request_that_waited_too_long_is_refused_and_its_place_is_free() -> None:
    gate = Gate()
    app = Admission(gate, max_in_progress=1, max_waiting=1, max_wait_s=0.05)
    first = asyncio.create_task(ask(app, "/first"))
    await settle()
    status, _, _ = await ask(app, "/second")
    assert status == 429
    assert (app.in_progress, app.waiting) == (1, 0)
    gate.let_out()
    assert (await first)[0] == 200
    assert app.in_progress == 0


async def test_a_health_check_is_answered_by_a_full_application_and_not_counted() -> None:
    gate = Gate()
    app = Admission(gate, max_in_progress=1, max_waiting=0)
    busy = asyncio.create_task(ask(app, "/busy"))
    await settle()
    health = asyncio.create_task(ask(app, "/healthz"))
    await settle()
    gate.inside[1][1].set()
    assert (await health)[0] == 200
    gate.let_out()
    assert (await busy)[0] == 200
    assert app.total == 1


async def test_raised_limits_let_waiting_requests_in_at_once_and_cut_ones_send_nobody_away() -> None:
    gate = Gate()
    app = Admission(gate, max_in_progress=1, max_waiting=8)
    asked = [asyncio.create_task(ask(app, f"/{i}")) for i in range(6)]
    await settle()
    app.set_limits(max_in_progress=4, max_waiting=8, max_wait_s=5)
    await settle()
    assert (app.in_progress, app.waiting, len(gate.inside)) == (4, 2, 4)
    app.set_limits(max_in_progress=1, max_waiting=0, max_wait_s=5)
    while gate.inside:
        gate.let_out()
        await settle()
        assert len(gate.inside) == app.in_progress
    assert [status for status, _, _ in await asyncio.gather(*asked)] == [200] * 6
    assert (app.in_progress, app.waiting) == (0, 0)


@pytest.mark.parametrize("seed", range(20))
async def test_no_slot_is_lost_or_made_whoever_gives_up_whenever(seed: int) -> None:
    rng = random.Random(seed)
    gate = Gate()
    app = Admission(gate, max_in_progress=3, max_waiting=6, max_wait_s=rng.choice((0.0, 0.001, 5.0)))
    tasks: list[asyncio.Task[tuple[int, dict[bytes, bytes], bytes]]] = []
    for i in range(300):
        what = rng.random()
        if what < 0.45:
            tasks.append(asyncio.create_task(ask(app, f"/{i}")))
        elif what < 0.6 and tasks:
            rng.choice(tasks).cancel()
        elif gate.inside:
            gate.let_out()
        if rng.random() < 0.7:
            await asyncio.sleep(0)
        assert gate.most <= 3
    while not all(task.done() for task in tasks):
        if gate.inside:
            gate.let_out()
        await asyncio.sleep(0.0005)
    assert (app.in_progress, app.waiting) == (0, 0)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    unexpected = [r for r in results if isinstance(r, Exception)]
    assert not unexpected
