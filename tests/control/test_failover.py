"""What follows from the state of receivers: standbys, pools, templates for those who come back. A real supervisor on
loopback, housekeeping called by the test.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from samplicator.host import abilities, sockets
from samplicator.plan.planner import compile
from samplicator.plan.spec import PlanSpec
from samplicator.readings import ReceiverReading
from samplicator.supervisor.supervisor import Supervisor
from support import flows as model
from support.hosts import Load, free_port, host
from support.numbered import rest

CAPABILITIES = abilities.capabilities()
FIELDS = [(8, 4), (12, 4)]


class Collector:
    """A UDP port that can be closed and opened."""

    def __init__(self) -> None:
        self.port = free_port()
        self.sock: socket.socket | None = None
        self.open()

    def open(self) -> None:
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.bind(("127.0.0.1", self.port))
        self.sock.setblocking(False)

    def close(self) -> None:
        if self.sock is not None:
            self.sock.close()
            self.sock = None

    def take(self) -> list[bytes]:
        found = []
        with contextlib.suppress(BlockingIOError):
            while self.sock is not None:
                found.append(self.sock.recv(2000))
        return found


class Bench:
    """A supervisor, three collectors, one exporter."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.supervisor = Supervisor()
        self.port = free_port()
        self.a, self.b, self.c = Collector(), Collector(), Collector()
        self.exporter = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.exporter.connect(("127.0.0.1", self.port))
        self.sent = 0
        """Datagrams since the first plan."""

    def spec(self, rule: str, *, a: str = "", b: str = "", more: str = "") -> PlanSpec:
        text = f'[datapath]\nflow_memory = "1MiB"\n[[listener]]\nname = "in"\nlisten = ["127.0.0.1:{self.port}"]\n'
        for name, collector, extra in (("a", self.a, a), ("b", self.b, b), ("c", self.c, "")):
            text += f'[[receiver]]\nname = "{name}"\nto = "127.0.0.1:{collector.port}"\n{extra}\n'
        return compile(self.load(f"{text}{more}[[rule]]\nto = [{rule}]\n"), {}, CAPABILITIES)

    def apply(self, rule: str, **changes: str) -> None:
        self.supervisor.apply(self.spec(rule, **changes))

    def send(self, payload: bytes = b"x") -> None:
        self.exporter.send(payload)
        self.sent += 1

    def rest(self) -> None:
        """All that was sent so far has become something."""
        rest(self.supervisor, self.sent)

    def look(self) -> None:
        self.supervisor.look()

    def until(self, done: Callable[[], bool], seconds: float = 5.0, sending: bool = True) -> float:
        """Looks (and sends) ten times as often as the service does until done; the seconds that took."""
        begun = time.monotonic()
        while not done():
            assert time.monotonic() - begun < seconds, "waited in vain"
            if sending:
                self.send()
            self.look()
            time.sleep(0.01)
        return time.monotonic() - begun

    def of(self, name: str) -> ReceiverReading:
        return next(item for item in self.supervisor.view.readings().receivers if item.name == name)

    def state(self, name: str) -> str:
        return self.of(name).state

    def members(self) -> dict[str, bool]:
        (pool,) = self.supervisor.view.readings().pools
        return {member.receiver: member.up for member in pool.members}

    def close(self) -> None:
        self.supervisor.drain_and_stop(0.2)
        for collector in (self.a, self.b, self.c):
            collector.close()
        self.exporter.close()


@pytest.fixture
def bench(load: Load) -> Iterator[Bench]:
    one = Bench(load)
    yield one
    one.close()


STANDBY = 'standby_for = "a"'


def test_a_standby_waits_takes_over_and_waits_again(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.apply('"a", "c"', b=STANDBY)
    bench.until(lambda: len(bench.c.take()) > 0)
    for _ in range(20):
        bench.send()
    bench.rest()
    b = bench.of("b")
    assert (b.waiting, b.takeovers, b.counters["offered"]) == (True, 0, 0)
    assert bench.b.take() == []
    assert len(bench.a.take()) > 0

    bench.a.close()
    with caplog.at_level(logging.INFO):
        assert bench.until(lambda: len(bench.b.take()) > 0) < 1.0
        b = bench.of("b")
        assert (b.waiting, b.takeovers, bench.state("a")) == (False, 1, "refusing")
        bench.a.open()
        bench.until(lambda: bench.of("b").waiting, 10)
        bench.until(lambda: bench.state("a") == "up", 10)
        bench.rest()
        bench.b.take()
        for _ in range(20):
            bench.send()
        bench.rest()
        assert bench.b.take() == []
    said = [record.getMessage() for record in caplog.records]
    assert (
        said.count("receiver 'a' is refusing (the receiver's port is closed); standby 'b' takes over, templates first")
        == 1
    )
    assert said.count("receiver 'a' is up; standby 'b' gets no more copies") == 1
    assert said.count("receiver 'a' is back; all templates are replayed to it") == 1


def test_a_take_over_survives_reloads(bench: Bench) -> None:
    bench.apply('"a"', b=STANDBY)
    bench.a.close()
    bench.until(lambda: len(bench.b.take()) > 0)
    for workers in ("", "[datapath]"):  # the same again, and with other receivers changed
        bench.apply('"a"', b=STANDBY + ("\nttl = 9" if workers else ""))
        bench.b.take()
        for _ in range(10):
            bench.send()
        bench.rest()
        assert len(bench.b.take()) >= 9
        assert (bench.state("a"), bench.of("b").waiting) == ("refusing", False)
    assert bench.of("b").takeovers == 1


def test_a_standby_by_reload_gets_nothing_from_the_first_on(bench: Bench) -> None:
    """A receiver that worked becomes a standby, then works again."""
    bench.apply('"a", "b"')
    bench.until(lambda: len(bench.b.take()) > 0)
    bench.apply('"a"', b=STANDBY)
    bench.rest()
    bench.b.take()
    for _ in range(20):
        bench.send()
    bench.rest()
    assert bench.b.take() == []
    assert bench.of("b").waiting
    bench.apply('"a", "b"')
    bench.until(lambda: len(bench.b.take()) > 0)
    b = bench.of("b")
    assert (b.waiting, b.takeovers, b.standby_for) == (False, 0, "")


def test_a_standby_that_rules_name_still_waits(bench: Bench) -> None:
    bench.apply('"b", "a"', b=STANDBY)
    for _ in range(20):
        bench.send()
    bench.rest()
    assert bench.b.take() == []
    bench.a.close()
    bench.until(lambda: len(bench.b.take()) > 0)
    before = bench.of("b").counters["offered"]
    bench.send()
    bench.rest()
    assert bench.of("b").counters["offered"] == before + 1  # one copy, though two rules' worth of names


def test_a_primary_without_a_route_never_has_copies(bench: Bench) -> None:
    """unreachable from the start: the standby begins to work at once."""
    with pytest.MonkeyPatch.context() as patch:
        real = sockets.probe_path

        def probe(address: bytes, port: int, scope_id: int = 0) -> Any:
            found = real(address, port, scope_id)
            return found if port != bench.a.port else type(found)(0, b"")

        patch.setattr(sockets, "probe_path", probe)
        bench.apply('"a"', b=STANDBY)
        assert (bench.state("a"), bench.of("a").state_why) == ("unreachable", "there is no route to the receiver")
        assert (bench.of("b").waiting, bench.of("b").takeovers) == (False, 1)
        bench.until(lambda: len(bench.b.take()) > 0)
    bench.supervisor.housekeeping()
    assert bench.state("a") == "up"
    assert bench.of("b").waiting


def test_an_unresolved_neighbor_makes_unreachable(bench: Bench) -> None:
    bench.apply('"a"', b=STANDBY)
    state = bench.supervisor._running.receivers["a"]
    state.set_unresolved(True)
    bench.look()
    assert (bench.state("a"), bench.of("b").waiting) == ("unreachable", False)
    assert "does not answer" in bench.of("a").state_why
    state.set_unresolved(False)
    bench.look()
    assert bench.state("a") == "unreachable"  # an entry that is asked for anew looks good for a moment
    assert (
        1.0 < bench.until(lambda: bench.state("a") == "up", sending=False) < 10.0
    )  # here 1.1; looks are rare on a slow machine
    assert bench.of("b").waiting


# ---- pools

POOL = '[[pool]]\nname = "p"\nmembers = ["a", "b"]\n'


def test_a_member_that_fails_is_left_out_until_it_has_its_templates(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.apply('"p"', more=POOL + 'balance = "round-robin"\n')
    template = model.v9(1, 7, model.a_set(0, model.template(300, FIELDS)))
    bench.send(template)
    bench.until(lambda: bool(bench.a.take()) and bool(bench.b.take()))
    assert bench.members() == {"a": True, "b": True}
    bench.b.close()
    with caplog.at_level(logging.INFO):
        bench.until(lambda: bench.members() == {"a": True, "b": False})
        offered = bench.of("b").counters["offered"]
        for _ in range(20):
            bench.send()
        bench.rest()
        assert bench.of("b").counters["offered"] == offered
        bench.apply('"p"', more=POOL + 'balance = "round-robin"\n')  # a reload changes nothing in that
        assert bench.members() == {"a": True, "b": False}
        bench.b.open()
        bench.until(lambda: bench.members() == {"a": True, "b": True}, 10)
    bench.rest()
    got = [payload for payload in bench.b.take() if payload]
    assert template[20:] in got[0]
    said = [record.getMessage() for record in caplog.records]
    assert (
        said.count(
            "receiver 'b' is refusing: the receiver's port is closed; pool 'p' gives its exporters to other members"
        )
        == 1
    )
    assert "pool 'p': no member is up" not in " ".join(said)


def test_what_is_down_is_a_warning(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """A receiver that nobody stands in for, too: `journalctl -p warning` has to show it; once."""
    bench.apply('"a", "b"')
    bench.a.close()
    with caplog.at_level(logging.INFO):
        bench.until(lambda: bench.state("a") == "refusing")
        for _ in range(50):
            bench.send()
            bench.look()
            time.sleep(0.01)
        bench.apply('"a", "b"')
    records = [record for record in caplog.records if "receiver 'a'" in record.getMessage()]
    assert [(r.levelname, r.getMessage()) for r in records] == [
        ("WARNING", "receiver 'a' is refusing: the receiver's port is closed")
    ]


def test_what_is_down_from_the_start_is_a_warning(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    nowhere = type(sockets.probe_path(bytes([127, 0, 0, 1]), 9, 0))(0, b"")
    with pytest.MonkeyPatch.context() as patch, caplog.at_level(logging.INFO):
        patch.setattr(sockets, "probe_path", lambda *words: nowhere)
        bench.apply('"a"')
    records = [record for record in caplog.records if "receiver 'a'" in record.getMessage()]
    assert [(r.levelname, r.getMessage()) for r in records] == [
        ("WARNING", "receiver 'a' is unreachable: there is no route to the receiver")
    ]


def test_a_pool_without_members_says_so(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.apply('"p"', more=POOL)
    bench.a.close()
    bench.b.close()
    bench.until(lambda: bench.state("a") == "refusing" or bench.state("b") == "refusing")
    with caplog.at_level(logging.ERROR):
        bench.until(lambda: not any(bench.members().values()), 10)
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    why = "all members are down; copies are still sent by the normal assignment and counted as failed"
    assert said == [f"pool 'p': {why}"]
    failed = sum(bench.of(name).counters["failed_refused"] for name in "ab")
    bench.until(lambda: sum(bench.of(name).counters["failed_refused"] for name in "ab") > failed)


def test_a_member_that_is_never_asked_stays_in(bench: Bench) -> None:
    bench.apply('"p"', more=POOL, b='probe = "off"')
    bench.b.close()
    bench.apply('"p", "b"', more=POOL, b='probe = "off"')
    bench.until(lambda: bench.state("b") == "refusing")
    assert bench.members() == {"a": True, "b": True}


def test_tcp_probe_takes_a_member_out(bench: Bench) -> None:
    """Its port for datagrams is open: what it gets counts as sent."""
    server = socket.create_server(("127.0.0.1", 0))
    port = server.getsockname()[1]
    bench.apply('"p"', more=POOL, b=f'probe = "tcp://:{port}"')
    bench.until(lambda: bench.supervisor._running.receivers["b"].reach._came == 0 and bench.of("b").up)
    for _ in range(30):
        bench.look()
        time.sleep(0.02)
    assert bench.members() == {"a": True, "b": True}
    server.close()
    assert bench.until(lambda: not bench.members()["b"], sending=False) < 1.0
    assert bench.of("b").state_why == f"tcp://127.0.0.1:{port}: connection refused"
    assert bench.of("b").counters["failed_refused"] == 0


def test_pool_ids_stay_while_the_pool_does(bench: Bench) -> None:
    bench.apply('"p"', more=POOL)
    first = dict(bench.supervisor._running.pool_ids)
    bench.apply('"q", "p"', more=POOL.replace('"p"', '"q"') + POOL)
    second = dict(bench.supervisor._running.pool_ids)
    assert second["p"] == first["p"]
    assert second["q"] != second["p"]
    bench.apply('"a"')
    assert bench.supervisor.view.readings().pools == ()
    bench.apply('"p"', more=POOL)
    assert bench.supervisor._running.pool_ids["p"] not in set(second.values())


def test_exporters_are_counted_and_routes_name_the_pool(bench: Bench) -> None:
    bench.apply('"p", "c"', more=POOL + "weight = { a = 3 }\n")
    bench.send(model.v9(1, 7, model.a_set(0, model.template(300, FIELDS))))
    bench.until(lambda: sum(m.exporters for m in bench.supervisor.view.readings().pools[0].members) >= 1, sending=False)
    (pool,) = bench.supervisor.view.readings().pools
    assert (pool.name, pool.balance, [m.weight for m in pool.members]) == ("p", "exporter-hash", [3, 1])
    route = bench.supervisor.view.route(bytes([127, 0, 0, 1]))
    assert (route.receivers, route.pools) == (("c",), ("p",))


# ---- who is asked


def test_who_gets_templates_is_asked(load: Load) -> None:
    """Two spoofed receivers: one gets NetFlow, the other syslog of another exporter. Only the first needs a probe."""
    if not CAPABILITIES.net_raw:
        pytest.skip("needs CAP_NET_RAW")
    supervisor = Supervisor()
    port, flow, other = free_port(), Collector(), Collector()
    text = f'[[listener]]\nname = "in"\nlisten = ["127.0.0.1:{port}"]\n'
    for name, collector in (("flow", flow), ("syslog", other)):
        text += f'[[receiver]]\nname = "{name}"\nto = "127.0.0.1:{collector.port}"\nspoof = true\n'
    text += '[[rule]]\nfrom = ["127.0.0.2"]\nto = ["flow"]\n[[rule]]\nfrom = ["127.0.0.3"]\nto = ["syslog"]\n'
    supervisor.apply(compile(load(text), {}, host("127.0.0.1")))
    try:
        for address, payload in (
            ("127.0.0.2", model.v9(1, 7, model.a_set(0, model.template(300, FIELDS)))),
            ("127.0.0.3", b"<13>text"),
        ):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as exporter:
                exporter.bind((address, 0))
                exporter.sendto(payload, ("127.0.0.1", port))
        rest(supervisor, 2)
        running = supervisor._running.receivers
        assert not running["flow"].reach.asks
        for _ in range(200):  # a piece of the table each time
            supervisor.housekeeping()
            if running["flow"].reach.asks:
                break
        assert (running["flow"].reach.asks, running["syslog"].reach.asks) == (True, False)
        supervisor.look()
        rest(supervisor, 2)
        assert b"" in flow.take()
        assert other.take() == [b"<13>text"]
        flow.close()
        begun = time.monotonic()
        while supervisor.view.readings().receivers[0].state != "refusing" and time.monotonic() - begun < 20:
            supervisor.look()
            time.sleep(0.05)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as exporter:
            exporter.bind(("127.0.0.2", 0))
            for _ in range(5):
                exporter.sendto(b"z", ("127.0.0.1", port))
        rest(supervisor, 7)
        counters = supervisor.view.readings().receivers[0].counters
        assert counters["failed_refused"] == 5  # the kernel took them all the same
    finally:
        supervisor.drain_and_stop(0.2)
        other.close()


def test_a_look_at_many_receivers_is_quick(load: Load) -> None:
    """256 receivers, a quarter in pools: ten looks a second must cost next to nothing."""
    supervisor = Supervisor()
    text = f'[[listener]]\nname = "in"\nlisten = ["127.0.0.1:{free_port()}"]\n'
    names = [f"r{number}" for number in range(256)]
    for number, name in enumerate(names):
        probe = "auto" if number % 4 == 0 else "off"
        text += f'[[receiver]]\nname = "{name}"\nto = "127.0.0.1:{9000 + number}"\nprobe = "{probe}"\n'
    listed = ", ".join(f'"{name}"' for name in names[::4])
    every = ", ".join(f'"{name}"' for name in names)
    text += f'[[pool]]\nname = "p"\nmembers = [{listed}]\n[[rule]]\nto = [{every}, "p"]\n'
    supervisor.apply(compile(load(text), {}, CAPABILITIES))
    try:
        supervisor.look()
        begun = time.perf_counter()
        for _ in range(20):
            supervisor.look()
        each = (time.perf_counter() - begun) / 20
        print(f"a look at 256 receivers: {each * 1e3:.2f} ms")
        assert each < 0.02
    finally:
        supervisor.drain_and_stop(0.2)


def took(collector: Collector, got: list[bytes]) -> list[bytes]:
    got += collector.take()
    return got


def test_a_receiver_that_a_rule_newly_names_is_told_the_templates(bench: Bench) -> None:
    """It ran all the time and kept its socket; the exporter's templates are long gone by."""
    bench.apply('"a"')
    template = model.a_set(0, model.template(256, FIELDS))
    bench.send(model.v9(1, 7, template))
    bench.until(lambda: len(bench.a.take()) > 0, sending=False)
    assert bench.b.take() == []
    bench.apply('"a", "b"')
    got: list[bytes] = []
    bench.until(lambda: bool(took(bench.b, got)), sending=False)
    assert template in got[0]
    bench.send(model.v9(2, 7, model.a_set(256, bytes(8))))
    bench.until(lambda: len(took(bench.b, got)) > 1, sending=False)
    assert len(bench.a.take()) == 1
    collector = model.Collector()
    for payload in got:
        collector.take(0, payload)
    assert (collector.records, collector.sequence_errors, collector.unknown_sets) == (1, 0, 0)
