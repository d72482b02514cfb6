"""What a shard keeps of what it has done lately, held against a plain list of everything."""

from __future__ import annotations

import random

import numpy as np
import pytest

from actors.recent import ROWS_TOLD, Recent, decider
from storage import ids
from storage.events import EVENT, RESULT, Code, Kind
from storage.found import Found
from storage.ids import Id

Rows = np.ndarray
REFER = (Kind.POST, Kind.VOID, Kind.EXPIRE, Kind.REFUND)


def row(kind: Kind, id_: Id, at: int, *, ref: Id = (0, 0), **columns: int) -> Rows:
    made = np.zeros(1, EVENT)
    made["kind"], made["at"] = kind, at
    made["id_hi"], made["id_lo"] = id_
    made["ref_hi"], made["ref_lo"] = ref
    for name, value in columns.items():
        made[name] = value
    return made


def answered(rows: Rows, code: Code = Code.OK) -> Rows:
    results = np.zeros(len(rows), RESULT)
    results["at"], results["code"] = rows["at"], code
    return results


def kept(since: int = 0, rows_max: int = 1 << 16, bytes_max: int = 1 << 24) -> Recent:
    return Recent(since, rows_max=rows_max, bytes_max=bytes_max)


def stamps(found: Found) -> list[int]:
    return sorted(found.rows["at"].tolist())


def is_about(one: Rows, id_: Id) -> bool:
    own = (int(one["id_hi"]), int(one["id_lo"])) == id_
    return own or (int(one["kind"]) in REFER and (int(one["ref_hi"]), int(one["ref_lo"])) == id_)


@pytest.mark.parametrize("seed", range(8))
def test_everything_from_where_it_begins_is_found_and_nothing_else(seed: int) -> None:
    """Whatever the sizes of the records, however often something was dropped, and though ids often come again."""
    chance = random.Random(seed)
    recent = kept(5, rows_max=chance.choice([40, 2_000, 10**5]))
    names = [ids.in_slot(ids.derive(str(n)), n % 3) for n in range(300)]
    names += [(high, names[0][1]) for high, _ in names[:20]]  # the same low half
    everything: list[tuple[int, Rows, bytes | None]] = []
    at = 0
    for offset in range(5, 80):
        parts = []
        for _ in range(chance.choice([1, 3, 30, 400])):
            at += 1
            kind = chance.choice([Kind.TRANSFER, Kind.HOLD, Kind.SETTLE, Kind.OPEN, *REFER])
            parts.append(row(kind, chance.choice(names), at, ref=chance.choice(names)))
        rows = np.concatenate(parts)
        notes = [b"%d" % n if n % 2 else None for n in rows["at"].tolist()] if chance.random() < 0.5 else None
        recent.add(rows, answered(rows), notes, offset)
        everything += [(offset, one, None if notes is None else notes[n]) for n, one in enumerate(rows)]
        for id_ in chance.sample(names, 5):
            found = recent.find(id_, offset + 1)
            assert found.head == offset + 1
            wanted = {int(one["at"]): (of, note) for of, one, note in everything if is_about(one, id_)}
            wanted = {key: value for key, value in wanted.items() if value[0] >= found.since}
            got = zip(found.rows["at"].tolist(), found.offsets.tolist(), found.notes, strict=True)
            if found.since == found.head:
                assert len(found.rows) == 0
            else:
                assert {key: value for key, *value in ((a, o, n) for a, o, n in got)} == {
                    key: list(value) for key, value in wanted.items()
                }
                assert found.results["at"].tolist() == found.rows["at"].tolist()
    assert 5 <= recent.since < 80


def test_it_keeps_at_least_half_of_what_it_may_and_at_most_all_of_it() -> None:
    recent = kept(7, rows_max=100)
    name = ids.derive("a")
    for offset in range(7, 500):
        rows = row(Kind.TRANSFER, ids.derive(str(offset)) if offset != 300 else name, offset)
        recent.add(rows, answered(rows), None, offset)
        assert recent.since == 7 or 50 <= offset + 1 - recent.since <= 100
        assert stamps(recent.find(name, offset + 1)) == ([300] if recent.since <= 300 <= offset else [])


def test_it_is_bounded_in_bytes_too() -> None:
    recent = kept(bytes_max=1 << 16)
    for offset in range(100):
        rows = row(Kind.TRANSFER, ids.derive(str(offset)), offset)
        recent.add(rows, answered(rows), [b"x" * 4_096], offset)
    assert 80 < recent.since < 99


def test_what_became_of_a_post_in_flight_is_found_by_the_hold() -> None:
    recent = kept()
    hold, post, other = ids.derive("hold"), ids.derive("post"), ids.derive("other")
    made = [row(Kind.HOLD, hold, 1), row(Kind.POST, post, 2, ref=hold), row(Kind.SETTLE, post, 3, ref=(1, 4), span=2)]
    for offset, rows in enumerate(made):
        recent.add(rows, answered(rows, Code.IN_FLIGHT if offset == 1 else Code.OK), None, offset)
    again = row(Kind.VOID, other, 4, ref=post)  # refers to the post, and so not to the hold
    recent.add(again, answered(again, Code.NOT_HELD), None, 3)
    assert stamps(recent.find(hold, 4)) == [1, 2, 3]
    assert stamps(recent.find(post, 4)) == [2, 3, 4]


@pytest.mark.parametrize("count", [ROWS_TOLD, ROWS_TOLD + 1])
@pytest.mark.parametrize("size", [1, 7, 300])
def test_of_an_id_with_too_much_about_it_nothing_is_told_but_where_that_ends(count: int, size: int) -> None:
    """So nobody makes look-ups dear by referring to one hold again and again."""
    recent = kept()
    hold = ids.derive("hold")
    posts = np.concatenate([row(Kind.POST, ids.derive(str(n)), n + 1, ref=hold) for n in range(count)])
    offset = 0
    for start in range(0, count, size):
        rows = posts[start : start + size]
        recent.add(rows, answered(rows, Code.NOT_HELD), None, offset)
        offset += 1
    found = recent.find(hold, offset)
    if count > ROWS_TOLD:
        assert (found.since, len(found.rows)) == (offset, 0)
    else:
        assert (found.since, len(found.rows)) == (0, count)
    assert stamps(recent.find(ids.derive("0"), offset)) == [1]


def test_large_records_that_are_full_of_one_key_are_not_gone_through() -> None:
    """An id's low half is the client's choice: whoever chooses one for all makes nobody's look-up dear."""
    recent = kept(rows_max=1 << 18)
    low = ids.derive("one")[1]
    for offset in range(8):
        rows = np.concatenate([row(Kind.TRANSFER, (high, low), offset * 4_096 + high + 1) for high in range(4_096)])
        recent.add(rows, answered(rows), None, offset)
    assert len(recent._newer.rows_of(low >> 12)) <= 2 * (ROWS_TOLD + 1)
    assert recent.find((1, low), 8).since == 8


def test_the_account_that_decided_is_that_of_the_newest_use() -> None:
    recent = kept()
    id_ = ids.derive("a")
    made = [
        row(Kind.TRANSFER, id_, 2, debit=2048, credit=3072),
        row(Kind.DEPOSIT, id_, 4, debit=1, credit=4096),
        row(Kind.HOLD, id_, 3, debit=5120, credit=3072),
        row(Kind.VOID, ids.derive("b"), 5, ref=id_, debit=6144),
    ]
    assert decider(recent.find(id_, 0), id_) == 0
    for rows, account in zip(made, (2048, 4096, 4096, 4096), strict=True):
        recent.add(rows, answered(rows), None, int(rows["at"][0]))
        assert decider(recent.find(id_, 9), id_) == account
