"""Ready request bytes for the load generator: single transfers, batches, accounts, deposits.

Everything that stays the same is formatted once; a request splices in a fresh UUIDv7 that ends in its payer's slot, two
accounts and an amount.
Choices (pairs, amounts, people) are seeded, ids are not: an id must never come twice in the life of a ledger.
"""

from __future__ import annotations

import itertools
import os
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from storage.events import SLOTS

JSON: Final = "application/json"
ARROW: Final = "application/vnd.apache.arrow.stream"

Pairs = Iterator[tuple[bytes, bytes]]
"""Endless (debit account, credit account), as digits."""

_BLOCK: Final = 4096


def request(method: str, path: str, host: str, token: str = "", body: bytes = b"", content_type: str = JSON) -> bytes:
    """One whole HTTP/1.1 request."""
    head = _head(method, path, host, token, content_type)
    return (head % len(body) + body) if body or method != "GET" else head.partition(b"Content-Type")[0] + b"\r\n"


def _head(method: str, path: str, host: str, token: str, content_type: str = JSON) -> bytes:
    """A request's header with a `%d` where the body's length goes."""
    authorization = f"Authorization: Bearer {token}\r\n" if token else ""
    text = (
        f"{method} {path} HTTP/1.1\r\nHost: {host}\r\n{authorization}Content-Type: {content_type}\r\nContent-Length: "
    )
    return text.encode().replace(b"%", b"%%") + b"%d\r\n\r\n"


def repeat(request_bytes: bytes) -> Iterator[bytes]:
    """The same request for ever."""
    return itertools.repeat(request_bytes)


def ids() -> Iterator[bytes]:
    """Fresh UUIDv7s as text but for the last three digits, which `slot` gives; their time at most some thousand ids
    old."""
    while True:
        now = f"{time.time_ns() // 1_000_000:012x}"
        head = f"{now[:8]}-{now[8:]}-7".encode()
        digits = os.urandom(8 * _BLOCK).hex().encode()
        for at in range(0, 16 * _BLOCK, 16):
            yield b"%b%b-8%b-%b" % (head, digits[at : at + 3], digits[at + 3 : at + 6], digits[at + 6 : at + 15])


@lru_cache(maxsize=1 << 20)
def slot(account: bytes) -> bytes:
    """The last three digits of the id of what this account pays (or gets as a deposit)."""
    return b"%03x" % (int(account) % SLOTS)


def random_pairs(accounts: Sequence[str], seed: int) -> Pairs:
    """Two different accounts, every pair as likely as any other."""
    names = [account.encode() for account in accounts]
    rng = np.random.default_rng(seed)
    while True:
        debits, credits_ = _different(rng, len(names), _BLOCK)
        for debit, credit in zip(debits.tolist(), credits_.tolist(), strict=True):
            yield names[debit], names[credit]


def hot_pairs(accounts: Sequence[str], seed: int) -> Pairs:
    """The first account is on one side of every transfer: it pays and is paid in turn."""
    names = [account.encode() for account in accounts]
    hot, others = names[0], names[1:]
    rng = random.Random(seed)
    while True:
        yield hot, rng.choice(others)
        yield rng.choice(others), hot


def transfers(host: str, token: str, pairs: Pairs, path: str = "/v1/transfers") -> Iterator[bytes]:
    """POSTs of 1 to 9 centavos between `pairs`, for ever."""
    head = _head("POST", path, host, token)
    body = b'{"id":"%b%b","debit_account":"%b","credit_account":"%b","amount":%d}'
    amounts = itertools.cycle(range(1, 10))
    for id_, (debit, credit), amount in zip(ids(), pairs, amounts, strict=False):
        text = body % (id_, slot(debit), debit, credit, amount)
        yield head % len(text) + text


def json_batches(host: str, token: str, accounts: Sequence[str], *, rows: int, batches: int, seed: int) -> list[bytes]:
    """`batches` requests of `rows` transfers each, as JSON."""
    pairs, fresh = random_pairs(accounts, seed), ids()
    row = b'{"id":"%b%b","debit_account":"%b","credit_account":"%b","amount":1}'
    some = (itertools.islice(pairs, rows) for _ in range(batches))
    bodies = (
        b'{"transfers":[%b]}' % b",".join(row % (next(fresh), slot(debit), debit, credit) for debit, credit in between)
        for between in some
    )
    return [request("POST", "/v1/transfers/batch", host, token, body) for body in bodies]


def arrow_batches(host: str, token: str, accounts: Sequence[str], *, rows: int, batches: int, seed: int) -> list[bytes]:
    """`batches` requests of `rows` transfers each, as Arrow streams."""
    rng = np.random.default_rng(seed)
    numbers = np.array([int(account) for account in accounts], np.uint64)
    return [
        request("POST", "/v1/transfers/batch", host, token, _arrow_body(rng, numbers, rows), ARROW)
        for _ in range(batches)
    ]


def _arrow_body(rng: np.random.Generator, accounts: npt.NDArray[np.uint64], rows: int) -> bytes:
    debits, credits_ = _different(rng, len(accounts), rows)
    payers = accounts[debits]
    batch = pa.record_batch(
        {
            "id": pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), rows, [None, pa.py_buffer(id_block(payers))]),
            "debit_account": payers,
            "credit_account": accounts[credits_],
            "amount": np.ones(rows, np.int64),
        }
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    body: bytes = sink.getvalue().to_pybytes()
    return body


def id_block(payers: npt.NDArray[np.uint64]) -> bytes:
    """Fresh UUIDv7s, 16 bytes each, in the slots of the accounts that pay (or get deposits): (n,)."""
    rows = len(payers)
    block = np.frombuffer(bytearray(os.urandom(16 * rows)), np.uint8).reshape(rows, 16)
    block[:, :6] = np.frombuffer((time.time_ns() // 1_000_000).to_bytes(6, "big"), np.uint8)
    block[:, 6] = block[:, 6] & 0x0F | 0x70
    block[:, 8] = block[:, 8] & 0x3F | 0x80
    slots = payers % np.uint64(SLOTS)
    block[:, 14] = block[:, 14] & 0xF0 | (slots >> np.uint64(8)).astype(np.uint8)
    block[:, 15] = (slots & np.uint64(0xFF)).astype(np.uint8)
    return block.tobytes()


def _different(rng: np.random.Generator, n: int, rows: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Two columns of indices below `n` that differ in every row."""
    first = rng.integers(0, n, rows)
    return first, (first + rng.integers(1, n, rows)) % n


def check_json_batch(rows: int) -> Callable[[int, bytes], str | None]:
    """A check for the generator: every row of the answer must be settled."""

    def check(_: int, body: bytes) -> str | None:
        settled = body.count(b'"settled"')
        return None if settled == rows else f"{settled} of {rows} settled: {body[:300]!r}"

    return check


def check_arrow_batch(rows: int) -> Callable[[int, bytes], str | None]:
    """A check for the generator: every row of the answer must be settled."""

    def check(_: int, body: bytes) -> str | None:
        statuses = pa.ipc.open_stream(body).read_all().column("status")
        settled = pc.sum(pc.equal(statuses, "settled")).as_py()
        return None if settled == rows else f"{settled} of {rows} settled: {statuses.slice(0, 5)}"

    return check


def cpf(number: int) -> str:
    """The CPF whose first nine digits are `number`, with its check digits."""
    digits = [int(digit) for digit in f"{number:09d}"]
    for length in (10, 11):
        rest = sum(digit * weight for digit, weight in zip(digits, range(length, 1, -1), strict=True)) % 11
        digits.append(0 if rest < 2 else 11 - rest)
    return "".join(map(str, digits))


def people(seed: int) -> Iterator[dict[str, Any]]:
    """Owners for `POST /v1/accounts`, every one with another valid CPF."""
    start = random.Random(seed).randrange(100_000_000)
    for number in itertools.count(start):
        if len(set(f"{number:09d}")) > 1:  # one repeated digit passes the arithmetic but is nobody
            yield {"tax_id": cpf(number), "name": f"Load Test {number}"}


def openings(host: str, token: str, count: int, seed: int) -> Iterator[bytes]:
    """POSTs that open `count` accounts, each of another person."""
    for id_, owner in zip(ids(), itertools.islice(people(seed), count), strict=False):
        body = orjson.dumps({"id": f"{id_.decode()}000", "owner": owner})
        yield request("POST", "/v1/accounts", host, token, body)


def deposits(host: str, token: str, accounts: Iterable[str], amount: int) -> Iterator[bytes]:
    """POSTs that pay `amount` centavos into each account."""
    for id_, account in zip(ids(), accounts, strict=False):
        body = orjson.dumps({"id": (id_ + slot(account.encode())).decode(), "account": account, "amount": amount})
        yield request("POST", "/v1/deposits", host, token, body)
