"""What is measured: traffic shapes, relays, and the tables of cases that combine them.

The one place to add to: a new engine or receive mode is one line in RELAYS, a new traffic shape one line in TRAFFICS,
a new comparison one line in TABLES. Pure data; `run` reads it, `lab` and `measure` know how to carry it out.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Traffic:
    """What the exporters send. `size` is MIN or MIN-MAX payload bytes; `pcap` (a glob) replays captures instead."""

    name: str
    about: str
    exporters: int
    run: int
    size: str = "1400"
    pcap: str = ""
    cold: bool = False  # of many exporters, most are not seen before the measurement
    own_ports: bool = False  # exporter i sends from port SOURCE_PORT + i, else all from SOURCE_PORT


@dataclass(frozen=True)
class Relay:
    """One way to relay. `kind`: classic, bare, samplicator, pmacct, nfcapd.

    `spoof` lists the modes it can do. For samplicator, `receiver`, `listener` and `datapath` are extra TOML settings of
    those tables; for the C tools `options` are extra arguments, with {next_hop} for the collector's link address and
    `ring_drop` for the ingress drop that a ring of theirs needs (samplicator installs its own). `rules`: how many, of
    which only the last fires. `processes`: so many of a C tool, one a CPU, share the listener's port. `tap`: arguments
    of a `samplicator tap` that looks on, on the other CPU. `frames`: its copies reach the collector as frames of XDP's.
    `like` is the bare loop of the same kind, the limit it is held against.
    """

    name: str
    kind: str
    spoof: tuple[bool, ...] = (True, False)
    options: tuple[str, ...] = ()
    ring_drop: bool = False
    like: str = ""
    receiver: dict[str, object] = field(default_factory=dict)
    listener: dict[str, object] = field(default_factory=dict)
    datapath: dict[str, object] = field(default_factory=dict)
    rules: int = 1
    processes: int = 1
    tap: tuple[str, ...] | None = None
    frames: bool = False


@dataclass(frozen=True)
class Case:
    """Every relay in `relays` gets the same traffic, interleaved run by run. `datagrams` is the drain's fill."""

    traffic: str
    spoof: bool
    receivers: int
    relays: tuple[str, ...]
    datagrams: int = 60000
    offload: bool = True
    ipv6: bool = False
    exporters: int = 0

    @property
    def name(self) -> str:
        parts = [self.traffic, "spoofed" if self.spoof else "unspoofed", f"{self.receivers}r"]
        if self.ipv6:
            parts.append("ipv6")
        if not self.offload:
            parts.append("no-offload")
        if self.exporters:
            parts.append(f"{self.exporters}exporters")
        return "-".join(parts)


TRAFFICS = {
    t.name: t
    for t in (
        Traffic("bursts", "16 exporters, runs of 16, 1400 bytes", 16, 16),
        Traffic("bursts46", "4 exporters, runs of 46, 1400 bytes", 4, 46),
        Traffic("worst", "500 exporters one by one, sizes 60-1468 at random", 500, 1, "60-1468"),
        Traffic("small", "500 exporters one by one, 200 bytes", 500, 1, "200"),
        Traffic("ports", "as bursts, every exporter from a port of its own", 16, 16, own_ports=True),
        Traffic("fresh", "every datagram from a new exporter, 200 bytes", 100000, 1, "200", cold=True),
        Traffic("mix", "the repo's captures from 50 exporters", 50, 8, pcap="pysrc/samplicator/captures/*.pcap"),
        Traffic(
            "netflow9",
            "the repo's NetFlow v9 capture from 50 exporters",
            50,
            8,
            pcap="pysrc/samplicator/captures/netflow9.pcap",
        ),
    )
}


def _with_rules(relay: Relay, rules: int) -> Relay:
    return replace(relay, name=f"{relay.name}-{rules}-rules", rules=rules)


_PACKET = ("--device-out", "r1", "--next-hop", "{next_hop}")
_RING = ("--receive", "ring", "--device", "r0", "--ring-blocks", "512")

# A drain fills the ring while nobody reads.
_RING_BUFFER: dict[str, object] = {"ring_buffer": "512MiB"}

# samplicator relays use the engine named; "auto" is what an operator gets by default.
RELAYS = {
    r.name: r
    for r in (
        Relay("classic", "classic"),
        Relay("bare-plain", "bare", options=("--send", "plain")),
        Relay("bare-segment", "bare", options=("--send", "segment")),
        Relay("bare-packet", "bare", (True,), ("--send", "packet", *_PACKET)),
        Relay("bare-packet-bypass", "bare", (True,), ("--send", "packet", *_PACKET, "--bypass")),
        Relay("bare-ring-plain", "bare", options=("--send", "plain", *_RING), ring_drop=True),
        Relay("bare-ring-segment", "bare", options=("--send", "segment", *_RING), ring_drop=True),
        Relay("bare-ring-packet", "bare", (True,), ("--send", "packet", *_PACKET, *_RING), ring_drop=True),
        Relay(
            "bare-ring-packet-bypass",
            "bare",
            (True,),
            ("--send", "packet", *_PACKET, "--bypass", *_RING),
            ring_drop=True,
        ),
        Relay("udp", "samplicator", (False,), receiver={"engine": "udp"}, like="bare-segment"),
        Relay("raw", "samplicator", (True,), receiver={"engine": "raw"}, like="bare-plain"),
        Relay("auto", "samplicator", like="bare-segment"),
        Relay("packet", "samplicator", (True,), receiver={"engine": "packet"}, like="bare-packet"),
        Relay("transparent", "samplicator", (True,), receiver={"engine": "transparent"}, like="bare-segment"),
        Relay("ring", "samplicator", listener={"receive": "ring"}, datapath=_RING_BUFFER, like="bare-ring-segment"),
        Relay(
            "ring-packet",
            "samplicator",
            (True,),
            receiver={"engine": "packet"},
            listener={"receive": "ring"},
            datapath=_RING_BUFFER,
            like="bare-ring-packet",
        ),
        Relay("copier", "samplicator", (True,), datapath={"replicate": "copier"}),
        Relay("copier-delay", "samplicator", (True,), datapath={"replicate": "copier", "max_delay": "auto"}),
        Relay("tcx", "samplicator", (True,), datapath={"replicate": "tcx"}),
        Relay("xdp", "samplicator", (True,), datapath={"replicate": "xdp"}, frames=True),
        Relay("auto-delay", "samplicator", datapath={"max_delay": "auto"}, like="bare-segment"),
        Relay("auto-2-workers", "samplicator", datapath={"workers": 2, "cpus": []}, like="bare-segment-2"),
        Relay("bare-segment-2", "bare", options=("--send", "segment", "--share-port"), processes=2),
        Relay("auto-tap", "samplicator", tap=(), like="bare-segment"),
        Relay("auto-tap-receiver", "samplicator", tap=("--receiver", "r0"), like="bare-segment"),
        Relay("auto-tap-drops", "samplicator", tap=("--drops",), like="bare-segment"),
        Relay("pmacct", "pmacct"),
        Relay("nfcapd", "nfcapd", (False,)),
    )
}
_ENGINES = ("udp", "auto", "packet", "ring", "ring-packet")
RELAYS |= {r.name: r for r in (_with_rules(RELAYS[name], 10000) for name in _ENGINES)}

# The drain's fill is chosen so that a run takes a tenth of a second at least and the receive queue stays under 512 MiB.
_BURSTS = (
    Case("bursts", True, 4, ("classic", "raw", "auto", "ring", "bare-segment", "bare-ring-segment"), 80000),
    Case("bursts", True, 16, ("classic", "raw", "auto", "ring", "bare-segment", "bare-ring-segment"), 40000),
    Case("bursts", False, 4, ("classic", "udp", "ring", "bare-segment", "bare-ring-segment"), 80000),
    Case("bursts", False, 16, ("classic", "udp", "ring", "bare-segment", "bare-ring-segment"), 40000),
)
_WORST = (
    Case("worst", True, 4, ("classic", "auto", "packet", "ring-packet", "bare-plain", "bare-packet"), 80000),
    Case("worst", False, 4, ("classic", "udp", "bare-plain", "bare-segment"), 80000),
)

_ALL_CPU = ("classic", "transparent", "auto", "auto-delay", "copier", "tcx", "xdp")

_SCALE = (
    "classic",
    *(name for engine in ("auto", "packet", "ring", "ring-packet") for name in (engine, f"{engine}-10000-rules")),
)

TABLES: dict[str, tuple[Case, ...]] = {
    "default": _BURSTS + _WORST,
    "tools": tuple(
        replace(c, relays=tuple(r for r in c.relays if RELAYS[r].kind != "samplicator")) for c in _BURSTS + _WORST
    ),
    # Every way of the bare loop: what each could reach at best.
    "limits": (
        Case(
            "bursts",
            True,
            4,
            ("classic", "bare-segment", "bare-packet", "bare-ring-segment", "bare-ring-packet"),
            80000,
        ),
        Case(
            "bursts",
            True,
            16,
            ("classic", "bare-segment", "bare-packet", "bare-ring-segment", "bare-ring-packet"),
            40000,
        ),
        Case("bursts", False, 4, ("classic", "bare-segment", "bare-ring-segment"), 80000),
        Case("bursts", False, 16, ("classic", "bare-segment", "bare-ring-segment"), 40000),
        Case(
            "worst",
            True,
            4,
            ("classic", "bare-plain", "bare-packet-bypass", "bare-ring-plain", "bare-ring-packet-bypass"),
            80000,
        ),
    ),
    "no-offload": tuple(replace(c, offload=False) for c in _BURSTS),
    "ipv6": tuple(replace(c, ipv6=True) for c in _BURSTS),
    "mix": (
        Case("mix", True, 4, ("classic", "auto", "packet", "ring", "ring-packet")),
        Case("mix", False, 4, ("classic", "udp", "ring")),
    ),
    "fan-out": tuple(
        Case("bursts", True, n, ("classic", "auto"), max(4000, 240000 // n)) for n in (1, 2, 4, 8, 16, 32, 64, 128)
    ),
    # For the modes total and steady: what all of it costs, and the same in other circumstances.
    "all-cpu": tuple(Case(traffic, True, 4, _ALL_CPU, 40000) for traffic in ("worst", "mix", "bursts")),
    "all-cpu-more": (
        *(Case(traffic, True, 16, _ALL_CPU, 20000) for traffic in ("worst", "mix", "bursts")),
        *(Case(traffic, True, 4, _ALL_CPU, 40000, offload=False) for traffic in ("mix", "bursts")),
        Case("small", True, 4, _ALL_CPU, 40000),
    ),
    # 10,000 rules against one, 100,000 exporters (10,000 with a port each) against 16: the rules' cost is the ratio of
    # two relays of one case, the exporters' that of one relay in two cases.
    "scale": (
        Case("bursts", True, 4, _SCALE, 120000),
        Case("bursts", True, 4, _SCALE, 120000, exporters=100000),
        Case("ports", True, 4, _SCALE, 120000, exporters=10000),
    ),
    # What a session costs that is not in the cache: every datagram of 100,000 is a new exporter's (but for the 2,000 of
    # the warm-up), against 500, which are all known. 10^9 / (copies per CPU-second) is ns a datagram, all included: the
    # miss, the rules, the flow stage's new entry, the pages touched for the first time.
    "miss": tuple(Case("fresh", False, 1, ("udp", "udp-10000-rules"), 100000, exporters=n) for n in (500, 100000)),
    # With a tap open, of each kind, against none.
    "tap": (
        Case("bursts", True, 4, ("classic", "auto", "auto-tap", "auto-tap-receiver", "auto-tap-drops"), 80000),
        Case("bursts", False, 4, ("classic", "auto", "auto-tap"), 80000),
        Case("worst", True, 4, ("classic", "auto", "auto-tap"), 80000),
    ),
    # The memory promise: 64 receivers, 10,000 rules, 10,000 exporters (rss_kib in the result).
    "memory": (
        Case("bursts", True, 64, ("auto-10000-rules", "packet-10000-rules"), 12000, exporters=10000),
        Case("bursts", False, 64, ("auto-10000-rules",), 12000, exporters=10000),
    ),
    # Two workers on two CPUs against one, and beside it what the machine gives two bare loops: compare `wall s`. Many
    # exporters, since the kernel's hash deals them out; `split` in the result says how.
    "workers": tuple(
        Case("bursts", spoof, 4, ("auto", "auto-2-workers", "bare-segment", "bare-segment-2"), 120000, exporters=512)
        for spoof in (False, True)
    ),
    "versus": (
        # Real NetFlow, because these two look at what they forward. nfcapd stores the flows as well: that is its work.
        Case("netflow9", True, 4, ("classic", "pmacct", "auto")),
        Case("netflow9", False, 4, ("classic", "pmacct", "nfcapd", "udp")),
    ),
}
