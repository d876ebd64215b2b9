"""Takes the pictures of the status page that README.md shows, in headless Chromium, from a demonstration that runs
meanwhile: one screen each.

    samplicator demo --forever --http 127.0.0.1:9420      # 15 minutes later:
    .venv/bin/python deploy/pictures/take.py http://127.0.0.1:9420
"""

from __future__ import annotations

import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

CHROMIUM = "/usr/bin/chromium"
SETTLED_MS = 4000
"""Until the first events are drawn."""


def take(url: str, folder: Path) -> None:
    """Writes page-WIDTH-SCHEME.png. url: of the daemon."""
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        for scheme in ("light", "dark"):
            for width in (1280, 390):
                page = browser.new_page(viewport={"width": width, "height": 1080}, color_scheme=scheme)
                page.goto(f"{url}/ui/")
                page.wait_for_timeout(SETTLED_MS)
                page.screenshot(path=folder / f"page-{width}-{scheme}.png")
                page.close()
        browser.close()


if __name__ == "__main__":
    take(sys.argv[1].rstrip("/"), Path(__file__).parent)
