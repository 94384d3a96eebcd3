"""Login at an OpenID Connect provider: the authorization code flow, with PKCE, state and nonce.

https://openid.net/specs/openid-connect-core-1_0.html#CodeFlowAuth
"""

from __future__ import annotations

import hmac
import logging
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Final
from urllib.parse import urlencode, urlsplit

import httpx
from authlib.oauth2.auth import ClientAuth
from authlib.oauth2.client import OAuth2Client
from authlib.oauth2.rfc6749.parameters import prepare_token_request
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError
from pydantic_core import from_json

from saga.auth.caller import AuthMethod, Caller, IssuerAway, NotAllowed
from saga.auth.settings import check_fetched_safely
from saga.auth.tokens import DISCOVERY, TOKEN_MAX_BYTES, Tokens
from saga.console.sessions import random_id
from saga.console.settings import ConsoleSettings
from saga.errors import Explained
from saga.runtime.tls import trusted

log = logging.getLogger(__name__)

LOGINS_MAX: Final = 1_000
"""Logins that have begun and not ended; beyond, the first one is forgotten of the address that has
begun the most."""
LOGINS_OF_ADDRESS_MAX: Final = 50
"""The same of one network address; beyond, its first one is forgotten."""
LOGIN_SECONDS: Final = 600.0
"""How long an operator may take at the provider."""
ASK_SECONDS: Final = 5.0
"""How long the provider may take to answer us."""
ANSWER_MAX_BYTES: Final = 262_144
KNOWN_SECONDS: Final = 3_600.0
"""How long the provider's description of itself is believed before it is read again."""
AGE_MAX_SECONDS: Final = 600
"""How old an id token may be: it was asked for a moment ago."""


class LoginError(Explained):
    """The login failed; says why, in words for the user. The reason is for the
    records, and may tell more."""

    def __init__(self, said: str, *, reason: str = "") -> None:
        super().__init__(said)
        self.reason = reason or said


@dataclass(frozen=True, slots=True)
class BegunLogin:
    """A login with which a browser was sent to the provider, and what has to come back."""

    browser: str
    """The cookie of the browser that began it."""
    nonce: str
    verifier: str
    redirect_uri: str
    page: str
    """The page to show afterwards."""
    address: str
    """Where it was begun: the network address."""
    ends_at: float


class ProviderDocument(BaseModel):
    """Of what a provider says about itself, what is used here.
    https://openid.net/specs/openid-connect-discovery-1_0.html#ProviderMetadata"""

    model_config = ConfigDict(extra="ignore", frozen=True)

    issuer: str
    authorization_endpoint: Annotated[str, AfterValidator(check_fetched_safely)]
    token_endpoint: Annotated[str, AfterValidator(check_fetched_safely)]
    end_session_endpoint: Annotated[str, AfterValidator(check_fetched_safely)] | None = None
    token_endpoint_auth_methods_supported: tuple[str, ...] = ("client_secret_basic",)


class IdTokens(Tokens):
    """Knows by id tokens who has logged in. They are for this console: its client id is their
    audience. https://openid.net/specs/openid-connect-core-1_0.html#IDTokenValidation"""

    def __init__(self, settings: ConsoleSettings) -> None:
        """Raises `SettingsError`."""
        client_id = settings.auth_client_id
        super().__init__(settings.model_copy(update={"auth_audience": client_id}))
        self._client_id = client_id
        self._leeway_seconds = settings.auth_leeway_seconds

    async def logged_in(self, token: str, nonce: str) -> Caller:
        """Who has logged in, in the login of that nonce. Raises `NotAllowed`, `IssuerAway`."""
        if len(token) > TOKEN_MAX_BYTES:
            raise NotAllowed(f"the id token is longer than {TOKEN_MAX_BYTES} bytes")
        claims = await self._verified(token)
        said = claims.get("nonce")
        if not isinstance(said, str) or not hmac.compare_digest(said.encode(), nonce.encode()):
            raise NotAllowed("the nonce of the id token is of another login")
        audiences, made_for = claims["aud"], claims.get("azp")
        if isinstance(audiences, list) and len(audiences) > 1 and made_for is None:
            raise NotAllowed("the id token is for several clients, and none of them by azp")
        if made_for is not None and made_for != self._client_id:
            raise NotAllowed("the id token was made for another client (azp)")
        issued_at = claims.get("iat")
        if not isinstance(issued_at, int | float):
            raise NotAllowed("the id token does not say when it was issued")
        if self._now() - issued_at > AGE_MAX_SECONDS + self._leeway_seconds:
            raise NotAllowed("the id token was issued too long ago")
        return replace(self._caller_of(claims), how=AuthMethod.LOGIN)


class LoginProvider:
    """Where people log in. Belongs to one event loop.

    Tokens are read here and then forgotten: no browser sees one.
    """

    def __init__(
        self, settings: ConsoleSettings, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Raises `SettingsError`."""
        self._tokens = IdTokens(settings)
        self._issuer = str(settings.auth_issuer)
        self._client_id = str(settings.auth_client_id)
        secret = settings.auth_client_secret
        self._client_secret = None if secret is None else secret.get_secret_value()
        self._scope = settings.auth_login_scope
        self._clock = clock
        self._begun: OrderedDict[str, BegunLogin] = OrderedDict()
        """Keyed by state: the oldest first."""
        self._known: tuple[float, ProviderDocument] | None = None

    @property
    def host(self) -> str:
        """What people know it by."""
        return urlsplit(self._issuer).netloc

    # --- there -----------------------------------------------------------------------------------

    async def begin(self, browser: str, redirect_uri: str, page: str, address: str) -> str:
        """The address to send the browser to, which asks from a network `address`. Raises
        `LoginError`."""
        provider = await self._document()
        state, verifier = random_id(), random_id()
        login = BegunLogin(
            browser,
            random_id(),
            verifier,
            redirect_uri,
            page,
            address,
            self._clock() + LOGIN_SECONDS,
        )
        self._remember(state, login)
        asking = OAuth2Client(
            None,
            client_id=self._client_id,
            scope=self._scope,
            redirect_uri=redirect_uri,
            code_challenge_method="S256",
        )
        leads_to, _ = asking.create_authorization_url(
            provider.authorization_endpoint,
            state=state,
            code_verifier=verifier,
            nonce=login.nonce,
        )
        return str(leads_to)

    def _remember(self, state: str, login: BegunLogin) -> None:
        """Keep a login that was begun. Who begins too many loses the first of their own, so that no
        stranger ends another's."""
        now = self._clock()
        while self._begun and next(iter(self._begun.values())).ends_at <= now:
            self._begun.popitem(last=False)
        self._begun[state] = login
        count = Counter(begun.address for begun in self._begun.values())
        if count[login.address] > LOGINS_OF_ADDRESS_MAX:
            self._drop_first_of(login.address)
        elif len(self._begun) > LOGINS_MAX:
            self._drop_first_of(count.most_common(1)[0][0])

    def _drop_first_of(self, address: str) -> None:
        del self._begun[next(s for s, begun in self._begun.items() if begun.address == address)]

    # --- and back --------------------------------------------------------------------------------

    async def finish(self, browser: str | None, answer: Mapping[str, str]) -> tuple[Caller, str]:
        """Who has logged in, and the page to show. Raises `LoginError`.

        `answer` is what the browser brought back. A state is used once, whatever comes of it.
        """
        login = self._begun.pop(answer.get("state", ""), None)
        if login is None or self._clock() >= login.ends_at:
            raise LoginError(
                "this login was not begun here, is over, or took too long: begin it again"
            )
        if browser is None or not hmac.compare_digest(browser.encode(), login.browser.encode()):
            raise LoginError("this login was begun in another browser: begin it again in this one")
        if answer.get("iss", self._issuer) != self._issuer:  # RFC 9207
            raise LoginError("another provider than ours has answered: begin the login again")
        if (error := answer.get("error")) is not None:
            said = answer.get("error_description") or error
            raise LoginError(f"the provider has not logged you in: {said[:200]}")
        if not (code := answer.get("code")):
            raise LoginError("the provider sent no code: begin the login again")
        token = await self._exchanged(code, login)
        try:
            caller = await self._tokens.logged_in(token, login.nonce)
        except IssuerAway:
            raise LoginError("the provider's keys cannot be read now: try again later") from None
        except NotAllowed as refusal:
            log.warning("an id token was refused: %s", refusal.reason)
            raise LoginError(
                "what the provider says about you is not believed; the console's log tells why",
                reason=refusal.reason,
            ) from refusal
        return caller, login.page

    async def _exchanged(self, code: str, login: BegunLogin) -> str:
        """The id token that the provider gives for a code."""
        provider = await self._document()
        body = prepare_token_request(
            "authorization_code",
            code=code,
            redirect_uri=login.redirect_uri,
            code_verifier=login.verifier,
        )
        method = "none"
        if self._client_secret is not None:
            basic = "client_secret_basic" in provider.token_endpoint_auth_methods_supported
            method = "client_secret_basic" if basic else "client_secret_post"
        headers = {
            "Accept": "application/json",
            "Content-Type": "application/x-www-form-urlencoded",
        }
        address, headers, body = ClientAuth(self._client_id, self._client_secret, method).prepare(
            "POST", provider.token_endpoint, headers, body
        )
        status, document = await self._ask("POST", address, headers, body)
        if status != 200:
            said = document.get("error_description") or document.get("error") or f"{status}"
            raise LoginError(
                f"the provider did not take the code: {str(said)[:200]}{self._way_out(document)}"
            )
        token = document.get("id_token")
        if not isinstance(token, str):
            raise LoginError("the provider sent no id token; is `openid` in AUTH_LOGIN_SCOPE?")
        return token

    def _way_out(self, document: Mapping[str, Any]) -> str:
        """What to do where the provider does not know us as its client."""
        if document.get("error") != "invalid_client":
            return ""
        if self._client_secret is None:
            return "; if it gave this client a secret, set AUTH_CLIENT_SECRET"
        return "; are AUTH_CLIENT_ID and AUTH_CLIENT_SECRET those that it has given?"

    # --- out -------------------------------------------------------------------------------------

    async def logout_address(self, back: str) -> str | None:
        """Where the browser ends its session at the provider too, who asks the person first: the
        id token that would spare them the question stays here. None where there is no such address.
        https://openid.net/specs/openid-connect-rpinitiated-1_0.html#RPLogout"""
        try:
            provider = await self._document()
        except LoginError as error:
            log.warning("the user is not logged out at the provider: %s", error)
            return None
        if (address := provider.end_session_endpoint) is None:
            return None
        query = urlencode({"client_id": self._client_id, "post_logout_redirect_uri": back})
        return f"{address}{'&' if '?' in address else '?'}{query}"

    async def close(self) -> None:
        """Give up what is being fetched."""
        await self._tokens.keys.close()

    # --- what the provider says --------------------------------------------------------------

    async def _document(self) -> ProviderDocument:
        now = self._clock()
        if self._known is not None and now - self._known[0] < KNOWN_SECONDS:
            return self._known[1]
        address = f"{self._issuer.rstrip('/')}{DISCOVERY}"
        try:
            status, answer = await self._ask("GET", address)
            if status != 200:
                raise LoginError(f"{address} answers {status}; is AUTH_ISSUER right?")
            found = ProviderDocument.model_validate(answer)
        except ValidationError as error:
            where = "; ".join(
                f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()[:3]
            )
            raise LoginError(f"what {address} says cannot be used: {where}") from error
        except LoginError:
            if self._known is None:
                raise
            return self._known[1]  # It was right an hour ago.
        if found.issuer != self._issuer:
            raise LoginError(
                f"{address} is of the issuer {found.issuer[:200]!r}; set AUTH_ISSUER to that"
            )
        self._known = now, found
        return found

    async def _ask(
        self,
        method: str,
        address: str,
        headers: dict[str, str] | None = None,
        body: str | None = None,
    ) -> tuple[int, dict[str, Any]]:
        """The status and the JSON object that the provider answers. Raises `LoginError`."""
        host = httpx.URL(address).host
        try:
            async with (
                httpx.AsyncClient(
                    timeout=ASK_SECONDS, verify=trusted(), trust_env=False
                ) as provider,
                provider.stream(method, address, headers=headers, content=body) as answer,
            ):
                content = b""
                async for part in answer.aiter_bytes():
                    content += part
                    if len(content) > ANSWER_MAX_BYTES:
                        raise LoginError(f"the provider at {host} answers too much")
        except httpx.HTTPError as error:
            why = str(error) or type(error).__name__
            raise LoginError(f"the provider at {host} cannot be asked: {why}") from error
        try:
            document = from_json(content)
        except ValueError:
            document = None
        if not isinstance(document, dict):
            raise LoginError(f"the provider at {host} answers {answer.status_code} and no JSON")
        return answer.status_code, document
