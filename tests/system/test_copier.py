"""replicate = "copier": one frame for several receivers, copies made by the kernel. Byte for byte what each would have
got by itself, every copy counted, and nothing of it left behind, however the process ends.
"""

from __future__ import annotations

import itertools
import signal
import socket
import time

import pytest
from samplicator.host import copier, libbpf, offload
from support.decoders import PORT, ROWS, Nfacctd, Nfcapd, come, configuration, send, stream
from support.flows import IPFIX, V9
from support.lab import Lab, Relay
from support.process import wait_for
from support.runs import acquaint, config, held, in_order, payloads, wait_link

ONES = '[datapath]\nreplicate = "copier"\n'


def hooked(lab: Lab) -> int:
    """Programs at the relay's loopback device."""
    return lab.relay.call(lambda: libbpf.attached(socket.if_nametoindex("lo"), libbpf.Hook.TCX_EGRESS))


@pytest.fixture(autouse=True)
def there_is_such_a_kernel(lab: Lab) -> None:
    assert copier.OBJECT.exists()  # the tests' set-up installs clang

    def try_it() -> None:
        copier.Copier().close()

    try:
        lab.relay.call(try_it)
    except OSError as error:
        pytest.skip(f"no copier here: {error}")
    assert hooked(lab) == 0


@pytest.mark.parametrize("engine", ["packet", "auto"])
@pytest.mark.parametrize("six", [False, True], ids=["ipv4", "ipv6"])
def test_copies_of_runs_and_single_datagrams(lab: Lab, six: bool, engine: str) -> None:
    """Three receivers at two hosts, each with a TTL, a TOS and a port of its own."""
    to = (lab.relay6() if six else lab.relay4(), 2055)
    peer = (lambda n: f"[{lab.peer6(n)}]") if six else lab.peer4
    wanted = {9001: (1, 9, 184), 9002: (1, 255, 0), 9003: (2, 64, None)}
    text = ONES + '[[listener]]\nname = "in"\nlisten = ["0.0.0.0:2055", "[::]:2055"]\n'
    for port, (host, ttl, tos) in wanted.items():
        text += f'[[receiver]]\nname = "r{port}"\nto = "{peer(host)}:{port}"\nspoof = true\nengine = "{engine}"\n'
        text += f"ttl = {ttl}\ntos = {tos}\n" if tos is not None else f'ttl = {ttl}\ntos = "keep"\n'
    relay = lab.samplicator(text + '[[rule]]\nto = ["r9001", "r9002", "r9003"]\n')
    assert hooked(lab) == 1
    taps = {port: lab.tap(host, lambda seen, port=port: seen.port == port) for port, (host, *_) in wanted.items()}
    pool = "2001:db8:8000::" if six else "198.18.64."
    exporters = [lab.exporter_socket(f"{pool}{n + 1}", 5000 + n, tos=(0, 40, 96)[n]) for n in range(3)]
    acquaint(lab, to[0])
    for port in wanted:
        wait_link(relay, "^r[12], ", f"r{port}")
    for start, count in ((0, 1), (1, 60), (61, 2), (63, 200)):
        held(relay, exporters, to, start, count)
        wait_for(lambda n=3 * (start + count): relay.metrics().value("receive_datagrams_total") == n, "them")
    for port, (_, ttl, tos) in wanted.items():
        seen = taps[port].collect(3 * 263)
        in_order(seen, exporters, 263)
        assert {one.ttl for one in seen} == {ttl}
        assert {(one.exporter[1] - 5000, one.tos) for one in seen} == {
            (n, (0, 40, 96)[n] if tos is None else tos) for n in range(3)
        }
    metrics = relay.check_laws()
    for port in wanted:
        assert metrics.value("send_datagrams_total", receiver=f"r{port}") == 3 * 263
        assert metrics.value("send_bytes_total", receiver=f"r{port}") == 3 * 263 * len(payloads(0, 0, 1)[0])
    calls = sum(metrics.value("send_calls_total", receiver=f"r{port}") for port in wanted)
    assert calls < 100  # one call serves them all


def test_what_an_interface_would_cut_up_is_not_lost_untold(lab: Lab) -> None:
    """A veth whose other end has an XDP program takes no runs: the kernel cuts them up, and of the pieces of 16 copies,
    made at once, its ring (256) has room for half.
    """
    collector = lab.collectors[0]
    other: list[tuple[offload.Offload, libbpf.Link]] = []

    def be_there() -> None:
        made = offload.Offload(1, 4096, express=True)
        assert made.express is not None
        other.append((made, made.express.attach(socket.if_nametoindex("e0"))))

    try:
        collector.call(be_there)
    except OSError as error:
        pytest.skip(f"no XDP here: {error}")
    try:
        relay = lab.samplicator(ONES + config("auto", *[f"{lab.peer4(1)}:{9001 + n}" for n in range(16)]))
        exporters = [lab.exporter_socket(f"198.18.64.{n + 1}", 5000 + n) for n in range(3)]
        acquaint(lab, lab.relay4())
        for n in range(16):
            wait_link(relay, "^r1, ", f"r{n}")
        tap = lab.tap(1, lambda seen: 9001 <= seen.port <= 9016)
        held(relay, exporters, (lab.relay4(), 2055), 0, 100)
        wait_for(lambda: relay.metrics().value("receive_datagrams_total") == 300, "them")
        seen = tap.collect(16 * 300)
        for port in range(9001, 9017):
            in_order([one for one in seen if one.port == port], exporters, 100)
        metrics = relay.check_laws()
        assert {metrics.value("send_datagrams_total", receiver=f"r{n}") for n in range(16)} == {300}
    finally:
        for made, link in other:
            link.close()
            made.close()


def test_what_does_not_fit_leaves_in_fragments_and_in_order(lab: Lab) -> None:
    relay = lab.samplicator(ONES + config("packet", f"{lab.peer4(1)}:9001", f"{lab.peer4(2)}:9001"))
    taps = [lab.tap(n, lambda seen: seen.port == 9001) for n in (1, 2)]
    exporter = lab.exporter_socket("198.18.64.1", 5000)
    acquaint(lab, lab.relay4())
    for name in ("r0", "r1"):
        wait_link(relay, "^r[12], ", name)
    sizes = [0, 1, 1471, 1472, 1473, 9000, 3, 1472, 65000, 200]
    relay.send_signal(signal.SIGSTOP)
    for number, size in enumerate(sizes):
        exporter.sendto(bytes([number]) * size, (lab.relay4(), 2055))
    relay.send_signal(signal.SIGCONT)
    for tap in taps:
        assert [one.payload for one in tap.collect(len(sizes))] == [bytes([n]) * size for n, size in enumerate(sizes)]
        assert {one.checksum for one in tap.seen} == {"good"}
    relay.check_laws()


def test_receivers_of_other_kinds_beside_them(lab: Lab) -> None:
    """No checksum, sampled, over the other family, unspoofed: each gets what it would get alone."""
    kinds = {
        "plain": 'spoof = true\nengine = "packet"',
        "plain2": 'spoof = true\nengine = "packet"',
        "zero": 'spoof = true\nengine = "packet"\nchecksum = false',
        "third": 'spoof = true\nengine = "packet"\nfreq = 3',
        "own": "",
    }
    text = ONES + '[[listener]]\nname = "in"\nlisten = ["0.0.0.0:2055"]\n'
    for number, (name, extra) in enumerate(kinds.items()):
        text += f'[[receiver]]\nname = "{name}"\nto = "{lab.peer4(1 + number % 2)}:{9001 + number}"\n{extra}\n'
    relay = lab.samplicator(text + f"[[rule]]\nto = {list(kinds)}\n".replace("'", '"'))
    taps = [lab.tap(1 + n % 2, lambda seen, n=n: seen.port == 9001 + n) for n in range(len(kinds))]
    exporter = lab.exporter_socket("198.18.64.1", 5000)
    acquaint(lab, lab.relay4())
    for name in ("plain", "plain2", "zero", "third"):
        wait_link(relay, "^r[12], ", name)
    held(relay, [exporter], (lab.relay4(), 2055), 0, 90)
    for number in (0, 1, 4):
        assert [one.payload for one in taps[number].collect(90)] == payloads(0, 0, 90)
    assert [one.payload for one in taps[2].collect(90)] == payloads(0, 0, 90)
    assert {one.checksum for one in taps[2].seen} == {"zero"}
    assert len(taps[3].collect(30)) == 30
    relay.check_laws()


def test_a_receiver_whose_link_goes_down(lab: Lab) -> None:
    """The other one loses nothing; every copy is counted."""
    relay = lab.samplicator(ONES + config("packet", f"{lab.peer4(1)}:9001", f"{lab.peer4(2)}:9001"))
    tap = lab.tap(1, lambda seen: seen.port == 9001)
    exporter = lab.exporter_socket("198.18.64.1", 5000)
    acquaint(lab, lab.relay4())
    for name in ("r0", "r1"):
        wait_link(relay, "^r[12], ", name)
    held(relay, [exporter], (lab.relay4(), 2055), 0, 40)
    lab.relay.ip("link", "set", "r2", "down")
    held(relay, [exporter], (lab.relay4(), 2055), 40, 40)
    wait_link(relay, "down|no route", "r1")
    held(relay, [exporter], (lab.relay4(), 2055), 80, 40)
    in_order(tap.collect(120), [exporter], 120)
    relay.check_laws()


def test_programs_of_other_processes_do_not_take_its_frames(lab: Lab) -> None:
    """As during a take-over, or with two units: one is there before, one comes after."""
    before = lab.relay.call(copier.Copier)
    relay = lab.samplicator(ONES + config("packet", f"{lab.peer4(1)}:9001", f"{lab.peer4(2)}:9001"))
    after = lab.relay.call(copier.Copier)
    lab.closers += [before.close, after.close]
    assert hooked(lab) == 3
    taps = [lab.tap(n, lambda seen: seen.port == 9001) for n in (1, 2)]
    exporter = lab.exporter_socket("198.18.64.1", 5000)
    acquaint(lab, lab.relay4())
    for name in ("r0", "r1"):
        wait_link(relay, "^r[12], ", name)
    held(relay, [exporter], (lab.relay4(), 2055), 0, 50)
    for tap in taps:
        in_order(tap.collect(50), [exporter], 50)
    metrics = relay.check_laws()
    assert [metrics.value("send_datagrams_total", receiver=name) for name in ("r0", "r1")] == [50, 50]
    assert [item["gave_up"] for item in relay.api("receivers")] == [[], []]


def test_without_the_hook_the_worker_makes_the_copies(lab: Lab) -> None:
    """Whatever takes the frames before the program has them: nothing is lost, in order, and it is said."""
    relay = lab.samplicator(ONES + config("packet", f"{lab.peer4(1)}:9001", f"{lab.peer4(2)}:9001"))
    taps = [lab.tap(n, lambda seen: seen.port == 9001) for n in (1, 2)]
    exporter = lab.exporter_socket("198.18.64.1", 5000)
    acquaint(lab, lab.relay4())
    for name in ("r0", "r1"):
        wait_link(relay, "^r[12], ", name)
    held(relay, [exporter], (lab.relay4(), 2055), 0, 40)
    wait_for(lambda: relay.metrics().value("receive_datagrams_total") == 40, "them")
    lab.relay.run(
        "nft",
        "add table netdev t; add chain netdev t c { type filter hook egress device lo priority 0; }; "
        "add rule netdev t c udp dport 9001 drop",
    )
    held(relay, [exporter], (lab.relay4(), 2055), 40, 40)
    wait_for(lambda: relay.metrics().value("receive_datagrams_total") == 80, "them")
    held(relay, [exporter], (lab.relay4(), 2055), 80, 40)
    for tap in taps:
        in_order(tap.collect(120), [exporter], 120)
    wait_for(lambda: [item["gave_up"] for item in relay.api("receivers")] == [["copier"], ["copier"]], "it to be said")
    relay.check_laws()


@pytest.mark.parametrize("kind", [V9, IPFIX], ids=["netflow9", "ipfix"])
def test_collectors_decode_all_beside_a_sampled_and_a_late_one(lab: Lab, kind: int) -> None:
    """Two plain receivers, whose copies the kernel makes; one with freq = 3; one that comes when half has been sent."""
    half, third, late = 63, PORT + 2, PORT + 3
    first, second, sampled = Nfcapd(lab), Nfacctd(lab), Nfcapd(lab, third, "sampled", 2)

    def receiver(name: str, where: str, more: str = "") -> str:
        return f'[[receiver]]\nname = "{name}"\nto = "{where}"\nspoof = true\n{more}\n'

    text = (
        ONES + configuration(lab).replace("freq = 1\n", "") + receiver("third", f"{lab.peer4(2)}:{third}", "freq = 3")
    )
    relay = lab.samplicator(text.replace('"two"]', '"two", "third"]'))
    acquaint(lab, lab.relay4())
    for name in ("one", "two", "third"):
        wait_link(relay, "^r[12], ", name)
    feed = list(itertools.islice(stream(kind), 2 * half))
    sock = send(lab, [payload for payload, _ in feed[:half]])
    come(relay, half)
    last = Nfcapd(lab, late, "late")
    text += receiver("late", f"{lab.peer4(1)}:{late}")
    relay.write(lab.with_service(text.replace('"two"]', '"two", "third", "late"]')))
    relay.send_signal(signal.SIGHUP)
    wait_for(lambda: relay.metrics().value("config_generation") == 2, "the new plan")
    wait_link(relay, "^r1, ", "late")
    send(lab, [payload for payload, _ in feed[half:]], sock)
    come(relay, 2 * half)
    relay.at_rest()
    data = [not carries for _, carries in feed]
    assert first.end() == second.end() == (sum(data) * ROWS, 0)
    assert sampled.end() == (-(-sum(data) // 3) * ROWS, 0)
    assert last.end() == (sum(data[half:]) * ROWS, 0)
    metrics = relay.check_laws()
    calls, copies = (
        sum(metrics.value(f"send_{what}_total", receiver=name) for name in ("one", "two", "late"))
        for what in ("calls", "datagrams")
    )
    assert calls < 0.7 * copies  # one call serves them all
    assert metrics.total("receiver_features_given_up") == 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_is_left_behind(lab: Lab, number: signal.Signals) -> None:
    relay: Relay = lab.samplicator(ONES + config("packet", f"{lab.peer4(1)}:9001"), expected=(0, -signal.SIGKILL))
    assert hooked(lab) == 1
    relay.send_signal(number)
    relay.wait(10)
    begun = time.monotonic()
    wait_for(lambda: hooked(lab) == 0, "the hook to go", 5)
    assert time.monotonic() - begun < 1


def test_a_host_that_has_it_not(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copier, "OBJECT", copier.OBJECT.with_name("not-there"))
    with pytest.raises(OSError, match="built without clang"):
        copier.Copier()
