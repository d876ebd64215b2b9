"""Prometheus scrapes a relay under load over TLS with basic authentication, by the files of deploy/prometheus."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bcrypt
import pytest
import yaml
from support.linters import DEPLOY, run, said
from support.watched import eventually, fleet, prometheus, query

pytestmark = pytest.mark.xdist_group("dashboard")

PASSWORD = "pass word:1"


@dataclass(frozen=True, slots=True)
class Secrets:
    """Files in one folder."""

    folder: Path

    @property
    def web_config(self) -> Path:
        return self.folder / "web-config.yaml"


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Secrets:
    """A certificate for 127.0.0.1, and the example's web-config with it and with one user."""
    folder = tmp_path_factory.mktemp("secrets")
    names = ("-subj", "/CN=relay", "-addext", "subjectAltName=IP:127.0.0.1")
    files = ("-keyout", str(folder / "tls.key"), "-out", str(folder / "tls.crt"))
    new = (
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
    )
    subprocess.run([*new, *names, *files], check=True, capture_output=True)
    hashed = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(10)).decode()
    text = (DEPLOY / "prometheus" / "web-config.yaml").read_text()
    text = text.replace("HASH", hashed).replace("/etc/samplicator/", f"{folder}/")
    made = Secrets(folder)
    made.web_config.write_text(text)
    return made


@pytest.fixture(scope="module")
def relay(secrets: Secrets, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address and port of one that has it, under load."""
    with fleet(tmp_path_factory.mktemp("relay"), rate=2000, names=("a",), web_config=secrets.web_config) as made:
        yield made.targets[0]


def test_web_config_is_valid(secrets: Secrets) -> None:
    done = run("promtool", "check", "web-config", secrets.web_config)
    assert done.returncode == 0, said(done)


def asked(secrets: Secrets, relay: str, folder: Path) -> dict[str, object]:
    """The shipped example, with its files in `folder` and a scrape per second; and a job with another password."""
    (folder / "samplicator-password").write_text(PASSWORD)
    (folder / "wrong").write_text("wrong")
    (folder / "relays.yaml").write_text(yaml.safe_dump([{"targets": [relay]}]))
    text = (DEPLOY / "prometheus" / "scrape" / "tls.yaml").read_text()
    text = text.replace("/etc/prometheus/samplicator-ca.pem", str(secrets.folder / "tls.crt"))
    text = text.replace("/etc/prometheus/rules.yaml", str(DEPLOY / "prometheus" / "rules.yaml"))
    config: dict[str, Any] = yaml.safe_load(text.replace("/etc/prometheus/", f"{folder}/"))
    (job,) = config["scrape_configs"]
    wrong = {**job, "job_name": "wrong", "basic_auth": {**job["basic_auth"], "password_file": str(folder / "wrong")}}
    return {**config, "global": {"scrape_interval": "1s"}, "scrape_configs": [job, wrong]}


def test_scrape_with_the_password_and_with_a_wrong_one(secrets: Secrets, relay: str, tmp_path: Path) -> None:
    with prometheus(tmp_path, asked(secrets, relay, tmp_path)) as api:
        assert eventually(lambda: query(api, 'up{job="samplicator"} == 1'))
        assert eventually(lambda: query(api, 'up{job="wrong"} == 0'))
        assert eventually(lambda: query(api, "sum(rate(samplicator_receive_datagrams_total[5s])) > 500"))
        assert not query(api, "sum(samplicator_receive_kernel_drops_total) > 0")
        assert query(api, "samplicator_build_info")
        assert not query(api, 'samplicator_build_info{job="wrong"}')
