"""The file watch with real inotify: editors that replace, editors that rewrite, and the kubelet's ConfigMap swap."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from samplicator.host import watch
from samplicator.host.watch import Watcher, content_hash


class Seen:
    def __init__(self) -> None:
        self.count = 0
        self.event = asyncio.Event()

    def __call__(self) -> None:
        self.count += 1
        self.event.set()

    async def next(self, timeout: float = 5.0) -> None:
        async with asyncio.timeout(timeout):
            await self.event.wait()
        self.event.clear()


def run(file: Path, act: Callable[[Seen, Watcher], object], *, poll: float = 60.0, quiet: float = 0.05) -> Seen:
    """Watches `file` while the coroutine function `act` changes things; inotify alone unless poll says otherwise."""
    seen: list[Seen] = []

    async def main() -> None:
        seen.append(Seen())
        watcher = Watcher([str(file)], seen[0], quiet_seconds=quiet, poll_seconds=poll)
        watcher.start()
        await act(seen[0], watcher)  # type: ignore[misc]
        watcher.stop()

    asyncio.run(main())
    return seen[0]


def test_rewritten_and_replaced_files(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text("1")

    async def act(seen: Seen, watcher: Watcher) -> None:
        file.write_text("2")
        await seen.next()
        for text in ("3", "4", "5"):
            new = tmp_path / "new"
            new.write_text(text)
            os.replace(new, file)
            await seen.next()

    assert run(file, act).count == 4


def test_same_content_and_other_files_are_no_news(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text("1")

    async def act(seen: Seen, watcher: Watcher) -> None:
        file.write_text("1")
        (tmp_path / "other").write_text("x")
        await asyncio.sleep(0.4)
        assert seen.count == 0

    run(file, act)


def test_a_burst_of_writes_is_one_change(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text("1")

    async def act(seen: Seen, watcher: Watcher) -> None:
        for number in range(20):
            file.write_text(f"burst {number}")
        await seen.next()
        await asyncio.sleep(0.3)

    assert run(file, act).count == 1


def test_a_file_that_is_saved_in_pieces_is_one_change(tmp_path: Path) -> None:
    """The editor keeps the file open meanwhile; others write to files of their own in the same directory."""
    file = tmp_path / "a.toml"
    file.write_text("1")

    async def act(seen: Seen, watcher: Watcher) -> None:
        with open(file, "w") as writing, open(tmp_path / "log", "w") as other:
            for number in range(8):
                print(number, file=writing, flush=True)
                await asyncio.sleep(0.02)
                print(number, file=other, flush=True)
            assert seen.count == 0
            await seen.next()
            before = watcher._settle
            print("more", file=other, flush=True)
            await asyncio.sleep(0.3)  # longer than the kernel is not asked
            assert watcher._settle is before is None, "no business of ours"

    assert run(file, act, quiet=0.5).count == 1


def test_what_others_write_beside_our_files_costs_next_to_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A log, and files that are made and renamed all the time, in the directory of the configuration: our files are not
    read for that, the kernel is asked a few times only, and a change of ours is seen all the same.
    """
    file = tmp_path / "a.toml"
    file.write_text("1")
    looks: list[float] = []
    reads: list[object] = []

    async def act(seen: Seen, watcher: Watcher) -> None:
        original, hashed = watcher._on_events, watch.content_hash
        loop = asyncio.get_running_loop()
        loop.remove_reader(watcher._fd)
        watcher._on_events = lambda: (looks.append(loop.time()), original())  # type: ignore[assignment,method-assign]
        watcher._listen()
        monkeypatch.setattr(watch, "content_hash", lambda files: (reads.append(files), hashed(files))[1])
        begun = loop.time()
        with open(tmp_path / "log", "w") as log:
            for number in range(1200):
                print(number, file=log, flush=True)
                if number % 10 == 0:
                    (tmp_path / f"{number}.tmp").write_text("x")
                    os.replace(tmp_path / f"{number}.tmp", tmp_path / "cache")
                await asyncio.sleep(0.001)
        assert len(looks) <= (loop.time() - begun) / 0.1 + 2
        assert not reads
        file.write_text("2")
        await seen.next()
        assert len(reads) == 1

    assert run(file, act, quiet=0.2).count == 1


def test_writes_without_end_are_still_noticed(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text("1")

    async def act(seen: Seen, watcher: Watcher) -> None:
        for number in range(150):
            file.write_text(f"{number}")
            await asyncio.sleep(0.01)
        assert seen.count >= 1

    run(file, act)


def test_mark_swallows_what_a_reload_has_read(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text("1")

    async def act(seen: Seen, watcher: Watcher) -> None:
        file.write_text("2")
        watcher.mark()
        await asyncio.sleep(0.4)
        assert seen.count == 0
        file.write_text("3")
        await seen.next()

    run(file, act)


def test_configmap_swaps(tmp_path: Path) -> None:
    """As the kubelet does it (AtomicWriter): FILE -> ..data/FILE, ..data -> ..VERSION, a new ..data renamed over it."""
    volume = tmp_path / "volume"
    volume.mkdir()

    def swap(version: int) -> None:
        payload = volume / f"..{version}"
        payload.mkdir()
        (payload / "a.toml").write_text(f"version {version}")
        os.symlink(payload.name, volume / "..data_tmp")
        os.rename(volume / "..data_tmp", volume / "..data")
        if version > 1:
            (volume / f"..{version - 1}" / "a.toml").unlink()
            (volume / f"..{version - 1}").rmdir()

    swap(1)
    os.symlink("..data/a.toml", volume / "a.toml")

    async def act(seen: Seen, watcher: Watcher) -> None:
        for version in (2, 3, 4):
            swap(version)
            await seen.next()

    assert run(volume / "a.toml", act).count == 3


def test_directory_that_is_replaced_is_found_by_the_poll(tmp_path: Path) -> None:
    place = tmp_path / "etc"
    place.mkdir()
    (place / "a.toml").write_text("1")

    async def act(seen: Seen, watcher: Watcher) -> None:
        os.rename(place, tmp_path / "old")
        place.mkdir()
        (place / "a.toml").write_text("2")
        await seen.next()
        (place / "a.toml").write_text("3")
        await seen.next()

    run(place / "a.toml", act, poll=0.2)


def test_a_file_that_vanishes_is_one_change(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text("1")
    before = content_hash([str(file)])
    file.unlink()
    assert content_hash([str(file)]) != before
