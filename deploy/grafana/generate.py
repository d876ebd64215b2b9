"""Writes samplicator.json, the Grafana dashboard, from the tables of panels.py.

The JSON is committed: import it as it is, nobody needs this program to use it. A guard test runs it and fails when the
two differ, and holds every metric name in it against the catalogue. Uses nothing but the standard library.

    python3 deploy/grafana/generate.py            # rewrites the file
    python3 deploy/grafana/generate.py --print    # says what it would write
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from panels import ROWS, SELECT, Panel

TARGET = Path(__file__).with_name("samplicator.json")
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}


def thresholds(panel: Panel) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if panel.red_above is not None:
        steps.append({"color": "red", "value": panel.red_above})
    if panel.red_below is not None:
        steps = [{"color": "red", "value": None}, {"color": "green", "value": panel.red_below}]
    return {"mode": "absolute", "steps": steps}


def render_panel(panel: Panel, number: int, x: int, y: int) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0, "thresholds": thresholds(panel)}
    if panel.kind == "timeseries":
        defaults["color"] = {"mode": "palette-classic"}
        defaults["custom"] = {"drawStyle": "line", "lineWidth": 1, "fillOpacity": 10, "showPoints": "never"}
        options: dict[str, Any] = {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
    else:
        defaults["color"] = {"mode": "thresholds"}
        defaults["mappings"] = [
            {"type": "value", "options": {value: {"text": text, "color": color, "index": place}}}
            for place, (value, text, color) in enumerate(panel.mappings)
        ]
        options = {
            "colorMode": "value",
            "graphMode": "none" if panel.mappings else "area",
            "justifyMode": "auto",
            "textMode": "auto",
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        }
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": DATASOURCE,
        "gridPos": {"h": panel.height, "w": panel.width, "x": x, "y": y},
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
        "targets": [
            {
                "refId": chr(ord("A") + place),
                "datasource": DATASOURCE,
                "expr": query.expr,
                "legendFormat": query.legend,
                "range": True,
            }
            for place, query in enumerate(panel.queries)
        ],
    }


def render_panels() -> list[dict[str, Any]]:
    """Rows from top to bottom, panels from left to right, 24 columns."""
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in ROWS:
        grid = {"h": 1, "w": 24, "x": 0, "y": y}
        panels.append(
            {
                "id": len(panels) + 1,
                "type": "row",
                "title": title,
                "collapsed": False,
                "gridPos": grid,
                "panels": [],
            }
        )
        x, y, tallest = 0, y + 1, 0
        for panel in row:
            if x + panel.width > 24:
                x, y, tallest = 0, y + tallest, 0
            panels.append(render_panel(panel, len(panels) + 1, x, y))
            x += panel.width
            tallest = max(tallest, panel.height)
        y += tallest
    return panels


def variable(name: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": name.capitalize(),
        "type": "query",
        "datasource": DATASOURCE,
        "query": {"query": query, "refId": f"variable-{name}"},
        "definition": query,
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".+",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
    }


def render() -> dict[str, Any]:
    return {
        "uid": "samplicator-overview",
        "title": "Samplicator",
        "description": "Where each datagram and each copy went.",
        "tags": ["samplicator", "netflow", "ipfix", "sflow"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "templating": {
            "list": [
                {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"},
                variable("job", "label_values(samplicator_build_info, job)"),
                variable("instance", 'label_values(samplicator_build_info{job=~"$job"}, instance)'),
                variable("listener", f"label_values(samplicator_receive_datagrams_total{{{SELECT}}}, listener)"),
                variable("receiver", f"label_values(samplicator_send_datagrams_total{{{SELECT}}}, receiver)"),
            ]
        },
        "annotations": {"list": []},
        "links": [],
        "panels": render_panels(),
    }


def text() -> str:
    return json.dumps(render(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    if sys.argv[1:] == ["--print"]:
        sys.stdout.write(text())
    else:
        TARGET.write_text(text())
