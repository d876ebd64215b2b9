"""Draws pictures of the dashboards from their JSON and from what Prometheus answers, with headless Chromium.

For the documents and for tests, where there is no Grafana: positions, titles, units, thresholds, mappings, legends and
annotations are those of the JSON, every value is Prometheus's answer to the panel's query. It is not Grafana's own
rendering: fonts, axes and spacing differ, and rows cannot be folded. Uses the standard library only.

    python3 deploy/grafana/draw.py http://127.0.0.1:9090/api/v1 FOLDER --minutes 15 --choose receiver=nfdump
"""

from __future__ import annotations

import argparse
import html
import json
import math
import re
import shutil
import subprocess
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

DASHBOARDS = Path(__file__).with_name("dashboards")
COLUMN, LINE, GAP, TOP = 60, 38, 8, 92  # pixels
WIDTH = 24 * COLUMN + GAP
PALETTE = ("#73bf69", "#f2cc0c", "#8ab8ff", "#ff780a", "#f2495c", "#5794f2", "#b877d9", "#fade2a", "#56a64b", "#ca95e5")
COLORS = {"green": "#73bf69", "red": "#f2495c", "orange": "#ff9830", "purple": "#b877d9", "blue": "#5794f2"}
TEXT, FAINT, CARD, EDGE = "#ccccdc", "#8e8ea0", "#181b1f", "#2c3235"
STYLE = f"""body{{margin:0;background:#111217;color:{TEXT};font:12px "DejaVu Sans",sans-serif}}
svg{{display:block}}svg text{{fill:{TEXT};font:11px "DejaVu Sans",sans-serif}}svg .f{{fill:{FAINT};font-size:10px}}
svg .t{{font-size:12px;font-weight:bold}}svg .h{{font-size:15px}}svg .b{{font-size:24px;font-weight:bold}}"""

Sample = tuple[float, float]
Series = tuple[str, Mapping[str, str], list[Sample]]
"""Legend, labels, and (time, value) without NaN."""


# ---- asking Prometheus as Grafana would


class Source:
    """One Prometheus, a range of time, and what is chosen of each variable."""

    def __init__(self, api: str, seconds: float, chosen: Mapping[str, str], least: int) -> None:
        self.api, self.seconds, self.chosen, self.least = api, seconds, chosen, least
        self.end = time.time()
        self.start = self.end - seconds
        self.step = max(1.0, seconds / 240)
        self.empty: list[str] = []
        self.marks: list[tuple[float, str, str]] = []

    def share(self, at: float) -> float:
        """Where a moment is in the range, 0 to 1."""
        return (at - self.start) / self.seconds

    def ask(self, path: str, **parameters: str) -> list[dict[str, Any]]:
        with urllib.request.urlopen(f"{self.api}/{path}?{urllib.parse.urlencode(parameters)}", timeout=30) as answer:
            result: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        return result

    def filled_in(self, expr: str) -> str:
        expr = expr.replace("$__rate_interval", f"{max(self.least, round(4 * self.step))}s")
        expr = expr.replace("$__range", f"{round(self.seconds)}s")
        return re.sub(r"\$(\w+)", lambda match: self.chosen.get(match[1], ".+"), expr)

    def over_time(self, panel: Mapping[str, Any]) -> list[Series]:
        found: list[Series] = []
        for target in panel["targets"]:
            rows = self.ask("query_range", query=self.filled_in(target["expr"]), **self._range())
            if not rows:
                self.empty.append(f"{panel['title']}: {target['expr']}")
            for row in rows:
                legend = re.sub(r"{{(\w+)}}", lambda m: row["metric"].get(m[1], ""), target["legendFormat"])  # noqa: B023
                samples = [(at, float(text)) for at, text in row["values"]]
                found.append((legend, row["metric"], [(at, value) for at, value in samples if math.isfinite(value)]))
        return found

    def now(self, panel: Mapping[str, Any]) -> list[list[dict[str, Any]]]:
        answers = [self.ask("query", query=self.filled_in(target["expr"])) for target in panel["targets"]]
        asked = zip(panel["targets"], answers, strict=True)
        self.empty += [f"{panel['title']}: {target['expr']}" for target, rows in asked if not rows]
        return answers

    def events(self, dashboard: Mapping[str, Any]) -> list[tuple[float, str, str]]:
        """(time, color, text) of what the annotations mark."""
        marks = []
        for each in dashboard["annotations"]["list"]:
            for row in self.ask("query_range", query=self.filled_in(each["expr"]), **self._range()):
                text = re.sub(r"{{(\w+)}}", lambda m: row["metric"].get(m[1], ""), each["titleFormat"])  # noqa: B023
                last = -math.inf
                for at, _ in row["values"]:
                    if at - last > 2 * self.step:
                        marks.append((at, COLORS.get(each["iconColor"], TEXT), text))
                    last = at
        return sorted(marks)

    def _range(self) -> dict[str, str]:
        return {"start": str(self.start), "end": str(self.end), "step": str(self.step)}


# ---- values as people read them


def scaled(value: float, base: float, names: Sequence[str]) -> str:
    for name in names:
        if abs(value) < base or name == names[-1]:
            return f"{value:.3g} {name}".strip() if abs(value) < 1000 else f"{value:,.0f} {name}".strip()
        value /= base
    raise AssertionError


def worded(value: float, unit: str) -> str:
    """A value in a unit of Grafana."""
    if unit == "percentunit":
        return f"{100 * value:.3g} %"
    if unit == "bytes":
        return scaled(value, 1024, ("B", "KiB", "MiB", "GiB"))
    if unit == "Bps":
        return scaled(value, 1000, ("B/s", "kB/s", "MB/s", "GB/s"))
    if unit in ("pps", "ops"):
        return scaled(value, 1000, ("p/s", "kp/s", "Mp/s") if unit == "pps" else ("/s", "k/s", "M/s"))
    if unit == "string":
        return f"{value:.0f}"
    if unit != "s" or value == 0:
        return scaled(value, 1000, ("", "K", "M", "G")) + (" s" if unit == "s" else "")
    if value >= 60:
        return f"{value / 60:.1f} min"
    return f"{value:.3g} s" if value >= 1 else f"{value * 1e3:.3g} ms" if value >= 1e-3 else f"{value * 1e6:.3g} µs"


def mapped(value: float, mappings: Sequence[Mapping[str, Any]]) -> tuple[str, str] | None:
    """Text and color that a state has instead of its number."""
    for mapping in mappings:
        word = mapping["options"].get(f"{value:g}")
        if word:
            return word["text"], COLORS.get(word["color"], TEXT)
    return None


def reached(value: float, steps: Sequence[Mapping[str, Any]]) -> str:
    colors = [step["color"] for step in steps if step["value"] is None or value >= step["value"]]
    return COLORS.get(colors[-1], TEXT) if colors else TEXT


def escaped(text: str, room: float = 1e9) -> str:
    """Cut to so many pixels."""
    most = int(room / 6.4)
    return html.escape(text if len(text) <= most else text[: max(0, most - 1)] + "…")


# ---- panels: each returns SVG for a box of w times h pixels


def words(
    x: float, y: float, text: str, kind: str = "f", *, end: bool = False, mid: bool = False, color: str = ""
) -> str:
    anchor = ' text-anchor="end"' if end else ' text-anchor="middle"' if mid else ""
    style = f' style="fill:{color}"' if color else ""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}"{anchor}{style}>{text}</text>'


def box(x: float, y: float, w: float, h: float, color: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(w, 1):.1f}" height="{max(h, 3):.1f}" fill="{color}"/>'


def stroke(path: str, color: str, more: str = "") -> str:
    return f'<path d="{path}" fill="none" stroke="{color}" {more}/>'


def curve(samples: Sequence[Sample], source: Source, x: float, y: float, w: float, h: float, top: float) -> str:
    points = []
    before = -math.inf
    for at, value in samples:
        letter = "M" if at - before > 3 * source.step else "L"
        points.append(f"{letter}{x + w * source.share(at):.1f} {y + h - h * min(value / top, 1):.1f}")
        before = at
    return "".join(points)


def under(legends: Sequence[str], w: float) -> list[tuple[float, int]]:
    """(x, line) of each legend below a panel."""
    places, left, line = [], 0.0, 0
    for legend in legends:
        room = 22 + 6.4 * len(legend)
        if left and left + room > w - 20:
            left, line = 0.0, line + 1
        places.append((left, line))
        left += room
    return places


def draw_lines(panel: Mapping[str, Any], source: Source, w: float, h: float) -> str:
    unit = panel["fieldConfig"]["defaults"]["unit"]
    series = source.over_time(panel)
    top = max((value for _, _, samples in series for _, value in samples), default=0) * 1.1 or 1.0
    places = under([legend for legend, _, _ in series], w)
    below = min(places[-1][1] + 1, 3) if places else 0
    x, y, width, height = 66.0, 34.0, w - 78, h - 60 - 15 * below
    parts = []
    for part in range(5):
        level = y + height - height * part / 4
        parts.append(stroke(f"M{x} {level:.1f}h{width:.1f}", EDGE))
        parts.append(words(x - 6, level + 4, worded(top * part / 4, unit), end=True))
    for part in range(1, 4):
        clock = time.strftime("%H:%M:%S", time.gmtime(source.start + source.seconds * part / 4))
        parts.append(words(x + width * part / 4, y + height + 14, clock, mid=True))
    for at, color, _ in source.marks:
        parts.append(stroke(f"M{x + width * source.share(at):.1f} {y}v{height:.1f}", color, 'stroke-dasharray="3 3"'))
    for place, (legend, _, samples) in enumerate(series):
        color = PALETTE[place % len(PALETTE)]
        parts.append(stroke(curve(samples, source, x, y, width, height, top), color, 'stroke-width="1.5"'))
        left, line = places[place]
        if line < below:
            low = y + height + 31 + 15 * line
            parts.append(stroke(f"M{10 + left} {low - 4}h12", color, 'stroke-width="3"'))
            parts.append(words(26 + left, low, escaped(legend)))
    return "".join(parts) if series else ""


def last(samples: Sequence[Sample]) -> float:
    return samples[-1][1] if samples else math.nan


def draw_number(panel: Mapping[str, Any], source: Source, w: float, h: float) -> str:
    defaults = panel["fieldConfig"]["defaults"]
    series = source.over_time(panel)
    value = last(series[0][2]) if series else math.nan
    word = mapped(value, defaults.get("mappings", ())) if math.isfinite(value) else ("no value", FAINT)
    text, color = word or (worded(value, defaults["unit"]), reached(value, defaults["thresholds"]["steps"]))
    behind = ""
    if panel["options"]["graphMode"] == "area" and series:
        top = max((v for _, v in series[0][2]), default=0) * 1.1 or 1.0
        behind = stroke(curve(series[0][2], source, 4, h - 40, w - 8, 36, top), color, 'opacity=".45"')
    return behind + words(w / 2, h / 2 + 14, text, "b", mid=True, color=color)


def draw_bars(panel: Mapping[str, Any], source: Source, w: float, h: float) -> str:
    unit = panel["fieldConfig"]["defaults"]["unit"]
    values = [(legend, last(samples)) for legend, _, samples in source.over_time(panel) if samples]
    top = max((value for _, value in values), default=0) or 1.0
    step = max(14.0, min(24.0, (h - 44) / max(1, len(values))))
    room = 0.32 * w
    parts = []
    for place, (legend, value) in enumerate(values[: int((h - 44) / step)]):
        y = 36 + step * place
        long = (w - room - 90) * value / top
        parts.append(words(room, y + step / 2 + 3, escaped(legend, room), end=True))
        parts.append(box(room + 8, y + 2, long, step - 5, COLORS["blue"]))
        parts.append(words(room + 14 + max(long, 1), y + step / 2 + 3, worded(value, unit)))
    return "".join(parts)


def draw_states(panel: Mapping[str, Any], source: Source, w: float, h: float) -> str:
    mappings = panel["fieldConfig"]["defaults"].get("mappings", ())
    series = source.over_time(panel)
    step = min(26.0, (h - 44) / max(1, len(series)))
    x, width = 190.0, w - 204
    parts = []
    for place, (legend, _, samples) in enumerate(series):
        y = 36 + step * place
        parts.append(words(x - 8, y + step / 2 + 3, escaped(legend, x), end=True))
        for number, (at, value) in enumerate(samples):
            if number and samples[number - 1][1] == value:
                continue
            end = next((t for t, v in samples[number:] if v != value), source.end)
            left, long = x + width * source.share(at), width * (end - at) / source.seconds
            text, color = mapped(value, mappings) or (f"{value:g}", TEXT)
            parts.append(box(left, y + 1, long, step - 3, color))
            if long > 7 * len(text):
                parts.append(words(left + 5, y + step / 2 + 3, text, color="#111"))
    return "".join(parts)


def draw_table(panel: Mapping[str, Any], source: Source, w: float, h: float) -> str:
    """The columns after the transformations: labels and values, renamed and ordered by `organize`."""
    organize = next(each["options"] for each in panel["transformations"] if each["id"] == "organize")
    order = sorted(organize["indexByName"], key=lambda name: organize["indexByName"][name])
    headings = [organize["renameByName"].get(name, name) for name in order]
    overrides = panel["fieldConfig"]["overrides"]
    rules = {each["matcher"]["options"]: {p["id"]: p["value"] for p in each["properties"]} for each in overrides}
    labels = [name for name in order if not name.startswith("Value")]
    columns = [name for name in order if name.startswith("Value")]
    rows: dict[tuple[str, ...], dict[str, float]] = {}
    for name, answer in zip(columns, source.now(panel), strict=True):
        for each in answer:
            key = tuple(each["metric"].get(label, "") for label in labels)
            rows.setdefault(key, {})[name] = float(each["value"][1])
    wide = (w - 20) / len(order)
    parts = [words(10 + wide * place, 46, escaped(each, wide)) for place, each in enumerate(headings)]
    for line, (key, values) in enumerate(sorted(rows.items())[: int((h - 54) / 22)]):
        y = 68 + 22 * line
        parts.append(stroke(f"M8 {y - 15}h{w - 16:.0f}", EDGE))
        for place, (name, heading) in enumerate(zip(order, headings, strict=True)):
            text, color = key[labels.index(name)] if name in labels else "", TEXT
            if name in values:
                rule = rules.get(heading, {})
                word = mapped(values[name], rule.get("mappings", ()))
                text, color = word or (worded(values[name], rule.get("unit", "none")), TEXT)
            parts.append(words(10 + wide * place, y, escaped(text, wide), "", color=color))
    return "".join(parts) if rows else ""


DRAW = {
    "timeseries": draw_lines,
    "stat": draw_number,
    "bargauge": draw_bars,
    "state-timeline": draw_states,
    "table": draw_table,
}


# ---- the whole


def page(dashboard: Mapping[str, Any], source: Source) -> tuple[str, int]:
    """HTML and its height in pixels."""
    marks = source.marks = source.events(dashboard)
    parts = []
    bottom = 0
    for panel in dashboard["panels"]:
        grid = panel["gridPos"]
        x, y = GAP + grid["x"] * COLUMN, TOP + grid["y"] * LINE
        w, h = grid["w"] * COLUMN - GAP, grid["h"] * LINE - GAP
        bottom = max(bottom, y + h)
        if panel["type"] == "row":
            parts.append(f'<text class="h" x="{x}" y="{y + 22}">▾ {escaped(panel["title"])}</text>')
            continue
        inside = DRAW[panel["type"]](panel, source, w, h)
        parts.append(
            f'<g transform="translate({x} {y})"><rect width="{w}" height="{h}" rx="3" fill="{CARD}" stroke="{EDGE}"/>'
            f'<text class="t" x="10" y="20">{escaped(panel["title"], w)}</text>{inside or NOTHING}</g>'
        )
    names = [each for each in dashboard["templating"]["list"] if each["type"] == "query"]
    chosen = "   ".join(f"{each['label']}: {source.chosen.get(each['name'], 'All')}" for each in names)
    links = "   ".join(f"→ {link['title']}" for link in dashboard["links"])
    happened = "   ".join(dict.fromkeys(f"┆ {text}" for _, _, text in marks)) or "no reload, restart or change of state"
    head = (
        f'<text x="{GAP}" y="26" style="font-size:18px;font-weight:bold">{escaped(dashboard["title"])}</text>'
        f'<text x="{WIDTH - GAP}" y="26" text-anchor="end" style="fill:#8ab8ff">{escaped(links)}</text>'
        f'<text x="{GAP}" y="50">{escaped(chosen, WIDTH)}</text>'
        f'<text class="f" x="{GAP}" y="72">{escaped(happened, WIDTH)}</text>'
    )
    foot = f'<text class="f" x="{GAP}" y="{bottom + 20}">{FOOT}</text>'
    svg = f'<svg width="{WIDTH}" height="{bottom + 30}" xmlns="http://www.w3.org/2000/svg">{head}{"".join(parts)}{foot}</svg>'
    return f"<!doctype html><meta charset=utf-8><style>{STYLE}</style>{svg}", bottom + 30


NOTHING = '<text x="10" y="60">No data</text>'
FOOT = (
    "Drawn from the dashboard's JSON and Prometheus's answers to its queries by deploy/grafana/draw.py; "
    "not a picture of Grafana itself."
)


def photograph(text: str, height: int, target: Path) -> None:
    """The page as a PNG, by headless Chromium."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("Chromium is not installed")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "page.html").write_text(text)
        flags = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-background-networking")
        subprocess.run(
            [
                *(chromium, *flags, f"--user-data-dir={folder}/profile", f"--window-size={WIDTH},{height}"),
                *(f"--screenshot={target.resolve()}", f"file://{folder}/page.html"),
            ],
            check=True,
            capture_output=True,
            timeout=60,
        )


def draw(api: str, folder: Path, seconds: float, chosen: Mapping[str, str], least: int = 60) -> list[str]:
    """Pictures of all dashboards; returns queries that had no answer. least: seconds of $__rate_interval; 60 is
    what Grafana takes for a scrape every 15 s.
    """
    folder.mkdir(parents=True, exist_ok=True)
    empty = []
    for path in sorted(DASHBOARDS.glob("*.json")):
        source = Source(api, seconds, chosen, least)
        text, height = page(json.loads(path.read_text()), source)
        photograph(text, height, folder / f"{path.stem}.png")
        empty += [f"{path.stem}: {each}" for each in source.empty]
    return empty


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draws pictures of the dashboards.")
    parser.add_argument("api", help="of Prometheus: http://HOST:PORT/api/v1")
    parser.add_argument("folder", type=Path, help="where the pictures go")
    parser.add_argument("--minutes", type=float, default=60, help="how far back (default: %(default)s)")
    parser.add_argument("--choose", action="append", default=[], metavar="NAME=REGEX", help="a variable's value")
    given = parser.parse_args()
    without = draw(given.api, given.folder, 60 * given.minutes, dict(each.split("=", 1) for each in given.choose))
    print("".join(f"no data: {each}\n" for each in without), end="")
