# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
"""One record of a template set, NetFlow v9 (RFC 3954 §5.2, §6.1) or IPFIX (RFC 7011 §3.4): parsed, measured, never stored here.

Lengths are not trusted: a record that claims more bytes than there are does not parse, and the caller must store nothing from that datagram.
Called by: scan (is the set well formed?), learn (what does it say?). Must never read past the n bytes it is given.
"""

from libc.string cimport memset
from flow.steps cimport flow_step
from uapi.net cimport u8, u16, u32

cdef enum:
    FLOW_SET_TEMPLATE_V9 = 0
    FLOW_SET_OPTIONS_V9 = 1
    FLOW_SET_TEMPLATE_IPFIX = 2
    FLOW_SET_OPTIONS_IPFIX = 3
    FLOW_SET_DATA = 256            # and up; template ids too
    FLOW_VARIABLE = 65535          # length of a field of variable length (RFC 7011 §7); in steps: "one variable field"
    FLOW_STEPS = 62                # steps of a template at most, as many as fit into one block; one with more has an unknown record count
    FLOW_WITHDRAW_ONE = 1
    FLOW_WITHDRAW_ALL = 2          # every template of the set's kind (RFC 7011 §8.1)

ctypedef struct flow_record_t:
    u32 bytes                      # of the template record
    u32 body                       # offset of its first field
    u32 fields                     # scope fields too
    u32 scope_fields
    u32 record_bytes               # shortest data record it describes; the only one when `variable` is 0
    u32 scope_bytes                # shortest scope
    u32 variable                   # fields of variable length
    u16 id
    u8 options
    u8 withdraw                    # 0 or FLOW_WITHDRAW


cdef inline u32 flow_u16(const u8 *p) noexcept nogil:
    return <u32>p[0] << 8 | p[1]


cdef inline u32 flow_u32(const u8 *p) noexcept nogil:
    return <u32>p[0] << 24 | <u32>p[1] << 16 | <u32>p[2] << 8 | p[3]


cdef inline void flow_put16(u8 *p, u32 value) noexcept nogil:
    p[0] = <u8>(value >> 8)
    p[1] = <u8>value


cdef inline void flow_put32(u8 *p, u32 value) noexcept nogil:
    flow_put16(p, value >> 16)
    flow_put16(p + 2, value)


cdef inline bint flow_fields(bint ipfix, const u8 *p, u32 n, flow_record_t *r) noexcept nogil:
    """Measures r.fields field specifiers at r.body; sets bytes, record_bytes, scope_bytes, variable. False: they do not fit into n."""
    cdef u32 i, length
    cdef u32 at = r.body
    for i in range(r.fields):
        flow_step(1)
        if n - at < 4:
            return False
        length = flow_u16(p + at + 2)
        if ipfix and p[at] & 0x80:
            if n - at < 8:
                return False
            at += 4
        at += 4
        if ipfix and length == FLOW_VARIABLE:
            r.variable += 1
            length = 1
        r.record_bytes += length
        if i < r.scope_fields:
            r.scope_bytes += length
    r.bytes = at
    return True


cdef inline bint flow_record_ipfix(u32 set_id, const u8 *p, u32 n, flow_record_t *r) noexcept nogil:
    """n >= 4."""
    r.fields = flow_u16(p + 2)
    r.options = set_id == FLOW_SET_OPTIONS_IPFIX
    r.body = 4
    if r.fields == 0:
        r.bytes = 4
        r.withdraw = FLOW_WITHDRAW_ALL if r.id == set_id else FLOW_WITHDRAW_ONE
        return r.id == set_id or r.id >= FLOW_SET_DATA
    if r.id < FLOW_SET_DATA:
        return False
    if r.options:
        if n < 6:
            return False
        r.scope_fields = flow_u16(p + 4)
        r.body = 6
        if r.scope_fields > r.fields:
            return False
    return flow_fields(True, p, n, r)


cdef inline bint flow_record_v9(u32 set_id, const u8 *p, u32 n, flow_record_t *r) noexcept nogil:
    """n >= 4."""
    cdef u32 scope, option
    if r.id < FLOW_SET_DATA:
        return False
    r.options = set_id == FLOW_SET_OPTIONS_V9
    r.body = 4
    r.fields = flow_u16(p + 2)
    if r.options:
        if n < 6:
            return False
        scope = flow_u16(p + 2)
        option = flow_u16(p + 4)
        if (scope | option) & 3:
            return False
        r.scope_fields = scope >> 2
        r.fields = (scope + option) >> 2
        r.body = 6
    return r.fields != 0 and flow_fields(False, p, n, r)


cdef inline bint flow_record(bint ipfix, u32 set_id, const u8 *p, u32 n, flow_record_t *r) noexcept nogil:
    """Parses the record at p, n bytes left in its set. False: malformed; nothing of r counts then but that r.bytes is 0."""
    memset(r, 0, sizeof(flow_record_t))
    if n < 4:
        return False
    r.id = <u16>flow_u16(p)
    if flow_record_ipfix(set_id, p, n, r) if ipfix else flow_record_v9(set_id, p, n, r):
        return True
    r.bytes = 0
    return False


cdef inline bint flow_record_more(const u8 *p, u32 n) noexcept nogil:
    """Whether another record begins here; else what is left of the set is padding (zeros, RFC 3954 §5.2)."""
    return n >= 4 and flow_u16(p) != 0


cdef inline int flow_record_check(bint ipfix, u32 set_id, const u8 *p, u32 n) noexcept nogil:
    """How many records the set body p, n bytes, has; -1 = one does not parse."""
    cdef flow_record_t r
    cdef int records = 0
    while flow_record_more(p, n):
        if not flow_record(ipfix, set_id, p, n, &r):
            return -1
        records += 1
        p += r.bytes
        n -= r.bytes
    return records


cdef inline u32 flow_steps(const u8 *p, const flow_record_t *r, u16 *steps, u16 *scope_steps) noexcept nogil:
    """Compiles an IPFIX template with variable fields: runs of fixed fields summed up, FLOW_VARIABLE for each variable one; a step ends with
    the scope. Returns how many, 0 = more than FLOW_STEPS."""
    cdef u32 i, length, sum_bytes = 0
    cdef u32 n = 0
    cdef u32 at = r.body
    for i in range(r.fields + 1):
        flow_step(1)
        length = flow_u16(p + at + 2) if i < r.fields else FLOW_VARIABLE
        if sum_bytes and (length == FLOW_VARIABLE or i == r.scope_fields):
            if n == FLOW_STEPS:
                return 0
            steps[n] = <u16>(sum_bytes if sum_bytes < FLOW_VARIABLE else FLOW_VARIABLE - 1)
            n += 1
            sum_bytes = 0
        if i == r.scope_fields:
            scope_steps[0] = <u16>n
        if i == r.fields:
            return n
        if length != FLOW_VARIABLE:
            sum_bytes += length
        elif n == FLOW_STEPS:
            return 0
        else:
            steps[n] = FLOW_VARIABLE
            n += 1
        at += 8 if p[at] & 0x80 else 4
    return n
