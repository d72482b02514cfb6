"""The store of consents: how many there can be, which are kept, and that none is lost between two who write at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from storage.consents import CONSENTS, KEPT_MAX, LIVE_MAX, Consent, Consents, TooManyConsents
from storage.documents.opening import open_database

PERSON = b"p" * 16
OTHER = b"q" * 16


def consent(number: int, *, life: int = 10**9) -> Consent:
    return Consent(f"c-{number}", "bank", "loan", number, "ana", number + life)


@pytest.fixture
async def consents(database: str) -> AsyncIterator[Consents]:
    opened = await open_database(database)
    await opened.create([CONSENTS])
    yield Consents(opened)
    await opened.close()


async def test_consents_that_are_given_at_once_are_all_kept_up_to_the_most_that_can_be_live(consents: Consents) -> None:
    given = [consent(number) for number in range(LIVE_MAX)]
    for part in range(0, LIVE_MAX, 8):
        await asyncio.gather(*(consents.give(PERSON, one) for one in given[part : part + 8]))
    assert await consents.of(PERSON) == given[::-1]
    with pytest.raises(TooManyConsents):
        await consents.give(PERSON, consent(1000))
    assert await consents.give(PERSON, replace(given[3], purpose="other")) == given[3]  # the same one again
    await consents.end(PERSON, "c-5", 900)
    await consents.give(PERSON, consent(1000))
    assert await consents.of(OTHER) == []


async def test_those_that_have_ended_stay_until_newer_ones_take_their_place(consents: Consents) -> None:
    for number in range(KEPT_MAX + 5):
        await consents.give(PERSON, consent(number, life=1))
    kept = [one.id for one in await consents.of(PERSON)]
    assert kept == [f"c-{number}" for number in range(KEPT_MAX + 4, 4, -1)]


async def test_one_ends_once_and_for_its_own_person_alone(consents: Consents) -> None:
    await consents.give(PERSON, consent(1))
    assert await consents.end(OTHER, "c-1", 5) is None
    assert await consents.live(PERSON, "bank", "loan", 5) == consent(1)
    await consents.end(PERSON, "c-1", 5)
    await consents.end(PERSON, "c-1", 7)
    assert await consents.of(PERSON) == [replace(consent(1), ended_at=5)]
    assert await consents.live(PERSON, "bank", "loan", 6) is None
