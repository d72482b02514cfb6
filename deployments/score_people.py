"""The score service's calls about one person: profile, score, and who has asked."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from typing import Any, Final

import msgspec
from msgspec import UNSET

from deployments.json_body import text
from deployments.problems import NO_CONSENT, UNKNOWN_PERSON, ProblemError, malformed
from deployments.request import PURPOSE, Answer, json_answer, page_of
from deployments.score_call import ABSENT, ANSWERED, CHANGED, PROFILE, READ, REFUSED, SEEN, SELF, WRITE, About, Call
from deployments.score_schema import (
    LINE_MAX,
    NAME_MAX,
    AccessAnswer,
    Accesses,
    FactorAnswer,
    LastQuery,
    ModelAnswer,
    ModelBin,
    ModelFactor,
    ProfileAnswer,
    ProfileRequest,
    ScoreAnswer,
)
from deployments.score_scoring import day_of, derived
from deployments.scorecard import FACTORS, MODEL, explain
from storage.accesses import Access
from storage.notation import rfc3339

ACCESSES_MAX: Final = 100
SEEN_DAYS: Final = 183
"""How far back a person sees who has asked (Decreto 9.936 art. 10: six months)."""

_DAY_NS: Final = 86_400 * 10**9
_EARLIEST: Final = date(1850, 1, 1)
_PROFILE: Final = msgspec.json.Decoder(ProfileRequest)


async def put_profile(call: Call) -> Answer:
    """PUT /score/v1/profile."""
    services = call.services
    about = await call.enter_with("profile", WRITE)
    request = await call.json(_PROFILE)
    now = services.clock()
    _check(request, day_of(now))
    await call.record(about, "profile", CHANGED)
    await services.profiles.put(about.person, msgspec.to_builtins(request), now)
    return _profile_answer(msgspec.to_builtins(request), now)


async def get_profile(call: Call) -> Answer:
    """GET /score/v1/profile."""
    services = call.services
    about = await call.enter("profile", PROFILE)
    consent = None
    # Whether there is somebody is looked up in any case, so that a refusal takes the same time for everybody.
    profile = await services.profiles.get(about.person)
    if not about.own:
        purpose = call.purpose()
        if purpose is None:
            raise malformed(PURPOSE, "The header says what the profile is for, as the consent does")
        user = call.identified().subject
        consent = await services.consents.live(about.person, user, purpose, services.clock())
        if consent is None:
            await call.record(about, "profile", REFUSED)
            raise ProblemError(NO_CONSENT, "No live consent lets you see this profile for this purpose")
    if profile is None:
        raise await _absent(call, about, "profile")
    await call.record(about, "profile", ANSWERED, consent=None if consent is None else consent.id)
    return _profile_answer(profile.fields, profile.updated_at)


async def get_score(call: Call) -> Answer:
    """GET /score/v1/score."""
    about = await call.enter("score", READ)
    profile = await call.services.profiles.get(about.person)
    if profile is None:
        raise await _absent(call, about, "score")
    made = await derived(call, about, profile)
    await call.record(about, "score", ANSWERED)
    explained = explain(made.bins, debts_considered=made.debts_considered)
    answer = ScoreAnswer(
        score=explained.score,
        range=explained.range,  # type: ignore[arg-type] # one of the scorecard's
        default_rate=explained.default_rate,
        model=made.model,
        factors=[FactorAnswer(*factor) for factor in explained.factors],
        debts_considered=made.debts_considered,
        computed_at=rfc3339(made.at),
        updated_at=rfc3339(profile.updated_at),
    )
    return json_answer(200, answer)


async def get_last_query(call: Call) -> Answer:
    """GET /score/v1/last-query."""
    about = await call.enter("last-query", READ)
    found = await call.services.accesses.queries(about.person, limit=1)
    await call.record(about, "last-query", SEEN)
    if not found:
        return json_answer(200, LastQuery(None, None, None))
    _, last = found[0]
    return json_answer(200, LastQuery(rfc3339(last.at), last.address, last.user))


async def get_accesses(call: Call) -> Answer:
    """GET /score/v1/accesses."""
    query = call.query()
    limit = read_limit(query, ACCESSES_MAX)
    after = read_cursor(query.get("cursor", ""))
    about = await call.enter("accesses", SELF)
    found = await call.services.accesses.queries(about.person, limit=limit + 1, after=after)
    await call.record(about, "accesses", SEEN)
    since = call.services.clock() - SEEN_DAYS * _DAY_NS
    items, last = page_of([(cursor, one) for cursor, one in found if one.at >= since], limit)
    following = None if last is None else last[0].hex()
    return json_answer(200, Accesses([_access(one) for _, one in items], following))


async def get_model(_: Call) -> Answer:
    """GET /score/v1/model."""
    factors = [
        ModelFactor(
            factor.name,
            factor.weight,
            factor.asks,
            [ModelBin(*pair) for pair in zip(factor.reasons, factor.shares, strict=True)],
        )
        for factor in FACTORS
    ]
    return json_answer(200, ModelAnswer(MODEL, factors))


def read_limit(query: Mapping[str, str], most: int) -> int:
    """The query's `limit`, `most` when there is none.

    Raises:
        ProblemError: it is out of range.
    """
    given = query.get("limit", str(most))
    if not (given.isascii() and given.isdigit() and len(given) <= 9 and 1 <= int(given) <= most):
        raise malformed("limit", f"This must be a number from 1 to {most}")
    return int(given)


def read_cursor(given: str) -> bytes:
    """The bytes of a list's cursor.

    Raises:
        ProblemError: it is none of ours.
    """
    try:
        return bytes.fromhex(given)
    except ValueError:
        raise malformed("cursor", "This is no cursor of this list") from None


async def _absent(call: Call, about: About, what: str) -> ProblemError:
    await call.record(about, what, ABSENT)
    return ProblemError(UNKNOWN_PERSON, "Nothing is known of this person here")


def _check(request: ProfileRequest, today: date) -> None:
    """Raises ProblemError for what types alone do not tell."""
    text(request.name, "name", NAME_MAX)
    born = _day(request.birth_date, "birth_date", _EARLIEST, today)
    if request.address is not UNSET:
        text(request.address.street, "address.street", LINE_MAX)
        text(request.address.city, "address.city", LINE_MAX)
    if request.credit is not UNSET and request.credit.first_credit_on is not UNSET:
        _day(request.credit.first_credit_on, "credit.first_credit_on", born, today)


def _day(given: str, field: str, earliest: date, latest: date) -> date:
    try:
        day = date.fromisoformat(given)
    except ValueError:
        raise malformed(field, "This is no day such as 1987-04-21") from None
    if day.isoformat() != given or not earliest <= day <= latest:
        raise malformed(field, f"This is no day from {earliest} to {latest}")
    return day


def _profile_answer(fields: dict[str, Any], updated_at: int) -> Answer:
    answer = msgspec.convert({**fields, "updated_at": rfc3339(updated_at)}, ProfileAnswer)
    return json_answer(200, answer)


def _access(one: Access) -> AccessAnswer:
    return AccessAnswer(rfc3339(one.at), one.address, one.user, one.what, one.purpose, one.consent, one.request)
