"""An appliance: a machine that runs the package between exporters and collectors, and what an operator does to it.

Used by tests/deploy. Invariant: what the package's documents tell an operator to do is done here the same way.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
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
        self.package = package
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

    def running(self) -> Appliance:
        """Itself, with the relay running."""
        if self.machine.shows(UNIT, "ActiveState") != "active":
            self.start()
        return self

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


@contextlib.contextmanager
def booted(*, heavy: bool) -> Iterator[Callable[[str], tuple[Lab, Machine]]]:
    """Boots releases of Debian, each in a lab of its own, until the end of the block.

    A host that cannot boot a machine excuses `make test`, which then says why; for `make verify-deploy` (heavy) it is
    a failure.
    """
    with contextlib.ExitStack() as closers:

        def boot(release: str) -> tuple[Lab, Machine]:
            lab = Lab()
            closers.callback(lab.close)
            try:
                machine = Machine(release, lab.relay.name, lab.directory)
                closers.callback(machine.close)
                return lab, machine.boot()
            except Refused as why:
                if heavy:
                    raise
                pytest.skip(f"this host cannot boot a machine: {why}")

        yield boot
