"""Constant routes: what the machine gives when nothing is done per request. Each stack is a process of its own.

    python -m loadtests.peers.constant serve    --port P --data DIR     behind Ray Serve's own HAProxy ingress
    python -m loadtests.peers.constant listener --port P --data DIR     our listener in a Serve replica, reached directly
    python -m loadtests.peers.constant gateway  --port P --data DIR     the same behind our gateway

All serve the same ASGI application, `GET /constant` with a body as long as a transfer's answer, in as many replicas.
"""

from __future__ import annotations

import contextlib
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from cluster.processes import free_ports
from cluster.ray_node import LOOPBACK, RayNode
from loadtests.peers.runner import end_group

STACKS: Final = ("serve", "listener", "gateway")
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
    """A Ray node whose Serve runs its HAProxy ingress, every file and port of it inside this node's directory."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, cpus=4)
        self._ports = free_ports(3)

    def environment(self) -> dict[str, str]:
        """As our own node's, with Serve's ingress on and tuned as its documents say."""
        run = self.directory / "haproxy"
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


def serve_behind_haproxy(port: int, data: Path, replicas: int) -> contextlib.ExitStack:
    """Start Ray, Serve with its HAProxy, and the application. Closing the result ends all of it."""
    stack = contextlib.ExitStack()
    node = ServeNode(data / "ray")
    stack.callback(node.remove)
    with stack.pop_all() as guarded:
        node.start()
        node.join()
        guarded.callback(node.leave)
        from ray import serve  # noqa: PLC0415 - its settings are read at import, from what `join` has set

        serve.start(http_options=serve.HTTPOptions(host=LOOPBACK, port=port))
        deployment = serve.deployment(
            serve.ingress(build)(),
            name="constant",
            num_replicas=replicas,
            max_ongoing_requests=1000,
            ray_actor_options={"num_cpus": 0.1},
        )
        serve.run(deployment.bind(), name="constant", route_prefix="/")
        return guarded.pop_all()


def main(
    stack: Annotated[str, typer.Argument(help=" | ".join(STACKS))],
    port: Annotated[int, typer.Option(help="Where to serve.")],
    data: Annotated[Path, typer.Option(help="Directory for what it writes; emptied at the end.")],
    replicas: Annotated[int, typer.Option(help="Replicas of the application.")] = 2,
) -> None:
    """Serve a constant route until SIGTERM."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(0))  # unwinds the block below, which stops what it started
    with serve_behind_haproxy(port, data, replicas):
        print("ready", flush=True)
        signal.pause()


@contextlib.contextmanager
def running(stack: str, data: Path, replicas: int = 2) -> Iterator[int]:
    """Run a stack as a process; yields its port once it answers.

    Raises:
        RuntimeError: it ended, or was not ready in time.
    """
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "loadtests.peers.constant", stack, "--port", str(port), "--data", str(data)]
    command += ["--replicas", str(replicas)]
    root = Path(__file__).resolve().parents[2]
    log = (data.parent / f"{data.name}.log").open("w+b")
    with log, subprocess.Popen(
        command, cwd=root, stdout=subprocess.PIPE, stderr=log, start_new_session=True
    ) as process:
        try:
            _await_line(process, b"ready\n", log.name)
            yield port
        finally:
            end_group(process, grace_s=30.0)


def _await_line(process: subprocess.Popen[bytes], line: bytes, log: str) -> None:
    assert process.stdout is not None
    deadline = time.monotonic() + _READY_S
    seen = b""
    while line not in seen:
        readable, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
        data = process.stdout.read1() if readable else b""  # type: ignore[attr-defined]
        if not data:
            tail = Path(log).read_text(errors="replace")[-2000:]
            raise RuntimeError(f"{process.args} did not become ready: {tail}")
        seen += data


if __name__ == "__main__":
    typer.run(main)
