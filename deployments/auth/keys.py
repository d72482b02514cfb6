"""Embedded mode's own key pair: made at first start, signs the tokens of `razao token`, verified through its JWKS file.

An identity provider takes its place by settings; nothing else changes, since both are met through a key set.
"""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Final

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from jwt.utils import base64url_encode

from deployments.auth.tokens import AUDIENCE, ISSUER
from storage import private_files

PRIVATE_FILE: Final = "signing-key.pem"
JWKS_FILE: Final = "jwks.json"
EXPIRES_IN_S_MAX: Final = 10 * 365 * 86_400


def ensure_keys(directory: Path) -> Path:
    """Make the key pair in `directory` unless it is there; returns the JWKS file's path.

    Two starts at once agree on one pair: whoever links its finished file first wins.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    private_file = directory / PRIVATE_FILE
    if not private_file.exists():
        pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        private_files.make(private_file, pem)
    private_file.chmod(0o600)
    jwks_file = directory / JWKS_FILE
    document = _jwks(_load(private_file))
    if not jwks_file.exists() or jwks_file.read_bytes() != document:
        private_files.replace(jwks_file, document)
    return jwks_file


def sign_token(
    directory: Path,
    sub: str,
    scope: str = "",
    audience: str = AUDIENCE,
    expires_in: int = 3600,
    *,
    issuer: str = ISSUER,
    person: str | None = None,
) -> str:
    """A token for `sub` that lives `expires_in` seconds, signed with the directory's key.

    `person`: the reference of the subject's tax id (hex), when it has one.

    Raises:
        FileNotFoundError: there is no key; see `ensure_keys`.
        ValueError: the subject is empty or the lifetime out of range.
    """
    if not 1 <= len(sub) <= 255 or not sub.isprintable():
        raise ValueError("the subject must be 1 to 255 printable characters")
    if not 1 <= expires_in <= EXPIRES_IN_S_MAX:
        raise ValueError(f"a token lives 1 to {EXPIRES_IN_S_MAX} seconds")
    key = _load(directory / PRIVATE_FILE)
    now = int(time.time())
    claims: dict[str, str | int] = {
        "iss": issuer,
        "aud": audience,
        "sub": sub,
        "scope": " ".join(scope.split()),
        "iat": now,
        "nbf": now,
        "exp": now + expires_in,
    }
    if person is not None:
        claims["person"] = person
    return jwt.encode(claims, key, algorithm="EdDSA", headers={"kid": _kid(key), "typ": "at+jwt"})


def _load(private_file: Path) -> Ed25519PrivateKey:
    key = load_pem_private_key(private_file.read_bytes(), password=None)
    if not isinstance(key, Ed25519PrivateKey):
        raise TypeError(f"{private_file} does not hold an Ed25519 key")
    return key


def _public_bytes(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def _kid(key: Ed25519PrivateKey) -> str:
    """The key's thumbprint (RFC 7638)."""
    x = base64url_encode(_public_bytes(key)).decode()
    canonical = json.dumps({"crv": "Ed25519", "kty": "OKP", "x": x}, separators=(",", ":"), sort_keys=True)
    return base64url_encode(hashlib.sha256(canonical.encode()).digest()).decode()


def _jwks(key: Ed25519PrivateKey) -> bytes:
    entry = {
        "kty": "OKP",
        "crv": "Ed25519",
        "x": base64url_encode(_public_bytes(key)).decode(),
        "kid": _kid(key),
        "use": "sig",
        "alg": "EdDSA",
    }
    return json.dumps({"keys": [entry]}, indent=1).encode() + b"\n"
