"""node-tuning of the image: what it writes, what it leaves as it is, and what it says. In a tree of files, and at the
kernel's own files of a network namespace.
"""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.linters import DEPLOY, tool

SCRIPT = DEPLOY / "docker" / "node_tuning.py"
CPUS = os.cpu_count() or 1


class Node:
    """A host of files, and the tool that takes it for real."""

    def __init__(self, folder: Path) -> None:
        self.sysctls = folder / "proc"
        self.devices = folder / "net"
        self.devices.mkdir()
        self.tool: dict[str, Any] = runpy.run_path(str(SCRIPT))

    def sysctl(self, name: str, value: str) -> Path:
        path = self.sysctls / name.replace(".", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(value)
        return path

    def device(self, name: str, *masks: str, hardware: bool = True) -> list[Path]:
        paths = []
        for number, mask in enumerate(masks):
            queue = self.devices / name / "queues" / f"rx-{number}"
            queue.mkdir(parents=True)
            (queue / "rps_cpus").write_text(mask)
            paths.append(queue / "rps_cpus")
        if hardware:
            (self.devices / name / "device").mkdir()
        return paths

    def run(self, *words: str, cpus: int = 4) -> int:
        main = self.tool["main"]
        places = {"SYSCTLS": self.sysctls, "DEVICES": self.devices}
        with pytest.MonkeyPatch.context() as patch:
            for name, value in places.items():
                patch.setitem(main.__globals__, name, value)
            patch.setattr(os, "cpu_count", lambda: cpus)
            return int(main(words))


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_raises_and_never_lowers(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    low = node.sysctl("net.core.rmem_max", "212992\n")
    high = node.sysctl("net.core.wmem_max", "8388608\n")
    assert node.run("--sysctl", "net.core.rmem_max=67108864", "--sysctl=net.core.wmem_max=4194304") == 0
    assert (low.read_text(), high.read_text()) == ("67108864", "8388608\n")
    assert capsys.readouterr().out.splitlines() == [
        "net.core.rmem_max = 67108864: raised from 212992",
        "net.core.wmem_max = 8388608: kept",
    ]


def test_what_the_host_lacks_is_a_line(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    node.sysctl("net.core.odd", "1 2 3\n")
    words = ["--sysctl=net.core.none=1", "--sysctl=net.core.odd=1", "--rps=none", "--rps=auto"]
    assert node.run(*words) == 0
    first, second, third = capsys.readouterr().out.splitlines()
    assert first.startswith("net.core.none could not be set to 1: ")
    assert second.startswith("net.core.odd could not be set to 1: ")
    assert third.startswith("none: no receive queues in ")


def test_spreads_what_hardware_does_not_spread(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    one = node.device("ens1", "0\n")
    enough = node.device("ens2", *["00\n"] * 4)
    tuned = node.device("ens3", "0,00000000\n", "00000000,00000002\n")
    bridge = node.device("br0", "0\n", hardware=False)
    assert node.run("--rps=auto") == 0
    assert [path.read_text() for path in one] == ["0000000f"]
    assert [path.read_text() for path in enough] == ["00\n"] * 4
    assert [path.read_text() for path in tuned] == ["0000000f", "00000000,00000002\n"]
    assert [path.read_text() for path in bridge] == ["0\n"]
    assert capsys.readouterr().out.splitlines() == [
        "ens1: RPS over 4 CPUs on 1 of 1 receive queues",
        "ens2: 4 receive queues for 4 CPUs, RPS is not needed",
        "ens3: RPS over 4 CPUs on 1 of 2 receive queues",
    ]


def test_many_cpus(node: Node) -> None:
    (mask,) = node.device("ens1", "0")
    node.run("--rps=ens1", cpus=70)
    assert mask.read_text() == "0000003f,ffffffff,ffffffff"


@pytest.mark.parametrize(
    "word",
    ["net.core.rmem_max", "kernel.panic=1", "net.core.rmem_max=0", "net.core.rmem_max=2147483648", "net.../etc=1",
     "net.core/../x=1", "net.core.rmem_max=-1", "net.core.rmem_max=1 2"],
)  # fmt: skip
def test_wrong_settings_are_refused(node: Node, word: str) -> None:
    with pytest.raises(SystemExit) as caught:
        node.run(f"--sysctl={word}")
    assert caught.value.code == 2


@pytest.mark.parametrize("word", ["", "a/b", "..", "a" * 16, "a b"])
def test_wrong_interfaces_are_refused(node: Node, word: str) -> None:
    with pytest.raises(SystemExit) as caught:
        node.run(f"--rps={word}")
    assert caught.value.code == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: network and mount namespaces")
def test_at_the_kernels_own_files() -> None:
    """In a network namespace, where net.ipv4.ip_no_pmtu_disc is one's own and veth has one receive queue."""
    words = f"{sys.executable} -I {SCRIPT} --sysctl=net.ipv4.ip_no_pmtu_disc=1 --rps=veth0"
    script = f"""
set -e
mount -t sysfs sysfs /sys
ip link add veth0 type veth peer name veth1
{words}
cat /proc/sys/net/ipv4/ip_no_pmtu_disc /sys/class/net/veth0/queues/rx-0/rps_cpus
{words}
"""
    done = subprocess.run(
        [tool("unshare"), "--net", "--mount", "sh", "-c", script], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "net.ipv4.ip_no_pmtu_disc = 1: raised from 0"
    assert lines[2] == "1"
    assert lines[4] == "net.ipv4.ip_no_pmtu_disc = 1: kept"
    if CPUS > 1:
        assert lines[1] == f"veth0: RPS over {CPUS} CPUs on 1 of 1 receive queues"
        assert int(lines[3].replace(",", ""), 16) == (1 << CPUS) - 1
        assert lines[5] == f"veth0: RPS over {CPUS} CPUs on 0 of 1 receive queues"
