"""The bodies of the payments calls as msgspec structs: what is decoded strictly, and what OpenAPI is generated from.

Amounts are plain integers here, so that one out of range is answered as `invalid-amount`, not as malformed.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from storage.events import AMOUNT_MAX
from storage.notation import AccountId, Centavos, Instant

BATCH_ROWS_MAX: Final = 10_000
DESCRIPTION_MAX: Final = 140
NAME_MAX: Final = 120
SUB_MAX: Final = 255
TIME_OF_DAY_PATTERN: Final = "([01][0-9]|2[0-3]):([0-5][0-9])"
METADATA_BYTES_MAX: Final = 4096
METADATA_DEPTH_MAX: Final = 8

_EXAMPLE_ID: Final = "01890a5d-ac96-774b-bcce-b302099a8171"  # in the slot of the example account
_EXAMPLE_OTHER: Final = "4611686018427388929"

_HOLD: Final = "Only reserve the amount; post or void it later. The payee is looked at when it is posted."


def line_schema(length_max: int) -> dict[str, Any]:
    """The JSON Schema of a line of text (`json_body.text`): no control characters."""
    return {"minLength": 1, "maxLength": length_max, "pattern": "^[^\\u0000-\\u001f\\u007f-\\u009f]*$"}


EventId = Annotated[
    str,
    Meta(
        description="UUID of version 7 made by the client: sent again, it gets the first answer again. Its last three "
        "hexadecimal digits are those of the paying account (of a deposit, the one that gets it; of a refund, the "
        "original's payee) modulo 1024.",
        examples=[_EXAMPLE_ID],
        extra_json_schema={"format": "uuid"},
    ),
]
OpeningId = Annotated[
    str,
    Meta(
        description="UUID of version 7 made by the client, any one: sent again, it gets the first answer again.",
        examples=[_EXAMPLE_ID],
        extra_json_schema={"format": "uuid"},
    ),
]
Amount = Annotated[
    int,
    Meta(
        description="Centavos, without a decimal point.",
        examples=[12_345],
        extra_json_schema={"minimum": 1, "maximum": AMOUNT_MAX},
    ),
]
Description = Annotated[
    str,
    Meta(
        description=f"A line of text, 1 to {DESCRIPTION_MAX} characters.",
        examples=["Lunch"],
        extra_json_schema=line_schema(DESCRIPTION_MAX),
    ),
]
Metadata = Annotated[
    Raw,
    Meta(
        description=f"Any JSON object of up to {METADATA_BYTES_MAX} bytes. Its text is kept and given back as it is, "
        "order of keys and digits of numbers too; only whitespace outside of strings goes.",
        examples=[{"order": "A-17"}],
        extra_json_schema={"type": "object"},
    ),
]
TimeOfDay = Annotated[
    str,
    Meta(
        description="HH:MM, America/Sao_Paulo.",
        examples=["20:00"],
        extra_json_schema={"pattern": f"^{TIME_OF_DAY_PATTERN}$"},
    ),
]
LimitAmount = Annotated[
    int | None,
    Meta(
        description="Centavos; null: no limit.",
        examples=[100_000],
        extra_json_schema={"minimum": 0, "maximum": AMOUNT_MAX - 1},
    ),
]
Cursor = Annotated[str | None, Meta(description="Opaque; ask for the next page with it. Null on the last page.")]


class Body(Struct, forbid_unknown_fields=True):
    """What clients send."""


class View(Struct, omit_defaults=True):
    """What clients get."""


# -- transfers --------------------------------------------------------------------------------------------------------


class TransferRequest(Body):
    """Move money from one account to another, or put it on hold."""

    debit_account: AccountId
    credit_account: AccountId
    amount: Amount
    id: EventId | UnsetType = UNSET
    hold: Annotated[bool, Meta(description=_HOLD)] | UnsetType = UNSET
    expires_in: (
        Annotated[
            int,
            Meta(
                description="Life of the hold in seconds; only with `hold`.",
                examples=[3600],
                extra_json_schema={"minimum": 1},
            ),
        ]
        | UnsetType
    ) = UNSET
    description: Description | UnsetType = UNSET
    metadata: Metadata | UnsetType = UNSET


class BatchRow(TransferRequest):
    """One transfer of a batch."""

    linked: (
        Annotated[bool, Meta(description="Tied to the next one: the chain happens whole or not at all.")] | UnsetType
    ) = UNSET


class BatchRequest(Body):
    """Up to 10,000 transfers."""

    transfers: Annotated[list[BatchRow], Meta(extra_json_schema={"minItems": 1, "maxItems": BATCH_ROWS_MAX})]


class DepositRequest(Body):
    """Money that comes into the book from outside."""

    account: AccountId
    amount: Amount
    id: EventId | UnsetType = UNSET
    description: Description | UnsetType = UNSET
    metadata: Metadata | UnsetType = UNSET


class WithdrawalRequest(DepositRequest):
    """Money that leaves the book."""


class PostRequest(Body):
    """Post a hold, in whole or in part."""

    amount: Annotated[Amount, Meta(description="Centavos; left out: the whole hold.")] | UnsetType = UNSET


class VoidRequest(Body):
    """Give a hold up."""


class RefundRequest(Body):
    """Give money of a transfer back to its payer."""

    amount: Amount
    id: EventId | UnsetType = UNSET
    description: Description | UnsetType = UNSET
    metadata: Metadata | UnsetType = UNSET


TransferStatus = Literal["settled", "held", "posted", "voided", "expired", "refused"]
TransferKind = Literal["transfer", "hold", "deposit", "withdrawal", "refund", "post", "void"]
EntryKind = Literal["transfer", "deposit", "withdrawal", "refund", "post", "reversal"]


class Transfer(View):
    """A transfer, deposit, withdrawal, hold or refund."""

    id: EventId
    kind: TransferKind
    status: TransferStatus
    amount: Amount
    currency: Literal["BRL"]
    debit_account: Annotated[str, Meta(description='An account, or "settlement": money from outside the book.')]
    credit_account: Annotated[str, Meta(description='An account, or "settlement": money from outside the book.')]
    created_at: Instant
    posted_amount: Centavos | UnsetType = UNSET
    refunded_amount: Centavos | UnsetType = UNSET
    expires_at: Instant | UnsetType = UNSET
    refund_of: Annotated[str, Meta(description="Id of the original of a refund.")] | UnsetType = UNSET
    hold: Annotated[str, Meta(description="Id of the hold of a post or void.")] | UnsetType = UNSET
    type: Annotated[str, Meta(description="Of a refused one: the problem's type.")] | UnsetType = UNSET
    description: Description | UnsetType = UNSET
    metadata: Metadata | UnsetType = UNSET


class BatchResult(View):
    """What became of one transfer of a batch."""

    id: EventId
    status: Literal["settled", "held", "refused", "unsure"]
    type: Annotated[str, Meta(description="Of one that is refused or unsure: the problem's type.")] | UnsetType = UNSET


class BatchAnswer(View):
    """What became of a batch, in its order."""

    results: list[BatchResult]


# -- accounts ---------------------------------------------------------------------------------------------------------


class OwnerRequest(Body):
    """Whose account it will be."""

    name: Annotated[
        str,
        Meta(
            description=f"1 to {NAME_MAX} characters, none that cannot be seen or turns the direction of writing "
            "round; kept in NFC.",
            examples=["Maria da Silva"],
            extra_json_schema=line_schema(NAME_MAX),
        ),
    ]
    tax_id: (
        Annotated[
            str,
            Meta(
                description="CPF or CNPJ: the one that the token proves, any for operators. Left out by whoever has "
                "proven none.",
                examples=["12345678909"],
                extra_json_schema=line_schema(SUB_MAX),
            ),
        ]
        | UnsetType
    ) = UNSET
    sub: (
        Annotated[
            str,
            Meta(
                description="Subject of the owner's tokens; the caller's when left out.",
                extra_json_schema=line_schema(SUB_MAX),
            ),
        ]
        | UnsetType
    ) = UNSET


class NightWindow(Body):
    """When it is night for the limit."""

    from_: TimeOfDay = msgspec.field(name="from")
    to: TimeOfDay


class LimitsRequest(Body):
    """Limits of what an account may send. On a change, those left out stay; null removes one."""

    per_transfer: LimitAmount | UnsetType = UNSET
    daily: LimitAmount | UnsetType = UNSET
    night: LimitAmount | UnsetType = UNSET
    night_window: NightWindow | UnsetType = UNSET


class OpenRequest(Body):
    """Open an account."""

    owner: OwnerRequest
    limits: LimitsRequest | UnsetType = UNSET
    id: OpeningId | UnsetType = UNSET


class ChangeRequest(Body):
    """Change an account: its status or its limits, one at a time."""

    status: Literal["open", "frozen", "closed"] | UnsetType = UNSET
    limits: LimitsRequest | UnsetType = UNSET


class Balance(View):
    """Posted: what has moved. Pending: what is on hold. Available: what may be spent."""

    posted: Centavos
    pending: Centavos
    available: Centavos


class BalanceAnswer(View):
    """The balance of one account."""

    account: AccountId
    currency: Literal["BRL"]
    posted: Centavos
    pending: Centavos
    available: Centavos
    at: Annotated[Instant, Meta(description="The instant asked for.")] | UnsetType = UNSET


class Raise(View):
    """A raise of a limit that waits for its time."""

    limit: Literal["per_transfer", "daily", "night", "night_window"]
    at: Instant
    value: Annotated[Any, Meta(description="Centavos, null for no limit, or a window.")] = UNSET


class Limits(View):
    """The limits in force, and the raises that wait."""

    per_transfer: LimitAmount
    daily: LimitAmount
    night: LimitAmount
    night_window: NightWindow
    raises: list[Raise]


class OwnerView(View):
    """Whose account it is. Of a CPF only the middle is shown; null where nobody has proven that it is theirs."""

    name: str
    tax_id: str | None
    sub: str


class Account(View):
    """An account."""

    id: AccountId
    status: Literal["open", "frozen", "closed"]
    currency: Literal["BRL"]
    balance: Balance
    limits: Limits
    owner: OwnerView
    created_at: Annotated[Instant, Meta(description="When the ledger opened it; from then on it has a balance.")]


class AccountItem(View):
    """An account in a list."""

    id: AccountId
    status: Literal["open", "frozen", "closed"]
    currency: Literal["BRL"]
    balance: Balance


class AccountPage(View):
    """Accounts in order of their ids."""

    items: list[AccountItem]
    next_cursor: Cursor


class Entry(View):
    """One movement of an account."""

    transfer: Annotated[str, Meta(description="Id of the transfer, hold, deposit, withdrawal or refund.")]
    kind: EntryKind
    side: Literal["debit", "credit"]
    amount: Amount
    balance: Annotated[int, Meta(description="Posted balance afterwards, centavos.")]
    at: Instant


class EntryPage(View):
    """Movements, newest first."""

    items: list[Entry]
    next_cursor: Cursor


class ShardHealth(View):
    """How one shard is doing."""

    name: str
    epoch: int
    offset: int


class Health(View):
    """Every shard serves."""

    status: Literal["ok"]
    shards: list[ShardHealth]
