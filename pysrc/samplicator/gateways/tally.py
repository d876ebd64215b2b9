"""What gateways count, per listener and per receiver. The names are those of the API and of the metrics' labels.

Written by inlet, place and outlet in the thread of the loop; read by hub in any thread. A count never goes down.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(slots=True)
class InTally:
    """opened, refused_*: sessions (refused_prefix: not in `allow`; refused_limit: too many; refused_handshake: TLS, or
    a broken association). messages, octets: of exporters; datagrams: what they became. malformed: messages that were
    left out; broken: sessions that ended because of what came. withdrawn: templates. split: messages that became
    several datagrams. waits: times that exporters had to wait for a worker. lost: datagrams that no worker took at the
    end.
    """

    opened: int = 0
    refused_prefix: int = 0
    refused_limit: int = 0
    refused_handshake: int = 0
    messages: int = 0
    octets: int = 0
    datagrams: int = 0
    malformed: int = 0
    broken: int = 0
    withdrawn: int = 0
    split: int = 0
    waits: int = 0
    lost: int = 0


@dataclass(slots=True)
class OutTally:
    """opened, failed: sessions that came to open, and attempts that did not. messages, octets: sent.
    templates_left_out: records that the collector had; withdrawn: templates that had changed. waits: times that the
    door was not read because too much was waiting (then the worker counts no_buffer_space). not_ipfix: copies that are
    no IPFIX (by SCTP: nor NetFlow v9); limit: copies of exporters beyond the number of sessions; unsent: copies that
    waited when the receiver was removed or samplicator ended. By SCTP only: fail_overs: switches to a backup;
    no_resources, no_collector: messages that were dropped because the queue was full, while a collector was connected
    and while none was; their flow records likewise; given_up_flows: flow records that were sent and not delivered, with
    reliability partial or none.
    """

    opened: int = 0
    failed: int = 0
    messages: int = 0
    octets: int = 0
    templates_left_out: int = 0
    withdrawn: int = 0
    waits: int = 0
    not_ipfix: int = 0
    limit: int = 0
    unsent: int = 0
    fail_overs: int = 0
    no_resources: int = 0
    no_collector: int = 0
    no_resources_flows: int = 0
    no_collector_flows: int = 0
    given_up_flows: int = 0


def counts(tally: InTally | OutTally) -> dict[str, int]:
    """By name."""
    return asdict(tally)
