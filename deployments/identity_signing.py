"""The signing keys in use: made, kept encrypted, and at hand for whoever makes a token (RFC 7517, 7516).

RS256, because every OpenID Connect client knows it (Core 15.1 asks for it). A private key leaves this module only
inside a JWE whose key follows from the ledger's.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from joserfc import jwe
from joserfc.jwk import KeySet, OctKey, RSAKey

from deployments.auth.tokens import KeysUnavailable
from storage.identity_keys import SigningKey, SigningKeys
from storage.listening import DATABASE_AWAY
from storage.references import derived_key

ALGORITHM = "RS256"
_BITS = 2048


def make_key(ledger_key: bytes) -> tuple[str, str, str]:
    """A new pair: kid, public JWK, private JWK in a JWE. Takes some 100 ms."""
    key = RSAKey.generate_key(_BITS, {"use": "sig", "alg": ALGORITHM}, auto_kid=True)
    kid = key.kid
    assert kid is not None  # noqa: S101 - its thumbprint
    header = {"alg": "dir", "enc": "A256GCM"}
    private = jwe.encrypt_compact(header, json.dumps(key.as_dict(private=True)).encode(), _wrapping(ledger_key))
    return kid, json.dumps(key.as_dict(private=False)), private


def _wrapping(ledger_key: bytes) -> OctKey:
    return OctKey.import_key(derived_key(ledger_key, b"razao.jwe"))


@dataclass(frozen=True, slots=True)
class _Active:
    since: datetime
    key: KeySet


class Signer:
    """The keys that sign, by time."""

    def __init__(self, keys: SigningKeys, ledger_key: bytes, *, clock: Callable[[], datetime] | None = None) -> None:
        self._store = keys
        self._wrapping = _wrapping(ledger_key)
        self._clock = clock or (lambda: datetime.now(UTC))
        self._active: list[_Active] = []
        self._public = b'{"keys": []}'

    async def refresh(self) -> None:
        """Read the keys again."""
        keys = await self._store.all()
        self._active = await asyncio.to_thread(lambda: [self._open(key) for key in keys if key.active_at is not None])
        self._public = jwks_of(keys)

    def current(self) -> KeySet:
        """The key that signs now, alone in its set, so that the token's header names it.

        Raises:
            KeysUnavailable: there is none.
        """
        now = self._clock()
        signing = [one for one in self._active if one.since <= now]
        if not signing:
            raise KeysUnavailable("there is no signing key")
        return max(signing, key=lambda one: one.since).key

    @property
    def jwks(self) -> bytes:
        """The public keys as everybody may have them."""
        return self._public

    def _open(self, key: SigningKey) -> _Active:
        plain = jwe.decrypt_compact(key.private, self._wrapping).plaintext
        assert plain is not None and key.active_at is not None  # noqa: S101, PT018
        return _Active(key.active_at, KeySet([RSAKey.import_key(json.loads(plain))]))


@dataclass(frozen=True, slots=True)
class StoredKeys:
    """The key set straight from the store, for a TokenVerifier."""

    keys: SigningKeys

    async def fetch(self) -> bytes:
        """Read it."""
        try:
            return jwks_of(await self.keys.all())
        except DATABASE_AWAY as error:
            raise KeysUnavailable("the signing keys cannot be read") from error


def jwks_of(keys: list[SigningKey]) -> bytes:
    """A JWKS (RFC 7517) of public keys."""
    return json.dumps({"keys": [json.loads(key.public) for key in keys]}).encode()
