"""What messages are made of, for each version that a session can carry: IPFIX and NetFlow v9.

Pure. One row per version, so that heard and split need not ask which one it is. Called by heard and split.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from samplicator.gateways import ipfix, netflow9
from samplicator.gateways.ipfix import SET, Set, Template

Parts = Sequence[tuple[int, bytes]]
"""(identity, records) of each set of a message."""


@dataclass(frozen=True, slots=True)
class Form:
    """header_bytes: of a message. place(message): sequence and domain. sequence_at: where the sequence stands.
    per_message: the sequence counts messages, not data records. make(like, records, sequence, parts): a message with
    the times and the domain of another one; records: how many it has, templates too.
    """

    header_bytes: int
    template_sets: tuple[int, int]
    sets_of: Callable[[bytes], list[Set]]
    templates_of: Callable[[bytes, Set], Iterator[Template]]
    place: Callable[[bytes], tuple[int, int]]
    sequence_at: int
    per_message: bool
    make: Callable[[bytes, int, int, Parts], bytes]

    def numbered(self, message: bytes, sequence: int) -> bytes:
        """The message with this sequence."""
        at = self.sequence_at
        return message[:at] + sequence.to_bytes(4, "big") + message[at + 4 :]

    def teaching(self, like: bytes, templates: Sequence[Template], limit: int) -> Iterator[tuple[int, Parts]]:
        """(count, parts) of messages with these templates, of at most `limit` bytes as far as one record fits."""
        for kind in self.template_sets:
            records: list[bytes] = []
            used = self.header_bytes + SET.size
            for template in templates:
                if template.kind != kind:
                    continue
                if records and used + len(template.record) > limit - 3:
                    yield len(records), [(kind, b"".join(records))]
                    records, used = [], self.header_bytes + SET.size
                records.append(template.record)
                used += len(template.record)
            if records:
                yield len(records), [(kind, b"".join(records))]


def _ipfix_place(message: bytes) -> tuple[int, int]:
    _, _, _, sequence, domain = ipfix.HEADER.unpack_from(message)
    return sequence, domain


def _ipfix_make(like: bytes, records: int, sequence: int, parts: Parts) -> bytes:
    _, _, export_time, _, domain = ipfix.HEADER.unpack_from(like)
    return ipfix.message_of(export_time, sequence, domain, parts)


def _v9_place(message: bytes) -> tuple[int, int]:
    _, _, _, _, sequence, source = netflow9.HEADER.unpack_from(message)
    return sequence, source


FORMS: Final = {
    ipfix.VERSION: Form(
        ipfix.HEADER.size,
        ipfix.TEMPLATE_SETS,
        ipfix.sets_of,
        ipfix.templates_of,
        _ipfix_place,
        8,
        False,
        _ipfix_make,
    ),
    netflow9.VERSION: Form(
        netflow9.HEADER.size,
        netflow9.TEMPLATE_SETS,
        netflow9.sets_of,
        netflow9.templates_of,
        _v9_place,
        12,
        True,
        netflow9.message_of,
    ),
}
"""By version."""


def form_of(message: bytes) -> Form:
    """Raises ValueError for a version that no session carries."""
    version = int.from_bytes(message[:2], "big")
    if version not in FORMS:
        raise ValueError(f"version {version} is not IPFIX (10) or NetFlow v9 (9)")
    return FORMS[version]
