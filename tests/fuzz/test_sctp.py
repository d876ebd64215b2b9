"""A part of the fuzzing of SCTP in every run; by hand: python tests/fuzz/fuzz_sctp.py SEED COUNT."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).with_name("fuzz_sctp.py")


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_hostile_packets(seed: int) -> None:
    """The library runs in a process of its own, which must neither crash nor grow."""
    done = subprocess.run([sys.executable, FUZZ, str(seed), "10000"], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert int(done.stdout.split()[-2]) < 200
