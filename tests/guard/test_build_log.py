"""The build said nothing: no hint that a line takes the GIL, no warning. And the stub is true to what was built.

`make` keeps the log of the last full build in build/build.log and stops at the same findings; this is the second
pair of eyes.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.tree import ROOT

LOG = ROOT / "build" / "build.log"
NOISE = re.compile(r"performance hint|\bwarning\b|\berror\b", re.IGNORECASE)
# The flags that make warnings errors carry the word.
FLAGS = re.compile(r"\s-W\S*")


@pytest.fixture(scope="module")
def log() -> str:
    assert LOG.exists(), "no build/build.log: build with `make build`, which keeps the log"
    return LOG.read_text()


def test_log_is_of_a_full_build(log: str) -> None:
    assert "Cythonizing fastpath/_fastpath.pyx" in log


def test_build_is_silent(log: str) -> None:
    assert [line for line in log.splitlines() if NOISE.search(FLAGS.sub("", line))] == []


def test_stub_is_true() -> None:
    allowlist = Path(__file__).with_name("stubtest.allow")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy.stubtest",
            "samplicator._fastpath",
            "--allowlist",
            str(allowlist),
            "--ignore-unused-allowlist",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_nothing_takes_the_gil() -> None:
    """No function of the loop asks for the interpreter's lock."""
    source = (ROOT / "build" / "cython" / "fastpath" / "_fastpath.c").read_text()
    assert re.search(r"__pyx_f_\w+?_fastpath_worker_loop\(", source)
    assert source.count("= __Pyx_PyGILState_Ensure()") == 0
