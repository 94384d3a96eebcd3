"""Write each dashboard to where the engine has it; a test keeps the files in step."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from monitoring.dashboards import broker, dead_letters, overview, participants
from saga.generate.monitoring import DATA

FOLDER: Final = DATA / "grafana" / "dashboards"


def dashboards() -> Mapping[str, str]:
    """Each dashboard's JSON, by its file's name."""
    built = [module.dashboard() for module in (overview, participants, broker, dead_letters)]
    return {
        f"{dashboard.uid}.json": json.dumps(dashboard, cls=JSONEncoder, indent=2) + "\n"
        for dashboard in built
    }


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, text in dashboards().items():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
