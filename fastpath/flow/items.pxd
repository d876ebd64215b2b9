# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
"""The items of a domain (templates, options templates, options data): their lists, the gauges that count them, and the mark that shows other
threads that they change.

Called by: table, observe, learn, rows, replay, renumber. Every walk is bounded.
"""

from base.atomics cimport atomic_fence_release, atomic_store32
from base.hash cimport hash_mix
from flow.memory cimport flow_chain_free, flow_less
from flow.state cimport (
    FLOW_ITEM_OPTIONS_DATA, FLOW_ITEM_OPTIONS_TEMPLATE, FLOW_OPTIONS, FLOW_OPTIONS_TEMPLATES, FLOW_TEMPLATES, flow_domain_t, flow_item_t,
    flow_t,
)
from flow.steps cimport flow_step
from uapi.net cimport u8, u32, u64


cdef inline void flow_write_begin(u32 *version) noexcept nogil:
    atomic_store32(version, version[0] + 1)
    atomic_fence_release()


cdef inline void flow_write_end(u32 *version) noexcept nogil:
    atomic_fence_release()
    atomic_store32(version, version[0] + 1)


cdef inline u32 flow_items_hash(const flow_t *flow, u32 number, u32 template_id, bint data, u64 scope) noexcept nogil:
    return <u32>(hash_mix(flow.seed ^ (<u64>number << 32 | template_id << 1 | data), scope) >> 16)


cdef inline u32 flow_list(u8 kind) noexcept nogil:
    """The list that an item of this kind is in: a walk over one kind meets no other."""
    if kind == FLOW_ITEM_OPTIONS_DATA:
        return FLOW_OPTIONS
    return FLOW_OPTIONS_TEMPLATES if kind == FLOW_ITEM_OPTIONS_TEMPLATE else FLOW_TEMPLATES


cdef inline bint flow_has_templates(const flow_domain_t *d) noexcept nogil:
    return (d.first[FLOW_TEMPLATES] | d.first[FLOW_OPTIONS_TEMPLATES]) != 0


cdef inline bint flow_met(const flow_domain_t *d) noexcept nogil:
    """Whether the domain was known before its last datagram."""
    return d.datagrams > 1 or d.carried


cdef inline void flow_item_link(flow_t *flow, flow_domain_t *d, u32 i, u32 which) noexcept nogil:
    """Appends the item to a list of its domain: the end is the most recently repeated."""
    cdef flow_item_t *item = &flow.items[i]
    item.next = 0
    item.previous = d.last[which]
    if d.last[which]:
        flow.items[d.last[which]].next = i
    else:
        d.first[which] = i
    d.last[which] = i


cdef inline void flow_item_unlink(flow_t *flow, flow_domain_t *d, u32 i, u32 which) noexcept nogil:
    cdef flow_item_t *item = &flow.items[i]
    if item.previous:
        flow.items[item.previous].next = item.next
    else:
        d.first[which] = item.next
    if item.next:
        flow.items[item.next].previous = item.previous
    else:
        d.last[which] = item.previous


cdef inline u64 *flow_gauge(flow_t *flow, u8 kind) noexcept nogil:
    if kind == FLOW_ITEM_OPTIONS_DATA:
        return &flow.counters.options_data
    return &flow.counters.options_templates if kind == FLOW_ITEM_OPTIONS_TEMPLATE else &flow.counters.templates


cdef inline void flow_item_free(flow_t *flow, u32 i) noexcept nogil:
    """Takes the item out of everything. The domain's version is the caller's business."""
    cdef flow_item_t *item = &flow.items[i]
    cdef flow_domain_t *d = &flow.domains[item.domain]
    cdef u32 which = flow_list(item.kind)
    cdef u32 *link = &flow.item_buckets[item.hash & (flow.limit.buckets - 1)]
    while link[0] != i:
        flow_step(1)
        link = &flow.items[link[0]].bucket_next
    link[0] = item.bucket_next
    flow_item_unlink(flow, d, i, which)
    d.count[which] -= 1
    flow_less(flow_gauge(flow, item.kind), 1)
    flow.exporters[d.owner].blocks -= flow_chain_free(flow, item.block) + flow_chain_free(flow, item.keys)
    item.block = 0
    item.keys = 0
    item.domain = 0
    item.bucket_next = flow.item_free
    flow.item_free = i
