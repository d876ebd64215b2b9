"""The operator's errors.

Purpose: one exception that carries every problem found in a configuration, so that all are shown at once, raised by
everything that reads, checks or resolves what the operator wrote; and one for a daemon that cannot be asked. The
datapath never raises them; it counts what the kernel refuses.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong (or doubtful) in what the operator wrote.

    file: path as the operator gave it, or "command line". line: 1-based, 0 when the problem has no line. key: the
    dotted path, e.g. `receiver[0].to`, "" when there is none. why: what is wrong and what to write instead.
    """

    file: str
    line: int
    key: str
    why: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        return f"{where}: {self.key}: {self.why}" if self.key else f"{where}: {self.why}"


class ConfigError(Exception):
    """The configuration cannot be used. `problems` holds every problem found, in file order; never empty. `warnings`:
    further findings that are not errors; `check` shows them with the problems."""

    def __init__(self, problems: list[Problem], warnings: list[Problem] | None = None) -> None:
        if not problems:
            raise ValueError("ConfigError needs at least one problem")
        self.problems = problems
        self.warnings = warnings or []
        super().__init__("\n".join(str(p) for p in problems))


class Unreachable(Exception):
    """A daemon cannot be asked, or did not answer as it should; the text says why and what to do."""
