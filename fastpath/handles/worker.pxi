# needs: uapi: net, offload; base: atomics, batch, counters, door, wire; flow: scan; route: plan, pool, session; shape: run; rx: recvmmsg,
#        socket; tx: engine, lane, port; worker: flow, loop, offload, state, tap; handles: flow, kernel, memory, plan, snapshot
# The Python handle of a worker: makes everything the loop needs, runs it, publishes plans to it, reads its counters. Cold code.

TAPS = TAP_LIMIT
TAP_LISTENERS = TAP_ANY
TAP_EVENTS = {
    TAP_CAME: ("in", ""), TAP_SENT: ("sent", ""), TAP_SKIPPED: ("skipped", "freq"), TAP_UNMATCHED: ("dropped", "no_route_rule"),
    TAP_DENIED: ("dropped", "acl"), TAP_TRUNCATED: ("dropped", "truncated"),
    **{TAP_FAILED + number: ("failed", reason) for number, reason in enumerate(REASONS)},
}


cdef worker_port_set(port_set_t *ports, numbers):
    """Writes a set of ports. Raises ValueError for what is none; then the set is as before."""
    cdef port_set_t new
    cdef long port
    cdef u32 i
    memset(&new, 0, sizeof(new))
    for port in numbers:
        if not 0 <= port <= 65535:
            raise ValueError(f"port {port} is not 0..65535")
        new.words[port >> 6] |= <u64>1 << (port & 63)
    for i in range(<u32>PORT_SET_WORDS):
        atomic_store64(&ports.words[i], new.words[i])


cdef void worker_slice() noexcept nogil:
    """A short time slice for the calling thread, if its policy is the ordinary one: from Linux 6.12 on it may then interrupt a thread with a
    longer one when datagrams come (sched(7); kernel/sched/fair.c, PREEMPT_SHORT), the control plane's on the same CPU above all. Older
    kernels take no notice; whoever may not set it goes on without."""
    cdef thread_schedule schedule
    memset(&schedule, 0, sizeof(schedule))
    if thread_schedule_get(&schedule) == 0 and schedule.policy == 0:
        schedule.size = THREAD_SCHEDULE_BYTES
        schedule.flags = 0
        schedule.runtime = WORKER_SLICE_NS
        thread_schedule_set(&schedule)


@cython.final
cdef class Worker:
    cdef worker_t *w
    cdef list plans                    # published ones, oldest first; those before the running one are released
    cdef bint running
    cdef void *arena
    cdef Flow flow                     # owns the memory that w.flow points to
    cdef size_t own_octets

    def __cinit__(self, *, long long batch=512, long long max_datagram=65535, long long sessions=131072, int send_buffer=4194304,
                  int packet_fd=-1, u32 max_delay_us=0, Flow flow=None):
        cdef u32 i, sets
        if not 1 <= batch <= BATCH_LIMIT:
            raise ValueError(f"batch {batch} is not 1..{BATCH_LIMIT}")
        if not 1 <= max_datagram <= 65535:
            raise ValueError(f"max_datagram {max_datagram} is not 1..65535")
        if not 1 <= sessions <= 1 << 24:
            raise ValueError(f"sessions {sessions} is not 1..16777216")
        if send_buffer < 1:
            raise ValueError(f"send_buffer {send_buffer} is not positive")
        if max_delay_us > 100000 and max_delay_us != WORKER_DELAY_AUTO:
            raise ValueError(f"max_delay_us {max_delay_us} is not 0..100000, and not DELAY_AUTO")
        self.plans = []
        self.w = <worker_t *>memory_arena(&self.arena, 1, sizeof(worker_t))
        self.w.epoll = self.w.wake = -1
        self.w.auto_delay = max_delay_us == WORKER_DELAY_AUTO
        self.w.max_delay_ns = 0 if self.w.auto_delay else <u64>max_delay_us * 1000
        self.w.apart_ns = WORKER_AUTO_FAR_NS
        self.w.generation = <u64>-1
        self.w.counters = <worker_counters_t *>memory_arena(&self.arena, 1, sizeof(worker_counters_t))
        self.w.batch = <batch_t *>memory_arena(&self.arena, 1, sizeof(batch_t))
        self._make_arena(<u32>batch, <u32>max_datagram)
        self._make_ring()
        self.w.runs_grouped = <runs_t *>memory_arena(&self.arena, 1, sizeof(runs_t))
        self.w.runs_plain = <runs_t *>memory_arena(&self.arena, 1, sizeof(runs_t))
        self.w.runs_own = <runs_t *>memory_arena(&self.arena, 1, sizeof(runs_t))
        self.w.returned = <batch_t *>memory_arena(&self.arena, 1, sizeof(batch_t))
        self.w.echo.payload = <u8 *>memory_arena(&self.arena, 1, RX_SLOT)
        self.w.echo.lot = int.from_bytes(urandom(8), "little") | 1
        self.w.identity = <u16 *>memory_arena(&self.arena, BATCH_LIMIT, sizeof(u16))
        for i in range(<u32>BATCH_LIMIT):
            self.w.identity[i] = <u16>i
        self.w.ports.entries = <port_t *>memory_arena(&self.arena, PORT_SETS * PORT_WAYS, sizeof(port_t))
        self.w.ports.send_buffer = send_buffer
        self.w.lanes.entries = <lane_t *>memory_arena(&self.arena, LANE_SETS * LANE_WAYS, sizeof(lane_t))
        self.w.lanes.withheld = &self.w.ports.withheld
        self.w.lanes.range = <u32>LANE_PORT | <u32>LANE_PORTS << 16
        self.w.ports.way.send = tx_send_kernel
        self.w.packet.send = tx_send_kernel
        self.w.packet.fd = packet_fd
        sets = memory_power_of_two(<u64>(sessions + SESSION_WAYS - 1) // SESSION_WAYS)
        self.w.sessions.set_limit = sets - 1
        self.w.sessions.set_mask = (sets if sets < SESSION_SETS else <u32>SESSION_SETS) - 1
        self.w.sessions.entries = <session_t *>memory_arena(&self.arena, <size_t>sets * SESSION_WAYS, sizeof(session_t))
        session_void(&self.w.sessions)
        self._make_epoll()
        self._make_flow(flow)

    cdef _make_arena(self, u32 capacity, u32 max_datagram):
        cdef rx_arena_t *a = &self.w.arena
        cdef u32 i
        cdef msghdr *message
        a.capacity = capacity
        a.max_datagram = max_datagram
        a.stride = RX_SLOT + 64
        a.mapped_bytes = a.stride * capacity
        a.bytes = <u8 *>mmap(NULL, a.mapped_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
        if <void *>a.bytes == MAP_FAILED:
            a.bytes = NULL
            raise MemoryError(f"{a.mapped_bytes} bytes for the receive arena")
        a.messages = <mmsghdr *>memory_arena(&self.arena, capacity, sizeof(mmsghdr))
        a.vectors = <iovec *>memory_arena(&self.arena, capacity, sizeof(iovec))
        a.names = <sockaddr_in6 *>memory_arena(&self.arena, capacity, sizeof(sockaddr_in6))
        a.control = <u8 *>memory_arena(&self.arena, capacity, RX_CONTROL)
        for i in range(capacity):
            a.vectors[i].iov_base = a.bytes + i * a.stride
            a.vectors[i].iov_len = a.stride            # a record of a door is a little longer than the largest datagram
            message = &a.messages[i].msg_hdr
            message.msg_name = &a.names[i]
            message.msg_iov = &a.vectors[i]
            message.msg_iovlen = 1
            message.msg_control = a.control + <size_t>i * RX_CONTROL
        rx_prepare(a, capacity)
        a.door = <mmsghdr *>memory_arena(&self.arena, DOOR_MESSAGES, sizeof(mmsghdr))
        for i in range(min(capacity, <u32>DOOR_MESSAGES)):
            a.door[i].msg_hdr.msg_iov = &a.vectors[i]
            a.door[i].msg_hdr.msg_iovlen = 1

    cdef _make_ring(self):
        cdef tx_ring_t *ring = &self.w.ring
        ring.messages = <mmsghdr *>memory_arena(&self.arena, TX_RING, sizeof(mmsghdr))
        ring.vectors = <iovec *>memory_arena(&self.arena, TX_VECTORS, sizeof(iovec))
        ring.headers = <u8 *>memory_arena(&self.arena, TX_RING, TX_HEADER)
        ring.control = <u8 *>memory_arena(&self.arena, TX_RING, TX_CONTROL)
        ring.copies = <tx_copy_t *>memory_arena(&self.arena, TX_RING, sizeof(tx_copy_t))

    cdef _make_flow(self, Flow flow):
        if flow is None:
            return
        self.flow = flow
        self.w.seen = <flow_seen_t *>memory_arena(&self.arena, BATCH_LIMIT, sizeof(flow_seen_t))
        self.w.alias = <u32 *>memory_arena(&self.arena, BATCH_LIMIT, 4)
        self.w.rewritten = <batch_t *>memory_arena(&self.arena, 1, sizeof(batch_t))
        self.w.due = <due_t *>memory_arena(&self.arena, FLOW_DUE_LIMIT, sizeof(due_t))
        self.own_octets = <size_t>BATCH_LIMIT * RX_SLOT
        self.w.own_bytes = <u8 *>mmap(NULL, self.own_octets, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
        if <void *>self.w.own_bytes == MAP_FAILED:
            self.w.own_bytes = NULL
            raise MemoryError(f"{self.own_octets} bytes for copies of our own")
        self.w.flow = &flow.flow

    def copy_in_kernel(self, int receivers, int counters, int number, int device, u32 token):
        if self.running or self.w.copier.on:
            raise RuntimeError("said once, before the worker runs")
        kernel_copies(&self.w.copier, receivers, counters, number, device, token)

    def offload(self, maps, int ring, size_t octets, int number, int of, xdp):
        cdef int *given
        if self.running or self.w.offload.on:
            raise RuntimeError("said once, before the worker runs")
        if len(xdp) not in (0, 1 + OFFLOAD_SETS):
            raise ValueError(f"{len(xdp)} are not a program and a device map for each of {OFFLOAD_SETS} sets")
        self.w.offload.known = <offload_known_t *>memory_arena(&self.arena, OFFLOAD_SESSIONS, sizeof(offload_known_t))
        self.w.offload.uses = <offload_use_t *>memory_arena(&self.arena, OFFLOAD_SETS, sizeof(offload_use_t))
        if xdp:
            given = <int *>memory_arena(&self.arena, OFFLOAD_SETS, sizeof(int))
            for use in range(OFFLOAD_SETS):
                given[use] = xdp[1 + use]
            self.w.offload.copy = xdp[0]
            self.w.offload.broadcasts = given
        kernel_offload(&self.w.offload, self.w.epoll, maps, ring, octets, number, of)

    def offload_outputs(self, devices):
        cdef u32 i
        cdef u32 many = len(devices)
        cdef list each = list(devices.items())
        for i in range(<u32>OFFLOAD_OUT):
            atomic_store64(&self.w.offload.outputs[i], <u64>each[i][1] << 32 | <u64>each[i][0] if i < many else 0)

    def offload_again(self):
        atomic_store32(&self.w.offload.asked, self.w.offload.asked + 1)
        self._wake()

    cdef _make_epoll(self):
        cdef epoll_event event
        self.w.epoll = epoll_create1(EPOLL_CLOEXEC)
        self.w.wake = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)
        event.events = EPOLLIN
        event.data.ptr = NULL
        if self.w.epoll < 0 or self.w.wake < 0 or epoll_ctl(self.w.epoll, EPOLL_CTL_ADD, self.w.wake, &event) < 0:
            raise OSError(get_errno(), "epoll and eventfd of a worker")

    def __dealloc__(self):
        if self.w == NULL:
            return
        if self.w.epoll >= 0:
            close(self.w.epoll)
        if self.w.wake >= 0:
            close(self.w.wake)
        ports_close(&self.w.ports)
        lanes_end(&self.w.lanes)
        if self.w.arena.bytes != NULL:
            munmap(self.w.arena.bytes, self.w.arena.mapped_bytes)
        kernel_end(&self.w.copier, &self.w.offload)
        if self.w.own_bytes != NULL:
            munmap(self.w.own_bytes, self.own_octets)
        memory_free(self.arena)

    def run(self):
        if self.running:
            raise RuntimeError("the worker runs already")
        self.running = True
        prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0)           # naps of microseconds, not of 50 us more (prctl(2))
        worker_slice()
        try:
            with nogil:
                worker_loop(self.w)
        finally:
            self.running = False

    def publish(self, Plan plan not None):
        if plan.worker is not None and plan.worker is not self:
            raise ValueError("a plan belongs to one worker: its scratch space is not shared")
        for way in range(plan.work.routing.way_count):
            if plan.work.ways[way].port.fd < 0:
                raise ValueError("a dry plan (a Tx without a descriptor) cannot be published")
        plan.worker = self
        if plan.work.routing.pool_count and self.w.pools.entries == NULL:
            self.w.pools.entries = <pool_entry_t *>memory_arena(&self.arena, POOL_ENTRIES, sizeof(pool_entry_t))
        self._release()
        self.plans.append(plan)
        atomic_exchange(&self.w.next, &plan.work)
        self._wake()

    def wake(self):
        self._wake()

    cdef _wake(self):
        cdef u64 one = 1
        write(self.w.wake, &one, sizeof(one))

    cdef _release(self):
        """Lets go of the plans published before the one that runs, and before the one whose routes are still asked (worker_t.before). Which
        that is may only be read after the generation: the worker writes it first."""
        cdef Plan plan
        cdef size_t i
        cdef u64 running = atomic_load64_acquire(&self.w.generation)
        cdef void *before = atomic_load_acquire(<void **>&self.w.before)
        for i, plan in enumerate(self.plans):
            if <void *>&plan.work == before or plan.work.routing.generation == running:
                del self.plans[:i]
                return

    @property
    def generation(self):
        self._release()
        value = atomic_load64_acquire(&self.w.generation)
        return -1 if value == 0xFFFFFFFFFFFFFFFF else value

    @property
    def unpolled(self):
        return atomic_load32(&self.w.unpolled)

    def stop(self, int drain_ms=0):
        if drain_ms < 0:
            raise ValueError("drain_ms is negative")
        atomic_store64(&self.w.stop_deadline_ns, worker_clock(CLOCK_MONOTONIC) + <u64>drain_ms * 1000000)
        self._wake()

    def withhold(self, *ports):
        worker_port_set(&self.w.ports.withheld, ports)
        atomic_store32_release(&self.w.ports.asked, self.w.ports.asked + 1)
        self._wake()

    def source_ports(self, u32 first, u32 last, reserved=()):
        if not 1 <= first <= last <= 65535:
            raise ValueError(f"ports {first}..{last} are not a range of 1..65535")
        worker_port_set(&self.w.lanes.reserved, reserved)
        atomic_store32(&self.w.lanes.range, first | (last - first + 1) << 16)

    @property
    def let_go(self):
        return atomic_load32_acquire(&self.w.ports.released) == self.w.ports.asked

    def read(self):
        return snapshot_u64(&self.w.counters.cpu_ns, WORKER_FIELD_COUNT)

    def pool(self, u32 number):
        cdef Plan plan
        cdef pool_t *pool
        cdef u32 i
        for plan in self.plans:
            pool = pool_by_id(&plan.work.routing, number)
            if plan.work.routing.generation == atomic_load64_acquire(&self.w.generation) and pool != NULL:
                return {plan.work.routing.members[i].receiver: pool_load(&plan.work.routing.members[i])
                        for i in range(pool.first, pool.first + pool.count)}
        return {}

    def latency(self):
        return snapshot_u64(self.w.counters.latency, LATENCY_BUCKETS), atomic_load64(&self.w.counters.latency_sum_ns)

    def tap_open(self, int fd, *, double rate, bint drops=False, u32 receiver=0, u32 listener=TAP_ANY, bytes exporter=b"", int prefix=0):
        cdef u32 asked = self.w.taps.asked
        cdef u32 t = 0
        cdef tap_t *tap
        while t < TAP_LIMIT and (asked | atomic_load32_acquire(&self.w.taps.served)) >> t & 1:
            t += 1
        if t == TAP_LIMIT:
            raise RuntimeError(f"{TAP_LIMIT} taps are open")
        if self.running and atomic_load32_acquire(&self.w.taps.served) != asked:
            raise BlockingIOError("the worker has not done yet what it was asked for before")
        if not 1 <= rate <= 1e6:
            raise ValueError(f"rate {rate} is not 1..1000000")
        if len(exporter) not in (0, 4, 16) or not 0 <= prefix <= 8 * len(exporter):
            raise ValueError(f"an exporter of {len(exporter)} bytes with a prefix of {prefix}")
        tap = &self.w.taps.tap[t]
        if tap.message == NULL:
            tap.message = <u8 *>memory_arena(&self.arena, 1, DOOR_MESSAGE)
        tap.fd = fd
        tap.drops = drops
        tap.receiver = receiver
        tap.listener = listener
        self._tap_exporters(tap, exporter, prefix)
        tap.interval_ns = <u64>(1e9 / rate)
        tap.due_ns = tap.shown = tap.unshown = 0
        tap.used = tap.records = 0
        self._tap_ask(asked | <u32>1 << t)
        return t

    cdef _tap_ask(self, u32 taps):
        """Has the worker use these. Each change has another number, so that one is not taken for one before it."""
        atomic_store32_release(&self.w.taps.asked, (self.w.taps.asked & ~<u32>TAP_BITS) + TAP_BITS + 1 | taps & TAP_BITS)
        self._wake()

    cdef _tap_exporters(self, tap_t *tap, bytes exporter, int prefix):
        """The addresses that are asked for, and the bits that count, both as in exporter_t."""
        cdef u8 address[16]
        cdef u8 mask[16]
        cdef const u8 *given = exporter
        cdef u32 bits = prefix + (96 if len(exporter) == 4 else 0) if exporter else 0
        cdef u32 i
        tap.family = 4 if len(exporter) == 4 else 6 if exporter else 0
        memset(address, 0, 16)
        if len(exporter) == 4:
            wire_map_ipv4(address, given)
        elif exporter:
            memcpy(address, given, 16)
        for i in range(16):
            mask[i] = <u8>(0xFF00 >> min(8, max(0, <int>bits - 8 * <int>i)) & 0xFF)
            address[i] &= mask[i]
        memcpy(tap.address, address, 16)
        memcpy(tap.mask, mask, 16)

    def tap_close(self, u32 tap):
        self._tap_ask(self.w.taps.asked & ~(<u32>1 << tap))

    def tap_is_open(self, u32 tap):
        return self.running and bool(atomic_load32_acquire(&self.w.taps.served) >> tap & 1)

    def tap_is_used(self, u32 tap):
        cdef u32 served = atomic_load32_acquire(&self.w.taps.served)
        return self.running and (served != self.w.taps.asked or bool(served >> tap & 1))

    def tap_read(self, u32 tap):
        if tap >= TAP_LIMIT:
            raise ValueError(f"tap {tap} is not 0..{TAP_LIMIT - 1}")
        return atomic_load64(&self.w.taps.tap[tap].shown), atomic_load64(&self.w.taps.tap[tap].unshown)
