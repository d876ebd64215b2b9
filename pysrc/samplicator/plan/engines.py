"""Engines: which one sends the copies of a receiver, and why, in one sentence for people.

Pure: what this host can do is handed in. A combination of keys that no engine can do is reported as a problem, with
the key, and the answer then means nothing; a right that this process lacks is reported apart. Called by planner.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from samplicator.config.address import address_text
from samplicator.config.model.receiver import Receiver
from samplicator.plan.spec import Capabilities, ResolvedAddress

Report = Callable[[str, str], None]
"""Takes a key of the receiver and what is wrong with its value."""
NEEDS_NET_RAW: Final = (
    "needs CAP_NET_RAW; run as root, or grant it (systemd: AmbientCapabilities=CAP_NET_RAW; Kubernetes: "
    'securityContext.capabilities.add: ["NET_RAW"]; else: setcap cap_net_raw+ep on the program)'
)
FRAMES_WHY: Final = (
    "link frames of a packet socket while the next hop's link address is known and frames bypass nothing of this host "
    "(IPsec, firewall, routing by rules); else "
)
TRANSPARENT_WHY: Final = "runs are sent in one call by sockets bound to exporters' ports, the rest by a raw socket"


def choose(
    receiver: Receiver,
    address: ResolvedAddress,
    source: tuple[bytes, int] | None,
    host: Capabilities,
    problem: Report,
    lacks: Report,
) -> tuple[str, str]:
    """The engine and, in one sentence, why."""
    wanted = receiver.engine
    foreign = source is not None and not host.is_local(source[0])
    if receiver.spoof and source is not None:
        problem(("source"), "a spoofed copy has the exporter's source; remove `source`, or write spoof = false")
    if wanted == "udp":
        if receiver.spoof:
            problem("engine", 'engine "udp" cannot send spoofed copies; write "raw" or "auto"')
        return "udp", "configured: one UDP socket connected to the receiver; the kernel writes the headers"
    if wanted in ("transparent", "packet"):
        engine, reason = _spoofing(receiver, address, host, problem)
    elif wanted == "raw":
        engine, reason = "raw", "configured: one raw socket per receiver; samplicator writes the headers"
    elif receiver.spoof:
        engine, reason = spoofing_choice(receiver, address, host)
    elif foreign and source is not None:
        engine = "raw"
        reason = f"{address_text(source[0])} is not an address of this host, so samplicator writes the headers"
    else:
        return "udp", "not spoofed: a UDP socket connected to the receiver costs least"
    if not host.net_raw:
        key = "spoof" if receiver.spoof else "source" if wanted == "auto" else "engine"
        lacks(key, f"this receiver needs a raw socket, which {NEEDS_NET_RAW}")
    return engine, reason


def _spoofing(receiver: Receiver, address: ResolvedAddress, host: Capabilities, problem: Report) -> tuple[str, str]:
    """The engine `transparent` or `packet` as configured, checked against the other settings of the receiver."""
    engine = receiver.engine
    if not receiver.spoof:
        why = f'engine "{engine}" only sends spoofed copies; write spoof = true, or engine "udp" or "raw"'
        problem("engine", why)
    if receiver.pause_us:
        why = f'pause_us cannot be combined with engine "{engine}"; write "raw" or "auto", or remove `pause_us`'
        problem("engine", why)
    if engine == "packet":
        local = any(address.address) and host.is_local(address.address)
        reason = (
            "configured: a packet socket per worker sends link frames to the next hop, without routing, netfilter "
            + (
                "and IPsec; but the receiver is this host, so its raw socket sends the copies"
                if local
                else "and IPsec; the raw socket sends while the next hop's link address is not known"
            )
        )
        return engine, reason + _mostly_raw(receiver)
    if not receiver.checksum and address.family == 4:
        why = f'checksum = false cannot be combined with engine "{engine}"; write "raw", "packet" or "auto"'
        problem("engine", why)
    return engine, "configured: " + TRANSPARENT_WHY + _mostly_raw(receiver)


def check_mtu(
    receiver: Receiver, address: ResolvedAddress, engine: str, host: Capabilities, problem: Report, lacks: Report
) -> None:
    """Checks of `mtu` that need the address family, which is known only now."""
    if receiver.mtu == "auto":
        return
    if address.family == 6 and receiver.mtu < 1280:
        problem("mtu", "the mtu of an IPv6 receiver must be at least 1280 (RFC 8200 section 5)")
    if engine == "udp" and not host.net_raw:
        why = f"samplicator cuts fragments of this size with a raw socket, which {NEEDS_NET_RAW}; or remove `mtu`"
        lacks("mtu", why + ", and the kernel cuts fragments for the path")
    if receiver.source_port == "per-session":
        why = 'mtu cannot be combined with source_port = "per-session"; remove `mtu`, and the kernel cuts fragments'
        problem("mtu", why)


def per_session(receiver: Receiver, engine: str, problem: Report) -> bool:
    """Whether each exporter session gets a source port of its own."""
    if receiver.source_port == "shared":
        return False
    if engine != "udp" and not receiver.spoof and receiver.engine == "auto":
        why = '"per-session" cannot be combined with a `source` that is not an address of this host; change `source`'
        problem("source_port", why)
    return engine == "udp"


def frames(receiver: Receiver, engine: str, host: Capabilities) -> bool:
    """Whether copies of the engine that "auto" chose leave as frames while that is safe: what frames bypass is seen
    only with CAP_NET_ADMIN.
    """
    return receiver.engine == "auto" and engine == "transparent" and host.net_admin and host.frames


def spoofing_choice(receiver: Receiver, address: ResolvedAddress, host: Capabilities) -> tuple[str, str]:
    """Engine "auto" of a spoofed receiver, and why."""
    if address.family == 4 and address.address[0] >= 224:  # net/ipv4/route.c, ip_route_output_key_hash_rcu
        return "raw", "spoofed, to a multicast group: UDP sockets can send to a group only from addresses of this host"
    if not receiver.checksum and address.family == 4:
        return "raw", "spoofed with UDP checksum 0, for which samplicator writes the headers"
    if receiver.pause_us:
        return "raw", "spoofed with a pause after each copy, so copies are sent one by one by a raw socket"
    engine = "transparent"
    why = f"spoofed: {FRAMES_WHY if frames(receiver, engine, host) else ''}{TRANSPARENT_WHY}"
    return engine, why + _mostly_raw(receiver)


def _mostly_raw(receiver: Receiver) -> str:
    """Text: the settings because of which copies are not sent in runs (see _fastpath.Tx)."""
    reasons = ['ttl = "keep"'] if receiver.ttl == "keep" else []
    reasons += [f"freq = {receiver.freq}"] if receiver.freq > 1 else []
    return f"; with {' and '.join(reasons)} most copies are sent by the raw socket" if reasons else ""
