"""Through doors all that the worker does holds as by UDP: templates, numbers, pools, standbys, reloads, the laws.

What a datagram goes through by its bytes and sizes is in test_property.py, what a message may be in tests/unit.
"""

from __future__ import annotations

import struct
import time

import pytest
from samplicator._fastpath import POOL_EXPORTER_HASH, POOL_ROUND_ROBIN, Flow
from samplicator.gateways.door import Datagram
from samplicator.plan.sessions import Door, DoorSpec
from support import flows as model
from support.gateway import DoorListener, DoorSink, DoorStand, Loopback, door_listener, door_sink, door_way
from support.pools import ROWS, domain_of, new_relay, parsed
from support.worker import ANY, Relay, wait_until

FAMILIES = {4: b"\xc6\x12\0\1", 6: b"\x20\x01\x0d\xb8" + bytes(11) + b"\1"}


@pytest.mark.parametrize("balance", [POOL_EXPORTER_HASH, POOL_ROUND_ROBIN])
def test_pools_behind_doors_decode_everything(balance: int) -> None:
    """Every record is decoded once, whoever gets it; where exporters have homes a member goes down and comes back."""
    with new_relay() as relay:
        s = DoorStand(relay, 24)
        s.start([(7, balance, [(0, 1), (1, 1), (2, 2), (3, 1)])], [4])
        s.teach()
        for _ in range(4):
            s.data()
        for down in (True, False) if balance == POOL_EXPORTER_HASH else ():
            s.down(2, down)
            for _ in range(4):
                s.data()
        s.check()


def test_a_standby_behind_a_door_gets_templates_first() -> None:
    with new_relay() as relay:
        s = DoorStand(relay, 10, 2)
        s.ways[1].tx.standby(True)
        s.start([], [0, 1])
        s.teach()
        s.data()
        assert (s.sinks[1].payloads, s.ways[1].values()["offered"]) == ([], 0)
        s.ways[1].tx.standby(False)
        relay.workers[0].wake()
        wait_until(lambda: not s.ways[1].tx.waiting, "the standby to wake")
        s.settle()
        assert sorted(map(domain_of, s.sinks[1].payloads)) == list(range(10))
        sink = s.sinks[1]
        assert isinstance(sink, DoorSink)
        assert [one.arrival_ns for one in sink.datagrams] == [0] * 10  # what is replayed has not come by now
        for _ in range(3):
            s.data()
        assert s.collectors[1].records == 10 * 3 * ROWS
        assert (s.collectors[1].sequence_errors, s.collectors[1].unknown_sets) == (0, 0)


@pytest.mark.parametrize("family", [4, 6])
def test_a_sampled_stream_closes_up_behind_a_door(family: int) -> None:
    """freq 3: templates all the same, and sequence numbers without holes; who gets all, gets the bytes untouched."""
    with Relay(flow=Flow(1 << 22)) as relay:  # type: ignore[arg-type]
        listener, whole, thin = door_listener(relay), door_sink(relay), door_sink(relay)
        listener.handle.set_flow(True)
        door_way(relay, whole)
        door_way(relay, thin, freq=3)
        relay.go()
        fields = [(8, 4), (12, 4)]
        sent = []
        for n in range(60):
            sets = [model.a_set(256, bytes(8) * 3, pad=4)]
            if n % 20 == 0:
                sets.insert(0, model.a_set(0, model.template(256, fields)))
            sent.append(model.v9(n, 1, *sets))
        listener.put(*(Datagram(FAMILIES[family], 2055, payload, 1000 + n) for n, payload in enumerate(sent)))
        whole.expect(60)
        assert whole.payloads == sent
        assert [one.arrival_ns for one in whole.datagrams] == [1000 + n for n in range(60)]
        collector = model.Collector()
        thin.expect(relay.ways[1].values()["sent"])
        for payload in thin.payloads:
            collector.take(0, payload)
        assert 20 <= len(thin.payloads) < 30
        assert (collector.sequence_errors, collector.unknown_sets) == (0, 0)
        assert {one.address for one in thin.datagrams} == {FAMILIES[family]}


def test_templates_are_refreshed_behind_a_door() -> None:
    with Relay(flow=Flow(1 << 22)) as relay:  # type: ignore[arg-type]
        listener, sink = door_listener(relay), door_sink(relay)
        listener.handle.set_flow(True)
        door_way(relay, sink, refresh=(10, 0, 0, 0))
        relay.go()
        template = model.a_set(0, model.template(256, [(8, 4), (12, 4)]))
        listener.put(Datagram(FAMILIES[4], 2055, model.v9(0, 1, template)))
        for n in range(1, 61):
            listener.put(Datagram(FAMILIES[4], 2055, model.v9(n, 1, model.a_set(256, bytes(16), pad=4))))
            wait_until(lambda n=n: relay.received() == n + 1, "one more")  # type: ignore[misc]
        wait_until(lambda: sink.read() >= 66, "six refreshes")
        collector = model.Collector()
        templates = 0
        for payload in sink.payloads:
            collector.take(0, payload)
            templates += any(one.identity == 0 for one in parsed(payload).sets)
        assert templates >= 6
        assert (collector.sequence_errors, collector.unknown_sets) == (0, 0)


def test_doors_come_and_go_while_datagrams_flow() -> None:
    """Plans with and without a listener's door and a receiver's: nothing is lost, nothing comes twice."""
    with Relay() as relay:
        first, second, sink, other = door_listener(relay), door_listener(relay), door_sink(relay), door_sink(relay)
        ways = [door_way(relay, sink), door_way(relay, other)]
        relay.publish(relay.plan([first, second], ways))
        relay.start()
        for n in range(40):
            for listener in (first, second):
                listener.put(*(Datagram(FAMILIES[4], 1, struct.pack("=II", n, k)) for k in range(50)))
            plan = relay.plan([first] if n % 2 else [first, second], ways[: 1 + n % 2])
            relay.publish(plan)
        relay.publish(relay.plan([first, second], ways))
        wait_until(lambda: relay.received() == 4000, "all datagrams")
        sink.expect(4000)
        assert sorted(sink.payloads) == sorted(2 * [struct.pack("=II", n, k) for n in range(40) for k in range(50)])


# ---- the loopback gateway


def loop(relay: Relay, queue_bytes: int) -> tuple[Loopback, DoorListener, DoorSink]:
    """In by a door, out by a door to the gateway, back by a door, out to a sink."""
    gateway = Loopback()
    listener, back = door_listener(relay, queue_bytes=queue_bytes), door_listener(relay, queue_bytes=queue_bytes)
    out, sink = door_sink(relay, queue_bytes=queue_bytes), door_sink(relay, queue_bytes=queue_bytes)
    door_way(relay, out)
    door_way(relay, sink)
    relay.go(rules=[([ANY], [0], [0], False), ([ANY], [1], [1], False)])
    gateway.takes("out", 0, out.door, Door("loop"))
    gateway.brings("back", 0, back.door, DoorSpec("loop"))
    relay.stack.callback(gateway.close)  # before the doors
    return gateway, listener, sink


def test_a_hundred_thousand_a_second_and_nothing_lost() -> None:
    """In a second, if the machine can (bench/door says what it can): the queues hold them all, if not."""
    rate, slice_size = 100_000, 500
    with Relay(batch=512) as relay:  # type: ignore[arg-type]
        gateway, listener, sink = loop(relay, 256 << 20)
        begun = time.monotonic()
        for first in range(0, rate, slice_size):
            now = time.monotonic()
            time.sleep(max(0.0, begun + first / rate - now))
            listener.put(
                *(
                    Datagram(FAMILIES[6], 2055, struct.pack("=I", n) + bytes(196))
                    for n in range(first, first + slice_size)
                )
            )
            sink.read()
        sink.expect(rate, 60)
        assert [one.payload[:4] for one in sink.datagrams] == [struct.pack("=I", n) for n in range(rate)]
        assert gateway.through == rate
        assert [way.dropped() for way in relay.ways] == [0, 0]


def test_what_a_gateway_that_stopped_does_not_take_is_counted_one_by_one() -> None:
    with Relay() as relay:
        gateway, listener, sink = loop(relay, 1 << 18)
        gateway.hold(True)
        sent = 0
        while not relay.ways[0].dropped():
            datagrams = [Datagram(FAMILIES[4], 1, struct.pack("=I", sent + n) + bytes(500)) for n in range(64)]
            listener.put(*datagrams)
            sent += 64
            wait_until(lambda: relay.listeners[0].values()["datagrams"] == sent, "what was handed in")  # noqa: B023
            wait_until(lambda: relay.ways[0].values()["offered"] == sent, "what was offered")  # noqa: B023
        lost = relay.ways[0].dropped()
        assert relay.ways[0].values()["failed_no_buffer_space"] == lost
        gateway.hold(False)
        sink.expect(sent - lost)
        assert gateway.through == relay.ways[0].values()["sent"] == sent - lost
        numbers = [struct.unpack_from("=I", payload)[0] for payload in sink.payloads]
        assert numbers == sorted(set(numbers))
