"""An outside provider: a real Keycloak's tokens work on `/v1`, with the scopes that its claims are mapped to."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from cluster.services.keycloak import KeycloakServer
from tests.conftest import free_port, running
from tests.deployments.identity_house import CPF
from tests.engine import Engine

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(600)]

REALM: Final = {
    "realm": "bank",
    "enabled": True,
    "sslRequired": "none",
    "roles": {"realm": [{"name": "payer"}, {"name": "teller"}]},
    "clients": [
        {
            "clientId": "app",
            "publicClient": True,
            "directAccessGrantsEnabled": True,
            "protocolMappers": [
                {
                    "name": "audience",
                    "protocol": "openid-connect",
                    "protocolMapper": "oidc-audience-mapper",
                    "config": {"included.custom.audience": "payments", "access.token.claim": "true"},
                }
            ],
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


@pytest.fixture(scope="module")
def keycloak() -> Iterator[KeycloakServer]:
    """One with the realm `bank`."""

    def with_realm(place: Path) -> KeycloakServer:
        (place / "realms").mkdir()
        (place / "realms" / "bank.json").write_text(json.dumps(REALM))
        return KeycloakServer(place / "keycloak", free_port(), realms=place / "realms")

    with running(with_realm) as server:
        yield server


@pytest.fixture(scope="module")
def engine(keycloak: KeycloakServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
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


def tokens(keycloak: KeycloakServer, username: str, client_id: str = "app") -> dict[str, Any]:
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


def test_its_tokens_open_what_their_roles_are_mapped_to(engine: Engine, keycloak: KeycloakServer) -> None:
    ana, tom = tokens(keycloak, "ana")["access_token"], tokens(keycloak, "tom")["access_token"]
    account = call(engine, ana, "POST", "/v1/accounts", {"owner": {"tax_id": CPF, "name": "Ana"}})
    assert account.status_code == 201, account.text
    assert account.json()["owner"]["sub"].startswith("bank|")
    deposit = {"account": account.json()["id"], "amount": 100}
    assert call(engine, ana, "POST", "/v1/deposits", deposit).status_code == 403
    assert call(engine, tom, "POST", "/v1/deposits", deposit).status_code == 201
    assert call(engine, tom, "GET", f"/v1/accounts/{deposit['account']}").status_code == 403


def test_a_token_without_a_mapped_role_opens_nothing(engine: Engine, keycloak: KeycloakServer) -> None:
    token = tokens(keycloak, "nobody")["access_token"]
    assert call(engine, token, "GET", "/v1/accounts").status_code == 403


@pytest.mark.parametrize("kind", ["id_token", "refresh_token"])
def test_its_other_tokens_open_nothing(engine: Engine, keycloak: KeycloakServer, kind: str) -> None:
    assert call(engine, tokens(keycloak, "ana")[kind], "GET", "/v1/accounts").status_code == 401


def test_a_token_for_somebody_else_opens_nothing(engine: Engine, keycloak: KeycloakServer) -> None:
    token = tokens(keycloak, "ana", client_id="other")["access_token"]
    assert call(engine, token, "GET", "/v1/accounts").status_code == 401


def test_a_token_of_another_realm_of_the_same_server_opens_nothing(engine: Engine, keycloak: KeycloakServer) -> None:
    form = {"grant_type": "password", "client_id": "admin-cli", "username": "admin", "password": keycloak.password}
    address = f"{keycloak.url}/realms/master/protocol/openid-connect/token"
    token = httpx.post(address, data=form, timeout=30, trust_env=False).json()["access_token"]
    answer = call(engine, token, "GET", "/v1/accounts")
    assert answer.status_code == 401
    assert "issuer" in answer.json()["detail"]
