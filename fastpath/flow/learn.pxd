# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
"""What is stored from a well-formed v9 or IPFIX datagram: templates, withdrawals, rows of options data; and the count of its data records.

Templates are kept as raw records, so that replay repeats the exporter's own bytes. A redefinition replaces (RFC 7011 §8.1; v9 exporters do it
too), options data of the old definition are void. IPFIX counts data records by the template's length, or by a walk where fields are variable;
data sets of an unknown template make the datagram FLOW_UNKNOWN. At most FLOW_LEARN_RECORDS records are stored from one datagram.
Called by: observe, with datagrams that scan found well formed, only. Must never read past the message.
"""

from base.atomics cimport atomics_add
from flow.items cimport flow_item_free, flow_items_hash, flow_write_begin, flow_write_end
from flow.rows cimport FLOW_SPANS, flow_learn_row, flow_rows, flow_span_t
from flow.memory cimport flow_blocks_for, flow_chain, flow_chain_equal
from flow.scan cimport (
    FLOW_IPFIX, FLOW_OPTIONS_DATA, FLOW_OPTIONS_TEMPLATE, FLOW_TEMPLATE, FLOW_UNKNOWN, FLOW_V9, flow_seen_t,
)
from flow.steps cimport flow_step
from flow.state cimport (
    FLOW_ITEM_OPTIONS_TEMPLATE, FLOW_ITEM_TEMPLATE, FLOW_OPTIONS_TEMPLATES, FLOW_TEMPLATES, flow_domain_t, flow_item_t, flow_t,
)
from flow.table cimport flow_item_make, flow_item_repeat, flow_item_room, flow_template
from flow.template cimport (
    FLOW_SET_DATA, FLOW_SET_OPTIONS_IPFIX, FLOW_STEPS, FLOW_VARIABLE, FLOW_WITHDRAW_ALL, flow_record, flow_record_more, flow_record_t,
    flow_steps, flow_u16,
)
from uapi.net cimport u8, u16, u32, u64

cdef enum:
    FLOW_LEARN_RECORDS = 4096
    FLOW_NO_FIT = 0xFFFFFFFFU


cdef inline u32 flow_extent(const u16 *steps, u32 count, const u8 *p, u32 n) noexcept nogil:
    """Bytes that the steps take at p, FLOW_NO_FIT if more than n."""
    cdef u32 i, length
    cdef u32 at = 0
    for i in range(count):
        flow_step(1)
        length = steps[i]
        if length == FLOW_VARIABLE:
            if at >= n:
                return FLOW_NO_FIT
            length = p[at]
            at += 1
            if length == 255:
                if n - at < 2:
                    return FLOW_NO_FIT
                length = flow_u16(p + at)
                at += 2
        at += length
        if at > n:
            return FLOW_NO_FIT
    return at


cdef inline void flow_withdraw(flow_t *flow, u32 number, const flow_record_t *r) noexcept nogil:
    """Drops one template, or all of the set's kind, each of which cost bytes to teach. A withdrawal of what is unknown says nothing."""
    cdef flow_domain_t *d = &flow.domains[number]
    cdef u32 which = FLOW_OPTIONS_TEMPLATES if r.options else FLOW_TEMPLATES
    cdef u32 i
    if r.withdraw == FLOW_WITHDRAW_ALL:
        while d.first[which]:
            flow_step(1)
            flow_item_free(flow, d.first[which])
            atomics_add(&d.withdrawn, 1)
        return
    i = flow_template(flow, number, r.id)
    if i:
        flow_item_free(flow, i)
        atomics_add(&d.withdrawn, 1)


cdef inline bint flow_learn_template(flow_t *flow, u32 number, bint ipfix, const u8 *p, const flow_record_t *r) noexcept nogil:
    """Keeps the template record at p, or notes that it was repeated. False: no room."""
    cdef u16 steps[FLOW_STEPS]
    cdef flow_span_t spans[FLOW_SPANS]
    cdef u16 scope_steps = 0
    cdef u8 rows = 0
    cdef u32 n = 0
    cdef u32 keys = 0
    cdef u32 blocks
    cdef u32 i = flow_template(flow, number, r.id)
    cdef u8 kind = FLOW_ITEM_OPTIONS_TEMPLATE if r.options else FLOW_ITEM_TEMPLATE
    cdef flow_domain_t *d = &flow.domains[number]
    cdef flow_item_t *item
    atomics_add(&d.templates_seen, 1)
    if i:
        item = &flow.items[i]
        if item.kind == kind and item.bytes == r.bytes and flow_chain_equal(flow, item.block, 2 * <u32>item.steps, p, r.bytes):
            flow_item_repeat(flow, i)
            return True
        flow_item_free(flow, i)
    if r.variable:
        n = flow_steps(p, r, steps, &scope_steps)
    if r.options:
        keys = flow_rows(ipfix, p, r, spans, &rows)
    blocks = flow_blocks_for(r.bytes + 2 * n) + (keys != 0)
    if not flow_item_room(flow, number, blocks, False):
        return False
    i = flow_item_make(flow, number, kind, r.id, flow_items_hash(flow, number, r.id, False, 0))
    item = &flow.items[i]
    flow.serial += 1
    item.serial = flow.serial
    item.record_bytes = r.record_bytes
    item.scope_bytes = r.scope_bytes
    item.fields = <u16>r.fields
    item.scope_fields = <u16>r.scope_fields
    item.bytes = <u16>r.bytes
    item.steps = <u16>n
    item.scope_steps = scope_steps
    item.uncountable = r.record_bytes == 0 or (r.variable != 0 and n == 0)
    item.block = flow_chain(flow, <const u8 *>steps, 2 * n, p, r.bytes)
    item.keys = flow_chain(flow, <const u8 *>spans, keys * <u32>sizeof(flow_span_t), NULL, 0)
    item.spans = <u8>keys
    item.whole = rows
    flow.exporters[d.owner].blocks += blocks
    atomics_add(&d.templates_added, 1)
    return True


cdef inline bint flow_learn_templates(flow_t *flow, u32 number, bint ipfix, u32 set_id, const u8 *p, u32 n, u32 *budget) noexcept nogil:
    """All records of a template set body of n bytes. False: no room, or enough learnt from this datagram."""
    cdef flow_record_t r
    while flow_record_more(p, n):
        if not flow_record(ipfix, set_id, p, n, &r) or budget[0] == 0:
            return False
        budget[0] -= 1
        if r.withdraw:
            flow_withdraw(flow, number, &r)
        elif not flow_learn_template(flow, number, ipfix, p, &r):
            return False
        p += r.bytes
        n -= r.bytes
    return True


cdef inline u32 flow_said(const u8 *p, u32 n) noexcept nogil:
    """Bytes up to the last that is not zero."""
    while n and p[n - 1] == 0:
        n -= 1
    return n


cdef inline u32 flow_learn_data(flow_t *flow, u32 number, u32 template, const u8 *p, u32 n, bint *learn, u32 *budget) noexcept nogil:
    """Walks a data set body of n bytes; returns its records, FLOW_NO_FIT = uncountable. learn: keep options data; cleared when there is no
    room. A v9 record of nothing but zeros behind the first is padding, which some exporters make longer than the 3 bytes of RFC 3954 §5.3."""
    cdef flow_item_t *t = &flow.items[template]
    cdef const u16 *steps = <const u16 *>flow.blocks[t.block].data     # the first block: keeping options data never evicts its template
    cdef bint v9 = flow.domains[number].kind == FLOW_V9
    cdef u32 said
    cdef u32 length = t.record_bytes
    cdef u32 scope = t.scope_bytes
    cdef u32 records = 0
    if t.uncountable:
        return FLOW_NO_FIT
    if t.steps == 0 and not learn[0]:
        return n // length
    said = flow_said(p, n) if v9 else n
    while n >= t.record_bytes and (said or records == 0):
        flow_step(1)
        if t.steps:
            length = flow_extent(steps, t.steps, p, n)
            if length == FLOW_NO_FIT:
                return FLOW_NO_FIT
            if learn[0]:
                scope = flow_extent(steps, t.scope_steps, p, n)
        if learn[0]:
            if budget[0] == 0 or length == 0 or not flow_learn_row(flow, number, template, p, length, scope):
                learn[0] = False
            else:
                budget[0] -= 1
        records += 1
        p += length
        n -= length
        said -= length if length < said else said
    return records


cdef inline void flow_learn_set(flow_t *flow, u32 number, flow_seen_t *s, u32 set_id, const u8 *p, u32 n, bint *learn,
                                u32 *budget) noexcept nogil:
    """One data set body of n bytes: counted (IPFIX), and kept where it is options data."""
    cdef u32 i = flow_template(flow, number, set_id)
    cdef u32 records
    cdef bint options
    if i == 0:
        s.flags |= FLOW_UNKNOWN
        return
    if not flow.items[i].used:
        flow.items[i].used = 1
    options = flow.items[i].kind == FLOW_ITEM_OPTIONS_TEMPLATE
    if options:
        s.flags |= FLOW_OPTIONS_DATA
    elif s.kind != FLOW_IPFIX:
        return
    options = options and learn[0]
    records = flow_learn_data(flow, number, i, p, n, &options, budget)
    if flow.items[i].kind == FLOW_ITEM_OPTIONS_TEMPLATE:
        learn[0] = options
    if records == FLOW_NO_FIT:
        if s.kind == FLOW_IPFIX:
            s.flags |= FLOW_UNKNOWN
        return
    if s.kind == FLOW_IPFIX:
        s.data += records
    if flow.items[i].kind == FLOW_ITEM_OPTIONS_TEMPLATE:
        s.options += records


cdef inline void flow_learn(flow_t *flow, u32 number, const u8 *p, flow_seen_t *s) noexcept nogil:
    """Walks the sets of the well-formed v9 or IPFIX message p, learns from them, and counts an IPFIX message's data records into s.data."""
    cdef flow_domain_t *d = &flow.domains[number]
    cdef bint ipfix = s.kind == FLOW_IPFIX
    cdef bint templates = (s.flags & (FLOW_TEMPLATE | FLOW_OPTIONS_TEMPLATE)) != 0
    cdef bint learn = True
    cdef bint open = True
    cdef bint writes = templates or d.first[FLOW_OPTIONS_TEMPLATES] != 0
    cdef u32 budget = FLOW_LEARN_RECORDS
    cdef u32 at = s.header_bytes
    cdef u32 set_id, length
    if writes:
        flow_write_begin(&d.version)
    while s.bytes - at >= 4:
        flow_step(1)
        set_id = flow_u16(p + at)
        length = flow_u16(p + at + 2)
        if set_id >= FLOW_SET_DATA:
            flow_learn_set(flow, number, s, set_id, p + at + 4, length - 4, &learn, &budget)
        elif open and set_id <= FLOW_SET_OPTIONS_IPFIX and (set_id >= 2) == ipfix:
            open = flow_learn_templates(flow, number, ipfix, set_id, p + at + 4, length - 4, &budget)
            if not open:
                atomics_add(&flow.counters.refused_items, 1)
        at += length
    if not learn:
        atomics_add(&flow.counters.refused_items, 1)
    if writes:
        flow_write_end(&d.version)
