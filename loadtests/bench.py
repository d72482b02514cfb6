"""Everything that Razao promises to be fast at, measured in one run and shown in one table: `make bench`.

Each section can be named alone: `python -m loadtests.bench singles batches`. The machine is shared and noisy, so the
comparisons are made side by side (see `loadtests/bench_http.py`); a figure with failed requests behind it is invalid,
whatever it is. Ends with 1 when a row is invalid or a section could not run.
"""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final

import orjson
import typer
from rich.console import Console

from loadtests import bench_http, bench_kafka, bench_recovery, bench_shipped, bench_tiers
from loadtests.bench_http import Funded
from loadtests.rows import DURABLE, MEMORY, READ, UNFLUSHED, Goal, Row, table
from loadtests.stacks import engine, razao, shipped, taking_turns

_console = Console(stderr=True, highlight=False)


@dataclass(frozen=True, slots=True)
class Figure:
    """Where a benchmark of one part keeps a figure, and what it means."""

    path: tuple[str, ...]
    name: str
    unit: str
    durability: str
    goals: tuple[Goal, ...] = ()


@dataclass
class Bench:
    """One run: how long to measure, and the engines that sections share once one of them needs them."""

    quick: bool
    rounds: int
    seconds: float
    directory: Path
    ends: ExitStack
    say: Callable[[str], None]
    shared: dict[int, Funded] = field(default_factory=dict)

    def engine(self, shards: int) -> Funded:
        """The engine of the HTTP sections with so many shards, and its funded accounts."""
        if shards not in self.shared:
            self.say(f"starting Razao, {shards} shards")
            running = self.ends.enter_context(engine(self.directory / f"razao-{shards}", shards=shards))
            self.say(f"ready in {running.seconds_to_ready:.1f} s; opening accounts")
            self.shared[shards] = running, running.open_accounts(bench_http.ACCOUNTS, seed=7)
        return self.shared[shards]

    def engines(self) -> list[Funded]:
        """One with one shard, the fastest on two cores, and one with two, where half of it is cross-shard."""
        return [self.engine(shards) for shards in (1, 2)]


KERNEL: Final = (
    Figure(("transfers", "transfers_per_second"), "transfers, 8,190 a batch, 100,000 accounts", "/s", MEMORY),
    Figure(("transfers", "transfers_per_cpu_second"), "the same by CPU time", "/s", MEMORY),
    Figure(("growth", "batch_ms_max"), "worst pause of a batch while accounts are opened", "ms", MEMORY),
    Figure(("growth", "bytes_per_account"), "memory of an account", "bytes", MEMORY, (Goal("≤", 200),)),
    Figure(("memory of ids", "bytes_per_id"), "memory of a remembered id", "bytes", MEMORY, (Goal("≤", 20),)),
    Figure(("memory of ids", "ids_per_second_when_full"), "ids remembered, each pushing the oldest out", "/s", MEMORY),
)
QUERY: Final = (
    Figure(("projected_transfers_s",), "projected into the query store", "/s", UNFLUSHED),
    Figure(("read_own_write_ms", "p50"), "a write's way into the query store, p50", "ms", UNFLUSHED),
    Figure(("read_own_write_ms", "p99"), "the same, p99", "ms", UNFLUSHED),
    Figure(("balance_at_hot_ms", "p50"), "balance of a hot account at a past instant, p50", "ms", READ),
    Figure(("entries_hot_page_of_100_ms", "p50"), "100 entries of a hot account, p50", "ms", READ),
)
REPLAY: Final = (
    Figure(("transfers_per_s",), "journaled transfers replayed, codes compared", "/s", READ, (Goal("≥", 2_000_000),)),
    Figure(("transfers_per_cpu_s",), "the same by CPU time, PostgreSQL's left out", "/s", READ),
)
JOURNAL: Final = (
    Figure(("groups", "1", "append_ms"), "append of one transfer", "ms", DURABLE),
    Figure(("groups", "64", "append_ms"), "append of 64 transfers", "ms", DURABLE),
    Figure(("groups", "8190", "append_ms"), "append of 8,190 transfers", "ms", DURABLE),
    Figure(("groups", "8190", "transfers_per_s"), "encoded and appended, 8,190 a record", "/s", DURABLE),
    Figure(("groups", "8190", "replay_transfers_per_s"), "read back and checked, 8,190 a record", "/s", READ),
)
SHARD: Final = (
    Figure(("bulk, one shard", "transfers_per_s"), "bulk, one shard", "/s", DURABLE, (Goal("≥", 700_000),)),
    Figure(
        ("bulk, two shards, random pairs", "transfers_per_s"),
        "bulk, two shards, random pairs (half cross-shard)",
        "/s",
        DURABLE,
        (Goal("≥", 300_000),),
    ),
    Figure(("singles, one shard, 64 callers", "transfers_per_s"), "single transfers, 64 callers", "/s", DURABLE),
    Figure(("singles, two shards, 64 callers", "transfers_per_s"), "the same, two shards", "/s", DURABLE),
)


def _of_part(module: str, section: str, figures: tuple[Figure, ...], **options: Any) -> list[Row]:
    """Run the benchmark of one part and pick its figures."""
    found = importlib.import_module(f"loadtests.{module}").run(**options)
    return [
        Row(section, figure.name, float(_at(found, figure.path)), figure.unit, figure.durability, figure.goals)
        for figure in figures
    ]


def _at(found: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        found = found[key] if key in found else found[int(key)]
    return found


def kernel(bench: Bench) -> list[Row]:
    """The kernel alone, without any durability; memory per account and id."""
    options = {"seconds": 2.0, "growth": 2_000_000} if bench.quick else {"seconds": 5.0, "growth": 10_000_000}
    return _of_part("bench_kernel", "kernel", KERNEL, **options)


def journal(bench: Bench) -> list[Row]:
    """Encoding, appending, reading back."""
    return _of_part("bench_journal", "journal", JOURNAL, seconds=1.0 if bench.quick else 3.0)


def shard(bench: Bench) -> list[Row]:
    """Bulk and single transfers through shards, without HTTP."""
    return _of_part("bench_shard", "shard", SHARD, seconds=2.0 if bench.quick else 5.0)


def query(bench: Bench) -> list[Row]:
    """The projector and the query store, without HTTP."""
    return _of_part("bench_query", "query", QUERY, transfers=100_000 if bench.quick else 400_000)


def replay(bench: Bench) -> list[Row]:
    """A shard's recovery from the journal alone."""
    return _of_part("bench_replay", "replay", REPLAY, transfers=500_000 if bench.quick else 4_000_000)


def batches(bench: Bench) -> list[Row]:
    """Batches over HTTP."""
    count = 24 if bench.quick else 100
    made = []
    with taking_turns([running for running, _ in bench.engines()]) as turn:
        for running, accounts in bench.engines():
            turn(running)
            made += bench_http.batches(running, accounts, count=count, connections=3, say=bench.say)
    return made


def singles(bench: Bench) -> list[Row]:
    """Single transfers over HTTP against the peer."""
    return bench_http.singles(bench.engines(), rounds=bench.rounds, seconds=bench.seconds, say=bench.say)


def as_shipped(bench: Bench) -> list[Row]:
    """The engine without options: against the peer, under a crowd, what follows a transfer, and one greedy caller."""
    options = {"rounds": bench.rounds, "seconds": bench.seconds, "say": bench.say}
    bench.say("starting Razao as it is shipped")
    with shipped(bench.directory / "shipped") as running, ExitStack() as held:
        for other, _ in bench.shared.values():
            other.hold()
            held.callback(other.wake)
        accounts = running.open_accounts(bench_http.ACCOUNTS, seed=8)
        made = bench_shipped.singles(running, accounts, **options)  # type: ignore[arg-type]
        made += bench_shipped.overload(running, accounts, **options)  # type: ignore[arg-type]
        made += bench_shipped.look_ups(running, accounts, **options)  # type: ignore[arg-type]
        made += bench_shipped.greedy(running, accounts, seconds=4 * bench.seconds, say=bench.say)
    return made


def constants(bench: Bench) -> list[Row]:
    """Single transfers over HTTP against constant routes."""
    return bench_http.constants(bench.engines(), rounds=bench.rounds, seconds=bench.seconds, say=bench.say)


def verify(bench: Bench) -> list[Row]:
    """After all load: the books are replayed from the journal and compared with everything."""
    made = []
    for running, _ in bench.engines():
        begun = time.monotonic()
        report = orjson.loads(razao("verify", "--json", "--data", str(running.data)))
        took = time.monotonic() - begun
        name = f"razao verify finds nothing, {running.shards} shards"
        made.append(Row("verify", name, took, "s", READ, note=str(report)[:200]))
    return made


def recovery(bench: Bench) -> list[Row]:
    """Start-up, and a killed shard."""
    accounts = 100_000 if bench.quick else 1_000_000
    return bench_recovery.recovery(bench.directory / "recovery", accounts=accounts, say=bench.say)


def kafka(bench: Bench) -> list[Row]:
    """The journal on Kafka beside the embedded one, and what its broker costs."""
    options = {"rounds": bench.rounds, "seconds": bench.seconds, "say": bench.say}
    transfers = 500_000 if bench.quick else 4_000_000
    made = bench_kafka.journal(bench.directory / "journals", transfers=transfers, **options)  # type: ignore[arg-type]
    data = bench.directory / "razao-kafka"
    bench.say("starting Razao with its journal on Kafka")
    with engine(data, shards=1, journal="kafka") as running:
        accounts = running.open_accounts(bench_http.ACCOUNTS, seed=7)
        made += bench_http.journals([(running, accounts), bench.engine(1)], **options)  # type: ignore[arg-type]
    return made


def tiers(bench: Bench) -> list[Row]:
    """Reads of the three tiers, each at its own door."""
    directory = bench.directory / "tiers"
    directory.mkdir(exist_ok=True)
    return bench_tiers.tiers(
        directory, rounds=bench.rounds, seconds=bench.seconds, mongo=not bench.quick, say=bench.say
    )


SECTIONS: Final[dict[str, Callable[[Bench], list[Row]]]] = {
    "kernel": kernel,
    "journal": journal,
    "shard": shard,
    "query": query,
    "replay": replay,
    "recovery": recovery,
    "batches": batches,
    "singles": singles,
    "shipped": as_shipped,
    "constants": constants,
    "kafka": kafka,
    "tiers": tiers,
    "verify": verify,
}


def measure(names: list[str], *, quick: bool, rounds: int, seconds: float, directory: Path) -> list[Row]:
    """Run sections in their order; one that cannot run leaves an invalid row, and the others go on."""
    rows: list[Row] = []
    with ExitStack() as ends:
        bench = Bench(
            quick, rounds, seconds, directory, ends, say=lambda line: _console.print(f"  {line}", style="dim")
        )
        for name in (name for name in SECTIONS if name in names):
            _console.print(f"[bold]{name}[/]: {SECTIONS[name].__doc__}")
            try:
                found = SECTIONS[name](bench)
            except Exception as error:  # noqa: BLE001 - whatever it is, it goes into the table
                _console.print_exception(max_frames=6)
                found = [Row(name, "could not run", 0.0, "", "", invalid=f"{type(error).__name__}: {error}"[:500])]
            for row in found:
                bench.say(f"{row.name}: {row.figure:,.3f} {row.unit} {row.invalid}")
            rows += found
    return rows


def machine() -> dict[str, Any]:
    """Where this was measured."""
    return {
        "cpus": os.cpu_count(),
        "load_before": os.getloadavg()[0],
        "machine": platform.machine(),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def main(
    sections: Annotated[list[str] | None, typer.Argument(help=f"Of: {' '.join(SECTIONS)}.  [default: all]")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A few minutes: short rounds, fewer accounts.")] = False,
    rounds: Annotated[int | None, typer.Option(help="Rounds of each comparison.  [default: 5, quick: 2]")] = None,
    seconds: Annotated[float | None, typer.Option(help="Seconds a round.  [default: 5, quick: 2]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
    data: Annotated[Path | None, typer.Option(help="Keep what the engines write here.  [default: removed]")] = None,
) -> None:
    """Measure and print one table."""
    unknown = set(sections or []) - set(SECTIONS)
    if unknown:
        _console.print(f"no such section: {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
        raise typer.Exit(2)
    where = machine()
    directory = data or Path(tempfile.mkdtemp(prefix="rzb-"))
    directory.mkdir(parents=True, exist_ok=True)
    try:
        rows = measure(
            sections or list(SECTIONS),
            quick=quick,
            rounds=rounds or (2 if quick else 5),
            seconds=seconds or (2.0 if quick else 5.0),
            directory=directory,
        )
    finally:
        if data is None:
            shutil.rmtree(directory, ignore_errors=True)
    if as_json:
        print(
            orjson.dumps(
                {"machine": where, "rows": [row.as_dict() for row in rows]}, option=orjson.OPT_INDENT_2
            ).decode()
        )
    else:
        out = Console(width=None if sys.stdout.isatty() else 220)
        out.print(table(rows))
        out.print(
            f"{where['cpus']} CPUs {where['machine']}, Python {where['python']}, load before {where['load_before']:.1f}"
        )
    raise typer.Exit(1 if any(row.invalid for row in rows) else 0)


if __name__ == "__main__":
    typer.run(main)
