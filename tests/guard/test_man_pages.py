"""The manual says what the program does: every option, every key with its default, and nothing that is not there.

Also clean under mandoc and man: no warning, no page that refers to one that does not exist.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tomllib
from typing import Literal, get_args, get_origin

import pytest
from samplicator.cli.parser import make_parser
from samplicator.config.legacy import command_line
from samplicator.config.model.datapath import Datapath
from samplicator.config.model.listener import Listener
from samplicator.config.model.pool import Pool
from samplicator.config.model.receiver import Receiver
from samplicator.config.model.rule import Rule
from samplicator.config.model.sctp import Backup, Sctp
from samplicator.config.model.service import Service
from samplicator.config.model.table import Table
from samplicator.config.model.whole import Config
from support.tree import ROOT

MAN = ROOT / "deploy" / "man"
PAGES = sorted(MAN.glob("*.[0-9]"))
TABLES: dict[str, type[Table]] = {
    "[service]": Service,
    "[datapath]": Datapath,
    "[[listener]]": Listener,
    "[[receiver]]": Receiver,
    "[receiver.backup]": Backup,
    "[sctp]": Sctp,
    "[[pool]]": Pool,
    "[[rule]]": Rule,
}


@pytest.mark.parametrize("page", [page.name for page in PAGES])
def test_pages_are_clean(page: str) -> None:
    for command in (["mandoc", "-Tlint", "-Wwarning", page], ["man", "--warnings", "-l", page]):
        done = subprocess.run(command, cwd=MAN, capture_output=True, text=True)
        complaints = done.stderr if command[0] == "man" else done.stdout + done.stderr
        assert (done.returncode, complaints) == (0, ""), command


def test_pages_refer_to_pages_that_exist() -> None:
    names = {page.name for page in PAGES}
    assert names == {"samplicate.8", "samplicator.8", "samplicator.toml.5"}
    for page in PAGES:
        for name, section in re.findall(r"^\.Xr (\S+) (\d)", page.read_text(), re.MULTILINE):
            assert f"{name}.{section}" in names, page


# ---- samplicator.toml(5)


def sections(text: str) -> dict[str, str]:
    parts = re.split(r"^\.S[sh] (.*)\n", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def items(section: str) -> dict[str, tuple[str, str]]:
    """Key -> (what stands after the equals sign, the text below)."""
    found = re.split(r"^\.It Ic (\w+) = (.*)\n", section, flags=re.MULTILINE)
    return {key: (value, text) for key, value, text in zip(found[1::3], found[2::3], found[3::3], strict=True)}


TOML_5 = sections((MAN / "samplicator.toml.5").read_text())


def test_every_table_is_described() -> None:
    assert set(TABLES) == {name for name in TOML_5 if name.startswith("[")}
    assert len(TABLES) == len(Config.model_fields) + 1  # the table in a table


@pytest.mark.parametrize("table", TABLES)
def test_every_key_is_described_in_order(table: str) -> None:
    assert list(items(TOML_5[table])) == [info.alias or key for key, info in TABLES[table].model_fields.items()]


@pytest.mark.parametrize("table", TABLES)
def test_defaults_and_reload_classes_are_true(table: str) -> None:
    described = items(TOML_5[table])
    for field, info in TABLES[table].model_fields.items():
        value, text = described[info.alias or field]
        if info.is_required():
            assert value.endswith("Pq required"), field
        else:
            said = tomllib.loads("value = " + value.replace(r"\(dq", '"'))["value"]
            assert said == (info.get_default() if info.get_default() is not None else {}), field
        restart = info.json_schema_extra == {"reload": "restart"}
        assert ("Changed only by a restart." in text) == restart, field


@pytest.mark.parametrize("table", TABLES)
def test_every_choice_is_described(table: str) -> None:
    described = items(TOML_5[table])
    for field, info in TABLES[table].model_fields.items():
        if get_origin(info.annotation) is not Literal:
            continue
        value, text = described[info.alias or field]
        for choice in get_args(info.annotation):
            assert re.search(rf"^\.Li .*\b{choice}\b", text, re.MULTILINE) or choice in value, (field, choice)


# ---- samplicator(8)


def commands() -> dict[str, argparse.ArgumentParser]:
    for action in make_parser()._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    raise AssertionError("no commands")


def long_options(text: str) -> set[str]:
    return {f"--{name}" for name in re.findall(r"\bFl Fl ([a-z][\w-]*)", text)}


SAMPLICATOR_8 = sections((MAN / "samplicator.8").read_text())


def test_commands_are_those_of_the_program() -> None:
    assert set(commands()) == set(re.findall(r"^\.Nm\n\.Cm (\w+)", SAMPLICATOR_8["SYNOPSIS"], re.MULTILINE))
    assert set(commands()) <= set(SAMPLICATOR_8)


@pytest.mark.parametrize("command", commands())
def test_options_are_those_of_the_command(command: str) -> None:
    known = {option for action in commands()[command]._actions for option in action.option_strings}
    long = {option for option in known if option.startswith("--")} - {"--help", "--config"}
    assert long_options(SAMPLICATOR_8[command]) - {"--config"} == long
    synopsis = re.search(rf"^\.Nm\n\.Cm {command}\n((?:\.(?!Nm).*\n)*)", SAMPLICATOR_8["SYNOPSIS"], re.MULTILINE)
    assert synopsis is not None
    assert long_options(synopsis[1]) - {"--config"} == long
    of_config = next((a.option_strings for a in commands()[command]._actions if "--config" in a.option_strings), [])
    assert (".Op Fl c Ar file" in synopsis[1]) == ("-c" in of_config)
    assert (".Op Fl Fl config Ar file" in synopsis[1]) == (of_config == ["--config"])


# ---- samplicate(8)


def test_options_of_samplicate() -> None:
    text = (MAN / "samplicate.8").read_text()
    described = sections(text)["DESCRIPTION"]
    heads = re.findall(r"^\.It (Fl .*)$", described, re.MULTILINE)
    letters = {letter for head in heads for letter in re.findall(r"\bFl ([a-zA-Z46])(?![\w-])", head)}
    assert letters == set(command_line.WITH_ARGUMENT + command_line.FLAGS)
    assert long_options(described) == {
        f"--{name}" for name in (*command_line.LONG_WITH_ARGUMENT, *command_line.LONG_FLAGS)
    }
    synopsis = sections(text)["SYNOPSIS"]
    flags = re.search(r"^\.Op Fl (\w+)$", synopsis, re.MULTILINE)
    assert flags is not None
    assert set(flags[1]) == set(command_line.FLAGS)
    assert set(re.findall(r"^\.Op Fl (\w) Ar", synopsis, re.MULTILINE)) == set(command_line.WITH_ARGUMENT)
