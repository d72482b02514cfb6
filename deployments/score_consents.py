"""The score service's calls about consents: the person gives them, sees them, and ends them."""

from __future__ import annotations

import uuid
from hashlib import blake2b
from typing import Final

import msgspec

from deployments.json_body import text
from deployments.problems import TOO_MANY_CONSENTS, UNKNOWN_CONSENT, ProblemError
from deployments.request import Answer, json_answer
from deployments.score_call import CHANGED, SEEN, SELF, About, Call
from deployments.score_schema import ConsentAnswer, ConsentList, ConsentRequest
from storage.consents import Consent, TooManyConsents
from storage.notation import rfc3339

SUBJECT_MAX: Final = 255
_NS: Final = 1_000_000_000
_CONSENT: Final = msgspec.json.Decoder(ConsentRequest)


async def give(call: Call) -> Answer:
    """POST /score/v1/consents."""
    about = await call.enter("consent", SELF)
    request = await call.json(_CONSENT)
    now = call.services.clock()
    consent = Consent(
        id=_new_id(call, about),
        grantee=text(request.grantee, "grantee", SUBJECT_MAX),
        purpose=request.purpose,
        made_at=now,
        made_by=call.identified().subject,
        expires_at=now + request.expires_in * _NS,
    )
    await call.record(about, "consent", CHANGED, consent=consent.id)
    try:
        kept = await call.services.consents.give(about.person, consent)
    except TooManyConsents:
        raise ProblemError(TOO_MANY_CONSENTS, "End one of your live consents first") from None
    return json_answer(201, _answer(kept))


async def list_all(call: Call) -> Answer:
    """GET /score/v1/consents."""
    about = await call.enter("consent", SELF)
    known = await call.services.consents.of(about.person)
    await call.record(about, "consent", SEEN)
    return json_answer(200, ConsentList([_answer(one) for one in known]))


async def end(call: Call) -> Answer:
    """DELETE /score/v1/consents/{id}."""
    about = await call.enter("consent", SELF)
    await call.record(about, "consent", CHANGED, consent=call.path["id"][:64])
    ended = await call.services.consents.end(about.person, call.path["id"], call.services.clock())
    if ended is None:
        raise ProblemError(UNKNOWN_CONSENT, "You have given no consent with this id")
    return Answer(204, b"", [])


def _new_id(call: Call, about: About) -> str:
    """Follows from the request's number: come twice, a request makes no second consent."""
    content = about.person + call.request_id.encode()
    digest = blake2b(content, digest_size=16, key=call.services.key, person=b"razao.consent").digest()
    return str(uuid.UUID(bytes=digest, version=4))


def _answer(consent: Consent) -> ConsentAnswer:
    ended = None if consent.ended_at is None else rfc3339(consent.ended_at)
    made, expires = rfc3339(consent.made_at), rfc3339(consent.expires_at)
    return ConsentAnswer(consent.id, consent.grantee, consent.purpose, made, expires, ended)
