"""Whether the service in this container is ready: exit status 0 if it is.

python -m saga.runtime.healthcheck [PATH]

Asks `/readyz`, or another path, on loopback and the port in `HTTP_PORT`.
"""

from __future__ import annotations

import http.client
import os
import sys

TIMEOUT_SECONDS = 20.0
"""Less than a container's health check may take: a busy machine answers late, and is healthy."""


def ready(port: int, path: str) -> bool:
    """Whether that answers, and with success."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_SECONDS)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def main() -> None:
    port = os.environ.get("HTTP_PORT", "")
    if not (port.isascii() and port.isdecimal()):
        sys.exit(f"error: HTTP_PORT is {port!r}; name the service's port")
    sys.exit(not ready(int(port), *(sys.argv[1:2] or ["/readyz"])))


if __name__ == "__main__":
    main()
