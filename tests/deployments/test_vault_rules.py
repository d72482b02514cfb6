"""Over random grants, tokens, times and fields the vault answers as a small reference of its rules does."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deployments.auth.tokens import KeyFile, TokenVerifier
from storage.vault import FIELDS
from tests.deployments.vault_house import ANA, BIA, NOBODY, SUBS, Caller, VaultHouse, debt

PEOPLE: Final = (ANA, BIA, NOBODY)
CALLERS: Final = ("razao-score", "bank", "sub-ana")
PURPOSES: Final = ("credit-score", "marketing")
MARGIN_S: Final = 120
"""Grants end at least so far from the moment of the request: the test's clock is not the database's."""


class Clock:
    """The verifier's."""

    ahead_s = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead_s


CLOCK: Final = Clock()

fields = st.lists(st.sampled_from(FIELDS), min_size=1, unique=True)


@dataclass(frozen=True)
class Given:
    """A grant. Seconds are relative to the request."""

    person: str
    grantee: str
    fields: tuple[str, ...]
    purpose: str
    expires_in: int
    ended: bool


@dataclass(frozen=True)
class Shown:
    """A token. `own`: whose tax id it carries."""

    sub: str
    scopes: frozenset[str]
    own: str | None
    audience: str
    expires_in: int


grants = st.builds(
    Given,
    st.sampled_from(PEOPLE),
    st.sampled_from(CALLERS),
    fields.map(tuple),
    st.sampled_from(PURPOSES),
    st.sampled_from([-3600, -MARGIN_S, MARGIN_S, 3600]),
    st.booleans(),
)
tokens = st.builds(
    Shown,
    st.sampled_from(CALLERS),
    st.frozensets(st.sampled_from([*(f"vault:read:{field}" for field in FIELDS), "vault:self", "vault:write"])),
    st.sampled_from([None, None, ANA, BIA]),
    st.sampled_from(["vault", "vault", "vault", "payments", "score"]),
    st.sampled_from([-60, 3600, 3600, 3600]),
)


def expected(
    about: str, wanted: list[str], purpose: str, token: Shown, given_: list[Given]
) -> int | dict[str, set[str]]:
    """401, 200, or what each field lacks."""
    if token.audience != "vault" or token.expires_in < 0:
        return 401
    if token.own == about and "vault:self" in token.scopes:
        return 200
    live = [
        one for one in given_
        if one.person == about and one.grantee == token.sub and one.purpose == purpose
        and one.expires_in > 0 and not one.ended
    ]  # fmt: skip
    lacking: dict[str, set[str]] = {}
    for field in wanted:
        if f"vault:read:{field}" not in token.scopes:
            lacking.setdefault(field, set()).add("scope")
        if not any(field in one.fields for one in live):
            lacking.setdefault(field, set()).add("grant")
    if about == NOBODY and not lacking:  # whoever would see somebody is told the same as without any grant
        return {field: {"grant"} for field in wanted}
    return lacking or 200


@given(
    st.sampled_from(PEOPLE), fields, st.sampled_from(PURPOSES), tokens,
    st.lists(grants, max_size=6),
)  # fmt: skip
@settings(
    max_examples=250, deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
async def test_the_vault_answers_as_its_rules_say(
    vault_house: VaultHouse, about: str, wanted: list[str], purpose: str, token: Shown, given_: list[Given]
) -> None:
    await prepare(vault_house, given_)
    before = await vault_house.owner.fetchval("SELECT seq FROM vault.chain_head")
    answer = await ask(vault_house, about, wanted, purpose, token)
    after = await vault_house.owner.fetchval("SELECT seq FROM vault.chain_head")
    rules_say = expected(about, wanted, purpose, token, given_)
    if isinstance(rules_say, dict):
        assert answer.status_code == 403
        assert {field: set(missing) for field, missing in answer.json()["lacks"].items()} == rules_say
    else:
        assert answer.status_code == rules_say
    if rules_say == 200:
        assert answer.json().keys() == {*wanted, "updated_at", "granted_until"}
        if "debts" in wanted and about != NOBODY:
            assert answer.json()["debts"] == [debt(PEOPLE.index(about) + 1)]
    assert after - before == (0 if rules_say == 401 else 1)


async def prepare(house: VaultHouse, given_: list[Given]) -> None:
    """Two people, and just these grants: given by a caller, and moved to their times."""
    if not await house.owner.fetchval("SELECT count(*) FROM vault.keys"):
        for number, about in enumerate((ANA, BIA), 1):
            await house.keep(debt(number), about=about)
        house.services.verifier = TokenVerifier(KeyFile(Path(house.plan.jwks)), audience="vault", clock=CLOCK)
        house.__post_init__()
    rows: list[tuple[Any, ...]] = []
    for one in given_:
        subject = house.services.vault.subject("".join(c for c in one.person if c.isalnum()))
        created = datetime.now(UTC) - timedelta(seconds=7200)
        rows.append((
            uuid.uuid4(), subject.person, one.grantee, list(one.fields), one.purpose, SUBS[one.person], created,
            created + timedelta(seconds=7200 + one.expires_in), created if one.ended else None,
        ))  # fmt: skip
    await house.owner.execute("DELETE FROM vault.grants")
    await house.owner.executemany(
        "INSERT INTO vault.grants (id, person, grantee, fields, purpose, given_by, created_at, expires_at, ended_at)"
        " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        rows,
    )


async def ask(house: VaultHouse, about: str, wanted: list[str], purpose: str, token: Shown) -> Any:
    """GET the fields."""
    signed = house.token(
        token.sub, " ".join(token.scopes), tax_id=token.own, audience=token.audience, life=max(token.expires_in, 1)
    )
    CLOCK.ahead_s = 60.0 if token.expires_in < 0 else 0.0  # past the token's end, leeway included
    caller = Caller(house, signed, about, **{"razao-purpose": purpose})
    return await caller.get(f"/person?fields={','.join(wanted)}")
