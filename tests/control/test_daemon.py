"""The pid file: written whole, and never through what somebody has put in its place."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from samplicator.host.process import remove_pid_file, write_pid_file


def test_a_link_is_replaced_not_followed(tmp_path: Path) -> None:
    """As root, a link in a directory that others may write to would have any file overwritten."""
    victim = tmp_path / "victim"
    victim.write_text("precious\n")
    for kind in (os.symlink, os.link):
        path = tmp_path / "relay.pid"
        kind(victim, path)
        write_pid_file(str(path))
        assert victim.read_text() == "precious\n"
        assert not path.is_symlink()
        assert int(path.read_text()) == os.getpid()
        assert path.stat().st_mode & 0o777 == 0o644 & ~umask()
        remove_pid_file(str(path))
        assert not path.exists()
        assert victim.exists()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["victim"]


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_pipe_holds_nobody(tmp_path: Path) -> None:
    path = tmp_path / "relay.pid"
    os.mkfifo(path)
    thread = threading.Thread(target=lambda: (remove_pid_file(str(path)), write_pid_file(str(path))), daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    assert int(path.read_text()) == os.getpid()


def test_where_only_the_file_may_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An init script that makes the file for a user who may not write to the directory. Root may always: so it is
    played."""
    real = os.open

    def refused(path: str, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_CREAT:
            raise PermissionError(13, "Permission denied")
        return real(path, flags, mode)

    monkeypatch.setattr(os, "open", refused)
    path = tmp_path / "relay.pid"
    path.write_text("12345678901234567890\n")
    write_pid_file(str(path))
    assert path.read_text() == f"{os.getpid()}\n"
    other = tmp_path / "other"
    os.symlink(path, other)
    with pytest.raises(OSError, match=r"symbolic links|not a regular file"):
        write_pid_file(str(other))
    hard = tmp_path / "hard"
    os.link(path, hard)
    with pytest.raises(PermissionError):
        write_pid_file(str(hard))
