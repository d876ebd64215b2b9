# needs: uapi: copies, net, offload; base: atomics, counters; rx: socket; worker: offload, state
# Sessions that XDP copies (bpf/express.bpf.c). What differs from those that tcx copies: a frame is broadcast and leaves a little later, so
# whoever sends what came behind it waits for that; and a copy can vanish, so what the kernel has taken is compared with what became of it.
# Called by worker/ingress.pxi and worker/loop.pxi. It must never send.

cdef enum:
    EXPRESS_WAITS = 10                 # a second, for sessions that XDP has lost; more: it gets none for a while

cdef u64 EXPRESS_DUE_NS = 20000000     # longer no copy that was broadcast is under way
cdef u64 EXPRESS_SECOND_NS = 1000000000


cdef inline u64 offload_told(const offload_use_t *u, u32 k) noexcept nogil:
    """Copies for one receiver of a set of which is known what became."""
    return u.copied[k].sent + u.copied[k].no_buffer + u.copied[k].other


cdef inline bint offload_left(const offload_t *o, const offload_known_t *known) noexcept nogil:
    """Whether nothing is under way of all that was broadcast for the session's set: what was taken until now has become something."""
    cdef const offload_use_t *u = &o.uses[known.use]
    cdef u64 taken = atomic_load64_acquire(&o.sets[known.use].taken)
    cdef const copies_counters_t *now
    cdef u32 k
    if u.made != known.made:
        return True                    # it was made anew since
    for k in range(u.count):
        now = &o.counters[known.use * OFFLOAD_RECEIVERS + k]
        if atomic_load64(&now.sent) + atomic_load64(&now.no_buffer) + atomic_load64(&now.other) - u.before[k] != taken - u.first:
            return False
    atomic_fence()
    return atomic_load64(&o.sets[known.use].taken) == taken


cdef inline u32 offload_room(const offload_t *o, u32 device) noexcept nogil:
    """How many copies XDP can send by the interface in one poll; with OFFLOAD_SLOW."""
    cdef u64 output
    cdef u32 i
    for i in range(<u32>OFFLOAD_OUT):
        output = atomic_load64(&o.outputs[i])
        if <u32>output == device:
            return <u32>(output >> 32)
    return 0


cdef bint offload_broadcast(offload_t *o, u32 use, const copies_receiver_t *to, u32 count) noexcept nogil:
    """Fills the set's device map; False: XDP cannot send by all of these interfaces."""
    cdef u32 value[2]
    cdef u32 k
    cdef u32 room = ~OFFLOAD_SLOW
    cdef u32 slow = 0
    cdef u32 one
    for k in range(count):
        one = offload_room(o, to[k].device)
        slow |= one & OFFLOAD_SLOW
        room = min(room, one & ~OFFLOAD_SLOW)
    if room < count:
        return False
    while o.uses[use].entries:
        o.uses[use].entries -= 1
        bpf_map_set(o.broadcasts[use], &o.uses[use].entries, NULL, 0)
    for k in range(count):
        value[0] = to[k].device
        value[1] = <u32>o.copy
        if bpf_map_set(o.broadcasts[use], &k, value, 0) < 0:
            return False
        o.uses[use].entries = k + 1
    o.sets[use].room = room
    o.sets[use].slow = slow
    return True


cdef void worker_offload_missed(worker_t *w, offload_use_t *u) noexcept nogil:
    """Nothing of a set is under way any more: copies that the kernel does not know of, though it has taken the datagrams, have failed."""
    cdef u64 taken = u.taken.taken - u.first
    cdef u64 told
    cdef u32 k
    for k in range(u.count if u.express else 0):
        told = offload_told(u, k) - u.before[k]
        if told < taken:
            u.failed = True
            u.before[k] -= taken - told
            if u.receivers[k] != NULL:
                atomics_add(&u.receivers[k].offered, taken - told)
                atomics_add(&u.receivers[k].failed[REASON_NO_BUFFER_SPACE], taken - told)


cdef void worker_offload_missed_all(worker_t *w) noexcept nogil:
    cdef u32 use
    for use in range(OFFLOAD_SETS):
        if w.offload.uses[use].state != OFFLOAD_FREE:
            worker_offload_missed(w, &w.offload.uses[use])


cdef void worker_offload_judge(worker_t *w, offload_use_t *u, u64 now_ns) noexcept nogil:
    """A set has failed when copies are missing of what was taken a while ago, or when it never comes out even."""
    cdef u64 taken = u.taken.taken - u.first
    cdef bint even = True
    cdef u64 told
    cdef u32 k
    if u.settled:
        worker_offload_missed(w, u)
        u.even_ns = now_ns
        return
    for k in range(u.count):
        told = offload_told(u, k) - u.before[k]
        even = even and told >= taken
        if now_ns - u.due_ns > EXPRESS_DUE_NS and told < u.due:
            u.failed = True
    if now_ns - u.due_ns > EXPRESS_DUE_NS:
        u.due = taken
        u.due_ns = now_ns
    if even:
        u.even_ns = now_ns
    elif now_ns - u.even_ns > OFFLOAD_REVIEW_NS:
        u.failed = True


cdef void worker_express_failed(offload_t *o, const offload_use_t *u, u64 now_ns) noexcept nogil:
    """Before a set is stopped: if its copies by XDP failed, XDP gets no session for a while, and longer each time."""
    if not u.express or not u.failed:
        return
    if now_ns - o.slow_ns > OFFLOAD_REVIEW_NS:
        o.pause_ns = 0
    o.pause_ns = min(max(2 * o.pause_ns, EXPRESS_SECOND_NS), OFFLOAD_REVIEW_NS)
    o.slow_ns = now_ns + o.pause_ns


cdef void worker_express_review(worker_t *w, u64 now_ns) noexcept nogil:
    """As offload_look(), of sessions that XDP has: all at once, so that one wait does for them."""
    cdef offload_t *o = &w.offload
    cdef offload_known_t *known
    cdef bint found = False
    cdef u32 place
    if o.expresses == 0 or now_ns - o.reviewed_ns < EXPRESS_SECOND_NS:
        return
    o.reviewed_ns = now_ns
    for place in range(OFFLOAD_SESSIONS):
        known = &o.known[place]
        if known.express and known.on_ns and now_ns - known.on_ns > OFFLOAD_REVIEW_NS and offload_is_on(o, known):
            offload_turn_off(o, known, now_ns)
            known.earned = known.need - 1
            found = True
    if found:
        offload_wait(o, now_ns)


cdef bint worker_express_under_way(worker_t *w, offload_known_t *known, u64 now_ns) noexcept nogil:
    """Whether XDP may have broadcast frames of a session that have not left, and has it no more: a datagram of it has come to a socket."""
    cdef offload_t *o = &w.offload
    cdef const offload_use_t *u = &o.uses[known.use]
    if offload_is_on(o, known):
        if atomic_load32(&o.sets[known.use].on) and u.made == known.made:
            offload_turn_off(o, known, now_ns)         # by another place, or the program is not there any more
    elif known.off_ns < known.on_ns:                   # a program did
        known.off_ns = now_ns
        if now_ns - known.on_ns < OFFLOAD_SHORT_NS:
            known.slow_ns = now_ns + OFFLOAD_REVIEW_NS
    if u.made != known.made or (u.state == OFFLOAD_LEAVING and u.left_ns <= o.grace_ns):
        return False
    return not (known.off_ns > known.on_ns and known.off_ns <= o.grace_ns) and not offload_left(o, known)


cdef bint worker_express_met(worker_t *w, u64 now_ns) noexcept nogil:
    """Whether the batch has such a session; none of it is one then, when they have left."""
    cdef offload_t *o = &w.offload
    cdef offload_known_t *known
    cdef bint found = False
    cdef u32 d = w.batch.n
    memset(o.met, 0, w.batch.groups)
    while d:
        d -= 1
        if o.met[w.batch.group[d]]:
            continue
        o.met[w.batch.group[d]] = 1
        known = offload_known(o, &w.batch.exporter[d], <u16>w.batch.listener)
        if known == NULL or not known.express:
            continue
        found = worker_express_under_way(w, known, now_ns) or found
        offload_unexpress(o, known)
    return found


cdef void worker_express_wait(worker_t *w, u64 now_ns) noexcept nogil:
    """Until what XDP has broadcast has left. Whoever provokes that too often gets it taken from all."""
    cdef offload_t *o = &w.offload
    if now_ns - o.counted_ns > EXPRESS_SECOND_NS:
        o.counted_ns = now_ns
        o.waits = 0
    o.waits += 1
    if o.waits > EXPRESS_WAITS and now_ns >= o.slow_ns:
        o.slow_ns = now_ns + OFFLOAD_REVIEW_NS
        offload_stop_all(o, now_ns)
    offload_wait(o, now_ns)


cdef inline void worker_offload_await(worker_t *w, const rx_socket_t *socket) noexcept nogil:
    """Before a batch is sent: what XDP has broadcast of its sessions leaves before it."""
    cdef u64 now_ns
    if likely(w.offload.expresses == 0) or socket.kind != RX_SOCKET:
        return
    now_ns = worker_clock(CLOCK_MONOTONIC)
    if worker_express_met(w, now_ns):
        worker_express_wait(w, now_ns)
