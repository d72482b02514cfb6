"""The doors of the three tiers on a whole engine: each opens with its own key, from where it should, in no other way.

What a tier does behind its door is told by its own tests; here is who gets in, who does not, and what is left of it in
the logs. Every refusal is compared with the same request made properly, so that none is refused for another reason.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
from typing import Final

import httpx
import pytest

from cluster import processes
from cluster.demo import invented_cpf
from cluster.ray_node import RayNode
from tests.deployments.identity_house import PASSWORD
from tests.integration.conftest import TiersEngine

pytestmark = [pytest.mark.engine, pytest.mark.timeout(400)]

CPF: Final = "52998224725"
FORMATTED: Final = "529.982.247-25"
PERSON: Final = {"vault": "/vault/v1/person/last-query", "score": "/score/v1/last-query", "trace": "/trace/v1/person"}
SCOPES: Final = {"payments": "ledger:read", "vault": "vault:audit vault:write", "score": "score:read score:profile"}
ABOUT: Final = {"Razao-Tax-Id": CPF}
FORGED: Final = {
    "X-Forwarded-For": "127.0.0.1", "Forwarded": "for=127.0.0.1", "X-Real-IP": "127.0.0.1",
    "Razao-Client-Address": "127.0.0.1", "Razao-Gateway": "guessed", "Razao-Client-Scheme": "https",
}  # fmt: skip


@pytest.fixture(scope="module")
def engine(tiers_engine: TiersEngine) -> TiersEngine:
    return tiers_engine


def problem_of(answer: httpx.Response) -> str:
    """The name of the problem that an answer is."""
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    return str(answer.json()["type"]).rpartition("/")[2]


def ask(engine: TiersEngine, tier: str, *, authorization: str | None = None) -> httpx.Response:
    """A tier's door asked for somebody, with an `Authorization` header or without."""
    headers = {"Razao-Tax-Id": CPF, "Razao-Purpose": "credit"}
    if authorization is not None:
        headers["Authorization"] = authorization
    with engine.vault(None, headers) if tier == "vault" else engine.http(None, headers) as client:
        return client.get(PERSON[tier])


def test_the_engine_says_of_each_application_whether_it_answers(engine: TiersEngine) -> None:
    found = engine.status()
    assert found["applications"] == dict.fromkeys(("payments", "identity", "vault", "score", "trace"), True)
    assert (found["ready"], found["vault_url"]) == (True, engine.vault_url)


# -- whose token ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tier", ["vault", "score"])
def test_a_door_takes_tokens_of_its_own_audience_alone(engine: TiersEngine, tier: str) -> None:
    everything = " ".join(SCOPES.values())
    for audience in SCOPES:
        token = engine.token("bank", everything, audience=audience)
        answer = ask(engine, tier, authorization=f"Bearer {token}")
        if audience == tier:
            assert answer.status_code not in {401, 403}, answer.text
        else:
            assert (answer.status_code, problem_of(answer)) == (401, "unauthenticated")
            assert "not meant for this service" in answer.json()["detail"]


@pytest.mark.parametrize("audience", ["vault", "score"])
def test_the_ledger_takes_no_token_of_a_tier(engine: TiersEngine, audience: str) -> None:
    for meant, status in (("payments", 200), (audience, 401)):
        with engine.http(engine.token("bank", "ledger:read ledger:operate", audience=meant)) as client:
            assert client.get("/v1/accounts/1/balance").status_code in ({404} if status == 200 else {401})


@pytest.mark.parametrize("tier", ["vault", "score", "trace"])
def test_a_login_opens_what_it_was_made_for_alone(engine: TiersEngine, tier: str) -> None:
    username = f"ana-{tier}"
    with engine.http() as http:
        tax_id = invented_cpf(random.Random(tier))
        body = {"username": username, "password": PASSWORD, "name": "Ana", "tax_id": tax_id}
        assert http.post("/auth/register", json=body).status_code == 201
        login = {"username": username, "password": PASSWORD, "audience": "vault"}
        refused = http.post("/auth/login", json=login)
        assert (refused.status_code, problem_of(refused)) == (403, "unproven")
        engine.prove(username, tax_id)
        tokens = {}
        for audience in ("payments", "vault", "score"):
            login = {"username": username, "password": PASSWORD, "audience": audience}
            tokens[audience] = http.post("/auth/login", json=login).raise_for_status().json()
    for audience, given in tokens.items():
        answer = ask(engine, tier, authorization=f"Bearer {given['access_token']}")
        assert (answer.status_code == 401) is (audience != tier), (audience, answer.text)
    assert tokens["vault"]["scope"] == "vault:self"


@pytest.mark.parametrize("tier", ["vault", "score"])
def test_a_password_opens_no_door_that_wants_a_token(engine: TiersEngine, tier: str) -> None:
    answer = ask(engine, tier, authorization="Basic cmF6YW86c2VjcmV0LXNlY3JldA==")
    assert (answer.status_code, problem_of(answer)) == (401, "unauthenticated")
    assert answer.headers["www-authenticate"].startswith("Bearer")


def test_no_token_opens_the_trace(engine: TiersEngine) -> None:
    for audience in SCOPES:
        token = engine.token("bank", " ".join(SCOPES.values()), audience=audience)
        answer = ask(engine, "trace", authorization=f"Bearer {token}")
        assert (answer.status_code, problem_of(answer)) == (401, "unauthenticated")
        assert answer.headers["www-authenticate"].startswith("Basic")


@pytest.mark.parametrize("tier", PERSON)
def test_nobody_gets_in_without_anything(engine: TiersEngine, tier: str) -> None:
    assert ask(engine, tier).status_code == 401


# -- from where -------------------------------------------------------------------------------------------------------


def _auditor(engine: TiersEngine) -> str:
    return engine.token("auditor", SCOPES["vault"], audience="vault")


@pytest.mark.parametrize("path", ["/vault", "/vault/v1/person", "/vault/v1/healthz", "/vault/v1/docs"])
def test_the_vault_is_not_behind_the_public_door(engine: TiersEngine, path: str) -> None:
    with engine.http(_auditor(engine), ABOUT) as public:
        answer = public.get(path)
    assert (answer.status_code, problem_of(answer)) == (404, "not-found")
    for other in ("/score/v1/model", "/trace/v1/person", "/v1/accounts/1", "/auth/healthz"):
        with engine.vault(_auditor(engine)) as vault:
            assert vault.get(other).status_code == 404


def test_an_address_that_is_not_allowed_is_refused_whatever_it_says(engine: TiersEngine) -> None:
    for headers in ({}, FORGED):
        with engine.vault(_auditor(engine), {**ABOUT, **headers}, source="127.0.0.2") as client:
            answer = client.get(PERSON["vault"])
        assert (answer.status_code, problem_of(answer)) == (403, "forbidden")
    with engine.vault(_auditor(engine), ABOUT) as client:
        assert client.get(PERSON["vault"]).status_code not in {401, 403}


def test_without_a_client_certificate_the_vault_says_nothing(engine: TiersEngine) -> None:
    with engine.vault(_auditor(engine), certificate=False) as client, pytest.raises(httpx.TransportError):
        client.get(PERSON["vault"])


@pytest.mark.parametrize("tier", PERSON)
def test_a_replica_reached_directly_refuses_whatever_it_is_told(engine: TiersEngine, tier: str) -> None:
    plan = engine.plan()
    direct = f"http://127.0.0.1:{getattr(plan, f'{tier}_port')}"
    credentials = engine.token("auditor", SCOPES.get(tier, ""), audience=tier)
    headers = {**FORGED, "Authorization": f"Bearer {credentials}", "Razao-Tax-Id": CPF}
    answer = httpx.get(direct + PERSON[tier], headers=headers, trust_env=False)
    assert (answer.status_code, problem_of(answer)) == (403, "forbidden")


@pytest.mark.parametrize("tier", PERSON)
def test_serves_own_port_leads_to_no_tier(engine: TiersEngine, tier: str) -> None:
    port = engine.plan().application_port
    headers = {"Razao-Tax-Id": CPF, "Authorization": f"Bearer {_auditor(engine)}", "X-Forwarded-For": "127.0.0.1"}
    answer = httpx.get(f"http://127.0.0.1:{port}{PERSON[tier]}", headers=headers, trust_env=False)
    assert (answer.status_code, problem_of(answer)) == (403, "forbidden")


def test_the_gateway_s_word_is_not_enough_for_an_address_that_is_not_allowed(engine: TiersEngine) -> None:
    """The second look: even a request with the gateway's secret is judged by the address that it comes with."""
    plan = engine.plan()
    answers = []
    for address in ("127.0.0.2", "", "127.0.0.1"):
        headers = {"Razao-Gateway": plan.secrets.gateway_secret, "Razao-Client-Address": address, "Razao-Tax-Id": CPF}
        headers["Authorization"] = f"Bearer {_auditor(engine)}"
        url = f"http://127.0.0.1:{plan.vault_port}{PERSON['vault']}"
        answers.append(httpx.get(url, headers=headers, trust_env=False).status_code)
    assert answers[:2] == [403, 403]
    assert answers[2] not in {401, 403}


# -- under load -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def person(engine: TiersEngine) -> dict[str, str]:
    """Somebody whom the vault knows."""
    cpf = re.sub(r"\D", "", invented_cpf(random.Random(20)))
    headers = {"Razao-Tax-Id": cpf, "Razao-Purpose": "onboarding"}
    with engine.vault(engine.token("bank", "vault:write", audience="vault"), headers) as vault:
        body = {"name": "Ana Souza", "address": "Rua A, 1", "debts": []}
        assert vault.put("/vault/v1/person", json=body).status_code < 300
    return headers


async def test_load_gives_a_tier_another_replica(engine: TiersEngine, person: dict[str, str]) -> None:
    """And every answer is one, but the refusals of what is too much, which say when to come again."""
    token = engine.token("ana", "vault:self", audience="vault", tax_id=person["Razao-Tax-Id"])
    headers = {"Host": "vault", "Authorization": f"Bearer {token}", **person}
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    request = f"GET /vault/v1/person/accesses HTTP/1.1\r\n{lines}\r\n".encode()
    tls, enough, statuses = engine.vault_tls(), asyncio.Event(), set()

    async def knock() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", engine.vault_port, ssl=tls)
        while not enough.is_set():
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            await reader.readexactly(int(head.partition("content-length: ")[2].split()[0]))
            statuses.add(head.split()[1])
            assert head.split()[1] == "200" or "retry-after: " in head
        writer.close()

    async with asyncio.timeout(120), asyncio.TaskGroup() as group:
        for _ in range(60):
            group.create_task(knock())
        while len(await asyncio.to_thread(replicas, engine, "vault")) < 2:  # noqa: ASYNC110 - other processes
            await asyncio.sleep(0.5)
        enough.set()
    assert statuses <= {"200", "429"}


def replicas(engine: TiersEngine, application: str) -> list[int]:
    """Pids of an application's replicas."""
    running = processes.listing(engine.plan().secrets.engine, RayNode(engine.plan().data.ray))
    return [one.pid for one in running if one.name.startswith(f"ServeReplica:{application}:")]


# -- what is left of it -----------------------------------------------------------------------------------------------


def test_no_log_has_a_tax_id_a_token_or_a_password(engine: TiersEngine, person: dict[str, str]) -> None:
    """Of everything above, and of a request whose address has a tax id in it."""
    with engine.http(engine.token("bank", "score:read", audience="score")) as score:
        score.get(f"/score/v1/{CPF}", params={"tax_id": FORMATTED})
    with engine.vault(_auditor(engine)) as vault:
        vault.get(f"/vault/v1/grants/{CPF}")
    files = [*(engine.data / "log").iterdir(), engine.log, *(engine.data / "ray").rglob("*.log")]
    files += [
        *(engine.data / "ray").rglob("*.err"),
        *(engine.data / "ray").rglob("*.out"),
        engine.data / "run" / "gateway.log",
    ]
    text = "\n".join(file.read_text(errors="replace") for file in files if file.is_file())
    assert "/vault/v1/person/accesses" in text
    for secret in (CPF, FORMATTED, person["Razao-Tax-Id"], PASSWORD, engine.plan().secrets.gateway_secret):
        assert secret not in text
    assert not re.search(r"eyJ[A-Za-z0-9_-]{10,}\.eyJ", text)


async def test_metrics_show_each_tier_how_its_breakers_stand_and_what_a_shard_has_room_for(engine: TiersEngine) -> None:
    sessions = RayNode(engine.data / "ray").sessions
    found = await asyncio.to_thread((sessions / "prom_metrics_service_discovery.json").read_text)
    targets = json.loads(found)[0]["targets"]
    wanted = [rf'ray_razao_http_requests_total{{[^}}]*application="{tier}"[^}}]*}} [1-9]' for tier in PERSON]
    breakers = ("identity", "vault")
    wanted += [
        rf'ray_razao_breaker_state{{[^}}]*application="score"[^}}]*service="{one}"[^}}]*}} 0' for one in breakers
    ]
    shard = r'ray_razao_shard_{}{{[^}}]*shard="shard-001"[^}}]*}} [0-9]'
    wanted += [shard.format(name) for name in ("ids", "ids_max", "ids_window_s", "clock_ahead_s", "in_flight_max")]
    text = ""
    async with asyncio.timeout(90), httpx.AsyncClient(trust_env=False) as client:
        while not all(re.search(pattern, text) for pattern in wanted):
            # Ray collects each metric in its own time.
            text = "".join([(await client.get(f"http://{target}/metrics")).text for target in targets])
            await asyncio.sleep(0.5)
