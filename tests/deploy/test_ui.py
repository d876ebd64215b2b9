"""The status page in a real browser, while the load changes."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from support import flows
from support.browser import Browser
from support.lab import Lab, Relay
from support.process import Process, command, wait_for

pytestmark = [pytest.mark.deploy_heavy, pytest.mark.netns]

PAGE = "http://127.0.0.1:9420/ui/"
HOSTILE = "<img src=x onerror=document.title='taken'>"
SCTP_PORT, TCP_PORT = 9000, 4739
LINK = "document.querySelector('nav a[href=\"#/sessions\"]')"
CELLS = "[...row.children].map((cell) => cell.textContent)"
ROWS = f"[...document.querySelectorAll('.scroll tbody tr')].map((row) => {CELLS})"
ASKED = "performance.getEntriesByType('resource').filter((one) => one.name.endsWith('/api/v1/gateways')).length"
TEXT = """[[listener]]
name = "flows"
listen = ["0.0.0.0:2055"]
[[listener]]
name = "more"
listen = ["0.0.0.0:6343"]
[[receiver]]
name = "near"
to = "198.18.1.2:9001"
[[receiver]]
name = "spoofed"
to = "198.18.2.2:9002"
spoof = true
[[receiver]]
name = "one"
to = "198.18.1.2:9003"
[[receiver]]
name = "two"
to = "198.18.2.2:9004"
[[pool]]
name = "pair"
members = ["one", "two"]
[[rule]]
to = ["near", "spoofed", "pair"]
"""


@pytest.fixture
def near(lab: Lab) -> socket.socket:
    for link, port in ((2, 9002), (1, 9003), (2, 9004)):
        lab.collector_socket(link, port)
    return lab.collector_socket(1, 9001)


@pytest.fixture
def relay(lab: Lab, near: socket.socket) -> Relay:
    return lab.samplicator(TEXT)


@pytest.fixture
def browser(lab: Lab, relay: Relay) -> Iterator[Browser]:
    opened = Browser(lab.relay.name)
    opened.look(1280)
    opened.go(PAGE)
    yield opened
    opened.close()


def load(lab: Lab, *, seconds: int = 60, exporters: int = 6, rate: int = 600, base: str = "198.18.64.0") -> Process:
    return lab.load(
        "--to", f"{lab.relay4()}:2055", "--source-base", base, "--exporters", exporters, "--source-port", 50_000,
        "--seconds", seconds, "--rate", rate, "--size", 200,
    )  # fmt: skip


def test_figures_are_those_of_the_api_and_follow_what_happens(
    lab: Lab, relay: Relay, near: socket.socket, browser: Browser
) -> None:
    loader = load(lab)
    wait_for(lambda: browser.run("document.querySelectorAll('.map a').length") >= 6 + 2 + 5, "exporters in the map", 20)
    wait_for(lambda: "600" in browser.text(".cards"), "the rate of what is received", 20)
    browser.go(PAGE + "#/receivers")
    wait_for(lambda: "refusing" not in browser.text() and "near" in browser.text(), "the receivers", 10)
    near.close()
    wait_for(lambda: relay.api("receivers")[0]["state"] == "refusing", "the receiver to refuse", 20)
    wait_for(lambda: "refusing" in browser.text(), "the page to say so", 2.0)
    lab.collector_socket(1, 9001)
    wait_for(lambda: relay.api("receivers")[0]["state"] == "up", "the receiver to be back", 60)
    wait_for(lambda: "refusing" not in browser.text(), "the page to say so", 2.0)
    browser.go(PAGE + "#/ledger")
    wait_for(lambda: "Receiver spoofed" in browser.text(), "the ledger", 10)
    browser.go(PAGE + "#/exporter/198.18.64.1")
    wait_for(lambda: "Exporter 198.18.64.1" in browser.text("h1"), "the exporter", 10)
    assert browser.trouble() == []
    loader.kill()
    relay.check_laws()


def test_numbers_at_rest_equal_those_of_the_api(lab: Lab, relay: Relay, browser: Browser) -> None:
    with lab.exporter.socket(socket.AF_INET) as sock:
        for number in range(1234):
            sock.sendto(b"a line %d" % number, (lab.relay4(), 2055))
    wait_for(lambda: relay.metrics().total("receive_datagrams_total") == 1234, "all to arrive")
    browser.go(PAGE + "#/ledger")
    wait_for(lambda: "1,234" in browser.text(), "the ledger to have them", 10)
    ledger = relay.api("ledger")
    shown = browser.text()
    for row in ledger["here"]:
        assert f"Listener {row['listener']}\narrived\n{row['datagrams'] + row['kernel_drops']:,}" in shown
    for row in ledger["after"]:
        assert f"Receiver {row['receiver']}\noffered\n{row['offered']:,}" in shown
    browser.go(PAGE + "#/receiver/spoofed")
    wait_for(lambda: "offered\n1,234" in browser.text(), "the receiver's copies", 10)
    assert browser.trouble() == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_pages_are_accessible_and_fit(lab: Lab, browser: Browser, width: int, scheme: str, tmp_path: Path) -> None:
    load(lab, seconds=40)
    browser.look(width, scheme=scheme)
    for page in (
        "",
        "exporters",
        "receivers",
        "listeners",
        "sessions",
        "ledger",
        "configuration",
        "receiver/near",
        "exporter/198.18.64.2",
    ):
        browser.go(f"{PAGE}#/{page}")
        wait_for(lambda: len(browser.text()) > 60, f"page {page!r}", 20)
        assert browser.violations() == [], page
        assert browser.run("document.documentElement.scrollWidth <= innerWidth"), f"page {page!r} is wider than {width}"
        browser.shot(tmp_path / f"{page.replace('/', '-') or 'overview'}-{width}-{scheme}.png")
    assert browser.trouble() == []


def test_it_can_be_used_with_the_keyboard_alone(lab: Lab, browser: Browser) -> None:
    load(lab)
    wait_for(lambda: browser.run("document.querySelectorAll('.map a').length") >= 8, "the map", 20)
    seen = []
    for _ in range(40):
        browser.press("Tab")
        seen.append(browser.run("document.activeElement.getAttribute('href') ?? document.activeElement.id"))
    assert {"#main", "#/exporters", "#/ledger", "theme", "#/receiver/spoofed"} <= set(seen)
    browser.run("[...document.querySelectorAll('nav a')].find((a) => a.textContent === 'Receivers').focus()")
    browser.press("Enter")
    wait_for(lambda: browser.text("h1") == "Receivers", "the page", 5)


def test_text_is_never_markup(lab: Lab, relay: Relay, browser: Browser) -> None:
    text = TEXT.replace('"near"', json.dumps(HOSTILE))
    relay.hangup(text)
    browser.go(PAGE)
    wait_for(lambda: browser.run("document.querySelectorAll('.map a').length") >= 7, "the map", 20)
    for page in ("", "receivers", "ledger", "configuration", "receiver/" + quote(HOSTILE, safe="")):
        browser.run(f"location.hash = {json.dumps('#/' + page)}")
        wait_for(lambda: "onerror" in browser.run("document.body.textContent"), f"the name on page {page!r}", 10)
        assert browser.run("document.images.length") == 0
        assert "taken" not in browser.run("document.title") or page.startswith("receiver/")
    assert [line for line in browser.trouble() if "error" in line and "onerror" not in line] == []


# ---------------------------------------------------------------------------------------------------- gateways


def with_gateways(lab: Lab) -> str:
    """A listener by UDP and TCP, and a receiver by SCTP, with a backup."""
    primary, backup = (f"sctp://{lab.peer4(link)}:{SCTP_PORT}" for link in (1, 2))
    return (
        f'[[listener]]\nname = "in"\nlisten = ["0.0.0.0:2055", "tcp://0.0.0.0:{TCP_PORT}"]\n'
        f'[[receiver]]\nname = {json.dumps(HOSTILE)}\nto = "{primary}"\n'
        f'backup = {{ to = "{backup}", mode = "redundant", fail_over_ms = 100, restore_s = 1 }}\n'
        f"[[rule]]\nto = [{json.dumps(HOSTILE)}]\n"
    )


def collector(lab: Lab, link: int) -> Process:
    """By SCTP: another relay."""
    control, path = lab.directory / f"far-{link}.sock", lab.directory / f"far-{link}.toml"
    path.write_text(
        f'[service]\nhttp = ""\ncontrol = "{control}"\n'
        f'[[listener]]\nname = "in"\nlisten = ["sctp://0.0.0.0:{SCTP_PORT}"]\n'
        '[[receiver]]\nname = "one"\nto = "127.0.0.1:9001"\n[[rule]]\nto = ["one"]\n'
    )
    started = lab.start([command("samplicator"), "run", "-c", str(path)], lab.collectors[link - 1], f"far-{link}")
    wait_for(control.exists, f"collector {link}")
    return started


class Senders:
    """IPFIX by UDP, from two exporters, and by TCP: every step is a template and a record of each. collectors: where
    it goes.
    """

    def __init__(self, lab: Lab, collectors: list[Process]) -> None:
        self.collectors = collectors
        self.datagrams = [lab.exporter_socket(f"198.18.70.{n}", 50_000 + n) for n in (1, 2)]
        self.stream = lab.exporter.socket(socket.AF_INET, socket.SOCK_STREAM)
        self.stream.connect((lab.relay4(), TCP_PORT))
        self.where = (lab.relay4(), 2055)
        self.number = 0

    def step(self) -> None:
        learnt = flows.a_set(2, flows.template(256, [(8, 4)]))
        message = flows.ipfix(self.number, 1, learnt, flows.a_set(256, b"\xc0\0\2\1"))
        for sock in self.datagrams:
            sock.sendto(message, self.where)
        self.stream.sendall(message)
        self.number += 1


@pytest.fixture
def senders(lab: Lab, relay: Relay, browser: Browser) -> Iterator[Senders]:
    """Of sessions to a collector and its backup, both of which are connected. Before, there is no page of sessions."""
    wait_for(lambda: "ready" in browser.text("#state"), "the first event", 10)
    assert browser.run(f"{LINK}.hidden") is True
    collectors = [collector(lab, link) for link in (1, 2)]
    relay.hangup(with_gateways(lab))
    wait_for(lambda: browser.run(f"{LINK}.hidden") is False, "a link to the page of sessions", 10)
    made = Senders(lab, collectors)

    def connected() -> bool:
        made.step()
        rows = relay.api("sctp")["exports"]
        return len(rows) == 3 and all(one["state"] == "connected" for row in rows for one in row["collectors"])

    wait_for(connected, "associations of three exporters", 60, 0.2)
    yield made
    made.stream.close()


def size(value: int) -> str:
    """As the page writes bytes, of less than a MiB."""
    return f"{value} B" if value < 1024 else f"{value / 1024:.{0 if value >= 102400 else 1}f} KiB"


def session_rows(relay: Relay) -> list[list[str]]:
    """What the page has to show of what the API says."""
    found = relay.api("sessions")["sessions"]
    return sorted(
        [
            row["name"], f"{row['gateway']} {row['side']}", row["exporter"], row["peer"],
            "backup in use" if row["backup_in_use"] else row["state"], f"{row['messages']:,}", size(row["octets"]),
            size(row["queue_bytes"]), row["why"],
        ]
        for row in found
    )  # fmt: skip


def association_rows(relay: Relay) -> list[list[str]]:
    def cells(export: dict[str, Any], one: dict[str, Any]) -> list[str]:
        first = one["role"] == "primary"
        pair = [export["waiting"], export["dropped_resources"], export["dropped_failure"]]
        return [
            export["exporter"], one["place"], one["role"], one["state"], f"{one['flows']:,}", f"{one['messages']:,}",
            *([f"{each:,}" for each in pair] if first else ["", "", ""]),
            "" if first else f"{export['fail_overs']:,}", one["why"],
        ]  # fmt: skip

    return sorted(cells(export, one) for export in relay.api("sctp")["exports"] for one in export["collectors"])


def test_sessions_are_those_of_the_api(lab: Lab, relay: Relay, senders: Senders, browser: Browser) -> None:
    browser.run(f"{LINK}.focus()")
    browser.press("Enter")
    wait_for(lambda: browser.text("h1") == "Sessions", "the page", 5)
    wait_for(lambda: sorted(browser.run(ROWS)) == session_rows(relay), "the rows of the API", 20)
    assert [row[1] for row in session_rows(relay)] == ["sctp out"] * 3 + ["tcp in"]
    browser.run("document.querySelector('input[type=search]').focus()")
    for letter in "TCP I":
        browser.press(letter)
    assert [row[:2] for row in browser.run(ROWS)] == [["in", "tcp in"]]
    for _ in range(5):
        browser.press("Backspace")
    browser.run("[...document.querySelectorAll('th button')].find((one) => one.textContent === 'Exporter').focus()")
    browser.press("Enter")
    names = sorted(row[2] for row in browser.run(ROWS))
    assert [row[2] for row in browser.run(ROWS)] == names
    browser.press("Enter")
    assert [row[2] for row in browser.run(ROWS)] == names[::-1]
    assert browser.run("document.images.length") == 0
    assert browser.trouble() == []


def test_a_backup_that_is_in_use_is_seen(
    lab: Lab, relay: Relay, senders: Senders, browser: Browser, tmp_path: Path
) -> None:
    """And the pages are accessible and fit while it is."""
    senders.collectors[0].kill()

    def backup() -> bool:
        senders.step()
        return [row["backup_in_use"] for row in relay.api("sessions")["sessions"]] == [False, True, True, True]

    wait_for(backup, "the backup of all exporters", 60, 0.2)
    detail = "receiver/" + quote(HOSTILE, safe="")
    for width, scheme in ((1280, "light"), (390, "dark"), (390, "light"), (1280, "dark")):
        browser.look(width, scheme=scheme)
        for page, rows in (("sessions", session_rows), (detail, association_rows)):
            browser.run(f"location.hash = {json.dumps('#/' + page)}")
            wait_for(lambda rows=rows: sorted(browser.run(ROWS)) == rows(relay), f"the rows of page {page!r}", 20)  # type: ignore[misc]
            assert browser.violations() == [], page
            assert browser.run("document.documentElement.scrollWidth <= innerWidth"), f"{page!r} is wider than {width}"
            assert browser.run("document.images.length") == 0
            browser.shot(tmp_path / f"{page[:8]}-{width}-{scheme}.png")
    assert [row[2:4] for row in association_rows(relay)] == [
        ["primary", "re-establishing"], ["backup", "fail-over"]
    ] * 3  # fmt: skip
    assert [row[9] for row in association_rows(relay)] == ["", "1"] * 3
    assert browser.trouble() == []


def test_no_page_of_sessions_without_a_gateway(relay: Relay, browser: Browser) -> None:
    browser.go(PAGE + "#/sessions")
    wait_for(lambda: "No listener and no receiver uses TCP, TLS or SCTP." in browser.text(), "the page to say so", 10)
    assert browser.run("document.querySelector('table').checkVisibility()") is False
    browser.go(PAGE + "#/receiver/near")
    wait_for(lambda: "Address" in browser.text(), "the receiver", 10)
    before = browser.run(ASKED)
    wait_for(lambda: browser.run(ASKED) >= before + 2, "the page to ask for gateways twice", 20)
    assert "SCTP" not in browser.text()
    assert browser.run("document.querySelectorAll('main li').length") == 1, "a state is listed once"


def test_a_daemon_that_ends_is_told(lab: Lab, relay: Relay, browser: Browser) -> None:
    wait_for(lambda: "ready" in browser.text("#state"), "the first event", 10)
    relay.end()
    wait_for(lambda: "does not answer" in browser.text("#trouble"), "the page to say so", 10)
