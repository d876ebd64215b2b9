"""Fuzzed datagrams through the whole daemon under ASan and UBSan: `make asan` sends 200,000, `make fuzz` ten million.

bench/tools/forge sends them in a laboratory of its own, each from another address and port, to receivers of every
engine, some of which sample, renumber and refresh. The daemon must live, say nothing, and count every datagram and
copy: both conservation laws hold at the end. Start it with the environment that the Makefile's ASAN_ENV gives.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from functools import partial
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from support.lab import Lab  # noqa: E402
from support.process import bench_tool, wait_for  # noqa: E402
from support.relay import Relay  # noqa: E402

SLICE = 50_000  # on its way at once: fits into the listener's queue
PER_SEED = 4_000_000  # datagrams that one seed's addresses and ports are enough for
RECEIVERS = {
    "udp": "",
    "sampled": "freq = 3\n",
    "spoofed": "spoof = true\n",
    "raw": 'spoof = true\nengine = "raw"\nfreq = 7\n',
    "packet": 'spoof = true\nengine = "packet"\n',
    "refreshed": "template_refresh_packets = 5\n",
}


def configuration(lab: Lab) -> str:
    text = '[[listener]]\nname = "in"\nlisten = ["0.0.0.0:2055"]\n'
    for number, (name, more) in enumerate(RECEIVERS.items()):
        text += f'[[receiver]]\nname = "{name}"\nto = "{lab.peer4(1)}:{9000 + number}"\nprobe = "off"\n{more}'
    return f"{text}[[rule]]\nto = [{', '.join(repr(name) for name in RECEIVERS)}]\n"


def sanitized(relay: Relay) -> bool:
    maps = Path(f"/proc/{relay.pid}/maps").read_text()
    return "libasan" in maps and "build/asan/lib/samplicator/_fastpath" in maps


def modest(relay: Relay) -> None:
    """This is a long job: everything else goes first."""
    for task in Path(f"/proc/{relay.pid}/task").iterdir():
        with contextlib.suppress(ProcessLookupError):
            os.setpriority(os.PRIO_PROCESS, int(task.name), 10)


def taken(relay: Relay, count: int) -> bool:
    return relay.metrics().value("receive_datagrams_total", listener="in") >= count


def feed(lab: Lab, relay: Relay, count: int, seed: int) -> None:
    """Slice by slice, each taken by the relay before the next."""
    sent, shown = 0, time.monotonic()
    while sent < count:
        n = min(SLICE, count - sent)
        numbers = {"first": sent % PER_SEED, "count": n, "seed": seed + sent // PER_SEED}
        words = [word for name, value in numbers.items() for word in (f"--{name}", str(value))]
        where = ["--to", f"{lab.relay4()}:2055", "--source-base", "198.18.128.0"]
        tool = lab.start([bench_tool("forge"), *where, *words], lab.exporter, "forge")
        assert tool.result()["sent"] == n
        lab.processes.remove(tool)
        sent += n
        wait_for(partial(taken, relay, sent), f"the relay to take {sent} datagrams", 120, 0.05)
        if time.monotonic() - shown > 30:
            shown = time.monotonic()
            print(f"{sent} datagrams", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    started = time.monotonic()
    lab = Lab(collectors=1)
    try:
        for number in range(len(RECEIVERS)):
            lab.collector_socket(1, 9000 + number)  # never read
        relay = lab.samplicator(configuration(lab), ready=False).wait_ready(60)
        assert sanitized(relay), "not the build with the sanitizers: see ASAN_ENV in the Makefile"
        modest(relay)
        feed(lab, relay, options.count, options.seed)
        metrics = relay.check_laws()
        assert metrics.value("receive_datagrams_total", listener="in") == options.count
        said = relay.stderr()
        assert "runtime error" not in said, said
        assert "Sanitizer" not in said, said
        malformed = metrics.total("flow_malformed_datagrams_total")
        copies = metrics.total("send_offered_datagrams_total")
    finally:
        lab.close()
    seconds = time.monotonic() - started
    print(f"{options.count} datagrams ({malformed} malformed), {copies} copies, no finding, {seconds:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
