"""The operator's command `saga`: one subcommand per habit.

Modules that take long to import are imported by the commands that need them, so that `--help` and
wrong usage are answered at once.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from typing import Annotated, Any, Final, NoReturn

import typer
from pydantic import ValidationError

from saga.commands import (
    backups,
    browsing,
    dlq,
    due,
    exporting,
    forgetting,
    future,
    graph,
    hiding,
    history,
    keys,
    load,
    persons,
    project,
    recover,
    running,
    schemas,
    topology,
    trace,
    verify,
)
from saga.commands.output import explanation, problem
from saga.load import OWN_COMMANDS
from saga.runtime import streams
from saga.runtime.files import keep_private
from saga.text import is_utf_8
from saga.version import engine_version

FAILED: Final = 1
USAGE_ERROR: Final = 2
CONTEXT_SETTINGS: Final = {"help_option_names": ["-h", "--help"]}


class Group(typer.core.TyperGroup):
    """The commands, those of the project's saga in the place of the engine's.

    Listing them does not load the saga, so `--help` and wrong usage are answered at once.
    """

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        if args and args[0] in OWN_COMMANDS and (own := own_command(args[0])) is not None:
            return args[0], own, args[1:]
        return super().resolve_command(ctx, args)


def own_command(name: str) -> Any:
    """The command that the project's saga has in the place of the engine's; None if it has none.

    Raises `SagaError`.
    """
    from saga.discovery import named, saga

    if (where := saga().commands.get(name)) is None:
        return None
    own = typer.Typer(
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",
        context_settings=CONTEXT_SETTINGS,
    )
    own.command(name)(named(where))
    return typer.main.get_command(own)


app = typer.Typer(
    name="saga",
    cls=Group,
    help="Run, load, watch and check a choreography saga over RabbitMQ.",
    epilog="Exit status: 0 fine, 1 a problem was found or something failed, 2 wrong usage, 141 who "
    "read the output has left.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings=CONTEXT_SETTINGS,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from saga.commands.console import write

        write(f"saga {engine_version()} (Python {platform.python_version()})\n")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """What all commands take."""
    hiding.begin()


def command_line() -> Any:
    """The whole command line, with what the project's saga has in the place of the engine's
    commands. Raises `SagaError`."""
    group: Any = typer.main.get_command(app)
    for name in OWN_COMMANDS:
        if (own := own_command(name)) is not None:
            group.commands[name] = own
    return group


app.command("new")(project.new)
app.command("up")(running.up)
app.command("demo")(load.demo)
app.command("publish")(load.publish)
app.command("status")(running.status)
app.command("address")(running.address)
app.command("restart")(running.restart)
app.command("reconcile")(running.reconcile)
app.command("backup")(backups.backup)
app.command("restore")(backups.restore)
app.command("forget")(forgetting.forget)
app.command("trace")(trace.trace)
app.command("future")(future.future)
app.command("stuck")(trace.stuck)
app.command("show")(trace.show)
app.command("due")(due.due)
app.command("console")(browsing.console)
app.command("map")(graph.show_map)
app.command("check")(graph.check)
app.command("generate")(graph.generate)
app.command("migration")(project.migration)
app.command("verify")(verify.verify)
app.command("exporter")(exporting.exporter)
app.add_typer(topology.app, name="topology")
app.add_typer(schemas.app, name="schemas")
app.add_typer(dlq.app, name="dlq")
app.add_typer(history.app, name="history")
app.add_typer(recover.app, name="recover")
app.add_typer(persons.app, name="persons")
app.add_typer(keys.app, name="keys")


def main() -> None:
    """Run `saga`. What can be expected to fail ends in one line and exit status 1, wrong usage in
    one line and exit status 2."""
    streams.set_up()
    keep_private()
    try:
        _check_encoding()
        status = app(standalone_mode=False)
        streams.flush()
    except typer.Abort:
        sys.exit(FAILED)
    except Exception as error:
        if isinstance(error, typer.BadParameter.__bases__[0]):  # every kind of wrong usage
            _refuse(error)
        line = explanation(error)
        if line is None:
            raise
        problem(line)
        sys.exit(FAILED)
    sys.exit(status if isinstance(status, int) else 0)


def _check_encoding() -> None:
    """Refuse arguments and variables that are not UTF-8: databases, broker and JSON take no other
    text."""
    for number, argument in enumerate(sys.argv[1:], start=1):
        if not is_utf_8(argument):
            problem(f"argument {number} ({argument!r}) is not UTF-8; write it in UTF-8")
            sys.exit(USAGE_ERROR)
    if not all(map(is_utf_8, os.environ.values())):
        for name in _variables(typer.main.get_command(app)):
            if not is_utf_8(os.environ.get(name, "")):
                problem(f"the variable {name} is not UTF-8; write it in UTF-8")
                sys.exit(USAGE_ERROR)


def _variables(command: Any) -> Iterator[str]:
    """The environment variables that take the place of options."""
    for parameter in command.params:
        if isinstance(parameter.envvar, str):
            yield parameter.envvar
    for subcommand in getattr(command, "commands", {}).values():
        yield from _variables(subcommand)


def _refuse(error: Any) -> NoReturn:
    """Say in one line what is wrong with the usage; without any arguments, show the help."""
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        sys.exit(USAGE_ERROR)
    line = " ".join(error.format_message().split()).replace("Value error, ", "").rstrip(".")
    if isinstance(error.__cause__, ValidationError):  # whose message leaves the value out
        value = repr(error.__cause__.errors(include_url=False)[0]["input"])
        line += "" if value in line else f", not {value}"
    where = f" (see `{error.ctx.command_path} --help`)" if error.ctx is not None else ""
    problem(f"{line}{where}")
    sys.exit(USAGE_ERROR)


if __name__ == "__main__":
    main()
