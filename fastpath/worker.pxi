# The worker: one thread, its sockets in one epoll, its plan, its batch. The whole life of a datagram is worker_batch().
# Invariants: nothing is allocated after Worker() is made; nothing a datagram, a receiver or the kernel does ends the loop; a plan is
# adopted between batches only. Called by Python once, Worker.run(), which does not hold the GIL (but for the debugging trace).

cdef enum:
    WORKER_EVENTS = 64
    WORKER_ROUNDS = 8                  # batches of one socket in a row before the others get their turn
    WORKER_IDLE_MS = 1000              # heartbeat when nothing comes
    WORKER_CPU_CLOCK_NS = 10000000     # how often the thread's CPU clock is read
    WORKER_LEAVE_NS = 1000000000       # longest drain of a socket that leaves the plan

ctypedef struct worker_t:
    int epoll
    int wake
    work_t *work                       # running plan
    void *next                         # published, not yet adopted
    u64 generation                     # of `work`; read by other threads
    u64 stop_deadline_ns               # CLOCK_MONOTONIC; 0 = run on
    u64 cpu_read_ns
    void *trace                        # borrowed reference to the Worker when tracing, NULL = off
    worker_counters_t *counters
    rx_arena_t arena
    batch_t *batch
    tx_ring_t ring
    session_cache_t sessions
    ports_t ports
    tx_t packet                        # the packet socket; only `send` and `fd` mean anything
    runs_t *runs_grouped               # of the whole batch, by exporter session
    runs_t *runs_plain                 # of the whole batch as one group
    runs_t *runs_own                   # of one receiver's own selection
    bint grouped_known
    bint plain_known
    epoll_event events[WORKER_EVENTS]


ctypedef int (*worker_tell_t)(worker_t *w, u32 active) noexcept    # so that the error indicator, not the caller, carries the exception


cdef inline u64 worker_clock(int clock) noexcept nogil:
    cdef timespec now
    clock_gettime(clock, &now)
    return <u64>now.tv_sec * 1000000000 + <u64>now.tv_nsec


cdef inline u32 worker_route(worker_t *w, u32 d) noexcept nogil:
    """Route of datagram d of the batch, from the session cache or made now."""
    cdef batch_t *batch = w.batch
    cdef exporter_t *exporter = &batch.exporter[d]
    cdef bint hit, forgot
    cdef u32 route
    cdef session_t *session = session_find(&w.sessions, exporter.address, exporter.port_be, <u16>batch.listener, &hit)
    if unlikely(not hit):
        route = match_route(&w.work.routing, exporter.address, exporter.family, batch.listener, &forgot)
        if forgot:
            session_void(&w.sessions)
        session_take(&w.sessions, session, exporter.address, exporter.port_be, <u16>batch.listener, route)
    session_group(&w.sessions, session, batch, d)
    return session.route


cdef inline u32 worker_select(worker_t *w, u32 d, u32 route, u32 active) noexcept nogil:
    """Enters datagram d into the selection of every way of its route; returns the new number of active ways."""
    cdef work_t *work = w.work
    cdef route_t *r = &work.routing.routes[route]
    cdef u32 k, way, n
    cdef tx_t *tx
    for k in range(r.count):
        way = work.routing.pool[r.first + k]
        tx = work.ways[way]
        if tx.freq > 1 and not sample_keep(tx.counters, tx.freq):
            atomics_add(&tx.counters.offered, 1)
            atomics_add(&tx.counters.sampled_out, 1)
            continue
        n = work.selected[way]
        if n == 0:
            work.active[active] = way
            active += 1
        work.selections[<size_t>way * BATCH_LIMIT + n] = <u16>d
        work.selected[way] = n + 1
    return active


cdef inline runs_t *worker_runs(worker_t *w, const tx_t *tx, const u16 *selection, u32 n, bint grouped) noexcept nogil:
    """The runs of a selection; those of the whole batch are made once and shared by all receivers that take it."""
    cdef runs_t *runs = w.runs_grouped if grouped else w.runs_plain
    cdef bint *known = &w.grouped_known if grouped else &w.plain_known
    if n != w.batch.n or tx.ttl == 0:
        runs = w.runs_own
        run_make(runs, w.batch, selection, n, grouped, tx.ttl == 0)
    elif not known[0]:
        run_make(runs, w.batch, selection, n, grouped, False)
        known[0] = True
    return runs


cdef inline void worker_send_one(worker_t *w, tx_t *tx, const u16 *selection, u32 n) noexcept nogil:
    """A receiver's selection by its own socket: one emit, one flush."""
    if tx.engine == TX_ENGINE_UDP:
        tx_udp_emit(tx, w.batch, worker_runs(w, tx, selection, n, False), &w.ring)
    else:
        tx_raw_emit(tx, w.batch, selection, n, &w.ring)
    tx_flush(tx, &w.ring)


cdef inline void worker_send_left(worker_t *w, const u32 *ways, u32 n) noexcept nogil:
    """What a shared socket did not take leaves by each receiver's own."""
    cdef u32 a, way, left
    for a in range(n):
        way = ways[a]
        left = w.work.left[way]
        if left:
            w.work.left[way] = 0
            worker_send_one(w, w.work.ways[way], &w.work.leftovers[<size_t>way * BATCH_LIMIT], left)


cdef inline void worker_send(worker_t *w, u32 active) noexcept nogil:
    """One emit and one flush for each active way; ways that share the exporters' sockets or the packet socket together."""
    cdef work_t *work = w.work
    cdef u32 a, way, n
    cdef u32 shared = 0
    cdef u32 framed = 0
    cdef tx_t *tx
    cdef runs_t *runs
    w.plain_known = w.grouped_known = False
    for a in range(active):
        way = work.active[a]
        n = work.selected[way]
        tx = work.ways[way]
        atomics_add(&tx.counters.offered, n)
        if tx.engine < TX_ENGINE_TRANSPARENT or n != w.batch.n or tx.ttl == 0 or tx.pause_us:
            worker_send_one(w, tx, &work.selections[<size_t>way * BATCH_LIMIT], n)
        elif tx.engine == TX_ENGINE_TRANSPARENT:
            work.shared[shared] = way
            shared += 1
        else:
            work.framed[framed] = way
            framed += 1
    if shared or framed:
        way = work.shared[0] if shared else work.framed[0]
        runs = worker_runs(w, work.ways[way], &work.selections[<size_t>way * BATCH_LIMIT], w.batch.n, True)
    if shared:
        transparent_send(work, &w.ports, w.batch, runs, w.sessions.now, shared, &w.ring)
        worker_send_left(w, work.shared, shared)
    if framed:
        packet_send(work, &w.packet, w.batch, runs, work.framed, framed, &w.ring)
        worker_send_left(w, work.framed, framed)


cdef inline void worker_latency(worker_t *w) noexcept nogil:
    """Arrival in the kernel to handed back to it, for every datagram of the batch."""
    cdef u64 now = worker_clock(CLOCK_REALTIME)
    cdef u64 arrival
    cdef u32 d
    for d in range(w.batch.n):
        arrival = w.batch.arrival_ns[d]
        if arrival:
            counters_latency(w.counters, now - arrival if now > arrival else 0, 1)


cdef void worker_batch(worker_t *w, rx_counters_t *c) noexcept nogil:
    """The life of a batch: route, select, send, count."""
    cdef u32 d, a, route
    cdef u32 active = 0
    cdef u64 unmatched = 0
    cdef u64 denied = 0
    w.sessions.now += 1
    w.batch.groups = 0
    for d in range(w.batch.n):
        route = worker_route(w, d)
        if route >= PLAN_ROUTE_FIRST:
            active = worker_select(w, d, route, active)
        elif route == PLAN_ROUTE_DENIED:
            denied += 1
        else:
            unmatched += 1
    atomics_add(&c.unmatched, unmatched)
    atomics_add(&c.denied, denied)
    atomics_add(&c.matched, w.batch.n - unmatched - denied)
    worker_send(w, active)
    worker_latency(w)
    if unlikely(w.trace != NULL):
        worker_trace(w, active)
    for a in range(active):
        w.work.selected[w.work.active[a]] = 0


cdef void worker_trace(worker_t *w, u32 active) noexcept with gil:
    """Tells the trace callback about every datagram of the batch; an exception in it is printed, not raised."""
    if (<worker_tell_t>worker_tell)(w, active) < 0:
        PyErr_Print()


cdef int worker_tell(worker_t *w, u32 active) except -1:
    cdef u32 d, a, k, way
    cdef exporter_t *exporter
    callback = (<Worker>w.trace).callback
    if callback is None:
        return 0
    ways = [[] for _ in range(w.batch.n)]
    for a in range(active):
        way = w.work.active[a]
        for k in range(w.work.selected[way]):
            ways[w.work.selections[<size_t>way * BATCH_LIMIT + k]].append(w.work.owner[way])
    for d in range(w.batch.n):
        exporter = &w.batch.exporter[d]
        address = (<char *>exporter.address)[12:16] if exporter.family == 4 else (<char *>exporter.address)[0:16]
        callback(address, ntohs(exporter.port_be), w.batch.length[d], w.batch.listener, tuple(ways[d]))
    return 0


cdef u32 worker_read(worker_t *w, rx_socket_t *socket, u32 rounds) noexcept nogil:
    """Reads up to `rounds` batches while they come full; returns the datagrams read."""
    cdef u32 total = 0
    cdef int got
    while rounds:
        if socket.ring.map != NULL:
            got = ring_receive(socket, w.arena.capacity, w.arena.max_datagram, w.batch)
        else:
            got = rx_receive(socket, &w.arena, w.batch)
        if got:
            worker_batch(w, socket.counters)
        if socket.ring.map != NULL:
            ring_release(socket)
        if got == 0:
            break
        total += <u32>got
        rounds -= 1
        if <u32>got < w.arena.capacity and socket.ring.map == NULL:
            break
    return total


cdef bint worker_has(work_t *work, rx_socket_t *socket) noexcept nogil:
    cdef u32 i
    if work != NULL:
        for i in range(work.socket_count):
            if work.sockets[i] == socket:
                return True
    return False


cdef void worker_drain(worker_t *w, rx_socket_t *only, u64 deadline_ns) noexcept nogil:
    """Reads sockets of the running plan (or just one) until nothing waits in them or the deadline (CLOCK_MONOTONIC) has passed."""
    cdef u32 i
    cdef u32 found = 1
    while found and worker_clock(CLOCK_MONOTONIC) < deadline_ns:
        found = 0
        for i in range(w.work.socket_count):
            if only == NULL or w.work.sockets[i] == only:
                found += worker_read(w, w.work.sockets[i], WORKER_ROUNDS)


cdef void worker_adopt(worker_t *w) noexcept nogil:
    """Takes the published plan, if there is one: sockets that leave are drained under the old plan, new ones join the epoll."""
    cdef work_t *old = w.work
    cdef work_t *new
    cdef epoll_event event
    cdef u32 i
    if likely(atomic_load_acquire(&w.next) == NULL):
        return
    new = <work_t *>atomic_exchange(&w.next, NULL)
    if new == NULL:
        return
    if old != NULL:
        for i in range(old.socket_count):
            if not worker_has(new, old.sockets[i]):
                worker_drain(w, old.sockets[i], worker_clock(CLOCK_MONOTONIC) + WORKER_LEAVE_NS)
                epoll_ctl(w.epoll, EPOLL_CTL_DEL, old.sockets[i].fd, &event)
    for i in range(new.socket_count):
        if not worker_has(old, new.sockets[i]):
            event.events = EPOLLIN
            event.data.ptr = new.sockets[i]
            epoll_ctl(w.epoll, EPOLL_CTL_ADD, new.sockets[i].fd, &event)
    w.work = new
    session_void(&w.sessions)
    atomic_store64_release(&w.generation, new.routing.generation)


cdef void worker_beat(worker_t *w, u64 now_ns) noexcept nogil:
    """Heartbeat, and at most every 10 ms the thread's CPU clock."""
    cdef worker_counters_t *c = w.counters
    atomic_store64(&c.heartbeat_ns, worker_clock(CLOCK_REALTIME))
    atomic_store64(&c.sessions, w.sessions.used)
    atomic_store64(&c.session_misses, w.sessions.misses)
    atomic_store64(&c.session_evictions, w.sessions.evictions)
    atomic_store64(&c.stalls, w.ring.stalls)
    if now_ns - w.cpu_read_ns >= WORKER_CPU_CLOCK_NS:
        w.cpu_read_ns = now_ns
        atomic_store64(&c.cpu_ns, worker_clock(CLOCK_THREAD_CPUTIME_ID))


cdef void worker_events(worker_t *w, int n) noexcept nogil:
    """Serves the sockets that epoll named; a wake-up only has its eventfd emptied."""
    cdef int i
    cdef u64 ignored
    for i in range(n):
        if w.events[i].data.ptr == NULL:
            read(w.wake, &ignored, sizeof(ignored))
        else:
            worker_read(w, <rx_socket_t *>w.events[i].data.ptr, WORKER_ROUNDS)


cdef void worker_loop(worker_t *w) noexcept nogil:
    """Until stop(): adopt, wait, read."""
    cdef u64 start, deadline
    cdef int n
    while True:
        worker_adopt(w)
        deadline = atomic_load64(&w.stop_deadline_ns)
        if deadline:
            if w.work != NULL:
                worker_drain(w, NULL, deadline)
            worker_beat(w, worker_clock(CLOCK_MONOTONIC))
            return
        n = epoll_wait(w.epoll, w.events, WORKER_EVENTS, WORKER_IDLE_MS)
        start = worker_clock(CLOCK_MONOTONIC)
        if n > 0:
            atomics_add(&w.counters.wakeups, 1)
            worker_events(w, n)
        worker_beat(w, start)
        atomics_add(&w.counters.busy_ns, worker_clock(CLOCK_MONOTONIC) - start)


@cython.final
cdef class Worker:
    cdef worker_t *w
    cdef list plans                    # published ones, oldest first; those before the running one are released
    cdef object callback
    cdef bint running
    cdef void *arena

    def __cinit__(self, *, long long batch=256, long long max_datagram=65535, long long sessions=131072, int send_buffer=4194304,
                  int packet_fd=-1):
        if not 1 <= batch <= BATCH_LIMIT:
            raise ValueError(f"batch {batch} is not 1..{BATCH_LIMIT}")
        if not 1 <= max_datagram <= 65535:
            raise ValueError(f"max_datagram {max_datagram} is not 1..65535")
        if not 1 <= sessions <= 1 << 24:
            raise ValueError(f"sessions {sessions} is not 1..16777216")
        if send_buffer < 1:
            raise ValueError(f"send_buffer {send_buffer} is not positive")
        self.plans = []
        self.w = <worker_t *>plan_arena(&self.arena, 1, sizeof(worker_t))
        self.w.epoll = self.w.wake = -1
        self.w.generation = <u64>-1
        self.w.counters = <worker_counters_t *>plan_arena(&self.arena, 1, sizeof(worker_counters_t))
        self.w.batch = <batch_t *>plan_arena(&self.arena, 1, sizeof(batch_t))
        self._make_arena(<u32>batch, <u32>max_datagram)
        self._make_ring()
        self.w.runs_grouped = <runs_t *>plan_arena(&self.arena, 1, sizeof(runs_t))
        self.w.runs_plain = <runs_t *>plan_arena(&self.arena, 1, sizeof(runs_t))
        self.w.runs_own = <runs_t *>plan_arena(&self.arena, 1, sizeof(runs_t))
        self.w.ports.entries = <port_t *>plan_arena(&self.arena, PORT_SETS * PORT_WAYS, sizeof(port_t))
        self.w.ports.send_buffer = send_buffer
        self.w.ports.way.send = tx_send_kernel
        self.w.packet.send = tx_send_kernel
        self.w.packet.fd = packet_fd
        self.w.sessions.set_mask = plan_power_of_two(<u64>(sessions + SESSION_WAYS - 1) // SESSION_WAYS) - 1
        self.w.sessions.entries = <session_t *>plan_arena(&self.arena, (<size_t>self.w.sessions.set_mask + 1) * SESSION_WAYS, sizeof(session_t))
        session_void(&self.w.sessions)
        self._make_epoll()

    cdef _make_arena(self, u32 capacity, u32 max_datagram):
        cdef rx_arena_t *a = &self.w.arena
        cdef u32 i
        cdef msghdr *message
        a.capacity = capacity
        a.max_datagram = max_datagram
        a.stride = ((<size_t>max_datagram + 63) // 64 | 1) * 64
        a.mapped_bytes = a.stride * capacity
        a.bytes = <u8 *>mmap(NULL, a.mapped_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
        if <void *>a.bytes == MAP_FAILED:
            a.bytes = NULL
            raise MemoryError(f"{a.mapped_bytes} bytes for the receive arena")
        a.messages = <mmsghdr *>plan_arena(&self.arena, capacity, sizeof(mmsghdr))
        a.vectors = <iovec *>plan_arena(&self.arena, capacity, sizeof(iovec))
        a.names = <sockaddr_in6 *>plan_arena(&self.arena, capacity, sizeof(sockaddr_in6))
        a.control = <u8 *>plan_arena(&self.arena, capacity, RX_CONTROL)
        for i in range(capacity):
            a.vectors[i].iov_base = a.bytes + i * a.stride
            a.vectors[i].iov_len = max_datagram
            message = &a.messages[i].msg_hdr
            message.msg_name = &a.names[i]
            message.msg_iov = &a.vectors[i]
            message.msg_iovlen = 1
            message.msg_control = a.control + <size_t>i * RX_CONTROL
        rx_prepare(a, capacity)

    cdef _make_ring(self):
        cdef tx_ring_t *ring = &self.w.ring
        ring.messages = <mmsghdr *>plan_arena(&self.arena, TX_RING, sizeof(mmsghdr))
        ring.vectors = <iovec *>plan_arena(&self.arena, TX_VECTORS, sizeof(iovec))
        ring.headers = <u8 *>plan_arena(&self.arena, TX_RING, TX_HEADER)
        ring.control = <u8 *>plan_arena(&self.arena, TX_RING, TX_CONTROL)
        ring.copies = <tx_copy_t *>plan_arena(&self.arena, TX_RING, sizeof(tx_copy_t))

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
        if self.w.arena.bytes != NULL:
            munmap(self.w.arena.bytes, self.w.arena.mapped_bytes)
        plan_free(self.arena)

    def run(self):
        if self.running:
            raise RuntimeError("the worker runs already")
        self.running = True
        try:
            with nogil:
                worker_loop(self.w)
        finally:
            self.running = False

    def publish(self, Plan plan not None):
        if plan.worker is not None and plan.worker is not self:
            raise ValueError("a plan belongs to one worker: its scratch space is not shared")
        for way in range(plan.work.routing.way_count):
            if plan.work.ways[way].fd < 0:
                raise ValueError("a dry plan (a Tx without a descriptor) cannot be published")
        plan.worker = self
        self._release()
        self.plans.append(plan)
        atomic_exchange(&self.w.next, &plan.work)
        self._wake()

    cdef _wake(self):
        cdef u64 one = 1
        write(self.w.wake, &one, sizeof(one))

    cdef _release(self):
        """Lets go of the plans published before the one that runs."""
        cdef Plan plan
        cdef size_t i
        for i, plan in enumerate(self.plans):
            if plan.work.routing.generation == atomic_load64_acquire(&self.w.generation):
                del self.plans[:i]
                return

    @property
    def generation(self):
        self._release()
        value = atomic_load64_acquire(&self.w.generation)
        return -1 if value == 0xFFFFFFFFFFFFFFFF else value

    def stop(self, int drain_ms=0):
        if drain_ms < 0:
            raise ValueError("drain_ms is negative")
        atomic_store64(&self.w.stop_deadline_ns, worker_clock(CLOCK_MONOTONIC) + <u64>drain_ms * 1000000)
        self._wake()

    def read(self):
        return snapshot_u64(&self.w.counters.cpu_ns, WORKER_FIELD_COUNT)

    def latency(self):
        return snapshot_u64(self.w.counters.latency, LATENCY_BUCKETS), atomic_load64(&self.w.counters.latency_sum_ns)

    def trace(self, callback):
        self.callback = callback
        atomic_exchange(&self.w.trace, NULL if callback is None else <void *>self)
