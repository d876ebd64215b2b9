"""The files of the repository, for the guard tests: what git tracks or would track, never what a build left behind.

In an unpacked sdist, which git does not know, the list that was packed says it.
"""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKED = "samplicator.egg-info"


@functools.cache
def files() -> tuple[Path, ...]:
    """Paths relative to ROOT, sorted; deleted and ignored files are not among them."""
    if (ROOT / ".git").exists():
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.split("\0")
    else:
        lines = (ROOT / "pysrc" / PACKED / "SOURCES.txt").read_text().splitlines()
        listed = [line for line in lines if PACKED not in line]
    return tuple(sorted(Path(name) for name in set(listed) if name and (ROOT / name).is_file()))


def with_suffix(*suffixes: str) -> list[Path]:
    return [path for path in files() if path.suffix in suffixes]


def text(path: Path) -> str | None:
    """The file's text, None when it is not text (captures, pictures, fuzzed inputs)."""
    data = (ROOT / path).read_bytes()
    if b"\0" in data or "corpus" in path.parts:
        return None
    return data.decode()
