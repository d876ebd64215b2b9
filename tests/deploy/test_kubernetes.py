"""The kustomize tree, rendered by kubectl and validated strictly, and the few promises that a schema does not know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from support.linters import DEPLOY, run, said

pytestmark = pytest.mark.xdist_group("kubernetes")  # what is built once

KUBERNETES = DEPLOY / "kubernetes"
OVERLAYS = ("no-spoof", "spoof")


def render(folder: Path) -> str:
    done = run("kubectl", "kustomize", folder)
    assert done.returncode == 0, said(done)
    assert done.stderr == ""
    return done.stdout


def objects(text: str) -> dict[str, dict[str, Any]]:
    return {item["kind"]: item for item in yaml.safe_load_all(text)}


@pytest.fixture(scope="module", params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> tuple[str, dict[str, dict[str, Any]]]:
    return request.param, objects(render(KUBERNETES / "overlays" / request.param))


def pod(rendered: dict[str, dict[str, Any]]) -> dict[str, Any]:
    spec: dict[str, Any] = rendered["DaemonSet"]["spec"]["template"]["spec"]
    return spec


def test_yamllint() -> None:
    done = run("yamllint", "--strict", "-c", "yamllint.yaml", ".")
    assert (done.returncode, said(done)) == (0, "")


@pytest.mark.parametrize("name", OVERLAYS)
def test_strictly_valid(name: str, tmp_path: Path) -> None:
    rendered = tmp_path / "all.yaml"
    rendered.write_text(render(KUBERNETES / "overlays" / name))
    done = run("kubernetes-validate", "--strict", rendered)
    assert done.returncode == 0, said(done)
    assert said(done).count("passed") == len(list(yaml.safe_load_all(rendered.read_text())))


def test_strict_validation_would_notice(tmp_path: Path) -> None:
    rendered = tmp_path / "all.yaml"
    text = render(KUBERNETES / "overlays" / "spoof")
    rendered.write_text(text.replace("hostNetwork:", "hostNetworks:"))
    assert run("kubernetes-validate", "--strict", rendered).returncode != 0


def test_config_keeps_its_name(overlay: tuple[str, dict[str, dict[str, Any]]]) -> None:
    """A hash in the name would roll the pods, and a rollout closes the port."""
    rendered = overlay[1]
    assert rendered["ConfigMap"]["metadata"]["name"] == "samplicator"
    assert pod(rendered)["volumes"][0]["configMap"]["name"] == "samplicator"


def test_config_is_mounted_so_that_it_follows(overlay: tuple[str, dict[str, dict[str, Any]]]) -> None:
    mounts = pod(overlay[1])["containers"][0]["volumeMounts"]
    assert all("subPath" not in mount for mount in mounts)


def test_rights(overlay: tuple[str, dict[str, dict[str, Any]]]) -> None:
    name, rendered = overlay
    context = pod(rendered)["containers"][0]["securityContext"]
    expected = {"drop": ["ALL"]} | ({"add": ["NET_RAW"]} if name == "spoof" else {})
    assert context["capabilities"] == expected
    assert context["allowPrivilegeEscalation"] is False
    assert context["readOnlyRootFilesystem"] is True
    assert pod(rendered)["securityContext"]["runAsNonRoot"] is True
    assert pod(rendered)["automountServiceAccountToken"] is False
    assert rendered["ServiceAccount"]["automountServiceAccountToken"] is False
    assert not {"Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding"} & set(rendered)


def test_host_network_is_consistent(overlay: tuple[str, dict[str, dict[str, Any]]]) -> None:
    """What only an API server would say: host ports equal container ports, hostUsers unset, port names short."""
    spec = pod(overlay[1])
    assert spec["hostNetwork"] is True
    assert spec["dnsPolicy"] == "ClusterFirstWithHostNet"
    assert "hostUsers" not in spec
    for port in spec["containers"][0]["ports"]:
        assert port["hostPort"] == port["containerPort"]
        assert len(port["name"]) <= 15
    labels = overlay[1]["DaemonSet"]["spec"]["template"]["metadata"]["labels"]
    assert overlay[1]["DaemonSet"]["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert {m["name"] for m in spec["containers"][0]["volumeMounts"]} == {v["name"] for v in spec["volumes"]}


def test_probes_ask_the_port_of_the_configuration(overlay: tuple[str, dict[str, dict[str, Any]]]) -> None:
    import tomllib

    container = pod(overlay[1])["containers"][0]
    config = tomllib.loads(overlay[1]["ConfigMap"]["data"]["samplicator.toml"])
    port = int(config["service"]["http"].rpartition(":")[2])
    assert [p["containerPort"] for p in container["ports"] if p["name"] == "http"] == [port]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["port"] == "http"
        assert container[probe]["httpGet"]["host"] == "127.0.0.1"


def test_guaranteed_whole_cpus(overlay: tuple[str, dict[str, dict[str, Any]]]) -> None:
    resources = pod(overlay[1])["containers"][0]["resources"]
    assert resources["requests"] == resources["limits"]
    assert resources["limits"]["cpu"].isdigit()


def test_podmonitor_component(tmp_path: Path) -> None:
    """The component added to an overlay, as its comment says."""
    overlay = tmp_path / "overlay"
    overlay.mkdir()
    tree = tmp_path / "kubernetes"
    tree.symlink_to(KUBERNETES)
    (overlay / "kustomization.yaml").write_text(
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n"
        "resources: [../kubernetes/overlays/spoof]\ncomponents: [../kubernetes/components/podmonitor]\n"
    )
    rendered = objects(render(overlay))
    selector = rendered["PodMonitor"]["spec"]["selector"]["matchLabels"]
    labels = rendered["DaemonSet"]["spec"]["template"]["metadata"]["labels"]
    assert selector.items() <= labels.items()
    endpoint = rendered["PodMonitor"]["spec"]["podMetricsEndpoints"][0]
    assert endpoint["port"] in {
        p["name"] for p in rendered["DaemonSet"]["spec"]["template"]["spec"]["containers"][0]["ports"]
    }
