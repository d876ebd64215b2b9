# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
"""Finds, admits and evicts observation domains and their items, so that forged sources cannot displace an active exporter.

A domain lives in one set of FLOW_WAYS. A new domain takes an empty way, or the place of a domain seen only once, or of one that repeats, or of
an established one that was silent for long, but never of an established and active one: then the new domain is refused and counted, and its
datagrams are forwarded. A domain whose exporter no rule matches is evicted before all of these, and a new domain of such an exporter only
displaces domains of this kind. One exporter session has a bound of its own (domains, record blocks), and when the memory for records is full,
the domain of the lowest grade among the next few is evicted, in turn. Every walk is bounded. The hash has a seed, so an attacker cannot choose
a set. Called by: observe, learn, renumber, replay.
"""

from libc.string cimport memcmp, memcpy, memset
from base.atomics cimport atomic_store32, atomics_add
from base.batch cimport exporter_t
from base.hash cimport hash_mix
from flow.items cimport (
    flow_gauge, flow_has_templates, flow_item_free, flow_item_link, flow_item_unlink, flow_items_hash, flow_list, flow_write_begin,
    flow_write_end,
)
from flow.memory cimport flow_blocks_left, flow_exporter_take, flow_item_take, flow_less, flow_states_free
from flow.scan cimport flow_seen_t
from flow.state cimport (
    FLOW_GRADE_ESTABLISHED, FLOW_GRADE_ONCE, FLOW_GRADE_UNMATCHED, FLOW_ITEM_OPTIONS_DATA, FLOW_LISTS, FLOW_OPTIONS,
    FLOW_OPTIONS_TEMPLATES, FLOW_TEMPLATES, FLOW_WAYS, flow_domain_t, flow_exporter_t, flow_item_t, flow_set_t, flow_t, flow_way_t,
)
from flow.steps cimport flow_step
from uapi.net cimport u8, u16, u32, u64

cdef enum:
    FLOW_NEVER = 0xFFFFFFFFU
    FLOW_RECLAIM_STEPS = 64        # domains looked at for one that may go
    FLOW_RECLAIM_TRIES = 4         # besides one for each block that is wanted
    FLOW_OWN_STEPS = 16            # the same, of one exporter


cdef inline u64 flow_hash_session(const flow_t *flow, const u8 *address, u16 port_be) noexcept nogil:
    cdef u64 a, b
    memcpy(&a, address, 8)
    memcpy(&b, address + 8, 8)
    return hash_mix(hash_mix(flow.seed ^ (a + port_be), b), a)


cdef inline u64 flow_hash(const flow_t *flow, const exporter_t *exporter, u8 kind, u64 domain) noexcept nogil:
    cdef u64 a, b
    memcpy(&a, exporter.address, 8)
    memcpy(&b, exporter.address + 8, 8)
    a = hash_mix(flow.seed ^ a ^ (<u64>kind << 16 | exporter.port_be), b)
    return hash_mix(a, domain)


cdef inline flow_way_t *flow_way(const flow_t *flow, u32 slot) noexcept nogil:
    return &flow.sets[slot // FLOW_WAYS].way[slot % FLOW_WAYS]


cdef inline u32 flow_find(flow_t *flow, const exporter_t *exporter, const flow_seen_t *s, u64 hashed) noexcept nogil:
    """The domain's number, 0 = not in the table. hashed: flow_hash() of the same."""
    cdef u32 first = (<u32>hashed & (flow.limit.sets - 1)) * FLOW_WAYS
    cdef flow_set_t *ways = &flow.sets[first // FLOW_WAYS]
    cdef u32 tag = <u32>(hashed >> 32) | 1
    cdef u32 way
    cdef flow_domain_t *d
    for way in range(<u32>FLOW_WAYS):
        if ways.tag[way] == tag:
            d = &flow.domains[ways.way[way].number]
            if (d.domain == s.domain and d.kind == s.kind and d.exporter.port_be == exporter.port_be
                    and memcmp(d.exporter.address, exporter.address, 16) == 0):
                return ways.way[way].number
    return 0


cdef inline void flow_exporter_leave(flow_t *flow, u32 number) noexcept nogil:
    """Takes the domain from its exporter's list; an exporter without domains goes."""
    cdef flow_domain_t *d = &flow.domains[number]
    cdef flow_exporter_t *e = &flow.exporters[d.owner]
    cdef u32 *link
    if d.previous:
        flow.domains[d.previous].next = d.next
    else:
        e.first = d.next
    if d.next:
        flow.domains[d.next].previous = d.previous
    else:
        e.last = d.previous
    e.domains -= 1
    if e.domains == 0:
        link = &flow.exporter_buckets[<u32>flow_hash_session(flow, e.address, e.port_be) & (flow.limit.buckets - 1)]
        while link[0] != d.owner:
            flow_step(1)
            link = &flow.exporters[link[0]].bucket_next
        link[0] = e.bucket_next
        e.bucket_next = flow.exporter_free
        flow.exporter_free = d.owner
        flow_less(&flow.counters.exporters, 1)
    d.owner = 0


cdef inline void flow_evict(flow_t *flow, u32 number) noexcept nogil:
    """Forgets a domain and all that hangs on it. The slot may be taken at once."""
    cdef flow_domain_t *d = &flow.domains[number]
    cdef u32 version, head_version, which
    if d.pending:
        atomics_add(&flow.counters.lost[d.kind], d.pending)
    flow_write_begin(&d.version)
    flow_write_begin(&d.head_version)
    for which in range(<u32>FLOW_LISTS):
        while d.first[which]:
            flow_step(1)
            flow_item_free(flow, d.first[which])
    flow_states_free(flow, d)
    flow_exporter_leave(flow, number)
    if d.unmatched:
        flow_less(&flow.counters.unmatched, 1)
    flow.sets[d.slot // FLOW_WAYS].tag[d.slot % FLOW_WAYS] = 0
    version = d.version
    head_version = d.head_version
    memset(d, 0, sizeof(flow_domain_t))
    d.version = version
    d.head_version = head_version
    d.next = flow.domain_free
    flow.domain_free = number
    flow_write_end(&d.head_version)
    flow_write_end(&d.version)
    flow_less(&flow.counters.domains, 1)


cdef inline u32 flow_rank(const flow_t *flow, u32 slot) noexcept nogil:
    """What it costs to evict what is in the slot: the least goes first. 0 = empty, FLOW_NEVER = it stays. Older is cheaper in a grade."""
    cdef const flow_way_t *way = flow_way(flow, slot)
    cdef u32 age = flow.now_ms - way.seen_ms
    if flow.sets[slot // FLOW_WAYS].tag[slot % FLOW_WAYS] == 0:
        return 0
    if way.grade == FLOW_GRADE_ESTABLISHED and age < flow.limit.idle_ms:
        return FLOW_NEVER
    return ((way.grade + 1) << 28) - (age if age < 0x0FFFFFFF else 0x0FFFFFFF)


cdef inline u32 flow_exporter_find(const flow_t *flow, const u8 *address, u16 port_be) noexcept nogil:
    """The exporter session's number, 0 = none. Its domains: exporters[number].first, then domains[].next."""
    cdef u32 i = flow.exporter_buckets[<u32>flow_hash_session(flow, address, port_be) & (flow.limit.buckets - 1)]
    while i and (flow.exporters[i].port_be != port_be or memcmp(flow.exporters[i].address, address, 16) != 0):
        i = flow.exporters[i].bucket_next
        flow_step(1)
    return i


cdef inline bint flow_exporter_room(flow_t *flow, u32 owner) noexcept nogil:
    """Whether the exporter may have another domain: at its bound, its cheapest among the oldest few goes."""
    cdef flow_exporter_t *e = &flow.exporters[owner]
    cdef u32 number = e.first
    cdef u32 rank, _step
    cdef u32 best = FLOW_NEVER
    cdef u32 victim = 0
    if e.domains < flow.limit.exporter_domains:
        return True
    for _step in range(<u32>FLOW_OWN_STEPS):
        flow_step(1)
        if number == 0:
            break
        rank = flow_rank(flow, flow.domains[number].slot)
        if rank < best:
            best = rank
            victim = number
        number = flow.domains[number].next
    if victim == 0:
        return False
    if e.domains > 1:                 # else the exporter would go with its last domain
        flow_evict(flow, victim)
        atomics_add(&flow.counters.evicted_domains, 1)
        return True
    return False


cdef inline void flow_exporter_join(flow_t *flow, u32 number) noexcept nogil:
    """Enters the domain into its exporter's list, making the exporter if it is new."""
    cdef flow_domain_t *d = &flow.domains[number]
    cdef u32 i = flow_exporter_find(flow, d.exporter.address, d.exporter.port_be)
    cdef flow_exporter_t *e
    cdef u32 *bucket
    if i == 0:
        i = flow_exporter_take(flow)
        e = &flow.exporters[i]
        memcpy(e.address, d.exporter.address, 16)
        e.port_be = d.exporter.port_be
        bucket = &flow.exporter_buckets[<u32>flow_hash_session(flow, e.address, e.port_be) & (flow.limit.buckets - 1)]
        e.bucket_next = bucket[0]
        bucket[0] = i
    e = &flow.exporters[i]
    d.owner = i
    d.previous = e.last
    if e.last:
        flow.domains[e.last].next = number
    else:
        e.first = number
    e.last = number
    e.domains += 1


cdef inline u32 flow_way_for(flow_t *flow, u32 first, bint matched) noexcept nogil:
    """The slot of the set that a newcomer gets, emptied; FLOW_NEVER = none. matched: a rule matches the newcomer."""
    cdef u32 best = FLOW_NEVER
    cdef u32 slot = FLOW_NEVER
    cdef u32 way, rank
    for way in range(<u32>FLOW_WAYS):
        flow_step(1)
        rank = flow_rank(flow, first + way)
        if rank and not matched and flow_way(flow, first + way).grade != FLOW_GRADE_UNMATCHED:
            continue
        if rank < best:
            best = rank
            slot = first + way
    if slot != FLOW_NEVER and best:
        flow_evict(flow, flow_way(flow, slot).number)
        atomics_add(&flow.counters.evicted_domains, 1)
    return slot


cdef inline u32 flow_domain_take(flow_t *flow) noexcept nogil:
    """An empty domain; there are as many as slots, so one is always left."""
    cdef u32 number = flow.domain_free
    if number:
        flow.domain_free = flow.domains[number].next
        flow.domains[number].next = 0
    else:
        number = flow.domain_top + 1
        atomic_store32(&flow.domain_top, number)
    return number


cdef inline u32 flow_admit(flow_t *flow, const exporter_t *exporter, const flow_seen_t *s, u64 hashed, bint matched) noexcept nogil:
    """Makes an entry for a domain that flow_find() did not find; its number, 0 = refused (counted)."""
    cdef u32 owner = flow_exporter_find(flow, exporter.address, exporter.port_be)
    cdef u32 slot = FLOW_NEVER
    cdef u32 number
    cdef flow_domain_t *d
    cdef flow_way_t *way
    if owner == 0 or flow_exporter_room(flow, owner):
        slot = flow_way_for(flow, (<u32>hashed & (flow.limit.sets - 1)) * FLOW_WAYS, matched)
    if slot == FLOW_NEVER:
        atomics_add(&flow.counters.refused_domains, 1)
        return 0
    number = flow_domain_take(flow)
    flow.sets[slot // FLOW_WAYS].tag[slot % FLOW_WAYS] = <u32>(hashed >> 32) | 1
    way = flow_way(flow, slot)
    way.number = number
    way.seen_ms = flow.now_ms
    way.grade = FLOW_GRADE_ONCE if matched else FLOW_GRADE_UNMATCHED
    d = &flow.domains[number]
    flow_write_begin(&d.head_version)
    d.slot = slot
    d.domain = s.domain
    d.kind = s.kind
    d.unmatched = not matched
    d.exporter = exporter[0]
    d.first_ns = d.seen_ns = flow.now_ns
    flow_exporter_join(flow, number)
    flow_write_end(&d.head_version)
    atomics_add(&flow.counters.domains, 1)
    atomics_add(&flow.counters.unmatched, not matched)
    return number


cdef inline bint flow_reclaim(flow_t *flow, u32 spare) noexcept nogil:
    """Evicts a domain that holds memory, the cheapest among the next few; never `spare`, and for the sake of one that no rule matches only its
    like. False: all of these are established and active."""
    cdef u32 best = FLOW_NEVER
    cdef u32 victim = 0
    cdef u32 _step, rank
    cdef flow_domain_t *d
    for _step in range(<u32>FLOW_RECLAIM_STEPS):
        flow_step(1)
        flow.hand = flow.hand + 1 if flow.hand < flow.domain_top else 1
        d = &flow.domains[flow.hand]
        if d.owner == 0 or flow.hand == spare or (d.first[FLOW_OPTIONS] | d.state) == 0 and not flow_has_templates(d):
            continue
        if flow.domains[spare].unmatched and not d.unmatched:
            continue
        rank = flow_rank(flow, d.slot)
        if rank < best:
            best = rank
            victim = flow.hand
    if victim == 0:
        return False
    flow_evict(flow, victim)
    atomics_add(&flow.counters.evicted_domains, 1)
    return True


cdef inline bint flow_item_oldest(flow_t *flow, flow_domain_t *d, bint data) noexcept nogil:
    """Drops the domain's least recently repeated options data, else (not for the sake of data) template. False: it has none."""
    cdef u32 i = d.first[FLOW_OPTIONS]
    cdef u32 other = d.first[FLOW_OPTIONS_TEMPLATES]
    if i == 0 and not data:
        i = d.first[FLOW_TEMPLATES]
        if i == 0 or (other and flow.now_ms - flow.items[other].alive_ms >= flow.now_ms - flow.items[i].alive_ms):
            i = other
    if i == 0:
        return False
    flow_item_free(flow, i)
    atomics_add(&flow.counters.evicted_items, 1)
    return True


cdef inline bint flow_item_room(flow_t *flow, u32 number, u32 blocks, bint data) noexcept nogil:
    """Makes room for an item of so many blocks within all bounds; options data never at the cost of a template of its own domain. Each domain
    reclaimed gives back a block or an item at least."""
    cdef flow_domain_t *d = &flow.domains[number]
    cdef flow_exporter_t *e = &flow.exporters[d.owner]
    cdef u32 tries = blocks + FLOW_RECLAIM_TRIES
    if blocks > flow.limit.exporter_blocks:
        return False
    while (d.count[FLOW_TEMPLATES] + d.count[FLOW_OPTIONS_TEMPLATES] + d.count[FLOW_OPTIONS] >= flow.limit.domain_items
            or e.blocks + blocks > flow.limit.exporter_blocks):
        if not flow_item_oldest(flow, d, data):
            return False
    while not flow_blocks_left(flow, blocks) or (flow.item_free == 0 and flow.item_top == flow.limit.items):
        if tries == 0 or not flow_reclaim(flow, number):
            return False
        tries -= 1
    return True


cdef inline u32 flow_item_make(flow_t *flow, u32 number, u8 kind, u32 template_id, u32 hashed) noexcept nogil:
    """A new item in its domain's list and hash bucket, without record bytes yet. flow_item_room() said yes."""
    cdef flow_domain_t *d = &flow.domains[number]
    cdef u32 which = flow_list(kind)
    cdef u32 i = flow_item_take(flow)
    cdef flow_item_t *item = &flow.items[i]
    cdef u32 *bucket = &flow.item_buckets[hashed & (flow.limit.buckets - 1)]
    item.domain = number
    item.hash = hashed
    item.kind = kind
    item.id = <u16>template_id
    item.alive_ms = flow.now_ms
    item.first_s = item.seen_s = <u32>(flow.now_ns // 1000000000)
    item.heard = <u32>d.datagrams
    item.bucket_next = bucket[0]
    bucket[0] = i
    flow_item_link(flow, d, i, which)
    d.count[which] += 1
    atomics_add(flow_gauge(flow, kind), 1)
    return i


cdef inline void flow_item_lives(flow_t *flow, u32 i) noexcept nogil:
    """The item is as good as new: it becomes the most recent of its list."""
    cdef flow_item_t *item = &flow.items[i]
    cdef flow_domain_t *d = &flow.domains[item.domain]
    cdef u32 which = flow_list(item.kind)
    item.alive_ms = flow.now_ms
    item.used = 0
    if d.last[which] != i:
        flow_item_unlink(flow, d, i, which)
        flow_item_link(flow, d, i, which)


cdef inline void flow_item_repeat(flow_t *flow, u32 i) noexcept nogil:
    """Notes that the exporter repeated the item."""
    flow.items[i].seen_s = <u32>(flow.now_ns // 1000000000)
    flow.items[i].heard = <u32>flow.domains[flow.items[i].domain].datagrams
    flow_item_lives(flow, i)


cdef inline u32 flow_template(const flow_t *flow, u32 number, u32 template_id) noexcept nogil:
    """The item of a template, of either kind; 0 = unknown."""
    cdef u32 i = flow.item_buckets[flow_items_hash(flow, number, template_id, False, 0) & (flow.limit.buckets - 1)]
    cdef const flow_item_t *item
    while i:
        flow_step(1)
        item = &flow.items[i]
        if item.domain == number and item.id == template_id and item.kind != FLOW_ITEM_OPTIONS_DATA:
            return i
        i = item.bucket_next
    return 0
