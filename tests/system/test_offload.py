"""replicate = "tcx" and "xdp": sessions whose receivers all take every datagram as it is are copied where they come
in. Byte for byte what the worker would have sent, in order, every copy counted, and nothing left behind.
"""

from __future__ import annotations

import itertools
import re
import signal
import socket
import time
from collections.abc import Callable

import pytest
from samplicator.host import libbpf
from support.decoders import PORT, ROWS, Nfacctd, Nfcapd, come, configuration, send, stream
from support.flows import IPFIX, V9
from support.lab import Lab, Relay
from support.offload import give_way, lone, offloaded, pour, skip_without
from support.process import wait_for
from support.runs import acquaint, config, in_order, payloads, wait_link
from support.taps import tap as api_tap


def hooked(lab: Lab, device: str = "r0") -> int:
    """Programs where packets come in to an interface of the relay."""
    return lab.relay.call(lambda: libbpf.attached(socket.if_nametoindex(device), libbpf.Hook.TCX_INGRESS))


@pytest.fixture(params=["tcx", "xdp"])
def mode(request: pytest.FixtureRequest, lab: Lab) -> str:
    """The beginning of a configuration. XDP can send to collectors whose interfaces have GRO."""
    if request.param == "xdp":
        give_way(lab)
    return f'[datapath]\nreplicate = "{request.param}"\n'


@pytest.fixture(autouse=True)
def there_is_such_a_kernel(lab: Lab) -> None:
    skip_without(lab)
    assert hooked(lab) == 0


@pytest.mark.parametrize("six", [False, True], ids=["ipv4", "ipv6"])
def test_copies_are_what_the_worker_would_send(lab: Lab, six: bool, mode: str) -> None:
    to = (lab.relay6() if six else lab.relay4(), 2055)
    peer = (lambda n: f"[{lab.peer6(n)}]") if six else lab.peer4
    wanted = {9001: (1, 9, 184), 9002: (1, 255, 0), 9003: (2, 64, None)}
    text = mode + '[[listener]]\nname = "in"\nlisten = ["0.0.0.0:2055", "[::]:2055"]\n'
    for port, (host, ttl, tos) in wanted.items():
        text += f'[[receiver]]\nname = "r{port}"\nto = "{peer(host)}:{port}"\nspoof = true\n'
        text += f"ttl = {ttl}\ntos = {tos}\n" if tos is not None else f'ttl = {ttl}\ntos = "keep"\n'
    relay = lab.samplicator(text + '[[rule]]\nto = ["r9001", "r9002", "r9003"]\n')
    assert hooked(lab) == 1
    taps = {port: lab.tap(host, lambda seen, port=port: seen.port == port) for port, (host, *_) in wanted.items()}
    pool = "2001:db8:8000::" if six else "198.18.64."
    exporters = [lab.exporter_socket(f"{pool}{n + 1}", 5000 + n, tos=(0, 40, 96)[n]) for n in range(3)]
    acquaint(lab, to[0])
    for port in wanted:
        wait_link(relay, "^r[12], ", f"r{port}")
    pour(relay, exporters, to, 0, 40)
    assert offloaded(relay) > 60
    for port, (_, ttl, tos) in wanted.items():
        seen = taps[port].collect(3 * 40)
        in_order(seen, exporters, 40)
        assert {one.ttl for one in seen} == {ttl}
        assert {one.checksum for one in seen} == {"good"}
        assert {(one.exporter[1] - 5000, one.tos) for one in seen} == {
            (n, (0, 40, 96)[n] if tos is None else tos) for n in range(3)
        }
    metrics = relay.check_laws()
    for port in wanted:
        assert metrics.value("send_datagrams_total", receiver=f"r{port}") == 3 * 40
        assert metrics.value("send_bytes_total", receiver=f"r{port}") == 3 * 40 * len(payloads(0, 0, 1)[0])
    assert metrics.value("receive_unseen_datagrams_total") == 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_is_left_behind(lab: Lab, number: signal.Signals, mode: str) -> None:
    relay: Relay = lab.samplicator(mode + config("auto", f"{lab.peer4(1)}:9001"), expected=(0, -signal.SIGKILL))
    assert hooked(lab) == 1
    relay.send_signal(number)
    relay.wait(10)
    begun = time.monotonic()
    wait_for(lambda: hooked(lab) == 0, "the hook to go", 5)
    assert time.monotonic() - begun < 1


def test_what_the_kernel_cannot_copy_comes_to_the_socket(lab: Lab, mode: str) -> None:
    """Fragments, what is over the MTU, nothing at all: every byte of it, once, to both."""
    relay = lone(lab, mode)
    taps = [lab.tap(n, lambda seen: seen.port == 9001) for n in (1, 2)]
    exporter = lab.exporter_socket("198.18.64.1", 5000)
    to = (lab.relay4(), 2055)
    pour(relay, [exporter], to, 0, 20)
    before = offloaded(relay)
    assert before
    sizes = [0, 1, 17, 1471, 1472, 1473, 9000, 3, 1472, 65000, 200]
    for number, size in enumerate(sizes):
        exporter.sendto(bytes([number]) * size, to)
        wait_for(lambda n=21 + number: relay.metrics().value("receive_datagrams_total") == n, "it")
    assert before < offloaded(relay) < before + len(sizes)
    for tap in taps:
        seen = tap.collect(20 + len(sizes))
        assert [one.payload for one in seen[20:]] == [bytes([n]) * size for n, size in enumerate(sizes)]
        assert {one.checksum for one in seen} == {"good"}
    relay.check_laws()


def test_a_rule_of_the_firewall_that_comes_later_holds(lab: Lab, mode: str) -> None:
    """The exporter's datagrams have to come through the firewall again when its rules have changed."""
    relay = lone(lab, mode)
    tap = lab.tap(1, lambda seen: seen.port == 9001)
    exporter = lab.exporter_socket("198.18.64.1", 5000)
    to = (lab.relay4(), 2055)
    pour(relay, [exporter], to, 0, 20)
    assert offloaded(relay)
    lab.relay.run(
        "nft",
        "add table ip t; add chain ip t c { type filter hook input priority 0; }; "
        "add rule ip t c ip saddr 198.18.64.1 udp dport 2055 counter name x drop".replace(
            " counter name x", " counter"
        ),
    )

    def dropped() -> int:
        found = re.search(r"counter packets (\d+)", lab.relay.run("nft", "list table ip t"))
        assert found
        return int(found[1])

    def asked() -> bool:
        exporter.sendto(b"stranger", to)
        return dropped() > 0

    wait_for(asked, "the rule to be asked")
    relay.at_rest()
    count, before = relay.metrics().value("receive_datagrams_total"), dropped()
    for _ in range(20):
        exporter.sendto(b"stranger", to)
    wait_for(lambda: dropped() == before + 20, "the rule to be asked for all")
    relay.at_rest()
    assert relay.metrics().value("receive_datagrams_total") == count
    lab.relay.run("nft", "delete table ip t")
    assert len(tap.collect(int(count))) == count
    relay.check_laws()


def test_what_nobody_sees_is_forwarded_and_counted(lab: Lab, mode: str) -> None:
    """The worker stands still, and the ring buffer is small: every copy leaves, and what was not seen is said."""
    relay = lone(lab, mode, 'ring_buffer = "1MiB"\n')
    sinks = [lab.tap(n, lambda seen: seen.port == 9001) for n in (1, 2)]
    exporter = lab.exporter_socket("198.18.64.1", 5000)
    to = (lab.relay4(), 2055)
    pour(relay, [exporter], to, 0, 20)
    before = offloaded(relay)
    relay.send_signal(signal.SIGSTOP)
    for number in range(20, 3020):
        exporter.sendto(payloads(0, number, 1)[0], to)
        if number % 20 == 19:  # while it stands still
            for sink in sinks:
                sink.collect(number + 1)
    for sink in sinks:
        in_order(sink.seen, [exporter], 3020)
    relay.send_signal(signal.SIGCONT)
    wait_for(lambda: relay.metrics().value("receive_datagrams_total") == 3020, "them to be counted")
    metrics = relay.check_laws()
    assert offloaded(relay) == before + 3000
    unseen = metrics.value("receive_unseen_datagrams_total")
    assert 0 < unseen < 3000
    assert [metrics.value("send_datagrams_total", receiver=name) for name in ("r0", "r1")] == [3020, 3020]
    (here,) = relay.api("ledger")["here"]
    assert (here["offloaded"], here["unseen"]) == (before + 3000, unseen)


@pytest.mark.parametrize(("third", "late"), [(0, 1), (0, 3), (3, 1)], ids=["plain", "late-samples", "third-samples"])
@pytest.mark.parametrize("kind", [V9, IPFIX], ids=["netflow9", "ipfix"])
def test_collectors_decode_all_when_another_comes_late(lab: Lab, kind: int, third: int, late: int, mode: str) -> None:
    """A receiver that comes when half was sent, and takes all: the kernel goes on; or one that samples, late or from
    the start: the worker makes the copies. third, late: freq; 0 = there is none.
    """
    half, ports = 63, {"third": PORT + 2, "late": PORT + 3}
    collectors: list[Nfcapd | Nfacctd] = [Nfcapd(lab), Nfacctd(lab)]
    names = ["one", "two"]
    text = mode + configuration(lab).replace("freq = 1\n", "")

    def add(text: str, name: str, freq: int) -> str:
        before = str(names).replace("'", '"')
        names.append(name)
        collectors.append(Nfcapd(lab, ports[name], name))
        text += f'[[receiver]]\nname = "{name}"\nto = "{lab.peer4(1)}:{ports[name]}"\nspoof = true\nfreq = {freq}\n'
        return text.replace(before, str(names).replace("'", '"'))

    if third:
        text = add(text, "third", third)
    relay = lab.samplicator(text)
    acquaint(lab, lab.relay4())
    for name in names:
        wait_link(relay, "^r[12], ", name)
    feed = list(itertools.islice(stream(kind), 2 * half))
    sock = None
    for number, (payload, _) in enumerate(feed[:half]):
        sock = send(lab, [payload], sock)
        come(relay, number + 1)
    seen = offloaded(relay)
    assert (seen > half // 2) == (third == 0)
    text = add(text, "late", late)
    relay.write(lab.with_service(text))
    relay.send_signal(signal.SIGHUP)
    wait_for(lambda: relay.metrics().value("config_generation") == 2, "the new plan")
    wait_link(relay, "^r1, ", "late")
    for number, (payload, _) in enumerate(feed[half:]):
        send(lab, [payload], sock)
        come(relay, half + number + 1)
    relay.at_rest()
    assert (offloaded(relay) > seen) == (third == 0 and late == 1)
    data = [not carries for _, carries in feed]
    assert collectors[0].end() == collectors[1].end() == (sum(data) * ROWS, 0)
    assert collectors[-1].end() == (-(-sum(data[half:]) // late) * ROWS, 0)
    if third:
        assert collectors[2].end() == (-(-sum(data) // third) * ROWS, 0)
    relay.check_laws()


def test_a_tap_sees_all_while_it_is_open(lab: Lab, mode: str) -> None:
    """The worker makes the copies meanwhile, and the kernel again when the tap has been closed."""
    relay = lone(lab, mode)
    sinks = [lab.tap(n, lambda seen: seen.port == 9001) for n in (1, 2)]
    exporter = lab.exporter_socket("198.18.64.1", 5000)
    to = (lab.relay4(), 2055)
    pour(relay, [exporter], to, 0, 20)
    before = offloaded(relay)
    assert before
    with api_tap(relay.control_path, rate=10000) as shown:
        pour(relay, [exporter], to, 20, 30)
        assert [event["payload"] for event in shown.wait(30, "in")] == payloads(0, 20, 30)
        sent = shown.wait(60, "sent")
        for name in ("r0", "r1"):
            assert [event["payload"] for event in sent if event["receiver"] == name] == payloads(0, 20, 30)
        assert offloaded(relay) == before
    pour(relay, [exporter], to, 50, 30)
    assert offloaded(relay) > before
    for sink in sinks:
        in_order(sink.collect(80), [exporter], 80)
    relay.check_laws()


def test_a_tap_is_open_when_it_says_so(lab: Lab, mode: str) -> None:
    """What comes right behind its first line is not copied by the kernel any more."""
    relay = lone(lab, mode)
    exporter = lab.exporter_socket("198.18.64.1", 5000)
    to = (lab.relay4(), 2055)
    for turn in range(10):
        before = offloaded(relay)
        pour(relay, [exporter], to, 11 * turn, 10)
        assert offloaded(relay) > before
        with api_tap(relay.control_path, rate=10000) as shown:
            pour(relay, [exporter], to, 11 * turn + 10, 1)
            assert [event["payload"] for event in shown.wait(1, "in")] == payloads(0, 11 * turn + 10, 1)
    relay.check_laws()


def test_large_and_small_datagrams_by_turns(lab: Lab, mode: str) -> None:
    """What is fragmented comes to the socket, and all that follows it comes behind it."""
    relay = lone(lab, mode)
    taps = [lab.tap(n, lambda seen: seen.port == 9001) for n in (1, 2)]
    exporter = lab.exporter_socket("198.18.64.1", 5000)
    to = (lab.relay4(), 2055)
    pour(relay, [exporter], to, 0, 20)
    assert offloaded(relay)
    sizes = [3000 if number % 5 == 0 else 200 for number in range(50)]
    for number, size in enumerate(sizes):
        exporter.sendto(bytes([number]) * size, to)
    for tap in taps:
        seen = tap.collect(20 + len(sizes))
        assert [one.payload for one in seen[20:]] == [bytes([n]) * size for n, size in enumerate(sizes)]
    relay.check_laws()


def test_another_way_in_is_not_open_for_the_session(lab: Lab, mode: str) -> None:
    """What this host does not take by another interface (strict reverse path, RFC 3704) is not copied there either."""
    relay = lone(lab, mode)
    tap = lab.tap(1, lambda seen: seen.port == 9001)
    lab.relay.sysctl(ipv4__conf__r2__rp_filter=1)
    exporter = lab.exporter_socket("198.18.64.1", 5000)
    pour(relay, [exporter], (lab.relay4(), 2055), 0, 20)
    before = offloaded(relay)
    assert before
    lab.collectors[1].ip("route", "add", "local", "198.18.64.1", "dev", "lo")
    forger = lab.collectors[1].socket(socket.AF_INET)
    lab.closers.append(forger.close)
    forger.setsockopt(socket.IPPROTO_IP, 15, 1)  # IP_FREEBIND
    forger.bind(("198.18.64.1", 5000))
    for _ in range(5):
        forger.sendto(b"forged", (lab.relay4(2), 2055))
    pour(relay, [exporter], (lab.relay4(), 2055), 20, 20)
    assert offloaded(relay) == before + 20
    in_order(tap.collect(40), [exporter], 40)
    relay.check_laws()


def test_workers_that_go_and_come(lab: Lab, mode: str) -> None:
    """What the kernel counted for a worker that has gone is not counted again, and its sessions are others' now."""
    text = config("auto", f"{lab.peer4(1)}:9001", f"{lab.peer4(2)}:9001")
    relay = lab.samplicator(f"{mode}workers = 2\n{text}")
    acquaint(lab, lab.relay4())
    for name in ("r0", "r1"):
        wait_link(relay, "^r[12], ", name)
    taps = [lab.tap(n, lambda seen: seen.port == 9001) for n in (1, 2)]
    exporters = [lab.exporter_socket(f"198.18.64.{n + 1}", 5000 + n) for n in range(8)]
    to = (lab.relay4(), 2055)
    pour(relay, exporters, to, 0, 20)
    assert offloaded(relay) > 80
    for part, workers in enumerate((1, 2)):
        count = offloaded(relay)
        before = relay.metrics().value("config_generation")
        relay.write(lab.with_service(f"{mode}workers = {workers}\n{text}"))
        relay.send_signal(signal.SIGHUP)
        wait_for(lambda n=before: relay.metrics().value("config_generation") > n, "the new plan")
        pour(relay, exporters, to, 20 * (part + 1), 20)
        assert offloaded(relay) > count + (80 if workers == 1 else 0)
    for tap in taps:
        in_order(tap.collect(480), exporters, 60)
    metrics = relay.check_laws()
    assert [metrics.value("send_datagrams_total", receiver=name) for name in ("r0", "r1")] == [480, 480]


def test_a_run_that_is_longer_than_a_batch(make_lab: Callable[..., Lab], mode: str) -> None:
    """It came as one packet, and the worker takes it in pieces: the kernel goes on behind its end."""
    lab = make_lab(offload=True)
    text = config("auto", f"{lab.peer4(1)}:9001", f"{lab.peer4(2)}:9001")
    relay = lab.samplicator(f"{mode}batch = 4\n{text}")
    acquaint(lab, lab.relay4())
    for name in ("r0", "r1"):
        wait_link(relay, "^r[12], ", name)
    collector = lab.collector_socket(1, 9001)
    exporters = [lab.exporter_socket(f"198.18.64.{n + 1}", 5000 + n) for n in range(8)]
    for index, exporter in enumerate(exporters):
        exporter.setsockopt(socket.SOL_UDP, 103, len(payloads(0, 0, 1)[0]))  # UDP_SEGMENT
        for start, stop in ((0, 600), *((n, n + 40) for n in range(600, 1000, 40))):  # the first ones may be one batch
            for number in range(start, stop, 40):
                exporter.sendto(b"".join(payloads(index, number, 40)), (lab.relay4(), 2055))
            total = 1000 * index + stop
            wait_for(lambda n=total: relay.metrics().value("receive_datagrams_total") == n, "them")
            assert [collector.recv(65536) for _ in range(stop - start)] == payloads(index, start, stop - start)
    assert offloaded(relay) > 8 * 160
    relay.check_laws()
