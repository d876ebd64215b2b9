// The SCTP associations of one receiver: to its primary and to its backup, for each exporter. All figures are those of /api/v1/sctp.

import { get, pages } from "./api.js";
import { count, el, state } from "./dom.js";
import { Table } from "./table.js";
import { kindOf } from "./words.js";

// Of both collectors together: these stand in one of the two rows only.
function whole(name, key) {
  return { name, value: (row) => row[key] ?? "", show: (row) => count(row[key]), number: true };
}

export class Associations {
  constructor(receiver) {
    this.receiver = receiver;
    this.table = new Table({
      caption: "Associations to the primary and the backup, for each exporter", search: "Search associations",
      key: (row) => `${row.exporter} ${row.role === "primary" ? 1 : 2}`,
      columns: [
        { name: "Exporter", value: (row) => row.exporter, whole: true },
        { name: "Collector", value: (row) => row.place, whole: true },
        { name: "Role", value: (row) => row.role, whole: true },
        // a backup that is not connected is not needed now
        {
          name: "State", value: (row) => row.state, whole: true,
          show: (row) => state(row.state, kindOf(row.state, row.state === "not connected"), row.why),
        },
        { name: "Flows", value: (row) => row.flows, show: flows, number: true },
        { name: "Messages", value: (row) => row.messages, show: (row) => count(row.messages), number: true },
        whole("Flows waiting", "waiting"),
        whole("Dropped: lack of SCTP resources", "dropped_resources"),
        whole("Dropped: primary & backup failure", "dropped_failure"),
        whole("Fail-overs", "fail_overs"),
        { name: "Last error", value: (row) => row.why },
      ],
    });
    this.more = el("p", { class: "quiet", role: "status" });
    this.node = el("section", { hidden: true }, el("h2", {}, "SCTP associations"), this.table.node, this.more);
  }

  async refresh() {
    const gateways = await get("/api/v1/gateways");
    this.node.hidden = !gateways.some((row) => row.gateway === "sctp" && row.side === "out" && row.name === this.receiver);
    if (this.node.hidden) return;
    const { rows, more } = await pages(`/api/v1/sctp?receiver=${encodeURIComponent(this.receiver)}`, "exports");
    this.table.update(rows.flatMap(lines));
    this.more.textContent = more ? "There are more associations than are listed here." : "";
  }
}

function lines(row) {
  const { exporter, waiting, dropped_resources, dropped_failure, fail_overs } = row;
  return row.collectors.map((one) => (one.role === "primary"
    ? { ...one, exporter, waiting, dropped_resources, dropped_failure }
    : { ...one, exporter, fail_overs }));
}

function flows(row) {
  return row.given_up ? `${count(row.flows)} (${count(row.given_up)} given up)` : count(row.flows);
}
