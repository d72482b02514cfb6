"""Reads request bodies strictly and fast: bounded, UTF-8, one JSON value, no repeated or unknown keys.

msgspec checks types, unknown keys and syntax, but lets the last of two equal keys win. Each key in a JSON text is
followed by exactly one colon outside of strings, so a text that has as many colons as its decoded value has keys has
no key twice. (So what a struct may lack must be UNSET by default: any other default looks like a key.) Counting bytes
costs next to nothing; only when strings hold colons too are they cut out first.
Measured for 8,190 transfers of 139 bytes: msgspec 2.7 ms and the count 0.1-0.4 ms, against 7.4 ms for the standard
library with a hook for each object and 3.8 ms for orjson, which both leave the types unchecked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Final, TypeVar

import msgspec
from msgspec import UNSET, Raw, Struct
from starlette.types import Receive

from deployments.problems import MALFORMED, TOO_LARGE, ProblemError, malformed

T = TypeVar("T")

_WITH_KEYS: Final = (Struct, Raw, list)
_STRING: Final = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_PATH: Final = re.compile(r" - at `\$\.?(?P<path>.*)`$")
_UNKNOWN_FIELD: Final = re.compile(r"unknown field `(?P<name>.*?)`")
_MISSING_FIELD: Final = re.compile(r"missing required field `(?P<name>.*?)`")


class ClientGone(Exception):  # noqa: N818 - an event, not an error
    """The client closed the connection before its request was whole: nobody is left to answer."""


async def receive_body(receive: Receive, declared: int | None, limit: int) -> bytes:
    """The whole body, at most `limit` bytes.

    Args:
        receive: ASGI.
        declared: the Content-Length, None without one.
        limit: bytes.

    Raises:
        ProblemError: too large, or not as long as declared.
        ClientGone: the client is.
    """
    if declared is not None and declared > limit:
        raise _too_large(limit)
    message = await receive()
    body: bytes = message.get("body", b"")
    if message["type"] == "http.request" and message.get("more_body", False):
        parts = [body]
        size = len(body)
        while message.get("more_body", False):
            message = await receive()
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > limit:
                raise _too_large(limit)
        body = b"".join(parts)
    if message["type"] != "http.request":
        raise ClientGone
    if len(body) > limit:
        raise _too_large(limit)
    if declared is not None and len(body) != declared:
        raise malformed("Content-Length", f"Content-Length says {declared} bytes, but {len(body)} came")
    return body


def decode(data: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """The value of a small JSON body.

    Raises:
        ProblemError: not what the decoder's type asks for; `field` says where.
    """
    value = decode_unchecked(data, decoder)
    refuse_repeated_keys(data, count_keys(value))
    return value


def decode_unchecked(data: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """Like `decode`, except that the caller must count the value's keys and call `refuse_repeated_keys`."""
    try:
        if not data.isascii():
            data.decode()
        return decoder.decode(data)
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from None
    except UnicodeDecodeError:
        raise malformed(None, "The body is not UTF-8") from None
    except RecursionError:
        raise malformed(None, "The body is nested too deeply") from None
    except msgspec.DecodeError as error:
        raise malformed(None, f"The body is not JSON: {error}") from None


def count_keys(value: object) -> int:
    """How many keys the JSON text of a decoded value has, none being repeated."""
    if isinstance(value, Struct):
        fields = msgspec.structs.astuple(value)
        keys = len(fields) - fields.count(UNSET)
        for field in fields:
            if isinstance(field, _WITH_KEYS):
                keys += count_keys(field)
        return keys
    if isinstance(value, Raw):
        return count_colons(bytes(value))
    if isinstance(value, list):
        return sum(map(count_keys, value))
    return 0


def count_colons(data: bytes | memoryview) -> int:
    """Colons outside of strings, in well-formed JSON."""
    return _STRING.sub(b"", data).count(b":")


def refuse_repeated_keys(data: bytes, keys: int) -> None:
    """Raises ProblemError unless well-formed `data` has exactly `keys` keys, repeated ones counted."""
    if data.count(b":") == keys or count_colons(data) == keys:
        return
    name = ""

    def notice(pairs: list[tuple[str, Any]]) -> None:
        nonlocal name
        names = [key for key, _ in pairs]
        name = name or next((key for key in names if names.count(key) > 1), "")

    with suppress(RecursionError, ValueError):  # only for the name: that a key is repeated is known already
        json.loads(data, object_pairs_hook=notice)
    raise malformed(name or None, "A key is there twice in one object")


def free_form(raw: Raw, field: str, *, depth_max: int, size_max: int) -> bytes:
    """A JSON object of any content, such as metadata: its text as sent, but for whitespace outside of strings.

    Raises:
        ProblemError: not an object, too large, nested too deeply, with a key twice, a NUL, or a number out of range.
    """
    data = bytes(raw)
    if len(data) > size_max:
        raise malformed(field, f"This is longer than {size_max} bytes")
    if data[:1] != b"{":
        raise malformed(field, "This is not an object")
    if count_depth(data) > depth_max:
        raise malformed(field, f"This is nested deeper than {depth_max}")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        members = dict(pairs)
        if len(members) != len(pairs):
            raise malformed(field, "A key is there twice in one object")
        return members

    try:
        value = json.loads(data, object_pairs_hook=unique)
    except (ValueError, RecursionError):
        raise malformed(field, "This cannot be read as JSON") from None
    refuse_unstorable(value, field)
    return bytes(msgspec.json.format(data, indent=-1))


def count_depth(data: bytes) -> int:
    """How deep well-formed JSON is nested."""
    depth = deepest = 0
    for byte in _STRING.sub(b"", data):
        if byte in b"{[":
            depth += 1
            deepest = max(deepest, depth)
        elif byte in b"}]":
            depth -= 1
    return deepest


def refuse_unstorable(value: object, field: str) -> None:
    """Raises ProblemError when text holds a NUL or a lone surrogate, or a number is infinite or beyond 64 bits."""
    if isinstance(value, str):
        if "\0" in value or any("\ud800" <= c <= "\udfff" for c in value):
            raise malformed(field, "Text must not contain NUL or lone surrogates")
    elif isinstance(value, dict):
        _refuse_unstorable_each((*value.keys(), *value.values()), field)
    elif isinstance(value, list):
        _refuse_unstorable_each(value, field)
    elif isinstance(value, int | float) and not _is_number(value):
        raise malformed(field, "A number is out of range")


def _is_number(value: float) -> bool:
    return -(2**63) <= value < 2**64 if isinstance(value, int) else abs(value) < float("inf")


def _refuse_unstorable_each(values: Iterable[object], field: str) -> None:
    for value in values:
        refuse_unstorable(value, field)


def text(value: str, field: str, length_max: int) -> str:
    """A line of text: 1 to `length_max` characters, none of them a control character.

    Raises:
        ProblemError: it is not.
    """
    if not 1 <= len(value) <= length_max:
        raise malformed(field, f"This must have 1 to {length_max} characters")
    if not value.isprintable() and any(
        ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0 or "\ud800" <= c <= "\udfff" for c in value
    ):
        raise malformed(field, "This must not contain control characters")
    return value


def _too_large(limit: int) -> ProblemError:
    return ProblemError(TOO_LARGE, f"The body is larger than {limit} bytes", limit_bytes=limit)


def _invalid(message: str) -> ProblemError:
    """msgspec's message as a problem that names the field."""
    path = ""
    if found := _PATH.search(message):
        path = found["path"]
        message = message[: found.start()]
    for pattern in (_UNKNOWN_FIELD, _MISSING_FIELD):
        if named := pattern.search(message):
            path = f"{path}.{named['name']}" if path else named["name"]
            break
    return ProblemError(MALFORMED, message, field=path) if path else ProblemError(MALFORMED, message)
