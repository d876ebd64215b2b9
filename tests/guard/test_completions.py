"""The completions offer what the commands take: the files in the repository are fresh, and each shell understands its
own.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from samplicator.cli.parser import make_parser
from samplicator.config.legacy import command_line
from support.process import tool
from support.tree import ROOT

FOLDER = ROOT / "deploy" / "completions"
GENERATE = "run .venv/bin/python deploy/completions/generate.py"


def loaded() -> ModuleType:
    spec = importlib.util.spec_from_file_location("completions_generate", FOLDER / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


generate = loaded()


def test_the_files_are_fresh() -> None:
    kept = {
        str(path.relative_to(FOLDER)): path.read_text() for path in FOLDER.glob("*/*") if path.parent.name[0] != "_"
    }
    assert kept == generate.written(), GENERATE


def test_every_option_of_samplicate_is_found_in_its_usage() -> None:
    names = {name for option in generate.samplicate().options for name in option.names}
    short = {f"-{letter}" for letter in command_line.WITH_ARGUMENT + command_line.FLAGS}
    long = {f"--{word}" for word in (*command_line.LONG_WITH_ARGUMENT, *command_line.LONG_FLAGS)}
    assert names == (short | long) - {"--help"}
    takes = {name for option in generate.samplicate().options if option.argument for name in option.names}
    assert takes == {f"-{letter}" for letter in command_line.WITH_ARGUMENT} | {
        f"--{word}" for word in command_line.LONG_WITH_ARGUMENT
    }


def offered(shell: str, line: str, folder: Path) -> set[str]:
    """What the shell offers at the end of a line."""
    name, *words = line.split(" ")
    if shell == "bash":
        script = (
            f'compopt() {{ :; }}; . "{FOLDER}/bash/{name}"; COMP_WORDS=({line.rstrip()}'
            + (' ""' if line.endswith(" ") else "")
            + f"); COMP_CWORD={len(words)}; "
            f'_{name}; printf "%s\\n" "${{COMPREPLY[@]}}"'
        )
        argv = [tool("bash"), "-c", script]
    else:
        argv = [tool("fish"), "--no-config", "-c", f"source {FOLDER}/fish/{name}.fish; complete -C '{line}'"]
    done = subprocess.run(argv, cwd=folder, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return {row.split("\t")[0] for row in done.stdout.splitlines() if row}


@pytest.mark.parametrize("shell", ["bash", "fish"])
def test_a_shell_offers_them(shell: str, tmp_path: Path) -> None:
    (tmp_path / "relay.toml").touch()
    commands = {name for action in make_parser()._actions for name in action.choices or ()}
    assert offered(shell, "samplicator ", tmp_path) - {"-h", "--help", "--version"} == commands
    assert "--dump-plan" in offered(shell, "samplicator check --d", tmp_path)
    assert "relay.toml" in offered(shell, "samplicator run -c rel", tmp_path)
    assert offered(shell, "samplicator explain --from ", tmp_path) == set()
    assert "relay.toml" in offered(shell, "samplicator convert ", tmp_path)
    assert "--workers" in offered(shell, "samplicate --w", tmp_path)


@pytest.mark.parametrize("name", ["samplicator", "samplicate"])
def test_zsh_reads_its_files(name: str) -> None:
    done = subprocess.run([tool("zsh"), "-n", FOLDER / "zsh" / f"_{name}"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
