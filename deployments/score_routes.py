"""The table of the score service's calls."""

from __future__ import annotations

from typing import Final

from deployments import score_consents, score_extract, score_people
from deployments.openapi import Operation, Parameter
from deployments.problems import (
    INVALID_TAX_ID,
    NO_CONSENT,
    TOO_MANY_CONSENTS,
    UNKNOWN_CONSENT,
    UNKNOWN_PERSON,
)
from deployments.request import PURPOSE, TAX_ID
from deployments.score_call import EXTRACT, PROFILE, PURPOSE_PATTERN, READ, SELF, WRITE
from deployments.score_schema import (
    Accesses,
    ConsentAnswer,
    ConsentList,
    ConsentRequest,
    LastQuery,
    ModelAnswer,
    ProfileAnswer,
    ProfileRequest,
    ScoreAnswer,
)

PREFIX: Final = "/score/v1"

INTRODUCTION: Final = """The score service: profiles of people and companies, and a credit score with its reasons. Every
call but the documents takes a token for the audience `score`. The person stands in the header `Razao-Tax-Id`, as CPF or
CNPJ, never in an address.

The score may be given to whoever has the scope `score:read`. The profile is shown to somebody else only with the scope
`score:profile` and under the person's own consent to that caller and purpose, which ends by itself within a day. A
person with a token of their own (`score:self`) sees everything of themselves. Each answer is on record before it
leaves.

Debts are not kept here. A score asks the vault for them under the person's grant to `razao-score`; where there is none,
or the vault does not answer in time, the score is made without, and says `debts_considered: false`. The model is at
`/score/v1/model`."""

_TAX_ID: Final = Parameter(
    TAX_ID, "header", "CPF or CNPJ of whom this is about.", {"type": "string", "minLength": 1}, required=True
)
_PURPOSE: Final = Parameter(
    PURPOSE, "header", "What the data is for: small letters, digits and hyphens.",
    {"type": "string", "pattern": f"^{PURPOSE_PATTERN}$"},
)  # fmt: skip
_CURSOR: Final = Parameter("cursor", "query", "The `next_cursor` of the page before.", {"type": "string"})
_LIMIT: Final = Parameter(
    "limit", "query", "Items on a page.",
    {"type": "integer", "minimum": 1, "maximum": score_people.ACCESSES_MAX, "default": score_people.ACCESSES_MAX},
)  # fmt: skip
_ROWS: Final = Parameter(
    "limit", "query", "Rows at most; all when left out.",
    {"type": "integer", "minimum": 1, "maximum": score_extract.ROWS_MAX},
)  # fmt: skip
_ROW_CURSOR: Final = Parameter("cursor", "query", "A row's `cursor`: go on after that row.", {"type": "string"})
_ID: Final = Parameter("id", "path", "Of the consent.", {"type": "string"})
_ACCEPT: Final = Parameter(
    "Accept", "header", f"`{score_extract.ARROW}` for Arrow; anything else gets NDJSON.", {"type": "string"}
)


def api_operations() -> tuple[Operation, ...]:
    """All but the documents."""
    people, consents = score_people, score_consents
    return (
        Operation(
            "PUT", f"{PREFIX}/profile", "put_profile", "Write a profile",
            "The whole of it; what is left out is not known any more.", people.put_profile, WRITE,
            ProfileRequest, ProfileAnswer, 200, (_TAX_ID, _PURPOSE), (INVALID_TAX_ID,),
        ),
        Operation(
            "GET", f"{PREFIX}/profile", "get_profile", "Read a profile",
            "For the person; for others under a live consent, with the purpose that it names.", people.get_profile,
            PROFILE, None, ProfileAnswer, 200, (_TAX_ID, _PURPOSE), (INVALID_TAX_ID, NO_CONSENT, UNKNOWN_PERSON),
        ),
        Operation(
            "GET", f"{PREFIX}/score", "get_score", "Read a score",
            "With its reasons. It is kept for an hour at most, and made anew once the profile or the debts change.",
            people.get_score, READ, None, ScoreAnswer, 200, (_TAX_ID, _PURPOSE), (INVALID_TAX_ID, UNKNOWN_PERSON),
        ),
        Operation(
            "GET", f"{PREFIX}/last-query", "get_last_query", "Who has asked last",
            "The newest query of score or profile that was answered.", people.get_last_query, READ,
            None, LastQuery, 200, (_TAX_ID, _PURPOSE), (INVALID_TAX_ID,),
        ),
        Operation(
            "GET", f"{PREFIX}/accesses", "get_accesses", "Who has asked within six months",
            "For the person alone, the newest first.", people.get_accesses, SELF,
            None, Accesses, 200, (_TAX_ID, _PURPOSE, _CURSOR, _LIMIT), (INVALID_TAX_ID,),
        ),
        Operation(
            "POST", f"{PREFIX}/consents", "give_consent", "Let somebody see the profile",
            "By the person alone.", consents.give, SELF,
            ConsentRequest, ConsentAnswer, 201, (_TAX_ID, _PURPOSE), (INVALID_TAX_ID, TOO_MANY_CONSENTS),
        ),
        Operation(
            "GET", f"{PREFIX}/consents", "list_consents", "Consents of a person",
            "For the person alone; with those that have ended, the newest first.", consents.list_all, SELF,
            None, ConsentList, 200, (_TAX_ID, _PURPOSE), (INVALID_TAX_ID,),
        ),
        Operation(
            "DELETE", f"{PREFIX}/consents/{{id}}", "end_consent", "End a consent",
            "At once, also for tokens that are out.", consents.end, SELF,
            None, None, 204, (_ID, _TAX_ID, _PURPOSE), (INVALID_TAX_ID, UNKNOWN_CONSENT),
        ),
        Operation(
            "GET", score_extract.PATH, "extract", "The whole base, pseudonymised",
            "A stream of rows with ages, incomes, assets and credit histories, without names and tax ids. Pseudonyms "
            "are the same each time. The last row of each batch has a `cursor`. A stream may end before the base "
            "does: ask again after the last cursor that came, until nothing comes. When the token expires or is "
            "revoked, it ends with the problem: as a last line `{\"problem\": {…}}`, or in Arrow as the metadata "
            "`problem` of a last batch without rows. `score` is made without debts and credit searches.",
            score_extract.extract, EXTRACT, None, None, 200, (_ROW_CURSOR, _ROWS, _ACCEPT),
            media_types=(score_extract.NDJSON, score_extract.ARROW),
        ),
        Operation(
            "GET", f"{PREFIX}/model", "get_model", "The scorecard", "Its factors, bins and shares.",
            people.get_model, None, None, ModelAnswer,
        ),
    )  # fmt: skip
