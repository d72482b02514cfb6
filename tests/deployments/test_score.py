"""Scores: what they are made of, for how long they stand, and that each answer is on record before it leaves."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import asyncpg
import httpx

from deployments.score_debts import NoDebts
from deployments.score_scoring import KEPT_REFUSED_S, KEPT_S, KEPT_UNTOLD_S
from storage.references import person_reference
from tests.deployments.score_house import BANK, CPF, OTHER_CPF, PROFILE, House, asyncpg_rows


def problem(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["type"].rpartition("/")[2]


def reference(house: House, tax_id: str = CPF) -> bytes:
    return person_reference(house.services.key, tax_id)


async def test_debts_lower_a_score_and_without_the_vault_it_is_made_without_them_and_says_so(scores: House) -> None:
    await scores.write()
    clean = await scores.score()
    assert clean["debts_considered"] is True
    assert (clean["range"], clean["model"]) == ("excellent", "razao-scorecard-1")
    assert sum(factor["weight"] for factor in clean["factors"]) == 100

    scores.clock.later(KEPT_S)
    scores.owed.says = 100_000_000
    indebted = await scores.score()
    assert indebted["score"] < clean["score"]
    assert indebted["default_rate"] > clean["default_rate"]
    assert indebted["factors"][0]["reason"] == "Debts of more than six months' means"

    for says in (NoDebts.AWAY, NoDebts.REFUSED):
        scores.clock.later(KEPT_S)
        scores.owed.says = says
        without = await scores.score()
        assert without["debts_considered"] is False
        assert "debts" not in {factor["factor"] for factor in without["factors"]}
        assert sum(factor["weight"] for factor in without["factors"]) == 79


async def test_a_score_stands_for_a_while_a_refusal_for_less_and_the_vaults_silence_not_at_all(scores: House) -> None:
    await scores.write()
    assert await scores.score() == await scores.score()
    assert scores.owed.asked == 1
    scores.clock.later(KEPT_S)
    await scores.score()
    assert scores.owed.asked == 2

    await scores.write()  # another profile: what was derived of the one before is gone
    scores.owed.says = NoDebts.REFUSED
    await scores.score()
    await scores.score()
    assert scores.owed.asked == 3
    scores.clock.later(KEPT_REFUSED_S)
    scores.owed.says = NoDebts.AWAY
    await scores.score()
    await scores.score()
    assert scores.owed.asked == 5


async def test_where_no_message_would_tell_of_changes_a_score_stands_for_a_minute(scores: House) -> None:
    scores.services.told = False
    await scores.write()
    for says in (0, NoDebts.REFUSED):
        scores.owed.says, asked = says, scores.owed.asked
        await scores.score()
        await scores.score()
        assert scores.owed.asked == asked + 1
        scores.clock.later(KEPT_UNTOLD_S)


async def test_a_score_with_debts_stands_no_longer_than_the_grant_for_them(scores: House) -> None:
    await scores.write()
    scores.owed.life_s = 5.0
    await scores.score()
    scores.clock.later(4)
    await scores.score()
    assert scores.owed.asked == 1
    scores.clock.later(1)
    await scores.score()
    assert scores.owed.asked == 2


async def test_a_score_is_not_kept_when_the_debts_change_while_they_are_asked_for(scores: House) -> None:
    await scores.write()

    async def changed() -> None:
        scores.owed.says = 100_000_000
        await scores.services.profiles.drop([reference(scores)])

    scores.owed.before = [changed]
    assert (await scores.score())["factors"][-1]["points"] > 0  # made of what was true when it was asked
    found = await scores.score()
    assert scores.owed.asked == 2
    assert found["factors"][0]["factor"] == "debts"


async def test_what_was_derived_is_dropped_once_or_twice_for_some_or_for_nobody(scores: House) -> None:
    await scores.write()
    await scores.write(OTHER_CPF)
    await scores.score()
    await scores.score(OTHER_CPF)
    several = [reference(scores), reference(scores, "00000000000"), reference(scores)]
    await asyncio.gather(*(scores.services.profiles.drop(several) for _ in range(4)))
    await scores.score()
    await scores.score(OTHER_CPF)
    assert scores.owed.asked == 3
    assert await scores.services.profiles.get(reference(scores, "00000000000")) is None


async def test_inquiries_by_others_cost_points_and_ones_own_do_not(scores: House) -> None:
    await scores.write()

    async def searches() -> str:
        scores.clock.later(KEPT_S)
        factors = (await scores.score())["factors"]
        return str(next(factor["reason"] for factor in factors if factor["factor"] == "credit_searches"))

    async with scores.person() as http:
        for _ in range(5):
            assert (await http.get("/score/v1/score")).status_code == 200
    assert (await searches()).startswith("No or one")
    for bank in range(5):
        await scores.score(sub=f"another-{bank}")
    assert (await searches()).startswith("Four to six")
    scores.clock.later(91 * 86_400)
    assert (await searches()).startswith("No or one")


async def test_the_last_query_is_the_last_one_that_was_answered_with_time_address_and_user(scores: House) -> None:
    async with scores.http() as http:
        nothing = {"at": None, "address": None, "user": None}
        assert (await http.get("/score/v1/last-query")).json() == nothing
        assert problem(await http.get("/score/v1/score")) == (404, "unknown-person")
        assert (await http.get("/score/v1/last-query")).json() == nothing
        await scores.write()
        await scores.score(sub="bank-1")
        await scores.score(sub="bank-2")
        await http.get("/score/v1/profile", headers={"razao-purpose": "curiosity"})  # refused: shows nothing
        for _ in range(2):  # to look is no query
            found = await http.get("/score/v1/last-query")
            assert found.status_code == 200
            assert found.json()["user"] == "bank-2"
            assert found.json()["address"] == "192.0.2.7"
            assert found.json()["at"].startswith("2027-")


async def test_a_person_sees_who_has_asked_within_six_months_the_newest_first(scores: House) -> None:
    await scores.write()
    await scores.score(sub="long-ago")
    scores.clock.later(190 * 86_400)
    for number in range(5):
        await scores.score(sub=f"bank-{number}")
    users: list[str] = []
    cursor: str | None = ""
    async with scores.person() as http:
        while cursor is not None:
            page = await http.get("/score/v1/accesses", params={"limit": 2, "cursor": cursor})
            assert page.status_code == 200, page.text
            users += [one["user"] for one in page.json()["items"]]
            cursor = page.json()["next_cursor"]
        assert users == [f"bank-{number}" for number in (4, 3, 2, 1, 0)]
        for limit in (5, 6):
            assert (await http.get(f"/score/v1/accesses?limit={limit}")).json()["next_cursor"] is None
        assert problem(await http.get("/score/v1/accesses?cursor=x")) == (400, "malformed")
    async with scores.http() as http:
        assert problem(await http.get("/score/v1/accesses")) == (403, "forbidden")


async def test_an_answer_that_cannot_be_recorded_does_not_leave(scores: House) -> None:
    await scores.write()
    await scores.score()
    connection = await asyncpg.connect(scores.plan.dsn)
    await connection.execute(
        "CREATE FUNCTION documents.refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$;"
        "CREATE TRIGGER refuse BEFORE INSERT ON documents.score_accesses EXECUTE FUNCTION documents.refuse()"
    )
    await connection.close()
    for http in (scores.http(), scores.person(), scores.http("source", "score:extract")):
        async with http:
            for path in ("score", "profile", "last-query", "extract"):
                answer = await http.get(f"/score/v1/{path}", headers={"razao-purpose": "x"})
                assert answer.status_code in {403, 500}, path
                assert "Ana" not in answer.text
                assert "debts_considered" not in answer.text
    async with scores.http("source", "score:write") as http:
        assert (await http.put("/score/v1/profile", json=PROFILE | {"name": "Eva"})).status_code == 500
    assert "Eva" not in await scores.everything()


async def test_every_answer_of_many_at_once_is_on_record(scores: House) -> None:
    await scores.write()
    await asyncio.gather(*(scores.score(sub=f"bank-{number}") for number in range(40)))
    rows = await asyncpg_rows(scores.plan.dsn, "SELECT body FROM documents.score_accesses")
    assert sum('"score"' in row["body"] and '"answered"' in row["body"] for row in rows) == 40


async def test_the_record_has_who_what_why_and_both_numbers_of_the_request(scores: House) -> None:
    await scores.write()
    headers = {"razao-purpose": "loan", "x-request-id": "r-1", "x-correlation-id": "c-1"}
    async with scores.http(**headers) as http:
        await http.get("/score/v1/score")
    ((_, access),) = await scores.services.accesses.queries(reference(scores), limit=10)
    assert (access.user, access.what, access.purpose, access.decision) == (BANK, "score", "loan", "answered")
    assert (access.request, access.correlation, access.address) == ("r-1", "c-1", "192.0.2.7")


NO_PROFILES: Final[list[dict[str, Any]]] = [
    {"birth_date": "1987-02-30"},
    {"birth_date": "2999-01-01"},
    {"birth_date": {"$gt": ""}},
    {"name": {"$ne": None}},
    {"name": "a\0b"},
    {"$where": "1"},
    {"assets": [{"kind": "yacht", "value": 1}]},
    {"assets": [{"kind": "vehicle", "value": -1}]},
    {"assets": {"$gt": ""}},
    {"credit": {"first_credit_on": "1980-01-01"}},  # before birth
    {"monthly_income": 1.5},
    {"address": {"street": "a", "city": "b", "state": "pe", "postal_code": "50030230"}},
]


async def test_a_profile_that_is_none_is_refused_and_nothing_is_written(scores: House) -> None:
    async with scores.http("source", "score:write") as http:
        for change in NO_PROFILES:
            answer = await http.put("/score/v1/profile", json=PROFILE | change)
            assert problem(answer) == (400, "malformed"), change
    assert await scores.services.profiles.get(reference(scores)) is None


async def test_parts_of_a_credit_history_may_be_left_out_and_count_as_nothing(scores: House) -> None:
    await scores.write(credit={"payments_on_time": 60})
    partly = await scores.score()
    await scores.write(credit={"payments_on_time": 60, "payments_late": 0, "contracts_settled": 0})
    assert (await scores.score())["score"] == partly["score"]
    async with scores.person() as http:
        assert (await http.get("/score/v1/profile")).status_code == 200


async def test_the_model_is_there_for_everybody(scores: House) -> None:
    async with scores.http() as http:
        del http.headers["authorization"]
        model = (await http.get("/score/v1/model")).json()
        assert sum(factor["weight"] for factor in model["factors"]) == 100
        assert (await http.get("/score/v1/healthz")).json() == {"status": "ok"}
        assert (await http.get("/score/v1/docs")).status_code == 200
