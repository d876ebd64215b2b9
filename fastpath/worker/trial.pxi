# needs: uapi: net; base: atomics, batch; route: echo, plan, trial; tx: engine; worker: choose, echo, flow, pool, state, work
# Trials in the worker: holds back the copies of one group of subjects for one receiver, and stops the receiver that is proved to be an echo
# (route/trial.pxd explains how). Held copies are always sent when a group is released, before a plan changes and before the worker stops.
# Called by worker/echo.pxi per payload that comes again, by worker/loop.pxi between batches.


cdef void worker_trial_release(worker_t *w) noexcept nogil:
    """Sends what is held back."""
    cdef trial_t *t = &w.trial
    cdef batch_t *to = w.returned
    cdef trial_subject_t *s
    cdef tx_t *tx
    cdef u32 i, k
    for i in range(<u32>TRIAL_SLOTS):
        s = &t.subjects[i]
        while s.copies:
            tx = w.work.ways[t.way]
            to.n = s.copies if s.copies < BATCH_LIMIT else <u32>BATCH_LIMIT
            s.copies -= to.n
            to.groups = 1
            for k in range(to.n):
                to.exporter[k] = s.exporter
                to.data[k] = s.payload
                to.length[k] = s.length
                to.group[k] = 0
                to.sum_known[k] = 0
                to.arrival_ns[k] = 0
            atomics_add(&tx.counters.offered, to.n)
            worker_send_own(w, tx, to)
    t.copies = 0


cdef void worker_trial_end(worker_t *w, u64 now_ns) noexcept nogil:
    worker_trial_release(w)
    trial_end(&w.trial, now_ns)


cdef bint worker_trial_suggests(worker_t *w, u32 way, u64 now_ns) noexcept nogil:
    """Whether many subjects come from the address of this receiver."""
    cdef u32 i
    cdef u32 come = 0
    for i in range(<u32>TRIAL_SLOTS):
        come += trial_fits(&w.trial.subjects[i], now_ns) and worker_is_at(w.work.ways[way], &w.trial.subjects[i].exporter)
    return come >= TRIAL_LEAST // 2


cdef u32 worker_trial_way(worker_t *w, u64 now_ns) noexcept nogil:
    """Which receiver is tried now. PLAN_NONE: all were."""
    cdef trial_t *t = &w.trial
    cdef u32 ways = w.work.routing.way_count
    cdef u32 turn, way
    while t.next < 2 * ways:
        turn = t.next // ways
        way = t.next % ways
        t.next += 1
        if worker_may_hold(w.work.ways[way]) and worker_trial_suggests(w, way, now_ns) == (turn == 0):
            return way
    return <u32>PLAN_NONE


cdef void worker_trial_step(worker_t *w) noexcept nogil:
    """Between batches, while a trial is under way."""
    cdef trial_t *t = &w.trial
    cdef u64 now_ns = worker_clock(CLOCK_MONOTONIC)
    if t.copies >= TRIAL_COPIES or trial_refuted(t):
        worker_trial_end(w, now_ns)
    elif trial_over(t, now_ns):
        if not trial_agrees(t):
            worker_trial_end(w, now_ns)
        elif t.state == TRIAL_FIRST:
            worker_trial_release(w)
            trial_change(t, now_ns)
        else:
            t.level = t.next = 0
            atomic_store32(&w.work.ways[t.way].looped, 1)
            worker_trial_end(w, now_ns)


cdef bint worker_tries(worker_t *w, u32 d, u64 key) noexcept nogil:
    """Datagram d has come before: whether its copies for the receiver that is tried are held back."""
    cdef trial_t *t = &w.trial
    cdef u64 now_ns = w.echo.now_ns
    cdef u32 way
    cdef trial_subject_t *s = trial_came(t, echo_slow(key), key, w.batch.data[d], w.batch.length[d], &w.batch.exporter[d], now_ns)
    if s == NULL:
        return False
    if trial_may_begin(t, now_ns):
        way = worker_trial_way(w, now_ns)
        if way == <u32>PLAN_NONE:
            trial_rest(t, now_ns)
        else:
            trial_begin(t, way, echo_draw(&w.echo), now_ns)
    return t.state != TRIAL_IDLE and s.group == t.state


cdef u32 worker_hold_subject(worker_t *w, u32 d, u32 route, u32 active) noexcept nogil:
    """As worker_select, of a subject whose copies for one receiver are held back. Returns the number of active ways."""
    cdef work_t *work = w.work
    cdef route_t *r = &work.routing.routes[route]
    cdef u64 key = echo_key(w.batch.data[d], w.batch.length[d], &w.batch.exporter[d])
    cdef trial_subject_t *s = &w.trial.subjects[echo_slow(key)]
    cdef u32 k, way
    for k in range(r.count):
        way = work.routing.route_table[r.first + k]
        if way >= work.routing.way_count:
            way = worker_pool(w, r, &work.routing.pools[way - work.routing.way_count], d)
            if way == <u32>PLAN_NONE:
                continue
        if way == w.trial.way and w.trial.copies < TRIAL_COPIES and worker_may_hold(work.ways[way]):
            s.copies += 1
            w.trial.copies += 1
        else:
            active = worker_enter(w, d, way, active, w.seeing)
    return active
