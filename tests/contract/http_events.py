"""The events of payments as tests against a running engine, however it runs; used like `HttpSuite`, beside it."""

from __future__ import annotations

import itertools
import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import httpx
import pytest
from jsonschema import Draft202012Validator, FormatChecker  # type: ignore[import-untyped]

from tests.contract.documents import references
from tests.contract.http_suite import TAX_IDS, Caller, World, refused, transfer

PREFIX: Final = "br.razao."


@dataclass(frozen=True)
class Sent:
    """One server-sent event."""

    id: str
    event: str
    data: dict[str, Any]


class Stream:
    """An open stream. That an account was opened may be told now or have been told before: it is passed over.

    `problem`: what the stream ended with.
    """

    def __init__(self, answer: httpx.Response, *, opened: bool) -> None:
        self._lines = answer.iter_lines()
        self._opened = opened
        self.problem: dict[str, Any] | None = None
        self.start = next(self._blocks())["id"]

    def take(self, count: int) -> list[Sent]:
        """The next events."""
        return list(itertools.islice(self._events(), count))

    def rest(self) -> list[Sent]:
        """All that comes until the server ends the stream."""
        return list(self._events())

    def comment(self) -> str:
        """The next comment."""
        return next(line for line in self._lines if line.startswith(":"))

    def before_comment(self) -> list[str]:
        """The types of the events that come before the next comment."""
        lines = itertools.takewhile(lambda line: not line.startswith(":"), self._lines)
        return [line.removeprefix(f"event: {PREFIX}") for line in lines if line.startswith("event: ")]

    def _events(self) -> Iterator[Sent]:
        for block in self._blocks():
            if block["event"] == "problem":
                assert "id" not in block
                self.problem = json.loads(block["data"])
            elif self._opened or block["event"] != f"{PREFIX}account.opened":
                yield Sent(block["id"], block["event"], json.loads(block["data"]))

    def _blocks(self) -> Iterator[dict[str, str]]:
        """The fields of each block; comments are passed over."""
        fields: dict[str, str] = {}
        for line in self._lines:
            if not line and fields:
                yield fields
                fields = {}
            elif line and not line.startswith(":"):
                name, _, value = line.partition(": ")
                fields[name] = value


@contextmanager
def stream(caller: Caller, query: str = "", last: str | None = None, *, opened: bool = False) -> Iterator[Stream]:
    """GET /v1/events, begun."""
    headers = caller.headers | ({} if last is None else {"last-event-id": last})
    with caller.http.stream("GET", f"/v1/events{query}", headers=headers) as answer:
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"] == "text/event-stream"
        assert answer.headers["cache-control"] == "no-store"
        begun = Stream(answer, opened=opened)  # kept here: with its reader gone, the answer would be closed
        yield begun


def validators(world: World) -> dict[str, Draft202012Validator]:
    """A validator for each type of event, from the served document alone."""
    document = world.http.get("/asyncapi.json").json()
    schemas = document["components"]["schemas"]
    found = {}
    for message in document["components"]["messages"].values():
        named = message["payload"]["$ref"].rsplit("/", 1)[1]
        schema = {**schemas[named], "components": {"schemas": schemas}}
        found[message["name"]] = Draft202012Validator(schema, format_checker=FormatChecker())
    return found


def told(events: list[Sent]) -> list[tuple[str, str, int]]:
    """(type, side, amount)."""
    return [
        (one.event.removeprefix(PREFIX), one.data["data"].get("side", ""), one.data["data"].get("amount", 0))
        for one in events
    ]


class EventsSuite:
    """GET /v1/events."""

    @pytest.mark.parametrize("apart", [False, True])
    def test_both_sides_are_told_what_happens_as_it_happens_wherever_they_live(self, world: World, apart: bool) -> None:
        """The same to each, on one shard and on two; every event is as the served document says."""
        payer, account = world.person()
        payee, other = world.person_elsewhere(account, apart=apart)
        with stream(payer) as mine, stream(payee) as theirs:
            world.fund(account, 1000)
            assert payer.post("/v1/transfers", transfer(account, other, 100)).status_code == 201
            for end in ("post", "void"):
                held = payer.post("/v1/transfers", transfer(account, other, 50, hold=True)).json()
                assert payer.post(f"/v1/transfers/{held['id']}/{end}", {}).status_code == 200
            paid = payer.post("/v1/transfers", transfer(account, other, 30)).json()
            back = payee.post(f"/v1/transfers/{paid['id']}/refunds", {"amount": 10})
            assert back.status_code == 201
            refused(payer.post("/v1/transfers", transfer(account, other, 10**6)), 422, "insufficient-funds")
            seen, others = mine.take(9), theirs.take(4)
        assert told(seen) == [
            ("transfer.settled", "credit", 1000), ("transfer.settled", "debit", 100), ("transfer.held", "debit", 50),
            ("transfer.posted", "debit", 50), ("transfer.held", "debit", 50), ("transfer.voided", "debit", 50),
            ("transfer.settled", "debit", 30), ("transfer.refunded", "credit", 10),
            ("transfer.refused", "debit", 10**6),
        ]  # fmt: skip
        assert told(others) == [
            ("transfer.settled", "credit", 100), ("transfer.posted", "credit", 50), ("transfer.settled", "credit", 30),
            ("transfer.refunded", "debit", 10),
        ]  # fmt: skip
        known = validators(world)
        for one, owned, foreign in [*((e, account, other) for e in seen[1:]), *((e, other, account) for e in others)]:
            known[one.event].validate(one.data)
            assert one.event == one.data["type"]
            assert one.data["subject"] == one.data["data"]["account"] == owned
            assert one.data["data"]["other_account"] == foreign
        assert seen[-1].data["data"]["refusal"] == "insufficient-funds"
        assert seen[-3].data["data"]["transfer"] == paid["id"]
        assert others[-1].data["data"]["refund_of"] == paid["id"]
        assert seen[-2].data["data"]["balance"] == {"posted": 830, "pending": 0, "available": 830}
        assert len({one.data["id"] for one in [*seen, *others]}) == 13
        sees = payer.get(f"/v1/transfers/{paid['id']}", razao_position=seen[-3].data["data"]["position"]).json()
        assert sees["status"] == "settled"

    def test_accounts_that_are_opened_later_are_told_too(self, world: World) -> None:
        """From their opening on, whatever becomes of them."""
        caller = world.caller()
        with stream(caller, opened=True) as mine:
            accounts = [world.open_for(caller, tax_id) for tax_id in TAX_IDS[:2]]
            account = accounts[0]
            for status in ("frozen", "open", "closed"):
                assert world.bank.call("PATCH", f"/v1/accounts/{account}", {"status": status}).status_code == 200
            events = mine.take(5)
        known = validators(world)
        for one in events:
            known[one.event].validate(one.data)
        of_one = [one for one in events if one.data["subject"] == account]
        assert [one.event.removeprefix(f"{PREFIX}account.") for one in of_one] == [
            "opened", "frozen", "unfrozen", "closed",
        ]  # fmt: skip
        assert [one.data["data"]["status"] for one in of_one] == ["open", "frozen", "open", "closed"]
        assert [one.data["subject"] for one in events if one not in of_one] == [accounts[1]]

    def test_a_reader_who_comes_back_anywhere_misses_nothing_and_gets_nothing_twice(self, world: World) -> None:
        """By header and by query; from the very beginning by the instant; only one account if asked."""
        began = time.time() - 60
        caller, account = world.person(500)
        friend, other = world.person_elsewhere(account, apart=True)
        for amount in range(1, 9):
            caller.post("/v1/transfers", transfer(account, other, amount))
            friend.post("/v1/transfers", transfer(other, account, amount))
        since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(began))
        with stream(caller, f"?from={since}", opened=True) as mine:
            whole = mine.take(18)
            assert mine.start
        assert told(whole)[0] == ("account.opened", "", 0)
        places = [one.id for one in whole]
        assert len(set(places)) == len(places)
        for number in (0, 1, 7, 16):
            with stream(caller, last=places[number]) as again:
                assert again.start == places[number]
                assert again.take(len(whole) - number - 1) == whole[number + 1 :]
        with stream(caller, f"?last_event_id={places[8]}&account={account}") as again:
            assert again.take(9) == whole[9:]
        with stream(caller, last=places[-1]) as again:
            caller.post("/v1/transfers", transfer(account, other, 9))
            assert told(again.take(1)) == [("transfer.settled", "debit", 9)]

    def test_nobody_reads_of_other_peoples_accounts_but_operators_who_name_one(self, world: World) -> None:
        """A token, its scope, and the owner; and nonsense is refused."""
        owner, account = world.person(10)
        stranger, _ = world.person(10)
        refused(world.http.get("/v1/events"), 401, "unauthenticated")
        writer = Caller(world.http, world.engine.make_token(owner.sub, "ledger:write"), owner.sub)
        refused(writer.get("/v1/events"), 403, "forbidden")
        refused(stranger.get(f"/v1/events?account={account}"), 403, "forbidden")
        for unknown in (f"{999 << 10}", "x", "5"):
            refused(world.bank.get(f"/v1/events?account={unknown}"), 404, "unknown-account")
        for bad in ("?x=1", "?from=yesterday", "?last_event_id=7", "?last_event_id=1.9999-5"):
            refused(owner.get(f"/v1/events{bad}"), 400, "malformed")
        operator = world.caller("ledger:operate", "operator")
        with stream(operator, f"?account={account}") as theirs, stream(stranger) as other:
            world.fund(account, 7)
            world.fund(str(stranger.get("/v1/accounts").json()["items"][0]["id"]), 8)
            assert told(theirs.take(1)) == [("transfer.settled", "credit", 7)]
            assert told(other.take(1)) == [("transfer.settled", "credit", 8)]

    def test_a_place_that_nothing_has_had_is_refused(self, world: World) -> None:
        """400: a stream that waits for it would leave out all that happens until then. The newest event's own is taken.

        What is malformed by the document's pattern is so in truth, the empty text too.
        """
        caller, account = world.person()
        world.fund(account, 5)
        with stream(caller, "?from=2026-01-01T00:00:00Z", opened=True) as mine:
            newest = mine.take(2)[-1]
        soon = 2 * (time.time_ns() + 30 * 10**9)
        partition = int(account) % 2
        for bad in (f"1.{partition}-{soon}", f"1.{partition}-{2**63 - 1}", "1.0-5.1-" + str(soon), "", "1.", "2", "x"):
            for answer in (caller.get("/v1/events", last_event_id=bad), caller.get(f"/v1/events?last_event_id={bad}")):
                assert refused(answer, 400, "malformed")["field"] == "Last-Event-ID", bad
        in_a_minute = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 60))
        assert refused(caller.get(f"/v1/events?from={in_a_minute}"), 400, "malformed")["field"] == "from"
        described = world.http.get("/openapi.json").json()["paths"]["/v1/events"]["get"]["parameters"]
        (pattern,) = {one["schema"]["pattern"] for one in described if one["name"].lower().startswith("last")}
        for bad in ("", "1.", "2", "x"):
            assert not re.fullmatch(pattern, bad)
        assert re.fullmatch(pattern, newest.id)
        at = newest.data["time"]
        with stream(caller, f"?from={at}") as again:
            assert again.take(1) == [newest]
        with stream(caller, last=newest.id) as again:
            world.fund(account, 6)
            assert told(again.take(1)) == [("transfer.settled", "credit", 6)]

    def test_an_idle_stream_stays_open_and_says_so(self, world: World) -> None:
        """By a comment now and then."""
        caller, account = world.person()
        with stream(caller) as mine:
            assert mine.comment()
            world.fund(account, 4)
            assert told(mine.take(1)) == [("transfer.settled", "credit", 4)]

    def test_a_token_that_expires_ends_the_stream_in_order(self, world: World) -> None:
        """The answer is complete, what happened before is in it, and at the end it says why."""
        caller, account = world.person()
        token = world.engine.make_token(caller.sub, "ledger:read", expires_in=3)
        with stream(Caller(world.http, token, caller.sub)) as mine:
            world.fund(account, 5)
            assert told(mine.rest()) == [("transfer.settled", "credit", 5)]
            assert mine.problem is not None
            assert (mine.problem["type"], mine.problem["status"]) == ("/problems/unauthenticated", 401)
            assert mine.problem["detail"] == "The token has expired"

    def test_a_caller_has_only_so_many_streams_and_others_have_theirs(self, world: World) -> None:
        """429 with Retry-After; a place is free again as soon as a stream has gone."""
        greedy, _ = world.person()
        modest, account = world.person()
        opened: list[Any] = []
        try:
            for _ in range(40):
                context = greedy.http.stream("GET", "/v1/events", headers=greedy.headers)
                answer = context.__enter__()
                opened.append(context)
                if answer.status_code == 429:
                    answer.read()
                    refused(answer, 429, "overloaded")
                    break
            else:
                raise AssertionError("forty streams of one caller")
            with stream(modest) as mine:
                world.fund(account, 3)
                assert told(mine.take(1)) == [("transfer.settled", "credit", 3)]
        finally:
            for context in opened:
                context.__exit__(None, None, None)
        deadline = time.monotonic() + 20
        while True:
            with greedy.http.stream("GET", "/v1/events", headers=greedy.headers) as answer:
                if answer.status_code == 200:
                    break
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def test_head_of_a_stream_has_no_body(self, world: World) -> None:
        """And ends."""
        caller, _ = world.person()
        answer = caller.call("HEAD", "/v1/events")
        assert answer.status_code == 200
        assert answer.content == b""

    def test_the_document_of_events_agrees_with_itself(self, world: World) -> None:
        """Every reference resolves, every channel and operation names every message."""
        document = world.http.get("/asyncapi.json").json()
        assert document["asyncapi"] == "3.0.0"
        names = set(document["components"]["messages"])
        assert len(names) == 11
        for channel in document["channels"].values():
            assert set(channel["messages"]) == names
        for reference in references(document):
            found: Any = document
            for part in reference.removeprefix("#/").split("/"):
                found = found[part]
            assert found
        for validator in validators(world).values():
            Draft202012Validator.check_schema(validator.schema)
        assert "/asyncapi.json" in world.http.get("/docs").text
