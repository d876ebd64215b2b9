// Words for what the API names in short.

export function reasonText(reason) {
  return reason.replaceAll("_", " ");
}

const KINDS = {
  up: "good", refusing: "bad", unreachable: "bad", looping: "bad", down: "bad",
  connected: "good", "not connected": "bad", "re-establishing": "bad",
};

// The kind of a state: its color and its shape.
export function kindOf(state, waiting = false) {
  if (waiting) return "idle";
  return KINDS[state] ?? "warn";
}
