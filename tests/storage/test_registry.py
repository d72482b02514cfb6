"""The registry: keyed hashes, idempotent registration, and owners by account."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import asyncpg
import pytest

from storage import ids
from storage.events import FIRST_ACCOUNT, SLOTS
from storage.registry import RegistrationConflict, Registry, TooManyAccounts, account_id, owner_hash, slot

KEY = bytes(range(32))


@pytest.fixture
async def pool(database: str) -> AsyncIterator[asyncpg.Pool[asyncpg.Record]]:
    async with asyncpg.create_pool(database, min_size=1, max_size=4) as pool:
        yield pool


@pytest.fixture
async def registry(pool: asyncpg.Pool[asyncpg.Record]) -> Registry:
    registry = Registry(pool)
    await registry.create()
    return registry


def test_hashes_are_stable_for_ever() -> None:
    # They decide where an account lives and who may use it: a change would lose every ledger that exists.
    assert owner_hash(KEY, "ana") == 0xBCBAE78F2A2189AA
    assert slot(KEY, "52998224725") == 726
    assert account_id((0x0190_0000_0000_7000, 0x8000_0000_0000_0001), 5) == 2435971513367864325


def test_hashes_depend_on_the_key_and_on_the_value() -> None:
    other = bytes(32)
    assert len({owner_hash(key, sub) for key in (KEY, other) for sub in ("ana", "bia")}) == 4
    assert [slot(KEY, str(n)) for n in range(64)] != [slot(other, str(n)) for n in range(64)]


def test_account_ids_are_in_range_and_carry_their_slot() -> None:
    for n in range(500):
        account = account_id(ids.derive("test", str(n)), n % SLOTS)
        assert FIRST_ACCOUNT <= account < 2**63
        assert account % SLOTS == n % SLOTS


def test_slots_spread_evenly() -> None:
    counts = [0] * SLOTS
    for n in range(SLOTS * 50):
        counts[slot(KEY, f"{n:011d}")] += 1
    assert min(counts) > 15
    assert max(counts) < 100


async def test_registering_twice_changes_nothing(registry: Registry) -> None:
    event = ids.derive("a")
    first = await registry.register(5000, event, sub="ana", tax_id="52998224725", name="Ana", digest=b"1")
    again = await registry.register(5000, event, sub="ana", tax_id="52998224725", name="Ana", digest=b"1")
    assert first == again
    assert (first.account, first.event_id, first.sub, first.name) == (5000, event, "ana", "Ana")


async def test_an_account_may_be_under_no_tax_id_also_in_a_registry_from_before(
    registry: Registry, pool: asyncpg.Pool[asyncpg.Record]
) -> None:
    await registry.register(5000, ids.derive("a"), sub="ana", tax_id="52998224725", name="Ana", digest=b"1")
    await pool.execute("ALTER TABLE people.owners ALTER COLUMN tax_id SET NOT NULL")
    await registry.create()
    made = await registry.register(5001, ids.derive("b"), sub="ana", tax_id=None, name="Ana", digest=b"1")
    assert made == await registry.owner(5001)
    assert made.tax_id is None
    assert await registry.tax_ids([5000, 5001, 5002]) == {5000: "52998224725"}


@pytest.mark.parametrize(
    "changed", [{"sub": "bia"}, {"tax_id": "1"}, {"tax_id": None}, {"name": "Bia"}, {"digest": b"2"}]
)
async def test_the_same_event_with_other_content_is_a_conflict(
    registry: Registry, changed: dict[str, str | bytes | None]
) -> None:
    given = {"sub": "ana", "tax_id": "52998224725", "name": "Ana", "digest": b"1"}
    event = ids.derive("a")
    await registry.register(5000, event, **given)  # type: ignore[arg-type]
    with pytest.raises(RegistrationConflict):
        await registry.register(5000, event, **{**given, **changed})  # type: ignore[arg-type]
    kept = await registry.owner(5000)
    assert kept is not None
    assert kept.sub == "ana"


async def test_however_many_are_asked_for_at_once_nobody_has_more_under_no_tax_id_than_they_may(
    registry: Registry,
) -> None:
    events = [ids.derive(str(n)) for n in range(12)]

    async def register(event: ids.Id, sub: str = "ana") -> bool:
        account = account_id(event, 7 if sub == "ana" else 8)
        try:
            await registry.register(account, event, sub=sub, tax_id=None, name="Ana", digest=b"", at_most=3)
        except TooManyAccounts:
            return False
        return True

    done = await asyncio.gather(*(register(event) for event in events))
    assert sum(done) == len(await registry.accounts("ana")) == 3
    assert await asyncio.gather(*(register(event) for event in events)) == done  # a repeat changes nothing
    assert await register(ids.derive("other"), "bia")


async def test_two_events_never_share_an_account(registry: Registry) -> None:
    await registry.register(5000, ids.derive("a"), sub="ana", tax_id="1", name="Ana", digest=b"1")
    with pytest.raises(RegistrationConflict):
        await registry.register(5000, ids.derive("b"), sub="ana", tax_id="1", name="Ana", digest=b"1")


async def test_the_first_instant_of_an_opening_is_kept_and_known_at_once(registry: Registry) -> None:
    await registry.register(5000, ids.derive("a"), sub="ana", tax_id="1", name="Ana", digest=b"1")
    for at, kept in ((None, None), (7, 7), (8, 7)):
        if at is not None:
            await registry.opened(5000, at)
        owner = await registry.owner(5000)
        assert owner is not None
        assert owner.opened_at == kept


async def test_the_first_answer_is_kept_for_its_time(registry: Registry, pool: asyncpg.Pool[asyncpg.Record]) -> None:
    event, day = ids.derive("a"), timedelta(days=1)
    assert await registry.answer(event, 7_999) is None
    assert await registry.keep_answer(event, 7_999, b"one", day) == b"one"
    assert await registry.keep_answer(event, 7_999, b"two", day) == b"one"
    assert await registry.answer(event, 7_000) == b"one"  # as a repeat is told
    assert await registry.keep_answer(event, 8_000, b"three", day) == b"three"  # the id came again
    assert await registry.answer(event, 7_999) == b"one"
    await pool.execute("UPDATE people.answers SET made_at = now() - interval '25 hours' WHERE at_us = 7")
    await registry.keep_answer(ids.derive("b"), 9, b"four", day)
    assert await registry.answer(event, 7_999) is None
    assert await registry.answer(event, 8_999) == b"three"


async def test_owner_is_cached_and_the_cache_is_bounded(pool: asyncpg.Pool[asyncpg.Record]) -> None:
    registry = Registry(pool, cached=2)
    await registry.create()
    for n in range(3):
        await registry.register(5000 + n, ids.derive(str(n)), sub=f"s{n}", tax_id="1", name="N", digest=b"")
        await registry.opened(5000 + n, 1)
    for n in range(3):
        await registry.owner(5000 + n)
    await pool.execute("DELETE FROM people.owners")
    assert await registry.owner(5000) is None
    kept = await registry.owner(5002)
    assert kept is not None
    assert kept.sub == "s2"


@pytest.mark.parametrize("account", [0, -1, 2**63, 2**64, 4711])
async def test_an_unknown_account_has_no_owner(registry: Registry, account: int) -> None:
    assert await registry.owner(account) is None


async def test_accounts_of_a_sub_come_in_pages(registry: Registry) -> None:
    for n in range(7):
        await registry.register(
            5000 + n, ids.derive(str(n)), sub="ana" if n % 2 else "bia", tax_id="1", name="", digest=b""
        )
    first = await registry.accounts("ana", limit=2)
    rest = await registry.accounts("ana", after=first[-1].account, limit=2)
    assert [owner.account for owner in (*first, *rest)] == [5001, 5003, 5005]
    for after, limit in ((-1, 1), (2**63, 1), (0, 0), (0, 1002)):
        with pytest.raises(ValueError, match="range"):
            await registry.accounts("ana", after=after, limit=limit)


async def test_a_setting_keeps_its_first_value(registry: Registry) -> None:
    assert await registry.keep("ledger key", b"one") == b"one"
    assert await registry.keep("ledger key", b"two") == b"one"


async def test_creating_again_keeps_everything(registry: Registry) -> None:
    await registry.register(5000, ids.derive("a"), sub="ana", tax_id="1", name="Ana", digest=b"1")
    await registry.create()
    assert await registry.owner(5000) is not None
