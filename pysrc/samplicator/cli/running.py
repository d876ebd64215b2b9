"""The commands around a running daemon: run, reload, status, ready, demo.

Called by cli.main, each with the parsed options; each returns the exit status.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from samplicator.cli.control import NoControl, control_path, get_json, request
from samplicator.cli.drawing import duration, gateway_lines, table, unmatched_lines
from samplicator.errors import Unreachable

if TYPE_CHECKING:
    from samplicator.views.kubernetes import KubernetesService
    from samplicator.views.listeners import Listener
    from samplicator.views.receivers import Member, Pool, Receiver
    from samplicator.views.status import Status

RELOAD_SECONDS = 130.0
NOT_READY = 3


def run(options: Namespace) -> int:
    """The daemon, in the foreground."""
    from samplicator.config.toml.load import load_toml
    from samplicator.service.service import Options, run_service

    path = options.config
    chosen = Options(takeover=options.takeover, linger=options.linger)
    return run_service(lambda: load_toml(path), options=chosen)


def reload(options: Namespace) -> int:
    """Asks the daemon for a reload and shows the outcome."""
    try:
        path = control_path(options.control, options.config, faulty=True)
        status, body = request(path, "POST", "/-/reload", timeout=RELOAD_SECONDS)
        answer: dict[str, Any] = json.loads(body)
    except NoControl as error:
        return _reload_by_signal(options.config, error)
    except Unreachable as error:
        if not options.control and os.environ.get(
            "MAINPID"
        ):  # the daemon may run without the socket that the file names
            return _reload_by_signal(options.config, error)
        print(f"error: {error}", file=sys.stderr)
        return 1
    except ValueError:
        print(f"error: the daemon's answer (status {status}) is not JSON", file=sys.stderr)
        return 1
    for warning in answer.get("warnings", ()):
        print(f"warning: {warning}", file=sys.stderr)
    if status == 200:
        print(f"reloaded: generation {answer['generation']}, {answer['diff'] or 'nothing changed'}")
        return 0
    problems = answer.get("problems") or [answer.get("error", f"status {status}")]
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    if answer.get("published"):
        print(f"reload failed, but its plan (generation {answer['generation']}) already runs", file=sys.stderr)
    elif "generation" in answer:
        print(f"not reloaded: generation {answer['generation']} keeps running", file=sys.stderr)
    return 1


def _reload_by_signal(config: str, why: Exception) -> int:
    """Where there is no control socket to ask at: it is switched off, or was switched on after the start, or could not
    be opened. systemd names the daemon to ExecReload= ($MAINPID, systemd.exec(5)). The file is judged here, so that one
    with faults is refused here, too; what the kernel says is in the daemon's log.
    """
    from samplicator.cli.configuration import judge

    main = os.environ.get("MAINPID", "")
    if not main.isdigit():
        print(f"error: {why}; send SIGHUP to the daemon instead", file=sys.stderr)
        return 1
    judged = judge(config)
    for problem in judged.problems:
        print(f"error: {problem}", file=sys.stderr)
    if judged.problems:
        print("not reloaded: the previous configuration keeps running", file=sys.stderr)
        return 1
    try:
        os.kill(int(main), signal.SIGHUP)
    except OSError as error:
        print(f"error: process {main} cannot be told to reload: {error.strerror}", file=sys.stderr)
        return 1
    print(f"the configuration has no errors; process {main} got SIGHUP, and its log shows the result")
    return 0


def status(options: Namespace) -> int:
    """What the daemon does, for people or as JSON."""
    try:
        path = control_path(options.control, options.config)
        value = {page: get_json(path, f"/api/v1/{page}") for page in PAGES}
    except Unreachable as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps(value, indent=2))
    else:
        print("\n".join(status_lines(value)))
    return 0 if value["status"]["ready"] and value["status"]["healthy"] else NOT_READY


def ready(options: Namespace) -> int:
    """Whether the daemon is ready, or only healthy, by one request."""
    try:
        path = control_path(options.control, options.config, own=True)
        answer, body = request(path, "GET", "/healthz" if options.healthy else "/readyz")
    except Unreachable as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(body.decode(errors="replace").strip())
    return 0 if answer == 200 else NOT_READY


PAGES: Final = ("status", "listeners", "receivers", "pools", "kubernetes", "gateways")
"""What `status` asks for."""
SLOWER: Final = {
    "segment": "segmented sends",
    "transparent": "sockets on exporters' ports",
    "packet": "link frames",
    "copier": "copies made by the kernel",
}
"""What a receiver does without when the kernel refuses it, by its word in `gave_up`."""


def status_lines(value: Mapping[str, Any]) -> list[str]:
    """The human form: state, two tables, notes on what needs attention."""
    state: Status = value["status"]
    listeners: list[Listener] = value["listeners"]
    receivers: list[Receiver] = value["receivers"]
    pools: list[Pool] = value["pools"]
    config = state["config"]
    up = duration(state["uptime_seconds"])
    ready = "ready" if state["ready"] else f"NOT READY: {state['ready_why']}"
    lines = [
        f"samplicator {state['version']}, pid {state['pid']}, up {up}, {ready}",
        f"configuration: {', '.join(config['files']) or 'command line'}, generation {config['generation']}, "
        f"{config['reloads']} reloads ({config['reload_failures']} failed)",
        f"workers: {len(state['workers'])}",
    ]
    if not state["healthy"]:
        lines.append(f"NOT HEALTHY: {state['healthy_why']}")
    if not config["last_reload_successful"]:
        lines.append("the last reload FAILED; the previous configuration keeps running")
    if state["state_file"]["why"]:
        lines.append(f"state file {state['state_file']['path']} CANNOT BE WRITTEN: {state['state_file']['why']}")
    lines += [
        "",
        *table(
            ["listener", "listens on", "state", "received", "matched", "rejected", "truncated", "kernel drops"],
            [
                [
                    item["name"],
                    ", ".join(item["sockets"][:3])
                    + (f" and {len(item['sockets']) - 3} more" if len(item["sockets"]) > 3 else ""),
                    item["state"] if item["state"] == "up" else item["state"].upper(),
                    item["counters"]["datagrams"],
                    item["counters"]["matched"],
                    item["counters"]["unmatched"] + item["counters"]["denied"],
                    item["counters"]["truncated"],
                    item["kernel_drops"],
                ]
                for item in listeners
            ],
        ),
    ]
    lines += [
        "",
        *table(
            ["receiver", "to", "source", "engine", "state", "sent", "skipped", "failed"],
            [
                [
                    item["name"],
                    place_text(item),
                    item["source"],
                    item["engine"],
                    state_word(item),
                    item["counters"]["sent"],
                    item["counters"]["skipped"],
                    item["failed"],
                ]
                for item in receivers
            ],
        ),
    ]
    lines += unmatched_lines(state["unmatched"])
    if pools:
        rows = [
            [pool["name"], pool["balance"], each["receiver"], each["weight"], each["exporters"], _in_pool(each)]
            for pool in pools
            for each in pool["members"]
        ]
        lines += ["", *table(["pool", "balance", "member", "weight", "exporters", "state"], rows)]
    lines += kubernetes_lines(value["kubernetes"])
    lines += [f"  {item['name']}: {item['state']}: {item['state_why']}" for item in listeners if item["state_why"]]
    for item in receivers:
        if not item["up"]:
            since = duration(max(0.0, time.time() - item["state_since_unix"]))
            lines.append(f"  {item['name']}: {item['state']} for {since}: {item['state_why']}")
        reasons = [
            f"{count} {field.removeprefix('failed_')}"
            for field, count in item["counters"].items()
            if field.startswith("failed_") and count
        ]
        if reasons:
            lines.append(f"  {item['name']}: failed: {', '.join(reasons)}")
        if item["gave_up"]:
            words = ", ".join(SLOWER[feature] for feature in item["gave_up"])
            lines.append(f"  {item['name']}: given up: {words} (the kernel refuses; samplicator tries again later)")
    working = {item["name"] for item in receivers if item["up"]}
    lines += [f"  {line}" for line in gateway_lines(value["gateways"], working)]
    return lines


def kubernetes_lines(services: Sequence[KubernetesService]) -> list[str]:
    """The pods of receivers that are Kubernetes Services, and what is wrong with following them."""
    if not services:
        return []
    rows = [
        [item["service"], pod["pod"], pod["node"] or "?", pod["receiver"]] for item in services for pod in item["pods"]
    ]
    lines = ["", *table(["service", "pod", "node", "receiver"], rows)] if rows else []
    for item in services:
        if not item["followed"]:
            since = duration(max(0.0, time.time() - item["since_unix"]))
            lines.append(f"  {item['receiver']}: NOT FOLLOWED for {since}: {item['why']}")
        elif item["why"]:
            lines.append(f"  {item['receiver']}: {item['why']}")
        elif item["waiting"]:
            lines.append(f"  {item['receiver']}: {item['waiting']} more not ready")
    return lines


def place_text(item: Mapping[str, Any]) -> str:
    """Where it is; "?" in place of a port whose number is not known."""
    if item["engine"] == "door":
        return str(item["host"]) if item["port"] else f"gateway {item['address']}"
    port = item["port"] or "?"
    return f"[{item['address']}]:{port}" if ":" in item["address"] else f"{item['address']}:{port}"


def state_word(item: Mapping[str, Any]) -> str:
    """up, REFUSING or UNREACHABLE, and what a standby does."""
    word = "up" if item["up"] else str(item["state"]).upper()
    if not item["standby_for"]:
        return word
    return f"{word}, waiting" if item["waiting"] else f"{word}, for {item['standby_for']}"


def _in_pool(member: Member) -> str:
    return "in" if member["up"] else "OUT"


def demo(options: Namespace) -> int:
    """The main job on this machine, verified."""
    from samplicator.demo.demo import run_demo

    return run_demo(seconds=None if options.forever else options.seconds, rate=options.rate, http=options.http)
