"""A CPF or CNPJ that somebody registers with is a claim: what it opens is theirs once an operator has proven it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import asyncpg
import httpx
import pytest

from cluster import identity
from cluster.data import EngineError
from cluster.identity_wiring import Trust
from deployments.auth.tokens import InvalidToken
from deployments.identity_roles import Registration, Role
from deployments.tax_id import read_tax_id
from storage.identity import OPERATOR
from storage.references import person_reference
from tests.deployments.identity_house import CPF, PASSWORD, Browser, House, claims_of, exchange

OTHER = "111.444.777-35"


async def login(house: House, audience: str, username: str = "ana") -> httpx.Response:
    async with house.http() as http:
        body = {"username": username, "password": PASSWORD, "audience": audience}
        return await http.post("/auth/login", json=body)


async def refresh(house: House, tokens: dict[str, Any]) -> httpx.Response:
    form = {"grant_type": "refresh_token", "refresh_token": tokens["refresh_token"], "client_id": "razao"}
    return await house.token(form)


async def operator(house: House, role: Role = Role.OPERATOR) -> dict[str, str]:
    """The header of somebody with a role."""
    await identity.add_user(house.pool, "olga", role, PASSWORD, length_min=15)
    return {"authorization": f"Bearer {(await house.login('olga'))['access_token']}"}


async def ask(house: House, path: str, headers: dict[str, str], **body: str) -> httpx.Response:
    async with house.http(**headers) as http:
        return await http.post(path, json=body)


PROOF = {"username": "ana", "tax_id": CPF, "method": "identity-card"}


async def test_who_registers_with_somebody_s_tax_id_speaks_for_nobody(house: House) -> None:
    await house.register("victim")
    await house.prove("victim")
    await house.register("impostor")
    assert "person" not in claims_of(await house.login("impostor"))
    for audience in ("vault", "score"):
        refused = await login(house, audience, "impostor")
        assert (refused.status_code, refused.json()["type"]) == (403, "/problems/unproven")
        assert (await login(house, audience, "victim")).json()["scope"] == f"{audience}:self"


async def test_no_grant_of_an_unproven_person_speaks_for_the_tax_id(house: House, browser: Browser) -> None:
    """Neither a refresh, nor an access key, nor a code; once it is proven all of them do."""
    await house.register()
    tokens = await house.login()
    async with house.http(authorization=f"Bearer {tokens['access_token']}") as http:
        body = {"name": "mine", "scopes": ["ledger:write"]}
        key = (await http.post("/auth/access-keys", json=body)).json()
    client_id, _ = await house.client()

    async def grants() -> list[dict[str, Any]]:
        nonlocal tokens
        tokens = (await refresh(house, tokens)).json()
        auth = (key["client_id"], key["client_secret"])
        of_key = (await house.token({"grant_type": "client_credentials"}, auth=auth)).json()
        code = (await browser.consent(client_id))["code"]
        return [claims_of(one) for one in (tokens, of_key, (await exchange(house, browser, client_id, code)).json())]

    assert [one.get("person") for one in await grants()] == [None] * 3
    await house.prove()
    ours = person_reference(house.plan.ledger_key, read_tax_id(CPF, "", repeated=False)).hex()
    assert [one.get("person") for one in await grants()] == [ours] * 3
    await identity.unprove_user(house.pool, "ana", "mistake")
    assert [one.get("person") for one in await grants()] == [None] * 3


async def test_one_of_all_who_claim_a_tax_id_can_have_it_proven(house: House) -> None:
    for name in ("ana", "bia"):
        await house.register(name)
    proofs = await asyncio.gather(house.prove("ana"), house.prove("bia"), return_exceptions=True)
    assert [type(one) for one in proofs if one is not None] == [EngineError]
    with pytest.raises(asyncpg.UniqueViolationError):
        await house.pool.execute("UPDATE identity.users SET proven_at = now() WHERE username IN ('ana', 'bia')")
    loser, winner = ("ana", "bia") if proofs[0] is not None else ("bia", "ana")
    await identity.unprove_user(house.pool, winner, "mistake")
    await house.prove(loser)
    assert "person" in claims_of(await house.login(loser))


async def test_an_operator_proves_it_over_http_and_takes_it_back(house: House) -> None:
    sub = await house.register()
    headers = await operator(house)
    for _ in range(2):
        proven = await ask(house, "/auth/proofs", headers, **{**PROOF, "username": " ANA "})
        assert (proven.status_code, proven.json()) == (200, {"sub": sub, "username": "ana", "proven": True})
    assert (await login(house, "vault")).json()["scope"] == "vault:self"
    users = {one["username"]: one["proven"] for one in await identity.list_users(house.pool)}
    assert users == {"admin": False, "ana": True, "olga": False}
    for _ in range(2):
        taken = await ask(house, "/auth/proofs/revocations", headers, username="ana", reason="forged-document")
        assert (taken.status_code, taken.json()["proven"]) == (200, False)
    assert (await login(house, "vault")).status_code == 403
    rows = await house.pool.fetch("SELECT * FROM identity.audit WHERE action LIKE 'proof.%' ORDER BY id")
    found = [(row["action"], row["subject"], json.loads(row["detail"])["how"]) for row in rows]
    assert found == [("proof.given", sub, "identity-card"), ("proof.revoked", sub, "forged-document")]
    by = await house.pool.fetchval("SELECT sub::text FROM identity.users WHERE username = 'olga'")
    assert {(row["actor"], row["address"]) for row in rows} == {(by, "192.0.2.1")}
    assert all(row["at"] and row["request"] for row in rows)


@pytest.mark.parametrize(
    ("changes", "status", "problem"),
    [
        ({"tax_id": OTHER}, 409, "proof-conflict"),
        ({"tax_id": "529.982.247-26"}, 422, "invalid-tax-id"),
        ({"username": "nobody"}, 404, "unknown-user"),
        ({"username": "olga"}, 403, "forbidden"),
        ({"username": ""}, 400, "malformed"),
        ({"method": "52998224725"}, 400, "malformed"),
        ({"method": ""}, 400, "malformed"),
        ({"more": "x"}, 400, "malformed"),
    ],
)
async def test_a_proof_that_cannot_be_is_refused_and_changes_nothing(
    house: House, changes: dict[str, str], status: int, problem: str
) -> None:
    await house.register()
    answer = await ask(house, "/auth/proofs", await operator(house), **{**PROOF, **changes})
    assert (answer.status_code, answer.json()["type"]) == (status, f"/problems/{problem}")
    assert not await house.pool.fetchval("SELECT count(*) FROM identity.users WHERE proven_at IS NOT NULL")
    assert not [one for one in await house.audit() if one[0].startswith("proof.")]


@pytest.mark.parametrize("role", [Role.PERSON, Role.AUDITOR, Role.ADMINISTRATOR, None])
async def test_nobody_but_an_operator_proves_anything(house: House, role: Role | None) -> None:
    await house.register()
    headers = {} if role is None else await operator(house, role)
    expected = 401 if role is None else 403
    answer = await ask(house, "/auth/proofs", headers, **PROOF)
    assert answer.status_code == expected, answer.text
    revoked = await ask(house, "/auth/proofs/revocations", headers, username="ana", reason="mistake")
    assert revoked.status_code == expected
    with pytest.raises(EngineError, match="unknown scopes"):
        await identity.add_client(house.pool, house.plan.ledger_key, "Bank", [], scopes=["identity:prove"])


async def test_a_proof_that_is_revoked_stops_what_speaks_for_the_tax_id_and_nothing_else(
    house: House, trust: Trust
) -> None:
    await house.register()
    before = await house.login()
    await house.prove()
    after, vault = await house.login(), (await login(house, "vault")).json()
    await identity.unprove_user(house.pool, "ana", "mistake")
    async with asyncio.timeout(10):
        while not trust._follower.revoked([f"proof:{claims_of(after)['proof']}"]):
            await house.pool.fetchval("SELECT 1")  # a turn around the database: what was told has come by then
    for audience, tokens in (("payments", after), ("vault", vault)):
        with pytest.raises(InvalidToken):
            await trust.verifier(audience).verify(tokens["access_token"].encode())
    await trust.verifier().verify(before["access_token"].encode())
    assert (await refresh(house, vault)).json()["error"] == "invalid_scope"
    fresh = (await refresh(house, after)).json()
    assert "person" not in claims_of(fresh)
    await trust.verifier().verify(fresh["access_token"].encode())
    await house.prove()
    anew = (await refresh(house, fresh)).json()
    assert "person" in claims_of(anew)
    await trust.verifier().verify(anew["access_token"].encode())
    with pytest.raises(InvalidToken):  # what was stopped stays stopped
        await trust.verifier().verify(after["access_token"].encode())


async def test_somebody_whom_an_operator_has_added_has_the_tax_id_that_is_proven(house: House) -> None:
    await identity.add_user(house.pool, "ana", Role.PERSON, PASSWORD, length_min=15)
    await house.prove()
    assert (await login(house, "score")).json()["scope"] == "score:self"
    with pytest.raises(EngineError, match="not the one"):
        await house.prove("ana", OTHER)


async def test_whoever_registered_before_there_were_proofs_has_proven_nothing(house: House) -> None:
    await house.register()
    await house.pool.execute("DROP INDEX identity.users_proven; ALTER TABLE identity.users DROP COLUMN proven_at")
    await identity.prepare(house.pool, house.plan.ledger_key, say=lambda _: None)
    assert (await login(house, "vault")).json()["type"] == "/problems/unproven"
    await house.prove()
    assert (await login(house, "vault")).status_code == 200


async def test_nobody_registers_where_that_is_closed(house: House) -> None:
    house.services.registration = Registration.CLOSED
    body = {"username": "ana", "password": PASSWORD, "name": "Ana", "tax_id": CPF}
    answer = await ask(house, "/auth/register", {}, **body)
    assert (answer.status_code, answer.json()["type"]) == (403, "/problems/forbidden")
    assert await house.services.users.by_name("ana") is None


async def test_an_invitation_lets_one_person_register(house: House) -> None:
    house.services.registration = Registration.INVITED
    await identity.add_user(house.pool, "olga", Role.AUDITOR, PASSWORD, length_min=15)
    made, lapsed = [await identity.invite(house.pool, house.plan.ledger_key, life) for life in (60, -1)]
    body = {"username": "ana", "password": PASSWORD, "name": "Ana", "tax_id": CPF}
    for bad in ({}, {"invitation": "rzi_guessed"}, {"invitation": lapsed["invitation"]}):
        for username in ("ana", "olga"):  # nor is it told who is here
            answer = await ask(house, "/auth/register", {}, **{**body, "username": username, **bad})
            assert (answer.status_code, answer.json()["field"]) == (403, "invitation")
    body["invitation"] = made["invitation"]
    assert (await ask(house, "/auth/register", {}, **{**body, "username": "olga"})).status_code == 409
    names = ("ana", "bia", "caio")
    sent = [ask(house, "/auth/register", {"x-request-id": name}, **{**body, "username": name}) for name in names]
    answers = {name: answer.status_code for name, answer in zip(names, await asyncio.gather(*sent), strict=True)}
    assert sorted(answers.values()) == [201, 403, 403]
    (came,) = (name for name, status in answers.items() if status == 201)
    again = await ask(house, "/auth/register", {"x-request-id": came}, **{**body, "username": came})
    assert again.status_code == 201
    for table in ("invitations", "audit"):
        rows = await house.pool.fetch(f"SELECT t::text AS row FROM identity.{table} t")
        assert rows
        assert all(made["invitation"] not in row["row"] for row in rows)


async def test_the_command_s_words_are_checked_like_the_call_s(house: House) -> None:
    await house.register()
    for words in ({"how": "Card 529"}, {"tax_id": "529.982.247-26"}, {"username": "nobody"}):
        given = {"username": "ana", "tax_id": CPF, "how": "document", **words}
        with pytest.raises(EngineError):
            await identity.prove_user(house.pool, house.plan.ledger_key, repeated=False, **given)
    with pytest.raises(EngineError):
        await identity.unprove_user(house.pool, "nobody", "mistake")
    assert OPERATOR.actor not in {row["actor"] for row in await house.pool.fetch(
        "SELECT actor FROM identity.audit WHERE action LIKE 'proof.%'"
    )}  # fmt: skip
