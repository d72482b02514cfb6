"""A row is met only when every goal is, and never when requests behind it failed."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from loadtests.rows import DURABLE, Goal, Row, table


def row(figure: float, *goals: Goal, peer: float | None = None, invalid: str = "") -> Row:
    return Row("singles", "transfers", figure, "/s", DURABLE, goals, peer=peer, invalid=invalid)


@pytest.mark.parametrize(
    ("given", "met"),
    [
        (row(10), None),
        (row(10, Goal("≥", 10)), True),
        (row(9.9, Goal("≥", 10)), False),
        (row(10, Goal("<", 10)), False),
        (row(50, Goal("≥", 5, of_ratio=True), peer=10), True),
        (row(49, Goal("≥", 5, of_ratio=True), peer=10), False),
        (row(50, Goal("≥", 5, of_ratio=True), Goal("≥", 51), peer=10), False),
        (row(50, Goal("≥", 10), invalid="3 of 50 failed"), False),
    ],
)
def test_a_row_is_met_when_all_its_goals_are(given: Row, met: bool | None) -> None:
    assert given.met is met


def test_a_goal_on_a_ratio_without_a_peer_is_not_met() -> None:
    assert not row(50, Goal("≥", 5, of_ratio=True)).met


def test_the_table_shows_figure_peer_ratio_goal_and_durability_of_every_row() -> None:
    console = Console(width=250, record=True, file=io.StringIO())
    console.print(table([row(5000, Goal("≥", 5, of_ratio=True), peer=1250), row(1, invalid="3 of 50 failed")]))
    text = console.export_text()
    for part in ("5,000 /s", "1,250", "4.00x", "≥ 5x", "no", DURABLE, "INVALID", "3 of 50 failed"):
        assert part in text
