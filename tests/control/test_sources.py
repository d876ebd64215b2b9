"""Sockets of listeners that were open before the process ran: what they hold is forwarded, in order, whatever the new
configuration makes of them; those that serve no listener are closed.
"""

from __future__ import annotations

import ctypes
import re
import select
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from samplicator.host import listening
from samplicator.host.bound import Bound, bound_by, bound_of, worker_of
from samplicator.host.sources import HandedIn
from samplicator.plan.planner import compile
from samplicator.plan.spec import PlanSpec, SocketSpec
from samplicator.supervisor.supervisor import Supervisor
from support.hosts import Load, free_port
from support.numbered import CAPABILITIES, Collector, Exporters, in_order, spec, text, until
from support.process import wait_for

CLONE_NEWNET = 0x40000000
HELD = 200
"""Datagrams of each exporter that wait when the process starts."""
Sockets = list[tuple[str, socket.socket]]


def opened(plan: PlanSpec) -> Sockets:
    """What the process before had: sockets for each worker, on the same port."""
    found: Sockets = []
    for listener in plan.listeners:
        for key in listener.sockets:
            group: list[socket.socket] = []
            for _ in range(plan.workers):
                group.append(
                    listening.open_listener(key, receive_buffer=4 << 20, ttl=False, tos=False, beside=list(group))
                )
            found += [(bound_by(key).label(number), sock) for number, sock in enumerate(group)]
    return found


Start = Callable[[PlanSpec, Sockets], Supervisor]


@pytest.fixture
def start() -> Iterator[Start]:
    made: list[Supervisor] = []

    def begin(plan: PlanSpec, given: Sockets) -> Supervisor:
        made.append(Supervisor(source=HandedIn(given)))
        made[-1].apply(plan)
        return made[-1]

    yield begin
    for supervisor in made:
        supervisor.drain_and_stop(0.5)


def all_came(supervisor: Supervisor, exporters: Exporters, collector: Collector) -> list[int]:
    def done() -> bool:
        readings = supervisor.view.readings()
        return readings.listeners[0].counters["datagrams"] >= exporters.sent <= readings.receivers[0].counters["sent"]

    wait_for(done, "all to be forwarded")
    got = collector.take()
    assert len(got) == len(set(got)) == exporters.sent
    assert in_order(got)
    return got


@pytest.mark.parametrize(("before", "after"), [(1, 1), (2, 2), (4, 1), (3, 2), (1, 3), (2, 5)])
def test_what_came_before_the_start_is_forwarded(
    load: Load, start: Start, collector: Collector, before: int, after: int
) -> None:
    port = free_port()
    exporters = Exporters(8, port)
    given = opened(spec(load, port, collector.port, workers=before))
    numbers = {sock.fileno() for _, sock in given}
    exporters.send(HELD)
    plan = spec(load, port, collector.port, workers=after)
    supervisor = start(plan, given)
    exporters.send(HELD)
    if after > before:  # when the old ones are read out
        assert supervisor.can_open() == ()  # none was down
        wait_for(lambda: supervisor.caught_up() == ("in",), "sockets for all workers")
        supervisor.apply(plan)
        exporters.send(HELD)
    assert supervisor.can_open() == supervisor.caught_up() == ()
    all_came(supervisor, exporters, collector)
    assert all(sock.fileno() in numbers for _, sock in given)  # none was closed
    labels = [label for label, _ in supervisor.sockets()]
    assert len(labels) == len(set(labels)) == max(before, after)
    assert {label for label, _ in given} <= set(labels)


def test_sockets_of_a_listener_that_is_gone_are_closed(load: Load, start: Start, collector: Collector) -> None:
    port, gone_port = free_port(), free_port()
    other = f'[[listener]]\nname = "x"\nlisten = ["127.0.0.1:{gone_port}"]\n'
    two = text(port, collector.port).replace("[[receiver]]", f"{other}[[receiver]]")
    given = opened(compile(load(two), {}, CAPABILITIES))
    Exporters(1, gone_port).send(5)
    exporters = Exporters(2, port)
    exporters.send(5)
    supervisor = start(spec(load, port, collector.port), given)
    all_came(supervisor, exporters, collector)
    assert [sock.fileno() < 0 for _, sock in given] == [False, True]
    again = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    again.bind(("127.0.0.1", gone_port))
    again.close()


def test_the_name_of_a_listener_and_of_a_socket_do_not_matter(load: Load, start: Start, collector: Collector) -> None:
    """Socket units name their sockets as they like, and operators rename listeners."""
    port = free_port()
    exporters = Exporters(2, port)
    given = [("samplicator.socket", sock) for _, sock in opened(spec(load, port, collector.port))]
    exporters.send(HELD)
    renamed = text(port, collector.port).replace('name = "in"', 'name = "netflow"')
    supervisor = start(compile(load(renamed), {}, CAPABILITIES), given)
    exporters.send(HELD)
    all_came(supervisor, exporters, collector)
    assert given[0][1].fileno() >= 0


@pytest.mark.parametrize(("was", "becomes"), [("0.0.0.0", "127.0.0.1"), ("127.0.0.1", "0.0.0.0"), ("[::]", "0.0.0.0")])
@pytest.mark.parametrize("workers", [1, 2])
def test_an_address_that_is_written_in_another_way(
    load: Load, start: Start, collector: Collector, was: str, becomes: str, workers: int
) -> None:
    """The old socket takes nothing more, is read out, and is closed; the new one is read after that."""
    port = free_port()
    exporters = Exporters(4, port)

    def plan(address: str) -> PlanSpec:
        wanted = text(port, collector.port, workers=workers).replace(f"127.0.0.1:{port}", f"{address}:{port}")
        return compile(load(wanted), {}, CAPABILITIES)

    given = opened(plan(was))
    exporters.send(HELD)
    supervisor = start(plan(becomes), given)
    exporters.send(HELD)
    all_came(supervisor, exporters, collector)
    assert all(sock.fileno() < 0 for _, sock in given)


def test_strange_sockets_are_closed_and_the_rest_goes_on(
    load: Load, start: Start, collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    strange = [
        ("stream", socket.socket(socket.AF_INET, socket.SOCK_STREAM)),
        ("local", socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)),
        ("unbound", socket.socket(socket.AF_INET, socket.SOCK_DGRAM)),
    ]
    supervisor = start(spec(load, port, collector.port), [*strange, *opened(spec(load, port, collector.port))])
    exporters = Exporters(2, port)
    exporters.send(5)
    all_came(supervisor, exporters, collector)
    assert [sock.fileno() for _, sock in strange] == [-1] * 3
    said = [record.getMessage() for record in caplog.records if "handed in" in record.getMessage()]
    assert len(said) == 3


def test_drops_are_not_counted_twice(load: Load, start: Start, collector: Collector) -> None:
    """What the kernel dropped at a socket before this process had it, the process before has counted."""
    port = free_port()
    given = opened(spec(load, port, collector.port))
    given[0][1].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    exporters = Exporters(1, port)
    exporters.send(100)
    supervisor = start(spec(load, port, collector.port), given)
    until(supervisor, 1)
    reading = supervisor.view.readings().listeners[0]
    assert reading.kernel_drops == 0
    assert 0 < reading.counters["datagrams"] < 100


def test_drops_while_nobody_reads_are_counted(load: Load, start: Start, collector: Collector) -> None:
    """By the process that has the socket next."""
    port = free_port()
    plan = compile(load(text(port, collector.port).replace("4MiB", "4KiB")), {}, CAPABILITIES)
    old = start(plan, [])
    exporters = Exporters(1, port)
    exporters.send(1)
    wait_for(lambda: old.view.received() == 1, "the first")
    old.pause()
    exporters.send(100)
    handed, state = [(label, sock.dup()) for label, sock in old.sockets()], old.final_state()
    exporters.send(100)
    old.leave()
    new = Supervisor(source=HandedIn(handed), state=state)
    new.apply(plan)

    def all_counted() -> bool:
        reading = new.view.readings().listeners[0]
        return reading.counters["datagrams"] + reading.kernel_drops == exporters.sent and reading.kernel_drops > 0

    wait_for(all_counted, "every datagram to be accounted for")
    new.drain_and_stop(0.5)


def test_a_larger_buffer_stays(load: Load, start: Start, collector: Collector) -> None:
    """Whoever opened the socket (PID 1) could have it larger than this process can."""
    port = free_port()
    given = opened(spec(load, port, collector.port))
    size = given[0][1].getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    wanted = text(port, collector.port).replace("4MiB", "64KiB")
    start(compile(load(wanted), {}, CAPABILITIES), given)
    assert given[0][1].getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == size


def test_groups_that_are_not_named_any_more_are_left(load: Load, start: Start, collector: Collector) -> None:
    port = free_port()
    given = opened(spec(load, port, collector.port))
    sock = given[0][1]
    index = socket.if_nametoindex("lo")
    for group in ("239.255.9.1", "239.255.9.2"):
        sock.setsockopt(
            socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton(group) + struct.pack("@4xi", index)
        )
    joined = {group for group, _ in listening.joined_groups(4)}
    assert {"239.255.9.1", "239.255.9.2"} <= joined
    start(spec(load, port, collector.port), given)
    left = {group for group, _ in listening.joined_groups(4)}
    assert joined - left == {"239.255.9.1", "239.255.9.2"}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_pause_keeps_everything_in_the_sockets(load: Load, start: Start, collector: Collector, workers: int) -> None:
    port = free_port()
    supervisor = start(spec(load, port, collector.port, workers=workers), [])
    exporters = Exporters(4, port)
    exporters.send(HELD)
    until(supervisor, exporters.sent)
    for _ in range(3):
        supervisor.pause()
        exporters.send(HELD)
        reading = supervisor.view.readings().listeners[0]
        assert reading.queue_bytes > 0
        assert reading.counters["datagrams"] == exporters.sent - 4 * HELD
        with pytest.raises(OSError, match="stopping"):
            supervisor.apply(spec(load, port, collector.port))
        supervisor.resume()
        until(supervisor, exporters.sent)
    all_came(supervisor, exporters, collector)


@pytest.mark.parametrize(("before", "after"), [(1, 1), (3, 1), (1, 2)])
def test_one_supervisor_hands_over_to_the_next(
    load: Load, start: Start, collector: Collector, before: int, after: int
) -> None:
    """Counters go on, drops too; nothing is lost or twice."""
    port = free_port()
    old = start(spec(load, port, collector.port, workers=before), [])
    exporters = Exporters(8, port)
    exporters.send(HELD)
    old.pause()
    exporters.send(HELD)
    handed = [(label, sock.dup()) for label, sock in old.sockets()]
    new = Supervisor(source=HandedIn(handed), state=old.final_state())
    new.apply(spec(load, port, collector.port, workers=after))
    old.leave({label for label, _ in handed})
    exporters.send(HELD)
    all_came(new, exporters, collector)
    reading = new.view.readings()
    assert reading.listeners[0].counters["datagrams"] == exporters.sent
    assert reading.receivers[0].counters["sent"] == exporters.sent
    assert reading.listeners[0].kernel_drops == 0
    new.drain_and_stop(0.5)


def test_a_take_over_that_fails_leaves_the_old_one_as_it_was(load: Load, start: Start, collector: Collector) -> None:
    port = free_port()
    old = start(spec(load, port, collector.port), [])
    exporters = Exporters(2, port)
    exporters.send(HELD)
    old.pause()
    exporters.send(HELD)
    source = HandedIn([(label, sock.dup()) for label, sock in old.sockets()])
    new = Supervisor(source=source, state=old.final_state(), descriptor_limit=1)
    with pytest.raises(OSError, match="descriptors"):
        new.apply(spec(load, port, collector.port))
    source.close()
    old.resume()
    exporters.send(HELD)
    all_came(old, exporters, collector)


@pytest.mark.parametrize("device", ["", "lo"])
@pytest.mark.parametrize("address", ["0.0.0.0", "127.0.0.1", "::", "::1", "239.255.9.9", "ff05::9"])
def test_a_socket_that_is_turned_away_keeps_what_it_holds(address: str, device: str) -> None:
    """New datagrams go to the next socket that takes them."""
    six = ":" in address
    family = socket.AF_INET6 if six else socket.AF_INET
    old, new, sender = (socket.socket(family, socket.SOCK_DGRAM) for _ in range(3))
    for sock in (old, new):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.setblocking(False)
    if device:
        old.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode() + b"\0")
    port = free_port()
    old.bind((address, port))
    new.bind(("::" if six else "0.0.0.0", port))
    to = ("::1" if six else "127.0.0.1", port)
    if address == to[0]:  # the better match
        sender.sendto(b"before", to)
    listening.turn_away(old)
    assert old.getpeername()[1] == 9
    sender.sendto(b"after", to)
    assert new.recv(100) == b"after"
    if address == to[0]:
        assert old.recv(100) == b"before"
    with pytest.raises(BlockingIOError):
        old.recv(100)
    new.close()
    for _ in range(2):  # a second time changes nothing
        listening.turn_back(old, device)
        assert old.getsockname()[:2] == (address, port)
        assert old.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16).rstrip(b"\0").decode() == device
        if address in (to[0], "::", "0.0.0.0"):
            sender.sendto(b"back", to)
            assert old.recv(100) == b"back"
    for sock in (old, new, sender):
        sock.close()


def test_a_socket_of_another_network_is_closed(load: Load, start: Start, collector: Collector) -> None:
    """A unit that is moved into another network namespace gets the sockets that systemd has kept of the old one."""
    port = free_port()
    plan = spec(load, port, collector.port, workers=1)

    def away() -> Sockets:
        if ctypes.CDLL(None).unshare(CLONE_NEWNET) != 0:
            pytest.skip("network namespaces need root")
        return opened(plan)

    with ThreadPoolExecutor(1) as thread:
        given = thread.submit(away).result()
    exporters = Exporters(2, port)
    supervisor = start(plan, given)
    assert [sock.fileno() for _, sock in given] == [-1]
    exporters.send(5)
    all_came(supervisor, exporters, collector)


def test_a_process_that_failed_has_turned_a_socket_away(load: Load, start: Start, collector: Collector) -> None:
    """It had taken over, with a configuration without this listener; whoever had paused for it receives all again."""
    port = free_port()
    supervisor = start(spec(load, port, collector.port, workers=2), [])
    exporters = Exporters(4, port)
    exporters.send(5)
    until(supervisor, exporters.sent)
    supervisor.pause()
    for _, sock in supervisor.sockets():
        listening.turn_away(sock)
    supervisor.resume()
    exporters.send(5)
    all_came(supervisor, exporters, collector)


LABELS = [
    (Bound(4, bytes(4), 2055, "", False), "udp4-0.0.0.0-2055#3"),
    (Bound(6, bytes(16), 2055, "", False), "udp6-__-2055#3"),
    (Bound(6, bytes(16), 2055, "", True), "udp6only-__-2055#3"),
    (Bound(6, socket.inet_pton(socket.AF_INET6, "fe80::1"), 162, "eth0.7", False), "udp6-fe80__1-162-eth0.7#3"),
    (Bound(4, bytes(4), 1, "a#\udcff", False), "udp4-0.0.0.0-1-a%23%ff#3"),
]


@pytest.mark.parametrize(("bound", "label"), LABELS)
def test_labels(bound: Bound, label: str) -> None:
    assert bound.label(3) == label
    assert worker_of(label) == 3
    assert len(label) <= 255
    assert re.fullmatch(r"[ -9;-~]+", label)  # systemd's fdname_is_valid()


def test_labels_of_others_have_no_worker() -> None:
    assert [worker_of(label) for label in ("", "samplicator.socket", "unknown", "#", "x#y", "a#12345")] == [-1] * 6


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "[::1]", "[::]"])
def test_what_a_socket_is_bound_to(load: Load, address: str) -> None:
    """Read from the socket as from its specification."""
    wanted = text(free_port(), 9).replace("127.0.0.1:", f"{address}:", 1)
    plan = compile(load(wanted), {}, CAPABILITIES)
    for (_, sock), key in zip(opened(plan), plan.listeners[0].sockets, strict=True):
        assert bound_of(sock) == bound_by(key) == bound_by(replace(key, listener=7))
        sock.close()


OVERLAPS: Sequence[tuple[Bound, Bound, bool]] = [
    (Bound(4, b"\x7f\0\0\1", 1, "", False), Bound(4, bytes(4), 1, "", False), True),
    (Bound(4, b"\x7f\0\0\1", 1, "", False), Bound(4, bytes(4), 2, "", False), False),
    (Bound(4, b"\x7f\0\0\1", 1, "", False), Bound(4, b"\x7f\0\0\2", 1, "", False), False),
    (Bound(4, b"\x7f\0\0\1", 1, "", False), Bound(6, bytes(16), 1, "", False), True),
    (Bound(4, b"\x7f\0\0\1", 1, "", False), Bound(6, bytes(16), 1, "", True), False),
    (Bound(4, bytes(4), 1, "a", False), Bound(4, bytes(4), 1, "b", False), False),
    (Bound(4, bytes(4), 1, "a", False), Bound(4, bytes(4), 1, "", False), True),
]


@pytest.mark.parametrize(("one", "other", "overlaps"), OVERLAPS)
def test_who_would_get_the_datagrams_of_another(one: Bound, other: Bound, overlaps: bool) -> None:
    assert one.overlaps(other) is other.overlaps(one) is overlaps


@pytest.mark.parametrize("host", ["127.0.1.{}", "::1"])
@pytest.mark.parametrize("members", [2, 3])
def test_an_exporter_has_its_worker_as_with_rings(host: str, members: int) -> None:
    """By its address and port alone: the same in every process, and the same whether a ring or a socket gets it."""
    six = ":" in host
    family = socket.AF_INET6 if six else socket.AF_INET
    wanted = SocketSpec(0, "::1" if six else "127.0.0.1", free_port(family), 6 if six else 4, six, "", ())
    group: list[socket.socket] = []
    for _ in range(members):
        group.append(listening.open_listener(wanted, receive_buffer=1 << 16, ttl=False, tos=False, beside=list(group)))
        listening.spread(group)
    chosen = set()
    for number in range(1, 40):
        with socket.socket(family, socket.SOCK_DGRAM) as exporter:
            exporter.bind((host.format(number), 0))
            exporter.sendto(b"x", group[0].getsockname())
            address, port = exporter.getsockname()[:2]
            mixed = port
            packed = socket.inet_pton(family, address)
            for at in range(0, len(packed), 4):
                mixed ^= int.from_bytes(packed[at : at + 4], "big")
            index = ((mixed * 0x9E3779B1 & 0xFFFFFFFF) >> 16) * members >> 16
            ready, _, _ = select.select(group, [], [], 5)
            assert ready == [group[index]]
            group[index].recv(10)
            chosen.add(index)
    assert len(chosen) == members
    for sock in group:
        sock.close()
