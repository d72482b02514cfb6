"""The table of the vault's calls: what each takes, answers and may end with."""

from __future__ import annotations

from typing import Final

from deployments import vault_accesses as accesses
from deployments import vault_grants as grants
from deployments import vault_people as people
from deployments import vault_rules as rules
from deployments.openapi import Operation, Parameter
from deployments.problems import (
    ALREADY_DECIDED,
    INVALID_TAX_ID,
    TOO_MANY_ACCESS_REQUESTS,
    UNKNOWN_ACCESS_REQUEST,
    UNKNOWN_GRANT,
)
from deployments.request import PURPOSE, TAX_ID
from deployments.vault_schema import (
    Accesses,
    AccessRequest,
    AccessRequestRequest,
    AccessRequests,
    DebtsRequest,
    Grant,
    GrantRequest,
    Grants,
    LastQuery,
    Person,
    PersonRequest,
)

PREFIX: Final = "/vault/v1"
INTRODUCTION: Final = (
    "What is known of people at the highest level of secrecy: name, address and debts. The person is named by CPF or "
    "CNPJ in the header `Razao-Tax-Id` of every call, never in an address.\n\n"
    "Data is shown to a caller whose token has the scope of each field (`vault:read:name`, `vault:read:address`, "
    "`vault:read:debts`) **and** to whom the person has granted each field for the purpose in `Razao-Purpose`. A grant "
    "lives a day at most, and ends the moment it is deleted, whatever tokens are about. People act on their own data "
    "with a token that has `vault:self` and carries their tax id's reference.\n\n"
    "A refusal says which field lacks what (`scope`, `grant`) and nothing else: it is the same, in the same time, for "
    "somebody of whom nothing is kept. Every answer and every refusal is on a tamper-evident record before it leaves; "
    "the person can read who has seen what."
)

_ID: Final = Parameter("id", "path", "A UUID.", {"type": "string", "format": "uuid"})
_WHO: Final = Parameter(
    TAX_ID, "header", "CPF or CNPJ of the person, with or without punctuation.",
    {"type": "string", "minLength": 1, "examples": ["529.982.247-25"]}, required=True,
)  # fmt: skip
_WHAT_FOR: Final = Parameter(
    PURPOSE, "header", "What the data is for. Needed but by the person themselves.",
    {"type": "string", "pattern": f"^{rules.PURPOSE}$", "examples": ["credit-score"]},
)  # fmt: skip
_FIELD: Final = f"({'|'.join(rules.READ)})"
_FIELDS: Final = Parameter(
    "fields", "query", "One or more of `name`, `address`, `debts`, with commas, each once.",
    {"type": "string", "pattern": f"^{_FIELD}(,{_FIELD}){{0,2}}$", "examples": ["debts"]}, required=True,
)  # fmt: skip
_PAGE: Final = (
    Parameter(
        "cursor",
        "query",
        "`next_cursor` of the page before; any other text is `malformed`.",
        {"type": "string", "minLength": 1},
    ),
    Parameter("limit", "query", "At most so many.", {"type": "integer", "minimum": 1, "maximum": 100, "default": 50}),
)
_OWN: Final = "The person, or "


def api_operations() -> tuple[Operation, ...]:
    """The calls of `/vault/v1`."""
    return (
        Operation(
            "GET", f"{PREFIX}/person", "getPerson", "Read fields of somebody",
            "All fields asked for, or none. With a token of their own (`vault:self`) people read what is kept of them.",
            people.get_person, scope="vault:read:…", response=Person, parameters=(_WHO, _WHAT_FOR, _FIELDS),
            problems=(INVALID_TAX_ID,),
        ),
        Operation(
            "PUT", f"{PREFIX}/person", "putPerson", "Keep name, address and debts of somebody",
            "Takes the place of what was kept before.", people.put_person, scope=rules.WRITE, request=PersonRequest,
            status=204, parameters=(_WHO,), problems=(INVALID_TAX_ID,),
        ),
        Operation(
            "PATCH", f"{PREFIX}/person", "patchPerson", "Put and remove single debts",
            "Also of somebody of whom nothing else is kept.", people.patch_person, scope=rules.WRITE,
            request=DebtsRequest, status=204, parameters=(_WHO,), problems=(INVALID_TAX_ID,),
        ),
        Operation(
            "DELETE", f"{PREFIX}/person", "erasePerson", "Erase somebody",
            f"{_OWN}`vault:write`. Destroys the key that everything of the person is sealed with, and ends every "
            "grant; the record of accesses, which has no content, stays.",
            people.delete_person, scope=rules.WRITE, status=204, parameters=(_WHO,), problems=(INVALID_TAX_ID,),
        ),
        Operation(
            "GET", f"{PREFIX}/person/accesses", "getAccesses", "Who saw what, when, for which purpose",
            f"{_OWN}`vault:audit`. The newest first; refusals too.", accesses.get_accesses, scope=rules.AUDIT,
            response=Accesses, parameters=(_WHO, *_PAGE), problems=(INVALID_TAX_ID,),
        ),
        Operation(
            "GET", f"{PREFIX}/person/last-query", "getLastQuery", "When data of somebody was last shown, and to whom",
            f"{_OWN}`vault:audit`.", accesses.get_last_query, scope=rules.AUDIT, response=LastQuery,
            parameters=(_WHO,), problems=(INVALID_TAX_ID,),
        ),
        Operation(
            "POST", f"{PREFIX}/grants", "giveGrant", "Let somebody read fields for a purpose and a time",
            f"{_OWN}`vault:grant`.", grants.give, scope=rules.GRANT, request=GrantRequest, response=Grant, status=201,
            parameters=(_WHO,), problems=(INVALID_TAX_ID,),
        ),
        Operation(
            "GET", f"{PREFIX}/grants", "listGrants", "Grants of somebody, those that have ended too",
            f"{_OWN}`vault:grant` or `vault:audit`.", grants.list_grants, scope=rules.GRANT, response=Grants,
            parameters=(_WHO, *_PAGE), problems=(INVALID_TAX_ID,),
        ),
        Operation(
            "DELETE", f"{PREFIX}/grants/{{id}}", "endGrant", "End a grant at once",
            f"{_OWN}`vault:grant`. Tokens that were issued before open nothing by it any more.", grants.end,
            scope=rules.GRANT, status=204, parameters=(_WHO, _ID), problems=(INVALID_TAX_ID, UNKNOWN_GRANT),
        ),
        Operation(
            "POST", f"{PREFIX}/access-requests", "askForAccess", "Ask somebody for a grant to the caller",
            "Needs the scopes that the grant would open fields to.", grants.ask, scope="vault:read:…",
            request=AccessRequestRequest, response=AccessRequest, status=202, parameters=(_WHO,),
            problems=(INVALID_TAX_ID, TOO_MANY_ACCESS_REQUESTS),
        ),
        Operation(
            "GET", f"{PREFIX}/access-requests", "listAccessRequests", "Requests to somebody",
            "All of them to the person; to others only their own.", grants.list_requests, scope="vault:read:…",
            response=AccessRequests, parameters=(_WHO, *_PAGE), problems=(INVALID_TAX_ID,),
        ),
        Operation(
            "POST", f"{PREFIX}/access-requests/{{id}}/approve", "approveAccess", "Grant what was asked for",
            "Only the person.", grants.approve, scope=rules.SELF, response=AccessRequest, parameters=(_WHO, _ID),
            problems=(INVALID_TAX_ID, UNKNOWN_ACCESS_REQUEST, ALREADY_DECIDED),
        ),
        Operation(
            "POST", f"{PREFIX}/access-requests/{{id}}/refuse", "refuseAccess", "Grant nothing",
            "Only the person.", grants.refuse, scope=rules.SELF, response=AccessRequest, parameters=(_WHO, _ID),
            problems=(INVALID_TAX_ID, UNKNOWN_ACCESS_REQUEST, ALREADY_DECIDED),
        ),
    )  # fmt: skip
