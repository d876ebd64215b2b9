"""The face towards Python: what each constructor refuses, what each handle keeps, and that the stub names just this."""

from __future__ import annotations

import ast
import gc
import socket
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import pytest
import samplicator
from samplicator import _fastpath
from samplicator._fastpath import Plan, RxCounters, RxSocket, Tx, TxCounters, Worker

V4, V6, ANY = bytes([198, 18, 0, 1]), bytes(16), (0, bytes(16), bytes(16))


def tx(engine: int = _fastpath.ENGINE_UDP, fd: int = -1, **options: Any) -> Tx:
    address = options.pop("address", V4)
    port = options.pop("port", 2055)
    counters = options.pop("counters", None) or TxCounters()
    return Tx(engine, fd, counters, address, port, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"engine": 99},
        {"engine": -1},
        {"address": b""},
        {"address": bytes(5)},
        {"address": bytes(15)},
        {"port": 0},
        {"port": -1},
        {"port": 65536},
        {"ttl": -1},
        {"ttl": 256},
        {"tos": -2},
        {"tos": 256},
        {"freq": 0},
        {"freq": -1},
        {"freq": 1 << 32},
        {"pause_us": -1},
        {"pause_us": 1 << 32},
        {"mtu": 67},
        {"mtu": -1},
        {"mtu": 1279, "address": V6},
        {"checksum": False, "address": V6},
        {"source": (V6, 1)},
        {"source": (V4, -1)},
        {"source": (V4, 65536)},
        {"source": (V4, 1), "address": V6},
        {"source": (V4, 1), "engine": _fastpath.ENGINE_TRANSPARENT},
    ],
)
def test_tx_refuses(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        tx(**options)


@pytest.mark.parametrize("options", [{"address": "198.18.0.1"}, {"address": None}, {"source": ("198.18.0.1", 1)}])
def test_tx_wants_bytes(options: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        tx(**options)


def test_fallback_shares_its_owners_counters_and_has_none() -> None:
    counters = TxCounters()
    second = tx(counters=counters, address=V6)
    first = tx(counters=counters, fallback=second)
    with pytest.raises(ValueError):
        tx(counters=counters, fallback=first)
    with pytest.raises(ValueError):
        tx(fallback=second)


def test_mtu_may_be_written() -> None:
    way = tx(mtu=1500)
    way.mtu = 68
    assert way.mtu == 68
    way.mtu = 65536  # loopback
    assert way.mtu == 65535
    for wrong in (67, 0, -1):
        with pytest.raises(ValueError):
            way.mtu = wrong
    assert way.mtu == 65535


@pytest.mark.parametrize("listener", [-1, 65536])
def test_socket_refuses_listener(listener: int) -> None:
    with pytest.raises(ValueError):
        RxSocket(0, RxCounters(), listener)


def test_socket_tells_what_it_is() -> None:
    handle = RxSocket(7, RxCounters(), 65535)
    assert (handle.fd, handle.listener) == (7, 65535)


@pytest.mark.parametrize(
    "rule",
    [
        ([ANY], None, [1], False),
        ([ANY], None, [-1], False),
        ([ANY], [-1], [0], False),
        ([ANY], [65536], [0], False),
        ([ANY], [1 << 40], [0], False),
        ([ANY], [0, 1 << 70], [0], False),
        ([(5, bytes(16), bytes(16))], None, [0], False),
        ([(4, bytes(4), bytes(16))], None, [0], False),
        ([(4, bytes(16), bytes(15))], None, [0], False),
    ],
)
def test_plan_refuses_rule(rule: Any) -> None:
    with pytest.raises(ValueError):
        Plan(0, [], [tx()], [rule])


@pytest.mark.parametrize(
    "arguments",
    [
        (0, [None], [], []),
        (0, [], [None], []),
        (0, [TxCounters()], [], []),
        (0, [], [RxCounters()], []),
        (0, None, [], []),
        (0, [], [], None),
        (0, [], [], [([(4, "x" * 16, bytes(16))], None, [], False)]),
        (0, [], [], [([(4, bytes(16), "x" * 16)], None, [], False)]),
        (0, [], [], [([(4, bytearray(16), bytes(16))], None, [], False)]),
    ],
)
def test_plan_wants_its_types(arguments: Any) -> None:
    """Nothing that Python can hand over may reach memory unchecked."""
    with pytest.raises(TypeError):
        Plan(*arguments)


@pytest.mark.parametrize("address", [b"", bytes(5), bytes(17)])
def test_route_refuses_address(address: bytes) -> None:
    with pytest.raises(ValueError):
        Plan(0, [], [], []).route(address, 0)


def test_plan_keeps_its_parts_alive() -> None:
    """Handles that only the plan knows are not freed under the worker."""
    plan = Plan(3, [RxSocket(0, RxCounters(), 0)], [tx(freq=2)], [([ANY], None, [0], False)])
    gc.collect()
    assert plan.generation == 3
    assert plan.route(V4, 0) == ((0,), (0,), False)


@pytest.mark.parametrize(
    "options",
    [
        {"batch": 0},
        {"batch": -1},
        {"batch": _fastpath.BATCH_MAX + 1},
        {"max_datagram": 0},
        {"max_datagram": -1},
        {"max_datagram": 65536},
        {"sessions": 0},
        {"sessions": -1},
        {"sessions": (1 << 24) + 1},
        {"send_buffer": -1},
    ],
)
def test_worker_refuses(options: dict[str, int]) -> None:
    with pytest.raises(ValueError):
        Worker(**options)


def test_dry_plan_cannot_be_published() -> None:
    worker = Worker(batch=1, sessions=8)
    with pytest.raises(ValueError):
        worker.publish(Plan(1, [], [tx()], []))
    counters = TxCounters()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        half_dry = tx(fd=sock.fileno(), counters=counters, fallback=tx(counters=counters, address=V6))
        with pytest.raises(ValueError):
            worker.publish(Plan(1, [], [half_dry], []))
    assert worker.generation == -1


def test_plan_belongs_to_one_worker() -> None:
    plan = Plan(1, [], [], [])
    Worker(batch=1, sessions=8).publish(plan)
    with pytest.raises(ValueError):
        Worker(batch=1, sessions=8).publish(plan)


def test_worker_refuses_negative_drain() -> None:
    with pytest.raises(ValueError):
        Worker(batch=1, sessions=8).stop(-1)


@pytest.mark.parametrize("port", [-1, 65536])
def test_worker_refuses_to_withhold(port: int) -> None:
    worker = Worker(batch=1, sessions=8)
    with pytest.raises(ValueError, match="port"):
        worker.withhold(port)


def test_a_port_is_let_go_of_by_a_worker_that_runs() -> None:
    worker = Worker(batch=1, sessions=8)
    assert worker.let_go
    worker.publish(Plan(1, [], [], []))
    worker.withhold(2055)
    assert not worker.let_go
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        for ports in ((), (2055,), (2055, 514)):
            end = time.monotonic() + 20
            while not worker.let_go and time.monotonic() < end:
                time.sleep(0.001)
            assert worker.let_go
            worker.withhold(*ports)
    finally:
        worker.stop()
        thread.join()


def test_worker_and_plan_are_freed_together() -> None:
    """They refer to one another; the collector takes both, with descriptors and memory."""

    class Owner:
        pass

    owner = Owner()
    worker = Worker(batch=1, sessions=8)
    for generation in range(3):
        worker.publish(Plan(generation, [], [], []))
    owner.worker = worker  # type: ignore[attr-defined]
    gone = weakref.ref(owner)
    del owner, worker
    gc.collect()
    assert gone() is None


def test_stub_names_what_there_is() -> None:
    stub = ast.parse((Path(samplicator.__file__).parent / "_fastpath.pyi").read_text())
    named: set[str] = set()
    for node in stub.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            named.add(node.target.id)
        elif isinstance(node, ast.ClassDef):
            named.add(node.name)
            for item in node.body:
                if isinstance(item, ast.FunctionDef) and item.name != "__new__":
                    named.add(f"{node.name}.{item.name}")
                elif isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                    named.add(f"{node.name}.{item.target.id}")
    named |= {node.name for node in stub.body if isinstance(node, ast.FunctionDef)}
    there = {name for name in vars(_fastpath) if not name.startswith("_")}
    for name in list(there):
        if isinstance(kind := getattr(_fastpath, name), type):
            there |= {f"{name}.{member}" for member in vars(kind) if not member.startswith("_")}
    assert there - {"urandom"} == named  # what _fastpath itself imports
