"""An authority of the tests' own, whose clients show certificates where a door asks for them (mutual TLS)."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


class Authority(NamedTuple):
    """Who signs clients' certificates: its own certificate, and the PEM file of a client that it has signed."""

    certificate: Path
    client: Path


def authority(directory: Path, name: str) -> Authority:
    """A new authority with one client."""
    now = datetime.datetime.now(datetime.UTC)

    def sign(subject: str, key: ec.EllipticCurvePrivateKey, issuer: str, by: ec.EllipticCurvePrivateKey) -> bytes:
        names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, one)]) for one in (subject, issuer)]
        builder = x509.CertificateBuilder(names[1], names[0], key.public_key(), x509.random_serial_number())
        builder = builder.not_valid_before(now - datetime.timedelta(hours=1))
        builder = builder.not_valid_after(now + datetime.timedelta(days=1))
        builder = builder.add_extension(x509.BasicConstraints(ca=subject == issuer, path_length=None), critical=True)
        return builder.sign(by, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    own, client = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    found = Authority(directory / f"{name}.crt", directory / f"{name}-client.pem")
    found.certificate.write_bytes(sign(name, own, name, own))
    private = client.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    found.client.write_bytes(private + sign("a bank", client, name, own))
    return found
