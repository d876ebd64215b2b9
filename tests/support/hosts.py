"""What the control plane's tests share: configurations from text, a host that is not this one, free ports."""

from __future__ import annotations

import contextlib
import itertools
import random
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from samplicator.config.model.loaded import Loaded
from samplicator.config.toml.load import load_toml
from samplicator.plan.spec import Capabilities

Load = Callable[[str], Loaded]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """TOML text -> Loaded, with HTTP off unless the text has a [service] table."""

    def from_text(text: str) -> Loaded:
        path = tmp_path / "samplicator.toml"
        path.write_text(text if "[service]" in text else '[service]\nhttp = ""\ncontrol = ""\n' + text)
        return load_toml(str(path))

    return from_text


def host(
    *local: str,
    net_raw: bool = True,
    net_admin: bool = False,
    frames: bool = False,
    cpus: tuple[int, ...] = (0, 1),
) -> Capabilities:
    """A host with these addresses (and all of 127/8, and the unspecified ones)."""
    packed = {socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text) for text in local}
    return Capabilities(
        net_raw=net_raw,
        net_admin=net_admin,
        frames=frames,
        is_local=lambda address: address in packed or not any(address) or (len(address) == 4 and address[0] == 127),
        cpus=cpus,
        interface_index=lambda name: {"lo": 1, "eth1": 2}.get(name, 0),
    )


# Below the ports that the kernel gives away by itself (32768 and up), so that no other socket takes one between
# its choice and its use; each is told once only, and every process of the tests begins elsewhere.
# Above 9999: a test that writes ports itself beside these uses lower ones.
_PORTS = range(10_000, 32_000)
_ports = itertools.count(random.SystemRandom().randrange(len(_PORTS)))


def free_port(family: socket.AddressFamily = socket.AF_INET) -> int:
    """A port that nobody has right now, for UDP and TCP, and that was not told before."""
    for number in itertools.islice(_ports, len(_PORTS)):
        port = _PORTS[number % len(_PORTS)]
        with contextlib.suppress(OSError), contextlib.ExitStack() as opened:
            for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
                opened.enter_context(socket.socket(family, kind)).bind(("" if family == socket.AF_INET else "::", port))
            return port
    raise AssertionError("no port is free")
