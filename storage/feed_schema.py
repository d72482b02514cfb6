"""What the world is told of the ledger: CloudEvents 1.0 in JSON, and the structs that their data are made of.

An event is about one account, its `subject`: a payment between two accounts is two events, one for each side. Its `id`
is made of its place in the journal and stays the same however often the feed is built again. There is no personal data
in it: no name, no tax id, no description or metadata. Specification: CloudEvents 1.0.2, JSON event format 1.0.2.
"""

from __future__ import annotations

import uuid
from typing import Annotated, Final, Literal, NamedTuple

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from storage.events import SETTLEMENT, Code, Kind
from storage.notation import CURRENCY, AccountId, Centavos, Instant, rfc3339

PREFIX: Final = "br.razao."
SOURCE: Final = "urn:razao:ledger"
MEDIA_TYPE: Final = "application/cloudevents+json"
"""Of one event in structured mode."""

TransferId = Annotated[
    str,
    Meta(
        description="Of the transfer, deposit, withdrawal, hold or refund.",
        examples=["01890a5d-ac96-774b-bcce-b302099a8057"],
        extra_json_schema={"format": "uuid"},
    ),
]
Position = Annotated[
    str,
    Meta(
        description="Where the journal has it; a read that carries it as `Razao-Position` sees what the event tells.",
        examples=["0:1234"],
        extra_json_schema={"pattern": "^[0-9]+:[0-9]+$"},
    ),
]
Refusal = Annotated[
    str,
    Meta(
        description="Why it was refused.",
        examples=["insufficient-funds"],
        extra_json_schema={
            "enum": [code.name.lower().replace("_", "-") for code in Code if Code.IN_FLIGHT < code < Code.ID_CONFLICT]
        },
    ),
]


class Balance(Struct):
    """Of the subject at that moment. Posted: what has moved. Pending: what is on hold."""

    posted: Centavos
    pending: Centavos
    available: Centavos


class AccountData(Struct):
    """What an account has become."""

    account: AccountId
    status: Literal["open", "frozen", "closed"]
    position: Position


class TransferData(Struct, omit_defaults=True):
    """What became of a transfer, as the subject sees it."""

    transfer: TransferId
    kind: Annotated[
        Literal["transfer", "deposit", "withdrawal", "hold", "post", "void", "refund"],
        Meta(description="What was asked for."),
    ]
    side: Annotated[Literal["debit", "credit"], Meta(description="Whether the subject pays or is paid.")]
    amount: Centavos
    currency: Literal["BRL"]
    account: AccountId
    other_account: Annotated[str, Meta(description='The other side, or "settlement": money from outside the book.')]
    position: Position
    balance: Balance | UnsetType = UNSET
    refusal: Refusal | UnsetType = UNSET
    expires_at: Annotated[Instant, Meta(description="When a hold ends by itself.")] | UnsetType = UNSET
    refund_of: (
        Annotated[str, Meta(description="On the debit side of a refund: the id of the original.")] | UnsetType
    ) = UNSET


class CloudEvent(Struct):
    """One event. Attributes as CloudEvents names them."""

    specversion: Literal["1.0"]
    id: str
    source: str
    type: str
    subject: AccountId
    time: Instant
    datacontenttype: Literal["application/json"]
    data: AccountData | TransferData | msgspec.Raw


class EventType(NamedTuple):
    """One type of event, for those who describe or check them."""

    name: str  # without the prefix
    data: type[Struct]
    description: str


TYPES: Final = (
    EventType("account.opened", AccountData, "An account was opened."),
    EventType("account.frozen", AccountData, "An account was frozen: nothing leaves it or comes in."),
    EventType("account.unfrozen", AccountData, "A frozen account is open again."),
    EventType("account.closed", AccountData, "An account was closed for good."),
    EventType(
        "transfer.settled", TransferData,
        "A transfer, deposit or withdrawal is final. To the payer of a payment between shards this is said when the "
        "payee's shard has taken it, not when the money left.",
    ),
    EventType("transfer.held", TransferData, "An amount was put on hold; told to the payer only, as all of a hold is."),
    EventType("transfer.posted", TransferData, "A hold was posted: `amount` has moved, the rest is available again."),
    EventType("transfer.voided", TransferData, "A hold was given up; told to the payer."),
    EventType("transfer.expired", TransferData, "A hold came to its end by itself; told to the payer."),
    EventType("transfer.refunded", TransferData, "Money of an earlier payment was given back; `debit` is who gives."),
    EventType(
        "transfer.refused", TransferData,
        "What was asked for did not happen, and never will under this id. Told to who would have paid; a deposit's to "
        "who would have been paid.",
    ),
)  # fmt: skip
"""All of them."""

_STATUS: Final[dict[str, Literal["open", "frozen", "closed"]]] = {
    "account.opened": "open",
    "account.unfrozen": "open",
    "account.frozen": "frozen",
    "account.closed": "closed",
}
_KINDS: Final[dict[int, Literal["transfer", "deposit", "withdrawal", "hold", "post", "void", "refund"]]] = {
    Kind.TRANSFER: "transfer",
    Kind.DEPOSIT: "deposit",
    Kind.WITHDRAWAL: "withdrawal",
    Kind.HOLD: "hold",
    Kind.POST: "post",
    Kind.VOID: "void",
    Kind.EXPIRE: "hold",
    Kind.REFUND: "refund",
}
_encoder: Final = msgspec.json.Encoder()


class Happening(NamedTuple):
    """A row of query.events. Amounts: centavos; times: ns since 1970 UTC."""

    partition: int
    at: int
    side: int  # 0: who pays, or the account itself; 1: who is paid
    position: int
    account: int
    type: str  # without the prefix
    transfer: uuid.UUID | None
    kind: int
    amount: int | None
    other: int | None
    balance: int | None
    pending: int | None
    code: int | None  # of a refusal
    expires_at: int | None
    refund_of: uuid.UUID | None

    @property
    def place(self) -> int:
        """Orders the events of a partition."""
        return self.at * 2 + self.side

    @property
    def id(self) -> str:
        """The same whenever the feed is built again."""
        return f"{self.partition}-{self.at}-{self.side}"


class Message(NamedTuple):
    """An event on its way to somebody. The events of one account are to arrive in their order."""

    account: int
    body: bytes


class SinkAway(Exception):  # noqa: N818 - what it is
    """Whoever is to get a batch did not take it, or it is not known whether. It may be sent again."""


def encode(happening: Happening, source: str = SOURCE) -> bytes:
    """The event as JSON, on one line."""
    return _encoder.encode(
        CloudEvent(
            specversion="1.0",
            id=happening.id,
            source=source,
            type=PREFIX + happening.type,
            subject=str(happening.account),
            time=rfc3339(happening.at),
            datacontenttype="application/json",
            data=_account(happening) if happening.type in _STATUS else _transfer(happening),
        )
    )


def _account(happening: Happening) -> AccountData:
    position = f"{happening.partition}:{happening.position}"
    return AccountData(str(happening.account), _STATUS[happening.type], position)


def _transfer(happening: Happening) -> TransferData:
    posted, pending = happening.balance, happening.pending
    known = posted is not None and pending is not None
    return TransferData(
        transfer=str(happening.transfer),
        kind=_KINDS[happening.kind],
        side="credit" if happening.side else "debit",
        amount=happening.amount or 0,
        currency=CURRENCY,
        account=str(happening.account),
        other_account="settlement" if happening.other == SETTLEMENT else str(happening.other),
        position=f"{happening.partition}:{happening.position}",
        balance=Balance(posted, pending, posted - pending) if known else UNSET,  # type: ignore[arg-type, operator]
        refusal=UNSET if happening.code is None else Code(happening.code).name.lower().replace("_", "-"),
        expires_at=UNSET if happening.expires_at is None else rfc3339(happening.expires_at),
        refund_of=UNSET if happening.refund_of is None else str(happening.refund_of),
    )
