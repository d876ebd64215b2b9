"""Masquerade: finds firewall rules of this host that rewrite source addresses, with the host's own tools.

A spoofed copy passes the firewall like any outgoing packet (except with engine "packet"). A rule that masquerades it
gives it the address of this host, and the collector sees one exporter. Called only by `check` and `explain`, because it
starts programs. Bounded in time; a failure gives an empty answer, not an error.
"""

from __future__ import annotations

import re
import subprocess
from typing import Final

TOOLS: Final = (
    ("nft", "list", "ruleset"),
    ("iptables-legacy-save", "-t", "nat"),
    ("ip6tables-legacy-save", "-t", "nat"),
)
"""What shows the rules; `iptables` of today writes nftables rules, which nft lists."""
SECONDS: Final = 2.0
SHOWN: Final = 3
_NFT_BLOCK: Final = re.compile(r"^\s*(table|chain)\s+(.*?)\s*\{$")
_REWRITES: Final = re.compile(r'\bmasquerade\b|\bsnat (ip6? )?(prefix )?to\b|(-j |")(MASQUERADE|SNAT)\b')
_COMMENT: Final = re.compile(r'(--)?comment "[^"]*"|--comment \S+')


def rules() -> list[str]:
    """The rules that rewrite source addresses, SHOWN at most; [] when there are none or they may not be read."""
    found: list[str] = []
    for command in TOOLS:
        try:
            done = subprocess.run(
                command, capture_output=True, timeout=SECONDS, check=False, text=True, errors="replace"
            )
        except (OSError, subprocess.SubprocessError):
            continue
        if done.returncode == 0:
            found += parse(command[0], done.stdout)
    return found[:SHOWN]


def parse(tool: str, text: str) -> list[str]:
    """The rules of one tool's listing, each with its table and chain."""
    found = []
    table = chain = ""
    for line in text.splitlines():
        block = _NFT_BLOCK.match(line)
        if block is not None:
            if block[1] == "table":
                table, chain = block[2], ""
            else:
                chain = block[2]
        elif _REWRITES.search(_COMMENT.sub("", line)):
            where = f"table {table} chain {chain}: " if table else ""
            found.append(f"{tool}: {where}{' '.join(line.split())[:120]}")
    return found


def sentence(found: list[str]) -> str:
    """For people."""
    return (
        f"this host rewrites source addresses ({'; '.join(found)}); spoofed copies that this rule matches lose the "
        'exporter\'s address. Exclude UDP to the collectors from the rule, or write engine = "packet"'
    )
