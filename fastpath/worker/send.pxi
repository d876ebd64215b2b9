# needs: uapi: net; base: atomics, batch, counters, wire; shape: run; tx: copier, door, engine, packet, raw, transparent, udp; worker: flow,
#        lane, state, tap, work
# From selections to copies given to the kernel: which way sends each receiver's copies, with one emit and one flush each. Runs of the whole
# batch are cut once and shared by all receivers. Called by worker/loop.pxi once per batch. Never fails: engines count copies that fail.


cdef inline runs_t *worker_runs(worker_t *w, const tx_t *tx, const batch_t *batch, const u16 *selection, u32 n, bint grouped) noexcept nogil:
    """The runs of a selection; those of the whole batch that was received are made once and shared by all receivers that take it."""
    cdef runs_t *runs = w.runs_grouped if grouped else w.runs_plain
    cdef bint *known = &w.grouped_known if grouped else &w.plain_known
    if n != w.batch.n or tx.ttl == 0 or batch != w.batch:
        runs = w.runs_own
        run_make(runs, batch, selection, n, grouped, tx.ttl == 0)
    elif not known[0]:
        run_make(runs, batch, selection, n, grouped, False)
        known[0] = True
    return runs


cdef inline bint worker_is_long(const tx_t *tx, const batch_t *batch, u32 d) noexcept nogil:
    return batch.length[d] + wire_overhead(tx.family) > atomic_load32(&tx.mtu)


cdef void worker_send_cut(worker_t *w, tx_t *tx, batch_t *batch, const u16 *selection, u32 n) noexcept nogil:
    """A selection for engine `udp` with an MTU of its own, which no option of a socket can say: IPv4 has none, and IPV6_MTU makes fragments
    only of what is over the route's (net/ipv6/ip6_output.c, ip6_finish_output). What is longer is cut here, by a raw socket with the address
    and port of the other, so that the receiver sees one source; in order."""
    cdef runs_t *runs
    cdef u32 first = 0
    cdef u32 end
    cdef bint is_long
    while first < n:
        is_long = worker_is_long(tx, batch, selection[first])
        end = first + 1
        while end < n and worker_is_long(tx, batch, selection[end]) == is_long:
            end += 1
        if is_long:
            tx_raw_emit(tx.cutter, batch, selection + first, end - first, &w.ring)
            tx_flush(tx.cutter, &tx.cutter.port, &w.ring)
        else:
            runs = worker_runs(w, tx, batch, selection + first, end - first, False)
            tx_udp_emit(tx, batch, runs, 0, runs.n, &w.ring)
            tx_flush(tx, &tx.port, &w.ring)
        first = end


cdef inline void worker_send_one(worker_t *w, tx_t *tx, batch_t *batch, const u16 *selection, u32 n) noexcept nogil:
    """A receiver's selection of a batch (the one received, or one of our own making) by its own socket: one emit, one flush. The place where an
    engine is hooked in."""
    cdef runs_t *runs
    if unlikely(tx.per_session):
        worker_send_lanes(w, tx, batch, selection, n)
    elif unlikely(tx.cutter != NULL) and atomic_load32_acquire(&tx.cuts):
        worker_send_cut(w, tx, batch, selection, n)
    else:
        if tx.engine == TX_ENGINE_UDP:
            runs = worker_runs(w, tx, batch, selection, n, False)
            tx_udp_emit(tx, batch, runs, 0, runs.n, &w.ring)
        elif tx.engine == TX_ENGINE_DOOR:
            tx_door_emit(tx, batch, selection, n, &w.ring)
        else:                              # raw, and what is left to the raw sockets of the engines that share one
            tx_raw_emit(tx, batch, selection, n, &w.ring)
        tx_flush(tx, &tx.port, &w.ring)
    if unlikely(w.taps.open):
        taps_sent(w, tx, batch, selection, n)


cdef inline void worker_send_left(worker_t *w, const u32 *ways, u32 n) noexcept nogil:
    """What a shared socket did not take leaves by each receiver's own."""
    cdef u32 a, way, left
    for a in range(n):
        way = ways[a]
        left = w.work.shared.left[way]
        if left:
            w.work.shared.left[way] = 0
            worker_send_one(w, w.work.ways[way], w.batch, &w.work.shared.leftovers[<size_t>way * BATCH_LIMIT], left)


cdef void worker_send_unresolved(worker_t *w, tx_t *tx, u32 way, u32 n) noexcept nogil:
    """Copies for a receiver whose next hop does not answer: the kernel would take them, hold a few and drop them unseen. They are counted as
    no_neighbor; one every TX_PROBE_NS is sent, so that the kernel goes on asking for the neighbor."""
    cdef u64 now_ns = worker_clock(CLOCK_MONOTONIC)
    cdef u32 sent = 0
    if now_ns - tx.probed_ns >= TX_PROBE_NS:
        tx.probed_ns = now_ns
        sent = 1
        if w.work.rewrites[way]:
            worker_send_rewritten(w, tx, way, 1)
        else:
            worker_send_one(w, tx, w.batch, &w.work.selections[<size_t>way * BATCH_LIMIT], 1)
    atomics_add(&tx.counters.failed[REASON_NO_NEIGHBOR], n - sent)
    if unlikely(w.taps.open):
        taps_copies(w, tx, w.batch, &w.work.selections[<size_t>way * BATCH_LIMIT], sent, n, TAP_FAILED + REASON_NO_NEIGHBOR)


cdef inline bint worker_is_whole(const worker_t *w, const tx_t *tx, u32 n) noexcept nogil:
    """Whether a selection of n is fit for a socket that many receivers share: the whole batch, whose runs they share, too; all under one TTL;
    no pauses."""
    return n == w.batch.n and tx.ttl != 0 and not tx.pause_us


cdef inline bint worker_frames(const worker_t *w, const tx_t *tx) noexcept nogil:
    """Whether a receiver of engine `transparent` gets frames: only the choice of "auto" has a link, while it bypasses nothing."""
    return atomic_load32(&tx.link.usable) and w.packet.fd >= 0 and not tx.gave_up & TX_GAVE_UP_PACKET


cdef inline void worker_send(worker_t *w, u32 active) noexcept nogil:
    """One emit and one flush for each active way; ways that share the exporters' sockets or the packet socket together."""
    cdef work_t *work = w.work
    cdef u32 a, way, n
    cdef u32 ported = 0
    cdef u32 framed = 0
    cdef u32 cloned = 0
    cdef bint split = w.sessions.split == w.sessions.now   # groups are not exporters: only the raw sockets keep the order
    cdef tx_t *tx
    cdef runs_t *runs
    w.plain_known = w.grouped_known = False
    for a in range(active):
        way = work.active[a]
        n = work.selected[way]
        tx = work.ways[way]
        atomics_add(&tx.counters.offered, n)
        if unlikely(tx.gave_up):
            tx_try_again(tx)
        if unlikely(atomic_load32(&tx.looped)):
            atomics_add(&tx.counters.failed[REASON_LOOP], n)
            if unlikely(w.taps.open):
                taps_copies(w, tx, w.batch, &work.selections[<size_t>way * BATCH_LIMIT], 0, n, TAP_FAILED + REASON_LOOP)
        elif unlikely(atomic_load32(&tx.unresolved)):
            worker_send_unresolved(w, tx, way, n)
        elif work.rewrites[way]:
            worker_send_rewritten(w, tx, way, n)
        elif tx.engine >= TX_ENGINE_TRANSPARENT and not split and worker_is_whole(w, tx, n):
            if tx.engine == TX_ENGINE_PACKET or worker_frames(w, tx):
                work.framed[framed] = way
                framed += 1
            else:
                work.ported[ported] = way
                ported += 1
        else:
            worker_send_one(w, tx, w.batch, &work.selections[<size_t>way * BATCH_LIMIT], n)
    if ported or framed:
        way = work.ported[0] if ported else work.framed[0]
        runs = worker_runs(w, work.ways[way], w.batch, &work.selections[<size_t>way * BATCH_LIMIT], w.batch.n, True)
    if ported:
        transparent_send(&work.shared, &w.ports, w.batch, runs, w.sessions.now, work.ported, ported, &w.ring)
        if unlikely(w.taps.open):
            taps_shared(w, work.ported, ported, TX_ENGINE_TRANSPARENT)
        worker_send_left(w, work.ported, ported)
    if framed and w.copier.on:
        cloned = copier_split(&work.shared, w.batch, runs, work.framed, framed)
        if cloned:
            copier_send(&work.shared, &w.copier, &w.packet, w.batch, runs, work.framed, cloned, &w.ring)
            if unlikely(w.taps.open):
                taps_shared(w, work.framed, cloned, TX_ENGINE_PACKET)
            worker_send_left(w, work.framed, cloned)
    if framed > cloned:
        packet_send(&work.shared, &w.packet, w.batch, runs, work.framed + cloned, framed - cloned, &w.ring)
        if unlikely(w.taps.open):
            taps_shared(w, work.framed + cloned, framed - cloned, TX_ENGINE_PACKET)
        worker_send_left(w, work.framed + cloned, framed - cloned)
