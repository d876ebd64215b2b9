"""What this host lacks at start, and what is made anew under a running relay: interfaces, addresses, names.

An interface that is made anew has another index: sockets bound to the old one, groups joined on it and zones of
link-local addresses are deaf. Everything here must work again within a second of the event.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.lab import Lab, Namespace, Relay, run
from support.process import command, tool, wait_for

SOON_SECONDS = 1.0
"""What the manual promises; the tests allow for a slow machine."""
SLACK_SECONDS = 4.0


def vlan(lab: Lab) -> None:
    """A link v7 between exporter and relay, as a VLAN or a tunnel would be; the relay's end is .1, the exporter's
    .2."""
    run(
        "ip",
        "link",
        "add",
        "v7",
        "netns",
        lab.relay.name,
        "type",
        "veth",
        "peer",
        "name",
        "v7",
        "netns",
        lab.exporter.name,
    )
    for namespace, last in ((lab.exporter, 2), (lab.relay, 1)):
        namespace.ip("link", "set", "v7", "up")
        namespace.ip("addr", "add", f"198.18.100.{last}/24", "dev", "v7")
        namespace.ip("addr", "add", f"fe80::7:{last}/64", "dev", "v7", "nodad")


def anew(lab: Lab) -> None:
    """It is deleted and made again, with another index."""
    before = index_of(lab.relay)
    lab.relay.ip("link", "del", "v7")
    vlan(lab)
    assert index_of(lab.relay) != before


def index_of(namespace: Namespace) -> int:
    return int(namespace.ip("-o", "link", "show", "dev", "v7").split(":")[0])


def received(relay: Relay, listener: str = "vlan") -> int:
    return relay.metrics().value("receive_datagrams_total", listener=listener)


def comes_in(relay: Relay, send: Callable[[], object], listener: str = "vlan") -> float:
    """Sends until a datagram comes in; returns the seconds that took."""
    begun, before = time.monotonic(), received(relay, listener)

    def arrived() -> bool:
        send()
        return received(relay, listener) > before

    wait_for(arrived, f"datagrams at listener {listener}", SLACK_SECONDS + SOON_SECONDS, 0.05)
    return time.monotonic() - begun


def text(lab: Lab, listener: str, receiver: str = "", more: str = "") -> str:
    to = receiver or f"{lab.peer4(1)}:9001"
    return f"""
[[listener]]
name = "in"
listen = ["0.0.0.0:2055"]
[[listener]]
name = "vlan"
{listener}
[[receiver]]
name = "one"
to = "{to}"
{more}
[[rule]]
to = ["one"]
"""


LISTENERS = {
    "interface": ('listen = ["0.0.0.0:2056"]\ninterface = "v7"', "198.18.100.1", False),
    "zone": ('listen = ["[fe80::7:1%v7]:2056"]', "fe80::7:1", False),
    "group": ('listen = ["0.0.0.0:2056"]\ninterface = "v7"\nmulticast = ["239.9.9.9"]', "239.9.9.9", False),
    "group by route": ('listen = ["0.0.0.0:2056"]\nmulticast = ["239.9.9.9"]', "239.9.9.9", True),
    "group of IPv6": ('listen = ["[::]:2056"]\ninterface = "v7"\nmulticast = ["ff05::9"]', "ff05::9", False),
    "ring": ('listen = ["0.0.0.0:2056"]\ninterface = "v7"\nreceive = "ring"', "198.18.100.1", False),
}


@pytest.mark.parametrize("kind", LISTENERS)
def test_an_interface_that_comes_late_and_is_made_anew(lab: Lab, kind: str) -> None:
    lines, address, routed = LISTENERS[kind]
    relay = lab.samplicator(text(lab, lines), ready=False)
    wait_for(lambda: relay.alive and relay.answers(), "the relay's pages", 20)
    if routed:
        lab.relay.ip("route", "add", "239.0.0.0/8", "dev", "r1")
    status, body = relay.get("/readyz")
    if not routed:
        assert status == 503
        assert b"listener 'vlan' is down: there is no interface v7" in body
    comes_in(relay, lambda: send_to(lab, 2055), "in")
    vlan(lab)
    if routed:
        lab.relay.ip("route", "replace", "239.0.0.0/8", "dev", "v7")

    def send() -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with lab.exporter.socket(family, socket.SOCK_DGRAM) as sender:
            if family == socket.AF_INET:
                sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("198.18.100.2"))
                sender.sendto(b"hello", (address, 2056))
            else:
                index = index_of(lab.exporter)
                sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
                sender.sendto(b"hello", (address, 2056, 0, index))

    comes_in(relay, send)
    wait_for(lambda: relay.get("/readyz")[0] == 200, "the relay to be ready", 10)
    for _ in range(2):
        anew(lab)
        if routed:
            lab.relay.ip("route", "replace", "239.0.0.0/8", "dev", "v7")
        comes_in(relay, send)
        state = {item["name"]: item for item in relay.api("listeners")}["vlan"]
        assert (state["up"], state["state"]) == (True, "up")


@pytest.mark.parametrize(
    ("listen", "gone", "back"),
    [
        ("198.18.100.1:2056", "addr del 198.18.100.1/24 dev v7", "addr add 198.18.100.1/24 dev v7"),
        ("[2001:db8:77::1]:2056", "addr del 2001:db8:77::1/64 dev v7", "addr add 2001:db8:77::1/64 dev v7 nodad"),
    ],
    ids=["ipv4", "ipv6"],
)
def test_an_address_that_goes_away_and_comes_back(lab: Lab, listen: str, gone: str, back: str) -> None:
    """As on the other router of a pair: the socket stays bound, hears nothing, and hears again."""
    vlan(lab)
    lab.exporter.ip("addr", "add", "2001:db8:77::2/64", "dev", "v7", "nodad")
    lab.relay.ip("addr", "add", "2001:db8:77::1/64", "dev", "v7", "nodad")
    relay = lab.samplicator(text(lab, f'listen = ["{listen}", "127.0.0.1:2057"]'))
    where = listen.rpartition(":")[0].strip("[]")

    def send() -> None:
        family = socket.AF_INET6 if ":" in where else socket.AF_INET
        with lab.exporter.socket(family) as sock, contextlib.suppress(OSError):
            sock.sendto(b"x", (where, 2056))

    def listener() -> tuple[bool, str, str]:
        row = next(row for row in relay.api("listeners") if row["name"] == "vlan")
        return row["up"], row["state"], row["state_why"]

    assert relay.get("/readyz") == (200, b"ok\n")
    for _ in range(2):
        comes_in(relay, send)
        lab.relay.ip(*gone.split())
        wait_for(lambda: listener()[0] is False, "the listener to be down", SLACK_SECONDS + SOON_SECONDS)
        why = f"{where} is not an address of this host now (1 of 2 sockets are missing)"
        assert listener()[1:] == ("partly down", why)
        assert relay.metrics().value("listener_up", listener="vlan") == 0
        status, body = relay.get("/readyz")
        assert (status, body.decode().strip()) == (503, f"listener 'vlan' is partly down: {why}")
        lab.relay.ip(*back.split())
        wait_for(lambda: listener() == (True, "up", ""), "the listener to be up", SLACK_SECONDS + SOON_SECONDS)
    comes_in(relay, send)
    relay.check_laws()


@pytest.mark.parametrize("spoof", [False, True])
def test_a_receiver_on_an_interface_that_comes_late_and_is_made_anew(lab: Lab, spoof: bool) -> None:
    """The exporter's side of the VLAN is the receiver here: a link-local address, whose zone is an index."""
    more = "spoof = true" if spoof else ""
    relay = lab.samplicator(text(lab, 'listen = ["0.0.0.0:2056"]', "[fe80::7:2%v7]:9001", more))
    row = relay.api("receivers")[0]
    assert (row["state"], row["state_why"]) == ("unreachable", "there is no interface v7")
    assert b"receiver 'one' is unreachable: there is no interface v7" in relay.get("/readyz")[1]
    send_to(lab, 2055)
    wait_for(
        lambda: relay.metrics().total("send_failed_datagrams_total", receiver="one", reason="no_route") == 1,
        "the count",
        10,
    )
    vlan(lab)
    for turn in range(3):
        if turn:
            anew(lab)
        with lab.exporter.socket(socket.AF_INET6, socket.SOCK_DGRAM) as collector:
            collector.bind(("fe80::7:2", 9001, 0, index_of(lab.exporter)))
            collector.settimeout(0.05)

            def arrived() -> bool:
                send_to(lab, 2055)
                return bool(drain(collector))

            wait_for(arrived, "a copy", SLACK_SECONDS + SOON_SECONDS, 0.05)
    wait_for(lambda: relay.api("receivers")[0]["up"], "the receiver to be up", 10)


def drain(sock: socket.socket) -> int:
    count = 0
    try:
        while True:
            sock.recv(2000)
            count += 1
    except TimeoutError:
        return count


def test_an_own_address_that_comes_late(lab: Lab) -> None:
    """A listening address and a source that this host gets after the start (DHCP, VRRP)."""
    more = 'engine = "udp"\nsource = "198.18.0.77"'
    relay = lab.samplicator(text(lab, 'listen = ["198.18.0.77:2056"]', more=more), ready=False)
    wait_for(lambda: relay.answers(), "the relay's pages", 20)
    body = relay.get("/readyz")[1]
    assert b"listener 'vlan' is down: 198.18.0.77 is not an address of this host now" in body
    assert b"receiver 'one' is unreachable: the source 198.18.0.77 is not an address of this host now" in body
    tap = lab.tap(1, lambda seen: seen.port == 9001)
    lab.collector_socket(1, 9001)
    lab.relay.ip("addr", "add", "198.18.0.77/24", "dev", "r0")
    with lab.exporter.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        comes_in(relay, lambda: sender.sendto(b"y", ("198.18.0.77", 2056)))

        def sent() -> bool:
            sender.sendto(b"y", ("198.18.0.77", 2056))
            return bool(tap.drain())

        wait_for(sent, "a copy", 5, 0.05)
    assert {str(seen.source) for seen in tap.seen} == {"198.18.0.77"}


def test_a_name_that_resolves_late(lab: Lab) -> None:
    """Names of a receiver, a listener, a rule and a probe, none of which resolves at start."""
    place = Path("/etc/netns") / lab.relay.name
    place.mkdir(parents=True)
    hosts = place / "hosts"
    hosts.write_text("127.0.0.1 localhost\n")
    config = text(lab, 'listen = ["listen.test:2056"]', "collector.test:9001", 'probe = "tcp://probe.test:9009"')
    config = config.replace('[[rule]]\nto = ["one"]', '[[rule]]\nfrom = ["router.test"]\nto = ["one"]')
    relay = lab.samplicator(config, ready=False)
    wait_for(lambda: relay.answers(), "the relay's pages", 20)
    body = relay.get("/readyz")[1]
    assert b"listener 'vlan' is down: the host name does not resolve: listen.test:2056" in body
    assert b"receiver 'one' is unreachable: the host name does not resolve" in body
    row = relay.api("receivers")[0]
    assert (row["state"], row["state_why"], row["host"]) == (
        "unreachable",
        "the host name does not resolve",
        "collector.test",
    )
    tap = lab.tap(1, lambda seen: seen.port == 9001)
    lab.collector_socket(1, 9001)
    exporter = lab.exporter_socket("198.18.64.1", 1234)
    hosts.write_text(
        f"127.0.0.1 localhost\n{lab.peer4(1)} collector.test\n{lab.relay4()} listen.test\n198.18.64.1 router.test\n"
    )

    def arrived() -> bool:
        exporter.sendto(b"hello", (lab.relay4(), 2056))
        return bool(tap.drain())

    wait_for(arrived, "a copy", 20, 0.1)
    wait_for(
        lambda: relay.api("receivers")[0]["state_why"] == "the host name of the probe does not resolve", "the probe", 10
    )


def test_a_reload_takes_nothing_away(lab: Lab) -> None:
    """A file that adds what this host lacks is accepted with a warning; one that would move a listener that works to a
    place that cannot be had is refused, and so is a port that another program has."""
    good = lab.with_service(text(lab, 'listen = ["0.0.0.0:2056"]'))
    relay = lab.samplicator(good)
    dead = '[[receiver]]\nname = "dead"\nto = "nowhere.invalid:9"\n[[rule]]\nto = ["dead"]\n'

    def reload(config: str) -> tuple[int, str]:
        relay.write(config)
        done = lab.start([command("samplicator"), "reload", "--control", str(relay.control_path)], None, "reload")
        return done.wait(40), done.stdout() + done.stderr()

    status, said = reload(good + dead)
    assert status == 0, said
    assert "warning: " in said
    assert "nowhere.invalid" in said
    relay_generation = json.loads(relay.get("/api/v1/status")[1])["config"]["generation"]
    status, said = reload(good.replace("0.0.0.0:2056", "198.18.0.78:2056"))
    assert status == 1, said
    assert "198.18.0.78 is not an address of this host now" in said
    with lab.relay.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("0.0.0.0", 2077))
        status, said = reload(good + '[[listener]]\nname = "third"\nlisten = ["0.0.0.0:2077"]\n')
        assert status == 1, said
        assert "another program uses port 2077" in said
    assert json.loads(relay.get("/api/v1/status")[1])["config"]["generation"] == relay_generation
    comes_in(relay, lambda: send_to(lab, 2056))


def send_to(lab: Lab, port: int) -> int:
    with lab.exporter.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        return sock.sendto(b"x", (lab.relay4(), port))


def test_a_low_port_without_the_right(lab: Lab) -> None:
    """Syslog's port in a unit without CAP_NET_BIND_SERVICE: said, with the remedy, and taken when it may be."""
    path = lab.directory / "samplicator.toml"
    path.write_text(lab.with_service(text(lab, 'listen = ["0.0.0.0:514"]')))
    lacks = ["--bounding-set", "-net_bind_service", "--inh-caps", "-net_bind_service"]
    argv = [tool("setpriv"), *lacks, command("samplicator"), "run", "-c", str(path)]
    relay = Relay(lab, argv, "samplicator")
    lab.relays.append(relay)
    wait_for(lambda: relay.answers(), "the relay's pages", 20)
    status, body = relay.get("/readyz")
    assert status == 503
    assert b"listener 'vlan' is down: port 514 needs CAP_NET_BIND_SERVICE" in body
    assert b"low-ports.conf" in body
    comes_in(relay, lambda: send_to(lab, 2055), "in")
    lab.relay.sysctl(ipv4__ip_unprivileged_port_start=500)
    comes_in(relay, lambda: send_to(lab, 514))
    wait_for(lambda: relay.get("/readyz")[0] == 200, "the relay to be ready", 10)
