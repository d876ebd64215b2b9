"""Reads a TOML configuration.

Purpose: file -> Loaded, or ConfigError with all problems of the file, each with its line and what to write instead. The
values come from tomllib; lines are looked up only to report problems. Called by the command line and by reload. Raises
only ConfigError, for any content of the file; never resolves a name, never opens a socket.
"""

from __future__ import annotations

import difflib
import hashlib
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from pydantic import ValidationError

from samplicator.config.draft import Draft, Finding, Suggest
from samplicator.config.files import MAX_FILE_BYTES, TooLarge, read_regular, read_tokens
from samplicator.config.model.datapath import Datapath
from samplicator.config.model.listener import Listener
from samplicator.config.model.loaded import Loaded, Path, dotted
from samplicator.config.model.pool import Pool
from samplicator.config.model.receiver import Receiver
from samplicator.config.model.rule import Rule, SharedValues, sources_of
from samplicator.config.model.sctp import Backup, Sctp
from samplicator.config.model.service import Service
from samplicator.config.model.table import Table
from samplicator.config.model.whole import Config
from samplicator.config.toml.lines import Lines
from samplicator.config.validate import check, check_web
from samplicator.config.web.model import WebConfig
from samplicator.errors import ConfigError, Problem

_TABLES: dict[str, type[Table]] = {"service": Service, "datapath": Datapath, "sctp": Sctp}
_LISTS: dict[str, type[Table]] = {"listener": Listener, "receiver": Receiver, "pool": Pool, "rule": Rule}
_INNER: dict[str, type[Table]] = {"backup": Backup}
"""Tables in tables."""
_AT = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)$")
_MUST_BE = {
    "string_type": "must be text in quotes",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "list_type": "must be a list in brackets, such as [...]",
    "too_short": "must have at least one entry",
    "missing": "this key is required; add it",
}
T = TypeVar("T", bound=Table)
WHOLE = -1
"""Stands for the key itself among the wrong entries of a key."""


def load_toml(path: str) -> Loaded:
    """The configuration in the file at `path`."""
    try:
        data = read_regular(path, MAX_FILE_BYTES)
    except TooLarge as error:
        raise ConfigError([Problem(path, 0, "", str(error.strerror))]) from None
    except (OSError, ValueError) as error:
        raise ConfigError(
            [Problem(path, 0, "", f"the file cannot be read: {getattr(error, 'strerror', None) or error}")]
        ) from None
    return parse_toml(data, path)


def parse_toml(data: bytes, path: str) -> Loaded:
    """The configuration in `data`; `path` is only used in messages."""
    text, raw = _values(data, path)
    lines = Lines(text)
    reader = _Reader(raw)
    findings = reader.read()
    errors = _problems([f for f in findings if f.error], path, lines) + reader.web_errors
    warnings = _problems([f for f in findings if not f.error], path, lines) + reader.web_warnings
    if errors:
        raise ConfigError(errors, warnings)
    return Loaded(
        config=reader.config(),
        sources=tuple(reader.draft.sources.values()),
        warnings=warnings,
        files=(path,),
        text_hash=hashlib.sha256(data).hexdigest(),
        origin="toml",
        locate=partial(_locate, path, lines),
        web=reader.web,
        watched=reader.watched(),
    )


def _locate(file: str, lines: Lines, path: Path) -> tuple[str, int]:
    return file, lines.of(path)


def _problems(findings: list[Finding], path: str, lines: Lines) -> list[Problem]:
    problems = [(lines.of(f.path), f.path, f.why) for f in findings]
    problems.sort(key=lambda item: (item[0], [str(part) for part in item[1]]))
    return [Problem(path, line, dotted(where), why) for line, where, why in problems]


def _values(data: bytes, path: str) -> tuple[str, dict[str, Any]]:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError([Problem(path, line, "", "the file is not UTF-8 text; save it as UTF-8")]) from None
    try:
        return text, tomllib.loads(text)
    except RecursionError:
        raise ConfigError([Problem(path, 0, "", "TOML syntax: nested too deeply")]) from None
    except ValueError as error:  # TOMLDecodeError, and what int() says to a number of thousands of digits
        why, at = str(error), _AT.search(str(error))
        line = (int(at[1]) if at[1] else text.rstrip("\n").count("\n") + 1) if at else 0
        raise ConfigError([Problem(path, line, "", f"TOML syntax: {_AT.sub('', why)}")]) from None


class _Reader:
    """Reads one file: values in, findings and a draft out."""

    def __init__(self, raw: dict[str, Any]) -> None:
        self.raw = raw
        self.findings: list[Finding] = []
        self.suggest = Suggest()
        self.kept: dict[Path, list[int]] = {}  # lists without their broken entries: where the entries left stood
        self.service = Service()
        self.sctp = Sctp()
        self.draft = Draft(Datapath(), [], [], [], [], [])
        self.web: WebConfig | None = None
        self.web_errors: list[Problem] = []
        self.web_warnings: list[Problem] = []

    def read(self) -> list[Finding]:
        """Every finding of the file."""
        for key in self.raw:
            if key not in _TABLES and key not in _LISTS:
                self._add((key,), f"there is no table of this name{self.suggest(key, [*_TABLES, *_LISTS])}")
        self.service = self._table(self.raw.get("service", {}), Service, ("service",)) or self.service
        self._read_web()
        datapath = self._table(self.raw.get("datapath", {}), Datapath, ("datapath",)) or Datapath()
        self.sctp = self._table(self.raw.get("sctp", {}), Sctp, ("sctp",)) or self.sctp
        listeners = self._list("listener", Listener)
        receivers = self._list("receiver", Receiver)
        pools = self._list("pool", Pool)
        rules = self._rules()
        self.draft = Draft(
            datapath,
            listeners,
            receivers,
            rules,
            self._names("listener"),
            self._names("receiver"),
            pool=pools,
            pool_names=self._names("pool"),
        )
        self.draft.sources = {index: sources_of(rule) for index, rule in enumerate(rules) if rule is not None}
        self.findings += [self._as_written(finding) for finding in check(self.draft, self.suggest)]
        return self.findings

    def config(self) -> Config:
        """The configuration, once there is no error."""
        draft = self.draft
        return Config(
            service=self.service,
            datapath=draft.datapath,
            sctp=self.sctp,
            listener=[item for item in draft.listener if item is not None],
            receiver=[item for item in draft.receiver if item is not None],
            pool=[item for item in draft.pool if item is not None],
            rule=[item for item in draft.rule if item is not None],
        )

    def watched(self) -> tuple[str, ...]:
        """The files beside this one whose change matters."""
        token = self.service.reload_token_file
        return (*(self.web.files if self.web is not None else ()), *((token,) if token else ()))

    def _read_web(self) -> None:
        path = self.service.web_config
        if path:
            from samplicator.config.web.load import load_web  # YAML: only where it is needed

            try:
                self.web, self.web_errors, self.web_warnings = load_web(path)
            except (OSError, ValueError) as error:
                self._add(
                    ("service", "web_config"), f"{path} cannot be read: {getattr(error, 'strerror', None) or error}"
                )
        self.findings += check_web(self.service, self.web)
        if token := self.service.reload_token_file:
            off = "until then changes over TCP stay off"
            try:
                why = "" if read_tokens(token) else f"{token} has no token; write one, on a line of its own; {off}"
            except (OSError, ValueError) as error:
                why = f"{token} cannot be read: {getattr(error, 'strerror', None) or error}; {off}"
            if why:
                self.findings.append(Finding(("service", "reload_token_file"), why, error=False))

    def _add(self, path: Path, why: str) -> None:
        self.findings.append(Finding(path, why))

    def _as_written(self, finding: Finding) -> Finding:
        """The finding with the index that a list entry has in the file: broken entries before it were left out."""
        kept = self.kept.get(finding.path[:-1])
        last = finding.path[-1]
        if kept is None or not isinstance(last, int):
            return finding
        return replace(finding, path=(*finding.path[:-1], kept[last]))

    def _items(self, table: str) -> list[Any]:
        raw = self.raw.get(table, [])
        return raw if isinstance(raw, list) else []

    def _list(self, table: str, model: type[T]) -> list[T | None]:
        if not isinstance(self.raw.get(table, []), list):
            self._add((table,), f"must be written with double brackets, [[{table}]], once for each {table}")
            return [None]  # something is there: "no receiver" would be one complaint too many
        return [self._table(item, model, (table, index)) for index, item in enumerate(self._items(table))]

    def _rules(self) -> list[Rule | None]:
        """There can be tens of thousands of rules, so each one replaces the value that it was read from."""
        raw = self._items("rule")
        if not raw:
            return self._list("rule", Rule)
        shared = SharedValues()
        rules: list[Rule | None] = []
        for index in range(len(raw)):
            rule = self._table(raw[index], Rule, ("rule", index))
            raw[index] = None
            if rule is not None:
                shared.share(rule)
            rules.append(rule)
        return rules

    def _names(self, table: str) -> list[str | None]:
        names = [item.get("name") if isinstance(item, dict) else None for item in self._items(table)]
        return [name if isinstance(name, str) and name else None for name in names]

    def _table(self, raw: object, model: type[T], path: Path) -> T | None:
        """The model of a table. Errors of a table are reported, then it is read again without its wrong values; None if
        that fails too."""
        if not isinstance(raw, dict):
            self._add(
                path,
                f"must be a table, written as [{path[0]}]"
                if len(path) == 1
                else f"must be a table, written as [[{path[0]}]]",
            )
            return None
        try:
            return model.model_validate(raw)
        except ValidationError as error:
            errors = error.errors(include_url=False)
        broken: dict[str, set[int]] = {}
        for item in errors:
            where = item["loc"]
            self._add((*path, *where), self._why(item, model))
            entries = broken.setdefault(str(where[0]), set())
            entries.add(where[1] if len(where) > 1 and isinstance(where[1], int) else WHOLE)
        try:
            return model.model_validate(self._without(raw, broken, path))
        except ValidationError:
            return None

    def _without(self, raw: dict[str, Any], broken: Mapping[str, set[int]], path: Path) -> dict[str, Any]:
        """The table without its wrong keys, and without the wrong entries of its lists."""
        left: dict[str, Any] = {}
        for key, value in raw.items():
            if key not in broken:
                left[key] = value
            elif WHOLE not in broken[key]:
                kept = [index for index in range(len(value)) if index not in broken[key]]
                if kept:
                    left[key] = [value[index] for index in kept]
                    self.kept[(*path, key)] = kept
        return left

    def _why(self, item: Mapping[str, Any], model: type[Table]) -> str:
        kind, context = str(item["type"]), item.get("ctx", {})
        model, where = _within(model, item["loc"])
        if kind == "extra_forbidden":
            known = [info.alias or key for key, info in model.model_fields.items()]
            key = str(where[-1])
            near = self.suggest(key, known)
            if not near:
                elsewhere = {name: table for table, other in _TABLES.items() for name in other.model_fields}
                for name in difflib.get_close_matches(key, list(elsewhere), 1):
                    return f"there is no such key here; did you mean {name!r} of [{elsewhere[name]}]?"
            return f"there is no such key{near}"
        if kind == "value_error":
            return str(context["error"])
        if kind == "literal_error":
            got = item["input"]
            hint = self.suggest(got, re.findall(r"'([\w-]+)'", context["expected"])) if isinstance(got, str) else ""
            return f"must be {context['expected']}{hint}"
        if kind in ("greater_than_equal", "less_than_equal"):
            low, high = _bounds(model, where) if len(where) == 1 else (None, None)
            if low is None:
                return f"must be at least {context['ge']}" if "ge" in context else f"must be at most {context['le']}"
            return f"must be a number {low}..{high}"
        return _MUST_BE.get(kind, str(item["msg"]))


def _within(model: type[Table], where: tuple[str | int, ...]) -> tuple[type[Table], tuple[str | int, ...]]:
    """The table in a table that a place is in, and where in that."""
    for key, inner in _INNER.items():
        if len(where) > 1 and where[0] == key and key in model.model_fields:
            return inner, where[1:]
    return model, where


def _bounds(model: type[Table], where: Sequence[str | int]) -> tuple[object, object]:
    for key, info in model.model_fields.items():
        if (info.alias or key) == where[0]:
            pairs = [(getattr(m, "ge", None), getattr(m, "le", None)) for m in info.metadata]
            low = next((ge for ge, _ in pairs if ge is not None), None)
            high = next((le for _, le in pairs if le is not None), None)
            return (low, high) if high is not None else (None, None)
    return None, None
