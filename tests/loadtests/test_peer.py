"""The peer is a fair opponent only if it is correct: once per id, never below zero, the same answer again.

Both of its variants run in process against an embedded PostgreSQL, so that what the benchmark compares with is proved.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cluster.postgres import PostgresServer
from cluster.processes import free_ports
from loadtests import traffic
from loadtests.peers import postgres_ledger
from loadtests.peers.runner import create_schema

ACCOUNTS = {1024: "ana", 2048: "bia", 3072: "caio", 4096: "davi"}
START = 1_000

Headers = dict[str, str]
Sign = Callable[..., Headers]


@pytest.fixture(scope="module")
def dsn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = PostgresServer(tmp_path_factory.mktemp("peer"), free_ports(1)[0])
    server.start()
    try:
        asyncio.run(create_schema(server.dsn))
        yield server.dsn
    finally:
        server.stop()


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A JWKS file with an EdDSA and an ES256 key, and the private keys by algorithm."""
    private: dict[str, Any] = {"EdDSA": Ed25519PrivateKey.generate(), "ES256": generate_private_key(SECP256R1())}
    jwks = []
    for name, key in private.items():
        algorithm = jwt.get_algorithm_by_name(name)
        jwks.append(json.loads(algorithm.to_jwk(key.public_key())) | {"kid": name, "alg": name})
    path = tmp_path_factory.mktemp("keys") / "jwks.json"
    path.write_text(json.dumps({"keys": jwks}))
    return path, private


@pytest.fixture
def sign(keys: tuple[Path, dict[str, Any]]) -> Sign:
    def headers(sub: str = "ana", scope: str = "ledger:write", algorithm: str = "EdDSA", **claims: Any) -> Headers:
        content = {"sub": sub, "scope": scope, "iss": "razao", "aud": "payments", "exp": time.time() + 60, **claims}
        token = jwt.encode(content, keys[1][algorithm], algorithm, {"kid": algorithm})
        return {"Authorization": f"Bearer {token}"}

    return headers


@pytest.fixture(params=sorted(postgres_ledger.VARIANTS))
async def client(
    request: pytest.FixtureRequest,
    dsn: str,
    keys: tuple[Path, dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[httpx.AsyncClient]:
    """The application on fresh accounts of START centavos."""
    connection = await asyncpg.connect(dsn)
    await connection.execute("TRUNCATE account, transfer, entry")
    rows = [(account, owner, START) for account, owner in ACCOUNTS.items()]
    await connection.copy_records_to_table("account", records=rows)
    await connection.close()
    for name, value in {
        "PEER_DSN": dsn,
        "PEER_JWKS": str(keys[0]),
        "PEER_ISSUER": "razao",
        "PEER_AUDIENCE": "payments",
        "PEER_VARIANT": request.param,
    }.items():
        monkeypatch.setenv(name, value)
    app = postgres_ledger.create_app()
    transport = httpx.ASGITransport(app)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://peer") as made:
        yield made


def body(amount: int = 100, debit: int = 1024, credit: int = 2048, id_: str | None = None) -> dict[str, Any]:
    id_ = id_ or (next(traffic.ids()) + traffic.slot(str(debit).encode())).decode()
    return {"id": id_, "debit_account": str(debit), "credit_account": str(credit), "amount": amount}


async def balances(dsn: str) -> list[int]:
    connection = await asyncpg.connect(dsn)
    try:
        return [row["balance"] for row in await connection.fetch("SELECT balance FROM account ORDER BY id")]
    finally:
        await connection.close()


async def test_a_transfer_moves_money_and_writes_two_entries(client: httpx.AsyncClient, dsn: str, sign: Sign) -> None:
    sent = body(300)
    answer = await client.post("/v1/transfers", json=sent, headers=sign())
    assert answer.status_code == 201
    assert answer.json() | sent == answer.json()
    assert answer.json()["status"] == "settled"
    assert await balances(dsn) == [700, 1300, 1000, 1000]
    connection = await asyncpg.connect(dsn)
    entries = await connection.fetch("SELECT account, amount, balance FROM entry ORDER BY account")
    await connection.close()
    assert [tuple(entry) for entry in entries] == [(1024, -300, 700), (2048, 300, 1300)]


async def test_a_repeated_id_moves_money_once_and_answers_the_same(
    client: httpx.AsyncClient, dsn: str, sign: Sign
) -> None:
    sent = body(300)
    answers = await asyncio.gather(*(client.post("/v1/transfers", json=sent, headers=sign()) for _ in range(8)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.content for answer in answers}) == 1
    assert sum("Idempotency-Replayed" in answer.headers for answer in answers) == 7
    assert await balances(dsn) == [700, 1300, 1000, 1000]


async def test_an_id_with_other_content_is_a_conflict(client: httpx.AsyncClient, dsn: str, sign: Sign) -> None:
    sent = body(300)
    await client.post("/v1/transfers", json=sent, headers=sign())
    answer = await client.post("/v1/transfers", json=sent | {"amount": 301}, headers=sign())
    assert answer.status_code == 409
    assert await balances(dsn) == [700, 1300, 1000, 1000]


@pytest.mark.parametrize(
    ("sent", "problem"),
    [
        (body(START + 1), "insufficient-funds"),
        (body(debit=1024, credit=1024), "same-account"),
        (body(credit=9999), "unknown-account"),
        (body(credit=2**63 + 1), "unknown-account"),
    ],
)
async def test_what_the_book_refuses_is_422_and_stays_refused(
    client: httpx.AsyncClient, dsn: str, sign: Sign, sent: dict[str, Any], problem: str
) -> None:
    first = await client.post("/v1/transfers", json=sent, headers=sign())
    again = await client.post("/v1/transfers", json=sent, headers=sign())
    assert (first.status_code, again.status_code) == (422, 422)
    assert first.json()["type"] == again.json()["type"] == f"/problems/{problem}"
    assert "Idempotency-Replayed" in again.headers
    assert await balances(dsn) == [START] * 4


async def test_only_the_owner_or_an_operator_may_debit(client: httpx.AsyncClient, dsn: str, sign: Sign) -> None:
    sent = body(1)
    assert (await client.post("/v1/transfers", json=sent, headers=sign("bia"))).status_code == 403
    assert await balances(dsn) == [START] * 4
    operator = sign("root", "ledger:write ledger:operate")
    assert (await client.post("/v1/transfers", json=sent, headers=operator)).status_code == 201
    assert (await client.post("/v1/transfers", json=sent, headers=sign("bia"))).status_code == 403


async def test_tokens_count_only_when_the_jwks_vouches_for_them(client: httpx.AsyncClient, sign: Sign) -> None:
    async def status(headers: Headers) -> int:
        return (await client.post("/v1/transfers", json=body(1), headers=headers)).status_code

    stranger = jwt.encode(
        {"sub": "ana", "scope": "ledger:write", "iss": "razao", "aud": "payments", "exp": time.time() + 60},
        Ed25519PrivateKey.generate(),
        "EdDSA",
        {"kid": "EdDSA"},
    )
    assert await status(sign(algorithm="EdDSA")) == 201
    assert await status(sign(algorithm="ES256")) == 201
    assert await status({}) == 401
    assert await status({"Authorization": f"Bearer {stranger}"}) == 401
    assert await status({"Authorization": "Bearer nonsense"}) == 401
    assert await status(sign(exp=time.time() - 60)) == 401
    assert await status(sign(iss="somebody")) == 401
    assert await status(sign(aud="somewhere")) == 401
    assert await status(sign(scope="ledger:read")) == 403


@pytest.mark.parametrize("change", [{"amount": 0}, {"amount": 1.5}, {"amount": "7"}, {"id": "x"}, {"more": 1}])
async def test_a_malformed_body_is_refused(
    client: httpx.AsyncClient, dsn: str, sign: Sign, change: dict[str, Any]
) -> None:
    assert (await client.post("/v1/transfers", json=body(1) | change, headers=sign())).status_code == 422
    assert await balances(dsn) == [START] * 4


async def test_concurrent_transfers_lose_nothing_and_overdraw_nothing(
    client: httpx.AsyncClient, dsn: str, sign: Sign
) -> None:
    rng = random.Random(11)
    operator = sign("root", "ledger:write ledger:operate")
    sent = []
    for _ in range(150):
        debit, credit = rng.sample(sorted(ACCOUNTS), 2)
        sent.append(body(rng.randrange(1, 700), debit, credit))
    sent += sent[::5]
    answers = await asyncio.gather(*(client.post("/v1/transfers", json=one, headers=operator) for one in sent))
    assert {answer.status_code for answer in answers} == {201, 422}
    after = await balances(dsn)
    assert sum(after) == START * len(ACCOUNTS)
    assert min(after) >= 0
    expected = dict.fromkeys(ACCOUNTS, START)
    settled = {one["id"]: one for one, answer in zip(sent, answers, strict=True) if answer.status_code == 201}
    for one in settled.values():
        expected[int(one["debit_account"])] -= one["amount"]
        expected[int(one["credit_account"])] += one["amount"]
    assert after == list(expected.values())


async def test_the_balance_is_what_was_moved(client: httpx.AsyncClient, sign: Sign) -> None:
    await client.post("/v1/transfers", json=body(250), headers=sign())
    answer = await client.get("/v1/accounts/1024/balance", headers=sign())
    assert answer.json() == {"posted": 750, "pending": 0, "available": 750}
    assert (await client.get("/v1/accounts/2048/balance", headers=sign())).status_code == 403
    assert (await client.get("/v1/accounts/77/balance", headers=sign())).status_code == 404
