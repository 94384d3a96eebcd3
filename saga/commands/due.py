"""`saga due`: what is due when, brought forward, and what was."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import typer

from saga.commands.output import (
    DATA_DIR,
    PROBLEM_FOUND,
    AsJson,
    DataDir,
    answer_to,
    plain_text,
    print_json,
    remark,
    run,
    stoppable,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from saga.deployment import Deployment
    from saga.dues import Item, Listing

_SHOWN: Final = 200
"""What is shown one by one to an operator; JSON has more of it."""
_REASON_MAX: Final = 1_000


def due(
    subject: Annotated[
        str | None,
        typer.Argument(help="What it is due about, a trip for instance.", show_default=False),
    ] = None,
    participant: Annotated[
        str | None, typer.Option(help="Only what is due in this service.", show_default=False)
    ] = None,
    bring_forward: Annotated[
        bool, typer.Option("--bring-forward", help="Do it now, before its time.")
    ] = False,
    reason: Annotated[
        str | None,
        typer.Option(
            help="Why it is brought forward; for the audit record.",
            callback=plain_text,
            show_default=False,
        ),
    ] = None,
    audit: Annotated[
        bool, typer.Option("--audit", help="List what was brought forward instead.")
    ] = False,
    limit: Annotated[
        int, typer.Option(min=1, max=100_000, help="With --audit: the newest so many entries.")
    ] = 50,
    data_dir: DataDir = DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """List what is due in all services, and when; have it done now, or list what was.

    Exit status 1 if something should have been done by now. `--bring-forward` asks the service to
    do now what is due about the subject: that is kept in its audit record, with who asked, why, and
    what came of it.

    Examples:

    * `saga due`
    * `saga due 9b695b7c-423b-5f77-b29e-1b10bc1cc6cc --bring-forward --reason "the guest waits"`
    * `saga due --audit --json | jq -r '.entries[].who'`
    """
    from saga.deployment import Deployment

    _check(subject, bring_forward=bring_forward, reason=reason, audit=audit)
    deployment = Deployment.load(data_dir)
    if audit:
        _audit(deployment, participant, subject, limit, as_json=as_json)
    elif subject is not None and reason is not None:
        _bring_forward(deployment, participant, subject, reason, as_json=as_json)
    else:
        _list(deployment, participant, subject, as_json=as_json)


def _check(subject: str | None, *, bring_forward: bool, reason: str | None, audit: bool) -> None:
    if bring_forward and audit:
        raise typer.BadParameter("--bring-forward and --audit exclude each other; give one of them")
    if bring_forward and subject is None:
        raise typer.BadParameter("--bring-forward needs the subject that it is due about")
    if bring_forward and not reason:
        raise typer.BadParameter("--bring-forward needs a --reason, for the audit record")
    if reason is not None and not bring_forward:
        raise typer.BadParameter("--reason is for --bring-forward; add that, or leave it out")
    if reason is not None and len(reason) > _REASON_MAX:
        raise typer.BadParameter(
            f"the --reason has {len(reason)} characters; write at most {_REASON_MAX}"
        )


def _found(deployment: Deployment, participant: str | None, subject: str | None) -> Listing:
    from saga.discovery import choreography
    from saga.dues import listing

    return answer_to(listing(deployment, choreography(), participant=participant, subject=subject))


def _list(
    deployment: Deployment, participant: str | None, subject: str | None, *, as_json: bool
) -> None:
    from saga.runtime.kernel.tables import utc_now

    found, now = _found(deployment, participant, subject), utc_now()
    late = [item for item in found.items if item.late(now)]
    if as_json:
        print_json(
            {
                "ok": not late,
                "due": [item.to_json(now) for item in found.items],
                "not_listed": found.more,
            }
        )
    else:
        _print(found, now)
    if late:
        raise typer.Exit(PROBLEM_FOUND)


def _print(found: Listing, now: datetime) -> None:
    from saga.commands.console import Table, out
    from saga.history.sequence import duration

    if not found.items:
        out().print("nothing is due")
        return
    table = Table("at", "service", "about", "what", "when")
    for item in found.items[:_SHOWN]:
        late = item.late(now)
        away = duration(abs(now - item.at))
        when = f"late by {away}" if late else f"in {away}" if item.at > now else "now"
        table.add_row(
            f"{item.at:%Y-%m-%d %H:%M:%S}",
            item.participant,
            f"{item.kind} {item.subject}",
            item.due.command.type if item.due else f"cannot be read: {item.why}",
            when,
        )
    out().print(table)
    if more := found.more + max(0, len(found.items) - _SHOWN):
        remark(f"{more} more are not listed; --participant or a subject narrows it down")


def _bring_forward(
    deployment: Deployment, participant: str | None, subject: str, reason: str, *, as_json: bool
) -> None:
    from saga.dlq.audit import who
    from saga.dues import DueError
    from saga.dues import bring_forward as have_done

    items = _found(deployment, participant, subject).items
    if not items:
        raise DueError(f"nothing is due about {subject}; `saga due` lists what is")
    if len(items) > 1:
        raise typer.BadParameter(
            f"{_several(items)} is due about {subject}; name one service with --participant"
        )
    (item,) = items
    with stoppable():
        events = run(have_done(deployment, item, who=who(), reason=reason))
    if as_json:
        document = item.to_json(item.at)
        kept = ("participant", "state", "subject", "command", "at")
        print_json({"ok": True, **{name: document[name] for name in kept}, "events": [*events]})
        return
    from saga.commands.console import out

    what = item.due.command.type if item.due else ""
    out().print(f"{what} about {item.subject} is done: {', '.join(events) or 'no event yet'}")


def _several(items: Sequence[Item]) -> str:
    return " and ".join(f"{item.due.command.type if item.due else item.kind}" for item in items)


def _audit(
    deployment: Deployment,
    participant: str | None,
    subject: str | None,
    limit: int,
    *,
    as_json: bool,
) -> None:
    from saga.discovery import choreography
    from saga.dues import audit as read

    entries = answer_to(
        read(deployment, choreography(), participant=participant, subject=subject, limit=limit)
    )
    if as_json:
        print_json({"entries": [entry.to_json() for entry in entries]})
        return
    from saga.commands.console import Table, out

    if not entries:
        out().print("nothing was brought forward")
        return
    table = Table("at", "who", "service", "about", "what", "was due at", "why", "outcome")
    for entry in entries:
        table.add_row(
            f"{entry.at:%Y-%m-%d %H:%M:%S}",
            entry.who,
            entry.participant,
            f"{entry.kind} {entry.subject}",
            entry.command,
            f"{entry.due_at:%Y-%m-%d %H:%M:%S}",
            entry.reason,
            entry.outcome,
        )
    out().print(table)
