"""Memory for templates that many sessions share, so that no number of peers can take more than is meant for all.

Pure. Called by heard and told; place and outlet have one each.
"""

from __future__ import annotations

from typing import Final

from samplicator.gateways.ipfix import Template

TEMPLATE_BYTES: Final = 64 << 20
OBJECT_BYTES: Final = 300
"""What a template needs beside its record and 8 bytes per field (CPython 3.11, measured with sys.getsizeof)."""


def cost(template: Template) -> int:
    """Bytes that it needs."""
    return OBJECT_BYTES + len(template.record) + 8 * len(template.lengths)


QUEUE_BYTES: Final = 256 << 20
"""Of all that waits for the collectors of a gateway that never says no (SCTP)."""


class Budget:
    """left: bytes that are free."""

    __slots__ = ("left",)

    def __init__(self, limit_bytes: int = TEMPLATE_BYTES) -> None:
        self.left = limit_bytes
