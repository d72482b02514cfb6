"""Register, log in and out, password, access keys: what people do."""

from __future__ import annotations

import asyncpg
import httpx
import jwt
import pytest

from cluster import identity
from cluster.identity_wiring import Trust
from deployments.auth.tokens import InvalidToken
from deployments.identity_passwords import check_password
from deployments.problems import ProblemError
from tests.deployments.identity_house import CPF, PASSWORD, House

OTHER = "outra senha bem comprida"


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


async def test_a_login_gives_three_tokens_and_the_access_token_opens_the_ledger(house: House, trust: Trust) -> None:
    sub = await house.register()
    tokens = await house.login()
    assert set(tokens) == {"id_token", "access_token", "refresh_token", "token_type", "expires_in", "scope"}
    assert tokens["token_type"] == "Bearer"
    assert 300 <= tokens["expires_in"] <= 900
    identity = await trust.verifier().verify(tokens["access_token"].encode())
    assert identity.subject == sub
    assert {"ledger:read", "ledger:write"} == {scope for scope in identity.scopes if scope.startswith("ledger:")}
    assert jwt.get_unverified_header(tokens["access_token"])["typ"] == "at+jwt"
    assert {"iss", "exp", "aud", "sub", "client_id", "iat", "jti"} <= set(identity.claims)  # RFC 9068, 2.2
    claims = jwt.decode(tokens["id_token"], options={"verify_signature": False})
    assert (claims["sub"], claims["aud"], claims["name"]) == (sub, "razao", "Ana Souza")


async def test_no_token_and_no_table_has_the_tax_id(house: House) -> None:
    await house.register()
    await house.prove()
    tokens = await house.login()
    digits = "52998224725"
    for name in ("id_token", "access_token"):
        claims = jwt.decode(tokens[name], options={"verify_signature": False})
        assert digits not in str(claims)
        assert CPF not in str(claims)
    person = jwt.decode(tokens["access_token"], options={"verify_signature": False})["person"]
    assert len(bytes.fromhex(person)) == 16
    for table in ("users", "audit"):
        rows = await house.pool.fetch(f"SELECT t::text AS row FROM identity.{table} t")
        assert all(digits not in row["row"] and CPF not in row["row"] and PASSWORD not in row["row"] for row in rows)


async def test_the_same_tax_id_has_the_same_reference_and_another_has_another(house: House) -> None:
    references = []
    for name, tax_id in (("ana", CPF), ("bia", "52998224725"), ("caio", "11144477735")):
        await house.register(name, tax_id=tax_id)
        if name == "bia":
            await identity.unprove_user(house.pool, "ana", "mistake")
        await house.prove(name, tax_id)
        token = (await house.login(name))["access_token"]
        references.append(jwt.decode(token, options={"verify_signature": False})["person"])
    assert references[0] == references[1] != references[2]


async def test_a_username_is_taken_whatever_its_case_or_form(house: House) -> None:
    await house.register("Ana")
    for name in ("ana", "ANA", "\uff21na"):
        async with house.http() as http:
            body = {"username": name, "password": PASSWORD, "name": "x", "tax_id": CPF}
            answer = await http.post("/auth/register", json=body)
        assert (answer.status_code, answer.json()["type"]) == (409, "/problems/username-taken")


async def test_a_registration_that_the_gateway_sends_again_is_the_same_one(house: House) -> None:
    body = {"username": "ana", "password": PASSWORD, "name": "Ana", "tax_id": CPF}
    async with house.http(**{"x-request-id": "one-request"}) as http:
        first, again = [await http.post("/auth/register", json=body) for _ in range(2)]
    assert first.status_code == again.status_code == 201
    assert first.json() == again.json()


@pytest.mark.parametrize(
    "password", ["short", "fourteen chars", "passwordpassword", "123456789012345", "a" * 20, "anaanaanaanaana1"]
)
async def test_a_short_or_common_password_is_refused(house: House, password: str) -> None:
    async with house.http() as http:
        body = {"username": "ana", "password": password, "name": "Ana", "tax_id": CPF}
        answer = await http.post("/auth/register", json=body)
    assert (answer.status_code, answer.json()["type"]) == (422, "/problems/weak-password")


def test_letters_that_spell_something_by_chance_do_not_make_random_digits_common() -> None:
    """`abba` is among the common ones; scattered through 20 random digits it says nothing."""
    password = "38a0175-b92640-83b511-7702a9"
    assert check_password(password, username="carla", name="Carla", length_min=15) == password
    with pytest.raises(ProblemError):
        check_password("a1bba-abba-2-abba-abba", username="carla", name="Carla", length_min=15)


async def test_unicode_passwords_are_taken_in_any_form(house: House) -> None:
    await house.register(password="coração às três da manhã")
    await house.login(password="corac\u0327a\u0303o a\u0300s tre\u0302s da manha\u0303")


async def test_logout_stops_the_access_token_and_the_refresh_token(house: House, trust: Trust) -> None:
    tokens = await house.person()
    verifier = trust.verifier()
    await verifier.verify(tokens["access_token"].encode())
    async with house.http(**bearer(tokens["access_token"])) as http:
        assert (await http.post("/auth/logout")).status_code == 204
        await house.revocations_known()
        assert (await http.post("/auth/logout")).status_code == 401
    form = {"grant_type": "refresh_token", "refresh_token": tokens["refresh_token"], "client_id": "razao"}
    assert (await house.token(form)).json()["error"] == "invalid_grant"


async def test_a_new_password_ends_every_login_and_the_old_one_is_no_longer_good(house: House) -> None:
    first, second = await house.person(), await house.login()
    async with house.http(**bearer(first["access_token"])) as http:
        wrong = await http.post("/auth/password", json={"current_password": OTHER, "new_password": OTHER})
        assert wrong.status_code == 401
        weak = await http.post("/auth/password", json={"current_password": PASSWORD, "new_password": "short"})
        assert weak.status_code == 422
        done = await http.post("/auth/password", json={"current_password": PASSWORD, "new_password": OTHER})
        assert done.status_code == 204, done.text
        old = await http.post("/auth/login", json={"username": "ana", "password": PASSWORD})
        assert old.status_code == 401
    for tokens in (first, second):
        form = {"grant_type": "refresh_token", "refresh_token": tokens["refresh_token"], "client_id": "razao"}
        assert (await house.token(form)).status_code == 400
    await house.revocations_known()
    async with house.http(**bearer(second["access_token"])) as http:
        assert (await http.get("/auth/access-keys")).status_code == 401
    await house.login(password=OTHER)


# -- access keys ------------------------------------------------------------------------------------------------------


async def make_key(house: House, token: str, scopes: list[str], **more: object) -> httpx.Response:
    async with house.http(**bearer(token)) as http:
        return await http.post("/auth/access-keys", json={"name": "billing", "scopes": scopes, **more})


async def test_an_access_key_acts_for_its_maker_and_its_secret_is_shown_once(house: House, trust: Trust) -> None:
    sub = await house.register()
    token = (await house.login())["access_token"]
    made = await make_key(house, token, ["ledger:read"], expires_in=3600)
    assert made.status_code == 201, made.text
    key = made.json()
    auth = (key["client_id"], key["client_secret"])
    got = await house.token({"grant_type": "client_credentials"}, auth=auth)
    assert got.status_code == 200, got.text
    assert "refresh_token" not in got.json()
    identity = await trust.verifier().verify(got.json()["access_token"].encode())
    assert (identity.subject, set(identity.scopes)) == (sub, {"ledger:read"})
    async with house.http(**bearer(token)) as http:
        listed = (await http.get("/auth/access-keys")).json()["items"]
    assert [one["client_id"] for one in listed] == [key["client_id"]]
    assert listed[0]["last_used_at"] is not None
    assert key["client_secret"] not in str(listed)
    kept = await house.pool.fetchval("SELECT secret FROM identity.clients WHERE client_id = $1", key["client_id"])
    assert key["client_secret"].encode() not in kept


async def test_a_deleted_access_key_gives_no_tokens_and_those_it_gave_stop(house: House, trust: Trust) -> None:
    token = (await house.person())["access_token"]
    key = (await make_key(house, token, ["ledger:read"])).json()
    auth = (key["client_id"], key["client_secret"])
    given = (await house.token({"grant_type": "client_credentials"}, auth=auth)).json()["access_token"].encode()
    async with house.http(**bearer(token)) as http:
        assert (await http.delete(f"/auth/access-keys/{key['client_id']}")).status_code == 204
        assert (await http.delete(f"/auth/access-keys/{key['client_id']}")).status_code == 404
    refused = await house.token({"grant_type": "client_credentials"}, auth=auth)
    assert (refused.status_code, refused.json()["error"]) == (401, "invalid_client")
    await house.revocations_known()
    with pytest.raises(InvalidToken, match="revoked"):
        await house.services.verifier.verify(given)


async def test_nobody_deletes_or_sees_somebody_elses_access_key(house: House) -> None:
    ana, bia = (await house.person("ana"))["access_token"], (await house.person("bia"))["access_token"]
    key = (await make_key(house, ana, ["ledger:read"])).json()
    async with house.http(**bearer(bia)) as http:
        assert (await http.delete(f"/auth/access-keys/{key['client_id']}")).status_code == 404
        assert (await http.get("/auth/access-keys")).json()["items"] == []


@pytest.mark.parametrize("scope", ["ledger:operate", "ledger:fund", "ledger:audit", "identity:self", "identity:admin"])
async def test_an_access_key_is_never_wider_than_its_maker(house: House, scope: str) -> None:
    token = (await house.person())["access_token"]
    answer = await make_key(house, token, ["ledger:read", scope])
    assert (answer.status_code, answer.json()["type"]) == (403, "/problems/forbidden")


async def test_an_access_key_loses_what_its_maker_loses(house: House, trust: Trust) -> None:
    token = (await house.person())["access_token"]
    key = (await make_key(house, token, ["ledger:read", "ledger:write"])).json()
    auth = (key["client_id"], key["client_secret"])
    await house.pool.execute("UPDATE identity.users SET role = 'auditor' WHERE username = 'ana'")
    got = await house.token({"grant_type": "client_credentials"}, auth=auth)
    assert got.json()["scope"] == "ledger:read"
    wider = await house.token({"grant_type": "client_credentials", "scope": "ledger:operate"}, auth=auth)
    assert wider.json()["error"] == "invalid_scope"


async def test_a_token_of_an_access_key_cannot_make_another_or_change_the_password(house: House) -> None:
    token = (await house.person())["access_token"]
    key = (await make_key(house, token, ["ledger:read", "ledger:write"])).json()
    auth = (key["client_id"], key["client_secret"])
    given = (await house.token({"grant_type": "client_credentials"}, auth=auth)).json()["access_token"]
    assert (await make_key(house, given, ["ledger:read"])).status_code == 403
    async with house.http(**bearer(given)) as http:
        body = {"current_password": PASSWORD, "new_password": OTHER}
        assert (await http.post("/auth/password", json=body)).status_code == 403


@pytest.mark.parametrize("expires_in", [0, 59, 366 * 86_400, -1])
async def test_an_access_key_lives_a_minute_to_a_year(house: House, expires_in: int) -> None:
    token = (await house.person())["access_token"]
    assert (await make_key(house, token, ["ledger:read"], expires_in=expires_in)).status_code == 400


async def test_a_person_has_at_most_fifty_access_keys(house: House) -> None:
    token = (await house.person())["access_token"]
    answers = [(await make_key(house, token, ["ledger:read"])).status_code for _ in range(51)]
    assert answers == [201] * 50 + [422]


# -- audit ------------------------------------------------------------------------------------------------------------


async def test_every_change_is_in_the_audit_table_and_nothing_leaves_it(house: House) -> None:
    tokens = await house.person()
    key = (await make_key(house, tokens["access_token"], ["ledger:read"])).json()
    async with house.http(**bearer(tokens["access_token"])) as http:
        await http.delete(f"/auth/access-keys/{key['client_id']}")
        await http.post("/auth/logout")
    done = [action for action, _ in await house.audit()]
    assert done[-5:] == ["user.added", "login", "access-key.added", "access-key.revoked", "logout"]
    for statement in ("UPDATE identity.audit SET actor = 'x'", "DELETE FROM identity.audit", "TRUNCATE identity.audit"):
        with pytest.raises(asyncpg.PostgresError, match="append only"):
            await house.pool.execute(statement)


async def test_the_first_administrator_is_made_once_and_the_password_said_once(house: House) -> None:
    from cluster import identity

    [line] = [line for line in house.said if "administrator" in line]
    password = line.split("password ")[1].split(" ")[0]
    tokens = await house.login("admin", password)
    claims = jwt.decode(tokens["access_token"], options={"verify_signature": False})
    assert "identity:admin" in claims["scope"]
    assert "ledger:" not in claims["scope"]
    again: list[str] = []
    await identity.prepare(house.pool, house.plan.ledger_key, say=again.append)
    assert again == []


async def test_requests_that_do_not_come_by_the_gateway_are_refused(house: House) -> None:
    async with house.http(**{"razao-gateway": "guessed"}) as http:
        assert (await http.post("/auth/login", json={})).status_code == 403
