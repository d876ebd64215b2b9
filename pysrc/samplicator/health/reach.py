"""Reach: whether a program listens at a receiver's port, found out with probes from this host's address.

Copies show it only if they are not spoofed (the kernel reports their ICMP errors to the sending socket); ICMP errors of
spoofed copies go to the exporter. A probe is a datagram on a connected UDP socket; ECONNREFUSED says that the port is
closed, at once. Silence means that the port is open, or that a limit stopped the answer: Linux sends a peer six ICMP
errors at once and then one per second (icmp(7) icmp_ratelimit), and all peers together 1,000 per second
(icmp_msgs_per_sec); routers and other systems send one or two per second. So a receiver that is down is up again only
with evidence:

- an answer: a connection, a page, a datagram that came back; or
- silence that no limit explains: SILENT_PROBES probes in a row, each one later than the limit after any other question
  to that host, without a refusal meanwhile. Receivers on one host take turns, because they share its limit. If a host
  refuses more copies than it can answer, an answer is a matter of chance: then as many probes as make the probability
  of silence one in a thousand (CERTAINTY), for at most SILENCE_LIMIT_SECONDS.

This takes three seconds in most cases, and five if a router reported that the host is unreachable, because a router
tries for three seconds before it reports. A receiver that fails again within RELAPSE_SECONDS needs a longer silence
each time. Copies are counted as sent from the first silent probe on, but templates are replayed only with the evidence
above.

Pure state and one probe. Called by supervisor, from one thread at a time. It must never wait.
"""

from __future__ import annotations

import math
import struct
from typing import Final

from samplicator.health.probes import MAKERS, REFUSING, UNREACHABLE, UP, Answer, Datagram, Probe
from samplicator.plan.spec import ReceiverSpec, Udp

IDLE_SECONDS: Final = 2.0  # between two probes of a receiver that answers nothing, as it should
QUICK_SECONDS: Final = 0.5  # the same where a standby or a pool needs the state
LIMIT_SECONDS: Final = 1.02  # between two probes of a host with a closed port: above one ICMP error per second
LEAST_SECONDS: Final = 0.25  # the same where an answer is a matter of chance
SILENT_PROBES: Final = 3
CERTAINTY: Final = 7.0  # expected answers of a closed port: all missing is one chance in 1,100 (e to the power of 7)
HOST_ANSWERS: Final = 1000.0  # ICMP errors per second to all peers
SILENCE_SECONDS: Final = {REFUSING: 2.0, UNREACHABLE: 5.0}
SILENCE_LIMIT_SECONDS: Final = 120.0
RELAPSE_SECONDS: Final = 60.0  # down again within this time: it had not come back
HOLD_SECONDS: Final = 4.0  # how long nothing bad may be heard of it then; doubled each time
HOLD_LIMIT_SECONDS: Final = 60.0
DISCARD_PORT: Final = 9  # RFC 863
IPFIX_EMPTY: Final = struct.pack("!HHIII", 10, 16, 0, 0, 0)
"""An IPFIX message of no sets (RFC 7011 section 3.1), which collectors of flows pass over."""


class Host:
    """Receivers at one address: they share its limit of ICMP errors. next: when it may be asked again of a receiver
    that is down.
    """

    __slots__ = ("next", "reaches")

    def __init__(self) -> None:
        self.reaches: list[Reach] = []
        self.next = 0.0

    def chance(self, of: Reach) -> float:
        """Probability of an answer to a probe of a closed port, when copies to closed ports of this host use up its
        answers. Each unspoofed copy counts as a question.
        """
        if not of.spec.deaf:
            return 1.0
        closed = [reach for reach in self.reaches if reach.state == REFUSING]
        all_peers = sum(reach.copies_per_second for reach in closed)
        ours = sum(reach.copies_per_second for reach in closed if reach is not of and not reach.spec.spoof)
        return min(1.0, HOST_ANSWERS / max(all_peers, 1.0)) / (1.0 + ours)

    @property
    def turns(self) -> int:
        """How many receivers there are asked for with datagrams because they are down."""
        return sum(reach.state != UP and reach.asks and not reach.streams for reach in self.reaches)


class Reach:
    """Of one receiver. state: UP | REFUSING | UNREACHABLE as far as probes and refused copies tell; why: for people.
    templates: it gets templates, which it needs when it comes back. anxious: it is known from elsewhere not to be
    reachable. copies_per_second: that leave for it. Times are of the monotonic clock, in seconds.
    """

    __slots__ = (
        "_bad", "_came", "_doubts", "_hold", "_knock", "_next", "_probe", "_refused", "_silent", "anxious",
        "copies_per_second", "host", "spec", "state", "templates", "why",
    )  # fmt: skip

    def __init__(self, spec: ReceiverSpec) -> None:
        self.spec = spec
        self.state = UP
        self.why = ""
        self.templates = False
        self.anxious = False
        self.copies_per_second = 0.0
        self.host = Host()
        self.stay_at(self.host)
        self._probe: Probe | None = None
        self._knock: Datagram | None = None
        self._next = 0.0
        self._came = 0.0  # when it came back last
        self._refused = -IDLE_SECONDS  # when copies were refused last
        self._bad = 0.0  # when anything last told that it is down
        self._hold = 0.0  # how long nothing bad may be heard of it before it is back
        self._silent = 0  # probes without an answer since then
        self._doubts = 0  # times of silence of a connection in a row

    def stay_at(self, host: Host) -> None:
        """The host it shares with others, of the plan that runs."""
        self.host = host
        host.reaches.append(self)

    @property
    def streams(self) -> bool:
        """Whether it is asked by a connection."""
        return self.spec.probe.kind in MAKERS

    @property
    def refusing(self) -> bool:
        """Whether datagrams to its port are probably refused; for TCP and HTTP probes see state."""
        return self.state == REFUSING and not self.streams and not (self._silent and self.host.chance(self) > 0.99)

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
        self._silent = 0
        self._bad = now
        if self.spec.probe.kind != "off" and self.state == UP:
            self._down(Answer(REFUSING, "the receiver's port is closed"), now)

    def step(self, now: float) -> bool:
        """Sends and judges what is due; True when the receiver has come back just now."""
        if not self.asks:
            self.close()
            return False
        if self._probe is None:
            self._probe = self._make()
        answer = self._probe.poll(now)
        if answer is None and not self._probe.busy and now >= self._next and self._has_turn(now):
            try:
                answer = self._probe.start(now)
            except OSError:  # no descriptor, no memory: no news
                self._probe.close()
            self._next = now + self._interval(now)
            self._wake_neighbor(now)
        return answer is not None and self._judge(answer, now)

    def _has_turn(self, now: float) -> bool:
        """Whether a host with a closed port can answer again."""
        if self.state == UP or self.streams:
            return True
        if now < self.host.next:
            return False
        self.host.next = now + max(LIMIT_SECONDS * self.host.chance(self), LEAST_SECONDS)
        return True

    @property
    def asks(self) -> bool:
        """Whether it is probed now."""
        kind, needed = self.spec.probe.kind, self.spec.needed
        if not isinstance(self.spec.delivery, Udp):  # a door tells by itself whether its gateway takes copies
            return self.streams
        if kind != "auto":
            return kind != "off"
        return self.state != UP or (self.spec.deaf and (needed or self.templates)) or (needed and self.anxious)

    def _make(self) -> Probe:
        spec = self.spec
        if self.streams:
            return MAKERS[spec.probe.kind](spec.probe)
        payload = IPFIX_EMPTY if spec.probe.kind == "ipfix" else b""
        return Datagram(spec.udp.address, spec.udp.port, spec.udp.scope_id, payload)

    def _interval(self, now: float) -> float:
        if self.state == UP or self.streams:
            return QUICK_SECONDS if self.spec.needed else IDLE_SECONDS
        return (self.host.next - now) * max(self.host.turns, 1)

    def _wake_neighbor(self, now: float) -> None:
        """Makes the kernel resolve the next hop of a receiver that gets no copies, if the probe goes to another
        host."""
        spec = self.spec
        if not (self.anxious and spec.needed and self._asks_another):
            return
        if self._knock is None:
            self._knock = Datagram(spec.udp.address, DISCARD_PORT, spec.udp.scope_id, b"")
        try:
            self._knock.start(now)
        except OSError:
            self._knock.close()

    @property
    def _asks_another(self) -> bool:
        """Whether the probe goes to another host than the copies."""
        delivery = self.spec.delivery
        return self.streams and isinstance(delivery, Udp) and self.spec.probe.address != delivery.address

    def _judge(self, answer: Answer, now: float) -> bool:
        if answer.state == UP and self.streams and now - self._refused < IDLE_SECONDS:
            answer = Answer(REFUSING, "the receiver's port is closed")
        if answer.state != UP:
            if self._asks_another:  # another host's news, not its own
                answer = Answer(REFUSING, answer.why, answer.sure)
            self._silent = 0
            self._doubts += not answer.sure
            if answer.sure or self._doubts > 1 or self.state != UP:
                self._down(answer, now)
            else:
                self._next = now
            return False
        self._doubts = 0
        if self.state == UP:
            return False
        self._silent += 1
        if now - self._bad < self._hold or not (answer.sure or self._is_silent(now)):
            return False
        self.state, self.why = UP, ""
        self._came = now
        return True

    def _is_silent(self, now: float) -> bool:
        """Whether probes had no answer for longer than any limit explains."""
        chance = self.host.chance(self)
        silence = now - self._bad
        if self._silent < SILENT_PROBES or silence < SILENCE_SECONDS[self.state]:
            return False
        return chance > 0.99 or self._silent >= math.ceil(CERTAINTY / chance) or silence >= SILENCE_LIMIT_SECONDS

    def _down(self, answer: Answer, now: float) -> None:
        if self.state == UP:
            relapse = self._came and now - self._came < RELAPSE_SECONDS
            self._hold = min(max(HOLD_SECONDS, 2 * self._hold), HOLD_LIMIT_SECONDS) if relapse else 0.0
            if not self.streams:
                self.host.next = max(self.host.next, now + LIMIT_SECONDS)
                self._next = now + LIMIT_SECONDS
            else:
                self._next = min(self._next, now + QUICK_SECONDS)
        self._bad = now
        self.state, self.why = answer.state, answer.why

    def close(self) -> None:
        for probe in (self._probe, self._knock):
            if probe is not None:
                probe.close()
        self._probe = self._knock = None
