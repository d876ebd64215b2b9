# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False, initializedcheck=False
"""libFuzzer target of the flow stage: scan, learn, sequence, renumber, replay, age and evict over a table too small for its input.

Input: records of (op byte, length byte times 4, payload). The op names the exporter (low 3 bits) and what is done besides observing (the
rest). No datagram may take more steps (flow/steps.pxd) than its bytes and this small table allow. Each payload lies in a heap block of its own size and each replayed datagram in one of the size asked for, so ASan sees a byte too
much. After each input the whole table is walked: every list, chain and gauge must agree, else abort(). Pure C at run time: Python is never
started. Built and run by tests/fuzz/flow_fuzz.py.
"""

from libc.stdio cimport fprintf, stderr
from libc.stdlib cimport abort, calloc, free, malloc
from libc.string cimport memcpy, memset
from base.batch cimport exporter_t
from flow.memory cimport flow_create, flow_limits, flow_memory
from flow.observe cimport flow_age, flow_observe, flow_tick
from flow.reading cimport flow_read_domain, flow_read_items
from flow.renumber cimport flow_forget_receiver, flow_leave_out, flow_refresh_due, flow_renumber, flow_write_number
from flow.replay cimport FLOW_REPLAY_ALL, flow_replay_allowed, flow_replay_begin, flow_replay_next, flow_replay_owed, flow_replay_t
from flow.scan cimport flow_seen_t
from flow.state cimport FLOW_LISTS, FLOW_OPTIONS, flow_domain_t, flow_item_t, flow_limits_t, flow_t
from flow.steps cimport flow_steps_taken
from flow.table cimport flow_way
from uapi.net cimport u8, u32, u64

cdef extern from "<stdlib.h>" nogil:
    int atexit(void (*told)() noexcept nogil)

cdef enum:
    TARGET_BYTES = 200000
    TARGET_STEPS = 1500                # of a datagram: finding room, and freeing all that this table holds
    TARGET_STEPS_A_BYTE = 8
    OP_LEAVE_OUT = 0x08
    OP_REPLAY = 0x10
    OP_REFRESH = 0x20
    OP_LATER = 0x40
    OP_AGE = 0x80

cdef u8 *target_memory = NULL
cdef flow_limits_t target_limit
cdef flow_t target_flow
cdef u64 target_datagrams = 0
cdef u64 target_recognized = 0


cdef void target_tell() noexcept nogil:
    """At the end, in libFuzzer's style: an input is many datagrams, and not each of them says that it is NetFlow, IPFIX or sFlow."""
    fprintf(stderr, b"stat::datagrams_observed:        %llu\n", <unsigned long long>target_datagrams)
    fprintf(stderr, b"stat::datagrams_recognized:      %llu\n", <unsigned long long>target_recognized)


cdef void target_require(bint holds) noexcept nogil:
    if not holds:
        abort()


cdef u64 target_list(flow_t *flow, u32 number, u32 which, u64 *blocks) noexcept nogil:
    """Items of a list; adds up their blocks."""
    cdef flow_domain_t *d = &flow.domains[number]
    cdef u32 i = d.first[which]
    cdef u32 previous = 0
    cdef u32 b
    cdef u64 n = 0
    while i:
        target_require(i <= flow.item_top and flow.items[i].domain == number and flow.items[i].previous == previous)
        b = flow.items[i].block
        while b:
            target_require(b <= flow.block_top)
            blocks[0] += 1
            b = flow.blocks[b].next
        blocks[0] += flow.items[i].keys != 0       # one, always: FLOW_SPANS of them fit
        target_require(flow.items[i].keys <= flow.block_top and flow.blocks[flow.items[i].keys].next == 0)
        previous = i
        i = flow.items[i].next
        n += 1
        target_require(n <= flow.limit.domain_items)
    target_require(d.last[which] == previous and d.count[which] == n)
    return n


cdef void target_check(flow_t *flow) noexcept nogil:
    """Every list, chain and gauge agrees, and nothing is above its bound."""
    cdef u64 items = 0
    cdef u64 blocks = 0
    cdef u64 domains = 0
    cdef u64 unmatched = 0
    cdef u64 states = 0
    cdef u64 pending
    cdef u32 number, which, i, slot
    cdef flow_domain_t *d
    for slot in range(flow.domain_limit):
        if flow.sets[slot // 16].tag[slot % 16]:
            number = flow_way(flow, slot).number
            target_require(0 < number and number <= flow.domain_top and flow.domains[number].owner and flow.domains[number].slot == slot)
            domains += 1
    target_require(domains == flow.counters.domains)
    i = flow.domain_free
    while i:                               # used and given back are all that were given out
        target_require(i <= flow.domain_top and flow.domains[i].owner == 0 and domains < flow.domain_top)
        domains += 1
        i = flow.domains[i].next
    target_require(domains == flow.domain_top and domains <= flow.domain_limit)
    domains = 0
    for number in range(1, flow.domain_limit + 1):
        d = &flow.domains[number]
        target_require((d.version | d.head_version) % 2 == 0)
        if d.owner == 0:
            target_require(d.first[0] == 0 and d.first[1] == 0 and d.state == 0)
            continue
        domains += 1
        unmatched += d.unmatched
        for which in range(<u32>FLOW_LISTS):
            items += target_list(flow, number, which, &blocks)
        i = d.state
        while i:
            states += 1
            target_require(states <= flow.limit.states)
            i = flow.states[i].next
        pending = 0
        for i in range(d.sequence.gap_count):
            pending += d.sequence.gaps[i].length
        target_require(pending == d.pending and d.sequence.gap_count <= 16)
        target_require(flow.exporters[d.owner].blocks <= flow.limit.exporter_blocks and flow.exporters[d.owner].domains)
    target_require(unmatched == flow.counters.unmatched)
    target_require(domains == flow.counters.domains and states == flow.counters.states and blocks == flow.counters.blocks)
    target_require(items == flow.counters.templates + flow.counters.options_templates + flow.counters.options_data)
    target_require(blocks <= flow.limit.blocks and items <= flow.limit.items and flow.counters.exporters <= domains)


cdef void target_read(flow_t *flow, u32 number) noexcept nogil:
    """What the cold readers copy out."""
    cdef flow_domain_t d
    cdef flow_item_t *items = <flow_item_t *>malloc(8 * sizeof(flow_item_t))
    cdef u8 *octets = <u8 *>malloc(512)
    if flow_read_domain(flow, number, &d):
        target_require(flow_read_items(flow, number, 0, items, 8, octets, 512) <= 8)
        flow_read_items(flow, number, FLOW_OPTIONS, items, 8, octets, 512)
    free(octets)
    free(items)


cdef void target_replay(flow_t *flow, u32 number, u32 mode, u32 since, u32 payload) noexcept nogil:
    cdef flow_replay_t r
    cdef u8 *out
    cdef u32 n
    if not flow_replay_begin(flow, &r, number, 3, FLOW_REPLAY_ALL, mode, since, payload):
        return
    while True:
        out = <u8 *>malloc(payload)
        n = flow_replay_next(flow, &r, out)
        target_require(n <= payload)
        free(out)
        if n == 0:
            return


cdef u32 target_datagram(flow_t *flow, u8 op, const u8 *data, u32 n) noexcept nogil:
    global target_datagrams, target_recognized
    cdef flow_seen_t s
    cdef exporter_t exporter
    cdef u32 value
    cdef u64 before
    cdef u32 serial = flow.serial
    cdef u8 *p = <u8 *>malloc(n if n else 1)
    memcpy(p, data, n)
    memset(&exporter, 0, sizeof(exporter))
    exporter.family = 4
    exporter.address[15] = op & 7
    if op & OP_LATER:
        flow_tick(flow, flow.now_ns + <u64>3000000000 * (1 + n))
    before = flow_steps_taken()
    flow_observe(flow, &exporter, n & 3, (op & (OP_AGE | OP_LATER)) != OP_AGE or n & 4, p, n, &s)
    target_require(flow_steps_taken() - before <= TARGET_STEPS + TARGET_STEPS_A_BYTE * n)
    target_datagrams += 1
    target_recognized += s.kind != 0
    if op & OP_LEAVE_OUT:
        flow_leave_out(flow, &s, op & 3)
    elif flow_renumber(flow, &s, op & 3, &value):
        target_require(s.sequence_at + 4 <= n)
        flow_write_number(p, &s, value)
    flow_refresh_due(flow, &s, 7, 3, 0, op & 1)
    if op & OP_REPLAY:
        if s.number and (flow_replay_allowed(flow, s.number, 3) or flow_replay_owed(flow, s.number, 3)):
            target_replay(flow, s.number, (op & OP_REFRESH) != 0, serial if op & OP_LEAVE_OUT else 0, 512 + (n & 255))
        target_read(flow, s.number)
    if op & OP_AGE:
        flow_age(flow, 64)
        flow_forget_receiver(flow, n & 7)
    free(p)
    return s.number


cdef public int LLVMFuzzerTestOneInput(const u8 *data, size_t size) noexcept nogil:
    global target_memory
    cdef size_t at = 0
    cdef u32 n
    if target_memory == NULL:
        flow_limits(&target_limit, TARGET_BYTES)
        target_limit.sets = 2
        target_limit.items = 60
        target_limit.blocks = 60
        target_limit.states = 12
        target_limit.buckets = 16
        target_limit.exporter_domains = 6
        target_limit.exporter_blocks = 24
        target_limit.domain_items = 20
        target_limit.template_ms = 60000
        target_limit.forget_ms = 600000
        target_memory = <u8 *>calloc(1, flow_memory(&target_limit) + 64)
        atexit(target_tell)
    memset(target_memory, 0, flow_memory(&target_limit))
    flow_create(&target_flow, &target_limit, target_memory, 42)
    flow_tick(&target_flow, <u64>1700000000 * 1000000000)
    while at + 2 <= size:
        n = 4 * <u32>data[at + 1]
        if n > size - at - 2:
            n = <u32>(size - at - 2)
        target_datagram(&target_flow, data[at], data + at + 2, n)
        at += 2 + n
    target_check(&target_flow)
    return 0
