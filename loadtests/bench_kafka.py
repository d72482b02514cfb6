"""The journal on Kafka beside the embedded one: appends, bulk through a shard, replay, and what the broker's JVM costs.

Three places take turns in every round: the embedded PostgreSQL, a topic where every record is flushed to the disk
before it is acknowledged (what one broker needs), and one where the system flushes (as in a cluster, where other
replicas have the record). A ratio is of the medians, or sums, over all rounds.

    python -m loadtests.bench kafka
"""

from __future__ import annotations

import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import numpy as np
import uvloop

from loadtests import bench_journal, bench_replay, bench_shard, journals
from loadtests.journals import Place
from loadtests.rows import READ, Goal, Row

Say = Callable[[str], None]

_IDLE_S: Final = 5.0
_BULK: Final[dict[str, Any]] = {"shards": 1, "work": "bulk", "clients": 2, "lanes": 2}


def journal(directory: Path, *, rounds: int, seconds: float, transfers: int, say: Say) -> list[Row]:
    """Every comparison below HTTP. `seconds`: of each measurement of a round; `transfers`: replayed."""
    directory.mkdir(parents=True, exist_ok=True)
    with ExitStack() as ends:
        flushed, unflushed = ends.enter_context(journals.kafka(directory / "kafka"))
        embedded = ends.enter_context(journals.postgres(directory / "postgres"))
        idle = _idle(flushed)
        made = _appends([embedded, flushed, unflushed], rounds, seconds / 2, say)
        made += _bulk(directory, [flushed, unflushed], rounds, seconds, say)
        made += _replay(directory, flushed.fresh(), transfers, say)
        made.append(Row("kafka", "the broker's memory after all this", flushed.rss_mb(), "MB", "", note="-Xmx512m"))
        made.append(Row("kafka", "the idle broker's share of one core", idle * 100, "%", ""))
    shutil.rmtree(directory, ignore_errors=True)
    return made


def _idle(place: Place) -> float:
    before = place.cpu_s()
    time.sleep(_IDLE_S)
    return (place.cpu_s() - before) / _IDLE_S


def _appends(places: Sequence[Place], rounds: int, seconds: float, say: Say) -> list[Row]:
    """Time of an append by its size, against the embedded journal's."""
    those = [place.fresh() for place in places]
    uvloop.run(_create(those))
    found: dict[tuple[str, int], list[float]] = defaultdict(list)
    for number in range(rounds):
        for place in (*those[number % 3 :], *those[: number % 3]):
            for count in bench_journal.GROUPS:
                figures = uvloop.run(_append(place, count, seconds / len(bench_journal.GROUPS)))
                found[place.name, count].append(figures["append_ms"])
                say(f"{place.name:20} append of {count:5}: {figures['append_ms']:.2f} ms")
    embedded, *others = those
    return [
        Row(
            section="kafka",
            name=f"append of {count:,} transfer{'s' if count > 1 else ''}, {place.name}",
            figure=_median(found[place.name, count]),
            unit="ms",
            durability=place.durability,
            peer=_median(found[embedded.name, count]),
            peer_name="ms embedded",
        )
        for count in bench_journal.GROUPS
        for place in others
    ]


async def _create(places: Sequence[Place]) -> None:
    for place in places:
        made = place.journal()
        await made.create(1)
        await made.close()


async def _append(place: Place, count: int, seconds: float) -> dict[str, float]:
    opened = place.journal()
    try:
        return await bench_journal.append(opened, count, seconds)
    finally:
        await opened.close()


def _bulk(directory: Path, places: Sequence[Place], rounds: int, seconds: float, say: Say) -> list[Row]:
    """Batches of 8,190 through one shard, acknowledged, against the embedded journal's."""
    rates: dict[str, list[float]] = defaultdict(list)
    cpu_us: dict[str, list[float]] = defaultdict(list)
    for number in range(rounds):
        with journals.postgres(directory / f"bulk-{number}") as embedded:
            those = [embedded, *places]
            for place in (*those[number % 3 :], *those[: number % 3]):
                before = place.cpu_s()
                rate = bench_shard.measure(place.fresh(), seconds=seconds, **_BULK)["transfers_per_s"]
                rates[place.name].append(rate)
                cpu_us[place.name].append((place.cpu_s() - before) / (rate * seconds) * 1e6)
                say(f"{place.name:20} bulk through one shard: {rate:,}/s")
        shutil.rmtree(directory / f"bulk-{number}", ignore_errors=True)
    base = rates["embedded"]
    return [
        Row(
            section="kafka",
            name=f"bulk, one shard, {place.name}",
            figure=sum(rates[place.name]) / rounds,
            unit="/s",
            durability=place.durability,
            goals=(Goal("≥", 0.8, of_ratio=True),),
            peer=sum(base) / rounds,
            peer_name="/s embedded",
            note=f"by round {min(_ratios(rates[place.name], base)):.2f} to {max(_ratios(rates[place.name], base)):.2f};"
            f" the server's CPU for a transfer {_median(cpu_us[place.name]):.2f} µs"
            f" against {_median(cpu_us['embedded']):.2f} µs, opening the accounts included",
        )
        for place in places
    ]


def _replay(directory: Path, place: Place, transfers: int, say: Say) -> list[Row]:
    """A shard's recovery from the first record on."""
    with journals.postgres(directory / "replay") as embedded:
        peer = bench_replay.measure(embedded, transfers=transfers)["transfers_per_s"]
        say(f"replay, embedded: {peer:,.0f}/s")
    figures = bench_replay.measure(place, transfers=transfers)
    return [
        Row(
            section="kafka",
            name="journaled transfers replayed from Kafka, codes compared",
            figure=figures["transfers_per_s"],
            unit="/s",
            durability=READ,
            goals=(Goal("≥", 2_000_000),),
            peer=peer,
            peer_name="/s embedded",
            note=f"by CPU time of the shard {figures['transfers_per_cpu_s']:,.0f}/s",
        )
    ]


def _ratios(figures: list[float], base: list[float]) -> list[float]:
    return [one / other for one, other in zip(figures, base, strict=True)]


def _median(figures: list[float]) -> float:
    return float(np.median(figures))
