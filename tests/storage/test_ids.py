"""Ids say their slot, and what derives them is a secret of the ledger's."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from storage import ids
from storage.events import SLOTS

SLOTS_OF_ALL = st.integers(0, SLOTS - 1)


@given(st.integers(0, 2**48 - 1), SLOTS_OF_ALL)
def test_an_id_put_into_a_slot_says_it_in_its_last_three_digits(now_ms: int, slot: int) -> None:
    """And is otherwise the id that it was."""
    made = ids.uuid7(now_ms)
    placed = ids.in_slot(made, slot)
    assert ids.slot_of(placed) == slot
    assert ids.text(placed) == f"{ids.text(made)[:-3]}{slot:03x}"
    assert ids.parse(ids.text(placed)) == placed
    assert ids.in_slot(placed, slot) == placed
    assert placed[0] >> 16 == now_ms


@given(st.lists(st.text(), min_size=1, max_size=3), st.binary(min_size=1, max_size=64))
def test_a_derived_id_is_another_with_another_secret(parts: list[str], key: bytes) -> None:
    """So nobody outside can tell it; it is a UUID of version 8, and where parts end makes a difference."""
    derived = ids.derive(*parts, key=key)
    assert derived == ids.derive(*parts, key=key)
    assert derived != ids.derive(*parts)
    assert derived != ids.derive(*parts, "", key=key)
    assert ids.version(derived) == 8
    assert ids.parse(ids.text(derived)) == derived
