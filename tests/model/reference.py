"""The ledger's rules once more, in plain Python with dicts: slow, obvious, and written from the rules alone.

The kernel is compared with this. What the kernel packs, prunes or looks up by hash is kept here in full.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from actors.book import Capacity
from storage.events import AMOUNT_MAX, EVENT, FIRST_STATELESS, NO_LIMIT, AccountStatus, Code, Flag, Kind, partition_of

Id = tuple[int, int]
UNCHANGED = 2**64 - 1
MINUTE_NS = 60 * 10**9
LINKABLE = {Kind.TRANSFER, Kind.HOLD, Kind.DEPOSIT, Kind.WITHDRAWAL}
UNREMEMBERED = {Kind.EXPIRE, Kind.SETTLE, Kind.REVERT}


class Event(NamedTuple):
    """An EVENT row as Python integers."""

    id: Id
    ref: Id
    debit: int
    credit: int
    amount: int
    at: int
    span: int
    total: int
    actor: int
    check: int
    kind: int
    flags: int
    reason: int

    @classmethod
    def of(cls, row: Any) -> Event:
        v = {name: int(row[name]) for name in EVENT.names or ()}
        plain = {name: v[name] for name in cls._fields if name in v}
        return cls(id=(v["id_hi"], v["id_lo"]), ref=(v["ref_hi"], v["ref_lo"]), **plain)

    def content(self) -> tuple[int, ...]:
        if self.kind == Kind.CREDIT_LEG:
            return (self.kind, self.credit, self.amount)
        shared = (self.kind, self.debit, self.credit, self.amount, *self.ref, self.check)
        if self.kind == Kind.HOLD:
            return (*shared, self.span)
        return (*shared, self.total) if self.kind in {Kind.OPEN, Kind.SET_LIMITS} else shared


@dataclass
class Answer:
    code: int
    at: int
    detail: int = 0
    replayed: bool = False
    balance: tuple[int, int, int, int] = (0, 0, 0, 0)  # debit posted and pending, credit posted and pending


class Refused(Exception):  # noqa: N818
    def __init__(self, code: Code, detail: int = 0) -> None:
        super().__init__(code.name)
        self.code = code
        self.detail = detail


@dataclass
class Account:
    owner: int = 0
    debits: int = 0
    credits: int = 0
    pending: int = 0
    in_flight: int = 0
    status: AccountStatus = AccountStatus.OPEN
    limits: dict[str, int] = field(default_factory=dict)  # per_transfer, daily, night, window
    raises: dict[str, tuple[int, int]] = field(default_factory=dict)  # name -> (limit, since)
    sent: dict[tuple[str, int], int] = field(default_factory=dict)  # (day or night, which) -> centavos

    @property
    def posted(self) -> int:
        return self.credits - self.debits

    @property
    def available(self) -> int:
        return self.posted - self.pending

    def limit(self, name: str, now: int) -> int:
        value, since = self.raises.get(name, (0, now + 1))
        return value if since <= now else self.limits[name]


@dataclass
class Hold:
    debit: int
    credit: int
    amount: int
    expires_at: int
    counted: list[tuple[str, int]]
    posting: bool = False


@dataclass
class Flight:
    event: Event
    debit: int
    credit: int
    amount: int
    counted: list[tuple[str, int]]


class Memory(NamedTuple):
    content: tuple[int, ...]
    code: int
    at: int


def covers(window: int, minute: int) -> bool:
    first, end = window >> 16, window & 0xFFFF
    return first <= minute < end if first < end else minute >= first or minute < end


def valid_window(window: int) -> bool:
    first, end = window >> 16, window & 0xFFFF
    return 0 <= first < 1440 and end <= 1440 and first != end


class Ledger:
    """One partition."""

    def __init__(
        self, partition: int, partitions: int, id_window: int, id_skew: int, refund_window: int, capacity: Capacity
    ) -> None:
        self.partition, self.partitions = partition, partitions
        self.id_window, self.id_skew, self.refund_window = id_window, id_skew, refund_window
        self.capacity = capacity
        self.settlement, self.transit = Account(), Account()
        self.accounts: dict[int, Account] = {}
        self.holds: dict[Id, Hold] = {}
        self.flights: dict[Id, Flight] = {}
        self.memory: dict[int, dict[Id, Memory]] = {}  # by generation
        self.refunded: dict[Id, int] = {}
        self.refunds_of: dict[int, set[Id]] = {}  # by generation: for the capacity alone
        self.transfers = 0
        self.offset = 0

    # Batches and chains.

    def apply(self, events: list[Event], utc_offset_s: int) -> list[Answer]:
        self.offset = utc_offset_s * 10**9
        answers: list[Answer] = []
        while len(answers) < len(events):
            start = end = len(answers)
            while events[end].flags & Flag.LINKED and end + 1 < len(events):
                end += 1
            chain = events[start : end + 1]
            if chain[0].flags & Flag.LINKED:
                answers += self.apply_chain(chain)
            else:
                answers.append(self.apply_one(chain[0], None))
        return answers

    def apply_chain(self, chain: list[Event]) -> list[Answer]:
        names = ("settlement", "accounts", "holds", "memory", "transfers")
        before = {name: copy.deepcopy(getattr(self, name)) for name in names}
        answers: list[Answer] = []
        for place, event in enumerate(chain):
            answers.append(self.apply_one(event, place == len(chain) - 1))
            if answers[-1].code != Code.OK:
                for name in names:
                    setattr(self, name, before[name])
                return self.fail_chain(chain, place, answers[place])
        return answers

    def fail_chain(self, chain: list[Event], failed: int, why: Answer) -> list[Answer]:
        answers = []
        for place, event in enumerate(chain):
            if place == failed:
                if why.code < FIRST_STATELESS and not why.replayed and event.kind not in UNREMEMBERED:
                    self.remember(event, why.code)
                answers.append(why)
                continue
            answer = Answer(Code.LINKED_FAILED, event.at)
            if event.kind not in UNREMEMBERED and self.valid_id(event):
                known = self.recall(event)
                if known is not None and known.content == event.content():
                    answer = Answer(known.code, known.at, replayed=True)
                elif known is None and self.age(event) == Code.OK and not self.ids_full(event):
                    self.remember(event, Code.LINKED_FAILED)
            answers.append(answer)
        return answers

    # One event.

    def apply_one(self, event: Event, last_of_chain: bool | None) -> Answer:
        """`last_of_chain` is None for an event that stands alone."""
        try:
            return self.admit(event, last_of_chain)
        except Refused as refusal:
            if refusal.code < FIRST_STATELESS and event.kind not in UNREMEMBERED:
                self.remember(event, refusal.code)
            return Answer(refusal.code, event.at, refusal.detail)

    def admit(self, event: Event, last_of_chain: bool | None) -> Answer:
        chained = last_of_chain is not None
        if event.kind in UNREMEMBERED:
            if chained:
                raise Refused(Code.NOT_LINKABLE)
            return self.outcome(event)
        self.check_form(event)
        if not self.valid_id(event):
            raise Refused(Code.INVALID_ID)
        self.check_actor(event)
        known = self.recall(event)
        if known is not None:
            if known.content != event.content():
                raise Refused(Code.ID_CONFLICT)
            return Answer(known.code, known.at, replayed=True)
        too_old_or_new = self.age(event)
        if too_old_or_new != Code.OK:
            raise Refused(too_old_or_new)
        if self.ids_full(event):
            raise Refused(Code.BOOK_FULL)
        if chained:
            remote = event.kind in {Kind.TRANSFER, Kind.HOLD} and self.is_remote(event.credit)
            cut_off = last_of_chain and event.flags & Flag.LINKED
            if event.kind not in LINKABLE or remote or cut_off:
                raise Refused(Code.NOT_LINKABLE)
        answer: Answer = getattr(self, Kind(event.kind).name.lower())(event)
        self.remember(event, answer.code)
        if event.kind in LINKABLE or event.kind == Kind.REFUND:
            self.transfers += 1
        return answer

    def is_remote(self, account: int) -> bool:
        return 1024 <= account < 2**63 and partition_of(account, self.partitions) != self.partition

    def check_form(self, event: Event) -> None:
        if event.kind not in set(Kind):
            raise Refused(Code.INVALID_EVENT)
        own = event.credit if event.kind in {Kind.DEPOSIT, Kind.CREDIT_LEG} else event.debit
        outside = {Kind.DEPOSIT: event.debit, Kind.WITHDRAWAL: event.credit}.get(Kind(event.kind), 0)
        if self.is_remote(own) or outside not in {0, 1}:
            raise Refused(Code.INVALID_EVENT)

    def valid_id(self, event: Event) -> bool:
        hi, lo = event.id
        version, variant = (hi >> 12) & 0xF, lo >> 62
        return version in {7, 8} and variant == 0b10

    def check_actor(self, event: Event) -> None:
        if event.kind in {Kind.OPEN, Kind.DEPOSIT, Kind.CREDIT_LEG} or event.actor == 0:
            return
        debit = event.debit
        if event.kind in {Kind.POST, Kind.VOID} and debit == 0 and event.ref in self.holds:
            debit = self.holds[event.ref].debit
        if debit in self.accounts and self.accounts[debit].owner != event.actor:
            raise Refused(Code.FORBIDDEN)

    # Ids.

    def generation(self, at: int) -> int:
        return at // (self.id_window + self.id_skew)

    def recall(self, event: Event) -> Memory | None:
        now = self.generation(event.at)
        for generation in (now, now - 1):
            known = self.memory.get(generation, {}).get(event.id)
            if known is not None:
                return known
        return None

    def remember(self, event: Event, code: int) -> None:
        self.memory.setdefault(self.generation(event.at), {})[event.id] = Memory(event.content(), code, event.at)

    def recode(self, event: Event, code: int) -> None:
        now = self.generation(event.at)
        for generation in (now, now - 1):
            known = self.memory.get(generation, {}).get(event.id)
            if known is not None:
                self.memory[generation][event.id] = known._replace(code=code)
                return

    def ids_full(self, event: Event) -> bool:
        return len(self.memory.get(self.generation(event.at), {})) >= self.capacity.ids

    def age(self, event: Event) -> Code:
        if event.kind == Kind.CREDIT_LEG:
            return Code.LEG_OUT_OF_ORDER if event.at - event.span > self.id_window else Code.OK
        if (event.id[0] >> 12) & 0xF == 7:
            made = (event.id[0] >> 16) * 10**6
            if made < event.at - self.id_window:
                return Code.ID_EXPIRED
            if made > event.at + self.id_skew:
                return Code.ID_IN_FUTURE
        return Code.OK

    # Parties, limits, money.

    def payer(self, event: Event) -> Account:
        account = self.accounts.get(event.debit)
        if account is None:
            raise Refused(Code.UNKNOWN_DEBIT_ACCOUNT)
        return self.active_payer(account)

    def active_payer(self, account: Account) -> Account:
        if account.status == AccountStatus.CLOSED:
            raise Refused(Code.DEBIT_ACCOUNT_CLOSED)
        if account.status == AccountStatus.FROZEN:
            raise Refused(Code.DEBIT_ACCOUNT_FROZEN)
        return account

    def payee(self, credit: int) -> Account | None:
        """None when it is of another partition."""
        if self.is_remote(credit):
            return None
        account = self.accounts.get(credit)
        if account is None:
            raise Refused(Code.UNKNOWN_CREDIT_ACCOUNT)
        if account.status == AccountStatus.CLOSED:
            raise Refused(Code.CREDIT_ACCOUNT_CLOSED)
        if account.status == AccountStatus.FROZEN:
            raise Refused(Code.CREDIT_ACCOUNT_FROZEN)
        return account

    def check_room(self, event: Event, payee: Account | None, amount: int) -> None:
        if payee is None and len(self.flights) >= self.capacity.in_flight:
            raise Refused(Code.BOOK_FULL)
        if payee is None and event.id in self.flights:
            raise Refused(Code.ID_CONFLICT)
        if (payee or self.transit).credits + amount > AMOUNT_MAX:
            raise Refused(Code.OVERFLOW)

    def periods(self, account: Account, at: int) -> list[tuple[str, int]]:
        """The local day, and the night (from noon to noon) if it runs."""
        minutes = (at + self.offset) // MINUTE_NS
        periods = [("daily", minutes // 1440)]
        if covers(account.limit("window", at), minutes % 1440):
            periods.append(("night", (minutes - 720) // 1440))
        return periods

    def check_limits(self, account: Account, event: Event) -> None:
        per_transfer = account.limit("per_transfer", event.at)
        if event.amount > per_transfer:
            raise Refused(Code.LIMIT_PER_TRANSFER, per_transfer)
        for period in self.periods(account, event.at):
            limit, sent = account.limit(period[0], event.at), account.sent.get(period, 0)
            if limit != NO_LIMIT and sent + event.amount > limit:
                code = Code.LIMIT_DAILY if period[0] == "daily" else Code.LIMIT_NIGHT
                raise Refused(code, max(limit - sent, 0))
            if sent + event.amount > AMOUNT_MAX:
                raise Refused(Code.OVERFLOW)

    def give_back(self, account: Account, counted: list[tuple[str, int]], amount: int) -> None:
        for period in counted:
            account.sent[period] -= amount

    def pay(self, event: Event, payer: Account, payee: Account | None, amount: int) -> Answer:
        payer.debits += amount
        (payee or self.transit).credits += amount
        if payee is None:
            return self.seen_from(payer, Answer(Code.IN_FLIGHT, event.at))
        answer = self.seen_from(payer, Answer(Code.OK, event.at))
        answer.balance = (*answer.balance[:2], payee.posted, payee.pending)
        return answer

    def seen_from(self, payer: Account, answer: Answer) -> Answer:
        answer.balance = (payer.posted, payer.pending, *answer.balance[2:])
        return answer

    # The kinds.

    def open(self, event: Event) -> Answer:
        if not 1024 <= event.debit < 2**63:
            raise Refused(Code.INVALID_EVENT)
        if event.debit in self.accounts:
            raise Refused(Code.ACCOUNT_EXISTS)
        window = event.total or (1200 << 16 | 360)
        values = (event.amount, *event.ref)
        if not all(0 <= value < 2**63 for value in values) or not valid_window(window):
            raise Refused(Code.INVALID_LIMIT)
        if len(self.accounts) + 2 >= self.capacity.accounts:
            raise Refused(Code.BOOK_FULL)
        account = Account(owner=event.credit or event.actor)
        account.limits = {"per_transfer": values[0], "daily": values[1], "night": values[2], "window": window}
        self.accounts[event.debit] = account
        # The balances of a new account are seen only with its next event.
        return Answer(Code.OK, event.at)

    def close(self, event: Event) -> Answer:
        account = self.payer(event)
        if account.posted or account.pending or account.in_flight:
            raise Refused(Code.ACCOUNT_NOT_EMPTY)
        account.status = AccountStatus.CLOSED
        return self.seen_from(account, Answer(Code.OK, event.at))

    def not_closed(self, event: Event) -> Account:
        account = self.accounts.get(event.debit)
        if account is None:
            raise Refused(Code.UNKNOWN_DEBIT_ACCOUNT)
        if account.status == AccountStatus.CLOSED:
            raise Refused(Code.DEBIT_ACCOUNT_CLOSED)
        return account

    def freeze(self, event: Event) -> Answer:
        account = self.not_closed(event)
        account.status = AccountStatus.FROZEN
        return self.seen_from(account, Answer(Code.OK, event.at))

    def unfreeze(self, event: Event) -> Answer:
        account = self.not_closed(event)
        account.status = AccountStatus.OPEN
        return self.seen_from(account, Answer(Code.OK, event.at))

    def set_limits(self, event: Event) -> Answer:
        account = self.not_closed(event)
        given = {"per_transfer": event.amount, "daily": event.ref[0], "night": event.ref[1], "window": event.total}
        wanted = {name: value for name, value in given.items() if value not in {-1, UNCHANGED}}
        if event.span < 0 or event.at + event.span > AMOUNT_MAX:
            raise Refused(Code.INVALID_LIMIT)
        for name, value in wanted.items():
            if not (valid_window(value) if name == "window" else 0 <= value < 2**63):
                raise Refused(Code.INVALID_LIMIT)
        for name, value in wanted.items():
            now = account.limit(name, event.at)
            if name == "window":
                waits = any(covers(now, m) and not covers(value, m) for m in range(1440))
            else:
                waits = value > now
            account.limits[name] = now if waits else value
            account.raises.pop(name, None)
            if waits:
                account.raises[name] = (value, event.at + event.span)
        return self.seen_from(account, Answer(Code.OK, event.at))

    def deposit(self, event: Event) -> Answer:
        if event.amount <= 0:
            raise Refused(Code.INVALID_AMOUNT)
        payee = self.payee(event.credit)
        if self.settlement.debits + event.amount > AMOUNT_MAX:
            raise Refused(Code.OVERFLOW)
        self.check_room(event, payee, event.amount)
        return self.pay(event, self.settlement, payee, event.amount)

    def withdrawal(self, event: Event) -> Answer:
        if event.amount <= 0:
            raise Refused(Code.INVALID_AMOUNT)
        payer = self.payer(event)
        if payer.available < event.amount:
            raise Refused(Code.INSUFFICIENT_FUNDS)
        self.check_room(event, self.settlement, event.amount)
        return self.pay(event, payer, self.settlement, event.amount)

    def parties(self, event: Event) -> tuple[Account, Account | None]:
        if event.amount <= 0:
            raise Refused(Code.INVALID_AMOUNT)
        if event.debit == event.credit:
            raise Refused(Code.SAME_ACCOUNT)
        return self.payer(event), self.payee(event.credit)

    def affordable(self, event: Event) -> tuple[Account, Account | None]:
        payer, payee = self.parties(event)
        self.check_limits(payer, event)
        if payer.available < event.amount:
            raise Refused(Code.INSUFFICIENT_FUNDS)
        return payer, payee

    def count(self, account: Account, event: Event) -> list[tuple[str, int]]:
        periods = self.periods(account, event.at)
        for period in periods:
            account.sent[period] = account.sent.get(period, 0) + event.amount
        return periods

    def transfer(self, event: Event) -> Answer:
        payer, payee = self.affordable(event)
        self.check_room(event, payee, event.amount)
        counted = self.count(payer, event)
        if payee is None:
            self.launch(event, event.debit, event.credit, event.amount, counted)
        return self.pay(event, payer, payee, event.amount)

    def launch(self, event: Event, debit: int, credit: int, amount: int, counted: list[tuple[str, int]]) -> None:
        self.flights[event.id] = Flight(event, debit, credit, amount, counted)
        self.accounts[debit].in_flight += 1

    def hold(self, event: Event) -> Answer:
        payer, _ = self.affordable(event)
        if event.span <= 0 or event.at + event.span > AMOUNT_MAX:
            raise Refused(Code.INVALID_EVENT)
        if len(self.holds) >= self.capacity.holds:
            raise Refused(Code.BOOK_FULL)
        if event.id in self.holds:
            raise Refused(Code.ID_CONFLICT)
        expires_at = event.at + event.span
        self.holds[event.id] = Hold(event.debit, event.credit, event.amount, expires_at, self.count(payer, event))
        payer.pending += event.amount
        return self.seen_from(payer, Answer(Code.OK, event.at))

    def held(self, event: Event) -> Hold:
        hold = self.holds.get(event.ref)
        if hold is None or hold.posting or event.debit not in {0, hold.debit} or event.credit not in {0, hold.credit}:
            raise Refused(Code.NOT_HELD)
        if hold.expires_at <= event.at:
            raise Refused(Code.HOLD_EXPIRED)
        return hold

    def release(self, id_: Id, amount: int) -> Account:
        hold = self.holds.pop(id_)
        account = self.accounts[hold.debit]
        account.pending -= amount
        self.give_back(account, hold.counted, amount)
        return account

    def post(self, event: Event) -> Answer:
        if event.amount < 0:
            raise Refused(Code.INVALID_AMOUNT)
        hold = self.held(event)
        amount = event.amount or hold.amount
        if amount > hold.amount:
            raise Refused(Code.EXCEEDS_HOLD, hold.amount)
        payer = self.active_payer(self.accounts[hold.debit])
        payee = self.payee(hold.credit)
        self.check_room(event, payee, amount)
        payer.pending -= amount
        if payee is None:
            hold.posting = True  # what is left of it is released when the payee has taken the money
            self.launch(event, hold.debit, hold.credit, amount, [])
        else:
            self.release(event.ref, hold.amount - amount)
        answer = self.pay(event, payer, payee, amount)
        answer.detail = amount
        return answer

    def void(self, event: Event) -> Answer:
        amount = self.held(event).amount
        return self.seen_from(self.release(event.ref, amount), Answer(Code.OK, event.at, amount))

    def refund(self, event: Event) -> Answer:
        if event.total <= 0:
            raise Refused(Code.INVALID_EVENT)
        payer, payee = self.parties(event)
        if event.at - event.span > self.refund_window:
            raise Refused(Code.REFUND_EXPIRED)
        left = event.total - self.refunded.get(event.ref, 0)
        if event.amount > left:
            raise Refused(Code.EXCEEDS_ORIGINAL, max(left, 0))
        if payer.available < event.amount:
            raise Refused(Code.INSUFFICIENT_FUNDS)
        self.check_room(event, payee, event.amount)
        originals = self.refunds_of.setdefault(event.at // self.refund_window, set())
        if len(originals) >= self.capacity.refunds:
            raise Refused(Code.BOOK_FULL)
        originals.add(event.ref)
        self.refunded[event.ref] = self.refunded.get(event.ref, 0) + event.amount
        if payee is None:
            self.launch(event, event.debit, event.credit, event.amount, [])
        answer = self.pay(event, payer, payee, event.amount)
        answer.detail = left - event.amount
        return answer

    def credit_leg(self, event: Event) -> Answer:
        if event.amount <= 0:
            raise Refused(Code.INVALID_EVENT)
        payee = self.payee(event.credit)
        assert payee is not None
        if self.transit.debits + event.amount > AMOUNT_MAX:
            raise Refused(Code.OVERFLOW)
        self.check_room(event, payee, event.amount)
        answer = self.pay(event, self.transit, payee, event.amount)
        answer.balance = (0, 0, *answer.balance[2:])
        return answer

    # What the shard itself finds out.

    def outcome(self, event: Event) -> Answer:
        if event.kind == Kind.EXPIRE:
            return self.expire(event)
        flight = self.flights.pop(event.id, None)
        if flight is None:
            return Answer(Code.OK, event.at)
        payer = self.accounts[flight.debit]
        payer.in_flight -= 1
        if event.kind == Kind.SETTLE:
            if flight.event.kind == Kind.POST:
                self.release(flight.event.ref, self.holds[flight.event.ref].amount - flight.amount)
            self.recode(event, Code.OK)
        else:
            self.take_back(flight, payer)
            self.recode(event, event.reason)
        return self.seen_from(payer, Answer(Code.OK, event.at, flight.amount))

    def take_back(self, flight: Flight, payer: Account) -> None:
        payer.debits -= flight.amount
        self.transit.credits -= flight.amount
        self.give_back(payer, flight.counted, flight.amount)
        if flight.event.kind == Kind.POST:
            self.holds[flight.event.ref].posting = False
            payer.pending += flight.amount
        if flight.event.kind == Kind.REFUND:
            self.refunded[flight.event.ref] -= flight.amount

    def expire(self, event: Event) -> Answer:
        hold = self.holds.get(event.ref)
        if hold is None or hold.posting:
            raise Refused(Code.NOT_HELD)
        if hold.expires_at > event.at:
            raise Refused(Code.INVALID_EVENT)
        return self.seen_from(self.release(event.ref, hold.amount), Answer(Code.OK, event.at, hold.amount))

    def due(self, now: int) -> set[Id]:
        return {id_ for id_, hold in self.holds.items() if hold.expires_at <= now and not hold.posting}
