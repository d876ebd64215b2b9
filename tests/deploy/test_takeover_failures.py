"""What fails during a take-over, at every step and on either side: the process that goes on loses and repeats nothing,
and nobody who may not take over gets a socket.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from samplicator.service.talk import Declined, Ended, Talk, Token, close_all
from support.lab import Lab, Relay
from support.process import Process, command, wait_for
from support.takeover import STEPS, Chain, Scraper, Visit, configuration, load, more

pytestmark = [pytest.mark.netns, pytest.mark.slow, pytest.mark.deploy_heavy]
HEAVY = pytest.mark.deploy_heavy


def control(lab: Lab) -> str:
    return str(lab.directory / "control.sock")


def drain(talk: Talk) -> None:
    """Reads until the other side declines or ends."""
    while True:
        _, fds = talk.receive(20, fds=250)
        close_all(fds)


def exact(lab: Lab, relay: Relay, sink: Process) -> None:
    """Nothing was lost, repeated or reordered, and the counters know of every datagram."""
    got = lab.tally(sink)
    assert got["received"] > 1000
    assert (got["lost"], got["repeated"], got["reordered"], got["corrupt"]) == (0, 0, 0, 0)
    metrics = relay.check_laws()
    assert metrics.value("receive_datagrams_total", listener="in") == got["received"]
    assert metrics.value("receive_kernel_drops_total", listener="in") == 0


def test_the_new_process_is_killed_at_each_step(lab: Lab) -> None:
    """The old one reads on. In the end a whole take-over works."""
    text = configuration(lab, more='[[rule]]\nto = ["flows"]\n')
    relays = Chain(lab, text)
    relay = relays.relay
    sink, loader = load(lab, 2000)
    more(relay, 500)
    for step in STEPS:
        visit = Visit(relay, control(lab), step)
        held = len(visit.fds)
        assert (held > 0) == (STEPS.index(step) >= STEPS.index("first socket"))
        visit.close()
        more(relay, 300)
        assert relay.get("/readyz")[0] == 200
    resumed = relay.stderr().count("the workers go on after a pause of")
    assert resumed == len(STEPS) - STEPS.index("pause"), relay.tail()
    more(relays.over(text), 500)
    loader.kill()
    exact(lab, relays.relay, sink)


@pytest.mark.parametrize("step", [pytest.param("pause", marks=HEAVY), pytest.param("first socket", marks=HEAVY), "all"])
def test_the_new_process_hangs(lab: Lab, step: str) -> None:
    """The old one reads on after a second, and tells the new one when that wakes up; it must not get the token."""
    text = configuration(lab)
    relay = lab.samplicator(text)
    sink, loader = load(lab, 2000)
    more(relay, 500)
    visit = Visit(relay, control(lab), step)
    wait_for(lambda: relay.said("it has not taken over within 1 s"), "the old process to go on", 20)
    assert "the workers go on after a pause of" in relay.stderr()
    more(relay, 500)
    assert visit.token is not None
    assert not visit.token.take()
    with pytest.raises(Declined, match="not taken over within"):
        drain(visit.talk)
    visit.close()
    loader.kill()
    exact(lab, relay, sink)


def test_it_hangs_with_the_token(lab: Lab) -> None:
    """Who has the token reads, if ever it wakes up: so the old process waits until the new one has ended."""
    relay = lab.samplicator(configuration(lab))
    sink, loader = load(lab, 1000)
    more(relay, 300)
    visit = Visit(relay, control(lab), "token")
    wait_for(lambda: relay.said("has taken over, but does not say so"), "the old process to notice", 20)
    assert "the workers go on" not in relay.stderr()
    visit.close()
    wait_for(lambda: relay.said("the workers go on after a pause of"), "the old process to go on", 20)
    more(relay, 500)
    loader.kill()
    exact(lab, relay, sink)


@pytest.mark.parametrize("after_ms", [0, *(pytest.param(delay, marks=HEAVY) for delay in (3, 10, 20, 30, 40, 60))])
def test_a_real_process_is_stopped(lab: Lab, after_ms: int) -> None:
    """SIGSTOP somewhere in a real take-over: one of the two reads in the end, and nothing is lost or repeated."""
    text = configuration(lab)
    relay = lab.samplicator(text)
    sink, loader = load(lab, 1000)
    more(relay, 300)
    fresh = lab.samplicator(text, "--takeover", ready=False, expected=(0, 1, -signal.SIGTERM))
    wait_for(lambda: control_busy(relay), "the take-over to begin", 30, 0.0005)
    time.sleep(after_ms / 1e3)
    fresh.send_signal(signal.SIGSTOP)
    outcomes = ("this process goes on", "has taken over")
    with contextlib.suppress(AssertionError):  # stopped before it has asked: nothing to decide, the old process reads
        wait_for(lambda: any(outcome in relay.stderr() for outcome in outcomes), "an outcome", 12)
    fresh.send_signal(signal.SIGCONT)
    wait_for(lambda: not relay.alive or not fresh.alive, "one of the two to end", 30)
    stays = fresh if fresh.alive else relay
    if stays is relay:
        assert fresh.wait(10) == 1
        assert "error: " in fresh.stderr()
    stays.wait_ready()
    more(stays, 500)
    loader.kill()
    exact(lab, stays, sink)


def control_busy(relay: Relay) -> bool:
    """Whether another process has a connection to the control socket: its sockets are one more."""
    with open(f"/proc/{relay.pid}/net/unix") as table:
        return sum(str(relay.lab.directory / "control.sock") in line for line in table) > 1


@pytest.mark.parametrize("step", [pytest.param("request", marks=HEAVY), pytest.param("welcome", marks=HEAVY), "all"])
def test_the_old_process_is_told_to_stop(lab: Lab, step: str) -> None:
    """It does not wait for a process that does not go on, and forwards what it has."""
    relay = lab.samplicator(configuration(lab))
    sink, loader = load(lab, 1000)
    more(relay, 300)
    loader.kill()
    visit = Visit(relay, control(lab), step)
    relay.end(timeout=5)
    with pytest.raises(Declined, match="it is stopping"):
        drain(visit.talk)
    visit.close()
    got = lab.tally(sink)
    assert (got["lost"], got["repeated"], got["reordered"], got["corrupt"]) == (0, 0, 0, 0)


def test_two_at_once(lab: Lab) -> None:
    relay = lab.samplicator(configuration(lab))
    first = Visit(relay, control(lab), "welcome")
    second = Visit(relay, control(lab), "request")
    with pytest.raises(Declined, match=f"process {os.getpid()} is taking over from it at this moment"):
        second.talk.receive(10)
    second.close()
    first.close()
    assert relay.get("/readyz")[0] == 200


def test_who_may_not(lab: Lab) -> None:
    """Another user, another network, another protocol; over TCP; without the header."""
    relay = lab.samplicator(configuration(lab))
    os.chmod(control(lab), 0o666)
    script = f"""
import os, socket
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
sock = socket.socket(socket.AF_UNIX); sock.connect({control(lab)!r})
sock.sendall(b"POST /-/takeover HTTP/1.1\\r\\nHost: x\\r\\nUpgrade: samplicator-takeover\\r\\n\\r\\n")
print(sock.recv(4096).decode())
"""
    stranger = lab.start([sys.executable, "-c", script], None, "stranger")
    assert stranger.wait(20) == 0
    assert "403" in stranger.stdout(), stranger.tail()
    assert "only the user of this process, or root" in stranger.stdout()
    for hello, why in (
        ({"network": [1, 2]}, "different network namespaces"),
        ({"protocol": 99}, "the new one protocol 99"),
    ):
        visit = Visit(relay, control(lab), "hello", **hello)
        with pytest.raises(Declined, match=why):
            visit.talk.receive(10)
        visit.close()
    assert relay.get("/-/takeover", method="POST")[0] == 403
    assert relay.get("/-/takeover", method="GET")[0] == 405
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(control(lab))
    sock.sendall(b"POST /-/takeover HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b" 426 " in sock.recv(4096)
    sock.close()
    managed = lab.samplicator(
        configuration(lab).replace("control.sock", "managed.sock").replace("9420", "9421").replace("2055", "2056"),
        ready=False,
        env={"NOTIFY_SOCKET": str(lab.directory / "nobody")},
    )
    wait_for(lambda: Path(lab.directory / "managed.sock").exists() and managed.said(": generation "), "the start", 30)
    visit = Visit(managed, str(lab.directory / "managed.sock"), "hello")
    with pytest.raises(Declined, match="use `systemctl restart` instead"):
        visit.talk.receive(10)
    visit.close()


def test_hostile_messages(lab: Lab) -> None:
    """Half a message, a long one, thousands of descriptors, nonsense in the pause: no descriptor stays, all goes on."""
    relay = lab.samplicator(configuration(lab))
    before = len(os.listdir(f"/proc/{relay.pid}/fd"))

    def free(step: str) -> Visit | None:
        try:
            return Visit(relay, control(lab), step)
        except Declined as no:
            if "at this moment" not in str(no):
                raise
            return None

    def send(step: str, data: bytes, fds: int = 0) -> None:
        visit = wait_for(lambda: free(step), "the visit before to be over", 20)
        sock = visit.talk._sock
        sock.settimeout(5)
        with contextlib.suppress(OSError):
            if fds:
                null = os.open(os.devnull, os.O_RDONLY)
                for _ in range(fds // 250):
                    socket.send_fds(sock, [data], [null] * 250)
                os.close(null)
            else:
                sock.sendall(data)
        with contextlib.suppress(Declined, Ended):
            drain(visit.talk)
        visit.close()

    send("request", b"\xff\xff\xff\xff")
    send("request", b"\0\0\0\2{}")
    send("request", b"\0\0\0\x04[1]]")
    send("request", b"\0\0\0\x12" + b'{"say": "hello"}  ')
    send("request", b"x", 5000)
    send("welcome", b"\0\0\0\x0f" + b'{"say": "taken"}'[:15])
    send("all", b"\0\0\0\x10" + b'{"say": "hello"}')
    send("all", b"x" * 100, 5000)
    wait_for(lambda: len(os.listdir(f"/proc/{relay.pid}/fd")) <= before, "descriptors to be closed", 20)
    assert relay.get("/readyz")[0] == 200
    assert "Traceback" not in relay.stderr()
    relays = [relay, lab.samplicator(configuration(lab), "--takeover", ready=False)]
    assert relay.wait(30) == 0
    relays[1].wait_ready()


# ---------------------------------------------------------------------------------------------------- the old one fails


class OldOne:
    """The process before, played by the test: answers on the control socket, up to a step, then ends or declines."""

    def __init__(self, path: str, play: Callable[[Talk], None], head: bytes = b"HTTP/1.1 101 x\r\n\r\n") -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.bind(path)
        self.sock.listen(5)
        self.visits = 0
        self._play = play
        self._head = head
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.sock.accept()
                self.visits += 1
                while b"\r\n\r\n" not in connection.recv(4096):
                    pass
                connection.sendall(self._head)
                talk = Talk(connection)
                with contextlib.suppress(Ended):
                    self._play(talk)
                talk.close()

    def end(self) -> None:
        self.sock.close()


@pytest.fixture
def udp(lab: Lab) -> Iterator[socket.socket]:
    """A listener's socket with a datagram in it."""
    sock = lab.relay.socket(socket.AF_INET)
    sock.bind(("0.0.0.0", 2055))
    exporter = lab.exporter_socket("198.18.64.7", 5000)
    exporter.sendto(b"it waits", (lab.relay4(), 2055))
    yield sock
    sock.close()


def one_listener(lab: Lab) -> str:
    return configuration(lab, listen='"0.0.0.0:2055"', workers=1)


@pytest.mark.parametrize(
    "last", [*(pytest.param(step, marks=HEAVY) for step in ("upgrade", "welcome", "pause", "all")), "sockets"]
)
def test_the_old_process_is_killed(lab: Lab, udp: socket.socket, last: str) -> None:
    """The new one starts all the same, with the sockets that it has got."""
    seen = lab.tap(1, lambda one: one.port == 9001)

    def play(talk: Talk) -> None:
        old.end()  # nobody else gets an answer
        os.unlink(control(lab))
        if last == "upgrade":
            return
        talk.expect("hello", 10)
        token = Token.new()
        talk.send("welcome", [token.fileno()], protocol=1, version="0", pid=1)
        token.close()
        if last == "welcome":
            return
        talk.expect("pause", 10)
        if last == "pause":
            return
        talk.send("sockets", [udp.fileno()], labels=["any"])
        if last == "sockets":
            return
        talk.send("pages", [], keys=[])
        talk.send("all", sockets=1, paused_ns=1)

    if last in ("upgrade", "welcome", "pause"):
        udp.close()
    old = OldOne(control(lab), play)
    fresh = lab.samplicator(one_listener(lab), "--takeover")
    if last in ("sockets", "all"):
        assert [one.payload for one in seen.collect(1)] == [b"it waits"]
    assert fresh.get("/readyz")[0] == 200


@pytest.mark.parametrize(
    ("head", "play", "text"),
    [
        pytest.param(b"HTTP/1.1 404 Not Found\r\n\r\n", None, "a version that cannot be taken over from", marks=HEAVY),
        pytest.param(b'HTTP/1.1 403 x\r\n\r\n{"error": "not you"}', None, "not you", marks=HEAVY),
        pytest.param(b"HTTP/1.1 101 x\r\n\r\n", "no", "for a reason", marks=HEAVY),
        pytest.param(b"HTTP/1.1 101 x\r\n\r\n", "garbage", "it sent", marks=HEAVY),
        pytest.param(b"HTTP/1.1 101 x\r\n\r\n", "paused", "for a reason", marks=HEAVY),
        (b"HTTP/1.1 101 x\r\n\r\n", "resumed", "has resumed"),
    ],
)
def test_the_old_process_declines(lab: Lab, udp: socket.socket, head: bytes, play: str | None, text: str) -> None:
    """The new one ends with an error that says why, and has read nothing."""

    def run(talk: Talk) -> None:
        talk.expect("hello", 10)
        if play == "no":
            talk.send("no", why="for a reason", again=False)
        elif play == "garbage":
            talk._sock.sendall(b"\0\0\0\x05hello")
        elif play in ("paused", "resumed"):
            token = Token.new()
            talk.send("welcome", [token.fileno()], protocol=1, version="0", pid=1)
            talk.expect("pause", 10)
            talk.send("sockets", [udp.fileno()], labels=["any"])
            talk.send("pages", [old.sock.fileno()], keys=["control"])
            if play == "paused":
                talk.send("no", why="for a reason", again=False)
            else:
                assert token.take()
                talk.send("all", sockets=1, paused_ns=1)
                with contextlib.suppress(Declined):
                    drain(talk)
            token.close()

    old = OldOne(control(lab), run if play else lambda talk: None, head)
    fresh = lab.samplicator(one_listener(lab), "--takeover", ready=False, expected=(1,))
    assert fresh.wait(30) == 1
    assert text in fresh.stderr(), fresh.tail()
    assert Path(control(lab)).exists()  # the old one answers there
    old.end()
    udp.settimeout(5)
    assert udp.recv(100) == b"it waits"


def test_it_is_asked_again(lab: Lab, udp: socket.socket) -> None:
    """A process that is stopping says so; when it is gone, the new one starts."""

    def play(talk: Talk) -> None:
        talk.expect("hello", 10)
        talk.send("no", why="it is stopping", again=True)
        if old.visits == 3:
            udp.close()
            old.end()

    old = OldOne(control(lab), play)
    lab.samplicator(one_listener(lab), "--takeover")
    assert old.visits == 3


# ---------------------------------------------------------------------------------------------------- around it


def test_nobody_is_there(lab: Lab) -> None:
    """No socket file, or one that a killed process has left: an ordinary start."""
    text = configuration(lab)
    first = lab.samplicator(text, "--takeover", expected=(-signal.SIGKILL,))
    assert first.said("there is nothing to take over")
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert Path(control(lab)).exists()
    lab.samplicator(text, "--takeover")
    nameless = lab.samplicator(text.replace(control(lab), ""), "--takeover", ready=False, expected=(1,))
    assert nameless.wait(20) == 1
    assert re.search(
        r"toml:\d+: service\.control: --takeover needs service\.control, .*; write the path", nameless.stderr()
    )


def test_linger_and_ready(lab: Lab) -> None:
    """Two containers of one host: each answers for itself on own_control, and the old one waits to be ended."""

    def text(name: str) -> str:
        own = f'own_control = "{lab.directory}/{name}.own"\n'
        return configuration(lab).replace("[datapath]", f"{own}[datapath]", 1)

    def ready(relay: Relay) -> tuple[int, str]:
        asked = lab.start([command("samplicator"), "ready", "-c", str(relay.config_path)], lab.relay, "ready")
        return asked.wait(20), asked.stdout().strip() + asked.stderr().strip()

    old = lab.samplicator(text("old"), "--takeover", "--linger")
    assert ready(old) == (0, "ok")
    sink, loader = load(lab, 1000)
    more(old, 300)
    new = lab.samplicator(text("new"), "--takeover", "--linger", ready=False)
    wait_for(lambda: old.said("waiting for SIGTERM"), "the old process to hand over", 30)
    wait_for(lambda: ready(new)[0] == 0, "the new process to be ready", 30)
    assert ready(old) == (3, f"process {new.pid} has taken over from this one")
    with open(f"/proc/{old.pid}/net/udp") as table:
        inodes = {line.split()[9] for line in table if ":0807 " in line}
    links = [os.readlink(f"/proc/{old.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{old.pid}/fd") if fd.isdigit()]
    assert inodes
    assert not [link for link in links if link.strip("socket:[]") in inodes], "the old process has let go of them"
    more(new, 500)
    assert old.alive
    assert old.end() == 0
    assert ready(old)[0] == 1
    more(new, 300)
    loader.kill()
    exact(lab, new, sink)


@HEAVY
def test_the_configuration_differs(lab: Lab) -> None:
    """More and fewer workers, other listeners, another port of the pages."""
    text = configuration(lab, workers=2, listen='"0.0.0.0:2055", "[::]:2055"')
    relays = Chain(lab, text)
    sink, loader = load(lab, 1500)
    more(relays.relay, 300)
    for workers, listen in ((4, '"0.0.0.0:2055", "0.0.0.0:2057"'), (1, '"[::]:2055"'), (2, '"0.0.0.0:2055"')):
        relays.over(configuration(lab, workers=workers, listen=listen))
        more(relays.relay, 500)
    moved = configuration(lab, workers=2, listen='"0.0.0.0:2055"').replace("127.0.0.1:9420", "127.0.0.1:9429")
    last = lab.samplicator(moved, "--takeover", ready=False)
    assert relays.relay.wait(30) == 0
    last.HTTP = ("127.0.0.1", 9429)  # type: ignore[misc]
    last.wait_ready()
    loader.kill()
    got = lab.tally(sink)
    assert (got["lost"], got["repeated"], got["corrupt"]) == (0, 0, 0)


def test_it_cannot_start_and_the_old_one_goes_on(lab: Lab) -> None:
    """The HTTP port of the new configuration belongs to another program."""
    relay = lab.samplicator(configuration(lab))
    taken = lab.relay.socket(socket.AF_INET, socket.SOCK_STREAM)
    lab.closers.append(taken.close)
    taken.bind(("127.0.0.1", 9999))
    taken.listen()
    sink, loader = load(lab, 1000)
    more(relay, 300)
    scraper = Scraper(lambda: relay.get("/metrics"))
    text = configuration(lab).replace("127.0.0.1:9420", "127.0.0.1:9999")
    fresh = lab.samplicator(text, "--takeover", ready=False, expected=(1,))
    assert fresh.wait(30) == 1
    assert "9999" in fresh.stderr()
    more(relay, 500)
    scraper.end()
    assert scraper.failures == []
    loader.kill()
    exact(lab, relay, sink)
