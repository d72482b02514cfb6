"""Who keeps the vault's master keys: a seam for a key management service, and a file of mode 0600 in its place.

Each person has a data key of their own. The database has it wrapped by a master key that the database never sees, so
that a dump, a backup or a stolen disk opens nothing. `KeyProvider` is what a KMS must do: wrap, unwrap, rotate, retire.
`KeyFile` does it with AES-256-GCM and DATA/keys/vault.json. Every wrapped key names its master and is bound by its
context to the row that it lies in.

    KeysAway                keys cannot be had now, or not safely: no answer
    Tampered                a ciphertext is not what was written there, or the key is not its own
"""

from __future__ import annotations

import json
import os
import secrets
import stat
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from storage import private_files

KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


class KeysAway(Exception):  # noqa: N818 - what it is
    """The keys cannot be had now, or not safely."""


class Tampered(Exception):  # noqa: N818 - what it is
    """A ciphertext does not open where it lies: it was changed, moved, or sealed by another key."""


class Wrapped(NamedTuple):
    """A data key as the database has it. `master`: id of the key that wrapped it."""

    master: str
    blob: bytes


class KeyProvider(Protocol):
    """What the vault asks of whoever keeps its master keys."""

    async def wrap(self, key: bytes, context: bytes) -> Wrapped:
        """Wrap a data key of 32 bytes under the current master; `context` must be given again to unwrap it.

        Raises:
            KeysAway: it cannot be done now.
        """
        ...

    async def unwrap(self, wrapped: Wrapped, context: bytes) -> bytes:
        """The data key.

        Raises:
            KeysAway: the master is not to be had.
            Tampered: it was not wrapped so.
        """
        ...

    async def secret(self, purpose: bytes) -> bytes:
        """32 bytes that are always the same for a purpose: for keyed hashes, which cannot be rotated."""
        ...

    async def rotate(self) -> str:
        """Make a new master and let it wrap from now on; returns its id. The others still unwrap."""
        ...

    async def retire(self, current: str) -> list[str]:
        """Destroy every master but `current`; returns their ids."""
        ...


def seal(key: bytes, plain: bytes, context: bytes) -> bytes:
    """AES-256-GCM under a random nonce, which comes first. A key seals far fewer than 2**32 times."""
    nonce = os.urandom(_NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, plain, context)


def unseal(key: bytes, sealed: bytes, context: bytes) -> bytes:
    """What was sealed.

    Raises:
        Tampered: not with this key, or not in this context.
    """
    try:
        return AESGCM(key).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], context)
    except (InvalidTag, ValueError):
        raise Tampered("a ciphertext of the vault does not open where it lies") from None


@dataclass(frozen=True, slots=True, repr=False)
class _Content:
    root: bytes  # secrets follow from it; it never changes
    current: str
    masters: dict[str, bytes]
    made_at: dict[str, str]

    def as_json(self) -> str:
        masters = {name: {"key": key.hex(), "made_at": self.made_at[name]} for name, key in self.masters.items()}
        return json.dumps({"root": self.root.hex(), "current": self.current, "masters": masters}, indent=1)

    def with_new_master(self) -> _Content:
        name = f"{datetime.now(UTC):%Y%m%d}-{secrets.token_hex(4)}"
        made_at = datetime.now(UTC).isoformat(timespec="seconds")
        masters = {**self.masters, name: secrets.token_bytes(KEY_BYTES)}
        return _Content(self.root, name, masters, {**self.made_at, name: made_at})


class KeyFile:
    """Master keys in a file that only its owner may read. Every use sees the file as it is now, so that a rotation by
    another process takes effect at once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None
        self._content: _Content | None = None

    def exists(self) -> bool:
        """Whether keys were ever made."""
        return self._path.exists()

    def make(self) -> None:
        """Make the root and the first master, where there is no file. Whoever links first wins."""
        if self.exists():
            return
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        first = _Content(secrets.token_bytes(KEY_BYTES), "", {}, {}).with_new_master()
        private_files.make(self._path, first.as_json().encode())

    def fingerprint(self) -> bytes:
        """Of the root, to tell these keys from another vault's."""
        return blake2b(b"", digest_size=32, key=self._read().root, person=b"razao.vaultprint").digest()

    async def wrap(self, key: bytes, context: bytes) -> Wrapped:
        """See `KeyProvider`."""
        content = self._read()
        return Wrapped(content.current, seal(content.masters[content.current], key, _named(content.current, context)))

    async def unwrap(self, wrapped: Wrapped, context: bytes) -> bytes:
        """See `KeyProvider`."""
        master = self._read().masters.get(wrapped.master)
        if master is None:
            raise KeysAway(f"the master key {wrapped.master!r} is not in the key file")
        return unseal(master, wrapped.blob, _named(wrapped.master, context))

    async def secret(self, purpose: bytes) -> bytes:
        """See `KeyProvider`."""
        return blake2b(b"", digest_size=32, key=self._read().root, person=purpose).digest()

    async def rotate(self) -> str:
        """See `KeyProvider`."""
        content = self._read().with_new_master()
        private_files.replace(self._path, content.as_json().encode())
        return content.current

    async def retire(self, current: str) -> list[str]:
        """See `KeyProvider`."""
        content = self._read()
        old = [name for name in content.masters if name != current]
        kept = _Content(content.root, current, {current: content.masters[current]}, content.made_at)
        private_files.replace(self._path, kept.as_json().encode())
        return old

    def _read(self) -> _Content:
        try:
            found = self._path.stat()
            seen = (found.st_ino, found.st_mtime_ns, found.st_size)
            if found.st_mode & _OTHERS:
                raise KeysAway("the vault's key file may be read by others: set its mode to 0600")
            if self._content is not None and seen == self._seen:
                return self._content
            self._content, self._seen = _parse(json.loads(self._path.read_text())), seen
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise KeysAway(f"the vault's key file cannot be used: {type(error).__name__}") from None
        return self._content


def _named(master: str, context: bytes) -> bytes:
    return master.encode() + b"\0" + context


def _parse(document: Any) -> _Content:
    masters = {name: bytes.fromhex(one["key"]) for name, one in document["masters"].items()}
    content = _Content(
        bytes.fromhex(document["root"]),
        document["current"],
        masters,
        {name: one["made_at"] for name, one in document["masters"].items()},
    )
    if content.current not in masters or any(len(key) != KEY_BYTES for key in (content.root, *masters.values())):
        raise ValueError("not the vault's keys")
    return content
