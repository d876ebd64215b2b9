# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
"""The incoming sequence of one observation domain: what was lost before us, what came late, when the exporter began anew.

A jump ahead opens a gap; a late datagram fills it again; a gap that FLOW_GAPS datagrams have followed is loss for good. A number from
before that window is a stray: the exporter's clock going back (sysUptime, where the format has one), or a second stray in a row, makes it a
restart, which is no loss. A jump ahead by half the number space or more is a jump back. Numbers are 32 bits and wrap.

IPFIX exporters differ in what they count (RFC 5101 was vague): softflowd writes the records up to the end of the message, options data left
out; RFC 7011 says those before it, all of them. Each datagram is evidence for some of the four styles; positions are RFC 7011's, whatever
the style. Called by: observe, once a well-formed datagram. Must never count a unit both as lost and as arrived.
"""

from atomics cimport atomics_add
from flow.scan cimport FLOW_IPFIX, FLOW_LATE, FLOW_REPEATED, FLOW_RESTART, FLOW_UNKNOWN, flow_seen_t
from flow.memory cimport flow_less
from flow.state cimport FLOW_GAPS, flow_domain_t, flow_gap_t, flow_sequence_t
from uapi.net cimport u8, u32

cdef enum:
    FLOW_HALF = 0x80000000U
    FLOW_UPTIME_BACK_MS = 30000    # further back than any datagram is late
    FLOW_STYLE_INCLUSIVE = 1       # the number counts this message's records too
    FLOW_STYLE_NO_OPTIONS = 2      # records of options data are not counted
    FLOW_STYLES = 4
    FLOW_SCORE = 8


cdef inline void flow_gap_remove(flow_sequence_t *q, u32 g) noexcept nogil:
    q.gap_count -= 1
    while g < q.gap_count:
        q.gaps[g] = q.gaps[g + 1]
        g += 1


cdef inline void flow_gap_settle(flow_domain_t *d) noexcept nogil:
    """The oldest gap is loss for good."""
    atomics_add(&d.lost, d.sequence.gaps[0].length)
    flow_less(&d.pending, d.sequence.gaps[0].length)
    flow_gap_remove(&d.sequence, 0)


cdef inline void flow_gaps_settle(flow_domain_t *d) noexcept nogil:
    while d.sequence.gap_count:
        flow_gap_settle(d)


cdef inline void flow_gap_open(flow_domain_t *d, u32 start, u32 length) noexcept nogil:
    cdef flow_gap_t *gap
    if d.sequence.gap_count == FLOW_GAPS:
        flow_gap_settle(d)
    gap = &d.sequence.gaps[d.sequence.gap_count]
    gap.start = start
    gap.length = length
    gap.at = <u32>d.datagrams
    d.sequence.gap_count += 1
    atomics_add(&d.pending, length)


cdef inline bint flow_gap_fill(flow_domain_t *d, u32 sequence, u32 units, bint unknown) noexcept nogil:
    """Takes the units back from the open gap they belong to. units unknown: all that the gap has from there on. False: from no gap."""
    cdef flow_sequence_t *q = &d.sequence
    cdef flow_gap_t *gap
    cdef flow_gap_t rest
    cdef u32 g, before
    for g in range(q.gap_count):
        gap = &q.gaps[g]
        before = sequence - gap.start
        if before >= gap.length:
            continue
        if units == 0 and not unknown:
            return True
        if unknown or units > gap.length - before:
            units = gap.length - before
        flow_less(&d.pending, units)
        rest = gap[0]
        rest.start = sequence + units
        rest.length = gap.length - before - units
        if before:
            gap.length = before
        elif rest.length:
            gap[0] = rest
        else:
            flow_gap_remove(q, g)
        if before and rest.length:
            flow_less(&d.pending, rest.length)
            flow_gap_open(d, rest.start, rest.length)
            q.gaps[q.gap_count - 1].at = rest.at
        return True
    return False


cdef inline void flow_sequence_begin(flow_domain_t *d, flow_seen_t *s) noexcept nogil:
    """First datagram, or the first after a restart."""
    cdef flow_sequence_t *q = &d.sequence
    flow_gaps_settle(d)
    q.started = True
    q.window = q.window_next = s.position
    q.window_count = 0
    q.unsure = False
    q.strays = 0


cdef inline void flow_sequence_advance(flow_domain_t *d, flow_seen_t *s) noexcept nogil:
    """s is the newest datagram of its domain now."""
    cdef flow_sequence_t *q = &d.sequence
    q.last = s.position
    q.expected = s.position + s.units
    q.last_sequence = s.sequence
    q.last_units = s.units + (s.options if q.style & FLOW_STYLE_NO_OPTIONS else 0)
    q.last_options = s.options
    q.unknown = (s.flags & FLOW_UNKNOWN) != 0 and s.kind == FLOW_IPFIX
    q.uptime_ms = s.uptime_ms
    q.strays = 0
    q.window_count += 1
    if q.window_count == FLOW_GAPS:
        q.window = q.window_next
        q.window_next = s.position
        q.window_count = 0


cdef inline void flow_sequence_back(flow_domain_t *d, flow_seen_t *s, bint clock_back) noexcept nogil:
    """s is not ahead of what came: late, repeated, or a restart."""
    cdef flow_sequence_t *q = &d.sequence
    cdef bint unknown = (s.flags & FLOW_UNKNOWN) != 0 and s.kind == FLOW_IPFIX
    if not clock_back and flow_gap_fill(d, s.position, s.units, unknown):
        s.flags |= FLOW_LATE
        atomics_add(&d.late, 1)
        return
    if not clock_back and s.position - q.window < q.expected - q.window:
        s.flags |= FLOW_REPEATED
        atomics_add(&d.repeated, 1)
        return
    q.strays += 1
    if not clock_back and q.strays < 2:
        s.flags |= FLOW_REPEATED
        atomics_add(&d.repeated, 1)
        return
    s.flags |= FLOW_RESTART
    atomics_add(&d.restarts, 1)
    d.restarts_seen += 1
    flow_sequence_begin(d, s)
    flow_sequence_advance(d, s)


cdef inline void flow_style(flow_sequence_t *q, const flow_seen_t *s) noexcept nogil:
    """Weighs which style explains the step to this message. The running one changes when it fails where another, as good so far, holds."""
    cdef u32 step = s.sequence - q.last_sequence
    cdef u32 holds = 0
    cdef u32 style, predicted
    cdef u32 best = q.style
    for style in range(<u32>FLOW_STYLES):
        predicted = s.units if style & FLOW_STYLE_INCLUSIVE else q.last_units
        if style & FLOW_STYLE_NO_OPTIONS:
            predicted -= s.options if style & FLOW_STYLE_INCLUSIVE else q.last_options
        holds |= <u32>(step == predicted) << style
    if holds == 0 or holds == 15:
        return
    for style in range(<u32>FLOW_STYLES):
        if holds >> style & 1:
            if not holds >> q.style & 1 and best == q.style and q.score[style] >= q.score[q.style]:
                best = style
            q.score[style] += q.score[style] < FLOW_SCORE
        else:
            q.score[style] -= 2 if q.score[style] >= 2 else q.score[style]
    if best != q.style:
        q.style = <u8>best
        q.expected = s.sequence - (s.units - (s.options if best & FLOW_STYLE_NO_OPTIONS else 0) if best & FLOW_STYLE_INCLUSIVE else 0)


cdef inline void flow_sequence(flow_domain_t *d, flow_seen_t *s) noexcept nogil:
    """Judges s by what came before; sets FLOW_LATE, FLOW_REPEATED or FLOW_RESTART, s.gap and s.carry. d.datagrams counts s already."""
    cdef flow_sequence_t *q = &d.sequence
    cdef u32 ahead
    cdef bint clock_back = s.uptime_ms - q.uptime_ms > FLOW_HALF and q.uptime_ms - s.uptime_ms > FLOW_UPTIME_BACK_MS
    if s.kind == FLOW_IPFIX and q.started and not q.unknown and not s.flags & FLOW_UNKNOWN:
        flow_style(q, s)
    if q.style & FLOW_STYLE_NO_OPTIONS:
        s.units -= s.options
    s.position = s.sequence - s.units if q.style & FLOW_STYLE_INCLUSIVE else s.sequence
    if not q.started:
        flow_sequence_begin(d, s)
        flow_sequence_advance(d, s)
        return
    ahead = s.position - q.expected
    while q.gap_count and <u32>d.datagrams - q.gaps[0].at > FLOW_GAPS:
        flow_gap_settle(d)
    if q.unknown and s.position - q.last < FLOW_HALF and s.position != q.last:
        s.carry = s.position - q.last
        ahead = 0
    if ahead >= FLOW_HALF or (ahead and clock_back):
        flow_sequence_back(d, s, clock_back)
        return
    if ahead and not q.unsure:
        s.gap = ahead
        flow_gap_open(d, q.expected, ahead)
    q.unsure = False
    flow_sequence_advance(d, s)
