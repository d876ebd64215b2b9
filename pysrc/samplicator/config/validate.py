"""Checks of values of a configuration that depend on each other.

Purpose: names, references, addresses used twice, rules that cannot fire. Works on a Draft, in which tables with errors
can be missing, so that one run reports these findings together with the wrong values. Called by config.toml and
config.legacy. Never raises, never reads a file, never resolves a name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from samplicator.config.address import EVERYTHING, ParsedSource, parse_bind, parse_ip, parse_source
from samplicator.config.draft import Draft, Finding, Suggest
from samplicator.config.groups import check_pools, check_services, check_standbys
from samplicator.config.model.datapath import Datapath
from samplicator.config.model.listener import Listener
from samplicator.config.model.receiver import Receiver
from samplicator.config.model.rule import Rule
from samplicator.config.model.service import Service
from samplicator.config.streams import check_streams
from samplicator.config.web.model import WebConfig

IPFIX_PORTS = (4739, 4740)
FLOW_SHARE = 256 << 10
"""Bytes of flow memory that a worker needs at least: 128 observation domains."""
REFRESHES = (
    "template_refresh_packets",
    "template_refresh_minutes",
    "options_refresh_packets",
    "options_refresh_minutes",
)


def check(draft: Draft, suggest: Suggest | None = None) -> list[Finding]:
    """All findings of a TOML file's draft."""
    suggest = suggest or Suggest()
    findings: list[Finding] = []
    findings += _presence(draft)
    findings += _duplicates("listener", draft.listener_names)
    findings += _duplicates("receiver", draft.receiver_names)
    findings += _datapath(draft.datapath)
    findings += check_listeners(draft.listener)
    for index, receiver in enumerate(draft.receiver):
        if receiver is not None:
            findings += _receiver(index, receiver)
    findings += check_standbys(draft, suggest)
    findings += check_pools(draft, suggest)
    findings += check_services(draft)
    findings += check_streams(draft)
    findings += _flow(draft)
    findings += _host_bits(draft)
    findings += _references(draft, suggest)
    findings += _unused(draft)
    findings += never_fires(draft)
    findings += check_loops(draft.listener, draft.receiver)
    findings += check_ipfix(draft.listener, draft.receiver)
    return findings


def _presence(draft: Draft) -> Iterator[Finding]:
    if not draft.listener:
        yield Finding(
            ("listener",), 'there is no listener; add [[listener]] with name = "netflow", listen = ["0.0.0.0:2055"]'
        )
    if not draft.receiver:
        yield Finding(
            ("receiver",), 'there is no receiver; add [[receiver]] with name = "nfdump", to = "192.0.2.10:9995"'
        )
    elif not draft.rule:
        why = "there is no rule, so no datagram is forwarded; add [[rule]] with to = [...]"
        yield Finding(("rule",), why, error=False)


def _duplicates(table: str, names: Sequence[str | None]) -> Iterator[Finding]:
    first: dict[str, int] = {}
    for index, name in enumerate(names):
        if name is None:
            continue
        if name in first:
            why = f"{name!r} is already the name of {table}[{first[name]}]; write another name"
            yield Finding((table, index, "name"), why)
        else:
            first[name] = index


def _flow(draft: Draft) -> Iterator[Finding]:
    """Settings that need the flow stage, if no listener uses it."""
    if not draft.listener or any(listener is None or listener.flow != "off" for listener in draft.listener):
        return
    for index, receiver in enumerate(draft.receiver):
        if receiver is not None and receiver.domain == "unique":
            why = 'every listener has flow = "off", so copies keep their domains; remove `domain` or that `flow`'
            yield Finding(("receiver", index, "domain"), why, error=False)
        for key in REFRESHES:
            if receiver is not None and getattr(receiver, key):
                why = f'every listener has flow = "off", so no template is known; remove `{key}` or that `flow`'
                yield Finding(("receiver", index, key), why, error=False)


def _datapath(datapath: Datapath) -> Iterator[Finding]:
    share = datapath.flow_memory // (datapath.workers if isinstance(datapath.workers, int) else 1)
    if share < FLOW_SHARE:
        why = f"flow_memory gives each worker {share} bytes; each worker needs at least {FLOW_SHARE} (256 KiB)"
        yield Finding(("datapath", "flow_memory"), why)
    if len(set(datapath.cpus)) < len(datapath.cpus):
        yield Finding(("datapath", "cpus"), "a CPU is listed twice; name each CPU once")
    elif datapath.cpus and datapath.workers != "auto" and datapath.workers > len(datapath.cpus):
        why = f"{datapath.workers} workers need as many CPUs, but `cpus` has {len(datapath.cpus)}; some share a CPU"
        yield Finding(("datapath", "cpus"), why, error=False)


def check_web(service: Service, web: WebConfig | None) -> Iterator[Finding]:
    """What protects the HTTP interface, if it can be reached from other hosts. web: None = there is none, or it has
    errors.
    """
    path = ("service", "web_config")
    if not service.http:
        for key in ("web_config", "http_hosts", "reload_token_file"):
            if getattr(service, key):
                why = f"`http` is off, so `{key}` has no effect; write an address in `http`, or remove `{key}`"
                yield Finding(("service", key), why, error=False)
        return
    where = parse_bind(service.http)
    local = where.address[:1] == b"\x7f" if where.family == 4 else where.address == bytes(15) + b"\1"
    if local if where.literal else where.host.lower() == "localhost":
        return
    if web is not None and web.users and web.tls is None:
        why = f"{web.path} has users but no TLS, so passwords travel readable; add tls_server_config to it"
        yield Finding(path, why, error=False)
    if service.reload_token_file and (web is None or web.tls is None) and not (service.web_config and web is None):
        why = "the token travels readable over TCP without TLS; name a `web_config` file with tls_server_config"
        yield Finding(("service", "reload_token_file"), why, error=False)


def check_listeners(listeners: Sequence[Listener | None]) -> Iterator[Finding]:
    """Sockets that would be bound twice, multicast groups without a socket of their family."""
    bound: dict[tuple[str, str, int], tuple[int, int]] = {}
    for index, listener in enumerate(listeners):
        if listener is None:
            continue
        for entry, endpoint in enumerate(listener.endpoints):
            if endpoint.scheme:
                continue
            interface = listener.interface or endpoint.scope
            clash: tuple[int, int, int] | None = None
            for port in range(endpoint.port, endpoint.last_port + 1):
                other = bound.setdefault((endpoint.host, interface, port), (index, entry))
                if other != (index, entry) and clash is None:
                    clash = (*other, port)
            if clash:
                where = f"listener[{clash[0]}].listen[{clash[1]}]"
                why = f"{endpoint.host} port {clash[2]} is already in {where}; remove one of the two"
                yield Finding(("listener", index, "listen", entry), why)
            if endpoint.scope and endpoint.family == 6 and listener.interface not in ("", endpoint.scope):
                why = (
                    f"the address is on {endpoint.scope!r} but `interface` is {listener.interface!r}; name the same one"
                )
                yield Finding(("listener", index, "listen", entry), why)
        families = {endpoint.family for endpoint in listener.endpoints if not endpoint.scheme}
        for entry, group in enumerate(listener.multicast):
            literal = parse_ip(group)
            if literal and 0 not in families and literal[0] not in families:
                missing = "0.0.0.0:PORT" if literal[0] == 4 else "[::]:PORT"
                why = f"{group} is an IPv{literal[0]} group, but `listen` has no IPv{literal[0]} entry; add {missing}"
                yield Finding(("listener", index, "multicast", entry), why)


def _receiver(index: int, receiver: Receiver) -> Iterator[Finding]:
    endpoint, own = receiver.endpoint, receiver.own_source
    family = endpoint.family or {"any": 0, "ipv4": 4, "ipv6": 6}[receiver.family]
    if not receiver.checksum and family == 6:
        why = "IPv6 needs UDP checksums (RFC 8200 section 8.1): collectors drop copies without; write checksum = true"
        yield Finding(("receiver", index, "checksum"), why)
    if receiver.spoof and own:
        why = "a spoofed copy has the exporter's source; remove `source`, or write spoof = false"
        yield Finding(("receiver", index, "source"), why)
    if receiver.spoof and receiver.engine == "udp":
        why = 'engine "udp" cannot send spoofed copies; write engine = "auto" or "raw", or spoof = false'
        yield Finding(("receiver", index, "engine"), why)
    yield from _apart(index, receiver)
    if own and family and own[0] != family:
        why = (
            f"the source is IPv{own[0]} but the receiver is IPv{family}; write an IPv{family} source or remove `source`"
        )
        yield Finding(("receiver", index, "source"), why)
    if receiver.family != "any" and endpoint.literal and endpoint.family != int(receiver.family[-1]):
        yield Finding(("receiver", index, "family"), f"`to` is an IPv{endpoint.family} address; remove `family`")
    if endpoint.family == 6 and endpoint.address[:2] == b"\xfe\x80" and not endpoint.scope:
        why = f"a link-local address needs its interface; write [{endpoint.host}%eth0]:{endpoint.port}"
        yield Finding(("receiver", index, "to"), why)
    if receiver.freq_mode == "exporter" and receiver.freq == 1:
        why = 'freq_mode = "exporter" has no effect with freq = 1, which sends every datagram; write a larger freq'
        yield Finding(("receiver", index, "freq_mode"), why, error=False)
    if receiver.pause_us:
        why = "pause_us makes the worker wait after each copy, which delays all receivers and can lose datagrams"
        yield Finding(("receiver", index, "pause_us"), why, error=False)


def _apart(index: int, receiver: Receiver) -> Iterator[Finding]:
    """Checks of `source_port`."""
    own = receiver.own_source
    if receiver.source_port == "per-session":
        path = ("receiver", index, "source_port")
        if receiver.spoof:
            yield Finding(path, "a spoofed copy has the exporter's port; remove `source_port`, or write spoof = false")
        elif receiver.engine not in ("auto", "udp"):
            why = f'"per-session" cannot be combined with engine "{receiver.engine}"; write engine = "auto" or "udp"'
            yield Finding(path, why)
        if own and own[2]:
            why = f'"per-session" needs many source ports, but `source` has port {own[2]}; write the address alone'
            yield Finding(("receiver", index, "source"), why)


def _host_bits(draft: Draft) -> Iterator[Finding]:
    for index, rule in enumerate(draft.rule):
        if rule is None:
            continue
        if not rule.from_ and "from_" in rule.model_fields_set:
            why = "an empty list selects no exporter; remove `from` to select every exporter"
            yield Finding(("rule", index, "from"), why)
        for entry, source in enumerate(draft.sources.get(index, ())):
            if source.never:
                why = f"{source.text} has bits outside its mask and would never match; write {source.corrected}"
                yield Finding(("rule", index, "from", entry), why)


def _references(draft: Draft, suggest: Suggest) -> Iterator[Finding]:
    known = {
        "to": {name for name in (*draft.receiver_names, *draft.pool_names) if name},
        "listener": {n for n in draft.listener_names if n},
    }
    target = "receiver or pool" if draft.pool else "receiver"
    for index, rule in enumerate(draft.rule):
        if rule is None:
            continue
        for key, names, kind in (("to", rule.to, target), ("listener", rule.listener, "listener")):
            seen: set[str] = set()
            for entry, name in enumerate(names):
                if name not in known[key]:
                    hint = suggest(name, known[key])
                    if not hint and 0 < len(known[key]) <= 10:
                        hint = f"; write one of: {', '.join(sorted(known[key]))}"
                    yield Finding(("rule", index, key, entry), f"there is no {kind} {name!r}{hint}")
                elif name in seen:
                    why = f"{name!r} is named twice" + (" but gets one copy" if key == "to" else "") + "; remove one"
                    yield Finding(("rule", index, key, entry), why, error=False)
                seen.add(name)
        if not rule.to and not rule.stop:
            why = "the rule has no effect; name receivers in `to`, or write stop = true to drop what it matches"
            yield Finding(("rule", index, "to"), why, error=False)


def _unused(draft: Draft) -> Iterator[Finding]:
    if not draft.rule or None in draft.rule:
        return
    rules = [rule for rule in draft.rule if rule is not None]
    named = {name for rule in rules for name in rule.to}
    used = named | {name for pool in draft.pool if pool is not None and pool.name in named for name in pool.members}
    for index, name in enumerate(draft.receiver_names):
        receiver = draft.receiver[index]
        standby = receiver is not None and receiver.standby_for in named
        if name is not None and name not in used and not standby:
            yield Finding(("receiver", index), f"no rule sends to {name!r}; name it in `to` of a rule", error=False)
    for index, name in enumerate(draft.pool_names):
        if name is not None and name not in named:
            yield Finding(("pool", index), f"no rule sends to {name!r}; name it in `to` of a rule", error=False)
    heard = {name for rule in rules for name in rule.listener}
    if all(rule.listener for rule in rules):
        for index, name in enumerate(draft.listener_names):
            if name is not None and name not in heard:
                why = f"no rule takes datagrams of listener {name!r}, so all of them are dropped; name it in a rule"
                yield Finding(("listener", index), why, error=False)


class _Stopped:
    """What earlier rules with `stop` cover, per listener: (family, mask) -> address -> the rule. "" is every
    listener."""

    def __init__(self, listeners: Sequence[str]) -> None:
        self.listeners = listeners
        self.cover: dict[str, dict[tuple[int, int], dict[int, int]]] = {}

    def add(self, index: int, rule: Rule, sources: Iterable[ParsedSource]) -> None:
        for name in rule.listener or [""]:
            masks = self.cover.setdefault(name, {})
            for source in sources:
                if not source.host and not source.never:
                    key = (source.family, int.from_bytes(source.mask, "big"))
                    masks.setdefault(key, {}).setdefault(int.from_bytes(source.address, "big"), index)

    def stopper(self, source: ParsedSource, name: str) -> int | None:
        """The rule that stops this source on this listener."""
        address, mask = int.from_bytes(source.address, "big"), int.from_bytes(source.mask, "big")
        for masks in (self.cover.get("", {}), self.cover.get(name, {}) if name else {}):
            for (family, cover), addresses in masks.items():
                if source.host:
                    matches = cover == 0 and family == 0
                else:
                    matches = family in (0, source.family) and cover & mask == cover
                if matches and (address & cover) in addresses:
                    return addresses[address & cover]
        return None

    def stoppers(self, rule: Rule, sources: Iterable[ParsedSource]) -> set[int] | None:
        """The rules that together stop everything this rule matches; None when something is left."""
        found: set[int] = set()
        for source in sources:
            halves = (source,) if not source.any else (source, *BOTH_FAMILIES)
            for name in rule.listener or ["", *self.listeners]:
                stoppers = [self.stopper(half, name) for half in halves]
                if stoppers[0] is None and (len(stoppers) == 1 or None in stoppers[1:]):
                    if name == "" and self.listeners:
                        continue  # no rule for every listener stops it; perhaps one for each does
                    return None
                found.update(
                    index for index in (stoppers[:1] if stoppers[0] is not None else stoppers) if index is not None
                )
                if name == "":
                    break
        return found or None


BOTH_FAMILIES = (parse_source("0.0.0.0/0"), parse_source("::/0"))


def never_fires(draft: Draft) -> Iterator[Finding]:
    """Rules that are never evaluated because of an earlier `stop`."""
    stopped = _Stopped([name for name in draft.listener_names if name])
    for index, rule in enumerate(draft.rule):
        if rule is None:
            continue
        sources = draft.sources.get(index, (EVERYTHING,))
        if stopped.cover and (stoppers := stopped.stoppers(rule, sources)):
            names = ", ".join(f"rule[{earlier}]" for earlier in sorted(stoppers)[:3])
            why = f"this rule never fires, because {names} with stop = true matches first; move this rule before it"
            yield Finding(("rule", index), why, error=False)
        if rule.stop:
            stopped.add(index, rule, sources)


def check_loops(listeners: Sequence[Listener | None], receivers: Sequence[Receiver | None]) -> Iterator[Finding]:
    """Receivers whose copies come back to a listener."""
    ears: dict[tuple[int, bool], list[tuple[range, bytes, int]]] = {}  # by family, and whether it is UDP
    for index, listener in enumerate(listeners):
        for endpoint in listener.endpoints if listener else ():
            ports = range(endpoint.port, endpoint.last_port + 1)
            ears.setdefault((endpoint.family, not endpoint.scheme), []).append((ports, endpoint.address, index))
    for number, receiver in enumerate(receivers):
        if receiver is None:
            continue
        target = receiver.endpoint
        loopback = target.address[:1] == b"\x7f" if target.family == 4 else target.address == bytes(15) + b"\1"
        for ports, address, index in ears.get((target.family, not target.scheme), []) if target.literal else ():
            if target.port in ports and (address == target.address or (loopback and not any(address))):
                why = f"listener[{index}] listens at {receiver.to}: copies would come back in a loop; change `to`"
                yield Finding(("receiver", number, "to"), why, error=False)
                break


def check_ipfix(listeners: Sequence[Listener | None], receivers: Sequence[Receiver | None]) -> Iterator[Finding]:
    """IPFIX with zero checksums."""
    places = [e for listener in listeners if listener for e in listener.endpoints if not e.scheme]
    ports = {e.port for e in places if e.port == e.last_port}
    ipfix = bool(ports) and all(port in IPFIX_PORTS for port in ports)
    for index, receiver in enumerate(receivers):
        if receiver and not receiver.checksum and (ipfix or receiver.endpoint.port in IPFIX_PORTS):
            why = "without UDP checksums a damaged IPFIX message goes unnoticed; write checksum = true"
            yield Finding(("receiver", index, "checksum"), why, error=False)
