"""The measurements: drain (the one to trust), paced load, zero-loss rate, latency. Each returns a plain dict.

Every function starts fresh processes in the lab, warms the path up (neighbors, sessions, sockets), measures, stops
them. The relay runs alone on its CPU; generator, sink and this script share the other one. A measurement that cannot be
trusted (the receive queue overflowed, copies missing) raises LabError: no figure is printed for it. Called by `run`;
knows nothing of tables and medians.
"""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import time
from pathlib import Path

from lab import LISTEN_PORT, RECEIVER_PORT, REPO, SOURCE_PORT, TOOLS, DisturbedError, Lab, LabError, Process, run
from matrix import RELAYS, TRAFFICS, Case, Relay

RECEIVE_BUFFER = 512 << 20  # a drain's whole fill
RECEIVE_BUFFER_PACED = 64 << 20  # samplicator's default: loss must not hide in a queue of seconds
POLL_S = 0.002
SETTLE_S = 0.1
PROBES_BYTES = 4096  # more than a relay's own probes of its receivers are in three seconds


# -- starting a relay --


def toml_value(value: object) -> str:
    return json.dumps(value)


def samplicator_config(lab: Lab, case: Case, relay: Relay, ipv6: bool, buffer: int) -> str:
    """One listener, N receivers, one rule that fires (and relay.rules - 1 before it that do not match)."""
    control = lab.directory / "control.sock"
    lines = ["[service]", 'http = ""', f'control = "{control}"', 'log_level = "warning"', "", "[datapath]"]
    datapath = {"workers": 1, "cpus": [lab.relay_cpu], "receive_buffer": buffer, **relay.datapath}
    lines += [f"{key} = {toml_value(value)}" for key, value in datapath.items()]
    lines += ["", "[[listener]]", 'name = "in"', f'listen = ["{Lab.listen(ipv6)}"]']
    lines += [f"{key} = {toml_value(value)}" for key, value in relay.listener.items()]
    names = []
    for i in range(case.receivers):
        names.append(f"r{i}")
        lines += ["", "[[receiver]]", f'name = "r{i}"', f'to = "{Lab.receiver(i, ipv6)}"']
        lines += [f"spoof = {toml_value(case.spoof)}"]
        lines += [f"{key} = {toml_value(value)}" for key, value in relay.receiver.items()]
    for i in range(relay.rules - 1):
        prefix = f"10.{i >> 16 & 255}.{i >> 8 & 255}.{i & 255}/32"
        lines += ["", "[[rule]]", f'from = ["{prefix}"]', 'to = ["r0"]']
    lines += ["", "[[rule]]", f"to = {toml_value(names)}"]
    return "\n".join(lines) + "\n"


def pmacct_config(lab: Lab, case: Case, ipv6: bool, buffer: int) -> Path:
    """pmacct's nfacctd with the tee plugin; tee_transparent keeps the exporter's address."""
    to = ",".join(Lab.receiver(i, ipv6) for i in range(case.receivers))
    receivers, path = lab.directory / "tee.lst", lab.directory / "nfacctd.conf"
    receivers.write_text(f"id=1 ip={to}\n")
    path.write_text(
        f"nfacctd_ip: {Lab.listen(ipv6).rsplit(':', 1)[0].strip('[]')}\nnfacctd_port: {LISTEN_PORT}\n"
        f"nfacctd_pipe_size: {buffer}\nplugins: tee[a]\ntee_receivers[a]: {receivers}\n"
        f"tee_transparent: {str(case.spoof).lower()}\nplugin_pipe_size: 536870912\n"
    )
    return path


def start_relay(lab: Lab, case: Case, relay: Relay, buffer: int = RECEIVE_BUFFER) -> Process:
    ipv6, pin = case.ipv6, str(lab.relay_cpu)
    to = [word for i in range(case.receivers) for word in ("--to", Lab.receiver(i, ipv6))]
    if relay.kind in ("classic", "bare"):
        argv = [str(TOOLS / relay.kind), "--listen", Lab.listen(ipv6), "--buffer", str(buffer)]
        argv += [word.format(next_hop=lab.next_hop()) for word in relay.options]
        argv += ["--segment-max", "1452" if ipv6 else "1472"] if relay.kind == "bare" else []
        argv += ["--spoof"] * case.spoof + to
        if relay.processes > 1:
            cpus = (lab.relay_cpu, lab.other_cpu)
            each = [shlex.join(["taskset", "-c", str(cpu), *argv]) for cpu in cpus[: relay.processes]]
            argv, pin = ["sh", "-c", " & ".join(each) + " & wait"], ",".join(map(str, cpus))
    elif relay.kind == "samplicator":
        path = lab.directory / f"{relay.name}.toml"
        path.write_text(samplicator_config(lab, case, relay, ipv6, buffer))
        argv = [str(REPO / ".venv" / "bin" / "samplicator"), "run", "-c", str(path)]
        if relay.datapath.get("workers", 1) != 1:
            pin = f"{lab.relay_cpu},{lab.other_cpu}"
    elif relay.kind == "pmacct":
        lab.allow_receive_buffers(buffer)
        argv = ["nfacctd", "-f", str(pmacct_config(lab, case, ipv6, buffer))]
    elif relay.kind == "nfcapd":
        lab.allow_receive_buffers(buffer)
        spool = lab.directory / "spool"
        spool.mkdir(exist_ok=True)
        host = Lab.listen(ipv6).rsplit(":", 1)[0].strip("[]")
        argv = ["nfcapd", "-b", host, "-p", str(LISTEN_PORT), "-w", str(spool), "-B", str(buffer)]
        argv += [w for i in range(case.receivers) for w in ("-R", f"{Lab.receiver_address(i, ipv6)}/{RECEIVER_PORT}")]
    else:
        raise LabError(f"unknown kind of relay: {relay.kind}")
    lab.drop_at_relay(relay.ring_drop)
    process = lab.start_relay(argv, relay.name, pin)
    try:
        wait_listening(lab, relay, process)
    except BaseException:
        process.stop()
        raise
    return process


def wait_listening(lab: Lab, relay: Relay, process: Process) -> None:
    if relay.kind in ("classic", "bare"):
        process.wait_ready()
    end = time.monotonic() + 20
    while process.udp_queue(LISTEN_PORT)[0] < relay.processes:
        if not process.alive() or time.monotonic() > end:
            raise LabError(f"{relay.name} does not listen: {process.errors() or process.out.read_text()[-500:]}")
        time.sleep(0.01)
    if relay.kind == "pmacct":
        time.sleep(2)  # its tee process is not ready when the socket is
    if relay.kind == "samplicator":
        wait_started(lab, process)
        if relay.tap is not None:
            start_tap(lab, relay)


def wait_started(lab: Lab, process: Process) -> None:
    """Until the daemon has done all that belongs to its start: ready, and the next hops of frames known (until
    then copies leave by raw sockets, and the control plane competes with the datapath for its CPU).
    """
    argv = [str(REPO / ".venv" / "bin" / "samplicator"), "status", "--control", str(lab.directory / "control.sock")]
    end = time.monotonic() + 20
    while True:
        done = subprocess.run([*argv, "--json"], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            receivers = json.loads(done.stdout)["receivers"]
            if all(not r["link"] or r["link"].startswith("r1") for r in receivers):
                break
        if not process.alive() or time.monotonic() > end:
            raise LabError(f"{process.name} does not get ready: {done.stdout[-500:]} {done.stderr[-500:]}")
        time.sleep(0.05)
    time.sleep(SETTLE_S)


def start_tap(lab: Lab, relay: Relay) -> None:
    """Looks on until the relay ends."""
    argv = [str(REPO / ".venv" / "bin" / "samplicator"), "tap", "--control", str(lab.directory / "control.sock")]
    tap = lab.start(lab.relay, lab.other_cpu, [*argv, *relay.tap], "tap")
    end = time.monotonic() + 20
    while "events per second" not in tap.errors():
        if not tap.alive() or time.monotonic() > end:
            raise LabError(f"the tap does not open: {tap.errors()}")
        time.sleep(0.05)


# -- traffic --


def traffic_options(case: Case) -> list[str]:
    traffic = TRAFFICS[case.traffic]
    options = ["--exporters", str(case.exporters or traffic.exporters), "--run", str(traffic.run)]
    options += ["--port-step", "1"] * traffic.own_ports
    if traffic.pcap:
        captures = sorted(REPO.glob(traffic.pcap))
        if not captures:
            raise LabError(f"no captures: {traffic.pcap}")
        return options + [word for path in captures for word in ("--pcap", str(path))]
    low, _, high = traffic.size.partition("-")
    if case.ipv6 and high:  # the largest payload that fits MTU 1500 is 20 bytes shorter
        high = str(min(int(high), 1448))
    return [*options, "--size", low + (f"-{high}" if high else "")]


def sink_options(case: Case) -> list[str]:
    if not case.spoof:
        return []
    port = ["--source-port", str(SOURCE_PORT), "--port-step", str(int(TRAFFICS[case.traffic].own_ports))]
    return ["--source-base", Lab.source_base(case.ipv6), *port]


def warm_up(lab: Lab, case: Case, relay: Process) -> None:
    """A few paced rounds through the relay, until copies arrive: neighbors known, sessions and sockets made. Many
    exporters: one datagram of each as well, so that every session is known, or a run from every port.
    """
    before = lab.witness.device_bytes("c0")
    traffic = TRAFFICS[case.traffic]
    exporters = case.exporters or traffic.exporters
    count = min(2 * exporters, 2000) * traffic.run
    rounds = [("--count", str(count), "--rate", "20000")]
    if exporters > 2000 and not traffic.cold:
        run = traffic.run if traffic.own_ports else 1
        rounds.append(("--run", str(run), "--count", str(exporters * run), "--rate", "40000"))
    expected = 0
    for options in rounds:
        sent = lab.start_loadgen(case.ipv6, *traffic_options(case), *options).result(60)
        expected += sent["bytes"] * case.receivers
    end = time.monotonic() + 5
    while lab.witness.device_bytes("c0") - before < expected:
        if not relay.alive() or time.monotonic() > end:
            raise LabError(f"{relay.name} forwards nothing or not all in the warm-up")
        time.sleep(0.02)
    seen = 0  # the device's bytes are more than payload: some may still be on their way
    while seen != (seen := lab.witness.device_bytes("c0")):
        time.sleep(SETTLE_S)


def fill(lab: Lab, case: Case, relay: Process) -> dict:
    """Stops the relay and fills its receive queue."""
    drops_before = relay.udp_queue(LISTEN_PORT)[2]
    relay.signal(signal.SIGSTOP)
    sent = lab.start_loadgen(case.ipv6, *traffic_options(case), "--count", str(case.datagrams)).result(120)
    time.sleep(0.02)
    _, waiting, drops = relay.udp_queue(LISTEN_PORT)
    if drops != drops_before:
        raise DisturbedError(f"the receive queue overflowed: {drops - drops_before} dropped, {waiting} bytes waiting")
    return sent


def release(lab: Lab, relay: Process, expected: int) -> dict:
    """Lets the relay run until all has left it (`expected` payload bytes), or nothing more does for three seconds.

    Returns CPU time and wall time up to its last copy. Where the relay has this script's CPU as well, only what is
    cheap is looked at until all has left.
    """
    shared = "," in relay.cpus
    before, base = relay.cpu_ns(), lab.witness.device_bytes("c0")
    samples: list[tuple[float, int, dict[int, int] | None]] = []
    start = time.monotonic()
    relay.signal(signal.SIGCONT)
    last_change, before_that = start, base
    while True:
        time.sleep(POLL_S)
        now, seen = time.monotonic(), lab.witness.device_bytes("c0")
        samples.append((now, seen, None if shared and seen - base < expected else relay.cpu_ns()))
        if seen - before_that >= PROBES_BYTES:
            before_that, last_change = seen, now
        done = seen - base >= expected and relay.udp_queue(LISTEN_PORT)[1] == 0
        if now - last_change > (SETTLE_S if done else 3) or not relay.alive():
            break
    # The first sample at which all had left; for the CPU time one more: the relay has gone to sleep by then.
    index = next(i for i, sample in enumerate(samples) if sample[1] == seen)
    cpu = samples[min(index + 1, len(samples) - 1)][2] or relay.cpu_ns()
    return {**cpu_spent(relay, before, cpu), "wall_s": round(samples[index][0] - start, 4)}


def cpu_spent(process: Process, before: dict[int, int], after: dict[int, int]) -> dict:
    """CPU time of the datapath threads and of the whole process. samplicator names its datapath threads."""
    spent = {thread: after[thread] - before.get(thread, 0) for thread in after}
    total = sum(spent.values())
    workers = process.threads_named("sampl-worker")
    each = sorted(ns for t, ns in spent.items() if (t in workers or not workers) and ns > 1_000_000)
    datapath = sum(spent.get(t, 0) for t in workers) if workers else total
    return {"worker_ns": datapath, "process_ns": total, "split": each}


def ledger_of(lab: Lab) -> dict:
    """What a samplicator relay says of all it got and sent."""
    program = str(REPO / ".venv" / "bin" / "samplicator")
    return json.loads(run(program, "ledger", "--control", str(lab.directory / "control.sock"), "--json"))


def blame(lab: Lab, relay: Relay, what: str) -> None:
    """Raises for bytes that are missing, with the relay's own account of them where it has one. A receive queue or ring
    that overflowed while the relay was stopped is the machine's fault: a ring hands a block over every millisecond,
    full or not, so a fill that was held up for seconds uses it up.
    """
    if relay.kind != "samplicator":
        raise LabError(what)
    ledger = ledger_of(lab)
    drops = sum(row["kernel_drops"] for row in ledger["here"])
    failed = {row["receiver"]: row["failed"] for row in ledger["after"] if any(row["failed"].values())}
    sent = sorted({row["sent"] for row in ledger["after"]})
    matched = sum(row["matched"] for row in ledger["here"])
    what += f"; its ledger: {drops} dropped by the kernel before it, {matched} matched, {sent} sent, failed: {failed}"
    raise DisturbedError(what) if drops and not failed else LabError(what)


# -- the measurements --


def drain(lab: Lab, case: Case, relay_name: str) -> dict:
    """Copies per CPU-second, collector dropping at ingress. The bytes that arrived must be exactly those expected."""
    relay = RELAYS[relay_name]
    lab.offload(case.offload)
    lab.drop_at_ingress(True)
    process = start_relay(lab, case, relay)
    try:
        warm_up(lab, case, process)
        packets_before, payload_before = lab.ingress_counters()
        sent = fill(lab, case, process)
        released = release(lab, process, sent["bytes"] * case.receivers)
        packets, payload = lab.ingress_counters()
        rss = process.rss_kib()
        expected = sent["bytes"] * case.receivers
        if payload - payload_before != expected:
            blame(lab, relay, f"{relay_name}: {payload - payload_before} payload bytes left, {expected} expected")
    finally:
        process.stop()
    copies = sent["sent"] * case.receivers
    worker = released["worker_ns"]
    return {
        "copies": copies,
        "worker_ns": worker,
        "process_ns": released["process_ns"],
        "split": released["split"],
        "busiest_s": round(max(released["split"], default=0) * 1e-9, 4),
        "wall_s": released["wall_s"],
        "copies_per_cpu_s": round(copies * 1e9 / worker),
        "copies_per_process_cpu_s": round(copies * 1e9 / released["process_ns"]),
        "copies_per_packet": round(copies / (packets - packets_before), 2),
        "rss_kib": rss,
    }


def verified(lab: Lab, case: Case, relay_name: str) -> dict:
    """The same drain with a sink that checks every copy. Raises when anything is lost, repeated or damaged."""
    relay = RELAYS[relay_name]
    lab.offload(case.offload)
    lab.drop_at_ingress(False)
    process = start_relay(lab, case, relay)
    try:
        sink = lab.start_sink(case.receivers, case.ipv6, "--max-seconds", "5", "--idle-ms", "300")
        warm_up(lab, case, process)
        sink.result(10)
        sink = lab.start_sink(
            case.receivers, case.ipv6, "--max-seconds", "120", "--idle-ms", "60000", *sink_options(case)
        )
        sent = fill(lab, case, process)
        released = release(lab, process, sent["bytes"] * case.receivers)
        got = finish_sink(sink)
        if got["received"] < sent["sent"] * case.receivers and not got["sink_drops"]:
            blame(lab, relay, f"{relay_name}: {got['received']} of {sent['sent'] * case.receivers} copies arrived")
    finally:
        process.stop()
    check(got, sent, case, relay_name)
    copies = sent["sent"] * case.receivers
    return {"copies": copies, "copies_per_cpu_s": round(copies * 1e9 / released["worker_ns"])}


def profile(lab: Lab, case: Case, relay_name: str, path: Path) -> dict:
    """One drain under perf; writes perf's data to `path` and returns the symbols that took the most time."""
    relay = RELAYS[relay_name]
    lab.offload(case.offload)
    lab.drop_at_ingress(True)
    process = start_relay(lab, case, relay)
    try:
        warm_up(lab, case, process)
        sent = fill(lab, case, process)
        argv = ["perf", "record", "-q", "-e", "cpu-clock", "-F", "5000", "-g", "-o", str(path), "-p", str(process.pid)]
        perf = lab.start_relay(argv, "perf", lab.other_cpu)
        time.sleep(0.5)
        release(lab, process, sent["bytes"] * case.receivers)
        perf.signal(signal.SIGINT)
        perf.wait(30)
    finally:
        process.stop()
    report = run("perf", "report", "--stdio", "-q", "--no-children", "-g", "none", "-i", str(path))
    return {"symbols": [" ".join(line.split()) for line in report.splitlines() if line.strip()][:30]}


def wait_empty(process: Process, port: int) -> None:
    """Waits until nothing has waited in the queues of `port` in the process's namespace for a tenth of a second."""
    end, quiet = time.monotonic() + 30, 0
    while quiet < 5 and time.monotonic() < end:
        quiet = 0 if process.udp_queue(port)[1] else quiet + 1
        time.sleep(0.02)


def finish_sink(sink: Process) -> dict:
    """Lets the sink read what waits in its queues, ends it, returns its result."""
    wait_empty(sink, RECEIVER_PORT)
    sink.signal(signal.SIGTERM)
    return sink.result(10)


def check(got: dict, sent: dict, case: Case, relay_name: str) -> None:
    """Every copy at every receiver, once, right, from the right source. Reordering is an error too."""
    copies = sent["sent"] * case.receivers
    wrong = {k: got[k] for k in ("lost", "repeated", "reordered", "corrupt", "truncated", "wrong_source") if got[k]}
    if "digest" in sent:
        for receiver in got["receivers"]:
            if receiver["digest"] != sent["digest"]:
                wrong[f"digest at {receiver['listen']}"] = receiver["digest"]
    elif got["foreign"]:
        wrong["foreign"] = got["foreign"]
    if got["sink_drops"]:
        raise LabError(f"{relay_name}: the sink was too slow, {got['sink_drops']} dropped at its own socket")
    if got["received"] != copies or wrong:
        raise LabError(f"{relay_name}: {got['received']} of {copies} copies arrived, wrong: {wrong or 'nothing else'}")


def paced(lab: Lab, case: Case, relay_name: str, rate: float, seconds: float, latency: bool = False) -> dict:
    """A steady load with the verifying sink: loss, CPU per copy, and with `latency` the time from send to arrival."""
    relay = RELAYS[relay_name]
    lab.offload(case.offload)
    lab.drop_at_ingress(False)
    process = start_relay(lab, case, relay, RECEIVE_BUFFER_PACED)
    options = ["--rate", f"{rate:.0f}", "--seconds", str(seconds)] + (["--timed", "--tick-us", "50"] if latency else [])
    try:
        sink = lab.start_sink(case.receivers, case.ipv6, "--max-seconds", "5", "--idle-ms", "300")
        warm_up(lab, case, process)
        sink.result(10)
        limit = str(seconds + 20)
        extra = sink_options(case) + (["--latency"] if latency else [])
        sink = lab.start_sink(case.receivers, case.ipv6, "--max-seconds", limit, "--idle-ms", "60000", *extra)
        before = process.cpu_ns()
        sent = lab.start_loadgen(case.ipv6, *traffic_options(case), *options).result(seconds + 30)
        wait_empty(process, LISTEN_PORT)
        worker = cpu_spent(process, before, process.cpu_ns())["worker_ns"]
        got = finish_sink(sink)
        drops = process.udp_queue(LISTEN_PORT)[2]
        rss = process.rss_kib()
    finally:
        process.stop()
    copies = sent["sent"] * case.receivers
    figures = {
        "rate": sent["rate"],
        "copies": copies,
        "received": got["received"],
        "lost": copies - got["received"],
        "relay_queue_drops": drops,
        "sink_drops": got["sink_drops"],
        "repeated": got["repeated"],
        "reordered": got["reordered"],
        "corrupt": got["corrupt"],
        "wrong_source": got["wrong_source"],
        "copies_per_cpu_s": round(got["received"] * 1e9 / max(1, worker)),
        "busy": round(worker * 1e-9 / sent["seconds"], 3),
        "rss_kib": rss,
    }
    if latency:
        figures["latency_ns"] = got["latency_ns"]
    return figures


def zero_loss(lab: Lab, case: Case, relay_name: str, seconds: float, low: float, high: float) -> dict:
    """The highest load (datagrams/s) with nothing lost, by bisection to 3 %. The collector drops at ingress and counts,
    so that the sink does not compete with the generator; the generator must reach the rate it was asked for."""
    relay = RELAYS[relay_name]
    lab.offload(case.offload)
    lab.drop_at_ingress(True)
    traffic = TRAFFICS[case.traffic]
    fixed_runs = traffic.run > 1 and "-" not in traffic.size and not traffic.pcap
    segment = ["--segment"] if fixed_runs else []  # cheaper for the generator; cut up before it reaches the relay
    tries = []
    while high / low > 1.03:
        rate = (low * high) ** 0.5
        process = start_relay(lab, case, relay, RECEIVE_BUFFER_PACED)
        try:
            warm_up(lab, case, process)
            before = lab.ingress_counters()[1]
            options = ["--rate", f"{rate:.0f}", "--seconds", str(seconds), *segment]
            sent = lab.start_loadgen(case.ipv6, *traffic_options(case), *options).result(seconds + 30)
            deadline = time.monotonic() + 3
            expected = sent["bytes"] * case.receivers
            while (arrived := lab.ingress_counters()[1] - before) < expected and time.monotonic() < deadline:
                time.sleep(0.05)
        finally:
            process.stop()
        reached, lost = sent["rate"] > 0.98 * rate, expected - arrived
        tries.append({"rate": sent["rate"], "lost_bytes": lost})
        if not reached and lost == 0:
            return {"zero_loss_rate": sent["rate"], "limited_by_generator": True, "tries": tries}
        if lost:
            high = rate
        else:
            low = rate
    return {"zero_loss_rate": low, "limited_by_generator": False, "tries": tries}


def soak(lab: Lab, case: Case, relay_name: str, datagrams: int, rate: float) -> dict:
    """So many datagrams at this rate, the collector dropping at ingress: does the memory of the relay stay flat?

    rss_kib: (seconds, KiB) every second until all is sent. growth_kib: the highest of the last tenth less the highest
    of the first; drops are counted, not refused: the machine may be too slow for the rate.
    """
    relay = RELAYS[relay_name]
    if relay.kind != "samplicator":
        raise LabError("soak is for samplicator relays")
    lab.offload(case.offload)
    lab.drop_at_ingress(True)
    traffic = TRAFFICS[case.traffic]
    segment = ["--segment"] if traffic.run > 1 and "-" not in traffic.size and not traffic.pcap else []
    process = start_relay(lab, case, relay, RECEIVE_BUFFER_PACED)
    try:
        warm_up(lab, case, process)
        options = [*traffic_options(case), *segment, "--count", str(datagrams), "--rate", f"{rate:.0f}"]
        start = time.monotonic()
        generator = lab.start_loadgen(case.ipv6, *options)
        rss = []
        while generator.alive() and process.alive() and time.monotonic() - start < 3 * datagrams / rate + 60:
            rss.append((round(time.monotonic() - start, 1), process.rss_kib()))
            time.sleep(1)
        generator.signal(signal.SIGTERM)
        sent = generator.result(10)
        wait_empty(process, LISTEN_PORT)
        ledger = ledger_of(lab)
        rss.append((round(time.monotonic() - start, 1), process.rss_kib()))
    finally:
        process.stop()
    tenth = max(1, len(rss) // 10)
    return {
        "datagrams": sent["sent"],
        "rate": sent["rate"],
        "matched": sum(row["matched"] for row in ledger["here"]),
        "kernel_drops": sum(row["kernel_drops"] for row in ledger["here"]),
        "copies_sent": sum(row["sent"] for row in ledger["after"]),
        "copies_failed": sum(sum(row["failed"].values()) for row in ledger["after"]),
        "growth_kib": max(k for _, k in rss[-tenth:]) - max(k for _, k in rss[:tenth]),
        "rss_kib": rss,
    }
