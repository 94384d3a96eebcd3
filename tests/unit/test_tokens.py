"""Whose token is believed, and whose is not: with an issuer of the test's own, and its clocks."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import Any

import pytest

from saga.auth import tokens
from saga.auth.caller import AuthMethod, Caller, IssuerAway, NotAllowed
from saga.auth.settings import AuthSettings
from saga.auth.tokens import Tokens
from saga.runtime.settings import SettingsError, load
from tests.issuer import AUDIENCE, OWNER, Issuer, SigningKey, ec_key, ed_key, forged, rsa_key

SEALED = f"~1.{'A' * 22}.{'B' * 23}"


class World:
    """An issuer, who may be away, and one who believes it."""

    def __init__(self, issuer: Issuer | None = None, **settings: Any) -> None:
        self.issuer = issuer or Issuer()
        self.away = False
        self.fetched = 0
        self.passed = 0.0
        given = {"auth_issuer": self.issuer.url, "auth_audience": AUDIENCE} | settings
        self.tokens = Tokens(
            AuthSettings(**given),
            fetch=self._fetch,
            clock=lambda: 1_000.0 + self.passed,
            now=lambda: time.time() + self.passed,
        )

    async def _fetch(self, url: str) -> bytes:
        if self.away:
            raise ValueError("no answer")
        if url.endswith("/.well-known/openid-configuration"):
            document = {"issuer": self.issuer.url, "jwks_uri": f"{self.issuer.url}/keys"}
            return json.dumps(document).encode()
        self.fetched += 1
        return self.issuer.jwks

    async def whose(self, token: str) -> Caller:
        return await self.tokens.caller(token)

    async def refused(self, token: str) -> str:
        with pytest.raises(NotAllowed) as error:
            await self.tokens.caller(token)
        return error.value.reason


@pytest.mark.parametrize("key", [rsa_key("rsa"), ec_key("ec"), ed_key("ed")])
async def test_a_token_that_the_issuer_signed_is_believed(key: SigningKey) -> None:
    world = World(Issuer("https://issuer.example", key))

    caller = await world.whose(world.issuer.token(preferred_username="Olga"))

    assert (caller.subject, caller.how, caller.name) == ("olga", AuthMethod.TOKEN, "Olga")
    assert caller.may("stock:write")
    assert caller.owner is None


@pytest.mark.parametrize("kind", forged(Issuer()))
async def test_a_forged_token_is_not_believed(kind: str) -> None:
    world = World()
    await world.whose(world.issuer.token())

    reason = await world.refused(forged(world.issuer)[kind])

    assert reason
    assert forged(world.issuer)[kind] not in reason


async def test_no_key_of_another_kind_is_used_for_an_algorithm() -> None:
    key = rsa_key("one")
    world = World(Issuer("https://issuer.example", key))
    elliptic = Issuer("https://issuer.example", ec_key("one"))

    assert "no key 'one' for ES256" in await world.refused(elliptic.token())


@pytest.mark.filterwarnings("ignore:Key size")
async def test_a_short_rsa_key_is_none() -> None:
    world = World(Issuer("https://issuer.example", rsa_key("short", 1_024)))

    assert "no key 'short'" in await world.refused(world.issuer.token())


async def test_a_key_for_encryption_signs_nothing() -> None:
    key = rsa_key("enc")
    world = World(Issuer("https://issuer.example", key, ec_key("sig")))
    found = json.loads(world.issuer.jwks)
    found["keys"][0]["use"] = "enc"
    assert [*tokens._keys_in(found)] == ["sig"]


async def test_a_token_need_not_name_its_key_where_only_one_fits() -> None:
    alone = World(Issuer("https://issuer.example", ec_key("a"), rsa_key("b")))
    assert (await alone.whose(alone.issuer.token(kid=None))).subject == "olga"

    among = World(Issuer("https://issuer.example", ec_key("a"), ec_key("b")))
    assert await among.refused(among.issuer.token(kid=None))


async def test_clocks_may_differ_by_the_leeway() -> None:
    world = World(auth_leeway_seconds=60)
    now = int(time.time())

    await world.whose(world.issuer.token(exp=now - 30))
    await world.whose(world.issuer.token(nbf=now + 30))
    assert "expired" in await world.refused(world.issuer.token(exp=now - 90))


async def test_a_token_that_was_believed_is_not_after_its_end() -> None:
    world = World(auth_leeway_seconds=0)
    token = world.issuer.token(exp=int(time.time()) + 100)
    await world.whose(token)

    world.passed = 101

    assert "expired" in await world.refused(token)


async def test_a_signature_is_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    token = world.issuer.token()
    first = await world.whose(token)
    monkeypatch.setattr(world.tokens, "_verified", None)

    assert await world.whose(token) is first


async def test_so_many_tokens_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "REMEMBERED_MAX", 2)
    world = World()
    for subject in ("a", "b", "c"):
        await world.whose(world.issuer.token(sub=subject))

    assert len(world.tokens._remembered) == 2


# --- keys that change -----------------------------------------------------------------------------


async def test_a_new_key_is_fetched_when_a_token_names_it() -> None:
    world = World()
    await world.whose(world.issuer.token())
    world.issuer.keys.insert(0, ec_key("two"))
    world.passed = tokens.FETCH_AGAIN_SECONDS

    assert (await world.whose(world.issuer.token())).subject == "olga"
    assert world.fetched == 2


async def test_unknown_keys_are_asked_for_once_a_minute() -> None:
    world = World()
    await world.whose(world.issuer.token())
    for number in range(50):
        await world.refused(world.issuer.token(key=ec_key(f"strange-{number}")))
        world.passed += 2

    assert world.fetched == 2  # at the start, and after a minute


async def test_a_withdrawn_key_counts_no_more() -> None:
    world = World(Issuer("https://issuer.example", ec_key("old"), ec_key("new")))
    token = world.issuer.token(exp=int(time.time()) + 10_000)
    await world.whose(token)
    del world.issuer.keys[0]
    world.passed = tokens.FRESH_SECONDS + 1
    await world.whose(world.issuer.token(exp=int(time.time()) + 10_000))  # has keys fetched again
    await world.tokens.keys._fetched()

    assert "no key 'old'" in await world.refused(token)


async def test_where_all_keys_are_withdrawn_none_counts_any_more(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World()
    token = world.issuer.token(exp=int(time.time()) + 10_000)
    await world.whose(token)
    world.issuer.keys.clear()
    await world.tokens.keys._fetched()
    world.passed = tokens.REMEMBERED_SECONDS + 1

    assert "no key" in await world.refused(token)
    assert "no key of its set can be used" in caplog.text


async def test_known_keys_go_on_while_the_issuer_is_away() -> None:
    world = World()
    await world.whose(world.issuer.token())
    world.away = True
    world.passed = 10 * tokens.FRESH_SECONDS

    later = int(time.time() + world.passed) + 600
    assert (await world.whose(world.issuer.token(exp=later, sub="otto"))).subject == "otto"


async def test_nobody_can_be_known_before_the_issuer_was_there_and_then_they_are() -> None:
    world = World()
    world.away = True
    for _ in range(3):
        with pytest.raises(IssuerAway):
            await world.whose(world.issuer.token())
    world.away = False
    world.passed = tokens.FETCH_FAILED_SECONDS

    assert (await world.whose(world.issuer.token())).subject == "olga"


async def test_a_discovery_document_of_another_issuer_is_not_believed() -> None:
    world = World(auth_issuer="https://issuer.example")
    world.issuer.url = "https://evil.example"

    with pytest.raises(IssuerAway):
        await world.whose(world.issuer.token(iss="https://issuer.example"))


async def test_keys_may_be_in_a_file(tmp_path: Any) -> None:
    issuer = Issuer()
    file = tmp_path / "keys.json"
    file.write_bytes(issuer.jwks)
    world = World(issuer, auth_jwks=str(file))
    world.away = True

    assert (await world.whose(issuer.token())).subject == "olga"


@pytest.mark.parametrize(
    "document",
    [b"", b"[]", b"{}", b'{"keys": {}}', b"\xff", b"[" * 9_999,
     json.dumps({"keys": [{}] * 101}).encode()],
)  # fmt: skip
async def test_what_is_no_set_of_keys_leaves_nobody_known(document: bytes, tmp_path: Any) -> None:
    file = tmp_path / "keys.json"
    file.write_bytes(document)
    world = World(auth_jwks=str(file))

    with pytest.raises(IssuerAway):
        await world.whose(world.issuer.token())


@pytest.mark.parametrize(
    "document",
    [b'{"keys": []}', b'{"keys": [1]}',
     json.dumps({"keys": [{"kty": "RSA", "n": "AQ", "e": "x" * 9_999}]}).encode(),
     json.dumps({"keys": [{"kty": "oct", "k": "AQ"}]}).encode(),
     json.dumps({"keys": [{"kty": "EC", "crv": "P-256", "x": 1, "y": None}]}).encode()],
)  # fmt: skip
async def test_a_set_without_a_key_that_can_be_used_believes_no_token(
    document: bytes, tmp_path: Any
) -> None:
    file = tmp_path / "keys.json"
    file.write_bytes(document)
    world = World(auth_jwks=str(file))

    assert "no key" in await world.refused(world.issuer.token())


# --- what a caller may ----------------------------------------------------------------------------


async def test_roles_are_in_the_claim_that_is_named() -> None:
    world = World(auth_roles_claim="realm_access.roles")
    token = world.issuer.token(roles=["admin"], realm_access={"roles": ["reader", "other"]})

    caller = await world.whose(token)

    assert caller.may("stock:read")
    assert not caller.may("stock:write")
    assert not caller.may("personal:read")


async def test_a_claim_may_have_dots_in_its_name() -> None:
    world = World(auth_roles_claim="https://saga.example/roles")
    other: dict[str, Any] = {"https://saga.example/roles": "admin"}
    token = world.issuer.token(roles=None, **other)

    assert (await world.whose(token)).may("personal:read")


async def test_who_has_no_role_acts_for_one_owner_with_the_scopes_in_the_token() -> None:
    world = World()
    caller = await world.whose(world.issuer.customers("openid orders:read"))

    assert caller.owner == OWNER
    assert caller.may("orders:read")
    assert not caller.may("orders:write")
    assert caller.acts_for(OWNER)
    assert not caller.acts_for("eve")


def test_what_belongs_to_nobody_is_the_business_of_those_who_act_for_all() -> None:
    own = Caller("ada", AuthMethod.TOKEN, frozenset({"*"}), "ada")

    assert not own.acts_for(None)
    assert not replace(own, sealed_owner="~1.x").acts_for(None)
    assert replace(own, owner=None).acts_for(None)


async def test_an_owner_is_named_in_clear() -> None:
    world = World()

    assert "sealed" in await world.refused(world.issuer.customers("orders:read", owner=SEALED))


async def test_the_owner_is_in_the_claim_that_is_named() -> None:
    world = World(auth_owner_claim="shop.customer")
    token = world.issuer.customers("orders:read", shop={"customer": "c-17"})

    assert (await world.whose(token)).owner == "c-17"
    assert "no owner" in await world.refused(world.issuer.customers("orders:read"))


@pytest.mark.parametrize("sub", ["", "x" * 256, 7, ["a"], "key:1f3a"])
async def test_a_subject_is_a_text_of_some_length_and_no_keys_id(sub: Any) -> None:
    world = World()

    assert await world.refused(world.issuer.token(sub=sub))


def test_a_subject_that_cannot_be_written_down_is_none() -> None:
    world = World()

    with pytest.raises(NotAllowed):
        world.tokens._caller_of(world.issuer.claims(sub="\ud800"))


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"AUTH_ISSUER": "http://issuer.example", "AUTH_AUDIENCE": "a"}, "plain HTTP"),
        ({"AUTH_ISSUER": "issuer.example", "AUTH_AUDIENCE": "a"}, "AUTH_ISSUER"),
        ({"AUTH_ISSUER": "https://issuer.example"}, "AUTH_AUDIENCE"),
        ({"AUTH_AUDIENCE": "a"}, "AUTH_ISSUER"),
        ({"AUTH_ISSUER": "https://i", "AUTH_AUDIENCE": "a", "AUTH_JWKS": "/no"}, "no file"),
        ({"AUTH_ISSUER": "https://i", "AUTH_AUDIENCE": "a", "AUTH_JWKS": "http://k"}, "plain"),
        ({"AUTH_ROLES_CLAIM": "a..b"}, "AUTH_ROLES_CLAIM"),
        ({"AUTH_LEEWAY_SECONDS": "3600"}, "AUTH_LEEWAY_SECONDS"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    settings: dict[str, str], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)

    with pytest.raises(SettingsError, match=why):
        Tokens(load(AuthSettings))
