"""What comes whole takes its express route or leaves it untouched, and a connection stays in order whichever it is."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from deployments.admission import Admission
from deployments.express import Exchange, asgi_send
from deployments.listener import Listener
from tests.deployments.test_listener import HOST, Answers, Client, LoopFactory, run, type_of_loop, until

pytestmark = type_of_loop
LENGTH = b"content-length"


def post(body: bytes, *more: bytes, path: bytes = b"/go", version: bytes = b"1.1") -> bytes:
    head = b"POST %b HTTP/%b\r\nHost: a\r\nContent-Length: %d\r\n" % (path, version, len(body))
    return head + b"".join(line + b"\r\n" for line in more) + b"\r\n" + body


class Express:
    """Leaves what begins with `no`, keeps what begins with `later`, and says to the rest what it was told."""

    def __init__(self) -> None:
        self.kept: list[Exchange] = []
        self.statuses: list[int] = []
        self.headers: list[list[tuple[bytes, bytes]]] = []

    def __call__(self, exchange: Exchange) -> bool:
        if exchange.body.startswith(b"no"):
            return False
        around = exchange.on_answer

        def answered(status: int) -> None:
            self.statuses.append(status)
            around(status)

        exchange.on_answer = answered
        self.headers.append(list(exchange.headers))
        if exchange.body.startswith(b"fail"):
            raise ZeroDivisionError
        if exchange.body.startswith(b"later"):
            self.kept.append(exchange)
        else:
            answer(exchange)
        return True


def answer(exchange: Exchange) -> None:
    exchange.answer(201, [(LENGTH, b"%d" % len(exchange.body))], exchange.body)


class Echo(Answers):
    """The ordinary way: answers with what it was sent."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.asked += 1
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message["more_body"]
        seen = json.dumps({"path": scope["path"], "headers": len(scope["headers"]), "body": body.decode()}).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(LENGTH, b"%d" % len(seen))]})
        await send({"type": "http.response.body", "body": seen})


class House:
    """A listener with both ways."""

    def __init__(self, **settings: Any) -> None:
        self.app, self.express = Echo(), Express()
        self.listener = Listener(self.app, HOST, 0, routes={(b"POST", b"/go"): self.express}, **settings)

    async def connect(self) -> Client:
        if not self.listener.alive:
            await self.listener.start()
        return await Client.connect(self.listener.port)


def scenario(play: Callable[[House], Any], loop_factory: LoopFactory, **settings: Any) -> None:
    async def whole() -> None:
        house = House(**settings)
        await play(house)
        await until(lambda: house.listener.in_progress == 0)
        if house.listener.alive:
            assert await house.listener.drain(2, idle_s=0.0) == 0

    run(loop_factory, whole())


def test_what_comes_whole_is_answered_by_its_route_again_and_again(loop_factory: LoopFactory) -> None:
    async def play(house: House) -> None:
        client = await house.connect()
        for number in range(3):
            status, headers, body = await client.ask(post(b"hello %d" % number, b"X-Odd: 1"))
            assert (status, body) == (201, b"hello %d" % number)
            assert "date" in headers
        assert house.express.headers[0] == [(b"host", b"a"), (LENGTH, b"7"), (b"x-odd", b"1")]
        assert (house.app.asked, house.listener.total, house.express.statuses) == (0, 3, [201, 201, 201])
        assert (await client.ask(post(b"", b"Transfer-Encoding: chunked").replace(b"Content-Length: 0\r\n", b"")
                                 + b"2\r\nab\r\n0\r\n\r\n"))[2] == b"ab"  # fmt: skip
        client.close()

    scenario(play, loop_factory)


@pytest.mark.parametrize(
    "request_",
    [
        post(b"no, thank you"),
        post(b"another path", path=b"/go?a=b"),
        post(b"").replace(b"POST", b"PUT"),
        post(b"later, asked first", b"Expect: 100-continue"),
    ],
)
def test_what_no_route_takes_goes_the_ordinary_way_untouched(loop_factory: LoopFactory, request_: bytes) -> None:
    async def play(house: House) -> None:
        client = await house.connect()
        client.writer.write(request_)
        if b"100-continue" in request_:
            assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        status, _, body = await client.answer()
        assert status == 200
        seen = json.loads(body)
        assert (seen["body"].encode(), seen["path"]) == (request_.partition(b"\r\n\r\n")[2], "/go")
        assert seen["headers"] == request_.count(b"\r\n") - 2
        assert house.express.statuses == []
        assert (await client.ask(post(b"and then")))[0] == 201
        client.close()

    scenario(play, loop_factory)


def test_a_body_that_is_not_there_yet_is_waited_for_in_the_ordinary_way(loop_factory: LoopFactory) -> None:
    async def play(house: House) -> None:
        client = await house.connect()
        request = post(b"hello")
        for cut in (request.index(b"\r\n\r\n") + 4, len(request) - 2):
            asked = house.app.asked
            client.writer.write(request[:cut])
            await until(lambda asked=asked: house.app.asked > asked)  # type: ignore[misc]
            status, _, body = await client.ask(request[cut:])
            assert (status, json.loads(body)["body"]) == (200, "hello")
        client.writer.write(request[:20])  # half a head is nothing yet
        client.writer.write(request[20:])
        await client.answer()
        client.close()

    scenario(play, loop_factory)


def test_requests_sent_on_at_once_are_answered_in_their_order(loop_factory: LoopFactory) -> None:
    async def play(house: House) -> None:
        client = await house.connect()
        client.writer.write(post(b"later") + post(b"no") + post(b"three") + post(b"later four"))
        await until(lambda: len(house.express.kept) == 1)
        assert house.listener.in_progress == 1
        answer(house.express.kept[0])
        assert (await client.answer())[2] == b"later"
        for expected in ("no", "three", "later four"):  # behind one that waits all go the ordinary way
            assert json.loads((await client.answer())[2])["body"] == expected
        assert (await client.ask(post(b"five")))[::2] == (201, b"five")
        client.close()

    scenario(play, loop_factory)


def test_draining_waits_for_what_is_under_way_and_closes_behind_it(loop_factory: LoopFactory) -> None:
    async def play(house: House) -> None:
        busy, idle = await house.connect(), await house.connect()
        busy.writer.write(post(b"later"))
        await idle.ask(post(b"at once"))
        await until(lambda: house.listener.in_progress == 1)
        drained = asyncio.create_task(house.listener.drain(10, idle_s=0.3))
        await until(lambda: not house.listener.alive)
        status, headers, _ = await idle.ask(post(b"the last"))
        assert (status, headers["connection"]) == (201, "close")
        assert await idle.ended()
        assert not drained.done()
        answer(house.express.kept[0])
        status, headers, _ = await busy.answer()
        assert (status, headers["connection"]) == (201, "close")
        assert await busy.ended()
        assert await drained == 0
        busy.close()
        idle.close()

    scenario(play, loop_factory)


def test_a_client_that_has_gone_leaves_nothing_behind(loop_factory: LoopFactory) -> None:
    async def play(house: House) -> None:  # a client that hangs up before its answer, and one that does behind it
        client = await house.connect()
        client.writer.write(post(b"later"))
        await until(lambda: len(house.express.kept) == 1)
        client.close()
        await until(lambda: house.listener.connections == 0)
        answer(house.express.kept[0])
        assert house.express.statuses == [201]
        with pytest.raises(RuntimeError, match="once"):
            answer(house.express.kept[0])
        house.express.kept[0].abandon()
        assert house.express.statuses == [201]
        house.express.kept.clear()

        gone = await house.connect()
        await gone.ask(post(b"hello"))
        (connection,) = (weakref.ref(one) for one in house.listener._server.server_state.connections)
        gc.disable()  # nothing of it may be left to the collector, which looks seldom
        try:
            gone.close()
            await until(lambda: house.listener.connections == 0)
            await asyncio.sleep(0)
            assert connection() is None
        finally:
            gc.enable()


def test_a_route_that_fails_ends_the_connection_and_holds_no_place(
    loop_factory: LoopFactory, caplog: pytest.LogCaptureFixture
) -> None:
    async def play(house: House) -> None:
        client, other = await house.connect(), await house.connect()
        client.writer.write(post(b"fail"))
        assert await client.ended()
        assert house.express.statuses == [500]
        assert house.listener.in_progress == 0
        assert (await other.ask(post(b"hello")))[0] == 201
        for one in (client, other):
            one.close()

    scenario(play, loop_factory)
    assert "ZeroDivisionError" in caplog.text

    scenario(play, loop_factory)


def test_the_last_request_of_a_connection_closes_it_and_so_does_silence(loop_factory: LoopFactory) -> None:
    async def play(house: House) -> None:
        for request in (post(b"old", version=b"1.0"), post(b"last", b"Connection: close")):
            client = await house.connect()
            status, headers, _ = await client.ask(request)
            assert (status, headers["connection"]) == (201, "close")
            assert await client.ended()
            client.close()
        silent, slow = await house.connect(), await house.connect()
        for _ in range(3):
            assert (await silent.ask(post(b"hello")))[1].get("connection") is None
        await slow.ask(post(b"hello"))
        request = post(b"slowly")
        slow.writer.write(request[:9])
        assert await silent.ended()  # whereas what has begun is waited for
        silent.close()
        assert (await slow.ask(request[9:]))[0] == 201
        slow.close()

    scenario(play, loop_factory, keep_alive_s=1)


def test_a_header_cannot_break_its_line(loop_factory: LoopFactory) -> None:
    async def play(house: House) -> None:
        client = await house.connect()
        client.writer.write(post(b"later"))
        await until(lambda: len(house.express.kept) == 1)
        exchange = house.express.kept[0]
        for value in (b"2\r\nset-cookie: a=b", b"2\nx: y", b"2\rx", b"2\0", b"2\x7f"):
            with pytest.raises(ValueError, match="control character"):
                exchange.answer(200, [(LENGTH, value)], b"ab")
        await asgi_send(exchange)({"type": "http.response.start", "status": 200, "headers": []})
        answer(exchange)
        assert (await client.answer())[0] == 201
        client.close()

    scenario(play, loop_factory)


def test_a_client_that_reads_nothing_is_not_answered_without_end(loop_factory: LoopFactory) -> None:
    async def play(house: House) -> None:
        other = await house.connect()
        await other.ask(post(b"hello"))
        deaf = socket.create_connection((HOST, house.listener.port))
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.setblocking(False)
        loop = asyncio.get_running_loop()
        request = post(b"x" * 60_000)

        async def send_on() -> None:
            while True:
                await asyncio.wait_for(loop.sock_sendall(deaf, request), 1.0)

        with pytest.raises(TimeoutError):  # nothing more is taken from it
            await send_on()
        deaf.close()
        await until(lambda: house.listener.connections <= 1)
        other.close()

    scenario(play, loop_factory)


def test_nonsense_behind_a_whole_request_ends_the_connection(loop_factory: LoopFactory) -> None:
    async def play(house: House) -> None:
        client = await house.connect()
        status, _, _ = await client.ask(post(b"hello") + b"\x00\x00 nonsense\r\n\r\n")
        assert status == 201
        assert (await client.answer())[0] == 400
        assert await client.ended()
        client.close()

    scenario(play, loop_factory)


def test_admission_counts_it_and_sends_what_would_have_to_wait_the_ordinary_way(loop_factory: LoopFactory) -> None:
    async def whole() -> None:
        echo, express = Echo(), Express()
        admission = Admission(echo, max_in_progress=1, max_waiting=5)
        listener = Listener(admission, HOST, 0, routes={(b"POST", b"/go"): admission.express(express)})
        await listener.start()
        first, second = await Client.connect(listener.port), await Client.connect(listener.port)
        first.writer.write(post(b"later"))
        await until(lambda: len(express.kept) == 1)
        assert (admission.in_progress, admission.total) == (1, 0)
        assert admission.request_seconds() > 0
        second.writer.write(post(b"waits"))
        await until(lambda: admission.waiting == 1)
        answer(express.kept[0])
        assert (await first.answer())[0] == 201
        assert json.loads((await second.answer())[2])["body"] == "waits"
        await first.ask(post(b"no"))
        assert (admission.in_progress, admission.total, sum(admission.latencies)) == (0, 3, 3)
        assert (admission.statuses[200], admission.statuses[201]) == (2, 1)
        for client in (first, second):
            client.close()
        await listener.drain(2, idle_s=0.0)

    run(loop_factory, whole())
