"""`razao users`, `razao clients`, `razao keys`: the operator's side of the identity service, running or not."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Coroutine
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from cluster.console import Data, Json, directory_of, err, fail, out, settings_of
from cluster.data import EngineError
from deployments.identity_roles import Role

if TYPE_CHECKING:
    import asyncpg

    from storage.trace_users import TraceUsers

    Pool = asyncpg.Pool[asyncpg.Record]

users = typer.Typer(help="People who may log in.", no_args_is_help=True)
clients = typer.Typer(help="Programs that people are sent to log in by, and systems.", no_args_is_help=True)
keys = typer.Typer(help="The keys that tokens are signed with, and the vault's.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NAME", show_default=False)]


class Tier(StrEnum):
    """The services that have users of their own."""

    TRACE = "trace"


OfTier = Annotated[
    Tier | None, typer.Option(help="A service that has users of its own; default: whoever logs in for tokens.")
]


def _with_store(data: Path | None, work: Callable[[Pool, bytes], Awaitable[Any]]) -> Any:
    """Do something with the store of identities and the ledger's key."""
    from cluster import identity
    from cluster.stores import pool_of, stores_of

    directory = directory_of(data)

    async def run() -> Any:
        key = bytes.fromhex(directory.secrets().ledger_key)
        async with stores_of(directory, settings_of(data=data)) as stores, pool_of(stores.dsn, connections=2) as pool:
            if not stores.live:
                await identity.prepare(pool, key, say=lambda line: err.print(line, markup=False))
            return await work(pool, key)

    return _done(run())


def _with_trace(data: Path | None, work: Callable[[TraceUsers], Awaitable[Any]]) -> Any:
    """Do something with the trace's own users."""
    from cluster.documents import open_documents
    from cluster.stores import stores_of
    from storage.trace_users import COLLECTIONS, TraceUsers

    async def run() -> Any:
        async with stores_of(directory_of(data), settings_of(data=data)) as stores:
            database = await open_documents(stores.settings, stores.dsn, COLLECTIONS)
            try:
                return await work(TraceUsers(database))
            finally:
                await database.close()

    return _done(run())


def _done(work: Coroutine[Any, Any, Any]) -> Any:
    from storage.documents import StoreAway

    try:
        return asyncio.run(work)
    except EngineError as error:
        fail(str(error), 1)
    except StoreAway:
        fail("the store of documents does not answer", 1)


def _show(found: Any, as_json: bool, *columns: str) -> None:
    if as_json:
        out.print(json.dumps(found), markup=False)
        return
    table = Table(*columns)
    for one in found if isinstance(found, list) else [found]:
        table.add_row(*("" if one.get(name) is None else str(one[name]) for name in columns))
    out.print(table)


@users.command("add")
def users_add(
    name: Name,
    password_stdin: Annotated[bool, typer.Option("--password-stdin", help="Read the password from standard input.")],
    role: Annotated[Role, typer.Option(help="What they may.")] = Role.PERSON,
    tier: OfTier = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Add somebody. The password comes on standard input, never on the command line, which others can see."""
    from cluster import identity, trace

    password = _password(given=password_stdin)
    length_min = settings_of(data=data).password_length_min
    if tier is not None:
        if role is not Role.PERSON:
            fail("users of a tier have no role")
        _show(
            _with_trace(data, lambda users: trace.add_user(users, name, password, length_min=length_min)),
            as_json, "username", "disabled",
        )  # fmt: skip
        return
    found = _with_store(data, lambda pool, _: identity.add_user(pool, name, role, password, length_min=length_min))
    _show(found, as_json, "sub", "username", "role")


@users.command("password")
def users_password(
    name: Name,
    password_stdin: Annotated[bool, typer.Option("--password-stdin", help="Read the password from standard input.")],
    tier: Annotated[Tier, typer.Option(help="The service that the user belongs to.")],
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Change the password of a user of a tier; the old one ends within a second. People change theirs themselves."""
    from cluster import trace

    password = _password(given=password_stdin)
    length_min = settings_of(data=data).password_length_min
    found = _with_trace(data, lambda users: trace.set_password(users, name, password, length_min=length_min))
    _show(found, as_json, "username")


@users.command("list")
def users_list(tier: OfTier = None, data: Data = None, as_json: Json = False) -> None:
    """Everybody, by name."""
    from cluster import identity, trace

    if tier is not None:
        _show(_with_trace(data, trace.list_users), as_json, "username", "disabled")
        return
    found = _with_store(data, lambda pool, _: identity.list_users(pool))
    _show(found, as_json, "username", "role", "disabled", "proven", "sub", "created_at")


@users.command("invite")
def users_invite(
    expires_in: Annotated[int, typer.Option(min=60, help="Seconds that it can be used.")] = 7 * 86_400,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Print a code by which one person can register, where RAZAO_REGISTRATION=invited. It is shown this once."""
    from cluster import identity

    found = _with_store(data, lambda pool, key: identity.invite(pool, key, expires_in))
    _show(found, as_json, "invitation", "expires_at")


@users.command("prove")
def users_prove(
    name: Name,
    tax_id: Annotated[str, typer.Option(help="The CPF or CNPJ that they have shown; the one they registered with.")],
    method: Annotated[str, typer.Option(help="By what, for the audit table: small letters and hyphens.")] = "document",
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Say that a tax id is somebody's. What it opens is theirs with their next login or refresh."""
    from cluster import identity

    repeated = settings_of(data=data).repeated_tax_ids
    found = _with_store(data, lambda pool, key: identity.prove_user(pool, key, name, tax_id, method, repeated=repeated))
    _show(found, as_json, "username", "proven", "sub")


@users.command("unprove")
def users_unprove(
    name: Name,
    reason: Annotated[str, typer.Option(help="Why, for the audit table: small letters and hyphens.")] = "mistake",
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Take a proof back; access tokens that speak for the tax id stop at once."""
    from cluster import identity

    found = _with_store(data, lambda pool, _: identity.unprove_user(pool, name, reason))
    _show(found, as_json, "username", "proven", "sub")


@users.command("disable")
def users_disable(name: Name, tier: OfTier = None, data: Data = None, as_json: Json = False) -> None:
    """Let somebody in no more; their tokens and access keys end at once and for good, a tier's user within a second."""
    _set_enabled(name, tier, data, as_json, enabled=False)


@users.command("enable")
def users_enable(name: Name, tier: OfTier = None, data: Data = None, as_json: Json = False) -> None:
    """Let somebody in again. What was ended stays so: they log in anew and make new access keys."""
    _set_enabled(name, tier, data, as_json, enabled=True)


def _set_enabled(name: str, tier: Tier | None, data: Path | None, as_json: bool, *, enabled: bool) -> None:
    from cluster import identity, trace

    if tier is not None:
        found = _with_trace(data, lambda users: trace.set_enabled(users, name, enabled=enabled))
        _show(found, as_json, "username", "disabled")
        return
    found = _with_store(data, lambda pool, _: identity.set_enabled(pool, name, enabled=enabled))
    _show(found, as_json, "username", "disabled", "sub")


def _password(*, given: bool) -> str:
    if not given:
        fail("give --password-stdin, and the password on standard input")
    return sys.stdin.readline().rstrip("\r\n")


@clients.command("add")
def clients_add(
    name: Name,
    redirect_uri: Annotated[
        list[str] | None,
        typer.Option(
            "--redirect-uri",
            metavar="URI",
            help="Where people come back to. Without any: a system that acts for itself.",
        ),
    ] = None,
    scope: Annotated[list[str] | None, typer.Option("--scope", help="What it may ask for.")] = None,
    public: Annotated[bool, typer.Option("--public", help="It can keep no secret: an app, a page.")] = False,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Add a client, and print its id and its secret, which is shown this once."""
    from cluster import identity

    scopes = [one for given in scope or [] for one in given.split()]
    found = _with_store(
        data,
        lambda pool, key: identity.add_client(pool, key, name, redirect_uri or [], public=public, scopes=scopes),
    )
    _show(found, as_json, "client_id", "client_secret", "name")


@keys.command("list")
def keys_list(data: Data = None, as_json: Json = False) -> None:
    """The signing keys that verify: the newest active one signs, the next one waits."""
    from cluster import identity

    found = _with_store(data, lambda pool, _: identity.list_keys(pool))
    _show(found, as_json, "kid", "state", "active_at", "expires_at")


@keys.command("rotate")
def keys_rotate(
    vault: Annotated[bool, typer.Option("--vault", help="The vault's master key instead of the signing key.")] = False,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """The key in waiting signs from now on; what was signed before stays good for its life.

    With --vault every person's key is put under a new master key, while the vault goes on, and the old one destroyed.
    """
    from cluster import identity

    if vault:
        _show(_rotate_vault(data), as_json, "master", "keys", "retired")
        return
    found = _with_store(data, identity.rotate_keys)
    _show(found, as_json, "kid", "state", "active_at", "expires_at")


def _rotate_vault(data: Path | None) -> Any:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from cluster.vault import rotate_keys

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=err, disable=not err.is_terminal) as progress:
        bar = progress.add_task("people's keys under the new master", total=None)
        return _with_store(
            data,
            lambda pool, _: rotate_keys(
                pool, directory_of(data), progress=lambda done, total: progress.update(bar, completed=done, total=total)
            ),
        )
