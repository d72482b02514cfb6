"""Accounts: open, look at, change, list; their balances, now and at any past instant, and their movements."""

from __future__ import annotations

import re
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType

from actors.shard_client import ShardUnavailable
from deployments.json_body import text
from deployments.names import read_name
from deployments.payments_call import (
    OPERATE,
    OPERATOR,
    Call,
    position_header,
    read_instant,
    read_limit,
    read_path_account,
    write_headers,
)
from deployments.payments_schema import (
    NAME_MAX,
    SUB_MAX,
    TIME_OF_DAY_PATTERN,
    Account,
    AccountItem,
    AccountPage,
    Balance,
    BalanceAnswer,
    ChangeRequest,
    Entry,
    EntryPage,
    Limits,
    LimitsRequest,
    NightWindow,
    OpenRequest,
    OwnerView,
    Raise,
)
from deployments.payments_transfers import KIND_NAMES, Done, event_row, send
from deployments.problems import (
    FORBIDDEN,
    ID_CONFLICT,
    INVALID_LIMIT,
    NOT_CAUGHT_UP,
    UNAVAILABLE,
    UNKNOWN_ACCOUNT,
    UNPROVEN,
    ProblemError,
    malformed,
)
from deployments.request import JSON, Answer, Header, json_answer, page_of
from deployments.tax_id import read_tax_id
from storage import ids
from storage.events import NO_LIMIT, SLOTS, AccountStatus, Code, Kind
from storage.ids import Id
from storage.notation import CURRENCY, rfc3339
from storage.registry import Owner, RegistrationConflict, TooManyAccounts, account_id, slot

if TYPE_CHECKING:
    from deployments.payments_services import Unproven

_OPEN: Final = msgspec.json.Decoder(OpenRequest)
_CHANGE: Final = msgspec.json.Decoder(ChangeRequest)
_CHANGE_ROUTE: Final = "accounts/change"
_NS: Final = 1_000_000_000
_UNCHANGED: Final = -1
_PAGE: Final = 100
_PAGE_MAX: Final = 1000
_TIME_OF_DAY: Final = re.compile(TIME_OF_DAY_PATTERN)
DEFAULT_WINDOW: Final = 20 * 60 << 16 | 6 * 60
STATUS_NAMES: Final = {AccountStatus.OPEN: "open", AccountStatus.FROZEN: "frozen", AccountStatus.CLOSED: "closed"}


# -- open and change --------------------------------------------------------------------------------------------------


async def open_account(call: Call) -> Answer:
    """POST /v1/accounts. Who owns it is registered before the event is sent; both steps can be repeated."""
    caller = call.authorize("ledger:write")
    request = await call.json(_OPEN)
    services = call.services
    sub = caller if request.owner.sub is UNSET else text(request.owner.sub, "owner.sub", SUB_MAX)
    if sub != caller and call.actor != OPERATOR:
        raise ProblemError(FORBIDDEN, "Only an operator may open accounts for somebody else", field="owner.sub")
    name = read_name(request.owner.name, "owner.name", NAME_MAX)
    given = request.owner.tax_id
    tax_id = None if given is UNSET else read_tax_id(given, "owner.tax_id", repeated=services.repeated_tax_ids)
    asked = _limit_columns(request.limits, absent=_UNCHANGED, no_window=DEFAULT_WINDOW)
    _check_proof(call, tax_id)
    columns = _filled(asked, (NO_LIMIT,) * 3) if tax_id is not None else _limited(asked, services.unproven)
    named = call.event_id("accounts", request.id, None)
    account = account_id(named, slot(services.ledger_key, sub if tax_id is None else tax_id))
    digest = msgspec.msgpack.encode(columns)
    most = services.unproven.accounts if tax_id is None else None
    try:
        owner = await services.registry.register(
            account, named, sub=sub, tax_id=tax_id, name=name, digest=digest, at_most=most
        )
    except RegistrationConflict:
        raise ProblemError(ID_CONFLICT, "The id was used to open another account", id=ids.text(named)) from None
    except TooManyAccounts:
        detail = f"Nobody has more than {most} accounts here under no CPF or CNPJ"
        raise ProblemError(UNPROVEN, detail, field="owner.tax_id", most=most) from None
    per_transfer, daily, night, window = columns
    event = opening_id(named, account, services.ledger_key)
    row = event_row(
        Kind.OPEN, event, OPERATOR, debit=account, credit=services.actors.of(sub), amount=per_transfer,
        ref=(daily, night), total=window, check=window,
    )  # fmt: skip
    done = await send(call, row, None, named, "account", "account")
    await services.registry.opened(account, done.at)
    limits = Limits(_shown(per_transfer), _shown(daily), _shown(night), _window_view(window), [])
    view = _account_view(account, AccountStatus.OPEN, Balance(0, 0, 0), limits, owner, done.at)
    headers = write_headers(done.positions, replayed=done.replayed)
    headers.append((b"location", f"/v1/accounts/{account}".encode()))
    return json_answer(201, view, headers)


def _check_proof(call: Call, tax_id: str | None) -> None:
    """A tax id in a body is a claim: the token proves it, or an operator vouches for it. Who has proven none opens an
    account under none, so nothing of it ever appears under a person; and gets the first answer again once it is proven.

    Raises:
        ProblemError: it is not proven, somebody else's, or missing.
    """
    operates = call.actor == OPERATOR
    if tax_id is None:
        if operates:
            raise malformed("owner.tax_id", "The tax id is missing: an operator vouches for one")
        if not call.services.unproven.opens:
            raise ProblemError(UNPROVEN, "Nobody opens an account here under no CPF or CNPJ", field="owner.tax_id")
    elif not operates and not call.is_own(tax_id, "ledger:write", call.services.ledger_key):
        if call.is_proven():
            raise ProblemError(FORBIDDEN, "The token speaks for another CPF or CNPJ", field="owner.tax_id")
        raise ProblemError(UNPROVEN, "Have the CPF or CNPJ proven, or leave it out", field="owner.tax_id")


def _filled(columns: tuple[int, int, int, int], limits: tuple[int, ...]) -> tuple[int, int, int, int]:
    """What was left out, as `limits` have it: per transfer, daily, night."""
    per_transfer, daily, night = (
        limit if column == _UNCHANGED else column for column, limit in zip(columns[:3], limits, strict=True)
    )
    return per_transfer, daily, night, columns[3]


def _limited(columns: tuple[int, int, int, int], unproven: Unproven) -> tuple[int, int, int, int]:
    """The limits of an account under no tax id.

    Raises:
        ProblemError: one of them would be too high.
    """
    if (refusal := _too_high(columns, unproven)) is not None:
        raise refusal
    return _filled(columns, unproven.limits)


def _too_high(columns: tuple[int, int, int, int], unproven: Unproven) -> ProblemError | None:
    """Which limit is more than an account under no tax id may have."""
    for name, column, limit in zip(("per_transfer", "daily", "night"), columns[:3], unproven.limits, strict=True):
        if column > limit:
            detail = f"Under no proven CPF or CNPJ this limit is at most {limit} centavos"
            return ProblemError(UNPROVEN, detail, field=f"limits.{name}", most=limit)
    return None


def opening_id(named: Id, account: int, ledger_key: bytes) -> Id:
    """The id of the event that opens `account`, for the id by which the client knows its request.

    Where a person's accounts lie is a secret of the ledger's, so a client cannot put the id into the slot. It keeps
    the age of the id given; its low half is derived.
    """
    low = ids.derive("opening", ids.text(named), key=ledger_key)[1]
    return ids.in_slot((named[0], low), account % SLOTS)


async def change_account(call: Call) -> Answer:
    """PATCH /v1/accounts/{id}."""
    call.authorize("ledger:write")
    request = await call.json(_CHANGE)
    account = read_path_account(call.path["id"])
    if (request.status is UNSET) == (request.limits is UNSET):
        raise malformed("status", "Change either `status` or `limits`")
    if request.status is not UNSET:
        event, row = await _status_row(call, account, request.status)
    else:
        event, row = await _limits_row(call, account, request.limits)
    try:
        done = await send(call, row, None, event, "account", "account")
    except ProblemError as error:
        if error.problem is UNKNOWN_ACCOUNT:
            error.status = 404
        raise
    body = await _change_answer(call, account, event, done)
    return Answer(200, body, write_headers(done.positions, replayed=done.replayed))


async def _change_answer(call: Call, account: int, event: Id, done: Done) -> bytes:
    """The account after the change. It goes on changing, so under an Idempotency-Key the first answer is kept."""
    if call.key() is None:
        return (await _shown_account(call, account)).body
    registry = call.services.registry
    if done.replayed and (known := await registry.answer(event, done.at)) is not None:
        return known
    body = (await _shown_account(call, account)).body
    return await registry.keep_answer(event, done.at, body, timedelta(seconds=call.services.answers_kept_s))


async def _status_row(call: Call, account: int, status: str) -> tuple[Id, bytes]:
    if status != "closed" and call.actor != OPERATOR:
        await read_account_state(call, account)  # an account that there is not is told as such
        raise ProblemError(FORBIDDEN, "Only an operator may freeze an account or open it again", scope=OPERATE)
    kind = {"closed": Kind.CLOSE, "frozen": Kind.FREEZE, "open": Kind.UNFREEZE}[status]
    event = call.event_id(_CHANGE_ROUTE, UNSET, account)
    return event, event_row(kind, event, call.actor, debit=account)


async def _limits_row(call: Call, account: int, limits: LimitsRequest | UnsetType) -> tuple[Id, bytes]:
    columns = per_transfer, daily, night, window = _limit_columns(limits, absent=_UNCHANGED, no_window=_UNCHANGED)
    if columns == (_UNCHANGED,) * 4:
        raise malformed("limits", "Name at least one limit")
    refusal = _too_high(columns, call.services.unproven)
    if refusal is not None and call.actor != OPERATOR:
        owner = await call.services.registry.owner(account)
        if owner is not None and owner.tax_id is None and owner.sub == call.identified().subject:
            raise refusal
    event = call.event_id(_CHANGE_ROUTE, UNSET, account)
    row = event_row(
        Kind.SET_LIMITS, event, call.actor, debit=account, amount=per_transfer,
        ref=(daily, night), total=window, span=call.services.limit_raise_delay_s * _NS, check=(window + 1) << 1,
    )  # fmt: skip
    return event, row


def _limit_columns(limits: LimitsRequest | UnsetType, *, absent: int, no_window: int) -> tuple[int, int, int, int]:
    """Per transfer, daily, night, window, as events carry them."""
    if limits is UNSET:
        return absent, absent, absent, no_window
    amounts = [
        _limit(limits.per_transfer, "limits.per_transfer", absent),
        _limit(limits.daily, "limits.daily", absent),
        _limit(limits.night, "limits.night", absent),
    ]
    window = no_window
    if limits.night_window is not UNSET:
        start = _minute(limits.night_window.from_, "limits.night_window.from")
        end = _minute(limits.night_window.to, "limits.night_window.to")
        if start == end:
            raise ProblemError(INVALID_LIMIT, "A night has a beginning and another end", field="limits.night_window")
        window = start << 16 | end
    return amounts[0], amounts[1], amounts[2], window


def _limit(given: int | UnsetType | None, field: str, absent: int) -> int:
    if given is UNSET:
        return absent
    if given is None:
        return NO_LIMIT
    if not 0 <= given < NO_LIMIT:
        raise ProblemError(INVALID_LIMIT, "A limit is from 0 to 9223372036854775806 centavos, or null", field=field)
    return given


def _minute(given: str, field: str) -> int:
    found = _TIME_OF_DAY.fullmatch(given)
    if found is None:
        raise ProblemError(INVALID_LIMIT, "A time of day is written HH:MM", field=field)
    return int(found[1]) * 60 + int(found[2])


# -- look at ----------------------------------------------------------------------------------------------------------


class State(msgspec.Struct, array_like=True):
    """ACCOUNT as a shard answered it, in the order of its columns."""

    id: int
    posted: int
    debits_pending: int
    per_transfer: int
    daily: int
    night: int
    next_per_transfer: int
    next_daily: int
    next_night: int
    next_per_transfer_at: int
    next_daily_at: int
    next_night_at: int
    next_window_at: int
    window: int
    next_window: int
    status: int
    code: int
    spare: int

    @property
    def balance(self) -> Balance:
        """What it holds."""
        return Balance(self.posted, self.debits_pending, self.posted - self.debits_pending)


async def read_account_state(call: Call, account: int) -> tuple[State, dict[int, int]]:
    """An account that the caller may see, as its shard has it now, and the positions that this reflects.

    Raises:
        ProblemError: unknown (404), somebody else's (403), or its shard does not answer.
    """
    one = np.array([account], np.uint64)
    try:
        read = await call.services.client.read(one, np.array([call.actor], np.uint64), call.deadline)
    except ShardUnavailable:
        raise ProblemError(UNAVAILABLE, "The account's shard does not answer") from None
    state = State(*read.states[0].item())
    if state.code == Code.FORBIDDEN:
        raise ProblemError(FORBIDDEN, "The account belongs to somebody else")
    if state.status == AccountStatus.UNKNOWN:
        raise ProblemError(UNKNOWN_ACCOUNT, "There is no such account", status=404)
    return state, read.positions


async def get_account(call: Call) -> Answer:
    """GET /v1/accounts/{id}."""
    call.authorize("ledger:read")
    await call.wait_for_positions()
    return await _shown_account(call, read_path_account(call.path["id"]))


async def _shown_account(call: Call, account: int) -> Answer:
    state, positions = await read_account_state(call, account)
    owner = await call.services.registry.owner(account)
    if owner is None:
        raise ProblemError(UNAVAILABLE, "The account's owner is not registered here")
    opened_at = owner.opened_at or await _opened_at(call, account)
    view = _account_view(account, AccountStatus(state.status), state.balance, _limits_view(state), owner, opened_at)
    return json_answer(200, view, _read_headers(positions))


async def _opened_at(call: Call, account: int) -> int:
    """When the ledger opened an account whose opening request ended before that could be written down."""
    await call.caught_up([call.partition_of(account)])
    known = await call.services.store.account(account)
    if known is None:
        raise ProblemError(NOT_CAUGHT_UP, "The query store does not have the account's opening")
    await call.services.registry.opened(account, known.opened_at)
    return known.opened_at


async def list_accounts(call: Call) -> Answer:
    """GET /v1/accounts: the caller's own; an operator may ask for another's by `sub`."""
    caller = call.authorize("ledger:read")
    query = call.query()
    await call.wait_for_positions()
    sub = text(query.get("sub", caller), "sub", SUB_MAX)
    if sub != caller and call.actor != OPERATOR:
        raise ProblemError(FORBIDDEN, "Only an operator may list somebody else's accounts")
    limit = read_limit(query, _PAGE, _PAGE_MAX)
    cursor = query.get("cursor", "0")
    if not (cursor.isascii() and cursor.isdigit() and len(cursor) <= 19 and int(cursor) < 2**63):
        raise malformed("cursor", "This is not a cursor of this list")
    owners, last = page_of(await call.services.registry.accounts(sub, after=int(cursor), limit=limit + 1), limit)
    accounts = np.array([owner.account for owner in owners], np.uint64)
    items: list[AccountItem] = []
    if owners:
        try:
            read = await call.services.client.read(accounts, np.zeros(len(accounts), np.uint64), call.deadline)
        except ShardUnavailable:
            raise ProblemError(UNAVAILABLE, "A shard does not answer") from None
        states = [State(*row) for row in read.states.tolist()]
        # Registered, but its opening was never finished: not an account yet.
        items = [_item(state) for state in states if state.status != AccountStatus.UNKNOWN]
    return json_answer(200, AccountPage(items, None if last is None else str(last.account)))


async def get_balance(call: Call) -> Answer:
    """GET /v1/accounts/{id}/balance: from the shard, in order with all writes. The hottest of the reads."""
    call.authorize("ledger:read")
    account = read_path_account(call.path["id"])
    call.positions()  # a shard's answer is never behind what was acknowledged; only the header's form is checked
    if (at := call.query().get("at")) is not None:
        return await _past_balance(call, account, at)
    state, positions = await read_account_state(call, account)
    posted, pending = state.posted, state.debits_pending
    body = (
        f'{{"account":"{account}","currency":"BRL","posted":{posted},"pending":{pending},'
        f'"available":{posted - pending}}}'
    )
    return Answer(200, body.encode(), _read_headers(positions))


async def _past_balance(call: Call, account: int, given: str) -> Answer:
    """The balance at a past instant: everything stamped until then is in the journal by now, so wait for its end."""
    at = read_instant(given, "at")
    is_ahead = at > time.time_ns()
    await read_account_state(call, account)
    newest = await call.caught_up([call.partition_of(account)])
    if is_ahead and at > max(newest.values()):
        raise malformed("at", "The instant lies in the future")
    balance = await call.services.store.balance_at(account, at)
    if balance is None:
        raise ProblemError(UNKNOWN_ACCOUNT, "The account was not open yet", status=404)
    return json_answer(
        200,
        BalanceAnswer(str(account), CURRENCY, balance.posted, balance.pending, balance.available, at=rfc3339(at)),
    )


async def list_entries(call: Call) -> Answer:
    """GET /v1/accounts/{id}/entries: newest first."""
    call.authorize("ledger:read")
    account = read_path_account(call.path["id"])
    query = call.query()
    limit = read_limit(query, _PAGE, _PAGE_MAX)
    since = read_instant(query["from"], "from") if "from" in query else None
    until = read_instant(query["to"], "to") if "to" in query else None
    if since is not None and until is not None and since > until:
        raise malformed("from", "`from` lies behind `to`")
    await read_account_state(call, account)
    await call.wait_for_positions()
    try:
        page = await call.services.store.entries(account, since, until, query.get("cursor"), limit)
    except ValueError:
        raise malformed("cursor", "This is not a cursor of this list") from None
    items = [_entry(entry) for entry in page.items]
    return json_answer(200, EntryPage(items, page.next_cursor))


# -- views ------------------------------------------------------------------------------------------------------------


def _read_headers(positions: dict[int, int]) -> list[Header]:
    return [JSON, position_header(positions)] if positions else [JSON]


def _entry(entry: Any) -> Entry:
    kind: Any = KIND_NAMES[entry.kind]
    return Entry(
        transfer=ids.text(entry.transfer),
        kind=kind,
        side="credit" if entry.amount > 0 else "debit",
        amount=abs(entry.amount),
        balance=entry.balance,
        at=rfc3339(entry.at),
    )


def _status_name(status: int) -> Any:
    return STATUS_NAMES[AccountStatus(status)]


def _item(state: State) -> AccountItem:
    return AccountItem(str(state.id), _status_name(state.status), CURRENCY, state.balance)


def _account_view(account: int, status: int, balance: Balance, limits: Limits, owner: Owner, opened_at: int) -> Account:
    return Account(
        id=str(account),
        status=_status_name(status),
        currency=CURRENCY,
        balance=balance,
        limits=limits,
        owner=OwnerView(owner.name, _masked(owner.tax_id), owner.sub),
        created_at=rfc3339(opened_at),
    )


def _masked(tax_id: str | None) -> str | None:
    """A person's number as banks print it; a company's is public."""
    return f"***.{tax_id[3:6]}.{tax_id[6:9]}-**" if tax_id is not None and len(tax_id) == 11 else tax_id


def _shown(limit: int) -> int | None:
    return None if limit == NO_LIMIT else limit


def _window_view(window: int) -> NightWindow:
    start, end = window >> 16, window & 0xFFFF
    return NightWindow(f"{start // 60:02d}:{start % 60:02d}", f"{end // 60:02d}:{end % 60:02d}")


def _limits_view(state: State) -> Limits:
    raises: list[Raise] = []
    if state.next_per_transfer >= 0:
        raises.append(Raise("per_transfer", rfc3339(state.next_per_transfer_at), _shown(state.next_per_transfer)))
    if state.next_daily >= 0:
        raises.append(Raise("daily", rfc3339(state.next_daily_at), _shown(state.next_daily)))
    if state.next_night >= 0:
        raises.append(Raise("night", rfc3339(state.next_night_at), _shown(state.next_night)))
    if state.next_window >= 0:
        raises.append(Raise("night_window", rfc3339(state.next_window_at), _window_view(state.next_window)))
    return Limits(
        _shown(state.per_transfer), _shown(state.daily), _shown(state.night), _window_view(state.window), raises
    )
