"""Lines that an application writes: whole, with the request's number, and without anybody's tax id or secret."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from deployments import logs
from deployments.auth.tokens import Identity
from deployments.edge import Edge
from deployments.logs import AccessLog, masked
from deployments.openapi import Operation
from deployments.problems import FORBIDDEN, ProblemError


@pytest.mark.parametrize(
    "text",
    [
        "52998224725", "529.982.247-25", "tax_id=52998224725&x", "'52998224725'", "/person/529.982.247-25/x",
        "529%2E982%2E247%2D25", "cpf52998224725", "11222333000181", "11.222.333/0001-81", "11222333%2F0001-81",
        "12.ABC.345/01DE-35", "12ABC34501DE35", "00000000000", "11122233344",
    ],
)  # fmt: skip
def test_whatever_looks_like_a_tax_id_is_masked(text: str) -> None:
    assert "***" in masked(text)
    assert not any(
        part in masked(text) for part in ("52998224725", "529.982", "222333", "982", "22233", "34501", "345/")
    )


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("Authorization: Bearer eyJhbGciOi.eyJzdWIi.c2lnbg", "eyJ"),
        ("got eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJhIn0.c2lnbmF0dXJl here", "c2ln"),
        ("authorization: Basic cmF6YW86c2VjcmV0", "cmF6"),
        ("{'authorization': b'secret-of-another-kind'}", "another-kind"),
        ('{"password":"um cavalo"}', '"um'),
        ("client_secret=swordfish&x=1", "swordfish"),
        ("the key rzs_0123456789abcdef0123", "0123456789abcdef"),
        ("mongodb://razao:swordfish@localhost:27017/razao", "swordfish"),
        ("razao-gateway: swordfish", "swordfish"),
        ("-----BEGIN PRIVATE KEY-----\nMIGH\n-----END PRIVATE KEY-----", "MIGH"),
    ],
)
def test_secrets_are_masked(text: str, secret: str) -> None:
    assert secret not in masked(text)
    assert "***" in masked(text)


@pytest.mark.parametrize(
    "text",
    [
        "0193a5b2-1234-7abc-8def-12345678901a",
        "GET /v1/accounts/170141183460469231731687303715884105727 failed",
        "GET /problems/forbidden failed: TimeoutError()",
        "at 1763800000123456789 of 2026-11-22T10:00:00.123+00:00",
        "no signing key is known yet",
    ],
)
def test_what_is_neither_stays(text: str) -> None:
    assert masked(text) == text


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Path]:
    """The file that this process writes its lines to, as a replica's does."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    root.handlers[:] = []
    file = tmp_path / "log" / "vault.log"
    logs.configure("vault", file)
    yield file
    for handler in root.handlers:
        handler.close()
    root.handlers[:] = before
    root.setLevel(level)


def text(file: Path) -> str:
    return file.read_text()


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text(file).splitlines()]


async def _unused(_: Any) -> None:
    return


PERSON = Operation("GET", "/vault/v1/grants/{id}", "grant", "A grant", "", _unused)


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers, refuses or fails, as the path says, once it has routed the request and knows who asks."""
    scope["razao.operation"] = PERSON
    scope["razao.identity"] = Identity("bank", frozenset(), 0.0)
    match scope["path"].rpartition("/")[2]:
        case "refused":
            raise ProblemError(FORBIDDEN, "No")
        case "failed":
            raise RuntimeError("no person 529.982.247-25")
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def ask(access: AccessLog | None, *paths: str, **headers: str) -> None:
    """Requests, one after the other."""
    transport = httpx.ASGITransport(Edge(application, deadline_s=5.0, access=access))
    async with httpx.AsyncClient(transport=transport, base_url="http://vault.test", headers=headers) as http:
        for path in paths:
            await http.get(path)


async def test_a_line_has_the_numbers_of_its_request_and_of_the_one_it_was_made_for(log: Path) -> None:
    numbers = {"x-request-id": "0193a5b2-1234-7abc-8def-12345678901a", "x-correlation-id": "chain-1"}
    await ask(AccessLog(all_answers=True), "/vault/v1/grants/7", "/vault/v1/grants/failed", **numbers)
    written = lines(log)
    assert [one["message"] for one in written][0::2] == ["access", "access"]
    assert {(one["application"], one["request_id"], one["correlation_id"]) for one in written} == {
        ("vault", numbers["x-request-id"], "chain-1")
    }
    await ask(AccessLog(all_answers=True), "/x", **{"x-request-id": "alone", "x-correlation-id": "no blanks allowed"})
    assert (lines(log)[-1]["request_id"], lines(log)[-1]["correlation_id"]) == ("alone", "alone")


async def test_an_access_is_told_by_route_status_time_and_subject(log: Path) -> None:
    await ask(AccessLog(all_answers=True), "/vault/v1/grants/52998224725")
    (line,) = lines(log)
    assert (line["method"], line["route"], line["status"], line["subject"]) == ("GET", PERSON.path, 200, "bank")
    assert 0 <= line["ms"] < 5000
    assert "52998224725" not in text(log)


async def test_a_failure_is_told_with_its_traceback_and_without_the_tax_id_in_it(log: Path) -> None:
    await ask(None, "/vault/v1/grants/failed")
    (line,) = lines(log)
    assert "RuntimeError: no person ***" in line["exception"]
    assert "529." not in text(log)  # with its point: a request's number may have the digits


async def test_where_answers_are_not_told_refusals_are(log: Path) -> None:
    await ask(None, "/x", "/refused", "/x")
    (line,) = lines(log)
    assert (line["message"], line["status"], line["problem"]) == ("refused", 403, "forbidden")


async def test_a_flood_of_refusals_does_not_fill_the_disk(log: Path) -> None:
    clock = 1000.0
    access = AccessLog(clock=lambda: clock)
    scope = {"method": "GET", "razao.headers": {}, "razao.request_id": "1"}
    for _ in range(1000):
        access.write(scope, 401, 0.0, "unauthenticated")
    assert len(lines(log)) == 50
    clock += 1
    access.write(scope, 401, 0.0, "unauthenticated")
    assert lines(log)[-1]["left_out"] == 950


def test_another_handler_s_lines_are_masked_too(log: Path) -> None:
    seen: list[str] = []

    class Seen(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(record.getMessage())

    serve, handler = logging.getLogger("ray.serve"), Seen()
    serve.addHandler(handler)
    try:
        logs.configure("vault")
        serve.warning("no person %s", "529.982.247-25")
    finally:
        serve.removeHandler(handler)
    assert seen == ["no person ***"]


def test_the_file_is_its_owner_s_alone(log: Path) -> None:
    assert log.stat().st_mode & 0o777 == 0o600
