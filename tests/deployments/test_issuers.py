"""Tokens of several issuers at one door, and what an outside provider can never do."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key

from deployments.auth.issuers import Discovered, Issuers, OwnTokens, Provider
from deployments.auth.tokens import Identity, InvalidToken, KeysUnavailable, TokenVerifier

KEY = generate_private_key(65537, 2048)
ISSUER = "https://id.bank.example"


@dataclass
class Keys:
    """A key set at hand."""

    key: RSAPrivateKey

    async def fetch(self) -> bytes:
        """It."""
        entry = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(self.key.public_key()))
        return json.dumps({"keys": [{**entry, "kid": "k", "use": "sig"}]}).encode()


def provider(**changes: Any) -> Provider:
    """An outside issuer."""
    given: dict[str, Any] = {
        "name": "bank",
        "issuer": ISSUER,
        "audience": "payments",
        "scopes": {"realm_access.roles": {"payer": ["ledger:read", "ledger:write"]}},
        **changes,
    }
    return Provider(**given)


def door(one: Provider) -> Issuers:
    """A door that trusts it alone; its keys are at hand."""
    verifier = TokenVerifier(
        Keys(KEY), issuer=one.issuer, audience=one.audience, audience_claim=one.audience_claim, identify=one.identify
    )
    return Issuers({one.issuer: verifier})


def token(**changes: Any) -> bytes:
    """A token of the provider; None leaves a claim out."""
    now = int(time.time())
    claims: dict[str, Any] = {
        "iss": ISSUER, "aud": "payments", "sub": "ana", "iat": now, "exp": now + 60,
        "realm_access": {"roles": ["payer", "unknown"]}, **changes,
    }  # fmt: skip
    claims = {name: value for name, value in claims.items() if value is not None}
    return jwt.encode(claims, KEY, algorithm="RS256", headers={"kid": "k", "typ": "JWT"}).encode()


async def test_its_people_have_a_name_space_of_their_own_and_the_mapped_scopes() -> None:
    found = await door(provider()).verify(token())
    assert (found.subject, set(found.scopes)) == ("bank|ana", {"ledger:read", "ledger:write"})


async def test_its_own_scope_claim_gives_nothing() -> None:
    found = await door(provider()).verify(token(scope="ledger:operate identity:admin", realm_access=None))
    assert found.scopes == frozenset()


@pytest.mark.parametrize(
    "claims",
    [
        {"nonce": "n"}, {"at_hash": "h"}, {"c_hash": "h"}, {"token_use": "id"}, {"typ": "ID"}, {"typ": "Refresh"},
        {"aud": "other"}, {"aud": None}, {"iss": "https://evil.example"}, {"exp": 1}, {"sub": None},
    ],
)  # fmt: skip
async def test_an_id_token_or_a_token_for_others_is_refused(claims: dict[str, Any]) -> None:
    with pytest.raises(InvalidToken):
        await door(provider()).verify(token(**claims))


async def test_cognitos_access_tokens_have_a_client_for_an_audience() -> None:
    cognito = provider(
        audience="app-client", audience_claim="client_id", required={"token_use": "access"},
        scopes={"cognito:groups": {"payers": ["ledger:read"]}},
    )  # fmt: skip
    claims = {"aud": None, "client_id": "app-client", "token_use": "access", "cognito:groups": ["payers"]}
    assert set((await door(cognito).verify(token(**claims))).scopes) == {"ledger:read"}
    for changes in ({"client_id": "other"}, {"client_id": None}, {"token_use": "id"}, {"token_use": None}):
        with pytest.raises(InvalidToken):
            await door(cognito).verify(token(**{**claims, **changes}))


@pytest.mark.parametrize(
    "changes",
    [
        {"issuer": "http://id.bank.example"},
        {"jwks": "http://evil.example/keys"},
        {"jwks": "file:///etc/passwd"},
        {"audience": ""},
        {"name": "a|b"},
        {"name": ""},
        {"scopes": {"roles": {"x": ["identity:admin"]}}},
        {"scopes": {"roles": {"x": ["identity:self"]}}},
        {"scopes": {"roles": {"x": ["everything"]}}},
    ],
)
def test_a_description_that_opens_too_much_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - each says something else
        provider(**changes)


GOV: dict[str, Any] = {
    "assurance_claim": "assurance.level", "assurance_values": ["silver", "gold"], "tax_id_claim": "cpf",
    "scopes": {"realm_access.roles": {"payer": ["ledger:read", "vault:self"]}},
}  # fmt: skip


def reference(tax_id: str) -> str | None:
    """What stands for the one tax id that there is."""
    return "00ff" if tax_id == "52998224725" else None


async def seen(one: Provider, **claims: Any) -> tuple[Any, set[str]]:
    """For which person a token of it speaks, and with what scopes."""
    verifier = TokenVerifier(
        Keys(KEY), issuer=ISSUER, audience="payments", identify=partial(one.identify, reference=reference)
    )
    found = await verifier.verify(token(**claims))
    return found.claims.get("person"), set(found.scopes)


async def test_its_tokens_speak_for_a_tax_id_only_with_the_assurance_that_was_named() -> None:
    gold = {"cpf": "52998224725", "assurance": {"level": "gold"}}
    assert await seen(provider(**GOV), **gold) == ("00ff", {"ledger:read", "vault:self"})
    for changes in (
        {"assurance": {"level": "bronze"}}, {"assurance": {"level": "not gold"}}, {"assurance": {"level": None}},
        {"assurance": None}, {"cpf": None},
        {"cpf": "11144477735"}, {"cpf": ["52998224725", "52998224725"]},
    ):  # fmt: skip
        assert await seen(provider(**GOV), **{**gold, **changes, "person": "00ff"}) == (None, {"ledger:read"})
    assert await seen(provider(), **gold, person="00ff") == (None, {"ledger:read", "ledger:write"})


@pytest.mark.parametrize("left_out", ["assurance_claim", "assurance_values", "tax_id_claim"])
def test_an_assurance_in_part_is_refused(left_out: str) -> None:
    given = {name: value for name, value in GOV.items() if name not in {left_out, "scopes"}}
    with pytest.raises(ValueError, match="needed together"):
        provider(**given)


@pytest.mark.parametrize("raw", [b"", b"x", b"a.b", b"a.b.c", b"a.e30.c", b"a.W10.c", b"a." + b"W" * 9000 + b".c"])
async def test_what_is_no_token_is_refused_before_anything_is_asked(raw: bytes) -> None:
    with pytest.raises(InvalidToken):
        await door(provider()).verify(raw)


async def test_metadata_at_an_address_that_answers_nothing_is_no_key_set() -> None:
    from tests.conftest import free_port

    with pytest.raises(KeysUnavailable):
        await Discovered(f"http://127.0.0.1:{free_port()}").fetch()


@dataclass
class List:
    """Revocations at hand."""

    fresh: bool = True
    marks: frozenset[str] = frozenset()

    def revoked(self, marks: Any) -> bool:
        """Whether one of them is there."""
        return not self.marks.isdisjoint(marks)


async def test_a_stale_list_of_revocations_lets_nobody_in() -> None:
    revocations = List()
    own = OwnTokens(TokenVerifier(Keys(KEY), issuer=ISSUER), revocations)
    one = token(sid="s", jti="j", client_id="c")
    assert isinstance(await own.verify(one), Identity)
    assert own.remembered(one) is not None
    revocations.fresh = False
    assert own.remembered(one) is None
    with pytest.raises(KeysUnavailable):
        await own.verify(one)


@pytest.mark.parametrize("mark", ["sid:s", "jti:j", "client:c"])
async def test_a_token_is_revoked_by_any_of_its_marks(mark: str) -> None:
    own = OwnTokens(TokenVerifier(Keys(KEY), issuer=ISSUER), List(marks=frozenset({mark})))
    with pytest.raises(InvalidToken, match="revoked"):
        await own.verify(token(sid="s", jti="j", client_id="c"))
