// The first page: figures of now, the map, rates over 15 minutes.

import { get } from "./api.js";
import { Chart } from "./chart.js";
import { cards, el, rate } from "./dom.js";
import { drawMap } from "./map.js";

export class OverviewPage {
  constructor() {
    this.title = "Overview";
    this.every = 5;
    this.cards = el("div");
    this.map = el("div", { class: "map" });
    this.charts = [
      new Chart("Datagrams received, copies sent, per second", [
        { name: "received", measures: ["datagrams"], color: "--received" }, { name: "sent", measures: ["sent"], color: "--sent", dash: [6, 3] }]),
      new Chart("Not forwarded, per second", [
        { name: "dropped by the kernel", measures: ["kernel_drops"], color: "--drops" },
        { name: "failed copies", measures: ["failed"], color: "--failed", dash: [6, 3] },
        { name: "rejected, truncated", measures: ["rejected", "truncated"], color: "--quiet", dash: [2, 3] }]),
    ];
    this.node = el("div", {}, el("h1", {}, "Overview"), this.cards, el("h2", {}, "Now"), this.map,
      el("h2", {}, "The last 15 minutes"), el("div", { class: "charts" }, this.charts.map((chart) => chart.node)));
  }

  live(live) {
    const { totals } = live;
    const down = live.receivers.filter((one) => one.kind === "bad").length;
    this.cards.replaceChildren(cards([
      ["Received", rate(totals.datagrams), "datagrams/s"],
      ["Sent", rate(totals.sent), "copies/s"],
      ["Dropped by the kernel", alarm(rate(totals.kernel_drops), totals.kernel_drops), "/s"],
      ["Failed", alarm(rate(totals.failed), totals.failed), "copies/s"],
      ["No rule, denied", rate(totals.rejected), "datagrams/s"],
      ["Exporters", String(live.exporterCount)],
      ["Receivers", alarm(down ? `${live.receivers.length - down} of ${live.receivers.length}` : String(live.receivers.length), down), down ? "working" : ""],
    ]));
    const focused = this.map.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
    this.map.replaceChildren(drawMap(live));
    if (focused) [...this.map.querySelectorAll("a")].find((link) => link.getAttribute("href") === focused)?.focus();
  }

  async refresh() {
    const history = await get("/api/v1/history?kind=totals");
    for (const chart of this.charts) chart.update(history, history.series[0]);
  }

  again() {
    for (const chart of this.charts) chart.again();
  }

  close() {
    for (const chart of this.charts) chart.close();
  }
}

function alarm(text, is) {
  return is ? el("span", { class: "bad" }, text) : text;
}
