"""Whatever somebody was given ends with what it was given for: the password, the login, the leave to come in."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import httpx
import pytest

from cluster import identity
from cluster.identity_wiring import Trust
from deployments.auth.tokens import InvalidToken
from deployments.identity_passwords import Passwords
from tests.deployments.identity_house import PASSWORD, Browser, House, claims_of, exchange

OTHER = "outra senha bem comprida"


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


async def post(house: House, path: str, token: str, body: dict[str, Any] | None = None) -> httpx.Response:
    async with house.http(**bearer(token)) as http:
        return await http.post(path, json=body) if body is not None else await http.post(path)


async def refresh(house: House, tokens: dict[str, Any], client_id: str = "razao") -> httpx.Response:
    form = {"grant_type": "refresh_token", "refresh_token": tokens["refresh_token"], "client_id": client_id}
    return await house.token(form)


async def make_key(house: House, token: str) -> tuple[str, str]:
    made = await post(house, "/auth/access-keys", token, {"name": "billing", "scopes": ["ledger:read"]})
    assert made.status_code == 201, made.text
    return made.json()["client_id"], made.json()["client_secret"]


async def by_key(house: House, key: tuple[str, str]) -> httpx.Response:
    return await house.token({"grant_type": "client_credentials"}, auth=key)


async def change_password(house: House, token: str, **more: Any) -> None:
    body = {"current_password": PASSWORD, "new_password": OTHER, **more}
    done = await post(house, "/auth/password", token, body)
    assert done.status_code == 204, done.text


async def stopped(house: House, *tokens: str) -> None:
    """Every one of these access tokens is refused."""
    await house.revocations_known()
    for token in tokens:
        with pytest.raises(InvalidToken, match="revoked"):
            await house.services.verifier.verify(token.encode())


async def asks_for_password(browser: Browser, client_id: str) -> bool:
    page = await browser.http.get(browser.address(client_id))
    assert page.status_code == 200, page.text
    return 'name="password"' in page.text


def after_verifying(house: House, monkeypatch: pytest.MonkeyPatch, then: Callable[[str], Awaitable[Any]]) -> None:
    """Once a password has been found right, do `then` with its hash before anything comes of it."""
    verify = house.services.passwords.verify

    async def verify_and(known: str | None, password: str) -> bool:
        matches = await verify(known, password)
        if matches and known is not None:
            monkeypatch.undo()
            await then(known)
        return matches

    monkeypatch.setattr(house.services.passwords, "verify", verify_and)


# -- the password -----------------------------------------------------------------------------------------------------


async def test_a_login_by_a_password_that_is_changed_meanwhile_is_refused(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = (await house.person())["access_token"]
    after_verifying(house, monkeypatch, lambda _: change_password(house, token))
    async with house.http() as http:
        answer = await http.post("/auth/login", json={"username": "ana", "password": PASSWORD})
    assert (answer.status_code, answer.json()["type"]) == (401, "/problems/wrong-credentials")
    assert "access_token" not in answer.text
    assert not await house.pool.fetchval("SELECT count(*) FROM identity.families WHERE revoked_at IS NULL")
    await house.login(password=OTHER)


async def test_a_login_at_the_page_by_a_password_that_is_changed_meanwhile_is_refused(
    house: House, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = (await house.person())["access_token"]
    client_id, _ = await house.client()
    page = await browser.http.get(browser.address(client_id))
    after_verifying(house, monkeypatch, lambda _: change_password(house, token))
    answer = await browser.submit(page, username="ana", password=PASSWORD)
    assert (answer.status_code, 'name="password"' in answer.text) == (401, True)
    assert not await house.pool.fetchval("SELECT count(*) FROM identity.sessions")
    assert await asks_for_password(browser, client_id)


async def test_a_login_goes_through_when_another_one_renews_the_hash_of_the_same_password(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have seen the old hash, made with yesterday's parameters; only one can put a better one in its place."""
    sub = await house.register()
    old = Passwords(memory_kib=64, passes=1)
    weak = await old.hash(PASSWORD)
    old.close()
    await house.pool.execute("UPDATE identity.users SET password = $1", weak)
    better = await house.services.passwords.hash(PASSWORD)
    after_verifying(house, monkeypatch, lambda known: house.services.users.rehash(sub, known, better))
    await house.login()
    assert await house.services.users.password_of(sub) == better


async def test_a_new_password_ends_whatever_the_old_one_gave(house: House, browser: Browser) -> None:
    """Logins, programs that were let in, the session at the login page, codes, and access keys with their tokens."""
    mine, other = await house.person(), await house.login()
    client_id, _ = await house.client()
    theirs = (await exchange(house, browser, client_id, (await browser.consent(client_id))["code"])).json()
    unused = (await browser.consent(client_id))["code"]
    key = await make_key(house, mine["access_token"])
    of_key = (await by_key(house, key)).json()["access_token"]
    await change_password(house, mine["access_token"])
    await stopped(house, mine["access_token"], other["access_token"], theirs["access_token"], of_key)
    assert (await refresh(house, other)).json()["error"] == "invalid_grant"
    assert (await refresh(house, theirs, client_id)).json()["error"] == "invalid_grant"
    assert (await exchange(house, browser, client_id, unused)).json()["error"] == "invalid_grant"
    assert (await by_key(house, key)).json()["error"] == "invalid_client"
    assert await asks_for_password(browser, client_id)
    async with house.http(**bearer((await house.login(password=OTHER))["access_token"])) as http:
        assert (await http.get("/auth/access-keys")).json()["items"] == []
    assert ("access-key.revoked", key[0]) in await house.audit()


async def test_a_new_password_leaves_access_keys_alone_when_it_is_told_so(house: House) -> None:
    token = (await house.person())["access_token"]
    key = await make_key(house, token)
    of_key = (await by_key(house, key)).json()["access_token"]
    await change_password(house, token, revoke_access_keys=False)
    await stopped(house, token)
    await house.services.verifier.verify(of_key.encode())
    assert (await by_key(house, key)).status_code == 200


# -- the login --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("again", [False, True])
async def test_logout_ends_the_session_at_the_login_page_that_the_login_came_by(
    house: House, browser: Browser, again: bool
) -> None:
    """With the codes of it; also when that browser has logged in `again` since."""
    await house.register()
    client_id, _ = await house.client()
    tokens = (await exchange(house, browser, client_id, (await browser.consent(client_id))["code"])).json()
    cookie = browser.http.cookies["razao-session"]
    unused = (await browser.consent(client_id, prompt="login" if again else None))["code"]
    assert (browser.http.cookies["razao-session"] != cookie) == again
    assert not await asks_for_password(browser, client_id)
    assert (await post(house, "/auth/logout", tokens["access_token"])).status_code == 204
    assert await asks_for_password(browser, client_id)
    assert (await exchange(house, browser, client_id, unused)).json()["error"] == "invalid_grant"
    assert not await house.pool.fetchval("SELECT count(*) FROM identity.sessions")


async def test_logout_ends_the_session_of_the_browser_that_asks_and_nobody_elses(
    house: House, browser: Browser
) -> None:
    mine, other = await house.person("ana"), await house.person("bia")
    client_id, _ = await house.client()
    await browser.consent(client_id)
    elsewhere = Browser(house)
    await elsewhere.consent(client_id)
    for tokens, ended in ((other, False), (mine, True)):
        gone = await browser.http.post("/auth/logout", headers=bearer(tokens["access_token"]))
        assert gone.status_code == 204
        assert await asks_for_password(browser, client_id) is ended
    assert not await asks_for_password(elsewhere, client_id)
    await elsewhere.close()


async def test_a_login_that_has_ended_makes_no_access_key_even_where_that_is_not_known_yet(house: House) -> None:
    """The replica that is asked has not been told of the logout: what counts is what is written."""
    tokens = await house.person()
    await house.follower.close()
    assert (await post(house, "/auth/logout", tokens["access_token"])).status_code == 204
    body = {"name": "billing", "scopes": ["ledger:read"]}
    refused = await post(house, "/auth/access-keys", tokens["access_token"], body)
    assert (refused.status_code, refused.json()["type"]) == (401, "/problems/unauthenticated")
    assert not await house.pool.fetchval("SELECT count(*) FROM identity.clients WHERE owner IS NOT NULL")


async def test_an_access_key_that_is_deleted_while_its_token_is_made_gives_none(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = await house.person()
    key = await make_key(house, tokens["access_token"])
    by_sub = house.services.users.by_sub

    async def by_sub_and(sub: str) -> Any:
        found = await by_sub(sub)
        monkeypatch.undo()
        async with house.http(**bearer(tokens["access_token"])) as http:
            assert (await http.delete(f"/auth/access-keys/{key[0]}")).status_code == 204
        return found

    monkeypatch.setattr(house.services.users, "by_sub", by_sub_and)
    refused = await by_key(house, key)
    assert (refused.status_code, refused.json()["error"]) == (401, "invalid_client")


# -- what one sees of it ----------------------------------------------------------------------------------------------


async def sessions_of(house: House, token: str, path: str = "/auth/sessions") -> dict[str, Any]:
    async with house.http(**bearer(token)) as http:
        answer = await http.get(path)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def end(house: House, token: str, session: str) -> int:
    async with house.http(**bearer(token)) as http:
        return (await http.delete(f"/auth/sessions/{session}")).status_code


async def test_a_person_sees_what_they_are_logged_in_by_and_no_secret(house: House, browser: Browser) -> None:
    first, second = await house.person(), await house.login()
    client_id, _ = await house.client()
    theirs = (await exchange(house, browser, client_id, (await browser.consent(client_id))["code"])).json()
    second = (await refresh(house, second)).json()
    await house.person("bia")
    listed = await sessions_of(house, first["access_token"])
    items = listed["items"]
    assert listed["next_cursor"] is None
    known = {(None, None): 1, ("razao", "Razao"): 2, (client_id, "An app"): 1}
    assert Counter((one["client_id"], one["client_name"]) for one in items) == known
    assert [one["current"] for one in items if one["client_id"] == "razao"] == [False, True]  # the newest first
    assert [one["last_used_at"] is not None for one in items if one["client_id"] == "razao"] == [True, False]
    assert [one["logged_in_at"] for one in items] == sorted((one["logged_in_at"] for one in items), reverse=True)
    for secret in (theirs["refresh_token"], second["refresh_token"], browser.http.cookies["razao-session"]):
        assert secret not in str(items)
        assert house.services.digest(secret).hex() not in str(items)


@pytest.mark.parametrize("spelled", [str.upper, lambda sid: sid.replace("-", ""), lambda sid: f"urn:uuid:{sid}"])
async def test_a_session_that_is_ended_under_another_spelling_ends_all_the_same(
    house: House, spelled: Callable[[str], str]
) -> None:
    """Else its tokens would live on past all that ends them: what was ended is not ended again."""
    mine, other = await house.person(), await house.login()
    sid = claims_of(other)["sid"]
    await end(house, mine["access_token"], spelled(sid))
    marks = await house.pool.fetch("SELECT mark FROM identity.revocations")
    ended = await house.pool.fetchval("SELECT revoked_at IS NOT NULL FROM identity.families WHERE id = $1", UUID(sid))
    assert [row["mark"] for row in marks] == ([f"sid:{sid}"] if ended else [])


async def test_a_person_ends_what_they_are_logged_in_by_one_by_one(house: House, browser: Browser) -> None:
    mine, other = await house.person(), await house.login()
    client_id, _ = await house.client()
    theirs = (await exchange(house, browser, client_id, (await browser.consent(client_id))["code"])).json()
    items = (await sessions_of(house, mine["access_token"]))["items"]
    [program] = [one["id"] for one in items if one["client_id"] == client_id]
    [login] = [one["id"] for one in items if one["client_id"] == "razao" and not one["current"]]
    assert await end(house, mine["access_token"], login) == 204
    await stopped(house, other["access_token"])
    assert (await refresh(house, other)).json()["error"] == "invalid_grant"
    assert await end(house, mine["access_token"], program) == 204  # and with it the login page that it came by
    await stopped(house, theirs["access_token"])
    assert await asks_for_password(browser, client_id)
    unused = (await browser.consent(client_id))["code"]
    [page] = [
        one["id"] for one in (await sessions_of(house, mine["access_token"]))["items"] if one["client_id"] is None
    ]
    assert await end(house, mine["access_token"], page) == 204
    assert await asks_for_password(browser, client_id)
    assert (await exchange(house, browser, client_id, unused)).json()["error"] == "invalid_grant"
    for gone in (login, program, page, "x", "00000000-0000-4000-8000-000000000000"):
        assert await end(house, mine["access_token"], gone) == 404
    assert [one["current"] for one in (await sessions_of(house, mine["access_token"]))["items"]] == [True]


async def test_nobody_sees_or_ends_what_others_are_logged_in_by(house: House, browser: Browser) -> None:
    ana, bia = await house.person("ana"), await house.person("bia")
    client_id, _ = await house.client()
    theirs = (await exchange(house, browser, client_id, (await browser.consent(client_id))["code"])).json()
    key = await make_key(house, ana["access_token"])
    of_key = (await by_key(house, key)).json()["access_token"]
    items = (await sessions_of(house, ana["access_token"]))["items"]
    assert len(items) == 3
    for one in items:
        assert await end(house, bia["access_token"], one["id"]) == 404
        for token in (theirs["access_token"], of_key):  # a program, and a key, are not the person
            assert await end(house, token, one["id"]) == 403
    for token in (theirs["access_token"], of_key):
        async with house.http(**bearer(token)) as http:
            assert (await http.get("/auth/sessions")).status_code == 403
    assert (await sessions_of(house, ana["access_token"]))["items"] == items


async def test_a_long_list_of_sessions_comes_by_pages_that_lack_none(house: House) -> None:
    tokens = await house.person()
    sub, count = await house.pool.fetchval("SELECT sub FROM identity.users WHERE username = 'ana'"), 250
    await house.pool.execute(
        "INSERT INTO identity.families (id, sub, client_id, scope, auth_time, expires_at)"
        " SELECT gen_random_uuid(), $1, 'razao', '', now() - (n / 3) * interval '1 microsecond',"
        " now() + interval '1 day' FROM generate_series(1, $2::integer) AS n",
        sub, count,
    )  # fmt: skip
    cursor: str | None = ""
    seen: set[str] = set()
    sizes: list[int] = []
    while cursor is not None:
        page = await sessions_of(house, tokens["access_token"], f"/auth/sessions{cursor and '?cursor=' + cursor}")
        seen |= {one["id"] for one in page["items"]}
        sizes.append(len(page["items"]))
        cursor = page["next_cursor"]
    assert (sizes, len(seen)) == ([100, 100, 51], count + 1)
    async with house.http(**bearer(tokens["access_token"])) as http:
        for wrong in ("cursor=x", "cursor=", "cursor=1.2", "limit=1", f"cursor={'9' * 18}.{sub}", f"cursor=1.{sub}%0A"):
            answer = await http.get(f"/auth/sessions?{wrong}")
            assert (answer.status_code, answer.json()["type"]) == (400, "/problems/malformed"), wrong
        last = await http.get(f"/auth/sessions?cursor={'9' * 17}.{sub}")
        assert last.status_code == 200


# -- the leave to come in ---------------------------------------------------------------------------------------------


async def test_what_was_stopped_by_disabling_somebody_stays_stopped_when_they_are_enabled(
    house: House, browser: Browser, trust: Trust
) -> None:
    mine = await house.person()
    client_id, _ = await house.client()
    theirs = (await exchange(house, browser, client_id, (await browser.consent(client_id))["code"])).json()
    key = await make_key(house, mine["access_token"])
    of_key = (await by_key(house, key)).json()["access_token"]
    started = time.time()
    for _ in range(2):
        await identity.set_enabled(house.pool, "ana", enabled=False)
        await identity.set_enabled(house.pool, "ana", enabled=True)
    new = await house.login()
    of_new_key = (await by_key(house, await make_key(house, new["access_token"]))).json()["access_token"]
    await stopped(house, mine["access_token"], theirs["access_token"], of_key)
    assert (await refresh(house, mine)).json()["error"] == "invalid_grant"
    assert (await refresh(house, theirs, client_id)).json()["error"] == "invalid_grant"
    assert (await by_key(house, key)).json()["error"] == "invalid_client"
    assert await asks_for_password(browser, client_id)
    for token in (new["access_token"], of_new_key):
        await trust.verifier().verify(token.encode())
    assert (await refresh(house, new)).status_code == 200
    # A mark lasts as long as any token that it stops, whatever is done meanwhile.
    soonest = await house.pool.fetchval("SELECT extract(epoch FROM min(expires_at)) FROM identity.revocations")
    assert soonest >= started + house.services.lifetimes.access_s
