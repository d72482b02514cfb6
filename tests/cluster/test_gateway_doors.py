"""A door of one application alone: its port, its networks, its certificates, and that no other door leads to it."""

from __future__ import annotations

import http.client
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from cluster.certificates import ensure_certificate
from cluster.gateway import Application, Door, Gateway, GatewayConfig, GatewayError, render
from cluster.processes import free_ports
from deployments import problems
from tests.authority import authority
from tests.cluster.test_gateway import PATIENCE_S, SECRET, Answer, Site, assert_problem, read, statistics

LOCALHOST: Final = "127.0.0.1"


class Doors:
    """A gateway whose vault has a door of its own; one replica stands behind both doors and tells what it was sent."""

    def __init__(
        self, site: Site, *, networks: tuple[str, ...] = ("127.0.0.1/32",), client_ca: Path | None = None
    ) -> None:
        self.port, self.vault_port = free_ports(2)
        self.run_dir = site.directory / f"run-{self.port}"
        self.certificate = ensure_certificate(site.directory / "tls")
        vault = Application("vault", site.app_port, prefixes=("/vault",), networks=networks)
        self.gateway = Gateway(
            GatewayConfig(
                http_port=self.port,
                applications=[Application("payments", site.app_port)],
                doors=[Door(vault, self.vault_port, self.certificate, client_ca)],
                secret=SECRET,
                run_dir=self.run_dir,
            )
        )
        self.gateway.start()

    def public(self, path: str) -> Answer:
        """What the public port answers."""
        with socket.create_connection((LOCALHOST, self.port), timeout=PATIENCE_S) as connection:
            return _get(connection, path)

    def vault(self, path: str, *, source: str = LOCALHOST, client: Path | None = None, more: str = "") -> Answer:
        """What the vault's port answers a client at the address `source` with the certificate `client`."""
        context = ssl.create_default_context(cafile=str(self.certificate.with_suffix(".crt")))
        if client is not None:
            context.load_cert_chain(client)
        plain = socket.create_connection((LOCALHOST, self.vault_port), timeout=PATIENCE_S, source_address=(source, 0))
        with context.wrap_socket(plain, server_hostname="localhost") as connection:
            return _get(connection, path, more)


def _get(connection: socket.socket, path: str, more: str = "") -> Answer:
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: razao\r\n{more}\r\n".encode())
    return read(connection)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(tmp_path_factory.mktemp("doors"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def doors(site: Site) -> Iterator[Doors]:
    made = Doors(site)
    yield made
    made.gateway.stop()


@pytest.mark.parametrize("path", ["/vault", "/vault/", "/vault/v1/person", "/vault/v1/person?fields=name"])
def test_the_paths_of_a_door_are_not_found_on_the_public_port(doors: Doors, path: str) -> None:
    assert_problem(doors.public(path), 404, problems.NOT_FOUND)
    assert doors.vault(path).json["path"] == path.partition("?")[0]


@pytest.mark.parametrize("path", ["//vault/v1/person", "/./vault/v1", "/x/../vault/v1", "/%76ault/v1", "/VAULT/v1"])
def test_no_spelling_of_them_leads_there_from_the_public_port(doors: Doors, path: str) -> None:
    """What is not recognized goes to the public application, which knows no such path."""
    before = _sessions(doors)
    assert doors.public(path).status == 200
    assert _sessions(doors) == before
    doors.vault(path)
    assert _sessions(doors) == before + 1


def _sessions(doors: Doors) -> int:
    """How many requests the gateway has sent to the vault."""
    return int(statistics(doors.run_dir, "vault", "BACKEND")["stot"])


def test_everything_at_the_door_goes_to_its_application(doors: Doors) -> None:
    for path in ("/", "/v1/accounts", "/auth/login"):
        assert doors.vault(path).status == 200


def test_the_true_source_decides_whatever_headers_say(doors: Doors) -> None:
    forged = "X-Forwarded-For: 127.0.0.1\r\nForwarded: for=127.0.0.1\r\nRazao-Client-Address: 127.0.0.1\r\n"
    assert_problem(doors.vault("/vault/v1/person", source="127.0.0.2", more=forged), 403, problems.FORBIDDEN)
    inside = doors.vault("/vault/v1/person", more=forged.replace("127.0.0.1", "10.9.8.7"))
    assert inside.seen["razao-client-address"] == LOCALHOST
    assert "10.9.8.7" not in str(inside.json["headers"])


def test_what_a_request_is_about_passes_both_doors(doors: Doors) -> None:
    about = "Razao-Tax-Id: 529.982.247-25\r\nRazao-Purpose: credit\r\nRazao-Person: me\r\n"
    seen = doors.vault("/vault/v1/person", more=about).seen
    assert (seen["razao-tax-id"], seen["razao-purpose"]) == ("529.982.247-25", "credit")
    assert seen["razao-client-scheme"] == "https"
    assert "razao-person" not in seen


def test_what_no_door_takes_this_one_does_not_take_either(doors: Doors) -> None:
    assert_problem(doors.vault("/vault?" + "x" * 9000), 414, problems.TARGET_TOO_LONG)
    assert_problem(doors.vault("/vault", more=f"X-Long: {'x' * 17000}\r\n"), 431, problems.HEADERS_TOO_LARGE)
    assert_problem(doors.vault("/vault", more="Content-Length: 9000000\r\n"), 413, problems.TOO_LARGE)
    assert doors.vault("/vault").headers["x-request-id"]


def test_the_door_speaks_https_alone(doors: Doors) -> None:
    with socket.create_connection((LOCALHOST, doors.vault_port), timeout=PATIENCE_S) as connection:
        connection.sendall(b"GET /vault HTTP/1.1\r\nHost: razao\r\n\r\n")
        assert connection.recv(1) == b""


def test_without_a_certificate_of_the_authority_nobody_is_spoken_to(site: Site, tmp_path: Path) -> None:
    trusted, stranger = authority(tmp_path, "ours"), authority(tmp_path, "theirs")
    doors = Doors(site, client_ca=trusted.certificate)
    try:
        assert doors.vault("/vault/v1/person", client=trusted.client).status == 200
        for client in (None, stranger.client):
            with pytest.raises((ssl.SSLError, http.client.RemoteDisconnected, ConnectionError)):
                doors.vault("/vault/v1/person", client=client)
    finally:
        doors.gateway.stop()


def test_a_door_without_paths_to_close_is_refused(tmp_path: Path) -> None:
    door = Door(Application("vault", 2), 8444, tmp_path / "x.pem")
    config = GatewayConfig(
        http_port=1, applications=[Application("payments", 1)], doors=[door], secret=SECRET, run_dir=tmp_path
    )
    with pytest.raises(GatewayError, match="path prefixes"):
        render(config)
