"""`to = "k8s://..."`: what is read, what is refused, what is only doubtful. (The texts: golden/error_texts.txt.)"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samplicator.config.convert import to_toml
from samplicator.config.kubernetes import ServicePort, is_member_of, member_name, parse_service_port
from samplicator.config.toml.load import parse_toml
from samplicator.errors import ConfigError

HEAD = '[[listener]]\nname = "in"\nlisten = ["0.0.0.0:2055"]\n'
SIEM = '[[receiver]]\nname = "siem"\nto = "k8s://monitoring/collector:flow"\n'
RULE = '[[rule]]\nto = ["siem"]\n'


def problems(text: str) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        parse_toml(text.encode(), "f")
    return [str(problem) for problem in raised.value.problems]


@pytest.mark.parametrize(
    ("text", "port", "name"),
    [
        ("k8s://monitoring/collector:2055", 2055, ""),
        ("k8s://monitoring/collector:65535", 65535, ""),
        ("k8s://monitoring/collector:netflow", 0, "netflow"),
        ("k8s://monitoring/collector:9p", 0, "9p"),
    ],
)
def test_ports(text: str, port: int, name: str) -> None:
    assert parse_service_port(text) == ServicePort("monitoring", "collector", port, name, text)


@pytest.mark.parametrize(
    "text",
    [
        "k8s://collector:2055",
        "k8s:///collector:2055",
        "k8s://a/b/c:2055",
        "k8s://a/b",
        "k8s://a/b:",
        "k8s://A/b:1",
        "k8s://a/b_c:1",
        "k8s://a/-b:1",
        f"k8s://a/{'b' * 64}:1",
        "k8s://a/b:0",
        "k8s://a/b:70000",
        "k8s://a/b:Flow",
        "k8s://a/b:--",
        "k8s://a/b:a--b",
        "k8s://a/b:sixteenletters-x",
        "k8s://a/b:1\n",
        "kubernetes://a/b:1",
        "K8S://a/b:1",
        "k8s:a/b:1",
    ],
)
def test_refused(text: str) -> None:
    quoted = text.replace("\n", "\\n")
    (problem,) = problems(HEAD + SIEM.replace("k8s://monitoring/collector:flow", quoted) + RULE)
    assert problem.startswith("f:6: receiver[0].to: ")


@given(st.text(max_size=40))
def test_any_text(text: str) -> None:
    """A value or a ValueError, nothing else."""
    try:
        found = parse_service_port("k8s://" + text)
    except ValueError:
        return
    assert found.text == f"k8s://{found.namespace}/{found.service}:{text.rpartition(':')[2]}"


def test_written_out_and_read_again() -> None:
    loaded = parse_toml((HEAD + SIEM + RULE).encode(), "f")
    assert parse_toml(to_toml(loaded).encode(), "g").config == loaded.config
    assert not loaded.warnings


def test_names_of_pods() -> None:
    assert member_name("siem", 7) == "siem/7"
    assert is_member_of("siem/7", "siem")
    assert not any(is_member_of(name, "siem") for name in ("siem", "siem/", "siem/07", "siem/x", "siem/7/8", "siemx/7"))
    other = '[[receiver]]\nname = "siem/3"\nto = "192.0.2.1:1"\n'
    (problem,) = problems(HEAD + SIEM + other + RULE)
    assert problem == (
        "f:8: receiver[1].name: 'siem/3' is a name that samplicator gives to a pod of receiver[0]; write another name"
    )
    pool = '[[pool]]\nname = "siem/0"\nmembers = ["siem"]\n'
    (problem,) = problems(HEAD + SIEM + pool + RULE)
    assert problem.startswith("f:8: pool[0].name: 'siem/0' is a name that")


def test_neither_standby_nor_primary() -> None:
    plain = '[[receiver]]\nname = "plain"\nto = "192.0.2.1:1"\n'
    (problem,) = problems(HEAD + SIEM + 'standby_for = "plain"\n' + plain + RULE)
    assert problem.startswith("f:7: receiver[0].standby_for: the pods of a Kubernetes Service cannot be a standby")
    (problem,) = problems(HEAD + SIEM + plain + 'standby_for = "siem"\n' + RULE)
    assert problem.startswith("f:10: receiver[1].standby_for: 'siem' (receiver[0]) is a Kubernetes Service")


def test_a_source_port_for_several_pods() -> None:
    (problem,) = problems(HEAD + SIEM + 'source = "192.0.2.9:1234"\n' + RULE)
    assert problem.startswith("f:7: receiver[0].source: several pods cannot share the source port 1234")
    assert parse_toml((HEAD + SIEM + 'source = "192.0.2.9"\n' + RULE).encode(), "f")


def test_without_probes() -> None:
    (warning,) = parse_toml((HEAD + SIEM + 'probe = "off"\n' + RULE).encode(), "f").warnings
    assert str(warning).startswith("f:7: receiver[0].probe: 'siem' has probe = \"off\", so a ready pod")
