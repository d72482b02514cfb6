"""What clients are told while a part is away, and that nothing is lost or doubled by it; and bodies made at random."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import asyncpg
import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.postgres import PostgresServer
from storage import ids
from tests.contract.http_engine import Engine, LiveEngine, new_database
from tests.contract.http_suite import EVERYTHING, Caller, World, new_id, refused, transfer

DEADLINE_S: Final = 1.0


@pytest.fixture(scope="module")
def engine(postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Engine, World]]:
    """An engine whose requests do not wait long."""
    dsn = new_database(postgres_server, "http_outage")
    made = Engine(dsn, Path(tmp_path_factory.mktemp("engine")), deadline_s=DEADLINE_S)
    live: LiveEngine = made.start()
    world = World(live)
    yield made, world
    world.http.close()
    made.stop()


def until(check: Callable[[], bool]) -> None:
    """Ask until it is so."""
    deadline = time.monotonic() + 20
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_dead_shard_makes_answers_unsure_and_repeating_the_id_resolves_them(engine: tuple[Engine, World]) -> None:
    """503 with the id and Retry-After in time; health says so; the other shard serves on."""
    made, world = engine
    owner, account = world.person(1000)
    friend, other = world.person_elsewhere(account, apart=True, amount=100)
    body = transfer(account, other, 300, id=new_id(account))
    home = int(account) % 2
    made.run(made.stop_shard(home))
    began = time.monotonic()
    problem = refused(owner.post("/v1/transfers", body), 503, "unsure")
    assert time.monotonic() - began < DEADLINE_S + 2
    assert problem["id"] == body["id"]
    keyless = refused(owner.post("/v1/transfers", transfer(account, other, 5)), 503, "unsure")
    assert ids.parse(keyless["id"])
    batch = owner.post("/v1/transfers/batch", {"transfers": [body]}).json()["results"]
    assert batch == [{"id": body["id"], "status": "unsure", "type": "/problems/unsure"}]
    for path in (f"accounts/{account}/balance", f"transfers/{body['id']}", f"accounts/{account}"):
        refused(owner.get(f"/v1/{path}"), 503, "unavailable")
    until(lambda: world.http.get("/healthz").status_code == 503)
    refused(world.http.get("/healthz"), 503, "unavailable")
    assert friend.balance(other)[0] == 100
    made.run(made.start_shard(home))
    until(lambda: world.http.get("/healthz").status_code == 200)
    until(lambda: owner.post("/v1/transfers", body).status_code == 201)
    again = owner.post("/v1/transfers", body)
    assert (again.status_code, again.headers["idempotency-replayed"]) == (201, "true")
    until(lambda: owner.post("/v1/transfers", transfer(account, other, 5, id=keyless["id"])).status_code == 201)
    assert owner.balance(account)[0] == 695
    assert owner.get(f"/v1/transfers/{body['id']}").json()["status"] == "settled"


def test_a_shard_that_is_away_hurts_its_own_transfers_alone(engine: tuple[Engine, World]) -> None:
    """What follows a transfer asks the shard that its id names, and no other one."""
    made, world = engine
    _, account = world.person()
    payer, near = world.person_elsewhere(account, apart=True, amount=1000)
    payee, other = world.person_elsewhere(near, apart=False)
    hold = payer.post("/v1/transfers", transfer(near, account, 50, hold=True)).json()
    away = int(account) % 2
    made.run(made.stop_shard(away))
    paid = payer.post("/v1/transfers", transfer(near, other, 300)).json()
    for caller in (payer, payee):
        assert caller.get(f"/v1/transfers/{paid['id']}").json() == paid
    assert payee.post(f"/v1/transfers/{paid['id']}/refunds", {"amount": 100}).status_code == 201
    assert payer.get(f"/v1/transfers/{hold['id']}").json() == hold  # its payee is away
    assert payer.post(f"/v1/transfers/{hold['id']}/void").json()["status"] == "voided"
    assert refused(payer.post(f"/v1/transfers/{hold['id']}/post"), 422, "not-held")["transfer_status"] == "voided"
    refused(payer.get(f"/v1/transfers/{new_id(account)}"), 503, "unavailable")
    at = paid["created_at"]
    assert payer.get(f"/v1/accounts/{near}/balance?at={at}").json()["posted"] == 700
    made.run(made.start_shard(away))


def test_money_on_its_way_to_a_dead_shard_is_unsure_until_it_arrives(engine: tuple[Engine, World]) -> None:
    """Then GET tells the outcome, and the batch's too."""
    made, world = engine
    owner, account = world.person(1000)
    friend, other = world.person_elsewhere(account, apart=True)
    away = int(other) % 2
    made.run(made.stop_shard(away))
    single, row = transfer(account, other, 300, id=new_id(account)), transfer(account, other, 7, id=new_id(account))
    assert refused(owner.post("/v1/transfers", single), 503, "unsure")["id"] == single["id"]
    assert owner.post("/v1/transfers/batch", {"transfers": [row]}).json()["results"][0]["status"] == "unsure"
    assert owner.balance(account)[0] == 693
    made.run(made.start_shard(away))
    for body in (single, row):
        until(lambda body=body: owner.get(f"/v1/transfers/{body['id']}").status_code == 200)  # type: ignore[misc]
        assert owner.get(f"/v1/transfers/{body['id']}").json()["status"] == "settled"
    assert friend.balance(other)[0] == 307


def test_a_position_that_is_not_reached_in_time_is_told_as_such(engine: tuple[Engine, World]) -> None:
    """503 not-caught-up, while the projection stands still."""
    made, world = engine
    owner, account = world.person()

    async def stand_still() -> asyncpg.Connection[asyncpg.Record]:
        connection = await asyncpg.connect(made.dsn)
        await connection.execute("BEGIN")
        await connection.execute("LOCK TABLE query.projection IN EXCLUSIVE MODE")  # it can be read all the same
        return connection

    connection = made.run(stand_still())
    change = owner.call("PATCH", f"/v1/accounts/{account}", {"limits": {"daily": 10}})
    position = change.headers["razao-position"]
    for path in (f"accounts/{account}/entries", f"accounts/{account}", "accounts", f"transfers/{new_id(account)}"):
        refused(owner.get(f"/v1/{path}", razao_position=position), 503, "not-caught-up")
    made.run(connection.close())
    until(lambda: owner.get("/v1/accounts", razao_position=position).status_code == 200)


def test_a_change_that_was_made_is_never_told_as_nothing_done(engine: tuple[Engine, World]) -> None:
    """It cannot be shown, for the registry fails just then: unsure, with the id; and it stands."""
    made, world = engine
    owner, account = world.person(limits={"daily": 100})
    pool = made.services.registry._pool
    made.run(pool.execute("ALTER TABLE people.owners RENAME TO lost"))
    change = owner.call("PATCH", f"/v1/accounts/{account}", {"limits": {"daily": 10}}, idempotency_key="k")
    assert ids.parse(refused(change, 503, "unsure")["id"])
    made.run(pool.execute("ALTER TABLE people.lost RENAME TO owners"))
    assert owner.get(f"/v1/accounts/{account}").json()["limits"]["daily"] == 10
    again = owner.call("PATCH", f"/v1/accounts/{account}", {"limits": {"daily": 10}}, idempotency_key="k")
    assert (again.status_code, again.headers["idempotency-replayed"]) == (200, "true")


def test_requests_without_keys_are_told_apart_by_the_gateways_number(engine: tuple[Engine, World]) -> None:
    """So the gateway may send one again whose connection was lost."""
    _, world = engine
    owner, account = world.person(1000)
    _, other = world.person()
    number = new_id(account)
    body = transfer(account, other, 10)
    first = owner.post("/v1/transfers", body, x_request_id=number)
    again = owner.post("/v1/transfers", body, x_request_id=number)
    assert first.json()["id"] == number
    assert (again.content, again.headers["idempotency-replayed"]) == (first.content, "true")
    rows = {"transfers": [body, body, {**body, "id": new_id(account)}]}
    number = new_id()
    batches = [owner.post("/v1/transfers/batch", rows, x_request_id=number).json() for _ in range(2)]
    assert batches[0] == batches[1]
    assert len({one["id"] for one in batches[0]["results"]}) == 3
    assert owner.balance(account)[0] == 960
    strange = [owner.post("/v1/transfers", body, x_request_id="abc").json()["id"] for _ in range(2)]
    assert strange[0] == strange[1]
    assert owner.balance(account)[0] == 950


async def test_many_at_once_spend_the_money_once(engine: tuple[Engine, World]) -> None:
    """Two commits at once both succeed: not here. And an id sent by many at once happens once."""
    _, world = engine
    owner, account = world.person(500)
    _, other = world.person_elsewhere(account, apart=True)
    same = transfer(account, other, 100, id=new_id(account))
    bodies = [same] * 20 + [transfer(account, other, 100) for _ in range(40)]
    async with httpx.AsyncClient(
        base_url=world.engine.base_url, headers=owner.headers, trust_env=False, timeout=30
    ) as http:
        answers = await asyncio.gather(*(http.post("/v1/transfers", json=body) for body in bodies))
    assert {answer.status_code for answer in answers} == {201, 422}
    assert len({answer.json()["id"] for answer in answers if answer.status_code == 201}) == 5
    assert owner.balance(account) == (0, 0, 0)


JSON: Final = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
NAMES: Final = st.sampled_from(
    ["id", "debit_account", "credit_account", "account", "amount", "hold", "expires_in", "description",
     "metadata", "linked", "owner", "tax_id", "name", "sub", "limits", "daily", "night_window", "from", "to", "status",
     "transfers"]
)  # fmt: skip
PATHS: Final = st.sampled_from(
    ["POST transfers", "POST transfers/batch", "POST deposits", "POST withdrawals", "POST accounts",
     "PATCH accounts/{}", "POST transfers/{}/post", "POST transfers/{}/void", "POST transfers/{}/refunds",
     "GET accounts/{}",
     "GET transfers/{}", "GET accounts/{}/balance", "GET accounts/{}/entries", "GET accounts"]
)  # fmt: skip


@settings(
    max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)
@given(data=st.data())
def test_no_request_made_at_random_is_ever_a_5xx(engine: tuple[Engine, World], data: st.DataObject) -> None:
    """With names and values that nearly fit, in any place; and the money stays where it is."""
    _, world = engine
    caller, account, other, held = _fuzz_world(world)
    fitting = st.sampled_from(
        [account, other, held, new_id(account), "12345678909", "20:00", 1, 0, -1, 2**63, True, "open", {}]
    )
    objects = st.dictionaries(NAMES, fitting | JSON, max_size=6)
    bodies = objects | st.builds(lambda rows: {"transfers": rows}, st.lists(objects, max_size=3)) | JSON
    method, _, path = data.draw(PATHS).partition(" ")
    in_path = data.draw(st.sampled_from([account, other, held, new_id(account), "x", "%00", "1"]))
    content = data.draw(bodies.map(lambda body: json.dumps(body).encode()) | st.binary(max_size=40))
    query = data.draw(
        st.sampled_from(["", "?at=x", "?limit=1", "?cursor=%FF", "?from=&to=", "?at=2026-01-01T00:00:00Z"])
    )
    answer = caller.http.request(
        method, f"/v1/{path.replace('{}', in_path)}{query}", content=content,
        headers={**caller.headers, "content-type": data.draw(st.sampled_from(["application/json", "text/plain"]))},
    )  # fmt: skip
    assert answer.status_code < 500, (method, path, content, answer.text)
    if answer.status_code >= 400:
        assert answer.headers["content-type"] == "application/problem+json"


_made: dict[int, tuple[Caller, str, str, str]] = {}


def _fuzz_world(world: World) -> tuple[Caller, str, str, str]:
    """Made once: a caller who may do everything, two accounts, a hold."""
    if id(world) not in _made:
        caller = world.caller(EVERYTHING)
        account, other = caller.open(), caller.open()
        world.fund(account, 1000)
        held: Any = caller.post("/v1/transfers", transfer(account, other, 10, hold=True)).json()["id"]
        _made[id(world)] = (caller, account, other, held)
    return _made[id(world)]
