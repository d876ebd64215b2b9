"""Which of two collectors gets the data: the primary, or its backup while the primary does not answer.

Purpose: Cisco's rules (`ip flow-export destination ... sctp`, `backup`): mode redundant keeps the backup connected,
fail-over connects it when the primary fails; back to the primary once it has answered for the restore time, and a
failure in between begins that time anew. Invariants: pure, with the time given (monotonic seconds); `advance` says what
is to be done, once each; at most one collector is the target. A primary that fails again soon after it was restored
must answer for twice as long each time (the flap guard). Called by exporting. Must never know a socket.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final, NamedTuple

TRANSMISSIONS: Final = 3
"""A message that was sent so often without being acknowledged."""
GIVE_UP_SECONDS: Final = 10.0
"""An association that does not answer for this time is aborted, and asked for anew."""
FIRST_CHANCE_SECONDS: Final = 1.0
"""What the primary has to connect in, after the start, before the backup is used."""
FORGIVEN_SECONDS: Final = 3.5
"""After a silence: what was sent in it is sent again within the longest retransmission time, and acknowledged."""
RETRY_SECONDS: Final = (0.1, 5.0)
"""After an association ended or did not come: first, doubled each time up to the last."""
FLAP_SECONDS: Final = 60.0
MOST_FLAPS: Final = 6
LONGEST_HOLD_SECONDS: Final = 3600.0


class Which(enum.Enum):
    PRIMARY = "primary"
    BACKUP = "backup"


class Mode(enum.Enum):
    REDUNDANT = "redundant"
    FAIL_OVER = "fail-over"


class Status(enum.Enum):
    """As `show ip flow export sctp` has them. FAIL_OVER: of a backup that gets the data."""

    INITIALISING = "initialising"
    CONNECTED = "connected"
    NOT_CONNECTED = "not connected"
    RE_ESTABLISHING = "re-establishing"
    FAIL_OVER = "fail-over"


class Do(enum.Enum):
    """OPEN, CLOSE: an association. ABORT: one that does not answer. USE: from now on the data goes there, after the
    templates.
    """

    OPEN = "open"
    CLOSE = "close"
    ABORT = "abort"
    USE = "use"


class Step(NamedTuple):
    do: Do
    which: Which


@dataclass(slots=True)
class _Side:
    """asked: an association is opening or open. well_since, ill_since: since when it is open and answers, or not."""

    asked: bool = False
    open: bool = False
    ever: bool = False
    failures: int = 0
    retry_at: float = 0.0
    well_since: float | None = None
    ill_since: float | None = None
    silent: bool = False
    forgiven_until: float = 0.0
    aborting: bool = False

    def opened(self, now: float) -> None:
        self.open, self.ever, self.failures, self.aborting = True, True, 0, False
        self.well_since, self.ill_since = now, None
        self.silent, self.forgiven_until = False, 0.0

    def closed(self, now: float) -> None:
        self.asked, self.open, self.aborting = False, False, False
        self.well_since = self.ill_since = None
        first, last = RETRY_SECONDS
        self.retry_at = now + min(first * 2**self.failures, last)
        self.failures = min(self.failures + 1, 16)

    def looked_at(self, now: float, well: bool) -> None:
        if not self.open:
            return
        if not well:
            self.well_since, self.ill_since = None, self.ill_since if self.ill_since is not None else now
        elif self.well_since is None:
            self.well_since, self.ill_since = now, None


class Backup:
    """mode: None = there is no backup. fail_over_s, restore_s: seconds. fail_overs: switches to the backup so far."""

    def __init__(self, now: float, mode: Mode | None, fail_over_s: float, restore_s: float) -> None:
        self.mode = mode
        self.fail_over_s = fail_over_s
        self.restore_s = restore_s
        self.fail_overs = 0
        self.active = Which.PRIMARY
        self._begun = self._now = now
        self._used = False  # the active one has got its templates
        self._restored_at: float | None = None
        self._flaps = 0
        self._sides = {Which.PRIMARY: _Side(), Which.BACKUP: _Side()}

    # ---- what happens

    def opened(self, which: Which, now: float) -> None:
        self._sides[which].opened(now)
        if which is self.active:
            self._used = False

    def closed(self, which: Which, now: float) -> None:
        """It ended, or did not come."""
        self._sides[which].closed(now)

    def looked_at(self, which: Which, now: float, silent_since: float, transmissions: int) -> None:
        """silent_since: when the first sign of life was asked for that has not come, 0.0 = all have. transmissions: of
        the message that was sent most often without being acknowledged; where there is no backup, a collector that
        answers and does not read is waited for.
        """
        silent = silent_since > 0.0 and now - silent_since >= self.fail_over_s
        side = self._sides[which]
        if side.silent and not silent:  # what was sent into the silence has been sent often
            side.forgiven_until = now + FORGIVEN_SECONDS
        side.silent = silent
        stuck = transmissions >= TRANSMISSIONS and self.mode is not None and now >= side.forgiven_until
        side.looked_at(now, not silent and not stuck)

    # ---- what is so

    @property
    def target(self) -> Which | None:
        """Where data goes now; None: nowhere."""
        return self.active if self._used and self._well(self.active) else None

    def well(self, which: Which) -> bool:
        """Whether it is open and answers."""
        return self._well(which)

    @property
    def any_well(self) -> bool:
        return self._well(Which.PRIMARY) or self._well(Which.BACKUP)

    @property
    def hold_s(self) -> float:
        """For how long the primary must answer before it is used again."""
        least = self.restore_s if not self._flaps else max(self.restore_s, 1.0)
        return min(least * float(1 << self._flaps), LONGEST_HOLD_SECONDS)

    def status(self, which: Which) -> Status:
        side = self._sides[which]
        if self._well(which):
            in_use = which is Which.BACKUP and self.active is Which.BACKUP
            return Status.FAIL_OVER if in_use else Status.CONNECTED
        if not side.asked and not self._wanted(which):
            return Status.NOT_CONNECTED
        return Status.RE_ESTABLISHING if side.ever else Status.INITIALISING

    def _well(self, which: Which) -> bool:
        return self._sides[which].well_since is not None

    def _failed(self) -> bool:
        """The primary had its chance."""
        side = self._sides[Which.PRIMARY]
        late = self._now - self._begun >= FIRST_CHANCE_SECONDS
        return not self._well(Which.PRIMARY) and (side.ever or side.failures > 0 or late)

    def _wanted(self, which: Which) -> bool:
        """Whether it is to be connected."""
        if which is Which.PRIMARY or self.mode is not Mode.FAIL_OVER:
            return which is Which.PRIMARY or self.mode is Mode.REDUNDANT
        return self.active is Which.BACKUP or self._failed()

    # ---- what is to be done

    def advance(self, now: float) -> list[Step]:
        """To be called several times per fail-over time, and after everything that happened."""
        self._now = now
        steps = self._choose()
        for which, side in self._sides.items():
            wanted = self._wanted(which)
            if wanted and not side.asked and now >= side.retry_at:
                side.asked = True
                steps.append(Step(Do.OPEN, which))
            elif not wanted and side.asked and not side.aborting:
                side.aborting = True
                steps.append(Step(Do.CLOSE, which))
            elif side.ill_since is not None and now - side.ill_since >= GIVE_UP_SECONDS and not side.aborting:
                side.aborting = True
                steps.append(Step(Do.ABORT, which))
        return steps

    def _choose(self) -> list[Step]:
        primary_since = self._sides[Which.PRIMARY].well_since
        if self.active is Which.PRIMARY:
            if self._failed() and self._well(Which.BACKUP):
                self._flapped()
                self.fail_overs += 1
                return self._use(Which.BACKUP)
        elif primary_since is not None and (self._now - primary_since >= self.hold_s or not self._well(Which.BACKUP)):
            self._restored_at = self._now
            return self._use(Which.PRIMARY)
        if not self._used and self._well(self.active):
            return self._use(self.active)
        return []

    def _use(self, which: Which) -> list[Step]:
        self.active, self._used = which, True
        return [Step(Do.USE, which)]

    def _flapped(self) -> None:
        soon = self._restored_at is not None and self._now - self._restored_at < FLAP_SECONDS
        self._flaps = min(self._flaps + 1, MOST_FLAPS) if soon else 0
