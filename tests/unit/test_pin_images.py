"""`scripts/pin-images` against a registry that is a stand-in."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

ROOT = Path(__file__).parents[2]
FILES = (
    ".devcontainer/devcontainer.json",
    *("Dockerfile", "compose.yaml", "compose.cluster.yaml"),
    *(f"saga/generate/project/{name}" for name in ("Dockerfile", "compose.yaml")),
    "saga/generate/project/compose.cluster.yaml",
)


class Registry(BaseHTTPRequestHandler):
    """Gives any client a token, and for a token the digest of any tag but `missing`."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"token": "anybody"}).encode())

    def do_HEAD(self) -> None:
        host = self.headers["Host"]
        if self.headers.get("Authorization") != "Bearer anybody":
            self.send_response(401)
            realm = f'Bearer realm="http://{host}/token",service="stand-in",scope="pull"'
            self.send_header("WWW-Authenticate", realm)
        elif self.path.endswith("/missing"):
            self.send_response(404)
        else:
            self.send_response(200)
            self.send_header("Docker-Content-Digest", digest(self.path))
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


def digest(path: str) -> str:
    return f"sha256:{hashlib.sha256(path.encode()).hexdigest()}"


@pytest.fixture
def registry() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Registry) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in (*FILES, "scripts/pin-images"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def pin(checkout: Path, registry: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "scripts/pin-images", *arguments],
        cwd=checkout,
        env=os.environ | {"REGISTRY_URL": registry},
        capture_output=True,
        text=True,
        check=False,
    )


def images(checkout: Path) -> list[str]:
    text = "\n".join((checkout / name).read_text() for name in FILES)
    found = re.findall(r"^(?:\s*\"?image\"?: |ARG BASE=)\"?([^\s\",]+)\"?,?$", text, re.MULTILINE)
    return [image for image in found if not image.startswith("localhost/")]


def test_every_image_gets_the_digest_that_its_registry_has(checkout: Path, registry: str) -> None:
    before = [image.partition("@")[0] for image in images(checkout)]
    assert len(before) >= 14
    assert pin(checkout, registry, "--check").returncode == 1

    assert pin(checkout, registry).returncode == 0

    assert images(checkout) == [
        f"{image}@{digest(f'/v2/{name}/manifests/{tag}')}"
        for image in before
        for name, _, tag in [image.partition("/")[2].partition(":")]
    ]
    assert pin(checkout, registry, "--check").returncode == 0


def test_a_tag_that_has_moved_is_noticed(checkout: Path, registry: str) -> None:
    assert pin(checkout, registry).returncode == 0
    compose = checkout / "compose.yaml"
    compose.write_text(re.sub(r"@sha256:[0-9a-f]{64}", f"@{digest('old')}", compose.read_text()))
    assert pin(checkout, registry, "--check").returncode == 1


def test_nothing_is_changed_where_one_digest_is_not_to_be_had(
    checkout: Path, registry: str
) -> None:
    compose = checkout / "compose.yaml"
    compose.write_text(re.sub(r"grafana:[0-9.]+", "grafana:missing", compose.read_text()))
    before = images(checkout)

    done = pin(checkout, registry)

    assert done.returncode == 1
    assert "docker.io/grafana/grafana:missing: no digest from" in done.stderr
    assert done.stderr.count("\n") == 1
    assert images(checkout) == before
