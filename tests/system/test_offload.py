"""replicate = "tcx": sessions whose receivers all take every datagram as it is are copied where they come in. Byte for
byte what the worker would have sent, in order, every copy counted, and nothing left behind.
"""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Sequence

import pytest
from samplicator.host import libbpf, offload
from support.lab import Lab, Relay
from support.process import wait_for
from support.runs import acquaint, config, in_order, payloads, wait_link

TCX = '[datapath]\nreplicate = "tcx"\n'


def hooked(lab: Lab, device: str = "r0") -> int:
    """Programs where packets come in to an interface of the relay."""
    return lab.relay.call(lambda: libbpf.attached(socket.if_nametoindex(device), libbpf.Hook.TCX_INGRESS))


@pytest.fixture(autouse=True)
def there_is_such_a_kernel(lab: Lab) -> None:
    assert offload.OBJECT.exists()  # the tests' set-up installs clang

    def try_it() -> None:
        offload.Offload(1, 4096).close()

    try:
        lab.relay.call(try_it)
    except OSError as error:
        pytest.skip(f"no ingress offload here: {error}")
    assert hooked(lab) == 0


def offloaded(relay: Relay) -> int:
    return int(relay.metrics().value("receive_offloaded_datagrams_total"))


def pour(relay: Relay, exporters: Sequence[socket.socket], to: tuple[str, int], start: int, count: int) -> None:
    """Datagrams start to start + count of each exporter; those that come to the sockets are read before the next."""
    for number in range(start, start + count):
        for index, exporter in enumerate(exporters):
            exporter.sendto(payloads(index, number, 1)[0], to)
        total = len(exporters) * (number + 1)
        wait_for(lambda n=total: relay.metrics().value("receive_datagrams_total") == n, "them")


@pytest.mark.parametrize("six", [False, True], ids=["ipv4", "ipv6"])
def test_copies_are_what_the_worker_would_send(lab: Lab, six: bool) -> None:
    to = (lab.relay6() if six else lab.relay4(), 2055)
    peer = (lambda n: f"[{lab.peer6(n)}]") if six else lab.peer4
    wanted = {9001: (1, 9, 184), 9002: (1, 255, 0), 9003: (2, 64, None)}
    text = TCX + '[[listener]]\nname = "in"\nlisten = ["0.0.0.0:2055", "[::]:2055"]\n'
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
def test_nothing_is_left_behind(lab: Lab, number: signal.Signals) -> None:
    relay: Relay = lab.samplicator(TCX + config("auto", f"{lab.peer4(1)}:9001"), expected=(0, -signal.SIGKILL))
    assert hooked(lab) == 1
    relay.send_signal(number)
    relay.wait(10)
    begun = time.monotonic()
    wait_for(lambda: hooked(lab) == 0, "the hook to go", 5)
    assert time.monotonic() - begun < 1
