"""Constant routes: what the machine gives when nothing is done per request. Each stack is a process of its own.

    python -m loadtests.peers.constant serve --port P --data DIR        behind Ray Serve's own HAProxy ingress
    python -m loadtests.peers.constant listener --port P --data DIR     our listener, reached directly
    python -m loadtests.peers.constant gateway --port P --data DIR      the same behind our gateway

All serve the same ASGI application, `GET /constant` with a body as long as a transfer's answer, from two processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Any, Final

import typer
import uvloop

from cluster.gateway import Application, Gateway, GatewayConfig
from cluster.processes import free_ports
from cluster.ray_node import LOOPBACK, RayNode
from deployments.listener import Listener
from loadtests.peers.runner import end_group
from loadtests.stacks import Stack

PATH: Final = "/constant"
BODY: Final = (
    b'{"id":"019a0000-0000-7000-8000-000000000000","status":"settled","amount":1,"debit_account":"1000000000000000000",'
    b'"credit_account":"1000000000000000001","created_at":"2026-01-01T00:00:00.000000Z"}'
)

_READY_S: Final = 120.0


async def constant(scope: Any, receive: Any, send: Any) -> None:  # noqa: ARG001, RUF100 - ASGI's signature
    """The ASGI application: reads nothing, answers the same to everybody."""
    if scope["type"] != "http":
        return
    length = str(len(BODY)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", length)]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": BODY})


def build() -> Any:
    """The application, for what takes a builder: `serve.ingress` calls a plain function to get one."""
    return constant


class ServeNode(RayNode):
    """A Ray node whose Serve runs its HAProxy ingress, every file and port of it its own."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, cpus=4)
        self._ports = free_ports(3)
        # Serve adds 56 characters of node id, and the path of a socket ends at 97 for HAProxy: nothing longer will do.
        self._run = Path(tempfile.mkdtemp(prefix="rzc-", dir="/tmp"))

    def environment(self) -> dict[str, str]:
        """As our own node's, with Serve's ingress on and tuned as its documents say."""
        run = self._run
        return {
            **super().environment(),
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            "RAY_SERVE_ENABLE_DIRECT_INGRESS": "1",
            "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",
            "RAY_SERVE_HAPROXY_NBTHREAD": "1",
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(run / "haproxy.cfg"),
            "RAY_SERVE_HAPROXY_SOCKET_PATH": str(run / "admin.sock"),
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(run),
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(run / "server-state"),
            "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(run / "metrics.sock"),
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(self._ports[0]),
            "RAY_SERVE_HAPROXY_STATS_PORT": str(self._ports[1]),
            "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(self._ports[2]),
        }

    def remove(self) -> None:
        """Stop, and delete everything on disk."""
        super().remove()
        shutil.rmtree(self._run, ignore_errors=True)


@contextlib.contextmanager
def serve_ingress(port: int, data: Path, replicas: int) -> Iterator[None]:
    """Ray, Serve with its HAProxy, and the application in Serve replicas."""
    node = ServeNode(data / "ray")
    try:
        node.start()
        node.join()
        from ray import serve  # noqa: PLC0415 - its settings are read at import, from what `join` has set

        serve.start(http_options=serve.HTTPOptions(host=LOOPBACK, port=port))
        ingress: Any = serve.deployment(
            serve.ingress(build)(),
            name="constant",
            num_replicas=replicas,
            max_ongoing_requests=1000,
            ray_actor_options={"num_cpus": 0.1},
        )
        serve.run(ingress.bind(), name="constant", route_prefix="/")
        yield
    finally:
        with contextlib.suppress(Exception):
            node.leave()  # before its node is gone: Ray aborts a driver that misses it
        node.remove()


@contextlib.contextmanager
def own_listener(port: int, data: Path, replicas: int) -> Iterator[None]:  # noqa: ARG001, RUF100 - one form for all
    """Processes that share a port, each with our listener and nothing else: no Ray beside them."""
    command = [sys.executable, "-m", "loadtests.peers.constant", "replica", "--port", str(port), "--data", str(data)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(replicas)]
    try:
        for process in processes:
            _await_ready(process, "its messages")
        yield
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


@contextlib.contextmanager
def own_gateway(port: int, data: Path, replicas: int) -> Iterator[None]:
    """The same behind our gateway, as the engine configures it."""
    (behind,) = free_ports(1)
    config = GatewayConfig(
        http_port=port,
        applications=[Application("constant", behind)],
        secret=secrets.token_hex(32),
        run_dir=data,
        per_address_rate=10_000_000,
    )
    gateway = Gateway(config)
    with own_listener(behind, data, replicas):
        gateway.start()
        try:
            yield
        finally:
            gateway.stop()


@contextlib.contextmanager
def replica(port: int, data: Path, replicas: int) -> Iterator[None]:  # noqa: ARG001, RUF100 - one form for all
    """One process of `own_listener`; serves from another thread's loop, as the main one waits for signals."""
    started = threading.Event()
    thread = threading.Thread(target=lambda: uvloop.run(_listen(port, started)), daemon=True)
    thread.start()
    if not started.wait(30):
        raise RuntimeError("the listener did not start")
    yield


async def _listen(port: int, started: threading.Event) -> None:
    listener = Listener(constant, LOOPBACK, port)
    await listener.start()
    started.set()
    while listener.alive:  # noqa: ASYNC110 - nothing to wait for: the process is killed
        await asyncio.sleep(1)


STACKS: Final[dict[str, Callable[[int, Path, int], AbstractContextManager[None]]]] = {
    "serve": serve_ingress,
    "listener": own_listener,
    "gateway": own_gateway,
    "replica": replica,
}


def main(
    stack: Annotated[str, typer.Argument(help=" | ".join(STACKS))],
    port: Annotated[int, typer.Option(help="Where to serve.")],
    data: Annotated[Path, typer.Option(help="Directory for what it writes.")],
    replicas: Annotated[int, typer.Option(help="Processes that answer.")] = 2,
) -> None:
    """Serve a constant route until SIGTERM."""
    data.mkdir(parents=True, exist_ok=True)
    _exit_on_signals()
    with STACKS[stack](port, data, replicas):
        _exit_on_signals()  # Ray's driver has put its own handler there
        print("ready", flush=True)
        signal.pause()


def _exit_on_signals() -> None:
    """Let SIGINT and SIGTERM unwind the main thread, so that it stops what it started."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(0))


@contextlib.contextmanager
def running(stack: str, data: Path, replicas: int = 2) -> Iterator[Stack]:
    """Run one of STACKS as a process tree of its own, until the block ends.

    Raises:
        RuntimeError: it ended, or was not ready in time.
    """
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "loadtests.peers.constant", stack, "--port", str(port), "--data", str(data)]
    command += ["--replicas", str(replicas)]
    root = Path(__file__).resolve().parents[2]
    log = data.parent / f"{data.name}.log"
    with (
        log.open("wb") as errors,
        subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=errors, start_new_session=True) as process,
    ):
        try:
            _await_ready(process, str(log))
            yield Stack(stack, port, [process.pid], PATH)
        finally:
            end_group(process, grace_s=30.0)


def _await_ready(process: subprocess.Popen[bytes], log: str) -> None:
    """Return when the process has printed "ready".

    Raises:
        RuntimeError: it ended, or did not in time.
    """
    assert process.stdout is not None
    deadline = time.monotonic() + _READY_S
    seen = b""
    while b"ready\n" not in seen:
        readable, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
        data = os.read(process.stdout.fileno(), 4096) if readable else b""
        if not data:
            raise RuntimeError(f"{process.args!r} did not become ready; see {log}")
        seen += data


if __name__ == "__main__":
    typer.run(main)
