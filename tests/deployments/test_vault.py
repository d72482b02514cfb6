"""The vault's calls: who may see and do what, and that each answer and refusal is on record before it leaves."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

from cluster import vault
from storage.messages import StoredChanges
from storage.references import SCORE as SCORE_PURPOSE
from storage.references import derived_key, person_reference
from storage.vault import OUTBOX_ROLE, Acts, Asked, dsn_as
from storage.vault_keys import KeyFile, Wrapped
from storage.vault_people import People
from tests.deployments.vault_house import (
    ANA,
    BIA,
    LEDGER_KEY,
    NAME,
    NOBODY,
    PURPOSE,
    READ_ALL,
    SCORE,
    STREET,
    VaultHouse,
    debt,
    person,
)

DEBTS = "/person?fields=debts"
ALL = "/person?fields=name,address,debts"


def lacks(answer: httpx.Response) -> dict[str, list[str]]:
    """What a refusal says that the fields lack."""
    assert answer.status_code == 403, answer.text
    body = answer.json()
    assert body.keys() == {"type", "title", "status", "detail", "lacks", "request_id"}
    found: dict[str, list[str]] = body["lacks"]
    return found


# -- reading ----------------------------------------------------------------------------------------------------------


async def test_a_caller_with_scopes_and_a_grant_sees_the_fields_asked_for_and_no_others(
    vault_house: VaultHouse,
) -> None:
    await vault_house.keep(debt(2), debt(1))
    await vault_house.grant("debts", "name")
    answer = await vault_house.score(scope=READ_ALL).get(DEBTS)
    assert answer.status_code == 200
    assert answer.json().keys() == {"debts", "updated_at", "granted_until"}
    assert answer.json()["debts"] == [debt(1), debt(2)]
    assert answer.headers["cache-control"] == "no-store"
    answer = await vault_house.score(scope=READ_ALL).get("/person?fields=name")
    assert answer.json().keys() == {"name", "updated_at", "granted_until"}


async def test_two_grants_may_open_the_fields_together(vault_house: VaultHouse) -> None:
    await vault_house.keep(debt())
    grants = {await vault_house.grant("debts", expires_in=60), await vault_house.grant("name", "address")}
    answer = await vault_house.score(scope=READ_ALL).get(ALL)
    assert answer.json()["address"] == STREET
    assert {str(grant) for grant in (await vault_house.record())[-1]["grants"]} == grants
    ends = {one["fields"][0]: one["expires_at"] for one in (await vault_house.self_().get("/grants")).json()["items"]}
    assert answer.json()["granted_until"] == ends["debts"] < ends["name"]


async def test_a_refusal_says_which_field_lacks_what_and_nothing_else(vault_house: VaultHouse) -> None:
    await vault_house.keep(debt())
    await vault_house.grant("name")
    refused = await vault_house.score(scope="vault:read:address vault:read:name").get(ALL)
    assert lacks(refused) == {"address": ["grant"], "debts": ["scope", "grant"]}


async def test_a_grant_is_for_one_caller_person_purpose_and_its_fields(vault_house: VaultHouse) -> None:
    await vault_house.keep(debt())
    await vault_house.keep(debt(), about=BIA)
    await vault_house.grant("debts", grantee="another")
    await vault_house.grant("debts", about=BIA)
    await vault_house.grant("debts", purpose="marketing")
    await vault_house.grant("name", "address")
    assert lacks(await vault_house.score().get(DEBTS)) == {"debts": ["grant"]}
    await vault_house.grant("debts")
    assert (await vault_house.score().get(DEBTS)).status_code == 200


async def test_a_grant_that_is_ended_ends_at_once_for_a_token_issued_before(vault_house: VaultHouse) -> None:
    await vault_house.keep(debt())
    grant = await vault_house.grant("debts")
    caller = vault_house.score()
    assert (await caller.get(DEBTS)).status_code == 200
    assert (await vault_house.self_().send("DELETE", f"/grants/{grant}")).status_code == 204
    assert lacks(await caller.get(DEBTS)) == {"debts": ["grant"]}


async def test_an_expired_grant_opens_nothing(vault_house: VaultHouse) -> None:
    await vault_house.keep(debt())
    grant = await vault_house.grant("debts")
    await vault_house.owner.execute(
        "UPDATE vault.grants SET created_at = created_at - interval '2 hours', expires_at = now() WHERE id = $1", grant
    )
    assert lacks(await vault_house.score().get(DEBTS)) == {"debts": ["grant"]}
    assert (await vault_house.self_().get("/grants")).json()["items"][0]["status"] == "expired"


async def test_nobody_there_and_no_grant_are_the_same_answer_by_the_same_statements_with_one_record(
    vault_house: VaultHouse,
) -> None:
    await vault_house.keep(debt())
    bodies, statements, records, looked = [], [], [], []
    for about in (ANA, NOBODY):
        caller = vault_house.score(about, READ_ALL)
        before = len(await vault_house.record())
        vault_house.executed.clear()
        answer = await caller.get(ALL)
        statements.append([query for query, _ in vault_house.executed])
        looked.append([args for query, args in vault_house.executed if "vault.keys k" in query])
        bodies.append({**answer.json(), "request_id": "", "length": answer.headers["content-length"]})
        records.append([dict(row) for row in (await vault_house.record())[before:]])
    assert bodies[0] == bodies[1]
    assert statements[0] == statements[1]
    assert len(statements[0]) >= 7
    assert looked[0] == looked[1]  # not even for the person's own row: to judge one takes longer than to find none
    assert [len(rows) for rows in records] == [1, 1]
    same = ("caller", "address", "action", "fields", "purpose", "decision", "grants")
    assert [records[0][0][name] for name in same] == [records[1][0][name] for name in same]


async def test_a_grant_for_nobody_is_refused_as_if_there_were_none(vault_house: VaultHouse) -> None:
    await vault_house.grant("debts", about=NOBODY)
    assert lacks(await vault_house.score(NOBODY).get(DEBTS)) == {"debts": ["grant"]}


async def test_who_writes_or_grants_does_not_learn_who_is_here(vault_house: VaultHouse) -> None:
    await vault_house.keep(debt())
    operator = {about: vault_house.caller("operator", "vault:grant vault:write", about) for about in (ANA, NOBODY)}
    grant = {"grantee": SCORE, "fields": ["debts"], "purpose": PURPOSE, "expires_in": 60}
    for method, path, body in (
        ("POST", "/grants", grant),
        ("PATCH", "/person", {"remove": ["d-9"]}),
        ("DELETE", "/person", None),
        ("DELETE", "/person", None),
        ("PUT", "/person", person()),
    ):
        answers = [await operator[about].send(method, path, body) for about in (ANA, NOBODY)]
        assert answers[0].status_code == answers[1].status_code
        assert len(answers[0].content) == len(answers[1].content)


# -- people themselves ------------------------------------------------------------------------------------------------


async def test_people_see_what_is_kept_of_themselves_and_of_nobody_else(vault_house: VaultHouse) -> None:
    await vault_house.keep(debt())
    own = (await vault_house.self_().get(ALL)).json()
    assert (own["name"], own["address"], own["debts"]) == (NAME, STREET, [debt()])
    for path in (ALL, "/grants", "/person/accesses", "/person/last-query", "/access-requests"):
        assert (await vault_house.self_(BIA, about=ANA).get(path)).status_code == 403, path
    empty = await vault_house.self_(NOBODY).get(ALL)
    assert empty.json() == {"name": None, "address": None, "debts": [], "updated_at": None, "granted_until": None}


async def test_a_reference_without_the_scope_and_the_scope_without_a_reference_are_nobody(
    vault_house: VaultHouse,
) -> None:
    await vault_house.keep(debt())
    for token in (vault_house.token("x", "vault:read:debts", tax_id=ANA), vault_house.token("x", "vault:self")):
        caller = vault_house.score()
        caller.http.headers["authorization"] = f"Bearer {token}"
        assert (await caller.get(DEBTS)).status_code == 403
        grant = {"grantee": "x", "fields": ["debts"], "purpose": PURPOSE, "expires_in": 60}
        assert (await caller.send("POST", "/grants", grant)).status_code == 403


# -- grants -----------------------------------------------------------------------------------------------------------


TOO_WIDE: tuple[dict[str, Any], ...] = (
    {"expires_in": 86_401}, {"expires_in": 0}, {"expires_in": -1}, {"fields": []}, {"fields": ["debts", "debts"]},
    {"fields": ["tax_id"]}, {"purpose": ""}, {"purpose": "52998224725"}, {"purpose": "a b"}, {"grantee": ""},
    {"grantee": "x" * 256}, {"fields": "debts"}, {"purpose": {"$gt": ""}}, {"person": "x"},
)  # fmt: skip


async def test_a_grant_that_is_too_wide_or_unreadable_is_malformed(vault_house: VaultHouse) -> None:
    good = {"grantee": SCORE, "fields": ["debts"], "purpose": PURPOSE, "expires_in": 86_400}
    for change in TOO_WIDE:
        answer = await vault_house.self_().send("POST", "/grants", {**good, **change})
        assert (answer.status_code, answer.json()["type"]) == (400, "/problems/malformed"), change
    assert not await vault_house.owner.fetchval("SELECT count(*) FROM vault.grants")


async def test_only_the_person_and_those_with_the_scope_grant_and_end_grants(vault_house: VaultHouse) -> None:
    body = {"grantee": SCORE, "fields": ["debts"], "purpose": PURPOSE, "expires_in": 60}
    grant = await vault_house.grant("debts")
    for caller in (vault_house.score(), vault_house.source(), vault_house.self_(BIA, about=ANA)):
        assert (await caller.send("POST", "/grants", body)).status_code == 403
        assert (await caller.send("DELETE", f"/grants/{grant}")).status_code == 403
    operator = vault_house.caller("operator", "vault:grant")
    assert (await operator.send("POST", "/grants", body)).status_code == 201
    assert (await operator.send("DELETE", f"/grants/{grant}")).status_code == 204
    assert {one["status"] for one in (await operator.get("/grants")).json()["items"]} == {"live", "ended"}


async def test_a_grant_is_ended_only_under_the_name_of_its_person(vault_house: VaultHouse) -> None:
    grant = await vault_house.grant("debts")
    for caller in (vault_house.self_(BIA), vault_house.caller("operator", "vault:grant", BIA)):
        for path in (grant, "00000000-0000-0000-0000-000000000000", "x' OR '1'='1"):
            answer = await caller.send("DELETE", f"/grants/{path}")
            assert (answer.status_code, answer.json()["type"]) == (404, "/problems/unknown-grant")
    assert (await vault_house.self_().get("/grants")).json()["items"][0]["status"] == "live"


async def test_a_request_that_the_gateway_sends_again_makes_one_grant(vault_house: VaultHouse) -> None:
    body = {"grantee": SCORE, "fields": ["debts"], "purpose": PURPOSE, "expires_in": 60}
    caller = vault_house.self_()
    caller.http.headers["x-request-id"] = "0199-the-same"
    answers = [await caller.send("POST", "/grants", body) for _ in range(2)]
    assert answers[0].json() == answers[1].json()
    assert await vault_house.owner.fetchval("SELECT count(*) FROM vault.grants") == 1


# -- requests for access ----------------------------------------------------------------------------------------------

ASKED: dict[str, Any] = {"fields": ["debts"], "purpose": PURPOSE, "expires_in": 60}


async def test_a_request_that_the_person_approves_becomes_a_grant_to_the_asker(vault_house: VaultHouse) -> None:
    await vault_house.keep(debt())
    asker = vault_house.score()
    request = (await asker.send("POST", "/access-requests", ASKED)).json()
    assert (request["status"], request["asker"]) == ("pending", SCORE)
    assert (await asker.get(DEBTS)).status_code == 403
    approved = await vault_house.self_().send("POST", f"/access-requests/{request['id']}/approve")
    assert (approved.status_code, approved.json()["status"]) == (200, "approved")
    assert (await asker.get(DEBTS)).status_code == 200
    again = await vault_house.self_().send("POST", f"/access-requests/{request['id']}/approve")
    assert again.json() == approved.json()
    late = await vault_house.self_().send("POST", f"/access-requests/{request['id']}/refuse")
    assert late.json()["type"] == "/problems/already-decided"


async def test_only_the_person_decides(vault_house: VaultHouse) -> None:
    asker = vault_house.score()
    request = (await asker.send("POST", "/access-requests", ASKED)).json()["id"]
    others = (asker, vault_house.caller("operator", "vault:grant vault:write"), vault_house.self_(BIA, about=ANA))
    for caller in others:
        assert (await caller.send("POST", f"/access-requests/{request}/approve")).status_code == 403
    unknown = await vault_house.self_(BIA).send("POST", f"/access-requests/{request}/approve")
    assert unknown.json()["type"] == "/problems/unknown-access-request"
    refused = await vault_house.self_().send("POST", f"/access-requests/{request}/refuse")
    assert (refused.json()["status"], refused.json()["grant"]) == ("refused", None)


async def test_askers_ask_for_what_their_scopes_could_open_and_see_their_own_requests(vault_house: VaultHouse) -> None:
    asker = vault_house.score()
    refused = await asker.send("POST", "/access-requests", {**ASKED, "fields": ["name", "debts"]})
    assert lacks(refused) == {"name": ["scope"]}
    for _ in range(20):
        assert (await asker.send("POST", "/access-requests", ASKED)).status_code == 202
    one_more = await asker.send("POST", "/access-requests", ASKED)
    assert one_more.json()["type"] == "/problems/too-many-access-requests"
    assert (await vault_house.caller("another", READ_ALL).get("/access-requests")).json()["items"] == []
    first = (await vault_house.self_().get("/access-requests?limit=15")).json()
    rest = (await vault_house.self_().get(f"/access-requests?limit=15&cursor={first['next_cursor']}")).json()
    assert len({one["id"] for one in first["items"] + rest["items"]}) == 20


# -- writing ----------------------------------------------------------------------------------------------------------


async def test_single_debts_are_put_and_removed(vault_house: VaultHouse) -> None:
    await vault_house.keep(debt(1), debt(2))
    change = {"debts": [debt(2, amount=7), debt(3)], "remove": ["d-1", "d-9"]}
    assert (await vault_house.source().send("PATCH", "/person", change)).status_code == 204
    kept = (await vault_house.self_().get(ALL)).json()
    assert kept["debts"] == [debt(2, amount=7), debt(3)]
    assert kept["name"] == NAME


async def test_a_person_put_anew_is_put_whole(vault_house: VaultHouse) -> None:
    await vault_house.keep(debt(1), debt(2))
    await vault_house.source().send("PUT", "/person", person(debt(3), name="Ana Maria Souza"))
    kept = (await vault_house.self_().get(ALL)).json()
    assert (kept["name"], kept["debts"]) == ("Ana Maria Souza", [debt(3)])


NOT_TO_BE_KEPT: tuple[Any, ...] = (
    {"name": NAME, "address": STREET}, person(debt(1), debt(1)), person(debt(amount=0)), person(debt(amount=1.5)),
    person(debt(amount=2**63)), person(debt(currency="USD")), person(debt(since="2026-02-30")),
    person(debt(since="2026-W01-1")), person(debt(kind="Loan!")), person(debt(id="")), person(name=""),
    person(name={"$gt": ""}), person(debt(disputed="no")), person(name="a\u0000b"), person(more=1), [],
    person(debt(creditor="x" * 201)),
)  # fmt: skip


async def test_what_cannot_be_kept_is_malformed_and_not_repeated(vault_house: VaultHouse) -> None:
    for body in NOT_TO_BE_KEPT:
        answer = await vault_house.source().send("PUT", "/person", body)
        assert (answer.status_code, answer.json()["type"]) == (400, "/problems/malformed"), body
        assert NAME not in answer.text
    assert not await vault_house.owner.fetchval("SELECT count(*) FROM vault.keys")


async def test_only_sources_write(vault_house: VaultHouse) -> None:
    for caller in (vault_house.score(scope=READ_ALL), vault_house.self_(), vault_house.caller("o", "vault:grant")):
        for method, body in (("PUT", person()), ("PATCH", {"debts": [debt()]})):
            assert (await caller.send(method, "/person", body)).status_code == 403
    assert (await vault_house.score().send("DELETE", "/person")).status_code == 403


async def test_an_erased_person_is_gone_with_key_and_grants(vault_house: VaultHouse) -> None:
    await vault_house.keep(debt())
    await vault_house.grant("debts")
    assert (await vault_house.self_().send("DELETE", "/person")).status_code == 204
    for table in ("keys", "facts"):
        assert not await vault_house.owner.fetchval(f"SELECT count(*) FROM vault.{table}")
    assert lacks(await vault_house.score().get(DEBTS)) == {"debts": ["grant"]}
    assert (await vault_house.self_().get("/grants")).json()["items"][0]["status"] == "ended"
    await vault_house.keep(debt(2))
    assert lacks(await vault_house.score().get(DEBTS)) == {"debts": ["grant"]}


async def test_writers_and_erasers_of_one_person_at_once_leave_what_can_be_read(vault_house: VaultHouse) -> None:
    source = vault_house.source()
    sent = [source.send("PUT", "/person", person(debt(n % 9 + 1))) for n in range(8)]
    sent += [source.send("DELETE", "/person") for _ in range(4)]
    sent += [source.send("PATCH", "/person", {"debts": [debt(9)]}) for _ in range(4)]
    answers = await asyncio.gather(*sent)
    assert {answer.status_code for answer in answers} == {204}
    assert (await vault_house.self_().get(ALL)).status_code == 200


async def test_nothing_is_sealed_with_a_key_that_is_being_destroyed(vault_house: VaultHouse) -> None:
    await vault_house.keep(debt())
    waiting, go_on = asyncio.Event(), asyncio.Event()
    keys = vault.key_file(vault_house.plan.data)

    class Slow(KeyFile):
        async def unwrap(self, wrapped: Wrapped, context: bytes) -> bytes:
            waiting.set()
            await go_on.wait()
            return await keys.unwrap(wrapped, context)

    slow = People(Slow(Path(vault_house.plan.data.keys) / "vault.json"), vault_house.secrets.item_key)
    asked = Asked(vault_house.services.vault.subject("52998224725"), "bureau", "", "write", ("debts",), "", "r", "r")

    async def change() -> None:
        async with vault_house.services.vault.session(asked, Acts.WRITE) as session:
            await slow.change_debts(session, {"d-5": debt(5)}, [])
            await session.record("answered")

    async def erase_and_put() -> None:
        await vault_house.source().send("DELETE", "/person")
        await vault_house.keep(debt(2))

    changing = asyncio.create_task(change())
    await waiting.wait()
    others = asyncio.create_task(erase_and_put())
    for _ in range(10):
        await vault_house.self_(BIA).get(ALL)
    go_on.set()
    await asyncio.gather(changing, others)
    assert (await vault_house.self_().get(ALL)).json()["debts"] == [debt(2)]


# -- the record -------------------------------------------------------------------------------------------------------


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


# -- messages ---------------------------------------------------------------------------------------------------------


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


# -- around it --------------------------------------------------------------------------------------------------------


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
