"""`saga persons`: the keys that personal data is sealed under."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import typer

from saga.commands.output import DATA_DIR, PROBLEM_FOUND, AsJson, DataDir, print_json, remark
from saga.wording import counted

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from saga.personal.in_clear import ClearReport
    from saga.personal.keystore import KeyStore

app = typer.Typer(
    help="The keys that personal data is sealed under, one for each person.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)


@app.command("list")
def list_(data_dir: DataDir = DATA_DIR, as_json: AsJson = False) -> None:
    """List the persons with a key, and those that were forgotten. Shows no names: the key store
    knows ids only.

    Examples:

    * `saga persons list`
    * `saga persons list --json`
    """
    from saga.commands.console import Table, out

    with _key_store(data_dir) as store:
        persons = list(store.persons())
    if as_json:
        print_json(
            {
                "persons": [
                    {
                        "person_id": person.person_id,
                        "created_at": person.created_at.isoformat(),
                        "forgotten_at": person.forgotten_at and person.forgotten_at.isoformat(),
                        "reason": person.reason,
                    }
                    for person in persons
                ]
            }
        )
        return
    if not persons:
        remark("no person has a key; with PERSONAL=sealed, each gets one once they are first named")
    table = Table("person", "since", "forgotten", "reason")
    for person in persons:
        forgotten = person.forgotten_at
        table.add_row(
            person.person_id,
            person.created_at.isoformat(timespec="seconds"),
            "" if forgotten is None else forgotten.isoformat(timespec="seconds"),
            person.reason,
        )
    out().print(table)


@app.command("rotate-key")
def rotate_key(data_dir: DataDir = DATA_DIR, as_json: AsJson = False) -> None:
    """Wrap every person's key by the newest master key, the first line of `PERSONAL_KEY_FILE`.

    Put the new key there, keep the old one below it, and restart the services, so that they know
    both; then run this, and take the old line out. What is sealed stays as it is.

    Examples:

    * `saga persons rotate-key`
    """
    with _key_store(data_dir) as store:
        newest, count = store.rotate()
        wrapped_by = store.wrapped_by()
    if as_json:
        print_json({"master_key": newest, "wrapped": count, "wrapped_by": wrapped_by})
        return
    remark(
        f"wrapped again, by master key {newest}: {counted(count, 'key')}; no other one wraps "
        f"anything"
        if count
        else f"every key is wrapped by master key {newest} already"
    )


@app.command("in-clear")
def in_clear(data_dir: DataDir = DATA_DIR, as_json: AsJson = False) -> None:
    """List where personal fields are kept in clear: what entered before `PERSONAL=sealed`.

    Reads the whole history, the dead letters and the databases of the participants, and changes
    nothing: what was recorded is not rewritten. Says of each place how it gets rid of them, and
    when. Exit status 1 if there are any, or something could not be read.

    Examples:

    * `saga persons in-clear`
    * `saga persons in-clear --json | jq '.places[] | {name, count, goes_at}'`
    """
    from saga.deployment import Deployment
    from saga.discovery import saga
    from saga.personal.in_clear import look_for_clear
    from saga.runtime.kernel.tables import utc_now

    report = look_for_clear(Deployment.load(data_dir), saga(), utc_now())
    if as_json:
        print_json(report.to_json())
    else:
        _show_in_clear(report)
    if not report.clean:
        raise typer.Exit(PROBLEM_FOUND)


def _show_in_clear(report: ClearReport) -> None:
    from saga.commands.console import Table, out

    table = Table(
        "in clear in", "count", "oldest", "newest", "until", "how it goes", right=("count",)
    )
    for one in report.places:
        times = (one.oldest, one.newest, one.goes_at)
        shown = (at.strftime("%Y-%m-%d %H:%M") if at else "" for at in times)
        table.add_row(one.name, f"{one.count}", *shown, one.goes)
    if report.places:
        out().print(table)
    for name, why in report.unseen:
        remark(f"could not look at {name}: {why}")
    for name, why in report.elsewhere:
        remark(f"not looked at: {name}: {why}")
    count = sum(report.looked_at.values())
    if not report.places:
        out().print(
            f"nothing is in clear in the {counted(count, 'message')} and rows that were looked at"
        )


@contextlib.contextmanager
def _key_store(data_dir: Path) -> Iterator[KeyStore]:
    """The key store of a running system, or of the environment where none is known."""
    from saga.deployment import FILE_NAME, Deployment
    from saga.personal.opening import open_store
    from saga.runtime.settings import PersonalSettings, load

    if (data_dir / FILE_NAME).exists():
        settings = Deployment.load(data_dir).personal_settings(data_dir)
    else:
        settings = load(PersonalSettings, data_dir=data_dir)
    store = open_store(settings, existing=True)
    try:
        yield store
    finally:
        store.close()
