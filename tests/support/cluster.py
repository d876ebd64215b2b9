"""A real cluster of one node inside a laboratory: etcd, API server, controllers, scheduler, kubelet, containerd, runc.

The node is the laboratory's relay namespace, so exporters and receivers are where they always are. Programs come from
tests/deploy/cluster/fetch. Everything runs below one process in namespaces of its own (mounts, processes), and ends
with it. Must never leave anything on the machine: the kernel settings that a kubelet changes are put back, its cgroups
removed. Called by tests/deploy, as root.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import signal
import subprocess
import tarfile
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

from support.lab import Lab
from support.network import run_outside
from support.process import tool, wait_for
from support.tree import ROOT

T = TypeVar("T")
CACHE = Path(os.environ.get("SAMPLICATOR_CLUSTER", Path.home() / ".cache" / "samplicator-cluster"))
SERVICES = "198.19.0.0/24"
API = "198.19.0.1"
"""Address of the Service of the API server: on the node itself, since there is no kube-proxy."""
PODS = "198.19.64.0/24"
CHANGED_BY_KUBELET = ("vm/overcommit_memory", "kernel/panic", "kernel/panic_on_oops")
PAUSE = b"#include <unistd.h>\nint main(void) { for (;;) pause(); }\n"
GATES = "EndpointSliceTerminatingCondition=true"
"""Alpha in 1.20, on by default since 1.22."""


def fetch() -> Path:
    """The programs, built if they are not there: eight minutes of one CPU."""
    script = ROOT / "tests" / "deploy" / "cluster" / "fetch"
    done = run_outside([str(script)], timeout=7200)
    assert done.returncode == 0, f"{script}\n{(done.stdout + done.stderr)[-4000:]}"
    return CACHE / "bin"


class Cluster:
    """One node, "node1", at the relay's address. Ready when made."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.bin = fetch()
        self.folder = lab.directory / "cluster"
        self.folder.mkdir()
        self.node = lab.relay4()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.settings = {name: Path("/proc/sys", name).read_text() for name in CHANGED_BY_KUBELET}
        self.cgroups = cgroups()
        self.holder: subprocess.Popen[bytes] | None = None
        self.image = ""  # of the relay
        self.token = secrets.token_hex(16)
        try:
            self._hold()
            self._certificates()
            self._start()
        except BaseException:
            self.close()
            raise

    # ------------------------------------------------------------------ life

    def _hold(self) -> None:
        """The process below which all others are. Its own folders stand for those of the machine that they write to."""
        script = (
            "for place in /run /var/log /var/lib; do mount -t tmpfs none $place; done; echo held; "
            "trap : CHLD; while :; do sleep 3600 & wait; done"
        )
        words = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", script]
        self.holder = subprocess.Popen(
            ["nsenter", f"--net=/run/netns/{self.lab.relay.name}", *words],
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self.holder.stdout is not None
        assert self.holder.stdout.readline() == b"held\n"
        children = Path(f"/proc/{self.holder.pid}/task/{self.holder.pid}/children").read_text().split()
        self.inside = ["nsenter", f"--target={children[0]}", "--net", "--mount", "--pid"]

    def _spawn(self, name: str, *words: str) -> None:
        path = f"{self.bin}:/usr/sbin:/usr/bin:/sbin:/bin"
        with open(self.folder / f"{name}.log", "wb") as log:
            self.processes[name] = subprocess.Popen(
                [*self.inside, "sh", "-c", 'cd "$0" && exec "$@"', str(self.folder), *words],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                env={"PATH": path, "HOME": str(self.folder), "GOMAXPROCS": "2"},
            )  # fmt: skip

    def close(self) -> None:
        if self.holder is not None:
            with contextlib.suppress(subprocess.TimeoutExpired, AssertionError):
                self._end_pods()
            self.holder.send_signal(signal.SIGKILL)  # and with it, the kernel ends all that runs below (--kill-child)
            self.holder.wait(30)
        for process in self.processes.values():
            process.wait(30)
        for name, value in self.settings.items():
            Path("/proc/sys", name).write_text(value)
        for place in sorted(cgroups() - self.cgroups, key=len, reverse=True):
            with contextlib.suppress(OSError):
                os.rmdir(place)

    def _end_pods(self) -> None:
        """In order, so that no container is killed in the middle of a write to a cgroup."""
        if "kubelet" in self.processes:
            words = ["delete", "daemonsets,deployments,pods", "--all", "--all-namespaces", "--wait=false", "--now"]
            self.kubectl(*words, timeout=30)
            wait_for(lambda: not self.get("pods")["items"], "the pods to end", 30, 0.5)

    # ------------------------------------------------------------------ what it is made of

    def _certificates(self) -> None:
        def openssl(*args: str) -> None:
            subprocess.run(["openssl", *args], cwd=self.folder, check=True, capture_output=True)

        new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "30")
        openssl("req", "-x509", *new, "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=cluster")
        openssl("req", *new[:-2], "-keyout", "api.key", "-out", "api.csr", "-subj", "/CN=kube-apiserver")
        names = f"IP:{self.node},IP:{API},IP:127.0.0.1,DNS:kubernetes.default.svc"
        (self.folder / "names").write_text(f"subjectAltName={names}\n")
        openssl(
            "x509", "-req", "-in", "api.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial",
            "-out", "api.crt", "-days", "30", "-extfile", "names",
        )  # fmt: skip
        openssl("genrsa", "-out", "accounts.key", "2048")
        openssl("rsa", "-in", "accounts.key", "-pubout", "-out", "accounts.pub")
        rows = [f'{self.token},admin,1,"system:masters"', f'{self.token}n,system:node:node1,2,"system:nodes"']
        (self.folder / "tokens.csv").write_text("\n".join(rows) + "\n")
        for name, token in (("admin", self.token), ("node", f"{self.token}n")):
            server = {"server": f"https://{API}", "certificate-authority": str(self.folder / "ca.crt")}
            config = {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "c", "cluster": server}],
                "users": [{"name": "u", "user": {"token": token}}],
                "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
                "current-context": "x",
            }
            (self.folder / f"{name}.json").write_text(json.dumps(config))

    def _start(self) -> None:
        self.lab.relay.ip("addr", "add", f"{API}/32", "dev", "lo")
        at = "http://127.0.0.1"
        self._spawn(
            "etcd", "etcd", "--data-dir=etcd", f"--listen-client-urls={at}:2379", f"--advertise-client-urls={at}:2379",
            f"--listen-peer-urls={at}:2380", f"--initial-advertise-peer-urls={at}:2380",
            f"--initial-cluster=default={at}:2380", "--unsafe-no-fsync",
        )  # fmt: skip
        self._spawn(
            "api", "kube-apiserver", f"--etcd-servers={at}:2379", "--bind-address=0.0.0.0", "--secure-port=443",
            f"--advertise-address={self.node}", f"--service-cluster-ip-range={SERVICES}", "--allow-privileged=true",
            "--tls-cert-file=api.crt", "--tls-private-key-file=api.key", "--cert-dir=certs",
            "--kubelet-preferred-address-types=InternalIP", "--token-auth-file=tokens.csv",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction", "--service-account-key-file=accounts.pub",
            "--service-account-signing-key-file=accounts.key", f"--service-account-issuer=https://{API}",
            f"--feature-gates={GATES}",
        )  # fmt: skip
        self._containerd()
        wait_for(lambda: self._works("get", "--raw", "/readyz"), "the API server", 120, 0.5)
        self._spawn(
            "controllers", "kube-controller-manager", "--kubeconfig=admin.json", "--root-ca-file=ca.crt",
            "--service-account-private-key-file=accounts.key", "--leader-elect=false", "--bind-address=127.0.0.1",
            "--port=0", f"--feature-gates={GATES}",
        )  # fmt: skip
        self._spawn(
            "scheduler", "kube-scheduler", "--kubeconfig=admin.json", "--leader-elect=false",
            "--bind-address=127.0.0.1", "--port=0",
        )  # fmt: skip
        (self.folder / "resolv.conf").write_text("nameserver 127.0.0.1\n")
        self._spawn(
            "kubelet", "kubelet", "--kubeconfig=node.json", "--container-runtime=remote",
            f"--container-runtime-endpoint=unix://{self.folder}/c.sock", "--hostname-override=node1",
            f"--node-ip={self.node}", "--cgroup-driver=cgroupfs", "--cgroups-per-qos=false",
            "--enforce-node-allocatable=", "--fail-swap-on=false", f"--root-dir={self.folder}/kubelet",
            f"--cert-dir={self.folder}/certs-kubelet", "--oom-score-adj=0", "--pod-infra-container-image=pause:1",
            "--sync-frequency=5s", "--node-status-update-frequency=5s", "--address=0.0.0.0", "--healthz-port=0",
            "--read-only-port=0", "--image-gc-high-threshold=100", "--eviction-hard=",
            "--make-iptables-util-chains=false", f"--resolv-conf={self.folder}/resolv.conf",
            f"--volume-plugin-dir={self.folder}/plugins", "--serialize-image-pulls=false", "--cluster-dns=127.0.0.1",
        )  # fmt: skip
        self._pause()
        self.wait("the node to be ready", self._ready)
        self.wait("the default account", lambda: self._works("get", "serviceaccount", "default"))

    def _ready(self) -> bool:
        assert self._works("get", "--raw", "/readyz"), "the API server"
        for item in self.get("nodes")["items"]:
            for condition in item["status"].get("conditions", ()):
                if condition["type"] == "Ready":
                    return bool(condition["status"] == "True")
        return False

    def _containerd(self) -> None:
        network = {
            "cniVersion": "0.3.1",
            "name": "pods",
            "plugins": [
                {
                    "type": "bridge",
                    "bridge": "pods0",
                    "isGateway": True,
                    "ipam": {
                        "type": "host-local",
                        "dataDir": str(self.folder / "leases"),
                        "ranges": [[{"subnet": PODS}]],
                        "routes": [{"dst": "0.0.0.0/0"}],
                    },
                }
            ],
        }
        (self.folder / "cni").mkdir()
        (self.folder / "cni" / "10-pods.conflist").write_text(json.dumps(network))
        (self.folder / "containerd.toml").write_text(f"""\
version = 2
root = "{self.folder}/containerd"
state = "{self.folder}/containerd-state"
[grpc]
address = "{self.folder}/c.sock"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "pause:1"
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{self.bin}"
conf_dir = "{self.folder}/cni"
""")
        self._spawn("containerd", "containerd", "--config=containerd.toml")

    def _pause(self) -> None:
        """The image of the process that holds the namespaces of a pod: one static program."""
        folder = self.folder / "pause"
        folder.mkdir()
        (folder / "pause.c").write_bytes(PAUSE)
        subprocess.run(["gcc", "-static", "-Os", "-o", "pause", "pause.c"], cwd=folder, check=True)
        layer = BytesIO()
        with tarfile.open(fileobj=layer, mode="w") as tar:
            tar.add(folder / "pause", "pause")
        config = {"architecture": "amd64", "os": "linux", "config": {"Entrypoint": ["/pause"]}, "rootfs": {}}
        digest = hashlib.sha256(layer.getvalue()).hexdigest()
        config["rootfs"] = {"type": "layers", "diff_ids": [f"sha256:{digest}"]}
        names = ["docker.io/library/pause:1"]
        manifest = [{"Config": "config.json", "RepoTags": names, "Layers": ["layer.tar"]}]
        parts = {"config.json": json.dumps(config).encode(), "layer.tar": layer.getvalue()}
        parts["manifest.json"] = json.dumps(manifest).encode()
        with tarfile.open(folder / "pause.tar", "w") as tar:
            for name, content in parts.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, BytesIO(content))
        self.load(folder / "pause.tar")

    # ------------------------------------------------------------------ for tests

    def load(self, archive: Path) -> str:
        """Puts the image of an archive (docker save) on the node; returns its name."""
        words = [str(self.bin / "ctr"), f"--address={self.folder}/c.sock", "--namespace=k8s.io", "images", "import"]
        wait_for((self.folder / "c.sock").exists, "containerd", 60)
        done = subprocess.run([*self.inside, *words, str(archive)], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        with tarfile.open(archive) as tar:
            manifest = tar.extractfile("manifest.json")
            assert manifest is not None
            (name,) = json.load(manifest)[0]["RepoTags"]
        return str(name)

    def kubectl(self, *words: str, stdin: str | None = None, ok: bool = True, timeout: float = 120) -> str:
        """As the cluster's administrator."""
        command = [*self.inside[:2], "--net", tool("kubectl"), f"--kubeconfig={self.folder}/admin.json", *words]
        done = subprocess.run(
            command,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**os.environ, "HOME": str(self.folder)},
        )
        assert not ok or done.returncode == 0, f"kubectl {' '.join(words)}\n{done.stdout}{done.stderr}\n{stdin or ''}"
        return done.stdout

    def _works(self, *words: str) -> bool:
        for name, process in self.processes.items():
            assert process.poll() is None, f"{name} has ended:\n{self.log(name)}"
        try:
            self.kubectl(*words, timeout=20)
        except (AssertionError, subprocess.TimeoutExpired):
            return False
        return True

    def get(self, *words: str) -> Any:
        return json.loads(self.kubectl("get", *words, *(() if "-n" in words else ("--all-namespaces",)), "-o", "json"))

    def apply(self, *objects: dict[str, Any]) -> None:
        self.kubectl("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))

    def pods(self, namespace: str, selector: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.get("pods", "-n", namespace, "-l", selector)["items"]
        return found

    def wait(self, what: str, probe: Callable[[], T], seconds: float = 120) -> tuple[T, float]:
        """What `probe` answers as soon as it is true, and the seconds that took."""
        begun = time.monotonic()
        try:
            return wait_for(probe, what, seconds, 0.1), time.monotonic() - begun
        except AssertionError as error:
            pods = self.kubectl("get", "pods", "-A", "-o", "wide", ok=False)
            events = self.kubectl("get", "events", "-A", ok=False)
            words = [*self.inside, "sh", "-c", "tail -n 20 /var/log/pods/*/*/*.log"]
            said = subprocess.run(words, capture_output=True, text=True).stdout
            raise AssertionError(f"{error}\n{pods}\n{events[-3000:]}\n{self.log('kubelet', 1500)}\n{said}") from None

    def log(self, name: str, characters: int = 3000) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")[-characters:]

    def memory(self) -> dict[str, int]:
        """Resident MiB of the programs of the cluster."""
        rows = subprocess.run(
            [*self.inside, "ps", "-eo", "rss=,comm="], capture_output=True, text=True, check=True
        ).stdout
        found: dict[str, int] = {}
        for row in rows.splitlines():
            size, name = row.split(maxsplit=1)
            found[name] = found.get(name, 0) + int(size) // 1024
        return found


def ready(pod: dict[str, Any]) -> bool:
    """Whether a pod is ready, and not on its way out."""
    conditions = {each["type"]: each["status"] for each in pod["status"].get("conditions", ())}
    return conditions.get("Ready") == "True" and "deletionTimestamp" not in pod["metadata"]


def cgroups() -> set[str]:
    """All of the machine."""
    found = subprocess.run(["find", "/sys/fs/cgroup", "-mindepth", "2", "-type", "d"], capture_output=True, text=True)
    return set(found.stdout.splitlines())
