"""The `samplicator` command: texts and exit statuses as an operator meets them, in a process of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingMixIn, UnixStreamServer

import pytest
from samplicator.cli.drawing import duration, table
from samplicator.cli.main import main
from samplicator.cli.parser import make_parser
from samplicator.cli.running import status_lines
from samplicator.http import endpoints
from samplicator.views.kubernetes import services
from samplicator.views.listeners import listeners
from samplicator.views.receivers import pools, receivers
from samplicator.views.status import status
from support.state import make_readings, make_services, make_state

GOLDEN = Path(__file__).with_name("golden")

GOOD = """\
[[listener]]
name = "netflow"
listen = ["127.0.0.1:2055"]

[[receiver]]
name = "nfdump"
to = "192.0.2.10:9995"

[[rule]]
to = ["nfdump"]
"""

BAD = """\
[service]
log_level = "loud"

[[listener]]
name = "netflow"
listen = ["0.0.0.0:99104", "[::]:2055"]

[[receiver]]
name = "nfdump"
to = "192.0.2.10"
spoff = true

[[rule]]
from = ["10.0.0.0/33"]
to = ["nfdum"]
"""


def run(*words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "40"}  # which must not matter
    return subprocess.run(
        [sys.executable, "-m", "samplicator", *words], capture_output=True, text=True, timeout=60, env=environment
    )


@pytest.fixture
def write(tmp_path: Path) -> Iterator[Path]:
    """A directory with good.toml and bad.toml, which is the working directory."""
    (tmp_path / "good.toml").write_text(GOOD)
    (tmp_path / "bad.toml").write_text(BAD)
    before = os.getcwd()
    os.chdir(tmp_path)
    yield tmp_path
    os.chdir(before)


# ---------------------------------------------------------------------------------------------------- help


COMMANDS = (
    *("run", "check", "explain", "convert", "reload", "status", "ready", "domains", "sctp", "top", "tap", "witness"),
    *("demo", "schema"),
)


def test_help_is_the_golden_one() -> None:
    done = run("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (GOLDEN / "help.txt").read_text()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_shows_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert "\nexamples:\n  samplicator " + command in text
    assert max(map(len, text.splitlines())) <= 120


def test_examples_are_command_lines_that_parse(capsys: pytest.CaptureFixture[str]) -> None:
    import shlex

    for command in COMMANDS:
        with pytest.raises(SystemExit):
            make_parser().parse_args([command, "--help"])
        for line in capsys.readouterr().out.partition("examples:\n")[2].splitlines():
            words = shlex.split(line.partition(" > ")[0].partition(" | ")[0])
            if words[:1] == ["samplicator"]:
                words = words[1 : words.index("--")] if "--" in words else words[1:]
                assert make_parser().parse_args(words).command == command, line


def test_without_a_command_the_help_goes_to_stderr() -> None:
    done = run()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: samplicator")


def test_version() -> None:
    assert run("--version").stdout == "samplicator 0.1.0\n"


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["status", "--help"]])
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    code = (
        "import sys\nfrom samplicator.cli.main import main\n"
        f"try:\n    main({words!r})\nexcept SystemExit:\n    pass\n"
        "heavy = {'pydantic', 'aiohttp', 'rich', 'uvloop', 'orjson', 'prometheus_client', 'samplicator._fastpath'}\n"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------------------------------------------- check


def test_check_of_a_good_file(write: Path) -> None:
    good = write / "good.toml"
    good.write_text(good.read_text().replace(':9995"\n', ':9995"\ndomain = "unique"\n'))
    done = run("check", "-c", "good.toml")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "good.toml: ok: 1 listener (1 port), 1 receiver (1 udp), 1 rule, 1 worker\n"


def test_check_warns_where_templates_can_meet(write: Path) -> None:
    done = run("check", "-c", "good.toml")
    assert done.returncode == 0
    assert done.stderr.startswith(
        "warning: receiver 'nfdump': copies are not spoofed, so NetFlow v9 and IPFIX of several"
    )
    assert 'set spoof = true, source_port = "per-session" or domain = "unique"' in done.stderr


def test_check_warns_of_a_state_file_that_cannot_be_written(write: Path) -> None:
    Path("state.toml").write_text(f'[service]\nstate_file = "{write}/missing/state"\n' + GOOD)
    done = run("check", "-c", "state.toml")
    assert done.returncode == 0
    why = f"the directory {write}/missing does not exist; make it; until that changes, what was learnt"
    assert f"warning: state.toml:2: service.state_file: {why}" in done.stderr
    (write / "missing").mkdir()
    assert "state_file" not in run("check", "-c", "state.toml").stderr


def test_check_reports_everything_at_once(write: Path) -> None:
    done = run("check", "-c", "bad.toml")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (GOLDEN / "check.txt").read_text()


def test_check_of_no_file() -> None:
    done = run("check", "-c", "/nonexistent/samplicator.toml")
    assert done.returncode == 2
    assert "/nonexistent/samplicator.toml" in done.stderr
    assert "No such file" in done.stderr


def test_check_goes_on_after_names_that_do_not_resolve(write: Path) -> None:
    Path("names.toml").write_text(
        GOOD.replace("192.0.2.10:9995", "collector.invalid:9995")
        + '[[receiver]]\nname = "self"\nto = "127.0.0.1:2055"\n[[rule]]\nto = ["self"]\n'
    )
    done = run("check", "-c", "names.toml")
    assert done.returncode == 2
    assert "names.toml:7: receiver[0].to:" in done.stderr
    assert "collector.invalid" in done.stderr
    assert "is listener 'netflow' of this host" in done.stderr


def test_check_says_once_what_is_missing_and_tries_nothing_again(write: Path) -> None:
    Path("k8s.toml").write_text(
        GOOD.replace("192.0.2.10:9995", "k8s://monitoring/collector:flow")
        + '[[receiver]]\nname = "named"\nto = "collector.invalid:9995"\n[[rule]]\nto = ["named"]\n'
    )
    done = run("check", "-c", "k8s.toml")
    assert done.returncode == 0
    assert done.stderr.count("samplicator does not run in a pod with a service account") == 1
    assert done.stderr.count("collector.invalid") == 1
    assert "tries again" not in done.stderr
    assert all(line.startswith("warning: ") for line in done.stderr.splitlines())


def test_dump_plan_is_json(write: Path) -> None:
    done = run("check", "-c", "good.toml", "--dump-plan")
    assert done.returncode == 0
    plan = json.loads(done.stdout)
    assert plan["receivers"][0]["address"] == "192.0.2.10"
    assert plan["rules"][0] == {
        "text": "everything -> nfdump",
        "sources": [{"text": "", "family": 0, "address": "::", "mask": "::"}],
        "listeners": None,
        "receivers": [0],
        "pools": [],
        "stop": False,
    }


# ---------------------------------------------------------------------------------------------------- explain,
# convert, schema


def test_explain(write: Path) -> None:
    done = run("explain", "-c", "good.toml", "--from", "10.1.2.3", "--to-port", "2055")
    assert (done.returncode, done.stderr) == (0, "")
    assert "rule 1 matches: everything -> nfdump\n      every exporter [good.toml:9]\n  1 copy is sent:" in done.stdout
    answer = json.loads(run("explain", "-c", "good.toml", "--from", "10.1.2.3", "--to-port", "2055", "--json").stdout)
    assert answer[0]["copies"][0]["receiver"] == "nfdump"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["-c", "good.toml", "--from", "router", "--to-port", "2055"], "error: --from: 'router' must be an address"),
        (["-c", "good.toml", "--from", "10.1.2.3", "--to-port", "0"], "'0' must be a port 1..65535"),
        (["-c", "bad.toml", "--from", "10.1.2.3", "--to-port", "2055"], "there is no such key; did you mean 'spoof'?"),
    ],
)
def test_explain_refuses(write: Path, words: list[str], text: str) -> None:
    done = run("explain", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert text in done.stderr


def test_convert_gives_what_check_accepts(write: Path) -> None:
    Path("rules").write_text("10.0.0.0/8: 192.0.2.1/9995/10,5 # core\n[2001:db8::]/32: [2001:db8::1]/9995\n")
    done = run("convert", "rules")
    assert done.returncode == 0, done.stderr
    Path("converted.toml").write_text(done.stdout)
    assert run("check", "-c", "converted.toml").returncode == 0
    classic = run("convert", "--", "-S", "-p", "2055", "-c", "rules", "192.0.2.2/9996")
    assert classic.returncode == 0, classic.stderr
    assert "spoof = true" in classic.stdout
    assert '"0.0.0.0:2055"' in classic.stdout


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["convert"], "name a rule file, or write -- and then the samplicate options"),
        (["convert", "rules", "--", "-S"], "name a rule file, or write -- and then the samplicate options"),
        (["convert", "missing"], "missing"),
        (["convert", "--", "-h"], "cannot be converted"),
        (["convert", "--", "1.2.3.4/9000/0"], "frequency"),
    ],
)
def test_convert_refuses(write: Path, words: list[str], text: str) -> None:
    done = run(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert text in done.stderr


def test_schema() -> None:
    schema = json.loads(run("schema").stdout)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert set(schema["properties"]) == {"service", "datapath", "sctp", "listener", "receiver", "pool", "rule"}


# ---------------------------------------------------------------------------------------------------- status, reload


class _Daemon(ThreadingMixIn, UnixStreamServer):
    """Answers on a control socket with what it is given: page -> (status, value)."""

    daemon_threads = True

    def __init__(self, path: str, pages: dict[str, tuple[int, object]]) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, value = pages[self.path]
                body = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET

            def log_message(self, *words: object) -> None:
                pass

            def address_string(self) -> str:
                return "local"

        super().__init__(path, Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def server_close(self) -> None:
        """Its thread ends first: it would go on asking for a descriptor that is another's by then."""
        self.shutdown()
        super().server_close()


BACKUP_IN_USE = {
    "gateway": "sctp",
    "side": "out",
    "name": "nfdump",
    "sessions": {"connected": 1, "re-establishing": 1},
    "backups_in_use": 1,
}


def pages_of(**changes: object) -> dict[str, tuple[int, object]]:
    state, readings = make_state(), make_readings()
    return {
        "/api/v1/status": (200, {**status(state, readings), **changes}),
        "/api/v1/receivers": (200, receivers(readings)),
        "/api/v1/listeners": (200, listeners(readings)),
        "/api/v1/pools": (200, pools(readings)),
        "/api/v1/kubernetes": (200, services(make_services())),
        "/api/v1/gateways": (200, [BACKUP_IN_USE]),
    }


def test_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "s")
    with _Daemon(path, pages_of(pid=123)):
        assert main(["status", "--control", path]) == 0
        text = capsys.readouterr().out
        assert text.startswith("samplicator 9.9.9, pid 123, up 1m, ready\nconfiguration: a.toml, generation 7, ")
        assert "nfdump    192.0.2.10:9995      spoof   raw     up " in text
        assert "six       [2001:db8::10]:9995  own     udp     UNREACHABLE, for nfdump" in text
        assert re.search(r"^  six: unreachable for \d+m: there is no route to the receiver$", text, re.MULTILINE)
        assert "pool  balance        member  weight  exporters  state\n" in text
        assert "both  exporter-hash  nfdump       3        301  in\n" in text
        assert "both  exporter-hash  six          1        100  OUT\n" in text
        assert "six: failed: 4006 no_route, 4007 no_neighbor" in text
        assert "k8s://monitoring/collector:flow  collector-0  node-a  siem/0\n" in text
        assert "k8s://monitoring/collector:flow  collector-1  ?       siem/1\n" in text
        assert "  siem: NOT FOLLOWED for 1m: the API server does not answer: Connection refused\n" in text
        assert "\n  nfdump uses its backup for 1 of 2 sessions\n" in text
        assert "  logs: the Service logs/syslog has no ready pod (1 is not ready)\n" in text
        assert main(["status", "--control", path, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["listeners"][0]["name"] == "netflow"


def test_status_of_a_daemon_that_is_not_ready(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "s")
    with _Daemon(path, pages_of(ready=False, ready_why="starting")):
        assert main(["status", "--control", path]) == 3
        assert "NOT READY: starting" in capsys.readouterr().out


def test_reload(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = {"ok": True, "generation": 8, "diff": "1 receiver added", "problems": [], "seconds": 0.1}
    bad = {"ok": False, "generation": 7, "diff": "", "problems": ["a.toml:3: x: no"], "seconds": 0.1}
    pages: dict[str, tuple[int, object]] = {"/-/reload": (200, good)}
    path = str(tmp_path / "s")
    with _Daemon(path, pages):
        assert main(["reload", "--control", path]) == 0
        assert capsys.readouterr().out == "reloaded: generation 8, 1 receiver added\n"
        pages["/-/reload"] = (422, bad)
        assert main(["reload", "--control", path]) == 1
        assert capsys.readouterr().err == "error: a.toml:3: x: no\nnot reloaded: generation 7 keeps running\n"
        pages["/-/reload"] = (403, {"error": "not here"})
        assert main(["reload", "--control", path]) == 1
        assert capsys.readouterr().err == "error: not here\n"


def test_reload_of_a_file_that_cannot_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """systemctl reload: the file is broken now, and the daemon is to say what is wrong with it."""
    path = str(tmp_path / "s")
    monkeypatch.setattr("samplicator.cli.control.DEFAULT_CONTROL", path)
    file = tmp_path / "a.toml"
    file.write_text("[[receiver]\n")
    bad = {"ok": False, "generation": 7, "problems": ["a.toml:1: TOML syntax"], "warnings": []}
    half = {"ok": False, "generation": 8, "problems": ["worker 1 hangs"], "published": True, "warnings": ["w"]}
    pages: dict[str, tuple[int, object]] = {"/-/reload": (422, bad)}
    with _Daemon(path, pages):
        assert main(["reload", "-c", str(file)]) == 1
        assert "error: a.toml:1: TOML syntax\nnot reloaded: generation 7 keeps running" in capsys.readouterr().err
        pages["/-/reload"] = (422, half)
        assert main(["reload", "-c", str(tmp_path / "gone.toml")]) == 1
        said = capsys.readouterr().err
        assert said == "warning: w\nerror: worker 1 hangs\nreload failed, but its plan (generation 8) already runs\n"


def test_reload_without_a_control_socket_goes_by_signal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.toml"
    good = GOOD if "[service]" in GOOD else '[service]\ncontrol = ""\n' + GOOD
    file.write_text(good)
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: told.append((pid, number)))
    monkeypatch.setenv("MAINPID", "4711")
    assert main(["reload", "-c", str(file)]) == 0, capsys.readouterr().err
    assert told == [(4711, signal.SIGHUP)]
    file.write_text(good + '[[rule]]\nto = ["nobody"]\n')
    assert main(["reload", "-c", str(file)]) == 1
    assert "nobody" in capsys.readouterr().err
    assert len(told) == 1
    # the file names a control socket, the daemon runs without: it was switched on after the start
    file.write_text(good.replace('control = ""', f'control = "{tmp_path}/control"'))
    assert main(["reload", "-c", str(file)]) == 0, capsys.readouterr().err
    assert told[1:] == [(4711, signal.SIGHUP)]
    assert main(["reload", "--control", f"{tmp_path}/control"]) == 1
    monkeypatch.delenv("MAINPID")
    assert main(["reload", "-c", str(file)]) == 1
    assert "the socket does not exist" in capsys.readouterr().err
    assert len(told) == 2


@pytest.mark.parametrize("command", ["status", "reload"])
def test_errors_of_the_control_socket_say_what_to_do(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "s"
    assert main([command, "--control", str(path)]) == 1
    assert "the socket does not exist; start the daemon" in capsys.readouterr().err
    with socket.socket(socket.AF_UNIX) as left_over:
        left_over.bind(str(path))
    assert main([command, "--control", str(path)]) == 1
    assert "left from a daemon that has ended" in capsys.readouterr().err
    (tmp_path / "off.toml").write_text('[service]\ncontrol = ""\n')
    assert main([command, "-c", str(tmp_path / "off.toml")]) == 1
    assert "the daemon has no control socket" in capsys.readouterr().err
    (tmp_path / "on.toml").write_text(f'[service]\ncontrol = "{tmp_path}/other"\n')
    assert main([command, "-c", str(tmp_path / "on.toml")]) == 1
    assert f"control socket {tmp_path}/other" in capsys.readouterr().err
    (tmp_path / "own.toml").write_text(f'[service]\ncontrol = ""\nown_control = "{tmp_path}/own"\n')
    assert main([command, "-c", str(tmp_path / "own.toml")]) == 1
    assert f"control socket {tmp_path}/own" in capsys.readouterr().err


def test_ready_asks_first_at_the_socket_that_is_never_handed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, own, shared = tmp_path / "a.toml", str(tmp_path / "own"), str(tmp_path / "shared")
    with _Daemon(own, {"/readyz": (200, "own")}), _Daemon(shared, {"/readyz": (200, "shared")}):
        for keys, answer in (
            (f'control = "{shared}"\nown_control = "{own}"', "own"),
            (f'control = "{shared}"', "shared"),
            (f'control = ""\nown_control = "{own}"', "own"),
        ):
            file.write_text(f"[service]\n{keys}\n")
            assert main(["ready", "-c", str(file)]) == 0
            assert capsys.readouterr().out.strip().strip('"') == answer
    file.write_text('[service]\ncontrol = ""\n')
    assert main(["ready", "-c", str(file)]) == 1
    assert 'service.control and own_control are ""' in capsys.readouterr().err


@pytest.mark.parametrize(("alive", "status"), [(200, 0), (503, 3)])
def test_a_daemon_whose_listener_is_down_is_healthy(tmp_path: Path, alive: int, status: int) -> None:
    path = str(tmp_path / "control")
    with _Daemon(path, {"/readyz": (503, "listener 'a' is down"), "/healthz": (alive, "workers")}):
        assert main(["ready", "--control", path]) == 3
        assert main(["ready", "--control", path, "--healthy"]) == status


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: to become somebody else")
def test_a_socket_one_may_not_use_says_whose_it_is(tmp_path: Path) -> None:
    path = tmp_path / "s"
    for directory in (tmp_path, *tmp_path.parents):
        if directory.stat().st_mode & 0o001 == 0:
            directory.chmod(directory.stat().st_mode | 0o011)
    sock = endpoints.open_control(str(path))
    code = (
        "import os, grp, samplicator.cli.control as control\n"
        "os.setgroups([]), os.setgid(65534), os.setuid(65534)\n"
        "try:\n"
        f"    control.request({str(path)!r}, 'GET', '/')\n"
        "except control.Unreachable as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    sock.close()
    wanted = f"permission denied: {path} belongs to user root, group root, mode 660; run this with sudo"
    assert wanted in done.stdout, done.stderr


def test_columns_line_up() -> None:
    assert table(["name", "n"], [["a", 5], ["longer", 1234]]) == ["name       n", "a          5", "longer  1234"]
    assert table(["name", "n"], []) == ["name  n"]
    assert [duration(s) for s in (0, 59.9, 60, 3600, 90061)] == ["0s", "59s", "1m", "1h", "1d 1h 1m"]
    rest: dict[str, object] = {"listeners": [], "receivers": [], "pools": [], "kubernetes": [], "gateways": []}
    assert status_lines({"status": pages_of()["/api/v1/status"][1], **rest})
