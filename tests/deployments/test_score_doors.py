"""Who may see what at the score service: tokens, the person's own token, consents, and the attacks on them."""

from __future__ import annotations

import logging
from pathlib import Path

import httpx
import pytest

from deployments.score import create_app
from tests.deployments.schemathesis_run import finds_nothing
from tests.deployments.score_house import BANK, CPF, GATEWAY, OTHER_CPF, PROFILE, House

LOAN = {"razao-purpose": "loan"}
CONSENT = {"grantee": BANK, "purpose": "loan", "expires_in": 600}


def problem(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["type"].rpartition("/")[2]


async def give(house: House, **changes: object) -> str:
    async with house.person() as http:
        answer = await http.post("/score/v1/consents", json=CONSENT | changes)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


async def seen(house: House, sub: str = BANK, **headers: str) -> tuple[int, str]:
    async with house.http(sub, **(LOAN | headers)) as http:
        answer = await http.get("/score/v1/profile")
    return (200, "") if answer.status_code == 200 else problem(answer)


async def test_a_profile_is_shown_under_the_persons_consent_to_that_caller_and_purpose(scores: House) -> None:
    await scores.write()
    assert await seen(scores) == (403, "no-consent")
    await give(scores)
    assert await seen(scores) == (200, "")
    assert await seen(scores, "bank-18") == (403, "no-consent")
    async with scores.http(**{"razao-purpose": "marketing"}) as http:
        assert problem(await http.get("/score/v1/profile")) == (403, "no-consent")
    async with scores.http() as http:
        assert problem(await http.get("/score/v1/profile")) == (400, "malformed")  # without a purpose
    async with scores.http(about=OTHER_CPF, **LOAN) as http:
        assert problem(await http.get("/score/v1/profile")) == (403, "no-consent")


async def test_a_consent_ends_by_itself_and_at_once_when_it_is_taken_back_also_for_tokens_that_are_out(
    scores: House,
) -> None:
    await scores.write()
    await give(scores, expires_in=60)
    async with scores.http(**LOAN) as http:
        assert (await http.get("/score/v1/profile")).json()["name"] == "Ana Souza"
        scores.clock.later(60)
        assert problem(await http.get("/score/v1/profile")) == (403, "no-consent")
        given = await give(scores)
        assert (await http.get("/score/v1/profile")).status_code == 200
        async with scores.person() as person:
            for _ in range(2):  # a second time it does nothing
                assert (await person.delete(f"/score/v1/consents/{given}")).status_code == 204
        assert problem(await http.get("/score/v1/profile")) == (403, "no-consent")
    async with scores.person() as person:
        assert problem(await person.delete("/score/v1/consents/none")) == (404, "unknown-consent")
        listed = (await person.get("/score/v1/consents")).json()["items"]
        assert [one["id"] == given and one["ended_at"] is not None for one in listed] == [True, False]


async def test_a_request_that_the_gateway_sends_again_makes_no_second_consent(scores: House) -> None:
    async with scores.person(**{"x-request-id": "the-same"}) as http:
        twice = [(await http.post("/score/v1/consents", json=CONSENT)).json() for _ in range(2)]
        assert twice[0] == twice[1]
        assert (await http.get("/score/v1/consents")).json()["items"] == twice[:1]


async def test_a_person_sees_themselves_and_nobody_else(scores: House) -> None:
    await scores.write()
    await scores.write(OTHER_CPF, name="Bia Lima")
    async with scores.person() as http:
        assert (await http.get("/score/v1/profile")).json() == PROFILE | {
            "updated_at": (await http.get("/score/v1/score")).json()["updated_at"]
        }
        for path in ("profile", "score", "last-query", "accesses", "consents"):
            answer = await http.get(f"/score/v1/{path}", headers={"razao-tax-id": OTHER_CPF} | LOAN)
            assert problem(answer) == (403, "forbidden"), path
        body = CONSENT | {"grantee": "person-529"}
        answer = await http.post("/score/v1/consents", json=body, headers={"razao-tax-id": OTHER_CPF})
        assert problem(answer) == (403, "forbidden")
        assert problem(await http.put("/score/v1/profile", json=PROFILE)) == (403, "forbidden")


async def test_nobody_consents_for_a_person(scores: House) -> None:
    everything = "score:read score:profile score:write score:extract"
    async with scores.http(BANK, everything) as http:
        assert problem(await http.post("/score/v1/consents", json=CONSENT)) == (403, "forbidden")
        assert problem(await http.get("/score/v1/consents")) == (403, "forbidden")
    # Nor does the scope alone, without the claim that says who the person is.
    async with scores.http(BANK, f"{everything} score:self") as http:
        assert problem(await http.post("/score/v1/consents", json=CONSENT)) == (403, "forbidden")


async def test_each_call_takes_its_own_scope(scores: House) -> None:
    await scores.write()
    for scope, path in (
        ("score:profile", "score"),
        ("score:read", "profile"),
        ("score:write", "last-query"),
        ("score:read", "extract"),
        ("ledger:read", "score"),
    ):
        async with scores.http(BANK, scope, **LOAN) as http:
            answer = await http.get(f"/score/v1/{path}")
        assert problem(answer) == (403, "forbidden"), (scope, path)
        assert "insufficient_scope" in answer.headers["www-authenticate"]


async def test_tokens_for_others_and_other_ways_in_are_refused(scores: House) -> None:
    await scores.write()
    async with scores.http() as http:
        for audience in ("payments", "vault", "trace", "Score"):
            token = scores.token(audience=audience)
            answer = await http.get("/score/v1/score", headers={"authorization": f"Bearer {token}"})
            assert problem(answer) == (401, "unauthenticated"), audience
        basic = await http.get("/score/v1/score", headers={"authorization": "Basic YmFuazpzZWNyZXQ="})
        assert problem(basic) == (401, "unauthenticated")
        assert basic.headers["www-authenticate"].startswith('Bearer realm="score"')
        answer = await http.get("/score/v1/score", headers={"razao-gateway": "guessed"})
        assert problem(answer) == (403, "forbidden")  # a replica's port, reached directly
        del http.headers["authorization"]
        assert problem(await http.get("/score/v1/score")) == (401, "unauthenticated")


async def test_whether_there_is_somebody_cannot_be_told_from_a_refusal(scores: House) -> None:
    await scores.write()
    answers = []
    for about in (CPF, OTHER_CPF):
        async with scores.http(about=about, **LOAN, **{"x-request-id": "same"}) as http:
            answer = await http.get("/score/v1/profile")
            answers.append((answer.status_code, answer.text, sorted(answer.headers.items())))
    assert answers[0] == answers[1]


async def test_what_is_no_tax_id_finds_nobody(scores: House) -> None:
    await scores.write()
    for given in ('{"$gt":""}', "' OR 1=1 --", "529.982.247-26", "00000000000", "", "%00"):
        async with scores.http(about=given) as http:
            answer = await http.get("/score/v1/score")
        assert problem(answer)[0] in {400, 422}, given
        assert given not in answer.text or not given


async def test_the_same_key_twice_is_refused(scores: House) -> None:
    twice = b'{"grantee":"bank-17","purpose":"loan","expires_in":60,"expires_in":86400}'
    async with scores.person() as http:
        answer = await http.post("/score/v1/consents", content=twice, headers={"content-type": "application/json"})
        assert problem(answer) == (400, "malformed")
        assert problem(await http.get("/score/v1/accesses?limit=1&limit=2")) == (400, "malformed")
        for change in ({"expires_in": 86_401}, {"expires_in": 0}, {"purpose": "$gt"}, {"grantee": {"$gt": ""}}):
            assert problem(await http.post("/score/v1/consents", json=CONSENT | change)) == (400, "malformed")


async def test_a_tax_id_is_neither_in_the_store_nor_in_a_line_of_the_log(
    scores: House, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    await scores.write()
    await scores.score()
    await give(scores)
    assert await seen(scores) == (200, "")
    assert await seen(scores, "bank-18") == (403, "no-consent")
    async with scores.http("trainer", "score:extract") as http:
        extracted = (await http.get("/score/v1/extract")).text
    logged = "\n".join(record.getMessage() + repr(vars(record)) for record in caplog.records)
    everywhere = {"store": await scores.everything(), "log": logged, "extract": extracted}
    for place, text in everywhere.items():
        assert text, place
        for written in (CPF, "529.982.247-25"):
            assert written not in text, place
    assert "Ana Souza" in everywhere["store"]  # the name is kept here
    for secret in ("Ana Souza", "Rua das Flores", "Recife", "1987-04-21"):
        assert secret not in logged
        assert secret not in extracted


async def test_a_tax_id_in_an_address_is_refused_and_not_repeated(scores: House) -> None:
    await scores.write()
    for http in (scores.http(BANK, "score:read score:write score:extract"), scores.person()):
        async with http:
            for path in ("score", "profile", "last-query", "accesses", "consents", "extract"):
                for name in ("tax_id", "cursor" if path in {"accesses", "extract"} else "cpf", CPF):
                    answer = await http.get(f"/score/v1/{path}?{name}={CPF}")
                    assert answer.status_code in {400, 403}, answer.url
                    assert CPF not in answer.text


@pytest.mark.slow
async def test_schemathesis_finds_no_error_of_ours(scores: House, tmp_path: Path) -> None:
    await scores.write()
    scope = "score:self score:read score:profile score:write score:extract"
    headers = {"Authorization": f"Bearer {scores.token(scope=scope, of=CPF)}", "Razao-Gateway": GATEWAY}
    headers |= {"Razao-Tax-Id": CPF}
    await finds_nothing(create_app(scores.services), "/score/v1/openapi.json", headers, tmp_path)
