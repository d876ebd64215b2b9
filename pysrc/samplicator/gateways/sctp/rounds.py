"""How often exporters look at their collectors, and that all look at once when one of them has found a failure.

Purpose: hundreds of exporters that each look a hundred times per second would cost a CPU. Those to one collector see
the same, so it is enough that one of them looks often, and calls the others. Invariants: all exporters
together look at most MOST_PER_SECOND times, but for alarms; an alarm is raised once for each failure that is found.
Called by exporting, in the thread of the loop.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from samplicator.gateways.transport import Address

MOST_PER_SECOND: Final = 2000
Look = Callable[[bool], None]
"""Of an exporter; whether others are to look, too, if it finds a failure."""


class Rounds:
    """Of all exporters of a gateway."""

    def __init__(self) -> None:
        self._lookers: dict[Look, tuple[Address, ...]] = {}

    def join(self, look: Look, places: tuple[Address, ...]) -> None:
        """look: of an exporter with collectors at these places."""
        self._lookers[look] = places

    def leave(self, look: Look) -> None:
        self._lookers.pop(look, None)

    @property
    def least_seconds(self) -> float:
        """Between two looks of an exporter."""
        return len(self._lookers) / MOST_PER_SECOND

    def others(self, look: Look, place: Address) -> list[Look]:
        """Those of other exporters to this place."""
        return [one for one, places in self._lookers.items() if place in places and one != look]
