"""The daemon as a citizen: signals, exit statuses, pid file, host names that move, HTTP, control socket, a real
Prometheus.
"""

from __future__ import annotations

import json
import signal
import time
import urllib.parse
from pathlib import Path

import pytest
from support.lab import Lab, Relay
from support.process import command, tool, wait_for


def simple(lab: Lab, to: str | None = None, extra: str = "") -> str:
    return f"""
[[listener]]
name = "in"
listen = ["0.0.0.0:2055"]
[[receiver]]
name = "one"
to = "{to or lab.peer4(1) + ":9001"}"
{extra}
[[rule]]
to = ["one"]
"""


def burst(lab: Lab, count: int, rate: int = 0) -> int:
    load = lab.load(
        "--to", f"{lab.relay4()}:2055", "--source-base", "198.18.64.0", "--exporters", 10, "--source-port", 50_000,
        "--count", count, "--size", "100-500", "--rate", rate,
    )  # fmt: skip
    return load.result()["sent"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stop_drains_what_is_queued(lab: Lab, number: int) -> None:
    """The relay is held while its queue fills; told to stop, it must first forward everything that the kernel holds."""
    relay = lab.samplicator(simple(lab))
    sink = lab.sink(1, f"{lab.peer4(1)}:9001")
    relay.send_signal(signal.SIGSTOP)
    sent = burst(lab, 20_000)
    relay.send_signal(number)
    relay.send_signal(signal.SIGCONT)
    assert relay.wait(15) == 0
    got = lab.tally(sink)
    assert (got["received"], got["lost"], got["repeated"], got["reordered"]) == (sent, 0, 0, 0)


def test_stop_ends_in_time_while_datagrams_keep_coming(lab: Lab) -> None:
    relay = lab.samplicator(lab.with_service(simple(lab)).replace("[service]", "[service]\ndrain_timeout = 1.0"))
    lab.collector_socket(1, 9001)
    lab.load("--to", f"{lab.relay4()}:2055", "--seconds", 30, "--rate", 20_000, "--size", 100)
    wait_for(lambda: relay.metrics().total("receive_datagrams_total") > 1000, "the load")
    start = time.monotonic()
    relay.send_signal(signal.SIGTERM)
    assert relay.wait(10) == 0
    assert time.monotonic() - start < 5


def test_exit_status_5_when_nothing_arrives(lab: Lab) -> None:
    relay = lab.samplicate("-t", "700", "-p", "2055", f"{lab.peer4(1)}/9001", expected=(5,))
    sender = lab.exporter_socket("198.18.64.1", 1234)
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        sender.sendto(b"alive", (lab.relay4(), 2055))
        time.sleep(0.1)
    assert relay.alive, relay.tail()
    start = time.monotonic()
    assert relay.wait(10) == 5
    assert 0.4 < time.monotonic() - start < 4


def test_exit_status_1_for_errors(lab: Lab) -> None:
    for words in (["-p", "2055"], ["-p", "99999", "198.18.1.2"], ["-c", "/nowhere/rules"], ["-Z"], ["198.18.1.2:99"]):
        process = lab.start([command("samplicate"), *words], lab.relay, "samplicate-wrong")
        assert process.wait(20) == 1, process.tail()
        assert process.stderr().strip(), words
        assert "Traceback" not in process.stderr(), process.tail()
    process = lab.start([command("samplicate"), "-h"], lab.relay, "samplicate-help")
    assert process.wait(20) == 0


def test_pid_file_is_written_after_bind_and_removed(lab: Lab) -> None:
    path = lab.directory / "relay.pid"
    relay = lab.samplicate("-m", str(path), "-p", "2055", f"{lab.peer4(1)}/9001", http=False)
    wait_for(path.exists, "the pid file", 20)
    lab.wait_bound(lab.relay, [2055], relay, timeout=0.1)  # already bound when the file is there
    assert int(path.read_text()) == relay.pid
    relay.send_signal(signal.SIGTERM)
    assert relay.wait(10) == 0
    assert not path.exists()


def test_without_extra_options_only_udp_sockets_are_open(lab: Lab) -> None:
    relay = lab.samplicate("-p", "2055", f"{lab.peer4(1)}/9001", http=False)
    lab.wait_bound(lab.relay, [2055], relay)
    assert lab.relay.run("ss", "-Hltn") == ""
    unix = [line for line in lab.relay.run("ss", "-Hlxp").splitlines() if f"pid={relay.pid}," in line]
    assert unix == []


def test_background_leaves_a_daemon_behind(lab: Lab) -> None:
    path = lab.directory / "relay.pid"
    words = ["-f", "-m", str(path), "-p", "2055", f"{lab.peer4(1)}/9001"]
    starter = lab.start([command("samplicate"), *words], lab.relay, "samplicate-f")
    assert starter.wait(20) == 0, starter.tail()
    wait_for(path.exists, "the pid file")
    pid = int(path.read_text())
    try:
        assert pid != starter.pid
        tap = lab.tap(1, lambda seen: seen.port == 9001)
        lab.exporter_socket("198.18.64.1", 1234).sendto(b"hello", (lab.relay4(), 2055))
        assert len(tap.collect(1)) == 1
    finally:
        import os

        os.kill(pid, signal.SIGTERM)
    wait_for(lambda: not path.exists(), "the daemon to go")


def test_host_name_that_moves(lab: Lab) -> None:
    place = Path("/etc/netns") / lab.relay.name
    place.mkdir(parents=True)
    hosts = place / "hosts"

    def point(address: str) -> None:
        hosts.write_text(f"127.0.0.1 localhost\n{address} collector.test\n")

    point(lab.peer4(1))
    text = lab.with_service(simple(lab, "collector.test:9001")).replace(
        "[service]", "[service]\nresolve_interval = 0.3"
    )
    relay = lab.samplicator(text)
    for link in (1, 2):
        lab.collector_socket(link, 9001)  # a closed port would have the last copies counted as refused
    taps = [lab.tap(link, lambda seen: seen.port == 9001) for link in (1, 2)]
    sender = lab.exporter_socket("198.18.64.1", 1234)
    sender.sendto(b"first", (lab.relay4(), 2055))
    assert [one.payload for one in taps[0].collect(1)] == [b"first"]
    point(lab.peer4(2))

    def moved() -> bool:
        sender.sendto(b"later", (lab.relay4(), 2055))
        return bool(taps[1].drain())

    wait_for(moved, "copies at the new address", 15, 0.1)
    assert lab.peer4(2) in {row["address"] for row, _ in relay.metrics().select("receiver_info")}
    taps[0].clear()
    sender.sendto(b"last", (lab.relay4(), 2055))
    taps[1].collect(len(taps[1].seen) + 1)
    assert taps[0].drain() == []
    hosts.write_text("127.0.0.1 localhost\n")  # a name that is gone for a while must not stop its receiver
    sent_before = relay.at_rest().value("send_datagrams_total", receiver="one")
    time.sleep(1)  # three refreshes
    sender.sendto(b"still", (lab.relay4(), 2055))
    assert relay.at_rest().value("send_datagrams_total", receiver="one") == sent_before + 1


def test_reload_by_control_socket_and_by_changed_file(lab: Lab) -> None:
    relay = lab.samplicator(simple(lab))
    assert relay.get("/-/reload")[0] == 405
    assert relay.get("/-/reload", method="POST")[0] == 403, "over TCP, without a configured token"
    count = relay.reloads()[0]
    relay.config_path.write_text(lab.with_service(simple(lab, extra="freq = 2")))
    assert relay.get("/-/reload", method="POST", control=True)[0] == 200
    assert relay.reloads()[0] >= count + 1
    status, body = relay.get("/-/reload", method="POST", control=True)
    assert status == 200, body
    relay.config_path.write_text("[[rule]]\nto = ['nobody']\n")
    status, body = relay.get("/-/reload", method="POST", control=True)
    assert status >= 400
    assert b"nobody" in body
    assert relay.metrics().value("config_last_reload_successful") == 0
    # a file that is replaced is noticed without being told
    relay.write(lab.with_service(simple(lab, f"{lab.peer4(2)}:9001")))
    wait_for(lambda: relay.metrics().value("config_last_reload_successful") == 1, "the changed file to be taken", 15)
    tap = lab.tap(2, lambda seen: seen.port == 9001)
    lab.exporter_socket("198.18.64.1", 1234).sendto(b"moved", (lab.relay4(), 2055))
    assert len(tap.collect(1)) == 1


def test_commands_that_talk_to_the_daemon(lab: Lab) -> None:
    relay = lab.samplicator(simple(lab))
    status = lab.start([command("samplicator"), "status", "--control", str(relay.control_path)], None, "status")
    assert status.wait(20) == 0, status.tail()
    assert "one" in status.stdout()
    count = relay.reloads()[0]
    reload = lab.start([command("samplicator"), "reload", "--control", str(relay.control_path)], None, "reload")
    assert reload.wait(20) == 0, reload.tail()
    assert relay.reloads()[0] == count + 1


def test_pages(lab: Lab) -> None:
    relay = lab.samplicator(simple(lab))
    for path in ("/healthz", "/readyz", "/-/healthy", "/-/ready"):
        assert relay.get(path)[0] == 200, path
    for path in ("status", "receivers", "listeners", "config"):
        assert relay.api(path)
    status, body = relay.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert status == 200
    assert body.rstrip().endswith(b"# EOF")
    assert relay.get("/metrics", control=True)[0] == 200
    assert relay.get("/nowhere")[0] == 404


class Prometheus:
    """A real Prometheus in the relay's namespace that scrapes the relay every second."""

    def __init__(self, lab: Lab, relay: Relay) -> None:
        self.lab, self.relay = lab, relay
        config = lab.directory / "prometheus.yml"
        config.write_text(
            "global:\n  scrape_interval: 1s\nscrape_configs:\n- job_name: samplicator\n  static_configs:\n"
            "  - targets: ['127.0.0.1:9420']\n"
        )
        argv = [tool("prometheus"), f"--config.file={config}", f"--storage.tsdb.path={lab.directory}/tsdb"]
        argv.append("--web.listen-address=127.0.0.1:9090")
        self.process = lab.start(argv, lab.relay, "prometheus")

    def query(self, expression: str) -> list[dict]:
        path = "/api/v1/query?" + urllib.parse.urlencode({"query": expression})
        saved, Relay.HTTP = Relay.HTTP, ("127.0.0.1", 9090)
        try:
            status, body = self.relay.get(path)
        except OSError:
            assert self.process.alive, self.process.tail()
            return []
        finally:
            Relay.HTTP = saved
        return json.loads(body)["data"]["result"] if status == 200 else []


def test_a_real_prometheus_scrapes_the_daemon(lab: Lab) -> None:
    relay = lab.samplicator(simple(lab))
    lab.collector_socket(1, 9001)
    prometheus = Prometheus(lab, relay)
    wait_for(lambda: [row for row in prometheus.query("up") if row["value"][1] == "1"], "a first scrape", 30, 0.2)
    sent = burst(lab, 500)

    def there(expression: str) -> bool:
        return [row["value"][1] for row in prometheus.query(expression)] == [str(sent)]

    wait_for(lambda: there('samplicator_receive_datagrams_total{listener="in"}'), "the datagrams", 15, 0.2)
    wait_for(lambda: there('samplicator_send_datagrams_total{receiver="one"}'), "the copies", 15, 0.2)
    for name in ("samplicator_build_info", "samplicator_forward_latency_seconds_bucket", "process_cpu_seconds_total"):
        assert prometheus.query(name), name
