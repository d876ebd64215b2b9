# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
"""Recognizes NetFlow v1, v5, v7, v8, v9, IPFIX and sFlow v5 from the bytes of a datagram.

Reads the header and, of v9 and IPFIX, the set headers (template sets also record by record, to know whether they are well formed): the cost is
the number of sets. A datagram that claims to be one of these and is not well formed is FLOW_MALFORMED: it is forwarded unchanged, and nothing
is stored from it. Anything else is FLOW_OTHER. Offsets: RFC 3954 §5.1, RFC 7011 §3.1, sFlow v5 (sflow.org), Cisco's NetFlow v1-v8 export
formats.
Called by: observe. Must never read past n bytes, keep state, or change a byte.
"""

from libc.string cimport memset
from flow.steps cimport flow_step
from flow.template cimport (
    FLOW_SET_DATA, FLOW_SET_OPTIONS_IPFIX, FLOW_SET_OPTIONS_V9, FLOW_SET_TEMPLATE_IPFIX, FLOW_SET_TEMPLATE_V9, flow_record_check,
    flow_u16, flow_u32,
)
from uapi.net cimport u8, u16, u32, u64

cdef enum:
    # kinds; the number is the version but for sFlow
    FLOW_OTHER = 0
    FLOW_V1 = 1
    FLOW_V5 = 5
    FLOW_V7 = 7
    FLOW_V8 = 8
    FLOW_V9 = 9
    FLOW_IPFIX = 10
    FLOW_SFLOW = 11
    FLOW_KINDS = 12
    # flags: what the bytes say
    FLOW_TEMPLATE = 1
    FLOW_OPTIONS_TEMPLATE = 2
    FLOW_DATA = 4                  # a data set, or records of v1 .. v8, or samples
    FLOW_MALFORMED = 8
    # flags: what the cache and the sequence say of it (observe)
    FLOW_OPTIONS_DATA = 16         # a data set of an options template
    FLOW_UNKNOWN = 32              # units cannot be counted: the template of a data set is unknown
    FLOW_LATE = 64                 # fills a gap that an earlier datagram opened
    FLOW_REPEATED = 128            # a sequence number seen before, or older than the window
    FLOW_RESTART = 256             # the exporter began anew
    FLOW_FOREIGN = 512             # templates only, numbered by a counter of their own: stands outside of the sequence
    FLOW_UNNUMBERED = 1024         # the exporter writes one and the same number for ever
    FLOW_UNCOUNTED = 2048          # FLOW_UNKNOWN, and the sequence counts what cannot be counted
    FLOW_HEADER = 40               # bytes of the longest header, sFlow with an IPv6 agent

ctypedef struct flow_seen_t:       # what is known of one datagram; the first half by scan, the rest by observe
    u32 flags
    u8 kind
    u8 header_bytes
    u16 sets
    u32 sequence
    u32 sequence_at                # its offset; 0 = this kind has none
    u32 records                    # as the header says: records of v1 .. v9, samples of sFlow; 0 for IPFIX
    u32 bytes                      # of the message
    u32 uptime_ms                  # of the exporter; 0 for IPFIX
    u32 export_s                   # Unix time the exporter says; 0 for sFlow
    u64 domain                     # v9 source id, IPFIX domain, v5 engine, v8 engine and aggregation, sFlow agent and sub-agent folded
    u32 units                      # how far the sequence counts on: flows, packets, data records, datagrams
    u32 data                       # data records of v9 (as the header says) and of IPFIX
    u32 options                    # of these, those of options
    u32 templates                  # template records
    u32 position                   # the sequence number in RFC 7011's meaning: units before this datagram
    u32 gap                        # units missing before this one
    u32 carry                      # units of the datagram before, where those could not be counted then
    u32 number                     # of its observation domain in the table, 0 = none


cdef inline u32 flow_v8_record(u32 aggregation) noexcept nogil:
    """Bytes of a v8 record by aggregation, 1 .. 14; of an unknown one the shortest."""
    if aggregation == 5 or aggregation == 7 or aggregation == 13 or aggregation == 14:
        return 40
    if aggregation == 8:
        return 44
    return 28 if aggregation < 3 or aggregation > 14 else 32


cdef inline void flow_scan_fixed(const u8 *p, u32 n, flow_seen_t *s) noexcept nogil:
    """v1, v5, v7, v8: header and records of one size."""
    cdef u32 record = 52
    s.header_bytes = 16 if s.kind == FLOW_V1 else 28 if s.kind == FLOW_V8 else 24
    if n < s.header_bytes:
        s.flags = FLOW_MALFORMED
        return
    s.records = flow_u16(p + 2)
    s.uptime_ms = flow_u32(p + 4)
    s.export_s = flow_u32(p + 8)
    if s.kind != FLOW_V1:
        s.sequence = flow_u32(p + 16)
        s.sequence_at = 16
        s.units = s.records
    if s.kind == FLOW_V5:
        s.domain = flow_u16(p + 20)
        record = 48
    elif s.kind == FLOW_V8:
        s.domain = flow_u16(p + 20) << 8 | p[22]
        record = flow_v8_record(p[22])
    s.flags = FLOW_DATA if s.header_bytes + s.records * record <= n else FLOW_MALFORMED


cdef inline void flow_scan_sets(const u8 *p, u32 n, flow_seen_t *s) noexcept nogil:
    """Walks the sets behind the header. n: bytes of the message. Up to 3 bytes at the end are padding, and some exporters fill a message up
    with zeros: where neither id nor length is, no set can be (its length counts its own header, RFC 3954 §5.2); that ends the message, and the
    sets before it hold, as collectors have it."""
    cdef bint ipfix = s.kind == FLOW_IPFIX
    cdef u32 at = s.header_bytes
    cdef u32 set_id, length
    cdef int records
    while n - at >= 4:
        flow_step(1)
        set_id = flow_u16(p + at)
        length = flow_u16(p + at + 2)
        if (set_id | length) == 0:
            s.bytes = at
            return
        if length < 4 or length > n - at:
            s.flags |= FLOW_MALFORMED
            return
        s.sets += 1
        if set_id >= FLOW_SET_DATA:
            s.flags |= FLOW_DATA
        elif set_id <= FLOW_SET_OPTIONS_IPFIX and (set_id >= FLOW_SET_TEMPLATE_IPFIX) == ipfix:
            records = flow_record_check(ipfix, set_id, p + at + 4, length - 4)
            if records < 0:
                s.flags |= FLOW_MALFORMED
                return
            s.templates += <u32>records
            s.flags |= FLOW_OPTIONS_TEMPLATE if set_id & 1 else FLOW_TEMPLATE
        at += length


cdef inline void flow_scan_v9(const u8 *p, u32 n, flow_seen_t *s) noexcept nogil:
    s.header_bytes = 20
    if n < 20:
        s.flags = FLOW_MALFORMED
        return
    s.records = flow_u16(p + 2)
    s.uptime_ms = flow_u32(p + 4)
    s.export_s = flow_u32(p + 8)
    s.sequence = flow_u32(p + 12)
    s.sequence_at = 12
    s.domain = flow_u32(p + 16)
    s.units = 1
    flow_scan_sets(p, n, s)
    s.data = s.records - s.templates if s.records > s.templates else 0


cdef inline void flow_scan_ipfix(const u8 *p, u32 n, flow_seen_t *s) noexcept nogil:
    """The header says where the message ends (RFC 7011 §3.1). A datagram with a second message behind it is malformed: its records could not
    be counted. Anything else there, zeros mostly, is none of ours."""
    cdef u32 length = flow_u16(p + 2)
    s.header_bytes = 16
    if n < 16 or length < 16 or length > n or (n - length >= 16 and flow_u16(p + length) == 10):
        s.flags = FLOW_MALFORMED
        return
    s.bytes = length
    s.export_s = flow_u32(p + 4)
    s.sequence = flow_u32(p + 8)
    s.sequence_at = 8
    s.domain = flow_u32(p + 12)
    flow_scan_sets(p, s.bytes, s)


cdef inline void flow_scan_sflow(const u8 *p, u32 n, flow_seen_t *s) noexcept nogil:
    """A sample has 8 bytes at least (its format and its length)."""
    cdef u32 family = flow_u32(p + 4) if n >= 8 else 0
    cdef u32 agent = 4 if family == 1 else 16
    cdef u32 i
    s.header_bytes = <u8>(24 + agent)
    if family < 1 or family > 2 or n < s.header_bytes:
        s.flags = FLOW_MALFORMED
        return
    for i in range(0, agent + 4, 4):
        s.domain = (s.domain << 32 | s.domain >> 32) ^ flow_u32(p + 8 + i)
        if agent == 16:
            s.domain *= <u64>0x9E3779B97F4A7C15
    s.sequence_at = 12 + agent
    s.sequence = flow_u32(p + 12 + agent)
    s.uptime_ms = flow_u32(p + 16 + agent)
    s.records = flow_u32(p + 20 + agent)
    s.units = 1
    s.flags = FLOW_DATA if s.records <= (n - s.header_bytes) >> 3 else FLOW_MALFORMED


cdef inline void flow_scan(const u8 *p, u32 n, flow_seen_t *s) noexcept nogil:
    """Fills s from the payload p of n bytes."""
    cdef u32 version
    memset(s, 0, sizeof(flow_seen_t))
    s.bytes = n
    if n < 4:
        return
    version = flow_u16(p)
    if version == 9:
        s.kind = FLOW_V9
        flow_scan_v9(p, n, s)
    elif version == 10:
        s.kind = FLOW_IPFIX
        flow_scan_ipfix(p, n, s)
    elif version == 5 or version == 1 or version == 7 or version == 8:
        s.kind = <u8>version
        flow_scan_fixed(p, n, s)
    elif version == 0 and flow_u16(p + 2) == 5:
        s.kind = FLOW_SFLOW
        flow_scan_sflow(p, n, s)
