"""Strict reading of bodies: the fast check for repeated keys agrees with a slow and obvious one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import UNSET, Raw, UnsetType
from starlette.types import Message

from deployments import identity_routes, json_body, payments_routes, score_routes, trace_calls, vault_routes
from deployments.json_body import ClientGone, count_colons, count_depth, decode, free_form, receive_body
from deployments.openapi import Operation
from deployments.problems import ProblemError


class Inner(msgspec.Struct, forbid_unknown_fields=True):
    """A nested object."""

    a: str | UnsetType = UNSET
    b: int | UnsetType = UNSET


class Outer(msgspec.Struct, forbid_unknown_fields=True):
    """One of each sort."""

    text: str
    number: int | UnsetType = UNSET
    inner: Inner | UnsetType = UNSET
    many: list[Inner] | UnsetType = UNSET
    free: Raw | UnsetType = UNSET


class Plain(Outer):
    """The same for a reader that does not know Raw."""

    free: Any = UNSET


DECODER = msgspec.json.Decoder(Outer)
TEXTS = st.text(alphabet='ab:"{}[],\\ \n\té\U0001f600', max_size=8)
SPACES = st.sampled_from(["", " ", "\n", "\t "])


class Pairs(list[tuple[str, Any]]):
    """An object whose keys may be there twice."""


@st.composite
def members(draw: st.DrawFn, values: dict[str, st.SearchStrategy[Any]]) -> Pairs:
    """Keys with values, some of them twice."""
    names = draw(st.lists(st.sampled_from(sorted(values)), max_size=5))
    return Pairs((name, draw(values[name])) for name in names)


INNER = members({"a": TEXTS, "b": st.integers()})
FREE = st.recursive(
    TEXTS | st.integers(-5, 5) | st.none() | st.booleans(),
    lambda inner: st.lists(inner, max_size=3) | st.lists(st.tuples(TEXTS, inner), max_size=3).map(Pairs),
    max_leaves=6,
)
OUTER = members(
    {"text": TEXTS, "number": st.integers(), "inner": INNER, "many": st.lists(INNER, max_size=3), "free": FREE}
)


def spell(value: Any, space: str) -> str:
    """JSON of a value."""
    if isinstance(value, Pairs):
        pairs = (f"{json.dumps(name)}{space}:{space}{spell(one, space)}" for name, one in value)
        return f"{{{space}{','.join(pairs)}{space}}}"
    if isinstance(value, list):
        return f"[{','.join(spell(one, space) for one in value)}]"
    return json.dumps(value, ensure_ascii=False)


def is_good(text: str) -> bool:
    """The slow and obvious way: the standard library tells each object's keys."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({name for name, _ in pairs}) != len(pairs):
            raise ValueError("twice")
        return dict(pairs)

    try:
        msgspec.convert(json.loads(text, object_pairs_hook=unique), Plain, strict=True)
    except (ValueError, msgspec.ValidationError):
        return False
    return True


@settings(max_examples=400, deadline=None)
@given(OUTER, SPACES)
def test_repeated_keys_are_found_whatever_the_text(pairs: Pairs, space: str) -> None:
    """Colons, quotes and backslashes in strings, spaces anywhere, nested objects and lists."""
    body = spell(pairs, space)
    keys_of_free = [value for name, value in pairs if name == "free"]
    try:
        value = decode(body.encode(), DECODER)
        if value.free is not UNSET and keys_of_free and bytes(value.free)[:1] == b"{":
            free_form(value.free, "free", depth_max=100, size_max=10_000)
        read = True
    except ProblemError as error:
        assert error.status == 400  # noqa: PT017 - either way is right here
        read = False
    if "free" in dict(pairs) and isinstance(keys_of_free[-1], list) and not isinstance(keys_of_free[-1], Pairs):
        return  # a free-form list is only counted, its objects' keys are compared when an object is due
    assert read == is_good(body), body


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60) | st.text(max_size=40).map(str.encode) | st.text('{}[]":,0123eE.\\utxn ').map(str.encode))
def test_no_bytes_are_more_than_malformed(data: bytes) -> None:
    """A value or a 400, nothing else."""
    try:
        decode(data, DECODER)
    except ProblemError as error:
        assert error.status == 400  # noqa: PT017 - or no error at all


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ('{"text":1}', "text"), ('{"text":"a","more":1}', "more"), ("{}", "text"),
        ('{"text":"a","inner":{"b":"x"}}', "inner.b"), ('{"text":"a","many":[{},{"b":1.5}]}', "many[1].b"),
        ('{"text":"a","text":"b"}', "text"), ('{"text":"a","many":[{"a":":","a":":"}]}', "a"),
        ('{"text":"a","inner":{"x":1}}', "inner.x"),
    ],
)  # fmt: skip
def test_the_answer_names_the_field(body: str, field: str) -> None:
    """Where it is, as a path."""
    with pytest.raises(ProblemError) as caught:
        decode(body.encode(), DECODER)
    assert caught.value.members["field"] == field


@pytest.mark.parametrize(
    ("text", "colons", "depth"),
    [
        ('{"a":1}', 1, 1), (r'{"a:\":":":{["}', 1, 1), (r'{"\\":{"\\\"":[":"]}}', 2, 3), ("[]", 0, 1), ('"a:b"', 0, 0),
        ('{"a" : {"b"\n:\t{}}}', 2, 3),
    ],
)  # fmt: skip
def test_what_is_in_strings_does_not_count(text: str, colons: int, depth: int) -> None:
    """Neither colons nor brackets."""
    assert count_colons(text.encode()) == colons
    assert count_depth(text.encode()) == depth


def test_a_body_too_deep_for_its_naming_is_still_malformed() -> None:
    """The repeated key's name is looked for by another reader, which may give up."""
    deep = b'{"text":"a","text":"b","free":' + b"[" * 900 + b"]" * 900 + b"}"
    with pytest.raises(ProblemError) as caught:
        decode(deep, DECODER)
    assert caught.value.status == 400


class Sender:
    """`receive` with the messages that a server would give."""

    def __init__(self, *messages: Message) -> None:
        self.messages = list(messages)

    async def __call__(self) -> Message:
        """The next one."""
        return self.messages.pop(0)


def part(body: bytes, *, more: bool = False) -> Message:
    """A piece of a body."""
    return {"type": "http.request", "body": body, "more_body": more}


async def test_a_body_is_read_whole() -> None:
    """In one piece or many."""
    assert await receive_body(Sender(part(b"abc")), 3, 10) == b"abc"
    assert await receive_body(Sender(part(b"ab", more=True), part(b"", more=True), part(b"c")), None, 10) == b"abc"
    assert await receive_body(Sender({"type": "http.request"}), None, 10) == b""


async def test_a_body_too_large_is_not_read_to_its_end() -> None:
    """By what is declared, and by what comes."""
    with pytest.raises(ProblemError) as caught:
        await receive_body(Sender(), 11, 10)
    assert caught.value.status == 413
    endless = Sender(*(part(b"x" * 6, more=True) for _ in range(5)))
    with pytest.raises(ProblemError) as caught:
        await receive_body(endless, None, 10)
    assert caught.value.status == 413
    assert len(endless.messages) == 3
    with pytest.raises(ProblemError):
        await receive_body(Sender(part(b"x" * 11)), None, 10)


@pytest.mark.parametrize("declared", [2, 4, 0])
async def test_a_length_that_lies_is_malformed(declared: int) -> None:
    """Too little or too much."""
    with pytest.raises(ProblemError) as caught:
        await receive_body(Sender(part(b"abc")), declared, 10)
    assert (caught.value.status, caught.value.members["field"]) == (400, "Content-Length")


async def test_a_client_that_goes_is_not_answered() -> None:
    """At once or in the middle."""
    gone: Message = {"type": "http.disconnect"}
    with pytest.raises(ClientGone):
        await receive_body(Sender(gone), None, 10)
    with pytest.raises(ClientGone):
        await receive_body(Sender(part(b"a", more=True), gone), None, 10)


@pytest.mark.parametrize("text", ["", "x" * 6, "a\0", "a\n", "\x7f", "\x85", "\ud800"])
def test_a_line_of_text_has_no_control_characters(text: str) -> None:
    """And is neither empty nor too long."""
    with pytest.raises(ProblemError):
        json_body.text(text, "name", 5)


def test_a_line_of_text_may_be_of_any_script() -> None:
    """With combining marks and joiners."""
    for line in ("José", "çãé", "日本語", "a b", "👩‍👧"):
        assert json_body.text(line, "name", 10) == line


def _decoded_structs(kind: msgspec.inspect.Type) -> Iterator[msgspec.inspect.StructType]:
    if isinstance(kind, msgspec.inspect.StructType):
        yield kind
        for field in kind.fields:
            yield from _decoded_structs(field.type)
    for inner in (*getattr(kind, "types", ()), getattr(kind, "item_type", None)):
        if inner is not None:
            yield from _decoded_structs(inner)


@pytest.mark.parametrize(
    "operations",
    [
        identity_routes.api_operations, payments_routes.api_operations, score_routes.api_operations,
        vault_routes.api_operations, trace_calls.operations,
    ],
)  # fmt: skip
def test_what_a_request_may_leave_out_is_unset_then_or_repeated_keys_could_not_be_told(
    operations: Callable[[], Sequence[Operation]],
) -> None:
    """Keys are told by their number: a default of any other kind looks like a key that was there."""
    requests = {one.request for one in operations() if one.request is not None}
    assert requests
    for request in requests:
        for struct in _decoded_structs(msgspec.inspect.type_info(request)):
            for field in struct.fields:  # a default of UNSET is not listed as one
                defaults = {field.default, field.default_factory} - {msgspec.NODEFAULT}
                assert not defaults, f"{struct.cls.__name__}.{field.name}"
