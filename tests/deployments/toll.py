"""The small application that `test_serving` deploys: it says which process answers, and can be slow, closed or ill."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from starlette.types import Receive, Scope, Send

from deployments.serving import Application


class Toll:
    """`version` comes with the configuration, `tuned` with reconfigurations."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.version: str = config["version"]
        self.directory = Path(config["directory"])
        self.tuned: dict[str, Any] = {}
        self.started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await receive()
            self.started = True
            await send({"type": "lifespan.startup.complete"})
            await receive()
            (self.directory / f"stopped-{os.getpid()}").touch()
            await send({"type": "lifespan.shutdown.complete"})
            return
        if scope["path"].endswith("/slow"):
            await asyncio.sleep(0.05)
        what = {"pid": os.getpid(), "version": self.version, "tuned": self.tuned, "started": self.started}
        body = json.dumps({**what, "path": scope["path"], "root_path": scope["root_path"]}).encode()
        start = [(b"content-length", str(len(body)).encode()), (b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": start})
        await send({"type": "http.response.body", "body": body})

    async def reconfigure(self, tuning: Mapping[str, Any]) -> None:
        self.tuned = dict(tuning)

    async def check_health(self) -> None:
        if (self.directory / f"ill-{os.getpid()}").exists():
            raise RuntimeError("ill")

    async def close(self) -> None:
        (self.directory / f"closed-{os.getpid()}").touch()


async def create(config: dict[str, Any]) -> Application:
    """The factory."""
    toll = Toll(config)
    return Application(toll, close=toll.close, check_health=toll.check_health, reconfigure=toll.reconfigure)


async def broken(_config: dict[str, Any]) -> Application:
    """A factory that cannot."""
    raise RuntimeError("the store of 529.982.247-25 is away")
