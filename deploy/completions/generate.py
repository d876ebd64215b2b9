"""Writes the completions of bash, zsh and fish from what the commands themselves say: the parser of `samplicator`, the
usage of `samplicate`. After a change of an option; a guard test says when that was forgotten.

    .venv/bin/python deploy/completions/generate.py

Commands and options are completed, and files where an option or argument is one. Nothing is asked of a daemon.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from samplicator.cli.parser import make_parser
from samplicator.cli.samplicate import USAGE

FILES = {"FILE", "RULEFILE", "PATH"}
"""Placeholders that stand for a file."""
HEAD = "Completion of {} for {}. Written by deploy/completions/generate.py."


@dataclass(frozen=True)
class Option:
    """names: as typed. argument: its placeholder, "" = takes none; in brackets = may be left out."""

    names: tuple[str, ...]
    argument: str
    text: str

    @property
    def takes_file(self) -> bool:
        return self.argument in FILES


@dataclass(frozen=True)
class Command:
    """A command, or one of its subcommands. files: whether its arguments are files."""

    name: str
    text: str
    options: tuple[Option, ...]
    files: bool = False
    commands: tuple[Command, ...] = field(default=())

    def names(self, wanted: Sequence[Option] | None = None) -> list[str]:
        return [name for option in (self.options if wanted is None else wanted) for name in option.names]


def first_sentence(text: str) -> str:
    return re.split(r"; | \(", text.strip(), maxsplit=1)[0]


# ---- what the commands say


def samplicator() -> Command:
    """From the parser."""
    parser = make_parser()
    subs: list[Command] = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            texts = {choice.dest: choice.help or "" for choice in action._choices_actions}
            subs = [
                Command(
                    name, texts[name], options_of(sub), any(a.metavar in FILES for a in sub._get_positional_actions())
                )
                for name, sub in action.choices.items()
            ]
    return Command("samplicator", "", options_of(parser), commands=tuple(subs))


def options_of(parser: argparse.ArgumentParser) -> tuple[Option, ...]:
    return tuple(
        Option(
            tuple(action.option_strings),
            "" if action.nargs == 0 else str(action.metavar or action.dest.upper()),
            first_sentence(action.help or ""),
        )
        for action in parser._actions
        if action.option_strings
    )


def samplicate() -> Command:
    """From the usage: `  -x US       text`, `  -4, -6      text`, `  --http ADDR:PORT   text`."""
    rows = re.findall(r"^  (-\S+(?:, -\S+)*)(?: (\[?[A-Z][A-Z:]*\]?))?  +(\S.*)$", USAGE, re.MULTILINE)
    options = [
        Option((name,), argument, first_sentence(text)) for names, argument, text in rows for name in names.split(", ")
    ]
    return Command("samplicate", "", tuple(options))


# ---- the shells


def bash(command: Command) -> str:
    """One function. Options that take something else than a file complete to nothing, so that it can be typed."""
    name = command.name
    lines = [f"# {HEAD.format(name, 'bash')}", "", f"_{name}() {{", "\tlocal cur=${COMP_WORDS[COMP_CWORD]}"]
    lines += ["\tlocal prev=${COMP_WORDS[COMP_CWORD - 1]}", "\tCOMPREPLY=()"]
    if command.commands:
        lines += ["\tlocal word sub="]
        lines += ['\tfor word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do']
        lines += [f"\t\tcase $word in {'|'.join(sub.name for sub in command.commands)}) sub=$word && break ;; esac"]
        lines += ["\tdone", "\tcase $sub in"]
        for sub in command.commands:
            lines += [f"\t{sub.name})", *bash_case(sub, "\t\t"), "\t\t;;"]
        words = " ".join([*(sub.name for sub in command.commands), *command.names()])
        lines += [f'\t*) mapfile -t COMPREPLY < <(compgen -W "{words}" -- "$cur") ;;', "\tesac"]
    else:
        lines += bash_case(command, "\t")
    return "\n".join([*lines, "}", f"complete -F _{name} {name}", ""])


def bash_case(command: Command, indent: str) -> list[str]:
    files = [option for option in command.options if option.takes_file]
    others = [option for option in command.options if option.argument.isupper() and not option.takes_file]
    others = [option for option in others if not option.argument.startswith("[")]
    lines = ["case $prev in"]
    if files:
        lines += [f"{'|'.join(command.names(files))}) compopt -o filenames"]
        lines += ['\tmapfile -t COMPREPLY < <(compgen -f -- "$cur")', "\treturn ;;"]
    if others:
        lines += [f"{'|'.join(command.names(others))}) return ;;"]
    lines += ["esac"] if files or others else []
    lines = lines if files or others else []
    words = f'mapfile -t COMPREPLY < <(compgen -W "{" ".join(command.names())}" -- "$cur")'
    if command.files:
        lines += ["if [[ $cur == -* ]]; then", f"\t{words}", "else", "\tcompopt -o filenames"]
        lines += ['\tmapfile -t COMPREPLY < <(compgen -f -- "$cur")', "fi"]
    else:
        lines += [words]
    return [indent + line for line in lines]


def zsh(command: Command) -> str:
    """_arguments(zshcompsys): one specification per option; names of one option exclude each other."""
    name = command.name
    lines = [f"#compdef {name}", f"# {HEAD.format(name, 'zsh')}", ""]
    if not command.commands:
        specs = [f"\t{spec}" for spec in [*zsh_specs(command), "'*:receiver:_hosts'"]]
        return "\n".join([*lines, "_arguments -s -S : \\", " \\\n".join(specs), ""])
    lines += ["local curcontext=$curcontext state line", "local -a commands"]
    lines += ["commands=(", *(f"\t{quoted(f'{sub.name}:{sub.text}')}" for sub in command.commands), ")"]
    top = [*zsh_specs(command), "'1:command:->command'", "'*::argument:->argument'"]
    lines += ["_arguments -C : \\", " \\\n".join(f"\t{spec}" for spec in top), ""]
    lines += ["case $state in", "command) _describe command commands ;;", "argument)", "\tcase $words[1] in"]
    for sub in command.commands:
        specs = zsh_specs(sub) + (["'*:file:_files'"] if sub.files else [])
        lines += [f"\t{sub.name})", "\t\t_arguments : \\", " \\\n".join(f"\t\t\t{spec}" for spec in specs), "\t\t;;"]
    return "\n".join([*lines, "\tesac", "\t;;", "esac", ""])


def zsh_specs(command: Command) -> list[str]:
    specs = []
    for option in command.options:
        text = re.sub(r"([\[\]:\\])", r"\\\1", option.text)
        optional = option.argument.startswith("[")
        action = "_files" if option.takes_file else ""
        what = option.argument.strip("[]").lower().replace(":", "\\:")
        argument = f"{'::' if optional else ':'}{what}:{action}" if option.argument else ""
        others = f"({' '.join(option.names)})" if len(option.names) > 1 else ""
        again = "*" if option.names == ("-c",) and command.name == "samplicate" else ""
        specs += [quoted(f"{again}{others}{each}[{text}]{argument}") for each in option.names]
    return specs


def fish(command: Command) -> str:
    """One `complete` per option; -f: no files, -r: the option has an argument, -F: files as well."""
    name = command.name
    lines = [f"# {HEAD.format(name, 'fish')}", ""]
    if not command.commands:
        return "\n".join([*lines, *fish_options(name, "", command), ""])
    lines += [f"complete -c {name} -f", *fish_options(name, "__fish_use_subcommand", command)]
    for sub in command.commands:
        lines += [f"complete -c {name} -n __fish_use_subcommand -a {sub.name} -d {quoted(sub.text, fish=True)}"]
    for sub in command.commands:
        when = f"__fish_seen_subcommand_from {sub.name}"
        lines += fish_options(name, when, sub)
        lines += [f"complete -c {name} -n {quoted(when, fish=True)} -F"] if sub.files else []
    return "\n".join([*lines, ""])


def fish_options(name: str, when: str, command: Command) -> Iterable[str]:
    condition = f" -n {quoted(when, fish=True) if ' ' in when else when}" if when else ""
    for option in command.options:
        names = " ".join(f"-l {each[2:]}" if each.startswith("--") else f"-s {each[1:]}" for each in option.names)
        argument = ""
        if option.argument and not option.argument.startswith("["):
            argument = " -r -F" if option.takes_file else " -x"
        yield f"complete -c {name}{condition} {names}{argument} -d {quoted(option.text, fish=True)}"


def quoted(text: str, *, fish: bool = False) -> str:
    """In single quotes, for sh (and zsh) or fish."""
    return "'" + (text.replace("\\", "\\\\").replace("'", "\\'") if fish else text.replace("'", "'\\''")) + "'"


def written() -> dict[str, str]:
    """File name -> text."""
    files: dict[str, str] = {}
    for command in (samplicator(), samplicate()):
        files[f"bash/{command.name}"] = bash(command)
        files[f"zsh/_{command.name}"] = zsh(command)
        files[f"fish/{command.name}.fish"] = fish(command)
    return files


if __name__ == "__main__":
    for path, text in written().items():
        file = Path(__file__).with_name(path.split("/")[0]) / path.split("/")[1]
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
