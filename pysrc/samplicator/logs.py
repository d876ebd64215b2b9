"""Logs: text or JSON lines on stderr, counted by level, and a gate that passes one line per minute for events that
repeat very often.

Invariants: one line per record, whatever is in it. Called by service (set-up) and supervisor (RateGate). It must
never write a file.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from typing import IO, Final

LEVELS: Final = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_NAMES: Final = {"CRITICAL": "error", "FATAL": "error"}
_PRIORITY: Final = {"debug": 7, "info": 6, "warning": 4, "error": 3}


def level_name(record: logging.LogRecord) -> str:
    """debug | info | warning | error."""
    return _NAMES.get(record.levelname, record.levelname.lower())


def to_journal(stream: IO[str]) -> bool:
    """Whether journald reads the stream, and takes `<4>` at the head of a line for its priority (sd-daemon(3)). The
    variable is inherited: it holds for the stream that it names (systemd.exec(5), $JOURNAL_STREAM).
    """
    place = os.environ.get("JOURNAL_STREAM", "")
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):  # not a file
        return bool(place)
    return place == f"{status.st_dev}:{status.st_ino}"


def print_error(text: str) -> None:
    """`error: text` on stderr, before anything is set up."""
    prefix = f"<{_PRIORITY['error']}>" if to_journal(sys.stderr) else ""
    print(f"{prefix}error: {text}", file=sys.stderr)


class TextFormatter(logging.Formatter):
    """`2026-01-31T12:00:00.123+0000 warning message`; to journald (which has the time) `<4>message`."""

    def __init__(self, journal: bool) -> None:
        super().__init__()
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        level = level_name(record)
        message = record.getMessage()
        if record.exc_info:
            message += "\n" + self.formatException(record.exc_info)
        message = message.replace("\n", "\n    ")
        if self._journal:
            prefix = f"<{_PRIORITY.get(level, 6)}>"
            return prefix + message.replace("\n", "\n" + prefix)
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(record.created))
        return f"{moment}.{int(record.msecs):03d}{time.strftime('%z')} {level:<7} {message}"


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time (ISO 8601), level, message, logger, and the fields given as extra={"fields":
    {...}}. Under journald the priority comes before it, which journald takes off again: without it a warning would be
    no more to `journalctl -p warning` than any other line.
    """

    def __init__(self, journal: bool = False) -> None:
        super().__init__()
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        entry: dict[str, object] = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": level_name(record),
            "message": record.getMessage(),
            "logger": record.name,
        }
        fields = getattr(record, "fields", None)
        if isinstance(fields, dict):
            entry.update(fields)
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        text = json.dumps(entry, ensure_ascii=False, default=str)
        return f"<{_PRIORITY.get(level_name(record), 6)}>{text}" if self._journal else text


class CountingHandler(logging.StreamHandler[IO[str]]):
    """Writes lines and counts them. A closed or full stderr must not take the service down."""

    def __init__(self, stream: IO[str], counts: dict[str, int]) -> None:
        super().__init__(stream)
        self._counts = counts

    def emit(self, record: logging.LogRecord) -> None:
        name = level_name(record)
        self._counts[name] = self._counts.get(name, 0) + 1
        super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        return


def setup(level: str, format_: str, stream: IO[str] | None = None) -> dict[str, int]:
    """Routes all logging to one handler on `stream` (stderr) and returns the counts per level, which go on counting."""
    counts = dict.fromkeys(LEVELS, 0)
    handler = CountingHandler(stream or sys.stderr, counts)
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    adjust(level, format_)
    return counts


def adjust(level: str, format_: str) -> None:
    """Changes level and format of the running process."""
    root = logging.getLogger()
    root.setLevel(logging.WARNING if LEVELS[level] < logging.WARNING else LEVELS[level])
    logging.getLogger("samplicator").setLevel(LEVELS[level])
    for handler in root.handlers:
        if isinstance(handler, CountingHandler):
            journal = to_journal(handler.stream)
            handler.setFormatter(JsonFormatter(journal) if format_ == "json" else TextFormatter(journal))


class RateGate:
    """Passes one line per minute and key, and adds up what it held back."""

    def __init__(self, interval_seconds: float = 60.0) -> None:
        self._interval = interval_seconds
        self._last: dict[tuple[str, ...], float] = {}
        self._held: dict[tuple[str, ...], int] = {}

    def add(self, key: tuple[str, ...], count: int, now: float) -> int:
        """Adds `count` events of `key`; returns how many to report now, 0 = stay silent."""
        if count <= 0 and not self._held.get(key):
            return 0
        total = self._held.get(key, 0) + max(count, 0)
        last = self._last.get(key)
        if last is not None and now - last < self._interval:
            self._held[key] = total
            return 0
        self._last[key] = now
        self._held[key] = 0
        return total

    def forget(self, name: str) -> None:
        """Drops every key whose first part is `name`."""
        for table in (self._last, self._held):
            for key in [key for key in table if key[0] == name]:
                del table[key]
