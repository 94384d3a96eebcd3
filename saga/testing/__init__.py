"""For the tests of a saga: its participants' behaviour in three words, and servers of their own.

    assert given(PARTICIPANT, requested).when(refused) == (cancelled,)

The fixtures of `saga.testing.plugin` are there wherever the engine is installed.
"""

from saga.testing.given import NOW, GivenParticipant, assert_once, given

__all__ = ["NOW", "GivenParticipant", "assert_once", "given"]
