"""`saga schemas`: the JSON Schemas of what travels, released and compared."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from saga.commands.output import PROBLEM_FOUND, AsJson, print_json, problem, remark
from saga.runtime.files import write_public
from saga.wording import counted

app = typer.Typer(
    help="JSON Schemas of events and commands: what a change does to readers of the last release.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

CONTRACTS: Final = Path("contracts")

Folder = Annotated[Path, typer.Argument(help="The folder of the contracts.")]


@app.command()
def export(folder: Folder = CONTRACTS, as_json: AsJson = False) -> None:
    """Write the JSON Schema of every version of every event and command there is a class for.

    Examples:

    * `saga schemas export`
    * `saga schemas export /tmp/contracts --json`
    """
    from saga.discovery import choreography
    from saga.schemas.export import schema_files

    files = schema_files(choreography())
    for name, text in files.items():
        write_public(folder / name, text)
    if as_json:
        print_json({"folder": str(folder), "files": list(files)})
    else:
        remark(f"{folder}: {counted(len(files), 'schema')}")


@app.command()
def check(folder: Folder = CONTRACTS, as_json: AsJson = False) -> None:
    """Tell what would break a reader of the last release, or could not be read any more.

    Compares the event classes with the schemas released last: readers of those have to read what is
    published now, and what was published then has to be read now, through upcasters where it is of
    an older version. Every version needs a stored example, which is read. Changes nothing. Exit
    status 1 if something breaks.

    Examples:

    * `saga schemas check`
    * `saga schemas check --json`
    """
    from saga.commands.console import out
    from saga.discovery import choreography
    from saga.schemas.registry import RELEASED, has_release, not_sealed_yet, problems

    graph = choreography()
    found = problems(_existing(folder), graph)
    unsealed = not_sealed_yet(folder, graph)
    if as_json:
        print_json(
            {
                "ok": not found,
                "compared_with_a_release": has_release(folder),
                "problems": [
                    {"type": p.type, "version": p.version, "message": p.message} for p in found
                ],
                "not_sealed_yet": unsealed,
            }
        )
    else:
        for each in found:
            out().print(str(each))
        if not found and not has_release(folder):
            remark(
                f"no release is noted in {folder / RELEASED}, so nothing was compared with one; "
                f"every version has an example that can be read. `saga schemas release` notes one"
            )
        elif not found:
            remark("readers of the last release read what is published now, and the other way")
        if unsealed:
            remark(
                f"as long as PERSONAL is off: the last release reads no sealed values of "
                f"{', '.join(unsealed)}; seal once what is released next is running everywhere"
            )
    if found:
        raise typer.Exit(PROBLEM_FOUND)


@app.command()
def release(folder: Folder = CONTRACTS, as_json: AsJson = False) -> None:
    """Note the schemas as they are now as released. Refuses to if `saga schemas check` finds
    anything. To be run, and committed, with each release.

    Examples:

    * `saga schemas release`
    """
    from saga.commands.console import out
    from saga.discovery import choreography
    from saga.schemas import registry

    graph = choreography()
    found = registry.problems(_existing(folder), graph)
    if found:
        for each in found:
            problem(str(each))
        raise typer.Exit(PROBLEM_FOUND)
    files = [file.as_posix() for file in registry.release(folder, graph)]
    if as_json:
        print_json({"released": files})
    else:
        for name in files:
            out().print(name)
        if not files:
            remark("nothing has changed since the last release")


def _existing(folder: Path) -> Path:
    if not folder.is_dir():
        raise typer.BadParameter(
            f"{folder} is no folder; name the contracts', or run this in the project's folder",
            param_hint="FOLDER",
        )
    return folder
