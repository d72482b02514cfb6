"""Bodies of the vault's calls."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from storage.notation import Centavos, Instant

NAME_MAX = 200
ADDRESS_MAX = 500
DEBTS_MAX = 500
DEBT_ID_MAX = 64

Field = Literal["name", "address", "debts"]
Fields = Annotated[list[Field], Meta(description="Of `name`, `address`, `debts`.", examples=[["debts"]])]
Shown = Annotated[list[str], Meta(description="Of `name`, `address`, `debts`.", examples=[["debts"]])]
Purpose = Annotated[
    str,
    Meta(
        description="2 to 64 small letters and hyphens.",
        examples=["credit-score"],
        extra_json_schema={"pattern": "^[a-z][a-z-]{1,63}$"},
    ),
]
Life = Annotated[
    int,
    Meta(description="Seconds, at most a day.", examples=[3600], extra_json_schema={"minimum": 1, "maximum": 86400}),
]
Name = Annotated[str, Meta(description="1 to 200 characters.", examples=["Ana Souza"])]
Address = Annotated[str, Meta(description="1 to 500 characters, one line.", examples=["Rua das Flores 12, Recife"])]


class Debt(Struct, forbid_unknown_fields=True):
    """A debt as its source reports it."""

    id: Annotated[str, Meta(description="The source's id of it: 1 to 64 characters.", examples=["d-1"])]
    creditor: Annotated[str, Meta(description="1 to 200 characters.", examples=["Banco Exemplo"])]
    contract: Annotated[str, Meta(description="1 to 64 characters.", examples=["C-2025-17"])]
    amount: Annotated[Centavos, Meta(extra_json_schema={"minimum": 1, "maximum": 2**63 - 1})]
    since: Annotated[
        str,
        Meta(description="Day since when it is due.", examples=["2026-03-01"], extra_json_schema={"format": "date"}),
    ]
    kind: Annotated[
        str,
        Meta(
            description="2 to 64 small letters and hyphens.",
            examples=["loan"],
            extra_json_schema={"pattern": "^[a-z][a-z-]{1,63}$"},
        ),
    ]
    currency: Literal["BRL"]
    disputed: Annotated[bool, Meta(description="The person says that it is not so.")]


class PersonRequest(Struct, forbid_unknown_fields=True):
    """All that is to be kept of somebody."""

    name: Name
    address: Address
    debts: Annotated[list[Debt], Meta(description="At most 500, each id once.")]


class DebtsRequest(Struct, forbid_unknown_fields=True):
    """Single debts: those to put, and the ids of those to remove."""

    debts: Annotated[list[Debt] | UnsetType, Meta(description="Each takes the place of the one with its id.")] = UNSET
    remove: Annotated[list[str] | UnsetType, Meta(description="Ids. Unknown ones do no harm.")] = UNSET


class Person(Struct):
    """What was asked for. A field that nothing is kept of is null."""

    name: str | UnsetType | None = UNSET
    address: str | UnsetType | None = UNSET
    debts: list[Debt] | UnsetType = UNSET
    updated_at: Annotated[Instant | None, Meta(description="When the newest part of it came.")] = None
    granted_until: Annotated[
        Instant | None,
        Meta(description="When the first of its grants runs out: keep nothing of it longer."),
    ] = None


class GrantRequest(Struct, forbid_unknown_fields=True):
    """A grant to give."""

    grantee: Annotated[str, Meta(description="The `sub` of the grantee's tokens.", examples=["razao-score"])]
    fields: Fields
    purpose: Purpose
    expires_in: Life


class Grant(Struct):
    """A grant."""

    id: str
    grantee: str
    fields: Shown
    purpose: Purpose
    given_by: Annotated[str, Meta(description="The `sub` of whoever gave it.")]
    status: Literal["live", "expired", "ended"]
    created_at: Instant
    expires_at: Instant
    ended_at: Instant | None


class Grants(Struct):
    """A page of them."""

    items: list[Grant]
    next_cursor: str | None


class AccessRequestRequest(Struct, forbid_unknown_fields=True):
    """A grant that a caller asks the person for."""

    fields: Fields
    purpose: Purpose
    expires_in: Life


class AccessRequest(Struct):
    """A request that the person decides."""

    id: str
    asker: Annotated[str, Meta(description="The `sub` of whoever asks.")]
    fields: Shown
    purpose: Purpose
    expires_in: Life
    status: Annotated[
        str,
        Meta(
            description="pending, approved, refused, or lapsed after seven days without an answer.",
            examples=["pending"],
        ),
    ]
    created_at: Instant
    grant: Annotated[str | None, Meta(description="Id of the grant that it led to.")]


class AccessRequests(Struct):
    """A page of them."""

    items: list[AccessRequest]
    next_cursor: str | None


class Access(Struct):
    """Who did what, when, from where, what for."""

    at: Instant
    user: Annotated[str, Meta(description="The `sub` of the token.")]
    address: Annotated[str, Meta(description="The client's network address.", examples=["192.0.2.1"])]
    action: Annotated[str, Meta(description="Such as `read`, `write`, `grant`.", examples=["read"])]
    fields: list[str]
    purpose: str
    decision: Annotated[str, Meta(description="answered, refused, not-found or failed.", examples=["answered"])]


class Accesses(Struct):
    """A page of them, the newest first."""

    items: list[Access]
    next_cursor: str | None


class LastQuery(Struct):
    """When, from where and by whom the data was last shown; null when it never was."""

    at: Instant | None
    address: str | None
    user: str | None
