// An event of /api/v1/events in the words of the pages. Nothing is computed that the daemon has not said, but sums for one address.

import { kindOf } from "./words.js";

export function model(event) {
  const pools = event.pools.map((pool) => ({ name: pool.name, balance: pool.balance, members: pool.members.map((one) => one.receiver) }));
  const pool = new Map(pools.flatMap((one) => one.members.map((name) => [name, one.name])));
  return {
    ready: event.ready,
    readyWhy: event.ready_why,
    generation: event.config.generation,
    warnings: event.config.warnings,
    totals: event.totals,
    exporterCount: event.exporter_count,
    sending: event.sending,
    leftOut: event.left_out,
    pools,
    routes: event.routes,
    listeners: event.listeners.map((one) => ({
      name: one.name, state: one.state, kind: kindOf(one.state), why: one.state_why, sockets: one.sockets,
      rate: one.rates.datagrams, matched: one.rates.matched, rejected: one.rates.rejected, drops: one.rates.kernel_drops,
    })),
    receivers: event.receivers.map((one) => ({
      name: one.name, state: one.state, kind: kindOf(one.state, one.waiting), why: one.state_why, address: one.place, waiting: one.waiting,
      standbyFor: one.standby_for, pool: pool.get(one.name) ?? "", rate: one.rates.sent, failed: one.rates.failed, skipped: one.rates.skipped,
      role: role(one, pool.get(one.name)),
    })),
    exporters: byAddress(event.exporters),
  };
}

function role(one, pool) {
  if (one.standby_for) return `standby for ${one.standby_for}`;
  return pool ? `in pool ${pool}` : "";
}

// One that two listeners hear has a row for each in the event.
function byAddress(rows) {
  const found = new Map();
  for (const row of rows) {
    const one = found.get(row.exporter) ?? { name: row.exporter, rate: null, bytes: null, lost: null, protocols: [], listeners: [], silent: Infinity };
    one.rate = add(one.rate, row.rates.datagrams);
    one.bytes = add(one.bytes, row.rates.bytes);
    one.lost = add(one.lost, row.rates.lost);
    one.protocols = [...new Set([...one.protocols, ...row.protocols])];
    if (row.listener !== null) one.listeners.push({ name: row.listener, rate: row.rates.datagrams });
    one.silent = Math.min(one.silent, row.silent_seconds);
    found.set(row.exporter, one);
  }
  return [...found.values()];
}

function add(sum, value) {
  return value === null ? sum : (sum ?? 0) + value;
}
