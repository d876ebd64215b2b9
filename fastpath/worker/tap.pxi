# needs: uapi: net; base: atomics, batch, counters, door; tx: engine, lost; worker: state
# Taps: a live, bounded sample of what comes in, what leaves, and what is not sent and why, written into doors (base/door.pxd). A tap never
# makes anything wait: what is over its rate, or finds its door full, is counted as not shown. While no tap is open, all of it is one test a
# batch. Called by the rest of the worker where something happens to a datagram. Payloads are copied, because rings and rewritten copies are
# used again within a batch.

cdef enum:
    TAP_HEAD = 12                      # in front of the datagram in the payload of a record
    TAP_BURST_NS = 100000000           # so much of its rate may come at once
    TAP_OCTETS = 2048                  # a datagram of this size counts twice
    TAP_ANY = 0xFFFF                   # of all listeners
    TAP_NOWHERE = 0xFFFF               # a copy that stands for no datagram of the batch
    TAP_ALL = 0xFF                     # in place of bits of taps

    TAP_CAME = 0                       # what the head says of a datagram
    TAP_SENT = 1
    TAP_SKIPPED = 2
    TAP_DROPS = 3                      # from here on: it was not forwarded
    TAP_UNMATCHED = 3
    TAP_DENIED = 4
    TAP_TRUNCATED = 5
    TAP_FAILED = 16                    # and the reason added
    TAP_LATER = 0xFF                   # not yet known
    TAP_BITS = 0xFF                    # of `asked` and `served`: the taps; the rest numbers the changes

ctypedef struct tap_head_t:            # TAP_HEAD bytes
    u32 number                         # of the datagram at this worker; a datagram and its copies have the same, 0 = no datagram of its own
    u32 length                         # of the datagram; its bytes may be missing
    u8 verdict
    u8 engine                          # TX_ENGINE by which the copy leaves
    u16 spare


cdef inline bint tap_is_of(const tap_t *tap, const exporter_t *exporter, u32 listener) noexcept nogil:
    """Whether the tap asks for this exporter and listener."""
    cdef u64 part[2]
    if tap.listener != TAP_ANY and tap.listener != listener:
        return False
    if tap.family == 0:
        return True
    if tap.family != exporter.family:
        return False
    memcpy(part, exporter.address, 16)
    return part[0] & tap.mask[0] == tap.address[0] and part[1] & tap.mask[1] == tap.address[1]


cdef inline bint tap_takes(tap_t *tap, u64 now_ns) noexcept nogil:
    """Whether the rate allows one more; counts it as not shown if not."""
    if tap.due_ns > now_ns + TAP_BURST_NS:
        atomics_add(&tap.unshown, 1)
        return False
    if tap.due_ns < now_ns:
        tap.due_ns = now_ns
    return True


cdef void tap_flush(tap_t *tap) noexcept nogil:
    """Gives what is written to the door. A door without room, or without its other end, takes nothing."""
    cdef iovec vector
    cdef mmsghdr message
    if tap.records == 0:
        return
    memset(&message, 0, sizeof(message))
    vector.iov_base = tap.message
    vector.iov_len = tap.used
    message.msg_hdr.msg_iov = &vector
    message.msg_hdr.msg_iovlen = 1
    if sendmmsg(tap.fd, &message, 1, MSG_DONTWAIT | MSG_NOSIGNAL) == 1:
        atomics_add(&tap.shown, tap.records)
    else:
        atomics_add(&tap.unshown, tap.records)
    tap.records = tap.used = 0


cdef void tap_write(tap_t *tap, const exporter_t *exporter, u64 arrival_ns, u32 listener, u32 receiver, const tap_head_t *head,
                    const u8 *data, u32 octets) noexcept nogil:
    """One record; `octets` bytes of the datagram are there. This is what uses up the rate; large ones use more of it."""
    cdef u8 *at
    tap.due_ns += tap.interval_ns * (1 + octets // TAP_OCTETS)
    if tap.records == DOOR_RECORDS or tap.used + DOOR_HEADER + TAP_HEAD + octets > DOOR_MESSAGE:
        tap_flush(tap)
    at = tap.message + tap.used
    door_write(at, exporter, TAP_HEAD + octets, arrival_ns, listener, receiver)
    memcpy(at + DOOR_HEADER, head, TAP_HEAD)
    if octets:
        memcpy(at + DOOR_HEADER + TAP_HEAD, data, octets)
    tap.used += DOOR_HEADER + TAP_HEAD + octets
    tap.records += 1


cdef void taps_flush(worker_t *w) noexcept nogil:
    cdef u32 t
    for t in range(<u32>TAP_LIMIT):
        if w.taps.open >> t & 1:
            tap_flush(&w.taps.tap[t])


cdef void taps_look(worker_t *w) noexcept nogil:
    """Between batches: opens and closes taps, as the control plane asks."""
    cdef u32 asked = atomic_load32_acquire(&w.taps.asked)
    w.taps.now_ns = worker_clock(CLOCK_MONOTONIC)
    taps_flush(w)
    if asked == w.taps.served:
        return
    w.taps.open = asked & TAP_BITS
    w.ring.lost = &w.taps.lost if w.taps.open else NULL
    w.taps.lost.n = 0
    w.taps.origin = NULL
    w.taps.choosing = 0xFF             # so that the next batch begins anew
    atomic_store32_release(&w.taps.served, asked)


cdef inline bint taps_changed(worker_t *w) noexcept nogil:
    """Whether taps are to be opened or closed."""
    return w.taps.served != atomic_load32(&w.taps.asked)


cdef inline bint taps_wanted(worker_t *w) noexcept nogil:
    """Whether there is anything to do for taps between batches."""
    return w.taps.open or taps_changed(w)


cdef void taps_told(worker_t *w, const exporter_t *exporter, u64 arrival_ns, u32 listener, u32 verdict, const u8 *data, u32 length,
                    u32 number, u32 chosen) noexcept nogil:
    """What happened to a datagram on the way in. chosen: the taps that show it anyway, TAP_ALL: each decides here, as those that ask for
    drops always do."""
    cdef tap_head_t head
    cdef tap_t *tap
    cdef u32 t
    cdef u32 octets = length if data != NULL else 0
    head.number = number
    head.length = length
    head.verdict = <u8>verdict
    head.engine = 0
    head.spare = 0
    for t in range(<u32>TAP_LIMIT):
        tap = &w.taps.tap[t]
        if not w.taps.open >> t & 1 or (tap.receiver and not tap.drops):
            continue
        if tap.drops:
            if verdict < TAP_DROPS or tap.receiver or not tap_is_of(tap, exporter, listener):
                continue
            if not tap_takes(tap, w.taps.now_ns):
                continue
        elif chosen == TAP_ALL:
            if not tap_is_of(tap, exporter, listener) or not tap_takes(tap, w.taps.now_ns):
                continue
        elif not chosen >> t & 1:
            continue
        tap_write(tap, exporter, arrival_ns, listener, 0, &head, data, octets)


cdef inline bint tap_is_spent(tap_t *tap, u64 now_ns, u32 n) noexcept nogil:
    """Whether its rate is used up for now, so that none of n datagrams can be shown; if it asks for all of them, that is all to be counted."""
    if tap.due_ns <= now_ns + TAP_BURST_NS or tap.family or tap.listener != TAP_ANY:
        return False
    atomics_add(&tap.unshown, n)
    return True


cdef void tap_chooses(worker_t *w, u32 t) noexcept nogil:
    """Chooses datagrams of the batch that this tap shows with all their copies, from a place that moves, so that none is always the first.
    What is chosen is shown whole: one datagram whatever its receivers are many, more if the rate allows all their copies at once."""
    cdef tap_t *tap = &w.taps.tap[t]
    cdef batch_t *batch = w.batch
    cdef u32 k, d
    cdef u64 each = tap.interval_ns * (1 + w.work.routing.way_count)
    cdef u64 spent = 0
    if tap_is_spent(tap, w.taps.now_ns, batch.n):
        return
    for k in range(batch.n):
        d = (k + w.taps.number // BATCH_LIMIT * 7) % batch.n
        if not tap_is_of(tap, &batch.exporter[d], batch.listener) or not tap_takes(tap, w.taps.now_ns):
            continue
        if spent and tap.due_ns + spent > w.taps.now_ns + TAP_BURST_NS:
            atomics_add(&tap.unshown, 1)
            continue
        spent += each
        w.taps.chosen[d] |= <u8>(1 << t)
        w.taps.choosing |= <u8>(1 << t)


cdef void taps_came(worker_t *w) noexcept nogil:
    """A batch has come."""
    cdef batch_t *batch = w.batch
    cdef tap_t *tap
    cdef u32 t, k, d
    w.taps.number = w.taps.number + BATCH_LIMIT if w.taps.number < 0xFFFFFFFFU - 2 * BATCH_LIMIT else <u32>BATCH_LIMIT
    w.taps.now_ns = worker_clock(CLOCK_MONOTONIC)
    if w.taps.choosing:
        memset(w.taps.chosen, 0, sizeof(w.taps.chosen))
        w.taps.choosing = 0
    for t in range(<u32>TAP_LIMIT):
        tap = &w.taps.tap[t]
        if w.taps.open >> t & 1 and not tap.drops and not tap.receiver:
            tap_chooses(w, t)
    for d in range(batch.n if w.taps.choosing else 0):
        if w.taps.chosen[d]:
            taps_told(w, &batch.exporter[d], batch.arrival_ns[d], batch.listener, TAP_CAME, batch.data[d], batch.length[d],
                      w.taps.number + d, w.taps.chosen[d])
    for k in range(batch.cut):
        taps_told(w, &batch.cut_exporter[k], batch.cut_ns[k], batch.listener, TAP_TRUNCATED, NULL, batch.cut_length[k], 0, TAP_ALL)


cdef void taps_refused(worker_t *w, u32 d, u32 verdict) noexcept nogil:
    """Datagram d of the batch gets to no receiver."""
    cdef batch_t *batch = w.batch
    taps_told(w, &batch.exporter[d], batch.arrival_ns[d], batch.listener, verdict, batch.data[d], batch.length[d],
              w.taps.number + d, w.taps.chosen[d])


cdef inline u32 taps_origin(const worker_t *w, const batch_t *batch, u32 i) noexcept nogil:
    """The datagram of the received batch that entry i of `batch` was made of."""
    if batch == w.batch:
        return i
    return w.taps.origin[i] if w.taps.origin != NULL else TAP_NOWHERE


cdef void tap_copy(worker_t *w, u32 t, const tx_t *tx, const batch_t *batch, u32 i, u32 verdict, u32 engine) noexcept nogil:
    """What became of the copy i of `batch` for a receiver, if the tap asks for it."""
    cdef tap_t *tap = &w.taps.tap[t]
    cdef tap_head_t head
    cdef u32 d = taps_origin(w, batch, i)
    if tap.drops or tap.receiver:
        if not tap_is_of(tap, &batch.exporter[i], batch.listener) or not tap_takes(tap, w.taps.now_ns):
            return
    elif d == TAP_NOWHERE or not w.taps.chosen[d] >> t & 1:
        return
    head.number = w.taps.number + d if d != TAP_NOWHERE else 0
    head.length = batch.length[i]
    head.verdict = <u8>verdict
    head.engine = <u8>engine
    head.spare = 0
    tap_write(tap, &batch.exporter[i], batch.arrival_ns[i], batch.listener, tx.counters.id, &head, batch.data[i], batch.length[i])


cdef void taps_verdicts(worker_t *w, const batch_t *batch, const u16 *selection, u32 n, bint refusing) noexcept nogil:
    """What became of each copy of a selection that was just sent, into w.taps.verdict. What failed is noted (tx/lost.pxd), mostly in the order
    of the selection, so the search goes on where the last one ended; each note is of one copy."""
    cdef tx_lost_t *lost = &w.taps.lost
    cdef u32 k, i, at
    cdef u32 next = 0
    cdef u8 other = <u8>(TAP_FAILED + REASON_REFUSED) if refusing else <u8>TAP_SENT
    cdef const u8 *found
    memset(w.taps.verdict, other, n)
    for at in range(lost.n):
        found = <const u8 *>lost.data[at]
        for k in range(n):
            i = selection[next]
            if w.taps.verdict[next] == other and (found == batch.data[i] or (found == NULL and batch.length[i] == 0)
                                                  or (found > batch.data[i] and found < batch.data[i] + batch.length[i])):
                w.taps.verdict[next] = <u8>(TAP_FAILED + lost.reason[at])
                next = next + 1 if next + 1 < n else 0
                break
            next = next + 1 if next + 1 < n else 0


cdef inline bint tap_looks(const worker_t *w, u32 t, const tx_t *tx, bint drops) noexcept nogil:
    """Whether the tap may show copies for this receiver. drops: some of them were not sent."""
    cdef const tap_t *tap = &w.taps.tap[t]
    if not w.taps.open >> t & 1 or (tap.receiver and tap.receiver != tx.counters.id):
        return False
    if tap.drops:
        return drops
    return tap.receiver or w.taps.choosing >> t & 1


cdef void taps_copies(worker_t *w, const tx_t *tx, const batch_t *batch, const u16 *selection, u32 first, u32 n, u32 verdict) noexcept nogil:
    """Copies first..n-1 of a selection have all the same end, before they were given to an engine."""
    cdef u32 t, k
    for t in range(<u32>TAP_LIMIT):
        if not tap_looks(w, t, tx, verdict >= TAP_DROPS):
            continue
        for k in range(first, n):
            tap_copy(w, t, tx, batch, selection[k], verdict, tx.engine)


cdef void taps_skipped(worker_t *w, const tx_t *tx, u32 d) noexcept nogil:
    """A receiver does not get its copy of datagram d of the batch, because of freq."""
    cdef u16 one = <u16>d
    taps_copies(w, tx, w.batch, &one, 0, 1, TAP_SKIPPED)


cdef void taps_sent(worker_t *w, const tx_t *tx, const batch_t *batch, const u16 *selection, u32 n) noexcept nogil:
    """A selection was sent by the receiver's own socket."""
    cdef tx_lost_t *lost = &w.taps.lost
    cdef tap_t *tap
    cdef bint refusing = atomic_load32(&tx.refusing) != 0
    cdef bint known = False
    cdef u32 engine = tx.engine if tx.engine < TX_ENGINE_TRANSPARENT else <u32>TX_ENGINE_RAW
    cdef u32 t, k, count
    for t in range(<u32>TAP_LIMIT):
        tap = &w.taps.tap[t]
        if not tap_looks(w, t, tx, lost.n or refusing):
            continue
        count = lost.n if tap.drops and not refusing else n
        if (tap.receiver or tap.drops) and tap_is_spent(tap, w.taps.now_ns, count):
            continue
        if not known:
            taps_verdicts(w, batch, selection, n, refusing)
            known = True
        for k in range(n):
            if w.taps.verdict[k] >= TAP_DROPS or not tap.drops:
                tap_copy(w, t, tx, batch, selection[k], w.taps.verdict[k], engine)
    lost.n = 0


cdef void taps_shared(worker_t *w, const u32 *ways, u32 n, u32 engine) noexcept nogil:
    """The whole batch was sent by a socket that these receivers share, but for what it left to their own."""
    cdef const tx_t *tx
    cdef tap_t *tap
    cdef u32 t, a, d, k, left, verdict
    for a in range(n):
        tx = w.work.ways[ways[a]]
        left = w.work.shared.left[ways[a]]
        verdict = TAP_FAILED + REASON_REFUSED if atomic_load32(&tx.refusing) else TAP_SENT
        memset(w.taps.verdict, <int>verdict, w.batch.n)
        for k in range(left):
            w.taps.verdict[w.work.shared.leftovers[<size_t>ways[a] * BATCH_LIMIT + k]] = TAP_LATER
        for t in range(<u32>TAP_LIMIT):
            tap = &w.taps.tap[t]
            if not tap_looks(w, t, tx, verdict >= TAP_DROPS) or (
                    (tap.receiver or tap.drops) and tap_is_spent(tap, w.taps.now_ns, w.batch.n - left)):
                continue
            for d in range(w.batch.n):
                if w.taps.verdict[d] != TAP_LATER:
                    tap_copy(w, t, tx, w.batch, d, verdict, engine)
