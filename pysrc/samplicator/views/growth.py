"""By how much counters have grown between two looks at them: what every rate that is shown is made of.

Pure, and imports nothing: the command line uses it too, because nobody else knows when it looked. Called by history and
by cli.
"""

from __future__ import annotations

from collections.abc import Sequence


def growth(before: Sequence[int], now: Sequence[int]) -> list[int]:
    """By how much counters have grown. If the first one is lower they restarted. Another one that is lower has been
    corrected (copies that were sent turn out to have failed): that is no growth.
    """
    if now[0] < before[0]:
        return list(now)
    return [max(0, new - old) for old, new in zip(before, now, strict=True)]
