"""An appliance: a machine that runs the package between exporters and collectors, and what an operator does to it.

Used by tests/deploy. Invariant: what the package's documents tell an operator to do is done here the same way.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from support.lab import Lab
from support.linters import DEPLOY
from support.machine import Machine, Refused
from support.stream import Outcome, Stream, configuration, wait_ready

RATE = 20_000
UNIT = "samplicator.service"
DROP_INS = f"/etc/systemd/system/{UNIT}.d"
CONFIG = "/etc/samplicator/samplicator.toml"


class Appliance:
    """A machine with the package. files: the paths that were there before. said: the words of the installation."""

    def __init__(self, lab: Lab, machine: Machine, package: Path) -> None:
        self.lab = lab
        self.machine = machine
        self.files = machine.files()
        self.said = self.install(package)

    def install(self, package: Path) -> str:
        self.machine.put(package, "/var/tmp/package.deb")
        said = self.machine.run("dpkg", "-i", "/var/tmp/package.deb")
        self.machine.path("/var/tmp/package.deb").unlink()
        return said.stdout + said.stderr

    def configure(self, text: str) -> None:
        self.machine.write(CONFIG + ".new", text)
        self.machine.path(CONFIG + ".new").replace(self.machine.path(CONFIG))

    def drop_in(self, name: str, text: str) -> None:
        self.machine.write(f"{DROP_INS}/{name}.conf", text)
        self.machine.systemctl("daemon-reload")

    def start(self) -> None:
        """Starts the relay as an operator does who cannot raise net.core.rmem_max: with the drop-in for buffers."""
        self.configure(configuration())
        self.drop_in("buffers", (DEPLOY / "systemd" / "drop-ins" / "net-admin.conf").read_text())
        self.machine.systemctl("enable", "--now", UNIT)
        wait_ready(self.lab)

    def restarted(self, pid: int) -> bool:
        """Whether another process runs, and says that it is ready."""
        return self.machine.pid(UNIT) not in (0, pid) and self.machine.shows(UNIT, "ActiveState") == "active"

    def during(self, change: Callable[[], object], rate: int = RATE) -> Outcome:
        """What happens to a stream while something is done."""
        stream = Stream(self.lab, rate)
        try:
            change()
            return stream.finish()
        except BaseException:
            stream.give_up()
            raise


class booted:
    """Labs and machines until the end of a block."""

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self._heavy = request.node.get_closest_marker("deploy_heavy") is not None
        self._closers: list[Callable[[], None]] = []

    def __enter__(self) -> Callable[[str], tuple[Lab, Machine]]:
        return self.start

    def start(self, release: str) -> tuple[Lab, Machine]:
        lab = Lab()
        self._closers.append(lab.close)
        try:
            machine = Machine(release, lab.relay.name, lab.directory)
            self._closers.append(machine.close)
            return lab, machine.boot()
        except Refused as why:
            if self._heavy:
                raise
            pytest.skip(f"this host cannot boot a machine: {why}")

    def __exit__(self, *_: object) -> None:
        for closer in reversed(self._closers):
            closer()
