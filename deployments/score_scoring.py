"""From profiles to scores: what the scorecard is fed with, and for how long a score stands.

A score with the person's debts in it, or with the vault's refusal to tell them, is kept for a while and dropped sooner
when the vault says that something has changed; one that was made while the vault could not be asked is not kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime
from typing import Any, Final

import numpy as np

from deployments.score_call import About, Call
from deployments.score_debts import NoDebts
from deployments.scorecard import MODEL, PERSON, REGISTRATION, Rows, score
from storage.accesses import Accesses
from storage.profiles import Derived, Profile

KEPT_S: Final = 3600
KEPT_REFUSED_S: Final = 600
KEPT_UNTOLD_S: Final = 60
"""Where no message would say that something has changed."""
SEARCH_DAYS: Final = 90
_SEARCHES_MAX: Final = 128
_NS: Final = 1_000_000_000
_DAY_NS: Final = 86_400 * _NS
_MONEY_MAX: Final = 2**62


async def derived(call: Call, about: About, profile: Profile) -> Derived:
    """The score that is kept, or a new one."""
    services = call.services
    now = services.clock()
    kept = profile.derived
    if kept is not None and kept.model == MODEL and kept.at <= now < kept.until:
        return kept
    searches = await count_searches(services.accesses, about.person, now)
    due = await services.debts.due(about.tax_id, call.correlation_id)
    debts = None if isinstance(due, NoDebts) else due.amount
    bins = score(rows_of([profile], now, searches=searches, debts=debts)).bins[0].tolist()
    # What is derived under a grant ends with it: nobody tells us when it runs out.
    life_s = KEPT_REFUSED_S if isinstance(due, NoDebts) else min(KEPT_S, due.life_s)
    life_s = life_s if services.told else min(life_s, KEPT_UNTOLD_S)
    made = Derived(MODEL, bins, debts is not None, now, now + int(life_s * _NS))
    if due is not NoDebts.AWAY:
        await services.profiles.keep(profile, made)  # in vain when something has changed meanwhile: it is not current
    return made


async def count_searches(accesses: Accesses, person: bytes, now: int) -> int:
    """How often others have asked within SEARCH_DAYS; the same one on the same day counts once."""
    found = await accesses.queries(person, limit=_SEARCHES_MAX)
    since = now - SEARCH_DAYS * _DAY_NS
    return len({(one.user, one.at // _DAY_NS) for _, one in found if not one.own and one.at >= since})


def rows_of(profiles: Sequence[Profile], now: int, *, searches: int = 0, debts: int | None = None) -> Rows:
    """(n,) PERSON. `debts`: centavos, None: not considered."""
    today = day_of(now)
    due = 0 if debts is None else min(debts, _MONEY_MAX)
    return np.array([_row(one.fields, today, searches, due, debts is not None) for one in profiles], PERSON)


def _row(fields: dict[str, Any], today: date, searches: int, debts: int, considered: bool) -> tuple[Any, ...]:
    credit = fields.get("credit", {})
    since = credit.get("first_credit_on")
    return (
        credit.get("payments_on_time", 0),
        credit.get("payments_late", 0),
        0 if since is None else max((today - date.fromisoformat(since)).days, 0),
        debts,
        fields.get("monthly_income", 0),
        min(sum(asset["value"] for asset in fields.get("assets", ())), _MONEY_MAX),
        searches,
        sum(bool(fields.get(part)) for part in REGISTRATION),
        credit.get("contracts_settled", 0),
        considered,
    )


def day_of(ns: int) -> date:
    """The day (UTC) of an instant, ns since 1970."""
    return datetime.fromtimestamp(ns // _NS, UTC).date()
