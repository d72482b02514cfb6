"""Tokens of several issuers at one door: the embedded key, our own identity service, and any OpenID Connect provider.

What a token says of its issuer chooses who verifies it, and nothing else: the chosen verifier checks `iss` once more
under the signature. An outside provider's people live in a name space of their own (`name|sub`), so that no provider
can speak for somebody else's accounts, and have the scopes that the operator mapped from their claims, no others.
They speak for a tax id (`person`) only where the operator has said by what claim the provider proves it.
"""

from __future__ import annotations

import binascii
import json
from base64 import urlsafe_b64decode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from deployments.auth.tokens import (
    TOKEN_LENGTH_MAX,
    Identity,
    InvalidToken,
    KeyAddress,
    KeysUnavailable,
    TokenVerifier,
)
from deployments.identity_roles import OF_PROVEN

SCOPES_OF_OUTSIDERS: Final = frozenset(
    {
        "ledger:read", "ledger:write", "ledger:fund", "ledger:operate", "ledger:audit",
        "vault:read:name", "vault:read:address", "vault:read:debts", "vault:write", "vault:grant", "vault:audit",
        "score:read", "score:profile", "score:write", "score:extract",
    }
)  # fmt: skip
"""All but what a person may with their own data: that takes a tax id that the provider is trusted to prove."""
Reference = Callable[[str], str | None]
"""The claim `person` for a tax id; none for what is no tax id."""
_TIERS: Final = frozenset({"vault", "score"})
_LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})


class Verifier(Protocol):
    """Whoever tells whom a token speaks for."""

    def remembered(self, token: bytes) -> Identity | None:
        """The identity of a token that was verified before, at once."""
        ...

    async def verify(self, token: bytes) -> Identity:
        """Who the token speaks for.

        Raises:
            InvalidToken: nobody.
            KeysUnavailable: it cannot be told now.
        """
        ...


class Revocations(Protocol):
    """Which access tokens must stop before their time."""

    @property
    def fresh(self) -> bool:
        """Whether the list is one to go by."""
        ...

    def revoked(self, marks: Sequence[str]) -> bool:
        """Whether a token with these marks was revoked."""
        ...


class Issuers:
    """Several verifiers by issuer. Refuses a token whose issuer is none of them, naming no names."""

    def __init__(self, verifiers: Mapping[str, Verifier]) -> None:
        self._verifiers = dict(verifiers)
        self._all = tuple(self._verifiers.values())

    def remembered(self, token: bytes) -> Identity | None:
        """The identity of a token that one of them verified before."""
        for verifier in self._all:
            if (found := verifier.remembered(token)) is not None:
                return found
        return None

    async def verify(self, token: bytes) -> Identity:
        """Have it verified by its issuer's verifier."""
        verifier = self._verifiers.get(issuer_of(token))
        if verifier is None:
            raise InvalidToken("The token's issuer is not trusted here")
        return await verifier.verify(token)


def issuer_of(token: bytes) -> str:
    """What a token says of its issuer; nothing is proven by it.

    Raises:
        InvalidToken: it is not a JWT.
    """
    parts = token.split(b".")
    if len(token) > TOKEN_LENGTH_MAX or len(parts) != 3:
        raise InvalidToken("The token is not a JWT")
    try:
        claims = json.loads(urlsafe_b64decode(parts[1] + b"=" * (-len(parts[1]) % 4)))
    except (ValueError, binascii.Error, RecursionError):
        raise InvalidToken("The token is not a JWT") from None
    issuer = claims.get("iss") if isinstance(claims, dict) else None
    return issuer if isinstance(issuer, str) else ""


class OwnTokens:
    """Our identity service's access tokens, those that were revoked refused."""

    def __init__(self, verifier: TokenVerifier, revocations: Revocations) -> None:
        self._verifier = verifier
        self._revocations = revocations

    def remembered(self, token: bytes) -> Identity | None:
        """One that was verified before and that nobody has revoked since; a stale list of revocations vouches for
        none."""
        found = self._verifier.remembered(token)
        if found is None or not self._revocations.fresh or self._revocations.revoked(marks_of(found.claims)):
            return None
        return found

    async def verify(self, token: bytes) -> Identity:
        """Verify it, and look whether it was revoked."""
        identity = await self._verifier.verify(token)
        if not self._revocations.fresh:
            raise KeysUnavailable("revocations cannot be read")
        if self._revocations.revoked(marks_of(identity.claims)):
            raise InvalidToken("The token was revoked")
        return identity


def marks_of(claims: Mapping[str, Any]) -> tuple[str, ...]:
    """By what an access token of ours may be revoked. `proof` stops those that speak for a tax id, no others."""
    kinds = (("sid", "sid"), ("jti", "jti"), ("client", "client_id"), ("proof", "proof"))
    return tuple(f"{kind}:{claims[claim]}" for kind, claim in kinds if claim in claims)


# -- outside providers ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Provider:
    """An outside issuer as the operator has described it.

    `scopes`: claim (dots lead into objects) → value → scopes that it gives. `audience_claim`: `aud`, or what stands in
    for it (Cognito's access tokens have `client_id`). `required`: claims that must have just this value.
    `tier_audiences`: vault and score, where its tokens open them, → the audience that they must have for it.
    `assurance_claim`: where it says how sure it is of the person; with one of `assurance_values` there, `tax_id_claim`
    holds a tax id that is proven to be theirs. Without all three its tokens prove none, whatever they say.
    """

    name: str
    issuer: str
    audience: str
    scopes: Mapping[str, Mapping[str, Sequence[str]]]
    jwks: str | None = None
    audience_claim: str = "aud"
    required: Mapping[str, Any] = field(default_factory=dict)
    tier_audiences: Mapping[str, str] = field(default_factory=dict)
    assurance_claim: str | None = None
    assurance_values: Sequence[str] = ()
    tax_id_claim: str | None = None

    def __post_init__(self) -> None:
        """Refuse what would open more than was meant.

        Raises:
            ValueError: which part, and why.
        """
        if not self.name.isidentifier() or not self.name.isascii():
            raise ValueError(f"the name {self.name!r} must be a word")
        for url in (self.issuer, self.jwks or self.issuer):
            if not _is_safe(url):
                raise ValueError(f"{url} must be an https address")
        audiences = [self.audience, *self.tier_audiences.values()]
        if not all(audiences) or len(set(audiences)) != len(audiences):
            raise ValueError("an audience is needed, and another one for each tier")
        if not self.tier_audiences.keys() <= _TIERS:
            raise ValueError(f"tokens open these tiers alone: {', '.join(sorted(_TIERS))}")
        parts = (self.assurance_claim, self.assurance_values, self.tax_id_claim)
        if any(parts) and not all(parts):
            raise ValueError("assurance_claim, assurance_values and tax_id_claim are needed together")
        given = {scope for values in self.scopes.values() for scopes in values.values() for scope in scopes}
        allowed = SCOPES_OF_OUTSIDERS | OF_PROVEN if self.tax_id_claim else SCOPES_OF_OUTSIDERS
        if not given <= allowed:
            raise ValueError(f"unknown scopes: {', '.join(sorted(given - allowed))}")

    def identify(
        self, claims: Mapping[str, Any], reference: Reference = lambda _: None
    ) -> tuple[str, frozenset[str], Mapping[str, Any]]:
        """Subject, scopes and claims that go by a verified token; `person` among these is of our own making alone.

        Raises:
            InvalidToken: it is no access token, or lacks what is required.
        """
        # What only ID tokens carry (OpenID Connect Core 2, 3.1.3.6), and how Keycloak and Cognito mark theirs.
        if not {"nonce", "at_hash", "c_hash"}.isdisjoint(claims) or claims.get("token_use", "access") != "access":
            raise InvalidToken("The token is not an access token")
        if claims.get("typ", "Bearer") != "Bearer":
            raise InvalidToken("The token is not an access token")
        if any(claims.get(name) != value for name, value in self.required.items()):
            raise InvalidToken("The token lacks a claim that is required here")
        scopes: set[str] = set()
        for path, values in self.scopes.items():
            for value in _values(claims, path):
                scopes.update(values.get(value, ()))
        ours = {name: value for name, value in claims.items() if name != "person"}
        person = self._person(claims, reference)
        if person is None:
            scopes -= OF_PROVEN
        else:
            ours["person"] = person
        return f"{self.name}|{claims['sub']}", frozenset(scopes), ours

    def _person(self, claims: Mapping[str, Any], reference: Reference) -> str | None:
        if self.assurance_claim is None or self.tax_id_claim is None:
            return None
        tax_ids = _values(claims, self.tax_id_claim, words=False)
        found = _values(claims, self.assurance_claim, words=False)  # "not gold" is not "gold"
        if len(tax_ids) != 1 or set(self.assurance_values).isdisjoint(found):
            return None
        return reference(tax_ids[0])

    def opens(self, tier: str | None) -> bool:
        """Whether its tokens open a tier, or the ledger (None)."""
        return tier is None or tier in self.tier_audiences

    def verifier(self, tier: str | None = None, reference: Reference = lambda _: None) -> TokenVerifier:
        """Verifies its tokens for the ledger, or for a tier that it opens."""
        audience = self.audience if tier is None else self.tier_audiences[tier]
        keys = KeyAddress(self.jwks) if self.jwks is not None else Discovered(self.issuer)
        return TokenVerifier(
            keys,
            issuer=self.issuer,
            audience=audience,
            audience_claim=self.audience_claim,
            identify=partial(self.identify, reference=reference),
        )


@dataclass(frozen=True, slots=True)
class Discovered:
    """A key set whose address the issuer's metadata names (OpenID Connect Discovery 4)."""

    issuer: str

    async def fetch(self) -> bytes:
        """Get the metadata, then the key set."""
        metadata_url = self.issuer.rstrip("/") + "/.well-known/openid-configuration"
        document = await KeyAddress(metadata_url).fetch()
        try:
            metadata = json.loads(document)
            issuer, address = metadata["issuer"], metadata["jwks_uri"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise KeysUnavailable("the issuer's metadata cannot be read") from error
        if issuer != self.issuer or not isinstance(address, str) or not _is_safe(address):
            raise KeysUnavailable("the issuer's metadata speaks for another issuer, or names no safe address")
        return await KeyAddress(address).fetch()


def _is_safe(url: str) -> bool:
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        return False
    return bool(host) and (parts.scheme == "https" or (parts.scheme == "http" and host in _LOOPBACK))


def _values(claims: Mapping[str, Any], path: str, *, words: bool = True) -> list[str]:
    """The strings under a claim: a list's items, or a text's words as in `scope`, or without `words` the text."""
    found: Any = claims.get(path)
    if found is None:
        found = claims
        for name in path.split("."):
            found = found.get(name) if isinstance(found, Mapping) else None
    if isinstance(found, str):
        return found.split() if words else [found]
    return [value for value in found if isinstance(value, str)] if isinstance(found, list) else []
