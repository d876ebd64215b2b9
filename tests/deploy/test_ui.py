"""The status page in a real browser, while the load changes."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from support.browser import Browser
from support.lab import Lab, Relay
from support.process import Process, wait_for

pytestmark = [pytest.mark.deploy_heavy, pytest.mark.netns]

PAGE = "http://127.0.0.1:9420/ui/"
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
    name = "<img src=x onerror=document.title='taken'>"
    text = TEXT.replace('"near"', json.dumps(name))
    relay.hangup(text)
    browser.go(PAGE)
    wait_for(lambda: browser.run("document.querySelectorAll('.map a').length") >= 7, "the map", 20)
    for page in ("", "receivers", "ledger", "configuration", "receiver/" + quote(name, safe="")):
        browser.run(f"location.hash = {json.dumps('#/' + page)}")
        wait_for(lambda: "onerror" in browser.run("document.body.textContent"), f"the name on page {page!r}", 10)
        assert browser.run("document.images.length") == 0
        assert "taken" not in browser.run("document.title") or page.startswith("receiver/")
    assert [line for line in browser.trouble() if "error" in line and "onerror" not in line] == []


def test_a_daemon_that_ends_is_told(lab: Lab, relay: Relay, browser: Browser) -> None:
    wait_for(lambda: "ready" in browser.text("#state"), "the first event", 10)
    relay.end()
    wait_for(lambda: "does not answer" in browser.text("#trouble"), "the page to say so", 10)
