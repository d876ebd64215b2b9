"""The planner: engines and their reasons, sockets, loops, rules, workers; every problem at once, with its line."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path

import pytest
from samplicator import _fastpath
from samplicator.config.legacy.command_line import parse_command_line
from samplicator.errors import ConfigError
from samplicator.plan.names import names_of
from samplicator.plan.planner import compile
from samplicator.plan.spec import DELAY_AUTO, PlanSpec, PoolSpec, ProbeSpec, ResolvedAddress
from support.hosts import Load, host

LISTENER = '[[listener]]\nname = "in"\nlisten = ["0.0.0.0:2055"]\n'
RULE = '[[rule]]\nto = ["r"]\n'


def receiver(extra: str = "", to: str = "192.0.2.1:9995") -> str:
    return f'[[receiver]]\nname = "r"\nto = "{to}"\n{extra}\n'


def plan(load: Load, text: str, **kwargs: object) -> PlanSpec:
    return compile(load(text), {}, host(**kwargs))  # type: ignore[arg-type]


def problems(load: Load, text: str, *local: str, net_raw: bool = True) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        compile(load(text), {}, host(*local, net_raw=net_raw))
    return [str(problem).partition("samplicator.toml:")[2] for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("extra", "engine", "why"),
    [
        ("", "udp", "not spoofed"),
        ("spoof = true", "transparent", "spoofed"),
        ('spoof = true\nttl = "keep"', "transparent", 'with ttl = "keep" most copies are sent by the raw socket'),
        ("spoof = true\nfreq = 10", "transparent", "with freq = 10 most copies are sent by the raw socket"),
        ("spoof = true\nchecksum = false", "raw", "UDP checksum 0"),
        ("spoof = true\npause_us = 5", "raw", "pause"),
        ("mtu = 1400", "udp", "not spoofed"),
        ("spoof = true\nmtu = 68", "transparent", "spoofed"),
        ('spoof = true\nengine = "raw"', "raw", "configured"),
        ('spoof = true\nengine = "transparent"', "transparent", "configured"),
        ('spoof = true\nengine = "packet"', "packet", "configured"),
        ('spoof = true\nchecksum = false\nengine = "packet"', "packet", "configured"),
        ('engine = "raw"', "raw", "configured"),
        ('engine = "udp"', "udp", "configured"),
        ('source = "127.0.0.9"', "udp", "not spoofed"),
        ('source = "198.51.100.1:7"', "raw", "198.51.100.1 is not an address of this host"),
    ],
)
def test_engine_and_why(load: Load, extra: str, engine: str, why: str) -> None:
    spec = plan(load, LISTENER + receiver(extra) + RULE).receivers[0]
    assert spec.engine == engine
    assert why in spec.udp.engine_why
    assert "\n" not in spec.udp.engine_why


@pytest.mark.parametrize(
    ("extra", "frames"),
    [
        ("spoof = true", True),
        ('spoof = true\nengine = "transparent"', False),
        ("spoof = true\nchecksum = false", False),
    ],
)
def test_auto_sends_frames_where_it_can_be_seen_what_they_bypass(load: Load, extra: str, frames: bool) -> None:
    """Which CAP_NET_ADMIN is needed for."""
    text = LISTENER + receiver(extra) + RULE
    spec = plan(load, text, net_admin=True, frames=True).receivers[0]
    assert spec.udp.frames is spec.framed is frames
    assert ("link frames" in spec.udp.engine_why) is frames
    assert not plan(load, text, frames=True).receivers[0].framed
    assert not plan(load, text, net_admin=True).receivers[0].framed  # before Linux 6.2


def test_a_delay_that_the_worker_chooses(load: Load) -> None:
    assert DELAY_AUTO == _fastpath.DELAY_AUTO
    text = LISTENER + receiver() + RULE
    assert plan(load, text).max_delay_us == 0
    assert plan(load, '[datapath]\nmax_delay = "auto"\n' + text).max_delay_us == DELAY_AUTO
    assert plan(load, "[datapath]\nmax_delay = 70\n" + text).max_delay_us == 70


@pytest.mark.parametrize("extra", ["spoof = true", 'engine = "raw"', 'source = "198.51.100.1"'])
def test_without_net_raw_the_warning_says_what_to_grant(load: Load, extra: str) -> None:
    """The right is this host's: the rest runs."""
    found = plan(load, LISTENER + receiver(extra) + RULE, net_raw=False).warnings[0]
    assert "CAP_NET_RAW" in found
    assert "AmbientCapabilities" in found
    assert "its copies are counted as no_route" in found


def test_without_net_raw_samplicate_does_not_start(load: Load) -> None:
    loaded = replace(load(LISTENER + receiver("spoof = true") + RULE), origin="legacy")
    with pytest.raises(ConfigError, match="CAP_NET_RAW"):
        compile(loaded, {}, host(net_raw=False))


def test_without_net_raw_unspoofed_copies_need_nothing(load: Load) -> None:
    assert plan(load, LISTENER + receiver() + RULE, net_raw=False).receivers[0].engine == "udp"


@pytest.mark.parametrize(
    ("listen", "to", "local"),
    [
        ("0.0.0.0:2055", "127.0.0.1:2055", ()),
        ("0.0.0.0:2055", "192.0.2.7:2055", ("192.0.2.7",)),
        ("127.0.0.1:2055", "127.0.0.1:2055", ()),
        ("[::]:2055", "192.0.2.7:2055", ("192.0.2.7",)),
        ("[::]:2055", "[2001:db8::7]:2055", ("2001:db8::7",)),
        ("0.0.0.0:2050-2060", "127.0.0.1:2055", ()),
        ("0.0.0.0:2055", "255.255.255.255:2055", ()),
        ("[::]:2055", "255.255.255.255:2055", ()),
        ("0.0.0.0:2055", "127.255.255.255:2055", ()),
        ("192.0.2.7:2055", "[::ffff:192.0.2.7]:2055", ("192.0.2.7", "::ffff:192.0.2.7")),
    ],
)
def test_loop_is_found(load: Load, listen: str, to: str, local: tuple[str, ...]) -> None:
    text = f'[[listener]]\nname = "in"\nlisten = ["{listen}"]\n' + receiver(to=to) + RULE
    found = problems(load, text, *local)
    assert len(found) == 1
    assert "'r'" in found[0]
    assert "'in'" in found[0]
    assert found[0].startswith("9: receiver[0].to: ")


@pytest.mark.parametrize(
    ("listen", "to"),
    [
        ("127.0.0.1:2055", "127.0.0.2:2055"),
        ("0.0.0.0:2055", "192.0.2.7:2055"),
        ("0.0.0.0:2055", "127.0.0.1:2056"),
        ("[2001:db8::7]:2055", "127.0.0.1:2055"),
    ],
)
def test_what_is_no_loop(load: Load, listen: str, to: str) -> None:
    plan(load, f'[[listener]]\nname = "in"\nlisten = ["{listen}"]\n' + receiver(to=to) + RULE)


def test_loop_through_a_multicast_group(load: Load) -> None:
    text = '[[listener]]\nname = "in"\nlisten = ["0.0.0.0:2055"]\nmulticast = ["239.1.1.1"]\n'
    assert len(problems(load, text + receiver(to="239.1.1.1:2055") + RULE)) == 1


@pytest.mark.parametrize(
    ("listen", "extra", "to", "found"),
    [
        ("0.0.0.0:2055", 'interface = "eth1"\nmulticast = ["239.1.1.1"]', "239.1.1.1:2055", 1),
        ("239.1.1.1:2055", 'interface = "eth1"\nmulticast = ["239.1.1.1"]', "239.1.1.1:2055", 1),
        ("[::]:2055", 'interface = "eth1"\nmulticast = ["ff15:0::0001"]', "[ff15::1]:2055", 1),
        ("0.0.0.0:2055", 'interface = "eth1"', "255.255.255.255:2055", 1),
        ("0.0.0.0:2055", 'multicast = ["239.1.1.1"]', "239.1.1.2:2055", 0),
        ("0.0.0.0:2055", 'multicast = ["239.1.1.1"]', "239.1.1.1:2056", 0),
        ("0.0.0.0:2055", "", "239.1.1.1:2055", 0),
        ("192.0.2.9:2055", "", "255.255.255.255:2055", 0),
        ("0.0.0.0:2055", 'interface = "eth1"', "127.0.0.1:2055", 0),
    ],
)
def test_loop_through_groups_and_broadcast(load: Load, listen: str, extra: str, to: str, found: int) -> None:
    """Bytes are compared, and an interface that the listener has does not hide a group."""
    text = f'[[listener]]\nname = "in"\nlisten = ["{listen}"]\n{extra}\n' + receiver(to=to) + RULE
    if found:
        assert len(problems(load, text)) == found
    else:
        plan(load, text)


def test_a_daemon_follows_addresses_that_a_check_refuses(load: Load) -> None:
    loaded = load('[[listener]]\nname = "in"\nlisten = ["0.0.0.0:2055"]\n' + receiver(to="192.0.2.7:2055") + RULE)
    compile(loaded, {}, host("192.0.2.7"), judge_addresses=False)
    with pytest.raises(ConfigError):
        compile(loaded, {}, host("192.0.2.7"))


def test_every_problem_at_once(load: Load) -> None:
    text = (
        LISTENER
        + '[[receiver]]\nname = "a"\nto = "127.0.0.1:2055"\n'
        + '[[receiver]]\nname = "b"\nto = "[2001:db8::1]:1"\nmtu = 1000\n'
        + '[datapath]\ncpus = [7]\n[[rule]]\nto = ["a", "b"]\n'
    )
    assert len(problems(load, text)) == 3


def test_sockets_of_a_listener(load: Load) -> None:
    text = '[[listener]]\nname = "in"\nlisten = ["0.0.0.0:2055", "[::]:2055", "[::]:4739", "127.0.0.1:9990-9992"]\n'
    sockets = plan(load, text + receiver() + RULE).listeners[0].sockets
    assert [(s.address, s.port, s.family, s.v6only) for s in sockets] == [
        ("0.0.0.0", 2055, 4, False),
        ("::", 2055, 6, True),  # an IPv4 socket has that port
        ("::", 4739, 6, False),  # nobody has: dual-stack
        ("127.0.0.1", 9990, 4, False),
        ("127.0.0.1", 9991, 4, False),
        ("127.0.0.1", 9992, 4, False),
    ]


def test_groups_go_to_the_sockets_of_their_family(load: Load) -> None:
    text = '[[listener]]\nname = "in"\nlisten = ["0.0.0.0:1", "[::]:1"]\nmulticast = ["239.1.1.1", "ff05::1"]\n'
    sockets = plan(load, text + receiver() + RULE).listeners[0].sockets
    assert [s.groups for s in sockets] == [("239.1.1.1",), ("ff05::1",)]


def test_what_this_host_lacks_is_a_warning(load: Load) -> None:
    """An interface, a name, an own address may come later: the plan says what is missing, and that it is."""
    far = receiver('engine = "udp"\nsource = "192.0.2.77"', "192.0.2.5:1")
    text = (
        LISTENER
        + 'interface = "eth9"\n'
        + far
        + '[[receiver]]\nname = "near"\nto = "[fe80::1%eth8]:9"\n'
        + '[[receiver]]\nname = "named"\nto = "nowhere.example:9"\nspoof = true\n'
        + RULE
        + '[[rule]]\nfrom = ["router.example"]\nto = ["near"]\n'
    )
    spec = plan(load, text)
    assert [(s.interface, s.index) for s in spec.listeners[0].sockets] == [("eth9", 0)]
    assert [(r.name, r.missing, r.unresolved) for r in spec.receivers] == [
        ("r", "the source 192.0.2.77 is not an address of this host now", False),
        ("near", "there is no interface eth8", False),
        ("named", "the host name does not resolve", True),
    ]
    assert [(r.udp.address, r.udp.family, r.udp.host) for r in spec.receivers[2:]] == [(bytes(4), 4, "nowhere.example")]
    words = " | ".join(spec.warnings)
    for expected in (
        "listener[0].interface: there is no interface 'eth9' now",
        "receiver[1].to: there is no interface 'eth8' now",
        "receiver[2].to: the host name 'nowhere.example' does not resolve now",
        "receiver[0].source: the source 192.0.2.77 is not an address of this host now",
        "rule[1].from[0]: the host name 'router.example' does not resolve now",
    ):
        assert expected in words


def test_an_interface_made_anew_makes_another_plan(load: Load) -> None:
    """Sockets are bound to the index of an interface, and groups are joined on one: both are part of the plan."""
    loaded = load(
        LISTENER
        + 'multicast = ["239.1.1.1"]\n[[listener]]\nname = "vlan"\nlisten = ["0.0.0.0:9"]\ninterface = "eth1"\n'
        + receiver("", "[fe80::1%eth1]:9")
        + RULE
    )
    indexes = {"eth1": 2}
    routes = {bytes([239, 1, 1, 1]): 5}
    here = replace(
        host(),
        interface_index=lambda name: indexes.get(name, 0),
        group_interface=lambda group: routes.get(group, 0),
    )
    first = compile(loaded, {}, here)
    assert (first.listeners[0].sockets[0].joins, first.listeners[1].sockets[0].index) == ((5,), 2)
    assert compile(loaded, {}, here) == first
    indexes["eth1"] = 7
    second = compile(loaded, {}, here)
    assert second.listeners[1].sockets[0].index == second.receivers[0].udp.scope_id == 7
    routes.clear()
    assert compile(loaded, {}, here) != second


def test_keep_and_fixed_fields(load: Load) -> None:
    spec = plan(load, LISTENER + receiver('ttl = "keep"\ntos = 184\nfreq = 7') + RULE).receivers[0]
    assert (spec.udp.ttl, spec.udp.tos, spec.freq) == (0, 184, 7)
    spec = plan(load, LISTENER + receiver() + RULE).receivers[0]
    assert (spec.udp.ttl, spec.udp.tos, spec.freq) == (64, 0, 1)


def test_names_are_looked_up_with_their_family(load: Load) -> None:
    loaded = load(LISTENER + receiver('family = "ipv6"', to="c.example:9995") + RULE)
    six = ResolvedAddress(socket.inet_pton(socket.AF_INET6, "2001:db8::5"))
    four = ResolvedAddress(bytes([192, 0, 2, 5]))
    spec = compile(loaded, {("c.example", 6): (six, four), ("c.example", 0): (four,)}, host()).receivers[0]
    assert (spec.udp.address, spec.udp.family, spec.udp.host) == (six.address, 6, "c.example")
    spec = compile(loaded, {}, host()).receivers[0]
    assert (spec.udp.address, spec.udp.family, spec.missing) == (bytes(16), 6, "the host name does not resolve")


def test_rules(load: Load) -> None:
    text = LISTENER + '[[listener]]\nname = "two"\nlisten = ["0.0.0.0:1"]\n' + receiver()
    text += '[[rule]]\nfrom = ["10.0.0.0/8"]\nlistener = ["two"]\nto = ["r"]\n[[rule]]\nto = []\nstop = true\n'
    rules = plan(load, text).rules
    assert [source.text for source in rules[0].sources] == ["10.0.0.0/8"]
    assert (rules[0].listeners, rules[0].receivers, rules[0].stop) == ((1,), (0,), False)
    assert (rules[1].listeners, rules[1].receivers, rules[1].stop) == (None, (), True)
    assert rules[1].sources[0].family == 0
    assert "nobody" in rules[1].text


def test_source_that_can_never_match_is_left_out(tmp_path: Path) -> None:
    rules = tmp_path / "rules"
    rules.write_text("10.1.2.3/24: 192.0.2.1/9995\n")
    loaded = parse_command_line(["-c", str(rules)]).loaded
    assert loaded is not None
    assert compile(loaded, {}, host()).rules[0].sources == ()


def test_source_that_is_a_host_name(load: Load) -> None:
    loaded = load(LISTENER + receiver() + '[[rule]]\nfrom = ["router.example"]\nto = ["r"]\n')
    four = ResolvedAddress(bytes([192, 0, 2, 5]))
    six = ResolvedAddress(socket.inet_pton(socket.AF_INET6, "2001:db8::5"))
    sources = compile(loaded, {("router.example", 0): (four, six)}, host()).rules[0].sources
    assert [(s.family, s.address[-4:]) for s in sources] == [(4, four.address), (6, six.address[-4:])]
    assert all(s.mask == b"\xff" * 16 for s in sources)


@pytest.mark.parametrize(
    ("text", "workers", "cpus"),
    [
        ("workers = 2", 2, ()),
        ('workers = "auto"', 2, (0, 1)),
        ('workers = "auto"\ncpus = [1]', 1, (1,)),
        ("workers = 3\ncpus = [1, 0]", 3, (1, 0)),
    ],
)
def test_workers(load: Load, text: str, workers: int, cpus: tuple[int, ...]) -> None:
    spec = plan(load, f"[datapath]\n{text}\n" + LISTENER + receiver() + RULE)
    assert (spec.workers, spec.cpus) == (workers, cpus)


def test_zero_checksum_over_ipv6_is_a_warning(load: Load) -> None:
    loaded = load(LISTENER + receiver("checksum = false", to="c.example:1") + RULE)
    six = ResolvedAddress(socket.inet_pton(socket.AF_INET6, "2001:db8::5"))
    spec = compile(loaded, {("c.example", 0): (six,)}, host())
    assert spec.receivers[0].udp.checksum
    assert any("RFC 8200" in warning for warning in spec.warnings)


def test_fixed_source_on_a_listeners_port(load: Load) -> None:
    found = problems(load, LISTENER + receiver('engine = "udp"\nsource = "127.0.0.1:2055"') + RULE)
    assert "listener" in found[0]


@pytest.mark.parametrize(
    ("extra", "why"),
    [
        ('engine = "transparent"', "write spoof = true"),
        ('engine = "packet"', "write spoof = true"),
        ('spoof = true\nengine = "transparent"\nchecksum = false', "checksum = false"),
        ('spoof = true\nengine = "transparent"\npause_us = 5', "pause_us"),
        ('spoof = true\nengine = "packet"\npause_us = 5', "pause_us"),
    ],
)
def test_engines_that_do_not_fit(load: Load, extra: str, why: str) -> None:
    found = problems(load, LISTENER + receiver(extra) + RULE)
    assert len(found) == 1
    assert why in found[0]


def test_a_group_is_spoofed_by_the_raw_socket(load: Load) -> None:
    spec = plan(load, LISTENER + receiver("spoof = true", to="239.1.2.3:9") + RULE).receivers[0]
    assert (spec.engine, "group" in spec.udp.engine_why) == ("raw", True)
    spec = plan(load, LISTENER + receiver("spoof = true", to="[ff0e::1]:9") + RULE).receivers[0]
    assert spec.engine == "transparent"


@pytest.mark.parametrize(
    ("mtu", "wanted"), [("", 0), ('mtu = "auto"', 0), ("mtu = 1280", 1280), ("mtu = 65535", 65535)]
)
def test_mtu(load: Load, mtu: str, wanted: int) -> None:
    assert plan(load, LISTENER + receiver(mtu, to="[2001:db8::2]:9") + RULE).receivers[0].udp.mtu == wanted


def test_mtu_that_does_not_fit(load: Load) -> None:
    found = problems(load, LISTENER + receiver("mtu = 1279", to="[2001:db8::2]:9") + RULE)
    assert "receiver[0].mtu" in found[0]
    assert "1280" in found[0]
    warning = plan(load, LISTENER + receiver("mtu = 1400") + RULE, net_raw=False).warnings[0]
    assert "receiver[0].mtu" in warning
    assert "CAP_NET_RAW" in warning


def test_packet_to_this_host_says_that_it_leaves_by_raw(load: Load) -> None:
    text = LISTENER + receiver('spoof = true\nengine = "packet"', to="192.0.2.7:9") + RULE
    spec = compile(load(text), {}, host("192.0.2.7"))
    assert "the receiver is this host" in spec.receivers[0].udp.engine_why


GROUP = """[[receiver]]
name = "s"
to = "192.0.2.2:9995"
standby_for = "r"
[[receiver]]
name = "m"
to = "c.example:1"
probe = "http://health.example:8080/up"
[[pool]]
name = "p"
members = ["m", "r"]
weight = [2, 5]
balance = "round-robin"
"""


def test_standbys_and_pools(load: Load) -> None:
    loaded = load(LISTENER + receiver() + GROUP + '[[rule]]\nto = ["p", "r"]\n[[rule]]\nto = ["m"]\n')
    names = names_of(loaded.config)
    assert names == {("c.example", 0): ("receiver", 2, "to"), ("health.example", 0): ("receiver", 2, "probe")}
    found = {("c.example", 0): (ResolvedAddress(bytes([192, 0, 2, 3])),)}
    spec = compile(loaded, found, host())
    assert "receiver[2].probe: the host name 'health.example' does not resolve" in spec.warnings[0]
    assert (spec.receivers[2].probe.address, spec.receivers[2].missing) == (b"", "")
    found[("health.example", 0)] = (ResolvedAddress(bytes([192, 0, 2, 9])),)
    spec = compile(loaded, found, host())
    assert spec.pools == (PoolSpec("p", "round-robin", ((2, 2), (0, 5))),)
    assert [(rule.receivers, rule.pools) for rule in spec.rules] == [((0, 1), (0,)), ((2,), ())]
    assert [(r.name, r.standby_for, r.needed) for r in spec.receivers] == [
        ("r", "", True), ("s", "r", False), ("m", "", True),
    ]  # fmt: skip
    assert spec.receivers[2].probe == ProbeSpec("http", bytes([192, 0, 2, 9]), 8080, 0, "health.example:8080", "/up")


def test_a_probe_without_a_host_asks_the_receivers_own(load: Load) -> None:
    loaded = load(LISTENER + receiver('probe = "tcp://:4739"', to="[2001:db8::1]:9995") + RULE)
    spec = compile(loaded, {}, host())
    six = socket.inet_pton(socket.AF_INET6, "2001:db8::1")
    assert spec.receivers[0].probe == ProbeSpec("tcp", six, 4739, 0, "[2001:db8::1]:4739", "")
    assert not spec.receivers[0].needed


def test_a_receiver_that_is_never_asked_is_not_waited_for(load: Load) -> None:
    text = receiver('probe = "off"') + '[[pool]]\nname = "p"\nmembers = ["r"]\n[[rule]]\nto = ["p"]\n'
    assert not plan(load, LISTENER + text).receivers[0].needed
