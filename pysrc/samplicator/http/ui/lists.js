// The tables: exporters, receivers, listeners, sessions.

import { get, pages } from "./api.js";
import { bytes, count, el, rate, state } from "./dom.js";
import { Table } from "./table.js";
import { kindOf } from "./words.js";

function number(name, value, show = (row) => rate(value(row))) {
  return { name, value, show, number: true };
}

function link(kind, name, text = name) {
  return el("a", { href: `#/${kind}/${encodeURIComponent(name)}` }, text);
}

class ListPage {
  constructor(title, text, table) {
    this.title = title;
    this.table = table;
    this.node = el("div", {}, el("h1", {}, title), el("p", { class: "quiet" }, text), table.node);
  }
}

export class ExportersPage extends ListPage {
  constructor() {
    super("Exporters", "The busiest exporters, one row per address. Lost: before samplicator, by sequence numbers.", new Table({
      caption: "Exporters", key: (row) => row.name, sort: 1, down: true, search: "Search exporters",
      columns: [
        { name: "Exporter", value: (row) => row.name, show: (row) => link("exporter", row.name) },
        number("Datagrams/s", (row) => row.rate),
        number("Bytes/s", (row) => row.bytes),
        number("Lost/s", (row) => row.lost, (row) => (row.lost ? el("span", { class: "bad" }, rate(row.lost)) : "0")),
        { name: "Protocols", value: (row) => row.protocols.join(", ") },
        { name: "Listeners", value: (row) => row.listeners.map((one) => one.name).join(", ") },
      ],
    }));
    this.more = el("p", { class: "quiet", role: "status" });
    this.node.append(this.more);
  }

  live(live) {
    this.table.update(live.exporters);
    const rest = live.exporterCount - live.exporters.length;
    this.more.textContent = rest > 0 ? `${count(rest)} exporters with smaller rates are not listed here; "samplicator exporters" lists all.` : "";
  }
}

export class ReceiversPage extends ListPage {
  constructor() {
    super("Receivers", "Copies per second, and the state of each receiver.", new Table({
      caption: "Receivers", key: (row) => row.name, search: "Search receivers",
      columns: [
        { name: "Receiver", value: (row) => row.name, show: (row) => link("receiver", row.name) },
        { name: "State", value: (row) => row.state, show: (row) => state(row.waiting ? "waiting" : row.state, row.kind, row.why) },
        number("Sent/s", (row) => row.rate),
        number("Failed/s", (row) => row.failed, (row) => (row.failed ? el("span", { class: "bad" }, rate(row.failed)) : "0")),
        number("Skipped/s", (row) => row.skipped),
        { name: "Address", value: (row) => row.address },
        { name: "Role", value: (row) => row.role },
      ],
    }));
  }

  live(live) {
    this.table.update(live.receivers);
  }
}

export class ListenersPage extends ListPage {
  constructor() {
    super("Listeners", "Datagrams per second.", new Table({
      caption: "Listeners", key: (row) => row.name, search: "Search listeners",
      columns: [
        { name: "Listener", value: (row) => row.name },
        { name: "State", value: (row) => row.state, show: (row) => state(row.state, row.kind, row.why) },
        number("Received/s", (row) => row.rate),
        number("Matched/s", (row) => row.matched),
        number("Rejected/s", (row) => row.rejected),
        number("Kernel drops/s", (row) => row.drops, (row) => (row.drops ? el("span", { class: "bad" }, rate(row.drops)) : "0")),
        { name: "Sockets", value: (row) => row.sockets.join(", ") },
      ],
    }));
  }

  live(live) {
    this.table.update(live.listeners);
  }
}

export class SessionsPage extends ListPage {
  constructor() {
    super("Sessions", "Connections by TCP, TLS and SCTP: in from exporters, and out to collectors, where each exporter has its own.", new Table({
      caption: "Sessions", key: (row) => `${row.side} ${row.gateway} ${row.name} ${row.exporter} ${row.peer}`, search: "Search sessions",
      columns: [
        { name: "Listener or receiver", value: (row) => row.name, show: (row) => (row.side === "out" ? link("receiver", row.name) : row.name) },
        { name: "Transport", value: (row) => `${row.gateway} ${row.side}`, whole: true },
        { name: "Exporter", value: (row) => row.exporter, whole: true },
        { name: "Peer", value: (row) => row.peer, whole: true },
        { name: "State", value: word, whole: true, show: (row) => state(word(row), row.backup_in_use ? "warn" : kindOf(row.state), row.why) },
        number("Messages", (row) => row.messages, (row) => count(row.messages)),
        number("Bytes", (row) => row.octets, (row) => bytes(row.octets)),
        number("Waiting", (row) => row.queue_bytes, (row) => bytes(row.queue_bytes)),
        { name: "Why", value: (row) => row.why },
      ],
    }));
    this.every = 5;
    this.more = el("p", { class: "quiet", role: "status" });
    this.node.append(this.more);
  }

  async refresh() {
    const gateways = await get("/api/v1/gateways");
    const { rows, more } = await pages("/api/v1/sessions", "sessions");
    this.table.node.hidden = !gateways.length;
    this.table.update(rows);
    const rest = more ? "There are more sessions than are listed here." : "";
    this.more.textContent = gateways.length ? rest : "No listener and no receiver uses TCP, TLS or SCTP.";
  }
}

function word(row) {
  return row.backup_in_use ? "backup in use" : row.state;
}
