"""The Helm chart: linted and rendered by Helm's own library, and equal to the kustomize tree, object by object."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from helm_python.chart import lint
from helm_python.errors import HelmError
from support.linters import ROOT, run, said
from support.manifests import CHART, KUBERNETES, compose, config_of, helm, kustomize, objects, pod, relay

pytestmark = pytest.mark.xdist_group("kubernetes")

WARNING = 2
SPOOF = (KUBERNETES / "overlays" / "spoof" / "samplicator.toml").read_text()
CREATE: dict[str, Any] = {"namespace": {"create": True}}
WEB = SPOOF.replace("[service]\n", '[service]\nweb_config = "/etc/samplicator-web/web.yaml"\n', 1)
SECRETS = {"secret": "samplicator-web"}
SCRAPE: dict[str, Any] = {
    "enabled": True,
    "scheme": "https",
    "tlsConfig": {"ca": {"secret": {"name": "samplicator-scrape", "key": "ca.crt"}}, "serverName": "samplicator"},
    "basicAuth": {part: {"name": "samplicator-scrape", "key": part} for part in ("username", "password")},
}
ALL: dict[str, Any] = {
    **CREATE,
    "config": WEB,
    "webConfig": SECRETS,
    "spoof": True,
    "takeOver": {"enabled": True},
    "nodeTuning": {"enabled": True},
    "podMonitor": SCRAPE,
    "k8sReceivers": {"enabled": True, "namespaces": ["collectors", "siem"]},
    "tolerations": [{"operator": "Exists"}],
}
SAME: dict[str, tuple[str, list[str], dict[str, Any]]] = {
    "no values": ("no-spoof", [], CREATE),
    "spoof": ("spoof", [], {**CREATE, "config": SPOOF, "spoof": True}),
    "spoof and take-over": (
        "spoof-take-over",
        [],
        {**CREATE, "config": SPOOF, "spoof": True, "takeOver": {"enabled": True}},
    ),
    "copier": ("spoof", ["copier"], {**CREATE, "config": SPOOF, "spoof": True, "copier": True}),
    "node tuning": ("no-spoof", ["node-tuning"], {**CREATE, "nodeTuning": {"enabled": True}}),
    "PodMonitor": ("no-spoof", ["podmonitor"], {**CREATE, "podMonitor": {"enabled": True}}),
    "TLS and users": (
        "spoof",
        ["podmonitor", "web-config"],
        {**CREATE, "config": WEB, "spoof": True, "webConfig": SECRETS, "podMonitor": SCRAPE},
    ),
    "all": ("spoof", ["node-tuning", "take-over", "podmonitor", "web-config", "k8s-receivers", "all-nodes"], ALL),
}


@pytest.mark.parametrize("name", SAME)
def test_equal_to_kustomize(name: str, tmp_path: Path) -> None:
    overlay, components, values = SAME[name]
    namespaces = values.get("k8sReceivers", {}).get("namespaces", [])
    config = WEB if "web-config" in components else None
    ours, theirs = objects(helm(values)), objects([compose(tmp_path, overlay, components, namespaces, config)])
    assert set(ours) == set(theirs)
    for key, item in theirs.items():
        assert ours[key] == item, key


def test_equality_would_notice(tmp_path: Path) -> None:
    theirs = objects([kustomize(KUBERNETES / "overlays" / "no-spoof")])
    ours = objects(helm({**CREATE, "maxUnavailable": 2}))
    assert [key[0] for key in theirs if ours[key] != theirs[key]] == ["DaemonSet"]


@pytest.mark.parametrize("values", [{}, ALL], ids=["no values", "all values"])
def test_lint(values: dict[str, Any], tmp_path: Path) -> None:
    report = lint(str(CHART), values=values, strict=True, namespace="samplicator")
    assert report["errors"] == []
    assert [message for message in report["messages"] if message["severity"] >= WARNING] == []


def test_lint_would_notice(tmp_path: Path) -> None:
    bad = tmp_path / "samplicator"
    (bad / "templates").mkdir(parents=True)
    (bad / "Chart.yaml").write_text("apiVersion: v2\nname: samplicator\n")
    assert lint(str(bad), strict=True)["errors"]


@pytest.mark.parametrize("values", [{}, ALL], ids=["no values", "all values"])
def test_strictly_valid(values: dict[str, Any], tmp_path: Path) -> None:
    rendered = objects(helm(values))
    file = tmp_path / "all.yaml"
    file.write_text(yaml.safe_dump_all(rendered.values()))
    done = run("kubernetes-validate", "--strict", file)
    assert done.returncode == 0, said(done)
    assert said(done).count("passed") == sum(key[0] != "PodMonitor" for key in rendered)


def test_version_is_that_of_the_program() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (version, version)


# ---------------------------------------------------------------- values


def values_text() -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
    return values


def test_every_value_is_in_the_schema() -> None:
    """The schema refuses unknown keys, so a value that it lacks could not be set; and nothing else is in it."""
    properties = json.loads((CHART / "values.schema.json").read_text())["properties"]
    assert set(properties) - {"global"} == set(values_text())
    for name, value in values_text().items():
        if "properties" in properties[name]:
            assert set(properties[name]["properties"]) == set(value), name


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"spooof": True}, "spooof"),
        ({"takeOver": {"enable": True}}, "enable"),
        ({"httpPort": 99104}, "httpPort"),
        ({"config": ""}, "config"),
        ({"nodeTuning": {"sysctls": {"kernel.panic": 1}}}, "kernel.panic"),
        ({"k8sReceivers": {"enabled": True}}, "namespaces"),
        ({"k8sReceivers": {"enabled": True, "namespaces": ["Collectors"]}}, "namespaces"),
        ({"image": {"digest": "sha256:12"}}, "digest"),
        ({"maxUnavailable": 0}, "maxUnavailable"),
        ({"webConfig": {"secret": "a/b"}}, "secret"),
        ({"podMonitor": {"scheme": "HTTPS"}}, "scheme"),
        ({"podMonitor": {"basicAuth": {"password": "secret"}}}, "password"),
    ],
)
def test_wrong_values_are_refused(values: dict[str, Any], named: str) -> None:
    with pytest.raises(HelmError) as caught:
        helm(values)
    assert named in str(caught.value)


def test_take_over_needs_its_key() -> None:
    """Without own_control the new pod would be found ready by the answers of the old one."""
    config = "".join(line for line in SPOOF.splitlines(keepends=True) if "own_control" not in line)
    with pytest.raises(HelmError, match="own_control"):
        helm({"takeOver": {"enabled": True}, "config": config})


WITHOUT = "".join(line for line in WEB.splitlines(keepends=True) if "own_control" not in line)


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"webConfig": SECRETS, "config": SPOOF}, "needs web_config = "),
        ({"webConfig": SECRETS, "config": WEB.replace("web_config", "# web_config")}, "needs web_config = "),
        ({"webConfig": SECRETS, "config": WITHOUT}, "needs own_control = "),
        ({"webConfig": {"tlsSecret": "tls"}}, "secret is needed"),
        ({"config": WEB}, "secret is needed"),
    ],
    ids=["no key", "a comment", "no own_control", "no file", "no Secret"],
)
def test_web_config_needs_its_keys(values: dict[str, Any], why: str) -> None:
    """Without them no pod would start, none would have TLS, or none would be found ready."""
    with pytest.raises(HelmError, match=why):
        helm(values)


def test_certificates_of_another_secret() -> None:
    """Both are one folder, read-only, and not mounted by subPath, so that it follows the Secrets."""
    found = objects(helm({"config": WEB, "webConfig": {**SECRETS, "tlsSecret": "relay-tls"}}))
    (web,) = (volume["projected"] for volume in pod(found)["volumes"] if volume["name"] == "web")
    assert [source["secret"]["name"] for source in web["sources"]] == ["samplicator-web", "relay-tls"]
    assert {"name": "web", "mountPath": "/etc/samplicator-web", "readOnly": True} in relay(found)["volumeMounts"]


def test_other_values_arrive() -> None:
    found = objects(
        helm(
            {
                "image": {"repository": "registry.example/relay", "digest": "sha256:" + "0" * 64},
                "imagePullSecrets": [{"name": "key"}],
                "httpPort": 9999,
                "priorityClassName": "",
                "nodeSelector": {"role": "edge"},
                "resources": {"requests": {"cpu": 1, "memory": "1Gi"}, "limits": {"cpu": 1, "memory": "1Gi"}},
                "podAnnotations": {"note": "1"},
                "nodeTuning": {"enabled": True, "sysctls": {"net.core.rmem_max": 2147483647}, "rps": ["ens1", "ens2"]},
                "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
                "affinity": {"nodeAffinity": {}},
            },
            release="edge",
            namespace="telemetry",
        )
    )
    assert {key[1:] for key in found} == {("telemetry", "edge")}
    spec = pod(found)
    assert relay(found)["image"] == spec["initContainers"][0]["image"] == "registry.example/relay@sha256:" + "0" * 64
    assert relay(found)["livenessProbe"]["httpGet"]["port"] == 9999
    assert "priorityClassName" not in spec
    assert spec["imagePullSecrets"] == [{"name": "key"}]
    assert spec["nodeSelector"]["role"] == "edge"
    assert spec["affinity"] == {"nodeAffinity": {}}
    args = spec["initContainers"][0]["args"]
    assert {"--sysctl=net.core.rmem_max=2147483647", "--rps=ens1", "--rps=ens2"} <= set(args)
    monitor = found["PodMonitor", "telemetry", "edge"]
    assert monitor["metadata"]["labels"] == {"release": "prometheus"}
    assert "$1:9999" in str(monitor)


def test_config_arrives_as_written() -> None:
    """A `$`, a brace of Helm's own, quotes, no newline at the end: nothing of it is a template."""
    config = '[service]\nlog_format = "json" # {{ .Values.spoof }} $1 "\\t" \'x\'  \n\n# end'
    assert config_of(objects(helm({"config": config}))) == config
