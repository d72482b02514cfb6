"""`razao demo`: a newcomer's first five minutes, over HTTP like any other client.

Opens two accounts, moves money, refuses an overdraft, repeats a transfer that must not apply twice, holds and posts,
and prints what it did with what the engine answered.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import httpx

from cluster.data import EngineError

_FIRST_WEIGHTS = range(10, 1, -1)
_SECOND_WEIGHTS = range(11, 1, -1)


def _check_digit(digits: list[int], weights: range) -> int:
    remainder = sum(digit * weight for digit, weight in zip(digits, weights, strict=True)) % 11
    return 0 if remainder < 2 else 11 - remainder


def invented_cpf(source: random.Random) -> str:
    """A CPF with valid check digits that belongs to nobody in particular (domain: DICT 2.12.1, key type CPF)."""
    digits = [source.randrange(10) for _ in range(9)]
    if len(set(digits)) == 1:
        digits[0] = (digits[0] + 1) % 10
    digits.append(_check_digit(digits, _FIRST_WEIGHTS))
    digits.append(_check_digit(digits, _SECOND_WEIGHTS))
    return "".join(map(str, digits))


def reais(centavos: int) -> str:
    """An amount as people in Brazil write it."""
    sign = "-" if centavos < 0 else ""
    whole, cents = divmod(abs(centavos), 100)
    return f"{sign}R$ {whole:,}".replace(",", ".") + f",{cents:02d}"


def content_of(answer: httpx.Response, expected: int) -> dict[str, Any]:
    """The JSON of an answer, empty where it has none.

    Raises:
        EngineError: it has another status than expected.
    """
    if answer.status_code != expected:
        asked = f"{answer.request.method} {answer.request.url.raw_path.decode()}"
        raise EngineError(f"{asked} answered {answer.status_code}, not {expected}: {answer.text}")
    content: dict[str, Any] = answer.json() if answer.content else {}
    return content


class Demo:
    """One run of the demo against a running engine."""

    def __init__(self, client: httpx.Client, say: Callable[[str], None]) -> None:
        self._client = client
        self._say = say
        self._random = random.Random()  # noqa: S311 - invented people, not secrets

    def _call(self, method: str, path: str, expected: int, **arguments: Any) -> dict[str, Any]:
        return content_of(self._client.request(method, path, **arguments), expected)

    def _open(self, name: str) -> str:
        owner = {"tax_id": invented_cpf(self._random), "name": name}
        account: str = self._call("POST", "/v1/accounts", 201, json={"owner": owner})["id"]
        self._say(f"opened account {account} for {name}")
        return account

    def _balances(self, *accounts: tuple[str, str]) -> dict[str, int]:
        posted = {}
        for name, account in accounts:
            balance = self._call("GET", f"/v1/accounts/{account}/balance", 200)
            posted[name] = balance["posted"]
            self._say(
                f"    {name}: posted {reais(balance['posted'])}, on hold {reais(balance['pending'])}, "
                f"available {reais(balance['available'])}"
            )
        return posted

    def run(self) -> None:
        """Run it.

        Raises:
            EngineError: the engine answered anything else than it should.
        """
        ana, bruno = self._open("Ana Souza"), self._open("Bruno Lima")
        both = (("Ana", ana), ("Bruno", bruno))
        self._call("POST", "/v1/deposits", 201, json={"account": ana, "amount": 100_000})
        self._say(f"deposited {reais(100_000)} into Ana's account")

        transfer = {"debit_account": ana, "credit_account": bruno, "amount": 25_050, "description": "Jantar"}
        key = {"Idempotency-Key": f"demo-{self._random.getrandbits(64):016x}"}
        first = self._call("POST", "/v1/transfers", 201, json=transfer, headers=key)
        self._say(f"transfer {first['id']}: Ana pays Bruno {reais(25_050)}, {first['status']}")
        again = self._call("POST", "/v1/transfers", 201, json=transfer, headers=key)
        if again != first:
            raise EngineError(f"the same transfer sent again was answered differently: {again}")
        self._say("the same request sent again: the first answer came back, nothing moved twice")
        self._balances(*both)

        overdraft = {"debit_account": bruno, "credit_account": ana, "amount": 10_000_000}
        refusal = self._call("POST", "/v1/transfers", 422, json=overdraft)
        self._say(f"Bruno tries to pay {reais(10_000_000)}: refused, {refusal['type']}")

        hold = {"debit_account": bruno, "credit_account": ana, "amount": 20_000, "hold": True, "expires_in": 3600}
        held = self._call("POST", "/v1/transfers", 201, json=hold)
        self._say(f"hold {held['id']}: {reais(20_000)} of Bruno's money is set aside for Ana, {held['status']}")
        self._balances(*both)
        posted = self._call("POST", f"/v1/transfers/{held['id']}/post", 200, json={"amount": 12_000})
        self._say(f"posted {reais(12_000)} of it, the rest is free again: {posted['status']}")
        final = self._balances(*both)
        if final != {"Ana": 86_950, "Bruno": 13_050}:
            raise EngineError(f"the balances should be R$ 869,50 and R$ 130,50, not {final}")
        self._say(f"together they hold {reais(sum(final.values()))}: every centavo is where it belongs")
