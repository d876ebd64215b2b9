# needs: uapi: net; base: atomics, batch, wire; flow: carry, items, observe, reading, scan, state, table; handles: flow
# A Flow's domains as plain data and back, for the file that carries them over a restart (supervisor/carry.py). Out: while the worker runs,
# without a lock that it takes. In: before a worker has the Flow. What comes in is hostile: templates and rows go through flow_observe(), in
# datagrams made of them, under all bounds of the table; numbers are checked one by one. Times are ages, receivers are TxCounters.id.

FLOW_COUNTER_GAUGES = ("domains", "exporters", "templates", "options_templates", "options_data", "blocks", "states", "unmatched")
FLOW_SEQUENCE_FLAGS = ("started", "unknown", "unsure", "strays", "style", "same", "unnumbered", "own", "shared", "own_known", "own_open",
                       "template_last", "data_known")
FLOW_SEQUENCE_NUMBERS = ("expected", "last", "last_sequence", "last_units", "last_data", "last_options", "last_templates", "own_last", "window",
                         "window_next", "window_count", "uptime_ms")
FLOW_CARRY_ITEM_FIELDS = ("kind", "id", "first_age_s", "seen_age_s", "alive_age_ms", "used", "whole", "lone", "raw")
FLOW_CARRY_STATE_FIELDS = ("receiver", "offset", "restarts", "left_out", "owes", "paused", "paused_at", "template_copies", "option_copies",
                           "template_age_ms", "option_age_ms", "spent", "spent_age_ms", "owed")

cdef enum:
    CARRY_DATAGRAM = 65535             # bytes of a datagram that teaches, at most
    CARRY_AGE = 0x3FFFFFFF             # longest age that is told apart: two of them are a 32-bit age still


cdef u32 carry_age(u32 now, u32 then) noexcept nogil:
    """then may be a moment ahead of now, which is no age."""
    return now - then if now - then < 0x80000000U else 0


cdef u32 carry_long(u64 age) noexcept nogil:
    return <u32>age if age < <u64>CARRY_AGE else <u32>CARRY_AGE


# ---- out

def flow_carry_order(Flow flow not None, u64 now_ns):
    """age << 32 | number of all domains but spare ones that nobody came to; age: ms since its last datagram."""
    cdef flow_t *f = &flow.flow
    cdef u32 now_ms = <u32>(now_ns // 1000000)
    cdef u32 number, slot
    out = []
    for number in range(1, atomic_load32(&f.domain_top) + 1):
        slot = f.domains[number].slot
        if f.domains[number].owner and atomic_load64(&f.domains[number].datagrams) and slot < f.domain_limit:
            out.append(<u64>carry_age(now_ms, flow_way(f, slot).seen_ms) << 32 | number)
    return out


cdef dict carry_sequence_out(const flow_sequence_t *q):
    cdef const u8 *flags = &q.started
    cdef const u32 *numbers = &q.expected
    cdef u32 i
    out = {}
    for i, name in enumerate(FLOW_SEQUENCE_FLAGS):
        out[name] = flags[i]
    for i, name in enumerate(FLOW_SEQUENCE_NUMBERS):
        out[name] = numbers[i]
    out["score"] = [q.score[i] for i in range(<u32>FLOW_STYLES)]
    out["gaps"] = [(q.gaps[i].start, q.gaps[i].length, q.gaps[i].at) for i in range(min(q.gap_count, <u32>FLOW_GAPS))]
    return out


cdef tuple carry_item_out(const flow_item_t *item, const u8 *raw, u64 now_ns):
    cdef u32 now_s = <u32>(now_ns // 1000000000)
    return (item.kind, item.id, carry_age(now_s, item.first_s), carry_age(now_s, item.seen_s),
            carry_age(<u32>(now_ns // 1000000), item.alive_ms), item.used, item.whole, item.lone, flow_bytes(raw, item.bytes))


cdef tuple carry_state_out(const flow_state_t *s, u32 now_ms):
    return (s.receiver, s.offset, s.restarts, s.left_out, s.owes, s.paused, s.paused_at, s.copies[FLOW_TEMPLATES], s.copies[FLOW_OPTIONS],
            carry_age(now_ms, s.replayed_ms[FLOW_TEMPLATES]), carry_age(now_ms, s.replayed_ms[FLOW_OPTIONS]), s.spent,
            carry_age(now_ms, s.spent_ms), s.owed)


cdef list carry_items_out(flow_t *f, u32 number, flow_item_t *items, u8 *octets, u32 room, u64 now_ns):
    """FLOW_CARRY_ITEM_FIELDS of templates, options templates and rows, the least recently repeated of each first; rows of another definition
    of their template are void and left out. None: a list never stood still."""
    cdef u32 which, i, used, _tries
    cdef int n
    cdef dict serials = {}
    out = []
    for which in (FLOW_TEMPLATES, FLOW_OPTIONS_TEMPLATES, FLOW_OPTIONS):
        n = -1
        for _tries in range(<u32>FLOW_READ_TRIES):
            n = flow_read_items_once(f, number, which, items, f.limit.domain_items, octets, room)
            if n >= 0:
                break
        if n < 0:
            return None
        used = 0
        for i in range(<u32>n):
            if items[i].kind == FLOW_ITEM_OPTIONS_TEMPLATE:
                serials[items[i].id] = items[i].serial
            if items[i].kind != FLOW_ITEM_OPTIONS_DATA or serials.get(items[i].id) == items[i].serial:
                out.append(carry_item_out(&items[i], octets + used, now_ns))
            used += items[i].bytes
    return out


def flow_carry_out(Flow flow not None, u32 number, u64 now_ns):
    """All about one domain as of now_ns (CLOCK_MONOTONIC), a dict of numbers, bytes, lists and dicts. None: the place is empty. (): it never
    stood still; ask again. kind and domain are in the header, which is its last datagram's."""
    cdef flow_t *f = &flow.flow
    cdef flow_domain_t d
    cdef flow_state_t *states = NULL
    cdef flow_item_t *items = NULL
    cdef u8 *octets = NULL
    cdef u32 room = f.limit.exporter_blocks * FLOW_BLOCK
    cdef u64 *counters = &d.datagrams
    cdef u32 grade = 0
    cdef u32 count = 0
    cdef u32 i
    cdef int found
    try:
        states = <flow_state_t *>malloc(FLOW_CARRY_STATES * sizeof(flow_state_t))
        items = <flow_item_t *>malloc(f.limit.domain_items * sizeof(flow_item_t))
        octets = <u8 *>malloc(room)
        if states == NULL or items == NULL or octets == NULL:
            raise MemoryError
        found = flow_carry_read(f, number, &d, &grade, states, FLOW_CARRY_STATES, &count)
        if found <= 0:
            return None if found == 0 else ()
        learnt = carry_items_out(f, number, items, octets, room, now_ns)
        if learnt is None or f.domains[number].owner != d.owner or f.domains[number].first_ns != d.first_ns:
            return ()
        return {
            "address": flow_bytes(d.exporter.address + 12, 4) if d.exporter.family == 4 else flow_bytes(d.exporter.address, 16),
            "port": ntohs(d.exporter.port_be), "ttl": d.exporter.ttl, "tos": d.exporter.tos, "listener": d.listener,
            "unmatched": d.unmatched, "header": flow_bytes(d.header, d.header_bytes),
            "alias": d.alias, "restarts": d.restarts_seen, "grade": grade,
            "first_age_ns": now_ns - d.first_ns if now_ns > d.first_ns else 0,
            "seen_age_ns": now_ns - d.seen_ns if now_ns > d.seen_ns else 0,
            "counters": {name: counters[i] for i, name in enumerate(FLOW_DOMAIN_FIELDS)},
            "sequence": carry_sequence_out(&d.sequence),
            "items": learnt,
            "states": [carry_state_out(&states[i], <u32>(now_ns // 1000000)) for i in range(count)],
        }
    finally:
        free(states)
        free(items)
        free(octets)


# ---- in

cdef bytes carry_header(bytes header, u32 octets, u32 records):
    """The header of a datagram that has so many bytes and records. Raises ValueError for what is no header."""
    cdef u32 version = int.from_bytes(header[:2], "big")
    if version == 10:
        return header[:2] + octets.to_bytes(2, "big") + header[4:]
    if version in (1, 5, 7, 8, 9):
        return header[:2] + records.to_bytes(2, "big") + header[4:]
    if header and header[:4] != b"\0\0\0\5":
        raise ValueError("what is carried has a header of no known kind")
    return header[:len(header) - 4] + bytes(4) if header else b""


cdef list carry_datagrams(bytes header, list sets):
    """Datagrams of one domain with these sets, one record each; one without any, if there are none."""
    out = []
    body = []
    octets = len(header)
    for each in sets:
        if octets + len(each) > CARRY_DATAGRAM and body:
            out.append(carry_header(header, octets, len(body)) + b"".join(body))
            body = []
            octets = len(header)
        body.append(each)
        octets += len(each)
    if octets > CARRY_DATAGRAM:
        raise ValueError("what is carried has a record longer than any datagram")
    out.append(carry_header(header, octets, len(body)) + b"".join(body))
    return out


cdef bytes carry_set(bint ipfix, u32 kind, u32 template_id, bytes raw):
    """A set with one record."""
    cdef u32 set_id = template_id
    if kind != FLOW_ITEM_OPTIONS_DATA:
        set_id = (2 if ipfix else 0) + (kind == FLOW_ITEM_OPTIONS_TEMPLATE)
    return set_id.to_bytes(2, "big") + (4 + len(raw)).to_bytes(2, "big") + raw


cdef carry_numbers_in(flow_carried_t *c, dict carried):
    """Checks and takes the numbers. Raises ValueError, OverflowError, TypeError or KeyError."""
    cdef flow_sequence_t *q = &c.sequence
    cdef u8 *flags = &q.started
    cdef u32 *numbers = &q.expected
    cdef const u8 *octets
    cdef bytes header = carried["header"]
    cdef u32 i
    cdef dict said = carried["sequence"]
    memset(c, 0, sizeof(flow_carried_t))
    for i, name in enumerate(FLOW_SEQUENCE_FLAGS):
        flags[i] = said.get(name, 0)
    for i, name in enumerate(FLOW_SEQUENCE_NUMBERS):
        numbers[i] = said.get(name, 0)
    score, gaps = list(said["score"]), list(said["gaps"])
    if len(score) != FLOW_STYLES or len(gaps) > FLOW_GAPS or len(header) > FLOW_HEADER:
        raise ValueError("what is carried does not fit")
    for i in range(<u32>FLOW_STYLES):
        q.score[i] = score[i]
    q.gap_count = len(gaps)
    for i in range(q.gap_count):
        q.gaps[i].start, q.gaps[i].length, q.gaps[i].at = gaps[i]
    if not flow_carry_sound(q):
        raise ValueError("a sequence that is carried is none")
    for i, name in enumerate(FLOW_DOMAIN_FIELDS):
        c.counters[i] = carried["counters"].get(name, 0)
    octets = header
    memcpy(c.header, octets, len(header))
    c.first_age_ns, c.seen_age_ns = carried["first_age_ns"], carried["seen_age_ns"]
    c.alias, c.restarts, c.grade = carried["alias"], carried["restarts"], carried["grade"]
    c.ttl, c.tos = carried["ttl"], carried["tos"]


cdef carry_state_in(flow_state_t *s, row, u32 silent_ms):
    cdef u32 ages[3]
    cdef u32 i
    memset(s, 0, sizeof(flow_state_t))
    (s.receiver, s.offset, s.restarts, s.left_out, s.owes, s.paused, s.paused_at, s.copies[FLOW_TEMPLATES], s.copies[FLOW_OPTIONS],
     ages[0], ages[1], s.spent, ages[2], s.owed) = row
    for i in range(3):
        ages[i] = carry_long(ages[i]) + silent_ms
    s.replayed_ms[FLOW_TEMPLATES] = ages[0]
    s.replayed_ms[FLOW_OPTIONS] = ages[1]
    s.spent_ms = ages[2]


cdef u32 carry_teach(flow_t *f, const exporter_t *exporter, u32 listener, bint matched, list datagrams, u32 number,
                     u32 header) except? 0xFFFFFFFF:
    """Shows datagrams of one domain to the flow stage; returns its number. Raises ValueError: one was refused, or is another domain's."""
    cdef flow_seen_t seen
    cdef bytes datagram
    cdef const u8 *octets
    for datagram in datagrams:
        octets = datagram
        flow_observe(f, exporter, listener, matched, octets, <u32>len(datagram), &seen)
        if seen.number == 0 or (number and seen.number != number) or seen.header_bytes != header:
            raise ValueError("what is carried is not well formed, or there is no room for it")
        number = seen.number
    return number


cdef carry_items_in(flow_t *f, u32 number, list items, u64 silent_ns):
    """The times of what was taught; the lists stand as the items do, as far as all were learnt."""
    cdef u32 at[FLOW_LISTS]
    cdef u32 kind, first_s, seen_s, alive_ms, which
    cdef bint used
    cdef u32 silent_s = carry_long(silent_ns // 1000000000)
    cdef u32 silent_ms = carry_long(silent_ns // 1000000)
    for which in range(<u32>FLOW_LISTS):
        at[which] = f.domains[number].first[which]
    for kind, _, first_s, seen_s, alive_ms, is_used, _, _, _ in items:
        which = flow_list(<u8>kind)
        first_s = carry_long(first_s) + silent_s
        seen_s = carry_long(seen_s) + silent_s
        alive_ms = carry_long(alive_ms) + silent_ms
        used = is_used and (f.limit.template_ms == 0 or alive_ms // 2 < f.limit.template_ms)     # else it would have expired
        if at[which]:
            flow_carry_item(f, at[which], first_s, seen_s, alive_ms, used)
            at[which] = f.items[at[which]].next


cdef u32 carry_learn(flow_t *f, const exporter_t *exporter, u32 listener, bint matched, dict carried) except? 0xFFFFFFFF:
    """Teaches the domain what its exporter taught; returns its number."""
    cdef bytes header = carried["header"]
    cdef bint ipfix = header[:2] == b"\0\x0a"
    cdef bint learns = ipfix or header[:2] == b"\0\x09"
    cdef u32 kind, template_id, number
    templates, rows, ways = [], [], []
    for kind, template_id, _, _, _, _, whole, lone, raw in carried["items"] if learns else ():
        if kind == FLOW_ITEM_OPTIONS_DATA:
            rows.append(carry_set(ipfix, kind, template_id, raw))
        elif kind == FLOW_ITEM_TEMPLATE or kind == FLOW_ITEM_OPTIONS_TEMPLATE:
            templates.append(carry_set(ipfix, kind, template_id, raw))
            ways.append((template_id, whole, lone))
        else:
            raise ValueError("an item that is carried has no kind")
    number = carry_teach(f, exporter, listener, matched, carry_datagrams(header, templates), 0, len(header))
    for template_id, whole, lone in ways:
        flow_carry_rows(f, number, template_id, whole, lone)
    if rows:
        carry_teach(f, exporter, listener, matched, carry_datagrams(header, rows), number, len(header))
        for template_id, whole, lone in ways:        # teaching moved these on
            flow_carry_rows(f, number, template_id, whole, lone)
    return number


def flow_carry_in(Flow flow not None, dict carried not None, u64 now_ns, u64 silent_ns=0, bint spare=False):
    """Takes what flow_carry_out() gave, of this Flow or another; now_ns: CLOCK_MONOTONIC now, silent_ns: passed since it was given; spare: one
    of several workers that may hear of it, and not the one that has its counters. True: the domain is known as it was. False: it is known
    already, or it was silent for so long that it would be forgotten. Raises ValueError for what is no such thing or finds no room. No worker
    may have the Flow."""
    cdef flow_t *f = &flow.flow
    cdef flow_carried_t c
    cdef exporter_t exporter
    cdef flow_seen_t seen
    cdef flow_state_t state
    cdef flow_counters_t before = f.counters
    cdef const u8 *octets
    cdef bytes datagram
    cdef u64 hashed
    cdef u32 number, listener
    flow_tick(f, now_ns)
    try:
        carry_exporter(&exporter, carried["address"], carried["port"])
        carry_numbers_in(&c, carried)
        listener = carried["listener"]
        if (listener > 0xFFFF or c.first_age_ns >> 62 or c.seen_age_ns >> 62 or silent_ns >> 61
                or len(carried["states"]) > FLOW_CARRY_STATES):
            raise ValueError("what is carried does not fit")
        c.spare = spare
        if spare:
            memset(c.counters, 0, sizeof(c.counters))
        c.first_age_ns += silent_ns
        c.seen_age_ns += silent_ns
        if c.seen_age_ns // 1000000 >= f.limit.forget_ms:
            return False
        datagram = carry_datagrams(carried["header"], [])[0]
        octets = datagram
        flow_scan(octets, <u32>len(datagram), &seen)
        if seen.flags & FLOW_MALFORMED or seen.header_bytes != len(carried["header"]):
            raise ValueError("a header that is carried is none")
        hashed = flow_hash(f, &exporter, seen.kind, seen.domain)
        if flow_find(f, &exporter, &seen, hashed):
            return False
        try:
            number = carry_learn(f, &exporter, listener, not carried["unmatched"], carried)
            flow_carry_set(f, number, &c)
            carry_items_in(f, number, carried["items"], silent_ns)
            for row in carried["states"]:
                carry_state_in(&state, row, carry_long(silent_ns // 1000000))
                if not flow_carry_state(f, number, &state):
                    break
        except BaseException:
            number = flow_find(f, &exporter, &seen, hashed)
            if number:
                flow_evict(f, number)
            raise
    except (ArithmeticError, AttributeError, LookupError, TypeError) as error:
        raise ValueError(f"what is carried does not fit: {error}") from error
    finally:
        carry_keep(f, &before)
    return True


cdef carry_exporter(exporter_t *out, bytes address, int port):
    cdef const u8 *octets = address
    memset(out, 0, sizeof(exporter_t))
    if not 0 <= port <= 65535:
        raise ValueError(f"port {port} is not 0..65535")
    if len(address) == 4:
        wire_map_ipv4(out.address, octets)
        out.family = 4
    elif len(address) == 16:
        memcpy(out.address, octets, 16)
        out.family = 4 if wire_is_ipv4_mapped(out.address) else 6
    else:
        raise ValueError(f"address has {len(address)} bytes, not 4 or 16")
    out.port_be = htons(<u16>port)


cdef void carry_keep(flow_t *f, const flow_counters_t *before) noexcept nogil:
    """What teaching counted did not come from anybody: all but the gauges is as it was."""
    cdef flow_counters_t gauges = f.counters
    f.counters = before[0]
    memcpy(&f.counters.domains, &gauges.domains, 8 * sizeof(u64))


def flow_carry_totals(Flow flow not None, dict counters not None, by_kind, malformed, lost, restarts):
    """Adds to what the Flow has counted; counters: FLOW_COUNTER_FIELDS but FLOW_COUNTER_GAUGES, the others by kind number. Raises ValueError;
    then nothing was added. No worker may have the Flow."""
    cdef flow_counters_t sums = flow.flow.counters
    cdef u64 *values = &sums.domains
    cdef u64 more
    cdef u32 i
    try:
        for i, name in enumerate(FLOW_COUNTER_FIELDS):
            more = counters.get(name, 0)
            if name not in FLOW_COUNTER_GAUGES:
                values[i] += more
        rows = list(zip(by_kind, malformed, lost, restarts, strict=True))
        if len(rows) != FLOW_KINDS:
            raise ValueError("counters that are carried are not by kind")
        for i, row in enumerate(rows):
            sums.by_kind[i] += <u64>row[0]
            sums.malformed[i] += <u64>row[1]
            sums.lost[i] += <u64>row[2]
            sums.restarts[i] += <u64>row[3]
    except (ArithmeticError, AttributeError, LookupError, TypeError) as error:
        raise ValueError(f"counters that are carried do not fit: {error}") from error
    flow.flow.counters = sums
