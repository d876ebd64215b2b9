"""Engine `udp` with an MTU of its own: what is longer leaves by the raw way, cut here, as if by the same socket; in
order, and each copy counted once.
"""

from __future__ import annotations

import errno
import random

import pytest
from samplicator import _inside

WORKER = _inside.Worker(batch=1, sessions=8)
EXPORTER = {4: bytes([198, 18, 0, 1]), 6: bytes(15) + b"\7"}
RECEIVER = {4: bytes([198, 18, 0, 2]), 6: bytes(15) + b"\2"}
OWN = {4: bytes([198, 18, 0, 9]), 6: bytes(15) + b"\x09"}
HEADERS = {4: 28, 6: 48}
MTU = 1400


class Way:
    """An udp Tx and its cutter, with one script in the kernel's place for both."""

    def __init__(self, family: int) -> None:
        self.counters = _inside.TxCounters()
        self.cutter = _inside.Tx(
            _inside.ENGINE_RAW, -1, self.counters, RECEIVER[family], 9, mtu=1500, source=(bytes(len(OWN[family])), 0)
        )
        self.tx = _inside.Tx(_inside.ENGINE_UDP, -1, self.counters, RECEIVER[family], 9, mtu=MTU, cutter=self.cutter)
        self.family = family

    def play(self, payloads: list[bytes], steps: list[int] | None = None) -> list[tuple[str, bytes]]:
        """What was taken: ("run", payload), ("packet", IP packet)."""
        script = _inside.Script(steps or [])
        rows = [(EXPORTER[self.family], 2055, 64, 0, payload) for payload in payloads]
        _inside.play(WORKER, self.tx, rows, script)
        values = dict(zip(_inside.TX_FIELDS, self.counters.read(), strict=True))
        dropped = sum(value for name, value in values.items() if name.startswith("failed_"))
        assert values["offered"] == values["sent"] + dropped
        self.sent, self.dropped = values["sent"], dropped
        own = OWN[self.family]
        start = 12 if self.family == 4 else 8
        return [
            ("packet" if message[start : start + len(own)] == own else "run", message) for message, _ in script.accepted
        ]


def whole(family: int, taken: list[tuple[str, bytes]]) -> bytes:
    """All payload bytes in the order of leaving; fragments of one datagram leave after each other."""
    out = b""
    for kind, message in taken:
        if kind == "run":
            out += message
            continue
        assert len(message) <= MTU
        if family == 4:
            offset, body = int.from_bytes(message[6:8], "big") & 0x1FFF, message[20:]
        else:
            assert message[6] == 44
            offset, body = int.from_bytes(message[42:44], "big") >> 3, message[48:]
        if offset == 0:
            assert int.from_bytes(body[:2], "big") == 4000
            body = body[8:]
        out += body
    return out


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("seed", range(20))
def test_order_and_sizes(family: int, seed: int) -> None:
    dice = random.Random(seed)
    most = MTU - HEADERS[family]
    sizes = [dice.choice((90, 90, 90, most, most + 1, 1452, 9000)) for _ in range(dice.choice((1, 5, 60)))]
    payloads = [dice.randbytes(size) for size in sizes]
    way = Way(family)
    way.tx.cut_from(OWN[family], 4000)
    taken = way.play(payloads)
    assert whole(family, taken) == b"".join(payloads)
    assert sum(kind == "packet" for kind, _ in taken) >= sum(size > most for size in sizes)
    assert (way.sent, way.dropped) == (len(payloads), 0)


@pytest.mark.parametrize("family", [4, 6])
def test_until_its_source_is_known_the_kernel_cuts(family: int) -> None:
    taken = Way(family).play([bytes(90), bytes(4000)])
    assert [(kind, len(message)) for kind, message in taken] == [("run", 90), ("run", 4000)]


@pytest.mark.parametrize("family", [4, 6])
def test_a_fragment_that_fails_is_a_copy_that_fails(family: int) -> None:
    way = Way(family)
    way.tx.cut_from(OWN[family], 4000)
    way.play([bytes(90), bytes(4000), bytes(91)], [1, 1, -errno.EPERM])
    assert (way.sent, way.dropped) == (2, 1)


def test_the_mtu_goes_along() -> None:
    way = Way(4)
    way.tx.mtu = 600
    assert way.cutter.mtu == 600


def test_what_is_no_cutter() -> None:
    counters, other = _inside.TxCounters(), _inside.TxCounters()
    udp = _inside.Tx(_inside.ENGINE_UDP, -1, counters, RECEIVER[4], 9)
    raw = _inside.Tx(_inside.ENGINE_RAW, -1, other, RECEIVER[4], 9, source=(OWN[4], 0))
    spoofing = _inside.Tx(_inside.ENGINE_RAW, -1, counters, RECEIVER[4], 9)
    for wrong in (udp, raw, spoofing):
        with pytest.raises(ValueError, match="a cutter is"):
            _inside.Tx(_inside.ENGINE_UDP, -1, counters, RECEIVER[4], 9, cutter=wrong)
    with pytest.raises(ValueError, match="no cutter"):
        udp.cut_from(OWN[4], 1)
