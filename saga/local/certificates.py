"""A certificate for a system on this machine alone, and the authority to trust it by."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from saga.runtime.files import write_whole

FOLDER: Final = "tls"
"""In the data folder."""
VALID: Final = timedelta(days=397)
"""Browsers take no longer ones."""
RENEWED_BEFORE: Final = timedelta(days=30)
NAMES: Final = ("localhost",)
ADDRESSES: Final = ("127.0.0.1", "::1")
_EARLIER: Final = timedelta(hours=1)
"""For clocks that differ."""


@dataclass(frozen=True, slots=True)
class LocalCertificate:
    """Files, as PEM."""

    authority: Path
    certificate: Path
    key: Path

    @property
    def environment(self) -> dict[str, str]:
        """The settings of who serves with it, and of who asks them."""
        return {
            "HTTP_CERT_FILE": str(self.certificate),
            "HTTP_KEY_FILE": str(self.key),
            "HTTP_CA_FILE": str(self.authority),
        }


def local_certificate(folder: Path, now: datetime | None = None) -> LocalCertificate:
    """The certificate of the system in `folder`, made where there is none that is valid for
    `RENEWED_BEFORE`. The authority's own key is forgotten at once: it can sign nothing else. Raises
    `OSError`."""
    now = now or datetime.now(UTC)
    own = (folder / FOLDER).resolve()
    found = LocalCertificate(own / "ca.pem", own / "cert.pem", own / "key.pem")
    if _ends_at(found) - now > RENEWED_BEFORE:
        return found
    own.mkdir(parents=True, exist_ok=True)
    authority_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"saga up in {folder.name}"[:64])])
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAMES[0])])
    identifier = x509.SubjectKeyIdentifier.from_public_key(authority_key.public_key())
    authority = (
        _begun(issuer, issuer, authority_key.public_key(), now)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(identifier, critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    names: list[x509.GeneralName] = [x509.DNSName(name) for name in NAMES]
    names += [x509.IPAddress(ipaddress.ip_address(address)) for address in ADDRESSES]
    certificate = (
        _begun(subject, issuer, key.public_key(), now)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier),
            critical=False,
        )
        .sign(authority_key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    write_whole(found.key, private.decode(), 0o600)
    write_whole(found.authority, _pem(authority), 0o644)
    write_whole(found.certificate, _pem(certificate), 0o644)  # Last: it says that all is there.
    return found


def _begun(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _EARLIER)
        .not_valid_after(now + VALID - _EARLIER)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _ends_at(found: LocalCertificate) -> datetime:
    """When the certificate ends that is there; long ago, if there is none that can be used."""
    try:
        if not (found.key.is_file() and found.authority.is_file()):
            return datetime.min.replace(tzinfo=UTC)
        there = x509.load_pem_x509_certificate(found.certificate.read_bytes())
    except (OSError, ValueError):
        return datetime.min.replace(tzinfo=UTC)
    return there.not_valid_after_utc
