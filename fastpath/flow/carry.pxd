# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
"""What a domain knows besides its templates, copied out of a running table and put into a new one: sequence, counters, renumbering.

Out: one copy under the domain's sequence lock (state.pxd), without a lock that the worker takes. In: only while no worker uses the table, and
only behind flow_observe(), which admitted the domain and learnt its templates under all bounds of the table; what is put in here takes no
memory but renumbering states, and flow_state_make() bounds these. Every number is hostile: flow_carry_sound() says whether it may be put in.
Called by: the handle (handles/carry.pxi), cold.
"""

from libc.string cimport memcpy
from base.atomics cimport atomic_fence_load32, atomic_load32_acquire
from flow.items cimport flow_write_begin, flow_write_end
from flow.reading cimport FLOW_READ_TRIES
from flow.renumber cimport flow_state_make
from flow.rows cimport FLOW_LONE, FLOW_ROWS_PROVEN
from flow.scan cimport FLOW_HEADER
from flow.sequence cimport FLOW_HALF, FLOW_SAME, FLOW_SCORE
from flow.state cimport (
    FLOW_GAPS, FLOW_GRADE_ESTABLISHED, FLOW_GRADE_ONCE, FLOW_GRADE_UNMATCHED, FLOW_ITEM_OPTIONS_TEMPLATE, FLOW_STYLES, flow_domain_t,
    flow_item_t, flow_sequence_t, flow_state_t, flow_t, flow_way_t,
)
from flow.table cimport flow_template, flow_way
from uapi.net cimport u8, u32, u64

cdef enum:
    FLOW_CARRY_STATES = 1024       # renumbering states of a domain, as many as are looked through (renumber.pxd)
    FLOW_CARRY_FLAGS = 13          # of flow_sequence_t, from `started` on
    FLOW_CARRY_NUMBERS = 12        # of flow_sequence_t, from `expected` on
    FLOW_CARRY_COUNTERS = 13       # of flow_domain_t, from `datagrams` on
    FLOW_CARRY_SPARE_MS = 600000   # what is carried to a worker that may never hear of it is forgotten in so long

ctypedef struct flow_carried_t:    # what a domain is set to
    flow_sequence_t sequence
    u64 counters[FLOW_CARRY_COUNTERS]
    u8 header[FLOW_HEADER]
    u64 first_age_ns
    u64 seen_age_ns
    u32 alias
    u32 restarts
    u32 grade
    u8 ttl
    u8 tos
    u8 spare                       # one of several copies: it has counted nothing, and goes soon if nobody comes


cdef inline int flow_carry_read(flow_t *flow, u32 number, flow_domain_t *out, u32 *grade, flow_state_t *states, u32 limit,
                                u32 *count) noexcept nogil:
    """Copies domain `number` with its renumbering states. 0 = the entry is empty, -1 = it never stood still."""
    cdef flow_domain_t *d = &flow.domains[number]
    cdef u32 version, i, _tries
    if number == 0 or number > flow.domain_limit:
        return 0
    for _tries in range(<u32>FLOW_READ_TRIES):
        version = atomic_load32_acquire(&d.head_version)
        if version & 1:
            continue
        out[0] = d[0]
        grade[0] = flow_way(flow, out.slot).grade if out.slot < flow.domain_limit else 0
        count[0] = 0
        i = out.state
        while i and i <= flow.limit.states and count[0] < limit:
            states[count[0]] = flow.states[i]
            i = states[count[0]].next
            count[0] += 1
        if atomic_fence_load32(&d.head_version) == version:
            return out.owner != 0
    return -1


cdef inline bint flow_carry_sound(const flow_sequence_t *q) noexcept nogil:
    """Whether these are numbers that sequence.pxd could have written: what it takes for an index, a flag or a length is one."""
    cdef u32 i
    if ((q.started | q.unknown | q.unsure | q.strays | q.unnumbered | q.own_known | q.own_open | q.template_last | q.data_known) > 1
            or q.style >= FLOW_STYLES or q.same > FLOW_SAME or q.own > FLOW_SCORE or q.shared > FLOW_SCORE
            or q.window_count >= FLOW_GAPS or q.gap_count > FLOW_GAPS):
        return False
    for i in range(<u32>FLOW_STYLES):
        if q.score[i] > FLOW_SCORE:
            return False
    for i in range(q.gap_count):
        if q.gaps[i].length == 0 or q.gaps[i].length >= FLOW_HALF:
            return False
    return True


cdef inline void flow_carry_set(flow_t *flow, u32 number, const flow_carried_t *c) noexcept nogil:
    """Sets a domain that was just taught; its sequence is sound. What is pending is what its gaps say."""
    cdef flow_domain_t *d = &flow.domains[number]
    cdef flow_way_t *way = flow_way(flow, d.slot)
    cdef u64 *counters = &d.datagrams
    cdef u32 i
    flow_write_begin(&d.head_version)
    d.sequence = c.sequence
    for i in range(<u32>FLOW_CARRY_COUNTERS):
        counters[i] = c.counters[i]
    d.pending = 0
    for i in range(c.sequence.gap_count):
        d.pending += c.sequence.gaps[i].length
    memcpy(d.header, c.header, d.header_bytes)
    d.exporter.ttl = c.ttl
    d.exporter.tos = c.tos
    d.first_ns = flow.now_ns - c.first_age_ns
    d.seen_ns = flow.now_ns - c.seen_age_ns
    d.restarts_seen = c.restarts
    d.alias = c.alias
    d.alias_s = 0
    d.carried = True
    flow_write_end(&d.head_version)
    way.seen_ms = flow.now_ms - (flow.limit.forget_ms - FLOW_CARRY_SPARE_MS if c.spare else <u32>(c.seen_age_ns // 1000000))
    if d.unmatched:
        way.grade = FLOW_GRADE_UNMATCHED
    else:
        way.grade = c.grade if FLOW_GRADE_ONCE <= c.grade <= FLOW_GRADE_ESTABLISHED else FLOW_GRADE_ONCE


cdef inline void flow_carry_rows(flow_t *flow, u32 number, u32 template_id, u32 whole, u32 lone) noexcept nogil:
    """How the rows of an options template are told apart, as was found out from what came (rows.pxd); before its rows are taught."""
    cdef u32 i = flow_template(flow, number, template_id)
    if i and flow.items[i].kind == FLOW_ITEM_OPTIONS_TEMPLATE and whole <= FLOW_ROWS_PROVEN and lone <= FLOW_LONE:
        flow.items[i].whole = <u8>whole
        flow.items[i].lone = <u8>lone


cdef inline void flow_carry_item(flow_t *flow, u32 i, u32 first_age_s, u32 seen_age_s, u32 alive_age_ms, bint used) noexcept nogil:
    """The times of an item that was just taught. It counts as heard with its domain's last datagram."""
    cdef flow_item_t *item = &flow.items[i]
    cdef u32 now_s = <u32>(flow.now_ns // 1000000000)
    item.first_s = now_s - first_age_s
    item.seen_s = now_s - seen_age_s
    item.alive_ms = flow.now_ms - alive_age_ms
    item.used = used
    item.heard = <u32>flow.domains[item.domain].datagrams


cdef inline bint flow_carry_state(flow_t *flow, u32 number, const flow_state_t *state) noexcept nogil:
    """Renumbering of the domain for state.receiver; times in it are ages. False: no room."""
    cdef u32 i = flow_state_make(flow, number, state.receiver)
    cdef flow_state_t *to = &flow.states[i]
    cdef u32 following = to.next
    if i == 0:
        return False
    to[0] = state[0]
    to.next = following
    to.owes = state.owes != 0
    to.paused = state.paused != 0
    to.owed = state.owed != 0
    to.replayed_ms[0] = flow.now_ms - state.replayed_ms[0]
    to.replayed_ms[1] = flow.now_ms - state.replayed_ms[1]
    to.spent_ms = flow.now_ms - state.spent_ms
    if to.owed:
        flow.domains[number].owing = True
    return True
