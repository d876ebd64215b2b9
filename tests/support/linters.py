"""Running the linters of deploy/ for real. A missing tool is a failure that says how to get it, never a skip.

Called by tests/deploy only. Must never touch the machine's own configuration: temporary folders only.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
SCRIPTS = Path(sys.executable).parent


def tool(name: str) -> str:
    """Path of a command: of this virtual environment first, then of the system (its sbin too)."""
    found = shutil.which(name, path=os.pathsep.join([str(SCRIPTS), os.environ.get("PATH", ""), "/usr/sbin", "/sbin"]))
    assert found, f"{name} is not installed: `make test` as root installs it"
    return found


def run(*command: str | Path, **more: object) -> subprocess.CompletedProcess[str]:
    """The command's exit status and output; the first word is looked up with tool()."""
    first, *rest = [str(word) for word in command]
    options: dict[str, object] = {"capture_output": True, "text": True, "timeout": 120, "cwd": DEPLOY, **more}
    return subprocess.run([tool(first), *rest], **options)  # type: ignore[call-overload, no-any-return]


def said(done: subprocess.CompletedProcess[str]) -> str:
    return (done.stdout + done.stderr).strip()
