"""Each rule of the kernel and each refusal, one claim a test."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from actors import book as memory
from actors import ledger
from storage import ids
from storage.events import (
    ACCOUNT,
    AMOUNT_MAX,
    BALANCE,
    EVENT,
    NO_LIMIT,
    RESULT,
    AccountStatus,
    Code,
    Flag,
    Kind,
    ResultFlag,
)

Rows = npt.NDArray[np.void]

SECOND = 10**9
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR
MIDNIGHT = 20_700 * DAY  # UTC, which is local time here
NOON = MIDNIGHT + 12 * HOUR
A, B, C, REMOTE = 2 << 10, 4 << 10, 6 << 10, 2 << 10 | 1
OWNER, STRANGER = 77, 78
CAPACITY = ledger.Capacity(accounts=64, ids=1024, holds=16, in_flight=16, refunds=16, outbox=16)
NIGHT = 1200 << 16 | 360


class Desk:
    """A book of partition 0 of 2, with a clock and fresh ids, to which one speaks in short sentences."""

    def __init__(self, capacity: ledger.Capacity = CAPACITY, **windows: int) -> None:
        self.book = ledger.new_book(0, 2, capacity=capacity, **windows)  # type: ignore[arg-type]
        self.now = NOON
        self.last = 0
        self.made = 0

    def id(self, made: int | None = None, version: int = 7) -> tuple[int, int]:
        self.made += 1
        return ((self.now if made is None else made) // 10**6 << 16) | version << 12, 1 << 63 | self.made << 12

    def row(self, kind: Kind | int, **columns: Any) -> Rows:
        row = np.zeros(1, EVENT)
        columns = {"id": None, "ref": (0, 0), **columns}
        given = columns.pop("id")
        decides = columns.get("credit" if kind == Kind.DEPOSIT else "debit", 0)
        row["id_hi"], row["id_lo"] = given or ids.in_slot(self.id(), int(decides) % 1024)
        row["ref_hi"], row["ref_lo"] = columns.pop("ref")
        row["kind"] = kind
        for name, value in columns.items():
            row[name] = value
        return row

    def apply(self, *rows: Rows) -> tuple[Rows, Rows]:
        batch = np.concatenate(rows)
        self.last = ledger.stamp(batch, self.now, self.last)
        results, balances = np.ones(len(batch), RESULT), np.ones(len(batch), BALANCE)
        ledger.apply(self.book, batch, results, balances, 0)
        assert ledger.sums(self.book) == 0
        ledger.check(self.book)
        return results, balances

    def do(self, kind: Kind | int, **columns: Any) -> Any:
        return self.apply(self.row(kind, **columns))[0][0]

    def code(self, kind: Kind | int, **columns: Any) -> int:
        return int(self.do(kind, **columns)["code"])

    def open(self, account: int, money: int = 0, **limits: int) -> None:
        columns = {"amount": NO_LIMIT, "total": NIGHT, "credit": OWNER, **limits}
        daily, nightly = columns.pop("daily", NO_LIMIT), columns.pop("nightly", NO_LIMIT)
        assert self.code(Kind.OPEN, debit=account, ref=(daily, nightly), **columns) == Code.OK
        if money:
            assert self.code(Kind.DEPOSIT, credit=account, amount=money) == Code.OK

    def pay(self, amount: int, debit: int = A, credit: int = B, **columns: Any) -> int:
        return self.code(Kind.TRANSFER, debit=debit, credit=credit, amount=amount, **columns)

    def hold(self, amount: int, debit: int = A, credit: int = B, span: int = HOUR, **columns: Any) -> tuple[int, int]:
        id_ = self.id()
        row = {"debit": debit, "credit": credit, "amount": amount, "span": span, **columns}
        assert self.code(Kind.HOLD, id=id_, **row) == Code.OK
        return id_

    def fly(self, amount: int, debit: int = A, **columns: Any) -> tuple[int, int]:
        """A transfer on its way to the other partition: which it is among those to that one."""
        assert self.pay(amount, debit, REMOTE, **columns) == Code.IN_FLIGHT
        return 1, int(ledger.sent(self.book)[1])

    def leg(self, number: int, credit: int, amount: int = 50, confirmed: int = 0, **columns: Any) -> Any:
        """The other partition's payment of that number."""
        columns = {"debit": REMOTE, "credit": credit, "amount": amount, "span": self.now, **columns}
        return self.do(Kind.CREDIT_LEG, total=number, check=confirmed, **columns)

    def read(self, account: int, actor: int = 0) -> Any:
        return ledger.read_accounts(self.book, np.array([account], np.uint64), np.array([actor], np.uint64), self.now)[
            0
        ]

    def posted(self, account: int) -> int:
        row = self.read(account)
        return int(row["posted"])

    def available(self, account: int) -> int:
        return self.posted(account) - int(self.read(account)["debits_pending"])


@pytest.fixture
def desk() -> Desk:
    """A holds 1,000, B and C nothing."""
    desk = Desk()
    desk.open(A, 1_000)
    desk.open(B)
    desk.open(C)
    return desk


# Money.


def test_a_transfer_moves_money(desk: Desk) -> None:
    assert desk.pay(300) == Code.OK
    assert (desk.posted(A), desk.posted(B)) == (700, 300)


def test_a_transfer_reports_both_balances_after_it(desk: Desk) -> None:
    desk.hold(100)
    _, balances = desk.apply(desk.row(Kind.TRANSFER, debit=A, credit=B, amount=300))
    assert balances[0].tolist() == (700, 100, 300, 0)


def test_a_refusal_reports_no_balances(desk: Desk) -> None:
    _, balances = desk.apply(desk.row(Kind.TRANSFER, debit=A, credit=B, amount=3_000))
    assert balances[0].tolist() == (0, 0, 0, 0)


def test_nobody_spends_what_they_do_not_have(desk: Desk) -> None:
    assert desk.pay(1_001) == Code.INSUFFICIENT_FUNDS
    assert desk.posted(A) == 1_000


def test_two_payments_of_one_batch_cannot_both_spend_the_same_money(desk: Desk) -> None:
    rows = [desk.row(Kind.TRANSFER, debit=A, credit=B, amount=600) for _ in range(2)]
    assert desk.apply(*rows)[0]["code"].tolist() == [Code.OK, Code.INSUFFICIENT_FUNDS]


def test_what_is_on_hold_cannot_be_spent(desk: Desk) -> None:
    desk.hold(800)
    assert desk.pay(201) == Code.INSUFFICIENT_FUNDS
    assert desk.pay(200) == Code.OK


@pytest.mark.parametrize("kind", [Kind.TRANSFER, Kind.HOLD, Kind.DEPOSIT, Kind.WITHDRAWAL, Kind.REFUND])
@pytest.mark.parametrize("amount", [0, -1, -AMOUNT_MAX - 1])
def test_an_amount_is_positive(desk: Desk, kind: Kind, amount: int) -> None:
    sides = {Kind.DEPOSIT: {"credit": A}, Kind.WITHDRAWAL: {"debit": A}}.get(kind, {"debit": A, "credit": B})
    assert desk.code(kind, amount=amount, span=HOUR, total=5, **sides) == Code.INVALID_AMOUNT


def test_a_withdrawal_goes_to_settlement(desk: Desk) -> None:
    assert desk.code(Kind.WITHDRAWAL, debit=A, amount=400) == Code.OK
    assert (desk.posted(A), desk.posted(1)) == (600, -600)


def test_a_withdrawal_needs_the_money(desk: Desk) -> None:
    assert desk.code(Kind.WITHDRAWAL, debit=A, amount=1_001) == Code.INSUFFICIENT_FUNDS


@pytest.mark.parametrize("kind", [Kind.TRANSFER, Kind.HOLD, Kind.REFUND])
def test_nobody_pays_himself(desk: Desk, kind: Kind) -> None:
    assert desk.code(kind, debit=A, credit=A, amount=1, span=HOUR, total=5) == Code.SAME_ACCOUNT


@pytest.mark.parametrize("debit", [0, 1, 2, 1023, 998 << 10, 2**63, 2**64 - 1])
def test_the_payer_must_exist_and_be_a_customer(desk: Desk, debit: int) -> None:
    assert desk.pay(1, debit=debit) == Code.UNKNOWN_DEBIT_ACCOUNT


@pytest.mark.parametrize("credit", [0, 1, 2, 1023, 998 << 10, 2**63, 2**64 - 1])
def test_the_payee_must_exist_and_be_a_customer(desk: Desk, credit: int) -> None:
    assert desk.pay(1, credit=credit) == Code.UNKNOWN_CREDIT_ACCOUNT


def test_a_balance_is_not_credited_over_the_largest_number(desk: Desk) -> None:
    desk.code(Kind.DEPOSIT, credit=B, amount=AMOUNT_MAX - 1_000)
    assert desk.pay(1_000) == Code.OK
    desk.code(Kind.DEPOSIT, credit=A, amount=10)
    assert desk.pay(1) == Code.OVERFLOW


def test_money_in_flight_keeps_its_room_for_it_may_come_back(desk: Desk) -> None:
    desk.code(Kind.DEPOSIT, credit=A, amount=AMOUNT_MAX - 1_000)
    flight = desk.fly(500)
    desk.code(Kind.DEPOSIT, credit=B, amount=500)
    assert desk.pay(1, debit=B, credit=A) == Code.OVERFLOW
    assert desk.code(Kind.REVERT, ref=flight, reason=Code.OVERFLOW) == Code.OK
    assert desk.posted(A) == AMOUNT_MAX


def test_an_account_takes_and_gives_what_it_could_before_however_much_went_through_it(desk: Desk) -> None:
    for _ in range(5):
        assert desk.code(Kind.DEPOSIT, credit=B, amount=AMOUNT_MAX) == Code.OK
        assert desk.code(Kind.WITHDRAWAL, debit=B, amount=AMOUNT_MAX) == Code.OK
    assert desk.code(Kind.DEPOSIT, credit=C, amount=AMOUNT_MAX) == Code.OK


def test_settlement_is_never_full(desk: Desk) -> None:
    assert desk.code(Kind.DEPOSIT, credit=B, amount=AMOUNT_MAX) == Code.OK
    assert desk.code(Kind.DEPOSIT, credit=C, amount=AMOUNT_MAX) == Code.OK
    assert desk.code(Kind.WITHDRAWAL, debit=C, amount=AMOUNT_MAX) == Code.OK


def test_transit_is_never_full(desk: Desk) -> None:
    assert desk.code(Kind.DEPOSIT, credit=A, amount=AMOUNT_MAX - 1_000) == Code.OK
    for number in range(1, 4):
        assert desk.code(Kind.SETTLE, ref=desk.fly(AMOUNT_MAX)) == Code.OK
        assert desk.leg(number, A, AMOUNT_MAX)["code"] == Code.OK


# Accounts.


def test_an_account_opens_only_once(desk: Desk) -> None:
    assert desk.code(Kind.OPEN, debit=A) == Code.ACCOUNT_EXISTS


@pytest.mark.parametrize("account", [0, 1, 2, 1023, 2**63])
def test_a_reserved_id_cannot_be_opened(desk: Desk, account: int) -> None:
    assert desk.code(Kind.OPEN, debit=account) == Code.INVALID_EVENT


def test_an_operator_opens_for_an_owner(desk: Desk) -> None:
    desk.code(Kind.OPEN, debit=8 << 10, credit=STRANGER)
    assert desk.read(8 << 10, STRANGER)["code"] == Code.OK


def test_who_opens_owns(desk: Desk) -> None:
    desk.code(Kind.OPEN, debit=8 << 10, actor=STRANGER)
    assert desk.read(8 << 10, STRANGER)["code"] == Code.OK
    assert desk.read(8 << 10, OWNER)["code"] == Code.FORBIDDEN


@pytest.mark.parametrize(
    "columns",
    [
        {"amount": -1},
        {"ref": (2**63, 0)},
        {"ref": (0, 2**64 - 1)},
        {"total": -1},
        {"total": 5 << 16 | 5},
        {"total": 1440 << 16 | 5},
        {"total": 5 << 16 | 1441},
    ],
)
def test_limits_given_at_opening_must_make_sense(desk: Desk, columns: dict[str, Any]) -> None:
    assert desk.code(Kind.OPEN, debit=8 << 10, **columns) == Code.INVALID_LIMIT


def test_without_a_window_the_night_is_from_eight_to_six(desk: Desk) -> None:
    desk.code(Kind.OPEN, debit=8 << 10)
    assert desk.read(8 << 10)["window"] == 1200 << 16 | 360


def test_a_closed_account_neither_pays_nor_receives(desk: Desk) -> None:
    assert desk.code(Kind.CLOSE, debit=B) == Code.OK
    assert desk.read(B)["status"] == AccountStatus.CLOSED
    assert desk.pay(1) == Code.CREDIT_ACCOUNT_CLOSED
    assert desk.pay(1, debit=B, credit=A) == Code.DEBIT_ACCOUNT_CLOSED


@pytest.mark.parametrize("kind", [Kind.CLOSE, Kind.FREEZE, Kind.UNFREEZE, Kind.SET_LIMITS])
def test_a_closed_account_stays_as_it_is(desk: Desk, kind: Kind) -> None:
    desk.code(Kind.CLOSE, debit=B)
    assert desk.code(kind, debit=B) == Code.DEBIT_ACCOUNT_CLOSED


@pytest.mark.parametrize("kind", [Kind.CLOSE, Kind.FREEZE, Kind.UNFREEZE, Kind.SET_LIMITS])
def test_only_an_account_that_exists_changes(desk: Desk, kind: Kind) -> None:
    assert desk.code(kind, debit=998 << 10) == Code.UNKNOWN_DEBIT_ACCOUNT


def test_an_account_with_money_does_not_close(desk: Desk) -> None:
    assert desk.code(Kind.CLOSE, debit=A) == Code.ACCOUNT_NOT_EMPTY


def test_an_account_with_money_in_flight_does_not_close(desk: Desk) -> None:
    flight = desk.fly(1_000)
    assert desk.code(Kind.CLOSE, debit=A) == Code.ACCOUNT_NOT_EMPTY
    desk.code(Kind.SETTLE, ref=flight)
    assert desk.code(Kind.CLOSE, debit=A) == Code.OK


def test_a_frozen_account_neither_pays_nor_receives_nor_closes(desk: Desk) -> None:
    desk.code(Kind.FREEZE, debit=A)
    assert desk.read(A)["status"] == AccountStatus.FROZEN
    assert desk.pay(1) == Code.DEBIT_ACCOUNT_FROZEN
    assert desk.code(Kind.DEPOSIT, credit=A, amount=1) == Code.CREDIT_ACCOUNT_FROZEN
    assert desk.code(Kind.WITHDRAWAL, debit=A, amount=1) == Code.DEBIT_ACCOUNT_FROZEN
    assert desk.code(Kind.CLOSE, debit=A) == Code.DEBIT_ACCOUNT_FROZEN


def test_an_account_thaws(desk: Desk) -> None:
    desk.code(Kind.FREEZE, debit=A)
    assert desk.code(Kind.UNFREEZE, debit=A) == Code.OK
    assert desk.pay(1) == Code.OK


def test_a_hold_on_a_frozen_account_cannot_be_posted_but_voided(desk: Desk) -> None:
    hold = desk.hold(100)
    desk.code(Kind.FREEZE, debit=A)
    assert desk.code(Kind.POST, ref=hold) == Code.DEBIT_ACCOUNT_FROZEN
    assert desk.code(Kind.VOID, ref=hold) == Code.OK


# Who may.


@pytest.mark.parametrize("kind", [Kind.TRANSFER, Kind.HOLD, Kind.WITHDRAWAL, Kind.REFUND, Kind.CLOSE, Kind.SET_LIMITS])
def test_only_the_owner_or_an_operator_acts_on_an_account(desk: Desk, kind: Kind) -> None:
    credit = 0 if kind == Kind.WITHDRAWAL else B
    row = {"debit": A, "credit": credit, "amount": 5, "span": HOUR, "total": 5 if kind == Kind.REFUND else NIGHT}
    assert desk.code(kind, actor=STRANGER, **row) == Code.FORBIDDEN
    assert desk.code(kind, actor=OWNER, **row) != Code.FORBIDDEN
    assert desk.code(kind, actor=0, **row) != Code.FORBIDDEN


@pytest.mark.parametrize("kind", [Kind.POST, Kind.VOID])
@pytest.mark.parametrize("debit", [0, A])
def test_only_the_payer_ends_a_hold(desk: Desk, kind: Kind, debit: int) -> None:
    hold = desk.hold(100)
    assert desk.code(kind, ref=hold, debit=debit, actor=STRANGER) == Code.FORBIDDEN
    assert desk.code(kind, ref=hold, debit=debit, actor=OWNER) == Code.OK


def test_a_stranger_reads_nothing_of_an_account(desk: Desk) -> None:
    blank = np.zeros(1, ACCOUNT)
    blank["id"], blank["code"] = A, Code.FORBIDDEN
    assert desk.read(A, STRANGER) == blank[0]


def test_reading_an_unknown_account_says_so(desk: Desk) -> None:
    row = desk.read(998 << 10, OWNER)
    assert (row["code"], row["status"]) == (Code.UNKNOWN_DEBIT_ACCOUNT, AccountStatus.UNKNOWN)


def test_only_operators_read_settlement_and_transit(desk: Desk) -> None:
    assert [desk.read(account)["code"] for account in (1, 2)] == [Code.OK, Code.OK]
    assert [desk.read(account, OWNER)["code"] for account in (1, 2)] == [Code.FORBIDDEN, Code.FORBIDDEN]


def test_a_replay_by_a_stranger_learns_nothing(desk: Desk) -> None:
    id_ = desk.id()
    desk.pay(5, id=id_)
    assert desk.pay(5, id=id_, actor=STRANGER) == Code.FORBIDDEN


# Ids.


def test_a_repeat_gets_the_first_answer_and_moves_nothing(desk: Desk) -> None:
    row = desk.row(Kind.TRANSFER, debit=A, credit=B, amount=300)
    first = desk.apply(row.copy())[0][0]
    digest = ledger.digest(desk.book)
    desk.now += HOUR
    again = desk.apply(row)[0][0]
    told = int(first["at"]) // 1000 * 1000
    assert (again["code"], again["at"], again["flags"]) == (Code.OK, told, ResultFlag.REPLAYED)
    assert desk.posted(B) == 300
    assert ledger.digest(desk.book) == digest


def test_a_refusal_stands_even_when_the_reason_is_gone(desk: Desk) -> None:
    id_ = desk.id()
    assert desk.pay(2_000, id=id_) == Code.INSUFFICIENT_FUNDS
    desk.code(Kind.DEPOSIT, credit=A, amount=5_000)
    assert desk.pay(2_000, id=id_) == Code.INSUFFICIENT_FUNDS


def test_the_same_id_twice_in_one_batch_applies_once(desk: Desk) -> None:
    row = desk.row(Kind.TRANSFER, debit=A, credit=B, amount=300)
    results, _ = desk.apply(row, row)
    assert results["flags"].tolist() == [0, ResultFlag.REPLAYED]
    assert desk.posted(B) == 300


@pytest.mark.parametrize(
    "change", [{"debit": B, "credit": A}, {"credit": C}, {"amount": 6}, {"check": 1}, {"ref": (1, 0)}, {"ref": (0, 1)}]
)
def test_the_same_id_with_other_content_conflicts(desk: Desk, change: dict[str, Any]) -> None:
    id_ = desk.id()
    row: dict[str, Any] = {"debit": A, "credit": B, "amount": 5}
    desk.code(Kind.TRANSFER, id=id_, **row)
    assert desk.code(Kind.TRANSFER, id=id_, **{**row, **change}) == Code.ID_CONFLICT


def test_the_same_id_with_another_kind_conflicts(desk: Desk) -> None:
    id_ = desk.id()
    desk.pay(5, id=id_)
    assert desk.code(Kind.HOLD, id=id_, debit=A, credit=B, amount=5, span=HOUR) == Code.ID_CONFLICT


def test_the_same_hold_for_another_time_conflicts(desk: Desk) -> None:
    id_ = desk.hold(5)
    assert desk.code(Kind.HOLD, id=id_, debit=A, credit=B, amount=5, span=2 * HOUR) == Code.ID_CONFLICT


@pytest.mark.parametrize("digits", [1, 0x3FF, 0x400, 0x800, 0xFFF])
def test_an_id_ends_with_the_slot_of_the_account_that_decides(desk: Desk, digits: int) -> None:
    hi, lo = desk.id()
    wrong = (hi, lo | digits)
    assert desk.pay(5, id=wrong) == Code.INVALID_ID
    assert desk.code(Kind.DEPOSIT, id=wrong, credit=A, amount=5) == Code.INVALID_ID
    assert desk.code(Kind.OPEN, id=wrong, debit=8 << 10) == Code.INVALID_ID
    assert desk.code(Kind.VOID, id=wrong, ref=desk.hold(5)) == Code.INVALID_ID
    assert desk.pay(5, id=(hi, lo)) == Code.OK


def test_binding_an_id_moves_nothing_and_holds_it_for_its_content(desk: Desk) -> None:
    id_ = desk.id(version=8)
    bind = {"id": id_, "debit": 1024, "check": 17}
    assert desk.code(Kind.BIND, **bind) == Code.OK
    assert desk.do(Kind.BIND, **bind)["flags"] == ResultFlag.REPLAYED
    assert desk.code(Kind.BIND, **{**bind, "check": 18}) == Code.ID_CONFLICT
    assert desk.pay(5, id=id_) == Code.ID_CONFLICT
    assert desk.code(Kind.BIND, debit=REMOTE) == Code.INVALID_EVENT


@pytest.mark.parametrize("id_", [(0x4000, 1 << 63), (0x7000, 1), (0x7000, 3 << 62), (0, 0)])
def test_an_id_is_a_uuid_of_version_7_or_8(desk: Desk, id_: tuple[int, int]) -> None:
    assert desk.pay(5, id=(desk.now // 10**6 << 16 | id_[0], id_[1])) == Code.INVALID_ID


def test_an_id_older_than_the_window_is_refused_to_the_millisecond(desk: Desk) -> None:
    assert desk.pay(5, id=desk.id(desk.now - 48 * HOUR + 10**6)) == Code.OK
    assert desk.pay(5, id=desk.id(desk.now - 48 * HOUR - 10**6)) == Code.ID_EXPIRED


def test_an_id_made_ahead_of_time_is_refused_to_the_millisecond(desk: Desk) -> None:
    assert desk.pay(5, id=desk.id(desk.now + 5 * MINUTE)) == Code.OK
    assert desk.pay(5, id=desk.id(desk.now + 5 * MINUTE + 10**6)) == Code.ID_IN_FUTURE


def test_a_derived_id_has_no_age(desk: Desk) -> None:
    assert desk.pay(5, id=desk.id(0, version=8)) == Code.OK


@pytest.mark.parametrize(
    "delay", [0, HOUR, 12 * HOUR, 24 * HOUR, 47 * HOUR, 48 * HOUR, 49 * HOUR, 96 * HOUR, 300 * HOUR]
)
@pytest.mark.parametrize("start", [0, 7 * HOUR, 31 * HOUR])
def test_a_late_retry_never_pays_twice(desk: Desk, start: int, delay: int) -> None:
    desk.now += start
    id_ = desk.id()
    desk.pay(5, id=id_)
    desk.now += delay
    again = desk.do(Kind.TRANSFER, id=id_, debit=A, credit=B, amount=5)
    remembered = (again["code"], again["flags"]) == (Code.OK, ResultFlag.REPLAYED)
    assert remembered or (delay > 48 * HOUR and again["code"] == Code.ID_EXPIRED)
    assert desk.posted(B) == 5


def test_a_derived_id_is_remembered_for_the_window(desk: Desk) -> None:
    id_ = desk.id(0, version=8)
    desk.pay(5, id=id_)
    desk.now += 48 * HOUR
    desk.pay(5)
    assert desk.pay(5, id=id_) == Code.OK
    assert desk.posted(B) == 10


def test_a_derived_id_is_a_new_one_after_its_window(desk: Desk) -> None:
    id_ = desk.id(0, version=8)
    desk.pay(5, id=id_)
    desk.now += 48 * HOUR + 6 * MINUTE
    assert desk.pay(7, credit=C, id=id_) == Code.OK
    assert (desk.posted(B), desk.posted(C)) == (5, 7)
    assert desk.pay(5, id=id_) == Code.ID_CONFLICT  # the newest use is what it stands for


def test_ids_are_forgotten_in_the_end(desk: Desk) -> None:
    desk.now += 500 * HOUR
    for _ in range(5):
        desk.pay(5)
    assert ledger.stats(desk.book).ids == 5


def test_the_oldest_id_makes_room_when_the_memory_is_full_and_is_never_paid_again() -> None:
    desk = Desk(CAPACITY._replace(ids=8), id_skew_ns=SECOND)
    desk.open(A, 1_000)
    desk.open(B)
    paid = []
    for _ in range(30):
        desk.now += MINUTE
        paid.append(desk.id())
        assert desk.pay(1, id=paid[-1]) == Code.OK  # new money is never refused
    again = [desk.do(Kind.TRANSFER, id=id_, debit=A, credit=B, amount=1) for id_ in paid]
    assert [one["code"] for one in again] == [Code.ID_EXPIRED] * 22 + [Code.OK] * 8
    assert [one["flags"] for one in again[-8:]] == [ResultFlag.REPLAYED] * 8
    assert desk.posted(B) == 30
    shown = ledger.stats(desk.book)
    assert (shown.ids, shown.ids_max, shown.horizon_ns) == (8, 8, desk.now - 8 * MINUTE)


def test_an_id_that_could_be_among_the_forgotten_is_refused_to_the_millisecond() -> None:
    desk = Desk(CAPACITY._replace(ids=2), id_skew_ns=SECOND)
    desk.open(A, 1_000)
    desk.open(B)
    for _ in range(4):
        desk.now += MINUTE
        desk.pay(1)
    horizon = ledger.stats(desk.book).horizon_ns
    assert desk.pay(1, id=desk.id(horizon + SECOND)) == Code.ID_EXPIRED
    assert desk.pay(1, id=desk.id(horizon + SECOND + 10**6)) == Code.OK


@pytest.mark.parametrize("kind", [0, 9, 18, 23, 65535])
def test_an_unknown_kind_is_refused(desk: Desk, kind: int) -> None:
    assert desk.code(kind, debit=A, credit=B, amount=5) == Code.INVALID_EVENT


def test_an_event_of_another_partition_is_refused_without_trace(desk: Desk) -> None:
    digest = ledger.digest(desk.book)
    assert desk.pay(5, debit=REMOTE) == Code.INVALID_EVENT
    assert desk.code(Kind.DEPOSIT, credit=REMOTE, amount=5) == Code.INVALID_EVENT
    assert desk.code(Kind.OPEN, debit=REMOTE) == Code.INVALID_EVENT
    assert ledger.digest(desk.book) == digest


def test_deposit_and_withdrawal_have_settlement_on_their_other_side(desk: Desk) -> None:
    assert desk.code(Kind.DEPOSIT, debit=1, credit=A, amount=5) == Code.OK
    assert desk.code(Kind.WITHDRAWAL, debit=A, credit=1, amount=5) == Code.OK
    assert desk.code(Kind.DEPOSIT, debit=B, credit=A, amount=5) == Code.INVALID_EVENT
    assert desk.code(Kind.WITHDRAWAL, debit=A, credit=B, amount=5) == Code.INVALID_EVENT


# Limits.


def test_a_transfer_over_its_limit_is_refused_and_told_the_limit(desk: Desk) -> None:
    desk.open(8 << 10, 1_000, amount=100)
    result = desk.do(Kind.TRANSFER, debit=8 << 10, credit=B, amount=101)
    assert (result["code"], result["detail"]) == (Code.LIMIT_PER_TRANSFER, 100)
    assert desk.pay(100, debit=8 << 10) == Code.OK


def test_a_day_has_a_limit_and_the_refusal_says_what_is_left(desk: Desk) -> None:
    desk.open(8 << 10, 1_000, daily=100)
    assert desk.pay(70, debit=8 << 10) == Code.OK
    result = desk.do(Kind.TRANSFER, debit=8 << 10, credit=B, amount=31)
    assert (result["code"], result["detail"]) == (Code.LIMIT_DAILY, 30)
    assert desk.pay(30, debit=8 << 10) == Code.OK


def test_a_new_local_day_has_a_new_allowance(desk: Desk) -> None:
    desk.open(8 << 10, 1_000, daily=100)
    desk.now = MIDNIGHT + 24 * HOUR - MINUTE
    assert desk.pay(100, debit=8 << 10) == Code.OK
    assert desk.pay(1, debit=8 << 10) == Code.LIMIT_DAILY
    desk.now += MINUTE
    assert desk.pay(100, debit=8 << 10) == Code.OK


def test_the_day_is_the_local_one() -> None:
    desk = Desk()
    desk.open(A, 1_000, daily=100)
    desk.open(B)
    rows = [desk.row(Kind.TRANSFER, debit=A, credit=B, amount=100) for _ in range(3)]
    results, balances = np.zeros(3, RESULT), np.zeros(3, BALANCE)
    batch = np.concatenate(rows)
    batch["at"] = [MIDNIGHT + 26 * HOUR, MIDNIGHT + 27 * HOUR - 1, MIDNIGHT + 27 * HOUR]
    ledger.apply(desk.book, batch, results, balances, -3 * 3600)
    assert results["code"].tolist() == [Code.OK, Code.LIMIT_DAILY, Code.OK]


@pytest.mark.parametrize(
    ("hour", "bound"), [(19.99, False), (20, True), (23.99, True), (24, True), (29.99, True), (30, False)]
)
def test_the_night_limit_holds_from_eight_to_six(desk: Desk, hour: float, bound: bool) -> None:
    desk.open(8 << 10, 1_000, nightly=100)
    desk.now = MIDNIGHT + int(hour * 3600) * SECOND
    result = desk.do(Kind.TRANSFER, debit=8 << 10, credit=B, amount=101)
    assert (result["code"], result["detail"]) == ((Code.LIMIT_NIGHT, 100) if bound else (Code.OK, 0))


def test_a_night_over_midnight_is_one_night(desk: Desk) -> None:
    desk.open(8 << 10, 1_000, nightly=100)
    desk.now = MIDNIGHT + 23 * HOUR
    assert desk.pay(60, debit=8 << 10) == Code.OK
    desk.now += 3 * HOUR
    result = desk.do(Kind.TRANSFER, debit=8 << 10, credit=B, amount=60)
    assert (result["code"], result["detail"]) == (Code.LIMIT_NIGHT, 40)
    desk.now += 20 * HOUR
    assert desk.pay(60, debit=8 << 10) == Code.OK


def test_widening_the_night_gives_no_second_allowance_in_it(desk: Desk) -> None:
    desk.open(8 << 10, 1_000, nightly=100, total=60 << 16 | 360)
    desk.now = MIDNIGHT + 26 * HOUR
    assert desk.pay(100, debit=8 << 10) == Code.OK
    assert desk.code(Kind.SET_LIMITS, debit=8 << 10, amount=-1, ref=(2**64 - 1, 2**64 - 1), total=NIGHT) == Code.OK
    assert desk.pay(1, debit=8 << 10) == Code.LIMIT_NIGHT


def test_a_hold_counts_for_the_limits(desk: Desk) -> None:
    desk.open(8 << 10, 1_000, daily=100)
    desk.hold(100, debit=8 << 10)
    assert desk.pay(1, debit=8 << 10) == Code.LIMIT_DAILY


@pytest.mark.parametrize("end", ["void", "expire", "post"])
def test_what_a_hold_gives_back_is_not_counted(desk: Desk, end: str) -> None:
    desk.open(8 << 10, 1_000, daily=100, nightly=100)
    desk.now = MIDNIGHT + 21 * HOUR
    hold = desk.hold(100, debit=8 << 10, span=MINUTE)
    if end == "void":
        assert desk.code(Kind.VOID, ref=hold) == Code.OK
    elif end == "post":
        assert desk.code(Kind.POST, ref=hold, amount=1) == Code.OK
    else:
        desk.now += MINUTE
        desk.apply(ledger.due_holds(desk.book, desk.now, 9))
    left = 99 if end == "post" else 100
    assert desk.do(Kind.TRANSFER, debit=8 << 10, credit=B, amount=left + 1)["detail"] == left
    assert desk.pay(left, debit=8 << 10) == Code.OK


def test_a_hold_of_yesterday_gives_nothing_back_to_today(desk: Desk) -> None:
    desk.open(8 << 10, 1_000, daily=100)
    hold = desk.hold(100, debit=8 << 10, span=2 * DAY)
    desk.now += DAY
    desk.pay(60, debit=8 << 10)
    desk.code(Kind.VOID, ref=hold)
    assert desk.do(Kind.TRANSFER, debit=8 << 10, credit=B, amount=41)["detail"] == 40


def test_withdrawals_and_refunds_are_not_limited(desk: Desk) -> None:
    desk.open(8 << 10, 1_000, amount=0, daily=0, nightly=0)
    assert desk.code(Kind.WITHDRAWAL, debit=8 << 10, amount=10) == Code.OK
    assert desk.code(Kind.REFUND, debit=8 << 10, credit=B, amount=10, total=10, span=desk.now, ref=(7, 7)) == Code.OK


LIMIT_COLUMNS: list[tuple[str, Callable[[int], dict[str, Any]]]] = [
    ("per_transfer", lambda v: {"amount": v, "ref": (2**64 - 1, 2**64 - 1), "total": -1}),
    ("daily", lambda v: {"amount": -1, "ref": (v, 2**64 - 1), "total": -1}),
    ("night", lambda v: {"amount": -1, "ref": (2**64 - 1, v), "total": -1}),
]


@pytest.mark.parametrize(("name", "columns"), LIMIT_COLUMNS)
def test_a_raise_waits_and_a_cut_does_not(desk: Desk, name: str, columns: Callable[[int], dict[str, Any]]) -> None:
    desk.open(8 << 10, 0, amount=100, daily=100, nightly=100)
    assert desk.code(Kind.SET_LIMITS, debit=8 << 10, span=DAY, **columns(500)) == Code.OK
    row = desk.read(8 << 10)
    assert (row[name], row[f"next_{name}"], row[f"next_{name}_at"]) == (100, 500, desk.last + DAY)
    desk.now = desk.last + DAY
    row = desk.read(8 << 10)
    assert (row[name], row[f"next_{name}"], row[f"next_{name}_at"]) == (500, -1, 0)
    desk.code(Kind.SET_LIMITS, debit=8 << 10, span=DAY, **columns(50))
    assert desk.read(8 << 10)[name] == 50


@pytest.mark.parametrize(("name", "columns"), LIMIT_COLUMNS)
def test_a_cut_cancels_a_raise_that_waits(desk: Desk, name: str, columns: Callable[[int], dict[str, Any]]) -> None:
    desk.open(8 << 10, 0, amount=100, daily=100, nightly=100)
    desk.code(Kind.SET_LIMITS, debit=8 << 10, span=DAY, **columns(500))
    desk.code(Kind.SET_LIMITS, debit=8 << 10, span=DAY, **columns(90))
    desk.now += 2 * DAY
    assert desk.read(8 << 10)[name] == 90


@pytest.mark.parametrize(("name", "columns"), LIMIT_COLUMNS)
def test_a_raise_binds_from_its_moment_on(desk: Desk, name: str, columns: Callable[[int], dict[str, Any]]) -> None:
    desk.open(8 << 10, 5_000, amount=100, daily=100, nightly=100, total=1 << 16 | 1439)
    for _, each in LIMIT_COLUMNS:
        desk.code(Kind.SET_LIMITS, debit=8 << 10, span=DAY if each is columns else 0, **each(500))
    desk.now = desk.last + DAY - 100
    code = {"per_transfer": Code.LIMIT_PER_TRANSFER, "daily": Code.LIMIT_DAILY, "night": Code.LIMIT_NIGHT}[name]
    assert desk.pay(101, debit=8 << 10) == code
    desk.now += 100
    assert desk.pay(101, debit=8 << 10) == Code.OK


def test_a_wider_night_holds_at_once_and_a_narrower_one_waits(desk: Desk) -> None:
    keep = {"amount": -1, "ref": (2**64 - 1, 2**64 - 1)}
    wide, narrow = 1080 << 16 | 480, 1320 << 16 | 360
    desk.code(Kind.SET_LIMITS, debit=A, span=DAY, total=wide, **keep)
    assert desk.read(A)["window"] == wide
    desk.code(Kind.SET_LIMITS, debit=A, span=DAY, total=narrow, **keep)
    row = desk.read(A)
    assert (row["window"], row["next_window"], row["next_window_at"]) == (wide, narrow, desk.last + DAY)
    desk.now = desk.last + DAY
    assert (desk.read(A)["window"], desk.read(A)["next_window"]) == (narrow, -1)


@pytest.mark.parametrize(
    "columns",
    [{"amount": -2}, {"ref": (2**63, 0)}, {"total": -2}, {"total": 7 << 16 | 7}, {"span": -1}, {"span": AMOUNT_MAX}],
)
def test_a_limit_must_make_sense(desk: Desk, columns: dict[str, Any]) -> None:
    assert desk.code(Kind.SET_LIMITS, debit=A, **{"total": NIGHT, **columns}) == Code.INVALID_LIMIT


# Holds.


def test_a_hold_takes_from_the_available_not_the_posted(desk: Desk) -> None:
    desk.hold(400)
    assert (desk.posted(A), desk.available(A), desk.posted(B)) == (1_000, 600, 0)


def test_a_post_of_nothing_said_posts_the_whole_hold(desk: Desk) -> None:
    hold = desk.hold(400)
    result = desk.do(Kind.POST, ref=hold)
    assert (result["code"], result["detail"]) == (Code.OK, 400)
    assert (desk.available(A), desk.posted(B)) == (600, 400)


def test_a_partial_post_releases_the_rest(desk: Desk) -> None:
    hold = desk.hold(400)
    assert desk.do(Kind.POST, ref=hold, amount=150)["detail"] == 150
    assert (desk.available(A), desk.posted(B)) == (850, 150)


def test_a_hold_is_posted_once(desk: Desk) -> None:
    hold = desk.hold(400)
    desk.code(Kind.POST, ref=hold, amount=100)
    assert desk.code(Kind.POST, ref=hold, amount=100) == Code.NOT_HELD
    assert desk.code(Kind.VOID, ref=hold) == Code.NOT_HELD


def test_no_more_than_the_hold_is_posted(desk: Desk) -> None:
    result = desk.do(Kind.POST, ref=desk.hold(400), amount=401)
    assert (result["code"], result["detail"]) == (Code.EXCEEDS_HOLD, 400)


def test_a_negative_post_is_refused(desk: Desk) -> None:
    assert desk.code(Kind.POST, ref=desk.hold(400), amount=-1) == Code.INVALID_AMOUNT


@pytest.mark.parametrize("columns", [{"debit": B}, {"credit": C}])
def test_a_post_that_names_other_parties_finds_no_hold(desk: Desk, columns: dict[str, Any]) -> None:
    assert desk.code(Kind.POST, ref=desk.hold(400), **columns) == Code.NOT_HELD


def test_a_void_gives_the_money_back(desk: Desk) -> None:
    assert desk.do(Kind.VOID, ref=desk.hold(400))["detail"] == 400
    assert desk.available(A) == 1_000


@pytest.mark.parametrize("kind", [Kind.POST, Kind.VOID])
def test_a_hold_that_is_due_cannot_be_ended_by_its_owner(desk: Desk, kind: Kind) -> None:
    hold = desk.hold(400)
    desk.now = desk.last + HOUR
    assert desk.code(kind, ref=hold) == Code.HOLD_EXPIRED


def test_due_holds_expire(desk: Desk) -> None:
    desk.hold(400)
    desk.now = desk.last + HOUR
    rows = ledger.due_holds(desk.book, desk.now, 9)
    assert (rows["debit"][0], rows["credit"][0], rows["amount"][0]) == (A, B, 400)
    assert desk.apply(rows)[0]["code"].tolist() == [Code.OK]
    assert desk.available(A) == 1_000
    assert len(ledger.due_holds(desk.book, desk.now, 9)) == 0


def test_a_hold_does_not_expire_early(desk: Desk) -> None:
    hold = desk.hold(400)
    assert len(ledger.due_holds(desk.book, desk.last + HOUR - 1, 9)) == 0
    assert desk.code(Kind.EXPIRE, ref=hold) == Code.INVALID_EVENT


def test_expiring_a_finished_hold_does_nothing(desk: Desk) -> None:
    hold = desk.hold(400)
    desk.code(Kind.POST, ref=hold)
    assert desk.code(Kind.EXPIRE, ref=hold) == Code.NOT_HELD


def test_due_holds_come_up_to_the_limit_whatever_their_order() -> None:
    desk = Desk(CAPACITY._replace(holds=512))
    desk.open(A, 10**6)
    desk.open(B)
    rng = np.random.default_rng(3)
    spans = (rng.permutation(300) + 1) * MINUTE
    held = [desk.row(Kind.HOLD, debit=A, credit=B, amount=1, span=int(span)) for span in spans]
    desk.apply(*held)
    first = desk.last - len(held) + 1
    done = [desk.row(Kind.VOID, ref=(row["id_hi"][0], row["id_lo"][0])) for row in held[::3]]
    desk.apply(*done)
    at = desk.last + 100 * MINUTE
    left = [int(row["id_lo"][0]) for i, row in enumerate(held) if i % 3 and first + i + spans[i] <= at]
    assert sorted(ledger.due_holds(desk.book, at, 999)["ref_lo"].tolist()) == sorted(left)
    assert len(ledger.due_holds(desk.book, at, 7)) == 7


@pytest.mark.parametrize("span", [0, -1, AMOUNT_MAX])
def test_a_hold_needs_a_time_to_live(desk: Desk, span: int) -> None:
    assert desk.code(Kind.HOLD, debit=A, credit=B, amount=5, span=span) == Code.INVALID_EVENT


# Refunds.


def refund(desk: Desk, amount: int, **columns: Any) -> Any:
    row = {"debit": B, "credit": A, "total": 300, "span": NOON, "ref": (9, 9), **columns}
    return desk.do(Kind.REFUND, amount=amount, **row)


def test_refunds_sum_up_to_the_original_and_no_further(desk: Desk) -> None:
    desk.pay(300)
    desk.code(Kind.DEPOSIT, credit=B, amount=300)
    first, second = refund(desk, 200), refund(desk, 101)
    assert (first["code"], first["detail"]) == (Code.OK, 100)
    assert (second["code"], second["detail"]) == (Code.EXCEEDS_ORIGINAL, 100)
    assert refund(desk, 100)["code"] == Code.OK
    assert desk.posted(A) == 1_000


def test_a_refund_needs_the_money(desk: Desk) -> None:
    desk.pay(300)
    desk.code(Kind.WITHDRAWAL, debit=B, amount=1)
    assert refund(desk, 300)["code"] == Code.INSUFFICIENT_FUNDS


def test_refunds_end_after_ninety_days(desk: Desk) -> None:
    desk.pay(300)
    desk.now = NOON + 90 * DAY - SECOND
    assert refund(desk, 1)["code"] == Code.OK
    desk.now = NOON + 90 * DAY + SECOND
    assert refund(desk, 1)["code"] == Code.REFUND_EXPIRED


@pytest.mark.parametrize("day", [1, 30, 60, 89])
def test_refunded_sums_are_remembered_for_the_whole_window(day: int) -> None:
    desk = Desk()
    desk.open(A, 1_000)
    desk.open(B, 300)
    for start in range(6):  # wherever in a generation it begins
        desk.now += 29 * DAY
        original = {"ref": (9, start), "span": desk.now}
        assert refund(desk, 200, **original)["code"] == Code.OK
        desk.now += day * DAY
        refund(desk, 1, ref=(8, start), span=desk.now)  # makes room for a new generation when it is time
        assert refund(desk, 101, **original)["code"] == Code.EXCEEDS_ORIGINAL
        desk.code(Kind.DEPOSIT, credit=B, amount=201)


def test_a_refund_names_an_original_with_an_amount(desk: Desk) -> None:
    assert refund(desk, 5, total=0)["code"] == Code.INVALID_EVENT


# Across partitions.


def test_money_for_another_partition_waits_in_transit(desk: Desk) -> None:
    id_ = desk.id()
    assert desk.pay(300, credit=REMOTE, id=id_) == Code.IN_FLIGHT
    assert (desk.posted(A), desk.posted(2)) == (700, 300)
    leg = ledger.in_flight(desk.book)[0]
    assert (leg["id_hi"], leg["id_lo"]) == id_
    assert (leg["credit"], leg["amount"], leg["kind"], leg["total"]) == (REMOTE, 300, Kind.CREDIT_LEG, 1)
    assert leg["span"] == desk.last


def test_payments_to_a_partition_are_numbered_without_a_gap(desk: Desk) -> None:
    rows = [desk.row(Kind.TRANSFER, debit=A, credit=REMOTE, amount=n) for n in (10, 5_000, 20)]
    hold = desk.hold(100, credit=REMOTE)
    rows.append(desk.row(Kind.POST, ref=hold))
    batch = np.concatenate(rows)
    desk.last = ledger.stamp(batch, desk.now, desk.last)
    results, balances = np.zeros(4, RESULT), np.zeros(4, BALANCE)
    assert ledger.apply(desk.book, batch, results, balances, 0) == (4, 3, 0)
    places, legs = ledger.flights_of(desk.book, batch, results, 3)
    assert places.tolist() == [0, 2, 3]
    assert legs["total"].tolist() == [1, 2, 3]
    assert legs["amount"].tolist() == [10, 20, 100]
    assert legs["id_lo"].tolist() == batch["id_lo"][[0, 2, 3]].tolist()
    assert np.array_equal(ledger.in_flight(desk.book), legs)


def test_settling_ends_the_flight_and_answers_repeats_with_ok(desk: Desk) -> None:
    id_ = desk.id()
    flight = desk.fly(300, id=id_)
    assert desk.do(Kind.SETTLE, ref=flight)["detail"] == 300
    assert len(ledger.in_flight(desk.book)) == 0
    assert desk.pay(300, credit=REMOTE, id=id_) == Code.OK
    assert desk.posted(2) == 300  # the other partition's transit has the other half


def test_reverting_gives_the_money_back_and_answers_repeats_with_the_refusal(desk: Desk) -> None:
    desk.open(8 << 10, 1_000, daily=300)
    id_ = desk.id()
    flight = desk.fly(300, debit=8 << 10, id=id_)
    desk.do(Kind.REVERT, ref=flight, reason=Code.CREDIT_ACCOUNT_CLOSED)
    assert (desk.posted(8 << 10), desk.posted(2)) == (1_000, 0)
    assert desk.pay(300, debit=8 << 10, credit=REMOTE, id=id_) == Code.CREDIT_ACCOUNT_CLOSED
    assert desk.pay(300, debit=8 << 10) == Code.OK  # the day's allowance is whole again


def test_an_outcome_years_late_is_of_that_very_payment_not_of_its_namesake(desk: Desk) -> None:
    id_ = desk.id(version=8)
    flight = desk.fly(300, id=id_)
    desk.now += 1_000 * DAY
    assert desk.pay(5, id=id_) == Code.OK
    assert desk.code(Kind.REVERT, ref=flight, reason=Code.CREDIT_ACCOUNT_CLOSED) == Code.OK
    again = desk.do(Kind.TRANSFER, id=id_, debit=A, credit=B, amount=5)
    assert (again["code"], again["flags"]) == (Code.OK, ResultFlag.REPLAYED)
    assert (desk.posted(A), desk.posted(B)) == (995, 5)


@pytest.mark.parametrize("first", [Kind.SETTLE, Kind.REVERT])
@pytest.mark.parametrize("second", [Kind.SETTLE, Kind.REVERT])
def test_a_second_outcome_changes_nothing(desk: Desk, first: Kind, second: Kind) -> None:
    flight = desk.fly(300)
    desk.do(first, ref=flight, reason=Code.OVERFLOW)
    digest = ledger.digest(desk.book)
    assert desk.code(second, ref=flight, reason=Code.OVERFLOW) == Code.OK
    assert ledger.digest(desk.book) == digest


def test_a_frozen_payer_still_gets_money_back(desk: Desk) -> None:
    flight = desk.fly(300)
    desk.code(Kind.FREEZE, debit=A)
    assert desk.code(Kind.REVERT, ref=flight, reason=Code.OVERFLOW) == Code.OK
    assert desk.posted(A) == 1_000


def test_the_rest_of_a_hold_waits_for_the_payee(desk: Desk) -> None:
    hold = desk.hold(400, credit=REMOTE)
    assert desk.code(Kind.POST, ref=hold, amount=100) == Code.IN_FLIGHT
    assert (desk.posted(A), desk.available(A)) == (900, 600)
    assert desk.code(Kind.VOID, ref=hold) == Code.NOT_HELD
    desk.code(Kind.SETTLE, ref=(1, 1))
    assert desk.available(A) == 900


def test_a_reverted_post_restores_its_hold(desk: Desk) -> None:
    hold = desk.hold(400, credit=REMOTE)
    desk.code(Kind.POST, ref=hold, amount=100)
    desk.now = desk.last + 2 * HOUR
    assert len(ledger.due_holds(desk.book, desk.now, 9)) == 0
    desk.code(Kind.REVERT, ref=(1, 1), reason=Code.CREDIT_ACCOUNT_FROZEN)
    assert (desk.posted(A), desk.available(A)) == (1_000, 600)
    desk.apply(ledger.due_holds(desk.book, desk.now, 9))
    assert desk.available(A) == 1_000


def test_a_reverted_refund_can_be_made_again(desk: Desk) -> None:
    row = {"debit": A, "credit": REMOTE, "total": 300}
    assert refund(desk, 300, **row)["code"] == Code.IN_FLIGHT
    assert refund(desk, 1, **row)["code"] == Code.EXCEEDS_ORIGINAL
    desk.code(Kind.REVERT, ref=(1, 1), reason=Code.OVERFLOW)
    assert refund(desk, 300, **row)["code"] == Code.IN_FLIGHT


def test_refunds_of_an_original_are_not_those_of_its_namesake(desk: Desk) -> None:
    desk.code(Kind.DEPOSIT, credit=B, amount=600)
    assert refund(desk, 300, ref=(9, 9), span=NOON)["code"] == Code.OK
    assert refund(desk, 300, ref=(9, 9), span=NOON + HOUR)["code"] == Code.OK
    assert refund(desk, 1, ref=(9, 9), span=NOON)["code"] == Code.EXCEEDS_ORIGINAL


def test_a_leg_credits_the_payee_once(desk: Desk) -> None:
    assert desk.leg(1, B)["code"] == Code.OK
    digest = ledger.digest(desk.book)
    again = desk.leg(1, B)
    assert (again["code"], again["flags"]) == (Code.OK, ResultFlag.REPLAYED)
    assert ledger.digest(desk.book) == digest
    assert (desk.posted(B), desk.posted(2)) == (50, -50)


@pytest.mark.parametrize("number", [0, -1, 2, 3, AMOUNT_MAX])
def test_a_leg_out_of_order_changes_nothing(desk: Desk, number: int) -> None:
    digest = ledger.digest(desk.book)
    assert desk.leg(number, B)["code"] == Code.LEG_OUT_OF_ORDER
    assert ledger.digest(desk.book) == digest
    assert desk.leg(1, B)["code"] == Code.OK


def test_legs_of_one_id_are_as_many_payments_as_they_have_numbers(desk: Desk) -> None:
    id_ = desk.id()
    assert desk.leg(1, B, id=id_)["code"] == Code.OK
    assert desk.leg(2, B, id=id_)["code"] == Code.OK
    assert desk.pay(5, id=id_) == Code.OK  # nor has a client's id to do with it
    assert desk.posted(B) == 105


def test_a_leg_is_applied_however_late_it_comes_and_by_whatever_clock(desk: Desk) -> None:
    made = desk.now
    desk.now += 1_000 * DAY
    assert desk.leg(1, B, span=made)["code"] == Code.OK
    assert desk.leg(2, B, span=desk.now + DAY)["code"] == Code.OK
    assert desk.leg(1, B, span=made)["flags"] == ResultFlag.REPLAYED
    assert desk.posted(B) == 100


def test_a_leg_is_refused_as_a_transfer_would_be_and_stays_so(desk: Desk) -> None:
    desk.code(Kind.FREEZE, debit=B)
    desk.code(Kind.CLOSE, debit=C)
    desk.code(Kind.DEPOSIT, credit=A, amount=AMOUNT_MAX - 1_000)
    wanted = {B: Code.CREDIT_ACCOUNT_FROZEN, C: Code.CREDIT_ACCOUNT_CLOSED, A: Code.OVERFLOW}
    for number, (account, code) in enumerate({**wanted, 998 << 10: Code.UNKNOWN_CREDIT_ACCOUNT}.items(), 1):
        assert desk.leg(number, account)["code"] == code
        desk.code(Kind.UNFREEZE, debit=B)
        again = desk.leg(number, account)
        assert (again["code"], again["flags"]) == (code, ResultFlag.REPLAYED)


def test_a_refusal_is_forgotten_when_the_payer_has_it_in_its_journal(desk: Desk) -> None:
    desk.code(Kind.FREEZE, debit=B)
    for number in range(1, 4):
        assert desk.leg(number, B)["code"] == Code.CREDIT_ACCOUNT_FROZEN
    desk.leg(4, C, confirmed=2)
    assert int(desk.book.meta[memory.REFUSALS + memory.COUNT]) == 1
    assert desk.leg(3, B)["code"] == Code.CREDIT_ACCOUNT_FROZEN
    desk.leg(5, C, confirmed=99)  # no more than was heard
    assert int(desk.book.confirmed[1]) == 4


def test_without_room_for_a_refusal_a_leg_waits_until_some_are_confirmed() -> None:
    desk = Desk(CAPACITY._replace(in_flight=2))
    desk.open(A, 1_000)
    for number in (1, 2):
        assert desk.leg(number, B)["code"] == Code.UNKNOWN_CREDIT_ACCOUNT
    digest = ledger.digest(desk.book)
    assert desk.leg(3, B)["code"] == Code.BOOK_FULL
    assert ledger.digest(desk.book) == digest
    assert desk.leg(3, B, confirmed=1)["code"] == Code.UNKNOWN_CREDIT_ACCOUNT


def test_one_partition_that_is_away_does_not_take_all_room_in_flight(desk: Desk) -> None:
    desk = Desk(CAPACITY._replace(outbox=3))
    desk.open(A, 1_000)
    for _ in range(3):
        desk.fly(1)
    id_ = desk.id()
    assert desk.pay(1, credit=REMOTE, id=id_) == Code.OUTBOX_FULL
    desk.code(Kind.SETTLE, ref=(1, 1))
    assert desk.pay(1, credit=REMOTE, id=id_) == Code.IN_FLIGHT  # nothing was remembered of the refusal


def test_a_repeat_finds_its_answer_when_the_outbox_is_full(desk: Desk) -> None:
    desk = Desk(CAPACITY._replace(outbox=2))
    desk.open(A, 1_000)
    id_ = desk.id()
    desk.fly(1, id=id_)
    desk.fly(1)
    assert desk.pay(1, credit=REMOTE, id=id_) == Code.IN_FLIGHT


@pytest.mark.parametrize("credit", [998 << 10, REMOTE, C])
def test_a_hold_does_not_look_at_its_payee_wherever_it_lies(desk: Desk, credit: int) -> None:
    desk.code(Kind.CLOSE, debit=C)
    hold = desk.hold(100, credit=credit)
    wanted = {998 << 10: Code.UNKNOWN_CREDIT_ACCOUNT, REMOTE: Code.IN_FLIGHT, C: Code.CREDIT_ACCOUNT_CLOSED}
    assert desk.code(Kind.POST, ref=hold) == wanted[credit]


# Linked chains.


def link(*rows: Rows) -> tuple[Rows, ...]:
    for row in rows[:-1]:
        row["flags"] = Flag.LINKED
    return rows


def transfers(desk: Desk, *amounts: int) -> tuple[Rows, ...]:
    return link(*[desk.row(Kind.TRANSFER, debit=A, credit=B, amount=amount) for amount in amounts])


def test_a_chain_applies_whole(desk: Desk) -> None:
    results, _ = desk.apply(*transfers(desk, 100, 200))
    assert results["code"].tolist() == [Code.OK, Code.OK]
    assert desk.posted(B) == 300


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_chain_applies_not_at_all(desk: Desk, failing: int) -> None:
    amounts = [100, 100, 100]
    amounts[failing] = 5_000
    before = ledger.stats(desk.book).transfers
    results, balances = desk.apply(*transfers(desk, *amounts))
    codes = [Code.LINKED_FAILED] * 3
    codes[failing] = Code.INSUFFICIENT_FUNDS
    assert results["code"].tolist() == codes
    assert (desk.posted(A), desk.posted(B)) == (1_000, 0)
    assert not balances.tobytes().strip(b"\0")
    assert ledger.stats(desk.book).transfers == before


def test_a_failed_chain_leaves_no_hold_no_count_and_no_money_behind(desk: Desk) -> None:
    desk.open(8 << 10, 1_000, daily=100)
    rows = [
        desk.row(Kind.HOLD, debit=8 << 10, credit=B, amount=100, span=HOUR),
        desk.row(Kind.DEPOSIT, credit=8 << 10, amount=5),
        desk.row(Kind.WITHDRAWAL, debit=8 << 10, amount=5),
        desk.row(Kind.TRANSFER, debit=8 << 10, credit=B, amount=1),
    ]
    results, _ = desk.apply(*link(*rows))
    assert results["code"].tolist() == [Code.LINKED_FAILED] * 3 + [Code.LIMIT_DAILY]
    assert ledger.stats(desk.book).holds == 0
    assert (desk.available(8 << 10), desk.posted(1)) == (1_000, -2_000)
    assert desk.pay(100, debit=8 << 10) == Code.OK


def test_events_after_a_failed_chain_apply(desk: Desk) -> None:
    rows = transfers(desk, 100, 5_000)
    results, _ = desk.apply(*rows, desk.row(Kind.TRANSFER, debit=A, credit=B, amount=7))
    assert results["code"].tolist()[2] == Code.OK
    assert desk.posted(B) == 7


@pytest.mark.parametrize("amounts", [(100, 200), (100, 5_000), (5_000, 100)])
def test_a_repeated_chain_gets_its_first_answers(desk: Desk, amounts: tuple[int, ...]) -> None:
    rows = transfers(desk, *amounts)
    first, _ = desk.apply(*[row.copy() for row in rows])
    again, _ = desk.apply(*rows)
    assert again["code"].tolist() == first["code"].tolist()
    assert again["flags"].tolist() == [ResultFlag.REPLAYED] * 2


@pytest.mark.parametrize("alone", [0, 1])
def test_a_chain_of_which_a_row_was_done_alone_is_not_applied(desk: Desk, alone: int) -> None:
    rows = transfers(desk, 100, 200)
    single = rows[alone].copy()
    single["flags"] = 0
    desk.apply(single)
    digest = ledger.digest(desk.book)
    codes = [Code.CHAIN_REFUSED] * 2
    codes[alone] = Code.ID_CONFLICT
    assert desk.apply(*rows)[0]["code"].tolist() == codes
    assert ledger.digest(desk.book) == digest


def test_a_chain_with_further_rows_is_another_one_and_not_applied(desk: Desk) -> None:
    first = transfers(desk, 100, 200)
    desk.apply(*[row.copy() for row in first])
    third = desk.row(Kind.TRANSFER, debit=A, credit=B, amount=300)
    results, _ = desk.apply(*link(*[row.copy() for row in (*first, third)]))
    assert results["code"].tolist() == [Code.OK, Code.OK, Code.CHAIN_REFUSED]
    assert results["flags"].tolist() == [ResultFlag.REPLAYED, ResultFlag.REPLAYED, 0]
    assert desk.posted(B) == 300


@pytest.mark.parametrize(
    ("columns", "code"),
    [
        ({"id": (0x4000, 1 << 63)}, Code.INVALID_ID),
        ({"actor": STRANGER}, Code.FORBIDDEN),
        ({"credit": 0, "debit": REMOTE}, Code.INVALID_EVENT),
    ],
)
def test_a_chain_with_a_row_that_cannot_be_judged_leaves_no_trace(
    desk: Desk, columns: dict[str, Any], code: Code
) -> None:
    rows = link(
        desk.row(Kind.TRANSFER, debit=A, credit=B, amount=1),
        desk.row(Kind.TRANSFER, **{"debit": A, "credit": B, "amount": 1, **columns}),
        desk.row(Kind.TRANSFER, debit=A, credit=B, amount=1),
    )
    digest = ledger.digest(desk.book)
    assert desk.apply(*[row.copy() for row in rows])[0]["code"].tolist() == [
        Code.CHAIN_REFUSED, code, Code.CHAIN_REFUSED,
    ]  # fmt: skip
    assert ledger.digest(desk.book) == digest


def test_an_id_that_stands_twice_in_a_chain_is_a_conflict(desk: Desk) -> None:
    rows = transfers(desk, 1, 1, 1)
    rows[2]["id_hi"], rows[2]["id_lo"] = rows[0]["id_hi"], rows[0]["id_lo"]
    assert desk.apply(*rows)[0]["code"].tolist() == [Code.CHAIN_REFUSED, Code.CHAIN_REFUSED, Code.ID_CONFLICT]
    assert desk.apply(*transfers(desk, 1, 1))[0]["code"].tolist() == [Code.OK, Code.OK]


@pytest.mark.parametrize("version", [7, 8])
def test_a_chain_repeated_when_its_first_ids_are_forgotten_changes_nothing(version: int) -> None:
    desk = Desk(CAPACITY._replace(ids=4), id_skew_ns=SECOND)
    desk.open(A, 1_000)
    desk.open(B)
    desk.now += MINUTE
    rows = link(*[desk.row(Kind.TRANSFER, id=desk.id(version=version), debit=A, credit=B, amount=1) for _ in range(3)])
    assert desk.apply(*[row.copy() for row in rows])[0]["code"].tolist() == [Code.OK] * 3
    desk.now += MINUTE
    for _ in range(3):
        desk.pay(1)
    digest = ledger.digest(desk.book)
    results, _ = desk.apply(*[row.copy() for row in rows])
    forgotten = Code.ID_EXPIRED if version == 7 else Code.CHAIN_REFUSED
    assert results["code"].tolist() == [forgotten, forgotten, Code.OK]
    assert results["flags"][2] == ResultFlag.REPLAYED
    assert ledger.digest(desk.book) == digest


def test_a_chain_that_finds_no_room_leaves_no_trace() -> None:
    desk = Desk(CAPACITY._replace(holds=2))
    desk.open(A, 1_000)
    rows = link(*[desk.row(Kind.HOLD, debit=A, credit=B, amount=1, span=HOUR) for _ in range(3)])
    digest = ledger.digest(desk.book)
    codes = desk.apply(*[row.copy() for row in rows])[0]["code"].tolist()
    assert codes == [Code.CHAIN_REFUSED, Code.CHAIN_REFUSED, Code.BOOK_FULL]
    assert ledger.digest(desk.book) == digest


@pytest.mark.parametrize(
    ("kind", "columns"),
    [
        (Kind.TRANSFER, {"debit": A, "credit": REMOTE, "amount": 5}),
        (Kind.OPEN, {"debit": 8 << 10}),
        (Kind.REFUND, {"debit": A, "credit": B, "amount": 5, "total": 5}),
        (Kind.POST, {}),
        (Kind.EXPIRE, {}),
        (Kind.SETTLE, {}),
    ],
)
def test_only_local_payments_can_be_linked(desk: Desk, kind: Kind, columns: dict[str, Any]) -> None:
    rows = link(desk.row(Kind.TRANSFER, debit=A, credit=B, amount=1), desk.row(kind, **columns))
    assert desk.apply(*rows)[0]["code"].tolist() == [Code.LINKED_FAILED, Code.NOT_LINKABLE]
    assert desk.posted(B) == 0


def test_a_chain_that_does_not_end_fails(desk: Desk) -> None:
    rows = transfers(desk, 1, 2)
    rows[-1]["flags"] = Flag.LINKED
    assert desk.apply(*rows)[0]["code"].tolist() == [Code.LINKED_FAILED, Code.NOT_LINKABLE]


def test_a_chain_has_a_greatest_length() -> None:
    desk = Desk(CAPACITY._replace(ids=2**18))
    desk.open(A, 10**6)
    desk.open(B)
    rows = np.repeat(desk.row(Kind.TRANSFER, debit=A, credit=B, amount=1), memory.CHAIN_MAX + 1)
    rows["id_lo"] += np.arange(len(rows), dtype=np.uint64) << np.uint64(12)
    rows["flags"][:-1] = Flag.LINKED
    assert set(desk.apply(rows.copy())[0]["code"].tolist()) == {Code.INVALID_EVENT}
    rows["flags"][0] = 0
    assert set(desk.apply(rows)[0]["code"].tolist()) == {Code.OK}


# Room.


@pytest.mark.parametrize("table", ["accounts", "holds", "in_flight", "refunds"])
def test_a_full_table_refuses_without_trace(table: str) -> None:
    desk = Desk(CAPACITY._replace(**{table: 9}))
    actions: dict[str, Callable[[int], int]] = {
        "accounts": lambda i: desk.code(Kind.OPEN, debit=(20 + 2 * i) << 10),
        "holds": lambda _: desk.code(Kind.HOLD, debit=A, credit=B, amount=1, span=HOUR),
        "in_flight": lambda _: desk.pay(1, credit=REMOTE),
        "refunds": lambda i: desk.code(Kind.REFUND, debit=A, credit=B, amount=1, total=1, span=desk.now, ref=(1, i)),
    }
    desk.open(A, 1_000)
    desk.open(B)
    codes = []
    for i in range(12):
        digest = ledger.digest(desk.book)
        codes.append(actions[table](i))
        assert codes[-1] != Code.BOOK_FULL or ledger.digest(desk.book) == digest
    assert set(codes[:3]) <= {Code.OK, Code.IN_FLIGHT}
    assert codes[-1] == Code.BOOK_FULL


def test_freed_rows_are_used_again() -> None:
    desk = Desk(CAPACITY._replace(holds=4, in_flight=4))
    desk.open(A, 1_000)
    desk.open(B)
    for _ in range(20):
        desk.code(Kind.VOID, ref=desk.hold(1))
        desk.code(Kind.SETTLE, ref=desk.fly(1))
    assert ledger.stats(desk.book)[3:5] == (0, 0)


# Calling it.


def test_rows_that_cannot_be_written_are_applied_all_the_same(desk: Desk) -> None:
    row = desk.row(Kind.TRANSFER, debit=A, credit=B, amount=5)
    desk.last = ledger.stamp(row, desk.now, desk.last)
    results, balances = np.zeros(1, RESULT), np.zeros(1, BALANCE)
    ledger.apply(desk.book, np.frombuffer(row.tobytes(), EVENT), results, balances, 0)
    assert desk.posted(B) == 5


def test_arrays_of_other_types_or_lengths_are_turned_away(desk: Desk) -> None:
    row, results, balances = desk.row(Kind.CLOSE), np.zeros(1, RESULT), np.zeros(1, BALANCE)
    with pytest.raises(TypeError, match="EVENT"):
        ledger.apply(desk.book, results, results, balances, 0)
    with pytest.raises(ValueError, match="as long as"):
        ledger.apply(desk.book, row, results[:0], balances, 0)


def told(desk: Desk, *rows: Rows, codes: list[Code]) -> Rows:
    batch = np.concatenate(rows)
    desk.last = ledger.stamp(batch, desk.now, desk.last)
    results, balances = np.zeros(len(batch), RESULT), np.zeros(len(batch), BALANCE)
    ledger.apply_told(desk.book, batch, np.array(codes, np.uint16), results, balances, 0)
    ledger.check(desk.book)
    return results


def test_records_of_older_rules_are_carried_out_as_they_tell(desk: Desk) -> None:
    desk.open(8 << 10, 1_000, amount=10)
    over_limit = desk.row(Kind.TRANSFER, debit=8 << 10, credit=B, amount=100)
    fine = desk.row(Kind.TRANSFER, debit=A, credit=B, amount=5)
    results = told(desk, over_limit, fine, codes=[Code.OK, Code.LIMIT_DAILY])
    assert results["code"].tolist() == [Code.OK, Code.LIMIT_DAILY]
    assert (desk.posted(8 << 10), desk.posted(A), desk.posted(B)) == (900, 1_000, 100)
    again = desk.apply(over_limit, fine)[0]
    assert again["code"].tolist() == [Code.OK, Code.LIMIT_DAILY]
    assert again["flags"].tolist() == [ResultFlag.REPLAYED] * 2


def test_what_a_record_of_older_rules_tells_must_be_possible_at_all(desk: Desk) -> None:
    nobody = desk.row(Kind.TRANSFER, debit=998 << 10, credit=B, amount=100)
    assert told(desk, nobody, codes=[Code.OK])["code"].tolist() == [Code.UNKNOWN_DEBIT_ACCOUNT]


def test_every_kind_is_carried_out_as_told_as_it_is_when_judged() -> None:
    judged, retold = Desk(), Desk()
    retold.book.meta[:] = judged.book.meta  # the same secrets, so that books can be compared
    hold, gone = judged.id(), judged.id()
    script = [
        judged.row(Kind.OPEN, debit=A, credit=OWNER, amount=NO_LIMIT, ref=(NO_LIMIT, NO_LIMIT)),
        judged.row(Kind.OPEN, debit=B, credit=OWNER, amount=NO_LIMIT, ref=(NO_LIMIT, NO_LIMIT)),
        judged.row(Kind.OPEN, debit=C, credit=OWNER),
        judged.row(Kind.DEPOSIT, credit=A, amount=1_000),
        judged.row(Kind.WITHDRAWAL, debit=A, amount=10),
        judged.row(Kind.TRANSFER, debit=A, credit=B, amount=50),
        judged.row(Kind.TRANSFER, debit=A, credit=REMOTE, amount=20),
        judged.row(Kind.TRANSFER, debit=A, credit=REMOTE, amount=30),
        judged.row(Kind.HOLD, id=hold, debit=A, credit=REMOTE, amount=40, span=HOUR),
        judged.row(Kind.HOLD, id=gone, debit=A, credit=B, amount=40, span=HOUR),
        judged.row(Kind.POST, ref=hold, amount=15),
        judged.row(Kind.VOID, ref=gone),
        judged.row(Kind.SETTLE, ref=(1, 1)),
        judged.row(Kind.REVERT, ref=(1, 2), reason=Code.CREDIT_ACCOUNT_CLOSED),
        judged.row(Kind.SETTLE, ref=(1, 3)),
        judged.row(Kind.REFUND, debit=B, credit=A, amount=5, total=50, span=NOON, ref=(9, 9)),
        judged.row(Kind.CREDIT_LEG, debit=REMOTE, credit=B, amount=7, total=1, span=NOON),
        judged.row(Kind.CREDIT_LEG, debit=REMOTE, credit=998 << 10, amount=7, total=2, span=NOON),
        judged.row(Kind.SET_LIMITS, debit=A, amount=5_000, ref=(5_000, 5_000), total=NIGHT, span=HOUR),
        judged.row(Kind.FREEZE, debit=A),
        judged.row(Kind.UNFREEZE, debit=A),
        judged.row(Kind.CLOSE, debit=C),
        judged.row(Kind.BIND, debit=A, check=5),
        *link(*[judged.row(Kind.TRANSFER, debit=A, credit=B, amount=1) for _ in range(2)]),
        *link(*[judged.row(Kind.TRANSFER, debit=A, credit=B, amount=n) for n in (1, 4_000)]),
    ]
    results, _ = judged.apply(*script)
    retold.last = 0
    same = told(retold, *script, codes=results["code"].tolist())
    assert same["code"].tolist() == results["code"].tolist()
    assert set(same["code"].tolist()) >= {Code.OK, Code.IN_FLIGHT, Code.LINKED_FAILED, Code.INSUFFICIENT_FUNDS}
    assert ledger.digest(retold.book) == ledger.digest(judged.book)


def test_stamps_increase_when_the_clock_does_not() -> None:
    rows = np.zeros(3, EVENT)
    assert ledger.stamp(rows, 100, 0) == 102
    assert ledger.stamp(rows, 50, 102) == 105
    assert rows["at"].tolist() == [103, 104, 105]
    assert ledger.stamp(rows[:0], 500, 105) == 105


@pytest.mark.parametrize(("partition", "partitions"), [(0, 3), (2, 2), (-1, 2), (0, 2048), (0, 0)])
def test_the_number_of_partitions_is_a_power_of_two(partition: int, partitions: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        ledger.new_book(partition, partitions, capacity=CAPACITY)
