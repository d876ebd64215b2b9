# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False, initializedcheck=False
"""samplicator._inside_flow: the flow stage alone, with doors for tests. For tests only; never shipped.

It includes handles/flow.pxi and drives flow/*.pxd as the worker does: tick, observe, then renumber or leave out, replay between batches.
Payloads are copied to the very end of a heap block of their size, so that the sanitizers see every byte read beyond. Called by tests/unit.
"""

cimport cython
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from base.atomics cimport atomic_load32, atomic_load64, atomic_store32
from base.batch cimport exporter_t
from flow.carry cimport (
    FLOW_CARRY_STATES, flow_carried_t, flow_carry_item, flow_carry_read, flow_carry_rows, flow_carry_set, flow_carry_sound, flow_carry_state,
)
from flow.items cimport flow_list
from flow.keep cimport flow_always, flow_keeps_exporter
from flow.memory cimport FLOW_DEFAULT_BYTES, FLOW_FORGET_MS, FLOW_LIFE_LIMIT_MS, flow_create, flow_limits, flow_memory
from flow.observe cimport flow_age, flow_observe, flow_tick
from flow.reading cimport FLOW_READ_TRIES, flow_read_domain, flow_read_items, flow_read_items_once
from flow.renumber cimport flow_forget_receiver, flow_leave_out, flow_refresh_due, flow_renumber, flow_write_number
from flow.replay cimport (
    FLOW_REPLAY_ALL, FLOW_REPLAY_JOIN, FLOW_REPLAY_OPTIONS, FLOW_REPLAY_REFRESH, FLOW_REPLAY_TEMPLATES, flow_replay_allowed,
    flow_replay_begin, flow_replay_owed,
    flow_replay_domain, flow_replay_exporter, flow_replay_next, flow_replay_t,
)
from flow.scan cimport (
    FLOW_HEADER, FLOW_IPFIX, FLOW_KINDS, FLOW_MALFORMED, FLOW_OTHER, FLOW_SFLOW, FLOW_V1, FLOW_V5, FLOW_V7, FLOW_V8, FLOW_V9,
    flow_scan, flow_seen_t,
)
from flow.steps cimport flow_steps_taken
from flow.state cimport (
    FLOW_BLOCK, FLOW_COUNTER_COUNT, FLOW_GAPS, FLOW_ITEM_OPTIONS_DATA, FLOW_ITEM_OPTIONS_TEMPLATE, FLOW_ITEM_TEMPLATE, FLOW_LISTS,
    FLOW_OPTIONS, FLOW_OPTIONS_TEMPLATES, FLOW_STYLES, FLOW_TEMPLATES, flow_counters_t, flow_domain_t, flow_item_t, flow_limits_t,
    flow_sequence_t, flow_state_t, flow_t,
)
from flow.table cimport flow_evict, flow_find, flow_hash, flow_way
from uapi.net cimport (
    CLOCK_THREAD_CPUTIME_ID, MAP_ANONYMOUS, MAP_FAILED, MAP_NORESERVE, MAP_PRIVATE, PROT_READ, PROT_WRITE, clock_gettime, htons, mmap, munmap,
    ntohs, timespec, u8, u16, u32, u64,
)
from base.wire cimport wire_is_ipv4_mapped, wire_map_ipv4

from os import urandom

include "../../fastpath/handles/flow.pxi"
include "../../fastpath/handles/carry.pxi"

TEMPLATE, OPTIONS_TEMPLATE, DATA, MALFORMED, OPTIONS_DATA, UNKNOWN, LATE, REPEATED, RESTART, FOREIGN, UNNUMBERED = [1 << i for i in range(11)]
JOIN, REFRESH = FLOW_REPLAY_JOIN, FLOW_REPLAY_REFRESH
ONLY_TEMPLATES, ONLY_OPTIONS, EVERYTHING = FLOW_REPLAY_TEMPLATES, FLOW_REPLAY_OPTIONS, FLOW_REPLAY_ALL
LIST_TEMPLATES, LIST_OPTIONS = FLOW_TEMPLATES, FLOW_OPTIONS


cdef class Seen:
    """What flow_observe() or flow_scan() said of one datagram."""
    cdef flow_seen_t s

    def __getattr__(self, name):
        fields = {"flags": self.s.flags, "kind": self.s.kind, "header_bytes": self.s.header_bytes, "sets": self.s.sets,
                  "sequence": self.s.sequence, "sequence_at": self.s.sequence_at, "records": self.s.records, "bytes": self.s.bytes,
                  "uptime_ms": self.s.uptime_ms, "export_s": self.s.export_s, "domain": self.s.domain, "units": self.s.units,
                  "options": self.s.options, "position": self.s.position, "gap": self.s.gap, "carry": self.s.carry, "number": self.s.number}
        if name == "always":
            return bool(flow_always(&self.s))
        if name not in fields:
            raise AttributeError(name)
        return fields[name]


cdef u8 *exact(bytes payload) except NULL:
    """The payload in a heap block of exactly its size."""
    cdef const u8 *octets = payload
    cdef u8 *p = <u8 *>malloc(len(payload) or 1)
    if p == NULL:
        raise MemoryError
    memcpy(p, octets, len(payload))
    return p


cdef set_exporter(exporter_t *out, bytes address, int port):
    cdef const u8 *octets = address
    if len(address) == 4:
        wire_map_ipv4(out.address, octets)
    elif len(address) == 16:
        memcpy(out.address, octets, 16)
    else:
        raise ValueError("4 or 16 bytes")
    out.family = 4 if len(address) == 4 else 6
    out.port_be = htons(<u16>port)
    out.ttl = out.tos = 0


def scan(bytes payload not None):
    cdef Seen seen = Seen()
    cdef u32 n = len(payload)
    cdef u8 *p = exact(payload)
    flow_scan(p, n, &seen.s)
    free(p)
    return seen


def steps():
    """Steps of all loops of the flow stage so far, in this module (flow/steps.pxd)."""
    return flow_steps_taken()


def tick(Flow flow not None, u64 now_ns):
    flow_tick(&flow.flow, now_ns)


def observe(Flow flow not None, bytes address not None, int port, bytes payload not None, int listener=0, bint matched=True):
    cdef Seen seen = Seen()
    cdef exporter_t exporter
    cdef u32 n = len(payload)
    cdef u8 *p = exact(payload)
    set_exporter(&exporter, address, port)
    flow_observe(&flow.flow, &exporter, <u32>listener, matched, p, n, &seen.s)
    free(p)
    return seen


def keep(Flow flow not None, Seen seen not None, u32 receiver, bytes payload not None):
    """The bytes the receiver gets: a patched copy, or the very same object."""
    cdef u32 value
    cdef const u8 *octets
    if not flow_renumber(&flow.flow, &seen.s, receiver, &value):
        return payload
    copy = bytes(bytearray(payload))
    octets = copy
    flow_write_number(<u8 *>octets, &seen.s, value)
    return copy


def leave_out(Flow flow not None, Seen seen not None, u32 receiver):
    flow_leave_out(&flow.flow, &seen.s, receiver)


def due(Flow flow not None, Seen seen not None, u32 receiver, u32 packets, u32 milliseconds, u32 which):
    return bool(flow_refresh_due(&flow.flow, &seen.s, receiver, packets, milliseconds, which))


def forget_receiver(Flow flow not None, u32 receiver):
    flow_forget_receiver(&flow.flow, receiver)


def age(Flow flow not None, u32 steps):
    flow_age(&flow.flow, steps)


def keeps_exporter(bytes address not None, u32 freq):
    cdef exporter_t exporter
    set_exporter(&exporter, address, 0)
    return bool(flow_keeps_exporter(exporter.address, freq))


def serial(Flow flow not None):
    return flow.flow.serial


def allowed(Flow flow not None, u32 number, u32 receiver):
    return bool(flow_replay_allowed(&flow.flow, number, receiver))


def owed(Flow flow not None, u32 number, u32 receiver):
    """As the worker asks, once a datagram."""
    if not flow.flow.domains[number].owing:
        return False
    flow.flow.domains[number].owing = False
    return bool(flow_replay_owed(&flow.flow, number, receiver))


def replay(Flow flow not None, u32 number, u32 receiver, u32 what, u32 mode, u32 payload, u32 since=0):
    """(datagrams, items skipped)."""
    cdef flow_replay_t r
    cdef u8 *p
    cdef u32 n
    out = []
    if not flow_replay_begin(&flow.flow, &r, number, receiver, what, mode, since, payload):
        return [], 0
    while True:
        p = <u8 *>malloc(payload)
        n = flow_replay_next(&flow.flow, &r, p)
        if n:
            out.append(flow_bytes(p, n))
        free(p)
        if n == 0:
            return out, r.skipped


def replayable(Flow flow not None, u32 steps):
    """Numbers of all domains with templates, found in rounds of so many steps; and how many rounds that took."""
    cdef u32 cursor = 0
    cdef u32 left, number
    found = []
    rounds = 0
    while cursor <= flow.flow.domain_limit:
        left = steps
        rounds += 1
        while True:
            number = flow_replay_domain(&flow.flow, &cursor, &left)
            if number == 0:
                break
            found.append(number)
    return found, rounds


def domains_of(Flow flow not None, bytes address not None, int port):
    cdef exporter_t exporter
    cdef u32 number
    set_exporter(&exporter, address, port)
    number = flow_replay_exporter(&flow.flow, exporter.address, exporter.port_be)
    out = []
    while number:
        out.append(number)
        number = flow.flow.domains[number].next
    return out


def time_of(list payloads not None, bint observes, int rounds, Flow flow=None, bint forged=False):
    """Nanoseconds a datagram of flow_scan(), or of all of flow_observe(), one exporter, over all payloads so many times, without the GIL: other
    threads may read the flow meanwhile. None: a new table. forged: every datagram from another address."""
    cdef int n = len(payloads)
    cdef u8 **data = <u8 **>malloc(n * sizeof(u8 *))
    cdef u32 *length = <u32 *>malloc(n * sizeof(u32))
    cdef exporter_t exporter
    cdef flow_seen_t s
    cdef timespec start, end
    cdef int i, _r
    cdef u64 sink = 0
    cdef u32 address = 1
    if flow is None:
        flow = Flow()
    set_exporter(&exporter, b"\xc6\x33\x64\x01", 2055)
    for i in range(n):
        data[i] = exact(payloads[i])
        length[i] = len(payloads[i])
    flow_tick(&flow.flow, 1_700_000_000_000_000_000)
    with nogil:
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &start)
        for _r in range(rounds):
            for i in range(n):
                if forged:
                    address += <u32>0x9E3779B1
                    memcpy(exporter.address + 12, &address, 4)
                if observes:
                    flow_observe(&flow.flow, &exporter, 0, True, data[i], length[i], &s)
                else:
                    flow_scan(data[i], length[i], &s)
                sink += s.flags
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &end)
    for i in range(n):
        free(data[i])
    free(data)
    free(length)
    return ((end.tv_sec - start.tv_sec) * 1e9 + end.tv_nsec - start.tv_nsec) / (n * rounds), sink
