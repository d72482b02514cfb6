"""Transfers one at a time: new ones, deposits and withdrawals, what follows a hold or a payment, and looking one up.

A new transfer is the hottest call there is: its row is packed in one go, and its answer is written as text. Measured on
a busy core, edge and token included, without server and shard: 30 us of CPU; a balance 23 us.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
import numpy as np
from msgspec import UNSET, Raw, UnsetType

from actors.shard_client import Outcome, ShardUnavailable
from deployments.json_body import decode
from deployments.payments_call import (
    OPERATOR,
    Call,
    Rows,
    check_amount,
    content_check,
    read_account,
    read_note,
    write_headers,
)
from deployments.payments_schema import (
    DepositRequest,
    PostRequest,
    RefundRequest,
    Transfer,
    TransferRequest,
    VoidRequest,
    WithdrawalRequest,
)
from deployments.problems import (
    BY_CODE,
    FORBIDDEN,
    LEFT_CODES,
    NOT_CAUGHT_UP,
    NOT_HELD,
    NOT_REFUNDABLE,
    UNAVAILABLE,
    UNKNOWN_TRANSFER,
    UNSURE,
    ProblemError,
    malformed,
    refusal,
)
from deployments.request import SINGLE_BYTES_MAX, Answer, json_answer
from storage import ids, query_store
from storage.events import EVENT, FIRST_STATELESS, SETTLEMENT, Code, Kind, ResultFlag
from storage.ids import Id
from storage.notation import CURRENCY, rfc3339
from storage.query_store import NotYetProjected, Status

if TYPE_CHECKING:
    from deployments.payments_services import Services

_NS: Final = 1_000_000_000
_EVENT: Final = struct.Struct("<6Q4q2Q4H")
_MASK64: Final = 2**64 - 1
_REPLAYED: Final = int(ResultFlag.REPLAYED)
_OK: Final = int(Code.OK)
PARTIES: Final = ("debit_account", "credit_account")
"""The fields that name them."""

_TRANSFER: Final = msgspec.json.Decoder(TransferRequest)
_DEPOSIT: Final = msgspec.json.Decoder(DepositRequest)
_WITHDRAWAL: Final = msgspec.json.Decoder(WithdrawalRequest)
_POST: Final = msgspec.json.Decoder(PostRequest)
_VOID: Final = msgspec.json.Decoder(VoidRequest)
_REFUND: Final = msgspec.json.Decoder(RefundRequest)


def event_row(
    kind: Kind,
    id_: Id,
    actor: int,
    *,
    debit: int = 0,
    credit: int = 0,
    amount: int = 0,
    ref: Id = (0, 0),
    span: int = 0,
    total: int = 0,
    check: int = 0,
) -> bytes:
    """The bytes of an EVENT. Unsigned columns take negative values as two's complement."""
    return _EVENT.pack(
        id_[0], id_[1], ref[0] & _MASK64, ref[1] & _MASK64, debit, credit, amount, 0, span, total, actor, check,
        kind, 0, 0, 0,
    )  # fmt: skip


class Done(NamedTuple):
    """An event that was carried out."""

    at: int
    detail: int
    positions: dict[int, int]
    replayed: bool


async def send(call: Call, row: bytes, note: bytes | None, id_: Id, debit_field: str, credit_field: str) -> Done:
    """Send one event to its shard and wait for its outcome.

    Raises:
        ProblemError: refused, overloaded or unsure; its members tell the event's `id`.
    """
    call.scope["razao.event"] = ids.text(id_)  # from here on the edge's own time-out must answer `unsure`
    rows = np.frombuffer(row, EVENT)
    outcome: Outcome = await call.services.client.apply(rows, None if note is None else [note], call.deadline)
    at, detail, code, flags, _ = outcome.results.item(0)
    if code == _OK:
        return Done(at, detail, outcome.positions, bool(flags & _REPLAYED))
    raise await problem_of(call, row, id_, outcome, debit_field, credit_field)


async def problem_of(
    call: Call, row: bytes, id_: Id, outcome: Outcome, debit_field: str, credit_field: str
) -> ProblemError:
    """What the outcome of an event that was not carried out is to a client."""
    at, detail, code, flags, _ = outcome.results.item(0)
    replayed = bool(flags & _REPLAYED)
    members: dict[str, Any] = {"id": ids.text(id_)}
    if code < FIRST_STATELESS and at:
        members["created_at"] = rfc3339(at)
    if replayed and code in LEFT_CODES:
        detail = await _first_detail(call, id_, row)
    error = refusal(Code(code), detail, debit_field, credit_field, **members)
    for name, value in write_headers(outcome.positions, replayed=replayed)[1:]:
        error.headers[name.decode()] = value.decode()
    return error


async def _first_detail(call: Call, id_: Id, row: bytes) -> int:
    """What the first refusal said was left: the shard remembers the code alone."""
    event = np.frombuffer(row, EVENT)
    kind, debit = event["kind"][0], event["debit"][0]
    for known in await look_up(call, id_):
        if known.kind == kind and known.debit == debit:
            return known.detail
    raise ProblemError(NOT_CAUGHT_UP, "The first answer to this id is not in the query store yet")


# -- new money moves --------------------------------------------------------------------------------------------------


class Wanted(NamedTuple):
    """A transfer, or a hold, as it was asked for."""

    id: Id
    row: bytes
    note: bytes | None
    debit: int
    credit: int
    amount: int  # centavos
    life_ns: int  # of a hold; 0 of a transfer


async def create_transfer(call: Call) -> Answer:
    """POST /v1/transfers."""
    call.authorize("ledger:write")
    call.expect_json()
    wanted = read_transfer(call, await call.body(SINGLE_BYTES_MAX))
    done = await send(call, wanted.row, wanted.note, wanted.id, *PARTIES)
    return transfer_answer(wanted, done.at, done.positions, replayed=done.replayed)


def read_transfer(call: Call, body: bytes) -> Wanted:
    """What a body asks for.

    Raises:
        ProblemError: it is malformed, or cannot be carried out whatever the accounts hold.
    """
    request = decode(body, _TRANSFER)
    amount = check_amount(request.amount)
    debit = read_account(request.debit_account, "debit_account")
    credit = read_account(request.credit_account, "credit_account")
    note = None
    if request.description is not UNSET or request.metadata is not UNSET:
        note = read_note(request.description, request.metadata)
    hold = request.hold is True
    expires_in = read_expiry(request.expires_in, "expires_in", hold=hold, services=call.services)
    given = 0 if request.expires_in is UNSET else expires_in
    id_ = call.event_id("transfers", request.id)
    kind = Kind.HOLD if hold else Kind.TRANSFER
    check = content_check(note, given) if given or note is not None else 0
    span = expires_in * _NS
    row = event_row(kind, id_, call.actor, debit=debit, credit=credit, amount=amount, span=span, check=check)
    return Wanted(id_, row, note, debit, credit, amount, span)


def transfer_answer(wanted: Wanted, at: int, positions: dict[int, int], *, replayed: bool) -> Answer:
    """What is said of one that was carried out `at` (ns since 1970)."""
    end = "}" if wanted.note is None else f",{wanted.note[1:].decode()}"
    state = _SETTLED
    if wanted.life_ns:
        state = f'"kind":"hold","status":"held","expires_at":"{rfc3339(at + wanted.life_ns)}"'
    body = (
        f'{{"id":"{ids.text(wanted.id)}",{state},"amount":{wanted.amount},"currency":"BRL",'
        f'"debit_account":"{wanted.debit}","credit_account":"{wanted.credit}","created_at":"{rfc3339(at)}"{end}'
    )
    return Answer(201, body.encode(), write_headers(positions, replayed=replayed))


_SETTLED: Final = '"kind":"transfer","status":"settled"'


def read_expiry(given: int | UnsetType, field: str, *, hold: bool, services: Services) -> int:
    """Life of a hold in seconds; 0 for what is none."""
    if given is UNSET:
        return services.hold_default_s if hold else 0
    if not hold:
        raise malformed(field, "Only a hold expires: send `hold: true` as well")
    if not 1 <= given <= services.hold_max_s:
        raise malformed(field, f"A hold lives 1 to {services.hold_max_s} seconds")
    return given


async def create_deposit(call: Call) -> Answer:
    """POST /v1/deposits."""
    call.authorize("ledger:fund", lifted_by_operate=False)
    request = await call.json(_DEPOSIT)
    account = read_account(request.account, "account")
    return await _fund(call, request, Kind.DEPOSIT, "deposits", SETTLEMENT, account)


async def create_withdrawal(call: Call) -> Answer:
    """POST /v1/withdrawals."""
    call.authorize("ledger:fund", lifted_by_operate=False)
    request = await call.json(_WITHDRAWAL)
    account = read_account(request.account, "account")
    return await _fund(call, request, Kind.WITHDRAWAL, "withdrawals", account, SETTLEMENT)


async def _fund(call: Call, request: DepositRequest, kind: Kind, route: str, debit: int, credit: int) -> Answer:
    amount = check_amount(request.amount)
    note = read_note(request.description, request.metadata)
    id_ = call.event_id(route, request.id)
    check = content_check(note, 0)
    row = event_row(kind, id_, OPERATOR, debit=debit, credit=credit, amount=amount, check=check)
    done = await send(call, row, note, id_, "account", "account")
    view = _view(id_, kind, "settled", amount, debit, credit, done.at, note)
    return json_answer(201, view, write_headers(done.positions, replayed=done.replayed))


# -- what follows -----------------------------------------------------------------------------------------------------


async def post_transfer(call: Call) -> Answer:
    """POST /v1/transfers/{id}/post."""
    call.authorize("ledger:write")
    request = await call.json(_POST, empty=b"{}")
    amount = 0 if request.amount is UNSET else check_amount(request.amount)
    hold = await _own_hold(call)
    id_ = call.event_id(f"post:{ids.text(hold.id)}", UNSET)
    row = event_row(Kind.POST, id_, call.actor, debit=hold.debit, credit=hold.credit, amount=amount, ref=hold.id)
    done = await _end_hold(call, row, id_, hold)
    posted = amount or hold.amount
    view = _hold_view(hold, "posted", posted_amount=posted)
    return json_answer(200, view, write_headers(done.positions, replayed=done.replayed))


async def void_transfer(call: Call) -> Answer:
    """POST /v1/transfers/{id}/void."""
    call.authorize("ledger:write")
    await call.json(_VOID, empty=b"{}")
    hold = await _own_hold(call)
    id_ = call.event_id(f"void:{ids.text(hold.id)}", UNSET)
    row = event_row(Kind.VOID, id_, call.actor, debit=hold.debit, credit=hold.credit, ref=hold.id)
    done = await _end_hold(call, row, id_, hold)
    return json_answer(200, _hold_view(hold, "voided"), write_headers(done.positions, replayed=done.replayed))


async def _own_hold(call: Call) -> query_store.Transfer:
    """The hold that the path names, if the caller owns its payer.

    What a hold is made of never changes, so a row that the query store has already will do; its state is the shard's.
    """
    id_ = _path_id(call)
    found = await _known(call, id_, lambda known: known.kind is Kind.HOLD)
    holds = [known for known in found if known.kind is Kind.HOLD]
    owned = [hold for hold, (payer, _) in zip(holds, await _parties(call, holds), strict=True) if payer]
    if owned:
        return owned[0]
    if holds:
        raise ProblemError(FORBIDDEN, "Only the payer's owner may post or void a hold")
    await _visible(call, found)
    raise ProblemError(NOT_HELD, "This was never on hold", transfer_status=str(found[0].status))


async def _end_hold(call: Call, row: bytes, id_: Id, hold: query_store.Transfer) -> Done:
    try:
        return await send(call, row, None, id_, *PARTIES)
    except ProblemError as error:
        if error.problem is not NOT_HELD:
            raise
        return await _not_held(call, error, hold)


async def _not_held(call: Call, error: ProblemError, hold: query_store.Transfer) -> Done:
    """Say what became of the hold instead: a shard forgets one that has ended."""
    found = [known for known in await look_up(call, hold.id) if known.partition == hold.partition]
    now = found[-1] if found else hold
    if now.status is Status.EXPIRED:
        expired = ProblemError(BY_CODE[Code.HOLD_EXPIRED], "The hold has expired", **error.members)
        expired.headers |= error.headers
        raise expired
    error.members["transfer_status"] = str(now.status)
    raise error


async def refund_transfer(call: Call) -> Answer:
    """POST /v1/transfers/{id}/refunds."""
    call.authorize("ledger:write")
    request = await call.json(_REFUND)
    amount = check_amount(request.amount)
    note = read_note(request.description, request.metadata)
    original = await _own_payment(call)
    id_ = call.event_id(f"refunds:{ids.text(original.id)}", request.id)
    total = original.amount if original.posted_amount is None else original.posted_amount
    row = event_row(
        Kind.REFUND, id_, call.actor, debit=original.credit, credit=original.debit, amount=amount, ref=original.id,
        span=original.at, total=total, check=content_check(note, 0),
    )  # fmt: skip
    done = await send(call, row, note, id_, *PARTIES)
    view = _view(id_, Kind.REFUND, "settled", amount, original.credit, original.debit, done.at, note)
    view.refund_of = ids.text(original.id)
    return json_answer(201, view, write_headers(done.positions, replayed=done.replayed))


async def _own_payment(call: Call) -> query_store.Transfer:
    """The payment that the path names, if the caller owns its payee."""
    found = await _known(call, _path_id(call), _is_paid)
    payments = [known for known in found if known.kind in {Kind.TRANSFER, Kind.HOLD}]
    owned = [known for known, (_, payee) in zip(payments, await _parties(call, payments), strict=True) if payee]
    paid = [known for known in owned if _is_paid(known)]
    if paid:
        return paid[0]
    if payments and not owned:
        raise ProblemError(FORBIDDEN, "Only the payee's owner may refund a transfer")
    await _visible(call, found)
    status = (owned or found)[0].status
    raise ProblemError(NOT_REFUNDABLE, NOT_REFUNDABLE.title, transfer_status=str(status))


def _is_paid(known: query_store.Transfer) -> bool:
    return known.kind in {Kind.TRANSFER, Kind.HOLD} and known.status in {Status.SETTLED, Status.POSTED}


# -- looking up -------------------------------------------------------------------------------------------------------


async def get_transfer(call: Call) -> Answer:
    """GET /v1/transfers/{id}."""
    call.authorize("ledger:read")
    call.query()
    await call.wait_for_positions()
    found = await look_up(call, _path_id(call))
    visible = await _visible(call, found)
    return json_answer(200, transfer_view(visible[-1]))


async def look_up(call: Call, id_: Id) -> list[query_store.Transfer]:
    """Everything that carries an id, as of the journal's heads now, none of it in flight any more.

    Raises:
        ProblemError: the query store did not catch up in time, or an outcome is still open.
    """
    services = call.services
    try:
        heads = await services.client.heads(call.deadline)
        await services.store.wait_for({key: head - 1 for key, head in heads.items()}, call.deadline)
    except ShardUnavailable:
        raise ProblemError(UNAVAILABLE, "A shard does not answer", id=ids.text(id_)) from None
    except NotYetProjected:
        raise ProblemError(NOT_CAUGHT_UP, "The query store has not caught up yet", id=ids.text(id_)) from None
    try:
        return await services.store.settled_transfer(id_, call.deadline)
    except NotYetProjected:
        raise ProblemError(UNSURE, "The transfer is on its way to its payee", id=ids.text(id_)) from None


async def _known(call: Call, id_: Id, enough: Any) -> list[query_store.Transfer]:
    """What carries an id: what the query store has now when that is enough, else as `look_up`."""
    found = await call.services.store.transfer(id_)
    if not any(map(enough, found)):
        found = await look_up(call, id_)
    if not found:
        raise ProblemError(UNKNOWN_TRANSFER, "There is no such transfer", id=ids.text(id_))
    return found


async def _visible(call: Call, found: list[query_store.Transfer]) -> list[query_store.Transfer]:
    """Those of which the caller may know.

    Raises:
        ProblemError: there are none.
    """
    if not found:
        raise ProblemError(UNKNOWN_TRANSFER, "There is no such transfer")
    visible = [known for known, sides in zip(found, await _parties(call, found), strict=True) if any(sides)]
    if not visible:
        raise ProblemError(FORBIDDEN, "The transfer is between other people's accounts")
    return visible


async def _parties(call: Call, found: list[query_store.Transfer]) -> list[tuple[bool, bool]]:
    """For each whether the caller may act for its payer, and for its payee."""
    if call.actor == OPERATOR:
        return [(True, True)] * len(found)
    accounts = np.array([account for known in found for account in (known.debit, known.credit)], np.uint64)
    customers = accounts != SETTLEMENT
    own = np.zeros(len(accounts), bool)
    if customers.any():
        own[customers] = await own_accounts(call, accounts[customers])
    pairs: list[list[bool]] = own.reshape(-1, 2).tolist()
    return [(payer, payee) for payer, payee in pairs]


async def own_accounts(call: Call, accounts: Rows) -> Rows:
    """(n,) u64 accounts → (n,) bool: which of them the caller may act for. The shards know."""
    actors = np.full(len(accounts), call.actor, np.uint64)
    try:
        read = await call.services.client.read(accounts, actors, call.deadline)
    except ShardUnavailable:
        raise ProblemError(UNAVAILABLE, "A shard does not answer") from None
    own: Rows = read.states["code"] == Code.OK
    return own


def _path_id(call: Call) -> Id:
    try:
        return ids.parse(call.path["id"])
    except ValueError:
        raise ProblemError(UNKNOWN_TRANSFER, "There is no such transfer") from None


# -- views ------------------------------------------------------------------------------------------------------------

KIND_NAMES: Final = {
    Kind.TRANSFER: "transfer",
    Kind.HOLD: "hold",
    Kind.DEPOSIT: "deposit",
    Kind.WITHDRAWAL: "withdrawal",
    Kind.REFUND: "refund",
    Kind.POST: "post",
    Kind.VOID: "void",
    Kind.EXPIRE: "hold",
    Kind.REVERT: "reversal",
}


def _account_text(account: int) -> str:
    return "settlement" if account == SETTLEMENT else str(account)


def _view(
    id_: Id, kind: Kind, status: Any, amount: int, debit: int, credit: int, at: int, note: bytes | None
) -> Transfer:
    content = {} if note is None else msgspec.json.decode(note, type=dict[str, Raw])
    kind_name: Any = KIND_NAMES[kind]
    return Transfer(
        id=ids.text(id_),
        kind=kind_name,
        status=status,
        amount=amount,
        currency=CURRENCY,
        debit_account=_account_text(debit),
        credit_account=_account_text(credit),
        created_at=rfc3339(at),
        description=msgspec.json.decode(content["description"], type=str) if "description" in content else UNSET,
        metadata=content.get("metadata", UNSET),
    )


def _hold_view(hold: query_store.Transfer, status: str, *, posted_amount: int | UnsetType = UNSET) -> Transfer:
    view = _view(hold.id, Kind.HOLD, status, hold.amount, hold.debit, hold.credit, hold.at, hold.note)
    view.posted_amount = posted_amount
    view.expires_at = rfc3339(hold.expires_at) if hold.expires_at and hold.kind is Kind.HOLD else UNSET
    return view


def transfer_view(known: query_store.Transfer) -> Transfer:
    """A transfer as the query store has it."""
    posted = UNSET if known.posted_amount is None else known.posted_amount
    view = _hold_view(known, str(known.status), posted_amount=posted)
    kind_name: Any = KIND_NAMES[known.kind]
    view.kind = kind_name
    if known.refunded_amount:
        view.refunded_amount = known.refunded_amount
    if known.status is Status.REFUSED:
        view.type = BY_CODE[known.code].type
    if known.ref is not None:
        if known.kind is Kind.REFUND:
            view.refund_of = ids.text(known.ref)
        else:
            view.hold = ids.text(known.ref)
    return view
