"""The extract: the whole base in two formats, resumable, and nobody in it by name."""

from __future__ import annotations

import io
from typing import Any

import httpx
import msgspec
import pyarrow as pa
import pytest

from deployments import score_extract
from deployments.score_extract import ARROW, NDJSON
from storage.references import person_reference
from tests.deployments.score_house import CPF, House

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
