"""The arguments of `samplicator`, with help that shows how each command is used.

Called by cli.main. Imports argparse and nothing of ours but the version, so that --help is quick.
"""

from __future__ import annotations

import argparse
import textwrap
from typing import Final

from samplicator import __version__
from samplicator.cli.arguments import at_url, config, control, delay, network, number_of, port, positive

ABOUT: Final = """\
Receives NetFlow, IPFIX, sFlow, syslog or any other UDP telemetry and sends a copy of every datagram to each receiver,
with the exporter's own source address if configured. Counts every datagram that is not delivered.
"""

EPILOG: Final = """\
first steps:
  samplicator demo                          show it on this machine, without a configuration
  samplicator check -c samplicator.toml     report all errors of a configuration
  samplicator run -c samplicator.toml       run the daemon
  samplicate -S -p 2055 192.0.2.10/9995     run it with the classic command line

`samplicator COMMAND --help` shows a command's options and examples.
"""


class _Help(argparse.RawDescriptionHelpFormatter):
    """Keeps examples as they are, with lines and columns of a fixed width: the output depends neither on the terminal
    nor on the release of Python (3.13 counts the width of commands otherwise).
    """

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=26, width=100)

    def add_argument(self, action: argparse.Action) -> None:
        super().add_argument(action)
        self._action_max_length = self._max_help_position

    def _format_action_invocation(self, action: argparse.Action) -> str:
        """`-c, --config FILE`, as Python 3.13 writes it; older releases name FILE twice."""
        text = super()._format_action_invocation(action)
        if action.option_strings and action.nargs != 0:
            text = f"{', '.join(action.option_strings)} {text.rsplit(' ', 1)[1]}"
        return text


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands; `command` names the one asked for."""
    parser = argparse.ArgumentParser(
        prog="samplicator", description=ABOUT, epilog=EPILOG, formatter_class=_Help, allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"samplicator {__version__}")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)

    def command(name: str, summary: str, description: str, examples: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name,
            help=summary,
            description=textwrap.fill(description, 98),
            epilog=f"examples:\n{examples}",
            formatter_class=_Help,
            allow_abbrev=False,
        )

    run = command(
        "run",
        "run the daemon",
        "Runs in the foreground. SIGTERM and SIGINT stop it after it has forwarded what is queued. SIGHUP, a changed "
        "file or `samplicator reload` load a new configuration without losing a datagram. A configuration with "
        "errors changes nothing.",
        "  samplicator run -c /etc/samplicator/samplicator.toml\n"
        "  samplicator run -c /etc/samplicator/samplicator.toml --takeover\n",
    )
    config(run)
    run.add_argument(
        "--takeover",
        action="store_true",
        help="take the place of the daemon that answers on service.control, without losing a datagram",
    )
    run.add_argument(
        "--linger",
        action="store_true",
        help="after another process has taken over, wait for SIGTERM before ending",
    )

    check = command(
        "check",
        "report all errors of a configuration",
        "Reports every error and warning of a configuration at once, as FILE:LINE: KEY: WHY. Opens and changes "
        "nothing. Resolves host names and compares addresses and interfaces with this host; what this host lacks "
        "now is a warning, because it can appear later. Exit status 0 = it can run, 2 = errors.",
        "  samplicator check -c samplicator.toml\n"
        "  samplicator check -c samplicator.toml --dump-plan | jq .receivers\n",
    )
    config(check)
    check.add_argument("--dump-plan", action="store_true", help="print what would run, as JSON")

    explain = command(
        "explain",
        "show what happens to an exporter's datagrams",
        "Shows which rules match an exporter's datagrams and why the other rules do not match, which copies are "
        "sent, and their source address and engine. Reads the file only; the daemon does not have to run. Exit "
        "status 0, or 2 for errors.",
        "  samplicator explain -c samplicator.toml --from 10.1.2.3 --to-port 2055\n"
        "  samplicator explain -c samplicator.toml --from '[2001:db8::7]:50000' --to-port 2055 --json\n",
    )
    config(explain)
    explain.add_argument(
        "--from",
        dest="exporter",
        metavar="ADDR[:PORT]",
        required=True,
        help="the exporter's address; an IPv6 address with a port is written in brackets",
    )
    explain.add_argument(
        "--to-port", type=port, metavar="PORT", required=True, help="the port that the exporter sends to"
    )
    explain.add_argument("--json", action="store_true", help="print JSON")

    convert = command(
        "convert",
        "turn a samplicate rule file or command line into TOML",
        "Prints a TOML configuration that does the same as a `samplicate` rule file, or as the `samplicate` command "
        "line after --. Writes warnings to standard error. Exit status 0, or 2 for errors.",
        "  samplicator convert /etc/samplicator.rules > samplicator.toml\n"
        "  samplicator convert -- -S -p 2055 -c /etc/samplicator.rules 192.0.2.10/9995 > samplicator.toml\n",
    )
    convert.add_argument("rule_file", nargs="?", metavar="RULEFILE", help="a rule file (samplicate -c)")

    reload_ = command(
        "reload",
        "make the running daemon read its configuration again",
        "Tells the daemon to read its files again and waits for the result. A configuration with errors changes "
        "nothing. What this host lacks now (an interface, the address of a host name) is a warning. Exit status "
        "0 = the new configuration runs, 1 = the daemon refused it or cannot be reached.",
        "  samplicator reload\n  samplicator reload --control /run/samplicator/control.sock\n",
    )
    control(reload_)

    status = command(
        "status",
        "show what the running daemon does",
        "Shows listeners, receivers and counters of the running daemon. Exit status 0 = the daemon is ready, 3 = "
        "the daemon runs but is not ready, 1 = the daemon cannot be reached.",
        "  samplicator status\n  samplicator status --json | jq '.receivers[] | {name, failed}'\n",
    )
    control(status)
    status.add_argument("--json", action="store_true", help="print JSON")

    ready = command(
        "ready",
        "ask whether the daemon is ready",
        "Asks the daemon whether every listener is up, and prints the answer. For probes of containers and health "
        "checks of load balancers. With -c, it asks at service.own_control if the file has one, because a take-over "
        "never hands that socket to another process. Exit status 0 = every listener is up, 3 = the daemon runs but is "
        "not ready, 1 = the daemon cannot be reached.",
        "  samplicator ready -c /etc/samplicator/samplicator.toml\n",
    )
    control(ready, "service.own_control or, if there is none, service.control")
    ready.add_argument(
        "--healthy", action="store_true", help="ask only whether all workers run, whatever is down; 3 = one is stuck"
    )

    exporters = command(
        "exporters",
        "show the exporters of flow telemetry",
        "Shows every observation domain of every exporter of NetFlow, IPFIX or sFlow that the running daemon knows: "
        "rate, sizes, datagrams lost before samplicator, sampling interval, clock. Exit status 0, or 1 when the "
        "daemon cannot be reached.",
        "  samplicator exporters\n  samplicator exporters --exporter 192.0.2.1 --json\n",
    )
    templates = command(
        "templates",
        "show the templates that exporters sent",
        "Shows templates and options templates per exporter and observation domain, with IANA's field names. Exit "
        "status 0, or 1 when the daemon cannot be reached.",
        "  samplicator templates --exporter 192.0.2.1\n",
    )
    domains = command(
        "domains",
        "show which exporter has which domain in unspoofed copies",
        "Shows which exporter has which observation domain (IPFIX) or source id (NetFlow v9) at receivers with "
        'domain = "unique", and where source_port = "per-session" for sessions that have no port of their own. '
        "Exit status 0, or 1 when the daemon cannot be reached.",
        "  samplicator domains\n  samplicator domains --exporter 192.0.2.1 --json\n",
    )
    ledger = command(
        "ledger",
        "show where datagrams were lost",
        "Shows one balance from the exporters to the receivers: datagrams lost before samplicator, dropped by this "
        "host's kernel and rejected; copies skipped, failed by reason, and sent. Exit status 0, or 1 when the daemon "
        "cannot be reached.",
        "  samplicator ledger\n  samplicator ledger --json | jq .exporters\n",
    )
    export = command(
        "export",
        "show the counters in the format of a router",
        "Shows what samplicator sends in the format of `show ip flow export` and `show ip flow export template`. "
        "Exit status 0, or 1 when the daemon cannot be reached.",
        "  samplicator export\n",
    )
    sctp = command(
        "sctp",
        "show SCTP associations in the words of a router",
        "Shows the SCTP associations of exporters, and those to collectors and their backups with state, counters and "
        "fail-overs, in the words of `show ip flow export sctp verbose`. Exit status 0, or 1 when the daemon cannot be "
        "reached.",
        "  samplicator sctp --verbose\n",
    )
    sctp.add_argument("--verbose", action="store_true", help="show all that is known of each association")
    for each in (exporters, templates, domains):
        each.add_argument("--exporter", metavar="ADDR", default="", help="show this exporter only")
    for each in (exporters, templates, domains, ledger, export, sctp):
        control(each)
        each.add_argument("--json", action="store_true", help="print JSON")

    top = command(
        "top",
        "watch the running daemon in a terminal",
        "Shows rates, drops, states and curves of exporters, receivers, listeners, templates and sessions, and "
        "refreshes them. Press ? for the keys. Asks over the control socket, or with --url over the network. Without a "
        "terminal, it prints lines. Exit status 0, 1 when the daemon cannot be reached, 2 for wrong arguments, 128 + N "
        "after signal N.",
        "  samplicator top\n"
        "  samplicator top --page exporters --sort lost/s\n"
        "  samplicator top --url https://relay.example.net:9420 --auth-file relay.auth\n"
        "  samplicator top --json -n 1 -d 5 | jq .rates\n",
    )
    control(top)
    at_url(top)
    top.add_argument(
        "--page",
        choices=("exporters", "receivers", "listeners", "templates", "sessions"),
        metavar="PAGE",
        help="what to show: exporters, receivers, listeners, templates or sessions (default receivers)",
    )
    top.add_argument("--sort", metavar="COLUMN", default="", help="sort by this column of the page")
    top.add_argument("--reverse", action="store_true", help="sort the other way round")
    top.add_argument("--filter", metavar="TEXT", default="", help="show only rows with this text in them")
    top.add_argument(
        "-d", "--delay", type=delay, metavar="S", default=1.0, help="seconds between refreshes (default 1)"
    )
    top.add_argument(
        "-n",
        "--iterations",
        type=number_of("refreshes", 1_000_000_000),
        metavar="N",
        default=0,
        help="end after N refreshes",
    )
    top.add_argument("-b", "--batch", action="store_true", help="print lines, also to a terminal")
    top.add_argument("--json", action="store_true", help="print one line of JSON per refresh")

    _tap(
        command(
            "tap",
            "show datagrams as they come in and leave",
            "Shows a live sample of what comes in, what leaves and, with --drops, what was not forwarded and why: one "
            "decoded line per event, or a pcapng file for Wireshark. Asks over the control socket, or with "
            "--url over the network. Ctrl-C ends it. Exit status 0, 1 when the daemon cannot be reached or ends the "
            "stream, 2 for wrong arguments, 128 + N after signal N.",
            "  samplicator tap\n"
            "  samplicator tap --exporter 192.0.2.1 --receiver nfdump -c 20\n"
            "  samplicator tap --drops\n"
            "  samplicator tap --listener netflow --write netflow.pcapng\n"
            "  samplicator tap --write - | wireshark -k -i -\n",
        )
    )

    _witness(
        command(
            "witness",
            "show at a collector where datagrams were lost",
            "Runs on a collector's host, beside the collector and without its port. Counts per exporter what arrives "
            "on the wire, reads what the kernel dropped at the collector's sockets, asks the relay for its side, and "
            "shows one balance per exporter. Ctrl-C ends it early, with the balance. Needs CAP_NET_RAW. Exit status "
            "0 = nothing was lost, 1 = something was lost, 3 = the relay or the wire cannot be seen.",
            "  samplicator witness --port 9995 --relay http://192.0.2.1:9420\n"
            "  samplicator witness --port 9995 --relay https://user:password@relay:9420 --seconds 60 --json\n"
            "  samplicator witness --port 9995 --control /run/samplicator/control.sock --watch\n",
        )
    )

    demo = command(
        "demo",
        "run a demonstration on this machine",
        "Starts the real daemon on loopback and sends it NetFlow v5, v9, IPFIX and sFlow datagrams of real exporters "
        "from several addresses. Two receivers verify every copy. Exit status 0 only when no copy was lost or "
        "changed.",
        "  samplicator demo\n"
        "  samplicator demo --seconds 60 --rate 5000\n"
        "  samplicator demo --forever --http 127.0.0.1:9420\n",
    )
    demo.add_argument(
        "--seconds", type=positive, default=10.0, metavar="S", help="how many seconds to send (default 10)"
    )
    demo.add_argument("--forever", action="store_true", help="send until Ctrl-C")
    demo.add_argument(
        "--rate",
        type=number_of("datagrams per second", 1_000_000),
        default=2000,
        metavar="N",
        help="datagrams per second (default 2000)",
    )
    demo.add_argument(
        "--http",
        default="",
        metavar="ADDR:PORT",
        help="where the daemon serves its metrics (default: 127.0.0.1:9420, or a free port)",
    )

    command(
        "schema",
        "print the JSON Schema of the configuration",
        "Prints the JSON Schema of the configuration, for editors and other checkers.",
        "  samplicator schema > samplicator.schema.json\n"
        "  check-jsonschema --default-filetype toml --schemafile samplicator.schema.json samplicator.toml\n",
    )
    return parser


def _tap(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--exporter", type=network, metavar="ADDR[/LEN]", help="show these exporters only")
    parser.add_argument("--receiver", metavar="NAME", default="", help="show copies for this receiver only")
    parser.add_argument("--listener", metavar="NAME", default="", help="show datagrams of this listener only")
    parser.add_argument("--drops", action="store_true", help="show only what was not forwarded, and why")
    parser.add_argument(
        "--rate",
        type=number_of("events per second", 10_000),
        metavar="N",
        default=1000,
        help="show N events per second and worker at most (default 1000, at most 10000)",
    )
    parser.add_argument(
        "-c", "--count", type=number_of("events", 1_000_000), metavar="N", default=0, help="end after N events"
    )
    parser.add_argument(
        "--write", metavar="FILE", default="", help="write a pcapng file; - writes to standard output, for Wireshark"
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON per event, with what was decoded")
    control(parser, short=False)
    at_url(parser)


def _witness(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--port", type=port, metavar="PORT", required=True, help="the collector's UDP port")
    at_url(parser, "--relay")
    control(parser)
    parser.add_argument(
        "--receiver", metavar="NAME", default="", help="the relay's receiver that this collector is (default: by port)"
    )
    parser.add_argument(
        "--seconds", type=positive, default=10.0, metavar="N", help="how many seconds to watch (default 10)"
    )
    parser.add_argument("--watch", action="store_true", help="go on, with a balance every --seconds, until Ctrl-C")
    parser.add_argument(
        "--http", default="", metavar="ADDR:PORT", help="go on, and serve the counters to Prometheus at /metrics"
    )
    parser.add_argument("--json", action="store_true", help="print JSON; with --watch one line per balance")
