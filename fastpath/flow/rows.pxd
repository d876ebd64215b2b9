# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
"""Rows of options data: whether a record is a row sent again, or another row of the same table.

The scope names the part of the exporter that the data describe (RFC 3954 §6.1, RFC 7011 §3.4.2.1). It is not a key: v9 routers give each row of
a table the scope System and identify rows by an option: samplerId, ingressInterface, applicationId, a VRF. So two rows are the same where the
scope and all identifiers among the options are (FLOW_ROWS_KEYED). A table about the whole exporter without a known identifier has no known key:
then each different record is a row (FLOW_ROWS_WHOLE), unless all its fields are measurements or settings, which change: then the table has one
row. A datagram with two different rows of one key proves that this is not the key (FLOW_ROWS_PROVEN). And if each datagram brings one new
record and nothing else, the record is a value that changes, not a table. A row that is not sent again expires like a template; of two versions
of a row the newer is replayed last.

Called by: learn. Bounded work for each byte: spans are few, and each lies within the record.
"""

from libc.string cimport memcmp, memcpy
from base.hash cimport hash_mix
from flow.items cimport flow_item_free, flow_items_hash
from flow.memory cimport flow_blocks_for, flow_chain, flow_chain_copy, flow_chain_equal
from flow.steps cimport flow_step
from flow.state cimport FLOW_ITEM_OPTIONS_DATA, flow_domain_t, flow_item_t, flow_t
from flow.table cimport flow_item_make, flow_item_repeat, flow_item_room
from flow.template cimport FLOW_VARIABLE, flow_record_t, flow_u16, flow_u32
from uapi.net cimport u8, u16, u32, u64

cdef enum:
    FLOW_ROWS_KEYED = 0
    FLOW_ROWS_WHOLE = 1
    FLOW_ROWS_PROVEN = 2           # whole; rows learnt before the proof are still found by their key
    FLOW_ROLE_OTHER = 0            # names, and what is unknown
    FLOW_ROLE_KEY = 1
    FLOW_ROLE_VALUE = 2
    FLOW_SPANS = 8
    FLOW_SPAN_BYTES = 32           # longest field that is taken for an identifier
    FLOW_LONE = 250                # lone new records in a row that tell a value from a table

ctypedef struct flow_span_t:       # bytes of a record that belong to its key
    u16 at
    u16 bytes


cdef inline u32 flow_role(u32 element) noexcept nogil:
    """What an IANA element is in a row, after the registry's data type semantics: identifiers and what flows and tables are keyed by; counters,
    times, sampling parameters; names and the rest."""
    if (element == 4 or element == 5 or 7 <= element <= 18 or 27 <= element <= 33 or 44 <= element <= 48 or element == 51
            or 56 <= element <= 63 or 70 <= element <= 81 or 88 <= element <= 90 or element == 95 or element == 101
            or 126 <= element <= 131 or 137 <= element <= 149 or 169 <= element <= 170 or 175 <= element <= 183
            or 195 <= element <= 197 or 225 <= element <= 228 or 234 <= element <= 235 or element == 239
            or 243 <= element <= 247 or 252 <= element <= 257 or element == 277 or element == 283 or 301 <= element <= 303
            or element == 346 or 361 <= element <= 368 or element == 413 or element == 456):
        return FLOW_ROLE_KEY
    if (1 <= element <= 3 or element == 6 or 19 <= element <= 26 or 34 <= element <= 43 or element == 49 or element == 50
            or 52 <= element <= 55 or 85 <= element <= 87 or 132 <= element <= 136 or 150 <= element <= 168
            or 171 <= element <= 174 or 184 <= element <= 194 or 198 <= element <= 224 or element == 258 or 263 <= element <= 270
            or 304 <= element <= 334 or 336 <= element <= 338 or 352 <= element <= 360 or 390 <= element <= 403):
        return FLOW_ROLE_VALUE
    return FLOW_ROLE_OTHER


cdef inline bint flow_scope_wide(bint ipfix, u32 element) noexcept nogil:
    """Whether a scope field is about the exporter as a whole: System (RFC 3954 §6.1); its address, a process, a domain (RFC 7011 §4)."""
    if not ipfix:
        return element == 1
    return element == 130 or element == 131 or element == 143 or element == 144 or element == 149


cdef inline u32 flow_rows(bint ipfix, const u8 *p, const flow_record_t *r, flow_span_t *spans, u8 *rows) noexcept nogil:
    """Reads an options template record: how its rows are told apart (rows: FLOW_ROWS), and the spans of the key behind the scope. What lies
    behind a field of variable length has no fixed place and is no key. Returns how many spans."""
    cdef u32 i, element, length, role
    cdef u32 n = 0
    cdef u32 at = 0
    cdef u32 field = r.body
    cdef bint wide = True
    cdef bint other = False
    cdef bint fixed = True
    for i in range(r.fields):
        flow_step(1)
        element = flow_u16(p + field)
        length = flow_u16(p + field + 2)
        field += 4
        if ipfix and element & 0x8000:
            element = FLOW_VARIABLE if flow_u32(p + field) else element & 0x7FFF
            field += 4
        if i < r.scope_fields:
            wide = wide and flow_scope_wide(ipfix, element)
            role = FLOW_ROLE_VALUE
        else:
            role = flow_role(element)
        if ipfix and length == FLOW_VARIABLE:
            fixed = False
        if role == FLOW_ROLE_KEY and fixed and 0 < length <= FLOW_SPAN_BYTES and at <= 0xFFFF and n < FLOW_SPANS:
            spans[n].at = <u16>at
            spans[n].bytes = <u16>length
            n += 1
        elif role != FLOW_ROLE_VALUE and length:
            other = True
        at += length
    rows[0] = FLOW_ROWS_WHOLE if wide and other and n == 0 else FLOW_ROWS_KEYED
    return n


cdef inline u64 flow_bytes_hash(u64 h, const u8 *p, u32 n) noexcept nogil:
    """h: seeded; who knew the state after one word could choose the next so that all his rows fall together."""
    cdef u64 word
    while n >= 8:
        memcpy(&word, p, 8)
        h = hash_mix(h, word)
        p += 8
        n -= 8
    word = 0
    memcpy(&word, p, n)
    return hash_mix(h, word)


cdef inline u32 flow_row_hash(const flow_t *flow, u32 number, const flow_item_t *t, const u8 *p, u32 n, u32 scope,
                              bint whole) noexcept nogil:
    cdef const flow_span_t *spans = <const flow_span_t *>flow.blocks[t.keys].data
    cdef u64 h = flow_bytes_hash(flow.seed ^ n if whole else flow.seed ^ scope, p, n if whole else scope)
    cdef u32 i
    if not whole:
        for i in range(t.spans):
            flow_step(1)
            h = flow_bytes_hash(h, p + spans[i].at, spans[i].bytes)
    return flow_items_hash(flow, number, t.id, True, h)


cdef inline bint flow_row_same(const flow_t *flow, const flow_item_t *t, const flow_item_t *item, const u8 *p, u32 n, u32 scope,
                               bint whole) noexcept nogil:
    """Whether the item and the record p of n bytes are the same row. One of another definition of the template is void: its scope will do."""
    cdef const flow_span_t *spans = <const flow_span_t *>flow.blocks[t.keys].data
    cdef u8 kept[FLOW_SPAN_BYTES]
    cdef u32 i
    if whole:
        return item.bytes == n and flow_chain_equal(flow, item.block, 0, p, n)
    if item.scope_bytes != scope or not flow_chain_equal(flow, item.block, 0, p, scope):
        return False
    if item.serial != t.serial:
        return True
    for i in range(t.spans):
        flow_step(1)
        if (flow_chain_copy(flow, item.block, spans[i].at, kept, spans[i].bytes) != spans[i].bytes
                or memcmp(kept, p + spans[i].at, spans[i].bytes) != 0):
            return False
    return True


cdef inline u32 flow_row_find(const flow_t *flow, u32 number, const flow_item_t *t, u32 hashed, const u8 *p, u32 n, u32 scope,
                              bint whole) noexcept nogil:
    """The row's item, 0 = it is not known."""
    cdef u32 i = flow.item_buckets[hashed & (flow.limit.buckets - 1)]
    cdef const flow_item_t *item
    while i:
        flow_step(1)
        item = &flow.items[i]
        if (item.hash == hashed and item.domain == number and item.kind == FLOW_ITEM_OPTIONS_DATA and item.id == t.id
                and flow_row_same(flow, t, item, p, n, scope, whole)):
            return i
        i = item.bucket_next
    return 0


cdef inline bint flow_row_known(flow_t *flow, u32 number, flow_item_t *t, u32 *hashed, const u8 *p, u32 n, u32 scope) noexcept nogil:
    """Whether the row is kept already, byte for byte: it is noted as repeated. Else an older version of it makes room, and the row is to be
    made under *hashed."""
    cdef flow_domain_t *d = &flow.domains[number]
    cdef flow_item_t *item
    cdef u32 i
    hashed[0] = flow_row_hash(flow, number, t, p, n, scope, t.whole)
    i = flow_row_find(flow, number, t, hashed[0], p, n, scope, t.whole)
    if i == 0 and t.whole == FLOW_ROWS_PROVEN:
        i = flow_row_find(flow, number, t, flow_row_hash(flow, number, t, p, n, scope, False), p, n, scope, False)
        if i and not flow_row_same(flow, t, &flow.items[i], p, n, scope, True):
            i = 0
    if i == 0:
        return False
    item = &flow.items[i]
    if item.serial == t.serial and item.bytes == n and flow_chain_equal(flow, item.block, 0, p, n):
        flow_item_repeat(flow, i)
        return True
    if item.serial == t.serial and item.heard == <u32>d.datagrams:
        t.whole = FLOW_ROWS_PROVEN
        hashed[0] = flow_row_hash(flow, number, t, p, n, scope, True)
    else:
        flow_item_free(flow, i)
    return False


cdef inline void flow_row_lone(flow_t *flow, u32 number, flow_item_t *t, bint new) noexcept nogil:
    """Tells a value that changes from a table without a key: see above. What was kept of it is void from then on."""
    if not new or t.heard == <u32>flow.domains[number].datagrams:
        t.lone = 0
    elif t.lone < FLOW_LONE:
        t.lone += 1
    else:
        t.lone = 0
        t.whole = FLOW_ROWS_KEYED
        flow.serial += 1
        t.serial = flow.serial
    t.heard = <u32>flow.domains[number].datagrams


cdef inline bint flow_learn_row(flow_t *flow, u32 number, u32 template, const u8 *p, u32 n, u32 scope) noexcept nogil:
    """Keeps the options data record at p, n bytes, the first `scope` of them its scope. False: no room."""
    cdef flow_item_t *t = &flow.items[template]
    cdef flow_item_t *item
    cdef u32 hashed, i
    cdef bint known = flow_row_known(flow, number, t, &hashed, p, n, scope)
    if t.whole:
        flow_row_lone(flow, number, t, not known)
        if not t.whole:
            hashed = flow_row_hash(flow, number, t, p, n, scope, False)
    if known:
        return True
    if not flow_item_room(flow, number, flow_blocks_for(n), True):
        return False
    i = flow_item_make(flow, number, FLOW_ITEM_OPTIONS_DATA, t.id, hashed)
    item = &flow.items[i]
    item.serial = t.serial
    item.scope_bytes = scope
    item.bytes = <u16>n
    item.block = flow_chain(flow, p, n, NULL, 0)
    flow.exporters[flow.domains[number].owner].blocks += flow_blocks_for(n)
    return True
