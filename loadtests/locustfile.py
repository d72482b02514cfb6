"""What people do with their accounts, for Locust: look at balances, pay one another, pay the same few merchants.

    locust -f loadtests/locustfile.py --host http://127.0.0.1:8000                             then open its page
    locust -f loadtests/locustfile.py --host http://127.0.0.1:8000 --headless -u 50 -t 1m

The token comes from RAZAO_TOKEN, or is made by `razao token --data $RAZAO_DATA` (needs the scopes in SCOPES). It shows
behaviour under a mix, not top speed: Locust spends more on a request than the engine does; see `loadtests/bench.py`.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any, Final

from gevent.lock import Semaphore
from locust import FastHttpUser, between, events, task

from loadtests import traffic
from storage import ids
from storage.events import SLOTS

SCOPES: Final = "ledger:operate ledger:fund ledger:read ledger:write"
MERCHANTS: Final = 3
"""Hot accounts: a quarter of all payments go to one of them."""

START: Final = 1_000_000
"""Centavos that every account begins with."""

_RECENT: Final = 200

Transfer = dict[str, Any]


class Town:
    """What all users of this process share: whom one can pay, and whom everybody pays."""

    def __init__(self) -> None:
        self.token = ""
        self.people = traffic.people(seed=time.time_ns())  # no two runs on one ledger invent the same persons
        self.accounts: deque[str] = deque(maxlen=2000)
        self.merchants: list[str] = []
        self.founding = Semaphore()


TOWN: Final = Town()


def find_token(**_: Any) -> None:
    """Take the token that is given, or sign one with the engine's own key."""
    TOWN.token = os.environ.get("RAZAO_TOKEN", "") or _signed_token()


_starts: Any = events.test_start  # Locust leaves its hooks untyped
_starts.add_listener(find_token)


def _signed_token() -> str:
    command = [str(Path(sys.executable).with_name("razao")), "token", "--sub", "locust", "--scope", SCOPES]
    if data := os.environ.get("RAZAO_DATA"):
        command += ["--data", data]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def new_id(payer: str = "0") -> str:
    """A fresh UUIDv7 as text, in the slot of the account that pays (or gets a deposit)."""
    return ids.text(ids.in_slot(ids.uuid7(time.time_ns() // 1_000_000), int(payer) % SLOTS))


class Person(FastHttpUser):  # type: ignore[misc, unused-ignore] # Locust's types are not always found
    """Somebody with two accounts. Every answer that is not 2xx is a failure in Locust's table."""

    wait_time = between(0.02, 0.2)
    connection_timeout = 10.0
    network_timeout = 30.0

    def on_start(self) -> None:
        """Open what one needs to take part."""
        self.dice = random.Random()
        self.position = ""
        self.sent: deque[Transfer] = deque(maxlen=_RECENT)
        with TOWN.founding:
            while len(TOWN.merchants) < MERCHANTS:
                TOWN.merchants.append(self.opened())
        self.own = [self.opened(), self.opened()]

    def call(self, method: str, path: str, name: str, body: Any = None, *, fresh: bool = False) -> Any:
        """One call, under `name` in the table; `fresh`: the answer must include what this person has written."""
        headers = {"Authorization": f"Bearer {TOWN.token}"}
        if fresh and self.position:
            headers["Razao-Position"] = self.position
        with self.client.request(
            method, path, json=body, name=f"{method} {name}", headers=headers, catch_response=True
        ) as answer:
            if not 200 <= answer.status_code < 300:
                answer.failure(f"{answer.status_code} {(answer.text or '')[:200]}")
                return None
            answer.success()
            self.position = answer.headers.get("Razao-Position") or self.position
            return answer.json()

    def opened(self) -> str:
        """A new account with money in it.

        Raises:
            RuntimeError: it could not be opened or funded.
        """
        made = self.call("POST", "/v1/accounts", "/v1/accounts", {"id": new_id(), "owner": next(TOWN.people)})
        if made is None:
            raise RuntimeError("no account could be opened")
        account: str = made["id"]
        body = {"id": new_id(account), "account": account, "amount": START}
        if self.call("POST", "/v1/deposits", "/v1/deposits", body) is None:
            raise RuntimeError("no deposit could be made")
        TOWN.accounts.append(account)
        return account

    def pay(self, debit: str, credit: str, kind: str, **more: Any) -> Transfer | None:
        """Send a transfer; remember it when it happened."""
        amount = self.dice.randint(1, 500)
        body = {"id": new_id(debit), "debit_account": debit, "credit_account": credit, "amount": amount, **more}
        made = self.call("POST", "/v1/transfers", f"/v1/transfers ({kind})", body)
        if made is not None:
            self.sent.append(body)
        return body if made is not None else None

    @task(30)
    def look_at_the_balance(self) -> None:
        """The most frequent of all."""
        self.call("GET", f"/v1/accounts/{self.dice.choice(self.own)}/balance", "/v1/accounts/{id}/balance")

    @task(24)
    def pay_somebody(self) -> None:
        """Anybody of the town."""
        payee = self.dice.choice(TOWN.accounts)
        payer = self.dice.choice([account for account in self.own if account != payee])
        self.pay(payer, payee, "random")

    @task(10)
    def pay_a_merchant(self) -> None:
        """The hot accounts."""
        self.pay(self.dice.choice(self.own), self.dice.choice(TOWN.merchants), "hot")

    @task(4)
    def move_between_own_accounts(self) -> None:
        """From the fuller to the other."""
        self.pay(self.own[0], self.own[1], "own")
        self.own.reverse()

    @task(4)
    def hold_then_post_or_void(self) -> None:
        """A reservation, as for a hotel; half of them are used in part, some in full, the others given up."""
        hold = self.pay(self.own[0], self.dice.choice(TOWN.merchants), "hold", hold=True, expires_in=600)
        if hold is None:
            return
        ending = self.dice.choice(["void", "part", "whole"])
        body = {"amount": max(1, hold["amount"] // 2)} if ending == "part" else {}
        call = "void" if ending == "void" else "post"
        self.sent.pop()  # neither repeated nor refunded: it is no settled transfer
        self.call("POST", f"/v1/transfers/{hold['id']}/{call}", f"/v1/transfers/{{id}}/{call}", body)

    @task(3)
    def repeat_a_transfer(self) -> None:
        """The answer was lost, so the client sends the same again: it must not happen twice."""
        if self.sent:
            self.call("POST", "/v1/transfers", "/v1/transfers (again)", self.dice.choice(self.sent))

    @task(1)
    def take_a_payment_back(self) -> None:
        """A refund of the whole amount, once."""
        if self.sent:
            original = self.sent.popleft()
            body = {"id": new_id(original["credit_account"]), "amount": original["amount"]}
            path = f"/v1/transfers/{original['id']}/refunds"
            self.call("POST", path, "/v1/transfers/{id}/refunds", body, fresh=True)

    @task(5)
    def read_the_statement(self) -> None:
        """The newest entries, own writes included."""
        account = self.dice.choice(self.own)
        self.call("GET", f"/v1/accounts/{account}/entries?limit=20", "/v1/accounts/{id}/entries", fresh=True)

    @task(5)
    def look_at_a_transfer(self) -> None:
        """One's own, some time ago."""
        if self.sent:
            self.call("GET", f"/v1/transfers/{self.dice.choice(self.sent)['id']}", "/v1/transfers/{id}")

    @task(2)
    def pay_in(self) -> None:
        """A deposit."""
        account = self.dice.choice(self.own)
        body = {"id": new_id(account), "account": account, "amount": self.dice.randint(100, 100_000)}
        self.call("POST", "/v1/deposits", "/v1/deposits", body)

    @task(1)
    def open_another_account(self) -> None:
        """It takes the place of the older one, which stays open."""
        self.own = [self.own[1], self.opened()]
