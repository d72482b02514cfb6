"""The engine as `razao up` starts it without options: what is shipped is what is measured.

Its single transfers against the peer's; what it gets done when twenty times as many clients come as it needs, and
after they have gone; how fast what follows a transfer is beside the transfer; and what one caller who only asks for
refusals costs the others, and the disk.
"""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import asyncpg
import httpx
import numpy as np
import pyarrow as pa
import uvloop

from loadtests import traffic
from loadtests.bench_http import CLIENTS, Say, Side, fault, play, rate_row, ratio
from loadtests.generator import Report, merge, run
from loadtests.peers import runner
from loadtests.rows import DURABLE, Goal, Row
from loadtests.stacks import ACCOUNT_BALANCE, Engine, Stack, measure, razao

CROWD: Final = 1280
"""Clients of an overload: twenty times those that keep two cores busy."""

_PEOPLE: Final = 20
"""Clients of the look-ups, as in a trial with Locust."""

_OTHERS_RATE: Final = 500.0
"""Transfers a second of the others, beside the greedy one: a part of what the engine can do, so that they do not wait
for each other."""

_GREEDY_CLIENTS: Final = 16
_GREEDY_ROWS: Final = 100
_QUARTER_S: Final = 900.0
_MB: Final = 1e6

Payment = tuple[bytes, bytes, bytes]
"""Id, debit account, credit account, as text."""


def singles(shipped: Engine, accounts: list[str], *, rounds: int, seconds: float, say: Say) -> list[Row]:
    """Single transfers, 64 clients, random pairs, against the peer that takes row locks one after the other."""
    with ExitStack() as ends:
        data = Path(ends.enter_context(tempfile.TemporaryDirectory(prefix="razao-peer-")))
        say("starting the peer")
        function = ends.enter_context(runner.running(data / "postgres", shipped.jwks))
        function.add_accounts({int(account): "bench" for account in accounts}, ACCOUNT_BALANCE)
        plain = ends.enter_context(runner.beside(function, variant="statements"))
        peer = Stack("peer", plain.port, plain.pids, "/healthz")
        sides = [
            Side(
                stack.name,
                stack,
                traffic.transfers(shipped.host, shipped.token, traffic.random_pairs(accounts, seed=1)),
            )
            for stack in (shipped, peer)
        ]
        peer.stands_on(function.pids[0])  # idle, and held still with it
        play(sides, [shipped, peer], rounds=rounds, seconds=seconds, say=say)
    ours, theirs = sides
    return [rate_row("shipped", f"transfers, {CLIENTS} clients, random pairs, as shipped", ours, theirs, (ratio(6),))]


def overload(shipped: Engine, accounts: list[str], *, rounds: int, seconds: float, say: Say) -> list[Row]:
    """Goodput with few clients, with a crowd, and right afterwards with few again."""
    source = traffic.transfers(shipped.host, shipped.token, traffic.random_pairs(accounts, seed=2))
    steps = {"before": CLIENTS, "more": 4 * CLIENTS, "crowd": CROWD, "after": CLIENTS}
    seen: dict[str, list[Report]] = {name: [] for name in steps}
    for number in range(rounds):
        for name, clients in steps.items():
            # No pause and little warm-up: what the crowd leaves behind belongs to `after`.
            report = measure(shipped, source, connections=clients, seconds=seconds, warm_up=0.2)
            seen[name].append(report)
            say(
                f"round {number + 1}/{rounds}  {clients:5} clients {_goodput(report):8,.0f}/s  "
                f"p50 {report.percentile_ms(50):6.1f} ms  p99 {report.percentile_ms(99):6.1f} ms  {report.statuses}"
            )
        shipped.await_projection()
    totals = {name: merge(reports) for name, reports in seen.items()}
    done = {name: _goodput(total) for name, total in totals.items()}
    best = max(done.values())
    crowd, after = totals["crowd"], totals["after"]
    return [
        Row("shipped", f"goodput with {CROWD:,} clients, by the best with {CLIENTS} to {CROWD:,}", done["crowd"], "/s",
            DURABLE, (Goal("≥", 0.9, of_ratio=True),), best, "/s", _latencies(crowd), _unexpected(crowd)),
        Row("shipped", f"goodput with {CLIENTS} clients right afterwards, by that before", done["after"], "/s",
            DURABLE, (Goal("≥", 0.95, of_ratio=True),), done["before"], "/s", _latencies(after), _unexpected(after)),
    ]  # fmt: skip


def look_ups(shipped: Engine, accounts: list[str], *, rounds: int, seconds: float, say: Say) -> list[Row]:
    """What follows a transfer that was made a moment ago, beside the transfer itself."""
    pairs = traffic.random_pairs(accounts, seed=3)
    count = int(400 * seconds)
    seen: dict[str, list[Report]] = {name: [] for name in ("transfer", "get", "post", "void", "refund")}

    def go(name: str, source: Iterator[bytes]) -> None:
        report = uvloop.run(run(source, host="127.0.0.1", port=shipped.port, connections=_PEOPLE))
        if name:
            seen[name].append(report)
            say(f"{name:8}  {report.rate:8,.0f}/s  p50 {report.percentile_ms(50):6.1f} ms")
        elif report.failures:
            raise RuntimeError(f"what should be followed could not be made: {report.examples[:2]}")

    for _ in range(rounds):
        for name, hold in (("get", False), ("post", True), ("void", True), ("refund", False)):
            made = list(itertools.islice(_payments(pairs), count))
            go("" if hold else "transfer", _making(shipped, made, hold=hold))
            go(name, _following(shipped, made, name))
    transfer = merge(seen.pop("transfer"))
    p50 = transfer.percentile_ms(50)
    return [
        Row("shipped", f"{name} of a recent transfer, p50, {_PEOPLE} clients, by a transfer's", total.percentile_ms(50),
            "ms", DURABLE, (Goal("≤", 2, of_ratio=True),), p50, "ms",
            f"p99 {total.percentile_ms(99):.1f} against {transfer.percentile_ms(99):.1f} ms",
            fault(total) or fault(transfer))
        for name, total in ((name, merge(reports)) for name, reports in seen.items())
    ]  # fmt: skip


def greedy(shipped: Engine, accounts: list[str], *, seconds: float, say: Say) -> list[Row]:
    """One subject without a centavo asks for as many refusals as it can get, by batches, beside the others."""
    others = traffic.transfers(shipped.host, shipped.token, traffic.random_pairs(accounts, seed=4))
    # Its work is not the server's: it has a process of its own, at the lowest priority.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=os.nice, initargs=(19,)) as pool:
        alone = uvloop.run(_at_a_rate(shipped, others, seconds))
        wanting = pool.submit(_ask, _Wish(shipped, "greedy", accounts[0], seed=9).as_arguments(), 2 * seconds)
        time.sleep(seconds / 4)  # until it is at it
        beside = uvloop.run(_at_a_rate(shipped, others, seconds))
        asked = wanting.result()
        say(f"beside the greedy one: {asked}")
        shipped.await_projection()
        sizes = [asyncio.run(_kept_bytes(shipped.dsn))]
        again = _Wish(shipped, "greedy too", accounts[0], seed=10).as_arguments()
        for _ in range(2):  # with the burst, and after it
            asked = pool.submit(_ask, again, seconds).result()
            shipped.await_projection()
            sizes.append(asyncio.run(_kept_bytes(shipped.dsn)))
            say(f"alone: {asked}, {(sizes[-1][0] - sizes[-2][0]) / _MB:.1f} MB of rows")
    (before, _), (between, _), (after, files) = sizes
    first, then = (between - before) * files, (after - between) * files
    quarter = first + then / seconds * (_QUARTER_S - seconds)
    return [
        Row("shipped", f"p99 of others at {_OTHERS_RATE:.0f}/s beside one that asks for refusals, by that without it",
            beside.percentile_ms(99), "ms", DURABLE, (Goal("<", 2, of_ratio=True),), alone.percentile_ms(99), "ms",
            f"p50 {beside.percentile_ms(50):.1f} against {alone.percentile_ms(50):.1f} ms",
            fault(beside) or fault(alone)),
        Row("shipped", "disk that it takes in 15 minutes, journal and history, reckoned", quarter / _MB, "MB", DURABLE,
            (Goal("<", 100),), note=f"{first / _MB:.1f} MB in the first {seconds:.0f} s, {then / _MB:.1f} in the next"),
    ]  # fmt: skip


def _goodput(report: Report) -> float:
    done = sum(n for status, n in report.statuses.items() if 200 <= status < 300)
    return done / report.seconds if report.seconds else 0.0


def _latencies(report: Report) -> str:
    refused = report.statuses.get(429, 0)
    return f"p50 {report.percentile_ms(50):.1f}, p99 {report.percentile_ms(99):.1f} ms, {refused} answered 429"


def _unexpected(report: Report) -> str:
    """An overload may be answered by 429, and by nothing else."""
    others = {status: n for status, n in report.statuses.items() if not 200 <= status < 300 and status != 429}
    return f"{report.lost} lost, {others}: {report.examples[:1]}" if report.lost or others else ""


# -- look-ups ---------------------------------------------------------------------------------------------------------


def _payments(pairs: traffic.Pairs) -> Iterator[Payment]:
    for id_, (debit, credit) in zip(traffic.ids(), pairs, strict=False):
        yield id_ + traffic.slot(debit), debit, credit


def _making(shipped: Engine, payments: Sequence[Payment], *, hold: bool) -> Iterator[bytes]:
    more = b',"hold":true' if hold else b""
    for payment in payments:
        body = b'{"id":"%b","debit_account":"%b","credit_account":"%b","amount":5%b}' % (*payment, more)
        yield traffic.request("POST", "/v1/transfers", shipped.host, shipped.token, body)


def _following(shipped: Engine, payments: Sequence[Payment], what: str) -> Iterator[bytes]:
    """In the order in which they were made: the oldest is some seconds old."""
    for (id_, _, credit), fresh in zip(payments, traffic.ids(), strict=False):
        path = f"/v1/transfers/{id_.decode()}"
        if what == "get":
            yield traffic.request("GET", path, shipped.host, shipped.token)
        elif what == "refund":
            body = b'{"id":"%b%b","amount":5}' % (fresh, traffic.slot(credit))
            yield traffic.request("POST", f"{path}/refunds", shipped.host, shipped.token, body)
        else:
            yield traffic.request("POST", f"{path}/{what}", shipped.host, shipped.token, b"{}")


# -- the greedy one ---------------------------------------------------------------------------------------------------


class _Wish:
    """A subject that has an account with nothing in it."""

    def __init__(self, shipped: Engine, subject: str, payee: str, *, seed: int) -> None:
        scope = "ledger:read ledger:write"
        self._token = razao("token", "--sub", subject, "--scope", scope, "--data", str(shipped.data))
        owner = {"name": next(traffic.people(seed))["name"]}  # who has proven no tax id names none
        answer = httpx.post(
            f"http://{shipped.host}/v1/accounts",
            json={"owner": owner},
            headers={"Authorization": f"Bearer {self._token}"},
            trust_env=False,
            timeout=30,
        )
        answer.raise_for_status()
        self._port, self._host = shipped.port, shipped.host
        self._account, self._payee = int(answer.json()["id"]), int(payee)

    def as_arguments(self) -> tuple[int, str, str, int, int]:
        """For another process."""
        return self._port, self._host, self._token, self._account, self._payee


def _ask(wish: tuple[int, str, str, int, int], seconds: float) -> dict[str, Any]:
    """Batches of transfers that the account cannot pay, as fast as they are answered; how many, and with what."""
    port, host, token, account, payee = wish
    refused = 0

    def count(_: int, body: bytes) -> str | None:
        nonlocal refused
        refused += pa.ipc.open_stream(body).read_all().num_rows
        return None

    source = (_unpayable(host, token, account, payee) for _ in itertools.count())
    report = uvloop.run(
        run(source, host="127.0.0.1", port=port, connections=_GREEDY_CLIENTS, seconds=seconds, check=count)
    )
    return {"refused": refused, "statuses": report.statuses, "lost": report.lost}


def _unpayable(host: str, token: str, account: int, payee: int) -> bytes:
    payers = np.full(_GREEDY_ROWS, account, np.uint64)
    ids = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(16), _GREEDY_ROWS, [None, pa.py_buffer(traffic.id_block(payers))]
    )
    batch = pa.record_batch(
        {
            "id": ids,
            "debit_account": payers,
            "credit_account": np.full(_GREEDY_ROWS, payee, np.uint64),
            "amount": np.ones(_GREEDY_ROWS, np.int64),
        }
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return traffic.request("POST", "/v1/transfers/batch", host, token, sink.getvalue().to_pybytes(), traffic.ARROW)


async def _at_a_rate(shipped: Engine, source: Iterator[bytes], seconds: float) -> Report:
    return await run(
        source,
        host="127.0.0.1",
        port=shipped.port,
        connections=CLIENTS,
        seconds=seconds,
        warm_up_seconds=min(1.0, seconds / 4),
        rate=_OTHERS_RATE,
    )


_TABLES: Final = """
SELECT c.oid::regclass::text AS name, pg_total_relation_size(c.oid) AS size
FROM pg_class c WHERE c.relkind = 'r' AND c.relnamespace IN ('journal'::regnamespace, 'query'::regnamespace)
"""


async def _kept_bytes(dsn: str) -> tuple[int, float]:
    """Bytes of all rows of journal and history, and how many times as much their files take, indexes and free space
    too. How the files alone grow in some seconds says nothing: a vacuum that comes by cuts off their free ends."""
    connection = await asyncpg.connect(dsn)
    try:
        total = rows = 0
        for table in await connection.fetch(_TABLES):
            total += table["size"]
            rows += await connection.fetchval(f"SELECT coalesce(sum(pg_column_size(t.*)), 0) FROM {table['name']} t")
    finally:
        await connection.close()
    return rows, total / rows
