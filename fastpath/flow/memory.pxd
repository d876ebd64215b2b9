# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
"""The memory of the flow stage: the division of its one block, and the free lists of items, record blocks, exporters and states.

Called by: whoever creates a flow_t (flow_limits, flow_memory, flow_create: once), table and learn (the rest). Nothing here evicts.
"""

from libc.string cimport memcmp, memcpy, memset
from flow.steps cimport flow_step
from base.atomics cimport atomic_load64, atomic_store64, atomics_add
from flow.state cimport (
    FLOW_BLOCK, FLOW_WAYS, flow_block_t, flow_domain_t, flow_exporter_t, flow_item_t, flow_limits_t, flow_set_t, flow_state_t, flow_t,
)
from uapi.net cimport u8, u32, u64

cdef enum:
    FLOW_DEFAULT_BYTES = 64 * 1024 * 1024
    FLOW_FORGET_MS = 24 * 60 * 60 * 1000
    FLOW_LIFE_LIMIT_MS = 7 * 24 * 60 * 60 * 1000   # ages are 32 bits of ms, and a template may be twice as old


cdef inline size_t flow_lines(size_t count, size_t size) noexcept nogil:
    """Bytes of an array, in whole cache lines."""
    return (count * size + 63) // 64 * 64


cdef inline size_t flow_memory(const flow_limits_t *limit) noexcept nogil:
    """Bytes that flow_create() needs."""
    cdef size_t domains = <size_t>limit.sets * FLOW_WAYS
    return (flow_lines(limit.sets, sizeof(flow_set_t)) + flow_lines(domains + 1, sizeof(flow_domain_t))
            + flow_lines(domains + 1, sizeof(flow_exporter_t)) + flow_lines(<size_t>limit.items + 1, sizeof(flow_item_t))
            + flow_lines(<size_t>limit.blocks + 1, sizeof(flow_block_t)) + flow_lines(<size_t>limit.states + 1, sizeof(flow_state_t))
            + 2 * flow_lines(limit.buckets, sizeof(u32)))


cdef inline void flow_limits(flow_limits_t *limit, size_t octets) noexcept nogil:
    """The largest tables that fit into so many bytes (at least one set), the other bounds at their defaults."""
    memset(limit, 0, sizeof(flow_limits_t))
    limit.exporter_domains = 256
    limit.exporter_blocks = 4096
    limit.domain_items = 2048
    limit.idle_ms = 30 * 60 * 1000
    limit.template_ms = 2 * 60 * 60 * 1000
    limit.forget_ms = FLOW_FORGET_MS
    limit.sets = 1 << 16
    while True:
        limit.items = limit.sets * FLOW_WAYS * 3
        limit.blocks = limit.items + limit.items // 2
        limit.states = limit.sets * FLOW_WAYS * 2
        limit.buckets = limit.sets * FLOW_WAYS * 2
        if limit.sets == 1 or flow_memory(limit) <= octets:
            break
        limit.sets >>= 1
    while flow_memory(limit) + 1024 * (sizeof(flow_block_t) + sizeof(flow_item_t)) <= octets and limit.blocks < 1 << 28:
        limit.blocks += 1024
        limit.items += 512


cdef inline void *flow_carve(u8 **memory, size_t count, size_t size) noexcept nogil:
    cdef void *p = memory[0]
    memory[0] += flow_lines(count, size)
    return p


cdef inline void flow_create(flow_t *flow, const flow_limits_t *limit, u8 *memory, u64 seed) noexcept nogil:
    """Makes an empty table of flow_memory(limit) zeroed bytes, 64-byte aligned. seed: random, so that nobody can aim at a set."""
    cdef size_t domains = <size_t>limit.sets * FLOW_WAYS
    memset(flow, 0, sizeof(flow_t))
    flow.limit = limit[0]
    flow.seed = seed
    flow.domain_limit = <u32>domains
    flow.sets = <flow_set_t *>flow_carve(&memory, limit.sets, sizeof(flow_set_t))
    flow.domains = <flow_domain_t *>flow_carve(&memory, domains + 1, sizeof(flow_domain_t))
    flow.exporters = <flow_exporter_t *>flow_carve(&memory, domains + 1, sizeof(flow_exporter_t))
    flow.items = <flow_item_t *>flow_carve(&memory, <size_t>limit.items + 1, sizeof(flow_item_t))
    flow.blocks = <flow_block_t *>flow_carve(&memory, <size_t>limit.blocks + 1, sizeof(flow_block_t))
    flow.states = <flow_state_t *>flow_carve(&memory, <size_t>limit.states + 1, sizeof(flow_state_t))
    flow.item_buckets = <u32 *>flow_carve(&memory, limit.buckets, sizeof(u32))
    flow.exporter_buckets = <u32 *>flow_carve(&memory, limit.buckets, sizeof(u32))


cdef inline void flow_less(u64 *gauge, u64 n) noexcept nogil:
    """Takes n from a gauge; the caller is its only writer."""
    atomic_store64(gauge, atomic_load64(gauge) - n)


cdef inline u32 flow_blocks_for(u32 octets) noexcept nogil:
    return (octets + FLOW_BLOCK - 1) // FLOW_BLOCK


cdef inline bint flow_blocks_left(const flow_t *flow, u32 n) noexcept nogil:
    return flow.counters.blocks + n <= flow.limit.blocks


cdef inline u32 flow_block_take(flow_t *flow) noexcept nogil:
    """A block; the caller made sure that one is left."""
    cdef u32 b = flow.block_free
    if b:
        flow.block_free = flow.blocks[b].next
    else:
        flow.block_top += 1
        b = flow.block_top
    flow.blocks[b].next = 0
    return b


cdef inline u32 flow_chain(flow_t *flow, const u8 *p, u32 n, const u8 *q, u32 m) noexcept nogil:
    """A chain of blocks with n bytes of p and m of q behind them; the caller made sure that there are enough. Returns the first."""
    cdef u32 first = 0
    cdef u32 last = 0
    cdef u32 b, part, room
    while n or m:
        flow_step(1)
        b = flow_block_take(flow)
        if last:
            flow.blocks[last].next = b
        else:
            first = b
        last = b
        atomics_add(&flow.counters.blocks, 1)
        part = n if n < FLOW_BLOCK else FLOW_BLOCK
        memcpy(flow.blocks[b].data, p, part)
        p += part
        n -= part
        if n == 0 and m:
            room = FLOW_BLOCK - part
            room = m if m < room else room
            memcpy(flow.blocks[b].data + part, q, room)
            q += room
            m -= room
    return first


cdef inline u32 flow_chain_free(flow_t *flow, u32 b) noexcept nogil:
    """Gives a chain back; returns how many blocks that were."""
    cdef u32 following
    cdef u32 n = 0
    while b:
        flow_step(1)
        following = flow.blocks[b].next
        flow.blocks[b].next = flow.block_free
        flow.block_free = b
        b = following
        n += 1
    flow_less(&flow.counters.blocks, n)
    return n


cdef inline bint flow_chain_equal(const flow_t *flow, u32 b, u32 offset, const u8 *p, u32 n) noexcept nogil:
    """Whether the chain has these n bytes at offset, which is in its first block."""
    cdef u32 part
    while n:
        flow_step(1)
        part = FLOW_BLOCK - offset
        part = n if n < part else part
        if b == 0 or memcmp(flow.blocks[b].data + offset, p, part) != 0:
            return False
        p += part
        n -= part
        offset = 0
        b = flow.blocks[b].next
    return True


cdef inline u32 flow_chain_copy(const flow_t *flow, u32 b, u32 offset, u8 *out, u32 n) noexcept nogil:
    """Copies n bytes from offset; returns how many there were. Safe on a chain that changes meanwhile: it ends after n bytes."""
    cdef u32 part
    cdef u32 done = 0
    while b and b <= flow.limit.blocks and done < n:
        flow_step(1)
        if offset >= FLOW_BLOCK:
            offset -= FLOW_BLOCK
        else:
            part = FLOW_BLOCK - offset
            part = part if part < n - done else n - done
            memcpy(out + done, flow.blocks[b].data + offset, part)
            done += part
            offset = 0
        b = flow.blocks[b].next
    return done


cdef inline u32 flow_fresh(u32 *top, u32 limit) noexcept nogil:
    """The next place that was never used, from 1; 0 = none left."""
    if top[0] >= limit:
        return 0
    top[0] += 1
    return top[0]


cdef inline u32 flow_item_take(flow_t *flow) noexcept nogil:
    """A zeroed item, 0 = none left."""
    cdef u32 i = flow.item_free
    if i:
        flow.item_free = flow.items[i].bucket_next
    else:
        i = flow_fresh(&flow.item_top, flow.limit.items)
    if i == 0:
        return 0
    memset(&flow.items[i], 0, sizeof(flow_item_t))
    return i


cdef inline u32 flow_state_take(flow_t *flow) noexcept nogil:
    """A zeroed state, 0 = none left."""
    cdef u32 i = flow.state_free
    if i:
        flow.state_free = flow.states[i].next
    else:
        i = flow_fresh(&flow.state_top, flow.limit.states)
    if i == 0:
        return 0
    memset(&flow.states[i], 0, sizeof(flow_state_t))
    atomics_add(&flow.counters.states, 1)
    return i


cdef inline void flow_states_free(flow_t *flow, flow_domain_t *d) noexcept nogil:
    """Gives back all states of a domain."""
    cdef u32 i = d.state
    cdef u32 following
    while i:
        flow_step(1)
        following = flow.states[i].next
        flow.states[i].next = flow.state_free
        flow.state_free = i
        flow_less(&flow.counters.states, 1)
        i = following
    d.state = d.state_found = 0


cdef inline u32 flow_exporter_take(flow_t *flow) noexcept nogil:
    """A zeroed exporter; there are as many as domains, and each has one, so one is always left."""
    cdef u32 i = flow.exporter_free
    if i:
        flow.exporter_free = flow.exporters[i].bucket_next
    else:
        flow.exporter_top += 1
        i = flow.exporter_top
    memset(&flow.exporters[i], 0, sizeof(flow_exporter_t))
    atomics_add(&flow.counters.exporters, 1)
    return i
