"""Certificates of the gateway: one of our own for development, made at the first start, and the check of a given one.

HAProxy reads one PEM file that has the private key and the chain, so that is what a certificate is here: one file,
readable by its owner only. Beside the one we make lies its public half, for clients that are to trust it
(`curl --cacert`).
"""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cluster.data import write_private

_NAMES: Final = ("localhost",)
_ADDRESSES: Final = ("127.0.0.1", "::1")
_LIFE: Final = datetime.timedelta(days=365)
_RENEW_BEFORE_END: Final = datetime.timedelta(days=30)
_CLOCK_SKEW: Final = datetime.timedelta(hours=1)


class CertificateError(Exception):
    """A given certificate cannot be used; the message says why."""


def ensure_certificate(directory: Path, *, now: datetime.datetime | None = None) -> Path:
    """The development certificate in `directory`: made when missing or unreadable, renewed in its last 30 days.

    Returns:
        `localhost.pem`, mode 0600: key and self-signed certificate for localhost, 127.0.0.1 and ::1. The certificate
        alone is `localhost.crt` beside it.
    """
    now = now or datetime.datetime.now(datetime.UTC)
    path = directory / "localhost.pem"
    public = path.with_suffix(".crt")
    if not (_is_good(path, now) and public.exists()):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        key, certificate = _make(now)
        write_private(path, (key + certificate).decode())
        public.write_bytes(certificate)
    path.chmod(0o600)
    return path


def check_certificate(path: Path, *, now: datetime.datetime | None = None) -> x509.Certificate:
    """Check a PEM file that the operator gave: readable, key and certificate belong together, in force now.

    Returns:
        the server's certificate, the first in the file.

    Raises:
        CertificateError: it cannot be used, and why.
    """
    now = now or datetime.datetime.now(datetime.UTC)
    try:
        content = path.read_bytes()
        certificate = x509.load_pem_x509_certificates(content)[0]
        key = serialization.load_pem_private_key(content, password=None)
    except OSError as error:
        raise CertificateError(f"cannot read the certificate {path}: {error.strerror}") from error
    except (ValueError, TypeError) as error:
        raise CertificateError(f"{path} must hold a certificate and its unencrypted private key as PEM") from error
    if key.public_key() != certificate.public_key():
        raise CertificateError(f"the private key in {path} is not that of the first certificate in it")
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        validity = f"{certificate.not_valid_before_utc} to {certificate.not_valid_after_utc}"
        raise CertificateError(f"the certificate in {path} is valid from {validity}, not now")
    return certificate


def _is_good(path: Path, now: datetime.datetime) -> bool:
    try:
        certificate = check_certificate(path, now=now)
    except CertificateError:
        return False
    return now < certificate.not_valid_after_utc - _RENEW_BEFORE_END


def _make(now: datetime.datetime) -> tuple[bytes, bytes]:
    """A fresh P-256 key and its self-signed certificate, both as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Razao development")])
    hosts = [x509.DNSName(host) for host in _NAMES]
    addresses = [x509.IPAddress(ipaddress.ip_address(address)) for address in _ADDRESSES]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + _LIFE)
        .add_extension(x509.SubjectAlternativeName([*hosts, *addresses]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return private, certificate.public_bytes(pem)
