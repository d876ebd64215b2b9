"""replicate = "xdp": what tests/system/test_offload.py shows, and that XDP does it: a packet socket at the relay's
interface sees nothing of what XDP has copied. Where it cannot, tcx does, and a line says so.
"""

from __future__ import annotations

import re
import signal
import socket
from collections.abc import Callable

import pytest
from samplicator.host import libbpf, offload
from support.lab import Lab, Relay
from support.offload import give_way, lone, offloaded, pour, skip_without
from support.process import wait_for
from support.runs import SIZE, acquaint, config, in_order, payloads, wait_link

UDP_SEGMENT = 103
XDP = '[datapath]\nreplicate = "xdp"\n'


@pytest.fixture(autouse=True)
def there_is_such_a_kernel(lab: Lab) -> None:
    skip_without(lab, express=True)


def why(relay: Relay) -> str:
    return str(relay.api("listeners")[0]["receive_why"])


def test_no_packet_is_made_of_what_is_copied(lab: Lab) -> None:
    give_way(lab)
    relay = lone(lab, XDP)
    assert why(relay).startswith("xdp: the kernel copies on r0")
    taps = [lab.tap(n, lambda seen: seen.port == 9001) for n in (1, 2)]
    came = lab.tap(0, lambda seen: seen.port == 2055)
    exporters = [lab.exporter_socket(f"198.18.64.{n + 1}", 5000 + n) for n in range(3)]
    to = (lab.relay4(), 2055)
    pour(relay, exporters, to, 0, 20)
    first = len(came.drain())
    assert 0 < first < 60
    pour(relay, exporters, to, 20, 50)
    assert len(came.drain()) == first
    assert offloaded(relay) > 150
    for tap in taps:
        in_order(tap.collect(210), exporters, 70)
    metrics = relay.check_laws()
    assert [metrics.value("send_datagrams_total", receiver=name) for name in ("r0", "r1")] == [210, 210]
    assert metrics.value("receive_unseen_datagrams_total") == 0


def test_where_no_interface_can_send_so_tcx_copies(lab: Lab) -> None:
    relay = lone(lab, XDP)
    assert why(relay).startswith("tcx: the kernel copies on r0")
    assert "no interface can send what XDP broadcasts; tcx copies there" in relay.stderr()
    tap = lab.tap(2, lambda seen: seen.port == 9001)
    exporter = lab.exporter_socket("198.18.64.1", 5000)
    pour(relay, [exporter], (lab.relay4(), 2055), 0, 40)
    assert offloaded(relay) > 20
    in_order(tap.collect(40), [exporter], 40)
    relay.check_laws()


def test_a_program_of_others_stays(lab: Lab) -> None:
    """One XDP program is at an interface natively, and somebody else's was there first."""
    give_way(lab)
    other: list[tuple[offload.Offload, libbpf.Link]] = []

    def be_there() -> None:
        made = offload.Offload(1, 4096, express=True)
        assert made.express is not None
        index = socket.if_nametoindex("r0")
        other.append((made, made.express.attach(index)))

    lab.relay.call(be_there)
    try:
        relay = lone(lab, XDP)
        assert why(relay).startswith("xdp and tcx: the kernel copies on r0")
        assert re.search(r"r0: .*; tcx copies there", relay.stderr())
        exporter = lab.exporter_socket("198.18.64.1", 5000)
        pour(relay, [exporter], (lab.relay4(), 2055), 0, 40)
        assert offloaded(relay) > 20
        relay.check_laws()
    finally:
        for made, link in other:
            link.close()
            made.close()


@pytest.mark.parametrize("six", [False, True], ids=["ipv4", "ipv6"])
def test_checksums_that_a_device_was_to_make(make_lab: Callable[..., Lab], six: bool) -> None:
    """A host beside us has left them to its device, and XDP is not told: such datagrams are not for it."""
    lab = make_lab(offload=True)
    give_way(lab)
    to = (lab.relay6() if six else lab.relay4(), 2055)
    peers = [f"[{lab.peer6(n)}]:9001" if six else f"{lab.peer4(n)}:9001" for n in (1, 2)]
    relay = lab.samplicator(XDP + config("auto", *peers))
    acquaint(lab, to[0])
    for name in ("r0", "r1"):
        wait_link(relay, "^r[12], ", name)
    collectors = [lab.collector_socket(n, 9001, six=six) for n in (1, 2)]
    exporter = lab.exporter_socket("2001:db8:8000::1" if six else "198.18.64.1", 5000)
    pour(relay, [exporter], to, 0, 60)
    assert offloaded(relay) > 20
    for collector in collectors:  # which looks at the checksums
        assert [collector.recv(65536) for _ in range(60)] == payloads(0, 0, 60)
    relay.check_laws()


def test_what_was_sent_has_arrived(lab: Lab) -> None:
    """Under load: as many as the interfaces took, by their count, come to the collectors; each copy counts once."""
    give_way(lab)
    relay = lone(lab, XDP)
    sinks = [lab.sink(n, f"{lab.peer4(n)}:9001") for n in (1, 2)]
    load = lab.load(
        "--to", f"{lab.relay4()}:2055", "--source-base", "198.18.64.0", "--exporters", 4, "--source-port", 50_000,
        "--seconds", 5, "--rate", 40_000, "--size", "64-400", "--run", 1,
    )  # fmt: skip
    sent = load.result(60)["sent"]
    relay.at_rest()
    metrics = relay.check_laws()
    taken = metrics.value("receive_datagrams_total")
    assert 0 < taken <= sent
    for name, sink in zip(("r0", "r1"), sinks, strict=True):
        got = lab.tally(sink)
        assert {key: got[key] for key in ("repeated", "reordered", "corrupt")} == {
            "repeated": 0, "reordered": 0, "corrupt": 0,
        }  # fmt: skip
        assert metrics.value("send_datagrams_total", receiver=name) == got["received"] + got["sink_drops"]
        assert metrics.value("send_offered_datagrams_total", receiver=name) == taken


def wait_received(relay: Relay, count: int) -> None:
    wait_for(lambda: relay.metrics().value("receive_datagrams_total") == count, f"{count} datagrams to be counted")


def test_a_burst_for_many_receivers_by_one_interface(lab: Lab) -> None:
    """All that one poll has made comes to the sending interface before it takes any (veth: 256 at most): 60 datagrams
    come at once, for six receivers, and it refuses none of the 360 copies.
    """
    give_way(lab)
    ports = range(9001, 9007)
    relay = lab.samplicator(XDP + config("auto", *(f"{lab.peer4(1)}:{port}" for port in ports)))
    acquaint(lab, lab.relay4())
    for number in range(len(ports)):
        wait_link(relay, "^r[12], ", f"r{number}")
    exporters = [lab.exporter_socket(f"198.18.64.{n + 1}", 5000) for n in range(5)]
    to = (lab.relay4(), 2055)
    total = 0
    for n, exporter in enumerate(exporters):
        before = offloaded(relay)
        for number in range(20):
            exporter.sendto(payloads(n, number, 1)[0], to)
            total += 1
            wait_received(relay, total)
        assert offloaded(relay) > before
        exporter.setsockopt(socket.SOL_UDP, UDP_SEGMENT, SIZE)
        exporter.sendto(b"".join(payloads(n, 20, 60)), to)
        total += 60
        wait_received(relay, total)
    relay.check_laws()
    assert [failed(relay, f"r{number}") for number in range(len(ports))] == [0] * len(ports)
    said = re.findall(r"xdp_xmit(_errors)?: (\d+)", str(lab.relay.run("ethtool", "-S", "r1")))
    assert {int(many) for errors, many in said if errors} == {0}
    assert sum(int(many) for errors, many in said if not errors) > 6 * 40 * len(exporters) // 2


def failed(relay: Relay, name: str) -> int:
    return int(relay.metrics().value("send_failed_datagrams_total", receiver=name, reason="no_buffer_space"))


def test_what_an_interface_refuses_is_counted(lab: Lab) -> None:
    """The other end takes frames no more: those that were under way have failed, and tcx goes on."""
    give_way(lab)
    relay = lone(lab, XDP)
    taps = [lab.tap(n, lambda seen: seen.port == 9001) for n in (1, 2)]
    exporter = lab.exporter_socket("198.18.64.1", 5000)
    to = (lab.relay4(), 2055)
    pour(relay, [exporter], to, 0, 20)
    assert offloaded(relay)
    lab.collectors[0].run("ethtool", "-K", "e0", "gro", "off")
    pour(relay, [exporter], to, 20, 40)
    wait_for(lambda: relay.metrics().value("send_offered_datagrams_total", receiver="r0") == 60, "all to be counted")
    lost = failed(relay, "r0")
    assert 0 < lost < 40
    metrics = relay.check_laws()
    assert metrics.value("send_datagrams_total", receiver="r0") == 60 - lost
    assert len(taps[0].collect(60 - lost)) == 60 - lost
    in_order(taps[1].collect(60), [exporter], 60)


def test_what_vanishes_is_counted(lab: Lab) -> None:
    """What the device map leaves out, as it does frames that are too long for an interface, nobody counts."""
    give_way(lab)
    relay = lone(lab, XDP)
    taps = [lab.tap(n, lambda seen: seen.port == 9001) for n in (1, 2)]
    exporter = lab.exporter_socket("198.18.64.1", 5000)
    to = (lab.relay4(), 2055)
    pour(relay, [exporter], to, 0, 20)
    before = offloaded(relay)
    assert before
    relay.send_signal(signal.SIGSTOP)  # it does not know yet
    lab.relay.ip("link", "set", "r1", "mtu", "600")
    for _ in range(10):
        exporter.sendto(bytes(1200), to)
    taps[1].collect(30)
    relay.send_signal(signal.SIGCONT)
    wait_for(lambda: relay.metrics().value("receive_datagrams_total") == 30, "them to be counted")
    assert offloaded(relay) == before + 10
    wait_for(lambda: failed(relay, "r0") == 10, "what is missing to be found")
    metrics = relay.check_laws()
    assert [metrics.value("send_datagrams_total", receiver=name) for name in ("r0", "r1")] == [20, 30]
    in_order(taps[0].collect(20), [exporter], 20)


def test_the_hook_goes_with_the_process(lab: Lab) -> None:
    give_way(lab)
    relay = lab.samplicator(XDP + config("auto", f"{lab.peer4(1)}:9001"), expected=(-signal.SIGKILL,))
    assert "xdp" in lab.relay.run("ip", "link", "show", "r0")
    relay.send_signal(signal.SIGKILL)
    relay.wait(10)
    wait_for(lambda: "xdp" not in lab.relay.run("ip", "link", "show", "r0"), "the hook to go", 5)
