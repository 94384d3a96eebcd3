"""`scripts/release` on a copy of the tree: what it builds, twice, and what it refuses."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.alone import LEFT_OUT, ROOT

VERSION = re.findall(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[0]
WHEEL = f"saga_engine-{VERSION}-py3-none-any.whl"
BILL = f"saga-engine-{VERSION}.cdx.json"


def git(checkout: Path, *arguments: str) -> None:
    name = ("-c", "user.name=test", "-c", "user.email=test@example.com")
    subprocess.run(["git", *name, *arguments], cwd=checkout, check=True, capture_output=True)


def release(checkout: Path, mask: int = 0o022) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["scripts/release"],
        cwd=checkout,
        env=os.environ | {"VENV": sys.prefix},
        umask=mask,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The tree as it is here, committed."""
    folder = tmp_path / "checkout"
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*LEFT_OUT), symlinks=True)
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "a release")
    return folder


def test_a_release_built_twice_is_the_same_files_with_a_bill_of_all_that_is_locked(
    checkout: Path, tmp_path: Path
) -> None:
    built = release(checkout)
    assert built.returncode == 0, built.stderr
    first = {file.name: file.read_bytes() for file in (checkout / "dist").iterdir()}
    assert first.keys() == {WHEEL, BILL, "SHA256SUMS"}
    assert set(built.stdout.splitlines()) == {
        f"{hashlib.sha256(first[name]).hexdigest()}  {name}" for name in (WHEEL, BILL)
    }
    again = release(checkout.rename(tmp_path / "elsewhere"), mask=0o077)
    assert again.returncode == 0, again.stderr
    assert {f.name: f.read_bytes() for f in (tmp_path / "elsewhere" / "dist").iterdir()} == first

    names = zipfile.ZipFile(tmp_path / "elsewhere" / "dist" / WHEEL).namelist()
    assert {name.partition("/")[0] for name in names} == {
        "saga",
        f"saga_engine-{VERSION}.dist-info",
    }
    bill = json.loads(first[BILL])
    assert bill["metadata"]["component"]["version"] == VERSION
    lock = (ROOT / "requirements.lock").read_text()
    assert {(c["name"], c["version"]) for c in bill["components"]} == {
        *re.findall(r"^([a-z][^=\[]*)(?:\[.*\])?==([^ ;\\]+)", lock, re.MULTILINE)
    }
    assert all(
        reference["hashes"]
        for component in bill["components"]
        for reference in component["externalReferences"]
    )


def test_what_is_not_committed_is_not_released(checkout: Path) -> None:
    (checkout / "saga" / "more.py").write_text("")
    refused = release(checkout)
    assert refused.returncode == 1
    assert "the tree has changes: commit them" in refused.stderr


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("CHANGELOG.md", f"## [{VERSION}] - ", f"## [{VERSION}] ", "has no section with a date"),
        (
            "contracts/released/stock.added/v1.json",
            '"Units were',
            '"Units are',
            "contracts/released is not what this version publishes",
        ),
    ],
    ids=["changelog", "contracts"],
)
def test_what_does_not_go_with_the_version_is_named(
    file: str, old: str, new: str, said: str, checkout: Path
) -> None:
    text = (checkout / file).read_text()
    assert old in text
    (checkout / file).write_text(text.replace(old, new))
    git(checkout, "commit", "--quiet", "--all", "--message", "a mistake")
    refused = release(checkout)
    assert refused.returncode == 1
    assert said in refused.stderr
