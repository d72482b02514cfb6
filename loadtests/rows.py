"""What a benchmark says: a figure, what it is compared with, the goal, and under which promise of durability."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Final

from rich.table import Table

DURABLE: Final = "fsync per commit, synchronous_commit=on, embedded PostgreSQL"
MEMORY: Final = "in memory, nothing to lose"
READ: Final = "reads durable records"
UNFLUSHED: Final = "derived from the journal, its own commits not awaited"

_RELATIONS: Final[dict[str, Callable[[float, float], bool]]] = {
    "≥": operator.ge,
    ">": operator.gt,
    "≤": operator.le,
    "<": operator.lt,
}


@dataclass(frozen=True, slots=True)
class Goal:
    """A goal (ARCHITECTURE.md, figures): on the figure itself, or on its ratio to the peer's."""

    relation: str  # ≥ > ≤ <
    bound: float
    of_ratio: bool = False

    def met(self, figure: float, ratio: float | None) -> bool | None:
        """Whether it is reached; None when there is nothing to judge."""
        value = ratio if self.of_ratio else figure
        return None if value is None else _RELATIONS[self.relation](value, self.bound)

    def __str__(self) -> str:
        return f"{self.relation} {_number(self.bound)}{'x' if self.of_ratio else ''}"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    section: str
    name: str
    figure: float
    unit: str
    durability: str
    goals: tuple[Goal, ...] = ()
    peer: float | None = None
    peer_name: str = ""
    note: str = ""
    invalid: str = ""  # why the figure does not count: failures, an unexpected status

    @property
    def ratio(self) -> float | None:
        """Figure by peer's figure."""
        return self.figure / self.peer if self.peer else None

    @property
    def met(self) -> bool | None:
        """Whether every goal is reached; None without a goal; never for an invalid row."""
        if self.invalid:
            return False
        found = [goal.met(self.figure, self.ratio) for goal in self.goals]
        return all(found) if found else None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        content = asdict(self)
        content["goals"] = [str(goal) for goal in self.goals]
        return content | {"ratio": self.ratio, "met": self.met}


def table(rows: list[Row]) -> Table:
    """The one table: everything that was measured in this run."""
    made = Table(title="Razao, measured", title_justify="left", show_lines=False, pad_edge=False)
    for name in ("section", "what", "figure", "peer", "ratio", "goal", "met", "durability", "note"):
        right = name in {"figure", "peer", "ratio"}
        made.add_column(name, justify="right" if right else "left", overflow="fold", no_wrap=right)
    section = None
    for row in rows:
        if section not in {None, row.section}:
            made.add_section()
        section = row.section
        peer = f"{_number(row.peer)} {row.peer_name}".strip() if row.peer is not None else ""
        made.add_row(
            row.section,
            row.name,
            f"{_number(row.figure)} {row.unit}",
            peer,
            f"{row.ratio:.2f}x" if row.ratio is not None else "",
            ", ".join(map(str, row.goals)),
            "[red]INVALID[/]" if row.invalid else {None: "", True: "[green]yes[/]", False: "[red]no[/]"}[row.met],
            row.durability,
            row.invalid or row.note,
        )
    return made


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
