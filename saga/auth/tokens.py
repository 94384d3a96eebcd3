"""Bearer tokens (RFC 9068, RFC 8725), signed by an issuer whose keys are fetched.

A token is believed if one of the issuer's keys signed it with an algorithm of `ALGORITHMS`, which
fits that kind of key; if it is from the issuer, for the audience, and neither too old nor too new.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import httpx
from joserfc import jws, jwt
from joserfc.errors import ExpiredTokenError, JoseError, UnsupportedAlgorithmError
from joserfc.jwk import ECKey, OKPKey, RSAKey
from pydantic_core import from_json

from saga.auth.caller import AuthMethod, Caller, IssuerAway, NotAllowed
from saga.auth.keys import SUBJECT_PREFIX
from saga.auth.scopes import ROLES, in_claim
from saga.auth.settings import AuthSettings, check_fetched_safely
from saga.personal.seal import sealed
from saga.runtime.settings import SettingsError
from saga.runtime.tasks import cancel_all
from saga.runtime.tls import trusted
from saga.text import harmless, is_utf_8
from saga.wording import counted

log = logging.getLogger(__name__)

ALGORITHMS: Final = ("RS256", "ES256", "EdDSA", "Ed25519")
"""The last one is the second name of EdDSA over that curve (RFC 9864). None is symmetric, and
`none` is none of them."""
_EDWARDS: Final = frozenset({"EdDSA", "Ed25519"})
TOKEN_MAX_BYTES: Final = 8_192
SUBJECT_MAX: Final = 255
"""Characters."""
REMEMBERED_MAX: Final = 10_000
"""Tokens whose signature need not be checked again; some 10 MB."""
REMEMBERED_SECONDS: Final = 300.0
"""For so long at most: then a key that the issuer has withdrawn counts no more."""
KEYS_MAX: Final = 100
RSA_BITS: Final = (2_048, 8_192)
KEYS_MAX_BYTES: Final = 262_144
FETCH_SECONDS: Final = 5.0
"""How long the issuer may take to answer."""
FETCH_AGAIN_SECONDS: Final = 60.0
"""From one fetch because of an unknown key to the next."""
FETCH_FAILED_SECONDS: Final = 5.0
"""From a fetch that failed, where no key is known, to the next."""
FRESH_SECONDS: Final = 600.0
"""Older keys are fetched again, while they go on being used."""
DISCOVERY: Final = "/.well-known/openid-configuration"


class Signatures(jws.JWSRegistry):
    """The algorithms that are accepted: the library's own registry warns of the name EdDSA, which
    issuers go on using."""

    def get_alg(self, name: str) -> Any:
        if name not in ALGORITHMS:
            raise UnsupportedAlgorithmError(name)
        return self.algorithms[name]


SIGNATURES: Final = Signatures(strict_check_header=False)

Key = RSAKey | ECKey | OKPKey
Fetch = Callable[[str], Awaitable[bytes]]


async def fetch(url: str) -> bytes:
    """A document of the issuer's. Raises `httpx.HTTPError`, `ValueError`."""
    async with (
        httpx.AsyncClient(timeout=FETCH_SECONDS, verify=trusted(), trust_env=False) as client,
        asyncio.timeout(FETCH_SECONDS),
        client.stream("GET", url) as answer,
    ):
        answer.raise_for_status()
        content = b""
        async for part in answer.aiter_bytes():
            content += part
            if len(content) > KEYS_MAX_BYTES:
                raise ValueError(f"{url} answers with more than {KEYS_MAX_BYTES} bytes")
        return content


class Keys:
    """An issuer's keys, by their id: from a file, a URL, or where its discovery document says."""

    def __init__(
        self,
        issuer: str,
        place: str | None,
        *,
        fetch: Fetch = fetch,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._issuer, self._place = issuer, place
        self._fetch, self._clock = fetch, clock
        self._keys: dict[str | None, list[Key]] = {}
        self._fetched_at: float | None = None
        self._tried_at: float | None = None
        self._fetching: asyncio.Task[None] | None = None

    async def fitting(self, kid: str | None, algorithm: str) -> Key:
        """The key of that id for that algorithm. Raises `NotAllowed`, `IssuerAway`."""
        now = self._clock()
        if self._fetched_at is None:
            if self._is_fetching or self._may_try(FETCH_FAILED_SECONDS):
                await self._fetched()
            if self._fetched_at is None:
                raise IssuerAway
        elif now - self._fetched_at > FRESH_SECONDS and self._may_try(FETCH_AGAIN_SECONDS):
            self._begin()  # Callers that ask now need not wait.
        found = self._find(kid, algorithm)
        if found is None and (self._is_fetching or self._may_try(FETCH_AGAIN_SECONDS)):
            await self._fetched()
            found = self._find(kid, algorithm)
        if found is None:
            raise NotAllowed(f"the issuer has no key {kid!r} for {algorithm}")
        return found

    def _find(self, kid: str | None, algorithm: str) -> Key | None:
        sets = self._keys.values() if kid is None else [self._keys.get(kid, [])]
        fitting = [key for keys in sets for key in keys if _fits(key, algorithm)]
        return fitting[0] if len(fitting) == 1 else None

    def _may_try(self, after_seconds: float) -> bool:
        return self._tried_at is None or self._clock() - self._tried_at >= after_seconds

    @property
    def _is_fetching(self) -> bool:
        return self._fetching is not None and not self._fetching.done()

    def _begin(self) -> asyncio.Task[None]:
        if self._fetching is None or self._fetching.done():
            self._tried_at = self._clock()
            self._fetching = asyncio.create_task(self._read())
        return self._fetching

    async def _fetched(self) -> None:
        # A caller that leaves does not take the others' answer away.
        await asyncio.shield(self._begin())

    async def _read(self) -> None:
        try:
            document = from_json(await self._document())
            self._keys = _keys_in(document)
        except (httpx.HTTPError, ValueError, OSError, TimeoutError) as error:
            known = sum(map(len, self._keys.values()))
            log.warning(
                "the keys of %s cannot be fetched: %s; %s",
                self._issuer,
                harmless(str(error) or type(error).__name__),
                f"{known} known ones go on" if known else "no token can be checked",
            )
            return
        self._fetched_at = self._clock()
        if not self._keys:  # It has withdrawn them all.
            log.error(
                "no token of %s is believed: no key of its set can be used, which takes RSA of "
                "2048 bits or more, P-256 or Ed25519",
                self._issuer,
            )
            return
        log.info("%d keys of %s are known", sum(map(len, self._keys.values())), self._issuer)

    async def _document(self) -> bytes:
        if self._place is not None and "://" not in self._place:
            content = await asyncio.to_thread(_read_file, Path(self._place))
            if len(content) > KEYS_MAX_BYTES:
                raise ValueError(f"{self._place} is longer than {KEYS_MAX_BYTES} bytes")
            return content
        if self._place is not None:
            return await self._fetch(self._place)
        found = from_json(await self._fetch(f"{self._issuer.rstrip('/')}{DISCOVERY}"))
        if not isinstance(found, dict) or found.get("issuer") != self._issuer:
            raise ValueError("its discovery document is of another issuer")
        url = found.get("jwks_uri")
        if not isinstance(url, str):
            raise ValueError("its discovery document names no jwks_uri")
        return await self._fetch(check_fetched_safely(url))

    async def close(self) -> None:
        """Give up what is being fetched."""
        if self._fetching is not None:
            await cancel_all(self._fetching)


def _read_file(file: Path) -> bytes:
    with file.open("rb") as stream:
        return stream.read(KEYS_MAX_BYTES + 1)


def _keys_in(document: Any) -> dict[str | None, list[Key]]:
    """The keys in a set that may sign, by id. Others are left out, which may leave none. Raises
    `ValueError` for what is no set of keys."""
    listed = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(listed, list):
        raise ValueError("it is no set of keys: there is no list `keys`")
    if len(listed) > KEYS_MAX:
        raise ValueError(
            f"there are {counted(len(listed), 'key')} in it, and {KEYS_MAX} at most are read"
        )
    keys: dict[str | None, list[Key]] = {}
    for one in listed:
        if not isinstance(one, dict) or one.get("use", "sig") != "sig":
            continue
        if (key := _imported(one)) is not None:
            keys.setdefault(one.get("kid"), []).append(key)
    return keys


_PARAMETERS: Final[Sequence[str]] = ("kty", "n", "e", "crv", "x", "y", "alg")
_KINDS: Final[Mapping[str, type[RSAKey | ECKey | OKPKey]]] = {
    "RSA": RSAKey,
    "EC": ECKey,
    "OKP": OKPKey,
}


def _imported(one: dict[str, Any]) -> Key | None:
    kind = _KINDS.get(str(one.get("kty")))
    if kind is None or not isinstance(one.get("kid"), str | None):
        return None
    try:
        # Without what else stands there: `use` and `key_ops` are judged here.
        if kind is RSAKey and not _is_long_enough(str(one["n"])):
            return None
        bare: dict[str, str | list[str]] = {
            name: str(one[name]) for name in _PARAMETERS if name in one
        }
        key = kind.import_key(bare)
    except (JoseError, ValueError, TypeError, KeyError):
        return None
    return key if any(_fits(key, algorithm) for algorithm in ALGORITHMS) else None


def _is_long_enough(modulus: str) -> bool:
    """Whether a base64url number has as many bits as an RSA key needs, and no more than it may."""
    low, high = RSA_BITS
    return low <= len(modulus) * 6 <= high + 16


def _fits(key: Key, algorithm: str) -> bool:
    if key.get("alg", algorithm) not in ({algorithm} if algorithm not in _EDWARDS else _EDWARDS):
        return False
    if isinstance(key, RSAKey):
        low, high = RSA_BITS
        return algorithm == "RS256" and low <= key.raw_value.key_size <= high
    if isinstance(key, ECKey):
        return algorithm == "ES256" and key.get("crv") == "P-256"
    return algorithm in _EDWARDS and key.get("crv") == "Ed25519"


def _is_name(text: str) -> bool:
    """Whether a text can be kept as a caller's name; half a surrogate pair cannot."""
    return 0 < len(text) <= SUBJECT_MAX and is_utf_8(text)


class Tokens:
    """Knows callers by their tokens. One per process."""

    def __init__(
        self,
        settings: AuthSettings,
        *,
        fetch: Fetch = fetch,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`clock` measures, and `now` is the time in seconds since 1970. Raises `SettingsError`."""
        if settings.auth_issuer is None or settings.auth_audience is None:
            raise SettingsError(
                "AUTH_ISSUER and AUTH_AUDIENCE belong together: whose tokens, and for whom"
            )
        place = settings.auth_jwks
        if place is not None and "://" not in place and not Path(place).is_file():
            raise SettingsError(f"AUTH_JWKS names {place}, which is no file")
        self.keys = Keys(settings.auth_issuer, place, fetch=fetch, clock=clock)
        self._clock, self._now = clock, now
        self._roles = settings.auth_roles_claim
        self._owner = settings.auth_owner_claim
        self._leeway = settings.auth_leeway_seconds
        self._claims = jwt.JWTClaimsRegistry(
            now=lambda: int(now()),
            leeway=settings.auth_leeway_seconds,
            iss={"essential": True, "value": settings.auth_issuer},
            aud={"essential": True, "value": settings.auth_audience},
            exp={"essential": True},
            sub={"essential": True},
        )
        self._remembered: OrderedDict[bytes, tuple[Caller, float, float]] = OrderedDict()
        """Keyed by a token's hash: who, until which time, and until when by the clock."""

    def known(self, token: str) -> Caller | None:
        """Whose token that is, where it was checked before. Raises `NotAllowed` for one that is too
        long."""
        if len(token) > TOKEN_MAX_BYTES:
            raise NotAllowed(f"the token is longer than {TOKEN_MAX_BYTES} bytes")
        digest = hashlib.sha256(token.encode()).digest()
        if (remembered := self._remembered.get(digest)) is None:
            return None
        caller, expires_at, forgotten_at = remembered
        if self._now() < expires_at and self._clock() < forgotten_at:
            return caller
        del self._remembered[digest]
        return None

    async def caller(self, token: str) -> Caller:
        """Whose token that is. Raises `NotAllowed`, and `IssuerAway` while no key is known."""
        if (known := self.known(token)) is not None:
            return known
        claims = await self._verified(token)
        caller = self._caller_of(claims)
        try:
            expires_at = float(claims["exp"]) + self._leeway
        except OverflowError:
            raise NotAllowed("exp is no time") from None
        forgotten_at = self._clock() + REMEMBERED_SECONDS
        digest = hashlib.sha256(token.encode()).digest()
        self._remembered[digest] = (caller, expires_at, forgotten_at)
        if len(self._remembered) > REMEMBERED_MAX:
            self._remembered.popitem(last=False)
        return caller

    async def _verified(self, token: str) -> dict[str, Any]:
        try:
            header = jws.extract_compact(token.encode()).headers()
        except (JoseError, ValueError, TypeError, RecursionError):
            raise NotAllowed("the token cannot be read") from None
        algorithm, kid = header.get("alg"), header.get("kid")
        if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
            raise NotAllowed(f"the algorithm {str(algorithm)[:32]!r} is not accepted")
        if not isinstance(kid, str | None):
            raise NotAllowed("the id of its key is no text")
        key = await self.keys.fitting(kid, algorithm)
        try:
            claims = jwt.decode(token, key, list(ALGORITHMS), registry=SIGNATURES).claims
            self._claims.validate(claims)
        except ExpiredTokenError:
            raise NotAllowed("the token has expired") from None
        except (JoseError, ValueError, TypeError, RecursionError) as error:
            raise NotAllowed(f"the token is not accepted: {error}") from None
        return claims

    def _caller_of(self, claims: dict[str, Any]) -> Caller:
        """A caller with a role acts for all, with that role's scopes. One without acts for the
        owner that the token names, with the scopes that stand in it."""
        subject = claims["sub"]
        if not isinstance(subject, str) or not _is_name(subject):
            raise NotAllowed(f"sub is no text of 1 to {SUBJECT_MAX} characters")
        if subject.startswith(SUBJECT_PREFIX):
            raise NotAllowed(f"sub begins with {SUBJECT_PREFIX}, as records call API keys")
        roles = [role for role in in_claim(claims, self._roles) if role in ROLES]
        if roles:
            scopes = frozenset[str]().union(*(ROLES[role] for role in roles))
            name = claims.get("preferred_username", claims.get("name", ""))
            name = name if isinstance(name, str) and _is_name(name) else ""
            return Caller(subject, AuthMethod.TOKEN, scopes, None, name)
        owner = in_claim(claims, self._owner)
        if len(owner) != 1 or not _is_name(owner[0]):
            raise NotAllowed(f"there is no role in it, and no owner in {self._owner}")
        if sealed(owner[0]):
            raise NotAllowed(f"the owner in {self._owner} is a sealed text, and not a name")
        granted = " ".join(in_claim(claims, "scope") or in_claim(claims, "scp")).split()
        return Caller(subject, AuthMethod.TOKEN, frozenset(granted), owner[0])
