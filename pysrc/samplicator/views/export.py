"""The counters in the format of a router: what `show ip flow export` and `show ip flow export template` show, for the
relay.

`ExportSum` takes observation domains one by one. Pure: readings and configuration in, plain values out. Called by http;
the command line draws the same shapes.
"""

from __future__ import annotations

from typing import Annotated, Final, TypedDict

from samplicator.config.model.receiver import Receiver
from samplicator.readings import Domain, Readings, ReceiverReading
from samplicator.views.flow import unit
from samplicator.views.receivers import failed_by_reason

CISCO_DROPS: Final = (
    ("no fib", "no_route"),
    ("adjacency issues", "no_neighbor"),
    ("fragmentation failures", "message_too_long"),
    ("lack of export packet", "no_buffer_space"),
    ("port closed at the collector", "refused"),
    ("not permitted", "permission"),
    ("loops", "loop"),
    ("other errors", "other"),
)
"""The words of `show ip flow export`, and the reason that each stands for here; the last four have no word there."""


class ExportTemplates(TypedDict):
    """Templates, as `show ip flow export template` counts them."""

    active: int
    options_active: int
    added: int
    received: int


class Refresh(TypedDict):
    """How often templates are replayed, as configured; 0 = never."""

    template_refresh_packets: int
    template_refresh_minutes: int
    options_refresh_packets: int
    options_refresh_minutes: int


class ExportTo(TypedDict):
    """What was sent to one receiver."""

    receiver: str
    datagrams: int
    drops: Annotated[dict[str, int], "Copies that failed, by cause in the format of a router."]
    replays: Annotated[int, "Times that all templates were replayed."]
    refresh: Refresh


class Export(TypedDict):
    """The counters in the format of a router."""

    flows: int
    datagrams: int
    templates: ExportTemplates
    receivers: list[ExportTo]


class ExportSum:
    """Adds up observation domains; then `result` once."""

    def __init__(self) -> None:
        self._flows = self._added = self._received = 0

    def add(self, session: Domain) -> None:
        """One domain."""
        counters = session.counters
        self._flows += counters["units"] if unit(session) in ("flows", "records") else 0
        self._added += counters["templates_added"]
        self._received += counters["templates_seen"]

    def result(self, readings: Readings, configured: list[Receiver]) -> Export:
        """configured: the receivers as the configuration has them."""
        settings = {item.name: item for item in configured}
        return {
            "flows": self._flows,
            "datagrams": sum(item.counters["sent"] for item in readings.receivers),
            "templates": {
                "active": readings.flow.counters.get("templates", 0),
                "options_active": readings.flow.counters.get("options_templates", 0),
                "added": self._added,
                "received": self._received,
            },
            "receivers": [_export_to(item, settings.get(item.written or item.name)) for item in readings.receivers],
        }


def _export_to(item: ReceiverReading, configured: Receiver | None) -> ExportTo:
    reasons = failed_by_reason(item.counters)
    return {
        "receiver": item.name,
        "datagrams": item.counters["sent"],
        "drops": {words: reasons[reason] for words, reason in CISCO_DROPS},
        "replays": item.counters["replays"],
        "refresh": {
            "template_refresh_packets": configured.template_refresh_packets if configured else 0,
            "template_refresh_minutes": configured.template_refresh_minutes if configured else 0,
            "options_refresh_packets": configured.options_refresh_packets if configured else 0,
            "options_refresh_minutes": configured.options_refresh_minutes if configured else 0,
        },
    }
