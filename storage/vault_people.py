"""What the vault keeps of people: sealed row by row under a key of each person's own.

Every ciphertext is bound to its table, its person, its field and its item, so that one that was moved to another row
or column does not open. Its length is rounded up, so that it tells little. To erase somebody is to destroy the wrapped
key; what is left in old backups opens with nothing, once the master that wrapped it has been rotated away.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import blake2b
from typing import Any, Final

import msgspec

from storage.vault import Session
from storage.vault_keys import KEY_BYTES, KeyProvider, Wrapped, seal, unseal

_PADDED_TO: Final = 64
_NO_ITEM: Final = b""
_NOBODY: Final = bytes(16)
_READ: Final = (
    "SELECT k.master, k.wrapped, f.field, f.item, f.content, f.updated_at FROM vault.keys k"
    " LEFT JOIN vault.facts f ON f.person = k.person AND f.field = ANY ($2) WHERE k.person = $1"
)
_PUT: Final = (
    "INSERT INTO vault.facts (person, field, item, content) VALUES ($1, $2, $3, $4)"
    " ON CONFLICT (person, field, item) DO UPDATE SET content = excluded.content, updated_at = now()"
)


@dataclass(slots=True)
class Found:
    """What was read: decoded JSON values. `debts` in no particular order."""

    name: str | None = None
    address: str | None = None
    debts: list[dict[str, Any]] = field(default_factory=list)
    updated_at: datetime | None = None


class People:
    """Reads and writes inside a `Session`."""

    def __init__(self, keys: KeyProvider, item_key: bytes) -> None:
        self._keys = keys
        self._item_key = item_key

    async def read(self, session: Session, fields: Sequence[str], *, permitted: bool = True) -> Found | None:
        """What the session may see of `fields`; None when that is nobody.

        Without permission the same statement looks for somebody who cannot be there: row-level security would show
        nothing, but to decide it about a row that is there takes longer than to find none (40 us of 1,400).

        Raises:
            KeysAway: the person's key cannot be unwrapped now.
            Tampered: a ciphertext does not open where it lies.
        """
        person = session.asked.subject.person if permitted else _NOBODY
        rows = await session.connection.fetch(_READ, person, list(fields))
        if not rows:
            return None
        key = await self._unwrapped(person, rows[0])
        found = Found()
        for row in rows:
            if row["field"] is None:
                continue  # nothing is kept of those fields
            context = _context(person, row["field"], row["item"])
            value = msgspec.json.decode(unseal(key, row["content"], context))
            if row["field"] == "debts":
                found.debts.append(value)
            else:
                setattr(found, row["field"], value)
            found.updated_at = max(found.updated_at or row["updated_at"], row["updated_at"])
        return found

    async def replace(
        self, session: Session, *, name: str, address: str, debts: Mapping[str, Mapping[str, Any]]
    ) -> None:
        """Keep just this of the person: name, address, debts by id."""
        key = await self._key(session)
        person = session.asked.subject.person
        await session.connection.execute("DELETE FROM vault.facts WHERE person = $1 AND field = 'debts'", person)
        sealed = [self._sealed(person, key, "name", _NO_ITEM, name)]
        sealed.append(self._sealed(person, key, "address", _NO_ITEM, address))
        sealed += self._sealed_debts(person, key, debts)
        await session.connection.executemany(_PUT, sealed)

    async def change_debts(
        self, session: Session, debts: Mapping[str, Mapping[str, Any]], remove: Sequence[str]
    ) -> None:
        """Put debts by id in their places, and take others away; what is not there need not be taken away."""
        key = await self._key(session)
        person = session.asked.subject.person
        await session.connection.execute(
            "DELETE FROM vault.facts WHERE person = $1 AND field = 'debts' AND item = ANY ($2)",
            person, [self._item(person, debt) for debt in remove],
        )  # fmt: skip
        await session.connection.executemany(_PUT, self._sealed_debts(person, key, debts))

    async def erase(self, session: Session) -> None:
        """Destroy the person's key, what it sealed, and every grant."""
        person, caller = session.asked.subject.person, session.asked.caller
        await self._alone(session)
        await session.connection.execute("DELETE FROM vault.keys WHERE person = $1", person)
        await session.connection.execute(
            "UPDATE vault.grants SET ended_at = now(), ended_by = $2 WHERE person = $1 AND ended_at IS NULL"
            " AND expires_at > now()",
            person, caller,
        )  # fmt: skip

    async def _key(self, session: Session) -> bytes:
        """The person's key; made when there is none."""
        person = session.asked.subject.person
        made = secrets.token_bytes(KEY_BYTES)
        wrapped = await self._keys.wrap(made, key_context(person))
        await self._alone(session)
        await session.connection.execute(
            "INSERT INTO vault.keys (person, master, wrapped) VALUES ($1, $2, $3) ON CONFLICT (person) DO NOTHING",
            person, wrapped.master, wrapped.blob,
        )  # fmt: skip
        row = await session.connection.fetchrow("SELECT master, wrapped FROM vault.keys WHERE person = $1", person)
        return await self._unwrapped(person, row)

    @staticmethod
    async def _alone(session: Session) -> None:
        """Of all who write about this person: nothing must be sealed with a key that is being destroyed."""
        number = int.from_bytes(session.asked.subject.person[:8], "big", signed=True)
        await session.connection.execute("SELECT pg_advisory_xact_lock($1)", number)

    async def _unwrapped(self, person: bytes, row: Any) -> bytes:
        return await self._keys.unwrap(Wrapped(row["master"], row["wrapped"]), key_context(person))

    def _sealed_debts(
        self, person: bytes, key: bytes, debts: Mapping[str, Mapping[str, Any]]
    ) -> list[tuple[bytes, str, bytes, bytes]]:
        return [self._sealed(person, key, "debts", self._item(person, one), debt) for one, debt in debts.items()]

    @staticmethod
    def _sealed(person: bytes, key: bytes, what: str, item: bytes, value: object) -> tuple[bytes, str, bytes, bytes]:
        plain = msgspec.json.encode(value)
        plain += b" " * (-len(plain) % _PADDED_TO)  # blanks behind a JSON value mean nothing
        return person, what, item, seal(key, plain, _context(person, what, item))

    def _item(self, person: bytes, debt: str) -> bytes:
        return blake2b(person + debt.encode(), digest_size=16, key=self._item_key, person=b"razao.item").digest()


def key_context(person: bytes) -> bytes:
    """What a wrapped key is bound to."""
    return b"vault.keys\0wrapped\0" + person


def _context(person: bytes, what: str, item: bytes) -> bytes:
    return b"vault.facts\0content\0" + person + what.encode() + b"\0" + item
