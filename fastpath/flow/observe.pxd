# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
"""The flow stage for one datagram: scan it, find its domain, store templates and options data, check its sequence number, count. And the slow
scan that expires old entries.

Called by: the worker: flow_tick() once per batch, flow_observe() once per datagram, flow_age() at the end of a loop pass. No I/O, no
allocation; never changes a byte of the datagram.
"""

from libc.string cimport memcpy
from base.atomics cimport atomic_load32, atomics_add
from base.batch cimport exporter_t
from flow.items cimport flow_item_free, flow_write_begin, flow_write_end
from flow.learn cimport flow_learn
from flow.scan cimport (
    FLOW_IPFIX, FLOW_MALFORMED, FLOW_UNKNOWN, FLOW_V9, flow_scan, flow_seen_t,
)
from flow.sequence cimport flow_gaps_settle, flow_sequence
from flow.steps cimport flow_step
from flow.state cimport (
    FLOW_ESTABLISHED_DATAGRAMS, FLOW_ESTABLISHED_MS, FLOW_GRADE_ESTABLISHED, FLOW_GRADE_REPEATS, FLOW_GRADE_UNMATCHED, FLOW_LISTS,
    flow_domain_t, flow_t, flow_way_t,
)
from flow.memory cimport flow_less
from flow.table cimport flow_admit, flow_evict, flow_find, flow_hash, flow_item_lives, flow_way
from uapi.net cimport u8, u16, u32, u64

cdef enum:
    FLOW_SETTLE_MS = 2000          # a gap of a domain that is silent for this long is loss
    FLOW_EXPIRE_ITEMS = 64         # items of one domain that expire in one pass


cdef inline void flow_tick(flow_t *flow, u64 now_ns) noexcept nogil:
    """The time of this batch, CLOCK_MONOTONIC: ages are times in which a datagram could have come, so neither a step of the wall clock nor a
    suspended machine makes anything older. It never goes back, whoever gives it."""
    if now_ns > flow.now_ns:
        flow.now_ns = now_ns
        flow.now_ms = <u32>(now_ns // 1000000)


cdef inline void flow_grade(flow_t *flow, flow_domain_t *d) noexcept nogil:
    """Notes in the set that the domain was seen, and how well it is known."""
    cdef flow_way_t *way = flow_way(flow, d.slot)
    way.seen_ms = flow.now_ms
    if d.unmatched:
        way.grade = FLOW_GRADE_UNMATCHED
    elif way.grade < FLOW_GRADE_ESTABLISHED:
        if d.datagrams >= FLOW_ESTABLISHED_DATAGRAMS and flow.now_ns - d.first_ns >= <u64>FLOW_ESTABLISHED_MS * 1000000:
            way.grade = FLOW_GRADE_ESTABLISHED
        elif d.datagrams > 1 and way.grade < FLOW_GRADE_REPEATS:
            way.grade = FLOW_GRADE_REPEATS


cdef inline void flow_note(flow_t *flow, flow_domain_t *d, const exporter_t *exporter, u32 listener, const u8 *p,
                           const flow_seen_t *s) noexcept nogil:
    """What a replay and a reading need to know of the last datagram. Within the domain's sequence lock."""
    d.exporter = exporter[0]
    d.listener = <u16>listener
    d.header_bytes = s.header_bytes
    d.seen_ns = flow.now_ns
    memcpy(d.header, p, s.header_bytes)


cdef inline void flow_refuse(flow_t *flow, const exporter_t *exporter, flow_seen_t *s) noexcept nogil:
    """A malformed datagram teaches nothing but that its domain's next gap may be its own."""
    cdef flow_domain_t *d
    cdef u32 number
    atomics_add(&flow.counters.malformed[s.kind], 1)
    if s.sequence_at == 0:
        return
    number = flow_find(flow, exporter, s, flow_hash(flow, exporter, s.kind, s.domain))
    if number:
        d = &flow.domains[number]
        d.sequence.unsure = True
        atomics_add(&d.malformed, 1)


cdef inline bint flow_matched(flow_t *flow, flow_domain_t *d, u32 listener, bint matched) noexcept nogil:
    """Notes whether a rule matches the domain's exporter. False: this datagram came by a listener where no rule does, while one matches where
    the others came: it is none of theirs."""
    if matched == (not d.unmatched):
        return True
    if matched:
        d.unmatched = False
        flow_less(&flow.counters.unmatched, 1)
        return True
    if d.listener != listener:
        return False
    d.unmatched = True
    atomics_add(&flow.counters.unmatched, 1)
    return True


cdef inline void flow_observe(flow_t *flow, const exporter_t *exporter, u32 listener, bint matched, const u8 *p, u32 n,
                              flow_seen_t *s) noexcept nogil:
    """All about the datagram p of n bytes, into s. matched: a rule matches its exporter; if none does it teaches all the same, so that its
    collector can decode as soon as one does. s.number = 0: it is malformed, or there was no room: it passes as it is."""
    cdef flow_domain_t *d
    cdef u64 hashed, lost, restarts
    flow_scan(p, n, s)
    atomics_add(&flow.counters.by_kind[s.kind], 1)
    if s.flags & FLOW_MALFORMED:
        flow_refuse(flow, exporter, s)
        return
    hashed = flow_hash(flow, exporter, s.kind, s.domain)
    s.number = flow_find(flow, exporter, s, hashed)
    if s.number == 0:
        s.number = flow_admit(flow, exporter, s, hashed, matched)
        if s.number == 0:
            return
    d = &flow.domains[s.number]
    if matched == d.unmatched and d.datagrams and not flow_matched(flow, d, listener, matched):
        s.number = 0
        return
    atomics_add(&d.datagrams, 1)
    if s.kind == FLOW_IPFIX or s.kind == FLOW_V9:
        flow_learn(flow, s.number, p, s)
    if s.flags & FLOW_UNKNOWN:
        atomics_add(&d.unknown, 1)
    flow_write_begin(&d.head_version)
    if s.sequence_at:
        lost, restarts = d.lost, d.restarts
        flow_sequence(d, s, flow.now_ns - d.seen_ns)
        if d.lost != lost:
            atomics_add(&flow.counters.lost[s.kind], d.lost - lost)
        if d.restarts != restarts:
            atomics_add(&flow.counters.restarts[s.kind], 1)
    atomics_add(&d.bytes, n)
    atomics_add(&d.units, s.units)
    flow_grade(flow, d)
    flow_note(flow, d, exporter, listener, p, s)
    flow_write_end(&d.head_version)


cdef inline void flow_expire(flow_t *flow, flow_domain_t *d) noexcept nogil:
    """Templates and options data neither repeated nor used for too long, oldest first. A template whose data came in that time lives on for as
    long again: some exporters send theirs when they start, and never after."""
    cdef u32 life = atomic_load32(&flow.limit.template_ms)
    cdef u32 budget = FLOW_EXPIRE_ITEMS
    cdef u32 which, i
    if life == 0:
        return
    for which in range(<u32>FLOW_LISTS):
        i = d.first[which]
        while budget and i and flow.now_ms - flow.items[i].alive_ms >= life:
            flow_step(1)
            flow_write_begin(&d.version)
            if flow.items[i].used:
                flow_item_lives(flow, i)
            else:
                flow_item_free(flow, i)
                atomics_add(&flow.counters.expired_items, 1)
            flow_write_end(&d.version)
            i = d.first[which]
            budget -= 1


cdef inline void flow_age(flow_t *flow, u32 steps) noexcept nogil:
    """Looks at the next so many places of the table: settles gaps of silent domains, lets items expire, forgets the long silent, one at most:
    what it taught may be much."""
    cdef flow_domain_t *d
    cdef u32 age
    while steps:
        steps -= 1
        flow.sweep = flow.sweep + 1 if flow.sweep < flow.domain_top else 1
        d = &flow.domains[flow.sweep]
        if d.owner == 0:
            continue
        age = flow.now_ms - flow_way(flow, d.slot).seen_ms
        if age >= atomic_load32(&flow.limit.forget_ms):
            flow_evict(flow, flow.sweep)
            atomics_add(&flow.counters.forgotten_domains, 1)
            return
        if age >= FLOW_SETTLE_MS and d.pending:
            atomics_add(&flow.counters.lost[d.kind], d.pending)
            flow_write_begin(&d.head_version)
            flow_gaps_settle(d)
            flow_write_end(&d.head_version)
        flow_expire(flow, d)
