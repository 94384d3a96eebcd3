"""Build the site, and check every link in it: `python -m handbook [--to FOLDER]`."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Final

from handbook.check import broken_links
from handbook.reference import REFERENCE
from handbook.source import BrokenLinkError, assemble, write
from saga.commands.console import write as write_line
from saga.commands.output import problem

_ROOT: Final = Path(__file__).parents[1]
_CONFIGURATION: Final = "zensical.toml"
_ELSEWHERE: Final = "https://unpkg.com/iframe-worker/shim"
"""With it, the search works from disk; see `worker.js`."""


def build(root: Path, folder: Path) -> Path:
    """Build the site of `root` in `folder`; returns the folder of its pages.

    Raises `BrokenLinkError`, and `subprocess.CalledProcessError` where the generator fails.
    """
    shutil.rmtree(folder, ignore_errors=True)
    assemble(root, folder / "source")
    for name, page in REFERENCE.items():
        write(folder / "source" / "docs" / "reference" / name, page())
    shutil.copyfile(root / _CONFIGURATION, folder / _CONFIGURATION)
    zensical = Path(sysconfig.get_path("scripts")) / "zensical"
    subprocess.run([zensical, "build", "--clean", "--strict"], cwd=folder, check=True)
    site = folder / "site"
    (site / "404.html").unlink()  # A server's page, whose links begin at the server's root.
    _keep_to_this_machine(site)
    return site


def _keep_to_this_machine(site: Path) -> None:
    """Make pages load our own stand-in for the one script that the generator loads from
    elsewhere."""
    script = Path("assets", "javascripts", "worker.js")
    shutil.copyfile(Path(__file__).with_name("worker.js"), site / script)
    for page in site.rglob("*.html"):
        here = "../" * (len(page.relative_to(site).parts) - 1)
        text = page.read_text(encoding="utf-8")
        write(page, text.replace(_ELSEWHERE, f"{here}{script.as_posix()}"))


def main() -> int:
    """The command line. Returns the exit status: 1 where a link leads nowhere."""
    parser = argparse.ArgumentParser(prog="python -m handbook", description=__doc__)
    parser.add_argument("--to", type=Path, default=_ROOT / "build" / "handbook")
    folder: Path = parser.parse_args().to
    try:
        site = build(_ROOT, folder)
    except BrokenLinkError as error:
        problem(str(error))
        return 1
    except subprocess.CalledProcessError as error:
        problem(f"zensical ended with {error.returncode}")
        return 1
    broken = broken_links(site)
    for line in broken:
        problem(line)
    write_line(f"{site / 'index.html'}\n")
    return 1 if broken else 0


if __name__ == "__main__":
    raise SystemExit(main())
