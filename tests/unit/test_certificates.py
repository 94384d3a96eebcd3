"""The certificate of a system on this machine: made once, renewed in time, for loopback alone."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509

from saga.local.certificates import RENEWED_BEFORE, VALID, local_certificate
from saga.runtime.settings import HttpSettings
from saga.runtime.tls import context_of

NOW = datetime.now(UTC)


def test_it_is_made_once_and_renewed_in_time(tmp_path: Path) -> None:
    made = local_certificate(tmp_path, NOW).certificate.read_text()

    assert local_certificate(tmp_path, NOW).certificate.read_text() == made
    late = NOW + VALID - RENEWED_BEFORE + timedelta(days=1)
    assert local_certificate(tmp_path, late).certificate.read_text() != made


def test_what_is_left_of_one_is_made_again(tmp_path: Path) -> None:
    made = local_certificate(tmp_path, NOW)
    made.key.unlink()

    assert local_certificate(tmp_path, NOW).key.is_file()


def test_it_is_for_this_machine_alone_and_its_key_for_its_owner(tmp_path: Path) -> None:
    made = local_certificate(tmp_path, NOW)
    there = x509.load_pem_x509_certificate(made.certificate.read_bytes())
    names = there.extensions.get_extension_for_class(x509.SubjectAlternativeName).value

    assert names.get_values_for_type(x509.DNSName) == ["localhost"]
    assert [str(a) for a in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]
    assert made.key.stat().st_mode & 0o777 == 0o600
    assert sorted(file.name for file in made.key.parent.iterdir()) == [
        "ca.pem",
        "cert.pem",
        "key.pem",
    ]


def test_who_serves_with_it_is_trusted_by_its_authority_as_strictly_as_can_be(
    tmp_path: Path,
) -> None:
    made = local_certificate(tmp_path, NOW)
    serving = context_of(HttpSettings(http_cert_file=made.certificate, http_key_file=made.key))
    trusting = ssl.create_default_context(cafile=str(made.authority))
    trusting.verify_flags |= ssl.VERIFY_X509_STRICT
    assert serving is not None

    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = serving.wrap_bio(to_server, to_client, server_side=True)
    client = trusting.wrap_bio(to_client, to_server, server_hostname="127.0.0.1")
    for _ in range(4):
        for side in (client, server):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    assert client.version() in ("TLSv1.2", "TLSv1.3")
