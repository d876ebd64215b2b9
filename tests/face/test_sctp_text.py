"""`samplicator sctp`, for every state that there is: golden/sctp.txt has what an operator reads."""

from __future__ import annotations

from pathlib import Path

from samplicator.cli import sctp
from samplicator.readings import AssociationReading, CollectorReading, TransportSessionReading
from samplicator.views.gateways import sessions
from samplicator.views.sctp import page

GOLDEN = Path(__file__).with_name("golden") / "sctp.txt"


def collector(
    state: str, *, backup: bool = False, why: str = "", given_up: int = 0, flows: int = 104
) -> CollectorReading:
    role, place = ("backup", "192.0.2.11:9001") if backup else ("primary", "192.0.2.10:9000")
    return CollectorReading(role, place, state, why, flows, flows - 20 if flows else 0, given_up)


def export(
    name: str, *collectors: CollectorReading, reliability: str = "full", mode: str = ""
) -> TransportSessionReading:
    association = AssociationReading(
        reliability=reliability,
        mode=mode,
        buffer_limit=1024,
        fail_over_ms=25,
        restore_s=25,
        fail_overs=2 if mode else 0,
        waiting_flows=7,
        dropped_resources=3,
        dropped_failure=5,
        collectors=collectors,
    )
    first = collectors[0]
    return TransportSessionReading(
        "sctp", "out", name, "198.51.100.7:50001", first.place, first.state, first.why, 1, 84, 9000, 0, 2, association
    )


LOST = "the network lost it"
READINGS = [
    export("a-initialising", collector("initialising", flows=0)),
    export("b-connected", collector("connected"), collector("connected", backup=True, flows=0), mode="redundant"),
    export(
        "c-re-establishing",
        collector("re-establishing", why=LOST),
        collector("fail-over", backup=True),
        mode="redundant",
        reliability="partial",
    ),
    export(
        "d-both-down",
        collector("re-establishing", why=LOST),
        collector("initialising", backup=True, why="connection refused", flows=0),
        mode="fail-over",
    ),
    export(
        "e-not-connected", collector("connected"), collector("not connected", backup=True, flows=0), mode="fail-over"
    ),
    export("f-none", collector("connected", given_up=12), reliability="none"),
    export("g\x1b[31m", collector("re-establishing", why="\x1b]0;x\x07")),
    TransportSessionReading(
        "sctp",
        "out",
        "h-impossible",
        "198.51.100.7:50001",
        "192.0.2.10:9000",
        "initialising",
        "no SCTP here",
        0,
        0,
        0,
        0,
    ),
    TransportSessionReading(
        "sctp", "in", "in", "198.51.100.8:4739", "198.51.100.8:4739", "connected", "", 1, 10, 999, 0, 4
    ),
    TransportSessionReading(
        "tcp", "in", "in", "198.51.100.9:4739", "198.51.100.9:4739", "connected", "", 1, 10, 999, 0
    ),
]


def shown() -> str:
    value = page(READINGS, 0, 1000)
    nothing = page(READINGS[-1:], 0, 1000)
    parts = [sctp.lines(value), sctp.verbose_lines(value), sctp.lines(nothing), sctp.verbose_lines(nothing)]
    return "\n--\n".join("\n".join(part) for part in parts) + "\n"


def test_every_state_is_shown() -> None:
    assert shown() == GOLDEN.read_text()
    assert {one.state for item in READINGS if item.association for one in item.association.collectors} == {
        "initialising",
        "connected",
        "not connected",
        "re-establishing",
        "fail-over",
    }


def test_nothing_that_a_terminal_would_obey_is_shown() -> None:
    assert shown().replace("\n", "").isprintable()


def test_pages_follow_each_other() -> None:
    whole, after, found = page(READINGS, 0, 1000), 0, []
    while after is not None:
        part = page(READINGS, after, 3)
        found += [*part["exporters"], *part["exports"]]
        after = part["after"]
    assert found == [*whole["exporters"], *whole["exports"]]
    assert len(found) == len(READINGS) - 1


def test_associations_to_one_receiver() -> None:
    """Whatever its name is, and not those of a listener that has the same name."""
    for name in ("b-connected", "g\x1b[31m"):
        found = page(READINGS, 0, 1000, name)
        assert [one["receiver"] for one in found["exports"]] == [name]
        assert found["exporters"] == []
    assert page(READINGS, 0, 1000, "in") == {"exporters": [], "exports": [], "after": None}


def test_sessions_whose_messages_a_backup_gets() -> None:
    rows = sessions(READINGS, 0, 1000)["sessions"]
    assert [row["name"] for row in rows if row["backup_in_use"]] == ["c-re-establishing"]
    assert {row["gateway"] for row in rows} == {"sctp", "tcp"}  # one without an association, too


if __name__ == "__main__":  # writes the text anew; read the difference before it is committed
    GOLDEN.write_text(shown())
