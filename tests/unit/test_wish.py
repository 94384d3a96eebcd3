"""Who wanted what was due done at once, as the record names them."""

from __future__ import annotations

from saga.auth.caller import ANYBODY, AuthMethod, Caller
from saga.runtime.dues import WHO_MAX, BringForward

SAID = BringForward(who="ada@shop", reason="it has to go out")


def test_where_nobody_is_asked_who_they_are_what_is_said_counts() -> None:
    wish = SAID.of(ANYBODY)

    assert (wish.who, wish.reason) == ("ada@shop", "it has to go out")


def test_a_caller_who_is_known_is_named_and_what_they_say_is_a_note() -> None:
    wish = SAID.of(Caller("key-7", AuthMethod.KEY, frozenset({"*"}), name="console"))

    assert wish.who == "key-7 (console)"
    assert wish.reason == "it has to go out (for ada@shop, as the caller says)"


def test_a_long_name_fits_into_the_record() -> None:
    wish = SAID.of(Caller("s" * 500, AuthMethod.TOKEN, frozenset(), name="n" * 500))

    assert len(wish.who) <= WHO_MAX
