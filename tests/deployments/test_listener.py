"""A listener shares its port, keeps its bounds, and leaves without losing a request, on either event loop."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop
from starlette.types import Receive, Scope, Send

from deployments.express import Routes
from deployments.http_protocol import HEAD_BYTES_MAX, TARGET_BYTES_MAX
from deployments.listener import Listener, PortTaken, shared_socket

HOST = "127.0.0.1"
GET = b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n"
type_of_loop = pytest.mark.parametrize(
    "loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
)
pytestmark = type_of_loop
LoopFactory = Callable[[], asyncio.AbstractEventLoop]


def run(loop_factory: LoopFactory, scenario: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(asyncio.wait_for(scenario, 30))


class Answers:
    """Says its name and what it saw. Requests to /slow wait until `go` is set."""

    def __init__(self, name: str = "one") -> None:
        self.name = name
        self.go = asyncio.Event()
        self.asked = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.asked += 1
        if scope["path"] == "/slow":
            await self.go.wait()
        seen = {"name": self.name, "client": scope["client"][0], "root": scope["root_path"]}
        body = json.dumps(seen).encode()
        start = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": start})
        await send({"type": "http.response.body", "body": body})


class Client:
    """One keep-alive connection, raw."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def connect(cls, port: int) -> Client:
        return cls(*await asyncio.open_connection(HOST, port))

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        return int(head[0].split()[1]), headers, await self.reader.readexactly(int(headers["content-length"]))

    async def ask(self, request: bytes = GET) -> tuple[int, dict[str, str], bytes]:
        self.writer.write(request)
        return await self.answer()

    async def ended(self) -> bool:
        return await self.reader.read(1) == b""

    def close(self) -> None:
        self.writer.close()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - what is waited for lies on the other side of a socket
        await asyncio.sleep(0.001)


def test_it_answers_with_a_date_without_naming_itself_and_believes_no_forwarding_header(
    loop_factory: LoopFactory,
) -> None:
    async def scenario() -> None:
        before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
        listener = Listener(Answers(), HOST, 0, root_path="/pay")
        await listener.start()
        assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
        client = await Client.connect(listener.port)
        for _ in range(3):
            status, headers, body = await client.ask(b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 9.9.9.9\r\n\r\n")
            assert status == 200
            assert "date" in headers
            assert "server" not in headers
            assert json.loads(body) == {"name": "one", "client": HOST, "root": "/pay"}
        assert (listener.connections, listener.in_progress, listener.total, listener.alive) == (1, 0, 3, True)
        client.close()
        assert await listener.drain(2) == 0
        assert not listener.alive

    run(loop_factory, scenario())


def test_two_listeners_share_a_port_and_both_get_connections(loop_factory: LoopFactory) -> None:
    async def scenario() -> None:
        apps = Answers("one"), Answers("two")
        first = Listener(apps[0], HOST, 0)
        await first.start()
        second = Listener(apps[1], HOST, first.port)
        await second.start()
        clients = [await Client.connect(first.port) for _ in range(64)]
        names = [json.loads((await client.ask())[2])["name"] for client in clients]
        assert set(names) == {"one", "two"}
        for client in clients:
            client.close()
        await asyncio.gather(first.drain(2), second.drain(2))

    run(loop_factory, scenario())


def test_a_port_whose_owner_does_not_share_is_refused_clearly_and_a_held_one_is_safe(loop_factory: LoopFactory) -> None:
    async def scenario() -> None:
        with socket.socket() as foreign:
            foreign.bind((HOST, 0))
            foreign.listen()
            port = foreign.getsockname()[1]
            with pytest.raises(PortTaken, match=f"port {port} on 127.0.0.1 belongs to"):
                await Listener(Answers(), HOST, port).start()
        with shared_socket(HOST, 0) as held:
            port = held.getsockname()[1]
            with socket.socket() as foreign, pytest.raises(OSError, match="in use"):
                foreign.bind((HOST, port))
            listener = Listener(Answers(), HOST, port)
            await listener.start()
            for _ in range(32):
                client = await Client.connect(port)
                assert (await client.ask())[0] == 200
                client.close()
            await listener.drain(2)

    run(loop_factory, scenario())


def test_draining_finishes_what_is_in_progress_and_answers_what_still_comes_on_open_connections(
    loop_factory: LoopFactory,
) -> None:
    async def scenario() -> None:
        app = Answers()
        listener = Listener(app, HOST, 0)
        await listener.start()
        busy, idle, silent = [await Client.connect(listener.port) for _ in range(3)]
        assert (await idle.ask())[1].get("connection") is None
        await silent.ask()
        busy.writer.write(GET.replace(b"/x", b"/slow"))
        await until(lambda: listener.in_progress == 1)
        drained = asyncio.create_task(listener.drain(10, idle_s=0.3))
        await until(lambda: not listener.alive)
        with pytest.raises(ConnectionRefusedError):
            await Client.connect(listener.port)
        status, headers, _ = await idle.ask()
        assert (status, headers["connection"]) == (200, "close")
        assert await idle.ended()
        assert not drained.done()
        app.go.set()
        status, headers, _ = await busy.answer()
        assert (status, headers["connection"]) == (200, "close")
        assert await busy.ended()
        assert await drained == 0
        assert await silent.ended()
        for client in (busy, idle, silent):
            client.close()

    run(loop_factory, scenario())


def test_draining_serves_the_connections_that_the_kernel_had_taken_already(loop_factory: LoopFactory) -> None:
    async def scenario() -> None:
        listener = Listener(Answers(), HOST, 0)
        await listener.start()
        # No await here: the loop cannot accept, so all of these sit in the kernel's queue when draining begins.
        clients = []
        for _ in range(200):
            client = socket.create_connection((HOST, listener.port))
            client.sendall(GET)
            client.setblocking(False)
            clients.append(client)
        drained = asyncio.create_task(listener.drain(10, idle_s=0.2))
        loop = asyncio.get_running_loop()
        for client in clients:
            assert (await loop.sock_recv(client, 4096)).startswith(b"HTTP/1.1 200")
            client.close()
        assert await drained == 0

    run(loop_factory, scenario())


def test_one_of_two_leaves_under_keep_alive_load_and_no_request_fails(loop_factory: LoopFactory) -> None:
    async def scenario() -> None:
        first = Listener(Answers("one"), HOST, 0)
        await first.start()
        second = Listener(Answers("two"), HOST, first.port)
        await second.start()
        stop = asyncio.Event()
        answered = {"one": 0, "two": 0}

        async def load() -> None:
            client = await Client.connect(first.port)
            while not stop.is_set():
                status, headers, body = await client.ask()
                assert status == 200
                answered[json.loads(body)["name"]] += 1
                if headers.get("connection") == "close":
                    client.close()
                    client = await Client.connect(first.port)
            client.close()

        async with asyncio.TaskGroup() as group:
            for _ in range(32):
                group.create_task(load())
            await until(lambda: min(answered.values()) > 200)
            assert await first.drain(5, idle_s=0.2) == 0
            seen = dict(answered)
            await until(lambda: answered["two"] > seen["two"] + 500)
            assert answered["one"] == seen["one"]
            stop.set()
        await second.drain(2, idle_s=0)

    run(loop_factory, scenario())


def test_ten_listeners_hand_a_port_on_under_a_storm_of_new_connections_and_none_is_reset(
    loop_factory: LoopFactory,
) -> None:
    async def scenario() -> None:
        listener = Listener(Answers(), HOST, 0)
        await listener.start()
        port = listener.port
        stop = asyncio.Event()
        request = GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")

        def storm() -> int:
            answered = 0
            while not stop.is_set():
                with socket.create_connection((HOST, port), timeout=10) as client:
                    client.sendall(request)
                    assert client.recv(4096).startswith(b"HTTP/1.1 200")
                    answered += 1
            return answered

        storms = [asyncio.create_task(asyncio.to_thread(storm)) for _ in range(4)]
        for _ in range(10):
            successor = Listener(Answers(), HOST, port)
            await successor.start()
            assert await listener.drain(5, idle_s=0.05) == 0
            listener = successor
        stop.set()
        assert sum(await asyncio.gather(*storms)) > 100
        await listener.drain(2, idle_s=0)

    run(loop_factory, scenario())


def test_what_is_not_finished_at_the_time_limit_is_cut_off_and_counted(loop_factory: LoopFactory) -> None:
    async def scenario() -> None:
        listener = Listener(Answers(), HOST, 0)
        await listener.start()
        client = await Client.connect(listener.port)
        client.writer.write(GET.replace(b"/x", b"/slow"))
        await until(lambda: listener.in_progress == 1)
        assert await listener.drain(0.2) == 1
        assert listener.in_progress == 0
        client.close()

    run(loop_factory, scenario())


@pytest.mark.parametrize(
    "request_bytes",
    [b"\x16\x03\x01\x02\x00\x01\x00", b"GET / HTTP/9\r\n\r\n"],
    ids=["tls", "version"],
)
def test_nonsense_is_answered_with_a_problem_and_the_connection_closed(
    loop_factory: LoopFactory, request_bytes: bytes
) -> None:
    async def scenario() -> None:
        app = Answers()
        listener = Listener(app, HOST, 0)
        await listener.start()
        client = await Client.connect(listener.port)
        status, headers, body = await client.ask(request_bytes)
        assert (status, headers["content-type"]) == (400, "application/problem+json")
        assert json.loads(body)["type"] == "/problems/malformed"
        assert await client.ended()
        assert app.asked == 0
        client.close()
        await listener.drain(2, idle_s=0)

    run(loop_factory, scenario())


LONG = b"/" + b"a" * TARGET_BYTES_MAX
LARGE = b"GET / HTTP/1.1\r\nA: " + b"b" * HEAD_BYTES_MAX


@pytest.mark.parametrize("routes", [{}, {(b"POST", b"/express"): lambda _: True}], ids=["plain", "express"])
@pytest.mark.parametrize(
    ("request_bytes", "status", "name"),
    [
        (b"GET " + LONG + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414, "target-too-long"),
        (b"GET " + LONG + b"a" * HEAD_BYTES_MAX, 414, "target-too-long"),
        (LARGE, 431, "headers-too-large"),
        (LARGE + b"\r\n\r\n", 431, "headers-too-large"),
        (LARGE.replace(b"GET", b"POST") + b"\r\nContent-Length: 2\r\n\r\nab", 431, "headers-too-large"),
        (
            b"POST /express HTTP/1.1\r\nContent-Length: 2\r\n" + b"A: b\r\n" * 30_000 + b"\r\nab",
            431,
            "headers-too-large",
        ),
    ],
    ids=["target", "endless-target", "endless-head", "head", "head-and-body", "many-headers"],
)
def test_a_head_that_is_too_long_is_refused_by_what_is_too_long_in_it(
    loop_factory: LoopFactory, routes: Routes, request_bytes: bytes, status: int, name: str
) -> None:
    """However it comes: in one piece with its end, or without one."""

    async def scenario() -> None:
        app = Answers()
        listener = Listener(app, HOST, 0, routes=routes)
        await listener.start()
        client = await Client.connect(listener.port)
        found, headers, body = await client.ask(request_bytes)
        assert (found, headers["content-type"]) == (status, "application/problem+json")
        assert json.loads(body)["type"] == f"/problems/{name}"
        assert app.asked == 0
        client.close()
        await listener.drain(2, idle_s=0)

    run(loop_factory, scenario())


def test_a_large_body_makes_no_head_too_large(loop_factory: LoopFactory) -> None:
    async def scenario() -> None:
        listener = Listener(Answers(), HOST, 0)
        await listener.start()
        client = await Client.connect(listener.port)
        size = 3 * HEAD_BYTES_MAX
        for _ in range(3):
            assert (await client.ask(b"POST /x HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % size + bytes(size)))[0] == 200
        client.close()
        await listener.drain(2, idle_s=0)

    run(loop_factory, scenario())


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_a_client_of_http_1_0_gets_no_chunks(loop_factory: LoopFactory, version: bytes) -> None:
    """An answer of unknown length ends with the connection (RFC 9112, 6.3)."""

    async def streams(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
        for part in (b"one", b"two"):
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"three"})

    async def scenario() -> None:
        listener = Listener(streams, HOST, 0)
        await listener.start()
        client = await Client.connect(listener.port)
        client.writer.write(b"GET / HTTP/%s\r\nHost: a\r\nConnection: close\r\n\r\n" % version)
        head, _, body = (await client.reader.read()).partition(b"\r\n\r\n")
        if version == b"1.0":
            assert b"transfer-encoding" not in head
            assert b"connection: close" in head
            assert body == b"onetwothree"
        else:
            assert b"transfer-encoding: chunked" in head
        client.close()
        assert await listener.drain(2, idle_s=0) == 0

    run(loop_factory, scenario())
