// One exporter, one receiver, the configuration.

import { get, pages } from "./api.js";
import { Associations } from "./associations.js";
import { Chart } from "./chart.js";
import { bytes, count, duration, el, facts, moment, state } from "./dom.js";
import { falls } from "./ledger.js";
import { kindOf, reasonText } from "./words.js";

const TEMPLATES = 500; // observation domains on the page at most

class DetailPage {
  constructor(title, charts) {
    this.title = title;
    this.every = 5;
    this.charts = charts;
    this.parts = el("div");
    this.node = el("div", {}, el("h1", {}, title), el("div", { class: "charts" }, charts.map((chart) => chart.node)), this.parts);
  }

  async draw(kind, name, parts) {
    const history = await get(`/api/v1/history?kind=${kind}&name=${encodeURIComponent(name)}`);
    for (const chart of this.charts) chart.update(history, history.series[0]);
    const open = [...this.parts.querySelectorAll("details[open]")].map((node) => node.dataset.key);
    this.parts.replaceChildren(...parts);
    for (const node of this.parts.querySelectorAll("details")) if (open.includes(node.dataset.key)) node.open = true;
  }

  again() {
    for (const chart of this.charts) chart.again();
  }

  close() {
    for (const chart of this.charts) chart.close();
  }
}

export class ExporterPage extends DetailPage {
  constructor(name) {
    super(`Exporter ${name}`, [
      new Chart("Datagrams per second", [{ name: "received", measures: ["datagrams"], color: "--received" }]),
      new Chart("Lost before samplicator, per second", [{ name: "lost", measures: ["lost"], color: "--drops" }]),
    ]);
    this.name = name;
  }

  async refresh() {
    const where = encodeURIComponent(this.name);
    const { rows, more } = await pages(`/api/v1/exporters?exporter=${where}`, "exporters", TEMPLATES);
    const taught = await pages(`/api/v1/templates?exporter=${where}`, "domains", TEMPLATES);
    const parts = rows.length ? rows.map(domain) : [el("p", {}, "No flow telemetry of this exporter is known. It may send something else, or be forgotten.")];
    if (more) parts.push(el("p", { class: "quiet" }, "There are more observation domains than are shown here."));
    await this.draw("exporters", this.name, [...parts, el("h2", {}, "Templates"), ...templates(taught.rows)]);
  }
}

function domain(row) {
  return el("section", {}, el("h2", {}, `${row.protocol}, domain ${row.domain}, port ${row.port}`), facts([
    ["Listener", row.listener], ["Matched by a rule", row.matched ? "yes" : el("span", { class: "bad" }, "no: nothing of it is forwarded")],
    ["Last datagram", `${duration(row.silent_seconds)} ago`], ["First seen", moment(row.first_seen_unix)],
    ["Datagrams", `${count(row.datagrams)}, ${bytes(row.bytes)}, mean ${Math.round(row.mean_bytes)} bytes`],
    ["Units", row.numbered ? `${count(row.units)} ${row.unit}` : "it sends no sequence numbers"],
    ["Lost", row.numbered ? (row.lost ? el("span", { class: "bad" }, `${count(row.lost)} ${row.unit}`) : "0") : ""],
    ["Late, repeated", `${count(row.late)}, ${count(row.repeated)}`], ["Restarts", count(row.restarts)],
    ["Template not known", row.unknown ? el("span", { class: "warn" }, `${count(row.unknown)} datagrams`) : "0 datagrams"],
    ["Malformed", `${count(row.malformed)} datagrams`], ["Agent", row.agent],
    ["Up since", row.uptime_seconds === null ? "" : duration(row.uptime_seconds)],
    ["Its clock", row.clock_skew_seconds === null ? "" : `${row.clock_skew_seconds > 0 ? "+" : ""}${row.clock_skew_seconds.toFixed(1)} s`],
    ["Templates", `${count(row.templates)}, options ${count(row.options_templates)}, options data ${count(row.options_data)}`],
  ]));
}

function templates(domains) {
  const found = domains.flatMap((one) => one.templates.map((template) => [one, template]));
  if (!found.length) return [el("p", {}, "None.")];
  return found.map(([one, template]) => el("details", { "data-key": `${one.place} ${template.id}` },
    el("summary", {}, `${template.id} in domain ${one.domain}: ${template.fields.length} fields, ${template.record_bytes === null ? "variable length" : `${template.record_bytes} bytes`}${template.kind === "template" ? "" : ", options"}`),
    el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `Fields of template ${template.id}` },
      el("table", {}, el("thead", {}, el("tr", {}, ["Field", "Element", "Enterprise", "Bytes"].map((name) => el("th", { scope: "col" }, name)))),
        el("tbody", {}, template.fields.map((field) => el("tr", {}, el("th", { scope: "row" }, field.scope ? `${field.name} (scope)` : field.name),
          el("td", {}, String(field.element)), el("td", {}, field.enterprise ? String(field.enterprise) : "IANA"),
          el("td", {}, field.bytes === null ? "variable" : String(field.bytes)))))))));
}

export class ReceiverPage extends DetailPage {
  constructor(name) {
    super(`Receiver ${name}`, [
      new Chart("Copies per second", [{ name: "sent", measures: ["sent"], color: "--sent" }, { name: "skipped", measures: ["skipped"], color: "--quiet", dash: [6, 3] }]),
      new Chart("Failed copies per second", [{ name: "failed", measures: ["failed"], color: "--drops" }]),
    ]);
    this.name = name;
    this.states = []; // what this page has seen, newest first
    this.associations = new Associations(name);
    this.node.append(this.associations.node);
  }

  async refresh() {
    const row = (await get("/api/v1/receivers")).find((one) => one.name === this.name);
    if (!row) {
      this.parts.replaceChildren(el("p", {}, "There is no receiver of this name now."));
      this.associations.node.hidden = true;
      return;
    }
    const failed = Object.entries(row.counters).filter(([name]) => name.startsWith("failed_"))
      .map(([name, value]) => [`failed: ${reasonText(name.slice(7))}`, value, ""]);
    await this.draw("receivers", this.name, [
      facts([
        ["State", state(row.waiting ? "waiting" : row.state, kindOf(row.state, row.waiting), row.state_why)], ["Why", row.state_why],
        ["Since", moment(row.state_since_unix)], ["Address", `${row.address} port ${row.port || "?"}`],
        ["Configured as", row.host === row.address ? "" : row.host], ["Source", row.source === "spoof" ? "the exporters\u2019 addresses (spoofed)" : "this host\u2019s address"],
        ["Engine", `${row.engine}${row.engine_why ? `: ${row.engine_why}` : ""}`], ["Next hop", row.link],
        ["Largest packet", row.mtu ? `${row.mtu} bytes${row.mtu_why ? `: ${row.mtu_why}` : ""}` : ""],
        ["Features given up", row.gave_up.join(", ")], ["Standby for", row.standby_for], ["Take-overs", row.standby_for ? count(row.takeovers) : ""],
      ]),
      el("h2", {}, "Copies"), falls("offered", row.counters.offered, [["skipped by freq", row.counters.skipped, "idle"], ...failed], "sent"),
      el("h2", {}, "States seen while this page is open"), this.seen(row),
    ]);
    await this.associations.refresh();
  }

  seen(row) {
    const word = row.waiting ? "waiting" : row.state;
    const [latest] = this.states; // the time of the same change differs a little from answer to answer
    if (latest?.word !== word || Math.abs(latest.since - row.state_since_unix) > 0.5) {
      this.states.unshift({ word, why: row.state_why, kind: kindOf(row.state, row.waiting), since: row.state_since_unix });
      this.states.length = Math.min(this.states.length, 50);
    }
    return el("ul", {}, this.states.map((one) => el("li", {}, `${moment(one.since)} `, state(one.word, one.kind), one.why ? ` ${one.why}` : "")));
  }
}

export class ConfigurationPage {
  constructor() {
    this.title = "Configuration";
    this.every = 10;
    this.parts = el("div");
    this.node = el("div", {}, el("h1", {}, "Configuration"), this.parts);
  }

  async refresh() {
    const [config, status] = await Promise.all([get("/api/v1/config"), get("/api/v1/status")]);
    const { generation, last_reload_successful: good, last_reload_success_unix: when, reloads, reload_failures: failures } = status.config;
    this.parts.replaceChildren(
      facts([
        ["From", config.origin], ["Files", config.files.join(", ")], ["SHA-256", config.sha256], ["Generation", String(generation)],
        ["Last reload", reloads + failures ? (good ? `${moment(when)}, successful` : el("span", { class: "bad" }, "refused; the configuration before it runs")) : "none since the start"],
      ]),
      el("h2", {}, `Warnings: ${config.warnings.length}`),
      config.warnings.length ? el("ul", {}, config.warnings.map((text) => el("li", { class: "warn" }, text))) : el("p", {}, "None."),
      el("h2", {}, "As loaded, with all defaults"), el("pre", { tabindex: "0" }, JSON.stringify(config.config, null, 2)),
      el("h2", {}, "What the start said"), el("pre", { tabindex: "0" }, status.startup));
  }
}
