"""One test per attack on the vault: at its middleware, its bodies, its rows, and the server beneath it."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncpg
import httpx
import pytest

from cluster.postgres import PostgresServer
from cluster.vault import check_record, key_file
from deployments.auth.network import NetworkMiddleware
from deployments.auth.tokens import KeyFile, TokenVerifier
from deployments.edge import Edge
from storage.vault_keys import Tampered, Wrapped
from storage.vault_people import key_context
from tests.conftest import free_port, running
from tests.deployments.vault_house import (
    ANA,
    BIA,
    CREDITOR,
    GATEWAY,
    NAME,
    NOBODY,
    PURPOSE,
    READ_ALL,
    SCORE,
    STREET,
    Caller,
    VaultHouse,
    debt,
    opened,
    person,
)

DEBTS = "/person?fields=debts"
SECRETS = ("52998224725", ANA, NAME, STREET, CREDITOR, "C-2025-1", "12345")


async def refused(caller: Caller, status: int, path: str = DEBTS) -> httpx.Response:
    """A GET that ends with a problem and shows nothing."""
    answer = await caller.get(path)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert not any(secret in answer.text for secret in SECRETS)
    return answer


@pytest.fixture
async def open_house(vault_house: VaultHouse) -> VaultHouse:
    """One where the score could read: whatever fails, fails for the attack's sake."""
    await vault_house.keep(debt())
    await vault_house.grant("debts")
    assert (await vault_house.score().get(DEBTS)).status_code == 200
    return vault_house


# -- at the door ------------------------------------------------------------------------------------------------------


async def test_tokens_for_other_services_expired_ones_and_passwords_open_nothing(open_house: VaultHouse) -> None:
    audiences = ("payments", "score", "trace", "")
    tokens: list[str | None] = [open_house.token(SCORE, READ_ALL, audience=audience) for audience in audiences]
    for token in (*tokens, None, "x.y.z", open_house.token(SCORE, READ_ALL)[:-4] + "AAAA"):
        await refused(Caller(open_house, token, ANA), 401)
    basic = base64.b64encode(b"score:password").decode()
    answer = await refused(Caller(open_house, None, ANA, authorization=f"Basic {basic}"), 401)
    assert answer.headers["www-authenticate"].startswith("Bearer")
    good = open_house.token(SCORE, READ_ALL)
    jwks = KeyFile(Path(open_house.plan.jwks))
    open_house.services.verifier = TokenVerifier(jwks, audience="vault", clock=lambda: time.time() + 3600)
    open_house.__post_init__()
    assert "expired" in (await refused(Caller(open_house, good, ANA), 401)).json()["detail"]


async def test_who_does_not_come_through_the_gateway_is_refused(open_house: VaultHouse) -> None:
    for secret in ("", "x", GATEWAY + "x"):
        await refused(open_house.score(**{"razao-gateway": secret}), 403)


async def test_addresses_outside_the_networks_are_refused_whatever_they_claim(open_house: VaultHouse) -> None:
    open_house.services.networks = ("127.0.0.1/32", "2001:db8::/64")
    open_house.__post_init__()
    claims = {"x-forwarded-for": "127.0.0.1", "forwarded": "for=127.0.0.1", "x-real-ip": "127.0.0.1"}
    for address in ("127.0.0.2", "192.0.2.1", "", "127.0.0.1, 127.0.0.2", "2001:db8:0:1::1", "::1%lo", "localhost"):
        await refused(open_house.score(**{"razao-client-address": address}, **claims), 403)
        health = await open_house.score(**{"razao-client-address": address}).get("/healthz")
        assert health.status_code == 200
    for address in ("127.0.0.1", "::ffff:127.0.0.1", "2001:db8::7"):
        assert (await open_house.score(**{"razao-client-address": address}).get(DEBTS)).status_code == 200


async def test_a_request_without_an_address_is_from_nowhere() -> None:
    async def never(*_: object) -> None:
        raise AssertionError

    transport = httpx.ASGITransport(Edge(NetworkMiddleware(never, ["0.0.0.0/0", "::/0"]), deadline_s=5))
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as http:
        assert (await http.get("/")).status_code == 403


async def test_a_tax_id_in_an_address_is_neither_read_nor_repeated_nor_recorded(open_house: VaultHouse) -> None:
    caller = open_house.caller(SCORE, READ_ALL, None)
    before = len(await open_house.record())
    for path in ("/person?fields=debts&tax_id=52998224725", "/person?fields=52998224725", DEBTS):
        await refused(caller, 400, path)
    for path in ("/person/52998224725", "/52998224725"):
        await refused(caller, 404, path)
    assert len(await open_house.record()) == before


async def test_headers_that_are_wrong_or_there_twice_are_refused(open_house: VaultHouse) -> None:
    caller = open_house.score()
    for tax_id, status in (("529.982.247-26", 422), ("", 400), ("x" * 300, 400), ("529 982 247 25", 422)):
        caller.http.headers["razao-tax-id"] = tax_id
        assert (await caller.get(DEBTS)).status_code == status
    caller.http.headers["razao-tax-id"] = ANA
    for purpose in ("", "a b", "52998224725", "x" * 65, "Credit-Score"):
        caller.http.headers["razao-purpose"] = purpose
        await refused(caller, 400)
    pairs = [*caller.http.headers.multi_items(), ("razao-tax-id", BIA)]
    pairs = [(name, PURPOSE if name == "razao-purpose" else value) for name, value in pairs]
    assert (await caller.http.get("/vault/v1/person?fields=debts", headers=pairs)).status_code == 400


# -- in what is sent --------------------------------------------------------------------------------------------------


async def test_keys_that_are_there_twice_are_refused(open_house: VaultHouse) -> None:
    bodies = {
        "/grants": b'{"grantee":"a","grantee":"razao-score","fields":["debts"],"purpose":"a-b","expires_in":9}',
        "/access-requests": b'{"fields":["debts"],"purpose":"a-b","purpose":"credit-score","expires_in":60}',
    }
    for path, body in bodies.items():
        headers = {"content-type": "application/json"}
        answer = await open_house.self_().http.post(f"/vault/v1{path}", content=body, headers=headers)
        assert (answer.status_code, answer.json()["type"]) == (400, "/problems/malformed")
    twice = json.dumps(person(debt())).replace('"name"', '"name":"x","name"').encode()
    answer = await open_house.source().http.put(
        "/vault/v1/person", content=twice, headers={"content-type": "application/json"}
    )
    assert answer.status_code == 400


async def test_quotes_and_operators_are_data(open_house: VaultHouse) -> None:
    evil = "x'); DROP TABLE vault.facts; --"
    kept = person(debt(id=evil, creditor=evil, contract="' OR '1'='1"), name=evil, address='{"$gt": ""}')
    assert (await open_house.source(BIA).send("PUT", "/person", kept)).status_code == 204
    found = (await open_house.self_(BIA).get("/person?fields=name,address,debts")).json()
    assert {**found, "updated_at": None} == {**kept, "updated_at": None, "granted_until": None}
    await open_house.grant("debts", about=BIA, grantee=evil)
    assert (await open_house.caller(evil, READ_ALL, BIA).get(DEBTS)).json()["debts"][0]["id"] == evil
    await refused(open_house.caller("' OR ''='", READ_ALL, ANA), 403)
    for operator in ({"$gt": ""}, {"$ne": None}, ["debts", {"$gt": ""}]):
        body = {"grantee": SCORE, "fields": operator, "purpose": PURPOSE, "expires_in": 60}
        assert (await open_house.self_().send("POST", "/grants", body)).status_code == 400


# -- at the rows ------------------------------------------------------------------------------------------------------


async def test_a_ciphertext_that_was_moved_or_changed_shows_nothing_and_is_on_record(open_house: VaultHouse) -> None:
    await open_house.keep(debt(7), about=BIA)
    await open_house.grant("debts", "name", about=BIA)
    moves = [
        "UPDATE vault.facts a SET content = b.content FROM vault.facts b WHERE a.field = 'debts' AND b.field = 'debts'"
        " AND a.person <> b.person",
        "UPDATE vault.facts SET content = set_byte(content, 20, get_byte(content, 20) # 1)",
        "UPDATE vault.facts a SET content = b.content FROM vault.facts b WHERE a.field = 'name' AND b.field = 'address'"
        " AND a.person = b.person",
        "UPDATE vault.keys a SET wrapped = b.wrapped FROM vault.keys b WHERE a.person <> b.person",
        "UPDATE vault.facts SET item = decode(md5(item), 'hex') WHERE field = 'debts'",
        "UPDATE vault.facts SET content = substr(content, 1, 5)",
    ]
    for move in moves:
        async with open_house.owner.acquire() as connection:
            transaction = connection.transaction()
            await transaction.start()
            await connection.execute("CREATE TEMP TABLE f AS SELECT * FROM vault.facts")
            await connection.execute("CREATE TEMP TABLE k AS SELECT * FROM vault.keys")
            await transaction.commit()
            await connection.execute(move)
            statuses = set()
            for about in (ANA, BIA):
                own = await open_house.self_(about).get("/person?fields=name,address,debts")
                statuses.add(own.status_code)
                assert not any(secret in own.text for secret in SECRETS if own.status_code != 200)
            assert 500 in statuses, move
            assert "failed" in {row["decision"] for row in (await open_house.record())[-2:]}
            await connection.execute(
                "TRUNCATE vault.keys, vault.facts; INSERT INTO vault.keys SELECT * FROM k;"
                " INSERT INTO vault.facts SELECT * FROM f; DROP TABLE f, k"
            )
    assert (await open_house.score().get(DEBTS)).status_code == 200


async def test_a_wrapped_key_opens_for_its_own_person_alone(open_house: VaultHouse) -> None:
    row = await open_house.owner.fetchrow("SELECT * FROM vault.keys")
    assert row is not None
    keys, wrapped = key_file(open_house.plan.data), Wrapped(row["master"], row["wrapped"])
    assert len(await keys.unwrap(wrapped, key_context(row["person"]))) == 32
    with pytest.raises(Tampered):
        await keys.unwrap(wrapped, key_context(bytes(16)))


async def test_a_dump_of_the_database_shows_nobody(open_house: VaultHouse) -> None:
    await open_house.score(NOBODY).get(DEBTS)
    await open_house.score().send(
        "POST", "/access-requests", {"fields": ["debts"], "purpose": PURPOSE, "expires_in": 60}
    )
    tables = await open_house.owner.fetch(
        "SELECT format('%I.%I', schemaname, tablename) AS name FROM pg_tables"
        " WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
    )
    assert len(tables) >= 7
    dump = b""
    for table in tables:
        for row in await open_house.owner.fetch(f"SELECT * FROM {table['name']}"):
            for value in row.values():
                dump += (value if isinstance(value, bytes) else str(value).encode()) + b"\n"
    assert SCORE.encode() in dump
    for secret in SECRETS:
        for written in (secret.encode(), secret.encode().hex().encode(), base64.b64encode(secret.encode())[:-2]):
            assert written not in dump, secret


@pytest.mark.parametrize("statement", ["SELECT * FROM vault.facts", "SELECT * FROM vault.keys"])
async def test_a_broken_query_sees_only_what_the_named_grant_opens(open_house: VaultHouse, statement: str) -> None:
    await open_house.keep(debt(), about=BIA)
    name_grant = await open_house.grant("name")
    subject = open_house.services.vault.subject("52998224725")
    other = open_house.services.vault.subject("11144477735")
    grants = await open_house.owner.fetch("SELECT id, fields FROM vault.grants")
    debts_grant = next(str(row["id"]) for row in grants if row["fields"] == ["debts"])

    async def seen(**named: str) -> set[str]:
        async with open_house.pool.acquire() as connection, connection.transaction():
            for setting, value in named.items():
                await connection.execute("SELECT set_config($1, $2, true)", f"razao.{setting}", value)
            return {row.get("field", "key") for row in await connection.fetch(statement)}

    named = {"person": subject.person.hex(), "caller": SCORE, "purpose": PURPOSE, "grant": debts_grant}
    expected = {"debts"} if "facts" in statement else {"key"}
    assert await seen(**named) == expected
    assert await seen(**{**named, "grant": f"{debts_grant},{name_grant}"}) == (expected | {"name"}) - (
        {"name"} if "keys" in statement else set()
    )
    for change in (
        {"grant": ""}, {"caller": "another"}, {"purpose": "marketing"}, {"person": other.person.hex()}, {"person": ""},
        {"grant": "00000000-0000-0000-0000-000000000000"}, {"acts": "Own"},
    ):  # fmt: skip
        if change != {"acts": "Own"}:
            assert await seen(**{**named, **change}) == set(), change
    assert await seen() == set()
    await open_house.owner.execute("UPDATE vault.grants SET ended_at = now()")
    assert await seen(**named) == set()


async def test_a_broken_write_changes_only_the_person_named_and_no_record(open_house: VaultHouse) -> None:
    await open_house.keep(debt(), about=BIA)
    subject = open_house.services.vault.subject("52998224725")
    async with open_house.pool.acquire() as connection:
        assert await connection.execute("DELETE FROM vault.keys") == "DELETE 0"
        for statement in (
            "UPDATE vault.accesses SET caller = 'x'",
            "DELETE FROM vault.accesses",
            "TRUNCATE vault.facts",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(statement)
        async with connection.transaction():
            await connection.execute("SELECT set_config('razao.person', $1, true)", subject.person.hex())
            await connection.execute("SELECT set_config('razao.acts', 'write', true)")
            assert await connection.execute("UPDATE vault.facts SET content = ''") == "UPDATE 3"
            assert await connection.execute("DELETE FROM vault.facts") == "DELETE 3"
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                async with connection.transaction():
                    await connection.execute("INSERT INTO vault.keys VALUES ('0123456789abcdef', 'm', 'w')")
    assert await open_house.owner.fetchval("SELECT count(*) FROM vault.facts") == 3
    with pytest.raises(asyncpg.RaiseError):
        await open_house.owner.execute("DELETE FROM vault.accesses")


# -- beneath it -------------------------------------------------------------------------------------------------------


@contextmanager
def server_of_our_own() -> Iterator[PostgresServer]:
    """One that may die."""
    with running(lambda place: PostgresServer(place, free_port())) as server:
        yield server


async def test_postgresql_dies_and_returns_and_no_answer_is_without_its_record(tmp_path: Path) -> None:
    with server_of_our_own() as server:
        async with opened(server.dsn, tmp_path) as house:
            await house.keep(debt())
            await house.grant("debts")
            answered: set[str] = set()
            statuses: set[int] = set()
            done = asyncio.Event()

            async def ask() -> None:
                caller = house.score()
                while not done.is_set():
                    answer = await caller.get(DEBTS)
                    statuses.add(answer.status_code)
                    if answer.status_code == 200:
                        answered.add(answer.headers["x-request-id"])

            askers = [asyncio.create_task(ask()) for _ in range(4)]
            async with asyncio.timeout(120):
                while len(answered) < 20:
                    await asyncio.wait(askers, timeout=0.01)
                await asyncio.to_thread(server.kill)
                while 503 not in statuses:
                    await asyncio.wait(askers, timeout=0.01)
                await asyncio.to_thread(server.start)
                before = len(answered)
                while len(answered) < before + 20:
                    await asyncio.wait(askers, timeout=0.01)
            done.set()
            await asyncio.gather(*askers)
            assert statuses == {200, 503}
            recorded = {row["request"] for row in await house.record() if row["decision"] == "answered"}
            assert answered <= recorded
            checked = await check_record(house.owner, house.plan.data)
            assert checked is not None
            assert checked.broken is None


async def test_without_its_keys_the_vault_answers_503(open_house: VaultHouse) -> None:
    file = Path(open_house.plan.data.keys) / "vault.json"
    aside = file.with_suffix(".aside")
    file.rename(aside)
    await refused(open_house.score(), 503)
    aside.rename(file)
    file.chmod(0o640)
    await refused(open_house.score(), 503)
    file.chmod(0o600)
    assert (await open_house.score().get(DEBTS)).status_code == 200


async def test_an_error_that_nobody_foresaw_tells_nothing(open_house: VaultHouse) -> None:
    async def fails(*_: object) -> None:
        raise TypeError(f"something about {NAME}")

    open_house.services.people.read = fails  # type: ignore[method-assign, assignment]
    await refused(open_house.score(), 500)
