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

NONE: Final[Mapping[str, int]] = {}
PATIENCE: Final = 5
"""Steps in which losses of the first stage may show up at the exporters: a gap is seen when the next datagram comes."""


class Split:
    """first, second: datagrams by exporter. mixed: those of several exporters of which `mixed_first` were lost in the
    first stage, and the others in the second. beyond: losses of the first stage that no exporter shows. estimated:
    datagrams of exporters whose losses are not certain.
    """

    def __init__(self) -> None:
        self.first: Counter[str] = Counter()
        self.second: Counter[str] = Counter()
        self.mixed = self.mixed_first = self.beyond = self.estimated = 0
        self._slack: Counter[str] = Counter()
        self._open: Counter[str] = Counter()
        self._caused = self._steps = 0

    def add(
        self, caused: int, lost: Mapping[str, int], slack: Mapping[str, int] = NONE, *, patience: int = PATIENCE
    ) -> None:
        """One step. caused: by the first stage. lost: in both stages, by exporter; may be negative, where a late
        datagram came after all. slack: by how much that may be wrong.
        """
        if not caused and not self._caused:
            for name, count in lost.items():
                self.second[name] += count
                self.estimated += count if name in slack else 0
            return
        for name, count in slack.items():
            self._slack[name] += count
        self._caused += caused
        for name, count in lost.items():
            self._open[name] += count
        self._steps += 1
        total = sum(self._open.values())
        # Where numbers are not certain, more may show up: then a step without news ends it.
        enough = total >= self._caused and not (self._slack and lost)
        if enough or self._steps >= patience:
            self.close()

    def close(self) -> None:
        """Decides what is open."""
        self._adjust()
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
        self._slack.clear()
        self._caused = self._steps = 0

    def _adjust(self) -> None:
        """Where losses are not certain, and the first stage alone explains them: what it lost in all is exact, so that
        one such exporter is certain too, and several share the difference.
        """
        difference = self._caused - sum(self._open.values())
        slack = {name: count for name, count in self._slack.items() if count}
        if slack and abs(difference) <= sum(slack.values()):
            several = len(slack) > 1
            for name in sorted(slack, key=lambda name: (slack[name], name)):
                part = round(difference * slack[name] / sum(slack.values()))
                self._open[name] += part
                difference -= part
                if several:
                    self.estimated += self._open[name]
                del slack[name]
        else:
            self.estimated += sum(self._open[name] for name in slack)
