"""Manifests of Kubernetes: rendered by kubectl (kustomize) and by Helm's own library, as objects that can be compared.

Called by tests/deploy. Invariants: nothing asks a cluster or the network; a composition is written into a folder of the
test, as an operator's own overlay, and never into deploy/.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from support.linters import DEPLOY, run, said

KUBERNETES = DEPLOY / "kubernetes"
CHART = DEPLOY / "helm" / "samplicator"
OVERLAYS = sorted(path.name for path in (KUBERNETES / "overlays").iterdir())
COMPONENTS = sorted(path.name for path in (KUBERNETES / "components").iterdir())
ROLE = KUBERNETES / "receivers-role"

Object = dict[str, Any]
Key = tuple[str, str, str]
"""Kind, namespace and name: what tells objects apart."""


def kustomize(folder: Path) -> str:
    done = run("kubectl", "kustomize", folder)
    assert done.returncode == 0, said(done)
    assert done.stderr == ""
    return done.stdout


def objects(texts: Iterable[str]) -> dict[Key, Object]:
    """The objects of YAML texts. No two may have the same key."""
    found: dict[Key, Object] = {}
    for text in texts:
        for item in yaml.safe_load_all(text):
            if item is None:
                continue
            key = item["kind"], item["metadata"].get("namespace", ""), item["metadata"]["name"]
            assert key not in found, key
            found[key] = item
    return found


def compose(
    folder: Path,
    overlay: str,
    components: Sequence[str] = (),
    role_namespaces: Sequence[str] = (),
    config: str | None = None,
    **more: object,
) -> str:
    """An operator's own overlay: one that ships, with components, the right for namespaces, a configuration and
    further keys of kustomization.yaml. Returns what kubectl makes of it.
    """
    tree = folder / "kubernetes"
    if not tree.exists():
        shutil.copytree(KUBERNETES, tree)
    top = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization"}
    own: dict[str, object] = {
        **top,
        "namespace": "samplicator",
        "resources": [f"../kubernetes/overlays/{overlay}"],
        "components": [f"../kubernetes/components/{name}" for name in components],
        **more,
    }
    if config is not None:
        generated = {
            "name": "samplicator",
            "behavior": "merge",
            "files": ["samplicator.toml"],
            "options": {"disableNameSuffixHash": True},
        }
        own["configMapGenerator"] = [generated]
    written = {"own": own}
    for namespace in role_namespaces:
        written[namespace] = {**top, "namespace": namespace, "resources": ["../kubernetes/receivers-role"]}
    written["all"] = {**top, "resources": [f"../{name}" for name in written]}
    for name, value in written.items():
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "kustomization.yaml").write_text(yaml.safe_dump(value))
    if config is not None:
        (folder / "own" / "samplicator.toml").write_text(config)
    return kustomize(folder / "all")


def helm(
    values: Mapping[str, object] | None = None, *, release: str = "samplicator", namespace: str = "samplicator"
) -> list[str]:
    """The manifests that the chart renders. Raises helm_python.errors.HelmError."""
    from helm_python import Chart

    with Chart.load(CHART) as chart:
        rendered: dict[str, str] = chart.render(dict(values or {}), name=release, namespace=namespace)
    return [text for name, text in rendered.items() if not name.endswith("NOTES.txt")]


def daemonset(found: Mapping[Key, Object]) -> Object:
    """The only DaemonSet."""
    (item,) = (value for key, value in found.items() if key[0] == "DaemonSet")
    return item


def pod(found: Mapping[Key, Object]) -> Object:
    """The pod of the only DaemonSet."""
    spec: Object = daemonset(found)["spec"]["template"]["spec"]
    return spec


def relay(found: Mapping[Key, Object]) -> Object:
    """The container of the relay."""
    (container,) = pod(found)["containers"]
    assert container["name"] == "samplicator"
    return dict(container)


def config_of(found: Mapping[Key, Object]) -> str:
    """The text of samplicator.toml."""
    (item,) = (value for key, value in found.items() if key[0] == "ConfigMap")
    return str(item["data"]["samplicator.toml"])
