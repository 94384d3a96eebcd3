"""Which dead letters a command is about: its options, and what they select."""

from __future__ import annotations

import contextlib
import functools
import inspect
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from saga.commands.discretion import Discretion
from saga.commands.output import PROBLEM_FOUND, problem
from saga.errors import InputError, NotFound

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from saga.dlq.desk import DeadLetterDesk
    from saga.dlq.selection import Selection

_USAGE_ERROR: Final = 2


def _filter(help: str, *names: str) -> Any:
    return typer.Option(*names, help=help, rich_help_panel="Which letters", show_default=False)


class Filters:
    """The selection as it was asked for, with what needs no system to check it checked."""

    def __init__(
        self,
        ids: Annotated[
            list[str] | None,
            typer.Argument(metavar="[ID]...", help="Letters, by their number or message id."),
        ] = None,
        queue: Annotated[str | None, _filter("From this queue, such as room.normal.")] = None,
        service: Annotated[str | None, _filter("Of this service.")] = None,
        type: Annotated[str | None, _filter("Of this event or command type.")] = None,
        error: Annotated[str | None, _filter("Whose error says this, in any case.")] = None,
        fingerprint: Annotated[str | None, _filter("With this error fingerprint.")] = None,
        subject: Annotated[
            str | None,
            _filter("About this subject, a trip's id for instance.", "--subject", "--order"),
        ] = None,
        older_than: Annotated[
            str | None, _filter("Dead for longer: seconds, or 15m, 2h, 7d.")
        ] = None,
        newer_than: Annotated[
            str | None, _filter("Dead for less: seconds, or 15m, 2h, 7d.")
        ] = None,
    ) -> None:
        with answering():
            from saga.dlq.selection import Selection, age_seconds

            self._ids = list(ids or ())
            self._filters = Selection(
                queue=queue,
                service=service,
                type=type,
                error=error,
                fingerprint=fingerprint,
                subject=subject,
                older_than=age_seconds("--older-than", older_than),
                newer_than=age_seconds("--newer-than", newer_than),
            )

    @property
    def given(self) -> bool:
        """Whether anything was asked for in particular."""
        return bool(self._ids) or not self._filters.everything

    async def selection(self, desk: DeadLetterDesk) -> Selection:
        """The selection; raises `InputError` if it names what does not exist. Errors are searched
        as the command shows them."""
        filters, error = self._filters, self._filters.error
        discretion = Discretion(desk.deployment, desk.graph)
        if error is not None and not discretion.shows_all:
            desk.store.names_in = lambda body: discretion.named_in([body])
            filters = replace(filters, error=None, nameless_error=error)
        return await desk.selection(filters, self._ids)


def selecting(*, by_id: bool) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command the options of `Filters`, and what they were to it as its first argument."""
    options = dict(inspect.signature(Filters, eval_str=True).parameters)
    if not by_id:
        del options["ids"]

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        _, *others = inspect.signature(function, eval_str=True).parameters.values()

        @functools.wraps(function)
        def command(**given: Any) -> None:
            filters = Filters(**{name: given.pop(name) for name in options})
            function(filters, **given)

        # What Typer looks at.
        parameters = [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for parameter in (*options.values(), *others)
        ]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # it may be set
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        return command

    return decorate


@contextlib.contextmanager
def answering() -> Iterator[None]:
    """Bad input ends in one line that names it, and exit status 2; what is only not there, with
    1."""
    try:
        yield
    except InputError as error:
        problem(" ".join(str(error).split()))
        status = PROBLEM_FOUND if isinstance(error, NotFound) else _USAGE_ERROR
        raise typer.Exit(status) from None
