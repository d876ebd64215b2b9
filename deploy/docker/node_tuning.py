#!/opt/venv/bin/python -I
"""Raises kernel settings of this host for the relay, and spreads received packets over the CPUs (RPS).

    node-tuning --sysctl net.core.rmem_max=67108864 --rps auto

The image has it as /opt/venv/bin/node-tuning; the node-tuning component of deploy/kubernetes runs it, as root in a
privileged init container in the network of the host. Invariants: a setting is never lowered, so a node that is tuned
for more keeps its values; what this host refuses is one line and never stops the relay, which reports the buffers it
got. Exit status: 0, or 2 for wrong arguments. It uses the standard library only, and must never run in the daemon.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

SYSCTLS = Path("/proc/sys")
DEVICES = Path("/sys/class/net")
AUTO = "auto"


def setting(word: str) -> tuple[str, int]:
    """`NAME=NUMBER`: a name below net., a number from 1 to 2147483647 (a signed int of the kernel)."""
    name, _, number = word.partition("=")
    if not re.fullmatch(r"net(\.[a-z0-9_]+)+", name):
        raise argparse.ArgumentTypeError(f"{word}: write NAME=NUMBER, with a name that begins with net.")
    if not re.fullmatch(r"[0-9]{1,10}", number) or not 1 <= int(number) <= 2**31 - 1:
        raise argparse.ArgumentTypeError(f"{word}: the number must be between 1 and 2147483647")
    return name, int(number)


def device(word: str) -> str:
    """`auto`, or the name of an interface (1 to 15 characters, no slash: dev_valid_name() in net/core/dev.c)."""
    if word in {".", ".."} or not re.fullmatch(r"[^/\s]{1,15}", word):
        raise argparse.ArgumentTypeError(f"{word}: write the name of an interface, or {AUTO}")
    return word


def raise_sysctl(name: str, least: int) -> str:
    """Sets a number to `least` if it is lower. Returns the line that says what happened."""
    path = SYSCTLS / name.replace(".", "/")
    try:
        now = int(path.read_text())
        if now >= least:
            return f"{name} = {now}: kept"
        path.write_text(str(least))
        return f"{name} = {int(path.read_text())}: raised from {now}"
    except (OSError, ValueError) as error:
        return f"{name} could not be set to {least}: {error}"


def cpu_mask(cpus: Sequence[int]) -> str:
    """The form that rps_cpus reads: groups of 32 bits in hexadecimal, the highest first (bitmap_parse())."""
    bits = sum(1 << cpu for cpu in set(cpus))
    groups = []
    while bits or not groups:
        groups.append(f"{bits & 0xFFFFFFFF:08x}")
        bits >>= 32
    return ",".join(reversed(groups))


def physical_devices() -> list[str]:
    """Interfaces with hardware behind them. Those of containers and bridges have none."""
    try:
        return sorted(path.name for path in DEVICES.iterdir() if (path / "device").exists())
    except OSError:
        return []


def spread(name: str, cpus: Sequence[int]) -> str:
    """Lets all `cpus` process what the queues of an interface receive. Returns the line that says what happened.

    With a queue per CPU the hardware spreads already, and RPS would only add work (the kernel's networking/scaling.rst,
    "Suggested Configuration"). A queue whose mask somebody has set keeps it.
    """
    folder = DEVICES / name / "queues"
    try:
        queues = sorted(folder.glob("rx-*"))
        if not queues:
            return f"{name}: no receive queues in {folder}"
        if len(queues) >= len(cpus):
            return f"{name}: {len(queues)} receive queues for {len(cpus)} CPUs, RPS is not needed"
        mine = [queue / "rps_cpus" for queue in queues if not (queue / "rps_cpus").read_text().strip("0,\n")]
        for mask in mine:
            mask.write_text(cpu_mask(cpus))
        return f"{name}: RPS over {len(cpus)} CPUs on {len(mine)} of {len(queues)} receive queues"
    except OSError as error:
        return f"{name}: RPS could not be set: {error}"


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="node-tuning", description="Raises kernel settings of this host for the relay."
    )
    parser.add_argument(
        "--sysctl", type=setting, action="append", default=[], metavar="NAME=NUMBER", help="least value of a setting"
    )
    parser.add_argument(
        "--rps",
        type=device,
        action="append",
        default=[],
        metavar="INTERFACE",
        help=f"spread what this interface receives over all CPUs; {AUTO}: every interface with hardware behind it",
    )
    options = parser.parse_args(words)
    for name, least in options.sysctl:
        print(raise_sysctl(name, least))
    cpus = range(os.cpu_count() or 1)
    names = [found for name in options.rps for found in (physical_devices() if name == AUTO else [name])]
    for name in dict.fromkeys(names):
        print(spread(name, cpus))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
