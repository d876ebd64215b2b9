"""Hostile packets into the glue around libusrsctp: mutated, cut, spliced and made up, in a process of its own.

    python tests/fuzz/fuzz_sctp.py SEED COUNT

Two stacks talk; an attacker who sees everything sends what it made of it, from addresses that are known and others,
with valid checksums half of the time. At the end the glue must be whole: memory is bounded, a session that was not hit
by a packet with its own tag still carries messages, and nothing raised. Called by tests/fuzz/test_sctp.py and by hand.
"""

from __future__ import annotations

import random
import socket
import struct
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2] / "pysrc")]

from samplicator.gateways.sctp.library import instance  # noqa: E402
from samplicator.gateways.sctp.packet import listed_addresses, parse  # noqa: E402
from samplicator.gateways.sctp.peers import MOST_PENDING, Place  # noqa: E402
from samplicator.gateways.transport import Options  # noqa: E402
from support.sctp import Log, Time, Wires, host, place  # noqa: E402

PORT = 4739
KEPT = 400


def most_memory() -> int:
    """In MiB, so far. The kernel's ru_maxrss is that of the program that started this one, if that is larger."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) >> 10


def checked(data: bytes) -> bytes:
    """With the checksum that libusrsctp expects."""
    data = data[:8] + bytes(4) + data[12:]
    return data[:8] + struct.pack("=I", instance().checksum(data)) + data[12:]


def mutated(rng: random.Random, seen: list[bytes]) -> bytes:
    data = bytearray(rng.choice(seen))
    for _ in range(rng.randrange(1, 6)):
        what = rng.randrange(8)
        at = rng.randrange(len(data)) if data else 0
        if what == 0 and data:
            data[at] ^= 1 << rng.randrange(8)
        elif what == 1:
            data[at : at + 2] = struct.pack("!H", rng.choice([0, 1, 3, 4, 5, 0x7FFF, 0xFFFF]))
        elif what == 2:
            del data[at:]
        elif what == 3:
            data += rng.choice(seen)[12:]
        elif what == 4:
            data += struct.pack("!BBH", rng.randrange(256), rng.randrange(256), rng.randrange(40)) + rng.randbytes(
                rng.randrange(40)
            )
        elif what == 5 and len(data) > 12:
            data[12] = rng.choice([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 14, 15, 0x80, 0x81, 0x82, 0xC0, 0xC1])
        elif what == 6:
            data[4:8] = rng.choice([bytes(4), rng.randbytes(4)])
        else:
            del data[at : at + rng.randrange(1, 20)]
    return bytes(data)


def main(seed: int, count: int) -> None:
    rng = random.Random(seed)
    time = Time()
    wires = Wires(time)
    wires.random.seed(seed)
    wires.keeps = True
    exporter, relay, other = host(wires, "192.0.2.1"), host(wires, "192.0.2.9"), host(wires, "192.0.2.2")
    here, there, quiet = Log(), Log(), Log()
    there.allows = lambda peer: "" if peer.address[:3] == bytes([192, 0, 2]) else "not allowed"
    relay.listen(place("0.0.0.0", PORT), there, Options(streams=4))
    bystander = other.connect(place("192.0.2.9", PORT), quiet, Options(streams=4))
    time.until(lambda: bool(quiet.sessions))
    tags = {tag for one in relay.entrance.peers for tag in one.tags} | {
        tag for one in other.entrance.peers for tag in one.tags
    }
    wires.seen.clear()
    session = exporter.connect(place("192.0.2.9", PORT), here, Options(streams=4, heartbeat_ms=50))
    sent = 0
    for _ in range(count):
        if session.open and rng.random() < 0.05:
            session.send(rng.randbytes(rng.choice([16, 200, 3000])), rng.randrange(4))
        elif not session.open and session.ended:
            session = exporter.connect(place("192.0.2.9", PORT), here, Options(streams=4, heartbeat_ms=50))
        if rng.random() < 0.2:
            time.run(rng.choice([0.0, 0.001, 0.02]))
        seen = [packet.data for _, packet in wires.seen[-200:]]
        if not seen:
            time.run(0.01)
            continue
        data = mutated(rng, seen)
        if len(data) >= 8 and struct.unpack_from("!I", data, 4)[0] in tags:
            continue  # who knows its tag may end it
        if len(data) >= 12 and rng.random() < 0.5:
            data = checked(data)
        parsed = parse(data)
        if parsed is not None:
            listed_addresses(parsed)
        source = rng.choice(["192.0.2.1", "192.0.2.1", "192.0.2.9", f"192.0.2.{rng.randrange(3, 250)}", "203.0.113.1"])
        target = rng.choice([relay, relay, exporter])
        target.arrived([(data, Place(socket.inet_aton(source)), socket.inet_aton("192.0.2.9"))])
        del wires.seen[:-KEPT], there.messages[:-KEPT], there.asked[:-KEPT], here.failed[:]
        del here.sessions[:-KEPT], here.closed_[:-KEPT], there.closed_[:-KEPT], there.sessions[:-KEPT]
        sent += 1
    time.run(1)
    assert len(relay.entrance.peers) <= MOST_PENDING + 64 + len(relay.sessions())
    before = len(there.messages)
    assert bystander.open, quiet.closed_
    assert bystander.send(b"still here......", 1)
    time.until(lambda: any(message == b"still here......" for _, _, message in there.messages[max(before - 5, 0) :]))
    print(f"{sent} packets, {len(relay.sessions())} sessions, {len(relay.entrance.peers)} peers, "
          f"{relay.entrance.foreign} foreign, {relay.entrance.refused} refused, "
          f"{most_memory()} MiB")  # fmt: skip
    for one in (exporter, relay, other):
        one.close()
    time.run(1)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
