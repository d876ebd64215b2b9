"""A machine with systemd as its process 1: a Debian of one release, booted by systemd-nspawn in a namespace of the lab.

Its root file system is made once per release (mmdebstrap, build/roots) and never written: each machine has a layer of
its own over it, in memory. Its network is that of a namespace, so that the exporter and the collectors of lab.py reach
it over their links. Invariants: mounts, processes and control groups of a machine are gone when it ends, also when
the test run dies; commands inside never wait for ever. Used by tests/deploy.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import signal
import subprocess
from pathlib import Path

from support.network import run_outside
from support.process import tool, wait_for
from support.tree import ROOT

ROOTS = ROOT / "build" / "roots"
INCLUDED = ("systemd", "systemd-sysv", "dbus", "python3", "procps", "libstdc++6")
"""What a machine has besides the essential packages: an init, what the package depends on, tools for tests."""
BOOT_SECONDS, END_SECONDS = 60.0, 20.0
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
LAYER = """\
set -eu
mount -t tmpfs -o mode=755 tmpfs "$2"
mkdir "$2/upper" "$2/work" "$2/root"
mount -t overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" overlay "$2/root"
shift
layer=$1
shift
exec systemd-nspawn -q -D "$layer/root" --machine="${layer##*/}" --register=no --keep-unit --timezone=off "$@"
"""
"""A layer in memory over a root file system, in a mount namespace that goes with its last process."""
BOOT = ("--boot", "--link-journal=no", "--resolv-conf=off", "--capability=CAP_NET_ADMIN,CAP_NET_RAW")


class Refused(Exception):
    """This host cannot boot a machine; the text says why."""


def root_of(release: str, included: tuple[str, ...] = INCLUDED) -> Path:
    """The root file system of a release of Debian; made when it is missing, which needs the network."""
    words = (release, "minbase", *included)
    root = ROOTS / f"{release}-{hashlib.sha256(' '.join(words).encode()).hexdigest()[:8]}"
    if not root.exists():
        ROOTS.mkdir(parents=True, exist_ok=True)
        fresh = Path(f"{root}.{os.getpid()}")
        argv = [tool("mmdebstrap"), "--variant=minbase", "--dpkgopt=force-unsafe-io", f"--include={','.join(included)}"]
        try:
            done = run_outside([*argv, release, str(fresh)], timeout=900)
            if done.returncode != 0:
                raise Refused(f"mmdebstrap {release}: {done.stderr[-2000:]}")
            fresh.rename(root)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    return root


def release_of_host() -> str:
    """Code name of the Debian that runs the tests, "" for something else (os-release(5))."""
    lines = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    return lines.get("VERSION_CODENAME", "").strip('"') if lines.get("ID", "").strip('"') == "debian" else ""


def layered(root: Path, layer: Path) -> list[str]:
    """The command that runs what follows in a layer over a root file system; see LAYER and systemd-nspawn(1)."""
    tool("systemd-nspawn")
    argv = [tool("setpriv"), "--pdeathsig", "KILL", tool("unshare"), "--mount", "--propagation", "private"]
    return [*argv, "sh", "-c", LAYER, "layer", str(root), str(layer)]


class Machine:
    """One of them, from boot() to close(). namespace: its network, as `ip netns` names it."""

    def __init__(self, release: str, namespace: str, directory: Path) -> None:
        self.release = release
        self._root = root_of(release)
        self._namespace = namespace
        self._layer = directory / f"machine-{secrets.token_hex(3)}"
        self._log = directory / f"{self._layer.name}.log"
        self._group = own_group(self._layer.name)
        self._popen: subprocess.Popen[bytes] | None = None
        self._init = 0

    def boot(self) -> Machine:
        """Raises Refused with nspawn's words when this host does not let it."""
        self._layer.mkdir()
        argv = [tool("nice"), "-n", "-10", *layered(self._root, self._layer)]
        argv += [*BOOT, f"--network-namespace-path=/run/netns/{self._namespace}"]
        with open(self._log, "wb") as log:
            self._popen = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=lambda: self._join()
            )
        wait_for(self._has_init, "systemd-nspawn to start", BOOT_SECONDS)
        wait_for(self._has_booted, f"{self.release} to boot", BOOT_SECONDS, 0.1)
        return self

    def _join(self) -> None:
        if self._group is not None:
            (self._group / "cgroup.procs").write_text(str(os.getpid()))

    def _alive(self) -> None:
        assert self._popen is not None
        if self._popen.poll() is not None:
            raise Refused(f"systemd-nspawn ended with {self._popen.returncode}: {self.console()[-2000:]}")

    def _has_init(self) -> bool:
        """Finds process 1: the child of nspawn that runs in a root of its own."""
        assert self._popen is not None
        self._alive()
        with contextlib.suppress(OSError):
            for child in Path(f"/proc/{self._popen.pid}/task/{self._popen.pid}/children").read_text().split():
                if Path(f"/proc/{child}/comm").read_text().strip() == "systemd":
                    self._init = int(child)
        return self._init != 0

    def _has_booted(self) -> bool:
        self._alive()
        return self.run("systemctl", "is-system-running", check=False).stdout.strip() in ("running", "degraded")

    # --- inside ------------------------------------------------------------------------------------------------------
    def run(self, *argv: str, check: bool = True, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """A command inside, as root. check: a status that is not 0 is a failure with what the command said."""
        words = [tool("nsenter"), "-t", str(self._init), "-m", "-u", "-i", "-n", "-p", "-C", "--root", "--wd=/", "--"]
        words += ["/usr/bin/env", "-i", f"PATH={PATH}", "HOME=/root", "LC_ALL=C.UTF-8", *argv]
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout)
        assert not check or done.returncode == 0, f"{' '.join(argv)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def path(self, inside: str) -> Path:
        """A path inside, as the host reaches it. Links with absolute targets lead astray: name their targets."""
        return Path(f"/proc/{self._init}/root") / inside.lstrip("/")

    def write(self, inside: str, text: str) -> None:
        path = self.path(inside)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def put(self, file: Path, inside: str) -> None:
        shutil.copy(file, self.path(inside))

    def systemctl(self, *words: str, check: bool = True) -> str:
        return self.run("systemctl", *words, check=check).stdout

    def shows(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.systemctl("show", unit, f"--property={name}", "--value").strip()

    def pid(self, unit: str) -> int:
        """Main process of a unit, as the machine numbers it; 0 when it does not run."""
        return int(self.shows(unit, "MainPID"))

    def journal(self, unit: str) -> str:
        return self.run("journalctl", "--no-pager", "-o", "short-monotonic", "-u", unit).stdout

    def files(self) -> set[str]:
        """Every path of the root file system and of what lives in memory only."""
        found = self.run("find", "/", "/run", "/tmp", "/dev/shm", "-xdev", "-print").stdout.splitlines()
        return set(found)

    def console(self) -> str:
        return self._log.read_text(errors="replace")

    # --- the end -----------------------------------------------------------------------------------------------------
    def close(self) -> None:
        """Process 1 is killed, and with it all that runs inside: nothing of the machine is kept."""
        if self._popen is not None and self._popen.poll() is None:
            self._popen.send_signal(signal.SIGKILL)
            self._popen.wait(END_SECONDS)
        with contextlib.suppress(OSError):
            if self._init:
                os.kill(self._init, signal.SIGKILL)
        if self._group is not None:
            wait_for(lambda: removed(self._group), "the machine's processes to end", END_SECONDS, 0.05)
        shutil.rmtree(self._layer, ignore_errors=True)


def own_group(name: str) -> Path | None:
    """A control group for one machine, or two would share theirs; None where groups cannot be made."""
    # Where a host has both kinds of hierarchies, nspawn attaches to groups of the old one that it does not make.
    for old in (Path("/sys/fs/cgroup/systemd/payload"), Path("/sys/fs/cgroup/systemd/supervisor")):
        with contextlib.suppress(OSError):
            old.mkdir()
    for top in (Path("/sys/fs/cgroup/systemd"), Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup")):
        if (top / "cgroup.procs").exists():
            with contextlib.suppress(OSError):
                (top / name).mkdir()
                return top / name
    return None


def removed(group: Path | None) -> bool:
    """Removes a control group and those in it; False while one still has processes."""
    assert group is not None
    for path, _, _ in os.walk(group, topdown=False):
        with contextlib.suppress(OSError):
            os.rmdir(path)
    return not group.exists()
