# needs: uapi: copies, net, offload; base: atomics, batch, counters, wire; flow: observe, scan; route: echo, plan, session; rx: recvmmsg,
#        socket; tx: copier, engine, packet; worker: echo, express, offload, state, work
# Which sessions the kernel copies (worker/offload.pxi, bpf/offload.bpf.c), and what becomes of their datagrams here: the flow stage and the
# search for echoes see them, the counters have them, nothing is sent. A session is offloaded only while every receiver of its route takes
# its datagrams as they are, as frames. Called by worker/loop.pxi. It must never send.

cdef enum:
    WORKER_OFFLOAD_MS = 10             # how long what the kernel copied waits to be seen, at most


cdef inline bint worker_is_plain(const tx_t *tx, u8 family) noexcept nogil:
    """Whether a receiver's copies are the exporter's datagrams under other headers, and leave as frames."""
    if tx.engine < TX_ENGINE_TRANSPARENT or tx.family != family or not tx.checksum or tx.freq > 1 or tx.pause_us:
        return False
    if tx.alias or tx.per_session or tx.numbered or tx.refreshes or tx.gave_up & (TX_GAVE_UP_PACKET | TX_GAVE_UP_COPIER):
        return False
    if (atomic_load32(&tx.waiting) or atomic_load32(&tx.looped) or atomic_load32(&tx.unresolved) or atomic_load32(&tx.down)
            or atomic_load32(&tx.refusing)):
        return False
    return True


cdef bint worker_offload_use(worker_t *w, u32 use, u32 route, rx_socket_t *socket, u8 family, u64 now_ns) noexcept nogil:
    """Makes a free set that of a route; False: some receiver wants more than a copy."""
    cdef offload_t *o = &w.offload
    cdef offload_use_t *u = &o.uses[use]
    cdef offload_set_t *made = &o.sets[use]
    cdef const route_t *r = &w.work.routing.routes[route]
    cdef copies_receiver_t *to = &o.receivers[use * OFFLOAD_RECEIVERS]
    cdef u32 limit = w.arena.max_datagram + wire_overhead(family)
    cdef u32 k, way
    cdef u32 cuts = 0
    cdef tx_t *tx
    if not 0 < r.count <= OFFLOAD_RECEIVERS:
        return False
    for k in range(r.count):
        way = w.work.routing.route_table[r.first + k]
        if way >= w.work.routing.way_count:
            return False               # a pool
        tx = w.work.ways[way]
        u.ways[k] = way
        u.receivers[k] = tx.counters
        u.versions[k] = atomic_load32_acquire(&tx.link_version)
        u.mtus[k] = atomic_load32(&tx.mtu)
        if not worker_is_plain(tx, family) or not packet_link(tx) or tx.link_now.header_bytes != 14:
            return False
        cuts |= tx.link_now.cuts
        limit = tx.link_now.mtu if tx.link_now.mtu < limit else limit
        limit = u.mtus[k] if u.mtus[k] < limit else limit
        copier_address(tx, &to[k])
    made.room = 0
    u.express = o.broadcasts != NULL and now_ns >= o.slow_ns and offload_broadcast(o, use, to, r.count)
    if cuts and not u.express:         # what GRO put together would be cut up, see tx/copier.pxi; XDP has one datagram at a time
        return False
    o.made += 1
    o.used += 1
    u.made = o.made
    u.first = u.taken.taken
    u.due = 0
    u.even_ns = now_ns
    for k in range(r.count):
        u.before[k] = offload_told(u, k)
    u.state = OFFLOAD_USED
    u.failed = u.settled = False
    u.route = route
    u.family = family
    u.count = r.count
    u.socket = socket
    u.counters = socket.counters
    u.active_ns = now_ns
    made.made = o.made
    made.count = r.count
    made.limit = limit
    made.ring = o.number
    atomic_store32_release(&made.on, 1)
    return True


cdef void worker_offload_sent(worker_t *w, offload_use_t *u, u32 k, const copies_counters_t *now) noexcept nogil:
    """What the kernel has done for one receiver of a set goes into its counters."""
    cdef u64 octets = offload_more(&now.sent_bytes, &u.copied[k].sent_bytes)
    cdef u64 sent = offload_more(&now.sent, &u.copied[k].sent)
    cdef u64 no_buffer = offload_more(&now.no_buffer, &u.copied[k].no_buffer)
    cdef u64 other = offload_more(&now.other, &u.copied[k].other)
    u.failed = u.failed or no_buffer + other
    if u.receivers[k] == NULL or not sent + no_buffer + other:
        return
    atomics_add(&u.receivers[k].offered, sent + no_buffer + other)
    atomics_add(&u.receivers[k].failed[REASON_NO_BUFFER_SPACE], no_buffer)
    atomics_add(&u.receivers[k].failed[REASON_OTHER], other)
    if u.state == OFFLOAD_USED:
        tx_settle(w.work.ways[u.ways[k]], sent, octets)
    else:
        atomics_add(&u.receivers[k].sent, sent)
        atomics_add(&u.receivers[k].sent_bytes, octets)


cdef void worker_offload_count(worker_t *w, u32 use, u64 now_ns) noexcept nogil:
    """What the kernel has done for a set goes into the counters: once more than it has taken anything, since it counts copies later."""
    cdef offload_t *o = &w.offload
    cdef offload_use_t *u = &o.uses[use]
    cdef rx_counters_t *c = u.counters
    cdef u64 taken = offload_more(&o.sets[use].taken, &u.taken.taken)
    cdef u64 octets, unseen
    cdef u32 k
    if taken == 0 and u.settled:
        return
    octets = offload_more(&o.sets[use].taken_bytes, &u.taken.taken_bytes)
    unseen = offload_more(&o.sets[use].unseen, &u.taken.unseen)
    u.settled = taken == 0 and now_ns - u.active_ns > OFFLOAD_COUNT_NS
    u.active_ns = now_ns if taken else u.active_ns
    if c != NULL:
        atomics_add(&c.datagrams, taken)
        atomics_add(&c.bytes, octets)
        atomics_add(&c.matched, taken)
        atomics_add(&c.offloaded, taken)
        atomics_add(&c.unseen, unseen)
    for k in range(u.count):
        worker_offload_sent(w, u, k, &o.counters[use * OFFLOAD_RECEIVERS + k])
    if u.express:
        worker_offload_judge(w, u, now_ns)


cdef void worker_offload_end(worker_t *w, u32 use, u64 now_ns) noexcept nogil:
    """A set that has left is free; all of it is counted by then."""
    cdef offload_use_t *u = &w.offload.uses[use]
    u.settled = False
    worker_offload_count(w, use, now_ns)
    worker_offload_missed(w, u)
    u.state = OFFLOAD_FREE
    u.socket = NULL
    u.counters = NULL
    w.offload.used -= 1


cdef u32 worker_offload_free(worker_t *w, u64 now_ns) noexcept nogil:
    """A free set: if there is none, those that have left are waited for, once a second at most."""
    cdef offload_t *o = &w.offload
    cdef u32 use = offload_free(o)
    if use != <u32>OFFLOAD_NONE or now_ns - o.waited_ns < OFFLOAD_PAUSE_NS:
        return use
    o.waited_ns = now_ns
    offload_wait(o, now_ns)
    for use in range(OFFLOAD_SETS):
        if o.uses[use].state == OFFLOAD_LEAVING:
            worker_offload_end(w, use, now_ns)
    return offload_free(o)


cdef u32 worker_offload_set(worker_t *w, u32 route, rx_socket_t *socket, u8 family, u64 now_ns) noexcept nogil:
    """The set of a route; OFFLOAD_NONE: it has none, and can have none now."""
    cdef offload_t *o = &w.offload
    cdef offload_use_t *u
    cdef u32 use
    for use in range(OFFLOAD_SETS):
        u = &o.uses[use]
        if u.state == OFFLOAD_FREE or u.route != route or u.socket != socket or u.family != family:
            continue
        if u.state == OFFLOAD_USED:
            return use
        if u.failed and now_ns - u.left_ns < OFFLOAD_PAUSE_NS:
            return <u32>OFFLOAD_NONE
    use = worker_offload_free(w, now_ns)
    if use == <u32>OFFLOAD_NONE or not worker_offload_use(w, use, route, socket, family, now_ns):
        return <u32>OFFLOAD_NONE
    return use


cdef inline bint worker_offload_stays(const worker_t *w, const offload_use_t *u) noexcept nogil:
    """Whether all receivers of a set are as they were."""
    cdef u32 k
    cdef tx_t *tx
    for k in range(u.count):
        tx = w.work.ways[u.ways[k]]
        if atomic_load32_acquire(&tx.link_version) != u.versions[k] or atomic_load32(&tx.mtu) != u.mtus[k] or not worker_is_plain(tx, u.family):
            return False
    return True


cdef void worker_offload_consider(worker_t *w, rx_socket_t *socket, u32 d, u64 now_ns) noexcept nogil:
    """Datagram d is the last of its session in a batch that has been sent: perhaps the kernel can go on from here."""
    cdef offload_t *o = &w.offload
    cdef const exporter_t *exporter = &w.batch.exporter[d]
    cdef offload_known_t *known = offload_find(o, exporter, <u16>w.batch.listener, now_ns)
    cdef session_t *session
    cdef bint hit
    cdef u32 use
    cdef u64 passed = 0
    if known == NULL:
        return
    known.seen_ns = now_ns
    if not offload_earns(o, known, now_ns):
        return
    if known.on_ns and offload_is_on(o, known):        # by another place than the one that it is on for
        offload_turn_off(o, known, now_ns)
        known.earned = 0
        return
    if known.on_ns:
        passed = offload_passed(o, known, w.batch.arrival_ns[d])
        if passed == 0:
            return
    session = session_find(&w.sessions, exporter.address, exporter.port_be, <u16>w.batch.listener, &hit)
    if not hit or session.route < <u32>PLAN_ROUTE_FIRST or worker_is_receiver(w, exporter):
        known.earned = 0
        return
    use = worker_offload_set(w, session.route, socket, exporter.family, now_ns)
    if use == <u32>OFFLOAD_NONE:
        known.earned = 0
    elif passed:
        offload_turn_on(o, known, use, passed, now_ns)
    else:
        offload_enter(o, known, now_ns)


cdef void worker_offload(worker_t *w, rx_socket_t *socket) noexcept nogil:
    """A batch of a socket has been sent. Not if a run that came as one packet is only begun: all of it has one time of arrival."""
    cdef offload_t *o = &w.offload
    cdef u64 now_ns = worker_clock(CLOCK_MONOTONIC)
    cdef u32 d = w.batch.n
    if not socket.offloads or rx_pending(&w.arena) or w.taps.open or w.echo.state or w.sessions.split == w.sessions.now:
        return
    memset(o.met, 0, w.batch.groups)
    while d:
        d -= 1
        if o.met[w.batch.group[d]]:
            continue
        o.met[w.batch.group[d]] = 1
        if w.batch.arrival_ns[d]:
            worker_offload_consider(w, socket, d, now_ns)


cdef void worker_offload_observe(worker_t *w, const offload_record_t *record, u32 length, u64 now_ns, u64 real_ns) noexcept nogil:
    """Shows the datagrams of a record to the flow stage and to the search for echoes."""
    cdef offload_t *o = &w.offload
    cdef const u8 *p = <const u8 *>record + sizeof(offload_record_t)
    cdef u32 use = record.set - o.number * OFFLOAD_SETS
    cdef u32 place = record.session - o.number * OFFLOAD_SESSIONS
    cdef offload_known_t *known
    cdef exporter_t exporter
    cdef flow_seen_t seen
    cdef u32 left = record.length
    cdef u32 n
    cdef u64 age
    cdef bint observed
    if length < sizeof(offload_record_t) + left or use >= OFFLOAD_SETS or place >= OFFLOAD_SESSIONS:
        return
    known = &o.known[place]
    known.seen_ns = now_ns
    memset(&exporter, 0, sizeof(exporter))
    memcpy(exporter.address, record.address, 16)
    exporter.port_be = record.port
    exporter.family = 6 if record.six else 4
    exporter.ttl = record.ttl
    exporter.tos = record.tos
    observed = w.flow != NULL and o.uses[use].socket != NULL and atomic_load32(&o.uses[use].socket.flow)
    age = real_ns - record.arrival_ns
    w.echo.now_ns = now_ns - (age if age < OFFLOAD_OLD_NS else 0)
    while True:
        n = record.segment if record.segment and record.segment < left else left
        if observed:
            flow_observe(w.flow, &exporter, record.listener, True, p, n, &seen)
        if unlikely(echo_returns(&w.echo, p, n, &exporter)) and echo_hurries(&w.echo, p, n, &exporter):
            offload_turn_off(o, known, now_ns)
            known.need = OFFLOAD_EARN_MOST
            known.earned = 1
        p += n
        left -= n
        if left == 0:
            break


cdef void worker_offload_read(worker_t *w) noexcept nogil:
    """Sees what the kernel has copied so far. Whoever has read a socket calls this before it goes on: what the socket had came later."""
    cdef offload_t *o = &w.offload
    cdef u64 now_ns = worker_clock(CLOCK_MONOTONIC)
    cdef u64 real_ns = worker_clock(CLOCK_REALTIME)
    cdef u64 position = o.consumer[0]
    cdef u64 end = atomic_load64_acquire(o.producer)
    cdef u32 length
    cdef const offload_record_t *record
    if position == end:
        return
    if w.flow != NULL:
        flow_tick(w.flow, now_ns)
    while True:
        record = offload_next(o, &position, end, &length)
        if record == NULL:
            break
        worker_offload_observe(w, record, length, now_ns, real_ns)
        atomic_store64_release(o.consumer, position)
    atomic_store64_release(o.consumer, position)


cdef void worker_offload_look(worker_t *w, u64 now_ns) noexcept nogil:
    """Once a pass: stops the sets whose receivers have changed, counts, sees what was copied, and frees what was stopped long ago."""
    cdef offload_t *o = &w.offload
    cdef offload_use_t *u
    cdef u32 use
    cdef u32 asked = atomic_load32(&o.asked)
    cdef bint rests = asked != o.heard or w.taps.open
    o.heard = asked
    for use in range(OFFLOAD_SETS if o.used else 0):
        u = &o.uses[use]
        if u.state == OFFLOAD_FREE:
            continue
        u.failed = u.failed or (u.state == OFFLOAD_USED and not atomic_load32(&o.sets[use].on))
        worker_offload_count(w, use, now_ns)
        if u.state == OFFLOAD_USED and (rests or u.failed or now_ns - u.active_ns > OFFLOAD_UNUSED_NS or not worker_offload_stays(w, u)):
            worker_express_failed(o, u, now_ns)
            offload_stop(o, use, now_ns)
        if u.state == OFFLOAD_LEAVING and now_ns - u.left_ns > OFFLOAD_IDLE_NS:
            worker_offload_end(w, use, now_ns)
    offload_look(o, now_ns)
    worker_express_review(w, now_ns)
    worker_offload_read(w)


cdef void worker_offload_stop(worker_t *w) noexcept nogil:
    """Nothing of this worker's is copied any more, and all that was has left."""
    cdef u64 now_ns = worker_clock(CLOCK_MONOTONIC)
    if not w.offload.on:
        return
    offload_stop_all(&w.offload, now_ns)
    if w.offload.used:
        offload_wait(&w.offload, now_ns)


cdef void worker_offload_leave(worker_t *w) noexcept nogil:
    """The worker ends: counts for the last time."""
    if w.offload.on and w.work != NULL:
        worker_offload_look(w, worker_clock(CLOCK_MONOTONIC))
        worker_offload_missed_all(w)
        offload_leave_all(&w.offload)


cdef void worker_offload_adopt(worker_t *w, work_t *new) noexcept nogil:
    """Before another plan runs: its routes are others. What the kernel still counts for the sets goes to whom the new plan knows, too."""
    cdef offload_t *o = &w.offload
    cdef offload_use_t *u
    cdef u32 use, i, k
    cdef bint stays
    worker_offload_stop(w)
    worker_offload_read(w)
    for use in range(OFFLOAD_SETS if o.used else 0):
        u = &o.uses[use]
        if u.state == OFFLOAD_FREE:
            continue
        worker_offload_count(w, use, worker_clock(CLOCK_MONOTONIC))
        worker_offload_missed(w, u)
        stays = False
        for i in range(new.socket_count):
            if u.socket != NULL and new.sockets[i] == u.socket:
                stays = True
        if not stays:
            u.socket = NULL
            u.counters = NULL
        for k in range(u.count):
            stays = False
            for i in range(new.routing.way_count):
                stays = stays or new.ways[i].counters == u.receivers[k]
            if not stays:
                u.receivers[k] = NULL
