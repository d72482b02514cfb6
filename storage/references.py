"""Keyed references that stand for people where their tax id must not, and the keys that they are made with.

Whoever has no key cannot try tax ids until one fits. Each service has a key of its own, so what two of them hold about
somebody cannot be joined by the reference.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Final

SCORE: Final = b"razao.score"
"""What the key of the score service's references is derived for; the vault's messages to it carry them."""


def derived_key(ledger_key: bytes, purpose: bytes) -> bytes:
    """32 bytes for one purpose of at most 16 bytes, from the ledger's key."""
    return blake2b(b"", digest_size=32, key=ledger_key, person=purpose).digest()


def person_reference(key: bytes, tax_id: str) -> bytes:
    """The 16 bytes that stand for a tax id (digits and letters only): nobody without the key can try ids until one
    fits."""
    return blake2b(tax_id.encode(), digest_size=16, key=key, person=b"razao.person").digest()
