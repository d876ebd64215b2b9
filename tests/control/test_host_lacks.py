"""The supervisor on a host that lacks something: what is refused leaves no trace, what is waited for is taken when it
is there, and what cannot be looked at stops no looking; and the end, under load.
"""

from __future__ import annotations

import errno
import gc
import socket
import threading
import time
from dataclasses import replace

import pytest
from samplicator.health.receiver import ReceiverState
from samplicator.host import abilities, listening, sockets
from samplicator.host.neighbors import Answering, Neighbors, Sight
from samplicator.plan.planner import compile
from samplicator.plan.spec import SocketSpec
from samplicator.supervisor import supervisor as supervisor_module
from samplicator.supervisor.refusal import BuildError
from samplicator.supervisor.supervisor import Supervisor
from support.hosts import Load, free_port
from support.numbered import CAPABILITIES, Collector, Exporters, descriptors, spec, text, until
from support.process import wait_for


def kept(supervisor: Supervisor) -> list[tuple[int, ...]]:
    """(TTL, TOS, SO_REUSEPORT, receive buffer) of each socket that listens.

    Not the timestamps: a worker that takes large batches switches them off and on itself.
    """
    options = (
        (socket.IPPROTO_IP, listening.IP_RECVTTL),
        (socket.IPPROTO_IP, listening.IP_RECVTOS),
        (socket.SOL_SOCKET, socket.SO_REUSEPORT),
        (socket.SOL_SOCKET, socket.SO_RCVBUF),
    )
    socks = [intake.sock for state in supervisor._running.listeners.values() for intake in state.sockets()]
    return [tuple(sock.getsockopt(*option) for option in options) for sock in socks]


def test_a_refused_change_leaves_the_sockets_as_they_are(
    load: Load, supervisor: Supervisor, collector: Collector
) -> None:
    port = free_port()
    keeps = 'ttl = "keep"\ntos = "keep"'
    supervisor.apply(spec(load, port, collector.port, receiver=keeps))
    before = kept(supervisor)
    assert before[0][:3] == (1, 1, 0)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        listener = f'[[listener]]\nname = "two"\nlisten = ["127.0.0.1:{other.getsockname()[1]}"]\n'
        for receiver in ("", keeps):
            with pytest.raises(BuildError):
                supervisor.apply(spec(load, port, collector.port, workers=3, listener=listener, receiver=receiver))
            assert kept(supervisor) == before
    supervisor.apply(spec(load, port, collector.port, receiver='ttl = "keep"'))
    assert kept(supervisor)[0][:2] == (1, 0)
    supervisor.apply(spec(load, port, collector.port, workers=2))
    assert [each[:3] for each in kept(supervisor)] == [(0, 0, 1)] * 2
    supervisor.apply(spec(load, port, collector.port, workers=2, receiver=keeps))
    assert [each[:2] for each in kept(supervisor)] == [(1, 1)] * 2


def test_a_port_that_becomes_free_is_listened_at(load: Load, supervisor: Supervisor, collector: Collector) -> None:
    """Whatever other sockets of ours are on that port, and without a datagram lost for the trials."""
    port = free_port()
    other = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    other.bind(("127.0.0.2", port))
    config = text(port, collector.port).replace('"]\n', f'", "127.0.0.2:{port}"]\n', 1)
    supervisor.apply(compile(load(config), {}, CAPABILITIES))
    before = kept(supervisor)
    (reading,) = supervisor.view.readings().listeners
    assert (reading.up, reading.state, reading.sockets) == (False, "partly down", (("127.0.0.1", port),))
    assert f"another program uses port {port}" in reading.state_why
    assert supervisor.view.missing() == (f"listener 'in' is partly down: {reading.state_why}",)
    exporters = Exporters(3, port)
    for _ in range(5):
        assert supervisor.can_open() == ()
        exporters.send(10)
    assert kept(supervisor) == before
    assert len(collector.take()) == exporters.sent
    other.close()
    assert supervisor.can_open() == ("in",)
    supervisor.apply(replace(compile(load(config), {}, CAPABILITIES), follows_host=True))
    (reading,) = supervisor.view.readings().listeners
    assert (reading.up, reading.state_why, len(reading.sockets)) == (True, "", 2)
    assert supervisor.view.missing() == supervisor.can_open() == ()


def test_many_ports_that_are_taken_hide_none_that_is_free(
    load: Load, supervisor: Supervisor, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few sockets of a listener are tried at a time: they take turns."""
    monkeypatch.setattr(supervisor_module, "RETRIES", 2)
    port = free_port()
    others = {last: socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for last in range(2, 9)}
    for last, other in others.items():
        other.bind((f"127.0.0.{last}", port))
    places = "".join(f', "127.0.0.{last}:{port}"' for last in others)
    supervisor.apply(compile(load(text(port, collector.port).replace('"]', f'"{places}]', 1)), {}, CAPABILITIES))
    assert supervisor.can_open() == ()
    others[8].close()
    assert any(supervisor.can_open() == ("in",) for _ in range(4))
    for other in others.values():
        other.close()


def test_a_low_port_without_the_right_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    low = SocketSpec(0, "0.0.0.0", 514, 4, False, "", ())
    why = listening.why_not_listening(low, PermissionError(errno.EACCES, "Permission denied"))
    assert "CAP_NET_BIND_SERVICE" in why
    assert "low-ports.conf" in why
    monkeypatch.setattr(listening, "sysctl", lambda name, unknown=0: 100)
    assert listening.why_not_listening(low, PermissionError(errno.EACCES, "Permission denied")) == "Permission denied"


def test_no_free_descriptor_stops_no_looking(
    load: Load, supervisor: Supervisor, collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    """EMFILE: one receiver that cannot be looked at must not keep the others from being looked at, then or later."""
    port = free_port()
    more = '[[receiver]]\nname = "two"\nto = "127.0.0.1:9"\n[[rule]]\nto = ["two"]\n'
    supervisor.apply(spec(load, port, collector.port, more=more))
    looked: list[str] = []
    states = list(supervisor._running.receivers.values())
    original = type(states[0]).look

    def look(state: ReceiverState, now: float) -> bool:
        looked.append(state.spec.name)
        return original(state, now)

    def full(address: bytes, port: int, scope_id: int = 0) -> sockets.PathProbe:
        raise OSError(errno.EMFILE, "Too many open files")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(states[0]), "look", look)
        patch.setattr(sockets, "probe_path", full)
        patch.setattr(abilities, "is_local", full)
        for _ in range(3):
            assert supervisor.housekeeping() == ()
            supervisor.watch_neighbors()
            supervisor.look()
    assert looked.count("two") == looked.count("one") >= 3
    assert [r.message for r in caplog.records if "cannot be read now" in r.message] == [
        "the state of receiver 'one' cannot be read now: [Errno 24] Too many open files",
        "the state of receiver 'two' cannot be read now: [Errno 24] Too many open files",
    ]
    assert all(state.up for state in states)
    assert supervisor.housekeeping() == ()


def test_stop_under_load_leaves_nothing(load: Load, collector: Collector, caplog: pytest.LogCaptureFixture) -> None:
    """What comes while the queues are emptied is refused, not queued behind the last look."""
    for _ in range(3):
        port = free_port()
        supervisor = Supervisor()
        supervisor.apply(spec(load, port, collector.port, workers=2))
        running = threading.Event()
        running.set()

        def flood(where: int = port, go: threading.Event = running) -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.bind(("127.0.0.1", 0))
                while go.is_set():
                    sock.sendto(bytes(1000), ("127.0.0.1", where))

        threads = [threading.Thread(target=flood, daemon=True) for _ in range(2)]
        for thread in threads:
            thread.start()
        until(supervisor, 2000)
        begun = time.monotonic()
        supervisor.drain_and_stop(20.0)
        assert time.monotonic() - begun < 15
        running.clear()
        for thread in threads:
            thread.join(5)
    assert [r.message for r in caplog.records if "were not forwarded" in r.message] == []


def test_what_is_left_is_told_with_the_time_it_took(
    load: Load, collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker that is held up (by pauses) leaves something; the time is the one it took."""
    supervisor = Supervisor()
    port = free_port()
    supervisor.apply(replace(spec(load, port, collector.port, receiver="pause_us = 300000"), batch=1))
    Exporters(1, port).send(50)
    supervisor.drain_and_stop(0.5)
    (line,) = [r for r in caplog.records if "were not forwarded" in r.message]
    assert 0.3 < float(line.args[1]) < 10  # type: ignore[index,arg-type]
    assert "(drain_timeout: 0.5 s)" in line.message


def test_a_source_port_that_another_program_has(load: Load, supervisor: Supervisor, collector: Collector) -> None:
    """At start the rest runs, and the receiver when the port is free; a reload that asks for it is refused."""
    port = free_port()
    other = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    other.bind(("127.0.0.1", 0))
    taken = other.getsockname()[1]
    more = f"""
[[receiver]]
name = "two"
to = "127.0.0.1:{collector.port}"
source = "127.0.0.1:{taken}"
[[rule]]
to = ["two"]
"""
    supervisor.apply(spec(load, port, collector.port, more=more))
    exporters = Exporters(1, port)
    opened = descriptors()
    assert supervisor.view.missing() == (
        f"receiver 'two' is unreachable: another program uses the source port {taken}",
    )
    exporters.send(5)
    until(supervisor, 5)
    assert len(collector.take()) == 5
    assert supervisor.can_open() == ()
    assert descriptors() == opened
    (_, two) = supervisor.view.readings().receivers
    assert (two.up, two.counters["offered"], two.counters["failed_no_route"]) == (False, 5, 5)
    other.close()
    assert supervisor.can_open() == ("two",)
    supervisor.apply(replace(spec(load, port, collector.port, more=more), follows_host=True))
    assert supervisor.view.missing() == ()
    exporters.send(5)
    assert len(collector.take()) == 10
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as another:
        another.bind(("127.0.0.1", 0))
        moved = more.replace(str(taken), str(another.getsockname()[1]))
        with pytest.raises(BuildError, match="receiver 'two'"):
            supervisor.apply(spec(load, port, collector.port, more=moved))


def test_who_could_not_be_sent_to_is_told_the_templates(
    load: Load, supervisor: Supervisor, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where nothing but the missing own address has changed."""
    replayed: list[str] = []
    monkeypatch.setattr(ReceiverState, "replay", lambda state: replayed.append(state.spec.name))
    port = free_port()
    config = load(text(port, collector.port, receiver='source = "127.0.0.9"\nengine = "udp"'))
    supervisor.apply(compile(config, {}, replace(CAPABILITIES, is_local=lambda address: False)))
    assert not supervisor.view.readings().receivers[0].up
    assert supervisor.view.missing() == (
        "receiver 'one' is unreachable: the source 127.0.0.9 is not an address of this host now",
    )
    replayed.clear()
    supervisor.apply(replace(compile(config, {}, CAPABILITIES), follows_host=True))
    assert replayed == ["one"]
    assert supervisor.view.readings().receivers[0].up


def test_a_name_without_an_address_is_no_loop(load: Load, supervisor: Supervisor) -> None:
    """Its port is a listener's, and the address of a receiver that has none yet is all zeros."""
    port = free_port()
    more = f"""
[[receiver]]
name = "named"
to = "nowhere.invalid:{port}"
[[rule]]
to = ["named"]
"""
    supervisor.apply(spec(load, port, free_port(), more=more))
    Exporters(1, port).send(5)
    until(supervisor, 5)
    supervisor.look()
    counters = supervisor.view.readings().receivers[1].counters
    assert (counters["failed_no_route"], counters["failed_loop"]) == (5, 0)


def test_after_the_end_nothing_is_opened(load: Load, collector: Collector) -> None:
    """A reload may be under way when the service is told to stop."""
    supervisor = Supervisor()
    supervisor.apply(spec(load, free_port(), collector.port))
    supervisor.drain_and_stop(0.1)
    gc.collect()  # what tests before this one left
    threads, opened = threading.active_count(), descriptors()
    with pytest.raises(BuildError, match="is stopping"):
        supervisor.apply(spec(load, free_port(), collector.port))
    assert (threading.active_count(), descriptors()) == (threads, opened)


def test_what_is_held_back_is_lost_with_the_way(load: Load, supervisor: Supervisor, collector: Collector) -> None:
    """Of a next hop that was being asked for when the receiver's own address went."""
    port = free_port()
    config = load(text(port, collector.port, receiver='source = "127.0.0.9"\nengine = "udp"'))
    supervisor.apply(compile(config, {}, CAPABILITIES))
    exporters = Exporters(1, port)
    exporters.send(5)
    until(supervisor, 5)
    account = supervisor._running.receivers["one"].standing.account
    supervisor.view.readings()
    account.sight, account.held = Sight((1, b"hop."), Answering.ASKED), 3
    supervisor.apply(replace(compile(config, {}, replace(CAPABILITIES, is_local=lambda _: False)), follows_host=True))
    counters = supervisor.view.readings().receivers[0].counters
    assert (counters["offered"], counters["sent"], counters["failed_no_neighbor"]) == (5, 2, 3)


def test_what_a_worker_found_outlives_an_event_of_this_host(
    load: Load, supervisor: Supervisor, collector: Collector
) -> None:
    """A worker marks a receiver whose copies come back; addresses change before the next look."""
    config = spec(load, free_port(), collector.port, workers=2)
    supervisor.apply(config)
    (state,) = supervisor._running.receivers.values()
    state.ways[1].tx.looped = True  # as the echo stage does
    supervisor.follow_host()
    (reading,) = supervisor.view.readings().receivers
    assert (reading.state, reading.up) == ("looping", False)
    assert all(way.looped for way in state.ways)
    supervisor.apply(config)  # a plan that changes nothing, too
    assert all(way.looped for way in state.ways)
    state.set_own("it is this host")
    state.standing.echo_until = 0.0
    state.set_own("")
    assert not any(way.looped for way in state.ways)


def test_nobody_looks_at_receivers_that_nothing_happens_to(
    load: Load, supervisor: Supervisor, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten looks a second at hundreds of idle receivers cost more than the relaying; copies that leave end the peace."""
    port = free_port()
    more = "".join(f'[[receiver]]\nname = "r{n}"\nto = "127.0.0.1:{collector.port}"\n' for n in range(19))
    supervisor.apply(spec(load, port, collector.port, workers=2, more=more))
    looked: list[str] = []
    dumps: list[int] = []
    original, table = ReceiverState.look, Neighbors.look

    def look(state: ReceiverState, now: float) -> bool:
        looked.append(state.spec.name)
        return original(state, now)

    def counted(neighbors: Neighbors, receivers: dict[str, tuple[bytes, int]]) -> set[str]:
        dumps.append(len(receivers))
        return table(neighbors, receivers)

    monkeypatch.setattr(ReceiverState, "look", look)
    monkeypatch.setattr(Neighbors, "look", counted)

    def rest() -> None:
        """The workers have slept for a while, and both have had a look since."""
        for _ in range(50):
            time.sleep(0.02)
            looked.clear()
            dumps.clear()
            supervisor.look(sparing=True)
            supervisor.watch_neighbors(sparing=True)
            if len(looked) <= 2 and not dumps:
                return
        raise AssertionError("the workers do not rest")

    rest()
    looked.clear()
    for _ in range(10):
        supervisor.look(sparing=True)
    assert {name: looked.count(name) for name in looked}.keys() == {"one", *(f"r{n}" for n in range(19))}
    assert len(looked) <= 20 + 20  # a worker that beats, once a second, may stir all of them once
    exporters = Exporters(1, port)
    exporters.send(5)
    until(supervisor, 5)
    looked.clear()
    supervisor.look(sparing=True)
    supervisor.watch_neighbors(sparing=True)
    assert len(looked) == 20
    assert dumps == [20]
    (one, *_) = supervisor._running.receivers.values()
    one.ways[0].tx.looped = True
    exporters.send(1)
    until(supervisor, 6)
    supervisor.look(sparing=True)
    assert not one.up
    assert not one.calm


def refused(*args: object) -> socket.socket:
    """What the kernel says to a process without CAP_NET_RAW."""
    raise PermissionError(errno.EPERM, "Operation not permitted")


@pytest.mark.parametrize(
    "receiver", ["spoof = true", 'spoof = true\nengine = "packet"', 'engine = "raw"', "mtu = 1400"]
)
def test_without_net_raw_the_other_receivers_run(
    load: Load, supervisor: Supervisor, collector: Collector, monkeypatch: pytest.MonkeyPatch, receiver: str
) -> None:
    monkeypatch.setattr(sockets, "open_raw", refused)
    port = free_port()
    more = f'[[receiver]]\nname = "two"\nto = "127.0.0.1:9"\n{receiver}\n[[rule]]\nto = ["two"]\n'
    supervisor.apply(spec(load, port, collector.port, more=more))
    exporters = Exporters(1, port)
    exporters.send(20)
    assert len(collector.take()) == 20
    wait_for(lambda: supervisor.view.readings().receivers[1].counters["offered"] == 20, "the last of the batch")
    reading = supervisor.view.readings().receivers[1]
    assert reading.counters["failed_no_route"] == 20
    assert reading.state == "unreachable"
    assert reading.state_why == "this process lacks CAP_NET_RAW, which a raw socket needs"
    assert any("CAP_NET_RAW" in line for line in supervisor.view.missing())
    assert supervisor.can_open() == ()
    # what has nothing to do with it can be changed, and the right is taken when it is there
    supervisor.apply(spec(load, port, collector.port, receiver="tos = 8", more=more))
    monkeypatch.undo()
    assert supervisor.can_open() == ("two",)


def test_a_reload_gives_no_receiver_up_for_a_right_that_is_missing(
    load: Load, supervisor: Supervisor, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "open_raw", refused)
    port = free_port()
    supervisor.apply(spec(load, port, collector.port))
    with pytest.raises(BuildError, match="needs CAP_NET_RAW; run as root, or grant it"):
        supervisor.apply(spec(load, port, collector.port, receiver="spoof = true"))
    Exporters(1, port).send(20)
    assert len(collector.take()) == 20
