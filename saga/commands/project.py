"""`saga new` and `saga migration`: beginning a project, and changing its tables."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import packages_distributions
from keyword import iskeyword
from pathlib import Path
from typing import Annotated, Final

import typer

from saga.commands.output import AsJson, print_json, remark
from saga.discovery import VARIABLE
from saga.errors import Explained
from saga.runtime.files import write_public
from saga.wording import counted

_TEMPLATE: Final = Path(__file__).parents[1] / "template"
_STAND_IN: Final = "project_name"
"""What the template's saga and package are called."""
_NAME: Final = re.compile(r"[a-z][a-z0-9_]*")
NAME_MAX_CHARACTERS: Final = 40


class ProjectError(Explained):
    """A project cannot be made or changed. Names it, and why."""


def new(
    name: Annotated[
        str,
        typer.Argument(help="Of the saga and its package: small letters, digits, underscores."),
    ],
    folder: Annotated[
        Path | None, typer.Option(help="Where to; by default a folder of that name.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a project: a saga of two participants that runs, is proved and tested as it is.

    It has an event, a compensation, a deadline, an outside that is asked, invariants, a
    scenario, a load, tests, a Makefile and a README. Everything that follows from its signatures is
    generated. Put your own domain in, one piece after the other.

    Examples:

    * `saga new trips`
    * `saga new trips --folder ~/src/trips`
    """
    _check(name)
    where = folder or Path(name)
    if where.exists() and (not where.is_dir() or any(where.iterdir())):
        raise typer.BadParameter(
            f"{where} is there already, and not empty; name another folder", param_hint="--folder"
        )
    made = not where.exists()
    try:
        _make(name, where)
    except (OSError, ProjectError):
        if made:  # So that a second try finds nothing of the first.
            shutil.rmtree(where, ignore_errors=True)
        raise
    files = sorted(f.relative_to(where).as_posix() for f in where.rglob("*") if f.is_file())
    if as_json:
        print_json({"name": name, "folder": str(where), "files": files})
    else:
        remark(f"{where}: {counted(len(files), 'file')}; go on with `cd {where} && make demo`")


def _make(name: str, where: Path) -> None:
    for source in sorted(_TEMPLATE.rglob("*")):
        if source.is_file() and "__pycache__" not in source.parts:
            text = re.sub(rf"\b{_STAND_IN}\b", name, source.read_text(encoding="utf-8"))
            parts = source.relative_to(_TEMPLATE).parts
            file = where.joinpath(*(_called(part, name) for part in parts))
            write_public(file, text)
    _run("-m", "saga.cli", "generate", folder=where)


def _called(part: str, name: str) -> str:
    """What a file or folder of the template is called. (What begins with a dot there is data of a
    package that tools would take for their own.)"""
    return {_STAND_IN: name, "gitignore": ".gitignore", "dockerignore": ".dockerignore"}.get(
        part, part
    )


def _check(name: str) -> None:
    if not _NAME.fullmatch(name) or iskeyword(name) or len(name) > NAME_MAX_CHARACTERS:
        raise typer.BadParameter(
            f"{name!r} cannot be a package; use small letters, digits and underscores, at most "
            f"{NAME_MAX_CHARACTERS}, and a letter first",
            param_hint="NAME",
        )
    installed = packages_distributions().keys()
    if name in sys.stdlib_module_names | installed | {"saga", "tests"}:
        raise typer.BadParameter(
            f"{name!r} is the name of another package; take another", param_hint="NAME"
        )


def _run(*arguments: str, folder: Path) -> None:
    """Run a command of ours in a project's folder. Raises `ProjectError` when it fails."""
    environment = {key: value for key, value in os.environ.items() if key != VARIABLE}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise ProjectError(f"{folder} cannot be completed: {said[-1] if said else 'no reason'}")


def migration(
    participant: Annotated[str, typer.Argument(help="Whose tables have changed.")],
    message: Annotated[str, typer.Argument(help="What changes, in a few words.")],
    as_json: AsJson = False,
) -> None:
    """Write the next migration script of a participant, from what its `store.py` describes.

    Read it before you commit it: a script may only add to what the version before it needs, since
    both run while a new one is rolled out. A service runs its scripts when it starts.

    Examples:

    * `saga migration booking "stays have a guest"`
    """
    if not re.search(r"\w", message) or re.search(r'["\\\x00-\x1f]', message):
        raise typer.BadParameter(
            f"{message!r} cannot head a script; use words in one line, without quotation marks and "
            f"backslashes",
            param_hint="MESSAGE",
        )
    from saga.commands.console import out
    from saga.discovery import tables_of
    from saga.generate.begun import lay_out
    from saga.runtime.kernel.database import MigrationError
    from saga.runtime.kernel.migrations import write_script

    try:
        path = write_script(tables_of(participant), message)
    except MigrationError as error:
        raise ProjectError(f"{participant}: {error}") from error
    if path is not None:
        lay_out(path)
    if as_json:
        print_json({"participant": participant, "script": path and str(path)})
    elif path is None:
        remark(f"nothing to do: the scripts of {participant} lead to what its store.py describes")
    else:
        out().print(str(path))
