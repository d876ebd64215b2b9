// The map: exporters, listeners, receivers. Lines are as wide as their rate, colors are states. All of it is also in tables.

import { rate, svg } from "./dom.js";

const WIDE = { width: 1000, exporters: [8, 214], listeners: [376, 200], receivers: [738, 254], mark: 12, text: 22, thick: 26 };
const NARROW = { width: 368, exporters: [1, 108], listeners: [130, 108], receivers: [259, 108], mark: 9, text: 16, thick: 9 }; // of a phone
const COLUMNS = ["exporters", "listeners", "receivers"];
const phone = matchMedia("(max-width: 34em)");
let layout = WIDE;
const ROW = 44;
const HIGH = 34;
const TOP = 26;
const EXPORTERS = 12; // with a box of their own; all others share one
const RECEIVERS = 40;

export function drawMap(live) {
  layout = phone.matches ? NARROW : WIDE;
  const exporters = busiest(live);
  const receivers = inPools(live);
  const rows = Math.max(exporters.length, live.listeners.length, receivers.length, 1);
  const height = rows * ROW + TOP + 6;
  const at = { exporters: spread(exporters, height), listeners: spread(live.listeners, height), receivers: spread(receivers, height) };
  const listener = new Map(live.listeners.map((one, place) => [one.name, at.listeners[place]]));
  const receiver = new Map(receivers.map((one, place) => [one.key, { y: at.receivers[place], kind: one.kind }]));
  const most = Math.max(1, ...live.listeners.map((one) => one.rate ?? 0), ...receivers.map((one) => one.rate ?? 0));
  const line = (x1, y1, x2, y2, value, kind = "") => path(x1, y1, x2, y2, value ? Math.max(1, layout.thick * (value / most)) : 0.8, value || kind ? kind : "idle");
  const lines = [
    exporters.flatMap((one, place) => one.listeners.filter((heard) => listener.has(heard.name)).map((heard) =>
      line(right("exporters"), at.exporters[place], left("listeners"), listener.get(heard.name), heard.rate))),
    live.routes.filter((route) => listener.has(route.listener)).flatMap((route) =>
      [...route.receivers.map((name) => `receiver ${name}`), ...route.pools.map((name) => `pool ${name}`)].filter((key) => receiver.has(key))
        .map((key) => line(right("listeners"), listener.get(route.listener), left("receivers"), receiver.get(key).y, route.rates.datagrams,
          receiver.get(key).kind === "bad" ? "bad" : ""))),
  ];
  const boxes = [
    exporters.map((one, place) => box("exporters", at.exporters[place], one)),
    live.listeners.map((one, place) => box("listeners", at.listeners[place],
      { ...one, link: "#/listeners", note: one.state === "up" ? `${rate(one.rate)}/s${one.drops ? `, dropped ${rate(one.drops)}/s` : ""}` : one.state })),
    receivers.map((one, place) => box("receivers", at.receivers[place], one)),
  ];
  const heads = COLUMNS.map((name) => svg("text", { x: left(name), y: 14, class: "quiet" }, name[0].toUpperCase() + name.slice(1)));
  return svg("svg", { viewBox: `0 0 ${layout.width} ${height}`, role: "group", "aria-label": "Exporters, listeners and receivers, with their rates" }, heads, ...lines, ...boxes);
}

function busiest(live) {
  const first = live.exporters.slice(0, EXPORTERS).sort((one, two) => one.name.localeCompare(two.name, "en", { numeric: true }));
  const shown = first.map((one) => ({
    ...one, kind: one.lost ? "warn" : one.rate ? "good" : "idle", link: `#/exporter/${encodeURIComponent(one.name)}`,
    note: `${rate(one.rate)}/s${one.lost ? `, lost ${rate(one.lost)}/s` : ""}`,
  }));
  const more = live.exporterCount - shown.length;
  if (more > 0 && live.exporters.length) {
    const heard = new Map(live.listeners.map((one) => [one.name, one.rate ?? 0]));
    for (const one of shown) for (const each of one.listeners) heard.set(each.name, Math.max(0, (heard.get(each.name) ?? 0) - (each.rate ?? 0)));
    shown.push({ name: `${more} more`, kind: "good", note: "all exporters", link: "#/exporters", listeners: [...heard].map(([name, value]) => ({ name, rate: value })) });
  }
  return shown;
}

// A pool, then its members; a standby says for whom.
function inPools(live) {
  const one = (receiver) => ({
    ...receiver, key: `receiver ${receiver.name}`, link: `#/receiver/${encodeURIComponent(receiver.name)}`, note: note(receiver),
  });
  const rows = live.receivers.filter((receiver) => !receiver.pool).map(one);
  for (const pool of live.pools) {
    const members = live.receivers.filter((receiver) => receiver.pool === pool.name);
    const working = members.filter((member) => member.kind !== "bad").length;
    rows.push({ key: `pool ${pool.name}`, name: `pool ${pool.name}`, link: "#/receivers", rate: members.reduce((sum, member) => sum + (member.rate ?? 0), 0),
      kind: working === members.length ? "good" : working ? "warn" : "bad", note: `${pool.balance}, ${working} of ${members.length} working` });
    rows.push(...members.map((member) => ({ ...one(member), inside: true })));
  }
  if (rows.length <= RECEIVERS) return rows;
  return [...rows.slice(0, RECEIVERS), { key: "", name: `${rows.length - RECEIVERS} more`, note: "in the table", kind: "idle", rate: 0, link: "#/receivers" }];
}

function note(one) {
  const words = [one.waiting || one.state === "up" ? `${rate(one.rate)}/s` : one.state];
  if (one.failed) words.push(`failed ${rate(one.failed)}/s`);
  if (one.standbyFor) words.push(one.waiting ? `standby for ${one.standbyFor}` : `takes over from ${one.standbyFor}`);
  return words.join(", ");
}

function spread(rows, height) {
  const step = (height - TOP) / Math.max(rows.length, 1);
  return rows.map((_, place) => TOP + step * (place + 0.5));
}

function left(column) {
  return layout[column][0];
}

function right(column) {
  return layout[column][0] + layout[column][1];
}

function path(x1, y1, x2, y2, width, kind) {
  const bend = (x2 - x1) / 2;
  return svg("path", { d: `M${x1} ${y1}C${x1 + bend} ${y1} ${x2 - bend} ${y2} ${x2} ${y2}`, "stroke-width": width.toFixed(2), class: kind || null });
}

function box(column, y, { name, note, kind, link, inside = false }) {
  const [start, full] = layout[column];
  const step = inside ? layout.width / 72 : 0;
  const x = start + step;
  const width = full - step;
  const room = width - layout.text - 6;
  return svg("a", { href: link, "aria-label": `${name}: ${note}` },
    svg("rect", { x, y: y - HIGH / 2, width, height: HIGH, rx: 5 }),
    svg("circle", { cx: x + layout.mark, cy: y - 5, r: 4.5, class: `mark ${kind}` }),
    svg("text", { x: x + layout.text, y: y - 1 }, clipped(name, Math.floor(room / 6.8))),
    svg("text", { x: x + layout.text, y: y + 12, class: "quiet" }, clipped(note, Math.floor(room / 5.8))),
    svg("title", {}, `${name}: ${note}`));
}

function clipped(text, most) {
  return text.length > most ? `${text.slice(0, most - 1)}\u2026` : text;
}
