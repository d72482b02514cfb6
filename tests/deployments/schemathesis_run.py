"""Schemathesis let loose on an application that is served from the test's own loop."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from starlette.types import ASGIApp

from deployments.listener import Listener

_CHECKS: Final = "not_a_server_error,status_code_conformance,response_schema_conformance,negative_data_rejection"


async def finds_nothing(
    app: ASGIApp, document: str, headers: Mapping[str, str], directory: Path, *, examples: int = 12
) -> None:
    """Fails with what it says unless every answer is one that the OpenAPI document at the path `document` has."""
    listener = Listener(app, "127.0.0.1", 0)
    await listener.start()
    try:
        run = await asyncio.create_subprocess_exec(
            str(Path(sys.executable).with_name("schemathesis")), "run", "--max-examples", str(examples), "--seed", "7",
            f"http://127.0.0.1:{listener.port}{document}", "--no-color", "--checks", _CHECKS,
            *(part for name, value in headers.items() for part in ("--header", f"{name}: {value}")),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=directory, env={**os.environ, "NO_PROXY": "*"},
        )  # fmt: skip
        said, _ = await run.communicate()
    finally:
        await listener.drain(1.0, idle_s=0.0)
    assert run.returncode == 0, said.decode()[-6000:]
