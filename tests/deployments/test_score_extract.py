"""The extract: the whole base in two formats, resumable, nobody in it by name, and no longer than one may have it."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import httpx
import msgspec
import pyarrow as pa
import pytest

from cluster.identity import add_client
from cluster.identity_wiring import Trust
from deployments import score_extract
from deployments.auth.issuers import Verifier
from deployments.auth.tokens import KeyFile, TokenVerifier
from deployments.score import create_app
from deployments.score_extract import ARROW, NDJSON
from storage.references import person_reference
from tests.deployments.identity_house import House as IdentityHouse
from tests.deployments.score_house import CPF, GATEWAY, House

PEOPLE = 25


async def filled(house: House) -> None:
    for number in range(PEOPLE):
        person = person_reference(house.services.key, str(number))
        fields: dict[str, Any] = {"name": f"N{number}", "birth_date": f"{1950 + number}-01-01"}
        if number % 2:
            fields |= {"monthly_income": number, "assets": [{"kind": "vehicle", "value": number}]}
        await house.services.profiles.put(person, fields, house.clock())


def rows_of(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    if answer.headers["content-type"] == ARROW:
        found: list[dict[str, Any]] = pa.ipc.open_stream(io.BytesIO(answer.content)).read_all().to_pylist()
        return found
    assert answer.headers["content-type"] == NDJSON
    return [msgspec.json.decode(line) for line in answer.content.splitlines()]


def bare(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row | {"cursor": None} for row in rows]


async def test_both_formats_have_everybody_once_and_no_name(scores: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score_extract, "_BATCH", 10)
    await filled(scores)
    async with scores.http("trainer", "score:extract") as http:
        lines = rows_of(await http.get("/score/v1/extract"))
        arrow = await http.get("/score/v1/extract", headers={"accept": ARROW})
    assert bare(lines) == bare(rows_of(arrow))
    assert len({row["pseudonym"] for row in lines}) == PEOPLE
    assert sorted(row["age"] for row in lines) == [2027 - 1950 - number for number in reversed(range(PEOPLE))]
    assert [index for index, row in enumerate(lines) if row["cursor"]] == [9, 19, 24]
    assert all(row["model"] == "razao-scorecard-1" and 0 <= row["score"] <= 1000 for row in lines)
    assert not {"name", "tax_id", "birth_date", "address"} & set(lines[0])
    stored = await scores.everything()
    assert not any(row["pseudonym"] in stored for row in lines)  # who has the store alone cannot join the two


async def test_it_is_resumed_after_any_cursor_and_a_forged_one_opens_nothing(
    scores: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score_extract, "_BATCH", 10)
    await filled(scores)
    got: list[dict[str, Any]] = []
    async with scores.http("trainer", "score:extract") as http:
        whole = rows_of(await http.get("/score/v1/extract"))
        parameters: dict[str, Any] = {"limit": 7}
        while rows := rows_of(await http.get("/score/v1/extract", params=parameters)):
            got += rows
            parameters["cursor"] = rows[-1]["cursor"]
        assert bare(got) == bare(whole)
        middle = rows_of(await http.get("/score/v1/extract", params={"cursor": whole[9]["cursor"]}))
        assert bare(middle) == bare(whole[10:])
        last = whole[-1]["cursor"]
        forged = [last[:-2] + ("A" if last[-2] != "A" else "B") + last[-1], "x", "", "é", person_reference(
            scores.services.key, CPF).hex()]  # fmt: skip
        for cursor in forged:
            answer = await http.get("/score/v1/extract", params={"cursor": cursor})
            assert (answer.status_code, answer.json()["field"]) == (400, "cursor"), cursor


async def test_an_empty_base_is_an_empty_stream(scores: House) -> None:
    async with scores.http("trainer", "score:extract") as http:
        assert (await http.get("/score/v1/extract")).content == b""
        arrow = await http.get("/score/v1/extract", headers={"accept": ARROW})
        assert pa.ipc.open_stream(io.BytesIO(arrow.content)).read_all().num_rows == 0
        for wrong in ("limit=0", "limit=x", "limit=1&limit=2", "page=1"):
            assert (await http.get(f"/score/v1/extract?{wrong}")).status_code == 400


# -- who may not have the rest ----------------------------------------------------------------------------------------


async def interrupted(
    scores: House, verifier: Verifier, token: str, accept: str, then: Callable[[], Awaitable[None]]
) -> bytes:
    """The body of an extract; once its first rows are there, do `then` before the next are made."""
    app, body, done = create_app(replace(scores.services, verifier=verifier)), bytearray(), False

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        nonlocal done
        if message["type"] == "http.response.start":
            assert message["status"] == 200
            return
        body.extend(message["body"])
        if b"razao-scorecard-1" in body and not done:
            done = True
            await then()

    headers = {"authorization": f"Bearer {token}", "razao-gateway": GATEWAY, "accept": accept}
    scope = {
        "type": "http", "method": "GET", "path": "/score/v1/extract", "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }  # fmt: skip
    await app(scope, receive, send)
    assert done
    return bytes(body)


def told(accept: str, body: bytes) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of a body, and the problems that it ends with."""
    if accept == NDJSON:
        lines = [msgspec.json.decode(line) for line in body.splitlines()]
        problems = [line["problem"] for line in lines if "problem" in line]
        assert problems == [line["problem"] for line in lines[len(lines) - len(problems) :]]
        return lines[: len(lines) - len(problems)], problems
    batches = list(pa.ipc.open_stream(io.BytesIO(body)).iter_batches_with_custom_metadata())
    rows = [row for batch in batches for row in batch.batch.to_pylist()]
    return rows, [msgspec.json.decode(one.custom_metadata[b"problem"]) for one in batches if one.custom_metadata]


@pytest.mark.parametrize("accept", [NDJSON, ARROW])
async def test_an_extract_ends_with_the_problem_when_its_token_is_revoked(
    scores: House, house: IdentityHouse, trust: Trust, monkeypatch: pytest.MonkeyPatch, accept: str
) -> None:
    """No row comes after it, and those that came can be gone on from with another token."""
    monkeypatch.setattr(score_extract, "_BATCH", 10)
    await filled(scores)
    made = await add_client(house.pool, house.plan.ledger_key, "trainer", [], scopes=["score:extract"])
    key, form = (made["client_id"], made["client_secret"]), {"grant_type": "client_credentials"}
    token, another = [(await house.token(form, auth=key)).json()["access_token"] for _ in range(2)]
    verifier = trust.verifier("score")

    async def revoke() -> None:
        async with house.http() as http:
            assert (await http.post("/oauth/revoke", data={"token": token}, auth=key)).status_code == 200
        async with asyncio.timeout(10):
            while verifier.remembered(token.encode()) is not None:
                await house.pool.fetchval("SELECT 1")  # a turn around the database

    async def nothing() -> None:
        pass

    rows, problems = told(accept, await interrupted(scores, verifier, token, accept, revoke))
    assert len(rows) == 10
    assert [(one["type"], one["detail"]) for one in problems] == [
        ("/problems/unauthenticated", "The token was revoked")
    ]
    assert rows[-1]["cursor"]
    whole, problems = told(accept, await interrupted(scores, verifier, another, accept, nothing))
    assert (len(whole), problems) == (PEOPLE, [])


async def test_an_extract_ends_with_the_problem_when_its_token_expires(
    scores: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score_extract, "_BATCH", 10)
    await filled(scores)
    late = 0.0
    keys = KeyFile(scores.plan.data.keys / "jwks.json")
    verifier = TokenVerifier(keys, audience="score", clock=lambda: time.time() + late)

    async def wait() -> None:
        nonlocal late
        late = 7200.0

    token = scores.token("trainer", "score:extract")
    rows, problems = told(NDJSON, await interrupted(scores, verifier, token, NDJSON, wait))
    assert (len(rows), [one["status"] for one in problems]) == (10, [401])
