"""`saga dlq`: dead letters looked at, replayed, edited, discarded."""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import math
import os
import re
from collections import defaultdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import typer

from saga.commands.output import (
    DATA_DIR,
    PROBLEM_FOUND,
    AsJson,
    DataDir,
    plain_text,
    print_json,
    problem,
    remark,
    run,
    stoppable,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from saga.dlq.desk import DeadLetterDesk
    from saga.dlq.examine import Verdict
    from saga.dlq.letters import DeadLetter
    from saga.dlq.replay import ReplayResult, ReplaySettings
    from saga.dlq.replays import Replay
    from saga.dlq.selection import Selection

app = typer.Typer(
    help="Dead letters: moved from the queues into a store, and dealt with there.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

_USAGE_ERROR: Final = 2
_DURATION: Final = re.compile(r"(-?\d+(?:\.\d+)?)([smhd]?)")
_UNIT_SECONDS: Final = {"": 1, "s": 1, "m": 60, "h": 3_600, "d": 86_400}
_AGE_MAX_SECONDS: Final = 100 * 365 * 86_400.0
_ACTIONS_MAX: Final = 100_000
_LISTED: Final = 200
"""Letters or verdicts shown one by one to a person; JSON has all of them."""
_ERROR_CHARACTERS: Final = 80

T = TypeVar("T")


class By(StrEnum):
    """What `list` groups by; `letter` lists each by itself."""

    FINGERPRINT = "fingerprint"
    TYPE = "type"
    SERVICE = "service"
    LETTER = "letter"


class Which(StrEnum):
    """Which letters `list` and `export` show; `all` are those that are done too."""

    DEAD = "dead"
    SENT = "sent"
    DONE = "done"
    DISCARDED = "discarded"
    REPLACED = "replaced"
    ALL = "all"


def _filter(help: str, *names: str) -> Any:
    return typer.Option(*names, help=help, rich_help_panel="Which letters", show_default=False)


Id = Annotated[str, typer.Argument(metavar="ID", help="The letter's number or message id.")]
Why = Annotated[
    str, typer.Option("--reason", help="Why; for the audit record.", callback=plain_text)
]


class _Filters:
    """The selection as it was asked for, with what needs no system to check it checked."""

    def __init__(
        self,
        ids: Annotated[
            list[str] | None,
            typer.Argument(metavar="[ID]...", help="Letters, by their number or message id."),
        ] = None,
        queue: Annotated[str | None, _filter("From this queue, such as payment.normal.")] = None,
        service: Annotated[str | None, _filter("Of this service.")] = None,
        type: Annotated[str | None, _filter("Of this event or command type.")] = None,
        error: Annotated[str | None, _filter("Whose error says this, in any case.")] = None,
        fingerprint: Annotated[str | None, _filter("With this error fingerprint.")] = None,
        subject: Annotated[
            str | None,
            _filter("About this subject, an order's id for instance.", "--subject", "--order"),
        ] = None,
        older_than: Annotated[
            str | None, _filter("Dead for longer: seconds, or 15m, 2h, 7d.")
        ] = None,
        newer_than: Annotated[
            str | None, _filter("Dead for less: seconds, or 15m, 2h, 7d.")
        ] = None,
    ) -> None:
        with _answering():
            from saga.dlq.selection import Selection

            self._ids = list(ids or ())
            self._filters = Selection(
                queue=queue,
                service=service,
                type=type,
                error=error,
                fingerprint=fingerprint,
                subject=subject,
                older_than=_seconds("older-than", older_than),
                newer_than=_seconds("newer-than", newer_than),
            )

    @property
    def given(self) -> bool:
        return bool(self._ids) or not self._filters.everything

    async def selection(self, desk: DeadLetterDesk) -> Selection:
        """The selection; raises `InputError` if it names what does not exist."""
        from dataclasses import replace

        numbers = sorted({number for id in self._ids for number in _numbers(desk, id)})
        selection = replace(self._filters, numbers=tuple(numbers))
        await desk.check(selection)
        return selection


def _selecting(*, by_id: bool) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command the options of `_Filters`, and what they were to it as its first argument."""
    options = dict(inspect.signature(_Filters, eval_str=True).parameters)
    if not by_id:
        del options["ids"]

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        _, *others = inspect.signature(function, eval_str=True).parameters.values()

        @functools.wraps(function)
        def command(**given: Any) -> None:
            filters = _Filters(**{name: given.pop(name) for name in options})
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


@app.command("list")
@_selecting(by_id=False)
def list_(
    filters: _Filters,
    by: Annotated[By, typer.Option(help="What to group by.")] = By.FINGERPRINT,
    state: Annotated[Which, typer.Option(help="Letters in this state.")] = Which.DEAD,
    data_dir: DataDir = DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """List dead letters, grouped by what went wrong. Copies of one message count once.

    Exit status 1 if there are any.

    Examples:

    * `saga dlq list`
    * `saga dlq list --by letter --queue payment.normal --older-than 1h`
    * `saga dlq list --by type --json | jq .groups`
    """

    async def work(desk: DeadLetterDesk) -> list[DeadLetter]:
        selection = await filters.selection(desk)
        return desk.store.find(selection, _states(state), contents=False)

    letters = _at_desk(data_dir, work)
    groups = _groups(letters, by)
    if as_json:
        document: dict[str, Any] = {"letters": len(letters), "by": str(by)}
        if by is By.LETTER:
            document["list"] = [_brief(letter) for letter in letters]
        else:
            document["groups"] = groups
        print_json(document)
    elif not letters:
        from saga.commands.console import out

        out().print("no dead letters" if state is Which.DEAD else f"no letters are {state}")
    elif by is By.LETTER:
        _print_letters(letters)
    else:
        _print_groups(groups, by, len(letters))
    if letters and state is Which.DEAD:
        raise typer.Exit(PROBLEM_FOUND)


@app.command()
def show(id: Id, data_dir: DataDir = DATA_DIR, as_json: AsJson = False) -> None:
    """Show one letter: headers, payload, error, trace, and what a replay would do.

    Examples:

    * `saga dlq show 17`
    * `saga dlq show 17 --json | jq .replay`
    """

    async def work(desk: DeadLetterDesk) -> dict[str, Any]:
        letter = desk.store.get(_one(desk, id))
        verdict = (await desk.examiner().examine([letter]))[letter.number]
        return _full(letter) | {
            "died": [
                {"at": died, "error": headers.get("x-saga-error", "")}
                for died, headers in desk.store.copies_of(letter.number)
            ],
            "edits": desk.store.edits_of(letter.number),
            "replay": verdict.to_json(),
        }

    document = _at_desk(data_dir, work)
    if as_json:
        print_json(document)
    else:
        _print_letter(document)


@app.command()
@_selecting(by_id=True)
def replay(
    filters: _Filters,
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
    * `saga dlq replay --queue payment.normal --rate 50`
    * `saga dlq replay 17 18 --force`
    """
    with _answering():
        from saga.dlq.replay import ReplaySettings
        from saga.errors import InputError

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
        _print_result(result)
    if not result.ok:
        raise typer.Exit(PROBLEM_FOUND)


@app.command()
def edit(
    id: Id,
    values: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PATH=VALUE", help="Set this, such as data.total_cents=995."),
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
    from saga.errors import InputError

    with _answering():
        if values and file is not None:
            raise InputError("--set and --file both say what the payload is to be: take one")
        given = None if file is None else _contents(file)

    def change(text: str) -> str | None:
        if given is not None:
            return given
        if values:
            return with_values(text, values)
        return _in_editor(text)

    async def work(desk: DeadLetterDesk) -> Any:
        return await correct(desk, _one(desk, id), change, why=why)

    edited = _at_desk(data_dir, work)
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
@_selecting(by_id=True)
def discard(
    filters: _Filters,
    why: Annotated[
        str, typer.Option("--reason", help="Why; it stays with the letter.", callback=plain_text)
    ],
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
@_selecting(by_id=True)
def restore(
    filters: _Filters,
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
    """Delete old letters that nothing is owed of: sent, done, discarded or replaced.

    Nothing else ever deletes a letter, and nothing brings these back. No age below the services'
    INBOX_DAYS is taken: up to then, `saga reconcile` may have to know what became of a message.

    Example: `saga dlq purge --older-than 180d --reason "kept for half a year"`
    """
    from saga.errors import InputError

    with _answering():
        seconds = _seconds("older-than", older_than) or 0.0
        if not why.strip():
            raise InputError("--reason is empty; say why the letters can be deleted")

    async def work(desk: DeadLetterDesk) -> list[int]:
        days = desk.deployment.inbox_days
        if seconds < days * _UNIT_SECONDS["d"]:
            raise InputError(
                f"--older-than is {older_than!r}; it takes {days:g}d or more, the services' "
                f"INBOX_DAYS"
            )
        return desk.store.purge(seconds, why)

    numbers = _at_desk(data_dir, work)
    if as_json:
        print_json({"purged": numbers})
    else:
        remark(f"{len(numbers)} letters purged")


@app.command()
@_selecting(by_id=False)
def export(
    filters: _Filters,
    file: Annotated[
        Path | None, typer.Argument(help="Where to write; standard output if left out.")
    ] = None,
    state: Annotated[Which, typer.Option(help="Letters in this state.")] = Which.DEAD,
    data_dir: DataDir = DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Write letters as JSON Lines, one letter a line, with everything that is known of it.

    Example: `saga dlq export letters.jsonl --type stock.reserved`
    """

    async def work(desk: DeadLetterDesk) -> list[DeadLetter]:
        selection = await filters.selection(desk)
        letters = desk.store.find(selection, _states(state))
        if file is not None:
            _write(file, _as_lines(letters))
        result = {"letters": len(letters), "file": None if file is None else str(file)}
        desk.store.note("export", "", selection.to_json(), result)
        return letters

    letters = _at_desk(data_dir, work)
    if file is None:
        from saga.commands.console import write

        write(_as_lines(letters))
        return
    if as_json:
        print_json({"file": str(file), "letters": len(letters)})
    else:
        remark(f"{file}: {len(letters)} letters")


@app.command()
def audit(
    limit: Annotated[int, typer.Option(help="The newest so many entries.")] = 50,
    data_dir: DataDir = DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """List what was done with dead letters: who, when, why, which, and what came of it.

    Example: `saga dlq audit --limit 10`
    """
    with _answering():
        from saga.errors import InputError

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
    from saga.commands.console import Table, out

    table = Table("at", "who", "action", "why", "which", "result")
    for action in actions:
        result = {k: v for k, v in action.result.items() if v not in (None, 0, "", [])}
        table.add_row(
            f"{action.at:%Y-%m-%d %H:%M:%S}",
            action.who,
            action.action,
            action.reason,
            json.dumps(action.selection) if action.selection else "all",
            _short(json.dumps(result), 200),
        )
    out().print(table)


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

    with stoppable(), _answering():
        return run(at_desk())


@contextlib.contextmanager
def _answering() -> Iterator[None]:
    """Bad input ends in one line that names it, and exit status 2."""
    from saga.errors import InputError

    try:
        yield
    except InputError as error:
        problem(" ".join(str(error).split()))
        raise typer.Exit(_USAGE_ERROR) from None


def _seconds(name: str, text: str | None) -> float | None:
    from saga.errors import InputError

    if text is None:
        return None
    match = _DURATION.fullmatch(text)
    seconds = math.nan if match is None else float(match[1]) * _UNIT_SECONDS[match[2]]
    if not 0 <= seconds <= _AGE_MAX_SECONDS:
        raise InputError(
            f"--{name} is {text!r}; it takes an age of 0 or more: seconds, or 15m, 2h, 7d"
        )
    return seconds


def _numbers(desk: DeadLetterDesk, id: str) -> list[int]:
    from saga.errors import InputError

    if id.isdecimal() and len(id) < 16 and desk.store.numbers_known([int(id)]):
        return [int(id)]
    found = desk.store.number_of(id)
    if not found:
        raise InputError(
            f"there is no dead letter {id!r}; `saga dlq list --by letter` names those known"
        )
    return found


def _one(desk: DeadLetterDesk, id: str) -> int:
    from saga.errors import InputError

    numbers = _numbers(desk, id)
    if len(numbers) > 1:
        raise InputError(
            f"{id!r} is dead at several services; name one of the letters "
            f"{', '.join(map(str, numbers))}"
        )
    return numbers[0]


def _states(which: Which) -> tuple[Any, ...]:
    from saga.dlq.states import HERE, LetterState

    if which is Which.ALL:
        return tuple(LetterState)
    return HERE if which is Which.DEAD else (LetterState(which),)


def _dry_run(filters: _Filters, settings: ReplaySettings, data_dir: Path, as_json: bool) -> None:
    from saga.dlq.replay import dry_run

    async def work(desk: DeadLetterDesk) -> list[tuple[DeadLetter, Verdict]]:
        selection = await filters.selection(desk)
        verdicts = await dry_run(desk, selection, settings)
        counts = _counts(verdicts)
        desk.store.note("dry run", "", selection.to_json(), counts)
        return verdicts

    verdicts = _at_desk(data_dir, work)
    if as_json:
        print_json(
            {
                "letters": [
                    _brief(letter) | {"replay": verdict.to_json()} for letter, verdict in verdicts
                ],
                "counts": _counts(verdicts),
            }
        )
        return
    from saga.commands.console import Table, out

    table = Table("letter", "service", "type", "subject", "saga", "a replay", "because")
    for letter, verdict in verdicts[:_LISTED]:
        upcast = f"upcast from version {verdict.upcast_from}" if verdict.upcast_from else ""
        table.add_row(
            f"{letter.number}",
            letter.participant,
            letter.type,
            letter.subject or "",
            verdict.saga,
            str(verdict.expectation),
            "; ".join(filter(None, (upcast, verdict.detail))),
        )
    out().print(table)
    if len(verdicts) > _LISTED:
        out().print(f"and {len(verdicts) - _LISTED} more; --json has all of them")
    for expectation, count in _counts(verdicts).items():
        out().print(f"{expectation:>20} {count:>8}")


def _counts(verdicts: Sequence[tuple[DeadLetter, Verdict]]) -> dict[str, int]:
    counts: defaultdict[str, int] = defaultdict(int)
    for _, verdict in verdicts:
        counts[str(verdict.expectation)] += 1
    return dict(counts)


def _turn(filters: _Filters, why: str, data_dir: Path, as_json: bool, *, discarding: bool) -> None:
    from saga.errors import InputError

    done = "discarded" if discarding else "restored"
    with _answering():
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
        remark(f"{len(numbers)} letters {done}")


def _contents(file: Path) -> str:
    from saga.errors import InputError

    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}; name another file") from error
    except UnicodeDecodeError:
        raise InputError(f"cannot read {file}: it is not UTF-8; write it in UTF-8") from None


def _write(file: Path, text: str) -> None:
    from saga.errors import InputError
    from saga.runtime.files import write_whole

    try:
        write_whole(file, text)
    except OSError as error:
        raise InputError(f"cannot write {file}: {error.strerror}; name another file") from error


def _in_editor(text: str) -> str | None:
    """The text as it is left in `$EDITOR`; None if the editor failed."""
    import shlex
    import subprocess
    import tempfile

    from saga.errors import InputError

    try:
        command = shlex.split(os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi") or [
            "vi"
        ]
    except ValueError as error:
        raise InputError(f"EDITOR is no command: {error}; quote it as a shell takes it") from error
    with tempfile.TemporaryDirectory(prefix="saga-") as folder:
        path = Path(folder, "payload.json")
        path.write_text(text, encoding="utf-8")
        try:
            done = subprocess.run([*command, str(path)], check=False)
        except OSError as error:
            raise InputError(
                f"cannot start the editor {command[0]!r}: {error.strerror}; name another in "
                f"EDITOR, or use --set or --file"
            ) from error
        return _contents(path) if done.returncode == 0 else None


# --- how it looks ---------------------------------------------------------------------------------


def _brief(letter: DeadLetter) -> dict[str, Any]:
    return {
        "letter": letter.number,
        "state": str(letter.state),
        "service": letter.participant,
        "queue": letter.queue,
        "message_id": letter.key,
        "type": letter.type,
        "subject": letter.subject,
        "reason": letter.reason,
        "error_type": letter.error_type,
        "error": letter.error,
        "fingerprint": letter.fingerprint,
        "attempts": letter.attempts,
        "replays": letter.replays,
        "copies": letter.copies,
        "first_failed_at": letter.first_failed_at.isoformat(),
        "last_failed_at": letter.last_failed_at.isoformat(),
        "note": letter.note,
    }


def _full(letter: DeadLetter) -> dict[str, Any]:
    from saga.dlq.letters import document_of, printable_body, to_json

    document = document_of(letter.body) or {}
    traceparent = document.get("traceparent")
    trace = traceparent.split("-") if isinstance(traceparent, str) else []
    return _brief(letter) | {
        "correlation_id": letter.properties.get("correlation_id"),
        "causation_id": document.get("causationid"),
        "trace_id": trace[1] if len(trace) == 4 else None,
        "properties": json.loads(to_json(letter.properties)),
        "headers": json.loads(to_json(letter.headers)),
        **printable_body(letter.body),
    }


def _as_lines(letters: Sequence[DeadLetter]) -> str:
    """JSON Lines: a letter a line, with everything that is known of it."""
    return "".join(json.dumps(_full(letter)) + "\n" for letter in letters)


def _groups(letters: Sequence[DeadLetter], by: By) -> list[dict[str, Any]]:
    grouped: defaultdict[str, list[DeadLetter]] = defaultdict(list)
    for letter in letters:
        match by:
            case By.TYPE:
                key = letter.type
            case By.SERVICE:
                key = letter.participant
            case _:
                key = letter.fingerprint
        grouped[key].append(letter)
    found = [
        {
            str(by): key,
            "letters": len(group),
            "subjects": len({letter.subject for letter in group if letter.subject}),
            "services": sorted({letter.participant for letter in group}),
            "types": sorted({letter.type for letter in group}),
            "reason": group[-1].reason,
            "error_type": group[-1].error_type,
            "error": group[-1].error,
            "replayed_before": sum(letter.replays > 0 for letter in group),
            "first_failed_at": min(letter.first_failed_at for letter in group).isoformat(),
            "last_failed_at": max(letter.last_failed_at for letter in group).isoformat(),
            "example": group[0].number,
        }
        for key, group in grouped.items()
    ]
    return sorted(found, key=lambda group: -group["letters"])


def _print_groups(groups: Sequence[dict[str, Any]], by: By, letters: int) -> None:
    from saga.commands.console import Table, out

    headers = (str(by), "letters", "services", "types", "error", "last", "example")
    table = Table(*headers, right=["letters"])
    for group in groups:
        error = f"{group['error_type'] or group['reason']}: {group['error']}"
        table.add_row(
            group[str(by)],
            f"{group['letters']}",
            ", ".join(group["services"]),
            ", ".join(group["types"]),
            _short(error),
            _moment(group["last_failed_at"]),
            f"{group['example']}",
        )
    out().print(table)
    out().print(f"{letters} dead letters; `saga dlq show ID` tells all about one")


def _print_letters(letters: Sequence[DeadLetter]) -> None:
    from saga.commands.console import Table, out

    table = Table("letter", "queue", "type", "subject", "replays", "error", "first", "last")
    for letter in letters[:_LISTED]:
        table.add_row(
            f"{letter.number}",
            letter.queue,
            letter.type,
            letter.subject or "",
            f"{letter.replays}",
            _short(f"{letter.error_type or letter.reason}: {letter.error}"),
            _moment(letter.first_failed_at.isoformat()),
            _moment(letter.last_failed_at.isoformat()),
        )
    out().print(table)
    if len(letters) > _LISTED:
        out().print(f"and {len(letters) - _LISTED} more; --json has all of them")


def _print_letter(document: dict[str, Any]) -> None:
    from saga.commands.console import Table, lines_of, out

    verdict = document["replay"]
    table = Table("", "", title=f"letter {document['letter']}", show_header=False)
    for name in (
        *("state", "service", "queue", "message_id", "type", "subject", "reason"),
        *("error_type", "error", "fingerprint", "attempts", "replays", "copies"),
        *("first_failed_at", "last_failed_at", "correlation_id", "causation_id", "trace_id"),
        "note",
    ):
        if document[name] not in (None, ""):
            table.add_row(name.replace("_", " "), str(document[name]))
    for name, value in document["headers"].items():
        table.add_row(f"header {name}", _short(str(value), 200))
    upcast = f"upcast from version {verdict['upcast_from']}" if verdict["upcast_from"] else ""
    table.add_row("decodes", "yes" if verdict["decodes"] else "no")
    open_ = "open" if verdict["known"] else "not known"
    ended_by = verdict["ended_by"]
    table.add_row("its saga is", f"ended by {ended_by}" if ended_by else open_)
    words = "; ".join(filter(None, (str(verdict["expectation"]), upcast, verdict["detail"])))
    table.add_row("a replay", words)
    console = out()
    console.print(table)
    for edit_ in document["edits"]:
        console.print(f"edited at {edit_['at']} as {edit_['id']}")
        console.print(lines_of(edit_["diff"]))
    if "payload" in document:
        shown = json.dumps(document["payload"], indent=2, ensure_ascii=False)
    else:
        text = document.get("payload_text")
        shown = f"Base64: {document['payload_base64']}" if text is None else text
    console.print(lines_of(shown))


def _print_result(result: ReplayResult) -> None:
    from saga.commands.console import out, styled

    console = out()
    document = result.to_json()
    for name in ("selected", "done", "failed", "unanswered", "skipped", "refused", "waiting"):
        if document[name] or name in ("selected", "done"):
            console.print(f"{name:>12} {document[name]:>8}")
    pace = f", {result.rate:.0f} a second" if result.rate is not None else ""
    console.print(f"replay {result.run}: {result.sent} sent in {result.seconds:.1f} s{pace}")
    why: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    for entry in document["not_done"]:
        if entry["detail"]:
            why[entry["state"], entry["detail"]].append(entry["letter"])
    for (state, detail), numbers in list(why.items())[:_LISTED]:
        named = ", ".join(map(str, numbers[:5])) + (" ..." if len(numbers) > 5 else "")
        console.print(f"{state}: {detail} (letter {named})")
    if result.stopped:
        console.print(styled(("stopped:", "red"), f" {result.stopped}"))


def _short(text: str, most: int = _ERROR_CHARACTERS) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _moment(iso: str) -> str:
    return iso[:19].replace("T", " ")
