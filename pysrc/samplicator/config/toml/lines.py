"""Lines of values in a TOML text.

Purpose: path -> line, for messages. Works on a text that tomllib has accepted, so it checks nothing: it only counts
lines past headers, keys, arrays and inline tables. The text is read on the first question. Called by config.toml. Never
raises.
"""

from __future__ import annotations

import re
import zlib
from contextlib import suppress

Path = tuple[str | int, ...]

_TOKEN = re.compile(
    r"(?P<blank>[ \t\r]+|\#[^\n]*)|(?P<newline>\n)"
    r'|(?P<text>"""(?:[^\\]|\\.)*?"""(?:"{0,2})|\'\'\'.*?\'\'\'(?:\'{0,2})|"(?:[^"\\\n]|\\.)*"|\'[^\'\n]*\')'
    r"|(?P<mark>[\[\]{}=,.])|(?P<bare>[^\s\[\]{}=,.\#\"']+)",
    re.DOTALL,
)
_ESCAPE = re.compile(r"\\(u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8}|.)", re.DOTALL)
_ESCAPES = {"b": "\b", "t": "\t", "n": "\n", "f": "\f", "r": "\r", "e": "\x1b", '"': '"', "\\": "\\"}


class Lines:
    """Line numbers, 1-based, of the values of one text; kept packed, since it is rarely asked for."""

    def __init__(self, text: str) -> None:
        self._packed = zlib.compress(text.encode("utf-8", "surrogatepass"), 1)
        self._known: dict[Path, int] | None = None

    def __getstate__(self) -> dict[str, object]:
        return {"_packed": self._packed, "_known": None}

    def of(self, path: Path) -> int:
        """The line of a value, or of the nearest enclosing one; 0 when nothing encloses it."""
        if self._known is None:
            self._known = _Walk(zlib.decompress(self._packed).decode("utf-8", "surrogatepass")).walk()
        for length in range(len(path), 0, -1):
            if path[:length] in self._known:
                return self._known[path[:length]]
        return 0

    def paths(self) -> set[Path]:
        """Every path that has a line."""
        self.of(())
        return set(self._known or ())


class _Walk:
    """One pass over the tokens. `kind`, `value`: the token ahead; "" at the end."""

    def __init__(self, text: str) -> None:
        self.tokens = _TOKEN.finditer(text)
        self.line = 1
        self.next_line = 1
        self.kind = ""
        self.value = ""
        self.lines: dict[Path, int] = {}
        self.last: dict[Path, int] = {}  # index of the last table of each array of tables

    def step(self) -> None:
        """To the next token that means something."""
        for match in self.tokens:
            self.line = self.next_line
            self.kind, self.value = match.lastgroup or "", match[0]
            self.next_line += self.value.count("\n")
            if self.kind != "blank":
                return
        self.kind = self.value = ""
        self.line = self.next_line

    def walk(self) -> dict[Path, int]:
        with suppress(RecursionError):  # absurd nesting: the lines found so far must do
            self.tables()
        return self.lines

    def tables(self) -> None:
        table: Path = ()
        self.step()
        while self.kind:
            if self.kind == "mark" and self.value == "[":
                table = self.header()
            elif self.kind in ("text", "bare"):
                self.pair(table)
            else:
                self.step()

    def header(self) -> Path:
        line = self.line
        self.step()
        array = self.kind == "mark" and self.value == "["
        if array:
            self.step()
        keys = self.keys()
        path: Path = ()
        for number, key in enumerate(keys):
            path = (*path, key)
            final = number == len(keys) - 1
            if final and array:
                self.lines.setdefault(path, line)
                self.last[path] = self.last.get(path, -1) + 1
            if path in self.last:
                path = (*path, self.last[path])
            if final:
                self.lines[path] = line
            else:
                self.lines.setdefault(path, line)
        while self.kind == "mark":  # closing brackets
            self.step()
        return path

    def keys(self) -> list[str]:
        """A dotted key, as its parts; stops before what follows it."""
        parts = []
        while self.kind in ("text", "bare"):
            parts.append(_plain(self.value) if self.kind == "text" else self.value)
            self.step()
            if self.value != "." or self.kind != "mark":
                break
            self.step()
        return parts

    def pair(self, table: Path) -> None:
        line, path = self.line, table
        for key in self.keys():
            path = (*path, key)
            self.lines.setdefault(path, line)
        self.step()  # past "="
        self.item(path)

    def item(self, path: Path) -> None:
        """A value; stops at what follows it."""
        if self.kind == "mark" and self.value == "[":
            self.step()
            index = 0
            while self.kind and not (self.kind == "mark" and self.value == "]"):
                if self.kind == "newline" or (self.kind == "mark" and self.value == ","):
                    self.step()
                    continue
                self.lines[(*path, index)] = self.line
                self.item((*path, index))
                index += 1
            self.step()
        elif self.kind == "mark" and self.value == "{":
            self.step()
            while self.kind and not (self.kind == "mark" and self.value == "}"):
                if self.kind in ("text", "bare"):
                    self.pair(path)
                else:
                    self.step()
            self.step()
        elif self.kind == "text":
            self.step()
        else:  # numbers, dates and words: dots and blanks may be inside
            while self.kind == "bare" or (self.kind == "mark" and self.value == "."):
                self.step()


def _plain(text: str) -> str:
    """A quoted key without its quotes and escapes."""
    if text.startswith("'"):
        return text[1:-1]
    return _ESCAPE.sub(lambda m: chr(int(m[1][1:], 16)) if len(m[1]) > 1 else _ESCAPES.get(m[1], m[1]), text[1:-1])
