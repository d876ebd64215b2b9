"""Socket options, read back from real sockets."""

from __future__ import annotations

import errno
import select
import socket
import struct

import pytest
from samplicator.host import abilities, listening, sockets
from samplicator.plan.spec import SocketSpec, Udp
from support.hosts import free_port
from support.worker import in_namespace, is_root


def socket_spec(port: int, address: str = "127.0.0.1", **kwargs: object) -> SocketSpec:
    family = 6 if ":" in address else 4
    values = {"listener": 0, "address": address, "port": port, "family": family, "v6only": False}
    return SocketSpec(**{**values, "interface": "", "groups": (), **kwargs})  # type: ignore[arg-type]


def receiver(port: int, address: str = "127.0.0.1", **kwargs: object) -> Udp:
    family = 6 if ":" in address else 4
    packed = socket.inet_pton(socket.AF_INET6 if family == 6 else socket.AF_INET, address)
    values: dict[str, object] = {
        "address": packed, "port": port, "family": family, "scope_id": 0, "host": address,
        "engine": "udp", "engine_why": "", "spoof": False, "source": None, "checksum": True, "ttl": 64,
        "tos": -1, "pause_us": 0,
    }  # fmt: skip
    return Udp(**{**values, **kwargs})  # type: ignore[arg-type]


def open_listener(spec: SocketSpec, **kwargs: object) -> socket.socket:
    values: dict[str, object] = {"receive_buffer": 1 << 18, "ttl": False, "tos": False}
    return listening.open_listener(spec, **{**values, **kwargs})  # type: ignore[arg-type]


def test_listener_options() -> None:
    sock = open_listener(socket_spec(0), ttl=True, tos=True)
    with sock:
        assert not sock.getblocking()
        assert not sock.get_inheritable()
        assert sock.getsockopt(socket.SOL_SOCKET, listening.SO_TIMESTAMPNS)
        assert sock.getsockopt(socket.IPPROTO_IP, listening.IP_RECVTTL)
        assert sock.getsockopt(socket.IPPROTO_IP, listening.IP_RECVTOS)
        assert not sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)
        assert sockets.granted_receive_buffer(sock) >= 1 << 17
    with open_listener(socket_spec(0)) as plain:
        assert not plain.getsockopt(socket.IPPROTO_IP, listening.IP_RECVTTL)
        assert not plain.getsockopt(socket.IPPROTO_IP, listening.IP_RECVTOS)


def test_dual_stack_listener_asks_for_both_families() -> None:
    with open_listener(socket_spec(0, "::"), ttl=True, tos=True) as sock:
        assert sock.getsockopt(socket.IPPROTO_IPV6, listening.IPV6_RECVHOPLIMIT)
        assert sock.getsockopt(socket.IPPROTO_IPV6, listening.IPV6_RECVTCLASS)
        assert sock.getsockopt(socket.IPPROTO_IP, listening.IP_RECVTTL)
        assert not sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as four:
            four.sendto(b"x", ("127.0.0.1", sock.getsockname()[1]))
        assert select.select([sock], [], [], 5)[0]
        assert sock.recvfrom(10)[1][0] == "::ffff:127.0.0.1"


def test_another_process_on_the_port_is_found_out() -> None:
    """Also one that would share: SO_REUSEPORT on both sides would split the traffic silently."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        with pytest.raises(OSError) as caught:
            open_listener(socket_spec(other.getsockname()[1]))
        assert caught.value.errno == errno.EADDRINUSE


def test_further_sockets_of_a_port_share_its_exporters() -> None:
    """The first socket had no SO_REUSEPORT when it was bound; all the same sessions are spread over both, once both
    are there to be read.
    """
    port = free_port()
    spec = socket_spec(port)
    with open_listener(spec) as first, open_listener(spec, beside=[first]) as second:
        listening.spread(first, 2)
        for _ in range(64):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as exporter:
                exporter.sendto(b"x", ("127.0.0.1", port))

        def count(sock: socket.socket) -> int:
            got = 0
            while select.select([sock], [], [], 0.2)[0]:
                sock.recv(10)
                got += 1
            return got

        shares = count(first), count(second)
        assert sum(shares) == 64
        assert min(shares) > 8


def test_meminfo_counts_drops_and_queue() -> None:
    with open_listener(socket_spec(0), receive_buffer=4096) as sock:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as exporter:
            for _ in range(200):
                exporter.sendto(bytes(1000), sock.getsockname())
        info = sockets.meminfo(sock)
        queued = 0
        while select.select([sock], [], [], 0)[0]:
            sock.recv(2000)
            queued += 1
        assert info.drops == 200 - queued
        assert info.queue_bytes > 0
        assert info.buffer_bytes == sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        assert sockets.meminfo(sock).queue_bytes == 0


def test_multicast_is_joined_by_one_socket_only() -> None:
    port = free_port()
    spec = socket_spec(port, "0.0.0.0", interface="lo", groups=("239.7.7.7",))
    with open_listener(spec) as first, open_listener(spec, beside=[first], join=False) as second:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as exporter:
            exporter.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
            exporter.sendto(b"x", ("239.7.7.7", port))
        ready = select.select([first, second], [], [], 5)[0]
        assert ready == [first]


def test_udp_way_options() -> None:
    spec = receiver(9, ttl=33, tos=0x28, checksum=False)
    with sockets.open_udp(spec, 1 << 16) as sock:
        assert not sock.getblocking()
        assert sock.getsockopt(socket.IPPROTO_IP, sockets.IP_MTU_DISCOVER) == sockets.IP_PMTUDISC_DONT
        assert sock.getsockopt(socket.IPPROTO_IP, sockets.IP_RECVERR) == 1
        assert sock.getsockopt(socket.IPPROTO_IP, socket.IP_TTL) == 33
        assert sock.getsockopt(socket.IPPROTO_IP, socket.IP_TOS) == 0x28
        assert sock.getsockopt(socket.SOL_SOCKET, sockets.SO_NO_CHECK) == 1
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST) == 1
        assert sockets.connect(sock, spec)
        assert sock.getpeername() == ("127.0.0.1", 9)
    six = receiver(9, "::1", ttl=33, tos=0x28)
    with sockets.open_udp(six, 1 << 16) as sock:
        assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS) == 33
        assert sock.getsockopt(socket.IPPROTO_IPV6, sockets.IPV6_TCLASS) == 0x28
        assert sockets.connect(sock, six)


def test_answers_of_a_receiver_take_no_memory_but_icmp_is_heard() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as collector:
        collector.bind(("127.0.0.1", 0))
        spec = receiver(collector.getsockname()[1])
        with sockets.open_udp(spec, 1 << 16) as sock:
            sockets.connect(sock, spec)
            sock.send(b"x")
            collector.sendto(bytes(1000), collector.recvfrom(10)[1])
            assert sockets.meminfo(sock).queue_bytes == 0
    with sockets.open_udp(receiver(free_port()), 1 << 16) as sock:
        sockets.connect(sock, receiver(free_port()))
        sock.send(b"x")
        poll = select.poll()
        poll.register(sock, 0)
        assert poll.poll(5000)
        assert sock.recvmsg(100, 100, socket.MSG_ERRQUEUE)[1]


def test_source_is_bound() -> None:
    spec = receiver(9, source=(bytes([127, 0, 0, 77]), 0))
    with sockets.open_udp(spec, 1 << 16) as sock:
        sockets.connect(sock, spec)
        assert sock.getsockname()[0] == "127.0.0.77"
    port = free_port()
    fixed = receiver(9, source=(bytes([127, 0, 0, 1]), port))
    with sockets.open_udp(fixed, 1 << 16) as one, sockets.open_udp(fixed, 1 << 16) as two:  # one per worker
        assert one.getsockname() == two.getsockname() == ("127.0.0.1", port)


def test_probe_and_reserved_source() -> None:
    probe = sockets.probe_path(bytes([127, 0, 0, 1]), 9)
    assert probe.mtu == 65535  # loopback's 65536, capped
    assert probe.source == bytes([127, 0, 0, 1])
    sock, (address, port) = sockets.reserve_source(receiver(9))
    with sock:
        assert address == bytes([127, 0, 0, 1])
        assert sock.getsockname()[1] == port
    sock, (address, port) = sockets.reserve_source(receiver(9, source=(bytes([198, 51, 100, 1]), 0)))
    with sock:
        assert address == bytes([198, 51, 100, 1])
        assert port


@pytest.mark.parametrize(
    ("address", "local"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("0.0.0.0", True), ("192.0.2.1", False), ("239.1.1.1", False),
     ("255.255.255.255", False), ("::1", True), ("::", True), ("2001:db8::1", False), ("ff02::1", False),
     ("::ffff:127.0.0.1", True), ("::ffff:192.0.2.1", False)],
)  # fmt: skip
def test_is_local(address: str, local: bool) -> None:
    packed = socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)
    assert abilities.is_local(packed) is local


def test_raw_socket_is_connected_and_takes_whole_packets() -> None:
    if not abilities.capabilities().net_raw:
        pytest.skip("needs CAP_NET_RAW")
    for spec in (receiver(9), receiver(9, "::1")):
        with sockets.open_raw(spec, 1 << 16) as sock:
            assert sockets.connect(sock, spec)
            level, option = (socket.IPPROTO_IP, socket.IP_HDRINCL) if spec.family == 4 else (socket.IPPROTO_IPV6, 36)
            assert struct.unpack("@i", sock.getsockopt(level, option, 4))[0] == 1


def test_ports_that_the_host_keeps() -> None:
    assert abilities.source_ports().first < abilities.source_ports().last
    if not is_root():
        return

    def read() -> tuple[int, int, list[int]]:
        for name, text in (
            ("ip_local_port_range", "40000 40100"),
            ("ip_local_reserved_ports", "514,40010-40012,40020"),
        ):
            with open(f"/proc/sys/net/ipv4/{name}", "w") as file:
                file.write(text)
        ports = abilities.source_ports()
        return ports.first, ports.last, sorted(ports.reserved)

    assert in_namespace(read) == (40000, 40100, [514, 40010, 40011, 40012, 40020])


class WithoutRights(socket.socket):
    """A socket of a process that lacks CAP_NET_ADMIN."""

    def setsockopt(self, level: int, option: int, value: object, *more: object) -> None:
        if option == sockets.SO_RCVBUFFORCE:
            raise PermissionError(1, "Operation not permitted")
        super().setsockopt(level, option, value, *more)  # type: ignore[call-overload]


@pytest.mark.netns
@pytest.mark.parametrize("wanted", [48 << 20, 128 << 20])
def test_a_buffer_that_somebody_with_rights_made_is_not_cut(wanted: int) -> None:
    """systemd opened the socket, with more than net.core.rmem_max permits us: what we ask for is cut to that."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
        opened.setsockopt(socket.SOL_SOCKET, sockets.SO_RCVBUFFORCE, 64 << 20)
        limited = WithoutRights(fileno=opened.detach())
    with limited, WithoutRights(socket.AF_INET, socket.SOCK_DGRAM) as fresh:
        permitted = sockets.set_receive_buffer(fresh, wanted)
        assert sockets.set_receive_buffer(limited, wanted) == max(64 << 20, permitted)
