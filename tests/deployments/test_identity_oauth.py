"""OAuth 2.0 and OpenID Connect, each rule of RFC 9700 that an attacker would try first."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import re
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cluster import identity
from cluster.data import EngineError
from cluster.identity_wiring import Trust
from deployments.auth.tokens import InvalidToken
from deployments.identity_roles import Role
from tests.deployments.identity_house import CALLBACK, ISSUER, PASSWORD, Browser, House, exchange, form_of, redirected


async def error_of(answer: httpx.Response) -> str:
    assert answer.headers["content-type"] == "application/json"
    assert "access_token" not in answer.text
    return str(answer.json()["error"])


async def refresh(house: House, token: str, client_id: str = "razao", **more: str) -> httpx.Response:
    return await house.token({"grant_type": "refresh_token", "refresh_token": token, "client_id": client_id, **more})


# -- the code ---------------------------------------------------------------------------------------------------------


async def test_a_code_gives_tokens_for_what_was_consented_to(house: House, browser: Browser, trust: Trust) -> None:
    sub = await house.register()
    client_id, _ = await house.client()
    back = await browser.consent(client_id, nonce="a nonce")
    assert (back["state"], back["iss"]) == ("a state", ISSUER)
    answer = await exchange(house, browser, client_id, back["code"])
    assert answer.status_code == 200, answer.text
    assert answer.headers["cache-control"] == "no-store"
    tokens = answer.json()
    found = await trust.verifier().verify(tokens["access_token"].encode())
    assert (found.subject, set(found.scopes)) == (sub, {"openid", "profile", "ledger:read"})
    claims = jwt.decode(tokens["id_token"], options={"verify_signature": False})
    assert (claims["aud"], claims["nonce"], claims["iss"]) == (client_id, "a nonce", ISSUER)
    async with house.http(authorization=f"Bearer {tokens['access_token']}") as http:
        about = await http.get("/oauth/userinfo")
    assert about.json() == {"sub": sub, "name": "Ana Souza", "preferred_username": "ana"}


async def test_a_replayed_code_is_refused_and_ends_what_it_gave(house: House, browser: Browser) -> None:
    await house.register()
    client_id, _ = await house.client()
    code = (await browser.consent(client_id))["code"]
    tokens = (await exchange(house, browser, client_id, code)).json()
    assert await error_of(await exchange(house, browser, client_id, code)) == "invalid_grant"
    assert await error_of(await refresh(house, tokens["refresh_token"], client_id)) == "invalid_grant"
    await house.revocations_known()
    with pytest.raises(InvalidToken, match="revoked"):
        await house.services.verifier.verify(tokens["access_token"].encode())


async def test_one_of_two_exchanges_of_a_code_at_once_succeeds(house: House, browser: Browser) -> None:
    await house.register()
    client_id, _ = await house.client()
    code = (await browser.consent(client_id))["code"]
    answers = await asyncio.gather(*(exchange(house, browser, client_id, code) for _ in range(4)))
    assert sorted(answer.status_code for answer in answers) == [200, 400, 400, 400]


async def test_an_exchange_that_the_gateway_sends_again_is_no_replay(house: House, browser: Browser) -> None:
    await house.register()
    client_id, _ = await house.client()
    code = (await browser.consent(client_id))["code"]
    form = {
        "grant_type": "authorization_code", "code": code, "redirect_uri": CALLBACK, "client_id": client_id,
        "code_verifier": browser.verifier,
    }  # fmt: skip
    async with house.http(**{"x-request-id": "the-same"}) as http:
        answers = [await http.post("/oauth/token", data=form) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert (await refresh(house, answers[0].json()["refresh_token"], client_id)).status_code == 400
    assert (await refresh(house, answers[1].json()["refresh_token"], client_id)).status_code == 200


async def test_a_stolen_code_is_worth_nothing_to_another_client(house: House, browser: Browser) -> None:
    await house.register()
    victim, _ = await house.client()
    thief, _ = await house.client()
    code = (await browser.consent(victim))["code"]
    assert await error_of(await exchange(house, browser, thief, code)) == "invalid_grant"


async def test_a_code_is_good_for_a_minute(house: House, browser: Browser) -> None:
    await house.register()
    client_id, _ = await house.client()
    code = (await browser.consent(client_id))["code"]
    await house.pool.execute("UPDATE identity.codes SET expires_at = now()")
    assert await error_of(await exchange(house, browser, client_id, code)) == "invalid_grant"


@pytest.mark.parametrize(
    "changes",
    [
        {"code_challenge": None, "code_challenge_method": None},
        {"code_challenge": None},
        {"code_challenge_method": None},
        {"code_challenge_method": "plain"},
        {"code_challenge_method": "s256"},
        {"code_challenge": "short"},
    ],
)
@pytest.mark.parametrize("public", [True, False])
async def test_pkce_is_needed_and_s256_alone(
    house: House, browser: Browser, changes: dict[str, str | None], public: bool
) -> None:
    await house.register()
    client_id, _ = await house.client(public=public)
    back = redirected(await browser.http.get(browser.address(client_id, **changes)))
    assert back["error"] == "invalid_request"
    assert (back["state"], back["iss"]) == ("a state", ISSUER)


@pytest.mark.parametrize("verifier", ["", "x" * 43, "x" * 42, "é" * 43])
async def test_a_code_without_its_verifier_is_refused(house: House, browser: Browser, verifier: str) -> None:
    await house.register()
    client_id, _ = await house.client()
    code = (await browser.consent(client_id))["code"]
    answer = await exchange(house, browser, client_id, code, code_verifier=verifier)
    assert await error_of(answer) in {"invalid_grant", "invalid_request"}


async def test_a_challenge_is_not_its_own_verifier(house: House, browser: Browser) -> None:
    """The downgrade: a thief who saw the challenge pretends that the method was `plain`."""
    from tests.deployments.identity_house import challenge_of

    await house.register()
    client_id, _ = await house.client()
    code = (await browser.consent(client_id))["code"]
    challenge = challenge_of(browser.verifier)
    answer = await exchange(house, browser, client_id, code, code_verifier=challenge, code_challenge_method="plain")
    assert await error_of(answer) == "invalid_grant"


@pytest.mark.parametrize(
    "uri",
    [
        CALLBACK + "/",
        CALLBACK + "?x=1",
        CALLBACK + "#fragment",
        CALLBACK + "/../evil",
        CALLBACK.upper(),
        CALLBACK.replace("https", "http"),
        "https://app.example",
        "https://app.example.evil.example/callback",
        "https://evil.example/callback",
        "https://app.example@evil.example/callback",
        "https://app.example:443/callback",
        "https://app.example/callback%00",
        "//app.example/callback",
        "javascript:alert(1)",
        "https://app.example/callback\r\nSet-Cookie: a=b",
        'https://app.example/callback"',
        "",
        None,
    ],
)
async def test_any_other_redirect_uri_ends_on_a_page_of_ours(house: House, browser: Browser, uri: str | None) -> None:
    client_id, _ = await house.client()
    answer = await browser.http.get(browser.address(client_id, redirect_uri=uri))
    assert answer.status_code == 400
    assert "location" not in answer.headers
    assert "set-cookie: a=b" not in str(answer.headers).lower()
    assert answer.headers["content-type"].startswith("text/html")


async def test_the_redirect_uri_of_the_exchange_is_the_one_of_the_request(house: House, browser: Browser) -> None:
    await house.register()
    client_id, _ = await house.client()
    code = (await browser.consent(client_id))["code"]
    for uri in ("https://evil.example/", ""):
        assert await error_of(await exchange(house, browser, client_id, code, redirect_uri=uri)) == "invalid_grant"


@pytest.mark.parametrize(
    "uri",
    [
        "http://app.example/cb", "https://*.example/cb", "https://a@b.example/cb", "https://a.example/cb#x", "ftp://a/b",
        "javascript:alert(1)", "data:text/html,x", "app:/cb", "https:///cb", "https://a.example/ü", "com.app:/cb x",
    ],
)  # fmt: skip
def test_a_client_cannot_have_an_unsafe_redirect_uri(uri: str) -> None:
    with pytest.raises(EngineError):
        identity.check_redirect_uri(uri, public=True)


async def test_mix_up_every_answer_of_the_authorization_endpoint_names_its_issuer(
    house: House, browser: Browser
) -> None:
    await house.register()
    client_id, _ = await house.client()
    good = await browser.consent(client_id)
    denied_page = await browser.http.get(browser.address(client_id))
    denied = redirected(await browser.submit(denied_page, decision="deny"))
    bad = redirected(await browser.http.get(browser.address(client_id, scope="ledger:operate")))
    assert [one["iss"] for one in (good, denied, bad)] == [ISSUER] * 3
    assert (denied["error"], bad["error"]) == ("access_denied", "invalid_scope")
    async with house.http() as http:
        known = (await http.get("/.well-known/openid-configuration")).json()
    assert known["authorization_response_iss_parameter_supported"] is True
    assert known["issuer"] == ISSUER


@pytest.mark.parametrize("response_type", ["token", "id_token", "code token", "none", 'x"y'])
async def test_no_token_ever_comes_by_the_front_channel(house: House, browser: Browser, response_type: str) -> None:
    client_id, _ = await house.client()
    answer = await browser.http.get(browser.address(client_id, response_type=response_type))
    assert answer.status_code in {303, 400}
    if answer.status_code == 303:
        assert redirected(answer)["error"] == "unsupported_response_type"


async def test_a_code_of_somebody_disabled_meanwhile_is_refused(house: House, browser: Browser) -> None:
    await house.register()
    client_id, _ = await house.client()
    code = (await browser.consent(client_id))["code"]
    await identity.set_enabled(house.pool, "ana", enabled=False)
    assert await error_of(await exchange(house, browser, client_id, code)) == "invalid_grant"


async def test_prompt_none_never_shows_a_page(house: House, browser: Browser) -> None:
    await house.register()
    client_id, _ = await house.client()
    out = redirected(await browser.http.get(browser.address(client_id, prompt="none")))
    await browser.consent(client_id)
    logged_in = redirected(await browser.http.get(browser.address(client_id, prompt="none")))
    assert (out["error"], logged_in["error"]) == ("login_required", "consent_required")


async def test_prompt_login_and_max_age_ask_for_the_password_again(house: House, browser: Browser) -> None:
    await house.register()
    client_id, _ = await house.client()
    await browser.consent(client_id)
    await house.pool.execute("UPDATE identity.sessions SET auth_time = now() - interval '10 minutes'")
    for changes in ({"prompt": "login"}, {"max_age": "300"}, {"max_age": "0"}):
        page = await browser.http.get(browser.address(client_id, **changes))
        assert 'name="password"' in page.text
    assert 'name="decision"' in (await browser.http.get(browser.address(client_id, max_age="3600"))).text


# -- the pages --------------------------------------------------------------------------------------------------------


async def test_the_pages_run_no_script_load_nothing_and_are_in_no_frame(house: House, browser: Browser) -> None:
    await house.register()
    client_id, _ = await house.client()
    login = await browser.http.get(browser.address(client_id))
    consent = await browser.submit(login, username="ana", password=PASSWORD)
    failed = await browser.http.get(browser.address("nobody"))
    for page in (login, consent, failed):
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert "base-uri 'none'" in policy
        assert page.headers["x-frame-options"] == "DENY"
        assert page.headers["cache-control"] == "no-store"
        assert page.headers["referrer-policy"] == "no-referrer"
        style = re.search(r"<style>(.*?)</style>", page.text, re.DOTALL)
        assert style is not None
        digest = hashlib.sha256(style[1].encode()).digest()
        from base64 import b64encode

        assert f"'sha256-{b64encode(digest).decode()}'" in policy
        assert "<script" not in page.text


async def test_what_a_client_or_a_request_says_is_text_on_the_page(house: House, browser: Browser) -> None:
    await house.register("ana")
    evil = "<script>alert(1)</script>"
    made = await identity.add_client(house.pool, house.plan.ledger_key, evil, [CALLBACK], public=True)
    page = await browser.http.get(browser.address(made["client_id"], state=evil + '"><b>'))
    assert "<script>" not in page.text
    assert "<b>" not in page.text.replace("<b>&lt;script", "")


@pytest.mark.parametrize("what", ["no cookie", "no token", "wrong token", "another request", "another step"])
async def test_csrf_a_consent_that_this_browser_was_not_shown_is_refused(
    house: House, browser: Browser, what: str
) -> None:
    await house.register()
    client_id, _ = await house.client()
    await browser.consent(client_id)
    page = await browser.http.get(browser.address(client_id))
    action, hidden = form_of(page)
    fields = {**hidden, "decision": "allow"}
    match what:
        case "no cookie":
            browser.http.cookies.delete("razao-browser")
        case "no token":
            del fields["token"]
        case "wrong token":
            fields["token"] = "0" * 48
        case "another request":
            action = browser.address(client_id, scope="openid ledger:read ledger:write")
        case _:
            fields["token"] = form_of(await Browser(house).http.get(browser.address(client_id)))[1]["token"]
    answer = await browser.http.post(action, data=fields)
    assert answer.status_code == 403, answer.text
    assert "location" not in answer.headers


@pytest.mark.parametrize(
    "headers",
    [{"origin": "https://evil.example"}, {"origin": "null"}, {"sec-fetch-site": "cross-site"}],
)
async def test_csrf_a_form_from_another_site_is_refused(
    house: House, browser: Browser, headers: dict[str, str]
) -> None:
    await house.register()
    client_id, _ = await house.client()
    await browser.consent(client_id)
    action, hidden = form_of(await browser.http.get(browser.address(client_id)))
    answer = await browser.http.post(action, data={**hidden, "decision": "allow"}, headers=headers)
    assert answer.status_code == 403


async def test_cookies_are_for_us_alone_and_over_tls_only_where_there_is_tls(house: House) -> None:
    client_id, _ = await house.client()
    await house.register()
    for scheme, name in (("http", "razao-session"), ("https", "__Host-razao-session")):
        there = Browser(house, **{"razao-client-scheme": scheme})
        page = await there.http.get(there.address(client_id))
        there.http.cookies.clear()
        first = page.headers["set-cookie"].split(";")[0]
        action, hidden = form_of(page)
        answer = await there.http.post(
            action, data={**hidden, "username": "ana", "password": PASSWORD}, headers={"cookie": first}
        )
        cookie = answer.headers["set-cookie"]
        assert cookie.startswith(name + "=")
        assert "HttpOnly" in cookie
        assert "SameSite=Lax" in cookie
        assert ("Secure" in cookie) == (scheme == "https")
        await there.close()


async def test_a_login_never_keeps_a_session_that_was_there_before(house: House, browser: Browser) -> None:
    await house.register()
    client_id, _ = await house.client()
    browser.http.cookies.set("razao-session", "planted", domain="identity.test")
    page = await browser.http.get(browser.address(client_id))
    answer = await browser.submit(page, username="ana", password=PASSWORD)
    assert "razao-session=planted" not in answer.headers["set-cookie"]
    assert await house.services.grants.session(house.services.digest("planted")) is None


async def test_a_wrong_password_at_the_page_says_what_the_api_says(house: House, browser: Browser) -> None:
    await house.register()
    client_id, _ = await house.client()
    page = await browser.http.get(browser.address(client_id))
    known = await browser.submit(page, username="ana", password="wrong wrong wrong")
    unknown = await browser.submit(page, username="nobody", password="wrong wrong wrong")
    assert known.status_code == unknown.status_code == 401
    assert known.text == unknown.text


@pytest.mark.parametrize("parameter", ["client_secret", "request", "request_uri"])
async def test_a_secret_or_a_request_object_in_an_address_is_refused(
    house: House, browser: Browser, parameter: str
) -> None:
    client_id, _ = await house.client()
    answer = await browser.http.get(browser.address(client_id, **{parameter: "x"}))
    assert answer.status_code == 400


async def test_a_parameter_that_is_there_twice_is_refused(house: House, browser: Browser) -> None:
    client_id, secret = await house.client(public=False, redirect_uri=CALLBACK)
    for extra in ("&client_id=other", "&redirect_uri=https://evil.example", "&code_challenge=" + "x" * 43, "&state=x"):
        assert (await browser.http.get(browser.address(client_id) + extra)).status_code == 400
    body = f"grant_type=client_credentials&client_id={client_id}&client_secret={secret}&grant_type=refresh_token"
    async with house.http() as http:
        answer = await http.post(
            "/oauth/token", content=body, headers={"content-type": "application/x-www-form-urlencoded"}
        )
    assert await error_of(answer) == "invalid_request"


async def test_header_splitting_what_a_request_says_stays_in_its_parameter(house: House, browser: Browser) -> None:
    await house.register()
    client_id, _ = await house.client()
    answer = await browser.http.get(browser.address(client_id, scope="none", state="x\r\nSet-Cookie: evil=1"))
    assert answer.status_code == 400
    answer = await browser.http.get(browser.address(client_id, scope="none", state="x&code=evil#"))
    assert redirected(answer)["state"] == "x&code=evil#"


# -- refresh tokens ---------------------------------------------------------------------------------------------------


async def test_refresh_tokens_rotate_and_a_replayed_one_ends_the_family(house: House) -> None:
    tokens = await house.person()
    second = (await refresh(house, tokens["refresh_token"])).json()
    third = (await refresh(house, second["refresh_token"])).json()
    assert len({one["refresh_token"] for one in (tokens, second, third)}) == 3
    assert "id_token" in third
    assert await error_of(await refresh(house, tokens["refresh_token"])) == "invalid_grant"
    assert await error_of(await refresh(house, third["refresh_token"])) == "invalid_grant"
    await house.revocations_known()
    with pytest.raises(InvalidToken, match="revoked"):
        await house.services.verifier.verify(third["access_token"].encode())
    assert "refresh-token.reused" in [action for action, _ in await house.audit()]


async def test_of_a_refresh_token_used_many_times_at_once_one_use_counts_and_the_family_ends(house: House) -> None:
    tokens = await house.person()
    answers = await asyncio.gather(*(refresh(house, tokens["refresh_token"]) for _ in range(4)))
    good = [answer for answer in answers if answer.status_code == 200]
    assert len(good) == 1
    assert await error_of(await refresh(house, good[0].json()["refresh_token"])) == "invalid_grant"


async def test_a_refresh_token_is_its_clients_alone(house: House, browser: Browser) -> None:
    await house.register()
    client_id, _ = await house.client()
    other, _ = await house.client()
    code = (await browser.consent(client_id))["code"]
    tokens = (await exchange(house, browser, client_id, code)).json()
    for thief in (other, "razao"):
        assert await error_of(await refresh(house, tokens["refresh_token"], thief)) == "invalid_grant"


async def test_a_refresh_never_widens_the_scope(house: House) -> None:
    tokens = await house.person()
    answer = await refresh(house, tokens["refresh_token"], scope="ledger:read ledger:operate")
    assert await error_of(answer) == "invalid_scope"
    narrower = await refresh(house, tokens["refresh_token"], scope="ledger:read")
    assert narrower.json()["scope"] == "ledger:read"


async def test_a_role_that_was_taken_away_is_gone_with_the_next_refresh(house: House) -> None:
    await identity.add_user(house.pool, "olga", Role.OPERATOR, PASSWORD, length_min=15)
    tokens = await house.login("olga")
    assert "ledger:operate" in tokens["scope"]
    await house.pool.execute("UPDATE identity.users SET role = 'person' WHERE username = 'olga'")
    again = (await refresh(house, tokens["refresh_token"])).json()
    assert "ledger:operate" not in again["scope"]
    assert "ledger:fund" not in again["scope"]


# -- clients ----------------------------------------------------------------------------------------------------------


async def test_a_system_gets_tokens_for_itself_by_either_way_of_showing_its_secret(house: House, trust: Trust) -> None:
    made = await identity.add_client(house.pool, house.plan.ledger_key, "Bank", [], scopes=["ledger:fund"])
    form = {"grant_type": "client_credentials"}
    basic = await house.token(form, auth=(made["client_id"], made["client_secret"]))
    post = await house.token({**form, "client_id": made["client_id"], "client_secret": made["client_secret"]})
    for answer in (basic, post):
        found = await trust.verifier().verify(answer.json()["access_token"].encode())
        assert (found.subject, set(found.scopes)) == (made["client_id"], {"ledger:fund"})
        assert "sid" not in found.claims


@pytest.mark.parametrize("way", ["wrong", "none", "both", "two ids", "in the address", "garbled", "not utf-8"])
async def test_a_client_that_does_not_show_its_secret_properly_gets_nothing(house: House, way: str) -> None:
    made = await identity.add_client(house.pool, house.plan.ledger_key, "Bank", [], scopes=["ledger:fund"])
    client_id, secret = made["client_id"], made["client_secret"]
    form = {"grant_type": "client_credentials"}
    answer = await {
        "wrong": lambda: house.token(form, auth=(client_id, secret + "x")),
        "none": lambda: house.token({**form, "client_id": client_id}),
        "both": lambda: house.token({**form, "client_secret": secret}, auth=(client_id, secret)),
        "two ids": lambda: house.token({**form, "client_id": "razao"}, auth=(client_id, secret)),
        "in the address": lambda: house.token(form, params={"client_id": client_id, "client_secret": secret}),
        "garbled": lambda: house.token(form, headers={"authorization": "Basic %%%"}),
        "not utf-8": lambda: house.token(form, headers={"authorization": "Basic /////w=="}),
    }[way]()
    assert answer.status_code in {400, 401}
    assert await error_of(answer) in {"invalid_client", "invalid_request"}


async def test_each_client_has_its_own_grants_alone(house: House) -> None:
    app, secret = await house.client(public=False)
    assert secret is not None
    answer = await house.token({"grant_type": "client_credentials"}, auth=(app, secret))
    assert await error_of(answer) == "unauthorized_client"
    for grant in ("password", "implicit", "urn:ietf:params:oauth:grant-type:device_code", ""):
        answer = await house.token({"grant_type": grant, "username": "ana", "password": PASSWORD}, auth=(app, secret))
        assert await error_of(answer) == "unsupported_grant_type"


# -- revocation and introspection -------------------------------------------------------------------------------------


async def test_revocation_of_a_refresh_token_ends_the_login(house: House) -> None:
    tokens = await house.person()
    async with house.http() as http:
        form = {"token": tokens["refresh_token"], "client_id": "razao"}
        assert (await http.post("/oauth/revoke", data=form)).status_code == 200
        assert (await http.post("/oauth/revoke", data={**form, "token": "unknown"})).status_code == 200
    assert await error_of(await refresh(house, tokens["refresh_token"])) == "invalid_grant"
    await house.revocations_known()
    with pytest.raises(InvalidToken, match="revoked"):
        await house.services.verifier.verify(tokens["access_token"].encode())


async def test_revocation_of_an_access_token_stops_it_alone(house: House, trust: Trust) -> None:
    tokens = await house.person()
    await trust.verifier().verify(tokens["access_token"].encode())
    async with house.http() as http:
        form = {"token": tokens["access_token"], "client_id": "razao"}
        assert (await http.post("/oauth/revoke", data=form)).status_code == 200
    await house.revocations_known()
    with pytest.raises(InvalidToken, match="revoked"):
        await house.services.verifier.verify(tokens["access_token"].encode())
    assert (await refresh(house, tokens["refresh_token"])).status_code == 200


async def test_nobody_revokes_another_clients_token(house: House) -> None:
    tokens = await house.person()
    other, _ = await house.client()
    async with house.http() as http:
        await http.post("/oauth/revoke", data={"token": tokens["refresh_token"], "client_id": other})
    assert (await refresh(house, tokens["refresh_token"])).status_code == 200


async def test_introspection_tells_a_client_of_its_own_tokens_and_a_trusted_system_of_all(house: House) -> None:
    tokens = await house.person()
    key = house.plan.ledger_key
    trusted = await identity.add_client(house.pool, key, "Resource", [], scopes=["identity:introspect"])
    stranger = await identity.add_client(house.pool, key, "Bank", [], scopes=["ledger:fund"])

    async def ask(client: dict[str, Any], token: str) -> dict[str, Any]:
        async with house.http() as http:
            answer = await http.post(
                "/oauth/introspect", data={"token": token}, auth=(client["client_id"], client["client_secret"])
            )
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    for token in (tokens["access_token"], tokens["refresh_token"]):
        found = await ask(trusted, token)
        assert found["active"] is True
        assert found["client_id"] == "razao"
        assert await ask(stranger, token) == {"active": False}
    assert await ask(trusted, tokens["id_token"]) == {"active": False}
    assert await ask(trusted, "nonsense") == {"active": False}
    async with house.http() as http:
        answer = await http.post("/oauth/introspect", data={"token": tokens["access_token"], "client_id": "razao"})
    assert answer.status_code == 401


async def test_userinfo_wants_an_access_token_with_openid(house: House) -> None:
    tokens = await house.person()
    made = await identity.add_client(house.pool, house.plan.ledger_key, "Bank", [], scopes=["ledger:fund"])
    grant = {"grant_type": "client_credentials"}
    own = (await house.token(grant, auth=(made["client_id"], made["client_secret"]))).json()["access_token"]
    for token, status in ((tokens["access_token"], 200), (tokens["id_token"], 401), (own, 403), ("x", 401)):
        async with house.http(authorization=f"Bearer {token}") as http:
            assert (await http.get("/oauth/userinfo")).status_code == status


# -- forged tokens ----------------------------------------------------------------------------------------------------


def b64(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def parts_of(token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    head, body, _ = token.split(".")
    return json.loads(urlsafe_b64decode(head + "==")), json.loads(urlsafe_b64decode(body + "=="))


def signed(header: dict[str, Any], claims: dict[str, Any], key: RSAPrivateKey) -> str:
    more = {name: value for name, value in header.items() if name != "alg"}
    return jwt.encode(claims, key, algorithm="RS256", headers=more)


async def own_key(house: House) -> RSAPrivateKey:
    """The very key of the service, for what only its own mistakes could sign."""
    [key] = house.services.signer.current().keys
    found = key.raw_value
    assert isinstance(found, RSAPrivateKey)
    return found


@pytest.mark.parametrize("alg", ["none", "None", "nOnE", ""])
async def test_alg_none_is_refused(house: House, trust: Trust, alg: str) -> None:
    header, claims = parts_of((await house.person())["access_token"])
    header["alg"] = alg
    forged = f"{b64(json.dumps(header).encode())}.{b64(json.dumps(claims).encode())}."
    for verifier in (trust.verifier(), house.services.verifier):
        with pytest.raises(InvalidToken):
            await verifier.verify(forged.encode())


async def test_hs256_with_the_public_key_as_its_secret_is_refused(house: House, trust: Trust) -> None:
    header, claims = parts_of((await house.person())["access_token"])
    public = (await own_key(house)).public_key()
    async with house.http() as http:
        jwks = (await http.get("/oauth/jwks")).content
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    der = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    for secret in (pem, pem.strip(), der, jwks):
        text = f"{b64(json.dumps({**header, 'alg': 'HS256'}).encode())}.{b64(json.dumps(claims).encode())}"
        forged = f"{text}.{b64(hmac.digest(secret, text.encode(), 'sha256'))}"
        with pytest.raises(InvalidToken):
            await trust.verifier().verify(forged.encode())


@pytest.mark.parametrize(
    "changes",
    [
        {"jku": "https://evil.example/jwks"},
        {"x5u": "https://evil.example/cert"},
        {"jwk": "own"},
        {"kid": "../../../../dev/null"},
        {"kid": "' OR 1=1 --"},
        {"kid": "unknown"},
        {"kid": None},
        {"crit": ["exp"]},
    ],
)
async def test_kid_jku_and_keys_brought_along_are_refused(house: House, trust: Trust, changes: dict[str, Any]) -> None:
    header, claims = parts_of((await house.person())["access_token"])
    evil = generate_private_key(65537, 2048)
    if changes.get("jwk"):
        numbers = evil.public_key().public_numbers()
        changes = {"jwk": {"kty": "RSA", "n": b64(numbers.n.to_bytes(256, "big")), "e": "AQAB"}}
    forged_header = {**header, **changes}
    if changes.get("kid", "") is None:
        del forged_header["kid"]
    text = f"{b64(json.dumps(forged_header).encode())}.{b64(json.dumps(claims).encode())}"
    from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
    from cryptography.hazmat.primitives.hashes import SHA256

    forged = f"{text}.{b64(evil.sign(text.encode(), PKCS1v15(), SHA256()))}"
    with pytest.raises(InvalidToken):
        await trust.verifier().verify(forged.encode())


@pytest.mark.parametrize(
    ("claim", "value"),
    [
        ("iss", "https://evil.example"),
        ("iss", ISSUER + "/"),
        ("iss", "razao"),
        ("iss", None),
        ("aud", "somebody else"),
        ("aud", []),
        ("aud", None),
        ("exp", "past"),
        ("exp", None),
        ("nbf", "future"),
        ("iat", None),
        ("sub", None),
    ],
)
async def test_a_wrong_claim_is_refused_even_under_the_right_signature(
    house: House, trust: Trust, claim: str, value: Any
) -> None:
    header, claims = parts_of((await house.person())["access_token"])
    moments = {"past": int(time.time()) - 60, "future": int(time.time()) + 60}
    claims[claim] = moments.get(value, value) if isinstance(value, str) else value
    if value is None:
        del claims[claim]
    with pytest.raises(InvalidToken):
        await trust.verifier().verify(signed(header, claims, await own_key(house)).encode())


@pytest.mark.parametrize("typ", ["JWT", "jwt", "id_token", "", "at+JWT x"])
async def test_a_wrong_typ_is_refused_even_under_the_right_signature(house: House, trust: Trust, typ: str) -> None:
    header, claims = parts_of((await house.person())["access_token"])
    with pytest.raises(InvalidToken):
        await trust.verifier().verify(signed({**header, "typ": typ}, claims, await own_key(house)).encode())


async def test_an_id_token_opens_nothing(house: House, trust: Trust) -> None:
    tokens = await house.person()
    for verifier in (trust.verifier(), house.services.verifier):
        with pytest.raises(InvalidToken):
            await verifier.verify(tokens["id_token"].encode())


async def test_a_changed_token_is_refused(house: House, trust: Trust) -> None:
    token = (await house.person())["access_token"]
    header, claims = parts_of(token)
    claims["scope"] += " ledger:operate"
    _, _, signature = token.split(".")
    forged = f"{b64(json.dumps(header).encode())}.{b64(json.dumps(claims).encode())}.{signature}"
    with pytest.raises(InvalidToken):
        await trust.verifier().verify(forged.encode())


async def test_the_token_of_a_disabled_person_stops_also_where_it_was_remembered(house: House, trust: Trust) -> None:
    tokens = await house.person()
    verifier, token = trust.verifier(), tokens["access_token"].encode()
    await verifier.verify(token)
    assert verifier.remembered(token) is not None
    await identity.set_enabled(house.pool, "ana", enabled=False)
    async with asyncio.timeout(10):
        while verifier.remembered(token) is not None:
            await house.pool.fetchval("SELECT 1")
    with pytest.raises(InvalidToken, match="revoked"):
        await verifier.verify(token)
    assert await error_of(await refresh(house, tokens["refresh_token"])) == "invalid_grant"
    async with house.http() as http:
        answer = await http.post("/auth/login", json={"username": "ana", "password": PASSWORD})
    assert (answer.status_code, answer.json()["type"]) == (401, "/problems/wrong-credentials")
    await identity.set_enabled(house.pool, "ana", enabled=True)
    with pytest.raises(InvalidToken, match="revoked"):
        await verifier.verify(token)  # what was stopped stays stopped
    await house.login()


# -- keys -------------------------------------------------------------------------------------------------------------


async def test_keys_rotate_without_a_refused_token(house: House, trust: Trust) -> None:
    verifier = trust.verifier()
    old = (await house.person())["access_token"]
    kids = {jwt.get_unverified_header(old)["kid"]}
    async with house.http() as http:
        published = {key["kid"] for key in (await http.get("/oauth/jwks")).json()["keys"]}
        await house.pool.execute("UPDATE identity.signing_keys SET created_at = created_at - interval '1 hour'")
        await identity.rotate_keys(house.pool, house.plan.ledger_key)
        async with asyncio.timeout(10):
            while len(kids) < 2:
                token = (await house.login())["access_token"]
                kids.add(jwt.get_unverified_header(token)["kid"])
                await verifier.verify(token.encode())
                await verifier.verify(old.encode())
        assert kids <= published  # the new key was known before its first token
        assert len((await http.get("/oauth/jwks")).json()["keys"]) == 3


async def test_a_key_rotated_in_at_once_waits_until_everybody_can_know_it(house: House) -> None:
    first = await identity.rotate_keys(house.pool, house.plan.ledger_key)
    assert [key["state"] for key in first] == ["active", "coming", "waiting"]
    await house.services.signer.refresh()
    token = (await house.person())["access_token"]
    assert jwt.get_unverified_header(token)["kid"] == first[0]["kid"]


async def test_tokens_stay_good_while_the_key_set_cannot_be_had(house: House, trust: Trust) -> None:
    verifier = trust.verifier()
    token = (await house.person())["access_token"].encode()
    await verifier.verify(token)
    await house.pool.execute("ALTER TABLE identity.signing_keys RENAME TO gone")
    for _ in range(3):
        await verifier.verify((await house.login())["access_token"].encode())
    await house.pool.execute("NOTIFY identity, 'keys'")
    await verifier.verify(token)


async def test_private_keys_are_kept_encrypted(house: House) -> None:
    for row in await house.pool.fetch("SELECT private, public FROM identity.signing_keys"):
        assert row["private"].count(".") == 4  # a JWE
        assert '"d"' not in row["public"]
        header = json.loads(urlsafe_b64decode(row["private"].split(".")[0] + "=="))
        assert header == {"alg": "dir", "enc": "A256GCM"}


async def test_discovery_says_what_is_there(house: House) -> None:
    async with house.http() as http:
        for path in ("/.well-known/openid-configuration", "/.well-known/oauth-authorization-server"):
            known = (await http.get(path)).json()
            assert known["code_challenge_methods_supported"] == ["S256"]
            assert known["response_types_supported"] == ["code"]
            assert "none" not in known["id_token_signing_alg_values_supported"]
            for name, url in known.items():
                if name.endswith(("_endpoint", "_uri")):
                    assert (await http.request("GET", url)).status_code != 404, name


async def test_a_scope_that_nobody_can_grant_is_refused(house: House, browser: Browser) -> None:
    await house.register()
    client_id, _ = await house.client()
    for scope in ("identity:self", "identity:admin", "ledger:operate", "everything"):
        back = redirected(await browser.http.get(browser.address(client_id, scope=f"openid {scope}")))
        assert back["error"] == "invalid_scope"


async def test_a_consent_gives_no_more_than_the_person_has(house: House, browser: Browser) -> None:
    await house.register()
    scopes = ["openid", "ledger:read", "ledger:operate"]
    client_id, _ = await house.client(scopes=scopes)
    back = await browser.consent(client_id, scope=" ".join(scopes))
    tokens = (await exchange(house, browser, client_id, back["code"])).json()
    assert tokens["scope"] == "ledger:read openid"
