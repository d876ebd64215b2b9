"""Packet sampling from options data: what each combination of elements says, and several samplers of one exporter."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest
from samplicator.readings import FlowField, FlowTemplate
from samplicator.views import sampling
from support.state import make_session


@pytest.mark.parametrize(
    ("values", "interval"),
    [
        ({34: 100, 35: 1}, 100),
        ({48: 3, 49: 2, 50: 4000}, 4000),
        ({305: 1, 306: 9999}, 10000),
        ({304: 1, 305: 10, 306: 90}, 10),
        ({304: 1, 305: 4, 306: 6}, 2.5),
        ({305: 1, 306: 0}, 1),
        ({305: 512}, 512),
        ({304: 3, 305: 1, 309: 1, 310: 1000}, 1000),
        ({305: 1, 309: 2, 310: 512}, 256),
        ({304: 3, 305: 1, 306: 0, 309: 1, 310: 256}, 256),
        ({304: 1, 305: 1, 306: 99, 309: 1, 310: 1}, 100),
        ({304: 2, 307: 1000, 308: 9000}, 10),
        ({304: 4, 311: int.from_bytes(struct.pack(">d", 0.01), "big")}, 100),
        ({304: 4, 311: int.from_bytes(struct.pack(">f", 0.125), "big")}, 8),
        ({304: 6, 329: 0, 330: 65535, 331: 0, 332: 255}, 256),
        ({34: 64, 305: 0, 306: 0, 309: 0, 310: 0}, 64),
        ({34: 0, 50: 0, 305: 0}, None),
        ({309: 0, 310: 5}, None),
        ({41: 7, 82: 1}, None),
        ({}, None),
    ],
)
def test_packet_interval(values: dict[int, int], interval: float | None) -> None:
    assert sampling.packet_interval(values) == interval


@pytest.mark.parametrize(
    "values",
    [
        {311: 1},
        {311: 1 << 32},
        {305: 1, 306: 2**64 - 1},
        {304: 1, 305: 1, 306: 2**64 - 1},
        {309: 1, 310: 2**64 - 1},
        {329: 0, 330: 2**64 - 1, 331: 0, 332: 0},
        {329: 2**64 - 1, 330: 0, 331: 0, 332: 0},
    ],
)
def test_what_no_sampler_can_mean_is_no_interval(values: dict[int, int]) -> None:
    """And keeps no page of exporters from being made: infinite, or longer than JSON's 64 bits."""
    assert sampling.packet_interval(values) in (None, values.get(305))


def options(identity: int, scope: tuple[int, int], fields: list[tuple[int, int]]) -> FlowTemplate:
    shape = (FlowField(*scope, 0, True), *(FlowField(element, length, 0, False) for element, length in fields))
    return FlowTemplate(identity, "options_template", 1.0, 2.0, 0, shape, b"")


def row(identity: int, raw: bytes) -> FlowTemplate:
    return FlowTemplate(identity, "options_data", 1.0, 2.0, 0, (), raw)


def test_several_samplers() -> None:
    """Two rates of one exporter: both, and no single one."""
    known = [options(300, (1, 4), [(48, 2), (50, 4)])]
    known += [row(300, struct.pack(">IHI", 1, sampler, rate)) for sampler, rate in ((1, 2000), (2, 4000), (3, 2000))]
    said = sampling.of(make_session(1), known)
    assert said["sampling_interval"] is None
    assert said["sampling_intervals"] == [2000, 4000]
    assert [(each["sampler"], each["interval"]) for each in said["samplers"]] == [(1, 2000), (2, 4000), (3, 2000)]
    assert sampling.of(make_session(1), known[:2])["sampling_interval"] == 2000
    assert sampling.of(make_session(1), [known[0], known[1], known[3]])["sampling_interval"] == 2000


def test_samplers_by_selector_and_interface() -> None:
    ipfix = replace(make_session(1), protocol="ipfix")
    known = [options(300, (302, 8), [(304, 2), (305, 4), (306, 4)]), row(300, struct.pack(">QHII", 77, 1, 1, 99))]
    assert sampling.of(ipfix, known)["samplers"] == [
        {"interval": 100, "algorithm": "systematic count-based", "sampler": None, "selector": 77, "interface": None}
    ]
    known = [options(301, (2, 4), [(34, 4), (35, 1)]), row(301, struct.pack(">IIB", 9, 512, 2))]
    assert sampling.of(make_session(1), known)["samplers"] == [
        {"interval": 512, "algorithm": "random", "sampler": None, "selector": None, "interface": 9}
    ]


def test_behind_a_field_of_variable_length() -> None:
    shape = [FlowField(302, 2, 0, True)]
    shape += [FlowField(element, length, 0, False) for element, length in ((335, 65535), (305, 4), (306, 4))]
    known = [
        FlowTemplate(300, "options_template", 1.0, 2.0, 0, tuple(shape), b""),
        row(300, struct.pack(">HB3sII", 5, 3, b"abc", 1, 7)),
    ]
    assert sampling.of(replace(make_session(1), protocol="ipfix"), known)["sampling_interval"] == 8


def test_bounded() -> None:
    known = [options(300, (1, 4), [(48, 2), (50, 4)])]
    known += [row(300, struct.pack(">IHI", 1, n, 100 + n)) for n in range(1, 2000)]
    said = sampling.of(make_session(1), known)
    assert (said["sampler_count"], len(said["samplers"]), len(said["sampling_intervals"])) == (1999, 64, 64)


@pytest.mark.parametrize(("word", "interval"), [(0x4064, 100), (0x8001, 1), (0, None), (0x4000, None)])
def test_netflow5(word: int, interval: int | None) -> None:
    session = replace(make_session(1), protocol="netflow5", header=bytes(22) + word.to_bytes(2, "big"))
    assert sampling.of(session, [])["sampling_interval"] == interval
