# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
"""Datagrams that repeat an exporter's templates and last options data to a receiver that would otherwise wait for them (FLOW.md rule 6).

A replayed datagram has the header of the domain's last datagram, with its clocks advanced by the time since, and the exporter's own template
records, byte for byte; sets are split so that the payload fits. Numbers: FLOW_REPLAY_JOIN counts up to the next expected number, as if the
datagrams had arrived just before; the receiver's stream continues unchanged (for a receiver that is new or came back). FLOW_REPLAY_REFRESH
inserts into a running stream: the units of its datagrams (v9: one each; IPFIX: its data records, none for templates) are added to the
receiver's offset, so that all later datagrams are renumbered. Replays that arriving datagrams cause are limited (flow_may_replay); a refused
replay is done later, as one replay of everything. If the receiver is paused in this domain (flow_pause), its numbers continue from where they
are, in both modes.
Called by: the worker, which sends them as the exporter. Must never write past the given bytes.
"""

from libc.string cimport memcpy, memset
from base.atomics cimport atomics_add
from flow.items cimport flow_has_templates, flow_list
from flow.memory cimport flow_chain_copy
from flow.renumber cimport FLOW_REPLAY_OVERHEAD, flow_may_replay, flow_next, flow_state, flow_state_make
from flow.scan cimport FLOW_IPFIX, FLOW_V9
from flow.state cimport (
    FLOW_ITEM_OPTIONS_DATA, FLOW_ITEM_OPTIONS_TEMPLATE, FLOW_OPTIONS, flow_domain_t, flow_item_t, flow_t,
)
from flow.steps cimport flow_step
from flow.table cimport flow_exporter_find, flow_template
from flow.template cimport flow_put16, flow_put32, flow_u32
from uapi.net cimport u8, u16, u32, u64

cdef enum:
    FLOW_REPLAY_TEMPLATES = 1      # what: templates and options templates
    FLOW_REPLAY_OPTIONS = 2        # what: the last options data
    FLOW_REPLAY_ALL = 3
    FLOW_REPLAY_JOIN = 0           # mode: before the receiver's stream
    FLOW_REPLAY_REFRESH = 1        # mode: into it

ctypedef struct flow_replay_t:     # where a replay stands
    u32 number                     # domain
    u32 item                       # next one, 0 = the pass is over
    u32 pass_kind                  # FLOW_ITEM of the running pass
    u32 what
    u32 since                      # only templates defined after this serial, and by the datagram at hand; 0 = all
    u32 payload                    # bytes a datagram at most
    u32 sequence                   # of the next datagram
    u32 state                      # renumbering state to move on, 0 = none (JOIN)
    u32 skipped                    # items longer than a datagram
    u32 datagrams                  # built so far
    u32 records                    # data records in them


cdef inline u32 flow_replay_first(const flow_t *flow, const flow_domain_t *d, u32 which, u32 since) noexcept nogil:
    """The template of a list to begin with. Those that the datagram at hand defined or repeated are the end of the list, so that what is new is
    found by walking over no more than these."""
    cdef u32 i = d.last[which]
    if since == 0:
        return d.first[which]
    if i == 0 or flow.items[i].heard != <u32>d.datagrams:
        return 0
    while flow.items[i].previous and flow.items[flow.items[i].previous].heard == <u32>d.datagrams:
        flow_step(1)
        i = flow.items[i].previous
    return i


cdef inline void flow_replay_item(flow_t *flow, flow_replay_t *r) noexcept nogil:
    """Moves on to the next item that the running pass takes, or to the next pass: templates, options templates, options data."""
    cdef flow_domain_t *d = &flow.domains[r.number]
    cdef flow_item_t *item
    cdef u32 t
    while True:
        while r.item:
            item = &flow.items[r.item]
            if item.kind == r.pass_kind and item.kind != FLOW_ITEM_OPTIONS_DATA and (r.since == 0 or item.serial - r.since - 1 < 0x80000000U):
                return
            if item.kind == r.pass_kind and r.pass_kind == FLOW_ITEM_OPTIONS_DATA:
                t = flow_template(flow, r.number, item.id)
                if t and flow.items[t].serial == item.serial:
                    return
            r.item = item.next
        if r.pass_kind == FLOW_ITEM_OPTIONS_DATA:
            return
        r.pass_kind += 1
        if r.pass_kind < FLOW_ITEM_OPTIONS_DATA:
            r.item = flow_replay_first(flow, d, flow_list(<u8>r.pass_kind), r.since) if r.what & FLOW_REPLAY_TEMPLATES else 0
        elif r.what & FLOW_REPLAY_OPTIONS:
            r.item = d.first[FLOW_OPTIONS]


cdef inline void flow_replay_rewind(flow_t *flow, flow_replay_t *r) noexcept nogil:
    r.item = 0
    r.pass_kind = 0
    r.datagrams = r.records = r.skipped = 0
    flow_replay_item(flow, r)


cdef inline u32 flow_replay_header(flow_t *flow, const flow_replay_t *r, u8 *out) noexcept nogil:
    """The header, clocks moved on, length or count left for the end; returns its bytes."""
    cdef flow_domain_t *d = &flow.domains[r.number]
    cdef u64 ms = (flow.now_ns - d.seen_ns) // 1000000         # a domain carried over a reboot may have been seen before time 0
    memcpy(out, d.header, d.header_bytes)
    if d.kind == FLOW_V9:
        flow_put32(out + 4, flow_u32(d.header + 4) + <u32>ms)
        flow_put32(out + 8, flow_u32(d.header + 8) + <u32>(ms // 1000))
        flow_put32(out + 12, d.sequence.last_sequence if d.sequence.unnumbered else r.sequence)
    else:
        flow_put32(out + 4, flow_u32(d.header + 4) + <u32>(ms // 1000))
        flow_put32(out + 8, d.sequence.last_sequence if d.sequence.unnumbered else r.sequence)
    return d.header_bytes


cdef inline u32 flow_replay_set_id(const flow_domain_t *d, const flow_item_t *item) noexcept nogil:
    if item.kind == FLOW_ITEM_OPTIONS_DATA:
        return item.id
    return (2 if d.kind == FLOW_IPFIX else 0) + (1 if item.kind == FLOW_ITEM_OPTIONS_TEMPLATE else 0)


cdef inline u32 flow_replay_close(u8 *out, u32 start, u32 at, bint v9) noexcept nogil:
    """Ends the set that began at `start`: v9 sets are padded to 4 bytes (RFC 3954 §5.2, §6.1); returns the new end."""
    while v9 and at & 3:
        if out != NULL:
            out[at] = 0
        at += 1
    if out != NULL:
        flow_put16(out + start + 2, at - start)
    return at


cdef inline u32 flow_replay_fill(flow_t *flow, flow_replay_t *r, u8 *out, u32 at, u32 *total, u32 *data) noexcept nogil:
    """Puts sets into the datagram while they fit; returns its end. total, data: records, data records of it. out NULL: only measures."""
    cdef flow_domain_t *d = &flow.domains[r.number]
    cdef bint v9 = d.kind == FLOW_V9
    cdef flow_item_t *item
    cdef u32 room = r.payload & ~<u32>3 if v9 else r.payload
    cdef u32 set_id, head
    cdef u32 start = 0
    cdef u32 open_id = 0
    while r.item:
        item = &flow.items[r.item]
        set_id = flow_replay_set_id(d, item)
        # one options template a v9 set: some collectors read only the first, and its padding
        head = 0 if start and set_id == open_id and not (v9 and item.kind == FLOW_ITEM_OPTIONS_TEMPLATE) else 4
        if start and head:
            at = flow_replay_close(out, start, at, v9)
            start = 0
        if v9 and item.bytes < 4:
            r.skipped += 1            # its set's padding would read as another record
        elif at + head + item.bytes > room:
            if total[0]:
                break
            r.skipped += 1
        else:
            if head:
                start = at
                open_id = set_id
                if out != NULL:
                    flow_put16(out + at, set_id)
                at += 4
            if out != NULL:
                flow_chain_copy(flow, item.block, 2 * <u32>item.steps, out + at, item.bytes)
            at += item.bytes
            total[0] += 1
            data[0] += item.kind == FLOW_ITEM_OPTIONS_DATA
        r.item = item.next
        flow_replay_item(flow, r)
    return flow_replay_close(out, start, at, v9) if start else at


cdef inline u32 flow_replay_next(flow_t *flow, flow_replay_t *r, u8 *out) noexcept nogil:
    """Builds the next datagram into out (r.payload bytes; NULL: only measures); returns its bytes, 0 = there is no more."""
    cdef flow_domain_t *d = &flow.domains[r.number]
    cdef u32 total = 0
    cdef u32 data = 0
    cdef u32 used
    cdef u32 at = d.header_bytes
    if r.item == 0:
        return 0
    at = flow_replay_fill(flow, r, out, at, &total, &data)
    if total == 0:
        return 0
    used = data if d.kind == FLOW_IPFIX else 1
    r.datagrams += 1
    r.records += data
    if out == NULL:
        return at
    flow_replay_header(flow, r, out)
    flow_put16(out + 2, at if d.kind == FLOW_IPFIX else total)
    r.sequence += used
    if r.state:
        flow.states[r.state].offset += used
        flow.states[r.state].spent += at + FLOW_REPLAY_OVERHEAD
    atomics_add(&flow.counters.replayed_datagrams, 1)
    atomics_add(&flow.counters.replayed_records, total)
    return at


cdef inline bint flow_replay_allowed(flow_t *flow, u32 number, u32 receiver) noexcept nogil:
    """Whether an arriving datagram may have the domain's templates replayed to the receiver now; if not, or if there is no room for a state,
    False: the receiver is owed them (flow_replay_owed)."""
    cdef u32 i = flow_state_make(flow, number, receiver)
    if i == 0:
        return False
    if flow_may_replay(flow, &flow.states[i]):
        return True
    flow.states[i].owed = True
    flow.domains[number].owing = True
    return False


cdef inline bint flow_replay_owed(flow_t *flow, u32 number, u32 receiver) noexcept nogil:
    """Whether the receiver was owed templates of the domain and may have them now: they are to be replayed. Keeps flow_domain_t.owing set while
    it must wait."""
    cdef u32 i = flow_state(flow, number, receiver)
    if i == 0 or not flow.states[i].owed:
        return False
    if flow_may_replay(flow, &flow.states[i]):
        flow.states[i].owed = False
        return True
    flow.domains[number].owing = True
    return False


cdef inline bint flow_replay_begin(flow_t *flow, flow_replay_t *r, u32 number, u32 receiver, u32 what, u32 mode, u32 since,
                                   u32 payload) noexcept nogil:
    """Prepares a replay of domain `number` to the receiver; then flow_replay_next() until it returns 0, at once: nothing may be observed in
    between. since: serial of the flow before the datagram at hand was observed: only templates that are new since; 0 = all. payload: UDP
    payload bytes a datagram, 512 .. 65507. False: nothing to replay, or no renumbering state."""
    cdef flow_domain_t *d = &flow.domains[number]
    cdef u32 state
    cdef u32 offset = 0
    memset(r, 0, sizeof(flow_replay_t))
    if number == 0 or d.owner == 0 or (d.kind != FLOW_V9 and d.kind != FLOW_IPFIX) or d.header_bytes == 0:
        return False
    r.number = number
    r.what = what
    r.since = since
    r.payload = payload
    flow_replay_rewind(flow, r)
    if r.item == 0:
        return False
    state = flow_state_make(flow, number, receiver) if mode == FLOW_REPLAY_REFRESH else flow_state(flow, number, receiver)
    if mode == FLOW_REPLAY_REFRESH and state == 0:
        return False
    if state and flow.states[state].restarts == d.restarts_seen:
        offset = flow.states[state].offset
    if state and flow.states[state].restarts == d.restarts_seen and flow.states[state].paused:
        r.sequence = offset + flow.states[state].paused_at
        r.state = state
        return True
    r.sequence = offset + flow_next(d)
    if mode == FLOW_REPLAY_REFRESH:
        flow.states[state].restarts = d.restarts_seen
        flow.states[state].offset = offset
        flow.states[state].paused = 0
        r.state = state
        return True
    while flow_replay_next(flow, r, NULL):
        pass
    r.sequence -= r.records if d.kind == FLOW_IPFIX else r.datagrams
    flow_replay_rewind(flow, r)
    return True


cdef inline u32 flow_replay_domain(const flow_t *flow, u32 *cursor, u32 *steps) noexcept nogil:
    """The next domain from *cursor (0 at first) that has templates; 0 = steps used up, or (*cursor past domain_limit) the end."""
    cdef const flow_domain_t *d
    while cursor[0] < flow.domain_top and steps[0]:
        cursor[0] += 1
        steps[0] -= 1
        d = &flow.domains[cursor[0]]
        if d.owner and flow_has_templates(d):
            return cursor[0]
    if cursor[0] >= flow.domain_top:
        cursor[0] = flow.domain_limit + 1
    return 0


cdef inline u32 flow_replay_exporter(const flow_t *flow, const u8 *address, u16 port_be) noexcept nogil:
    """First domain of an exporter session, 0 = none; the next ones: domains[number].next."""
    cdef u32 i = flow_exporter_find(flow, address, port_be)
    return flow.exporters[i].first if i else 0
