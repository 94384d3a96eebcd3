"""What is seen of a private node from outside."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from saga.node import RabbitNode


class Machine:
    """A node's process; `on_end` is called as soon as it has ended."""

    def __init__(self, on_end: Callable[[], None] = lambda: None) -> None:
        self.signals: list[str] = []
        self._on_end = on_end

    def terminate(self) -> None:
        self.signals.append("SIGTERM")

    def kill(self) -> None:
        self.signals.append("SIGKILL")

    def wait(self, _: float | None = None) -> None:
        self._on_end()


def test_a_node_that_is_started_again_before_its_end_is_noticed_stays(tmp_path: Path) -> None:
    node = RabbitNode(tmp_path)
    next_one = Machine()
    old = Machine(on_end=lambda: vars(node).update(_vm=next_one))
    vars(node).update(_vm=old)

    node.shut_down()

    assert old.signals[0] == "SIGTERM"
    assert next_one.signals == []
    assert vars(node)["_vm"] is next_one
