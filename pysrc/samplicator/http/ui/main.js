// Routes and the events of the daemon. A page has title, node, and where it needs them: live(event), refresh() every `every` seconds, close().

import { follow, get } from "./api.js";
import { ConfigurationPage, ExporterPage, ReceiverPage } from "./details.js";
import { el, state } from "./dom.js";
import { LedgerPage } from "./ledger.js";
import { ExportersPage, ListenersPage, ReceiversPage, SessionsPage } from "./lists.js";
import { model } from "./model.js";
import { OverviewPage } from "./overview.js";

const PAGES = [
  ["", "Overview", OverviewPage], ["exporters", "Exporters", ExportersPage], ["receivers", "Receivers", ReceiversPage],
  ["listeners", "Listeners", ListenersPage], ["sessions", "Sessions", SessionsPage], ["ledger", "Ledger", LedgerPage],
  ["configuration", "Configuration", ConfigurationPage],
];
const DETAILS = { exporter: [ExporterPage, "exporters"], receiver: [ReceiverPage, "receivers"] };
const THEMES = ["auto", "light", "dark"];

const place = (name) => document.getElementById(name);
let page = null;
let last = null;
let timer = 0;
let silent = false;
let failed = "";
let plan = ""; // whose gateways are known

function go() {
  const [kind, name] = location.hash.replace(/^#\//, "").split("/");
  const [, , Page] = PAGES.find(([key]) => key === kind) ?? PAGES[0];
  const detail = DETAILS[kind];
  page?.close?.();
  clearTimeout(timer);
  page = detail && name ? new detail[0](decodeURIComponent(name)) : new Page();
  place("main").replaceChildren(page.node);
  document.title = `${page.title} \u2013 samplicator`;
  const current = detail ? detail[1] : kind;
  for (const link of place("pages").children) {
    if (link.getAttribute("href") === `#/${current ?? ""}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  failed = "";
  if (last) page.live?.(last);
  again(page);
}

async function again(shown) {
  if (shown.refresh && shown === page) {
    try {
      await shown.refresh();
      failed = "";
    } catch (error) {
      failed = error.message;
    }
    trouble();
    if (shown === page) timer = setTimeout(again, shown.every * 1000, shown);
  }
}

function heard(event) {
  silent = false;
  last = model(event);
  const text = last.ready ? "ready" : `not ready: ${last.readyWhy}`;
  if (place("state").textContent !== text) place("state").replaceChildren(state(text, last.ready ? "good" : "bad"));
  page?.live?.(last);
  trouble();
  gateways(`${event.started_unix} ${event.config.generation}`);
}

// The page of sessions is offered where there is a gateway: where something uses TCP, TLS or SCTP.
function gateways(now) {
  if (plan === now) return;
  plan = now;
  const link = place("pages").querySelector('[href="#/sessions"]');
  get("/api/v1/gateways").then((rows) => (link.hidden = !rows.length), () => (plan = ""));
}

function trouble() {
  const text = silent ? "The daemon does not answer. The figures are the last ones; this page goes on when it answers again." : failed;
  const node = place("trouble");
  node.hidden = !text;
  if (node.textContent !== text) node.textContent = text;
}

function theme(next) {
  const root = document.documentElement;
  if (next === "auto") delete root.dataset.theme;
  else root.dataset.theme = next;
  place("theme").textContent = `Theme: ${next}`;
  page?.again?.();
}

let themed = 0;
place("theme").addEventListener("click", () => theme(THEMES[(themed = (themed + 1) % THEMES.length)]));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => page?.again?.());
place("pages").append(...PAGES.map(([key, name]) => el("a", { href: `#/${key}`, hidden: key === "sessions" }, name)));
addEventListener("hashchange", () => {
  go();
  place("main").focus({ preventScroll: true });
  scrollTo(0, 0);
});
theme("auto");
go();
get("/api/v1/status").then((status) => (place("version").textContent = status.version), () => {});
follow("/api/v1/events", heard, () => {
  silent = true;
  trouble();
});
