# needs: uapi: net; base: atomics, batch, counters; flow: observe; route: echo, match, plan, session; tx: engine; worker: echo, flow, lane,
#        offload, pool, send, state, tap, work
# Which ways the datagrams of a batch take: their routes, the results of the flow stage, and the selections that worker/send.pxi sends. Called
# by worker/loop.pxi once per batch, and by worker/echo.pxi. It must never look at a payload itself.


cdef inline void worker_forget_routes(worker_t *w) noexcept nogil:
    """The memo of routes begins anew: their numbers are others."""
    if w.offload.on:
        offload_stop_all(&w.offload, worker_clock(CLOCK_MONOTONIC))


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
            worker_forget_routes(w)
        session_take(&w.sessions, session, exporter.address, exporter.port_be, <u16>batch.listener, route)
    session_group(&w.sessions, session, batch, d)
    return session.route


cdef inline bint worker_has_told(worker_t *w, const tx_t *tx, u32 d) noexcept nogil:
    """Whether a standby that is being woken has the templates of this datagram's exporter already: its numbers must not leave a hole."""
    return w.seeing and w.seen[d].number != 0 and w.seen[d].number <= tx.replay_cursor


cdef inline u32 worker_enter(worker_t *w, u32 d, u32 way, u32 active, bint seeing) noexcept nogil:
    """Enters datagram d into the selection of a way; returns the new number of active ways."""
    cdef work_t *work = w.work
    cdef tx_t *tx = work.ways[way]
    cdef u32 n
    cdef u32 waiting = atomic_load32(&tx.waiting)
    if unlikely(waiting) and (waiting == TX_WAITING or not worker_has_told(w, tx, d)):
        return active
    if tx.freq > 1 and not worker_keeps(w, tx, d):
        atomics_add(&tx.counters.offered, 1)
        atomics_add(&tx.counters.skipped, 1)
        if unlikely(w.taps.open):
            taps_skipped(w, tx, d)
        return active
    n = work.selected[way]
    if n == 0:
        work.active[active] = way
        active += 1
    work.selections[<size_t>way * BATCH_LIMIT + n] = <u16>d
    if seeing and tx.numbered:
        worker_number(w, tx, way, n, d)
    work.selected[way] = n + 1
    return active


cdef inline u32 worker_select(worker_t *w, u32 d, u32 route, u32 active, bint seeing) noexcept nogil:
    """Enters datagram d into the selection of every way of its route; returns the new number of active ways."""
    cdef work_t *work = w.work
    cdef route_t *r = &work.routing.routes[route]
    cdef u32 k, way
    for k in range(r.count):
        way = work.routing.route_table[r.first + k]
        if unlikely(way >= work.routing.way_count):
            way = worker_pool(w, r, &work.routing.pools[way - work.routing.way_count], d)
            if way == <u32>PLAN_NONE:
                continue
        active = worker_enter(w, d, way, active, seeing)
    return active


cdef inline void worker_clear(worker_t *w, u32 active) noexcept nogil:
    """Empties the selections."""
    cdef u32 a
    for a in range(active):
        w.work.selected[w.work.active[a]] = 0
        w.work.rewrites[w.work.active[a]] = 0


cdef u32 worker_send_now(worker_t *w, u32 active) noexcept nogil:
    """Sends what is selected so far, so that what follows comes behind it; returns the number of active ways then: 0."""
    worker_send(w, active)
    worker_clear(w, active)
    return 0


cdef inline void worker_observe(worker_t *w, u32 d, bint matched) noexcept nogil:
    """Shows datagram d to the flow stage. matched: a rule matches its exporter."""
    cdef u32 serial = w.flow.serial
    flow_observe(w.flow, &w.batch.exporter[d], w.batch.listener, matched, w.batch.data[d], w.batch.length[d], &w.seen[d])
    if unlikely(w.work.routing.pool_count):
        worker_note_news(w, d, serial)


cdef inline u32 worker_choose(worker_t *w, rx_counters_t *c, bint seeing) noexcept nogil:
    """Routes, observes and selects every datagram of the batch; returns the active ways. seeing is a constant where this is called: a batch
    that the flow stage does not see has nothing of it in the loop."""
    cdef u32 d, route
    cdef u32 active = 0
    cdef u64 unmatched = 0
    cdef u64 denied = 0
    for d in range(w.batch.n):
        route = worker_route(w, d)
        if route >= PLAN_ROUTE_FIRST:
            if seeing:
                worker_observe(w, d, True)
                if unlikely(w.work.aliases != NULL):
                    worker_alias(w, d)
                    if unlikely(w.moved):
                        worker_alias_moved(w, route, d)
                if unlikely((w.news and w.work.turns) or w.owing):
                    active = worker_send_now(w, active)
            if unlikely(echo_returns(&w.echo, w.batch.data[d], w.batch.length[d], &w.batch.exporter[d])) and worker_suspects(w, d):
                active = worker_hold(w, d, route, active)
            else:
                active = worker_select(w, d, route, active, seeing)
            if seeing:
                w.news = w.owing = False
        elif route == PLAN_ROUTE_DENIED:
            denied += 1
            if unlikely(w.taps.open):
                taps_refused(w, d, TAP_DENIED)
        else:
            unmatched += 1
            if unlikely(w.taps.open):
                taps_refused(w, d, TAP_UNMATCHED)
            if seeing:
                worker_observe(w, d, False)
    atomics_add(&c.unmatched, unmatched)
    atomics_add(&c.denied, denied)
    atomics_add(&c.matched, w.batch.n - unmatched - denied)
    return active
