"""Reloads under 20,000 datagrams a second: what stays loses nothing, repeats nothing, keeps order, counters and
countdown.

Each reload adds and removes receivers and rules; some files are broken and must change nothing. Then the same for
workers, listeners and buffers.
"""

from __future__ import annotations

import signal
import socket
import struct
import threading
from dataclasses import dataclass, field

import pytest
from support.lab import Lab, Metrics, Relay
from support.pace import Pace
from support.process import Process, wait_for

RATE = 20_000
EXPORTERS = 16


@dataclass
class Thinned:
    """Reads a sampled receiver's copies: which datagrams of the load came, by their place in the whole load."""

    sock: socket.socket
    places: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ended = threading.Event()
        self.sock.settimeout(0.2)
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self) -> None:
        while True:
            try:
                payload = self.sock.recv(2048)
            except TimeoutError:
                if self.ended.is_set():
                    return
                continue
            except OSError:  # closed: the test has failed elsewhere
                return
            _, exporter, sequence = struct.unpack("!IIQ", payload[:16])
            self.places.append(sequence * EXPORTERS + exporter)  # loadgen takes the exporters in turn (--run 1)

    def end(self) -> list[int]:
        self.ended.set()
        self.thread.join(10)
        return self.places


def start_load(lab: Lab, port: int = 2055, seconds: int = 250, rate: int = RATE, label: str = "loadgen") -> Process:
    return lab.load(
        "--to", f"{lab.relay4()}:{port}", "--source-base", "198.18.64.0", "--exporters", EXPORTERS,
        "--source-port", 50_000, "--seconds", seconds, "--rate", rate, "--size", "64-400", "--run", 1,
        "--catch-up-ms", 50, label=label,
    )  # fmt: skip


def stop_load(load: Process, pace: Pace | None = None) -> int:
    if pace is not None:
        pace.end()
    load.send_signal(signal.SIGINT)
    return load.result(20)["sent"]


def staying(lab: Lab) -> str:
    return f"""
[[listener]]
name = "in"
listen = ["0.0.0.0:2055"]
[[receiver]]
name = "plain"
to = "{lab.peer4(1)}:9001"
[[receiver]]
name = "spoofed"
to = "{lab.peer4(2)}:9002"
spoof = true
[[receiver]]
name = "sampled"
to = "{lab.peer4(1)}:9003"
freq = 7
[[rule]]
to = ["plain", "spoofed", "sampled"]
"""


def passing(lab: Lab, turn: int) -> str:
    """Receivers and rules that come and go; rules also before the one that stays would change its number."""
    text = ""
    for number in range(turn % 5):
        name = f"guest-{turn}-{number}"
        spoof = str(number % 2 == 0).lower()
        text += f'[[receiver]]\nname = "{name}"\nto = "{lab.peer4(2)}:{9100 + number}"\nspoof = {spoof}\n'
        text += f'[[rule]]\nfrom = ["198.18.64.{turn % 16}", "2001:db8:8000::/48"]\nto = ["{name}", "plain"]\n'
    return text


def good(lab: Lab, turn: int) -> str:
    parts = [staying(lab), passing(lab, turn)]
    return lab.with_service("".join(parts if turn % 3 else reversed(parts)))


BROKEN = (
    "[[receiver]\n",
    '[[rule]]\nto = ["nobody"]\n',
    '[[receiver]]\nname = "x"\nto = "198.18.1.2:99999"\n',
    "\0\xff",
)


def settings(metrics: Metrics) -> list[tuple[str, object]]:
    """Everything a refused file must leave alone."""
    names = ("config_hash", "listener_info", "receiver_info", "receiver_up", "listener_up")
    return [(name, sorted((sorted(row.items()), value) for row, value in metrics.select(name))) for name in names]


@pytest.mark.slow
@pytest.mark.deploy_heavy
def test_200_reloads_do_not_touch_who_stays(lab: Lab) -> None:
    for port in range(9100, 9105):
        lab.collector_socket(2, port)
    thinned = Thinned(lab.collector_socket(1, 9003))
    sinks = [
        lab.sink(1, f"{lab.peer4(1)}:9001", label="sink-plain"),
        lab.sink(2, f"{lab.peer4(2)}:9002", label="sink-spoofed"),
    ]
    relay = lab.samplicator(good(lab, 1))
    load = start_load(lab)
    pace = Pace(load, [relay, *sinks])
    wait_for(lambda: relay.metrics().total("receive_datagrams_total"), "the load")
    last = 0
    for turn in range(2, 202):
        if turn % 20 == 0:
            before = settings(relay.metrics())
            metrics = relay.hangup(BROKEN[(turn // 20) % len(BROKEN)], broken=True)
            assert settings(metrics) == before
            assert metrics.value("config_last_reload_successful") == 0
        else:
            metrics = relay.hangup(good(lab, turn))
            assert len(metrics.names("receiver", "send_offered_datagrams_total")) == 3 + turn % 5
        now = metrics.value("send_datagrams_total", receiver="plain")
        assert now >= last, "the counter of a receiver that stays went back"
        last = now
    sent = stop_load(load, pace)
    metrics = relay.check_laws()
    assert metrics.value("config_reloads_total") >= 200
    assert metrics.value("config_reload_failures_total") >= 10
    assert metrics.total("receive_datagrams_total") == sent, f"kernel {metrics.total('receive_kernel_drops_total')}"
    for name, sink in zip(("plain", "spoofed"), sinks, strict=True):
        got = lab.tally(sink)
        assert {key: got[key] for key in ("received", "lost", "repeated", "reordered", "corrupt")} == {
            "received": sent, "lost": 0, "repeated": 0, "reordered": 0, "corrupt": 0,
        }, name  # fmt: skip
        assert metrics.value("send_datagrams_total", receiver=name) == sent
        assert metrics.value("send_offered_datagrams_total", receiver=name) == sent
    assert thinned.end() == list(range(0, sent, 7)), "the countdown of a receiver that stays goes on"


@pytest.mark.slow
def test_a_storm_of_hangups_ends_with_the_last_file(lab: Lab) -> None:
    """500 signals without a pause, the file changing all the time: nothing lost, and what the file says last runs."""
    sink = lab.sink(1, f"{lab.peer4(1)}:9001")
    relay = lab.samplicator(good(lab, 1))
    load = start_load(lab)
    pace = Pace(load, [relay, sink])
    wait_for(lambda: relay.metrics().total("receive_datagrams_total"), "the load")
    for number in range(500):
        if number % 7 == 0:
            relay.write(good(lab, number % 50))
        relay.send_signal(signal.SIGHUP)
    metrics = relay.hangup(good(lab, 4))
    assert len(metrics.names("receiver", "send_offered_datagrams_total")) == 3 + 4
    sent = stop_load(load, pace)
    assert relay.check_laws().value("send_datagrams_total", receiver="plain") == sent
    got = lab.tally(sink)
    assert (got["received"], got["lost"], got["repeated"], got["reordered"], got["corrupt"]) == (sent, 0, 0, 0, 0)


def with_datapath(lab: Lab, text: str, **settings: object) -> str:
    rows = "".join(f"{key} = {value!r}\n".replace("'", '"') for key, value in settings.items())
    return lab.with_service(f"[datapath]\n{rows}{text}")


EXTRA = '[[listener]]\nname = "extra"\nlisten = ["0.0.0.0:2056", "[::]:2057"]\n'


@pytest.mark.slow
def test_workers_listeners_and_buffers_change_under_load(lab: Lab) -> None:
    sinks = [
        lab.sink(1, f"{lab.peer4(1)}:9001", label="sink-plain"),
        lab.sink(2, f"{lab.peer4(2)}:9002", label="sink-spoofed"),
    ]
    text = staying(lab).replace("freq = 7", "freq = 1")
    lab.collector_socket(1, 9003)
    relay = lab.samplicator(with_datapath(lab, text, workers=1))
    load = start_load(lab)
    pace = Pace(load, [relay, *sinks])
    wait_for(lambda: relay.metrics().total("receive_datagrams_total"), "the load")
    turns = [
        (2, ""),
        (1, EXTRA),
        (3, EXTRA),
        (2, ""),
        (2, EXTRA),
        (4, ""),
        (1, ""),
        (1, EXTRA),
        (2, EXTRA),
        (1, ""),
    ] * 2
    for number, (workers, extra) in enumerate(turns):
        buffer = ("64MiB", "32MiB")[number % 2]
        fresh = with_datapath(lab, text + extra, workers=workers, receive_buffer=buffer)
        metrics = relay.hangup(fresh)
        assert len(metrics.names("worker", "worker_cpu_seconds_total")) == workers
        assert metrics.names("listener", "receive_datagrams_total") == ({"in", "extra"} if extra else {"in"})
        if extra:
            probe_extra(lab, relay)
    sent = stop_load(load, pace)
    metrics = relay.check_laws()
    assert metrics.value("receive_kernel_drops_total", listener="in") == 0
    assert metrics.value("receive_datagrams_total", listener="in") == sent
    probes = 2 * sum(bool(extra) for _, extra in turns)
    for sink, spoofed in zip(sinks, (False, True), strict=True):
        got = lab.tally(sink)
        assert got["received"] == sent + probes, got
        assert (got["repeated"], got["corrupt"]) == (0, 0), got
        if (
            spoofed
        ):  # each worker has a source port of its own: for unspoofed copies the sink sees sessions end and begin
            assert got["lost"] == 0, got


def probe_extra(lab: Lab, relay: Relay) -> None:
    """A listener that was added receives, over both families."""
    before = relay.metrics().value("receive_datagrams_total", listener="extra")
    six = lab.exporter_socket("2001:db8:8000::7", 0)
    four = lab.exporter_socket("198.18.65.9", 0)
    tiny = b"\0" * 4  # shorter than the load's header: the sinks count it as short, never as lost
    four.sendto(tiny, (lab.relay4(), 2056))
    six.sendto(tiny, (lab.relay6(), 2057))
    wait_for(
        lambda: relay.metrics().value("receive_datagrams_total", listener="extra") == before + 2, "the new listener"
    )
