"""What follows a transfer is answered by the shard that has it, though the history stands still and others are away."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import asyncpg
import pytest

from cluster.postgres import PostgresServer
from storage import ids
from tests.contract.http_engine import Engine, new_database
from tests.contract.http_suite import TAX_IDS, World, new_id, refused, transfer

DEADLINE_S: Final = 2.0
"""Whoever waits for the history, while it stands still, is told so after this."""


@pytest.fixture(scope="module")
def engine(postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Engine, World]]:
    made = Engine(
        new_database(postgres_server, "http_lookups"), tmp_path_factory.mktemp("engine"), deadline_s=DEADLINE_S
    )
    world = World(made.start())
    yield made, world
    world.http.close()
    made.stop()


@contextmanager
def standing_still(made: Engine) -> Iterator[None]:
    """Nothing more is projected; what is can be read."""

    async def lock() -> asyncpg.Connection[asyncpg.Record]:
        connection = await asyncpg.connect(made.dsn)
        await connection.execute("BEGIN")
        await connection.execute("LOCK TABLE query.projection IN EXCLUSIVE MODE")
        return connection

    connection = made.run(lock())
    try:
        yield
    finally:
        made.run(connection.close())


@pytest.mark.parametrize("keyed", [False, True])
@pytest.mark.parametrize("apart", [False, True])
def test_what_follows_a_transfer_does_not_wait_for_the_history(
    engine: tuple[Engine, World], apart: bool, keyed: bool
) -> None:
    """Each as its owner and as the payee sees it; also by an id that a key gave, which might have been used before."""
    made, world = engine
    payer, near = world.person(1_000)
    payee, other = world.person_elsewhere(near, apart=apart)
    stranger, _ = world.person()

    def make(amount: int, **more: Any) -> dict[str, Any]:
        named = {"idempotency_key": new_id()} if keyed else {}
        answer = payer.post("/v1/transfers", transfer(near, other, amount, **more), **named)
        assert answer.status_code == 201, answer.text
        found: dict[str, Any] = answer.json()
        return found

    with standing_still(made):
        paid = make(300, description="for the book", metadata={"n": [1]})
        path = f"/v1/transfers/{paid['id']}"
        assert payer.get(path).json() == payee.get(path).json() == paid
        refused(stranger.get(path), 403, "forbidden")
        for caller in (payer, stranger):
            refused(caller.post(f"{path}/refunds", {"amount": 1}), 403, "forbidden")
            refused(caller.post(f"{path}/refunds", {"amount": 1, "id": new_id("1023")}), 403, "forbidden")
        back = payee.post(f"{path}/refunds", {"amount": 120}).json()
        assert (back["status"], back["refund_of"], back["debit_account"]) == ("settled", paid["id"], other)
        assert payee.get(f"/v1/transfers/{back['id']}").json() == back
        refused(payee.post(f"{path}/refunds", {"amount": 181}), 422, "exceeds-original")
        if not apart:  # else the payee's shard has it, and the payer's hears of it by the history
            assert payer.get(path).json()["refunded_amount"] == 120

        for what, body, told in (
            ("post", {"amount": 30}, {"status": "posted", "posted_amount": 30}),
            ("void", {}, {"status": "voided"}),
        ):
            hold = make(50, hold=True, metadata={"a": "b"})
            path = f"/v1/transfers/{hold['id']}"
            assert payer.get(path).json() == hold
            refused(payee.post(f"{path}/{what}", body), 403, "forbidden")
            refused(payee.post(f"{path}/refunds", {"amount": 1}), 422, "not-refundable")
            refused(payer.post(f"{path}/refunds", {"amount": 1}), 403, "forbidden")
            assert payer.post(f"{path}/{what}", body).json() == {**hold, **told}
            assert payer.get(path).json() == {**hold, **told}
            for again in ("post", "void"):
                problem = refused(payer.post(f"{path}/{again}"), 422, "not-held")
                assert problem["transfer_status"] == told["status"]
                refused(stranger.post(f"{path}/{again}"), 403, "forbidden")
        assert payee.get(path).json()["status"] == "voided"
    at = payee.post(f"/v1/transfers/{paid['id']}/refunds", {"amount": 1}).headers["razao-position"]
    assert payer.get(f"/v1/transfers/{paid['id']}", razao_position=at).json()["refunded_amount"] == 121


def test_refusals_and_what_was_never_held_are_told_from_the_shard_too(engine: tuple[Engine, World]) -> None:
    made, world = engine
    payer, near = world.person(10)
    _, other = world.person()
    with standing_still(made):
        body = transfer(near, other, 300, id=new_id(near))
        refused(payer.post("/v1/transfers", body), 422, "insufficient-funds")
        found = payer.get(f"/v1/transfers/{body['id']}").json()
        assert (found["status"], found["type"]) == ("refused", "/problems/insufficient-funds")
        paid = payer.post("/v1/transfers", transfer(near, other, 3)).json()
        problem = refused(payer.post(f"/v1/transfers/{paid['id']}/post"), 422, "not-held")
        assert problem["transfer_status"] == "settled"
        refused(payer.get(f"/v1/transfers/{new_id(near)}"), 404, "unknown-transfer")
        refused(payer.post(f"/v1/transfers/{new_id(near)}/void"), 404, "unknown-transfer")


def test_an_opening_that_ended_halfway_is_dated_by_the_ledger(engine: tuple[Engine, World]) -> None:
    """The replica ended before it could write down what the shard had said; the history has it."""
    made, world = engine
    owner = world.caller()
    opened = owner.post("/v1/accounts", {"owner": {"tax_id": TAX_IDS[0], "name": "Maria"}}).json()
    path = f"/v1/accounts/{opened['id']}"
    made.run(made.services.store.pool.execute("UPDATE people.owners SET opened_at = NULL"))
    assert owner.get(path).json()["created_at"] == opened["created_at"]
    with standing_still(made):
        assert owner.get(path).json() == opened


def test_a_shard_that_has_started_again_leaves_what_was_before_to_the_history(engine: tuple[Engine, World]) -> None:
    """It waits for that of this partition, and answers as before."""
    made, world = engine
    payer, near = world.person(1_000)
    payee, other = world.person_elsewhere(near, apart=False)
    home = int(near) % 2
    with standing_still(made):
        paid = payer.post("/v1/transfers", transfer(near, other, 300)).json()
        path = f"/v1/transfers/{paid['id']}"
        made.run(made.stop_shard(home))
        made.run(made.start_shard(home))
        later = payer.post("/v1/transfers", transfer(near, other, 1))
        assert later.status_code == 201
        refused(payer.get(path), 503, "not-caught-up")
    assert payer.get(path).json() == paid
    with standing_still(made):
        assert payee.get(path).json() == paid
        assert payee.post(f"{path}/refunds", {"amount": 300}).status_code == 201
        assert payer.get(path).json()["refunded_amount"] == 300


def test_with_a_shard_away_and_the_history_still_the_others_transfers_go_on(engine: tuple[Engine, World]) -> None:
    made, world = engine
    _, far = world.person()
    payer, near = world.person_elsewhere(far, apart=True, amount=1_000)
    payee, other = world.person_elsewhere(near, apart=False)
    with standing_still(made):
        made.run(made.stop_shard(int(far) % 2))
        paid = payer.post("/v1/transfers", transfer(near, other, 300)).json()
        hold = payer.post("/v1/transfers", transfer(near, far, 50, hold=True)).json()
        assert payee.get(f"/v1/transfers/{paid['id']}").json() == paid
        assert payee.post(f"/v1/transfers/{paid['id']}/refunds", {"amount": 100}).status_code == 201
        assert payer.get(f"/v1/transfers/{paid['id']}").json() == {**paid, "refunded_amount": 100}
        assert payer.post(f"/v1/transfers/{hold['id']}/void").json() == {**hold, "status": "voided"}
        assert payer.get(f"/v1/transfers/{hold['id']}").json() == {**hold, "status": "voided"}
        assert ids.slot_of(ids.parse(new_id(far))) % 2 == int(far) % 2
        refused(payer.get(f"/v1/transfers/{new_id(far)}"), 503, "unavailable")
        made.run(made.start_shard(int(far) % 2))
