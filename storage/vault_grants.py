"""Who may see what of whom, for which purpose and until when; and who has asked to.

A grant ends by its time, by `end`, or with the person. Nothing remembers a grant anywhere else, so that it ends at once
for tokens that were issued before. All of it is about references: whether anything is kept of somebody plays no part.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from storage.vault import Session

PENDING_S: Final = 7 * 86_400
"""How long a request waits for the person."""

_LIVE: Final = (
    "SELECT id, fields, expires_at FROM vault.grants WHERE person = $1 AND grantee = $2 AND purpose = $3"
    " AND ended_at IS NULL AND expires_at > now() ORDER BY expires_at DESC, id"
)
_GIVE: Final = (
    "INSERT INTO vault.grants (id, person, grantee, fields, purpose, given_by, expires_at)"
    " VALUES ($1, $2, $3, $4, $5, $6, now() + $7::interval) ON CONFLICT (id) DO NOTHING"
)
_ASK: Final = (
    "INSERT INTO vault.access_requests (id, person, asker, fields, purpose, expires_in)"
    " SELECT $1, $2, $3, $4, $5, $6 WHERE (SELECT count(*) FROM vault.access_requests WHERE person = $2 AND asker = $3"
    " AND status = 'pending' AND created_at > now() - $7::interval) < $8 ON CONFLICT (id) DO NOTHING"
)
_PENDING_MAX: Final = 20


@dataclass(frozen=True, slots=True)
class Grant:
    """A grant as it is shown."""

    id: str
    grantee: str
    fields: list[str]
    purpose: str
    given_by: str
    created_at: datetime
    expires_at: datetime
    ended_at: datetime | None
    live: bool


@dataclass(frozen=True, slots=True)
class AccessRequest:
    """A request for a grant. `status`: pending, approved, refused, or lapsed when nobody answered."""

    id: str
    asker: str
    fields: list[str]
    purpose: str
    expires_in: int
    created_at: datetime
    status: str
    grant: str | None


class Live(NamedTuple):
    """A grant that is in force."""

    id: uuid.UUID
    fields: frozenset[str]
    expires_at: datetime


async def live(session: Session) -> list[Live]:
    """The grants that open something to the session's caller for its purpose now, those that last longest first."""
    asked = session.asked
    rows = await session.connection.fetch(_LIVE, asked.subject.person, asked.caller, asked.purpose)
    return [Live(row["id"], frozenset(row["fields"]), row["expires_at"]) for row in rows]


def covering(grants: Iterable[Live], fields: Iterable[str]) -> list[Live]:
    """Those that are needed for `fields`, taken in their order."""
    missing, needed = set(fields), []
    for grant in grants:
        if missing & grant.fields:
            missing -= grant.fields
            needed.append(grant)
    return needed


async def give(
    session: Session, grant: uuid.UUID, *, grantee: str, fields: Sequence[str], purpose: str, expires_in: int
) -> Grant:
    """Give a grant for `expires_in` seconds. The same id again finds the first."""
    asked = session.asked
    await session.connection.execute(
        _GIVE, grant, asked.subject.person, grantee, list(fields), purpose, asked.caller, timedelta(seconds=expires_in)
    )
    if "debts" in fields:
        await session.tell_score()
    found = await session.connection.fetchrow(f"{_GRANTS} AND id = $2", asked.subject.person, grant)
    return _grant(found)


_GRANTS: Final = "SELECT *, ended_at IS NULL AND expires_at > now() AS live FROM vault.grants WHERE person = $1"


async def of_person(session: Session, *, after: uuid.UUID | None, limit: int) -> list[Grant]:
    """Grants of the person, those that have ended too, by id from behind `after` on."""
    rows = await session.connection.fetch(
        f"{_GRANTS} AND ($2::uuid IS NULL OR id > $2) ORDER BY id LIMIT $3", session.asked.subject.person, after, limit
    )
    return [_grant(row) for row in rows]


async def end(session: Session, grant: uuid.UUID) -> bool:
    """End a grant of the person at once; one that has ended stays as it was. False: there is no such grant."""
    asked = session.asked
    await session.connection.execute(
        "UPDATE vault.grants SET ended_at = now(), ended_by = $3 WHERE person = $1 AND id = $2 AND ended_at IS NULL",
        asked.subject.person, grant, asked.caller,
    )  # fmt: skip
    fields = await session.connection.fetchval(
        "SELECT fields FROM vault.grants WHERE person = $1 AND id = $2", asked.subject.person, grant
    )
    if fields is not None and "debts" in fields:
        await session.tell_score()
    return fields is not None


# -- requests ---------------------------------------------------------------------------------------------------------


async def ask(
    session: Session, request: uuid.UUID, *, fields: Sequence[str], purpose: str, expires_in: int
) -> AccessRequest | None:
    """Ask the person for a grant to the session's caller. None: too many of theirs wait already."""
    asked = session.asked
    await session.connection.execute(
        _ASK, request, asked.subject.person, asked.caller, list(fields), purpose, expires_in,
        timedelta(seconds=PENDING_S), _PENDING_MAX,
    )  # fmt: skip
    return await _request(session, request)


async def requests(session: Session, *, asker: str | None, after: uuid.UUID | None, limit: int) -> list[AccessRequest]:
    """Requests to the person, by id from behind `after` on; only those of `asker` when one is named."""
    rows = await session.connection.fetch(
        f"{_REQUESTS} AND ($2::text IS NULL OR asker = $2) AND ($3::uuid IS NULL OR id > $3) ORDER BY id LIMIT $4",
        session.asked.subject.person, asker, after, limit,
    )  # fmt: skip
    return [_access_request(row) for row in rows]


async def decide(session: Session, request: uuid.UUID, *, grant: uuid.UUID | None) -> AccessRequest | None:
    """Answer a pending request: with a grant of this id, or by refusing it. None: there is none that waits."""
    decided = await session.connection.fetchrow(
        "UPDATE vault.access_requests SET status = $3, decided_at = now(), grant_id = $4"
        " WHERE person = $1 AND id = $2 AND status = 'pending' AND created_at > now() - $5::interval"
        " RETURNING asker, fields, purpose, expires_in",
        session.asked.subject.person, request, "refused" if grant is None else "approved", grant,
        timedelta(seconds=PENDING_S),
    )  # fmt: skip
    if decided is None:
        return None
    if grant is not None:
        await give(
            session, grant, grantee=decided["asker"], fields=decided["fields"], purpose=decided["purpose"],
            expires_in=decided["expires_in"],
        )  # fmt: skip
    return await _request(session, request)


async def status_of(session: Session, request: uuid.UUID) -> AccessRequest | None:
    """A request to the person by its id."""
    return await _request(session, request)


_REQUESTS: Final = (
    "SELECT *, CASE WHEN status = 'pending' AND created_at <= now() - interval '7 days' THEN 'lapsed' ELSE status END"
    " AS state FROM vault.access_requests WHERE person = $1"
)


async def _request(session: Session, request: uuid.UUID) -> AccessRequest | None:
    row = await session.connection.fetchrow(f"{_REQUESTS} AND id = $2", session.asked.subject.person, request)
    return None if row is None else _access_request(row)


def _grant(row: Any) -> Grant:
    return Grant(
        str(row["id"]), row["grantee"], list(row["fields"]), row["purpose"], row["given_by"], row["created_at"],
        row["expires_at"], row["ended_at"], row["live"],
    )  # fmt: skip


def _access_request(row: Any) -> AccessRequest:
    grant = row["grant_id"]
    return AccessRequest(
        str(row["id"]), row["asker"], list(row["fields"]), row["purpose"], row["expires_in"], row["created_at"],
        row["state"], None if grant is None else str(grant),
    )  # fmt: skip
