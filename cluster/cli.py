"""The `razao` command. Each sub-command is a few lines here and a module of its own behind it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from cluster.data import DataDirectory, EngineError
from cluster.settings import JournalKind, Settings

app = typer.Typer(
    name="razao",
    help="Razao: an actor-based transaction engine for instant payments.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

Data = Annotated[Path | None, typer.Option("--data", metavar="DIR", help="The engine's directory.  [default: ./var]")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def _settings(**overrides: Any) -> Settings:
    """Settings from the environment, overridden by the options that were given."""
    try:
        return Settings(**{name: value for name, value in overrides.items() if value is not None})
    except ValidationError as error:
        facts = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        fail(f"settings: {facts}")


def _directory(data: Path | None) -> DataDirectory:
    return DataDirectory(_settings(data=data).data)


def fail(message: str, code: int = 2) -> NoReturn:
    """Say why a command cannot go on, and end it."""
    err.print(f"[red]razao:[/] {message}", markup=True)
    raise typer.Exit(code)


@app.command()
def up(
    data: Data = None,
    port: Annotated[int | None, typer.Option(help="HTTP port; 0 picks a free one.  [default: 8000]")] = None,
    tls_port: Annotated[int | None, typer.Option(help="HTTPS port; 0: no HTTPS.  [default: 8443]")] = None,
    shards: Annotated[int | None, typer.Option(help="Shards of a new ledger, a power of two.  [default: 2]")] = None,
    journal: Annotated[JournalKind | None, typer.Option(help="Where the journal lies.  [default: postgres]")] = None,
    demo: Annotated[bool, typer.Option("--demo", help="Run the demo once when ready.")] = False,
) -> None:
    """Start the engine and keep it running; Ctrl-C or SIGTERM stops everything that it started."""
    from cluster.supervisor import Supervisor

    settings = _settings(data=data, port=port, tls_port=tls_port, shards=shards, journal=journal)
    try:
        supervisor = Supervisor(settings, say=lambda line: out.print(line, markup=False))
        asyncio.run(supervisor.run(on_ready=(lambda: _show_demo(supervisor.data)) if demo else None))
    except EngineError as error:
        fail(str(error), 1)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


@app.command()
def down(data: Data = None) -> None:
    """Stop a running engine, and whatever a killed one has left behind."""
    from cluster.stop import stop

    try:
        out.print(stop(_directory(data)), markup=False)
    except EngineError as error:
        fail(str(error), 1)


@app.command()
def redeploy(data: Data = None) -> None:
    """Roll a running engine's replicas over to the settings, and the code, of now, without losing a request."""
    from cluster.redeploy import redeploy as run

    try:
        run(_settings(data=data), say=lambda line: out.print(line, markup=False))
    except EngineError as error:
        fail(str(error), 1)


@app.command()
def status(data: Data = None, as_json: Json = False) -> None:
    """Show whether the engine serves, its shards, its projection and its processes; exit 3 when it does not serve."""
    from cluster.status import collect

    try:
        found = asyncio.run(collect(_directory(data)))
    except EngineError as error:
        fail(str(error), 1)
    if as_json:
        out.print(json.dumps(found), markup=False)
    else:
        _show_status(found)
    if not found["ready"]:
        raise typer.Exit(3)


def _show_status(found: dict[str, Any]) -> None:
    state = "[green]ready[/]" if found["ready"] else "[red]not ready[/]"
    out.print(f"{found['url'] or 'not running'}  {state}  journal: {found['journal']}  dashboard: {found['dashboard']}")
    shards = Table("shard", "pid", "epoch", "offset", "accounts", "transfers", title="Shards", title_justify="left")
    for one in found["shards"]:
        shards.add_row(*(str(one[key]) for key in ("name", "pid", "epoch", "offset", "accounts", "transfers")))
    out.print(shards)
    out.print(f"Projection: {found['projection']['lag']} records behind")
    processes = Table("role", "name", "pid", title="Processes", title_justify="left")
    for one in found["processes"]:
        processes.add_row(one["role"], one["name"], str(one["pid"]))
    out.print(processes)


@app.command()
def token(
    sub: Annotated[str, typer.Option(help="Whom the token speaks for: the `sub` claim.")],
    scope: Annotated[str, typer.Option(help='Scopes, separated by blanks, such as "ledger:read ledger:write".')],
    expires_in: Annotated[int, typer.Option(min=1, help="Seconds until it expires.")] = 3600,
    data: Data = None,
) -> None:
    """Sign an access token with the embedded key and print it alone."""
    from deployments.auth.keys import ensure_keys, sign_token

    settings = _settings(data=data)
    directory = DataDirectory(settings.data)
    try:
        directory.make()
        ensure_keys(directory.keys)
        signed = sign_token(
            directory.keys,
            sub=sub,
            scope=scope,
            audience=settings.token_audience,
            issuer=settings.token_issuer,
            expires_in=expires_in,
        )
    except (EngineError, ValueError) as error:
        fail(str(error), 1)
    print(signed)  # noqa: T201 - the token alone, without a terminal's wrapping


@app.command()
def verify(data: Data = None, as_json: Json = False) -> None:
    """Replay the journal from the start and compare everything with it; exit 1 where it differs."""
    from cluster.verify import verify as run

    try:
        report = asyncio.run(run(_settings(data=data), show_progress=not as_json))
    except EngineError as error:
        fail(str(error), 1)
    if as_json:
        out.print(json.dumps(report.as_dict()), markup=False)
    else:
        for line in report.lines():
            out.print(line, markup=False)
    if report.differences:
        raise typer.Exit(1)


@app.command()
def rebuild(data: Data = None) -> None:
    """Drop the query store and the snapshots, and make them again from the journal."""
    from cluster.rebuild import rebuild as run

    try:
        asyncio.run(run(_settings(data=data), say=lambda line: out.print(line, markup=False)))
    except EngineError as error:
        fail(str(error), 1)


def _run_demo(directory: DataDirectory) -> None:
    import httpx

    from cluster.demo import Demo
    from deployments.auth.keys import sign_token

    running = directory.running()
    if running is None:
        raise EngineError(f"no engine runs on {directory.root}; start one with `razao up`")
    settings = _settings(data=directory.root)
    bearer = sign_token(
        directory.keys,
        sub="demo",
        scope="ledger:read ledger:write ledger:fund",
        audience=settings.token_audience,
        issuer=settings.token_issuer,
        expires_in=600,
    )
    headers = {"Authorization": f"Bearer {bearer}"}
    with httpx.Client(base_url=running.url, headers=headers, timeout=30, trust_env=False) as client:
        try:
            Demo(client, lambda line: out.print(line, markup=False)).run()
        except httpx.HTTPError as error:
            raise EngineError(f"{running.url} does not answer: {error}") from error


def _show_demo(directory: DataDirectory) -> None:
    """The demo of an engine that goes on whatever becomes of it."""
    try:
        _run_demo(directory)
    except EngineError as error:
        err.print(f"[red]the demo stopped:[/] {error}", markup=True)


@app.command()
def demo(data: Data = None) -> None:
    """Open accounts, move money, refuse an overdraft, hold and post, and print what was done."""
    try:
        _run_demo(_directory(data))
    except EngineError as error:
        fail(str(error), 1)


def main() -> None:
    """Entry point of the `razao` script."""
    app()
