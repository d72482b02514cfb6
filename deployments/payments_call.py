"""One request on its way through the payments application: who asks, what its headers say, and shared forms.

Handlers take a Call and return an Answer; what goes wrong is raised as a ProblemError and answered at the edge.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
from msgspec import UNSET, Raw, UnsetType
from starlette.types import Receive, Scope

from actors.shard_client import Outcome, ShardUnavailable, Tell
from deployments.json_body import free_form, text
from deployments.payments_schema import DESCRIPTION_MAX, METADATA_BYTES_MAX, METADATA_DEPTH_MAX
from deployments.problems import (
    INVALID_AMOUNT,
    INVALID_ID,
    NOT_CAUGHT_UP,
    UNAVAILABLE,
    UNKNOWN_ACCOUNT,
    ProblemError,
    malformed,
)
from deployments.quotas import exceeded
from deployments.request import JSON, Header, Request, require
from storage import ids
from storage.events import AMOUNT_MAX, FIRST_ACCOUNT, SLOTS
from storage.ids import Id
from storage.notation import EPOCH
from storage.query_store import NotYetProjected

if TYPE_CHECKING:
    from deployments.payments_services import Services

Rows = npt.NDArray[Any]

READ: Final = "ledger:read"
AUDIT: Final = "ledger:audit"
OPERATE: Final = "ledger:operate"
OPERATOR: Final = 0
"""`EVENT.actor` of one who may act on any account."""

# Written so that the documents show them as they are.
KEY_PATTERN: Final = "[!-~]([ -~]{0,253}[!-~])?"
POSITION_PATTERN: Final = "[0-9]{1,4}:[0-9]{1,18}(, ?[0-9]{1,4}:[0-9]{1,18}){0,1023}"
_KEY: Final = re.compile(KEY_PATTERN.encode())
_ACCOUNT: Final = re.compile(r"[1-9][0-9]{0,18}", re.ASCII)
_POSITION: Final = re.compile(POSITION_PATTERN)
_INSTANT: Final = re.compile(
    r"(\d{4}-\d{2}-\d{2}[Tt]\d{2}:\d{2}:\d{2})(?:\.(\d{1,9}))?([Zz]|[+\- ]\d{2}:\d{2})", re.ASCII
)
_NS: Final = 1_000_000_000
_MASK64: Final = 2**64 - 1
_SPAN_MIX: Final = 0x9E3779B97F4A7C15


class Call(Request):
    """One request, what it stands on, and for whom it acts."""

    __slots__ = ("actor", "services")

    def __init__(self, services: Services, scope: Scope, receive: Receive, path: Mapping[str, str]) -> None:
        super().__init__(scope, receive, path)
        self.services = services
        self.actor = OPERATOR

    # -- who --------------------------------------------------------------------------------------------------------

    def authorize(self, scope: str, *, lifted_by_operate: bool = True) -> str:
        """Check that the token has a scope; sets `actor` and returns the subject.

        Raises:
            ProblemError: no token, or it lacks the scope.
        """
        identity = self.identified()
        operates = OPERATE in identity.scopes
        if not (operates and lifted_by_operate):
            require(identity, scope)
        # An auditor sees every account, and writes to none but his own.
        sees_all = operates or (scope == READ and AUDIT in identity.scopes)
        self.actor = OPERATOR if sees_all else self.services.actors.of(identity.subject)
        return identity.subject

    # -- what -------------------------------------------------------------------------------------------------------

    def positions(self) -> dict[int, int]:
        """What `Razao-Position` asks to wait for: partition → journal offset."""
        raw = self.headers.get(b"razao-position")
        if raw is None:
            return {}
        value = raw.decode("latin-1")
        if not _POSITION.fullmatch(value):
            raise malformed("Razao-Position", "Razao-Position must be as a write answered it, such as 0:123,1:456")
        positions: dict[int, int] = {}
        for pair in value.split(","):
            partition, _, offset = pair.partition(":")
            positions[int(partition)] = max(int(offset), positions.get(int(partition), 0))
        if max(positions) >= self.services.client.partitions:
            raise malformed("Razao-Position", "Razao-Position names a partition that there is not")
        return positions

    async def wait_for_positions(self) -> None:
        """Wait until the query store has what `Razao-Position` asks for.

        Raises:
            ProblemError: a position lies beyond its journal's end, or the store did not get there in time.
        """
        positions = self.positions()
        if not positions:
            return
        seen = await self.services.store.projected()
        behind = {partition: offset for partition, offset in positions.items() if seen.get(partition, 0) <= offset}
        if not behind:
            return
        # What no write can have answered never comes, and must not keep others' reads company until its time is up.
        for partition, head in (await self.heads(behind)).items():
            if behind[partition] >= head:
                raise malformed("Razao-Position", "Razao-Position lies beyond the journal's end: no write answered it")
        await self.wait_for(behind)

    async def heads(self, partitions: Iterable[int]) -> dict[int, int]:
        """The offset that each partition's next record will get, after everything received before is durable.

        Raises:
            ProblemError: a shard does not answer.
        """
        asked = tuple(partitions)
        client = self.services.client
        try:
            heads = await asyncio.gather(*(client.head(partition, self.deadline) for partition in asked))
        except ShardUnavailable:
            raise ProblemError(UNAVAILABLE, "A shard does not answer") from None
        return dict(zip(asked, heads, strict=True))

    async def caught_up(self, partitions: Iterable[int]) -> dict[int, int]:
        """Wait until the query store has all that these shards had received when this was called.

        Returns:
            Partition → the stamp of its newest event, ns since 1970. It is the ledger's time, by which what is to come
            is told from what has been: a shard's clock may be a little ahead of this machine's.

        Raises:
            ProblemError: a shard does not answer, or the store did not get there in time.
        """
        heads = await self.heads(partitions)
        await self.wait_for({partition: head - 1 for partition, head in heads.items()})
        newest = await self.services.store.newest()
        return {partition: newest.get(partition, 0) for partition in heads}

    async def wait_for(self, positions: Mapping[int, int]) -> None:
        """Wait until the query store has the records at `positions` (partition → offset).

        Raises:
            ProblemError: it did not get there in time.
        """
        try:
            await self.services.store.wait_for(positions, self.deadline)
        except NotYetProjected:
            raise ProblemError(NOT_CAUGHT_UP, "The query store has not caught up yet") from None

    def partition_of(self, account: int) -> int:
        """Where an account lies; or what has an id of that slot."""
        return account % SLOTS % self.services.client.partitions

    # -- the event that it makes ------------------------------------------------------------------------------------

    def event_id(self, route: str, given: str | UnsetType, account: int | None) -> Id:
        """The id of the event that this call makes: the body's `id`, else as `derived_id`.

        `id` and Idempotency-Key together are taken when the key gives that id, or is that very id.

        Args:
            route: which call it is.
            given: the body's `id`.
            account: that pays (that gets a deposit), in whose slot the id must be; of a post or void the hold's slot
                alone; None: any slot will do.

        Raises:
            ProblemError: it cannot be this call's id.
        """
        if given is UNSET:
            return self.derived_id(route, account)
        id_ = read_id(given)
        key = self.key()
        derived = ids.version(id_) == 8
        if key is not None and (id_ != self.derived_id(route, account) if derived else key.lower() != given.lower()):
            raise malformed("Idempotency-Key", "Send either `id` or Idempotency-Key, or with the key the id it gives")
        if derived and key is None:
            raise refused_id("An id of version 8 is one that a key gives: send its Idempotency-Key", "id")
        if account is not None and ids.slot_of(id_) != account % SLOTS:
            raise misplaced_id(id_, account, "id")
        return id_

    def derived_id(self, route: str, account: int | None) -> Id:
        """The id that stands for the Idempotency-Key, else for the gateway's request id, so that what is on the way
        twice happens once; else a fresh one. In the slot of `account`, if there is one.
        """
        assert self.identity is not None  # noqa: S101 - authorize comes first
        about = (self.identity.subject, route, *(() if account is None else (str(account),)))
        key = self.key()
        if key is not None:
            id_ = ids.derive("key", *about, key, key=self.services.ledger_key)
        elif b"x-request-id" not in self.headers:
            id_ = ids.uuid7(time.time_ns() // 1_000_000)
        else:
            id_ = self._id_of_request(about)
        return id_ if account is None else ids.in_slot(id_, account % SLOTS)

    def _id_of_request(self, about: tuple[str, ...]) -> Id:
        try:
            id_ = ids.parse(self.request_id)
        except ValueError:
            id_ = (0, 0)
        if ids.version(id_) == 7:
            return id_
        return ids.derive("request", *about, self.request_id, key=self.services.ledger_key)  # not our gateway's number

    def key(self) -> str | None:
        """The Idempotency-Key.

        Raises:
            ProblemError: it is out of form.
        """
        key = self.headers.get(b"idempotency-key")
        if key is None:
            return None
        if not _KEY.fullmatch(key):
            raise malformed("Idempotency-Key", "An Idempotency-Key is 1 to 255 visible ASCII characters")
        return key.decode("ascii")

    async def apply(self, rows: Rows, notes: list[bytes | None] | None, named: Id) -> Outcome:
        """Have the shards apply `rows`: (n,) EVENT, and wait for the outcome. See `ShardClient.apply`.

        Args:
            rows: what this call makes.
            notes: one a row, or None.
            named: the id by which the client may send it again, should the outcome not be learnt.

        Raises:
            ProblemError: the caller has sent more than its share; nothing was sent.
        """
        subject, operates = self._taken(len(rows))
        results = None
        try:
            self._sent(named)
            outcome = await self.services.client.apply(rows, notes, self.deadline)
            results = outcome.results
            return outcome
        finally:
            self.services.quotas.told_all(subject, results, len(rows), operator=operates)

    def submit(self, row: bytes, note: bytes | None, named: Id, tell: Tell) -> None:
        """The same of one event for who does not wait. See `ShardClient.submit`."""
        subject, operates = self._taken(1)
        quotas = self.services.quotas

        def told(results: Rows, positions: dict[int, int]) -> None:
            _, _, code, flags, _ = results.item(0)
            quotas.told_one(subject, code, flags, operator=operates)
            tell(results, positions)

        self._sent(named)
        self.services.client.submit(row, note, self.deadline, told)

    def refuse_beyond_share(self) -> None:
        """Raises ProblemError when the caller has sent more than its share already: then not even a body is read."""
        identity = self.identified()
        wait_s = self.services.quotas.wait_s(identity.subject, operator=OPERATE in identity.scopes)
        if wait_s is not None:
            raise exceeded(wait_s)

    def _taken(self, rows: int) -> tuple[str, bool]:
        """The subject whose share these rows were taken from, and whether it operates; what became of them is told."""
        identity = self.identified()
        operates = OPERATE in identity.scopes
        wait_s = self.services.quotas.take(identity.subject, rows, operator=operates)
        if wait_s is not None:
            raise exceeded(wait_s)
        return identity.subject, operates

    def _sent(self, named: Id) -> None:
        """The one place that writes it: from here on the edge tells every failure as `unsure`."""
        self.scope["razao.event"] = ids.text(named)

    def outcome(self, problem: ProblemError) -> ProblemError:
        """Marks the problem that is what became of what was sent: the edge tells it as it is, and no other one."""
        self.scope["razao.outcome"] = problem
        return problem


# -- ids and accounts -----------------------------------------------------------------------------------------------


def read_id(given: str, field: str = "id") -> Id:
    """The event id that a body names; one of version 8 was told by us, and a key must come with it."""
    try:
        return ids.parse(given)
    except ValueError:
        raise ProblemError(INVALID_ID, "This is not a UUID of version 7", field=field) from None


def refused_id(detail: str, field: str, **members: Any) -> ProblemError:
    """The 422 for an id that has the form of one, but cannot be this one's."""
    return ProblemError(INVALID_ID, detail, status=422, field=field, **members)


def misplaced_id(id_: Id, account: int, field: str) -> ProblemError:
    """The 422 for an id that does not say where the account of its event lies; `expected` is the one that does."""
    slot = account % SLOTS
    return refused_id(
        f"The last three hexadecimal digits of an id are those of the paying account modulo {SLOTS} "
        f"(of a deposit, the account that gets it), here {slot:03x}",
        field,
        expected=ids.text(ids.in_slot(id_, slot)),
    )


def read_account(given: str, field: str) -> int:
    """The account that a body names.

    Raises:
        ProblemError: no account can have that id.
    """
    if _ACCOUNT.fullmatch(given) and FIRST_ACCOUNT <= (account := int(given)) <= AMOUNT_MAX:
        return account
    text(given, field, 255)
    raise ProblemError(UNKNOWN_ACCOUNT, "There is no such account", field=field)


def read_path_account(given: str) -> int:
    """The account that the path names."""
    if _ACCOUNT.fullmatch(given) and FIRST_ACCOUNT <= (account := int(given)) <= AMOUNT_MAX:
        return account
    raise ProblemError(UNKNOWN_ACCOUNT, "There is no such account", status=404)


def check_amount(amount: int, field: str = "amount", *, most: int = AMOUNT_MAX) -> int:
    """Raises ProblemError unless it is an amount."""
    if not 0 < amount <= most:
        raise ProblemError(INVALID_AMOUNT, f"This amount is from 1 to {most} centavos", field=field)
    return amount


# -- description and metadata ---------------------------------------------------------------------------------------


def read_note(description: str | UnsetType, metadata: Raw | UnsetType, prefix: str = "") -> bytes | None:
    """Description and metadata as JSON text, in the form in which the journal carries them.

    Metadata stays the text that was sent: 1.10 is not 1.1 to whom it belongs, and a double would be neither. So a
    repeat has the same content when it has the same text, and its answer is the first one to the byte.
    """
    members: list[bytes] = []
    if description is not UNSET:
        line = text(description, f"{prefix}description", DESCRIPTION_MAX)
        members.append(b'"description":' + json.dumps(line, ensure_ascii=False).encode())
    if metadata is not UNSET:
        members.append(
            b'"metadata":'
            + free_form(metadata, f"{prefix}metadata", depth_max=METADATA_DEPTH_MAX, size_max=METADATA_BYTES_MAX)
        )
    return b"{%s}" % b",".join(members) if members else None


def content_check(note: bytes | None, expires_in: int) -> int:
    """`EVENT.check`: what no column shows, but makes a repeat of an id another request."""
    digest = 0 if note is None else int.from_bytes(blake2b(note, digest_size=8).digest(), "big")
    return (digest + expires_in * _SPAN_MIX) & _MASK64


def content_checks(notes: list[bytes | None] | None, expires_in: Rows) -> Rows:
    """The same for many: (n,) int64 seconds → (n,) uint64."""
    checks: Rows = expires_in.astype(np.uint64) * np.uint64(_SPAN_MIX)
    if notes is not None:
        digests = [0 if note is None else content_check(note, 0) for note in notes]
        checks = checks + np.array(digests, np.uint64)
    return checks


# -- times ----------------------------------------------------------------------------------------------------------


def read_instant(given: str, field: str) -> int:
    """ns since 1970 of an RFC 3339 instant between 1970 and 2200."""
    found = _INSTANT.fullmatch(given)
    if found is None:
        raise malformed(field, "An instant is written as in RFC 3339, such as 2026-11-22T12:00:00.000000Z")
    zone = found[3].upper().replace(" ", "+").replace("Z", "+00:00")  # an unescaped plus arrives as a space
    try:
        instant = datetime.fromisoformat(found[1].upper() + zone)
        seconds = (instant - EPOCH) // timedelta(seconds=1)
    except (ValueError, OverflowError):
        raise malformed(field, "There is no such instant") from None
    if not 0 <= seconds < 7_258_118_400:
        raise malformed(field, "An instant lies between 1970 and 2200")
    return seconds * _NS + int((found[2] or "").ljust(9, "0"))


def read_limit(parameters: Mapping[str, str], default: int, maximum: int) -> int:
    """The page size that a query asks for."""
    given = parameters.get("limit")
    if given is None:
        return default
    if not (given.isascii() and given.isdigit() and len(given) <= 9 and 1 <= int(given) <= maximum):
        raise malformed("limit", f"A page has 1 to {maximum} items")
    return int(given)


# -- answers --------------------------------------------------------------------------------------------------------

REPLAYED_HEADER: Final[Header] = (b"idempotency-replayed", b"true")


def position_header(positions: Mapping[int, int]) -> Header:
    """`Razao-Position`: what a later read should wait for, to see this."""
    return (b"razao-position", ",".join([f"{key}:{value}" for key, value in positions.items()]).encode())


def write_headers(positions: Mapping[int, int], *, replayed: bool) -> list[Header]:
    """The headers of a write's answer."""
    headers = [JSON]
    if positions:
        headers.append(position_header(positions))
    if replayed:
        headers.append(REPLAYED_HEADER)
    return headers
