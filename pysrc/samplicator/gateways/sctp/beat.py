"""Signs of life of an association that the kernel has, told from its counters.

Purpose: the kernel does not say when a HEARTBEAT was answered, but how many control chunks came. Invariants: pure, with
the time given. Silence begins with the first demand after which nothing came. It ends when `ANSWERS` demands in a row
were each followed by a control chunk: one alone may be a delayed SACK, or the peer's own HEARTBEAT, over a path that is
dead in our direction. Called by kernel. Must never decide what follows.
"""

from __future__ import annotations

from typing import Final

ANSWERS: Final = 3


class Beat:
    """seconds: between demands, 0.0 = never. silent_since: 0.0 = every demand was answered."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.silent_since = 0.0
        self._next = 0.0
        self._asked = 0.0  # when the demand that is open now left, 0.0 = none is
        self._control = 0
        self._in_a_row = ANSWERS
        self._repeated = 0
        self._times = 0

    @property
    def transmissions(self) -> int:
        """Of the data that waits for a SACK: 1 and the retransmissions seen since something was acknowledged."""
        return self._times

    def due(self, now: float) -> bool:
        return self.seconds > 0.0 and now >= self._next

    def asked(self, now: float) -> None:
        self._next = now + self.seconds
        if self._asked:
            self._in_a_row = 0
            self.silent_since = self.silent_since or self._asked
        self._asked = now

    def looked_at(self, now: float, control: int, repeated: int, waiting: int) -> None:
        """control: control chunks that came so far. repeated: chunks sent again so far. waiting: for a SACK now."""
        if control != self._control:
            self._control = control
            if self._asked:
                self._asked = 0.0
                self._in_a_row += 1
            if self._in_a_row >= ANSWERS:
                self.silent_since = 0.0
        if not waiting:
            self._times = 0
        elif repeated != self._repeated:
            self._times = max(self._times, 1) + 1
        else:
            self._times = max(self._times, 1)
        self._repeated = repeated
