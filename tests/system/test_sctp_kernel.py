"""The kernel's SCTP with others: softflowd, which exports over it, and libusrsctp, over UDP.

In a guest whose kernel has SCTP (support/guest.py); this host's kernel may have none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from samplicator.gateways.sctp import choice
from samplicator.gateways.transport import Options
from support.associations import PORT, Stand, place, transport_in
from support.lab import Lab
from support.process import tool, wait_for
from support.sctp import Log
from system.test_flows import DIRECT, DIRECT_ACCT, RELAYED, RELAYED_ACCT, Collectors, capture  # noqa: F401

pytestmark = pytest.mark.skipif(bool(choice.kernel_fault()), reason="this kernel has no SCTP: see support/guest.py")


@pytest.fixture
def stand(lab: Lab) -> Iterator[Stand]:
    made = Stand(lab, choice.KERNEL)
    yield made
    made.close()


@pytest.mark.parametrize("version", ["9", "10"])
def test_softflowd_to_nfcapd_and_nfacctd(lab: Lab, capture: Path, version: str) -> None:  # noqa: F811
    """1: softflowd by SCTP to the relay, by UDP to collectors directly: those behind the relay have the same flows."""
    collectors = Collectors(lab)
    relay = lab.samplicator(
        '[sctp]\nbackend = "kernel"\n[[listener]]\nname = "in"\nlisten = ["sctp://0.0.0.0:4739"]\n'
        f'[[receiver]]\nname = "one"\nto = "{lab.peer4(1)}:{RELAYED}"\nspoof = true\n'
        f'[[receiver]]\nname = "two"\nto = "{lab.peer4(2)}:{RELAYED_ACCT}"\nspoof = true\n'
        '[[rule]]\nto = ["one", "two"]\n'
    )

    def softflowd(transport: str, *targets: str) -> None:
        argv = [tool("softflowd"), "-d", "-6", "-r", str(capture), "-v", version, "-P", transport]
        argv += ["-n", ",".join(targets), "-p", str(lab.directory / f"{transport}.pid"), "-c", "none"]
        assert lab.start(argv, lab.exporter, f"softflowd-{transport}").wait(60) == 0

    softflowd("sctp", f"{lab.relay4()}:4739")
    softflowd("udp", f"{lab.peer4(1)}:{DIRECT}", f"{lab.peer4(2)}:{DIRECT_ACCT}")
    wait_for(lambda: relay.api("gateways")[0]["counters"]["opened"] == 1, "the association", 20)
    wait_for(lambda: relay.api("gateways")[0]["sessions"] == {"connected": 0}, "its end", 20)
    relay.check_laws()
    (row,) = relay.api("gateways")
    assert row["counters"]["messages"] == row["counters"]["datagrams"] > 5
    assert (row["counters"]["malformed"], row["counters"]["broken"], row["counters"]["lost"]) == (0, 0, 0)
    collectors.end()
    direct, relayed = collectors.nfdump(DIRECT), collectors.nfdump(RELAYED)
    assert len(direct) > 500
    # without begin, end and duration: softflowd counts them from its own start, and it ran twice
    assert sorted(row[3:] for row in relayed) == sorted(row[3:] for row in direct)
    assert collectors.nfacct(RELAYED_ACCT) == collectors.nfacct(DIRECT_ACCT)
    errors = {
        process.label: int(re.findall(r"Sequence Errors: (\d+)", process.stdout() + process.stderr())[-1])
        for process in collectors.started
        if "nfcapd" in process.label
    }
    # softflowd 1.1.0 miscounts IPFIX: nfcapd counts errors in what comes from it directly, too
    most = errors[f"nfcapd-{DIRECT}"] if version == "10" else 0
    assert errors[f"nfcapd-{RELAYED}"] <= most, errors


def test_libusrsctp_and_the_kernel_understand_each_other(stand: Stand) -> None:
    stand.lab.collectors[0].run("sysctl", "-w", "net.sctp.udp_port=9899", "net.sctp.encap_port=9899")
    library = transport_in(stand.lab.relay, stand.loop, choice.UDP)
    ways = ((library, stand.hosts[0], stand.lab.peer4(1)), (stand.hosts[0], library, stand.lab.relay4(1)))
    for number, (here, there, target) in enumerate(ways):
        sender, receiver = Log(), Log()
        there.listen(place("0.0.0.0", PORT + number), receiver, Options(streams=8))
        session = here.connect(place(target, PORT + number), sender, Options(streams=4, heartbeat_ms=20))
        stand.until(lambda: bool(sender.sessions and receiver.sessions))  # noqa: B023
        sent = []
        for size in (16, 1400, 9000, 65535):
            while not session.send(bytes(size), 1):
                stand.run(0.01)
            sent.append(bytes(size))
        stand.until(lambda: receiver.payloads() == sent)  # noqa: B023
        stand.until(lambda: session.transmissions == 0)  # noqa: B023
        assert sender.closed_ == receiver.closed_ == []
        assert sender.failed == []
    library.close()
