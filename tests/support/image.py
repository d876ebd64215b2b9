"""The container image: built by buildah from bases that mmdebstrap makes here, and run by podman and runc.

No registry is asked. The bases stay below build/image and are made once. Called by tests/deploy, as root. Must never
touch the machine's own containers: storage, runtime folder and names are its own, and everything that it started is
removed by close().
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from support.linters import ROOT, tool
from support.network import run_outside

PLACE = ROOT / "build" / "image"
RELEASE = "bookworm"
PACKAGES = {
    "run": ["python3", "ca-certificates"],
    "build": ["python3", "python3-venv", "python3-dev", "gcc", "libc6-dev", "libcap2-bin", "ca-certificates"],
}
"""What the official Python images have and Debian's minimal root lacks."""
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
OVERLAYFS_MAGIC = "794c7630"  # statfs(2)
# The runtime's own limits need CAP_SYS_RESOURCE, which not every machine that runs tests has.
LIMITS = ["--ulimit", "nofile=1024:20000", "--ulimit", "nproc=4096:4096"]


def done(
    command: Sequence[str], *, timeout: float = 600, ok: bool = True, fetches: bool = False
) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end; a failure shows its last words. fetches: it needs the network of the machine."""
    if fetches:
        result = run_outside(command, timeout=timeout)
    else:
        result = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    assert not ok or result.returncode == 0, f"{' '.join(command)}\n{(result.stdout + result.stderr)[-4000:]}"
    return result


class Engine:
    """podman and buildah with a storage of their own."""

    def __init__(self) -> None:
        PLACE.mkdir(parents=True, exist_ok=True)
        magic = done(["stat", "-f", "-c", "%t", str(PLACE)]).stdout.strip()
        driver = "vfs" if magic == OVERLAYFS_MAGIC else "overlay"
        self.storage = ["--root", str(PLACE / "storage"), "--runroot", str(PLACE / "run"), "--storage-driver", driver]
        self.containers: list[Container] = []

    def podman(self, *words: str, ok: bool = True, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        # ahead of whatever else the machine does, as Process has it; containers inherit it
        first = [tool("nice"), "-n", "-10", tool("podman"), *self.storage]
        own = [*first, "--cgroup-manager", "cgroupfs", "--runtime", "runc", "--log-level", "fatal"]
        return done([*own, *words], ok=ok, timeout=timeout)

    def base(self, kind: str) -> str:
        """Name of a base image, made if it is not there."""
        name = f"localhost/{kind}-base:{RELEASE}"
        if self.podman("image", "exists", name, ok=False).returncode:
            archive = PLACE / f"{kind}.tar"
            include = f"--include={','.join(PACKAGES[kind])}"
            made = [tool("mmdebstrap"), "--quiet", "--variant=minbase", include, RELEASE, str(archive)]
            done(made, timeout=900, fetches=True)
            self.podman("import", "--quiet", str(archive), name, timeout=300)
            archive.unlink()
        return name

    def build(self, name: str, **arguments: str) -> None:
        """The Dockerfile, as it ships. arguments: further ARGs."""
        words = {"BUILD_IMAGE": self.base("build"), "RUN_IMAGE": self.base("run"), **arguments}
        built = [word for key, value in words.items() for word in ("--build-arg", f"{key}={value}")]
        folder = ROOT / "deploy" / "docker"
        done(
            [
                tool("buildah"), *self.storage, "bud", "--isolation", "chroot", "--network", "host",
                "--format", "docker", *self._pip(), *built,
                "--file", str(folder / "Dockerfile"), "--tag", name, str(ROOT),
            ],
            timeout=1200,
            fetches=True,
        )  # fmt: skip

    @staticmethod
    def _pip() -> list[str]:
        """This machine's way to the package index, for the build only: mounted, so nothing of it is in the image."""
        settings = {"cert": str(CERTIFICATES)} if CERTIFICATES.exists() else {}
        for name in ("index-url", "trusted-host", "timeout"):
            found = os.environ.get(f"PIP_{name.upper().replace('-', '_')}")
            settings |= {name: found} if found else {}
        file = PLACE / "pip.conf"
        file.write_text("[global]\n" + "".join(f"{name} = {value}\n" for name, value in settings.items()))
        mounts = {file: "/etc/pip.conf", **({CERTIFICATES: CERTIFICATES} if CERTIFICATES.exists() else {})}
        return [word for source, target in mounts.items() for word in ("--volume", f"{source}:{target}:ro")]

    def labels(self, name: str) -> dict[str, str]:
        found: dict[str, str] = json.loads(self.podman("image", "inspect", name).stdout)[0]["Labels"]
        return found

    def run(self, image: str, *words: str, options: Sequence[str] = ()) -> str:
        """What one command of an image prints. The entry point is replaced by the first word."""
        first, *rest = words
        common = ["--rm", *LIMITS, "--network", "none", "--cap-drop", "all", "--security-opt", "no-new-privileges"]
        return self.podman("run", *common, *options, "--entrypoint", first, image, *rest).stdout

    def start(self, image: str, *words: str, options: Sequence[str] = ()) -> Container:
        """The relay as a container, as restricted as in Kubernetes: read-only, no capability but those in `options`."""
        common = ["--detach", *LIMITS, "--cap-drop", "all", "--security-opt", "no-new-privileges", "--read-only"]
        identity = self.podman("run", *common, *options, image, *words).stdout.strip()
        container = Container(self, identity)
        self.containers.append(container)
        return container

    def close(self) -> None:
        for container in self.containers:
            self.podman("rm", "--force", "--time", "0", container.identity, ok=False)
        for mount in ("storage/overlay", "storage"):  # podman leaves a bind mount behind
            with contextlib.suppress(AssertionError):
                done([tool("umount"), str(PLACE / mount)], ok=False)


class Container:
    """One container that runs, or has run."""

    def __init__(self, engine: Engine, identity: str) -> None:
        self.engine = engine
        self.identity = identity

    def logs(self) -> str:
        result = self.engine.podman("logs", self.identity)
        return result.stdout + result.stderr

    def exec(self, *words: str, ok: bool = True) -> subprocess.CompletedProcess[str]:
        return self.engine.podman("exec", self.identity, *words, ok=ok)

    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.engine.podman("inspect", self.identity).stdout)[0]["State"]
        return found

    def healthy(self) -> bool:
        """The HEALTHCHECK of the image, run once."""
        return self.engine.podman("healthcheck", "run", self.identity, ok=False).returncode == 0

    def stop(self, seconds: int) -> float:
        """As `docker stop`: STOPSIGNAL, and after `seconds` SIGKILL. Returns how long it took."""
        begin = time.monotonic()
        self.engine.podman("stop", "--time", str(seconds), self.identity)
        return time.monotonic() - begin
