"""A key whose window is over may be used again: what it names then is another transfer in every respect."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from actors.recovery import Windows
from cluster.postgres import PostgresServer
from tests.contract.http_engine import Engine, new_database
from tests.contract.http_suite import Caller, World, refused, transfer

_S = 10**9


@pytest.fixture(scope="module")
def world(postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """On an engine that remembers ids for three seconds."""
    windows = Windows(id_window_ns=2 * _S, id_skew_ns=_S)
    engine = Engine(new_database(postgres_server, "http_namesakes"), tmp_path_factory.mktemp("engine"), windows=windows)
    made = World(engine.start())
    yield made
    made.http.close()
    engine.stop()


def once_forgotten(caller: Caller, body: Any, key: str) -> httpx.Response:
    """The answer to a transfer under a key that had other content before, as soon as that is forgotten."""
    deadline = time.monotonic() + 20
    while (answer := caller.post("/v1/transfers", body, idempotency_key=key)).status_code == 409:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert "idempotency-replayed" not in answer.headers
    return answer


@pytest.mark.parametrize("apart", [False, True])
def test_a_payment_is_looked_up_and_refunded_as_what_its_key_names_now(world: World, apart: bool) -> None:
    """The newest use: its amount, its refunds, its outcome. The one before stays in the history as it was."""
    owner, account = world.person(1000)
    friend, other = world.person_elsewhere(account, apart=apart)
    first = owner.post("/v1/transfers", transfer(account, other, 300), idempotency_key="k").json()
    path = f"/v1/transfers/{first['id']}"
    assert friend.post(f"{path}/refunds", {"amount": 200}).status_code == 201
    second = once_forgotten(owner, transfer(account, other, 100, description="again"), "k").json()
    assert second["id"] == first["id"]
    assert owner.get(path).json() == second
    assert refused(friend.post(f"{path}/refunds", {"amount": 101}), 422, "exceeds-original")["left"] == 100
    refund = friend.post(f"{path}/refunds", {"amount": 100})
    assert refund.status_code == 201, refund.text
    found = owner.get(path, razao_position=refund.headers["razao-position"]).json()
    assert (found["amount"], found["refunded_amount"]) == (100, 100)
    unpaid = once_forgotten(owner, transfer(account, other, 10_000), "k")
    assert refused(unpaid, 422, "insufficient-funds")["id"] == first["id"]
    assert owner.get(path).json()["status"] == "refused"
    refused(friend.post(f"{path}/refunds", {"amount": 1}), 422, "not-refundable")
    assert (owner.balance(account)[0], friend.balance(other)[0]) == (900, 100)
    position = refund.headers["razao-position"]
    items = owner.get(f"/v1/accounts/{account}/entries", razao_position=position).json()["items"]
    assert [item["amount"] for item in items if item["transfer"] == first["id"]] == [100, 300]


@pytest.mark.parametrize("apart", [False, True])
def test_a_hold_is_ended_as_what_its_key_names_now(world: World, apart: bool) -> None:
    """Posted or voided with the amount that it has, though a hold of that id was ended before."""
    owner, account = world.person(1000)
    _, other = world.person_elsewhere(account, apart=apart)
    first = owner.post("/v1/transfers", transfer(account, other, 300, hold=True), idempotency_key="h").json()
    path = f"/v1/transfers/{first['id']}"
    answer = owner.post(f"{path}/post", {"amount": 250})
    assert answer.status_code == 200, answer.text
    assert answer.json()["posted_amount"] == 250
    second = once_forgotten(owner, transfer(account, other, 100, hold=True), "h").json()
    assert second["id"] == first["id"]
    assert owner.get(path).json() == second
    posted = owner.post(f"{path}/post").json()
    assert posted == {**second, "status": "posted", "posted_amount": 100}
    third = once_forgotten(owner, transfer(account, other, 40, hold=True), "h").json()
    assert owner.post(f"{path}/void").json() == {**third, "status": "voided"}
    assert refused(owner.post(f"{path}/post"), 422, "not-held")["transfer_status"] == "voided"
    assert owner.balance(account) == (650, 0, 650)
