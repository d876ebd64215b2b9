"""Whether a receiver's port is open: real sockets on loopback, time made up."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from samplicator.health.probes import REFUSING, UNREACHABLE, UP, Answer, Connection, Datagram, Page
from samplicator.health.reach import IPFIX_EMPTY, Host, Reach
from samplicator.plan.spec import ProbeSpec, ReceiverSpec, Udp
from support.hosts import free_port

LOCAL = bytes([127, 0, 0, 1])


def spec(
    port: int, probe: str | ProbeSpec, *, engine: str = "raw", needed: bool = False, address: bytes = LOCAL
) -> ReceiverSpec:
    delivery = Udp(
        address=address, port=port, family=4, scope_id=0, host="", engine=engine, engine_why="",
        spoof=engine != "udp", source=None, checksum=True, ttl=64, tos=0, pause_us=0,
    )  # fmt: skip
    return ReceiverSpec("r", delivery, probe=ProbeSpec(probe) if isinstance(probe, str) else probe, needed=needed)


def stream(kind: str, port: int, path: str = "") -> ProbeSpec:
    return ProbeSpec(kind, LOCAL, port, 0, f"127.0.0.1:{port}", path)


def run(reach: Reach, now: float, seconds: float) -> list[float]:
    """Steps of 0.1 s; the times at which it came back."""
    back = []
    end = now + seconds
    while now < end:
        if reach.step(now):
            back.append(now)
        now += 0.1
        time.sleep(0.002)  # loopback answers within microseconds
    return back


def until(done: Callable[[], bool], reach: Reach, now: float, seconds: float) -> float:
    """Steps of 0.1 s until done; the time that took."""
    for step in range(round(seconds * 10)):
        reach.step(now + step / 10)
        if done():
            return step / 10
        time.sleep(0.005)
    raise AssertionError("waited in vain")


@contextlib.contextmanager
def udp(port: int = 0) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", port))
        sock.settimeout(1)
        yield sock


def silent(sock: socket.socket) -> bool:
    sock.setblocking(False)
    try:
        sock.recv(100)
    except BlockingIOError:
        return True
    return False


# ---- datagrams


@pytest.mark.parametrize(("probe", "payload"), [("udp", b""), ("ipfix", IPFIX_EMPTY)])
def test_closed_and_open_again(probe: str, payload: bytes) -> None:
    port = free_port()
    reach = Reach(spec(port, probe))
    assert run(reach, 100.0, 3.0) == []
    assert (reach.state, reach.why, reach.refusing) == (REFUSING, "the receiver's port is closed", True)
    with udp(port) as sock:
        back = run(reach, 103.0, 6.0)
        assert len(back) == 1
        assert 2.0 < back[0] - 103.0 < 4.5
        assert (reach.state, reach.why, reach.refusing) == (UP, "", False)
        assert sock.recv(100) == payload
    reach.close()


def test_where_somebody_waits_it_is_asked_more_often() -> None:
    port = free_port()
    reach = Reach(spec(port, "auto", needed=True))
    with udp(port):
        assert run(reach, 100.0, 3.0) == []
        assert reach.state == UP
    assert until(lambda: reach.state == REFUSING, reach, 103.0, 2.0) <= 0.7
    with udp(port):
        back = run(reach, 104.0, 5.0)
        assert len(back) == 1
        assert 2.0 < back[0] - 104.0 < 4.5
    reach.close()


def test_auto_asks_only_while_copies_are_refused() -> None:
    with udp() as sock:
        reach = Reach(spec(sock.getsockname()[1], "auto"))
        assert run(reach, 100.0, 5.0) == []
        assert silent(sock)
        reach.refused(105.0)
        assert reach.state == REFUSING
        assert len(run(reach, 105.0, 5.0)) == 1
        assert run(reach, 110.0, 3.0) == []
    reach.close()


@pytest.mark.parametrize(
    ("engine", "needed", "templates", "asked"),
    [
        ("raw", False, False, False),
        ("raw", False, True, True),
        ("raw", True, False, True),
        ("transparent", False, True, True),
        ("packet", True, False, True),
        ("udp", False, True, False),
        ("udp", True, True, False),
    ],
)
def test_whom_auto_disturbs(engine: str, needed: bool, templates: bool, asked: bool) -> None:
    """A receiver that is up sees probes only where nothing else would tell, and somebody wants to know."""
    with udp() as sock:
        reach = Reach(spec(sock.getsockname()[1], "auto", engine=engine, needed=needed))
        reach.templates = templates
        assert reach.asks == asked
        run(reach, 100.0, 5.0)
        assert silent(sock) != asked
    reach.close()


def test_auto_asks_whom_a_standby_waits_for_while_it_cannot_be_reached() -> None:
    with udp() as sock:
        reach = Reach(spec(sock.getsockname()[1], "auto", engine="udp", needed=True))
        reach.anxious = True
        run(reach, 100.0, 1.0)
        assert not silent(sock)
    reach.close()


def test_one_that_relapses_is_believed_later() -> None:
    with udp() as sock:
        reach = Reach(spec(sock.getsockname()[1], "auto"))
        waits, now = [], 100.0
        for _ in range(6):
            reach.refused(now)
            (back,) = run(reach, now, 70.0)[:1]
            waits.append(back - now)
            now = back + 0.5
        assert waits[0] < 4.5
        assert waits[1:] == sorted(waits[1:])
        assert waits[5] >= 30.0
    reach.close()


class Closed:
    """Ports of one host that refuse, or not, as its limit of ICMP errors has it. Stands in the place of Datagram."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, per_second: float = 1.0, burst: float = 6.0) -> None:
        self.now = 100.0
        self.open: set[int] = set()
        self.rate, self.burst, self.tokens, self.filled = per_second, burst, burst, 100.0
        self.chance = 1.0  # of an answer, by the limit over all peers
        self.error = Answer(REFUSING, "the receiver's port is closed")
        self.late = 0.0  # how long an answer takes
        self.random = random.Random(5)
        self.asked: list[tuple[float, int]] = []
        monkeypatch.setattr("samplicator.health.reach.Datagram", self.probe)

    def probe(self, address: bytes, port: int, scope_id: int, payload: bytes) -> Any:
        return Question(self, port)

    def answers(self, port: int) -> bool:
        self.asked.append((self.now, port))
        self.tokens = min(self.burst, self.tokens + (self.now - self.filled) * self.rate)
        self.filled = self.now
        if port in self.open or self.tokens < 1 or self.random.random() >= self.chance:
            return False
        self.tokens -= 1
        return True

    def play(self, reaches: list[Reach], seconds: float) -> list[tuple[float, int]]:
        """Ten looks a second; (when, port) of each return."""
        back = []
        for _ in range(round(seconds * 10)):
            self.now += 0.1
            back += [(self.now, reach.spec.udp.port) for reach in reaches if reach.step(self.now)]
        return back


class Question:
    """One probe of Closed."""

    def __init__(self, stand: Closed, port: int) -> None:
        self.stand, self.port = stand, port
        self.due = 0.0
        self.coming: list[float] = []

    @property
    def busy(self) -> bool:
        return self.due > 0

    def start(self, now: float) -> Answer | None:
        self.due = now + 0.2
        if self.stand.answers(self.port):
            self.coming.append(now + self.stand.late)
        return None

    def poll(self, now: float) -> Answer | None:
        if self.coming and now >= self.coming[0]:
            self.coming.pop(0)
            self.due = 0.0
            return self.stand.error
        if self.due and now >= self.due:
            self.due = 0.0
            return Answer(UP, sure=False)
        return None

    def close(self) -> None:
        self.due = 0.0


def of_one_host(count: int, **more: Any) -> list[Reach]:
    shared = Host()
    reaches = [Reach(spec(1000 + n, "udp", **more)) for n in range(count)]
    for reach in reaches:
        reach.stay_at(shared)
    return reaches


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize(("per_second", "burst"), [(1.0, 6.0), (1.0, 1.0), (2.0, 1.0), (100.0, 100.0)])
@pytest.mark.parametrize("needed", [False, True])
def test_a_closed_port_never_comes_back(
    monkeypatch: pytest.MonkeyPatch, count: int, per_second: float, burst: float, needed: bool
) -> None:
    """Whatever the limit of its host, and however many receivers there share it: and one that opens does."""
    stand = Closed(monkeypatch, per_second, burst)
    reaches = of_one_host(count, needed=needed)
    assert stand.play(reaches, 600.0) == []
    assert all(reach.state == REFUSING and reach.refusing for reach in reaches)
    stand.open.add(1000)
    opened = stand.now
    ((at, port),) = stand.play(reaches, 30.0)
    assert port == 1000
    assert at - opened < 3.5 * count + 1.5


@pytest.mark.parametrize("rate", [500.0, 4000.0, 20_000.0])
def test_silence_of_a_host_that_refuses_thousands_is_no_news(monkeypatch: pytest.MonkeyPatch, rate: float) -> None:
    """1,000 answers a second to all peers: most probes get none although the port is closed."""
    stand = Closed(monkeypatch)
    stand.chance = min(1.0, 1000.0 / rate)
    (reach,) = of_one_host(1)
    reach.copies_per_second = rate
    back = stand.play([reach], 600.0)
    assert len(back) <= 1  # one chance in a thousand each time
    stand.open.add(1000)
    stand.play([reach], 125.0)
    assert reach.state == UP


def test_a_router_that_speaks_late_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """host unreachable comes after three seconds of asking for it: until then there is silence."""
    stand = Closed(monkeypatch)
    stand.error, stand.late = Answer(UNREACHABLE, "host unreachable"), 3.0
    (reach,) = of_one_host(1)
    assert stand.play([reach], 300.0) == []
    assert reach.state == UNREACHABLE
    stand.open.add(1000)
    assert len(stand.play([reach], 12.0)) == 1


def test_receivers_of_other_hosts_do_not_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    stand = Closed(monkeypatch, 100.0, 100.0)
    reaches = [Reach(spec(1000 + n, "udp")) for n in range(20)]
    stand.play(reaches, 20.0)
    asked = [at for at, port in stand.asked if port == 1007]
    assert 15 <= len(asked) <= 20


def test_copies_count_as_sent_from_the_first_silence_on(monkeypatch: pytest.MonkeyPatch) -> None:
    stand = Closed(monkeypatch)
    (reach,) = of_one_host(1)
    stand.play([reach], 20.0)
    assert (reach.state, reach.refusing) == (REFUSING, True)
    stand.open.add(1000)
    stand.play([reach], 1.5)
    assert (reach.state, reach.refusing) == (REFUSING, False)
    stand.open.clear()
    stand.play([reach], 1.5)
    assert (reach.state, reach.refusing) == (REFUSING, True)


def test_a_datagram_that_comes_back_is_evidence() -> None:
    port = free_port()
    reach = Reach(spec(port, "udp"))
    run(reach, 100.0, 3.0)
    assert reach.state == REFUSING
    with udp(port) as sock:
        for step in range(30):
            reach.step(103.0 + step / 10)
            with contextlib.suppress(BlockingIOError):
                sock.setblocking(False)
                sock.sendto(b"echo", sock.recvfrom(100)[1])
            time.sleep(0.002)
            if reach.state == UP:
                break
        assert reach.state == UP
        assert step <= 14
    reach.close()


def test_a_service_that_flaps_is_believed_later_and_later() -> None:
    """A connection is an answer; one that fails again within a minute is no longer believed at once."""
    reach = Reach(spec(9, stream("tcp", 9), needed=True))
    returns, now = 0, 100.0
    while now < 400.0:
        bad = int(now) % 10 < 5
        returns += reach._judge(Answer(REFUSING, "refused") if bad else Answer(UP), now)
        now += 0.5
    assert 1 <= returns <= 3  # of 30
    reach.close()


def test_off_never_asks() -> None:
    reach = Reach(spec(free_port(), "off", needed=True))
    reach.refused(100.0)
    assert run(reach, 100.0, 5.0) == []
    assert reach.state == UP


def test_no_route_is_unreachable() -> None:
    probe = Datagram(bytes([198, 18, 255, 1]), 9, 0, b"")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect_ex", lambda sock, where: 101)  # ENETUNREACH
        assert probe.start(100.0) == Answer(UNREACHABLE, "network unreachable")
    assert not probe.busy


# ---- TCP


@contextlib.contextmanager
def tcp(port: int | None = None) -> Iterator[socket.socket]:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", free_port() if port is None else port))
        sock.listen(50)
        yield sock


def test_tcp_open_closed_and_open_again() -> None:
    with tcp() as sock:
        port = sock.getsockname()[1]
        reach = Reach(spec(free_port(), stream("tcp", port), needed=True))
        assert run(reach, 100.0, 2.0) == []
        assert reach.state == UP
    assert until(lambda: reach.state != UP, reach, 102.0, 2.0) <= 0.7
    assert (reach.state, reach.why) == (REFUSING, f"tcp://127.0.0.1:{port}: connection refused")
    assert not reach.refusing  # its port for datagrams may well be open
    with tcp(port):
        assert len(run(reach, 104.0, 2.0)) == 1
    reach.close()


def test_tcp_that_never_answers_is_down_the_second_time() -> None:
    """A full backlog: the kernel answers no SYN. One lost packet must not move exporters."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(0)
        port = sock.getsockname()[1]
        with contextlib.ExitStack() as stack:
            for _ in range(3):
                filler = stack.enter_context(socket.socket())
                filler.setblocking(False)
                filler.connect_ex(("127.0.0.1", port))
            time.sleep(0.05)
            reach = Reach(spec(port, stream("tcp", port), needed=True))
            took = until(lambda: reach.state != UP, reach, 100.0, 5.0)
            assert 2.0 <= took <= 2.6
            assert reach.why == f"tcp://127.0.0.1:{port}: no answer within 1 s"
            reach.close()


def test_copies_refused_outweigh_a_connection() -> None:
    with tcp() as sock:
        reach = Reach(spec(free_port(), stream("tcp", sock.getsockname()[1]), engine="udp"))
        reach.refused(100.0)
        assert run(reach, 100.0, 1.5) == []
        assert reach.state == REFUSING
        assert len(run(reach, 101.5, 3.0)) == 1
    reach.close()


def test_news_of_another_host_are_not_its_own() -> None:
    reach = Reach(spec(9, ProbeSpec("tcp", bytes([127, 0, 0, 9]), 1, 0, "127.0.0.9:1")))
    reach._judge(Answer(UNREACHABLE, "tcp://127.0.0.9:1: host unreachable"), 100.0)
    assert reach.state == REFUSING
    reach.close()


# ---- HTTP


class Web:
    """An HTTP server of one answer; the requests it got."""

    def __init__(self, answer: bytes | None) -> None:
        self.answer = answer
        self.requests: list[bytes] = []
        self.sock = socket.create_server(("127.0.0.1", 0))
        self.port = self.sock.getsockname()[1]
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self) -> None:
        kept = []
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.sock.accept()
                self.requests.append(connection.recv(4096))
                if self.answer is None:
                    kept.append(connection)
                    continue
                connection.sendall(self.answer)
                connection.close()

    def close(self) -> None:
        self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()
        self.thread.join(2)
        assert not self.thread.is_alive()


@pytest.mark.parametrize(
    ("answer", "state", "why"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", UP, ""),
        (b"HTTP/1.0 204 No Content\r\n\r\n", UP, ""),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc", UP, ""),
        (b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", REFUSING, "the answer is status 503"),
        (b"HTTP/1.1 301 Moved\r\nLocation: /\r\n\r\n", REFUSING, "the answer is status 301"),
        (b"SSH-2.0-OpenSSH_9\r\n", REFUSING, "the answer is not HTTP"),
        (b"", REFUSING, "the answer is not HTTP"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000, REFUSING, "the answer is not HTTP"),
    ],
)
def test_pages(answer: bytes, state: str, why: str) -> None:
    web = Web(answer)
    reach = Reach(spec(free_port(), stream("http", web.port, "/health?a=b")))
    until(lambda: bool(web.requests), reach, 100.0, 2.0)
    asked = reach._probe
    assert isinstance(asked, Page)
    assert until(lambda: not asked.busy, reach, 101.0, 1.5) < 1.0
    assert (reach.state, reach.why) == (state, why and f"http://127.0.0.1:{web.port}/health?a=b: {why}")
    head, *headers = web.requests[0].decode().split("\r\n")
    assert head == "GET /health?a=b HTTP/1.1"
    assert f"Host: 127.0.0.1:{web.port}" in headers
    assert "User-Agent: samplicator" in headers
    reach.close()
    web.close()


def test_a_page_that_never_comes() -> None:
    """Bounded to two seconds, and the thread that waits for it ends."""
    web = Web(None)
    before = threading.active_count()
    probe = Page(stream("http", web.port, "/"))
    assert probe.start(100.0) is None
    time.sleep(0.05)
    assert probe.poll(100.1) is None
    assert probe.busy
    assert threading.active_count() == before + 1
    assert probe.poll(101.9) is None
    answer = probe.poll(102.0)
    assert answer == Answer(REFUSING, f"http://127.0.0.1:{web.port}/: no answer within 2 s", sure=False)
    assert not probe.busy
    end = time.monotonic() + 1
    while threading.active_count() > before and time.monotonic() < end:
        time.sleep(0.01)
    assert threading.active_count() == before
    web.close()


def test_no_step_waits() -> None:
    """Eight receivers whose servers keep silent, 100 steps: none comes near the two seconds that an answer may take."""
    web = Web(None)
    reaches = [Reach(spec(9, stream("http", web.port, "/"), needed=True)) for _ in range(8)]
    worst = 0.0
    for step in range(100):
        begun = time.perf_counter()
        for reach in reaches:
            reach.step(100.0 + step / 10)
        worst = max(worst, time.perf_counter() - begun)
    assert worst < 1.0
    for reach in reaches:
        reach.close()
    web.close()


def test_local_trouble_is_no_news() -> None:
    """No descriptor left: nothing is known, nothing changes."""
    connection = Connection(stream("tcp", free_port()))
    assert connection._answer(24) is None  # EMFILE
    reach = Reach(spec(9, stream("tcp", 9)))
    with pytest.MonkeyPatch.context() as patch:

        def fails(*words: object) -> socket.socket:
            raise OSError(24, "too many open files")

        patch.setattr(socket, "socket", fails)
        assert run(reach, 100.0, 3.0) == []
    assert reach.state == UP


def test_another_probe_by_reload() -> None:
    port = free_port()
    reach = Reach(spec(port, "udp"))
    run(reach, 100.0, 1.0)
    assert reach.state == REFUSING
    with tcp() as sock:
        reach.adopt(spec(port, stream("tcp", sock.getsockname()[1])))
        assert reach.state == REFUSING
        assert len(run(reach, 101.0, 3.0)) == 1
    reach.adopt(spec(port, "udp"))
    run(reach, 105.0, 3.0)
    assert reach.state == REFUSING
    reach.adopt(spec(port, "off"))
    assert reach.state == UP
    reach.close()
