"""What Ray's Prometheus page shows of a replica: its requests, and the figures that its application adds.

Everything is published once a second: a call of Ray's metrics per request would cost more than the counting.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ray.util import metrics

from deployments.admission import LATENCY_BUCKETS_S, Admission
from deployments.breaker import STATES, Breaker

_PUBLISH_EVERY_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Figure:
    """One number of an application's own. A `counter` only grows; `labels` stand beside the application's name."""

    name: str
    description: str
    value: float
    counter: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)


Figures = Callable[[], Iterable[Figure]]


def breaker_figures(breaker: Breaker) -> list[Figure]:
    """State, failures and openings of a circuit breaker, labelled with the service that it guards calls to."""
    labels = {"service": breaker.name}
    state = "0: closed, 1: half-open, 2: open."
    return [
        Figure("razao_breaker_state", state, STATES[breaker.state], labels=labels),
        Figure("razao_breaker_failures", "Calls that failed.", breaker.failures, counter=True, labels=labels),
        Figure("razao_breaker_openings", "Times that it opened.", breaker.openings, counter=True, labels=labels),
    ]


async def publish(name: str, admission: Admission, figures: Figures | None = None) -> None:
    """Publish for ever, and once more when cancelled."""
    requests, own = _Requests(name, admission), _Own(name)
    try:
        while True:
            await asyncio.sleep(_PUBLISH_EVERY_S)
            requests.publish()
            own.publish(figures() if figures is not None else ())
    finally:
        requests.publish()
        own.publish(figures() if figures is not None else ())


class _Own:
    """An application's figures."""

    def __init__(self, application: str) -> None:
        self._application = application
        self._metrics: dict[str, Any] = {}
        self._before: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}

    def publish(self, figures: Iterable[Figure]) -> None:
        for figure in figures:
            made = self._metrics.get(figure.name)
            if made is None:
                kind: Any = metrics.Counter if figure.counter else metrics.Gauge
                made = kind(figure.name, figure.description, ("application", *figure.labels))
                self._metrics[figure.name] = made
            tags = {"application": self._application, **figure.labels}
            if not figure.counter:
                made.set(figure.value, tags)
                continue
            key = (figure.name, frozenset(figure.labels.items()))
            if (grown := figure.value - self._before.get(key, 0.0)) > 0:
                made.inc(grown, tags)
                self._before[key] = figure.value


class _Requests:
    """What the admission has counted. The histogram is published as its counters, by upper bound, as Prometheus keeps
    one."""

    def __init__(self, application: str, admission: Admission) -> None:
        tags = ("application",)
        self._requests = metrics.Counter("razao_http_requests", "Requests answered, by status.", (*tags, "status"))
        self._refusals = metrics.Counter("razao_http_refusals", "Requests refused because too much waited.", tags)
        self._buckets = metrics.Counter(
            "razao_http_seconds_bucket", "Requests that took at most `le` seconds.", (*tags, "le")
        )
        self._seconds = metrics.Counter("razao_http_seconds_sum", "Seconds that requests took, waiting included.", tags)
        self._in_progress = metrics.Gauge("razao_http_in_progress", "Requests in progress.", tags)
        self._waiting = metrics.Gauge("razao_http_waiting", "Requests that wait for their turn.", tags)
        self._oldest = metrics.Gauge("razao_http_oldest_wait_seconds", "How long the first of them has waited.", tags)
        self._own = {"application": application}
        self._admission = admission
        self._statuses = [0] * len(admission.statuses)
        self._latencies = [0] * len(admission.latencies)
        self._refused, self._summed = 0, 0.0

    def publish(self) -> None:
        admission, own = self._admission, self._own
        for status, (now, then) in enumerate(zip(admission.statuses, self._statuses, strict=True)):
            if now > then:
                self._requests.inc(now - then, {**own, "status": str(status)})
        below = 0
        bounds = [*map(str, LATENCY_BUCKETS_S), "+Inf"]
        for bound, now, then in zip(bounds, admission.latencies, self._latencies, strict=True):
            below += now - then
            if below:
                self._buckets.inc(below, {**own, "le": bound})
        if admission.refused > self._refused:
            self._refusals.inc(admission.refused - self._refused, own)
        if admission.latency_sum_s > self._summed:
            self._seconds.inc(admission.latency_sum_s - self._summed, own)
        self._in_progress.set(admission.in_progress, own)
        self._waiting.set(admission.waiting, own)
        self._oldest.set(admission.oldest_wait_s(), own)
        self._statuses, self._latencies = list(admission.statuses), list(admission.latencies)
        self._refused, self._summed = admission.refused, admission.latency_sum_s
