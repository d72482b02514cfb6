"""Batches are read by columns as single transfers are read one by one: the two ways agree on everything."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.auth.keys import ensure_keys
from deployments.auth.tokens import Identity
from deployments.payments_batch import accounts_of_text, digest_of, ids_of_text, put_ids, refuse_chains
from deployments.payments_call import Call, content_check, content_checks, read_account, read_id, read_instant
from deployments.payments_services import Services
from deployments.problems import ProblemError
from storage import ids
from storage.events import EVENT, SLOTS, Code
from storage.notation import rfc3339
from tests.deployments.offline import offline_services

REQUEST = b"01890a5d-ac96-774b-bcce-b302099a8057"
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


@pytest.fixture
async def services(tmp_path: Path) -> Services:
    """Of which only the key of the ledger is used here."""
    return offline_services(ensure_keys(tmp_path))


async def nothing() -> Any:
    """`receive`."""
    raise AssertionError


def batch_call(services: Services, key: bytes | None) -> Call:
    """A request for a batch."""
    headers = {b"x-request-id": REQUEST} if key is None else {b"idempotency-key": key}
    scope = {
        "razao.headers": headers,
        "razao.request_id": headers.get(b"x-request-id", b"r").decode(),
        "razao.deadline": time.monotonic() + 5,
        "razao.identity": Identity("ana", frozenset({"ledger:write"}), time.time() + 99),
    }
    return Call(services, scope, nothing, {})


def ids_of(rows: Any) -> list[tuple[int, int]]:
    """Of (n,) EVENT."""
    return list(zip(rows["id_hi"].tolist(), rows["id_lo"].tolist(), strict=True))


@pytest.mark.parametrize("key", [None, b"k"])
async def test_every_row_of_a_batch_gets_an_id_of_its_own_in_its_payers_slot(
    services: Services, key: bytes | None
) -> None:
    """And none has the batch's own, whichever slots the payers have; the same request gets the same ids again."""
    call = batch_call(services, key)
    rows = np.zeros(10_000, EVENT)
    rows["debit"] = np.random.default_rng(1).integers(1024, 2**63, len(rows), dtype=np.uint64)
    itself = put_ids(call, rows, np.zeros(len(rows), bool))
    made = ids_of(rows)
    assert [ids.slot_of(id_) for id_ in made] == (rows["debit"] % SLOTS).tolist()
    assert {ids.version(id_) for id_ in [itself, *made]} == {7 if key is None else 8}
    assert all(ids.parse(ids.text(id_)) == id_ for id_ in made[::500])
    assert len({itself, *made}) == len(rows) + 1
    assert ids.slot_of(itself) < SLOTS
    again = np.zeros(len(rows), EVENT)
    again["debit"] = rows["debit"]
    assert put_ids(batch_call(services, key), again, np.zeros(len(rows), bool)) == itself
    assert (again["id_lo"] == rows["id_lo"]).all()
    moved = rows.copy()
    moved["debit"] = ids.slot_of(itself)  # if all payers have the slot that the batch's own id has
    put_ids(call, moved, np.zeros(len(rows), bool))
    assert itself not in ids_of(moved)


async def test_a_keys_ids_are_secret_without_the_ledgers_key(services: Services) -> None:
    """Another ledger, another subject, another key: other ids."""
    rows = np.zeros(1, EVENT)
    rows["debit"] = 5000

    def made(key: bytes, ledger_key: bytes, sub: str) -> tuple[int, int]:
        services.ledger_key = ledger_key
        call = batch_call(services, key)
        call.identity = Identity(sub, frozenset(), 0)
        put_ids(call, rows, np.zeros(1, bool))
        return ids_of(rows)[0]

    ways = [(b"k", bytes(32), "ana"), (b"l", bytes(32), "ana"), (b"k", b"1" * 32, "ana"), (b"k", bytes(32), "rui")]
    assert len({made(*way) for way in ways}) == len(ways)


_CHANGES: Any = st.sampled_from(["id_hi", "id_lo", "debit", "credit", "amount", "span", "check", "kind", "flags"])


@settings(deadline=None)
@given(st.integers(1, 5), st.integers(0, 4), _CHANGES, st.integers(1, 2**15))
def test_a_batchs_digest_tells_every_change_of_its_rows(count: int, place: int, column: str, by: int) -> None:
    """Also their number and order; but not who sends it or when."""
    rows = np.zeros(count, EVENT)
    rows["amount"] = np.arange(1, count + 1)
    first = digest_of(rows)
    changed = rows.copy()
    changed[column][place % count] += by
    assert digest_of(changed) != first
    assert digest_of(rows[:-1]) != first
    assert count == 1 or digest_of(rows[::-1]) != first
    elsewhere = rows.copy()
    elsewhere["actor"], elsewhere["at"] = 7, by
    assert digest_of(elsewhere) == first


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
