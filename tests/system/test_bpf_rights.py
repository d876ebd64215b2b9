"""The BPF programs load with the capabilities that the manual names, and no others: with more the kernel's verifier
lets more pass, so a test as root shows nothing.
"""

from __future__ import annotations

import subprocess
import sys

import pytest
from support.lab import Lab
from support.process import tool

LOAD = {
    "copier": ("from samplicator.host.copier import Copier; Copier().close()", "bpf,net_admin"),
    "tcx": ("from samplicator.host.offload import Offload; Offload(2, 1 << 20).close()", "bpf,net_admin"),
    "xdp": (
        "from samplicator.host.offload import Offload; made = Offload(2, 1 << 20, express=True); made.close(); "
        "import sys; sys.exit(bool(made.no_express))",
        "bpf,net_admin,perfmon",
    ),
}


@pytest.mark.parametrize("replicate", LOAD)
def test_no_more_rights_than_are_said(lab: Lab, replicate: str) -> None:
    program, rights = LOAD[replicate]

    def load(*before: str) -> subprocess.CompletedProcess[str]:
        argv = [*before, sys.executable, "-c", program]
        return lab.relay.call(lambda: subprocess.run(argv, capture_output=True, text=True, check=False))

    if load().returncode:
        pytest.skip("no such programs here at all")
    only = ",".join(f"+{right}" for right in rights.split(","))
    done = load(tool("setpriv"), f"--bounding-set=-all,{only}", f"--inh-caps=-all,{only}")
    assert done.returncode == 0, done.stderr[-2000:]
    without = load(tool("setpriv"), "--bounding-set=-all,+net_admin", "--inh-caps=-all,+net_admin")
    assert without.returncode == 1
