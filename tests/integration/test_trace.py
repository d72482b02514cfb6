"""The trace in a whole engine: users by command line, movements out of the journal, last queries over a clean stop."""

from __future__ import annotations

import json
import subprocess
import time
from typing import Any, Final

import httpx
import pytest

from tests.engine import RAZAO
from tests.integration.conftest import TiersEngine

pytestmark = [pytest.mark.engine, pytest.mark.slow]

PASSWORD: Final = "um cavalo correto na pilha"
PAYER, PAYEE = "390.533.447-05", "862.883.667-57"
_AWAIT_S: Final = 30.0


def razao(engine: TiersEngine, *arguments: str, password: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [RAZAO, *arguments, "--data", str(engine.data), "--json"],
        input=password + "\n", capture_output=True, text=True, env=engine.environment, timeout=120, check=False,
    )  # fmt: skip


def add_user(engine: TiersEngine, name: str) -> None:
    done = razao(engine, "users", "add", name, "--tier", "trace", "--password-stdin", password=PASSWORD)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout) == {"username": name, "disabled": False}


def ask(engine: TiersEngine, user: str, tax_id: str, path: str = "person", password: str = PASSWORD) -> httpx.Response:
    with engine.http(headers={"Razao-Tax-Id": tax_id}) as http:
        return http.get(f"/trace/v1/{path}", auth=httpx.BasicAuth(user, password))


def movements_of(engine: TiersEngine, user: str, tax_id: str, at_least: int) -> list[dict[str, Any]]:
    """As soon as there are so many."""
    deadline = time.monotonic() + _AWAIT_S
    while True:
        answer = ask(engine, user, tax_id)
        assert answer.status_code == 200, answer.text
        found: list[dict[str, Any]] = answer.json()["movements"]
        if len(found) >= at_least:
            return found
        assert time.monotonic() < deadline, answer.text


def pay(engine: TiersEngine, amounts: list[int]) -> tuple[str, str]:
    """Open an account for each of the two, fill the payer's, and pay; returns the accounts."""
    with engine.client() as http:
        payer, payee = (
            str(http.post("/v1/accounts", json={"owner": {"tax_id": one, "name": "N"}}).raise_for_status().json()["id"])
            for one in (PAYER, PAYEE)
        )
        http.post("/v1/deposits", json={"account": payer, "amount": 100_000}).raise_for_status()
        for amount in amounts:
            body = {"debit_account": payer, "credit_account": payee, "amount": amount}
            http.post("/v1/transfers", json=body).raise_for_status()
    return payer, payee


def test_money_that_moved_is_in_the_trace_of_both_sides(tiers_engine: TiersEngine) -> None:
    add_user(tiers_engine, "bureau-1")
    payer, payee = pay(tiers_engine, list(range(1, 24)))
    paid = movements_of(tiers_engine, "bureau-1", PAYER, 20)
    received = movements_of(tiers_engine, "bureau-1", PAYEE, 20)
    while received[0]["amount"] < 23 or paid[0]["amount"] < 23:
        paid = movements_of(tiers_engine, "bureau-1", PAYER, 20)
        received = movements_of(tiers_engine, "bureau-1", PAYEE, 20)
    assert [one["amount"] for one in paid] == [one["amount"] for one in received] == list(range(23, 3, -1))
    assert {(one["side"], one["account"], one["kind"]) for one in paid} == {("debit", payer, "transfer")}
    assert {(one["side"], one["account"], one["kind"]) for one in received} == {("credit", payee, "transfer")}
    assert [one["transfer"] for one in paid] == [one["transfer"] for one in received]


def test_a_disabled_user_is_out_within_a_second_and_a_new_password_opens(tiers_engine: TiersEngine) -> None:
    add_user(tiers_engine, "bureau-2")
    assert ask(tiers_engine, "bureau-2", PAYER).status_code == 200
    assert razao(tiers_engine, "users", "disable", "bureau-2", "--tier", "trace").returncode == 0
    ended = time.monotonic()
    while ask(tiers_engine, "bureau-2", PAYER).status_code == 200:
        assert time.monotonic() < ended + _AWAIT_S
    assert razao(tiers_engine, "users", "enable", "bureau-2", "--tier", "trace").returncode == 0
    new = "outro " + PASSWORD
    arguments = ("users", "password", "bureau-2", "--tier", "trace", "--password-stdin")
    assert razao(tiers_engine, *arguments, password=new).returncode == 0
    assert ask(tiers_engine, "bureau-2", PAYER).status_code == 401
    assert ask(tiers_engine, "bureau-2", PAYER, password=new).status_code == 200
    listed = json.loads(razao(tiers_engine, "users", "list", "--tier", "trace").stdout)
    assert {"username": "bureau-2", "disabled": False} in listed
    assert "bureau-2" not in razao(tiers_engine, "users", "list").stdout


def test_a_clean_stop_loses_no_last_query(tiers_engine: TiersEngine) -> None:
    add_user(tiers_engine, "bureau-3")
    answer = ask(tiers_engine, "bureau-3", PAYEE)
    assert answer.status_code == 200, answer.text
    tiers_engine.stop()
    tiers_engine.start()
    last = ask(tiers_engine, "bureau-3", PAYEE, "last-query")
    assert {**last.json(), "at": ""} == {"at": "", "address": "127.0.0.1", "user": "bureau-3"}
