"""How much one caller may have of the ledger: a share of its rows and of its refusals, and deposits up to a ceiling."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cluster.postgres import PostgresServer
from deployments.quotas import Allowance, Quotas
from tests.contract.http_engine import Engine, new_database
from tests.contract.http_suite import World, new_id, refused, transfer

ROWS, REFUSED = 30, 10


@pytest.fixture
def world(postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """On an engine with small shares that take an hour to come back, and a low ceiling of deposits."""
    share = Allowance(rows_rate=1 / 3600, rows_burst=ROWS, refused_rate=1 / 3600, refused_burst=REFUSED)
    plenty = Allowance(1e6, 1e7, 1e6, 1e7)
    directory = tmp_path_factory.mktemp("engine")
    database = new_database(postgres_server, f"shares_{directory.name.replace('-', '_')}")
    engine = Engine(database, directory, quotas=Quotas(share, plenty), deposit_max=5_000)
    made = World(engine.start())
    yield made
    made.http.close()
    engine.stop()


def test_who_is_only_refused_is_turned_away_before_anything_is_sent_and_the_others_are_not(world: World) -> None:
    poor, empty = world.person(0)
    rich, account = world.person(1000)
    asked = 0
    while (answer := poor.post("/v1/transfers", transfer(empty, account, 1))).status_code == 422:
        asked += 1
        assert asked <= REFUSED + 1
    refused(answer, 429, "quota-exceeded")
    assert int(answer.headers["retry-after"]) >= 1
    named = {**transfer(empty, account, 1), "id": new_id(empty)}
    refused(poor.post("/v1/transfers", named), 429, "quota-exceeded")
    refused(poor.post("/v1/transfers/batch", {"transfers": [named]}), 429, "quota-exceeded")
    refused(rich.get(f"/v1/transfers/{named['id']}"), 404, "unknown-transfer")  # nothing was sent
    for _ in range(REFUSED + 5):
        assert rich.post("/v1/transfers", transfer(account, empty, 1)).status_code == 201
    assert poor.get(f"/v1/accounts/{empty}/balance").status_code == 200  # reading is no part of it


def test_a_batch_is_as_many_rows_as_it_has(world: World) -> None:
    owner, account = world.person(1000)
    _, other = world.person(0)
    batch = {"transfers": [transfer(account, other, 1) for _ in range(ROWS)]}
    assert owner.post("/v1/transfers/batch", batch).status_code == 200
    refused(owner.post("/v1/transfers", transfer(account, other, 1)), 429, "quota-exceeded")
    assert owner.get(f"/v1/accounts/{account}/balance").json()["posted"] == 1000 - ROWS


def test_a_deposit_has_a_ceiling(world: World) -> None:
    owner, account = world.person(0)
    answer = world.bank.post("/v1/deposits", {"account": account, "amount": 5_001})
    assert refused(answer, 422, "invalid-amount")["field"] == "amount"
    assert world.bank.post("/v1/deposits", {"account": account, "amount": 5_000}).status_code == 201
    assert owner.get(f"/v1/accounts/{account}/balance").json()["posted"] == 5_000
    assert world.bank.post("/v1/withdrawals", {"account": account, "amount": 5_000}).status_code == 201
