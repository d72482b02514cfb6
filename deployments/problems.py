"""The one catalogue of problems that the HTTP edge answers with (RFC 9457).

The kernel's result codes, the OpenAPI document, the human pages at `/problems/<name>` and the edge's own refusals all
come from `CATALOGUE`. A problem's `type` is the relative URI of its page.

    ProblemError            carries one Problem to the edge, where it becomes the answer
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from types import MappingProxyType
from typing import Any, Final

import msgspec

from storage.events import Code

MEDIA_TYPE: Final = "application/problem+json"


@dataclass(frozen=True, slots=True)
class Problem:
    """One kind of refusal. `retryable`: sending the very same request again, with the same id, may succeed."""

    name: str
    status: int
    title: str
    explanation: str
    retryable: bool = False
    retry_after_s: int | None = None
    also: int | None = None  # a second status that it may come with; the explanation says when

    @property
    def type(self) -> str:
        """The problem's relative URI."""
        return f"/problems/{self.name}"

    @property
    def statuses(self) -> tuple[int, ...]:
        """Every status that it may come with."""
        return (self.status,) if self.also is None else (self.status, self.also)


INSUFFICIENT_FUNDS: Final = Problem(
    "insufficient-funds",
    422,
    "The account does not have the money",
    "The amount is more than what is available: the posted balance less what is on hold. Nothing was moved. The "
    "refusal "
    "stands for this id; send a new id once there is money.",
)
UNKNOWN_ACCOUNT: Final = Problem(
    "unknown-account",
    422,
    "There is no such account",
    "No account has this id. The status is 404 when the account is named in the path, 422 when it is named in "
    "the body.",
    also=404,
)
ACCOUNT_CLOSED: Final = Problem(
    "account-closed",
    422,
    "The account is closed",
    "A closed account neither sends nor receives. `field` says which account of the request it is.",
)
ACCOUNT_FROZEN: Final = Problem(
    "account-frozen",
    422,
    "The account is frozen",
    "A frozen account neither sends nor receives until an operator opens it again. `field` says which account it is.",
)
LIMIT_EXCEEDED: Final = Problem(
    "limit-exceeded",
    422,
    "A limit of the account refuses the amount",
    "`limit` names the limit (per_transfer, daily or night) and `left` what is left of it, in centavos. A cut of "
    "a limit "
    "holds at once, a raise only after a delay.",
)
SAME_ACCOUNT: Final = Problem(
    "same-account",
    422,
    "Debit and credit are the same account",
    "Money cannot be moved from an account to itself.",
)
INVALID_AMOUNT: Final = Problem(
    "invalid-amount",
    422,
    "The amount is out of range",
    "An amount is a whole number of centavos from 1 to 9223372036854775807.",
)
ID_CONFLICT: Final = Problem(
    "id-conflict",
    409,
    "The id was used with other content",
    "The id, or the Idempotency-Key, was used before with other content: another body, of a batch also other rows, "
    "another order or other links. Of `metadata` its text counts, but for whitespace outside of strings. "
    "This request changed nothing; what was sent first under the id stands. Send the "
    "first content to get the first answer again, or a new id.",
)
ID_EXPIRED: Final = Problem(
    "id-expired",
    422,
    "The id is too old",
    "An id is a UUIDv7, and its time is older than the window in which ids are remembered (48 hours unless set "
    "otherwise, less while the memory is full), so it cannot be told from a late repeat. This request changed nothing. "
    "What was sent under the id before, if anything was, may have been carried out: look the transfer up before you "
    "send a new id.",
)
ID_IN_FUTURE: Final = Problem(
    "id-in-future",
    422,
    "The id's time is in the future",
    "An id is a UUIDv7, and its time is ahead of ours by more than five minutes. Set the clock that makes the ids.",
)
INVALID_ID: Final = Problem(
    "invalid-id",
    400,
    "The id is not one that this event can have",
    "An `id` is a UUID of version 7 (RFC 9562) in its 36-character form; what is none gets status 400. Its last three "
    "digits say where it lies: they are the debited account's number modulo 1024 (of a deposit the credited one's) in "
    "hexadecimal. With others the status is 422, and `expected` is the same id with the right digits. Nothing was "
    "done. Leave the id out, or send an Idempotency-Key, when you cannot make one.",
    also=422,
)
UNKNOWN_TRANSFER: Final = Problem(
    "unknown-transfer",
    404,
    "There is no such transfer",
    "No transfer has this id, as of the journal's end when the request came.",
)
NOT_HELD: Final = Problem(
    "not-held",
    422,
    "The transfer is not on hold",
    "Only a transfer that is on hold can be posted or voided, and only once. `transfer_status` says what it is now.",
)
HOLD_EXPIRED: Final = Problem(
    "hold-expired",
    422,
    "The hold has expired",
    "The hold's time ran out before it was posted or voided. Its amount is available again.",
)
EXCEEDS_HOLD: Final = Problem(
    "exceeds-hold",
    422,
    "The amount is more than the hold",
    "A hold can be posted in whole or in part, never for more. `left` is what is on hold.",
)
EXCEEDS_ORIGINAL: Final = Problem(
    "exceeds-original",
    422,
    "The refunds would be more than the original",
    "The sum of all refunds of a transfer stays within its amount. `left` is what can still be refunded.",
)
REFUND_EXPIRED: Final = Problem(
    "refund-expired",
    422,
    "The original is too old to be refunded",
    "A transfer can be refunded within 90 days.",
)
NOT_REFUNDABLE: Final = Problem(
    "not-refundable",
    422,
    "The transfer cannot be refunded",
    "Only a settled transfer or a posted hold can be refunded; `transfer_status` says what this one is.",
)
ACCOUNT_NOT_EMPTY: Final = Problem(
    "account-not-empty",
    422,
    "The account is not empty",
    "An account can be closed when its balance is zero, nothing is on hold and nothing is on its way.",
)
ACCOUNT_EXISTS: Final = Problem(
    "account-exists",
    409,
    "The account exists already",
    "The id drawn for the new account is taken. Send the request again with another Idempotency-Key.",
)
OVERFLOW: Final = Problem(
    "overflow",
    422,
    "The balance would be too large",
    "A balance stays below 2^63 centavos.",
)
LINKED_FAILED: Final = Problem(
    "linked-failed",
    422,
    "Another transfer of the chain was refused",
    "Linked transfers happen all or not at all. None of this chain's did; the one refused for its own sake says why.",
)
NOT_LINKABLE: Final = Problem(
    "not-linkable",
    422,
    "These transfers cannot be linked",
    "A chain of linked transfers must lie within one shard, and its last one must not be linked to a next.",
)
INVALID_LIMIT: Final = Problem(
    "invalid-limit",
    422,
    "The limit is not valid",
    "A limit is a whole number of centavos from 0 to 9223372036854775806, or null for none. The night window is two "
    "different times of day as HH:MM.",
)
INVALID_TAX_ID: Final = Problem(
    "invalid-tax-id",
    422,
    "The tax id is not valid",
    "A tax id is a CPF (11 digits) or a CNPJ (14 characters, letters allowed) with right check digits.",
)
UNAUTHENTICATED: Final = Problem(
    "unauthenticated",
    401,
    "A valid token is needed",
    "Send `Authorization: Bearer <token>` with a token that is signed by a known key, meant for this service and "
    "in its "
    "time.",
)
WRONG_CREDENTIALS: Final = Problem(
    "wrong-credentials",
    401,
    "Username or password is wrong",
    "Which of the two is not said, nor whether there is such a user, nor whether they are disabled.",
)
TOO_MANY_ATTEMPTS: Final = Problem(
    "too-many-attempts",
    429,
    "Too many attempts",
    "Attempts at this account from this address, or from this address at all, came too fast. Nothing was looked at. "
    "Wait as long as `Retry-After` says; going on in the meantime makes it no longer.",
    retryable=True,
    retry_after_s=30,
)
USERNAME_TAKEN: Final = Problem(
    "username-taken",
    409,
    "The username is taken",
    "Somebody has registered with this username. Names are compared without regard to case or form.",
)
WEAK_PASSWORD: Final = Problem(
    "weak-password",
    422,
    "The password is too easy to guess",
    "A password is long (NIST SP 800-63B-4), and not one of those that are tried first. A few words do; no kinds of "
    "characters are asked for.",
)
UNPROVEN: Final = Problem(
    "unproven",
    403,
    "The CPF or CNPJ is not proven",
    "A CPF or CNPJ that somebody registers with, or writes into a request, is a claim. What is somebody's own by it "
    "(credit data, accounts under it, limits above those of an account under none, then in `most`) is for whoever an "
    "operator has proven it of. Log in again, or refresh the token, once that is done.",
)
PROOF_CONFLICT: Final = Problem(
    "proof-conflict",
    409,
    "The CPF or CNPJ cannot be proven of this person",
    "They have registered with another one, or it is proven to be somebody else's. That proof has to be revoked first.",
)
UNKNOWN_USER: Final = Problem("unknown-user", 404, "There is no such user", "Nobody has registered with this username.")
TOO_MANY_KEYS: Final = Problem(
    "too-many-keys",
    422,
    "There are too many access keys",
    "A person has at most 50 access keys at a time. Delete one that is not used.",
)
UNKNOWN_KEY: Final = Problem(
    "unknown-key",
    404,
    "There is no such access key",
    "The caller has no access key of this id, or it has expired.",
)
UNKNOWN_SESSION: Final = Problem(
    "unknown-session",
    404,
    "There is no such session",
    "The caller has no session of this id, or it has ended.",
)
UNKNOWN_PERSON: Final = Problem(
    "unknown-person",
    404,
    "Nothing is known of this person here",
    "No profile was written for the CPF or CNPJ in the header `Razao-Tax-Id`.",
)
NO_CONSENT: Final = Problem(
    "no-consent",
    403,
    "The person has not consented",
    "A profile is shown to others only under a live consent of the person to the caller, for the purpose that the "
    "header `Razao-Purpose` names. The answer is the same whether there is such a person or not.",
)
UNKNOWN_CONSENT: Final = Problem(
    "unknown-consent", 404, "There is no such consent", "The person in the header has given no consent with this id."
)
TOO_MANY_CONSENTS: Final = Problem(
    "too-many-consents", 422, "Too many consents are live", "At most 64 consents of a person are live. End one first."
)
UNKNOWN_GRANT: Final = Problem(
    "unknown-grant",
    404,
    "There is no such grant",
    "The person named by `Razao-Tax-Id` has given no grant of this id.",
)
UNKNOWN_ACCESS_REQUEST: Final = Problem(
    "unknown-access-request",
    404,
    "There is no such request for access",
    "Nobody has asked the person named by `Razao-Tax-Id` under this id.",
)
ALREADY_DECIDED: Final = Problem(
    "already-decided",
    409,
    "The request for access waits no more",
    "The person has decided otherwise, or the request has lapsed after seven days without an answer.",
)
TOO_MANY_ACCESS_REQUESTS: Final = Problem(
    "too-many-access-requests",
    422,
    "Too many requests of yours wait for this person",
    "At most 20 requests of one caller wait for a person's answer at a time.",
)
FORBIDDEN: Final = Problem(
    "forbidden",
    403,
    "The caller may not do this",
    "The token lacks the scope, or what it is about belongs to somebody else who has not agreed. `lacks` says which "
    "field lacks what, where that is the reason.",
)
MALFORMED: Final = Problem(
    "malformed",
    400,
    "The request cannot be read",
    "The body, the path, the query or a header does not have the documented form. `field` says where. JSON is read "
    "strictly: no unknown or repeated keys, no numbers where text is due or the other way round, no fractions.",
)
TIMEOUT: Final = Problem(
    "timeout",
    408,
    "The request came too slowly",
    "The whole request did not arrive in time.",
    retryable=True,
)
TOO_LARGE: Final = Problem(
    "too-large",
    413,
    "The request is too large",
    "A body is at most 64 KiB, a batch at most 8 MiB and 10,000 transfers.",
)
UNSUPPORTED_MEDIA_TYPE: Final = Problem(
    "unsupported-media-type",
    415,
    "The content type is not supported",
    "Bodies are `application/json` in UTF-8, without a content encoding. A batch may be "
    "`application/vnd.apache.arrow.stream`.",
)
TARGET_TOO_LONG: Final = Problem(
    "target-too-long",
    414,
    "The target is too long",
    "Path and query together have at most 8 KiB. What is long belongs into a body.",
)
HEADERS_TOO_LARGE: Final = Problem(
    "headers-too-large",
    431,
    "The headers are too large",
    "All headers together are longer than is taken: 16 KiB by the gateway.",
)
NOT_FOUND: Final = Problem("not-found", 404, "There is nothing here", "No call has this path. `/docs` lists them all.")
METHOD_NOT_ALLOWED: Final = Problem(
    "method-not-allowed",
    405,
    "The path does not know the method",
    "The `Allow` header lists the methods that it knows.",
)
OVERLOADED: Final = Problem(
    "overloaded",
    429,
    "Too much is waiting",
    "The service has as much work as it can finish in time, or too much comes from this address. This request changed "
    "nothing. What you sent before under the same `id` or Idempotency-Key may have been carried out all the same. "
    "Wait as long as `Retry-After` says, and send the same request again, with the same id.",
    retryable=True,
    retry_after_s=1,
)
QUOTA_EXCEEDED: Final = Problem(
    "quota-exceeded",
    429,
    "The caller sends more than its share",
    "One subject has sent more transfers, or more that were refused, than it may for the time being. This request "
    "changed nothing. What you sent before under the same `id` or Idempotency-Key may have been carried out all the "
    "same. Wait as long as `Retry-After` says, and send the same request again, with the same id.",
    retryable=True,
    retry_after_s=1,
)
UNSURE: Final = Problem(
    "unsure",
    503,
    "The outcome is not known yet",
    "The request may or may not have been carried out. Send it again with the same `id` or Idempotency-Key: it cannot "
    "happen twice, and the answer is its outcome. Without either, send the `id` of this answer along; if it has none, "
    "look first whether it happened. `GET /v1/transfers/{id}` tells the outcome as well.",
    retryable=True,
    retry_after_s=1,
)
UNAVAILABLE: Final = Problem(
    "unavailable",
    503,
    "A part of the service does not answer",
    "A shard or the query store is restarting. This request was not sent there and changed nothing. What you sent "
    "before under the same `id` or Idempotency-Key may have been carried out all the same. Send the same request "
    "again, with the same id.",
    retryable=True,
    retry_after_s=1,
)
NOT_CAUGHT_UP: Final = Problem(
    "not-caught-up",
    503,
    "The query store is behind the position asked for",
    "The read carries a Razao-Position that the query store did not reach in time. Send the request again.",
    retryable=True,
    retry_after_s=1,
)
BOOK_FULL: Final = Problem(
    "book-full",
    503,
    "The ledger is full",
    "A table of the shard has reached its capacity, and operators must make room. This request changed nothing, and "
    "its id is not used up. Send the same request again later, with the same id.",
    retryable=True,
    retry_after_s=60,
)
INTERNAL_ERROR: Final = Problem(
    "internal-error",
    500,
    "Something went wrong here",
    "An error that we did not foresee. It is in our log under `request_id`. A change may or may not have been made; "
    "send it again with the same `id`: it cannot happen twice.",
    retryable=True,
)

CATALOGUE: Final[tuple[Problem, ...]] = (
    INSUFFICIENT_FUNDS,
    UNKNOWN_ACCOUNT,
    ACCOUNT_CLOSED,
    ACCOUNT_FROZEN,
    LIMIT_EXCEEDED,
    SAME_ACCOUNT,
    INVALID_AMOUNT,
    ID_CONFLICT,
    ID_EXPIRED,
    ID_IN_FUTURE,
    INVALID_ID,
    UNKNOWN_TRANSFER,
    NOT_HELD,
    HOLD_EXPIRED,
    EXCEEDS_HOLD,
    EXCEEDS_ORIGINAL,
    REFUND_EXPIRED,
    NOT_REFUNDABLE,
    ACCOUNT_NOT_EMPTY,
    ACCOUNT_EXISTS,
    OVERFLOW,
    LINKED_FAILED,
    NOT_LINKABLE,
    INVALID_LIMIT,
    INVALID_TAX_ID,
    UNAUTHENTICATED,
    WRONG_CREDENTIALS,
    TOO_MANY_ATTEMPTS,
    USERNAME_TAKEN,
    WEAK_PASSWORD,
    UNPROVEN,
    PROOF_CONFLICT,
    UNKNOWN_USER,
    TOO_MANY_KEYS,
    UNKNOWN_KEY,
    UNKNOWN_SESSION,
    UNKNOWN_PERSON,
    NO_CONSENT,
    UNKNOWN_CONSENT,
    TOO_MANY_CONSENTS,
    UNKNOWN_GRANT,
    UNKNOWN_ACCESS_REQUEST,
    ALREADY_DECIDED,
    TOO_MANY_ACCESS_REQUESTS,
    FORBIDDEN,
    MALFORMED,
    TIMEOUT,
    TOO_LARGE,
    UNSUPPORTED_MEDIA_TYPE,
    TARGET_TOO_LONG,
    HEADERS_TOO_LARGE,
    NOT_FOUND,
    METHOD_NOT_ALLOWED,
    OVERLOADED,
    QUOTA_EXCEEDED,
    UNSURE,
    UNAVAILABLE,
    NOT_CAUGHT_UP,
    BOOK_FULL,
    INTERNAL_ERROR,
)

BY_NAME: Final[Mapping[str, Problem]] = MappingProxyType({problem.name: problem for problem in CATALOGUE})

BY_CODE: Final[Mapping[Code, Problem]] = MappingProxyType(
    {
        Code.IN_FLIGHT: UNSURE,
        Code.INSUFFICIENT_FUNDS: INSUFFICIENT_FUNDS,
        Code.UNKNOWN_DEBIT_ACCOUNT: UNKNOWN_ACCOUNT,
        Code.UNKNOWN_CREDIT_ACCOUNT: UNKNOWN_ACCOUNT,
        Code.DEBIT_ACCOUNT_CLOSED: ACCOUNT_CLOSED,
        Code.CREDIT_ACCOUNT_CLOSED: ACCOUNT_CLOSED,
        Code.DEBIT_ACCOUNT_FROZEN: ACCOUNT_FROZEN,
        Code.CREDIT_ACCOUNT_FROZEN: ACCOUNT_FROZEN,
        Code.LIMIT_PER_TRANSFER: LIMIT_EXCEEDED,
        Code.LIMIT_DAILY: LIMIT_EXCEEDED,
        Code.LIMIT_NIGHT: LIMIT_EXCEEDED,
        Code.SAME_ACCOUNT: SAME_ACCOUNT,
        Code.INVALID_AMOUNT: INVALID_AMOUNT,
        Code.NOT_HELD: NOT_HELD,
        Code.HOLD_EXPIRED: HOLD_EXPIRED,
        Code.EXCEEDS_HOLD: EXCEEDS_HOLD,
        Code.EXCEEDS_ORIGINAL: EXCEEDS_ORIGINAL,
        Code.ACCOUNT_NOT_EMPTY: ACCOUNT_NOT_EMPTY,
        Code.ACCOUNT_EXISTS: ACCOUNT_EXISTS,
        Code.OVERFLOW: OVERFLOW,
        Code.LINKED_FAILED: LINKED_FAILED,
        Code.REFUND_EXPIRED: REFUND_EXPIRED,
        Code.NOT_LINKABLE: NOT_LINKABLE,
        Code.INVALID_LIMIT: INVALID_LIMIT,
        Code.ID_CONFLICT: ID_CONFLICT,
        Code.ID_EXPIRED: ID_EXPIRED,
        Code.ID_IN_FUTURE: ID_IN_FUTURE,
        Code.INVALID_ID: INVALID_ID,
        Code.FORBIDDEN: FORBIDDEN,
        Code.INVALID_EVENT: MALFORMED,
        Code.LEG_OUT_OF_ORDER: UNSURE,
        Code.BOOK_FULL: BOOK_FULL,
        Code.CHAIN_REFUSED: LINKED_FAILED,
        Code.OUTBOX_FULL: OVERLOADED,
        Code.UNSURE: UNSURE,
        Code.OVERLOADED: OVERLOADED,
        Code.NOT_SERVING: UNAVAILABLE,
    }
)
"""The problem that each result code but OK is answered with."""

LIMIT_NAMES: Final[Mapping[Code, str]] = MappingProxyType(
    {Code.LIMIT_PER_TRANSFER: "per_transfer", Code.LIMIT_DAILY: "daily", Code.LIMIT_NIGHT: "night"}
)
_DEBIT_CODES: Final = frozenset(
    {Code.UNKNOWN_DEBIT_ACCOUNT, Code.DEBIT_ACCOUNT_CLOSED, Code.DEBIT_ACCOUNT_FROZEN, Code.FORBIDDEN}
)
_CREDIT_CODES: Final = frozenset({Code.UNKNOWN_CREDIT_ACCOUNT, Code.CREDIT_ACCOUNT_CLOSED, Code.CREDIT_ACCOUNT_FROZEN})
LEFT_CODES: Final = frozenset(
    {Code.LIMIT_PER_TRANSFER, Code.LIMIT_DAILY, Code.LIMIT_NIGHT, Code.EXCEEDS_HOLD, Code.EXCEEDS_ORIGINAL}
)


class ProblemError(Exception):
    """Ends a request with a problem. Raised where the refusal is known, answered once, at the edge."""

    def __init__(
        self,
        problem: Problem,
        detail: str,
        *,
        status: int | None = None,
        headers: Mapping[str, str] | None = None,
        **members: Any,
    ) -> None:
        super().__init__(detail)
        self.problem = problem
        self.detail = detail
        self.status = problem.status if status is None else status
        self.headers: dict[str, str] = dict(headers or {})
        if problem.retry_after_s is not None:
            self.headers.setdefault("retry-after", str(problem.retry_after_s))
        self.members = members

    def body(self, request_id: str) -> bytes:
        """The problem document."""
        document = {
            "type": self.problem.type,
            "title": self.problem.title,
            "status": self.status,
            "detail": self.detail,
            **self.members,
            "request_id": request_id,
        }
        return msgspec.json.encode(document)


def unserved(methods: set[str]) -> ProblemError:
    """For a path that serves `methods`, and not the one that was asked for; none: nothing has that path."""
    if not methods:
        return ProblemError(NOT_FOUND, "No call has this path")
    allow = ", ".join(sorted(methods | ({"HEAD"} if "GET" in methods else set())))
    return ProblemError(METHOD_NOT_ALLOWED, f"This path knows {allow}", headers={"allow": allow})


def malformed(field: str | None, detail: str) -> ProblemError:
    """The 400 for a request that does not have the documented form; `field` says where (None: as a whole)."""
    return ProblemError(MALFORMED, detail) if field is None else ProblemError(MALFORMED, detail, field=field)


def refusal(code: Code, detail: int, debit_field: str, credit_field: str, **members: Any) -> ProblemError:
    """What a client is told about a refused event.

    Args:
        code: any code but OK.
        detail: `RESULT.detail`, centavos.
        debit_field: how the request calls the debited account.
        credit_field: how the request calls the credited account.
        members: further members of the document, such as `id`.
    """
    problem = BY_CODE[code]
    if code in _DEBIT_CODES:
        members["field"] = debit_field
    elif code in _CREDIT_CODES:
        members["field"] = credit_field
    if code in LIMIT_NAMES:
        members["limit"] = LIMIT_NAMES[code]
    if code in LEFT_CODES:
        members["left"] = detail
    return ProblemError(problem, problem.title, **members)


PAGE_STYLE: Final = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:52rem;margin:2rem auto;padding:0 "
    "1rem;color:#1b1b1f;background:#fff}"
    "code,pre{font:14px/1.45 ui-monospace,monospace;background:#f3f3f6;border-radius:4px}code{padding:.1em .3em}"
    "pre{padding:.8rem;overflow:auto}pre code{padding:0}table{border-collapse:collapse;width:100%}"
    "td,th{text-align:left;vertical-align:top;padding:.35rem .6rem .35rem 0;border-bottom:1px solid #ddd}"
    "h1,h2,h3{line-height:1.2}h2{margin-top:2.5rem}a{color:#0b57d0}"
    "@media(prefers-color-scheme:dark){body{color:#e4e4e8;background:#18181b}code,pre{background:#27272b}"
    "td,th{border-color:#3a3a40}a{color:#8ab4f8}}"
)


def html_page(title: str, main: str) -> bytes:
    """A whole page without any outside resource; `main` is HTML."""
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{PAGE_STYLE}</style><main>{main}</main></html>"
    ).encode()


def prose(text: str) -> str:
    """Text with `code` in back-ticks, as HTML."""
    parts = escape(text).split("`")
    return "".join(f"<code>{part}</code>" if i % 2 else part for i, part in enumerate(parts))


def paragraphs(text: str) -> str:
    """`prose` with its paragraphs, which empty lines part, as HTML."""
    return "".join(f"<p>{prose(paragraph)}</p>" for paragraph in text.split("\n\n"))


def problem_page(problem: Problem) -> bytes:
    """The human page of one problem."""
    again = (
        "Yes: the very same request, with the same id, may succeed later."
        if problem.retryable
        else "No: the same request would be refused again."
    )
    example = msgspec.json.format(ProblemError(problem, problem.title).body("01J…"), indent=2).decode()
    statuses = ", ".join(map(str, problem.statuses))
    return html_page(
        problem.title,
        f"<p><a href='/problems'>Problems</a></p><h1>{escape(problem.title)}</h1>"
        f"<p><code>{problem.type}</code> · HTTP status {statuses}</p><p>{prose(problem.explanation)}</p>"
        f"<h2>Send it again?</h2><p>{again}</p><h2>What it looks like</h2><pre><code>{escape(example)}</code></pre>",
    )


def problems_page() -> bytes:
    """The human page that lists them all."""
    rows = "".join(
        f"<tr><td><a href='{problem.type}'><code>{problem.name}</code></a><td>{', '.join(map(str, problem.statuses))}"
        f"<td>{escape(problem.title)}<td>{'yes' if problem.retryable else 'no'}"
        for problem in CATALOGUE
    )
    return html_page(
        "Problems",
        "<h1>Problems</h1><p>Every error is <code>application/problem+json</code> (RFC 9457) of one of these types.</p>"
        f"<table><tr><th>type<th>status<th>meaning<th>send again?{rows}</table>",
    )
