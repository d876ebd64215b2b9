"""A process that ends, in whatever way, and the next one, while 20,000 datagrams per second come: what waits in the
sockets is forwarded, once and in order; counters go on.

The service manager is tests/support/manager.py; tests/deploy has systemd itself.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence

import pytest
from support.freeze import frozen
from support.lab import Lab, run, void
from support.manager import Manager
from support.pace import Pace
from support.process import wait_for
from support.relay import Relay

RATE, EXPORTERS = 20_000, 16
KILLED = (0, -signal.SIGKILL, 128 + signal.SIGKILL)


def config(lab: Lab, *, listeners: Sequence[str] = ("0.0.0.0:2055",), workers: int = 2, more: str = "") -> str:
    listening = "".join(
        f'[[listener]]\nname = "in{number}"\nlisten = ["{place}"]\n' for number, place in enumerate(listeners)
    )
    return f"""
[datapath]
workers = {workers}
receive_buffer = "512MiB"
{listening}
[[receiver]]
name = "spoofed"
to = "{lab.peer4(2)}:9002"
spoof = true
[[receiver]]
name = "plain"
to = "{lab.peer4(1)}:9001"
[[rule]]
to = ["spoofed", "plain"]
{more}"""


class Traffic:
    """A load and what came of it. Copies that are not spoofed come from another port after a restart, so that only
    their number can be checked."""

    def __init__(self, lab: Lab, port: int = 2055) -> None:
        self.lab = lab
        self.sinks = [lab.sink(2, f"{lab.peer4(2)}:9002"), lab.sink(1, f"{lab.peer4(1)}:9001", join=True)]
        self.load = lab.load(
            "--to", f"{lab.relay4()}:{port}", "--source-base", "198.18.64.0", "--exporters", EXPORTERS,
            "--source-port", 50_000, "--seconds", 250, "--rate", RATE, "--size", "64-400", "--run", 1,
            "--catch-up-ms", 50,
        )  # fmt: skip
        self.pace: Pace | None = None

    def until(self, relay: Relay) -> None:
        """The load goes on at full rate whatever becomes of the process."""
        self.flows(relay)
        if self.pace is not None:
            self.pace.end()
            self.pace = None

    def flows(self, relay: Relay) -> None:
        """Until the process forwards; then the load is held back while the machine is too slow for the process."""
        self.pace = self.pace or Pace(self.load, [relay, *self.sinks])
        before = relay.metrics().total("send_datagrams_total")
        wait_for(lambda: relay.metrics().total("send_datagrams_total") > before + RATE // 10, "datagrams to flow", 30)

    def end(self, relay: Relay, *, lost: int = 0, ordered: bool = True) -> None:
        if self.pace is not None:
            self.pace.end()
        self.load.send_signal(signal.SIGINT)
        sent = self.load.result(20)["sent"]
        relay.at_rest()
        spoofed, plain = (self.lab.tally(sink) for sink in self.sinks)
        wrong = {name: spoofed[name] for name in ("repeated", "corrupt", "sink_drops", "reordered")}
        wrong["reordered"] *= ordered
        assert wrong == dict.fromkeys(wrong, 0)
        assert sent - lost <= spoofed["received"] <= sent, (sent, spoofed)
        assert sent - lost <= plain["received"] <= sent, (sent, plain)


def stop(relay: Relay) -> None:
    assert relay.end() == 0, relay.tail()


def kill(relay: Relay) -> None:
    relay.expected = KILLED
    relay.kill()


def test_restarts_lose_nothing(lab: Lab) -> None:
    """Each with another number of workers. Counters go on, with what the first process had counted."""
    manager = Manager(lab)
    state = f'[service]\nhttp = "127.0.0.1:9420"\ncontrol = ""\nstate_file = "{lab.directory}/state"\n'
    relay = manager.start(state + config(lab))
    traffic = Traffic(lab)
    for workers in (1, 4, 2):
        traffic.until(relay)
        before = relay.metrics()
        stop(relay)
        relay = manager.start(state + config(lab, workers=workers))
        now = relay.metrics()
        for name in ("receive_datagrams_total", "send_datagrams_total"):
            assert now.total(name) >= before.total(name)
    traffic.until(relay)
    traffic.load.send_signal(signal.SIGSTOP)
    rest = relay.at_rest()
    assert rest.total("receive_kernel_drops_total") == 0
    received = rest.total("receive_datagrams_total")
    traffic.load.send_signal(signal.SIGCONT)
    traffic.end(relay)
    assert relay.metrics().total("receive_datagrams_total") >= received
    assert not [text for text in relay.stderr().splitlines() if "is ignored" in text]


def test_what_a_killed_process_had_not_read_is_forwarded(lab: Lab) -> None:
    """The batch in its hands at that moment is lost, if there is one: for each worker at most what one call reads."""
    manager = Manager(lab)
    batch = 64
    text = config(lab).replace("[datapath]", f"[datapath]\nbatch = {batch}")
    relay = manager.start(text)
    traffic = Traffic(lab)
    kills = 3
    for _ in range(kills):
        traffic.until(relay)
        kill(relay)
        relay = manager.start(text)
        assert relay.metrics().total("receive_kernel_drops_total") == 0
    traffic.flows(relay)
    traffic.end(relay, lost=kills * 2 * batch)
    assert relay.metrics().total("receive_kernel_drops_total") == 0


@pytest.mark.deploy_heavy
def test_listeners_change_over_a_restart(lab: Lab) -> None:
    """A name, an address that is written in another way, listeners more and fewer: sockets are stored and removed with
    them, and the traffic loses nothing.
    """
    manager = Manager(lab)
    relay = manager.start(config(lab))
    assert manager.names == ["udp4-0.0.0.0-2055#0", "udp4-0.0.0.0-2055#1"]
    traffic = Traffic(lab)
    for places in ([f"{lab.relay4()}:2055", "[::]:6343"], ["0.0.0.0:2056", "0.0.0.0:2055"], ["[::]:2055"]):
        traffic.until(relay)
        stop(relay)
        relay = manager.start(config(lab, listeners=places))
        assert len(manager.names) == len(set(manager.names)) == 2 * len(places)
    assert manager.names == ["udp6-__-2055#0", "udp6-__-2055#1"]
    traffic.flows(relay)
    traffic.end(relay)


@pytest.mark.deploy_heavy
def test_listeners_change_by_reload(lab: Lab) -> None:
    """The same without a restart, and the number of workers; systemd holds the sockets of the last configuration."""
    manager = Manager(lab)
    relay = manager.start(config(lab))
    service = f'[service]\nhttp = "127.0.0.1:9420"\ncontrol = "{lab.directory}/{relay.label}.sock"\n'
    traffic = Traffic(lab)
    first = config(lab)
    for text in (
        first.replace("in0", "netflow"),
        config(lab, listeners=[f"{lab.relay4()}:2055"]),
        config(lab, listeners=["[::]:2055", "0.0.0.0:514"], workers=4),
        config(lab, listeners=["0.0.0.0:2055"], workers=1),
        first,
    ):
        traffic.flows(relay)
        relay.hangup(service + text, timeout=40)
    wait_for(lambda: set(manager.names) == {"udp4-0.0.0.0-2055#0", "udp4-0.0.0.0-2055#1"}, "the store to follow")
    traffic.until(relay)
    stop(relay)
    relay = manager.start(first)
    traffic.flows(relay)
    traffic.end(relay)


@pytest.mark.deploy_heavy
def test_a_store_that_is_too_small(lab: Lab) -> None:
    """One line says so; what is in the sockets that go is forwarded before, and new datagrams go to the others. Their
    order is lost: with another number of sockets the kernel gives datagrams of an exporter to another one.
    """
    manager = Manager(lab, limit=2)
    relay = manager.start(config(lab, workers=3))
    assert relay.stderr().count("FileDescriptorStoreMax=3") == 1
    assert len(manager.names) == 2
    traffic = Traffic(lab)
    traffic.until(relay)
    stop(relay)
    relay = manager.start(config(lab, workers=3))
    traffic.flows(relay)
    traffic.end(relay, ordered=False)


@pytest.mark.deploy_heavy
def test_a_manager_that_does_not_say_what_it_holds(lab: Lab) -> None:
    """systemd 252: at its first end the process cannot know whether its sockets live on, so it reads them out, and does
    not refuse what comes.
    """
    manager = Manager(lab, old=True)
    relay = manager.start(config(lab))
    traffic = Traffic(lab)
    for _ in range(2):
        traffic.until(relay)
        stop(relay)
        relay = manager.start(config(lab))
    traffic.flows(relay)
    traffic.end(relay)


def test_a_worker_that_hangs_is_not_reported_as_well(lab: Lab) -> None:
    """The watchdog is fed while all workers run, and not while one of two does not."""
    manager = Manager(lab)
    relay = manager.start(config(lab), env={"WATCHDOG_USEC": "1500000"})

    def fed() -> int:
        return sum("WATCHDOG" in fields for fields in list(manager.said))

    wait_for(lambda: fed() >= 2, "the watchdog to be fed")
    with frozen(relay.pid, "sampl-worker-1"):
        wait_for(lambda: relay.said("stops feeding the watchdog"), "the hang to be seen", 20)
        before = fed()
        assert relay.get("/healthz")[0] == 503
        wait_for(lambda: relay.stderr().count("stops feeding the watchdog") >= 3, "it to be seen again")
        assert fed() == before
    wait_for(lambda: fed() > before, "the watchdog to be fed again")


@pytest.mark.parametrize("trouble", ["full", "read-only", "foreign", "damaged"])
def test_a_state_file_that_is_no_use_hinders_nothing(lab: Lab, trouble: str) -> None:
    """One line at the start or at the end, a state that is shown, and nothing else."""
    folder = lab.directory / "var"
    folder.mkdir()
    path = folder / "state"
    options = {"full": "size=4k", "read-only": "ro"}.get(trouble)
    if options is not None:
        run("mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder))
        lab.closers.append(lambda: void(run("umount", str(folder))))
    if trouble == "full":
        (folder / "other").write_bytes(bytes(4096))
    if trouble in ("foreign", "damaged"):
        path.write_bytes(b"precious" if trouble == "foreign" else b"samplicator state 1 final   0000000000000010 00\n")
    service = f'[service]\nhttp = "127.0.0.1:9420"\ncontrol = ""\nstate_file = "{path}"\n'
    relay = lab.samplicator(service + config(lab, workers=1))
    assert relay.get("/readyz")[0] == 200
    assert relay.api("status")["state_file"]["path"] == str(path)
    stop(relay)
    lines = [line for line in relay.stderr().splitlines() if "state file" in line]
    expected = {
        "full": ["cannot be written: No space left on device"],
        "read-only": ["cannot be written: Read-only file system"],
        "foreign": ["is ignored", "cannot be written: the file is not a state file of samplicator"],
        "damaged": ["is ignored"],
    }[trouble]
    assert len(lines) == len(expected), lines
    for line, part in zip(lines, expected, strict=True):
        assert part in line
    assert path.exists() == (options is None)
    if trouble == "foreign":
        assert path.read_bytes() == b"precious"
