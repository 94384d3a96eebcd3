"""Certificates for a system's own services, and the authority to trust them by: on this machine
alone (`saga up --tls`), and among containers (`saga.bootstrap`)."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature
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


@dataclass(frozen=True, slots=True)
class Authority:
    """Who signs certificates."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def made(cls, name: str, now: datetime, valid: timedelta = VALID) -> Self:
        """A new one, of this name, which signs for servers alone."""
        key = ec.generate_private_key(ec.SECP256R1())
        own = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        certificate = (
            _begun(own, own, key.public_key(), now, valid)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
            .add_extension(identifier, critical=False)
            .sign(key, hashes.SHA256())
        )
        return cls(certificate, key)

    @classmethod
    def read(cls, certificate: bytes, key: bytes) -> Self:
        """One that was made, from its PEM. Raises `ValueError`."""
        read = serialization.load_pem_private_key(key, password=None)
        if not isinstance(read, ec.EllipticCurvePrivateKey):
            raise ValueError("the key of the authority is none on an elliptic curve")
        return cls(x509.load_pem_x509_certificate(certificate), read)

    def issue(self, names: Sequence[str], now: datetime) -> tuple[str, str]:
        """A certificate for a server with these names, the first of which is its own, and on
        loopback; and its key. Both are PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
        identifier = x509.SubjectKeyIdentifier.from_public_key(self.key.public_key())
        others: list[x509.GeneralName] = [x509.DNSName(name) for name in names]
        others += [x509.IPAddress(ipaddress.ip_address(address)) for address in ADDRESSES]
        certificate = (
            _begun(subject, self.certificate.subject, key.public_key(), now, VALID)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(others), critical=False)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier),
                critical=False,
            )
            .sign(self.key, hashes.SHA256())
        )
        return pem(certificate), key_pem(key)

    def has_issued(self, certificate: Path, names: Sequence[str], now: datetime) -> bool:
        """Whether a certificate is there, for these names, that is good for `RENEWED_BEFORE`."""
        try:
            there = x509.load_pem_x509_certificate(certificate.read_bytes())
            there.verify_directly_issued_by(self.certificate)
            known = there.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except (OSError, ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
            return False
        wanted = known.get_values_for_type(x509.DNSName) == [*names]
        return wanted and there.not_valid_after_utc - now > RENEWED_BEFORE


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
    authority = Authority.made(f"saga up in {folder.name}", now)
    certificate, key = authority.issue(NAMES, now)
    write_whole(found.key, key, 0o600)
    write_whole(found.authority, pem(authority.certificate), 0o644)
    write_whole(found.certificate, certificate, 0o644)  # Last: it says that all is there.
    return found


def pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    """Not encrypted."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()


def _begun(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    now: datetime,
    valid: timedelta,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _EARLIER)
        .not_valid_after(now + valid - _EARLIER)
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


def _ends_at(found: LocalCertificate) -> datetime:
    """When the certificate ends that is there; long ago, if there is none that can be used."""
    try:
        if not (found.key.is_file() and found.authority.is_file()):
            return datetime.min.replace(tzinfo=UTC)
        there = x509.load_pem_x509_certificate(found.certificate.read_bytes())
    except (OSError, ValueError):
        return datetime.min.replace(tzinfo=UTC)
    return there.not_valid_after_utc
