"""`saga keys`: API keys, made, listed and revoked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from saga.commands.output import (
    DATA_DIR,
    AsJson,
    DataDir,
    plain_text,
    print_json,
    remark,
    wrong_usage,
)

if TYPE_CHECKING:
    from datetime import datetime

    from saga.auth.keys import ApiKey

app = typer.Typer(
    help="API keys of programs that ask the services over HTTP.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

DAYS: Final = 365

KeysFile = Annotated[
    Path | None,
    typer.Option(
        "--file",
        envvar="API_KEYS_FILE",
        help="The file of keys; by default the one that the running system reads, or "
        "`api_keys.json` in its folder.",
        show_default=False,
    ),
]


@app.command()
def create(
    name: Annotated[
        str, typer.Argument(help="The owner: a program or a user.", callback=plain_text)
    ],
    scope: Annotated[
        list[str] | None,
        typer.Option(help="What it may do, such as rooms:write or *:read.", show_default=False),
    ] = None,
    role: Annotated[
        str | None,
        typer.Option(help="All scopes of a role: reader, operator, admin.", show_default=False),
    ] = None,
    owner: Annotated[
        str | None,
        typer.Option(
            help="Whose sagas it acts on, if not on all.",
            callback=plain_text,
            show_default=False,
        ),
    ] = None,
    days: Annotated[
        int, typer.Option(min=0, max=36_500, help="Until it expires; 0 for never.")
    ] = DAYS,
    file: KeysFile = None,
    data_dir: DataDir = DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Make a key and print it, this once: what is kept is its hash.

    Give it to commands as SAGA_API_KEY, or in a file that SAGA_API_KEY_FILE names; other programs
    send it as `Authorization: Bearer <key>`. Services know it within seconds.

    Examples:

    * `saga keys create reception --scope stays:write --scope stays:read`
    * `saga keys create ann --role operator --days 30`
    """
    from datetime import timedelta

    from saga.auth.keys import changing, new_key
    from saga.auth.scopes import ROLES
    from saga.commands.console import write
    from saga.runtime.kernel.tables import utc_now

    if role is not None and role not in ROLES:
        raise typer.BadParameter(f"there is no role {role!r}; take one of {', '.join(ROLES)}")
    scopes = {*(scope or ()), *(ROLES[role] if role is not None else ())}
    if not scopes:
        raise typer.BadParameter("a key without a scope may do nothing: add --scope or --role")
    now = utc_now()
    expires_at = now + timedelta(days=days) if days else None
    with wrong_usage():
        text, key = new_key(name, scopes, owner=owner, expires_at=expires_at, now=now)
    where = _file(file, data_dir)
    with changing(where) as keys:
        keys.append(key)
    if as_json:
        print_json({"key": text, **_described(key, None)})
    else:
        write(f"{text}\n")
        remark(f"the key {key.id} is in {where} as a hash, and is shown this once")


@app.command("list")
def list_(
    file: KeysFile = None,
    audit_dir: Annotated[
        Path | None,
        typer.Option(
            "--audit-dir",
            envvar="AUDIT_DIR",
            help="Where services note which keys are used; by default `audit` in the system's "
            "folder.",
            show_default=False,
        ),
    ] = None,
    data_dir: DataDir = DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """List the keys there are, what they may do, and when they were used last.

    Examples:

    * `saga keys list`
    * `saga keys list --json | jq -r '.keys[] | select(.last_used == null) | .id'`
    """
    from saga.auth.keys import USED_FOLDER, last_used, read_keys
    from saga.auth.settings import AUDIT_FOLDER_NAME
    from saga.commands.console import Table, out
    from saga.runtime.kernel.tables import utc_now

    where = _file(file, data_dir)
    used_in = audit_dir or data_dir / AUDIT_FOLDER_NAME
    found = [(key, last_used(used_in, key.id)) for key in read_keys(where)]
    if found and not (used_in / USED_FOLDER).is_dir():
        remark(
            f"when keys were used is not known: there is no {used_in / USED_FOLDER}, so no service "
            f"notes it there; name their AUDIT_DIR by --audit-dir"
        )
    if as_json:
        print_json({"file": str(where), "keys": [_described(*one) for one in found]})
        return
    if not found:
        remark(f"there are no keys in {where}; `saga keys create` makes one")
        return
    now = utc_now()
    table = Table("id", "name", "scopes", "owner", "expires", "last used")
    for key, used in found:
        expires = _day(key.expires_at, "never") if key.is_live(now) else "expired"
        table.add_row(
            key.id, key.name, " ".join(key.scopes), key.owner or "", expires, _day(used, "")
        )
    out().print(table)


@app.command()
def revoke(
    id: Annotated[str, typer.Argument(help="The key's id, as `saga keys list` shows it.")],
    file: KeysFile = None,
    data_dir: DataDir = DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Take a key out of the file. Services turn it away within seconds.

    Examples:

    * `saga keys revoke c23b76b8d8`
    """
    from saga.auth.keys import KeysError, changing

    where = _file(file, data_dir)
    with changing(where) as keys:
        found = [key for key in keys if key.id == id]
        if not found:
            raise KeysError(f"there is no key {id} in {where}; `saga keys list` shows all")
        keys[:] = [key for key in keys if key.id != id]
    if as_json:
        print_json({"revoked": _described(found[0], None)})
    else:
        remark(f"the key {id} ({found[0].name}) is revoked")


def _file(file: Path | None, data_dir: Path) -> Path:
    """The file named, or the one that the services of the running system read."""
    from saga.auth.settings import KEYS_FILE_NAME
    from saga.deployment import FILE_NAME, Deployment

    if file is not None:
        return file
    of_system = None
    if (data_dir / FILE_NAME).exists():
        of_system = Deployment.load(data_dir).api_keys_file
    return of_system or data_dir / KEYS_FILE_NAME


def _described(key: ApiKey, used: datetime | None) -> dict[str, object]:
    return {
        **key.model_dump(mode="json", exclude={"sha256"}),
        "last_used": None if used is None else used.isoformat(),
    }


def _day(moment: datetime | None, otherwise: str) -> str:
    return otherwise if moment is None else f"{moment:%Y-%m-%d %H:%M}"
