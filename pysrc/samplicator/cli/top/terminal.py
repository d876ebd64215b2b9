"""The terminal of `top`: takes it, reads keys, draws what has changed, and gives it back whatever happens.

Purpose: a context manager. Invariants: within it the other screen is on, the cursor is hidden, keys come one by one and
are not echoed; at its end, by whatever way (return, exception, SIGINT, SIGTERM, SIGHUP, SIGQUIT), and while the process
is stopped (SIGTSTP), all that is as it was before. Only SIGKILL leaves no time for it. Called by command.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import termios
import tty
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import Any, Final

from rich.console import Console
from rich.text import Text

ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
# xterm's control sequences; terminals that lack one ignore it
ON: Final = "\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[2J"  # other screen, no cursor, no wrapping at the edge
OFF: Final = "\x1b[0m\x1b[?7h\x1b[?25h\x1b[?1049l"
SEQUENCES: Final = {
    each: name
    for name, sequences in (
        *(("up", "[A OA"), ("down", "[B OB"), ("right", "[C OC"), ("left", "[D OD")),
        *(("pageup", "[5~"), ("pagedown", "[6~"), ("home", "[H OH [1~ [7~"), ("end", "[F OF [4~ [8~")),
        *(("backtab", "[Z"), ("f1", "OP [11~")),
    )
    for each in sequences.split()
}
LETTERS: Final = {
    **dict.fromkeys("\r\n", "enter"),
    **dict.fromkeys("\x7f\b", "backspace"),
    "\t": "tab",
    "\x15": "erase",
    "\x0c": "redraw",
    "\x02": "pageup",
    "\x06": "pagedown",
}
PIECE: Final = 1024
PATIENCE: Final = 0.5
"""Seconds to wait for a terminal that takes no more (Ctrl-S, a connection that is stuck), when it is given back."""


def keys(data: bytes) -> list[str]:
    """The keys of what was read: letters, and names for the others. A sequence that is not known is no key."""
    text, found = data.decode(errors="ignore"), []
    while text:
        if text[0] != "\x1b":
            found.append(LETTERS.get(text[0], text[0]))
            text = text[1:]
        elif len(text) == 1 or text[1] == "\x1b":
            found.append("esc")
            text = text[1:]
        else:
            end = 2
            if text[1] in "[O":
                while end < len(text) and not "@" <= text[end] <= "~":
                    end += 1
                end += 1
            name = SEQUENCES.get(text[1:end])
            found += [name] if name else []
            text = text[end:]
    return [key for key in found if len(key) > 1 or key.isprintable()]


class Terminal:
    """See above. source, target: descriptors of the terminal. ended: the signal that asks to end, 0 = none."""

    def __init__(self, source: int, target: int) -> None:
        self._source = source
        self._target = target
        self._saved: list[Any] | None = None
        self._handlers: dict[int, Any] = {}
        self._wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._shown: list[str] = []
        self._console = Console(
            force_terminal=True, highlight=False, markup=False, emoji=False, soft_wrap=True, width=1000
        )
        self.ended = 0
        self.hung_up = False
        self._stopped = False
        self._resized = False

    # ------------------------------------------------------------------ on and off

    def __enter__(self) -> Terminal:
        for number in (*ENDING, signal.SIGTSTP, signal.SIGCONT, signal.SIGWINCH):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup's SIGHUP stays ignored
                self._handlers[number] = signal.signal(number, self._signal)
        self._wakeup_before = signal.set_wakeup_fd(self._wake[1], warn_on_full_buffer=False)
        try:
            self._take()
        except BaseException:
            self._give_back()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._give_back()
        signal.set_wakeup_fd(self._wakeup_before)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        for descriptor in self._wake:
            os.close(descriptor)

    def _take(self) -> None:
        self._saved = termios.tcgetattr(self._source)
        tty.setcbreak(self._source, termios.TCSANOW)
        self._write(ON)
        self._shown = []

    def _give_back(self) -> None:
        saved, self._saved = self._saved, None
        if saved is None:
            return
        self._write(OFF, PATIENCE)
        with contextlib.suppress(OSError, termios.error):  # the terminal is gone
            termios.tcsetattr(self._source, termios.TCSANOW, saved)

    def _signal(self, number: int, frame: FrameType | None) -> None:
        """Nothing but a note: what is under way is finished first. A second signal finds the first one's note."""
        if number == signal.SIGTSTP:
            self._stopped = True
        elif number in (signal.SIGWINCH, signal.SIGCONT):
            self._resized = True
        else:
            self.ended = number

    def wake(self) -> None:
        """Ends a wait. Any thread may call it."""
        with contextlib.suppress(OSError):
            os.write(self._wake[1], b"\0")

    # ------------------------------------------------------------------ in and out

    @property
    def size(self) -> tuple[int, int]:
        """(columns, lines)."""
        try:
            columns, lines = os.get_terminal_size(self._target)
        except OSError:
            return 80, 24
        return columns or 80, lines or 24

    def wait(self, seconds: float | None) -> list[str]:
        """Keys, as soon as there are some; none when something else happened or the time is over."""
        try:
            ready, _, _ = select.select([self._source, self._wake[0]], [], [], seconds)
        except OSError:
            self.hung_up = True
            return []
        if self._wake[0] in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake[0], 4096)
        if self._stopped:
            self._stop()
        if self._resized:
            self._resized, self._shown = False, []
        if self._source not in ready or self.ended:
            return []
        try:
            data = os.read(self._source, 4096)
        except OSError:  # EIO: the other side is gone
            data = b""
        if not data:
            self.hung_up = True
        found = keys(data)
        if "redraw" in found:
            self._shown = []
        return found

    def _stop(self) -> None:
        """As the shell's user wants it: stopped, with the terminal as it was; and back again."""
        self._stopped = False
        self._give_back()
        mine = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, mine)
        self._take()

    def draw(self, lines: Sequence[Text]) -> None:
        """Writes the lines that are not on the screen yet."""
        with self._console.capture() as captured:
            for line in lines:
                self._console.print(line)
        texts = captured.get().split("\n")[: len(lines)]
        whole = len(texts) != len(self._shown)
        before = [""] * len(texts) if whole else self._shown
        parts = ["\x1b[2J"] if whole else []
        for number, (new, old) in enumerate(zip(texts, before, strict=True), 1):
            if new != old:
                parts.append(f"\x1b[{number};1H\x1b[2K{new}")  # at the edge, the cursor stays on the last letter
        self._shown = texts
        if parts:
            self._write("".join(parts))

    def _write(self, text: str, patience: float | None = None) -> None:
        """Waits while the terminal takes no more, until a signal asks to end, or for so many seconds."""
        data = text.encode(errors="backslashreplace")
        try:
            while data:
                _, ready, _ = select.select([], [self._target], [], 0.2 if patience is None else patience)
                if ready:
                    data = data[os.write(self._target, data[:PIECE]) :]
                elif patience is not None or self.ended:
                    return
        except BlockingIOError:
            self._shown = []  # drawn anew with the next picture
        except OSError:
            self.hung_up = True
