"""Writes the dashboards of Grafana, dashboards/*.json, from the Python beside this file.

The JSON is committed: Grafana imports it as it is, and nobody needs this program to use it. A guard test runs it and
fails when the two differ, and holds every metric name in it against the catalogue. It needs grafana-foundation-sdk,
which `make test` installs.

    .venv/bin/python deploy/grafana/generate.py FOLDER   # FOLDER: where to write, default deploy/grafana/dashboards
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import exporter
import fleet
import overview
import receiver
from grafana_foundation_sdk.cog.encoder import JSONEncoder

TARGET = Path(__file__).with_name("dashboards")
MADE = {"overview": overview.made, "exporter": exporter.made, "receiver": receiver.made, "fleet": fleet.made}


def write(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in MADE.items():
        text = json.dumps(make(), indent=1, ensure_ascii=False, sort_keys=True, cls=JSONEncoder)
        (folder / f"{name}.json").write_text(text + "\n")


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else TARGET)
