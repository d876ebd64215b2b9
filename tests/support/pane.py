"""A terminal for tests: a program in tmux, the keys that are sent to it, and the text that it shows.

Invariants: each Pane has a tmux server of its own, on a socket in the test's directory, which ends with it; every wait
has an end. Used by tests/face.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from support.process import tool, wait_for


class Pane:
    """See above. argv: the program; it ends the pane when it ends."""

    def __init__(self, directory: Path, argv: Sequence[str], columns: int, lines: int, env: dict[str, str]) -> None:
        self._socket = directory / "tmux"
        environment = {k: v for k, v in os.environ.items() if k not in ("TMUX", "NO_COLOR", "COLORTERM", "COLUMNS")}
        environment |= {"LC_ALL": "C.UTF-8", "TERM": "xterm", **env}
        size = ["-x", str(columns), "-y", str(lines)]
        words = ["-f", "/dev/null", "new-session", "-d", *size, shlex.join(argv)]
        subprocess.run([*self._tmux, *words], env=environment, cwd=directory, check=True, timeout=60)

    @property
    def _tmux(self) -> list[str]:
        return [tool("tmux"), "-u", "-S", str(self._socket)]

    def _ask(self, *words: str) -> str:
        done = subprocess.run([*self._tmux, *words], capture_output=True, text=True, timeout=60)
        return done.stdout

    def press(self, *keys: str) -> None:
        """Keys as tmux names them: Enter, Escape, Up, C-c; others are letters."""
        self._ask("send-keys", *keys)

    def write(self, text: str) -> None:
        """Letters, as they are."""
        self._ask("send-keys", "-l", text)

    def resize(self, columns: int, lines: int) -> None:
        self._ask("resize-window", "-x", str(columns), "-y", str(lines))

    @property
    def lines(self) -> list[str]:
        return self._ask("capture-pane", "-p").split("\n")

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    @property
    def colors(self) -> str:
        """The text with its escape sequences."""
        return self._ask("capture-pane", "-p", "-e")

    def fact(self, name: str) -> str:
        """A variable of tmux, such as pane_pid, alternate_on, cursor_flag, wrap_flag."""
        return self._ask("display-message", "-p", f"#{{{name}}}").strip()

    def wait(self, *wanted: str, without: str = "\0") -> str:
        """The text, as soon as it has all this in it, and not that."""

        def shown() -> str:
            text = self.text
            return text if all(each in text for each in wanted) and without not in text else ""

        try:
            return wait_for(shown, str(wanted), 20)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.text}") from None

    def match(self, pattern: str) -> str:
        """The text, as soon as a pattern is found in it; ^ and $ are ends of lines."""
        try:
            return wait_for(lambda: text if re.search(pattern, text := self.text, re.MULTILINE) else "", pattern, 20)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.text}") from None

    def end(self) -> None:
        self._ask("kill-server")


@contextlib.contextmanager
def pane(
    directory: Path, argv: Sequence[str], *, columns: int = 120, lines: int = 30, env: dict[str, str] | None = None
) -> Iterator[Pane]:
    made = Pane(directory, argv, columns, lines, env or {})
    try:
        yield made
    finally:
        made.end()
