"""The score service on the whole engine: tokens of our own identity service, both doors, and the vault behind its own.

Everybody here comes in as they would outside: a person who registers and logs in, programs with secrets of their own.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import time
from dataclasses import dataclass
from typing import Any, Final

import httpx
import pytest
from validate_docbr import CPF

from cluster.ray_node import RayNode
from tests.deployments.identity_house import PASSWORD
from tests.deployments.score_house import PROFILE
from tests.deployments.vault_house import debt
from tests.deployments.vault_house import person as kept
from tests.integration.conftest import TiersEngine

pytestmark = [pytest.mark.engine, pytest.mark.timeout(400)]

WAIT_S: Final = 60.0


@dataclass
class Person:
    """Somebody with an account at the identity service."""

    tax_id: str
    username: str
    engine: TiersEngine

    def token(self, audience: str) -> str:
        """What a login for an audience gives."""
        body = {"username": self.username, "password": PASSWORD, "audience": audience}
        with self.engine.http() as http:
            answer = http.post("/auth/login", json=body)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["access_token"])


@pytest.fixture
def person(tiers_engine: TiersEngine) -> Person:
    tax_id = str(CPF().generate())
    username = f"score-{tax_id}"
    body = {"username": username, "password": PASSWORD, "name": "Ana Souza", "tax_id": tax_id}
    with tiers_engine.http() as http:
        assert http.post("/auth/register", json=body).status_code == 201
    tiers_engine.prove(username, tax_id)
    return Person(tax_id, username, tiers_engine)


def program(engine: TiersEngine, *scopes: str) -> tuple[str, str]:
    """A program with a secret of its own: its id, and a token."""
    words = [word for scope in scopes for word in ("--scope", scope)]
    client = json.loads(engine.razao("clients", "add", "A program", *words, "--json").stdout)
    login = httpx.BasicAuth(client["client_id"], client["client_secret"])
    form = {"grant_type": "client_credentials", "scope": " ".join(scopes)}
    with engine.http() as http:
        answer = http.post("/oauth/token", data=form, auth=login)
    assert answer.status_code == 200, answer.text
    return client["client_id"], answer.json()["access_token"]


def signed(engine: TiersEngine, scope: str) -> str:
    """A token as `razao token` prints it."""
    return engine.token("source", scope, audience=scope.partition(":")[0])


def scored(http: httpx.Client) -> dict[str, Any]:
    answer = http.get("/score/v1/score")
    assert answer.status_code == 200, answer.text
    return {**answer.json(), "request_id": answer.headers["x-request-id"]}


def scored_when(http: httpx.Client, *, considered: bool) -> dict[str, Any]:
    """The first score that is made with or without debts."""
    deadline = time.monotonic() + WAIT_S
    while True:
        found = scored(http)
        if found["debts_considered"] is considered:
            return found
        assert time.monotonic() < deadline, found


def test_a_grant_lets_debts_into_the_score_and_its_end_takes_them_out(
    tiers_engine: TiersEngine, person: Person
) -> None:
    engine = tiers_engine
    about: dict[str, Any] = {"Razao-Tax-Id": person.tax_id}
    bank = engine.http(program(engine, "score:read")[1], about)
    with engine.http(signed(engine, "score:write"), about) as http:
        assert http.put("/score/v1/profile", json=PROFILE).status_code == 200
    with engine.vault(signed(engine, "vault:write"), about) as http:
        assert http.put("/vault/v1/person", json=kept(debt(amount=500_000_000))).status_code == 204
    with bank, engine.vault(person.token("vault"), about) as own:
        without = scored_when(bank, considered=False)
        grant = {"grantee": "razao-score", "fields": ["debts"], "purpose": "credit-score", "expires_in": 600}
        given = own.post("/vault/v1/grants", json=grant)
        assert given.status_code == 201, given.text
        with_them = scored_when(bank, considered=True)
        assert with_them["score"] < without["score"]
        asked = own.get("/vault/v1/person/last-query")
        assert asked.json()["user"] == "razao-score"
        assert own.delete(f"/vault/v1/grants/{given.json()['id']}").status_code == 204
        assert scored_when(bank, considered=False)["score"] == without["score"]
    lines = [json.loads(line) for line in (engine.data / "log" / "vault.log").read_text().splitlines()]
    reads = [line for line in lines if line.get("subject") == "razao-score"]
    chained = {line["correlation_id"] for line in reads}
    scores = [json.loads(line) for line in (engine.data / "log" / "score.log").read_text().splitlines()]
    assert chained & {line.get("request_id") for line in scores}
    assert all(line["request_id"] != line["correlation_id"] for line in reads)


def test_a_person_sees_their_own_and_lets_a_bank_see_the_profile_for_a_while(
    tiers_engine: TiersEngine, person: Person
) -> None:
    engine, about = tiers_engine, {"Razao-Tax-Id": person.tax_id, "Razao-Purpose": "loan"}
    with engine.http(signed(engine, "score:write"), about) as http:
        assert http.put("/score/v1/profile", json=PROFILE).status_code == 200
    grantee, token = program(engine, "score:profile")
    with engine.http(token, about) as bank, engine.http(person.token("score"), about) as own:
        assert own.get("/score/v1/profile").json()["name"] == PROFILE["name"]
        assert bank.get("/score/v1/profile").json()["type"] == "/problems/no-consent"
        consent = {"grantee": grantee, "purpose": "loan", "expires_in": 600}
        given = own.post("/score/v1/consents", json=consent).json()["id"]
        assert bank.get("/score/v1/profile").json()["name"] == PROFILE["name"]
        assert bank.get("/score/v1/score").json()["type"] == "/problems/forbidden"  # another scope
        assert own.delete(f"/score/v1/consents/{given}").status_code == 204
        assert bank.get("/score/v1/profile").json()["type"] == "/problems/no-consent"
        seen = own.get("/score/v1/accesses").json()["items"]
        assert [(one["user"], one["what"], one["consent"]) for one in seen[:1]] == [(grantee, "profile", given)]
        assert seen[0]["address"] == "127.0.0.1"
        with engine.http(person.token("payments"), about) as payments:
            assert payments.get("/score/v1/profile").status_code == 401


def test_the_vault_dies_and_scores_go_on_without_it_until_it_is_back(tiers_engine: TiersEngine, person: Person) -> None:
    engine = tiers_engine
    about: dict[str, Any] = {"Razao-Tax-Id": person.tax_id}
    writing = engine.http(signed(engine, "score:write"), about)
    with writing, engine.http(signed(engine, "score:read"), about) as bank:
        assert writing.put("/score/v1/profile", json=PROFILE).status_code == 200
        with engine.vault(signed(engine, "vault:write vault:grant"), about) as vault:
            assert vault.put("/vault/v1/person", json=kept()).status_code == 204
            grant = {"grantee": "razao-score", "fields": ["debts"], "purpose": "credit-score", "expires_in": 600}
            assert vault.post("/vault/v1/grants", json=grant).status_code == 201
        scored_when(bank, considered=True)
        for pid in _replicas(engine, "vault"):
            os.kill(pid, signal.SIGKILL)
        assert writing.put("/score/v1/profile", json=PROFILE).status_code == 200  # nothing is kept of the score before
        scored_when(bank, considered=False)
        scored_when(bank, considered=True)
    asyncio.run(_breaker_shows(engine))


def _replicas(engine: TiersEngine, application: str) -> list[int]:
    """Pids of an application's replicas."""
    return [one["pid"] for one in engine.look()["processes"] if f"ServeReplica:{application}:" in one["name"]]


async def _breaker_shows(engine: TiersEngine) -> None:
    sessions = RayNode(engine.data / "ray").sessions
    targets = json.loads((sessions / "prom_metrics_service_discovery.json").read_text())[0]["targets"]
    wanted = re.compile(rb'ray_razao_breaker_failures_total\{[^}]*service="vault"[^}]*\} [1-9]')
    async with asyncio.timeout(WAIT_S), httpx.AsyncClient(trust_env=False) as client:
        found = b""
        while not wanted.search(found) or b"ray_razao_breaker_state" not in found:
            pages = [await client.get(f"http://{target}/metrics") for target in targets]
            found = b"".join(page.content for page in pages)
            await asyncio.sleep(0.5)
