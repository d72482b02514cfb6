"""A transfer on its express route is answered as on the ordinary way, and no fault of ours leaves it unanswered."""

from __future__ import annotations

import json
import logging
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from cluster.postgres import PostgresServer
from deployments import payments_express
from tests.contract.http_engine import Engine, LiveEngine, new_database
from tests.contract.http_suite import READ_WRITE, Caller, World, new_id, transfer

EXPRESS: Final = "/v1/transfers"
ORDINARY: Final = "/v1/transfers?"
"""The same to the application, but another target than the route's."""

Answer = tuple[int, dict[str, str], Any]


@pytest.fixture(scope="module")
def engine(postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """An engine whose requests do not wait long."""
    dsn = new_database(postgres_server, "http_express")
    made = Engine(dsn, Path(tmp_path_factory.mktemp("engine")), deadline_s=1.0, gateway_secret="the secret")
    live: LiveEngine = made.start()
    world = World(live)
    world.http.headers["razao-gateway"] = "the secret"
    made.world = world  # type: ignore[attr-defined]
    yield made
    world.http.close()
    made.stop()


@pytest.fixture
def world(engine: Engine) -> World:
    made: World = engine.world  # type: ignore[attr-defined]
    return made


@pytest.fixture
def submitted(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The events that went the express way."""
    seen: list[bytes] = []
    submit = engine.services.client.submit

    def noticed(row: bytes, *rest: Any) -> None:
        seen.append(row)
        submit(row, *rest)

    monkeypatch.setattr(engine.services.client, "submit", noticed)
    return seen


def send(engine: Engine, caller: Caller, target: str, body: Any, **headers: str) -> Answer:
    """One request in one piece."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {"host": "razao", "content-type": "application/json", "razao-gateway": "the secret", **caller.headers}
    named |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = "".join(f"{name}: {value}\r\n" for name, value in named.items() if value)
    head = f"POST {target} HTTP/1.1\r\n{lines}content-length: {len(data)}\r\nconnection: close\r\n\r\n"
    with socket.create_connection(("127.0.0.1", engine.port), timeout=20) as connection:
        connection.sendall(head.encode() + data)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    top, _, content = answer.partition(b"\r\n\r\n")
    status, *rest = top.decode().split("\r\n")
    return int(status.split()[1]), dict(line.split(": ", 1) for line in rest), json.loads(content)


def plain(answer: Answer) -> str:
    """Without what differs from one request to the next."""
    status, headers, body = answer
    text = json.dumps([status, sorted(headers.items()), body], sort_keys=True)
    text = re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}|\b[0-9a-f]{32}\b", "<id>", text)
    text = re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z|\w{3}, \d\d \w{3} \d{4} [\d:]+ GMT", "<time>", text)
    return re.sub(r'("razao-position", ")[\d:,]+', r"\1<position>", text)


def test_both_ways_say_the_same(engine: Engine, world: World, submitted: list[bytes]) -> None:
    payer, account = world.person(10_000, limits={"per_transfer": 500})
    _, near = world.person_elsewhere(account, apart=False)
    _, far = world.person_elsewhere(account, apart=True)
    stranger = world.caller()
    reader = world.caller("ledger:read")
    good: list[tuple[Caller, Any, dict[str, str]]] = [
        (payer, transfer(account, near, 5), {}),
        (payer, transfer(account, far, 5), {}),
        (payer, transfer(account, near, 5, description="pão", metadata={"a": [1, {"b": None}]}), {}),
        (payer, transfer(account, far, 5, hold=True), {}),
        (payer, transfer(account, near, 5, hold=True, expires_in=60, description="a room"), {}),
        (payer, transfer(account, near, 7), {"x_request_id": new_id()}),
    ]
    refused_by_the_shard: list[tuple[Caller, Any, dict[str, str]]] = [
        (payer, transfer(account, near, 501), {}),
        (payer, transfer(near, account, 1), {}),
        (payer, transfer(account, account, 1), {}),
        (payer, transfer(account, "7349874591868649841", 1), {}),
        (stranger, transfer(account, near, 1), {"x_correlation_id": "c-1"}),
        (payer, transfer(account, near, 5, id=new_id(account, age_s=10 * 86_400)), {}),
    ]
    left: list[tuple[Caller, Any, dict[str, str]]] = [
        (reader, transfer(account, near, 5), {}),
        (payer, transfer(account, near, 0), {}),
        (payer, transfer(account, near, 5, expires_in=5), {}),
        (payer, b'{"amount": 1', {}),
        (payer, b'{"debit_account":"5000","debit_account":"5001","credit_account":"6000","amount":1}', {}),
        (payer, b" " * 70_000, {}),
        (payer, transfer(account, near, 5), {"content_type": "text/plain"}),
        (payer, transfer(account, near, 5), {"content_encoding": "gzip"}),
        (payer, transfer(account, near, 5), {"authorization": "Bearer nonsense"}),
        (payer, transfer(account, near, 5), {"authorization": ""}),
        (payer, transfer(account, near, 5), {"razao_gateway": "another"}),
        (payer, transfer(account, near, 5), {"X-Request-Id": "a", "x-request-id": "b"}),
        (payer, transfer(account, near, 5), {"idempotency_key": "\x7f"}),
        (payer, transfer(account, near, 5, id=new_id(str(int(account) + 1))), {}),
    ]
    for caller in (payer, stranger, reader):
        caller.get("/v1/accounts")  # so that the token is known
    statuses = set()
    for cases, taken in ((good, True), (refused_by_the_shard, True), (left, False)):
        for caller, body, headers in cases:
            submitted.clear()
            ordinary = send(engine, caller, ORDINARY, body, **headers)
            assert not submitted
            if "x_request_id" in headers:
                headers["x_request_id"] = new_id()
            express = send(engine, caller, EXPRESS, body, **headers)
            assert bool(submitted) == taken, (body, headers)
            assert plain(express) == plain(ordinary)
            statuses.add(express[0])
    assert {201, 400, 401, 403, 413, 415, 422} <= statuses


def test_an_id_is_the_same_on_both_ways(engine: Engine, world: World, submitted: list[bytes]) -> None:
    payer, account = world.person(100)
    _, other = world.person_elsewhere(account, apart=True)
    for body, headers in (
        (transfer(account, other, 10, id=new_id(account)), {}),
        (transfer(account, other, 10), {"idempotency_key": "k-1"}),
        (transfer(account, other, 10), {"x_request_id": new_id()}),
        (transfer(account, other, 90_000), {"idempotency_key": "k-2"}),
    ):
        first = send(engine, payer, EXPRESS, body, **headers)
        again = send(engine, payer, ORDINARY, body, **headers)
        third = send(engine, payer, EXPRESS, body, **headers)
        assert first[2].get("id") == again[2].get("id") == third[2].get("id")
        assert "idempotency-replayed" not in first[1]
        assert again[1]["idempotency-replayed"] == third[1]["idempotency-replayed"] == "true"
        other_content = send(engine, payer, EXPRESS, {**body, "amount": 11}, **headers)
        assert other_content[2]["type"] == "/problems/id-conflict"
    assert payer.balance(account)[0] == 70
    assert len(submitted) == 12


def test_a_dead_shard_makes_it_unsure_in_time_and_the_id_resolves_it(engine: Engine, world: World) -> None:
    payer, account = world.person(1000)
    _, other = world.person_elsewhere(account, apart=True)
    near, far = transfer(account, other, 300), transfer(other, account, 1)
    home = int(account) % 2
    engine.run(engine.stop_shard(home))
    status, headers, body = send(engine, payer, EXPRESS, near)
    assert (status, body["type"], headers["retry-after"]) == (503, "/problems/unsure", "1")
    assert send(engine, payer, EXPRESS, far)[2]["type"] == "/problems/forbidden"  # the other shard serves on
    engine.run(engine.start_shard(home))
    settled = send(engine, payer, EXPRESS, {**near, "id": body["id"]})
    assert settled[0] == 201
    assert payer.balance(account)[0] == 700


def test_a_fault_of_ours_after_the_payment_is_unsure_with_the_id(
    engine: Engine, world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    payer, account = world.person(100)
    _, other = world.person_elsewhere(account, apart=False)

    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("a fault")

    body = transfer(account, other, 10, id=new_id(account))
    with monkeypatch.context() as patched, caplog.at_level(logging.ERROR):
        patched.setattr(payments_express, "transfer_answer", broken)
        status, _, problem = send(engine, payer, EXPRESS, body)
    assert (status, problem["type"], problem["id"]) == (503, "/problems/unsure", body["id"])
    assert "a fault" not in json.dumps(problem)
    assert "ZeroDivisionError" in caplog.text
    assert send(engine, payer, EXPRESS, body)[1]["idempotency-replayed"] == "true"
    with monkeypatch.context() as patched, caplog.at_level(logging.ERROR):
        patched.setattr(payments_express, "read_transfer", broken)
        assert send(engine, payer, EXPRESS, transfer(account, other, 10))[0] == 201  # by the ordinary way
    assert payer.balance(account)[0] == 80


def test_a_refusal_is_logged_with_its_route(engine: Engine, world: World, caplog: pytest.LogCaptureFixture) -> None:
    _, account = world.person(100)
    stranger = world.caller(READ_WRITE)
    stranger.get("/v1/accounts")
    for target in (EXPRESS, ORDINARY):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            assert send(engine, stranger, target, transfer(account, "6000", 1))[0] == 403
        (line,) = [record.about for record in caplog.records if hasattr(record, "about")]
        assert (line["route"], line["status"], line["subject"], line["problem"]) == (
            "/v1/transfers", 403, stranger.sub, "forbidden",
        )  # fmt: skip
