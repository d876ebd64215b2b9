"""A stream of numbered datagrams through a relay while something is done to the relay: what was lost, repeated, out of
order.

Sixteen exporters send; one receiver gets spoofed copies, one unspoofed ones. An exporter's numbers must arrive without
a gap, once and in order at each receiver, from whatever port an unspoofed copy comes: a relay that restarts has
others. Used by tests/deploy. Invariant: a stream ends only when nothing is on its way any more.
"""

from __future__ import annotations

import contextlib
import http.client
import signal
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from support.lab import Lab
from support.process import Process, bench_tool, wait_for
from support.relay import Metrics

EXPORTERS, WORKERS = 16, 2
SPOOFED, PLAIN = "198.18.1.2:9995", "198.18.2.2:9996"
HIGH_BYTES, LOW_BYTES = 40 << 20, 4 << 20
"""Of a buffer of 64 MiB: where the load is held, and where it goes on."""
HTTP = ("127.0.0.1", 9420)


@dataclass(frozen=True)
class Outcome:
    """sent: datagrams of the exporters. The rest per receiver: (spoofed, plain)."""

    sent: int
    received: tuple[int, ...]
    lost: tuple[int, ...]
    repeated: tuple[int, ...]
    reordered: tuple[int, ...]
    other: tuple[int, ...]
    drops: int
    relay_drops: int
    held_seconds: float

    @property
    def whole(self) -> bool:
        """Everything arrived, once and in order."""
        wrong = (*self.lost, *self.repeated, *self.reordered, *self.other)
        return self.sent > 0 and not any(wrong) and all(count == self.sent for count in self.received)

    def __str__(self) -> str:
        return (
            f"sent {self.sent}, received {self.received}, lost {self.lost}, repeated {self.repeated}, out of order "
            f"{self.reordered}, wrong {self.other}, dropped at the sinks {self.drops}, by the kernel before the relay "
            f"{self.relay_drops}, load held for {self.held_seconds:.1f} s"
        )


def configuration(*, workers: int = WORKERS, ports: tuple[int, ...] = (2055,), more: str = "") -> str:
    """Of the relay: both receivers for every exporter."""
    listeners = "".join(
        f'\n[[listener]]\nname = "port {port}"\nlisten = ["0.0.0.0:{port}", "[::]:{port}"]\n' for port in ports
    )
    return (
        f'[service]\nhttp = "{HTTP[0]}:{HTTP[1]}"\n{more}\n[datapath]\nworkers = {workers}\n{listeners}'
        f'\n[[receiver]]\nname = "spoofed"\nto = "{SPOOFED}"\nspoof = true\nprobe = "off"\n'
        f'\n[[receiver]]\nname = "plain"\nto = "{PLAIN}"\nprobe = "off"\n'
        '\n[[rule]]\nto = ["spoofed", "plain"]\n'
    )


def page(lab: Lab, path: str) -> tuple[int, str]:
    """GET of the relay's HTTP; (0, why) when nobody answers."""
    try:
        with lab.relay.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
            sock.settimeout(10)
            sock.connect(HTTP)
            connection = http.client.HTTPConnection("relay")
            connection.sock = sock
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
    except (OSError, http.client.HTTPException) as error:
        return 0, str(error)


def metrics(lab: Lab) -> Metrics:
    status, text = page(lab, "/metrics")
    assert status == 200, text
    return Metrics(text)


def wait_ready(lab: Lab, timeout: float = 60.0) -> None:
    wait_for(lambda: page(lab, "/readyz")[0] == 200, "the relay to be ready", timeout, 0.1)


class Held:
    """Holds the load while a socket of the relay is nearly full, and says for how long: what overflows because the
    machine has no CPU left for the relay is no loss by a restart. Where the machine keeps up, nothing is held.
    """

    def __init__(self, lab: Lab, load: Process) -> None:
        self._namespace, self._load = lab.relay, load
        self._ended = threading.Event()
        self._seconds = 0.0
        self._thread = threading.Thread(target=lambda: lab.relay.call(self._run), name="held", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        """In the relay's namespace (proc(5): /proc/net/udp is that of the thread)."""
        held = False
        while not self._ended.wait(0.01) and self._load.alive:
            if held != (fullest() > (LOW_BYTES if held else HIGH_BYTES)):
                held = not held
                self._load.send_signal(signal.SIGSTOP if held else signal.SIGCONT)
            self._seconds += 0.01 if held else 0.0
        self._load.send_signal(signal.SIGCONT)

    def end(self) -> float:
        """Seconds for which the load was held."""
        self._ended.set()
        self._thread.join()
        return self._seconds


def fullest() -> int:
    """Bytes in the fullest UDP socket of this thread's network."""
    most = 0
    for table in ("udp", "udp6"):
        rows = Path(f"/proc/thread-self/net/{table}").read_text().splitlines()[1:]
        most = max([most, *(int(row.split()[4].partition(":")[2], 16) for row in rows)])
    return most


class Stream:
    """Runs from start() to finish(). rate: datagrams per second of all exporters together."""

    def __init__(self, lab: Lab, rate: int, *, port: int = 2055, size: str = "100-1400") -> None:
        self._lab = lab
        words = ["--idle-ms", "280000", "--max-seconds", "280", "--any-source"]
        self._sinks = [
            lab.start([bench_tool("sink"), "--listen", to, *words], lab.collectors[link], "sink")
            for link, to in enumerate((SPOOFED, PLAIN))
        ]
        for link, sink in enumerate(self._sinks):
            lab.wait_bound(lab.collectors[link], [(9995, 9996)[link]], sink)
        before = metrics(lab).total("receive_datagrams_total")
        self._load = lab.load(
            "--to", f"{lab.relay4()}:{port}", "--source-base", lab.EXPORTERS4, "--exporters", EXPORTERS,
            "--source-port", 40000, "--rate", rate, "--size", size, "--seconds", 270, "--catch-up-ms", 100,
        )  # fmt: skip
        wait_for(lambda: metrics(lab).total("receive_datagrams_total") > before + rate // 4, "traffic to flow", 20)
        self._held = Held(lab, self._load)

    def finish(self, seconds: float = 1.0) -> Outcome:
        """Sends for `seconds` more, then waits until everything has arrived."""
        wait_ready(self._lab)
        time.sleep(seconds)  # of traffic, not of waiting: what follows the change is part of what is counted
        held = self._held.end()
        self._load.send_signal(signal.SIGTERM)
        sent = int(self._load.result(30)["sent"])
        drops = self._rest().total("receive_kernel_drops_total")
        tallies = [self._lab.tally(sink)["receivers"][0] for sink in self._sinks]  # type: ignore[index]
        return Outcome(
            sent,
            *(tuple(tally[key] for tally in tallies) for key in ("received", "lost", "repeated", "reordered")),
            tuple(sum(tally[key] for key in ("corrupt", "short", "foreign", "truncated")) for tally in tallies),
            sum(tally["sink_drops"] for tally in tallies),
            drops,
            held,
        )

    def _rest(self) -> Metrics:
        """Waits until the relay has sent all that it will send."""
        last: list[object] = []

        def still() -> Metrics | None:
            now = metrics(self._lab)
            last.append([now.select(f"{name}_total") for name in ("receive_datagrams", "send_datagrams")])
            return now if last[-5:] == [last[-1]] * 5 and not now.total("receive_queue_bytes") else None

        return wait_for(still, "the relay to have sent all", 90, 0.1)

    def give_up(self) -> None:
        """Ends everything, for a test that has failed."""
        self._held.end()
        for process in (self._load, *self._sinks):
            with contextlib.suppress(OSError):
                process.kill()
