# needs: uapi: net; base: atomics, batch; flow: alias, items, renumber, replay, scan, state, template; route: plan, walk; shape: run; tx:
#        engine, lane, udp; worker: flow, pool, send, state, work
# Keeps exporters apart at a receiver that only sees the address of this host: aliases of their domains (alias = the receiver has domain =
# "unique") and lanes (a source port per session). When an alias or a lane changes, the collector has no templates under the new name, so they
# are replayed there first. Called by worker/choose.pxi once per datagram, by worker/send.pxi and worker/flow.pxi.


cdef void worker_alias(worker_t *w, u32 d) noexcept nogil:
    """The alias of datagram d's domain, asked for once a second: 0 = it has no domain. w.moved: it had another one before."""
    cdef const flow_seen_t *s = &w.seen[d]
    cdef u32 at = alias_domain_at(s.kind, w.batch.data[d], w.batch.length[d])
    cdef u32 alias
    cdef flow_domain_t *domain
    w.alias[d] = 0
    w.moved = False
    if at == 0:
        return
    if s.number == 0:
        w.alias[d] = alias_take(w.work.aliases, &w.batch.exporter[d], s.kind, flow_u32(w.batch.data[d] + at), False, 0, w.lanes.now_s)
        return
    domain = &w.flow.domains[s.number]
    if domain.alias == 0 or domain.alias_s != w.lanes.now_s:
        alias = alias_take(w.work.aliases, &w.batch.exporter[d], s.kind, <u32>s.domain, not s.flags & FLOW_UNKNOWN,
                           alias_born(s.kind, s.uptime_ms, w.lanes.now_s), w.lanes.now_s)
        w.moved = domain.alias != 0 and domain.alias != alias
        domain.alias = alias
        domain.alias_s = w.lanes.now_s
    w.alias[d] = domain.alias


cdef void worker_lane_taught(worker_t *w, lane_t *lane, const flow_seen_t *s) noexcept nogil:
    """A socket was opened: it is told the templates of all domains of its session that come by this batch's listener. s: of the datagram at
    hand, which is the first to leave by it; NULL: the batch is sent."""
    cdef u32 number
    if w.flow == NULL:
        return
    number = flow_replay_exporter(w.flow, lane.address, lane.port_be)
    while number:
        if w.flow.domains[number].listener != w.batch.listener:
            pass                           # perhaps another rule's
        elif s == NULL or s.number != number:
            worker_replay_to(w, lane.tx, number, FLOW_REPLAY_ALL, FLOW_REPLAY_JOIN, 0)
        elif flow_met(&w.flow.domains[number]) and flow_pause(w.flow, number, lane.tx.counters.id, s.position):
            worker_replay_to(w, lane.tx, number, FLOW_REPLAY_ALL, FLOW_REPLAY_REFRESH, 0)
        number = w.flow.domains[number].next


cdef bint worker_lane(worker_t *w, tx_t *tx, u32 d) noexcept nogil:
    """Whether datagram d of a batch that the flow stage sees leaves by a socket of its session's own. One that is earned is opened after the
    batch, so that its copies do not overtake each other."""
    cdef bint found
    cdef lane_t *lane = lane_find(&w.lanes, tx, &w.batch.exporter[d], w.sessions.now, &found)
    if lane == NULL:
        return False
    if not found:
        lane_begin(&w.lanes, lane, tx, &w.batch.exporter[d], w.sessions.now)
        if lane.state == LANE_OPEN:
            worker_lane_taught(w, lane, &w.seen[d])
    lane.used += lane.used != 0xFFFFFFFFU
    if lane.state != LANE_OPEN and lane_earned(&w.lanes, lane) and w.lanes.due_count < LANE_DUE:
        if w.lanes.due_count == 0 or w.lanes.due[w.lanes.due_count - 1] != lane:
            w.lanes.due[w.lanes.due_count] = lane
            w.lanes.due_count += 1
    return lane.state == LANE_OPEN


cdef void worker_lanes_due(worker_t *w) noexcept nogil:
    """After a batch: the sockets that were earned in it."""
    cdef u32 i
    for i in range(w.lanes.due_count):
        if lane_earned(&w.lanes, w.lanes.due[i]) and lane_open(&w.lanes, w.lanes.due[i]):
            worker_lane_taught(w, w.lanes.due[i], NULL)
    w.lanes.due_count = 0


cdef u32 worker_alias_replayed(worker_t *w, tx_t *tx, u32 number) noexcept nogil:
    """The alias under which templates of a domain are replayed to the receiver, 0 = under its own name. A session without a lane gets one if
    there is credit."""
    cdef flow_domain_t *domain = &w.flow.domains[number]
    cdef lane_t *lane
    cdef bint found
    if not tx.alias:
        lane = lane_find(&w.lanes, tx, &domain.exporter, w.sessions.now, &found)
        if lane != NULL and not found:
            lane_begin(&w.lanes, lane, tx, &domain.exporter, w.sessions.now)
        if lane != NULL and lane.state == LANE_OPEN:
            return 0
    return alias_take(w.work.aliases, &domain.exporter, domain.kind, <u32>domain.domain, False, 0, w.lanes.now_s)


cdef void worker_send_lanes(worker_t *w, tx_t *tx, const batch_t *batch, const u16 *selection, u32 n) noexcept nogil:
    """A selection by the sockets of its exporters' sessions, the rest by the receiver's own. Batches that the flow stage does not see open
    theirs here."""
    cdef runs_t *runs = worker_runs(w, tx, batch, selection, n, True)
    cdef tx_port_t port = tx.port
    cdef u32 begin = 0
    cdef u32 rest = 0
    cdef u32 end, d, i, datagrams
    cdef u64 shared = 0
    cdef bint found
    cdef lane_t *lane
    while begin < runs.n:
        d = runs.order[runs.first[begin]]
        end = run_session_end(runs, batch, begin)
        datagrams = run_datagrams(runs, begin, end)
        lane = lane_find(&w.lanes, tx, &batch.exporter[d], w.sessions.now, &found)
        if not w.seeing and lane != NULL:
            if not found:
                lane_begin(&w.lanes, lane, tx, &batch.exporter[d], w.sessions.now)
            lane.used = lane.used + datagrams if lane.used < LANE_EARN else lane.used
            if lane.state != LANE_OPEN and lane_earned(&w.lanes, lane):
                lane_open(&w.lanes, lane)
            found = True
        if found and lane != NULL and lane.state == LANE_OPEN:
            port.fd = lane.fd
            tx_udp_emit(tx, batch, runs, begin, end, &w.ring)
            tx_flush(tx, &port, &w.ring)
        else:
            w.lanes.rest_first[rest] = <u16>begin
            w.lanes.rest_end[rest] = <u16>end
            rest += 1
            shared += datagrams
        begin = end
    for i in range(rest):
        tx_udp_emit(tx, batch, runs, w.lanes.rest_first[i], w.lanes.rest_end[i], &w.ring)
    if rest:
        atomics_add(&tx.counters.shared_port, shared)
        tx_flush(tx, &tx.port, &w.ring)


cdef u8 worker_named(worker_t *w, tx_t *tx, u32 d) noexcept nogil:
    """WORKER_NAMED where the copy of datagram d for this receiver carries the alias, else 0. Opens lanes."""
    cdef bint own = tx.per_session and worker_lane(w, tx, d)
    if own and not tx.alias:
        return 0
    return WORKER_NAMED if w.alias[d] else 0


cdef void worker_alias_moved_to(worker_t *w, tx_t *tx, u32 d) noexcept nogil:
    cdef const flow_seen_t *s = &w.seen[d]
    if (tx.alias or tx.per_session) and not atomic_load32(&tx.waiting) and flow_pause(w.flow, s.number, tx.counters.id, s.position):
        worker_replay_to(w, tx, s.number, FLOW_REPLAY_ALL, FLOW_REPLAY_REFRESH, 0)


cdef void worker_alias_moved(worker_t *w, u32 route, u32 d) noexcept nogil:
    """Datagram d is the first under its domain's new alias: all receivers that know it by the alias get its templates."""
    cdef work_t *work = w.work
    cdef const route_t *r = &work.routing.routes[route]
    cdef walk_t walk
    cdef u32 way
    walk_begin(&walk, &work.routing, r)
    while walk_next(&walk):
        way = walk.way
        if walk.pool != NULL:
            way = worker_family(w, way, w.batch.exporter[d].family)
            if worker_direct(w, r, way):
                continue
        worker_alias_moved_to(w, work.ways[way], d)
