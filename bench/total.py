"""All CPU counted: `total` (a queue drained) and `steady` (a load that the relay keeps up with).

What the thread of a relay uses is one part of what it costs: receiving is done in softirq, in nobody's account, and an
engine in the kernel works there alone. So here the receiving device's NAPI runs as a kernel thread on the relay's CPU,
and what is counted is that thread, ksoftirqd of that CPU and the whole process, per copy that arrived. The collector's
device drops what it gets by a BPF program, which every relay pays for alike. What else ran on the relay's CPU is said
(`other_ns`, to 20 ms): it must be next to nothing. Called by `run`; knows nothing of tables and medians.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import measure
from lab import LISTEN_PORT, REPO, SOURCE_PORT, TOOLS, DisturbedError, Lab, LabError, run
from matrix import RELAYS, TRAFFICS, Case, Relay

sys.path.insert(0, str(REPO / "pysrc"))

from samplicator.host.libbpf import Hook, Map, Objects

FIFO_NAPI, FIFO_LOADGEN = 40, 50
FILL_RATE = 100_000
FILL_GRAIN_US = 1000
"""Bursts of FILL_RATE * FILL_GRAIN_US datagrams, so that the NAPI thread works in full batches."""
STEADY_GRAIN_US = 50
"""At least: one or two datagrams at once at 30,000/s; where an exporter sends runs, a run at once."""
QUIET_S = 0.02
CLONE_NEWNET = 0x40000000

_libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def inside(namespace: str) -> Iterator[None]:
    """This thread in the network namespace."""
    with open("/proc/thread-self/ns/net") as home, open(f"/run/netns/{namespace}") as there:
        _enter(there.fileno())
        try:
            yield
        finally:
            _enter(home.fileno())


def _enter(namespace: int) -> None:
    if _libc.setns(namespace, CLONE_NEWNET) != 0:
        raise LabError(f"setns: {os.strerror(ctypes.get_errno())}")


def named(prefix: str) -> set[int]:
    """Kernel threads whose name begins so."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (folder / "comm").read_text().startswith(prefix):
                found.add(int(folder.name))
    return found


def ran_ns(thread: int) -> int:
    return int(Path(f"/proc/{thread}/schedstat").read_text().split()[0])


def busy_ns(cpu: int) -> int:
    """Time that this CPU was not idle, since some moment: to 10 ms (proc(5), stat: idle and iowait)."""
    now = time.monotonic_ns()
    for line in Path("/proc/stat").read_text().splitlines():
        words = line.split()
        if words[0] == f"cpu{cpu}":
            return now - (int(words[4]) + int(words[5])) * 1_000_000_000 // os.sysconf("SC_CLK_TCK")
    raise LabError(f"no CPU {cpu}")


@dataclass(frozen=True)
class Spent:
    """ns of CPU: the receiving device's thread, ksoftirqd, and all that the relay's CPU did."""

    receive: int
    ksoftirqd: int
    everything: int

    def __sub__(self, other: Spent) -> Spent:
        return Spent(self.receive - other.receive, self.ksoftirqd - other.ksoftirqd, self.everything - other.everything)


class Accounts:
    """Of a lab: receiving has a thread of its own from now on. The sink, a BPF program, goes with this process."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        run("ip", "netns", "exec", lab.relay, "ethtool", "-K", "r0", "gro", "on")  # a veth has a NAPI only then
        # Checksums as on a wire, and no runs of TCP's.
        run("ip", "netns", "exec", lab.exporter, "ethtool", "-K", "e0", "tx", "off", "tso", "off")
        before = named("napi/r0")
        run("ip", "netns", "exec", lab.relay, "sh", "-c", "echo 1 > /sys/class/net/r0/threaded")
        end = time.monotonic() + 5
        while len(new := named("napi/r0") - before) != 1:
            if time.monotonic() > end:
                raise LabError(f"{len(new)} NAPI threads of r0: this kernel has no threaded NAPI for veth")
            time.sleep(0.01)
        (self._napi,) = new
        run("taskset", "-cp", str(lab.relay_cpu), str(self._napi))
        run("chrt", "-f", "-p", str(FIFO_NAPI), str(self._napi))
        (self._ksoftirqd,) = named(f"ksoftirqd/{lab.relay_cpu}\n")
        self._objects: Objects | None = None
        self._frames: bool | None = None
        self._close = contextlib.ExitStack()

    def drop(self, frames: bool | None) -> None:
        """The collector drops what comes; frames: what XDP redirects, too; None: it does not."""
        if frames == self._frames:
            return
        self._close.close()
        self.lab.drop_at_ingress(False)
        self._frames = frames
        if frames is None:
            return
        name = "drop_frames" if frames else "drop_packets"
        try:
            self._objects = Objects((TOOLS / "drop.bpf.o").read_bytes(), [name])
            self._close.callback(self._objects.close)
            with inside(self.lab.collector):
                hook = Hook.XDP if frames else Hook.TCX_INGRESS
                link = self._objects.attach(name, socket.if_nametoindex("c0"), hook)
            self._close.callback(link.close)
        except OSError as error:
            raise LabError(f"no BPF sink here: {error}") from None

    def arrived(self) -> tuple[int, int]:
        """(packets, payload bytes) at the sink since it was made."""
        assert self._objects is not None
        seen: Map = self._objects.maps["seen"]
        raw = seen.get(bytes(4)) or b""
        each = list(struct.iter_unpack("=QQ", raw))
        return sum(packets for packets, _ in each), sum(payload for _, payload in each)

    def settled(self, expected: int) -> tuple[int, int]:
        """`arrived`, as soon as it is so many bytes, or nothing more comes: softirq may be behind."""
        end, last = time.monotonic() + 1, (-1, -1)
        while last[1] < expected and time.monotonic() < end:
            last = self.arrived()
            time.sleep(measure.POLL_S)
        return last

    def dropped(self) -> int:
        """Packets that did not fit between the exporter's device and the relay's: no relay has seen them."""
        found = 0
        for namespace, device, way in ((self.lab.exporter, "e0", "tx"), (self.lab.relay, "r0", "rx")):
            (said,) = json.loads(run("ip", "-n", namespace, "-j", "-s", "link", "show", device))
            found += said["stats64"][way]["dropped"]
        return found

    def spent(self) -> Spent:
        return Spent(ran_ns(self._napi), ran_ns(self._ksoftirqd), busy_ns(self.lab.relay_cpu))

    def blame(self, relay: Relay, dropped_before: int, what: str) -> None:
        """Raises for bytes that are missing: DisturbedError if they never came to the relay (a generator that was held
        up catches up in a burst that the device's ring does not hold).
        """
        if lost := self.dropped() - dropped_before:
            raise DisturbedError(f"{what}; {lost} packets were dropped before the relay's device")
        measure.blame(self.lab, relay, what)

    def quiet(self) -> None:
        """Waits until the receiving thread has nothing more to do."""
        end, last = time.monotonic() + 10, -1
        while last != (last := ran_ns(self._napi)):
            if time.monotonic() > end:
                raise DisturbedError("the receiving device does not come to rest")
            time.sleep(QUIET_S)


def burst(lab: Lab, case: Case) -> tuple[dict, int]:
    """The whole fill, from the relay's own CPU and before all else there; what was sent, and the generator's CPU ns."""
    argv = ["chrt", "-f", str(FIFO_LOADGEN), str(TOOLS / "loadgen"), "--to", lab.listen(case.ipv6)]
    argv += ["--source-base", lab.source_base(case.ipv6), "--source-port", str(SOURCE_PORT)]
    argv += [*measure.traffic_options(case), "--count", str(case.datagrams), "--rate", str(FILL_RATE)]
    argv += ["--tick-us", str(FILL_GRAIN_US), "--catch-up-ms", str(FILL_GRAIN_US / 1000)]
    process = lab.start(lab.exporter, lab.relay_cpu, argv, "loadgen")
    last = 0
    while process.alive():
        last = sum(process.cpu_ns().values()) or last
        time.sleep(measure.POLL_S)
    return process.result(120), last


def figures(spent: Spent, process_ns: int, generator_ns: int, sent: dict, case: Case, arrived: tuple[int, int]) -> dict:
    packets, payload = arrived
    expected = sent["bytes"] * case.receivers
    copies = sent["sent"] * case.receivers
    total = spent.receive + spent.ksoftirqd + process_ns
    return {
        "copies": copies,
        "lost_bytes": expected - payload,
        "total_ns": total,
        "receive_ns": spent.receive,
        "ksoftirqd_ns": spent.ksoftirqd,
        "process_ns": process_ns,
        "other_ns": spent.everything - total - generator_ns,
        "ns_per_copy": round(total / copies, 1),
        "receive_ns_per_datagram": round((spent.receive + spent.ksoftirqd) / sent["sent"], 1),
        "copies_per_cpu_s": round(copies * 1e9 / total),
        "copies_per_packet": round(copies / max(packets, 1), 2),
    }


def total(lab: Lab, accounts: Accounts, case: Case, relay_name: str) -> dict:
    """The queue filled while the relay is stopped, then drained: both parts count. In an engine of the kernel's, all is
    done when the fill is.
    """
    relay = RELAYS[relay_name]
    accounts.drop(relay.frames)
    if not relay.frames:  # no segmentation towards an interface that has an XDP program
        lab.offload(case.offload)
    process = measure.start_relay(lab, case, relay)
    try:
        measure.warm_up(lab, case, process)
        accounts.quiet()
        packets, payload = accounts.arrived()
        dropped = accounts.dropped()
        drops = process.udp_queue(LISTEN_PORT)[2]
        process.signal(signal.SIGSTOP)
        used, before = process.cpu_ns(), accounts.spent()
        sent, generator = burst(lab, case)
        accounts.quiet()
        if process.udp_queue(LISTEN_PORT)[2] != drops:
            raise DisturbedError("the receive queue overflowed")
        measure.release(lab, process, sent["bytes"] * case.receivers)
        accounts.quiet()
        now = accounts.settled(payload + sent["bytes"] * case.receivers)
        spent = accounts.spent() - before
        process_ns = measure.cpu_spent(process, used, process.cpu_ns())["process_ns"]
        got = figures(spent, process_ns, generator, sent, case, (now[0] - packets, now[1] - payload))
        if got["lost_bytes"]:
            accounts.blame(relay, dropped, f"{relay_name}: {got['lost_bytes']} payload bytes missing")
    finally:
        process.stop()
    return got


def steady(lab: Lab, accounts: Accounts, case: Case, relay_name: str, rate: float, seconds: float) -> dict:
    """A load that it keeps up with, from the other CPU; `busy`: the part of one CPU that all of it took."""
    relay = RELAYS[relay_name]
    accounts.drop(relay.frames)
    if not relay.frames:  # no segmentation towards an interface that has an XDP program
        lab.offload(case.offload)
    process = measure.start_relay(lab, case, relay, measure.RECEIVE_BUFFER_PACED)
    try:
        measure.warm_up(lab, case, process)
        accounts.quiet()
        packets, payload = accounts.arrived()
        dropped = accounts.dropped()
        used, before, start = process.cpu_ns(), accounts.spent(), time.monotonic()
        options = [*measure.traffic_options(case), "--rate", f"{rate:.0f}", "--seconds", str(seconds)]
        grain_us = max(STEADY_GRAIN_US, TRAFFICS[case.traffic].run / rate * 1e6)
        sent = lab.start_loadgen(case.ipv6, *options, "--tick-us", f"{grain_us:.0f}").result(seconds + 30)
        measure.wait_empty(process, LISTEN_PORT)
        now = accounts.settled(payload + sent["bytes"] * case.receivers)
        spent, took = accounts.spent() - before, time.monotonic() - start
        process_ns = measure.cpu_spent(process, used, process.cpu_ns())["process_ns"]
        got = figures(spent, process_ns, 0, sent, case, (now[0] - packets, now[1] - payload))
        if got["lost_bytes"]:
            what = f"{relay_name}: {got['lost_bytes']} payload bytes missing at a steady rate"
            accounts.blame(relay, dropped, what)
    finally:
        process.stop()
    return {**got, "rate": sent["rate"], "busy": round(got["total_ns"] * 1e-9 / took, 3)}


def verified(lab: Lab, accounts: Accounts, case: Case, relay_name: str, rate: float, seconds: float) -> dict:
    """The same way with a sink that checks every copy, at a rate that it keeps up with."""
    accounts.drop(None)
    gro = "on" if RELAYS[relay_name].frames else "off"  # without it veth takes no frames that XDP redirects
    run("ip", "netns", "exec", lab.collector, "ethtool", "-K", "c0", "gro", gro)
    got = measure.paced(lab, case, relay_name, rate, seconds)
    wrong = {
        key: got[key]
        for key in ("lost", "relay_queue_drops", "sink_drops", "repeated", "reordered", "corrupt", "wrong_source")
        if got[key]
    }
    if wrong:
        raise LabError(f"{relay_name}: {wrong}")
    return got
