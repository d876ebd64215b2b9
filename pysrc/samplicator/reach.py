"""Reach: whether somebody listens at a receiver's port, found out by asking from our own address.

The copies themselves tell it only when they are unspoofed (the kernel hands their ICMP errors to the socket that sent
them): refusals of spoofed copies go to the exporter. A probe is a datagram on a connected UDP socket; ECONNREFUSED
says that the port is closed, silence that it is open or that the answer was held back (hosts limit ICMP to one a second
and peer after the first six, icmp(7) icmp_ratelimit). So silence counts as open, where a standby or a pool acts on it
only when it came twice, and a host that refuses again soon after is believed less quickly the next time. A host that
refuses thousands of copies a second has a limit over all peers, too (icmp_msgs_per_sec): probes by TCP and HTTP know
no such doubts.

Pure state and one probe. Called by supervisor, from one thread at a time. It must never wait.
"""

from __future__ import annotations

import struct
from typing import Final

from samplicator.plan import ReceiverSpec
from samplicator.probes import MAKERS, REFUSING, UP, Answer, Datagram, Probe

IDLE_SECONDS: Final = 2.0  # between two probes of a receiver that answers nothing, as it should
QUICK_SECONDS: Final = 0.5  # the same where somebody waits for news; and of one that is down, for the first seconds
SLOW_SECONDS: Final = 1.02  # and after them: above the limit of one ICMP error a second
QUICK_FOR_SECONDS: Final = 7.0  # as long as six answers at once and one a second last
COPY_SECONDS: Final = 0.2  # a copy refused within so long: the probe's silence means nothing
LIMITED_SECONDS: Final = 2.1  # the same where somebody acts on it: copies use up the one ICMP error a second
RELAPSE_SECONDS: Final = 5.0  # down again within so long: it had not come back
HOLD_LIMIT_SECONDS: Final = 60.0
DISCARD_PORT: Final = 9  # RFC 863
IPFIX_EMPTY: Final = struct.pack("!HHIII", 10, 16, 0, 0, 0)
"""An IPFIX message of no sets (RFC 7011 section 3.1), which collectors of flows pass over."""


class Reach:
    """Of one receiver. state: UP | REFUSING | UNREACHABLE as far as probes and refused copies tell; why: for people.
    templates: it gets templates, which it needs when it comes back. anxious: it is known from elsewhere not to be
    reachable. Times are of the monotonic clock, in seconds.
    """

    __slots__ = (
        "_came", "_doubts", "_gone", "_good", "_hold", "_knock", "_next", "_probe", "_refused", "anxious", "spec",
        "state", "templates", "why",
    )  # fmt: skip

    def __init__(self, spec: ReceiverSpec) -> None:
        self.spec = spec
        self.state = UP
        self.why = ""
        self.templates = False
        self.anxious = False
        self._probe: Probe | None = None
        self._knock: Datagram | None = None
        self._next = 0.0
        self._gone = 0.0  # since when it is down
        self._came = 0.0  # when it came back last
        self._refused = -LIMITED_SECONDS  # when copies were refused last
        self._hold = 0.0  # how long it has to be silent
        self._good = 0  # good answers in a row
        self._doubts = 0  # times of silence in a row

    @property
    def refusing(self) -> bool:
        """Whether datagrams to its port are refused, as far as known; for probes by TCP and HTTP see state."""
        return self.state == REFUSING and self.spec.probe.kind not in MAKERS

    def adopt(self, spec: ReceiverSpec) -> None:
        """The spec of the next plan, of a receiver at the same place."""
        if spec.probe != self.spec.probe:
            self.close()
            if spec.probe.kind == "off":
                self.state, self.why = UP, ""
        self.spec = spec
        self.templates = False

    def refused(self, now: float) -> None:
        """Copies from our own address were refused."""
        self._refused = now
        if self.spec.probe.kind != "off" and self.state == UP:
            self._down(Answer(REFUSING, "its port is closed"), now)
            self._next = now + QUICK_SECONDS

    def step(self, now: float) -> bool:
        """Sends and judges what is due; True when the receiver has come back just now."""
        if not self.asks:
            self.close()
            return False
        if self._probe is None:
            self._probe = self._make()
        answer = self._probe.poll(now)
        if answer is None and not self._probe.busy and now >= self._next:
            try:
                answer = self._probe.start(now)
            except OSError:  # no descriptor, no memory: no news
                self._probe.close()
            self._next = now + self._interval(now)
            self._wake_neighbour(now)
        return answer is not None and self._judge(answer, now)

    @property
    def asks(self) -> bool:
        """Whether it is probed now."""
        kind, needed = self.spec.probe.kind, self.spec.needed
        if kind != "auto":
            return kind != "off"
        return self.state != UP or (self.spec.deaf and (needed or self.templates)) or (needed and self.anxious)

    def _make(self) -> Probe:
        spec = self.spec
        if spec.probe.kind in MAKERS:
            return MAKERS[spec.probe.kind](spec.probe)
        payload = IPFIX_EMPTY if spec.probe.kind == "ipfix" else b""
        return Datagram(spec.address, spec.port, spec.scope_id, payload)

    def _interval(self, now: float) -> float:
        if self.state == UP:
            return QUICK_SECONDS if self.spec.needed else IDLE_SECONDS
        if now - self._gone < QUICK_FOR_SECONDS:
            return QUICK_SECONDS
        if self.spec.probe.kind in MAKERS:
            return QUICK_SECONDS if self.spec.needed else IDLE_SECONDS
        return SLOW_SECONDS

    def _wake_neighbour(self, now: float) -> None:
        """Has the kernel ask for the next hop of a receiver that gets no copies, when the probe goes elsewhere."""
        spec = self.spec
        if not (self.anxious and spec.needed and spec.probe.kind in MAKERS and spec.probe.address != spec.address):
            return
        if self._knock is None:
            self._knock = Datagram(spec.address, DISCARD_PORT, spec.scope_id, b"")
        try:
            self._knock.start(now)
        except OSError:
            self._knock.close()

    def _judge(self, answer: Answer, now: float) -> bool:
        streams = self.spec.probe.kind in MAKERS
        quiet = IDLE_SECONDS if streams else LIMITED_SECONDS if self.spec.needed else COPY_SECONDS
        if answer.state == UP and now - self._refused < quiet:
            answer = Answer(REFUSING, "its port is closed")
        if answer.state != UP:
            if streams and self.spec.probe.address != self.spec.address:  # another host's news, not its own
                answer = Answer(REFUSING, answer.why, answer.sure)
            self._good = 0
            self._doubts += not answer.sure
            if answer.sure or self._doubts > 1 or self.state != UP:
                self._down(answer, now)
            else:
                self._next = now
            return False
        self._doubts = 0
        if self.state == UP:
            return False
        self._good += 1
        enough = 2 if self.spec.needed and not streams else 1
        if self._good < enough or now - self._gone < self._hold:
            return False
        self.state, self.why = UP, ""
        self._came = now
        return True

    def _down(self, answer: Answer, now: float) -> None:
        if self.state == UP:
            relapse = self._came and now - self._came < RELAPSE_SECONDS
            self._hold = min(max(1.0, 2 * self._hold), HOLD_LIMIT_SECONDS) if relapse else 0.0
            self._gone = now
            self._good = 0
            self._next = min(self._next, now + QUICK_SECONDS)
        self.state, self.why = answer.state, answer.why

    def close(self) -> None:
        for probe in (self._probe, self._knock):
            if probe is not None:
                probe.close()
        self._probe = self._knock = None
