"""Every text that a configuration's reader, checker or planner can say, word for word.

golden/error_texts.txt has one block per fault: `--- ` and what is wrong, then the texts that an operator reads. What is
wrong is one of

    TABLE: LINES       a TOML file in which the table TABLE has these lines (" | " between them)
    file: TEXT         a TOML file of this text
    rules: LINES       a rule file of samplicate
    samplicate: ARGS   a command line of samplicate
    host: TABLE: LINES a TOML file, planned for a host without rights, with the address 192.0.2.1 and the CPU 0

A text that changes is changed in that file, where a person reads it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from samplicator.config.legacy.command_line import parse_command_line
from samplicator.config.legacy.rulefile import parse_rules
from samplicator.config.toml.load import parse_toml
from samplicator.errors import ConfigError
from samplicator.plan.planner import compile
from samplicator.plan.spec import Capabilities

TABLES = {
    "service": "",
    "datapath": "",
    "listener": 'name = "l" | listen = ["0.0.0.0:2055"]',
    "receiver": 'name = "r" | to = "192.0.2.10:9995"',
    "pool": "",
    "rule": 'to = ["r"]',
}
PORTS = {"syslog": 514}
HERE = bytes([192, 0, 2, 1])
HOST = Capabilities(
    net_raw=False,
    net_admin=False,
    is_local=lambda address: address == HERE,
    cpus=(0,),
    interface_index=lambda name: 1 if name == "eth0" else 0,
    host_addresses=lambda: (),
    group_interface=lambda group: 1,
)


def toml(table: str, lines: str) -> bytes:
    """The good file with the table's lines, or, if they begin with `+`, with these lines more."""
    tables = dict(TABLES)
    tables[table] = f"{tables[table]} | {lines[1:].strip()}" if lines.startswith("+") else lines
    text = ""
    for name, body in tables.items():
        for part in body.split(" || ") if body else ():
            head = f"[{name}]" if name in ("service", "datapath") else f"[[{name}]]"
            text += "\n".join([head, *(line.strip() for line in part.split(" | ") if line.strip())]) + "\n"
    return text.encode()


def said(wrong: str) -> list[str]:
    """What an operator reads, warnings first."""
    kind, rest = (part.strip() for part in wrong.split(":", 1))
    warnings: list[str] = []
    try:
        if kind == "samplicate":
            found = parse_command_line(rest.split(), PORTS.get).loaded
            warnings = [*map(str, found.warnings)] if found else []
        elif kind == "rules":
            parse_rules("\n".join(rest.split(" | ")).encode(), "rules", None, PORTS.get)
        elif kind == "file":
            parse_toml(rest.replace(" | ", "\n").encode("latin-1"), "f")
        elif kind == "host":
            table, lines = rest.split(": ", 1)
            warnings = list(compile(parse_toml(toml(table, lines), "f"), {}, HOST).warnings)
        else:
            warnings = [*map(str, parse_toml(toml(kind, rest), "f").warnings)]
    except ConfigError as error:
        return [*(f"warning: {text}" for text in error.warnings), *map(str, error.problems)]
    return [f"warning: {text}" for text in warnings]


def blocks() -> Iterator[tuple[str, list[str]]]:
    text = (Path(__file__).parent / "golden" / "error_texts.txt").read_text()
    for block in text.split("--- ")[1:]:
        wrong, *texts = block.rstrip().split("\n")
        yield wrong, texts


BLOCKS = dict(blocks())


@pytest.mark.parametrize("wrong", BLOCKS, ids=[f"{number}" for number in range(len(BLOCKS))])
def test_text(wrong: str) -> None:
    assert said(wrong) == BLOCKS[wrong], wrong


def test_texts_are_plain() -> None:
    texts = [text for each in BLOCKS.values() for text in each]
    assert len(texts) >= 120
    for text in texts:
        assert not re.search(r"\bwant\b|\bfor ever\b|\bto be had\b|neither|leave [\w `]+ out\b|\btold\b", text), text


if __name__ == "__main__":  # writes the texts anew; read the difference before it is committed
    path = Path(__file__).parent / "golden" / "error_texts.txt"
    path.write_text("\n".join("\n".join([f"--- {wrong}", *said(wrong)]) for wrong in BLOCKS) + "\n")
