"""Who asked for what of whom: the score service's record of accesses, durable before an answer leaves.

A record's id is the person's reference, a byte that tells answered queries from everything else, and the time counted
backwards, so that somebody's newest come first and nothing has to be looked for. All ids have one length, since a store
may order by length first. Records written at once go to the store in one statement.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from storage.documents import Database
from storage.gathering import Gathering

ACCESSES: Final = "score_accesses"
NOBODY: Final = bytes(16)
"""The person of an access to everybody's data."""

_ANSWERED: Final = b"\x00"
_OTHER: Final = b"\x01"
_TIME_MAX: Final = 2**64 - 1
_TAIL: Final = 16


class Access(NamedTuple):
    """One request and what became of it. Never content, and no tax id.

    `what`: score, profile, extract…; `decision`: answered, absent, refused, changed; `own`: by the person; `at`: ns.
    """

    at: int
    user: str
    address: str
    what: str
    decision: str
    own: bool
    purpose: str | None
    request: str
    correlation: str
    consent: str | None = None

    @property
    def is_query(self) -> bool:
        """Whether somebody learnt something about the person."""
        return self.decision == "answered"


class Accesses:
    """The record, by person."""

    def __init__(self, database: Database) -> None:
        self._documents = database.collection(ACCESSES)
        self._writes = Gathering(self._write)

    async def write(self, person: bytes, access: Access) -> None:
        """Return once it is durable."""
        body = {name: value for name, value in access._asdict().items() if value is not None}
        await self._writes((_key(person, _ANSWERED if access.is_query else _OTHER, access.at), body))

    async def queries(self, person: bytes, *, limit: int, after: bytes = b"") -> list[tuple[bytes, Access]]:
        """Answered queries, the newest first, each with the cursor to go on after it.

        Args:
            person: the reference.
            limit: how many at most.
            after: the cursor of the last one seen; anything that is none starts at the newest.
        """
        prefix = person + _ANSWERED
        start = prefix + (after if len(after) == _TAIL else bytes(_TAIL))
        found = await self._documents.scan(start, limit, prefix)
        return [(one.id[-_TAIL:], _access(one.body)) for one in found]

    async def _write(self, records: list[tuple[bytes, dict[str, Any]]]) -> Sequence[None]:
        taken = await self._documents.insert_many(records)
        assert not taken, "two records of one nanosecond and one random number"  # noqa: S101
        return [None] * len(records)


def _key(person: bytes, kind: bytes, at: int) -> bytes:
    return person + kind + (_TIME_MAX - at).to_bytes(8, "big") + os.urandom(8)


def _access(body: dict[str, Any]) -> Access:
    return Access(**{"purpose": None, **body})
