"""What the vault keeps of people: who may read and write it, and what is left when it is erased."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from cluster import vault
from deployments.vault_schema import DEBTS_MAX
from storage.vault import Acts, Asked
from storage.vault_keys import KeyFile, Wrapped
from storage.vault_people import People
from tests.deployments.vault_house import (
    ANA,
    BIA,
    NAME,
    NOBODY,
    PURPOSE,
    READ_ALL,
    SCORE,
    STREET,
    VaultHouse,
    debt,
    lacks,
    person,
)

DEBTS = "/person?fields=debts"
ALL = "/person?fields=name,address,debts"


# -- reading -----------------------------------------------------------------------------------------------------------


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


async def test_as_many_debts_as_there_may_be_come_in_one_request_and_no_more(
    vault_house: VaultHouse,
) -> None:
    many = [debt(number, since="2026-03-01", creditor="ã" * 200) for number in range(1, DEBTS_MAX + 1)]
    await vault_house.keep(*many)
    assert len((await vault_house.self_().get(DEBTS)).json()["debts"]) == DEBTS_MAX
    refused = await vault_house.source().send("PUT", "/person", person(*many, debt(DEBTS_MAX + 1, since="2026-03-01")))
    assert (refused.status_code, refused.json()["field"]) == (400, "debts")


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


# -- people themselves -------------------------------------------------------------------------------------------------


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


# -- writing -----------------------------------------------------------------------------------------------------------


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
