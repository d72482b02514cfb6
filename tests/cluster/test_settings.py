"""Settings: what is given wins, what cannot be is refused, and paths mean the same in every process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from actors.recovery import Windows
from cluster.data import DataDirectory, Secrets
from cluster.plan import Plan, own_certificate
from cluster.settings import Settings, cores, replicas_for, shards_for


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


@pytest.mark.parametrize(
    ("count", "shards", "replicas"),
    [(1, 1, 1), (2, 1, 1), (3, 1, 1), (4, 1, 2), (7, 1, 3), (8, 2, 4), (15, 2, 7), (16, 4, 8), (64, 16, 32)],
)
def test_shards_and_replicas_follow_the_cores(count: int, shards: int, replicas: int) -> None:
    assert shards_for(count) == shards
    assert replicas_for(count) == replicas


def test_the_defaults_are_those_of_the_cores_that_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    made = settings()
    assert (made.shards, made.replicas_max) == (shards_for(cores()), replicas_for(cores()))
    assert "shards" not in made.model_fields_set  # so that a ledger that is there keeps its number
    monkeypatch.setattr("cluster.settings.cores", lambda: 8192)
    assert settings().shards == 1024


def test_what_an_unproven_person_may_and_who_registers_is_set() -> None:
    made = settings()
    assert (made.registration, made.unproven) == ("open", "limited")
    assert (made.unproven_transfer_max, made.unproven_daily_max) == (20_000, 100_000)
    again = settings(registration="closed", unproven="none", unproven_daily_max=0)
    assert (again.registration, again.unproven, again.unproven_daily_max) == ("closed", "none", 0)
    for wrong in ({"registration": "no"}, {"unproven": "all"}, {"unproven_transfer_max": -1}):
        with pytest.raises(ValidationError):
            settings(**wrong)


def test_a_ceiling_of_deposits_is_an_amount() -> None:
    assert settings().deposit_max == 10**15
    for wrong in (0, 2**63):
        with pytest.raises(ValidationError):
            settings(deposit_max=wrong)


@pytest.mark.parametrize("shards", [0, 3, 2048])
def test_shards_are_a_power_of_two(shards: int) -> None:
    with pytest.raises(ValidationError):
        settings(shards=shards)


@pytest.mark.parametrize(
    ("given", "active"),
    [
        ({"tiers": "vault,score,trace"}, ("vault", "score", "trace")),
        ({"tiers": " trace , vault"}, ("vault", "trace")),
        ({"tiers": "vault,score", "vault_port": 0}, ("score",)),
        ({"tiers": ""}, ()),
    ],
)
def test_those_tiers_run_that_are_wanted_and_the_vault_only_with_a_door(
    given: dict[str, Any], active: tuple[str, ...]
) -> None:
    assert settings(**given).active_tiers == active


@pytest.mark.parametrize(
    "given",
    [
        {"tiers": "vault,safe"},
        {"vault_allowlist": ""},
        {"vault_allowlist": "10.0.0.1/8"},  # bits beyond the mask: a mistake for something else
        {"vault_allowlist": "10.0.0.0/8 192.168.0.0/16"},
        {"vault_allowlist": "example.com"},
        {"token_audience": "vault"},
        {"vault_url": "http://vault.example"},
        {"mongo_driver": "other"},
        {"score_debts_deadline_s": 0},
    ],
)
def test_what_would_open_or_close_a_tier_by_mistake_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        settings(**given)


def test_the_vault_lets_this_machine_in_unless_told_otherwise() -> None:
    assert settings().vault_networks == ("127.0.0.0/8", "::1/128")
    assert settings(vault_allowlist="10.0.0.0/8, 2001:db8::/32").vault_networks == ("10.0.0.0/8", "2001:db8::/32")


@pytest.mark.parametrize(
    ("given", "url", "authority"),
    [
        ({"vault_port": 9444}, "https://127.0.0.1:9444", "own"),
        ({"vault_port": 9444, "host": "0.0.0.0"}, "https://127.0.0.1:9444", "own"),  # noqa: S104 - a public gateway
        ({"vault_port": 9444, "host": "::"}, "https://[::1]:9444", "own"),
        ({"tls_certificate": "bank.pem"}, "https://127.0.0.1:8444", None),
        ({"vault_url": "https://vault.example"}, "https://vault.example", None),
        ({"vault_url": "https://vault.example", "vault_server_ca": "/ca.pem"}, "https://vault.example", "/ca.pem"),
    ],
)
def test_the_score_asks_the_engine_s_own_vault_and_trusts_its_certificate_unless_told_otherwise(
    given: dict[str, Any], url: str, authority: str | None, tmp_path: Path
) -> None:
    secrets = Secrets("e", "00", "00", "s")
    plan = Plan(settings(data=tmp_path, **given), secrets, 2, Windows(), "dsn", 1, 2, "http://localhost")
    assert plan.vault_url == url
    own = str(own_certificate(DataDirectory(tmp_path)))
    assert plan.vault_server_ca == (None if authority is None else Path(own if authority == "own" else authority))


def test_a_login_within_an_address_is_not_shown() -> None:
    assert "swordfish" not in repr(settings(mongo_url="mongodb://razao:swordfish@localhost/"))
