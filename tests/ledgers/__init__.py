"""Small ledgers of each format and rules version, kept as data: whatever comes later must open them and go on.

`python -m tests.ledgers` makes the one of today's version if it is not there. A ledger that is kept is never made anew.
"""

from __future__ import annotations

import base64
import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from actors import ledger
from actors.book import ACCOUNTS, TOP
from actors.recovery import Replay, Windows
from storage import ids, record
from storage.events import BALANCE, EVENT, NO_LIMIT, RESULT, Code, Flag, Kind
from storage.journal import Stored
from storage.record import Chain

DIRECTORY: Final = Path(__file__).parent
PARTITIONS: Final = 2
KEY: Final = b"of a ledger that is kept"
CAPACITY: Final = ledger.Capacity(accounts=256, ids=64, holds=64, in_flight=64, refunds=64, outbox=32)
NOON: Final = 1_798_200_000 * 10**9
SECOND: Final = 10**9
WINDOWS: Final = Windows(id_skew_ns=SECOND)


@dataclass(frozen=True)
class Kept:
    """A ledger as it lies in a file."""

    logs: list[list[Stored]]
    balances: dict[int, tuple[int, int]]
    """Account → posted and pending, centavos."""
    remembered: tuple[int, int]
    """An id that its shard still remembers, of a transfer from account 2048 to 4096 of 50 centavos."""


def files() -> list[Path]:
    """All that are kept."""
    return sorted(DIRECTORY.glob("*.json.gz"))


def load(path: Path) -> Kept:
    """Read one."""
    content = json.loads(gzip.decompress(path.read_bytes()))
    logs = [
        [
            Stored(offset, one["epoch"], one["open"], base64.b64decode(one["payload"]))
            for offset, one in enumerate(partition)
        ]
        for partition in content["partitions"]
    ]
    balances = {int(account): (posted, pending) for account, (posted, pending) in content["balances"].items()}
    return Kept(logs, balances, tuple(content["remembered"]))


def current() -> Path:
    """Where the ledger of today's version lies."""
    return DIRECTORY / f"format-{record.FORMAT}-rules-{ledger.RULES}.json.gz"


class _Partition:
    """One partition's log and the book that goes with it."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.log: list[Stored] = []
        self.replay = Replay.from_start(number, PARTITIONS, WINDOWS, KEY)
        self.last = NOON
        self._chain = Chain(KEY)
        self._sequence = 0
        self._epoch = -1
        self._made = 0

    def open(self, capacity: ledger.Capacity = CAPACITY) -> None:
        """A writer takes over."""
        self._epoch = len(self.log)
        payload = record.encode_open(
            self.number, {"name": f"shard-{self.number:03d}"}, rules=ledger.RULES, capacity=capacity._asdict()
        )
        stored = Stored(self._epoch, self._epoch, True, payload)
        self._chain.absorb_open(self._epoch, payload)
        self.log.append(stored)
        self.replay.opened(record.decode_open(stored, self.number))

    def id(self, slot: int, version: int = 7) -> tuple[int, int]:
        """A fresh one."""
        self._made += 1
        return (self.last // 10**6 << 16) | version << 12, 1 << 63 | self._made << 12 | slot

    def apply(self, *rows: np.ndarray, notes: list[bytes | None] | None = None) -> np.ndarray:
        """One record. Returns the results."""
        batch = np.concatenate(rows)
        self.last = ledger.stamp(batch, self.last + SECOND, self.last)
        results, balances = np.zeros(len(batch), RESULT), np.zeros(len(batch), BALANCE)
        ledger.apply(self.replay.book, batch, results, balances, -10_800)
        keep = (results["code"] < Code.ID_CONFLICT) & (results["flags"] == 0)
        assert keep.all()
        payload = record.encode(
            batch, results, notes, partition=self.number, sequence=self._sequence, epoch=self._epoch,
            utc_offset_s=-10_800, chain=self._chain,
        )  # fmt: skip
        self._sequence += 1
        self.log.append(Stored(len(self.log), self._epoch, False, payload))
        return results

    def row(
        self, kind: Kind, *, id_: tuple[int, int] | None = None, ref: tuple[int, int] = (0, 0), **columns: int
    ) -> Any:
        """(1,) EVENT."""
        row = np.zeros(1, EVENT)
        decides = columns.get("credit" if kind is Kind.DEPOSIT else "debit", ref[1] & 0xFFF) % 1024
        row["id_hi"], row["id_lo"] = id_ or self.id(decides)
        row["ref_hi"], row["ref_lo"] = ref
        row["kind"] = kind
        for name, value in columns.items():
            row[name] = value
        return row


def make() -> Kept:
    """Every kind of event, refusals and chains, over two partitions and three writers each."""
    one, two = _Partition(0), _Partition(1)
    a, b, c = 2 << 10, 4 << 10, 2 << 10 | 1
    unlimited: dict[str, Any] = {"amount": NO_LIMIT, "credit": 7}
    one.open()
    two.open()
    one.apply(*[one.row(Kind.OPEN, debit=n, ref=(NO_LIMIT, NO_LIMIT), **unlimited) for n in (a, b, 6 << 10)])
    two.apply(two.row(Kind.OPEN, debit=c, ref=(NO_LIMIT, NO_LIMIT), **unlimited))
    one.apply(one.row(Kind.DEPOSIT, credit=a, amount=10_000), notes=[b'{"description":"salary"}'])
    hold, gone, late = one.id(0), one.id(0), one.id(0)
    one.apply(
        one.row(Kind.TRANSFER, debit=a, credit=b, amount=500),
        one.row(Kind.TRANSFER, debit=a, credit=c, amount=200),
        one.row(Kind.TRANSFER, debit=a, credit=8 << 10 | 1, amount=300),
        one.row(Kind.TRANSFER, debit=a, credit=b, amount=10**9),
        one.row(Kind.WITHDRAWAL, debit=b, amount=100),
        one.row(Kind.HOLD, id_=hold, debit=a, credit=c, amount=400, span=3600 * SECOND),
        one.row(Kind.HOLD, id_=gone, debit=a, credit=b, amount=40, span=3600 * SECOND),
        one.row(Kind.HOLD, id_=late, debit=a, credit=b, amount=60, span=5 * SECOND),
        one.row(Kind.BIND, debit=a, check=99),
    )
    legs = ledger.in_flight(one.replay.book)
    told = two.apply(legs)
    one.apply(
        *[
            one.row(
                Kind.REVERT if code else Kind.SETTLE, ref=(1, int(leg["total"])), reason=int(code or leg["reason"]),
                id_=(int(leg["id_hi"]), int(leg["id_lo"])),
            )
            for leg, code in zip(legs, told["code"], strict=True)
        ]
    )  # fmt: skip
    one.open(CAPACITY._replace(ids=48, holds=32))
    one.apply(one.row(Kind.POST, ref=hold, amount=150), one.row(Kind.VOID, ref=gone))
    one.last += 60 * SECOND
    one.apply(ledger.due_holds(one.replay.book, one.last, 9))
    one.apply(
        one.row(Kind.REFUND, debit=b, credit=a, amount=50, total=500, span=NOON + 4 * SECOND, ref=(9, 9)),
        one.row(Kind.SET_LIMITS, debit=b, amount=100, ref=(1_000, 1_000), total=1200 << 16 | 360, span=86_400 * SECOND),
        one.row(Kind.FREEZE, debit=b),
        one.row(Kind.UNFREEZE, debit=b),
        one.row(Kind.CLOSE, debit=6 << 10),
    )
    for amounts in ((10, 20), (30, 10**9)):
        chain = [one.row(Kind.TRANSFER, debit=a, credit=b, amount=amount) for amount in amounts]
        chain[0]["flags"] = Flag.LINKED
        one.apply(*chain)
    two.open()
    leg = ledger.in_flight(one.replay.book)
    leg["check"] = 2
    two.apply(leg)  # the payer's shard has not heard of it yet
    for _ in range(50):  # the memory of ids goes round
        one.apply(one.row(Kind.TRANSFER, debit=a, credit=b, amount=1))
    remembered = ids.in_slot(one.id(0), 0)
    one.apply(one.row(Kind.TRANSFER, id_=remembered, debit=a, credit=b, amount=50))
    balances: dict[int, tuple[int, int]] = {}
    for partition in (one, two):
        accounts = partition.replay.book.accounts[2 : partition.replay.book.meta[ACCOUNTS + TOP]]
        balances |= {int(n["id"]): (int(n["posted"]), int(n["debits_pending"])) for n in accounts}
    return Kept([one.log, two.log], balances, remembered)


def save(kept: Kept, path: Path) -> None:
    """Write one."""
    content = {
        "partitions": [
            [
                {"epoch": one.epoch, "open": one.is_open, "payload": base64.b64encode(one.payload).decode()}
                for one in log
            ]
            for log in kept.logs
        ],
        "balances": kept.balances,
        "remembered": kept.remembered,
    }
    path.write_bytes(gzip.compress(json.dumps(content, indent=1).encode(), mtime=0))
