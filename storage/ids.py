"""128-bit ids: UUIDv7 made by clients or by us, UUIDv8 derived from an idempotency key.

Every id says where it lies: its last three hexadecimal digits are the slot of the account whose shard decides it (the
debited one; of a deposit the credited one). So an id belongs to one shard on any number of shards, that shard alone
sees to it that it is used once, and whoever has an id knows whom to ask.

A UUIDv7 carries its own time, so an id older than the window in which ids are remembered can be refused. A derived id
carries none: its promise is the window.
"""

from __future__ import annotations

import hashlib
import os
import re
from typing import Final

_PATTERN: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_MASK64: Final = 2**64 - 1
_VERSION_MASK: Final = 0xF000
_VARIANT_CLEAR: Final = 0x3FFFFFFFFFFFFFFF
_VARIANT: Final = 0x8000000000000000
_SLOT_MASK: Final = 0xFFF
_V7: Final = 0x7000
_V8: Final = 0x8000

Id = tuple[int, int]
"""The high and the low 64 bits."""


def uuid7(now_ms: int) -> Id:
    """A fresh UUIDv7 (RFC 9562, 5.7) for a moment in ms since 1970."""
    random = os.urandom(10)
    hi = ((now_ms & 0xFFFFFFFFFFFF) << 16) | _V7 | (int.from_bytes(random[:2], "big") & 0x0FFF)
    lo = (int.from_bytes(random[2:], "big") & _VARIANT_CLEAR) | _VARIANT
    return hi, lo


def derive(*parts: str, key: bytes = b"") -> Id:
    """The UUIDv8 that stands for `parts`, such as (sub, idempotency key): equal parts, equal id. Without the ledger's
    `key`, up to 64 bytes, nobody can tell the id of somebody else's parts."""
    digest = hashlib.blake2b(digest_size=16, key=key, person=b"razao.id")
    for part in parts:
        data = part.encode()
        digest.update(len(data).to_bytes(4, "big"))
        digest.update(data)
    value = int.from_bytes(digest.digest(), "big")
    hi = ((value >> 64) & ~_VERSION_MASK & _MASK64) | _V8
    lo = (value & _VARIANT_CLEAR) | _VARIANT
    return hi, lo


def in_slot(id_: Id, slot: int) -> Id:
    """The id that is most like `id_` in `slot`, 0-1023."""
    return id_[0], id_[1] & ~_SLOT_MASK & _MASK64 | slot


def slot_of(id_: Id) -> int:
    """The slot that the id says; one beyond 1023 is no slot, and no event may have such an id."""
    return id_[1] & _SLOT_MASK


def version(id_: Id) -> int:
    """The UUID version, 0-15."""
    return (id_[0] >> 12) & 0xF


def parse(text: str) -> Id:
    """The id that `text` spells in the canonical lower- or upper-case form.

    Raises:
        ValueError: `text` is not a UUID of version 7 or 8 in 8-4-4-4-12 form with the RFC's variant.
    """
    lowered = text.lower()
    if len(text) != 36 or not _PATTERN.fullmatch(lowered):
        raise ValueError("not a UUID")
    value = int(lowered.replace("-", ""), 16)
    id_ = (value >> 64, value & _MASK64)
    if version(id_) not in {7, 8} or id_[1] >> 62 != 0b10:
        raise ValueError("not a UUID of version 7")
    return id_


def text(id_: Id) -> str:
    """The canonical lower-case form."""
    return dashed(f"{id_[0]:016x}{id_[1]:016x}")


def dashed(digits: str) -> str:
    """The same, of 32 hexadecimal digits."""
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
