# needs: uapi: copies, net, offload; tx: copier; worker: offload
# The memory of BPF maps that a worker shares with the programs of this process, for Worker.copy_in_kernel() and Worker.offload(). Cold code.
# What was mapped before an error is given back with the worker.


cdef void *kernel_map(int fd, size_t octets, long offset) except NULL:
    """Only the first page of a ring buffer may be written (its consumer's), so what lies behind it is read."""
    cdef int protection = PROT_READ if offset else PROT_READ | PROT_WRITE
    cdef void *mapped = mmap(NULL, octets, protection, MAP_SHARED, fd, offset)
    if mapped == MAP_FAILED:
        raise OSError(get_errno(), "memory of a BPF map")
    return mapped


cdef kernel_copies(copier_t *copier, int receivers, int counters, int number, int device, u32 token):
    if <u32>COPIES_OF_CALL != <u32>COPIER_CALL:
        raise RuntimeError("bpf/copies.h and tx/copier.pxi differ")
    if not 0 <= number < <int>COPIES_WORKERS:
        raise ValueError(f"number {number} is not 0..{COPIES_WORKERS - 1}")
    copier.mapped[0] = kernel_map(receivers, COPIES_SLOTS * sizeof(copies_receiver_t), 0)
    copier.mapped[1] = kernel_map(counters, COPIES_SLOTS * sizeof(copies_counters_t), 0)
    copier.number = number
    copier.token = token
    copier.receivers = <copies_receiver_t *>copier.mapped[0] + <size_t>number * COPIES_OF_CALL
    copier.counters = <copies_counters_t *>copier.mapped[1] + <size_t>number * COPIES_OF_CALL
    copier.name.sll_family = AF_PACKET
    copier.name.sll_ifindex = device
    copier.on = True


cdef kernel_offload_map(offload_t *o, u32 index, int fd, size_t octets, long offset=0):
    o.mapped[index] = kernel_map(fd, octets, offset)
    o.mapped_bytes[index] = octets


cdef kernel_offload(offload_t *o, int epoll, maps, int ring, size_t ring_bytes, int number, int workers):
    cdef epoll_event event
    cdef int keys, sessions, sets, receivers, counters, rings
    cdef u32 i
    cdef size_t many = <size_t>workers * OFFLOAD_SETS * OFFLOAD_RECEIVERS
    cdef size_t first = <size_t>number * OFFLOAD_SETS * OFFLOAD_RECEIVERS
    if <u32>OFFLOAD_RECEIVERS != <u32>OFFLOAD_OF_SET or <u32>OFFLOAD_OUTPUTS != <u32>OFFLOAD_OUT:
        raise RuntimeError("bpf/offload.h and worker/offload.pxi differ")
    if not 0 <= number < workers <= <int>OFFLOAD_WORKERS:
        raise ValueError(f"number {number} of {workers} is not 0..{OFFLOAD_WORKERS - 1}")
    if ring_bytes < 4096 or ring_bytes & (ring_bytes - 1):
        raise ValueError(f"a ring buffer of {ring_bytes} bytes is not a power of two from 4096 on")
    keys, sessions, sets, receivers, counters, rings = maps
    kernel_offload_map(o, 0, sessions, <size_t>workers * OFFLOAD_SESSIONS * sizeof(offload_session_t))
    kernel_offload_map(o, 1, sets, <size_t>workers * OFFLOAD_SETS * sizeof(offload_set_t))
    kernel_offload_map(o, 2, receivers, many * sizeof(copies_receiver_t))
    kernel_offload_map(o, 3, counters, many * sizeof(copies_counters_t))
    kernel_offload_map(o, 4, ring, 4096)
    kernel_offload_map(o, 5, ring, 4096 + 2 * ring_bytes, 4096)
    o.number = number
    o.keys = keys
    o.rings = rings
    o.ring = ring
    o.sessions = <offload_session_t *>o.mapped[0] + <size_t>number * OFFLOAD_SESSIONS
    o.sets = <offload_set_t *>o.mapped[1] + <size_t>number * OFFLOAD_SETS
    o.receivers = <copies_receiver_t *>o.mapped[2] + first
    o.counters = <copies_counters_t *>o.mapped[3] + first
    o.consumer = <u64 *>o.mapped[4]
    o.producer = <u64 *>o.mapped[5]
    o.data = <const u8 *>o.mapped[5] + 4096
    o.mask = ring_bytes - 1
    for i in range(OFFLOAD_SETS):                      # a worker before this one may have used them
        o.sets[i].on = 0
        o.made = max(o.made, o.sets[i].made)
        o.uses[i].taken = o.sets[i]
        o.uses[i].entries = OFFLOAD_OF_SET             # for all that is known
        memcpy(o.uses[i].copied, &o.counters[i * OFFLOAD_RECEIVERS], sizeof(o.uses[i].copied))
    event.events = EPOLLIN | EPOLLET
    event.data.ptr = o
    if epoll_ctl(epoll, EPOLL_CTL_ADD, ring, &event) < 0:
        raise OSError(get_errno(), "epoll and the ring buffer of a BPF program")
    o.on = True


cdef void kernel_end(copier_t *copier, offload_t *o) noexcept:
    cdef u32 i
    for i in range(6):
        if o.mapped[i] != NULL:
            munmap(o.mapped[i], o.mapped_bytes[i])
    if copier.mapped[0] != NULL:
        munmap(copier.mapped[0], COPIES_SLOTS * sizeof(copies_receiver_t))
    if copier.mapped[1] != NULL:
        munmap(copier.mapped[1], COPIES_SLOTS * sizeof(copies_counters_t))
