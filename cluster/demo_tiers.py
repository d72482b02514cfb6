"""`razao demo`, third part: the three doors of the data services, what each shows to whom, and what each refuses.

Over HTTP like any other client, and of an invented person. A token for each role comes from the embedded key, as
`razao token --audience …` would print it; the trace has users of its own.
"""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Callable
from typing import Any, Final

import httpx

from cluster.data import EngineError
from cluster.demo import content_of, invented_cpf, reais
from cluster.identity import SCORE_CLIENT

_WAIT_S: Final = 15.0
_CONSULTANT: Final = "demo-consultant"
_PURPOSE: Final = "credit-analysis"

Tokens = Callable[[str, str, str, str | None], str]
"""Gives a token: audience, `sub`, scopes, tax id of the person whom it speaks for."""


class TiersDemo:
    """One run. `vault` enters by the vault's own door, `public` by the public one, `bank` has a token of the ledger."""

    def __init__(
        self, vault: httpx.Client, public: httpx.Client, bank: httpx.Client, tokens: Tokens, say: Callable[[str], None]
    ) -> None:
        self._vault = vault
        self._public = public
        self._bank = bank
        self._tokens = tokens
        self._say = say
        source = random.Random()  # noqa: S311 - invented people, not secrets
        self._tax_id = invented_cpf(source)
        self._nobody = invented_cpf(source)

    def _call(
        self, expected: int, client: httpx.Client, method: str, path: str, *, purpose: str = _PURPOSE, **arguments: Any
    ) -> dict[str, Any]:
        token, tax_id = arguments.pop("token", None), arguments.pop("tax_id", self._tax_id)
        headers = {"Razao-Tax-Id": tax_id, "Razao-Purpose": purpose}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        return content_of(client.request(method, path, headers=headers, **arguments), expected)

    def _refused(self, what: str, expected: int, client: httpx.Client, path: str, **arguments: Any) -> None:
        answer = self._call(expected, client, arguments.pop("method", "GET"), path, **arguments)
        lacks = f" lacking {answer['lacks']}" if "lacks" in answer else ""
        self._say(f"    {what}: refused, {expected} {answer['type']}{lacks}")

    def _until(self, what: str, ask: Callable[[], dict[str, Any]], is_so: Callable[[dict[str, Any]], bool]) -> Any:
        """Ask until it is so: what passes through the journal or an outbox arrives a moment later."""
        deadline = time.monotonic() + _WAIT_S
        while not is_so(found := ask()):
            if time.monotonic() > deadline:
                raise EngineError(f"{what} did not come within {_WAIT_S:.0f} s: {found}")
            time.sleep(0.05)
        return found

    # -- A ------------------------------------------------------------------------------------------------------------

    def show_vault(self) -> None:
        """Sealed data, grants, and who asked.

        Raises:
            EngineError: the vault answered anything else than it should; so do the others.
        """
        self._say("door A, the vault: HTTPS on its own port, and what is shown is what the person has granted")
        person, vault = "/vault/v1/person", self._vault
        source = self._tokens("vault", "demo-bureau", "vault:write", None)
        own = self._tokens("vault", "demo-person", "vault:self", self._tax_id)
        reads = "vault:read:name vault:read:address vault:read:debts"
        consultant = self._tokens("vault", _CONSULTANT, reads, None)
        debt = {
            "id": "d-1", "creditor": "Loja Boa Vista", "contract": "77-1", "amount": 45_000, "currency": "BRL",
            "since": "2026-03-01", "kind": "retail", "disputed": False,
        }  # fmt: skip
        facts = {"name": "Elisa Prado", "address": "Rua das Laranjeiras, 10, Recife", "debts": [debt]}
        self._call(204, vault, "PUT", person, token=source, json=facts)
        self._say("a bureau's source writes a name, an address and a debt: sealed under a key of the person's own")
        wanted = f"{person}?fields=name,debts"
        self._refused("a consultant without a grant", 403, vault, wanted, token=consultant)
        self._refused("of somebody who is not here: the same words", 403, vault, wanted,
                      token=consultant, tax_id=self._nobody)  # fmt: skip
        grant = {"grantee": _CONSULTANT, "fields": ["name", "debts"], "purpose": _PURPOSE, "expires_in": 600}
        given = self._call(201, vault, "POST", "/vault/v1/grants", token=own, json=grant)
        shown = self._call(200, vault, "GET", wanted, token=consultant)
        self._say(f"the person grants it for ten minutes: {shown['name']}, {len(shown['debts'])} debt of "
                  f"{reais(shown['debts'][0]['amount'])}")  # fmt: skip
        self._refused("the address as well", 403, vault, f"{person}?fields=name,address", token=consultant)
        self._refused("for another purpose", 403, vault, wanted, token=consultant, purpose="marketing")
        payments = self._tokens("payments", _CONSULTANT, "ledger:read", None)
        self._refused("with a token of the ledger", 401, vault, wanted, token=payments)
        self._refused("with user and password", 401, vault, wanted, auth=("demo", "demo"))
        self._refused("by the public door", 404, self._public, wanted, token=consultant)
        self._call(204, vault, "DELETE", f"/vault/v1/grants/{given['id']}", token=own)
        self._refused("once the grant is ended, with the same token", 403, vault, wanted, token=consultant)
        accesses = self._call(200, vault, "GET", f"{person}/accesses", token=own)["items"]
        last = self._call(200, vault, "GET", f"{person}/last-query", token=own)
        self._say(f"the person sees who asked: {len(accesses)} accesses and refusals on record, last shown to "
                  f"{last['user']} at {last['address']}")  # fmt: skip

    # -- B ------------------------------------------------------------------------------------------------------------

    def show_score(self) -> None:
        """A score without and with debts, and a profile under a consent."""
        self._say("door B, the score: OAuth 2.0, and debts are never kept here")
        public, profile, score = self._public, "/score/v1/profile", "/score/v1/score"
        writer = self._tokens("score", "demo-bureau", "score:write score:read", None)
        own = self._tokens("score", "demo-person", "score:self", self._tax_id)
        consultant = self._tokens("score", _CONSULTANT, "score:read score:profile", None)
        self._call(200, public, "PUT", profile, token=writer, json={
            "name": "Elisa Prado", "birth_date": "1987-04-21", "income_source": "salary", "monthly_income": 620_000,
            "assets": [{"kind": "vehicle", "value": 4_200_000}],
            "credit": {"first_credit_on": "2012-05-02", "payments_on_time": 80, "payments_late": 2,
                       "contracts_settled": 4},
        })  # fmt: skip
        found = self._call(200, public, "GET", score, token=consultant)
        self._say(f"a consultant reads the score: {found['score']} of 1000, {found['range']}, debts considered: "
                  f"{found['debts_considered']}")  # fmt: skip
        grant = {"grantee": SCORE_CLIENT, "fields": ["debts"], "purpose": "credit-score", "expires_in": 600}
        vault_own = self._tokens("vault", "demo-person", "vault:self", self._tax_id)
        self._call(201, self._vault, "POST", "/vault/v1/grants", token=vault_own, json=grant)
        found = self._until("a score with debts", lambda: self._call(200, public, "GET", score, token=consultant),
                            lambda one: bool(one["debts_considered"]))  # fmt: skip
        self._say(f"the person lets the score ask the vault: {found['score']}; what costs most: "
                  f"{found['factors'][0]['reason'].lower()}")  # fmt: skip
        self._refused("the profile without the person's consent", 403, public, profile, token=consultant)
        consent = {"grantee": _CONSULTANT, "purpose": _PURPOSE, "expires_in": 600}
        self._call(201, public, "POST", "/score/v1/consents", token=own, json=consent)
        shown = self._call(200, public, "GET", profile, token=consultant)
        self._say(f"with it: {shown['name']}, {shown['income_source']}, {len(shown['assets'])} asset")
        other = self._tokens("vault", _CONSULTANT, "vault:read:debts", None)
        self._refused("a token of the vault", 401, public, score, token=other)
        self._refused("somebody else's profile by a person", 403, public, profile, token=own, tax_id=self._nobody)

    # -- C ------------------------------------------------------------------------------------------------------------

    def show_trace(self, user: tuple[str, str]) -> None:
        """Movements and purchases for a user of the trace, by name and password."""
        self._say("door C, the trace: user and password, the fastest")
        path, owner = "/trace/v1/person", {"tax_id": self._tax_id, "name": "Elisa Prado"}
        opened = content_of(self._bank.post("/v1/accounts", json={"owner": owner}), 201)
        content_of(self._bank.post("/v1/deposits", json={"account": opened["id"], "amount": 7_700}), 201)
        bought = {"id": f"demo-{secrets.token_hex(8)}", "tax_id": self._tax_id, "merchant": "Padaria Central",
                  "amount": 1_890, "at": "2026-05-04T12:00:00Z"}  # fmt: skip
        purchases = {"purchases": [bought]}
        self._call(200, self._public, "POST", "/trace/v1/card-purchases", auth=user, json=purchases)
        found = self._until("the movement", lambda: self._call(200, self._public, "GET", path, auth=user),
                            lambda one: bool(one["movements"] and one["last_card_purchase"]))  # fmt: skip
        movement, purchase = found["movements"][0], found["last_card_purchase"]
        self._say(f"out of the journal: {movement['kind']} of {reais(movement['amount'])}; last card purchase: "
                  f"{reais(purchase['amount'])} at {purchase['merchant']}")  # fmt: skip
        self._refused("a wrong password", 401, self._public, path, auth=(user[0], "not the password at all"))
        token = self._tokens("score", _CONSULTANT, "score:read", None)
        self._refused("a token in place of user and password", 401, self._public, path, token=token)
