"""The format of what happens to a ledger: event and result rows, their kinds, and the catalogue of result codes.

Every layer from the HTTP edge to the journal speaks in these NumPy rows; nothing re-packs them on the way. An event's
columns mean the same in memory, on the wire between replica and shard, and in the journal.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Any, Final

import numpy as np

SLOTS: Final = 1024
"""An account id's low 10 bits are its slot; partition = slot mod partition count (a power of two <= SLOTS)."""

SETTLEMENT: Final = 1
"""Reserved account id, one per shard: money outside the book. The other side of deposits and withdrawals."""

TRANSIT: Final = 2
"""Reserved account id, one per shard: money on its way to another shard."""

FIRST_ACCOUNT: Final = 1024
"""Ids below this are reserved; no customer account has one."""

NO_LIMIT: Final = np.iinfo(np.int64).max
"""A limit that never refuses."""

AMOUNT_MAX: Final = np.iinfo(np.int64).max


class Kind(IntEnum):
    """What an event does. The columns that each kind reads are listed in `EVENT`."""

    OPEN = 1
    CLOSE = 2
    FREEZE = 3
    UNFREEZE = 4
    SET_LIMITS = 5
    BIND = 6
    DEPOSIT = 10
    WITHDRAWAL = 11
    TRANSFER = 12
    HOLD = 13
    POST = 14
    VOID = 15
    EXPIRE = 16
    REFUND = 17
    CREDIT_LEG = 20
    SETTLE = 21
    REVERT = 22


class Flag(IntFlag):
    """Bits of `EVENT.flags`."""

    LINKED = 1
    """Tied to the next row: the chain applies whole or not at all."""


class ResultFlag(IntFlag):
    """Bits of `RESULT.flags`."""

    REPLAYED = 1
    """The id was seen before with the same content: this is the first answer again."""


EVENT: Final = np.dtype(
    [
        ("id_hi", np.uint64),  # 128-bit id: UUIDv7, or UUIDv8 when derived from an idempotency key
        ("id_lo", np.uint64),
        ("ref_hi", np.uint64),  # post, void, expire: the hold; refund: the original; leg of a post: the hold;
        ("ref_lo", np.uint64),  # settle, revert: the payee's partition (hi) and the leg's number (lo)
        ("debit", np.uint64),  # account id; also the one account of open, close, freeze, unfreeze, set limits
        ("credit", np.uint64),  # account id
        ("amount", np.int64),  # centavos; post: 0 posts the whole hold
        ("at", np.int64),  # ns since 1970 UTC, stamped by the shard, strictly increasing per shard
        ("span", np.int64),  # ns: hold: time to live; set limits: delay of a raise; refund: `at` of the original;
        #                      credit leg, settle, revert: `at` of the debit
        ("total", np.int64),  # refund: amount of the original, centavos; open, set limits: night window, see below;
        #                       credit leg: its number among those from the payer's shard to the payee's, from 1 on
        ("actor", np.uint64),  # keyed hash of the caller's `sub`; 0 = operator, may act on any account
        ("check", np.uint64),  # digest of content that no column shows (description, metadata, ...); 0 = none;
        #                        credit leg: up to which number the payer's shard has journaled what became of its legs
        ("kind", np.uint16),  # Kind
        ("flags", np.uint16),  # Flag
        ("reason", np.uint16),  # revert: the payee's refusal (Code); credit leg, settle: the payment's Kind
        ("spare", np.uint16),
    ]
)
"""One event, 104 bytes. `(n,) EVENT` is a batch.

Open and set limits reuse columns: `amount` = limit per transfer, `ref_hi` = daily limit, `ref_lo` = night limit (all
centavos; NO_LIMIT = none), `total` = night window as `from_minute << 16 | to_minute` of local time. On set limits
-1 (for the unsigned columns 2^64-1) leaves that limit as it is. `actor` of an open event is the owner's hash when
`credit` is 0; an operator who opens for somebody passes the owner's hash in `credit` and 0 in `actor`.
"""

RESULT: Final = np.dtype(
    [
        ("at", np.int64),  # the event's stamp; for a replay the first one's
        ("detail", np.int64),  # centavos: what is left of a limit, of a hold or of an original; or the amount posted
        ("code", np.uint16),  # Code
        ("flags", np.uint16),  # ResultFlag
        ("spare", np.uint32),
    ]
)
"""What became of one event, 24 bytes, in the order of the batch."""

BALANCE: Final = np.dtype(
    [
        ("debit_posted", np.int64),  # posted balance of the debit account after the event, centavos
        ("debit_pending", np.int64),  # its amount on hold after the event
        ("credit_posted", np.int64),
        ("credit_pending", np.int64),
    ]
)
"""Running balances after one event, for the query side. Zero where the event has no such account."""

ACCOUNT: Final = np.dtype(
    [
        ("id", np.uint64),
        ("posted", np.int64),  # balance: what came less what went, centavos
        ("debits_pending", np.int64),
        ("per_transfer", np.int64),  # limits in force at the time of the read; NO_LIMIT = none
        ("daily", np.int64),
        ("night", np.int64),
        ("next_per_transfer", np.int64),  # a raise that waits; -1 = none
        ("next_daily", np.int64),
        ("next_night", np.int64),
        ("next_per_transfer_at", np.int64),  # ns
        ("next_daily_at", np.int64),
        ("next_night_at", np.int64),
        ("next_window_at", np.int64),
        ("window", np.int32),  # night window in force: from_minute << 16 | to_minute
        ("next_window", np.int32),  # -1 = none
        ("status", np.uint16),  # AccountStatus; UNKNOWN when there is no such account
        ("code", np.uint16),  # Code.OK, or FORBIDDEN, UNKNOWN_DEBIT_ACCOUNT
        ("spare", np.uint32),
    ]
)
"""An account as a shard answers it to a read."""


class AccountStatus(IntEnum):
    """`ACCOUNT.status`."""

    UNKNOWN = 0
    OPEN = 1
    FROZEN = 2
    CLOSED = 3


class Code(IntEnum):
    """Every result that an event can have. Closed: the HTTP layer maps each one to a problem type."""

    OK = 0
    IN_FLIGHT = 1  # debited; the payee's shard decides
    # Refusals that depend on state: journaled and remembered, the first answer to an id stands.
    INSUFFICIENT_FUNDS = 10
    UNKNOWN_DEBIT_ACCOUNT = 11
    UNKNOWN_CREDIT_ACCOUNT = 12
    DEBIT_ACCOUNT_CLOSED = 13
    CREDIT_ACCOUNT_CLOSED = 14
    DEBIT_ACCOUNT_FROZEN = 15
    CREDIT_ACCOUNT_FROZEN = 16
    LIMIT_PER_TRANSFER = 17
    LIMIT_DAILY = 18
    LIMIT_NIGHT = 19
    SAME_ACCOUNT = 20
    INVALID_AMOUNT = 21
    NOT_HELD = 22
    HOLD_EXPIRED = 23
    EXCEEDS_HOLD = 24
    EXCEEDS_ORIGINAL = 25
    ACCOUNT_NOT_EMPTY = 26
    ACCOUNT_EXISTS = 27
    OVERFLOW = 28
    LINKED_FAILED = 29
    REFUND_EXPIRED = 30
    NOT_LINKABLE = 31
    INVALID_LIMIT = 32
    # Refusals without effect: neither journaled nor remembered.
    ID_CONFLICT = 40
    ID_EXPIRED = 41
    ID_IN_FUTURE = 42
    INVALID_ID = 43
    FORBIDDEN = 44
    INVALID_EVENT = 45
    LEG_OUT_OF_ORDER = 46
    BOOK_FULL = 47
    CHAIN_REFUSED = 48
    OUTBOX_FULL = 49
    # Never written by the kernel: what a client is told when the outcome could not be learnt in time.
    UNSURE = 60
    OVERLOADED = 61
    NOT_SERVING = 62


FIRST_STATELESS: Final = Code.ID_CONFLICT
"""Codes from here on change nothing and are not journaled."""


def partition_of(account: int, partitions: int) -> int:
    """The partition that owns `account` in a ledger of `partitions` partitions."""
    return (account % SLOTS) % partitions


def place(dtype: np.dtype[Any], column: str) -> int:
    """Where a column is in a row as a tuple (`rows.item(n)`, `rows.tolist()`), which for a few rows costs a tenth of
    looking it up by name."""
    return (dtype.names or ()).index(column)
