"""Writes a configuration as TOML.

Purpose: `samplicator convert`: what a `samplicate` command line and its rule files mean, as a commented TOML file that
loads to the same configuration. Only what differs from the defaults is written. A rule that can never match is an error
in TOML, so it is written as a comment. Called by the command line. Never raises, opens nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from samplicator.config.address import size_text
from samplicator.config.model.loaded import Loaded
from samplicator.config.model.rule import Rule
from samplicator.config.model.service import Service
from samplicator.config.model.table import Table

SIZES = ("receive_buffer", "send_buffer", "ring_buffer", "flow_memory")
LINE_LENGTH = 110
SERVICE = (
    "# samplicate opens only UDP sockets. samplicator also serves metrics and status pages on 127.0.0.1:9420 and has a",
    "# local socket for `samplicator status` and `samplicator reload`. To switch both off:",
    "# [service]",
    '# http = ""',
    '# control = ""',
)
LISTENS = (
    "# A rule file does not say where samplicate listens and whether it spoofs; the options say that. This file has",
    "# the defaults. If you use options (-p, -s, -S, -n, -b) or receivers, convert the whole command line:",
    "#   samplicator convert -- -S -p 2055 -c RULEFILE",
)
_ESCAPES = {"\\": "\\\\", '"': '\\"', "\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r"}


def to_toml(loaded: Loaded, *, rules_only: bool = False) -> str:
    """The file, ending in a newline. rules_only: a rule file was given without the options of its command line; the
    file then says what is missing.
    """
    config = loaded.config
    lines = list(_head(loaded))
    if rules_only:
        lines += ["#", *LISTENS]
    service = config.service
    if loaded.origin == "legacy" and not (service.http or service.control):
        lines += ["", *SERVICE]
        service = service.model_copy(update={"http": Service().http, "control": Service().control})
    for name, table in (("service", service), ("datapath", config.datapath), ("sctp", config.sctp)):
        changed = list(_changed(table))
        if changed:
            lines += ["", f"[{name}]", *changed]
    for listener in config.listener:
        lines += ["", "[[listener]]", *_changed(listener)]
    for receiver in config.receiver:
        lines += ["", "[[receiver]]", *_changed(receiver)]
    for pool in config.pool:
        lines += ["", "[[pool]]", *_changed(pool)]
    for index, rule in enumerate(config.rule):
        lines += ["", *_rule(loaded, index, rule)]
    return "\n".join(lines) + "\n"


def _head(loaded: Loaded) -> Iterator[str]:
    yield "# Configuration of samplicator; every key is described in samplicator.toml(5)."
    if loaded.origin == "legacy":
        source = " and ".join([*loaded.files, "the command line"])
        yield _comment(f"Converted from {source} of samplicate. Every matching rule fires. A receiver that is in")
        yield "# several rules has one table for each copy that one datagram can cause (NAME, NAME#2, ...)."
    for problem in loaded.warnings:
        yield _comment(f"Warning: {problem}")


def _comment(text: str) -> str:
    return "# " + "".join(letter if letter.isprintable() else "?" for letter in text)


def _changed(table: Table) -> Iterator[str]:
    """The keys that differ from their defaults, in the order of the model."""
    for key, info in type(table).model_fields.items():
        value = getattr(table, key)
        if info.is_required() or value != info.get_default(call_default_factory=True):
            text = f'"{size_text(value)}"' if key in SIZES and size_text(value) != str(value) else _value(value)
            yield f"{info.alias or key} = {text}"


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, list):
        return _list([_value(item) for item in value])
    if isinstance(value, Table):
        return "{ " + ", ".join(_changed(value)) + " }"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_text(key)} = {_value(item)}" for key, item in value.items()) + " }"
    return repr(value)


def _list(items: list[str]) -> str:
    line = f"[{', '.join(items)}]"
    return line if len(line) <= LINE_LENGTH else "".join(["[\n", *(f"  {item},\n" for item in items), "]"])


def _text(value: str) -> str:
    return '"' + "".join(_ESCAPES.get(c) or (c if c.isprintable() else f"\\U{ord(c):08X}") for c in value) + '"'


def _rule(loaded: Loaded, index: int, rule: Rule) -> Iterable[str]:
    sources = loaded.sources[index]
    if loaded.origin == "legacy":
        file, line = loaded.locate(("rule", index))
        yield _comment(f"{file}:{line}" if line else f"{file}: every exporter")
    dead = [source for source in sources if source.never]
    if not dead:
        yield from ("[[rule]]", *_changed(rule))
        return
    live = [source.text for source in sources if not source.never]
    for source in dead:
        yield _comment(
            f"{source.text} has bits outside its mask and never matches; you perhaps mean {source.corrected}."
        )
    if live:
        yield from ("[[rule]]", *_changed(rule.model_copy(update={"from_": live})))
    else:
        for block in ("[[rule]]", *_changed(rule)):
            yield from (f"# {line}" for line in block.split("\n"))
