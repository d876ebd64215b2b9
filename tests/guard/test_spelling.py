"""American spelling, everywhere: code, comments, documents, texts that people read.

codespell is configured in pyproject.toml; `make lint` runs it too. The words that it may not know are listed there.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from support.tree import ROOT

CODESPELL = Path(sys.executable).with_name("codespell")


def spell(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([CODESPELL, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_spelling() -> None:
    done = spell()
    assert done.returncode == 0, done.stdout + done.stderr


def test_british_spelling_is_found(tmp_path: Path) -> None:
    (tmp_path / "text.md").write_text("The behavi" + "our of the recieve side.\n")  # codespell:ignore
    done = spell(str(tmp_path / "text.md"))
    assert done.returncode != 0
    assert "behavior" in done.stdout
    assert "receive" in done.stdout
