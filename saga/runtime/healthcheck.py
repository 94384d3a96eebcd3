"""Whether the service in this container is ready: exit status 0 if it is.

python -m saga.runtime.healthcheck [PATH]

Asks `/readyz`, or another path, on loopback and the port in `HTTP_PORT`; over HTTPS where
`HTTP_CERT_FILE` is set.
"""

from __future__ import annotations

import http.client
import os
import ssl
import sys
from pathlib import Path

TIMEOUT_SECONDS = 20.0
"""Less than a container's health check may take: a busy machine answers late, and is healthy."""


def ready(port: int, path: str) -> bool:
    """Whether that answers, and with success."""
    connection = _connection(port)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _connection(port: int) -> http.client.HTTPConnection:
    secrets = os.environ.get("SECRETS_DIR")
    named = os.environ.get("HTTP_CERT_FILE")
    if named or (secrets and Path(secrets, "http_cert_file").exists()):
        # Its certificate is for another name than this address. Who answers here is in this
        # container, and is only asked whether it works, as a kubelet's probe asks.
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return http.client.HTTPSConnection(
            "127.0.0.1", port, timeout=TIMEOUT_SECONDS, context=context
        )
    return http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_SECONDS)


def main() -> None:
    port = os.environ.get("HTTP_PORT", "")
    if not (port.isascii() and port.isdecimal()):
        sys.exit(f"error: HTTP_PORT is {port!r}; name the service's port")
    sys.exit(not ready(int(port), *(sys.argv[1:2] or ["/readyz"])))


if __name__ == "__main__":
    main()
