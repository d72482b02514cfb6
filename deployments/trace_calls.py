"""The trace's calls: what the table of operations names, and what each does."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import msgspec
from starlette.types import Receive, Scope

from deployments.auth.basic import BasicBackend
from deployments.json_body import decode_unchecked, refuse_repeated_keys, text
from deployments.openapi import Operation, Parameter
from deployments.payments_call import read_instant
from deployments.problems import INVALID_AMOUNT, INVALID_TAX_ID, ProblemError, malformed
from deployments.request import JSON, TAX_ID, Answer, Header, Request, json_answer
from deployments.tax_id import read_tax_id
from deployments.trace_answers import Answers, Kept, References, last_query
from deployments.trace_queries import LastQueries
from deployments.trace_schema import (
    AMOUNT_MAX,
    PURCHASES_MAX,
    LastQuery,
    NewPurchase,
    NewPurchases,
    Person,
    PurchaseResult,
    PurchaseResults,
)
from storage.references import person_reference
from storage.traces import Purchase, Query, Traces

PREFIX: Final = "/trace/v1"
PERSON: Final = f"{PREFIX}/person"
_BODY_BYTES_MAX: Final = 512 << 10
_AHEAD_NS: Final = 300 * 10**9
_NO_STORE: Final = (b"cache-control", b"no-store")  # said here too: the express route's answers do not pass the edge
_AGES: Final = tuple((b"age", b"%d" % seconds) for seconds in range(3))
_purchases: Final = msgspec.json.Decoder(NewPurchases)


@dataclass(slots=True)
class Services:
    """What the application stands on. `key`: of the references to people."""

    traces: Traces
    backend: BasicBackend
    queries: LastQueries
    answers: Answers
    key: bytes
    gateway_secret: str | None = None
    deadline_s: float = 10.0
    references: References = field(default_factory=References)
    repeated_tax_ids: bool = False


class Call(Request):
    """One request."""

    __slots__ = ("services",)

    def __init__(self, services: Services, scope: Scope, receive: Receive, path: Mapping[str, str]) -> None:
        super().__init__(scope, receive, path)
        self.services = services

    def person(self) -> bytes:
        """The reference of the person whom the request is about."""
        services = self.services
        person = person_reference(services.key, self.tax_id(repeated=services.repeated_tax_ids))
        services.references.remember(self.headers[b"razao-tax-id"], person)
        return person


async def get_person(call: Call) -> Answer:
    """What there is of a person; the question itself becomes the last one, and is written behind."""
    person = call.person()
    answers = call.services.answers
    found = answers.kept(person, time.monotonic()) or await answers.about(person)
    note(call.services, person, call.address, call.identified().subject)
    return Answer(200, found.body, age_headers(found, time.monotonic()))


def note(services: Services, person: bytes, address: str, user: str) -> None:
    """Somebody asks about a person."""
    services.queries.note(person, Query(time.time_ns(), address, user))


def age_headers(found: Kept, now: float) -> list[Header]:
    """What is said of an answer about a person, its age in whole seconds included (RFC 9111, 5.1)."""
    return [JSON, _NO_STORE, _AGES[min(int(now - found.read), len(_AGES) - 1)]]


async def get_last_query(call: Call) -> Answer:
    """Who asked last. Asking for that is no question about the person."""
    person = call.person()
    services = call.services
    found = services.queries.latest(person, await services.traces.last_query(person))
    shown = LastQuery(None, None, None) if found is None else last_query(found)
    return json_answer(200, shown)


async def add_purchases(call: Call) -> Answer:
    """Store purchases; an id that is known is stored once."""
    call.expect_json()
    data = await call.body(_BODY_BYTES_MAX)
    given = decode_unchecked(data, _purchases).purchases
    refuse_repeated_keys(data, 1 + len(NewPurchase.__struct_fields__) * len(given))
    if not 1 <= len(given) <= PURCHASES_MAX:
        raise malformed("purchases", f"There are 1 to {PURCHASES_MAX} purchases")
    latest = time.time_ns() + _AHEAD_NS
    purchases = [_purchase(call.services, one, f"purchases[{index}]", latest) for index, one in enumerate(given)]
    if len({one.id for _, one in purchases}) < len(purchases):
        raise malformed("purchases", "An id is there twice")
    outcomes = await call.services.traces.add_purchases(purchases)
    results = [PurchaseResult(one.id, outcome.value) for one, outcome in zip(given, outcomes, strict=True)]
    return json_answer(200, PurchaseResults(results))


def _purchase(services: Services, given: NewPurchase, where: str, latest: int) -> tuple[bytes, Purchase]:
    if not 1 <= given.amount <= AMOUNT_MAX:
        raise ProblemError(INVALID_AMOUNT, INVALID_AMOUNT.title, field=f"{where}.amount")
    at = read_instant(given.at, f"{where}.at")
    if at > latest:
        raise malformed(f"{where}.at", "This is in the future")
    tax_id = read_tax_id(given.tax_id, f"{where}.tax_id", repeated=services.repeated_tax_ids)
    one = Purchase(text(given.id, f"{where}.id", 64), text(given.merchant, f"{where}.merchant", 120), given.amount, at)
    return person_reference(services.key, tax_id), one


_WHO: Final = Parameter(
    TAX_ID, "header", "CPF or CNPJ of the person, with or without punctuation.",
    {"type": "string", "minLength": 1, "examples": ["529.982.247-25"]}, required=True,
)  # fmt: skip


def operations() -> tuple[Operation, ...]:
    """The table."""
    return (
        Operation(
            "GET", PERSON, "getPerson", "What there is of a person",
            "Who asked about them last before this question, the newest movements of their accounts, and their last "
            "card purchase. Of somebody unknown: nothing of each. The answer may be up to a second old: `as_of` and "
            "the header `Age` say how old.", get_person, scope="", response=Person, parameters=(_WHO,),
            problems=(INVALID_TAX_ID,), response_headers=(("Age", "Whole seconds since `as_of`."),),
        ),
        Operation(
            "GET", f"{PREFIX}/last-query", "getLastQuery", "Who asked about a person last",
            "Asking for this does not count as a question about the person.", get_last_query, scope="",
            response=LastQuery, parameters=(_WHO,), problems=(INVALID_TAX_ID,),
        ),
        Operation(
            "POST", f"{PREFIX}/card-purchases", "addCardPurchases", "Store purchases by card",
            "Up to 1,000. A purchase whose id is known is not stored again, so the call can be repeated; the other "
            "purchases of the call are stored whatever becomes of one. The person's last purchase is the one of the "
            "latest `at`.", add_purchases, scope="", request=NewPurchases, response=PurchaseResults,
            problems=(INVALID_TAX_ID, INVALID_AMOUNT),
        ),
    )  # fmt: skip
