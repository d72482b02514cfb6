"""The contract of a store of documents, run on PostgreSQL, and on FerretDB through motor and through PyMongo.

Each test says what the tiers rely on. A database that is away and comes back is a server of the test's own.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final

import pymongo
import pytest

from cluster.postgres import PostgresServer
from cluster.services.mongo import MongoServer
from storage.documents import Body, Database, Document, Documents, StoreAway, update, update_many
from storage.documents.opening import open_database
from tests.conftest import Server, free_port

STORES: Final = ("postgres", "motor", "pymongo")
A, B, C = b"\x00" + b"a" * 15, b"b" * 16, b"\xff" * 16


@pytest.fixture(params=STORES)
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Database]:
    """An empty database with one collection."""
    if request.param == "postgres":
        opened = await open_database(request.getfixturevalue("database"))
    else:
        server, name = request.getfixturevalue("mongo_server"), request.getfixturevalue("mongo_database")
        opened = await open_database("", mongo_url=server.url, driver=request.param, name=name)
    await opened.create(["people"])
    yield opened
    await opened.close()


@pytest.fixture
def people(store: Database) -> Documents:
    """The collection."""
    return store.collection("people")


async def test_a_document_comes_back_as_it_was_written(people: Documents) -> None:
    body: Body = {
        "text": "São João \U0001f600 \"'; DROP TABLE people; --",
        "none": None,
        "numbers": [0, -1, 2**63 - 1, -(2**63), 0.1, 1e300],
        "yes": True,
        "nested": {"empty": {}, "list": [{"": []}]},
        "operator": "$gt",
    }
    assert await people.insert(A, body)
    found = await people.get(A)
    assert found == Document(A, 1, body)
    assert isinstance(found.id, bytes)
    assert [type(one) for one in found.body["numbers"]] == [int, int, int, int, float, float]


async def test_what_is_not_there_is_none_and_cannot_be_changed(people: Documents) -> None:
    assert await people.get(A) is None
    assert await people.get_many([A, B]) == {}
    assert await people.get_many([]) == {}
    assert not await people.replace(A, 1, {})
    assert not await people.delete(A)
    assert await people.replace_many([]) == await people.insert_many([]) == set()
    assert await people.scan(b"", 10) == []


async def test_of_several_insertions_of_one_id_one_is_made_and_nothing_is_overwritten(people: Documents) -> None:
    made = await asyncio.gather(*(people.insert(A, {"by": number}) for number in range(8)))
    assert made.count(True) == 1
    assert await people.get(A) == Document(A, 1, {"by": made.index(True)})


async def test_insert_many_tells_which_were_there_and_leaves_them(people: Documents) -> None:
    await people.insert(B, {"first": True})
    assert await people.insert_many([(C, {"n": 3}), (B, {"n": 2}), (A, {"n": 1})]) == {B}
    found = await people.get_many([A, B, C, b"z" * 16])
    assert {id_: one.body for id_, one in found.items()} == {A: {"n": 1}, B: {"first": True}, C: {"n": 3}}


async def test_a_replacement_needs_the_version_that_was_read(people: Documents) -> None:
    await people.insert(A, {"n": 1})
    assert not await people.replace(A, 2, {"n": 0})
    assert await people.replace(A, 1, {"n": 2})
    assert not await people.replace(A, 1, {"n": 0})
    assert await people.get(A) == Document(A, 2, {"n": 2})


async def test_of_concurrent_replacements_of_one_version_exactly_one_takes_effect(people: Documents) -> None:
    await people.insert(A, {"by": -1})
    for version in range(1, 11):
        done = await asyncio.gather(*(people.replace(A, version, {"by": number}) for number in range(8)))
        assert done.count(True) == 1
        assert await people.get(A) == Document(A, version + 1, {"by": done.index(True)})


async def test_replace_many_judges_each_for_itself_and_tells_which_took_effect(people: Documents) -> None:
    await people.insert_many([(A, {"n": 0}), (B, {"n": 0})])
    await people.replace(B, 1, {"n": 5})
    wanted = [Document(B, 1, {"n": 9}), Document(A, 1, {"n": 9}), Document(C, 1, {"n": 9})]
    assert await people.replace_many(wanted) == {A}
    assert await people.replace_many([Document(A, 2, {"n": 10}), Document(B, 2, {"n": 10})]) == {A, B}
    assert await people.get_many([A, B, C]) == {A: Document(A, 3, {"n": 10}), B: Document(B, 3, {"n": 10})}


async def test_batches_that_overlap_in_other_orders_do_not_block_each_other(people: Documents) -> None:
    ids = [bytes([number]) * 16 for number in range(40)]
    for turn in range(3):
        there = await asyncio.gather(
            *(people.insert_many([(id_, {"n": turn}) for id_ in each]) for each in _orders(ids))
        )
        if turn == 0:
            assert sum(len(ids) - len(those) for those in there) == len(ids)
        found = await people.get_many(ids)
        batches = ([found[id_]._replace(body={"n": turn}) for id_ in each] for each in _orders(ids))
        took = await asyncio.gather(*map(people.replace_many, batches))
        assert sum(map(len, took)) == len(ids)
        assert {one.version for one in (await people.get_many(ids)).values()} == {turn + 2}


async def test_more_documents_than_a_server_has_connections_are_replaced_at_once(people: Documents) -> None:
    ids = [number.to_bytes(16, "big") for number in range(300)]
    await people.insert_many([(id_, {"n": 0}) for id_ in ids])
    found = await people.get_many(ids)
    stale = [found[id_]._replace(version=9) for id_ in ids[:5]]
    changed = [found[id_]._replace(body={"n": 1}) for id_ in ids[5:]]
    assert await people.replace_many([*changed, *stale]) == set(ids[5:])
    assert {id_ for id_, one in (await people.get_many(ids)).items() if one.body["n"]} == set(ids[5:])


def _orders(ids: list[bytes]) -> list[list[bytes]]:
    return [ids, ids[::-1], ids[20:] + ids[:20]]


async def test_a_replacement_and_a_deletion_at_once_agree_on_what_is_left(people: Documents) -> None:
    for _ in range(10):
        await people.insert(A, {"n": 0})
        replaced, deleted = await asyncio.gather(people.replace(A, 1, {"n": 1}), people.delete(A))
        assert deleted
        assert await people.get(A) is None
        assert replaced in {True, False}
        assert not await people.delete(A)


async def test_a_scan_goes_through_all_in_the_order_of_ids_while_others_are_added(people: Documents) -> None:
    ids = [bytes([number, 255 - number]) * 8 for number in range(0, 250, 5)]
    await people.insert_many([(id_, {"n": 1}) for id_ in reversed(ids)])
    seen: list[bytes] = []
    while page := await people.scan(seen[-1] if seen else b"", 7):
        seen += [one.id for one in page]
        await people.insert(page[-1].id[:-1] + b"\xfe", {"n": 2})
    assert [id_ for id_ in seen if id_ in ids] == ids
    assert seen == sorted(seen)


@pytest.mark.parametrize("prefix", [b"b" * 16, b"b" * 16 + b"\x00", b"b" * 5, b"\xff" * 17, b""])
async def test_a_scan_of_a_prefix_finds_those_alone_also_when_they_were_changed(
    people: Documents, prefix: bytes
) -> None:
    begins = [b"a" * 16, b"b" * 15 + b"a", b"b" * 16, b"b" * 15 + b"c", b"\xff" * 16]
    ids = sorted(begin + kind + bytes([number]) for begin in begins for kind in (b"\x00", b"\xff") for number in (0, 9))
    await people.insert(ids[0], {})
    await people.insert_many([(id_, {}) for id_ in ids[1:]])
    assert await people.replace(ids[8], 1, {"changed": 1})
    await people.replace_many([Document(id_, 1, {"changed": 1}) for id_ in ids[9:12]])
    wanted = [id_ for id_ in ids if id_.startswith(prefix)]
    assert [one.id for one in await people.scan(b"", 99, prefix)] == wanted
    assert [one.id for one in await people.scan(wanted[0], 2, prefix)] == wanted[1:3]
    assert await people.scan(wanted[-1], 9, prefix) == []


async def test_concurrent_updates_of_one_document_lose_nothing(people: Documents) -> None:
    def counted(body: Body | None) -> Body:
        return {"n": (body or {"n": 0})["n"] + 1}

    await asyncio.gather(*(update(people, A, counted) for _ in range(12)))
    found = await people.get(A)
    assert found is not None
    assert (found.version, found.body) == (12, {"n": 12})
    assert await update(people, A, lambda _: None) is None
    assert await people.get(A) == found


async def test_concurrent_updates_of_many_documents_lose_nothing_and_leave_the_others(
    people: Documents,
) -> None:
    ids = [A, B, C]
    await people.insert(C, {"stays": True})

    def counted(id_: bytes, body: Body | None) -> Body | None:
        return None if id_ == C else {"n": (body or {"n": 0})["n"] + 1}

    await asyncio.gather(*(update_many(people, each, counted) for each in (ids, ids[::-1], ids, [B], [A])))
    assert {one.id: one.body for one in await people.scan(b"", 9)} == {A: {"n": 4}, B: {"n": 4}, C: {"stays": True}}


async def test_the_name_of_a_collection_is_no_place_for_statements(store: Database) -> None:
    for name in ("", "People", "a;b", 'a"b', "a$b", "system.users", "a" * 49):
        with pytest.raises(ValueError, match="name of a collection"):
            store.collection(name)


@pytest.mark.parametrize("body", [{"$gt": ""}, {"n": {"$where": "1"}}], ids=str)
@pytest.mark.parametrize("driver", STORES[1:])
async def test_what_mongodb_refuses_is_told_without_the_document(
    mongo_server: MongoServer, mongo_database: str, driver: str, body: Body
) -> None:
    opened = await open_database("", mongo_url=mongo_server.url, driver=driver, name=mongo_database)
    people = opened.collection("people")
    secret = {"secret": "529.982.247-25", **body}
    await people.insert(B, {})
    attempts: list[Callable[[], Any]] = [
        lambda: people.insert(A, secret),
        lambda: people.insert_many([(A, secret)]),
        lambda: people.replace(B, 1, secret),
    ]
    for attempt in attempts:
        with pytest.raises(ValueError, match="refuses") as refused:
            await attempt()
        assert "529" not in str(refused.value)
        assert refused.value.__suppress_context__
    assert await people.get(A) is None
    await opened.close()


async def test_ferretdb_looks_up_by_index(mongo_server: MongoServer, mongo_database: str) -> None:
    store = await open_database("", mongo_url=mongo_server.url, name=mongo_database)
    await store.create(["people"])
    ids = [number.to_bytes(17, "big") for number in range(2000)]
    await store.collection("people").insert_many([(id_, {}) for id_ in ids])
    await store.close()
    with pymongo.MongoClient[dict[str, Any]](mongo_server.url) as client:
        for wanted in ({"_id": ids[7].hex()}, {"_id": ids[7].hex(), "v": 1}, {"p": ids[7].hex()[:32]}):
            asked = {"find": "people", "filter": wanted}
            plan = client[mongo_database].command("explain", asked)["queryPlanner"]
            assert "Bitmap Index Scan" in str(plan), plan


async def _reached_again(database: Database) -> None:
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(StoreAway):
                await database.ping()
                return


@pytest.mark.slow
@pytest.mark.parametrize("kind", STORES)
async def test_a_server_that_is_away_is_store_away_and_has_every_acknowledged_write_when_it_returns(
    tmp_path_factory: pytest.TempPathFactory, kind: str
) -> None:
    place: Path = tmp_path_factory.mktemp("rz")
    server: Server
    if kind == "postgres":
        server = postgres = PostgresServer(place, free_port())
        await asyncio.to_thread(server.start)
        database = await open_database(postgres.dsn)
    else:
        server = mongo = MongoServer(place, free_port())
        await asyncio.to_thread(server.start)
        database = await open_database("", mongo_url=mongo.url + "&serverSelectionTimeoutMS=200", driver=kind)
    try:
        await database.create(["people"])
        people = database.collection("people")
        await people.insert(A, {"n": 1})
        await asyncio.to_thread(server.stop)
        for attempt in (
            lambda: people.get(A),
            lambda: people.get_many([A]),
            lambda: people.insert(B, {}),
            lambda: people.replace(A, 1, {}),
            lambda: people.scan(b"", 1),
            database.ping,
        ):
            with pytest.raises(StoreAway):
                await attempt()
        await asyncio.to_thread(server.start)
        await _reached_again(database)
        assert await people.get(A) == Document(A, 1, {"n": 1})
        assert await people.replace(A, 1, {"n": 2})
    finally:
        await database.close()
        await asyncio.to_thread(server.stop)
