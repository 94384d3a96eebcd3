"""How dead letters, and what was done about them, are shown."""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from dataclasses import replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from saga.wording import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from saga.commands.discretion import Discretion
    from saga.dlq.audit import AuditEntry
    from saga.dlq.examine import Verdict
    from saga.dlq.groups import LetterGroup
    from saga.dlq.letters import DeadLetter
    from saga.dlq.replay import ReplayResult

_UNREAD: Final = ("payload_text", "payload_base64")
_LISTED: Final = 200
"""Letters or verdicts shown one by one in a terminal; JSON has all of them."""
_ERROR_CHARACTERS: Final = 80


class GroupBy(StrEnum):
    """What `list` groups by; `letter` lists each by itself."""

    FINGERPRINT = "fingerprint"
    TYPE = "type"
    SERVICE = "service"
    LETTER = "letter"


def discreet(letter: DeadLetter, discretion: Discretion) -> DeadLetter:
    """The letter without whom it names in what went wrong."""
    from saga.personal.masks import without_names

    named = discretion.named_in([letter.body])
    return replace(letter, error=without_names(letter.error, named))


def discreet_verdict(letter: DeadLetter, verdict: Verdict, discretion: Discretion) -> Verdict:
    """The verdict without whom its letter names."""
    from saga.personal.masks import without_names

    named = discretion.named_in([letter.body])
    return replace(verdict, detail=without_names(verdict.detail, named))


def discreet_document(document: dict[str, Any], discretion: Discretion) -> dict[str, Any]:
    """What `full` tells of a letter, without whom it names; what cannot be read as a message may
    hold any name."""
    if discretion.shows_all:
        return document
    if "payload" in document:
        return document | {"payload": discretion.payload(document["payload"])}
    told = {name: value for name, value in document.items() if name not in _UNREAD}
    told["payload_text"] = "it is no message, and may hold names: PERSONAL_SHOWN=clear shows it"
    return told


def as_lines(letters: Sequence[DeadLetter]) -> str:
    """JSON Lines: a letter a line, with everything that is known of it."""
    from saga.dlq.letters import full

    return "".join(json.dumps(full(letter)) + "\n" for letter in letters)


def print_groups(groups: Sequence[LetterGroup], by: GroupBy, letters: int) -> None:
    """Print groups, of so many letters together."""
    from saga.commands.console import Table, out

    headers = (str(by), "letters", "services", "types", "error", "last", "example")
    table = Table(*headers, right=["letters"])
    for group in groups:
        table.add_row(
            group.key,
            f"{group.letters}",
            ", ".join(group.services),
            ", ".join(group.types),
            _short(f"{group.error_type or group.reason}: {group.error}"),
            _moment(group.last_failed_at.isoformat()),
            f"{group.example}",
        )
    out().print(table)
    out().print(f"{counted(letters, 'dead letter')}; `saga dlq show ID` tells all about one")


def print_letters(letters: Sequence[DeadLetter]) -> None:
    """Print a line for each letter."""
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


def print_letter(document: dict[str, Any]) -> None:
    """Print what `full` tells of one letter, with its edits and what a replay would do."""
    from saga.commands.console import Table, lines_of, out

    verdict = document["replay"]
    table = Table("", "", title=f"letter {document['letter']}", show_header=False)
    for name in _facts_in(document):
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


def print_result(result: ReplayResult) -> None:
    """Print what came of a replay."""
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


def print_verdicts(verdicts: Sequence[tuple[DeadLetter, Verdict]]) -> None:
    """Print what a replay would do with each letter."""
    from saga.commands.console import Table, out
    from saga.dlq.examine import counts_of

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
    for expectation, count in counts_of(verdict for _, verdict in verdicts).items():
        out().print(f"{expectation:>20} {count:>8}")


def print_audit(actions: Sequence[AuditEntry]) -> None:
    """Print the audit record."""
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


def _facts_in(document: dict[str, Any]) -> list[str]:
    """What `full` tells of a letter in a word each, in the order in which it is shown."""
    facts = itertools.takewhile(lambda name: name != "properties", document)
    return [*(name for name in facts if name not in ("letter", "note")), "note"]


def _short(text: str, most: int = _ERROR_CHARACTERS) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _moment(iso: str) -> str:
    return iso[:19].replace("T", " ")
