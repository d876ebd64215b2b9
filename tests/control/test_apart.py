"""Where exporters can be taken for each other: what check says, what is refused, and where aliases are kept."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
from samplicator._fastpath import ALIAS_BYTES
from samplicator.datapath import aliases
from samplicator.errors import ConfigError
from samplicator.host import masquerade
from samplicator.plan.explain import explain, lines, parse_exporter
from samplicator.plan.planner import compile
from samplicator.plan.spec import PlanSpec
from samplicator.supervisor.supervisor import Supervisor
from support.hosts import Load, free_port, host


def plan(
    load: Load, receiver: str = "", rule: str = 'to = ["r"]', listener: str = "", port: int = 2055, more: str = ""
) -> PlanSpec:
    text = f"""[[listener]]
name = "in"
listen = ["127.0.0.1:{port}"]
{listener}
[[receiver]]
name = "r"
to = "192.0.2.1:9995"
{receiver}
[[rule]]
{rule}
{more}"""
    return compile(load(text), {}, host("192.0.2.77"))


def warned(spec: PlanSpec) -> bool:
    found = [warning for warning in spec.warnings if "can mix up their templates" in warning]
    assert len(found) <= 1
    return bool(found)


@pytest.mark.parametrize("rule", ['to = ["r"]', 'from = ["10.0.0.0/31"]\nto = ["r"]', 'from = ["::/0"]\nto = ["r"]'])
def test_several_exporters_and_one_source(load: Load, rule: str) -> None:
    assert warned(plan(load, rule=rule))
    for receiver in ('source_port = "per-session"', 'domain = "unique"', "spoof = true"):
        assert not warned(plan(load, receiver, rule))
    for listener, port in (('flow = "off"', 2055), ("", 514), ("", 6343)):
        assert not warned(plan(load, rule=rule, listener=listener, port=port))


def test_one_exporter_is_nobody_elses(load: Load) -> None:
    one, other = 'from = ["10.0.0.1"]\nto = ["r"]', '[[rule]]\nfrom = ["{}"]\nto = ["{}"]\n'
    assert not warned(plan(load, rule=one))
    assert not warned(plan(load, rule=one, more=other.format("10.0.0.1", "r")))
    assert warned(plan(load, rule=one, more=other.format("10.0.0.2", "r")))
    pool = '[[pool]]\nname = "p"\nmembers = ["r"]\n'
    assert warned(plan(load, rule=one, more=other.format("10.0.0.2", "p") + pool))


def test_names_are_counted(load: Load) -> None:
    extra = "".join(f'[[receiver]]\nname = "r{n}"\nto = "192.0.2.2:{n + 1}"\n' for n in range(8))
    names = ", ".join(f'"r{n}"' for n in range(8))
    (warning,) = plan(load, more=f"{extra}[[rule]]\nto = [{names}]\n").warnings
    assert warning.startswith("receivers 'r', 'r0', 'r1', 'r2', 'r3' and 4 more: copies are not spoofed")


def test_domains_that_are_not_looked_at(load: Load) -> None:
    other = '[[listener]]\nname = "quiet"\nlisten = ["127.0.0.1:2056"]\nflow = "off"\n'
    (warning,) = plan(load, 'domain = "unique"', more=other).warnings
    assert "receiver 'r' (listener 'quiet')" in warning


@pytest.mark.parametrize(
    ("receiver", "why"),
    [
        ('source_port = "per-session"\nspoof = true', "a spoofed copy has the exporter's port"),
        ('source_port = "per-session"\nengine = "raw"', '"per-session" cannot be combined with engine "raw"'),
        ('source_port = "per-session"\nsource = "192.0.2.77:4000"', "`source` has port 4000"),
        ('source_port = "per-session"\nsource = "203.0.113.9"', "that is not an address of this host"),
        ('source_port = "own"', "'shared' or 'per-session'"),
        ('domain = "other"', "'keep' or 'unique'"),
    ],
)
def test_what_cannot_be(load: Load, receiver: str, why: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plan(load, receiver)
    assert why in str(caught.value)


def test_explain_says_how(load: Load) -> None:
    address, port = parse_exporter("10.1.2.3:5000")

    def text(receiver: str, **more: str) -> str:
        return "\n".join(lines(explain(plan(load, receiver, **more), address, port, 2055), address, port, 2055))

    assert "can mix up templates of several exporters of NetFlow v9 and IPFIX; set spoof = true, source_port" in text(
        ""
    )
    assert "has its own domain in copies (see samplicator domains)" in text('domain = "unique"')
    own = text('source_port = "per-session"')
    assert "from this host's address, one port per exporter session: not spoofed" in own
    assert "has its own port in copies" in own
    for quiet in (text("spoof = true"), text("", listener='flow = "off"')):
        assert "exporter of NetFlow v9" not in quiet


RULESET = """table ip nat {
\tchain postrouting {
\t\ttype nat hook postrouting priority srcnat; policy accept;
\t\toifname "eth0" masquerade
\t\tip daddr 192.0.2.0/24 counter packets 0 bytes 0 snat to 198.51.100.1
\t}
}
table inet filter {
\tchain input {
\t\ttype filter hook input priority filter; policy accept;
\t\tudp dport 2055 accept comment "no masquerade here, snat to nothing"
\t}
}
"""


def test_rules_that_rewrite_sources() -> None:
    found = masquerade.parse("nft", RULESET)
    assert found == [
        'nft: table ip nat chain postrouting: oifname "eth0" masquerade',
        "nft: table ip nat chain postrouting: ip daddr 192.0.2.0/24 counter packets 0 bytes 0 snat to 198.51.100.1",
    ]
    assert "chain postrouting" in masquerade.sentence(found)
    legacy = "*nat\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING -s 10.0.0.0/8 -j MASQUERADE\nCOMMIT\n"
    assert masquerade.parse("iptables-legacy-save", legacy) == [
        "iptables-legacy-save: -A POSTROUTING -s 10.0.0.0/8 -j MASQUERADE"
    ]
    assert masquerade.parse("nft", "") == []
    assert masquerade.parse("nft", '\t\txt target "MASQUERADE"\n') == ['nft: xt target "MASQUERADE"']
    assert masquerade.parse("nft", "\t\tjump KUBE-MARK-MASQ\n\tchain masquerade {\n\t\tjump snat\n") == []


def test_tools_that_fail_say_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tool = tmp_path / "nft"
    tool.write_text("#!/bin/sh\nexit 1\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert masquerade.rules() == []
    tool.write_text(f"#!/bin/sh\ncat <<'END'\n{RULESET}END\n")
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    assert len(masquerade.rules()) >= 2


# ---------------------------------------------------------------------------------------------------- the file


def test_the_file_is_made_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "control.sock.domains"
    made = aliases.make(str(path))
    alias = made.handle.take(bytes([10, 0, 0, 1]), 5, 9, 3, 100)
    assert path.stat().st_size == ALIAS_BYTES
    assert path.stat().st_mode & 0o777 == 0o600
    del made
    ((row,), after) = aliases.rows(aliases.make(str(path)), 0, 10)
    assert after == 0
    assert (row.alias, row.address, row.port, row.protocol, row.domain) == (alias, "10.0.0.1", 5, "netflow9", 3)
    assert aliases.rows(None, 0, 10) == ([], 0)


@pytest.mark.parametrize("kind", ["link", "folder", "nowhere"])
def test_a_file_that_cannot_be_had(tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str) -> None:
    """Aliases are the same without it, but for sessions that share one address and domain."""
    path = tmp_path / "domains"
    if kind == "link":
        (tmp_path / "precious").write_text("precious")
        path.symlink_to(tmp_path / "precious")
    elif kind == "folder":
        path.mkdir()
    else:
        path = tmp_path / "no" / "domains"
    with caplog.at_level(logging.WARNING):
        made = aliases.make(str(path))
    assert made.handle.take(bytes([10, 0, 0, 1]), 5, 9, 3, 100) != 0
    assert "assigned domains will not survive a restart" in caplog.text
    if kind == "link":
        assert (tmp_path / "precious").read_text() == "precious"


def test_two_of_us_do_not_share_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As with two services that have the same service.control: the second one has its table in memory."""
    path = tmp_path / "domains"
    first = aliases.make(str(path))
    second = aliases.make(str(path))
    assert "another samplicator uses this file" in caplog.text
    second.handle.take(bytes([10, 0, 0, 1]), 5, 9, 3, 100)
    assert aliases.rows(first, 0, 10) == ([], 0)
    first.handle.take(bytes([10, 0, 0, 2]), 5, 9, 3, 100)
    del first
    ((row,), _) = aliases.rows(aliases.make(str(path)), 0, 10)
    assert row.address == "10.0.0.2"


def test_a_file_in_use_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Even by a version with a table of another size, which would cut it off under its user: SIGBUS."""
    path = tmp_path / "domains"
    made = aliases.make(str(path))
    alias = made.handle.take(bytes([10, 0, 0, 1]), 5, 9, 3, 100)
    os.truncate(path, 2 * ALIAS_BYTES)
    with caplog.at_level(logging.WARNING):
        other = aliases.make(str(path))
    assert "another samplicator uses this file" in caplog.text
    assert other.handle.take(bytes([10, 0, 0, 1]), 6, 9, 3, 100) == alias
    assert path.stat().st_size == 2 * ALIAS_BYTES
    assert [row.port for row in aliases.rows(made, 0, 10)[0]] == [5]


def test_what_was_no_table_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "domains"
    path.write_bytes(os.urandom(ALIAS_BYTES))
    assert aliases.rows(aliases.make(str(path)), 0, 10) == ([], 0)
    path.write_bytes(b"short")
    assert aliases.rows(aliases.make(str(path)), 0, 10) == ([], 0)


def test_the_supervisor_makes_it_when_it_is_needed(load: Load, tmp_path: Path) -> None:
    control = tmp_path / "c.sock"
    service = f'[service]\nhttp = ""\ncontrol = "{control}"\n'
    path = tmp_path / "c.sock.domains"
    supervisor = Supervisor()
    text = (
        f'{service}[[listener]]\nname = "in"\nlisten = ["127.0.0.1:{free_port()}"]\n'
        '[[receiver]]\nname = "r"\nto = "127.0.0.1:9"\n[[rule]]\nto = ["r"]\n'
    )
    try:
        supervisor.apply(compile(load(text), {}, host()))
        assert not path.exists()
        supervisor.apply(compile(load(text.replace('name = "r"\n', 'name = "r"\ndomain = "unique"\n')), {}, host()))
        assert path.exists()
        assert supervisor.view.aliases(0, 5) == ([], 0)
        assert supervisor.view.aliases_unlisted() == 0
    finally:
        supervisor.drain_and_stop(0.1)
