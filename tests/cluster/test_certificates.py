"""Certificates: the development one is made, kept and renewed; a given one is checked with a clear word."""

from __future__ import annotations

import datetime
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from cluster.certificates import CertificateError, check_certificate, ensure_certificate

NOW = datetime.datetime(2026, 5, 1, 12, tzinfo=datetime.UTC)
DAY = datetime.timedelta(days=1)


def test_the_first_start_makes_an_elliptic_key_only_the_owner_may_read(tmp_path: Path) -> None:
    path = ensure_certificate(tmp_path / "tls", now=NOW)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    key = serialization.load_pem_private_key(path.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert b"PRIVATE" not in path.with_suffix(".crt").read_bytes()
    assert check_certificate(path, now=NOW).not_valid_after_utc > NOW + 300 * DAY


def test_it_is_kept_until_its_last_month_and_then_renewed(tmp_path: Path) -> None:
    first = ensure_certificate(tmp_path, now=NOW).read_bytes()
    assert ensure_certificate(tmp_path, now=NOW + 300 * DAY).read_bytes() == first
    renewed = ensure_certificate(tmp_path, now=NOW + 340 * DAY)
    assert renewed.read_bytes() != first
    assert check_certificate(renewed, now=NOW + 600 * DAY)
    assert renewed.with_suffix(".crt").read_bytes() in renewed.read_bytes()


@pytest.mark.parametrize("content", ["", "nonsense", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_a_damaged_one_is_made_anew(tmp_path: Path, content: str) -> None:
    path = ensure_certificate(tmp_path, now=NOW)
    path.write_text(content)
    assert check_certificate(ensure_certificate(tmp_path, now=NOW), now=NOW)


def test_loose_permissions_are_tightened(tmp_path: Path) -> None:
    path = ensure_certificate(tmp_path, now=NOW)
    path.chmod(0o644)
    assert stat.S_IMODE(ensure_certificate(tmp_path, now=NOW).stat().st_mode) == 0o600


def test_a_given_certificate_is_refused_with_the_reason(tmp_path: Path) -> None:
    mine = ensure_certificate(tmp_path / "a", now=NOW)
    other = ensure_certificate(tmp_path / "b", now=NOW)
    with pytest.raises(CertificateError, match="cannot read"):
        check_certificate(tmp_path / "missing.pem", now=NOW)
    with pytest.raises(CertificateError, match="must hold a certificate and its unencrypted private key"):
        check_certificate(mine.with_suffix(".crt"), now=NOW)
    with pytest.raises(CertificateError, match="not now"):
        check_certificate(mine, now=NOW + 400 * DAY)
    with pytest.raises(CertificateError, match="not now"):
        check_certificate(mine, now=NOW - DAY)
    mixed = tmp_path / "mixed.pem"
    mixed.write_bytes(other.with_suffix(".crt").read_bytes() + mine.read_bytes())
    with pytest.raises(CertificateError, match="not that of the first certificate"):
        check_certificate(mixed, now=NOW)
