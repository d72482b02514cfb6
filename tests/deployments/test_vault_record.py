"""Each answer and refusal of the vault is on record before it leaves; and what stands around its calls."""

from __future__ import annotations

import logging
from typing import Any

import asyncpg
import pytest

from storage.messages import StoredChanges
from storage.references import SCORE as SCORE_PURPOSE
from storage.references import derived_key, person_reference
from storage.vault import OUTBOX_ROLE, dsn_as
from tests.deployments.vault_house import (
    ANA,
    LEDGER_KEY,
    NAME,
    NOBODY,
    PURPOSE,
    SCORE,
    STREET,
    VaultHouse,
    debt,
    person,
)

DEBTS = "/person?fields=debts"
ALL = "/person?fields=name,address,debts"
ASKED: dict[str, Any] = {"fields": ["debts"], "purpose": PURPOSE, "expires_in": 60}


# -- the record --------------------------------------------------------------------------------------------------------


async def test_each_answer_and_each_refusal_is_one_row_without_content(vault_house: VaultHouse) -> None:
    await vault_house.keep(debt())
    request = (await vault_house.score().send("POST", "/access-requests", ASKED)).json()["id"]
    grant = await vault_house.grant("debts")
    calls = [
        (vault_house.score(), "GET", DEBTS, None), (vault_house.score(), "GET", ALL, None),
        (vault_house.source(), "PATCH", "/person", {"remove": ["d-1"]}),
        (vault_house.score(), "PUT", "/person", person()), (vault_house.self_(), "GET", "/grants", None),
        (vault_house.score(), "GET", "/grants", None), (vault_house.self_(), "GET", "/person/accesses", None),
        (vault_house.self_(), "GET", "/person/last-query", None),
        (vault_house.self_(), "GET", "/access-requests", None),
        (vault_house.score(), "POST", f"/access-requests/{request}/approve", None),
        (vault_house.self_(), "POST", f"/access-requests/{request}/refuse", None),
        (vault_house.self_(), "DELETE", f"/grants/{grant}", None),
        (vault_house.self_(), "DELETE", f"/grants/{request}", None), (vault_house.self_(), "DELETE", "/person", None),
    ]  # fmt: skip
    for caller, method, path, body in calls:
        before = len(await vault_house.record())
        answer = await caller.send(method, path, body)
        [row] = (await vault_house.record())[before:]
        expected = {403: "refused", 404: "not-found"}.get(answer.status_code, "answered")
        assert (row["decision"], row["request"]) == (expected, answer.headers["x-request-id"]), (method, path)
    everything = repr(await vault_house.record())
    assert not any(secret in everything for secret in (NAME, STREET, "Banco", "C-2025", "52998224725", ANA))


async def test_the_person_and_auditors_see_who_saw_what_when_from_where_and_for_what(vault_house: VaultHouse) -> None:
    await vault_house.keep(debt())
    never = (await vault_house.self_().get("/person/last-query")).json()
    assert never == {"at": None, "address": None, "user": None}
    await vault_house.score(**{"razao-client-address": "127.0.0.7"}).get(DEBTS)
    await vault_house.grant("debts")
    await vault_house.score(**{"razao-client-address": "127.0.0.8", "x-correlation-id": "chain-1"}).get(DEBTS)
    for caller in (vault_house.self_(), vault_house.caller("auditor", "vault:audit")):
        last = (await caller.get("/person/last-query")).json()
        assert (last["address"], last["user"]) == ("127.0.0.8", SCORE)
        seen = (await caller.get("/person/accesses")).json()["items"]
        found = [
            (one["user"], one["address"], one["fields"], one["decision"]) for one in seen if one["action"] == "read"
        ]
        assert found == [(SCORE, "127.0.0.8", ["debts"], "answered"), (SCORE, "127.0.0.7", ["debts"], "refused")]
        assert {one["purpose"] for one in seen if one["action"] == "read"} == {PURPOSE}
    assert "chain-1" in {row["correlation"] for row in await vault_house.record()}
    for other in (vault_house.score(), vault_house.source(), vault_house.caller("o", "vault:grant")):
        assert (await other.get("/person/accesses")).status_code == 403
        assert (await other.get("/person/last-query")).status_code == 403


async def test_the_record_is_paged_without_gaps_while_it_grows(vault_house: VaultHouse) -> None:
    for _ in range(5):
        await vault_house.score().get(DEBTS)
    reader, seen, cursor = vault_house.caller("auditor", "vault:audit"), [], ""
    for _ in range(3):
        page = (await reader.get(f"/person/accesses?limit=2{cursor}")).json()
        seen += [one["at"] for one in page["items"]]
        cursor = f"&cursor={page['next_cursor']}"
    assert seen == sorted(set(seen), reverse=True)
    there = len(await vault_house.record())
    for limit, more in ((there, False), (there, True)):  # to look is recorded too
        whole = (await reader.get(f"/person/accesses?limit={limit}")).json()
        assert (len(whole["items"]), whole["next_cursor"] is not None) == (there, more)
    for bad in ("limit=0", "limit=101", "limit=x", "limit=1&limit=2", "cursor=x", "more=1"):
        assert (await reader.get(f"/person/accesses?{bad}")).status_code == 400


async def test_without_a_record_there_is_no_answer(vault_house: VaultHouse) -> None:
    await vault_house.keep(debt())
    await vault_house.grant("debts")
    await vault_house.owner.execute("REVOKE INSERT ON vault.accesses FROM razao_vault")
    before = len(await vault_house.record())
    for caller, method, path, body in (
        (vault_house.score(), "GET", DEBTS, None),
        (vault_house.score(NOBODY), "GET", DEBTS, None),
        (vault_house.source(), "PUT", "/person", person(name="Other")),
        (vault_house.self_(), "DELETE", "/person", None),
    ):
        answer = await caller.send(method, path, body)
        assert (answer.status_code, answer.json()["type"]) == (503, "/problems/unavailable")
        assert "Banco" not in answer.text
    assert len(await vault_house.record()) == before
    await vault_house.owner.execute("GRANT INSERT ON vault.accesses TO razao_vault")
    assert (await vault_house.self_().get("/person?fields=name")).json()["name"] == NAME


# -- messages ----------------------------------------------------------------------------------------------------------


async def test_what_may_change_an_answer_about_debts_is_told_by_the_score_services_reference_alone(
    vault_house: VaultHouse,
) -> None:
    changes = StoredChanges(dsn_as(vault_house.plan.dsn, OUTBOX_ROLE, vault_house.secrets.outbox_password), wait_s=0.2)
    ours = person_reference(derived_key(LEDGER_KEY, SCORE_PURPOSE), "52998224725")
    await vault_house.keep(debt())
    grant = await vault_house.grant("debts")
    await vault_house.grant("name")
    await vault_house.source().send("PATCH", "/person", {"remove": ["d-1"]})
    await vault_house.self_().send("DELETE", f"/grants/{grant}")
    await vault_house.self_().send("DELETE", "/person")
    taken = await changes.take(100)
    assert [change.person for change in taken] == [ours] * 5
    await changes.done(taken)
    assert await changes.take(100) == []
    await changes.close()


async def test_a_call_that_fails_tells_nothing(vault_house: VaultHouse) -> None:
    await vault_house.owner.execute("REVOKE UPDATE ON vault.chain_head FROM razao_vault")
    assert (await vault_house.source().send("PUT", "/person", person())).status_code == 503
    await vault_house.owner.execute("GRANT UPDATE (seq, chain) ON vault.chain_head TO razao_vault")
    assert not await vault_house.owner.fetchval("SELECT count(*) FROM vault.outbox")


# -- around it ---------------------------------------------------------------------------------------------------------


async def test_health_needs_the_store_and_documents_need_no_token(vault_house: VaultHouse) -> None:
    anybody = vault_house.score()
    del anybody.http.headers["authorization"]
    assert (await anybody.get("/healthz")).json() == {"status": "ok"}
    described = (await anybody.get("/openapi.json")).json()
    assert set(described["paths"]) >= {"/vault/v1/person", "/vault/v1/grants/{id}", "/vault/v1/person/last-query"}
    parameters = described["paths"]["/vault/v1/person"]["get"]["parameters"]
    assert {one["name"] for one in parameters if one["required"]} == {"Razao-Tax-Id", "fields"}
    assert (await anybody.get("/docs")).headers["content-type"].startswith("text/html")
    assert (await anybody.http.get("/problems/unknown-grant")).status_code == 200


async def test_answers_are_logged_with_route_and_subject_and_nothing_personal(
    vault_house: VaultHouse, caplog: pytest.LogCaptureFixture
) -> None:
    await vault_house.keep(debt())
    with caplog.at_level(logging.DEBUG):
        await vault_house.score().get(DEBTS)
        await vault_house.score().get("/person/529.982.247-25")
        await vault_house.score().get("/person?fields=debts&tax_id=52998224725")
    ours = [record for record in caplog.records if record.name != "httpx"]  # that is the client
    about = [getattr(record, "about", {}) for record in ours]
    wanted = {"method": "GET", "route": "/vault/v1/person", "status": 403, "subject": SCORE}
    assert [wanted.items() <= one.items() for one in about] == [True, False, False]
    everything = " ".join([*(record.getMessage() for record in ours), repr(about)])
    assert not any(secret in everything for secret in ("52998224725", ANA, NAME, "Banco"))


async def test_the_role_sees_nothing_of_other_schemas_and_keeps_no_lock_for_long(vault_house: VaultHouse) -> None:
    assert await vault_house.pool.fetchval("SHOW idle_in_transaction_session_timeout") == "5s"
    assert await vault_house.pool.fetchval(
        "SELECT NOT rolbypassrls AND NOT rolsuper FROM pg_roles WHERE rolname = user"
    )
    for table in ("people.settings", "people.owners", "vault.outbox"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await vault_house.pool.fetch(f"SELECT * FROM {table}")
