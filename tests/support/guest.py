"""A guest with a kernel of its own, for what this host's kernel has not: SCTP.

    python -m support.guest KERNEL_DIRECTORY -- COMMAND...

KERNEL_DIRECTORY has an unpacked linux-image package of Debian. The guest sees this host's files by 9p, without writing
to them, and runs the command in the current directory with a network of its own; its exit status is the guest's. Needs
qemu-system-x86_64, busybox (static) and cpio. Used by hand and by `make verify-sctp`. Must never change the host.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

MODULES = (
    "crc32c_generic",
    "virtio_pci",
    "9pnet_virtio",
    "9p",
    "sctp",
    "veth",
    "nf_tables",
    "nft_numgen",
    "nft_reject_inet",
)
INIT = """#!/bin/sh
export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc p /proc; mount -t sysfs s /sys; mount -t devtmpfs d /dev
for m in $(cat /m/order); do insmod /m/$m.ko || echo "no $m"; done
ip link set lo up
mount -t 9p -o trans=virtio,version=9p2000.L,ro,cache=loose,msize=262144 host /host || poweroff -f
for t in run tmp var/tmp; do mount -t tmpfs t /host/$t; done
mkdir -p /host/run/netns
mount -t proc p /host/proc; mount -t sysfs s /host/sys; mount -t devtmpfs d /host/dev
mkdir -p /host/dev/shm /host/dev/pts; mount -t tmpfs t /host/dev/shm; mount -t devpts p /host/dev/pts
ln -s /proc/self/fd /host/dev/fd 2>/dev/null; ln -s /proc/self/fd/0 /host/dev/stdin 2>/dev/null
cp /command /host/run/command
chroot /host /bin/sh /run/command
echo "GUEST STATUS $?"
poweroff -f
"""


def needed(modules: Path, names: tuple[str, ...]) -> list[Path]:
    """Module files in the order in which they can be loaded; those that the kernel has built in are left out."""
    files = {path.stem.replace("-", "_"): path for path in modules.rglob("*.ko")}
    found: list[Path] = []

    def add(name: str) -> None:
        path = files.get(name.replace("-", "_"))
        if path is None or path in found:
            return
        depends = re.search(rb"\0depends=([^\0]*)\0", path.read_bytes())
        for other in (depends[1].decode() if depends else "").split(","):
            if other:
                add(other)
        found.append(path)

    for name in names:
        add(name)
    return found


def initramfs(kernel: Path, command: list[str], out: Path) -> None:
    with tempfile.TemporaryDirectory() as made:
        root = Path(made)
        for name in ("bin", "m", "proc", "sys", "dev", "host"):
            (root / name).mkdir()
        busybox = shutil.which("busybox")
        assert busybox, "the package busybox-static is missing"
        shutil.copy(busybox, root / "bin" / "busybox")
        (root / "bin" / "sh").symlink_to("busybox")
        order = needed(next(kernel.glob("lib/modules/*")), MODULES)
        for path in order:
            shutil.copy(path, root / "m" / path.name)
        (root / "m" / "order").write_text("\n".join(path.stem for path in order))
        wanted = {name: value for name, value in os.environ.items() if name.startswith(("SCTP_", "PYTEST_"))}
        words = [f"export {name}={shlex.quote(value)}" for name, value in wanted.items()]
        path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        words += [
            "export TEST_PATIENCE=6",
            'export PYTEST_ADDOPTS="--timeout=1800 $PYTEST_ADDOPTS"',
        ]  # no KVM: it is slow
        words += [f"export PATH={path} HOME=/tmp PYTHONDONTWRITEBYTECODE=1", f"cd {shlex.quote(str(Path.cwd()))}"]
        (root / "command").write_text("\n".join([*words, shlex.join(command)]) + "\n")
        (root / "init").write_text(INIT)
        (root / "init").chmod(0o755)
        listed = subprocess.run(["find", "."], cwd=root, capture_output=True, check=True).stdout
        packed = subprocess.run(["cpio", "-o", "-H", "newc", "--quiet"], cwd=root, input=listed, capture_output=True)
        packed.check_returncode()
        out.write_bytes(packed.stdout)


def run(kernel: Path, command: list[str], seconds: float = 7200) -> int:
    """Exit status of the command in the guest, -1: it did not get so far, or took too long. What the guest says is
    printed as it comes.
    """
    with tempfile.TemporaryDirectory() as made:
        image = Path(made) / "initramfs"
        initramfs(kernel, command, image)
        argv = ["qemu-system-x86_64", "-accel", os.environ.get("GUEST_ACCEL", "tcg"), "-m", "1024", "-smp", "2"]
        argv += ["-nographic", "-no-reboot", "-net", "none", "-kernel", str(next(kernel.glob("boot/vmlinuz-*")))]
        argv += ["-initrd", str(image), "-append", "console=ttyS0 quiet panic=-1 random.trust_cpu=on"]
        argv += ["-cpu", "max"]
        argv += ["-virtfs", "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap"]
        guest = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
        assert guest.stdout is not None
        limit = threading.Timer(seconds, guest.kill)
        limit.start()
        status = -1
        try:
            for line in guest.stdout:
                print(line, end="", flush=True)
                if (found := re.search(r"GUEST STATUS (\d+)", line)) is not None:
                    status = int(found[1])
        finally:
            limit.cancel()
            guest.kill()
            guest.wait()
    return status


if __name__ == "__main__":
    split = sys.argv.index("--")
    status = run(Path(sys.argv[1]), sys.argv[split + 1 :])
    sys.exit(status if status >= 0 else 1)
