"""What receivers see of a copy besides its bytes: TTL and TOS whatever the defaults of this host, and packets that the
path takes; and what other programs of this host see of us: the ports that runs leave from.

Copies leave in runs here (segmented sends), one by one, and by every engine, to hosts and to groups.
"""

from __future__ import annotations

import contextlib
import re
import signal
import socket

import pytest
from support.lab import Lab, Namespace, Relay, run
from support.process import wait_for
from support.runs import acquaint, held, in_order, payloads, wait_link
from support.witness import Tap

COUNT = 24


def groups_by_link_1(lab: Lab) -> None:
    """What the relay sends to these groups leaves by the link of collector 1."""
    lab.relay.ip("route", "add", "239.1.0.0/16", "dev", "r1")
    lab.relay.ip("-6", "route", "add", "multicast", "ff0e::/16", "dev", "r1", "table", "local", "metric", "5")


def strange_defaults(lab: Lab) -> None:
    """Nobody's TTL is 64 here unless somebody writes it."""
    lab.relay.sysctl(
        ipv4__ip_default_ttl=33,
        ipv6__conf__all__hop_limit=34,
        ipv6__conf__default__hop_limit=34,
        ipv6__conf__r1__hop_limit=34,
    )


@pytest.mark.parametrize("to", ["host", "group"])
@pytest.mark.parametrize("six", [False, True], ids=["ipv4", "ipv6"])
def test_runs_have_the_configured_ttl_and_tos(lab: Lab, six: bool, to: str) -> None:
    strange_defaults(lab)
    groups_by_link_1(lab)
    place = {
        ("host", False): lab.peer4(1),
        ("host", True): f"[{lab.peer6(1)}]",
        ("group", False): "239.1.2.3",
        ("group", True): "[ff0e::1:2]",
    }[to, six]
    # port: (what the receiver says, TTL, TOS); None: as received
    rows: dict[int, tuple[str, int | None, int | None]] = {}
    for engine in ("udp", "raw", "transparent", "packet"):
        base = f'engine = "{engine}"\nspoof = {"false" if engine in ("udp", "raw") else "true"}\n'
        for extra, ttl, tos in (
            ("", 64, 0),
            ("ttl = 9\ntos = 187", 9, 187),
            ("ttl = 33", 33, 0),
            ('ttl = "keep"\ntos = "keep"', None, None),
            ('tos = "keep"\nttl = 255', 255, None),
        ):
            rows[9001 + len(rows)] = (base + extra, ttl, tos)
    text = '[[listener]]\nname = "in"\nlisten = ["0.0.0.0:2055", "[::]:2055"]\n'
    for port, (extra, _, _) in rows.items():
        text += f'[[receiver]]\nname = "r{port}"\nto = "{place}:{port}"\nprobe = "off"\n{extra}\n'
    relay = lab.samplicator(text + "[[rule]]\nto = [" + ", ".join(f'"r{port}"' for port in rows) + "]\n")
    if to == "host":
        for port, (extra, _, _) in rows.items():
            if "packet" in extra:
                wait_link(relay, "^r1, ", f"r{port}")
    tap = lab.tap(1, lambda seen: seen.port in rows)
    exporter = lab.exporter_socket("2001:db8:8000::5" if six else "198.18.64.5", 6000, ttl=77, tos=44)
    listener = lab.relay6() if six else lab.relay4()
    acquaint(lab, listener)
    shark = lab.tshark(1).on()
    held(relay, [exporter], (listener, 2055), 0, COUNT)
    held(relay, [exporter], (listener, 2055), COUNT, COUNT)
    seen = tap.collect(2 * COUNT * len(rows))
    for port, (extra, ttl, tos) in rows.items():
        mine = [one for one in seen if one.port == port]
        assert [one.payload for one in mine] == payloads(0, 0, 2 * COUNT), extra
        assert {(one.ttl, one.tos) for one in mine} == {(77 if ttl is None else ttl, 44 if tos is None else tos)}, extra
    field = "ipv6.hlim" if six else "ip.ttl"
    for port, (extra, ttl, _) in rows.items():
        theirs = {row[field] for row in shark.rows() if row["udp.dstport"] == str(port)}
        assert theirs == {str(77 if ttl is None else ttl)}, extra
    if to == "host" or six:
        calls = {
            port: relay.metrics().value("send_calls_total", receiver=f"r{port}")
            for port, (extra, _, _) in rows.items()
            if re.search('"(udp|transparent)"', extra) and "keep" not in extra
        }
        assert all(count < COUNT for count in calls.values()), calls
    relay.check_laws()


# ---- ports of this host, engine transparent


def ports_in_use(lab: Lab, port: int) -> list[str]:
    """Local addresses (IPv4, as /proc/net/udp writes them) of the relay host's UDP sockets of a port."""
    table = lab.relay.call(lambda: open("/proc/thread-self/net/udp").read())  # noqa: SIM115
    return sorted(re.findall(rf": ([0-9A-F]{{8}}):{port:04X} ", table))


NOBODYS = "080000C0"  # 192.0.0.8


def spoofing(lab: Lab, *listen: str, workers: int = 1) -> str:
    text = f"[datapath]\nworkers = {workers}\n"
    for number, where in enumerate(listen):
        text += f'[[listener]]\nname = "in{number}"\nlisten = ["{where}"]\n'
    text += f'[[receiver]]\nname = "r0"\nto = "{lab.peer4(1)}:9001"\nspoof = true\nengine = "transparent"\n'
    return lab.with_service(text + '[[rule]]\nto = ["r0"]\n')


def calls_and_copies(relay: Relay) -> tuple[int, int]:
    metrics = relay.at_rest()
    return metrics.total("send_calls_total"), metrics.total("send_datagrams_total")


@pytest.mark.parametrize(
    ("listen", "six", "workers"),
    [(("0.0.0.0:2055",), False, 1), (("[::]:2055", "0.0.0.0:2055"), False, 2), (("[::]:2055",), False, 1),
     (("[::]:2055",), True, 2), (("{here}:2055",), False, 1)],
)  # fmt: skip
def test_from_a_listeners_port_to_the_listeners_port_leaves_in_runs(
    lab: Lab, listen: tuple[str, ...], six: bool, workers: int
) -> None:
    """2055 to 2055, as many exporters do it."""
    here = lab.relay6() if six else lab.relay4()
    text = spoofing(lab, *(where.replace("{here}", here) for where in listen), workers=workers)
    if six:
        text = text.replace(f'"{lab.peer4(1)}:9001"', f'"[{lab.peer6(1)}]:9001"')
    relay = lab.samplicator(text)
    tap = lab.tap(1, lambda seen: seen.port == 9001)
    pool = "2001:db8:8000::" if six else "198.18.64."
    exporters = [lab.exporter_socket(f"{pool}{n + 1}", 2055) for n in range(8)]
    acquaint(lab, here)
    earning = 0
    for step in range(4):
        held(relay, exporters, (here, 2055), step * COUNT, COUNT)
        wait_for(lambda n=step + 1: relay.metrics().total("receive_datagrams_total") == n * 8 * COUNT, "them", 20)
        if step == 1:
            earning, _ = calls_and_copies(relay)
    in_order(tap.collect(4 * 8 * COUNT), exporters, 4 * COUNT)
    calls, copies = calls_and_copies(relay)
    assert copies == 4 * 8 * COUNT
    assert calls - earning < copies / 2 / 4
    assert six or NOBODYS in ports_in_use(lab, 2055)
    # what is sent to the port still goes to the listener, and to it alone
    stranger = lab.exporter_socket(f"{pool}77", 7)
    for _ in range(10):
        stranger.sendto(b"q" * 200, (here, 2055))
    wait_for(lambda: relay.metrics().total("receive_datagrams_total") == 4 * 8 * COUNT + 10, "the last", 20)
    # and nobody else gets the port
    with lab.relay.socket(socket.AF_INET) as other, pytest.raises(OSError, match="in use"):
        other.bind(("0.0.0.0", 2055))
    relay.check_laws()


def test_an_idle_port_is_given_back(lab: Lab) -> None:
    relay = lab.samplicator(spoofing(lab, "0.0.0.0:2055"))
    exporter = lab.exporter_socket("198.18.64.1", 5000)
    acquaint(lab, lab.relay4())
    held(relay, [exporter], (lab.relay4(), 2055), 0, COUNT)
    wait_for(lambda: ports_in_use(lab, 5000) == [NOBODYS], "the port to be earned", 20)
    wait_for(lambda: ports_in_use(lab, 5000) == [], "the port to be given back", 30)
    with lab.relay.socket(socket.AF_INET) as other:  # another program, which does not know of any of this
        other.bind(("0.0.0.0", 5000))
        other.settimeout(5)
        tap = lab.tap(1, lambda seen: seen.port == 9001)
        held(relay, [exporter], (lab.relay4(), 2055), 0, COUNT)
        in_order(tap.collect(COUNT), [exporter], COUNT)  # one by one: the port is a local program's
        assert ports_in_use(lab, 5000) == ["00000000"]
        exporter.sendto(b"to the other program", (lab.relay4(), 5000))
        assert other.recv(100) == b"to the other program"
    relay.check_laws()


def test_a_port_in_use_stays_and_datagrams_one_by_one_do_not_keep_it(lab: Lab) -> None:
    relay = lab.samplicator(spoofing(lab, "0.0.0.0:2055"))
    busy, trickle = (lab.exporter_socket("198.18.64.1", port) for port in (5000, 5001))
    acquaint(lab, lab.relay4())
    held(relay, [busy, trickle], (lab.relay4(), 2055), 0, COUNT)
    wait_for(lambda: ports_in_use(lab, 5000) == ports_in_use(lab, 5001) == [NOBODYS], "both", 20)

    def only_the_busy_one() -> bool:
        held(relay, [busy], (lab.relay4(), 2055), 0, COUNT)
        trickle.sendto(b"alone", (lab.relay4(), 2055))
        wait_for(lambda: ports_in_use(lab, 5000) == [NOBODYS], "the busy one's port to be in use", 20)
        return ports_in_use(lab, 5001) == []

    wait_for(only_the_busy_one, "the trickle's port to be given back", 30, 0.2)
    relay.check_laws()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_new_listener_gets_its_port(lab: Lab, workers: int) -> None:
    """A reload adds a listener at the port that exporters send from, while they do."""
    relay = lab.samplicator(spoofing(lab, "0.0.0.0:2055", workers=workers))
    tap = lab.tap(1, lambda seen: seen.port == 9001)
    exporters = [lab.exporter_socket(f"198.18.64.{n + 1}", 9995) for n in range(8)]
    acquaint(lab, lab.relay4())
    held(relay, exporters, (lab.relay4(), 2055), 0, COUNT)
    wait_for(lambda: NOBODYS in ports_in_use(lab, 9995), "the port to be earned", 20)
    load = lab.load(
        "--to", f"{lab.relay4()}:2055", "--source-base", "198.18.65.0", "--exporters", 4,
        "--source-port", 9995, "--seconds", 60, "--rate", 4000, "--size", 300, "--run", 8,
    )  # fmt: skip
    relay.hangup(spoofing(lab, "0.0.0.0:2055", "0.0.0.0:9995", workers=workers))
    assert "00000000" in ports_in_use(lab, 9995)
    load.kill()
    relay.at_rest()
    tap.clear()
    before = calls_and_copies(relay)
    for step in range(4):
        held(relay, exporters, (lab.relay4(), 9995), step * COUNT, COUNT)
        relay.at_rest()
    in_order(tap.collect(4 * 8 * COUNT), exporters, 4 * COUNT)
    after = calls_and_copies(relay)
    assert after[1] - before[1] == 4 * 8 * COUNT
    assert after[0] - before[0] < 8 * COUNT  # in runs
    relay.check_laws()


def test_a_listener_that_is_down_gets_its_port(lab: Lab) -> None:
    """Another program has it at one address; meanwhile exporters send from that port, and go on when it is free."""
    with lab.relay.socket(socket.AF_INET) as other:
        other.bind((lab.relay4(), 9995))
        relay = lab.samplicator(spoofing(lab, "0.0.0.0:2055", "0.0.0.0:9995"), ready=False)
        wait_for(lambda: relay.answers(), "the relay's pages", 20)
        assert b"another program uses port 9995" in relay.get("/readyz")[1]
        exporters = [lab.exporter_socket(f"198.18.64.{n + 1}", 9995) for n in range(8)]
        acquaint(lab, lab.relay4())
        load = lab.load(
            "--to", f"{lab.relay4()}:2055", "--source-base", "198.18.65.0", "--exporters", 4,
            "--source-port", 9995, "--seconds", 60, "--rate", 4000, "--size", 300, "--run", 8,
        )  # fmt: skip
        wait_for(lambda: relay.metrics().total("receive_datagrams_total") > 100, "datagrams", 20)
    wait_for(lambda: relay.get("/readyz")[0] == 200, "the listener to be up", 20)
    load.kill()
    relay.at_rest()
    tap = lab.tap(1, lambda seen: seen.port == 9001)
    held(relay, exporters, (lab.relay4(), 9995), 0, COUNT)
    in_order(tap.collect(8 * COUNT), exporters, COUNT)
    relay.check_laws()


# ---- mtu


SIZES = (100, 1352, 1353, 1372, 1373, 1452, 1453, 1472, 1473, 4000, 20_000, 0)
ENGINES = {
    9001: 'engine = "udp"',
    9002: 'engine = "raw"\nspoof = true',
    9003: 'engine = "transparent"\nspoof = true',
    9004: 'engine = "packet"\nspoof = true',
    9005: 'engine = "raw"',
    9006: 'engine = "udp"\ntos = "keep"\nttl = "keep"',
}


def batch_of_sizes() -> list[bytes]:
    """Runs that fit, runs that do not, and all sizes after each other."""
    sizes = [300] * 20 + [size for size in SIZES for _ in range(3)] + [1400] * 8 + list(SIZES)
    return [f"{n}:".encode().ljust(size, b"x")[:size] for n, size in enumerate(sizes)]


@pytest.mark.parametrize("six", [False, True], ids=["ipv4", "ipv6"])
def test_nothing_is_longer_than_the_configured_mtu(lab: Lab, six: bool) -> None:
    """Every engine, in runs and one by one: whole, in order, from the right source, and no packet over 1400 bytes."""
    place = f"[{lab.peer6(1)}]" if six else lab.peer4(1)
    text = '[[listener]]\nname = "in"\nlisten = ["0.0.0.0:2055", "[::]:2055"]\n'
    for port, extra in ENGINES.items():
        text += f'[[receiver]]\nname = "r{port}"\nto = "{place}:{port}"\nprobe = "off"\nmtu = 1400\n{extra}\n'
    relay = lab.samplicator(text + "[[rule]]\nto = [" + ", ".join(f'"r{port}"' for port in ENGINES) + "]\n")
    wait_link(relay, "^r1, ", "r9004")
    for port in ENGINES:
        lab.collector_socket(1, port, six=six)
    tap = lab.tap(1, lambda seen: seen.port in ENGINES)
    exporter = lab.exporter_socket("2001:db8:8000::5" if six else "198.18.64.5", 6000)
    listener = lab.relay6() if six else lab.relay4()
    acquaint(lab, listener)
    wanted = batch_of_sizes()
    for round_number in (1, 2):
        relay.send_signal(signal.SIGSTOP)
        for payload in wanted:
            exporter.sendto(payload, (listener, 2055))
        relay.send_signal(signal.SIGCONT)
        wait_for(lambda n=round_number: relay.metrics().total("receive_datagrams_total") == n * len(wanted), "them", 20)
    seen = tap.collect(2 * len(wanted) * len(ENGINES), 20)
    assert tap.longest <= 1400
    header = 48 if six else 28
    sources: dict[int, set[int]] = {}
    for port, extra in ENGINES.items():
        mine = [one for one in seen if one.port == port]
        assert [one.payload for one in mine] == wanted * 2, extra
        assert {one.checksum for one in mine} == {"good"}, extra
        for one in mine:
            assert (one.fragments > 1) == (len(one.payload) + header > 1400), f"{extra}: {len(one.payload)} bytes"
        own = lab.relay6(1) if six else lab.relay4(1)
        assert {one.source for one in mine} == {exporter.getsockname()[0] if "spoof" in extra else own}, extra
        sources[port] = {one.source_port for one in mine}
        reading = next(item for item in relay.api("receivers") if item["name"] == f"r{port}")
        assert (reading["mtu"], reading["mtu_why"]) == (1400, "configured")
        assert relay.metrics().value("receiver_mtu_bytes", receiver=f"r{port}") == 1400
    assert all(len(ports) == 1 for ports in sources.values()), sources
    metrics = relay.check_laws()
    assert metrics.total("send_datagrams_total") == 2 * len(wanted) * len(ENGINES)
    assert metrics.total("send_failed_datagrams_total") == 0


def narrow_path(lab: Lab, *mtus: int) -> tuple[Namespace, str, str]:
    """A collector behind the first one, which is a router, over links of these MTUs: its namespace and addresses."""
    before = lab.collectors[0]
    for hop, mtu in enumerate(mtus, 1):
        far = lab._namespace(f"{before.name.rpartition('-')[0]}-f{hop}")
        far.sysctl(ipv4__ip_forward=1, ipv6__conf__all__forwarding=1, ipv6__conf__default__accept_dad=0)
        run(
            "ip", "link", "add", f"f{hop}", "mtu", str(mtu), "netns", before.name,
            "type", "veth", "peer", "name", "e0", "mtu", str(mtu), "netns", far.name,
        )  # fmt: skip
        for namespace, device, last in ((before, f"f{hop}", 1), (far, "e0", 2)):
            namespace.ip("addr", "add", f"203.0.113.{4 * hop + last}/30", "dev", device)
            namespace.ip("addr", "add", f"2001:db8:77:{hop}::{last}/64", "dev", device, "nodad")
            namespace.ip("link", "set", device, "up")
            namespace.run("ethtool", "-K", device, "tx", "off", "gro", "off")
        far.ip("link", "set", "lo", "up")
        far.ip("route", "add", "default", "via", f"203.0.113.{4 * hop + 1}")
        far.ip("-6", "route", "add", "default", "via", f"2001:db8:77:{hop}::1")
        before.ip("route", "add", "203.0.113.100", "via", f"203.0.113.{4 * hop + 2}")
        before.ip("-6", "route", "add", "2001:db8:77::100", "via", f"2001:db8:77:{hop}::2")
        before = far
    before.ip("addr", "add", "203.0.113.100/32", "dev", "lo")
    before.ip("addr", "add", "2001:db8:77::100/128", "dev", "lo", "nodad")
    lab.relay.ip("route", "add", "203.0.113.0/24", "via", lab.peer4(1))
    lab.relay.ip("-6", "route", "add", "2001:db8:77::/48", "via", lab.peer6(1))
    return before, "203.0.113.100", "2001:db8:77::100"


def mtu_of(relay: Relay, receiver: str) -> int:
    return int(next(item["mtu"] for item in relay.api("receivers") if item["name"] == receiver))


def test_spoofed_ipv6_over_a_smaller_path_mtu_arrives(lab: Lab) -> None:
    """Two routers on the way take less than our link and say so to the exporter, who is somewhere else: by itself the
    relay finds out what they take, tells it, and cuts.
    """
    far, _, there = narrow_path(lab, 1450, 1400)
    spoofed = {port: extra for port, extra in ENGINES.items() if "spoof" in extra}
    text = '[[listener]]\nname = "in"\nlisten = ["[::]:2055"]\n'
    for port, extra in spoofed.items():
        text += f'[[receiver]]\nname = "r{port}"\nto = "[{there}]:{port}"\n{extra}\n'
    text += f'[[receiver]]\nname = "told"\nto = "[{there}]:9009"\nspoof = true\nprobe = "off"\nmtu = 1300\n'
    text += f'[[receiver]]\nname = "deaf"\nto = "[{there}]:9008"\nspoof = true\nprobe = "off"\n'
    names = ", ".join(f'"r{port}"' for port in spoofed)
    relay = lab.samplicator(text + f'[[rule]]\nto = [{names}, "told", "deaf"]\n')
    wait_link(relay, "^r1, ", "r9004")
    sinks = {}
    for port in (*spoofed, 9008, 9009):
        sinks[port] = far.socket(socket.AF_INET6)
        lab.closers.append(sinks[port].close)
        sinks[port].setsockopt(socket.SOL_SOCKET, 33, 64 << 20)
        sinks[port].bind((there, port))
        sinks[port].setblocking(False)
    for port in spoofed:
        wait_for(lambda name=f"r{port}": mtu_of(relay, name) == 1400, f"the path of {port} to be known", 20)
    assert (mtu_of(relay, "told"), mtu_of(relay, "deaf")) == (1300, 1500)
    assert len(re.findall(r"r9003'?: packets have at most 1400 bytes, reported by a router", relay.tail())) == 1
    tap = Tap(far, "e0")
    lab.closers.append(tap.close)
    exporter = lab.exporter_socket("2001:db8:8000::5", 6000)
    acquaint(lab, lab.relay6())
    wanted = batch_of_sizes()
    for round_number in (1, 2):
        relay.send_signal(signal.SIGSTOP)
        for payload in wanted:
            exporter.sendto(payload, (lab.relay6(), 2055))
        relay.send_signal(signal.SIGCONT)
        wait_for(lambda n=round_number: relay.metrics().total("receive_datagrams_total") == n * len(wanted), "them", 20)
    relay.check_laws()

    def arrived(port: int) -> list[bytes]:
        got = []
        with contextlib.suppress(BlockingIOError):
            while True:
                payload, name = sinks[port].recvfrom(1 << 16)
                assert name[:2] == ("2001:db8:8000::5", 6000)
                got.append(payload)
        return got

    tap.collect(2 * len(wanted) * (len(spoofed) + 1))
    for port in (*spoofed, 9009):
        assert arrived(port) == wanted * 2, port
    assert 0 < len(arrived(9008)) < len(wanted) * 2  # what happens to those who do not ask
