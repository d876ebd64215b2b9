# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
"""Copies of the flow state for other threads: bounded, without a lock that the worker takes.

A copy is made and then checked with the sequence lock (state.pxd); data that changed meanwhile are read again, FLOW_READ_TRIES times. Every
number is checked against its limit before use, so a torn number cannot lead out of the table. Called by: the handle (handles/flow.pxi), cold.
"""

from base.atomics cimport atomic_fence_load32, atomic_load32_acquire
from flow.memory cimport flow_chain_copy
from flow.state cimport flow_domain_t, flow_item_t, flow_t
from uapi.net cimport u8, u32

cdef enum:
    FLOW_READ_TRIES = 256


cdef inline bint flow_read_domain(flow_t *flow, u32 number, flow_domain_t *out) noexcept nogil:
    """Copies domain `number`. False: the entry is empty, or never stood still."""
    cdef flow_domain_t *d = &flow.domains[number]
    cdef u32 version, _tries
    if number == 0 or number > flow.domain_limit:
        return False
    for _tries in range(<u32>FLOW_READ_TRIES):
        version = atomic_load32_acquire(&d.head_version)
        if version & 1:
            continue
        out[0] = d[0]
        if atomic_fence_load32(&d.head_version) == version:
            return out.owner != 0
    return False


cdef inline int flow_read_items_once(flow_t *flow, u32 number, u32 which, flow_item_t *items, u32 limit, u8 *octets, u32 room) noexcept nogil:
    """One try of flow_read_items(); -1 = they changed."""
    cdef flow_domain_t *d = &flow.domains[number]
    cdef u32 version = atomic_load32_acquire(&d.version)
    cdef u32 i = d.first[which]
    cdef u32 n = 0
    cdef u32 used = 0
    if version & 1:
        return -1
    while i and i <= flow.limit.items and n < limit:
        items[n] = flow.items[i]
        if used + items[n].bytes > room:
            break
        if flow_chain_copy(flow, items[n].block, 2 * <u32>items[n].steps, octets + used, items[n].bytes) != items[n].bytes:
            return -1
        used += items[n].bytes
        i = items[n].next
        n += 1
    return <int>n if atomic_fence_load32(&d.version) == version else -1


cdef inline u32 flow_read_items(flow_t *flow, u32 number, u32 which, flow_item_t *items, u32 limit, u8 *octets, u32 room) noexcept nogil:
    """Copies a domain's list of items and, one after the other, their raw records; returns how many, 0 if they never stood still."""
    cdef u32 _tries
    cdef int n
    for _tries in range(<u32>FLOW_READ_TRIES):
        n = flow_read_items_once(flow, number, which, items, limit, octets, room)
        if n >= 0:
            return <u32>n
    return 0
