"""Whose tokens an engine takes, as its settings say."""

from __future__ import annotations

import json
from pathlib import Path

import jwt
import pytest
import typer
from typer.testing import CliRunner

from cluster.cli import app
from cluster.console import settings_of
from cluster.data import DataDirectory
from storage.references import person_reference

PROVIDER: dict[str, object] = {
    "name": "bank",
    "issuer": "https://id.example",
    "audience": "payments",
    "scopes": {"r": {"x": ["ledger:read"]}},
}


@pytest.mark.parametrize(
    ("given", "trusted"),
    [
        ({}, True),
        ({"host": "0.0.0.0"}, False),  # noqa: S104 - as a public gateway has it
        ({"host": "0.0.0.0", "trust_embedded_key": True}, True),  # noqa: S104
        ({"trust_embedded_key": False}, False),
        ({"jwks": "https://id.example/keys"}, False),
    ],
)
def test_the_embedded_key_is_trusted_on_loopback_alone_unless_said(given: dict[str, object], trusted: bool) -> None:
    assert settings_of(**given).trusts_embedded_key is trusted


def test_razao_token_is_refused_where_nobody_would_take_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["token", "--sub", "ana", "--scope", "ledger:read", "--data", str(tmp_path)]
    assert CliRunner().invoke(app, words).exit_code == 0
    monkeypatch.setenv("RAZAO_TRUST_EMBEDDED_KEY", "false")
    refused = CliRunner().invoke(app, words)
    assert refused.exit_code == 1
    assert "ey" not in refused.stdout


@pytest.mark.parametrize("audience", ["payments", "vault", "score"])
def test_razao_token_is_for_the_audience_and_the_tax_id_that_it_is_asked_for(tmp_path: Path, audience: str) -> None:
    words = ["token", "--sub", "ana", "--scope", "x", "--audience", audience, "--data", str(tmp_path)]
    signed = [CliRunner().invoke(app, [*words, *more]).stdout.strip() for more in ([], ["--tax-id", "529.982.247-25"])]
    claims = [jwt.decode(one, options={"verify_signature": False}) for one in signed]
    assert [one["aud"] for one in claims] == [audience, audience]
    key = bytes.fromhex(DataDirectory(tmp_path).secrets().ledger_key)
    assert [one.get("person") for one in claims] == [None, person_reference(key, "52998224725").hex()]
    assert CliRunner().invoke(app, [*words, "--tax-id", "529.982.247-26"]).exit_code == 1
    assert CliRunner().invoke(app, [*words[:5], "--audience", "trace", *words[7:]]).exit_code == 2


def test_issuers_are_read_from_the_environment_and_must_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAZAO_OIDC_ISSUERS", json.dumps([PROVIDER]))
    [one] = settings_of().oidc_issuers
    assert one.provider().issuer == "https://id.example"
    assert settings_of(**settings_of().model_dump(mode="json")).oidc_issuers == [one]  # as a plan carries them
    bad: list[list[dict[str, object]]] = [
        [PROVIDER, PROVIDER],
        [{**PROVIDER, "issuer": "http://id.example"}],
        [{**PROVIDER, "scopes": {"r": {"x": ["identity:admin"]}}}],
        [{**PROVIDER, "more": 1}],
        [{**PROVIDER, "issuer": "https://own.example"}],
    ]
    monkeypatch.setenv("RAZAO_PUBLIC_URL", "https://own.example")
    for providers in bad:
        monkeypatch.setenv("RAZAO_OIDC_ISSUERS", json.dumps(providers))
        with pytest.raises(typer.Exit):
            settings_of()
    monkeypatch.setenv("RAZAO_OIDC_ISSUERS", json.dumps([PROVIDER]))
    assert settings_of().oidc_issuers == [one]
