"""EndpointSlices to pods, and pods to a plan: pure."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samplicator.cluster.slices import choose, read_slice
from samplicator.config.address import address_bytes, address_text
from samplicator.config.kubernetes import ServicePort, parse_service_port
from samplicator.config.toml.load import parse_toml
from samplicator.datapath.ways import meets, receiver_key
from samplicator.plan.explain import explain, lines, parse_exporter
from samplicator.plan.names import names_of
from samplicator.plan.planner import compile
from samplicator.plan.pods import Pod, Pods, PodsOf
from samplicator.plan.spec import Capabilities, PlanSpec
from support.apiserver import endpoint, make_slice, port

FLOW = parse_service_port("k8s://monitoring/collector:flow")
NUMBER = parse_service_port("k8s://monitoring/collector:9995")
A, B = endpoint("c-0", "10.0.0.10"), endpoint("c-1", "10.0.0.11")
A6 = endpoint("c-0", "2001:db8::10")


def chosen(*slices: dict[str, Any], wanted: ServicePort = FLOW, family: int = 0) -> dict[str, str]:
    found = choose([read_slice(item)[1] for item in slices], wanted, family)
    return {pod.name: f"{address_text(pod.address)} {number}" for pod, number in found.pods.values()}


def why(*slices: dict[str, Any], wanted: ServicePort = FLOW, family: int = 0) -> str:
    return choose([read_slice(item)[1] for item in slices], wanted, family).why


def test_conditions() -> None:
    unknown = endpoint("c-2", "10.0.0.12", ready=None)
    waiting = endpoint("c-3", "10.0.0.13", ready=False)
    ending = endpoint("c-4", "10.0.0.14", ready=True, serving=True, terminating=True)  # publishNotReadyAddresses
    assert set(chosen(make_slice("a", A, unknown, waiting, ending))) == {"c-0", "c-2"}
    assert set(chosen(make_slice("a", waiting, ending))) == {"c-4"}, "the last pods that serve"
    assert why(make_slice("a", waiting)) == "the Service monitoring/collector has no ready pod (1 is not ready)"


def test_families() -> None:
    both = make_slice("a", A), make_slice("b", A6, addressType="IPv6")
    assert chosen(*both) == {"c-0": "10.0.0.10 9995"}
    assert chosen(*reversed(both)) == {"c-0": "10.0.0.10 9995"}
    assert chosen(*both, family=6) == {"c-0": "2001:db8::10 9995"}
    assert chosen(both[1]) == {"c-0": "2001:db8::10 9995"}
    assert why(both[1], family=4) == "the Service monitoring/collector has no IPv4 pod, or there is no such Service"
    assert chosen(make_slice("c", A, addressType="FQDN")) == {}


def test_ports() -> None:
    tcp = make_slice("a", A, ports=[port(9995, "flow", "TCP"), port(9443, "web", "TCP")])
    assert chosen(tcp) == {}
    assert why(tcp) == (
        "the pods of monitoring/collector have no UDP port 'flow', and the Service monitoring/collector has no port "
        "with protocol: UDP"
    )
    other = make_slice("a", A, ports=[port(9995, "ipfix"), port(9995, "flow", "TCP"), port(514, "")])
    assert why(other).endswith("UDP port 'flow'; write the port that they listen at: 9995 (ipfix), 514")
    assert chosen(other, wanted=NUMBER) == {"c-0": "10.0.0.10 9995"}
    both = make_slice("a", A, ports=[port(9995, "flow", "TCP"), port(9996)])
    assert chosen(both) == {"c-0": "10.0.0.10 9996"}, "one name for both protocols"
    assert chosen(make_slice("a", A, ports=[]), wanted=NUMBER) == {"c-0": "10.0.0.10 9995"}, "headless, without ports"
    assert chosen(make_slice("a", A, ports=[port(None)]), wanted=NUMBER) == {"c-0": "10.0.0.10 9995"}
    assert chosen(make_slice("a", A, ports=[])) == {}
    rollout = make_slice("a", A), make_slice("b", B, ports=[port(2055)])
    assert chosen(*rollout) == {"c-0": "10.0.0.10 9995", "c-1": "10.0.0.11 2055"}, "a named targetPort that changes"


def test_a_pod_in_two_slices_counts_once() -> None:
    late = {**A, "conditions": {"ready": False}}
    assert chosen(make_slice("a", late), make_slice("b", A)) == {"c-0": "10.0.0.10 9995"}
    assert choose([read_slice(make_slice(name, A))[1] for name in "ab"], FLOW, 0).waiting == 0


@pytest.mark.parametrize("bad", ["127.0.0.1", "0.0.0.0", "224.0.0.1", "169.254.1.1", "255.255.255.255", "x", "::1", 7])
def test_addresses_that_no_pod_has(bad: object) -> None:
    assert chosen(make_slice("a", {**A, "addresses": [bad]}, B)) == {"c-1": "10.0.0.11 9995"}


KEYS = "metadata name addressType endpoints ports addresses conditions targetRef topology port protocol ready uid"
LEAVES = st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(["IPv4", "UDP", "10.0.0.1"])
JSON = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS.split()), inner, max_size=6),
    max_leaves=30,
)


@given(JSON)
def test_whatever_the_server_sends(value: Any) -> None:
    if isinstance(value, dict):
        choose([read_slice(value)[1], read_slice({**make_slice("a", A), **value})[1]], FLOW, 0)


# ---------------------------------------------------------------------------------------------------- the plan

TEXT = """
[[listener]]
name = "in"
listen = ["0.0.0.0:2055"]
[[receiver]]
name = "first"
to = "192.0.2.1:9995"
[[receiver]]
name = "siem"
to = "k8s://monitoring/collector:flow"
freq = 3
probe = "tcp://:8080"
[[receiver]]
name = "last"
to = "192.0.2.2:9995"
[[rule]]
to = ["siem", "last"]
"""


def pods(*last: int, uid: str = "") -> PodsOf:
    found = tuple(
        Pod(number, f"c-{number}", uid or f"u{number}", address_bytes(f"10.0.0.{n}"), 9995)
        for number, n in enumerate(last)
    )
    return lambda wanted, family: Pods(found, "" if found else "there is none")


def plan(pods_of: PodsOf, text: str = TEXT) -> PlanSpec:
    able = Capabilities(net_raw=True, pods=pods_of)
    return compile(parse_toml(text.encode(), "f"), {}, able)


def test_each_pod_is_a_receiver() -> None:
    spec = plan(pods(10, 11))
    assert [r.name for r in spec.receivers] == ["first", "siem/0", "siem/1", "last"]
    assert [r.index for r in spec.receivers] == [0, 1, 1, 2]
    assert [r.place for r in spec.receivers[1:3]] == ["10.0.0.10:9995", "10.0.0.11:9995"]
    assert all(r.needed and r.freq == 3 and r.written == "siem" for r in spec.receivers[1:3])
    assert [r.probe.host for r in spec.receivers[1:3]] == ["10.0.0.10:8080", "10.0.0.11:8080"]
    (pool,) = spec.pools
    assert (pool.name, pool.balance, pool.members) == ("siem", "exporter-hash", ((1, 1), (2, 1)))
    (rule,) = spec.rules
    assert (rule.receivers, rule.pools) == ((3,), (0,))
    assert not names_of(parse_toml(TEXT.encode(), "f").config)


def test_without_a_pod() -> None:
    spec = plan(pods())
    (empty,) = [r for r in spec.receivers if r.written]
    assert (empty.name, empty.missing, empty.unresolved) == ("siem/0", "there is none", True)
    assert spec.pools[0].members == ((1, 1),)
    assert (empty.udp.port, empty.place) == (0, "collector.monitoring.svc:?")
    assert any(str(w).startswith("f:10: receiver[1].to: there is none; until that") for w in spec.warnings)


def test_in_a_pool_its_pods_are_members() -> None:
    pool = '[[pool]]\nname = "p"\nmembers = ["siem", "last"]\nweight = [2, 1]\nbalance = "round-robin"\n'
    head = TEXT.partition("[[rule]]")[0]
    spec = plan(pods(10, 11), f'{head}{pool}[[rule]]\nto = ["p"]\n')
    names = [[(spec.receivers[i].name, weight) for i, weight in each.members] for each in spec.pools]
    assert len(spec.pools) == 1
    assert sorted(names[0]) == [("last", 1), ("siem/0", 2), ("siem/1", 2)]
    assert spec.rules[0].pools == (0,)


def test_another_pod_at_the_same_address_gets_templates() -> None:
    before, after = plan(pods(10, uid="x")).receivers[1], plan(pods(10, uid="y")).receivers[1]
    assert before.name == after.name
    assert receiver_key(before) != receiver_key(after)
    assert meets(before) != meets(after)


def test_the_same_pods_make_the_same_plan() -> None:
    assert plan(pods(10, 11)) == plan(pods(10, 11))
    moved = TEXT.replace('[[receiver]]\nname = "first"\nto = "192.0.2.1:9995"\n', "")
    assert receiver_key(plan(pods(10), moved).receivers[0]) == receiver_key(plan(pods(10)).receivers[1])


def test_one_warning_for_all_pods() -> None:
    able = Capabilities(net_raw=False, pods=pods(10, 11, 12))
    spec = compile(parse_toml(TEXT.replace("freq = 3", "spoof = true").encode(), "f"), {}, able)
    (warning,) = (text for text in spec.warnings if "receiver[1]" in text)
    assert "CAP_NET_RAW" in warning
    assert sum(r.pod is not None for r in spec.receivers) == 3


def test_a_port_without_a_number_is_shown_as_such() -> None:
    exporter, number = parse_exporter("192.0.2.7")
    text = "\n".join(lines(explain(plan(pods()), exporter, number, 2055), exporter, number, 2055))
    assert "siem/0: to collector.monitoring.svc:? (unreachable: there is none)" in text
    with_number = plan(pods(), TEXT.replace(":flow", ":9995"))
    assert [r.place for r in with_number.receivers if r.written] == ["collector.monitoring.svc:9995"]


def test_explained() -> None:
    exporter, number = parse_exporter("192.0.2.7")
    spec = plan(pods(10, 11))
    text = "\n".join(lines(explain(spec, exporter, number, 2055), exporter, number, 2055))
    assert "pool siem: one of siem/0, siem/1, by exporter-hash" in text
    assert "siem/1: to 10.0.0.11:9995 (pod c-1 of collector.monitoring.svc)" in text
