"""The demo: the real daemon on loopback, fed with what real exporters sent, every copy verified.

Purpose: shows in seconds, with no configuration, that the main job works on this machine, and fails loudly when it
does not. Invariants: traffic stays in 127.0.0.0/8; the daemon is a separate process that gets only a configuration
file; the verdict compares what was sent, what the daemon counted and what arrived. Called by the command line. It
must never leave a process or a file behind.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from samplicator.demo.daemon import Daemon, Failed, free_port, may_spoof
from samplicator.demo.traffic import CAPTURES, Exporter, Feeder, Receiver, Tally, make_exporters

if TYPE_CHECKING:
    from rich.table import Table

SETTLE_SECONDS: Final = 5.0
PREFERRED_HTTP: Final = 9420


@dataclass(slots=True, eq=False)
class View:
    """The numbers on show, of one moment: what arrived is read first, what the daemon received next, what was sent
    last, so that nothing arrives before it was sent. rates are those since the update before.
    """

    feeder: Feeder
    receivers: Sequence[Receiver]
    daemon: Daemon
    started: float
    counted: float = 0.0  # datagrams, by the daemon's own metrics
    sent: int = 0
    tallies: list[Tally] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    _last: list[int] = field(default_factory=list)
    _when: float = 0.0

    def update(self) -> None:
        """Takes new readings."""
        now = time.monotonic()
        self.tallies = [replace(receiver.tally) for receiver in self.receivers]
        counts = [tally.received for tally in self.tallies]
        seconds = max(1e-3, now - (self._when or self.started))
        before = self._last or [0] * len(counts)
        self.rates = [(new - old) / seconds for new, old in zip(counts, before, strict=True)]
        self._last, self._when = counts, now
        self.counted = self.daemon.metrics().get('samplicator_receive_datagrams_total{listener="demo"}', self.counted)
        self.sent = self.feeder.sent

    def head(self) -> str:
        seconds = time.monotonic() - self.started
        return (
            f"{seconds:5.1f} s   {len(self.feeder.exporters)} exporters sent {self.sent:,}   "
            f"the daemon received {self.counted:,.0f}"
        )

    def line(self) -> str:
        """For a pipe or a file."""
        parts = [
            f"{receiver.label}: {tally.received:,} copies, {tally.verified:,} verified, "
            f"{tally.lost} lost, {tally.wrong} wrong, {rate:,.0f}/s"
            for receiver, tally, rate in zip(self.receivers, self.tallies, self.rates, strict=True)
        ]
        return " | ".join((self.head(), *parts))

    def table(self) -> Table:
        """For a terminal."""
        from rich import box
        from rich.table import Table

        table = Table(title=self.head(), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
        for name in ("receiver", "source"):
            table.add_column(name)
        for name in ("copies", "verified", "lost", "wrong", "copies/s"):
            table.add_column(name, justify="right", min_width=8)
        for receiver, tally, rate in zip(self.receivers, self.tallies, self.rates, strict=True):
            good, bad = "green", "bold red"
            table.add_row(
                receiver.label,
                "exporter's" if receiver.spoof else "daemon's",
                f"{tally.received:,}",
                f"[{good}]{tally.verified:,}[/]",
                f"[{bad if tally.lost else good}]{tally.lost:,}[/]",
                f"[{bad if tally.wrong else good}]{tally.wrong:,}[/]",
                f"{rate:,.0f}",
            )
        return table


def _show(view: View, seconds: float | None) -> None:
    """Live until the time is over, or Ctrl-C, or something ends."""
    end = None if seconds is None else time.monotonic() + seconds
    process = view.daemon.process
    assert process is not None

    def going() -> bool:
        return (end is None or time.monotonic() < end) and process.poll() is None and view.feeder.is_alive()

    def pause(longest: float) -> None:
        time.sleep(longest if end is None else max(0.0, min(longest, end - time.monotonic())))

    if sys.stdout.isatty():
        from rich.live import Live

        view.update()
        with Live(refresh_per_second=4, get_renderable=view.table):
            while going():
                view.update()
                pause(0.5)
            view.update()
    else:
        while going():
            pause(2.0)
            view.update()
            print(view.line(), flush=True)


def run_demo(*, seconds: float | None, rate: int, http: str = "") -> int:
    """The whole demo: 0 when every copy arrived and was right, 1 otherwise. seconds: None = until Ctrl-C."""
    previous = signal.signal(signal.SIGTERM, _interrupt)
    directory = Path(tempfile.mkdtemp(prefix="samplicator-demo-"))
    spoof = may_spoof()
    exporters = make_exporters()
    receivers = [
        Receiver("spoofed" if spoof else "plain-1", "127.0.0.2", spoof, exporters),
        Receiver("plain" if spoof else "plain-2", "127.0.0.3", False, exporters),
    ]
    where = http or f"127.0.0.1:{free_port(socket.SOCK_STREAM, PREFERRED_HTTP)}"
    daemon = Daemon(directory, ("127.0.0.1", free_port(socket.SOCK_DGRAM)), where)
    try:
        daemon.configure(receivers)
        daemon.start()
        for receiver in receivers:
            receiver.start()
        return _run(daemon, exporters, receivers, seconds, rate)
    except Failed as error:
        print(f"FAILED: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        daemon.stop()
        for receiver in receivers:
            receiver.halt.set()
        shutil.rmtree(directory, ignore_errors=True)
        signal.signal(signal.SIGTERM, previous)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _run(
    daemon: Daemon, exporters: Sequence[Exporter], receivers: Sequence[Receiver], seconds: float | None, rate: int
) -> int:
    print(f"samplicator demo: {len(exporters)} exporters ({', '.join(CAPTURES.values())}), all on loopback")
    print(f"  the daemon listens on {daemon.listen[0]}:{daemon.listen[1]}, metrics: http://{daemon.http}/metrics")
    print(f"  status page, for a browser: http://{daemon.http}/ui/")
    if not any(receiver.spoof for receiver in receivers):
        print("  this user lacks CAP_NET_RAW, so no copy is spoofed; run the demo as root to see spoofed copies")
    sys.stdout.flush()
    feeder = Feeder(exporters, daemon.listen, rate)
    view = View(feeder, receivers, daemon, time.monotonic())
    feeder.start()
    with contextlib.suppress(KeyboardInterrupt):
        _show(view, seconds)
    feeder.halt.set()
    feeder.join(5)
    lasted = time.monotonic() - view.started
    _settle(feeder, receivers)
    metrics = daemon.metrics()
    faults = [feeder.error] if feeder.error else []
    faults += verdict(feeder.sent, receivers, metrics)
    status = daemon.stop()
    if status:
        faults.append(f"the daemon ended with status {status}:\n{daemon.log()}")
    _summary(lasted, feeder, receivers, metrics, faults)
    return 1 if faults else 0


def _settle(feeder: Feeder, receivers: Sequence[Receiver]) -> None:
    """Waits until all copies have arrived, or none has arrived for a while."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while time.monotonic() < deadline:
        before = [receiver.tally.received for receiver in receivers]
        if all(count >= feeder.sent for count in before):
            time.sleep(0.1)  # wait for a copy too many
            return
        time.sleep(0.5)
        if [receiver.tally.received for receiver in receivers] == before and time.monotonic() > deadline - 3:
            return


def verdict(sent: int, receivers: Sequence[Receiver], metrics: Mapping[str, float]) -> list[str]:
    """All faults found; [] = all copies arrived unchanged and all counters agree."""
    faults = []
    if not sent:
        faults.append("no datagram was sent")
    if not metrics:
        return [*faults, "the daemon does not answer on /metrics"]

    def value(name: str, labels: str) -> int:
        return int(metrics.get(f"samplicator_{name}{{{labels}}}", -1))

    def total(name: str, labels: str) -> int:
        # labels are rendered in alphabetical order: reason before receiver
        return int(sum(v for k, v in metrics.items() if k.startswith(f"samplicator_{name}{{") and labels in k))

    got = value("receive_datagrams_total", 'listener="demo"')
    dropped = value("receive_kernel_drops_total", 'listener="demo"')
    matched = value("receive_matched_datagrams_total", 'listener="demo"')
    if got != sent:
        faults.append(
            f"{sent:,} datagrams were sent, but the daemon received {got:,} ({dropped:,} dropped by the kernel)"
        )
    if matched != got:
        faults.append(f"the daemon received {got:,} datagrams but matched {matched:,}")
    for receiver in receivers:
        tally, label = receiver.tally, f'receiver="{receiver.label}"'
        offered, left = value("send_offered_datagrams_total", label), value("send_datagrams_total", label)
        errors, skipped = total("send_failed_datagrams_total", label), total("send_skipped_datagrams_total", label)
        if offered != left + errors + skipped:
            faults.append(f"{receiver.label}: {offered:,} offered is not {left:,} + {errors:,} + {skipped:,}")
        if errors or skipped:
            faults.append(f"{receiver.label}: {errors:,} copies failed, {skipped:,} were skipped")
        if left != tally.received:
            faults.append(f"{receiver.label}: the daemon sent {left:,} copies, but {tally.received:,} arrived")
        if tally.received != sent or tally.verified != sent:
            faults.append(
                f"{receiver.label}: of {sent:,} copies {tally.received:,} arrived, {tally.verified:,} verified; "
                f"wrong bytes {tally.wrong_bytes}, wrong source {tally.wrong_source}, wrong order {tally.wrong_order}"
            )
    return faults


def _summary(
    lasted: float, feeder: Feeder, receivers: Sequence[Receiver], metrics: Mapping[str, float], faults: Sequence[str]
) -> None:
    sent = feeder.sent
    print(f"\n{lasted:.1f} s: {sent:,} datagrams of {len(feeder.exporters)} exporters, {sent / lasted:,.0f} per second")
    for receiver in receivers:
        tally = receiver.tally
        source = "exporter's source" if receiver.spoof else "own source"
        print(
            f"  {receiver.label} ({source}): {tally.received:,} copies, {tally.verified:,} verified, "
            f"{max(0, sent - tally.received):,} lost, {tally.wrong:,} wrong"
        )
    if faults:
        print("\nFAILED:")
        for fault in faults:
            print(f"  {fault}")
        return
    latency = _latency(metrics)
    print(f"OK: 0 lost, every copy verified (bytes, order, source); the daemon's own counters agree.{latency}")
    command = Path(sys.executable).with_name("samplicate")
    shown = command if command.exists() else "samplicate"
    sudo = "" if os.geteuid() == 0 else "sudo "
    print("\nTo use your own routers: send their export to UDP port 2055 of this machine, and run")
    print(f"  {sudo}{shown} -S -p 2055 COLLECTOR-1/9995 COLLECTOR-2/9995")
    sys.stdout.flush()


def _latency(metrics: Mapping[str, Any]) -> str:
    count = metrics.get("samplicator_forward_latency_seconds_count", 0)
    mean = metrics.get("samplicator_forward_latency_seconds_sum", 0) / count if count else 0
    return f" Mean time in the daemon: {mean * 1e6:,.0f} us." if count else ""
