"""What the operator has chosen to see in `top`, and what each key does to it.

Called by command with the keys that come, and read by screen. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from samplicator.cli.top.pages import PAGES, Page, Row, arranged
from samplicator.cli.top.watch import Snapshot

MOST_LETTERS: Final = 200
DELAYS: Final = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)
KEYS: Final = {str(number): name for number, name in enumerate(PAGES, 1)}
HELP: Final = (
    ("1 2 3 4 5, Tab", "exporters, receivers, listeners, templates, sessions"),
    ("s, S", "sort by the next column, by the column before"),
    ("r", "sort the other way round"),
    ("/", "show only rows with this text in them; Enter keeps it, Esc removes it"),
    ("Up Down PgUp PgDn Home End, j k g G", "move in the table"),
    ("Enter", "show everything about this row; for an exporter, its templates"),
    ("Esc", "back; removes the filter"),
    ("p, Space", "pause: what is shown stays; sorting, filtering and moving still work"),
    ("+ -", "refresh more often, less often"),
    ("?, h", "this help"),
    ("q, Ctrl-C", "quit"),
)


@dataclass(slots=True)
class View:
    """typing: the filter as it is being written, None = no. detail: one row is shown instead of the table. tall: rows
    of the table that fit, as the screen says; shown: the rows in order, likewise. full: what the rows were made of.
    """

    page: Page
    delay: float
    sort: dict[str, str] = field(default_factory=lambda: {page.name: page.sort for page in PAGES.values()})
    reverse: dict[str, bool] = field(default_factory=lambda: dict.fromkeys(PAGES, False))
    wanted: str = ""
    typing: str | None = None
    paused: bool = False
    help: bool = False
    detail: bool = False
    detail_first: int = 0
    cursor: dict[str, str] = field(default_factory=dict)
    first: dict[str, int] = field(default_factory=dict)
    tall: int = 10
    widths: dict[str, int] = field(default_factory=dict)
    quit: bool = False
    _rows: list[Row] = field(default_factory=list)
    _places: dict[str, int] | None = None
    _made_of: tuple[object, ...] = ()

    def rows(self, snapshot: Snapshot) -> list[Row]:
        """In the order in which they are shown. With many exporters that takes long, so it is done once."""
        name = self.page.name
        wanted = self.wanted if self.typing is None else self.typing
        rows = snapshot.rows.get(self.page.table, [])
        table = snapshot.tables.get(self.page.table)  # its rows stay for many looks
        looked = snapshot.unix if table is None else table.number
        made_of = (id(rows), looked, name, self.sort[name], self.reverse[name], wanted)
        if made_of != self._made_of:
            self._rows = arranged(self.page, rows, self.sort[name], self.reverse[name], wanted)
            self._made_of, self._places = made_of, None
        return self._rows

    def place(self, snapshot: Snapshot) -> int:
        """Where the cursor is: at the same row, wherever that is now, or at the top."""
        key = self.cursor.get(self.page.name)
        if key is None:
            return 0
        rows = self.rows(snapshot)
        if self._places is None:
            self._places = {self.page.key(row): number for number, row in enumerate(rows)}
        return self._places.get(key, 0)

    def selected(self, snapshot: Snapshot) -> Row | None:
        """The row at the cursor."""
        rows = self.rows(snapshot)
        return rows[self.place(snapshot)] if rows else None

    # ------------------------------------------------------------------ keys

    def press(self, key: str, snapshot: Snapshot) -> None:
        """One key: a letter, or a name as of terminal.keys."""
        if self.typing is not None:
            self._type(key)
        elif self.help:
            self.help = False
            self.quit = key == "q"
        elif key in ("q", "Q"):
            self.quit = True
        elif key in ("?", "h", "f1"):
            self.help = True
        elif key in ("p", "P", " "):
            self.paused = not self.paused
        elif key in ("+", "="):
            self.delay = max((d for d in DELAYS if d < self.delay), default=self.delay)
        elif key in ("-", "_"):
            self.delay = min((d for d in DELAYS if d > self.delay), default=self.delay)
        elif key in KEYS:
            self._turn(KEYS[key])
        elif key in ("tab", "backtab"):
            names = list(PAGES)
            self._turn(names[(names.index(self.page.name) + (1 if key == "tab" else -1)) % len(names)])
        elif self.detail:
            self._read(key)
        else:
            self._move(key, snapshot)

    def _turn(self, name: str) -> None:
        """To another page."""
        if PAGES[name] is not self.page:
            self.page, self.detail = PAGES[name], False
            self.widths.clear()

    def _type(self, key: str) -> None:
        assert self.typing is not None
        if key == "enter":
            self.wanted, self.typing = self.typing, None
        elif key == "esc":
            self.wanted, self.typing = "", None
        elif key == "backspace":
            self.typing = self.typing[:-1]
        elif key == "erase":
            self.typing = ""
        elif len(key) == 1 and key.isprintable():
            self.typing = (self.typing + key)[:MOST_LETTERS]

    def _read(self, key: str) -> None:
        """In a detail, which the screen keeps from being left behind."""
        steps = {"up": -1, "k": -1, "down": 1, "j": 1, "pageup": -self.tall, "pagedown": self.tall}
        if key in ("enter", "esc", "backspace", "left"):
            self.detail, self.detail_first = False, 0
        elif key in steps:
            self.detail_first = max(0, self.detail_first + steps[key])
        elif key in ("home", "g"):
            self.detail_first = 0
        elif key in ("end", "G"):
            self.detail_first = 1 << 30

    def _move(self, key: str, snapshot: Snapshot) -> None:
        names = [column.name for column in self.page.columns]
        name = self.page.name
        if key in ("s", "S", ">", "<", "right", "left"):
            step = 1 if key in ("s", ">", "right") else -1
            self.sort[name] = names[(names.index(self.sort[name]) + step) % len(names)]
            self.reverse[name] = False
            self.cursor.pop(name, None)
            return
        if key in ("r", "R"):
            self.reverse[name] = not self.reverse[name]
            self.cursor.pop(name, None)
            return
        if key == "/":
            self.typing = self.wanted
            return
        if key == "esc":
            self.wanted = ""
            return
        rows = self.rows(snapshot)
        if not rows:
            return
        if key == "enter":
            self.cursor[name] = self.page.key(rows[self.place(snapshot)])
            self.detail, self.detail_first = True, 0
            return
        last = len(rows) - 1
        steps = {"up": -1, "k": -1, "down": 1, "j": 1, "pageup": -self.tall, "pagedown": self.tall}
        if key in steps:
            target = self.place(snapshot) + steps[key] if name in self.cursor else max(0, steps[key] - 1)
        elif key in ("home", "g"):
            self.cursor.pop(name, None)
            return
        elif key in ("end", "G"):
            target = last
        else:
            return
        self.cursor[name] = self.page.key(rows[min(max(target, 0), last)])
