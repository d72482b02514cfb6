"""`/vault/v1/person`: sources write what they know of people, callers with a grant read it, and it can be erased.

Whoever asks is answered by the same statements in the same order, with one durable record, whether anything is kept of
the person or not, and whether there is a grant or not; and for both there is the same refusal.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import date, datetime
from typing import Any, Final

import msgspec
from msgspec import UNSET

from deployments import vault_rules as rules
from deployments.json_body import text
from deployments.problems import FORBIDDEN, ProblemError, malformed
from deployments.request import Answer, json_answer
from deployments.vault_call import ANSWERED, FAILED, REFUSED, Call, done
from deployments.vault_schema import (
    ADDRESS_MAX,
    DEBT_ID_MAX,
    DEBTS_MAX,
    NAME_MAX,
    Debt,
    DebtsRequest,
    Person,
    PersonRequest,
)
from storage import vault_grants
from storage.notation import instant
from storage.vault import FIELDS, Acts
from storage.vault_keys import Tampered
from storage.vault_people import Found

_BODY_BYTES_MAX: Final = 1 << 20  # as many debts as there may be, each as long as it may be
_CENTAVOS_MAX: Final = 2**63 - 1
_DAY: Final = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_PERSON: Final = msgspec.json.Decoder(PersonRequest)
_DEBTS: Final = msgspec.json.Decoder(DebtsRequest)


async def get_person(call: Call) -> Answer:
    """GET /vault/v1/person?fields=."""
    services = call.services
    fields = rules.read_fields(call.query().get("fields", "").split(","), "fields")
    subject, own = call.about()
    asked = call.asked(subject, "read", fields, call.purpose(optional=own))
    found: Found | None = None
    broken: Tampered | None = None
    async with services.vault.session(asked, Acts.OWN if own else Acts.NOBODY) as session:
        grants = await vault_grants.live(session)
        opened = frozenset[str]().union(*(grant.fields for grant in grants))
        lacks = rules.lacking(fields, call.identified().scopes, opened, own=own)
        used = [] if own or lacks else vault_grants.covering(grants, fields)
        await session.name_grants([grant.id for grant in used])
        try:
            found = await services.people.read(session, fields, permitted=not lacks)
        except Tampered as error:
            broken = error
        else:
            if found is None and not own and not lacks:  # nobody is here: as if nobody had granted anything
                lacks = rules.lacking(fields, call.identified().scopes, (), own=False)
        await session.record(
            FAILED if broken else REFUSED if lacks else ANSWERED, [] if lacks else [grant.id for grant in used]
        )
    if broken is not None:
        raise broken
    if lacks:
        raise ProblemError(FORBIDDEN, "Not every field may be shown to this caller for this purpose", lacks=lacks)
    return json_answer(200, _shown(found or Found(), fields, min((grant.expires_at for grant in used), default=None)))


async def put_person(call: Call) -> Answer:
    """PUT /vault/v1/person."""
    subject, _ = call.about()
    await call.permit(subject, "write", allowed=call.may(rules.WRITE), scope=rules.WRITE)
    request = await call.json(_PERSON, limit=_BODY_BYTES_MAX)
    name = text(request.name, "name", NAME_MAX)
    address = text(request.address, "address", ADDRESS_MAX)
    debts = _by_id(request.debts)
    async with call.services.vault.session(call.asked(subject, "write", FIELDS), Acts.WRITE) as session:
        await call.services.people.replace(session, name=name, address=address, debts=debts)
        await session.tell_score()
        await session.record(ANSWERED)
    return done()


async def patch_person(call: Call) -> Answer:
    """PATCH /vault/v1/person: single debts."""
    subject, _ = call.about()
    await call.permit(subject, "write", allowed=call.may(rules.WRITE), scope=rules.WRITE)
    request = await call.json(_DEBTS, limit=_BODY_BYTES_MAX)
    debts = {} if request.debts is UNSET else _by_id(request.debts)
    remove = [] if request.remove is UNSET else [text(one, "remove", DEBT_ID_MAX) for one in request.remove]
    if len(remove) > DEBTS_MAX or debts.keys() & set(remove):
        raise malformed("remove", f"These are at most {DEBTS_MAX} ids, and none that is put as well")
    async with call.services.vault.session(call.asked(subject, "write", ("debts",)), Acts.WRITE) as session:
        await call.services.people.change_debts(session, debts, remove)
        await session.tell_score()
        await session.record(ANSWERED)
    return done()


async def delete_person(call: Call) -> Answer:
    """DELETE /vault/v1/person."""
    subject, own = call.about()
    await call.permit(subject, "erase", allowed=own or call.may(rules.WRITE), scope=rules.WRITE)
    asked = call.asked(subject, "erase", FIELDS)
    async with call.services.vault.session(asked, Acts.OWN if own else Acts.WRITE) as session:
        await call.services.people.erase(session)
        await session.tell_score()
        await session.record(ANSWERED)
    return done()


def _by_id(debts: Iterable[Debt]) -> dict[str, dict[str, Any]]:
    """Checked debts by their ids.

    Raises:
        ProblemError: which field of which debt is wrong; an id twice; too many.
    """
    found: dict[str, dict[str, Any]] = {}
    for number, debt in enumerate(debts):
        where = f"debts[{number}]"
        text(debt.id, f"{where}.id", DEBT_ID_MAX)
        text(debt.creditor, f"{where}.creditor", NAME_MAX)
        text(debt.contract, f"{where}.contract", DEBT_ID_MAX)
        rules.read_purpose(debt.kind, f"{where}.kind")
        if not 1 <= debt.amount <= _CENTAVOS_MAX:
            raise malformed(f"{where}.amount", "An amount is 1 to 9223372036854775807 centavos")
        if not _is_day(debt.since):
            raise malformed(f"{where}.since", "This is no day such as 2026-03-01")
        if debt.id in found:
            raise malformed(f"{where}.id", "The id is there twice")
        found[debt.id] = msgspec.structs.asdict(debt)
    if len(found) > DEBTS_MAX:
        raise malformed("debts", f"There are at most {DEBTS_MAX} debts")
    return found


def _is_day(given: str) -> bool:
    try:
        return bool(_DAY.fullmatch(given)) and bool(date.fromisoformat(given))
    except ValueError:
        return False


def _shown(found: Found, fields: tuple[str, ...], until: datetime | None) -> Person:
    debts = sorted(found.debts, key=lambda debt: (debt["since"], debt["id"]))
    return Person(
        name=found.name if "name" in fields else UNSET,
        address=found.address if "address" in fields else UNSET,
        debts=msgspec.convert(debts, list[Debt]) if "debts" in fields else UNSET,
        updated_at=None if found.updated_at is None else instant(found.updated_at),
        granted_until=None if until is None else instant(until),
    )
