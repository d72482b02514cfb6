"""The ledger's rules once more, in plain Python with dicts: slow, obvious, and written from the rules alone.

The kernel is compared with this. What the kernel packs, counts or looks up by hash is kept here in full.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from actors.book import Capacity
from storage.events import AMOUNT_MAX, EVENT, FIRST_STATELESS, NO_LIMIT, AccountStatus, Code, Flag, Kind, partition_of

Id = tuple[int, int]
UNCHANGED = 2**64 - 1
MILLISECOND_NS = 10**6
MINUTE_NS = 60 * 10**9
LINKABLE = {Kind.TRANSFER, Kind.HOLD, Kind.DEPOSIT, Kind.WITHDRAWAL}
PAYMENTS = {*LINKABLE, Kind.REFUND}
OF_SHARDS = {Kind.EXPIRE, Kind.CREDIT_LEG, Kind.SETTLE, Kind.REVERT}
"""What shards say, not clients: no id is looked at, none remembered."""


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

    def content(self, chained: bool) -> tuple[int, ...]:
        """What a repeat must have in common with the first use of its id."""
        shared = (self.kind, self.debit, self.credit, self.amount, *self.ref, self.check, int(chained))
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
    posted: int = 0  # what came less what went
    pending: int = 0
    flying: int = 0  # what went and may come back
    status: AccountStatus = AccountStatus.OPEN
    limits: dict[str, int] = field(default_factory=dict)  # per_transfer, daily, night, window
    raises: dict[str, tuple[int, int]] = field(default_factory=dict)  # name -> (limit, since)
    sent: dict[tuple[str, int], int] = field(default_factory=dict)  # (day or night, which) -> centavos

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
    event: Event  # as it was stamped
    debit: int
    credit: int
    amount: int
    counted: list[tuple[str, int]]


class Memory(NamedTuple):
    content: tuple[int, ...]
    code: int
    at: int  # to the microsecond


def covers(window: int, minute: int) -> bool:
    first, end = window >> 16, window & 0xFFFF
    return first <= minute < end if first < end else minute >= first or minute < end


def microsecond(at: int) -> int:
    return at // 1000 * 1000


def wrapped(value: int) -> int:
    """As 64 bits with a sign have it."""
    return (value + 2**63) % 2**64 - 2**63


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
        self.memory: dict[Id, Memory] = {}  # the oldest first
        self.horizon = 0  # the newest stamp that was forgotten before its time
        self.refunded: dict[tuple[Id, int], int] = {}  # (the original's id, its stamp) -> centavos
        self.refunds_of: dict[int, list[tuple[Id, int]]] = {}  # by generation: for the capacity alone
        self.transfers = 0
        self.offset = 0
        # As payer's shard, by the payee's partition.
        self.sent: dict[int, int] = {}
        self.flights: dict[tuple[int, int], Flight] = {}  # (partition, number)
        # As payee's shard, by the payer's partition.
        self.heard: dict[int, int] = {}
        self.refusals: dict[tuple[int, int], int] = {}  # (partition, number) -> code, until the payer's shard has it

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
                answers.append(self.apply_one(chain[0]))
        return answers

    def apply_one(self, event: Event) -> Answer:
        try:
            if event.kind in OF_SHARDS:
                return self.of_shards(event)
            known = self.judge(event, chained=False)
            if known is not None:
                return self.again(known)
            answer = self.carry_out(event)
        except Refused as refusal:
            answer = Answer(refusal.code, event.at, refusal.detail)
        if answer.code < FIRST_STATELESS and event.kind not in OF_SHARDS:
            self.remember(event, answer.code, chained=False)
        return answer

    def apply_chain(self, chain: list[Event]) -> list[Answer]:
        judged: list[Memory | Refused | None] = []
        new: set[Id] = set()
        for event in chain:
            try:
                known = self.judge(event, chained=True)
                judged.append(Refused(Code.ID_CONFLICT) if known is None and event.id in new else known)
                if known is None:
                    new.add(event.id)
            except Refused as refusal:
                judged.append(refusal)
        if any(verdict is not None for verdict in judged):
            return [self.unchanged(event, verdict) for event, verdict in zip(chain, judged, strict=True)]
        return self.carry_out_all(chain)

    def unchanged(self, event: Event, verdict: Memory | Refused | None) -> Answer:
        if verdict is None:
            return Answer(Code.CHAIN_REFUSED, event.at)
        return self.again(verdict) if isinstance(verdict, Memory) else Answer(verdict.code, event.at)

    def carry_out_all(self, chain: list[Event]) -> list[Answer]:
        """All are new. They are carried out in their order, or none is."""
        names = ("settlement", "accounts", "holds", "transfers")
        before = {name: copy.deepcopy(getattr(self, name)) for name in names}
        answers: list[Answer] = []
        for place, event in enumerate(chain):
            try:
                self.check_linkable(event, place == len(chain) - 1)
                answers.append(self.carry_out(event))
            except Refused as refusal:
                for name in names:
                    setattr(self, name, before[name])
                others = Code.LINKED_FAILED if refusal.code < FIRST_STATELESS else Code.CHAIN_REFUSED
                answers = [Answer(others, other.at) for other in chain]
                answers[place] = Answer(refusal.code, event.at, refusal.detail)
                break
        for event, answer in zip(chain, answers, strict=True):
            if answer.code < FIRST_STATELESS and answers[0].code < FIRST_STATELESS:
                self.remember(event, answer.code, chained=True)
        return answers

    def check_linkable(self, event: Event, last: bool) -> None:
        remote = event.kind == Kind.TRANSFER and self.is_remote(event.credit)
        cut_off = last and event.flags & Flag.LINKED
        if event.kind not in LINKABLE or remote or cut_off:
            raise Refused(Code.NOT_LINKABLE)

    # One event.

    def judge(self, event: Event, *, chained: bool) -> Memory | None:
        """What is remembered of it; None when it is new. Changes nothing."""
        self.check_form(event)
        self.check_id(event)
        self.check_actor(event)
        known = self.recall(event)
        if known is None:
            self.check_age(event)
        elif known.content != event.content(chained):
            raise Refused(Code.ID_CONFLICT)
        return known

    def again(self, known: Memory) -> Answer:
        return Answer(known.code, known.at, replayed=True)

    def carry_out(self, event: Event) -> Answer:
        answer: Answer = getattr(self, Kind(event.kind).name.lower())(event)
        self.transfers += event.kind in PAYMENTS
        return answer

    def of_shards(self, event: Event) -> Answer:
        if event.flags & Flag.LINKED:
            raise Refused(Code.NOT_LINKABLE)
        answer: Answer = getattr(self, Kind(event.kind).name.lower())(event)
        return answer

    def is_remote(self, account: int) -> bool:
        return 1024 <= account < 2**63 and partition_of(account, self.partitions) != self.partition

    def decider(self, event: Event) -> int:
        return event.credit if event.kind == Kind.DEPOSIT else event.debit

    def check_form(self, event: Event) -> None:
        if event.kind not in set(Kind):
            raise Refused(Code.INVALID_EVENT)
        outside = {Kind.DEPOSIT: event.debit, Kind.WITHDRAWAL: event.credit}.get(Kind(event.kind), 0)
        if self.is_remote(self.decider(event)) or outside not in {0, 1}:
            raise Refused(Code.INVALID_EVENT)
        if event.kind in {Kind.POST, Kind.VOID} and partition_of(event.ref[1], self.partitions) != self.partition:
            raise Refused(Code.INVALID_EVENT)

    def check_id(self, event: Event) -> None:
        hi, lo = event.id
        version, variant = (hi >> 12) & 0xF, lo >> 62
        slot = event.ref[1] % 1024 if event.kind in {Kind.POST, Kind.VOID} else self.decider(event) % 1024
        if version not in {7, 8} or variant != 0b10 or lo & 0xFFF != slot:
            raise Refused(Code.INVALID_ID)

    def check_actor(self, event: Event) -> None:
        if event.kind in {Kind.OPEN, Kind.DEPOSIT, Kind.BIND} or event.actor == 0:
            return
        debit = event.debit
        if event.kind in {Kind.POST, Kind.VOID} and debit == 0 and event.ref in self.holds:
            debit = self.holds[event.ref].debit
        if debit in self.accounts and self.accounts[debit].owner != event.actor:
            raise Refused(Code.FORBIDDEN)

    # Ids.

    def recall(self, event: Event) -> Memory | None:
        known = self.memory.get(event.id)
        return None if known is None or self.is_past(known, event.at) else known

    def is_past(self, known: Memory, now: int) -> bool:
        return now - known.at > self.id_window + self.id_skew

    def remember(self, event: Event, code: int, *, chained: bool) -> None:
        self.forget(event.at)
        if len(self.memory) >= self.capacity.ids:
            self.push_out()
        self.memory[event.id] = Memory(event.content(chained), code, microsecond(event.at))

    def forget(self, now: int) -> None:
        for id_, known in list(self.memory.items()):
            if not self.is_past(known, now):
                break
            del self.memory[id_]

    def push_out(self) -> None:
        """The oldest goes before its time."""
        self.horizon = self.memory.pop(next(iter(self.memory))).at

    def recode(self, flight: Flight, code: int) -> None:
        known = self.memory.get(flight.event.id)
        if known is not None and known.at == microsecond(flight.event.at):  # not a namesake
            self.memory[flight.event.id] = known._replace(code=code)

    def check_age(self, event: Event) -> None:
        if (event.id[0] >> 12) & 0xF != 7:
            return
        made = (event.id[0] >> 16) * MILLISECOND_NS
        # Whoever is among the forgotten was made at most `id_skew` after it was stamped.
        forgotten = self.horizon > 0 and made <= self.horizon + self.id_skew
        if made < event.at - self.id_window or forgotten:
            raise Refused(Code.ID_EXPIRED)
        if made > event.at + self.id_skew:
            raise Refused(Code.ID_IN_FUTURE)

    def resize(self, capacity: Capacity) -> None:
        """Between two lives of the shard."""
        self.capacity = capacity
        while len(self.memory) > capacity.ids:
            self.push_out()

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

    def check_room(self, payee: Account | None, credit: int, amount: int) -> None:
        if payee is None:
            if len(self.flights) >= self.capacity.in_flight:
                raise Refused(Code.BOOK_FULL)
            partition = partition_of(credit, self.partitions)
            if sum(towards == partition for towards, _ in self.flights) >= self.capacity.outbox:
                raise Refused(Code.OUTBOX_FULL)
        elif payee is not self.settlement and payee.posted + payee.flying + amount > AMOUNT_MAX:
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

    def give_back(self, account: Account, counted: list[tuple[str, int]], amount: int) -> None:
        for period in counted:
            account.sent[period] = max(account.sent[period] - amount, 0)

    def pay(self, event: Event, payer: Account, payee: Account | None, amount: int) -> Answer:
        self.move(payer, payee or self.transit, amount)
        if payee is None:
            return self.seen_from(payer, Answer(Code.IN_FLIGHT, event.at))
        answer = self.seen_from(payer, Answer(Code.OK, event.at))
        answer.balance = (*answer.balance[:2], payee.posted, payee.pending)
        return answer

    def move(self, payer: Account, payee: Account, amount: int) -> None:
        """No account overflows; the shard's own two may, as only the sum over all shards means anything."""
        payer.posted = wrapped(payer.posted - amount)
        payee.posted = wrapped(payee.posted + amount)

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
        if account.posted or account.pending or account.flying:
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
        self.check_room(payee, event.credit, event.amount)
        return self.pay(event, self.settlement, payee, event.amount)

    def withdrawal(self, event: Event) -> Answer:
        if event.amount <= 0:
            raise Refused(Code.INVALID_AMOUNT)
        payer = self.payer(event)
        if payer.available < event.amount:
            raise Refused(Code.INSUFFICIENT_FUNDS)
        return self.pay(event, payer, self.settlement, event.amount)

    def sender(self, event: Event) -> Account:
        if event.amount <= 0:
            raise Refused(Code.INVALID_AMOUNT)
        if event.debit == event.credit:
            raise Refused(Code.SAME_ACCOUNT)
        return self.payer(event)

    def check_funds(self, payer: Account, event: Event) -> None:
        if payer.available < event.amount:
            raise Refused(Code.INSUFFICIENT_FUNDS)

    def count(self, account: Account, event: Event) -> list[tuple[str, int]]:
        periods = self.periods(account, event.at)
        for period in periods:
            account.sent[period] = min(account.sent.get(period, 0) + event.amount, AMOUNT_MAX)
        return periods

    def bind(self, event: Event) -> Answer:
        return Answer(Code.OK, event.at)

    def transfer(self, event: Event) -> Answer:
        payer, payee = self.sender(event), self.payee(event.credit)
        self.check_limits(payer, event)
        self.check_funds(payer, event)
        self.check_room(payee, event.credit, event.amount)
        counted = self.count(payer, event)
        if payee is None:
            self.launch(event, event.debit, event.credit, event.amount, counted)
        return self.pay(event, payer, payee, event.amount)

    def launch(self, event: Event, debit: int, credit: int, amount: int, counted: list[tuple[str, int]]) -> None:
        partition = partition_of(credit, self.partitions)
        number = self.sent[partition] = self.sent.get(partition, 0) + 1
        self.flights[partition, number] = Flight(event, debit, credit, amount, counted)
        self.accounts[debit].flying += amount

    def legs(self, partition: int) -> list[Event]:
        """What the payee's shard is told of all that is on its way to it, in the order of the numbers."""
        numbers = sorted(number for towards, number in self.flights if towards == partition)
        return [self.leg(partition, number, numbers[0] - 1) for number in numbers]

    def leg(self, partition: int, number: int, confirmed: int) -> Event:
        flight = self.flights[partition, number]
        paid = flight.event
        return Event(
            id=paid.id,
            ref=paid.ref if paid.kind == Kind.POST else (0, 0),
            debit=flight.debit,
            credit=flight.credit,
            amount=flight.amount,
            at=0,
            span=paid.at,
            total=number,
            actor=0,
            check=confirmed,
            kind=Kind.CREDIT_LEG,
            flags=0,
            reason=paid.kind,
        )

    def hold(self, event: Event) -> Answer:
        payer = self.sender(event)
        if not 1024 <= event.credit < 2**63:  # else the payee is looked at when the hold is posted
            raise Refused(Code.UNKNOWN_CREDIT_ACCOUNT)
        self.check_limits(payer, event)
        self.check_funds(payer, event)
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
        self.check_room(payee, hold.credit, amount)
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
        payer, payee = self.sender(event), self.payee(event.credit)
        if event.at - event.span > self.refund_window:
            raise Refused(Code.REFUND_EXPIRED)
        original = (event.ref, event.span)
        left = event.total - self.refunded.get(original, 0)
        if event.amount > left:
            raise Refused(Code.EXCEEDS_ORIGINAL, max(left, 0))
        self.check_funds(payer, event)
        self.check_room(payee, event.credit, event.amount)
        originals = self.refunds_of.setdefault(event.at // self.refund_window, [])
        if len(originals) >= self.capacity.refunds:
            raise Refused(Code.BOOK_FULL)
        if original not in originals:
            originals.append(original)
        self.refunded[original] = self.refunded.get(original, 0) + event.amount
        if payee is None:
            self.launch(event, event.debit, event.credit, event.amount, [])
        answer = self.pay(event, payer, payee, event.amount)
        answer.detail = left - event.amount
        return answer

    # What shards tell each other, and what a shard finds out by itself.

    def credit_leg(self, event: Event) -> Answer:
        if self.is_remote(event.credit) or not self.is_remote(event.debit):
            raise Refused(Code.INVALID_EVENT)
        source, number = partition_of(event.debit, self.partitions), event.total
        heard = self.heard.get(source, 0)
        if 1 <= number <= heard:
            return Answer(self.refusals.get((source, number), Code.OK), event.at, replayed=True)
        if number != heard + 1:
            raise Refused(Code.LEG_OUT_OF_ORDER)
        if event.amount <= 0:
            raise Refused(Code.INVALID_EVENT)
        kept = {leg: code for leg, code in self.refusals.items() if leg[0] != source or leg[1] > event.check}
        try:
            payee = self.payee(event.credit)
            self.check_room(payee, event.credit, event.amount)
        except Refused as refusal:
            if len(kept) >= self.capacity.in_flight:
                raise Refused(Code.BOOK_FULL) from None
            answer = Answer(refusal.code, event.at)
            kept[source, number] = refusal.code
        else:
            answer = self.pay(event, self.transit, payee, event.amount)
            answer.balance = (0, 0, *answer.balance[2:])
        self.heard[source], self.refusals = number, kept
        return answer

    def settle(self, event: Event) -> Answer:
        return self.land(event, Code.OK)

    def revert(self, event: Event) -> Answer:
        return self.land(event, event.reason)

    def land(self, event: Event, outcome: int) -> Answer:
        flight = self.flights.pop(event.ref, None)
        if flight is None:
            return Answer(Code.OK, event.at)
        payer = self.accounts[flight.debit]
        payer.flying -= flight.amount
        if outcome != Code.OK:
            self.take_back(flight, payer)
        elif flight.event.kind == Kind.POST:
            self.release(flight.event.ref, self.holds[flight.event.ref].amount - flight.amount)
        self.recode(flight, outcome)
        return self.seen_from(payer, Answer(Code.OK, event.at, flight.amount))

    def take_back(self, flight: Flight, payer: Account) -> None:
        self.move(self.transit, payer, flight.amount)
        self.give_back(payer, flight.counted, flight.amount)
        if flight.event.kind == Kind.POST:
            self.holds[flight.event.ref].posting = False
            payer.pending += flight.amount
        if flight.event.kind == Kind.REFUND:
            self.refunded[flight.event.ref, flight.event.span] -= flight.amount

    def expire(self, event: Event) -> Answer:
        hold = self.holds.get(event.ref)
        if hold is None or hold.posting:
            raise Refused(Code.NOT_HELD)
        if hold.expires_at > event.at:
            raise Refused(Code.INVALID_EVENT)
        return self.seen_from(self.release(event.ref, hold.amount), Answer(Code.OK, event.at, hold.amount))

    def due(self, now: int) -> set[Id]:
        return {id_ for id_, hold in self.holds.items() if hold.expires_at <= now and not hold.posting}
