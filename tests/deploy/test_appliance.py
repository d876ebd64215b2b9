"""What else an operator does with the package, on booted machines: rings, socket activation, low ports, instances, and
disks that are full, read-only or hold somebody else's file.

Each test leaves the machine as it found it. `make verify-deploy` runs them.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import pytest
from samplicator.config.model.datapath import Datapath
from support.appliance import CONFIG, DROP_INS, RATE, UNIT, Appliance
from support.linters import DEPLOY
from support.process import wait_for
from support.stream import WORKERS, Stream, configuration, metrics, page, wait_ready

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.netns,
    pytest.mark.alone,
    pytest.mark.deploy_heavy,
    pytest.mark.parametrize("appliance", ["bookworm", "trixie"], indirect=True, scope="module"),
]
STATE = "/var/lib/private/samplicator"
HASH = "$2b$04$" + "." * 53
"""Of no password."""
SOCKET = "/etc/systemd/system/samplicator.socket"


@pytest.fixture
def running(appliance: Appliance) -> Iterator[Appliance]:
    """The relay, with the configuration of stream.py; afterwards it is stopped and nothing of the test is left."""
    machine = appliance.machine
    appliance.start()
    yield appliance
    machine.systemctl("stop", "samplicator.socket", UNIT, check=False)
    machine.run("umount", STATE, check=False)
    machine.run("rm", "-rf", DROP_INS, SOCKET, STATE, "/var/lib/samplicator")
    machine.systemctl("daemon-reload")
    machine.systemctl("reset-failed", check=False)


def lines_about_state(appliance: Appliance) -> list[str]:
    """What the process that runs now has said about its state file."""
    pid = appliance.machine.pid(UNIT)
    said = appliance.machine.run("journalctl", "--no-pager", "-o", "cat", f"_PID={pid}").stdout
    return [line for line in said.splitlines() if "samplicator.state" in line]


@pytest.mark.parametrize("trouble", ["full", "read-only", "garbage", "foreign"])
def test_disk_that_is_no_use(running: Appliance, trouble: str) -> None:
    """One line when the file cannot be read, one when it cannot be written, and the datagrams go on."""
    machine = running.machine
    file = f"{STATE}/samplicator.state"
    owner = machine.run("stat", "-c", "%u:%g", STATE).stdout.strip()

    def spoil() -> None:
        machine.systemctl("stop", UNIT)
        if trouble in ("full", "read-only"):
            machine.run("mount", "-t", "tmpfs", "-o", "size=16k,mode=700", "tmpfs", STATE)
            machine.run("chown", owner, STATE)
        if trouble == "full":
            machine.run("sh", "-c", f"head -c 16384 /dev/zero >{STATE}/filler; chown {owner} {STATE}/filler")
        elif trouble == "read-only":
            machine.run("mount", "-o", "remount,ro", STATE)
        elif trouble == "garbage":
            machine.run("sh", "-c", f"head -c 5000 /dev/urandom >{file}; chown {owner} {file}; chmod 600 {file}")
        else:
            machine.run("sh", "-c", f"echo theirs >{file}; chown root:root {file}; chmod 600 {file}")
        machine.systemctl("start", UNIT)
        wait_ready(running.lab)

    spoil()
    outcome = running.during(lambda: machine.systemctl("restart", UNIT))
    assert outcome.whole, outcome
    lines = lines_about_state(running)
    for what in ("is ignored", "cannot be written"):
        assert sum(what in line for line in lines) <= 1, lines
    assert len(lines) <= 2, lines
    everything = machine.journal(UNIT)
    assert "samplicator.state" in everything
    assert "Traceback" not in everything
    if trouble == "foreign":
        assert machine.run("cat", file).stdout in ("theirs\n",), "somebody else's file was written over"


def test_restart_with_rings(running: Appliance) -> None:
    """The sockets take over while the process is away; nothing is lost, and nothing comes both ways."""
    text = configuration().replace("[[listener]]", '[[listener]]\nreceive = "ring"')
    running.configure(text)
    running.machine.systemctl("restart", UNIT)
    wait_ready(running.lab)
    outcome = running.during(lambda: running.machine.systemctl("restart", UNIT))
    assert outcome.whole, outcome


def test_socket_activation(running: Appliance) -> None:
    """The example, as its comments say: systemd owns the sockets, and a restart loses nothing."""
    machine = running.machine
    machine.systemctl("stop", UNIT)
    machine.run("rm", "-r", DROP_INS)  # no capability but CAP_NET_RAW: systemd makes the buffers
    text = machine.path("/usr/share/doc/samplicator-relay/examples/samplicator.socket").read_text()
    machine.write(SOCKET, text)
    machine.systemctl("daemon-reload")
    machine.systemctl("start", "samplicator.socket")
    machine.systemctl("start", UNIT)
    wait_ready(running.lab)
    assert metrics(running.lab).total("receive_buffer_bytes") >= 4 * (64 << 20)
    outcome = running.during(lambda: machine.systemctl("restart", UNIT))
    assert outcome.whole, outcome


def test_low_ports(running: Appliance) -> None:
    """Refused without the drop-in, and said how; with it the daemon listens on port 514."""
    machine = running.machine
    running.configure(configuration(ports=(2055, 514)))
    machine.run("cp", "/usr/share/doc/samplicator-relay/examples/drop-ins/low-ports.conf", f"{DROP_INS}/low-ports.conf")
    machine.systemctl("daemon-reload")
    machine.systemctl("restart", UNIT)
    wait_ready(running.lab)
    stream = Stream(running.lab, RATE // 4, port=514)
    outcome = stream.finish()
    assert outcome.whole, outcome


def test_web_config(running: Appliance) -> None:
    """A file that only root and a group may read: refused without the drop-in, with it there are users."""
    machine = running.machine
    file = "/etc/samplicator/web.yaml"
    machine.run("groupadd", "--system", "samplicator-web")
    try:
        machine.write(file, f"basic_auth_users:\n  prometheus: {HASH}\n")
        machine.run("chgrp", "samplicator-web", file)
        machine.run("chmod", "640", file)
        running.configure(configuration(more=f'web_config = "{file}"'))
        assert machine.run("systemctl", "reload", UNIT, check=False).returncode != 0
        assert f"{file} cannot be read: Permission denied" in machine.journal(UNIT)
        assert page(running.lab, "/metrics")[0] == 200
        shipped = "/usr/share/doc/samplicator-relay/examples/drop-ins/web-config.conf"
        machine.run("cp", shipped, f"{DROP_INS}/web-config.conf")
        machine.systemctl("daemon-reload")
        machine.systemctl("restart", UNIT)
        wait_for(lambda: page(running.lab, "/metrics")[0] == 401, "the relay to ask for a user", 30, 0.1)
        machine.systemctl("reload", UNIT)
        machine.run("samplicator", "ready", "--healthy")
    finally:
        machine.run("rm", file)
        machine.run("groupdel", "samplicator-web")


def test_packet_sockets(running: Appliance) -> None:
    """engine = "packet" needs its drop-in, which the error names, and works with it."""
    machine = running.machine
    machine.run("rm", f"{DROP_INS}/buffers.conf")
    machine.systemctl("daemon-reload")
    running.configure(configuration().replace("spoof = true", 'spoof = true\nengine = "packet"'))
    machine.run("systemctl", "restart", "--no-block", UNIT)
    wait_for(lambda: "packet.conf" in machine.journal(UNIT), "the error", 30, 0.2)
    machine.systemctl("stop", UNIT)
    machine.run("cp", "/usr/share/doc/samplicator-relay/examples/drop-ins/packet.conf", f"{DROP_INS}/packet.conf")
    machine.systemctl("daemon-reload")
    machine.systemctl("start", UNIT)
    wait_ready(running.lab)
    outcome = Stream(running.lab, RATE // 4).finish()
    assert outcome.whole, outcome


def test_instances(running: Appliance) -> None:
    """Two instances beside the relay, each with its own user, state, socket; a restart of one is its own."""
    machine = running.machine
    names = ("edge", "dc-2_core")
    try:
        for number, name in enumerate(names):
            own = f'control = "/run/samplicator-{name}/control.sock"'
            text = configuration(ports=(2070 + number,), more=own).replace(":9420", f":{9430 + number}")
            machine.write(f"/etc/samplicator/{name}.toml", text)
            machine.systemctl("enable", "--now", f"samplicator@{name}")
        users = {machine.run("ps", "-o", "uid=", "-p", str(machine.pid(unit))).stdout.strip() for unit in units(names)}
        assert len(users) == 3
        for number, name in enumerate(names):
            said = machine.run("samplicator", "status", "-c", f"/etc/samplicator/{name}.toml").stdout
            assert f"port {2070 + number}" in said
            machine.systemctl("reload", f"samplicator@{name}")
        pids = [machine.pid(unit) for unit in units(names)]
        running.install(running.package)  # the same again: a restart of all
        assert not {machine.pid(unit) for unit in units(names)} & {0, *pids}
        outcome = running.during(lambda: machine.systemctl("restart", f"samplicator@{names[0]}"))
        assert outcome.whole, outcome
    finally:
        for name in names:
            machine.systemctl("disable", "--now", f"samplicator@{name}", check=False)
            machine.run("rm", "-f", f"/etc/samplicator/{name}.toml")


def units(names: tuple[str, ...]) -> list[str]:
    return [UNIT, *(f"samplicator@{name}.service" for name in names)]


def test_configuration_that_is_refused(running: Appliance) -> None:
    """`systemctl reload` fails and changes nothing; a restart with it fails once and is not repeated."""
    machine = running.machine
    machine.run("sh", "-c", f"echo 'nonsense = 1' >>{CONFIG}")

    def reload() -> None:
        assert machine.run("systemctl", "reload", UNIT, check=False).returncode != 0

    outcome = running.during(reload)
    assert outcome.whole, outcome
    assert machine.run("systemctl", "restart", UNIT, check=False).returncode != 0
    wait_for(lambda: machine.shows(UNIT, "ActiveState") == "failed", "the unit to give up", 20, 0.1)
    assert re.search(rf"{re.escape(CONFIG)}:\d+: .*nonsense", machine.journal(UNIT))
    assert int(machine.shows(UNIT, "NRestarts")) == 0


def test_stop_and_start_with_kept_sockets(running: Appliance) -> None:
    """systemd 254 and later: what arrives between stop and start waits in the sockets."""
    machine = running.machine
    if int(machine.run("systemctl", "--version").stdout.split()[1]) < 254:
        pytest.skip("FileDescriptorStorePreserve= came with systemd 254")
    machine.run("cp", "/usr/share/doc/samplicator-relay/examples/drop-ins/keep-sockets.conf", f"{DROP_INS}/keep.conf")
    machine.systemctl("daemon-reload")
    machine.systemctl("restart", UNIT)
    wait_ready(running.lab)

    def pause() -> None:
        machine.systemctl("stop", UNIT)
        assert page(running.lab, "/readyz")[0] == 0
        machine.systemctl("start", UNIT)

    outcome = running.during(pause)
    assert outcome.whole, outcome
    with contextlib.suppress(AssertionError):
        machine.systemctl("clean", "--what=fdstore", UNIT)


def test_watchdog_of_the_package(running: Appliance) -> None:
    """With the times of the shipped unit: a process that hangs is replaced, at a rate that the buffers hold so long."""
    hung = running.machine.pid(UNIT)

    def hang() -> None:
        running.machine.run("kill", "-STOP", str(hung))
        wait_for(lambda: running.restarted(hung), "the watchdog to act", 60, 0.2)

    outcome = running.during(hang, rate=1000)
    in_hand = WORKERS * Datapath().batch  # systemd wakes the process so that it takes note of SIGABRT
    assert max(outcome.lost) <= in_hand, outcome
    assert not any((*outcome.repeated, *outcome.reordered, *outcome.other)), outcome


def test_drop_in_files_are_the_shipped_ones(appliance: Appliance) -> None:
    folder = appliance.machine.path("/usr/share/doc/samplicator-relay/examples/drop-ins")
    assert {path.name for path in folder.iterdir()} == {
        path.name for path in (DEPLOY / "systemd" / "drop-ins").glob("*.conf")
    }
