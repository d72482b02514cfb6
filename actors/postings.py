"""What a stretch of a partition's journal means for the query store: events, codes and balances become its rows.

Pure and vectorised. Events that name a hold by its id, or a payment in flight by its leg's number, get accounts and
amount from the book as it was before they were applied (`origins`); everything else is in the event, its result and its
balances.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple
from zlib import crc32

import numpy as np
import numpy.typing as npt

from actors import book as book_module
from actors.book import FLIGHTS, HOLDS, SEED, Book, find, hash_id
from actors.compiled import entry_point
from storage import query_store
from storage.events import FIRST_ACCOUNT, FIRST_STATELESS, SETTLEMENT, SLOTS, Code, Kind, ResultFlag
from storage.query_store import LEG_ENTRY, SENT_ENTRY, SETTLED_ENTRY, Chunk, Note

Rows = npt.NDArray[Any]
"""A structured array."""

Mask = npt.NDArray[np.bool_]

ORIGIN: Final = np.dtype(
    [
        ("debit", np.uint64),
        ("credit", np.uint64),
        ("amount", np.int64),
        ("at", np.int64),  # of what is in flight: stamp of its debit
        ("id_hi", np.uint64),  # of what is in flight: its id, or the hold's that it posts
        ("id_lo", np.uint64),
        ("kind", np.uint16),  # HOLD, or the kind of what is in flight; 0 = not found
    ]
)
"""What an event refers to, where only the book knows."""

_HOLD: Final = int(Kind.HOLD)  # Numba freezes module globals of plain int type, not enum members
_POST: Final = int(Kind.POST)
_BY_HOLD: Final = (Kind.POST, Kind.VOID, Kind.EXPIRE)
_BY_FLIGHT: Final = (Kind.SETTLE, Kind.REVERT)
_PLAIN: Final = (Kind.DEPOSIT, Kind.WITHDRAWAL, Kind.TRANSFER, Kind.HOLD)
_ACCOUNT: Final = (Kind.OPEN, Kind.CLOSE, Kind.FREEZE, Kind.UNFREEZE)


class Stretch(NamedTuple):
    """Applied records of one partition, one after the other."""

    rows: Rows  # (n,) EVENT
    results: Rows  # (n,) RESULT, of our own apply
    balances: Rows  # (n,) BALANCE
    origins: Rows  # (n,) ORIGIN
    positions: npt.NDArray[np.int64]  # (n,) offset of each event's record
    notes: Sequence[Note] | None


def origins(book: Book, rows: Rows) -> Rows:
    """(n,) ORIGIN of `rows`: (n,) EVENT that are about to be applied to `book`."""
    found = np.zeros(len(rows), ORIGIN)
    by_hold = _of(rows["kind"], _BY_HOLD)
    by_flight = _of(rows["kind"], _BY_FLIGHT)
    if by_hold.any():
        places = np.flatnonzero(by_hold)
        _hold_origins(book.meta, book.holds, book.hold_heads, rows, places, found)
        _same_record(rows, places, found)
    if by_flight.any():
        _flight_origins(book.meta, book.flights, book.flight_heads, rows, np.flatnonzero(by_flight), found)
    return found


def _finders(source: int) -> tuple[Callable[..., int], Callable[..., int]]:
    """The look-ups, compiled. They close over `source` for Numba's cache on disk, which would not see that the index of
    the book has changed (see `actors/ledger.py`)."""

    @entry_point
    def hold_origins(meta: Any, holds: Any, heads: Any, rows: Any, places: Any, found: Any) -> int:
        for place in places:
            hi, lo = rows[place]["ref_hi"], rows[place]["ref_lo"]
            at = find(meta, HOLDS, 0, holds, heads, hi, lo, hash_id(hi, lo, np.uint64(meta[SEED])))
            if at >= 0:
                found[place]["debit"] = holds[at]["debit"]
                found[place]["credit"] = holds[at]["credit"]
                found[place]["amount"] = holds[at]["amount"]
                found[place]["kind"] = _HOLD
        return source

    @entry_point
    def flight_origins(meta: Any, flights: Any, heads: Any, rows: Any, places: Any, found: Any) -> int:
        for place in places:
            hi, lo = rows[place]["ref_hi"], rows[place]["ref_lo"]
            at = find(meta, FLIGHTS, 0, flights, heads, hi, lo, hash_id(hi, lo, np.uint64(meta[SEED])))
            if at >= 0:
                found[place]["debit"] = flights[at]["debit"]
                found[place]["credit"] = flights[at]["credit"]
                found[place]["amount"] = flights[at]["amount"]
                found[place]["kind"] = flights[at]["kind"]
                found[place]["at"] = flights[at]["at"]
                if flights[at]["kind"] == _POST:
                    found[place]["id_hi"] = flights[at]["ref_hi"]
                    found[place]["id_lo"] = flights[at]["ref_lo"]
                else:
                    found[place]["id_hi"] = flights[at]["id_hi"]
                    found[place]["id_lo"] = flights[at]["id_lo"]
        return source

    return hold_origins, flight_origins


_hold_origins, _flight_origins = _finders(crc32(Path(str(book_module.__file__)).read_bytes()))


def _same_record(rows: Rows, places: npt.NDArray[np.intp], found: Rows) -> None:
    """A hold that was made and ended by one record was not in the book before it, though a namesake may have been."""
    holds = np.flatnonzero(rows["kind"] == Kind.HOLD)
    places = places[np.isin(rows["ref_lo"][places], rows["id_lo"][holds])]
    if not len(places):
        return
    made: dict[tuple[int, int], int] = {}
    ends = set(places.tolist())
    for row in sorted([*holds.tolist(), *ends]):
        if row not in ends:
            made[int(rows["id_hi"][row]), int(rows["id_lo"][row])] = row
            continue
        hold = made.get((int(rows["ref_hi"][row]), int(rows["ref_lo"][row])))
        if hold is not None:
            for name in ("debit", "credit", "amount", "kind"):
                found[name][row] = rows[name][hold]


def chunk(stretch: Stretch, partition: int, partitions: int) -> Chunk:
    """The rows of the query store that `stretch` of `partition` adds."""
    fresh = (stretch.results["code"] < FIRST_STATELESS) & (stretch.results["flags"] & ResultFlag.REPLAYED == 0)
    stretch = stretch if fresh.all() else _select(stretch, fresh)
    wide = _Columns(stretch, partition, partitions)
    plain, full, referring = wide.transfers()
    return Chunk(
        transfers=wide.fill(query_store.TRANSFER, plain),
        transfers_full=wide.fill(query_store.TRANSFER_FULL, full),
        notes_full=wide.notes(full),
        transfers_ref=wide.fill(query_store.TRANSFER_REF, referring),
        notes_ref=wide.notes(referring),
        outcomes=wide.outcomes(),
        entries=wide.entries(),
        account_changes=wide.account_changes(),
    )


def _of(kinds: Rows, wanted: Sequence[Kind]) -> Mask:
    mask: Mask = kinds == wanted[0]
    for kind in wanted[1:]:
        mask |= kinds == kind
    return mask


def _select(stretch: Stretch, mask: Mask) -> Stretch:
    notes = stretch.notes
    return Stretch(
        rows=stretch.rows[mask],
        results=stretch.results[mask],
        balances=stretch.balances[mask],
        origins=stretch.origins[mask],
        positions=stretch.positions[mask],
        notes=None if notes is None else [notes[place] for place in np.flatnonzero(mask).tolist()],
    )


def _pair(high: Rows, low: Rows) -> Rows:
    return np.stack((high, low), axis=1)


class _Columns:
    """A stretch with each event's accounts, amount and id as the query store shows them."""

    def __init__(self, stretch: Stretch, partition: int, partitions: int) -> None:
        rows, self._notes = stretch.rows, stretch.notes
        self.rows, self.balances = rows, stretch.balances
        self.position, self.partition, self.partitions = stretch.positions, partition, partitions
        self.kind, self.at = rows["kind"], rows["at"]
        self.code, self.detail = stretch.results["code"], stretch.results["detail"]
        self.origin = stretch.origins
        self.ok: Mask = self.code == Code.OK
        self.sent: Mask = self.code <= Code.IN_FLIGHT
        known = self.origin["kind"] != 0
        self.ended: Mask = known & self.ok  # of settle and revert: there was something in flight
        self.debit = np.where(known, self.origin["debit"], rows["debit"])
        self.credit = np.where(known, self.origin["credit"], rows["credit"])
        self.amount = np.where(known & (self.kind != Kind.POST), self.origin["amount"], rows["amount"])
        posted = (self.kind == Kind.POST) & self.sent
        self.amount[posted] = self.detail[posted]
        self.debit[self.kind == Kind.DEPOSIT] = SETTLEMENT
        self.credit[self.kind == Kind.WITHDRAWAL] = SETTLEMENT
        self.id = _pair(rows["id_hi"], rows["id_lo"])
        self.ref = _pair(rows["ref_hi"], rows["ref_lo"])
        self.flown: Mask = self.origin["at"] != 0  # of settle and revert
        self.sent_at = np.where(self.flown, self.origin["at"], self.at)
        leg = self.kind == Kind.CREDIT_LEG
        self.sent_at[leg] = rows["span"][leg]

    def transfers(self) -> tuple[Mask, Mask, Mask]:
        """Which events are rows of each shape in query.transfers."""
        plain = _of(self.kind, _PLAIN)
        full = plain & ((self.kind == Kind.HOLD) | (self.detail != 0))
        if self._notes is not None:
            full |= plain & np.fromiter((note is not None for note in self._notes), bool, len(self._notes))
        referring = _of(self.kind, (Kind.POST, Kind.VOID, Kind.REFUND)) | ((self.kind == Kind.EXPIRE) & self.ok)
        return plain & ~full, full, referring

    def fill(self, dtype: np.dtype[np.void], mask: Mask) -> Rows:
        """The masked events as rows of a table of transfers."""
        made = np.zeros(np.count_nonzero(mask), dtype)
        for name in ("at", "position", "debit", "credit", "amount", "id", "kind", "code"):
            made[name] = getattr(self, name)[mask]
        made["partition"] = self.partition
        names = dtype.names or ()
        if "detail" in names:
            made["detail"] = np.where(self.sent, 0, self.detail)[mask]
        if "expires_at" in names:
            held = self.kind[mask] == Kind.HOLD
            made["expires_at"] = np.where(held, made["at"] + self.rows["span"][mask], 0)
        if "ref" in names:
            made["ref"] = self.ref[mask]
            made["ref_at"] = np.where(made["kind"] == Kind.REFUND, self.rows["span"][mask], 0)
            expiry = made["kind"] == Kind.EXPIRE
            made["id"][expiry] = made["ref"][expiry]
        return made

    def notes(self, mask: Mask) -> list[Note]:
        """Their notes."""
        places = np.flatnonzero(mask).tolist()
        return [None] * len(places) if self._notes is None else [self._notes[place] for place in places]

    def outcomes(self) -> Rows:
        """Money from other shards that was taken, and own money that came back, each once."""
        taken = (self.kind == Kind.CREDIT_LEG) & self.ok
        returned = (self.kind == Kind.REVERT) & self.ended
        mask = taken | returned
        made = np.zeros(np.count_nonzero(mask), query_store.OUTCOME)
        for name in ("at", "position", "sent_at"):
            made[name] = getattr(self, name)[mask]
        made["partition"] = self.partition
        made["payer"] = (self.debit[mask] % np.uint64(SLOTS)) % np.uint64(self.partitions)
        made["code"] = np.where(taken, Code.OK, self.rows["reason"])[mask]
        return made

    def entries(self) -> Rows:
        """What happened to customers' accounts, sorted by account."""
        kind, ok = self.kind, self.ok
        paid = _of(kind, (Kind.WITHDRAWAL, Kind.TRANSFER, Kind.REFUND, Kind.POST)) & self.sent
        reserved = _of(kind, (Kind.HOLD, Kind.VOID, Kind.EXPIRE)) & ok
        arrived = (kind == Kind.SETTLE) & self.ended
        returned = (kind == Kind.REVERT) & self.ended
        received = _of(kind, (Kind.DEPOSIT, Kind.TRANSFER, Kind.REFUND, Kind.POST, Kind.CREDIT_LEG)) & ok
        delta = np.where(paid, -self.amount, np.where(returned, self.amount, 0))
        debits = self._side(paid | reserved | arrived | returned, "debit", "credit", delta)
        credits_ = self._side(received, "credit", "debit", self.amount)
        made = np.concatenate((debits, credits_))
        made = made[made["account"] >= FIRST_ACCOUNT]
        return made[np.argsort(made["account"], kind="stable")]

    def _side(self, mask: Mask, side: str, other: str, amount: Rows) -> Rows:
        made = np.zeros(np.count_nonzero(mask), query_store.ENTRY)
        made["account"], made["other"] = getattr(self, side)[mask], getattr(self, other)[mask]
        for name in ("at", "sent_at", "position", "kind"):
            made[name] = getattr(self, name)[mask]
        made["amount"] = amount[mask]
        made["balance"] = self.balances[f"{side}_posted"][mask]
        made["pending"] = self.balances[f"{side}_pending"][mask]
        made["partition"] = self.partition
        made["transfer"] = self.id[mask]
        leg = made["kind"] == Kind.CREDIT_LEG
        made["kind"][leg] = LEG_ENTRY + self.rows["reason"][mask][leg]
        ended = leg & (self.rows["reason"][mask] == Kind.POST)
        made["transfer"][ended] = self.ref[mask][ended]
        by_hold = _of(made["kind"], _BY_HOLD)
        made["transfer"][by_hold] = self.ref[mask][by_hold]
        flown = self.flown[mask]
        made["transfer"][flown] = _pair(self.origin["id_hi"], self.origin["id_lo"])[mask][flown]
        made["kind"][self.code[mask] == Code.IN_FLIGHT] += SENT_ENTRY
        arrived = made["kind"] == Kind.SETTLE
        made["kind"][arrived] = SETTLED_ENTRY + self.origin["kind"][mask][arrived]
        return made

    def account_changes(self) -> Rows:
        """Accounts that were opened, closed, frozen or freed."""
        mask = _of(self.kind, _ACCOUNT) & self.ok
        made = np.zeros(np.count_nonzero(mask), query_store.ACCOUNT_CHANGE)
        made["account"] = self.rows["debit"][mask]
        for name in ("at", "position", "kind"):
            made[name] = getattr(self, name)[mask]
        made["partition"] = self.partition
        return made
