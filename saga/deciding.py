"""What a rule leaves to people, decided: the service that knows how is asked over HTTP."""

from __future__ import annotations

import asyncio
from typing import Final

import httpx

from saga.declaration import PersonsChoice
from saga.deployment import Deployment
from saga.errors import Explained
from saga.http import post_to_one

ASK_SECONDS: Final = 8.0
"""How long a service may take; less than an answer's deadline, so that its own is heard of."""


class DecidingError(Explained):
    """It is not decided, or it is unknown whether it is. Says why."""


async def decide(deployment: Deployment, choice: PersonsChoice, way: str, subject: str) -> None:
    """Decide it in this way, which is one of the choice's. Raises `DecidingError`."""
    name = choice.participant
    urls = deployment.http_urls.get(name, ())
    if not urls:
        raise DecidingError(f"the deployment names no URL of the service {name}; add it")
    try:
        async with asyncio.timeout(ASK_SECONDS):
            answer = await post_to_one(urls, choice.path(way, subject), None, ASK_SECONDS)
    except (httpx.HTTPError, TimeoutError) as error:
        why = str(error) or type(error).__name__
        raise DecidingError(
            f"the service {name} did not answer within {ASK_SECONDS:g} s: {why}; it may be decided "
            f"all the same, which `saga reconcile` tells"
        ) from error
    if answer is None:
        raise DecidingError(f"no service {name} runs at {', '.join(urls)}; start it")
    if not answer.is_success:
        raise DecidingError(f"the service {name} has not done it: {_detail(answer)}")


def _detail(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["detail"])
    except (ValueError, LookupError, TypeError):
        return f"it answered {answer.status_code} with no problem that can be read"
