"""`samplicate`, the drop-in: the classic command line, its texts on standard error, its exit statuses.

Purpose: classic arguments -> the same service that `samplicator run` starts. Invariants: exit status 0 for -h, 1 for
any error in arguments, files or bind, 5 when -t runs out; nothing is opened but UDP sockets unless --http or
--control ask for more. Called by cli.samplicate_main. It must never know what an option means: config.legacy does.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from samplicator import __version__

if TYPE_CHECKING:
    from samplicator.config.model.loaded import Loaded

USAGE: Final = """\
usage: samplicate [option...] [receiver...]

Receives UDP datagrams on one port and sends a copy of each to every receiver.

  receiver: ADDR[/PORT[/[FREQ][,TTL]]]
    ADDR   IPv4 address, [IPv6 address] or host name
    PORT   number, service name, LOW-HIGH or LOW+COUNT; default 2000
    FREQ   send one datagram in FREQ; default 1, all of them
    TTL    1..255, default 64

options:
  -p PORT     port to receive on, number or service name; default 2000
  -s ADDR     address to receive on; default all IPv4 addresses
  -c FILE     rule file, one `SOURCE[/MASK]: RECEIVER...` per line; can be repeated
  -S          spoof: copies keep the exporter's source address and port (needs CAP_NET_RAW)
  -n          send spoofed copies without UDP checksum
  -x US       wait US microseconds after each copy
  -b BYTES    receive and send buffer; default 64 MiB and 4 MiB, or less if the kernel grants less
  -u BYTES    largest datagram that is forwarded; longer ones are counted and dropped; default 65535
  -t MS       end with status 5 when no datagram arrives for MS milliseconds
  -d [LEVEL]  debug: write one line per datagram and copy to standard error
  -f          run in the background
  -m FILE     write the process id to FILE
  -4, -6      address family of host names, and of the listener
  -h          print this text

  --http ADDR:PORT   serve metrics and status at this address; default off
  --control PATH     local socket for `samplicator status` and `samplicator reload`; default off
  --workers N        forwarding threads; default 1
  --check            check arguments and files, print what would run, start nothing
  --version          print the version

-S and -n act on receivers and rule files that come after them. SIGHUP reads the rule files again.
SIGTERM and SIGINT forward what is queued, then end the process.

examples:
  samplicate -p 2055 192.0.2.10/9995 192.0.2.11/9995
  samplicate -S -p 2055 -c /etc/samplicator.rules
  samplicator convert -- -S -p 2055 192.0.2.10/9995     the same as a TOML configuration
"""


def samplicate(argv: Sequence[str]) -> int:
    """Returns the exit status."""
    if not argv or argv[0] in ("-h", "--help"):  # the quick way to the usage: nothing heavy imported
        if not argv:
            print("You have to specify at least one receiver, exiting\n", file=sys.stderr)
        sys.stderr.write(USAGE)
        return 0 if argv else 1
    from samplicator.config.legacy.command_line import parse_command_line
    from samplicator.errors import ConfigError

    try:
        options = parse_command_line(argv)
    except ConfigError as error:
        for warning in error.warnings:
            print(f"samplicate: warning: {warning}", file=sys.stderr)
        for problem in error.problems:
            print(f"samplicate: {problem}", file=sys.stderr)
        print("samplicate -h shows the options", file=sys.stderr)
        return 1
    if options.help:
        sys.stderr.write(USAGE)
        return 0
    if options.version:
        print(f"samplicate {__version__} (samplicator)")
        return 0
    assert options.loaded is not None
    if options.check:
        return _check(options.loaded)
    from samplicator.service.service import Options, run_service

    words, first = list(argv), [options.loaded]

    def load() -> Loaded:
        """The configuration: already read the first time, read again at every reload."""
        loaded = first.pop() if first else parse_command_line(words).loaded
        assert loaded is not None
        return loaded

    return run_service(
        load,
        options=Options(
            legacy=True,
            idle_timeout_ms=options.timeout_ms,
            pid_file=options.pid_file,
            background=options.background,
            debug=options.debug,
        ),
    )


def _check(loaded: Loaded) -> int:
    """--check: everything that can be judged without starting."""
    from samplicator.cli.configuration import judge_loaded, summary

    judged = judge_loaded(loaded)
    for warning in judged.warnings:
        print(f"samplicate: warning: {warning}", file=sys.stderr)
    for problem in judged.problems:
        print(f"samplicate: {problem}", file=sys.stderr)
    if judged.plan is None:
        return 1
    print(f"samplicate: ok: {summary(judged.plan)}")
    return 0
