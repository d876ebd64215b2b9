# needs: uapi: net; base: atomics, counters; rx: overlap, socket; handles: memory, snapshot
# Python handles of counters and intakes: RxCounters, TxCounters, RxSocket, Overlap. Cold code: it checks its arguments and raises ValueError;
# the worker never calls it. Memory comes from handles/memory.pxi; a Plan keeps these objects alive while a worker uses them.


@cython.final
cdef class RxCounters:
    cdef rx_counters_t *c

    def __cinit__(self):
        self.c = <rx_counters_t *>memory_alloc(1, sizeof(rx_counters_t))

    def __dealloc__(self):
        free(self.c)

    def read(self):
        return snapshot_u64(&self.c.datagrams, RX_FIELD_COUNT)

    def batches(self):
        return snapshot_u64(self.c.batches, BATCH_BUCKETS)


cdef u32 counters_given = 0            # ids of receivers' counters, under the GIL


@cython.final
cdef class TxCounters:
    cdef tx_counters_t *c

    def __cinit__(self):
        global counters_given
        counters_given += 1
        self.c = <tx_counters_t *>memory_alloc(1, sizeof(tx_counters_t))
        self.c.id = counters_given

    def __dealloc__(self):
        free(self.c)

    @property
    def id(self):
        return self.c.id

    @property
    def countdown(self):
        return self.c.countdown

    def read(self):
        return snapshot_u64(&self.c.offered, TX_FIELD_COUNT)

    def carry(self, counts, u32 countdown):
        """Begins at these, in the order of TX_FIELDS; before a worker has a Tx with them."""
        cdef u64 values[TX_FIELD_COUNT]
        cdef u32 i
        if len(counts) != TX_FIELD_COUNT:
            raise ValueError(f"{len(counts)} counts are not {TX_FIELD_COUNT}")
        for i, count in enumerate(tuple(counts)):
            values[i] = count
        memcpy(&self.c.offered, values, sizeof(values))
        self.c.countdown = countdown


@cython.final
cdef class Overlap:
    cdef overlap_t o
    cdef void *memory

    def __cinit__(self, u32 entries=1 << 18):
        cdef u32 places = memory_power_of_two(entries)
        self.o.mask = places - 1
        self.o.seed = int.from_bytes(urandom(8), "little")
        self.o.until_ns = <u64>-1
        self.o.entries = <overlap_entry_t *>memory_arena(&self.memory, places, sizeof(overlap_entry_t))

    def __dealloc__(self):
        memory_free(self.memory)

    def limit(self, *, since_ns=None, until_ns=None):
        if since_ns is not None:
            self.o.since_ns = since_ns
        if until_ns is not None:
            self.o.until_ns = until_ns

    def read(self):
        return atomic_load64(&self.o.noted), atomic_load64(&self.o.unnoted), atomic_load64(&self.o.repeated)


@cython.final
cdef class RxSocket:
    cdef rx_socket_t socket
    cdef Overlap overlap               # the worker may use it
    cdef RxCounters counters
    cdef Py_buffer view                # of the ring's mapping, which it keeps alive
    cdef Py_buffer bell                # of the doorbell's

    def __cinit__(self, int fd, RxCounters counters not None, int listener, *, ring=None, u32 block_bytes=0, bell=None, int bell_fd=-1,
                  bint flow=False, bint door=False):
        if listener < 0 or listener > 0xFFFF:
            raise ValueError(f"listener index {listener} is not 0..65535")
        self.counters = counters
        self.socket.fd = fd
        self.socket.listener = listener
        self.socket.counters = counters.c
        self.socket.flow = flow
        self.socket.stamps = self.socket.stamped = self._has_stamps()
        if ring is not None:
            self._set_ring(ring, block_bytes)
        if door:
            if ring is not None:
                raise ValueError("a door has no ring")
            self.socket.kind = RX_DOOR
        if bell is not None:
            self._set_bell(bell, bell_fd)

    cdef _set_ring(self, ring, u32 block_bytes):
        cdef rx_ring_t *r = &self.socket.ring
        PyObject_GetBuffer(ring, &self.view, PyBUF_WRITABLE)
        if block_bytes < 4096 or block_bytes & 7 or self.view.len == 0 or <size_t>self.view.len % block_bytes:
            raise ValueError(f"a ring of {self.view.len} bytes has no whole blocks of {block_bytes}")
        self.socket.kind = RX_RING
        r.map = <u8 *>self.view.buf
        r.block_bytes = block_bytes
        r.blocks = <u32>(<size_t>self.view.len // block_bytes)
        r.offset = RING_BLOCK_HEADER
        r.mark = RING_BLOCK_HEADER
        r.offsets[0], r.offsets[1] = RING_LINK, RING_NETWORK

    cdef _set_bell(self, bell, int bell_fd):
        if self.socket.kind != RX_RING or not ATOMIC_STORES_IN_ORDER:
            raise ValueError("a doorbell is for a ring, on a processor whose stores become visible in their order")
        PyObject_GetBuffer(bell, &self.bell, PyBUF_WRITABLE)
        if self.bell.len < 4:
            raise ValueError("a doorbell has a status of 4 bytes")
        self.socket.ring.bell = <u32 *>self.bell.buf
        self.socket.ring.bell_fd = bell_fd

    cdef bint _has_stamps(self):
        cdef int on = 0
        cdef socklen_t length = sizeof(on)
        return getsockopt(self.socket.fd, SOL_SOCKET, SO_TIMESTAMPNS, &on, &length) == 0 and on != 0

    def __dealloc__(self):
        PyBuffer_Release(&self.view)       # nothing when there is no ring
        PyBuffer_Release(&self.bell)

    @property
    def fd(self):
        return self.socket.fd

    @property
    def listener(self):
        return self.socket.listener

    @property
    def mark(self):
        mark = atomic_load64(&self.socket.ring.mark)
        return mark >> 32, mark & 0xFFFFFFFF

    @property
    def shut(self):
        return atomic_load32(&self.socket.shut) != 0

    def set_flow(self, bint on):
        """Whether its datagrams go through the flow stage; any thread may call it while the worker runs."""
        atomic_store32(&self.socket.flow, 1 if on else 0)

    def set_offload(self, bint on):
        """Whether the kernel may copy its sessions' datagrams where they come in; any thread may call it while the worker runs."""
        atomic_store32(&self.socket.offloads, 1 if on else 0)

    def rest(self, *, bint empty=False):
        atomic_store32_release(&self.socket.rest, RX_EMPTY if empty else RX_REST)

    def go_on(self):
        atomic_store32_release(&self.socket.rest, RX_READ)

    @property
    def settled(self):
        return atomic_load32_acquire(&self.socket.rests) == self.socket.rest

    def set_overlap(self, Overlap overlap, *, bint notes=False):
        if overlap is not None and self.socket.rest == RX_READ:
            raise ValueError("an overlap is for an intake that rests")
        self.socket.part = OVERLAP_NOTES if notes else OVERLAP_LEAVES
        if overlap is not None:
            self.socket.ring.opened_ns = 0             # arrival times are taken as they are: the headers of the slots are complete
        atomic_store64_release(<u64 *>&self.socket.overlap, <u64><void *>&overlap.o if overlap is not None else 0)
        self.overlap = overlap

    @property
    def overlapping(self):
        return atomic_load64_acquire(<u64 *>&self.socket.overlap) != 0
