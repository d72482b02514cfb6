"""Last queries written behind: bounded, counted when dropped, none lost on a clean stop or while the store is away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cluster.services.mongo import MongoServer
from cluster.trace_wiring import figures
from deployments.trace_queries import LastQueries
from storage.documents import Database, StoreAway
from storage.documents.opening import open_database
from storage.traces import COLLECTIONS, Query, Traces
from tests.conftest import free_port
from tests.deployments.trace_house import CPF, PASSWORD, USER, open_house, person


@pytest.fixture
async def documents(database: str) -> AsyncIterator[Database]:
    """A store with the trace's collections."""
    opened = await open_database(database)
    await opened.create(COLLECTIONS)
    yield opened
    await opened.close()


def somebody(number: int) -> bytes:
    return number.to_bytes(16, "big")


def asked(at: int) -> Query:
    return Query(at, "192.0.2.1", f"user {at}")


async def last(traces: Traces, people: range) -> list[Query | None]:
    return [trace.query for trace in await traces.read([somebody(number) for number in people])]


async def test_the_newest_question_about_each_is_written_whatever_order_they_come_in(documents: Database) -> None:
    traces = Traces(documents)
    one, other = LastQueries(traces), LastQueries(traces)
    for number in range(700):
        one.note(somebody(number), asked(1))
        other.note(somebody(number), asked(2 if number % 2 else 0))
    await asyncio.gather(one.flush(), other.flush())
    assert await last(traces, range(700)) == [asked(2 if number % 2 else 1) for number in range(700)]
    assert one.waiting == other.waiting == 0
    assert one.dropped == other.dropped == 0


async def test_under_overload_those_asked_about_longest_ago_are_dropped_and_counted(documents: Database) -> None:
    traces = Traces(documents)
    queries = LastQueries(traces, waiting_max=10)
    for number in range(10):
        queries.note(somebody(number), asked(1))
    queries.note(somebody(0), asked(2))
    for number in range(10, 14):
        queries.note(somebody(number), asked(3))
    assert (queries.waiting, queries.dropped) == (10, 4)
    assert {one.name: one.value for one in figures(queries)} == {
        "razao_trace_queries_waiting": 10, "razao_trace_queries_dropped": 4,
    }  # fmt: skip
    await queries.flush()
    lost, kept = [None] * 4, [asked(1)] * 5
    assert await last(traces, range(14)) == [asked(2), *lost, *kept, *[asked(3)] * 4]


async def test_what_is_being_written_counts_as_asked_and_waits_on_when_the_store_refuses(
    documents: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    traces = Traces(documents)
    queries = LastQueries(traces, waiting_max=3)
    began, go_on = asyncio.Event(), asyncio.Event()

    async def away(_: object) -> None:
        began.set()
        await go_on.wait()
        raise StoreAway("away")

    with monkeypatch.context() as patch:
        patch.setattr(traces, "record_queries", away)
        for number in range(3):
            queries.note(somebody(number), asked(1))
        writing = asyncio.create_task(queries.flush())
        await began.wait()
        assert queries.latest(somebody(0), None) == asked(1)
        assert queries.latest(somebody(0), asked(5)) == asked(5)
        queries.note(somebody(1), asked(7))
        queries.note(somebody(9), asked(7))
        assert queries.latest(somebody(1), asked(5)) == asked(7)
        go_on.set()
        with pytest.raises(StoreAway):
            await writing
    assert (queries.waiting, queries.dropped) == (3, 1)
    await queries.stop()
    assert queries.waiting == 0
    assert [one.query for one in await traces.read([somebody(n) for n in (0, 1, 2, 9)])] == [
        None, asked(7), asked(1), asked(7),
    ]  # fmt: skip


async def test_a_clean_stop_amid_writing_loses_nothing(documents: Database) -> None:
    traces = Traces(documents)
    queries = LastQueries(traces)
    for number in range(1200):
        queries.note(somebody(number), asked(1))
    running = asyncio.create_task(queries.run())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await queries.stop()
    assert await last(traces, range(1200)) == [asked(1)] * 1200
    assert queries.dropped == 0


@pytest.mark.slow
@pytest.mark.parametrize("driver", ["motor", "pymongo"])
async def test_while_mongodb_is_dead_the_trace_answers_503_and_afterwards_has_everything(
    tmp_path_factory: pytest.TempPathFactory, driver: str
) -> None:
    place: Path = tmp_path_factory.mktemp("rz")
    server = MongoServer(place, free_port())
    await asyncio.to_thread(server.start)
    try:
        database = await open_database("", mongo_url=server.url + "&serverSelectionTimeoutMS=300", driver=driver)
        async with open_house(database) as house:
            await house.add_user(USER, PASSWORD)
            about = {"Razao-Tax-Id": CPF}
            bought = {"id": "a", "tax_id": CPF, "merchant": "m", "amount": 1, "at": "2026-11-20T10:00:00Z"}
            async with house.http() as http:
                sent = await http.post("/trace/v1/card-purchases", json={"purchases": [bought]})
                assert sent.json() == {"results": [{"id": "a", "status": "stored"}]}
                assert (await http.get("/trace/v1/person", headers=about)).status_code == 200
                await asyncio.to_thread(server.stop)
                house.services.answers._kept.clear()
                house.services.backend._looked = 0.0
                for path in ("/trace/v1/person", "/trace/v1/last-query", "/trace/v1/healthz"):
                    answer = await http.get(path, headers=about)
                    assert (answer.status_code, answer.json()["type"]) == (503, "/problems/unavailable")
                with pytest.raises(StoreAway):
                    await house.services.queries.flush()
                assert house.services.queries.waiting == 1
                await asyncio.to_thread(server.start)
                async with asyncio.timeout(60):
                    while (await http.get("/trace/v1/healthz")).status_code != 200:
                        pass
                found = (await http.get("/trace/v1/person", headers=about)).json()
                assert found["last_card_purchase"]["id"] == "a"
                await house.services.queries.stop()
                written = await house.services.traces.last_query(person())
                assert written is not None
                assert written.user == USER
    finally:
        await asyncio.to_thread(server.stop)
