"""A flow stage, exporters with templates, receivers that sample or were injected into, and a collector behind each.

The flow stage is called by itself, through the probe extension. Used by tests/unit.
"""

from __future__ import annotations

from samplicator import _inside_flow as probe
from samplicator._inside_flow import FLOW_COUNTER_FIELDS

from support import flows as model
from support.flows import V9, Collector

ADDRESS, PORT = b"\x0a\0\0\1", 2055
START = 1_700_000_000 * 10**9
SECOND = 10**9
FIELDS = [(8, 4), (12, 4), (1, 4)]


def new(octets: int = 1 << 22, **bounds: int) -> probe.Flow:
    flow = probe.Flow(octets, **bounds)
    probe.tick(flow, START)
    return flow


def counters(flow: probe.Flow) -> dict[str, int]:
    return dict(zip(FLOW_COUNTER_FIELDS, flow.counters()[0], strict=True))


def template_sets(kind: int) -> list[bytes]:
    options = model.options_template(kind, 257, [(1, 4)], [(34, 4)])
    return [
        model.a_set(0 if kind == V9 else 2, model.template(256, FIELDS)),
        model.a_set(1 if kind == V9 else 3, options, pad=4),
    ]


def stream(kind: int, n: int, start: int = 0, every: int = 20, rows: int = 20, domain: int = 1) -> list[bytes]:
    """n data datagrams of so many records; templates and one options record in datagrams of their own, every so
    many.
    """
    out: list[bytes] = []
    sequence = start
    for i in range(n):
        if i % every == 0:
            sets = [*template_sets(kind), model.a_set(257, b"\0\0\0\1\0\0\0\x64")]
            out.append(model.v9(sequence, domain, *sets) if kind == V9 else model.ipfix(sequence, domain, *sets))
            sequence += 1  # v9: a packet; IPFIX: the options record
        body = model.a_set(256, *[(i * rows + k).to_bytes(12, "big") for k in range(rows)])
        out.append(model.v9(sequence, domain, body) if kind == V9 else model.ipfix(sequence, domain, body))
        sequence += 1 if kind == V9 else rows
    return out


class Receiver:
    """1-in-freq as sample_keep() counts, template-safe or not, renumbered or not; a collector at the end."""

    def __init__(
        self, flow: probe.Flow, identity: int, freq: int = 1, safe: bool = True, renumbers: bool = True
    ) -> None:
        self.flow, self.identity, self.freq, self.safe, self.renumbers = flow, identity, freq, safe, renumbers
        self.countdown = 0
        self.collector = Collector()
        self.data_sent = 0
        self.got: list[bytes] = []

    def take(self, seen: probe.Seen, payload: bytes) -> None:
        keep = self.safe and seen.always
        if not keep:
            keep = self.countdown == 0
            self.countdown = self.freq - 1 if keep else self.countdown - 1
            self.data_sent += keep
        if not keep:
            if self.renumbers:
                probe.leave_out(self.flow, seen, self.identity)
            return
        out = probe.keep(self.flow, seen, self.identity, payload) if self.renumbers else payload
        self.deliver(out)

    def deliver(self, payload: bytes) -> None:
        self.got.append(payload)
        self.collector.take(0, payload)


def run(flow: probe.Flow, payloads: list[bytes], receivers: list[Receiver]) -> None:
    for payload in payloads:
        seen = probe.observe(flow, ADDRESS, PORT, payload)
        for receiver in receivers:
            receiver.take(seen, payload)
