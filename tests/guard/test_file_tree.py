"""Names, sizes and first lines of files; and that no file knows the machine it was written on."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.tree import ROOT, files, text, with_suffix

FORBIDDEN_STEMS = {"utils", "util", "common", "helpers", "helper", "misc"}
LONGEST = 400  # past this a file has two concerns, or it stands in DECIDED with its one
DECIDED = {
    "bench/measure.py": (510, "one measurement from begin to end"),
    "bench/tools/loadgen.c": (460, "a tool in one file, built by one line"),
    "bench/tools/sink.c": (480, "the same"),
    "fastpath/tx/engine.pxd": (420, "the engine seam with its one triage of errors"),
    "pysrc/samplicator/_fastpath.pyi": (590, "one stub for one extension"),
    "pysrc/samplicator/plan/planner.py": (470, "one compiler: its parts share the list of problems"),
    "pysrc/samplicator/service/service.py": (540, "the life of the process, in the order in which it happens"),
    "pysrc/samplicator/supervisor/supervisor.py": (565, "all that happens under the one lock"),
}
LONGEST_TEST = 560  # tests of one thing stay together
CODE = (".py", ".pyi", ".pyx", ".pxd", ".pxi", ".c", ".h", ".sh")
TOP_LEVEL = {
    ".ci",
    ".gitignore",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "MANIFEST.in",
    "Makefile",
    "README.md",
    "bench",
    "deploy",
    "fastpath",
    "pyproject.toml",
    "pysrc",
    "setup.py",
    "tests",
}

# In pieces, or this file would be its own finding.
MACHINE = re.compile(
    "|".join(["/" + "work/", "/" + "tmp/contract", r"\." + "library/", "/" + "root/", "/" + "home/[a-z]"])
)


def test_top_level_is_the_agreed_one() -> None:
    assert {path.parts[0] for path in files()} == TOP_LEVEL


def test_no_file_is_a_drawer_for_everything() -> None:
    assert [path for path in files() if path.stem.lower() in FORBIDDEN_STEMS] == []


def test_no_file_is_too_long() -> None:
    lengths = {str(path): len((ROOT / path).read_text().splitlines()) for path in with_suffix(*CODE)}
    limits = {name: LONGEST_TEST if name.startswith("tests/") else LONGEST for name in lengths}
    limits |= {name: most for name, (most, _) in DECIDED.items()}
    assert {name: lines for name, lines in lengths.items() if lines > limits[name]} == {}
    assert [name for name in DECIDED if lengths.get(name, 0) <= LONGEST] == [], "no decision is needed any more"


def test_no_path_of_a_machine() -> None:
    found = []
    for path in files():
        for number, line in enumerate((text(path) or "").splitlines(), 1):
            if MACHINE.search(line):
                found.append(f"{path}:{number}: {line.strip()}")
    assert found == []


def opens_with_purpose(path: Path) -> bool:
    """A docstring or comment of a sentence or more before the first code."""
    lines = [line for line in (text(path) or "").splitlines() if line.strip()]
    if lines and lines[0].startswith("#!"):
        lines = lines[1:]
    if lines and re.match(r"#\s*cython:", lines[0]):
        lines = lines[1:]
    return not lines or re.match(r'(r?"""|#\s*\S|/\*|//)', lines[0]) is not None


@pytest.mark.parametrize("path", [str(p) for p in with_suffix(*CODE) if (ROOT / p).stat().st_size])
def test_file_opens_with_its_purpose(path: str) -> None:
    assert opens_with_purpose(Path(path)), f"{path}: says nothing about its purpose in its first line"


@pytest.mark.parametrize("path", [str(p) for p in with_suffix(".pxd") if (ROOT / p).stat().st_size])
def test_header_states_its_own_directives(path: str) -> None:
    """A .pxd does not take over the directives of the file that cimports it."""
    assert (ROOT / path).read_text().startswith("# cython: language_level=3"), path


def test_license_is_whole() -> None:
    license = (ROOT / "LICENSE").read_text()
    assert "Apache License" in license
    assert "END OF TERMS AND CONDITIONS" in license
