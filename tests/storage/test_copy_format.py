"""Binary COPY: what NumPy assembles is what PostgreSQL reads."""

from __future__ import annotations

import asyncpg
import numpy as np
import pytest

from storage import copy_format

ROW = np.dtype([("number", np.int64), ("id", np.uint64, 2), ("small", np.int16), ("account", np.uint64)])
TABLE = "CREATE TABLE t (number bigint, id uuid, small smallint, account bigint, note bytea)"


def _rows(count: int) -> copy_format.Rows:
    rng = np.random.default_rng(7)
    rows = np.zeros(count, ROW)
    rows["number"] = rng.integers(-(2**63), 2**63 - 1, count)
    rows["id"] = rng.integers(0, 2**64 - 1, (count, 2), dtype=np.uint64)
    rows["small"] = rng.integers(-(2**15), 2**15 - 1, count)
    rows["account"] = rng.integers(0, 2**63 - 1, count)
    return rows


@pytest.mark.parametrize("size", [1, 7, 1 << 19])
@pytest.mark.parametrize("noted", [False, True])
async def test_every_value_arrives_as_it_was(database: str, size: int, noted: bool) -> None:
    rows = _rows(1000)
    notes = [None if n % 3 else bytes([n % 256]) * (n % 40) for n in range(1000)] if noted else None
    connection = await asyncpg.connect(database)
    try:
        await connection.execute(TABLE)
        columns = [*(rows.dtype.names or ()), *(["note"] if noted else [])]
        stream = copy_format.source(copy_format.encode(rows, notes), size)
        await connection.copy_to_table("t", source=stream, columns=columns, format="binary")
        found = await connection.fetch("SELECT * FROM t")
    finally:
        await connection.close()
    assert [row["number"] for row in found] == rows["number"].tolist()
    assert [row["id"].int for row in found] == [high << 64 | low for high, low in rows["id"].tolist()]
    assert [row["small"] for row in found] == rows["small"].tolist()
    assert [row["account"] for row in found] == rows["account"].tolist()
    assert [row["note"] for row in found] == (notes or [None] * 1000)
