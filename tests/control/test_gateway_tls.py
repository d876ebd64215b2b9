"""IPFIX over TLS (RFC 7011 section 11): both sides show certificates, and who is refused is refused with the reason."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import uvloop
from samplicator.gateways import line, stream
from samplicator.gateways.door import Datagram
from samplicator.plan.sessions import Door as Delivery
from samplicator.plan.sessions import DoorSpec, Tls
from support import flows as model
from support.flows import a_set, template
from support.peers import LOCALHOST, Collector, Stage, connect, ended, read, tcp_port, turned_away
from support.pki import make_pair
from support.worker import wait_until

TEACH = model.ipfix(0, 1, a_set(2, template(256, [(8, 4), (12, 4)])))
DATA = [model.ipfix(n, 1, a_set(256, n.to_bytes(8, "big"))) for n in range(50)]
EXPORTER = b"\xc6\x12\0\1"


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs of the relay, of a peer that is trusted (each is its own authority), and of a stranger."""
    place = tmp_path_factory.mktemp("pki")
    make_pair(place, "relay")
    make_pair(place, "peer", more="DNS:peer.example.net,IP:127.0.0.1")
    make_pair(place, "stranger", more="DNS:peer.example.net,IP:127.0.0.1")
    return place


@pytest.fixture(params=["uvloop", "asyncio"])
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    loops: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
        "uvloop": uvloop.new_event_loop,
        "asyncio": asyncio.new_event_loop,
    }
    made = Stage("tls", loops[request.param])
    yield made
    made.close()


def tls(pairs: Path, names: tuple[str, ...] = (), own: str = "relay", trusts: str = "peer") -> Tls:
    return Tls(str(pairs / f"{own}c.pem"), str(pairs / f"{own}k.pem"), str(pairs / f"{trusts}c.pem"), names)


def at(port: int, settings: Tls) -> DoorSpec:
    return DoorSpec("tls", ((LOCALHOST, port, 0),), message_bytes=1452, tls=settings)


def client(pairs: Path, name: str = "peer", *, newest: bool = True) -> ssl.SSLContext:
    """Of an exporter with the pair of this name, "" = without one."""
    context = ssl.create_default_context(cafile=str(pairs / "relayc.pem"))
    if not newest:
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    if name:
        context.load_cert_chain(pairs / f"{name}c.pem", pairs / f"{name}k.pem")
    return context


def server(pairs: Path, name: str = "peer", trusts: str = "relay", *, newest: bool = True) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(pairs / f"{name}c.pem", pairs / f"{name}k.pem")
    context.load_verify_locations(pairs / f"{trusts}c.pem")
    if not newest:
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context


@pytest.mark.parametrize("newest", [True, False])
def test_messages_come_in(stage: Stage, pairs: Path, newest: bool) -> None:
    port = tcp_port()
    door = stage.listener("in", at(port, tls(pairs, ("peer.example.net",))))
    stage.listening()
    exporter = connect(port, client(pairs, newest=newest))
    exporter.sendall(TEACH + b"".join(DATA))
    assert [one.payload for one in read(door, 51)] == [TEACH, *DATA]
    assert stage.hub.sessions()[0].gateway == "tls"


REFUSED = {
    "no certificate": ("", (), "the peer shows no certificate"),
    "a stranger": ("stranger", (), "the peer's certificate is refused: self-signed certificate"),
    "another name": (
        "peer",
        ("other.example.net",),
        "the peer's certificate is for peer.example.net, 127.0.0.1, not for other.example.net",
    ),
}


@pytest.mark.parametrize("newest", [True, False])
@pytest.mark.parametrize("case", REFUSED)
def test_who_is_refused_is_refused_with_the_reason(
    stage: Stage, pairs: Path, case: str, newest: bool, caplog: pytest.LogCaptureFixture
) -> None:
    pair, names, why = REFUSED[case]
    port = tcp_port()
    stage.listener("in", at(port, tls(pairs, names)))
    stage.listening()
    assert turned_away(port, client(pairs, pair, newest=newest))
    wait_until(lambda: stage.counters("in")["refused_handshake"] == 1, "the count")
    assert why in caplog.text
    assert stage.hub.sessions() == []
    exporter = connect(port, client(pairs)) if not names else None  # the others still come in
    wait_until(lambda: names or stage.hub.sessions(), "a good one")
    del exporter


def test_who_does_not_speak_tls(stage: Stage, pairs: Path, caplog: pytest.LogCaptureFixture) -> None:
    port = tcp_port()
    stage.listener("in", at(port, tls(pairs)))
    stage.listening()
    plain = connect(port)
    plain.sendall(TEACH)
    assert ended(plain)
    wait_until(lambda: "the peer does not speak TLS" in caplog.text, "the reason")


def test_who_says_nothing(
    stage: Stage, pairs: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "HANDSHAKE_SECONDS", 0.3)
    port = tcp_port()
    stage.listener("in", at(port, tls(pairs)))
    stage.listening()
    assert ended(connect(port))
    wait_until(lambda: stage.counters("in")["refused_handshake"] == 1, "the count")
    assert "is refused: " in caplog.text


def test_certificates_that_cannot_be_used_are_refused_before_a_plan_runs(
    stage: Stage, pairs: Path, tmp_path: Path
) -> None:
    with pytest.raises(OSError, match=r"nowhere.pem: No such file or directory"):
        stage.listener("in", at(1, Tls("nowhere.pem", str(pairs / "relayk.pem"), str(pairs / "peerc.pem"))))
    with pytest.raises(OSError, match=r"peerk.pem is not the key of .*relayc.pem; name the two files of one pair"):
        stage.listener("in", at(1, Tls(*(str(pairs / f) for f in ("relayc.pem", "peerk.pem", "peerc.pem")))))
    (tmp_path / "empty.pem").write_text("")
    with pytest.raises(OSError, match=r"empty.pem: OpenSSL finds no certificate in it"):
        stage.receiver(
            "out", out_to(1, Tls(str(pairs / "relayc.pem"), str(pairs / "relayk.pem"), str(tmp_path / "empty.pem")))
        )


def test_new_certificates_hold_for_new_sessions(stage: Stage, pairs: Path, tmp_path: Path) -> None:
    for name in ("relay", "peer"):
        for kind in "ck":
            shutil.copy(pairs / f"{name}{kind}.pem", tmp_path)
    port = tcp_port()
    door = stage.listener("in", at(port, tls(tmp_path)))
    stage.listening()
    first = connect(port, client(pairs))
    assert turned_away(port, client(pairs, "stranger"))
    shutil.copy(pairs / "strangerc.pem", tmp_path / "fresh")
    (tmp_path / "fresh").replace(tmp_path / "peerc.pem")
    second = connect(port, client(pairs, "stranger"))
    (tmp_path / "peerc.pem").unlink()  # the last good ones hold
    third = connect(port, client(pairs, "stranger"))
    for sock in (first, second, third):
        sock.sendall(TEACH)
    read(door, 3)


def test_a_new_plan_with_other_certificates(stage: Stage, pairs: Path) -> None:
    """Sessions stay, and new ones are judged by the new certificates."""
    port = tcp_port()
    old = stage.listener("in", at(port, tls(pairs)))
    stage.listening()
    first = connect(port, client(pairs))
    wait_until(lambda: len(stage.hub.sessions()) == 1, "the first session")
    other = at(port, tls(pairs, trusts="stranger"))
    new = stage.listener("in", other)
    stage.hub.runs("in", other)
    assert turned_away(port, client(pairs))
    second = connect(port, client(pairs, "stranger"))
    old.close()
    for sock in (first, second):
        sock.sendall(TEACH)
    assert [one.payload for one in read(new, 2)] == [TEACH, TEACH]


# ---- out


def out_to(port: int, settings: Tls) -> Delivery:
    return Delivery("tls", LOCALHOST, port, 0, "127.0.0.1", settings)


def put(stage: Stage, settings: Tls, port: int) -> None:
    door = stage.receiver("out", out_to(port, settings))
    wait_until(lambda: door.write([Datagram(EXPORTER, 2055, payload) for payload in (TEACH, *DATA)]) == 51, "room")


@pytest.mark.parametrize("newest", [True, False])
def test_messages_go_out(stage: Stage, pairs: Path, newest: bool) -> None:
    collector = Collector(context=server(pairs, newest=newest))
    put(stage, tls(pairs), collector.port)
    wait_until(lambda: len(collector.messages()) == 51, "all of them")
    assert collector.messages() == [TEACH, *DATA]
    collector.close()


def test_a_collector_with_another_name(stage: Stage, pairs: Path) -> None:
    collector = Collector(context=server(pairs))
    put(stage, tls(pairs, ("archive.example.net",)), collector.port)
    wait_until(lambda: bool(stage.hub.fault("out")), "the fault")
    assert stage.hub.fault("out") == (
        "not connected: the peer's certificate is for peer.example.net, 127.0.0.1, not for archive.example.net"
    )
    assert collector.messages() == []
    collector.close()


@pytest.mark.parametrize("newest", [True, False])
@pytest.mark.parametrize("strange", ["it", "we"])
def test_nothing_is_lost_to_a_collector_that_is_refused_or_refuses(
    stage: Stage, pairs: Path, strange: str, newest: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By TLS 1.3 it refuses us when for us the handshake is over."""
    monkeypatch.setattr(line, "LONGEST_SECONDS", 0.3)
    wrong = server(pairs, "stranger") if strange == "it" else server(pairs, trusts="stranger", newest=newest)
    collector = Collector(context=wrong)
    put(stage, tls(pairs), collector.port)
    wait_until(lambda: bool(stage.hub.fault("out")), "the fault")
    why = (
        "the peer's certificate is refused: self-signed certificate"
        if strange == "it"
        else "the peer refuses: TLS alert"
    )
    assert stage.hub.fault("out").startswith(f"not connected: {why}")
    collector.close()
    again = Collector(collector.port, server(pairs))
    wait_until(lambda: len(again.messages()) == 51, "all of them")
    assert again.messages() == [TEACH, *DATA]
    assert stage.counters("out")["opened"] == 1
    again.close()


# ---- openssl as a witness


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl here")
def test_openssl_sends_and_receives(stage: Stage, pairs: Path) -> None:
    own = ["-cert", str(pairs / "peerc.pem"), "-key", str(pairs / "peerk.pem"), "-CAfile", str(pairs / "relayc.pem")]
    port = tcp_port()
    door = stage.listener("in", at(port, tls(pairs)))
    stage.listening()
    command = ["openssl", "s_client", "-quiet", "-verify_return_error", "-connect", f"127.0.0.1:{port}", *own]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as exporter:
        assert exporter.stdin is not None
        exporter.stdin.write(TEACH + b"".join(DATA))
        exporter.stdin.flush()
        assert [one.payload for one in read(door, 51)] == [TEACH, *DATA]
        exporter.kill()
    port = tcp_port()
    kept = pairs / "received"
    command = ["openssl", "s_server", "-quiet", "-Verify", "1", "-verify_return_error", "-accept", str(port), *own]
    wanted = TEACH + b"".join(DATA)
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(kept.open("wb"))
        collector = subprocess.Popen(command, stdout=file, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
        stack.enter_context(collector)
        stack.callback(collector.kill)
        put(stage, tls(pairs), port)
        wait_until(lambda: len(kept.read_bytes()) >= len(wanted), "what openssl writes")
        assert kept.read_bytes() == wanted
