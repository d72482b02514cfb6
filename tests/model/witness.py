"""What the journals of a simulated world say, read as they grow: the truth that every answer is held against.

Each partition's records go through the reference, which must give the codes that are journaled; so this knows what was
decided of every id, where money is, and what each account had after each record.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from actors.book import Capacity
from actors.recovery import Windows
from storage.events import FIRST_STATELESS, Code, Kind, partition_of
from storage.journal import Stored
from storage.record import Opened, Position, Reader, Record
from tests.model.reference import OF_SHARDS, Event, Id, Ledger, microsecond

_NEVER: Final = 2**63


@dataclass(slots=True)
class Decision:
    """One use of an id, as its shard has journaled it."""

    event: Event
    chained: bool
    partition: int
    offset: int
    place: int  # among the record's rows
    code: int
    leg: tuple[int, int, int] | None = None  # payer's partition, payee's, number
    outcome: int | None = None  # of the leg, in the payer's journal

    @property
    def content(self) -> tuple[int, ...]:
        return self.event.content(self.chained)


@dataclass(slots=True)
class Leg:
    """What the payee's shard has journaled of a leg."""

    event: Event
    offset: int
    code: int


class Partition:
    """One log, followed."""

    def __init__(self, reader: Reader, ledger: Ledger) -> None:
        self.reader = reader
        self.ledger = ledger
        self.record = -1  # offset of the newest that counts
        self.entries: list[
            tuple[Record | Opened | None, Position]
        ] = []  # by offset; and where a reader stands after it
        self.balances: dict[int, list[tuple[int, int, int]]] = defaultdict(list)  # account -> offset, posted, pending

    def note_balances(self) -> None:
        for number, account in self.ledger.accounts.items():
            seen = self.balances[number]
            if not seen or seen[-1][1:] != (account.posted, account.pending):
                seen.append((self.record, account.posted, account.pending))


class Witness:
    """Follows all logs. `logs`: one list of stored records a partition."""

    def __init__(self, logs: list[list[Stored]], windows: Windows, reader: Callable[[int], Reader]) -> None:
        self.decisions: dict[Id, list[Decision]] = defaultdict(list)
        self.legs: dict[tuple[int, int, int], Leg] = {}  # payer's partition, payee's, number
        self.sent: dict[tuple[int, int, int], Decision] = {}
        self.rows = 0
        self._logs = logs
        self.partitions = [
            Partition(reader(number), Ledger(number, len(logs), *windows, Capacity())) for number in range(len(logs))
        ]
        self._unproven: list[Decision] = []

    def catch_up(self) -> None:
        """Read what is new in all logs."""
        for number, log in enumerate(self._logs):
            partition = self.partitions[number]
            for stored in log[partition.reader.position.offset :]:
                entry: Record | Opened | None = partition.reader.take(stored)
                if stored.is_open:
                    entry = partition.reader.newest
                partition.entries.append((entry, partition.reader.position))
                if isinstance(entry, Record):
                    self._take(number, entry)
                elif entry is not None:
                    partition.ledger.resize(Capacity(**entry.capacity))
        unproven, self._unproven = self._unproven, []
        for decision in unproven:
            assert decision.leg is not None
            leg = self.legs.get(decision.leg)
            assert leg is not None, f"{decision} has an outcome that nobody decided"
            assert leg.code == decision.outcome, f"{decision} where the payee's journal says {leg}"

    def _take(self, number: int, found: Record) -> None:
        partition = self.partitions[number]
        partition.record = found.offset
        events = [Event.of(row) for row in found.rows]
        before = dict(partition.ledger.flights)
        answers = partition.ledger.apply(events, found.utc_offset_s)
        launched = {flight.event.at: leg for leg, flight in partition.ledger.flights.items() if leg not in before}
        linked = False
        for place, (event, answer) in enumerate(zip(events, answers, strict=True)):
            where = f"partition {number}, offset {found.offset}, row {place}"
            journaled = (int(found.codes[place]), int(found.details[place]))
            assert (answer.code, answer.detail) == journaled, f"{where}: {event} is {answer}, journaled as {journaled}"
            assert not answer.replayed, f"{where}: {event} is journaled a second time"
            assert answer.code < FIRST_STATELESS, f"{where}: {event} has no effect"
            chained, linked = linked or bool(event.flags & 1), bool(event.flags & 1)
            if event.kind in {Kind.SETTLE, Kind.REVERT}:
                if event.ref in before:
                    self._land(number, event)
                    del before[event.ref]
            elif event.kind == Kind.CREDIT_LEG:
                self._credit(number, found.offset, event, answer.code)
            elif event.kind not in OF_SHARDS:
                decision = Decision(event, chained, number, found.offset, place, answer.code)
                if answer.code == Code.IN_FLIGHT:
                    decision.leg = (number, *launched[event.at])
                    self.sent[decision.leg] = decision
                self.decisions[event.id].append(decision)
        self.rows += len(events)
        partition.note_balances()

    def _land(self, number: int, event: Event) -> None:
        decision = self.sent[(number, *event.ref)]
        assert decision.outcome is None, f"{decision} landed twice"
        decision.outcome = Code.OK if event.kind == Kind.SETTLE else event.reason
        self._unproven.append(decision)

    def _credit(self, number: int, offset: int, event: Event, code: int) -> None:
        source = partition_of(event.debit, len(self._logs))
        leg = (source, number, event.total)
        assert leg not in self.legs, f"{event} was decided twice"
        self.legs[leg] = Leg(event, offset, code)

    # What can be asked.

    def decision(self, id_: Id, at: int) -> Decision | None:
        """The use of an id that was stamped in the microsecond of `at`."""
        for decision in self.decisions[id_]:
            if microsecond(decision.event.at) == microsecond(at):
                return decision
        return None

    def final(self, decision: Decision) -> int | None:
        """What a caller may be told; None while nobody may be told."""
        if decision.code != Code.IN_FLIGHT:
            return decision.code
        assert decision.leg is not None
        leg = self.legs.get(decision.leg)
        if leg is not None and leg.code == Code.OK:
            return Code.OK
        return decision.outcome  # a refusal stands when the money is back

    def balance(self, account: int, offset: int) -> tuple[int, int] | None:
        """Posted and pending after the record at `offset` of its partition; None when it was not there yet."""
        history = self.partitions[partition_of(account, len(self._logs))].balances[account]
        place = bisect_right(history, (offset, _NEVER, _NEVER))
        return None if place == 0 else history[place - 1][1:]

    def check_at_rest(self) -> None:
        """Everything has landed: legs dense and decided alike on both sides, no money between shards."""
        for source in range(len(self._logs)):
            for target in range(len(self._logs)):
                sent = sorted(leg[2] for leg in self.sent if leg[:2] == (source, target))
                heard = sorted(leg[2] for leg in self.legs if leg[:2] == (source, target))
                assert sent == heard == list(range(1, len(sent) + 1)), f"legs of {source} to {target}: {sent}, {heard}"
        for key, decision in self.sent.items():
            leg = self.legs[key]
            assert leg.code == decision.outcome, f"{decision}, {leg}"
            assert (leg.event.id, leg.event.span) == (decision.event.id, decision.event.at)
        ledgers = [partition.ledger for partition in self.partitions]
        assert not any(ledger.flights or ledger.holds for ledger in ledgers)
        assert sum(ledger.transit.posted for ledger in ledgers) == 0
        for ledger in ledgers:
            own = sum(account.posted for account in ledger.accounts.values())
            assert own + ledger.settlement.posted + ledger.transit.posted == 0
