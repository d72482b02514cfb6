"""Settings: what is given wins, what cannot be is refused, and paths mean the same in every process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from actors.recovery import Windows
from cluster.data import Secrets
from cluster.plan import Plan
from cluster.settings import Settings


def settings(**given: Any) -> Settings:
    """Settings from the environment and what is given."""
    return Settings(**given)


def test_relative_paths_mean_the_directory_of_the_one_who_gave_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plan = Plan(
        settings(jwks="keys.json"), Secrets("e", "00", "00", "s"), 2, Windows(), "dsn", 1, 2, "http://localhost"
    )
    text = plan.as_json()
    monkeypatch.chdir("/")
    again = Plan.from_json(text)
    assert again.settings.data == tmp_path / "var"
    assert again.settings.snapshot_location == str(tmp_path / "var" / "snapshots")
    assert again.jwks == str(tmp_path / "keys.json")
    assert settings(jwks="https://issuer/jwks").jwks == "https://issuer/jwks"
    assert settings(snapshots="s3://bucket/prefix").snapshot_location == "s3://bucket/prefix"


def test_the_environment_is_read_and_what_is_given_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAZAO_PORT", "8123")
    assert settings().port == 8123
    assert settings(port=9000).port == 9000


@pytest.mark.parametrize("shards", [0, 3, 2048])
def test_shards_are_a_power_of_two(shards: int) -> None:
    with pytest.raises(ValidationError):
        settings(shards=shards)
