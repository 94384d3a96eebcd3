"""`saga backup`, `saga restore`: a whole system's databases as of one moment, and back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saga.commands.output import (
    DATA_DIR,
    LISTED_MAX,
    AsJson,
    DataDir,
    print_json,
    remark,
    run,
    stoppable,
)

if TYPE_CHECKING:
    from saga.backup.manifest import Manifest
    from saga.backup.restore import Restored

_MEGABYTE = 1_000_000


def backup(
    folder: Annotated[Path, typer.Argument(help="An empty folder, or one to be made.")],
    check: Annotated[
        bool, typer.Option("--check", help="Take none: check the one that is in the folder.")
    ] = False,
    data_dir: DataDir = DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Copy all databases of a system as of one moment, while it is at work.

    Every service's and the history's, the store of dead letters, and, beside them, the ledgers of
    sandboxes. Services wait for some milliseconds. What other outsides hold, the broker's messages
    and the databases of participants in other languages are not copied. `backup.json` is written
    last: a folder without it is no backup.

    Examples:

    * `saga backup /backups/2030-01-31`
    * `saga backup /backups/2030-01-31 --check`
    """
    from saga.commands.console import progress_bars
    from saga.discovery import saga

    if check:
        from saga.backup.check import check as look_through
        from saga.backup.manifest import Manifest

        size = Manifest.load(folder).size
        with progress_bars(bytes=size) as bars, stoppable():
            manifest = run(look_through(folder, bars["bytes"]))
    else:
        from saga.backup.take import Whole, take

        whole = Whole.of(data_dir)
        with progress_bars(bytes=None) as bars, stoppable():
            manifest = run(take(whole, folder, bars["bytes"]))
    unread = list(saga().elsewhere())
    if as_json:
        document = manifest.model_dump(mode="json")
        print_json({"ok": True, "folder": str(folder), **document, "unread": unread})
        return
    _tell(folder, manifest)
    for line in unread:
        remark(line)


def _tell(folder: Path, manifest: Manifest) -> None:
    from saga.commands.console import Table, out

    table = Table("database", "file", "MB", "events", right=("MB", "events"))
    for name, copied in manifest.copies:
        events = "" if copied.events is None else f"{copied.events}"
        table.add_row(name, copied.file, f"{copied.bytes / _MEGABYTE:.1f}", events)
    out().print(table)
    out().print(
        f"{folder}: as of {manifest.taken_at.isoformat(timespec='milliseconds')}; the services "
        f"waited {manifest.pause_seconds * 1_000:.0f} ms"
    )


def _named_urls(given: list[str]) -> dict[str, str]:
    urls: dict[str, str] = {}
    for text in given:
        name, equals, url = text.partition("=")
        if not (name and equals and url):
            raise typer.BadParameter(
                "write it as NAME=URL, as in trip=postgresql://trip:secret@db/trip",
                param_hint="--database-url",
            )
        urls[name] = url
    return urls


def restore(
    folder: Annotated[Path, typer.Argument(help="What `saga backup` wrote.")],
    data_dir: Annotated[
        Path,
        typer.Option(
            "--data-dir",
            "--into",
            envvar="DATA_DIR",
            help="The folder of the system that is to have the databases.",
        ),
    ] = DATA_DIR,
    database_url: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=URL",
            help="An empty database on a server, for each service; by default they are in the "
            "folder.",
            show_default=False,
        ),
    ] = None,
    with_ledger: Annotated[
        bool,
        typer.Option(
            "--with-ledger",
            help="Put the copy of the sandbox's ledger there too, if there is none.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Put all databases of a backup where there are none, before a system starts there.

    Refuses what has data, a system that runs, a broker that is ahead, a backup that is damaged or
    of a newer version. What outsides were asked since the backup is settled under the old keys, as
    far as their books tell. One without idempotency keys is asked again
    about what it may know already only if an operator says so. Killed on the way, run it again.

    Examples:

    * `saga restore /backups/2030-01-31 --into data`
    * `saga restore /backups/2030-01-31 --database-url trip=postgresql://trip:secret@db/trip ...`
    """
    from saga.backup.manifest import Manifest
    from saga.backup.restore import Target
    from saga.backup.restore import restore as put
    from saga.commands.console import progress_bars

    target = Target(data_dir, _named_urls(database_url or []))
    size = Manifest.load(folder).size
    with progress_bars(bytes=size) as bars, stoppable():
        restored = run(
            put(folder, target, ledger=with_ledger, report=remark, progress=bars["bytes"])
        )
    if as_json:
        print_json(_as_json(restored))
    else:
        _tell_restored(restored)


def _as_json(restored: Restored) -> dict[str, Any]:
    from saga.discovery import saga

    manifest = restored.manifest
    return {
        "ok": True,
        "taken_at": manifest.model_dump(mode="json")["taken_at"],
        "databases": list(manifest.databases),
        "asked_since": list(restored.asked.subjects),
        "contradictions": list(restored.asked.contradictions),
        "in_doubt": dict(restored.in_doubt),
        "ledger_known": restored.ledger_known,
        "unknown": list(restored.unknown),
        "unread": list(saga().elsewhere()),
    }


def _tell_restored(restored: Restored) -> None:
    from saga.commands.console import out
    from saga.discovery import saga

    manifest, asked = restored.manifest, restored.asked
    taken_at = manifest.taken_at.isoformat(timespec="milliseconds")
    out().print(f"restored as of {taken_at}: {', '.join(manifest.databases)}")
    if asked.subjects:
        out().print(
            f"questions that outsides know and the backup does not: "
            f"{len(asked.subjects)}; they are settled under their old keys"
        )
    if not restored.ledger_known:
        remark(
            "the outsides' books are not here, or only the backup's copies: what they were asked "
            "since the backup is found out when they are asked again"
        )
    for name in restored.unknown:
        remark(
            f"{name} keeps no idempotency keys: what it was asked since the backup may be asked "
            f"again, and then has its effect twice"
        )
    for line in saga().elsewhere():
        remark(f"{line}, and may be ahead of what was restored")
    for line in asked.contradictions[:LISTED_MAX]:
        remark(line)
    for name, count in restored.in_doubt.items():
        if count:
            out().print(
                f"subjects that {name} may have been asked about since the backup: {count}; an "
                f"operator decides on each before it is asked again"
            )
    remark(
        f"what happened after {taken_at} and is in no book that is left cannot be known: what was "
        f"begun since (clients may send it again under the same Idempotency-Key), and what "
        f"outsides that keep no books were asked about it; `saga reconcile` names what others "
        f"have in their books"
    )
    remark(
        "`saga up` puts what is owed back into the queues, and where others start the services, "
        "`saga recover broker`, on a broker that has nothing from after the backup; "
        "`saga reconcile` tells what is left"
    )
