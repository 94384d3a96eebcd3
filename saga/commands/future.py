"""`saga future`: what can still happen to one subject, and what would."""

from __future__ import annotations

import math
import shlex
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from saga.commands.output import (
    DATA_DIR,
    LISTED_MAX,
    PROBLEM_FOUND,
    AsJson,
    DataDir,
    answer_to,
    print_json,
    problem,
    wrong_usage,
)
from saga.commands.trace import Subject
from saga.wording import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from saga.deployment import Deployment
    from saga.future.asking import SubjectAtMoment
    from saga.future.ends import EndName, Outlook
    from saga.future.present import ModelledSubject, SubjectModels
    from saga.future.whatif import AskedStep, Consequences, Offer
    from saga.verify.schedule import StepInWords

STATES_MAX: Final = 20_000
"""As many as the console looks at."""
STATES_LIMIT: Final = 5_000_000
ANYTIME: Final = "what was dealt with does not come again; what is on its way may, late or twice"
AS_USUAL: Final = (
    "after what is asked for, messages arrive in the order in which they were published, and "
    "each outside answers as usual"
)


def future(
    subject: Subject,
    asked: Annotated[
        list[str] | None,
        typer.Option(
            "--if",
            metavar="STEP",
            show_default=False,
            help="What if this came next? `PARTICIPANT take MESSAGE`, by its id or its type, for a "
            "message on its way or a dead letter that is replayed; `PARTICIPANT do COMMAND` for "
            "what is due, or can be given from outside. Repeat for several, in their order. "
            "Without it, the steps that there are are listed.",
        ),
    ] = None,
    event: Annotated[
        int | None,
        typer.Option(
            min=0,
            show_default=False,
            help="As of right after its event of this number, the first being 1; by default, as it "
            "is now.",
        ),
    ] = None,
    max_states: Annotated[
        int,
        typer.Option(
            min=1, max=STATES_LIMIT, help="Look at no more than so many states, and say so."
        ),
    ] = STATES_MAX,
    data_dir: DataDir = DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Show how a subject, a trip for instance, can still end, the shortest way to each end, and
    what cannot happen any more; with --if, what would follow.

    Computed by the services' own reactions, from the states that its events leave: nothing is sent,
    and nothing changes. What was taken for granted, and what was not looked at, is named.

    Exit status 1 if a rule can be broken, or would be; also if not all was looked at, or the
    history may lack something.

    Examples:

    * `saga future 9b695b7c-423b-5f77-b29e-1b10bc1cc6cc`
    * `saga future 9b695b7c-423b-5f77-b29e-1b10bc1cc6cc --if "hotel take trip.called_off" --if
      "hotel take trip.asked_for"`
    * `saga future 9b695b7c-423b-5f77-b29e-1b10bc1cc6cc --if "trip do trip.give_up" --json`
    """
    from saga.commands.discretion import Discretion
    from saga.commands.trace import bodies_of
    from saga.deployment import Deployment
    from saga.discovery import choreography, saga
    from saga.future.asking import standing
    from saga.future.present import SubjectModels
    from saga.future.whatif import AskedStep

    with wrong_usage():
        steps = [AskedStep.read(text) for text in asked or ()]
    deployment = Deployment.load(data_dir)
    stands = answer_to(standing(deployment, choreography(), subject, event))
    Discretion(deployment, choreography()).hide(bodies_of(stands.found))
    about = _Subject(deployment, SubjectModels(saga()), stands)
    fine = (
        about.tell_what_if(steps, as_json=as_json)
        if steps
        else about.tell_outlook(max_states, as_json=as_json)
    )
    if stands.may_lack:
        problem(stands.may_lack)
    if stands.may_lack or not fine:
        raise typer.Exit(PROBLEM_FOUND)


class _Subject:
    """The subject that is asked about. Each answer is printed; it says whether nothing in it is
    wrong, or was left out."""

    def __init__(
        self, deployment: Deployment, foresight: SubjectModels, stands: SubjectAtMoment
    ) -> None:
        self._deployment = deployment
        self._foresight = foresight
        self._stands = stands

    def tell_outlook(self, max_states: int, *, as_json: bool) -> bool:
        """What can still happen."""
        from saga.future.asking import computed
        from saga.future.ends import outlook
        from saga.future.whatif import beside_courses
        from saga.verify import VerifyError

        present = self._modelled(influential_only=True)
        judged = self._foresight.judged(present)
        seen = computed(
            lambda: beside_courses(
                present, outlook(present, judged, states_max=max_states, seconds_max=math.inf)
            )
        )
        offers, why_none = [], ""
        try:
            offers = self._offers()
        except VerifyError as error:
            why_none = str(error)
        fine = seen.whole and not seen.broken and not why_none
        if as_json:
            print_json(
                self._as_json(ANYTIME, present, fine=fine)
                | _outlook_as_json(seen, present)
                | {"steps": [{"what": o.words, "if": list(map(str, o.steps))} for o in offers]}
            )
        else:
            self._print_headline()
            self._print_pending(present)
            _print_outlook(seen)
            _print_granted(ANYTIME, present)
            _print_left_out(seen, present)
            _print_offers(offers)
        if why_none:
            problem(f"it cannot be asked what would follow: {why_none}")
        return fine

    def tell_what_if(self, steps: Sequence[AskedStep], *, as_json: bool) -> bool:
        """What would follow if these steps came next."""
        from saga.future.asking import computed
        from saga.future.whatif import course

        present = self._modelled(influential_only=False)
        with wrong_usage():
            asked = computed(lambda: course(present, steps))
        usual = computed(lambda: course(present))
        fine = asked.whole and not asked.broken
        if as_json:
            print_json(
                self._as_json(AS_USUAL, present, fine=fine)
                | {"what_if": _course_as_json(asked), "usual": _course_as_json(usual)}
            )
        else:
            self._print_headline()
            _print_course(asked, usual)
            _print_granted(AS_USUAL, present)
        return fine

    def _modelled(self, *, influential_only: bool) -> ModelledSubject:
        from saga.future.moment import modelled

        moment = self._stands.moment
        debts = moment.open_debts(self._stands.found.whereabouts)
        return modelled(
            self._deployment, self._foresight, moment, debts, influential_only=influential_only
        )

    def _offers(self) -> list[Offer]:
        from saga.future.whatif import offers_of

        present = self._modelled(influential_only=False)
        return offers_of(present, self._stands.found.whereabouts)

    def _as_json(self, first: str, present: ModelledSubject, *, fine: bool) -> dict[str, Any]:
        """What both documents begin with."""
        moment = self._stands.moment
        return {
            "subject": moment.story.subject,
            "ok": fine and not self._stands.may_lack,
            "event": moment.number,
            "events": moment.last,
            "history_behind": self._stands.behind,
            "on_their_way": [
                {
                    "participant": name,
                    "type": event.type,
                    "id": event.id,
                    "where": self._where(name, event.id) or None,
                }
                for name, event in present.pending
            ],
            "taken_for_granted": [first, *present.remarks],
        }

    def _where(self, participant: str, message: str) -> str:
        """Where a message is, in words; empty if the broker was not read."""
        seen = self._stands.found.whereabouts
        return "" if seen is None else seen.of(participant, message).detail

    def _print_pending(self, present: ModelledSubject) -> None:
        from saga.commands.console import out

        for name, event in present.pending:
            where = self._where(name, event.id)
            out().print(f"on its way: {event.type} to {name}" + (f", {where}" if where else ""))

    def _print_headline(self) -> None:
        from saga.commands.console import out, styled
        from saga.history.sequence import headline

        moment, console = self._stands.moment, out()
        console.print(styled((headline(self._stands.found.story), "bold")))
        if not moment.is_last:
            what = f", {moment.step.attributes.type}" if moment.step else ""
            at = f"{moment.now:%Y-%m-%d %H:%M:%S}"
            console.print(f"as of its event {moment.number} of {moment.last}{what}, {at}")


# --- as JSON ------------------------------------------------------------------------------------


def _outlook_as_json(seen: Outlook, present: ModelledSubject) -> dict[str, Any]:
    return {
        "whole": seen.whole,
        "states": seen.states,
        "transitions": seen.transitions,
        "ends": [
            {
                "events": _end_as_json(end.name),
                "way": _way_as_json(end.way),
                "shortest": end.shortest,
                # What was not looked at may have others with it.
                "always": list(end.always) if seen.whole else None,
                "never": list(end.never) if seen.whole else None,
            }
            for end in seen.ends
        ],
        "out_of_reach": list(seen.out_of_reach) if seen.whole else None,
        "holding": dict(seen.holding),
        "broken": [
            {
                "rule": each.violation.rule,
                "subject": each.violation.subject,
                "detail": each.violation.detail,
                "way": _way_as_json(each.way),
            }
            for each in seen.broken
        ],
        "not_judged": list(present.unjudged),
        "not_tried": list(present.untried),
        "cut_short": list(seen.cut_short),
        "depends_on": list(seen.depends_on),
    }


def _course_as_json(found: Consequences) -> dict[str, Any]:
    return {
        "events": _end_as_json(found.end),
        "rests": found.rests,
        "whole": found.whole,
        "asked": found.asked,
        "way": _way_as_json(found.steps),
        "broken": [
            {"rule": each.rule, "subject": each.subject, "detail": each.detail}
            for each in found.broken
        ],
    }


def _end_as_json(name: EndName) -> list[dict[str, str]]:
    return [{"type": type_, "outcome": outcome} for type_, outcome in name]


def _way_as_json(steps: Sequence[StepInWords]) -> list[dict[str, Any]]:
    return [
        {
            "from": step.sender,
            "to": step.receiver,
            "what": step.what,
            "remark": step.remark or None,
            "results": list(step.results),
        }
        for step in steps
    ]


# --- for people ---------------------------------------------------------------------------------


def _print_outlook(seen: Outlook) -> None:
    from saga.commands.console import Table, out, styled
    from saga.future.ends import end_in_words

    console = out()
    counts = f"{counted(seen.states, 'state')} and {counted(seen.transitions, 'step')}"
    as_long_as = ""
    if seen.depends_on:
        as_long_as = f", as long as nothing else changes {', '.join(seen.depends_on)}"
    if seen.whole:
        console.print(f"all of what can happen to it{as_long_as}: {counts}")
    else:
        said = f"not all was looked at: {counts}; what is not listed here may still happen"
        console.print(styled((said, "yellow")))
    table = Table("it can end by", "steps at least", "always with it", "never with it")
    for end in seen.ends:
        always, never = ("not known",) * 2
        if seen.whole:
            always, never = ", ".join(end.always), ", ".join(end.never)
        steps = f"{len(end.way)}" if end.way else "it is there"
        steps = steps if end.shortest else f"not known; one way has {steps}"
        table.add_row(end_in_words(end.name), steps, always, never)
    if seen.ends:
        console.print(table)
    else:
        none = "no end: what is on its way leads to none, and never comes to rest"
        console.print(none if seen.whole else "no end among what was looked at")
    if seen.out_of_reach:
        console.print(f"it cannot end any more by: {', '.join(seen.out_of_reach)}{as_long_as}")
    for broken in seen.broken:
        violation = broken.violation
        console.print(styled((f"{violation.rule} can be broken: {violation.detail}", "red")))
        _print_way("a shortest way to that", broken.way)
    console.print("what holds whatever happens:" if seen.whole else "what holds in all of that:")
    for name, said in seen.holding.items():
        console.print(f"  {said} ({name})")
    for end in seen.ends[:LISTED_MAX]:
        if end.way:
            a_way = "a shortest way" if end.shortest else "one way"
            _print_way(f"{a_way} to {end_in_words(end.name)}", end.way)
    if len(seen.ends) > LISTED_MAX:
        console.print(f"{len(seen.ends) - LISTED_MAX} more ends are further away")


def _print_offers(offers: Sequence[Offer]) -> None:
    from saga.commands.console import Table, out

    table = Table("what if", "as options")
    for offer in offers:
        options = " ".join(f"--if {shlex.quote(str(step))}" for step in offer.steps)
        table.add_row(offer.words, options)
    if offers:
        out().print(table)


def _print_course(asked: Consequences, usual: Consequences) -> None:
    from saga.commands.console import out, styled
    from saga.future.ends import end_in_words

    console = out()
    console.print(f"it would come to: {end_in_words(asked.end)}{_unfinished(asked)}")
    if asked.end == usual.end:
        console.print(f"that is where it comes to anyway{_unfinished(usual)}")
    else:
        said = f"otherwise it comes to: {end_in_words(usual.end)}{_unfinished(usual)}"
        console.print(styled((said, "yellow")))
    for violation in asked.broken:
        said = f"{violation.rule} would be broken: {violation.detail}"
        console.print(styled((said, "red")))
    many = f"steps 1 to {asked.asked} are what was asked for, with what is asked because of it"
    one = "the first step is what was asked for"
    _print_way(f"what would happen; {one if asked.asked == 1 else many}", asked.steps)


def _unfinished(found: Consequences) -> str:
    if not found.whole:
        return f"; followed for {counted(len(found.steps), 'step')} only, and it goes on"
    return "" if found.rests else ", and something is left to do"


def _print_way(caption: str, steps: Sequence[StepInWords]) -> None:
    """Arrows between lanes; a table where these have no room."""
    from saga.commands.console import Table, out, styled
    from saga.verify.drawing import drawn

    console = out()
    console.print(f"{caption}:")
    lines = [styled(line) for line in drawn(steps)]
    if all(line.cell_len <= console.width for line in lines):
        for line in lines:
            console.print(line)
        return
    table = Table("step", "from", "to", "what", "result")
    for number, step in enumerate(steps, 1):
        what = f"{step.what} ({step.remark})" if step.remark else step.what
        table.add_row(f"{number}", step.sender, step.receiver, what, ", ".join(step.results))
    console.print(table)


def _print_granted(first: str, present: ModelledSubject) -> None:
    from saga.commands.console import out

    out().print("taken for granted:")
    for line in (first, *present.remarks):
        out().print(f"  {line}")


def _print_left_out(seen: Outlook, present: ModelledSubject) -> None:
    from saga.commands.console import out

    for said, names in (
        ("rules not judged, as they read more than this subject", present.unjudged),
        ("commands from outside not tried, as their content is not known", present.untried),
        ("outsides whose refusals were not followed to their end", seen.cut_short),
    ):
        if names:
            out().print(f"{said}: {', '.join(names)}")
