"""Tokens for one audience each: who gets them with which scopes, and that no other door takes them."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import asyncpg
import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key

from cluster import identity
from cluster.data import EngineError
from cluster.identity import SCORE_CLIENT, score_client_secret
from cluster.identity_wiring import Trust
from cluster.settings import OidcIssuer
from deployments.auth.issuers import Provider
from deployments.auth.keys import sign_token
from deployments.auth.tokens import InvalidToken
from deployments.identity_roles import AUDIENCES, OF_ROLE, SELF, Role, audience_of, only_audience
from deployments.tax_id import read_tax_id
from storage.references import person_reference
from tests.deployments.identity_house import CPF, PASSWORD, Browser, House, now, redirected

FORM = {"grant_type": "client_credentials"}


async def login(house: House, username: str, audience: str) -> httpx.Response:
    async with house.http() as http:
        body = {"username": username, "password": PASSWORD, "audience": audience}
        return await http.post("/auth/login", json=body)


async def taken_by(trust: Trust, token: str) -> set[str]:
    """The audiences whose door takes a token."""
    found = set()
    for audience in AUDIENCES:
        try:
            await trust.verifier(audience).verify(token.encode())
        except InvalidToken:
            continue
        found.add(audience)
    return found


async def system(house: House, *scopes: str) -> tuple[str, str]:
    """A client that acts for itself; its id and secret."""
    made = await identity.add_client(house.pool, house.plan.ledger_key, "Bank", [], scopes=scopes)
    return made["client_id"], made["client_secret"]


@pytest.mark.parametrize("audience", AUDIENCES)
async def test_a_login_gives_a_token_for_one_audience_and_says_whose_person_it_is(
    house: House, trust: Trust, audience: str
) -> None:
    await house.register()
    await house.prove()
    tokens = (await login(house, "ana", audience)).json()
    assert await taken_by(trust, tokens["access_token"]) == {audience}
    found = await trust.verifier(audience).verify(tokens["access_token"].encode())
    assert {audience_of(scope) for scope in found.scopes} == {audience}
    tax_id = read_tax_id(CPF, "", repeated=False)
    assert found.claims["person"] == person_reference(house.plan.ledger_key, tax_id).hex()
    if audience != "payments":
        assert found.scopes == {f"{audience}:self"}


async def test_a_refreshed_token_is_for_the_same_audience(house: House, trust: Trust) -> None:
    await house.register()
    await house.prove()
    tokens = (await login(house, "ana", "vault")).json()
    form = {"grant_type": "refresh_token", "refresh_token": tokens["refresh_token"], "client_id": "razao"}
    again = (await house.token(form)).json()
    assert again["scope"] == "vault:self"
    assert await taken_by(trust, again["access_token"]) == {"vault"}
    wider = await house.token({**form, "refresh_token": again["refresh_token"], "scope": "vault:self score:self"})
    assert wider.json()["error"] == "invalid_scope"


@pytest.mark.parametrize("audience", ["trace", "razao", "", "http://identity.test"])
async def test_a_login_for_nobody_is_refused(house: House, audience: str) -> None:
    await house.register()
    answer = await login(house, "ana", audience)
    assert (answer.status_code, answer.json()["field"]) == (400, "audience")


async def test_a_login_where_the_role_may_nothing_is_refused(house: House) -> None:
    await identity.add_user(house.pool, "olga", Role.AUDITOR, PASSWORD, length_min=15)
    assert (await login(house, "olga", "vault")).json()["scope"] == "vault:audit"
    assert (await login(house, "olga", "score")).status_code == 403


async def test_a_token_of_a_tier_does_nothing_to_passwords_and_keys(house: House) -> None:
    await house.register()
    await house.prove()
    token = (await login(house, "ana", "vault")).json()["access_token"]
    async with house.http(authorization=f"Bearer {token}") as http:
        body = {"current_password": PASSWORD, "new_password": PASSWORD + "!"}
        assert (await http.post("/auth/password", json=body)).status_code == 403
        assert (await http.get("/auth/access-keys")).status_code == 403
        assert (await http.get("/oauth/userinfo")).status_code == 403


@pytest.mark.parametrize("scope", ["vault:write score:write", "ledger:fund vault:write", "openid vault:write"])
async def test_scopes_of_several_audiences_are_no_request(house: House, scope: str) -> None:
    auth = await system(house, "ledger:fund", "vault:write", "score:write")
    answer = await house.token({**FORM, "scope": scope}, auth=auth)
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_scope")


@pytest.mark.parametrize(
    ("scopes", "asked", "audience"),
    [
        (["ledger:fund", "vault:write"], "vault:write", "vault"),
        (["ledger:fund", "vault:write"], "ledger:fund", "payments"),
        (["ledger:fund", "vault:write"], None, "payments"),
        (["vault:read:name", "vault:read:debts"], None, "vault"),
        (["score:read", "score:profile"], "score:read", "score"),
        (["score:extract"], None, "score"),
    ],
)
async def test_a_system_gets_a_token_for_the_audience_of_its_scopes(
    house: House, trust: Trust, scopes: list[str], asked: str | None, audience: str
) -> None:
    auth = await system(house, *scopes)
    answer = await house.token(FORM if asked is None else {**FORM, "scope": asked}, auth=auth)
    token = answer.json()["access_token"]
    assert await taken_by(trust, token) == {audience}
    found = await trust.verifier(audience).verify(token.encode())
    assert found.scopes == {one for one in scopes if audience_of(one) == audience and one in (asked or one)}
    assert "person" not in found.claims


async def test_what_a_person_may_with_their_own_is_not_passed_on(house: House, browser: Browser) -> None:
    with pytest.raises(EngineError, match="unknown scopes"):
        await house.client(scopes=["openid", "vault:self"])
    client_id, _ = await house.client()
    page = await browser.http.get(browser.address(client_id, scope="openid vault:self"))
    assert redirected(page)["error"] == "invalid_scope"
    tokens = await house.person()
    async with house.http(authorization=f"Bearer {tokens['access_token']}") as http:
        body = {"name": "mine", "scopes": ["score:self"]}
        assert (await http.post("/auth/access-keys", json=body)).status_code == 403


async def test_the_score_s_own_client_gets_debts_and_no_more(house: House, trust: Trust) -> None:
    auth = (SCORE_CLIENT, score_client_secret(house.plan.ledger_key))
    token = (await house.token({**FORM, "scope": "vault:read:debts"}, auth=auth)).json()["access_token"]
    found = await trust.verifier("vault").verify(token.encode())
    assert (found.subject, set(found.scopes)) == (SCORE_CLIENT, {"vault:read:debts"})
    for more in ("vault:read:name", "ledger:read"):
        assert (await house.token({**FORM, "scope": more}, auth=auth)).json()["error"] == "invalid_scope"
    assert (await house.token(FORM, auth=(SCORE_CLIENT, "rzs_guessed"))).json()["error"] == "invalid_client"
    kept = await house.pool.fetchval("SELECT secret FROM identity.clients WHERE client_id = $1", SCORE_CLIENT)
    assert auth[1].encode() not in bytes(kept)


async def test_a_ledger_from_before_the_tiers_gets_what_its_own_clients_need(house: House, trust: Trust) -> None:
    await house.register()
    await house.prove()
    await house.pool.execute("UPDATE identity.clients SET scopes = '{ledger:read}' WHERE client_id = 'razao'")
    await house.pool.execute("DELETE FROM identity.clients WHERE client_id = $1", SCORE_CLIENT)
    for _ in range(2):
        await identity.prepare(house.pool, house.plan.ledger_key, say=lambda _: None)
    tokens = (await login(house, "ana", "score")).json()
    form = {"grant_type": "refresh_token", "refresh_token": tokens["refresh_token"], "client_id": "razao"}
    assert (await house.token(form)).json()["scope"] == "score:self"
    changes = [action for action, subject in await house.audit() if subject == "razao"]
    assert changes.count("client.changed") == 1
    assert await _scopes(house.pool, SCORE_CLIENT) == ["vault:read:debts"]


async def _scopes(pool: asyncpg.Pool[Any], client_id: str) -> list[str]:
    return list(await pool.fetchval("SELECT scopes FROM identity.clients WHERE client_id = $1", client_id))


async def test_the_embedded_key_s_tokens_are_for_one_audience_too(house: House, trust: Trust) -> None:
    for audience in AUDIENCES:
        token = sign_token(house.plan.data.keys, "ana", "vault:self", audience, person="00")
        assert await taken_by(trust, token) == {audience}
        assert (await trust.verifier(audience).verify(token.encode())).claims["person"] == "00"
    assert await taken_by(trust, sign_token(house.plan.data.keys, "ana", "vault:self", "trace")) == set()


PROVIDER: dict[str, Any] = {
    "name": "bank", "issuer": "https://id.example", "audience": "ledger-api",
    "scopes": {"role": {"clerk": ["score:read"]}},
}  # fmt: skip


@contextlib.contextmanager
def served(document: bytes) -> Iterator[str]:
    """The address of a key set."""

    class Keys(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(document)

        def log_message(self, *_: object) -> None:
            """Nobody reads it."""

    with HTTPServer(("127.0.0.1", 0), Keys) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/jwks"
        finally:
            server.shutdown()
            thread.join()


async def test_an_outside_provider_opens_those_tiers_alone_that_an_operator_named(house: House) -> None:
    key = generate_private_key(65537, 2048)
    public = {**json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key())), "kid": "k", "use": "sig"}
    claims = {"iss": PROVIDER["issuer"], "sub": "clerk-1", "iat": now(), "exp": now() + 60, "role": "clerk"}

    def signed(audience: str) -> str:
        return jwt.encode({**claims, "aud": audience}, key, algorithm="RS256", headers={"kid": "k"})

    with served(json.dumps({"keys": [public]}).encode()) as jwks:
        provider = {**PROVIDER, "jwks": jwks, "tier_audiences": {"score": "score-api"}}
        settings = house.plan.settings.model_copy(update={"oidc_issuers": [OidcIssuer(**provider)]})
        trust = Trust(replace(house.plan, settings=settings), house.pool)
        found = {audience: await taken_by(trust, signed(audience)) for audience in ("ledger-api", "score-api", "vault")}
        assert found == {"ledger-api": {"payments"}, "score-api": {"score"}, "vault": set()}
        identity = await trust.verifier("score").verify(signed("score-api").encode())
    assert (identity.subject, set(identity.scopes)) == ("bank|clerk-1", {"score:read"})


@pytest.mark.parametrize(
    "changes",
    [
        {"tier_audiences": {"score": "ledger-api"}},
        {"tier_audiences": {"score": "x", "vault": "x"}},
        {"tier_audiences": {"score": ""}},
        {"tier_audiences": {"trace": "trace-api"}},
        {"scopes": {"role": {"clerk": ["vault:self"]}}},
        {"scopes": {"role": {"clerk": ["score:self"]}}},
        {"scopes": {"role": {"clerk": [SELF]}}},
    ],
)
def test_an_outside_provider_never_speaks_for_two_doors_at_once_or_for_a_tax_id(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"audience|tiers|scopes"):
        Provider(**{**PROVIDER, **changes})


def test_each_scope_of_a_role_is_for_one_known_audience() -> None:
    for role, scopes in OF_ROLE.items():
        assert {audience_of(scope) for scope in scopes} <= set(AUDIENCES), role
    assert only_audience(["openid", "identity:self", "ledger:read"]) == "payments"
    assert only_audience(["ledger:read", "score:read"]) is None
    assert not OF_ROLE[Role.SERVICE] & {"vault:self", "score:self", "vault:audit"}
    assert not OF_ROLE[Role.OPERATOR] & {"vault:read:name", "vault:read:debts", "score:profile", "score:extract"}
