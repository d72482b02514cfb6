"""What the trace's clients send and get: structs from which decoding, encoding and the OpenAPI document are made."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import Meta, Struct

from deployments.payments_schema import EntryKind
from storage.notation import AccountId, Centavos, Instant

PURCHASES_MAX: Final = 1000
AMOUNT_MAX: Final = 2**63 - 1


class LastQuery(Struct):
    """Who asked about the person last; all null when nobody has."""

    at: Instant | None
    address: Annotated[str | None, Meta(description="The network address that the question came from.")]
    user: Annotated[str | None, Meta(description="The user who asked.")]


class Movement(Struct):
    """Money that came to or left one of the person's accounts."""

    transfer: Annotated[str, Meta(description="Id of the transfer, deposit, withdrawal, hold or refund.")]
    account: AccountId
    kind: EntryKind
    side: Literal["debit", "credit"]
    amount: Centavos
    at: Instant


class CardPurchase(Struct):
    """A purchase by card."""

    id: str
    merchant: str
    amount: Centavos
    at: Instant


class Person(Struct):
    """What there is of a person. As it was at `as_of`, which is at most a second ago."""

    last_query: LastQuery | None
    movements: Annotated[list[Movement], Meta(description="The 20 newest, the newest first.")]
    last_card_purchase: CardPurchase | None
    as_of: Instant


class NewPurchase(Struct, forbid_unknown_fields=True):
    """A purchase to store."""

    id: Annotated[str, Meta(description="1 to 64 characters, of the sender's choice.", examples=["acq-7-000123"])]
    tax_id: Annotated[str, Meta(description="CPF or CNPJ of the card holder.", examples=["529.982.247-25"])]
    merchant: Annotated[str, Meta(description="1 to 120 characters.", examples=["Padaria Central"])]
    amount: Annotated[int, Meta(description="Centavos, from 1 on.", examples=[1890])]
    at: Instant


class NewPurchases(Struct, forbid_unknown_fields=True):
    """Purchases to store."""

    purchases: Annotated[list[NewPurchase], Meta(description="1 to 1,000, each with an id of its own.")]


class PurchaseResult(Struct):
    """What became of a purchase."""

    id: str
    status: Annotated[
        Literal["stored", "known", "conflict"],
        Meta(description="known: stored before, just so; conflict: the id is another purchase's, which stands."),
    ]


class PurchaseResults(Struct):
    """What became of each, in the order of the request."""

    results: list[PurchaseResult]
