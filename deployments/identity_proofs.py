"""`/auth/proofs`: an operator has made sure that a CPF or CNPJ is somebody's, or takes that back.

Whoever proves it names the tax id that they have seen. It has to be the one that the person has claimed, of which we
keep a keyed hash: an operator cannot confirm by mistake what an impostor has claimed.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from deployments.identity_call import Call
from deployments.identity_roles import PROVE
from deployments.identity_schema import USERNAME_MAX, Proof, ProofRequest, ProofRevocation
from deployments.json_body import text
from deployments.problems import FORBIDDEN, PROOF_CONFLICT, UNKNOWN_USER, ProblemError, malformed
from deployments.request import Answer, json_answer
from deployments.tax_id import read_tax_id
from storage.identity import ProofConflict, User, canonical_username
from storage.references import person_reference

_HOW: Final = re.compile(r"[a-z](?:[a-z-]{0,62}[a-z])?", re.ASCII)
_PROVE: Final = msgspec.json.Decoder(ProofRequest)
_REVOKE: Final = msgspec.json.Decoder(ProofRevocation)


def read_how(given: str, field: str) -> str:
    """By what it was proven, or why no more. No digits: it is kept for ever, and no place for a tax id.

    Raises:
        ProblemError: it has another form.
    """
    if not _HOW.fullmatch(given):
        raise malformed(field, "This has 1 to 64 small letters, with hyphens between them")
    return given


async def prove(call: Call) -> Answer:
    """POST /auth/proofs."""
    services = call.services
    actor = call.person(PROVE)
    request = await call.json(_PROVE)
    how = read_how(request.method, "method")
    tax_id = read_tax_id(request.tax_id, "tax_id", repeated=services.repeated_tax_ids)
    user = await _user(call, request.username)
    if user.sub == actor:
        raise ProblemError(FORBIDDEN, "Nobody vouches for themselves", field="username")
    try:
        await services.users.prove(user.sub, person_reference(services.ledger_key, tax_id), how, call.by(actor))
    except ProofConflict as error:
        raise ProblemError(PROOF_CONFLICT, str(error), field="tax_id") from None
    return json_answer(200, Proof(user.sub, user.username, proven=True))


async def revoke(call: Call) -> Answer:
    """POST /auth/proofs/revocations."""
    actor = call.person(PROVE)
    request = await call.json(_REVOKE)
    reason = read_how(request.reason, "reason")
    user = await _user(call, request.username)
    await call.services.users.unprove(user.sub, reason, call.by(actor))
    return json_answer(200, Proof(user.sub, user.username, proven=False))


async def _user(call: Call, given: str) -> User:
    user = await call.services.users.by_name(canonical_username(text(given, "username", USERNAME_MAX)))
    if user is None:
        raise ProblemError(UNKNOWN_USER, "There is nobody of this username", field="username")
    return user
