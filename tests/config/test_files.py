"""A configuration that is no regular file is an error at once: nothing waits for it."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from samplicator.config import files
from samplicator.config.legacy.rulefile import parse_rule_file
from samplicator.config.toml.load import load_toml
from samplicator.errors import ConfigError
from samplicator.host.watch import content_hash


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))


KINDS: dict[str, tuple[Callable[[Path], object], str]] = {
    "pipe": (os.mkfifo, "the file is a pipe; name a regular file"),
    "directory": (os.mkdir, "the file is a directory; name a regular file"),
    "device": (lambda path: os.symlink("/dev/zero", path), "the file is a device; name a regular file"),
    "socket": (make_socket, "the file cannot be read"),
    "nothing": (lambda path: None, "No such file or directory"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("read", [load_toml, parse_rule_file])
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, kind: str, read: Callable[[str], object]) -> None:
    make, why = KINDS[kind]
    path = tmp_path / "a.toml"
    make(path)
    said: list[str] = []

    def run() -> None:
        content_hash([str(path)])
        try:
            read(str(path))
        except ConfigError as error:
            said.append(str(error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive(), "it waits"
    assert why in said[0]
    assert str(path) in said[0]


def test_a_file_without_end_is_read_to_the_bound_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.toml"
    with open(path, "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ConfigError, match="the file is larger than 64 MiB, which is the limit"):
        load_toml(str(path))
    assert content_hash([str(path)]) == content_hash([str(path)])


def test_a_file_that_may_have_changed_shows_it_unopened(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    assert files.signature(str(path)) is None
    path.write_text("1")
    before = files.signature(str(path))
    assert before is not None
    assert files.signature(str(path)) == before
    new = tmp_path / "new"
    new.write_text("1")
    os.utime(new, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    os.replace(new, path)
    assert files.signature(str(path)) != before
