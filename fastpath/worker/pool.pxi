# needs: uapi: net; base: atomics, batch; flow: items, keep, renumber, replay, scan; route: plan, pool; worker: flow, state
# Pools in the worker: which member's way a datagram takes, and which templates the members need to decode what they get. A member that takes
# over an exporter gets its templates first (hand-over); new templates are announced to all members at once, and only these; the sequence
# numbers of members that get no data do not change (flow_pause). Receivers that a rule names besides the pool get every copy anyway and are
# not touched. What hand-overs and announcements send of one domain to one member is limited per second (flow_may_replay); a member that was
# refused gets all templates as soon as the limit permits.
# Called by worker/choose.pxi once per datagram of a pool, by worker/loop.pxi once per batch. Hand-overs and announcements are sent before the
# batch's copies.

cdef enum:
    POOL_EXPIRE_STEPS = 64             # remembered exporters looked at in one loop pass


cdef void worker_pools_look(worker_t *w) noexcept nogil:
    """Once a batch: which members are down now."""
    cdef plan_t *plan = &w.work.routing
    cdef pool_member_t *member
    cdef u32 p, i, down
    cdef bint changed
    w.pools.now_s = <u32>(worker_clock(CLOCK_MONOTONIC) // 1000000000)
    for p in range(plan.pool_count):
        changed = False
        for i in range(plan.pools[p].first, plan.pools[p].first + plan.pools[p].count):
            member = &plan.members[i]
            down = atomic_load32(&w.work.ways[member.way].down)
            changed = changed or down != member.down
            member.down = down
        if changed:
            w.pools.versions += 1
            plan.pools[p].version = w.pools.versions


cdef inline void worker_note_news(worker_t *w, u32 d, u32 serial) noexcept nogil:
    """Notes whether datagram d taught templates that members of pools do not know (serial: the flow's before it), and whether one is owed
    some."""
    w.news = w.flow.serial != serial and flow_always(&w.seen[d])
    w.news_since = serial
    w.owing = w.seen[d].number != 0 and w.flow.domains[w.seen[d].number].owing


cdef inline u32 worker_family(const worker_t *w, u32 way, u8 family) noexcept nogil:
    """The way, or the one that takes its other family's exporters."""
    cdef const plan_t *plan = &w.work.routing
    if plan.way_other[way] != PLAN_NONE and plan.way_family[way] != family:
        return plan.way_other[way]
    return way


cdef inline bint worker_direct(const worker_t *w, const route_t *route, u32 way) noexcept nogil:
    """Whether a rule names the way's receiver itself, besides the pool."""
    cdef u32 k, other
    for k in range(route.count):
        other = w.work.routing.route_table[route.first + k]
        if other >= w.work.routing.way_count:
            return False
        if w.work.owner[other] == w.work.owner[way]:
            return True
    return False


cdef void worker_pool_moved(worker_t *w, const route_t *route, const pool_t *pool, const pool_entry_t *entry, u32 before, u32 d) noexcept nogil:
    """Datagram d is the first of its exporter that goes to entry.now; before: the receiver that had the exporter, 0 = none."""
    cdef const flow_seen_t *s = &w.seen[d]
    cdef u32 old = pool_member(&w.work.routing, pool, before)
    cdef u32 way = worker_family(w, entry.way, w.batch.exporter[d].family)
    if old != <u32>PLAN_NONE and not worker_direct(w, route, w.work.routing.members[old].way):
        flow_pause(w.flow, s.number, before, s.position)
    if flow_met(&w.flow.domains[s.number]) and not worker_direct(w, route, way):
        if flow_pause(w.flow, s.number, entry.now, s.position) and flow_replay_allowed(w.flow, s.number, entry.now):
            worker_replay_to(w, w.work.ways[way], s.number, FLOW_REPLAY_ALL, FLOW_REPLAY_REFRESH, 0)


cdef void worker_pool_tell(worker_t *w, const route_t *route, const pool_t *pool, u32 has, u32 d) noexcept nogil:
    """Sends the templates that datagram d brought, as far as they are new, to the members that do not get d itself; has: the receiver that
    does."""
    cdef const flow_seen_t *s = &w.seen[d]
    cdef const pool_member_t *member
    cdef u32 i, way
    for i in range(pool.first, pool.first + pool.count):
        member = &w.work.routing.members[i]
        if member.receiver == has or member.down or worker_direct(w, route, member.way):
            continue
        way = worker_family(w, member.way, w.batch.exporter[d].family)
        if ((pool.turns or flow_pause(w.flow, s.number, member.receiver, s.position))
                and flow_replay_allowed(w.flow, s.number, member.receiver)):
            worker_replay_to(w, w.work.ways[way], s.number, FLOW_REPLAY_TEMPLATES, FLOW_REPLAY_REFRESH, w.news_since)


cdef void worker_pool_owed(worker_t *w, const route_t *route, const pool_t *pool, u32 d) noexcept nogil:
    """Makes good what members are owed of datagram d's domain, before any of them gets d. What one that is down is owed is forgotten: it has
    all templates of all domains again before it is up (health/failover.py, Failover.finish_returns)."""
    cdef const flow_seen_t *s = &w.seen[d]
    cdef const pool_member_t *member
    cdef u32 i, way
    w.flow.domains[s.number].owing = False
    for i in range(pool.first, pool.first + pool.count):
        member = &w.work.routing.members[i]
        if worker_direct(w, route, member.way) or not flow_replay_owed(w.flow, s.number, member.receiver) or member.down:
            continue
        way = worker_family(w, member.way, w.batch.exporter[d].family)
        if pool.turns or flow_pause(w.flow, s.number, member.receiver, s.position):
            worker_replay_to(w, w.work.ways[way], s.number, FLOW_REPLAY_ALL, FLOW_REPLAY_REFRESH, 0)


cdef u32 worker_pool_turn(worker_t *w, const route_t *route, const pool_t *pool, u32 d) noexcept nogil:
    """Round-robin: the way of the member whose turn it is; the numbers of the others close up."""
    cdef u32 i
    cdef u32 turn = pool_turn(&w.work.routing, pool)
    cdef const pool_member_t *member = &w.work.routing.members[turn]
    cdef u32 way = worker_family(w, member.way, w.batch.exporter[d].family)
    if w.seeing and w.seen[d].number:
        for i in range(pool.first, pool.first + pool.count):
            if i != turn and not worker_direct(w, route, w.work.routing.members[i].way):
                flow_leave_out(w.flow, &w.seen[d], w.work.routing.members[i].receiver)
        if w.news:
            worker_pool_tell(w, route, pool, member.receiver, d)
    return way


cdef u32 worker_pool(worker_t *w, const route_t *route, pool_t *pool, u32 d) noexcept nogil:
    """The way that datagram d takes to the pool; PLAN_NONE: its receiver has a copy already."""
    cdef const exporter_t *exporter = &w.batch.exporter[d]
    cdef bint known = w.seeing and w.seen[d].number != 0
    cdef u64 domain = w.seen[d].domain if known else 0
    cdef u32 before, way
    cdef pool_entry_t *entry
    if unlikely(known and w.owing):
        worker_pool_owed(w, route, pool, d)
    if pool.turns:
        way = worker_pool_turn(w, route, pool, d)
    else:
        entry = pool_assign(&w.pools, &w.work.routing, pool, exporter.address, domain, &before)
        way = worker_family(w, entry.way, exporter.family)
        if known and before != entry.now:
            worker_pool_moved(w, route, pool, entry, before, d)
        if known and w.news:
            worker_pool_tell(w, route, pool, entry.now, d)
    return <u32>PLAN_NONE if worker_direct(w, route, way) else way
