"""The two commands: `samplicator` (this file) and `samplicate`, the drop-in (cli.samplicate).

Purpose: arguments to a call and an exit status, texts for people. Invariants: importing this package and answering
--help or --version imports nothing heavy (no pydantic, aiohttp, rich, compiled module): each command imports what it
needs when it runs. Called by the console scripts and by `python -m samplicator`. It must never decide anything
the library should decide.
"""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from importlib import import_module

from samplicator.cli.parser import make_parser


def main(argv: Sequence[str] | None = None) -> int:
    """`samplicator`: returns the exit status. 0 = done, 1 = failed, 2 = wrong arguments or configuration."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = make_parser()
    if not words:
        parser.print_help(sys.stderr)
        return 2
    own, passed_on = words, None
    if words[0] == "convert" and "--" in words:
        cut = words.index("--")
        own, passed_on = words[:cut], words[cut + 1 :]
    options = parser.parse_args(own)
    options.passed_on = passed_on
    try:
        status = _command(options.command)(options)
        sys.stdout.flush()
    except BrokenPipeError:  # `samplicator status | head`: no complaint at exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    return status


def _command(name: str) -> Callable[[Namespace], int]:
    """The function of a command, imported now."""
    modules = {
        **dict.fromkeys(("check", "explain", "convert", "schema"), "configuration"),
        **dict.fromkeys(("run", "reload", "status", "ready", "demo"), "running"),
        **dict.fromkeys(("exporters", "templates", "domains"), "exporters"),
        **dict.fromkeys(("ledger", "export"), "ledger"),
        "sctp": "sctp",
        "tap": "tap.command",
        "top": "top.command",
        "witness": "witness",
    }
    found: Callable[[Namespace], int] = getattr(import_module(f"samplicator.cli.{modules[name]}"), name)
    return found


def samplicate_main(argv: Sequence[str] | None = None) -> int:
    """`samplicate`: returns the exit status. 0 for -h, 1 for errors, 5 when -t runs out."""
    from samplicator.cli.samplicate import samplicate

    try:
        return samplicate(list(sys.argv[1:] if argv is None else argv))
    except KeyboardInterrupt:
        return 130
