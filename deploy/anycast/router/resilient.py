#!/usr/bin/env python3
"""Copies the service routes of a kernel table to the main table, each as a resilient next hop group.

BIRD writes a route with many next hops as an ordinary multipath route. Linux divides its hash space anew when one of
them goes, and exporters of the others move. A resilient group (`ip nexthop ... type resilient`, Linux 5.13 and later)
keeps the buckets of the next hops that stay. So BIRD writes into a table of its own, and this program keeps, for each
route in it, a group and a route in the main table.

Called by samplicator-resilient.service on a Linux router. Standard library and iproute2 only. It must never touch a
route or next hop that it did not make: its own have the protocol number PROTOCOL.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import select
import signal
import subprocess
import sys
from typing import Any

PROTOCOL = "212"
FIRST_HOP, FIRST_GROUP = 21200, 21900
FAMILIES = ("-4", "-6")
MONITOR_SECONDS = 5.0
"""The tables are compared after this time, even if the kernel has announced no change."""
Hop = tuple[str, str]  # gateway, device


def ip(*words: str) -> str:
    """Output of `ip`. Raises RuntimeError with what it said."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True, timeout=10, check=False)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


def rows(*words: str) -> list[dict[str, Any]]:
    """Rows of `ip -json ... show`; none for a table that does not exist yet."""
    try:
        return json.loads(ip("-json", *words) or "[]")
    except RuntimeError as error:
        if "does not exist" in str(error):
            return []
        raise


def hops_of(route: dict[str, Any]) -> set[Hop]:
    """The next hops of a route whose device is up."""
    several = route.get("nexthops") or [route]
    return {
        (hop["gateway"], hop["dev"])
        for hop in several
        if "gateway" in hop and not {"dead", "linkdown"} & set(hop.get("flags", []))
    }


class Groups:
    """The groups of one address family. Its state is the kernel's: a restart of this program moves nobody."""

    def __init__(self, family: str, options: argparse.Namespace) -> None:
        self._family = family
        self._options = options

    def follow(self) -> None:
        """Makes the main table say what BIRD's table says."""
        wanted = {}
        for route in rows(self._family, "route", "show", "table", str(self._options.table)):
            hops = hops_of(route)
            if hops:
                wanted[route["dst"]] = hops
        ours = rows("nexthop", "show", "protocol", PROTOCOL)
        six = self._family == "-6"
        hops = {(row["gateway"], row["dev"]): row["id"] for row in ours if "gateway" in row}
        groups = {row["id"]: {member["id"] for member in row["group"]} for row in ours if "group" in row}
        routes = {
            row["dst"]: row["nhid"]
            for row in rows(self._family, "route", "show", "table", "main", "proto", PROTOCOL)
            if "nhid" in row
        }
        for destination, members in wanted.items():
            for hop in members - hops.keys():
                hops[hop] = unused(FIRST_HOP, hops.values())
                ip("nexthop", "add", "id", str(hops[hop]), "via", hop[0], "dev", hop[1], "protocol", PROTOCOL)
            group = routes.get(destination)
            numbers = {hops[hop] for hop in members}
            if group is None:
                group = unused(FIRST_GROUP, groups)
            if groups.get(group) != numbers:
                self._group(group, numbers, new=group not in groups)
                say(f"{destination}: {', '.join(sorted(gateway for gateway, _ in members))}")
            groups[group] = numbers
            if destination not in routes:
                ip(self._family, "route", "replace", destination, "nhid", str(group), "protocol", PROTOCOL)
        for destination in routes.keys() - wanted.keys():
            ip(self._family, "route", "del", destination, "protocol", PROTOCOL)
            ip("nexthop", "del", "id", str(routes[destination]))
            say(f"{destination}: no relay announces it")
        used = set().union(*groups.values()) if groups else set()
        for hop, number in hops.items():
            if number not in used and (":" in hop[0]) == six:
                ip("nexthop", "del", "id", str(number))

    def _group(self, number: int, members: set[int], *, new: bool) -> None:
        words = ["nexthop", "replace", "id", str(number), "group", "/".join(map(str, sorted(members)))]
        words += ["type", "resilient"]
        if new:
            words += ["buckets", str(self._options.buckets)]
        words += ["idle_timer", str(self._options.idle), "unbalanced_timer", str(self._options.unbalanced)]
        ip(*words, "protocol", PROTOCOL)


def unused(first: int, taken: Any) -> int:
    """The lowest number from `first` on that is not taken."""
    known = set(taken)
    return next(number for number in range(first, first + 700) if number not in known)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=int, default=100, help="the kernel table that BIRD writes (100)")
    parser.add_argument("--buckets", type=int, default=256, help="buckets of a group, fixed at its creation (256)")
    parser.add_argument(
        "--idle", type=int, default=60, help="seconds without a packet before a bucket may move to a new relay (60)"
    )
    parser.add_argument(
        "--unbalanced",
        type=int,
        default=0,
        help="seconds after which buckets move to a new relay although packets arrive, 0 = never (0)",
    )
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    families = [Groups(family, options) for family in FAMILIES]
    with (
        subprocess.Popen(["ip", "monitor", "route"], stdout=subprocess.PIPE) as monitor,
        contextlib.suppress(KeyboardInterrupt),
    ):
        try:
            assert monitor.stdout is not None
            told = ""
            while monitor.poll() is None:
                try:
                    for family in families:
                        family.follow()
                    told = ""
                except (RuntimeError, OSError, subprocess.TimeoutExpired) as error:
                    if str(error) != told:
                        told = str(error)
                        say(f"{told}; trying again")
                if select.select([monitor.stdout], [], [], 1.0 if told else MONITOR_SECONDS)[0]:
                    monitor.stdout.read1(1 << 16)
        finally:
            monitor.kill()
    return 1


if __name__ == "__main__":
    sys.exit(main())
