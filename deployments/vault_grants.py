"""`/vault/v1/grants` and `/vault/v1/access-requests`: people say who may see what of them, and others ask them to."""

from __future__ import annotations

import uuid
from typing import Final, Literal

import msgspec

from deployments import vault_rules as rules
from deployments.problems import (
    ALREADY_DECIDED,
    TOO_MANY_ACCESS_REQUESTS,
    UNKNOWN_ACCESS_REQUEST,
    UNKNOWN_GRANT,
    ProblemError,
    malformed,
)
from deployments.request import Answer, json_answer, page_of
from deployments.vault_call import ANSWERED, NOT_FOUND, REFUSED, Call, done
from deployments.vault_schema import (
    AccessRequest,
    AccessRequestRequest,
    AccessRequests,
    Grant,
    GrantRequest,
    Grants,
)
from storage import vault_grants as store
from storage.notation import instant

_GRANT: Final = msgspec.json.Decoder(GrantRequest)
_REQUEST: Final = msgspec.json.Decoder(AccessRequestRequest)


async def give(call: Call) -> Answer:
    """POST /vault/v1/grants."""
    subject, own = call.about()
    await call.permit(subject, "grant", allowed=own or call.may(rules.GRANT), scope=rules.GRANT)
    request = await call.json(_GRANT)
    fields, purpose = rules.read_fields(request.fields, "fields"), rules.read_purpose(request.purpose, "purpose")
    life, grantee = rules.read_life(request.expires_in), rules.read_grantee(request.grantee)
    async with call.services.vault.session(call.asked(subject, "grant", fields, purpose)) as session:
        grant = await store.give(
            session, call.new_id(b"grant"), grantee=grantee, fields=fields, purpose=purpose, expires_in=life
        )
        await session.record(ANSWERED, [grant.id])
    return json_answer(201, _grant(grant))


async def list_grants(call: Call) -> Answer:
    """GET /vault/v1/grants."""
    after, limit = call.page()
    subject, own = call.about()
    allowed = own or call.may(rules.GRANT, rules.AUDIT)
    await call.permit(subject, "list-grants", allowed=allowed, scope=rules.GRANT)
    async with call.services.vault.session(call.asked(subject, "list-grants")) as session:
        found = await store.of_person(session, after=_cursor(after), limit=limit + 1)
        await session.record(ANSWERED)
    items, last = page_of(found, limit)
    return json_answer(200, Grants([_grant(one) for one in items], None if last is None else last.id))


async def end(call: Call) -> Answer:
    """DELETE /vault/v1/grants/{id}."""
    subject, own = call.about()
    await call.permit(subject, "end-grant", allowed=own or call.may(rules.GRANT), scope=rules.GRANT)
    async with call.services.vault.session(call.asked(subject, "end-grant")) as session:
        there = await store.end(session, call.path_id())
        await session.record(ANSWERED if there else NOT_FOUND, [call.path_id()] if there else [])
    if not there:
        raise ProblemError(UNKNOWN_GRANT, UNKNOWN_GRANT.title)
    return done()


# -- requests ---------------------------------------------------------------------------------------------------------


async def ask(call: Call) -> Answer:
    """POST /vault/v1/access-requests: for a grant to the caller."""
    subject, _ = call.about()
    request = await call.json(_REQUEST)
    fields, purpose = rules.read_fields(request.fields, "fields"), rules.read_purpose(request.purpose, "purpose")
    life = rules.read_life(request.expires_in)
    asked = call.asked(subject, "ask", fields, purpose)
    if lacks := rules.lacking(fields, call.identified().scopes, fields, own=False):
        await call.refuse(asked, "The token has no scope that a grant would open these fields to", lacks=lacks)
    async with call.services.vault.session(asked) as session:
        found = await store.ask(session, call.new_id(b"ask"), fields=fields, purpose=purpose, expires_in=life)
        await session.record(REFUSED if found is None else ANSWERED)
    if found is None:
        raise ProblemError(TOO_MANY_ACCESS_REQUESTS, TOO_MANY_ACCESS_REQUESTS.title)
    return json_answer(202, _request(found))


async def list_requests(call: Call) -> Answer:
    """GET /vault/v1/access-requests: to the person who asks, or of the caller to the person."""
    after, limit = call.page()
    subject, own = call.about()
    allowed = own or call.may(*rules.READ.values())
    await call.permit(subject, "list-requests", allowed=allowed, scope=rules.READ["name"])
    asker = None if own else call.identified().subject
    async with call.services.vault.session(call.asked(subject, "list-requests")) as session:
        found = await store.requests(session, asker=asker, after=_cursor(after), limit=limit + 1)
        await session.record(ANSWERED)
    items, last = page_of(found, limit)
    return json_answer(200, AccessRequests([_request(one) for one in items], None if last is None else last.id))


async def approve(call: Call) -> Answer:
    """POST /vault/v1/access-requests/{id}/approve."""
    return await _decide(call, "approved")


async def refuse(call: Call) -> Answer:
    """POST /vault/v1/access-requests/{id}/refuse."""
    return await _decide(call, "refused")


async def _decide(call: Call, wanted: Literal["approved", "refused"]) -> Answer:
    action = "approve" if wanted == "approved" else "refuse"
    subject, own = call.about()
    await call.permit(subject, action, allowed=own, scope="")
    grant = call.new_id(b"approve") if wanted == "approved" else None
    async with call.services.vault.session(call.asked(subject, action)) as session:
        decided = await store.decide(session, call.path_id(), grant=grant)
        found = decided or await store.status_of(session, call.path_id())
        # Decided so before, as when the gateway has sent this again: then it is what was asked for.
        good = found is not None and found.status == wanted
        given = [grant] if decided is not None and grant is not None else []
        await session.record(ANSWERED if good else NOT_FOUND if found is None else REFUSED, given)
    if found is None:
        raise ProblemError(UNKNOWN_ACCESS_REQUEST, UNKNOWN_ACCESS_REQUEST.title)
    if not good:
        raise ProblemError(ALREADY_DECIDED, ALREADY_DECIDED.title)
    return json_answer(200, _request(found))


def _cursor(given: str | None) -> uuid.UUID | None:
    try:
        return None if given is None else uuid.UUID(given)
    except ValueError:
        raise malformed("cursor", "This is no cursor of ours") from None


def _grant(one: store.Grant) -> Grant:
    status: Literal["live", "expired", "ended"] = (
        "live" if one.live else "ended" if one.ended_at is not None else "expired"
    )
    return Grant(
        id=one.id, grantee=one.grantee, fields=one.fields, purpose=one.purpose, given_by=one.given_by, status=status,
        created_at=instant(one.created_at), expires_at=instant(one.expires_at),
        ended_at=None if one.ended_at is None else instant(one.ended_at),
    )  # fmt: skip


def _request(one: store.AccessRequest) -> AccessRequest:
    return AccessRequest(
        id=one.id, asker=one.asker, fields=one.fields, purpose=one.purpose, expires_in=one.expires_in,
        status=one.status, created_at=instant(one.created_at), grant=one.grant,
    )  # fmt: skip
