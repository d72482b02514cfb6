"""What every sub-command of `razao` shares: the two consoles, common options, settings, and a way to fail."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from pydantic import ValidationError
from rich.console import Console

from cluster.data import DataDirectory
from cluster.settings import Settings

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

Data = Annotated[Path | None, typer.Option("--data", metavar="DIR", help="The engine's directory.  [default: ./var]")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def settings_of(**overrides: Any) -> Settings:
    """Settings from the environment, overridden by the options that were given."""
    try:
        return Settings(**{name: value for name, value in overrides.items() if value is not None})
    except ValidationError as error:
        facts = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        fail(f"settings: {facts}")


def directory_of(data: Path | None) -> DataDirectory:
    """The engine's directory."""
    return DataDirectory(settings_of(data=data).data)


def fail(message: str, code: int = 2) -> NoReturn:
    """Say why a command cannot go on, and end it."""
    err.print(f"[red]razao:[/] {message}", markup=True)
    raise typer.Exit(code)
