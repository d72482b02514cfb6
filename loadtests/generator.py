"""A lean HTTP/1.1 load generator that shares two cores with what it measures.

One asyncio protocol per keep-alive connection, closed loop: the next request leaves when the answer is whole. Requests
come as ready bytes from an iterator (`loadtests/traffic.py` has some), answers are parsed only as far as status and
length need it, latencies go into a preallocated log-linear histogram. The same generator serves every side of a
comparison, so its own cost (about 20 µs a request, reported as `cpu_us`) weighs on all of them alike.

A closed loop hides queueing that an open one would see: read the percentiles as "with N clients that wait".
"""

from __future__ import annotations

import asyncio
import ssl
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
import orjson
import typer
import uvloop

from loadtests import traffic

EXAMPLES_MAX: Final = 10
"""So many answers that were not 2xx are kept."""

_SUB_BITS: Final = 7
_SUB: Final = 1 << _SUB_BITS
_BUCKETS: Final = (64 - _SUB_BITS) * _SUB
_EXAMPLE_BYTES: Final = 300
_TWO: Final = ord("2")
_RECONNECT_PAUSE_S: Final = 0.05

Check = Callable[[int, bytes], str | None]
"""Looks at a 2xx answer (status, body) and says what is wrong with it, or None."""


class Malformed(Exception):  # noqa: N818 - the field's own term
    """The server's bytes are no HTTP answer that this parser knows."""


@dataclass
class Report:
    """What one run, or several merged ones, saw. Times in seconds unless the name says otherwise."""

    requests: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    statuses: dict[int, int] = field(default_factory=dict)
    lost: int = 0  # no answer: connection refused, closed in between, malformed, or silent until the end
    wrong: int = 0  # 2xx, but the check found fault with it
    warm_up_requests: int = 0
    warm_up_failures: int = 0
    max_ns: int = 0
    examples: list[str] = field(default_factory=list)
    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(_BUCKETS, np.int64), repr=False)

    @property
    def rate(self) -> float:
        """Answered requests per second."""
        return self.requests / self.seconds if self.seconds else 0.0

    @property
    def failures(self) -> int:
        """Everything that was not a right 2xx answer, the warm-up included."""
        non_2xx = sum(n for status, n in self.statuses.items() if not 200 <= status < 300)
        return non_2xx + self.lost + self.wrong + self.warm_up_failures

    @property
    def cpu_us(self) -> float:
        """CPU that the generator itself spent on one request, µs (warm-up left out)."""
        return self.cpu_seconds / self.requests * 1e6 if self.requests else 0.0

    def percentile_ms(self, percent: float) -> float:
        """The latency that `percent` of the answers did not exceed, in ms, at most 1 % too high."""
        total = int(self.counts.sum())
        if not total:
            return 0.0
        bucket = int(np.searchsorted(np.cumsum(self.counts), max(1, -(-total * percent // 100))))
        return min(_bucket_end(bucket), self.max_ns) / 1e6

    def as_dict(self) -> dict[str, Any]:
        """Everything but the histogram, for JSON."""
        return {
            "requests": self.requests,
            "seconds": round(self.seconds, 4),
            "rate": round(self.rate, 1),
            "p50_ms": round(self.percentile_ms(50), 3),
            "p95_ms": round(self.percentile_ms(95), 3),
            "p99_ms": round(self.percentile_ms(99), 3),
            "max_ms": round(self.max_ns / 1e6, 3),
            "cpu_us": round(self.cpu_us, 1),
            "statuses": {str(status): n for status, n in sorted(self.statuses.items())},
            "lost": self.lost,
            "wrong": self.wrong,
            "warm_up_failures": self.warm_up_failures,
            "examples": self.examples,
        }


def merge(reports: Iterable[Report]) -> Report:
    """One report over several runs: counts and times are added, percentiles are over all of them."""
    total = Report()
    statuses: Counter[int] = Counter()
    for report in reports:
        total.requests += report.requests
        total.seconds += report.seconds
        total.cpu_seconds += report.cpu_seconds
        total.lost += report.lost
        total.wrong += report.wrong
        total.warm_up_requests += report.warm_up_requests
        total.warm_up_failures += report.warm_up_failures
        total.max_ns = max(total.max_ns, report.max_ns)
        total.counts += report.counts
        total.examples += report.examples[: EXAMPLES_MAX - len(total.examples)]
        statuses.update(report.statuses)
    total.statuses = dict(statuses)
    return total


def _bucket(ns: int) -> int:
    """The histogram's bucket of a latency: 128 steps for every power of two, so 1 % wide or finer."""
    shift = ns.bit_length() - _SUB_BITS - 1
    if shift <= 0:
        return ns
    return (shift << _SUB_BITS) + (ns >> shift)


def _bucket_end(bucket: int) -> int:
    """The largest latency, ns, that falls into `bucket`."""
    shift = (bucket >> _SUB_BITS) - 1
    if shift <= 0:
        return bucket
    return ((bucket - (shift << _SUB_BITS) + 1) << shift) - 1


class _Phase:
    """Warm-up or measurement: what was sent in it is tallied here, whenever the answer comes."""

    __slots__ = ("begun", "counts", "ended", "examples", "left", "lost", "max_ns", "statuses", "until", "view", "wrong")

    def __init__(self, requests: int | None, seconds: float | None) -> None:
        self.left = sys.maxsize if requests is None else requests
        self.until = sys.maxsize if seconds is None else int(seconds * 1e9)  # a span; a moment once begun
        self.counts = np.zeros(_BUCKETS, np.int64)
        self.view = self.counts.data  # half the cost of indexing the array
        self.statuses: dict[bytes, int] = {}
        self.examples: list[str] = []
        self.lost = 0
        self.wrong = 0
        self.max_ns = 0
        self.begun = 0
        self.ended = 0

    def begin(self, now: int) -> None:
        self.begun = self.ended = now
        if self.until != sys.maxsize:
            self.until += now

    def keep(self, example: str) -> None:
        if len(self.examples) < EXAMPLES_MAX:
            self.examples.append(example)

    def lose(self, why: str, now: int) -> None:
        self.lost += 1
        self.ended = max(self.ended, now)
        self.keep(why)


class _Run:
    """What the connections of one run share: the source of requests, the current phase and the end."""

    def __init__(
        self, source: Iterator[bytes], phases: list[_Phase], connections: int, check: Check | None, rate: float | None
    ) -> None:
        self.source = source
        self.interval_ns = 0 if rate is None else int(1e9 / rate)
        self.due = 0  # when the next request is to be sent, if at a rate
        self.check = check
        self.pending = phases[1:]
        self.phase = phases[0]
        self.phases = phases
        self.active = connections
        self.cpu_begun = time.process_time()
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.due = time.perf_counter_ns()
        self.phase.begin(self.due)

    def take(self, now: int) -> bytes | None:
        """The next request to send, or None when there is nothing more to send."""
        phase = self.phase
        while phase.left <= 0 or now >= phase.until:
            if not self.pending:
                return None
            self.phase = phase = self.pending.pop(0)
            self.cpu_begun = time.process_time()
            phase.begin(now)
        request = next(self.source, None)
        if request is None:
            self.pending.clear()
            phase.left = 0
            return None
        phase.left -= 1
        return request

    def leave(self) -> None:
        self.active -= 1
        if self.active == 0 and not self.done.done():
            self.done.set_result(None)

    def fail(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)

    async def finish(self, silence_s: float) -> None:
        """Return when every connection is done, or when no answer has come to any of them for `silence_s`."""
        seen = -1
        while not self.done.done():
            await asyncio.wait([self.done], timeout=silence_s)
            ended = max(phase.ended for phase in self.phases)
            if ended == seen:
                return
            seen = ended
        self.done.result()


class _Connection(asyncio.Protocol):
    """One client: sends, waits for the whole answer, sends the next."""

    __slots__ = ("chunks", "closed", "gone", "missing", "phase", "run", "started", "transport", "waiting")

    def __init__(self, run: _Run, gone: asyncio.Future[None]) -> None:
        self.run = run
        self.gone = gone  # set when the connection is lost
        self.phase = run.phase
        self.chunks: list[bytes] = []  # of an answer that came in pieces
        self.missing = 0  # bytes of a body whose length is known
        self.started = 0
        self.waiting = False
        self.closed = False
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment] # a stream transport: see create_connection
        try:
            self.send(time.perf_counter_ns())
        except Exception as error:  # noqa: BLE001
            self.run.fail(error)

    def send(self, now: int) -> None:
        run = self.run
        request = run.take(now)
        if request is None:
            self.closed = True
            self.transport.close()
            return
        self.phase = run.phase
        self.waiting = True
        if not run.interval_ns:
            self.write(request, time.perf_counter_ns())
            return
        # Late or not, its time counts from when it was due: a server that stands still must not slow the counting down.
        due = run.due
        run.due += run.interval_ns
        wait_s = (due - time.perf_counter_ns()) / 1e9
        if wait_s > 0:
            asyncio.get_running_loop().call_later(wait_s, self.write, request, due)
        else:
            self.write(request, due)

    def write(self, request: bytes, started: int) -> None:
        self.started = started
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        if self.missing:
            self.chunks.append(data)
            self.missing -= len(data)
            if self.missing > 0:
                return
            data = b"".join(self.chunks)
            self.chunks.clear()
            missing, self.missing = self.missing, 0
        else:
            if self.chunks:
                data = b"".join(self.chunks) + data
                self.chunks.clear()
            missing = self.frame(data)
            if missing > 0:
                return
        if missing < 0 or not self.waiting:
            self.abandon(f"bytes that belong to no answer: {data[:80]!r}")
            return
        now = time.perf_counter_ns()
        try:
            self.answered(data, now)
            if data.find(b"onnection: close\r\n", 0, 400) >= 0:
                self.transport.close()  # the server's wish; `_client` opens another one
            else:
                self.send(now)
        except Exception as error:  # noqa: BLE001 - a fault in a source or a check: told to the caller of `run`
            self.run.fail(error)

    def frame(self, data: bytes) -> int:
        """How many bytes are missing of the answer that `data` begins with; when > 0, `data` was put aside."""
        end = data.find(b"\r\n\r\n")
        if end < 0:
            self.chunks.append(data)
            return 1
        try:
            missing = _missing(data, end)
        except (Malformed, ValueError) as error:
            self.abandon(f"malformed: {error}: {data[:80]!r}")
            return 1
        if missing is None:  # chunked, and not at its end: look again with the next piece
            self.chunks.append(data)
            return 1
        if missing > 0:
            self.chunks.append(data)
            self.missing = missing
        return missing

    def answered(self, data: bytes, now: int) -> None:
        phase = self.phase
        self.waiting = False
        latency = now - self.started
        phase.view[_bucket(latency)] += 1
        phase.max_ns = max(phase.max_ns, latency)
        phase.ended = now
        status = data[9:12]
        phase.statuses[status] = phase.statuses.get(status, 0) + 1
        if status[0] != _TWO:
            body = data[data.find(b"\r\n\r\n") + 4 :]
            phase.keep(f"{status.decode()} {body[:_EXAMPLE_BYTES].decode(errors='replace')}")
        elif self.run.check is not None:
            fault = self.run.check(int(status), data[data.find(b"\r\n\r\n") + 4 :])
            if fault is not None:
                phase.wrong += 1
                phase.keep(fault)

    def abandon(self, why: str) -> None:
        if self.waiting:
            self.waiting = False
            self.phase.lose(why, time.perf_counter_ns())
        self.chunks.clear()
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.waiting:
            self.waiting = False
            self.phase.lose(f"connection lost: {exc or 'closed by the server'}", time.perf_counter_ns())
        if not self.gone.done():
            self.gone.set_result(None)


def _missing(data: bytes, end: int) -> int | None:
    """How many bytes the answer in `data`, whose header ends at `end`, still lacks; None = chunked and unfinished."""
    if not data.startswith(b"HTTP/1."):
        raise Malformed("no HTTP/1 status line")
    at = data.find(b"\r\ncontent-length: ", 0, end)
    if at >= 0:
        stop = data.find(b"\r\n", at + 18)
        return end + 4 + int(data[at + 18 : stop]) - len(data)
    head = data[:end].lower() + b"\r\n"
    at = head.find(b"\r\ncontent-length:")
    if at >= 0:
        return end + 4 + int(head[at + 17 : head.find(b"\r\n", at + 17)]) - len(data)
    if b"\r\ntransfer-encoding: chunked\r\n" in head:
        return _chunked_missing(data, end + 4)
    if data[9:12] in {b"204", b"304"}:
        return end + 4 - len(data)
    raise Malformed("neither content-length nor chunked")


def _chunked_missing(data: bytes, at: int) -> int | None:
    """0 when the chunked body from `at` on is whole, negative when bytes follow it, None when it is not whole."""
    while True:
        stop = data.find(b"\r\n", at)
        if stop < 0:
            return None
        size = int(data[at:stop].partition(b";")[0], 16)
        if size == 0:
            trailer = data.find(b"\r\n\r\n", stop)
            return None if trailer < 0 else trailer + 4 - len(data)
        at = stop + 2 + size + 2
        if at > len(data):
            return None


async def _client(run: _Run, host: str, port: int, tls: ssl.SSLContext | None) -> None:
    """Keep one connection up until there is nothing more to send."""
    loop = asyncio.get_running_loop()
    try:
        while True:
            gone: asyncio.Future[None] = loop.create_future()
            try:
                _, connection = await loop.create_connection(lambda: _Connection(run, gone), host, port, ssl=tls)  # noqa: B023
            except OSError as error:
                # The request that could not be sent counts: a dead server must end a run of N requests.
                if run.take(time.perf_counter_ns()) is None:
                    return
                run.phase.lose(f"no connection: {error}", time.perf_counter_ns())
                await asyncio.sleep(_RECONNECT_PAUSE_S)
                continue
            try:
                await gone
            finally:
                connection.abandon("no answer until the end")
            if connection.closed:
                return
    except Exception as error:  # noqa: BLE001
        run.fail(error)
    finally:
        run.leave()


async def run(
    source: Iterable[bytes],
    *,
    host: str,
    port: int,
    connections: int = 64,
    requests: int | None = None,
    seconds: float | None = None,
    warm_up_requests: int = 0,
    warm_up_seconds: float = 0.0,
    check: Check | None = None,
    drain_seconds: float = 30.0,
    rate: float | None = None,
    tls: ssl.SSLContext | None = None,
) -> Report:
    """Send what `source` yields over `connections` keep-alive connections; returns what came back.

    Each connection sends its next request when the last was answered, or when its turn comes at `rate` requests a
    second in all; then a latency counts from the moment when the request was due.

    Ends after `requests` answers or after `seconds`, whichever is given and comes first, or when `source` is exhausted.
    Every request is tallied in the phase in which it was sent. After the end, answers on their way are waited for up to
    `drain_seconds`; what has not come then is lost.

    Raises:
        Exception: whatever `source` or `check` raised.
    """
    phases = [_Phase(requests, seconds)]
    if warm_up_requests or warm_up_seconds:
        phases.insert(0, _Phase(warm_up_requests or None, warm_up_seconds or None))
    run_ = _Run(iter(source), phases, connections, check, rate)
    clients = [asyncio.create_task(_client(run_, host, port, tls)) for _ in range(connections)]
    try:
        await run_.finish(drain_seconds)
    finally:
        cpu_seconds = time.process_time() - run_.cpu_begun
        for client in clients:
            client.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
    return _report(phases, cpu_seconds)


def _report(phases: list[_Phase], cpu_seconds: float) -> Report:
    measured = phases[-1]
    report = Report(
        requests=int(measured.counts.sum()),
        seconds=(measured.ended - measured.begun) / 1e9,
        cpu_seconds=cpu_seconds,
        statuses={int(status): n for status, n in measured.statuses.items()},
        lost=measured.lost,
        wrong=measured.wrong,
        max_ns=measured.max_ns,
        examples=measured.examples,
        counts=measured.counts,
    )
    for phase in phases[:-1]:
        refused = sum(n for status, n in phase.statuses.items() if status[0] != _TWO)
        report.warm_up_requests += sum(phase.statuses.values())
        report.warm_up_failures += refused + phase.lost + phase.wrong
        report.examples += phase.examples[: EXAMPLES_MAX - len(report.examples)]
    return report


app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)

Url = Annotated[str, typer.Argument(help="Where to send: http://HOST:PORT, or with a path for `get`.")]
Connections = Annotated[int, typer.Option(help="Keep-alive connections, each with one request at a time.", min=1)]
Seconds = Annotated[float, typer.Option(help="How long to measure.")]
WarmUp = Annotated[float, typer.Option(help="Seconds of load before the measurement.")]
Token = Annotated[str, typer.Option(help="Bearer token.", envvar="RAZAO_TOKEN")]
Accounts = Annotated[Path, typer.Option(help="File of account ids, one a line.", exists=True)]


def _go(url: str, source: Iterable[bytes], **options: Any) -> None:
    """Run, print the report as JSON, and exit 1 when anything failed."""
    parts = urlsplit(url)
    report = uvloop.run(run(source, host=parts.hostname or "127.0.0.1", port=parts.port or 80, **options))
    print(orjson.dumps(report.as_dict(), option=orjson.OPT_INDENT_2).decode())
    raise typer.Exit(1 if report.failures else 0)


@app.command()
def get(url: Url, connections: Connections = 64, seconds: Seconds = 5, warm_up: WarmUp = 1, token: Token = "") -> None:
    """One GET over and over: a constant route, a balance."""
    parts = urlsplit(url)
    source = traffic.repeat(traffic.request("GET", parts.path or "/", parts.netloc, token))
    _go(url, source, connections=connections, seconds=seconds, warm_up_seconds=warm_up)


@app.command()
def transfers(
    url: Url,
    accounts: Accounts,
    connections: Connections = 64,
    seconds: Seconds = 5,
    warm_up: WarmUp = 1,
    token: Token = "",
    hot: Annotated[bool, typer.Option(help="Every transfer debits or credits the file's first account.")] = False,
) -> None:
    """Single transfers between accounts, on random pairs or on a hot account."""
    pairs = traffic.hot_pairs if hot else traffic.random_pairs
    source = traffic.transfers(urlsplit(url).netloc, token, pairs(accounts.read_text().split(), seed=1))
    _go(url, source, connections=connections, seconds=seconds, warm_up_seconds=warm_up)


@app.command()
def batches(
    url: Url,
    accounts: Accounts,
    connections: Connections = 2,
    count: Annotated[int, typer.Option(help="Batches to send.")] = 50,
    rows: Annotated[int, typer.Option(help="Transfers in a batch.")] = 8190,
    arrow: Annotated[bool, typer.Option(help="Arrow streams instead of JSON.")] = False,
    token: Token = "",
) -> None:
    """Batches of transfers, built beforehand; the rate is of batches."""
    make = traffic.arrow_batches if arrow else traffic.json_batches
    check = traffic.check_arrow_batch if arrow else traffic.check_json_batch
    source = make(urlsplit(url).netloc, token, accounts.read_text().split(), rows=rows, batches=count, seed=1)
    _go(url, source, connections=connections, check=check(rows))


if __name__ == "__main__":
    app()
