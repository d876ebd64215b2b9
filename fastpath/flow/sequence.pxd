# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
"""The incoming sequence numbers of one observation domain: loss before samplicator, late datagrams, and restarts of the exporter.

A jump ahead opens a gap; a late datagram closes it again; after FLOW_GAPS further datagrams the gap is counted as loss. A number from before
that window is a stray number. If the exporter's clock went back (sysUptime, where the format has one), or after a second stray number in a row,
it is a restart, which is not a loss. A jump ahead by half the number space or more is a jump back. Numbers are 32 bits and wrap.

Exporters of v9 and IPFIX differ in what they count. RFC 3954 says packets, RFC 7011 data records before the message; there are v9 exporters
that count flows, IPFIX exporters that count messages, some that leave options data out or put template records in, and some that write the
number behind the message (softflowd). Each datagram is evidence for some of these styles; positions are always those before the datagram. Some
number their datagrams of templates only by a counter of their own (see flow_foreign), and some always write the same number, mostly 0; then the
number is ignored.
Called by: observe, once a well-formed datagram. Must never count a unit both as lost and as arrived.
"""

from base.atomics cimport atomics_add
from flow.scan cimport (
    FLOW_DATA, FLOW_FOREIGN, FLOW_IPFIX, FLOW_LATE, FLOW_OPTIONS_TEMPLATE, FLOW_REPEATED, FLOW_RESTART, FLOW_TEMPLATE, FLOW_UNCOUNTED,
    FLOW_UNKNOWN, FLOW_UNNUMBERED, FLOW_V9, flow_seen_t,
)
from flow.memory cimport flow_less
from flow.state cimport FLOW_GAPS, FLOW_STYLES, flow_domain_t, flow_gap_t, flow_sequence_t
from flow.steps cimport flow_step
from uapi.net cimport u8, u32, u64

cdef enum:
    FLOW_HALF = 0x80000000U
    FLOW_UPTIME_BACK_MS = 30000    # further back than any datagram is late
    FLOW_STYLE_INCLUSIVE = 1       # bit 0: the number counts this message too; the other bits say what is counted:
    FLOW_STYLE_DATA = 0            # data records (RFC 7011 §3.1)
    FLOW_STYLE_FLOWS = 2           # data records but those of options
    FLOW_STYLE_PACKETS = 4         # datagrams (RFC 3954 §5.1)
    FLOW_STYLE_RECORDS = 6         # records of all kinds
    FLOW_STYLE_ALL = 0xDF          # all styles: of packets it makes no difference whether the number counts this one too
    FLOW_SCORE = 8
    FLOW_SAME = 3                  # repetitions of one number until it is none; of 0, one is enough: who counts leaves it at once
    FLOW_OWN = 2                   # evidence that is enough for a counter of their own
    FLOW_OWN_JUMP = 64             # a jump that far may be loss whenever it happens ...
    FLOW_OWN_JUMP_MS = 10          # ... and by so many datagrams more for each ms that went by


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
    """All gaps are loss for good."""
    if d.sequence.gap_count:
        atomics_add(&d.lost, d.pending)
        flow_less(&d.pending, d.pending)
        d.sequence.gap_count = 0


cdef inline void flow_gaps_drop(flow_domain_t *d) noexcept nogil:
    """The gaps were none: the number was misread."""
    flow_less(&d.pending, d.pending)
    d.sequence.gap_count = 0


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
        flow_step(1)
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
    q.data_known = False
    q.own_open = False


cdef inline bint flow_templates_only(const flow_seen_t *s) noexcept nogil:
    return (s.flags & (FLOW_TEMPLATE | FLOW_OPTIONS_TEMPLATE)) != 0 and not s.flags & FLOW_DATA


cdef inline void flow_sequence_advance(flow_domain_t *d, flow_seen_t *s) noexcept nogil:
    """s is the newest datagram of its domain now."""
    cdef flow_sequence_t *q = &d.sequence
    q.last = s.position
    q.expected = s.position + s.units
    q.last_sequence = s.sequence
    q.last_units = s.units
    q.last_data = s.data
    q.last_options = s.options
    q.last_templates = s.templates
    q.template_last = flow_templates_only(s)
    q.data_known = q.data_known or not q.template_last
    q.unknown = (s.flags & FLOW_UNCOUNTED) != 0
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
    cdef bint unknown = (s.flags & FLOW_UNCOUNTED) != 0
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


cdef inline u32 flow_units(u32 style, u32 data, u32 options, u32 templates) noexcept nogil:
    """How far a datagram with so many records moves the number on."""
    style &= ~<u32>FLOW_STYLE_INCLUSIVE
    if style == FLOW_STYLE_PACKETS:
        return 1
    if style == FLOW_STYLE_RECORDS:
        return data + templates
    return data - options if style == FLOW_STYLE_FLOWS and options < data else 0 if style == FLOW_STYLE_FLOWS else data


cdef inline u32 flow_style_holds(const flow_sequence_t *q, const flow_seen_t *s) noexcept nogil:
    """The styles that explain the step to this datagram, as bits; all that there are = it says nothing."""
    cdef u32 step = s.sequence - q.last_sequence
    cdef u32 holds = 0
    cdef u32 style, predicted
    for style in range(<u32>FLOW_STYLES):
        if style & FLOW_STYLE_INCLUSIVE:
            predicted = flow_units(style, s.data, s.options, s.templates)
        else:
            predicted = flow_units(style, q.last_data, q.last_options, q.last_templates)
        holds |= <u32>(step == predicted) << style
    return holds & FLOW_STYLE_ALL


cdef inline bint flow_style_packets(u32 style, u32 other) noexcept nogil:
    """Whether one of the two counts packets, and the other does not."""
    return (style == FLOW_STYLE_PACKETS) != (other == FLOW_STYLE_PACKETS)


cdef inline bint flow_style_more(u32 style, u32 than) noexcept nogil:
    """Whether a style counts more than another, so that loss can make it look right: flows < data records < records of all kinds."""
    style >>= 1
    than >>= 1
    return style != than and (style == FLOW_STYLE_RECORDS >> 1 or than == FLOW_STYLE_FLOWS >> 1)


cdef inline void flow_style_weigh(flow_sequence_t *q, u32 holds) noexcept nogil:
    """Evidence of one datagram. What both explain makes no style the better that counts more than the running one, or packets: most datagrams
    have no options and no templates, and many hold one record."""
    cdef u32 style
    for style in range(<u32>FLOW_STYLES):
        flow_step(1)
        if not holds >> style & 1:
            q.score[style] -= 2 if q.score[style] >= 2 else q.score[style]
        elif not holds >> q.style & 1 or style == q.style or not (flow_style_packets(style, q.style) or flow_style_more(style, q.style)):
            q.score[style] += q.score[style] < FLOW_SCORE


cdef inline void flow_style(flow_domain_t *d, const flow_seen_t *s) noexcept nogil:
    """Weighs which style explains the step to this datagram. The running one changes when it fails where another, better by what was seen so
    far, holds; one that loss can imitate has to hold twice, and packets are never told from records by one datagram either."""
    cdef flow_sequence_t *q = &d.sequence
    cdef u32 holds, style, least
    cdef u32 best = q.style
    if q.score[q.style] == FLOW_SCORE:
        if q.style == FLOW_STYLE_PACKETS and s.sequence - q.last_sequence == 1:
            return
        if (q.style == FLOW_STYLE_DATA and s.sequence - q.last_sequence == q.last_data
                and (s.options | q.last_options | s.templates | q.last_templates) == 0):
            return                     # as nearly always; nothing here tells it from the others that hold
    holds = flow_style_holds(q, s)
    if holds == 0 or holds == FLOW_STYLE_ALL:
        return
    flow_style_weigh(q, holds)
    if holds >> q.style & 1:
        return
    for style in range(<u32>FLOW_STYLES):
        least = q.score[best] + 1
        if flow_style_packets(style, q.style):
            least = 2 if least < 2 else least
        elif best == q.style and flow_style_more(style, q.style):
            least = 2                  # few datagrams tell these from the running one
        if holds >> style & 1 and q.score[style] >= least:
            best = style
    if best == q.style:
        return
    if flow_style_packets(best, q.style):
        flow_gaps_drop(d)
    q.style = <u8>best
    q.expected = s.sequence - (flow_units(best, s.data, s.options, s.templates) if best & FLOW_STYLE_INCLUSIVE else 0)


cdef inline bint flow_implausible(const flow_sequence_t *q, const flow_seen_t *s, u64 silent_ms) noexcept nogil:
    """Whether more datagrams than an exporter sends would be missing, or be late, between the last one and this."""
    cdef u64 ms = s.uptime_ms - q.uptime_ms
    cdef u32 jump = s.sequence - q.expected
    if ms >= FLOW_HALF or ms < silent_ms:
        ms = silent_ms
    if jump >= FLOW_HALF:
        jump = q.expected - s.sequence
    return jump > FLOW_OWN_JUMP + FLOW_OWN_JUMP_MS * ms


cdef inline bint flow_in_gap(const flow_sequence_t *q, u32 sequence) noexcept nogil:
    cdef u32 g
    for g in range(q.gap_count):
        flow_step(1)
        if sequence - q.gaps[g].start < q.gaps[g].length:
            return True
    return False


cdef inline bint flow_foreign(flow_sequence_t *q, const flow_seen_t *s, bint clock_back, u64 silent_ms) noexcept nogil:
    """Whether s, which holds templates only, is numbered by a counter of such datagrams: then it stands outside of the sequence. RFC 3954 §5.1
    asks for one counter, and several makers have two. What tells: it goes on from the last such datagram, but not from the last one of all;
    and what comes after it goes on as if it had not been there. As long as neither that nor the opposite was seen, a jump that no loss
    explains is enough."""
    cdef u32 step = s.sequence - q.own_last
    cdef bint follows = q.own_known and (step == 1 or (step == 0 and s.sequence - q.window >= q.expected - q.window))
    q.own_known = True
    q.own_last = s.sequence
    if not q.started:
        return False
    if s.sequence == q.expected:
        if not q.template_last:
            q.shared += q.shared < FLOW_SCORE
            q.own -= q.own != 0
        return False
    if clock_back and q.own < FLOW_OWN:
        return False
    if follows and not flow_in_gap(q, s.sequence):
        q.own += q.own < FLOW_SCORE
        q.shared -= q.shared != 0
    elif not ((q.own >= FLOW_OWN and q.own > q.shared) or (q.shared == 0 and flow_implausible(q, s, silent_ms))):
        return False
    q.own_open = True
    return True


cdef inline void flow_goes_on(flow_sequence_t *q, const flow_seen_t *s) noexcept nogil:
    """s has data; what it says of datagrams of templates only that came before it."""
    if q.template_last and s.position == q.expected:
        q.shared += q.shared < FLOW_SCORE
    elif q.own_open and s.position == q.expected:
        q.own += q.own < FLOW_SCORE
        q.shared -= q.shared != 0
    elif q.own_open and s.sequence - q.own_last <= 1:
        q.own = 0
        q.shared += q.shared < FLOW_SCORE
    q.own_open = False


cdef inline bint flow_constant(flow_domain_t *d, flow_seen_t *s, bint templates_only) noexcept nogil:
    """Whether the exporter does not number its datagrams: the number stays where it is though units went by. Who begins to number begins
    anew, which is no restart."""
    cdef flow_sequence_t *q = &d.sequence
    if s.sequence == q.last_sequence and (q.unnumbered or (q.last_units and not templates_only)):
        q.same += q.same < FLOW_SAME
        q.unnumbered = q.unnumbered or q.same == FLOW_SAME or s.sequence == 0
    elif q.unnumbered and not templates_only:
        q.unnumbered = q.same = 0
        d.restarts_seen += 1
        flow_sequence_begin(d, s)
        flow_sequence_advance(d, s)
        return True
    elif not q.unnumbered:
        q.same = 0
    if not q.unnumbered:
        return False
    s.flags |= FLOW_UNNUMBERED
    flow_gaps_settle(d)
    return True


cdef inline void flow_sequence(flow_domain_t *d, flow_seen_t *s, u64 silent_ns) noexcept nogil:
    """Judges s by what came before; sets FLOW_LATE, FLOW_REPEATED, FLOW_RESTART, FLOW_FOREIGN or FLOW_UNNUMBERED, s.units, s.position, s.gap
    and s.carry. d.datagrams counts s already. silent_ns: since the domain's datagram before."""
    cdef flow_sequence_t *q = &d.sequence
    cdef bint styled = s.kind == FLOW_IPFIX or s.kind == FLOW_V9
    cdef bint templates_only = styled and flow_templates_only(s)
    cdef bint clock_back = s.uptime_ms - q.uptime_ms > FLOW_HALF and q.uptime_ms - s.uptime_ms > FLOW_UPTIME_BACK_MS
    cdef u32 ahead
    if styled:
        if not q.started and s.kind == FLOW_V9:
            q.style = FLOW_STYLE_PACKETS
        s.units = flow_units(q.style, s.data, s.options, s.templates)
    s.position = s.sequence - s.units if q.style & FLOW_STYLE_INCLUSIVE else s.sequence
    if q.started and flow_constant(d, s, templates_only):
        return
    if templates_only and flow_foreign(q, s, clock_back, silent_ns // 1000000):
        s.flags |= FLOW_FOREIGN
        s.units = 0
        s.position = q.expected
        return
    if styled:
        if q.started and not q.unknown and not (s.flags & FLOW_UNKNOWN and s.kind == FLOW_IPFIX):
            flow_style(d, s)
            s.units = flow_units(q.style, s.data, s.options, s.templates)
        if s.flags & FLOW_UNKNOWN and s.kind == FLOW_IPFIX and q.style != FLOW_STYLE_PACKETS:
            s.flags |= FLOW_UNCOUNTED
        s.position = s.sequence - s.units if q.style & FLOW_STYLE_INCLUSIVE else s.sequence
    if not q.started:
        flow_sequence_begin(d, s)
        flow_sequence_advance(d, s)
        return
    if styled and not templates_only:
        if (not q.data_known and not clock_back and q.shared == 0 and s.position != q.expected
                and flow_implausible(q, s, silent_ns // 1000000)):
            q.own += q.own < FLOW_SCORE        # the first with data: those before it had a counter of their own
            flow_sequence_begin(d, s)
            flow_sequence_advance(d, s)
            return
        flow_goes_on(q, s)
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
