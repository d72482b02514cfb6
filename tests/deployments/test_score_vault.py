"""The score service and the vault, over HTTP: debts under a grant, and what happens while the vault is away.

Both applications and the identity service are the real ones, over one PostgreSQL, each on a port of its own. What the
gateway adds to a request on its way is added here.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from cluster.identity import SCORE_CLIENT, score_client_secret
from cluster.identity_wiring import Trust
from cluster.vault_wiring import score_changes
from deployments import identity, vault
from deployments.breaker import Breaker
from deployments.listener import Listener
from deployments.score_changes import Follower
from deployments.score_debts import ClientTokens, VaultDebts
from deployments.score_scoring import KEPT_S
from storage.notation import rfc3339
from storage.references import person_reference
from tests.deployments.identity_house import House as IdentityHouse
from tests.deployments.score_house import CPF, GATEWAY, LEDGER_KEY, House, score_house
from tests.deployments.vault_house import VaultHouse, debt

OPEN_S = 0.05
THRESHOLD = 5


class Door:
    """An application on a port of its own, behind what the gateway does; it can go away, come back, and hang."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._listener = Listener(self._through, "127.0.0.1", 0)
        self.port = 0
        self.answering = asyncio.Event()
        self.answering.set()

    async def _through(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.answering.wait()
        own = [(b"razao-gateway", GATEWAY.encode()), (b"razao-client-address", b"127.0.0.1")]
        await self._app({**scope, "headers": [*scope["headers"], *own]}, receive, send)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def open(self) -> None:
        self._listener = Listener(self._through, "127.0.0.1", self.port)
        await self._listener.start()
        self.port = self._listener.port

    async def close(self) -> None:
        await self._listener.drain(1.0, idle_s=0.0)


@dataclass
class Both:
    """The two tiers and what is between them."""

    score: House
    vault: VaultHouse
    vault_door: Door
    identity_door: Door
    debts: VaultDebts
    tokens: ClientTokens
    follower: Follower

    async def caught_up(self) -> None:
        """Return once every message of the vault's has been acted upon."""
        while await self.vault.owner.fetchval("SELECT count(*) FROM vault.outbox"):
            await self.follower.step()


@pytest.fixture
def database(identity_database: str) -> str:
    """Identity and vault are in one, as in an engine."""
    return identity_database


@pytest.fixture
async def both(house: IdentityHouse, trust: Trust, vault_house: VaultHouse, tmp_path: Path) -> AsyncIterator[Both]:
    app = vault.create_app(replace(vault_house.services, verifier=trust.verifier("vault")))
    doors = Door(app), Door(identity.create_app(house.services))
    for door in doors:
        await door.open()
    # It is the breaker's deadline that ends a call, not the client's own.
    patient = httpx.AsyncClient(trust_env=False, timeout=300)
    async with patient as http, score_house(house.plan.dsn, tmp_path) as scores:
        tokens = ClientTokens(
            http, f"{doors[1].url}/oauth/token", SCORE_CLIENT, score_client_secret(LEDGER_KEY),
            Breaker("identity", threshold=THRESHOLD, open_s=OPEN_S),
        )  # fmt: skip
        breaker = Breaker("vault", threshold=THRESHOLD, open_s=OPEN_S)
        debts = VaultDebts(http, doors[0].url, tokens, breaker, deadline_s=10.0)
        scores.services.debts = debts
        scores.clock.now = time.time_ns()  # as the vault's
        await scores.write()
        follower = Follower(await score_changes(house.plan), scores.services.profiles)
        found = Both(scores, vault_house, *doors, debts, tokens, follower)
        yield found
        await follower.close()
    for door in doors:
        await door.close()


async def considered(both: Both) -> tuple[bool, int]:
    found = await both.score.score()
    return found["debts_considered"], found["score"]


async def test_debts_count_under_the_persons_grant_and_a_change_of_them_reaches_the_next_score(both: Both) -> None:
    assert not (await considered(both))[0]
    await both.vault.keep()
    assert not (await considered(both))[0]  # somebody is there, and has granted nothing
    grant = await both.vault.grant("debts", expires_in=600)
    await both.caught_up()
    known, clean = await considered(both)
    assert known
    profile = await both.score.services.profiles.get(person_reference(both.score.services.key, CPF))
    assert profile is not None
    assert profile.derived is not None
    (listed,) = (await both.vault.self_().get("/grants")).json()["items"]
    assert rfc3339(profile.derived.at) < rfc3339(profile.derived.until) <= listed["expires_at"]

    owed = [debt(1, amount=300_000_000), debt(2, amount=10**15, disputed=True)]
    assert (await both.vault.source().send("PATCH", "/person", {"debts": owed})).status_code == 204
    assert await considered(both) == (True, clean)  # what is kept stands until the message has come
    await both.caught_up()
    known, indebted = await considered(both)
    assert known
    assert indebted < clean
    assert (await both.vault.source().send("PATCH", "/person", {"remove": ["d-1"]})).status_code == 204
    await both.caught_up()
    assert await considered(both) == (True, clean)  # of a debt in dispute nothing is counted

    assert (await both.vault.self_().send("DELETE", f"/grants/{grant}")).status_code == 204
    await both.caught_up()
    assert not (await considered(both))[0]


async def test_the_vaults_record_has_the_number_of_the_request_that_the_score_was_made_for(both: Both) -> None:
    await both.vault.keep(debt())
    await both.vault.grant("debts")
    async with both.score.http(**{"x-request-id": "the-first-one"}) as http:
        await http.get("/score/v1/score")
    (read,) = [row for row in await both.vault.record() if row["action"] == "read"]
    assert (read["caller"], read["purpose"], read["decision"]) == (SCORE_CLIENT, "credit-score", "answered")
    assert read["correlation"] == "the-first-one"
    assert read["request"] != "the-first-one"


async def test_nothing_of_a_debt_is_in_the_store_or_in_the_log(both: Both, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    logging.getLogger("httpcore").setLevel(logging.INFO)  # it would log what it reads; nobody turns that on here
    sentinel = debt(1, id="d-secret", creditor="Sentinel Bank", contract="C-secret", amount=987_654_321)
    await both.vault.keep(sentinel)
    await both.vault.grant("debts")
    assert (await considered(both))[0]
    await both.vault_door.close()
    both.score.clock.later(KEPT_S)
    assert not (await considered(both))[0]  # a failure says nothing either
    await both.vault_door.open()
    texts = await both.score.everything(), "\n".join(record.getMessage() for record in caplog.records)
    for text in texts:
        assert text
        for secret in ("d-secret", "Sentinel", "C-secret", "987654321", CPF):
            assert secret not in text


async def test_while_the_vault_is_away_scores_are_made_without_it_and_the_breaker_opens_half_opens_and_closes(
    both: Both,
) -> None:
    await both.vault.keep(debt())
    await both.vault.grant("debts")
    await both.caught_up()
    assert (await considered(both))[0]
    both.score.clock.later(KEPT_S)
    await both.vault_door.close()
    breaker = both.debts.breaker
    for number in range(1, THRESHOLD + 1):
        assert not (await considered(both))[0]
        assert breaker.failures == number
    assert (breaker.state, breaker.openings) == ("opened", 1)

    deadline = time.monotonic() + 30
    while breaker.openings == 1:  # once its time is over one call is let through, fails, and opens it again
        assert not (await considered(both))[0]
        assert time.monotonic() < deadline
    assert (breaker.state, breaker.failures) == ("opened", THRESHOLD + 1)

    await both.vault_door.open()
    while not (await considered(both))[0]:
        assert time.monotonic() < deadline
    assert breaker.state == "closed"
    assert both.tokens.breaker.failures == 0


async def test_a_vault_that_hangs_is_waited_for_until_the_deadline_and_no_longer(both: Both) -> None:
    await considered(both)  # with a token
    both.score.clock.later(KEPT_S)
    both.vault_door.answering.clear()
    both.debts._deadline_s = 0.05
    for _ in range(THRESHOLD):
        assert not (await considered(both))[0]  # answered, while the vault still hangs
    assert both.debts.breaker.failures == THRESHOLD
    assert both.debts.breaker.state == "opened"
    both.vault_door.answering.set()


async def test_while_no_token_can_be_had_the_vault_is_not_blamed(both: Both) -> None:
    await both.identity_door.close()
    for _ in range(THRESHOLD):
        assert not (await considered(both))[0]
    assert (both.tokens.breaker.state, both.tokens.breaker.failures) == ("opened", THRESHOLD)
    assert (both.debts.breaker.state, both.debts.breaker.failures) == ("closed", 0)
    await both.identity_door.open()


async def test_a_token_that_is_not_taken_any_more_is_replaced_at_once(both: Both) -> None:
    await both.vault.keep()
    await both.vault.grant("debts")
    both.tokens._token, both.tokens._good_until = "withdrawn", time.monotonic() + 600
    assert (await considered(both))[0]
    assert both.tokens._token != "withdrawn"


async def test_an_answer_that_makes_no_sense_is_a_failure_of_the_vault(both: Both) -> None:
    body = b""

    async def nonsense(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": body})

    both.vault_door._app = nonsense
    bodies = (b"", b"[]", b'{"debts":[{"amount":"1"}]}', b'{"debts":[{"amount":-1}]}', b"{}")
    for number, body in enumerate(bodies, 1):  # noqa: B007 - the vault answers with it
        assert not (await considered(both))[0]
        assert both.debts.breaker.failures == number
