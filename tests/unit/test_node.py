"""What is seen of a private node from outside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from saga.local.node import LOG_CLOSED_LOOKS_MAX, LogWatch, RabbitNode


@dataclass
class Node:
    """What is seen of it."""

    pid: int = 1
    log_is_open: bool = True


def test_a_log_that_stays_closed_has_no_writer_any_more() -> None:
    node = Node()
    watch = LogWatch(node)
    assert not watch.writer_is_gone()

    node.log_is_open = False

    looks = [watch.writer_is_gone() for _ in range(LOG_CLOSED_LOOKS_MAX + 2)]
    assert looks == [False] * LOG_CLOSED_LOOKS_MAX + [True] * 2


def test_a_log_that_is_opened_again_has_one() -> None:
    node = Node()
    watch = LogWatch(node)
    for _ in range(3):
        node.log_is_open = True
        assert not watch.writer_is_gone()
        node.log_is_open = False
        assert not any(watch.writer_is_gone() for _ in range(LOG_CLOSED_LOOKS_MAX))


def test_a_node_that_was_started_again_is_not_judged_by_the_one_before() -> None:
    node = Node()
    watch = LogWatch(node)
    watch.writer_is_gone()
    node.log_is_open = False
    while not watch.writer_is_gone():
        pass

    node.pid = 2

    assert not any(watch.writer_is_gone() for _ in range(2 * LOG_CLOSED_LOOKS_MAX))


def test_a_node_whose_log_was_never_seen_is_not_judged() -> None:
    watch = LogWatch(Node(log_is_open=False))

    assert not any(watch.writer_is_gone() for _ in range(2 * LOG_CLOSED_LOOKS_MAX))


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
