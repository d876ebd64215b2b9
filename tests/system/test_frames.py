"""Engine "auto": spoofed copies leave as link frames where that bypasses nothing of this host, and only there.

What a frame would bypass is made in the relay's namespace with the host's own tools; frames are told from other copies
at the relay's output hook, which they do not pass.
"""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable

import pytest
from samplicator.host import bypass
from support.lab import Lab, Namespace
from support.process import wait_for
from support.runs import acquaint, config, held, in_order, link, wait_link


def nft(text: str) -> Callable[[Namespace], object]:
    return lambda host: host.run("nft", text)


def iptables(tool: str, *words: str) -> Callable[[Namespace], object]:
    def make(host: Namespace) -> object:
        if not shutil.which(tool):
            pytest.skip(f"{tool} is not installed")
        return host.run(tool, *words)

    return make


def ipsec(direction: str) -> Callable[[Namespace], object]:
    def make(host: Namespace) -> object:
        words = "dir", direction, "tmpl", "proto", "esp", "mode", "transport"
        try:
            return host.ip("xfrm", "policy", "add", "src", "198.18.0.0/24", "dst", "198.18.200.0/24", *words)
        except AssertionError as error:
            pytest.skip(f"this kernel has no IPsec: {error}")

    return make


CHAIN = "add table {0} t; add chain {0} t c {{ type filter hook {1} priority 0; {2} }};"
BYPASSED: dict[str, tuple[Callable[[Namespace], object], str]] = {
    "output rule": (nft(CHAIN.format("ip", "output", "") + "add rule ip t c counter"), "chain ip t c of nftables"),
    "postrouting": (nft(CHAIN.format("inet", "postrouting", "") + "add rule inet t c udp dport 9 drop"), "postrouting"),
    "IPv6": (nft(CHAIN.format("ip6", "output", "") + "add rule ip6 t c accept"), "ip6 t c"),
    "policy": (nft(CHAIN.format("ip", "output", "policy drop;")), "the policy of chain ip t c"),
    "IPsec": (ipsec("out"), "IPsec policy"),
    "rule": (lambda host: host.ip("rule", "add", "fwmark", "7", "lookup", "main"), "routing by rules"),
    "rule of IPv6": (lambda host: host.ip("-6", "rule", "add", "fwmark", "7", "lookup", "main"), "ip -6 rule"),
    "legacy": (iptables("iptables-legacy", "-A", "OUTPUT", "-p", "udp"), "chain OUTPUT of table filter"),
    "legacy policy": (iptables("ip6tables-legacy", "-P", "OUTPUT", "DROP"), "chain OUTPUT of table filter"),
}
NOT_BYPASSED: dict[str, Callable[[Namespace], object]] = {
    "nothing": lambda host: None,
    "input": nft(CHAIN.format("inet", "input", "policy drop;") + "add rule inet t c accept"),
    "no rule": nft(CHAIN.format("ip", "output", "")),
    "egress": nft(
        "add table netdev t; add chain netdev t c { type filter hook egress device r1 priority 0; }; "
        "add rule netdev t c counter"
    ),
    "IPsec that comes in": ipsec("in"),
}


@pytest.mark.parametrize("what", BYPASSED)
def test_what_a_frame_would_bypass(lab: Lab, what: str) -> None:
    make, words = BYPASSED[what]
    assert lab.relay.call(bypass.reason) == ""
    make(lab.relay)
    assert words in lab.relay.call(bypass.reason)


@pytest.mark.parametrize("what", NOT_BYPASSED)
def test_what_a_frame_would_meet(lab: Lab, what: str) -> None:
    NOT_BYPASSED[what](lab.relay)
    assert lab.relay.call(bypass.reason) == ""


def test_a_queueing_discipline_that_sorts_by_the_socket(lab: Lab) -> None:
    def why() -> str:
        return lab.relay.call(lambda: bypass.queueing(socket.if_nametoindex("r1")))

    assert why() == ""
    try:
        lab.relay.run("tc", "qdisc", "add", "dev", "r1", "root", "prio")
    except AssertionError as error:
        pytest.skip(f"this kernel has no prio: {error}")
    assert "prio" in why()
    assert lab.relay.call(lambda: bypass.queueing(socket.if_nametoindex("r2"))) == ""


def test_what_cannot_be_seen_counts_as_there(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> str:
        raise OSError(1, "CAP_NET_ADMIN is needed to see IPsec policies")

    monkeypatch.setattr(bypass, "_policies", refused)
    assert bypass.reason() == ("what frames would bypass cannot be seen: CAP_NET_ADMIN is needed to see IPsec policies")


@pytest.mark.parametrize("six", [False, True])
def test_auto_sends_frames_until_a_rule_stands_and_after_it_has_gone(lab: Lab, six: bool) -> None:
    """In order, complete, each way; and while a rule stands, every copy meets it."""
    to = (lab.relay6() if six else lab.relay4(), 2055)
    place = f"[{lab.peer6(1)}]:9001" if six else f"{lab.peer4(1)}:9001"
    relay = lab.samplicator(config("auto", place))
    tap = lab.tap(1, lambda seen: seen.port == 9001)
    exporters = [lab.exporter_socket(f"{'2001:db8:8000::' if six else '198.18.64.'}{n + 1}", 5000 + n) for n in (0, 1)]
    acquaint(lab, to[0])
    wait_link(relay, "^r1, ")
    family = "ip6" if six else "ip"
    start = 0

    def batch() -> None:
        nonlocal start
        held(relay, exporters, to, start, 20)
        start += 20
        wait_for(lambda: relay.metrics().value("receive_datagrams_total") == 2 * start, "them")

    for _ in range(3):
        batch()
        lab.relay.run(
            "nft",
            f"add table {family} t; add chain {family} t c {{ type filter hook output priority 0; }}; "
            f"add rule {family} t c udp dport 9001 counter",
        )
        wait_link(relay, f"would bypass chain {family} t c of nftables", timeout=30)
        batch()
        text = lab.relay.run("nft", "list", "table", family, "t")
        assert int(text.split("packets ")[1].split()[0]) > 0  # runs count as one
        lab.relay.run("nft", f"delete table {family} t")
        wait_link(relay, "^r1, ", timeout=30)
    batch()
    in_order(tap.collect(2 * start), exporters, start)
    relay.check_laws()


def test_a_route_with_several_next_hops(lab: Lab) -> None:
    for collector in lab.collectors:
        collector.ip("addr", "add", "203.0.113.1/32", "dev", "lo")
    lab.relay.ip("route", "add", "203.0.113.0/24", "via", lab.peer4(1))
    relay = lab.samplicator(config("auto", "203.0.113.1:9001"))
    wait_link(relay, "^r1, ")
    hops = "nexthop", "via", lab.peer4(1), "nexthop", "via", lab.peer4(2)
    lab.relay.ip("route", "replace", "203.0.113.0/24", *hops)
    wait_link(relay, "several next hops")
    lab.relay.ip("route", "replace", "203.0.113.0/24", "via", lab.peer4(2))
    wait_link(relay, "^r2, ")


def test_a_route_by_the_source(lab: Lab) -> None:
    """Of IPv6; the route of IPv4 beside it is not concerned."""
    text = config("auto", f"[{lab.peer6(1)}]:9001", f"{lab.peer4(1)}:9001")
    relay = lab.samplicator(text)
    for name in ("r0", "r1"):
        wait_link(relay, "^r1, ", name)
    route = "2001:db8:77::/48", "from", "2001:db8:8000::/48", "via", lab.peer6(2)
    try:
        lab.relay.ip("-6", "route", "add", *route)
    except AssertionError as error:
        pytest.skip(f"this kernel has no routes by source: {error}")
    wait_link(relay, "would bypass a route of IPv6 by the source", "r0")
    wait_link(relay, "^r1, ", "r1")
    lab.relay.ip("-6", "route", "del", *route)
    wait_link(relay, "^r1, ", "r0")


def test_a_configured_packet_engine_bypasses_what_it_is_told_to(lab: Lab) -> None:
    relay = lab.samplicator(config("packet", f"{lab.peer4(1)}:9001"))
    lab.relay.run("nft", CHAIN.format("ip", "output", "") + "add rule ip t c udp dport 9001 drop")
    wait_link(relay, "^r1, ")
    assert link(relay).startswith("r1, ")


@pytest.mark.parametrize("six", [False, True], ids=["ipv4", "ipv6"])
def test_a_link_address_that_the_operator_has_set_stays(lab: Lab, six: bool) -> None:
    """Also where nobody answers for it: frames go there, and no look at it makes the kernel forget it."""
    hop = "2001:db8:9::9" if six else "198.18.200.9"
    family, prefix = ("-6", "64") if six else ("-4", "24")
    own = "2001:db8:9::1" if six else "198.18.200.1"
    lab.relay.ip(family, "addr", "add", f"{own}/{prefix}", "dev", "r1", *(["nodad"] if six else []))
    lab.relay.ip(family, "neigh", "add", hop, "lladdr", "02:00:00:00:00:99", "dev", "r1", "nud", "permanent")
    relay = lab.samplicator(config("auto", f"[{hop}]:9001" if six else f"{hop}:9001"))
    wait_link(relay, "^r1, 02:00:00:00:00:99")
    for _ in range(3):  # each a look of its own
        lab.relay.run("nft", CHAIN.format("ip", "output", "") + "add rule ip t c accept")
        wait_link(relay, "would bypass")
        lab.relay.run("nft", "delete table ip t")
        wait_link(relay, "^r1, 02:00:00:00:00:99")
    assert "PERMANENT" in lab.relay.ip(family, "neigh", "show", hop, "dev", "r1")


@pytest.mark.parametrize("words", [("managed",), ("extern_learn", "nud", "reachable")], ids=["managed", "extern_learn"])
def test_marks_of_a_neighbor_stay(lab: Lab, words: tuple[str, ...]) -> None:
    """By which the kernel, or another program, keeps it."""
    relay = lab.samplicator(config("auto", f"{lab.peer4(1)}:9001", f"{lab.peer4(2)}:9001"))
    for name in ("r0", "r1"):
        wait_link(relay, "^r[12], ", name)
    mac = lab.relay.ip("neigh", "show", lab.peer4(1), "dev", "r1").split()[2]
    given = words if words[0] == "managed" else ("lladdr", mac, *words)
    lab.relay.ip("neigh", "replace", lab.peer4(1), "dev", "r1", *given)
    for _ in range(2):  # each a look of its own
        lab.relay.run("nft", CHAIN.format("ip", "output", "") + "add rule ip t c accept")
        wait_link(relay, "would bypass")
        lab.relay.run("nft", "delete table ip t")
        wait_link(relay, "^r1, ")
    other = lab.relay.ip("neigh", "show", lab.peer4(2), "dev", "r2").split()[2]
    lab.relay.ip("neigh", "replace", lab.peer4(2), "lladdr", other, "dev", "r2", "nud", "stale")
    stale = lambda: "STALE" in lab.relay.ip("neigh", "show", lab.peer4(2), "dev", "r2")  # noqa: E731
    wait_for(lambda: not stale(), "a use of the other neighbor", 30)
    assert words[0] in lab.relay.ip("neigh", "show", lab.peer4(1), "dev", "r1")


def test_a_link_that_is_no_use_hinders_no_other(lab: Lab) -> None:
    relay = lab.samplicator(config("auto", f"{lab.peer4(1)}:9001", f"{lab.peer4(2)}:9001"))
    for name in ("r0", "r1"):
        wait_link(relay, "^r[12], ", name)
    lab.relay.ip("route", "add", lab.peer4(1), "dev", "r1", "mtu", "60")
    wait_link(relay, "less than 68 bytes", "r0")
    lab.relay.ip("link", "set", "r2", "mtu", "1400")
    wait_link(relay, "^r2, .*MTU 1400", "r1")
    lab.relay.ip("route", "del", lab.peer4(1), "dev", "r1")
    wait_link(relay, "^r1, ", "r0")
    assert "Traceback" not in relay.stderr()


def test_a_route_by_the_tos(lab: Lab) -> None:
    relay = lab.samplicator(config("auto", f"{lab.peer4(1)}:9001"))
    wait_link(relay, "^r1, ")
    lab.relay.ip("route", "add", "203.0.113.0/24", "tos", "0x10", "via", lab.peer4(2))
    wait_link(relay, "would bypass a route by the TOS")
    lab.relay.ip("route", "del", "203.0.113.0/24", "tos", "0x10")
    wait_link(relay, "^r1, ")


def test_ipsec_that_blocks_what_it_has_no_policy_for(lab: Lab) -> None:
    assert lab.relay.call(bypass.reason) == ""
    try:
        lab.relay.ip("xfrm", "policy", "setdefault", "out", "block")
    except AssertionError as error:
        pytest.skip(f"this kernel has no IPsec: {error}")
    assert "is to block" in lab.relay.call(bypass.reason)
