"""The witness at work: reads packets, sockets and the relay at the same time, and draws up a balance.

Purpose: the order of things. Packets are read all the time, the sockets' counters between them; the relay is asked in a
thread, and each answer becomes a cut when its last datagrams have come. Invariants: no packet waits for the relay; the
relay is asked at most twice a second, and seldom where it has many exporters. Called by cli.
"""

from __future__ import annotations

import copy
import itertools
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

from samplicator.config.address import address_bytes, address_text
from samplicator.errors import Unreachable
from samplicator.witness.balance import Account, Balance, Socket, balance, difference
from samplicator.witness.cuts import ALIKE, Cuts, Step
from samplicator.witness.drops import Drops
from samplicator.witness.relay import Relay, Snapshot
from samplicator.witness.sockets import Queues
from samplicator.witness.split import Split
from samplicator.witness.streams import MOST_LOGGED, Stream, Streams
from samplicator.witness.tape import Tape

PERIOD_SECONDS: Final = 0.5
PERIOD_MOST_SECONDS: Final = 30.0
BUSY: Final = 20
"""The relay is asked so rarely that its answers take this part of the time at most."""
GRACE_SECONDS: Final = 1.0
"""How long datagrams may be on their way."""
SETTLE_SECONDS: Final = 3.0
"""How long the end is put off while something seems to be missing."""
STEP_SECONDS: Final = 0.002
ALERT_STEP_SECONDS: Final = 0.0001
REST_SECONDS: Final = 0.2
EXPIRE_SECONDS: Final = 30.0
MIXED_BEFORE: Final = "several exporters lost datagrams before the relay and at its socket at the same time"
BEYOND: Final = "dropped at the relay's socket, from exporters whose sequence numbers do not show it (yet)"
MIXED_AFTER: Final = "several exporters lost copies here and on the way at the same time"
BEYOND_FAILED: Final = "copies that failed and are of no exporter with sequence numbers"
IN_PARTS: Final = "the receiver gets a part of each exporter's datagrams (freq or a pool), so that only sums are known"
SAME_SOURCE: Final = "copies have the relay's address, and the numbers of several exporters are alike"
LOOSE: Final = "copies of exporters without sequence numbers"
UNSEEN: Final = "missing on the wire, and the witness had no room for some packets, so that these may have come"
MIXED_DROPS: Final = "datagrams of several exporters came while the collector's socket dropped some of them"
BEYOND_DROPS: Final = "dropped by the collector's socket, and not seen on the wire by the witness"


class Witness:
    """One watch of one port. Raises Unreachable when the relay cannot be asked at the beginning, OSError."""

    def __init__(self, port: int, relay: Relay, receiver: str = "") -> None:
        self.port = port
        self._relay = relay
        self.streams = Streams()
        self.tape = Tape(port)
        try:
            self.queues = Queues(port)
            here = local_addresses()
            receivers = relay.receivers_of(port, here, receiver)
            turns = relay.takes_turns([str(row["name"]) for row in receivers])
        except BaseException:
            self.tape.close()
            raise
        self._names = [str(row["name"]) for row in receivers]
        self._turns = turns
        self.receiver = self._names[0] if receiver else ", ".join(self._names)
        addresses = {str(row["address"]) for row in receivers}
        if receiver and addresses <= here:
            self.streams.only = frozenset(map(address_bytes, addresses))
        self._cuts = Cuts(self.streams, str(receivers[0]["source"]))
        self._drops = Drops(self.queues, self.streams, self._name)
        self._before: dict[str, Split] = {}
        self._after = Split()
        self._asker = ThreadPoolExecutor(1, "relay")
        self._last: Snapshot | None = None
        self._first: Snapshot | None = None
        self._wire: Counter[str] = Counter()
        self._loose: dict[Stream, int] = {}
        self._began_drops: dict[bytes, int] = {}
        self._rested = self._rests = False
        self._skipped = 0
        self._took_seconds = 0.0
        self._expired = time.monotonic()
        self.trouble = ""
        self.stopping = False  # set by anybody: the watch ends early, with its balance
        self._settling = True

    def close(self) -> None:
        self._asker.shutdown(wait=False, cancel_futures=True)
        self.tape.close()
        self.queues.close()

    def _name(self, stream: Stream) -> str:
        """The exporter of a stream; ALIKE = it has several; "" = not of these receivers."""
        if stream is self.streams.other:
            return ""
        names = self._cuts.exporters.get(stream, set())
        if len(names) > 1:
            return ALIKE
        return next(iter(names), "") or address_text(stream.key[0])

    # ---- reading

    def _read(self) -> int:
        return self.tape.read(self.streams.packet)

    def pump(self, seconds: float, until: Future[Snapshot] | None = None) -> None:
        """Reads for so long, or until the answer is there."""
        end = time.monotonic() + seconds
        while True:
            got = self._read()
            self._drops.step(self._read)
            now = time.monotonic()
            if now >= end or (until is not None and until.done()) or (self.stopping and not self._settling):
                return
            if not got:
                step = ALERT_STEP_SECONDS if now < self._drops.alert_until else STEP_SECONDS
                self.tape.wait(max(0.0, min(step, end - now)))
            if now - self._expired > EXPIRE_SECONDS:
                self._expired = now
                self.streams.expire(now - EXPIRE_SECONDS)
                self.tape.count_drops()

    def _ask(self) -> Snapshot:
        """A snapshot, with packets read meanwhile. Raises Unreachable."""
        began = time.monotonic()
        future = self._asker.submit(self._relay.snapshot, self._names)
        self.pump(60.0, future)
        snapshot = future.result(1.0)
        self._took_seconds = time.monotonic() - began
        return snapshot

    def _wait(self, snapshot: Snapshot) -> None:
        """Until the last datagram of each exporter has come, or might be lost."""
        end = time.monotonic() + GRACE_SECONDS
        self.pump(0.0)
        while self._cuts.waits(snapshot) and time.monotonic() < end:
            self.pump(0.05)

    # ---- cuts

    def begin(self) -> None:
        """The first cut. What came before it is not counted. Raises Unreachable."""
        self.pump(REST_SECONDS)
        count = self.streams.count
        snapshot = self._ask()
        self._wait(snapshot)
        self._cuts.cut(snapshot)
        self._first = self._last = snapshot
        self._loose = {stream: stream.count for stream in self.streams.by_key.values()}
        self._drops.split = Split()
        self._began_drops = {queue.cookie: queue.dropped for queue in self.queues.known.values()}
        self.pump(REST_SECONDS)
        self._rested = count == self.streams.count

    def _advance(self, *, rest: bool = False) -> bool:
        """One cut. Returns whether the exporters rest. Raises Unreachable."""
        before, count = self._last, self.streams.count
        snapshot = self._ask()
        self._wait(snapshot)
        same = (
            before is not None
            and count == self.streams.count
            and {place: row["header"] for place, row in before.rows.items()}
            == {place: row["header"] for place, row in snapshot.rows.items()}
        )
        self._enter(snapshot, self._cuts.cut(snapshot, rest=rest and same))
        return same

    def _enter(self, snapshot: Snapshot, step: Step) -> None:
        assert self._last is not None
        for listener in snapshot.drops.keys() | step.before.keys():
            more = max(0, snapshot.drops.get(listener, 0) - self._last.drops.get(listener, 0))
            self._before.setdefault(listener, Split()).add(more, step.before.get(listener, Counter()), step.slack)
        failed = difference(snapshot.given["failed"], self._last.given["failed"])
        skipped = max(0, snapshot.given["skipped"] - self._last.given["skipped"])
        self._skipped += skipped
        self._after.add(sum(failed.values()), step.after)
        self._wire += step.wire
        self._last = snapshot

    def watch(self, seconds: float) -> float:
        """So long, in cuts, and then until nothing is on its way; returns how long it was. A relay that does not
        answer meanwhile is asked again.
        """
        began = time.monotonic()
        asked = began
        self._settling = False
        while (left := began + seconds - time.monotonic()) > 0 and not self.stopping:
            period = min(max(PERIOD_SECONDS, BUSY * self._took_seconds), PERIOD_MOST_SECONDS)
            self.pump(min(left, max(0.0, asked + period - time.monotonic())))
            full = self.streams.logged > MOST_LOGGED // 2
            if (asked + period <= time.monotonic() or full) and time.monotonic() < began + seconds:
                asked = time.monotonic()
                self._settling = True
                self._try()
                self._settling = False
        self._settling = True
        end = time.monotonic() + SETTLE_SECONDS
        self._try(rest=True)
        while self._missing() and time.monotonic() < end:
            self.pump(0.3)
            if self._try(rest=True):
                break
        return time.monotonic() - began

    def _try(self, *, rest: bool = False) -> bool:
        try:
            same = self._advance(rest=rest)
        except Unreachable as error:
            self.trouble = str(error)
            self.pump(0.2)
            return False
        self.trouble = ""
        self._rests = same
        return same

    def _missing(self) -> bool:
        """Whether the account shows copies that did not come."""
        return bool(self.trouble) or any(self._after.first.values()) or any(self._after.second.values())

    # ---- the account

    def account(self, *, final: bool = True) -> Account:
        """All since begin(). final: what is not decided is decided now."""
        assert self._first is not None
        assert self._last is not None
        if final:
            self._drops.finish()
            for split in (*self._before.values(), self._after):
                split.close()
        found = Account(wire=Counter(self._wire), unseen=self.tape.count_drops())
        sums = found.sums
        for split in self._before.values():
            found.lost_at_socket += split.first
            found.lost_before += split.second
            _add(sums, ("lost_before", "lost_at_socket"), split.mixed, MIXED_BEFORE)
            _add(sums, ("lost_at_socket",), split.beyond, BEYOND)
        if self._in_parts():
            self._sampled(found)
        else:
            found.failed += self._after.first
            found.lost_on_way += self._after.second
            if not (self._rested and self._rests):
                for name in self._cuts.unnumbered:
                    found.lost_on_way.pop(name, 0)
            _add(sums, ("failed",), found.failed.pop(ALIKE, 0), SAME_SOURCE)
            _add(sums, ("lost_on_way",), found.lost_on_way.pop(ALIKE, 0), SAME_SOURCE)
            _add(sums, ("failed", "lost_on_way"), self._after.mixed, MIXED_AFTER)
            _add(sums, ("failed",), self._after.beyond, BEYOND_FAILED)
        if found.unseen:
            count = sum(count for count in found.lost_on_way.values() if count > 0)
            _add(sums, ("lost_on_way",), count, UNSEEN)
            found.lost_on_way.clear()
        drops = self._drops.split
        found.dropped_by_collector += drops.first
        found.dropped_by_collector.pop("", 0)
        _add(sums, ("dropped_by_collector",), found.dropped_by_collector.pop(ALIKE, 0), SAME_SOURCE)
        _add(sums, ("dropped_by_collector",), drops.mixed_first, MIXED_DROPS)
        _add(sums, ("dropped_by_collector",), drops.beyond, BEYOND_DROPS)
        self._loose_ends(found)
        found.failed_by_reason = difference(self._last.given["failed"], self._first.given["failed"])
        found.fragments = (self.streams.reassembled, self.streams.incomplete)
        return copy.deepcopy(found)

    def _sampled(self, found: Account) -> None:
        """A receiver that gets a part of the datagrams: only sums tell what it should have got."""
        assert self._first is not None
        assert self._last is not None
        failed = sum(difference(self._last.given["failed"], self._first.given["failed"]).values())
        _add(found.sums, ("failed",), failed, IN_PARTS)
        if self._rested and self._rests:
            _add(found.sums, ("lost_on_way",), self._grown("sent") - self._arrived(), IN_PARTS)

    def _in_parts(self) -> bool:
        """Whether the receiver gets a part of what the relay has of its exporters."""
        if self._skipped or self._turns or self._cuts.partly:
            return True
        slack = (
            0 if self._rested and self._rests else 1000 + self._cuts.given // 20
        )  # what came while the relay answered
        return self._cuts.pooled > 0 and self._cuts.given > self._grown("offered") + slack

    def _grown(self, key: str) -> int:
        """A counter of the receivers since begin()."""
        assert self._first is not None
        assert self._last is not None
        return int(self._last.given[key]) - int(self._first.given[key])

    def _arrived(self) -> int:
        """All datagrams since begin()."""
        return sum(stream.count - self._loose.get(stream, 0) for stream in self.streams.by_key.values())

    def _loose_ends(self, found: Account) -> None:
        """Datagrams of exporters without sequence numbers, or not by this relay."""
        came = 0
        for stream in self.streams.by_key.values():
            if stream not in self._cuts.exporters:
                count = stream.count - self._loose.get(stream, 0)
                if count:
                    found.wire[self._name(stream)] += count
                    came += count
        if self._rested and self._rests and not self._in_parts():
            given = self._grown("offered") - self._cuts.given - self._cuts.surplus - self._after.beyond
            _add(found.sums, ("lost_on_way",), given - came, LOOSE)

    def sockets(self) -> list[Socket]:
        """The collector's sockets, with what they dropped since begin()."""
        return [
            {
                "address": queue.address,
                "inode": queue.inode,
                "dropped": queue.dropped - self._began_drops.get(queue.cookie, 0),
                "queued_bytes": queue.queued_bytes,
                "buffer_bytes": queue.buffer_bytes,
            }
            for queue in self.queues.known.values()
        ]

    def notes(self) -> list[str]:
        """What the witness cannot see, or has only estimated."""
        said = []
        if self.trouble:
            said.append(f"the relay did not answer at the end: {self.trouble}; its side is older")
        if self.tape.drops:
            said.append(f"the witness had no room for {self.tape.drops} packets; its counts are too low by up to that")
        if not self._drops.seen:
            said.append(f"no socket is bound to port {self.port}; what happens behind the wire cannot be seen")
        estimated = sum(split.estimated for split in self._before.values())
        if estimated:
            said.append(
                f"{estimated} datagrams lost before the relay are estimated from flows or records, because the "
                "datagrams of an exporter have different sizes"
            )
        if self._drops.ordered:
            said.append(f"{self._drops.ordered} drops of the collector's socket are told apart by their order")
        if self._in_parts() and not (self._rested and self._rests):
            said.append("the exporters did not rest at the begin and at the end, so losses on the way cannot be told")
        if self._cuts.unnumbered and not (self._rested and self._rests):
            said.append("losses on the way of exporters without sequence numbers can only be told when they rest")
        loose = {self._name(s) for s in self.streams.by_key.values() if s not in self._cuts.exporters and s.count}
        if loose:
            some = ", ".join(sorted(loose)[:5]) + (f" and {len(loose) - 5} more" if len(loose) > 5 else "")
            said.append(f"the relay has no sequence numbers of {some}; only what came here is known")
        if self.streams.untracked:
            said.append(f"{self.streams.untracked} datagrams of more exporters than the witness can hold are left out")
        if self.tape.skipped:
            said.append(f"{len(self.tape.skipped)} interfaces of a bridge or bond are read at the bridge or bond")
        said.append("datagrams that this host drops between wire and socket (firewall, checksum) count as taken")
        return said

    def balance(self, seconds: float, before: Account | None = None, *, final: bool = True) -> tuple[Balance, Account]:
        """The balance since `before`, None = since begin(); and the account to give the next time."""
        now = self.account(final=final)
        value = balance(self.receiver, self.port, seconds, now, before or Account(), self.sockets(), self.notes())
        return value, now


def _add(sums: dict[tuple[str, ...], tuple[int, str]], stages: tuple[str, ...], count: int, why: str) -> None:
    if count > 0:
        known, text = sums.get(stages, (0, ""))
        sums[stages] = (known + count, text if why in text else "; ".join(filter(None, (text, why))))


def local_addresses() -> frozenset[str]:
    """Addresses of this host, as text."""
    found: set[str] = set()
    try:
        with open("/proc/net/fib_trie") as file:
            lines = file.read().splitlines()
        found |= {a.split()[1] for a, b in itertools.pairwise(lines) if "/32 host LOCAL" in b and "|--" in a}
        with open("/proc/net/if_inet6") as file:
            found |= {address_text(bytes.fromhex(line.split()[0])) for line in file}
    except OSError:
        pass
    return frozenset(found)
