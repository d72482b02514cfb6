"""The generator's requests are valid: fresh ids, different accounts, lengths that fit, people who could exist."""

from __future__ import annotations

import itertools
import time
import uuid

import numpy as np
import orjson
import pyarrow as pa
from stdnum.br import cpf as oracle

from loadtests import traffic
from storage import ids as storage_ids

ACCOUNTS = [str(2**62 + n * 1111) for n in range(5)]


def lies_with(account: str, id_: str) -> bool:
    """Whether an id's last three digits are the slot of the account."""
    return int(id_[-3:], 16) == int(account) % 1024


def body_of(request: bytes) -> bytes:
    head, _, body = request.partition(b"\r\n\r\n")
    length = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length: "))
    assert int(length.split(b": ")[1]) == len(body)
    return body


def test_ids_are_different_uuid7s_of_now() -> None:
    made = list(itertools.islice(traffic.ids(), 10_000))
    assert len(set(made)) == 10_000
    now_ms = time.time_ns() // 1_000_000
    for stem in made[::500]:
        id_ = storage_ids.parse((stem + traffic.slot(b"5000")).decode())
        assert storage_ids.slot_of(id_) == 5000 % 1024
        assert storage_ids.version(id_) == 7
        assert now_ms - 60_000 <= id_[0] >> 16 <= now_ms


def test_a_block_of_ids_holds_different_uuid7s() -> None:
    payers = np.arange(2**60, 2**60 + 1000, dtype=np.uint64)
    block = traffic.id_block(payers)
    made = [uuid.UUID(bytes=block[at : at + 16]) for at in range(0, 16_000, 16)]
    assert len(set(made)) == 1000
    assert [id_.int & 0xFFF for id_ in made] == (payers % 1024).tolist()
    assert {(id_.version, id_.variant) for id_ in made} == {(7, uuid.RFC_4122)}


def test_a_transfer_is_whole_json_between_two_different_accounts() -> None:
    source = traffic.transfers("h:1", "a%token", traffic.random_pairs(ACCOUNTS, seed=3))
    for request in itertools.islice(source, 200):
        assert request.startswith(b"POST /v1/transfers HTTP/1.1\r\nHost: h:1\r\nAuthorization: Bearer a%token\r\n")
        body = orjson.loads(body_of(request))
        assert body["debit_account"] != body["credit_account"]
        assert {body["debit_account"], body["credit_account"]} <= set(ACCOUNTS)
        assert 1 <= body["amount"] <= 9
        assert lies_with(body["debit_account"], body["id"])


def test_every_hot_pair_has_the_first_account_on_one_side() -> None:
    pairs = list(itertools.islice(traffic.hot_pairs(ACCOUNTS, seed=1), 100))
    hot = ACCOUNTS[0].encode()
    assert all((debit == hot) != (credit == hot) for debit, credit in pairs)
    assert sum(debit == hot for debit, _ in pairs) == 50


def test_a_get_has_no_body() -> None:
    assert traffic.request("GET", "/x", "h:1") == b"GET /x HTTP/1.1\r\nHost: h:1\r\n\r\n"


def test_json_batches_hold_fresh_ids() -> None:
    batches = traffic.json_batches("h:1", "t", ACCOUNTS, rows=50, batches=3, seed=1)
    rows = [row for batch in batches for row in orjson.loads(body_of(batch))["transfers"]]
    assert len({row["id"] for row in rows}) == 150
    assert all(row["debit_account"] != row["credit_account"] for row in rows)
    assert all(lies_with(row["debit_account"], row["id"]) for row in rows)


def test_arrow_batches_hold_fresh_ids() -> None:
    batches = traffic.arrow_batches("h:1", "t", ACCOUNTS, rows=50, batches=3, seed=1)
    rows = [row for batch in batches for row in pa.ipc.open_stream(body_of(batch)).read_all().to_pylist()]
    assert len({row["id"] for row in rows}) == 150
    assert all(row["debit_account"] != row["credit_account"] for row in rows)
    assert {str(row["debit_account"]) for row in rows} <= set(ACCOUNTS)
    assert all(lies_with(row["debit_account"], row["id"].hex()) for row in rows)


def test_people_have_different_valid_cpfs() -> None:
    made = list(itertools.islice(traffic.people(seed=5), 500))
    assert len({person["tax_id"] for person in made}) == 500
    assert all(oracle.is_valid(person["tax_id"]) for person in made)
    assert traffic.cpf(111_222_333) == "11122233396"


def test_a_batch_counts_only_when_every_row_is_settled() -> None:
    def arrow(statuses: list[str]) -> bytes:
        sink = pa.BufferOutputStream()
        batch = pa.record_batch({"status": statuses})
        with pa.ipc.new_stream(sink, batch.schema) as writer:
            writer.write_batch(batch)
        return bytes(sink.getvalue())

    def json(statuses: list[str]) -> bytes:
        return orjson.dumps({"results": [{"id": str(n), "status": status} for n, status in enumerate(statuses)]})

    for check, answer in ((traffic.check_arrow_batch(3), arrow), (traffic.check_json_batch(3), json)):
        assert check(200, answer(["settled"] * 3)) is None
        assert "2 of 3 settled" in (check(200, answer(["settled", "refused", "settled"])) or "")
        assert "2 of 3 settled" in (check(200, answer(["settled"] * 2)) or "")
