"""What is shown of a receiver whose next hop has no link address: pure arithmetic, time made up."""

from __future__ import annotations

import random

import pytest
from samplicator import _fastpath
from samplicator.datapath.account import QUEUE_BYTES, Account, settle
from samplicator.host.neighbors import Answering, Sight

HOP = (3, bytes([198, 18, 0, 9]))
FIELDS = _fastpath.TX_FIELDS


def counted(sent: int, size: int = 1000, calls: int | None = None, failed: int = 0) -> tuple[int, ...]:
    values = dict.fromkeys(FIELDS, 0)
    values |= {"offered": sent + failed, "sent": sent, "sent_bytes": sent * size}
    values |= {"calls": sent if calls is None else calls, "failed_no_neighbor": failed}
    return tuple(values[name] for name in FIELDS)


def look(
    account: Account, totals: tuple[int, ...], state: Answering, now: float, **more: float | bool
) -> dict[str, int]:
    account.take(totals, Sight(HOP, state, float(more.get("since", now)), bool(more.get("late", False))), now)
    settle([account])
    return dict(zip(FIELDS, account.shown(totals), strict=True))


def law(values: dict[str, int]) -> bool:
    failed = sum(value for name, value in values.items() if name.startswith("failed_"))
    return values["offered"] == values["skipped"] + values["sent"] + failed


def test_what_a_silent_next_hop_got_is_held_back_and_then_failed() -> None:
    account = Account()
    shown = look(account, counted(50), Answering.ASKED, 10.0)
    assert (shown["offered"], shown["sent"], shown["sent_bytes"], shown["failed_no_neighbor"]) == (0, 0, 0, 0)
    shown = look(account, counted(500), Answering.ASKED, 10.5)
    kept = shown["offered"] - shown["failed_no_neighbor"]
    assert (kept, shown["sent"]) == (0, 0)
    assert 350 < shown["failed_no_neighbor"] < 450  # what the kernel has no room for is lost already
    shown = look(account, counted(510), Answering.ASKED, 11.0, late=True)
    assert (shown["offered"], shown["sent"], shown["failed_no_neighbor"]) == (510, 0, 510)
    shown = look(account, counted(512, failed=90), Answering.FAILED, 12.0, late=True)
    assert (shown["offered"], shown["sent"], shown["failed_no_neighbor"]) == (602, 0, 602)
    shown = look(account, counted(612, failed=90), Answering.YES, 13.0)
    assert (shown["offered"], shown["sent"], shown["sent_bytes"]) == (702, 100, 100_000)


def test_one_that_answers_in_time_loses_nothing() -> None:
    account = Account()
    look(account, counted(0), Answering.ABSENT, 10.0)
    assert look(account, counted(40), Answering.ASKED, 10.1)["offered"] == 0
    shown = look(account, counted(80), Answering.YES, 10.2, since=10.15)
    assert (shown["offered"], shown["sent"], shown["failed_no_neighbor"]) == (80, 80, 0)


def test_copies_before_its_address_was_lost_are_sent() -> None:
    """It answered at the last look; the table says since when it does not."""
    account = Account()
    look(account, counted(1000), Answering.YES, 10.0)
    shown = look(account, counted(1100), Answering.ASKED, 10.1, since=10.08)
    assert shown["sent"] == pytest.approx(1070, abs=15)
    gone = look(account, counted(1150), Answering.FAILED, 10.2, late=True)
    assert gone["sent"] == shown["sent"]
    assert gone["failed_no_neighbor"] == 1150 - shown["sent"]
    other = Account()
    look(other, counted(1000), Answering.YES, 10.0)
    assert look(other, counted(1100), Answering.FAILED, 10.1)["sent"] == 1100  # they left by its old address


def test_receivers_behind_one_next_hop_share_its_queue() -> None:
    accounts = [Account() for _ in range(4)]
    for account in accounts:
        account.take(counted(100), Sight(HOP, Answering.ASKED, 10.0), 10.0)
    settle(accounts)
    kept = sum(account.held for account in accounts)
    assert 60 < kept < 110
    assert sum(account.kernel_bytes for account in accounts) <= QUEUE_BYTES
    assert max(account.held for account in accounts) - min(account.held for account in accounts) <= 1


def test_another_next_hop_begins_anew() -> None:
    account = Account()
    look(account, counted(50), Answering.ASKED, 10.0)
    totals = counted(60)
    account.take(totals, Sight((4, HOP[1]), Answering.YES, 10.0), 10.1)
    settle([account])
    shown = dict(zip(FIELDS, account.shown(totals), strict=True))
    assert (shown["sent"], shown["failed_no_neighbor"]) == (10, 50)


def test_whatever_happens_no_counter_falls_and_the_law_holds() -> None:
    generator = random.Random(8)
    for _ in range(200):
        account = Account(runs=generator.random() < 0.5)
        sent = failed = calls = 0
        now = 100.0
        last = dict.fromkeys(FIELDS, 0)
        for _ in range(60):
            copies = generator.choice((0, 1, 30, 5000))
            sent, calls = sent + copies, calls + generator.randint(0, copies)
            failed += generator.choice((0, 0, 7))
            now += generator.choice((0.001, 0.1, 3.0))
            state = generator.choice(list(Answering))
            late = state in (Answering.ASKED, Answering.FAILED) and generator.random() < 0.3
            since = now - generator.choice((0.0, 0.05, 10.0))
            shown = look(account, counted(sent, 100, calls, failed), state, now, since=since, late=late)
            assert law(shown)
            assert all(shown[name] >= last[name] for name in FIELDS), (last, shown)
            last = shown
