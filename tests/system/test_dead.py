"""Ten receivers, nine of them dead in three ways, at 20,000 datagrams a second: the tenth must not notice.

The ways: three at addresses that no neighbor answers for; three at closed ports (ICMP port unreachable); three
collectors that never read, behind a full queue: the device towards them has a token bucket far too slow (tc tbf), at
one collector with a long queue (copies stay charged to the sending socket until it is full: EAGAIN), at another with
a short one (the queue drops: ENOBUFS).
"""

from __future__ import annotations

import pytest
from support.lab import Lab, run

RATE, SECONDS = 20_000, 5
ALIVE = 9995


def configuration(lab: Lab, spoof: bool) -> str:
    targets = {f"unresolved{n}": f"{lab.peer4(1)[:-1]}{100 + n}:9000" for n in range(3)}
    targets |= {f"refused{n}": f"{lab.peer4(1)}:{9100 + n}" for n in range(3)}
    targets |= {"full0": f"{lab.peer4(2)}:9200", "full1": f"{lab.peer4(2)}:9201", "full2": f"{lab.peer4(3)}:9202"}
    targets["alive"] = f"{lab.peer4(1)}:{ALIVE}"
    text = '[[listener]]\nname = "in"\nlisten = ["0.0.0.0:2055"]\n'
    for name, to in targets.items():
        text += f'[[receiver]]\nname = "{name}"\nto = "{to}"\nspoof = {str(spoof).lower()}\n'
        text += f'engine = "{"raw" if spoof else "udp"}"\n'
    return text + "[[rule]]\nto = [" + ", ".join(f'"{name}"' for name in targets) + "]\n"


@pytest.mark.slow
@pytest.mark.alone  # 200,000 copies a second
@pytest.mark.parametrize("spoof", [False, True], ids=["udp", "raw-spoofed"])
def test_the_tenth_receiver_does_not_notice(make_lab, spoof: bool) -> None:
    lab: Lab = make_lab(collectors=3)
    for device, queue in (("r2", "64mb"), ("r3", "20kb")):
        words = ("tbf", "rate", "256kbit", "burst", "4kb", "limit", queue)
        run("tc", "-n", lab.relay.name, "qdisc", "add", "dev", device, "root", *words)
    for link, ports in ((2, (9200, 9201)), (3, (9202,))):
        for port in ports:
            lab.collector_socket(link, port)  # bound, and never read
    relay = lab.samplicator(configuration(lab, spoof))
    sink = lab.sink(1, f"{lab.peer4(1)}:{ALIVE}")
    load = lab.load(
        "--to", f"{lab.relay4()}:2055", "--source-base", "198.18.64.0", "--exporters", 20, "--source-port", 50_000,
        "--seconds", SECONDS, "--rate", RATE, "--size", "100-300", "--run", 4,
    )  # fmt: skip
    sent = load.result(SECONDS + 20)["sent"]
    got = lab.tally(sink)
    metrics = relay.check_laws()
    assert sent > 0.99 * RATE * SECONDS
    assert metrics.total("receive_datagrams_total") == sent, (
        f"kernel drops {metrics.total('receive_kernel_drops_total')}"
    )
    assert (got["received"], got["lost"], got["repeated"], got["reordered"], got["corrupt"]) == (sent, 0, 0, 0, 0)
    assert metrics.value("send_datagrams_total", receiver="alive") == sent
    assert metrics.total("send_failed_datagrams_total", receiver="alive") == 0

    def errors(name: str) -> dict[str, int]:
        return {
            row["reason"]: int(value)
            for row, value in metrics.select("send_failed_datagrams_total", receiver=name)
            if value
        }

    report = {name: errors(name) for name in sorted(metrics.names("receiver", "send_offered_datagrams_total"))}
    for name in report:
        assert metrics.value("send_offered_datagrams_total", receiver=name) == sent
    for name in ("full0", "full1", "full2"):
        assert set(report[name]) == {"no_buffer_space"}, report
        assert report[name]["no_buffer_space"] > sent // 2, report
    if not spoof:  # ICMP errors to spoofed copies go to the exporter: the relay cannot see those two
        for name in ("unresolved0", "unresolved1", "unresolved2"):
            assert set(report[name]) <= {"no_neighbor", "no_route", "no_buffer_space"}, report
            assert report[name], report
        for name in ("refused0", "refused1", "refused2"):
            assert set(report[name]) == {"refused"}, report
            assert report[name]["refused"] > 10, report
