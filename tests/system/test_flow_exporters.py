"""Exporters as they are, through the daemon to nfcapd and nfacctd: messages filled up with zeros, template packets with
a counter of their own, numbers that are none, templates sent once; and a wall clock that is set while all this runs.

The clock is set for the daemon alone: a small library that the test compiles adds what a file says to CLOCK_REALTIME.
"""

from __future__ import annotations

import itertools
import shutil
import struct
import subprocess
import time
from pathlib import Path

import pytest
from support import flows as model
from support.decoders import NAMES, ROWS, Nfacctd, Nfcapd, a_template, come, configuration, record, send
from support.flows import IPFIX, V9
from support.lab import Lab
from support.process import wait_for

SHIM = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static volatile long long *step_ns;

__attribute__((constructor)) static void open_step(void)
{
    int fd = open(getenv("CLOCK_STEP_FILE"), O_RDONLY);
    void *map = fd < 0 ? MAP_FAILED : mmap(0, 8, PROT_READ, MAP_SHARED, fd, 0);
    step_ns = map == MAP_FAILED ? 0 : map;
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    int status = (int)syscall(SYS_clock_gettime, clock, now);
    if (!status && clock == CLOCK_REALTIME && step_ns) {
        long long ns = now->tv_sec * 1000000000LL + now->tv_nsec + *step_ns;
        now->tv_sec = ns / 1000000000;
        now->tv_nsec = ns % 1000000000;
    }
    return status;
}
"""


def data(kind: int, i: int) -> bytes:
    return model.a_set(256, *[record(i, k) for k in range(ROWS)], pad=4 if kind == V9 else 1)


def message(kind: int, sequence: int, *sets: bytes, count: int = ROWS, uptime: int = 1000) -> bytes:
    if kind == V9:
        return model.v9(sequence, 1, *sets, count=count, uptime=uptime)
    return model.ipfix(sequence, 1, *sets)


def exporter(kind: int, relay_api: object) -> dict[str, object]:
    (row,) = [row for row in relay_api["exporters"] if row["protocol"] == NAMES[kind]]  # type: ignore[index]
    return row


@pytest.mark.parametrize("kind", [V9, IPFIX], ids=["netflow9", "ipfix"])
@pytest.mark.parametrize("zeros", [8, 100])
def test_filled_up_with_zeros(lab: Lab, kind: int, zeros: int) -> None:
    """Sampled 1 in 3 with no sequence error, and no datagram is malformed."""
    nfcapd, nfacctd = Nfcapd(lab), Nfacctd(lab)
    relay = lab.samplicator(configuration(lab, freq=3))
    step = 1 if kind == V9 else ROWS
    first = message(kind, 0, a_template(kind), count=1)
    start = 1 if kind == V9 else 0
    feed = [first, *[message(kind, start + step * i, data(kind, i)) for i in range(60)]]
    send(lab, [payload + bytes(zeros) for payload in feed])
    come(relay, 61)
    metrics = relay.at_rest()
    assert metrics.total("flow_malformed_datagrams_total") == 0
    assert nfcapd.end() == (20 * ROWS, 0)
    assert nfacctd.end() == (20 * ROWS, 0)


def test_template_packets_with_their_own_counter(lab: Lab) -> None:
    """Both collectors decode every flow, sampled too, and the relay reports no loss but the real one."""
    nfcapd, nfacctd = Nfcapd(lab), Nfacctd(lab)
    relay = lab.samplicator(configuration(lab, freq=2))
    feed, own, number = [], 50, 5_000_000
    for turn in range(5):
        feed.append(message(V9, own, a_template(V9), count=1, uptime=1000 + 1000 * turn))
        own += 1
        for i in range(40):
            if (turn, i) != (3, 20):
                feed.append(message(V9, number, data(V9, 40 * turn + i), uptime=1010 + 1000 * turn + i))
            number += 1
    send(lab, feed)
    come(relay, len(feed))
    relay.at_rest()
    wait_for(lambda: exporter(V9, relay.api("exporters"))["lost"] == 1, "the loss to be final", 10)
    row = exporter(V9, relay.api("exporters"))
    assert (row["lost"], row["restarts"], row["datagrams"]) == (1, 0, len(feed))
    sent = -(-(len(feed) - 5) // 2)
    assert nfcapd.end()[0] == sent * ROWS
    assert nfacctd.end()[0] == sent * ROWS


@pytest.mark.parametrize("kind", [V9, IPFIX], ids=["netflow9", "ipfix"])
def test_numbers_that_are_none(lab: Lab, kind: int) -> None:
    """An exporter that writes 0 for ever: decoded by both, every copy still says 0, nothing is lost or restarted."""
    nfcapd, nfacctd = Nfcapd(lab), Nfacctd(lab)
    tap = lab.tap(1, lambda seen: seen.port == 9995)
    relay = lab.samplicator(configuration(lab, freq=2))
    feed = [message(kind, 0, a_template(kind), count=1), *[message(kind, 0, data(kind, i)) for i in range(60)]]
    send(lab, feed)
    come(relay, 61)
    copies = tap.collect(31)
    at = 12 if kind == V9 else 8
    assert {struct.unpack_from(">I", seen.payload, at)[0] for seen in copies} == {0}
    row = exporter(kind, relay.api("exporters"))
    assert (row["lost"], row["restarts"], row["numbered"]) == (0, 0, False)
    assert nfcapd.end()[0] == 30 * ROWS
    assert nfacctd.end()[0] == 30 * ROWS


def test_v9_numbers_that_count_flows(lab: Lab) -> None:
    nfcapd, nfacctd = Nfcapd(lab), Nfacctd(lab)
    relay = lab.samplicator(configuration(lab))
    feed = [message(V9, 0, a_template(V9), count=1)]
    feed += [message(V9, ROWS * i, data(V9, i)) for i in range(80) if i != 60]
    send(lab, feed)
    come(relay, len(feed))
    wait_for(lambda: exporter(V9, relay.api("exporters"))["lost"] == ROWS, "the loss to be final", 10)
    row = exporter(V9, relay.api("exporters"))
    assert (row["lost"], row["restarts"], row["unit"]) == (ROWS, 0, "records")
    assert nfcapd.end()[0] == 79 * ROWS
    assert nfacctd.end()[0] == 79 * ROWS


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no compiler")
def test_the_wall_clock_is_set(lab: Lab, tmp_path: Path) -> None:
    """By -5 s, +25 h, +50 days and back: templates, exporters, numbers, receivers and health stay as they were."""
    source, library, step = tmp_path / "step.c", tmp_path / "step.so", tmp_path / "step"
    source.write_text(SHIM)
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", library, source], check=True)
    step.write_bytes(bytes(8))
    text = configuration(lab, second=False)
    relay = lab.samplicator(text, env={"LD_PRELOAD": str(library), "CLOCK_STEP_FILE": str(step)})
    numbers = itertools.count()
    sock = send(lab, [message(V9, next(numbers), a_template(V9), count=1)])
    sent = 1
    for seconds in (0, -5, 25 * 3600, 50 * 86400, -3 * 86400, 0):
        with open(step, "r+b") as file:  # in place: the daemon has it mapped
            file.write(struct.pack("<q", seconds * 10**9))
        send(lab, [message(V9, next(numbers), data(V9, i)) for i in range(30)], sock)
        sent += 30
        come(relay, sent)
        passes = relay.metrics().value("worker_wakeups_total", worker="0")
        wait_for(lambda p=passes: relay.metrics().value("worker_wakeups_total", worker="0") >= p, "a pass")  # type: ignore[misc]
        assert relay.get("/healthz")[0] == 200
        assert relay.get("/readyz")[0] == 200
        row = exporter(V9, relay.api("exporters"))
        assert (row["datagrams"], row["lost"], row["restarts"], row["templates"]) == (sent, 0, 0, 1)
        assert row["silent_seconds"] < 60
        assert abs(row["last_seen_unix"] - time.time() - seconds) < 60, "the daemon's clock is set indeed"
        status = relay.api("status")
        assert 0 <= status["uptime_seconds"] < 600
        metrics = relay.metrics()
        assert metrics.total("flow_evicted_total") + metrics.total("flow_expired_total") == 0
        assert metrics.value("forward_latency_seconds_sum") < 600
    nfcapd = Nfcapd(lab)
    relay.hangup(text.replace("freq = 1", "freq = 1\ntemplate_refresh_packets = 5"))
    send(lab, [message(V9, next(numbers), data(V9, i)) for i in range(30)], sock)
    come(relay, sent + 30)
    relay.at_rest()
    assert nfcapd.end()[0] >= 20 * ROWS
    relay.check_laws()
