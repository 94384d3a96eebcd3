"""The command `saga` in the test's own process: the start of another one takes half a second."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from unittest import mock

import pytest

from saga.cli import main

_ONLY_AS_GIVEN = ("AMQP_URL", "DATA_DIR")


def saga(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `saga` to its end, where no event loop runs; of what it depends on in the environment,
    there is only what the test gives."""
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["saga", *arguments]),
        mock.patch.dict(os.environ, environment),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        for name in _ONLY_AS_GIVEN:
            if name not in environment:
                os.environ.pop(name, None)
        with pytest.raises(SystemExit) as end:
            main()
    status = end.value.code
    assert isinstance(status, int)
    return subprocess.CompletedProcess(arguments, status, out.getvalue(), err.getvalue())
