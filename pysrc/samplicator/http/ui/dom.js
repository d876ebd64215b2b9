// Elements and numbers. Text from the network gets into the page by textContent and attributes only, never as markup.

export function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false).map(asNode));
  return node;
}

function asNode(child) {
  return child instanceof Node ? child : document.createTextNode(String(child));
}

const whole = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en-US", { notation: "compact", maximumSignificantDigits: 4 });

export function count(value) {
  return value === null || value === undefined ? "" : whole.format(value);
}

// Of something per second. Small ones with the digits that matter.
export function rate(value) {
  if (value === null || value === undefined) return "";
  if (value >= 100_000) return short.format(value);
  return value >= 100 || value === 0 ? whole.format(value) : value.toFixed(value >= 10 ? 1 : 2);
}

export function bytes(value) {
  let unit = 0;
  for (; value >= 1024 && unit < 5; unit += 1) value /= 1024;
  return `${unit ? value.toFixed(value >= 100 ? 0 : 1) : whole.format(value)} ${["B", "KiB", "MiB", "GiB", "TiB", "PiB"][unit]}`;
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "";
  if (seconds < 120) return `${Math.max(0, seconds).toFixed(seconds < 10 ? 1 : 0)} s`;
  if (seconds < 7200) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 172_800) return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
  return `${Math.floor(seconds / 86_400)} days`;
}

export function moment(unix) {
  return unix ? new Date(unix * 1000).toLocaleString() : "";
}

// A state in a word, with a color and a shape of its own.
export function state(word, kind, why = "") {
  return el("span", { class: `state ${kind}`, title: why }, word);
}

export function cards(pairs) {
  return el("dl", { class: "cards" }, pairs.map(([name, value, note]) =>
    el("div", {}, el("dt", {}, name), el("dd", {}, value, note ? el("small", {}, ` ${note}`) : null))));
}

export function facts(pairs) {
  return el("dl", { class: "facts" }, pairs.filter(([, value]) => value !== "" && value !== null && value !== undefined)
    .map(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
}
