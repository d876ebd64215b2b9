"""Bypass: what this host does to UDP packets that leave, and what a frame of the packet socket would not meet.

Purpose: the engine that is chosen for the operator ("auto") may send frames only where nothing is lost by that: no
IPsec policy, no rule at the hooks `output` and `postrouting`, no program of the cgroup, no routing by more than the
address. (The queueing discipline, filters of tc and the hook `egress` of nftables are met by frames, too, see
net/core/dev.c, __dev_queue_xmit; what a discipline decides by the socket is not.) Invariants: what cannot be seen
counts as there; nothing here changes anything; what the kernel has not loaded is not asked. Called by links.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import socket
import struct
import sys
from pathlib import Path
from typing import Final

from samplicator.host.netlink import (
    NETLINK_NETFILTER,
    NETLINK_ROUTE,
    NETLINK_XFRM,
    NLM_F_DUMP,
    RTA_DST,
    RTA_OIF,
    RTM_GETROUTE,
    RTM_NEWROUTE,
    RTMSG_BYTES,
    Conversation,
    attribute,
    attributes,
    events,
)

RTMGRP_TC, RTMGRP_IPV6_RULE = 0x8, 1 << 18
XFRMGRP_POLICY, NFTABLES_GROUP = 8, 1 << 6
XFRM_MSG_GETPOLICY, XFRM_MSG_NEWPOLICY, XFRM_POLICY_OUT = 0x15, 0x13, 1
XFRM_MSG_GETDEFAULT, XFRM_DEFAULT_BYTES, XFRM_USERPOLICY_BLOCK = 0x28, 3, 1
POLICY_DIRECTION: Final = 160
"""Where struct xfrm_userpolicy_info (include/uapi/linux/xfrm.h) has `dir`."""
RTM_NEWRULE, RTM_GETRULE, FRA_PRIORITY = 32, 34, 6
PLAIN: Final = frozenset((FRA_PRIORITY, 14, 15, 21))
"""Attributes of a rule that asks for nothing: besides its priority FRA_SUPPRESS_PREFIXLEN, FRA_TABLE, FRA_PROTOCOL."""
NOT_THERE: Final = (0, errno.ENOENT, errno.EINVAL, errno.EOPNOTSUPP, errno.EAFNOSUPPORT)
"""What the kernel answers when it has no such thing, e.g. nf_tables."""
USUAL_RULES: Final = (0, 32766, 32767)
"""Priorities of the rules that every host has: local, main, default."""
RTM_F_FIB_MATCH, RTA_MULTIPATH, RTA_NH_ID = 0x2000, 9, 30
ROUTES_MOST: Final = 5000
"""A table of a router with all routes of the Internet is not looked through every few seconds."""
RTM_NEWQDISC, RTM_GETQDISC, TCA_KIND = 36, 38, 1
CLASSLESS: Final = ("noqueue", "mq", "pfifo_fast", "pfifo", "bfifo", "fq_codel", "fq", "codel", "sfq", "cake", "fq_pie",
                    "ingress", "clsact")  # fmt: skip
"""Queueing disciplines that do not sort by what only a packet of a UDP socket says (its mark, priority, cgroup)."""
NFT_GETCHAIN, NFT_NEWCHAIN, NFT_GETRULE, NFT_NEWRULE = 0xA04, 0xA03, 0xA07, 0xA06
NFTA_CHAIN_TABLE, NFTA_CHAIN_NAME, NFTA_CHAIN_HOOK, NFTA_CHAIN_POLICY, NFTA_HOOK_HOOKNUM = 1, 3, 4, 5, 1
NFTA_RULE_TABLE, NFTA_RULE_CHAIN = 1, 2
FAMILIES: Final = {1: "inet", 2: "ip", 10: "ip6"}
LOCAL_OUT, POST_ROUTING = 3, 4
HOOKS: Final = {LOCAL_OUT: "output", POST_ROUTING: "postrouting"}
ACCEPT: Final = 1
XT_INFO: Final = struct.Struct("=32sI5I5III")
"""struct ipt_getinfo: name, valid hooks, first rule and policy of each hook, rules, bytes."""
XT_ENTRY: Final[dict[int, int]] = {socket.AF_INET: 112, socket.AF_INET6: 168}
"""Bytes of a rule before its target."""
SO_GET_INFO, SO_GET_ENTRIES = 64, 65
BPF_PROG_GET_NEXT_ID, BPF_PROG_GET_FD_BY_ID, BPF_OBJ_GET_INFO_BY_FD, BPF_PROG_QUERY, EFFECTIVE = 11, 13, 15, 16, 1
CGROUP_TYPES: Final = (8, 18)
"""enum bpf_prog_type: CGROUP_SKB, CGROUP_SOCK_ADDR."""
INFO_BYTES: Final = 80
"""Of struct bpf_prog_info, more than is asked for."""
SEEING: Final = (1, 10, 11, 14, 15)
"""enum bpf_attach_type: BPF_CGROUP_INET_EGRESS, INET4_CONNECT, INET6_CONNECT, UDP4_SENDMSG, UDP6_SENDMSG."""
BPF_CALL: Final = {"x86_64": 321, "aarch64": 280}
NF_TABLES: Final = "nf_tables"
_absent: Final = set[str]()
"""Parts that the kernel has not, and has looked for: it would at each question, with modprobe(8)."""
_libc: Final = ctypes.CDLL(None, use_errno=True)


def watch() -> list[socket.socket]:
    """Sockets that become readable when one of these may have changed, as far as the kernel permits."""
    found = []
    for groups, protocol in (
        (RTMGRP_TC | RTMGRP_IPV6_RULE, NETLINK_ROUTE),
        (XFRMGRP_POLICY, NETLINK_XFRM),
        (NFTABLES_GROUP, NETLINK_NETFILTER),
    ):
        with contextlib.suppress(OSError):
            if _has(protocol):
                found.append(events(groups, protocol))
    return found


def present() -> tuple[bool, ...]:
    """Which of the parts that watch() asks of the kernel there are now: they can come later."""
    return tuple(_has(protocol) for protocol in (NETLINK_XFRM, NETLINK_NETFILTER))


def reason() -> str:
    """What a frame would not meet on this host, for people; "" = nothing."""
    try:
        return _policies() or _nftables() or _xtables() or _ipvs() or _routing() or _cgroup()
    except OSError as error:
        return f"what frames would bypass cannot be seen: {error.strerror or error}"


def queueing(device: int) -> str:
    """The same of an interface's queueing disciplines, those below another one among them."""
    with Conversation() as kernel:
        for kind, body in kernel.ask(RTM_GETQDISC, NLM_F_DUMP, struct.pack("=BxHiIII", 0, 0, device, 0, 0, 0)):
            if kind != RTM_NEWQDISC or len(body) < 20:
                continue
            (index,) = struct.unpack_from("=i", body, 4)
            name = dict(attributes(body, 20)).get(TCA_KIND, b"").rstrip(b"\0").decode("ascii", "replace")
            if index == device and name not in CLASSLESS:
                return f"the queueing discipline {name} may sort by the socket"
        _seen(kernel, "queueing disciplines")
    return ""


def several_hops(kernel: Conversation, address: bytes, scope_id: int) -> bool:
    """Whether the route to an address (4 or 16 bytes) has several next hops, of which the kernel takes one a flow."""
    family = socket.AF_INET if len(address) == 4 else socket.AF_INET6
    body = struct.pack("=BBBBBBBBI", family, 8 * len(address), 0, 0, 0, 0, 0, 0, RTM_F_FIB_MATCH)
    body += attribute(RTA_DST, address) + (attribute(RTA_OIF, struct.pack("=I", scope_id)) if scope_id else b"")
    for kind, answer in kernel.ask(RTM_GETROUTE, 0, body):
        if kind == RTM_NEWROUTE and {RTA_MULTIPATH, RTA_NH_ID} & dict(attributes(answer, RTMSG_BYTES)).keys():
            return True
    _seen(kernel, "the route")
    return False


def by_more(family: int) -> str:
    """What routes that ask for more than the destination would do to some packets, while frames follow the one for all:
    of IPv6 the source (ip -6 route add ... from ...), of IPv4 the TOS.
    """
    six = family == socket.AF_INET6
    what = "a route of IPv6 by the source" if six else "a route by the TOS"
    asked = struct.pack("=BBBBBBBBI", family, *bytes(7), 0)
    with Conversation() as kernel:  # one of its own: it may end in the middle of an answer
        for many, (kind, body) in enumerate(kernel.ask(RTM_GETROUTE, NLM_F_DUMP, asked)):
            if kind == RTM_NEWROUTE and len(body) >= RTMSG_BYTES and body[2 if six else 3]:
                return what
            if many == ROUTES_MOST:
                return f"perhaps {what}: there are more than {ROUTES_MOST} routes"
        _seen(kernel, "routes")
    return ""


def _seen(kernel: Conversation, what: str) -> None:
    """After a question: raises OSError unless all was said."""
    if kernel.refused == errno.EPERM:
        raise OSError(errno.EPERM, f"CAP_NET_ADMIN is needed to see {what}")
    if kernel.refused not in NOT_THERE:
        raise OSError(kernel.refused, f"{what}: {os.strerror(kernel.refused)}")
    if kernel.changed:
        raise OSError(errno.EAGAIN, f"{what} are being changed")


def _has(protocol: int) -> bool:
    """Whether the kernel has this part: to ask one that has not would have it loaded."""
    lines = Path("/proc/thread-self/net/netlink").read_text(encoding="ascii").splitlines()[1:]
    return any(line.split()[1] == str(protocol) for line in lines)


def _policies() -> str:
    if not _has(NETLINK_XFRM):
        return ""
    try:
        with Conversation(NETLINK_XFRM) as kernel:
            for kind, body in kernel.ask(XFRM_MSG_GETPOLICY, NLM_F_DUMP, bytes(64)):
                if kind == XFRM_MSG_NEWPOLICY and body[POLICY_DIRECTION : POLICY_DIRECTION + 1] == b"\1":
                    return "an IPsec policy for packets that leave"
            _seen(kernel, "IPsec policies")
            for kind, body in kernel.ask(XFRM_MSG_GETDEFAULT, 0, bytes(XFRM_DEFAULT_BYTES)):
                if kind == XFRM_MSG_GETDEFAULT and body[2:3] == bytes([XFRM_USERPOLICY_BLOCK]):
                    return "the IPsec policy for packets that leave without one, which is to block them"
            _seen(kernel, "the IPsec policy for packets without one")
    except OSError as error:
        if error.errno not in (errno.EPROTONOSUPPORT, errno.ECONNREFUSED):  # a kernel without IPsec
            raise
    return ""


def _nftables() -> str:
    if not _has(NETLINK_NETFILTER) or (NF_TABLES in _absent and not Path("/sys/module", NF_TABLES).exists()):
        return ""
    try:
        with Conversation(NETLINK_NETFILTER) as kernel:
            chains = []
            for kind, body in kernel.ask(NFT_GETCHAIN, NLM_F_DUMP, bytes(4)):
                family = FAMILIES.get(body[0]) if kind == NFT_NEWCHAIN and len(body) >= 4 else None
                found = dict(attributes(body, 4))
                if family is None or NFTA_CHAIN_HOOK not in found:
                    continue
                where = dict(attributes(found[NFTA_CHAIN_HOOK], 0)).get(NFTA_HOOK_HOOKNUM, b"")
                hook = HOOKS.get(int.from_bytes(where, "big"))
                if hook is not None:
                    chains.append((body[0], family, hook, found))
            if kernel.refused == errno.EINVAL:
                _absent.add(NF_TABLES)
            _seen(kernel, "rules of nftables")
            for number, family, hook, found in chains:
                kernel.refused, kernel.changed = 0, False
                table, chain = found.get(NFTA_CHAIN_TABLE, b""), found.get(NFTA_CHAIN_NAME, b"")
                name = f"{family} {_text(table)} {_text(chain)} of nftables (hook {hook})"
                if int.from_bytes(found.get(NFTA_CHAIN_POLICY, b"\0\0\0\1"), "big") != ACCEPT:
                    return f"the policy of chain {name}"
                wanted = attribute(NFTA_RULE_TABLE, table) + attribute(NFTA_RULE_CHAIN, chain)
                rules = kernel.ask(NFT_GETRULE, NLM_F_DUMP, struct.pack("=BBH", number, 0, 0) + wanted)
                if any(kind == NFT_NEWRULE for kind, _ in rules):
                    return f"chain {name}"
                _seen(kernel, "rules of nftables")
    except OSError as error:
        if error.errno not in (errno.EPROTONOSUPPORT, errno.ECONNREFUSED):
            raise
    return ""


def _text(name: bytes) -> str:
    return name.rstrip(b"\0").decode("utf-8", "replace")


def _xtables() -> str:
    """iptables-legacy. A table that is named there exists: the question loads no module."""
    for family, names, level in (
        (socket.AF_INET, "/proc/thread-self/net/ip_tables_names", socket.IPPROTO_IP),
        (socket.AF_INET6, "/proc/thread-self/net/ip6_tables_names", socket.IPPROTO_IPV6),
    ):
        try:
            tables = Path(names).read_text(encoding="ascii").split()
        except FileNotFoundError:
            continue
        if not tables:
            continue
        with socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
            for table in tables:
                for hook, name in HOOKS.items():
                    if _xt_acts(sock, level, family, table.encode(), hook):
                        tool = "iptables" if family == socket.AF_INET else "ip6tables"
                        return f"chain {name.upper()} of table {table} ({tool}-legacy)"
    return ""


def _xt_acts(sock: socket.socket, level: int, family: int, table: bytes, hook: int) -> bool:
    """Whether a chain has a rule, or another policy than ACCEPT. Raises OSError."""
    asked = ctypes.create_string_buffer(table.ljust(32, b"\0") + bytes(XT_INFO.size - 32), XT_INFO.size)
    _ask(sock, level, SO_GET_INFO, asked)
    _, valid, *offsets, _, size = XT_INFO.unpack(asked.raw)
    first, policy = offsets[hook], offsets[5 + hook]
    if not valid >> hook & 1:
        return False
    if first != policy:
        return True
    head = table.ljust(32, b"\0") + struct.pack("=I4x", size)
    whole = ctypes.create_string_buffer(head + bytes(size), len(head) + size)
    _ask(sock, level, SO_GET_ENTRIES, whole)
    verdict: int = struct.unpack_from("=i", whole.raw, len(head) + policy + XT_ENTRY[family] + 32)[0]
    return verdict != -ACCEPT - 1


def _ask(sock: socket.socket, level: int, option: int, buffer: ctypes.Array[ctypes.c_char]) -> None:
    """getsockopt whose question is in the buffer."""
    length = ctypes.c_uint32(len(buffer))
    if _libc.getsockopt(sock.fileno(), level, option, buffer, ctypes.byref(length)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"rules of iptables: {os.strerror(number)}")


def _ipvs() -> str:
    """Services of IPVS take packets that leave, too. The first three lines of the file are its head."""
    with contextlib.suppress(FileNotFoundError):
        if len(Path("/proc/thread-self/net/ip_vs").read_text(encoding="ascii", errors="replace").splitlines()) > 3:
            return "services of IPVS"
    return ""


def _routing() -> str:
    with Conversation() as kernel:
        for family in (socket.AF_INET, socket.AF_INET6):
            for kind, body in kernel.ask(RTM_GETRULE, NLM_F_DUMP, struct.pack("=BBBBBBBBI", family, *bytes(7), 0)):
                if kind != RTM_NEWRULE or len(body) < 12:
                    continue
                found = dict(attributes(body, 12))
                priority = int.from_bytes(found.get(FRA_PRIORITY, bytes(4)), sys.byteorder)
                if priority not in USUAL_RULES or any(body[1:4]) or not found.keys() <= PLAIN:
                    return f"routing by rules (ip{' -6' * (family == socket.AF_INET6)} rule, priority {priority})"
            _seen(kernel, "rules of routing")
    return ""


class _Query(ctypes.Structure):
    """union bpf_attr of BPF_PROG_QUERY; and as far as the other questions need it."""

    _fields_ = (
        ("target", ctypes.c_uint32),
        ("kind", ctypes.c_uint32),
        ("how", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("programs", ctypes.c_uint64),
        ("many", ctypes.c_uint32),
        ("rest", ctypes.c_uint32 * 7),
    )


def _ask_bpf(command: int, query: _Query) -> int:
    """bpf(2): what it returns. Raises OSError."""
    found: int = _libc.syscall(BPF_CALL[platform.machine()], command, ctypes.byref(query), ctypes.sizeof(query))
    if found < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"programs of the cgroup: {os.strerror(number)}")
    return found


def _cgroup_folder(path: str) -> Path | None:
    """Where the cgroup of the second version with this path is mounted; None: nowhere that this process sees."""
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        words = line.split()
        if words[words.index("-") + 1] == "cgroup2" and (path + "/").startswith(words[3].rstrip("/") + "/"):
            folder = Path(words[4], path.removeprefix(words[3].rstrip("/")).lstrip("/"))
            if folder.is_dir():
                return folder
    return None


def _loaded() -> bool:
    """Whether any program for cgroups is loaded on this machine (CAP_SYS_ADMIN): where no cgroup is to be seen."""
    number = 0
    with contextlib.suppress(FileNotFoundError):  # after the last
        while True:
            query = _Query(target=number)  # start; the next is put behind it
            _ask_bpf(BPF_PROG_GET_NEXT_ID, query)
            number = query.kind
            program = _ask_bpf(BPF_PROG_GET_FD_BY_ID, _Query(target=number))
            try:
                info = ctypes.create_string_buffer(INFO_BYTES)
                query = _Query(target=program, kind=INFO_BYTES)
                ctypes.c_uint64.from_buffer(query, 8).value = ctypes.addressof(info)
                _ask_bpf(BPF_OBJ_GET_INFO_BY_FD, query)
                if struct.unpack_from("=I", info.raw)[0] in CGROUP_TYPES:
                    return True
            finally:
                os.close(program)
    return False


def _cgroup() -> str:
    """Programs that see packets of this process's sockets when they leave (systemd: IPAddressDeny=; Cilium)."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:  # a kernel without cgroups
        return ""
    path = next((line[3:] for line in lines if line.startswith("0::")), None)
    if path is None:  # without cgroups of the second version, which alone have such programs
        return ""
    if platform.machine() not in BPF_CALL:
        return "programs of the cgroup, which cannot be seen on this machine"
    folder = _cgroup_folder(path)
    if folder is None:
        return "programs of the cgroup, perhaps: it cannot be seen here" if _loaded() else ""
    target = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for kind in SEEING:
            query = _Query(target=target, kind=kind, how=EFFECTIVE)
            try:
                _ask_bpf(BPF_PROG_QUERY, query)
            except OSError as error:
                if error.errno not in (errno.ENOSYS, errno.EINVAL):  # a kernel without such programs
                    raise
            if query.many:
                return "a program of the cgroup that sees packets which leave"
        return ""
    finally:
        os.close(target)
