# needs: uapi: net; base: atomics, batch, wire; shape: run; tx: engine
# Sockets that many receivers share (engines `transparent` and `packet`): how a ring of copies for many receivers is sent and counted, and
# which copies are left to each receiver's own raw socket. Called by tx/transparent.pxi and tx/packet.pxi; the worker sends the copies that
# were left.

ctypedef struct shared_t:              # of a plan
    tx_t **ways                        # the plan's
    u16 *leftovers                     # BATCH_LIMIT a way: what the shared socket did not take, in order
    u32 *left                          # how many, 0 outside a batch


cdef inline void shared_leave(shared_t *shared, u32 way, const u16 *order, u32 n) noexcept nogil:
    """Leaves datagrams to the receiver's own raw socket."""
    cdef u32 left = shared.left[way]
    memcpy(&shared.leftovers[<size_t>way * BATCH_LIMIT + left], order, n * sizeof(u16))
    shared.left[way] = left + n


cdef inline void shared_refused(tx_t *tx, u8 feature, int error) noexcept nogil:
    """What the kernel does not do for this receiver now is given up for a while; anything else is only this moment's."""
    if tx_refuses_segments(error) or error == EPERM or error == EACCES:
        tx_give_up(tx, feature)


cdef void shared_flush(shared_t *shared, tx_port_t *port, u8 feature, const runs_t *runs, tx_ring_t *ring) noexcept nogil:
    """Sends a ring whose copies belong to many receivers through one socket. What is not taken is left to the receiver's raw socket, and so is
    all that follows for it until its `blocked` is taken back: order per exporter and receiver holds. Every copy is counted or left once."""
    cdef u32 i = 0
    cdef u32 k, want
    cdef bint careful = False
    cdef tx_copy_t *copy
    cdef int got
    while i < ring.n:
        copy = &ring.copies[i]
        if careful and copy.tx.blocked:
            shared_leave(shared, copy.way, &runs.order[copy.first], copy.copies)
            i += 1
            continue
        want = 1 if careful else ring.n - i
        got = port.send(port, &ring.messages[i], want)
        atomics_add(&copy.tx.counters.calls, 1)
        if got > 0:
            for k in range(i, i + <u32>got):
                tx_settle(ring.copies[k].tx, ring.copies[k].copies, ring.copies[k].bytes)
            i += <u32>got
        elif got == -EINTR:
            atomics_add(&copy.tx.counters.retries, 1)
        else:
            shared_refused(copy.tx, feature, -got)
            copy.tx.blocked = 1
            careful = True
    ring.n = 0
    ring.vectors_used = 0


cdef inline void shared_unblock(shared_t *shared, const u32 *ways, u32 n) noexcept nogil:
    """The socket that comes next is tried for each of these receivers again."""
    cdef u32 a
    for a in range(n):
        shared.ways[ways[a]].blocked = 0


cdef inline bint shared_takes(const tx_t *tx, const runs_t *runs, u32 group, u8 feature) noexcept nogil:
    """Whether a shared socket may carry this receiver's copies of all that an exporter (group) sent in this batch: the feature (one bit) is
    not given up, the socket took what came before, and nothing is over the MTU: fragments of the right size are cut by raw only."""
    if tx.blocked or tx.gave_up & feature:
        return False
    return runs.group_longest[group] + wire_overhead(tx.family) <= atomic_load32(&tx.mtu)


cdef inline u32 shared_step(const tx_t *tx, const runs_t *runs, u32 run) noexcept nogil:
    """How many datagrams of a run leave in one send: all, where segments are allowed for this receiver."""
    return runs.count[run] if tx.checksum and not tx.gave_up & TX_GAVE_UP_SEGMENT else 1
