"""The record of accesses to the vault: one row per answer or refusal, each chained to the one before it.

The chain is keyed with a secret that the database does not have, so whoever changes, removes or reorders rows there
cannot mend it. What no chain can notice is loss at the very tail together with its head; an `Anchor` that was kept
elsewhere does.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import blake2b
from typing import Any, Final, NamedTuple

from storage.notation import microseconds

_HEAD: Final = "SELECT seq, chain, clock_timestamp() AS at FROM vault.chain_head FOR UPDATE"
_APPEND: Final = (
    "WITH head AS (UPDATE vault.chain_head SET seq = $1, chain = $13)"
    " INSERT INTO vault.accesses (seq, at, person, caller, address, action, fields, purpose, decision, grants, request,"
    " correlation, chain) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)"
)
_PAGE: Final = 2000


class Access(NamedTuple):
    """What is recorded; never any content. `grants`: UUIDs that the answer stood on."""

    person: bytes
    caller: str
    address: str
    action: str
    fields: Sequence[str]
    purpose: str
    decision: str
    grants: Sequence[Any]
    request: str
    correlation: str


class Anchor(NamedTuple):
    """A place in the chain that was seen, and what it was then."""

    seq: int
    chain: bytes


@dataclass(frozen=True, slots=True)
class Seen:
    """An access as it is shown."""

    seq: int
    at: datetime
    caller: str
    address: str
    action: str
    fields: list[str]
    purpose: str
    decision: str


def link(key: bytes, previous: bytes, seq: int, at: datetime, access: Access) -> bytes:
    """The chain's next value, 32 bytes."""
    row = [
        seq, microseconds(at), access.person.hex(), access.caller, access.address, access.action, list(access.fields),
        access.purpose, access.decision, [str(grant) for grant in access.grants], access.request, access.correlation,
    ]  # fmt: skip
    content = json.dumps(row, separators=(",", ":")).encode()
    return blake2b(previous + content, digest_size=32, key=key, person=b"razao.access").digest()


async def append(connection: Any, key: bytes, access: Access) -> None:
    """Add a row at the chain's end. Whoever comes next waits until this transaction has ended."""
    head = await connection.fetchrow(_HEAD)
    seq, at = head["seq"] + 1, head["at"]
    chain = link(key, bytes(head["chain"]), seq, at, access)
    await connection.execute(_APPEND, seq, at, *access._replace(fields=list(access.fields)), chain)


async def accesses(connection: Any, person: bytes, *, before: int | None, limit: int) -> list[Seen]:
    """Who did what about a person, the newest first, older than `before`."""
    rows = await connection.fetch(
        "SELECT * FROM vault.accesses WHERE person = $1 AND seq < $2 ORDER BY seq DESC LIMIT $3",
        person, 2**63 - 1 if before is None else before, limit,
    )  # fmt: skip
    return [
        Seen(
            row["seq"], row["at"], row["caller"], row["address"], row["action"], list(row["fields"]), row["purpose"],
            row["decision"],
        )
        for row in rows
    ]  # fmt: skip


async def last_query(connection: Any, person: bytes) -> tuple[datetime, str, str] | None:
    """When, from where and by whom somebody's data was last shown."""
    row = await connection.fetchrow(
        "SELECT at, address, caller FROM vault.accesses WHERE person = $1 AND action = 'read'"
        " AND decision = 'answered' ORDER BY seq DESC LIMIT 1",
        person,
    )
    return None if row is None else (row["at"], row["address"], row["caller"])


class Checked(NamedTuple):
    """What a check of the chain found. `broken`: what is wrong, in words; None when it is whole."""

    rows: int
    head: Anchor
    broken: str | None


async def check(connection: Any, key: bytes, anchor: Anchor | None = None) -> Checked:
    """Recompute the chain from its first row to its head, and look whether it still runs through `anchor`.

    `connection` must be in a transaction that sees one state (repeatable read), while the service goes on.
    """
    found = await connection.fetchrow("SELECT seq, chain FROM vault.chain_head")
    head = Anchor(found["seq"], bytes(found["chain"]))
    last, count = Anchor(0, b""), 0
    if anchor is not None and anchor.seq > head.seq:
        return Checked(0, head, f"it ends at row {head.seq}, but was seen up to {anchor.seq} before: its end is gone")
    async for row in _rows(connection):
        if row["seq"] != last.seq + 1:
            return Checked(count, head, f"row {last.seq + 1} is missing")
        access = Access(*(row[name] for name in Access._fields))
        chain = link(key, last.chain, row["seq"], row["at"], access)
        if chain != bytes(row["chain"]):
            return Checked(count, head, f"row {row['seq']} is not what was written, or follows another")
        last, count = Anchor(row["seq"], chain), count + 1
        if anchor is not None and anchor.seq == last.seq and anchor.chain != last.chain:
            return Checked(count, head, f"row {anchor.seq} is another one than was seen before")
    if last != head:
        return Checked(count, head, f"it ends at row {last.seq}, its head says {head.seq}")
    return Checked(count, head, None)


async def _rows(connection: Any) -> AsyncIterator[Any]:
    after = 0
    while True:
        page = await connection.fetch("SELECT * FROM vault.accesses WHERE seq > $1 ORDER BY seq LIMIT $2", after, _PAGE)
        for row in page:
            yield row
        if len(page) < _PAGE:
            return
        after = page[-1]["seq"]
