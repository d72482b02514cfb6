"""The `razao` command. Each sub-command is a few lines here and a module of its own behind it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from cluster.cli_identity import clients, keys, users
from cluster.console import Data, Json, directory_of, err, fail, out, settings_of
from cluster.data import DataDirectory, EngineError
from cluster.settings import JournalKind, Settings

if TYPE_CHECKING:
    from cluster.services.manager import State

app = typer.Typer(
    name="razao",
    help="Razao: an actor-based transaction engine for instant payments.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(users, name="users")
app.add_typer(clients, name="clients")
app.add_typer(keys, name="keys")


@app.command()
def up(
    data: Data = None,
    port: Annotated[int | None, typer.Option(help="HTTP port; 0 picks a free one.  [default: 8000]")] = None,
    tls_port: Annotated[int | None, typer.Option(help="HTTPS port; 0: no HTTPS.  [default: 8443]")] = None,
    vault_port: Annotated[int | None, typer.Option(help="The vault's port; 0: no vault.  [default: 8444]")] = None,
    shards: Annotated[
        int | None, typer.Option(help="Shards of a new ledger, a power of two.  [default: by the cores]")
    ] = None,
    journal: Annotated[JournalKind | None, typer.Option(help="Where the journal lies.  [default: postgres]")] = None,
    accept_clock: Annotated[
        bool | None, typer.Option("--accept-clock", help="The machine's clock is right, though nothing vouches for it.")
    ] = None,
    demo: Annotated[bool, typer.Option("--demo", help="Run the demo once when ready.")] = False,
) -> None:
    """Start the engine and keep it running; Ctrl-C or SIGTERM stops everything that it started."""
    from cluster.supervisor import Supervisor

    settings = settings_of(
        data=data, port=port, tls_port=tls_port, vault_port=vault_port, shards=shards, journal=journal,
        accept_clock=accept_clock,
    )  # fmt: skip
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
        out.print(stop(directory_of(data)), markup=False)
    except EngineError as error:
        fail(str(error), 1)


@app.command()
def redeploy(data: Data = None) -> None:
    """Roll a running engine's replicas over to the settings, and the code, of now, without losing a request."""
    from cluster.redeploy import redeploy as run

    try:
        run(settings_of(data=data), say=lambda line: out.print(line, markup=False))
    except EngineError as error:
        fail(str(error), 1)


@app.command()
def status(data: Data = None, as_json: Json = False) -> None:
    """Show whether the engine serves, its shards, its projection and its processes; exit 3 when it does not serve."""
    from cluster.status import collect

    try:
        found = asyncio.run(collect(directory_of(data)))
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
    for name, answers in found["applications"].items():
        out.print(f"{name}: {'[green]ready[/]' if answers else '[red]not ready[/]'}")
    shards = Table("shard", "pid", "epoch", "offset", "accounts", "transfers", title="Shards", title_justify="left")
    for one in found["shards"]:
        shards.add_row(*(str(one[key]) for key in ("name", "pid", "epoch", "offset", "accounts", "transfers")))
    out.print(shards)
    out.print(f"Projection: {found['projection']['lag']} records behind")
    processes = Table("role", "name", "pid", title="Processes", title_justify="left")
    for one in found["processes"]:
        processes.add_row(one["role"], one["name"], str(one["pid"]))
    out.print(processes)


class Audience(StrEnum):
    """Whom a token may be for."""

    PAYMENTS = "payments"
    VAULT = "vault"
    SCORE = "score"


@app.command()
def token(
    sub: Annotated[str, typer.Option(help="Whom the token speaks for: the `sub` claim.")],
    scope: Annotated[str, typer.Option(help='Scopes, separated by blanks, such as "ledger:read ledger:write".')],
    expires_in: Annotated[int, typer.Option(min=1, help="Seconds until it expires.")] = 3600,
    audience: Annotated[Audience, typer.Option(help="Whom it is for.")] = Audience.PAYMENTS,
    tax_id: Annotated[
        str | None, typer.Option(help="CPF or CNPJ of the person whom it speaks for, for what they may with their own.")
    ] = None,
    data: Data = None,
) -> None:
    """Sign an access token with the embedded key and print it alone."""
    from deployments.auth.keys import ensure_keys, sign_token

    settings = settings_of(data=data)
    if not settings.trusts_embedded_key:
        fail(
            "the embedded key is not trusted here, so nobody would take the token: log in instead, or set "
            "RAZAO_TRUST_EMBEDDED_KEY=true for development",
            1,
        )
    directory = DataDirectory(settings.data)
    try:
        directory.make()
        ensure_keys(directory.keys)
        signed = sign_token(
            directory.keys,
            sub=sub,
            scope=scope,
            audience=settings.token_audience if audience is Audience.PAYMENTS else audience,
            issuer=settings.token_issuer,
            expires_in=expires_in,
            person=None if tax_id is None else _person(directory, settings, tax_id),
        )
    except (EngineError, ValueError) as error:
        fail(str(error), 1)
    print(signed)  # noqa: T201 - the token alone, without a terminal's wrapping


def _person(directory: DataDirectory, settings: Settings, tax_id: str) -> str:
    """The claim that ties a token to a tax id.

    Raises:
        EngineError: it is no CPF or CNPJ.
    """
    from deployments.problems import ProblemError
    from deployments.tax_id import read_tax_id
    from storage.references import person_reference

    try:
        plain = read_tax_id(tax_id, "--tax-id", repeated=settings.repeated_tax_ids)
    except ProblemError as error:
        raise EngineError(error.detail) from None
    return person_reference(bytes.fromhex(directory.secrets().ledger_key), plain).hex()


@app.command()
def verify(data: Data = None, as_json: Json = False) -> None:
    """Replay the journal from the start and compare everything with it; exit 1 where it differs."""
    from cluster.verify import verify as run

    try:
        report = asyncio.run(run(settings_of(data=data), show_progress=not as_json))
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
        asyncio.run(run(settings_of(data=data), say=lambda line: out.print(line, markup=False)))
    except EngineError as error:
        fail(str(error), 1)


clock = typer.Typer(help="What the shards' clocks say, and whether they are believed.", invoke_without_command=True)
app.add_typer(clock, name="clock")


@clock.callback()
def clock_show(context: typer.Context, data: Data = None, as_json: Json = False) -> None:
    """Show what each shard's clock says; exit 3 when one is not believed, so that its shard does not serve."""
    if context.invoked_subcommand is None:
        from cluster.clock import show

        _show_clocks(show(directory_of(data)), as_json)


@clock.command("accept")
def clock_accept(data: Data = None, as_json: Json = False) -> None:
    """Go on with the clocks as they are now: they are right, whatever the last stamps were."""
    from cluster.clock import accept

    _show_clocks(accept(directory_of(data)), as_json)


def _show_clocks(asked: Coroutine[Any, Any, list[dict[str, Any]]], as_json: bool) -> None:
    try:
        found = asyncio.run(asked)
    except EngineError as error:
        fail(str(error), 1)
    if as_json:
        out.print(json.dumps({"clocks": found}), markup=False)
    else:
        clocks = Table("shard", "clock", "believed", title="Clocks", title_justify="left")
        for one in found:
            said = (
                datetime.fromtimestamp(one["clock_ns"] // 10**9, UTC).isoformat() if one["reached"] else "not reached"
            )
            ahead = one["clock_ahead_s"]
            clocks.add_row(one["name"], said, f"[red]no, {ahead:.0f} s ahead[/]" if ahead else "yes" * one["reached"])
        out.print(clocks)
    if any(one["clock_ahead_s"] for one in found):
        raise typer.Exit(3)


services = typer.Typer(
    help="Real servers out of package registries alone: kafka, mongo (its protocol), keycloak. Loopback only.",
    no_args_is_help=True,
)
app.add_typer(services, name="services")


class ServiceName(StrEnum):
    """The servers that there are."""

    KAFKA = "kafka"
    MONGO = "mongo"
    KEYCLOAK = "keycloak"


Named = Annotated[list[ServiceName] | None, typer.Argument(metavar="[kafka] [mongo] [keycloak]", show_default=False)]


@services.command("up")
def services_up(
    names: Named = None,
    data: Data = None,
    secure: Annotated[bool | None, typer.Option(help="Kafka with TLS and a login, or without.")] = None,
    realms: Annotated[Path | None, typer.Option(help="Directory of realm files that Keycloak imports.")] = None,
    as_json: Json = False,
) -> None:
    """Start servers that go on when this command ends, and print what to set; no names: kafka and mongo."""
    from cluster.services.child import ServiceError
    from cluster.services.manager import Services

    try:
        console = err if as_json else out
        states = Services(directory_of(data).root).up(
            names or [], secure=secure, realms=realms, say=lambda line: console.print(line, markup=False)
        )
    except ServiceError as error:
        fail(str(error), 1)
    _show_services(states, as_json)


@services.command("down")
def services_down(names: Named = None, data: Data = None) -> None:
    """End the servers that were started here; no names: all of them. Their data stays."""
    from cluster.services.child import ServiceError
    from cluster.services.manager import Services

    try:
        ended = Services(directory_of(data).root).down(names or [])
    except ServiceError as error:
        fail(str(error), 1)
    out.print(f"ended: {', '.join(ended)}" if ended else "nothing ran", markup=False)


@services.command("status")
def services_status(names: Named = None, data: Data = None, as_json: Json = False) -> None:
    """Show the servers that were ever started here and what to set for them; exit 3 when one of them does not run."""
    from cluster.services.child import ServiceError
    from cluster.services.manager import Services

    try:
        states = Services(directory_of(data).root).status(names or [])
    except ServiceError as error:
        fail(str(error), 1)
    _show_services(states, as_json)
    if not all(state.running for state in states):
        raise typer.Exit(3)


def _show_services(states: list[State], as_json: bool) -> None:
    if as_json:
        out.print(json.dumps({"services": [state.as_dict() for state in states]}), markup=False)
        return
    for state in states:
        pids = ", ".join(f"{part} {pid}" for part, pid in state.pids.items())
        out.print(f"# {state.name}: {f'port {state.port}, {pids}' if state.running else 'does not run'}", markup=False)
        for name, value in state.settings.items():
            out.print(f"{name}={value}", markup=False)
    if not states:
        out.print("no services were started here", markup=False)


def _show_demo(directory: DataDirectory) -> None:
    """The demo of an engine that goes on whatever becomes of it."""
    from cluster.demo_run import run

    try:
        run(directory, lambda line: out.print(line, markup=False))
    except EngineError as error:
        err.print(f"[red]the demo stopped:[/] {error}", markup=True)


@app.command()
def demo(data: Data = None) -> None:
    """Open accounts and move money; register, log in and pay; open the doors of the three tiers; show each refusal."""
    from cluster.demo_run import run

    try:
        run(directory_of(data), lambda line: out.print(line, markup=False))
    except EngineError as error:
        fail(str(error), 1)


def main() -> None:
    """Entry point of the `razao` script."""
    app()
