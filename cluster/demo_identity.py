"""`razao demo`, second part: somebody registers, logs in and pays with the token, and what must be refused is.

Over HTTP like any other client; the bank that pays money in is the operator's token of the first part. That a tax id is
somebody's is proven as an operator does it at the command line.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import Callable
from typing import Any

import httpx

from cluster.demo import content_of, invented_cpf, reais


class IdentityDemo:
    """One run against a running engine. `bank` has a token with `ledger:fund`, `client` has none; `prove` says that a
    tax id is the user's; `limited`: whoever has proven none has an account all the same."""

    def __init__(
        self,
        client: httpx.Client,
        bank: httpx.Client,
        prove: Callable[[str, str], object],
        say: Callable[[str], None],
        *,
        limited: bool,
    ) -> None:
        self._client = client
        self._bank = bank
        self._prove = prove
        self._limited = limited
        self._say = say
        self._random = random.Random()  # noqa: S311 - invented people, not secrets

    def _call(
        self, expected: int, method: str, path: str, *, token: str | None = None, **arguments: Any
    ) -> dict[str, Any]:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        return content_of(self._client.request(method, path, headers=headers, **arguments), expected)

    def _refused(self, what: str, expected: int, method: str, path: str, **arguments: Any) -> None:
        answer = self._call(expected, method, path, **arguments)
        self._say(f"    {what}: refused, {expected} {answer.get('type') or answer.get('error')}")

    def _register(self, name: str, tax_id: str) -> tuple[str, dict[str, str]]:
        """Somebody new, who claims a tax id: their `sub`, and what they log in with."""
        username = f"{name.partition(' ')[0].lower()}-{secrets.token_hex(4)}"
        login = {"username": username, "password": "-".join(secrets.token_hex(3) for _ in range(4))}
        body = {**login, "name": name, "tax_id": tax_id}
        return str(self._call(201, "POST", "/auth/register", json=body)["sub"]), login

    def _join(self, name: str, tax_id: str) -> tuple[dict[str, str], dict[str, Any], str]:
        """Register, have the tax id proven, log in, open an account."""
        sub, login = self._register(name, tax_id)
        self._prove(login["username"], tax_id)
        tokens = self._call(200, "POST", "/auth/login", json=login)
        owner = {"tax_id": tax_id, "name": name}
        opened = self._call(201, "POST", "/v1/accounts", token=tokens["access_token"], json={"owner": owner})
        account = str(opened["id"])
        self._say(
            f"{name} registered as {login['username']} ({sub}); an operator proved the CPF; opened account {account}"
        )
        return login, tokens, account

    def run(self) -> None:
        """Run it.

        Raises:
            EngineError: the engine answered anything else than it should.
        """
        tax_id = invented_cpf(self._random)
        login, tokens, carla = self._join("Carla Reis", tax_id)
        _, others, davi = self._join("Davi Melo", invented_cpf(self._random))
        token = tokens["access_token"]
        content_of(self._bank.post("/v1/deposits", json={"account": carla, "amount": 50_000}), 201)
        transfer = {"debit_account": carla, "credit_account": davi, "amount": 12_345}
        paid = self._call(201, "POST", "/v1/transfers", token=token, json=transfer)
        self._say(f"Carla pays Davi {reais(12_345)} with her token: {paid['status']}")
        self._show_refusals(login, tokens, others["access_token"], carla, transfer)
        self._show_impostor(tax_id)
        self._show_key(token, carla)
        self._show_ends(tokens)

    def _show_refusals(
        self, login: dict[str, str], tokens: dict[str, Any], other: str, carla: str, transfer: dict[str, Any]
    ) -> None:
        token = tokens["access_token"]
        self._say("what must not be, is not:")
        wrong = {**login, "password": "a wrong password"}
        self._refused("a wrong password", 401, "POST", "/auth/login", json=wrong)
        self._refused("a user that there is not, in the same words", 401, "POST", "/auth/login",
                      json={**wrong, "username": "nobody-at-all"})  # fmt: skip
        again = {"username": f"{login['username']}-2", "password": "passwordpassword", "name": "x",
                 "tax_id": invented_cpf(self._random)}  # fmt: skip
        self._refused("a password that everybody tries first", 422, "POST", "/auth/register", json=again)
        self._refused("the same username again", 409, "POST", "/auth/register",
                      json={**again, **login})  # fmt: skip
        self._refused("no token", 401, "GET", f"/v1/accounts/{carla}")
        self._refused("the ID token in place of the access token", 401, "GET", f"/v1/accounts/{carla}",
                      token=tokens["id_token"])  # fmt: skip
        self._refused("Davi pays from Carla's account", 403, "POST", "/v1/transfers", token=other, json=transfer)
        self._refused("Carla pays money in by herself", 403, "POST", "/v1/deposits", token=token,
                      json={"account": carla, "amount": 1})  # fmt: skip
        wide = {"name": "too wide", "scopes": ["ledger:operate"]}
        self._refused("an access key with more than its maker has", 403, "POST", "/auth/access-keys", token=token,
                      json=wide)  # fmt: skip

    def _show_impostor(self, tax_id: str) -> None:
        """Somebody registers with Carla's CPF."""
        _, login = self._register("Ivo Impostor", tax_id)
        self._say("somebody else registers with Carla's CPF, which anybody can claim and nobody has proven:")
        for tier in ("vault", "score"):
            self._refused(
                f"he enters the {tier} as Carla", 403, "POST", "/auth/login", json={**login, "audience": tier}
            )
        token = self._call(200, "POST", "/auth/login", json=login)["access_token"]
        self._refused("he opens an account under her CPF", 403, "POST", "/v1/accounts", token=token,
                      json={"owner": {"name": "Carla Reis", "tax_id": tax_id}})  # fmt: skip
        if self._limited:
            opened = self._call(201, "POST", "/v1/accounts", token=token, json={"owner": {"name": "Ivo Impostor"}})
            most = reais(opened["limits"]["per_transfer"])
            self._say(f"    under no CPF he may: account {opened['id']}, at most {most} a transfer")

    def _show_key(self, token: str, carla: str) -> None:
        wanted = {"name": "reads only", "scopes": ["ledger:read"], "expires_in": 3600}
        key = self._call(201, "POST", "/auth/access-keys", token=token, json=wanted)
        form = {"grant_type": "client_credentials"}
        secret = (key["client_id"], key["client_secret"])
        own = self._call(200, "POST", "/oauth/token", data=form, auth=secret)["access_token"]
        balance = self._call(200, "GET", f"/v1/accounts/{carla}/balance", token=own)
        self._say(f"Carla's access key reads her balance: {reais(balance['posted'])}")
        payment = {"debit_account": carla, "credit_account": carla, "amount": 1}
        self._refused("the key pays", 403, "POST", "/v1/transfers", token=own, json=payment)
        self._call(204, "DELETE", f"/auth/access-keys/{key['client_id']}", token=token)
        self._refused("the key, deleted, asks for a token", 401, "POST", "/oauth/token", data=form, auth=secret)

    def _show_ends(self, tokens: dict[str, Any]) -> None:
        form = {"grant_type": "refresh_token", "client_id": "razao"}
        first = {**form, "refresh_token": tokens["refresh_token"]}
        fresh = self._call(200, "POST", "/oauth/token", data=first)
        self._say("her refresh token gives a new access token and a new refresh token")
        self._refused("the old refresh token once more", 400, "POST", "/oauth/token", data=first)
        second = {**form, "refresh_token": fresh["refresh_token"]}
        self._refused("and with it the whole login has ended", 400, "POST", "/oauth/token", data=second)
