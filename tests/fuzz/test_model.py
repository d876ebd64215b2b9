"""The oracle against the sentences it stands for, by hand: an oracle nobody checked proves nothing."""

from __future__ import annotations

from model import Datagram, address_of, from_rule_file, from_toml

TOML = """
[[listener]]
name = "netflow"
listen = ["0.0.0.0:2055"]
[[receiver]]
name = "a"
to = "192.0.2.1:9995"
spoof = true
ttl = "keep"
tos = "keep"
[[receiver]]
name = "b"
to = "[2001:db8::9]:9996"
spoof = true
freq = 3
tos = 184
[[receiver]]
name = "c"
to = "192.0.2.3:9997"
[[rule]]
from = ["10.0.0.0/8", "2001:db8::/32"]
to = ["a", "b"]
[[rule]]
from = ["10.9.0.0/255.255.0.255"]
to = ["a", "c"]
stop = true
[[rule]]
from = ["10.66.0.0/16"]
to = []
stop = true
[[rule]]
from = ["172.16.0.0/12"]
to = []
stop = true
[[rule]]
from = ["0.0.0.0/0"]
listener = ["netflow"]
to = ["c"]
"""


def names(model, exporter: str, listener: str = "netflow") -> list[str]:
    return model.route(exporter, listener)[1]


def test_union_stop_deny_and_listener() -> None:
    model = from_toml(TOML)
    assert names(model, "10.1.1.1") == ["a", "b", "c"]
    assert names(model, "10.9.7.0") == ["a", "b", "c"]
    assert model.route("10.9.7.0", "netflow")[0] == [0, 1]
    assert names(model, "10.66.1.1") == ["a", "b"]
    assert model.route("10.66.1.1", "netflow")[2] is False
    assert model.route("172.20.0.1", "netflow") == ([3], [], True)
    assert names(model, "::ffff:10.1.1.1") == ["a", "b", "c"]
    assert names(model, "2001:db8::1") == ["a", "b"]
    assert names(model, "2001:db9::1") == []
    assert names(model, "192.0.2.200", "sflow") == []


def test_copies_carry_source_ttl_and_tos() -> None:
    model = from_toml(TOML)
    four = Datagram("10.1.1.1", 5000, b"x", ttl=17, tos=8)
    first, second, third = model.offer(four)
    assert (first.source, first.ttl, first.tos) == (("10.1.1.1", 5000), 17, 8)
    assert (second.source, second.ttl, second.tos) == (None, 64, 184), "another family: the relay's own source"
    assert third.source is None
    six = model.offer(Datagram("2001:db8::5", 5001, b"y"))
    assert [(copy.receiver, copy.source) for copy in six] == [("a", None)], "b: second of three"
    assert model.counts["offered b"] == 2
    assert model.counts["skipped b"] == 1


def test_freq_sends_the_first_and_skips_the_rest() -> None:
    model = from_rule_file("10.0.0.0/8: 192.0.2.1/9995/3,20\n0.0.0.0/0: 192.0.2.1/9995\n")
    sent = [[copy.ttl for copy in model.offer(Datagram("10.0.0.1", 1, b""))] for _ in range(7)]
    assert sent == [[20, 64], [64], [64], [20, 64], [64], [64], [20, 64]]


def test_rule_file_forms() -> None:
    model = from_rule_file(
        "# comment\n[2001:db8:1::]/48: [2001:db8::1]/1200-1202 192.0.2.9 # more\n"
        "10.0.5.0/255.0.255.0:192.0.2.1/7000+2/,9\n"
        "0.0.0.0/32: 192.0.2.7/1\n[::]/0: 192.0.2.8/2\n",
        command_line=("192.0.2.10/4739",),
    )
    ports = [copy.port for copy in model.offer(Datagram("2001:db8:1::77", 1, b""))]
    assert ports == [1200, 1201, 1202, 2000, 1, 2, 4739]
    assert [copy.port for copy in model.offer(Datagram("10.200.5.1", 1, b""))] == [7000, 7001, 1, 2, 4739]
    assert model.offer(Datagram("10.200.5.1", 1, b""))[0].ttl == 9


def test_mapped_addresses_are_ipv4() -> None:
    assert str(address_of("::ffff:192.0.2.1")) == "192.0.2.1"
