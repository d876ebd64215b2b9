"""The compose file and Grafana's provisioning: valid, and what they mount and name exists. No engine runs them here."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import yaml
from support.linters import DEPLOY, ROOT, run, said

COMPOSE = DEPLOY / "compose"
SERVICES = yaml.safe_load((COMPOSE / "compose.yaml").read_text())["services"]
PROVISIONING = DEPLOY / "grafana" / "provisioning"


def test_compose_file_is_valid() -> None:
    done = run("check-jsonschema", "--builtin-schema", "vendor.compose-spec", COMPOSE / "compose.yaml")
    assert done.returncode == 0, said(done)


def mounts(service: str) -> dict[str, Path]:
    """Path in the container: path here; without volumes."""
    pairs = (text.split(":")[:2] for text in SERVICES[service].get("volumes", ()) if text.startswith("."))
    return {inside: (COMPOSE / here).resolve() for here, inside in pairs}


def test_everything_mounted_exists() -> None:
    assert mounts("prometheus").keys() >= {"/etc/prometheus/prometheus.yml", "/etc/prometheus/rules.yaml"}
    for service in SERVICES:
        for path in mounts(service).values():
            assert path.exists(), path


def test_prometheus_of_compose_is_valid(tmp_path: Path) -> None:
    text = (COMPOSE / "prometheus.yml").read_text()
    for inside, path in mounts("prometheus").items():
        text = text.replace(inside, str(path))
    (tmp_path / "prometheus.yml").write_text(text)
    done = run("promtool", "check", "config", tmp_path / "prometheus.yml")
    assert done.returncode == 0, said(done)
    targets = [t for job in yaml.safe_load(text)["scrape_configs"] for s in job["static_configs"] for t in s["targets"]]
    assert {target.partition(":")[0] for target in targets} - {"localhost"} <= set(SERVICES)


def test_grafana_finds_its_dashboards_and_its_source() -> None:
    provider = yaml.safe_load((PROVISIONING / "dashboards" / "samplicator.yaml").read_text())["providers"][0]
    assert mounts("grafana")[provider["options"]["path"]] == DEPLOY / "grafana" / "dashboards"
    assert mounts("grafana")["/etc/grafana/provisioning"] == PROVISIONING
    home = Path(SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert (DEPLOY / "grafana" / "dashboards" / home.name).exists()
    source = yaml.safe_load((PROVISIONING / "datasources" / "prometheus.yaml").read_text())["datasources"][0]
    assert re.fullmatch(r"http://(\w+):9090", source["url"])[1] in SERVICES  # type: ignore[index]


def test_only_this_host_reaches_it() -> None:
    for service in SERVICES.values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])


def test_relay_is_the_image_of_this_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert SERVICES["relay"]["image"] == f"samplicator:${{VERSION:-{version}}}"
    options = re.findall(r"^  (?:-\w, )?(--\w+)", run("samplicator", "demo", "-h").stdout, re.MULTILINE)
    assert {word for word in SERVICES["relay"]["command"] if word.startswith("--")} <= set(options)
