"""What clients get over HTTP: single transfers against the peer and against constant routes, and batches.

Sides take turns in short rounds (A B A B …), with everything but the side under load held still, so that a noisy
moment of the machine hits all of them. A ratio is of the sums over all rounds; the note shows its spread by round.
"""

from __future__ import annotations

import itertools
import ssl
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import uvloop

from loadtests import traffic
from loadtests.generator import Check, Report, merge, run
from loadtests.journals import FLUSHED
from loadtests.peers import constant, runner
from loadtests.rows import DURABLE, Goal, Row
from loadtests.stacks import ACCOUNT_BALANCE, Engine, Stack, taking_turns

Say = Callable[[str], None]
Funded = tuple[Engine, list[str]]
"""An engine, and its accounts with money in them."""

CLIENTS: Final = 64
ACCOUNTS: Final = 1000
BATCH_ROWS: Final = 8190
PIX_MEAN_RATE: Final = 3626
"""Brazil's record day of Pix, as a mean per second (domain §6)."""

_NOTHING: Final = "no state"


@dataclass
class Side:
    """One contender: where the load goes, what it is, and what came back in each round."""

    name: str
    stack: Stack
    source: Iterator[bytes]
    rounds: list[Report] = field(default_factory=list)
    cpu_seconds: float = 0.0  # of the stack, warm-ups included, the generator not
    answers: int = 0  # in that time
    port: int = 0  # where the load goes, when not to the stack's own
    tls: ssl.SSLContext | None = None

    @property
    def cpu_us(self) -> float:
        """CPU time of the whole stack for one request, µs."""
        return self.cpu_seconds / self.answers * 1e6 if self.answers else 0.0

    @property
    def total(self) -> Report:
        """All rounds as one."""
        return merge(self.rounds)


def singles(engines: list[Funded], *, rounds: int, seconds: float, say: Say) -> list[Row]:
    """Single transfers, 64 clients: ours through the gateway against the peer without one, random and hot.

    The goals are measured against the peer whose statements take row locks one after the other, as services of its kind
    do; its other form, the same work in one prepared call of a database function, is shown beside it.
    """
    with ExitStack() as ends:
        data = Path(ends.enter_context(tempfile.TemporaryDirectory(prefix="razao-peer-")))
        say("starting the peer")
        first, accounts = engines[0]
        function = ends.enter_context(runner.running(data / "postgres", first.jwks))
        function.add_accounts({int(account): "bench" for account in accounts}, ACCOUNT_BALANCE)
        plain = ends.enter_context(runner.beside(function, variant="statements"))
        peers = [
            Stack("peer", plain.port, plain.pids, "/healthz"),
            Stack("function peer", function.port, function.pids, "/healthz"),
        ]
        sides: dict[tuple[Stack, str], Side] = {}
        for kind, pairs in (("random", traffic.random_pairs), ("hot", traffic.hot_pairs)):
            for stack, own, host, token in (
                *((engine, own, engine.host, engine.token) for engine, own in engines),
                *((peer, accounts, first.host, first.token) for peer in peers),
            ):
                source = traffic.transfers(host, token, pairs(own, seed=1))
                sides[stack, kind] = Side(f"{stack.name} {kind}", stack, source)
        ours = [engine for engine, _ in engines]
        play(list(sides.values()), [*ours, *peers], rounds=rounds, seconds=seconds, say=say)
        if function.total() != ACCOUNT_BALANCE * len(accounts):
            raise RuntimeError("the peer has lost or made money")
    made = []
    for kind, name, factor in (("random", "random pairs", 5), ("hot", "a hot account", 15)):
        for engine in ours:
            what = f"{CLIENTS} clients, {name}, {engine.shards} shard{'s' if engine.shards > 1 else ''}"
            mine, plain_side, function_side = sides[engine, kind], *(sides[peer, kind] for peer in peers)
            bounds = (ratio(factor), *((Goal("≥", PIX_MEAN_RATE),) if kind == "random" else ()))
            made.append(rate_row("singles", f"transfers, {what}", mine, plain_side, bounds))
            made.append(_p99_row(f"p99, {what}", mine, plain_side))
            made.append(rate_row("singles", "the same against the peer as one function", mine, function_side))
    return made


def constants(engines: list[Funded], *, rounds: int, seconds: float, say: Say) -> list[Row]:
    """The first one's transfers against routes that do nothing: behind Serve, behind our gateway, on our listener."""
    engine, accounts = engines[0]
    with ExitStack() as ends:
        data = Path(ends.enter_context(tempfile.TemporaryDirectory(prefix="razao-constant-")))
        stacks: list[Stack] = [running for running, _ in engines]
        source = traffic.transfers(engine.host, engine.token, traffic.random_pairs(accounts, seed=2))
        sides = [Side("razao", engine, source)]
        for name in ("serve", "gateway", "listener"):
            say(f"starting the constant route: {name}")
            stack = ends.enter_context(constant.running(name, data / name))
            get = traffic.request("GET", constant.PATH, f"127.0.0.1:{stack.port}", engine.token)
            stacks.append(stack)
            sides.append(Side(name, stack, traffic.repeat(get)))
        play(sides, stacks, rounds=rounds, seconds=seconds, say=say)
    ours, serve, gateway, listener = sides
    return [
        rate_row("constant", "transfers by a constant route behind Serve's HAProxy", ours, serve, (ratio(3),)),
        rate_row("constant", "transfers by a constant route behind our gateway", ours, gateway),
        rate_row("constant", "constant route, ours behind our gateway by Serve's", gateway, serve, durability=_NOTHING),
        rate_row("constant", "constant route, our listener bare by Serve's", listener, serve, durability=_NOTHING),
    ]


def journals(engines: list[Funded], *, rounds: int, seconds: float, say: Say) -> list[Row]:
    """Single transfers, 64 clients, of one engine (first) beside another with the journal in PostgreSQL (second)."""
    sides = [
        Side(name, running, traffic.transfers(running.host, running.token, traffic.random_pairs(own, seed=4)))
        for name, (running, own) in zip(("on Kafka", "embedded"), engines, strict=True)
    ]
    play(sides, [running for running, _ in engines], rounds=rounds, seconds=seconds, say=say)
    ours, theirs = sides
    total, other = ours.total, theirs.total
    what = f"{CLIENTS} clients, random pairs, beside the embedded journal"
    p50 = Row(
        section="kafka",
        name=f"p50, {what}",
        figure=total.percentile_ms(50),
        unit="ms",
        durability=FLUSHED,
        goals=(Goal("≤", 1.5, of_ratio=True), Goal("<", 15)),
        peer=other.percentile_ms(50),
        peer_name="ms",
        note=f"p99 {total.percentile_ms(99):.1f} against {other.percentile_ms(99):.1f} ms; "
        "the 15 ms are for quiet cores",
        invalid=fault(total) or fault(other),
    )
    return [rate_row("kafka", f"transfers, {what}", ours, theirs, durability=FLUSHED), p50]


def batches(engine: Engine, accounts: list[str], *, count: int, connections: int, say: Say) -> list[Row]:
    """Batches of 8,190 through the front door, as Arrow and as JSON; every row of every answer is checked."""
    made = []
    placed = "1 shard" if engine.shards == 1 else f"{engine.shards} shards, half cross-shard"
    kinds: list[tuple[str, Callable[..., list[bytes]], Callable[[int], Check], int, int]] = [
        ("Arrow", traffic.arrow_batches, traffic.check_arrow_batch, 250_000, count),
        ("JSON", traffic.json_batches, traffic.check_json_batch, 60_000, max(8, count // 3)),
    ]
    for name, make, check, bound, number in kinds:
        say(f"{name} batches: {number} of {BATCH_ROWS:,} rows")
        warm_up = max(4, number // 5)
        source = make(engine.host, engine.token, accounts, rows=BATCH_ROWS, batches=number + warm_up, seed=3)
        report = uvloop.run(
            run(
                source,
                host="127.0.0.1",
                port=engine.port,
                connections=connections,
                warm_up_requests=warm_up,
                check=check(BATCH_ROWS),
            )
        )
        behind = engine.await_projection()
        made.append(
            Row(
                section="batches",
                name=f"{name} batches of {BATCH_ROWS:,} over HTTP, {placed}",
                figure=report.rate * BATCH_ROWS,
                unit="/s",
                durability=DURABLE,
                goals=(Goal("≥", bound),),
                note=f"{connections} connections, p50 {report.percentile_ms(50):.0f} ms a batch, "
                f"query side caught up {behind:.1f} s later",
                invalid=fault(report),
            )
        )
    return made


def play(sides: list[Side], stacks: list[Stack], *, rounds: int, seconds: float, say: Say) -> None:
    """Let every side run once per round, beginning with another one each time."""
    with taking_turns(stacks) as turn:
        for number in range(rounds):
            first = number % len(sides)
            for side in itertools.chain(sides[first:], sides[:first]):
                turn(side.stack)
                before = side.stack.cpu_seconds()
                report = uvloop.run(
                    run(
                        side.source,
                        host="127.0.0.1",
                        port=side.port or side.stack.port,
                        tls=side.tls,
                        connections=CLIENTS,
                        seconds=seconds,
                        warm_up_seconds=min(1.0, seconds / 2),
                    )
                )
                side.rounds.append(report)
                side.cpu_seconds += side.stack.cpu_seconds() - before
                side.answers += report.requests + report.warm_up_requests
                say(
                    f"round {number + 1}/{rounds}  {side.name:24} {report.rate:8,.0f}/s  "
                    f"p50 {report.percentile_ms(50):6.1f} ms  p99 {report.percentile_ms(99):6.1f} ms  "
                    f"CPU {side.cpu_us:5.0f} µs a request"
                )
                if isinstance(side.stack, Engine):
                    side.stack.await_projection()  # its rest must neither burden the next side nor be left out for ever


def ratio(factor: float) -> Goal:
    return Goal("≥", factor, of_ratio=True)


def rate_row(
    section: str, name: str, ours: Side, theirs: Side, goals: tuple[Goal, ...] = (), durability: str = DURABLE
) -> Row:
    total, other = ours.total, theirs.total
    ratios = [a.rate / b.rate for a, b in zip(ours.rounds, theirs.rounds, strict=True) if b.rate]
    spread = f"by round {min(ratios):.2f} to {max(ratios):.2f}; " if ratios else ""
    return Row(
        section=section,
        name=name,
        figure=total.rate,
        unit="/s",
        durability=durability,
        goals=goals,
        peer=other.rate,
        peer_name="/s",
        note=f"{spread}p50 {total.percentile_ms(50):.1f} against {other.percentile_ms(50):.1f} ms; "
        f"CPU a request {ours.cpu_us:.0f} against {theirs.cpu_us:.0f} µs",
        invalid=fault(total) or fault(other),
    )


def _p99_row(name: str, ours: Side, theirs: Side) -> Row:
    total, other = ours.total, theirs.total
    return Row(
        section="singles",
        name=name,
        figure=total.percentile_ms(99),
        unit="ms",
        durability=DURABLE,
        goals=(Goal("<", 0.25, of_ratio=True), Goal("<", 50)),
        peer=other.percentile_ms(99),
        peer_name="ms",
        note="the 50 ms are for quiet cores",
        invalid=fault(total) or fault(other),
    )


def fault(report: Report) -> str:
    if not report.failures:
        return "" if report.requests else "no answers"
    return f"{report.failures} of {report.requests} failed: {dict(report.statuses)}, {report.examples[:1]}"
