"""An issuer of tokens, right ones and forged ones, with keys of its own."""

from __future__ import annotations

import base64
import hmac
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from joserfc import jwt
from joserfc.jwk import ECKey, KeySet, OKPKey, RSAKey

from saga.auth.tokens import SIGNATURES

AUDIENCE: Final = "saga-services"
OWNER: Final = "rosalind"

SigningKey = RSAKey | ECKey | OKPKey
_ALGORITHMS: Final = {RSAKey: "RS256", ECKey: "ES256", OKPKey: "EdDSA"}


def rsa_key(kid: str, bits: int = 2_048) -> RSAKey:
    return RSAKey.generate_key(bits, {"kid": kid, "use": "sig"})


def ec_key(kid: str) -> ECKey:
    return ECKey.generate_key("P-256", {"kid": kid})


def ed_key(kid: str) -> OKPKey:
    return OKPKey.generate_key("Ed25519", {"kid": kid})


class Issuer:
    """Signs with the first of its keys, unless it is told another one."""

    def __init__(self, url: str = "https://issuer.example", *keys: SigningKey) -> None:
        self.url = url
        self.keys: list[SigningKey] = [*keys] or [ec_key("one")]

    @property
    def jwks(self) -> bytes:
        """Its public keys."""
        return json.dumps(KeySet([*self.keys]).as_dict(private=False)).encode()

    def claims(self, **changed: Any) -> dict[str, Any]:
        """What a token of an operator says; what is None is left out."""
        now = int(time.time())
        claims = {
            "iss": self.url,
            "aud": AUDIENCE,
            "sub": "olga",
            "iat": now,
            "exp": now + 600,
            "roles": ["operator"],
        } | changed
        return {name: value for name, value in claims.items() if value is not None}

    def token(self, *, key: SigningKey | None = None, kid: str | None = "", **changed: Any) -> str:
        """A token with these claims, signed by that key. Its header names the key, or `kid`."""
        key = key or self.keys[0]
        header = {"alg": _ALGORITHMS[type(key)], "kid": key.kid if kid == "" else kid}
        header = {name: value for name, value in header.items() if value is not None}
        return jwt.encode(header, self.claims(**changed), key, registry=SIGNATURES)

    def customers(self, scopes: str, owner: str = OWNER, **changed: Any) -> str:
        """A token of a user without a role."""
        return self.token(sub=owner, roles=None, scope=scopes, **changed)

    def unsigned(self) -> str:
        """With `alg: none`, and no signature."""
        return f"{encoded({'alg': 'none', 'kid': self.keys[0].kid})}.{encoded(self.claims())}."

    def signed_with_the_public_key(self) -> str:
        """Signed with HMAC and the public key, which every client knows."""
        key = self.keys[0]
        content = f"{encoded({'alg': 'HS256', 'kid': key.kid})}.{encoded(self.claims())}"
        known = key.as_pem(private=False)  # By hand: the library signs with no such key.
        signature = hmac.digest(known, content.encode(), "sha256")
        return f"{content}.{base64.urlsafe_b64encode(signature).decode().rstrip('=')}"


def encoded(document: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(document).encode()).decode().rstrip("=")


def forged(issuer: Issuer) -> dict[str, str]:
    """Tokens that must not be believed, keyed by what is wrong with them."""
    now = int(time.time())
    head, body, signature = issuer.token().split(".")
    kid = issuer.keys[0].kid
    unquotable = encoded({"alg": _ALGORITHMS[type(issuer.keys[0])], "crit": ["\ud800"]})
    return {
        "expired": issuer.token(exp=now - 600, iat=now - 1_200),
        "not valid yet": issuer.token(nbf=now + 600),
        "without an end": issuer.token(exp=None),
        "for others": issuer.token(aud="others"),
        "for nobody": issuer.token(aud=None),
        "of another issuer": issuer.token(iss="https://evil.example"),
        "of nobody": issuer.token(sub=None),
        "unsigned": issuer.unsigned(),
        "signed with the public key": issuer.signed_with_the_public_key(),
        "signed by a key nobody knows": issuer.token(key=ec_key("strange")),
        "signed by another key of that name": issuer.token(key=ec_key(str(kid))),
        "with another's claims": f"{head}.{encoded(issuer.claims(sub='eve'))}.{signature}",
        "without a signature": f"{head}.{body}.",
        "cut": issuer.token()[:-20],
        "with a header that no JSON can quote": f"{unquotable}.{body}.{signature}",
        "without a time to its end": issuer.token(exp=10**400),
        "too long": issuer.token(extra="x" * 10_000),
        "no token": "letmein",
        "no key": "sagakey_0123456789_" + "A" * 43,
    }


@contextmanager
def served(issuer: Issuer) -> Iterator[list[str]]:
    """Serve its discovery document and its keys on loopback; gives the paths that were asked for.
    Its address becomes what its tokens say."""
    asked: list[str] = []

    class Pages(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            found = {
                "/.well-known/openid-configuration": json.dumps(
                    {"issuer": issuer.url, "jwks_uri": f"{issuer.url}/keys"}
                ).encode(),
                "/keys": issuer.jwks,
            }.get(self.path)
            self.send_response(404 if found is None else 200)
            self.end_headers()
            self.wfile.write(found or b"")

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    issuer.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
