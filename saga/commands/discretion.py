"""Whether commands show whom messages name in clear, and who that is.

Nothing is hidden where the system whose messages they are shows names: its `PERSONAL_SHOWN` is
`clear`, or nothing is sealed there and its `AUTH` is off. Its deployment tells, and not the shell
that the command was typed in; that may set `PERSONAL_SHOWN` for the command. Where neither tells,
names are hidden, and the command says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from saga.commands.hiding import hide
from saga.commands.output import remark
from saga.personal.masks import Masks

if TYPE_CHECKING:
    from collections.abc import Iterable

    from saga.choreography import Choreography
    from saga.deployment import Deployment

_AT_ONCE: Final = 500
"""Subjects whose events are read together."""


def names_shown(deployment: Deployment | None) -> bool | None:
    """Whether names may be shown to who runs commands; None where nothing tells. Raises
    `SettingsError`."""
    from saga.runtime.settings import PersonalSettings, PersonalShown, Sealing, load

    of_command = load(PersonalSettings)
    if "personal_shown" in of_command.model_fields_set:
        return of_command.personal_shown is PersonalShown.CLEAR
    if deployment is None:
        return None
    if deployment.personal_shown is PersonalShown.CLEAR:
        return True
    if deployment.personal_settings().personal is Sealing.SEALED:
        return False
    return None if deployment.callers_known is None else not deployment.callers_known


class Discretion:
    """Knows whom the messages of a system name, and whether that may be shown."""

    def __init__(self, deployment: Deployment | None, graph: Choreography) -> None:
        """`deployment` is None where only files are there. Raises `SettingsError`."""
        shown = names_shown(deployment)
        self.shows_all = shown is True
        self._is_told = shown is not None
        self._masks = Masks((*graph.recorded, *graph.commands))

    def hide(self, bodies: Iterable[bytes]) -> None:
        """Hide the names in these messages in all that the command prints."""
        hide(self.named_in(bodies))

    async def named_about(self, deployment: Deployment, subjects: Iterable[str]) -> frozenset[str]:
        """The values not to be shown of the events about these subjects. Raises what reading the
        history raises."""
        from functools import partial

        from saga.archive.queries import facts_about
        from saga.history.archive import Archive

        about = sorted({*subjects})
        if self.shows_all or not about:
            return frozenset()
        archive = Archive(deployment)
        found: set[str] = set()
        for start in range(0, len(about), _AT_ONCE):
            part = about[start : start + _AT_ONCE]
            facts = await archive.read(partial(facts_about, subjects=part))
            found |= self.named_in(fact.body for fact in facts)
        return frozenset(found)

    def named_in(self, bodies: Iterable[bytes]) -> frozenset[str]:
        """The values not to be shown of these messages."""
        if self.shows_all:
            return frozenset()
        found = frozenset().union(*map(self._masks.values_of, bodies))
        if found:
            self._say_why()
        return found

    def _say_why(self) -> None:
        """Say once that names are hidden for want of knowing better."""
        if not self._is_told:
            self._is_told = True
            remark(
                "names are hidden, since nothing here tells whether they may be shown: "
                "PERSONAL_SHOWN=clear shows them"
            )

    def names_nobody(self, field: str) -> bool:
        """Whether what fields of this name hold may be shown, of a state for instance."""
        return self.shows_all or field not in self._masks.names

    def payload(self, document: Any) -> Any:
        """The document of a message with those it names masked; all of its texts, where its type
        is unknown."""
        from saga.personal.seal import sealed, shown

        if self.shows_all or not isinstance(document, dict) or "data" not in document:
            return document
        data = self._masks.changed(
            document.get("type"),
            document["data"],
            lambda value: value if sealed(value) else shown(value),
        )
        return document | {"data": data}
