"""From the configuration to sessions: tcp:// listeners and receivers under the supervisor, through the workers."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest
from samplicator.errors import ConfigError
from samplicator.health.probes import UNREACHABLE, UP
from samplicator.plan.explain import explain, parse_exporter
from samplicator.plan.planner import compile as make_plan
from samplicator.plan.sessions import Backup, Door, Sctp
from samplicator.plan.spec import ResolvedAddress
from samplicator.readings import ListenerReading, ReceiverReading
from samplicator.service.gateways import Gateways
from samplicator.supervisor.refusal import BuildError
from samplicator.supervisor.supervisor import Supervisor
from support import flows as model
from support.flows import a_set, template
from support.hosts import Load, free_port, host
from support.peers import Collector, connect, ended, tcp_port
from support.worker import wait_until

FIELDS: list[tuple[int, ...]] = [(8, 4), (12, 4)]
TEACH = model.ipfix(0, 1, a_set(2, template(256, FIELDS)))


def data(sequence: int, count: int = 1) -> bytes:
    return model.ipfix(sequence, 1, a_set(256, *[(sequence + n).to_bytes(8, "big") for n in range(count)]))


def udp_socket() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    sock.settimeout(10)
    return sock


class Bench:
    """A supervisor with the gateways of the service."""

    def __init__(self, load: Load) -> None:
        self.gateways = Gateways(asyncio.new_event_loop)
        self.supervisor = Supervisor(gateways=self.gateways)
        self.gateways.replay = self.supervisor.replay
        self._load = load

    def run(self, text: str) -> None:
        self.supervisor.apply(make_plan(self._load(text), {}, host()))

    def receiver(self, name: str) -> ReceiverReading:
        return next(item for item in self.supervisor.view.readings().receivers if item.name == name)

    def listener(self, name: str) -> ListenerReading:
        return next(item for item in self.supervisor.view.readings().listeners if item.name == name)

    def until(self, condition: Callable[[], bool], what: str) -> None:
        def looked() -> bool:
            self.supervisor.look()
            return condition()

        wait_until(looked, what, 20)


@pytest.fixture
def bench(load: Load) -> Iterator[Bench]:
    made = Bench(load)
    yield made
    made.gateways.deafen()
    made.supervisor.drain_and_stop(0.5)
    made.gateways.close(2.0)


def text(listen: list[str], receivers: dict[str, str], more: str = "", listener: str = "", workers: int = 1) -> str:
    made = f"[datapath]\nworkers = {workers}\n[[listener]]\nname = 'in'\nlisten = {listen}\n{listener}\n"
    for name, to in receivers.items():
        made += f"[[receiver]]\nname = '{name}'\nto = '{to}'\n{more if name == list(receivers)[-1] else ''}\n"
    return (
        made
        + f"[[rule]]\nto = {[name for name in receivers if 'standby_for' not in more or name != list(receivers)[-1]]}\n"
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_in_by_tcp_and_out_by_tcp_and_udp(bench: Bench, workers: int) -> None:
    port, collector, sink = tcp_port(), Collector(), udp_socket()
    there = f"127.0.0.1:{sink.getsockname()[1]}"
    udp = free_port()
    bench.run(
        text(
            [f"127.0.0.1:{udp}", f"tcp://127.0.0.1:{port}"],
            {"udp": there, "tcp": f"tcp://127.0.0.1:{collector.port}"},
            workers=workers,
        )
    )
    bench.until(lambda: bench.listener("in").state == "up", "the listener")
    exporters = [connect(port) for _ in range(4)]
    for exporter in exporters:
        exporter.sendall(TEACH + data(0, 1000) + data(1000))
    with udp_socket() as plain:
        for payload in (TEACH, data(0)):
            plain.sendto(payload, ("127.0.0.1", udp))
    found: dict[int, model.Collector] = {}

    def all_there() -> bool:
        found.clear()
        for number, connection in enumerate(list(collector.connections)):
            found[number] = model.Collector()
            for message in list(connection.messages):
                found[number].take(0, message)
        return sorted(one.records for one in found.values()) == [1, 1001, 1001, 1001, 1001]

    bench.until(all_there, "all records by TCP")
    assert {(one.sequence_errors, one.unknown_sets) for one in found.values()} == {(0, 0)}
    bench.until(lambda: bench.receiver("udp").counters["sent"] == 4 * 8 + 2, "all copies by UDP")
    sizes = [len(sink.recv(65535)) for _ in range(34)]
    assert max(sizes) <= 1452
    out = bench.receiver("tcp")
    assert (out.place, out.state, out.port) == (f"tcp://127.0.0.1:{collector.port}", UP, collector.port)
    collector.close()


def test_a_standby_takes_over_from_a_collector_that_is_away(bench: Bench) -> None:
    port, away, collector = tcp_port(), tcp_port(), Collector()
    bench.run(
        text(
            [f"tcp://127.0.0.1:{port}"],
            {"out": f"tcp://127.0.0.1:{away}", "spare": f"tcp://127.0.0.1:{collector.port}"},
            "standby_for = 'out'",
        )
    )
    bench.until(lambda: bench.listener("in").state == "up", "the listener")
    exporter = connect(port)
    exporter.sendall(TEACH + data(0))
    bench.until(lambda: bench.receiver("out").state == UNREACHABLE, "the fault")
    assert bench.receiver("out").state_why == "not connected: Connection refused"
    bench.until(lambda: not bench.receiver("spare").waiting, "the standby")
    sent = 1

    def copied() -> bool:
        """The worker wakes the standby a little after it is told to."""
        nonlocal sent
        exporter.sendall(data(sent))
        sent += 1
        return len(collector.messages()) >= 2

    bench.until(copied, "the standby's copies")
    assert collector.messages()[0][16:18] == b"\0\2"  # templates first
    first = Collector(away)

    def kept() -> list[bytes]:
        return [message for message in first.messages() if message[16:18] != b"\0\2"]

    bench.until(lambda: len(kept()) == sent, "what waited")
    assert kept() == [data(n) for n in range(sent)]
    bench.until(lambda: bench.receiver("spare").waiting, "the standby to wait again")
    first.close()
    collector.close()


def test_a_reload_keeps_sessions_and_a_failed_one_too(bench: Bench) -> None:
    port, collector = tcp_port(), Collector()
    listen, to = [f"tcp://127.0.0.1:{port}"], {"out": f"tcp://127.0.0.1:{collector.port}"}
    bench.run(text(listen, to))
    bench.until(lambda: bench.listener("in").state == "up", "the listener")
    exporter, other = connect(port), connect(port, source_address=("127.0.0.2", 0))
    exporter.sendall(TEACH + data(0))
    bench.until(lambda: len(collector.messages()) == 2, "the first two")
    bad = text([*listen, f"tls://127.0.0.1:{tcp_port()}"], to)
    bad = bad.replace("[[receiver]]", "tls_cert_file = '/n'\ntls_key_file = '/n'\ntls_ca_file = '/n'\n[[receiver]]")
    with pytest.raises(BuildError, match="gateway 'tls': /n: No such file or directory"):
        bench.run(bad)
    exporter.sendall(data(1))
    bench.until(lambda: len(collector.messages()) == 3, "one after the reload that failed")
    bench.run(text(listen, to, "freq = 1\nprobe = 'off'", "allow = ['127.0.0.1']\nsplit_bytes = 1200"))
    assert ended(other)
    exporter.sendall(data(2))
    bench.until(lambda: collector.messages()[-1] == data(2), "one after the reload")
    assert len(collector.connections) == 1
    bench.run(text([f"127.0.0.1:{free_port()}"], {"udp": "127.0.0.1:9"}))
    assert ended(exporter)
    bench.until(lambda: collector.connections[0].over, "the receiver's session to end")
    bench.until(lambda: not bench.gateways.readings(), "nothing to be left")
    collector.close()


def test_a_place_that_is_not_free_is_shown(bench: Bench) -> None:
    other = Collector()
    bench.run(text([f"tcp://127.0.0.1:{other.port}"], {"udp": "127.0.0.1:9"}))
    bench.until(lambda: bench.listener("in").state == "down", "the state")
    assert bench.listener("in").state_why == f"tcp://127.0.0.1:{other.port}: Address already in use"
    other.close()
    bench.until(lambda: bench.listener("in").state == "up", "the place to be free")


def test_without_such_a_transport_nothing_of_it_is_imported() -> None:
    program = (
        "import sys; from samplicator.service import service; from samplicator.service.gateways import Gateways;"
        "print(sorted(m for m in sys.modules if m.startswith('samplicator.gateways.')))"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "['samplicator.gateways.door']"


@pytest.mark.parametrize("workers", [1, 2])
def test_reloads_lose_nothing_and_keep_the_order(bench: Bench, workers: int) -> None:
    """Each reload gives the listener new doors and the receiver, too, while exporters go on sending."""
    port, collector = tcp_port(), Collector()
    listen, to = [f"tcp://127.0.0.1:{port}"], {"out": f"tcp://127.0.0.1:{collector.port}"}
    bench.run(text(listen, to, workers=workers))
    bench.until(lambda: bench.listener("in").state == "up", "the listener")
    exporters = [connect(port) for _ in range(4)]
    stop, sent = threading.Event(), [0] * 4

    def send() -> None:
        for exporter in exporters:
            exporter.sendall(TEACH)
        while not stop.is_set():
            for number, exporter in enumerate(exporters):
                exporter.sendall(data(sent[number], 10))
                sent[number] += 10

    sending = threading.Thread(target=send)
    sending.start()
    for n in range(12):
        allow = f"allow = ['127.0.0.1', '198.18.{n}.0/24']"
        bench.run(text(listen, to, f"template_refresh_packets = {100_000 + n}", allow, workers=workers))
    stop.set()
    sending.join()
    found: list[model.Collector] = []

    def all_there() -> bool:
        return sum(len(connection.messages) for connection in list(collector.connections)) >= sum(sent) // 10 + 4

    bench.until(all_there, "all messages")
    for connection in collector.connections:
        one = model.Collector()
        for message in connection.messages:
            one.take(0, message)
        found.append(one)
    assert sorted(one.records for one in found) == sorted(sent)
    assert {(one.sequence_errors, one.unknown_sets) for one in found} == {(0, 0)}
    assert bench.listener("in").counters["truncated"] == 0
    assert {row.counters["lost"] for row in bench.gateways.readings() if row.side == "in"} == {0}
    collector.close()


# ---- the plan


def test_what_the_plan_says_of_it(load: Load) -> None:
    made = make_plan(
        load(
            text(
                ["0.0.0.0:2055", "tcp://[::]:4739", "tcp://192.0.2.1:4739"],
                {"udp": "127.0.0.1:9", "out": "tcp://collector.example:4739"},
                listener="allow = ['198.18.0.0/16']",
            )
        ),
        {("collector.example", 0): (ResolvedAddress(b"\xc6\x33\x64\x07"),)},
        host("192.0.2.1"),
    )
    (door,) = made.listeners[0].doors
    assert door.texts() == ("tcp://192.0.2.1:4739", "tcp://[::]:4739")  # IPv4 first: [::] leaves it to that
    assert (made.listeners[0].receive, len(made.listeners[0].sockets)) == ("recvmmsg", 1)
    out = made.receivers[1]
    assert (out.engine, out.place, out.missing) == ("door", "tcp://collector.example:4739", "")
    exporter, stranger = (parse_exporter(address)[0] for address in ("198.18.0.7", "203.0.113.1"))
    answers = explain(made, exporter, 5000, 4739)
    assert [answer.socket for answer in answers] == list(door.texts())
    assert [copy.to for copy in answers[0].copies] == ["127.0.0.1:9", "tcp://collector.example:4739"]
    assert explain(made, stranger, 5000, 4739) == ()
    assert [answer.socket for answer in explain(made, stranger, 5000, 2055)] == ["0.0.0.0:2055"]


@pytest.mark.parametrize("listen", ["tcp://192.0.2.1:4739", "tls://0.0.0.0:4739", "tcp://[::]:4739"])
def test_a_receiver_that_is_a_listener_is_refused(load: Load, listen: str) -> None:
    keys = "tls_cert_file = '/c'\ntls_key_file = '/k'\ntls_ca_file = '/a'" if listen.startswith("tls") else ""
    loaded = load(text([listen], {"out": "tcp://192.0.2.1:4739"}, listener=keys))
    with pytest.raises(ConfigError) as refused:
        make_plan(loaded, {}, host("192.0.2.1"))
    assert "every message would come back in a loop; change `to`" in str(refused.value.problems[0])


def test_a_name_that_does_not_resolve_leaves_the_rest_running(bench: Bench) -> None:
    port, collector = tcp_port(), Collector()
    listen = [f"tcp://127.0.0.1:{port}", "tcp://nowhere.example:1"]
    bench.run(text(listen, {"out": f"tcp://127.0.0.1:{collector.port}", "lost": "tcp://nowhere.example:4739"}))
    bench.until(lambda: bench.listener("in").state == "partly down", "the state")
    assert bench.listener("in").state_why.startswith("the host name does not resolve: nowhere.example:1")
    exporter = connect(port)
    exporter.sendall(TEACH)
    bench.until(lambda: len(collector.messages()) == 1, "the message")
    lost = bench.receiver("lost")
    assert (lost.state, lost.state_why, lost.address) == (
        UNREACHABLE,
        "the host name does not resolve",
        "nowhere.example",
    )
    assert lost.counters["failed_no_route"] == 1
    collector.close()


def test_what_the_plan_says_of_sctp(load: Load) -> None:
    """The backup's name resolves as other names do, and a short MTU of a receiver makes short datagrams."""
    text = (
        '[sctp]\nbackend = "usrsctp-udp"\nudp_port = 9900\nmtu = 1400\n'
        '[[listener]]\nname = "in"\nlisten = ["sctp://0.0.0.0:4739"]\nstreams = 5\n'
        '[[receiver]]\nname = "one"\nto = "sctp://192.0.2.9:9000"\nreliability = "partial"\n'
        "buffer_limit = 77\nstreams = 3\n"
        'backup = { to = "sctp://backup.example:9001", mode = "fail-over", fail_over_ms = 50, restore_s = 6 }\n'
        '[[receiver]]\nname = "two"\nto = "192.0.2.10:9995"\nmtu = 1280\n[[rule]]\nto = ["one", "two"]\n'
    )
    where = ResolvedAddress(bytes([192, 0, 2, 77]))
    plan = make_plan(load(text), {("backup.example", 0): (where,)}, host())
    (door,) = plan.listeners[0].doors
    assert (door.message_bytes, door.sctp) == (1252, Sctp("usrsctp-udp", 9900, 1400, 5))
    delivery = plan.receivers[0].delivery
    assert isinstance(delivery, Door)
    backup = Backup(where.address, 9001, 0, "backup.example", "fail-over", 50, 6)
    assert delivery.sctp == Sctp("usrsctp-udp", 9900, 1400, 3, "partial", 77, backup)
    plan = make_plan(load(text), {}, host())
    assert isinstance(plan.receivers[0].delivery, Door)
    assert plan.receivers[0].delivery.sctp.backup.address == b""  # type: ignore[union-attr]
    assert not plan.receivers[0].missing
    assert "until then there is no backup" in plan.warnings[0]


def test_ports_of_sctp_are_not_those_of_tcp(load: Load) -> None:
    """A receiver by SCTP at a port of this host where a listener has TCP is no loop; nor are two listeners one."""
    listeners = "".join(
        f'[[listener]]\nname = "{scheme}"\nlisten = ["{scheme}://127.0.0.1:4739"]\n' for scheme in ("tcp", "sctp")
    )
    rule = '[[rule]]\nto = ["out"]\n'
    make_plan(load(f'{listeners}[[receiver]]\nname = "out"\nto = "sctp://127.0.0.1:4740"\n{rule}'), {}, host())
    alone = '[[listener]]\nname = "in"\nlisten = ["tcp://127.0.0.1:4739"]\n'
    make_plan(load(f'{alone}[[receiver]]\nname = "out"\nto = "sctp://127.0.0.1:4739"\n{rule}'), {}, host())
    with pytest.raises(ConfigError, match="every message would come back in a loop"):
        make_plan(load(f'{listeners}[[receiver]]\nname = "out"\nto = "sctp://127.0.0.1:4739"\n{rule}'), {}, host())
    backup = '{ to = "sctp://127.0.0.1:4739" }'
    text = f'{listeners}[[receiver]]\nname = "out"\nto = "sctp://192.0.2.9:4739"\nbackup = {backup}\n{rule}'
    with pytest.raises(ConfigError, match="every message would come back in a loop"):
        make_plan(load(text), {}, host())


def test_a_host_without_sctp_runs_all_the_rest(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the host lacks is a state with all reasons, and is tried again; UDP goes on."""
    from samplicator.gateways.sctp import choice

    lacks = ["no SCTP in this kernel"]
    monkeypatch.setattr(choice, "kernel_fault", lambda: lacks[0])
    monkeypatch.setattr(choice, "library_fault", lambda: "no libusrsctp")
    port, sink = free_port(), udp_socket()
    bench.run(
        f'[[listener]]\nname = "in"\nlisten = ["127.0.0.1:{port}", "sctp://127.0.0.1:4739"]\n'
        '[[receiver]]\nname = "out"\nto = "sctp://127.0.0.2:9000"\n'
        f'[[receiver]]\nname = "udp"\nto = "127.0.0.1:{sink.getsockname()[1]}"\n[[rule]]\nto = ["out", "udp"]\n'
    )
    bench.until(
        lambda: "no SCTP in this kernel; no libusrsctp" in bench.listener("in").state_why, "the listener's reason"
    )
    exporter = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    exporter.sendto(TEACH, ("127.0.0.1", port))
    assert sink.recv(2048) == TEACH
    bench.until(lambda: "no SCTP in this kernel" in bench.receiver("out").state_why, "the receiver's reason")
    exporter.close()
    sink.close()
