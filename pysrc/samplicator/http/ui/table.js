// A table with search, sort by column, and a bound on the rows that are drawn. Rows are updated in place, so that focus and scroll stay.

import { count, el } from "./dom.js";

const MOST = 200; // rows on the page; the search finds those beyond

// columns: {name, value(row) for sorting, show(row) -> node or text, number: bool, whole: no line breaks in it}; key(row): what a row is, as text.
export class Table {
  constructor({ caption, columns, key, sort = 0, down = false, search = "Search" }) {
    Object.assign(this, { columns, key, sort, down, rows: [], bodies: new Map() });
    this.search = el("input", { type: "search", "aria-label": search, placeholder: search, oninput: () => this.draw() });
    this.found = el("span", { class: "quiet", role: "status" });
    this.heads = columns.map((column, place) =>
      el("th", { scope: "col", class: column.number ? "number" : null },
        el("button", { type: "button", onclick: () => this.by(place) }, column.name)));
    this.body = el("tbody");
    this.node = el("section", {},
      el("div", { class: "tools" }, this.search, this.found),
      el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
        el("table", {}, el("caption", {}, caption), el("thead", {}, el("tr", {}, this.heads)), this.body)));
  }

  by(place) {
    this.down = place === this.sort ? !this.down : Boolean(this.columns[place].number);
    this.sort = place;
    this.draw();
  }

  update(rows) {
    this.rows = rows;
    this.draw();
  }

  draw() {
    const wanted = this.search.value.trim().toLowerCase();
    const { value } = this.columns[this.sort];
    const found = wanted
      ? this.rows.filter((row) => this.columns.some((column) => String(column.value(row)).toLowerCase().includes(wanted)))
      : [...this.rows];
    found.sort((one, two) => compare(value(one), value(two)) || compare(this.key(one), this.key(two)));
    if (this.down) found.reverse();
    this.heads.forEach((head, place) => {
      if (place === this.sort) head.setAttribute("aria-sort", this.down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
    const shown = found.slice(0, MOST);
    const text = `${count(found.length)} of ${count(this.rows.length)}${found.length > MOST ? `, the first ${MOST} are shown` : ""}`;
    if (this.found.textContent !== text) this.found.textContent = text;
    this.place(shown);
  }

  place(shown) {
    const kept = new Map();
    let next = this.body.firstChild;
    for (const row of shown) {
      const key = this.key(row);
      const line = this.bodies.get(key) ?? { node: el("tr"), texts: [] };
      kept.set(key, line);
      this.columns.forEach((column, place) => this.cell(line, place, column, row));
      if (line.node === next) next = next.nextSibling;
      else this.body.insertBefore(line.node, next);
    }
    for (const [key, line] of this.bodies) if (!kept.has(key)) line.node.remove();
    this.bodies = kept;
  }

  cell(line, place, column, row) {
    const shown = column.show ? column.show(row) : String(column.value(row));
    const text = shown instanceof Node ? shown.outerHTML : String(shown);
    if (line.texts[place] === text) return;
    line.texts[place] = text;
    const kind = column.number ? "number" : column.whole ? "whole" : null;
    const cell = place === 0 ? el("th", { scope: "row", class: kind }, shown) : el("td", { class: kind }, shown);
    const before = line.node.children[place];
    if (before) before.replaceWith(cell);
    else line.node.append(cell);
  }
}

function compare(one, two) {
  if (typeof one === "number" && typeof two === "number") return one - two;
  return String(one).localeCompare(String(two), "en", { numeric: true });
}
