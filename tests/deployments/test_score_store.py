"""The score service over MongoDB's protocol: the same calls, and a store that is killed under load and returns."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import httpx
import pytest
from validate_docbr import CPF

from cluster.services.mongo import MongoServer
from storage.accesses import ACCESSES
from storage.references import person_reference
from tests.conftest import free_port
from tests.deployments.score_house import PROFILE, House, score_house

LOAN = {"razao-purpose": "loan"}


async def test_everything_works_alike_on_mongodb(
    mongo_server: MongoServer, mongo_database: str, tmp_path: Path
) -> None:
    where = {"mongo_url": mongo_server.url, "driver": "motor", "name": mongo_database}
    async with score_house("", tmp_path, **where) as scores:
        await scores.write()
        first = await scores.score()
        assert await scores.score() == first
        assert scores.owed.asked == 1
        async with scores.person() as person, scores.http(**LOAN) as bank:
            assert (await bank.get("/score/v1/profile")).status_code == 403
            consent = {"grantee": "bank-17", "purpose": "loan", "expires_in": 60}
            given = await person.post("/score/v1/consents", json=consent)
            assert (await bank.get("/score/v1/profile")).json()["name"] == PROFILE["name"]
            assert (await person.delete(f"/score/v1/consents/{given.json()['id']}")).status_code == 204
            assert (await bank.get("/score/v1/profile")).status_code == 403
            asked = (await person.get("/score/v1/accesses")).json()["items"]
            assert [one["what"] for one in asked] == ["profile", "score", "score"]
            assert (await bank.get("/score/v1/last-query")).json()["user"] == "bank-17"
        await scores.write(monthly_income=1)
        await scores.score()
        assert scores.owed.asked == 2
        async with scores.http("trainer", "score:extract") as http:
            assert len((await http.get("/score/v1/extract")).text.splitlines()) == 1


@pytest.mark.slow
async def test_a_killed_store_means_503_and_then_everything_that_was_acknowledged_is_there(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    server = MongoServer(tmp_path_factory.mktemp("rz"), free_port())
    await asyncio.to_thread(server.start)
    try:
        url = server.url + "&serverSelectionTimeoutMS=200"
        async with score_house("", tmp_path, mongo_url=url, driver="pymongo") as scores:
            await _through_a_kill(scores, server)
    finally:
        await asyncio.to_thread(server.stop)


async def _through_a_kill(scores: House, server: MongoServer) -> None:
    acknowledged: list[str] = []
    refused: list[int] = []
    enough, noticed = asyncio.Event(), asyncio.Event()
    numbers = iter(CPF().generate_list(4000, repeat=False))

    async def writer(http: httpx.AsyncClient) -> None:
        while not noticed.is_set():
            tax_id = next(numbers)
            answer = await http.put("/score/v1/profile", json=PROFILE, headers={"razao-tax-id": tax_id})
            if answer.status_code == 200:
                acknowledged.append(tax_id)
            else:
                refused.append(answer.status_code)
            if len(acknowledged) >= 40:
                enough.set()
            if len(refused) >= 8:
                noticed.set()

    async with scores.http("source", "score:write") as http:
        writers = [asyncio.create_task(writer(http)) for _ in range(4)]
        await enough.wait()
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        await asyncio.gather(*writers)
        assert set(refused) == {503}
        async with scores.http() as reader:
            answer = await reader.get("/score/v1/score", headers={"razao-tax-id": acknowledged[0]})
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
            assert (await reader.get("/score/v1/healthz")).status_code == 503
            await asyncio.to_thread(server.stop)
            await asyncio.to_thread(server.start)
            async with asyncio.timeout(60):
                while (await reader.get("/score/v1/healthz")).status_code != 200:
                    pass
            for tax_id in acknowledged:
                answer = await reader.get("/score/v1/score", headers={"razao-tax-id": tax_id})
                assert answer.status_code == 200, answer.text
    recorded = await scores.database.collection(ACCESSES).scan(b"", 100_000)
    changed = {one.id[:16] for one in recorded if one.body["decision"] == "changed"}
    assert {person_reference(scores.services.key, tax_id) for tax_id in acknowledged} <= changed
