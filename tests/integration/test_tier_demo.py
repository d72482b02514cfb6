"""`razao demo` against everything that there is: each door shows what it should, and refuses the rest."""

from __future__ import annotations

import pytest

from tests.integration.conftest import TiersEngine

pytestmark = [pytest.mark.engine, pytest.mark.slow]


def test_the_demo_opens_the_three_doors_and_shows_each_refusal(tiers_engine: TiersEngine) -> None:
    """It ends with 1 when a door answers anything else than it should."""
    said = tiers_engine.razao("demo").stdout
    for door in ("door A, the vault", "door B, the score", "door C, the trace"):
        assert door in said
    refusals = [line for line in said.split("door A", 1)[1].splitlines() if ": refused, " in line]
    assert len(refusals) == 13, refusals
    assert "debts considered: False" in said
    assert "out of the journal: deposit of R$ 77,00" in said


def test_what_the_demo_wrote_stands_up_to_verify(tiers_engine: TiersEngine) -> None:
    """Books, history, and the chain of the vault's record."""
    assert tiers_engine.razao("verify").returncode == 0
