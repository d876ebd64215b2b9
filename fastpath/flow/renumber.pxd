# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
"""Sequence numbers for a receiver that does not get every datagram, or gets additional ones, so that its collector counts only loss before
samplicator.

Per (receiver, domain) one offset: outgoing number = incoming number + offset. A skipped copy subtracts its units from the offset, an injected
datagram adds its units; so `next` of the outgoing stream counts what was sent, and a gap in the incoming numbers stays a gap. After an
exporter's restart the outgoing numbers start again with the incoming number. No state = offset 0 = unchanged bytes: a receiver without sampling
and injected datagrams costs one comparison with zero. The units of an unknown IPFIX template do not matter while copies are sent (the offset
stays); if a copy is skipped, the number of the next datagram shows its units. sFlow's number counts the datagrams of a sub-agent (sFlow v5,
sample_datagram_v5), so it is renumbered like v9's; the numbers of its samples belong to their sources and stay. v1 has no number.
Called by: the worker, for each copy of a receiver that samples or was injected into. Must never change a payload: it returns the number, and
the caller writes it into its own copy.
"""

from base.atomics cimport atomic_load64, atomics_add
from flow.items cimport flow_has_templates, flow_write_begin, flow_write_end
from flow.memory cimport flow_less, flow_state_take
from flow.scan cimport (
    FLOW_FOREIGN, FLOW_LATE, FLOW_MALFORMED, FLOW_REPEATED, FLOW_UNCOUNTED, FLOW_UNNUMBERED, flow_seen_t,
)
from flow.state cimport FLOW_OPTIONS, FLOW_TEMPLATES, flow_domain_t, flow_state_t, flow_t
from flow.steps cimport flow_step
from flow.table cimport flow_reclaim
from flow.template cimport flow_put32
from uapi.net cimport u8, u32, u64

cdef enum:
    FLOW_STATE_STEPS = 1024        # receivers of one domain that are looked through
    FLOW_REPLAY_BYTES = 262144     # replays that arriving datagrams may cause: bytes a domain, receiver and second
    FLOW_REPLAY_OVERHEAD = 256     # a datagram of a replay counts as so many bytes more


cdef inline bint flow_renumbers(const flow_seen_t *s) noexcept nogil:
    """Whether this datagram's number may be rewritten at all: not where it does not count what the others do, or nothing."""
    return s.number != 0 and s.sequence_at != 0 and not s.flags & (FLOW_MALFORMED | FLOW_FOREIGN | FLOW_UNNUMBERED)


cdef inline u32 flow_state(flow_t *flow, u32 number, u32 receiver) noexcept nogil:
    """The state of (domain, receiver), 0 = none. Receivers are asked for in the order of the route, as their states stand: the one wanted is
    where the last search ended, or the next behind it, or the first; else all are looked through."""
    cdef flow_domain_t *d = &flow.domains[number]
    cdef u32 found = d.state_found
    cdef u32 i = found
    cdef u32 step = FLOW_STATE_STEPS
    while i and flow.states[i].receiver != receiver and step:
        flow_step(1)
        i = flow.states[i].next
        step -= 1
    if i == 0:
        i = d.state
        while i != found and flow.states[i].receiver != receiver and step:
            flow_step(1)
            i = flow.states[i].next
            step -= 1
        if i == found:
            return 0
    if step == 0:
        return 0
    d.state_found = i
    return i


cdef inline u32 flow_state_make(flow_t *flow, u32 number, u32 receiver) noexcept nogil:
    """The state of (domain, receiver), made if need be; 0 = no room (counted): copies pass as they are."""
    cdef flow_domain_t *d = &flow.domains[number]
    cdef u32 i = flow_state(flow, number, receiver)
    cdef u32 *link
    if i:
        return i
    i = flow_state_take(flow)
    if i == 0 and flow_reclaim(flow, number):
        i = flow_state_take(flow)
    if i == 0:
        atomics_add(&flow.counters.refused_states, 1)
        return 0
    flow_write_begin(&d.head_version)
    flow.states[i].receiver = receiver
    flow.states[i].restarts = d.restarts_seen
    flow.states[i].replayed_ms[FLOW_TEMPLATES] = flow.states[i].replayed_ms[FLOW_OPTIONS] = flow.now_ms
    link = &flow.states[d.state_found].next if d.state_found else &d.state
    flow.states[i].next = link[0]
    link[0] = i
    d.state_found = i
    flow_write_end(&d.head_version)
    return i


cdef inline void flow_state_follow(const flow_domain_t *d, flow_state_t *state, const flow_seen_t *s) noexcept nogil:
    """Brings the state up to this datagram: a restart begins anew, units left out uncounted are known now."""
    if state.restarts != d.restarts_seen:
        state.restarts = d.restarts_seen
        state.offset = 0
        state.owes = 0
        state.paused = 0
    if state.paused:
        state.paused = 0
        state.offset -= s.position - state.paused_at
    if state.owes:
        if <u32>d.datagrams - state.left_out == 1:
            state.offset -= s.carry
        state.owes = 0


cdef inline u32 flow_next(const flow_domain_t *d) noexcept nogil:
    """The position of the domain's next datagram, as far as known."""
    return d.sequence.last if d.sequence.unknown else d.sequence.expected


cdef inline bint flow_pause(flow_t *flow, u32 number, u32 receiver, u32 position) noexcept nogil:
    """From the datagram at this position on the receiver gets none of the domain's, until flow_renumber() is asked for a copy again: what came
    in between is left out of its numbers. Nothing new for one that is paused. False: no room for a state."""
    cdef flow_domain_t *d = &flow.domains[number]
    cdef flow_state_t *state
    cdef u32 i = flow_state_make(flow, number, receiver)
    if i == 0:
        return False
    state = &flow.states[i]
    if state.restarts != d.restarts_seen:
        state.restarts = d.restarts_seen
        state.offset = state.owes = state.paused = 0
    if not state.paused:
        state.paused = 1
        state.paused_at = position
        state.owes = 0
    return True


cdef inline bint flow_renumber(flow_t *flow, const flow_seen_t *s, u32 receiver, u32 *value) noexcept nogil:
    """A copy of s for the receiver is sent. True: `value` is to be written at s.sequence_at of the copy (flow_write_number)."""
    cdef flow_domain_t *d
    cdef u32 i
    if s.number == 0:
        return False
    d = &flow.domains[s.number]
    if d.state == 0 or not flow_renumbers(s):
        return False
    i = flow_state(flow, s.number, receiver)
    if i == 0:
        return False
    flow_state_follow(d, &flow.states[i], s)
    if flow.states[i].offset == 0:
        return False
    if s.flags & FLOW_UNCOUNTED:
        atomics_add(&flow.counters.kept_unknown, 1)
    atomics_add(&flow.counters.renumbered, 1)
    value[0] = s.sequence + flow.states[i].offset
    return True


cdef inline void flow_leave_out(flow_t *flow, const flow_seen_t *s, u32 receiver) noexcept nogil:
    """A copy of s for the receiver is not sent (sampled out). What came late is not taken off: its gap was passed on already."""
    cdef flow_domain_t *d
    cdef flow_state_t *state
    cdef u32 i
    if not flow_renumbers(s):
        return
    d = &flow.domains[s.number]
    i = flow_state_make(flow, s.number, receiver)
    if i == 0:
        return
    state = &flow.states[i]
    flow_state_follow(d, state, s)
    if s.flags & (FLOW_LATE | FLOW_REPEATED):
        return
    if s.flags & FLOW_UNCOUNTED:
        state.owes = 1
        state.left_out = <u32>d.datagrams
    else:
        state.offset -= s.units


cdef inline void flow_write_number(u8 *copy, const flow_seen_t *s, u32 value) noexcept nogil:
    """Writes the number into the caller's own copy of the payload."""
    flow_put32(copy + s.sequence_at, value)


cdef inline bint flow_may_replay(const flow_t *flow, flow_state_t *state) noexcept nogil:
    """Whether arriving datagrams may cause another replay of the domain to the receiver now. What they caused (flow_replay_next adds it up)
    drains by FLOW_REPLAY_BYTES a second: one replay may be larger, then the next waits the longer."""
    cdef u64 drained = <u64>(flow.now_ms - state.spent_ms) * FLOW_REPLAY_BYTES // 1000
    state.spent_ms = flow.now_ms
    state.spent = state.spent - <u32>drained if state.spent > drained else 0
    return state.spent < FLOW_REPLAY_BYTES


cdef inline bint flow_refresh_due(flow_t *flow, const flow_seen_t *s, u32 receiver, u32 packets, u32 milliseconds,
                                  u32 which) noexcept nogil:
    """Whether templates (FLOW_TEMPLATES) or options data (FLOW_OPTIONS) of this datagram's domain are to be replayed to the receiver again: so
    many copies or so much time (0 = never) after the last time, and no sooner than flow_may_replay() says. Counts this copy; call it once a
    copy and list."""
    cdef flow_state_t *state
    cdef u32 i
    if s.number == 0:
        return False
    if flow.domains[s.number].first[which] == 0 and (which == FLOW_OPTIONS or not flow_has_templates(&flow.domains[s.number])):
        return False
    i = flow_state_make(flow, s.number, receiver)
    if i == 0:
        return False
    state = &flow.states[i]
    state.copies[which] += 1
    if (packets == 0 or state.copies[which] < packets) and (milliseconds == 0 or flow.now_ms - state.replayed_ms[which] < milliseconds):
        return False
    if not flow_may_replay(flow, state):
        return False
    state.copies[which] = 0
    state.replayed_ms[which] = flow.now_ms
    return True


cdef inline void flow_forget_receiver(flow_t *flow, u32 receiver) noexcept nogil:
    """Gives back every state of a receiver that is gone. Walks the whole table: at the adoption of a plan, not in a batch."""
    cdef u32 number, i
    cdef u32 *link
    cdef flow_domain_t *d
    if atomic_load64(&flow.counters.states) == 0:
        return
    for number in range(1, flow.domain_top + 1):
        d = &flow.domains[number]
        link = &d.state
        while link[0]:
            i = link[0]
            if flow.states[i].receiver == receiver:
                flow_write_begin(&d.head_version)
                link[0] = flow.states[i].next
                flow.states[i].next = flow.state_free
                flow.state_free = i
                flow_less(&flow.counters.states, 1)
                d.state_found = 0
                flow_write_end(&d.head_version)
            else:
                link = &flow.states[i].next
