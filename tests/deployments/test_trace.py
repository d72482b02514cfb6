"""The trace's calls in process: what they answer, what they refuse, and what they remember."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any, Final

import httpx
import pytest

from storage.traces import Movement
from tests.deployments.trace_house import CPF, OTHER_CPF, USER, House, person

ABOUT: Final = {"Razao-Tax-Id": CPF}
TRANSFER: Final = "01890a5dac96774bbcceb302099a8057"


def purchase(**changes: Any) -> dict[str, Any]:
    """A purchase as it is sent."""
    at = "2026-11-20T10:00:00.000000Z"
    return {"id": "acq-1", "tax_id": CPF, "merchant": "Padaria", "amount": 1890, "at": at, **changes}


async def test_of_somebody_unknown_there_is_nothing_and_the_question_becomes_the_last_one(trace_house: House) -> None:
    async with trace_house.http() as http:
        first = await http.get("/trace/v1/person", headers=ABOUT)
        assert first.status_code == 200
        body = first.json()
        assert body.pop("as_of") <= _now()
        assert body == {"last_query": None, "movements": [], "last_card_purchase": None}
        assert (first.headers["age"], first.headers["cache-control"]) == ("0", "no-store")
        last = await http.get("/trace/v1/last-query", headers=ABOUT)
        assert last.status_code == 200
        assert {**last.json(), "at": ""} == {"at": "", "address": "192.0.2.7", "user": USER}
        nobody = await http.get("/trace/v1/last-query", headers={"Razao-Tax-Id": OTHER_CPF})
        assert nobody.json() == {"at": None, "address": None, "user": None}


async def test_an_answer_has_movements_newest_first_the_last_purchase_and_who_asked_before(
    trace_house: House,
) -> None:
    store = trace_house.services.traces
    movements = [
        Movement(at=number * 10**9, kind=12, amount=number, account=7, transfer=TRANSFER) for number in range(1, 26)
    ]
    await store.add_movements({person(): movements})
    await store.add_movements({person(): [Movement(at=10**11, kind=112, amount=-5, account=8, transfer=TRANSFER)]})
    await store.add_movements({person(): movements[:3]})  # again, and late
    async with trace_house.http() as http:
        sent = await http.post("/trace/v1/card-purchases", json={"purchases": [purchase()]})
        assert sent.json() == {"results": [{"id": "acq-1", "status": "stored"}]}
        await http.get("/trace/v1/person", headers=ABOUT)
        await trace_house.services.queries.flush()
        trace_house.services.answers._kept.clear()
        body = (await http.get("/trace/v1/person", headers=ABOUT)).json()
    assert body["last_query"]["user"] == USER
    assert body["last_card_purchase"] == {
        "id": "acq-1", "merchant": "Padaria", "amount": 1890, "at": "2026-11-20T10:00:00.000000Z",
    }  # fmt: skip
    assert [one["amount"] for one in body["movements"]] == [5, *range(25, 6, -1)]
    assert body["movements"][0] == {
        "transfer": "01890a5d-ac96-774b-bcce-b302099a8057", "account": "8", "kind": "transfer", "side": "debit",
        "amount": 5, "at": "1970-01-01T00:01:40.000000Z",
    }  # fmt: skip


@pytest.mark.parametrize("numbered", [{}, {"X-Request-Id": "a-1"}], ids=["the ordinary way", "the express route"])
async def test_within_a_second_the_same_answer_comes_again_and_afterwards_a_new_one(
    trace_house: House, monkeypatch: pytest.MonkeyPatch, numbered: dict[str, str]
) -> None:
    from deployments import trace, trace_answers, trace_calls

    now = [time.monotonic()]

    class Clock:
        monotonic = staticmethod(lambda: now[0])
        time_ns = staticmethod(time.time_ns)

    for module in (trace, trace_answers, trace_calls):
        monkeypatch.setattr(module, "time", Clock)
    async with trace_house.http(**numbered) as http:
        first = await http.get("/trace/v1/person", headers=ABOUT)
        await trace_house.services.traces.add_movements({person(): [Movement(1, 12, 1, 7, TRANSFER)]})
        now[0] += 0.9
        again = await http.get("/trace/v1/person", headers=ABOUT)
        assert again.content == first.content
        assert len(trace_house.ordinary) == (1 if numbered else 2)
        now[0] += 0.2
        third = await http.get("/trace/v1/person", headers=ABOUT)
        assert len(third.json()["movements"]) == 1
        assert third.json()["as_of"] > first.json()["as_of"]


@pytest.mark.parametrize(
    ("changes", "query", "status"),
    [
        ([], "", 200),
        ([("razao-gateway", "another")], "", 403),
        ([("Razao-Tax-Id", "529.982.247-26")], "", 422),
        ([("authorization", "Basic YTpi")], "", 401),
        ([("authorization", "Bearer YTpi")], "", 401),
        ([("Razao-Tax-Id", CPF), ("razao-tax-id", OTHER_CPF)], "", 400),
        ([], "?tax_id=1", 400),
    ],
)
async def test_what_was_answered_before_opens_nothing_to_a_request_that_differs(
    trace_house: House, changes: list[tuple[str, str]], query: str, status: int
) -> None:
    async with trace_house.http() as http:
        first = await http.get("/trace/v1/person", headers=ABOUT)
        again = await http.get("/trace/v1/person", headers={**ABOUT, "X-Request-Id": "a-1"})
        assert (again.content, again.headers["x-request-id"]) == (first.content, "a-1")
        names = {"x-request-id", "content-length"}
        assert {k: v for k, v in again.headers.items() if k not in names} == {
            k: v for k, v in first.headers.items() if k not in names
        }
        sent = {**first.request.headers, "x-request-id": "a-2"}
        kept = [(name, value) for name, value in sent.items() if name not in {one.lower() for one, _ in changes}]
    address = f"http://127.0.0.1:{trace_house.port}/trace/v1/person{query}"
    async with httpx.AsyncClient(trust_env=False) as bare:
        answer = await bare.get(address, headers=[*kept, *changes])
    assert answer.status_code == status
    assert len(trace_house.ordinary) == (2 if changes or query else 1)
    assert trace_house.services.queries.waiting == 1


async def test_an_answer_that_is_asked_for_while_it_ages_is_renewed_behind(trace_house: House) -> None:
    answers, traces = trace_house.services.answers, trace_house.services.traces
    first = await answers.about(person())
    assert answers.kept(person(), first.read + 0.5) is first
    assert not answers._aging
    assert answers.kept(person(), first.read + 0.9) is first
    await traces.add_movements({person(): [Movement(1, 12, 1, 7, TRANSFER)]})
    renewing = asyncio.create_task(answers.keep_renewing())
    try:
        async with asyncio.timeout(30):
            while answers._kept[person()] is first:
                await traces.ping()
    finally:
        renewing.cancel()
    assert len(json.loads(answers._kept[person()].body)["movements"]) == 1
    assert answers.kept(person(), first.read + 1.0) is not first


async def test_purchases_are_stored_once_and_the_latest_is_the_last(trace_house: House) -> None:
    later = purchase(id="acq-2", at="2026-11-21T07:00:00-03:00", amount=5)
    async with trace_house.http() as http:

        async def send(*purchases: dict[str, Any]) -> list[str]:
            answer = await http.post("/trace/v1/card-purchases", json={"purchases": purchases})
            assert answer.status_code == 200, answer.text
            return [one["status"] for one in answer.json()["results"]]

        assert await send(later, purchase(), purchase(id="acq-3", tax_id=OTHER_CPF)) == ["stored"] * 3
        assert await send(purchase(amount=1), later, purchase(id="acq-4", at="2026-11-20T10:00:01Z")) == [
            "conflict", "known", "stored",
        ]  # fmt: skip
        body = (await http.get("/trace/v1/person", headers=ABOUT)).json()
        assert body["last_card_purchase"] == {
            "id": "acq-2", "merchant": "Padaria", "amount": 5, "at": "2026-11-21T10:00:00.000000Z",
        }  # fmt: skip


async def test_a_thousand_purchases_are_taken_and_one_more_is_not(trace_house: House) -> None:
    many = [purchase(id=f"acq-{number}", at=f"2026-11-20T10:00:00.{number:06d}Z") for number in range(1001)]
    async with trace_house.http() as http:
        assert (await http.post("/trace/v1/card-purchases", json={"purchases": many})).status_code == 400
        answer = await http.post("/trace/v1/card-purchases", json={"purchases": many[:1000]})
        assert {one["status"] for one in answer.json()["results"]} == {"stored"}
        assert len(answer.json()["results"]) == 1000
        body = (await http.get("/trace/v1/person", headers=ABOUT)).json()
        assert body["last_card_purchase"]["id"] == "acq-999"


@pytest.mark.parametrize(
    ("changes", "status", "field"),
    [
        ({"id": {"$gt": ""}}, 400, "purchases[0].id"),
        ({"tax_id": {"$ne": None}}, 400, "purchases[0].tax_id"),
        ({"merchant": ["$where", "1"]}, 400, "purchases[0].merchant"),
        ({"$where": "1"}, 400, "purchases[0].$where"),
        ({"id": ""}, 400, "purchases[0].id"),
        ({"id": "a\0"}, 400, "purchases[0].id"),
        ({"tax_id": "529.982.247-26"}, 422, "purchases[0].tax_id"),
        ({"amount": 0}, 422, "purchases[0].amount"),
        ({"amount": 1.5}, 400, "purchases[0].amount"),
        ({"amount": 2**63}, 422, "purchases[0].amount"),
        ({"at": "yesterday"}, 400, "purchases[0].at"),
        ({"at": "2199-01-01T00:00:00Z"}, 400, "purchases[0].at"),
    ],
    ids=str,
)
async def test_a_purchase_that_is_not_one_is_refused_by_its_field_and_nothing_is_stored(
    trace_house: House, changes: dict[str, Any], status: int, field: str
) -> None:
    async with trace_house.http() as http:
        body = {"purchases": [{**purchase(id="bad"), **changes}, purchase(id="good")]}
        answer = await http.post("/trace/v1/card-purchases", json=body)
        assert (answer.status_code, answer.json()["field"]) == (status, field), answer.text
        assert "529.982" not in answer.text
        read = await http.get("/trace/v1/person", headers=ABOUT)
        assert read.json()["last_card_purchase"] is None


@pytest.mark.parametrize(
    "body",
    [
        '{"purchases":[],"purchases":[]}',
        json.dumps({"purchases": [purchase()]}).replace('"amount"', '"id": "b", "amount"'),
        json.dumps({"purchases": [purchase(), purchase()]}),
        json.dumps({"purchases": []}),
        json.dumps({"purchases": {"$gt": ""}}),
        "[]",
        "",
        "nonsense",
    ],
)
async def test_a_body_that_is_not_one_is_refused(trace_house: House, body: str) -> None:
    async with trace_house.http() as http:
        headers = {"content-type": "application/json"}
        answer = await http.post("/trace/v1/card-purchases", content=body, headers=headers)
        assert (answer.status_code, answer.json()["type"]) == (400, "/problems/malformed")


@pytest.mark.parametrize(
    ("given", "status"),
    [("", 400), ("529.982.247-26", 422), ('{"$gt":""}', 422), ("' OR 1=1 --", 422), ("$where", 422), ("0" * 11, 422)],
)
async def test_who_is_asked_about_is_a_tax_id_and_nothing_else(trace_house: House, given: str, status: int) -> None:
    async with trace_house.http() as http:
        for path in ("/trace/v1/person", "/trace/v1/last-query"):
            answer = await http.get(path, headers={"Razao-Tax-Id": given})
            assert (answer.status_code, answer.json()["field"]) == (status, "Razao-Tax-Id")
            assert (await http.get(path)).status_code == 400
            assert (await http.get(path, params={"tax_id": CPF}, headers=ABOUT)).status_code == 400
    assert trace_house.services.queries.waiting == 0


async def test_the_store_has_neither_tax_ids_nor_names_of_people(trace_house: House) -> None:
    async with trace_house.http() as http:
        await http.post("/trace/v1/card-purchases", json={"purchases": [purchase()]})
        await http.get("/trace/v1/person", headers=ABOUT)
    await trace_house.services.queries.flush()
    traces = trace_house.services.traces
    documents = [*await traces._people.scan(b"", 99), *await traces._purchases.scan(b"", 99)]
    assert len(documents) == 3
    everything = repr(documents)
    assert "52998224725" not in everything
    assert CPF not in everything
    assert person().hex() in everything


async def test_its_own_page_and_document_are_public_and_name_the_way_in(trace_house: House) -> None:
    async with trace_house.http(password=None) as http:
        found = (await http.get("/trace/v1/openapi.json")).json()
        assert found["components"]["securitySchemes"]["password"]["scheme"] == "basic"
        assert set(found["paths"]) >= {"/trace/v1/person", "/trace/v1/card-purchases", "/trace/v1/last-query"}
        assert "-u" in (await http.get("/trace/v1/docs")).text
        assert (await http.get("/trace/v1/healthz")).json() == {"status": "ok"}


async def test_only_the_gateway_may_ask(trace_house: House) -> None:
    async with trace_house.http(**{"razao-gateway": "another"}) as http:
        answer = await http.get("/trace/v1/person", headers=ABOUT)
        assert (answer.status_code, answer.json()["type"]) == (403, "/problems/forbidden")


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.999999Z", time.gmtime())
