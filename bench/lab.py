"""The laboratory: three network namespaces joined by two veth pairs, and the processes that run in them.

    exporter ns  e0 ---- r0  relay ns  r1 ---- c0  collector ns

Names are random, everything is removed on leaving the `with` block, whatever happened. Only processes started
here are signaled. Used by `measure`; needs root. Never touches the namespace it was started from.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
TOOLS = REPO / "build" / "tools"
RECEIVERS_MAX = 128
LISTEN_PORT = 2055
RECEIVER_PORT = 9995
SOURCE_PORT = 4739
RMEM_MAX = Path("/proc/sys/net/core/rmem_max")


class LabError(RuntimeError):
    """The environment or a relay did not do what the measurement needs; the message says what."""


class DisturbedError(LabError):
    """The machine was too busy for this run: something was lost before the relay could see it. Worth another try."""


class Process:
    """One process in a namespace, pinned to CPUs (a taskset list); its output goes to files in the lab's directory."""

    def __init__(self, lab: Lab, namespace: str, cpus: str, argv: list[str], name: str) -> None:
        self.name, self.cpus = name, cpus
        self.out = lab.directory / f"{name}.{secrets.token_hex(3)}.out"
        self.err = self.out.with_suffix(".err")
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.popen = subprocess.Popen(
                ["ip", "netns", "exec", namespace, "taskset", "-c", cpus, *argv],
                stdout=out,
                stderr=err,
                stdin=subprocess.DEVNULL,
            )
        self.pid = self.popen.pid  # `ip netns exec` and taskset exec in place: the pid is the program's

    def signal(self, number: int) -> None:
        """SIGSTOP and SIGCONT go to its descendants too."""
        if self.popen.poll() is not None:
            return
        for child in self.family()[1:] if number in (signal.SIGSTOP, signal.SIGCONT) else ():
            with contextlib.suppress(OSError):
                os.kill(child, number)
        self.popen.send_signal(number)

    def wait(self, timeout: float) -> int:
        return self.popen.wait(timeout)

    def stop(self) -> None:
        """SIGTERM, then SIGKILL after five seconds; then whatever it left behind."""
        children = self.family()[1:] if self.alive() else []
        if self.popen.poll() is None:
            self.signal(signal.SIGCONT)
            self.signal(signal.SIGTERM)
            try:
                self.popen.wait(5)
            except subprocess.TimeoutExpired:
                self.popen.kill()
                self.popen.wait(5)
        for child in children:
            with contextlib.suppress(OSError):
                os.kill(child, signal.SIGKILL)

    def result(self, timeout: float) -> dict:
        """The one JSON line a tool prints at its end."""
        self.wait(timeout)
        text = self.out.read_text().strip()
        if not text:
            raise LabError(f"{self.name} printed nothing: {self.errors()}")
        return json.loads(text.splitlines()[-1])

    def errors(self) -> str:
        return self.err.read_text(errors="replace")[-2000:].strip()

    def alive(self) -> bool:
        return self.popen.poll() is None

    def wait_ready(self, timeout: float = 10) -> None:
        """The C tools print "ready" on stderr once bound."""
        end = time.monotonic() + timeout
        while "ready" not in self.err.read_text():
            if not self.alive() or time.monotonic() > end:
                raise LabError(f"{self.name} did not get ready: {self.errors()}")
            time.sleep(0.01)

    def family(self) -> list[int]:
        """This process and its descendants (pmacct and nfcapd forward from a child)."""
        found = [self.pid]
        for pid in found:
            for task in Path(f"/proc/{pid}/task").glob("*/children"):
                with contextlib.suppress(OSError):
                    found += [int(child) for child in task.read_text().split()]
        return found

    def cpu_ns(self) -> dict[int, int]:
        """CPU time of each thread in nanoseconds, softirq work done in its context included."""
        found = {}
        for pid in self.family():
            for schedstat in Path(f"/proc/{pid}/task").glob("*/schedstat"):
                with contextlib.suppress(OSError, ValueError, IndexError):
                    found[int(schedstat.parent.name)] = int(schedstat.read_text().split()[0])
        return found

    def threads_named(self, prefix: str) -> set[int]:
        """Threads whose name starts with `prefix`."""
        found = set()
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            with contextlib.suppress(OSError):
                if (task / "comm").read_text().startswith(prefix):
                    found.add(int(task.name))
        return found

    def rss_kib(self) -> int:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
                if line.startswith("VmRSS:"):
                    return int(line.split()[1])
        return 0

    def udp_queue(self, port: int) -> tuple[int, int, int]:
        """(sockets, bytes waiting, drops) of this namespace's UDP sockets bound to `port`, both families."""
        sockets = waiting = drops = 0
        for family in ("udp", "udp6"):
            with contextlib.suppress(OSError):
                for line in Path(f"/proc/{self.pid}/net/{family}").read_text().splitlines()[1:]:
                    part = line.split()
                    if int(part[1].rsplit(":", 1)[1], 16) == port:
                        sockets += 1
                        waiting += int(part[4].split(":")[1], 16)
                        drops += int(part[12])
        return sockets, waiting, drops

    def device_bytes(self, device: str) -> int:
        """Bytes received by `device` in this process's namespace."""
        for line in Path(f"/proc/{self.pid}/net/dev").read_text().splitlines():
            name, _, rest = line.partition(":")
            if name.strip() == device:
                return int(rest.split()[0])
        raise LabError(f"no device {device}")


def run(*argv: str, text: str | None = None) -> str:
    done = subprocess.run(argv, input=text, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LabError(f"{' '.join(argv)}: {done.stderr.strip()}")
    return done.stdout


class Lab:
    """Use as a context manager. `relay_cpu` is the relay's alone; everything else is pinned to `other_cpu`."""

    def __init__(self, relay_cpu: int = 1, other_cpu: int = 0, mtu: int = 1500) -> None:
        tag = secrets.token_hex(3)
        self.exporter, self.relay, self.collector = f"bench-e-{tag}", f"bench-r-{tag}", f"bench-c-{tag}"
        self.relay_cpu, self.other_cpu, self.mtu = relay_cpu, other_cpu, mtu
        self.processes: list[Process] = []
        self.directory = Path()
        self.rmem_max = ""

    def __enter__(self) -> Lab:
        if os.geteuid() != 0:
            raise LabError("the benchmark needs root (network namespaces)")
        if (os.cpu_count() or 1) < 2:
            raise LabError("the benchmark needs two CPUs: one for the relay alone")
        for tool in ("ip", "taskset", "nft", "ethtool"):
            if not shutil.which(tool):
                raise LabError(f"{tool} is missing (Debian: iproute2 util-linux nftables ethtool)")
        os.sched_setaffinity(0, {self.other_cpu})
        self.directory = Path(tempfile.mkdtemp(prefix="bench-"))
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        try:
            self._build()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            with contextlib.suppress(Exception):
                process.stop()
        for namespace in (self.exporter, self.relay, self.collector):
            subprocess.run(["ip", "netns", "del", namespace], capture_output=True, check=False)
        shutil.rmtree(self.directory, ignore_errors=True)
        if self.rmem_max:
            RMEM_MAX.write_text(self.rmem_max)

    def _build(self) -> None:
        e, r, c = self.exporter, self.relay, self.collector
        for namespace in (e, r, c):
            run("ip", "netns", "add", namespace)
            run("ip", "-n", namespace, "link", "set", "lo", "up")
            run("ip", "netns", "exec", namespace, "sysctl", "-qw", "net.ipv4.conf.all.rp_filter=0",
                "net.ipv4.conf.default.rp_filter=0", "net.ipv6.conf.default.accept_dad=0")  # fmt: skip
        for left, near, far, right in ((e, "e0", "r0", r), (r, "r1", "c0", c)):
            run("ip", "-n", left, "link", "add", near, "type", "veth", "peer", "name", far, "netns", right)
            run("ip", "-n", left, "link", "set", near, "mtu", str(self.mtu))
            run("ip", "-n", right, "link", "set", far, "mtu", str(self.mtu))
        # What a generator sends in segments must reach the relay as single datagrams.
        run("ip", "netns", "exec", e, "ethtool", "-K", "e0", "tx-udp-segmentation", "off")
        for namespace, device in ((e, "e0"), (r, "r0"), (r, "r1"), (c, "c0")):
            run("ip", "netns", "exec", namespace, "sysctl", "-qw", f"net.ipv4.conf.{device}.rp_filter=0")
            run("ip", "-n", namespace, "link", "set", device, "up")
        # Exporters: 198.18.0.0/15 and 2001:db8:e::/48, routed to the exporter side.
        # Collectors: 198.19.255.0/24 and 2001:db8:c::/64.
        self._batch(e, ["addr add 198.19.254.1/30 dev e0", "addr add 2001:db8:f::1/64 dev e0 nodad",
                        "route add default via 198.19.254.2", "-6 route add default via 2001:db8:f::2"])  # fmt: skip
        self._batch(r, ["addr add 198.19.254.2/30 dev r0", "addr add 2001:db8:f::2/64 dev r0 nodad",
                        "addr add 198.19.255.254/24 dev r1", "addr add 2001:db8:c::ffff/64 dev r1 nodad",
                        "route add 198.18.0.0/15 via 198.19.254.1",
                        "-6 route add 2001:db8:e::/48 via 2001:db8:f::1"])  # fmt: skip
        lines = ["route add default via 198.19.255.254", "-6 route add default via 2001:db8:c::ffff"]
        for i in range(RECEIVERS_MAX):
            lines.insert(i * 2, f"addr add {self.receiver_address(i, False)}/24 dev c0")
            lines.insert(i * 2 + 1, f"addr add {self.receiver_address(i, True)}/64 dev c0 nodad")
        self._batch(c, lines)
        self.witness = self.start(c, self.other_cpu, ["sleep", "infinity"], "witness")

    @staticmethod
    def _batch(namespace: str, lines: list[str]) -> None:
        for family in ("", "-6 "):
            chosen = [line.removeprefix("-6 ") for line in lines if line.startswith("-6 ") == bool(family)]
            run("ip", *family.split(), "-n", namespace, "-batch", "-", text="\n".join(chosen) + "\n")

    # -- addresses --

    @staticmethod
    def receiver_address(index: int, ipv6: bool) -> str:
        return f"2001:db8:c::{index + 1:x}" if ipv6 else f"198.19.255.{index + 1}"

    @classmethod
    def receiver(cls, index: int, ipv6: bool) -> str:
        address = cls.receiver_address(index, ipv6)
        return f"[{address}]:{RECEIVER_PORT}" if ipv6 else f"{address}:{RECEIVER_PORT}"

    @staticmethod
    def listen(ipv6: bool) -> str:
        return f"[2001:db8:f::2]:{LISTEN_PORT}" if ipv6 else f"198.19.254.2:{LISTEN_PORT}"

    @staticmethod
    def source_base(ipv6: bool) -> str:
        return "2001:db8:e::1" if ipv6 else "198.18.0.1"

    # -- processes --

    def start(self, namespace: str, cpus: int | str, argv: list[str], name: str) -> Process:
        process = Process(self, namespace, str(cpus), argv, name)
        self.processes.append(process)
        return process

    def start_relay(self, argv: list[str], name: str, cpus: int | str) -> Process:
        return self.start(self.relay, cpus, argv, name)

    def start_sink(self, receivers: int, ipv6: bool, *options: str) -> Process:
        argv = [str(TOOLS / "sink"), "--buffer", str(512 << 20), *options]
        for i in range(receivers):
            argv += ["--listen", self.receiver(i, ipv6)]
        sink = self.start(self.collector, self.other_cpu, argv, "sink")
        sink.wait_ready()
        return sink

    def start_loadgen(self, ipv6: bool, *options: str) -> Process:
        argv = [str(TOOLS / "loadgen"), "--to", self.listen(ipv6)]
        argv += ["--source-base", self.source_base(ipv6), "--source-port", str(SOURCE_PORT), *options]
        return self.start(self.exporter, self.other_cpu, argv, "loadgen")

    # -- the collector's and the device's settings --

    def drop_at_ingress(self, on: bool) -> None:
        """Count and drop the copies at the collector's device, before its IP stack; the same for every relay."""
        run("ip", "netns", "exec", self.collector, "nft", "flush", "ruleset")
        if on:
            run("ip", "netns", "exec", self.collector, "nft", "-f", "-", text=f"""
                table netdev bench {{
                    counter v4 {{}}
                    counter v6 {{}}
                    chain in {{
                        type filter hook ingress device c0 priority 0;
                        ip protocol udp udp dport {RECEIVER_PORT} counter name v4 drop
                        ip6 nexthdr udp udp dport {RECEIVER_PORT} counter name v6 drop
                    }}
                }}""")  # fmt: skip

    def drop_at_relay(self, on: bool) -> None:
        """What a ring on r0 has seen must not reach the UDP stack as well."""
        run("ip", "netns", "exec", self.relay, "nft", "flush", "ruleset")
        if on:
            run("ip", "netns", "exec", self.relay, "nft", "-f", "-", text=f"""
                table netdev bench {{
                    chain in {{
                        type filter hook ingress device r0 priority 0;
                        ip protocol udp ip frag-off & 0x3fff == 0 udp dport {LISTEN_PORT} drop
                        ip6 nexthdr udp udp dport {LISTEN_PORT} drop
                    }}
                }}""")  # fmt: skip

    def next_hop(self) -> str:
        """Link address of the collector's device."""
        return json.loads(run("ip", "-j", "-n", self.collector, "link", "show", "c0"))[0]["address"]

    def ingress_counters(self) -> tuple[int, int]:
        """(packets, UDP payload bytes) dropped at ingress. A segmented send that crosses whole counts as one packet."""
        text = run("ip", "netns", "exec", self.collector, "nft", "-j", "list", "counters")
        packets = payload = 0
        for entry in json.loads(text)["nftables"]:
            if counter := entry.get("counter"):
                packets += counter["packets"]
                payload += counter["bytes"] - counter["packets"] * (48 if counter["name"] == "v6" else 28)
        return packets, payload

    def allow_receive_buffers(self, size: int) -> None:
        """For relays that do not force their buffer: raises the machine's rmem_max until the lab is left."""
        if not self.rmem_max:
            self.rmem_max = RMEM_MAX.read_text()
        RMEM_MAX.write_text(str(size))

    def offload(self, on: bool) -> None:
        """UDP segmentation offload of the relay's device towards the collectors."""
        run("ip", "netns", "exec", self.relay, "ethtool", "-K", "r1", "tx-udp-segmentation", "on" if on else "off")
