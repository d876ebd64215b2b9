"""A browser in a laboratory: headless Chromium in a namespace, driven line by line.

`Browser` starts this file as a process in the namespace; it reads one JSON list per line, [what, argument], and answers
with one line, {"ok": value} or {"error": text}. Invariants: what the page says on its console, errors, and requests
that lead elsewhere are kept and shown by `trouble`; the browser ends with its process. Used by tests/deploy. Must never
reach beyond the namespace.
"""

from __future__ import annotations

import json
import select
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]
CHROMIUM = "/usr/bin/chromium"


class Browser:
    """The side of the test. seconds: for each answer."""

    def __init__(self, namespace: str, *, seconds: float = 60.0) -> None:
        self._seconds = seconds
        self._process = subprocess.Popen(
            ["ip", "netns", "exec", namespace, sys.executable, str(Path(__file__).resolve())],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
        )  # fmt: skip

    def _ask(self, what: str, argument: object = None) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([what, argument]) + "\n")
        assert select.select([self._process.stdout], [], [], self._seconds)[0], f"no answer to {what}"
        line = self._process.stdout.readline()
        assert line, f"the browser has ended (asked: {what})"
        answer = json.loads(line)
        assert "ok" in answer, f"{what} {argument}: {answer['error']}"
        return answer["ok"]

    def go(self, url: str) -> None:
        """Opens an address."""
        self._ask("go", url)

    def look(self, width: int, height: int = 900, scheme: str = "light") -> None:
        """Size of the window, and whether light or dark is preferred."""
        self._ask("look", [width, height, scheme])

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression in the page."""
        return self._ask("run", script)

    def text(self, selector: str = "main") -> str:
        """What a person reads there."""
        return str(self.run(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"))

    def press(self, key: str) -> None:
        """A key, such as Tab or Enter."""
        self._ask("press", key)

    def shot(self, path: Path) -> None:
        """A picture of the whole page."""
        self._ask("shot", str(path))

    def violations(self) -> list[str]:
        """What axe-core finds against the rules of accessibility."""
        return list(self._ask("axe"))

    def trouble(self) -> list[str]:
        """Messages of the console, errors, and requests that led elsewhere, since the start."""
        return list(self._ask("trouble"))

    def close(self) -> None:
        """Ends the browser."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(20)


def main(asked: IO[str]) -> None:
    """The side of the browser."""
    from playwright.sync_api import sync_playwright

    trouble: list[str] = []
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as play:
        context = play.chromium.launch_persistent_context(folder, executable_path=CHROMIUM, args=FLAGS)
        page = context.pages[0]
        page.on("console", lambda message: trouble.append(f"console: {message.type}: {message.text}"))
        page.on("pageerror", lambda error: trouble.append(f"error: {error}"))
        page.on(
            "request", lambda request: trouble.append(f"request: {request.url}") if _elsewhere(request.url) else None
        )
        for line in asked:
            what, argument = json.loads(line)
            try:
                answer: dict[str, object] = {"ok": _done(page, what, argument, trouble)}
            except Exception as error:
                answer = {"error": str(error)}
            print(json.dumps(answer), flush=True)
        context.close()


def _elsewhere(url: str) -> bool:
    return urlsplit(url).hostname not in ("127.0.0.1", None)


def _done(page: Any, what: str, argument: Any, trouble: list[str]) -> object:
    if what == "go":
        page.goto(argument)
    elif what == "look":
        width, height, scheme = argument
        page.set_viewport_size({"width": width, "height": height})
        page.emulate_media(color_scheme=scheme)
    elif what == "run":
        return page.evaluate(argument)
    elif what == "press":
        page.keyboard.press(argument)
    elif what == "shot":
        page.screenshot(path=argument, full_page=True)
    elif what == "trouble":
        return trouble
    elif what == "axe":
        from axe_playwright_python.sync_playwright import Axe

        found = Axe().run(page).response["violations"]
        return [f"{each['id']}: {node['target']}: {each['help']}" for each in found for node in each["nodes"]]
    return None


if __name__ == "__main__":
    main(sys.stdin)
