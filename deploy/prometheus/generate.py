"""Writes METRICS.md from samplicator.views.catalogue, after a change of it; a guard test says when that was forgotten.

.venv/bin/python deploy/prometheus/generate.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import yaml
from samplicator.views.catalogue import markdown
from samplicator.views.witness_metrics import WITNESS_METRICS

HEAD = """\
# Metrics

`GET /metrics`, Prometheus text or OpenMetrics. Every series that is known exists from the start, with 0. Beside these
the Python client's own `process_*` and `python_gc_*` are there; what the host knows (`node_netstat_Udp_*`,
`node_softnet_*`) is not repeated.

Two laws hold exactly whenever nothing is under way, and tests assert them after every run:

- per listener: `samplicator_receive_datagrams_total` = `samplicator_receive_truncated_datagrams_total`
  + `samplicator_receive_matched_datagrams_total` + the sum of `samplicator_receive_rejected_datagrams_total`
- per receiver: `samplicator_send_offered_datagrams_total` = `samplicator_send_datagrams_total`
  + the sum of `samplicator_send_skipped_datagrams_total` + the sum of `samplicator_send_failed_datagrams_total`

A scrape stops no worker. While datagrams flow, the two sides of a law differ by what is under way at that moment: one
batch of each worker at most (`batch`, 512 datagrams), in either direction. The difference does not add up: a lasting
one is a defect.

`samplicator_receive_kernel_drops_total` counts what was lost before it could be read; it is in no other series.

The table is written by generate.py from the one in `pysrc/samplicator/views/catalogue.py`.

"""

WITNESS = """
## The witness

`samplicator witness --http ADDRESS:PORT` on a collector's host exports the balance of each exporter, from the exporter
to the collector; scrape/witness.yaml asks for it. The relay does not have these series.

- Figures change every `--seconds` (10), and begin at zero with the witness.
- `receiver` is the relay's name for the collector. `exporter` has 1000 values at most, those with losses first; the
  others together are `_other`, which falls when one of them gets a series of its own.
- `wire` is what the collector's socket dropped and what the collector took. In `stage` several stages are joined by
  `_or_`: the loss was in one of them.

"""

RECORDED = """
## Recorded series

rules.yaml records these; they are cheap to ask for over a long time, and the alerts use them.

| series | expression |
|---|---|
"""


def recorded() -> str:
    """The recording rules as rows of a table."""
    groups = yaml.safe_load(Path(__file__).with_name("rules.yaml").read_text())["groups"]
    rules = [rule for group in groups for rule in group["rules"] if "record" in rule]
    return "".join(f"| {rule['record']} | `{' '.join(rule['expr'].split())}` |\n" for rule in rules)


def text() -> str:
    return HEAD + markdown() + WITNESS + markdown(WITNESS_METRICS) + RECORDED + recorded()


if __name__ == "__main__" and sys.argv[1:] == ["--print"]:
    sys.stdout.write(text())
elif __name__ == "__main__":
    Path(__file__).with_name("METRICS.md").write_text(text())
