"""The HTTP contract of payments as tests against a running engine, however it runs.

A test module that defines a fixture `live_engine` (a `LiveEngine`), imports the fixture `world` and has a class of its
own that derives from `HttpSuite` runs all of it.
"""

from __future__ import annotations

import io
import json
import random
import re
import socket
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
import numpy as np
import pyarrow as pa
import pytest

from cluster.demo import invented_cpf
from storage import ids
from storage.events import SLOTS
from tests.contract.http_engine import LiveEngine

READ_WRITE: Final = "ledger:read ledger:write"
EVERYTHING: Final = "ledger:read ledger:write ledger:fund ledger:operate"
AMOUNT_MAX: Final = 2**63 - 1
METADATA: Final = (
    '{ "z" : 1.10, "a" : [ 1E2, -0.0, 0.12345678901234567890123, 9007199254740993.0 ], '
    '"y" : { "b" : {}, "a" : "\\u00e9\\/é" } }'
)
TAX_IDS: Final = ("12345678909", "52998224725", "11144477735", "39053344705", "15350946056", "12ABC34501DE35")


def new_id(account: str | None = None, age_s: float = 0.0) -> str:
    """A UUIDv7, made `age_s` ago; in the slot of `account`, which pays, if it is given."""
    made = ids.uuid7(int((time.time() - age_s) * 1000))
    return ids.text(made if account is None else ids.in_slot(made, int(account) % SLOTS))


def nobody_beside(account: str, *, apart: bool) -> str:
    """The number of an account that there is not, on another of two shards than `account`, or on the same one."""
    return str((2**52 + 1) * SLOTS + (int(account) + apart) % 2)


class Caller:
    """One subject with a token, and shorthands for what a client does."""

    def __init__(self, http: httpx.Client, token: str, sub: str) -> None:
        self.http = http
        self.sub = sub
        self.headers = {"authorization": f"Bearer {token}"}

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> httpx.Response:
        """One request; `body` is sent as JSON."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = self.http.request(method, path, json=body, headers={**self.headers, **named})
        if path.startswith("/v1/"):
            assert answer.headers["cache-control"] == "no-store", path
        return answer

    def get(self, path: str, **headers: str) -> httpx.Response:
        """GET."""
        return self.call("GET", path, **headers)

    def post(self, path: str, body: Any = None, **headers: str) -> httpx.Response:
        """POST."""
        return self.call("POST", path, body, **headers)

    def send_raw(self, path: str, content: bytes, content_type: str = "application/json") -> httpx.Response:
        """POST of bytes."""
        return self.http.post(path, content=content, headers={**self.headers, "content-type": content_type})

    def open(self, *, tax_id: str = TAX_IDS[0], limits: Any = None) -> str:
        """A new account of the caller's, whose tax id it is."""
        body: dict[str, Any] = {"owner": {"tax_id": tax_id, "name": "Maria da Silva"}}
        if limits is not None:
            body["limits"] = limits
        answer = self.post("/v1/accounts", body)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def balance(self, account: str) -> tuple[int, int, int]:
        """Posted, pending, available."""
        answer = self.get(f"/v1/accounts/{account}/balance")
        assert answer.status_code == 200, answer.text
        found = answer.json()
        return found["posted"], found["pending"], found["available"]


class World:
    """An engine, and subjects who have nothing to do with those of other tests."""

    def __init__(self, engine: LiveEngine) -> None:
        self.engine = engine
        self.http = httpx.Client(base_url=engine.base_url, timeout=30, trust_env=False)
        self.bank = self.caller(EVERYTHING, "bank")

    def caller(self, scope: str = READ_WRITE, name: str = "person", *, tax_id: str | None = TAX_IDS[0]) -> Caller:
        """A new subject, who has proven a tax id, or none."""
        sub = f"{name}-{uuid.uuid4()}"
        return Caller(self.http, self.engine.make_token(sub, scope, tax_id=tax_id), sub)

    def open_for(self, caller: Caller, tax_id: str) -> str:
        """A new account of somebody's under another tax id than their own, as an operator opens it."""
        body = {"owner": {"tax_id": tax_id, "name": "Maria da Silva", "sub": caller.sub}}
        answer = self.bank.post("/v1/accounts", body)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def fund(self, account: str, amount: int) -> None:
        """Pay money in."""
        answer = self.bank.post("/v1/deposits", {"account": account, "amount": amount})
        assert answer.status_code == 201, answer.text

    def person(self, amount: int = 0, *, tax_id: str = TAX_IDS[0], limits: Any = None) -> tuple[Caller, str]:
        """A new subject with an account and money in it."""
        caller = self.caller(tax_id=tax_id)
        account = caller.open(tax_id=tax_id, limits=limits)
        if amount:
            self.fund(account, amount)
        return caller, account

    def person_elsewhere(self, account: str, *, apart: bool, amount: int = 0) -> tuple[Caller, str]:
        """A new subject whose account lies on another shard than `account`, or on the same one."""
        source = random.Random(int(account))
        for tax_id in (*TAX_IDS, *(invented_cpf(source) for _ in range(40))):
            caller, other = self.person(tax_id=tax_id)
            if (int(other) % 2 != int(account) % 2) == apart:
                if amount:
                    self.fund(other, amount)
                return caller, other
        raise AssertionError("all tax ids of the test lie on one of two shards")


@pytest.fixture(scope="module")
def world(live_engine: LiveEngine) -> Iterator[World]:
    """A world on the module's engine."""
    made = World(live_engine)
    yield made
    made.http.close()


def refused(answer: httpx.Response, status: int, name: str) -> dict[str, Any]:
    """Assert that an answer is this problem; returns its document."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = answer.json()
    assert document["type"] == f"/problems/{name}", document
    assert document["status"] == status
    assert document["title"]
    assert document["detail"]
    assert document["request_id"] == answer.headers.get("x-request-id", document["request_id"])  # a gateway may not say
    if status in {429, 503}:
        assert int(answer.headers["retry-after"]) >= 1
    return document


def transfer(payer: str, payee: str, amount: Any, **more: Any) -> dict[str, Any]:
    """A transfer's body."""
    return {"debit_account": payer, "credit_account": payee, "amount": amount, **more}


class HttpSuite:
    """Every call, good and bad."""

    # -- accounts -----------------------------------------------------------------------------------------------------

    def test_an_owners_name_is_what_it_looks_like(self, world: World) -> None:
        """In one form, and without what cannot be seen."""
        caller = world.caller()
        body = {"owner": {"tax_id": TAX_IDS[0], "name": "Joa\u0303o"}, "id": new_id()}
        opened = caller.post("/v1/accounts", body).json()
        assert opened["owner"]["name"] == "João"
        again = caller.post("/v1/accounts", {**body, "owner": {"tax_id": TAX_IDS[0], "name": "João"}})
        assert again.json() == opened
        for name in ("Maria\u202eavliS", "Mari\u200ba", "\u3164", "Maria\u2066Silva"):
            answer = caller.post("/v1/accounts", {"owner": {"tax_id": TAX_IDS[0], "name": name}})
            assert refused(answer, 400, "malformed")["field"] == "owner.name"

    def test_a_new_account_is_open_and_empty(self, world: World) -> None:
        """With the owner's name, a masked tax id, and the limits given."""
        caller = world.caller()
        limits = {"per_transfer": 1000, "daily": 5000, "night": None, "night_window": {"from": "22:00", "to": "05:30"}}
        answer = caller.post("/v1/accounts", {"owner": {"tax_id": "123.456.789-09", "name": " Ana "}, "limits": limits})
        assert answer.status_code == 201, answer.text
        account = answer.json()
        assert account["status"] == "open"
        assert account["currency"] == "BRL"
        assert account["balance"] == {"posted": 0, "pending": 0, "available": 0}
        assert account["limits"] == {**limits, "raises": []}
        assert account["owner"] == {"name": "Ana", "tax_id": "***.456.789-**", "sub": caller.sub}
        assert 1024 <= int(account["id"]) < 2**63
        assert answer.headers["location"] == f"/v1/accounts/{account['id']}"
        assert caller.get(f"/v1/accounts/{account['id']}").json() == account

    def test_opening_with_one_key_twice_opens_one_account(self, world: World) -> None:
        """The answer comes again as it was, though money has come in since; other content is a conflict."""
        caller = world.caller(EVERYTHING)
        body = {"owner": {"tax_id": TAX_IDS[1], "name": "Rui"}, "limits": {"daily": 100}}
        first = caller.post("/v1/accounts", body, idempotency_key="open-1")
        world.fund(first.json()["id"], 500)
        again = caller.post("/v1/accounts", body, idempotency_key="open-1")
        assert again.status_code == 201
        assert again.json() == first.json()
        assert "idempotency-replayed" not in first.headers
        assert again.headers["idempotency-replayed"] == "true"
        for other in (
            {**body, "limits": {"daily": 101}},
            {"owner": {"tax_id": TAX_IDS[0], "name": "Rui"}, "limits": {"daily": 100}},
            {"owner": {"tax_id": TAX_IDS[1], "name": "Rita"}, "limits": {"daily": 100}},
        ):
            refused(caller.post("/v1/accounts", other, idempotency_key="open-1"), 409, "id-conflict")

    @pytest.mark.parametrize(
        "tax_id", ["12345678900", "1234567890", "123456789099", "11111111111", "12ABC34501DE36", "x", "١٢٣٤٥٦٧٨٩٠٩"]
    )
    def test_a_wrong_tax_id_is_refused(self, world: World, tax_id: str) -> None:
        """Check digits, lengths, and other scripts' digits."""
        answer = world.caller().post("/v1/accounts", {"owner": {"tax_id": tax_id, "name": "Eva"}})
        assert refused(answer, 422, "invalid-tax-id")["field"] == "owner.tax_id"

    @pytest.mark.parametrize("tax_id", ["12ABC34501DE35", "12.abc.345/01de-35", "529.982.247-25"])
    def test_tax_ids_of_people_and_companies_are_taken(self, world: World, tax_id: str) -> None:
        """Alphanumeric companies' too, with or without punctuation."""
        caller = world.caller(tax_id=re.sub("[./-]", "", tax_id).upper())
        answer = caller.post("/v1/accounts", {"owner": {"tax_id": tax_id, "name": "Eva"}})
        assert answer.status_code == 201, answer.text

    def test_a_tax_id_that_is_not_proven_opens_nothing(self, world: World) -> None:
        """Neither somebody else's nor one's own; an operator vouches for any. Nothing is registered by a refusal."""
        theirs = {"owner": {"tax_id": TAX_IDS[1], "name": "Eva"}}
        proven, unproven = world.caller(), world.caller(tax_id=None)
        assert refused(proven.post("/v1/accounts", theirs), 403, "forbidden")["field"] == "owner.tax_id"
        assert refused(unproven.post("/v1/accounts", theirs), 403, "unproven")["field"] == "owner.tax_id"
        for caller in (proven, unproven):
            assert caller.get("/v1/accounts").json()["items"] == []
        assert refused(world.bank.post("/v1/accounts", {"owner": {"name": "Eva"}}), 400, "malformed")["field"] == (
            "owner.tax_id"
        )
        assert world.bank.post("/v1/accounts", theirs).status_code == 201

    def test_who_has_proven_no_tax_id_has_an_account_with_low_limits_under_none(self, world: World) -> None:
        """They can be lowered, raised by an operator alone, and hold for what is paid."""
        caller = world.caller(tax_id=None)
        body = {"owner": {"name": "Eva"}, "limits": {"daily": 50_000}}
        opened = caller.post("/v1/accounts", body, idempotency_key="k")
        assert opened.status_code == 201, opened.text
        account, limits = opened.json()["id"], opened.json()["limits"]
        assert opened.json()["owner"] == {"name": "Eva", "tax_id": None, "sub": caller.sub}
        assert (limits["per_transfer"], limits["daily"], limits["night"]) == (20_000, 50_000, 100_000)
        proven = Caller(world.http, world.engine.make_token(caller.sub, READ_WRITE, tax_id=TAX_IDS[0]), caller.sub)
        for again in (caller, proven):
            assert again.post("/v1/accounts", body, idempotency_key="k").json() == opened.json()
        assert caller.get(f"/v1/accounts/{account}").json() == opened.json()
        world.fund(account, 100_000)
        _, other = world.person()
        too_much = caller.post("/v1/transfers", transfer(account, other, 20_001))
        assert refused(too_much, 422, "limit-exceeded")["limit"] == "per_transfer"
        assert caller.post("/v1/transfers", transfer(account, other, 20_000)).status_code == 201
        for name, most in (("per_transfer", 20_000), ("daily", 100_000), ("night", 100_000)):
            for value in (most + 1, None):
                raised = {"limits": {name: value}}
                for answer in (
                    caller.post("/v1/accounts", {**body, **raised}),
                    caller.call("PATCH", f"/v1/accounts/{account}", raised),
                ):
                    problem = refused(answer, 403, "unproven")
                    assert (problem["field"], problem["most"]) == (f"limits.{name}", most)
        assert caller.call("PATCH", f"/v1/accounts/{account}", {"limits": {"daily": 1}}).status_code == 200
        assert world.bank.call("PATCH", f"/v1/accounts/{account}", {"limits": {"daily": 10**6}}).status_code == 200

    def test_who_has_proven_no_tax_id_has_few_accounts_under_none(self, world: World) -> None:
        """Else low limits would be none; the first answer to a request is told all the same."""
        caller = world.caller(tax_id=None)
        bodies = [{"owner": {"name": "Eva"}, "id": new_id()} for _ in range(3)]
        opened = [caller.post("/v1/accounts", body) for body in bodies]
        assert [answer.status_code for answer in opened] == [201] * 3
        one_more = refused(caller.post("/v1/accounts", {"owner": {"name": "Eva"}}), 403, "unproven")
        assert (one_more["field"], one_more["most"]) == ("owner.tax_id", 3)
        assert caller.post("/v1/accounts", bodies[0]).json() == opened[0].json()
        assert len(caller.get("/v1/accounts").json()["items"]) == 3
        assert world.caller(tax_id=None).post("/v1/accounts", {"owner": {"name": "Eva"}}).status_code == 201

    @pytest.mark.parametrize(
        "body",
        [
            {},
            {"owner": {}},
            {"owner": {"tax_id": TAX_IDS[0]}},
            {"owner": {"tax_id": TAX_IDS[0], "name": ""}},
            {"owner": {"tax_id": TAX_IDS[0], "name": "   "}},
            {"owner": {"tax_id": TAX_IDS[0], "name": "x" * 121}},
            {"owner": {"tax_id": TAX_IDS[0], "name": "a\x00b"}},
            {"owner": {"tax_id": TAX_IDS[0], "name": "a\nb"}},
            {"owner": {"tax_id": 12345678909, "name": "Eva"}},
            {"owner": {"tax_id": TAX_IDS[0], "name": "Eva", "age": 5}},
            {"owner": {"tax_id": TAX_IDS[0], "name": "Eva"}, "limits": {"daily": "5"}},
            {"owner": {"tax_id": TAX_IDS[0], "name": "Eva"}, "limits": {"yearly": 5}},
            {"owner": {"tax_id": TAX_IDS[0], "name": "Eva"}, "limits": None},
            {"owner": [], "limits": {}},
            [],
        ],
    )
    def test_an_account_that_cannot_be_read_is_malformed(self, world: World, body: Any) -> None:
        """400, whatever is wrong."""
        refused(world.caller().post("/v1/accounts", body), 400, "malformed")

    @pytest.mark.parametrize(
        "limits",
        [
            {"daily": -1},
            {"night": 2**63},
            {"per_transfer": AMOUNT_MAX},
            {"night_window": {"from": "24:00", "to": "06:00"}},
            {"night_window": {"from": "6:00", "to": "07:00"}},
            {"night_window": {"from": "06:00", "to": "06:00"}},
        ],
    )
    def test_limits_out_of_range_are_refused(self, world: World, limits: Any) -> None:
        """422 invalid-limit."""
        body = {"owner": {"tax_id": TAX_IDS[0], "name": "Eva"}, "limits": limits}
        refused(world.caller().post("/v1/accounts", body), 422, "invalid-limit")

    def test_only_an_operator_opens_for_somebody_else(self, world: World) -> None:
        """And then the account is that person's."""
        other = world.caller(tax_id=TAX_IDS[2])
        body = {"owner": {"tax_id": TAX_IDS[2], "name": "Ivo", "sub": other.sub}}
        refused(world.caller().post("/v1/accounts", body), 403, "forbidden")
        answer = world.bank.post("/v1/accounts", body)
        assert answer.status_code == 201, answer.text
        assert other.balance(answer.json()["id"]) == (0, 0, 0)
        assert other.post("/v1/accounts", body).status_code == 201

    def test_callers_see_only_their_own_accounts(self, world: World) -> None:
        """Every call that names an account."""
        owner, account = world.person(100)
        stranger = world.caller()
        for path in ("", "/balance", "/balance?at=2026-01-01T00:00:00Z", "/entries"):
            refused(stranger.get(f"/v1/accounts/{account}{path}"), 403, "forbidden")
        refused(stranger.call("PATCH", f"/v1/accounts/{account}", {"limits": {"daily": 1}}), 403, "forbidden")
        refused(stranger.call("PATCH", f"/v1/accounts/{account}", {"status": "closed"}), 403, "forbidden")
        refused(stranger.post("/v1/transfers", transfer(account, stranger.open(), 1)), 403, "forbidden")
        assert owner.balance(account) == (100, 0, 100)
        assert world.bank.balance(account) == (100, 0, 100)

    @pytest.mark.parametrize(
        "account", ["9007199254740993", "1", "2", "1023", "0", "-5", "abc", "9" * 19, "9" * 40, "%00", "0123456"]
    )
    def test_an_unknown_account_in_the_path_is_404(self, world: World, account: str) -> None:
        """Reserved ones too."""
        for path in ("", "/balance", "/entries"):
            refused(world.bank.get(f"/v1/accounts/{account}{path}"), 404, "unknown-account")
        refused(world.bank.call("PATCH", f"/v1/accounts/{account}", {"status": "frozen"}), 404, "unknown-account")
        refused(world.caller().call("PATCH", f"/v1/accounts/{account}", {"status": "open"}), 404, "unknown-account")

    def test_a_list_has_the_callers_accounts_page_by_page(self, world: World) -> None:
        """In order, without gaps, and nobody else's."""
        caller = world.caller()
        accounts = sorted((world.open_for(caller, tax_id) for tax_id in TAX_IDS[:3]), key=int)
        found: list[str] = []
        path = "/v1/accounts?limit=2"
        while True:
            page = caller.get(path).json()
            found += [item["id"] for item in page["items"]]
            if page["next_cursor"] is None:
                break
            path = f"/v1/accounts?limit=2&cursor={page['next_cursor']}"
        assert found == accounts
        assert caller.get("/v1/accounts?limit=3").json()["next_cursor"] is None
        assert world.bank.get(f"/v1/accounts?sub={caller.sub}").json()["items"][0]["status"] == "open"
        refused(world.caller().get(f"/v1/accounts?sub={caller.sub}"), 403, "forbidden")
        for bad in ("cursor=x", "cursor=-1", f"cursor={2**63}", "limit=0", "limit=1001", "limit=x", "sub=", "page=2"):
            refused(caller.get(f"/v1/accounts?{bad}"), 400, "malformed")

    def test_a_frozen_account_neither_sends_nor_receives(self, world: World) -> None:
        """Until an operator opens it again; an owner can do neither."""
        owner, account = world.person(100)
        friend, other = world.person(100)
        refused(owner.call("PATCH", f"/v1/accounts/{account}", {"status": "frozen"}), 403, "forbidden")
        frozen = world.bank.call("PATCH", f"/v1/accounts/{account}", {"status": "frozen"})
        assert frozen.json()["status"] == "frozen"
        assert frozen.headers["razao-position"]
        problem = refused(owner.post("/v1/transfers", transfer(account, other, 1)), 422, "account-frozen")
        assert problem["field"] == "debit_account"
        problem = refused(friend.post("/v1/transfers", transfer(other, account, 1)), 422, "account-frozen")
        assert problem["field"] == "credit_account"
        refused(owner.call("PATCH", f"/v1/accounts/{account}", {"status": "open"}), 403, "forbidden")
        assert world.bank.call("PATCH", f"/v1/accounts/{account}", {"status": "open"}).json()["status"] == "open"
        assert owner.post("/v1/transfers", transfer(account, other, 1)).status_code == 201

    def test_an_owner_closes_an_account_once_it_is_empty(self, world: World) -> None:
        """422 account-not-empty before, account-closed afterwards."""
        owner, account = world.person(100)
        friend, other = world.person(100)
        path = f"/v1/accounts/{account}"
        refused(owner.call("PATCH", path, {"status": "closed"}), 422, "account-not-empty")
        assert owner.post("/v1/transfers", transfer(account, other, 100)).status_code == 201
        closed = owner.call("PATCH", path, {"status": "closed"}, idempotency_key="close")
        assert closed.status_code == 200, closed.text
        assert closed.json()["status"] == "closed"
        refused(friend.post("/v1/transfers", transfer(other, account, 1)), 422, "account-closed")
        refused(world.bank.post("/v1/deposits", {"account": account, "amount": 1}), 422, "account-closed")
        again = owner.call("PATCH", path, {"status": "closed"}, idempotency_key="close")
        assert again.status_code == 200
        assert again.headers["idempotency-replayed"] == "true"

    @pytest.mark.parametrize(
        "body",
        [{}, {"status": "shut"}, {"status": None}, {"status": "closed", "limits": {"daily": 1}}, {"limits": {}}, [], 1],
    )
    def test_a_change_that_says_nothing_or_too_much_is_malformed(self, world: World, body: Any) -> None:
        """400."""
        owner, account = world.person()
        refused(owner.call("PATCH", f"/v1/accounts/{account}", body), 400, "malformed")

    def test_a_change_under_a_key_is_answered_as_the_first_time(self, world: World) -> None:
        """Whatever has become of the account since; and the key stands for that change alone."""
        owner, account = world.person(1000)
        path, limits = f"/v1/accounts/{account}", {"limits": {"daily": 500}}
        first = owner.call("PATCH", path, limits, idempotency_key="k-1")
        assert first.status_code == 200, first.text
        frozen = world.bank.call("PATCH", path, {"status": "frozen"}, idempotency_key="k-1")
        assert owner.call("PATCH", path, {"limits": {"daily": 300}}, idempotency_key="k-2").status_code == 200
        assert world.bank.call("PATCH", path, {"status": "open"}).status_code == 200
        world.fund(account, 7)
        for caller, body, answer in ((owner, limits, first), (world.bank, {"status": "frozen"}, frozen)):
            again = caller.call("PATCH", path, body, idempotency_key="k-1")
            assert (again.status_code, again.content) == (200, answer.content)
            assert "idempotency-replayed" not in answer.headers
            assert again.headers["idempotency-replayed"] == "true"
        now = owner.get(path).json()
        assert (now["status"], now["limits"]["daily"], now["balance"]["posted"]) == ("open", 300, 1007)
        refused(owner.call("PATCH", path, {"limits": {"daily": 501}}, idempotency_key="k-1"), 409, "id-conflict")
        refused(owner.call("PATCH", path, {"status": "closed"}, idempotency_key="k-1"), 409, "id-conflict")
        refused(world.bank.call("PATCH", path, {"status": "open"}, idempotency_key="k-1"), 409, "id-conflict")

    def test_a_cut_of_a_limit_holds_at_once_and_a_raise_waits(self, world: World) -> None:
        """Removing a limit is a raise."""
        owner, account = world.person(10_000, limits={"per_transfer": 500, "daily": 1000})
        _, other = world.person()
        path = f"/v1/accounts/{account}"
        cut = owner.call("PATCH", path, {"limits": {"per_transfer": 300}}).json()["limits"]
        assert cut["per_transfer"] == 300
        assert cut["daily"] == 1000
        assert cut["raises"] == []
        changed = owner.call("PATCH", path, {"limits": {"per_transfer": 900, "daily": None}}).json()["limits"]
        assert changed["per_transfer"] == 300
        raises = {one["limit"]: one for one in changed["raises"]}
        assert raises["per_transfer"]["value"] == 900
        assert raises["daily"]["value"] is None
        assert datetime.fromisoformat(raises["daily"]["at"]) > datetime.now(UTC)
        problem = refused(owner.post("/v1/transfers", transfer(account, other, 301)), 422, "limit-exceeded")
        assert (problem["limit"], problem["left"]) == ("per_transfer", 300)

    def test_a_limit_says_which_and_what_is_left_also_on_a_replay(self, world: World) -> None:
        """Per transfer, a day, and a night that lasts the whole day but a minute."""
        owner, account = world.person(10_000, limits={"per_transfer": 700, "daily": 1000})
        _, other = world.person()
        assert owner.post("/v1/transfers", transfer(account, other, 600)).status_code == 201
        body = transfer(account, other, 500, id=new_id(account))
        first = owner.post("/v1/transfers", body)
        problem = refused(first, 422, "limit-exceeded")
        assert (problem["limit"], problem["left"], problem["id"]) == ("daily", 400, body["id"])
        assert owner.post("/v1/transfers", transfer(account, other, 300)).status_code == 201
        again = owner.post("/v1/transfers", body)
        replayed = refused(again, 422, "limit-exceeded")
        assert again.headers["idempotency-replayed"] == "true"
        assert {**replayed, "request_id": 0} == {**problem, "request_id": 0}
        assert owner.balance(account)[0] == 9100

    # -- transfers ----------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("apart", [False, True])
    def test_a_transfer_moves_money(self, world: World, apart: bool) -> None:
        """Within a shard and across."""
        owner, account = world.person(1000)
        friend, other = world.person_elsewhere(account, apart=apart)
        id_ = new_id(account)
        more = {"description": "Almoço: 2x", "metadata": {"b": [1, {"c": None}], "a": "ü"}}
        answer = owner.post("/v1/transfers", transfer(account, other, 300, id=id_, **more))
        assert answer.status_code == 201, answer.text
        made = answer.json()
        created = datetime.fromisoformat(made.pop("created_at"))
        assert abs((datetime.now(UTC) - created).total_seconds()) < 60
        assert made == {
            "id": id_, "kind": "transfer", "status": "settled", "amount": 300, "currency": "BRL",
            "debit_account": account, "credit_account": other, **more,
        }  # fmt: skip
        assert owner.balance(account) == (700, 0, 700)
        assert friend.balance(other) == (300, 0, 300)
        for side in (owner, friend, world.bank):
            assert side.get(f"/v1/transfers/{id_}").json() == answer.json()
        refused(world.caller().get(f"/v1/transfers/{id_}"), 403, "forbidden")

    def test_metadata_comes_back_as_the_text_that_it_was(self, world: World) -> None:
        """Whichever call made it and whichever shows it: neither a digit nor the order of its keys is another."""
        owner, account = world.person(10_000)
        payee, other = world.person_elsewhere(account, apart=True)
        text = METADATA.replace(" ", "").encode()

        def body(**fields: Any) -> bytes:
            return json.dumps(fields).encode()[:-1] + b', "metadata" : ' + METADATA.encode() + b"}"

        def shown(caller: Caller, id_: str) -> None:
            assert b'"metadata":' + text in caller.get(f"/v1/transfers/{id_}").content

        made = []
        for more in ({}, {"hold": True}, {"description": "x"}):
            answer = owner.send_raw("/v1/transfers", body(**transfer(account, other, 10, **more)))
            assert answer.status_code == 201, answer.text
            assert b'"metadata":' + text in answer.content
            made.append(answer.json()["id"])
            shown(payee, made[-1])
        posted = owner.post(f"/v1/transfers/{made[1]}/post")
        refund = payee.send_raw(f"/v1/transfers/{made[0]}/refunds", body(amount=1))
        deposit = world.bank.send_raw("/v1/deposits", body(account=account, amount=1))
        for answer in (posted, refund, deposit):
            assert b'"metadata":' + text in answer.content, answer.text
        batch = owner.send_raw("/v1/transfers/batch", b'{"transfers":[%s]}' % body(**transfer(account, other, 1)))
        rows = {"debit_account": [account], "credit_account": [other], "amount": [1], "metadata": [METADATA]}
        columns = owner.send_raw("/v1/transfers/batch", arrow(pa.table(rows)), ARROW)
        (id_,) = pa.ipc.open_stream(columns.content).read_all()["id"].to_pylist()
        for one in (refund.json()["id"], batch.json()["results"][0]["id"], str(uuid.UUID(bytes=id_))):
            shown(owner, one)

    def test_the_text_of_metadata_is_content(self, world: World) -> None:
        """A repeat with other whitespace gets the first answer; with another text it is another payment."""
        owner, account = world.person(1000)
        _, other = world.person_elsewhere(account, apart=False)
        id_ = new_id(account)

        def send(metadata: str) -> httpx.Response:
            fields = json.dumps(transfer(account, other, 10, id=id_))
            return owner.send_raw("/v1/transfers", f'{fields[:-1]},"metadata":{metadata}}}'.encode())

        first = send('{"b":1.10,"a":"x y"}')
        again = send('{ "b" : 1.10,\n\t"a":"x y" }')
        assert (again.status_code, again.content) == (201, first.content)
        assert again.headers["idempotency-replayed"] == "true"
        for changed in (
            '{"a":"x y","b":1.10}',
            '{"b":1.1,"a":"x y"}',
            '{"b":1.10,"a":"xy"}',
            '{"b":1.10,"a":"x\\u0020y"}',
        ):
            refused(send(changed), 409, "id-conflict")
        assert owner.balance(account)[0] == 990

    @pytest.mark.parametrize("apart", [False, True])
    def test_a_repeated_id_is_answered_as_the_first_time(self, world: World, apart: bool) -> None:
        """Same status, same body; marked; and nothing moves twice."""
        owner, account = world.person(1000)
        _, other = world.person_elsewhere(account, apart=apart)
        body = transfer(account, other, 300, id=new_id(account), description="x", metadata={"k": 1})
        first = owner.post("/v1/transfers", body)
        again = owner.post("/v1/transfers", body)
        assert (again.status_code, again.content) == (first.status_code, first.content)
        assert "idempotency-replayed" not in first.headers
        assert again.headers["idempotency-replayed"] == "true"
        respelled = {**body, "id": body["id"].upper(), "metadata": {"k": 1}}
        assert owner.post("/v1/transfers", respelled).content == first.content
        assert owner.balance(account)[0] == 700

    @pytest.mark.parametrize(
        "change",
        [
            {"amount": 301}, {"description": "y"}, {"metadata": {"k": 2}}, {"hold": True}, {"credit_account": None},
            {"hold": True, "expires_in": 60},
        ],
    )  # fmt: skip
    def test_a_repeated_id_with_other_content_is_a_conflict(self, world: World, change: dict[str, Any]) -> None:
        """Whatever differs."""
        owner, account = world.person(1000)
        _, other = world.person_elsewhere(account, apart=False)
        _, third = world.person_elsewhere(account, apart=False)
        body = transfer(account, other, 300, id=new_id(account), description="x", metadata={"k": 1})
        assert owner.post("/v1/transfers", body).status_code == 201
        if "credit_account" in change:
            change = {"credit_account": third}
        assert refused(owner.post("/v1/transfers", {**body, **change}), 409, "id-conflict")["id"] == body["id"]
        assert owner.balance(account)[0] == 700

    def test_an_idempotency_key_stands_in_for_the_id(self, world: World) -> None:
        """Per subject: others may use the same key. One key with another body is a conflict."""
        owner, account = world.person(1000)
        friend, other = world.person(1000)
        body = transfer(account, other, 300)
        first = owner.post("/v1/transfers", body, idempotency_key="order 17/ü".encode("ascii", "replace").decode())
        again = owner.post("/v1/transfers", body, idempotency_key="order 17/?")
        assert first.status_code == 201
        assert again.content == first.content
        assert again.headers["idempotency-replayed"] == "true"
        refused(owner.post("/v1/transfers", {**body, "amount": 1}, idempotency_key="order 17/?"), 409, "id-conflict")
        assert (
            friend.post("/v1/transfers", transfer(other, account, 1), idempotency_key="order 17/?").status_code == 201
        )
        assert owner.balance(account)[0] == 701
        assert owner.get(f"/v1/transfers/{first.json()['id']}").json()["status"] == "settled"

    def test_id_and_idempotency_key_together_must_name_the_same(self, world: World) -> None:
        """The key is the id, or gives it; 400 otherwise."""
        owner, account = world.person(1000)
        _, other = world.person()
        id_ = new_id(account)
        refused(owner.post("/v1/transfers", transfer(account, other, 1, id=id_), idempotency_key="k"), 400, "malformed")
        made = owner.post("/v1/transfers", transfer(account, other, 1, id=id_), idempotency_key=id_.upper())
        assert (made.status_code, made.json()["id"]) == (201, id_)
        given = owner.post("/v1/transfers", transfer(account, other, 2), idempotency_key="k").json()["id"]
        again = owner.post("/v1/transfers", transfer(account, other, 2, id=given), idempotency_key="k")
        assert (again.status_code, again.headers["idempotency-replayed"]) == (201, "true")
        for key in ("another", given):
            body = transfer(account, other, 2, id=given)
            refused(owner.post("/v1/transfers", body, idempotency_key=key), 400, "malformed")
        assert owner.balance(account)[0] == 997

    def test_an_id_that_only_a_key_may_give_is_refused_without_it(self, world: World) -> None:
        """422 invalid-id on every call, whoever sends it: keys cannot be used up, or asked for, by others."""
        owner, account = world.person(1000)
        thief, other = world.person(1000)
        given = owner.post("/v1/transfers", transfer(account, other, 5), idempotency_key="k").json()["id"]
        guessed = ids.text(ids.in_slot(ids.derive("key", owner.sub, "transfers", "next"), int(account) % SLOTS))
        paid = thief.post("/v1/transfers", transfer(other, account, 7)).json()["id"]
        for id_ in (given, guessed):
            for answer in (
                owner.post("/v1/transfers", transfer(account, other, 5, id=id_)),
                thief.post("/v1/transfers", transfer(account, other, 5, id=id_)),
                world.bank.post("/v1/deposits", {"account": account, "amount": 5, "id": id_}),
                world.bank.post("/v1/withdrawals", {"account": account, "amount": 5, "id": id_}),
                owner.post(f"/v1/transfers/{paid}/refunds", {"amount": 5, "id": id_}),
                owner.post("/v1/accounts", {"owner": {"tax_id": TAX_IDS[0], "name": "Eva"}, "id": id_}),
            ):
                assert refused(answer, 422, "invalid-id")["field"] == "id"
            rows = {"transfers": [transfer(account, other, 5), transfer(account, other, 5, id=id_)]}
            for headers in ({}, {"idempotency_key": "k"}):
                answer = owner.post("/v1/transfers/batch", rows, **headers)
                assert refused(answer, 422, "invalid-id")["field"] == "transfers[1].id"
        first = owner.post("/v1/transfers", transfer(account, other, 5), idempotency_key="next")
        assert "idempotency-replayed" not in first.headers
        assert first.json()["id"] != guessed
        assert owner.balance(account)[0] == 997

    def test_an_id_says_where_its_payer_lies(self, world: World) -> None:
        """422 invalid-id otherwise, with the id that does; of a deposit the payee counts, of a refund who pays it."""
        owner, account = world.person(1000)
        friend, other = world.person_elsewhere(account, apart=True, amount=1000)
        paid = owner.post("/v1/transfers", transfer(account, other, 100)).json()["id"]
        for caller, path, body, payer in (
            (owner, "transfers", transfer(account, other, 5), account),
            (owner, "transfers", transfer(account, other, 5, hold=True), account),
            (world.bank, "deposits", {"account": account, "amount": 5}, account),
            (world.bank, "withdrawals", {"account": account, "amount": 5}, account),
            (friend, f"transfers/{paid}/refunds", {"amount": 5}, other),
        ):
            for wrong in (str(int(payer) + 1), None):
                id_ = new_id(wrong) if wrong else f"{new_id()[:-3]}fff"
                problem = refused(caller.post(f"/v1/{path}", {**body, "id": id_}), 422, "invalid-id")
                assert (problem["field"], problem["expected"]) == ("id", f"{id_[:-3]}{int(payer) % SLOTS:03x}")
                assert f"{int(payer) % SLOTS:03x}" in problem["detail"]
            made = caller.post(f"/v1/{path}", {**body, "id": problem["expected"]})
            assert (made.status_code, made.json()["id"]) == (201, problem["expected"])
        rows = [transfer(account, other, 1, id=new_id(account)), transfer(account, other, 1, id=new_id(other))]
        problem = refused(owner.post("/v1/transfers/batch", {"transfers": rows}), 422, "invalid-id")
        assert problem["field"] == "transfers[1].id"
        assert problem["expected"] == f"{rows[1]['id'][:-3]}{int(account) % SLOTS:03x}"
        refused(owner.get(f"/v1/transfers/{rows[0]['id']}"), 404, "unknown-transfer")

    @pytest.mark.parametrize("keyed", [False, True])
    def test_ids_that_we_make_say_where_the_payer_lies(self, world: World, keyed: bool) -> None:
        """Of every call, and of every row of a batch; only the version tells whether a key gave it."""
        owner, account = world.person(1000)
        friend, other = world.person_elsewhere(account, apart=True, amount=1000)
        key = {"idempotency_key": "k"} if keyed else {}
        paid = owner.post("/v1/transfers", transfer(account, other, 100), **key).json()["id"]
        refund = friend.post(f"/v1/transfers/{paid}/refunds", {"amount": 5}, **key).json()["id"]
        deposit = world.bank.post("/v1/deposits", {"account": account, "amount": 5}, **key).json()["id"]
        rows = [transfer(account, other, 1), transfer(other, account, 1)]
        batch = world.bank.post("/v1/transfers/batch", {"transfers": rows}, **key).json()["results"]
        assert [one["status"] for one in batch] == ["settled"] * 2
        made = [(paid, account), (refund, other), (deposit, account)]
        made += [(one["id"], row["debit_account"]) for one, row in zip(batch, rows, strict=True)]
        for id_, payer in made:
            assert ids.slot_of(ids.parse(id_)) == int(payer) % SLOTS
            assert ids.version(ids.parse(id_)) == (8 if keyed else 7)
            assert world.bank.get(f"/v1/transfers/{id_}").json()["status"] == "settled"

    @pytest.mark.parametrize("apart", [False, True])
    def test_one_key_is_another_payment_for_another_payer(self, world: World, apart: bool) -> None:
        """With an id of its own, wherever the accounts lie; two such holds can both be ended."""
        owner, account = world.person(1000)
        _, other = world.person_elsewhere(account, apart=apart)
        source = random.Random(int(account))
        body = {"owner": {"tax_id": invented_cpf(source), "name": "Maria", "sub": owner.sub}}
        for _ in range(40):
            second = world.bank.post("/v1/accounts", body).json()["id"]
            if (int(second) % 2 != int(account) % 2) == apart:
                break
            body["owner"]["tax_id"] = invented_cpf(source)
        world.fund(second, 1000)
        holds = [
            owner.post("/v1/transfers", transfer(payer, other, 10, hold=True), idempotency_key="k").json()["id"]
            for payer in (account, second)
        ]
        assert holds[0] != holds[1]
        assert (owner.balance(account), owner.balance(second)) == ((1000, 10, 990), (1000, 10, 990))
        refused(owner.post("/v1/transfers", transfer(account, other, 11), idempotency_key="k"), 409, "id-conflict")
        for hold in holds:
            assert owner.post(f"/v1/transfers/{hold}/void").json()["status"] == "voided"
        assert (owner.balance(account), owner.balance(second)) == ((1000, 0, 1000), (1000, 0, 1000))

    @pytest.mark.parametrize("key", ["", "x" * 256, "tab\there"])
    def test_an_idempotency_key_out_of_form_is_malformed(self, world: World, key: str) -> None:
        """1 to 255 visible ASCII characters."""
        owner, account = world.person(1000)
        refused(owner.post("/v1/transfers", transfer(account, account, 1), idempotency_key=key), 400, "malformed")

    def test_the_id_of_a_new_account_may_end_as_it_likes(self, world: World) -> None:
        """Nobody outside can know in which slot it will lie. One id opens one account, also for another person."""
        caller = world.caller(EVERYTHING)
        for tax_id in TAX_IDS[:3]:
            body = {"owner": {"tax_id": tax_id, "name": "Ana"}, "id": f"{new_id()[:-3]}fff"}
            first = caller.post("/v1/accounts", body)
            assert first.status_code == 201, first.text
            again = caller.post("/v1/accounts", body)
            assert (again.content, again.headers["idempotency-replayed"]) == (first.content, "true")
            other = {**body, "owner": {"tax_id": TAX_IDS[3], "name": "Ana"}}
            assert refused(caller.post("/v1/accounts", other), 409, "id-conflict")["id"] == body["id"]
        for id_, problem in ((new_id(age_s=50 * 3600), "id-expired"), (new_id(age_s=-3600), "id-in-future")):
            body = {"owner": {"tax_id": TAX_IDS[0], "name": "Ana"}, "id": id_}
            assert refused(caller.post("/v1/accounts", body), 422, problem)["id"] == id_

    def test_without_any_id_two_equal_transfers_are_two(self, world: World) -> None:
        """Each gets an id of its own."""
        owner, account = world.person(1000)
        _, other = world.person()
        one, two = (owner.post("/v1/transfers", transfer(account, other, 10)).json()["id"] for _ in range(2))
        assert one != two
        assert owner.balance(account)[0] == 980

    @pytest.mark.parametrize(
        "id_", ["", "x", str(uuid.UUID(int=1, version=4)), "0" * 36, "{" + str(uuid.uuid4()) + "}", "7" * 32, "é" * 36]
    )
    def test_an_id_that_is_no_uuid_of_version_7_is_refused(self, world: World, id_: str) -> None:
        """400 invalid-id."""
        owner, account = world.person(1000)
        refused(owner.post("/v1/transfers", transfer(account, account, 1, id=id_)), 400, "invalid-id")

    def test_ids_too_old_or_ahead_are_refused(self, world: World) -> None:
        """48 hours back, five minutes ahead."""
        owner, account = world.person(1000)
        _, other = world.person()
        old, ahead = new_id(account, 50 * 3600), new_id(account, -3600)
        refused(owner.post("/v1/transfers", transfer(account, other, 1, id=old)), 422, "id-expired")
        refused(owner.post("/v1/transfers", transfer(account, other, 1, id=ahead)), 422, "id-in-future")
        for id_ in (old, ahead):
            refused(owner.get(f"/v1/transfers/{id_}"), 404, "unknown-transfer")

    def test_more_than_is_there_is_refused_for_good(self, world: World) -> None:
        """The first answer to an id stands, also when money has come."""
        owner, account = world.person(100)
        _, other = world.person()
        body = transfer(account, other, 101, id=new_id(account))
        first = owner.post("/v1/transfers", body)
        problem = refused(first, 422, "insufficient-funds")
        assert problem["id"] == body["id"]
        world.fund(account, 1000)
        again = owner.post("/v1/transfers", body)
        assert {**refused(again, 422, "insufficient-funds"), "request_id": 0} == {**problem, "request_id": 0}
        assert again.headers["idempotency-replayed"] == "true"
        known = owner.get(f"/v1/transfers/{body['id']}").json()
        assert (known["status"], known["type"]) == ("refused", "/problems/insufficient-funds")
        assert owner.balance(account) == (1100, 0, 1100)

    @pytest.mark.parametrize("amount", [0, -1, 2**63, 2**64, -(2**63), 10**30])
    def test_an_amount_out_of_range_is_refused(self, world: World, amount: int) -> None:
        """422 invalid-amount, on every call that takes one."""
        owner, account = world.person(1000)
        _, other = world.person()
        held = owner.post("/v1/transfers", transfer(account, other, 10, hold=True)).json()["id"]
        for answer in (
            owner.post("/v1/transfers", transfer(account, other, amount)),
            world.bank.post("/v1/deposits", {"account": account, "amount": amount}),
            world.bank.post("/v1/withdrawals", {"account": account, "amount": amount}),
            owner.post(f"/v1/transfers/{held}/post", {"amount": amount}),
            owner.post(f"/v1/transfers/{held}/refunds", {"amount": amount}),
        ):
            assert refused(answer, 422, "invalid-amount")["field"] == "amount"
        assert owner.balance(account) == (1000, 10, 990)

    @pytest.mark.parametrize("amount", [1.5, 1.0, "1", True, None, [1], {"value": 1}])
    def test_an_amount_of_another_type_is_malformed(self, world: World, amount: Any) -> None:
        """400, and the answer names the field."""
        owner, account = world.person(1000)
        answer = owner.post("/v1/transfers", transfer(account, account, amount))
        assert refused(answer, 400, "malformed")["field"] == "amount"

    @pytest.mark.parametrize(
        "account", ["9007199254740993", "1", "2", "0", "abc", "9" * 19, "-5", "01234567", " 5000", "5_000"]
    )
    def test_an_unknown_account_in_a_body_is_422(self, world: World, account: str) -> None:
        """On either side. The book's own accounts are nobody's to name."""
        owner, own = world.person(1000)
        for field in ("debit_account", "credit_account"):
            for caller in (owner, world.bank):
                body = {**transfer(own, own, 1), field: account}
                assert refused(caller.post("/v1/transfers", body), 422, "unknown-account")["field"] == field
        for path in ("deposits", "withdrawals"):
            answer = world.bank.post(f"/v1/{path}", {"account": account, "amount": 1})
            assert refused(answer, 422, "unknown-account")["field"] == "account"
        assert owner.balance(own)[0] == 1000

    def test_an_account_cannot_pay_itself(self, world: World) -> None:
        """422 same-account."""
        owner, account = world.person(1000)
        refused(owner.post("/v1/transfers", transfer(account, account, 1)), 422, "same-account")

    def test_a_balance_never_overflows(self, world: World) -> None:
        """422 overflow."""
        _, account = world.person(1)
        refused(world.bank.post("/v1/deposits", {"account": account, "amount": AMOUNT_MAX}), 422, "overflow")

    @pytest.mark.parametrize("path", ["deposits", "withdrawals"])
    def test_deposits_and_withdrawals_answer_like_transfers(self, world: World, path: str) -> None:
        """To any account, with the scope for it."""
        owner, account = world.person(1000)
        body = {"account": account, "amount": 400, "id": new_id(account), "description": "caixa"}
        answer = world.bank.post(f"/v1/{path}", body)
        assert answer.status_code == 201, answer.text
        sides = ("settlement", account) if path == "deposits" else (account, "settlement")
        made = answer.json()
        assert (made["debit_account"], made["credit_account"]) == sides
        assert (made["kind"], made["status"], made["amount"]) == (path[:-1], "settled", 400)
        assert owner.balance(account)[0] == (1400 if path == "deposits" else 600)
        again = world.bank.post(f"/v1/{path}", body)
        assert again.content == answer.content
        assert again.headers["idempotency-replayed"] == "true"
        assert owner.get(f"/v1/transfers/{body['id']}").json() == made
        refused(owner.post(f"/v1/{path}", body), 403, "forbidden")
        if path == "withdrawals":
            refused(world.bank.post(f"/v1/{path}", {"account": account, "amount": 601}), 422, "insufficient-funds")

    # -- holds --------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("apart", [False, True])
    def test_a_hold_reserves_until_it_is_posted(self, world: World, apart: bool) -> None:
        """In part: the rest is available again. Only once."""
        owner, account = world.person(1000)
        friend, other = world.person_elsewhere(account, apart=apart)
        answer = owner.post("/v1/transfers", transfer(account, other, 400, hold=True, expires_in=3600))
        held = answer.json()
        assert (answer.status_code, held["status"], held["kind"]) == (201, "held", "hold")
        life = datetime.fromisoformat(held["expires_at"]) - datetime.fromisoformat(held["created_at"])
        assert life == timedelta(hours=1)
        assert owner.balance(account) == (1000, 400, 600)
        path = f"/v1/transfers/{held['id']}"
        assert owner.get(path).json() == held
        problem = refused(owner.post(f"{path}/post", {"amount": 401}), 422, "exceeds-hold")
        assert problem["left"] == 400
        refused(friend.post(f"{path}/post"), 403, "forbidden")
        refused(friend.post(f"{path}/void"), 403, "forbidden")
        refused(world.caller().post(f"{path}/void"), 403, "forbidden")
        posted = owner.post(f"{path}/post", {"amount": 150}, idempotency_key="p")
        assert posted.status_code == 200, posted.text
        expected = {**held, "status": "posted", "posted_amount": 150}
        assert posted.json() == expected
        again = owner.post(f"{path}/post", {"amount": 150}, idempotency_key="p")
        assert (again.status_code, again.json()) == (200, expected)
        assert again.headers["idempotency-replayed"] == "true"
        assert owner.get(path).json() == expected
        assert owner.balance(account) == (850, 0, 850)
        assert friend.balance(other) == (150, 0, 150)
        for action in ("post", "void"):
            problem = refused(owner.post(f"{path}/{action}"), 422, "not-held")
            assert problem["transfer_status"] == "posted"

    @pytest.mark.parametrize("apart", [False, True])
    @pytest.mark.parametrize("payee", ["unknown", "closed", "frozen"])
    def test_a_hold_does_not_look_at_its_payee_and_a_post_does(self, world: World, payee: str, apart: bool) -> None:
        """On any placement alike."""
        owner, account = world.person(1000)
        if payee == "unknown":
            other, problem = nobody_beside(account, apart=apart), "unknown-account"
        else:
            _, other = world.person_elsewhere(account, apart=apart)
            assert world.bank.call("PATCH", f"/v1/accounts/{other}", {"status": payee}).status_code == 200
            problem = f"account-{payee}"
        held = owner.post("/v1/transfers", transfer(account, other, 400, hold=True))
        assert (held.status_code, held.json()["status"]) == (201, "held")
        assert owner.balance(account) == (1000, 400, 600)
        answer = owner.post(f"/v1/transfers/{held.json()['id']}/post")
        assert refused(answer, 422, problem)["field"] == "credit_account"
        assert owner.balance(account)[0] == 1000

    def test_a_hold_is_posted_whole_when_no_amount_is_named(self, world: World) -> None:
        """By an operator too."""
        owner, account = world.person(1000)
        _, other = world.person()
        id_ = owner.post("/v1/transfers", transfer(account, other, 400, hold=True)).json()["id"]
        posted = world.bank.post(f"/v1/transfers/{id_}/post", {})
        assert (posted.status_code, posted.json()["posted_amount"]) == (200, 400)
        assert owner.balance(account) == (600, 0, 600)

    def test_a_voided_hold_gives_its_amount_back(self, world: World) -> None:
        """And cannot be posted any more."""
        owner, account = world.person(1000)
        _, other = world.person()
        held = owner.post("/v1/transfers", transfer(account, other, 400, hold=True)).json()
        path = f"/v1/transfers/{held['id']}"
        voided = owner.post(f"{path}/void", {}, idempotency_key="v")
        assert voided.json() == {**held, "status": "voided"}
        assert owner.post(f"{path}/void", {}, idempotency_key="v").headers["idempotency-replayed"] == "true"
        assert owner.get(path).json()["status"] == "voided"
        assert owner.balance(account) == (1000, 0, 1000)
        assert refused(owner.post(f"{path}/post"), 422, "not-held")["transfer_status"] == "voided"

    def test_an_expired_hold_is_told_as_such(self, world: World) -> None:
        """By the shard's clock; nobody has to ask for it."""
        owner, account = world.person(1000)
        _, other = world.person()
        held = owner.post("/v1/transfers", transfer(account, other, 400, hold=True, expires_in=1)).json()
        deadline = time.monotonic() + 20
        while owner.balance(account) != (1000, 0, 1000):
            assert time.monotonic() < deadline, "the hold does not expire"
            time.sleep(0.05)
        assert owner.get(f"/v1/transfers/{held['id']}").json()["status"] == "expired"
        for action in ("post", "void"):
            refused(owner.post(f"/v1/transfers/{held['id']}/{action}"), 422, "hold-expired")

    @pytest.mark.parametrize(
        "more", [{"expires_in": 5}, {"hold": False, "expires_in": 5}, {"hold": True, "expires_in": 0},
                 {"hold": True, "expires_in": -1}, {"hold": True, "expires_in": 10**12}, {"hold": "yes"}, {"hold": 1}]
    )  # fmt: skip
    def test_a_hold_that_cannot_be_read_is_malformed(self, world: World, more: dict[str, Any]) -> None:
        """400."""
        owner, account = world.person(1000)
        refused(owner.post("/v1/transfers", transfer(account, account, 1, **more)), 400, "malformed")

    def test_what_was_never_held_cannot_be_posted(self, world: World) -> None:
        """422 not-held; a stranger learns nothing; an unknown one is 404."""
        owner, account = world.person(1000)
        _, other = world.person()
        id_ = owner.post("/v1/transfers", transfer(account, other, 400)).json()["id"]
        assert refused(owner.post(f"/v1/transfers/{id_}/post"), 422, "not-held")["transfer_status"] == "settled"
        refused(world.caller().post(f"/v1/transfers/{id_}/void"), 403, "forbidden")
        for unknown in (new_id(account), f"{new_id()[:-3]}fff", "x", str(uuid.uuid4())):
            for action in ("post", "void"):
                refused(owner.post(f"/v1/transfers/{unknown}/{action}"), 404, "unknown-transfer")
            refused(owner.post(f"/v1/transfers/{unknown}/refunds", {"amount": 1}), 404, "unknown-transfer")
            refused(owner.get(f"/v1/transfers/{unknown}"), 404, "unknown-transfer")

    # -- refunds ------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("apart", [False, True])
    def test_refunds_stay_within_the_original(self, world: World, apart: bool) -> None:
        """By the payee's owner, in parts, replayed as first answered."""
        owner, account = world.person(1000)
        friend, other = world.person_elsewhere(account, apart=apart)
        id_ = owner.post("/v1/transfers", transfer(account, other, 300)).json()["id"]
        path = f"/v1/transfers/{id_}/refunds"
        refused(owner.post(path, {"amount": 1}), 403, "forbidden")
        refused(world.caller().post(path, {"amount": 1}), 403, "forbidden")
        body = {"amount": 200, "id": new_id(other), "description": "volta"}
        first = friend.post(path, body)
        assert first.status_code == 201, first.text
        made = first.json()
        assert (made["kind"], made["status"], made["refund_of"]) == ("refund", "settled", id_)
        assert (made["debit_account"], made["credit_account"]) == (other, account)
        again = friend.post(path, body)
        assert again.content == first.content
        assert again.headers["idempotency-replayed"] == "true"
        assert refused(friend.post(path, {"amount": 101}), 422, "exceeds-original")["left"] == 100
        last = world.bank.post(path, {"amount": 100})
        assert last.status_code == 201
        assert refused(friend.post(path, {"amount": 1}), 422, "exceeds-original")["left"] == 0
        known = owner.get(f"/v1/transfers/{id_}", razao_position=last.headers["razao-position"]).json()
        assert (known["status"], known["refunded_amount"]) == ("settled", 300)
        assert owner.get(f"/v1/transfers/{body['id']}").json() == made
        assert owner.balance(account)[0] == 1000

    def test_of_a_posted_hold_what_was_posted_can_be_refunded(self, world: World) -> None:
        """Not before, and no more."""
        owner, account = world.person(1000)
        friend, other = world.person()
        id_ = owner.post("/v1/transfers", transfer(account, other, 300, hold=True)).json()["id"]
        path = f"/v1/transfers/{id_}"
        assert (
            refused(friend.post(f"{path}/refunds", {"amount": 1}), 422, "not-refundable")["transfer_status"] == "held"
        )
        owner.post(f"{path}/post", {"amount": 100})
        assert refused(friend.post(f"{path}/refunds", {"amount": 101}), 422, "exceeds-original")["left"] == 100
        refund = friend.post(f"{path}/refunds", {"amount": 100})
        assert refund.status_code == 201
        assert owner.get(path, razao_position=refund.headers["razao-position"]).json()["refunded_amount"] == 100

    def test_deposits_and_refused_transfers_cannot_be_refunded(self, world: World) -> None:
        """422 not-refundable."""
        owner, account = world.person(100)
        friend, other = world.person()
        deposit = world.bank.post("/v1/deposits", {"account": account, "amount": 5}).json()["id"]
        refused(owner.post(f"/v1/transfers/{deposit}/refunds", {"amount": 5}), 422, "not-refundable")
        body = transfer(account, other, 1000, id=new_id(account))
        owner.post("/v1/transfers", body)
        answer = friend.post(f"/v1/transfers/{body['id']}/refunds", {"amount": 5})
        assert refused(answer, 422, "not-refundable")["transfer_status"] == "refused"

    # -- reading ------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("apart", [False, True])
    def test_the_payees_entries_do_not_tell_where_the_payer_is(self, world: World, apart: bool) -> None:
        """A transfer, a posted hold and a refund read the same, whichever shards the accounts lie on."""
        payer, account = world.person(1000)
        payee, other = world.person_elsewhere(account, apart=apart)
        paid = payer.post("/v1/transfers", transfer(account, other, 300)).json()
        held = payer.post("/v1/transfers", transfer(account, other, 200, hold=True)).json()
        assert payer.post(f"/v1/transfers/{held['id']}/post", {"amount": 150}).status_code == 200
        refund = payee.post(f"/v1/transfers/{paid['id']}/refunds", {"amount": 100})
        assert refund.status_code == 201, refund.text
        position = refund.headers["razao-position"]
        ours = payee.get(f"/v1/accounts/{other}/entries", razao_position=position).json()["items"]
        assert [(one["kind"], one["side"], one["amount"], one["transfer"]) for one in ours] == [
            ("refund", "debit", 100, refund.json()["id"]),
            ("post", "credit", 150, held["id"]),
            ("transfer", "credit", 300, paid["id"]),
        ]
        theirs = payer.get(f"/v1/accounts/{account}/entries", razao_position=position).json()["items"]
        assert [(one["kind"], one["side"], one["amount"]) for one in theirs] == [
            ("refund", "credit", 100),
            ("post", "debit", 150),
            ("transfer", "debit", 300),
            ("deposit", "credit", 1000),
        ]

    def test_entries_show_each_movement_with_its_balance(self, world: World) -> None:
        """Newest first, page by page, and up to one's own last write."""
        owner, account = world.person(1000)
        _, other = world.person_elsewhere(account, apart=True)
        last = None
        for amount in (10, 20, 30):
            last = owner.post("/v1/transfers", transfer(account, other, amount))
        assert last is not None
        position = last.headers["razao-position"]
        page = owner.get(f"/v1/accounts/{account}/entries?limit=3", razao_position=position).json()
        found = [(item["side"], item["kind"], item["amount"], item["balance"]) for item in page["items"]]
        assert found == [
            ("debit", "transfer", 30, 940), ("debit", "transfer", 20, 970), ("debit", "transfer", 10, 990),
        ]  # fmt: skip
        assert page["items"][0]["transfer"] == last.json()["id"]
        rest = owner.get(f"/v1/accounts/{account}/entries?limit=3&cursor={page['next_cursor']}").json()
        assert [(item["side"], item["kind"], item["balance"]) for item in rest["items"]] == [
            ("credit", "deposit", 1000)
        ]
        assert rest["next_cursor"] is None
        at = page["items"][1]["at"]
        between = owner.get(f"/v1/accounts/{account}/entries?from={at}&to={page['items'][0]['at']}").json()
        assert [item["amount"] for item in between["items"]] == [20]

    @pytest.mark.parametrize("limit", [1, 5, 25, 26, 100])
    def test_the_entries_of_a_batch_are_paged_without_losing_one(self, world: World, limit: int) -> None:
        """They share a record and, to the microsecond, often an instant. The last page names no next one."""
        owner, account = world.person(1000)
        payee, other = world.person_elsewhere(account, apart=True)
        rows = [transfer(account, other, amount) for amount in range(1, 26)]
        position = owner.post("/v1/transfers/batch", {"transfers": rows}).headers["razao-position"]
        for caller, mine, expected in (
            (owner, account, [*range(25, 0, -1), 1000]),
            (payee, other, [*range(25, 0, -1)]),
        ):
            found: list[int] = []
            pages, cursor = 0, ""
            while True:
                path = f"/v1/accounts/{mine}/entries?limit={limit}{cursor}"
                page = caller.get(path, razao_position=position).json()
                found += [item["amount"] for item in page["items"]]
                pages += 1
                if page["next_cursor"] is None:
                    break
                cursor = f"&cursor={page['next_cursor']}"
            assert found == expected
            assert pages == -(-len(expected) // limit)

    def test_a_balance_at_a_past_instant_is_what_it_was(self, world: World) -> None:
        """Up to the end of that microsecond."""
        owner, account = world.person(1000)
        _, other = world.person()
        first = owner.post("/v1/transfers", transfer(account, other, 10)).json()["created_at"]
        second = owner.post("/v1/transfers", transfer(account, other, 20)).json()["created_at"]
        owner.post("/v1/transfers", transfer(account, other, 30, hold=True))
        now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        for at, posted, pending in ((first, 990, 0), (second, 970, 0), (now, 970, 30)):
            found = owner.get(f"/v1/accounts/{account}/balance?at={at}").json()
            assert (found["posted"], found["pending"], found["available"]) == (posted, pending, posted - pending), at
        refused(owner.get(f"/v1/accounts/{account}/balance?at=2020-01-01T00:00:00Z"), 404, "unknown-account")

    def test_an_account_has_a_balance_from_its_created_at_on(self, world: World) -> None:
        """It is the ledger's own instant, the same in every answer; a microsecond before there was no account."""
        for tax_id in TAX_IDS[:3]:
            caller = world.caller(tax_id=tax_id)
            body = {"owner": {"tax_id": tax_id, "name": "Maria"}, "id": new_id()}
            opened = caller.post("/v1/accounts", body).json()
            path, at = f"/v1/accounts/{opened['id']}", opened["created_at"]
            assert caller.get(path).json()["created_at"] == at
            assert caller.post("/v1/accounts", body).json() == opened
            assert caller.get(f"{path}/balance?at={at}").json()["posted"] == 0
            before = (datetime.fromisoformat(at) - timedelta(microseconds=1)).isoformat().replace("+00:00", "Z")
            refused(caller.get(f"{path}/balance?at={before}"), 404, "unknown-account")

    @pytest.mark.parametrize("ahead_s", [5, 250])
    def test_there_is_no_balance_of_an_instant_to_come(self, world: World, ahead_s: int) -> None:
        """400: whoever was told one would find another."""
        owner, account = world.person(1)
        at = (datetime.now(UTC) + timedelta(seconds=ahead_s)).isoformat().replace("+00:00", "Z")
        assert refused(owner.get(f"/v1/accounts/{account}/balance?at={at}"), 400, "malformed")["field"] == "at"

    @pytest.mark.parametrize(
        "query",
        [
            "balance?at=", "balance?at=now", "balance?at=2026-13-01T00:00:00Z", "balance?at=2026-01-01", "balance?x",
            "balance?at=9999-12-31T23:59:59Z", "balance?at=2199-12-31T23:59:59Z", "balance?at=0001-01-01T00:00:00Z",
            "balance?at=2026-01-01T00:00:00Z&at=2026-01-01T00:00:00Z", "balance?at=%00", "balance?at=%ff",
            "entries?limit=0", "entries?limit=-1", "entries?limit=1001", "entries?limit=1e2", "entries?limit=%D9%A1",
            "entries?cursor=", "entries?cursor=AAAA", "entries?cursor=" + "A" * 5000, "entries?cursor=%00", "entries?a",
            "entries?from=x", "entries?to=x",
            "entries?from=2026-01-02T00:00:00Z&to=2026-01-01T00:00:00Z", "entries?limit",
            "entries?cursor=AXwAAAAAAAAAAAAAAAAAAAA",
        ],
    )  # fmt: skip
    def test_absurd_queries_are_malformed(self, world: World, query: str) -> None:
        """400, never a 5xx."""
        owner, account = world.person()
        refused(owner.get(f"/v1/accounts/{account}/{query}"), 400, "malformed")

    @pytest.mark.parametrize("query", ["dry_run=true", "id=1", "x", "Idempotency-Key=1"])
    def test_a_parameter_that_a_call_does_not_have_moves_no_money(self, world: World, query: str) -> None:
        """400: whoever means something by it must not find that something else was done."""
        owner, account = world.person(100)
        _, other = world.person()
        refused(owner.post(f"/v1/transfers?{query}", transfer(account, other, 10)), 400, "malformed")
        hold = owner.post("/v1/transfers", transfer(account, other, 10, hold=True)).json()["id"]
        refused(owner.post(f"/v1/transfers/{hold}/post?{query}"), 400, "malformed")
        refused(world.bank.post(f"/v1/deposits?{query}", {"account": account, "amount": 10}), 400, "malformed")
        batch = {"transfers": [transfer(account, other, 10)]}
        refused(owner.post(f"/v1/transfers/batch?{query}", batch), 400, "malformed")
        assert owner.balance(account) == (100, 10, 90)

    @pytest.mark.parametrize(
        "position",
        ["", "x", "0", "0:", ":1", "0:-1", "0:1;1:2", "0:1,", "0:99999999999999999999", "1024:1", "0:1 0:1"],
    )
    def test_absurd_positions_are_malformed(self, world: World, position: str) -> None:
        """On every read."""
        owner, account = world.person()
        for path in (f"accounts/{account}", f"accounts/{account}/balance", f"accounts/{account}/entries", "accounts"):
            refused(owner.get(f"/v1/{path}", razao_position=position), 400, "malformed")

    def test_a_position_beyond_the_journals_end_is_refused_at_once(self, world: World) -> None:
        """400: no write has answered it, so waiting for it would be in vain. The end itself is beyond."""
        owner, account = world.person(1000)
        written = owner.call("PATCH", f"/v1/accounts/{account}", {"limits": {"daily": 10}}).headers["razao-position"]
        partition = int(account) % 2
        assert written.split(":")[0] == str(partition)
        assert owner.get(f"/v1/accounts/{account}/entries", razao_position=written).status_code == 200
        began = time.monotonic()
        for path in (f"accounts/{account}", f"accounts/{account}/entries", "accounts", f"transfers/{new_id(account)}"):
            for position in (f"{partition}:{10**17}", f"0:0,1:{10**17}"):
                problem = refused(owner.get(f"/v1/{path}", razao_position=position), 400, "malformed")
                assert problem["field"] == "Razao-Position"
        assert time.monotonic() - began < 5

    # -- batches ------------------------------------------------------------------------------------------------------

    def test_a_batch_is_answered_in_its_order(self, world: World) -> None:
        """Settled, held and refused ones side by side."""
        owner, account = world.person(1000)
        friend, other = world.person_elsewhere(account, apart=True)
        rows = [
            transfer(account, other, 100, id=new_id(account), description="a: b", metadata={"x": "y:z"}),
            transfer(account, other, 5000, id=new_id(account)),
            transfer(account, other, 50, id=new_id(account), hold=True, expires_in=60),
            transfer(other, account, 1, id=new_id(other)),
            transfer(account, "abc", 1, id=new_id(account)),
            transfer(account, other, 0, id=new_id(account)),
            transfer(account, other, 2**63, id=new_id(account)),
            transfer(account, account, 1, id=new_id(account)),
        ]
        answer = owner.post("/v1/transfers/batch", {"transfers": rows})
        assert answer.status_code == 200, answer.text
        expected: list[tuple[str, str | None]] = [
            ("settled", None), ("refused", "insufficient-funds"), ("held", None), ("refused", "forbidden"),
            ("refused", "unknown-account"), ("refused", "invalid-amount"), ("refused", "invalid-amount"),
            ("refused", "same-account"),
        ]  # fmt: skip
        found = answer.json()["results"]
        assert [one["id"] for one in found] == [row["id"] for row in rows]
        assert [(one["status"], one.get("type")) for one in found] == [
            (status, name and f"/problems/{name}") for status, name in expected
        ]
        assert owner.balance(account) == (900, 50, 850)
        assert friend.balance(other) == (100, 0, 100)
        assert owner.get(f"/v1/transfers/{rows[0]['id']}").json()["metadata"] == {"x": "y:z"}
        again = owner.post("/v1/transfers/batch", {"transfers": rows})
        assert again.json() == answer.json()
        assert owner.balance(account) == (900, 50, 850)
        single = owner.post("/v1/transfers", rows[0])
        assert (single.status_code, single.headers["idempotency-replayed"]) == (201, "true")

    def test_a_batch_under_one_key_happens_once(self, world: World) -> None:
        """Rows without ids get ids that follow from the key."""
        owner, account = world.person(1000)
        _, other = world.person()
        body = {"transfers": [transfer(account, other, amount) for amount in (1, 2, 3)]}
        first = owner.post("/v1/transfers/batch", body, idempotency_key="b1")
        again = owner.post("/v1/transfers/batch", body, idempotency_key="b1")
        assert first.json() == again.json()
        assert len({one["id"] for one in first.json()["results"]}) == 3
        assert again.headers["idempotency-replayed"] == "true"
        assert owner.balance(account)[0] == 994

    def test_a_batchs_key_binds_the_whole_batch(self, world: World) -> None:
        """Other numbers, another order, other content or links: 409, and nothing of it is done."""
        owner, account = world.person(10_000)
        _, other = world.person_elsewhere(account, apart=True)
        own = new_id(account)
        rows = [transfer(account, other, 10, id=own), transfer(account, other, 20, description="a")]
        first = owner.post("/v1/transfers/batch", {"transfers": rows}, idempotency_key="b")
        assert [one["status"] for one in first.json()["results"]] == ["settled"] * 2
        for changed in (
            [*rows, transfer(account, other, 4000)],
            rows[:1],
            [rows[1], rows[0]],
            [rows[0], {**rows[1], "amount": 21}],
            [rows[0], {**rows[1], "description": "b"}],
            [{**rows[0], "linked": True}, rows[1]],
            [{**rows[0], "id": new_id(account)}, rows[1]],
            [transfer(account, other, 10), rows[1]],
            [rows[0], transfer(account, "abc", 20)],
            [transfer(account, other, 0)],
        ):
            answer = owner.post("/v1/transfers/batch", {"transfers": changed}, idempotency_key="b")
            refused(answer, 409, "id-conflict")
        again = owner.post("/v1/transfers/batch", {"transfers": rows}, idempotency_key="b")
        assert again.json() == first.json()
        assert again.headers["idempotency-replayed"] == "true"
        spelled = [rows[0], {**rows[1], "id": first.json()["results"][1]["id"]}]
        assert owner.post("/v1/transfers/batch", {"transfers": spelled}, idempotency_key="b").json() == first.json()
        assert owner.balance(account)[0] == 9970
        columns = {"debit_account": [account], "credit_account": [other], "amount": [10]}
        for table, status in ((pa.table(columns), 200), (pa.table({**columns, "amount": [11]}), 409)):
            headers = {**owner.headers, "content-type": ARROW, "idempotency-key": "arrow"}
            answer = world.http.post("/v1/transfers/batch", content=arrow(table), headers=headers)
            assert answer.status_code == status, answer.text
        assert owner.balance(account)[0] == 9960

    def test_one_id_twice_in_a_batch_happens_once(self, world: World) -> None:
        """The second is the first again; with other content it is a conflict."""
        owner, account = world.person(1000)
        _, other = world.person()
        row = transfer(account, other, 10, id=new_id(account))
        rows = [row, row, {**row, "amount": 11}]
        found = owner.post("/v1/transfers/batch", {"transfers": rows}).json()["results"]
        assert [one.get("type", one["status"]) for one in found] == ["settled", "settled", "/problems/id-conflict"]
        assert owner.balance(account)[0] == 990

    @pytest.mark.parametrize("last", [100, 10_000, 0])
    def test_linked_transfers_happen_all_or_not_at_all(self, world: World, last: int) -> None:
        """The failing one says why, also when it is the last, or not even sent."""
        owner, account = world.person(1000)
        _, other = world.person_elsewhere(account, apart=False)
        rows = [transfer(account, other, 10, linked=True), transfer(account, other, 20, linked=True)]
        rows += [transfer(account, other, last), transfer(account, other, 1)]
        found = owner.post("/v1/transfers/batch", {"transfers": rows}).json()["results"]
        statuses = [one.get("type", one["status"]).removeprefix("/problems/") for one in found]
        if last == 100:
            assert statuses == ["settled"] * 4
            assert owner.balance(account)[0] == 869
        else:
            reason = "insufficient-funds" if last else "invalid-amount"
            assert statuses == ["linked-failed", "linked-failed", reason, "settled"]
            assert owner.balance(account)[0] == 999

    def test_a_chain_across_shards_or_left_open_is_not_linkable(self, world: World) -> None:
        """Nothing of it happens."""
        owner, account = world.person(1000)
        _, far = world.person_elsewhere(account, apart=True)
        _, near = world.person_elsewhere(account, apart=False)
        for rows in (
            [transfer(account, far, 10, linked=True), transfer(account, near, 20)],
            [transfer(account, near, 10), transfer(account, near, 20, linked=True)],
        ):
            found = owner.post("/v1/transfers/batch", {"transfers": rows}).json()["results"]
            assert "/problems/not-linkable" in {one.get("type") for one in found}
        assert owner.balance(account)[0] == 990

    def test_a_whole_batch_of_ten_thousand_is_carried_out(self, world: World) -> None:
        """One more is too large."""
        owner, account = world.person(100_000)
        _, other = world.person_elsewhere(account, apart=True)
        rows = [transfer(account, other, 1) for _ in range(10_000)]
        found = owner.post("/v1/transfers/batch", {"transfers": rows}).json()["results"]
        assert {one["status"] for one in found} == {"settled"}
        assert owner.balance(account)[0] == 90_000
        refused(owner.post("/v1/transfers/batch", {"transfers": [*rows, rows[0]]}), 413, "too-large")

    @pytest.mark.parametrize(
        "change",
        [
            {"amount": "1"}, {"amount": 1.5}, {"id": "x"}, {"debit_account": 5}, {"linked": "yes"}, {"more": 1},
            {"description": "a\x00"}, {"description": ""}, {"metadata": []}, {"metadata": {"a": "\x00"}},
            {"expires_in": 5}, {"hold": None},
        ],
    )  # fmt: skip
    def test_a_row_that_cannot_be_read_spoils_the_batch(self, world: World, change: dict[str, Any]) -> None:
        """400 (or invalid-id), the answer names the row, and nothing happens."""
        owner, account = world.person(1000)
        _, other = world.person()
        good = transfer(account, other, 1)
        answer = owner.post("/v1/transfers/batch", {"transfers": [good, {**good, **change}]})
        assert answer.status_code == 400
        assert "transfers[1]" in answer.json()["field"] or "more" in answer.json()["field"]
        assert owner.balance(account)[0] == 1000

    @pytest.mark.parametrize(
        "body", [{}, {"transfers": []}, {"transfers": {}}, [], {"transfers": [1]}, {"transfers": None}]
    )
    def test_a_batch_without_transfers_is_malformed(self, world: World, body: Any) -> None:
        """400."""
        refused(world.caller().post("/v1/transfers/batch", body), 400, "malformed")

    def test_arrow_in_gets_arrow_out(self, world: World) -> None:
        """With ids as bytes, accounts as numbers, and every optional column."""
        owner, account = world.person(1000)
        _, other = world.person_elsewhere(account, apart=True)
        made = [ids.parse(new_id(account)) for _ in range(4)]
        table = pa.table(
            {
                "id": pa.array([hi.to_bytes(8, "big") + lo.to_bytes(8, "big") for hi, lo in made], pa.binary(16)),
                "debit_account": np.full(4, int(account), np.uint64),
                "credit_account": np.array([int(other), int(other), 7, int(other)], np.uint64),
                "amount": np.array([10, 20, 30, 5000], np.int64),
                "hold": pa.array([None, True, False, None]),
                "expires_in": pa.array([None, 60, None, None], pa.int32()),
                "linked": pa.array([False] * 4),
                "description": ["a", None, None, None],
                "metadata": ['{"k":1}', None, None, None],
            }
        )
        for _ in range(2):
            answer = owner.send_raw("/v1/transfers/batch", arrow(table), ARROW)
            assert answer.status_code == 200, answer.text
            assert answer.headers["content-type"] == ARROW
            found = pa.ipc.open_stream(answer.content).read_all()
            assert found.column("id") == table.column("id")
            assert found.column("status").to_pylist() == ["settled", "held", "refused", "refused"]
            assert found.column("type").to_pylist() == [
                None, None, "/problems/unknown-account", "/problems/insufficient-funds",
            ]  # fmt: skip
            assert owner.balance(account) == (990, 20, 970)
        single = transfer(account, other, 10, id=ids.text(made[0]), description="a", metadata={"k": 1})
        assert owner.post("/v1/transfers", single).headers["idempotency-replayed"] == "true"

    def test_an_arrow_batch_may_spell_ids_and_accounts_as_text(self, world: World) -> None:
        """Or leave the ids out."""
        owner, account = world.person(1000)
        _, other = world.person()
        columns = {"debit_account": [account] * 2, "credit_account": [other] * 2, "amount": [1, 2]}
        with_ids = pa.table({"id": [new_id(account), new_id(account)], **columns})
        answer = pa.ipc.open_stream(owner.send_raw("/v1/transfers/batch", arrow(with_ids), ARROW).content).read_all()
        assert answer.column("id").to_pylist() == with_ids.column("id").to_pylist()
        answer = pa.ipc.open_stream(owner.send_raw("/v1/transfers/batch", arrow(pa.table(columns)), ARROW).content)
        assert answer.read_all().column("status").to_pylist() == ["settled"] * 2
        assert owner.balance(account)[0] == 994

    @pytest.mark.parametrize(
        "spoil",
        [
            "empty",
            "cut",
            "flipped",
            "compressed",
            "dictionary",
            "unknown",
            "missing",
            "nulls",
            "type",
            "id",
            "file",
            "two",
        ],
    )
    def test_an_arrow_stream_that_is_not_as_documented_is_malformed(self, world: World, spoil: str) -> None:
        """400, and nothing happens."""
        owner, account = world.person(1000)
        _, other = world.person()
        columns: dict[str, Any] = {
            "debit_account": pa.array([int(account)] * 2, pa.uint64()),
            "credit_account": pa.array([int(other)] * 2, pa.uint64()),
            "amount": pa.array([1, 2], pa.int64()),
        }
        changes: dict[str, dict[str, Any]] = {
            "dictionary": {"description": pa.array(["a", "b"]).dictionary_encode()},
            "unknown": {"colour": pa.array([1, 2])},
            "nulls": {"amount": pa.array([1, None], pa.int64())},
            "type": {"amount": pa.array([1.0, 2.0])},
            "id": {"id": pa.array([b"0" * 16] * 2, pa.binary(16))},
        }
        columns.update(changes.get(spoil, {}))
        if spoil == "missing":
            del columns["amount"]
        table = pa.table(columns)
        if spoil == "two":
            table = pa.table([*table.columns, table.columns[0]], names=[*table.column_names, "amount"])
        data = arrow(table, compression="zstd" if spoil == "compressed" else None)
        if spoil == "cut":
            data = data[: len(data) // 2]
        elif spoil == "flipped":
            data = data[:60] + bytes(byte ^ 0x5A for byte in data[60:90]) + data[90:]
        elif spoil == "file":
            data = b"ARROW1\0\0" + data
        elif spoil == "empty":
            data = b""
        answer = owner.send_raw("/v1/transfers/batch", data, ARROW)
        refused(answer, 400, "invalid-id" if spoil == "id" else "malformed")
        assert owner.balance(account)[0] == 1000

    # -- bodies -------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize(
        "body",
        [
            b"", b"x", b"{", b"[]", b"null", b"1", b'"x"', b"{}{}", b'{"amount":NaN}', b"\xff", b"\xef\xbb\xbf{}",
            b'{"amount":Infinity}', b'{"amount":01}', b'{"amount":1,}', b"{'amount':1}", b"\x00", b"[" * 60_000,
            b'{"metadata":' + b'{"a":' * 10_000 + b"1" + b"}" * 10_001, b'{"amount":1e400}',
            b'{"debit_account":"5000","credit_account":"5001","amount":1,"amount":2}',
            b'{"debit_account":"5000","credit_account":"5001","amount":1,"am\\u006funt":2}',
            b'{"debit_account":"5000","credit_account":"5001","amount":1,"amount":1,"description":"a:b"}',
            b'{"debit_account":"5000","credit_account":"5001","amount":1,"metadata":{"a":1,"a":2}}',
            b'{"debit_account":"5000","credit_account":"5001","amount":1,"metadata":{"a":{"b":1,"b":1}}}',
            b'{"debit_account":"5000","credit_account":"5001","amount":1,"metadata":{"a":"\\u0000"}}',
            b'{"debit_account":"5000","credit_account":"5001","amount":1,"metadata":{"a":"\\ud800"}}',
            b'{"debit_account":"5000","credit_account":"5001","amount":1,"metadata":{"a":1e999}}',
            b'{"debit_account":"5000","credit_account":"5001","amount":1,"metadata":[]}',
            b'{"debit_account":"5000","credit_account":"5001","amount":1,"metadata":null}',
            b'{"debit_account":"5000","credit_account":"5001","amount":1,"metadata":{"a":"' + b"x" * 5000 + b'"}}',
            b'{"debit_account":"5000","credit_account":"5001","amount":1,"metadata":' + b'{"a":' * 9 + b"1" + b"}" * 10,
            b'{"debit_account":"5000","credit_account":"5001","amount":1,"description":"\\u0000"}',
            b'{"debit_account":"5000","credit_account":"5001","amount":1,"description":"\\udc00"}',
            b'{"debit_account":"5000","credit_account":"5001","amount":1,"description":"\xc3\x28"}',
            b'{"debit_account":"5000","credit_account":"5001","amount":1,"description":"\xed\xa0\x80"}',
            b'{"debit_account":"5000","credit_account":"5001","amount":1,"description":"\\ud800"}',
            b'{"debit_account":"5000","credit_account":"5001","amount":1,"unknown":1}',
            b'{"debit_account":"50\\u000000","credit_account":"5001","amount":1}',
            b'{"debit_account":"","credit_account":"5001","amount":1}',
            b'{"debit_account":5000,"credit_account":"5001","amount":1}',
        ],
    )  # fmt: skip
    def test_bodies_that_cannot_be_read_are_malformed(self, world: World, body: bytes) -> None:
        """400, never a 5xx."""
        refused(world.caller().send_raw("/v1/transfers", body), 400, "malformed")

    @pytest.mark.parametrize("path", ["transfers", "deposits", "withdrawals", "accounts", "transfers/batch"])
    def test_bodies_too_large_are_refused(self, world: World, path: str) -> None:
        """10 MB everywhere; more than 64 KiB but for batches."""
        caller = world.caller(EVERYTHING)
        for size in (10_000_000, 70_000):
            if path == "transfers/batch" and size < 8 << 20:
                continue
            body = b'{"description":"' + b"x" * size + b'"}'
            refused(caller.send_raw(f"/v1/{path}", body), 413, "too-large")

    @pytest.mark.parametrize(
        "content_type",
        [
            "text/plain",
            "",
            "application/xml",
            "application/json; charset=latin-1",
            "application/jsonp",
            "x" * 500,
            "application/vnd.apache.arrow.stream",
        ],
    )
    def test_other_content_types_are_refused(self, world: World, content_type: str) -> None:
        """415."""
        answer = world.caller().send_raw("/v1/transfers", b"{}", content_type)
        refused(answer, 415, "unsupported-media-type")

    def test_compressed_bodies_are_refused(self, world: World) -> None:
        """415."""
        caller = world.caller()
        headers = {**caller.headers, "content-type": "application/json", "content-encoding": "gzip"}
        refused(world.http.post("/v1/transfers", content=b"{}", headers=headers), 415, "unsupported-media-type")

    def test_a_chunked_body_is_read(self, world: World) -> None:
        """Without a Content-Length."""
        owner, account = world.person(1000)
        _, other = world.person()
        body = json.dumps(transfer(account, other, 1)).encode()
        headers = {**owner.headers, "content-type": "application/json; charset=utf-8"}
        answer = world.http.post("/v1/transfers", content=iter([body[:10], body[10:]]), headers=headers)
        assert answer.status_code == 201, answer.text

    # -- callers ------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize(
        "value",
        [None, "", "Bearer", "Bearer x", "Basic dTpw", "Bearer a.b.c", "Bearer " + "x" * 9000, "bearer"],
    )
    def test_without_a_token_nothing_goes(self, world: World, value: str | None) -> None:
        """401 with a challenge."""
        headers = {} if value is None else {"authorization": value}
        for method, path in (("GET", "/v1/accounts"), ("POST", "/v1/transfers"), ("GET", "/v1/transfers/x")):
            answer = world.http.request(method, path, headers=headers)
            if answer.status_code in {400, 431}:  # a gateway may bound headers first
                continue
            refused(answer, 401, "unauthenticated")
            assert answer.headers["www-authenticate"].startswith('Bearer realm="payments"')

    def test_each_call_needs_its_scope(self, world: World) -> None:
        """403 without it, and the answer names it."""
        owner, account = world.person(1000)
        _, other = world.person()
        reader, writer, funder, nobody = (
            Caller(world.http, world.engine.make_token(owner.sub, scope), owner.sub)
            for scope in ("ledger:read", "ledger:write", "ledger:fund", "ledger:readwrite profile")
        )
        send = transfer(account, other, 1)
        for caller in (reader, funder, nobody):
            problem = refused(caller.post("/v1/transfers", send), 403, "forbidden")
            assert problem["scope"] == "ledger:write"
            refused(caller.post("/v1/transfers/batch", {"transfers": [send]}), 403, "forbidden")
        for caller in (writer, funder, nobody):
            for path in (f"accounts/{account}", f"accounts/{account}/balance", f"transfers/{new_id()}", "accounts"):
                assert refused(caller.get(f"/v1/{path}"), 403, "forbidden")["scope"] == "ledger:read"
        for caller in (reader, writer, nobody):
            refused(caller.post("/v1/deposits", {"account": account, "amount": 1}), 403, "forbidden")
        assert funder.post("/v1/deposits", {"account": account, "amount": 1}).status_code == 201
        assert reader.balance(account)[0] == 1001
        assert writer.post("/v1/transfers", send).status_code == 201
        operator = world.caller("ledger:operate", "operator")
        assert operator.post("/v1/transfers", send).status_code == 201
        assert operator.balance(account)[0] == 999
        refused(operator.post("/v1/deposits", {"account": account, "amount": 1}), 403, "forbidden")

    # -- around it ----------------------------------------------------------------------------------------------------

    def test_health_is_public_and_names_every_shard(self, world: World) -> None:
        """200 when all of them serve."""
        answer = world.http.get("/healthz")
        assert answer.status_code == 200, answer.text
        assert answer.json()["status"] == "ok"
        assert [shard["name"] for shard in answer.json()["shards"]] == ["shard-000", "shard-001"]

    def test_every_problem_has_its_page(self, world: World) -> None:
        """As the catalogue's list links them; nothing from elsewhere is needed to show them."""
        page = world.http.get("/problems")
        assert page.status_code == 200
        names = {part.split("'")[0] for part in page.text.split("href='/problems/")[1:]}
        assert {"insufficient-funds", "unsure", "overloaded", "not-linkable", "id-conflict"} <= names
        for name in names:
            one = world.http.get(f"/problems/{name}")
            assert one.status_code == 200
            assert one.headers["content-type"].startswith("text/html")
            assert "http://" not in one.text
            assert "https://" not in one.text
        refused(world.http.get("/problems/none"), 404, "not-found")

    def test_the_contract_is_served_for_programs_and_for_people(self, world: World) -> None:
        """OpenAPI 3.1 and a page, with the same calls."""
        described = world.http.get("/openapi.json").json()
        assert described["openapi"].startswith("3.1")
        page = world.http.get("/docs")
        assert page.headers["content-type"].startswith("text/html")
        for path in described["paths"]:
            assert path in page.text
        assert world.http.get("/").status_code == 200

    @pytest.mark.parametrize("path", ["/nothing", "/v2/transfers", "/favicon.ico", "/problems/x/y"])
    def test_unknown_paths_are_problems(self, world: World, path: str) -> None:
        """404 not-found."""
        refused(world.http.get(path), 404, "not-found")

    def test_unknown_paths_under_v1_are_problems(self, world: World) -> None:
        """Only for those who may ask."""
        for path in ("/v1/nothing", "/v1/accounts/1/2/3", "/v1/transfers/", "/v1/accounts//balance"):
            refused(world.http.get(path), 401, "unauthenticated")
            refused(world.bank.get(path), 404, "not-found")

    @pytest.mark.parametrize(
        ("method", "path", "allow"),
        [("DELETE", "/v1/transfers", "POST"), ("GET", "/v1/transfers/batch", "POST"),
         ("PUT", "/v1/accounts/5000", "GET, HEAD, PATCH"), ("POST", "/v1/accounts/5000/balance", "GET, HEAD"),
         ("POST", "/healthz", "GET, HEAD")],
    )  # fmt: skip
    def test_other_methods_are_problems(self, world: World, method: str, path: str, allow: str) -> None:
        """405 with Allow; `batch` is no transfer's id."""
        answer = world.bank.call(method, path)
        refused(answer, 405, "method-not-allowed")
        assert answer.headers["allow"] == allow

    def test_head_answers_like_get_without_a_body(self, world: World) -> None:
        """With the same length."""
        whole, head = world.http.get("/openapi.json"), world.http.head("/openapi.json")
        assert head.status_code == 200
        assert head.content == b""
        assert head.headers["content-length"] == whole.headers["content-length"]

    def test_a_client_that_goes_away_harms_nobody(self, world: World) -> None:
        """In the middle of a body."""
        owner, account = world.person(1000)
        address = urlsplit(world.engine.base_url)
        assert address.hostname is not None
        with socket.create_connection((address.hostname, address.port or 80), timeout=10) as client:
            client.sendall(
                b"POST /v1/transfers HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 500\r\n"
                b"authorization: " + owner.headers["authorization"].encode() + b'\r\n\r\n{"amount":'
            )
        assert owner.balance(account)[0] == 1000


ARROW: Final = "application/vnd.apache.arrow.stream"


def arrow(table: pa.Table, compression: str | None = None) -> bytes:
    """A table as an Arrow stream."""
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table)
    return sink.getvalue()
