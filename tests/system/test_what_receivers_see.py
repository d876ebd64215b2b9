"""What receivers see of a copy besides its bytes: TTL and TOS, whatever the defaults of this host.

Copies leave in runs here (segmented sends), one by one, and by every engine, to hosts and to groups.
"""

from __future__ import annotations

import re
import socket

import pytest
from lab import Lab, Relay
from process import wait_for
from test_engines import acquaint, held, in_order, payloads, wait_link

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
            ("ttl = 9\ntos = 184", 9, 184),
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
    text += f'[[receiver]]\nname = "r0"\nto = "{lab.peer4(1)}:9001"\nspoof = true\n'
    return lab.with_service(text + '[[rule]]\nto = ["r0"]\n')


def calls_and_copies(relay: Relay) -> tuple[int, int]:
    metrics = relay.at_rest()
    return metrics.total("send_calls_total"), metrics.total("send_datagrams_total")


@pytest.mark.parametrize("workers", [1, 2])
def test_from_a_listeners_port_to_the_listeners_port_leaves_in_runs(lab: Lab, workers: int) -> None:
    """2055 to 2055, as many exporters do it."""
    relay = lab.samplicator(spoofing(lab, "[::]:2055", "0.0.0.0:2055", workers=workers))
    tap = lab.tap(1, lambda seen: seen.port == 9001)
    exporters = [lab.exporter_socket(f"198.18.64.{n + 1}", 2055) for n in range(8)]
    acquaint(lab, lab.relay4())
    for step in range(4):
        held(relay, exporters, (lab.relay4(), 2055), step * COUNT, COUNT)
        wait_for(lambda n=step + 1: relay.metrics().total("receive_datagrams_total") == n * 8 * COUNT, "them", 20)
    in_order(tap.collect(4 * 8 * COUNT), exporters, 4 * COUNT)
    calls, copies = calls_and_copies(relay)
    assert copies == 4 * 8 * COUNT
    assert calls < copies / 4
    assert NOBODYS in ports_in_use(lab, 2055)
    # what is sent to the port still goes to the listener, and to it alone
    stranger = lab.exporter_socket("198.18.64.77", 7)
    for _ in range(10):
        stranger.sendto(b"q" * 200, (lab.relay4(), 2055))
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
        held(relay, [busy], (lab.relay4(), 2055), 0, 2)
        trickle.sendto(b"alone", (lab.relay4(), 2055))
        assert ports_in_use(lab, 5000) == [NOBODYS]
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
