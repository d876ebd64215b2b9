// The API of this daemon: only reading, only from the place that this page came from.

export async function get(path) {
  const answer = await fetch(path, { headers: { Accept: "application/json" }, cache: "no-store", credentials: "same-origin" });
  if (!answer.ok) throw new Error(`${path} answered ${answer.status}`);
  return answer.json();
}

// All pages of a list, up to `most` rows; more: whether there were others.
export async function pages(path, name, most = 10_000) {
  const rows = [];
  let after = null;
  do {
    const page = await get(after === null ? path : `${path}${path.includes("?") ? "&" : "?"}after=${after}`);
    rows.push(...page[name]);
    after = page.after;
  } while (after !== null && rows.length < most);
  return { rows, more: after !== null };
}

// Events once a second, with a new connection after a loss. Calls `heard` with each, `lost` when the daemon does not answer.
export function follow(path, heard, lost) {
  const source = new EventSource(path);
  source.addEventListener("live", (event) => heard(JSON.parse(event.data)));
  source.onerror = () => lost();
  return source;
}
