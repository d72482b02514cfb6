"""The whole base for whoever trains models: pseudonymised, as an Arrow stream or as NDJSON, to be resumed by a cursor.

A row has neither name, tax id, birth date, street nor city. Its pseudonym is a keyed hash of the person's reference,
the same in each extract, so that outcomes can be joined to it by those who have the key alone. The cursor is a place in
the base, encrypted, since the places are the references.
"""

from __future__ import annotations

import asyncio
import io
import os
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import AsyncIterator, Sequence
from hashlib import blake2b
from typing import Any, Final

import msgspec
import pyarrow as pa
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from deployments.problems import ProblemError, malformed
from deployments.request import require
from deployments.score_call import ANSWERED, EVERYBODY, EXTRACT, Call
from deployments.score_people import read_limit
from deployments.score_scoring import day_of, rows_of
from deployments.scorecard import MODEL, score
from deployments.service import Chunks
from storage.profiles import Profile
from storage.references import derived_key

ARROW: Final = "application/vnd.apache.arrow.stream"
NDJSON: Final = "application/x-ndjson"
PATH: Final = "/score/v1/extract"
ROWS_MAX: Final = 100_000_000
_BATCH: Final = 1000
_START: Final = bytes(16)
_NONCE: Final = 12

SCHEMA: Final = pa.schema(
    [
        ("pseudonym", pa.string()),
        ("age", pa.int16()),
        ("state", pa.string()),
        ("income_source", pa.string()),
        ("monthly_income", pa.int64()),
        ("assets", pa.list_(pa.struct([("kind", pa.string()), ("value", pa.int64())]))),
        ("credit_days", pa.int64()),
        ("payments_on_time", pa.int64()),
        ("payments_late", pa.int64()),
        ("contracts_settled", pa.int64()),
        ("score", pa.int64()),  # without debts and credit searches
        ("default_rate", pa.float64()),
        ("model", pa.string()),
        ("cursor", pa.string()),  # in the last row of each batch: where one can go on after it
    ]
)


async def extract(call: Call) -> Chunks:
    """GET /score/v1/extract."""
    require(call.identified(), EXTRACT)
    query = call.query()
    limit = read_limit(query, ROWS_MAX)
    rows = Rows(call.services.key, call.services.clock())
    after = rows.place(query["cursor"]) if "cursor" in query else _START
    await call.record(EVERYBODY, "extract", ANSWERED)
    arrow = ARROW in call.headers.get(b"accept", b"").decode("latin-1").lower()
    chunks = _arrow if arrow else _ndjson
    headers = [(b"content-type", (ARROW if arrow else NDJSON).encode())]
    return Chunks(200, chunks(_batches(call, rows, after, limit), call.request_id), headers)


class Rows:
    """Makes rows of profiles, and cursors of places, with the keys for both."""

    def __init__(self, key: bytes, now: int) -> None:
        """`key`: the score service's own; `now`: ns since 1970, by which ages are told."""
        self._pseudonyms = derived_key(key, b"razao.extract")
        self._cursors = AESGCM(derived_key(key, b"razao.cursor"))
        self._now = now

    def batch(self, profiles: Sequence[Profile]) -> pa.RecordBatch:
        """The rows of some profiles, scored at once."""
        people = rows_of(profiles, self._now)
        scores = score(people)
        columns: dict[str, Any] = {
            name: people[name] for name in ("credit_days", "payments_on_time", "payments_late", "contracts_settled")
        }
        today = day_of(self._now)
        fields = [one.fields for one in profiles]
        columns |= {
            "pseudonym": [self._pseudonym(one.person) for one in profiles],
            "age": [today.year - int(one["birth_date"][:4]) for one in fields],
            "state": [one.get("address", {}).get("state") for one in fields],
            "income_source": [one.get("income_source") for one in fields],
            "monthly_income": [one.get("monthly_income") for one in fields],
            "assets": [one.get("assets") for one in fields],
            "score": scores.score,
            "default_rate": scores.default_rate,
            "model": [MODEL] * len(profiles),
            "cursor": [None] * (len(profiles) - 1) + [self._cursor(profiles[-1].person)],
        }
        return pa.RecordBatch.from_arrays([pa.array(columns[one.name], one.type) for one in SCHEMA], schema=SCHEMA)

    def place(self, cursor: str) -> bytes:
        """The place that a cursor means.

        Raises:
            ProblemError: it is none of ours.
        """
        try:
            sealed = urlsafe_b64decode(cursor.encode("ascii"))
            if urlsafe_b64encode(sealed).decode() != cursor:
                raise ValueError("bits that decoding leaves out")  # noqa: TRY301 - as any other that is none of ours
            return self._cursors.decrypt(sealed[:_NONCE], sealed[_NONCE:], None)
        except (ValueError, InvalidTag):
            raise malformed("cursor", "This is no cursor of an extract") from None

    def _cursor(self, place: bytes) -> str:
        nonce = os.urandom(_NONCE)
        return urlsafe_b64encode(nonce + self._cursors.encrypt(nonce, place, None)).decode()

    def _pseudonym(self, person: bytes) -> str:
        return blake2b(person, digest_size=16, key=self._pseudonyms, person=b"razao.pseudonym").hexdigest()


async def _batches(call: Call, rows: Rows, after: bytes, limit: int) -> AsyncIterator[pa.RecordBatch]:
    """Ends early, between two batches, when the replica is to go or the time for one stream is over.

    Raises:
        ProblemError: the caller may not have any more; looked at before each batch.
    """
    draining: asyncio.Event | None = call.scope.get("razao.draining")
    while limit > 0 and time.monotonic() < call.deadline and not (draining and draining.is_set()):
        wanted = min(limit, _BATCH)
        page = await call.services.profiles.page(after, wanted)
        await call.reauthenticate()
        if page:
            yield rows.batch(page)
        if len(page) < wanted:
            return
        after = page[-1].person
        limit -= wanted


async def _arrow(batches: AsyncIterator[pa.RecordBatch], request_id: str) -> AsyncIterator[bytes]:
    """A problem that ends it is the metadata `problem` of a last batch without rows."""
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, SCHEMA) as writer:
        try:
            async for batch in batches:
                writer.write_batch(batch)
                yield _taken(sink)
        except ProblemError as problem:
            none = pa.RecordBatch.from_pylist([], schema=SCHEMA)
            writer.write_batch(none, custom_metadata={"problem": problem.body(request_id)})
    yield _taken(sink)


def _taken(sink: io.BytesIO) -> bytes:
    """What was written since the last time."""
    piece = sink.getvalue()
    sink.seek(0)
    sink.truncate()
    return piece


async def _ndjson(batches: AsyncIterator[pa.RecordBatch], request_id: str) -> AsyncIterator[bytes]:
    """A problem that ends it is the last line, as `{"problem": {…}}`."""
    try:
        async for batch in batches:
            yield b"".join(msgspec.json.encode(row) + b"\n" for row in batch.to_pylist())
    except ProblemError as problem:
        yield b'{"problem":%s}\n' % problem.body(request_id)
