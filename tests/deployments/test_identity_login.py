"""Guessing, spraying, enumerating, locking out, and malformed input: what a login has to bear."""

from __future__ import annotations

from typing import Any

import pytest

from cluster import identity
from cluster.identity_wiring import Trust
from deployments.identity_passwords import Passwords
from deployments.identity_roles import DELEGABLE, OF_ROLE, OPENID, PROVE, SELF, Role, scopes_for
from tests.deployments.identity_house import CPF, PASSWORD, House, slower

WRONG = "a wrong password, surely"


async def attempt(house: House, username: str, password: str = WRONG, address: str = "192.0.2.1") -> Any:
    async with house.http(address) as http:
        return await http.post("/auth/login", json={"username": username, "password": password})


async def test_an_unknown_user_a_wrong_password_and_a_disabled_user_are_answered_alike(house: House) -> None:
    await house.register("ana")
    await house.register("bia")
    await identity.set_enabled(house.pool, "bia", enabled=False)
    answers = [
        await attempt(house, "ana"), await attempt(house, "nobody"), await attempt(house, "bia"),
        await attempt(house, "bia", PASSWORD),
    ]  # fmt: skip
    assert {answer.status_code for answer in answers} == {401}
    bodies = [{name: value for name, value in answer.json().items() if name != "request_id"} for answer in answers]
    assert all(body == bodies[0] for body in bodies)
    headers = [{name: value for name, value in answer.headers.items() if name != "x-request-id"} for answer in answers]
    assert all(one == headers[0] for one in headers)


class Counting(Passwords):
    """Argon2 that says what it was asked to do."""

    def __init__(self) -> None:
        super().__init__()
        self.work: list[str] = []

    def _matches(self, known: str, password: str) -> bool:
        self.work.append(known.rsplit("$", 2)[0])  # algorithm and costs
        return super()._matches(known, password)


async def test_an_unknown_user_costs_the_same_work_as_a_wrong_password(house: House) -> None:
    await house.register()
    counting = Counting()
    house.services.passwords = counting
    await attempt(house, "ana")
    await attempt(house, "nobody")
    counting.close()
    assert len(counting.work) == 2
    assert counting.work[0] == counting.work[1]
    assert counting.work[0].startswith("$argon2id$")


async def test_guessing_at_one_account_is_slowed_down_to_a_trickle(house: House) -> None:
    await house.register()
    answers = [await attempt(house, "ana") for _ in range(8)]
    assert [answer.status_code for answer in answers] == [401] * 5 + [429] * 3
    assert int(answers[-1].headers["retry-after"]) > 1
    assert answers[-1].json()["type"] == "/problems/too-many-attempts"


async def test_a_refusal_says_nothing_of_whether_there_is_such_a_user(house: House) -> None:
    await house.register()
    for name in ("ana", "nobody"):
        answers = [(await attempt(house, name)).status_code for _ in range(7)]
        assert answers == [401] * 5 + [429] * 2


async def test_the_right_password_is_refused_too_while_it_is_too_fast(house: House) -> None:
    """Otherwise the refusal would tell which guess was right."""
    await house.register()
    for _ in range(5):
        await attempt(house, "ana")
    assert (await attempt(house, "ana", PASSWORD)).status_code == 429


async def test_spraying_one_password_over_many_accounts_is_slowed_down(house: House) -> None:
    slower(house, address_burst=10)
    answers = [(await attempt(house, f"user{number}")).status_code for number in range(13)]
    assert answers == [401] * 10 + [429] * 3
    assert (await attempt(house, "user0", address="198.51.100.7")).status_code == 401


async def test_addresses_of_one_ipv6_customer_count_as_one(house: House) -> None:
    slower(house, address_burst=3)
    answers = [
        (await attempt(house, f"user{number}", address=f"2001:db8:1:2::{number}")).status_code for number in range(5)
    ]
    assert answers == [401] * 3 + [429] * 2


async def test_nobody_is_locked_out_by_what_others_do(house: House) -> None:
    """An attacker with many addresses keeps knocking; the owner comes in from another address all the same."""
    await house.register()
    slower(house, account_burst=5)
    for number in range(40):
        await attempt(house, "ana", address=f"198.51.100.{number}")
    assert max(house.pauses) > 0.9 * house.services.pace.pause_s_max  # slowed down, not refused
    answer = await attempt(house, "ana", PASSWORD, address="203.0.113.9")
    assert answer.status_code == 200


async def test_where_one_has_come_in_before_one_is_not_even_slowed_down(house: House) -> None:
    await house.register()
    slower(house, account_burst=5)
    assert (await attempt(house, "ana", PASSWORD, address="203.0.113.9")).status_code == 200
    for number in range(20):
        await attempt(house, "ana", address=f"198.51.100.{number}")
    house.pauses.clear()
    assert (await attempt(house, "ana", PASSWORD, address="203.0.113.9")).status_code == 200
    assert house.pauses == []


async def test_whoever_goes_on_knocking_waits_no_longer_for_it(house: House) -> None:
    await house.register()
    waits = [int((await attempt(house, "ana")).headers.get("retry-after", 0)) for _ in range(30)]
    assert max(waits) <= house.services.pace.pair_drip_s + 2
    await house.pool.execute("UPDATE identity.attempts SET at = at - interval '40 seconds'")
    assert (await attempt(house, "ana", PASSWORD)).status_code == 200


async def test_somebody_who_logs_in_often_is_never_refused(house: House) -> None:
    await house.register()
    slower(house, address_burst=5)
    assert [(await attempt(house, "ana", PASSWORD)).status_code for _ in range(15)] == [200] * 15


async def test_guesses_at_the_current_password_of_an_open_session_are_slowed_down(house: House) -> None:
    token = (await house.person())["access_token"]
    async with house.http(authorization=f"Bearer {token}") as http:
        body = {"current_password": WRONG, "new_password": "a new one that is long"}
        answers = [(await http.post("/auth/password", json=body)).status_code for _ in range(7)]
    assert answers == [401] * 5 + [429] * 2


async def test_registrations_from_one_address_are_slowed_down(house: House) -> None:
    slower(house, register_burst=2)
    answers = []
    for number in range(4):
        async with house.http() as http:
            body = {"username": f"user{number}", "password": PASSWORD, "name": "x", "tax_id": CPF}
            answers.append((await http.post("/auth/register", json=body)).status_code)
    assert answers == [201, 201, 429, 429]


# -- malformed --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"username":"ana","username":"bia","password":"x"}', 400),
        (b'{"username":"ana","password":"x","password":"y"}', 400),
        (b'{"username":"ana","password":"x","role":"operator"}', 400),
        (b'{"username":"ana"}', 400),
        (b'{"username":["ana"],"password":"x"}', 400),
        (b'{"username":"ana","password":null}', 400),
        (b'{"username":"","password":"x"}', 400),
        (b'{"username":"a\\u0000","password":"x"}', 400),
        (b'{"username":"a","password":"\\ud800"}', 400),
        (b"[" * 100_000, 413),
        (b"{" * 1000, 400),
        (b"\xff", 400),
        (b"", 400),
        (b'{"username":"ana","password":"' + b"x" * 300 + b'"}', 400),
        (b'{"username":"ana","password":"' + b"x" * 70_000 + b'"}', 413),
    ],
)
async def test_a_malformed_login_is_a_problem_never_an_error_of_ours(house: House, body: bytes, status: int) -> None:
    async with house.http() as http:
        answer = await http.post("/auth/login", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"


async def test_a_login_from_another_sites_form_is_refused(house: House) -> None:
    """A form cannot send JSON's content type without asking first (CORS), so nobody is logged in as somebody else."""
    await house.register()
    async with house.http() as http:
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
            body = f'{{"username":"ana","password":"{PASSWORD}"}}'
            answer = await http.post("/auth/login", content=body, headers={"content-type": kind})
            assert answer.status_code == 415


async def test_an_oversized_form_and_an_oversized_token_are_refused(house: House) -> None:
    answer = await house.token({"grant_type": "client_credentials", "x": "y" * 100_000})
    assert answer.status_code == 413
    async with house.http(authorization="Bearer " + "x" * 20_000) as http:
        assert (await http.get("/oauth/userinfo")).status_code == 401


@pytest.mark.parametrize("username", ["", " ", "a b", "-a", "a/b", "a\u202eb", "<b>", "x" * 65, "a'--", "a\nb"])
async def test_a_username_is_plain(house: House, username: str) -> None:
    async with house.http() as http:
        body = {"username": username, "password": PASSWORD, "name": "x", "tax_id": CPF}
        assert (await http.post("/auth/register", json=body)).status_code == 400


async def test_a_method_or_path_that_is_not_there_is_a_problem(house: House) -> None:
    async with house.http() as http:
        assert (await http.get("/auth/login")).status_code == 405
        assert (await http.get("/auth/login")).headers["allow"] == "POST"
        assert (await http.get("/oauth/nothing")).status_code == 404
        assert (await http.head("/oauth/jwks")).status_code == 200
        assert (await http.head("/oauth/jwks")).content == b""


# -- roles ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", [role for role in Role if role is not Role.SERVICE])
async def test_a_role_gets_what_it_needs_and_no_more(house: House, trust: Trust, role: Role) -> None:
    await identity.add_user(house.pool, "olga", role, PASSWORD, length_min=15)
    found = await trust.verifier().verify((await house.login("olga"))["access_token"].encode())
    assert found.claims["roles"] == [role]
    assert set(found.scopes) - OPENID - {SELF} == scopes_for("payments", OF_ROLE[role])


def test_no_role_can_do_everything() -> None:
    assert [one for one in Role if PROVE in OF_ROLE[one]] == [Role.OPERATOR]
    assert PROVE not in DELEGABLE
    assert "ledger:write" not in OF_ROLE[Role.AUDITOR]
    assert "ledger:fund" not in OF_ROLE[Role.PERSON]
    assert "ledger:operate" not in OF_ROLE[Role.SERVICE]
    assert not OF_ROLE[Role.ADMINISTRATOR] & DELEGABLE
