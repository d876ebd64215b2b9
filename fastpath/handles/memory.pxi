# needs: uapi: net
# Memory of the handles: zeroed and cache-line aligned, and arenas that are returned as a whole. Called by handles/, never by a running
# worker.


cdef void *memory_alloc(size_t count, size_t size) except NULL:
    """Zeroed memory on its own cache lines; at least one line, so that no pointer is NULL."""
    cdef void *p = NULL
    cdef size_t octets = ((count * size + 63) // 64 + 1) * 64
    if posix_memalign(&p, 64, octets) != 0 or p == NULL:
        raise MemoryError(f"{octets} bytes for the datapath")
    memset(p, 0, octets)
    return p


cdef void *memory_arena(void **chain, size_t count, size_t size) except NULL:
    """Zeroed memory that memory_free(chain) gives back with all the rest: a new plan is a new arena. A line of its own before it links the
    chain and says what to free. calloc() leaves large pieces to the kernel's zero pages: what is never used costs no memory."""
    cdef size_t octets = 2 * 64 + (count * size + 63) // 64 * 64
    cdef u8 *raw = <u8 *>calloc(octets, 1)
    cdef void **line
    if raw == NULL:
        raise MemoryError(f"{octets} bytes for the datapath")
    line = <void **>(raw + 64 - <size_t>raw % 64)
    line[0] = chain[0]
    line[1] = raw
    chain[0] = line
    return <u8 *>line + 64


cdef void memory_free(void *chain) noexcept nogil:
    cdef void *following
    while chain != NULL:
        following = (<void **>chain)[0]
        free((<void **>chain)[1])
        chain = following


cdef u32 memory_power_of_two(u64 n):
    cdef u32 p = 1
    while p < n and p < <u32>1 << 30:
        p <<= 1
    return p
