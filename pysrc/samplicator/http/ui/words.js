// Words for what the API names in short.

export function reasonText(reason) {
  return reason.replaceAll("_", " ");
}

// The kind of a state: its color and its shape.
export function kindOf(state, waiting = false) {
  if (waiting) return "idle";
  return { up: "good", refusing: "bad", unreachable: "bad", looping: "bad", down: "bad", "partly down": "warn" }[state] ?? "warn";
}
