"""The state file: whole or ignored, in bounded memory, and never in the way of anybody."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from samplicator.supervisor import statefile
from samplicator.supervisor.statefile import (
    FINAL,
    HEAD_BYTES,
    MAGIC,
    RUNNING,
    Unusable,
    Writer,
    mark_running,
    obstacle,
    reading,
    replacing,
)

RECORDS: list[dict[str, Any]] = [{"head": 1}, {"x": "é" * 50}, {"numbers": list(range(300))}, {}]


def write(path: Path, records: list[dict[str, Any]] = RECORDS, *, final: bool = True) -> bytes:
    with replacing(str(path)) as file:
        writer = Writer(file, final=final)
        for record in records:
            assert writer.add(record)
        writer.finish()
    return path.read_bytes()


def read(path: Path, **options: int) -> list[dict[str, Any]]:
    with reading(str(path), **options) as reader:
        return list(reader.records())


def packed(body: bytes, *, word: bytes = FINAL, version: int = 1) -> bytes:
    """A file that says it is whole."""
    digest = hashlib.blake2b(body, digest_size=16).hexdigest().encode()
    return b"%s %d %s %016x %s\n" % (MAGIC, version, word, len(body), digest) + body


@pytest.mark.parametrize("final", [True, False])
def test_what_is_written_is_read(tmp_path: Path, final: bool) -> None:
    path = tmp_path / "state"
    whole = write(path, final=final)
    assert read(path) == RECORDS
    with reading(str(path)) as reader:
        assert reader.final is final
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(whole.split(b"\n", 1)[0]) + 1 == HEAD_BYTES
    write(path, RECORDS[:1])
    assert read(path) == RECORDS[:1]
    assert [each.name for each in tmp_path.iterdir()] == ["state"]


def test_the_last_word_is_marked_in_place(tmp_path: Path) -> None:
    path = tmp_path / "state"
    whole = write(path)
    mark_running(str(path))
    assert path.read_bytes() == whole.replace(FINAL, RUNNING, 1)
    with reading(str(path)) as reader:
        assert not reader.final
        assert list(reader.records()) == RECORDS
    path.write_bytes(b"something else")
    mark_running(str(path))
    assert path.read_bytes() == b"something else"


def test_every_truncation_is_found(tmp_path: Path) -> None:
    path = tmp_path / "state"
    whole = write(path)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(Unusable):
            read(path)
    path.write_bytes(whole + b"\n")
    with pytest.raises(Unusable):
        read(path)


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    path = tmp_path / "state"
    whole = write(path)
    for at in range(len(whole)):
        for bit in (1, 8, 128):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :])
            try:
                assert read(path) == RECORDS  # white space, or a digit's case
            except Unusable:
                continue
            assert at < HEAD_BYTES


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=400), st.sampled_from(["raw", "body", "json"]))
def test_nothing_that_claims_to_be_one_does_harm(tmp_path: Path, data: bytes, how: str) -> None:
    path = tmp_path / "state"
    path.write_bytes({"raw": data, "body": packed(data), "json": packed(zlib.compress(data))}[how])
    with contextlib.suppress(Unusable):
        for record in read(path):
            assert isinstance(record, dict)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "empty"),
        (b"[service]\n", "not a state file"),
        (packed(b"", version=2), "another version"),
        (packed(zlib.compress(b"{}\n"), word=b"else   "), "damaged"),
        (packed(zlib.compress(b"[1]\n")), "damaged"),
        (packed(zlib.compress(b"{]\n")), "damaged"),
        (packed(zlib.compress(b"[" * 100_000 + b"\n")), "damaged"),
        (packed(zlib.compress(b'{"n": ' + b"9" * 10_000 + b"}\n")), "damaged"),
        (packed(b"no zlib"), "damaged"),
        (packed(zlib.compress(b"{}\n")[:-3]), "damaged"),
        (packed(zlib.compress(b"x" * (statefile.LINE_BYTES + (1 << 20)))), "damaged"),
    ],
)
def test_it_says_why(tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "state"
    path.write_bytes(content)
    with pytest.raises(Unusable, match=why):
        read(path)


def test_a_bomb_is_bounded(tmp_path: Path) -> None:
    """What inflates a thousandfold: neither memory nor time is spent on it."""
    path = tmp_path / "state"
    packer = zlib.compressobj(9)
    line = b"{" + b" " * (1 << 20) + b"}\n"
    body = b"".join(packer.compress(line) for _ in range(100)) + packer.flush()
    path.write_bytes(packed(body))
    tracemalloc.start()
    try:
        with pytest.raises(Unusable), reading(str(path), limit=4 << 20) as reader:
            for _ in reader.records():
                pass
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()


def test_records_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state"
    path.write_bytes(packed(zlib.compress(b"{}\n" * 2000)))
    assert len(read(path)) == 2000
    monkeypatch.setattr(statefile, "MOST_RECORDS", 1999)
    with pytest.raises(Unusable):
        read(path)


def test_a_file_that_is_too_long_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_bytes(packed(os.urandom(5000)))
    with pytest.raises(Unusable, match="longer"):
        read(path, limit=4999)


def test_what_does_not_fit_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "state"
    records = [{"n": os.urandom(1000).hex()} for _ in range(1000)]
    limit = 200_000
    with replacing(str(path)) as file:
        writer = Writer(file, final=True, limit=limit)
        fits = [writer.add(record) for record in records]
        writer.finish()
    assert 50 < sum(fits) < 1000
    assert path.stat().st_size <= limit + HEAD_BYTES
    assert read(path, limit=limit) == records[: sum(fits)]


def test_what_fails_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state"
    whole = write(path)

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write(path, RECORDS[:1])
    with pytest.raises(RuntimeError), replacing(str(path)):
        raise RuntimeError
    assert path.read_bytes() == whole
    assert [each.name for each in tmp_path.iterdir()] == ["state"]


def test_what_a_crash_left_is_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / "state.new").write_bytes(b"half a file")
    path = tmp_path / "state"
    write(path)
    assert read(path) == RECORDS


@pytest.mark.parametrize("kind", ["foreign", "link", "folder", "fifo"])
def test_what_is_not_ours_is_left_alone(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "state"
    other = tmp_path / "other"
    other.write_bytes(b"precious")
    if kind == "foreign":
        path.write_bytes(b"precious")
    elif kind == "link":
        path.symlink_to(other)
    elif kind == "folder":
        path.mkdir()
    else:
        os.mkfifo(path)
    with pytest.raises((OSError, Unusable)):
        read(path)
    with pytest.raises(OSError):
        write(path)
    assert other.read_bytes() == b"precious"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["other", "state"]


def test_what_is_damaged_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "state"
    whole = write(path)
    for broken in (b"", whole[:5], whole[:-4], whole.replace(b"1 final", b"9 final")):
        path.write_bytes(broken)
        write(path)
        assert read(path) == RECORDS


def test_what_would_hinder_writing_is_said_before(tmp_path: Path) -> None:
    """For `samplicator check`, which writes nothing."""
    good = tmp_path / "s"
    assert obstacle(str(good)) == ""
    with replacing(str(good)) as file:
        Writer(file, final=True).finish()
    assert obstacle(str(good)) == ""
    (tmp_path / "folder").mkdir()
    (tmp_path / "other").write_text("not ours")
    (tmp_path / "link").symlink_to(good)
    for name, text in (
        ("folder", f"is a directory; write the path of a file, such as {tmp_path}/folder/samplicator.state"),
        ("missing/s", f"the directory {tmp_path}/missing does not exist; make it"),
        ("other/s", "other is not a directory; write another path"),
        ("other", "is not a state file of samplicator, so it is not replaced"),
        ("link", "is a symbolic link"),
    ):
        assert text in obstacle(str(tmp_path / name)), name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "link", "other", "s"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: to become somebody else")
def test_a_folder_that_this_user_cannot_write_in_is_an_obstacle(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "closed").mkdir(0o700)
    os.seteuid(65534)
    try:
        texts = [obstacle(str(tmp_path / name)) for name in ("s", "closed/s")]
    finally:
        os.seteuid(0)
    assert f"cannot write in the directory {tmp_path}" in texts[0] or "cannot open" in texts[0]
    assert all("the user of the service must be able to" in text for text in texts)
