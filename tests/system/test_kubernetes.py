"""A receiver that is a Kubernetes Service: its pods come and go while exporters send, and the API server with them."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.apiserver import ApiServer, endpoint, make_slice
from support.lab import Lab
from support.process import command, wait_for
from support.relay import Relay
from support.telemetry import Exporter, domain, flock, sets
from support.witness import Seen, Tap

PORT = 9995
TEXT = """
[[listener]]
name = "in"
listen = ["0.0.0.0:2055"]
[[receiver]]
name = "siem"
to = "k8s://monitoring/collector:flow"
spoof = true
[[rule]]
to = ["siem"]
"""
AS_POD = """
mount -t tmpfs none /run && mkdir -p /run/secrets/kubernetes.io/serviceaccount &&
mount --bind "$1" /run/secrets/kubernetes.io/serviceaccount && shift && exec "$@"
"""


@pytest.fixture
def server(lab: Lab, tmp_path: Path) -> Iterator[ApiServer]:
    server = lab.relay.call(lambda: ApiServer(tmp_path))
    yield server
    if server._server is not None:
        server.go()


def as_pod(lab: Lab, server: ApiServer) -> Relay:
    """The daemon with a service account."""
    path = lab.directory / "samplicator.toml"
    path.write_text(lab.with_service(TEXT))
    argv = ["sh", "-c", AS_POD, "sh", str(server.folder), command("samplicator"), "run", "-c", str(path)]
    relay = Relay(lab, argv, "samplicator", env=server.environ)
    lab.relays.append(relay)
    return relay.wait_ready()


class Pods:
    """Two places for pods, and exporters that send to them."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.exporters: list[Exporter] = flock(lab, 24)
        self.sinks = [lab.collector_socket(1 + place, PORT) for place in range(2)]
        self.taps: list[Tap] = [lab.tap(1 + place, lambda seen: seen.port == PORT) for place in range(2)]

    def endpoint(self, place: int, uid: str = "") -> dict[str, object]:
        return endpoint(f"collector-{place}", self.lab.peer4(1 + place), uid=uid)

    def round(self) -> list[list[Seen]]:
        """One datagram of each exporter, and what each pod got of them."""
        kind = "data" if self.exporters[0].sent else "template"  # replays of templates come besides
        for exporter in self.exporters:
            exporter.send()
        got: list[list[Seen]] = [[], []]

        def all_there() -> bool:
            for place, tap in enumerate(self.taps):
                tap.drain()
                got[place] += tap.seen
                tap.seen.clear()
            return sum(kind in sets(seen) for each in got for seen in each) >= len(self.exporters)

        wait_for(all_there, "a copy of each datagram", 10)
        return got


def homes(got: list[list[Seen]]) -> dict[int, set[int]]:
    """Places that got data, by observation domain."""
    found: dict[int, set[int]] = defaultdict(set)
    for place, seen in enumerate(got):
        for each in seen:
            if "data" in sets(each):
                found[domain(each)].add(place)
    return found


def ready(relay: Relay, *pods: str) -> None:
    """Waits until these pods get copies."""

    def there() -> bool:
        members = {each["receiver"] for pool in relay.api("pools") for each in pool["members"] if each["up"]}
        shown = [pod for each in relay.api("kubernetes") for pod in each["pods"] if pod["receiver"] in members]
        return sorted(pod["pod"] for pod in shown) == sorted(pods)

    wait_for(there, f"{pods} to get copies", 20)


def test_pods_come_and_go(lab: Lab, server: ApiServer) -> None:
    pods = Pods(lab)
    zero, one = pods.endpoint(0), pods.endpoint(1)
    server.set(make_slice("a", zero, one))
    relay = as_pod(lab, server)
    ready(relay, "collector-0", "collector-1")
    pods.round()  # templates
    both = homes(pods.round())
    assert len(both) == 24
    assert all(len(places) == 1 for places in both.values())
    assert {place for places in both.values() for place in places} == {0, 1}
    assert relay.metrics().value("kubernetes_pods", receiver="siem") == 2

    begun = time.monotonic()
    server.set(make_slice("a", one))
    ready(relay, "collector-1")
    print(f"a pod that is not ready gets nothing more after {time.monotonic() - begun:.2f} s")
    assert set(map(tuple, homes(pods.round()).values())) == {(1,)}

    server.go()
    wait_for(lambda: relay.metrics().value("kubernetes_followed", receiver="siem") == 0, "the state", 20)
    assert set(map(tuple, homes(pods.round()).values())) == {(1,)}
    server.set(make_slice("a", zero, one))
    lab.relay.call(server.come)
    ready(relay, "collector-0", "collector-1")
    again = pods.round()
    known = {domain(seen) for seen in again[0] if "template" in sets(seen)}
    last = homes(pods.round())
    assert all(len(places) == 1 for places in last.values())
    of_zero = {key for key, places in last.items() if places == {0}}
    assert of_zero
    assert of_zero <= known  # a new pod gets the templates of an exporter before its data
    relay.check_laws()


def test_a_service_without_a_pod(lab: Lab, server: ApiServer) -> None:
    """A state, not an error: copies are counted as no_route until a pod is ready."""
    pods = Pods(lab)
    server.set(make_slice("a", {**pods.endpoint(0), "conditions": {"ready": False}}))
    relay = as_pod(lab, server)
    for exporter in pods.exporters:
        exporter.send()
    wait_for(lambda: relay.metrics().total("send_failed_datagrams_total", reason="no_route") == 24, "24 failed copies")
    (receiver,) = relay.api("receivers")
    assert (receiver["name"], receiver["state"]) == ("siem/0", "unreachable")
    assert receiver["state_why"] == "the Service monitoring/collector has no ready pod (1 is not ready)"
    status, text = relay.get("/readyz")
    assert status == 200
    assert b"has no ready pod" in text
    server.set(make_slice("a", pods.endpoint(0)))
    ready(relay, "collector-0")
    assert len(homes(pods.round())) == 24
    relay.check_laws()


def test_a_deployment_that_flaps(lab: Lab, server: ApiServer) -> None:
    """Plans are made about once per second at most, whatever the pods do."""
    pods = Pods(lab)
    zero, one = pods.endpoint(0), pods.endpoint(1)
    server.set(make_slice("a", zero))
    relay = as_pod(lab, server)
    ready(relay, "collector-0")
    before, begun = relay.api("status")["config"]["generation"], time.monotonic()
    for _ in range(60):
        server.set(make_slice("a", zero, one))
        time.sleep(0.05)
        server.set(make_slice("a", zero))
        time.sleep(0.05)
    made = relay.api("status")["config"]["generation"] - before
    assert made <= (time.monotonic() - begun) + 2
    server.set(make_slice("a", zero, one))
    ready(relay, "collector-0", "collector-1")
    made = relay.api("status")["config"]["generation"] - before
    assert 1 <= made <= (time.monotonic() - begun) + 2
    relay.check_laws()
