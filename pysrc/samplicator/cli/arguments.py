"""Arguments that several commands of `samplicator` have, and the types of arguments.

Called by cli.parser. Imports argparse only, so that --help is quick.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Final

DEFAULT_CONFIG: Final = "/etc/samplicator/samplicator.toml"
DEFAULT_CONTROL: Final = "/run/samplicator/control.sock"


# ---------------------------------------------------------------------------------------------------- several commands


def config(parser: argparse.ArgumentParser) -> None:
    """-c, the configuration file of commands that read it themselves."""
    parser.add_argument(
        "-c",
        "--config",
        metavar="FILE",
        default=DEFAULT_CONFIG,
        help=f"the configuration file (default {DEFAULT_CONFIG})",
    )


def control(parser: argparse._ActionsContainer, key: str = "service.control", *, short: bool = True) -> None:
    """--control, and the configuration file that names the control socket. key: what names it there. short: the
    file has the option -c too.
    """
    names = ("-c", "--config") if short else ("--config",)
    parser.add_argument(
        "--control",
        metavar="PATH",
        default="",
        help=f"the daemon's control socket (default {DEFAULT_CONTROL}, or that of {names[0]})",
    )
    parser.add_argument(*names, metavar="FILE", default="", help=f"use {key} of this configuration file")


def at_url(parser: argparse.ArgumentParser, *names: str) -> None:
    """--url, also called by further names, and its credentials."""
    parser.add_argument(
        "--url", *names, metavar="URL", default="", help="ask service.http at http(s)://HOST:PORT instead"
    )
    parser.add_argument(
        "--auth-file",
        metavar="FILE",
        default="",
        help="file with USER:PASSWORD or a bearer token for --url (default: the variable SAMPLICATOR_AUTH)",
    )
    parser.add_argument("--ca-file", metavar="FILE", default="", help="trust the certificates in FILE only, for --url")


# ---------------------------------------------------------------------------------------------------- types


def port(text: str) -> int:
    """1..65535."""
    if text.isascii() and text.isdigit() and 1 <= int(text) <= 65535:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} must be a port 1..65535")


def positive(text: str) -> float:
    """Seconds, more than 0, at most 1e7."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if 0 < value <= 1e7:
        return value
    raise argparse.ArgumentTypeError(f"{text!r} must be a number of seconds greater than 0")


def delay(text: str) -> float:
    """Seconds, 0.2..3600."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if 0.2 <= value <= 3600:
        return value
    raise argparse.ArgumentTypeError(f"{text!r} must be a number of seconds, 0.2..3600")


def number_of(what: str, most: int) -> Callable[[str], int]:
    """A type: 1..most. what: in the error."""

    def number(text: str) -> int:
        if text.isascii() and text.isdigit() and 1 <= int(text) <= most:
            return int(text)
        raise argparse.ArgumentTypeError(f"{text!r} must be a number of {what}, 1..{most}")

    return number


def network(text: str) -> str:
    """ADDRESS[/PREFIX], as written."""
    from ipaddress import ip_network

    try:
        ip_network(text, strict=False)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} must be an address, or a network such as 10.0.0.0/8") from None
    return text
