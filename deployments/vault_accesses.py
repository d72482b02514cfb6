"""`/vault/v1/person/accesses` and `/last-query`: who saw what of somebody, for them and for auditors."""

from __future__ import annotations

from deployments import vault_rules as rules
from deployments.problems import malformed
from deployments.request import Answer, json_answer, page_of
from deployments.vault_call import ANSWERED, Call
from deployments.vault_schema import Access, Accesses, LastQuery
from storage import vault_record as store
from storage.notation import instant


async def get_accesses(call: Call) -> Answer:
    """GET /vault/v1/person/accesses."""
    cursor, limit = call.page()
    before = _cursor(cursor)
    subject, own = call.about()
    await call.permit(subject, "accesses", allowed=own or call.may(rules.AUDIT), scope=rules.AUDIT)
    async with call.services.vault.session(call.asked(subject, "accesses")) as session:
        found = await store.accesses(session.connection, subject.person, before=before, limit=limit + 1)
        await session.record(ANSWERED)
    items, last = page_of(found, limit)
    return json_answer(200, Accesses([_access(one) for one in items], None if last is None else str(last.seq)))


async def get_last_query(call: Call) -> Answer:
    """GET /vault/v1/person/last-query."""
    subject, own = call.about()
    await call.permit(subject, "last-query", allowed=own or call.may(rules.AUDIT), scope=rules.AUDIT)
    async with call.services.vault.session(call.asked(subject, "last-query")) as session:
        found = await store.last_query(session.connection, subject.person)
        await session.record(ANSWERED)
    if found is None:
        return json_answer(200, LastQuery(None, None, None))
    at, address, user = found
    return json_answer(200, LastQuery(instant(at), address, user))


def _cursor(given: str | None) -> int | None:
    if given is None:
        return None
    if not (given.isascii() and given.isdigit() and len(given) <= 18):
        raise malformed("cursor", "This is no cursor of ours")
    return int(given)


def _access(one: store.Seen) -> Access:
    return Access(
        at=instant(one.at), user=one.caller, address=one.address, action=one.action, fields=one.fields,
        purpose=one.purpose, decision=one.decision,
    )  # fmt: skip
