"""What links tells when the kernel keeps its thread waiting, and when it changes its mind often. The kernel's part is
that of a real namespace; only what cannot be had, a kernel that does not answer, is made.
"""

from __future__ import annotations

import socket
import subprocess
import threading
from typing import Any

import pytest
from samplicator.host import links, offload
from samplicator.host.ethtool import takes_runs
from samplicator.host.netlink import Conversation
from support.worker import in_namespace, ip, wait_until

pytestmark = pytest.mark.netns
MAC, OTHER = "02:00:00:00:00:02", "02:00:00:00:00:03"
HOP = "198.18.1.1"


class Heard:
    """A sink that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[links.Link | None, str]] = []

    def __call__(self, link: links.Link | None, words: str) -> None:
        self.told.append((link, words))

    @property
    def address(self) -> str:
        """Link address of the next hop as it was told last, "" = none."""
        link = self.told[-1][0] if self.told else None
        return link.header[:6].hex(":") if link is not None else ""


def followed(heard: Heard, *, careful: bool = True, others: int = 0) -> links.Links:
    """In this namespace: a receiver behind a neighbor that is set by hand, and some more."""
    ip("link set lo up", "link add a0 type veth peer name b0", "link set a0 up", "link set b0 up")
    ip("addr add 198.18.0.1/16 dev a0", f"neigh replace {HOP} lladdr {MAC} dev a0 nud permanent")
    batch = "".join(f"neigh replace 198.18.2.{n} lladdr {MAC} dev a0 nud permanent\n" for n in range(1, others + 1))
    subprocess.run(["ip", "-batch", "-"], input=batch, text=True, check=True)
    made = links.Links()
    targets = {"r": links.Target(socket.inet_aton(HOP), 0, heard, careful)}
    for n in range(1, others + 1):
        targets[f"r{n}"] = links.Target(socket.inet_aton(f"198.18.2.{n}"), 0, Heard(), careful)
    made.follow(targets)
    wait_until(lambda: heard.address == MAC, "the link")
    return made


def test_frames_end_when_the_kernel_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> None:
        heard, held, asked = Heard(), threading.Event(), threading.Event()
        made = followed(heard)
        made.lapse()
        assert heard.address == MAC
        answers = Conversation.route

        def waits(self: Conversation, *words: Any) -> Any:
            asked.set()
            held.wait(60)
            return answers(self, *words)

        monkeypatch.setattr(Conversation, "route", waits)
        monkeypatch.setattr(links, "LEASE_SECONDS", 0.0)
        wait_until(asked.is_set, "a look")
        made.lapse()
        assert heard.told[-1] == (None, "the kernel has not answered for 0 s")
        held.set()
        wait_until(lambda: heard.address == MAC, "the link again")
        made.close()

    in_namespace(run)


def test_a_change_is_heard_while_it_rests_from_the_last_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then there are no frames until it has looked again."""

    def run() -> None:
        heard = Heard()
        monkeypatch.setattr(links, "REST", 10_000)  # a rest without end
        made = followed(heard, others=20)
        ip(f"neigh replace {HOP} lladdr {OTHER} dev a0 nud permanent")
        wait_until(lambda: heard.told[-1][0] is None, "the end of frames")
        assert "is looked at in a moment" in heard.told[-1][1]
        made.close()

    in_namespace(run)


def test_a_sink_that_fails_hinders_no_other(caplog: pytest.LogCaptureFixture) -> None:
    def run() -> None:
        heard = Heard()
        made = followed(heard)

        def fails(link: links.Link | None, words: str) -> None:
            raise ValueError("no")

        place = socket.inet_aton(HOP)
        made.follow({"bad": links.Target(place, 0, fails), "good": links.Target(place, 0, heard)})
        wait_until(lambda: len(heard.told) > 1, "the other one")
        assert heard.address == MAC
        made.close()

    in_namespace(run)
    assert "receiver 'bad' does not take its link" in caplog.text


def test_whether_runs_are_cut_up_is_followed() -> None:
    """By an interface that takes none, as a veth whose other end has an XDP program, and has no queue in front."""

    def run() -> None:
        heard = Heard()
        made = followed(heard, careful=False)

        def cuts(wanted: bool) -> None:
            wait_until(lambda: (link := heard.told[-1][0]) is not None and link.cuts == wanted, f"cuts: {wanted}")
            assert ("cuts runs up" in heard.told[-1][1]) == wanted

        cuts(False)
        try:
            program = offload.Offload(1, 4096, express=True)
        except OSError as error:
            made.close()
            pytest.skip(f"no XDP here: {error}")
        assert program.express is not None
        for _ in range(2):
            hook = program.express.attach(socket.if_nametoindex("b0"))
            cuts(True)
            subprocess.run(["tc", "qdisc", "add", "dev", "a0", "root", "pfifo"], check=True)
            cuts(False)
            subprocess.run(["tc", "qdisc", "del", "dev", "a0", "root"], check=True)
            cuts(True)
            hook.close()
            cuts(False)
        program.close()
        made.close()

    in_namespace(run)


def test_what_cannot_be_asked_takes_no_runs() -> None:
    assert not takes_runs("nope")
