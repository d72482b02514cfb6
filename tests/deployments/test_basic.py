"""HTTP Basic against a service's own users: who comes in, who does not, and how soon a change holds."""

from __future__ import annotations

import asyncio
import time
from base64 import b64encode
from typing import Final

import httpx
import pytest

from cluster import trace as operator
from cluster.data import EngineError
from deployments.auth import basic
from deployments.auth.basic import Buckets, Pace
from storage.documents.opening import open_database
from tests.deployments.trace_house import CPF, PASSWORD, USER, House, open_house

ABOUT: Final = {"Razao-Tax-Id": CPF}
NEW_PASSWORD: Final = "outro cavalo na mesma pilha"


async def ask(house: House, password: str = PASSWORD, user: str = USER, address: str = "192.0.2.7") -> httpx.Response:
    async with house.http(address, None) as http:
        return await http.get("/trace/v1/person", headers=ABOUT, auth=httpx.BasicAuth(user, password))


def challenge(answer: httpx.Response) -> tuple[int, str, str]:
    return answer.status_code, answer.json()["type"], answer.headers["www-authenticate"]


BASIC: Final = 'Basic realm="trace", charset="UTF-8"'


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "Bearer eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJhIn0.c2ln",
        "Basic",
        "Basic !!!!",
        "Basic " + b64encode(b"no colon").decode(),
        "Basic " + b64encode(b"\xff\xfe:x").decode(),
        "Digest username=bureau",
        "Basic " + "A" * 3000,
    ],
)
async def test_what_is_no_user_and_password_is_told_to_be_basic(trace_house: House, authorization: str | None) -> None:
    async with trace_house.http(password=None) as http:
        headers = ABOUT if authorization is None else {**ABOUT, "authorization": authorization}
        answer = await http.get("/trace/v1/person", headers=headers)
    assert challenge(answer) == (401, "/problems/unauthenticated", BASIC)


async def test_a_wrong_password_an_unknown_and_a_disabled_user_are_answered_alike(trace_house: House) -> None:
    await trace_house.add_user("closed", PASSWORD)
    await trace_house.users.change("closed", disabled=True)
    answers = [
        await ask(trace_house, "wrong " + PASSWORD),
        await ask(trace_house, user="nobody"),
        await ask(trace_house, user="$gt"),
        await ask(trace_house, user="' OR ''='"),
        await ask(trace_house, user="closed"),
    ]
    assert {challenge(answer) for answer in answers} == {(401, "/problems/wrong-credentials", BASIC)}
    assert len({answer.json()["detail"] for answer in answers}) == 1
    assert trace_house.services.queries.waiting == 0


async def test_who_came_in_is_remembered_without_another_hash_and_without_the_password(
    trace_house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed = []
    verify = trace_house.passwords.verify

    async def counted(known: str | None, password: str) -> bool:
        hashed.append(1)
        return await verify(known, password)

    monkeypatch.setattr(trace_house.passwords, "verify", counted)
    both = await asyncio.gather(*(ask(trace_house) for _ in range(8)))
    assert {answer.status_code for answer in [*both, await ask(trace_house, user="BUREAU")]} == {200}
    assert len(hashed) == 2  # eight at once had it checked once; another spelling is another header
    kept = repr(trace_house.services.backend._remembered)
    assert PASSWORD not in kept
    assert b64encode(f"{USER}:{PASSWORD}".encode()).decode() not in kept


@pytest.mark.parametrize("how", ["disabled", "password"])
async def test_a_change_of_a_user_ends_what_is_remembered_with_the_next_look(trace_house: House, how: str) -> None:
    assert basic.FRESH_S < 1.0
    assert (await ask(trace_house)).status_code == 200
    if how == "disabled":
        await operator.set_enabled(trace_house.users, USER, enabled=False)
    else:
        await operator.set_password(trace_house.users, USER, NEW_PASSWORD, length_min=15)
    began = time.monotonic()
    while (answer := await ask(trace_house)).status_code == 200:
        assert time.monotonic() < began + 30
        await trace_house.services.traces.ping()
    assert answer.status_code == 401
    if how == "disabled":
        await operator.set_enabled(trace_house.users, USER, enabled=True)
        assert (await ask(trace_house)).status_code == 200
    else:
        assert (await ask(trace_house, NEW_PASSWORD)).status_code == 200


async def test_a_user_who_is_disabled_while_the_password_is_checked_does_not_come_in(
    trace_house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    verify = trace_house.passwords.verify

    async def slow(known: str | None, password: str) -> bool:
        await trace_house.users.change(USER, disabled=True)
        return await verify(known, password)

    monkeypatch.setattr(trace_house.passwords, "verify", slow)
    assert (await ask(trace_house)).status_code == 401


async def test_when_nobody_could_look_for_a_second_memory_alone_lets_nobody_in(
    trace_house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    from storage.documents import StoreAway

    assert (await ask(trace_house)).status_code == 200
    backend = trace_house.services.backend

    async def away(_: object) -> dict[bytes, int]:
        raise StoreAway("away")

    monkeypatch.setattr(backend._users, "versions", away)
    backend._looked -= basic.FRESH_S
    answer = await ask(trace_house)
    assert (answer.status_code, answer.json()["type"]) == (503, "/problems/unavailable")
    monkeypatch.undo()
    assert (await ask(trace_house)).status_code == 200


async def test_guessing_is_slowed_for_the_guesser_alone(database: str) -> None:
    pace = Pace(pair_burst=2, pair_drip_s=600, address_burst=3, address_drip_s=600)
    async with open_house(await open_database(database), pace=pace) as house:
        await house.add_user(USER, PASSWORD)
        assert [(await ask(house, f"wrong password {n}")).status_code for n in range(3)] == [401, 401, 429]
        refused = await ask(house)
        assert (refused.status_code, refused.json()["type"]) == (429, "/problems/too-many-attempts")
        assert int(refused.headers["retry-after"]) > 500
        assert [(await ask(house, user=f"n{n}")).status_code for n in range(2)] == [401, 429]
        assert {(await ask(house, address="192.0.2.8")).status_code for _ in range(4)} == {200}


def test_buckets_empty_with_time_and_make_room() -> None:
    buckets = Buckets(most=2)
    assert [buckets.take(("a",), 2, 10, 0.0) for _ in range(3)] == [0, 0, 10]
    assert buckets.take(("a",), 2, 10, 9.0) == pytest.approx(1)
    assert buckets.take(("a",), 2, 10, 10.0) == 0
    assert buckets.take(("b",), 2, 10, 10.0) == buckets.take(("c",), 2, 10, 10.0) == 0
    assert len(buckets._levels) == 2
    buckets.give_back(("c",))
    buckets.give_back(("z",))
    assert buckets.take(("c",), 1, 10, 10.0) == 0


async def test_the_operator_adds_changes_and_lists_users_and_is_told_what_cannot_be(trace_house: House) -> None:
    users = trace_house.users
    assert await operator.add_user(users, "Ana.Souza", PASSWORD, length_min=15) == {
        "username": "ana.souza", "disabled": False,
    }  # fmt: skip
    with pytest.raises(EngineError, match="taken"):
        await operator.add_user(users, "ANA.souza", PASSWORD, length_min=15)
    with pytest.raises(EngineError, match="at least 15"):
        await operator.add_user(users, "short", "short", length_min=15)
    with pytest.raises(EngineError, match="letters, digits"):
        await operator.add_user(users, "a b", PASSWORD, length_min=15)
    with pytest.raises(EngineError, match="nobody"):
        await operator.set_password(users, "nobody", PASSWORD, length_min=15)
    with pytest.raises(EngineError, match="nobody"):
        await operator.set_enabled(users, "nobody", enabled=False)
    await operator.set_enabled(users, "ANA.SOUZA", enabled=False)
    assert await operator.list_users(users) == [
        {"username": "ana.souza", "disabled": True},
        {"username": USER, "disabled": False},
    ]
    kept = repr(await users._users.scan(b"", 9))
    assert "argon2id" in kept
    assert PASSWORD not in kept
