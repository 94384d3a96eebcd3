"""`saga forget`: forget a person, and prove that they are forgotten."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from saga.commands.output import (
    DATA_DIR,
    LISTED_MAX,
    PROBLEM_FOUND,
    AsJson,
    DataDir,
    answer_to,
    explanation,
    print_json,
    reason_option,
    remark,
)
from saga.wording import counted

if TYPE_CHECKING:
    from saga.dlq.lookup import LetterWith
    from saga.personal.byte_search import SearchReport
    from saga.personal.forgetting import Forgetter, Outcome
    from saga.personal.lookup import PersonRecord
    from saga.personal.requests import Request

_GIVEN_MAX: Final = 2_000
"""Characters of a line on standard input."""
_MB: Final = 1_000_000


def forget(
    person: Annotated[
        str | None,
        typer.Argument(
            help="Their id, a sealed text, or what they are called in clear. Without it, that is "
            "asked for, or read from standard input: shells and lists of processes keep arguments.",
            show_default=False,
        ),
    ] = None,
    reason: Annotated[
        str | None,
        reason_option("Why, for the key store and the audit record; nothing that tells who it is."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do it; by default it is only shown.")] = False,
    wait: Annotated[
        float,
        typer.Option(
            min=0, max=86_400, help="Seconds at most for open sagas to end; then the request waits."
        ),
    ] = 60.0,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Only look for what they are called in clear, everywhere."),
    ] = False,
    also: Annotated[
        list[Path] | None,
        typer.Option(
            help="A file or folder to look through as well: exports, another machine's disk, "
            "backups, in whose copies of outsides' books the person is forgotten, too. May be "
            "given several times.",
            show_default=False,
        ),
    ] = None,
    status: Annotated[
        bool, typer.Option("--status", help="List the requests that wait, and for what.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with all requests that wait.")
    ] = False,
    data_dir: DataDir = DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Destroy the key of a person, so that what was sealed under it cannot be read any more.

    What is open for them is ended first, as the saga declares; where that takes longer than
    `--wait`, the request is kept. Outsides take out what they have in clear. At last every place
    where the system keeps bytes is looked through for the person's clear name.

    Exit status 1 if a request waits, if something is left for people to do, if the name was found,
    or if a place could not be looked at.

    Examples:

    * `saga forget --reason "asked for on 2030-01-31"`
    * `saga forget 7hGkq2m0R3WZ1xYtB5cD8A --reason "asked for on 2030-01-31" --yes`
    * `saga forget --verify --also /backups < name.txt`
    * `saga forget --status`
    """
    _check(person, reason, yes=yes, verify=verify, status=status, resume=resume)
    if status:
        _status(data_dir, as_json=as_json)
    elif verify:
        _verify(_given(person), data_dir, also or [], as_json=as_json)
    elif resume:
        _resume(data_dir, also or [], wait, as_json=as_json)
    else:
        _forget(_given(person), reason or "", data_dir, also or [], wait, yes=yes, as_json=as_json)


def _check(
    person: str | None, reason: str | None, *, yes: bool, verify: bool, status: bool, resume: bool
) -> None:
    ways = [name for name, given in _ways(verify, status, resume).items() if given]
    if len(ways) > 1:
        raise typer.BadParameter(f"{' and '.join(ways)} exclude each other; give one of them")
    if ways and (reason is not None or yes):
        raise typer.BadParameter(f"{ways[0]} takes no --reason and no --yes; leave them out")
    if person is not None and (status or resume):
        raise typer.BadParameter(f"{ways[0]} is about all requests; leave the person out")
    if not ways and not reason:
        raise typer.BadParameter(
            "say why with --reason, for the audit record; --verify, --status and --resume take none"
        )


def _ways(verify: bool, status: bool, resume: bool) -> dict[str, bool]:
    return {"--verify": verify, "--status": status, "--resume": resume}


def _given(person: str | None) -> str:
    """Who it is about: as given, or asked for without an echo, or a line of standard input."""
    if person is None:
        if sys.stdin.isatty():
            person = str(typer.prompt("the person's name, or id", hide_input=True, err=True))
        else:
            person = sys.stdin.readline(_GIVEN_MAX)
    person = person.strip()
    if not person:
        raise typer.BadParameter("say who: an id, or what they are called in clear")
    return person


# --- forgetting ---------------------------------------------------------------------------------


def _forget(
    given: str,
    reason: str,
    data_dir: Path,
    also: list[Path],
    wait: float,
    *,
    yes: bool,
    as_json: bool,
) -> None:
    from saga.commands.output import wrong_usage
    from saga.personal.forgetting import check_reason

    with wrong_usage():
        check_reason(reason)
    with _forgetter(data_dir) as forgetter:
        record = answer_to(forgetter.record_of(given))
        if not yes:
            if as_json:
                print_json({"ok": True, "done": False, **_record_json(record)})
            else:
                _show(record)
                remark("nothing was done; --yes does it")
            return
        outcome = answer_to(
            forgetter.forget(record, reason, wait_seconds=wait, backups=also, report=remark)
        )
    looks = _looks(outcome, data_dir, also)
    well = _well(outcome) and all(look.clean for look in looks)
    if as_json:
        document = _outcome_json(outcome) | {"looked": [_look_json(look) for look in looks]}
        print_json({"ok": well, "done": outcome.request is None, **document})
    else:
        _show_outcome(outcome)
        for look in looks:
            _show_look(look)
    if not well:
        raise typer.Exit(PROBLEM_FOUND)


def _looks(outcome: Outcome, data_dir: Path, also: list[Path]) -> list[SearchReport]:
    """The search, for each of what they are called in clear, if they are forgotten."""
    if outcome.request is not None:
        return []
    return [_look_or_say(value, data_dir, also) for value in outcome.record.values]


def _look_or_say(value: str, data_dir: Path, also: list[Path]) -> SearchReport:
    """The search; for what cannot be looked for, one that says so, and is not fine."""
    from saga.errors import InputError
    from saga.personal.byte_search import SearchReport, Unseen

    try:
        return _look(value, data_dir, also)
    except InputError as error:
        return SearchReport(unseen=[Unseen("what they are called in clear", str(error))])


def _resume(data_dir: Path, also: list[Path], wait: float, *, as_json: bool) -> None:
    """Go on with each request that waits, whatever becomes of the others."""
    from saga.personal.requests import waiting_in

    outcomes: list[Outcome] = []
    looks: list[SearchReport] = []
    failed: dict[str, str] = {}
    waiting = waiting_in(data_dir)
    if waiting:
        with _forgetter(data_dir) as forgetter:
            for request in waiting:
                try:
                    record = answer_to(forgetter.record_of(request.person_id))
                    done = forgetter.forget(
                        record, request.reason, wait_seconds=wait, backups=also, report=remark
                    )
                    outcomes.append(answer_to(done))
                except typer.Exit:  # A signal ends all of it.
                    raise
                except Exception as error:
                    failed[request.person_id] = _explained(error)
        for outcome in outcomes:
            looks += _looks(outcome, data_dir, also)
    well = not failed and all(map(_well, outcomes)) and all(look.clean for look in looks)
    if as_json:
        print_json(
            {
                "ok": well,
                "requests": [_outcome_json(outcome) for outcome in outcomes],
                "failed": [{"person": id, "why": why} for id, why in failed.items()],
                "looked": [_look_json(look) for look in looks],
            }
        )
    else:
        if not waiting:
            remark("no request waits")
        for outcome in outcomes:
            _show_outcome(outcome)
        for person_id, why in failed.items():
            remark(f"person {person_id}: {why}; the request still waits")
        for look in looks:
            _show_look(look)
    if not well:
        raise typer.Exit(PROBLEM_FOUND)


def _explained(error: Exception) -> str:
    """What is wrong, in a line. Raises what is no error of a user's or the surroundings'."""
    if isinstance(error, typer.BadParameter):
        return error.format_message()
    line = explanation(error)
    if line is None:
        raise error
    return line


def _status(data_dir: Path, *, as_json: bool) -> None:
    from saga.commands.console import Table, out
    from saga.personal.requests import waiting_in

    waiting = waiting_in(data_dir)
    if as_json:
        print_json({"ok": not waiting, "requests": [_request_json(one) for one in waiting]})
    elif not waiting:
        out().print("no request waits")
    else:
        table = Table("asked at", "person", "reason", "by", "waits for")
        for one in waiting:
            table.add_row(
                f"{one.asked_at:%Y-%m-%d %H:%M:%S}",
                one.person_id,
                one.reason,
                one.who,
                ", ".join(one.waits_for) or one.why or "--resume",
            )
        out().print(table)
    if waiting:
        raise typer.Exit(PROBLEM_FOUND)


class _forgetter:  # noqa: N801 - used as a context manager only
    """What forgets people of the system in a data folder, with its key store open."""

    def __init__(self, data_dir: Path) -> None:
        from saga.deployment import Deployment
        from saga.discovery import saga
        from saga.personal.forgetting import open_keys
        from saga.personal.running import forgetter_of

        deployment = Deployment.load(data_dir)
        self._store = open_keys(deployment, data_dir)
        self._forgetter = forgetter_of(deployment, data_dir, saga(), self._store)

    def __enter__(self) -> Forgetter:
        return self._forgetter

    def __exit__(self, *_: object) -> None:
        self._store.close()


# --- looking ------------------------------------------------------------------------------------


def _verify(given: str, data_dir: Path, also: list[Path], *, as_json: bool) -> None:
    from saga.commands.output import wrong_usage
    from saga.personal.seal import sealed

    if sealed(given):
        raise typer.BadParameter(
            "a sealed text may be anywhere; give what they are called in clear"
        )
    with wrong_usage():
        look = _look(given, data_dir, also)
    if as_json:
        print_json({"ok": look.clean, **_look_json(look)})
    else:
        _show_look(look)
    if not look.clean:
        raise typer.Exit(PROBLEM_FOUND)


def _look(text: str, data_dir: Path, also: list[Path]) -> SearchReport:
    from saga.commands.console import progress_bars
    from saga.deployment import Deployment, DeploymentError
    from saga.discovery import saga
    from saga.personal.byte_search import ByteSearch, SearchedPlaces, size_of
    from saga.personal.needle import Needle
    from saga.personal.opening import store_url
    from saga.runtime.settings import PersonalSettings, load

    needle = Needle(text)
    try:
        settings = Deployment.load(data_dir).personal_settings(data_dir)
    except DeploymentError:
        settings = load(PersonalSettings, data_dir=data_dir)
    places = SearchedPlaces.of(data_dir, saga().outside, also=also, persons_url=store_url(settings))
    with progress_bars(bytes=size_of(places.folders.values())) as bars:
        search = ByteSearch(needle, bars["bytes"])
        return answer_to(search.everywhere(places, saga().choreography))


def _show_look(look: SearchReport) -> None:
    from saga.commands.console import Table, out

    table = Table("looked through", "parts", "MB", "found", right=("parts", "MB", "found"))
    for group, (parts, size, count) in look.by_group().items():
        table.add_row(group, f"{parts}", f"{size / _MB:.1f}", f"{count}")
    out().print(table)
    found = [*look.with_it]
    for place in found[:LISTED_MAX]:
        how = ", ".join(f"{count} in {name}" for name, count in place.found.encodings.items())
        out().print(f"found in {place.name}: {how}")
    if len(found) > LISTED_MAX:
        out().print(f"and in {len(found) - LISTED_MAX} more; --json has all")
    for letter in look.letters[:LISTED_MAX]:
        remark(
            f"dead letter {letter.number} of {letter.participant}, {letter.type}, {letter.state}, "
            f"has it: {_way_out(letter)}"
        )
    for unseen in look.unseen:
        remark(f"could not look at {unseen.name}: {unseen.why}")
    if look.clean:
        out().print(f"it is nowhere in {sum(place.bytes for place in look.places) / _MB:.1f} MB")


def _way_out(letter: LetterWith) -> str:
    """How a letter is got rid of that has a name in clear."""
    from saga.dlq.states import HERE

    purge = "once it is as old as the services' INBOX_DAYS, `saga dlq purge` deletes it"
    if letter.state not in HERE:
        return purge
    return f"`saga dlq discard {letter.number}` (or replay it); {purge}"


def _look_json(look: SearchReport) -> dict[str, Any]:
    return {
        "found": look.count,
        "places": [
            {"group": group, "parts": parts, "bytes": size, "found": count}
            for group, (parts, size, count) in look.by_group().items()
        ],
        "found_in": [
            {"name": place.name, "found": place.found.count, "as": dict(place.found.encodings)}
            for place in look.with_it
        ],
        "letters": [
            {"letter": one.number, "participant": one.participant, "type": one.type}
            | {"state": one.state, "way_out": _way_out(one)}
            for one in look.letters
        ],
        "not_looked_at": [{"name": one.name, "why": one.why} for one in look.unseen],
    }


# --- showing ------------------------------------------------------------------------------------


def _well(outcome: Outcome) -> bool:
    return outcome.request is None and not outcome.left and not outcome.again


def _show(record: PersonRecord) -> None:
    from saga.commands.console import Table, out

    person = record.person
    since = f"known since {person.created_at:%Y-%m-%d %H:%M:%S}"
    if person.forgotten_at is not None:
        since = f"forgotten at {person.forgotten_at:%Y-%m-%d %H:%M:%S}: {person.reason}"
    out().print(f"person {person.person_id}, {since}")
    out().print(
        f"sagas, as far as the history has them by now: {len(record.subjects)}, of which open, and "
        f"to be ended: {len(record.open)}"
    )
    for subject in record.open[:LISTED_MAX]:
        out().print(f"  {subject}")
    if record.letters:
        table = Table("letter", "service", "about", "type")
        for letter in record.letters[:LISTED_MAX]:
            table.add_row(f"{letter.number}", letter.participant, letter.subject or "", letter.type)
        out().print(f"dead letters: {len(record.letters)}; they can be replayed or discarded later")
        out().print(table)
    if record.dues:
        out().print(f"due about them: {len(record.dues)}; it is settled when its time comes")
        for item in record.dues[:LISTED_MAX]:
            what = item.due.command.type if item.due else "cannot be read"
            out().print(f"  {item.at:%Y-%m-%d %H:%M:%S} {item.participant} {item.subject}: {what}")
    for line in record.not_looked_at:
        remark(line)
    _say_others(record)
    if record.dues_not_listed:
        remark(f"{record.dues_not_listed} more are due, and were not looked at: `saga due SUBJECT`")


def _show_outcome(outcome: Outcome) -> None:
    from saga.commands.console import out

    person_id = outcome.record.person.person_id
    for line in outcome.refused:
        remark(line)
    if outcome.ended:
        out().print(f"ended before their time: {len(outcome.ended)}")
    for line in outcome.again:
        remark(f"failed: {line}; fix it, then `saga forget --resume`")
    if outcome.request is not None and outcome.forgotten_at is None and not outcome.again:
        count = len(outcome.request.waits_for)
        open_now = counted(count, "saga is open", "sagas are open")
        remark(
            f"person {person_id} is not forgotten yet: "
            f"{open_now if count else outcome.request.why}; "
            f"`saga forget --resume` goes on, `saga forget --status` lists what waits"
        )
        return
    if outcome.forgotten_at is not None:
        out().print(
            f"person {person_id} is forgotten since {outcome.forgotten_at:%Y-%m-%d %H:%M:%S}"
        )
        remark("copies of the key store from before still hold the key: destroy them")
    _say_others(outcome.record)
    for name, count in outcome.taken_out.items():
        out().print(f"taken out of {name}: {count}")
    for line in outcome.left:
        remark(f"left to do: {line}")


def _say_others(record: PersonRecord) -> None:
    """Name who may be the same person, in another spelling."""
    if record.spelt_otherwise:
        remark(
            f"in another spelling, the same name is person {', '.join(record.spelt_otherwise)}: if "
            f"that is who asked, have them forgotten as well, by that id"
        )


def _record_json(record: PersonRecord) -> dict[str, Any]:
    person = record.person
    return {
        "person": person.person_id,
        "forgotten_at": person.forgotten_at and person.forgotten_at.isoformat(),
        "subjects": list(record.subjects),
        "open": list(record.open),
        "letters": [letter.number for letter in record.letters],
        "due": [
            {"participant": one.participant, "subject": one.subject, "at": one.at.isoformat()}
            for one in record.dues
        ],
        "not_looked_at": list(record.not_looked_at),
        "spelt_otherwise": list(record.spelt_otherwise),
    }


def _outcome_json(outcome: Outcome) -> dict[str, Any]:
    return _record_json(outcome.record) | {
        "forgotten_at": outcome.forgotten_at and outcome.forgotten_at.isoformat(),
        "ended": outcome.ended,
        "began": outcome.began,
        "refused": outcome.refused,
        "waits": None if outcome.request is None else _request_json(outcome.request),
        "taken_out": outcome.taken_out,
        "left": outcome.left,
        "again": outcome.again,
    }


def _request_json(request: Request) -> dict[str, Any]:
    document: dict[str, Any] = request.model_dump(mode="json")
    return document
