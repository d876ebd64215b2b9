"""Which SCTP this host has: the kernel's, or libusrsctp's over raw IP or UDP.

Invariants: what was chosen by name is used or refused; "auto" takes the kernel's, else libusrsctp over raw IP, and
when neither can be had, the error has all reasons; raw IP is never used beside a kernel that has SCTP, because it would
abort our associations. Called by the service, when a configuration first names SCTP; what is not chosen is not
imported.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import Final

from samplicator.gateways.transport import Transport

AUTO: Final = "auto"
KERNEL: Final = "kernel"
RAW: Final = "usrsctp"
UDP: Final = "usrsctp-udp"
BACKENDS: Final = (AUTO, KERNEL, RAW, UDP)


def kernel_fault() -> str:
    """Why the kernel cannot do SCTP, "" = it can."""
    from samplicator.gateways.sctp.linux import probe

    return probe()


def library_fault() -> str:
    """Why libusrsctp cannot be used, "" = it can."""
    from samplicator.gateways.sctp import library

    try:
        library.instance()
    except (OSError, AttributeError) as error:  # not there, or not of this version
        return f"{library.NAME} cannot be loaded ({error}); install the package libusrsctp2"
    return ""


def raw_fault() -> str:
    """Why raw IP cannot be used, "" = it can."""
    if not kernel_fault():
        return "the kernel has SCTP, and would abort associations of libusrsctp over raw IP"
    try:
        socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_SCTP).close()
    except OSError as error:
        return f"raw IP needs CAP_NET_RAW ({error.strerror})"
    return ""


def faults(backend: str) -> list[str]:
    """Why it cannot be used, []: it can. Raises ValueError for a backend that there is not."""
    if backend == KERNEL:
        found = [kernel_fault()]
    elif backend == RAW:
        found = [library_fault(), raw_fault()]
    elif backend == UDP:
        found = [library_fault()]
    else:
        raise ValueError(f"SCTP has the backends {', '.join(BACKENDS)}, and no {backend!r}")
    return [fault for fault in found if fault]


def choose(backend: str) -> tuple[str, str]:
    """The backend to use, and a sentence that says why. Raises OSError with all reasons when there is none, and
    ValueError for one that there is not.
    """
    if backend != AUTO:
        if found := faults(backend):
            raise OSError(errno.EPROTONOSUPPORT, f"SCTP with backend {backend!r} is not possible: {'; '.join(found)}")
        return backend, "as configured"
    by_kernel = faults(KERNEL)
    if not by_kernel:
        return KERNEL, "the kernel has SCTP"
    by_library = faults(RAW)
    if not by_library:
        return RAW, f"{by_kernel[0]}, and libusrsctp is there"
    reasons = "; ".join([*by_kernel, *by_library])
    advice = "" if faults(UDP) else f"; {UDP!r} would do, where peers take SCTP over UDP"
    raise OSError(errno.EPROTONOSUPPORT, f"SCTP is not possible on this host: {reasons}{advice}")


def transport(loop: asyncio.AbstractEventLoop, backend: str = AUTO, *, udp_port: int = 9899) -> Transport:
    """udp_port: ours and the peers', with UDP. Raises as `choose` does."""
    chosen, _ = choose(backend)
    if chosen == KERNEL:
        from samplicator.gateways.sctp.kernel import Kernel

        return Kernel(loop)
    from samplicator.gateways.sctp.carrier import RawCarrier, UdpCarrier
    from samplicator.gateways.sctp.userland import Userland

    if chosen == UDP:
        return Userland(loop, lambda family: UdpCarrier(family, udp_port), udp_port=udp_port)
    return Userland(loop, RawCarrier)
