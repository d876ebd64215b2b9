// The ledger as a waterfall: what came, what was lost at each stage, what was sent. All figures are those of /api/v1/ledger.

import { count, el, svg } from "./dom.js";
import { get } from "./api.js";
import { reasonText } from "./words.js";

// parts: [[name, count, kind]]; what is left after them is the last line.
export function falls(label, total, parts, rest) {
  const lines = [[label, total, 0, total, "rest"]];
  let left = total;
  for (const [name, lost, kind] of parts) {
    if (!lost) continue;
    lines.push([name, -lost, left - lost, left, `part ${kind}`]);
    left -= lost;
  }
  lines.push([rest, left, 0, left, "rest"]);
  return el("dl", { class: "falls" }, lines.map(([name, value, from, to, kind]) => el("div", {},
    el("dt", {}, name),
    el("dd", { class: "bar" }, svg("svg", { viewBox: "0 0 1000 10", preserveAspectRatio: "none", "aria-hidden": "true" },
      svg("rect", { x: total ? (1000 * from) / total : 0, y: 1, width: total ? Math.max(to > from ? 1.5 : 0, (1000 * (to - from)) / total) : 0, height: 8, class: kind }))),
    el("dd", { class: "value" }, value < 0 ? `\u2212${count(-value)}` : count(value)))));
}

export class LedgerPage {
  constructor() {
    this.title = "Ledger";
    this.every = 2;
    this.parts = el("div");
    this.node = el("div", {}, el("h1", {}, "Ledger"),
      el("p", { class: "quiet" }, "Where was a datagram lost? Counts since the start of what is configured now."), this.parts);
  }

  async refresh() {
    const ledger = await get("/api/v1/ledger?limit=50");
    this.parts.replaceChildren(
      el("h2", {}, "Before samplicator, by the exporters\u2019 sequence numbers"), before(ledger),
      el("h2", {}, "In samplicator"), ...ledger.here.map(here),
      el("h2", {}, "To the receivers"),
      el("p", { class: "quiet" }, `Of the offered copies, ${count(ledger.templates_made_here)} are datagrams with replayed templates.`),
      ...ledger.after.map(after));
  }
}

function before(ledger) {
  const protocols = Object.entries(ledger.before);
  if (!protocols.length) return el("p", {}, "No flow telemetry has been seen.");
  return el("div", {},
    el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Lost before samplicator, by protocol" },
      el("table", {},
        el("thead", {}, el("tr", {}, ["Protocol", "Datagrams", "Lost", "Unit"].map((name, place) =>
          el("th", { scope: "col", class: place === 1 || place === 2 ? "number" : null }, name)))),
        el("tbody", {}, protocols.map(([name, row]) => el("tr", {}, el("th", { scope: "row" }, name),
          el("td", { class: "number" }, count(row.datagrams)), el("td", { class: row.lost ? "number bad" : "number" }, count(row.lost)),
          el("td", {}, row.unit)))))),
    ledger.exporters.length ? losers(ledger) : el("p", { class: "good" }, "No exporter has a gap in its numbers."));
}

function losers(ledger) {
  return el("details", { open: true },
    el("summary", {}, `Observation domains with losses or restarts: ${count(ledger.exporter_count)}`),
    el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Observation domains with losses" },
      el("table", {},
        el("thead", {}, el("tr", {}, ["Exporter", "Protocol", "Domain", "Lost", "Of", "Restarts"].map((name, place) =>
          el("th", { scope: "col", class: place > 2 ? "number" : null }, name)))),
        el("tbody", {}, ledger.exporters.map((row) => el("tr", {},
          el("th", { scope: "row" }, el("a", { href: `#/exporter/${encodeURIComponent(row.exporter)}` }, row.exporter), ` port ${row.port}`),
          el("td", {}, row.protocol), el("td", {}, String(row.domain)), el("td", { class: "number" }, `${count(row.lost)} ${row.unit}`),
          el("td", { class: "number" }, count(row.units)), el("td", { class: "number" }, count(row.restarts))))))));
}

function here(row) {
  return el("section", {}, el("h3", {}, `Listener ${row.listener}`),
    falls("arrived", row.datagrams + row.kernel_drops, [
      ["dropped by the kernel: buffer full", row.kernel_drops, ""], ["longer than max_datagram", row.truncated, ""],
      ["no rule matches", row.unmatched, "idle"], ["denied by a rule", row.denied, "idle"]], "matched"));
}

function after(row) {
  return el("section", {}, el("h3", {}, el("a", { href: `#/receiver/${encodeURIComponent(row.receiver)}` }, `Receiver ${row.receiver}`)),
    falls("offered", row.offered, [["skipped by freq", row.skipped, "idle"],
      ...Object.entries(row.failed).map(([reason, failed]) => [`failed: ${reasonText(reason)}`, failed, ""])], "sent"));
}
