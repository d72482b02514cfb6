"""Names are what they look like."""

from __future__ import annotations

import sys
import unicodedata

import pytest

from deployments.identity_accounts import read_username
from deployments.names import read_name
from deployments.problems import ProblemError
from tests.deployments.identity_house import CPF, PASSWORD, House

UNSEEN = (
    "\u202e", "\u202a", "\u2066", "\u2069", "\u200e", "\u200f", "\u061c",  # direction
    "\u200b", "\u200c", "\u200d", "\u2060", "\ufeff", "\u00ad", "\u034f", "\u115f", "\u3164", "\uffa0", "\u2800",
    "\ufe0f", "\U000e0041", "\U000e0100", "\u180e", "\u2028", "\u2029", "\u00a0", "\u3000", "\ue000", "\u0378",
)  # fmt: skip


@pytest.mark.parametrize("one", UNSEEN, ids=lambda one: f"U+{ord(one):04X}")
def test_what_nobody_sees_or_what_turns_writing_round_is_in_no_name(one: str) -> None:
    for read in (lambda name: read_name(name, "name", 120), read_username):
        with pytest.raises(ProblemError) as refused:
            read(f"ana{one}souza")
        assert refused.value.status == 400
        assert refused.value.members["field"] in {"name", "username"}
    with pytest.raises(ProblemError, match=f"U\\+{ord(one):04X}"):
        read_name(f"Ana{one}Souza", "name", 120)


def test_no_character_of_a_format_is_in_a_name_whichever_it_is() -> None:
    for one in map(chr, range(sys.maxunicode + 1)):
        if unicodedata.category(one) == "Cf":
            with pytest.raises(ProblemError):
                read_name(f"a{one}b", "name", 120)


@pytest.mark.parametrize(
    "name",
    [
        "Ana Souza",
        "João D'Ávila-Núñez",
        "Ænima Þór",
        "Łukasz",
        "Ζωή",
        "Анн\u0430",
        "محمد علي",
        "王小明",
        "田中 さくら",
        "김민수",
        "नेहा",
    ],
)
def test_names_of_people_are_taken(name: str) -> None:
    assert read_name(f" {name} ", "name", 120) == unicodedata.normalize("NFC", name)


def test_a_name_has_one_form() -> None:
    assert read_name("Joa\u0303o", "name", 5) == read_name("João", "name", 4) == "João"
    with pytest.raises(ProblemError):
        read_name("João", "name", 3)


@pytest.mark.parametrize(
    "given", ["\u0430na", "p\u0430ypal", "g\u03bf\u03bfgle", "ana٣", "ana.王", "ωmega", "an\u0430.souza@x", "ゼα"]
)
def test_a_username_of_two_scripts_is_refused(given: str) -> None:
    with pytest.raises(ProblemError, match="one script"):
        read_username(given)


@pytest.mark.parametrize(
    "given",
    [
        "ana",
        "ana.souza-7@x",
        "joão",
        "\u0430нн\u04307",
        "ζωή",
        "王小明7",
        "田中さくら",
        "タナカ",
        "김민수",
        "王민수",
        "\uff41\uff4e\uff41",
    ],
)
def test_a_username_of_one_script_is_taken(given: str) -> None:
    assert read_username(given)


async def test_nobody_registers_with_a_name_that_is_not_what_it_looks_like(house: House) -> None:
    body = {"username": "ana", "password": PASSWORD, "name": "Ana Souza", "tax_id": CPF}
    async with house.http() as http:
        for field, given in (("username", "\u0430na"), ("name", "Ana\u202eazuoS")):
            answer = await http.post("/auth/register", json={**body, field: given})
            assert (answer.status_code, answer.json()["field"]) == (400, field)
    await house.register(name="Joa\u0303o")
    assert await house.pool.fetchval("SELECT name FROM identity.users WHERE username = 'ana'") == "João"
