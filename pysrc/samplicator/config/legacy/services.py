"""Port numbers of service names.

Purpose: `syslog` -> 514 for the rule file and the command line of `samplicate`, from /etc/services and, where that has
nothing (minimal containers), from a short table of telemetry services. Called by config.legacy only. Never imports
socket, never asks a network service.
"""

from __future__ import annotations

from functools import cache

TELEMETRY = {
    "snmp": 161,
    "snmptrap": 162,
    "snmp-trap": 162,
    "syslog": 514,
    "netflow": 2055,
    "ipfix": 4739,
    "ipfixs": 4740,
    "sflow": 6343,
}


@cache
def _etc_services(path: str = "/etc/services") -> dict[str, int]:
    """UDP services of the file, by name and alias; empty when there is no such file."""
    ports: dict[str, int] = {}
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                words = line.partition("#")[0].split()
                if len(words) < 2:
                    continue
                number, _, protocol = words[1].partition("/")
                if protocol == "udp" and number.isascii() and number.isdigit() and 1 <= int(number) <= 65535:
                    for name in (words[0], *words[2:]):
                        ports.setdefault(name, int(number))
    except OSError:
        return {}
    return ports


def port_by_name(name: str) -> int | None:
    """The UDP port of a service; None when it is not known."""
    return _etc_services().get(name, TELEMETRY.get(name))
