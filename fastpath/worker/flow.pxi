# needs: uapi: net; base: atomics, batch, counters, wire; flow: alias, keep, observe, renumber, replay, scan, state; route: match, plan,
#        pool, session, walk; shape: sample; rx: socket; tx: engine, lane; worker: lane, pool, send, state, tap
# The flow stage in the worker: its result for each datagram decides which copies a sampling receiver gets and with which sequence number, and
# it provides the templates that are replayed. Bytes are only changed in copies of our own (`rewritten`). The order matters: a datagram is
# observed, then selected for every receiver, before the next datagram is observed; replays run between batches. Called by worker/choose.pxi,
# worker/loop.pxi and worker/send.pxi.

cdef enum:
    FLOW_AGE_STEPS = 64                # places of the table looked at in one loop pass
    FLOW_REPLAY_STEPS = 2048           # domains looked at for replays in one loop pass
    FLOW_REPLAY_LOOK_NS = 1000000      # how often the worker asks whether a replay is wanted
    FLOW_REPLAY_AGAIN_NS = 1000000000  # from one replay of all exporters to a receiver to the next
    FLOW_DUE_LIMIT = 256               # refreshes of one batch; more wait for the next copy
    WORKER_NUMBERED = 1                # bits of work_t.numbered: another sequence number
    WORKER_NAMED = 2                   # the alias instead of the domain


cdef inline bint worker_keeps(worker_t *w, tx_t *tx, u32 d) noexcept nogil:
    """Whether a receiver with freq > 1 gets its copy of datagram d; notes what is left out, so that numbers can close up."""
    cdef const flow_seen_t *seen = &w.seen[d]
    if tx.by_exporter:
        return flow_keeps_exporter(w.batch.exporter[d].address, tx.freq)
    if w.seeing and flow_always(seen):
        return True
    if sample_keep(tx.counters, tx.freq):
        return True
    if w.seeing:
        flow_leave_out(w.flow, seen, tx.counters.id)
    return False


cdef inline void worker_refresh(worker_t *w, tx_t *tx, u32 way, u32 d) noexcept nogil:
    """Notes that templates or options data of datagram d's domain are due again at this receiver."""
    cdef u32 which
    cdef u32 what = 0
    if w.due_count == FLOW_DUE_LIMIT:
        return
    for which in range(<u32>FLOW_REPLAYS):
        if ((tx.refresh_copies[which] or tx.refresh_ms[which])
                and flow_refresh_due(w.flow, &w.seen[d], tx.counters.id, tx.refresh_copies[which], tx.refresh_ms[which], which)):
            what |= FLOW_REPLAY_TEMPLATES if which == FLOW_TEMPLATES else FLOW_REPLAY_OPTIONS
    cdef u32 i
    for i in range(w.due_count if what else 0):            # after the batch once is enough
        if w.due[i].way == way and w.due[i].number == w.seen[d].number:
            w.due[i].what |= what
            return
    if what:
        w.due[w.due_count].way = way
        w.due[w.due_count].number = w.seen[d].number
        w.due[w.due_count].what = what
        w.due_count += 1


cdef inline void worker_number(worker_t *w, tx_t *tx, u32 way, u32 n, u32 d) noexcept nogil:
    """Notes the sequence number and the domain that the n-th copy of this batch for a numbered receiver is to carry, if they differ."""
    cdef size_t place = <size_t>way * BATCH_LIMIT + n
    cdef u8 named = 0
    if unlikely(tx.alias or tx.per_session):
        named = worker_named(w, tx, d)
    w.work.numbered[place] = flow_renumber(w.flow, &w.seen[d], tx.counters.id, &w.work.numbers[place]) | named
    w.work.rewrites[way] += w.work.numbered[place] != 0
    if tx.refreshes:
        worker_refresh(w, tx, way, d)


cdef void worker_send_own(worker_t *w, tx_t *tx, batch_t *batch) noexcept nogil:
    """Sends a batch of our own making whole, by the receiver's own socket."""
    if unlikely(atomic_load32(&tx.looped)):
        atomics_add(&tx.counters.failed[REASON_LOOP], batch.n)
        if unlikely(w.taps.open):
            taps_copies(w, tx, batch, w.identity, 0, batch.n, TAP_FAILED + REASON_LOOP)
        return
    worker_send_one(w, tx, batch, w.identity, batch.n)


cdef void worker_send_rewritten(worker_t *w, tx_t *tx, u32 way, u32 n) noexcept nogil:
    """A selection some of whose copies carry another sequence number or domain than they came with: those are copied first."""
    cdef batch_t *to = w.rewritten
    cdef batch_t *received = w.batch
    cdef size_t place
    cdef u32 i, d
    cdef u8 *copy
    for i in range(n):
        place = <size_t>way * BATCH_LIMIT + i
        d = w.work.selections[place]
        to.exporter[i] = received.exporter[d]
        to.length[i] = received.length[d]
        to.group[i] = received.group[d]
        to.sum_known[i] = 0
        to.arrival_ns[i] = received.arrival_ns[d]
        to.data[i] = received.data[d]
        if w.work.numbered[place]:
            copy = w.own_bytes + <size_t>i * RX_SLOT
            memcpy(copy, received.data[d], received.length[d])
            if w.work.numbered[place] & WORKER_NUMBERED:
                flow_write_number(copy, &w.seen[d], w.work.numbers[place])
            if w.work.numbered[place] & WORKER_NAMED:
                alias_write(copy, received.length[d], w.seen[d].kind, w.alias[d])
            to.data[i] = copy
    to.n = n
    to.groups = received.groups
    to.listener = received.listener
    w.taps.origin = &w.work.selections[<size_t>way * BATCH_LIMIT]
    worker_send_own(w, tx, to)
    w.taps.origin = NULL


cdef tx_t *worker_route_has(worker_t *w, const flow_domain_t *domain, u32 way, const pool_t **through) noexcept nogil:
    """The way by which an exporter's datagrams reach the receiver of `way`: it, its other family's, or NULL = no rule sends them there.
    through: the pool that they may reach it by, NULL = none."""
    cdef plan_t *plan = &w.work.routing
    cdef walk_t walk
    cdef bint forgot
    cdef u32 route = match_route(plan, domain.exporter.address, domain.exporter.family, domain.listener, &forgot)
    through[0] = NULL
    if forgot:
        session_void(&w.sessions)
    if route < PLAN_ROUTE_FIRST:
        return NULL
    walk_begin(&walk, plan, &plan.routes[route])
    while walk_next(&walk):
        if walk.pool == NULL:
            if walk.way == way or walk.way == plan.way_other[way]:
                return w.work.ways[walk.way]
        elif walk.way == way or plan.way_other[walk.way] == way:
            through[0] = walk.pool
            return w.work.ways[worker_family(w, walk.way, domain.exporter.family)]
    return NULL


cdef void worker_replay_to(worker_t *w, tx_t *tx, u32 number, u32 what, u32 mode, u32 since) noexcept nogil:
    """Sends templates and options data of one domain to a receiver, as the exporter; every copy is offered and counted. since: see
    flow_replay_begin()."""
    cdef flow_domain_t *domain = &w.flow.domains[number]
    cdef batch_t *to = w.rewritten
    cdef flow_replay_t replay
    cdef u32 octets, overhead, payload, alias
    if tx.by_exporter and tx.freq > 1 and not flow_keeps_exporter(domain.exporter.address, tx.freq):
        return
    overhead = wire_overhead(tx.family)
    payload = atomic_load32(&tx.mtu)
    payload = payload - overhead if payload > 512 + overhead else 512
    if payload > WIRE_UDP_MAX_IPV4:
        payload = WIRE_UDP_MAX_IPV4
    if not flow_replay_begin(w.flow, &replay, number, tx.counters.id, what, mode, since, payload):
        return
    alias = worker_alias_replayed(w, tx, number) if (tx.alias or tx.per_session) and w.work.aliases != NULL else 0
    to.listener = domain.listener
    to.groups = 1
    octets = 1
    while octets:
        to.n = 0
        while to.n < BATCH_LIMIT:
            octets = flow_replay_next(w.flow, &replay, w.own_bytes + <size_t>to.n * RX_SLOT)
            if octets == 0:
                break
            if alias:
                alias_write(w.own_bytes + <size_t>to.n * RX_SLOT, octets, domain.kind, alias)
            to.exporter[to.n] = domain.exporter
            to.data[to.n] = w.own_bytes + <size_t>to.n * RX_SLOT
            to.length[to.n] = octets
            to.group[to.n] = 0
            to.sum_known[to.n] = 0
            to.arrival_ns[to.n] = 0
            to.n += 1
        if to.n:
            atomics_add(&tx.counters.offered, to.n)
            worker_send_own(w, tx, to)


cdef void worker_replay_domain(worker_t *w, u32 way, u32 number, u32 what, u32 mode) noexcept nogil:
    """The same, if a rule sends the domain's exporter there. A member of a pool that others serve now has its numbers stand still."""
    cdef flow_domain_t *domain = &w.flow.domains[number]
    cdef const pool_t *through
    cdef pool_entry_t *entry
    cdef bint hit
    cdef tx_t *tx = worker_route_has(w, domain, way, &through)
    if tx == NULL:
        return
    if through != NULL and not through.turns:
        entry = pool_find(&w.pools, through.number, domain.exporter.address, domain.domain, &hit)
        if not (hit and entry.now == tx.counters.id) and not flow_pause(w.flow, number, tx.counters.id, flow_next(domain)):
            return
    worker_replay_to(w, tx, number, what, mode, 0)


cdef void worker_replay_due(worker_t *w) noexcept nogil:
    """The refreshes that this batch's copies made due."""
    cdef u32 i
    for i in range(w.due_count):
        worker_replay_domain(w, w.due[i].way, w.due[i].number, w.due[i].what, FLOW_REPLAY_REFRESH)
    w.due_count = 0


cdef void worker_woken(worker_t *w, u32 way) noexcept nogil:
    """A standby that was woken has the templates now, or there are none: the next batch is its."""
    cdef u32 other = w.work.routing.way_other[way]
    atomic_change32(&w.work.ways[way].waiting, TX_WAKING, 0)
    if other != PLAN_NONE:
        atomic_change32(&w.work.ways[other].waiting, TX_WAKING, 0)


cdef bint worker_had(worker_t *w, const flow_domain_t *domain, const tx_t *tx) noexcept nogil:
    """Whether the plan before sent the exporter to this receiver, perhaps through a pool."""
    cdef plan_t *plan = &w.before.routing
    cdef walk_t walk
    cdef bint forgot
    cdef u32 route = match_route(plan, domain.exporter.address, domain.exporter.family, domain.listener, &forgot)
    if route < PLAN_ROUTE_FIRST:
        return False
    walk_begin(&walk, plan, &plan.routes[route])
    while walk_next(&walk):
        if walk.pool == NULL:
            if w.before.ways[walk.way].counters == tx.counters:
                return True
        elif tx.counters.id and walk.receiver == tx.counters.id:
            return True
    return False


cdef void worker_replay_joined(worker_t *w, u32 way, tx_t *tx, u32 *steps) noexcept nogil:
    """Templates of all exporters whose rules name this receiver, or of those new to it, as far as the steps go; none for a standby that
    waits."""
    cdef bint new = atomic_load32(&tx.replay) == TX_REPLAY_NEW
    cdef u32 number = 1
    if atomic_load32(&tx.waiting) == TX_WAITING:
        tx.replay_cursor = 0
        atomic_store32(&tx.replay, 0)
        return
    while number:
        number = flow_replay_domain(w.flow, &tx.replay_cursor, steps)
        if number and not (new and (w.before == NULL or worker_had(w, &w.flow.domains[number], tx))):
            worker_replay_domain(w, way, number, FLOW_REPLAY_ALL, FLOW_REPLAY_JOIN)
    if tx.replay_cursor > w.flow.domain_limit:
        tx.replay_cursor = 0
        if not new:
            atomics_add(&tx.counters.replays, 1)
        atomic_store32(&tx.replay, 0)
        worker_woken(w, way)


cdef bint worker_replays_early(worker_t *w, tx_t *tx, u64 now_ns) noexcept nogil:
    """Whether a replay of all exporters would begin too soon after the one before: a receiver that comes and goes gets one a second. One that
    gets no copies until it is done, or that no exporter's templates wait for, does not wait."""
    if w.flow == NULL or tx.replay_cursor or atomic_load32(&tx.replay) != TX_REPLAY_ALL or atomic_load32(&tx.waiting):
        return False
    if tx.replayed_ns and now_ns - tx.replayed_ns < FLOW_REPLAY_AGAIN_NS:
        return True
    tx.replayed_ns = now_ns
    return False


cdef void worker_flow(worker_t *w, u64 now_ns) noexcept nogil:
    """Between batches: replays that the control plane asked for, and the slow hands that let things expire."""
    cdef u32 way
    cdef u32 steps = FLOW_REPLAY_STEPS
    cdef tx_t *tx
    if w.work == NULL or now_ns - w.flow_look_ns < FLOW_REPLAY_LOOK_NS:
        return
    w.flow_look_ns = now_ns
    lanes_tick(&w.lanes, now_ns)
    w.replaying = False
    if w.flow != NULL:
        flow_tick(w.flow, now_ns)
    for way in range(w.work.routing.way_count):
        tx = w.work.ways[way]
        if not atomic_load32(&tx.replay):
            continue
        if worker_replays_early(w, tx, now_ns):
            w.replaying = True
            continue
        if w.flow == NULL:
            atomic_store32(&tx.replay, 0)
            worker_woken(w, way)
        else:
            worker_replay_joined(w, way, tx, &steps)
            w.replaying = w.replaying or atomic_load32(&tx.replay)
    if not w.replaying:
        atomic_exchange(<void **>&w.before, NULL)
    if w.flow != NULL:
        flow_age(w.flow, FLOW_AGE_STEPS)
    if w.pools.entries != NULL:
        pool_expire(&w.pools, &w.work.routing, POOL_EXPIRE_STEPS)
