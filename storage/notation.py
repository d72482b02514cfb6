"""How money, accounts and instants are written for the world, over HTTP and in events alike."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Final

from msgspec import Meta

CURRENCY: Final = "BRL"
EXAMPLE_ACCOUNT: Final = "7349874591868649841"
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

AccountId = Annotated[
    str,
    Meta(
        description="Id of an account.",
        examples=[EXAMPLE_ACCOUNT],
        extra_json_schema={"pattern": "^[1-9][0-9]{0,18}$"},
    ),
]
Centavos = Annotated[int, Meta(description="Centavos.", examples=[12_345], extra_json_schema={"format": "int64"})]
Instant = Annotated[
    str,
    Meta(
        description="RFC 3339, UTC, six decimals.",
        examples=["2026-11-22T12:00:00.000000Z"],
        extra_json_schema={"format": "date-time"},
    ),
]

_NS: Final = 1_000_000_000
_MICROSECOND: Final = timedelta(microseconds=1)
_last_second = (0, "1970-01-01T00:00:00")


def rfc3339(ns: int) -> str:
    """An `Instant` (ns since 1970). The second's text is kept, for most answers share it."""
    global _last_second
    seconds, rest = divmod(ns, _NS)
    known, prefix = _last_second
    if seconds != known:
        prefix = (EPOCH + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S")
        _last_second = (seconds, prefix)
    return f"{prefix}.{rest // 1000:06d}Z"


def instant(at: datetime) -> str:
    """An `Instant` of a time that a database has kept to the microsecond."""
    return rfc3339(microseconds(at) * 1000)


def microseconds(at: datetime) -> int:
    """Since 1970."""
    return (at - EPOCH) // _MICROSECOND
