# needs: uapi: net; base: atomics, counters; flow: observe, renumber; route: plan, pool, session; rx: door, overlap, recvmmsg, ring, socket;
#        tx: engine, lane, port; worker: choose, echo, express, flow, gather, ingress, lane, pool, send, state, tap, work
# The worker: one thread, its sockets in one epoll, its plan, its batch. The whole life of a datagram is worker_batch(). Invariants: nothing
# is allocated after Worker() is made; no datagram, receiver or kernel error ends the loop; a plan is adopted between batches only. Called by
# Python once, Worker.run(), which does not hold the GIL.


cdef inline void worker_latency(worker_t *w) noexcept nogil:
    """Arrival in the kernel to handed back to it, for every datagram of the batch, but for those that a step of the wall clock may have come
    between: the kernel stamps arrivals by it (SO_TIMESTAMPNS, socket(7))."""
    cdef u64 now = worker_clock(CLOCK_REALTIME)
    cdef u64 arrival
    cdef u32 d
    if unlikely(worker_stepped(&w.wall, now, worker_clock(CLOCK_MONOTONIC))):
        w.wall.since_ns = now
    for d in range(w.batch.n):
        arrival = w.batch.arrival_ns[d]
        if arrival >= w.wall.since_ns and arrival <= now and arrival:
            counters_latency(w.counters, now - arrival, 1)


cdef void worker_batch(worker_t *w, const rx_socket_t *socket) noexcept nogil:
    """The life of a batch: route, observe, select, send, count."""
    cdef u32 active
    w.sessions.now += 1
    w.batch.groups = 0
    w.echo.now_ns = worker_clock(CLOCK_MONOTONIC)
    w.seeing = atomic_load32(&socket.flow) and w.flow != NULL
    if unlikely(w.taps.open):
        taps_came(w)
    if unlikely(w.work.aliases != NULL):
        lanes_tick(&w.lanes, worker_clock(CLOCK_MONOTONIC))
    if unlikely(w.work.routing.pool_count):
        worker_pools_look(w)
    if w.seeing:
        flow_tick(w.flow, worker_clock(CLOCK_MONOTONIC))
        active = worker_choose(w, socket.counters, True)
    else:
        active = worker_choose(w, socket.counters, False)
    worker_offload_await(w, socket)
    worker_send(w, active)
    worker_latency(w)
    worker_clear(w, active)
    if unlikely(w.due_count):
        worker_replay_due(w)
    if unlikely(w.lanes.due_count):
        worker_lanes_due(w)
    if unlikely(w.echo.state):
        worker_echo_step(w)
    if unlikely(w.taps.open):
        taps_flush(w)


cdef inline int worker_waits_on(const rx_socket_t *socket) noexcept nogil:
    """The descriptor that says when the socket has something."""
    return socket.ring.bell_fd if socket.ring.bell != NULL else socket.fd


cdef void worker_unpoll(worker_t *w, rx_socket_t *socket) noexcept nogil:
    """Has epoll tell no more about a door that is shut, or an intake that rests: it would, for ever."""
    cdef epoll_event event
    epoll_ctl(w.epoll, EPOLL_CTL_DEL, worker_waits_on(socket), &event)


cdef inline int worker_receive(worker_t *w, rx_socket_t *socket) noexcept nogil:
    """One batch from a socket of whatever kind, sent on; returns its datagrams. The place where a kind of intake is hooked in."""
    cdef int got
    if socket.kind == RX_RING:
        got = ring_receive(socket, w.arena.capacity, w.arena.max_datagram, w.batch)
    elif socket.kind == RX_DOOR:
        got = door_receive(socket, &w.arena, w.batch)
        if unlikely(socket.shut):
            worker_unpoll(w, socket)
    else:
        got = rx_receive(socket, &w.arena, w.batch)
    if got:
        w.taken += <u32>got
        if w.offload.on:
            worker_offload_read(w)
        worker_batch(w, socket)
        if w.offload.on and socket.kind == RX_SOCKET:
            worker_offload(w, socket)
    if socket.kind == RX_RING:
        ring_release(socket)
    return got


cdef u32 worker_read(worker_t *w, rx_socket_t *socket, u32 rounds) noexcept nogil:
    """Reads up to `rounds` batches while they come full, and what is pending in the arena in any case; returns the datagrams read."""
    cdef u32 total = 0
    cdef int got
    if unlikely(socket.rests):
        return 0
    while rounds or rx_pending(&w.arena):
        got = worker_receive(w, socket)
        if got == 0:
            break
        total += <u32>got
        rounds -= 1 if rounds else 0
        if <u32>got < w.arena.capacity and not socket.ring.closed:
            break
    return total


cdef inline void worker_mark(worker_t *w, rx_socket_t *socket, u32 again) noexcept nogil:
    """The next pass looks into this ring, at once or (RING_LATER) after a millisecond."""
    socket.ring.again = again
    if w.again < again:
        w.again = again


cdef void worker_ring(worker_t *w, rx_socket_t *socket) noexcept nogil:
    """Reads a ring, and sees to it that what comes next is told. A doorbell that was rung for nothing may have come before its packet."""
    cdef bint rung = ring_rung(&socket.ring)
    cdef u32 got, again
    if unlikely(socket.rests):
        socket.ring.again = RING_NOTHING
        return
    got = worker_read(w, socket, WORKER_ROUNDS)
    again = ring_arm(socket)
    if rung and got == 0 and again == RING_NOTHING:
        again = RING_LATER
    worker_mark(w, socket, again)


cdef void worker_rings(worker_t *w, bint all) noexcept nogil:
    """Reads the rings that are marked, or all of them."""
    cdef u32 i
    cdef rx_socket_t *socket
    w.again = RING_NOTHING
    for i in range(w.work.socket_count if w.work != NULL else 0):
        socket = w.work.sockets[i]
        if socket.kind == RX_RING and (all or socket.ring.again):
            worker_ring(w, socket)


cdef void worker_mark_all(worker_t *w) noexcept nogil:
    cdef u32 i
    for i in range(w.work.socket_count if w.work != NULL else 0):
        if w.work.sockets[i].kind == RX_RING:
            worker_mark(w, w.work.sockets[i], RING_NOW)


cdef bint worker_lags(worker_t *w) noexcept nogil:
    """Whether a ring has a backlog: a block that is full."""
    cdef u32 i
    for i in range(w.work.socket_count if w.work != NULL else 0):
        if w.work.sockets[i].ring.closed:
            return True
    return False


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
            if w.work.sockets[i].rests:
                continue
            if (only == NULL or w.work.sockets[i] == only) and worker_clock(CLOCK_MONOTONIC) < deadline_ns:
                found += worker_read(w, w.work.sockets[i], 1)
                found += w.work.sockets[i].ring.waited_ns != 0


cdef void worker_take_over(worker_t *w, work_t *old, work_t *new) noexcept nogil:
    """What is remembered from the old plan (NULL: none) is brought up to the new one: exporters of pools, who is told
    templates, numbers of receivers that left."""
    cdef u32 i, k
    cdef bint stays
    cdef plan_t *before
    lanes_keep(&w.lanes, new.ways, new.routing.way_count)
    if w.pools.entries != NULL:
        before = &old.routing if old != NULL else NULL
        pool_adopt(&w.pools, &new.routing, before)
    if old == NULL or w.flow == NULL:
        return
    w.before = old if new.replay_to_count else NULL
    for i in range(new.replay_to_count):
        atomic_change32(&new.ways[new.replay_to[i]].replay, 0, TX_REPLAY_NEW)
    for i in range(old.routing.way_count):
        stays = old.owner[i] != i          # a fallback: its owner speaks for it
        for k in range(new.routing.way_count):
            stays = stays or new.ways[k].counters == old.ways[i].counters
        if not stays:
            flow_forget_receiver(w.flow, old.ways[i].counters.id)


cdef bint worker_poll(worker_t *w, rx_socket_t *socket) noexcept nogil:
    """Has epoll tell about a socket; False when it refuses (epoll_ctl(2): ENOSPC, the user's watches are used up; ENOMEM)."""
    cdef epoll_event event
    event.events = EPOLLIN
    event.data.ptr = socket
    return epoll_ctl(w.epoll, EPOLL_CTL_ADD, worker_waits_on(socket), &event) == 0


cdef void worker_look(worker_t *w) noexcept nogil:
    """Reads the sockets that epoll does not tell about, and offers them to it again."""
    cdef u32 i
    cdef u32 unpolled = 0
    for i in range(w.work.socket_count):
        if not w.work.sockets[i].polled and not w.work.sockets[i].rests:
            w.work.sockets[i].polled = worker_poll(w, w.work.sockets[i])
            unpolled += not w.work.sockets[i].polled
            worker_read(w, w.work.sockets[i], WORKER_ROUNDS)
    atomic_store32(&w.unpolled, unpolled)


cdef bint worker_rests(worker_t *w, rx_socket_t *socket) noexcept nogil:
    """Comes to rest with a socket, or begins to read it again, as the control plane asks; False: the next pass goes on with that."""
    cdef u32 wanted = atomic_load32_acquire(&socket.rest)
    if wanted == RX_READ and socket.rests == RX_READ:
        if socket.overlap == NULL or socket.part == OVERLAP_NOTES:
            return True
        worker_read(w, socket, WORKER_ROUNDS)          # epoll would not tell that nothing more is left out
        return socket.overlap == NULL
    if wanted == socket.rests:
        return True
    if wanted == RX_EMPTY:
        socket.rests = RX_READ
        if worker_read(w, socket, WORKER_ROUNDS) or socket.ring.waited_ns:
            return False
    if wanted == RX_READ:
        socket.polled = worker_poll(w, socket)
        atomic_store32(&w.unpolled, w.unpolled + (not socket.polled))
    else:
        worker_unpoll(w, socket)
    atomic_store32_release(&socket.rests, wanted)
    if socket.kind == RX_RING and wanted == RX_READ:
        worker_mark(w, socket, RING_NOW)
    return wanted != RX_READ                           # then an overlap is looked at


cdef void worker_rest(worker_t *w) noexcept nogil:
    """Looks which intakes are to rest, and which are to be read again."""
    cdef u32 i
    w.resting = False
    for i in range(w.work.socket_count if w.work != NULL else 0):
        w.resting = not worker_rests(w, w.work.sockets[i]) or w.resting


cdef void worker_adopt(worker_t *w) noexcept nogil:
    """Takes the published plan, if there is one: sockets that leave are drained under the old plan, new ones join the epoll."""
    cdef work_t *old = w.work
    cdef work_t *new
    cdef epoll_event event
    cdef u32 i
    cdef u32 unpolled = 0
    if likely(atomic_load_acquire(&w.next) == NULL):
        return
    new = <work_t *>atomic_exchange(&w.next, NULL)
    if new == NULL:
        return
    if old != NULL:
        for i in range(old.socket_count):
            if not worker_has(new, old.sockets[i]):
                if old.sockets[i].rest != RX_REST:
                    old.sockets[i].rests = RX_READ     # or it would not be read out
                if not (new.unread and old.sockets[i].kind == RX_SOCKET):
                    worker_drain(w, old.sockets[i], worker_clock(CLOCK_MONOTONIC) + WORKER_LEAVE_NS)
                # fails where ADD has failed: nothing to take back
                epoll_ctl(w.epoll, EPOLL_CTL_DEL, worker_waits_on(old.sockets[i]), &event)
    for i in range(new.socket_count):
        if not worker_has(old, new.sockets[i]):
            new.sockets[i].rests = RX_REST if atomic_load32(&new.sockets[i].rest) else RX_READ
            w.resting = w.resting or new.sockets[i].rests
            new.sockets[i].polled = not new.sockets[i].rests and worker_poll(w, new.sockets[i])
        unpolled += not new.sockets[i].polled and not new.sockets[i].rests
    atomic_store32(&w.unpolled, unpolled)
    if w.echo.state:
        worker_echo_end(w, worker_clock(CLOCK_MONOTONIC), False)
    w.echo.before = w.echo.next = 0
    if w.offload.on:
        worker_offload_adopt(w, new)
    worker_take_over(w, old, new)
    w.work = new
    worker_mark_all(w)
    session_void(&w.sessions)
    w.flow_look_ns = 0
    worker_flow(w, worker_clock(CLOCK_MONOTONIC))      # who is new has the templates before the first datagram
    atomic_store64_release(&w.generation, new.routing.generation)


cdef void worker_beat(worker_t *w, u64 now_ns) noexcept nogil:
    """Heartbeat, and at most every 10 ms the thread's CPU clock."""
    cdef worker_counters_t *c = w.counters
    atomic_store64(&c.heartbeat_ns, now_ns)
    atomic_store64(&c.sessions, w.sessions.used)
    atomic_store64(&c.session_misses, w.sessions.misses)
    atomic_store64(&c.session_evictions, w.sessions.evictions)
    atomic_store64(&c.session_sockets, w.lanes.open)
    atomic_store64(&c.stalls, w.ring.stalls)
    if now_ns - w.cpu_read_ns >= WORKER_CPU_CLOCK_NS:
        w.cpu_read_ns = now_ns
        atomic_store64(&c.cpu_ns, worker_clock(CLOCK_THREAD_CPUTIME_ID))


cdef void worker_forget_error(rx_socket_t *socket) noexcept nogil:
    """A packet socket whose device went down says so until it is asked (SO_ERROR, socket(7)); it works again when the device does."""
    cdef int error = 0
    cdef socklen_t length = sizeof(error)
    getsockopt(worker_waits_on(socket), SOL_SOCKET, SO_ERROR, &error, &length)


cdef void worker_events(worker_t *w, int n) noexcept nogil:
    """Serves the sockets that epoll named and marks the rings; a wake-up has its eventfd emptied."""
    cdef int i
    cdef u64 ignored
    cdef rx_socket_t *socket
    for i in range(n):
        socket = <rx_socket_t *>w.events[i].data.ptr
        if socket == NULL:
            read(w.wake, &ignored, sizeof(ignored))
            w.replaying = w.resting = True  # perhaps: the next pass looks
            worker_mark_all(w)             # a doorbell may have been another worker's
            continue
        if socket == <rx_socket_t *>&w.offload:
            continue                       # each pass looks there
        if unlikely(w.events[i].events & EPOLLERR):
            worker_forget_error(socket)
        if socket.kind == RX_RING:
            worker_mark(w, socket, RING_NOW)
        else:
            worker_read(w, socket, WORKER_ROUNDS)


cdef inline void worker_ports(worker_t *w, u64 now_ns) noexcept nogil:
    """Gives back the ports that listeners are to have, and those that are not used."""
    cdef u32 asked = atomic_load32_acquire(&w.ports.asked)
    if unlikely(asked != w.ports.released):
        lanes_give_back(&w.lanes)
    ports_look(&w.ports, asked, w.sessions.now, now_ns)


cdef void worker_loop(worker_t *w) noexcept nogil:
    """Until stop(): adopt, wait, read."""
    cdef u64 start, end, deadline
    cdef int n, timeout_ms
    while True:
        worker_adopt(w)
        if unlikely(taps_wanted(w)):
            if taps_changed(w):
                worker_offload_stop(w)         # a tap that is open sees all
            taps_look(w)
        if unlikely(w.resting):
            worker_rest(w)
        deadline = atomic_load64(&w.stop_deadline_ns)
        if deadline:
            worker_offload_stop(w)
            if w.work != NULL:
                worker_drain(w, NULL, deadline)
                if w.echo.state:
                    worker_echo_end(w, worker_clock(CLOCK_MONOTONIC), False)
            worker_offload_leave(w)
            worker_beat(w, worker_clock(CLOCK_MONOTONIC))
            taps_flush(w)
            return
        timeout_ms = 1 if w.replaying or w.again or w.echo.state else WORKER_UNPOLLED_MS if w.unpolled else WORKER_IDLE_MS
        if w.offload.used and timeout_ms > WORKER_OFFLOAD_MS:
            timeout_ms = WORKER_OFFLOAD_MS
        if w.again == RING_NOW or w.resting:
            timeout_ms = 0
        n = epoll_wait(w.epoll, w.events, WORKER_EVENTS, timeout_ms)
        start = worker_clock(CLOCK_MONOTONIC)
        if w.offload.on and w.work != NULL:
            worker_offload_look(w, start)
        if unlikely(w.unpolled):
            worker_look(w)
        if n > 0 and w.auto_delay:
            start = worker_gather_auto(w, start)
        elif n > 0 and w.max_delay_ns:
            start = worker_gather(&w.woken_ns, w.max_delay_ns, start)
        if n > 0:
            atomics_add(&w.counters.wakeups, 1)
            worker_events(w, n)
        if w.again == RING_NOW and w.max_delay_ns < WORKER_RING_DELAY_NS and not worker_lags(w):
            start = worker_gather(&w.ring_ns, WORKER_RING_DELAY_NS, start)
        if w.again or n == 0:
            worker_rings(w, n == 0)
        if unlikely(w.echo.state):
            worker_echo_step(w)
        worker_flow(w, start)
        worker_ports(w, start)
        if unlikely(w.taps.open):
            taps_flush(w)
        end = worker_clock(CLOCK_MONOTONIC)
        worker_beat(w, end)
        atomics_add(&w.counters.busy_ns, end - start)
