"""A module, run with its broker and database behind other ports: those of a test's proxies.

python -m tests.faults.via AMQP_URL=20001 DATABASE_URL=20002 payment_service.app
"""

from __future__ import annotations

import importlib
import os
import runpy
import sys

import yarl


def main(arguments: list[str]) -> None:
    while "=" in arguments[0]:
        variable, _, port = arguments.pop(0).partition("=")
        os.environ[variable] = str(yarl.URL(os.environ[variable]).with_port(int(port)))
    module, *sys.argv[1:] = arguments
    serve = getattr(importlib.import_module(module), "serve", None)
    if serve is not None and serve.__module__ == module:  # It may be loaded already.
        serve()
    else:
        runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
