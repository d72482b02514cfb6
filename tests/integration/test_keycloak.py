"""An outside provider: a real Keycloak's tokens work on `/v1`, with the scopes that its claims are mapped to.

`razao services` starts it, as an operator would.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from cluster.settings import OidcIssuer
from tests.deployments.identity_house import CPF
from tests.engine import RAZAO, Engine

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(1200)]

AUDIENCE: Final = {
    "name": "audience",
    "protocol": "openid-connect",
    "protocolMapper": "oidc-audience-mapper",
    "config": {"included.custom.audience": "payments", "access.token.claim": "true"},
}
MACHINES: Final = {
    "realm": "pix",
    "enabled": True,
    "sslRequired": "none",
    "roles": {"realm": [{"name": "ledger:read"}]},
    "clients": [
        {"clientId": "bank", "secret": "s3cret", "serviceAccountsEnabled": True, "protocolMappers": [AUDIENCE]},
    ],
    "users": [
        {
            "username": "service-account-bank",
            "serviceAccountClientId": "bank",
            "realmRoles": ["ledger:read"],
            "enabled": True,
        }
    ],
}
PEOPLE: Final = {
    "realm": "bank",
    "enabled": True,
    "sslRequired": "none",
    "roles": {"realm": [{"name": "payer"}, {"name": "teller"}]},
    "clients": [
        {
            "clientId": "app",
            "publicClient": True,
            "directAccessGrantsEnabled": True,
            "protocolMappers": [AUDIENCE],
        },
        {"clientId": "other", "publicClient": True, "directAccessGrantsEnabled": True},
    ],
    "users": [
        {
            "username": name,
            "enabled": True,
            "email": f"{name}@bank.example",
            "emailVerified": True,
            "firstName": name,
            "lastName": "Souza",
            "credentials": [{"type": "password", "value": "a password", "temporary": False}],
            "realmRoles": [role] if role else [],
        }
        for name, role in (("ana", "payer"), ("tom", "teller"), ("nobody", ""))
    ],
}


@dataclass(frozen=True)
class Keycloak:
    """One that `razao services` has started: what it says to set for it."""

    settings: dict[str, str]

    @property
    def url(self) -> str:
        """Where it is."""
        return self.settings["RAZAO_KEYCLOAK_URL"]


def services(*words: str, data: Path) -> str:
    """What a `razao services` command prints."""
    done = subprocess.run(
        [RAZAO, "services", *words, "--data", str(data)], capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def keycloak() -> Iterator[Keycloak]:
    """One with the realms `pix`, which is its first, and `bank`."""
    data = Path(tempfile.mkdtemp(prefix="rz-"))
    try:
        realms = data / "realms"
        realms.mkdir()
        (realms / "1-pix.json").write_text(json.dumps(MACHINES))
        (realms / "2-bank.json").write_text(json.dumps(PEOPLE))
        states = json.loads(services("up", "keycloak", "--realms", str(realms), "--json", data=data))["services"]
        yield Keycloak(next(state["settings"] for state in states if state["name"] == "keycloak"))
    finally:
        services("down", data=data)
        shutil.rmtree(data)


@pytest.fixture(scope="module")
def engine(keycloak: Keycloak, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """An engine that trusts it."""
    provider = {
        "name": "bank",
        "issuer": f"{keycloak.url}/realms/bank",
        "audience": "payments",
        "scopes": {
            "realm_access.roles": {"payer": ["ledger:read", "ledger:write"], "teller": ["ledger:fund"]},
        },
    }
    one = Engine(tmp_path_factory.mktemp("keycloak") / "var", settings={"oidc_issuers": json.dumps([provider])})
    try:
        yield one.start()
    finally:
        one.stop()


def tokens(keycloak: Keycloak, username: str, client_id: str = "app") -> dict[str, Any]:
    """What Keycloak gives somebody."""
    form = {
        "grant_type": "password", "client_id": client_id, "username": username, "password": "a password",
        "scope": "openid",
    }  # fmt: skip
    address = f"{keycloak.url}/realms/bank/protocol/openid-connect/token"
    answer = httpx.post(address, data=form, timeout=30, trust_env=False)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def call(engine: Engine, token: str, method: str, path: str, body: Any = None) -> httpx.Response:
    """One request with a token."""
    headers = {"authorization": f"Bearer {token}"}
    return httpx.request(method, engine.url + path, json=body, headers=headers, timeout=30, trust_env=False)


def test_it_imports_a_realm_and_its_tokens_verify_by_the_settings_it_prints(keycloak: Keycloak) -> None:
    (provider,) = (OidcIssuer(**one) for one in json.loads(keycloak.settings["RAZAO_OIDC_ISSUERS"]))
    form = {"grant_type": "client_credentials", "client_id": "bank", "client_secret": "s3cret"}
    address = f"{provider.issuer}/protocol/openid-connect/token"
    token = httpx.post(address, data=form, trust_env=False).raise_for_status().json()["access_token"]
    identity = asyncio.run(provider.provider().verifier().verify(token.encode()))
    assert identity.scopes == {"ledger:read"}


def test_its_tokens_open_what_their_roles_are_mapped_to(engine: Engine, keycloak: Keycloak) -> None:
    ana, tom = tokens(keycloak, "ana")["access_token"], tokens(keycloak, "tom")["access_token"]
    claimed = call(engine, ana, "POST", "/v1/accounts", {"owner": {"tax_id": CPF, "name": "Ana"}})
    assert (claimed.status_code, claimed.json()["type"]) == (403, "/problems/unproven")
    account = call(engine, ana, "POST", "/v1/accounts", {"owner": {"name": "Ana"}})
    assert account.status_code == 201, account.text
    assert account.json()["owner"]["sub"].startswith("bank|")
    deposit = {"account": account.json()["id"], "amount": 100}
    assert call(engine, ana, "POST", "/v1/deposits", deposit).status_code == 403
    assert call(engine, tom, "POST", "/v1/deposits", deposit).status_code == 201
    assert call(engine, tom, "GET", f"/v1/accounts/{deposit['account']}").status_code == 403


def test_a_token_without_a_mapped_role_opens_nothing(engine: Engine, keycloak: Keycloak) -> None:
    token = tokens(keycloak, "nobody")["access_token"]
    assert call(engine, token, "GET", "/v1/accounts").status_code == 403


@pytest.mark.parametrize("kind", ["id_token", "refresh_token"])
def test_its_other_tokens_open_nothing(engine: Engine, keycloak: Keycloak, kind: str) -> None:
    assert call(engine, tokens(keycloak, "ana")[kind], "GET", "/v1/accounts").status_code == 401


def test_a_token_for_somebody_else_opens_nothing(engine: Engine, keycloak: Keycloak) -> None:
    token = tokens(keycloak, "ana", client_id="other")["access_token"]
    assert call(engine, token, "GET", "/v1/accounts").status_code == 401


def test_a_token_of_another_realm_of_the_same_server_opens_nothing(engine: Engine, keycloak: Keycloak) -> None:
    administrator = {
        "grant_type": "password",
        "client_id": "admin-cli",
        "username": keycloak.settings["RAZAO_KEYCLOAK_ADMIN"],
        "password": keycloak.settings["RAZAO_KEYCLOAK_ADMIN_PASSWORD"],
    }
    address = f"{keycloak.url}/realms/master/protocol/openid-connect/token"
    entered = httpx.post(address, data=administrator, timeout=30, trust_env=False)
    assert entered.status_code == 200
    answer = call(engine, entered.json()["access_token"], "GET", "/v1/accounts")
    assert answer.status_code == 401
    assert "issuer" in answer.json()["detail"]
