"""The engines that several modules share, for tests that neither kill a part of one nor change its settings."""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

import httpx
import pytest

from tests.authority import Authority, authority
from tests.engine import Engine

_NONE: Final[Mapping[str, str]] = MappingProxyType({})


class TiersEngine(Engine):
    """With vault, score and trace. The vault lets one address in, and only with a client certificate."""

    def __init__(self, directory: Path) -> None:
        self.authority: Authority = authority(directory, "banks")
        settings = {
            "vault_allowlist": "127.0.0.1/32",
            "vault_replicas_max": "2",  # whatever the cores
            "vault_client_ca": str(self.authority.certificate),
            "score_client_certificate": str(self.authority.client),
            "ingress": "serve",  # for payments, so that there is a port of Serve to try
            "transport": "ray",  # with it, the other way from client to shard
        }
        super().__init__(directory / "var", tiers="vault,score,trace", settings=settings)

    def http(self, token: str | None = None, headers: Mapping[str, str] = _NONE) -> httpx.Client:
        """A client of the public door."""
        return httpx.Client(base_url=self.url, headers=_with(token, headers), timeout=30, trust_env=False)

    def vault(
        self,
        token: str | None = None,
        headers: Mapping[str, str] = _NONE,
        *,
        source: str = "127.0.0.1",
        certificate: bool = True,
    ) -> httpx.Client:
        """A client of the vault's door, at the address `source`, with or without a certificate of its own."""
        transport = httpx.HTTPTransport(verify=self.vault_tls(certificate=certificate), local_address=source)
        return httpx.Client(base_url=self.vault_url, headers=_with(token, headers), timeout=30, transport=transport)

    @property
    def vault_url(self) -> str:
        """Its door."""
        return f"https://127.0.0.1:{self.vault_port}"

    def vault_tls(self, *, certificate: bool = True) -> ssl.SSLContext:
        """What trusts the door, and shows it the certificate of a client."""
        context = ssl.create_default_context(cafile=str(self.data / "tls" / "localhost.crt"))
        if certificate:
            context.load_cert_chain(self.authority.client)
        return context


def _with(token: str | None, headers: Mapping[str, str]) -> dict[str, str]:
    return dict(headers) if token is None else {"Authorization": f"Bearer {token}", **headers}


@pytest.fixture(scope="package")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """One with HTTPS and without tiers, each test with people of its own."""
    one = Engine(tmp_path_factory.mktemp("engine") / "var", tls=True)
    try:
        yield one.start()
    finally:
        one.stop()


@pytest.fixture(scope="package")
def tiers_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TiersEngine]:
    """One for all of them, each with people of its own."""
    one = TiersEngine(tmp_path_factory.mktemp("tiers"))
    try:
        one.start()
        yield one
    finally:
        one.stop()
