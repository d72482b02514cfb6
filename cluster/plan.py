"""What the supervisor tells the processes that it starts: settings, secrets and the addresses of this run."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.recovery import Windows
from cluster.data import DataDirectory, Secrets, write_private
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

    def as_json(self) -> str:
        """For a child's standard input, never its command line: it has secrets."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        fields |= {"settings": self.settings.model_dump(mode="json"), "secrets": dataclasses.asdict(self.secrets)}
        return json.dumps(fields)

    def save(self) -> Path:
        """Write it where only its owner may read it: what is handed to Serve can be seen in its dashboard."""
        path = self.data.run / "plan.json"
        write_private(path, self.as_json())
        return path

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan that `as_json` wrote. Settings given in it win over the environment."""
        content: dict[str, Any] = json.loads(text)
        content["settings"] = Settings(**content["settings"])
        content["secrets"] = Secrets(**content["secrets"])
        content["windows"] = Windows(*content["windows"])
        return cls(**content)
