"""The table of payments calls: what each takes, answers and may end with."""

from __future__ import annotations

from typing import Final

from deployments import payments_accounts as accounts
from deployments import payments_batch as batch
from deployments import payments_events as events
from deployments import payments_transfers as transfers
from deployments.openapi import Operation, Parameter
from deployments.payments_call import KEY_PATTERN, POSITION_PATTERN
from deployments.payments_schema import (
    SUB_MAX,
    Account,
    AccountPage,
    BalanceAnswer,
    BatchAnswer,
    BatchRequest,
    ChangeRequest,
    DepositRequest,
    EntryPage,
    OpenRequest,
    PostRequest,
    RefundRequest,
    Transfer,
    TransferRequest,
    VoidRequest,
    WithdrawalRequest,
    line_schema,
)
from deployments.problems import (
    ACCOUNT_CLOSED,
    ACCOUNT_EXISTS,
    ACCOUNT_FROZEN,
    ACCOUNT_NOT_EMPTY,
    BOOK_FULL,
    EXCEEDS_HOLD,
    EXCEEDS_ORIGINAL,
    HOLD_EXPIRED,
    ID_CONFLICT,
    ID_EXPIRED,
    ID_IN_FUTURE,
    INSUFFICIENT_FUNDS,
    INVALID_AMOUNT,
    INVALID_ID,
    INVALID_LIMIT,
    INVALID_TAX_ID,
    LIMIT_EXCEEDED,
    NOT_CAUGHT_UP,
    NOT_HELD,
    NOT_REFUNDABLE,
    OVERFLOW,
    QUOTA_EXCEEDED,
    REFUND_EXPIRED,
    SAME_ACCOUNT,
    UNKNOWN_ACCOUNT,
    UNKNOWN_TRANSFER,
    UNPROVEN,
    UNSURE,
)

INTRODUCTION: Final = (
    "Accounts, and money that moves between them at once. Amounts are whole centavos of BRL, ids are strings, "
    "times are "
    "RFC 3339 in UTC. Every error is `application/problem+json` with a `type` of the catalogue at `/problems`. "
    "A query parameter or a member of a body that a call does not have is `malformed`: nothing is passed over.\n\n"
    "Tokens: `ledger:read` and `ledger:write` reach the caller's own accounts (those whose owner is the token's "
    "`sub`), "
    "`ledger:fund` moves money into and out of the book, `ledger:operate` reads and writes any account.\n\n"
    "Exactly once: give each change an `id` (a UUIDv7 that you made) or an `Idempotency-Key`, and send it again "
    "as often "
    "as you like: it happens once, and the first answer comes again, a refusal too, marked "
    "`Idempotency-Replayed: true`. "
    "The same id or key with other content is an `id-conflict`. Content is what the call's fields say: how the body is "
    "laid out and in which order its fields stand is none of it. Of `metadata` the text counts, so that the first "
    "answer fits every repeat: other keys, their order, and `1.10` for `1.1` make it another content; whitespace "
    "outside of strings does not. Both are remembered for 48 hours unless set "
    "otherwise, or for as long as the memory reaches when more come than it holds; a "
    "UUIDv7 older than that is refused, whereas an Idempotency-Key carries no time, so its promise ends there. When an "
    "answer is `unsure`, or none came, send the same request again with the same id or key.\n\n"
    "An `id` is unique in the whole ledger, and says where it lies: its last three hexadecimal digits are the paying "
    "account's number modulo 1024, such as `171` for account 7349874591868649841. So make a UUIDv7 and overwrite those "
    "digits. Of a deposit it is the account that gets the money; of a refund the payee of the original, who pays it. "
    "The id of a new account may end as it likes. An id with other digits is `invalid-id`, and `expected` is the same "
    "id with the right ones. Ids that we make are made so.\n\n"
    "An Idempotency-Key is your own text, unique for the token's `sub`, the call and the paying account: the same key "
    "with another account that pays is another payment. The id that it gives (a UUIDv8, in the answer) is good for "
    "looking up; to send a request again, send the key. Together they are taken when the key gives just this `id`, or "
    "when the key's text is the `id` itself, a UUIDv7, which then counts.\n\n"
    "A batch's Idempotency-Key stands for the whole batch: the number, order and content of its transfers and how they "
    "are linked. With anything else it is an `id-conflict`, and nothing of that batch is done.\n\n"
    "Your own writes: a write answers with `Razao-Position`. Send it with a read, and the read waits until it "
    "sees that "
    "write. Balances without `at` are always up to date."
)

_ACCOUNT: Final = Parameter("id", "path", "The account.", {"type": "string"})
_TRANSFER: Final = Parameter("id", "path", "The transfer.", {"type": "string", "format": "uuid"})
_KEY_SCHEMA: Final = {"type": "string", "minLength": 1, "maxLength": 255, "pattern": f"^{KEY_PATTERN}$"}
_KEY: Final = Parameter(
    "Idempotency-Key", "header",
    "Stands in for `id`: 1 to 255 visible ASCII characters, your own choice. Unique for the caller, the call and the "
    "paying account.",
    _KEY_SCHEMA,
)  # fmt: skip
_BATCH_KEY: Final = Parameter(
    "Idempotency-Key", "header",
    "Stands for the whole batch, and gives ids to the transfers that have none: 1 to 255 visible ASCII characters.",
    _KEY_SCHEMA,
)  # fmt: skip
_POSITION: Final = Parameter(
    "Razao-Position", "header",
    "As a write answered it: wait until the answer includes that write. One that no write can have answered is "
    "refused.",
    {"type": "string", "minLength": 3, "pattern": f"^{POSITION_PATTERN}$"},
)  # fmt: skip
_SUB: Final = Parameter("sub", "query", "Whose accounts; for operators.", {"type": "string", **line_schema(SUB_MAX)})
_CURSOR: Final = Parameter(
    "cursor", "query", "`next_cursor` of the page before; any other text is `malformed`.",
    {"type": "string", "minLength": 1},
)  # fmt: skip
_LIMIT: Final = Parameter(
    "limit", "query", "Items on a page.", {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100}
)
_LAST_EVENT: Final = {"type": "string", "pattern": r"^1(\.[0-9]{1,4}-[0-9]{1,19})*$"}
_TIME: Final = {
    "type": "string", "format": "date-time",
    "pattern": r"^(19[7-9]|20[0-9]|21[0-9])[0-9]-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-5][0-9](\.[0-9]{1,9})?"
               r"([Zz]|[+-][0-9]{2}:[0-9]{2})$",
}  # fmt: skip
_WRITTEN: Final = (
    ("Razao-Position", "What a later read should wait for, to see this."),
    ("Idempotency-Replayed", "`true` when this is the first answer again."),
)
_EVENT: Final = (ID_CONFLICT, ID_EXPIRED, ID_IN_FUTURE, BOOK_FULL, QUOTA_EXCEEDED, UNSURE)
_MOVE: Final = (
    INSUFFICIENT_FUNDS, UNKNOWN_ACCOUNT, ACCOUNT_CLOSED, ACCOUNT_FROZEN, INVALID_AMOUNT, INVALID_ID, OVERFLOW, *_EVENT,
)  # fmt: skip


def api_operations() -> tuple[Operation, ...]:
    """The calls under /v1, the busiest first."""
    return (
        Operation(
            "POST", "/v1/transfers", "createTransfer", "Move money, or put it on hold",
            "From an account of the caller to any other. With `hold` the amount is only reserved, until it is posted, "
            "voided or expires. A hold does not look at its payee: whether that account is there and open is asked "
            "when the hold is posted.",
            transfers.create_transfer, "ledger:write", TransferRequest, Transfer, 201, (_KEY,),
            (*_MOVE, LIMIT_EXCEEDED, SAME_ACCOUNT), _WRITTEN,
        ),
        Operation(
            "POST", "/v1/transfers/batch", "createTransfers", "Move money many times",
            "Up to 10,000 transfers, answered in order, each for itself unless `linked` ties it to the next: "
            "such a chain "
            "happens whole or not at all, within one shard. As an Arrow stream the columns have the names of the "
            "fields; "
            "`id` may be fixed_size_binary(16), accounts uint64, metadata JSON text; nulls stand for what is left out; "
            "buffers are not compressed. Arrow in gets Arrow out: `id`, `status`, `type`. An Idempotency-Key binds the "
            "whole batch: sent again with other transfers, another order or other links it is an `id-conflict`.",
            batch.create_batch, "ledger:write", BatchRequest, BatchAnswer, 200, (_BATCH_KEY,),
            (INVALID_ID, ID_CONFLICT, BOOK_FULL, QUOTA_EXCEEDED, UNSURE), _WRITTEN,
            ("application/json", batch.ARROW),
        ),
        Operation(
            "GET", "/v1/transfers/{id}", "getTransfer", "What became of a transfer",
            "As of the journal's end when the request comes, so whoever was told `unsure` learns the outcome here. "
            "An id that a key gave may be used again once its 48 hours are over: the newest use is shown. Refunds lie "
            "with the payee: to be sure that `refunded_amount` has one, send the `Razao-Position` of its answer.",
            transfers.get_transfer, "ledger:read", None, Transfer, 200, (_TRANSFER, _POSITION),
            (UNKNOWN_TRANSFER, NOT_CAUGHT_UP, UNSURE),
        ),
        Operation(
            "POST", "/v1/transfers/{id}/post", "postTransfer", "Post a hold",
            "By the payer's owner, once, in whole or in part; the rest is available again. The payee must be there and "
            "open now: nobody has looked before.",
            transfers.post_transfer, "ledger:write", PostRequest, Transfer, 200, (_TRANSFER, _KEY),
            (UNKNOWN_TRANSFER, NOT_HELD, HOLD_EXPIRED, EXCEEDS_HOLD, UNKNOWN_ACCOUNT, ACCOUNT_CLOSED, ACCOUNT_FROZEN,
             INVALID_AMOUNT, OVERFLOW, NOT_CAUGHT_UP, *_EVENT), _WRITTEN,
        ),
        Operation(
            "POST", "/v1/transfers/{id}/void", "voidTransfer", "Give a hold up", "By the payer's owner.",
            transfers.void_transfer, "ledger:write", VoidRequest, Transfer, 200, (_TRANSFER, _KEY),
            (UNKNOWN_TRANSFER, NOT_HELD, HOLD_EXPIRED, NOT_CAUGHT_UP, *_EVENT), _WRITTEN,
        ),
        Operation(
            "POST", "/v1/transfers/{id}/refunds", "refundTransfer", "Give money back",
            "By the payee's owner, within 90 days; all refunds of a transfer together stay within its amount.",
            transfers.refund_transfer, "ledger:write", RefundRequest, Transfer, 201, (_TRANSFER, _KEY),
            (UNKNOWN_TRANSFER, NOT_REFUNDABLE, EXCEEDS_ORIGINAL, REFUND_EXPIRED, NOT_CAUGHT_UP, *_MOVE), _WRITTEN,
        ),
        Operation(
            "POST", "/v1/deposits", "createDeposit", "Bring money into the book", "To any account.",
            transfers.create_deposit, "ledger:fund", DepositRequest, Transfer, 201, (_KEY,), _MOVE, _WRITTEN,
        ),
        Operation(
            "POST", "/v1/withdrawals", "createWithdrawal", "Take money out of the book", "From any account.",
            transfers.create_withdrawal, "ledger:fund", WithdrawalRequest, Transfer, 201, (_KEY,), _MOVE, _WRITTEN,
        ),
        Operation(
            "POST", "/v1/accounts", "openAccount", "Open an account",
            "For the caller; an operator may name another `sub`. Limits given here hold at once. The tax id is the one "
            "that is proven to be the caller's; of an operator any. Whoever has proven none leaves it out, and gets an "
            "account with low limits under no tax id, where `RAZAO_UNPROVEN` lets them.",
            accounts.open_account, "ledger:write", OpenRequest, Account, 201, (_KEY,),
            (UNPROVEN, INVALID_TAX_ID, INVALID_LIMIT, INVALID_ID, ACCOUNT_EXISTS, *_EVENT),
            (*_WRITTEN, ("Location", "Where the account is.")),
        ),
        Operation(
            "GET", "/v1/accounts", "listAccounts", "The caller's accounts", "In order of their ids.",
            accounts.list_accounts, "ledger:read", None, AccountPage, 200,
            (_SUB, _CURSOR, _LIMIT, _POSITION),
            (NOT_CAUGHT_UP,),
        ),
        Operation(
            "GET", "/v1/accounts/{id}", "getAccount", "An account",
            "Its balance, the limits in force, and the raises that wait for their time.",
            accounts.get_account, "ledger:read", None, Account, 200, (_ACCOUNT, _POSITION),
            (UNKNOWN_ACCOUNT, NOT_CAUGHT_UP),
        ),
        Operation(
            "PATCH", "/v1/accounts/{id}", "changeAccount", "Change its status or its limits",
            "An owner may close an empty account and change limits: a cut holds at once, a raise after a delay. "
            "Limits of an "
            "account under no tax id stay low, unless an operator raises them. Operators freeze accounts and open them "
            "again.",
            accounts.change_account, "ledger:write", ChangeRequest, Account, 200, (_ACCOUNT, _KEY),
            (UNKNOWN_ACCOUNT, ACCOUNT_NOT_EMPTY, ACCOUNT_CLOSED, INVALID_LIMIT, UNPROVEN, *_EVENT), _WRITTEN,
        ),
        Operation(
            "GET", "/v1/accounts/{id}/balance", "getBalance", "A balance",
            "Now, from the account's owner itself; with `at`, as it was at any past instant.",
            accounts.get_balance, "ledger:read", None, BalanceAnswer, 200,
            (_ACCOUNT, Parameter("at", "query", "A past instant; one to come is `malformed`.", _TIME), _POSITION),
            (UNKNOWN_ACCOUNT, NOT_CAUGHT_UP),
        ),
        Operation(
            "GET", "/v1/accounts/{id}/entries", "listEntries", "An account's movements", "Newest first.",
            accounts.list_entries, "ledger:read", None, EntryPage, 200,
            (_ACCOUNT, Parameter("from", "query", "The earliest instant.", _TIME),
             Parameter("to", "query", "The instant before which they lie.", _TIME), _CURSOR, _LIMIT, _POSITION),
            (UNKNOWN_ACCOUNT, NOT_CAUGHT_UP),
        ),
        Operation(
            "GET", events.PATH, "streamEvents", "What happens to the caller's accounts, as it happens",
            "Server-sent events; each carries a CloudEvent, described in `/asyncapi.json`. At least once, and in order "
            "for each account. Whoever comes back with the id of the last event gets all that came after it; without "
            "one, a stream begins now. Accounts opened later are included. A stream ends after 15 minutes, or when its "
            "reader is too slow: come back with the last id. When the token expires or is revoked it ends within a "
            "heartbeat (5 s), with an event `problem` whose data is the problem that a new request would get.",
            events.get_events, "ledger:read", None, None, 200,
            (Parameter("Last-Event-ID", "header",
                       "The id of the last event that arrived; it counts before the query, so that a client may come "
                       "back to the same address. One that no event has had is `malformed`.", _LAST_EVENT),
             Parameter("last_event_id", "query", "The same, for who cannot send the header.", _LAST_EVENT),
             Parameter("from", "query", "Begin with what happened at this instant; one to come is `malformed`.", _TIME),
             Parameter("account", "query", "One account only; operators may name any.", {"type": "string"}), _POSITION),
            (UNKNOWN_ACCOUNT, NOT_CAUGHT_UP), (), ("text/event-stream",),
        ),
    )  # fmt: skip
