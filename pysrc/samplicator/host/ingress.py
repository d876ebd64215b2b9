"""Ingress: an nftables rule at the ingress hook of a device, which keeps datagrams that rings take from the UDP stack.

Purpose: speaks nf_tables over netlink (include/uapi/linux/netfilter/nf_tables.h), a handful of messages. Invariants:
the rules test the same conditions as the socket filters (ring.sections()); their table belongs to our netlink socket
(flag owner, Linux 5.12), so the kernel always removes them when the process ends, and no other program can change them;
a chain is put in place or replaced in one transaction. The socket belongs to a thread with descriptors of its own, so
that it is closed first when the process is killed; it is closed on this thread only, also when nobody calls close().
Called by datapath. Needs CAP_NET_ADMIN. It must never touch another table.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import gc
import secrets
import socket
import struct
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Final

from samplicator.host.netlink import NLMSG_ERROR, attribute, message, messages
from samplicator.host.ring import HEADERS, Section, sections
from samplicator.plan.spec import RingMatch

NETLINK_NETFILTER: Final = 12
NFPROTO_NETDEV: Final = 5
_SUBSYSTEM: Final = 10
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_NEW_TABLE, _NEW_CHAIN, _DELETE_CHAIN, _NEW_RULE, _DELETE_RULE = 0, 3, 5, 6, 8
_REQUEST, _ACK, _CREATE, _APPEND = 0x1, 0x4, 0x400, 0x800
_TABLE_OWNER: Final = 2
_PRIORITY: Final = -500  # before all that is usual
_META_PROTOCOL, _META_PACKET_TYPE = 1, 19
_LINK, _NETWORK = 0, 1
_DROP, _JUMP = 0, -3
_SIOCGIFHWADDR: Final = 0x8927
_ETHERNET: Final = 1
_CLOSE_RANGE: Final = 436  # the same on every architecture but alpha
_UNSHARE: Final = 2

Message = tuple[int, int, bytes]
"""Type, flags, attributes."""


_Asked = tuple[Callable[["_Table"], None], Future[None]]


class IngressError(OSError):
    """The kernel refused the rule; the text says what that means."""

    def __init__(self, number: int) -> None:
        why = {
            errno.EPERM: "it needs CAP_NET_ADMIN",
            errno.EOPNOTSUPP: "it needs Linux 5.12 or later with nf_tables (CONFIG_NF_TABLES_NETDEV)",
            errno.EINVAL: "it needs Linux 5.12 or later with nf_tables (CONFIG_NF_TABLES_NETDEV)",
            errno.EPROTONOSUPPORT: "this kernel has no nf_tables",
            errno.ENOENT: "the interface is gone, or the kernel has no ingress hook (CONFIG_NF_TABLES_NETDEV)",
        }.get(number, errno.errorcode.get(number, str(number)))
        super().__init__(number, f"the nftables ingress rule cannot be made: {why}")


class Ingress:
    """One table. A process that is killed keeps its descriptors until its memory is given back, which takes tens of
    milliseconds, and all that while the rule would drop what no ring is read for; a thread that shares no descriptors
    with the others gives its own back at once (do_exit(), kernel/exit.c). So each call here is made in such a thread.
    """

    def __init__(self) -> None:
        """Raises IngressError."""
        self.table = f"samplicator_{secrets.token_hex(4)}"
        self._closed = False
        self._questions: SimpleQueue[_Asked | None] = SimpleQueue()
        opened: Future[None] = Future()
        asked = (self.table, self._questions, opened)
        self._thread = threading.Thread(target=_serve, args=asked, name="ingress", daemon=True)
        self._thread.start()
        with _uncollected():
            opened.result()
        # of one that nobody closes: its own thread closes the socket, whose number is another descriptor's elsewhere
        weakref.finalize(self, self._questions.put, None).atexit = False

    def put(self, name: str, interface: str, matches: Sequence[RingMatch]) -> None:
        """From now on what `matches` says is dropped at the interface's ingress; replaces what was put under this name.

        Raises IngressError; then nothing has changed.
        """
        self._ask(lambda table: table.put(name, interface, matches))

    def remove(self, name: str) -> None:
        """Lets the UDP stack have those datagrams again. What went with its interface is no error. Raises
        IngressError.
        """
        self._ask(lambda table: table.remove(name))

    def close(self) -> None:
        """The kernel removes the table with its owner. May be called again."""
        if not self._closed:
            self._ask(_Table.close)
            self._closed = True
            self._questions.put(None)
            self._thread.join()

    def _ask(self, question: Callable[[_Table], None]) -> None:
        answered: Future[None] = Future()
        with _uncollected():
            self._questions.put((question, answered))
            answered.result()


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Nothing is collected while the thread works: what is collected there would close its descriptors there, where
    their numbers mean others or none, and leave them open here.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _serve(name: str, questions: SimpleQueue[_Asked | None], opened: Future[None]) -> None:
    """The thread of one table, until it is asked None."""
    _share_no_descriptors()
    try:
        table = _Table(name)
    except BaseException as error:
        opened.set_exception(error)
        return
    opened.set_result(None)
    while (asked := questions.get()) is not None:
        question, answered = asked
        try:
            question(table)
        except BaseException as error:
            answered.set_exception(error)
        else:
            answered.set_result(None)
    table.close()


def _share_no_descriptors() -> None:
    """The calling thread has a table of descriptors of its own, an empty one; where close_range(2) is missing (Linux
    5.9) or forbidden, it shares that of the process, and nothing else changes.
    """
    ctypes.CDLL(None).syscall(_CLOSE_RANGE, ctypes.c_uint(0), ctypes.c_uint(0xFFFFFFFF), ctypes.c_uint(_UNSHARE))


class _Table:
    """Speaks for Ingress. Not thread-safe."""

    def __init__(self, table: str) -> None:
        self.table = table
        self._sequence = 0
        self._generation = 0
        self._chains: dict[str, tuple[str, ...]] = {}
        try:
            self._netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
        except OSError as error:
            raise IngressError(error.errno or 0) from error
        try:
            self._netlink.settimeout(5.0)
            self._netlink.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            self._netlink.bind((0, 0))
            self._send([(_NEW_TABLE, _CREATE, _text(1, self.table) + _number(2, _TABLE_OWNER))])
        except BaseException:
            self._netlink.close()
            raise

    def put(self, name: str, interface: str, matches: Sequence[RingMatch]) -> None:
        self._generation += 1
        base = f"c{self._generation}"
        found = list(sections(matches))
        chains = (base, *(f"{base}_{kind}{k}" for k in range(len(found)) for kind in ("address", "port")))
        batch: list[Message] = [(_NEW_CHAIN, _CREATE, self._base_chain(base, interface))]
        batch += [(_NEW_CHAIN, _CREATE, self._chain(chain)) for chain in chains[1:]]
        tagged = _hardware(interface) == _ETHERNET
        for number, section in enumerate(found):
            addresses, ports = f"{base}_address{number}", f"{base}_port{number}"
            batch.append(self._rule(base, _head(section, tagged), _JUMP, addresses))
            batch += [self._rule(addresses, each, _JUMP, ports) for each in _addresses(section)]
            batch += [self._rule(ports, each, _DROP) for each in _ports(section)]
        self._send([*batch, *self._removal(name)])
        self._chains[name] = chains

    def remove(self, name: str) -> None:
        try:
            self._send(self._removal(name))
        except IngressError as error:
            if error.errno != errno.ENOENT:
                raise
        finally:
            self._chains.pop(name, None)

    def close(self) -> None:
        self._netlink.close()

    # ------------------------------------------------------------------ messages

    def _base_chain(self, name: str, interface: str) -> bytes:
        hook = _number(1, 0) + _number(2, _PRIORITY) + _text(3, interface)
        return self._chain(name) + _nested(4, hook) + _number(5, 1) + _text(7, "filter")

    def _chain(self, name: str) -> bytes:
        return _text(1, self.table) + _text(3, name)

    def _rule(self, chain: str, expressions: bytes, verdict: int, to: str = "") -> Message:
        code = _number(1, verdict) + (_text(2, to) if to else b"")
        last = _expression("immediate", _number(1, 0) + _nested(2, _nested(2, code)))
        place = _text(1, self.table) + _text(2, chain)
        return _NEW_RULE, _CREATE | _APPEND, place + _nested(4, expressions + last)

    def _removal(self, name: str) -> list[Message]:
        chains = self._chains.get(name, ())
        place = _text(1, self.table)
        rules: list[Message] = [(_DELETE_RULE, 0, place + _text(2, chain)) for chain in chains]
        return rules + [(_DELETE_CHAIN, 0, place + _text(3, chain)) for chain in chains]

    def _send(self, batch: Sequence[Message]) -> None:
        """One transaction: all of it or, with IngressError, nothing."""
        if not batch:
            return
        edge = struct.pack("!BBH", 0, 0, _SUBSYSTEM)
        head = struct.pack("!BBH", NFPROTO_NETDEV, 0, 0)
        data = self._message(_BATCH_BEGIN, _REQUEST, edge)
        waiting = set()
        for kind, flags, attributes in batch:
            data += self._message(_SUBSYSTEM << 8 | kind, _REQUEST | _ACK | flags, head + attributes)
            waiting.add(self._sequence)
        data += self._message(_BATCH_END, _REQUEST, edge)
        try:
            self._netlink.send(data)
            while waiting:
                for sequence, code in _answers(self._netlink.recv(1 << 20)):
                    if code:
                        raise IngressError(-code)
                    waiting.discard(sequence)
        except TimeoutError:
            raise IngressError(errno.ETIMEDOUT) from None
        finally:
            self._drain()

    def _drain(self) -> None:
        """Answers to what else a refused batch said."""
        self._netlink.setblocking(False)
        try:
            while self._netlink.recv(1 << 20):
                pass
        except OSError:
            pass
        finally:
            self._netlink.settimeout(5.0)

    def _message(self, kind: int, flags: int, body: bytes) -> bytes:
        self._sequence += 1
        return message(kind, flags, self._sequence, body)


def _answers(data: bytes) -> Iterator[tuple[int, int]]:
    """(sequence, error) of each NLMSG_ERROR."""
    for kind, sequence, body in messages(data):
        if kind == NLMSG_ERROR and len(body) >= 4:
            yield sequence, struct.unpack_from("=i", body)[0]


def _nested(kind: int, data: bytes) -> bytes:
    return attribute(kind | 0x8000, data)


def _number(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("!I", value & 0xFFFFFFFF))


def _text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def _expression(name: str, attributes: bytes) -> bytes:
    return _nested(1, _text(1, name) + _nested(2, attributes))


def _value(kind: int, data: bytes) -> bytes:
    return _nested(kind, attribute(1, data))


def _equal(data: bytes) -> bytes:
    """Register 1 holds this."""
    return _expression("cmp", _number(1, 1) + _number(2, 0) + _value(3, data))


def _meta(key: int, data: bytes) -> bytes:
    return _expression("meta", _number(1, 1) + _number(2, key)) + _equal(data)


def _load(base: int, offset: int, size: int) -> bytes:
    return _expression("payload", _number(1, 1) + _number(2, base) + _number(3, offset) + _number(4, size))


def _head(section: Section, ethernet: bool) -> bytes:
    """Packet type, protocol, no VLAN tag (a tagged frame's EtherType reads as 0x8100 even when the device has taken
    the tag out, net/netfilter/nft_payload.c), and the tests of the IP header.
    """
    protocol = section.protocol.to_bytes(2)
    out = _meta(_META_PACKET_TYPE, bytes([section.kind])) + _meta(_META_PROTOCOL, protocol)
    if ethernet:
        out += _load(_LINK, 12, 2) + _equal(protocol)
    for offset, size, mask, value in HEADERS[section.protocol].tests:
        out += _load(_NETWORK, offset, size)
        if mask != (1 << 8 * size) - 1:
            masked = _number(3, size) + _value(4, mask.to_bytes(size)) + _value(5, bytes(size))
            out += _expression("bitwise", _number(1, 1) + _number(2, 1) + masked)
        out += _equal(value.to_bytes(size))
    return out


def _addresses(section: Section) -> Iterator[bytes]:
    header = HEADERS[section.protocol]
    for address in section.addresses:
        yield _load(_NETWORK, header.destination, header.octets) + _equal(address)


def _ports(section: Section) -> Iterator[bytes]:
    load = _load(_NETWORK, HEADERS[section.protocol].ports + 2, 2)
    for low, high in section.ports:
        if low == high:
            yield load + _equal(low.to_bytes(2))
        else:
            ends = _value(3, low.to_bytes(2)) + _value(4, high.to_bytes(2))
            yield load + _expression("range", _number(1, 1) + _number(2, 0) + ends)


def _hardware(interface: str) -> int:
    """Type of a device (ARPHRD_*, netdevice(7))."""
    request = struct.pack("16sH14x", interface.encode(), 0)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            return int(struct.unpack_from("16sH", fcntl.ioctl(sock, _SIOCGIFHWADDR, request))[1])
        except OSError:
            raise IngressError(errno.ENOENT) from None
