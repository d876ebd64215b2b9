# Memory of the handles: zeroed, on cache lines of its own, and arenas that are given back whole. Called by handles.pxi, plan.pxi and
# worker_handle.pxi, never by a running worker.


cdef void *plan_alloc(size_t count, size_t size) except NULL:
    """Zeroed memory on its own cache lines; at least one line, so that no pointer is NULL."""
    cdef void *p = NULL
    cdef size_t octets = ((count * size + 63) // 64 + 1) * 64
    if posix_memalign(&p, 64, octets) != 0 or p == NULL:
        raise MemoryError(f"{octets} bytes for the datapath")
    memset(p, 0, octets)
    return p


cdef void *plan_arena(void **chain, size_t count, size_t size) except NULL:
    """Zeroed memory that plan_free(chain) gives back with all the rest: a new plan is a new arena (one line before it links the chain)."""
    cdef u8 *p = <u8 *>plan_alloc(64 + count * size, 1)
    (<void **>p)[0] = chain[0]
    chain[0] = p
    return p + 64


cdef void plan_free(void *chain) noexcept nogil:
    cdef void *following
    while chain != NULL:
        following = (<void **>chain)[0]
        free(chain)
        chain = following


cdef u32 plan_receivers = 0            # ids given out, under the GIL


cdef u32 plan_power_of_two(u64 n):
    cdef u32 p = 1
    while p < n and p < <u32>1 << 30:
        p <<= 1
    return p
