# needs: uapi: copies, net; base: atomics, batch, counters, wire; shape: run; tx: engine, packet, shared
# The copier: frames of engine `packet` for several receivers leave as one, and a BPF program at the loopback device (bpf/copies.bpf.c)
# makes a copy of it for each receiver. All is done within the send call: the program counts what became of each copy in memory that this
# worker reads when the call returns. What cannot be copied so (another family, no checksum, a VLAN tag, over an MTU) is left to the packet
# socket or the raw ones, for the whole batch, so that the order per exporter and receiver is kept. Called by worker/send.pxi.

cdef enum:
    COPIER_CALL = 64                   # COPIES_OF_CALL
    COPIER_LEAST = 2                   # receivers: for one the packet socket does as well

ctypedef struct copier_t:
    bint on
    u32 token                          # of this process's program
    u32 number                         # of the worker: which slots of the maps are its own
    copies_receiver_t *receivers       # COPIES_OF_CALL, in the map's memory
    copies_counters_t *counters
    void *mapped[2]                    # the maps' memory, whole
    sockaddr_ll name                   # the loopback device


cdef inline u32 copier_longest(const runs_t *runs, const batch_t *batch) noexcept nogil:
    """Bytes of the longest datagram of the batch."""
    cdef u32 group
    cdef u32 longest = 0
    for group in range(batch.groups):
        if runs.group_longest[group] > longest:
            longest = runs.group_longest[group]
    return longest


cdef inline bint copier_takes(tx_t *tx, u32 family, u32 longest, bint singles) noexcept nogil:
    """Whether a receiver's copies of the whole batch can be made so. singles: there are no runs in it. Where an interface cuts runs up, the
    pieces of all receivers would come to it at once, and of those that it has no room for nobody is told. Brings tx.link_now up to date."""
    if tx.gave_up & (TX_GAVE_UP_COPIER | TX_GAVE_UP_PACKET | TX_GAVE_UP_SEGMENT):
        return False
    if tx.family != family or not tx.checksum or not packet_link(tx):
        return False
    if tx.link_now.cuts and not singles:
        return False
    longest += wire_overhead(tx.family)
    return tx.link_now.header_bytes == 14 and longest <= tx.link_now.mtu and longest <= atomic_load32(&tx.mtu)


cdef u32 copier_split(shared_t *shared, const batch_t *batch, const runs_t *runs, u32 *ways, u32 n) noexcept nogil:
    """Puts those ways first whose copies can be made in the kernel; returns how many they are."""
    cdef u32 family = shared.ways[ways[0]].family
    cdef u32 longest = copier_longest(runs, batch)
    cdef bint singles = True
    cdef u32 a, way, run
    cdef u32 taken = 0
    for run in range(runs.n):
        if runs.count[run] > 1:
            singles = False
            break
    for a in range(n):
        way = ways[a]
        if copier_takes(shared.ways[way], family, longest, singles):
            ways[a] = ways[taken]
            ways[taken] = way
            taken += 1
    return taken if taken >= COPIER_LEAST else 0


cdef inline void copier_address(const tx_t *tx, copies_receiver_t *to) noexcept nogil:
    to.device = <u32>tx.link_now.name.sll_ifindex
    memcpy(to.address, tx.address, 4 if tx.family == 4 else 16)
    to.port = tx.port_be
    to.ttl = tx.ttl
    to.set_tos = tx.tos >= 0
    to.tos = <u8>tx.tos
    memcpy(to.link, tx.link_now.header, 14)


cdef inline void copier_frame(copier_t *copier, tx_t *tx, const batch_t *batch, const runs_t *runs, u32 way, u32 first, u32 count, u32 n,
                              tx_ring_t *ring) noexcept nogil:
    """Appends one frame for n receivers, with `count` datagrams from place `first` of the runs' order. tx: one of them."""
    cdef u32 m = ring.n
    cdef u8 *link = ring.headers + <size_t>m * TX_HEADER + PACKET_VNET_BYTES
    cdef copies_call_t call
    packet_frame(tx, batch, runs, way, first, count, ring)
    memset(&call, 0, sizeof(call))
    call.token = copier.token
    call.worker = <u16>copier.number
    call.count = <u16>n
    call.datagrams = <u16>count
    call.six = tx.family == 6
    call.tos = batch.exporter[runs.order[first]].tos
    call.kind = htons(COPIES_KIND)
    memcpy(link, &call, 14)
    copier.name.sll_protocol = htons(0x0800 if tx.family == 4 else 0x86DD)
    ring.messages[m].msg_hdr.msg_name = &copier.name


cdef void copier_flush(shared_t *shared, tx_port_t *port, const runs_t *runs, const u32 *ways, u32 n, tx_ring_t *ring,
                       u64 *given, u64 *given_bytes, bint *failed) noexcept nogil:
    """Sends the ring. From the first frame that is not taken on all is left to the receivers' own sockets."""
    cdef u32 i = 0
    cdef u32 k, a
    cdef int got
    while i < ring.n:
        if failed[0]:
            for a in range(n):
                shared_leave(shared, ways[a], &runs.order[ring.copies[i].first], ring.copies[i].copies)
            i += 1
            continue
        got = port.send(port, &ring.messages[i], ring.n - i)
        atomics_add(&ring.copies[i].tx.counters.calls, 1)
        if got > 0:
            for k in range(i, i + <u32>got):
                given[0] += ring.copies[k].copies
                given_bytes[0] += ring.copies[k].bytes
            i += <u32>got
        elif got == -EINTR:
            atomics_add(&ring.copies[i].tx.counters.retries, 1)
        else:
            failed[0] = True
    ring.n = 0
    ring.vectors_used = 0


cdef void copier_leave(shared_t *shared, const runs_t *runs, const u32 *ways, u32 n, u64 given) noexcept nogil:
    """Leaves the first `given` datagrams, which the loopback device took for nothing, to the receivers' own sockets: in front of what is left
    to them already."""
    cdef u32 a, run, left, way
    cdef u64 rest
    cdef u16 behind[BATCH_LIMIT]
    for a in range(n):
        way = ways[a]
        left = shared.left[way]
        memcpy(behind, &shared.leftovers[<size_t>way * BATCH_LIMIT], left * sizeof(u16))
        shared.left[way] = 0
        rest = given
        for run in range(runs.n):
            if rest == 0:
                break
            shared_leave(shared, way, &runs.order[runs.first[run]], runs.count[run])
            rest -= runs.count[run]
        shared_leave(shared, way, behind, left)


cdef void copier_call(shared_t *shared, copier_t *copier, tx_port_t *port, const batch_t *batch, const runs_t *runs, const u32 *ways, u32 n,
                      tx_ring_t *ring) noexcept nogil:
    """The batch to n ways, COPIES_OF_CALL at most."""
    cdef copies_counters_t before[COPIER_CALL]
    cdef copies_counters_t *now
    cdef tx_t *tx
    cdef u64 given = 0
    cdef u64 given_bytes = 0
    cdef u64 sent, no_buffer, other
    cdef u64 all_of_them = 0
    cdef bint failed = False
    cdef u32 a, run
    for a in range(n):
        copier_address(shared.ways[ways[a]], &copier.receivers[a])
        before[a] = copier.counters[a]
    tx = shared.ways[ways[0]]
    for run in range(runs.n):
        if ring.n == TX_RING or ring.vectors_used + runs.count[run] + 1 > TX_VECTORS:
            copier_flush(shared, port, runs, ways, n, ring, &given, &given_bytes, &failed)
        copier_frame(copier, tx, batch, runs, ways[0], runs.first[run], runs.count[run], n, ring)
    copier_flush(shared, port, runs, ways, n, ring, &given, &given_bytes, &failed)
    for a in range(n):
        now = &copier.counters[a]
        all_of_them += atomic_load64(&now.sent) + atomic_load64(&now.no_buffer) + atomic_load64(&now.other)
        all_of_them -= before[a].sent + before[a].no_buffer + before[a].other
    if unlikely(failed or all_of_them != given * n):
        for a in range(n):
            tx_give_up(shared.ways[ways[a]], TX_GAVE_UP_COPIER)
    if unlikely(all_of_them == 0 and given):           # nobody copied: another program was there first, or ours is gone
        copier_leave(shared, runs, ways, n, given)
        return
    for a in range(n):
        tx = shared.ways[ways[a]]
        now = &copier.counters[a]
        sent = atomic_load64(&now.sent) - before[a].sent
        no_buffer = atomic_load64(&now.no_buffer) - before[a].no_buffer
        other = given - sent - no_buffer if sent + no_buffer < given else 0
        tx_settle(tx, sent, atomic_load64(&now.sent_bytes) - before[a].sent_bytes)
        atomics_add(&tx.counters.failed[REASON_NO_BUFFER_SPACE], no_buffer)
        atomics_add(&tx.counters.failed[REASON_OTHER], other)


cdef void copier_send(shared_t *shared, copier_t *copier, tx_port_t *port, const batch_t *batch, const runs_t *runs, const u32 *ways, u32 n,
                      tx_ring_t *ring) noexcept nogil:
    """The batch to n ways, all of them taken by copier_split."""
    cdef u32 begin = 0
    cdef u32 step
    while begin < n:
        step = n - begin if n - begin < COPIES_OF_CALL else COPIES_OF_CALL
        copier_call(shared, copier, port, batch, runs, ways + begin, step, ring)
        begin += step
