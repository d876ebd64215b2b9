"""Explain: what happens to the datagrams of one exporter on one port, and why, from a plan and nothing else.

Purpose: the slow, readable twin of the datapath's matching: every rule with its verdict, every copy with its source,
engine and reason. Invariants: pure (a PlanSpec in, frozen values or lines of text out); says the same as the compiled
route (the tests compare). Called by the command line. It must never send, open or resolve anything.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from samplicator.config.address import MAPPED, ParsedSource, address_text, endpoint_text
from samplicator.plan.apart import REMEDY
from samplicator.plan.sessions import Door, DoorSpec
from samplicator.plan.spec import PlanSpec, ReceiverSpec, RuleSpec, SocketSpec, Udp

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Verdict:
    """One rule. number: from 1, as rules are written. where: file:line, "" when unknown. why: one sentence. reached:
    False when an earlier rule with stop ended the walk.
    """

    number: int
    text: str
    where: str
    matches: bool
    why: str
    reached: bool = True


@dataclass(frozen=True, slots=True)
class Copy:
    """One copy that leaves. to, source: address and port as text. details: ttl, tos, freq, checksum, as far as not
    the default. standby_for: it leaves only while that receiver is down, "" = always. apart: how the collector
    tells the exporters of copies apart that are not spoofed, or that it cannot; "" = there is nothing to say.
    """

    receiver: str
    to: str
    source: str
    source_why: str
    engine: str
    engine_why: str
    details: tuple[str, ...]
    standby_for: str = ""
    apart: str = ""


@dataclass(frozen=True, slots=True)
class PoolCopy:
    """One copy that leaves to one of the members. balance: exporter-hash | round-robin. weights: one per member."""

    pool: str
    balance: str
    members: tuple[Copy, ...]
    weights: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Explanation:
    """What one listener does with one exporter. denied: a rule with stop matched and there is no copy."""

    listener: str
    socket: str
    rules: tuple[Verdict, ...]
    copies: tuple[Copy, ...]
    denied: bool
    pools: tuple[PoolCopy, ...] = ()


def parse_exporter(text: str) -> tuple[Address, int | None]:
    """ADDR, ADDR:PORT, v6 or [v6]:PORT. IPv4-mapped is IPv4. Raises ValueError with what is wrong."""
    host, colon, port = text, "", ""
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        colon, port = rest[:1], rest[1:]
        if colon not in ("", ":"):
            raise ValueError(f"{text!r} must be [ADDRESS]:PORT")
    elif text.count(":") == 1:
        host, colon, port = text.partition(":")
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        why = "must be an address, such as 192.0.2.1, 192.0.2.1:5000 or [2001:db8::1]:5000"
        raise ValueError(f"{text!r} {why}") from None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if colon and not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65535):
        raise ValueError(f"{text!r}: port {port!r} must be in 1..65535")
    return address, int(port) if port else None


def explain(
    spec: PlanSpec, exporter: Address, exporter_port: int | None, to_port: int, places: Sequence[str] = ()
) -> tuple[Explanation, ...]:
    """One answer per listener socket that could take the exporter's datagrams on `to_port`; () when none listens there.

    places: file:line of each rule, when known.
    """
    found = [
        (listener.index, endpoint_text(socket.address, socket.port))
        for listener in spec.listeners
        for socket in listener.sockets
        if socket.port == to_port and _takes(socket, exporter)
    ]
    found += [
        (listener.index, text)
        for listener in spec.listeners
        for door in listener.doors
        for place, text in zip(door.places, door.texts(), strict=True)
        if place[1] == to_port and _reaches(place[0], exporter) and _allowed(door, exporter)
    ]
    return tuple(_explain(spec, listener, text, exporter, exporter_port, places) for listener, text in found)


def _reaches(address: bytes, exporter: Address) -> bool:
    """Whether an exporter can connect to this address of a gateway: of its family, or [::], which takes both."""
    return (len(address) == 4) == (exporter.version == 4) or not any(address)


def _allowed(door: DoorSpec, exporter: Address) -> bool:
    return not door.allow or any(source.selects(exporter.packed) for source in door.allow)


def _takes(socket: SocketSpec, exporter: Address) -> bool:
    if socket.family == exporter.version:
        return True
    # a dual-stack socket: bound to :: and not v6only
    unspecified = not any(ipaddress.ip_address(socket.address.partition("%")[0]).packed)
    return socket.family == 6 and exporter.version == 4 and not socket.v6only and unspecified


def _explain(
    spec: PlanSpec, listener: int, socket: str, exporter: Address, exporter_port: int | None, places: Sequence[str]
) -> Explanation:
    """socket: where the listener hears the exporter, for people."""
    verdicts: list[Verdict] = []
    chosen: dict[int, None] = {}
    pooled: dict[int, None] = {}
    stopped = 0
    for number, rule in enumerate(spec.rules, 1):
        where = places[number - 1] if number <= len(places) else ""
        if stopped:
            verdicts.append(
                Verdict(number, rule.text, where, False, f"rule {stopped} matches and has stop = true", False)
            )
            continue
        matches, why = _match(spec, rule, listener, exporter)
        verdicts.append(Verdict(number, rule.text, where, matches, why))
        if matches:
            chosen.update(dict.fromkeys(rule.receivers))
            pooled.update(dict.fromkeys(rule.pools))
            stopped = number if rule.stop else 0
    flow = spec.listeners[listener].flow
    copies = tuple(_copy(spec.receivers[index], exporter, exporter_port, flow) for index in sorted(chosen))
    pools = tuple(
        PoolCopy(
            pool.name,
            pool.balance,
            tuple(_copy(spec.receivers[index], exporter, exporter_port, flow) for index, _ in pool.members),
            tuple(weight for _, weight in pool.members),
        )
        for pool in (spec.pools[index] for index in sorted(pooled))
    )
    return Explanation(
        listener=spec.listeners[listener].name,
        socket=socket,
        rules=tuple(verdicts),
        copies=copies,
        denied=bool(stopped) and not copies and not pools,
        pools=pools,
    )


def source_matches(source: ParsedSource, address: Address) -> bool:
    """`(exporter & mask) == address`, of that family; family 0 takes both."""
    if source.family not in (0, address.version):
        return False
    packed = address.packed if address.version == 6 else MAPPED + address.packed
    return all(a & m == b for a, m, b in zip(packed, source.mask, source.address, strict=True))


def _match(spec: PlanSpec, rule: RuleSpec, listener: int, exporter: Address) -> tuple[bool, str]:
    if rule.listeners is not None and listener not in rule.listeners:
        names = ", ".join(spec.listeners[index].name for index in rule.listeners)
        return False, f"the rule is only for listener {names}"
    for source in rule.sources:
        if source_matches(source, exporter):
            what = "every exporter" if source.any else f"{exporter} is in {source.text}"
            return True, what + ("; stop = true: later rules are not evaluated" if rule.stop else "")
    if not rule.sources:
        return False, "none of the rule's sources can ever match"
    families = {source.family for source in rule.sources}
    if families == {4} and exporter.version == 6:
        return False, "the rule's sources are IPv4, the exporter is IPv6"
    if families == {6} and exporter.version == 4:
        return False, "the rule's sources are IPv6, the exporter is IPv4"
    return False, f"{exporter} is in none of the rule's sources"


def _copy(receiver: ReceiverSpec, exporter: Address, exporter_port: int | None, flow: bool) -> Copy:
    spoofed, details = False, []
    if isinstance(receiver.delivery, Udp):
        udp = receiver.delivery
        spoofed = udp.spoof and udp.family == exporter.version
        source, why, engine, engine_why = _source(udp, exporter, exporter_port)
        details += [f"ttl {udp.ttl or 'kept'}", f"tos {'kept' if udp.tos < 0 else udp.tos}"]
    else:
        source = endpoint_text(str(exporter), exporter_port if exporter_port is not None else "PORT")
        why = "the gateway gets the exporter's address with each copy"
        engine, engine_why = "door", "a gateway in this process sends the copy on"
    apart = _told_apart(receiver) if flow and not spoofed and not isinstance(receiver.delivery, Door) else ""
    if receiver.freq > 1:
        templates = ", and all templates" if flow and not receiver.by_exporter else ""
        details.append(f"1 {'exporter' if receiver.by_exporter else 'datagram'} in {receiver.freq}{templates}")
    if flow:
        details += _refreshes(receiver)
    to = receiver.place
    if isinstance(receiver.delivery, Udp):
        details += _packets(receiver.delivery)
        to += f" ({_whose(receiver)})" * _has_name(receiver)
    if receiver.missing:
        to += f" (unreachable: {receiver.missing})"
    if receiver.standby_for:
        details.insert(0, f"only while {receiver.standby_for} is down, templates first")
    return Copy(receiver.name, to, source, why, engine, engine_why, tuple(details), receiver.standby_for, apart)


def _source(udp: Udp, exporter: Address, exporter_port: int | None) -> tuple[str, str, str, str]:
    """Source of a copy and why, engine and why."""
    port: int | str = exporter_port if exporter_port is not None else "PORT"
    engine, engine_why = udp.engine, udp.engine_why
    if udp.spoof and udp.family == exporter.version:
        source, why = endpoint_text(str(exporter), port), "the exporter's address, spoofed"
    elif udp.spoof:
        source = "this host's address"
        why = f"not spoofed: an IPv{udp.family} packet cannot have an IPv{exporter.version} source"
        engine, engine_why = "udp", "copies that cannot be spoofed are sent through a UDP socket"
    elif udp.source is not None:
        address, own_port = udp.source
        source = endpoint_text(address_text(address), own_port or "a port that the kernel chooses")
        why = "configured by `source`"
    else:
        source, why = "this host's address", "not spoofed"
    if udp.per_session:
        source += ", one port per exporter session"
    return source, why, engine, engine_why


def _packets(udp: Udp) -> list[str]:
    """What is out of the ordinary with the packets."""
    found = []
    if udp.mtu:
        found.append(f"packets of at most {udp.mtu} bytes")
    if not udp.checksum:
        found.append("UDP checksum 0")
    if udp.pause_us:
        found.append(f"a pause of {udp.pause_us} us after each copy")
    return found


def _has_name(receiver: ReceiverSpec) -> bool:
    """Whether the operator wrote another name than the address that is shown."""
    return not receiver.missing and receiver.udp.host not in (address_text(receiver.udp.address), "")


def _whose(receiver: ReceiverSpec) -> str:
    """The name that the operator wrote, and which pod it is now."""
    pod = receiver.pod
    return receiver.udp.host if pod is None else f"pod {pod.name} of {receiver.udp.host}"


def _told_apart(receiver: ReceiverSpec) -> str:
    if receiver.unique:
        return "each exporter of NetFlow v9 and IPFIX has its own domain in copies (see samplicator domains)"
    if receiver.apart:
        return "each exporter of NetFlow v9 and IPFIX has its own port in copies, or its own domain until it has a port"
    return f"the collector can mix up templates of several exporters of NetFlow v9 and IPFIX; {REMEDY}"


def _refreshes(receiver: ReceiverSpec) -> list[str]:
    """When templates and options data are sent again."""
    text = []
    for what, packets, ms in (("templates", *receiver.refresh[:2]), ("options data", *receiver.refresh[2:])):
        when = [f"{packets} datagrams"] if packets else []
        when += [f"{ms // 60_000} min"] if ms else []
        text += [f"{what} again after {' or '.join(when)}"] if when else []
    return text


def lines(explanations: Sequence[Explanation], exporter: Address, exporter_port: int | None, to_port: int) -> list[str]:
    """For people."""
    who = endpoint_text(str(exporter), exporter_port) if exporter_port is not None else str(exporter)
    if not explanations:
        return [f"{who} -> port {to_port}: no listener takes this datagram. It is not received and no copy is sent."]
    text: list[str] = []
    for item in explanations:
        if text:
            text.append("")
        text.append(f"{who} -> port {to_port}: listener {item.listener} ({item.socket})")
        if not item.rules:
            text.append("  the configuration has no rules")
        for rule in item.rules:
            verdict = "matches" if rule.matches else "does not match" if rule.reached else "is not evaluated"
            text.append(f"  rule {rule.number} {verdict}: {rule.text}")
            text.append(f"      {rule.why}{f' [{rule.where}]' if rule.where else ''}")
        text += _leaving(item)
    return text


def _leaving(item: Explanation) -> list[str]:
    """The copies that leave, or why none does."""
    if not item.copies and not item.pools:
        reason = "a rule with stop = true denies it" if item.denied else "no rule matches"
        label = "acl" if item.denied else "no_route_rule"
        return [f"  no copy is sent: {reason} (counted as receive_rejected_datagrams_total, reason {label})"]
    waiting = sum(bool(copy.standby_for) for copy in item.copies)
    count = len(item.copies) + len(item.pools) - waiting
    more = f", {waiting} more while another receiver is down" if waiting else ""
    text = [f"  {count} {'copy is sent' if count == 1 else 'copies are sent'}{more}:"]
    for copy in item.copies:
        text += _copy_lines(copy, "    ")
    for pool in item.pools:
        even = len(set(pool.weights)) == 1
        members = zip(pool.members, pool.weights, strict=True)
        names = ", ".join(copy.receiver if even else f"{copy.receiver} (weight {w})" for copy, w in members)
        text.append(f"    pool {pool.pool}: one of {names}, by {pool.balance}")
        for copy in pool.members:
            text += _copy_lines(copy, "      ")
    return text


def _copy_lines(copy: Copy, indent: str) -> list[str]:
    return [
        f"{indent}{copy.receiver}: to {copy.to}",
        f"{indent}  from {copy.source}: {copy.source_why}",
        *([f"{indent}  {copy.apart}"] if copy.apart else []),
        f"{indent}  engine {copy.engine}: {copy.engine_why}",
        f"{indent}  {', '.join(copy.details)}",
    ]
