"""What the supervisor tells the processes that it starts: settings, secrets and the addresses of this run."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.recovery import Windows
from cluster.data import DataDirectory, EngineError, Secrets, write_private
from cluster.settings import Settings


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that actors and replicas are configured with."""

    settings: Settings
    secrets: Secrets
    partitions: int
    windows: Windows
    dsn: str
    application_port: int  # where replicas listen, or Serve's proxy does
    identity_port: int  # where replicas of the identity application listen
    public_url: str  # the issuer of our own tokens
    gateway_url: str = ""  # the public door as this machine reaches it
    vault_port: int = 0  # where replicas of the vault listen; its door is `settings.vault_port`
    score_port: int = 0
    trace_port: int = 0

    @property
    def data(self) -> DataDirectory:
        """The engine's directory."""
        return DataDirectory(self.settings.data)

    @property
    def ledger_key(self) -> bytes:
        """32 bytes: owner hashes, slots, hash chain."""
        return bytes.fromhex(self.secrets.ledger_key)

    @property
    def jwks(self) -> str:
        """URL or file of the keys that access tokens are verified with."""
        return self.settings.jwks or str(Path(self.data.keys) / "jwks.json")

    @property
    def vault_url(self) -> str:
        """Where the score asks the vault."""
        host = loopback_of(self.settings.host)
        return self.settings.vault_url or f"https://{host}:{self.settings.vault_port}"

    @property
    def vault_server_ca(self) -> Path | None:
        """PEM file of the authority that the vault's certificate must be of; None: one of the system's."""
        given = self.settings.vault_server_ca
        if given is not None or self.settings.tls_certificate is not None or self.settings.vault_url is not None:
            return given
        return own_certificate(self.data)

    def store_settings(self) -> dict[str, Any]:
        """Those of the settings that say where journal and documents are: fixed for as long as the engine runs."""
        names = [name for name in Settings.model_fields if name == "journal" or name.startswith(("kafka_", "mongo_"))]
        return {name: getattr(self.settings, name) for name in names}

    def as_json(self) -> str:
        """For a child's standard input, never its command line: it has secrets."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        fields |= {"settings": self.settings.model_dump(mode="json"), "secrets": dataclasses.asdict(self.secrets)}
        return json.dumps(fields)

    def save(self) -> Path:
        """Write it where only its owner may read it: what is handed to Serve can be seen in its dashboard."""
        path = _file(self.data)
        write_private(path, self.as_json())
        return path

    def handed_down(self) -> dict[str, str]:
        """Save it; what an application's replicas are configured with, so that they find it (`taken_up`).

        The digest makes another plan another deployment, so that replicas are rolled over to it.
        """
        return {"plan": str(self.save()), "digest": hashlib.sha256(self.as_json().encode()).hexdigest()}

    @classmethod
    async def taken_up(cls, config: Mapping[str, Any]) -> Plan:
        """The plan that was `handed_down`."""
        return cls.from_json(await asyncio.to_thread(Path(config["plan"]).read_text))

    @classmethod
    def load(cls, data: DataDirectory) -> Plan:
        """The plan that the engine on `data` was deployed with.

        Raises:
            EngineError: it has not come as far.
        """
        try:
            return cls.from_json(_file(data).read_text())
        except FileNotFoundError:
            raise EngineError("the engine has not come as far as its replicas; see `razao status`") from None

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan that `as_json` wrote. Settings given in it win over the environment."""
        content: dict[str, Any] = json.loads(text)
        content["settings"] = Settings(**content["settings"])
        content["secrets"] = Secrets(**content["secrets"])
        content["windows"] = Windows(*content["windows"])
        return cls(**content)


def vault_tls(plan: Plan) -> ssl.SSLContext:
    """How the vault's door is entered: whom to believe, and the certificate to show where one is asked for."""
    context = ssl.create_default_context(cafile=plan.vault_server_ca)
    if plan.settings.score_client_certificate is not None:
        context.load_cert_chain(plan.settings.score_client_certificate)
    return context


def loopback_of(host: str) -> str:
    """The address, as it stands in a URL, by which this machine reaches what listens on `host`."""
    host = {"0.0.0.0": "127.0.0.1", "*": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - what they mean
    return f"[{host}]" if ":" in host else host


def own_certificate(data: DataDirectory) -> Path:
    """The public half of the certificate that the engine makes for itself."""
    return data.root / "tls" / "localhost.crt"


def _file(data: DataDirectory) -> Path:
    return data.run / "plan.json"
