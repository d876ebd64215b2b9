"""A real cluster of one node: what the API server thinks of the manifests, and what the relay does in a pod.

Kubernetes 1.20, which Debian 12 has the source of, so the fields of later releases are left out. Each test prints what
it measured.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.cluster import Cluster, ready
from support.image import PLACE, Engine
from support.lab import Lab
from support.manifests import KUBERNETES, OVERLAYS, Object, compose, kustomize
from support.process import Process
from support.relay import Metrics
from support.witness import PACKET_IGNORE_OUTGOING, SOL_PACKET, Tap

pytestmark = [
    pytest.mark.deploy_heavy,
    pytest.mark.netns,
    pytest.mark.timeout(7200),  # the first time the cluster is built from source
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: a kubelet, containers"),
]

IMAGE = "localhost/samplicator:test"
NAMESPACE = "samplicator"
RELAY = "app.kubernetes.io/name=samplicator"
PORT = 9995
SERVICE = """
[service]
http = "0.0.0.0:9420"
log_format = "json"
own_control = "/run/samplicator-pod/control.sock"

[[listener]]
name = "in"
listen = ["0.0.0.0:2055"]
"""
COLLECTOR = "import socket; s = socket.socket(2, 2); s.bind(('', 9995))\nwhile True: s.recv(65535)"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    made = Lab()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def cluster(lab: Lab) -> Iterator[Cluster]:
    """With the relay's image on the node: of this tree, or from the archive that SAMPLICATOR_IMAGE names."""
    archive = Path(os.environ.get("SAMPLICATOR_IMAGE", PLACE / "cluster.tar"))
    if "SAMPLICATOR_IMAGE" not in os.environ:
        engine = Engine()
        try:
            engine.build(IMAGE)
            archive.unlink(missing_ok=True)
            engine.podman("save", "--format", "docker-archive", "--output", str(archive), IMAGE, timeout=600)
        finally:
            engine.close()
    begun = time.monotonic()
    made = Cluster(lab)
    try:
        made.image = made.load(archive)
        print(f"\nthe cluster is ready after {time.monotonic() - begun:.0f} s; MiB: {made.memory()}")
        yield made
    finally:
        made.close()


def receiver(name: str, to: str) -> str:
    return f'[[receiver]]\nname = "{name}"\nto = "{to}"\nspoof = true\n[[rule]]\nto = ["{name}"]\n'


def for_old(item: Object) -> Object:
    """The object without what 1.20 does not know: a DaemonSet's maxSurge (1.22)."""
    if item["kind"] == "DaemonSet":
        update = item["spec"]["updateStrategy"]["rollingUpdate"]
        if update.pop("maxSurge", 0):
            update["maxUnavailable"] = 1
    return item


def for_test(item: Object, image: str) -> Object:
    """The object with the image of this test, and small enough for two pods on a node of two CPUs."""
    if item["kind"] == "DaemonSet":
        spec = item["spec"]["template"]["spec"]
        for container in [*spec["containers"], *spec.get("initContainers", ())]:
            container["image"] = image
            container["resources"] = {}
    return for_old(item)


def deploy(cluster: Cluster, folder: Path, overlay: str, config: str, **more: Any) -> list[Object]:
    """Applies an operator's overlay; returns its objects."""
    folder.mkdir(exist_ok=True)
    text = compose(folder, overlay, config=SERVICE + config, **more)
    items = [for_test(item, cluster.image) for item in yaml.safe_load_all(text)]
    cluster.apply(*items)
    return items


def relays(cluster: Cluster, selector: str = RELAY) -> list[Object]:
    return [pod for pod in cluster.pods(NAMESPACE, selector) if ready(pod)]


def page(lab: Lab, path: str) -> str:
    """A page of the relay, which has the network of the node."""
    with lab.relay.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.settimeout(10)
        sock.connect(("127.0.0.1", 9420))
        connection = http.client.HTTPConnection("relay")
        connection.sock = sock
        connection.request("GET", path)
        return connection.getresponse().read().decode()


def metrics(lab: Lab) -> Metrics:
    return Metrics(page(lab, "/metrics"))


def load(lab: Lab, *words: object) -> Process:
    """20 exporters."""
    return lab.load(
        "--to", f"{lab.relay4()}:2055", "--source-base", "198.18.64.1", "--exporters", 20, "--source-port", 50000,
        "--size", "200", *words,
    )  # fmt: skip


class Steady:
    """20 exporters that send a datagram each in turn, 1000 per second together, until the end."""

    def __init__(self, lab: Lab) -> None:
        self.sockets = [lab.exporter_socket(f"198.18.70.{n}", 50000) for n in range(1, 21)]
        self.sent = 0
        self._stop = threading.Event()
        self._to = (lab.relay4(), 2055)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(0.02):
            for sock in self.sockets:
                sock.sendto(b"x" * 100, self._to)
            self.sent += len(self.sockets)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()
        for sock in self.sockets:
            sock.close()


@pytest.fixture
def steady(lab: Lab) -> Iterator[Steady]:
    made = Steady(lab)
    yield made
    made.stop()


# ---------------------------------------------------------------------------------------------------- the manifests


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_api_server_accepts_every_overlay(cluster: Cluster, overlay: str) -> None:
    items = [for_old(item) for item in yaml.safe_load_all(kustomize(KUBERNETES / "overlays" / overlay))]
    namespaces = [item for item in items if item["kind"] == "Namespace"]
    cluster.apply(*namespaces)  # a dry run finds no namespace that is only in the same dry run
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
    said = cluster.kubectl("apply", "--dry-run=server", "-f", "-", stdin=text)
    assert said.count("server dry run") == len(items)


def test_the_api_server_refuses_what_it_should(cluster: Cluster) -> None:
    """The dry run would find a fault."""
    items = [for_old(item) for item in yaml.safe_load_all(kustomize(KUBERNETES / "overlays" / "spoof"))]
    (daemonset,) = (item for item in items if item["kind"] == "DaemonSet")
    daemonset["spec"]["template"]["spec"]["volumes"].pop()
    text = json.dumps(daemonset)
    assert "server dry run" not in cluster.kubectl("apply", "--dry-run=server", "-f", "-", stdin=text, ok=False)


# ---------------------------------------------------------------------------------------------------- in a pod


def test_spoofed_copies_arrive_and_the_configuration_follows(
    cluster: Cluster, lab: Lab, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A pod that is ready, 20,000 datagrams, then another ConfigMap."""
    folder = tmp_path_factory.mktemp("spoof")
    first = receiver("one", f"{lab.peer4(1)}:{PORT}")
    deploy(cluster, folder, "spoof", first)
    (pod,), seconds = cluster.wait("a relay that is ready", lambda: relays(cluster))
    print(f"\npod ready {seconds:.1f} s after kubectl apply")
    assert pod["spec"]["hostNetwork"]
    assert pod["status"]["hostIP"] == pod["status"]["podIP"] == lab.relay4()
    status = cluster.kubectl("-n", NAMESPACE, "exec", pod["metadata"]["name"], "--", "cat", "/proc/1/status")
    facts = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert facts["Uid"].split() == ["65532"] * 4
    assert facts["CapEff"] == f"{1 << 13:016x}"
    assert facts["NoNewPrivs"].strip() == "1"

    sink = lab.sink(1, f"{lab.peer4(1)}:{PORT}")
    sent = load(lab, "--rate", 4000, "--count", 20000).result(60)["sent"]
    got = lab.tally(sink)
    assert sent == got["received"] == 20000
    assert (got["lost"], got["repeated"], got["reordered"], got["exporters"]) == (0, 0, 0, 20)
    assert metrics(lab).law_violations() == []

    steady, second = Steady(lab), lab.collector_socket(2, PORT)
    before = metrics(lab).value("config_last_reload_success_timestamp_seconds")
    deploy(cluster, folder, "spoof", first + receiver("two", f"{lab.peer4(2)}:{PORT}"))
    begun = time.monotonic()
    second.settimeout(120)
    source = second.recvfrom(2048)[1]
    print(f"a change of the ConfigMap sends the first copy to the new receiver after {time.monotonic() - begun:.1f} s")
    steady.stop()
    assert source[0].startswith("198.18.70.")
    assert metrics(lab).value("config_last_reload_success_timestamp_seconds") >= before
    (now,) = relays(cluster)
    assert now["metadata"]["uid"] == pod["metadata"]["uid"]
    assert [each["restartCount"] for each in now["status"]["containerStatuses"]] == [0]


def collectors(image: str) -> list[Object]:
    """A namespace with a Deployment of collectors, none yet, and its Service."""
    name, labels = {"name": "collector", "namespace": "collectors"}, {"app": "collector"}
    port = {"name": "flow", "protocol": "UDP", "port": 2055, "targetPort": PORT}
    container = {
        "name": "collector",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["/opt/venv/bin/python", "-c", COLLECTOR],
        "ports": [{"name": "in", "protocol": "UDP", "containerPort": PORT}],
    }
    template = {
        "metadata": {"labels": labels},
        "spec": {"containers": [container], "terminationGracePeriodSeconds": 3},
    }
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "collectors"}},
        {"apiVersion": "v1", "kind": "Service", "metadata": name, "spec": {"selector": labels, "ports": [port]}},
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": name,
            "spec": {"replicas": 0, "selector": {"matchLabels": labels}, "template": template},
        },
    ]


class Arriving:
    """Who gets copies: datagrams by address of the pod, as they leave the node for the pods' bridge."""

    def __init__(self, lab: Lab) -> None:
        self.tap = Tap(lab.relay, "pods0", lambda seen: seen.port == PORT and len(seen.payload) == 100)
        self.tap.socket.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 0)

    def during(self, seconds: float) -> dict[str, set[tuple[str, int]]]:
        """Address of a pod -> the exporters that it got."""
        self.tap.clear()
        time.sleep(seconds)
        found: dict[str, set[tuple[str, int]]] = {}
        for seen in self.tap.drain():
            found.setdefault(seen.destination, set()).add(seen.exporter)
        self.tap.seen.clear()
        return found


def addresses(cluster: Cluster) -> set[str]:
    return {pod["status"]["podIP"] for pod in cluster.pods("collectors", "app=collector") if ready(pod)}


def followed(lab: Lab) -> set[str]:
    """Pods that the relay sends to, by its own account."""
    return {pod["address"] for each in json.loads(page(lab, "/api/v1/kubernetes")) for pod in each["pods"]}


def test_receivers_follow_a_deployment(
    cluster: Cluster, lab: Lab, steady: Steady, tmp_path_factory: pytest.TempPathFactory
) -> None:
    cluster.apply(*collectors(cluster.image))
    folder = tmp_path_factory.mktemp("kubernetes")
    config = receiver("siem", "k8s://collectors/collector:flow")
    token = {"components": ["k8s-receivers"]}
    deploy(cluster, folder, "spoof", config, **token)

    def refused() -> bool:
        found = json.loads(page(lab, "/api/v1/kubernetes"))
        return bool(found) and not found[0]["followed"] and "in namespace collectors (403: " in found[0]["why"]

    cluster.wait("a relay that may not read the EndpointSlices", answered(refused))
    deploy(cluster, folder, "spoof", config, **token, role_namespaces=["collectors"])

    def empty() -> bool:
        found = json.loads(page(lab, "/api/v1/kubernetes"))
        return bool(found) and found[0]["followed"] and "has no" in found[0]["why"]

    cluster.wait("a relay that follows a Service without pods", answered(empty))
    assert json.loads(page(lab, "/api/v1/receivers"))[0]["state"] == "unreachable"
    tap: Arriving | None = None
    for replicas in (1, 3, 2):
        cluster.kubectl("-n", "collectors", "scale", "deployment/collector", f"--replicas={replicas}")
        wanted, _ = cluster.wait(f"{replicas} pods", lambda n=replicas: len(w := addresses(cluster)) == n and w)
        _, late = cluster.wait("the relay to send to them", answered(lambda w=wanted: followed(lab) == w))
        time.sleep(0.5)
        tap = tap or Arriving(lab)
        got = tap.during(2.0)
        print(f"\n{replicas} pods: the relay follows {late:.1f} s after all were ready or gone; exporters by pod: "
              f"{sorted(len(each) for each in got.values())}")  # fmt: skip
        assert got.keys() == wanted
        assert sum(len(each) for each in got.values()) == 20, "an exporter has one pod"
        assert {source for each in got.values() for source in each} == {(f"198.18.70.{n}", 50000) for n in range(1, 21)}
    assert metrics(lab).value("kubernetes_pods", receiver="siem") == 2
    steady.stop()
    assert metrics(lab).law_violations() == []


def answered(probe: Callable[[], object]) -> Callable[[], object]:
    """The probe; nobody answering counts as no."""

    def ask() -> object:
        try:
            return probe()
        except (OSError, http.client.HTTPException, ValueError):
            return False

    return ask


# ---------------------------------------------------------------------------------------------------- rollouts


def test_a_plain_rollout_has_a_gap(cluster: Cluster, lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Without surge the port is closed from the end of the old pod to the start of the new one: how long is that?"""
    deploy(cluster, tmp_path_factory.mktemp("plain"), "spoof", receiver("one", f"{lab.peer4(1)}:{PORT}"))
    cluster.wait("the relay with this configuration", answered(lambda: set(names(lab)) == {"one"}))
    (before,), _ = cluster.wait("one relay", lambda: relays(cluster))
    sink, rate = lab.sink(1, f"{lab.peer4(1)}:{PORT}"), 2000
    sender = load(lab, "--rate", rate, "--seconds", 600)
    time.sleep(2)
    cluster.kubectl("-n", NAMESPACE, "rollout", "restart", "daemonset/samplicator")
    _, seconds = cluster.wait("another pod", lambda: another(cluster, before))
    sent = ended(sender)
    got = lab.tally(sink)
    lost = got["lost"]
    print(
        f"\nrollout without surge: another pod ready after {seconds:.1f} s; lost {lost} of {sent}, {lost / rate:.1f} s"
    )
    assert (got["repeated"], got["reordered"]) == (0, 0)
    assert 0 < got["lost"] < 30 * rate


def test_a_rollout_with_take_over_loses_nothing(
    cluster: Cluster, lab: Lab, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """maxSurge by hand, since the DaemonSet controller of 1.20 does not know it: the new pod starts beside the old one,
    takes over, and when it is ready the old one is deleted. Twice, there and back.
    """
    cluster.kubectl("-n", NAMESPACE, "delete", "daemonset", "--all", "--wait=true")
    cluster.wait("no relay", lambda: not cluster.pods(NAMESPACE, RELAY))
    config = receiver("one", f"{lab.peer4(1)}:{PORT}")
    items = deploy(cluster, tmp_path_factory.mktemp("takeover"), "spoof-take-over", config)
    (first,) = (item for item in items if item["kind"] == "DaemonSet")
    cluster.wait("a relay that is ready", lambda: relays(cluster))
    sink, rate = lab.sink(1, f"{lab.peer4(1)}:{PORT}"), 2000
    sender = load(lab, "--rate", rate, "--seconds", 600)
    time.sleep(2)
    begun, generations = time.monotonic(), [first, renamed(first, "next"), renamed(first, "last")]
    for old, new in pairwise(generations):
        cluster.apply(new)
        selector = f"app.kubernetes.io/name={new['metadata']['name']}"
        cluster.wait("the new relay to be ready", lambda wanted=selector: relays(cluster, wanted))
        cluster.kubectl("-n", NAMESPACE, "delete", "daemonset", old["metadata"]["name"], "--wait=true")
        gone = f"app.kubernetes.io/name={old['metadata']['name']}"
        cluster.wait("the old relay to be gone", lambda unwanted=gone: not cluster.pods(NAMESPACE, unwanted))
    seconds = time.monotonic() - begun
    sent = ended(sender)
    got = lab.tally(sink)
    print(f"\ntwo rollouts with take-over in {seconds:.1f} s: lost {got['lost']}, repeated {got['repeated']} of {sent}")
    assert (got["lost"], got["repeated"], got["reordered"]) == (0, 0, 0)
    assert sent == got["received"]
    (pod,) = relays(cluster, "app.kubernetes.io/name=samplicator-last")
    assert [each["restartCount"] for each in pod["status"]["containerStatuses"]] == [0]


def ended(sender: Process) -> int:
    """Ends a load that outlasted the rollout; how many datagrams it has sent."""
    time.sleep(2)
    assert sender.alive
    sender.send_signal(signal.SIGTERM)
    return int(sender.result(30)["sent"])


def renamed(daemonset: Object, word: str) -> Object:
    """The same under another name, for other pods."""
    name = f"samplicator-{word}"
    copy: Object = json.loads(json.dumps(daemonset))
    copy["metadata"]["name"] = name
    copy["spec"]["selector"]["matchLabels"]["app.kubernetes.io/name"] = name
    copy["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/name"] = name
    return copy


def another(cluster: Cluster, before: Mapping[str, Any]) -> list[Object]:
    return [pod for pod in relays(cluster) if pod["metadata"]["uid"] != before["metadata"]["uid"]]


def names(lab: Lab) -> Counter[str]:
    return Counter(each["name"] for each in json.loads(page(lab, "/api/v1/receivers")))
