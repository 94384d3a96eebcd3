"""Requests to forget a person that wait for a saga to end: a file in the data folder, without a
clear word in it."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from saga.deployment import write_secret
from saga.errors import Explained

FILE_NAME: Final = "forgetting.json"


class RequestsError(Explained):
    """The file of requests cannot be read. Names it and the way out."""


class Request(BaseModel):
    """A person to be forgotten as soon as no open saga is theirs."""

    model_config = ConfigDict(frozen=True)

    person_id: str
    reason: str
    who: str
    """Who asked for it: `user@host`."""
    asked_at: datetime
    waits_for: tuple[str, ...]
    """The subjects that were open when it was last looked at."""


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


def keep(folder: Path, request: Request) -> None:
    """Keep a request, in the place of an earlier one about the same person."""
    _write(folder, [*_others(folder, request.person_id), request])


def drop(folder: Path, person_id: str) -> None:
    """The person is forgotten, or was never to be."""
    if len(others := _others(folder, person_id)) < len(waiting_in(folder)):
        _write(folder, others)


def _others(folder: Path, person_id: str) -> list[Request]:
    return [request for request in waiting_in(folder) if request.person_id != person_id]


def _write(folder: Path, requests: Iterable[Request]) -> None:
    document = _REQUESTS.dump_json(tuple(requests), indent=2).decode()
    write_secret(folder / FILE_NAME, document + "\n")


def _why(error: OSError | ValidationError) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    first = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
