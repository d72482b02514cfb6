"""Grants of the vault and requests for them: who gives, ends, asks and decides."""

from __future__ import annotations

from typing import Any

from tests.deployments.vault_house import (
    ANA,
    BIA,
    PURPOSE,
    READ_ALL,
    SCORE,
    VaultHouse,
    debt,
    lacks,
)

DEBTS = "/person?fields=debts"
ALL = "/person?fields=name,address,debts"


# -- grants ------------------------------------------------------------------------------------------------------------


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


# -- requests for access -----------------------------------------------------------------------------------------------

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
    assert rest["next_cursor"] is None
    assert (await vault_house.self_().get("/access-requests?limit=20")).json()["next_cursor"] is None
    await vault_house.grant("name")
    assert (await vault_house.self_().get("/grants?limit=1")).json()["next_cursor"] is None
