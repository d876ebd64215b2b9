"""The commands that read a configuration and run nothing: check, explain, convert, schema.

Called by cli.main, each with the parsed options; each returns the exit status. They must never open a listener or a
raw socket that outlives the question, and never talk to a running daemon.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from samplicator.config.address import ParsedSource, address_text
from samplicator.config.model.loaded import Loaded
from samplicator.errors import ConfigError, Problem
from samplicator.host import abilities
from samplicator.plan.planner import compile
from samplicator.plan.pods import Pod
from samplicator.plan.sessions import Door
from samplicator.plan.spec import PlanSpec, Udp


@dataclass(frozen=True)
class Judged:
    """A configuration compared with this host. plan is None when there are problems."""

    loaded: Loaded | None
    plan: PlanSpec | None
    problems: tuple[Problem, ...]
    warnings: tuple[str, ...]


def judge(path: str) -> Judged:
    """Reads, validates, resolves and compiles the file; every problem of every stage that can still be looked at."""
    from samplicator.config.toml.load import load_toml

    try:
        loaded = load_toml(path)
    except ConfigError as error:
        return Judged(None, None, tuple(error.problems), tuple(map(str, error.warnings)))
    return judge_loaded(loaded)


def judge_loaded(loaded: Loaded) -> Judged:
    """The stages after reading. A right that this user lacks but the service can have is not an error here."""
    from samplicator.cluster.services import services_once
    from samplicator.host import masquerade
    from samplicator.host.resolve import resolve_once
    from samplicator.supervisor.statefile import obstacle

    warnings = [str(warning) for warning in loaded.warnings]
    host = abilities.capabilities()
    with _unlogged():
        services = services_once(loaded)
        able = replace(host, net_raw=True, net_admin=True, pods=services.pods)
        try:
            plan = compile(loaded, resolve_once(loaded), able)
        except ConfigError as error:
            return Judged(loaded, None, tuple(error.problems), (*warnings, *map(str, error.warnings)))
        finally:
            services.close()
    warnings += plan.warnings
    if (state := loaded.config.service.state_file) and (why := obstacle(state)):
        then = "until that changes, what was learnt and the counters are not kept over a restart"
        warnings.append(str(loaded.problem(("service", "state_file"), f"{why}; {then}")))
    raw = [receiver.name for receiver in plan.receivers if receiver.engine not in ("udp", "door")]
    if raw and not host.net_raw:
        warnings.append(f"{_listed('receiver', raw)} needs a raw socket, which needs CAP_NET_RAW; this user lacks it")
    ring = [listener.name for listener in plan.listeners if listener.rings]
    if ring and not (host.net_raw and host.net_admin):
        need = "CAP_NET_RAW and CAP_NET_ADMIN; this user lacks them"
        warnings.append(f"{_listed('listener', ring)} uses a ring, which needs {need}")
    if any(receiver.spoof and receiver.engine != "packet" for receiver in plan.receivers):
        rewriting = masquerade.rules()
        warnings += [masquerade.sentence(rewriting)] if rewriting else []
    return Judged(loaded, plan, (), tuple(warnings))


@contextlib.contextmanager
def _unlogged() -> Iterator[None]:
    """The parts of the daemon that are used here log what goes wrong and that they try again. Here nobody tries again,
    and the plan's warnings name the same.
    """
    log = logging.getLogger("samplicator")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def _listed(table: str, names: list[str]) -> str:
    """`receiver 'x'`, or `each of receiver 'x', 'y'`."""
    text = f"{table} {', '.join(map(repr, names))}"
    return text if len(names) == 1 else f"each of {text}"


def _report(problems: Iterable[Problem | str], warnings: Iterable[str]) -> None:
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def check(options: Namespace) -> int:
    """All errors and warnings of a configuration; with --dump-plan also what would run."""
    judged = judge(options.config)
    _report(judged.problems, judged.warnings)
    if judged.plan is None:
        found = f"{_count(len(judged.problems), 'error')}, {_count(len(judged.warnings), 'warning')}"
        print(f"{options.config}: {found}", file=sys.stderr)
        return 2
    if options.dump_plan:
        print(json.dumps(plan_json(judged.plan), indent=2))
    else:
        print(f"{options.config}: ok: {summary(judged.plan)}")
    return 0


def summary(plan: PlanSpec) -> str:
    """What would run, in one line."""
    engines: dict[str, int] = {}
    for receiver in plan.receivers:
        engines[receiver.engine] = engines.get(receiver.engine, 0) + 1
    by_engine = ", ".join(f"{number} {engine}" for engine, number in sorted(engines.items()))
    sockets = sum(len(listener.sockets) for listener in plan.listeners)
    sockets += sum(len(door.places) for listener in plan.listeners for door in listener.doors)
    parts = (
        f"{_count(len(plan.listeners), 'listener')} ({_count(sockets, 'port')})",
        _count(len(plan.receivers), "receiver") + (f" ({by_engine})" if by_engine else ""),
        *([_count(len(plan.pools), "pool")] if plan.pools else []),
        _count(len(plan.rules), "rule"),
        _count(plan.workers, "worker"),
    )
    return ", ".join(parts)


def plan_json(plan: PlanSpec) -> dict[str, Any]:
    """The plan with addresses as text; sources as {family, address, mask}."""
    receivers = []
    for receiver in plan.receivers:
        receivers.append(
            {
                **{key: value for key, value in asdict(receiver).items() if key != "delivery"},
                **_delivery_json(receiver.delivery),
                "pod": _pod_json(receiver.pod),
                "probe": {
                    **asdict(receiver.probe),
                    "address": address_text(receiver.probe.address) if receiver.probe.address else "",
                },
            }
        )
    rules = [
        {
            "text": rule.text,
            "sources": [_source_json(source) for source in rule.sources],
            "listeners": None if rule.listeners is None else list(rule.listeners),
            "receivers": list(rule.receivers),
            "pools": list(rule.pools),
            "stop": rule.stop,
        }
        for rule in plan.rules
    ]
    listeners = [
        {
            **{key: value for key, value in asdict(listener).items() if key != "intakes"},
            **{kind: [asdict(intake) for intake in getattr(listener, kind)] for kind in ("sockets", "rings")},
            "doors": [
                {**asdict(door), "places": door.texts(), "allow": [source.text for source in door.allow]}
                for door in listener.doors
            ],
        }
        for listener in plan.listeners
    ]
    return {**asdict(plan), "listeners": listeners, "receivers": receivers, "rules": rules}


def _pod_json(pod: Pod | None) -> dict[str, Any] | None:
    return None if pod is None else {**asdict(pod), "address": address_text(pod.address)}


def _delivery_json(delivery: Udp | Door) -> dict[str, Any]:
    if isinstance(delivery, Door):
        return {**asdict(delivery), "address": address_text(delivery.address) if delivery.address else ""}
    source = delivery.source
    return {
        **asdict(delivery),
        "address": address_text(delivery.address),
        "source": None if source is None else {"address": address_text(source[0]), "port": source[1]},
    }


def _source_json(source: ParsedSource) -> dict[str, Any]:
    cut = 12 if source.family == 4 else 0
    return {
        "text": source.text,
        "family": source.family,
        "address": address_text(source.address[cut:]),
        "mask": address_text(source.mask[cut:]),
    }


def explain(options: Namespace) -> int:
    """Which rules match, which copies leave."""
    from samplicator.host import bypass, masquerade
    from samplicator.plan import explain as explaining

    try:
        exporter, port = explaining.parse_exporter(options.exporter)
    except ValueError as error:
        print(f"error: --from: {error}", file=sys.stderr)
        return 2
    judged = judge(options.config)
    _report(judged.problems, ())
    if judged.plan is None or judged.loaded is None:
        return 2
    places = []
    for index in range(len(judged.plan.rules)):
        file, line = judged.loaded.locate(("rule", index))
        places.append(f"{file}:{line}" if line else "")
    answers = explaining.explain(judged.plan, exporter, port, options.to_port, places)
    if options.json:
        print(json.dumps([asdict(answer) for answer in answers], indent=2))
    else:
        rewriting = masquerade.rules()
        note = ["", f"note: {masquerade.sentence(rewriting)}"] if rewriting else []
        if any(receiver.framed and receiver.engine != "packet" for receiver in judged.plan.receivers):
            bypassed = bypass.reason()
            note += ["", f"note: no link frames now: they would bypass {bypassed}"] if bypassed else []
        print("\n".join([*explaining.lines(answers, exporter, port, options.to_port), *note]))
    return 0


def convert(options: Namespace) -> int:
    """Rule file or command line to TOML."""
    from samplicator.config.convert import to_toml
    from samplicator.config.legacy.command_line import parse_command_line

    if (options.rule_file is None) == (options.passed_on is None):
        print(
            "error: name a rule file, or write -- and then the samplicate options; see samplicator convert --help",
            file=sys.stderr,
        )
        return 2
    words = options.passed_on if options.passed_on is not None else ["-c", options.rule_file]
    try:
        parsed = parse_command_line(words)
    except ConfigError as error:
        _report(error.problems, map(str, error.warnings))
        return 2
    if parsed.loaded is None:
        print("error: -h and --version cannot be converted; remove them", file=sys.stderr)
        return 2
    _report((), map(str, parsed.loaded.warnings))
    rules_only = options.rule_file is not None
    if rules_only:
        print(
            "warning: a rule file does not say where samplicate listens and whether it spoofs; the result listens on "
            "port 2000 and does not spoof. To convert the options too: samplicator convert -- "
            f"OPTIONS -c {options.rule_file}",
            file=sys.stderr,
        )
    sys.stdout.write(to_toml(parsed.loaded, rules_only=rules_only))
    return 0


def schema(options: Namespace) -> int:
    """The JSON Schema."""
    from samplicator.config.model.whole import json_schema

    print(json.dumps(json_schema(), indent=2))
    return 0
