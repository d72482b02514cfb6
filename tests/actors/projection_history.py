"""Seeded histories for the projection's tests: two partitions, every event kind, legs that travel between them.

The kernel is driven directly and event by event, so that after each one the books themselves say what every account
holds: that timeline is the oracle for balances. What becomes of each transfer is followed in plain Python, by the
partition and the stamp of each: ids are used again and again.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from actors import ledger
from actors.recovery import Windows, empty_book
from storage import ids
from storage.events import (
    BALANCE,
    EVENT,
    FIRST_STATELESS,
    NO_LIMIT,
    RESULT,
    SLOTS,
    AccountStatus,
    Code,
    Flag,
    Kind,
    ResultFlag,
    partition_of,
)
from storage.ids import Id

PARTITIONS = 2
KEY = b"k" * 32
START_NS = 1_790_000_000_000_000_000
UTC_OFFSET_S = -10_800
SMALL = ledger.Capacity(accounts=2**10, ids=2**14, holds=2**10, in_flight=2**10, refunds=2**10, outbox=2**10)
FORGETFUL = Windows(id_window_ns=4_000_000, id_skew_ns=1_000_000)
"""Ids are forgotten while what they named is still on its way."""

Row = Any
Rows = np.ndarray[Any, Any]


@dataclass
class Recorded:
    """What goes into one journal record."""

    partition: int
    rows: Rows
    results: Rows
    notes: list[bytes | None]


@dataclass
class Known:
    """What a client should be told of one use of an id."""

    id: Id
    partition: int
    kind: Kind
    debit: int
    credit: int
    amount: int
    at: int
    status: str
    code: Code
    posted: int | None = None
    refunded: int = 0
    note: bytes | None = None
    hold: Known | None = None  # of a post
    original: Known | None = None  # of a refund
    heard: bool = True  # whether the payer's shard knows what the payee's decided


@dataclass
class History:
    """A history in the making. `step` gives the next records of both partitions."""

    seed: int
    windows: Windows = field(default_factory=Windows)
    accounts: list[int] = field(default_factory=list)
    known: dict[tuple[int, int], Known] = field(default_factory=dict)
    """By partition and stamp."""
    timeline: dict[int, list[tuple[int, int, int]]] = field(default_factory=dict)
    """Account → (at, posted, pending) after each event that changed them."""

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.books = [empty_book(p, PARTITIONS, self.windows, KEY, SMALL) for p in range(PARTITIONS)]
        self.clock = [START_NS, START_NS + 137]
        self.legs: list[Row] = []
        self.outcomes: list[list[Row]] = [[] for _ in range(PARTITIONS)]
        self.flights: dict[tuple[int, int, int], Known] = {}  # by partition, payee's partition and number
        self.confirmed: dict[int, int] = {}  # by partition: number of the newest end of a payment
        self.spent: dict[int, list[Id]] = {}  # by slot: ids of version 8
        self.chain: list[Row] = []
        self.overtaken = 0  # payments whose id was used again before their shard heard of them
        self.codes: set[Code] = set()
        self.status: dict[int, AccountStatus] = {}

    # -- making events --------------------------------------------------------------------------------------------

    def used_id(self, slot: int) -> Id:
        """One of version 8, that has mostly been used before."""
        spent = self.spent.setdefault(slot, [])
        if not spent or self.random.random() < 0.2:
            spent.append(ids.in_slot(ids.derive(str(self.random.random())), slot))
        return self.random.choice(spent[-2:])

    def new_id(self, partition: int, slot: int) -> Id:
        """One of version 7."""
        ms = self.clock[partition] // 1_000_000
        made = (ms << 16) | 0x7000 | self.random.getrandbits(12), (2 << 62) | self.random.getrandbits(62)
        return ids.in_slot(made, slot)

    def event(self, partition: int, kind: Kind, **columns: Any) -> Row:
        row = np.zeros(1, EVENT)
        row["kind"] = kind
        id_, ref = columns.pop("id", None), columns.pop("ref", (0, 0))
        for name, value in columns.items():
            row[name] = value
        if id_ is None:
            decides = int(row["credit"][0] if kind is Kind.DEPOSIT else row["debit"][0]) % SLOTS
            slot = ids.slot_of(ref) if kind in {Kind.POST, Kind.VOID} else decides
            again = kind is not Kind.OPEN and self.random.random() < (0.6 if self.windows == FORGETFUL else 0.2)
            id_ = self.used_id(slot) if again else self.new_id(partition, slot)
        row["id_hi"], row["id_lo"] = id_
        row["ref_hi"], row["ref_lo"] = ref
        return row

    def open(self, partition: int) -> Row:
        slots = 2 if self.windows == FORGETFUL else SLOTS // PARTITIONS  # few: several accounts' payments share ids
        account = (self.random.randrange(1, 2**30) << 10) | (self.random.randrange(slots) * 2 + partition)
        self.accounts.append(account)
        return self.event(
            partition, Kind.OPEN, debit=account, amount=NO_LIMIT, ref=(NO_LIMIT, NO_LIMIT), credit=account
        )

    def _own(self, partition: int) -> int:
        return self.random.choice([a for a in self.accounts if partition_of(a, PARTITIONS) == partition])

    def _refer(self, partition: int, kind: Kind) -> Known | None:
        found = [known for known in self.known.values() if known.kind is kind and known.partition == partition]
        held = [known for known in found if known.status == "held"]
        wanted = held if held and self.random.random() < 0.9 else found
        return self.random.choice(wanted[-30:]) if wanted else None

    def unit(self, partition: int) -> list[Row]:
        """One event, or one linked chain, that a client might send."""
        kinds = {
            Kind.TRANSFER: 24, Kind.DEPOSIT: 16, Kind.HOLD: 16, Kind.POST: 16, Kind.REFUND: 8, Kind.VOID: 3,
            Kind.WITHDRAWAL: 3, Kind.FREEZE: 1, Kind.UNFREEZE: 8, Kind.CLOSE: 1, Kind.OPEN: 1, Kind.SET_LIMITS: 2,
            Kind.BIND: 2,
        }  # fmt: skip
        if self.random.random() < 0.08:
            return self._chain(partition)
        (kind,) = self.random.choices(list(kinds), list(kinds.values()))
        return [self._single(partition, kind)]

    def _single(self, partition: int, kind: Kind) -> Row:
        own, amount = self._own(partition), self.random.choice([0, 1, 5, 5, 70, 70, 300])
        if kind is Kind.OPEN:
            return self.open(partition)
        if kind is Kind.DEPOSIT:
            return self.event(partition, kind, debit=1, credit=own, amount=amount * 6)
        if kind is Kind.WITHDRAWAL:
            return self.event(partition, kind, debit=own, credit=1, amount=amount)
        if kind is Kind.SET_LIMITS:
            limit = self.random.choice([NO_LIMIT, 800, 5000])
            return self.event(partition, kind, debit=own, amount=limit, ref=(2**64 - 1, NO_LIMIT), total=-1)
        if kind in {Kind.FREEZE, Kind.UNFREEZE, Kind.CLOSE}:
            return self.event(partition, kind, debit=own)
        if kind is Kind.BIND:
            return self.event(partition, kind, debit=own, check=self.random.getrandbits(60))
        if kind in {Kind.POST, Kind.VOID} and (hold := self._refer(partition, Kind.HOLD)):
            part = self.random.choice([0, 1, hold.amount, hold.amount + 1]) if kind is Kind.POST else 0
            # As a shard takes it: with the accounts that the hold has, or with none.
            named = {"debit": hold.debit, "credit": hold.credit} if self.random.random() < 0.5 else {}
            return self.event(partition, kind, ref=hold.id, amount=part, **named)
        if kind is Kind.REFUND:
            paid = [
                known
                for known in self.known.values()
                if partition_of(known.credit, PARTITIONS) == partition
                and known.kind is Kind.TRANSFER
                and known.status == "settled"
            ]
            if paid:
                known = self.random.choice(paid[-20:])
                some = self.random.choice([1, known.amount, known.amount // 2 + 1])
                return self.event(
                    partition, kind, debit=known.credit, credit=known.debit, ref=known.id, amount=some,
                    total=known.amount, span=known.at,
                )  # fmt: skip
        unknown = 999 << 10 | self.random.randrange(2)
        payee = unknown if self.random.random() < 0.04 else self.random.choice(self.accounts)
        span = self.random.choice([1_000, 50_000_000, 10**12, 10**12]) if kind is Kind.HOLD else 0
        kind = kind if kind is Kind.HOLD else Kind.TRANSFER
        return self.event(partition, kind, debit=own, credit=payee, amount=amount, span=span)

    def _chain(self, partition: int) -> list[Row]:
        local = [a for a in self.accounts if partition_of(a, PARTITIONS) == partition]
        rows = []
        for _ in range(self.random.randrange(2, 5)):
            payer, payee = self.random.sample(local, 2)
            span = self.random.choice([0, 0, 10**9])
            kind = Kind.HOLD if span else Kind.TRANSFER
            rows.append(
                self.event(partition, kind, debit=payer, credit=payee, amount=self.random.choice([1, 400]), span=span)
            )
        if self.chain and self.random.random() < 0.2:
            return self.chain  # the whole of it once more, which does nothing
        done = [k for k in self.known.values() if k.kind is Kind.TRANSFER and k.partition == partition]
        if done and self.random.random() < 0.2:
            known = self.random.choice(done)  # the whole is refused
            rows.insert(1, self.event(
                partition, Kind.TRANSFER, id=known.id, debit=known.debit, credit=known.credit, amount=known.amount
            ))  # fmt: skip
        for row in rows[:-1]:
            row["flags"] = Flag.LINKED
        self.chain = rows
        return rows

    # -- applying them --------------------------------------------------------------------------------------------

    def step(self, units: int = 6) -> list[Recorded]:
        """Both partitions' next records: what clients sent, what fell due, legs and outcomes that were under way."""
        if not self.accounts:
            return [self._record(p, [[self.open(p)] for _ in range(8)]) for p in range(PARTITIONS)]
        made = []
        for partition in range(PARTITIONS):
            work = [[row] for row in self.outcomes[partition]]
            self.outcomes[partition] = []
            here = [leg for leg in self.legs if partition_of(int(leg["credit"][0]), PARTITIONS) == partition]
            late = units > 1 and self.windows == FORGETFUL and self.random.random() < 0.9
            arriving = [] if late else here[: self.random.randrange(0, len(here) + 1)]
            for leg in arriving:
                leg["check"] = self.confirmed.get(1 - partition, 0)
            arrived = {id(leg) for leg in arriving}
            self.legs = [leg for leg in self.legs if id(leg) not in arrived]
            work += [[leg] for leg in arriving]
            due = ledger.due_holds(self.books[partition], self.clock[partition], 100)
            work += [[due[place : place + 1]] for place in range(len(due))]
            work += [self.unit(partition) for _ in range(self.random.randrange(units))]
            made.append(self._record(partition, work))
        return [record for record in made if len(record.rows)]

    def drain(self) -> list[Recorded]:
        """Records until nothing is under way any more."""
        made = []
        while self.legs or any(self.outcomes):
            made += self.step(1)
        return made

    def _record(self, partition: int, units: Sequence[list[Row]]) -> Recorded:
        rows, results, notes = [], [], []
        self.clock[partition] += self.random.choice([1, 1_000, 3_000_000])
        for unit in units:
            batch = np.concatenate(unit)
            self.clock[partition] = ledger.stamp(batch, self.clock[partition] + 1, self.clock[partition])
            result, balances = np.zeros(len(batch), RESULT), np.zeros(len(batch), BALANCE)
            ledger.apply(self.books[partition], batch, result, balances, UTC_OFFSET_S)
            self.codes |= {Code(code) for code in result["code"].tolist()}
            again = (result["flags"] & ResultFlag.REPLAYED) != 0
            kept = (result["code"] < FIRST_STATELESS) & ~again
            for row, answer, counts in zip(batch, result, kept, strict=True):
                if counts:
                    self._follow(partition, row, answer)
            assert kept.all() or not kept.any(), "a chain is journaled whole, or not at all"
            batch, result = batch[kept], result[kept]
            rows.append(batch)
            results.append(result)
            notes += [b'{"n":%d}' % n if self.random.random() < 0.2 else None for n in range(len(batch))]
            self._look(partition)
        made = Recorded(partition, np.concatenate(rows), np.concatenate(results), notes) if rows else None
        if made is None:
            return Recorded(partition, np.zeros(0, EVENT), np.zeros(0, RESULT), [])
        for row, note in zip(made.rows, notes, strict=True):
            known = self.known.get((partition, int(row["at"])))
            if known is not None:
                known.note = note
        return made

    def _look(self, partition: int) -> None:
        """What the book says now."""
        own = [a for a in self.accounts if partition_of(a, PARTITIONS) == partition]
        states = ledger.read_accounts(
            self.books[partition], np.array(own, np.uint64), np.zeros(len(own), np.uint64), self.clock[partition]
        )
        for account, state in zip(own, states, strict=True):
            if state["status"] == AccountStatus.UNKNOWN:
                continue
            self.status[account] = AccountStatus(int(state["status"]))
            now = (int(state["posted"]), int(state["debits_pending"]))
            seen = self.timeline.setdefault(account, [])
            if not seen or seen[-1][1:] != now:
                seen.append((self.clock[partition], *now))

    # -- following transfers, in plain Python ---------------------------------------------------------------------

    def _follow(self, partition: int, row: Row, answer: Row) -> None:
        kind, code = Kind(int(row["kind"])), Code(int(answer["code"]))
        id_, ref = (int(row["id_hi"]), int(row["id_lo"])), (int(row["ref_hi"]), int(row["ref_lo"]))
        at = int(row["at"])
        done = code in {Code.OK, Code.IN_FLIGHT}
        if kind in {Kind.DEPOSIT, Kind.WITHDRAWAL, Kind.TRANSFER, Kind.HOLD, Kind.REFUND}:
            status = "refused"
            if done:
                status = "in flight" if code is Code.IN_FLIGHT else "held" if kind is Kind.HOLD else "settled"
            debit, credit, amount = (int(row[name]) for name in ("debit", "credit", "amount"))
            self.overtaken += sum(known.id == id_ and not known.heard for known in self.known.values())
            made = self.known[partition, at] = Known(id_, partition, kind, debit, credit, amount, at, status, code)
            if kind is Kind.REFUND:
                made.original = self.known[ids.slot_of(ref) % PARTITIONS, int(row["span"])]
                assert made.original.id == ref
                if code is Code.OK:
                    made.original.refunded += amount
        elif kind is Kind.POST and done:
            hold = self._hold(partition, ref)
            moved = int(answer["detail"])
            self.known[partition, at] = Known(
                id_, partition, kind, hold.debit, hold.credit, moved, at,
                "in flight" if code is Code.IN_FLIGHT else "posted", code, hold=hold,
            )  # fmt: skip
            hold.status = "in flight" if code is Code.IN_FLIGHT else "posted"
            hold.posted = moved if code is Code.OK else None
        elif kind in {Kind.VOID, Kind.EXPIRE} and done:
            self._hold(partition, ref).status = "voided" if kind is Kind.VOID else "expired"
        elif kind is Kind.CREDIT_LEG:
            self._decide(row, code)
        elif kind in {Kind.SETTLE, Kind.REVERT}:
            self._end(self.flights.pop((partition, *ref)), kind, int(row["reason"]))
            self.confirmed[partition] = ref[1]
        if code is Code.IN_FLIGHT:
            (leg,) = [one for one in ledger.in_flight(self.books[partition]).reshape(-1, 1) if one["span"][0] == at]
            self.legs.append(leg)
            known = self.known[partition, at]
            known.heard = False
            self.flights[partition, 1 - partition, int(leg["total"][0])] = known

    def _hold(self, partition: int, id_: Id) -> Known:
        """The one that lives."""
        holds = [k for k in self.known.values() if k.id == id_ and k.kind is Kind.HOLD and k.code is Code.OK]
        return max((hold for hold in holds if hold.partition == partition), key=lambda hold: hold.at)

    def _decide(self, leg: Row, code: Code) -> None:
        """The payee's shard has decided. Money that it took is there; a refusal is one when the money is back."""
        payer = partition_of(int(leg["debit"]), PARTITIONS)
        known = self.known[payer, int(leg["span"])]
        end, reason = (Kind.SETTLE, known.kind) if code is Code.OK else (Kind.REVERT, code)
        if code is Code.OK:
            known.status, known.code = "settled", code
            if known.hold is not None:
                known.status = "posted"
                known.hold.status, known.hold.posted = "posted", known.amount
            if known.original is not None:
                known.original.refunded += known.amount
        named = (1 - payer, int(leg["total"]))
        self.outcomes[payer].append(self.event(payer, end, id=known.id, ref=named, reason=reason))

    def _end(self, known: Known, kind: Kind, reason: int) -> None:
        """The payer's shard has heard of it."""
        known.heard = True
        if kind is Kind.REVERT:
            known.status, known.code = "refused", Code(reason)
            if known.hold is not None:
                known.hold.status = "held"
