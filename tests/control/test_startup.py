"""What a start says: where copies go and from whose address; engines and their reasons are for `explain`."""

from __future__ import annotations

from dataclasses import replace

from samplicator.config.address import address_text
from samplicator.plan.planner import compile
from samplicator.readings import Readings, ReceiverReading
from samplicator.service import startup
from support.hosts import Load, free_port, host


def test_the_paragraph_names_no_engine(load: Load) -> None:
    text = f'[[listener]]\nname = "in"\nlisten = ["127.0.0.1:{free_port()}"]\n'
    for name, extra in (("own", ""), ("spoofed", "spoof = true"), ("frames", 'spoof = true\nengine = "packet"')):
        text += f'[[receiver]]\nname = "{name}"\nto = "192.0.2.1:9995"\n{extra}\n'
    spec = compile(load(text + '[[rule]]\nto = ["own", "spoofed", "frames"]\n'), {}, host())
    rows = tuple(
        ReceiverReading(
            r.name,
            r.udp.host,
            address_text(r.udp.address),
            r.udp.port,
            "spoof" if r.spoof else "own",
            r.engine,
            r.udp.engine_why,
            {},
            True,
            1,
        )
        for r in spec.receivers
    )
    rows = (*rows[:2], replace(rows[2], up=False, state="unreachable", state_why="there is no route to the receiver"))
    readings = Readings(1, (), rows, (), (), 0, 0.0)
    lines = startup.paragraph("1", spec, readings, {}, ["something"]).splitlines()
    assert lines[-4:] == [
        "receiver own: 192.0.2.1:9995, from this host's address",
        "receiver spoofed: 192.0.2.1:9995, spoofed",
        "receiver frames: 192.0.2.1:9995, spoofed; UNREACHABLE now (there is no route to the receiver), samplicator "
        "keeps trying",
        "degraded: something",
    ]
    assert all(r.udp.engine_why not in "\n".join(lines) for r in spec.receivers)
