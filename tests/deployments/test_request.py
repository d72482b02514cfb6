"""What a request says of itself: whom it is about, where it comes from, and for which other request it is made."""

from __future__ import annotations

from typing import Any

import pytest

from deployments.problems import ProblemError
from deployments.request import UNKNOWN_ADDRESS, Request

REQUEST_ID = "0193a5b2-1234-7abc-8def-123456789abc"


def request(**headers: str) -> Request:
    """One with headers."""

    async def receive() -> Any:
        raise AssertionError("nobody reads the body")

    given = {name.replace("_", "-").encode(): value.encode("latin-1") for name, value in headers.items()}
    scope = {
        "razao.headers": given, "razao.request_id": REQUEST_ID, "razao.deadline": 0.0, "razao.identity": None,
    }  # fmt: skip
    return Request(scope, receive, {})


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("529.982.247-25", "52998224725"),
        ("52998224725", "52998224725"),
        ("11.222.333/0001-81", "11222333000181"),
        ("12abc34501de35", "12ABC34501DE35"),
    ],
)
def test_the_person_is_named_by_a_header_with_punctuation_or_without(given: str, read: str) -> None:
    assert request(razao_tax_id=given).tax_id() == read


@pytest.mark.parametrize("given", [None, "", "529.982.247-26", "1", "52998224725, 11144477735", "\xff" * 11])
def test_a_header_that_names_nobody_is_refused_and_not_repeated(given: str | None) -> None:
    asked = request() if given is None else request(razao_tax_id=given)
    with pytest.raises(ProblemError) as refused:
        asked.tax_id()
    assert refused.value.status in {400, 422}
    assert refused.value.members["field"] == "Razao-Tax-Id"
    if given and len(given) > 1:
        assert given not in str(refused.value.body(REQUEST_ID))


def test_repeated_digits_are_for_capacity_tests() -> None:
    with pytest.raises(ProblemError):
        request(razao_tax_id="11111111111").tax_id()
    assert request(razao_tax_id="11111111111").tax_id(repeated=True) == "11111111111"


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("", UNKNOWN_ADDRESS),
        ("192.0.2.1, 10.0.0.1", UNKNOWN_ADDRESS),
        ("localhost", UNKNOWN_ADDRESS),
    ],
)
def test_the_address_is_the_gateway_s_or_unknown(given: str, address: str) -> None:
    assert request(razao_client_address=given, x_forwarded_for="198.51.100.7").address == address


@pytest.mark.parametrize("given", ["a", "0193a5b2-ffff-7abc-8def-123456789abc", "x" * 64])
def test_a_request_made_for_another_one_has_that_one_s_number(given: str) -> None:
    assert request(x_correlation_id=given).correlation_id == given


@pytest.mark.parametrize(
    "given", ["", "x" * 65, "a b", "a\n", "ação", "529.982.247-25", "52998224725", "529982247-25", "12ABC34501DE35"]
)
def test_a_number_that_could_be_anything_else_is_not_taken_over(given: str) -> None:
    assert request(x_correlation_id=given).correlation_id == REQUEST_ID
