"""Batches are read by columns as single transfers are read one by one: the two ways agree on everything."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.payments_batch import accounts_of_text, ids_of_text, refuse_chains
from deployments.payments_call import content_check, content_checks, read_account, read_id, read_instant
from deployments.problems import ProblemError
from storage import ids
from storage.events import Code
from storage.notation import rfc3339

GOOD_IDS = st.builds(ids.uuid7, st.integers(0, 2**48 - 1)).map(ids.text)
BAD_IDS = st.one_of(
    st.text(max_size=40),
    st.uuids(version=4).map(str),
    GOOD_IDS.map(lambda id_: id_.replace("-", "")),
    GOOD_IDS.map(lambda id_: f" {id_[1:]}"),
    GOOD_IDS.map(lambda id_: id_[:-1]),
    GOOD_IDS.map(lambda id_: f"{id_}0"),
    GOOD_IDS.map(lambda id_: id_[:7] + "-" + id_[7] + id_[9:]),
    GOOD_IDS.map(lambda id_: id_[:-2] + "  "),
    GOOD_IDS.map(lambda id_: id_[:-1] + "é"),
)
ACCOUNTS = st.one_of(
    st.integers(1024, 2**63 - 1).map(str),
    st.integers(0, 2**70).map(str),
    st.sampled_from(["", "0", "1", "1023", "1024", "01024", "+5000", " 5000", "5_000", "\u0665\u0660",
                     "-5000", "5000.0", "1e9",
                     str(2**63 - 1), str(2**63), "9" * 19, "9" * 20, "a" * 300, "5000,5001", "5\x00"]),
)  # fmt: skip


def one_by_one(read: Any, values: list[str]) -> list[Any] | str:
    """What single transfers make of them; the first malformed one's place instead, if there is one."""
    found = []
    for place, value in enumerate(values):
        try:
            found.append(read(value, f"transfers[{place}].x"))
        except ProblemError as error:
            if error.status == 400:
                return str(error.members["field"])
            found.append(0)
    return found


@settings(max_examples=300, deadline=None)
@given(
    st.lists(GOOD_IDS | GOOD_IDS.map(str.upper), min_size=1, max_size=6),
    st.lists(BAD_IDS, max_size=1),
    st.integers(0, 6),
)
def test_ids_by_columns_are_ids_one_by_one(good: list[str], bad: list[str], place: int) -> None:
    """Also when a bad one makes up for the length of another."""
    values = [*good[:place], *bad, *good[place:]]
    try:
        high, low = ids_of_text(values)
        together: Any = list(zip(high.tolist(), low.tolist(), strict=True))
    except ProblemError as error:
        together = str(error.members["field"]).replace(".id", ".x")
    assert together == one_by_one(read_id, values)


def test_ids_whose_lengths_only_add_up_are_refused() -> None:
    """35 and 37 characters."""
    one, two = ids.text(ids.uuid7(1)), ids.text(ids.uuid7(2))
    with pytest.raises(ProblemError):
        ids_of_text([one[:-1], one[-1] + two])


@settings(max_examples=300, deadline=None)
@given(st.lists(ACCOUNTS, min_size=1, max_size=6))
def test_accounts_by_columns_are_accounts_one_by_one(values: list[str]) -> None:
    """What can be no account is 0, what can be no text is malformed."""
    try:
        together: Any = accounts_of_text(values, "x").tolist()
    except ProblemError as error:
        together = str(error.members["field"])
    assert together == one_by_one(read_account, values)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.none() | st.binary(min_size=1, max_size=20), st.integers(0, 2**31)), min_size=1, max_size=5)
)
def test_content_by_columns_is_content_one_by_one(pairs: list[tuple[bytes | None, int]]) -> None:
    """A transfer may be repeated in a batch, and the other way round."""
    notes = [note for note, _ in pairs]
    spans = np.array([span for _, span in pairs], np.int64)
    assert content_checks(notes, spans).tolist() == [content_check(note, span) for note, span in pairs]
    if not any(notes):
        assert content_checks(None, spans).tolist() == [content_check(None, span) for _, span in pairs]


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=12))
def test_a_refused_row_takes_its_chain_along_and_nobody_else(rows: list[tuple[bool, bool]]) -> None:
    """Against a walk from row to row."""
    refused = np.array([Code.INVALID_AMOUNT if bad else 0 for bad, _ in rows], np.uint16)
    linked = np.array([link for _, link in rows])
    chains: list[list[int]] = [[]]
    for place, (_, link) in enumerate(rows):
        chains[-1].append(place)
        if not link:
            chains.append([])
    expected = [0] * len(rows)
    for chain in chains:
        if any(rows[place][0] for place in chain):
            for place in chain:
                expected[place] = Code.INVALID_AMOUNT if rows[place][0] else Code.LINKED_FAILED
    refuse_chains(refused, linked)
    assert refused.tolist() == expected


@settings(deadline=None)
@given(st.integers(0, 7_000_000_000 * 10**9))
def test_instants_are_read_as_they_are_written(ns: int) -> None:
    """To the microsecond; with other offsets too."""
    text = rfc3339(ns)
    assert read_instant(text, "at") == ns - ns % 1000
    assert read_instant(text.replace("Z", "+00:00"), "at") == ns - ns % 1000
    assert read_instant(text.replace("Z", " 00:00"), "at") == ns - ns % 1000


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("1970-01-01T00:00:00Z", 0), ("1970-01-01t03:00:00.5+03:00", 500_000_000),
        ("1970-01-01T00:00:00.000000001z", 1),
        ("2026-11-22T12:00:00-03:00", 1_795_359_600 * 10**9),
    ],
)  # fmt: skip
def test_instants_may_have_offsets_and_nine_decimals(text: str, ns: int) -> None:
    """RFC 3339, 5.6."""
    assert read_instant(text, "at") == ns


@pytest.mark.parametrize(
    "text",
    ["", "x", "2026-02-30T00:00:00Z", "2026-01-01T24:00:01Z", "2026-01-01 00:00:00Z", "2026-01-01T00:00:00",
     "1969-12-31T23:59:59Z", "2200-01-01T00:00:00Z", "2026-01-01T00:00:00.Z", "2026-01-01T00:00:00+25:00",
     "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "٢٠٢٦-01-01T00:00:00Z", "2026-01-01T00:00:60Z"],
)  # fmt: skip
def test_other_texts_are_no_instants(text: str) -> None:
    """400."""
    with pytest.raises(ProblemError) as caught:
        read_instant(text, "at")
    assert caught.value.status == 400
