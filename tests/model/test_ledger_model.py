"""The kernel against the reference: two partitions, long random histories, restarts and replays in between.

Each step is drawn by hypothesis, so a failing history shrinks to few steps; what a step contains comes from a
generator seeded by the step, so that histories are long. The run is the same every time.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from actors import ledger
from storage.events import (
    AMOUNT_MAX,
    BALANCE,
    EVENT,
    FIRST_STATELESS,
    NO_LIMIT,
    RESULT,
    AccountStatus,
    Code,
    Flag,
    Kind,
    ResultFlag,
)
from tests.model.reference import Account, Event, Ledger

Rows = npt.NDArray[np.void]

SECOND = 10**9
HOUR = 3600 * SECOND
START = 1_790_000_000 * SECOND
ID_WINDOW, ID_SKEW, REFUND_WINDOW = 6 * HOUR, 60 * SECOND, 40 * HOUR
UTC_OFFSET_S = -3 * 3600
CAPACITY = ledger.Capacity(accounts=16, ids=700, holds=10, in_flight=8, refunds=8)
ACCOUNTS = [(n << 10) | n & 1 for n in range(1, 31)]  # every second one in each partition; more than there is room for
OWNERS = [0, 0, 0, 0, 0, 0, 0, 0, 5, 6]
AMOUNTS = [1, 2, 7, 50, 100, 100, 100, 250, 999, 5_000, 40_000]
ODD_AMOUNTS = [0, -1, -AMOUNT_MAX - 1, AMOUNT_MAX, AMOUNT_MAX // 2 + 1, 2**62]
LIMITS = [NO_LIMIT, NO_LIMIT, NO_LIMIT, 0, 100, 300, 1_000, 10_000]
WINDOWS = [1200 << 16 | 360, 1320 << 16 | 360, 60 << 16 | 300, 600 << 16 | 1380, 0 << 16 | 1440, 1080 << 16 | 540]
ODD_WINDOWS = [-5, 5 << 16 | 5, 1440 << 16 | 5, 5 << 16 | 1441]
STEPS_NS = [1, 5, SECOND, 90 * SECOND, 600 * SECOND, HOUR, 3 * HOUR, 9 * HOUR, 30 * HOUR]
WEIGHTED_KINDS = (
    [Kind.TRANSFER] * 12
    + [Kind.HOLD] * 5
    + [Kind.POST] * 5
    + [Kind.VOID] * 2
    + [Kind.REFUND] * 4
    + [Kind.DEPOSIT] * 4
    + [Kind.WITHDRAWAL] * 3
    + [Kind.OPEN] * 3
    + [Kind.SET_LIMITS, Kind.FREEZE, Kind.UNFREEZE, Kind.UNFREEZE, Kind.CLOSE]
)
NEVER_WRITTEN = {Code.UNSURE, Code.OVERLOADED}

reached: Counter[tuple[int, int]] = Counter()
"""(kind, code) of everything answered, over all histories."""
flagged: Counter[str] = Counter()


class Partition:
    """A kernel, its reference, its journal, and the dumps that were made of it."""

    def __init__(self, number: int) -> None:
        self.number = number
        windows = {"id_window_ns": ID_WINDOW, "id_skew_ns": ID_SKEW, "refund_window_ns": REFUND_WINDOW}
        self.book = ledger.new_book(number, 2, **windows, capacity=CAPACITY)
        self.model = Ledger(number, 2, ID_WINDOW, ID_SKEW, REFUND_WINDOW, CAPACITY)
        self.last = 0
        self.journal: list[tuple[Rows, Rows]] = []
        self.dumps: list[tuple[int, dict[str, npt.NDArray[Any]]]] = [(0, ledger.dump(self.book))]
        self.sent: list[Rows] = []  # events seen so far, for repeats
        self.holds: list[Event] = []
        self.paid: list[Event] = []
        self.flown: list[Rows] = []

    def apply(self, rows: Rows, now: int) -> Rows:
        """Apply to both, compare everything."""
        self.last = ledger.stamp(rows, now, self.last)
        before = ledger.digest(self.book) if len(rows) == 1 else None
        results, balances = np.ones(len(rows), RESULT), np.ones(len(rows), BALANCE)
        ledger.apply(self.book, rows, results, balances, UTC_OFFSET_S)
        events = [Event.of(row) for row in rows]
        answers = self.model.apply(events, UTC_OFFSET_S)
        for i, (event, answer, result, balance) in enumerate(zip(events, answers, results, balances, strict=True)):
            got = (int(result["code"]), int(result["at"]), int(result["detail"]), int(result["flags"]))
            assert got == (answer.code, answer.at, answer.detail, int(answer.replayed)), (event, answer, result)
            assert tuple(int(v) for v in balance.tolist()) == answer.balance, (event, answer, balance)
            reached[event.kind, answer.code] += 1
            if answer.code <= Code.IN_FLIGHT and not answer.replayed:
                if event.kind == Kind.HOLD:
                    self.holds.append(event)
                if event.kind == Kind.TRANSFER:
                    self.paid.append(event)
                if answer.code == Code.IN_FLIGHT:
                    self.flown.append(rows[i : i + 1].copy())
        self.keep(rows, results, before)
        self.prove()
        return results

    def keep(self, rows: Rows, results: Rows, before: bytes | None) -> None:
        journaled = (results["code"] < FIRST_STATELESS) & (results["flags"] != ResultFlag.REPLAYED)
        in_chain = False
        for i, row in enumerate(rows):
            linked = bool(row["flags"] & Flag.LINKED)
            journaled[i] |= linked or in_chain
            in_chain = linked
        if journaled.any():
            self.journal.append((rows[journaled], results[journaled]))
        elif before is not None:
            assert ledger.digest(self.book) == before, "what is not journaled changed the book"

    def prove(self) -> None:
        assert ledger.sums(self.book) == 0
        ledger.check(self.book)
        stats, model = ledger.stats(self.book), self.model
        assert stats[:2] == (len(model.accounts), model.transfers)
        assert stats[3:] == (len(model.holds), len(model.flights), model.transit.posted)
        ids = np.array([1, 2, *model.accounts, 999 << 10], np.uint64)
        read = ledger.read_accounts(self.book, ids, np.zeros_like(ids), self.last)
        for row, account in zip(read, (model.settlement, model.transit, *model.accounts.values()), strict=False):
            self.compare(row, account)
        assert read[-1]["status"] == AccountStatus.UNKNOWN
        due = ledger.due_holds(self.book, self.last, 100)
        assert {(int(r["ref_hi"]), int(r["ref_lo"])) for r in due} == model.due(self.last)
        legs = ledger.in_flight(self.book)
        expected = {(*id_, f.credit, f.amount, f.event.at) for id_, f in model.flights.items()}
        assert {tuple(int(leg[c]) for c in ("id_hi", "id_lo", "credit", "amount", "span")) for leg in legs} == expected

    def compare(self, row: Any, account: Account) -> None:
        assert (row["debits_posted"], row["credits_posted"]) == (account.debits, account.credits)
        assert (row["debits_pending"], row["status"]) == (account.pending, account.status)
        if account.limits:
            now = self.last
            for name in ("per_transfer", "daily", "night", "window"):
                limit, since = account.raises.get(name, (-1, 0))
                waits = limit >= 0 and since > now
                assert row[name] == account.limit(name, now)
                assert (row[f"next_{name}"], row[f"next_{name}_at"]) == ((limit, since) if waits else (-1, 0))

    def recover(self, dice: random.Random) -> None:
        """Start again from a dump and the journal after it; everything must come out as before."""
        offset, arrays = dice.choice(self.dumps)
        book = ledger.restore(arrays, CAPACITY)
        for rows, expected in self.journal[offset:]:
            results, balances = np.ones(len(rows), RESULT), np.ones(len(rows), BALANCE)
            ledger.apply(book, rows.copy(), results, balances, UTC_OFFSET_S)
            assert np.array_equal(results, expected)
        assert ledger.digest(book) == ledger.digest(self.book)
        ledger.check(book)
        self.book = book
        self.dumps.append((len(self.journal), ledger.dump(book)))


class Generator:
    """Makes events that are mostly sensible."""

    def __init__(self, dice: random.Random, partition: Partition, now: int) -> None:
        self.dice, self.partition, self.now = dice, partition, now

    def id(self) -> tuple[int, int]:
        dice = self.dice
        odd = dice.random()
        made, version = self.now // 10**6, 0x7000
        if odd < 0.02:
            made -= (ID_WINDOW + dice.choice([0, 10**6, HOUR])) // 10**6 + dice.choice([-1, 0, 1])
        elif odd < 0.04:
            made += (ID_SKEW + dice.choice([-(10**6), 0, 10**6, HOUR])) // 10**6
        elif odd < 0.15:
            version = 0x8000
        elif odd < 0.17:
            version = 0x4000
        hi = (made & 0xFFFFFFFFFFFF) << 16 | version | dice.getrandbits(12)
        return hi, (0 if odd < 0.005 else 1 << 63) | dice.getrandbits(62)

    def account(self, partition: int) -> int:
        if self.dice.random() < 0.03:
            return self.dice.choice([0, 1, 2, 1023, 2**63, 2**64 - 1, 77 << 10, 77 << 10 | 1])
        return self.dice.choice([a for a in ACCOUNTS[:18] if a & 1 == partition])

    def amount(self) -> int:
        return self.dice.choice(ODD_AMOUNTS if self.dice.random() < 0.05 else AMOUNTS)

    def event(self) -> Rows:
        dice, number = self.dice, self.partition.number
        if self.partition.sent and dice.random() < 0.08:
            return self.repeat()
        row = np.zeros(1, EVENT)
        kind = dice.choice(WEIGHTED_KINDS)
        row["kind"] = kind if dice.random() > 0.004 else dice.choice([0, 9, 18, 23, 65535])
        row["id_hi"], row["id_lo"] = self.id()
        row["actor"] = dice.choice(OWNERS)
        row["amount"] = self.amount()
        row["debit"] = self.account(number if dice.random() > 0.01 else 1 - number)
        row["credit"] = self.account(dice.choice([0, 1]))
        fill = {
            Kind.OPEN: self.fill_open,
            Kind.SET_LIMITS: self.fill_limits,
            Kind.DEPOSIT: self.fill_deposit,
            Kind.WITHDRAWAL: self.fill_withdrawal,
            Kind.HOLD: self.fill_hold,
            Kind.POST: self.fill_hold_end,
            Kind.VOID: self.fill_hold_end,
            Kind.REFUND: self.fill_refund,
            Kind.CLOSE: self.fill_close,
        }.get(kind)
        if fill is not None:
            fill(row)
        if dice.random() < 0.15:
            self.fill_edge(row)
        if dice.random() < 0.02:
            row["debit"] = row["credit"]
        return row

    def fill_edge(self, row: Rows) -> None:
        """Ask for exactly what there is, or for one centavo more."""
        payer = self.partition.model.accounts.get(int(row["debit"][0]))
        if payer is None or int(row["kind"][0]) not in {Kind.TRANSFER, Kind.HOLD, Kind.WITHDRAWAL, Kind.REFUND}:
            return
        left = [payer.available]
        if payer.limits:
            periods = self.partition.model.periods(payer, self.now)
            left += [payer.limit(period[0], self.now) - payer.sent.get(period, 0) for period in periods]
        row["amount"] = min(self.dice.choice(left) + self.dice.choice([0, 1]), AMOUNT_MAX)

    def fill_open(self, row: Rows) -> None:
        dice = self.dice
        row["debit"] = dice.choice(ACCOUNTS) if dice.random() > 0.03 else self.account(self.partition.number)
        row["credit"] = dice.choice([0, 5, 6, 7])
        row["amount"], row["ref_hi"], row["ref_lo"] = (dice.choice(LIMITS) for _ in range(3))
        row["total"] = dice.choice([0, *WINDOWS])
        if dice.random() < 0.05:
            row["total"] = dice.choice(ODD_WINDOWS)

    def fill_limits(self, row: Rows) -> None:
        dice = self.dice
        row["amount"] = dice.choice([-1, -1, *LIMITS])
        row["ref_hi"], row["ref_lo"] = (dice.choice([2**64 - 1, 2**64 - 1, *LIMITS]) for _ in range(2))
        row["total"] = dice.choice([-1, -1, *WINDOWS])
        row["span"] = dice.choice([0, HOUR, 24 * HOUR, 24 * HOUR])
        if dice.random() < 0.15:
            column, value = dice.choice([("amount", -2), ("total", 7 << 16 | 7), ("span", -1), ("span", AMOUNT_MAX)])
            row[column] = value

    def fill_deposit(self, row: Rows) -> None:
        row["debit"] = self.dice.choice([0, 0, 0, 0, 0, 1, 1, 1024])
        row["credit"] = self.account(self.partition.number)
        if int(row["amount"][0]) in AMOUNTS:
            row["amount"] *= self.dice.choice([1, 1, 20])

    def fill_withdrawal(self, row: Rows) -> None:
        row["credit"] = self.dice.choice([0, 0, 0, 0, 0, 1, 1, 1024])

    def fill_hold(self, row: Rows) -> None:
        row["span"] = self.dice.choice([SECOND, HOUR, HOUR, 20 * HOUR, 20 * HOUR])
        if self.dice.random() < 0.05:
            row["span"] = self.dice.choice([0, -5, AMOUNT_MAX])

    def fill_hold_end(self, row: Rows) -> None:
        holds = self.partition.holds[-8:]
        hold = self.dice.choice(holds) if holds else None
        row["ref_hi"], row["ref_lo"] = hold.id if hold and self.dice.random() > 0.03 else self.id()
        amount = hold.amount if hold else 1
        row["amount"] = self.dice.choice([0, amount, max(amount // 2, 1), amount + 1, -1])
        row["debit"] = hold.debit if hold and self.dice.random() < 0.6 else self.dice.choice([0, 0, 0, 2048])
        row["credit"] = hold.credit if hold and self.dice.random() < 0.3 else self.dice.choice([0, 0, 0, 0, 2048])

    def fill_close(self, row: Rows) -> None:
        empty = [id_ for id_, account in self.partition.model.accounts.items() if account.posted == 0]
        if empty and self.dice.random() < 0.7:
            row["debit"] = self.dice.choice(empty)

    def fill_refund(self, row: Rows) -> None:
        paid = [event for event in self.partition.paid if event.credit & 1 == self.partition.number][-6:]
        row["span"], row["total"] = self.now - HOUR, 100
        if paid and self.dice.random() > 0.1:
            original = self.dice.choice(paid)
            row["debit"], row["credit"] = original.credit, original.debit
            row["ref_hi"], row["ref_lo"] = original.id
            row["span"], row["total"] = original.at, original.amount
            row["amount"] = self.dice.choice([original.amount, max(original.amount // 2, 1), 1])
        if self.dice.random() < 0.03:
            row["total"] = self.dice.choice([0, -1])
        if self.dice.random() < 0.05:
            row["span"] = self.now - REFUND_WINDOW - HOUR

    def repeat(self) -> Rows:
        flown = self.partition.flown[-10:]
        row = self.dice.choice(flown if flown and self.dice.random() < 0.3 else self.partition.sent[-60:]).copy()
        if self.dice.random() < 0.35:
            column = self.dice.choice(["amount", "credit", "debit", "check", "kind", "ref_lo", "span", "total"])
            row[column] = int(row[column][0]) ^ 1 if column != "kind" else self.dice.choice(WEIGHTED_KINDS)
        if self.dice.random() < 0.2:
            row["actor"] = self.dice.choice(OWNERS)
        return row

    def batch(self) -> Rows:
        rows: list[Rows] = []
        for _ in range(self.dice.choice([1, 1, 3, 8, 20, 45])):
            chain = [self.event() for _ in range(self.dice.choice([1] * 15 + [2, 2, 3, 5]))]
            if len(chain) > 1:
                self.link(chain)
            rows += chain
            self.partition.sent += [row.copy() for row in chain]
        return np.concatenate(rows)

    def link(self, chain: list[Rows]) -> None:
        for row in chain:
            row["flags"] = Flag.LINKED
            if self.dice.random() < 0.75 and int(row["kind"][0]) in {Kind.TRANSFER, Kind.HOLD}:
                row["credit"] = self.account(self.partition.number)
        if self.dice.random() < 0.95:
            chain[-1]["flags"] = 0
        if self.dice.random() < 0.1:
            chain[-1] = chain[0].copy()
            chain[-1]["flags"] = 0


class World(RuleBasedStateMachine):
    """Two partitions and what is on its way between them."""

    def __init__(self) -> None:
        super().__init__()
        self.now = START
        self.parts = [Partition(0), Partition(1)]
        self.parts[1].paid = self.parts[0].paid  # the payee's side refunds what the payer's side paid
        self.credited: set[tuple[int, int]] = set()  # flights whose money has arrived

    @initialize(seed=st.integers(0, 2**32))
    def open_accounts(self, seed: int) -> None:
        dice = random.Random(seed)
        for part in self.parts:
            for account in [a for a in ACCOUNTS if a & 1 == part.number][:8]:
                generator = Generator(dice, part, self.now)
                row = np.zeros(1, EVENT)
                row["kind"], row["debit"], row["credit"] = Kind.OPEN, account, 5
                row["id_hi"], row["id_lo"] = self.now // 10**6 << 16 | 0x7000, 1 << 63 | dice.getrandbits(62)
                row["amount"] = dice.choice([NO_LIMIT, 2_000])
                row["ref_hi"], row["ref_lo"] = dice.choice([NO_LIMIT, 3_000]), dice.choice([NO_LIMIT, 1_500])
                part.apply(row, self.now)
                money = generator.event()
                money["kind"], money["debit"], money["credit"], money["amount"] = Kind.DEPOSIT, 0, account, 20_000
                part.apply(money, self.now)

    @rule(number=st.integers(0, 1), seed=st.integers(0, 2**32), step=st.sampled_from(STEPS_NS[:6]))
    def batch(self, number: int, seed: int, step: int) -> None:
        self.now += step
        part = self.parts[number]
        part.apply(Generator(random.Random(seed), part, self.now).batch(), self.now)

    @rule(step=st.sampled_from(STEPS_NS))
    def wait(self, step: int) -> None:
        self.now += step

    @rule(number=st.integers(0, 1), seed=st.integers(0, 2**32), answer=st.sampled_from(["both", "both", "leg", "late"]))
    def deliver(self, number: int, seed: int, answer: str) -> None:
        """Some legs reach the payee's shard; the payer's shard hears of it, or not yet, or twice."""
        dice = random.Random(seed)
        payer, payee = self.parts[number], self.parts[1 - number]
        legs = ledger.in_flight(payer.book)
        legs = legs[np.array([dice.random() < 0.8 for _ in legs], bool)]
        if not len(legs):
            return
        freeze = np.zeros(1, EVENT)
        freeze["id_hi"], freeze["id_lo"] = self.now // 10**6 << 16 | 0x7000, 1 << 63 | dice.getrandbits(62)
        freeze["debit"] = dice.choice(legs["credit"].tolist())
        if dice.random() < 0.4:
            freeze["kind"] = Kind.FREEZE
            payee.apply(freeze.copy(), self.now)
        results = payee.apply(legs, self.now)
        if freeze["kind"][0] == Kind.FREEZE:
            freeze["kind"], freeze["id_lo"] = Kind.UNFREEZE, freeze["id_lo"] ^ np.uint64(1)
            payee.apply(freeze, self.now)
        codes = [int(code) for code in results["code"]]
        self.credited |= {key(leg) for leg, code in zip(legs, codes, strict=True) if code == Code.OK}
        decided = [i for i, code in enumerate(codes) if code not in {Code.LEG_OUT_OF_ORDER, Code.BOOK_FULL}]
        if answer == "leg" or not decided:
            return
        outcomes = np.zeros(len(decided), EVENT)
        outcomes["id_hi"], outcomes["id_lo"] = legs["id_hi"][decided], legs["id_lo"][decided]
        outcomes["reason"] = [codes[i] for i in decided]
        outcomes["kind"] = np.where(outcomes["reason"] == Code.OK, Kind.SETTLE, Kind.REVERT)
        if answer == "late":
            outcomes = np.concatenate([outcomes, outcomes])
        payer.apply(outcomes, self.now)
        self.credited -= {key(row) for row in outcomes}

    @rule(number=st.integers(0, 1), hurried=st.booleans())
    def expire(self, number: int, hurried: bool) -> None:
        part = self.parts[number]
        rows = ledger.due_holds(part.book, self.now + (HOUR if hurried else 0), 100)
        if len(rows):
            part.apply(np.concatenate([rows, rows[:1]]), self.now)

    @rule(number=st.integers(0, 1), seed=st.integers(0, 2**32))
    def recover(self, number: int, seed: int) -> None:
        self.parts[number].recover(random.Random(seed))

    @invariant()
    def transit_is_what_is_in_flight(self) -> None:
        on_the_way = sum(
            flight.amount
            for part in self.parts
            for id_, flight in part.model.flights.items()
            if id_ not in self.credited
        )
        assert sum(ledger.stats(part.book).transit for part in self.parts) == on_the_way

    def teardown(self) -> None:
        for part in self.parts:
            part.recover(random.Random(0))
            flagged["rows"] += sum(len(rows) for rows, _ in part.journal)


def key(row: Any) -> tuple[int, int]:
    """The id of a row."""
    return int(row["id_hi"]), int(row["id_lo"])


def test_the_kernel_is_the_reference_over_long_histories_and_every_kind_and_code_is_reached() -> None:
    reached.clear()
    run_state_machine_as_test(
        World,
        settings=settings(
            max_examples=200,
            stateful_step_count=60,
            derandomize=True,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    kinds, codes = {kind for kind, _ in reached}, {code for _, code in reached}
    print(f"{sum(reached.values())} events, {flagged['rows']} journaled, {len(reached)} pairs of kind and code")
    assert {kind.name for kind in Kind} - {Kind(k).name for k in kinds if k in set(Kind)} == set()
    assert {code.name for code in Code if code not in NEVER_WRITTEN} - {Code(code).name for code in codes} == set()
