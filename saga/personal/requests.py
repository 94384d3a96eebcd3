"""Requests to forget a person that wait for a saga to end: a file in the data folder, without a
clear word in it. Several processes may change it at once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from saga.deployment import write_secret
from saga.errors import Explained
from saga.runtime.files import locked
from saga.wording import counted

FILE_NAME: Final = "forgetting.json"
REQUESTS_MAX: Final = 10_000
"""Requests that wait in one system."""


class RequestsError(Explained):
    """The file of requests cannot be read or written. Names it and the way out."""


class Request(BaseModel):
    """A person to be forgotten as soon as no open saga is theirs."""

    model_config = ConfigDict(frozen=True)

    person_id: str
    reason: str
    who: str
    """Who asked for it first: `user@host`."""
    asked_at: datetime
    waits_for: tuple[str, ...]
    """The subjects that were open when it was last looked at."""
    why: str = ""
    """What else it waits for."""
    resumed_by: str | None = None
    """Who went on with it last, and when."""
    resumed_at: datetime | None = None
    texts: tuple[str, ...] = ()
    """What they are called, sealed: it may be in no event."""
    subjects_before: tuple[str, ...] | None = None
    """What was done for them by when their key was about to be destroyed: anything else began
    meanwhile. None as long as it is not to be destroyed."""
    key_store_searched: bool = False
    """Whether the key store was looked through for the destroyed key, and did not hold it."""

    def as_asked_before(self, earlier: Request) -> Request:
        """This request, where it goes on with an earlier one about the same person."""
        return self.model_copy(
            update={
                "who": earlier.who,
                "asked_at": earlier.asked_at,
                "resumed_by": self.who,
                "resumed_at": self.asked_at,
                "texts": tuple(dict.fromkeys((*earlier.texts, *self.texts))),
                "subjects_before": earlier.subjects_before,
                "key_store_searched": earlier.key_store_searched,
            }
        )


_REQUESTS: Final = TypeAdapter(tuple[Request, ...])


def waiting_in(folder: Path) -> tuple[Request, ...]:
    """The requests that wait, the oldest first. Raises `RequestsError`."""
    file = folder / FILE_NAME
    try:
        return _REQUESTS.validate_json(file.read_bytes())
    except FileNotFoundError:
        return ()
    except (OSError, ValidationError) as error:
        raise RequestsError(
            f"cannot read {file}: {_why(error)}; correct or remove it, and ask again for each"
        ) from None


def waiting_for(folder: Path, person_id: str) -> Request | None:
    """The request about a person that waits, if one does. Raises `RequestsError`."""
    return next((one for one in waiting_in(folder) if one.person_id == person_id), None)


def problems_in(folder: Path) -> tuple[str, ...]:
    """What an operator should look into: that requests wait, or that it cannot be told."""
    try:
        waiting = waiting_in(folder)
    except RequestsError as error:
        return (str(error),)
    if not waiting:
        return ()
    return (
        f"{counted(len(waiting), 'request waits', 'requests wait')} to forget a person, the "
        f"oldest since "
        f"{waiting[0].asked_at:%Y-%m-%d %H:%M:%S}; see `saga forget --status`",
    )


def take_up(folder: Path, request: Request) -> Request:
    """Keep a request that is worked on from now on, and return it. If one about the same person
    waits, it goes on with that one. Raises `RequestsError`."""
    with _changing(folder) as requests:
        earlier = requests.get(request.person_id)
        if earlier is not None:
            request = request.as_asked_before(earlier)
        requests[request.person_id] = request
    return request


def keep(folder: Path, request: Request) -> None:
    """Keep a request, in the place of an earlier one about the same person. Raises
    `RequestsError`."""
    with _changing(folder) as requests:
        requests[request.person_id] = request


def drop(folder: Path, person_id: str) -> None:
    """The person is forgotten, or was never to be. Raises `RequestsError`."""
    if waiting_for(folder, person_id) is None:
        return
    with _changing(folder) as requests:
        requests.pop(person_id, None)


@contextlib.contextmanager
def _changing(folder: Path) -> Iterator[dict[str, Request]]:
    """The requests by the person's id, to be changed; written at the end, the oldest first. One
    process at a time changes them."""
    file = folder / FILE_NAME
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(file))
        except OSError as error:
            raise RequestsError(f"cannot change {file}: {error.strerror}") from None
        requests = {one.person_id: one for one in waiting_in(folder)}
        yield requests
        if len(requests) > REQUESTS_MAX:
            raise RequestsError(
                f"{REQUESTS_MAX} requests wait in {file}, and no more are kept: `saga forget "
                f"--status` lists them; have what they wait for end, then `saga forget --resume`"
            )
        ordered = tuple(sorted(requests.values(), key=lambda one: one.asked_at))
        try:
            write_secret(file, _REQUESTS.dump_json(ordered, indent=2).decode() + "\n")
        except OSError as error:
            raise RequestsError(f"cannot write {file}: {error.strerror}") from None


def _why(error: OSError | ValidationError) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    first = error.errors(include_url=False)[0]
    where = ".".join(map(str, first["loc"])) or "the document"
    return f"{where}: {first['msg']}"
