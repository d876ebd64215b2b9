"""Splits losses between two neighboring stages, per exporter, where the kernel or the relay counts one stage as a sum.

Between two moments each exporter lost so many datagrams in both stages together, and the first stage lost so many in
all. If both sums are equal, all was lost in the first stage; if the first stage lost none, all was lost in the second.
Otherwise each exporter has at least what cannot have been the others', and the rest is known as a sum only. Pure.
Called by balance.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Final

PATIENCE: Final = 5
"""Steps in which losses of the first stage may show up at the exporters: a gap is seen when the next datagram comes."""


class Split:
    """first, second: datagrams by exporter. mixed: those of several exporters of which `mixed_first` were lost in the
    first stage, and the others in the second. beyond: losses of the first stage that no exporter shows.
    """

    def __init__(self) -> None:
        self.first: Counter[str] = Counter()
        self.second: Counter[str] = Counter()
        self.mixed = self.mixed_first = self.beyond = 0
        self._open: Counter[str] = Counter()
        self._caused = self._steps = 0

    def add(self, caused: int, lost: Mapping[str, int], *, patience: int = PATIENCE) -> None:
        """One step. caused: by the first stage. lost: in both stages, by exporter; may be negative, where a late
        datagram came after all.
        """
        if not caused and not self._caused:
            for name, count in lost.items():
                self.second[name] += count
            return
        self._caused += caused
        for name, count in lost.items():
            self._open[name] += count
        self._steps += 1
        total = sum(self._open.values())
        if total >= self._caused or self._steps >= patience:
            self.close()

    def close(self) -> None:
        """Decides what is open."""
        total, caused = sum(self._open.values()), self._caused
        if total < caused:
            self.beyond += caused - total
            caused = total
        for name, count in self._open.items():
            first = count if caused == total else max(0, caused - (total - count))
            second = 0 if caused == total else max(0, count - caused)
            self.first[name] += first
            self.second[name] += second
            self.mixed += count - first - second
            self.mixed_first -= first
        self.mixed_first += caused
        self._open.clear()
        self._caused = self._steps = 0
