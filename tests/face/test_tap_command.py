"""`samplicator tap` against a daemon that plays its part: what is asked for, lines, JSON, how it ends, and daemons that
are slow, wrong, hostile, or gone.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import ssl
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samplicator.cli import api
from samplicator.cli.main import main
from samplicator.cli.tap.events import Datagram, End, Open, Tick, parse
from samplicator.cli.tap.memory import ASKED
from support import flows as model
from support.pki import make_pair
from support.process import wait_for
from support.tapped import OPEN, Daemon, Script, as_lines, datagram, script, tick

FIELDS: list[tuple[int, ...]] = [(8, 4), (12, 4), (7, 2), (11, 2), (4, 1), (2, 4), (1, 4)]
DATA = model.ipfix(100, 7, model.a_set(256, bytes(21 * 3)))
SYSLOG = b"<34>Oct 11 22:14:15 mymachine su: 'su root' failed\n"
ENDS = {"event": "end", "reason": "the daemon stops"}
Tap = Callable[..., int]


@pytest.fixture
def control(tmp_path: Path) -> Path:
    return tmp_path / "control"


@pytest.fixture
def tap(control: Path) -> Tap:
    return lambda *words: main(["tap", "--control", str(control), *words])


# ---------------------------------------------------------------------------------------------------- what is asked for


@pytest.mark.parametrize(
    ("words", "query"),
    [
        ([], {"rate": "1000"}),
        (["--exporter", "2001:db8::/32", "--listener", "a&b"], {"exporter": "2001:db8::/32", "listener": "a&b"}),
        (["--drops", "--rate", "10000", "--receiver", "nf1"], {"drops": "true", "rate": "10000", "receiver": "nf1"}),
        (["-c", "3"], {"count": "3", "rate": "1000"}),
    ],
)
def test_what_is_asked_for(words: list[str], query: dict[str, str], control: Path, tap: Tap) -> None:
    with Daemon(control, script(OPEN, ENDS)) as daemon:
        tap(*words)
    assert daemon.seen == [("/api/v1/tap", {"rate": "1000", **query})]


def test_over_the_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "auth").write_text("token")
    with Daemon(("127.0.0.1", 0), script(OPEN, datagram("in", SYSLOG), ENDS)) as daemon:
        url = f"http://127.0.0.1:{daemon.server.server_address[1]}/relay"  # type: ignore[misc]
        assert main(["tap", "--url", url, "--auth-file", str(tmp_path / "auth"), "-c", "1"]) == 0
    assert daemon.seen[0][0] == "/relay/api/v1/tap"
    assert daemon.headers[0]["Authorization"] == "Bearer token"
    assert "syslog auth.crit" in capsys.readouterr().out


def test_over_tls(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_pair(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "c.pem", tmp_path / "k.pem")
    events = [datagram("in", bytes(60_000)) for _ in range(20)]
    with Daemon(("127.0.0.1", 0), script(OPEN, *events, tick(20), ENDS)) as daemon:
        daemon.server.socket = context.wrap_socket(daemon.server.socket, server_side=True)
        url = f"https://127.0.0.1:{daemon.server.server_address[1]}"  # type: ignore[misc]
        assert main(["tap", "--url", url, "--ca-file", str(tmp_path / "c.pem"), "-c", "20"]) == 0
        assert main(["tap", "--url", url]) == 1
    out, err = capsys.readouterr()
    assert out.count("60000 bytes\n") == 20
    assert "certificate is not trusted" in err


# ---------------------------------------------------------------------------------------------------- lines


def test_lines(control: Path, tap: Tap, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    payload = model.ipfix(1, 7, model.a_set(2, model.template(256, FIELDS)), model.a_set(256, bytes(42)))
    events = [
        datagram("in", payload),
        datagram("sent", payload, receiver="nf1", way="raw"),
        datagram("sent", payload, receiver="own", way="udp"),
        datagram("sent", payload, receiver="six", way="udp"),
        datagram("sent", payload, receiver="new", way="door"),
        datagram("skipped", SYSLOG, receiver="nf1", exporter="2001:db8::7", listener="any"),
        datagram("failed", SYSLOG, receiver="nf1", way="raw", reason="no_neighbor"),
        datagram("dropped", SYSLOG, reason="acl", time_ns=0),
        datagram("dropped", b"", reason="truncated", length=9000),
    ]
    with Daemon(control, script(OPEN, *events, tick(9), ENDS)):
        assert tap("-c", "9") == 0
    time.tzset()
    said = "IPFIX domain 7 seq 1 len 98: templates 256 (sourceIPv4Address destinationIPv4Address sourceTransportPort "
    said += "destinationTransportPort protocolIdentifier packetDeltaCount ... 7 fields), data 256 x2"
    log = "syslog auth.crit len 51: Oct 11 22:14:15 mymachine su: 'su root' failed"
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        f"22:13:20.123456 in      198.18.0.1:2055 > flows  {said}",
        f"22:13:20.123456 sent    198.18.0.1:2055 > nf1 (raw, exporter's source)  {said}",
        f"22:13:20.123456 sent    198.18.0.1:2055 > own (udp, own source)  {said}",
        f"22:13:20.123456 sent    198.18.0.1:2055 > six (udp, source 2001:db8::1)  {said}",
        f"22:13:20.123456 sent    198.18.0.1:2055 > new (door)  {said}",
        f"22:13:20.123456 skipped [2001:db8::7]:2055 > nf1: freq  {log}",
        f"22:13:20.123456 failed  198.18.0.1:2055 > nf1: no_neighbor  {log}",
        f"--:--:--.------ dropped 198.18.0.1:2055 > flows: acl  {log}",
        "22:13:20.123456 dropped 198.18.0.1:2055 > flows: truncated  len 9000, the payload was not kept",
    ]
    assert "at most 1000 events per second and worker" in err
    assert err.endswith("\n9 shown, 0 not shown\n")


def test_json_is_what_the_daemon_says_and_what_was_decoded(
    control: Path, tap: Tap, capsys: pytest.CaptureFixture[str]
) -> None:
    events = [OPEN, datagram("in", DATA), datagram("dropped", b"", length=9000), {"event": "later"}, tick(2), ENDS]
    with Daemon(control, script(*events)):
        assert tap("--json") == 1
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [{k: v for k, v in item.items() if k != "decoded"} for item in found] == events
    data = [{"id": 256, "sets": 1, "records": 0, "uncounted": 1}]
    assert found[1]["decoded"] == {
        "protocol": "ipfix",
        "domain": 7,
        "sequence": 100,
        "templates": [],
        "more_templates": 0,
        "withdrawn": 0,
        "data": data,
    }
    assert found[2]["decoded"] is None


def test_names_change(control: Path, tap: Tap, capsys: pytest.CaptureFixture[str]) -> None:
    later = {**OPEN, "receivers": [{**OPEN["receivers"][0], "source": "own"}]}
    copy = datagram("sent", SYSLOG, receiver="nf1", way="udp")
    with Daemon(control, script(OPEN, copy, OPEN, later, copy, ENDS)):
        tap()
    out, err = capsys.readouterr()
    assert re.findall(r"nf1 \(.*?\)", out) == ["nf1 (udp, exporter's source)", "nf1 (udp, own source)"]
    assert err.count("listeners or receivers have changed") == 1


def test_a_sample_is_said_to_be_one(control: Path, tap: Tap, capsys: pytest.CaptureFixture[str]) -> None:
    with Daemon(control, script(OPEN, datagram("in", SYSLOG), tick(1, 70), tick(1, 80), ENDS)):
        tap("--rate", "1")
    err = capsys.readouterr().err
    assert err.count("not all is shown: more than --rate 1 per worker") == 1
    assert err.endswith("\n1 shown, 80 not shown\n")


def test_what_was_not_shown_is_known_after_the_last_datagram(
    control: Path, tap: Tap, capsys: pytest.CaptureFixture[str]
) -> None:
    with Daemon(control, script(OPEN, *[datagram("in", SYSLOG)] * 3, tick(2, 5))):
        assert tap("-c", "2") == 0
    out, err = capsys.readouterr()
    assert out.count("syslog") == 2
    assert err.endswith("\n2 shown, 5 not shown\n")


# ---------------------------------------------------------------------------------------------------- templates


def rows(exporter: str = "198.18.0.1", **more: Any) -> list[dict[str, Any]]:
    template = {"id": 256, "kind": "template", "fields": [{"bytes": length} for _, length in FIELDS]}
    row = {"exporter": exporter, "port": 2055, "protocol": "ipfix", "domain": 7, "templates": [template]}
    return [{**row, "protocol": "sflow5"}, {**row, **more}]


def test_templates_that_were_sent_before(control: Path, tap: Tap, capsys: pytest.CaptureFixture[str]) -> None:
    with Daemon(control, script(OPEN, *[datagram("in", DATA)] * 3, ENDS), rows()) as daemon:
        tap()
    assert daemon.asked_for("/templates") == [{"after": "0.0", "exporter": "198.18.0.1"}]
    assert capsys.readouterr().out.count("data 256 x3\n") == 3


def test_a_copy_whose_domain_was_replaced(control: Path, tap: Tap, capsys: pytest.CaptureFixture[str]) -> None:
    """Its template is that of the exporter's domain, where its domains agree; what is not replaced is not guessed."""
    copies = [datagram("sent", DATA, receiver=name, way="udp") for name in ("own", "nf1")]
    other = model.ipfix(1, 9, model.a_set(2, model.template(256, [(1, 8)])))
    with Daemon(control, script(OPEN, *copies, datagram("in", other), *copies, ENDS), rows(domain=8)):
        tap()
    found = re.findall(r"> (\w+) .*: data 256 (.*)", capsys.readouterr().out)
    assert found == [("own", "x3"), *[("nf1", "(template not seen)"), ("own", "(template not seen)")],
                     ("nf1", "(template not seen)")]  # fmt: skip


def test_an_exporter_is_asked_for_once(control: Path, tap: Tap, capsys: pytest.CaptureFixture[str]) -> None:
    with Daemon(control, script(OPEN, *[datagram("in", DATA)] * 3, ENDS), rows(domain=8)) as daemon:
        tap()
    assert len(daemon.asked_for("/templates")) == 1
    assert capsys.readouterr().out.count("data 256 (template not seen)\n") == 3


def test_so_many_exporters_are_asked_for(
    control: Path, tap: Tap, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("samplicator.cli.tap.memory.ASKED", 5)
    events = [datagram("in", DATA, exporter=f"198.18.1.{number}") for number in range(9)]
    with Daemon(control, script(OPEN, *events, ENDS), rows("198.18.1.2")) as daemon:
        tap()
    assert len(daemon.asked_for("/templates")) == 5
    assert ASKED == 1000
    assert capsys.readouterr().out.count("data 256 x3\n") == 1


@pytest.mark.parametrize("wrong", [[1], [{}], rows(templates=None), rows(domain="x"), rows(templates=[{"id": 1}])])
def test_wrong_templates_are_no_reason_to_end(
    wrong: list[Any], control: Path, tap: Tap, capsys: pytest.CaptureFixture[str]
) -> None:
    events = [datagram("in", DATA), datagram("in", DATA, exporter="198.18.0.9")]
    with Daemon(control, script(OPEN, *events, ENDS), wrong) as daemon:
        tap()
    out, err = capsys.readouterr()
    assert out.count("template not seen") == 2
    assert err.count("templates that were sent before are not known: the answer has an unexpected form") == 1
    assert len(daemon.asked_for("/templates")) == 1


# ---------------------------------------------------------------------------------------------------- how it ends


def test_the_daemon_ends_it(control: Path, tap: Tap, capsys: pytest.CaptureFixture[str]) -> None:
    with Daemon(control, script(OPEN, datagram("in", SYSLOG), ENDS)):
        assert tap() == 1
    assert "the daemon ended the stream: the daemon stops\n1 shown, 0 not shown\n" in capsys.readouterr().err


def test_the_daemon_is_gone(control: Path, tap: Tap, capsys: pytest.CaptureFixture[str]) -> None:
    with Daemon(control, script(OPEN, datagram("in", SYSLOG))) as daemon:
        assert tap() == 1
        assert "the daemon closed the stream\n1 shown" in capsys.readouterr().err
        daemon.broken = True
        assert tap() == 1
    assert re.search(r"error: control socket .*\n1 shown, 0 not shown\n", capsys.readouterr().err)
    control.unlink()
    assert tap() == 1
    assert "the socket does not exist" in capsys.readouterr().err


@pytest.mark.parametrize("drip", [b"", b" "])
def test_silence_is_a_lost_connection(
    drip: bytes, control: Path, tap: Tap, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where bytes come, but no line."""
    monkeypatch.setattr(api, "SILENT_SECONDS", 0.3)
    over = threading.Event()

    def play() -> Iterator[bytes]:
        yield as_lines(OPEN, datagram("in", SYSLOG))
        while not over.wait(0.05):
            if drip:
                yield drip

    with Daemon(control, play):
        try:
            assert tap() == 1
        finally:
            over.set()
    assert "nothing came for 0.3 s; the connection is lost\n1 shown" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("status", "body", "result", "text"),
    [
        (400, b'{"error": "rate must be 1..10000"}', 2, "error: rate must be 1..10000\n"),
        (400, b'{"error": "no receiver is named \\u001bx"}', 2, "error: no receiver is named \\x1bx\n"),
        (400, b"", 1, "answered 400"),
        (404, b'{"error": "404: Not Found"}', 1, "is this a samplicator of the same version?"),
        (401, b"", 1, "the credentials are missing or wrong"),
        (503, b'{"error": "4 taps are open"}', 1, "answered 503: 4 taps are open"),
        (302, b"", 1, "answered 302"),
    ],
)
def test_the_daemon_refuses(
    status: int, body: bytes, result: int, text: str, control: Path, tap: Tap, capsys: pytest.CaptureFixture[str]
) -> None:
    with Daemon(control, script()) as daemon:
        daemon.status, daemon.body = status, body
        assert tap() == result
    assert text in capsys.readouterr().err


HOSTILE = [
    b"<!doctype html>\n",
    b"[]\n",
    b"[" * 100_000 + b"\n",
    b"x" * 300_000,
    b"9" * 10_000 + b"\n",
    b'{"event": []}\n',
    b'{"event": "open", "listeners": {}}\n',
    b'{"event": "open", "listeners": [], "receivers": [1]}\n',
    as_lines(datagram("in", b"", exporter="x")),
    as_lines(datagram("in", b"", port=70000)),
    as_lines(datagram("in", b"", ttl=True)),
    as_lines(datagram("in", b"abc", length=2)),
    as_lines({**datagram("in", b""), "payload": "***"}),
    as_lines({**datagram("in", b""), "payload": 5}),
    as_lines(datagram("in", b"", time_ns=1 << 64)),
    as_lines(datagram("in", b"", time_ns=1e308)),
    as_lines(datagram("in", b"", listener=["x"])),
    b"\xff\xfe\n",
]


@pytest.mark.parametrize("piece", HOSTILE, ids=range(len(HOSTILE)))
@pytest.mark.parametrize("first", [b"", as_lines(OPEN)], ids=["at the start", "later"])
def test_what_is_no_event_ends_it(
    piece: bytes, first: bytes, control: Path, tap: Tap, capsys: pytest.CaptureFixture[str]
) -> None:
    with Daemon(control, lambda: iter([first + piece])):
        assert tap() == 1
    err = capsys.readouterr().err
    assert re.search(r"an event has an unexpected form|a line has more than 256 KiB", err)
    assert ("0 shown" in err) == bool(first)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)
KEYS = sorted({*datagram("in", b""), *OPEN, *tick(1), "reason"} - {"event"})
KINDS = st.sampled_from(["open", "in", "sent", "skipped", "failed", "dropped", "tick", "end", "other"])


@settings(max_examples=150, deadline=None)
@given(KINDS, st.dictionaries(st.sampled_from(KEYS), JSON, max_size=4), st.binary(max_size=40))
def test_any_json_is_an_event_or_refused(kind: str, more: dict[str, Any], junk: bytes) -> None:
    """And nothing else: no other exception, whatever stands in a key."""
    whole = {**datagram("in", b"abc"), **OPEN, **tick(1), "event": kind, **more}
    for text in (as_lines(whole), as_lines(more), junk):
        with contextlib.suppress(ValueError):
            value, event = parse(text)
            assert isinstance(value, dict)
            assert event is None or isinstance(event, Open | Datagram | Tick | End)


def test_nothing_reaches_the_terminal_unescaped(control: Path, tap: Tap, capsys: pytest.CaptureFixture[str]) -> None:
    bad = "\x1b[31m\u202e\x07\r\nx"
    places = {"exporter": f"fe80::1%{bad}", "listener": bad, "receiver": bad + "\ud800"}
    event = datagram("sent", b"<34>" + bad.encode(), **places, way=bad, reason=bad)
    opened = {**OPEN, "receivers": [{"name": places["receiver"], "address": bad, "port": 1, "source": bad}]}
    with Daemon(control, script(opened, event, {**event, "event": "failed"}, {"event": "end", "reason": bad})):
        tap()
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 2
    assert out.count("\\x1b[31m") == 9
    assert (out + err).replace("\n", "").isprintable()


# ---------------------------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--write", "x", "--json"], "--write cannot be combined with --json"),
        (["--url", "http://127.0.0.1:1"], "--url cannot be combined with --control or --config"),
        (["--ca-file", "x"], "need --url"),
    ],
)
def test_wrong_combinations(words: list[str], text: str, tap: Tap, capsys: pytest.CaptureFixture[str]) -> None:
    assert tap(*words) == 2
    assert text in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--exporter", "router1"], "must be an address, or a network such as 10.0.0.0/8"),
        (["--rate", "10001"], "1..10000"),
        (["--rate", "0"], "1..10000"),
        (["-c", "0"], "1..1000000"),
    ],
)
def test_wrong_arguments(words: list[str], text: str, tap: Tap, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        tap(*words)
    assert end.value.code == 2
    assert text in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------- signals, pipes


def begin(control: Path, *words: str, **more: Any) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-m", "samplicator", "tap", "--control", str(control), *words]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more)


def steady(over: threading.Event) -> Script:
    """A datagram and a tick every 50 ms."""

    def play() -> Iterator[bytes]:
        yield as_lines(OPEN)
        number = 0
        while not over.wait(0.05):
            number += 1
            yield as_lines(datagram("in", SYSLOG), tick(number))

    return play


@pytest.fixture
def over() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 0), (signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGHUP, 128 + signal.SIGHUP)],
)
def test_a_signal_ends_it_with_a_summary(
    number: signal.Signals, status: int, control: Path, over: threading.Event
) -> None:
    with Daemon(control, steady(over)), begin(control) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(number)
        _, err = process.communicate(timeout=30)
        over.set()
    assert process.returncode == status
    assert re.search(rb"\n[1-9]\d* shown, 0 not shown\n\Z", err)


def test_a_signal_ends_it_while_nothing_comes(control: Path, over: threading.Event) -> None:
    def play() -> Iterator[bytes]:
        yield as_lines(OPEN, datagram("in", SYSLOG), tick(1))
        over.wait()

    with Daemon(control, play), begin(control) as process:
        assert process.stdout is not None
        process.stdout.readline()
        begun = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
        assert time.monotonic() - begun < api.SILENT_SECONDS - 1  # it does not wait for the silence to be noticed
        over.set()
    assert (process.returncode, err.splitlines()[-1]) == (0, b"1 shown, 0 not shown")


def test_the_reader_of_a_pipe_leaves(control: Path, over: threading.Event) -> None:
    """Of lines and of a capture: no complaint."""
    with Daemon(control, steady(over)):
        for words in ([], ["--write", "-"]):
            with begin(control, *words) as process:
                assert process.stdout is not None
                assert process.stderr is not None
                process.stdout.read(10)
                process.stdout.close()
                assert process.wait(30) == 0
                assert b"rror" not in process.stderr.read()
        over.set()


def test_an_ascii_terminal(control: Path) -> None:
    text = "<34>gr\u00fc\u00df".encode()
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    with Daemon(control, script(OPEN, datagram("in", text), ENDS)), begin(control, env=environment) as process:
        out, _ = process.communicate(timeout=30)
    assert out.endswith(b"gr\\xfc\\xdf\n")


# ---------------------------------------------------------------------------------------------------- the file


def test_the_file_is_for_its_owner(control: Path, tap: Tap, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.pcapng"
    file.write_text("old")
    file.chmod(0o644)
    with Daemon(control, script(OPEN, datagram("in", SYSLOG), tick(1, 2), ENDS)):
        assert tap("--write", str(file), "-c", "1") == 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert SYSLOG in file.read_bytes()
    out, err = capsys.readouterr()
    assert (out, err.splitlines()[-1]) == ("", f"{file}: 1 shown, 2 not shown")


def test_a_file_that_cannot_be_created(
    control: Path, tap: Tap, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Daemon(control, script(OPEN, ENDS)):
        assert tap("--write", str(tmp_path / "none" / "a.pcapng")) == 2
    assert "none/a.pcapng: No such file or directory" in capsys.readouterr().err


def test_a_file_is_kept_when_the_daemon_is_gone(control: Path, tap: Tap, tmp_path: Path) -> None:
    (tmp_path / "a.pcapng").write_text("old")
    assert tap("--write", str(tmp_path / "a.pcapng")) == 1
    assert (tmp_path / "a.pcapng").read_text() == "old"


def test_a_full_disk(control: Path, tap: Tap, capsys: pytest.CaptureFixture[str]) -> None:
    with Daemon(control, script(OPEN, datagram("in", SYSLOG), tick(1), ENDS)):
        assert tap("--write", "/dev/full") == 1
    err = capsys.readouterr().err
    assert "error: /dev/full: No space left on device" in err
    assert err.splitlines()[-1].startswith("/dev/full: ")


def test_a_reader_sees_the_file_grow(control: Path, over: threading.Event, tmp_path: Path) -> None:
    """Whole blocks, while it is written."""
    file = tmp_path / "a.pcapng"
    with Daemon(control, steady(over)), begin(control, "--write", str(file)) as process:
        wait_for(lambda: file.exists() and file.read_bytes().count(SYSLOG) >= 3, "three packets in the file")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
        over.set()
    assert process.returncode == 0
    shown = re.search(rb"pcapng: (\d+) shown, 0 not shown\n\Z", err)
    assert shown is not None
    assert file.read_bytes().count(SYSLOG) == int(shown[1])
