"""Transfers one at a time: new ones, deposits and withdrawals, what follows a hold or a payment, and looking one up.

A new transfer is the hottest call there is: its row is packed in one go, and its answer is written as text. Measured on
a busy core, edge and token included, without server and shard: 30 us of CPU; a balance 23 us.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Awaitable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
import numpy as np
from msgspec import UNSET, Raw, UnsetType

from actors.shard_client import Outcome, ShardUnavailable
from deployments.json_body import decode
from deployments.payments_call import (
    OPERATOR,
    Call,
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
    Problem,
    ProblemError,
    malformed,
    refusal,
)
from deployments.request import SINGLE_BYTES_MAX, Answer, json_answer
from storage import ids, query_store
from storage.events import AMOUNT_MAX, EVENT, FIRST_STATELESS, SETTLEMENT, SLOTS, Code, Kind, ResultFlag
from storage.found import Found
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
    """Send one event to its shard and wait for its outcome. `id_`: by which the client may send it again.

    Raises:
        ProblemError: refused, overloaded or unsure; its members tell the `id`.
    """
    outcome = await _outcome(call, row, note, id_)
    if outcome.results["code"][0] == _OK:
        return _done(outcome)
    raise await problem_of(call, row, id_, outcome, debit_field, credit_field)


async def _outcome(call: Call, row: bytes, note: bytes | None, id_: Id) -> Outcome:
    return await call.apply(np.frombuffer(row, EVENT), None if note is None else [note], id_)


def _done(outcome: Outcome) -> Done:
    at, detail, _, flags, _ = outcome.results.item(0)
    return Done(at, detail, outcome.positions, bool(flags & _REPLAYED))


async def problem_of(
    call: Call, row: bytes, id_: Id, outcome: Outcome, debit_field: str, credit_field: str
) -> ProblemError:
    """What the outcome of an event that was not carried out is to a client; marked as the outcome."""
    at, detail, code, flags, _ = outcome.results.item(0)
    replayed = bool(flags & _REPLAYED)
    members: dict[str, Any] = {"id": ids.text(id_)}
    if code < FIRST_STATELESS and at:
        members["created_at"] = rfc3339(at)
    if replayed and code in LEFT_CODES:
        detail = await _first_detail(call, row)
    error = refusal(Code(code), detail, debit_field, credit_field, **members)
    for name, value in write_headers(outcome.positions, replayed=replayed)[1:]:
        error.headers[name.decode()] = value.decode()
    return call.outcome(error)


async def _first_detail(call: Call, row: bytes) -> int:
    """What the first refusal said was left: the shard remembers the code alone."""
    high, low = struct.unpack_from("<QQ", row)
    known = (await look_up(call, (high, low))).newest()
    if known is None:
        raise ProblemError(NOT_CAUGHT_UP, "The first answer to this id is not in the query store yet")
    return known.detail


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
    id_ = call.event_id("transfers", request.id, debit)
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
    return await _fund(call, request, Kind.DEPOSIT, "deposits", account)


async def create_withdrawal(call: Call) -> Answer:
    """POST /v1/withdrawals."""
    call.authorize("ledger:fund", lifted_by_operate=False)
    request = await call.json(_WITHDRAWAL)
    account = read_account(request.account, "account")
    return await _fund(call, request, Kind.WITHDRAWAL, "withdrawals", account)


async def _fund(call: Call, request: DepositRequest, kind: Kind, route: str, account: int) -> Answer:
    amount = check_amount(request.amount, most=call.services.deposit_max if kind is Kind.DEPOSIT else AMOUNT_MAX)
    debit, credit = (SETTLEMENT, account) if kind is Kind.DEPOSIT else (account, SETTLEMENT)
    note = read_note(request.description, request.metadata)
    id_ = call.event_id(route, request.id, account)
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
    hold, done = await _end_hold(call, Kind.POST, "post", amount)
    view = _hold_view(hold, "posted", posted_amount=amount or hold.amount)
    return json_answer(200, view, write_headers(done.positions, replayed=done.replayed))


async def void_transfer(call: Call) -> Answer:
    """POST /v1/transfers/{id}/void."""
    call.authorize("ledger:write")
    await call.json(_VOID, empty=b"{}")
    hold, done = await _end_hold(call, Kind.VOID, "void", 0)
    return json_answer(200, _hold_view(hold, "voided"), write_headers(done.positions, replayed=done.replayed))


async def _end_hold(call: Call, kind: Kind, route: str, amount: int) -> tuple[query_store.Transfer, Done]:
    """Send the post or void straight to the shard that the hold's id names, which knows the hold and its owner.

    Returns:
        The hold as it was made, and the outcome.
    """
    hold = _path_id(call)
    slot = ids.slot_of(hold)
    id_ = call.event_id(f"{route}:{ids.text(hold)}", UNSET, slot)
    row = event_row(kind, id_, call.actor, amount=amount, ref=hold)
    # What is known of the hold is asked for meanwhile, not after: two calls on one way cost little more than one.
    finding = call.services.client.finding(hold, call.actor, call.deadline)
    outcome = await _outcome(call, row, None, id_)
    at, _, code, _, _ = outcome.results.item(0)
    if code == _OK:
        done = _done(outcome)
        return await _ended_hold(call, hold, done, finding), done
    error = await problem_of(call, row, id_, outcome, *PARTIES)
    if error.problem is FORBIDDEN:
        error = call.outcome(_as_before(error, FORBIDDEN, "Only the payer's owner may post or void a hold"))
    elif error.problem is NOT_HELD:
        error = call.outcome(await _not_held(call, error, hold, at))
    raise error


async def _ended_hold(call: Call, id_: Id, done: Done, finding: Awaitable[Found]) -> query_store.Transfer:
    """What the hold was made of, which never changes. A derived id may have been used again meanwhile: the newest hold
    before its end is certain to be there once everything up to that is known."""
    seen = None
    with contextlib.suppress(ProblemError):
        seen = await _seen(call, id_, finding)
    is_later = seen is not None and seen.found.head > done.positions[call.partition_of(ids.slot_of(id_))]
    if seen is None or not (is_later or (ids.version(id_) == 7 and seen.hold(done.at))):
        seen = await _find(call, id_)
    known = seen.hold(done.at) or (await _history(call, id_, seen)).hold(done.at)
    if known is None:
        raise ProblemError(NOT_CAUGHT_UP, "The query store does not have the hold")
    return known


async def _not_held(call: Call, error: ProblemError, id_: Id, at: int) -> ProblemError:
    """What is told of a hold that the shard did not have at that moment: it forgets one that has ended, and the history
    knows."""
    seen = await look_up(call, id_)
    known = seen.newest(at) or (await _history(call, id_, seen)).newest(at)
    if known is None:
        return _as_before(error, UNKNOWN_TRANSFER, "There is no such transfer", id=ids.text(id_))
    if not await _owns(call, known.debit, seen):
        if known.kind is Kind.HOLD:
            return _as_before(error, FORBIDDEN, "Only the payer's owner may post or void a hold")
        if not await _owns(call, known.credit, seen):
            return _as_before(error, FORBIDDEN, "The transfer is between other people's accounts")
    if known.status is Status.EXPIRED:
        return _as_before(error, BY_CODE[Code.HOLD_EXPIRED], "The hold has expired", **error.members)
    detail = error.detail if known.kind is Kind.HOLD else "This was never on hold"
    return _as_before(error, NOT_HELD, detail, **error.members, transfer_status=str(known.status))


def _as_before(error: ProblemError, problem: Problem, detail: str, **members: Any) -> ProblemError:
    """Another problem for the same outcome, with its headers."""
    return ProblemError(problem, detail, headers=error.headers, **members)


async def refund_transfer(call: Call) -> Answer:
    """POST /v1/transfers/{id}/refunds."""
    call.authorize("ledger:write")
    request = await call.json(_REFUND)
    amount = check_amount(request.amount)
    note = read_note(request.description, request.metadata)
    original = await _own_payment(call)
    try:
        id_ = call.event_id(f"refunds:{ids.text(original.id)}", request.id, original.credit)
    except ProblemError:  # it would tell others where the payee lies
        if not await _owns(call, original.credit):
            raise ProblemError(FORBIDDEN, _NOT_PAYEES) from None
        raise
    total = original.amount if original.posted_amount is None else original.posted_amount
    row = event_row(
        Kind.REFUND, id_, call.actor, debit=original.credit, credit=original.debit, amount=amount, ref=original.id,
        span=original.at, total=total, check=content_check(note, 0),
    )  # fmt: skip
    try:
        done = await send(call, row, note, id_, *PARTIES)
    except ProblemError as error:
        if error.problem is FORBIDDEN:
            raise call.outcome(_as_before(error, FORBIDDEN, _NOT_PAYEES)) from None
        raise
    view = _view(id_, Kind.REFUND, "settled", amount, original.credit, original.debit, done.at, note)
    view.refund_of = ids.text(original.id)
    return json_answer(201, view, write_headers(done.positions, replayed=done.replayed))


async def _own_payment(call: Call) -> query_store.Transfer:
    """The payment that the path names. Whether the caller may give it back is for the payee's shard to say; of anything
    else only its own people are told what it is."""
    id_ = _path_id(call)
    seen = await _find(call, id_)
    seen = await _settled(call, id_, seen if seen.uses else await _history(call, id_, seen))
    known = seen.newest()
    if known is None:
        raise ProblemError(UNKNOWN_TRANSFER, "There is no such transfer", id=ids.text(id_))
    if _is_paid(known):
        return known
    if not await _owns(call, known.credit, seen):
        if known.kind in _PAYMENTS:
            raise ProblemError(FORBIDDEN, _NOT_PAYEES)
        if not await _owns(call, known.debit, seen):
            raise ProblemError(FORBIDDEN, "The transfer is between other people's accounts")
    raise ProblemError(NOT_REFUNDABLE, NOT_REFUNDABLE.title, transfer_status=str(known.status))


_NOT_PAYEES: Final = "Only the payee's owner may refund a transfer"
_PAYMENTS: Final = frozenset({Kind.TRANSFER, Kind.HOLD})


def _is_paid(known: query_store.Transfer) -> bool:
    return known.kind in _PAYMENTS and known.status in {Status.SETTLED, Status.POSTED}


# -- looking up -------------------------------------------------------------------------------------------------------


async def get_transfer(call: Call) -> Answer:
    """GET /v1/transfers/{id}."""
    call.authorize("ledger:read")
    id_ = _path_id(call)
    await call.wait_for_positions()
    seen = await look_up(call, id_)
    known = seen.newest()
    if known is None:
        raise ProblemError(UNKNOWN_TRANSFER, "There is no such transfer")
    if not (await _owns(call, known.debit, seen) or await _owns(call, known.credit, seen)):
        raise ProblemError(FORBIDDEN, "The transfer is between other people's accounts")
    return json_answer(200, transfer_view(known))


class Seen(NamedTuple):
    """What is known of an id: to its shard alone, to that and the query store, or to the latter."""

    uses: Sequence[query_store.Transfer]  # the newest last
    found: Found

    def newest(self, at: int | None = None) -> query_store.Transfer | None:
        """The newest use, which is what an id means; or what it meant to an event that was stamped `at`, to the us."""
        for use in reversed(self.uses):
            if at is None or use.at // 1000 <= at // 1000:
                return use
        return None

    def hold(self, at: int) -> query_store.Transfer | None:
        """The newest hold that was made before something of stamp `at` was done, to the us: that lived, if any did."""
        for use in reversed(self.uses):
            if use.kind is Kind.HOLD and use.code is Code.OK and use.at // 1000 <= at // 1000:
                return use
        return None


async def look_up(call: Call, id_: Id) -> Seen:
    """The uses of an id, as of the end that the journal of its shard has now; the newest not in flight any more.

    Raises:
        ProblemError: a shard does not answer, the query store did not catch up in time, or an outcome is still open.
    """
    seen = await _find(call, id_)
    known = seen.newest()
    # What was given back on another shard is for the query store to say.
    if known is None or (_is_paid(known) and call.partition_of(known.credit) != known.partition):
        seen = await _history(call, id_, seen)
    return await _settled(call, id_, seen)


async def _find(call: Call, id_: Id) -> Seen:
    """What the shard alone knows: the newest uses, if any, but for what was given back on other shards."""
    return await _seen(call, id_, call.services.client.finding(id_, call.actor, call.deadline))


async def _seen(call: Call, id_: Id, finding: Awaitable[Found]) -> Seen:
    try:
        found = await finding
    except ShardUnavailable:
        raise ProblemError(UNAVAILABLE, "A shard does not answer", id=ids.text(id_)) from None
    return Seen(query_store.recent_uses(id_, call.partition_of(ids.slot_of(id_)), found), found)


async def _history(call: Call, id_: Id, seen: Seen) -> Seen:
    """All uses, as of what the shard knows: what the query store does not have yet is beside it, or is waited for."""
    partition = call.partition_of(ids.slot_of(id_))
    uses = query_store.uses(await call.services.store.stored(id_, partition), seen.found)
    if uses is None:
        try:
            await call.wait_for({partition: seen.found.head - 1})
        except ProblemError as error:
            error.members["id"] = ids.text(id_)
            raise
        uses = await call.services.store.transfer(id_)
    return seen._replace(uses=uses)


async def _settled(call: Call, id_: Id, seen: Seen) -> Seen:
    """The same when the newest use is not in flight any more, for which the query store knows both sides."""
    known = seen.newest()
    if known is None or known.status is not Status.IN_FLIGHT:
        return seen
    try:
        await call.wait_for({known.partition: seen.found.head - 1})
        return seen._replace(uses=await call.services.store.settled_transfer(id_, call.deadline))
    except ProblemError as error:
        error.members["id"] = ids.text(id_)
        raise
    except NotYetProjected:
        raise ProblemError(UNSURE, "The transfer is on its way to its payee", id=ids.text(id_)) from None


async def _owns(call: Call, account: int, seen: Seen | None = None) -> bool:
    """Whether the caller may act for an account. Its shard knows, and may have said so already."""
    if call.actor == OPERATOR:
        return True
    if account == SETTLEMENT:
        return False
    if seen is not None and account == seen.found.account:
        return seen.found.owned
    one, actor = np.array([account], np.uint64), np.array([call.actor], np.uint64)
    try:
        read = await call.services.client.read(one, actor, call.deadline)
    except ShardUnavailable:
        raise ProblemError(UNAVAILABLE, "A shard does not answer") from None
    return bool(read.states["code"][0] == Code.OK)


def _path_id(call: Call) -> Id:
    """The id that the path names; none that could be an event's is none of a transfer."""
    try:
        id_ = ids.parse(call.path["id"])
    except ValueError:
        id_ = (0, SLOTS)
    if ids.slot_of(id_) >= SLOTS:
        raise ProblemError(UNKNOWN_TRANSFER, "There is no such transfer")
    return id_


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
