"""Checksums against a slow reference written from RFC 1071, at every length and alignment. Bytes in, a number out."""

from __future__ import annotations

import random
import sys

import pytest
from samplicator import _inside

LONGEST = 9001


def reference(data: bytes) -> int:
    """RFC 1071 in one line of arithmetic: words of 16 bits in the machine's order, end-around carry."""
    padded = data + bytes(len(data) % 2)
    total = sum(int.from_bytes(padded[i : i + 2], sys.byteorder) for i in range(0, len(padded), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def same(left: int, right: int) -> bool:
    """0 and 0xFFFF are the two zeros of ones' complement."""
    return left == right or {left, right} == {0, 0xFFFF}


def test_reference_knows_the_example_of_the_rfc() -> None:
    """RFC 1071 §3: the sum of 00 01 f2 03 f4 f5 f6 f7 is ddf2."""
    total = reference(bytes.fromhex("0001f203f4f5f6f7"))
    assert total.to_bytes(2, sys.byteorder).hex() == "ddf2"


@pytest.mark.parametrize("offset", [0, 1, 2, 3, 7, 8, 13])
def test_every_length(offset: int) -> None:
    """0..9001 bytes; the expected sum grows with the length, so that the reference is not quadratic."""
    data = random.Random(offset).randbytes(LONGEST)
    total = 0  # of the whole words so far
    for length in range(LONGEST + 1):
        if length and length % 2 == 0:
            total = reference_add(total, data[length - 2 : length])
        expected = reference_add(total, data[length - 1 : length] + b"\0") if length % 2 else total
        assert same(_inside.checksum_sum(data[:length], offset), expected), (length, offset)


def reference_add(total: int, word: bytes) -> int:
    total += int.from_bytes(word, sys.byteorder)
    return (total & 0xFFFF) + (total >> 16)


@pytest.mark.parametrize("fill", [b"\0", b"\xff", b"\xff\x00", b"\x00\xff"])
@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 1472, 9000, 65506, 65507, 65535])
def test_extremes(fill: bytes, length: int) -> None:
    """All ones is where a lost carry shows."""
    data = (fill * length)[:length]
    for offset in (0, 1):
        assert same(_inside.checksum_sum(data, offset), reference(data))


def test_sum_fits_in_16_bits() -> None:
    generator = random.Random(3)
    for _ in range(2000):
        assert 0 <= _inside.checksum_sum(generator.randbytes(generator.randrange(200)), 1) <= 0xFFFF
