// Rates over 15 minutes, drawn by uPlot. The figures are those of /api/v1/history.

import uPlot from "./vendor/uplot.js";
import { el, rate } from "./dom.js";

const WINDOW = 900; // seconds

// lines: {name, measure, color: a CSS variable, add: more measures whose rates are added}
export class Chart {
  constructor(title, lines) {
    this.lines = lines;
    this.node = el("figure", {}, el("figcaption", {}, title));
    this.title = title;
    this.width = new ResizeObserver(() => this.fit());
    this.width.observe(this.node);
    this.looks = matchMedia("(prefers-color-scheme: dark)");
  }

  update(history, series) {
    const rates = series?.rates ?? {};
    this.data = [history.times_unix, ...this.lines.map((line) => sum(line.measures.map((measure) => rates[measure] ?? [])))];
    if (!this.plot) this.make();
    else this.plot.setData(this.data);
    this.latest();
    this.describe();
  }

  // Below the picture, where nobody points into it: the last values.
  latest() {
    const idx = this.data[0].length - 1;
    if (idx >= 0 && !(this.plot.cursor.left >= 0)) this.plot.setLegend({ idx }, false);
  }

  // What a screen reader says in place of the picture.
  describe() {
    const parts = this.lines.map((line, place) => {
      const known = this.data[place + 1].filter((value) => value !== null);
      if (!known.length) return `${line.name}: no samples yet`;
      return `${line.name}: now ${rate(known.at(-1))}, highest ${rate(Math.max(...known))}`;
    });
    this.plot.root.setAttribute("role", "img");
    this.plot.root.setAttribute("aria-label", `${this.title}. ${parts.join("; ")}.`);
  }

  make() {
    const style = getComputedStyle(document.documentElement);
    const color = (name) => style.getPropertyValue(name).trim();
    const clock = new Intl.DateTimeFormat([], { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
    const axis = { stroke: color("--quiet"), grid: { stroke: color("--line"), width: 0.5 }, ticks: { stroke: color("--line"), width: 0.5 } };
    this.plot?.destroy();
    this.plot = new uPlot({
      width: this.room(),
      height: 190,
      cursor: { y: false },
      axes: [{ ...axis, values: (_, values) => values.map((unix) => clock.format(new Date(unix * 1000))), incrs: [60, 180, 300, 900] }, { ...axis, size: 62, values: (_, values) => values.map(rate) }],
      scales: { x: { range: (_, __, high) => [(high ?? Date.now() / 1000) - WINDOW, high ?? Date.now() / 1000] }, y: { range: (_, low, high) => [0, Math.max(high ?? 0, 1) * 1.08] } },
      series: [
        { value: (_, unix) => (unix ? new Date(unix * 1000).toLocaleTimeString() : "") },
        ...this.lines.map((line) => ({
          label: line.name, stroke: color(line.color), width: 1.5, dash: line.dash, points: { show: false },
          value: (_, value) => (value === null || value === undefined ? "" : rate(value)),
        })),
      ],
      hooks: { setCursor: [() => this.plot && this.latest()] },
    }, this.data, this.node);
  }

  // Colors follow the theme.
  again() {
    if (this.plot) {
      this.make();
      this.latest();
      this.describe();
    }
  }

  room() {
    return Math.max(220, this.node.clientWidth - 18);
  }

  fit() {
    if (this.plot && this.plot.width !== this.room()) this.plot.setSize({ width: this.room(), height: 190 });
  }

  close() {
    this.width.disconnect();
    this.plot?.destroy();
  }
}

function sum(columns) {
  if (columns.length === 1) return columns[0];
  return columns[0].map((_, place) => {
    const values = columns.map((column) => column[place]);
    return values.every((value) => value === null) ? null : values.reduce((total, value) => total + (value ?? 0), 0);
  });
}
