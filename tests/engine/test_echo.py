"""Exporters that repeat themselves, to many receivers: what a test for echoes holds back leaves soon."""

from __future__ import annotations

import time

from support.worker import Relay, wait_until

WAYS = 40
STREAMS = 32
ROUNDS = 5
PACE = 0.2
SOON = 12.0
"""Seconds: the hush before the questions is 9 * 2 * PACE at most, the questions are 2 s and one more, 2 * PACE. To ask
every receiver would take WAYS * 2 * PACE.
"""


def test_many_receivers_do_not_wait_for_each_other() -> None:
    """Equal lines of syslog, a few times a second, that stop: nobody answers, and no receiver is asked for long."""
    with Relay() as relay:
        listener = relay.listen()
        ways = [relay.udp("127.0.0.1", relay.sink().port) for _ in range(WAYS)]
        relay.go()
        exporter = relay.exporter()
        for _ in range(ROUNDS):
            for n in range(STREAMS):
                exporter.sendto(b"<13>host %d: -- MARK --, as always" % n, ("127.0.0.1", listener.port))
            time.sleep(PACE)
        silent = time.monotonic()
        copies = WAYS * STREAMS * ROUNDS
        wait_until(lambda: sum(way.values()["sent"] for way in ways) == copies, "all copies to leave", 60)
        assert time.monotonic() - silent < SOON
