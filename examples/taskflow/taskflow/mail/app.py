"""The service that writes to users."""

from __future__ import annotations

from saga import FileBookkeeper, Service, Settings, serve

from taskflow.mail.domain import PARTICIPANT
from taskflow.mail.store import TABLES
from taskflow.outside import PostBooks, asks_post


class MailSettings(Settings):
    """Where the post office is."""

    post_url: str | None = None
    """POST_URL: of the sandbox's file; by default one in the data folder."""


def build(settings: MailSettings) -> Service:
    url = settings.post_url or f"sqlite:///{settings.data_dir.absolute() / 'post.db'}"
    return Service(PARTICIPANT, TABLES, ask=asks_post(FileBookkeeper(url, PostBooks)))


if __name__ == "__main__":
    serve(build, MailSettings)
