"""A Keycloak of our own: an OpenID Connect provider for development, on its file database, loopback and plain HTTP.

The published distribution is unpacked and configured once per user in the cache; a directory has only its data and
links into it. The administrator's password is made at the first start.

DIR/home/        what Keycloak takes for its installation; DIR/home/data is its database and the realms to import
DIR/password     the password of the administrator `admin`, mode 0600
DIR/server.log   what Keycloak says
"""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Final

import psutil

from cluster.data import write_private
from cluster.processes import port_is_free
from cluster.services.artifacts import ArtifactError, cache_directory, exclusive, fetch
from cluster.services.child import Child, ChildError, ServiceError, working_in
from cluster.services.java import JavaError, java_command, java_environment

ADMIN: Final = "admin"

_LOCK: Final = Path(__file__).with_name("keycloak.lock")
_MAIN_CLASS: Final = "io.quarkus.bootstrap.runner.QuarkusEntryPoint"
_HEAP_MB: Final = 512
_SHARED: Final = ("conf", "lib", "providers", "themes", "version.txt")
_OPTIONS: Final = (
    "-Duser.language=en",
    "-Djava.util.concurrent.ForkJoinPool.common.threadFactory=io.quarkus.bootstrap.forkjoin.QuarkusForkJoinWorkerThreadFactory",
    "-Djava.util.logging.manager=org.jboss.logmanager.LogManager",
    "-Dpicocli.disable.closures=true",
    *(
        f"--add-opens=java.base/{package}=ALL-UNNAMED"
        for package in ("java.lang", "java.util", "java.util.concurrent", "java.security")
    ),
)

logger = logging.getLogger(__name__)


class KeycloakError(ServiceError):
    """Keycloak could not be made, started or stopped; the message has its last words."""


class KeycloakServer:
    """One Keycloak in `directory`, on 127.0.0.1:`port`. Not thread-safe; one owner at a time."""

    parts: ClassVar[Sequence[str]] = ("keycloak",)

    def __init__(
        self, directory: Path, port: int, *, realms: Path | None = None, env: Mapping[str, str] | None = None
    ) -> None:
        """`realms`: a directory of realm files (JSON) that are imported at the start, those that do not exist yet;
        `env` is added to this process's environment."""
        self.directory = directory.absolute()
        self.port = port
        self.log = self.directory / "server.log"
        self.url = f"http://127.0.0.1:{port}"
        self._realms = realms
        self._env = dict(env or {})
        self._home = self.directory / "home"
        self._import = self._home / "data" / "import"
        self._temporary = self.directory / "tmp"
        self._password_file = self.directory / "password"
        self._child = Child(self.directory, _MAIN_CLASS, self.log)

    @property
    def pid(self) -> int | None:
        """Process id, None when it does not run."""
        return self._child.pid

    @property
    def password(self) -> str:
        """The administrator's password."""
        return self._password_file.read_text().strip()

    @property
    def realm(self) -> str:
        """The realm that tokens come from: the first imported one, else Keycloak's own."""
        for path in sorted(self._import.glob("*.json")):
            name = json.loads(path.read_text()).get("realm")
            if name:
                return str(name)
        return "master"

    @property
    def engine_settings(self) -> dict[str, str]:
        """What to set so that an engine trusts its tokens, and how to administer it.

        Tokens must be made for the audience `payments`; realm roles named like the ledger's scopes give them.
        """
        roles = {scope: [scope] for scope in ("ledger:read", "ledger:write", "ledger:fund")}
        provider = {
            "name": "keycloak",
            "issuer": f"{self.url}/realms/{self.realm}",
            "audience": "payments",
            "scopes": {"realm_access.roles": roles},
        }
        return {
            "RAZAO_OIDC_ISSUERS": json.dumps([provider]),
            "RAZAO_KEYCLOAK_URL": self.url,
            "RAZAO_KEYCLOAK_ADMIN": ADMIN,
            "RAZAO_KEYCLOAK_ADMIN_PASSWORD": self.password,
        }

    def found(self) -> dict[str, psutil.Process]:
        """The live Keycloak of this directory, whoever started it."""
        return dict(zip(self.parts, working_in(self.directory, _MAIN_CLASS), strict=False))

    def start(self, *, timeout_s: float = 180.0, progress: Callable[[str], None] | None = None) -> None:
        """Bring what it needs, end what a dead owner left, start, and wait until its realm answers.

        Raises:
            KeycloakError: something it needs is missing, the port is taken, it exited or was not ready in time.
        """
        if self.pid is not None:
            return
        say = progress or logger.info
        try:
            installed = _install(say)
            self._prepare(installed)
            say("starting Keycloak (half a minute)")
            own = {"KC_BOOTSTRAP_ADMIN_USERNAME": ADMIN, "KC_BOOTSTRAP_ADMIN_PASSWORD": self.password}
            self._child.spawn(self._command(), java_environment([installed / _RUNNER], {**self._env, **own}))
            self._child.await_ready(self._answers, timeout_s)
        except (ArtifactError, JavaError, ChildError) as error:
            raise KeycloakError(str(error)) from error
        except OSError as error:
            raise KeycloakError(f"cannot use {self.directory}: {error}") from error

    def stop(self, *, timeout_s: float = 20.0) -> None:
        """Stop it cleanly; after `timeout_s` kill it."""
        self._child.stop(timeout_s)

    def _prepare(self, installed: Path) -> None:
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._child.end_leftovers()
        if not port_is_free("127.0.0.1", self.port):
            raise KeycloakError(f"port {self.port} is taken by another process")
        shutil.rmtree(self._temporary, ignore_errors=True)
        self._temporary.mkdir(mode=0o700)
        if not self._password_file.exists():
            write_private(self._password_file, secrets.token_hex(32))
        self._import.mkdir(parents=True, exist_ok=True)
        for name in _SHARED:
            link = self._home / name
            link.unlink(missing_ok=True)
            link.symlink_to(installed / name)
        for path in sorted(self._realms.glob("*.json")) if self._realms is not None else ():
            shutil.copy(path, self._import)

    def _command(self) -> list[str]:
        command = [*java_command(_HEAP_MB, self._temporary), *_OPTIONS, f"-Dkc.home.dir={self._home}", _MAIN_CLASS]
        command += ["start", "--optimized", "--import-realm", "--cache=local", "--hostname-strict=false"]
        return [*command, "--http-enabled=true", "--http-host=127.0.0.1", f"--http-port={self.port}"]

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/realms/{self.realm}", timeout=5) as answer:  # noqa: S310
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False


_RUNNER: Final = Path("lib", "quarkus-run.jar")


def _install(progress: Callable[[str], None]) -> Path:
    """The unpacked distribution, configured for its file database; done once per user and version."""
    digest = hashlib.sha256(_LOCK.read_bytes() + " ".join(_OPTIONS).encode()).hexdigest()[:16]
    installed = cache_directory() / "keycloak" / digest
    if not installed.exists():
        (archive,) = fetch(_LOCK, progress=progress)
        with exclusive("keycloak"):
            if not installed.exists():
                progress("configuring Keycloak (once, half a minute)")
                _unpack(archive, installed)
    return installed


def _unpack(archive: Path, installed: Path) -> None:
    installed.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=installed.parent) as scratch:
        with zipfile.ZipFile(archive) as file:
            file.extractall(scratch)
        (home,) = Path(scratch).iterdir()
        command = [*java_command(_HEAP_MB, Path(scratch)), *_OPTIONS, f"-Dkc.home.dir={home}", _MAIN_CLASS]
        done = subprocess.run(
            [*command, "build", "--db=dev-file"],
            cwd=scratch,
            env=java_environment([home / _RUNNER], {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        if done.returncode != 0:
            raise KeycloakError(f"Keycloak could not be configured: {done.stdout.decode(errors='replace')[-2000:]}")
        home.rename(installed)
