"""A text in every encoding that a system may keep it in."""

from __future__ import annotations

import base64
import html
import json
import quopri
import re
import unicodedata
from collections.abc import Callable, Iterator
from email.charset import QP, Charset
from email.header import Header
from email.message import EmailMessage
from typing import Final
from urllib.parse import quote, quote_plus

FORMS: Final[dict[str, Callable[[str], str]]] = {
    "as it is": str,
    "in capitals": str.upper,
    "in small letters": str.lower,
    "decomposed": lambda text: unicodedata.normalize("NFD", text),
    "decomposed, in capitals": lambda text: unicodedata.normalize("NFD", text.upper()),
}


def _escaped(text: str) -> str:
    """JSON's escapes for every character."""
    units = text.encode("utf-16-be")
    return "".join(f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2))


def _in_q(text: str) -> bytes:
    charset = Charset("utf-8")
    charset.header_encoding = QP
    return Header(f"{'a' * 40} {text} {'b' * 40}", charset).encode().encode()


def _in_a_mail(text: str) -> bytes:
    mail = EmailMessage()
    mail["To"] = "somebody@example.org"
    mail["Subject"] = f"For {text}, who asked"
    return mail.as_bytes()


def _base64(before: bytes) -> Callable[[str], bytes]:
    return lambda text: base64.b64encode(before + text.encode() + b" and more")


ENCODINGS: Final[dict[str, Callable[[str], bytes]]] = {
    "UTF-8": str.encode,
    "UTF-16, little end first": lambda text: text.encode("utf-16-le"),
    "UTF-16, big end first": lambda text: text.encode("utf-16-be"),
    "JSON": lambda text: json.dumps({"name": text}).encode(),
    "JSON within JSON": lambda text: json.dumps(json.dumps({"name": text})).encode(),
    "JSON, all escaped": lambda text: _escaped(text).encode(),
    "JSON, all escaped in capitals": lambda text: re.sub(
        r"\\u(....)", lambda digits: "\\u" + digits[1].upper(), _escaped(text)
    ).encode(),
    "a URL": lambda text: quote(text).encode(),
    "a URL's form": lambda text: quote_plus(text).encode(),
    "a URL within a URL": lambda text: quote(quote(text)).encode(),
    "a URL, all escaped": lambda text: "".join(f"%{byte:02x}" for byte in text.encode()).encode(),
    "HTML": lambda text: html.escape(text).encode("ascii", "xmlcharrefreplace"),
    "HTML, all escaped": lambda text: "".join(f"&#x{ord(char):x};" for char in text).encode(),
    "quoted-printable": lambda text: quopri.encodestring(f"{'x' * 66}{text} and so on".encode()),
    "an encoded word": lambda text: Header(text, "utf-8").encode().encode(),
    "encoded words, folded": _in_q,
    "encoded words of base64, folded": lambda text: (
        Header(f"{'x' * 30} {text} {'y' * 30}", "utf-8").encode().encode()
    ),
    "a mail": _in_a_mail,
    "base64": _base64(b""),
    "base64, one byte later": _base64(b"\xfe"),
    "base64, two bytes later": _base64(b"\xfe\xff"),
    "base64 for URLs": lambda text: base64.urlsafe_b64encode(b"\xfb\xff\xbf>" + text.encode()),
    "base64 in lines": lambda text: base64.encodebytes(b"x" * 49 + text.encode()),
    "base64 in lines, in JSON": lambda text: json.dumps(
        base64.encodebytes(b"x" * 50 + text.encode()).decode()
    ).encode(),
    "base64 of base64": lambda text: base64.b64encode(base64.b64encode(text.encode())),
    "base64 of UTF-16": lambda text: base64.b64encode(text.encode("utf-16-le")),
    "hexadecimal": lambda text: text.encode().hex().encode(),
    "hexadecimal in capitals": lambda text: text.encode().hex().upper().encode(),
    "hexadecimal, half a byte later": lambda text: b"a" + text.encode().hex().encode(),
    "Python's bytes": lambda text: repr(text.encode()).encode(),
    "Python's ASCII": lambda text: ascii(text).encode(),
    "SQL": lambda text: text.replace("'", "''").encode(),
    "octal escapes": lambda text: "".join(
        chr(byte) if byte < 0x7F else f"\\{byte:03o}" for byte in text.encode()
    ).encode(),
    "Erlang's bytes": lambda text: ",".join(map(str, text.encode())).encode(),
}


def spellings(text: str) -> Iterator[tuple[str, bytes]]:
    """What each is called, and the bytes."""
    for form, spell in FORMS.items():
        for encoding, encode in ENCODINGS.items():
            yield f"{encoding}, {form}", encode(spell(text))
        if (latin := spell(text).encode("latin-1", "ignore")).decode("latin-1") == spell(text):
            yield f"Latin-1, {form}", latin
