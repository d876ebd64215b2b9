# needs: uapi: net; base: atomics, batch; route: echo, plan; tx: engine; worker: choose, flow, pool, state, work
# Echoes in the worker: holds back the copies of the payload under test, sends them to one receiver after the other, and stops the receiver
# that is proved to be an echo (route/echo.pxd explains the difference to exporters that repeat payloads). Held copies are always sent when
# the test ends, before a plan changes and before the worker stops. Called by worker/choose.pxi per suspected datagram, by worker/loop.pxi
# between batches.


cdef const u8 *WORKER_LOOPBACK = <const u8 *>b"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\1"


cdef void worker_let_go(worker_t *w, u32 way, u32 most) noexcept nogil:
    """Sends what is held back for a way (PLAN_NONE: for all), `most` copies at most."""
    cdef echo_t *e = &w.echo
    cdef batch_t *to = w.returned
    cdef echo_held_t *held
    cdef tx_t *tx
    cdef u32 i, k
    for i in range(e.held_count):
        held = &e.held[i]
        if held.copies == 0 or most == 0 or (way != <u32>PLAN_NONE and held.way != way):
            continue
        tx = w.work.ways[held.way]
        while held.copies and most:
            to.n = held.copies if held.copies < BATCH_LIMIT else <u32>BATCH_LIMIT
            to.n = to.n if to.n < most else most
            most -= to.n
            held.copies -= to.n
            e.copies -= to.n
            to.groups = 1
            to.listener = e.sources[held.source].listener
            for k in range(to.n):
                to.exporter[k] = e.sources[held.source].exporter
                to.data[k] = e.payload
                to.length[k] = e.length
                to.group[k] = 0
                to.sum_known[k] = 0
                to.arrival_ns[k] = 0
            atomics_add(&tx.counters.offered, to.n)
            worker_send_own(w, tx, to)


cdef void worker_echo_end(worker_t *w, u64 now_ns, bint in_vain) noexcept nogil:
    worker_let_go(w, <u32>PLAN_NONE, 0xFFFFFFFFU)
    echo_end(&w.echo, now_ns, in_vain)


cdef bint worker_is_at(const tx_t *tx, const exporter_t *exporter) noexcept nogil:
    """Whether the exporter has the receiver's address."""
    return (tx.family == exporter.family
            and memcmp(tx.address, exporter.address + (12 if tx.family == 4 else 0), 4 if tx.family == 4 else 16) == 0)


cdef bint worker_is_receiver(const worker_t *w, const exporter_t *exporter) noexcept nogil:
    """Whether the address is that of a receiver. One of loopback may be of anybody here, and says nothing."""
    cdef u32 i
    if (exporter.address[12] == 127) if exporter.family == 4 else (memcmp(exporter.address, WORKER_LOOPBACK, 16) == 0):
        return False
    for i in range(w.work.routing.way_count):
        if worker_is_at(w.work.ways[i], exporter):
            return True
    return False


cdef bint worker_echo_storms(worker_t *w) noexcept nogil:
    """The payload goes on coming though we hold it back: an exporter that repeats itself, or relays that feed each other without us. It is
    the latter if a receiver's own address sends it thousands of times a second: an echo, too."""
    cdef echo_t *e = &w.echo
    cdef const exporter_t *exporter
    cdef tx_t *tx
    cdef bint found = False
    cdef u32 i
    for i in range(e.held_count):
        exporter = &e.sources[e.held[i].source].exporter
        tx = w.work.ways[e.held[i].way]
        if e.sources[e.held[i].source].came >= ECHO_STORM and worker_is_at(tx, exporter):
            atomic_store32(&tx.looped, 1)
            found = True
    return found


cdef void worker_echo_answered(worker_t *w, u64 now_ns) noexcept nogil:
    """The way asked has given its copy back at once."""
    cdef echo_t *e = &w.echo
    if echo_answer(e, now_ns):
        e.before = e.next = 0
        atomic_store32(&w.work.ways[e.chosen].looped, 1)
        worker_echo_end(w, now_ns, False)
        return
    echo_hold(e, now_ns)


cdef void worker_echo_ask(worker_t *w, u64 now_ns) noexcept nogil:
    """The payload has not come for a while: the next receiver is asked, or the one that has answered before."""
    cdef echo_t *e = &w.echo
    e.asked = e.chosen if e.chosen != <u32>PLAN_NONE else echo_next_way(e)
    if e.asked == <u32>PLAN_NONE and e.asking_ns == 0:     # the test before ended among receivers that this payload does not go to
        e.next = 0
        e.asked = echo_next_way(e)
    if e.asked == <u32>PLAN_NONE:
        e.next = 0
        worker_echo_end(w, now_ns, True)
        return
    e.next = e.asked + 1
    e.asking_ns = e.asking_ns if e.asking_ns else now_ns
    e.state = ECHO_ASK
    e.answered = False
    e.phase_ns = now_ns
    worker_let_go(w, e.asked, 1)


cdef void worker_echo_step(worker_t *w) noexcept nogil:
    """Between batches, while a test is under way."""
    cdef echo_t *e = &w.echo
    cdef u64 now_ns = worker_clock(CLOCK_MONOTONIC)
    if e.full or (e.state == ECHO_HOLD and now_ns - e.phase_ns >= 18 * e.wait_ns):
        worker_echo_end(w, now_ns, not worker_echo_storms(w))
    elif e.state == ECHO_HOLD:
        if e.slow and <long long>(e.came_ns - e.phase_ns) > <long long>e.wait_ns:      # none of its copies is on its way any more
            worker_echo_end(w, now_ns, True)
        elif now_ns - e.came_ns >= e.hush_ns:
            worker_echo_ask(w, now_ns)
    elif e.answered:
        worker_echo_answered(w, now_ns)
    elif now_ns - e.phase_ns >= e.wait_ns:
        echo_miss(e, now_ns)
        if e.chosen == <u32>PLAN_NONE and now_ns - e.asking_ns < ECHO_ASKING_NS:
            worker_echo_ask(w, now_ns)
        else:
            e.next = e.next if e.chosen == <u32>PLAN_NONE else 0
            worker_echo_end(w, now_ns, True)


cdef u32 worker_hold(worker_t *w, u32 d, u32 route, u32 active) noexcept nogil:
    """As worker_select, of the payload under test: its copies are held back, but for those whose bytes change on the way, those that are not
    sent anyway, and in a slow test all that are not from a receiver's address to that address. Returns the number of active ways."""
    cdef work_t *work = w.work
    cdef route_t *r = &work.routing.routes[route]
    cdef const exporter_t *exporter = &w.batch.exporter[d]
    cdef u32 source
    cdef tx_t *tx
    cdef u32 k, way
    if w.echo.slow and not worker_is_receiver(w, exporter):
        return worker_select(w, d, route, active, w.seeing)
    source = echo_source(&w.echo, exporter)
    if source == ECHO_SOURCES:
        w.echo.full = True
        return worker_select(w, d, route, active, w.seeing)
    w.echo.sources[source].listener = w.batch.listener
    echo_came(&w.echo, source)
    for k in range(r.count):
        way = work.routing.route_table[r.first + k]
        if way >= work.routing.way_count:
            way = worker_pool(w, r, &work.routing.pools[way - work.routing.way_count], d)
            if way == <u32>PLAN_NONE:
                continue
        tx = work.ways[way]
        if (tx.numbered or tx.freq > 1 or atomic_load32(&tx.looped) or atomic_load32(&tx.waiting) or atomic_load32(&tx.unresolved)
                or (w.echo.slow and not worker_is_at(tx, exporter)) or not echo_keep(&w.echo, source, way)):
            active = worker_enter(w, d, way, active, w.seeing)
    return active


cdef bint worker_suspects(worker_t *w, u32 d) noexcept nogil:
    """Whether datagram d, which has come before, is (now) the payload under test."""
    cdef const u8 *p = w.batch.data[d]
    cdef u32 n = w.batch.length[d]
    cdef const exporter_t *exporter = &w.batch.exporter[d]
    if w.echo.state != ECHO_IDLE and echo_key(p, n, exporter) == w.echo.key:
        return echo_is(&w.echo, p, n)
    return echo_suspects(&w.echo, p, n, exporter, worker_is_receiver(w, exporter))
