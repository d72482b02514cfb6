"""Token verification under attack: whatever a stranger can make up proves nothing."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, SECP384R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key as generate_rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from deployments.auth.keys import ensure_keys, sign_token
from deployments.auth.tokens import InvalidToken, KeyAddress, KeyFile, KeysUnavailable, TokenVerifier, parse_jwks
from tests.conftest import free_port

ED: Final = Ed25519PrivateKey.generate()
OTHER_ED: Final = Ed25519PrivateKey.generate()
EC: Final = generate_private_key(SECP256R1())
RSA: Final = generate_rsa(65537, 2048)
_MAKERS: Final[dict[str, tuple[Any, Any]]] = {
    "EdDSA": (jwt.algorithms.OKPAlgorithm, ED),
    "ES256": (jwt.algorithms.ECAlgorithm, EC),
    "RS256": (jwt.algorithms.RSAAlgorithm, RSA),
    "PS256": (jwt.algorithms.RSAAlgorithm, RSA),
}


def entry(algorithm: str, **more: Any) -> dict[str, Any]:
    """A JWK of the key set, whose kid is the algorithm's name."""
    maker, key = _MAKERS[algorithm]
    return {**json.loads(maker.to_jwk(key.public_key())), "kid": algorithm, "alg": algorithm, "use": "sig", **more}


class Keys:
    """A key source that tells how often it was asked."""

    def __init__(self, *entries: dict[str, Any]) -> None:
        self.entries = list(entries)
        self.asked = 0
        self.away = False

    async def fetch(self) -> bytes:
        """The key set as it is now."""
        self.asked += 1
        await asyncio.sleep(0)
        if self.away:
            raise KeysUnavailable("away")
        return json.dumps({"keys": self.entries}).encode()


class Time:
    """A clock that tests move."""

    def __init__(self) -> None:
        self.passed = 0.0

    def wall(self) -> float:
        """Seconds since 1970."""
        return time.time() + self.passed

    def monotonic(self) -> float:
        """Seconds."""
        return self.passed


def verifier(*entries: dict[str, Any]) -> TokenVerifier:
    """A verifier of all four algorithms, or of the given keys."""
    return TokenVerifier(Keys(*(entries or tuple(map(entry, _MAKERS)))))


@dataclass(frozen=True)
class Ahead:
    """So many seconds from the moment at which the token is made: parameters are made long before."""

    seconds: int


def claims(**changes: Any) -> dict[str, Any]:
    """Good claims with changes; None takes a claim out."""
    now = int(time.time())
    changes = {name: now + value.seconds if isinstance(value, Ahead) else value for name, value in changes.items()}
    good = {
        "iss": "razao", "aud": "payments", "sub": "ana", "scope": "ledger:read ledger:write",
        "iat": now, "nbf": now, "exp": now + 60,
    }  # fmt: skip
    return {name: value for name, value in {**good, **changes}.items() if value is not None}


def token(algorithm: str = "EdDSA", key: Any = None, headers: dict[str, Any] | None = None, **changes: Any) -> bytes:
    """A signed token."""
    signer = key or _MAKERS[algorithm][1]
    made = jwt.encode(claims(**changes), signer, algorithm=algorithm, headers={"kid": algorithm, **(headers or {})})
    return made.encode()


def by_hand(header: dict[str, Any], body: Any, sign: Any) -> bytes:
    """A token that no honest library would make."""
    signed = b".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in (header, body))
    return signed + b"." + base64.urlsafe_b64encode(sign(signed)).rstrip(b"=")


@pytest.mark.parametrize("algorithm", list(_MAKERS))
async def test_a_good_token_says_who_and_what(algorithm: str) -> None:
    """Of each allowed algorithm."""
    identity = await verifier().verify(token(algorithm))
    assert identity.subject == "ana"
    assert identity.scopes == {"ledger:read", "ledger:write"}


@pytest.mark.parametrize(
    "changes",
    [
        {"iss": "mallory"}, {"iss": None}, {"iss": ["razao"]}, {"aud": "vault"}, {"aud": None}, {"aud": ["vault"]},
        {"aud": []}, {"exp": None}, {"exp": Ahead(-60)}, {"exp": "tomorrow"}, {"exp": True}, {"exp": 1e999},
        {"nbf": Ahead(60)}, {"nbf": "x"}, {"iat": Ahead(60)}, {"iat": None}, {"iat": "x"},
        {"sub": None}, {"sub": ""}, {"sub": "x" * 256}, {"sub": "a\x00b"}, {"sub": "a\nb"}, {"sub": 5},
        {"sub": ["ana"]},
        {"scope": ["ledger:operate"]}, {"scope": 5}, {"exp": {"a": 1}}, {"exp": 10**400},
    ],
)  # fmt: skip
async def test_a_token_with_wrong_claims_is_refused(changes: dict[str, Any]) -> None:
    """Though its signature is good."""
    try:
        made = token(**changes)
    except (TypeError, ValueError, OverflowError):
        made = by_hand({"alg": "EdDSA", "kid": "EdDSA", "typ": "JWT"}, claims(**changes), ED.sign)
    with pytest.raises(InvalidToken):
        await verifier().verify(made)


async def test_an_audience_among_others_is_enough() -> None:
    """RFC 7519, 4.1.3."""
    assert (await verifier().verify(token(aud=["vault", "payments"]))).subject == "ana"


async def test_clocks_may_differ_by_the_leeway_only() -> None:
    """Five seconds."""
    now = int(time.time())
    assert await verifier().verify(token(exp=now - 2))
    assert await verifier().verify(token(nbf=now + 3, iat=now + 3))
    with pytest.raises(InvalidToken):
        await verifier().verify(token(exp=now - 7))


def _public_pem(key: Any) -> bytes:
    pem: bytes = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return pem


@pytest.mark.parametrize(
    "algorithm",
    ["none", "None", "NONE", "", "HS256", "HS512", "RS512", "ES384", "ES256K", "Ed25519", None, 5, ["EdDSA"]],
)
async def test_only_listed_algorithms_count(algorithm: Any) -> None:
    """Unsigned, or signed with what is public."""
    signatures = (
        lambda _: b"",
        lambda data: hmac.digest(_public_pem(RSA), data, hashlib.sha256),
        lambda data: hmac.digest(json.dumps(entry("RS256")).encode(), data, hashlib.sha256),
        ED.sign,
    )
    for kid in _MAKERS:
        for sign in signatures:
            with pytest.raises(InvalidToken):
                await verifier().verify(by_hand({"alg": algorithm, "kid": kid, "typ": "JWT"}, claims(), sign))


async def test_an_algorithm_must_fit_its_key() -> None:
    """A key for one is none for another, even when both are allowed."""
    with pytest.raises(InvalidToken, match="fit"):
        await verifier().verify(token("PS256", headers={"kid": "RS256"}))
    with pytest.raises(InvalidToken, match="fit"):
        await verifier().verify(token("RS256", headers={"kid": "EdDSA"}))


async def test_a_key_brought_along_is_not_looked_at() -> None:
    """jwk, jku, x5u and x5c in the header."""
    stranger = {**json.loads(jwt.algorithms.OKPAlgorithm.to_jwk(OTHER_ED.public_key())), "kid": "EdDSA"}
    for headers in (
        {"jwk": stranger}, {"jku": "https://mallory.example/jwks.json"}, {"x5u": "https://mallory.example/"},
        {"x5c": ["AA"]},
    ):  # fmt: skip
        with pytest.raises(InvalidToken):
            await verifier().verify(token(key=OTHER_ED, headers=headers))
        assert (await verifier().verify(token(headers=headers))).subject == "ana"  # ignored, not believed


@pytest.mark.parametrize("kid", ["../../etc/passwd", "' OR 1=1", "", "x" * 1000, "eddsa"])
async def test_a_made_up_kid_finds_nothing(kid: str) -> None:
    """It is a name in our key set or nothing."""
    with pytest.raises(InvalidToken):
        await verifier().verify(token(headers={"kid": kid}))


async def test_headers_that_are_no_access_tokens_are_refused() -> None:
    """Critical extensions, other types, no kid."""
    for headers in ({"crit": ["b64"], "b64": False}, {"typ": "dpop+jwt"}, {"typ": "id+jwt"}):
        made = by_hand({"alg": "EdDSA", "kid": "EdDSA", **headers}, claims(), ED.sign)
        with pytest.raises(InvalidToken):
            await verifier().verify(made)
    others: tuple[Any, ...] = (None, 5, {})
    for kid in others:
        with pytest.raises(InvalidToken):
            await verifier().verify(by_hand({"alg": "EdDSA", "kid": kid}, claims(), ED.sign))


@pytest.mark.parametrize(
    "made",
    [b"", b".", b"..", b"a.b.c", b"a.b.c.d", b"\xff\xfe", b"e30.e30.", b"x" * 9000, b"e30.e30.e30", "ü.ü.ü".encode(),
     b"bnVsbA.bnVsbA.bnVsbA", b"W10.W10.W10", b"MQ.MQ.MQ"],
)  # fmt: skip
async def test_garbage_is_refused(made: bytes) -> None:
    """Without anything else happening."""
    with pytest.raises(InvalidToken):
        await verifier().verify(made)


async def test_a_changed_token_is_refused() -> None:
    """Every single character counts, but for the last one's unused bits."""
    made = token()
    for place in range(0, len(made) - 2, 7):
        changed = bytearray(made)
        changed[place] = ord("A") if changed[place] != ord("A") else ord("B")
        with pytest.raises(InvalidToken):
            await verifier().verify(bytes(changed))


async def test_a_claims_set_that_is_no_object_is_refused() -> None:
    """Though it is signed."""
    bodies: tuple[Any, ...] = ([], "x", 5, None)
    for body in bodies:
        with pytest.raises(InvalidToken):
            await verifier().verify(by_hand({"alg": "EdDSA", "kid": "EdDSA"}, body, ED.sign))


async def test_a_verified_token_is_remembered_until_it_expires() -> None:
    """And not longer."""
    clock, keys = Time(), Keys(entry("EdDSA"))
    known = TokenVerifier(keys, clock=clock.wall, monotonic=clock.monotonic)
    made = token()
    assert known.remembered(made) is None
    identity = await known.verify(made)
    assert known.remembered(made) is identity
    assert known.remembered(made[:-1] + b"x") is None
    clock.passed = 59
    assert known.remembered(made) is identity
    clock.passed = 70
    assert known.remembered(made) is None


async def test_memory_of_tokens_is_bounded() -> None:
    """The oldest go first."""
    known = TokenVerifier(Keys(entry("EdDSA")), remembered_max=3)
    made = [token(sub=f"s{number}") for number in range(5)]
    for one in made:
        await known.verify(one)
    assert [known.remembered(one) is not None for one in made] == [False, False, True, True, True]


async def test_a_new_key_is_fetched_but_not_as_often_as_strangers_wish() -> None:
    """At most one look in ten seconds for unknown kids; one look for all who wait."""
    clock, keys = Time(), Keys(entry("EdDSA"))
    known = TokenVerifier(keys, clock=clock.wall, monotonic=clock.monotonic)
    await asyncio.gather(*(known.verify(token()) for _ in range(20)))
    assert keys.asked == 1
    keys.entries.append(entry("ES256"))
    for _ in range(50):
        with pytest.raises(InvalidToken):
            await known.verify(token("ES256"))
    assert keys.asked == 1
    clock.passed = 11
    assert (await known.verify(token("ES256"))).subject == "ana"
    assert keys.asked == 2


async def test_a_withdrawn_key_counts_no_more_after_the_next_look() -> None:
    """Remembered tokens of it neither."""
    clock, keys = Time(), Keys(entry("EdDSA"), entry("ES256"))
    known = TokenVerifier(keys, clock=clock.wall, monotonic=clock.monotonic, keys_max_age_s=30)
    made, other = token(exp=int(time.time()) + 900), token("ES256", exp=int(time.time()) + 900)
    await known.verify(made)
    keys.entries.pop(0)
    clock.passed = 31
    await known.verify(other)  # an old set is looked at again meanwhile
    await asyncio.sleep(0.01)
    with pytest.raises(InvalidToken):
        await known.verify(made)


async def test_known_keys_serve_on_while_the_issuer_is_away() -> None:
    """And without any, nobody can tell: that is not the caller's fault."""
    clock, keys = Time(), Keys(entry("EdDSA"))
    known = TokenVerifier(keys, clock=clock.wall, monotonic=clock.monotonic, keys_max_age_s=30)
    await known.verify(token())
    keys.away = True
    clock.passed = 31
    assert (await known.verify(token(sub="rui"))).subject == "rui"
    nothing = Keys(entry("EdDSA"))
    nothing.away = True
    with pytest.raises(KeysUnavailable):
        await TokenVerifier(nothing).verify(token())


async def test_a_cancelled_caller_does_not_stop_the_look_for_others() -> None:
    """They share it."""
    keys = Keys(entry("EdDSA"))
    known = TokenVerifier(keys)
    first = asyncio.create_task(known.verify(token()))
    second = asyncio.create_task(known.verify(token()))
    await asyncio.sleep(0)
    first.cancel()
    assert (await second).subject == "ana"


def test_a_key_set_keeps_only_keys_that_may_sign() -> None:
    """Symmetric, weak, for encryption, of another curve, broken, or of another algorithm."""
    weak = generate_rsa(65537, 1024)  # noqa: S505 - that it is refused is the point
    wide = generate_private_key(SECP384R1())
    bad = [
        {"kty": "oct", "k": "c2VjcmV0", "kid": "oct", "alg": "HS256"},
        {**json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(weak.public_key())), "kid": "weak"},
        {**json.loads(jwt.algorithms.ECAlgorithm.to_jwk(wide.public_key())), "kid": "wide"},
        entry("EdDSA", kid="enc", use="enc"),
        entry("EdDSA", kid="named", alg="HS256"),
        entry("RS256", kid="crossed", alg="EdDSA"),
        {"kty": "OKP", "crv": "Ed25519", "x": "AA", "kid": "short"},
        {"kid": "empty"},
        entry("EdDSA", kid=5),
        "x",
    ]
    assert list(parse_jwks(json.dumps({"keys": [*bad, entry("ES256")]}).encode())) == ["ES256"]


@pytest.mark.parametrize("document", [b"", b"x", b"[]", b"{}", b'{"keys":5}', b'{"keys":{}}', b"\xff", b"null"])
def test_what_is_no_key_set_is_told_as_such(document: bytes) -> None:
    """KeysUnavailable, whatever came."""
    with pytest.raises(KeysUnavailable):
        parse_jwks(document)


async def test_a_key_address_that_does_not_answer_is_told_as_such() -> None:
    """Nobody listens there."""
    with pytest.raises(KeysUnavailable):
        await KeyAddress(f"http://127.0.0.1:{free_port()}/jwks.json").fetch()
    with pytest.raises(KeysUnavailable):
        await KeyFile(Path("/nowhere/jwks.json")).fetch()


async def test_embedded_keys_sign_what_their_file_verifies(tmp_path: Path) -> None:
    """The private one is its owner's alone; a second start keeps it."""
    directory = tmp_path / "keys"
    jwks = ensure_keys(directory)
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    assert ensure_keys(directory) == jwks
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before
    for path in directory.iterdir():
        assert path.stat().st_mode & 0o077 == 0
    assert b"PRIVATE" not in jwks.read_bytes()
    assert '"d"' not in jwks.read_text()
    known = TokenVerifier(KeyFile(jwks))
    identity = await known.verify(sign_token(directory, "eva", " ledger:read  ledger:fund ").encode())
    assert (identity.subject, identity.scopes) == ("eva", frozenset({"ledger:read", "ledger:fund"}))
    for wrong in (
        sign_token(directory, "eva", audience="vault"),
        sign_token(directory, "eva", issuer="mallory"),
    ):
        with pytest.raises(InvalidToken):
            await known.verify(wrong.encode())
    for sub, expires_in in (("", 60), ("a\n", 60), ("eva", 0), ("eva", -5), ("eva", 10**12)):
        with pytest.raises(ValueError, match=r"subject|lives"):
            sign_token(directory, sub, expires_in=expires_in)


def test_a_private_key_left_open_is_closed_again(tmp_path: Path) -> None:
    """Mode 0600 at each start."""
    ensure_keys(tmp_path)
    private = tmp_path / "signing-key.pem"
    private.chmod(0o644)
    ensure_keys(tmp_path)
    assert private.stat().st_mode & 0o777 == 0o600
