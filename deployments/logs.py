"""What an application writes about itself: lines of JSON with the request's number, and nobody's personal data.

`configure` gives the process one handler. Its lines carry the application, the number of the request at hand and the
number of the request that it was made for (`X-Correlation-Id`), by which a chain of requests through several services
is found again. Whatever looks like a tax id or a secret is masked in every line, also in those of libraries and in
tracebacks: where a line comes from a place that nobody thought of, that is the last net.

    {"at": "2026-11-22T10:00:00.123Z", "level": "INFO", "logger": "…", "application": "vault", "request_id": "…",
     "correlation_id": "…", "message": "access", "method": "GET", "route": "/vault/v1/person", "status": 403, …}
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import Any, Final

from starlette.types import Scope
from validate_docbr import CNPJ, CPF

from deployments.request import correlation_of

_MASK: Final = "***"
REFUSALS: Final = frozenset({401, 403})
_REFUSALS_MAX: Final = 50
"""Lines a second and replica, where only refusals are written."""
_CPF: Final = CPF(repeated_digits=True)
_CNPJ: Final = CNPJ()
_SEPARATOR: Final = r"(?:[.\s]|%2E)?"
_WRITTEN: Final = re.compile(  # a CPF or CNPJ with its punctuation, also where an address has quoted it
    rf"(?<![0-9])[0-9]{{3}}{_SEPARATOR}[0-9]{{3}}{_SEPARATOR}[0-9]{{3}}(?:-|%2D)[0-9]{{2}}(?![0-9])"
    rf"|(?<![0-9A-Z])[0-9A-Z]{{2}}{_SEPARATOR}[0-9A-Z]{{3}}{_SEPARATOR}[0-9A-Z]{{3}}(?:/|%2F)[0-9A-Z]{{4}}(?:-|%2D)?"
    r"[0-9]{2}(?![0-9])",
    re.ASCII | re.IGNORECASE,
)
_PLAIN: Final = re.compile(r"(?<![0-9])(?:[0-9]{14}|[0-9]{11})(?![0-9])", re.ASCII)
_ALPHANUMERIC: Final = re.compile(r"(?<![0-9A-Za-z])[0-9A-Za-z]{12}[0-9]{2}(?![0-9A-Za-z])", re.ASCII)
_SECRETS: Final = (
    (re.compile(r"\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{6,}", re.IGNORECASE), rf"\1 {_MASK}"),
    (re.compile(r"\beyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*"), _MASK),  # a JWT anywhere
    (re.compile(r"\brz[a-z]_[A-Za-z0-9_-]{16,}"), _MASK),  # our own client secrets and refresh tokens
    (re.compile(r"(://)[^/\s:@]*:[^/\s@]+@"), rf"\1{_MASK}@"),  # a login within an address
    (
        re.compile(
            r"((?:[a-z_-]*(?:password|secret|token|verifier|private_key)|authorization|razao-gateway)"
            r"[\"']*\s*[=:,]\s*b?)(?!\*)(?:\"[^\"]*\"|'[^']*'|[^\s\"'&,;}\])]+)",
            re.IGNORECASE,
        ),
        rf"\1{_MASK}",
    ),
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----", re.DOTALL), _MASK),
)


_HINT: Final = re.compile(  # what is in whatever the patterns of secrets find; most lines have none of it
    r"bearer|basic|eyJ|rz[a-z]_|://|password|secret|token|verifier|private_key|authorization|razao-gateway|-----BEGIN",
    re.IGNORECASE,
)
_SHORTEST: Final = 11
"""Characters of a tax id."""

CURRENT: Final[ContextVar[Scope | None]] = ContextVar("razao.scope", default=None)
"""The request at hand, as the edge has begun it."""


def masked(text: str) -> str:
    """`text` without tax ids and secrets. May mask a number that only looks like one."""
    if _HINT.search(text) is not None:
        for pattern, instead in _SECRETS:
            text = pattern.sub(instead, text)
    if len(text) < _SHORTEST:
        return text
    text = _WRITTEN.sub(_MASK, text)
    text = _PLAIN.sub(_plain, text)
    return _ALPHANUMERIC.sub(lambda found: _MASK if _CNPJ.validate(found[0].upper()) else found[0], text)


def _plain(found: re.Match[str]) -> str:
    """Digits that stand alone are masked; amid letters, as in a UUID, only if they check as a tax id."""
    digits, (begin, end) = found[0], found.span()
    amid = found.string[begin - 1 : begin].isalnum() or found.string[end : end + 1].isalnum()
    return digits if amid and not (_CPF if len(digits) == 11 else _CNPJ).validate(digits) else _MASK


def configure(application: str, file: Path | None = None) -> None:
    """Have this process write its lines to `file`, or to standard error; nothing else writes there then.

    Replicas share one file, each line one write at its end. When it is moved away a new one is begun.
    """
    handler = logging.StreamHandler() if file is None else _private(file)
    handler.setFormatter(Lines(application))
    root = logging.getLogger()
    for former in root.handlers:
        former.close()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it writes a line for each request, with its whole address
    for name in ("ray", "ray.serve"):  # these have handlers of their own, for Ray's files
        for other in logging.getLogger(name).handlers:
            other.addFilter(Masking())


def _private(file: Path) -> WatchedFileHandler:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch(mode=0o600)
    return WatchedFileHandler(file)


class Lines(logging.Formatter):
    """One line of JSON for a record. What the record's `about` (a mapping) has stands beside the rest."""

    def __init__(self, application: str) -> None:
        super().__init__()
        self._application = application

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "application": self._application,
        }
        if (scope := CURRENT.get()) is not None:
            request_id = scope["razao.request_id"]
            line["request_id"] = request_id
            line["correlation_id"] = masked(correlation_of(scope["razao.headers"], request_id))
        line["message"] = masked(record.getMessage())
        about: Mapping[str, Any] = getattr(record, "about", {})
        line |= {name: masked(value) if isinstance(value, str) else value for name, value in about.items()}
        if record.exc_info:
            line["exception"] = masked(self.formatException(record.exc_info))
        return json.dumps(line, ensure_ascii=False)


class Masking(logging.Filter):
    """Masks a record for whatever formats it afterwards."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Always true."""
        record.msg, record.args = masked(record.getMessage()), ()
        if record.exc_info and not record.exc_text:
            record.exc_text = masked(logging.Formatter().formatException(record.exc_info))
        return True


class AccessLog:
    """A line for each answer, or for refusals alone (401, 403), of which a flood must not fill the disk.

    A line has the route's template, never the path: a path can have anything in it.
    """

    def __init__(self, *, all_answers: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        self._all = all_answers
        self._clock = clock
        self._log = logging.getLogger(__name__)
        self._second = 0
        self._written = 0
        self._left_out = 0

    def wants(self, status: int) -> bool:
        """Whether it is to hear of an answer of this status."""
        return self._all or status in REFUSALS

    def write(self, scope: Scope, status: int, seconds: float, problem: str) -> None:
        """Write of the answer to a request. `problem`: the name of the one that it was, or nothing."""
        if not self._all and not self._may_write():
            return
        operation, identity = scope.get("razao.operation"), scope.get("razao.identity")
        line: dict[str, Any] = {
            "method": scope["method"],
            "route": None if operation is None else operation.path,
            "status": status,
            "ms": round(seconds * 1000, 3),
            "subject": None if identity is None else identity.subject,
        }
        if problem:
            line["problem"] = problem
        if self._left_out:
            line["left_out"], self._left_out = self._left_out, 0
        self._log.info("refused" if status in REFUSALS else "access", extra={"about": line})

    def _may_write(self) -> bool:
        second = int(self._clock())
        if second != self._second:
            self._second, self._written = second, 0
        self._written += 1
        if self._written > _REFUSALS_MAX:
            self._left_out += 1
            return False
        return True
