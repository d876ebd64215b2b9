"""The command `witness`: a balance per exporter, at the collector.

Called by cli.main with the parsed options; returns the exit status: 0 = nothing was lost, 1 = something was lost, 2 =
wrong arguments, 3 = the witness could not see or ask what it needs.
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
from argparse import Namespace
from typing import TYPE_CHECKING, Final

from samplicator.cli.api import WrongArguments, asked_for
from samplicator.cli.drawing import duration, plain, table
from samplicator.errors import Unreachable

if TYPE_CHECKING:
    from samplicator.witness.balance import Balance

BLIND: Final = 3
SECONDS: Final = 10.0
SHOWN: Final = 200
HEAD: Final = {
    "lost_before": "before relay",
    "lost_at_socket": "its socket",
    "failed": "failed",
    "lost_on_way": "on the way",
    "dropped_by_collector": "collector drops",
    "taken": "taken",
}


def witness(options: Namespace) -> int:
    """Watches, and prints the balance."""
    from samplicator.witness import exposition
    from samplicator.witness.relay import Relay
    from samplicator.witness.watch import Witness

    try:
        watching = Witness(options.port, Relay(asked_for(options)), options.receiver)
    except WrongArguments as error:
        print(f"error: {plain(error)}", file=sys.stderr)
        return 2
    except PermissionError:
        return _blind("the witness needs CAP_NET_RAW to see packets; run it with sudo, or give it that capability")
    except Unreachable as error:
        return _blind(str(error))
    except OSError as error:
        return _blind(f"the witness cannot read this host: {error.strerror or error}")
    with contextlib.closing(watching):
        shown = None
        if options.http:
            try:
                shown = exposition.serve(options.http)
            except (OSError, ValueError) as error:
                return _blind(f"--http {options.http}: {error}")
        try:
            watching.begin()
        except Unreachable as error:
            return _blind(str(error))
        print(f"watching port {options.port} for receiver {plain(watching.receiver)}", file=sys.stderr, flush=True)
        return _rounds(options, watching, shown)


def _rounds(options: Namespace, watching: object, shown: object) -> int:
    from samplicator.witness import balance as balances
    from samplicator.witness.exposition import Shown
    from samplicator.witness.watch import Witness

    assert isinstance(watching, Witness)
    before, lost, more = None, 0, options.watch or bool(options.http)

    def stop(number: int, frame: object) -> None:
        watching.stopping = True
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    while True:
        seconds = watching.watch(options.seconds or SECONDS)
        ends = watching.stopping or not more
        value, before = watching.balance(seconds, before, final=ends)
        lost += balances.lost(value)
        if isinstance(shown, Shown):
            shown.update(watching.receiver, before)
        if options.json:
            print(json.dumps(value) if more else json.dumps(value, indent=2), flush=True)
        else:
            print("\n".join([*map(plain, lines(value)), *([""] if more else [])]), flush=True)
        if ends:
            if watching.trouble or value["unseen"]:
                return BLIND
            return 1 if lost else 0


def _blind(why: str) -> int:
    print(f"error: {plain(why)}", file=sys.stderr)
    return BLIND


def lines(value: Balance) -> list[str]:
    """For people."""
    found = [f"receiver {value['receiver']}, port {value['port']}, {duration(value['seconds'])}, in datagrams"]
    for item in value["sums"]:
        stages = " or ".join(HEAD[stage] for stage in item["stages"])
        found.append(f"  {item['datagrams']} lost ({stages}), known as a sum only: {item['why']}")
    for reason, count in value["failed_by_reason"].items():
        found.append(f"  {count} copies failed: {reason}")
    fragments = value["fragments"]
    if fragments["reassembled"] or fragments["incomplete"]:
        found.append(f"  {fragments['reassembled']} came in fragments; of {fragments['incomplete']} not all came")
    for queue in value["sockets"]:
        if queue["dropped"]:
            found.append(f"  socket {queue['address']} ({queue['inode']}) dropped {queue['dropped']}")
    found += [f"  note: {note}" for note in value["notes"]]
    rows: list[list[object]] = [
        [row["exporter"], *(dict(row)[key] for key in HEAD)] for row in value["exporters"][:SHOWN]
    ]
    if not rows:
        return [*found, "no datagram came, and none was lost"]
    rows.append(["all", *(value["total"][key] for key in HEAD)])
    more = len(value["exporters"]) - SHOWN
    return [*found, *table(["exporter", *HEAD.values()], rows), *([f"and {more} more exporters"] if more > 0 else [])]
