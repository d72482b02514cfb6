"""The trace over a listener of its own, against a program that makes requests of its document."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from base64 import b64encode
from pathlib import Path

import pytest

from tests.deployments.trace_house import CPF, GATEWAY, PASSWORD, USER, House


@pytest.mark.slow
async def test_schemathesis_finds_no_error_of_ours(trace_house: House, tmp_path: Path) -> None:
    program = [str(Path(sys.executable).with_name("schemathesis")), "run", "--max-examples", "25", "--seed", "7"]
    credentials = b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    headers = {"Authorization": f"Basic {credentials}", "Razao-Gateway": GATEWAY, "Razao-Tax-Id": CPF}
    run = await asyncio.create_subprocess_exec(
        *program, f"http://127.0.0.1:{trace_house.port}/trace/v1/openapi.json", "--no-color",
        "--checks", "not_a_server_error,status_code_conformance,response_schema_conformance",
        *(part for name, value in headers.items() for part in ("--header", f"{name}: {value}")),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=tmp_path, env={**os.environ, "NO_PROXY": "*"},
    )  # fmt: skip
    said, _ = await run.communicate()
    assert run.returncode == 0, said.decode()[-6000:]
