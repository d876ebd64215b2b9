"""The kustomize tree, rendered by kubectl and validated strictly, and the promises that a schema does not know."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from samplicator.cli.parser import make_parser
from support.linters import DEPLOY, run, said
from support.manifests import (
    COMPONENTS,
    KUBERNETES,
    OVERLAYS,
    Key,
    Object,
    compose,
    config_of,
    daemonset,
    kustomize,
    objects,
    pod,
    relay,
)

pytestmark = pytest.mark.xdist_group("kubernetes")  # what is built once

OWN = "/run/samplicator-pod/control.sock"
"""Where a pod answers for itself: not by its configuration, which may have an error that the relay has refused."""
SPOOFING = {"spoof", "spoof-take-over"}


@pytest.fixture(scope="module", params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> tuple[str, dict[Key, Object]]:
    return request.param, objects([kustomize(KUBERNETES / "overlays" / request.param)])


def validate(text: str, file: Path, *, unknown_kinds: int = 0) -> None:
    """kubernetes-validate only warns of kinds that it does not know: so it must have passed all others."""
    file.write_text(text)
    done = run("kubernetes-validate", "--strict", file)
    assert done.returncode == 0, said(done)
    assert said(done).count("passed") == len(list(yaml.safe_load_all(text))) - unknown_kinds, said(done)


def test_what_ships() -> None:
    assert {"spoof", "no-spoof"} <= set(OVERLAYS)
    assert {"node-tuning", "podmonitor", "take-over", "k8s-receivers", "web-config", "copier"} <= set(COMPONENTS)


def test_yamllint() -> None:
    done = run("yamllint", "--strict", "-c", "yamllint.yaml", ".")
    assert (done.returncode, said(done)) == (0, "")


@pytest.mark.parametrize("name", OVERLAYS)
def test_overlay_is_strictly_valid(name: str, tmp_path: Path) -> None:
    validate(kustomize(KUBERNETES / "overlays" / name), tmp_path / "all.yaml")


@pytest.mark.parametrize("component", COMPONENTS)
def test_each_component_is_strictly_valid(component: str, tmp_path: Path) -> None:
    text = compose(tmp_path, "no-spoof", [component])
    assert text != kustomize(KUBERNETES / "overlays" / "no-spoof"), "it changes nothing"
    validate(text, tmp_path / "all.yaml", unknown_kinds=text.count("kind: PodMonitor"))


def test_all_together_is_strictly_valid(tmp_path: Path) -> None:
    text = compose(tmp_path, "spoof", [name for name in COMPONENTS if name != "net-raw"], ["collectors", "siem"])
    validate(text, tmp_path / "all.yaml", unknown_kinds=1)


def test_strict_validation_would_notice(tmp_path: Path) -> None:
    rendered = tmp_path / "all.yaml"
    text = kustomize(KUBERNETES / "overlays" / "spoof")
    rendered.write_text(text.replace("hostNetwork:", "hostNetworks:"))
    assert run("kubernetes-validate", "--strict", rendered).returncode != 0


def test_config_keeps_its_name(overlay: tuple[str, dict[Key, Object]]) -> None:
    """A hash in the name would roll the pods when the configuration changes."""
    assert ("ConfigMap", "samplicator", "samplicator") in overlay[1]
    (config,) = (volume for volume in pod(overlay[1])["volumes"] if volume["name"] == "config")
    assert config["configMap"]["name"] == "samplicator"


def test_config_is_mounted_so_that_it_follows(overlay: tuple[str, dict[Key, Object]]) -> None:
    mounts = relay(overlay[1])["volumeMounts"]
    assert all("subPath" not in mount for mount in mounts)
    assert {"name": "config", "mountPath": "/etc/samplicator", "readOnly": True} in mounts


def test_a_changed_config_changes_no_pod(tmp_path: Path) -> None:
    config = config_of(objects([kustomize(KUBERNETES / "overlays" / "spoof")]))
    before = objects([compose(tmp_path, "spoof", config=config)])
    after = objects([compose(tmp_path, "spoof", config=config.replace("192.0.2.10", "192.0.2.11"))])
    assert {key for key in before if before[key] != after[key]} == {("ConfigMap", "samplicator", "samplicator")}


def test_rights(overlay: tuple[str, dict[Key, Object]]) -> None:
    name, rendered = overlay
    context = relay(rendered)["securityContext"]
    expected = {"drop": ["ALL"]} | ({"add": ["NET_RAW"]} if name in SPOOFING else {})
    assert context["capabilities"] == expected
    assert context["allowPrivilegeEscalation"] is False
    assert context["readOnlyRootFilesystem"] is True
    assert pod(rendered)["securityContext"]["runAsNonRoot"] is True
    assert pod(rendered)["automountServiceAccountToken"] is False
    assert rendered["ServiceAccount", "samplicator", "samplicator"]["automountServiceAccountToken"] is False
    assert not {"Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding"} & {key[0] for key in rendered}


def test_host_network_is_consistent(overlay: tuple[str, dict[Key, Object]]) -> None:
    """What only an API server would say; and no declared port: it would be a host port, and keep a second pod away."""
    spec = pod(overlay[1])
    assert spec["hostNetwork"] is True
    assert spec["dnsPolicy"] == "ClusterFirstWithHostNet"
    assert "hostUsers" not in spec
    assert all("ports" not in container for container in [*spec["containers"], *spec.get("initContainers", ())])
    labels = daemonset(overlay[1])["spec"]["template"]["metadata"]["labels"]
    assert daemonset(overlay[1])["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert {m["name"] for m in spec["containers"][0]["volumeMounts"]} == {v["name"] for v in spec["volumes"]}


def test_namespace_admits_the_host_network(overlay: tuple[str, dict[Key, Object]]) -> None:
    labels = overlay[1]["Namespace", "", "samplicator"]["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "privileged"


def http_port(found: dict[Key, Object]) -> int:
    return int(tomllib.loads(config_of(found))["service"]["http"].rpartition(":")[2])


def test_probes_ask_the_port_of_the_configuration(overlay: tuple[str, dict[Key, Object]]) -> None:
    container = relay(overlay[1])
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        if "httpGet" in container[probe]:
            assert container[probe]["httpGet"]["port"] == http_port(overlay[1])
            assert container[probe]["httpGet"]["host"] == "127.0.0.1"
    assert container["livenessProbe"]["httpGet"]["path"] == "/healthz"


def test_guaranteed_whole_cpus(overlay: tuple[str, dict[Key, Object]]) -> None:
    spec = pod(overlay[1])
    assert relay(overlay[1])["resources"]["limits"]["cpu"].isdigit()
    for container in [*spec["containers"], *spec.get("initContainers", ())]:
        assert container["resources"]["requests"] == container["resources"]["limits"]


def test_no_spoof_keeps_the_exporters_apart() -> None:
    config = tomllib.loads(config_of(objects([kustomize(KUBERNETES / "overlays" / "no-spoof")])))
    assert [(r["source_port"], r["domain"]) for r in config["receiver"]] == [("per-session", "unique")]
    assert not any(r.get("spoof") for r in config["receiver"])
    spoofed = tomllib.loads(config_of(objects([kustomize(KUBERNETES / "overlays" / "spoof")])))
    assert all(r["spoof"] for r in spoofed["receiver"])


def test_one_image_everywhere(tmp_path: Path) -> None:
    """`images:` of an overlay replaces it in the init containers, too; the version is that of the program."""
    text = compose(tmp_path, "spoof", ["node-tuning", "take-over"])
    version = tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text())["project"]["version"]
    assert set(re.findall(r"image: (\S+)", text)) == {f"samplicator:{version}"}
    images = [{"name": "samplicator", "newName": "registry.example/relay", "newTag": "9"}]
    text = compose(tmp_path, "spoof", ["node-tuning", "take-over"], images=images)
    assert set(re.findall(r"image: (\S+)", text)) == {"registry.example/relay:9"}


# ---------------------------------------------------------------- components


def test_take_over(tmp_path: Path) -> None:
    found = objects([compose(tmp_path, "spoof", ["take-over"])])
    rolling = daemonset(found)["spec"]["updateStrategy"]["rollingUpdate"]
    assert rolling == {"maxSurge": 1, "maxUnavailable": 0}
    container = relay(found)
    assert container["args"][-2:] == ["--takeover", "--linger"]
    volumes = {volume["name"]: volume for volume in pod(found)["volumes"]}
    assert volumes["run"] == {"name": "run", "hostPath": {"path": "/run/samplicator", "type": "DirectoryOrCreate"}}
    assert volumes["state"]["hostPath"] == {"path": "/var/lib/samplicator", "type": "DirectoryOrCreate"}
    assert "emptyDir" in volumes["pod"]
    for probe in ("startupProbe", "readinessProbe"):
        assert container[probe]["exec"]["command"] == ["/opt/venv/bin/samplicator", "ready", "--control", OWN]
        assert "httpGet" not in container[probe]
    assert tomllib.loads(config_of(found))["service"]["own_control"] == OWN
    assert {"name": "pod", "mountPath": "/run/samplicator-pod"} in container["volumeMounts"]
    (directories,) = pod(found)["initContainers"]
    assert directories["volumeMounts"] == [m for m in container["volumeMounts"] if m["name"] in ("run", "state")]
    context = directories["securityContext"]
    assert context["capabilities"] == {"drop": ["ALL"], "add": ["CHOWN"]}
    assert (context["allowPrivilegeEscalation"], context["readOnlyRootFilesystem"]) == (False, True)
    assert found == objects([kustomize(KUBERNETES / "overlays" / "spoof-take-over")])


def test_node_tuning_alone_is_privileged(tmp_path: Path) -> None:
    found = objects([compose(tmp_path, "no-spoof", ["node-tuning"])])
    (tuning,) = pod(found)["initContainers"]
    assert tuning["securityContext"]["privileged"] is True
    assert (
        relay(found)["securityContext"]
        == relay(objects([kustomize(KUBERNETES / "overlays" / "no-spoof")]))["securityContext"]
    )


def test_node_tuning_sets_what_the_systemd_package_sets(tmp_path: Path) -> None:
    (tuning,) = pod(objects([compose(tmp_path, "no-spoof", ["node-tuning"])]))["initContainers"]
    ours = {word.removeprefix("--sysctl=") for word in tuning["args"] if word.startswith("--sysctl=")}
    lines = (DEPLOY / "systemd" / "60-samplicator.conf").read_text().splitlines()
    assert ours == {line.replace(" ", "") for line in lines if line and not line.startswith("#")}


def test_token_and_role_for_receivers_in_the_cluster(tmp_path: Path) -> None:
    """The least that a watch of EndpointSlices needs, in the named namespaces only."""
    found = objects([compose(tmp_path, "no-spoof", ["k8s-receivers"], ["collectors", "siem"])])
    assert pod(found)["automountServiceAccountToken"] is True
    kinds = [key for key in found if key[0] in ("Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding")]
    assert sorted(kinds) == [
        (kind, namespace, "samplicator-receivers")
        for kind in ("Role", "RoleBinding")
        for namespace in ("collectors", "siem")
    ]
    rule = {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["get", "list", "watch"]}
    subject = {"kind": "ServiceAccount", "name": "samplicator", "namespace": "samplicator"}
    for namespace in ("collectors", "siem"):
        role = found["Role", namespace, "samplicator-receivers"]
        binding = found["RoleBinding", namespace, "samplicator-receivers"]
        assert role["rules"] == [rule]
        assert binding["subjects"] == [subject]
        assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert ("ServiceAccount", subject["namespace"], subject["name"]) in found
    assert pod(found)["serviceAccountName"] == subject["name"]


def test_web_config(tmp_path: Path) -> None:
    """Its files are read-only, follow the Secret, and can be read by the relay's group only; no probe needs a user."""
    found = objects([compose(tmp_path, "no-spoof", ["web-config"])])
    container = relay(found)
    (mount,) = (each for each in container["volumeMounts"] if each["name"] == "web")
    assert mount == {"name": "web", "mountPath": "/etc/samplicator-web", "readOnly": True}
    (volume,) = (each for each in pod(found)["volumes"] if each["name"] == "web")
    assert volume["projected"] == {"defaultMode": 0o440, "sources": [{"secret": {"name": "samplicator-web"}}]}
    assert pod(found)["securityContext"]["fsGroup"] == pod(found)["securityContext"]["runAsGroup"]
    ask = ["/opt/venv/bin/samplicator", "ready", "--control", OWN]
    for probe, command in (("startup", ask), ("readiness", ask), ("liveness", [*ask, "--healthy"])):
        asked = container[f"{probe}Probe"]
        assert "httpGet" not in asked
        assert asked["exec"]["command"] == command
        assert make_parser().parse_args(command[1:]).control == OWN
        assert asked["timeoutSeconds"] > 1  # the default; a Python must start
    without = objects([kustomize(KUBERNETES / "overlays" / "no-spoof")])
    assert container["livenessProbe"]["failureThreshold"] == relay(without)["livenessProbe"]["failureThreshold"]


def test_all_nodes(tmp_path: Path) -> None:
    assert pod(objects([compose(tmp_path, "no-spoof", ["all-nodes"])]))["tolerations"] == [{"operator": "Exists"}]


# ---------------------------------------------------------------- PodMonitor


@pytest.fixture(scope="module", params=[["podmonitor"], ["podmonitor", "web-config"]], ids=["plain", "TLS and users"])
def monitor(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[Key, Object], Any]:
    found = objects([compose(tmp_path_factory.mktemp("monitor"), "spoof", request.param)])
    return found, found["PodMonitor", "samplicator", "samplicator"]


def test_podmonitor_selects_the_pods(monitor: tuple[dict[Key, Object], Any]) -> None:
    found, item = monitor
    labels = daemonset(found)["spec"]["template"]["metadata"]["labels"]
    assert item["spec"]["selector"]["matchLabels"].items() <= labels.items()


def test_podmonitor_has_the_types_of_the_operator(monitor: tuple[dict[Key, Object], Any]) -> None:
    """Models that are made from the CRDs. What they do not know they leave out, so nothing may be missing after."""
    from cloudcoil.models.prometheus_operator.v1 import PodMonitor

    item = monitor[1]
    model = PodMonitor.model_validate(item)
    assert model.model_dump(by_alias=True, exclude_none=True, mode="json")["spec"] == item["spec"]
    with pytest.raises(ValueError, match="interval"):
        PodMonitor.model_validate(
            {**item, "spec": {**item["spec"], "podMetricsEndpoints": [{"interval": "15 seconds"}]}}
        )


def test_podmonitor_of_protected_pods(monitor: tuple[dict[Key, Object], Any]) -> None:
    """HTTPS and a user where the pods have a web-config file, and only there."""
    found, item = monitor
    (endpoint,) = item["spec"]["podMetricsEndpoints"]
    protected = any(volume["name"] == "web" for volume in pod(found)["volumes"])
    assert (endpoint.get("scheme") == "https") == ("tlsConfig" in endpoint) == ("basicAuth" in endpoint) == protected
    if protected:
        used = {"ca.crt": endpoint["tlsConfig"]["ca"]["secret"], **endpoint["basicAuth"]}
        assert used == {key: {"name": "samplicator-scrape", "key": key} for key in ("ca.crt", "username", "password")}


def test_prometheus_finds_the_port(monitor: tuple[dict[Key, Object], Any], tmp_path: Path) -> None:
    """The relabelings, as Prometheus applies them: to pods as its discovery describes those that declare no port."""
    found, item = monitor
    (endpoint,) = item["spec"]["podMetricsEndpoints"]
    assert "port" not in endpoint
    rules = [
        {
            {"sourceLabels": "source_labels", "targetLabel": "target_label"}.get(key, key): value
            for key, value in r.items()
        }
        for r in endpoint["relabelings"]
    ]
    pods = [
        ("198.51.100.7", "samplicator", "one"),
        ("2001:db8::7", "samplicator", "two"),
        ("198.51.100.7", "node-tuning", "one"),
    ]
    targets = [
        {
            "targets": [ip],
            "labels": {
                "__meta_kubernetes_pod_ip": ip,
                "__meta_kubernetes_pod_container_name": container,
                "__meta_kubernetes_pod_node_name": node,
            },
        }
        for ip, container, node in pods
    ]
    job = {"job_name": "pods", "static_configs": targets, "relabel_configs": rules}
    config = tmp_path / "prometheus.yml"
    config.write_text(yaml.safe_dump({"scrape_configs": [job]}))
    done = run("promtool", "check", "service-discovery", "--timeout=2s", config, "pods")
    assert done.returncode == 0, said(done)
    kept = [entry["labels"] for entry in yaml.safe_load(done.stdout) if entry.get("labels")]
    port = http_port(found)
    assert sorted((labels["__address__"], labels["node"]) for labels in kept) == [
        (f"198.51.100.7:{port}", "one"),
        (f"[2001:db8::7]:{port}", "two"),
    ]
