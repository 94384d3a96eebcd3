"""`saga dlq`: dead letters looked at, replayed, edited, discarded."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import typer

from saga.commands.discretion import Discretion
from saga.commands.dlq_selection import Filters, answering, selecting
from saga.commands.dlq_views import (
    GroupBy,
    as_lines,
    discreet,
    discreet_document,
    discreet_verdict,
    print_audit,
    print_groups,
    print_letter,
    print_letters,
    print_result,
    print_verdicts,
)
from saga.commands.editing import contents_of, in_editor, write_text
from saga.commands.hiding import hide
from saga.commands.output import (
    DATA_DIR,
    PROBLEM_FOUND,
    AsJson,
    DataDir,
    print_json,
    reason_option,
    remark,
    run,
    stoppable,
)
from saga.dlq.states import LetterScope
from saga.errors import InputError
from saga.wording import counted

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from saga.dlq.desk import DeadLetterDesk
    from saga.dlq.examine import Verdict
    from saga.dlq.groups import LetterGroup
    from saga.dlq.letters import DeadLetter
    from saga.dlq.replay import ReplayResult, ReplaySettings
    from saga.dlq.replays import Replay

app = typer.Typer(
    help="Dead letters: moved from the queues into a store, and dealt with there.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

_ACTIONS_MAX: Final = 100_000

T = TypeVar("T")


Id = Annotated[str, typer.Argument(metavar="ID", help="The letter's number or message id.")]
Why = Annotated[str, reason_option("Why; for the audit record.")]


@app.command("list")
@selecting(by_id=False)
def list_(
    filters: Filters,
    by: Annotated[GroupBy, typer.Option(help="What to group by.")] = GroupBy.FINGERPRINT,
    state: Annotated[LetterScope, typer.Option(help="Letters in this state.")] = LetterScope.DEAD,
    data_dir: DataDir = DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """List dead letters, grouped by what went wrong. Copies of one message count once.

    Exit status 1 if there are any.

    Examples:

    * `saga dlq list`
    * `saga dlq list --by letter --queue room.normal --older-than 1h`
    * `saga dlq list --by type --json | jq .groups`
    """

    async def work(desk: DeadLetterDesk) -> tuple[list[DeadLetter], list[LetterGroup]]:
        selection = await filters.selection(desk)
        discretion = Discretion(desk.deployment, desk.graph)
        if by is GroupBy.LETTER:
            found = desk.store.find(selection, state.states, contents=not discretion.shows_all)
            return [discreet(letter, discretion) for letter in found], []
        groups = desk.store.groups(selection, state.states, by.value)
        if discretion.shows_all:
            return [], groups
        examples = (desk.store.get(group.example) for group in groups)
        errors = (discreet(example, discretion).error for example in examples)
        return [], [replace(one, error=error) for one, error in zip(groups, errors, strict=True)]

    letters, groups = _at_desk(data_dir, work)
    count = len(letters) + sum(group.letters for group in groups)
    if as_json:
        document: dict[str, Any] = {"letters": count, "by": str(by)}
        if by is GroupBy.LETTER:
            from saga.dlq.letters import brief

            document["list"] = [brief(letter) for letter in letters]
        else:
            document["groups"] = [group.to_json() for group in groups]
        print_json(document)
    elif not count:
        from saga.commands.console import out

        out().print("no dead letters" if state is LetterScope.DEAD else f"no letters are {state}")
    elif by is GroupBy.LETTER:
        print_letters(letters)
    else:
        print_groups(groups, by, count)
    if count and state is LetterScope.DEAD:
        raise typer.Exit(PROBLEM_FOUND)


@app.command()
def show(id: Id, data_dir: DataDir = DATA_DIR, as_json: AsJson = False) -> None:
    """Show one letter: headers, payload, error, trace, and what a replay would do.

    Examples:

    * `saga dlq show 17`
    * `saga dlq show 17 --json | jq .replay`
    """

    async def work(desk: DeadLetterDesk) -> tuple[dict[str, Any], frozenset[str]]:
        number = desk.store.number_named(id)
        discretion = Discretion(desk.deployment, desk.graph)
        named = discretion.named_in([desk.store.get(number).body])
        document = discreet_document(await desk.document_about(number), discretion)
        return document, named

    document, named = _at_desk(data_dir, work)
    hide(named)
    if as_json:
        print_json(document)
    else:
        print_letter(document)


@app.command()
@selecting(by_id=True)
def replay(
    filters: Filters,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would become of each letter.")
    ] = False,
    rate: Annotated[
        float | None,
        typer.Option(help="Messages per second at most.", show_default="as fast as it goes"),
    ] = None,
    max_failing: Annotated[
        float,
        typer.Option(help="Stop when a larger share of the last 100 has failed again."),
    ] = 0.2,
    max_replays: Annotated[
        int, typer.Option(help="Leave letters alone that were replayed so often.")
    ] = 3,
    timeout: Annotated[
        float, typer.Option(help="Seconds within which a message must be done or dead again.")
    ] = 60.0,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Send also what was replayed too often or cannot be decoded here."
        ),
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the replay that never ended.")
    ] = False,
    why: Why = "",
    data_dir: DataDir = DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Send letters again, each to the queue it came from; without a selection, all of them.

    The selection is frozen at the start. First 1 is sent, then 5, 25, 125, then the others, going
    on only while they succeed: a message succeeds when its service has committed it. Killed and run
    again, the same command goes on where it was.

    Exit status 0 only if every letter selected is done.

    Examples:

    * `saga dlq replay --dry-run`
    * `saga dlq replay --queue room.normal --rate 50`
    * `saga dlq replay 17 18 --force`
    """
    with answering():
        from saga.dlq.replay import ReplaySettings

        settings = ReplaySettings(
            rate=rate,
            max_failing=max_failing,
            max_replays=max_replays,
            timeout_seconds=timeout,
            force=force,
        )
        if resume and filters.given:
            raise InputError("--resume takes no selection: the replay to go on with has its own")
        if resume and dry_run:
            raise InputError("--resume sends what is left; --dry-run sends nothing: take one")
    if dry_run:
        _dry_run(filters, settings, data_dir, as_json)
        return

    async def work(desk: DeadLetterDesk) -> ReplayResult:
        from saga.commands.console import progress_bars
        from saga.dlq.replay import replay as send_again

        selection = None if resume else await filters.selection(desk)
        with contextlib.ExitStack() as stack:
            advance: Callable[[int], None] = lambda _: None  # noqa: E731  # replaced below

            def begun(run: Replay, open_letters: int) -> None:
                nonlocal advance
                advance = stack.enter_context(progress_bars(replayed=open_letters))["replayed"]

            return await send_again(
                desk,
                selection,
                settings,
                why=why,
                begun=begun,
                progress=lambda count: advance(count),
            )

    result = _at_desk(data_dir, work)
    if as_json:
        print_json(result.to_json())
    else:
        print_result(result)
    if not result.ok:
        raise typer.Exit(PROBLEM_FOUND)


@app.command()
def edit(
    id: Id,
    values: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PATH=VALUE", help="Set this, such as data.nights=3."),
    ] = None,
    file: Annotated[
        Path | None, typer.Option(help="Take the corrected payload from this file.")
    ] = None,
    why: Why = "",
    data_dir: DataDir = DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Correct a letter's payload in `$EDITOR`, and send the copy to the queue it came from.

    The copy is checked against its event's schema. It has a new id, with the original as its
    causation, and is recorded in the history.

    Examples:

    * `saga dlq edit 17`
    * `saga dlq edit 17 --set data.lines.0.quantity=2 --reason "typed by hand"`
    """
    from saga.dlq.edit import edit as correct
    from saga.dlq.edit import with_values

    with answering():
        if values and file is not None:
            raise InputError("--set and --file both say what the payload is to be: take one")
        given = None if file is None else contents_of(file)

    def change(text: str) -> str | None:
        if given is not None:
            return given
        if values:
            return with_values(text, values)
        return in_editor(text)

    async def work(desk: DeadLetterDesk) -> tuple[Any, frozenset[str]]:
        number, bodies = desk.store.number_named(id), list[bytes]()

        def noted(text: str) -> str | None:
            after = change(text)
            bodies.extend(each.encode() for each in (text, after) if each is not None)
            return after

        edited = await correct(desk, number, noted, why=why)
        return edited, Discretion(desk.deployment, desk.graph).named_in(bodies)

    edited, named = _at_desk(data_dir, work)
    hide(named)
    if edited is None:
        if as_json:
            print_json({"changed": False})
        else:
            remark("nothing was changed, so nothing was sent")
        return
    if as_json:
        print_json({"changed": True, **edited.to_json()})
    else:
        from saga.commands.console import lines_of, out

        out().print(lines_of(edited.diff))
        remark(f"sent to {edited.queue} as {edited.copy_id}, in place of letter {edited.letter}")


@app.command()
@selecting(by_id=True)
def discard(
    filters: Filters,
    why: Annotated[str, reason_option("Why; it stays with the letter.")],
    data_dir: DataDir = DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Set letters aside that need not be replayed. `restore` brings them back.

    Examples:

    * `saga dlq discard 17 --reason "a test message"`
    * `saga dlq discard --fingerprint 3f2a9c1b77de --reason "replaced by hand"`
    """
    _turn(filters, why, data_dir, as_json, discarding=True)


@app.command()
@selecting(by_id=True)
def restore(
    filters: Filters,
    why: Why = "",
    data_dir: DataDir = DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Make discarded letters dead letters again.

    Example: `saga dlq restore 17 --reason "it was needed after all"`
    """
    _turn(filters, why, data_dir, as_json, discarding=False)


@app.command()
def purge(
    older_than: Annotated[
        str, typer.Option(help="Of those last dead so long ago or longer, such as 180d.")
    ],
    why: Why,
    data_dir: DataDir = DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Delete old letters that are settled: sent, done, discarded or replaced.

    Nothing else ever deletes a letter, and nothing brings these back. No age below the services'
    INBOX_DAYS is taken: up to then, `saga reconcile` may have to know what became of a message.

    Example: `saga dlq purge --older-than 180d --reason "kept for half a year"`
    """
    from saga.dlq.selection import DAY_SECONDS, age_seconds

    with answering():
        seconds = age_seconds("--older-than", older_than) or 0.0
        if not why.strip():
            raise InputError("--reason is empty; say why the letters can be deleted")

    async def work(desk: DeadLetterDesk) -> list[int]:
        days = desk.deployment.inbox_days
        if seconds < days * DAY_SECONDS:
            raise InputError(
                f"--older-than is {older_than!r}; it takes {days:g}d or more, the services' "
                f"INBOX_DAYS"
            )
        return desk.store.purge(seconds, why)

    numbers = _at_desk(data_dir, work)
    if as_json:
        print_json({"purged": numbers})
    else:
        remark(f"{counted(len(numbers), 'letter')} purged")


@app.command()
@selecting(by_id=False)
def export(
    filters: Filters,
    file: Annotated[
        Path | None, typer.Argument(help="Where to write; standard output if left out.")
    ] = None,
    state: Annotated[LetterScope, typer.Option(help="Letters in this state.")] = LetterScope.DEAD,
    data_dir: DataDir = DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Write letters as JSON Lines, one letter a line, with everything that is known of it.

    Example: `saga dlq export letters.jsonl --type room.held`
    """

    async def work(desk: DeadLetterDesk) -> list[DeadLetter]:
        selection = await filters.selection(desk)
        letters = desk.store.find(selection, state.states)
        if file is not None:
            write_text(file, as_lines(letters))
        result = {"letters": len(letters), "file": None if file is None else str(file)}
        desk.store.note("export", "", selection.to_json(), result)
        return letters

    letters = _at_desk(data_dir, work)
    if file is None:
        from saga.commands.console import write

        write(as_lines(letters))
        return
    if as_json:
        print_json({"file": str(file), "letters": len(letters)})
    else:
        remark(f"{file}: {counted(len(letters), 'letter')}")


@app.command()
def audit(
    limit: Annotated[int, typer.Option(help="The newest so many entries.")] = 50,
    data_dir: DataDir = DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """List what was done with dead letters: who, when, why, which, and with what result.

    Example: `saga dlq audit --limit 10`
    """
    with answering():
        if not 1 <= limit <= _ACTIONS_MAX:
            raise InputError(f"the limit is {limit}; it takes a number from 1 to {_ACTIONS_MAX}")

    async def work(desk: DeadLetterDesk) -> list[Any]:
        return desk.store.actions(limit)

    actions = _at_desk(data_dir, work)
    if as_json:
        print_json(
            {
                "actions": [
                    {
                        "number": action.number,
                        "at": action.at.isoformat(),
                        "who": action.who,
                        "action": action.action,
                        "reason": action.reason,
                        "selection": action.selection,
                        "result": action.result,
                    }
                    for action in actions
                ]
            }
        )
        return
    print_audit(actions)


# --- what they share ------------------------------------------------------------------------------


def _at_desk(data_dir: Path, work: Callable[[DeadLetterDesk], Awaitable[T]]) -> T:
    """Run `work` with every dead letter there is by now in the store."""
    from saga.deployment import Deployment
    from saga.discovery import choreography
    from saga.dlq.desk import open_desk

    deployment = Deployment.load(data_dir)

    async def at_desk() -> T:
        async with open_desk(deployment, choreography()) as desk:
            return await work(desk)

    with stoppable(), answering():
        return run(at_desk())


def _dry_run(filters: Filters, settings: ReplaySettings, data_dir: Path, as_json: bool) -> None:
    from saga.dlq.examine import counts_of
    from saga.dlq.letters import brief
    from saga.dlq.replay import dry_run

    async def work(desk: DeadLetterDesk) -> list[tuple[DeadLetter, Verdict]]:
        selection = await filters.selection(desk)
        verdicts = await dry_run(desk, selection, settings)
        discretion = Discretion(desk.deployment, desk.graph)
        counts = counts_of(verdict for _, verdict in verdicts)
        desk.store.note("dry run", "", selection.to_json(), counts)
        return [
            (discreet(letter, discretion), discreet_verdict(letter, verdict, discretion))
            for letter, verdict in verdicts
        ]

    verdicts = _at_desk(data_dir, work)
    if as_json:
        print_json(
            {
                "letters": [
                    brief(letter) | {"replay": verdict.to_json()} for letter, verdict in verdicts
                ],
                "counts": counts_of(verdict for _, verdict in verdicts),
            }
        )
        return
    print_verdicts(verdicts)


def _turn(filters: Filters, why: str, data_dir: Path, as_json: bool, *, discarding: bool) -> None:
    done = "discarded" if discarding else "restored"
    with answering():
        if discarding and not why.strip():
            raise InputError("--reason is empty; say why the letters can be discarded")
        if not filters.given:
            raise InputError("name the letters, by number or by a filter")

    async def work(desk: DeadLetterDesk) -> list[int]:
        selection = await filters.selection(desk)
        turn = desk.store.discard if discarding else desk.store.restore
        numbers = turn(selection, why)
        if selection.numbers and (other := set(selection.numbers) - set(numbers)):
            state = desk.store.get(min(other)).state
            remark(f"letter {min(other)} is {state}, and was left alone")
        return numbers

    numbers = _at_desk(data_dir, work)
    if as_json:
        print_json({done: numbers})
    else:
        remark(f"{counted(len(numbers), 'letter')} {done}")
