"""Which SCTP is used, what the error says when there is none, and the kernel's structures."""

from __future__ import annotations

import socket
import struct

import pytest
from samplicator.gateways.sctp import choice, linux
from samplicator.gateways.sctp.beat import ANSWERS, Beat
from samplicator.gateways.transport import Address

NO_KERNEL = "the kernel has no SCTP (Protocol not supported)"
NO_LIBRARY = "libusrsctp.so.2 cannot be loaded (no such file); install the package libusrsctp2"
NO_RAW = "raw IP needs CAP_NET_RAW (Operation not permitted)"


def host(monkeypatch: pytest.MonkeyPatch, kernel: str = "", library: str = "", raw: str = "") -> None:
    monkeypatch.setattr(choice, "kernel_fault", lambda: kernel)
    monkeypatch.setattr(choice, "library_fault", lambda: library)
    monkeypatch.setattr(choice, "raw_fault", lambda: raw)


def test_auto_takes_the_kernel_then_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    host(monkeypatch)
    assert choice.choose("auto") == ("kernel", "the kernel has SCTP")
    host(monkeypatch, kernel=NO_KERNEL)
    assert choice.choose("auto") == ("usrsctp", f"{NO_KERNEL}, and libusrsctp is there")


@pytest.mark.parametrize(
    ("faults", "text"),
    [
        (
            {"kernel": NO_KERNEL, "library": NO_LIBRARY, "raw": NO_RAW},
            f"SCTP is not possible on this host: {NO_KERNEL}; {NO_LIBRARY}; {NO_RAW}",
        ),
        (
            {"kernel": NO_KERNEL, "raw": NO_RAW},
            f"SCTP is not possible on this host: {NO_KERNEL}; {NO_RAW}; 'usrsctp-udp' would do, where peers take SCTP "
            "over UDP",
        ),
    ],
)
def test_the_error_has_all_reasons(monkeypatch: pytest.MonkeyPatch, faults: dict[str, str], text: str) -> None:
    host(monkeypatch, **faults)
    with pytest.raises(OSError) as raised:
        choice.choose("auto")
    assert raised.value.strerror == text


def test_what_is_named_is_used_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    host(monkeypatch, library=NO_LIBRARY)
    assert choice.choose("kernel") == ("kernel", "as configured")
    for name in ("usrsctp", "usrsctp-udp"):
        with pytest.raises(OSError, match="libusrsctp2"):
            choice.choose(name)
    with pytest.raises(ValueError, match="no 'sctp'"):
        choice.choose("sctp")


def test_never_raw_beside_a_kernel_that_has_sctp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "kernel_fault", lambda: "")
    assert "would abort" in choice.raw_fault()
    with pytest.raises(OSError, match="would abort"):
        choice.choose("usrsctp")


def test_the_probe_says_what_this_kernel_says() -> None:
    reason = ""
    try:
        socket.socket(socket.AF_INET, socket.SOCK_SEQPACKET, 132).close()
    except OSError as error:
        reason = f"the kernel has no SCTP ({error.strerror})"
    assert linux.probe() == reason


@pytest.mark.parametrize("text", ["192.0.2.7", "2001:db8::7"])
def test_addresses_as_the_kernel_has_them(text: str) -> None:
    address = Address(socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text), 4739)
    raw = linux.sockaddr(address)
    assert len(raw) == (28 if ":" in text else 16)
    assert linux.from_sockaddr(raw) == address
    mapped = linux.sockaddr(Address(bytes(10) + b"\xff\xff" + bytes([192, 0, 2, 7]), 1))
    assert linux.from_sockaddr(mapped) == Address(bytes([192, 0, 2, 7]), 1)
    for broken in (b"", raw[:10], struct.pack("=H", 77) + bytes(30)):
        assert linux.from_sockaddr(broken) is None


def test_sizes_of_the_kernels_structures() -> None:
    """linux/sctp.h: sctp_paddrparams, sctp_sndinfo, sctp_prinfo, sctp_rcvinfo."""
    assert linux.PADDR.size == 156
    assert linux.SNDINFO_FORM.size == 16
    assert linux.PRINFO_FORM.size == 8
    assert linux.RCVINFO_FORM.size == 28


def test_silence_ends_with_answers_in_a_row_only() -> None:
    beat, now, control = Beat(0.01), 1.0, 0
    for _ in range(5):
        now += 0.01
        beat.asked(now)
        control += 1
        beat.looked_at(now, control, 0, 0)
    assert beat.silent_since == 0.0
    dead_from = now + 0.01
    for _ in range(10):
        now += 0.01
        beat.asked(now)
        beat.looked_at(now, control, 0, 0)
    assert beat.silent_since == pytest.approx(dead_from)
    control += 1  # a delayed SACK
    beat.looked_at(now, control, 0, 0)
    now += 0.01
    beat.asked(now)
    now += 0.01
    beat.asked(now)
    beat.looked_at(now, control, 0, 0)
    assert beat.silent_since == pytest.approx(dead_from)
    for count in range(ANSWERS):
        assert beat.silent_since == pytest.approx(dead_from), count
        control += 1
        beat.looked_at(now, control, 0, 0)
        now += 0.01
        beat.asked(now)
    assert beat.silent_since == 0.0


def test_transmissions_are_counted_while_data_waits() -> None:
    beat = Beat(0.01)
    beat.looked_at(1.0, 0, 0, 2)
    assert beat.transmissions == 1
    beat.looked_at(1.3, 0, 1, 2)
    beat.looked_at(1.4, 0, 1, 2)
    beat.looked_at(1.9, 0, 2, 2)
    assert beat.transmissions == 3
    beat.looked_at(2.0, 1, 2, 0)
    assert beat.transmissions == 0
