"""Money between shards, leg by leg: what `razao verify` holds the two halves of every such payment against.

A payer's partition numbers its payments to each other one, 1, 2, 3 …; the payee's takes them in that order, and the
payer's ends each as the payee's decided. (payer's partition, payee's partition, number) names a leg. Ids have no part
in it: they may come again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from storage.events import SLOTS, Code, Kind, ResultFlag

Rows = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]

LEG: Final = np.dtype(
    [
        ("other", np.uint16),  # the partition on the other side
        ("code", np.uint16),  # what the payee's partition decided; of a debit 0
        ("number", np.int64),
        ("amount", np.int64),  # centavos
        ("at", np.int64),  # of the debit, ns; of an end 0
    ]
)
_UNHEARD: Final = -1
_TOLD_MAX: Final = 5


class Legs:
    """What one partition's journal says of them, in its order."""

    def __init__(self, partition: int, partitions: int) -> None:
        self.partition = partition
        self.partitions = partitions
        self._counts = np.zeros(partitions, np.int64)
        self._sent: list[Rows] = [np.zeros(0, LEG)]
        self._taken: list[Rows] = [np.zeros(0, LEG)]
        self._ended: list[Rows] = [np.zeros(0, LEG)]

    @property
    def sent(self) -> Rows:
        """(n,) LEG: debits of payments to other partitions."""
        return np.concatenate(self._sent)

    @property
    def taken(self) -> Rows:
        """(n,) LEG: other partitions' payments that were decided here, refused ones too."""
        return np.concatenate(self._taken)

    @property
    def ended(self) -> Rows:
        """(n,) LEG: own payments that were settled or came back."""
        return np.concatenate(self._ended)

    def follow(self, rows: Rows, results: Rows, origins: Rows) -> None:
        """Take in a record's (n,) EVENT, RESULT and ORIGIN (`actors.postings.origins`)."""
        kind, code = rows["kind"], results["code"]
        fresh = results["flags"] & ResultFlag.REPLAYED == 0
        self._send(rows, results, origins, (code == Code.IN_FLIGHT) & fresh)
        leg = (kind == Kind.CREDIT_LEG) & fresh
        if leg.any():
            made = _legs(leg, rows["total"], rows["amount"])
            made["other"], made["code"], made["at"] = self._home(rows["debit"][leg]), code[leg], rows["span"][leg]
            self._taken.append(made)
        ended = ((kind == Kind.SETTLE) | (kind == Kind.REVERT)) & (results["detail"] != 0)
        if ended.any():
            made = _legs(ended, rows["ref_lo"], results["detail"])
            made["other"] = rows["ref_hi"][ended]
            made["code"] = np.where(kind == Kind.REVERT, rows["reason"], Code.OK)[ended]
            self._ended.append(made)

    def _send(self, rows: Rows, results: Rows, origins: Rows, sent: Mask) -> None:
        if not sent.any():
            return
        # A post names its hold, which says whose money it is; 0 posts the whole of it, the result says how much.
        post = rows["kind"] == Kind.POST
        made = _legs(sent, np.zeros(len(rows)), np.where(post, results["detail"], rows["amount"]))
        made["other"] = self._home(np.where(post, origins["credit"], rows["credit"])[sent])
        made["at"] = rows["at"][sent]
        for other in np.unique(made["other"]).tolist():
            those = made["other"] == other
            count = int(those.sum())
            made["number"][those] = self._counts[other] + np.arange(1, count + 1)
            self._counts[other] += count
        self._sent.append(made)

    def _home(self, accounts: Rows) -> Rows:
        return accounts % np.uint64(SLOTS) % np.uint64(self.partitions)


def _legs(mask: Mask, numbers: Rows, amounts: Rows) -> Rows:
    made = np.zeros(np.count_nonzero(mask), LEG)
    made["number"], made["amount"] = numbers[mask], amounts[mask]
    return made


class Compared(NamedTuple):
    """What came of it."""

    differences: list[str]
    moving: int  # legs of which the other partition was read no further than before them
    taken: int
    under_way: int  # centavos: not heard of, or refused and not yet back


def compare(parts: Sequence[Legs]) -> Compared:
    """Hold all partitions of a ledger, each read up to some offset of its own, against each other.

    Every leg must answer the debit of its number, in order and to the centavo, and end as it was decided.
    """
    partitions = len(parts)
    sent, sent_pair = _paired(((part.partition, part.sent) for part in parts), partitions, payer_is_own=True)
    taken, taken_pair = _paired(((part.partition, part.taken) for part in parts), partitions, payer_is_own=False)
    ended, ended_pair = _paired(((part.partition, part.ended) for part in parts), partitions, payer_is_own=True)
    counts = np.bincount(sent_pair, minlength=partitions**2)
    starts = np.cumsum(counts) - counts
    words = _out_of_order(taken, taken_pair, partitions)

    answers = (taken["number"] >= 1) & (taken["number"] <= counts[taken_pair])
    moving = int((taken["number"] > counts[taken_pair]).sum())
    places = (starts[taken_pair] + taken["number"] - 1)[answers]
    decided = np.full(len(sent), _UNHEARD, np.int64)
    decided[places] = taken["code"][answers]
    other = (sent["amount"][places] != taken["amount"][answers]) | (sent["at"][places] != taken["at"][answers])
    words += _told(
        other,
        lambda pair, leg, debit: (
            f"{_name(pair, leg, partitions)} is {leg['amount']} centavos sent at {leg['at']} where it was taken, but"
            f" {debit['amount']} sent at {debit['at']} where it came from"
        ),
        taken_pair[answers], taken[answers], sent[places],
    )  # fmt: skip

    begun = (ended["number"] >= 1) & (ended["number"] <= counts[ended_pair])
    words += _told(
        ~begun, lambda pair, leg: f"{_name(pair, leg, partitions)} was ended, but never begun", ended_pair, ended
    )
    ended, ended_pair = ended[begun], ended_pair[begun]
    places = starts[ended_pair] + ended["number"] - 1
    said = decided[places]
    moving += int((said == _UNHEARD).sum())
    other = (said != _UNHEARD) & ((said != ended["code"]) | (sent["amount"][places] != ended["amount"]))
    words += _told(
        other,
        lambda pair, leg, code, amount: (
            f"{_name(pair, leg, partitions)} was ended as {_code(leg['code'])} of {leg['amount']} centavos,"
            f" but was decided as {_code(code)} of {amount}"
        ),
        ended_pair, ended, said, sent["amount"][places],
    )  # fmt: skip
    back = np.zeros(len(sent), bool)
    back[places[ended["code"] != Code.OK]] = True
    away = (decided != Code.OK) & ~back
    return Compared(words, moving, int((decided == Code.OK).sum()), sum(sent["amount"][away].tolist()))


def _paired(parts: Iterable[tuple[int, Rows]], partitions: int, *, payer_is_own: bool) -> tuple[Rows, Rows]:
    """All legs by (payer's, payee's) partition, each pair's in the order of its journal; and the pair of each."""
    made, pairs = [], []
    for own, legs in parts:
        other = legs["other"].astype(np.int64)
        made.append(legs)
        pairs.append(own * partitions + other if payer_is_own else other * partitions + own)
    legs, pair = np.concatenate(made), np.concatenate(pairs)
    order = np.argsort(pair, kind="stable")
    return legs[order], pair[order]


def _out_of_order(taken: Rows, pair: Rows, partitions: int) -> list[str]:
    counts = np.bincount(pair, minlength=partitions**2)
    wanted = np.arange(1, len(pair) + 1) - (np.cumsum(counts) - counts)[pair]
    return _told(
        taken["number"] != wanted,
        lambda one, leg, number: f"{_name(one, leg, partitions)} was taken where number {number} should be",
        pair, taken, wanted,
    )  # fmt: skip


def _name(pair: int, leg: Any, partitions: int) -> str:
    return f"payment {leg['number']} from partition {pair // partitions} to partition {pair % partitions}"


def _code(number: int) -> str:
    return Code(int(number)).name.lower().replace("_", "-")


def _told(wrong: Mask, words: Callable[..., str], *columns: Rows) -> list[str]:
    """`words` of the first wrong rows, and how many more there are."""
    places = np.flatnonzero(wrong)
    told = [words(*(column[place] for column in columns)) for place in places[:_TOLD_MAX].tolist()]
    return told if len(places) <= _TOLD_MAX else [*told, f"and {len(places) - _TOLD_MAX} more like that"]
