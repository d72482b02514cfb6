"""Money between shards held against itself: silent while it is sound, however ids repeat, and plain when it is not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from actors import postings
from cluster.verify_legs import Legs, compare
from storage import ids
from storage.events import EVENT, RESULT, Code, Kind
from storage.ids import Id

PARTITIONS = 4
ID = ids.derive("the one id of everything")


def account(partition: int, number: int = 5) -> int:
    return number << 10 | partition


class Shards:
    """Four partitions' journals, row by row."""

    def __init__(self) -> None:
        self.legs = [Legs(partition, PARTITIONS) for partition in range(PARTITIONS)]

    def row(
        self, partition: int, kind: Kind, code: Code = Code.OK, *, id_: Id = ID, detail: int = 0, held_for: int = 0,
        **columns: int,
    ) -> None:  # fmt: skip
        rows, results, origins = np.zeros(1, EVENT), np.zeros(1, RESULT), np.zeros(1, postings.ORIGIN)
        for name, value in {"kind": kind, "id_hi": id_[0], "id_lo": id_[1], **columns}.items():
            rows[name] = value
        results["code"], results["detail"] = code, detail
        origins["credit"] = held_for
        self.legs[partition].follow(rows, results, origins)

    def send(self, source: int, to: int, amount: int, at: int) -> None:
        self.row(source, Kind.TRANSFER, Code.IN_FLIGHT, debit=account(source), credit=account(to), amount=amount, at=at)

    def take(self, source: int, to: int, number: int, amount: int, at: int, code: Code = Code.OK) -> None:
        self.row(
            to, Kind.CREDIT_LEG, code, debit=account(source), credit=account(to), total=number, amount=amount, span=at
        )

    def end(self, source: int, to: int, number: int, amount: int, code: Code = Code.OK) -> None:
        settled = code is Code.OK
        self.row(
            source, Kind.SETTLE if settled else Kind.REVERT, ref_hi=to, ref_lo=number, detail=amount,
            reason=Kind.TRANSFER if settled else code,
        )  # fmt: skip


@pytest.fixture
def shards() -> Shards:
    return Shards()


def sound(shards: Shards) -> tuple[int, int]:
    """Payments taken and centavos under way, when nothing differs and nothing moves."""
    found = compare(shards.legs)
    assert (found.differences, found.moving) == ([], 0)
    return found.taken, found.under_way


def test_one_id_from_two_shards_contradicts_nothing(shards: Shards) -> None:
    shards.send(0, 2, 10, at=1)
    shards.send(1, 2, 20, at=1)
    shards.take(0, 2, 1, 10, at=1)
    shards.take(1, 2, 1, 20, at=1, code=Code.CREDIT_ACCOUNT_CLOSED)
    assert sound(shards) == (1, 20)
    shards.end(0, 2, 1, 10)
    shards.end(1, 2, 1, 20, Code.CREDIT_ACCOUNT_CLOSED)
    assert sound(shards) == (1, 0)


def test_an_id_that_comes_again_contradicts_nothing(shards: Shards) -> None:
    for number, (amount, code) in enumerate([(10, Code.OVERFLOW), (20, Code.OK), (30, Code.OK)], 1):
        shards.send(0, 1, amount, at=number)
        shards.take(0, 1, number, amount, at=number, code=code)
    assert sound(shards) == (2, 10)
    shards.end(0, 1, 3, 30)
    shards.end(0, 1, 1, 10, Code.OVERFLOW)
    assert sound(shards) == (2, 0)


def test_what_is_not_heard_of_yet_is_under_way(shards: Shards) -> None:
    shards.send(0, 1, 10, at=1)
    shards.send(0, 1, 5, at=2)
    shards.send(0, 3, 300, at=3)
    assert sound(shards) == (0, 315)
    shards.take(0, 1, 1, 10, at=1)
    assert sound(shards) == (1, 305)


def test_a_post_is_numbered_among_the_payments_to_its_holds_payee(shards: Shards) -> None:
    shards.send(0, 3, 10, at=1)
    shards.row(0, Kind.POST, Code.IN_FLIGHT, at=2, detail=7, held_for=account(3))
    shards.take(0, 3, 1, 10, at=1)
    shards.take(0, 3, 2, 7, at=2)
    assert sound(shards) == (2, 0)


def test_what_repeats_or_changes_nothing_is_not_counted(shards: Shards) -> None:
    shards.send(0, 1, 10, at=1)
    shards.take(0, 1, 1, 10, at=1)
    shards.end(0, 1, 1, 10)
    shards.end(0, 1, 1, 0)
    shards.end(0, 2, 9, 0, Code.OVERFLOW)
    assert sound(shards) == (1, 0)


def test_a_partition_that_was_read_less_far_is_to_be_read_on(shards: Shards) -> None:
    shards.take(0, 1, 1, 10, at=1)
    assert compare(shards.legs).moving == 1
    shards.send(0, 1, 10, at=1)
    shards.send(0, 1, 20, at=2)
    shards.end(0, 1, 2, 20, Code.OVERFLOW)
    assert compare(shards.legs).moving == 1
    shards.take(0, 1, 2, 20, at=2, code=Code.OVERFLOW)
    assert sound(shards) == (1, 0)


def _of_another_amount(shards: Shards) -> None:
    shards.take(0, 1, 2, 21, at=2)


def _of_another_payment(shards: Shards) -> None:
    shards.take(0, 1, 2, 20, at=3)


def _twice(shards: Shards) -> None:
    shards.take(0, 1, 1, 10, at=1)


def _too_early(shards: Shards) -> None:
    shards.take(0, 1, 3, 30, at=3)


def _returned_though_taken(shards: Shards) -> None:
    shards.end(0, 1, 1, 10, Code.OVERFLOW)


def _settled_though_refused(shards: Shards) -> None:
    shards.take(0, 1, 2, 20, at=2, code=Code.OVERFLOW)
    shards.end(0, 1, 2, 20)


def _returned_in_part(shards: Shards) -> None:
    shards.take(0, 1, 2, 20, at=2, code=Code.OVERFLOW)
    shards.end(0, 1, 2, 19, Code.OVERFLOW)


def _never_begun(shards: Shards) -> None:
    shards.end(0, 1, 4, 20, Code.OVERFLOW)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_of_another_amount, "payment 2 from partition 0 to partition 1 is 21 centavos sent at 2 where it was taken"),
        (_of_another_payment, "sent at 3 where it was taken, but 20 sent at 2"),
        (_twice, "payment 1 from partition 0 to partition 1 was taken where number 2 should be"),
        (_too_early, "payment 3 from partition 0 to partition 1 was taken where number 2 should be"),
        (_returned_though_taken, "payment 1 from partition 0 to partition 1 was ended as overflow of 10 centavos"),
        (_settled_though_refused, "was ended as ok of 20 centavos, but was decided as overflow"),
        (_returned_in_part, "was ended as overflow of 19 centavos, but was decided as overflow of 20"),
        (_never_begun, "payment 4 from partition 0 to partition 1 was ended, but never begun"),
    ],
)
def test_every_kind_of_fault_is_named(shards: Shards, damage: Any, said: str) -> None:
    for at, amount in enumerate((10, 20, 30), 1):
        shards.send(0, 1, amount, at=at)
    shards.take(0, 1, 1, 10, at=1)
    assert compare(shards.legs).differences == []
    damage(shards)
    (words,) = compare(shards.legs).differences
    assert said in words


def test_a_crowd_of_faults_is_cut_short(shards: Shards) -> None:
    for at in range(1, 100):
        shards.send(0, 1, 10, at=at)
        shards.take(0, 1, at, 11, at=at)
    assert len(compare(shards.legs).differences) < 10
