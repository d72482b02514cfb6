"""The score service: who is let in to what, what a score is made of, and what is on record."""

from __future__ import annotations

from tests.deployments.score_house import House


async def test_a_profile_is_written_and_scored(scores: House) -> None:
    await scores.write()
    found = await scores.score()
    assert found["debts_considered"]
    assert found["score"] > 500, found
