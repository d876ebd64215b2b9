"""Events and what their payloads are, as lines for people.

Called by command. Pure. Invariants: one line per event, at most WIDTH characters; whatever an exporter or a daemon
says is written as plain text, with control characters escaped.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

from samplicator.cli.drawing import plain
from samplicator.cli.tap.events import Datagram, Open
from samplicator.cli.tap.facts import Data, Facts, Flows, Other, Sets, Sflow, Snmp, Syslog, Template

WIDTH: Final = 2000
NAMES: Final = 6
"""Fields of a template that are named."""
_PROTOCOLS: Final = {"netflow9": "v9", "ipfix": "IPFIX"}
_SEVERITIES: Final = ("emerg", "alert", "crit", "err", "warning", "notice", "info", "debug")  # RFC 5424, 6.2.1
_FACILITIES: Final = (
    *("kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp"),
    *("ntp", "audit", "alert", "clock", *(f"local{number}" for number in range(8))),
)


def line(event: Datagram, facts: Facts | None, config: Open) -> str:
    """facts: None = the payload was not kept."""
    address = plain(event.exporter)  # the scope of an IPv6 address can be any text
    exporter = f"[{address}]" if event.exporter.version == 6 else address
    what = f"len {event.length}, the payload was not kept" if facts is None else told(facts, event.length)
    text = f"{clock(event.time_ns)} {event.kind:<7} {exporter}:{event.port} > {plain(_target(event, config))}  {what}"
    return text if len(text) <= WIDTH else text[: WIDTH - 3] + "..."


def clock(time_ns: int) -> str:
    """Local time of day, to the microsecond."""
    if not time_ns:
        return "--:--:--.------"
    seconds, rest = divmod(time_ns, 1_000_000_000)
    return f"{time.strftime('%H:%M:%S', time.localtime(seconds))}.{rest // 1000:06}"


def _target(event: Datagram, config: Open) -> str:
    """Where it came in, or where the copy goes, and why or why not."""
    match event.kind:
        case "in":
            return event.listener
        case "sent":
            how = ", ".join(word for word in (event.way, _source(event, config)) if word)
            return f"{event.receiver} ({how})" if how else event.receiver
        case "skipped":
            return f"{event.receiver}: {event.reason or 'freq'}"
    return f"{event.receiver or event.listener}: {event.reason or 'no reason is known'}"


def _source(event: Datagram, config: Open) -> str:
    for place in config.receivers.get(event.receiver, ()):
        if place.source:
            return {"exporter": "exporter's source", "own": "own source"}.get(place.source, f"source {place.source}")
    return ""


# ---------------------------------------------------------------------------------------------------- payloads


def told(facts: Facts, length: int) -> str:
    """What a payload of so many bytes is."""
    match facts:
        case Flows():
            words = [facts.protocol.replace("netflow", "v"), *(["engine", facts.engine] if facts.engine else [])]
            words += [] if facts.aggregation is None else ["aggregation", str(facts.aggregation)]
            words += [] if facts.sequence is None else ["seq", str(facts.sequence)]
            return f"{' '.join(words)} len {length}: {_parts([_many(facts.records, 'record')], facts.fault)}"
        case Sets():
            head = f"{_PROTOCOLS[facts.protocol]} domain {facts.domain} seq {facts.sequence} len {length}"
            return f"{head}: {_parts(_sets(facts), facts.fault)}"
        case Sflow():
            head = f"sFlow agent {facts.agent} sub-agent {facts.sub_agent} seq {facts.sequence} len {length}"
            samples = [_many(count, f"{kind} sample") for kind, count in facts.samples.items()]
            return f"{head}: {_parts(samples or ['no sample'], facts.fault)}"
        case Syslog():
            name = f"{_FACILITIES[facts.priority >> 3]}.{_SEVERITIES[facts.priority & 7]}"
            return f"syslog {name} len {length}: {plain(facts.text)}"
        case Snmp():
            return " ".join(word for word in ("SNMP", facts.version, facts.kind, f"len {length}") if word)
        case Other():
            return f"{length} bytes"


def _sets(facts: Sets) -> list[str]:
    """Templates, options templates, data."""
    parts = []
    for word, options in (("templates", False), ("options templates", True)):
        found = [_template(item) for item in facts.templates if item.options == options]
        parts += [f"{word} {', '.join(found)}"] if found else []
    if facts.more_templates:
        parts.append(f"{facts.more_templates} more templates")
    if facts.withdrawn:
        parts.append(f"{facts.withdrawn} templates withdrawn")
    return [*parts, *(_data(item) for item in facts.data)] or ["no set"]


def _template(item: Template) -> str:
    names: Sequence[str] = item.names[:NAMES]
    if item.fields <= len(names):
        return f"{item.id} ({' '.join(names)})"
    return f"{item.id} ({' '.join([*names, '...'])} {item.fields} fields)"


def _data(item: Data) -> str:
    if not item.uncounted:
        return f"data {item.id} x{item.records}"
    if item.uncounted == item.sets:
        return f"data {item.id} (template not seen)"
    return f"data {item.id} x{item.records} ({item.uncounted} of {item.sets} sets: template not seen)"


def _parts(parts: Sequence[str], fault: str) -> str:
    return ", ".join([*parts, f"MALFORMED: {fault}"] if fault else parts)


def _many(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"
