"""Aliases of observation domains: unique, the same everywhere and after a restart, and never a mix."""

from __future__ import annotations

import mmap
import random
import threading
from pathlib import Path

import pytest
from samplicator._fastpath import ALIAS_BYTES, ALIAS_COUNT, ALIAS_FIELDS, Aliases
from support.flows import IPFIX, V9

HOST = bytes([198, 51, 100, 7])
QUIET = 61


def rows(aliases: Aliases) -> list[dict[str, object]]:
    found, after = [], 0
    while True:
        page, after = aliases.list(after, 100)
        found += [dict(zip(ALIAS_FIELDS, row, strict=True)) for row in page]
        if not after:
            return found


def address(n: int) -> bytes:
    return (0x0A000000 + n).to_bytes(4, "big")


def test_one_for_each_exporter_version_and_domain() -> None:
    aliases = Aliases()
    given = {
        (n, kind, domain): aliases.take(address(n), 2055, kind, domain, 1)
        for n in range(200)
        for kind in (V9, IPFIX)
        for domain in (0, 1, 256, 2**32 - 1)
    }
    assert len(set(given.values())) == len(given) == 1600
    assert 0 not in given.values()
    again = Aliases()
    keys = list(given)
    random.Random(3).shuffle(keys)
    assert {key: again.take(address(key[0]), 4000, *key[1:], 99) for key in keys} == given
    assert aliases.unlisted == 0


def test_ipv6_is_another_exporter() -> None:
    aliases = Aliases()
    four, six = aliases.take(HOST, 1, V9, 0, 1), aliases.take(bytes(15) + b"\7", 1, V9, 0, 1)
    assert four != six
    assert [row["address"] for row in rows(aliases)] in ([HOST, bytes(15) + b"\7"], [bytes(15) + b"\7", HOST])


def test_an_exporter_that_comes_back_from_another_port_keeps_its_alias() -> None:
    aliases = Aliases()
    one = aliases.take(HOST, 40001, V9, 0, 1000)
    assert aliases.take(HOST, 40002, V9, 0, 1000 + QUIET) == one
    assert aliases.take(HOST, 40003, V9, 0, 1000 + 2 * QUIET) == one
    (row,) = rows(aliases)
    assert (row["alias"], row["port"], row["shared"], row["seen_s"]) == (one, 40003, True, 1000 + 2 * QUIET)


def test_two_sessions_of_one_exporter_with_one_domain() -> None:
    aliases = Aliases()
    one, two = aliases.take(HOST, 40001, V9, 0, 1), aliases.take(HOST, 40002, V9, 0, 1)
    assert one != two
    for second in range(2, 200):
        assert aliases.take(HOST, 40001, V9, 0, second) == one
        assert aliases.take(HOST, 40002, V9, 0, second) == two
    # the first falls silent: the other keeps what it has
    assert aliases.take(HOST, 40002, V9, 0, 200 + QUIET) == two
    assert {(row["port"], row["shared"]) for row in rows(aliases)} == {(40001, True), (40002, False)}


def test_whom_another_worker_has_seen_a_second_later_is_not_silent() -> None:
    """Each worker reads the clock once a batch: one may hold it for 1000 while another has written 1001."""
    aliases = Aliases()
    one = aliases.take(HOST, 40001, V9, 0, 1001)
    assert aliases.take(HOST, 40002, V9, 0, 1000) != one
    assert aliases.take(HOST, 40001, V9, 0, 1001) == one


def test_who_was_seen_a_second_later_does_not_make_way() -> None:
    scratch, crowd, first = Aliases(), [], None
    n = 0
    while len(crowd) < 17:
        place = scratch.take(address(n), 2055, V9, 0, 1) % (ALIAS_COUNT // 16)
        first = place if first is None else first
        if place == first:
            crowd.append(address(n))
        n += 1
    aliases = Aliases()
    for exporter in crowd[:16]:
        aliases.take(exporter, 2055, V9, 0, 1001)
    assert aliases.take(crowd[16], 2055, V9, 0, 1000) != 0  # its session's own, in another set
    assert {row["address"] for row in rows(aliases)} == set(crowd)


def test_a_table_of_another_boot_is_of_the_silent() -> None:
    aliases = Aliases()
    one = aliases.take(HOST, 40001, V9, 0, 500_000)
    assert aliases.take(HOST, 40002, V9, 0, 20) == one


def test_who_comes_back_after_somebody_took_over_gets_another() -> None:
    aliases = Aliases()
    one = aliases.take(HOST, 40001, V9, 0, 1)
    assert aliases.take(HOST, 40002, V9, 0, 1 + QUIET) == one
    other = aliases.take(HOST, 40001, V9, 0, 2 + QUIET)
    assert other != one
    assert aliases.take(HOST, 40001, V9, 0, 500) == other


def test_a_quick_restart_that_the_exporter_tells_of() -> None:
    """Version 9 says when the exporter started: later than the holder was last seen."""
    aliases = Aliases()
    one = aliases.take(HOST, 40001, V9, 0, 1000)
    assert aliases.take(HOST, 40002, V9, 0, 1005, True, 1003) == one
    assert aliases.take(HOST, 40003, V9, 0, 1006, True, 1006) != one  # it may as well be another beside it
    assert aliases.take(HOST, 40004, V9, 0, 1010, True, 900) != one
    assert aliases.take(HOST, 40005, V9, 0, 1010, False, 1009) != one


def test_unknown_templates_do_not_take_over() -> None:
    """The collector would decode with those of the session before."""
    aliases = Aliases()
    one = aliases.take(HOST, 40001, V9, 0, 1)
    assert aliases.take(HOST, 40002, V9, 0, 1 + QUIET, False) != one


def test_a_file_outlives_the_process(tmp_path: Path) -> None:
    """Two sessions with one domain get the same again, whoever comes first."""
    path = tmp_path / "domains"
    path.write_bytes(bytes(ALIAS_BYTES))

    def opened() -> Aliases:
        with path.open("r+b") as file:
            return Aliases(mmap.mmap(file.fileno(), ALIAS_BYTES))

    aliases = opened()
    one, two = (aliases.take(HOST, port, V9, 0, 100) for port in (40001, 40002))
    del aliases
    aliases = opened()
    assert [aliases.take(HOST, port, V9, 0, 105) for port in (40002, 40001)] == [two, one]
    assert [aliases.take(HOST, port, V9, 0, 3) for port in (40002, 40001)] == [two, one]  # the host was restarted
    del aliases
    path.write_bytes(b"something else" + bytes(ALIAS_BYTES - 14))
    assert rows(opened()) == []


def test_wrong_memory() -> None:
    with pytest.raises(ValueError, match="not 4"):
        Aliases(bytearray(100))
    with pytest.raises(ValueError, match="kind 9 or 10"):
        Aliases().take(HOST, 1, 5, 0, 1)


def test_more_exporters_than_entries() -> None:
    """Who is alive stays; newcomers without room have a number all the same, which is not another's."""
    aliases = Aliases()
    kept = {n: aliases.take(address(n), 1, V9, 0, 1) for n in range(1000)}
    for n in range(1000):
        assert aliases.take(address(n), 1, V9, 0, 2) == kept[n]  # seen twice: not what a forged source does
    given = {}
    for n in range(1000, 3 * ALIAS_COUNT):
        given[n] = aliases.take(address(n), 1, V9, 0, 2)
    assert aliases.unlisted > ALIAS_COUNT // 2
    assert 0 not in given.values()
    assert {n: aliases.take(address(n), 1, V9, 0, 300) for n in range(1000)} == kept
    alive = set(kept.values())
    assert not alive & set(given.values())
    for n in range(10_000_000, 10_000_000 + ALIAS_COUNT):  # all are silent now: newcomers find room
        aliases.take(address(n), 1, V9, 0, 2000)
    assert len(rows(aliases)) <= ALIAS_COUNT
    listed = [row["alias"] for row in rows(aliases)]
    assert len(listed) == len(set(listed))


def test_threads_agree() -> None:
    """Workers that see sessions of the same exporters at the same time (under the GIL here: the order differs)."""
    aliases = Aliases()
    given: list[dict[tuple[int, int], int]] = [{} for _ in range(4)]

    def run(k: int) -> None:
        order = list(range(500))
        random.Random(k).shuffle(order)
        for n in order:
            given[k][(n, k)] = aliases.take(address(n), 50000 + k, V9, 0, 1)

    threads = [threading.Thread(target=run, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    everything = [alias for one in given for alias in one.values()]
    assert len(set(everything)) == 2000
