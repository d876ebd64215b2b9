"""Every configuration that ships or is printed in a document passes `samplicator check`, run as an operator does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.linters import DEPLOY, ROOT, run, said


def printed() -> dict[str, str]:
    """The TOML of README and of samplicator.toml(5)."""
    readme = re.findall(r"^```toml\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    page = (DEPLOY / "man" / "samplicator.toml.5").read_text()
    manual = re.findall(r"^\.Bd -literal.*?\n(.*?)^\.Ed", page, re.MULTILINE | re.DOTALL)
    assert readme
    assert manual
    return {f"README {n}": text for n, text in enumerate(readme)} | {
        f"man {n}": completed(text) for n, text in enumerate(manual)
    }


def completed(text: str) -> str:
    """A part of a configuration, such as one receiver, with a listener and a rule."""
    if "[[listener]]" in text:
        return text
    names = ", ".join(re.findall(r'^name = (".*")', text, re.MULTILINE))
    return f'[[listener]]\nname = "in"\nlisten = ["0.0.0.0:2055"]\n\n{text}\n[[rule]]\nto = [{names}]\n'


EXAMPLES = {str(path.relative_to(ROOT)): path.read_text() for path in sorted(DEPLOY.rglob("*.toml"))} | printed()


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_passes_check(name: str, tmp_path: Path) -> None:
    config = tmp_path / "samplicator.toml"
    config.write_text(EXAMPLES[name])
    done = run("samplicator", "check", "-c", config)
    assert done.returncode == 0, said(done)
    assert "error" not in said(done).lower()


def test_example_of_a_rule_file_is_read(tmp_path: Path) -> None:
    page = (DEPLOY / "man" / "samplicate.8").read_text()
    rules = re.search(r"^\.Bd -literal.*?\n(.*?)^\.Ed", page, re.MULTILINE | re.DOTALL)
    assert rules is not None
    file = tmp_path / "rules"
    file.write_text(rules[1])
    done = run("samplicate", "--check", "-c", file)
    assert done.returncode == 0, said(done)


def test_schema_agrees(tmp_path: Path) -> None:
    """The exported JSON Schema, applied by a program that knows nothing of ours."""
    schema = tmp_path / "schema.json"
    schema.write_text(run("samplicator", "schema").stdout)
    files = [tmp_path / f"{number} {name.replace('/', ' ')}" for number, name in enumerate(EXAMPLES)]
    for file, text in zip(files, EXAMPLES.values(), strict=True):
        file.write_text(text)
    judge = ("check-jsonschema", "--default-filetype", "toml", "--schemafile", schema)
    done = run(*judge, *files)
    assert done.returncode == 0, said(done)
    wrong = tmp_path / "wrong"
    wrong.write_text('[service]\nlog_levle = "info"\n')
    done = run(*judge, *files, wrong)
    assert done.returncode != 0
    assert "log_levle" in said(done)
