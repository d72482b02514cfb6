"""A small ASGI application on uvicorn, run as a process of its own: what the gateway's tests put behind the gateway.

    python -m tests.cluster.replica PORT DIRECTORY

It shares PORT with its siblings (SO_REUSEPORT), appends `pid method path request-id bytes` to DIRECTORY/seen for every
request whose body came whole, and does what the path says. It prints `ready` once it listens.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

import uvicorn

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

BIG_BYTES = 32 * 1024 * 1024


class Replica:
    """The application. Paths: /hold, /die, /die-once, /fail, /refuse, /beyond, /big; all others tell what was sent."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        body = b""
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            more = message.get("more_body", False)
        headers = [(name.decode(), value.decode("latin-1")) for name, value in scope["headers"]]
        request_id = dict(headers).get("x-request-id", "-")
        with (self._directory / "seen").open("a") as seen:
            seen.write(f"{os.getpid()} {scope['method']} {scope['path']} {request_id} {len(body)}\n")
        match scope["path"]:
            case "/hold":
                while not (self._directory / "release").exists():  # noqa: ASYNC110 - another process makes the file
                    await asyncio.sleep(0.005)
            case "/die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "/die-once":
                try:
                    (self._directory / "died").touch(exist_ok=False)
                    os.kill(os.getpid(), signal.SIGKILL)
                except FileExistsError:
                    pass
            case "/fail":
                raise RuntimeError("as asked")
            case "/refuse":
                problem = b'{"type":"/problems/internal-error","status":500}'
                return await _answer(send, 500, b"application/problem+json", problem)
            case "/beyond":
                return await _answer(send, 429, b"application/problem+json", b"{}", (b"razao-quota", b"exceeded"))
            case "/big":
                return await _answer(send, 200, b"application/octet-stream", bytes(BIG_BYTES))
        answer = {
            "method": scope["method"],
            "path": scope["path"],
            "query": scope["query_string"].decode(),
            "headers": headers,
            "body": body.decode("latin-1") if len(body) < 1000 else len(body),
            "pid": os.getpid(),
            "from_port": scope["client"][1],
        }
        return await _answer(send, 200, b"application/json", json.dumps(answer).encode())


async def _answer(send: Send, status: int, media_type: bytes, body: bytes, *more: tuple[bytes, bytes]) -> None:
    headers = [(b"content-type", media_type), (b"content-length", str(len(body)).encode()), *more]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _serve(port: int, directory: Path) -> None:
    # With the protocol named asyncio turns Nagle's algorithm off; without, an answer may wait 40 ms for an ACK.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    config = uvicorn.Config(
        Replica(directory),
        http="httptools",
        lifespan="off",
        log_level="critical",
        proxy_headers=False,
        timeout_keep_alive=60,
    )
    listener.listen(1024)
    print("ready", flush=True)
    await uvicorn.Server(config).serve([listener])


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), Path(sys.argv[2])))
