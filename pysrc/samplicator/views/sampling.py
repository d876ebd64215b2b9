"""The routers' packet sampling, as their headers and options data say it: one sampler for each row that tells of one.

Pure: readings in, plain values out. Called by exporters. Sources: RFC 5477 section 8.2 and IANA's registry (the
elements), RFC 3954 section 8 (samplingInterval, FLOW_SAMPLER_...). An interval of N means that one packet in N is
taken; it is a whole number where it is one. samplingPacketInterval (305) says how many packets are taken in a row and
samplingPacketSpace (306) how many are then left out, so N = (305 + 306) / 305; without 306 it is read as N itself,
because IANA's registry deprecates samplingInterval (34) in its favor and exporters that follow that write N there.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Annotated, Final, TypedDict

from samplicator.readings import Domain, FlowField, FlowTemplate

SHOWN: Final = 64
"""Samplers of one domain that are shown; all are counted."""
_VARIABLE: Final = 65535
_SAMPLER: Final = 48
_SELECTOR: Final = 302
_INTERFACES: Final = (10, 14, 252, 253)
_ALGORITHMS: Final = {
    1: "systematic count-based",
    2: "systematic time-based",
    3: "random n-out-of-N",
    4: "uniform probabilistic",
    5: "property match",
    6: "hash-based BOB",
    7: "hash-based IPSX",
    8: "hash-based CRC",
    9: "flow-state dependent",
}
"""selectorAlgorithm (304), IANA's PSAMP parameters."""
_MODES: Final = {1: "deterministic", 2: "random"}
"""samplingAlgorithm (35) and samplerMode (49)."""


class Sampler(TypedDict):
    """What one row of options data, or a header of NetFlow v5, says of the router's sampling."""

    interval: Annotated[float, "N of 1 in N packets; an integer if N is whole."]
    algorithm: str | None
    sampler: Annotated[int | None, "samplerId."]
    selector: Annotated[int | None, "selectorId."]
    interface: int | None


class Sampling(TypedDict):
    """The sampling of an observation domain."""

    sampling_interval: Annotated[
        float | None, "N if all samplers have the same N; null if none is known or they differ."
    ]
    sampling_intervals: Annotated[list[float], "All different values of N, at most 64."]
    sampler_count: int
    samplers: Annotated[list[Sampler], "At most 64 samplers."]


def of(session: Domain, templates: Sequence[FlowTemplate]) -> Sampling:
    """templates: options templates and options data."""
    samplers = _netflow5(session) if session.protocol == "netflow5" else _rows(session, templates)
    intervals = sorted({sampler["interval"] for sampler in samplers})
    return {
        "sampling_interval": intervals[0] if len(intervals) == 1 else None,
        "sampling_intervals": intervals[:SHOWN],
        "sampler_count": len(samplers),
        "samplers": samplers[:SHOWN],
    }


def _netflow5(session: Domain) -> list[Sampler]:
    """The last two bytes of the header: two bits of mode, 14 of interval."""
    if len(session.header) < 24:
        return []
    word = int.from_bytes(session.header[22:24], "big")
    if not word & 0x3FFF:
        return []
    return [_sampler(word & 0x3FFF, _MODES.get(word >> 14), {})]


def _rows(session: Domain, templates: Sequence[FlowTemplate]) -> list[Sampler]:
    shapes = {item.id: item.fields for item in templates if item.kind == "options_template"}
    found: list[Sampler] = []
    for item in templates:
        if item.kind == "options_data" and item.id in shapes:
            values, scope = _values(item.raw, shapes[item.id])
            interval = packet_interval(values)
            if interval is None:
                continue
            if session.protocol == "netflow9":  # scope types are numbers of their own (RFC 3954 section 6.1)
                names = {**values, 10: scope[2]} if 2 in scope else values
            else:
                names = {**scope, **values}
            algorithm = values.get(304)
            mode = values.get(35) or values.get(49)
            words = _ALGORITHMS.get(algorithm or 0) or _MODES.get(mode or 0)
            found.append(_sampler(interval, words, names))
    return found


def _sampler(interval: float, algorithm: str | None, names: Mapping[int, int]) -> Sampler:
    return {
        "interval": interval,
        "algorithm": algorithm,
        "sampler": names.get(_SAMPLER),
        "selector": names.get(_SELECTOR),
        "interface": next((names[element] for element in _INTERFACES if names.get(element)), None),
    }


def packet_interval(values: Mapping[int, int]) -> float | None:
    """N of the values of one row by element; None = it says nothing of sampling. The algorithm's own parameters first,
    where the row names one; rows carry those of other algorithms too, as zero or one.
    """
    ways = {
        1: _ratio(values, 305, 306),
        2: _ratio(values, 307, 308),
        3: _of(values.get(310), values.get(309)),
        4: _probability(values.get(311)),
        **dict.fromkeys((6, 7, 8), _hashed(values)),
    }
    own = ways.get(values.get(304, 0))
    if own is not None:
        return own
    for found in (ways[1], ways[3], ways[4], ways[2], ways[6]):
        if found is not None:
            return found
    return next((values[element] for element in (50, 34, 305) if values.get(element)), None)


def _whole(value: float) -> float | None:
    """None for what no sampler can mean, nor JSON tell."""
    if not 0 < value < 1 << 63:
        return None
    return int(value) if value == int(value) else round(value, 3)


def _of(whole: int | None, part: int | None) -> float | None:
    return _whole(whole / part) if whole and part else None


def _ratio(values: Mapping[int, int], taken: int, left_out: int) -> float | None:
    if not values.get(taken) or left_out not in values:
        return None
    return _whole((values[taken] + values[left_out]) / values[taken])


def _probability(bits: int | None) -> float | None:
    """samplingProbability (311), a float64 that may come as a float32 (RFC 7011 section 6.2)."""
    if not bits:
        return None
    value = (
        struct.unpack(">f", bits.to_bytes(4, "big"))[0]
        if bits < 1 << 32
        else struct.unpack(">d", bits.to_bytes(8, "big"))[0]
    )
    return _whole(1 / value) if 0 < value <= 1 else None


def _hashed(values: Mapping[int, int]) -> float | None:
    """Hash-based filtering: the share of the output range (329, 330) that is selected (331, 332)."""
    if any(element not in values for element in (329, 330, 331, 332)):
        return None
    return _of(values[330] - values[329] + 1, max(0, values[332] - values[331] + 1))


def _values(raw: bytes, fields: Sequence[FlowField]) -> tuple[dict[int, int], dict[int, int]]:
    """Values by element of a record's IANA fields: options, scope. What is longer than 8 bytes is no number here."""
    at = 0
    options: dict[int, int] = {}
    scope: dict[int, int] = {}
    for field in fields:
        length = field.length
        if length == _VARIABLE and at < len(raw):
            length, at = raw[at], at + 1
            if length == 255:
                length, at = int.from_bytes(raw[at : at + 2], "big"), at + 2
        if not field.enterprise and 0 < length <= 8:
            (scope if field.scope else options)[field.element] = int.from_bytes(raw[at : at + length], "big")
        at += length
    return options, scope
