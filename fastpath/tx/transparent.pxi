# needs: uapi: net; base: batch; shape: run; tx: engine, port, shared, udp
# Engine `transparent`: sends spoofed runs through the ordinary UDP stack, with an IP_TRANSPARENT socket that is bound to the exporter's port
# (tx/port.pxi). Each message has the exporter's address (IP_PKTINFO), so one socket per port and worker serves all exporters that send from
# this port, and all receivers. What such a socket does not take (no socket, queue full of another receiver's copies, refused) is left to the
# receiver's raw socket, for the rest of the batch, so that the order per exporter and receiver is kept. The same holds for all datagrams of
# an exporter in a batch with a datagram over the receiver's MTU, because the raw socket cuts fragments of the right size. Called by
# worker/send.pxi for receivers that take the whole batch. Never fails: it counts copies that fail.


cdef inline void transparent_name(tx_t *tx, const exporter_t *exporter, msghdr *message, u8 *control) noexcept nogil:
    """Destination and source address of a message: the socket has neither. control: of the message, with what it holds already."""
    cdef in_pktinfo ipv4
    cdef in6_pktinfo ipv6
    cdef u8 *end = control + message.msg_controllen
    message.msg_name = &tx.name
    if tx.family == 4:
        message.msg_namelen = sizeof(sockaddr_in)
        memset(&ipv4, 0, sizeof(ipv4))
        memcpy(&ipv4.ipi_spec_dst, &exporter.address[12], 4)
        end = tx_udp_control(end, IPPROTO_IP, IP_PKTINFO, &ipv4, sizeof(ipv4))
    else:
        message.msg_namelen = sizeof(sockaddr_in6)
        memset(&ipv6, 0, sizeof(ipv6))
        memcpy(&ipv6.ipi6_addr, exporter.address, 16)
        end = tx_udp_control(end, IPPROTO_IPV6, IPV6_PKTINFO, &ipv6, sizeof(ipv6))
    message.msg_control = control
    message.msg_controllen = end - control


cdef inline void transparent_finish(shared_t *shared, tx_port_t *port, const runs_t *runs, const u32 *ways, u32 n,
                                    tx_ring_t *ring) noexcept nogil:
    """Sends what waits for a socket; the next one is tried for every receiver again."""
    shared_flush(shared, port, TX_GAVE_UP_TRANSPARENT, runs, ring)
    shared_unblock(shared, ways, n)


cdef void transparent_group(shared_t *shared, tx_port_t *port, const batch_t *batch, runs_t *runs, u32 begin, u32 end, const u32 *ways, u32 n,
                            tx_ring_t *ring) noexcept nogil:
    """Runs begin..end-1, all of one exporter session whose port has a socket, to n ways."""
    cdef u32 run, a, way, i, m, first, count, step
    cdef u32 group = batch.group[runs.order[runs.first[begin]]]
    cdef tx_t *tx
    for run in range(begin, end):
        for a in range(n):
            way = ways[a]
            tx = shared.ways[way]
            first = runs.first[run]
            count = runs.count[run]
            if not tx.checksum or not shared_takes(tx, runs, group, TX_GAVE_UP_TRANSPARENT):
                shared_leave(shared, way, &runs.order[first], count)
                continue
            step = shared_step(tx, runs, run)
            i = first
            while i < first + count:
                if ring.n == TX_RING:
                    shared_flush(shared, port, TX_GAVE_UP_TRANSPARENT, runs, ring)
                if tx.blocked:
                    shared_leave(shared, way, &runs.order[i], step)
                else:
                    m = ring.n
                    ring.copies[m].way = way
                    ring.copies[m].first = <u16>i
                    tx_udp_message(tx, batch, runs, i, step, False, ring)
                    transparent_name(tx, &batch.exporter[runs.order[i]], &ring.messages[m].msg_hdr, ring.control + <size_t>m * TX_CONTROL)
                i += step


cdef void transparent_send(shared_t *shared, ports_t *ports, const batch_t *batch, runs_t *runs, u32 now, const u32 *ways, u32 n,
                           tx_ring_t *ring) noexcept nogil:
    """The batch to n ways: by the sockets of the exporters' ports where they have one, else left to raw. What follows each other by one socket
    is one call."""
    cdef u32 begin = 0
    cdef u32 end, a, d, datagrams
    cdef port_t *port
    ports.way.fd = -1
    while begin < runs.n:
        d = runs.order[runs.first[begin]]
        end = run_session_end(runs, batch, begin)
        datagrams = run_datagrams(runs, begin, end)
        port = port_for(ports, &batch.exporter[d], datagrams - (end - begin), now)
        if port != NULL:
            if ports.way.fd != port.fd:
                transparent_finish(shared, &ports.way, runs, ways, n, ring)
                ports.way.fd = port.fd
            transparent_group(shared, &ports.way, batch, runs, begin, end, ways, n, ring)
        else:
            for a in range(n):
                shared_leave(shared, ways[a], &runs.order[runs.first[begin]], datagrams)
        begin = end
    transparent_finish(shared, &ports.way, runs, ways, n, ring)
