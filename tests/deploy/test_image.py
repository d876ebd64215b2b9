"""The image, built and run for real: who it runs as, what it may, what it forwards, and how it ends.

Heavy: two roots of Debian and a build of the datapath. Bookworm's Python stands in for the official images, which no
registry is asked for.
"""

from __future__ import annotations

import json
import os
import signal
import tomllib
from collections.abc import Iterator
from importlib.metadata import requires

import pytest
from support.image import Container, Engine
from support.lab import Lab
from support.linters import ROOT
from support.manifests import KUBERNETES, kustomize, objects, pod
from support.process import wait_for
from support.stream import Stream, configuration

pytestmark = [
    pytest.mark.deploy_heavy,
    pytest.mark.netns,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: containers"),
]

IMAGE = "localhost/samplicator:test"
REVISION = "0123456789abcdef0123456789abcdef01234567"
NET_RAW_ONLY = "0000000000002000"
NOTHING = "0000000000000000"
NET_RAW = ["--cap-add", "NET_RAW"]
RUN, OWN, STATE = "/run/samplicator", "/run/samplicator-pod", "/var/lib/samplicator"
RATE = 5_000
"""Datagrams per second during a rollout. A container cannot exceed net.core.rmem_max of the machine, which may be
small: then a receive buffer holds what comes in the pause of a take-over only at such a rate."""
CONFIG = """
[service]
log_format = "json"

[[listener]]
name = "in"
listen = ["0.0.0.0:2055", "[::]:2055"]

[[receiver]]
name = "spoofed"
to = "{spoofed}:9995"
spoof = true

[[receiver]]
name = "plain"
to = "{plain}:9996"

[[rule]]
to = ["spoofed", "plain"]
"""


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    made = Engine()
    try:
        made.build(IMAGE, REVISION=REVISION)
        yield made
    finally:
        made.close()


@pytest.fixture
def lab() -> Iterator[Lab]:
    made = Lab()
    try:
        yield made
    finally:
        made.close()


def start(engine: Engine, lab: Lab, *options: str, config: str | None = None) -> Container:
    """The relay in the lab, with a configuration directory as a ConfigMap is mounted."""
    folder = lab.directory / "etc"
    folder.mkdir(exist_ok=True)
    text = CONFIG.format(spoofed=lab.peer4(1), plain=lab.peer4(2)) if config is None else config
    (folder / "samplicator.toml").write_text(text)
    network = ["--network", f"ns:/run/netns/{lab.relay.name}"]
    container = engine.start(IMAGE, options=[*network, "--volume", f"{folder}:/etc/samplicator:ro", *options])
    wait_for(lambda: container.state()["Running"] is False or container.healthy(), "the relay to be ready", 60, 0.2)
    assert container.state()["Running"], container.logs()
    return container


def process(container: Container, name: str) -> str:
    """A field of /proc/1/status inside."""
    text = container.exec("cat", "/proc/1/status").stdout
    return next(line.split(maxsplit=1)[1] for line in text.splitlines() if line.startswith(f"{name}:"))


# ---------------------------------------------------------------- what is in it


def test_labels(engine: Engine) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    labels = engine.labels(IMAGE)
    assert labels["org.opencontainers.image.version"] == project["version"]
    assert labels["org.opencontainers.image.licenses"] == project["license"]
    assert labels["org.opencontainers.image.revision"] == REVISION
    assert labels["org.opencontainers.image.source"].startswith("https://")


def test_sbom_names_what_is_installed(engine: Engine) -> None:
    """Every distribution that is installed, with its version and license; each requirement of ours is among them."""
    script = "import importlib.metadata as m, json; print(json.dumps({d.name: d.version for d in m.distributions()}))"
    installed: dict[str, str] = json.loads(engine.run(IMAGE, "/opt/venv/bin/python", "-I", "-c", script))
    bill = json.loads(engine.run(IMAGE, "cat", "/opt/venv/share/sbom/samplicator.cdx.json"))
    assert bill["bomFormat"] == "CycloneDX"
    own = bill["metadata"]["component"]
    listed = {component["name"]: component["version"] for component in [*bill["components"], own]}
    assert listed == installed
    assert all(component["purl"].startswith("pkg:pypi/") for component in bill["components"])
    assert all(component.get("licenses") for component in bill["components"])
    wanted = {need.split(";")[0].split(">")[0].strip() for need in requires("samplicator") or () if "extra" not in need}
    assert {name.lower().replace("_", "-") for name in listed} >= wanted
    assert not {"pip", "setuptools", "Cython", "cyclonedx-bom"} & set(installed)


def test_nothing_of_the_build_is_left(engine: Engine) -> None:
    script = 'command -v gcc make; ls /source /opt/sbom /etc/pip.conf 2>/dev/null; find /opt -name "*.c"; true'
    assert engine.run(IMAGE, "sh", "-c", script) == ""


def test_only_the_launcher_is_marked(engine: Engine) -> None:
    """The attribute is a vfs_ns_cap_data (linux/capability.h): version 2, not effective, NET_RAW permitted."""
    script = (
        "import os\n"
        "for top, _, names in os.walk('/opt'):\n"
        "    for name in names:\n"
        "        path = os.path.join(top, name)\n"
        "        if 'security.capability' in os.listxattr(path, follow_symlinks=False):\n"
        "            print(path, os.getxattr(path, 'security.capability').hex())\n"
    )
    found = dict(line.split() for line in engine.run(IMAGE, "/opt/venv/bin/python", "-I", "-c", script).splitlines())
    assert list(found) == ["/opt/venv/bin/launcher"]
    value = bytes.fromhex(found["/opt/venv/bin/launcher"])
    magic, permitted, inheritable = (int.from_bytes(value[n : n + 4], "little") for n in (0, 4, 8))
    assert (magic >> 24, magic & 1, permitted, inheritable) == (2, 0, 1 << 13, 0)


# ---------------------------------------------------------------- how it runs


def test_spoofs_as_a_plain_user_with_a_read_only_root(engine: Engine, lab: Lab) -> None:
    container = start(engine, lab, *NET_RAW)
    assert process(container, "Uid").split() == ["65532"] * 4
    assert process(container, "Gid").split() == ["65532"] * 4
    assert process(container, "NoNewPrivs") == "1"
    assert [process(container, f"Cap{name}") for name in ("Eff", "Prm", "Bnd", "Amb")] == [NET_RAW_ONLY] * 4
    assert container.exec("touch", "/etc/samplicator/x", "/opt/x", "/x", ok=False).returncode != 0
    for link, port in ((1, 9995), (2, 9996)):
        lab.collector_socket(link, port)  # a port that nobody listens at would refuse
    taps = [lab.tap(1, lambda seen: seen.port == 9995), lab.tap(2, lambda seen: seen.port == 9996)]
    sent = [f"datagram {number}".encode() for number in range(200)]
    sender = lab.exporter_socket("198.18.77.7", 7777)
    for payload in sent:
        sender.sendto(payload, (lab.relay4(), 2055))
    spoofed, plain = (tap.collect(len(sent)) for tap in taps)
    assert [seen.payload for seen in spoofed] == [seen.payload for seen in plain] == sent
    assert {seen.exporter for seen in spoofed} == {("198.18.77.7", 7777)}
    assert {seen.source for seen in plain} == {lab.relay4(2)}
    assert {seen.checksum for seen in spoofed} == {"good"}
    status = json.loads(container.exec("samplicator", "status", "--json").stdout)
    assert {row["name"]: row["counters"]["sent"] for row in status["receivers"]} == {"spoofed": 200, "plain": 200}


def test_root_may_be_wholly_read_only(engine: Engine, lab: Lab) -> None:
    """As with docker: no writable /run or /tmp but what is mounted there."""
    container = start(
        engine, lab, *NET_RAW, "--read-only-tmpfs=false", "--mount", f"type=tmpfs,destination={RUN},U=true"
    )
    written = container.exec(
        "sh", "-c", "for d in / /tmp /run /opt/venv /etc/samplicator /var/tmp; do touch $d/x; done", ok=False
    )
    assert written.stderr.count("Read-only file system") == 6
    assert container.exec("samplicator", "status").returncode == 0


def test_without_net_raw_it_starts_and_says_what_it_cannot_do(engine: Engine, lab: Lab) -> None:
    container = start(engine, lab)
    assert [process(container, f"Cap{name}") for name in ("Eff", "Prm", "Bnd", "Amb")] == [NOTHING] * 4
    assert "CAP_NET_RAW" in container.logs()
    lab.collector_socket(2, 9996)
    tap = lab.tap(2, lambda seen: seen.port == 9996)
    sender = lab.exporter_socket("198.18.77.7", 7777)
    for number in range(50):
        sender.sendto(b"%d" % number, (lab.relay4(), 2055))
    assert [seen.payload for seen in tap.collect(50)] == [b"%d" % number for number in range(50)]
    receivers = {
        row["name"]: row for row in json.loads(container.exec("samplicator", "status", "--json").stdout)["receivers"]
    }
    assert receivers["spoofed"]["state"] == "unreachable"
    assert "CAP_NET_RAW" in receivers["spoofed"]["state_why"]
    assert (receivers["spoofed"]["counters"]["sent"], receivers["spoofed"]["failed"]) == (0, 50)
    assert receivers["plain"]["counters"]["sent"] == 50


def test_health(engine: Engine, lab: Lab) -> None:
    """Healthy while it answers, and not while the process is stopped."""
    container = start(engine, lab, *NET_RAW)
    assert container.healthy()
    pid = container.state()["Pid"]
    os.kill(pid, signal.SIGSTOP)
    assert not container.healthy()
    os.kill(pid, signal.SIGCONT)
    wait_for(container.healthy, "health to come back", 30)


def test_sigterm_ends_it_in_time(engine: Engine, lab: Lab) -> None:
    """Within drain_timeout, with status 0, and what waits is forwarded first."""
    container = start(engine, lab, *NET_RAW)
    tap = lab.tap(1, lambda seen: seen.port == 9995)
    sender = lab.exporter_socket("198.18.77.7", 7777)
    for number in range(500):
        sender.sendto(b"%d" % number, (lab.relay4(), 2055))
    assert container.stop(20) < 10
    assert container.state()["ExitCode"] == 0
    assert len(tap.collect(500)) == 500


def test_what_comes_in_is_checked_first(engine: Engine, lab: Lab) -> None:
    """A configuration with errors: one line that names file, line and key, and status 2."""
    folder = lab.directory / "wrong"
    folder.mkdir()
    (folder / "samplicator.toml").write_text("[service]\nlog_levle = 'info'\n")
    container = engine.start(IMAGE, options=["--network", "none", "--volume", f"{folder}:/etc/samplicator:ro"])
    wait_for(lambda: container.state()["Running"] is False, "the end", 60)
    assert container.state()["ExitCode"] == 2
    assert "/etc/samplicator/samplicator.toml:2: service.log_levle" in container.logs()


def test_changed_config_is_loaded_without_a_restart(engine: Engine, lab: Lab) -> None:
    container = start(engine, lab, *NET_RAW)
    before = container.state()["Pid"]
    text = CONFIG.format(spoofed=lab.peer4(1), plain=lab.peer4(2)).replace('name = "plain"', 'name = "other"')
    replaced = lab.directory / "etc" / "new"
    replaced.write_text(text.replace('"plain"]', '"other"]'))
    replaced.rename(lab.directory / "etc" / "samplicator.toml")

    def names() -> bool:
        found = json.loads(container.exec("samplicator", "status", "--json").stdout)["receivers"]
        return {row["name"] for row in found} == {"spoofed", "other"}

    wait_for(names, "the reload", 30, 0.2)
    assert container.state()["Pid"] == before


def test_node_tuning_runs_in_the_image(engine: Engine) -> None:
    root = ["--user", "0"]
    text = engine.run(IMAGE, "/opt/venv/bin/node-tuning", "--sysctl=net.core.rmem_max=1", "--rps=lo", options=root)
    assert len(text.splitlines()) == 2
    assert text.startswith("net.core.rmem_max")


# ---------------------------------------------------------------- a rollout, as the component take-over has it


def test_rollout_loses_nothing(engine: Engine, lab: Lab) -> None:
    """What a kubelet does with the pods of a DaemonSet with maxSurge: 1, one pod after the other, with the commands of
    the manifest: the init container, the new relay beside the old one, its readiness probe, then SIGTERM for the old
    one. Network and directory of the node are shared; all else belongs to each pod.
    """
    spec = pod(objects([kustomize(KUBERNETES / "overlays" / "spoof-take-over")]))
    (init,), (container,) = spec["initContainers"], spec["containers"]
    node, state, config = (lab.directory / name for name in ("node", "state", "etc"))
    for folder in (node, state, config):
        folder.mkdir()
    own = f'own_control = "{OWN}/control.sock"\nstate_file = "{STATE}/samplicator.state"'
    (config / "samplicator.toml").write_text(configuration(more=own))
    mounts = (f"{node}:{RUN}", f"{state}:{STATE}", f"{config}:/etc/samplicator:ro")
    volumes = [word for mount in mounts for word in ("--volume", mount)]
    network = ["--network", f"ns:/run/netns/{lab.relay.name}"]

    def next_pod() -> Container:
        engine.run(IMAGE, *init["command"], options=["--user", "0:0", "--cap-add", "CHOWN", "--read-only", *volumes])
        for folder in (node, state):
            assert (folder.stat().st_uid, folder.stat().st_gid) == (65532, 65532)
        options = [*network, *NET_RAW, *volumes, "--mount", f"type=tmpfs,destination={OWN},U=true"]
        made = engine.start(IMAGE, *container["args"], options=options)
        probe = container["readinessProbe"]["exec"]["command"]
        wait_for(lambda: made.exec(*probe, ok=False).returncode == 0, "the new pod to be ready", 60, 0.5)
        return made

    running = next_pod()
    stream = Stream(lab, RATE)
    try:
        for _ in range(3):
            following = next_pod()
            assert running.exec(*container["readinessProbe"]["exec"]["command"], ok=False).returncode == 3
            assert running.state()["Running"], "a container that ends before its pod is deleted is started again"
            assert running.stop(spec["terminationGracePeriodSeconds"]) < 10
            assert running.state()["ExitCode"] == 0
            running = following
        outcome = stream.finish()
    except BaseException:
        stream.give_up()
        raise
    assert outcome.whole, outcome
    running.stop(spec["terminationGracePeriodSeconds"])
    assert (state / "samplicator.state").stat().st_uid == 65532
    print(f"three rollouts: {outcome}")
